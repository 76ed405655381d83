/*
 * How weights lie in memory once they are packed; for multiply.c, which reads them, and
 * multiply_pack.c, which writes them. They take as many bytes as in the file.
 *
 * Groups of 16 rows come one after another. In each, first the quants of all blocks of 32 columns,
 * then all scales. Quants are unsigned: what the type subtracts from them is left to the products.
 * They are taken in words of four, eight to a block: words 0 of rows 0, 1, .. 15, then words 1, and
 * so on, 64 bytes each if a quant has 8 bits. Else the lower four bits of words i and i + 4 share
 * their bytes; and behind these come the fifth bits of all eight words in 64 bytes, those of word i
 * in bit i + 4 modulo 8; or the fifth and sixth of words 0 to 3 and of 4 to 7, 64 bytes each, those
 * of word i in bits 2 i + 4 modulo 8 and above.
 *
 * Scales, for each block of the file: an f16 of each row; another if the type has mins. Blocks of K
 * types have 256 columns and small scales, by which these are multiplied: for each 32 columns a
 * scale and a min, of 6 bits, or with Q6_K a scale of the first 16 columns and one of the others,
 * of 8 bits and signed. These 16 numbers are packed as are quants, in words 0 to 3.
 */
#ifndef SHOAL_ENGINE_MULTIPLY_LAYOUT_H
#define SHOAL_ENGINE_MULTIPLY_LAYOUT_H

#include "engine/multiply.h"

enum {
    MULTIPLY_BLOCK = 32, /* columns of quants, and of activations that share a scale */
    MULTIPLY_WORDS = 8,  /* of a block */
    MULTIPLY_SMALL_WORDS = 4,
    MULTIPLY_WORD_BYTES = 4 * MULTIPLY_GROUP /* 8 bits each, of all rows */
};

/* Those that have a layout. */
#define MULTIPLY_TYPES(X) X(Q4_0) X(Q4_1) X(Q5_0) X(Q5_1) X(Q8_0) X(Q4_K) X(Q5_K) X(Q6_K)

struct multiply_layout {
    uint16_t file_block;       /* columns; 0: we have no layout for this type */
    uint16_t file_block_bytes; /* of one row */
    uint8_t quant_bits;        /* 4, 5, 6, 8 */
    uint8_t offset;            /* to be subtracted from quants */
    bool has_min;
    uint8_t small_bits; /* of small scales; 0: there are none */
};

/* Here for the products, to which it is a constant. */
static inline struct multiply_layout multiply_find_layout(enum ggml_type type)
{
    switch (type) {
    case GGML_TYPE_Q4_0:
        return (struct multiply_layout){32, 18, 4, 8, false, 0};
    case GGML_TYPE_Q4_1:
        return (struct multiply_layout){32, 20, 4, 0, true, 0};
    case GGML_TYPE_Q5_0:
        return (struct multiply_layout){32, 22, 5, 16, false, 0};
    case GGML_TYPE_Q5_1:
        return (struct multiply_layout){32, 24, 5, 0, true, 0};
    case GGML_TYPE_Q8_0:
        return (struct multiply_layout){32, 34, 8, 128, false, 0};
    case GGML_TYPE_Q4_K:
        return (struct multiply_layout){256, 144, 4, 0, true, 6};
    case GGML_TYPE_Q5_K:
        return (struct multiply_layout){256, 176, 5, 0, true, 6};
    case GGML_TYPE_Q6_K:
        return (struct multiply_layout){256, 210, 6, 32, false, 8};
    default:
        return (struct multiply_layout){0};
    }
}

/* Of so many words of a group. */
static inline size_t multiply_words_bytes(unsigned bits, size_t n_words)
{
    return n_words * MULTIPLY_WORD_BYTES * bits / 8;
}

/* Of a block of MULTIPLY_BLOCK columns of a group. */
static inline size_t multiply_quant_bytes(const struct multiply_layout *l)
{
    return multiply_words_bytes(l->quant_bits, MULTIPLY_WORDS);
}

/* Of a block of the file, for a group: all that is not quants. */
static inline size_t multiply_scale_bytes(const struct multiply_layout *l)
{
    return (size_t)MULTIPLY_GROUP * l->file_block_bytes -
           l->file_block / MULTIPLY_BLOCK * multiply_quant_bytes(l);
}

#endif
