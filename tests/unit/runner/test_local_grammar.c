/* Whole runners on a real model (skipped without one): answers that follow grammars beside free
 * ones, hot enough that without a grammar they would be noise; what is said about their tokens; and
 * an answer that goes on elsewhere. */
#include "base/rng.h"
#include "model/gguf.h"
#include "runner/local_set.h"
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "text/json_schema.h"

enum { N_REQUESTS = 7, TOKENS_MAX = 200, N_TOP = 5, N_FREE = 20, WRONG = 6, PROMPT_MAX = 64 };

static const char person[] =
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\",\"maxLength\":20},\"age\":{"
    "\"type\":\"integer\",\"minimum\":0,\"maximum\":120},\"tags\":{\"type\":\"array\",\"items\":{"
    "\"enum\":[\"red\",\"green\",\"blue\"]},\"minItems\":1,\"maxItems\":4}},\"required\":["
    "\"name\",\"age\",\"tags\"],\"additionalProperties\":false}";
static const char tuple[] =
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\",\"pattern\":\"^[A-Z]{3}[0-9]{2}$\"},"
    "{\"type\":\"boolean\"}],\"items\":false,\"minItems\":2}";

/* By request; NULL: free. */
static const char *const schemas[N_REQUESTS + 1] = {
    [1] = person, [2] = tuple, [4] = person, [5] = tuple, [WRONG] = "{\"type\":\"person\"}",
};

struct answer {
    int32_t tokens[TOKENS_MAX];
    uint32_t n_tokens, n_logprobs;
    struct message_done done;
    bool is_done;
};

struct world {
    struct tokenizer *tokenizer;
    struct local_set *set;
    struct answer answers[N_REQUESTS + 1];
};

static void check_logprobs(const struct message_tokens *t)
{
    for (uint32_t i = 0; i < t->n_tokens; i++) {
        const struct logprobs *l = &t->logprobs[i];
        double sum = 0;
        assert_int_equal(l->n_top, N_TOP);
        assert_true(l->chosen <= 0 && l->chosen >= LOGPROB_MIN);
        for (uint32_t k = 0; k < N_TOP; k++) {
            sum += exp((double)l->top[k].logprob);
            if (k > 0)
                assert_true(l->top[k].logprob <= l->top[k - 1].logprob);
            if (l->top[k].token == t->tokens[i])
                assert_true(l->top[k].logprob == l->chosen);
        }
        assert_true(sum > 0 && sum < 1.0001);
    }
}

static void take_tokens(struct world *w, const struct message *m)
{
    struct message_tokens t;
    struct logprobs logprobs[MESSAGE_LOGPROBS_MAX];
    assert_int_equal(message_decode_tokens(m, &t, logprobs, NULL), 0);
    struct answer *a = &w->answers[t.request];
    assert_int_equal(t.n_before, a->n_tokens);
    assert_true(a->n_tokens + t.n_tokens <= TOKENS_MAX);
    memcpy(a->tokens + a->n_tokens, t.tokens, t.n_tokens * sizeof(t.tokens[0]));
    a->n_tokens += t.n_tokens;
    if (t.logprobs != NULL) {
        check_logprobs(&t);
        a->n_logprobs += t.n_tokens;
    }
}

static void wait_for(struct world *w, uint32_t n)
{
    struct error err = {0};
    while (n > 0) {
        struct message m;
        if (local_set_next(w->set, 60000, &m, &err) != 0)
            fail_msg("%s", err.message);
        if (m.type == MESSAGE_TOKENS)
            take_tokens(w, &m);
        if (m.type != MESSAGE_DONE)
            continue;
        struct message_done d;
        assert_int_equal(message_decode_done(&m, &d, NULL), 0);
        assert_false(w->answers[d.request].is_done);
        w->answers[d.request].done = d;
        w->answers[d.request].is_done = true;
        n--;
    }
}

/* given: what was generated before. */
static void submit(struct world *w, uint64_t request, const int32_t *given, uint32_t n_given)
{
    static struct message_submit m;
    static int32_t tokens[PROMPT_MAX + TOKENS_MAX];
    struct token_list prompt;
    static const char text[] = "Describe somebody as JSON: ";
    token_list_init(&prompt);
    assert_int_equal(tokenizer_encode(w->tokenizer, text, strlen(text), 0, &prompt, NULL), 0);
    assert_true(prompt.n <= PROMPT_MAX);
    memcpy(tokens, prompt.ids, prompt.n * sizeof(tokens[0]));
    if (n_given > 0)
        memcpy(tokens + prompt.n, given, n_given * sizeof(tokens[0]));
    m = (struct message_submit){.request = request,
                                .n_max = schemas[request] != NULL ? TOKENS_MAX - n_given : N_FREE,
                                .n_tokens = (uint32_t)prompt.n + n_given,
                                .tokens = tokens,
                                .n_logprobs = request % 2 == 0 ? 1 + N_TOP : 0};
    sampling_init(&m.sampling);
    m.sampling.temperature = 1.5f;
    m.sampling.seed = request;
    m.sampling.n_prompt = (uint32_t)prompt.n;
    m.n_end = (uint32_t)tokenizer_end_ids(w->tokenizer, m.end, 32);
    if (schemas[request] != NULL) {
        m.has_grammar = true;
        m.grammar_kind = GRAMMAR_JSON_SCHEMA;
        m.grammar = schemas[request];
        m.n_grammar_bytes = (uint32_t)strlen(schemas[request]);
    }
    token_list_done(&prompt);
    w->answers[request] = (struct answer){0};
    assert_int_equal(local_set_submit(w->set, &m, NULL), 0);
}

