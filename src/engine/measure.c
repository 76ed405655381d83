#include "engine/measure.h"

#include "base/clock.h"
#include "engine/compute.h"
#include "engine/multiply.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    WIDTH = 4096,
    MATRIX_BYTES = WIDTH / 32 * 18 * WIDTH, /* Q4_0 */
    N_ROWS = 128,
    N_MATRICES_MIN = 8, /* 75 MB */
    N_MATRICES_MAX = 28,
    N_WIDE_ON_DEVICE = 4,
    PASSES_MAX = 64,
    MEASURE_NS = 350000000, /* for each figure, after one pass that does not count */
};

struct bench {
    struct compute compute;
    ggml_backend_t computes; /* of these: the device, if there is one */
    struct ggml_context *context;
    ggml_backend_buffer_t weights, inputs;
    ggml_gallocr_t allocator;
    struct ggml_tensor *matrix[N_MATRICES_MAX], *row, *rows;
    int n_matrices;
    bool is_packed; /* engine/multiply.h */
    multiply_tickets tickets[N_MATRICES_MAX];
};

static int open_bench(struct bench *b, const char *device, uint32_t n_threads, struct error *err)
{
    ggml_backend_dev_t found;
    int rc = compute_find(device, &found, err);
    if (rc == 0)
        rc = compute_open(&b->compute, found, n_threads, err);
    if (rc != 0)
        return rc;
    b->computes = found != NULL ? b->compute.gpu : b->compute.cpu;
    b->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(b->computes));
    return b->allocator != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
}

/* Enough weights that no cache keeps them from one pass to the next. */
static int count_matrices(const struct bench *b)
{
    long cache = 0;
    if (b->compute.gpu != NULL)
        return N_MATRICES_MAX;
#ifdef _SC_LEVEL3_CACHE_SIZE
    cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    long n = cache > 0 ? 3 * cache / MATRIX_BYTES : N_MATRICES_MIN;
    return n < N_MATRICES_MIN ? N_MATRICES_MIN : n > N_MATRICES_MAX ? N_MATRICES_MAX : (int)n;
}

/* What is multiplied fastest by, as engine/weights.c chooses it for a model: our layout, or one of
 * ggml's. */
static ggml_backend_buffer_type_t find_layout(struct bench *b)
{
    b->is_packed = b->compute.gpu == NULL && multiply_can(GGML_TYPE_Q4_0, WIDTH);
    if (b->is_packed)
        return ggml_backend_get_default_buffer_type(b->computes);
    ggml_backend_dev_t device = ggml_backend_get_device(b->computes);
    ggml_backend_dev_get_extra_bufts_t get_types =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *type = get_types != NULL ? get_types(device) : NULL;
    struct ggml_tensor *product = ggml_mul_mat(b->context, b->matrix[0], b->rows);
    for (; type != NULL && *type != NULL; type++) {
        if (compute_can(device, *type, product, b->matrix[0]))
            return *type;
    }
    return ggml_backend_get_default_buffer_type(b->computes);
}

static int fill_weights(struct bench *b, struct error *err)
{
    uint8_t *blocks = malloc(MATRIX_BYTES);
    if (blocks == NULL)
        return error_set(err, E_NOMEM, "no memory for weights to measure with");
    for (size_t i = 0; i < MATRIX_BYTES; i += 18) {
        blocks[i] = 0; /* 2^-8 as f16 */
        blocks[i + 1] = 0x1c;
        for (size_t k = 2; k < 18; k++)
            blocks[i + k] = (uint8_t)((i + k) * 2654435761u >> 13);
    }
    size_t group_bytes = multiply_bytes(GGML_TYPE_Q4_0, WIDTH, MULTIPLY_GROUP);
    for (int i = 0; i < b->n_matrices && !b->is_packed; i++)
        ggml_backend_tensor_set(b->matrix[i], blocks, 0, MATRIX_BYTES);
    for (int i = 0; i < b->n_matrices && b->is_packed; i++)
        for (size_t at = 0; at < MATRIX_BYTES; at += group_bytes) /* as many bytes as in a file */
            multiply_pack(GGML_TYPE_Q4_0, WIDTH, blocks + at, MULTIPLY_GROUP,
                          (char *)b->matrix[i]->data + at);
    free(blocks);
    return 0;
}

