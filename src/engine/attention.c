#include "engine/attention.h"

#include <assert.h>
#include <ggml-cpu.h>
#include <string.h>

enum {
    LANES = 16, /* partial sums of a dot product: what the widest registers hold */
    HEAD_DIM_MAX = 256,
    HEADS_MAX = 512, /* query heads of a rank */
    TILE = 32,       /* cells converted at once: 32 KiB of floats at most */
};

/* The loops below are written so that compilers vectorize them; on x86 for what the processor has,
 * found out when the program starts. */
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) &&       \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define FOR_EACH_CPU __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define FOR_EACH_CPU
#endif
/* Below any product that can occur; finite, so that differences stay numbers. */
#define LOWEST (-1e30f)
#define INLINE static inline __attribute__((always_inline))

/* The query heads of a row that share a KV head, on their way over the cells. */
struct pass {
    const float *q; /* [n_heads][head_dim] */
    float *out;     /* [n_heads][head_dim]: weighted sum of values so far */
    float *max, *sum;
    int n_heads, head_dim;
    float scale;
};

INLINE float sum_lanes(float *sums)
{
    for (int width = LANES / 2; width > 0; width /= 2)
        for (int j = 0; j < width; j++)
            sums[j] += sums[j + width];
    return sums[0];
}

/* Products of q with four keys. */
INLINE void dot_four(const float *q, const float *k, int n, float *ret)
{
    float sums[4][LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            sums[0][j] += q[i + j] * k[i + j];
            sums[1][j] += q[i + j] * k[n + i + j];
            sums[2][j] += q[i + j] * k[2 * n + i + j];
            sums[3][j] += q[i + j] * k[3 * n + i + j];
        }
    for (int c = 0; c < 4; c++)
        ret[c] = sum_lanes(sums[c]);
}

/* e^x for x <= 0, to 2 units in the last place (polynomial of Cephes' expf). */
INLINE float exp_negative(float x)
{
    x = x > -87.0f ? x : -87.0f; /* no number is taken as the least one */
    float n = (float)(int32_t)(x * 1.44269504f - 0.5f), r = x - n * 0.693359375f;
    r += n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    union {
        int32_t bits;
        float value;
    } power = {.bits = ((int32_t)n + 127) << 23};
    return p * power.value;
}

/* n cells go into the pass: k, v [TILE][head_dim] as floats, zeros behind the last one. */
FOR_EACH_CPU static void take_tile(const struct pass *p, const float *k, const float *v, int n)
{
    float weight[TILE] = {0};
    int dim = p->head_dim;
    for (int h = 0; h < p->n_heads; h++) {
        float *out = p->out + h * dim, max = p->max[h], sum = 0.0f;
        for (int c = 0; c < TILE; c += 4)
            dot_four(p->q + h * dim, k + c * dim, dim, weight + c);
        for (int c = 0; c < TILE; c++)
            weight[c] *= p->scale;
        for (int c = 0; c < n; c++)
            max = weight[c] > max ? weight[c] : max;
        for (int c = 0; c < TILE; c++)
            weight[c] = exp_negative(weight[c] - max);
        for (int c = n; c < TILE; c++)
            weight[c] = 0.0f;
        for (int c = 0; c < TILE; c++)
            sum += weight[c];
        float keep = exp_negative(p->max[h] - max);
        for (int i = 0; i < dim; i++)
            out[i] *= keep;
        for (int c = 0; c < TILE; c += 4) {
            const float *value = v + c * dim;
            for (int i = 0; i < dim; i++)
                out[i] += weight[c] * value[i] + weight[c + 1] * value[dim + i] +
                          weight[c + 2] * value[2 * dim + i] + weight[c + 3] * value[3 * dim + i];
        }
        p->sum[h] = p->sum[h] * keep + sum;
        p->max[h] = max;
    }
}

/* Cells of one KV head as floats. */
static void convert(const struct ggml_tensor *cache, int64_t cell, int64_t kv_head, int n, int dim,
                    float *ret)
{
    const char *row = (const char *)cache->data + (size_t)cell * cache->nb[1] +
                      (size_t)(kv_head * dim) * sizeof(ggml_fp16_t);
    for (int c = 0; c < n; c++, row += cache->nb[1])
        ggml_cpu_fp16_to_fp32((const ggml_fp16_t *)(const void *)row, ret + c * dim, dim);
    memset(ret + n * dim, 0, (size_t)((TILE - n) * dim) * sizeof(float));
}

/* One row, KV heads [kv_first, kv_end) and the query heads that share them. The tile is the outer
 * loop: a cell's heads lie next to each other. */
