#include "engine/multiply.h"

#include <assert.h>
#include <string.h>

enum { BLOCK = 32 /* elements that share a scale, of weights and of activations */ };

/* Memory of a packed matrix: groups of 16 rows one after another, in each first the quants of all
 * blocks, then their scales. Quants of a block: 64 bytes with elements 0..3 of rows 0, 1, .. 15,
 * then 4..7 and so on; of Q4 the halves of a byte are elements i and i + 16, as in the file. */
struct layout {
    size_t file_block_bytes; /* scale, min if there is one, quants */
    size_t quant_bytes;      /* of a block of one row */
    bool has_min;
};

static const struct layout *find_layout(enum ggml_type type)
{
    static const struct layout q4_0 = {18, 16, false}, q4_1 = {20, 16, true},
                               q8_0 = {34, 32, false};
    return type == GGML_TYPE_Q4_0   ? &q4_0
           : type == GGML_TYPE_Q4_1 ? &q4_1
           : type == GGML_TYPE_Q8_0 ? &q8_0
                                    : NULL;
}

static size_t group_bytes(const struct layout *l, int64_t n_cols)
{
    size_t n_scales = l->has_min ? 2 : 1;
    return (size_t)(n_cols / BLOCK) * MULTIPLY_GROUP *
           (l->quant_bytes + n_scales * sizeof(uint16_t));
}

size_t multiply_bytes(enum ggml_type type, int64_t n_cols, int64_t n_rows)
{
    return group_bytes(find_layout(type), n_cols) *
           (size_t)((n_rows + MULTIPLY_GROUP - 1) / MULTIPLY_GROUP);
}

void multiply_pack(enum ggml_type type, int64_t n_cols, const void *rows, int64_t n_rows,
                   void *ret_group)
{
    const struct layout *l = find_layout(type);
    size_t n_blocks = (size_t)(n_cols / BLOCK), n_scales = l->has_min ? 2 : 1;
    size_t row_bytes = n_blocks * l->file_block_bytes;
    uint8_t *quants = ret_group;
    uint8_t *scales = quants + n_blocks * MULTIPLY_GROUP * l->quant_bytes;
    memset(ret_group, 0, group_bytes(l, n_cols));
    for (size_t row = 0; row < (size_t)n_rows; row++) {
        const uint8_t *from = (const uint8_t *)rows + row * row_bytes;
        for (size_t b = 0; b < n_blocks; b++, from += l->file_block_bytes) {
            for (size_t k = 0; k < n_scales; k++)
                memcpy(scales + ((b * n_scales + k) * MULTIPLY_GROUP + row) * sizeof(uint16_t),
                       from + k * sizeof(uint16_t), sizeof(uint16_t));
            const uint8_t *q = from + n_scales * sizeof(uint16_t);
            uint8_t *to = quants + b * MULTIPLY_GROUP * l->quant_bytes + row * 4;
            for (size_t i = 0; i < l->quant_bytes; i += 4, to += MULTIPLY_GROUP * 4)
                memcpy(to, q + i, 4);
        }
    }
}

static const char packed; /* its address is the mark */

void multiply_mark(struct ggml_tensor *weight)
{
    weight->extra = (void *)(uintptr_t)&packed;
}

bool multiply_is_packed(const struct ggml_tensor *weight)
{
    return weight->extra == &packed;
}

#if defined(__x86_64__)

#include <immintrin.h>

/* The compiler's own target is any x86-64: these functions are only called after multiply_can. */
#define KERNEL                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define INLINE KERNEL __attribute__((always_inline)) static inline

bool multiply_can(enum ggml_type type, int64_t n_cols)
{
    return find_layout(type) != NULL && n_cols % BLOCK == 0 && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
}

/* ---- activations ---- */

struct activations { /* one block of a row */
    int8_t q[BLOCK];
    float scale;
    int32_t sum; /* of q */
};

/* As ggml rounds to Q8_0: the scale is an f16, the quants are to its f32. */
KERNEL static void quantize_block(const float *x, struct activations *ret)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    __m512 factor = _mm512_set1_ps(most != 0.0f ? 127.0f / most : 0.0f);
    __m512i p = _mm512_cvtps_epi32(_mm512_mul_ps(a, factor)),
            q = _mm512_cvtps_epi32(_mm512_mul_ps(b, factor));
    _mm_storeu_si128((__m128i *)(void *)ret->q, _mm512_cvtsepi32_epi8(p));
    _mm_storeu_si128((__m128i *)(void *)(ret->q + 16), _mm512_cvtsepi32_epi8(q));
    ret->scale = _cvtsh_ss(_cvtss_sh(most / 127.0f, _MM_FROUND_TO_NEAREST_INT));
    ret->sum = _mm512_reduce_add_epi32(_mm512_add_epi32(p, q));
}