static int fill_inputs(struct bench *b, struct error *err)
{
    float *x = malloc((size_t)WIDTH * N_ROWS * sizeof(*x));
    if (x == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    for (int i = 0; i < WIDTH * N_ROWS; i++)
        x[i] = (float)(i % 17) / 17 - 0.5f;
    ggml_backend_tensor_set(b->rows, x, 0, ggml_nbytes(b->rows));
    ggml_backend_tensor_set(b->row, x, 0, ggml_nbytes(b->row));
    free(x);
    return 0;
}

static int make_tensors(struct bench *b, struct error *err)
{
    struct ggml_init_params params = {.mem_size = (N_MATRICES_MAX + 8) * ggml_tensor_overhead(),
                                      .no_alloc = true};
    b->context = ggml_init(params);
    if (b->context == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    b->n_matrices = count_matrices(b);
    for (int i = 0; i < b->n_matrices; i++)
        b->matrix[i] = ggml_new_tensor_2d(b->context, GGML_TYPE_Q4_0, WIDTH, WIDTH);
    b->row = ggml_new_tensor_2d(b->context, GGML_TYPE_F32, WIDTH, 1);
    b->rows = ggml_new_tensor_2d(b->context, GGML_TYPE_F32, WIDTH, N_ROWS);

    ggml_backend_buffer_type_t layout = find_layout(b);
    ggml_backend_buffer_type_t plain = ggml_backend_get_default_buffer_type(b->computes);
    size_t bytes = GGML_PAD(ggml_backend_buft_get_alloc_size(layout, b->matrix[0]),
                            ggml_backend_buft_get_alignment(layout));
    b->weights = ggml_backend_buft_alloc_buffer(layout, bytes * (size_t)b->n_matrices);
    size_t rows_bytes = GGML_PAD(ggml_nbytes(b->rows), ggml_backend_buft_get_alignment(plain));
    b->inputs = ggml_backend_buft_alloc_buffer(plain, rows_bytes + ggml_nbytes(b->row));
    if (b->weights == NULL || b->inputs == NULL)
        return error_set(err, E_NOMEM, "no memory for %d MB of weights to measure with",
                         b->n_matrices * (MATRIX_BYTES / 1000000));
    ggml_backend_buffer_set_usage(b->weights, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    char *at = ggml_backend_buffer_get_base(b->weights);
    for (int i = 0; i < b->n_matrices; i++) {
        ggml_backend_tensor_alloc(b->weights, b->matrix[i], at + (size_t)i * bytes);
        if (b->is_packed)
            multiply_mark(b->matrix[i]);
    }
    at = ggml_backend_buffer_get_base(b->inputs);
    ggml_backend_tensor_alloc(b->inputs, b->rows, at);
    ggml_backend_tensor_alloc(b->inputs, b->row, at + rows_bytes);
    int rc = fill_inputs(b, err);
    return rc == 0 ? fill_weights(b, err) : rc;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static struct ggml_tensor *build_product(struct bench *b, struct ggml_context *context, int i,
                                         struct ggml_tensor *input)
{
    return b->is_packed ? multiply_build(context, b->matrix[i], multiply_quantize(context, input),
                                         &b->tickets[i])
                        : ggml_mul_mat(context, b->matrix[i], input);
}

/* Multiplies input by the first n matrices, again and again. Gives the seconds of a pass: the first
 * quartile, since others who use the computer only ever make it longer. */
static int time_passes(struct bench *b, struct ggml_tensor *input, int n, double *ret_s,
                       struct error *err)
{
    struct ggml_init_params params = {.mem_size =
                                          (2 * N_MATRICES_MAX + 8) * ggml_tensor_overhead() +
                                          ggml_graph_overhead_custom(2 * N_MATRICES_MAX + 8, false),
                                      .no_alloc = true};
    struct ggml_context *context = ggml_init(params);
    double pass_s[PASSES_MAX];
    int n_passes = 0;
    if (context == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    struct ggml_cgraph *graph = ggml_new_graph_custom(context, 2 * N_MATRICES_MAX + 8, false);
    for (int i = 0; i < n; i++)
        ggml_build_forward_expand(graph, build_product(b, context, i, input));
    bool works = ggml_gallocr_alloc_graph(b->allocator, graph) &&
                 ggml_backend_graph_compute(b->computes, graph) == GGML_STATUS_SUCCESS;
    uint64_t begin = clock_now_ns(), now = begin;
    while (works && n_passes < PASSES_MAX && (n_passes == 0 || now - begin < MEASURE_NS)) {
        uint64_t start = now;
        works = ggml_backend_graph_compute(b->computes, graph) == GGML_STATUS_SUCCESS;
        now = clock_now_ns();
        pass_s[n_passes++] = (double)(now - start) / 1e9;
    }
    ggml_free(context);
    if (!works)
        return error_set(err, E_NOMEM, "no memory to measure with");
    qsort(pass_s, (size_t)n_passes, sizeof(*pass_s), compare_doubles);
    *ret_s = pass_s[n_passes / 4];
    return 0;
}

static void close_bench(struct bench *b)
{
    if (b->allocator != NULL)
        ggml_gallocr_free(b->allocator);
    ggml_backend_buffer_free(b->weights);
    ggml_backend_buffer_free(b->inputs);
    if (b->context != NULL)
        ggml_free(b->context);
    compute_close(&b->compute);
}

int measure_speed(const char *device, uint32_t n_threads, struct measured *ret, struct error *err)
{
    struct bench b = {0};
    double decode_s = 0, prefill_s = 0;
    if (n_threads == 0 || n_threads > 512)
        return error_set(err, E_INVALID, "%u threads: from 1 to 512 are possible", n_threads);
    int rc = open_bench(&b, device, n_threads, err);
    if (rc == 0)
        rc = make_tensors(&b, err);
    if (rc == 0)
        rc = time_passes(&b, b.row, b.n_matrices, &decode_s, err);
    /* A device that is fast is kept busy for longer than it takes to start. */
    int n_wide = b.compute.gpu != NULL ? N_WIDE_ON_DEVICE : 1;
    if (rc == 0)
        rc = time_passes(&b, b.rows, n_wide, &prefill_s, err);
    if (rc == 0) {
        ret->memory_gb_s = (double)b.n_matrices * MATRIX_BYTES / decode_s / 1e9;
        ret->gflops = 2.0 * n_wide * WIDTH * WIDTH * N_ROWS / prefill_s / 1e9;
    }
    close_bench(&b);
    return rc;
}
