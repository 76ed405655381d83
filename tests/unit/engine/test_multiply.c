/* Products with packed weights: against plain sums over what the numbers were rounded to, against
 * ggml's products, and with Q4_0 against its packed kernels, to the last bit. */
#include "engine/multiply.h"

#include "base/rng.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SKIPPED = 77, N_ROWS_MAX = 19 };

/* The thread sanitizer does not see how ggml's threads wait for each other. */
#if defined(__has_feature)
enum { N_THREADS_MAX = __has_feature(thread_sanitizer) ? 1 : 3 };
#else
enum { N_THREADS_MAX = 3 };
#endif

static const struct {
    enum ggml_type type;
    int block;     /* columns */
    int f16_at[2]; /* where a block of the file has its scale and its min; -1: no min */
} types[] = {
    {GGML_TYPE_Q4_0, 32, {0, -1}}, {GGML_TYPE_Q4_1, 32, {0, 2}},     {GGML_TYPE_Q5_0, 32, {0, -1}},
    {GGML_TYPE_Q5_1, 32, {0, 2}},  {GGML_TYPE_Q8_0, 32, {0, -1}},    {GGML_TYPE_Q4_K, 256, {0, 2}},
    {GGML_TYPE_Q5_K, 256, {0, 2}}, {GGML_TYPE_Q6_K, 256, {208, -1}},
};

enum { N_TYPES = sizeof(types) / sizeof(types[0]) };

struct subject {
    enum ggml_type type;
    int64_t n_cols, n_outputs;
    uint8_t *file; /* rows as a file has them */
    uint8_t *packed;
    float *weights; /* what they stand for */
};

static float draw(uint64_t seed, uint64_t i)
{
    return (float)((int64_t)(rng_u64(seed, i, 0) % 20001) - 10000) * 1e-4f;
}

/* Random bits, so that every value of every field occurs; only what is an f16 is a number. */
static void make_file(size_t t, uint8_t *ret, size_t n_blocks)
{
    size_t block_bytes = ggml_type_size(types[t].type);
    for (size_t i = 0; i < n_blocks * block_bytes; i++)
        ret[i] = (uint8_t)rng_u64(t, i, 1);
    for (size_t i = 0; i < n_blocks * 2; i++) {
        int at = types[t].f16_at[i % 2];
        ggml_fp16_t number = ggml_fp32_to_fp16(draw(t, i));
        if (at >= 0)
            memcpy(ret + i / 2 * block_bytes + (size_t)at, &number, sizeof(number));
    }
}

static struct subject make_subject(size_t t, int64_t n_cols, int64_t n_outputs)
{
    enum ggml_type type = types[t].type;
    size_t n = (size_t)(n_cols * n_outputs), row_bytes = ggml_row_size(type, n_cols);
    size_t group_bytes = multiply_bytes(type, n_cols, MULTIPLY_GROUP);
    struct subject s = {type,
                        n_cols,
                        n_outputs,
                        malloc(row_bytes * (size_t)n_outputs),
                        malloc(multiply_bytes(type, n_cols, n_outputs)),
                        malloc(n * sizeof(float))};
    make_file(t, s.file, n / (size_t)types[t].block);
    ggml_get_type_traits(type)->to_float(s.file, s.weights, (int64_t)n);
    for (int64_t row = 0; row < n_outputs; row += MULTIPLY_GROUP)
        multiply_pack(type, n_cols, s.file + (size_t)row * row_bytes,
                      n_outputs - row < MULTIPLY_GROUP ? n_outputs - row : MULTIPLY_GROUP,
                      s.packed + (size_t)(row / MULTIPLY_GROUP) * group_bytes);
    return s;
}

static void free_subject(struct subject *s)
{
    free(s->file);
    free(s->packed);
    free(s->weights);
}

static void make_rows(float *x, int64_t n_cols, int64_t n_rows)
{
    for (int64_t i = 0; i < n_cols * n_rows; i++)
        x[i] = draw(99, (uint64_t)i) * (i / n_cols == 1 ? 0.0f : 1.0f); /* a row of zeros, too */
}

