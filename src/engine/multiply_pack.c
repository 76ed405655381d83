#include "engine/multiply_layout.h"

#include <assert.h>
#include <string.h>

#define INLINE __attribute__((always_inline)) static inline

INLINE uint32_t load_word(const uint8_t *p)
{
    uint32_t word;
    memcpy(&word, p, sizeof(word));
    return word;
}

/* The lower or the upper halves of four bytes. */
INLINE uint32_t load_halves(const uint8_t *p, bool is_upper)
{
    return load_word(p) >> (is_upper ? 4 : 0) & 0x0f0f0f0f;
}

/* The lowest four bits of a number, each in the fifth bit of a byte. */
INLINE uint32_t spread_fifth(uint32_t bits)
{
    return ((bits & 15) * 0x00204081 & 0x01010101) << 4;
}

/* The quants of 32 columns. block: of the file; part: which 32 columns of it. */
INLINE void load_quants(enum ggml_type type, const uint8_t *block, size_t part,
                        uint32_t ret_words[MULTIPLY_WORDS])
{
    const uint8_t *low, *high;
    uint32_t fifth;
    switch (type) {
    case GGML_TYPE_Q4_0:
    case GGML_TYPE_Q4_1:
        low = block + (type == GGML_TYPE_Q4_0 ? 2 : 4);
        for (size_t i = 0; i < MULTIPLY_WORDS; i++)
            ret_words[i] = load_halves(low + 4 * (i % 4), i >= 4);
        break;
    case GGML_TYPE_Q5_0:
    case GGML_TYPE_Q5_1:
        high = block + (type == GGML_TYPE_Q5_0 ? 2 : 4);
        fifth = load_word(high);
        for (size_t i = 0; i < MULTIPLY_WORDS; i++)
            ret_words[i] =
                load_halves(high + 4 + 4 * (i % 4), i >= 4) | spread_fifth(fifth >> 4 * i);
        break;
    case GGML_TYPE_Q8_0: /* signed */
        for (size_t i = 0; i < MULTIPLY_WORDS; i++)
            ret_words[i] = load_word(block + 2 + 4 * i) ^ 0x80808080;
        break;
    case GGML_TYPE_Q4_K: /* two parts share 32 bytes */
        low = block + 16 + 32 * (part / 2);
        for (size_t i = 0; i < MULTIPLY_WORDS; i++)
            ret_words[i] = load_halves(low + 4 * i, part & 1);
        break;
    case GGML_TYPE_Q5_K: /* and all parts the 32 bytes of fifth bits */
        high = block + 16;
        low = block + 48 + 32 * (part / 2);
        for (size_t i = 0; i < MULTIPLY_WORDS; i++)
            ret_words[i] = load_halves(low + 4 * i, part & 1) |
                           (load_word(high + 4 * i) >> part & 0x01010101) << 4;
        break;
    default: /* Q6_K: four parts share 64 bytes, and 32 of fifth and sixth bits */
        low = block + 64 * (part / 4) + 32 * (part & 1);
        high = block + 128 + 32 * (part / 4);
        for (size_t i = 0; i < MULTIPLY_WORDS; i++)
            ret_words[i] = load_halves(low + 4 * i, part & 2) |
                           (load_word(high + 4 * i) >> 2 * (part % 4) & 0x03030303) << 4;
    }
}

/* The small scales of a block of the file. */
INLINE void load_small(enum ggml_type type, const uint8_t *block,
                       uint32_t ret_words[MULTIPLY_SMALL_WORDS])
{
    if (type == GGML_TYPE_Q6_K) {
        memcpy(ret_words, block + 192, 16);
        return;
    }
    /* Scales 0 to 3 have the lower six bits of bytes 0 to 3, and mins those of bytes 4 to 7. The
     * lower four bits of the other ones share bytes 8 to 11; the upper two are above the six. */
    uint32_t a = load_word(block + 4), b = load_word(block + 8), c = load_word(block + 12);
    uint32_t words[4] = {a & 0x3f3f3f3f, b & 0x3f3f3f3f, (c & 0x0f0f0f0f) | (a >> 2 & 0x30303030),
                         (c >> 4 & 0x0f0f0f0f) | (b >> 2 & 0x30303030)};
    uint8_t numbers[16];
    for (size_t i = 0; i < 16; i++) /* scale and min by turns */
        numbers[i] = (uint8_t)(words[i / 8 * 2 + i % 2] >> i % 8 / 2 * 8);
    memcpy(ret_words, numbers, sizeof(numbers));
}

