/* The engine against plain loops, and every split against one process, on tiny models of all
 * shapes. */
#include "shapes.h"

#include <pthread.h>

enum { N_TOKENS = 40 };

/* ---- running a split, one thread a rank ---- */

struct run {
    const struct model *model;
    struct split split;
    const int32_t *tokens;
    const uint32_t *chunks; /* lengths, ends with 0 */
    uint32_t slot;
    float *logits; /* [N_TOKENS][n_vocab] */
};

struct run_rank {
    struct run *run;
    uint32_t rank;
    struct comm *comm;
    pthread_t thread;
    int rc;
    struct error err;
};

/* A slot with as many blocks as it can have; others are for other slots. */
static int attach_whole(struct engine *e, uint32_t slot, struct error *err)
{
    struct engine_info info;
    struct sampling sampling;
    uint32_t blocks[64];
    engine_get_info(e, &info);
    sampling_init(&sampling);
    uint32_t n = info.n_ctx / info.block_tokens;
    for (uint32_t i = 0; i < n; i++)
        blocks[i] = slot * n + i;
    return engine_slot_attach(e, slot, blocks, n, 0, &sampling, err);
}

static int run_chunks(struct run_rank *r)
{
    struct run *run = r->run;
    struct engine *e;
    struct engine_options options = {.n_slots = 2, .n_ctx = 64};
    int rc = engine_open(run->model, &run->split, r->rank, r->comm, &options, &e, &r->err);
    if (rc == 0)
        rc = attach_whole(e, run->slot, &r->err);
    uint32_t done = 0;
    for (uint32_t i = 0; rc == 0 && run->chunks[i] != 0; i++) {
        struct step step = {
            .number = i + 1,
            .n_parts = 1,
            .part[0] = {.slot = run->slot, .n_tokens = run->chunks[i], .output = STEP_OUTPUT_ALL},
            .n_tokens = run->chunks[i],
            .tokens = run->tokens + done};
        struct step_result result;
        rc = engine_step(e, &step, &result, &r->err);
        for (uint32_t row = 0; rc == 0 && row < result.n_rows; row++) {
            struct range vocab;
            const float *logits = engine_logits(e, row, &vocab);
            if (logits != NULL)
                memcpy(run->logits + (size_t)(done + row) * run->model->config.n_vocab +
                           vocab.begin,
                       logits, (vocab.end - vocab.begin) * sizeof(float));
        }
        done += run->chunks[i];
    }
    if (rc == 0)
        engine_close(e);
    return rc;
}

static void *run_thread(void *arg)
{
    struct run_rank *r = arg;
    r->rc = run_chunks(r);
    comm_close(r->comm);
    return NULL;
}

static float *run_split(const struct model *m, const char *split, uint32_t n_ranks,
                        const int32_t *tokens, const uint32_t *chunks, uint32_t slot)
{
    struct run run = {.model = m, .tokens = tokens, .chunks = chunks, .slot = slot};
    struct error err = {0};
    struct run_rank rank[8];
    struct comm *comms[8] = {0};
    run.logits = calloc((size_t)N_TOKENS * m->config.n_vocab, sizeof(float));
    if (split_parse(split, n_ranks, m->config.n_layer, NULL, &run.split, &err) != 0)
        fail_msg("%s", err.message);
    struct comm_options options = {.spin_us = 0};
    if (n_ranks > 1)
        assert_int_equal(comm_local_new(n_ranks, &options, comms, &err), 0);
    for (uint32_t i = 0; i < n_ranks; i++) {
        rank[i] = (struct run_rank){.run = &run, .rank = i, .comm = comms[i]};
        pthread_create(&rank[i].thread, NULL, run_thread, &rank[i]);
    }
    for (uint32_t i = 0; i < n_ranks; i++) {
        pthread_join(rank[i].thread, NULL);
        if (rank[i].rc != 0)
            fail_msg("rank %u: %s", i, rank[i].err.message);
    }
    return run.logits;
}

static double largest_difference(const float *a, const double *b, size_t n)
{
    double max = 0;
    for (size_t i = 0; i < n; i++)
        max = fmax(max, fabs((double)a[i] - b[i]));
    return max;
}

/* ---- tests ---- */

static const uint32_t one_chunk[] = {N_TOKENS, 0};
static const uint32_t many_chunks[] = {1, 17, 1, 1, 16, 1, 3, 0};

/* The f16 KV cache rounds keys and values to 11 bits; logits are of the order of 1. */
static const double tolerance = 0.01;

