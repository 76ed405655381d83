#include "comm/form.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

enum { Q8_BLOCK_BYTES = 2 + FORM_BLOCK };

static uint32_t float_bits(float f)
{
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    return bits;
}

static float bits_float(uint32_t bits)
{
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

/* ---- one value ---- */

static uint16_t half_from_float(float f)
{
    uint32_t bits = float_bits(f), a = bits & 0x7fffffffu, sign = bits >> 16 & 0x8000u;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (a > 0x477fe000u) /* 65504 */
        a = 0x477fe000u;
    if (a < 0x38800000u) { /* below 2^-14: adding 0.5 rounds to a multiple of 2^-24 */
        uint32_t half = float_bits(bits_float(a) + 0.5f) - 0x3f000000u;
        return (uint16_t)(sign | half);
    }
    a += 0xc8000fffu + (a >> 13 & 1); /* exponent of 5 bits; to nearest, ties to even */
    return (uint16_t)(sign | a >> 13);
}

static float float_from_half(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, a = (uint32_t)(h & 0x7fffu) << 13;
    if (a >= 0x0f800000u) /* an infinity or a NaN */
        return bits_float(sign | a | 0x7f800000u);
    if (a < 0x00800000u) /* below 2^-14 */
        return bits_float(sign | float_bits(bits_float(a + 0x38800000u) - bits_float(0x38800000u)));
    return bits_float(sign | (a + 0x38000000u));
}

static uint16_t get_half(const uint8_t *from)
{
    uint16_t h;
    memcpy(&h, from, sizeof(h));
    return h;
}

/* ---- blocks of up to 32 values ---- */

static void encode_block(const float *x, size_t n, uint8_t *to)
{
    int32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t a = (int32_t)(float_bits(x[i]) & 0x7fffffffu);
        largest = a > largest ? a : largest;
    }
    bool finite = largest < 0x7f800000;
    uint16_t half = finite ? half_from_float(bits_float((uint32_t)largest) / 127.0f) : 0x7e00u;
    memcpy(to, &half, sizeof(half));
    /* From the scale as it travels, so that its rounding costs nothing more. */
    float scale = finite ? float_from_half(half) : 0, inverse = scale > 0 ? 1.0f / scale : 0;
    if (!finite) {
        memset(to + 2, 0, n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        /* A saturated or a very small scale leaves values beyond 127 steps. */
        float v = x[i] * inverse;
        v = v > 127.0f ? 127.0f : v;
        v = v < -127.0f ? -127.0f : v;
        /* 1.5 x 2^23 leaves no room for a fraction: rounds to nearest, ties to even. */
        int32_t q = (int32_t)(float_bits(v + 12582912.0f) - 0x4b400000u);
        to[2 + i] = (uint8_t)q;
    }
}

static void encode_q8(const float *x, size_t n, uint8_t *to)
{
    for (; n >= FORM_BLOCK; n -= FORM_BLOCK, x += FORM_BLOCK, to += Q8_BLOCK_BYTES)
        encode_block(x, FORM_BLOCK, to);
    if (n > 0)
        encode_block(x, n, to);
}

static void take_block(const uint8_t *from, size_t n, float *to, bool add)
{
    float scale = float_from_half(get_half(from));
    for (size_t i = 0; i < n; i++) {
        float v = scale * (float)(int8_t)from[2 + i];
        to[i] = add ? to[i] + v : v;
    }
}

static void take_q8(const uint8_t *from, size_t n, float *to, bool add)
{
    for (; n >= FORM_BLOCK; n -= FORM_BLOCK, to += FORM_BLOCK, from += Q8_BLOCK_BYTES)
        take_block(from, FORM_BLOCK, to, add);
    if (n > 0)
        take_block(from, n, to, add);
}

/* ---- halves ---- */

static void encode_f16(const float *x, size_t n, uint8_t *to)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h = half_from_float(x[i]);
        memcpy(to + 2 * i, &h, sizeof(h));
    }
}

static void take_f16(const uint8_t *from, size_t n, float *to, bool add)
{
    for (size_t i = 0; i < n; i++) {
        float v = float_from_half(get_half(from + 2 * i));
        to[i] = add ? to[i] + v : v;
    }
}

/* ---- the same with wide vectors ---- */

#if defined(__x86_64__)

enum { WIDE = 8 };

static bool has_wide(void)
{
    enum { UNKNOWN, NO, YES };
    static _Atomic int known = UNKNOWN; /* asking takes microseconds in a virtual machine */
    if (known == UNKNOWN) {
        unsigned a, b, c = 0, d;
        known = __builtin_cpu_supports("avx2") && __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C
                    ? YES
                    : NO;
    }
    return known == YES;
}

__attribute__((target("avx2,f16c"))) static void encode_f16_wide(const float *x, size_t n,
                                                                 uint8_t *to)
{
    const __m256 limit = _mm256_set1_ps(65504.0f), low = _mm256_set1_ps(-65504.0f);
    size_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        /* Of a NaN and a number these give the second operand. */
        __m256 v = _mm256_max_ps(low, _mm256_min_ps(limit, _mm256_loadu_ps(x + i)));
        __m128i h = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
        _mm_storeu_si128((__m128i_u *)(void *)(to + 2 * i), h);
    }
    encode_f16(x + i, n - i, to + 2 * i);
}

