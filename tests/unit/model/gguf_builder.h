/* Builds GGUF files in memory: valid ones of any shape, and the pieces that tests break on purpose.
 */
#ifndef SHOAL_TESTS_GGUF_BUILDER_H
#define SHOAL_TESTS_GGUF_BUILDER_H

#include "base/buf.h"
#include "model/dtype.h"
#include "model/gguf.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define BUILDER_BYTES_MAX (64u << 20)

struct builder {
    struct buf values, tensors, file;
    uint64_t n_values, n_tensors, data_bytes;
    uint32_t alignment;
};

static inline void builder_init(struct builder *b)
{
    memset(b, 0, sizeof(*b));
    buf_init(&b->values, BUILDER_BYTES_MAX);
    buf_init(&b->tensors, BUILDER_BYTES_MAX);
    buf_init(&b->file, BUILDER_BYTES_MAX);
    b->alignment = 32;
}

static inline void builder_done(struct builder *b)
{
    buf_done(&b->values);
    buf_done(&b->tensors);
    buf_done(&b->file);
}

static inline void builder_string_bytes(struct buf *b, const char *text, size_t n)
{
    buf_append_u64(b, n);
    buf_append(b, text, n);
}

static inline void builder_key(struct builder *b, const char *key, uint32_t kind)
{
    builder_string_bytes(&b->values, key, strlen(key));
    buf_append_u32(&b->values, kind);
    b->n_values++;
}

static inline void builder_u32(struct builder *b, const char *key, uint32_t v)
{
    builder_key(b, key, GGUF_KIND_U32);
    buf_append_u32(&b->values, v);
}

static inline void builder_f32(struct builder *b, const char *key, float v)
{
    builder_key(b, key, GGUF_KIND_F32);
    buf_append_f32(&b->values, v);
}

static inline void builder_string(struct builder *b, const char *key, const char *text)
{
    builder_key(b, key, GGUF_KIND_STRING);
    builder_string_bytes(&b->values, text, strlen(text));
}

static inline void builder_tensor_at(struct builder *b, const char *name, uint32_t type,
                                     uint32_t n_dims, const uint64_t *dim, uint64_t offset)
{
    builder_string_bytes(&b->tensors, name, strlen(name));
    buf_append_u32(&b->tensors, n_dims);
    for (uint32_t d = 0; d < n_dims; d++)
        buf_append_u64(&b->tensors, dim[d]);
    buf_append_u32(&b->tensors, type);
    buf_append_u64(&b->tensors, offset);
    b->n_tensors++;
}

/* rows 0: a vector */
static inline void builder_tensor(struct builder *b, const char *name, uint32_t type, uint64_t row,
                                  uint64_t rows)
{
    uint64_t dim[2] = {row, rows}, size = dtype_row_bytes(type, row) * (rows > 0 ? rows : 1);
    builder_tensor_at(b, name, type, rows > 0 ? 2 : 1, dim, b->data_bytes);
    b->data_bytes += (size + b->alignment - 1) / b->alignment * b->alignment;
}

/* Header, padding, and tensor data of zeros. */
static inline void builder_finish(struct builder *b)
{
    static const char zeros[4096];
    buf_append_str(&b->file, "GGUF");
    buf_append_u32(&b->file, 3);
    buf_append_u64(&b->file, b->n_tensors);
    buf_append_u64(&b->file, b->n_values);
    buf_append(&b->file, buf_str(&b->values), b->values.len);
    buf_append(&b->file, buf_str(&b->tensors), b->tensors.len);
    uint64_t left = b->data_bytes;
    while (b->file.len % b->alignment != 0)
        buf_append_char(&b->file, '\0');
    for (; left > 0; left -= left < sizeof(zeros) ? left : sizeof(zeros))
        buf_append(&b->file, zeros, left < sizeof(zeros) ? (size_t)left : sizeof(zeros));
}

struct builder_shape {
    const char *arch;
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab;
    uint32_t type, out_type, down_type; /* matrices; attn_output; ffn_down */
    bool tied, bias;
    const char *skip; /* leave out this tensor */
};

