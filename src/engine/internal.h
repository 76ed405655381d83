/* The engine's own state, shared by its files: engine.c (life, slots), step.c, outputs.c,
 * warm_up.c. */
#ifndef SHOAL_ENGINE_INTERNAL_H
#define SHOAL_ENGINE_INTERNAL_H

#include "engine/compute.h"
#include "engine/engine.h"
#include "engine/graph.h"
#include "engine/kv_cache.h"
#include "engine/weights.h"

#include <stdatomic.h>

/* Steps of fewer rows go in one piece: a division costs more than it hides. */
enum { OVERLAP_ROWS_MIN = 128 };

struct engine_output { /* rows of f32 that the graph gives, where the processors can read them */
    const float *rows; /* NULL: none */
    float *copy;       /* of what a device has computed */
    size_t copy_bytes;
};

struct engine {
    const struct model *model;
    struct comm *comm;
    struct shard shard;
    struct engine_options options;
    struct weights *weights;
    struct kv_cache kv;
    struct sampling *sampling; /* [n_slots] */

    struct compute compute;
    struct graph_builder builder;
    bool attends_by_row; /* few rows of a sequence: engine/attention.h */
    struct graph_link link;
    uint32_t overlap_rows_min; /* steps of so many rows go in two micro-batches; 0: none does, until
                                  the first step, in which the ranks agree on it */
    struct graph graph;
    struct graph_reduce *reduces;            /* [2 * shard layers]: attention, then feed-forward */
    struct engine_output logits, hidden_out; /* of the last step */

    struct sampler *sampler;
    struct step_row *rows;     /* [n_batch] */
    struct logprobs *logprobs; /* [n_batch], made when first asked for */
    uint32_t n_rows;
    uint32_t prev_rank_first, n_prev_ranks, next_rank_first,
        n_next_ranks; /* neighbouring stages; 0 ranks: none */

    uint64_t step_number; /* of the next step; 0 until the first */
    int status;           /* sticky failure */
    atomic_bool aborted;
    struct engine_timing timing;
};

/* Where a step of these parts is divided into two micro-batches: the rows of the first; 0: nowhere.
 */
uint32_t engine_divide(const struct engine *e, const struct step *step);

/* Builds the graph of a step (or finds that the last one fits) and fills its inputs; then computes
 * it. Without anything of the other ranks. */
int engine_prepare(struct engine *e, const struct step *step, struct error *err);
int engine_compute(struct engine *e, struct error *err);

/* Brings what the graph has computed to where the processors can read it: outputs.c. Errors:
 * E_NOMEM. */
int engine_fetch_outputs(struct engine *e, struct error *err);

bool engine_must_stop(const struct engine *e);

/* Runs a step of every kind by itself, and leaves no trace of it but warm memory. */
int engine_warm_up(struct engine *e, struct error *err);

#endif
