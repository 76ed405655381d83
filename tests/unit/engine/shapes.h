/* Shapes of tiny models that the engine's tests share, and tokens for them. */
#ifndef TEST_SHAPES_H
#define TEST_SHAPES_H

#include "engine/engine.h"
#include "reference.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

static const struct tiny_shape llama_shape = {.n_layer = 3,
                                              .n_embd = 64,
                                              .n_ff = 160,
                                              .n_head = 6,
                                              .n_head_kv = 3,
                                              .head_dim = 16,
                                              .n_vocab = 200};
static const struct tiny_shape gemma_shape = {.is_gemma = true,
                                              .n_layer = 7,
                                              .n_embd = 64,
                                              .n_ff = 128,
                                              .n_head = 4,
                                              .n_head_kv = 1,
                                              .head_dim = 32,
                                              .n_vocab = 150,
                                              .window = 9};

static void make_tokens(uint64_t seed, uint32_t n_vocab, int32_t *tokens, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(rng_u64(seed, i, 0) % n_vocab);
}

#endif