__attribute__((target("avx2,f16c"))) static void take_f16_wide(const uint8_t *from, size_t n,
                                                               float *to, bool add)
{
    size_t i = 0;
    for (; i + WIDE <= n; i += WIDE) {
        __m256 v =
            _mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u *)(const void *)(from + 2 * i)));
        if (add)
            v = _mm256_add_ps(_mm256_loadu_ps(to + i), v);
        _mm256_storeu_ps(to + i, v);
    }
    take_f16(from + 2 * i, n - i, to + i, add);
}

/* The same steps as encode_block(), on a whole block. */
__attribute__((target("avx2,f16c"))) static void encode_q8_wide(const float *x, size_t n,
                                                                uint8_t *to)
{
    const __m256i positive = _mm256_set1_epi32(0x7fffffff);
    const __m256 limit = _mm256_set1_ps(127.0f), low = _mm256_set1_ps(-127.0f);
    for (; n >= FORM_BLOCK; n -= FORM_BLOCK, x += FORM_BLOCK, to += Q8_BLOCK_BYTES) {
        __m256 v[4];
        __m256i a = _mm256_setzero_si256(), q[4];
        for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + WIDE * i);
            a = _mm256_max_epi32(a, _mm256_and_si256(_mm256_castps_si256(v[i]), positive));
        }
        __m128i b = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
        b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0x4e));
        b = _mm_max_epi32(b, _mm_shuffle_epi32(b, 0xb1));
        uint32_t largest = (uint32_t)_mm_cvtsi128_si32(b);
        if (largest >= 0x7f800000u) {
            encode_block(x, FORM_BLOCK, to);
            continue;
        }
        uint16_t half = half_from_float(bits_float(largest) / 127.0f);
        memcpy(to, &half, sizeof(half));
        float scale = float_from_half(half);
        __m256 inverse = _mm256_set1_ps(scale > 0 ? 1.0f / scale : 0);
        for (int i = 0; i < 4; i++) {
            __m256 r = _mm256_mul_ps(v[i], inverse);
            q[i] = _mm256_cvtps_epi32(_mm256_max_ps(_mm256_min_ps(r, limit), low));
        }
        /* Packing works on each half of the registers alone: the last step puts fours in order. */
        __m256i bytes =
            _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
        _mm256_storeu_si256((__m256i_u *)(void *)(to + 2), bytes);
    }
    if (n > 0)
        encode_block(x, n, to);
}

__attribute__((target("avx2,f16c"))) static void take_q8_wide(const uint8_t *from, size_t n,
                                                              float *to, bool add)
{
    for (; n >= FORM_BLOCK; n -= FORM_BLOCK, to += FORM_BLOCK, from += Q8_BLOCK_BYTES) {
        __m256 scale = _mm256_set1_ps(float_from_half(get_half(from)));
        for (int i = 0; i < 4; i++) {
            __m128i bytes = _mm_loadl_epi64((const __m128i_u *)(const void *)(from + 2 + WIDE * i));
            __m256 v = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)));
            if (add)
                v = _mm256_add_ps(_mm256_loadu_ps(to + WIDE * i), v);
            _mm256_storeu_ps(to + WIDE * i, v);
        }
    }
    if (n > 0)
        take_block(from, n, to, add);
}

#else

static bool has_wide(void)
{
    return false;
}

#define encode_f16_wide encode_f16
#define take_f16_wide   take_f16
#define encode_q8_wide  encode_q8
#define take_q8_wide    take_q8

#endif

/* ---- what the rest of comm calls ---- */

size_t form_bytes(enum comm_wire form, size_t n)
{
    switch (form) {
    case COMM_WIRE_F16:
        return n * sizeof(uint16_t);
    case COMM_WIRE_Q8:
        return n / FORM_BLOCK * Q8_BLOCK_BYTES + (n % FORM_BLOCK > 0 ? 2 + n % FORM_BLOCK : 0);
    default:
        return n * sizeof(float);
    }
}

size_t form_elements(enum comm_wire form, size_t n, size_t bytes)
{
    if (bytes == form_bytes(form, n))
        return n;
    return bytes / form_bytes(form, FORM_BLOCK) * FORM_BLOCK;
}

void form_encode(enum comm_wire form, const float *x, size_t n, uint8_t *to)
{
    bool wide = has_wide();
    if (form == COMM_WIRE_F16)
        (wide ? encode_f16_wide : encode_f16)(x, n, to);
    else if (form == COMM_WIRE_Q8)
        (wide ? encode_q8_wide : encode_q8)(x, n, to);
    else if (n > 0)
        memcpy(to, x, n * sizeof(float));
}

static void take(enum comm_wire form, const uint8_t *from, size_t n, float *to, bool add)
{
    bool wide = has_wide();
    if (form == COMM_WIRE_F16)
        (wide ? take_f16_wide : take_f16)(from, n, to, add);
    else
        (wide ? take_q8_wide : take_q8)(from, n, to, add);
}

void form_decode(enum comm_wire form, const uint8_t *from, size_t n, float *to)
{
    if (form != COMM_WIRE_F32)
        take(form, from, n, to, false);
    else if (n > 0)
        memcpy(to, from, n * sizeof(float));
}

void form_add(enum comm_wire form, const uint8_t *from, size_t n, float *to)
{
    if (form != COMM_WIRE_F32) {
        take(form, from, n, to, true);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        float v;
        memcpy(&v, from + i * sizeof(v), sizeof(v));
        to[i] = to[i] + v;
    }
}
