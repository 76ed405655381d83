/*
 * A small HTTP/1.1 server on one libuv loop: strict requests (http_parser), whole or streamed
 * responses, bounded in every direction by base/limits.h. It knows nothing of what it serves: the
 * handler decides, hooks write error bodies and common header lines.
 *
 * One request of a connection is handled at a time; what a client sends ahead waits, bounded.
 * Reading goes on while a response is under way, so that a client that leaves is noticed at once.
 *
 * Lifetimes, as rules:
 * - A request and its response live from the call of `handle` until the response ends
 *   (http_respond, http_stream_end) or `gone` is called, whichever comes first. Afterwards neither
 *   may be touched.
 * - `gone` means that the client left or was dropped (too slow, server closing). It is never called
 *   from inside a function of this header, and never after the response has ended. Until it comes,
 *   writing to a lost connection is allowed and does nothing.
 * - A handler that does not answer at once must call http_response_watch before it returns.
 * Thread: the loop's.
 */
#ifndef SHOAL_API_HTTP_SERVER_H
#define SHOAL_API_HTTP_SERVER_H

#include "api/http_parser.h"
#include "base/buf.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <uv.h>

struct http_server;   /* opaque */
struct http_response; /* opaque; one request's answer */

struct http_hooks {
    /* A request is complete. */
    void (*handle)(void *arg, const struct http_request *request, struct http_response *response);
    /* Appends the JSON body of an answer that the server itself gives. request is NULL when its
     * target and fields could not be read; id is the one in x-request-id. */
    void (*error_body)(void *arg, const struct http_request *request, const char *id, int status,
                       const char *message, struct buf *out);
    /* Appends header lines (each with CRLF) that every answer carries. request is NULL when it
     * could not be read. May be NULL. */
    void (*headers)(void *arg, const struct http_request *request, struct buf *out);
};

struct http_server_options {
    const char *host; /* numeric address */
    uint16_t port;    /* 0: any free one */
    struct http_hooks hooks;
    void *arg;
    /* 0: those of base/limits.h. For tests. */
    uint32_t header_timeout_ms, body_timeout_ms, idle_timeout_ms, write_timeout_ms;
    uint32_t n_connections_max;
};

/* Listens. Borrows loop. Errors: libuv's, with the address in the message; E_INVALID, E_NOMEM. */
int http_server_open(uv_loop_t *loop, const struct http_server_options *o,
                     struct http_server **ret_server, struct error *err);
uint16_t http_server_port(const struct http_server *s);
uint32_t http_server_n_connections(const struct http_server *s);
/* Stops listening, closes all connections (`gone` for open responses), calls closed and frees
 * itself. */
void http_server_close(struct http_server *s, void (*closed)(void *arg), void *arg);

struct http_response_events {
    void (*drained)(void *arg); /* after http_stream_flush said E_AGAIN: the client caught up */
    void (*gone)(void *arg);
};
void http_response_watch(struct http_response *r, const struct http_response_events *events,
                         void *arg);
/* The id in x-request-id: the client's if it sent a sane one. */
const char *http_response_id(const struct http_response *r);
/* Whether the client has a loopback address. */
bool http_response_is_peer_loopback(const struct http_response *r);
/* The request being answered. */
const struct http_request *http_response_request(const struct http_response *r);
/* Moves the request's body out to the caller, who owns it then: for handlers that read it outside
 * the loop, where it must not go away with the client. */
void http_response_take_body(struct http_response *r, struct buf *ret_body);
/* Something of the handler's that goes with the request; NULL at first. */
void http_response_set_user(struct http_response *r, void *user);
void *http_response_user(const struct http_response *r);
/* What the request's line in the log says at its end, in place of what was noted before: fields
 * such as "key=laptop". Also from within `gone`. */
void http_response_note(struct http_response *r, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
/* Adds a header line, before http_respond or http_stream_begin. value has no CR or LF. */
void http_response_header(struct http_response *r, const char *name, const char *value);

/* Answers with a whole body and ends the response. content_type NULL: no body. */
void http_respond(struct http_response *r, int status, const char *content_type, const char *body,
                  size_t len);
/* Begins a streamed answer. */
void http_stream_begin(struct http_response *r, int status, const char *content_type);
/* Where the next piece is written; empty. Borrows: until http_stream_flush, within this call of the
 * loop. */
struct buf *http_stream_buf(struct http_response *r);
/* Sends what is in that buffer. Returns 0, or E_AGAIN when the client is more than
 * HTTP_STREAM_HIGH_WATER_BYTES behind: hold back until `drained`. */
int http_stream_flush(struct http_response *r);
/* Ends the response; close also ends the connection once everything is sent. */
void http_stream_end(struct http_response *r, bool close);

enum { HTTP_STREAM_HIGH_WATER_BYTES = 65536 }; /* seconds of text at any speed of generation */

#endif
