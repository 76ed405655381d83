#include "engine/kv_pool.h"

#include "engine/memory.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* ---- sizes ---- */

/* Address spaces of 47 bits are the smallest in use on 64-bit systems; half of one is enough. */
#define BYTES_MAX (UINT64_C(1) << 46)

static bool multiply(uint64_t *size, uint64_t factor)
{
    return !__builtin_mul_overflow(*size, factor, size) && *size <= BYTES_MAX;
}

/* The least padding that makes a block whole pages: both are powers of two. */
static size_t pad_row(size_t bytes, uint32_t block_tokens, size_t page)
{
    size_t unit = page > block_tokens ? page / block_tokens : 1;
    return (bytes + unit - 1) / unit * unit;
}

static int lay_out(struct kv_pool *p, const size_t *row_bytes, struct error *err)
{
    size_t page = memory_page_bytes();
    for (uint32_t i = 0; i < p->n_layers; i++) {
        struct kv_pool_layer *layer = &p->layer[i];
        layer->row_bytes = pad_row(row_bytes[i], p->block_tokens, page);
        layer->pool_offset = p->bytes;
        uint64_t pool = layer->row_bytes, view = layer->row_bytes;
        if (!multiply(&pool, (uint64_t)p->n_blocks * p->block_tokens) ||
            !multiply(&view, (uint64_t)p->n_slots * p->n_ctx) || p->bytes + pool > BYTES_MAX ||
            p->view_bytes + view > BYTES_MAX)
            return error_set(err, E_LIMIT,
                             "a KV cache of %u slots of %u tokens does not fit into the address "
                             "space: ask for less context",
                             p->n_slots, p->n_ctx);
        p->bytes += pool;
        p->view_bytes += view;
    }
    return 0;
}

/* ---- life ---- */

static int reserve(struct kv_pool *p, struct error *err)
{
    if (p->bytes == 0)
        return 0;
    p->fd = memory_shared_new(p->bytes);
    void *blocks = p->fd >= 0 ? mmap(NULL, p->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, p->fd, 0)
                              : MAP_FAILED;
    if (blocks != MAP_FAILED)
        p->blocks = blocks;
    p->views = memory_reserve_zeros(p->view_bytes);
    if (p->blocks == NULL || p->views == NULL)
        return error_set(err, E_NOMEM, "no memory for a KV cache of %llu MiB: %s",
                         (unsigned long long)(p->bytes >> 20), strerror(errno));
    char *view = p->views;
    for (uint32_t i = 0; i < p->n_layers; i++) {
        p->layer[i].view = view;
        view += p->layer[i].row_bytes * p->n_slots * p->n_ctx;
    }
    return 0;
}

int kv_pool_init(struct kv_pool *p, const size_t *row_bytes, uint32_t n_layers, uint32_t n_slots,
                 uint32_t n_ctx, uint32_t n_blocks, uint32_t block_tokens, struct error *err)
{
    *p = (struct kv_pool){.n_layers = n_layers,
                          .n_slots = n_slots,
                          .n_ctx = n_ctx,
                          .n_blocks = n_blocks,
                          .block_tokens = block_tokens,
                          .fd = -1};
    p->layer = calloc((size_t)n_layers + 1, sizeof(*p->layer));
    int rc = p->layer != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
    if (rc == 0)
        rc = lay_out(p, row_bytes, err);
    if (rc == 0)
        rc = reserve(p, err);
    if (rc != 0)
        kv_pool_done(p);
    return rc;
}

void kv_pool_done(struct kv_pool *p)
{
    memory_unreserve(p->views, p->view_bytes);
    memory_unreserve(p->blocks, p->bytes);
    if (p->blocks != NULL || p->fd > 0)
        close(p->fd);
    free(p->layer);
    *p = (struct kv_pool){.fd = -1};
}

/* ---- views ---- */

static size_t block_bytes(const struct kv_pool *p, const struct kv_pool_layer *layer)
{
    return layer->row_bytes * p->block_tokens;
}

static char *view_address(const struct kv_pool *p, const struct kv_pool_layer *layer, uint32_t slot,
                          uint32_t place)
{
    return layer->view + layer->row_bytes * slot * p->n_ctx + block_bytes(p, layer) * place;
}

static int map_failed(const struct kv_pool *p, struct error *err)
{
    return error_set(err, E_NOMEM,
                     "the kernel maps no more KV blocks of %u tokens (%s): see vm.max_map_count",
                     p->block_tokens, strerror(errno));
}

int kv_pool_map(struct kv_pool *p, uint32_t slot, uint32_t first, const uint32_t *blocks,
                uint32_t n, bool prefault, struct error *err)
{
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const struct kv_pool_layer *layer = &p->layer[i];
        size_t bytes = block_bytes(p, layer);
        if (bytes == 0)
            continue;
        for (uint32_t begin = 0, end; begin < n; begin = end) {
            /* Blocks that follow each other in the pool are mapped at once. */
            for (end = begin + 1; end < n && blocks[end] == blocks[end - 1] + 1; end++)
                continue;
            void *address = mmap(view_address(p, layer, slot, first + begin), bytes * (end - begin),
                                 PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, p->fd,
                                 (off_t)(layer->pool_offset + bytes * blocks[begin]));
            if (address == MAP_FAILED)
                return map_failed(p, err);
        }
        if (prefault && n > 0)
            memory_prefault(view_address(p, layer, slot, first), bytes * n);
    }
    return 0;
}

int kv_pool_clear(struct kv_pool *p, uint32_t slot, uint32_t first, uint32_t n, struct error *err)
{
    int rc = 0;
    for (uint32_t i = 0; n > 0 && i < p->n_layers; i++) {
        const struct kv_pool_layer *layer = &p->layer[i];
        size_t bytes = block_bytes(p, layer) * n;
        if (bytes != 0 && !memory_zeros_at(view_address(p, layer, slot, first), bytes) && rc == 0)
            rc = map_failed(p, err);
    }
    return rc;
}

void kv_pool_copy(struct kv_pool *p, uint32_t from, uint32_t to, uint32_t n_tokens)
{
    for (uint32_t i = 0; i < p->n_layers; i++) {
        const struct kv_pool_layer *layer = &p->layer[i];
        char *blocks = p->blocks + layer->pool_offset;
        size_t stride = block_bytes(p, layer), bytes = layer->row_bytes * n_tokens;
        if (bytes == 0)
            continue;
        memcpy(blocks + stride * to, blocks + stride * from, bytes);
        /* The pages stay; only this second way to them goes, so that it is not counted as memory.
         */
        memory_forget_shared(blocks + stride * from, stride);
        memory_forget_shared(blocks + stride * to, stride);
    }
}
