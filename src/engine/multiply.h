/*
 * Multiplication of activations by quantized weights, for processors with AVX-512 VNNI: 16 rows of
 * a weight matrix lie together, four elements of each in turn, so that one instruction (VPDPBUSD)
 * multiplies and adds 64 of them, for one row of activations as for hundreds. What ggml has for
 * these types works on half as wide registers, and pays as much again for signs and shuffles.
 *
 * Activations are rounded to 8 bits in blocks of 32, as ggml does for types that have such blocks;
 * with Q4_0 the results are those of ggml's packed kernels to the last bit. ggml rounds in blocks
 * of 256 for K types, so that these are a little more exact here. A row's result does not depend on
 * the rows beside it, nor on the number of threads.
 *
 * Weights in this layout keep the ggml type and shape that they had in the file; only functions of
 * this header may read them. Thread: any; the operations run on all compute threads of a graph.
 */
#ifndef SHOAL_ENGINE_MULTIPLY_H
#define SHOAL_ENGINE_MULTIPLY_H

#include <ggml.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { MULTIPLY_GROUP = 16 /* rows of weights that are packed together */ };

/* Whether this processor can, for matrices of this type with so many columns: Q4_0, Q4_1, Q5_0,
 * Q5_1, Q8_0, and Q4_K, Q5_K, Q6_K, whose columns are a multiple of 256. */
bool multiply_can(enum ggml_type type, int64_t n_cols);
/* Of a packed matrix: as in the file, but for rows that fill up the last group. */
size_t multiply_bytes(enum ggml_type type, int64_t n_cols, int64_t n_rows);
/* Packs one group of n_rows rows, less than MULTIPLY_GROUP at the end of a matrix, as they are in
 * the file, one after another. ret_group: of multiply_bytes(type, n_cols, MULTIPLY_GROUP). */
void multiply_pack(enum ggml_type type, int64_t n_cols, const void *rows, int64_t n_rows,
                   void *ret_group);
/* Says that the tensor's memory is packed. */
void multiply_mark(struct ggml_tensor *weight);
bool multiply_is_packed(const struct ggml_tensor *weight);

/* Shares the groups of one multiplication among the threads, as each comes to it. Zeroed before the
 * first run of the graph; lives as long as the graph. */
typedef atomic_ullong multiply_tickets;

/* x [rows][n_cols] f32, rows contiguous, rounded for multiply_build: one serves all weights. */
struct ggml_tensor *multiply_quantize(struct ggml_context *ctx, struct ggml_tensor *x);
/* Returns [rows][weight rows] f32. */
struct ggml_tensor *multiply_build(struct ggml_context *ctx, struct ggml_tensor *weight,
                                   struct ggml_tensor *quantized, multiply_tickets *tickets);

#endif
