/*
 * Ollama's API: what its calls share. A request is an object of JSON, an answer one object or a
 * line for each piece of it; errors are {"error": "text"}. Source: Ollama's API reference
 * (docs/api.md of its repository) and its official Python client. Nobody outside src/api includes
 * it. Thread: the loop's, but for parsers.
 */
#ifndef SHOAL_API_OLLAMA_H
#define SHOAL_API_OLLAMA_H

#include "api/chat_call.h"
#include "api/chat_request.h"

/* Clients look at the number to see what they may ask for: this is the first version of Ollama with
 * all that is answered here. */
#define OLLAMA_VERSION     "0.13.0"
#define OLLAMA_STREAM_TYPE "application/x-ndjson"

/* POST /api/chat, POST /api/generate. */
extern const struct chat_dialect ollama_chat_dialect, ollama_generate_dialect;

/* ---- ollama_request.c: bodies; 0, or -1 with the error ---- */

int ollama_chat_parse(struct chat_request *r, struct api_error *e);
int ollama_generate_parse(struct chat_request *r, struct api_error *e);
/* The request's body, which must be an object (owned by the caller) of at most n_max bytes. */
int ollama_read_body(const struct http_request *q, size_t n_max, json_t **ret_body,
                     struct api_error *e);
/* "model", or "name" as it was called first. */
int ollama_read_model(const json_t *body, const char **ret_model, struct api_error *e);
/* A number of seconds or text such as "1h30m"; below zero: for ever. NULL: *ret_s stays. */
int ollama_read_duration(const json_t *value, const char *path, double *ret_s, struct api_error *e);

/* ---- ollama_text.c ---- */

/* The model of a name. "m" and "m:latest" are the same, as everywhere in this API. */
const struct api_model *ollama_find_model(struct api *a, const char *name);
/* The name as others know it, without ":latest". E_NOMEM, E_LIMIT: those of buf_append. */
int ollama_append_plain_name(struct buf *out, const char *name);
/* A model's name for lists, as JSON: always with a tag. */
void ollama_append_listed_name(struct buf *out, const struct api_model *m);
/* RFC 3339 in UTC with nanoseconds, without quotes. */
void ollama_append_time(struct buf *out, uint64_t wall_ns);
/* Ends the line that began at out->len == from. Line separators other than the last are escaped:
 * clients split lines at Unicode's, too. */
void ollama_end_line(struct buf *out, size_t from);

/* ---- ollama_models.c, ollama_store.c: handlers ---- */

void ollama_root(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_version(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_tags(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_ps(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_show(struct api *a, const struct http_request *q, struct http_response *r);
/* What is not served: 501. */
void ollama_refuse(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_pull(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_copy(struct api *a, const struct http_request *q, struct http_response *r);
void ollama_delete(struct api *a, const struct http_request *q, struct http_response *r);
/* A second has passed. */
void ollama_jobs_tick(struct api *a);
/* Tells every client that the server stops, and cancels. */
void ollama_jobs_stop_all(struct api *a);

#endif
