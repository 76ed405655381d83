#include "model/config.h"

#include "base/limits.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#define FLOAT_MIN 1e-12

/* Where the reads below take their keys from: "<arch>.<key>". */
struct source {
    const struct gguf_file *file;
    const struct arch *arch;
    struct error *err;
};

struct key {
    char text[96];
};

static struct key make_key(const struct source *s, const char *name)
{
    struct key key;
    snprintf(key.text, sizeof(key.text), "%s.%s", s->arch->name, name);
    return key;
}

static bool has(const struct source *s, const char *name)
{
    return gguf_file_find(s->file, make_key(s, name).text) != NULL;
}

/* Integer in [min, max]; fallback when the key is absent, unless that is NULL. */
static int read_u32(const struct source *s, const char *name, uint32_t min, uint32_t max,
                    const uint32_t *fallback, uint32_t *ret)
{
    struct key key = make_key(s, name);
    uint64_t v;
    if (fallback != NULL && !has(s, name)) {
        *ret = *fallback;
        return 0;
    }
    const struct gguf_value *value = gguf_file_find(s->file, key.text);
    if (value != NULL && value->kind == GGUF_KIND_ARRAY)
        return error_set(s->err, E_UNSUPPORTED,
                         "'%s' differs from layer to layer, which is not supported", key.text);
    int rc = gguf_file_get_u64(s->file, key.text, &v, s->err);
    if (rc != 0)
        return rc == E_NOTFOUND ? error_set(s->err, E_FORMAT, "the file lacks '%s'", key.text) : rc;
    if (v < min || v > max)
        return error_set(s->err, v > max ? E_LIMIT : E_FORMAT,
                         "'%s' is %" PRIu64 ", not in %" PRIu32 " to %" PRIu32, key.text, v, min,
                         max);
    *ret = (uint32_t)v;
    return 0;
}

/* Float in [FLOAT_MIN, max], so that its inverse is finite too; fallback when the key is absent,
 * unless that is zero. */
static int read_f32(const struct source *s, const char *name, double max, float fallback,
                    float *ret)
{
    struct key key = make_key(s, name);
    double v;
    if (fallback > 0 && !has(s, name)) {
        *ret = fallback;
        return 0;
    }
    int rc = gguf_file_get_f64(s->file, key.text, &v, s->err);
    if (rc != 0)
        return rc == E_NOTFOUND ? error_set(s->err, E_FORMAT, "the file lacks '%s'", key.text) : rc;
    if (!(v >= FLOAT_MIN && v <= max))
        return error_set(s->err, E_FORMAT, "'%s' is %g, not in %g to %g", key.text, v, FLOAT_MIN,
                         max);
    *ret = (float)v;
    return 0;
}

static int find_arch(const struct gguf_file *f, const struct arch **ret, struct error *err)
{
    struct gguf_string name;
    int rc = gguf_file_get_string(f, "general.architecture", &name, err);
    if (rc != 0)
        return rc == E_NOTFOUND ? error_set(err, E_FORMAT, "the file lacks 'general.architecture'")
                                : rc;
    *ret = arch_find(name.data, name.len);
    if (*ret != NULL)
        return 0;

    char known[256] = "", wanted[64];
    for (uint32_t i = 0; arch_at(i) != NULL; i++) {
        size_t used = strlen(known);
        snprintf(known + used, sizeof(known) - used, "%s%s", i > 0 ? ", " : "", arch_at(i)->name);
    }
    size_t n = name.len < sizeof(wanted) - 1 ? name.len : sizeof(wanted) - 1;
    for (size_t i = 0; i < n; i++)
        wanted[i] = name.data[i] >= 32 && name.data[i] < 127 ? name.data[i] : '?';
    wanted[n] = '\0';
    return error_set(err, E_UNSUPPORTED, "architecture '%s' is not supported; supported are %s",
                     wanted, known);
}