/* Runs a graph of one product: weight is packed, or in a buffer of ggml's. */
static void run(struct ggml_tensor *weight, const float *x, int64_t n_rows, int n_threads,
                float *ret)
{
    struct ggml_init_params params = {
        .mem_size = 16 * ggml_tensor_overhead() + ggml_graph_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    ggml_backend_t backend = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(backend, n_threads);
    struct ggml_tensor *in = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, weight->ne[0], n_rows);
    multiply_tickets tickets = 0;
    ggml_set_input(in);
    struct ggml_tensor *out =
        multiply_is_packed(weight)
            ? multiply_build(ctx, weight, multiply_quantize(ctx, in), &tickets)
            : ggml_mul_mat(ctx, weight, in);
    ggml_set_output(out);
    struct ggml_cgraph *graph = ggml_new_graph(ctx);
    ggml_build_forward_expand(graph, out);
    ggml_gallocr_t allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(backend));
    assert_true(ggml_gallocr_alloc_graph(allocator, graph));
    for (int run = 0; run < 3; run++) {            /* the tickets go on from run to run */
        memset(out->data, 0xff, ggml_nbytes(out)); /* may lie where the input is */
        memcpy(in->data, x, ggml_nbytes(in));
        assert_int_equal(ggml_backend_graph_compute(backend, graph), GGML_STATUS_SUCCESS);
    }
    memcpy(ret, out->data, ggml_nbytes(out));
    ggml_gallocr_free(allocator);
    ggml_backend_free(backend);
    ggml_free(ctx);
}

static struct ggml_context *new_weight(const struct subject *s, struct ggml_tensor **ret)
{
    struct ggml_init_params params = {.mem_size = 2 * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    *ret = ggml_new_tensor_2d(ctx, s->type, s->n_cols, s->n_outputs);
    return ctx;
}

static void run_packed(const struct subject *s, const float *x, int64_t n_rows, int n_threads,
                       float *ret)
{
    struct ggml_tensor *weight;
    struct ggml_context *ctx = new_weight(s, &weight);
    weight->data = s->packed;
    multiply_mark(weight);
    run(weight, x, n_rows, n_threads, ret);
    ggml_free(ctx);
}

static void run_ggml(const struct subject *s, const float *x, int64_t n_rows, float *ret)
{
    struct ggml_tensor *weight;
    struct ggml_context *ctx = new_weight(s, &weight);
    weight->data = s->file;
    run(weight, x, n_rows, 1, ret);
    ggml_free(ctx);
}

/* The largest difference from sums in double, of activations that were rounded as ggml does it, for
 * the lengths of the two vectors whose product it is. */
static double compare(const struct subject *s, const float *x, int64_t n_rows, const float *got)
{
    const struct ggml_type_traits_cpu *cpu = ggml_get_type_traits_cpu(GGML_TYPE_Q8_0);
    char *rounded = malloc(ggml_row_size(GGML_TYPE_Q8_0, s->n_cols));
    float *row = malloc((size_t)s->n_cols * sizeof(float));
    double worst = 0;
    for (int64_t r = 0; r < n_rows; r++) {
        cpu->from_float(x + r * s->n_cols, rounded, s->n_cols);
        ggml_get_type_traits(GGML_TYPE_Q8_0)->to_float(rounded, row, s->n_cols);
        for (int64_t i = 0; i < s->n_outputs; i++) {
            double sum = 0, a = 0, b = 0;
            for (int64_t k = 0; k < s->n_cols; k++) {
                double weight = s->weights[i * s->n_cols + k];
                sum += row[k] * weight;
                a += (double)row[k] * row[k];
                b += weight * weight;
            }
            double off = fabs(sum - got[r * s->n_outputs + i]);
            worst = fmax(worst, off > 0 ? off / sqrt(a * b) : 0);
        }
    }
    free(rounded);
    free(row);
    return worst;
}

/* Of two results, to the length of the first. */
static double find_distance(const float *a, const float *b, int64_t n)
{
    double apart = 0, length = 0;
    for (int64_t i = 0; i < n; i++) {
        apart += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        length += (double)a[i] * a[i];
    }
    return sqrt(apart / length);
}

/* However many rows and threads there are. */
static void check_subject(const struct subject *s)
{
    size_t n_out = (size_t)(s->n_outputs * N_ROWS_MAX);
    float *x = malloc((size_t)(s->n_cols * N_ROWS_MAX) * sizeof(float));
    float *all = malloc(n_out * sizeof(float)), *got = malloc(n_out * sizeof(float));
    make_rows(x, s->n_cols, N_ROWS_MAX);
    run_packed(s, x, N_ROWS_MAX, 1, all);
    double worst = compare(s, x, N_ROWS_MAX, all);
    if (!(worst < 1e-6))
        fail_msg("%s, %lld x %lld: differs by %g", ggml_type_name(s->type), (long long)s->n_outputs,
                 (long long)s->n_cols, worst);
    for (int n_rows = 1; n_rows <= N_ROWS_MAX; n_rows++) {
        /* seldom: threads wait long for each other on a busy machine */
        int n_threads = n_rows % 5 == 3 ? n_rows % N_THREADS_MAX + 1 : 1;
        run_packed(s, x, n_rows, n_threads, got);
        assert_memory_equal(all, got, sizeof(float) * (size_t)(s->n_outputs * n_rows));
    }
    run_ggml(s, x, N_ROWS_MAX, got);
    worst = find_distance(got, all, (int64_t)n_out); /* K types round activations by 256 there */
    if (!(worst < 0.015))
        fail_msg("%s: differs from ggml's by %g", ggml_type_name(s->type), worst);
    free(x);
    free(all);
    free(got);
}

static void products_are_right(void **state)
{
    (void)state;
    static const struct {
        int64_t n_blocks, n_outputs;
    } shapes[] = {{1, 1}, {2, 16}, {3, 37}, {18, 100}};
    for (size_t t = 0; t < N_TYPES; t++)
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            if (types[t].block * shapes[k].n_blocks > 1024)
                continue;
            struct subject s =
                make_subject(t, types[t].block * shapes[k].n_blocks, shapes[k].n_outputs);
            check_subject(&s);
            free_subject(&s);
        }
}

