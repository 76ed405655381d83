/* The HTTP server against raw sockets: what it accepts, what it refuses, and what it does with
 * clients that are slow, absent or hostile. The server runs in a thread of its own. */
#include "api/http_server.h"
#include "base/clock.h"
#include "base/limits.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

struct fixture {
    uv_loop_t loop;
    uv_thread_t thread;
    uv_async_t stop;
    struct http_server *server;
    uint16_t port;
    atomic_int n_handled, n_gone, n_drained, n_closed;
    struct http_response *streaming;
    struct http_server_options options;
};

static struct fixture fixture;

/* ---- the server's side ---- */

static void on_gone(void *arg)
{
    struct fixture *f = arg;
    f->streaming = NULL;
    f->n_gone++;
}

static void on_drained(void *arg)
{
    ((struct fixture *)arg)->n_drained++;
}

static void respond_echo(const struct http_request *q, struct http_response *r)
{
    struct buf b;
    buf_init(&b, 64u << 20);
    buf_printf(&b, "%s|%s|%s|%zu|", q->method, q->path, q->query, q->n_headers);
    const char *value = http_request_header(q, "x-test");
    buf_printf(&b, "%s|", value != NULL ? value : "-");
    buf_append(&b, q->body, q->body_len);
    http_respond(r, 200, "text/plain", buf_str(&b), b.len);
    buf_done(&b);
}

static void handle(void *arg, const struct http_request *q, struct http_response *r)
{
    static const struct http_response_events events = {.drained = on_drained, .gone = on_gone};
    struct fixture *f = arg;
    f->n_handled++;
    if (strcmp(q->path, "/hold") == 0) {
        http_response_watch(r, &events, f);
        f->streaming = r;
    } else if (strcmp(q->path, "/stream") == 0) {
        http_stream_begin(r, 200, "text/plain");
        for (int i = 0; i < atoi(q->query); i++) {
            buf_printf(http_stream_buf(r), "piece %d\n", i);
            http_stream_flush(r);
        }
        http_stream_end(r, false);
    } else if (strcmp(q->path, "/flood") == 0) {
        /* Twice the queue's limit at once: a reader that does not read is dropped. */
        http_response_watch(r, &events, f);
        f->streaming = r;
        http_stream_begin(r, 200, "text/plain");
        for (int i = 0; i < 2 * (int)(LIMIT_HTTP_WRITE_QUEUE_BYTES / 4096) + 4096; i++) {
            struct buf *b = http_stream_buf(r);
            for (int k = 0; k < 64; k++)
                buf_append_str(b,
                               "0123456789012345678901234567890123456789012345678901234567890123");
            http_stream_flush(r);
        }
    } else if (strcmp(q->path, "/fill") == 0) {
        /* Over the mark but under the limit: then it depends on whether the client reads. */
        http_response_watch(r, &events, f);
        f->streaming = r;
        http_stream_begin(r, 200, "text/plain");
        int rc = 0;
        for (int i = 0; i < 8192 && rc == 0; i++) {
            struct buf *b = http_stream_buf(r);
            for (int k = 0; k < 64; k++)
                buf_append_str(b,
                               "0123456789012345678901234567890123456789012345678901234567890123");
            rc = http_stream_flush(r);
        }
    } else if (strcmp(q->path, "/large") == 0) {
        size_t n = 8u << 20;
        char *text = malloc(n);
        memset(text, 'a', n);
        http_respond(r, 200, "text/plain", text, n);
        free(text);
    } else {
        respond_echo(q, r);
    }
}

static void error_body(void *arg, const struct http_request *request, const char *id, int status,
                       const char *message, struct buf *out)
{
    (void)arg, (void)request, (void)id;
    buf_printf(out, "{\"status\":%d,\"message\":\"%s\"}", status, message);
}

static void on_closed(void *arg)
{
    ((struct fixture *)arg)->n_closed++;
}

