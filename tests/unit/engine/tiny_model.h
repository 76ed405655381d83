/*
 * A tiny random model: written as a GGUF file, and kept in memory as plain arrays for the reference
 * in reference.h. Everything is f32 and a function of the seed.
 */
#ifndef TEST_TINY_MODEL_H
#define TEST_TINY_MODEL_H

#include "base/buf.h"
#include "base/rng.h"
#include "model/gguf.h"

#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { TINY_LAYERS_MAX = 8, TINY_TENSORS_MAX = 128 };

struct tiny_shape {
    bool is_gemma;
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, window;
};

struct tiny_tensor {
    char name[64];
    uint64_t dim[2];
    uint32_t n_dims;
    float *data;
};

struct tiny_model {
    struct tiny_shape shape;
    struct tiny_tensor tensor[TINY_TENSORS_MAX];
    uint32_t n_tensors;
    char path[64];
};

static inline const float *tiny_weight(const struct tiny_model *m, int layer, const char *name)
{
    char full[64];
    if (layer >= 0)
        snprintf(full, sizeof(full), "blk.%d.%s.weight", layer, name);
    else
        snprintf(full, sizeof(full), "%s.weight", name);
    for (uint32_t i = 0; i < m->n_tensors; i++)
        if (strcmp(m->tensor[i].name, full) == 0)
            return m->tensor[i].data;
    return NULL;
}

static void tiny_add(struct tiny_model *m, int layer, const char *name, uint64_t columns,
                     uint64_t rows)
{
    struct tiny_tensor *t = &m->tensor[m->n_tensors];
    if (layer >= 0)
        snprintf(t->name, sizeof(t->name), "blk.%d.%s.weight", layer, name);
    else
        snprintf(t->name, sizeof(t->name), "%s.weight", name);
    t->n_dims = rows > 0 ? 2 : 1;
    t->dim[0] = columns;
    t->dim[1] = rows > 0 ? rows : 1;
    uint64_t n = columns * t->dim[1];
    t->data = malloc(n * sizeof(float));
    for (uint64_t i = 0; i < n; i++) {
        float u = (float)(2 * rng_uniform(m->n_tensors + 1, i, 7) - 1);
        t->data[i] = rows > 0 ? u * 1.7f / sqrtf((float)columns) : 1 + 0.2f * u;
    }
    m->n_tensors++;
}

static void put_key(struct buf *b, const char *key, uint32_t kind)
{
    buf_append_u64(b, strlen(key));
    buf_append_str(b, key);
    buf_append_u32(b, kind);
}

static uint64_t put_u32(struct buf *b, const char *arch, const char *key, uint32_t v)
{
    char full[96];
    snprintf(full, sizeof(full), "%s.%s", arch, key);
    put_key(b, full, GGUF_KIND_U32);
    buf_append_u32(b, v);
    return 1;
}

