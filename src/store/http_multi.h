/*
 * libcurl's multi interface on a libuv loop: many transfers, no thread. It owns the sockets and
 * timers between the two, and nothing of what a transfer means. Thread: the loop's; callbacks never
 * come from inside http_multi_add or http_multi_remove.
 */
#ifndef SHOAL_STORE_HTTP_MULTI_H
#define SHOAL_STORE_HTTP_MULTI_H

#include "base/buf.h"
#include "base/error.h"

#include <curl/curl.h>
#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct http_multi; /* opaque */

/* A transfer has ended: its handle is out of the multi handle, and the receiver's to free. */
typedef void http_multi_ended(void *arg, CURLcode code);

int http_multi_new(uv_loop_t *loop, struct http_multi **ret_multi, struct error *err);
/* No transfer may be left. closed comes from the loop; the object is freed before it. */
void http_multi_close(struct http_multi *m, void (*closed)(void *arg), void *arg);
uv_loop_t *http_multi_loop(const struct http_multi *m);

/* Starts a transfer; sets CURLOPT_PRIVATE. t must live until ended or removed. */
struct http_transfer {
    http_multi_ended *ended;
    void *arg;
};
int http_multi_add(struct http_multi *m, CURL *easy, struct http_transfer *t, struct error *err);
/* Takes out one that has not ended. */
void http_multi_remove(struct http_multi *m, CURL *easy);

/* A handle with what all of our requests have in common: http and https only, also after redirects
 * (at most HTTP_REDIRECTS_MAX), a connect timeout, no signals. bearer may be NULL; it is not sent
 * to another host. NULL: out of memory. */
enum { HTTP_REDIRECTS_MAX = 8, HTTP_CONNECT_MS = 15000 };
CURL *http_multi_easy(const char *url, const char *bearer);

/* GETs a small document. status is 0 when there was no answer; then cause says why. Cancelled with
 * http_get_cancel, nothing comes any more. */
struct http_get; /* opaque */
typedef void http_get_done(void *arg, long status, const struct buf *body, const char *cause);
int http_get_start(struct http_multi *m, const char *url, const char *bearer, size_t bytes_max,
                   http_get_done *done, void *arg, struct http_get **ret_get, struct error *err);
void http_get_cancel(struct http_get *g);

#endif