static void on_stop(uv_async_t *async)
{
    struct fixture *f = async->data;
    http_server_close(f->server, on_closed, f);
    uv_close((uv_handle_t *)async, NULL);
}

static void run(void *arg)
{
    uv_run(&((struct fixture *)arg)->loop, UV_RUN_DEFAULT);
}

static void start(struct fixture *f)
{
    struct error err;
    f->options.host = "127.0.0.1";
    f->options.hooks.handle = handle;
    f->options.hooks.error_body = error_body;
    f->options.arg = f;
    f->n_handled = f->n_gone = f->n_drained = f->n_closed = 0;
    assert_int_equal(uv_loop_init(&f->loop), 0);
    assert_int_equal(http_server_open(&f->loop, &f->options, &f->server, &err), 0);
    f->port = http_server_port(f->server);
    f->stop.data = f;
    assert_int_equal(uv_async_init(&f->loop, &f->stop, on_stop), 0);
    assert_int_equal(uv_thread_create(&f->thread, run, f), 0);
}

static int set_up(void **state)
{
    *state = &fixture;
    memset(&fixture.options, 0, sizeof(fixture.options));
    start(&fixture);
    return 0;
}

static int set_up_impatient(void **state)
{
    *state = &fixture;
    fixture.options = (struct http_server_options){.header_timeout_ms = 200,
                                                   .body_timeout_ms = 200,
                                                   .idle_timeout_ms = 300,
                                                   .write_timeout_ms = 300,
                                                   .n_connections_max = 4};
    start(&fixture);
    return 0;
}

static int tear_down(void **state)
{
    struct fixture *f = *state;
    uv_async_send(&f->stop);
    uv_thread_join(&f->thread);
    assert_int_equal(f->n_closed, 1);
    assert_int_equal(uv_loop_close(&f->loop), 0); /* every handle was closed */
    return 0;
}

/* ---- the client's side ---- */

static int dial(const struct fixture *f, int receive_bytes)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(f->port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (receive_bytes > 0)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_bytes, sizeof(receive_bytes));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
    assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
    return fd;
}

static void put(int fd, const char *text, size_t len)
{
    while (len > 0) {
        ssize_t n = send(fd, text, len, MSG_NOSIGNAL);
        if (n <= 0)
            return; /* the server has hung up, which the answer will show */
        text += n;
        len -= (size_t)n;
    }
}

static void put_text(int fd, const char *text)
{
    put(fd, text, strlen(text));
}

/* Reads until `wanted` has been seen n times, the end, or the time is over. */
static size_t get(int fd, char *out, size_t size, const char *wanted, int n, int timeout_ms)
{
    size_t len = 0;
    uint64_t end_ns = clock_now_ns() + (uint64_t)timeout_ms * 1000000u;
    out[0] = '\0';
    for (;;) {
        int seen = 0;
        for (const char *at = out; wanted != NULL && (at = strstr(at, wanted)) != NULL; at++)
            seen++;
        uint64_t now_ns = clock_now_ns();
        if ((wanted != NULL && seen >= n) || now_ns >= end_ns || len + 1 >= size)
            return len;
        struct pollfd p = {.fd = fd, .events = POLLIN};
        if (poll(&p, 1, (int)((end_ns - now_ns) / 1000000u) + 1) <= 0)
            return len;
        ssize_t got = recv(fd, out + len, size - len - 1, 0);
        if (got <= 0)
            return len;
        len += (size_t)got;
        out[len] = '\0';
    }
}

static int status_of(const char *answer)
{
    return strncmp(answer, "HTTP/1.1 ", 9) == 0 ? atoi(answer + 9) : 0;
}

/* Sends one request on its own connection and returns the status; the server must close after an
 * error, and the whole answer is in `answer`. */
static int ask(const struct fixture *f, const char *request, size_t len, char *answer, size_t size)
{
    int fd = dial(f, 0);
    put(fd, request, len);
    shutdown(fd, SHUT_WR);
    get(fd, answer, size, NULL, 0, 3000);
    close(fd);
    return status_of(answer);
}

