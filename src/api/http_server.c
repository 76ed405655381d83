/* Accepting, reading and the deadlines of connections. */
#include "api/http_conn.h"
#include "base/limits.h"
#include "base/log.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum {
    HELD_BYTES_MAX = 65536, /* of requests sent ahead; then reading waits */
    LINGER_MS = 1000,       /* for the client to read the last answer and close */
    LINGER_BYTES_MAX = LIMIT_HTTP_BODY_BYTES,
};

static void conn_feed(struct http_conn *c, const char *data, size_t len);

static void server_check_closed(struct http_server *s)
{
    if (!s->is_closing || !s->is_listener_closed || s->n_connections > 0)
        return;
    void (*closed)(void *) = s->closed;
    void *arg = s->closed_arg;
    buf_done(&s->scratch);
    buf_done(&s->head);
    free(s);
    closed(arg);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct http_conn *c = handle->data;
    struct http_server *s = c->server;
    if (--c->n_handles > 0)
        return;
    struct http_response *r = &c->response;
    if (r->is_open) {
        r->is_open = false;
        if (r->events.gone != NULL)
            r->events.gone(r->events_arg);
        r->status = 0;
        response_log(c);
    }
    buf_done(&r->extra);
    buf_done(&c->held);
    buf_done(&c->inflight);
    buf_done(&c->pending);
    http_parser_done(&c->parser);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        s->connections = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    s->n_connections--;
    free(c);
    server_check_closed(s);
}

void conn_close(struct http_conn *c)
{
    if (c->phase == CONN_CLOSING)
        return;
    c->phase = CONN_CLOSING;
    uv_close((uv_handle_t *)&c->tcp, on_handle_closed);
    uv_close((uv_handle_t *)&c->timer, on_handle_closed);
}

static void on_timer(uv_timer_t *timer)
{
    struct http_conn *c = timer->data;
    switch (c->phase) {
    case CONN_HEAD:
        response_refuse(c, 408, "the request head did not arrive in time");
        break;
    case CONN_BODY:
        response_refuse(c, 408, "the request body did not arrive in time");
        break;
    case CONN_BUSY:
        if (conn_write_progress(c)) {
            conn_enter(c, CONN_BUSY);
            break;
        }
        log_info("api", "request=%s client took nothing for %u ms (limit) -> dropped",
                 c->response.id, c->server->write_timeout_ms);
        conn_close(c);
        break;
    default:
        conn_close(c);
        break;
    }
}

void conn_enter(struct http_conn *c, enum conn_phase phase)
{
    struct http_server *s = c->server;
    if (c->phase == CONN_CLOSING)
        return;
    c->phase = (uint8_t)phase;
    uint32_t timeout_ms = LINGER_MS;
    if (phase == CONN_IDLE)
        timeout_ms = s->idle_timeout_ms;
    else if (phase == CONN_HEAD)
        timeout_ms = s->header_timeout_ms;
    else if (phase == CONN_BODY)
        timeout_ms = s->body_timeout_ms;
    else if (phase == CONN_BUSY)
        timeout_ms = s->write_timeout_ms;
    if (phase == CONN_BUSY && !c->is_writing)
        uv_timer_stop(&c->timer);
    else
        uv_timer_start(&c->timer, on_timer, timeout_ms, 0);
}

/* True when the name can only mean this machine or is an address: then no foreign name was bent to
 * point here. */
static bool is_local_host(const char *host)
{
    char name[256];
    struct in6_addr address;
    if (host[0] == '[') {
        const char *end = strchr(host, ']');
        if (end == NULL || (size_t)(end - host) > sizeof(name))
            return false;
        memcpy(name, host + 1, (size_t)(end - host) - 1);
        name[end - host - 1] = '\0';
        return inet_pton(AF_INET6, name, &address) == 1;
    }
    size_t n = strcspn(host, ":");
    if (n > 0 && host[n - 1] == '.')
        n--;
    if (n == 0 || n >= sizeof(name))
        return false;
    memcpy(name, host, n);
    name[n] = '\0';
    if (inet_pton(AF_INET, name, &address) == 1 || strcasecmp(name, "localhost") == 0)
        return true;
    return n > 10 && strcasecmp(name + n - 10, ".localhost") == 0;
}

/* What is decided when the head is there and the body is not. */
static bool admit(struct http_conn *c)
{
    const struct http_request *r = http_parser_request(&c->parser);
    if (c->server->is_loopback && !is_local_host(r->host) &&
        !(r->is_http10 && r->host[0] == '\0')) {
        response_refuse(c, 403,
                        "this server listens on the loopback address and answers only to the names "
                        "localhost, 127.0.0.1 and [::1]; listen on another address to use other "
                        "names");
        return false;
    }
    return true;
}

