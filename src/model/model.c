#include "model/model.h"

#include "model/config.h"
#include "model/dtype.h"

#include <inttypes.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Dimensions that a role's tensor must have, as functions of the configuration. */
enum dim { DIM_NONE, DIM_EMBD, DIM_VOCAB, DIM_FF, DIM_Q, DIM_KV, DIM_HEAD, DIM_ROT_HALF };
enum presence { NEEDED, OPTIONAL, IF_QK_NORM, IF_POST_NORM, OPTIONAL_QKV_BIAS };

static const struct role_facts {
    const char *name;   /* of the role */
    const char *tensor; /* in the file; for roles of a layer, after "blk.N." */
    enum dim dim[2];
    enum presence presence;
} role_table[ROLE_COUNT] = {
    [ROLE_TOKEN_EMBD] = {"token_embd", "token_embd.weight", {DIM_EMBD, DIM_VOCAB}, NEEDED},
    [ROLE_OUTPUT_NORM] = {"output_norm", "output_norm.weight", {DIM_EMBD}, NEEDED},
    [ROLE_OUTPUT] = {"output", "output.weight", {DIM_EMBD, DIM_VOCAB}, OPTIONAL},
    [ROLE_ROPE_FACTORS] = {"rope_factors", "rope_freqs.weight", {DIM_ROT_HALF}, OPTIONAL},
    [ROLE_ATTN_NORM] = {"attn_norm", "attn_norm.weight", {DIM_EMBD}, NEEDED},
    [ROLE_ATTN_POST_NORM] = {"attn_post_norm",
                             "post_attention_norm.weight",
                             {DIM_EMBD},
                             IF_POST_NORM},
    [ROLE_FFN_NORM] = {"ffn_norm", "ffn_norm.weight", {DIM_EMBD}, NEEDED},
    [ROLE_FFN_POST_NORM] = {"ffn_post_norm", "post_ffw_norm.weight", {DIM_EMBD}, IF_POST_NORM},
    [ROLE_ATTN_Q] = {"attn_q", "attn_q.weight", {DIM_EMBD, DIM_Q}, NEEDED},
    [ROLE_ATTN_K] = {"attn_k", "attn_k.weight", {DIM_EMBD, DIM_KV}, NEEDED},
    [ROLE_ATTN_V] = {"attn_v", "attn_v.weight", {DIM_EMBD, DIM_KV}, NEEDED},
    [ROLE_ATTN_Q_BIAS] = {"attn_q_bias", "attn_q.bias", {DIM_Q}, OPTIONAL_QKV_BIAS},
    [ROLE_ATTN_K_BIAS] = {"attn_k_bias", "attn_k.bias", {DIM_KV}, OPTIONAL_QKV_BIAS},
    [ROLE_ATTN_V_BIAS] = {"attn_v_bias", "attn_v.bias", {DIM_KV}, OPTIONAL_QKV_BIAS},
    [ROLE_ATTN_Q_NORM] = {"attn_q_norm", "attn_q_norm.weight", {DIM_HEAD}, IF_QK_NORM},
    [ROLE_ATTN_K_NORM] = {"attn_k_norm", "attn_k_norm.weight", {DIM_HEAD}, IF_QK_NORM},
    [ROLE_ATTN_OUT] = {"attn_out", "attn_output.weight", {DIM_Q, DIM_EMBD}, NEEDED},
    [ROLE_FFN_GATE] = {"ffn_gate", "ffn_gate.weight", {DIM_EMBD, DIM_FF}, NEEDED},
    [ROLE_FFN_UP] = {"ffn_up", "ffn_up.weight", {DIM_EMBD, DIM_FF}, NEEDED},
    [ROLE_FFN_DOWN] = {"ffn_down", "ffn_down.weight", {DIM_FF, DIM_EMBD}, NEEDED},
};

const char *role_name(enum role role)
{
    return (unsigned)role < ROLE_COUNT ? role_table[role].name : "unknown";
}

static uint64_t dim_size(const struct model_config *c, enum dim dim)
{
    switch (dim) {
    case DIM_EMBD:
        return c->n_embd;
    case DIM_VOCAB:
        return c->n_vocab;
    case DIM_FF:
        return c->n_ff;
    case DIM_Q:
        return (uint64_t)c->n_head * c->head_dim;
    case DIM_KV:
        return (uint64_t)c->n_head_kv * c->head_dim;
    case DIM_HEAD:
        return c->head_dim;
    case DIM_ROT_HALF:
        return c->n_rot / 2;
    case DIM_NONE:
        break;
    }
    return 1;
}