/* A row with numbers that are none has any result, and the others have theirs. */
static void rows_keep_to_themselves(void **state)
{
    (void)state;
    enum { N_COLS = 256, N_OUTPUTS = 20, N_ROWS = 8 };
    static float x[N_COLS * N_ROWS], good[N_OUTPUTS * N_ROWS], bad[N_OUTPUTS * N_ROWS];
    for (size_t t = 0; t < N_TYPES; t++) {
        struct subject s = make_subject(t, N_COLS, N_OUTPUTS);
        make_rows(x, N_COLS, N_ROWS);
        run_packed(&s, x, N_ROWS, 1, good);
        for (size_t i = 0; i < N_COLS; i++) {
            x[2 * N_COLS + i] = i % 3 == 0 ? NAN : 1.0f;
            x[3 * N_COLS + i] = i % 3 == 0 ? INFINITY : -1.0f;
            x[4 * N_COLS + i] = i % 3 == 0 ? -INFINITY : NAN;
            x[5 * N_COLS + i] = i % 2 == 0 ? 3e38f : -3e38f;
            x[6 * N_COLS + i] = 1e-42f;
        }
        run_packed(&s, x, N_ROWS, 1, bad);
        assert_memory_equal(good, bad, sizeof(float) * 2 * N_OUTPUTS);
        assert_memory_equal(good + 7 * N_OUTPUTS, bad + 7 * N_OUTPUTS, sizeof(float) * N_OUTPUTS);
        free_subject(&s);
    }
}

static void types_need_whole_blocks(void **state)
{
    (void)state;
    for (size_t t = 0; t < N_TYPES; t++) {
        assert_true(multiply_can(types[t].type, types[t].block * 5));
        assert_false(multiply_can(types[t].type, types[t].block * 5 / 2));
    }
    assert_false(multiply_can(GGML_TYPE_Q4_K, 32 * 9));
    assert_false(multiply_can(GGML_TYPE_Q3_K, 256));
    assert_false(multiply_can(GGML_TYPE_F16, 256));
}

static ggml_backend_buffer_type_t find_packed_type(void)
{
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    ggml_backend_dev_get_extra_bufts_t get_types =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    for (ggml_backend_buffer_type_t *t = get_types != NULL ? get_types(device) : NULL;
         t != NULL && *t != NULL; t++)
        if (strcmp(ggml_backend_buft_name(*t), "CPU_REPACK") == 0)
            return *t;
    return NULL;
}

static void same_bits_as_ggml(void **state)
{
    (void)state;
    ggml_backend_buffer_type_t type = find_packed_type();
    if (type == NULL)
        skip();
    struct subject s = make_subject(0, 576, 192);
    struct ggml_tensor *weight;
    struct ggml_context *ctx = new_weight(&s, &weight);
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors_from_buft(ctx, type);
    assert_non_null(buffer);
    ggml_backend_tensor_set(weight, s.file, 0, ggml_nbytes(weight));
    static float x[576 * N_ROWS_MAX], theirs[192 * N_ROWS_MAX], ours[192 * N_ROWS_MAX];
    make_rows(x, 576, N_ROWS_MAX);
    for (int n_rows = 1; n_rows <= N_ROWS_MAX; n_rows++) {
        run(weight, x, n_rows, 1, theirs);
        run_packed(&s, x, n_rows, 1, ours);
        assert_memory_equal(theirs, ours, sizeof(float) * 192 * (size_t)n_rows);
    }
    ggml_backend_buffer_free(buffer);
    ggml_free(ctx);
    free_subject(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_are_right),
        cmocka_unit_test(rows_keep_to_themselves),
        cmocka_unit_test(types_need_whole_blocks),
        cmocka_unit_test(same_bits_as_ggml),
    };
    if (!multiply_can(GGML_TYPE_Q4_0, 32)) {
        printf("skipped: this processor has no AVX-512 VNNI\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
