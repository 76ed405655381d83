/*
 * The life of a call: it lives until nothing refers to it: no work in the thread pool, no running
 * generation (each ends with exactly one `done`), no open response. `call_release` is the one place
 * that looks. Status 200 goes out with the first event of a generation, so that what fails before
 * it has a status of its own; after it, errors are events in the stream.
 */
#include "api/chat_call.h"

#include "api/model_text.h"
#include "api/prompt.h"
#include "api/request_fields.h"
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
    if (c->key != NULL && c->begin_ns != 0)
        api_key_charge_tokens(c->key, (uint64_t)c->n_prompt + chat_call_n_generated(c),
                              clock_now_ns());
    chat_choices_free(c);
    if (c->state != NULL && c->dialect->state_done != NULL)
        c->dialect->state_done(c->state);
    free(c->state);
    if (c->model != NULL && a->backend->model_unref != NULL)
        a->backend->model_unref(a->backend->self, c->model);
    model_text_unref(c->text);
    chat_request_done(&c->request);
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

void chat_call_note(const struct chat_call *c)
{
    if (c->model == NULL)
        return;
    http_response_note(c->response, "%s%s%smodel=%.128s tokens_in=%u tokens_out=%u",
                       c->key != NULL ? "key=" : "", c->key != NULL ? c->key->name : "",
                       c->key != NULL ? " " : "", c->model->id, c->n_prompt,
                       chat_call_n_generated(c));
}

static void cancel_all(struct chat_call *c)
{
    const struct api_backend *b = c->api->backend;
    if (c->is_working)
        uv_cancel((uv_req_t *)&c->work); /* fails when it has begun; then its result is ignored */
    for (uint32_t i = 0; c->choices != NULL && i < c->n_choices; i++)
        if (c->choices[i].is_running)
            b->cancel(b->self, c->choices[i].id);
}

/* Ends the call with an error, before or within the stream. */
static void call_fail(struct chat_call *c, const struct api_error *e)
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
    chat_call_note(c);
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
    struct api_error e;
    if (c->response == NULL || choice->finish != CHAT_FINISH_NONE)
        return;
    int rc = chat_choice_push(choice, ids, n);
    if (rc != 0) {
        api_error_set(&e, 500, NULL, NULL, "the answer cannot be kept: %s", error_text(rc));
        call_fail(c, &e);
        return;
    }
    if (choice->finish != CHAT_FINISH_NONE) /* the rest is not wanted */
        c->api->backend->cancel(c->api->backend->self, choice->id);
    chat_output_pump(c);
}

static void on_logprobs(void *arg, const int32_t *ids, const struct logprobs *of, uint32_t n)
{
    struct chat_choice *choice = arg;
    struct chat_call *c = choice->call;
    struct api_error e;
    if (c->response == NULL || choice->finish != CHAT_FINISH_NONE)
        return;
    if (chat_choice_add_logprobs(choice, ids, of, n) != 0) {
        api_error_set(&e, 503, NULL, NULL, "out of memory");
        call_fail(c, &e);
    }
}

static void on_progress(void *arg, uint32_t n_done, uint32_t n_prompt)
{
    struct chat_choice *choice = arg;
    if (choice->call->response != NULL && choice->index == 0)
        chat_output_progress(choice->call, n_done, n_prompt);
}

static void note_done(struct chat_call *c, const struct api_done *done)
{
    c->n_cached = done->n_cached > c->n_cached ? done->n_cached : c->n_cached;
    c->queue_ns = done->queue_ns > c->queue_ns ? done->queue_ns : c->queue_ns;
    c->prefill_ns = done->prefill_ns > c->prefill_ns ? done->prefill_ns : c->prefill_ns;
    c->decode_ns = done->decode_ns > c->decode_ns ? done->decode_ns : c->decode_ns;
}

static void on_done(void *arg, const struct api_done *done)
{
    struct chat_choice *choice = arg;
    struct chat_call *c = choice->call;
    struct api_error e = {0};
    int rc = 0;
    choice->is_running = false;
    c->n_running--;
    note_done(c, done);
    if (choice->finish == CHAT_FINISH_NONE && done->reason == API_FINISH_CANCELLED)
        api_error_set(&e, 503, NULL, NULL, "the server gave this request up; try again");
    else if (choice->finish == CHAT_FINISH_NONE && done->reason == API_FINISH_ERROR)
        api_error_from(&e, &done->error);
    else if (c->response != NULL && (rc = chat_choice_end(choice, done)) != 0)
        api_error_set(&e, 500, NULL, NULL, "the answer cannot be kept: %s", error_text(rc));
    if (c->response != NULL && e.status != 0)
        call_fail(c, &e);
    else if (c->response != NULL)
        chat_output_pump(c);
    call_release(c);
}