static int read_shape(const struct source *s, struct model_config *c)
{
    int rc;
    if ((rc = read_u32(s, "block_count", 1, LIMIT_MODEL_LAYERS, NULL, &c->n_layer)) != 0 ||
        (rc = read_u32(s, "embedding_length", 1, LIMIT_MODEL_WIDTH, NULL, &c->n_embd)) != 0 ||
        (rc = read_u32(s, "feed_forward_length", 1, LIMIT_MODEL_WIDTH, NULL, &c->n_ff)) != 0 ||
        (rc = read_u32(s, "context_length", 1, INT32_MAX, NULL, &c->n_ctx_train)) != 0 ||
        (rc = read_u32(s, "attention.head_count", 1, LIMIT_MODEL_WIDTH, NULL, &c->n_head)) != 0 ||
        (rc = read_u32(s, "attention.head_count_kv", 1, c->n_head, &c->n_head, &c->n_head_kv)) != 0)
        return rc;
    if (c->n_head % c->n_head_kv != 0)
        return error_set(s->err, E_FORMAT,
                         "%" PRIu32 " heads cannot share %" PRIu32 " KV heads evenly", c->n_head,
                         c->n_head_kv);

    uint32_t head_dim = c->n_embd / c->n_head, v_dim;
    if (head_dim == 0 && !has(s, "attention.key_length"))
        return error_set(s->err, E_FORMAT, "%" PRIu32 " heads in an embedding of %" PRIu32,
                         c->n_head, c->n_embd);
    if ((rc = read_u32(s, "attention.key_length", 2, LIMIT_MODEL_WIDTH / c->n_head, &head_dim,
                       &c->head_dim)) != 0 ||
        (rc = read_u32(s, "attention.value_length", 1, LIMIT_MODEL_WIDTH, &c->head_dim, &v_dim)) !=
            0 ||
        (rc = read_u32(s, "rope.dimension_count", 2, c->head_dim, &c->head_dim, &c->n_rot)) != 0)
        return rc;
    if (v_dim != c->head_dim)
        return error_set(s->err, E_UNSUPPORTED,
                         "heads have %" PRIu32 " dimensions in keys but %" PRIu32 " in values",
                         c->head_dim, v_dim);
    if (c->head_dim % 2 != 0 || c->n_rot % 2 != 0)
        return error_set(s->err, E_FORMAT,
                         "heads of %" PRIu32 " dimensions, %" PRIu32 " of them turned: not even",
                         c->head_dim, c->n_rot);
    return 0;
}

/* Tokens, from the rows of the embedding; what the metadata says of the vocabulary must agree. */
static int read_vocab(const struct source *s, struct model_config *c)
{
    const struct gguf_tensor *embd = gguf_file_find_tensor(s->file, "token_embd.weight");
    if (embd == NULL)
        return error_set(s->err, E_FORMAT, "tensor 'token_embd.weight' is missing");
    if (embd->dim[1] > LIMIT_VOCAB_TOKENS)
        return error_set(s->err, E_LIMIT, "the vocabulary has %" PRIu64 " tokens (limit %u)",
                         embd->dim[1], LIMIT_VOCAB_TOKENS);
    uint32_t stated;
    c->n_vocab = (uint32_t)embd->dim[1];
    int rc = read_u32(s, "vocab_size", 1, UINT32_MAX, &c->n_vocab, &stated);
    if (rc != 0)
        return rc;
    const struct gguf_value *tokens = gguf_file_find(s->file, "tokenizer.ggml.tokens");
    if (stated != c->n_vocab || (tokens != NULL && tokens->count != c->n_vocab))
        return error_set(s->err, E_FORMAT,
                         "the embedding has rows for %" PRIu32
                         " tokens, but the vocabulary has %" PRIu64,
                         c->n_vocab, stated != c->n_vocab ? stated : tokens->count);
    return 0;
}

static int read_rope(const struct source *s, struct model_config *c)
{
    const struct gguf_value *type = gguf_file_find(s->file, make_key(s, "rope.scaling.type").text);
    struct gguf_string name = {.data = "none", .len = 4};
    if (type != NULL && type->kind == GGUF_KIND_STRING)
        name = type->strings[0];
    bool none = name.len == 4 && memcmp(name.data, "none", 4) == 0;
    bool linear = name.len == 6 && memcmp(name.data, "linear", 6) == 0;
    if (!none && !linear)
        return error_set(s->err, E_UNSUPPORTED,
                         "rope scaling '%.*s' is not supported; none and linear are",
                         (int)(name.len < 32 ? name.len : 32), name.data);

    float factor = 1.0f, attn_factor;
    int rc = 0;
    /* The factor counts without a type as well, and has an older name. */
    const char *key = has(s, "rope.scaling.factor") ? "rope.scaling.factor" : "rope.scale_linear";
    if (type == NULL || linear)
        rc = read_f32(s, key, 1e6, 1.0f, &factor);
    if (rc == 0)
        rc = read_f32(s, "rope.scaling.attn_factor", 1e6, 1.0f, &attn_factor);
    if (rc == 0)
        rc = read_f32(s, "rope.freq_base", 1e12, 10000.0f, &c->rope_base);
    if (rc == 0)
        rc = read_f32(s, "rope.freq_base_swa", 1e12,
                      s->arch->rope_base_local > 0 ? s->arch->rope_base_local : c->rope_base,
                      &c->rope_base_local);
    if (rc == 0 && attn_factor != 1.0f)
        rc = error_set(s->err, E_UNSUPPORTED, "a rope attention factor of %g is not supported",
                       (double)attn_factor);
    c->rope_scale = 1.0f / factor;
    return rc;
}

