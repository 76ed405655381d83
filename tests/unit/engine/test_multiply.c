/* Products with packed weights: against plain sums over what the numbers were rounded to, and with
 * Q4_0 against ggml's own packed kernels, to the last bit. */
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

static const enum ggml_type types[] = {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q8_0};

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

static struct subject make_subject(enum ggml_type type, int64_t n_cols, int64_t n_outputs)
{
    size_t n = (size_t)(n_cols * n_outputs), row_bytes = ggml_row_size(type, n_cols);
    size_t group_bytes = multiply_bytes(type, n_cols, MULTIPLY_GROUP);
    struct subject s = {type,
                        n_cols,
                        n_outputs,
                        malloc(row_bytes * (size_t)n_outputs),
                        malloc(multiply_bytes(type, n_cols, n_outputs)),
                        malloc(n * sizeof(float))};
    for (size_t i = 0; i < n; i++)
        s.weights[i] = draw((uint64_t)type, i);
    ggml_quantize_chunk(type, s.weights, s.file, 0, n_outputs, n_cols, NULL);
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

/* The largest difference from sums in double, of activations that were rounded as ggml does it. */
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
            double sum = 0;
            for (int64_t k = 0; k < s->n_cols; k++)
                sum += (double)row[k] * s->weights[i * s->n_cols + k];
            worst = fmax(worst, fabs(sum - got[r * s->n_outputs + i]));
        }
    }
    free(rounded);
    free(row);
    return worst;
}

static void products_are_right(void **state)
{
    (void)state;
    static const struct {
        int64_t n_cols, n_outputs;
    } shapes[] = {{32, 1}, {64, 16}, {96, 37}, {576, 100}};
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++)
        for (size_t k = 0; k < sizeof(shapes) / sizeof(shapes[0]); k++) {
            struct subject s = make_subject(types[t], shapes[k].n_cols, shapes[k].n_outputs);
            float *x = malloc((size_t)(s.n_cols * N_ROWS_MAX) * sizeof(float));
            float *got = malloc((size_t)(s.n_outputs * N_ROWS_MAX) * sizeof(float));
            make_rows(x, s.n_cols, N_ROWS_MAX);
            for (int n_rows = 1; n_rows <= N_ROWS_MAX; n_rows++) {
                run_packed(&s, x, n_rows, n_rows % N_THREADS_MAX + 1, got);
                double worst = compare(&s, x, n_rows, got);
                if (!(worst < 1e-4))
                    fail_msg("%s, %lld x %lld, %d rows: differs by %g", ggml_type_name(s.type),
                             (long long)s.n_outputs, (long long)s.n_cols, n_rows, worst);
            }
            free(x);
            free(got);
            free_subject(&s);
        }
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
    struct subject s = make_subject(GGML_TYPE_Q4_0, 576, 192);
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
        cmocka_unit_test(same_bits_as_ggml),
    };
    if (!multiply_can(GGML_TYPE_Q4_0, 32)) {
        printf("skipped: this processor has no AVX-512 VNNI\n");
        return SKIPPED;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
