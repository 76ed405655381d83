/* Steps in two micro-batches, whose sums travel while others compute: the logits are those of whole
 * steps to the last bit, for prompts of many lengths, alone and beside others. */
#include "../comm/world.h"

#include "engine/internal.h"
#include "shapes.h"

/* ggml's threads synchronize where the thread sanitizer does not see it. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define THREADS_MAX 1
#endif
#endif
#ifndef THREADS_MAX
#define THREADS_MAX 2
#endif

enum { N_STEPS = 8, N_SLOTS = 4, N_CTX = 448, N_BATCH = 320, N_TOKENS_MAX = N_STEPS * N_BATCH };

/* The same on all ranks and in all runs. */
struct script {
    struct step step[N_STEPS];
    bool begins[N_STEPS][N_SLOTS]; /* the slot is emptied before the step */
    int32_t tokens[N_TOKENS_MAX];
};

struct run { /* what one run of a script gives */
    const struct model *model;
    const struct script *script;
    struct split split;
    uint32_t overlap_rows_min;              /* as in struct engine */
    uint64_t digest[WORLD_MAX][N_STEPS];    /* of a rank's logits in a step */
    uint32_t n_divided[WORLD_MAX];          /* steps in two micro-batches */
    uint32_t rows_min[WORLD_MAX];           /* of the engine after the last step */
    uint32_t leaves_before_step[WORLD_MAX]; /* 0: stays */
    int failure[WORLD_MAX];
    struct error why[WORLD_MAX];
};

/* Chunks of all kinds: single rows, rows of their own attention, less than a tile, tiles. */
static void make_script(struct script *s, uint64_t seed, uint32_t n_vocab)
{
    static const uint32_t lengths[] = {1,   1,   2,   7,   40,  41,  63,  64, 65,
                                       100, 127, 128, 129, 131, 200, 256, 300};
    uint32_t n_in_slot[N_SLOTS] = {0}, n_tokens = 0;
    uint64_t n_draws = 0;
    memset(s, 0, sizeof(*s));
    make_tokens(seed, n_vocab, s->tokens, N_TOKENS_MAX);
    for (uint32_t i = 0; i < N_STEPS; i++) {
        struct step *step = &s->step[i];
        *step = (struct step){.number = i + 1, .tokens = s->tokens + n_tokens};
        for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
            uint32_t n =
                lengths[rng_u64(seed, n_draws++, 1) % (sizeof(lengths) / sizeof(*lengths))];
            if ((step->n_parts > 0 && rng_u64(seed, n_draws++, 1) % 3 == 0) ||
                step->n_tokens + n > N_BATCH)
                continue;
            s->begins[i][slot] = n_in_slot[slot] + n > N_CTX;
            n_in_slot[slot] = s->begins[i][slot] ? n : n_in_slot[slot] + n;
            step->part[step->n_parts++] =
                (struct step_part){.slot = slot,
                                   .n_tokens = n,
                                   .output = (enum step_output)(rng_u64(seed, n_draws++, 1) % 3)};
            step->n_tokens += n;
        }
        n_tokens += step->n_tokens;
    }
}

static void attach_all(struct engine *e)
{
    struct engine_info info;
    struct sampling sampling;
    struct error err = {0};
    uint32_t blocks[64];
    engine_get_info(e, &info);
    sampling_init(&sampling);
    uint32_t n = info.n_ctx / info.block_tokens;
    for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
        for (uint32_t i = 0; i < n; i++)
            blocks[i] = slot * n + i;
        CHECK(engine_slot_attach(e, slot, blocks, n, 0, &sampling, &err) == 0);
    }
}

static uint64_t digest_logits(const struct engine *e, uint32_t n_rows)
{
    uint64_t d = UINT64_C(0xcbf29ce484222325);
    for (uint32_t row = 0; row < n_rows; row++) {
        struct range vocab;
        const float *logits = engine_logits(e, row, &vocab);
        const uint8_t *bytes = (const uint8_t *)logits;
        for (size_t i = 0; logits != NULL && i < (vocab.end - vocab.begin) * sizeof(float); i++)
            d = (d ^ bytes[i]) * UINT64_C(0x100000001b3);
    }
    return d;
}

