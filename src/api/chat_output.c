#include "api/chat_output.h"

#include "base/clock.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>

enum { KEEPALIVE_MS = 10000 }; /* proxies and clients give up after 30 to 60 s of silence */

int chat_output_prepare(struct chat_call *c, struct openai_error *ret_error)
{
    struct chat_request *r = &c->request;
    struct error err = {0};
    buf_append_str(&c->prefix, "data: {\"id\":\"");
    buf_append_str(&c->prefix, c->id);
    buf_printf(&c->prefix, "\",\"object\":\"chat.completion.chunk\",\"created\":%llu,\"model\":",
               (unsigned long long)c->created_s);
    json_append_string(&c->prefix, c->model->id, strlen(c->model->id));
    buf_append_str(&c->prefix, ",\"choices\":[");
    c->choices = calloc(r->n_choices, sizeof(*c->choices));
    if (c->choices == NULL || c->prefix.error != 0)
        return openai_error_set(ret_error, 503, NULL, NULL, "out of memory");
    for (uint32_t i = 0; i < r->n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        choice->call = c;
        choice->index = i;
        detokenizer_init(&choice->detokenizer, c->model->tokenizer, false, false);
        buf_init(&choice->text, r->stream ? LIMIT_HTTP_WRITE_QUEUE_BYTES : LIMIT_PROMPT_BYTES);
        if (stop_matcher_new(r->stop, r->stop_len, r->n_stop, &choice->stop, &err) != 0) {
            openai_error_from(ret_error, &err);
            return -1;
        }
    }
    return 0;
}

int chat_choice_push(struct chat_choice *choice, const int32_t *ids, uint32_t n)
{
    struct buf piece;
    bool is_stopped = false;
    int rc = 0;
    buf_init(&piece, LIMIT_HTTP_WRITE_QUEUE_BYTES);
    for (uint32_t i = 0; rc == 0 && !is_stopped && i < n; i++) {
        choice->n_generated++;
        buf_reset(&piece);
        rc = detokenizer_push(&choice->detokenizer, ids[i], &piece);
        if (rc == 0 && piece.len > 0)
            rc = stop_matcher_push(choice->stop, buf_str(&piece), piece.len, &choice->text,
                                   &is_stopped, NULL);
    }
    buf_done(&piece);
    if (is_stopped)
        choice->finish = "stop";
    return rc;
}

void chat_choice_finish(struct chat_choice *choice, const struct api_done *done)
{
    if (choice->finish != NULL) /* a stop string ended it; tokens after that one do not count */
        return;
    struct buf rest;
    bool is_stopped = false;
    buf_init(&rest, 64);
    detokenizer_finish(&choice->detokenizer, &rest);
    stop_matcher_push(choice->stop, buf_str(&rest), rest.len, &choice->text, &is_stopped, NULL);
    if (!is_stopped)
        stop_matcher_finish(choice->stop, &choice->text);
    buf_done(&rest);
    choice->n_generated = done->n_generated;
    choice->finish = done->reason == API_FINISH_LENGTH && !is_stopped ? "length" : "stop";
}

static void append_usage(struct buf *b, const struct chat_call *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->request.n_choices; i++)
        n += c->choices[i].n_generated;
    buf_printf(b,
               "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%u},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":0}}",
               c->n_prompt, n, c->n_prompt + n, c->n_cached);
}

/* Flushes the piece that was written and remembers whether the client is behind. */
static void flush(struct chat_call *c)
{
    c->last_write_ns = clock_now_ns();
    if (http_stream_flush(c->response) == E_AGAIN)
        c->is_held_back = true;
}

