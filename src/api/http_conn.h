/* Inside of the HTTP server: connections, shared by http_server.c (reading), http_write.c (the
 * queue) and http_response.c (answers). Nobody else includes it. */
#ifndef SHOAL_API_HTTP_CONN_H
#define SHOAL_API_HTTP_CONN_H

#include "api/http_server.h"

enum conn_phase {
    CONN_IDLE,    /* between requests */
    CONN_HEAD,    /* reading a head */
    CONN_BODY,    /* reading a body */
    CONN_BUSY,    /* a response is open, or its bytes are still queued */
    CONN_LINGER,  /* all is sent; the rest of what the client sends is thrown away, so that closing
                     does not reset the connection before the client has read the answer */
    CONN_CLOSING, /* uv_close was called */
};

enum { HTTP_REQUEST_ID_BYTES = 65, HTTP_NOTE_BYTES = 384 };

struct http_response {
    bool is_open;       /* between `handle` and the end */
    bool is_streaming;  /* http_stream_begin was called */
    bool is_chunked;    /* not for HTTP/1.0 */
    bool keep_alive;    /* after this response */
    bool is_head;       /* no body goes out */
    bool is_above_mark; /* `drained` is owed */
    int status;
    uint64_t begin_ns, n_bytes; /* of the body, as far as it was given */
    void *user;
    char note[HTTP_NOTE_BYTES];
    char id[HTTP_REQUEST_ID_BYTES];
    struct buf extra; /* header lines of the handler */
    struct http_response_events events;
    void *events_arg;
};

struct http_conn {
    uv_tcp_t tcp;
    uv_timer_t timer;
    struct http_server *server;
    struct http_conn *next, *prev;
    struct http_parser parser;
    struct http_response response;
    uint8_t phase;
    uint8_t n_handles; /* to be closed before the memory may go */
    bool is_feeding;   /* inside conn_feed: answers given now do not start the next request */
    bool is_read_stopped;
    bool is_writing;     /* inflight belongs to libuv */
    bool is_ending;      /* linger once the queue is empty */
    struct buf held;     /* bytes of later requests */
    struct buf inflight; /* being written by libuv */
    struct buf pending;  /* to be written next */
    size_t queue_seen;   /* bytes that libuv still had at the last look of the write timer */
    size_t linger_bytes; /* thrown away */
    uv_write_t write;
    uv_shutdown_t shutdown;
};

struct http_server {
    uv_tcp_t tcp;
    uv_loop_t *loop;
    struct http_hooks hooks;
    void *arg;
    uint32_t header_timeout_ms, body_timeout_ms, idle_timeout_ms, write_timeout_ms;
    uint32_t n_connections_max, n_connections;
    uint16_t port;
    bool is_loopback; /* the address listened on: Host is checked */
    bool is_closing, is_listener_closed;
    struct http_conn *connections;
    void (*closed)(void *arg);
    void *closed_arg;
    struct buf scratch; /* the piece being written by a handler */
    struct buf head;    /* the response head being built */
    char read_buffer[65536];
};

/* http_server.c */
void conn_close(struct http_conn *c);
/* Enters a phase and sets its timer. */
void conn_enter(struct http_conn *c, enum conn_phase phase);
/* The response has ended and its bytes are sent: goes on with the next request or ends. */
void conn_next(struct http_conn *c);

/* http_write.c: sends now what the socket takes and queues the rest. is_bounded: a queue over
 * LIMIT_HTTP_WRITE_QUEUE_BYTES drops the client. */
void conn_write(struct http_conn *c, const uv_buf_t *parts, unsigned n_parts, bool is_bounded);
size_t conn_queue_bytes(const struct http_conn *c);
/* Whether the client took bytes since the last call. */
bool conn_write_progress(struct http_conn *c);

/* http_response.c */
/* One line for a request that has ended or whose client is gone. */
void response_log(const struct http_conn *c);
void response_open(struct http_conn *c, const struct http_request *request);
/* Answers by the server itself, with the hook's body. The connection ends. */
void response_refuse(struct http_conn *c, int status, const char *message);

#endif
