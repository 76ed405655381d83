/*
 * The memory of a KV cache: a pool of blocks, and for each slot a view in which the blocks of its
 * sequence lie one after another. The pool is one piece of shared memory; putting a block into a
 * slot maps its pages a second time, so that attention reads plain contiguous rows and nothing is
 * copied when sequences share a beginning (after vAttention, Prabhu et al. 2024, with mmap).
 *
 * In each layer a block is block_tokens rows, and a view is n_ctx of them. Rows of a view that have
 * no block read as zeros and cannot be written. Pages become resident as they are touched and stay
 * so. Which block is where is the caller's to know (kv_cache.h). Thread: the engine's.
 */
#ifndef SHOAL_ENGINE_KV_POOL_H
#define SHOAL_ENGINE_KV_POOL_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kv_pool_layer {
    size_t row_bytes;   /* 0: the layer has no memory; padded so that a block is whole pages */
    size_t pool_offset; /* of its first block in the pool */
    char *view;         /* [n_slots][n_ctx] rows */
};

struct kv_pool {
    uint32_t n_layers, n_slots, n_ctx, n_blocks, block_tokens;
    struct kv_pool_layer *layer; /* [n_layers] */
    uint64_t bytes;              /* of all blocks */

    /* private from here */
    int fd;       /* -1: no layer has memory */
    char *blocks; /* the pool as it is; [layer][block][token] */
    char *views;  /* [layer][slot][token] */
    uint64_t view_bytes;
};

/* row_bytes[n_layers] are the bytes of a token in each layer, without padding; n_ctx is a multiple
 * of block_tokens, which is a power of two. Errors: E_NOMEM, E_LIMIT. Owns: the caller,
 * kv_pool_done. */
int kv_pool_init(struct kv_pool *p, const size_t *row_bytes, uint32_t n_layers, uint32_t n_slots,
                 uint32_t n_ctx, uint32_t n_blocks, uint32_t block_tokens, struct error *err);
void kv_pool_done(struct kv_pool *p); /* a zeroed one is fine */

/* Puts blocks[n] at place `first` (in blocks) and behind in a slot's view. prefault: they hold
 * tokens that will be read. After an error some of it may be done: clear it. Errors: E_NOMEM. */
int kv_pool_map(struct kv_pool *p, uint32_t slot, uint32_t first, const uint32_t *blocks,
                uint32_t n, bool prefault, struct error *err);
/* Takes n blocks from place `first` on out of a slot's view. Errors: E_NOMEM; what could not be
 * taken out stays readable. */
int kv_pool_clear(struct kv_pool *p, uint32_t slot, uint32_t first, uint32_t n, struct error *err);
void kv_pool_copy(struct kv_pool *p, uint32_t from, uint32_t to, uint32_t n_tokens);

#endif
