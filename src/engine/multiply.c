#include "engine/multiply_layout.h"

#include <assert.h>
#include <string.h>

enum { BLOCK = MULTIPLY_BLOCK };

#if defined(__x86_64__)

#include <immintrin.h>

/* The compiler's own target is any x86-64: these functions are only called after multiply_can. */
#define KERNEL                                                                                     \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")))
#define INLINE KERNEL __attribute__((always_inline)) static inline

bool multiply_can(enum ggml_type type, int64_t n_cols)
{
    int64_t block = multiply_find_layout(type).file_block;
    return block != 0 && n_cols % block == 0 && __builtin_cpu_supports("avx512f") &&
           __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
           __builtin_cpu_supports("fma") && __builtin_cpu_supports("avx2");
}

/* ---- activations ---- */

struct activations { /* one block of a row */
    int8_t q[BLOCK];
    float scale;
    float scaled_sum;     /* scale times the sum of q */
    int32_t half_sums[2]; /* of q[0..15] and q[16..31] */
};

INLINE int sum_bytes(__m128i signed_bytes)
{
    return _mm512_reduce_add_epi32(_mm512_cvtepi8_epi32(signed_bytes));
}

/* As ggml rounds to Q8_0: the scale is an f16, the quants are to its f32. */
KERNEL static void quantize_block(const float *x, struct activations *ret)
{
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    __m512 factor = _mm512_set1_ps(most != 0.0f ? 127.0f / most : 0.0f);
    __m128i p = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(a, factor))),
            q = _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(b, factor)));
    int first = sum_bytes(p), other = sum_bytes(q);
    _mm_storeu_si128((__m128i *)(void *)ret->q, p);
    _mm_storeu_si128((__m128i *)(void *)(ret->q + 16), q);
    ret->scale = _cvtsh_ss(_cvtss_sh(most / 127.0f, _MM_FROUND_TO_NEAREST_INT));
    ret->half_sums[0] = first;
    ret->half_sums[1] = other;
    ret->scaled_sum = ret->scale * (float)(first + other);
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

INLINE __m512 load_f16(const uint8_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)p));
}

/* ---- words of weights or of small scales, of 16 rows: their bytes come out unsigned ---- */

INLINE void unpack_halves(const uint8_t *packed, int n_words, __m512i *ret)
{
    const __m512i low = _mm512_set1_epi8(15);
    for (int i = 0; i < n_words / 2; i++) {
        __m512i both = load(packed + MULTIPLY_WORD_BYTES * i);
        ret[i] = _mm512_and_si512(both, low);
        ret[n_words / 2 + i] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
    }
}

/* Their fifth bits, or the fifth and the sixth. */
INLINE void add_high_bits(const uint8_t *packed, bool has_sixth, int n_words, __m512i *words)
{
    const __m512i mask = _mm512_set1_epi8(has_sixth ? 0x30 : 0x10);
    const int n_shared = has_sixth ? 4 : 8; /* words whose bits share 64 bytes */
    __m512i all = _mm512_setzero_si512(), bits = all;
    for (int i = 0; i < n_words; i++) {
        if (i % n_shared == 0)
            bits = all = load(packed + MULTIPLY_WORD_BYTES * (i / n_shared));
        else if (i % n_shared == n_shared / 2)
            bits = _mm512_slli_epi16(all, 4);
        else
            bits = has_sixth ? _mm512_srli_epi16(bits, 2) : _mm512_srli_epi16(bits, 1);
        words[i] = _mm512_ternarylogic_epi32(words[i], bits, mask, 0xf8); /* a | (b & c) */
    }
}

INLINE void unpack(unsigned bits, const uint8_t *packed, int n_words, __m512i *ret)
{
    if (bits == 8) {
        for (int i = 0; i < n_words; i++)
            ret[i] = load(packed + MULTIPLY_WORD_BYTES * i);
        return;
    }
    unpack_halves(packed, n_words, ret);
    if (bits > 4)
        add_high_bits(packed + MULTIPLY_WORD_BYTES * n_words / 2, bits == 6, n_words, ret);
}

/* ---- products with a block of a row of activations ---- */