static void run_rank(struct world *w, struct comm *c, uint32_t rank)
{
    struct run *run = w->arg;
    struct error e = {0};
    struct engine *engine = NULL;
    struct engine_options options = {.n_slots = N_SLOTS,
                                     .n_ctx = N_CTX,
                                     .n_batch = N_BATCH,
                                     .n_threads = w->n == 2 ? 1 + rank % THREADS_MAX : 1};
    CHECK_OK(engine_open(run->model, &run->split, rank, c, &options, &engine, &e));
    if (engine == NULL)
        return;
    engine->overlap_rows_min = run->overlap_rows_min;
    struct engine_info before, after;
    engine_get_info(engine, &before);
    attach_all(engine);
    for (uint32_t i = 0; i < N_STEPS && run->failure[rank] == 0; i++) {
        struct step_result result = {0};
        if (run->leaves_before_step[rank] == i + 1)
            break;
        for (uint32_t slot = 0; slot < N_SLOTS; slot++)
            if (run->script->begins[i][slot])
                CHECK_OK(engine_slot_truncate(engine, slot, 0, &e));
        run->failure[rank] = engine_step(engine, &run->script->step[i], &result, &run->why[rank]);
        run->n_divided[rank] += engine->graph.shape.n_early > 0;
        run->digest[rank][i] = digest_logits(engine, result.n_rows);
    }
    run->rows_min[rank] = engine->overlap_rows_min;
    engine_get_info(engine, &after);
    CHECK(after.compute_bytes >= before.compute_bytes);
    engine_close(engine);
    comm_close(c);
    w->comms[rank] = NULL;
}

struct arrangement {
    enum transport_kind kind;
    enum comm_wire wire;
    const char *split;
    uint32_t n_ranks, weight[4];
};

static void run_once(const struct arrangement *a, struct run *run)
{
    struct comm_options options = {.wire = a->wire, .spin_us = 0};
    struct error e = {0};
    struct world w;
    if (split_parse(a->split, a->n_ranks, run->model->config.n_layer,
                    a->weight[0] != 0 ? a->weight : NULL, &run->split, &e) != 0)
        fail_msg("%s", e.message);
    world_open(&w, a->kind, a->n_ranks, &options);
    w.arg = run;
    world_run(&w, run_rank);
}

static void check_arrangement(const struct model *m, const struct arrangement *a, uint64_t seed)
{
    static struct script script;
    static struct run whole, divided;
    make_script(&script, seed, m->config.n_vocab);
    whole = (struct run){.model = m, .script = &script, .overlap_rows_min = UINT32_MAX};
    divided = (struct run){.model = m, .script = &script, .overlap_rows_min = 2};
    run_once(a, &whole);
    run_once(a, &divided);
    for (uint32_t rank = 0; rank < a->n_ranks; rank++) {
        if (whole.failure[rank] != 0 || divided.failure[rank] != 0)
            fail_msg("rank %u: '%s', '%s'", rank, whole.why[rank].message,
                     divided.why[rank].message);
        assert_int_equal(whole.n_divided[rank], 0);
        assert_in_range(divided.n_divided[rank], N_STEPS / 3, N_STEPS);
        for (uint32_t i = 0; i < N_STEPS; i++)
            if (whole.digest[rank][i] != divided.digest[rank][i])
                fail_msg("%s over %u ranks (%s), seed %llu, rank %u: step %u of %u tokens in %u "
                         "parts gives other logits",
                         a->split, a->n_ranks, transport_names[a->kind], (unsigned long long)seed,
                         rank, i, script.step[i].n_tokens, script.step[i].n_parts);
    }
}

/* ---- tests ---- */

static const struct arrangement arrangements[] = {
    {TRANSPORT_LOCAL, COMM_WIRE_F32, "tensor", 2, {0}},
    {TRANSPORT_TCP, COMM_WIRE_F32, "tensor", 2, {0}},
    {TRANSPORT_TCP, COMM_WIRE_F32, "tensor", 3, {5, 1, 2}},
    {TRANSPORT_LOCAL, COMM_WIRE_F32, "tensor", 4, {0}}, /* more ranks than KV heads */
    {TRANSPORT_SHM, COMM_WIRE_F32, "tensor", 2, {9, 1}},
    {TRANSPORT_TCP, COMM_WIRE_F16, "tensor", 2, {0}},
    {TRANSPORT_TCP, COMM_WIRE_Q8, "tensor", 2, {1, 3}},
    {TRANSPORT_LOCAL, COMM_WIRE_F32, "2x2", 4, {0}},
};
enum { N_ARRANGEMENTS = sizeof(arrangements) / sizeof(arrangements[0]) };

