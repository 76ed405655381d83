/*
 * POST /v1/chat/completions: one call from the body to the last byte.
 *
 * body -> parse -> model -> prompt (thread pool) -> submit n generations -> tokens -> text ->
 * client.
 *
 * A call lives until nothing refers to it: no work in the thread pool, no running generation (each
 * ends with exactly one `done`), no open response. `call_release` is the one place that looks.
 * Status 200 goes out with the first event of a generation, so that what fails before it has a
 * status of its own; after it, errors are events in the stream.
 */
#include "api/chat_output.h"
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PARSE_ON_LOOP_BYTES_MAX = 32768 }; /* about 0.3 ms; larger bodies go to the thread pool */

static void call_release(struct chat_call *c)
{
    struct api *a = c->api;
    if (c->response != NULL || c->is_working || c->n_running > 0)
        return;
    for (uint32_t i = 0; c->choices != NULL && i < c->request.n_choices; i++) {
        stop_matcher_free(c->choices[i].stop);
        buf_done(&c->choices[i].text);
    }
    free(c->choices);
    if (c->model != NULL && a->backend->model_unref != NULL)
        a->backend->model_unref(a->backend->self, c->model);
    control_set_unref(c->controls);
    chat_request_done(&c->request);
    token_list_done(&c->tokens);
    buf_done(&c->body);
    buf_done(&c->prefix);
    if (c->prev != NULL)
        c->prev->next = c->next;
    else
        a->calls = c->next;
    if (c->next != NULL)
        c->next->prev = c->prev;
    free(c);
    api_check_closed(a);
}

static void cancel_all(struct chat_call *c)
{
    const struct api_backend *b = c->api->backend;
    if (c->is_working)
        uv_cancel((uv_req_t *)&c->work); /* fails when it has begun; then its result is ignored */
    for (uint32_t i = 0; c->choices != NULL && i < c->request.n_choices; i++)
        if (c->choices[i].is_running)
            b->cancel(b->self, c->choices[i].id);
}

/* Ends the call with an error, before or within the stream. */
static void call_fail(struct chat_call *c, const struct openai_error *e)
{
    cancel_all(c);
    if (c->response != NULL) {
        log_write(e->status >= 500 ? LOG_LEVEL_INFO : LOG_LEVEL_DEBUG, "api",
                  "request=%s failed: %d %s", http_response_id(c->response), e->status, e->message);
        chat_output_fail(c, e);
    }
}

static void on_gone(void *arg)
{
    struct chat_call *c = arg;
    log_debug("api", "request=%s client left -> cancelled", c->id);
    c->response = NULL;
    cancel_all(c);
    call_release(c);
}

static void on_drained(void *arg)
{
    struct chat_call *c = arg;
    c->is_held_back = false;
    chat_output_pump(c);
    call_release(c);
}

static void on_tokens(void *arg, const int32_t *ids, uint32_t n)
{
    struct chat_choice *choice = arg;
    struct chat_call *c = choice->call;
    struct openai_error e;
    if (c->response == NULL || choice->finish != NULL)
        return;
    int rc = chat_choice_push(choice, ids, n);
    if (rc != 0) {
        openai_error_set(&e, 500, NULL, NULL, "the answer cannot be kept: %s", error_text(rc));
        call_fail(c, &e);
        return;
    }
    if (choice->finish != NULL) /* a stop string: the rest is not wanted */
        c->api->backend->cancel(c->api->backend->self, choice->id);
    chat_output_pump(c);
}

static void on_progress(void *arg, uint32_t n_done, uint32_t n_prompt)
{
    struct chat_choice *choice = arg;
    if (choice->call->response != NULL && choice->index == 0)
        chat_output_progress(choice->call, n_done, n_prompt);
}

static void on_done(void *arg, const struct api_done *done)
{
    struct chat_choice *choice = arg;
    struct chat_call *c = choice->call;
    struct openai_error e = {0};
    choice->is_running = false;
    c->n_running--;
    c->n_cached = done->n_cached > c->n_cached ? done->n_cached : c->n_cached;
    if (choice->finish == NULL && done->reason == API_FINISH_CANCELLED)
        openai_error_set(&e, 503, NULL, NULL, "the server gave this request up; try again");
    else if (choice->finish == NULL && done->reason == API_FINISH_ERROR)
        openai_error_from(&e, &done->error);
    if (c->response != NULL && e.status != 0) {
        call_fail(c, &e);
    } else if (c->response != NULL) {
        chat_choice_finish(choice, done);
        chat_output_pump(c);
    }
    call_release(c);
}