static int submit_choice(struct chat_call *c, struct chat_choice *choice, struct error *err)
{
    static const struct api_generation_events events = {
        .tokens = on_tokens, .logprobs = on_logprobs, .progress = on_progress, .done = on_done};
    const struct api_backend *b = c->api->backend;
    const struct chat_request *r = &c->request;
    const struct token_list *prompt = &c->prompts[choice->prompt];
    uint32_t n_left = c->model->n_ctx - (uint32_t)prompt->n;
    struct api_grammar grammar = {
        .kind = r->grammar, .text = r->grammar_text, .len = r->grammar_len};
    struct api_generation g = {
        .model = c->model,
        .tokens = prompt->ids,
        .n_tokens = (uint32_t)prompt->n,
        .n_max = r->n_tokens_max > 0 && r->n_tokens_max < n_left ? r->n_tokens_max : n_left,
        .sampling = r->sampling,
        .grammar = r->has_grammar ? &grammar : NULL,
        .wants_logprobs = r->wants_logprobs,
        .n_top_logprobs = r->n_top_logprobs,
    };
    g.sampling.n_prompt = g.n_tokens;
    g.sampling.seed += choice->index;
    int rc = b->submit(b->self, &g, &events, choice, &choice->id, err);
    if (rc != 0)
        return rc;
    choice->is_running = true;
    c->n_running++;
    return 0;
}

/* The prompt as text before its answer. */
static int echo(struct chat_choice *choice)
{
    const struct token_list *prompt = &choice->call->prompts[choice->prompt];
    struct detokenizer d;
    struct buf text;
    int rc = 0;
    buf_init(&text, LIMIT_PROMPT_BYTES);
    detokenizer_init(&d, choice->call->model->tokenizer, false, true);
    for (size_t i = 0; rc == 0 && i < prompt->n; i++)
        rc = detokenizer_push(&d, prompt->ids[i], &text);
    if (rc == 0)
        rc = chat_choice_echo(choice, buf_str(&text), text.len);
    buf_done(&text);
    return rc;
}

static void submit(struct chat_call *c)
{
    struct api_error e;
    struct error err = {0};
    c->begin_ns = clock_now_ns();
    for (uint32_t i = 0; i < c->n_choices; i++) {
        int rc = c->request.is_echo ? echo(&c->choices[i]) : 0;
        if (rc != 0)
            error_set(&err, rc, "the prompt cannot be repeated: %s", error_text(rc));
        else
            rc = submit_choice(c, &c->choices[i], &err);
        if (rc != 0) {
            err.code = rc;
            api_error_from(&e, &err);
            call_fail(c, &e);
            return;
        }
    }
    api_start_tick(c->api);
}

/* Fills e when the prompts cannot be used. */
static int check_prompts(struct chat_call *c, struct api_error *e)
{
    struct error err = {0};
    struct chat_request *r = &c->request;
    const char *param = r->messages != NULL ? "messages" : "prompt";
    size_t n_ctx = c->model->n_ctx;
    if (c->work_result != 0) {
        api_error_from(e, &c->work_error);
        if (c->work_result == E_LIMIT)
            api_error_set(e, 400, "context_length_exceeded", param, "%s", c->work_error.message);
        else if (e->status == 400)
            snprintf(e->param, sizeof(e->param), "%s", param);
        return -1;
    }
    for (uint32_t i = 0; i < r->n_prompts; i++) {
        c->n_prompt += (uint32_t)c->prompts[i].n;
        if (c->prompts[i].n == 0)
            return api_error_set(e, 400, "invalid_value", param,
                                 "Invalid value for '%s': an empty prompt; at least one token is "
                                 "needed.",
                                 param);
        if (c->prompts[i].n >= n_ctx && !c->dialect->is_count)
            return api_error_set(
                e, 400, "context_length_exceeded", param,
                "This model's maximum context length is %zu tokens. However, your %s resulted in "
                "%zu tokens, and at least one more is needed for the answer. Please reduce the "
                "length of the %s.",
                n_ctx, param, c->prompts[i].n, param);
    }
    if (sampling_check(&r->sampling, tokenizer_n_vocab(c->model->tokenizer), &err) != 0) {
        api_error_from(e, &err);
        return -1;
    }
    return chat_choices_begin(c, e);
}