static void append_chunk_end(struct buf *b, const struct chat_call *c)
{
    buf_append_str(b, c->request.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
}

static void append_delta(struct buf *b, const struct chat_choice *choice, const char *finish)
{
    const struct chat_call *c = choice->call;
    char index[24];
    int n = 0;
    for (uint32_t v = choice->index, p = v >= 10 ? 10 : 1; p > 0; p /= 10)
        index[n++] = (char)('0' + v / p % 10); /* n is at most 16: two digits */
    buf_append(b, c->prefix.data, c->prefix.len);
    buf_append_str(b, "{\"index\":");
    buf_append(b, index, (size_t)n);
    if (finish == NULL) {
        buf_append_str(b, ",\"delta\":{\"content\":");
        json_append_string(b, buf_str(&choice->text), choice->text.len);
        buf_append_str(b, "},\"logprobs\":null,\"finish_reason\":null");
    } else {
        buf_append_str(b, ",\"delta\":{},\"logprobs\":null,\"finish_reason\":\"");
        buf_append_str(b, finish);
        buf_append_char(b, '"');
    }
    append_chunk_end(b, c);
}

static void begin_stream(struct chat_call *c)
{
    if (c->is_streaming)
        return;
    c->is_streaming = true;
    http_response_header(c->response, "cache-control", "no-cache");
    http_response_header(c->response, "x-accel-buffering", "no");
    http_stream_begin(c->response, 200, "text/event-stream; charset=utf-8");
    struct buf *b = http_stream_buf(c->response);
    for (uint32_t i = 0; i < c->request.n_choices; i++) {
        buf_append(b, c->prefix.data, c->prefix.len);
        buf_printf(b,
                   "{\"index\":%u,\"delta\":{\"role\":\"assistant\",\"content\":\"\","
                   "\"refusal\":null},\"logprobs\":null,\"finish_reason\":null",
                   i);
        append_chunk_end(b, c);
    }
    flush(c);
}

static void end_stream(struct chat_call *c)
{
    struct buf *b = http_stream_buf(c->response);
    if (c->request.include_usage) {
        buf_append(b, c->prefix.data, c->prefix.len);
        buf_append_str(b, "],");
        append_usage(b, c);
        buf_append_str(b, "}\n\n");
    }
    buf_append_str(b, "data: [DONE]\n\n");
    flush(c);
    struct http_response *r = c->response;
    c->response = NULL;
    http_stream_end(r, false);
}

static void pump_stream(struct chat_call *c)
{
    begin_stream(c);
    if (c->is_held_back)
        return;
    struct buf *b = http_stream_buf(c->response);
    bool is_all = c->n_running == 0;
    for (uint32_t i = 0; i < c->request.n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        if (choice->text.len > 0)
            append_delta(b, choice, NULL);
        buf_reset(&choice->text);
        if (choice->finish != NULL && !choice->is_finish_sent) {
            append_delta(b, choice, choice->finish);
            choice->is_finish_sent = true;
        }
        is_all = is_all && choice->is_finish_sent;
    }
    if (b->len > 0)
        flush(c);
    if (is_all)
        end_stream(c);
}

static void respond_whole(struct chat_call *c)
{
    struct buf b;
    struct openai_error e;
    buf_init(&b, SIZE_MAX / 4);
    buf_printf(&b,
               "{\"id\":\"%s\",\"object\":\"chat.completion\",\"created\":%llu,\"model\":", c->id,
               (unsigned long long)c->created_s);
    json_append_string(&b, c->model->id, strlen(c->model->id));
    buf_append_str(&b, ",\"choices\":[");
    for (uint32_t i = 0; i < c->request.n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        buf_printf(&b, "%s{\"index\":%u,\"message\":{\"role\":\"assistant\",\"content\":",
                   i > 0 ? "," : "", i);
        json_append_string(&b, buf_str(&choice->text), choice->text.len);
        buf_printf(&b, ",\"refusal\":null},\"logprobs\":null,\"finish_reason\":\"%s\"}",
                   choice->finish);
    }
    buf_append_str(&b, "],");
    append_usage(&b, c);
    buf_append_char(&b, '}');
    struct http_response *r = c->response;
    c->response = NULL;
    if (b.error == 0) {
        http_respond(r, 200, "application/json", buf_str(&b), b.len);
    } else {
        openai_error_set(&e, 503, NULL, NULL, "out of memory");
        openai_error_respond(r, &e);
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

void chat_output_progress(struct chat_call *c, uint32_t n_done, uint32_t n_prompt)
{
    if (!c->request.stream)
        return;
    begin_stream(c);
    if (c->is_held_back)
        return;
    buf_printf(http_stream_buf(c->response), ": prefill %u/%u\n\n", n_done, n_prompt);
    flush(c);
}

void chat_output_keepalive(struct chat_call *c)
{
    uint64_t silent_ms = (clock_now_ns() - c->last_write_ns) / 1000000u;
    if (!c->request.stream || silent_ms < KEEPALIVE_MS)
        return;
    begin_stream(c);
    if (c->is_held_back)
        return;
    buf_append_str(http_stream_buf(c->response), ": keepalive\n\n");
    flush(c);
}

void chat_output_fail(struct chat_call *c, const struct openai_error *e)
{
    struct http_response *r = c->response;
    c->response = NULL;
    if (!c->is_streaming) {
        openai_error_respond(r, e);
        return;
    }
    struct buf *b = http_stream_buf(r);
    buf_append_str(b, "data: ");
    openai_error_append(b, e);
    buf_append_str(b, "\n\n");
    http_stream_flush(r);
    http_stream_end(r, true);
}