static void quantize(struct ggml_tensor *dst, int ith, int nth, void *arg)
{
    const struct ggml_tensor *x = dst->src[0];
    int64_t n_blocks = x->ne[0] / BLOCK, n = n_blocks * x->ne[1];
    (void)arg;
    for (int64_t i = n * ith / nth; i < n * (ith + 1) / nth; i++) {
        int64_t row = i / n_blocks, block = i % n_blocks;
        const char *from = (const char *)x->data + (size_t)row * x->nb[1];
        quantize_block((const float *)(const void *)from + block * BLOCK,
                       (struct activations *)dst->data + i);
    }
}

/* ---- kernels ---- */

enum { TILE = 8 /* rows of activations at once: as many sums stay in registers */ };

struct tile {
    const uint8_t *quants, *scales; /* of the group */
    int64_t n_blocks;
    const struct activations *row[TILE];
    float *out[TILE];
    __mmask16 outputs; /* of the group's 16 rows those that the matrix has */
};

INLINE __m512i load(const uint8_t *p)
{
    return _mm512_loadu_si512((const void *)p);
}

INLINE __m512 load_scales(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* Four elements of a row of activations, for all 16 rows of weights. */
INLINE __m512i spread(const struct activations *a, int at)
{
    int32_t four;
    memcpy(&four, a->q + at, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* The halves of bytes as numbers 0..15: elements 0..15 of a block, then 16..31. */
INLINE void unpack_halves(const uint8_t *quants, __m512i ret[8])
{
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < 4; i++) {
        __m512i both = load(quants + 64 * i);
        ret[i] = _mm512_and_si512(both, low);
        ret[4 + i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

/* Signed bytes with 128 added. */
INLINE void unpack_bytes(const uint8_t *quants, __m512i ret[8])
{
    const __m512i sign = _mm512_set1_epi8((char)0x80);
    for (int i = 0; i < 8; i++)
        ret[i] = _mm512_xor_si512(load(quants + 64 * i), sign);
}

/* Sums of unsigned weights times activations; sums begins at what an offset of the weights needs.
 */
INLINE __m512i dot(const __m512i w[8], const struct activations *a, __m512i sums)
{
    for (int i = 0; i < 8; i++)
        sums = _mm512_dpbusd_epi32(sums, w[i], spread(a, 4 * i));
    return sums;
}

/* offset: what was added to the weights to make them unsigned. */
INLINE void add_block(const __m512i w[8], __m512 scales, const struct tile *t, int64_t b,
                      int offset, int n, __m512 *sums)
{
    for (int r = 0; r < n; r++) {
        const struct activations *a = &t->row[r][b];
        /* unsigned: what is no number may have any sum */
        uint32_t first = 0u - (uint32_t)offset * (uint32_t)a->sum;
        __m512i s = dot(w, a, _mm512_set1_epi32((int)first));
        sums[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(s),
                                  _mm512_mul_ps(scales, _mm512_set1_ps(a->scale)), sums[r]);
    }
}

INLINE void add_mins(__m512 mins, const struct tile *t, int64_t b, int n, __m512 *sums)
{
    for (int r = 0; r < n; r++) {
        const struct activations *a = &t->row[r][b];
        sums[r] = _mm512_fmadd_ps(mins, _mm512_set1_ps(a->scale * (float)a->sum), sums[r]);
    }
}

INLINE void run(const struct tile *t, enum ggml_type type, int n)
{
    const bool is_q8 = type == GGML_TYPE_Q8_0, has_min = type == GGML_TYPE_Q4_1;
    const int offset = is_q8 ? 128 : has_min ? 0 : 8, n_scales = has_min ? 2 : 1;
    __m512 sums[TILE];
    for (int r = 0; r < n; r++)
        sums[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < t->n_blocks; b++) {
        const uint8_t *scales = t->scales + 32 * n_scales * b;
        __m512i w[8];
        if (is_q8)
            unpack_bytes(t->quants + 512 * b, w);
        else
            unpack_halves(t->quants + 256 * b, w);
        if (has_min)
            add_mins(load_scales(scales + 32), t, b, n, sums);
        add_block(w, load_scales(scales), t, b, offset, n, sums);
    }
    for (int r = 0; r < n; r++)
        _mm512_mask_storeu_ps(t->out[r], t->outputs, sums[r]);
}

/* Type and number of rows are constants in each of these, so that the sums are registers. */
#define KERNELS(name, type)                                                                        \
    KERNEL static void name##_1(const struct tile *t)                                              \
    {                                                                                              \
        run(t, type, 1);                                                                           \
    }                                                                                              \
    KERNEL static void name##_2(const struct tile *t)                                              \
    {                                                                                              \
        run(t, type, 2);                                                                           \
    }                                                                                              \
    KERNEL static void name##_4(const struct tile *t)                                              \
    {                                                                                              \
        run(t, type, 4);                                                                           \
    }                                                                                              \
    KERNEL static void name##_8(const struct tile *t)                                              \
    {                                                                                              \
        run(t, type, 8);                                                                           \
    }

KERNELS(q4_0, GGML_TYPE_Q4_0)
KERNELS(q4_1, GGML_TYPE_Q4_1)
KERNELS(q8_0, GGML_TYPE_Q8_0)

typedef void (*kernel)(const struct tile *t);

struct kernels {
    kernel of[4]; /* for 1, 2, 4, 8 rows */
};

static struct kernels find_kernels(enum ggml_type type)
{
    switch (type) {
    case GGML_TYPE_Q4_0:
        return (struct kernels){{q4_0_1, q4_0_2, q4_0_4, q4_0_8}};
    case GGML_TYPE_Q4_1:
        return (struct kernels){{q4_1_1, q4_1_2, q4_1_4, q4_1_8}};
    default:
        return (struct kernels){{q8_0_1, q8_0_2, q8_0_4, q8_0_8}};
    }
}

/* ---- the operation ---- */

/* One group of rows of the weights, for all rows of activations. */
static void multiply_group(struct ggml_tensor *dst, const struct layout *l,
                           const struct kernels *kernels, int64_t group)
{
    const struct ggml_tensor *weight = dst->src[0], *x = dst->src[1];
    int64_t n_blocks = weight->ne[0] / BLOCK, n_rows = dst->ne[1];
    int64_t left = weight->ne[1] - group * MULTIPLY_GROUP;
    const uint8_t *base =
        (const uint8_t *)weight->data + (size_t)group * group_bytes(l, weight->ne[0]);
    struct tile t = {.quants = base,
                     .scales = base + (size_t)n_blocks * MULTIPLY_GROUP * l->quant_bytes,
                     .n_blocks = n_blocks,
                     .outputs = (__mmask16)(left < MULTIPLY_GROUP ? (1u << left) - 1 : 0xffff)};
    for (int64_t row = 0; row < n_rows;) {
        int size = n_rows - row >= 8 ? 3 : n_rows - row >= 4 ? 2 : n_rows - row >= 2 ? 1 : 0;
        for (int64_t r = 0; r < 1 << size; r++, row++) {
            t.row[r] = (const struct activations *)x->data + row * n_blocks;
            t.out[r] = (float *)(void *)((char *)dst->data + (size_t)row * dst->nb[1]) +
                       group * MULTIPLY_GROUP;
        }
        kernels->of[size](&t);
    }
}

/* Each thread takes tickets until it has one that is not for work; so a run takes as many as there
 * are shares of work and threads, and the next run begins where this one has ended. */
static void multiply(struct ggml_tensor *dst, int ith, int nth, void *arg)
{
    enum { SHARES = 8 /* for each thread: a slow one takes fewer */ };
    multiply_tickets *tickets = arg;
    enum ggml_type type = dst->src[0]->type;
    const struct layout *l = find_layout(type);
    struct kernels kernels = find_kernels(type);
    int64_t n_groups = (dst->src[0]->ne[1] + MULTIPLY_GROUP - 1) / MULTIPLY_GROUP;
    int64_t n_shares = nth > 1 ? (int64_t)nth * SHARES : 1;
    (void)ith;
    if (n_shares > n_groups)
        n_shares = n_groups;
    for (;;) {
        unsigned long long ticket = atomic_fetch_add_explicit(tickets, 1, memory_order_relaxed);
        int64_t share = (int64_t)(ticket % (unsigned long long)(n_shares + nth));
        if (share >= n_shares)
            return;
        for (int64_t g = n_groups * share / n_shares; g < n_groups * (share + 1) / n_shares; g++)
            multiply_group(dst, l, &kernels, g);
    }
}

struct ggml_tensor *multiply_quantize(struct ggml_context *ctx, struct ggml_tensor *x)
{
    assert(x->type == GGML_TYPE_F32 && x->nb[0] == sizeof(float) && x->ne[2] == 1);
    int64_t bytes = x->ne[0] / BLOCK * (int64_t)sizeof(struct activations);
    return ggml_custom_4d(ctx, GGML_TYPE_I8, bytes, x->ne[1], 1, 1, &x, 1, quantize,
                          GGML_N_TASKS_MAX, NULL);
}

struct ggml_tensor *multiply_build(struct ggml_context *ctx, struct ggml_tensor *weight,
                                   struct ggml_tensor *quantized, multiply_tickets *tickets)
{
    struct ggml_tensor *sources[] = {weight, quantized};
    return ggml_custom_4d(ctx, GGML_TYPE_F32, weight->ne[1], quantized->ne[1], 1, 1, sources, 2,
                          multiply, GGML_N_TASKS_MAX, tickets);
}

#else

bool multiply_can(enum ggml_type type, int64_t n_cols)
{
    (void)type, (void)n_cols;
    return false;
}

struct ggml_tensor *multiply_quantize(struct ggml_context *ctx, struct ggml_tensor *x)
{
    (void)ctx, (void)x;
    return NULL;
}

struct ggml_tensor *multiply_build(struct ggml_context *ctx, struct ggml_tensor *weight,
                                   struct ggml_tensor *quantized, multiply_tickets *tickets)
{
    (void)ctx, (void)weight, (void)quantized, (void)tickets;
    return NULL;
}

#endif
