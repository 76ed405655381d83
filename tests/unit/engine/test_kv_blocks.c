/* Blocks in slots: shared, copied, given back, taken over; and every argument that cannot be meant.
 */
#include "engine/kv_cache.h"
#include "fixture.h"

enum { N_TOKENS = 150, N_MORE = 10, BLOCK = 64 };

static const struct engine_options three_slots = {.n_slots = 3, .n_ctx = 256, .n_batch = 200};

static int32_t tokens[N_TOKENS + N_MORE];

static float *new_logits(const struct fixture *f)
{
    return calloc((size_t)N_MORE * f->n_vocab, sizeof(float));
}

/* The first N_TOKENS in slot 0, blocks 0 to 2. */
static void begin(struct fixture *f, const struct engine_options *options)
{
    fixture_init(f, &llama_shape, options);
    make_tokens(3, f->n_vocab, tokens, N_TOKENS + N_MORE);
    assert_int_equal(f->info.block_tokens, BLOCK);
    assert_int_equal(attach(f, 0, (uint32_t[]){0, 1, 2}, 3, 0), 0);
    assert_int_equal(run(f, 0, tokens, 2 * BLOCK, NULL), 0);
    assert_int_equal(run(f, 0, tokens + 2 * BLOCK, N_TOKENS - 2 * BLOCK, NULL), 0);
}

static void go_on(struct fixture *f, uint32_t slot, float *logits)
{
    assert_int_equal(engine_slot_n_tokens(f->e, slot), N_TOKENS);
    assert_memory_equal(engine_slot_tokens(f->e, slot), tokens, N_TOKENS * sizeof(int32_t));
    assert_int_equal(run(f, slot, tokens + N_TOKENS, N_MORE, logits), 0);
}

static void assert_same(const struct fixture *f, float *got, const float *expected)
{
    assert_memory_equal(got, expected, (size_t)N_MORE * f->n_vocab * sizeof(float));
    free(got);
}

static void sharers_compute_the_same(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, &three_slots);
    float *expected = new_logits(&f), *copied = new_logits(&f), *joined = new_logits(&f);
    /* Slot 1 shares the full blocks and has a copy of the third, in another order of the pool. */
    assert_int_equal(engine_block_copy(f.e, 2, 9, N_TOKENS - 2 * BLOCK, NULL), 0);
    assert_int_equal(attach(&f, 1, (uint32_t[]){0, 1, 9}, 3, N_TOKENS), 0);
    /* Slot 2 shares the full blocks and computes the rest itself. */
    assert_int_equal(attach(&f, 2, (uint32_t[]){0, 1, 5}, 3, 2 * BLOCK), 0);
    assert_int_equal(run(&f, 2, tokens + 2 * BLOCK, N_TOKENS - 2 * BLOCK, NULL), 0);
    go_on(&f, 1, copied);
    go_on(&f, 0, expected);
    go_on(&f, 2, joined);
    assert_same(&f, copied, expected);
    assert_same(&f, joined, expected);
    free(expected);
    fixture_done(&f);
}

static void a_truncated_draft_leaves_no_trace(void **state)
{
    (void)state;
    struct fixture f;
    int32_t wrong[20] = {7, 7, 7};
    begin(&f, &three_slots);
    float *expected = new_logits(&f), *got = new_logits(&f);
    go_on(&f, 0, expected);
    assert_int_equal(engine_slot_truncate(f.e, 0, N_TOKENS, NULL), 0);
    assert_int_equal(run(&f, 0, wrong, 20, NULL), 0);
    assert_int_equal(engine_slot_truncate(f.e, 0, N_TOKENS, NULL), 0);
    go_on(&f, 0, got);
    assert_same(&f, got, expected);
    free(expected);
    fixture_done(&f);
}