/* Types that ggml multiplies by f32 activations; the others only hold intermediate or integer data.
 */
static bool is_weight_type(uint32_t type)
{
    switch (type) {
    case DTYPE_Q8_1:
    case DTYPE_Q8_K:
    case DTYPE_I8:
    case DTYPE_I16:
    case DTYPE_I32:
    case DTYPE_I64:
    case DTYPE_F64:
        return false;
    default:
        return dtype_traits(type) != NULL;
    }
}

static int check_tensor(const struct model *m, const struct gguf_tensor *t, enum role role,
                        struct error *err)
{
    const struct role_facts *facts = &role_table[role];
    uint64_t rows = dim_size(&m->config, facts->dim[1]), row = dim_size(&m->config, facts->dim[0]);
    if (t->dim[0] != row || t->dim[1] != rows || t->dim[2] != 1 || t->dim[3] != 1)
        return error_set(err, E_FORMAT,
                         "tensor '%s' has dimensions %" PRIu64 " x %" PRIu64 " x %" PRIu64
                         " x %" PRIu64 ", but the configuration asks for %" PRIu64 " x %" PRIu64,
                         t->name, t->dim[0], t->dim[1], t->dim[2], t->dim[3], row, rows);
    if (facts->dim[1] == DIM_NONE ? t->type != DTYPE_F32 : !is_weight_type(t->type))
        return error_set(
            err, E_UNSUPPORTED, "tensor '%s' has type %s%s", t->name, dtype_traits(t->type)->name,
            facts->dim[1] == DIM_NONE ? "; vectors must be F32" : ", which weights cannot have");
    return 0;
}

/* Finds the tensor of a role, or says that it is missing. used marks the tensors that have a role.
 */
static int bind_tensor(struct model *m, enum role role, uint32_t layer, bool *used,
                       const struct gguf_tensor **ret, struct error *err)
{
    const struct role_facts *facts = &role_table[role];
    char name[64];
    if (role >= ROLE_FIRST_OF_LAYER)
        snprintf(name, sizeof(name), "blk.%" PRIu32 ".%s", layer, facts->tensor);
    else
        snprintf(name, sizeof(name), "%s", facts->tensor);
    bool allowed = true, needed = facts->presence == NEEDED;
    if (facts->presence == IF_QK_NORM)
        allowed = needed = m->arch->qk_norm;
    else if (facts->presence == IF_POST_NORM)
        allowed = needed = m->arch->post_norm;
    else if (facts->presence == OPTIONAL_QKV_BIAS)
        allowed = m->arch->qkv_bias;

    const struct gguf_tensor *t = allowed ? gguf_file_find_tensor(m->file, name) : NULL;
    if (t == NULL)
        return needed ? error_set(err, E_FORMAT, "tensor '%s' is missing", name) : 0;
    used[t - gguf_file_tensor(m->file, 0)] = true;
    *ret = t;
    return check_tensor(m, t, role, err);
}

/* A tensor without a role means a variant of the architecture that this version would compute
 * wrongly. */
static int check_all_used(const struct model *m, const bool *used, struct error *err)
{
    for (size_t i = 0; i < gguf_file_n_tensors(m->file); i++)
        if (!used[i])
            return error_set(err, E_UNSUPPORTED,
                             "tensor '%s' has no place in architecture '%s' with %" PRIu32
                             " layers; this variant of the model is not supported",
                             gguf_file_tensor(m->file, i)->name, m->arch->name, m->config.n_layer);
    return 0;
}

static int bind_tensors(struct model *m, struct error *err)
{
    int rc = 0;
    bool *used = calloc(gguf_file_n_tensors(m->file) + 1, sizeof(bool));
    m->layer = calloc(m->config.n_layer, sizeof(m->layer[0]));
    if (used == NULL || m->layer == NULL)
        rc = error_set(err, E_NOMEM, "no memory for %" PRIu32 " layers", m->config.n_layer);
    for (int role = 0; rc == 0 && role < ROLE_FIRST_OF_LAYER; role++)
        rc = bind_tensor(m, (enum role)role, 0, used, &m->global[role], err);
    for (uint32_t l = 0; l < m->config.n_layer; l++)
        for (int role = ROLE_FIRST_OF_LAYER; rc == 0 && role < ROLE_COUNT; role++)
            rc = bind_tensor(m, (enum role)role, l, used, &m->layer[l][role], err);
    if (rc == 0)
        rc = check_all_used(m, used, err);
    free(used);
    return rc;
}

