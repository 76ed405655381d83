/*
 * The architecture table. An architecture is a row of facts that one graph builder (engine/graph.c)
 * follows; a new model is a row and, rarely, a new block. Thread: any; constants.
 */
#ifndef SHOAL_MODEL_ARCH_H
#define SHOAL_MODEL_ARCH_H

#include <stdbool.h>
#include <stdint.h>

enum arch_rope { ARCH_ROPE_NORM, ARCH_ROPE_NEOX };  /* pairs (2i, 2i+1), or (i, i + d/2) */
enum arch_activation { ARCH_SILU, ARCH_GELU_TANH }; /* of the gate in the feed-forward block */

struct arch {
    const char *name; /* general.architecture */
    enum arch_rope rope;
    enum arch_activation activation;
    bool qk_norm;    /* RMS norm of each head's q and k before rope (attn_q_norm, attn_k_norm) */
    bool qkv_bias;   /* optional attn_{q,k,v}.bias */
    bool post_norm;  /* RMS norm after attention and after feed-forward, before the residual sum */
    bool embd_scale; /* embeddings are multiplied by sqrt(n_embd) */
    uint32_t window_pattern; /* every n-th layer is global, the others see a sliding window; 0: all
                                global */
    float rope_base_local;   /* rope base of the sliding-window layers; 0: as the others */
    /* A model of this many layers scales q.k by (n_embd / n_head)^-1/2 instead of head_dim^-1/2:
     * files do not carry that fact. 0: none does. */
    uint32_t embd_attn_scale_layers;
};

/* NULL when there is no such row. */
const struct arch *arch_find(const char *name, uint64_t name_len);
/* Row by index, NULL past the end: for lists. */
const struct arch *arch_at(uint32_t index);

#endif
