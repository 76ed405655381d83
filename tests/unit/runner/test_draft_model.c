/* A small model that guesses: it follows its sequences, says what it would say itself, and changes
 * no answer. Tiny models always; real ones where there are some. */
#include "engine/tiny_model.h"
#include "runner/draft_model.h"
#include "runner/local_set.h"
#include "runner/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const struct tiny_shape shape = {.n_layer = 2,
                                        .n_embd = 64,
                                        .n_ff = 160,
                                        .n_head = 4,
                                        .n_head_kv = 2,
                                        .head_dim = 16,
                                        .n_vocab = 200};

static struct model *open_model(const char *path)
{
    struct model *m;
    struct error err = {0};
    if (model_open(path, &m, &err) != 0)
        fail_msg("%s", err.message);
    return m;
}

static struct draft_model *open_draft(const struct model *model, const char *path,
                                      const struct engine_options *o)
{
    struct draft_model *d;
    struct error err = {0};
    if (draft_model_open(model, path, o, NULL, &d, &err) != 0)
        fail_msg("%s", err.message);
    return d;
}

/* ---- a whole engine that obeys the scheduler ---- */

enum { N_SEQUENCES_MAX = 6, N_ANSWER_MAX = 400, N_TEXT_MAX = 1200 };

struct answer {
    int32_t tokens[N_ANSWER_MAX];
    uint32_t n;
};

static struct answer *answers; /* of the run under way, by request */

static void on_progress(void *arg, const struct message_progress *m)
{
    (void)arg;
    (void)m;
}

static void on_tokens(void *arg, const struct message_tokens *m)
{
    struct answer *a = &answers[m->request];
    (void)arg;
    assert_true(a->n == m->n_before && a->n + m->n_tokens <= N_ANSWER_MAX);
    memcpy(a->tokens + a->n, m->tokens, m->n_tokens * sizeof(*m->tokens));
    a->n += m->n_tokens;
}

static void on_done(void *arg, const struct message_done *m)
{
    (void)arg;
    assert_true(m->reason == FINISH_LENGTH);
}

/* Without a scheduler, what a step of a plan does; every step has a number of its own. */
static void carry_out(struct engine *e, struct plan *p, uint64_t number,
                      struct step_result *ret_result)
{
    struct step step = {
        .number = number, .n_parts = p->n_parts, .n_tokens = p->n_tokens, .tokens = p->tokens};
    const uint32_t *blocks = p->blocks;
    for (uint32_t i = 0; i < p->n_copies; i++)
        assert_int_equal(
            engine_block_copy(e, p->copy[i].from, p->copy[i].to, p->copy[i].n_tokens, NULL), 0);
    for (uint32_t i = 0; i < p->n_attaches; blocks += p->attach[i++].n_blocks) {
        const struct plan_attach *a = &p->attach[i];
        assert_int_equal(
            engine_slot_attach(e, a->slot, blocks, a->n_blocks, a->n_keep, &a->sampling, NULL), 0);
    }
    for (uint32_t i = 0; i < p->n_parts; blocks += p->part[i++].n_new_blocks) {
        const struct plan_part *part = &p->part[i];
        assert_int_equal(engine_slot_truncate(e, part->slot, part->n_past, NULL), 0);
        assert_int_equal(engine_slot_extend(e, part->slot, blocks, part->n_new_blocks, NULL), 0);
        step.part[i] = (struct step_part){
            .slot = part->slot, .n_tokens = part->n_tokens, .output = part->output};
    }
    assert_int_equal(engine_step(e, &step, ret_result, NULL), 0);
}

/* A source that hides what it costs: the clock of these tests says that steps take the same time
 * whatever is in them, so every guess pays. */
static bool costs_nothing(void *sequence, const int32_t *tokens, uint32_t n_tokens,
                          struct draft_cost *ret_cost)
{
    (void)sequence;
    (void)tokens;
    (void)n_tokens;
    *ret_cost = (struct draft_cost){0};
    return true;
}

static const struct draft_source *hidden;

