/*
 * The forward pass as plain loops in double precision, one token after another, straight from the
 * papers' formulas: RMS norm, rotary embedding, grouped-query attention, gated feed-forward, and
 * for gemma the extra norms, the scaled embedding and the sliding window. Slow and obvious on
 * purpose.
 */
#ifndef TEST_REFERENCE_H
#define TEST_REFERENCE_H

#include "tiny_model.h"

static void ref_norm(const double *x, const float *w, uint32_t n, double *out)
{
    double sum = 0;
    for (uint32_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    double scale = 1 / sqrt(sum / n + 1e-5);
    for (uint32_t i = 0; i < n; i++)
        out[i] = x[i] * scale * (double)w[i];
}

static void ref_matrix(const float *w, const double *x, uint32_t n_in, uint32_t n_out, double *out)
{
    for (uint32_t r = 0; r < n_out; r++) {
        out[r] = 0;
        for (uint32_t c = 0; c < n_in; c++)
            out[r] += (double)w[(size_t)r * n_in + c] * x[c];
    }
}

/* llama's GGUF files pair neighbours, gemma pairs the two halves of a head. */
static void ref_rope(double *head, uint32_t dim, uint32_t position, double base, bool halves)
{
    for (uint32_t i = 0; i < dim / 2; i++) {
        double angle = position * pow(base, -2.0 * i / dim), c = cos(angle), s = sin(angle);
        double *a = &head[halves ? i : 2 * i], *b = &head[halves ? i + dim / 2 : 2 * i + 1];
        double x = *a, y = *b;
        *a = x * c - y * s;
        *b = x * s + y * c;
    }
}

/* logits[n_tokens][n_vocab] */
static inline void reference_logits(const struct tiny_model *m, const int32_t *tokens,
                                    uint32_t n_tokens, double *logits)
{
    const struct tiny_shape *s = &m->shape;
    uint32_t d = s->head_dim, kv = s->n_head_kv * d, group = s->n_head / s->n_head_kv;
    double *k = calloc((size_t)s->n_layer * n_tokens * kv, sizeof(double));
    double *v = calloc((size_t)s->n_layer * n_tokens * kv, sizeof(double));
    double *x = calloc(s->n_embd, sizeof(double)), *h = calloc(s->n_embd, sizeof(double));
    double *q = calloc(s->n_head * d, sizeof(double)), *a = calloc(s->n_head * d, sizeof(double));
    double *gate = calloc(s->n_ff, sizeof(double)), *up = calloc(s->n_ff, sizeof(double));
    double *p = calloc(n_tokens, sizeof(double));

    for (uint32_t t = 0; t < n_tokens; t++) {
        const float *embd = tiny_weight(m, -1, "token_embd") + (size_t)tokens[t] * s->n_embd;
        for (uint32_t i = 0; i < s->n_embd; i++)
            x[i] = (double)embd[i] * (s->is_gemma ? sqrt(s->n_embd) : 1);
        for (int l = 0; l < (int)s->n_layer; l++) {
            bool local = s->is_gemma && (l + 1) % 6 != 0;
            double base = s->is_gemma ? (local ? 10000 : 1000000) : 10000;
            double *kt = k + ((size_t)l * n_tokens + t) * kv,
                   *vt = v + ((size_t)l * n_tokens + t) * kv;
            ref_norm(x, tiny_weight(m, l, "attn_norm"), s->n_embd, h);
            ref_matrix(tiny_weight(m, l, "attn_q"), h, s->n_embd, s->n_head * d, q);
            ref_matrix(tiny_weight(m, l, "attn_k"), h, s->n_embd, kv, kt);
            ref_matrix(tiny_weight(m, l, "attn_v"), h, s->n_embd, kv, vt);
            for (uint32_t i = 0; i < s->n_head; i++) {
                if (s->is_gemma)
                    ref_norm(q + i * d, tiny_weight(m, l, "attn_q_norm"), d, q + i * d);
                ref_rope(q + i * d, d, t, base, s->is_gemma);
            }
            for (uint32_t i = 0; i < s->n_head_kv; i++) {
                if (s->is_gemma)
                    ref_norm(kt + i * d, tiny_weight(m, l, "attn_k_norm"), d, kt + i * d);
                ref_rope(kt + i * d, d, t, base, s->is_gemma);
            }
            uint32_t first = local && t + 1 > s->window ? t + 1 - s->window : 0;
            for (uint32_t i = 0; i < s->n_head; i++) {
                uint32_t head = i / group * d;
                double max = -INFINITY, sum = 0;
                for (uint32_t u = first; u <= t; u++) {
                    p[u] = 0;
                    for (uint32_t j = 0; j < d; j++)
                        p[u] += q[i * d + j] * k[((size_t)l * n_tokens + u) * kv + head + j];
                    p[u] /= sqrt(d);
                    max = p[u] > max ? p[u] : max;
                }
                for (uint32_t u = first; u <= t; u++)
                    sum += p[u] = exp(p[u] - max);
                for (uint32_t j = 0; j < d; j++) {
                    a[i * d + j] = 0;
                    for (uint32_t u = first; u <= t; u++)
                        a[i * d + j] += p[u] / sum * v[((size_t)l * n_tokens + u) * kv + head + j];
                }
            }
            ref_matrix(tiny_weight(m, l, "attn_output"), a, s->n_head * d, s->n_embd, h);
            if (s->is_gemma)
                ref_norm(h, tiny_weight(m, l, "post_attention_norm"), s->n_embd, h);
            for (uint32_t i = 0; i < s->n_embd; i++)
                x[i] += h[i];
            ref_norm(x, tiny_weight(m, l, "ffn_norm"), s->n_embd, h);
            ref_matrix(tiny_weight(m, l, "ffn_gate"), h, s->n_embd, s->n_ff, gate);
            ref_matrix(tiny_weight(m, l, "ffn_up"), h, s->n_embd, s->n_ff, up);
            for (uint32_t i = 0; i < s->n_ff; i++) {
                double g = gate[i];
                gate[i] =
                    up[i] *
                    (s->is_gemma
                         ? 0.5 * g * (1 + tanh(0.7978845608028654 * (g + 0.044715 * g * g * g)))
                         : g / (1 + exp(-g)));
            }
            ref_matrix(tiny_weight(m, l, "ffn_down"), gate, s->n_ff, s->n_embd, h);
            if (s->is_gemma)
                ref_norm(h, tiny_weight(m, l, "post_ffw_norm"), s->n_embd, h);
            for (uint32_t i = 0; i < s->n_embd; i++)
                x[i] += h[i];
        }
        ref_norm(x, tiny_weight(m, -1, "output_norm"), s->n_embd, h);
        const float *output = tiny_weight(m, -1, s->is_gemma ? "token_embd" : "output");
        ref_matrix(output, h, s->n_embd, s->n_vocab, logits + (size_t)t * s->n_vocab);
    }
    free(k), free(v), free(x), free(h), free(q), free(a), free(gate), free(up), free(p);
}

#endif
