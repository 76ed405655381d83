/*
 * A model as a file describes it: its architecture row, its shape, its tensors by role. No weights
 * in memory. Thread: immutable once opened; any thread may read.
 */
#ifndef SHOAL_MODEL_MODEL_H
#define SHOAL_MODEL_MODEL_H

#include "base/error.h"
#include "model/arch.h"
#include "model/gguf.h"

#include <stdbool.h>
#include <stdint.h>

/* What a weight does, which decides how it is split (see model/shard.h). */
enum role {
    ROLE_TOKEN_EMBD,   /* [n_embd, n_vocab]     rows by token: replicated on every rank of the first
                          stage */
    ROLE_OUTPUT_NORM,  /* [n_embd]              last stage */
    ROLE_OUTPUT,       /* [n_embd, n_vocab]     rows split by vocabulary; absent when tied to
                          ROLE_TOKEN_EMBD */
    ROLE_ROPE_FACTORS, /* [n_rot/2]             optional; replicated */
    ROLE_ATTN_NORM,
    ROLE_ATTN_POST_NORM,
    ROLE_FFN_NORM,
    ROLE_FFN_POST_NORM, /* [n_embd] replicated */
    ROLE_ATTN_Q,        /* [n_embd, n_head * head_dim]     rows split by KV-head group */
    ROLE_ATTN_K,        /* [n_embd, n_head_kv * head_dim]  likewise */
    ROLE_ATTN_V,        /* [n_embd, n_head_kv * head_dim]  likewise */
    ROLE_ATTN_Q_BIAS,
    ROLE_ATTN_K_BIAS,
    ROLE_ATTN_V_BIAS, /* split like their weights' rows */
    ROLE_ATTN_Q_NORM,
    ROLE_ATTN_K_NORM, /* [head_dim] replicated */
    ROLE_ATTN_OUT, /* [n_head * head_dim, n_embd]     columns split by KV-head group; partial sums
                      follow */
    ROLE_FFN_GATE,
    ROLE_FFN_UP,   /* [n_embd, n_ff]         rows split by feed-forward block */
    ROLE_FFN_DOWN, /* [n_ff, n_embd]                  columns split by feed-forward block; partial
                      sums follow */
    ROLE_COUNT,
    ROLE_FIRST_OF_LAYER = ROLE_ATTN_NORM, /* roles before it are global */
};

struct model_config {
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx_train;
    uint32_t n_rot;  /* dimensions of a head that rope turns */
    uint32_t window; /* tokens a sliding-window layer sees, itself included; 0 when there is none */
    uint32_t window_pattern; /* every n-th layer is global, the others have the window; 0: none */
    float norm_eps;          /* of RMS norms */
    float rope_base;
    float rope_base_local; /* of the sliding-window layers */
    float rope_scale;      /* positions are multiplied by this (1 / linear scaling factor) */
    float attn_scale;      /* factor of q.k */
    float embd_scale;      /* 1, or sqrt(n_embd) */
};

struct model {
    const struct arch *arch;
    struct model_config config;
    struct gguf_file *file; /* owned */
    char name[128];         /* general.name, or the file's name; printable ASCII */
    uint8_t hash[32]; /* SHA-256 of the file's header bytes and its size: all ranks must agree */
    const struct gguf_tensor *global[ROLE_FIRST_OF_LAYER]; /* NULL when absent */
    const struct gguf_tensor *(*layer)[ROLE_COUNT];        /* [n_layer][role]; NULL when absent */
};

/* Opens a GGUF file and checks that its shape is complete and consistent: every needed tensor is
 * there with the dimensions that the configuration demands. Owns: the caller, model_close. Errors:
 * those of gguf_file_open; E_UNSUPPORTED (architecture, tensor type), E_FORMAT. */
int model_open(const char *path, struct model **ret_model, struct error *err);
/* The same on an open file, which it takes in every case. */
int model_from_file(struct gguf_file *file, struct model **ret_model, struct error *err);
void model_close(struct model *m);

/* The weights of the output head: ROLE_OUTPUT or, when tied, ROLE_TOKEN_EMBD. */
const struct gguf_tensor *model_output(const struct model *m);
bool model_layer_has_window(const struct model *m, uint32_t layer);
float model_layer_rope_base(const struct model *m, uint32_t layer);
/* config.rope_scale, but 1 for sliding-window layers with a rope base of their own: those are never
 * stretched. */
float model_layer_rope_scale(const struct model *m, uint32_t layer);
const char *role_name(enum role role);
/* Bytes of weights of one layer, and of a KV cache entry (one token, one layer, f16), unsplit. */
uint64_t model_layer_bytes(const struct model *m, uint32_t layer);
uint64_t model_kv_token_layer_bytes(const struct model *m);
/* Bytes of the output head over those of a layer in the mean. */
double model_head_layers(const struct model *m);

#endif