static int hash_header(struct model *m, struct error *err)
{
    size_t header_size;
    const void *header = gguf_file_header(m->file, &header_size);
    uint8_t size[8];
    for (int i = 0; i < 8; i++)
        size[i] = (uint8_t)(gguf_file_size(m->file) >> (8 * i));
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool ok = ctx != NULL && EVP_DigestInit_ex(ctx, EVP_sha256(), NULL) == 1 &&
              EVP_DigestUpdate(ctx, header, header_size) == 1 &&
              EVP_DigestUpdate(ctx, size, sizeof(size)) == 1 &&
              EVP_DigestFinal_ex(ctx, m->hash, NULL) == 1;
    EVP_MD_CTX_free(ctx);
    return ok ? 0 : error_set(err, E_NOMEM, "the SHA-256 of the header could not be computed");
}

static void set_name(struct model *m)
{
    const char *path = gguf_file_path(m->file), *slash = strrchr(path, '/');
    struct gguf_string name = {.data = slash != NULL ? slash + 1 : path};
    name.len = strlen(name.data);
    struct gguf_string stored;
    if (gguf_file_get_string(m->file, "general.name", &stored, NULL) == 0 && stored.len > 0)
        name = stored;
    size_t n = name.len < sizeof(m->name) - 1 ? name.len : sizeof(m->name) - 1;
    for (size_t i = 0; i < n; i++)
        m->name[i] = name.data[i] >= 32 && name.data[i] < 127 ? name.data[i] : '?';
    m->name[n] = '\0';
}

static int init_model(struct model *m, struct error *err)
{
    int rc = config_read(m->file, &m->arch, &m->config, err);
    if (rc == 0)
        rc = bind_tensors(m, err);
    if (rc == 0)
        rc = hash_header(m, err);
    if (rc == 0)
        set_name(m);
    return rc;
}

int model_from_file(struct gguf_file *file, struct model **ret_model, struct error *err)
{
    struct model *m = calloc(1, sizeof(*m));
    if (m == NULL) {
        gguf_file_close(file);
        return error_set(err, E_NOMEM, "no memory for a model");
    }
    m->file = file;
    int rc = init_model(m, err);
    if (rc != 0) {
        if (gguf_file_path(file)[0] != '\0')
            error_wrap(err, rc, "%s", gguf_file_path(file));
        model_close(m);
        return rc;
    }
    *ret_model = m;
    return 0;
}

int model_open(const char *path, struct model **ret_model, struct error *err)
{
    struct gguf_file *file;
    int rc = gguf_file_open(path, &file, err);
    return rc != 0 ? rc : model_from_file(file, ret_model, err);
}

void model_close(struct model *m)
{
    if (m == NULL)
        return;
    free(m->layer);
    gguf_file_close(m->file);
    free(m);
}

const struct gguf_tensor *model_output(const struct model *m)
{
    return m->global[ROLE_OUTPUT] != NULL ? m->global[ROLE_OUTPUT] : m->global[ROLE_TOKEN_EMBD];
}

double model_head_layers(const struct model *m)
{
    double bytes = 0;
    for (uint32_t i = 0; i < m->config.n_layer; i++)
        bytes += (double)model_layer_bytes(m, i);
    return (double)model_output(m)->size_bytes * m->config.n_layer / bytes;
}

bool model_layer_has_window(const struct model *m, uint32_t layer)
{
    return m->config.window > 0 && (layer + 1) % m->config.window_pattern != 0;
}

float model_layer_rope_base(const struct model *m, uint32_t layer)
{
    return model_layer_has_window(m, layer) ? m->config.rope_base_local : m->config.rope_base;
}

float model_layer_rope_scale(const struct model *m, uint32_t layer)
{
    bool own_base = m->arch->rope_base_local > 0 && model_layer_has_window(m, layer);
    return own_base ? 1.0f : m->config.rope_scale;
}

uint64_t model_layer_bytes(const struct model *m, uint32_t layer)
{
    uint64_t bytes = 0;
    for (int role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT; role++)
        if (m->layer[layer][role] != NULL)
            bytes += m->layer[layer][role]->size_bytes;
    return bytes;
}

uint64_t model_kv_token_layer_bytes(const struct model *m)
{
    return (uint64_t)m->config.n_head_kv * m->config.head_dim * 2 * 2; /* K and V, two bytes each */
}
