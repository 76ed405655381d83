/*
 * The KV cache of a shard: for each layer the keys and values of its KV heads, and which blocks of
 * the pool are in which slot. On the processors a slot has a view in which its blocks lie one after
 * another (kv_pool.h); on a device its tokens are where its blocks are (kv_device.h). Attention of
 * a sequence sees its own cells only, so what it computes does not depend on which others share the
 * step.
 *
 * Ranks of an instance hold different layers and heads but the same blocks with the same numbers:
 * how many there are and how large they are is a function of the whole model and the options.
 * Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_KV_CACHE_H
#define SHOAL_ENGINE_KV_CACHE_H

#include "base/error.h"
#include "engine/kv_pool.h"
#include "model/model.h"
#include "model/shard.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

enum {
    KV_PAD = 256, /* attention looks at whole multiples of this many cells, so that graphs can be
                     reused */
    KV_BLOCK_TOKENS_MIN = 64,
    KV_BLOCK_TOKENS_USUAL = 256, /* larger only when one slot's context would be too many blocks */
    KV_MAPPINGS_MAX = 40000,     /* of the 65,530 that Linux allows a process by default */
};

struct kv_shape {
    uint32_t n_slots, n_ctx, n_blocks, block_tokens, n_attached_max;
    enum ggml_type type;
};

struct kv_block {
    uint64_t slots;    /* bit i: it is in slot i */
    uint32_t n_tokens; /* that it holds, from its first place on */
};

struct kv_slot {
    uint32_t *blocks; /* [n_ctx / block_tokens] */
    uint32_t n_blocks;
    int32_t *tokens; /* [n_ctx] */
    uint32_t n_tokens;
};

struct kv_cache {
    struct ggml_tensor **k, **v; /* [shard layers] of [head_dim * kv heads][cells]; NULL for a layer
                                    without KV heads. A cell is a row: in memory of the processors
                                    there are [n_slots][n_ctx], and rows of both alternate; on a
                                    device they are those of the blocks. */
    struct kv_shape shape;
    struct kv_slot *slot;   /* [n_slots] */
    struct kv_block *block; /* [n_blocks] */
    int32_t *block_tokens;  /* [n_blocks][block_tokens]: the tokens that they hold */
    uint32_t n_attached;    /* blocks in all slots together */
    struct kv_pool pool;    /* empty on a device: there all lies in `buffer` */
    bool is_on_device;
    uint32_t n_layers;

    /* private from here */
    struct ggml_context *context;
    ggml_backend_buffer_t buffer;
};

/* n_ctx as asked for, rounded up; n_tokens is what the pool shall hold, 0: n_slots * n_ctx. */
void kv_shape_plan(struct kv_shape *s, uint32_t n_layer, uint32_t n_slots, uint32_t n_ctx,
                   uint32_t n_tokens, enum ggml_type type);

/* device: where it lies; NULL: in memory of the processors. Errors: E_NOMEM, E_LIMIT, E_UNSUPPORTED
 * (head size and type). Owns: the caller, kv_cache_done. */
int kv_cache_init(struct kv_cache *kv, const struct model *m, const struct shard *s,
                  const struct kv_shape *shape, ggml_backend_dev_t device, struct error *err);
void kv_cache_done(struct kv_cache *kv); /* a zeroed one is fine */
/* Memory that it takes when all blocks are in use. */
uint64_t kv_cache_bytes(const struct kv_cache *kv);

/* See engine.h: engine_slot_attach, engine_slot_extend, engine_slot_truncate, engine_block_copy. */
int kv_cache_attach(struct kv_cache *kv, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                    uint32_t n_keep, struct error *err);
int kv_cache_extend(struct kv_cache *kv, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                    struct error *err);
int kv_cache_truncate(struct kv_cache *kv, uint32_t slot, uint32_t n_keep, struct error *err);
int kv_cache_copy(struct kv_cache *kv, uint32_t from, uint32_t to, uint32_t n_tokens,
                  struct error *err);
/* Whether n tokens more can be written into a slot. Errors: E_LIMIT (the context is full),
 * E_INVALID (it lacks blocks, or shares one that would be written). */
int kv_cache_check_append(const struct kv_cache *kv, uint32_t slot, uint32_t n, struct error *err);
/* The slot has these tokens now, checked before; their K and V are about to be written. */
void kv_cache_append(struct kv_cache *kv, uint32_t slot, const int32_t *tokens, uint32_t n);

/* The cell of a token. */
uint32_t kv_cache_cell(const struct kv_cache *kv, uint32_t slot, uint32_t position);
/* How many cells attention looks at where n have tokens. */
uint32_t kv_cache_round_cells(const struct kv_cache *kv, uint32_t n);
/* Whether the cells of the first n tokens of a slot, n > 0, follow each other. */
bool kv_cache_is_contiguous(const struct kv_cache *kv, uint32_t slot, uint32_t n);

#endif
