#include "engine/kv_cache.h"

#include "engine/kv_device.h"

#include <ggml-cpu.h>
#include <stdlib.h>
#include <string.h>

/* ---- shape ---- */

static uint32_t round_up(uint64_t n, uint32_t unit)
{
    uint64_t rounded = (n + unit - 1) / unit * unit;
    return rounded <= UINT32_MAX ? (uint32_t)rounded : UINT32_MAX / unit * unit;
}

/* A block in a slot is a mapping in every layer, and behind the blocks of a slot there is one more.
 * (Ranks have the layers of their stage only; all must come to the same number.) */
static uint32_t count_attached_max(uint32_t n_layer, uint32_t n_slots)
{
    uint32_t n = KV_MAPPINGS_MAX / (n_layer > 0 ? n_layer : 1);
    return n > 2 * n_slots ? n - n_slots : n > 1 ? n / 2 : 1;
}

void kv_shape_plan(struct kv_shape *s, uint32_t n_layer, uint32_t n_slots, uint32_t n_ctx,
                   uint32_t n_tokens, enum ggml_type type)
{
    uint32_t n_max = count_attached_max(n_layer, n_slots), block = KV_BLOCK_TOKENS_MIN;
    uint64_t n_pool = n_tokens != 0 ? n_tokens : (uint64_t)n_slots * n_ctx;
    while ((block < KV_BLOCK_TOKENS_USUAL && n_pool / block > n_max) ||
           (n_ctx / block + 1 > n_max && block < 1u << 20))
        block *= 2;
    *s = (struct kv_shape){.n_slots = n_slots, .block_tokens = block, .type = type};
    s->n_ctx = round_up(n_ctx, block > KV_PAD ? block : KV_PAD);
    if (n_tokens == 0)
        n_pool = (uint64_t)n_slots * s->n_ctx;
    s->n_blocks = (uint32_t)((n_pool + block - 1) / block);
    uint64_t n_most = (uint64_t)n_slots * (s->n_ctx / block);
    s->n_attached_max = n_most < n_max ? (uint32_t)n_most : n_max;
}

/* ---- life ---- */

static int check_type(const struct kv_cache *kv, const struct model *m, struct error *err)
{
    int64_t block = ggml_blck_size(kv->shape.type);
    if (m->config.head_dim % block == 0)
        return 0;
    return error_set(err, E_UNSUPPORTED,
                     "this model's heads of %u elements do not fit %s, which needs a multiple of "
                     "%lld: use f16 for its KV cache",
                     m->config.head_dim, ggml_type_name(kv->shape.type), (long long)block);
}

