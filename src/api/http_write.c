/* The way out of a connection: try at once, queue what the socket does not take. */
#include "api/http_conn.h"
#include "base/limits.h"
#include "base/log.h"

static void write_pending(struct http_conn *c);

size_t conn_queue_bytes(const struct http_conn *c)
{
    return c->inflight.len + c->pending.len;
}

bool conn_write_progress(struct http_conn *c)
{
    size_t left = uv_stream_get_write_queue_size((uv_stream_t *)&c->tcp);
    bool progress = left != c->queue_seen;
    c->queue_seen = left;
    return progress;
}

static void drained(struct http_conn *c)
{
    struct http_response *r = &c->response;
    if (!r->is_open) {
        conn_next(c);
        return;
    }
    uv_timer_stop(&c->timer);
    if (r->is_above_mark) {
        r->is_above_mark = false;
        if (r->events.drained != NULL)
            r->events.drained(r->events_arg);
    }
}

static void on_written(uv_write_t *request, int status)
{
    struct http_conn *c = request->data;
    c->is_writing = false;
    buf_done(&c->inflight);
    if (c->phase == CONN_CLOSING)
        return;
    if (status < 0) {
        conn_close(c);
        return;
    }
    if (c->pending.len > 0)
        write_pending(c);
    else
        drained(c);
}

static void write_pending(struct http_conn *c)
{
    struct buf swap = c->inflight;
    c->inflight = c->pending;
    c->pending = swap;
    buf_reset(&c->pending);
    uv_buf_t part = uv_buf_init(c->inflight.data, (unsigned)c->inflight.len);
    c->write.data = c;
    c->is_writing = true;
    if (uv_write(&c->write, (uv_stream_t *)&c->tcp, &part, 1, on_written) != 0) {
        c->is_writing = false;
        conn_close(c);
        return;
    }
    c->queue_seen = c->inflight.len;
    uv_timer_stop(&c->timer);
    conn_enter(c, CONN_BUSY);
}

void conn_write(struct http_conn *c, const uv_buf_t *parts, unsigned n_parts, bool is_bounded)
{
    if (c->phase == CONN_CLOSING)
        return;
    size_t sent = 0;
    if (!c->is_writing) {
        int rc = uv_try_write((uv_stream_t *)&c->tcp, parts, n_parts);
        if (rc < 0 && rc != UV_EAGAIN) {
            conn_close(c);
            return;
        }
        sent = rc > 0 ? (size_t)rc : 0;
    }
    c->pending.max_len = SIZE_MAX / 4;
    if (is_bounded)
        c->pending.max_len = LIMIT_HTTP_WRITE_QUEUE_BYTES > c->inflight.len
                                 ? LIMIT_HTTP_WRITE_QUEUE_BYTES - c->inflight.len
                                 : 0;
    if (c->pending.max_len < c->pending.len)
        c->pending.max_len = c->pending.len;
    for (unsigned i = 0; i < n_parts; i++) {
        size_t skip = sent < parts[i].len ? sent : parts[i].len;
        sent -= skip;
        if (skip < parts[i].len)
            buf_append(&c->pending, parts[i].base + skip, parts[i].len - skip);
    }
    if (c->pending.error != 0) {
        log_info("api", "request=%s client %zu bytes behind (limit %u) -> dropped", c->response.id,
                 conn_queue_bytes(c), LIMIT_HTTP_WRITE_QUEUE_BYTES);
        conn_close(c);
        return;
    }
    if (!c->is_writing && c->pending.len > 0)
        write_pending(c);
}