/* A call that must come is a matter of grammar. */
static int force_tools(struct chat_call *c, struct error *err)
{
    struct chat_request *r = &c->request;
    const struct output_grammar_options o = {
        .choice = r->tool_choice == CHAT_TOOLS_NAMED ? OUTPUT_CHOICE_NAMED : OUTPUT_CHOICE_REQUIRED,
        .name = r->tool_name,
        .allow_parallel = !r->is_one_tool,
        .begins_in_reasoning = c->begins_in_reasoning,
        .tokenizer = c->model->tokenizer,
    };
    struct buf text;
    buf_init(&text, LIMIT_GRAMMAR_BYTES);
    int rc = output_format_grammar(c->text->format, r->tools, &o, &text, err);
    if (rc != 0) {
        buf_done(&text);
        return rc;
    }
    free(r->grammar_text);
    r->has_grammar = true;
    r->grammar = GRAMMAR_LARK;
    r->grammar_text = text.data;
    r->grammar_len = text.len;
    return 0;
}

static int build_prompt(struct chat_call *c, const struct prompt_model *m, uint32_t index)
{
    struct chat_request *r = &c->request;
    struct token_list *out = &c->prompts[index];
    struct error *err = &c->work_error;
    int rc = 0;
    if (r->context != NULL)
        rc = prompt_encode(m, &(struct chat_prompt){.ids = r->context}, c->model->n_ctx, out, err);
    size_t n_before = out->n;
    if (rc == 0)
        rc = r->messages != NULL
                 ? prompt_build(m, r, c->created_s, out, &c->begins_in_reasoning, err)
                 : prompt_encode(m, &r->prompts[index], c->model->n_ctx, out, err);
    /* What goes before has begun the sequence already. */
    if (rc == 0 && n_before > 0 && out->n > n_before && tokenizer_adds_bos(m->tokenizer) &&
        out->ids[n_before] == tokenizer_bos(m->tokenizer)) {
        memmove(out->ids + n_before, out->ids + n_before + 1,
                (out->n - n_before - 1) * sizeof(*out->ids));
        out->n--;
    }
    return rc;
}

static void build_prompts(uv_work_t *work)
{
    struct chat_call *c = work->data;
    struct prompt_model m = {
        .tokenizer = c->model->tokenizer,
        .chat_template = c->model->chat_template,
        .controls = c->text->controls,
        .format = c->text->format,
        .bos_text = c->model->bos_text,
        .eos_text = c->model->eos_text,
    };
    struct chat_request *r = &c->request;
    for (uint32_t i = 0; c->work_result == 0 && i < r->n_prompts; i++)
        c->work_result = build_prompt(c, &m, i);
    if (c->work_result == 0 && r->tools != NULL &&
        (r->tool_choice == CHAT_TOOLS_REQUIRED || r->tool_choice == CHAT_TOOLS_NAMED))
        c->work_result = force_tools(c, &c->work_error);
    if (r->messages == NULL)
        return;
    json_array_clear(r->messages); /* large ones take long to free: here, not on the loop */
    json_object_del(r->body, "messages");
    json_object_del(r->body, "input"); /* of responses */
}

static void on_prompts(uv_work_t *work, int status)
{
    struct chat_call *c = work->data;
    struct api_error e;
    (void)status; /* cancelled only when the response is gone */
    c->is_working = false;
    if (c->response == NULL) {
        call_release(c);
        return;
    }
    if (check_prompts(c, &e) != 0)
        call_fail(c, &e);
    else if (c->dialect->is_count)
        chat_output_pump(c);
    else
        submit(c);
    call_release(c);
}

static void queue(struct chat_call *c, uv_work_cb run, uv_after_work_cb done)
{
    struct api_error e;
    c->work.data = c;
    c->is_working = true;
    int rc = uv_queue_work(c->api->loop, &c->work, run, done);
    if (rc == 0)
        return;
    c->is_working = false;
    api_error_set(&e, 503, NULL, NULL, "no thread for this request: %s", uv_strerror(rc));
    call_fail(c, &e);
}

