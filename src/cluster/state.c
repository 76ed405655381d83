#include "cluster/state.h"

#include "cluster/wire.h"

#include <assert.h>
#include <inttypes.h>
#include <string.h>

enum { STATE_FORM = 3 };

static int compare_u64(uint64_t a, uint64_t b)
{
    return a < b ? -1 : a > b;
}

int claim_compare(const struct claim *a, const struct claim *b)
{
    int order = compare_u64(a->term, b->term);
    if (order == 0)
        order = compare_u64(a->version, b->version);
    return order != 0 ? order : node_id_compare(&a->coordinator, &b->coordinator);
}

int stamp_compare(const struct stamp *a, const struct stamp *b)
{
    int order = compare_u64(a->term, b->term);
    if (order == 0)
        order = compare_u64(a->version, b->version);
    return order != 0 ? order : node_id_compare(&a->node, &b->node);
}

/* ---- finding and merging ---- */

bool instance_options_equal(const struct instance_options *a, const struct instance_options *b)
{
    return a->n_ctx == b->n_ctx && a->n_slots == b->n_slots && a->n_kv_tokens == b->n_kv_tokens &&
           a->n_chunk == b->n_chunk && a->n_draft == b->n_draft &&
           strcmp(a->draft_model, b->draft_model) == 0 && a->kv_type == b->kv_type &&
           a->wire == b->wire && a->transport == b->transport;
}

int instance_options_check(const struct instance_options *o, struct error *err)
{
    if (o->n_slots > LIMIT_SLOTS)
        return error_set(err, E_INVALID, "%" PRIu32 " slots; at most %d are possible", o->n_slots,
                         LIMIT_SLOTS);
    if (o->n_ctx > LIMIT_CONTEXT_TOKENS)
        return error_set(err, E_INVALID, "a context of %" PRIu32 " tokens; at most %u are possible",
                         o->n_ctx, LIMIT_CONTEXT_TOKENS);
    if (o->n_chunk > LIMIT_BATCH_TOKENS)
        return error_set(err, E_INVALID, "chunks of %" PRIu32 " tokens; at most %d are possible",
                         o->n_chunk, LIMIT_BATCH_TOKENS);
    if (o->n_draft > LIMIT_DRAFT_TOKENS && o->n_draft != INSTANCE_NO_DRAFT)
        return error_set(err, E_INVALID, "drafts of %" PRIu32 " tokens; at most %d are possible",
                         o->n_draft, LIMIT_DRAFT_TOKENS);
    if ((unsigned)o->kv_type >= KV_TYPE_COUNT || (unsigned)o->wire >= COMM_WIRE_COUNT ||
        (unsigned)o->transport >= COMM_TRANSPORT_COUNT)
        return error_set(err, E_INVALID, "an unknown type of KV cache, wire or transport");
    return 0;
}

bool desired_model_equal(const struct desired_model *a, const struct desired_model *b)
{
    return strcmp(a->id, b->id) == 0 && a->is_wanted == b->is_wanted &&
           memcmp(a->hash, b->hash, sizeof(a->hash)) == 0 &&
           instance_options_equal(&a->options, &b->options) && a->rule == b->rule &&
           strcmp(a->split, b->split) == 0 && a->n_nodes_min == b->n_nodes_min &&
           memcmp(&a->shape, &b->shape, sizeof(a->shape)) == 0;
}

int cluster_state_find_model(const struct cluster_state *s, const char *id)
{
    for (uint32_t i = 0; i < s->n_models; i++) {
        if (strcmp(s->model[i].id, id) == 0)
            return (int)i;
    }
    return -1;
}

int cluster_state_find_order(const struct cluster_state *s, const struct node_id *node)
{
    for (uint32_t i = 0; i < s->n_orders; i++) {
        if (node_id_equal(&s->order[i].node, node))
            return (int)i;
    }
    return -1;
}

int cluster_state_find_instance(const struct cluster_state *s, const struct node_id *id)
{
    for (uint32_t i = 0; i < s->n_instances; i++) {
        if (node_id_equal(&s->instance[i].id, id))
            return (int)i;
    }
    return -1;
}

int cluster_state_find_instance_of(const struct cluster_state *s, const char *model_id)
{
    for (uint32_t i = 0; i < s->n_instances; i++) {
        if (strcmp(s->instance[i].model_id, model_id) == 0)
            return (int)i;
    }
    return -1;
}

