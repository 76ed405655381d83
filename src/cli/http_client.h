/*
 * A small blocking HTTP client for our own verbs, on libcurl. Thread: one request at a time, the
 * caller's.
 */
#ifndef SHOAL_CLI_HTTP_CLIENT_H
#define SHOAL_CLI_HTTP_CLIENT_H

#include "base/buf.h"
#include "base/error.h"
#include "base/json.h"

#include <stdbool.h>

/* GETs a page, or POSTs body (JSON) when it is not NULL. ret_status is the HTTP status, of any
 * kind. Errors: E_UNAVAILABLE (says the address and why), E_LIMIT when the answer does not fit. */
int http_client_get(const char *url, const char *body, long timeout_ms, struct buf *ret_answer,
                    long *ret_status, struct error *err);

/* The error that an answer with another status than 200 stands for: its own message where it has
 * one, and a code of ours. Returns the code, never 0. */
int http_client_refuse(const char *url, long status, const struct buf *answer, struct error *err);

/* GETs the JSON below a node's API. Owns: the caller, json_decref. Errors: also E_UNAVAILABLE when
 * the status is not 200, and those of json_parse. */
int http_client_get_json(const char *api, const char *path, json_t **ret_value, struct error *err);

/* POSTs body and gives every line of the answer (without its end) as it comes; on_line returns
 * false to break off. A status other than 200 puts the whole answer into ret_answer instead. */
int http_client_stream(const char *url, const char *body,
                       bool (*on_line)(void *arg, const char *line, size_t len), void *arg,
                       struct buf *ret_answer, long *ret_status, struct error *err);

#endif