static void check_shape(const struct tiny_shape *shape, uint64_t seed)
{
    struct tiny_model tiny;
    struct model *m;
    tiny_model_init(&tiny, shape);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    for (uint32_t i = 0; i < N_ARRANGEMENTS; i++)
        check_arrangement(m, &arrangements[i], seed + i);
    model_close(m);
    tiny_model_done(&tiny);
}

static void llama_is_bit_equal(void **state)
{
    (void)state;
    check_shape(&llama_shape, 1);
}

static void gemma_is_bit_equal(void **state)
{
    (void)state;
    check_shape(&gemma_shape, 100);
}

/* What the ranks agree on by themselves, and what happens when one of them goes. */
static void run_by_themselves(const struct model *m, const struct arrangement *a, struct run *run,
                              uint32_t leaves_before_step)
{
    static struct script script;
    make_script(&script, 7, m->config.n_vocab);
    *run = (struct run){.model = m, .script = &script};
    run->leaves_before_step[a->n_ranks - 1] = leaves_before_step;
    run_once(a, run);
}

static void only_networks_divide(void **state)
{
    (void)state;
    static const struct {
        struct arrangement a;
        bool divides;
    } cases[] = {{{TRANSPORT_LOCAL, COMM_WIRE_F32, "tensor", 2, {0}}, false},
                 {{TRANSPORT_SHM, COMM_WIRE_F32, "tensor", 2, {0}}, false},
                 {{TRANSPORT_TCP, COMM_WIRE_F32, "tensor", 2, {0}}, true},
                 {{TRANSPORT_MIXED, COMM_WIRE_F32, "tensor", 3, {0}}, true},
                 {{TRANSPORT_MIXED, COMM_WIRE_F32, "2x1", 2, {0}}, false}};
    static struct run run;
    struct tiny_model tiny;
    struct model *m;
    tiny_model_init(&tiny, &llama_shape);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        run_by_themselves(m, &cases[i].a, &run, 0);
        for (uint32_t rank = 0; rank < cases[i].a.n_ranks; rank++) {
            assert_int_equal(run.failure[rank], 0);
            assert_int_equal(run.rows_min[rank], cases[i].divides ? OVERLAP_ROWS_MIN : 0);
            assert_int_equal(run.n_divided[rank] > 0, cases[i].divides);
        }
    }
    for (uint32_t step = 1; step <= 4; step++) {
        run_by_themselves(m, &cases[2].a, &run, step);
        assert_int_equal(run.failure[0], E_PEERLOST);
        assert_int_equal(run.failure[1], 0);
    }
    model_close(m);
    tiny_model_done(&tiny);
}

/* Where a step may be divided. */
static void divisions(void **state)
{
    (void)state;
    static const struct {
        uint32_t n_tokens[4], first;
    } cases[] = {
        {{127}, 0},          {{128}, 64},
        {{129}, 64},         {{256}, 128},
        {{300}, 144},        {{1, 1, 1, 200}, 96},
        {{200, 1}, 96},      {{127, 127}, 127},
        {{64, 64}, 64},      {{40, 40, 40, 40}, 80},
        {{100, 127}, 100},   {{20, 127}, 0},
        {{10, 128, 10}, 74}, {{1, 128, 100}, 129},
        {{63, 65}, 63},
    };
    struct engine e = {.overlap_rows_min = OVERLAP_ROWS_MIN};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct step step = {0};
        for (; step.n_parts < 4 && cases[i].n_tokens[step.n_parts] > 0; step.n_parts++) {
            step.part[step.n_parts].n_tokens = cases[i].n_tokens[step.n_parts];
            step.n_tokens += cases[i].n_tokens[step.n_parts];
        }
        if (engine_divide(&e, &step) != cases[i].first)
            fail_msg("case %zu is divided at %u", i, engine_divide(&e, &step));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(divisions),
        cmocka_unit_test(llama_is_bit_equal),
        cmocka_unit_test(gemma_is_bit_equal),
        cmocka_unit_test(only_networks_divide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