static void tiny_write(struct tiny_model *m)
{
    const struct tiny_shape *s = &m->shape;
    const char *arch = s->is_gemma ? "gemma3" : "llama";
    struct buf kv, out;
    uint64_t n_kv = 0;
    buf_init(&kv, 1 << 20);
    buf_init(&out, 64 << 20);
    put_key(&kv, "general.architecture", GGUF_KIND_STRING);
    buf_append_u64(&kv, strlen(arch));
    buf_append_str(&kv, arch);
    n_kv++;
    n_kv += put_u32(&kv, arch, "block_count", s->n_layer);
    n_kv += put_u32(&kv, arch, "context_length", 1024);
    n_kv += put_u32(&kv, arch, "embedding_length", s->n_embd);
    n_kv += put_u32(&kv, arch, "feed_forward_length", s->n_ff);
    n_kv += put_u32(&kv, arch, "attention.head_count", s->n_head);
    n_kv += put_u32(&kv, arch, "attention.head_count_kv", s->n_head_kv);
    n_kv += put_u32(&kv, arch, "attention.key_length", s->head_dim);
    n_kv += put_u32(&kv, arch, "attention.value_length", s->head_dim);
    n_kv += put_u32(&kv, arch, "rope.dimension_count", s->head_dim);
    n_kv += put_u32(&kv, arch, "vocab_size", s->n_vocab);
    if (s->is_gemma)
        n_kv += put_u32(&kv, arch, "attention.sliding_window", s->window);
    char key[96];
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", arch);
    put_key(&kv, key, GGUF_KIND_F32);
    buf_append_f32(&kv, 1e-5f);
    n_kv++;
    snprintf(key, sizeof(key), "%s.rope.freq_base", arch);
    put_key(&kv, key, GGUF_KIND_F32);
    buf_append_f32(&kv, s->is_gemma ? 1000000.0f : 10000.0f);
    n_kv++;

    buf_append(&out, "GGUF", 4);
    buf_append_u32(&out, 3);
    buf_append_u64(&out, m->n_tensors);
    buf_append_u64(&out, n_kv);
    buf_append(&out, kv.data, kv.len);
    uint64_t offset = 0;
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct tiny_tensor *t = &m->tensor[i];
        buf_append_u64(&out, strlen(t->name));
        buf_append_str(&out, t->name);
        buf_append_u32(&out, t->n_dims);
        for (uint32_t d = 0; d < t->n_dims; d++)
            buf_append_u64(&out, t->dim[d]);
        buf_append_u32(&out, 0); /* F32 */
        buf_append_u64(&out, offset);
        offset += (t->dim[0] * t->dim[1] * 4 + 31) / 32 * 32;
    }
    for (uint32_t i = 0; i < m->n_tensors; i++) {
        const struct tiny_tensor *t = &m->tensor[i];
        while (out.len % 32 != 0)
            buf_append_u8(&out, 0);
        buf_append(&out, t->data, t->dim[0] * t->dim[1] * 4);
    }
    while (out.len % 32 != 0)
        buf_append_u8(&out, 0);
    snprintf(m->path, sizeof(m->path), "/tmp/shoal-tiny-XXXXXX");
    int fd = mkstemp(m->path);
    if (fd < 0 || write(fd, out.data, out.len) != (ssize_t)out.len || out.error != 0)
        abort();
    close(fd);
    buf_done(&kv);
    buf_done(&out);
}

static void tiny_model_init(struct tiny_model *m, const struct tiny_shape *shape)
{
    memset(m, 0, sizeof(*m));
    m->shape = *shape;
    uint32_t q = shape->n_head * shape->head_dim, kv = shape->n_head_kv * shape->head_dim;
    tiny_add(m, -1, "token_embd", shape->n_embd, shape->n_vocab);
    tiny_add(m, -1, "output_norm", shape->n_embd, 0);
    if (!shape->is_gemma) /* gemma's head is tied to the embedding */
        tiny_add(m, -1, "output", shape->n_embd, shape->n_vocab);
    for (int i = 0; i < (int)shape->n_layer; i++) {
        tiny_add(m, i, "attn_norm", shape->n_embd, 0);
        tiny_add(m, i, "attn_q", shape->n_embd, q);
        tiny_add(m, i, "attn_k", shape->n_embd, kv);
        tiny_add(m, i, "attn_v", shape->n_embd, kv);
        tiny_add(m, i, "attn_output", q, shape->n_embd);
        tiny_add(m, i, "ffn_norm", shape->n_embd, 0);
        tiny_add(m, i, "ffn_gate", shape->n_embd, shape->n_ff);
        tiny_add(m, i, "ffn_up", shape->n_embd, shape->n_ff);
        tiny_add(m, i, "ffn_down", shape->n_ff, shape->n_embd);
        if (shape->is_gemma) {
            tiny_add(m, i, "attn_q_norm", shape->head_dim, 0);
            tiny_add(m, i, "attn_k_norm", shape->head_dim, 0);
            tiny_add(m, i, "post_attention_norm", shape->n_embd, 0);
            tiny_add(m, i, "post_ffw_norm", shape->n_embd, 0);
        }
    }
    tiny_write(m);
}

static void tiny_model_done(struct tiny_model *m)
{
    unlink(m->path);
    for (uint32_t i = 0; i < m->n_tensors; i++)
        free(m->tensor[i].data);
}

#endif