/* Packs the words of one row: ret is where the group's first ones begin, and zero. */
INLINE void pack_words(unsigned bits, const uint32_t *words, size_t n_words, size_t row,
                       uint8_t *ret)
{
    uint8_t *to = ret + 4 * row;
    if (bits == 8) {
        for (size_t i = 0; i < n_words; i++, to += MULTIPLY_WORD_BYTES)
            memcpy(to, &words[i], 4);
        return;
    }
    uint32_t high[2] = {0};
    for (size_t i = 0; i < n_words / 2; i++, to += MULTIPLY_WORD_BYTES) {
        uint32_t both = (words[i] & 0x0f0f0f0f) | (words[i + n_words / 2] & 0x0f0f0f0f) << 4;
        memcpy(to, &both, 4);
    }
    unsigned more = bits - 4;
    for (size_t i = 0; i < n_words; i++)
        high[i * more / 8] |= (words[i] >> 4 & 0x03030303) << (i * more + 4) % 8;
    for (size_t i = 0; i < n_words * more / 8; i++, to += MULTIPLY_WORD_BYTES)
        memcpy(to, &high[i], 4);
}

INLINE void pack_scales(enum ggml_type type, const struct multiply_layout *l, const uint8_t *block,
                        size_t row, uint8_t *ret_scales)
{
    const uint8_t *from = type == GGML_TYPE_Q6_K ? block + 208 : block;
    for (size_t i = 0; i < (l->has_min ? 2 : 1); i++, ret_scales += 2 * MULTIPLY_GROUP)
        memcpy(ret_scales + 2 * row, from + 2 * i, 2);
    if (l->small_bits == 0)
        return;
    uint32_t words[MULTIPLY_SMALL_WORDS];
    load_small(type, block, words);
    pack_words(l->small_bits, words, MULTIPLY_SMALL_WORDS, row, ret_scales);
}

/* Block by block and there row by row, so that what is written lies together. */
INLINE void pack_group(enum ggml_type type, int64_t n_cols, const uint8_t *rows, size_t n_rows,
                       uint8_t *ret_group)
{
    const struct multiply_layout l = multiply_find_layout(type);
    size_t n_parts = l.file_block / MULTIPLY_BLOCK, n = (size_t)(n_cols / l.file_block);
    uint8_t *quants = ret_group, *scales = quants + n * n_parts * multiply_quant_bytes(&l);
    for (size_t b = 0; b < n; b++, scales += multiply_scale_bytes(&l)) {
        for (size_t row = 0; row < n_rows; row++) {
            const uint8_t *block = rows + (row * n + b) * l.file_block_bytes;
            pack_scales(type, &l, block, row, scales);
            for (size_t part = 0; part < n_parts; part++) {
                uint32_t words[MULTIPLY_WORDS];
                load_quants(type, block, part, words);
                pack_words(l.quant_bits, words, MULTIPLY_WORDS, row,
                           quants + part * multiply_quant_bytes(&l));
            }
        }
        quants += n_parts * multiply_quant_bytes(&l);
    }
}

/* The type is a constant in each of the calls: that makes them twice as fast. */
void multiply_pack(enum ggml_type type, int64_t n_cols, const void *rows, int64_t n_rows,
                   void *ret_group)
{
    size_t n = (size_t)n_rows;
    memset(ret_group, 0, multiply_bytes(type, n_cols, MULTIPLY_GROUP));
#define CASE(t)                                                                                    \
    case GGML_TYPE_##t:                                                                            \
        pack_group(GGML_TYPE_##t, n_cols, rows, n, ret_group);                                     \
        break;
    switch (type) {
        MULTIPLY_TYPES(CASE)
    default:
        break;
    }
#undef CASE
}

size_t multiply_bytes(enum ggml_type type, int64_t n_cols, int64_t n_rows)
{
    struct multiply_layout l = multiply_find_layout(type);
    assert(l.file_block > 0);
    size_t n_groups = (size_t)((n_rows + MULTIPLY_GROUP - 1) / MULTIPLY_GROUP);
    return n_groups * MULTIPLY_GROUP * (size_t)(n_cols / l.file_block) * l.file_block_bytes;
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
