/* The way out of a call: when to write what. Text waits in its choice while the client is behind,
 * and then goes out in one piece. */
#include "api/chat_call.h"
#include "base/clock.h"

enum { KEEPALIVE_MS = 10000 }; /* proxies and clients give up after 30 to 60 s of silence */

/* Sends the piece that was written and remembers whether the client is behind. */
static void flush(struct chat_call *c)
{
    c->last_write_ns = clock_now_ns();
    if (http_stream_flush(c->response) == E_AGAIN)
        c->is_held_back = true;
}

static void begin_stream(struct chat_call *c)
{
    if (c->is_streaming)
        return;
    c->is_streaming = true;
    http_response_header(c->response, "cache-control", "no-cache");
    http_response_header(c->response, "x-accel-buffering", "no");
    http_stream_begin(c->response, 200, c->dialect->stream_type);
    if (c->dialect->open == NULL)
        return;
    c->dialect->open(c, http_stream_buf(c->response));
    flush(c);
}

static void write_pieces(struct chat_choice *choice, struct buf *out)
{
    size_t begin = 0;
    for (size_t i = 0; i < choice->n_pieces; begin = choice->pieces[i++].end) {
        const struct chat_piece *p = &choice->pieces[i];
        const struct output_piece piece = {.kind = p->kind,
                                           .index = p->tool,
                                           .complete = p->complete,
                                           .text = buf_str(&choice->text) + begin,
                                           .len = p->end - begin};
        choice->call->dialect->piece(choice, &piece, out);
    }
    choice->n_pieces = 0;
    buf_reset(&choice->text);
}

static void pump_stream(struct chat_call *c)
{
    begin_stream(c);
    if (c->is_held_back)
        return;
    struct buf *b = http_stream_buf(c->response);
    bool is_all = c->n_running == 0;
    for (uint32_t i = 0; i < c->n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        write_pieces(choice, b);
        if (choice->finish != CHAT_FINISH_NONE && !choice->is_finish_sent) {
            c->dialect->finish(choice, b);
            choice->is_finish_sent = true;
        }
        is_all = is_all && choice->is_finish_sent;
    }
    if (!is_all) {
        if (b->len > 0)
            flush(c);
        return;
    }
    c->dialect->close(c, b);
    flush(c);
    chat_call_note(c);
    struct http_response *r = c->response;
    c->response = NULL;
    http_stream_end(r, false);
}

static void respond_whole(struct chat_call *c)
{
    struct buf b;
    struct api_error e;
    buf_init(&b, SIZE_MAX / 4);
    c->dialect->whole(c, &b);
    chat_call_note(c);
    struct http_response *r = c->response;
    if (b.error == 0) {
        c->response = NULL;
        http_respond(r, 200, "application/json", buf_str(&b), b.len);
    } else {
        api_error_set(&e, 503, NULL, NULL, "out of memory");
        chat_output_fail(c, &e);
    }
    buf_done(&b);
}

void chat_output_pump(struct chat_call *c)
{
    if (c->response == NULL)
        return;
    if (c->request.stream)
        pump_stream(c);
    else if (c->n_running == 0)
        respond_whole(c);
}

static void write_keepalive(struct chat_call *c, uint32_t n_done, uint32_t n_prompt)
{
    begin_stream(c);
    if (c->is_held_back)
        return;
    struct buf *b = http_stream_buf(c->response);
    c->dialect->keepalive(c, n_done, n_prompt, b);
    if (b->len > 0)
        flush(c);
}

void chat_output_progress(struct chat_call *c, uint32_t n_done, uint32_t n_prompt)
{
    if (c->request.stream)
        write_keepalive(c, n_done, n_prompt);
}

void chat_output_keepalive(struct chat_call *c)
{
    uint64_t silent_ms = (clock_now_ns() - c->last_write_ns) / 1000000u;
    if (c->request.stream && silent_ms >= KEEPALIVE_MS)
        write_keepalive(c, 0, 0);
}

void chat_output_fail(struct chat_call *c, const struct api_error *e)
{
    struct http_response *r = c->response;
    chat_call_note(c);
    if (c->is_streaming) {
        c->dialect->error(c, e, http_stream_buf(r));
        c->response = NULL;
        http_stream_flush(r);
        http_stream_end(r, true);
        return;
    }
    struct buf body;
    buf_init(&body, 8192);
    c->dialect->error(c, e, &body);
    c->response = NULL;
    api_error_send(r, e, &body);
    buf_done(&body);
}
