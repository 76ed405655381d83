#include "api/http_conn.h"
#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "base/rng.h"

#include <arpa/inet.h>
#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

static struct http_conn *conn_of(const struct http_response *r)
{
    return (struct http_conn *)((char *)(uintptr_t)r - offsetof(struct http_conn, response));
}

static bool is_sane_id(const char *id)
{
    size_t n = strlen(id);
    if (n == 0 || n >= HTTP_REQUEST_ID_BYTES)
        return false;
    return strspn(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") == n;
}

static void make_id(char id[HTTP_REQUEST_ID_BYTES])
{
    uint64_t random[2] = {0, 0};
    if (rng_system(random, sizeof(random)) != 0)
        random[0] = clock_now_ns(); /* an id need not be secret */
    snprintf(id, HTTP_REQUEST_ID_BYTES, "req_%016llx%08llx", (unsigned long long)random[0],
             (unsigned long long)(random[1] & 0xffffffffu));
}

void response_open(struct http_conn *c, const struct http_request *request)
{
    struct http_response *r = &c->response;
    const char *id = request != NULL ? http_request_header(request, "x-request-id") : NULL;
    *r = (struct http_response){.is_open = true, .begin_ns = clock_now_ns()};
    buf_init(&r->extra, LIMIT_HTTP_HEADER_BYTES);
    if (id != NULL && is_sane_id(id))
        memcpy(r->id, id, strlen(id) + 1);
    else
        make_id(r->id);
    if (request != NULL) {
        r->keep_alive = request->keep_alive && !c->server->is_closing;
        r->is_head = strcmp(request->method, "HEAD") == 0;
    }
}

void http_response_watch(struct http_response *r, const struct http_response_events *events,
                         void *arg)
{
    r->events = *events;
    r->events_arg = arg;
}

const char *http_response_id(const struct http_response *r)
{
    return r->id;
}

bool http_response_is_peer_loopback(const struct http_response *r)
{
    struct sockaddr_storage peer = {0};
    int len = sizeof(peer);
    if (uv_tcp_getpeername(&conn_of(r)->tcp, (struct sockaddr *)&peer, &len) != 0)
        return false;
    if (peer.ss_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)&peer)->sin_addr.s_addr) >> 24) == 127;
    if (peer.ss_family != AF_INET6)
        return false;
    const struct in6_addr *v6 = &((const struct sockaddr_in6 *)&peer)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(v6) || (IN6_IS_ADDR_V4MAPPED(v6) && v6->s6_addr[12] == 127);
}

const struct http_request *http_response_request(const struct http_response *r)
{
    return http_parser_request(&conn_of(r)->parser);
}

void http_response_take_body(struct http_response *r, struct buf *ret_body)
{
    http_parser_take_body(&conn_of(r)->parser, ret_body);
}

void http_response_set_user(struct http_response *r, void *user)
{
    r->user = user;
}

void *http_response_user(const struct http_response *r)
{
    return r->user;
}

void http_response_note(struct http_response *r, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(r->note, sizeof(r->note), fmt, args);
    va_end(args);
}

void http_response_header(struct http_response *r, const char *name, const char *value)
{
    assert(strpbrk(value, "\r\n") == NULL);
    buf_printf(&r->extra, "%s: %s\r\n", name, value);
}