/* The place of the oldest entry that is kept only as a reminder, -1 when there is none. */
static int find_old_model(const struct cluster_state *s)
{
    int oldest = -1;
    for (uint32_t i = 0; i < s->n_models; i++) {
        if (!s->model[i].is_wanted &&
            (oldest < 0 || stamp_compare(&s->model[i].stamp, &s->model[oldest].stamp) < 0))
            oldest = (int)i;
    }
    return oldest;
}

static int find_old_order(const struct cluster_state *s)
{
    int oldest = -1;
    for (uint32_t i = 0; i < s->n_orders; i++) {
        const struct node_order *o = &s->order[i];
        if (!o->is_drained && !o->is_revoked &&
            (oldest < 0 || stamp_compare(&o->stamp, &s->order[oldest].stamp) < 0))
            oldest = (int)i;
    }
    return oldest;
}

bool cluster_state_merge_model(struct cluster_state *s, const struct desired_model *m,
                               bool *ret_is_full)
{
    int at = cluster_state_find_model(s, m->id);
    *ret_is_full = false;
    if (at >= 0 && stamp_compare(&m->stamp, &s->model[at].stamp) <= 0)
        return false;
    if (at < 0 && s->n_models < sizeof(s->model) / sizeof(s->model[0]))
        at = (int)s->n_models++;
    if (at < 0)
        at = find_old_model(s);
    if (at < 0) {
        *ret_is_full = true;
        return false;
    }
    s->model[at] = *m;
    return true;
}

bool cluster_state_merge_order(struct cluster_state *s, const struct node_order *o,
                               bool *ret_is_full)
{
    int at = cluster_state_find_order(s, &o->node);
    *ret_is_full = false;
    if (at >= 0 && stamp_compare(&o->stamp, &s->order[at].stamp) <= 0)
        return false;
    if (at < 0 && s->n_orders < LIMIT_PEERS)
        at = (int)s->n_orders++;
    if (at < 0)
        at = find_old_order(s);
    if (at < 0) {
        *ret_is_full = true;
        return false;
    }
    s->order[at] = *o;
    return true;
}

void cluster_state_remove_instance(struct cluster_state *s, uint32_t index)
{
    assert(index < s->n_instances);
    s->n_instances--;
    memmove(&s->instance[index], &s->instance[index + 1],
            (s->n_instances - index) * sizeof(s->instance[0]));
}

/* ---- bytes ---- */

static int stamp_encode(struct buf *b, const struct stamp *s)
{
    buf_append_u64(b, s->term);
    buf_append_u64(b, s->version);
    return wire_put_id(b, &s->node);
}

static int stamp_decode(struct cursor *c, struct stamp *ret, struct error *err)
{
    int rc = wire_get_u64(c, CLUSTER_TERM_MAX, &ret->term, "stamp.term", err);
    if (rc == 0)
        rc = wire_get_u64(c, CLUSTER_VERSION_MAX, &ret->version, "stamp.version", err);
    ret->node = wire_get_id(c);
    return rc;
}

static void options_encode(struct buf *b, const struct instance_options *o)
{
    buf_append_u32(b, o->n_ctx);
    buf_append_u32(b, o->n_slots);
    buf_append_u32(b, o->n_kv_tokens);
    buf_append_u32(b, o->n_chunk);
    buf_append_u32(b, o->n_draft);
    wire_put_text(b, o->draft_model);
    buf_append_u8(b, (uint8_t)o->kv_type);
    buf_append_u8(b, (uint8_t)o->wire);
    buf_append_u8(b, (uint8_t)o->transport);
}

static int options_decode(struct cursor *c, struct instance_options *ret, struct error *err)
{
    ret->n_ctx = cursor_u32(c);
    ret->n_slots = cursor_u32(c);
    ret->n_kv_tokens = cursor_u32(c);
    ret->n_chunk = cursor_u32(c);
    ret->n_draft = cursor_u32(c);
    int rc = wire_get_text(c, WIRE_BYTES, ret->draft_model, sizeof(ret->draft_model),
                           "model.options.draft_model", err);
    if (rc != 0)
        return rc;
    ret->kv_type = (enum kv_type)cursor_u8(c);
    ret->wire = (enum comm_wire)cursor_u8(c);
    ret->transport = (enum comm_transport)cursor_u8(c);
    if (instance_options_check(ret, err) == 0)
        return 0;
    error_wrap(err, E_PROTOCOL, "model.options");
    return E_PROTOCOL;
}

