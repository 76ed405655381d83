/*
 * Bytes of a connection in, requests out: HTTP/1.0 and 1.1 requests, one at a time, without any
 * socket. llhttp reads the grammar; http_guard reads the head beside it, and both must agree.
 * Refused: more than one Host or Content-Length, Content-Length with Transfer-Encoding, any coding
 * but `chunked`, trailer fields, CONNECT, bodies over LIMIT_HTTP_BODY_BYTES.
 *
 * Source: RFC 9110, RFC 9112. Thread: none; plain state.
 */
#ifndef SHOAL_API_HTTP_PARSER_H
#define SHOAL_API_HTTP_PARSER_H

#include "api/http_guard.h"
#include "base/buf.h"

#include <llhttp.h>
#include <stdbool.h>
#include <stddef.h>

struct http_header {
    const char *name; /* lower case */
    const char *value;
};

struct http_request {   /* all text is NUL-terminated and without NUL inside, the body is not */
    const char *method; /* "GET" */
    const char *path;   /* percent-decoded, begins with '/', or is "*"; no control bytes */
    const char *query;  /* after '?', as sent; "" when none */
    const char *host;   /* of the Host field or of an absolute target; "" when none */
    const char *body;   /* [body_len] */
    size_t body_len;
    const struct http_header *headers; /* [n_headers], in the order of arrival */
    size_t n_headers;
    bool is_http10, keep_alive;
};

/* The value of the first field of that (lower-case) name, NULL when there is none. */
const char *http_request_header(const struct http_request *r, const char *name);

struct http_message; /* what is known of the request being read */

struct http_parser {
    llhttp_t llhttp;
    struct http_guard guard;
    struct http_message *message; /* NULL between requests, so that idle connections cost little */
    bool in_body, head_done, is_complete;
    int status;          /* of a refusal */
    const char *problem; /* its text */
};

enum http_parse {
    HTTP_PARSE_MORE, /* all bytes used, the request is not complete */
    HTTP_PARSE_HEAD, /* the head is complete and a body follows: feed the rest */
    HTTP_PARSE_DONE, /* a request is complete; http_parser_next before the next one */
    HTTP_PARSE_FAILED,
};

void http_parser_init(struct http_parser *p);
void http_parser_done(struct http_parser *p);
/* Reads on, at most up to the end of the head or of the request. After FAILED nothing more may be
 * fed. */
enum http_parse http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                 size_t *ret_used);
/* The request: after HEAD all but the body, after DONE the whole. Borrows: until http_parser_next,
 * http_parser_done or the next feed. */
const struct http_request *http_parser_request(const struct http_parser *p);
/* Whether a request has begun. */
bool http_parser_is_busy(const struct http_parser *p);
/* After HEAD: the client waits for "100 Continue". */
bool http_parser_expects_continue(const struct http_parser *p);
/* After DONE: moves the body out to the caller, who owns it then. */
void http_parser_take_body(struct http_parser *p, struct buf *ret_body);
void http_parser_next(struct http_parser *p);

#endif