static void propose_for_nothing(void *sequence, const int32_t *tokens, uint32_t n_tokens,
                                uint32_t n_max, struct draft *draft)
{
    hidden->propose(sequence, tokens, n_tokens, n_max, draft);
    draft->ns = 0;
}

struct job {
    const struct model *model;
    struct draft_model *draft; /* NULL: none */
    uint32_t n_sequences, n_prompt, n_answer;
    float temperature;
};

static void submit(struct scheduler *s, const struct job *j, uint64_t request)
{
    static struct message_submit m;
    static int32_t tokens[N_TEXT_MAX];
    memset(&m, 0, sizeof(m));
    for (uint32_t i = 0; i < j->n_prompt; i++)
        tokens[i] = (int32_t)(rng_u64(request, i, 6) % j->model->config.n_vocab);
    m.request = request;
    m.n_max = j->n_answer;
    sampling_init(&m.sampling);
    m.sampling.temperature = j->temperature;
    m.sampling.seed = 1000 + request;
    m.n_tokens = j->n_prompt;
    m.tokens = tokens;
    assert_int_equal(scheduler_submit(s, &m, 1, NULL), 0);
}

/* Answers all requests; returns how the guesses fared. */
static struct scheduler_stats run(const struct job *j, struct answer *ret_answers)
{
    struct split split = {.n_stages = 1,
                          .n_ranks = 1,
                          .stage = {{.layers = {0, j->model->config.n_layer}, .n_ranks = 1}},
                          .weight = {1}};
    struct engine_options eo = {.n_slots = j->n_sequences, .n_ctx = j->n_prompt + j->n_answer};
    struct scheduler_output output = {
        .progress = on_progress, .tokens = on_tokens, .done = on_done};
    struct draft_source source;
    struct engine_info info;
    struct engine *e;
    struct scheduler *s;
    struct scheduler_stats stats;
    struct plan *p = calloc(1, sizeof(*p));
    uint64_t now_ns = 1;
    assert_non_null(p);
    assert_int_equal(engine_open(j->model, &split, 0, NULL, &eo, &e, NULL), 0);
    engine_get_info(e, &info);
    struct scheduler_options so = {.n_slots = info.n_slots,
                                   .n_ctx = info.n_ctx,
                                   .n_batch = info.n_batch,
                                   .n_vocab = j->model->config.n_vocab,
                                   .block_tokens = info.block_tokens,
                                   .n_blocks = info.n_blocks,
                                   .n_attached_max = info.n_attached_max};
    if (j->draft != NULL) {
        hidden = draft_model_source(j->draft);
        source = *hidden;
        source.cost = costs_nothing;
        source.propose = propose_for_nothing;
        so.n_draft = 6;
        so.draft_model = &source;
    }
    assert_int_equal(scheduler_new(&so, &output, &s, NULL), 0);
    memset(ret_answers, 0, N_SEQUENCES_MAX * sizeof(*ret_answers));
    answers = ret_answers;
    for (uint32_t i = 0; i < j->n_sequences; i++)
        submit(s, j, i);
    for (uint64_t number = 1; scheduler_plan(s, now_ns, p); number++) {
        struct step_result result;
        carry_out(e, p, number, &result);
        scheduler_result(s, result.rows, NULL, now_ns += 1000000);
    }
    scheduler_get_stats(s, &stats);
    scheduler_free(s);
    engine_close(e);
    free(p);
    for (uint32_t i = 0; i < j->n_sequences; i++)
        assert_int_equal(ret_answers[i].n, j->n_answer);
    return stats;
}

/* Runs a job with and without guesses: the answers are the same. Returns how many of a hundred
 * guesses were right. */
