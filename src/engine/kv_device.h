/*
 * The memory of a KV cache on a device. It cannot be mapped a second time, so the pool of blocks is
 * all there is: in each layer the rows of K, and of V, [block][token]. A sequence whose blocks lie
 * one behind the other is read in place; those of another are put together for each layer as it is
 * computed (docs/internals/gpu.md). Private to kv_cache.c and graph.c. Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_KV_DEVICE_H
#define SHOAL_ENGINE_KV_DEVICE_H

#include "engine/kv_cache.h"

/* Makes kv->k and kv->v, with zeros in them; width[n_layers] are elements of a row. Errors:
 * E_NOMEM, E_UNSUPPORTED (the device cannot write them). */
int kv_device_init(struct kv_cache *kv, const int64_t *width, uint32_t n_layers,
                   ggml_backend_dev_t device, struct error *err);
void kv_device_copy(struct kv_cache *kv, uint32_t from, uint32_t to, uint32_t n_tokens);

/* The blocks that a list (an input of the graph, [n_blocks] i32) names, one behind the other:
 * [n_blocks * block_tokens] rows of the type of `pool`, which is a k or v of kv. */
struct ggml_tensor *kv_device_gather(struct ggml_context *ctx, const struct kv_cache *kv,
                                     struct ggml_tensor *pool, struct ggml_tensor *list);

#endif