static void on_shutdown(uv_shutdown_t *request, int status)
{
    struct http_conn *c = request->data;
    if (status < 0)
        conn_close(c);
}

static void linger(struct http_conn *c)
{
    c->shutdown.data = c;
    buf_done(&c->held);
    if (uv_shutdown(&c->shutdown, (uv_stream_t *)&c->tcp, on_shutdown) != 0) {
        conn_close(c);
        return;
    }
    conn_enter(c, CONN_LINGER);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret)
{
    (void)suggested;
    struct http_conn *c = handle->data;
    *ret = uv_buf_init(c->server->read_buffer, sizeof(c->server->read_buffer));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *data)
{
    struct http_conn *c = stream->data;
    if (n == 0 || c->phase == CONN_CLOSING)
        return;
    if (n == UV_EOF && !c->response.is_open && c->is_writing) {
        c->is_ending = true; /* it sends no more, and still reads its answer */
        return;
    }
    if (n < 0) { /* the client closed or reset: what runs for it is in vain */
        conn_close(c);
        return;
    }
    if (c->phase == CONN_LINGER) {
        c->linger_bytes += (size_t)n;
        if (c->linger_bytes > LINGER_BYTES_MAX)
            conn_close(c);
        return;
    }
    conn_feed(c, data->base, (size_t)n);
}

static void hold(struct http_conn *c, const char *data, size_t len)
{
    if (len == 0 || c->phase == CONN_CLOSING || c->phase == CONN_LINGER || c->is_ending)
        return;
    if (buf_append(&c->held, data, len) != 0) {
        conn_close(c);
        return;
    }
    if (c->held.len >= HELD_BYTES_MAX && !c->is_read_stopped) {
        c->is_read_stopped = true;
        uv_read_stop((uv_stream_t *)&c->tcp);
    }
}

static bool is_reading(const struct http_conn *c)
{
    return c->phase == CONN_IDLE || c->phase == CONN_HEAD || c->phase == CONN_BODY;
}

/* Reads requests until the bytes are used up or one is being answered. */
static void conn_feed(struct http_conn *c, const char *data, size_t len)
{
    c->is_feeding = true;
    while (len > 0 && is_reading(c)) {
        size_t used = 0;
        if (c->phase == CONN_IDLE)
            conn_enter(c, CONN_HEAD);
        enum http_parse what = http_parser_feed(&c->parser, data, len, &used);
        data += used;
        len -= used;
        if (what == HTTP_PARSE_FAILED) {
            conn_enter(c, CONN_BUSY);
            response_refuse(c, c->parser.status, c->parser.problem);
        } else if (what == HTTP_PARSE_HEAD) {
            conn_enter(c, CONN_BODY);
            uv_buf_t go_on = uv_buf_init("HTTP/1.1 100 Continue\r\n\r\n", 25);
            if (admit(c) && len == 0 && http_parser_expects_continue(&c->parser)) {
                uv_try_write((uv_stream_t *)&c->tcp, &go_on, 1);
            }
        } else if (what == HTTP_PARSE_DONE) {
            bool is_admitted = c->phase == CONN_BODY || admit(c);
            if (is_admitted) {
                conn_enter(c, CONN_BUSY);
                response_open(c, http_parser_request(&c->parser));
                c->server->hooks.handle(c->server->arg, http_parser_request(&c->parser),
                                        &c->response);
            }
        }
    }
    c->is_feeding = false;
    hold(c, data, len);
}

void conn_next(struct http_conn *c)
{
    if (c->phase == CONN_CLOSING || c->phase == CONN_LINGER)
        return;
    http_parser_next(&c->parser);
    buf_done(&c->inflight);
    buf_done(&c->pending);
    if (c->is_ending) {
        linger(c);
        return;
    }
    conn_enter(c, CONN_IDLE);
    if (c->is_feeding)
        return;
    struct buf held = c->held;
    buf_init(&c->held, SIZE_MAX / 4);
    if (c->is_read_stopped) {
        c->is_read_stopped = false;
        uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read);
    }
    conn_feed(c, buf_str(&held), held.len);
    buf_done(&held);
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct http_server *s = listener->data;
    if (status < 0) {
        log_warn("api", "accept failed: %s", uv_strerror(status));
        return;
    }
    struct http_conn *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        log_warn("api", "out of memory for a connection");
        return;
    }
    c->server = s;
    http_parser_init(&c->parser);
    buf_init(&c->held, SIZE_MAX / 4);
    buf_init(&c->inflight, SIZE_MAX / 4);
    buf_init(&c->pending, SIZE_MAX / 4);
    uv_tcp_init(s->loop, &c->tcp);
    uv_timer_init(s->loop, &c->timer);
    c->tcp.data = c->timer.data = c;
    c->n_handles = 2;
    c->next = s->connections;
    if (c->next != NULL)
        c->next->prev = c;
    s->connections = c;
    s->n_connections++;
    if (uv_accept(listener, (uv_stream_t *)&c->tcp) != 0) {
        conn_close(c);
        return;
    }
    uv_tcp_nodelay(&c->tcp, 1);
    conn_enter(c, CONN_IDLE);
    if (uv_read_start((uv_stream_t *)&c->tcp, on_alloc, on_read) != 0) {
        conn_close(c);
        return;
    }
    if (s->n_connections > s->n_connections_max + s->n_connections_max / 16) {
        conn_close(c); /* even those that are told so are too many */
    } else if (s->n_connections > s->n_connections_max) {
        conn_enter(c, CONN_BUSY);
        response_refuse(c, 503, "too many connections");
    }
}

