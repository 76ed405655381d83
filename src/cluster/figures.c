#include "cluster/figures.h"

#include "base/limits.h"
#include "cluster/wire.h"

#include <inttypes.h>

const char *thermal_state_name(enum thermal_state state)
{
    static const char *const name[] = {"normal", "warning", "throttling", "critical"};
    return (unsigned)state < THERMAL_STATE_COUNT ? name[state] : "unknown";
}

void model_shape_init(struct model_shape *s, const struct model *m)
{
    const struct model_config *c = &m->config;
    *s = (struct model_shape){.n_layer = c->n_layer,
                              .n_embd = c->n_embd,
                              .n_ff = c->n_ff,
                              .n_head = c->n_head,
                              .n_head_kv = c->n_head_kv,
                              .head_dim = c->head_dim,
                              .n_vocab = c->n_vocab,
                              .n_ctx_train = c->n_ctx_train};
    for (uint32_t i = 0; i < c->n_layer; i++) {
        uint64_t bytes = model_layer_bytes(m, i);
        s->layer_bytes = bytes > s->layer_bytes ? bytes : s->layer_bytes;
    }
    if (m->global[ROLE_TOKEN_EMBD] != NULL)
        s->embd_bytes = m->global[ROLE_TOKEN_EMBD]->size_bytes;
    s->output_bytes = model_output(m)->size_bytes;
    s->kv_token_layer_bytes = model_kv_token_layer_bytes(m);
}

/* Sums over layers, slots and contexts of these must not overflow: no tensor has an exabyte. */
static const uint64_t part_bytes_max = 1ull << 48;

static int check_part(const char *what, uint64_t v, uint64_t min, uint64_t max, struct error *err)
{
    if (v >= min && v <= max)
        return 0;
    return error_set(err, E_PROTOCOL,
                     "shape: %s is %" PRIu64 "; from %" PRIu64 " to %" PRIu64 " is allowed", what,
                     v, min, max);
}

int model_shape_check(const struct model_shape *s, struct error *err)
{
    const struct {
        const char *name;
        uint64_t v, min, max;
    } part[] = {
        {"n_layer", s->n_layer, 1, LIMIT_MODEL_LAYERS},
        {"n_embd", s->n_embd, 1, LIMIT_MODEL_WIDTH},
        {"n_ff", s->n_ff, 1, LIMIT_MODEL_WIDTH},
        {"n_head", s->n_head, 1, LIMIT_MODEL_WIDTH},
        {"n_head_kv", s->n_head_kv, 1, s->n_head},
        {"head_dim", s->head_dim, 1, LIMIT_MODEL_WIDTH},
        {"n_vocab", s->n_vocab, 1, LIMIT_VOCAB_TOKENS},
        {"n_ctx_train", s->n_ctx_train, 0, UINT32_MAX},
        {"layer_bytes", s->layer_bytes, 1, part_bytes_max},
        {"embd_bytes", s->embd_bytes, 1, part_bytes_max},
        {"output_bytes", s->output_bytes, 1, part_bytes_max},
        {"kv_token_layer_bytes", s->kv_token_layer_bytes, 1, UINT32_MAX},
    };
    for (size_t i = 0; i < sizeof(part) / sizeof(part[0]); i++) {
        int rc = check_part(part[i].name, part[i].v, part[i].min, part[i].max, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

int node_figures_encode(struct buf *b, const struct node_figures *f)
{
    buf_append_u64(b, f->memory_bytes_total);
    buf_append_u64(b, f->memory_bytes_free);
    buf_append_u32(b, f->n_cores);
    buf_append_f32(b, f->gflops);
    buf_append_f32(b, f->memory_gb_s);
    buf_append_u8(b, (uint8_t)f->thermal);
    buf_append_u8(b, f->on_battery);
    return buf_append_u8(b, f->battery_percent);
}

int node_figures_decode(struct cursor *c, struct node_figures *ret, struct error *err)
{
    struct node_figures f = {0};
    uint32_t thermal = 0;
    int rc;
    if ((rc = wire_get_u64(c, 1ull << 60, &f.memory_bytes_total, "memory_bytes_total", err)) != 0 ||
        (rc = wire_get_u64(c, 1ull << 60, &f.memory_bytes_free, "memory_bytes_free", err)) != 0 ||
        (rc = wire_get_u32(c, 1u << 20, &f.n_cores, "n_cores", err)) != 0 ||
        (rc = wire_get_f32(c, &f.gflops, "gflops", err)) != 0 ||
        (rc = wire_get_f32(c, &f.memory_gb_s, "memory_gb_s", err)) != 0 ||
        (rc = wire_get_u8(c, THERMAL_STATE_COUNT - 1, &thermal, "thermal", err)) != 0 ||
        (rc = wire_get_bool(c, &f.on_battery, "on_battery", err)) != 0)
        return rc;
    f.thermal = (enum thermal_state)thermal;
    f.battery_percent = cursor_u8(c);
    if (f.battery_percent > 100 && f.battery_percent != 255)
        return error_set(err, E_PROTOCOL, "battery_percent is %u", f.battery_percent);
    if ((rc = wire_check(c, "node figures", err)) == 0)
        *ret = f;
    return rc;
}

int link_figures_encode(struct buf *b, const struct link_figures *f)
{
    buf_append_u32(b, f->rtt_us);
    buf_append_f32(b, f->mbit_s);
    return buf_append_u32(b, f->path);
}

int link_figures_decode(struct cursor *c, struct link_figures *ret, struct error *err)
{
    struct link_figures f = {.rtt_us = cursor_u32(c)};
    int rc = wire_get_f32(c, &f.mbit_s, "mbit_s", err);
    f.path = cursor_u32(c);
    if (rc == 0 && (rc = wire_check(c, "link figures", err)) == 0)
        *ret = f;
    return rc;
}

int model_shape_encode(struct buf *b, const struct model_shape *s)
{
    buf_append_u32(b, s->n_layer);
    buf_append_u32(b, s->n_embd);
    buf_append_u32(b, s->n_ff);
    buf_append_u32(b, s->n_head);
    buf_append_u32(b, s->n_head_kv);
    buf_append_u32(b, s->head_dim);
    buf_append_u32(b, s->n_vocab);
    buf_append_u32(b, s->n_ctx_train);
    buf_append_u64(b, s->layer_bytes);
    buf_append_u64(b, s->embd_bytes);
    buf_append_u64(b, s->output_bytes);
    return buf_append_u64(b, s->kv_token_layer_bytes);
}

int model_shape_decode(struct cursor *c, struct model_shape *ret, struct error *err)
{
    struct model_shape s = {0};
    s.n_layer = cursor_u32(c);
    s.n_embd = cursor_u32(c);
    s.n_ff = cursor_u32(c);
    s.n_head = cursor_u32(c);
    s.n_head_kv = cursor_u32(c);
    s.head_dim = cursor_u32(c);
    s.n_vocab = cursor_u32(c);
    s.n_ctx_train = cursor_u32(c);
    s.layer_bytes = cursor_u64(c);
    s.embd_bytes = cursor_u64(c);
    s.output_bytes = cursor_u64(c);
    s.kv_token_layer_bytes = cursor_u64(c);
    int rc = wire_check(c, "model shape", err);
    if (rc == 0 && (rc = model_shape_check(&s, err)) == 0)
        *ret = s;
    return rc;
}