/* Rows of K and V alternate in a view. */
static int make_views(struct kv_cache *kv, const int64_t *width, struct error *err)
{
    if (kv->pool.bytes == 0)
        return 0;
    kv->buffer = ggml_backend_cpu_buffer_from_ptr(kv->pool.views, kv->pool.view_bytes);
    if (kv->buffer == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int64_t n_cells = (int64_t)kv->shape.n_ctx * kv->shape.n_slots;
    for (uint32_t i = 0; i < kv->n_layers; i++) {
        if (width[i] == 0)
            continue;
        const struct kv_pool_layer *layer = &kv->pool.layer[i];
        struct ggml_tensor *both[2];
        for (int j = 0; j < 2; j++) {
            both[j] = ggml_new_tensor_2d(kv->context, kv->shape.type, width[i], n_cells);
            both[j]->nb[1] = layer->row_bytes;
            both[j]->nb[2] = both[j]->nb[3] = layer->row_bytes * (size_t)n_cells;
            ggml_backend_tensor_alloc(kv->buffer, both[j],
                                      layer->view +
                                          (size_t)j * ggml_row_size(kv->shape.type, width[i]));
        }
        kv->k[i] = both[0];
        kv->v[i] = both[1];
    }
    return 0;
}

static int make_mapped(struct kv_cache *kv, const int64_t *width, struct error *err)
{
    size_t *row_bytes = calloc(kv->n_layers + 1, sizeof(*row_bytes));
    if (row_bytes == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < kv->n_layers; i++)
        row_bytes[i] = 2 * ggml_row_size(kv->shape.type, width[i]);
    int rc = kv_pool_init(&kv->pool, row_bytes, kv->n_layers, kv->shape.n_slots, kv->shape.n_ctx,
                          kv->shape.n_blocks, kv->shape.block_tokens, err);
    free(row_bytes);
    return rc == 0 ? make_views(kv, width, err) : rc;
}

/* Elements of a row of each layer; the caller frees them. */
static int64_t *list_widths(const struct model *m, const struct shard *s, uint32_t n_layers)
{
    int64_t *width = calloc(n_layers + 1, sizeof(*width));
    for (uint32_t i = 0; width != NULL && i < n_layers; i++)
        width[i] =
            (int64_t)m->config.head_dim * (s->layer[i].kv_heads.end - s->layer[i].kv_heads.begin);
    return width;
}

static int make_tensors(struct kv_cache *kv, const struct model *m, const struct shard *s,
                        ggml_backend_dev_t device, struct error *err)
{
    struct ggml_init_params params = {
        .mem_size = (2 * (size_t)kv->n_layers + 1) * ggml_tensor_overhead(), .no_alloc = true};
    int64_t *width = list_widths(m, s, kv->n_layers);
    kv->context = ggml_init(params);
    kv->k = calloc(kv->n_layers + 1, sizeof(struct ggml_tensor *));
    kv->v = calloc(kv->n_layers + 1, sizeof(struct ggml_tensor *));
    int rc;
    if (kv->context == NULL || kv->k == NULL || kv->v == NULL || width == NULL)
        rc = error_set(err, E_NOMEM, "out of memory");
    else if (device != NULL)
        rc = kv_device_init(kv, width, kv->n_layers, device, err);
    else
        rc = make_mapped(kv, width, err);
    free(width);
    return rc;
}

static int make_slots(struct kv_cache *kv, struct error *err)
{
    const struct kv_shape *shape = &kv->shape;
    kv->slot = calloc(shape->n_slots, sizeof(*kv->slot));
    kv->block = calloc(shape->n_blocks, sizeof(*kv->block));
    kv->block_tokens = calloc(shape->n_blocks, shape->block_tokens * sizeof(int32_t));
    if (kv->slot == NULL || kv->block == NULL || kv->block_tokens == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < shape->n_slots; i++) {
        kv->slot[i].tokens = calloc(shape->n_ctx, sizeof(int32_t));
        kv->slot[i].blocks = calloc(shape->n_ctx / shape->block_tokens, sizeof(uint32_t));
        if (kv->slot[i].tokens == NULL || kv->slot[i].blocks == NULL)
            return error_set(err, E_NOMEM, "out of memory");
    }
    return 0;
}

int kv_cache_init(struct kv_cache *kv, const struct model *m, const struct shard *s,
                  const struct kv_shape *shape, ggml_backend_dev_t device, struct error *err)
{
    *kv = (struct kv_cache){.shape = *shape,
                            .is_on_device = device != NULL,
                            .n_layers = s->layers.end - s->layers.begin};
    int rc = check_type(kv, m, err);
    if (rc == 0)
        rc = make_tensors(kv, m, s, device, err);
    if (rc == 0)
        rc = make_slots(kv, err);
    if (rc != 0)
        kv_cache_done(kv);
    return rc;
}

void kv_cache_done(struct kv_cache *kv)
{
    ggml_backend_buffer_free(kv->buffer);
    kv_pool_done(&kv->pool);
    if (kv->context != NULL)
        ggml_free(kv->context);
    for (uint32_t i = 0; kv->slot != NULL && i < kv->shape.n_slots; i++) {
        free(kv->slot[i].tokens);
        free(kv->slot[i].blocks);
    }
    free(kv->slot);
    free(kv->block);
    free(kv->block_tokens);
    free(kv->k);
    free(kv->v);
    *kv = (struct kv_cache){0};
}

uint64_t kv_cache_bytes(const struct kv_cache *kv)
{
    if (!kv->is_on_device)
        return kv->pool.bytes;
    return kv->buffer != NULL ? ggml_backend_buffer_get_size(kv->buffer) : 0;
}

/* ---- checks ---- */

static int check_slot(const struct kv_cache *kv, uint32_t slot, struct error *err)
{
    if (slot >= kv->shape.n_slots)
        return error_set(err, E_INVALID, "slot %u does not exist: there are %u", slot,
                         kv->shape.n_slots);
    return 0;
}

static int check_block(const struct kv_cache *kv, uint32_t block, struct error *err)
{
    if (block >= kv->shape.n_blocks)
        return error_set(err, E_INVALID, "KV block %u does not exist: there are %u", block,
                         kv->shape.n_blocks);
    return 0;
}

/* blocks[n] are to be at place `first` and behind in a slot, where they hold the first n_keep
 * tokens. No block twice, counting those before `first`. */
static int check_blocks(const struct kv_cache *kv, uint32_t slot, uint32_t first,
                        const uint32_t *blocks, uint32_t n, uint32_t n_keep, struct error *err)
{
    uint32_t block_tokens = kv->shape.block_tokens, n_max = kv->shape.n_ctx / block_tokens;
    if (n > n_max - first)
        return error_set(err, E_LIMIT, "slot %u: %u KV blocks are more than its %u", slot,
                         first + n, n_max);
    if (n_keep > (uint64_t)n * block_tokens)
        return error_set(err, E_INVALID, "slot %u: %u tokens are to be in %u KV blocks of %u", slot,
                         n_keep, n, block_tokens);
    uint32_t n_others = kv->n_attached - (kv->slot[slot].n_blocks - first);
    if (n > kv->shape.n_attached_max - n_others)
        return error_set(err, E_LIMIT,
                         "%u KV blocks in all slots together, and %u more: at most %u", n_others, n,
                         kv->shape.n_attached_max);
    for (uint32_t i = 0; i < n; i++) {
        int rc = check_block(kv, blocks[i], err);
        if (rc != 0)
            return rc;
        uint32_t n_here = n_keep - (n_keep < i * block_tokens ? n_keep : i * block_tokens);
        if (n_here > block_tokens)
            n_here = block_tokens;
        if (kv->block[blocks[i]].n_tokens < n_here)
            return error_set(err, E_INVALID, "KV block %u holds %u tokens, not %u", blocks[i],
                             kv->block[blocks[i]].n_tokens, n_here);
    }
    return 0;
}

/* ---- in and out of slots ---- */

static uint64_t bit(uint32_t slot)
{
    return (uint64_t)1 << slot;
}

static void unlist(struct kv_cache *kv, uint32_t slot, uint32_t first)
{
    struct kv_slot *s = &kv->slot[slot];
    for (uint32_t i = first; i < s->n_blocks; i++)
        kv->block[s->blocks[i]].slots &= ~bit(slot);
    kv->n_attached -= s->n_blocks - first;
    s->n_blocks = first;
}

/* False, and nothing changed, when one of them is in the slot already or is there twice. */
static bool list(struct kv_cache *kv, uint32_t slot, const uint32_t *blocks, uint32_t n)
{
    struct kv_slot *s = &kv->slot[slot];
    for (uint32_t i = 0; i < n; i++) {
        if (kv->block[blocks[i]].slots & bit(slot)) {
            while (i-- > 0)
                kv->block[blocks[i]].slots &= ~bit(slot);
            return false;
        }
        kv->block[blocks[i]].slots |= bit(slot);
    }
    if (n > 0)
        memmove(s->blocks + s->n_blocks, blocks, n * sizeof(*blocks));
    s->n_blocks += n;
    kv->n_attached += n;
    return true;
}

/* Empties a slot. A view that cannot be cleared stays readable, and is mapped over later. */
static void give_up(struct kv_cache *kv, uint32_t slot)
{
    kv_pool_clear(&kv->pool, slot, 0, kv->slot[slot].n_blocks, NULL);
    unlist(kv, slot, 0);
    kv->slot[slot].n_tokens = 0;
}

/* Slots outside `but` that still have a block which is to be written are over: their sequences have
 * ended, since nobody writes into what others use. */
static void give_up_others(struct kv_cache *kv, uint64_t but, uint32_t block)
{
    uint64_t others = kv->block[block].slots & ~but;
    for (uint32_t i = 0; others != 0; i++, others >>= 1)
        if (others & 1)
            give_up(kv, i);
}

static uint32_t count_equal(const uint32_t *a, const uint32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

int kv_cache_attach(struct kv_cache *kv, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                    uint32_t n_keep, struct error *err)
{
    int rc = check_slot(kv, slot, err);
    if (rc == 0)
        rc = check_blocks(kv, slot, 0, blocks, n_blocks, n_keep, err);
    if (rc != 0)
        return rc;

    struct kv_slot *s = &kv->slot[slot];
    uint32_t block_tokens = kv->shape.block_tokens, n_before = s->n_blocks;
    if (n_blocks == 0)
        blocks = s->blocks; /* theirs may be NULL */
    uint32_t n_same = count_equal(s->blocks, blocks, n_before < n_blocks ? n_before : n_blocks);
    unlist(kv, slot, n_same);
    if (!list(kv, slot, blocks + n_same, n_blocks - n_same)) {
        list(kv, slot, s->blocks + n_same, n_before - n_same); /* as it was */
        return error_set(err, E_INVALID, "slot %u: a KV block is there twice", slot);
    }
    for (uint32_t i = n_keep / block_tokens; i < n_blocks; i++)
        give_up_others(kv, bit(slot), blocks[i]);

    uint32_t n_full = (n_keep + block_tokens - 1) / block_tokens;
    uint32_t n_held = n_full > n_same ? n_full - n_same : 0, n_mapped = n_same + n_held;
    rc = kv_pool_map(&kv->pool, slot, n_same, blocks + n_same, n_held, true, err);
    if (rc == 0)
        rc = kv_pool_map(&kv->pool, slot, n_mapped, blocks + n_mapped, n_blocks - n_mapped, false,
                         err);
    if (rc == 0 && n_before > n_blocks)
        rc = kv_pool_clear(&kv->pool, slot, n_blocks, n_before - n_blocks, err);
    if (rc != 0) {
        give_up(kv, slot);
        return rc;
    }
    for (uint32_t i = 0; i < n_full; i++)
        memcpy(s->tokens + i * block_tokens, kv->block_tokens + (size_t)blocks[i] * block_tokens,
               block_tokens * sizeof(int32_t));
    s->n_tokens = n_keep;
    return 0;
}

int kv_cache_extend(struct kv_cache *kv, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                    struct error *err)
{
    int rc = check_slot(kv, slot, err);
    if (rc == 0)
        rc = check_blocks(kv, slot, kv->slot[slot].n_blocks, blocks, n_blocks, 0, err);
    if (rc != 0)
        return rc;
    uint32_t first = kv->slot[slot].n_blocks;
    if (!list(kv, slot, blocks, n_blocks))
        return error_set(err, E_INVALID, "slot %u: a KV block is there twice", slot);
    rc = kv_pool_map(&kv->pool, slot, first, blocks, n_blocks, false, err);
    if (rc != 0) {
        kv_pool_clear(&kv->pool, slot, first, n_blocks, NULL);
        unlist(kv, slot, first);
        return rc;
    }
    for (uint32_t i = 0; i < n_blocks; i++)
        give_up_others(kv, bit(slot), blocks[i]);
    return 0;
}

int kv_cache_truncate(struct kv_cache *kv, uint32_t slot, uint32_t n_keep, struct error *err)
{
    int rc = check_slot(kv, slot, err);
    if (rc != 0)
        return rc;
    if (n_keep > kv->slot[slot].n_tokens)
        return error_set(err, E_INVALID, "slot %u holds %u tokens, cannot keep %u", slot,
                         kv->slot[slot].n_tokens, n_keep);
    kv->slot[slot].n_tokens = n_keep;
    return 0;
}

int kv_cache_copy(struct kv_cache *kv, uint32_t from, uint32_t to, uint32_t n_tokens,
                  struct error *err)
{
    int rc = check_block(kv, from, err);
    if (rc == 0)
        rc = check_block(kv, to, err);
    if (rc != 0)
        return rc;
    if (from == to || n_tokens > kv->block[from].n_tokens)
        return error_set(err, E_INVALID, "%u tokens of KV block %u, which holds %u, to block %u",
                         n_tokens, from, kv->block[from].n_tokens, to);
    give_up_others(kv, 0, to);
    if (kv->is_on_device)
        kv_device_copy(kv, from, to, n_tokens);
    else
        kv_pool_copy(&kv->pool, from, to, n_tokens);
    uint32_t block_tokens = kv->shape.block_tokens;
    memcpy(kv->block_tokens + (size_t)to * block_tokens,
           kv->block_tokens + (size_t)from * block_tokens, n_tokens * sizeof(int32_t));
    kv->block[to].n_tokens = n_tokens;
    return 0;
}

/* ---- tokens ---- */

int kv_cache_check_append(const struct kv_cache *kv, uint32_t slot, uint32_t n, struct error *err)
{
    const struct kv_slot *s = &kv->slot[slot];
    uint32_t block_tokens = kv->shape.block_tokens;
    if (n > kv->shape.n_ctx - s->n_tokens)
        return error_set(err, E_LIMIT, "slot %u is full: %u tokens and %u more, of %u", slot,
                         s->n_tokens, n, kv->shape.n_ctx);
    if (n > s->n_blocks * block_tokens - s->n_tokens)
        return error_set(err, E_INVALID, "slot %u: %u tokens and %u more in %u KV blocks of %u",
                         slot, s->n_tokens, n, s->n_blocks, block_tokens);
    for (uint32_t i = s->n_tokens / block_tokens;
         n > 0 && i <= (s->n_tokens + n - 1) / block_tokens; i++)
        if (kv->block[s->blocks[i]].slots != bit(slot))
            return error_set(err, E_INVALID, "slot %u: KV block %u is shared, not to be written",
                             slot, s->blocks[i]);
    return 0;
}

void kv_cache_append(struct kv_cache *kv, uint32_t slot, const int32_t *tokens, uint32_t n)
{
    struct kv_slot *s = &kv->slot[slot];
    uint32_t block_tokens = kv->shape.block_tokens;
    memcpy(s->tokens + s->n_tokens, tokens, n * sizeof(*tokens));
    while (n > 0) {
        uint32_t block = s->blocks[s->n_tokens / block_tokens], at = s->n_tokens % block_tokens;
        uint32_t n_here = n < block_tokens - at ? n : block_tokens - at;
        memcpy(kv->block_tokens + (size_t)block * block_tokens + at, tokens,
               n_here * sizeof(*tokens));
        kv->block[block].n_tokens = at + n_here;
        s->n_tokens += n_here;
        tokens += n_here;
        n -= n_here;
    }
}

/* ---- cells ---- */

uint32_t kv_cache_cell(const struct kv_cache *kv, uint32_t slot, uint32_t position)
{
    uint32_t block_tokens = kv->shape.block_tokens;
    if (!kv->is_on_device)
        return slot * kv->shape.n_ctx + position;
    return kv->slot[slot].blocks[position / block_tokens] * block_tokens + position % block_tokens;
}

uint32_t kv_cache_round_cells(const struct kv_cache *kv, uint32_t n)
{
    /* On a device whole blocks are put together. */
    uint32_t unit =
        kv->is_on_device && kv->shape.block_tokens > KV_PAD ? kv->shape.block_tokens : KV_PAD;
    return (n + unit - 1) / unit * unit;
}

bool kv_cache_is_contiguous(const struct kv_cache *kv, uint32_t slot, uint32_t n)
{
    const uint32_t *blocks = kv->slot[slot].blocks;
    for (uint32_t i = 1; kv->is_on_device && i <= (n - 1) / kv->shape.block_tokens; i++)
        if (blocks[i] != blocks[i - 1] + 1)
            return false;
    return true;
}