static int parse_address(const char *host, uint16_t port, struct sockaddr_storage *ret,
                         bool *ret_loopback)
{
    struct sockaddr_in *v4 = (struct sockaddr_in *)ret;
    struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)ret;
    memset(ret, 0, sizeof(*ret));
    if (uv_ip4_addr(host, port, v4) == 0) {
        *ret_loopback = (ntohl(v4->sin_addr.s_addr) >> 24) == 127;
        return 0;
    }
    if (uv_ip6_addr(host, port, v6) != 0)
        return E_INVALID;
    *ret_loopback = IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr);
    return 0;
}

static void on_listener_closed(uv_handle_t *handle)
{
    struct http_server *s = handle->data;
    s->is_listener_closed = true;
    server_check_closed(s);
}

static void ignore_closed(void *arg)
{
    (void)arg;
}

int http_server_open(uv_loop_t *loop, const struct http_server_options *o,
                     struct http_server **ret_server, struct error *err)
{
    struct sockaddr_storage address;
    bool is_loopback;
    if (parse_address(o->host, o->port, &address, &is_loopback) != 0)
        return error_set(err, E_INVALID, "'%s' is not a numeric IPv4 or IPv6 address", o->host);
    struct http_server *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "out of memory for the HTTP server");
    s->loop = loop;
    s->hooks = o->hooks;
    s->arg = o->arg;
    s->is_loopback = is_loopback;
    s->header_timeout_ms = o->header_timeout_ms ? o->header_timeout_ms : HTTP_HEADER_TIMEOUT_MS;
    s->body_timeout_ms = o->body_timeout_ms ? o->body_timeout_ms : HTTP_BODY_TIMEOUT_MS;
    s->idle_timeout_ms = o->idle_timeout_ms ? o->idle_timeout_ms : HTTP_IDLE_TIMEOUT_MS;
    s->write_timeout_ms = o->write_timeout_ms ? o->write_timeout_ms : HTTP_WRITE_TIMEOUT_MS;
    s->n_connections_max = o->n_connections_max ? o->n_connections_max : LIMIT_HTTP_CONNECTIONS;
    buf_init(&s->scratch, 2 * LIMIT_HTTP_WRITE_QUEUE_BYTES);
    buf_init(&s->head, 2 * LIMIT_HTTP_HEADER_BYTES);
    int rc = uv_tcp_init(loop, &s->tcp);
    if (rc != 0) {
        free(s);
        return error_set(err, rc, "cannot make a socket: %s", uv_strerror(rc));
    }
    s->tcp.data = s;
    struct sockaddr_storage bound;
    int bound_len = sizeof(bound);
    rc = uv_tcp_bind(&s->tcp, (struct sockaddr *)&address, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)&s->tcp, 511, on_connection);
    if (rc == 0)
        rc = uv_tcp_getsockname(&s->tcp, (struct sockaddr *)&bound, &bound_len);
    if (rc != 0) {
        http_server_close(s, ignore_closed, NULL);
        return error_set(err, rc, "cannot listen on %s port %u: %s", o->host, o->port,
                         uv_strerror(rc));
    }
    s->port = ntohs(bound.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&bound)->sin6_port
                                                : ((struct sockaddr_in *)&bound)->sin_port);
    *ret_server = s;
    return 0;
}

uint16_t http_server_port(const struct http_server *s)
{
    return s->port;
}

uint32_t http_server_n_connections(const struct http_server *s)
{
    return s->n_connections;
}

void http_server_close(struct http_server *s, void (*closed)(void *arg), void *arg)
{
    assert(!s->is_closing);
    s->is_closing = true;
    s->closed = closed;
    s->closed_arg = arg;
    for (struct http_conn *c = s->connections; c != NULL; c = c->next)
        conn_close(c);
    uv_close((uv_handle_t *)&s->tcp, on_listener_closed);
}