static bool wait_for(atomic_int *value, int wanted, int timeout_ms)
{
    for (int i = 0; i < timeout_ms && *value < wanted; i++)
        usleep(1000);
    return *value >= wanted;
}

#define HOST "Host: localhost\r\n"

/* ---- tests ---- */

static void test_requests_that_are_fine(void **state)
{
    static const struct {
        const char *request, *wanted;
    } cases[] = {
        {"GET /a HTTP/1.1\r\n" HOST "\r\n", "GET|/a||1|-|"},
        {"\r\n\r\nGET /a HTTP/1.1\r\n" HOST "\r\n", "GET|/a||1|-|"},
        {"GET /a%2Fb%20c?x=1&y HTTP/1.1\r\n" HOST "\r\n", "GET|/a/b c|x=1&y|1|-|"},
        {"GET http://localhost/a?q HTTP/1.1\r\n" HOST "\r\n", "GET|/a|q|1|-|"},
        {"GET http://localhost HTTP/1.1\r\n" HOST "\r\n", "GET|/||1|-|"},
        {"GET / HTTP/1.0\r\n\r\n", "GET|/||0|-|"},
        {"GET / HTTP/1.1\r\n" HOST "X-Test: \r\n\r\n", "GET|/||2||"},
        {"GET / HTTP/1.1\r\n" HOST "X-TEST:   a b\t \r\n\r\n", "GET|/||2|a b|"},
        {"GET / HTTP/1.1\r\n" HOST "X-Test: \xc3\xa4\r\n\r\n", "GET|/||2|\xc3\xa4|"},
        {"GET / HTTP/1.1\r\n" HOST "Connection: upgrade\r\nUpgrade: websocket\r\n\r\n",
         "GET|/||3|-|"},
        {"POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\n\r\nhello", "POST|/||2|-|hello"},
        {"POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n"
         "3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n",
         "POST|/||2|-|abcde"},
        {"GET / HTTP/1.1\r\nHost: 127.0.0.1:80\r\n\r\n", "GET|/||1|-|"},
        {"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "GET|/||1|-|"},
        {"GET / HTTP/1.1\r\nHost: 192.168.0.7\r\n\r\n", "GET|/||1|-|"},
        {"GET / HTTP/1.1\r\nHost: a.localhost:1\r\n\r\n", "GET|/||1|-|"},
        {"OPTIONS * HTTP/1.1\r\n" HOST "\r\n", "OPTIONS|*||1|-|"},
    };
    char answer[4096];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        int status =
            ask(*state, cases[i].request, strlen(cases[i].request), answer, sizeof(answer));
        const char *body = strstr(answer, "\r\n\r\n");
        if (status != 200 || body == NULL || strcmp(body + 4, cases[i].wanted) != 0)
            fail_msg("case %zu: wanted '%s', got '%s'", i, cases[i].wanted, answer);
    }
}

