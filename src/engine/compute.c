#include "engine/compute.h"

#include "base/log.h"

#include <ggml-cpu.h>
#include <pthread.h>

/* ggml's own messages go to our log; its "info" is our "debug". */
static void forward_log(enum ggml_log_level level, const char *text, void *arg)
{
    (void)arg;
    if (level == GGML_LOG_LEVEL_ERROR)
        log_error("ggml", "%s", text);
    else if (level == GGML_LOG_LEVEL_WARN)
        log_warn("ggml", "%s", text);
    else
        log_debug("ggml", "%s", text);
}

static void set_log(void)
{
    ggml_log_set(forward_log, NULL);
}

void compute_forward_log(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT; /* ranks may be threads of one process */
    pthread_once(&once, set_log);
}

bool compute_can(ggml_backend_dev_t device, ggml_backend_buffer_type_t type, struct ggml_tensor *op,
                 struct ggml_tensor *weight)
{
    /* Back ends look at the weight's buffer: it must claim to lie in one. */
    weight->buffer = ggml_backend_buft_alloc_buffer(type, 0);
    bool can = weight->buffer != NULL && ggml_backend_dev_supports_op(device, op);
    ggml_backend_buffer_free(weight->buffer);
    weight->buffer = NULL;
    return can;
}

/* ---- life ---- */

static int open_cpu(struct compute *b, int n_threads, struct error *err)
{
    b->cpu = ggml_backend_cpu_init();
    if (b->cpu == NULL)
        return error_set(err, E_NOMEM, "ggml's CPU back end does not start");
    if (n_threads > 1) {
        /* A pool of our own: without one ggml makes threads anew in every step. */
        struct ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
        b->threadpool = ggml_threadpool_new(&params);
        if (b->threadpool == NULL)
            return error_set(err, E_NOMEM, "cannot start %d compute threads", n_threads);
        ggml_backend_cpu_set_threadpool(b->cpu, b->threadpool);
    }
    ggml_backend_cpu_set_n_threads(b->cpu, n_threads);
    return 0;
}

int compute_open(struct compute *b, ggml_backend_dev_t device, uint32_t n_threads,
                 struct error *err)
{
    *b = (struct compute){0};
    compute_forward_log();
    int rc = open_cpu(b, (int)n_threads, err);
    if (rc == 0 && device != NULL) {
        b->gpu = ggml_backend_dev_init(device, NULL);
        if (b->gpu == NULL)
            rc = error_set(err, E_UNAVAILABLE, "the device %s (%s) does not start",
                           ggml_backend_dev_name(device), ggml_backend_dev_description(device));
        else if (ggml_backend_is_cpu(b->gpu))
            ggml_backend_cpu_set_n_threads(b->gpu, 1);
    }
    if (rc != 0)
        compute_close(b);
    return rc;
}

void compute_close(struct compute *b)
{
    if (b->scheduler != NULL)
        ggml_backend_sched_free(b->scheduler);
    if (b->allocator != NULL)
        ggml_gallocr_free(b->allocator);
    if (b->gpu != NULL)
        ggml_backend_free(b->gpu);
    if (b->cpu != NULL)
        ggml_backend_free(b->cpu);
    if (b->threadpool != NULL)
        ggml_threadpool_free(b->threadpool);
    *b = (struct compute){0};
}

ggml_backend_dev_t compute_device(const struct compute *b)
{
    return b->gpu != NULL ? ggml_backend_get_device(b->gpu) : NULL;
}

void compute_use_one_thread(struct compute *b)
{
    ggml_backend_cpu_set_n_threads(b->cpu, 1);
}

/* ---- graphs ---- */

/* The processors' part of a graph lies in memory that the device copies from and to at full speed,
 * where it has such a kind. */
static int make_scheduler(struct compute *b, size_t n_tensors_max, struct error *err)
{
    ggml_backend_buffer_type_t host = ggml_backend_dev_host_buffer_type(compute_device(b));
    ggml_backend_t backends[] = {b->gpu, b->cpu};
    ggml_backend_buffer_type_t types[] = {
        ggml_backend_get_default_buffer_type(b->gpu),
        host != NULL ? host : ggml_backend_get_default_buffer_type(b->cpu)};
    b->scheduler = ggml_backend_sched_new(backends, types, 2, n_tensors_max, false, false);
    return b->scheduler != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
}

int compute_reserve(struct compute *b, struct ggml_cgraph *graph, size_t n_tensors_max,
                    struct error *err)
{
    bool done;
    if (b->gpu != NULL) {
        int rc = b->scheduler == NULL ? make_scheduler(b, n_tensors_max, err) : 0;
        if (rc != 0)
            return rc;
        done = ggml_backend_sched_reserve(b->scheduler, graph);
    } else {
        if (b->allocator == NULL)
            b->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(b->cpu));
        done = b->allocator != NULL && ggml_gallocr_reserve(b->allocator, graph);
    }
    return done ? 0 : error_set(err, E_NOMEM, "no memory for graph buffers");
}

bool compute_allocate(struct compute *b, struct ggml_cgraph *graph)
{
    if (b->gpu == NULL)
        return ggml_gallocr_alloc_graph(b->allocator, graph);
    ggml_backend_sched_reset(b->scheduler);
    return ggml_backend_sched_alloc_graph(b->scheduler, graph);
}

enum ggml_status compute_run(struct compute *b, struct ggml_cgraph *graph)
{
    return b->gpu == NULL ? ggml_backend_graph_compute(b->cpu, graph)
                          : ggml_backend_sched_graph_compute(b->scheduler, graph);
}

uint64_t compute_graph_bytes(const struct compute *b)
{
    if (b->scheduler == NULL)
        return b->allocator != NULL ? ggml_gallocr_get_buffer_size(b->allocator, 0) : 0;
    return ggml_backend_sched_get_buffer_size(b->scheduler, b->gpu) +
           ggml_backend_sched_get_buffer_size(b->scheduler, b->cpu);
}
