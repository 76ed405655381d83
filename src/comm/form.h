/*
 * The forms in which values travel (enum comm_wire), as pure functions. A value that was encoded
 * and decoded has the same bits on every machine. Thread: any.
 *
 * F16: what is larger than 65504, infinities too, becomes 65504 with its sign; a NaN stays one.
 * Q8: blocks of FORM_BLOCK values, an f16 scale and then one signed byte each: value = scale x
 * byte. The last block of a vector may be shorter. A block with a NaN or an infinity in it becomes
 * NaN: its scale is.
 */
#ifndef SHOAL_COMM_FORM_H
#define SHOAL_COMM_FORM_H

#include "comm/comm.h"

/* Vectors are cut at multiples of this many elements, in every form. */
enum { FORM_BLOCK = 32 };

/* Bytes of n values. */
size_t form_bytes(enum comm_wire form, size_t n);
/* How many of the first values of a vector of n lie wholly in its first `bytes` bytes; a multiple
 * of FORM_BLOCK unless it is all. */
size_t form_elements(enum comm_wire form, size_t n, size_t bytes);
void form_encode(enum comm_wire form, const float *x, size_t n, uint8_t *to);
void form_decode(enum comm_wire form, const uint8_t *from, size_t n, float *to);
/* to[i] = to[i] + value i */
void form_add(enum comm_wire form, const uint8_t *from, size_t n, float *to);

#endif
