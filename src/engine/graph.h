/*
 * One step's forward pass over a shard as a ggml graph, built from the architecture's row of facts.
 * Sums over the ranks of a stage are custom operations inside the graph (engine/graph_sum.h). In a
 * graph of two micro-batches the sum of one travels while the other is computed; ranks that sum
 * together must divide their rows alike. A graph is a function of its shape and may be used again
 * as long as the shape stays the same. Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_GRAPH_H
#define SHOAL_ENGINE_GRAPH_H

#include "base/error.h"
#include "engine/attention.h"
#include "engine/graph_sum.h"
#include "engine/kv_cache.h"
#include "engine/multiply.h"
#include "engine/weights.h"
#include "model/model.h"
#include "model/shard.h"

#include <ggml-alloc.h>
#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

struct graph_part { /* consecutive tokens of one slot; or single rows of any slots, one after
                       another (engine/attention.h): then the others are 0 */
    uint32_t n_tokens;
    uint32_t n_kv;        /* cells that attention looks at: kv_cache_round_cells of those in use */
    uint32_t cell_first;  /* of them, which follow each other, unless */
    uint32_t is_gathered; /* 1: they are in the blocks that graph.blocks names */
};

struct graph_shape {
    uint32_t n_tokens;
    uint32_t n_outputs; /* rows that give logits */
    uint32_t n_early;   /* rows of the first of two micro-batches; 0: all rows go together */
    uint32_t n_parts;
    struct graph_part part[LIMIT_SLOTS];
};

/* How many rows of input matrices are multiplied at once: ggml's kernels for repacked weights take
 * four rows (with AVX-512 also sixteen) in one pass over the weights, and what is left over one by
 * one, so that three rows cost more than four. A step is filled up with rows that nobody looks at.
 * Ranks need not agree on that. */
struct graph_padding {
    bool fours, sixteens;
};

enum graph_target {                 /* what the graph is for */
                    GRAPH_CPU,      /* the processors alone */
                    GRAPH_DEVICE,   /* a device with the processors beside it (compute.h) */
                    GRAPH_NO_FLASH, /* such a device without ggml's fused attention */
};

struct graph_builder { /* what does not change between steps; borrows everything */
    enum graph_target target;
    const struct model *model;
    const struct shard *shard;
    const struct weights *weights;
    const struct kv_cache *kv;
    struct graph_reduce *reduce_attn, *reduce_ffn; /* [shard layers]; NULL: a stage of one rank */
    struct graph_padding padding;
    struct attention_settings attention, attention_window; /* of single rows, by layer */
};

struct graph {
    struct graph_shape shape;
    struct ggml_cgraph *cgraph;     /* NULL: nothing built yet */
    uint32_t n_rows, n_output_rows; /* n_tokens and n_outputs with padding */
    /* inputs; NULL where the shard does not need them. All must be filled before each run: their
     * memory is reused. Zeros are good enough for padding. */
    struct ggml_tensor *tokens;                   /* [n_rows] i32, first stage */
    struct ggml_tensor *hidden_in;                /* [n_rows][n_embd] f32, later stages */
    struct ggml_tensor *positions;                /* [n_rows] i32 */
    struct ggml_tensor *cells;                    /* [n_tokens] i64: row of the KV cache */
    struct ggml_tensor *blocks[LIMIT_SLOTS];      /* [part n_kv / block_tokens] i32 */
    struct ggml_tensor *output_rows;              /* [n_output_rows] i32, last stage */
    struct ggml_tensor *mask[LIMIT_SLOTS];        /* [part n_tokens][n_kv] f16: 0 or -inf */
    struct ggml_tensor *mask_window[LIMIT_SLOTS]; /* likewise for sliding-window layers */
    /* output */
    struct ggml_tensor *hidden_out; /* [n_rows][n_embd] f32, all but the last stage */
    struct ggml_tensor *logits;     /* [n_output_rows][vocabulary slice] f32, last stage; NULL
                                       without outputs or slice */

    struct ggml_context *context; /* private from here */
    multiply_tickets *tickets;    /* of the multiplications by packed weights */
    uint32_t n_tickets;
};

/* No graph with so many parts has more tensors, weights and inputs included. */
size_t graph_n_tensors_max(const struct graph_builder *b, uint32_t n_parts);
bool graph_shape_equal(const struct graph_shape *a, const struct graph_shape *b);
/* Builds (without allocating tensor data) into g, which is zeroed or holds an older graph. Errors:
 * E_NOMEM. */
int graph_build(struct graph *g, const struct graph_builder *b, const struct graph_shape *shape,
                struct error *err);
void graph_done(struct graph *g);

#endif