static const char *status_text(int status)
{
    static const struct {
        int status;
        const char *text;
    } table[] = {
        {200, "OK"},
        {204, "No Content"},
        {400, "Bad Request"},
        {401, "Unauthorized"},
        {403, "Forbidden"},
        {404, "Not Found"},
        {405, "Method Not Allowed"},
        {408, "Request Timeout"},
        {413, "Content Too Large"},
        {414, "URI Too Long"},
        {415, "Unsupported Media Type"},
        {417, "Expectation Failed"},
        {429, "Too Many Requests"},
        {431, "Request Header Fields Too Large"},
        {500, "Internal Server Error"},
        {501, "Not Implemented"},
        {502, "Bad Gateway"},
        {503, "Service Unavailable"},
        {504, "Gateway Timeout"},
        {505, "HTTP Version Not Supported"},
        {529, "Overloaded"}, /* Anthropic's */
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (table[i].status == status)
            return table[i].text;
    return "Unknown";
}

/* RFC 9110, section 5.6.7; not strftime, whose names follow the locale. */
static void append_date(struct buf *b)
{
    static const char days[] = "SunMonTueWedThuFriSat";
    static const char months[] = "JanFebMarAprMayJunJulAugSepOctNovDec";
    time_t now = (time_t)(clock_wall_ns() / 1000000000u);
    struct tm t;
    gmtime_r(&now, &t);
    buf_printf(b, "date: %.3s, %02d %.3s %d %02d:%02d:%02d GMT\r\n", days + 3 * t.tm_wday,
               t.tm_mday, months + 3 * t.tm_mon, t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
}

/* NULL when its head is not complete. */
static const struct http_request *known_request(const struct http_conn *c)
{
    if (!http_parser_is_busy(&c->parser))
        return NULL;
    const struct http_request *request = http_parser_request(&c->parser);
    return request->headers != NULL ? request : NULL; /* the last of the head to be known */
}

/* content_length below 0: a stream. */
static struct buf *build_head(struct http_response *r, int status, const char *content_type,
                              long long content_length)
{
    struct http_conn *c = conn_of(r);
    struct http_server *s = c->server;
    struct buf *b = &s->head;
    const struct http_request *request = known_request(c);
    buf_reset(b);
    buf_printf(b, "HTTP/1.1 %d %s\r\nserver: shoal\r\n", status, status_text(status));
    append_date(b);
    buf_printf(b, "x-request-id: %s\r\nrequest-id: %s\r\n", r->id, r->id);
    if (content_type != NULL)
        buf_printf(b, "content-type: %s\r\n", content_type);
    if (content_length >= 0 && status != 204)
        buf_printf(b, "content-length: %lld\r\n", content_length);
    if (r->is_chunked)
        buf_append_str(b, "transfer-encoding: chunked\r\n");
    if (!r->keep_alive)
        buf_append_str(b, "connection: close\r\n");
    else if (request != NULL && request->is_http10)
        buf_append_str(b, "connection: keep-alive\r\n");
    if (s->hooks.headers != NULL)
        s->hooks.headers(s->arg, request, b);
    buf_append(b, buf_str(&r->extra), r->extra.len);
    buf_append_str(b, "\r\n");
    return b;
}

void response_log(const struct http_conn *c)
{
    const struct http_response *r = &c->response;
    const struct http_request *request = known_request(c);
    char path[128] = "-", status[16] = "gone";
    if (!log_enabled(LOG_LEVEL_INFO, "api"))
        return;
    if (request != NULL) /* in one word, so that nobody writes fields of a line */
        snprintf(path, sizeof(path), "%s", request->path);
    for (char *p = path; *p != '\0'; p++)
        if (*p <= ' ' || *p >= 0x7f || *p == '"')
            *p = '_';
    if (r->status != 0)
        snprintf(status, sizeof(status), "%d", r->status);
    log_info("api", "request=%s %s %s -> %s in %.1f ms, %llu bytes%s%s", r->id,
             request != NULL ? request->method : "-", path, status,
             (double)(clock_now_ns() - r->begin_ns) / 1e6, (unsigned long long)r->n_bytes,
             r->note[0] != '\0' ? " " : "", r->note);
}

static void end_response(struct http_response *r)
{
    struct http_conn *c = conn_of(r);
    response_log(c);
    r->is_open = false;
    r->is_streaming = false;
    buf_done(&r->extra);
    if (!r->keep_alive)
        c->is_ending = true;
    if (!c->is_writing && c->phase != CONN_CLOSING)
        conn_next(c);
}

void http_respond(struct http_response *r, int status, const char *content_type, const char *body,
                  size_t len)
{
    assert(r->is_open && !r->is_streaming);
    struct http_conn *c = conn_of(r);
    r->status = status;
    if (content_type == NULL)
        len = 0;
    r->n_bytes = len;
    struct buf *head = build_head(r, status, content_type, (long long)len);
    uv_buf_t parts[2] = {uv_buf_init(head->data, (unsigned)head->len),
                         uv_buf_init((char *)(uintptr_t)body, (unsigned)len)};
    if (head->error != 0)
        conn_close(c);
    else
        conn_write(c, parts, len > 0 && !r->is_head ? 2 : 1, false);
    end_response(r);
}

void response_refuse(struct http_conn *c, int status, const char *message)
{
    struct http_server *s = c->server;
    if (!c->response.is_open)
        response_open(c, NULL);
    c->response.keep_alive = false;
    /* Even one that is refused for its head: the path tells in which form. */
    const struct http_request *request =
        http_parser_is_busy(&c->parser) ? http_parser_request(&c->parser) : NULL;
    if (request != NULL && request->path == NULL)
        request = NULL;
    struct buf body;
    buf_init(&body, 4096);
    s->hooks.error_body(s->arg, request, c->response.id, status, message, &body);
    if (status == 503)
        http_response_header(&c->response, "retry-after", "1");
    log_debug("api", "request=%s refused: %d %s", c->response.id, status, message);
    http_respond(&c->response, status, "application/json", buf_str(&body), body.len);
    buf_done(&body);
}

void http_stream_begin(struct http_response *r, int status, const char *content_type)
{
    assert(r->is_open && !r->is_streaming);
    struct http_conn *c = conn_of(r);
    const struct http_request *request = http_response_request(r);
    r->status = status;
    r->is_streaming = true;
    r->is_chunked = !request->is_http10;
    r->keep_alive = r->keep_alive && r->is_chunked; /* else the end of the body is the end of all */
    struct buf *head = build_head(r, status, content_type, -1);
    uv_buf_t part = uv_buf_init(head->data, (unsigned)head->len);
    if (head->error != 0)
        conn_close(c);
    else
        conn_write(c, &part, 1, true);
}

struct buf *http_stream_buf(struct http_response *r)
{
    struct buf *b = &conn_of(r)->server->scratch;
    buf_reset(b);
    return b;
}

int http_stream_flush(struct http_response *r)
{
    assert(r->is_open && r->is_streaming);
    struct http_conn *c = conn_of(r);
    struct buf *b = &c->server->scratch;
    if (b->error != 0) {
        log_warn("api", "request=%s %s for a piece of a stream -> dropped", r->id,
                 error_text(b->error));
        conn_close(c);
        return 0;
    }
    if (b->len > 0 && !r->is_head) {
        char size[24];
        r->n_bytes += b->len;
        int n = snprintf(size, sizeof(size), "%zx\r\n", b->len);
        uv_buf_t parts[3] = {uv_buf_init(size, (unsigned)n), uv_buf_init(b->data, (unsigned)b->len),
                             uv_buf_init("\r\n", 2)};
        if (r->is_chunked)
            conn_write(c, parts, 3, true);
        else
            conn_write(c, parts + 1, 1, true);
        buf_reset(b);
    }
    if (c->phase == CONN_CLOSING || conn_queue_bytes(c) <= HTTP_STREAM_HIGH_WATER_BYTES)
        return 0;
    r->is_above_mark = true;
    return E_AGAIN;
}

void http_stream_end(struct http_response *r, bool close)
{
    assert(r->is_open && r->is_streaming);
    struct http_conn *c = conn_of(r);
    uv_buf_t last = uv_buf_init("0\r\n\r\n", 5);
    if (r->is_chunked && !r->is_head)
        conn_write(c, &last, 1, true);
    if (close)
        r->keep_alive = false;
    end_response(r);
}