static void check_against_loops(const struct tiny_shape *shape)
{
    struct tiny_model tiny;
    struct model *m;
    struct error err = {0};
    int32_t tokens[N_TOKENS];
    tiny_model_init(&tiny, shape);
    make_tokens(11, shape->n_vocab, tokens, N_TOKENS);
    if (model_open(tiny.path, &m, &err) != 0)
        fail_msg("%s", err.message);
    double *expected = calloc((size_t)N_TOKENS * shape->n_vocab, sizeof(double));
    reference_logits(&tiny, tokens, N_TOKENS, expected);

    static const struct {
        const char *split;
        uint32_t n_ranks;
    } splits[] = {{"pipeline", 1}, {"pipeline", 2}, {"pipeline", 3}, {"tensor", 2}, {"tensor", 3},
                  {"tensor", 4},   {"2x2", 4},      {"3x2", 6},      {"2x3", 6}};
    for (size_t i = 0; i < sizeof(splits) / sizeof(splits[0]); i++)
        for (int chunked = 0; chunked < 2; chunked++) {
            float *got = run_split(m, splits[i].split, splits[i].n_ranks, tokens,
                                   chunked ? many_chunks : one_chunk, (uint32_t)chunked);
            double difference =
                largest_difference(got, expected, (size_t)N_TOKENS * shape->n_vocab);
            if (!(difference < tolerance))
                fail_msg("%s over %u ranks%s: logits differ by %g", splits[i].split,
                         splits[i].n_ranks, chunked ? ", in chunks" : "", difference);
            free(got);
        }
    free(expected);
    model_close(m);
    tiny_model_done(&tiny);
}

static void llama_equals_plain_loops(void **state)
{
    (void)state;
    check_against_loops(&llama_shape);
}

static void gemma_equals_plain_loops(void **state)
{
    (void)state;
    check_against_loops(&gemma_shape);
}

static void pipelines_are_bit_identical(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct model *m;
    int32_t tokens[N_TOKENS];
    tiny_model_init(&tiny, &llama_shape);
    make_tokens(11, llama_shape.n_vocab, tokens, N_TOKENS);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    size_t bytes = (size_t)N_TOKENS * llama_shape.n_vocab * sizeof(float);
    float *whole = run_split(m, "pipeline", 1, tokens, many_chunks, 0);
    for (uint32_t n = 2; n <= 3; n++) {
        float *split = run_split(m, "pipeline", n, tokens, many_chunks, 0);
        assert_memory_equal(whole, split, bytes);
        free(split);
    }
    float *first = run_split(m, "tensor", 2, tokens, many_chunks, 0);
    float *second = run_split(m, "tensor", 2, tokens, many_chunks, 1);
    assert_memory_equal(first, second, bytes);
    free(first), free(second), free(whole);
    model_close(m);
    tiny_model_done(&tiny);
}

/* Sequences that share a step do not see each other. */
static void slots_are_independent(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct model *m;
    struct engine *e;
    struct error err = {0};
    struct split split;
    int32_t tokens[N_TOKENS];
    tiny_model_init(&tiny, &gemma_shape);
    make_tokens(11, gemma_shape.n_vocab, tokens, N_TOKENS);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    float *alone = run_split(m, "pipeline", 1, tokens, one_chunk, 0);
    assert_int_equal(split_parse("pipeline", 1, m->config.n_layer, NULL, &split, &err), 0);
    struct engine_options options = {.n_slots = 3, .n_ctx = 64};
    assert_int_equal(engine_open(m, &split, 0, NULL, &options, &e, &err), 0);
    for (uint32_t slot = 0; slot < 3; slot++)
        assert_int_equal(attach_whole(e, slot, &err), 0);

    /* Slot 2 gets the tokens in pieces, beside others that come and go. */
    int32_t mixed[N_TOKENS];
    uint32_t n = 0;
    struct step_result result;
    struct step step = {.number = 1, .n_parts = 2, .n_tokens = 15, .tokens = mixed};
    step.part[0] = (struct step_part){.slot = 0, .n_tokens = 5, .output = STEP_OUTPUT_LAST};
    step.part[1] = (struct step_part){.slot = 2, .n_tokens = 10, .output = STEP_OUTPUT_NONE};
    for (uint32_t i = 0; i < 15; i++)
        mixed[i] = i < 5 ? 3 : tokens[n++];
    assert_int_equal(engine_step(e, &step, &result, &err), 0);
    assert_int_equal(result.n_rows, 1);
    step.number = 2;
    step.part[0] =
        (struct step_part){.slot = 2, .n_tokens = N_TOKENS - 11, .output = STEP_OUTPUT_NONE};
    step.part[1] = (struct step_part){.slot = 1, .n_tokens = 4, .output = STEP_OUTPUT_ALL};
    step.n_tokens = N_TOKENS - 7;
    for (uint32_t i = 0; i < step.n_tokens; i++)
        mixed[i] = i < N_TOKENS - 11 ? tokens[n++] : 9;
    assert_int_equal(engine_step(e, &step, &result, &err), 0);
    assert_int_equal(result.n_rows, 4);
    step.number = 3;
    step.n_parts = 1;
    step.n_tokens = 1;
    step.part[0] = (struct step_part){.slot = 2, .n_tokens = 1, .output = STEP_OUTPUT_LAST};
    mixed[0] = tokens[n++];
    assert_int_equal(engine_step(e, &step, &result, &err), 0);
    assert_int_equal(n, N_TOKENS);
    const float *last = engine_logits(e, 0, NULL),
                *expected = alone + (size_t)(N_TOKENS - 1) * gemma_shape.n_vocab;
    for (uint32_t i = 0; i < gemma_shape.n_vocab; i++)
        assert_true(fabsf(last[i] - expected[i]) < (float)tolerance);
    assert_int_equal(engine_slot_n_tokens(e, 2), N_TOKENS);
    assert_memory_equal(engine_slot_tokens(e, 2), tokens, sizeof(tokens));
    engine_close(e);
    free(alone);
    model_close(m);
    tiny_model_done(&tiny);
}