static void attend(struct ggml_tensor *dst, int64_t row, int64_t kv_first, int64_t kv_end,
                   const struct attention_settings *s)
{
    const struct ggml_tensor *q = dst->src[0], *k = dst->src[1], *v = dst->src[2];
    int64_t dim = q->ne[0], n_group = q->ne[1] / (k->ne[0] / dim), first_head = kv_first * n_group;
    int64_t n_heads = (kv_end - kv_first) * n_group;
    int64_t position = ((const int32_t *)dst->src[4]->data)[row];
    int64_t end = ((const int64_t *)dst->src[3]->data)[row] + 1;
    int64_t n_seen = s->window != 0 && position + 1 > s->window ? s->window : position + 1;
    const float *queries =
        (const float *)(const void *)((const char *)q->data + (size_t)row * q->nb[2]) +
        first_head * dim;
    float *out = (float *)(void *)((char *)dst->data + (size_t)row * dst->nb[1]) + first_head * dim;
    float max[HEADS_MAX], sum[HEADS_MAX], keys[TILE * HEAD_DIM_MAX], values[TILE * HEAD_DIM_MAX];
    for (int h = 0; h < HEADS_MAX; h++) {
        max[h] = LOWEST;
        sum[h] = 0.0f;
    }
    memset(out, 0, (size_t)(n_heads * dim) * sizeof(float));
    for (int64_t cell = end - n_seen; cell < end; cell += TILE) {
        int n = end - cell < TILE ? (int)(end - cell) : TILE;
        for (int64_t g = 0; g < kv_end - kv_first; g++) {
            int64_t at = g * n_group;
            struct pass p = {.q = queries + at * dim,
                             .out = out + at * dim,
                             .max = max + at,
                             .sum = sum + at,
                             .n_heads = (int)n_group,
                             .head_dim = (int)dim,
                             .scale = s->scale};
            convert(k, cell, kv_first + g, n, (int)dim, keys);
            convert(v, cell, kv_first + g, n, (int)dim, values);
            take_tile(&p, keys, values, n);
        }
    }
    for (int64_t h = 0; h < n_heads; h++)
        for (int64_t i = 0; i < dim; i++)
            out[h * dim + i] /= sum[h];
}

/* src: q, k, v, cells, positions of the rows. A row is for one thread, or, where rows are fewer
 * than threads, for several: each takes some of its heads. */
static void run(struct ggml_tensor *dst, int ith, int nth, void *arg)
{
    int64_t n_rows = dst->src[4]->ne[0], n_kv_heads = dst->src[1]->ne[0] / dst->src[0]->ne[0];
    int64_t n_shares = n_rows >= nth ? 1 : nth < n_kv_heads ? nth : n_kv_heads;
    for (int64_t item = ith; item < n_rows * n_shares; item += nth) {
        int64_t share = item % n_shares;
        attend(dst, item / n_shares, n_kv_heads * share / n_shares,
               n_kv_heads * (share + 1) / n_shares, arg);
    }
    if (ith == 0 && dst->ne[1] > n_rows)
        memset((char *)dst->data + (size_t)n_rows * dst->nb[1], 0,
               (size_t)(dst->ne[1] - n_rows) * dst->nb[1]);
}

bool attention_can(enum ggml_type type, int64_t head_dim, int64_t n_heads)
{
    return type == GGML_TYPE_F16 && head_dim % LANES == 0 && head_dim <= HEAD_DIM_MAX &&
           n_heads <= HEADS_MAX;
}

struct ggml_tensor *attention_build(struct ggml_context *ctx, struct ggml_tensor *q,
                                    struct ggml_tensor *k, struct ggml_tensor *v,
                                    struct ggml_tensor *cells, struct ggml_tensor *positions,
                                    struct attention_rows rows,
                                    const struct attention_settings *settings)
{
    assert(q->nb[1] == (size_t)q->ne[0] * sizeof(float)); /* heads lie next to each other */
    struct ggml_tensor *sources[] = {
        ggml_view_3d(ctx, q, q->ne[0], q->ne[1], rows.n, q->nb[1], q->nb[2], rows.first * q->nb[2]),
        k, v, ggml_view_1d(ctx, cells, rows.n, rows.first * cells->nb[0]),
        ggml_view_1d(ctx, positions, rows.n, rows.first * positions->nb[0])};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, q->ne[0] * q->ne[1], rows.n_out, 1, 1, sources,
                          (int)(sizeof(sources) / sizeof(sources[0])), run, GGML_N_TASKS_MAX,
                          (void *)(uintptr_t)settings);
}