static double compare(const char *what, struct job *j, const char *draft_path)
{
    static struct answer with[N_SEQUENCES_MAX], without[N_SEQUENCES_MAX];
    struct engine_options o = {.n_slots = j->n_sequences, .n_ctx = 512};
    struct scheduler_stats plain = run(j, without);
    j->draft = open_draft(j->model, draft_path, &o);
    struct scheduler_stats stats = run(j, with);
    draft_model_close(j->draft);
    j->draft = NULL;
    print_message("%s: %llu of %llu guesses right, %llu steps instead of %llu\n", what,
                  (unsigned long long)stats.n_accepted, (unsigned long long)stats.n_drafted,
                  (unsigned long long)stats.n_steps, (unsigned long long)plain.n_steps);
    for (uint32_t i = 0; i < j->n_sequences; i++)
        assert_memory_equal(with[i].tokens, without[i].tokens, j->n_answer * sizeof(int32_t));
    assert_true(stats.n_drafted > 0 && stats.n_steps < plain.n_steps);
    return 100.0 * (double)stats.n_accepted / (double)stats.n_drafted;
}

/* ---- tiny models ---- */

static void its_own_guesses_are_right(void **state)
{
    (void)state;
    struct tiny_model tiny;
    tiny_model_init(&tiny, &shape);
    struct job j = {
        .model = open_model(tiny.path), .n_sequences = 1, .n_prompt = 50, .n_answer = 300};
    assert_true(compare("greedy", &j, tiny.path) > 95);
    j.temperature = 1; /* it draws with the same random numbers */
    assert_true(compare("sampled", &j, tiny.path) > 95);
    j.n_sequences = 3;
    assert_true(compare("three at once", &j, tiny.path) > 95);
    model_close((struct model *)(uintptr_t)j.model);
    tiny_model_done(&tiny);
}

/* It reads the end of a long text only, and begins again where the text outgrows its room. The
 * answer is the same, whatever it says. */
static void a_long_text_is_read_from_its_end(void **state)
{
    (void)state;
    struct tiny_model tiny;
    tiny_model_init(&tiny, &shape);
    struct job j = {
        .model = open_model(tiny.path), .n_sequences = 1, .n_prompt = 700, .n_answer = 300};
    compare("a long prompt", &j, tiny.path);
    j.temperature = 1;
    compare("a long prompt, sampled", &j, tiny.path);
    j.n_prompt = 200;
    j.n_answer = 400;
    j.n_sequences = N_SEQUENCES_MAX; /* more than it has slots */
    j.temperature = 0;
    compare("more than it can follow", &j, tiny.path);
    model_close((struct model *)(uintptr_t)j.model);
    tiny_model_done(&tiny);
}

/* What propose says is what a fresh one would say, however the text came about. */
static void it_follows_a_sequence(void **state)
{
    (void)state;
    static const struct engine_options o = {.n_slots = 1};
    struct tiny_model tiny;
    struct sampling sampling;
    struct draft_cost cost;
    struct draft d, fresh;
    int32_t tokens[300];
    sampling_init(&sampling);
    tiny_model_init(&tiny, &shape);
    struct model *model = open_model(tiny.path);
    struct draft_model *m = open_draft(model, tiny.path, &o), *n = open_draft(model, tiny.path, &o);
    const struct draft_source *a = draft_model_source(m), *b = draft_model_source(n);
    void *one = a->begin(a->arg, 300, &sampling);
    for (uint32_t i = 0; i < 300; i++)
        tokens[i] = (int32_t)(rng_u64(4, i, 1) % shape.n_vocab);
    for (uint32_t at = 10; at < 200; at += 1 + at % 7) {
        for (uint32_t k = 0; k < 20; k++) { /* what is long has to be read in several turns */
            d = (struct draft){0};
            assert_true(a->cost(one, tokens, at, &cost));
            a->propose(one, tokens, at, 3, &d);
            if (d.n_tokens > 0)
                break;
        }
        assert_int_equal(d.n_tokens, 3);
        assert_true(d.ns > 0 && cost.token_ns > 0 && cost.read_ns > 0);
        void *other = b->begin(b->arg, 300, &sampling);
        do {
            fresh = (struct draft){0};
            b->propose(other, tokens, at, 3, &fresh);
        } while (fresh.n_tokens == 0);
        b->end(other);
        assert_memory_equal(d.tokens, fresh.tokens, 3 * sizeof(int32_t));
        for (uint32_t k = 0; k < 3; k++)
            assert_true(d.grade[k] >= DRAFT_MODEL_FIRST && d.grade[k] < DRAFT_GRADES);
        /* One by one it says the same; and some of it comes true. */
        d.n_tokens = 1;
        a->propose(one, tokens, at, 1, &d);
        a->propose(one, tokens, at, 1, &d);
        assert_memory_equal(d.tokens, fresh.tokens, 3 * sizeof(int32_t));
        memcpy(tokens + at, d.tokens, at % 4 * sizeof(int32_t));
    }
    a->end(one);
    draft_model_close(m);
    draft_model_close(n);
    model_close(model);
    tiny_model_done(&tiny);
}

