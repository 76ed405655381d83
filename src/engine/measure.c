#include "engine/measure.h"

#include "base/clock.h"
#include "base/log.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    WIDTH = 4096,
    MATRIX_BYTES = WIDTH / 32 * 18 * WIDTH, /* Q4_0 */
    N_ROWS = 128,
    N_MATRICES_MIN = 8, /* 75 MB */
    N_MATRICES_MAX = 28,
    PASSES_MAX = 64,
    MEASURE_NS = 350000000, /* for each figure, after one pass that does not count */
};

struct bench {
    ggml_backend_t backend;
    ggml_threadpool_t threadpool;
    struct ggml_context *context;
    ggml_backend_buffer_t weights, inputs;
    ggml_gallocr_t allocator;
    struct ggml_tensor *matrix[N_MATRICES_MAX], *row, *rows;
    int n_matrices;
};

/* ggml says a line for each matrix; only what goes wrong is of interest. */
static void forward_log(enum ggml_log_level level, const char *text, void *arg)
{
    (void)arg;
    if (level == GGML_LOG_LEVEL_ERROR || level == GGML_LOG_LEVEL_WARN)
        log_warn("ggml", "%s", text);
}

static int open_backend(struct bench *b, int n_threads, struct error *err)
{
    b->backend = ggml_backend_cpu_init();
    if (b->backend == NULL)
        return error_set(err, E_NOMEM, "ggml's CPU back end does not start");
    if (n_threads > 1) {
        struct ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
        b->threadpool = ggml_threadpool_new(&params);
        if (b->threadpool == NULL)
            return error_set(err, E_NOMEM, "cannot start %d compute threads", n_threads);
        ggml_backend_cpu_set_threadpool(b->backend, b->threadpool);
    }
    ggml_backend_cpu_set_n_threads(b->backend, n_threads);
    b->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(b->backend));
    return b->allocator != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
}

/* Enough weights that no cache keeps them from one pass to the next. */
static int count_matrices(void)
{
    long cache = 0;
#ifdef _SC_LEVEL3_CACHE_SIZE
    cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
    long n = cache > 0 ? 3 * cache / MATRIX_BYTES : N_MATRICES_MIN;
    return n < N_MATRICES_MIN ? N_MATRICES_MIN : n > N_MATRICES_MAX ? N_MATRICES_MAX : (int)n;
}

/* The layout that ggml multiplies fastest by, as engine/weights.c chooses it for a model. */
static ggml_backend_buffer_type_t find_layout(struct bench *b)
{
    ggml_backend_dev_t device = ggml_backend_get_device(b->backend);
    ggml_backend_dev_get_extra_bufts_t get_types =
        (ggml_backend_dev_get_extra_bufts_t)ggml_backend_reg_get_proc_address(
            ggml_backend_dev_backend_reg(device), "ggml_backend_dev_get_extra_bufts");
    ggml_backend_buffer_type_t *type = get_types != NULL ? get_types(device) : NULL;
    struct ggml_tensor *product = ggml_mul_mat(b->context, b->matrix[0], b->rows);
    for (; type != NULL && *type != NULL; type++) {
        ggml_backend_buffer_t empty = ggml_backend_buft_alloc_buffer(*type, 0);
        if (empty == NULL)
            continue;
        b->matrix[0]->buffer = empty;
        bool fits = ggml_backend_dev_supports_op(device, product);
        b->matrix[0]->buffer = NULL;
        ggml_backend_buffer_free(empty);
        if (fits)
            return *type;
    }
    return ggml_backend_get_default_buffer_type(b->backend);
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
    for (int i = 0; i < b->n_matrices; i++)
        ggml_backend_tensor_set(b->matrix[i], blocks, 0, MATRIX_BYTES);
    free(blocks);
    return 0;
}

static void fill_inputs(struct bench *b)
{
    float *x = b->rows->data;
    for (int i = 0; i < WIDTH * N_ROWS; i++)
        x[i] = (float)(i % 17) / 17 - 0.5f;
    memcpy(b->row->data, x, WIDTH * sizeof(*x));
}

