/*
 * What computes an engine's graphs: the processors alone, or a device (a GPU) with the processors
 * beside it. With a device, ggml's scheduler cuts a graph where an operation is not the device's
 * (sums over ranks, the embedding table, types that its kernels lack) and copies what crosses the
 * cuts. Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_COMPUTE_H
#define SHOAL_ENGINE_COMPUTE_H

#include "base/error.h"

#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

struct compute {
    ggml_backend_t cpu;
    ggml_backend_t gpu; /* NULL: the processors do everything */

    /* private from here */
    struct ggml_threadpool *threadpool;
    ggml_gallocr_t allocator;       /* of graphs on the processors alone */
    ggml_backend_sched_t scheduler; /* of graphs on both */
};

/* The device of this name (engine_options.device); NULL for the processors. Errors: E_INVALID (says
 * which there are). */
int compute_find(const char *name, ggml_backend_dev_t *ret_device, struct error *err);

/* device: NULL for the processors alone. Errors: E_NOMEM, E_UNAVAILABLE (it does not start). Owns:
 * the caller, compute_close. */
int compute_open(struct compute *b, ggml_backend_dev_t device, uint32_t n_threads,
                 struct error *err);
void compute_close(struct compute *b); /* a zeroed one is fine */
/* The device; NULL for the processors alone. */
ggml_backend_dev_t compute_device(const struct compute *b);
/* Processors for what is left to them: one thread, where a whole pool would only be woken. */
void compute_use_one_thread(struct compute *b);

/* Takes memory for graphs like this one; none has more than n_tensors_max tensors. Errors: E_NOMEM.
 */
int compute_reserve(struct compute *b, struct ggml_cgraph *graph, size_t n_tensors_max,
                    struct error *err);
/* Gives a graph's tensors their memory, until the next one gets it. Inputs lie in memory that the
 * processors can write. False: there is not enough. */
bool compute_allocate(struct compute *b, struct ggml_cgraph *graph);
/* Computes the graph that was allocated last, as often as wanted. */
enum ggml_status compute_run(struct compute *b, struct ggml_cgraph *graph);
/* Memory of graphs. */
uint64_t compute_graph_bytes(const struct compute *b);

/* Whether a device computes `op` if `weight`, one of its sources, lies in a buffer of this type. */
bool compute_can(ggml_backend_dev_t device, ggml_backend_buffer_type_t type, struct ggml_tensor *op,
                 struct ggml_tensor *weight);
/* To be called before ggml says anything: its messages go to our log. */
void compute_forward_log(void);

#endif