static void submit(struct chat_call *c)
{
    static const struct api_generation_events events = {on_tokens, on_progress, on_done};
    const struct api_backend *b = c->api->backend;
    struct chat_request *r = &c->request;
    struct openai_error e;
    struct error err = {0};
    uint32_t n_left = c->model->n_ctx - (uint32_t)c->tokens.n;
    struct api_generation g = {
        .model = c->model,
        .tokens = c->tokens.ids,
        .n_tokens = (uint32_t)c->tokens.n,
        .n_max = r->n_tokens_max > 0 && r->n_tokens_max < n_left ? r->n_tokens_max : n_left,
        .sampling = r->sampling,
    };
    g.sampling.n_prompt = c->n_prompt = g.n_tokens;
    for (uint32_t i = 0; i < r->n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        g.sampling.seed = r->sampling.seed + i;
        int rc = b->submit(b->self, &g, &events, choice, &choice->id, &err);
        if (rc != 0) {
            err.code = rc;
            openai_error_from(&e, &err);
            call_fail(c, &e);
            return;
        }
        choice->is_running = true;
        c->n_running++;
    }
    api_start_tick(c->api);
}

static void check_prompt(struct chat_call *c)
{
    struct openai_error e;
    struct error err = {0};
    struct chat_request *r = &c->request;
    size_t n_ctx = c->model->n_ctx;
    int rc = c->work_result;
    if (rc != 0) {
        openai_error_from(&e, &c->work_error);
        if (rc == E_LIMIT)
            openai_error_set(&e, 400, "context_length_exceeded", "messages", "%s",
                             c->work_error.message);
        else if (e.status == 400)
            snprintf(e.param, sizeof(e.param), "messages");
        call_fail(c, &e);
    } else if (c->tokens.n >= n_ctx) {
        openai_error_set(&e, 400, "context_length_exceeded", "messages",
                         "This model's maximum context length is %zu tokens. However, your "
                         "messages resulted in %zu tokens, and at least one more is needed for the "
                         "answer. Please reduce the length of the messages.",
                         n_ctx, c->tokens.n);
        call_fail(c, &e);
    } else if (sampling_check(&r->sampling, tokenizer_n_vocab(c->model->tokenizer), &err) != 0) {
        openai_error_from(&e, &err);
        call_fail(c, &e);
    } else {
        submit(c);
    }
}

static void build_prompt(uv_work_t *work)
{
    struct chat_call *c = work->data;
    const struct prompt_model m = {
        .tokenizer = c->model->tokenizer,
        .chat_template = c->model->chat_template,
        .controls = c->controls,
        .bos_text = c->model->bos_text,
        .eos_text = c->model->eos_text,
    };
    c->work_result = prompt_build(&m, &c->request, c->created_s, &c->tokens, &c->work_error);
    json_decref(c->request.messages); /* large ones take long to free: here, not on the loop */
    c->request.messages = NULL;
    json_object_del(c->request.body, "messages");
}

static void on_prompt(uv_work_t *work, int status)
{
    struct chat_call *c = work->data;
    (void)status; /* cancelled only when the response is gone */
    c->is_working = false;
    if (c->response != NULL)
        check_prompt(c);
    call_release(c);
}

static void queue(struct chat_call *c, uv_work_cb run, uv_after_work_cb done)
{
    struct openai_error e;
    c->work.data = c;
    c->is_working = true;
    int rc = uv_queue_work(c->api->loop, &c->work, run, done);
    if (rc == 0)
        return;
    c->is_working = false;
    openai_error_set(&e, 503, NULL, NULL, "no thread for this request: %s", uv_strerror(rc));
    call_fail(c, &e);
}

static struct control_set *controls_of(struct api *a, const struct api_model *m, struct error *err)
{
    uint32_t n_vocab = tokenizer_n_vocab(m->tokenizer);
    for (size_t i = 0; i < LIMIT_INSTANCES; i++) {
        struct known_controls *k = &a->controls[i];
        if (k->set != NULL && k->tokenizer == m->tokenizer && k->n_vocab == n_vocab &&
            k->created_s == m->created_s && strcmp(k->model_id, m->id) == 0)
            return control_set_ref(k->set);
    }
    struct control_set *set;
    if (control_set_new(m->tokenizer, &set, err) != 0)
        return NULL;
    char *id = strdup(m->id);
    if (id == NULL) /* it works without remembering */
        return set;
    struct known_controls *k = &a->controls[a->controls_next++ % LIMIT_INSTANCES];
    control_set_unref(k->set);
    free(k->model_id);
    *k = (struct known_controls){id, m->created_s, m->tokenizer, n_vocab, set};
    return control_set_ref(set);
}