static int make_tensors(struct bench *b, struct error *err)
{
    struct ggml_init_params params = {.mem_size = (N_MATRICES_MAX + 8) * ggml_tensor_overhead(),
                                      .no_alloc = true};
    b->context = ggml_init(params);
    if (b->context == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    b->n_matrices = count_matrices();
    for (int i = 0; i < b->n_matrices; i++)
        b->matrix[i] = ggml_new_tensor_2d(b->context, GGML_TYPE_Q4_0, WIDTH, WIDTH);
    b->row = ggml_new_tensor_2d(b->context, GGML_TYPE_F32, WIDTH, 1);
    b->rows = ggml_new_tensor_2d(b->context, GGML_TYPE_F32, WIDTH, N_ROWS);

    ggml_backend_buffer_type_t layout = find_layout(b);
    ggml_backend_buffer_type_t plain = ggml_backend_get_default_buffer_type(b->backend);
    size_t bytes = GGML_PAD(ggml_backend_buft_get_alloc_size(layout, b->matrix[0]),
                            ggml_backend_buft_get_alignment(layout));
    b->weights = ggml_backend_buft_alloc_buffer(layout, bytes * (size_t)b->n_matrices);
    b->inputs = ggml_backend_buft_alloc_buffer(plain, ggml_nbytes(b->rows) + 2 * WIDTH * 4);
    if (b->weights == NULL || b->inputs == NULL)
        return error_set(err, E_NOMEM, "no memory for %d MB of weights to measure with",
                         b->n_matrices * (MATRIX_BYTES / 1000000));
    ggml_backend_buffer_set_usage(b->weights, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    char *at = ggml_backend_buffer_get_base(b->weights);
    for (int i = 0; i < b->n_matrices; i++)
        ggml_backend_tensor_alloc(b->weights, b->matrix[i], at + (size_t)i * bytes);
    at = ggml_backend_buffer_get_base(b->inputs);
    ggml_backend_tensor_alloc(b->inputs, b->rows, at);
    ggml_backend_tensor_alloc(b->inputs, b->row, at + ggml_nbytes(b->rows));
    fill_inputs(b);
    return fill_weights(b, err);
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Multiplies input by the first n matrices, again and again. Gives the seconds of a pass: the first
 * quartile, since others who use the computer only ever make it longer. */
static int time_passes(struct bench *b, struct ggml_tensor *input, int n, double *ret_s,
                       struct error *err)
{
    struct ggml_init_params params = {.mem_size =
                                          (N_MATRICES_MAX + 8) * ggml_tensor_overhead() +
                                          ggml_graph_overhead_custom(N_MATRICES_MAX + 8, false),
                                      .no_alloc = true};
    struct ggml_context *context = ggml_init(params);
    double pass_s[PASSES_MAX];
    int n_passes = 0;
    if (context == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    struct ggml_cgraph *graph = ggml_new_graph_custom(context, N_MATRICES_MAX + 8, false);
    for (int i = 0; i < n; i++)
        ggml_build_forward_expand(graph, ggml_mul_mat(context, b->matrix[i], input));
    bool works = ggml_gallocr_alloc_graph(b->allocator, graph) &&
                 ggml_backend_graph_compute(b->backend, graph) == GGML_STATUS_SUCCESS;
    uint64_t begin = clock_now_ns(), now = begin;
    while (works && n_passes < PASSES_MAX && (n_passes == 0 || now - begin < MEASURE_NS)) {
        uint64_t start = now;
        works = ggml_backend_graph_compute(b->backend, graph) == GGML_STATUS_SUCCESS;
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
    if (b->backend != NULL)
        ggml_backend_free(b->backend);
    if (b->threadpool != NULL)
        ggml_threadpool_free(b->threadpool);
}

int measure_speed(uint32_t n_threads, struct measured *ret, struct error *err)
{
    struct bench b = {0};
    double decode_s = 0, prefill_s = 0;
    if (n_threads == 0 || n_threads > 512)
        return error_set(err, E_INVALID, "%u threads: from 1 to 512 are possible", n_threads);
    ggml_log_set(forward_log, NULL);
    int rc = open_backend(&b, (int)n_threads, err);
    if (rc == 0)
        rc = make_tensors(&b, err);
    if (rc == 0)
        rc = time_passes(&b, b.row, b.n_matrices, &decode_s, err);
    if (rc == 0)
        rc = time_passes(&b, b.rows, 1, &prefill_s, err);
    if (rc == 0) {
        ret->memory_gb_s = (double)b.n_matrices * MATRIX_BYTES / decode_s / 1e9;
        ret->gflops = 2.0 * WIDTH * WIDTH * N_ROWS / prefill_s / 1e9;
    }
    close_bench(&b);
    return rc;
}