static void check_text(const struct world *w, const char *schema_text, const int32_t *tokens,
                       uint32_t n)
{
    char text[8 * TOKENS_MAX] = "";
    size_t len = 0, n_piece;
    for (uint32_t i = 0; i < n; i++) {
        const char *piece = tokenizer_piece(w->tokenizer, tokens[i], false, &n_piece);
        assert_true(len + n_piece < sizeof(text));
        memcpy(text + len, piece, n_piece);
        len += n_piece;
    }
    json_t *schema = json_loads(schema_text, 0, NULL), *value = json_loadb(text, len, 0, NULL);
    print_message("%.*s\n", (int)len, text);
    assert_non_null(value);
    assert_true(schema_accepts(schema, schema, value));
    json_decref(value);
    json_decref(schema);
}

/* The second half again, from another runner's point of view. */
static void go_on_elsewhere(struct world *w, uint64_t request)
{
    struct answer first = w->answers[request];
    uint32_t n_half = first.n_tokens / 2;
    assert_true(n_half > 0);
    submit(w, request, first.tokens, n_half);
    wait_for(w, 1);
    struct answer *rest = &w->answers[request];
    assert_int_equal(rest->done.reason, FINISH_STOP);
    int32_t whole[2 * TOKENS_MAX];
    memcpy(whole, first.tokens, n_half * sizeof(whole[0]));
    memcpy(whole + n_half, rest->tokens, rest->n_tokens * sizeof(whole[0]));
    check_text(w, schemas[request], whole, n_half + rest->n_tokens);
}

static void answers_follow_their_schemas(void **state)
{
    const struct local_set_options *layout = *state;
    char path[4096];
    struct error err = {0};
    struct gguf_file *file = NULL;
    struct world w = {0};
    const char *folder = getenv("SHOAL_TEST_MODELS");
    snprintf(path, sizeof(path), "%s/smollm2.gguf", folder != NULL ? folder : "build/models");
    if (access(path, R_OK) != 0)
        skip();
    assert_int_equal(gguf_file_open(path, &file, &err), 0);
    assert_int_equal(tokenizer_new(file, &w.tokenizer, &err), 0);
    gguf_file_close(file);
    struct local_set_options o = *layout;
    o.model_path = path;
    o.n_draft = 4;
    o.engine = (struct engine_options){.n_threads = 1, .n_slots = 4, .n_ctx = 512, .n_batch = 64};
    if (local_set_start(&o, &w.set, &err) != 0)
        fail_msg("%s", err.message);
    for (uint64_t i = 1; i <= N_REQUESTS; i++)
        submit(&w, i, NULL, 0);
    wait_for(&w, N_REQUESTS);
    for (uint64_t i = 1; i <= N_REQUESTS; i++) {
        const struct answer *a = &w.answers[i];
        assert_int_equal(a->n_logprobs, i % 2 == 0 ? a->n_tokens : 0);
        if (i == WRONG) {
            assert_int_equal(a->done.reason, FINISH_ERROR);
            assert_int_equal(a->done.code, E_INVALID);
            assert_non_null(strstr(a->done.message, "person"));
        } else if (schemas[i] != NULL) {
            assert_int_equal(a->done.reason, FINISH_STOP);
            check_text(&w, schemas[i], a->tokens, a->n_tokens);
        } else {
            assert_true(a->done.reason == FINISH_LENGTH || a->done.reason == FINISH_STOP);
        }
    }
    go_on_elsewhere(&w, 1);
    submit(&w, 1, NULL, 0); /* nothing may be left of it */
    assert_int_equal(local_set_cancel(w.set, 1, NULL), 0);
    wait_for(&w, 1);
    assert_int_equal(w.answers[1].done.reason, FINISH_CANCELLED);
    local_set_stop(w.set);
    tokenizer_free(w.tokenizer);
}

int main(void)
{
    struct local_set_options alone = {.n_ranks = 1}, tensor = {.n_ranks = 2, .split = "tensor"},
                             pipeline = {.n_ranks = 2, .split = "pipeline"};
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_prestate(answers_follow_their_schemas, &alone),
        cmocka_unit_test_prestate(answers_follow_their_schemas, &tensor),
        cmocka_unit_test_prestate(answers_follow_their_schemas, &pipeline),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
