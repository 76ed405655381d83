/*
 * The KV cache of a shard: for each layer the keys and values of its KV heads, f16. Slot s owns
 * cells [s * n_ctx, (s + 1) * n_ctx); the cell of a token is its position, so what a sequence
 * computes does not depend on which other sequences share the step. Memory is reserved and becomes
 * resident as cells are written. Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_KV_CACHE_H
#define SHOAL_ENGINE_KV_CACHE_H

#include "base/error.h"
#include "model/model.h"
#include "model/shard.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <stdint.h>

enum {
    KV_PAD = 256
}; /* attention looks at whole multiples of this many cells, so that graphs can be reused */

struct kv_cache {
    struct ggml_tensor **k, **v; /* [shard layers] of [head_dim * kv heads][n_slots * n_ctx] f16;
                                    NULL for a layer without KV heads */
    uint32_t n_ctx;              /* cells of a slot, a multiple of KV_PAD */
    uint32_t n_slots;
    uint64_t bytes;

    /* private from here */
    struct ggml_context *context;
    ggml_backend_buffer_t buffer;
    void *memory;
};

/* n_ctx is rounded up to a multiple of KV_PAD. Errors: E_NOMEM. Owns: the caller, kv_cache_done. */
int kv_cache_init(struct kv_cache *kv, const struct model *m, const struct shard *s, uint32_t n_ctx,
                  uint32_t n_slots, struct error *err);
void kv_cache_done(struct kv_cache *kv);

#endif