static int find_model(struct chat_call *c, struct api_error *e)
{
    const struct api_backend *b = c->api->backend;
    const char *name = c->request.model;
    const struct api_model *m = c->dialect->find_model != NULL
                                    ? c->dialect->find_model(c->api, name)
                                    : b->model_find(b->self, name);
    struct error err = {0};
    if (m == NULL)
        return api_error_set(e, 404, "model_not_found", "model",
                             "The model '%.256s' does not exist.", name);
    if (!m->is_ready)
        return api_error_set(e, 503, "model_not_ready", "model",
                             "The model '%.256s' is not ready to answer; try again soon.", name);
    struct chat_request *r = &c->request;
    if (r->messages != NULL && m->chat_template == NULL && r->prompts != NULL) {
        json_decref(r->messages);
        r->messages = NULL;
    }
    if (r->messages != NULL && m->chat_template == NULL)
        return api_error_set(e, 400, "model_not_supported", "model",
                             "The model '%.256s' has no chat template, so it cannot chat.", name);
    c->text = model_text_get(c->api, m, &err);
    if (c->text == NULL) {
        api_error_from(e, &err);
        return -1;
    }
    c->model = m;
    if (b->model_ref != NULL)
        b->model_ref(b->self, m);
    return r->is_load ? 0 : chat_choices_new(c, e);
}

static void on_request(struct chat_call *c)
{
    struct api_error e;
    struct chat_request *r = &c->request;
    if (c->parse_error.status != 0) {
        call_fail(c, &c->parse_error);
        return;
    }
    if (!r->has_seed && rng_system(&r->sampling.seed, sizeof(r->sampling.seed)) != 0)
        r->sampling.seed = clock_now_ns();
    if (find_model(c, &e) != 0)
        call_fail(c, &e);
    else if (r->is_load)
        chat_output_pump(c);
    else
        queue(c, build_prompts, on_prompts);
}

static void parse_body(uv_work_t *work)
{
    struct chat_call *c = work->data;
    struct chat_request *r = &c->request;
    struct api_error *e = &c->parse_error;
    struct error err;
    if (json_parse(buf_str(&c->body), c->body.len, &r->body, &err) != 0)
        api_error_set(e, err.code == E_NOMEM ? 503 : 400, "invalid_json", NULL,
                      "We could not parse the JSON body of your request: %s", err.message);
    else if (!json_is_object(r->body))
        api_error_set(e, 400, "invalid_type", NULL,
                      "The body of the request must be a JSON object, but is %s.",
                      field_kind(r->body));
    else
        c->dialect->parse(r, e);
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

void chat_call_handle(struct api *a, const struct chat_dialect *dialect, struct http_response *r)
{
    static const struct http_response_events events = {.drained = on_drained, .gone = on_gone};
    struct chat_call *c = calloc(1, sizeof(*c));
    struct api_error e;
    uint64_t random[2] = {clock_now_ns(), 0};
    if (c != NULL && dialect->state_bytes > 0 &&
        (c->state = calloc(1, dialect->state_bytes)) == NULL) {
        free(c);
        c = NULL;
    }
    if (c == NULL) {
        api_error_set(&e, 503, NULL, NULL, "out of memory");
        api_error_respond(r, &e);
        return;
    }
    c->api = a;
    c->dialect = dialect;
    c->response = r;
    c->key = http_response_user(r);
    c->created_s = clock_wall_ns() / 1000000000u;
    c->arrival_ns = c->last_write_ns = clock_now_ns();
    (void)rng_system(random, sizeof(random)); /* an id need not be secret */
    snprintf(c->id, sizeof(c->id), "%s%016llx%08llx", dialect->id_prefix,
             (unsigned long long)random[0], (unsigned long long)(random[1] & 0xffffffffu));
    chat_request_init(&c->request);
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

void chat_call_tick(struct api *a)
{
    for (struct chat_call *c = a->calls; c != NULL; c = c->next)
        if (c->response != NULL && c->n_running > 0)
            chat_output_keepalive(c);
}

void chat_call_stop_all(struct api *a)
{
    struct api_error e;
    api_error_set(&e, 503, NULL, NULL, "the server is shutting down");
    for (struct chat_call *c = a->calls, *next; c != NULL; c = next) {
        next = c->next;
        if (c->response != NULL)
            call_fail(c, &e);
        call_release(c);
    }
}
