/*
 * Sums over the ranks of a stage as operations of a graph: whole, or in two halves with other
 * operations in between, while the values travel. ggml runs operations in the order in which they
 * were added to the graph, so the caller adds each half where it belongs. Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_GRAPH_SUM_H
#define SHOAL_ENGINE_GRAPH_SUM_H

#include "base/error.h"
#include "comm/comm.h"

#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

/* What the operations share: where to talk and what went wrong. */
struct graph_link {
    struct comm *comm; /* NULL: a stage of one rank */
    bool is_silent;    /* sums are left out: for runs without the other ranks */
    struct comm_group group;
    int status; /* first failure of a sum in this step; later ones do nothing */
    struct error error;
    uint64_t comm_ns;
};

/* A sum over the ranks of the stage, as the operations see it: on the processors. */
struct graph_reduce {
    struct graph_link *link;
    uint64_t mask; /* ranks of the stage that have something to add */
};

struct graph_sum {               /* what is to be summed */
    struct ggml_tensor *partial; /* [rows][n_embd]: this rank's part; NULL: it has none, an empty
                                    slice of the layer */
    struct ggml_tensor *like;    /* of the same shape, computed before the sum begins */
    uint32_t n_rows;             /* the first n_rows rows are summed */
    bool in_place;               /* the sum takes the place of partial, which nobody else reads; not
                                    where a device may have computed it */
};

/* Returns the sum, [rows][n_embd]. */
struct ggml_tensor *graph_sum_whole(struct ggml_context *ctx, const struct graph_sum *sum,
                                    struct graph_reduce *reduce);
/* The same in halves. What start returns goes through advance as often as wanted (it moves what can
 * move by then), each time replaced by what advance returns, then into finish, which returns the
 * sum. One memory serves all: it is not given to others in between. */
struct ggml_tensor *graph_sum_start(struct ggml_context *ctx, const struct graph_sum *sum,
                                    struct graph_reduce *reduce);
struct ggml_tensor *graph_sum_advance(struct ggml_context *ctx, struct ggml_tensor *started,
                                      struct graph_reduce *reduce);
struct ggml_tensor *graph_sum_finish(struct ggml_context *ctx, struct ggml_tensor *started,
                                     struct graph_reduce *reduce);

#endif