int desired_model_encode(struct buf *b, const struct desired_model *m)
{
    wire_put_text(b, m->id);
    buf_append_u8(b, m->is_wanted);
    stamp_encode(b, &m->stamp);
    wire_put_text(b, m->path);
    buf_append(b, m->hash, sizeof(m->hash));
    model_shape_encode(b, &m->shape);
    options_encode(b, &m->options);
    buf_append_u64(b, m->draft_bytes);
    buf_append_u8(b, (uint8_t)m->rule);
    wire_put_text(b, m->split);
    buf_append_u32(b, m->n_nodes_min);
    return wire_put_text(b, m->problem);
}

int desired_model_decode(struct cursor *c, struct desired_model *ret, struct error *err)
{
    uint32_t rule = 0;
    int rc;
    *ret = (struct desired_model){0};
    if ((rc = wire_get_text(c, WIRE_NAME, ret->id, sizeof(ret->id), "model.id", err)) != 0 ||
        (rc = wire_get_bool(c, &ret->is_wanted, "model.is_wanted", err)) != 0 ||
        (rc = stamp_decode(c, &ret->stamp, err)) != 0 ||
        (rc = wire_get_text(c, WIRE_BYTES, ret->path, sizeof(ret->path), "model.path", err)) != 0)
        return rc;
    const void *hash = cursor_bytes(c, sizeof(ret->hash));
    if (hash != NULL)
        memcpy(ret->hash, hash, sizeof(ret->hash));
    if ((rc = model_shape_decode(c, &ret->shape, err)) != 0)
        return rc;
    if ((rc = options_decode(c, &ret->options, err)) != 0 ||
        (rc = wire_get_u64(c, 1ull << 60, &ret->draft_bytes, "model.draft_bytes", err)) != 0 ||
        (rc = wire_get_u8(c, PLACEMENT_RULE_COUNT - 1, &rule, "model.rule", err)) != 0 ||
        (rc = wire_get_text(c, WIRE_NAME, ret->split, sizeof(ret->split), "model.split", err)) !=
            0 ||
        (rc = wire_get_u32(c, LIMIT_PEERS + 1, &ret->n_nodes_min, "model.n_nodes_min", err)) != 0 ||
        (rc = wire_get_text(c, WIRE_NAME, ret->problem, sizeof(ret->problem), "model.problem",
                            err)) != 0)
        return rc;
    ret->rule = (enum placement_rule)rule;
    if (ret->id[0] == '\0')
        return error_set(err, E_PROTOCOL, "model.id is empty");
    return wire_check(c, "model", err);
}

static int order_encode(struct buf *b, const struct node_order *o)
{
    wire_put_id(b, &o->node);
    buf_append_u8(b, o->is_drained);
    buf_append_u8(b, o->is_revoked);
    return stamp_encode(b, &o->stamp);
}

static int order_decode(struct cursor *c, struct node_order *ret, struct error *err)
{
    int rc;
    ret->node = wire_get_id(c);
    if ((rc = wire_get_bool(c, &ret->is_drained, "order.is_drained", err)) != 0 ||
        (rc = wire_get_bool(c, &ret->is_revoked, "order.is_revoked", err)) != 0 ||
        (rc = stamp_decode(c, &ret->stamp, err)) != 0)
        return rc;
    if (node_id_is_none(&ret->node))
        return error_set(err, E_PROTOCOL, "order.node is none");
    return wire_check(c, "order", err);
}

static int instance_encode(struct buf *b, const struct placed_instance *p)
{
    wire_put_id(b, &p->id);
    wire_put_text(b, p->model_id);
    buf_append_u64(b, p->epoch);
    split_encode(&p->split, b);
    for (uint32_t r = 0; r < p->split.n_ranks; r++) {
        wire_put_id(b, &p->node_of_rank[r]);
        buf_append_u64(b, p->incarnation_of_rank[r]);
        buf_append_u64(b, p->bytes_of_rank[r]);
    }
    buf_append_f32(b, p->decode_tok_s);
    buf_append_f32(b, p->prefill_tok_s);
    return buf_append_u32(b, p->n_repairs);
}