/* A word of a row of activations, for all 16 rows of weights. */
INLINE __m512i spread(const struct activations *a, int word)
{
    int32_t four;
    memcpy(&four, a->q + 4 * word, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* What makes up for the offset that unsigned weights have. */
INLINE __m512i begin(int offset, int sum)
{
    return _mm512_set1_epi32(-offset * sum);
}

/* Adds words of weights times words of activations. */
INLINE __m512i dot(__m512i sums, const __m512i w[MULTIPLY_WORDS], const struct activations *a,
                   int first, int end)
{
    for (int i = first; i < end; i++)
        sums = _mm512_dpbusd_epi32(sums, w[i], spread(a, i));
    return sums;
}

/* The block has one scale. */
INLINE __m512 add_block(const __m512i w[MULTIPLY_WORDS], __m512 scales, const struct activations *a,
                        int offset, __m512 sums)
{
    __m512i start =
        offset == 0 ? _mm512_setzero_si512() : begin(offset, a->half_sums[0] + a->half_sums[1]);
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(dot(start, w, a, 0, 8)),
                           _mm512_mul_ps(scales, _mm512_set1_ps(a->scale)), sums);
}

/* It has one for each half. */
INLINE __m512 add_halves(const __m512i w[MULTIPLY_WORDS], const __m512 scales[2],
                         const struct activations *a, int offset, __m512 sums)
{
    __m512 first = _mm512_cvtepi32_ps(dot(begin(offset, a->half_sums[0]), w, a, 0, 4)),
           other = _mm512_cvtepi32_ps(dot(begin(offset, a->half_sums[1]), w, a, 4, 8));
    __m512 both = _mm512_fmadd_ps(other, scales[1], _mm512_mul_ps(first, scales[0]));
    return _mm512_fmadd_ps(both, _mm512_set1_ps(a->scale), sums);
}

/* ---- kernels ---- */

/* A block of a group, for n rows of activations. scales: with Q6_K of the halves, else of the
 * block, then its min. */
INLINE void run_block(const struct tile *t, enum ggml_type type, int n, int64_t b,
                      const __m512 scales[2], __m512 sums[TILE])
{
    const struct multiply_layout l = multiply_find_layout(type);
    __m512i w[MULTIPLY_WORDS];
    unpack(l.quant_bits, t->quants + (size_t)b * multiply_quant_bytes(&l), MULTIPLY_WORDS, w);
#pragma GCC unroll 8 /* else the sums may not become registers */
    for (int r = 0; r < n; r++) {
        const struct activations *a = &t->row[r][b];
        if (l.has_min)
            sums[r] = _mm512_fmadd_ps(scales[1], _mm512_set1_ps(a->scaled_sum), sums[r]);
        sums[r] = type == GGML_TYPE_Q6_K ? add_halves(w, scales, a, l.offset, sums[r])
                                         : add_block(w, scales[0], a, l.offset, sums[r]);
    }
}

/* The lowest two bytes of each row as numbers. */
INLINE void take_bytes(__m512i words, bool are_signed, __m512 ret[2])
{
    const __m512i low = _mm512_set1_epi32(255);
    __m512i first = are_signed ? _mm512_srai_epi32(_mm512_slli_epi32(words, 24), 24)
                               : _mm512_and_si512(words, low);
    __m512i other = are_signed ? _mm512_srai_epi32(_mm512_slli_epi32(words, 16), 24)
                               : _mm512_and_si512(_mm512_srli_epi32(words, 8), low);
    ret[0] = _mm512_cvtepi32_ps(first);
    ret[1] = _mm512_cvtepi32_ps(other);
}

/* The blocks from b on that are one of the file, of a K type. big: as in run_block. */
INLINE void run_k_block(const struct tile *t, enum ggml_type type, int n, int64_t b,
                        const __m512 big[2], const uint8_t *small, __m512 sums[TILE])
{
    const struct multiply_layout l = multiply_find_layout(type);
    __m512i words[MULTIPLY_SMALL_WORDS];
    unpack(l.small_bits, small, MULTIPLY_SMALL_WORDS, words);
    for (int i = 0; i < MULTIPLY_SMALL_WORDS; i++)
        for (int k = 0; k < 2; k++, b++) {
            __m512 scales[2];
            take_bytes(words[i], !l.has_min, scales);
            scales[0] = _mm512_mul_ps(scales[0], big[0]);
            scales[1] = _mm512_mul_ps(scales[1], big[1]);
            run_block(t, type, n, b, scales, sums);
            words[i] = _mm512_srli_epi32(words[i], 16);
        }
}

INLINE void run(const struct tile *t, enum ggml_type type, int n)
{
    const struct multiply_layout l = multiply_find_layout(type);
    const uint8_t *from = t->scales;
    __m512 sums[TILE];
    for (int r = 0; r < n; r++)
        sums[r] = _mm512_setzero_ps();
    for (int64_t b = 0; b < t->n_blocks; b += l.file_block / BLOCK) {
        __m512 scales[2] = {load_f16(from), load_f16(from + (l.has_min ? 32 : 0))};
        if (l.small_bits == 0) {
            run_block(t, type, n, b, scales, sums);
        } else {
            if (l.has_min) /* K types subtract it */
                scales[1] = _mm512_sub_ps(_mm512_setzero_ps(), scales[1]);
            run_k_block(t, type, n, b, scales, from + (l.has_min ? 64 : 32), sums);
        }
        from += multiply_scale_bytes(&l);
    }
    for (int r = 0; r < n; r++)
        _mm512_mask_storeu_ps(t->out[r], t->outputs, sums[r]);
}

/* Type and number of rows are constants in each of these, so that the sums are registers. */
#define KERNELS(type)                                                                              \
    KERNEL static void run_##type##_1(const struct tile *t)                                        \
    {                                                                                              \
        run(t, GGML_TYPE_##type, 1);                                                               \
    }                                                                                              \
    KERNEL static void run_##type##_2(const struct tile *t)                                        \
    {                                                                                              \
        run(t, GGML_TYPE_##type, 2);                                                               \
    }                                                                                              \
    KERNEL static void run_##type##_4(const struct tile *t)                                        \
    {                                                                                              \
        run(t, GGML_TYPE_##type, 4);                                                               \
    }                                                                                              \
    KERNEL static void run_##type##_8(const struct tile *t)                                        \
    {                                                                                              \
        run(t, GGML_TYPE_##type, 8);                                                               \
    }

MULTIPLY_TYPES(KERNELS)

struct kernels {
    void (*of[4])(const struct tile *t); /* for 1, 2, 4, 8 rows */
};

static struct kernels find_kernels(enum ggml_type type)
{
#define CASE(type)                                                                                 \
    case GGML_TYPE_##type:                                                                         \
        return (struct kernels){{run_##type##_1, run_##type##_2, run_##type##_4, run_##type##_8}};
    switch (type) {
        MULTIPLY_TYPES(CASE)
    default:
        return (struct kernels){0};
    }
#undef CASE
}

/* ---- the operation ---- */

/* One group of rows of the weights, for all rows of activations. */
static void multiply_group(struct ggml_tensor *dst, const struct multiply_layout *l,
                           const struct kernels *kernels, int64_t group)
{
    const struct ggml_tensor *weight = dst->src[0], *x = dst->src[1];
    int64_t n_blocks = weight->ne[0] / BLOCK, n_rows = dst->ne[1];
    int64_t left = weight->ne[1] - group * MULTIPLY_GROUP;
    assert(left > 0);
    const uint8_t *base =
        (const uint8_t *)weight->data +
        (size_t)group * multiply_bytes(weight->type, weight->ne[0], MULTIPLY_GROUP);
    struct tile t = {.quants = base,
                     .scales = base + (size_t)n_blocks * multiply_quant_bytes(l),
                     .n_blocks = n_blocks,
                     .outputs = (__mmask16)(left < MULTIPLY_GROUP ? (1u << left) - 1 : 0xffff)};
    for (int64_t row = 0; row < n_rows;) {
        int size = n_rows - row >= 8 ? 3 : n_rows - row >= 4 ? 2 : n_rows - row >= 2 ? 1 : 0;
        for (int64_t r = 0; r < 1 << size; r++, row++) {
            t.row[r] = (const struct activations *)x->data + row * n_blocks;
            t.out[r] = (float *)(void *)((char *)dst->data + (size_t)row * dst->nb[1]) +
                       group * MULTIPLY_GROUP;
        }
        assert(kernels->of[size] != NULL);
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
    const struct multiply_layout l = multiply_find_layout(type);
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
            multiply_group(dst, &l, &kernels, g);
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