/* A layer that adds nothing: the model says the same without it. */
static void silence_layers(struct tiny_model *tiny, int first)
{
    for (uint32_t i = 0; i < tiny->n_tensors; i++) {
        struct tiny_tensor *t = &tiny->tensor[i];
        int layer = -1, at = 0;
        if (sscanf(t->name, "blk.%d.%n", &layer, &at) == 1 && layer >= first &&
            (strcmp(t->name + at, "attn_output.weight") == 0 ||
             strcmp(t->name + at, "ffn_down.weight") == 0))
            memset(t->data, 0, t->dim[0] * t->dim[1] * sizeof(float));
    }
    unlink(tiny->path);
    tiny_write(tiny);
}

static void answer(struct local_set *set, int32_t *ret_tokens, uint32_t n_max, float temperature)
{
    static const int32_t prompt[] = {3, 1, 4, 1, 5, 9, 2, 6};
    static struct message_submit m;
    uint32_t n = 0;
    m = (struct message_submit){.request = 1, .n_max = n_max, .n_tokens = 8, .tokens = prompt};
    sampling_init(&m.sampling);
    m.sampling.temperature = temperature;
    m.sampling.seed = 7;
    assert_int_equal(local_set_submit(set, &m, NULL), 0);
    for (;;) {
        struct message message;
        struct message_tokens t;
        struct error err = {0};
        if (local_set_next(set, 20000, &message, &err) != 0)
            fail_msg("%s", err.message);
        if (message.type == MESSAGE_DONE)
            break;
        if (message.type != MESSAGE_TOKENS)
            continue;
        assert_int_equal(message_decode_tokens(&message, &t, NULL, NULL), 0);
        memcpy(ret_tokens + n, t.tokens, t.n_tokens * sizeof(int32_t));
        n += t.n_tokens;
    }
    assert_int_equal(n, n_max);
}

/* Whole runners, and real time: a model of which seven layers are idle, with its first layer alone
 * as the draft model, which is right and takes an eighth of the time. */
static void runners_guess_with_a_model(void **state)
{
    enum { N = 250 };
    uint32_t n_ranks = *(uint32_t *)*state;
    struct tiny_shape deep = {.n_layer = 8,
                              .n_embd = 128,
                              .n_ff = 512,
                              .n_head = 4,
                              .n_head_kv = 2,
                              .head_dim = 32,
                              .n_vocab = 200};
    struct tiny_shape shallow = deep;
    static struct tiny_model main, draft;
    static int32_t with[N], without[N];
    shallow.n_layer = 1;
    tiny_model_init(&main, &deep);
    silence_layers(&main, 1);
    tiny_model_init(&draft, &shallow);
    for (int is_sampled = 0; is_sampled < 2; is_sampled++) {
        struct local_set_options o = {.model_path = main.path,
                                      .n_ranks = n_ranks,
                                      .split = "tensor",
                                      .comm = LOCAL_SET_LOCAL,
                                      .n_draft = 8,
                                      .engine = {.n_threads = 1, .n_ctx = 1024}};
        struct local_set *set;
        struct message_pong pong;
        o.n_draft = 0;
        assert_int_equal(local_set_start(&o, &set, NULL), 0);
        answer(set, without, N, (float)is_sampled);
        local_set_stop(set);
        o.n_draft = 8;
        snprintf(o.draft_path, sizeof(o.draft_path), "%s", draft.path);
        assert_int_equal(local_set_start(&o, &set, NULL), 0);
        answer(set, with, N, (float)is_sampled);
        assert_int_equal(local_set_ping(set, 0, &pong, NULL), 0);
        local_set_stop(set);
        print_message("%u ranks: %llu of %llu guesses right\n", n_ranks,
                      (unsigned long long)pong.scheduler.n_accepted,
                      (unsigned long long)pong.scheduler.n_drafted);
        assert_memory_equal(with, without, sizeof(with));
        assert_true(pong.scheduler.n_drafted > 0);
    }
    tiny_model_done(&main);
    tiny_model_done(&draft);
}