static int find_model(struct chat_call *c, struct openai_error *e)
{
    const struct api_backend *b = c->api->backend;
    const char *name = c->request.model;
    const struct api_model *m = b->model_find(b->self, name);
    struct error err = {0};
    if (m == NULL)
        return openai_error_set(e, 404, "model_not_found", "model",
                                "The model '%.256s' does not exist.", name);
    if (!m->is_ready)
        return openai_error_set(e, 503, "model_not_ready", "model",
                                "The model '%.256s' is not ready to answer; try again soon.", name);
    if (m->chat_template == NULL)
        return openai_error_set(e, 400, "model_not_supported", "model",
                                "The model '%.256s' has no chat template, so it cannot chat.",
                                name);
    c->controls = controls_of(c->api, m, &err);
    if (c->controls == NULL) {
        openai_error_from(e, &err);
        return -1;
    }
    c->model = m;
    if (b->model_ref != NULL)
        b->model_ref(b->self, m);
    return chat_output_prepare(c, e);
}

static void on_request(struct chat_call *c)
{
    struct openai_error e;
    struct chat_request *r = &c->request;
    if (c->parse_error.status != 0) {
        call_fail(c, &c->parse_error);
        return;
    }
    if (!r->has_seed && rng_system(&r->sampling.seed, sizeof(r->sampling.seed)) != 0)
        r->sampling.seed = clock_now_ns();
    if (find_model(c, &e) != 0)
        call_fail(c, &e);
    else
        queue(c, build_prompt, on_prompt);
}

static void parse_body(uv_work_t *work)
{
    struct chat_call *c = work->data;
    chat_request_parse(buf_str(&c->body), c->body.len, &c->request, &c->parse_error);
    buf_done(&c->body);
}

static void on_parsed(uv_work_t *work, int status)
{
    struct chat_call *c = work->data;
    (void)status;
    c->is_working = false;
    if (c->response != NULL)
        on_request(c);
    call_release(c);
}

void openai_chat_handle(struct api *a, const struct http_request *q, struct http_response *r)
{
    static const struct http_response_events events = {.drained = on_drained, .gone = on_gone};
    struct chat_call *c = calloc(1, sizeof(*c));
    struct openai_error e;
    uint64_t random[2] = {clock_now_ns(), 0};
    (void)q;
    if (c == NULL) {
        openai_error_set(&e, 503, NULL, NULL, "out of memory");
        openai_error_respond(r, &e);
        return;
    }
    c->api = a;
    c->response = r;
    c->created_s = clock_wall_ns() / 1000000000u;
    c->last_write_ns = clock_now_ns();
    (void)rng_system(random, sizeof(random)); /* an id need not be secret */
    snprintf(c->id, sizeof(c->id), "chatcmpl-%016llx%08llx", (unsigned long long)random[0],
             (unsigned long long)(random[1] & 0xffffffffu));
    token_list_init(&c->tokens);
    buf_init(&c->prefix, 8u * LIMIT_HTTP_URL_BYTES);
    c->next = a->calls;
    if (c->next != NULL)
        c->next->prev = c;
    a->calls = c;
    http_response_watch(r, &events, c);
    http_response_take_body(r, &c->body);
    if (c->body.len > PARSE_ON_LOOP_BYTES_MAX) {
        queue(c, parse_body, on_parsed);
    } else {
        parse_body(&(uv_work_t){.data = c});
        on_request(c);
    }
    call_release(c);
}

void openai_chat_tick(struct api *a)
{
    for (struct chat_call *c = a->calls; c != NULL; c = c->next)
        if (c->response != NULL && c->n_running > 0)
            chat_output_keepalive(c);
}

void openai_chat_stop_all(struct api *a)
{
    struct openai_error e;
    openai_error_set(&e, 503, NULL, NULL, "the server is shutting down");
    for (struct chat_call *c = a->calls, *next; c != NULL; c = next) {
        next = c->next;
        if (c->response != NULL)
            call_fail(c, &e);
        call_release(c);
    }
}