/* A sequence goes on in another slot; more memory comes as it grows. */
static void a_sequence_moves_and_grows(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, &three_slots);
    float *expected = new_logits(&f), *got = new_logits(&f);
    go_on(&f, 0, expected);
    assert_int_equal(attach(&f, 2, (uint32_t[]){0, 1, 2}, 3, N_TOKENS), 0);
    assert_int_equal(engine_slot_n_tokens(f.e, 0), 0); /* it could write into block 2 otherwise */
    go_on(&f, 2, got);
    assert_same(&f, got, expected);
    /* 160 of 192 tokens: 33 more need a block. */
    int32_t more[40] = {1, 2, 3};
    assert_int_equal(run(&f, 2, more, 33, NULL), E_INVALID);
    assert_int_equal(engine_slot_n_tokens(f.e, 2), N_TOKENS + N_MORE);
    assert_int_equal(engine_slot_extend(f.e, 2, (uint32_t[]){7}, 1, NULL), 0);
    assert_int_equal(run(&f, 2, more, 33, NULL), 0);
    assert_int_equal(engine_slot_extend(f.e, 2, (uint32_t[]){8}, 1, NULL), E_LIMIT);
    free(expected);
    fixture_done(&f);
}

static void bad_arguments_change_nothing(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, &three_slots);
    float *expected = new_logits(&f), *got = new_logits(&f);
    go_on(&f, 0, expected);
    assert_int_equal(engine_slot_truncate(f.e, 0, N_TOKENS, NULL), 0);
    uint32_t n = f.info.n_blocks, many[] = {0, 1, 2, 3, 4};
    assert_int_equal(n, 12);

    assert_int_equal(attach(&f, 3, many, 1, 0), E_INVALID);
    assert_int_equal(attach(&f, 0, (uint32_t[]){n}, 1, 0), E_INVALID);
    assert_int_equal(attach(&f, 0, (uint32_t[]){0, 1, 0}, 3, 0), E_INVALID);
    assert_int_equal(attach(&f, 0, (uint32_t[]){3, 3}, 2, 0), E_INVALID);
    assert_int_equal(attach(&f, 0, many, 5, 0), E_LIMIT);
    assert_int_equal(attach(&f, 0, many, 2, 2 * BLOCK + 1), E_INVALID);
    assert_int_equal(attach(&f, 0, NULL, 0, 1), E_INVALID);
    assert_int_equal(attach(&f, 0, many, 3, N_TOKENS + N_MORE + 1), E_INVALID); /* not there yet */
    assert_int_equal(attach(&f, 1, (uint32_t[]){0, 3}, 2, BLOCK + 1), E_INVALID);
    struct sampling bad;
    sampling_init(&bad);
    bad.top_p = 2;
    assert_int_equal(engine_slot_attach(f.e, 0, many, 3, 0, &bad, NULL), E_INVALID);

    assert_int_equal(engine_slot_extend(f.e, 3, many, 1, NULL), E_INVALID);
    assert_int_equal(engine_slot_extend(f.e, 0, (uint32_t[]){n}, 1, NULL), E_INVALID);
    assert_int_equal(engine_slot_extend(f.e, 0, (uint32_t[]){1}, 1, NULL), E_INVALID);
    assert_int_equal(engine_slot_extend(f.e, 0, (uint32_t[]){3, 4}, 2, NULL), E_LIMIT);
    assert_int_equal(engine_slot_extend(f.e, 0, NULL, 0, NULL), 0);

    assert_int_equal(engine_slot_truncate(f.e, 3, 0, NULL), E_INVALID);
    assert_int_equal(engine_slot_truncate(f.e, 0, N_TOKENS + 1, NULL), E_INVALID);

    assert_int_equal(engine_block_copy(f.e, n, 3, 0, NULL), E_INVALID);
    assert_int_equal(engine_block_copy(f.e, 0, n, 0, NULL), E_INVALID);
    assert_int_equal(engine_block_copy(f.e, 0, 0, 1, NULL), E_INVALID);
    assert_int_equal(engine_block_copy(f.e, 0, 3, BLOCK + 1, NULL), E_INVALID);
    assert_int_equal(engine_block_copy(f.e, 4, 3, 1, NULL), E_INVALID); /* it holds none */

    /* Going back into a block that somebody shares, and writing there. */
    assert_int_equal(attach(&f, 1, many, 2, 2 * BLOCK), 0);
    assert_int_equal(engine_slot_truncate(f.e, 1, BLOCK, NULL), 0);
    assert_int_equal(run(&f, 1, tokens, 1, NULL), E_INVALID);

    go_on(&f, 0, got);
    assert_same(&f, got, expected);
    free(expected);
    fixture_done(&f);
}