static void expect_refusal(const char *model_path, const char *draft_path, const char *words)
{
    struct model *model = open_model(model_path), *other = open_model(draft_path);
    struct engine_options o = {.n_slots = 1};
    struct local_set_options set_options = {.model_path = model_path, .n_draft = 4};
    struct draft_model *d;
    struct local_set *set;
    struct error err = {0};
    assert_int_equal(draft_model_check(model, other, &err), E_INVALID);
    print_message("%s\n", err.message);
    assert_non_null(strstr(err.message, words));
    assert_int_equal(draft_model_open(model, draft_path, &o, NULL, &d, &err), E_INVALID);
    snprintf(set_options.draft_path, sizeof(set_options.draft_path), "%s", draft_path);
    assert_int_equal(local_set_start(&set_options, &set, &err), E_INVALID);
    assert_non_null(strstr(err.message, words));
    model_close(model);
    model_close(other);
}

static void another_vocabulary_is_refused(void **state)
{
    (void)state;
    struct tiny_model a, b;
    struct tiny_shape other = shape;
    struct engine_options o = {.n_slots = 1};
    struct draft_model *d;
    struct error err = {0};
    other.n_vocab = 201;
    tiny_model_init(&a, &shape);
    tiny_model_init(&b, &other);
    expect_refusal(a.path, b.path, "201 tokens, not 200");
    struct model *model = open_model(a.path);
    assert_int_equal(draft_model_open(model, "/nonexistent/small.gguf", &o, NULL, &d, &err),
                     E_NOTFOUND);
    assert_non_null(strstr(err.message, "/nonexistent/small.gguf"));
    model_close(model);
    tiny_model_done(&a);
    tiny_model_done(&b);
}

/* ---- real models ---- */

static bool find(const char *name, char ret_path[512])
{
    const char *folder = getenv("SHOAL_TEST_MODELS");
    snprintf(ret_path, 512, "%s/%s", folder != NULL ? folder : "build/models", name);
    return access(ret_path, R_OK) == 0;
}

static void a_real_model_guesses_for_itself(void **state)
{
    (void)state;
    char path[512];
    if (!find("smollm2.gguf", path))
        skip();
    struct job j = {.model = open_model(path), .n_sequences = 1, .n_prompt = 24, .n_answer = 32};
    assert_true(compare("SmolLM2, greedy", &j, path) > 95);
    j.temperature = 0.8F;
    assert_true(compare("SmolLM2, sampled", &j, path) > 95);
    model_close((struct model *)(uintptr_t)j.model);
}

static void a_real_model_of_another_kind_is_refused(void **state)
{
    (void)state;
    char smollm2[512], gemma3[512];
    if (!find("smollm2.gguf", smollm2) || !find("gemma3.gguf", gemma3))
        skip();
    expect_refusal(smollm2, gemma3, "cannot guess for");
}

int main(void)
{
    static uint32_t one = 1, two = 2;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(it_follows_a_sequence),
        cmocka_unit_test(its_own_guesses_are_right),
        cmocka_unit_test(a_long_text_is_read_from_its_end),
        cmocka_unit_test_prestate(runners_guess_with_a_model, &one),
        cmocka_unit_test_prestate(runners_guess_with_a_model, &two),
        cmocka_unit_test(another_vocabulary_is_refused),
        cmocka_unit_test(a_real_model_guesses_for_itself),
        cmocka_unit_test(a_real_model_of_another_kind_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
