/*
 * Which node holds what, as a pure function. This first rule is the memory-weighted one: stages
 * proportional to usable memory, the last takes the rest; no I/O, no clock. Thread: any.
 */
#ifndef SHOAL_CLUSTER_PLACEMENT_H
#define SHOAL_CLUSTER_PLACEMENT_H

#include "base/error.h"
#include "model/shard.h"

#include <stdint.h>

struct placement_node {
    char name[64];
    uint64_t memory_bytes_free; /* usable now */
    uint32_t n_cores;
};

struct placement_request {
    const struct model *model;
    uint32_t n_ctx, n_slots; /* KV cache to make room for */
    uint32_t n_nodes;
    const struct placement_node
        *nodes;        /* [n_nodes], in the order of preference; node 0 becomes the head */
    const char *split; /* NULL: by the rule; else text for split_parse, ranks = product */
    uint32_t memory_percent_max; /* of free memory that one model may take; 0: 80 */
};

struct placement {
    struct split split;
    uint32_t node_of_rank[LIMIT_RANKS];
    uint64_t bytes_of_rank[LIMIT_RANKS]; /* weights + KV cache + estimated graph buffers */
};

/* Errors: E_UNAVAILABLE with the numbers when the model does not fit (needed, free, per node);
 * E_INVALID. */
int placement_solve(const struct placement_request *r, struct placement *ret_placement,
                    struct error *err);

#endif
