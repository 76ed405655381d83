#include "engine/kv_cache.h"

#include "engine/memory.h"

#include <ggml-cpu.h>
#include <stdlib.h>

static int init(struct kv_cache *kv, const struct model *m, const struct shard *s,
                struct error *err)
{
    uint32_t n_layers = s->layers.end - s->layers.begin;
    struct ggml_init_params params = {
        .mem_size = (2 * (size_t)n_layers + 1) * ggml_tensor_overhead(), .no_alloc = true};
    kv->context = ggml_init(params);
    kv->k = calloc(n_layers + 1, sizeof(struct ggml_tensor *));
    kv->v = calloc(n_layers + 1, sizeof(struct ggml_tensor *));
    if (kv->context == NULL || kv->k == NULL || kv->v == NULL)
        return error_set(err, E_NOMEM, "out of memory");

    int64_t n_cells = (int64_t)kv->n_ctx * kv->n_slots;
    for (uint32_t i = 0; i < n_layers; i++) {
        int64_t width =
            (int64_t)m->config.head_dim * (s->layer[i].kv_heads.end - s->layer[i].kv_heads.begin);
        if (width == 0)
            continue;
        kv->k[i] = ggml_new_tensor_2d(kv->context, GGML_TYPE_F16, width, n_cells);
        kv->v[i] = ggml_new_tensor_2d(kv->context, GGML_TYPE_F16, width, n_cells);
        kv->bytes += ggml_nbytes(kv->k[i]) + ggml_nbytes(kv->v[i]);
    }
    if (kv->bytes == 0)
        return 0;

    /* Reserved, not allocated by ggml: the pages must be zero (masked cells still meet arithmetic)
     * and must not be resident before they are used. */
    kv->memory = memory_reserve(kv->bytes);
    if (kv->memory == NULL)
        return error_set(err, E_NOMEM, "no memory for a KV cache of %llu MiB",
                         (unsigned long long)(kv->bytes >> 20));
    kv->buffer = ggml_backend_cpu_buffer_from_ptr(kv->memory, kv->bytes);
    if (kv->buffer == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    char *address = kv->memory;
    for (uint32_t i = 0; i < n_layers; i++) {
        if (kv->k[i] == NULL)
            continue;
        ggml_backend_tensor_alloc(kv->buffer, kv->k[i], address);
        address += ggml_nbytes(kv->k[i]);
        ggml_backend_tensor_alloc(kv->buffer, kv->v[i], address);
        address += ggml_nbytes(kv->v[i]);
    }
    return 0;
}

int kv_cache_init(struct kv_cache *kv, const struct model *m, const struct shard *s, uint32_t n_ctx,
                  uint32_t n_slots, struct error *err)
{
    *kv = (struct kv_cache){.n_ctx = (n_ctx + KV_PAD - 1) / KV_PAD * KV_PAD, .n_slots = n_slots};
    int rc = init(kv, m, s, err);
    if (rc != 0)
        kv_cache_done(kv);
    return rc;
}

void kv_cache_done(struct kv_cache *kv)
{
    ggml_backend_buffer_free(kv->buffer);
    memory_unreserve(kv->memory, kv->bytes);
    if (kv->context != NULL)
        ggml_free(kv->context);
    free(kv->k);
    free(kv->v);
    *kv = (struct kv_cache){0};
}