static const struct builder_shape builder_tiny = {
    .arch = "llama",
    .n_layer = 2,
    .n_embd = 64,
    .n_ff = 128,
    .n_head = 4,
    .n_head_kv = 2,
    .head_dim = 16,
    .n_vocab = 96,
    .type = DTYPE_Q4_0,
    .out_type = DTYPE_Q4_0,
    .down_type = DTYPE_Q8_0,
};

static inline void builder_put(struct builder *b, const struct builder_shape *s, const char *name,
                               uint32_t type, uint64_t row, uint64_t rows)
{
    if (s->skip == NULL || strcmp(s->skip, name) != 0)
        builder_tensor(b, name, type, row, rows);
}

static inline void builder_config(struct builder *b, const struct builder_shape *s)
{
    const struct {
        const char *name;
        uint32_t value;
    } keys[] = {
        {"block_count", s->n_layer},           {"context_length", 512},
        {"embedding_length", s->n_embd},       {"feed_forward_length", s->n_ff},
        {"attention.head_count", s->n_head},   {"attention.head_count_kv", s->n_head_kv},
        {"attention.key_length", s->head_dim}, {"attention.value_length", s->head_dim},
    };
    char key[96];
    builder_string(b, "general.architecture", s->arch);
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        snprintf(key, sizeof(key), "%s.%s", s->arch, keys[i].name);
        builder_u32(b, key, keys[i].value);
    }
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", s->arch);
    builder_f32(b, key, 1e-5f);
}

static inline void builder_layer(struct builder *b, const struct builder_shape *s, uint32_t layer)
{
    uint64_t q = (uint64_t)s->n_head * s->head_dim, kv = (uint64_t)s->n_head_kv * s->head_dim;
    bool gemma = strcmp(s->arch, "gemma3") == 0;
    const struct {
        const char *name;
        uint32_t type;
        uint64_t row, rows;
        bool wanted;
    } tensors[] = {
        {"attn_norm.weight", DTYPE_F32, s->n_embd, 0, true},
        {"attn_q.weight", s->type, s->n_embd, q, true},
        {"attn_k.weight", s->type, s->n_embd, kv, true},
        {"attn_v.weight", s->type, s->n_embd, kv, true},
        {"attn_q.bias", DTYPE_F32, q, 0, s->bias},
        {"attn_k.bias", DTYPE_F32, kv, 0, s->bias},
        {"attn_v.bias", DTYPE_F32, kv, 0, s->bias},
        {"attn_q_norm.weight", DTYPE_F32, s->head_dim, 0, gemma},
        {"attn_k_norm.weight", DTYPE_F32, s->head_dim, 0, gemma},
        {"attn_output.weight", s->out_type, q, s->n_embd, true},
        {"post_attention_norm.weight", DTYPE_F32, s->n_embd, 0, gemma},
        {"ffn_norm.weight", DTYPE_F32, s->n_embd, 0, true},
        {"ffn_gate.weight", s->type, s->n_embd, s->n_ff, true},
        {"ffn_up.weight", s->type, s->n_embd, s->n_ff, true},
        {"ffn_down.weight", s->down_type, s->n_ff, s->n_embd, true},
        {"post_ffw_norm.weight", DTYPE_F32, s->n_embd, 0, gemma},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "blk.%u.%s", layer, tensors[i].name);
        if (tensors[i].wanted)
            builder_put(b, s, name, tensors[i].type, tensors[i].row, tensors[i].rows);
    }
}

static inline void builder_weights(struct builder *b, const struct builder_shape *s)
{
    builder_put(b, s, "token_embd.weight", s->type, s->n_embd, s->n_vocab);
    for (uint32_t l = 0; l < s->n_layer; l++)
        builder_layer(b, s, l);
    builder_put(b, s, "output_norm.weight", DTYPE_F32, s->n_embd, 0);
    if (!s->tied)
        builder_put(b, s, "output.weight", s->type, s->n_embd, s->n_vocab);
}

/* A whole model; the caller calls builder_done. */
static inline void builder_model(struct builder *b, const struct builder_shape *s)
{
    builder_init(b);
    builder_config(b, s);
    builder_weights(b, s);
    builder_finish(b);
}

#endif