static void bad_steps_are_refused(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct model *m;
    struct engine *e;
    struct error err = {0};
    struct split split;
    tiny_model_init(&tiny, &llama_shape);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    assert_int_equal(split_parse("pipeline", 1, m->config.n_layer, NULL, &split, &err), 0);
    struct engine_options options = {.n_slots = 2, .n_ctx = 256, .n_batch = 300};
    assert_int_equal(engine_open(m, &split, 0, NULL, &options, &e, &err), 0);
    int32_t tokens[512] = {0};
    struct step_result result;
    assert_int_equal(attach_whole(e, 0, &err), 0);
    struct step good = {.number = 1, .n_parts = 1, .n_tokens = 2, .tokens = tokens};
    good.part[0] = (struct step_part){.slot = 0, .n_tokens = 2, .output = STEP_OUTPUT_LAST};

    struct step bad = good;
    bad.n_tokens = 0;
    assert_int_equal(engine_step(e, &bad, &result, &err), E_INVALID);
    bad = good;
    bad.n_tokens = 301;
    bad.part[0].n_tokens = 301;
    assert_int_equal(engine_step(e, &bad, &result, &err), E_INVALID);
    bad.n_tokens = bad.part[0].n_tokens = 257;
    assert_int_equal(engine_step(e, &bad, &result, &err), E_LIMIT);
    bad = good;
    bad.part[0].slot = 2;
    assert_int_equal(engine_step(e, &bad, &result, &err), E_INVALID);
    bad = good;
    bad.part[0].n_tokens = 1;
    assert_int_equal(engine_step(e, &bad, &result, &err), E_INVALID);
    bad = good;
    bad.n_parts = 2;
    bad.part[1] = bad.part[0];
    bad.n_tokens = 4;
    assert_int_equal(engine_step(e, &bad, &result, &err), E_INVALID);
    tokens[1] = (int32_t)llama_shape.n_vocab;
    assert_int_equal(engine_step(e, &good, &result, &err), E_INVALID);
    tokens[1] = -1;
    assert_int_equal(engine_step(e, &good, &result, &err), E_INVALID);
    tokens[1] = 0;
    assert_int_equal(engine_step(e, &good, &result, &err), 0);
    assert_int_equal(engine_step(e, &good, &result, &err), E_PROTOCOL); /* the same number again */
    engine_abort(e);
    good.number = 2;
    assert_int_equal(engine_step(e, &good, &result, &err), E_CANCELLED);
    engine_close(e);

    options.n_slots = LIMIT_SLOTS + 1;
    assert_int_equal(engine_open(m, &split, 0, NULL, &options, &e, &err), E_INVALID);
    assert_int_equal(split_parse("tensor", 2, m->config.n_layer, NULL, &split, &err), 0);
    options.n_slots = 1;
    assert_int_equal(engine_open(m, &split, 0, NULL, &options, &e, &err), E_INVALID);
    model_close(m);
    tiny_model_done(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_equals_plain_loops),    cmocka_unit_test(gemma_equals_plain_loops),
        cmocka_unit_test(pipelines_are_bit_identical), cmocka_unit_test(slots_are_independent),
        cmocka_unit_test(bad_steps_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