static int instance_decode(struct cursor *c, struct placed_instance *ret, struct error *err)
{
    int rc;
    *ret = (struct placed_instance){.id = wire_get_id(c)};
    if ((rc = wire_get_text(c, WIRE_NAME, ret->model_id, sizeof(ret->model_id), "instance.model_id",
                            err)) != 0)
        return rc;
    ret->epoch = cursor_u64(c);
    if ((rc = split_decode(c, &ret->split, err)) != 0)
        return rc;
    for (uint32_t r = 0; r < ret->split.n_ranks; r++) {
        ret->node_of_rank[r] = wire_get_id(c);
        ret->incarnation_of_rank[r] = cursor_u64(c);
        if ((rc = wire_get_u64(c, 1ull << 60, &ret->bytes_of_rank[r], "instance.bytes_of_rank",
                               err)) != 0)
            return rc;
        if (node_id_is_none(&ret->node_of_rank[r]))
            return error_set(err, E_PROTOCOL, "instance.node_of_rank[%" PRIu32 "] is none", r);
    }
    if ((rc = wire_get_f32(c, &ret->decode_tok_s, "instance.decode_tok_s", err)) != 0 ||
        (rc = wire_get_f32(c, &ret->prefill_tok_s, "instance.prefill_tok_s", err)) != 0)
        return rc;
    ret->n_repairs = cursor_u32(c);
    if (node_id_is_none(&ret->id) || ret->model_id[0] == '\0')
        return error_set(err, E_PROTOCOL, "instance without a name");
    return wire_check(c, "instance", err);
}

int cluster_state_encode(struct buf *b, const struct cluster_state *s)
{
    buf_append_u32(b, STATE_FORM);
    buf_append_u64(b, s->claim.term);
    buf_append_u64(b, s->claim.version);
    wire_put_id(b, &s->claim.coordinator);
    buf_append_u32(b, s->n_models);
    for (uint32_t i = 0; i < s->n_models; i++)
        desired_model_encode(b, &s->model[i]);
    buf_append_u32(b, s->n_orders);
    for (uint32_t i = 0; i < s->n_orders; i++)
        order_encode(b, &s->order[i]);
    buf_append_u32(b, s->n_instances);
    for (uint32_t i = 0; i < s->n_instances; i++)
        instance_encode(b, &s->instance[i]);
    return b->error;
}

/* Each entry is counted only once it is whole and has a name of its own, so the finds see just
 * those before it. */
static int decode_models(struct cursor *c, struct cluster_state *s, struct error *err)
{
    uint32_t n;
    int rc = wire_get_u32(c, sizeof(s->model) / sizeof(s->model[0]), &n, "state.n_models", err);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = desired_model_decode(c, &s->model[i], err);
        if (rc == 0 && cluster_state_find_model(s, s->model[i].id) >= 0)
            rc = error_set(err, E_PROTOCOL, "model '%s' is there twice", s->model[i].id);
        s->n_models += rc == 0;
    }
    return rc;
}

static int decode_orders(struct cursor *c, struct cluster_state *s, struct error *err)
{
    uint32_t n;
    int rc = wire_get_u32(c, LIMIT_PEERS, &n, "state.n_orders", err);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = order_decode(c, &s->order[i], err);
        if (rc == 0 && cluster_state_find_order(s, &s->order[i].node) >= 0)
            rc = error_set(err, E_PROTOCOL, "two orders for one node");
        s->n_orders += rc == 0;
    }
    return rc;
}

static int decode_instances(struct cursor *c, struct cluster_state *s, struct error *err)
{
    uint32_t n;
    int rc = wire_get_u32(c, LIMIT_INSTANCES, &n, "state.n_instances", err);
    for (uint32_t i = 0; rc == 0 && i < n; i++) {
        rc = instance_decode(c, &s->instance[i], err);
        if (rc == 0 && (cluster_state_find_instance(s, &s->instance[i].id) >= 0 ||
                        cluster_state_find_instance_of(s, s->instance[i].model_id) >= 0))
            rc = error_set(err, E_PROTOCOL, "two instances of model '%s'", s->instance[i].model_id);
        s->n_instances += rc == 0;
    }
    return rc;
}

int cluster_state_decode(struct cursor *c, struct cluster_state *ret, struct error *err)
{
    uint32_t form = cursor_u32(c);
    int rc;
    ret->n_models = ret->n_orders = ret->n_instances = 0;
    if (form != STATE_FORM)
        return error_set(err, E_PROTOCOL, "state of form %" PRIu32 "; this version reads form %d",
                         form, STATE_FORM);
    if ((rc = wire_get_u64(c, CLUSTER_TERM_MAX, &ret->claim.term, "claim.term", err)) != 0 ||
        (rc = wire_get_u64(c, CLUSTER_VERSION_MAX, &ret->claim.version, "claim.version", err)) != 0)
        return rc;
    ret->claim.coordinator = wire_get_id(c);
    if ((rc = decode_models(c, ret, err)) != 0 || (rc = decode_orders(c, ret, err)) != 0 ||
        (rc = decode_instances(c, ret, err)) != 0)
        return rc;
    return wire_check(c, "state", err);
}