/* The pattern may be given as a list of layers, true for those with a window. Only regular ones
 * have a number. */
static int read_pattern_list(const struct source *s, const struct gguf_value *v,
                             struct model_config *c)
{
    if (v->count < c->n_layer || v->item_kind == GGUF_KIND_STRING)
        return error_set(s->err, E_FORMAT,
                         "the sliding-window pattern covers %" PRIu64 " of %" PRIu32 " layers",
                         v->count, c->n_layer);
    uint32_t n = 1;
    while (n <= c->n_layer && gguf_value_item_i64(v, n - 1) != 0)
        n++; /* n is the first global layer, counted from one */
    for (uint32_t i = 0; i < c->n_layer; i++)
        if ((gguf_value_item_i64(v, i) == 0) != ((i + 1) % n == 0))
            return error_set(s->err, E_UNSUPPORTED,
                             "layers with a sliding window follow no regular pattern");
    c->window_pattern = n;
    return 0;
}

static int read_window(const struct source *s, struct model_config *c)
{
    const uint32_t none = 0;
    c->window = c->window_pattern = 0;
    if (s->arch->window_pattern == 0)
        return 0;
    int rc = read_u32(s, "attention.sliding_window", 0, INT32_MAX, &none, &c->window);
    if (rc != 0 || c->window == 0)
        return rc;
    const struct gguf_value *v =
        gguf_file_find(s->file, make_key(s, "attention.sliding_window_pattern").text);
    if (v != NULL && v->kind == GGUF_KIND_ARRAY)
        return read_pattern_list(s, v, c);
    return read_u32(s, "attention.sliding_window_pattern", 1, UINT16_MAX, &s->arch->window_pattern,
                    &c->window_pattern);
}

/* Facts that change what a model computes and that no row of the table knows. */
static int refuse_variants(const struct source *s)
{
    static const char *const keys[] = {
        "expert_count",
        "final_logit_softcapping",
        "attn_logit_softcapping",
        "attention.clamp_kqv",
        "logit_scale",
        "residual_scale",
        "embedding_scale",
        "attention.max_alibi_bias",
    };
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        struct key key = make_key(s, keys[i]);
        const struct gguf_value *v = gguf_file_find(s->file, key.text);
        if (v != NULL && (v->kind == GGUF_KIND_ARRAY || gguf_value_item_i64(v, 0) != 0 ||
                          !(gguf_value_item_f64(v, 0) == 0.0)))
            return error_set(s->err, E_UNSUPPORTED,
                             "'%s' is set, which is not supported for this architecture", key.text);
    }
    bool causal = true;
    struct key key = make_key(s, "attention.causal");
    if (gguf_file_get_bool(s->file, key.text, &causal, NULL) == 0 && !causal)
        return error_set(s->err, E_UNSUPPORTED, "the model is not causal: it cannot generate text");
    uint64_t n_files = 1;
    if (gguf_file_get_u64(s->file, "split.count", &n_files, NULL) == 0 && n_files > 1)
        return error_set(s->err, E_UNSUPPORTED,
                         "this is one of %" PRIu64 " files of a model; merge them first", n_files);
    return 0;
}

static int read_scales(const struct source *s, struct model_config *c)
{
    bool by_embd = s->arch->embd_attn_scale_layers != 0 &&
                   s->arch->embd_attn_scale_layers == c->n_layer && c->n_embd >= c->n_head;
    uint32_t attn_dim = by_embd ? c->n_embd / c->n_head : c->head_dim;
    c->embd_scale = s->arch->embd_scale ? sqrtf((float)c->n_embd) : 1.0f;
    int rc = read_f32(s, "attention.scale", 1e6, 1.0f / sqrtf((float)attn_dim), &c->attn_scale);
    return rc != 0 ? rc : read_f32(s, "attention.layer_norm_rms_epsilon", 1.0, 0.0f, &c->norm_eps);
}

int config_read(const struct gguf_file *f, const struct arch **ret_arch,
                struct model_config *ret_config, struct error *err)
{
    struct source s = {.file = f, .err = err};
    struct model_config c = {0};
    int rc = find_arch(f, &s.arch, err);
    if (rc == 0)
        rc = refuse_variants(&s);
    if (rc == 0)
        rc = read_shape(&s, &c);
    if (rc == 0)
        rc = read_vocab(&s, &c);
    if (rc == 0)
        rc = read_rope(&s, &c);
    if (rc == 0)
        rc = read_window(&s, &c);
    if (rc == 0)
        rc = read_scales(&s, &c);
    if (rc != 0)
        return rc;
    *ret_arch = s.arch;
    *ret_config = c;
    return 0;
}
