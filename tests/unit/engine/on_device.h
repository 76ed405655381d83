/*
 * Tests of an engine on a device, alone and beside ranks on processors: the logits of the plain
 * loops. test_gpu.c runs them on a GPU, test_device_paths.c on the processors in the role of one.
 */
#ifndef TEST_ON_DEVICE_H
#define TEST_ON_DEVICE_H

#include "company.h"
#include "engine/devices.h"
#include "engine/weights.h"
#include "fixture.h"

static char gpu[ENGINE_DEVICE_BYTES];
static const char *gpu_shown = gpu; /* what an engine says that it computes on */

enum { LONG = 300, N_CTX = 512 };
static const double tolerance = 0.02; /* as on the processors */

/* ---- splits ---- */

static void check_companies(const struct tiny_shape *shape, uint64_t seed, uint32_t n)
{
    const struct company companies[] = {
        {.split = "pipeline", .n_ranks = 1, .device = {gpu}},
        {.split = "pipeline", .n_ranks = 2, .device = {gpu, NULL}},
        {.split = "pipeline", .n_ranks = 3, .device = {NULL, gpu, gpu}},
        {.split = "tensor", .n_ranks = 2, .device = {gpu, NULL}},
        {.split = "tensor", .n_ranks = 2, .device = {gpu, gpu}},
        {.split = "2x2", .n_ranks = 4, .device = {NULL, gpu, gpu, NULL}},
    };
    check_shape(shape, seed, n, companies, sizeof(companies) / sizeof(companies[0]), tolerance);
}

static void llama_in_any_company(void **state)
{
    (void)state;
    check_companies(&llama_shape, 1, 2);
}

/* Its one KV head leaves a rank of a tensor split without any. */
static void gemma_in_any_company(void **state)
{
    (void)state;
    check_companies(&gemma_shape, 100, 1);
}

/* ---- blocks ---- */

/* Logits of a long sequence in a slot that has these blocks, in steps of 100 tokens and of one. */
static float *run_in_blocks(const uint32_t *blocks, uint32_t n_blocks, enum kv_type kv_type,
                            const char *device)
{
    struct fixture f;
    struct engine_options options = {
        .n_slots = 2, .n_ctx = N_CTX, .n_kv_tokens = 1024, .kv_type = kv_type};
    int32_t tokens[LONG];
    float *logits = calloc((size_t)LONG * gemma_shape.n_vocab, sizeof(float));
    snprintf(options.device, sizeof(options.device), "%s", device);
    fixture_init(&f, &gemma_shape, &options);
    assert_string_equal(f.info.device, device == gpu ? gpu_shown : device);
    assert_int_equal(f.info.block_tokens, 64);
    make_tokens(5, f.n_vocab, tokens, LONG);
    assert_int_equal(attach(&f, 1, blocks, n_blocks, 0), 0);
    for (uint32_t done = 0, n; done < LONG; done += n) {
        n = done < LONG - 4 ? (LONG - 4 - done < 100 ? LONG - 4 - done : 100) : 1;
        assert_int_equal(run(&f, 1, tokens + done, n, logits + (size_t)done * f.n_vocab), 0);
    }
    fixture_done(&f);
    return logits;
}

static void check_blocks(enum kv_type kv_type, double near)
{
    static const uint32_t in_order[] = {3, 4, 5, 6, 7}, backwards[] = {7, 5, 3, 4, 0};
    float *expected = run_in_blocks(in_order, 5, kv_type, "cpu");
    float *direct = run_in_blocks(in_order, 5, kv_type, gpu);
    float *gathered = run_in_blocks(backwards, 5, kv_type, gpu);
    size_t n = (size_t)LONG * gemma_shape.n_vocab;
    assert_memory_equal(direct, gathered, n * sizeof(float));
    double most = 0;
    for (size_t i = 0; i < n; i++)
        most = fmax(most, fabs((double)direct[i] - (double)expected[i]));
    print_message("largest difference from the processors: %g\n", most);
    assert_true(most < near);
    free(expected), free(direct), free(gathered);
}

