/*
 * Element types of weights as files store them, and the size of their blocks. The numbers are those
 * of the GGUF format (and so of ggml's enum ggml_type), but this folder does not include ggml.
 * Source: GGUF specification, "Tensor info"; ggml-common.h for block layouts. Thread: any;
 * constants.
 */
#ifndef SHOAL_MODEL_DTYPE_H
#define SHOAL_MODEL_DTYPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_F32 = 0,
    DTYPE_F16 = 1,
    DTYPE_Q4_0 = 2,
    DTYPE_Q4_1 = 3,
    DTYPE_Q5_0 = 6,
    DTYPE_Q5_1 = 7,
    DTYPE_Q8_0 = 8,
    DTYPE_Q8_1 = 9,
    DTYPE_Q2_K = 10,
    DTYPE_Q3_K = 11,
    DTYPE_Q4_K = 12,
    DTYPE_Q5_K = 13,
    DTYPE_Q6_K = 14,
    DTYPE_Q8_K = 15,
    DTYPE_IQ2_XXS = 16,
    DTYPE_IQ2_XS = 17,
    DTYPE_IQ3_XXS = 18,
    DTYPE_IQ1_S = 19,
    DTYPE_IQ4_NL = 20,
    DTYPE_IQ3_S = 21,
    DTYPE_IQ2_S = 22,
    DTYPE_IQ4_XS = 23,
    DTYPE_I8 = 24,
    DTYPE_I16 = 25,
    DTYPE_I32 = 26,
    DTYPE_I64 = 27,
    DTYPE_F64 = 28,
    DTYPE_IQ1_M = 29,
    DTYPE_BF16 = 30,
    DTYPE_TQ1_0 = 34,
    DTYPE_TQ2_0 = 35,
    DTYPE_MXFP4 = 39,
};

struct dtype_traits {
    const char *name;     /* "Q4_0" */
    uint32_t block_elems; /* elements in one block, along the row */
    uint32_t block_bytes;
};

/* NULL for a number that is not a known type. */
const struct dtype_traits *dtype_traits(uint32_t type);
/* Bytes of a row of n elements; 0 when n is not a whole number of blocks or the type is unknown. n
 * < 2^40. */
uint64_t dtype_row_bytes(uint32_t type, uint64_t n);

#endif
