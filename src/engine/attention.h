/*
 * Attention of single rows: tokens that decode, and the few rows that check drafts. Each row looks
 * at the cells of its own sequence, so one operation serves all sequences of a step whatever they
 * are, and the graph around it does not depend on how long they are. The keys and values of a KV
 * head are converted once for all query heads that share it. Softmax in one pass over tiles
 * (Milakov and Gimelshein 2018). Thread: as ggml calls it, on all compute threads.
 */
#ifndef SHOAL_ENGINE_ATTENTION_H
#define SHOAL_ENGINE_ATTENTION_H

#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

struct attention_settings { /* lives as long as the graph */
    float scale;
    uint32_t window; /* cells that a row sees at most, itself included; 0: all before it */
};

/* More rows of one sequence are better served by ggml's tiled attention. */
enum { ATTENTION_ROWS_MAX = 40 };

/* Whether a cache of this type and head size can be read, for so many query heads. */
bool attention_can(enum ggml_type type, int64_t head_dim, int64_t n_heads);

struct attention_rows { /* of a step: [first, first + n) */
    uint32_t first;
    uint32_t n;
    uint32_t n_out; /* n, or more for rows of zeros behind */
};

/* Those rows of q [..][query heads][head_dim] f32 against a layer's cache: k, v [cells][KV heads *
 * head_dim] f16. Row r is at positions[r] of its sequence, and its own cell is cells[r] (the cells
 * of a sequence follow each other). Returns [rows.n_out][query heads * head_dim]. */
struct ggml_tensor *attention_build(struct ggml_context *ctx, struct ggml_tensor *q,
                                    struct ggml_tensor *k, struct ggml_tensor *v,
                                    struct ggml_tensor *cells, struct ggml_tensor *positions,
                                    struct attention_rows rows,
                                    const struct attention_settings *settings);

#endif