static void an_empty_slot_takes_no_tokens(void **state)
{
    (void)state;
    struct fixture f;
    fixture_init(&f, &llama_shape, &three_slots);
    int32_t one = 1;
    assert_int_equal(engine_slot_n_tokens(f.e, 0), 0); /* nothing is left of the warm-up */
    assert_int_equal(run(&f, 0, &one, 1, NULL), E_INVALID);
    assert_int_equal(attach(&f, 1, (uint32_t[]){0}, 1, 1), E_INVALID);
    assert_int_equal(attach(&f, 0, (uint32_t[]){0}, 1, 0), 0);
    assert_int_equal(run(&f, 0, &one, 1, NULL), 0);
    assert_int_equal(attach(&f, 0, NULL, 0, 0), 0);
    assert_int_equal(run(&f, 0, &one, 1, NULL), E_INVALID);
    fixture_done(&f);
}

/* ---- memory ---- */

static size_t count_lines(const char *path)
{
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return 0;
    size_t n = 0;
    for (int c; (c = fgetc(file)) != EOF;)
        n += c == '\n';
    fclose(file);
    return n;
}

/* A figure of /proc/self/status in KiB; 0 where there is none. */
static size_t status_kib(const char *name)
{
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    size_t kib = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            kib = strtoul(line + strlen(name), NULL, 10);
    if (file != NULL)
        fclose(file);
    return kib;
}

/* Slots that come and go, in all orders of blocks. */
static void churn(struct fixture *f, uint32_t n_rounds)
{
    for (uint32_t round = 0; round < n_rounds; round++) {
        uint32_t slot = round % 3, blocks[4], n = (uint32_t)(rng_u64(1, round, 0) % 4) + 1;
        for (uint32_t i = 0; i < n; i++)
            blocks[i] = (uint32_t)((rng_u64(2, round, 0) + 5 * i) % f->info.n_blocks);
        assert_int_equal(attach(f, slot, blocks, n, 0), 0);
        int32_t some[3] = {1, 2, 3};
        assert_int_equal(run(f, slot, some, 3, NULL), 0);
        if (n < 4 &&
            engine_slot_extend(f->e, slot, (uint32_t[]){(blocks[n - 1] + 5) % 12}, 1, NULL) != 0)
            fail_msg("extend");
        if (round % 2)
            assert_int_equal(attach(f, slot, NULL, 0, 0), 0);
    }
    for (uint32_t slot = 0; slot < 3; slot++)
        assert_int_equal(attach(f, slot, NULL, 0, 0), 0);
}

static void churning_leaves_no_mappings(void **state)
{
    (void)state;
    struct fixture f;
    begin(&f, &three_slots);
    churn(&f, 60);
    size_t n_before = count_lines("/proc/self/maps"), kib_before = status_kib("RssShmem:");
    churn(&f, 600);
    if (n_before > 0) { /* a system that tells */
        assert_true(count_lines("/proc/self/maps") <= n_before + 4);
        assert_true(status_kib("RssShmem:") <= kib_before + 256);
    }
    fixture_done(&f);
}

/* A pool is no more than what is touched of it. */
static void an_unused_pool_is_not_resident(void **state)
{
    (void)state;
    struct fixture f;
    size_t before = status_kib("VmRSS:");
    fixture_init(&f, &llama_shape, &(struct engine_options){.n_slots = 64, .n_ctx = 16384});
    assert_true(f.info.kv_bytes > UINT64_C(1) << 29);
    assert_true(status_kib("VmRSS:") - before < 65536);
    fixture_done(&f);
}

