#include "engine/kv_device.h"

#include "engine/compute.h"

/* ---- life ---- */

/* Attention looks at whole multiples of cells (kv_cache_round_cells): also behind the last block.
 */
static int64_t count_cells(const struct kv_cache *kv)
{
    return (int64_t)kv->shape.n_blocks * kv->shape.block_tokens + kv_cache_round_cells(kv, 1);
}

/* Some devices bind no more than so many bytes at once. */
static int check_write(const struct kv_cache *kv, struct ggml_tensor *rows,
                       ggml_backend_dev_t device, struct error *err)
{
    struct ggml_init_params params = {.mem_size = 4 * ggml_tensor_overhead(), .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    if (ctx == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    struct ggml_tensor *value = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, rows->ne[0], 1);
    struct ggml_tensor *cell = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, 1);
    bool can = compute_can(device, ggml_backend_dev_buffer_type(device),
                           ggml_set_rows(ctx, rows, value, cell), rows);
    ggml_free(ctx);
    if (can)
        return 0;
    return error_set(err, E_UNSUPPORTED,
                     "the device %s takes no KV cache of %u tokens in %s (%zu MiB a layer in one "
                     "piece): ask for fewer, or for another type",
                     ggml_backend_dev_name(device), kv->shape.n_blocks * kv->shape.block_tokens,
                     ggml_type_name(rows->type), ggml_nbytes(rows) >> 20);
}

int kv_device_init(struct kv_cache *kv, const int64_t *width, uint32_t n_layers,
                   ggml_backend_dev_t device, struct error *err)
{
    struct ggml_tensor *widest = NULL;
    for (uint32_t i = 0; i < n_layers; i++) {
        if (width[i] == 0)
            continue;
        kv->k[i] = ggml_new_tensor_2d(kv->context, kv->shape.type, width[i], count_cells(kv));
        kv->v[i] = ggml_new_tensor_2d(kv->context, kv->shape.type, width[i], count_cells(kv));
        if (widest == NULL || width[i] > widest->ne[0])
            widest = kv->k[i];
    }
    if (widest == NULL)
        return 0;
    int rc = check_write(kv, widest, device, err);
    if (rc != 0)
        return rc;
    ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    kv->buffer = ggml_backend_alloc_ctx_tensors_from_buft(kv->context, type);
    if (kv->buffer == NULL)
        return error_set(err, E_NOMEM, "the device %s has no memory for a KV cache of %zu MiB",
                         ggml_backend_dev_name(device),
                         ggml_backend_alloc_ctx_tensors_from_buft_size(kv->context, type) >> 20);
    /* Rows behind a sequence are read, too, and only then masked: they must hold numbers. */
    ggml_backend_buffer_clear(kv->buffer, 0);
    return 0;
}

/* ---- blocks ---- */

/* The first rows of a block, for ggml's copy. */
static struct ggml_tensor *view_rows(struct ggml_context *ctx, const struct kv_cache *kv,
                                     struct ggml_tensor *pool, uint32_t block, uint32_t n)
{
    struct ggml_tensor *view = ggml_view_2d(ctx, pool, pool->ne[0], n, pool->nb[1],
                                            (size_t)block * kv->shape.block_tokens * pool->nb[1]);
    ggml_backend_view_init(view);
    return view;
}

static void copy_rows(const struct kv_cache *kv, struct ggml_tensor *pool, uint32_t from,
                      uint32_t to, uint32_t n)
{
    _Alignas(GGML_MEM_ALIGN) char memory[4096]; /* two tensors */
    struct ggml_init_params params = {
        .mem_size = sizeof(memory), .mem_buffer = memory, .no_alloc = true};
    struct ggml_context *ctx = ggml_init(params);
    if (ctx == NULL)
        return;
    ggml_backend_tensor_copy(view_rows(ctx, kv, pool, from, n), view_rows(ctx, kv, pool, to, n));
    ggml_free(ctx);
}

void kv_device_copy(struct kv_cache *kv, uint32_t from, uint32_t to, uint32_t n_tokens)
{
    for (uint32_t i = 0; i < kv->n_layers && n_tokens > 0; i++) {
        if (kv->k[i] == NULL)
            continue;
        copy_rows(kv, kv->k[i], from, to, n_tokens);
        copy_rows(kv, kv->v[i], from, to, n_tokens);
    }
}

/* The same bytes as [ne1] rows of [ne0] of another type. ggml makes views of the same type only. */
static struct ggml_tensor *view_as(struct ggml_context *ctx, struct ggml_tensor *t,
                                   enum ggml_type type, int64_t ne0, int64_t ne1)
{
    struct ggml_tensor *view = ggml_view_1d(ctx, t, t->ne[0], 0);
    view->type = type;
    view->ne[0] = ne0;
    view->ne[1] = ne1;
    view->nb[0] = ggml_type_size(type);
    view->nb[1] = ggml_row_size(type, ne0);
    view->nb[2] = view->nb[3] = view->nb[1] * (size_t)ne1;
    return view;
}

struct ggml_tensor *kv_device_gather(struct ggml_context *ctx, const struct kv_cache *kv,
                                     struct ggml_tensor *pool, struct ggml_tensor *list)
{
    /* ggml_get_rows turns f16 into f32, and copies f32 as it is: a block is taken for one long row
     * of these. (So it does with i32, but in ggml 0.20 only the first 512 of a row on Vulkan.) A
     * block has at least 64 cells, so that its bytes are a multiple of 4. */
    int64_t n_words = (int64_t)(pool->nb[1] * kv->shape.block_tokens / sizeof(float));
    struct ggml_tensor *blocks = view_as(ctx, pool, GGML_TYPE_F32, n_words, kv->shape.n_blocks);
    struct ggml_tensor *found = ggml_get_rows(ctx, blocks, list);
    return view_as(ctx, found, pool->type, pool->ne[0],
                   list->ne[0] * (int64_t)kv->shape.block_tokens);
}