/* Cells are read in place where blocks follow each other, else put together: the same bits. */
static void blocks_anywhere(void **state)
{
    (void)state;
    check_blocks(KV_F16, tolerance);
}

static void cells_of_eight_bits(void **state)
{
    (void)state;
    check_blocks(KV_Q8_0, 0.1);
}

/* ---- weights ---- */

static uint64_t sum_logits(struct fixture *f, const int32_t *tokens, uint32_t n)
{
    static const uint32_t block[] = {0};
    float *logits = calloc((size_t)n * f->n_vocab, sizeof(float));
    uint64_t sum = 0;
    assert_int_equal(attach(f, 0, block, 1, 0), 0);
    assert_int_equal(run(f, 0, tokens, n, logits), 0);
    for (size_t i = 0; i < (size_t)n * f->n_vocab; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof(bits));
        sum = sum * 31 + bits;
    }
    free(logits);
    return sum;
}

static void reopen(struct fixture *f, const char *device, struct engine_options *options)
{
    struct split split;
    struct error err = {0};
    snprintf(options->device, sizeof(options->device), "%s", device);
    options->kept = engine_close_keeping(f->e);
    f->number = 0;
    assert_int_equal(split_parse("pipeline", 1, llama_shape.n_layer, NULL, &split, &err), 0);
    if (engine_open(f->model, &split, 0, NULL, options, &f->e, &err) != 0)
        fail_msg("%s", err.message);
    engine_get_info(f->e, &f->info);
}

/* On the device they outlive the engine; on another device they are of no use. */
static void weights_are_kept(void **state)
{
    (void)state;
    struct fixture f;
    struct engine_options options = {.n_ctx = 64};
    int32_t tokens[20];
    make_tokens(9, llama_shape.n_vocab, tokens, 20);
    snprintf(options.device, sizeof(options.device), "%s", gpu);
    fixture_init(&f, &llama_shape, &options);
    assert_int_equal(f.info.weight_bytes_kept, 0);
    /* All but the embedding table. */
    uint64_t table = (uint64_t)llama_shape.n_vocab * llama_shape.n_embd * sizeof(float);
    assert_int_equal(f.info.weight_bytes_mapped, table);
    assert_int_equal(f.info.weight_bytes_device + table, f.info.weight_bytes);
    uint64_t first = sum_logits(&f, tokens, 20);

    reopen(&f, gpu, &options);
    assert_int_equal(f.info.weight_bytes_kept, f.info.weight_bytes);
    assert_int_equal(sum_logits(&f, tokens, 20), first);

    reopen(&f, "cpu", &options);
    assert_true(f.info.weight_bytes_kept <= table);
    assert_int_equal(f.info.weight_bytes_device, 0);
    sum_logits(&f, tokens, 20);

    reopen(&f, gpu, &options);
    assert_true(f.info.weight_bytes_kept <= table);
    assert_int_equal(sum_logits(&f, tokens, 20), first);
    fixture_done(&f);
}

/* ---- ends ---- */

static void steps_can_be_aborted(void **state)
{
    (void)state;
    struct fixture f;
    struct engine_options options = {.n_ctx = 64};
    static const uint32_t block[] = {0};
    const int32_t token = 1;
    snprintf(options.device, sizeof(options.device), "%s", gpu);
    fixture_init(&f, &llama_shape, &options);
    assert_int_equal(attach(&f, 0, block, 1, 0), 0);
    assert_int_equal(run(&f, 0, &token, 1, NULL), 0);
    engine_abort(f.e);
    assert_int_equal(run(&f, 0, &token, 1, NULL), E_CANCELLED);
    fixture_done(&f);
}

static int test_on_device(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_in_any_company), cmocka_unit_test(gemma_in_any_company),
        cmocka_unit_test(blocks_anywhere),      cmocka_unit_test(cells_of_eight_bits),
        cmocka_unit_test(weights_are_kept),     cmocka_unit_test(steps_can_be_aborted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#endif