static void shapes_keep_their_bounds(void **state)
{
    (void)state;
    static const uint32_t layers[] = {1, 16, 32, 80, 130, 1024}, slots[] = {1, 2, 16, 64},
                          contexts[] = {1, 64, 256, 4096, 131072, 1 << 24};
    for (size_t i = 0; i < 6; i++)
        for (size_t j = 0; j < 4; j++)
            for (size_t k = 0; k < 6; k++) {
                struct kv_shape s;
                kv_shape_plan(&s, layers[i], slots[j], contexts[k], 0, GGML_TYPE_F16);
                assert_true(s.n_ctx >= contexts[k] && s.n_ctx % s.block_tokens == 0 &&
                            s.n_ctx % KV_PAD == 0 && s.block_tokens % KV_BLOCK_TOKENS_MIN == 0);
                assert_true((uint64_t)s.n_blocks * s.block_tokens >= (uint64_t)slots[j] * s.n_ctx);
                assert_true(s.n_attached_max >= s.n_ctx / s.block_tokens);
                assert_true((s.n_attached_max + (uint64_t)slots[j]) * layers[i] <=
                                KV_MAPPINGS_MAX + slots[j] * layers[i] &&
                            s.n_attached_max * (uint64_t)layers[i] <= KV_MAPPINGS_MAX);
                kv_shape_plan(&s, layers[i], slots[j], contexts[k], 1000, GGML_TYPE_F16);
                assert_int_equal(s.n_blocks, (1000 + s.block_tokens - 1) / s.block_tokens);
            }
    struct kv_shape s;
    kv_shape_plan(&s, 16, 16, 4096, 0, GGML_TYPE_F16);
    assert_int_equal(s.block_tokens, 64);
    assert_int_equal(s.n_attached_max, 1024);
    kv_shape_plan(&s, 80, 16, 8192, 0, GGML_TYPE_F16);
    assert_int_equal(s.block_tokens, 256);
}

/* ---- 8 bits ---- */

static void eight_bits_are_nearly_enough(void **state)
{
    (void)state;
    enum { N = 40 };
    struct fixture f;
    fixture_init(&f, &gemma_shape, &(struct engine_options){.n_ctx = 256, .kv_type = KV_Q8_0});
    double *expected = calloc((size_t)N * f.n_vocab, sizeof(double)), most = 0, sum = 0;
    float *got = calloc((size_t)N * f.n_vocab, sizeof(float));
    make_tokens(5, f.n_vocab, tokens, N);
    reference_logits(&f.tiny, tokens, N, expected);
    assert_int_equal(attach(&f, 0, (uint32_t[]){1}, 1, 0), 0);
    assert_int_equal(run(&f, 0, tokens, 30, got), 0);
    for (uint32_t i = 30; i < N; i++)
        assert_int_equal(run(&f, 0, tokens + i, 1, got + (size_t)i * f.n_vocab), 0);
    for (size_t i = 0; i < (size_t)N * f.n_vocab; i++) {
        double d = fabs((double)got[i] - expected[i]);
        most = d > most ? d : most;
        sum += d * d;
    }
    double rms = sqrt(sum / N / f.n_vocab);
    if (!(most < 0.1 && rms < 0.02 && most > 0.0))
        fail_msg("q8: %g at most, %g rms", most, rms);
    free(expected), free(got);
    fixture_done(&f);
}

static void heads_must_fit_eight_bits(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct model *m;
    struct engine *e;
    struct split split;
    tiny_model_init(&tiny, &llama_shape); /* heads of 16 */
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    assert_int_equal(split_parse("pipeline", 1, m->config.n_layer, NULL, &split, NULL), 0);
    struct engine_options options = {.kv_type = KV_Q8_0};
    assert_int_equal(engine_open(m, &split, 0, NULL, &options, &e, NULL), E_UNSUPPORTED);
    options.kv_type = (enum kv_type)7;
    assert_int_equal(engine_open(m, &split, 0, NULL, &options, &e, NULL), E_INVALID);
    model_close(m);
    tiny_model_done(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sharers_compute_the_same),
        cmocka_unit_test(a_truncated_draft_leaves_no_trace),
        cmocka_unit_test(a_sequence_moves_and_grows),
        cmocka_unit_test(bad_arguments_change_nothing),
        cmocka_unit_test(an_empty_slot_takes_no_tokens),
        cmocka_unit_test(churning_leaves_no_mappings),
        cmocka_unit_test(an_unused_pool_is_not_resident),
        cmocka_unit_test(shapes_keep_their_bounds),
        cmocka_unit_test(eight_bits_are_nearly_enough),
        cmocka_unit_test(heads_must_fit_eight_bits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