/* The smuggling corpus: each is refused and none reaches the handler. */
static const struct refused {
    int status;
    const char *request;
} refused[] = {
    {400, "GET / HTTP/1.1\r\n" HOST "X : y\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "Content-Length : 5\r\n\r\nhello"},
    {400, "GET / HTTP/1.1\r\n" HOST "X: a\r\n b\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "X: a\r\n\tb\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n X: a\r\n" HOST "\r\n"},
    {400,
     "POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
    {400,
     "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 5, 5\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: +5\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: -5\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 0x5\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 5 5\r\n\r\nhello"},
    {400, "POST / HTTP/1.1\r\n" HOST "Content-Length: 99999999999999999999\r\n\r\nhello"},
    {0, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"},
    {0, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"},
    {0, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n"},
    {0, "POST / HTTP/1.1\r\n" HOST
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
    {0, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding:\x0b"
        "chunked\r\n\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST
          "Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\nabc\r\n0\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n0\r\nX: y\r\n\r\n"},
    {400, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n\r\n0\r\n\r\n"},
    {400, "GET / HTTP/1.1\n" HOST "\r\n"},
    {400, "GET / HTTP/1.1\r\nHost: localhost\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "X: a\rb\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "X: a\r\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "X: a\x01\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "X\x80: a\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST ": a\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST "X\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n\r\n"},
    {400, "GET / HTTP/1.1\r\n" HOST HOST "\r\n"},
    {403, "GET / HTTP/1.1\r\nHost: evil.example\r\n\r\n"},
    {403, "GET / HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n"},
    {403, "GET / HTTP/1.1\r\nHost:\r\n\r\n"},
    {403, "GET http://evil.example/ HTTP/1.1\r\n" HOST "\r\n"},
    {403, "POST / HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 5\r\n\r\nhello"},
    {400, "GET  / HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /  HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /a b HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET\t/ HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /\xff HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /%zz HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /%4 HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /%00 HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /%0d%0a HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /#x HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET a HTTP/1.1\r\n" HOST "\r\n"},
    {400, "GET /\r\n\r\n"},
    {400, "GET\r\n\r\n"},
    {400, "get / HTTP/1.1\r\n" HOST "\r\n"},
    {0, "GET / HTTP/2.0\r\n" HOST "\r\n"},
    {0, "GET / HTTP/1.2\r\n" HOST "\r\n"},
    {400, "GET / HTTX/1.1\r\n" HOST "\r\n"},
    {400, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"},
    {400, "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"},
    {0, "CONNECT localhost:80 HTTP/1.1\r\n" HOST "\r\n"},
    {417, "POST / HTTP/1.1\r\n" HOST "Expect: magic\r\nContent-Length: 5\r\n\r\nhello"},
    {415, "POST / HTTP/1.1\r\n" HOST "Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello"},
    {413, "POST / HTTP/1.1\r\n" HOST "Content-Length: 33554433\r\n\r\n"},
};

static void test_hostile_requests_are_refused(void **state)
{
    struct fixture *f = *state;
    char answer[4096];
    for (size_t i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        int status = ask(f, refused[i].request, strlen(refused[i].request), answer, sizeof(answer));
        if (refused[i].status != 0 ? status != refused[i].status : status < 400)
            fail_msg("case %zu: wanted %d, got '%s' for '%s'", i, refused[i].status, answer,
                     refused[i].request);
        assert_non_null(strstr(answer, "connection: close\r\n"));
        assert_non_null(strstr(answer, "{\"status\":"));
        assert_non_null(strstr(answer, "x-request-id: "));
    }
    assert_int_equal(f->n_handled, 0);
    ask(f, "GET /\0 HTTP/1.1\r\n" HOST "\r\n", 34, answer, sizeof(answer));
    assert_int_equal(status_of(answer), 400);
    ask(f, "GET / HTTP/1.1\r\nHost: local\0host\r\n\r\n", 36, answer, sizeof(answer));
    assert_int_equal(status_of(answer), 400);
    assert_int_equal(f->n_handled, 0);
}

static void test_too_much_of_everything(void **state)
{
    static const struct {
        int status;
        const char *before, *unit, *after;
        size_t n;
    } cases[] = {
        {414, "GET /", "a", " HTTP/1.1\r\n" HOST "\r\n", LIMIT_HTTP_URL_BYTES},
        {200, "GET /", "a", " HTTP/1.1\r\n" HOST "\r\n", LIMIT_HTTP_URL_BYTES - 1},
        {431, "GET / HTTP/1.1\r\n" HOST, "A: b\r\n", "\r\n", LIMIT_HTTP_HEADERS},
        {200, "GET / HTTP/1.1\r\n" HOST, "A: b\r\n", "\r\n", LIMIT_HTTP_HEADERS - 1},
        {431, "GET / HTTP/1.1\r\n" HOST "A: ", "b", "\r\n\r\n", LIMIT_HTTP_HEADER_BYTES},
        {200, "GET / HTTP/1.1\r\n" HOST "X-Test: ", "b", "\r\n\r\n", LIMIT_HTTP_HEADER_BYTES - 47},
        {431, "GET / HTTP/1.1\r\n" HOST, "b", ": x\r\n\r\n", LIMIT_HTTP_HEADER_BYTES},
        {431, "", "\r\n", "GET / HTTP/1.1\r\n" HOST "\r\n", LIMIT_HTTP_HEADER_BYTES / 2},
        {413, "POST / HTTP/1.1\r\n" HOST "Transfer-Encoding: chunked\r\n\r\n2000001\r\n", "b",
         "\r\n0\r\n\r\n", LIMIT_HTTP_BODY_BYTES + 1},
    };
    static char answer[65536];
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct buf b;
        buf_init(&b, 64u << 20);
        buf_append_str(&b, cases[i].before);
        for (size_t k = 0; k < cases[i].n; k++)
            buf_append_str(&b, cases[i].unit);
        buf_append_str(&b, cases[i].after);
        int status = ask(*state, b.data, b.len, answer, sizeof(answer));
        buf_done(&b);
        if (status != cases[i].status)
            fail_msg("case %zu: wanted %d, got '%.200s'", i, cases[i].status, answer);
    }
}

static void test_split_at_every_byte(void **state)
{
    static const char request[] =
        "POST /p?q HTTP/1.1\r\n" HOST "X-Test: v\r\nTransfer-Encoding: chunked\r\n\r\n"
        "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        "GET /second HTTP/1.1\r\n" HOST "\r\n";
    size_t len = sizeof(request) - 1;
    char answer[8192];
    for (size_t cut = 1; cut < len; cut++) {
        int fd = dial(*state, 0);
        put(fd, request, cut);
        usleep(300);
        put(fd, request + cut, len - cut);
        get(fd, answer, sizeof(answer), "GET|/second||1|-|", 1, 3000);
        close(fd);
        if (strstr(answer, "POST|/p|q|3|v|abcde") == NULL ||
            strstr(answer, "GET|/second||1|-|") == NULL)
            fail_msg("cut at %zu: got '%s'", cut, answer);
    }
    int fd = dial(*state, 0);
    for (size_t i = 0; i < len; i++) {
        put(fd, request + i, 1);
        usleep(50);
    }
    get(fd, answer, sizeof(answer), "GET|/second||1|-|", 1, 3000);
    close(fd);
    assert_non_null(strstr(answer, "GET|/second||1|-|"));
}

static void test_pipelined_requests_are_answered_in_order(void **state)
{
    enum { N = 500 };
    struct buf all;
    static char answer[N * 512];
    char wanted[64];
    buf_init(&all, 1u << 20);
    for (int i = 0; i < N; i++)
        buf_printf(&all, "GET /n%d%s HTTP/1.1\r\n" HOST "\r\n", i, i % 50 == 7 ? "/stream" : "");
    int fd = dial(*state, 0);
    put(fd, all.data, all.len);
    snprintf(wanted, sizeof(wanted), "GET|/n%d||1|-|", N - 1);
    get(fd, answer, sizeof(answer), wanted, 1, 5000);
    const char *at = answer;
    for (int i = 0; i < N; i++) {
        snprintf(wanted, sizeof(wanted), "GET|/n%d%s||1|-|", i, i % 50 == 7 ? "/stream" : "");
        at = strstr(at, wanted);
        if (at == NULL)
            fail_msg("no answer %d", i);
    }
    close(fd);
    buf_done(&all);
}

static void test_what_follows_a_held_request_waits(void **state)
{
    struct fixture *f = *state;
    char answer[1024];
    int fd = dial(f, 0);
    put_text(fd, "GET /hold HTTP/1.1\r\n" HOST "\r\nGET /next HTTP/1.1\r\n" HOST "\r\n");
    get(fd, answer, sizeof(answer), "200", 1, 100);
    assert_string_equal(answer, "");
    assert_int_equal(f->n_handled, 1);
    /* A flood behind it is not kept in memory: the socket fills up instead. */
    static char junk[1u << 20];
    memset(junk, 'x', sizeof(junk));
    ssize_t total = 0, n;
    for (int i = 0; i < 64; i++) {
        n = send(fd, junk, sizeof(junk), MSG_DONTWAIT | MSG_NOSIGNAL);
        total += n > 0 ? n : 0;
        usleep(1000);
    }
    assert_true(total < (32 << 20));
    close(fd);
}

static void test_keep_alive_and_close(void **state)
{
    char answer[4096];
    int fd = dial(*state, 0);
    for (int i = 0; i < 20; i++) {
        put_text(fd, "GET /a HTTP/1.1\r\n" HOST "\r\n");
        get(fd, answer, sizeof(answer), "GET|/a||1|-|", 1, 2000);
        assert_non_null(strstr(answer, "GET|/a||1|-|"));
        assert_null(strstr(answer, "connection: close"));
    }
    put_text(fd, "GET /a HTTP/1.1\r\n" HOST "Connection: close\r\n\r\nGET /b HTTP/1.1\r\n");
    get(fd, answer, sizeof(answer), NULL, 0, 2000);
    assert_non_null(strstr(answer, "connection: close"));
    assert_null(strstr(answer, "/b"));
    close(fd);
    fd = dial(*state, 0);
    put_text(fd, "GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    get(fd, answer, sizeof(answer), "GET|/a||1|-|", 1, 2000);
    assert_non_null(strstr(answer, "connection: keep-alive"));
    put_text(fd, "GET /stream?2 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    get(fd, answer, sizeof(answer), NULL, 0, 2000);
    assert_non_null(strstr(answer, "\r\n\r\npiece 0\npiece 1\n")); /* ends with the connection */
    close(fd);
}

static void test_head_options_continue_and_ids(void **state)
{
    char answer[4096];
    int fd = dial(*state, 0);
    put_text(fd, "HEAD /a HTTP/1.1\r\n" HOST "X-Request-Id: abc-1.2_3\r\n\r\n");
    get(fd, answer, sizeof(answer), "\r\n\r\n", 1, 2000);
    assert_non_null(strstr(answer, "content-length: 13\r\n"));
    assert_non_null(strstr(answer, "x-request-id: abc-1.2_3\r\n"));
    assert_string_equal(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
    put_text(fd, "HEAD /stream?3 HTTP/1.1\r\n" HOST "X-Request-Id: not sane!\r\n\r\n");
    get(fd, answer, sizeof(answer), "\r\n\r\n", 1, 2000);
    assert_non_null(strstr(answer, "x-request-id: req_"));
    assert_string_equal(strstr(answer, "\r\n\r\n"), "\r\n\r\n");
    put_text(fd, "POST /c HTTP/1.1\r\n" HOST "Expect: 100-continue\r\nContent-Length: 3\r\n\r\n");
    get(fd, answer, sizeof(answer), "\r\n\r\n", 1, 2000);
    assert_string_equal(answer, "HTTP/1.1 100 Continue\r\n\r\n");
    put_text(fd, "abc");
    get(fd, answer, sizeof(answer), "abc", 1, 2000);
    assert_int_equal(status_of(answer), 200);
    put_text(fd, "GET /stream?3 HTTP/1.1\r\n" HOST "\r\n");
    get(fd, answer, sizeof(answer), "0\r\n\r\n", 1, 2000);
    assert_non_null(
        strstr(answer, "8\r\npiece 0\n\r\n8\r\npiece 1\n\r\n8\r\npiece 2\n\r\n0\r\n\r\n"));
    close(fd);
}

static void test_a_large_answer_arrives_whole(void **state)
{
    int fd = dial(*state, 4096);
    static char answer[(8u << 20) + 4096];
    put_text(fd, "GET /large HTTP/1.1\r\n" HOST "\r\nGET /after HTTP/1.1\r\n" HOST "\r\n");
    size_t len = get(fd, answer, sizeof(answer), NULL, 0, 1500);
    assert_true(len > (8u << 20));
    assert_non_null(memmem(answer + len - 64, 64, "GET|/after||1|-|", 16));
    close(fd);
}

static void test_clients_that_leave_are_noticed(void **state)
{
    struct fixture *f = *state;
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    for (int i = 0; i < 20; i++) {
        int fd = dial(f, 0);
        put_text(fd, "GET /hold HTTP/1.1\r\n" HOST "\r\n");
        assert_true(wait_for(&f->n_handled, i + 1, 1000));
        if (i % 2 == 0)
            setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
        uint64_t begin_ns = clock_now_ns();
        close(fd);
        assert_true(wait_for(&f->n_gone, i + 1, 1000));
        assert_true(clock_now_ns() - begin_ns < 100u * 1000000u);
    }
    /* In the middle of a head or a body nothing is told to anybody, and nothing leaks. */
    for (int i = 0; i < 20; i++) {
        int fd = dial(f, 0);
        put_text(fd, i % 2 ? "GET /ho" : "POST / HTTP/1.1\r\n" HOST "Content-Length: 99\r\n\r\nab");
        close(fd);
    }
    usleep(20000);
    assert_int_equal(f->n_handled, 20);
}

static void test_a_reader_that_does_not_read_is_dropped(void **state)
{
    struct fixture *f = *state;
    int fd = dial(f, 4096);
    put_text(fd, "GET /flood HTTP/1.1\r\n" HOST "\r\n");
    assert_true(wait_for(&f->n_gone, 1, 5000));
    close(fd);
}

static void test_slow_clients(void **state)
{
    struct fixture *f = *state;
    char answer[4096];
    int fd = dial(f, 0);
    put_text(fd, "GET / HT");
    for (int i = 0; i < 30; i++) { /* a byte now and then does not buy time */
        usleep(10000);
        put_text(fd, "T");
    }
    get(fd, answer, sizeof(answer), NULL, 0, 1000);
    assert_int_equal(status_of(answer), 400); /* HTTT...: refused as soon as it is wrong */
    close(fd);
    fd = dial(f, 0);
    put_text(fd, "GET / HTTP/1.1\r\nX: ");
    uint64_t begin_ns = clock_now_ns();
    for (int i = 0; i < 40 && get(fd, answer, sizeof(answer), "408", 1, 10) == 0; i++)
        put_text(fd, "y");
    get(fd, answer + strlen(answer), sizeof(answer) - strlen(answer), NULL, 0, 1000);
    assert_int_equal(status_of(answer), 408);
    assert_true(clock_now_ns() - begin_ns < 2000u * 1000000u);
    close(fd);
    fd = dial(f, 0);
    put_text(fd, "POST / HTTP/1.1\r\n" HOST "Content-Length: 10\r\n\r\nabc");
    get(fd, answer, sizeof(answer), NULL, 0, 1500);
    assert_int_equal(status_of(answer), 408);
    close(fd);
    fd = dial(f, 0); /* says nothing: closed without a word */
    begin_ns = clock_now_ns();
    assert_int_equal(get(fd, answer, sizeof(answer), NULL, 0, 2000), 0);
    assert_true(clock_now_ns() - begin_ns < 1500u * 1000000u);
    close(fd);
    assert_int_equal(f->n_handled, 0);
}

static void test_stalled_readers_are_dropped_and_slow_ones_are_not(void **state)
{
    struct fixture *f = *state;
    static char piece[65536];
    int fd = dial(f, 4096);
    put_text(fd, "GET /fill HTTP/1.1\r\n" HOST "\r\n");
    assert_true(wait_for(&f->n_gone, 1, 3000));
    assert_int_equal(f->n_drained, 0);
    close(fd);
    fd = dial(f, 4096);
    put_text(fd, "GET /fill HTTP/1.1\r\n" HOST "\r\n");
    usleep(150000);
    for (int i = 0; i < 2000 && f->n_drained == 0; i++)
        get(fd, piece, sizeof(piece), "never", 1, 1);
    assert_int_equal(f->n_drained, 1);
    assert_int_equal(f->n_gone, 1);
    close(fd);
    assert_true(wait_for(&f->n_gone, 2, 1000));
}

static void test_too_many_connections(void **state)
{
    struct fixture *f = *state;
    char answer[4096];
    int fds[4];
    for (int i = 0; i < 4; i++)
        fds[i] = dial(f, 0);
    usleep(20000);
    int status = ask(f, "GET / HTTP/1.1\r\n" HOST "\r\n", 35, answer, sizeof(answer));
    assert_true(status == 503 || status == 0);
    for (int i = 0; i < 4; i++)
        close(fds[i]);
    usleep(20000);
    assert_int_equal(ask(f, "GET / HTTP/1.1\r\n" HOST "\r\n", 35, answer, sizeof(answer)), 200);
}

static void test_closing_ends_open_responses(void **state)
{
    struct fixture *f = *state;
    int fds[8];
    for (int i = 0; i < 8; i++) {
        fds[i] = dial(f, i == 7 ? 4096 : 0);
        put_text(fds[i], i == 7   ? "GET /fill HTTP/1.1\r\n" HOST "\r\n"
                         : i == 6 ? "GET /ha"
                                  : "GET /hold HTTP/1.1\r\n" HOST "\r\n");
    }
    assert_true(wait_for(&f->n_handled, 7, 1000));
    tear_down(state);
    assert_int_equal(f->n_gone, 7);
    for (int i = 0; i < 8; i++)
        close(fds[i]);
}

static void test_addresses(void **state)
{
    uv_loop_t loop;
    struct error err;
    struct http_server *a, *b;
    struct http_server_options o = {.host = "localhost",
                                    .hooks = {.handle = handle, .error_body = error_body}};
    (void)state;
    assert_int_equal(uv_loop_init(&loop), 0);
    assert_int_equal(http_server_open(&loop, &o, &a, &err), E_INVALID);
    assert_non_null(strstr(err.message, "'localhost'"));
    o.host = "127.0.0.1";
    assert_int_equal(http_server_open(&loop, &o, &a, &err), 0);
    o.port = http_server_port(a);
    assert_int_equal(http_server_open(&loop, &o, &b, &err), UV_EADDRINUSE);
    assert_non_null(strstr(err.message, "127.0.0.1 port"));
    http_server_close(a, on_closed, &fixture);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(void)
{
    signal(SIGPIPE, SIG_IGN);
#define WITH_SERVER(test) cmocka_unit_test_setup_teardown(test, set_up, tear_down)
#define IMPATIENT(test)   cmocka_unit_test_setup_teardown(test, set_up_impatient, tear_down)
    const struct CMUnitTest tests[] = {
        WITH_SERVER(test_requests_that_are_fine),
        WITH_SERVER(test_hostile_requests_are_refused),
        WITH_SERVER(test_too_much_of_everything),
        WITH_SERVER(test_split_at_every_byte),
        WITH_SERVER(test_pipelined_requests_are_answered_in_order),
        WITH_SERVER(test_what_follows_a_held_request_waits),
        WITH_SERVER(test_keep_alive_and_close),
        WITH_SERVER(test_head_options_continue_and_ids),
        WITH_SERVER(test_a_large_answer_arrives_whole),
        WITH_SERVER(test_clients_that_leave_are_noticed),
        WITH_SERVER(test_a_reader_that_does_not_read_is_dropped),
        IMPATIENT(test_slow_clients),
        IMPATIENT(test_stalled_readers_are_dropped_and_slow_ones_are_not),
        IMPATIENT(test_too_many_connections),
        cmocka_unit_test_setup(test_closing_ends_open_responses, set_up),
        cmocka_unit_test(test_addresses),
    };
    return cmocka_run_group_tests_name("http_server", tests, NULL, NULL);
}
