#include "cluster/message.h"

#include "cluster/wire.h"

#include <inttypes.h>
#include <string.h>

static void put_head(struct buf *b, enum cluster_message_type type, uint64_t incarnation)
{
    buf_append_u8(b, CLUSTER_MESSAGE_VERSION);
    buf_append_u8(b, (uint8_t)type);
    buf_append_u64(b, incarnation);
}

int message_get_head(struct cursor *c, struct message_head *ret, struct error *err)
{
    uint8_t version = cursor_u8(c), type = cursor_u8(c);
    ret->incarnation = cursor_u64(c);
    if (c->failed)
        return error_set(err, E_PROTOCOL, "cluster message of %zu bytes has no head", c->size);
    if (version != CLUSTER_MESSAGE_VERSION)
        return error_set(err, E_PROTOCOL,
                         "cluster message of version %u; this node speaks version %d: update the "
                         "older one",
                         version, CLUSTER_MESSAGE_VERSION);
    if (type < CLUSTER_HEARTBEAT || type >= CLUSTER_MESSAGE_END)
        return error_set(err, E_PROTOCOL, "cluster message of unknown type %u", type);
    if (ret->incarnation == 0)
        return error_set(err, E_PROTOCOL, "cluster message without an incarnation");
    ret->type = (enum cluster_message_type)type;
    return 0;
}

/* Nothing may be cut off, nothing left over. */
static int check_end(const struct cursor *c, const char *what, struct error *err)
{
    int rc = wire_check(c, what, err);
    if (rc == 0 && cursor_left(c) != 0)
        rc = error_set(err, E_PROTOCOL, "%s has %zu bytes too many", what, cursor_left(c));
    return rc;
}

static void put_claim(struct buf *b, const struct claim *c)
{
    buf_append_u64(b, c->term);
    buf_append_u64(b, c->version);
    wire_put_id(b, &c->coordinator);
}

static int get_claim(struct cursor *c, struct claim *ret, struct error *err)
{
    int rc = wire_get_u64(c, CLUSTER_TERM_MAX, &ret->term, "claim.term", err);
    if (rc == 0)
        rc = wire_get_u64(c, CLUSTER_VERSION_MAX, &ret->version, "claim.version", err);
    ret->coordinator = wire_get_id(c);
    return rc;
}

/* ---- heartbeat ---- */

enum { HEARTBEAT_LIVE = 1, HEARTBEAT_COORDINATOR = 2, HEARTBEAT_STOPPING = 4 };

int message_put_heartbeat(struct buf *b, uint64_t incarnation, const struct message_heartbeat *m)
{
    put_head(b, CLUSTER_HEARTBEAT, incarnation);
    buf_append_u32(b, m->number);
    buf_append_u8(b, (uint8_t)((m->is_live ? HEARTBEAT_LIVE : 0) |
                               (m->is_coordinator ? HEARTBEAT_COORDINATOR : 0) |
                               (m->is_stopping ? HEARTBEAT_STOPPING : 0)));
    put_claim(b, &m->claim);
    buf_append_u32(b, m->coordinator_age_ms);
    put_claim(b, &m->claim_max);
    buf_append_u32(b, m->self_number);
    buf_append_u32(b, m->links_number);
    buf_append_u64(b, m->reports_digest);
    buf_append_u64(b, m->memory_bytes_free);
    return buf_append_u8(b, (uint8_t)m->thermal);
}

int message_get_heartbeat(struct cursor *c, struct message_heartbeat *ret, struct error *err)
{
    uint32_t flags = 0, thermal = 0;
    int rc;
    ret->number = cursor_u32(c);
    if ((rc = wire_get_u8(c, 7, &flags, "heartbeat.flags", err)) != 0 ||
        (rc = get_claim(c, &ret->claim, err)) != 0)
        return rc;
    ret->coordinator_age_ms = cursor_u32(c);
    if ((rc = get_claim(c, &ret->claim_max, err)) != 0)
        return rc;
    ret->self_number = cursor_u32(c);
    ret->links_number = cursor_u32(c);
    ret->reports_digest = cursor_u64(c);
    if ((rc = wire_get_u64(c, 1ull << 60, &ret->memory_bytes_free, "memory_bytes_free", err)) !=
            0 ||
        (rc = wire_get_u8(c, THERMAL_STATE_COUNT - 1, &thermal, "thermal", err)) != 0)
        return rc;
    ret->is_live = (flags & HEARTBEAT_LIVE) != 0;
    ret->is_coordinator = (flags & HEARTBEAT_COORDINATOR) != 0;
    ret->is_stopping = (flags & HEARTBEAT_STOPPING) != 0;
    ret->thermal = (enum thermal_state)thermal;
    return check_end(c, "heartbeat", err);
}

/* ---- self, links ---- */

int message_put_self(struct buf *b, uint64_t incarnation, uint32_t number,
                     const struct cluster_self *self)
{
    put_head(b, CLUSTER_SELF, incarnation);
    buf_append_u32(b, number);
    wire_put_text(b, self->name);
    node_figures_encode(b, &self->figures);
    return buf_append_u8(b, self->is_stopping);
}

int message_get_self(struct cursor *c, uint32_t *ret_number, struct cluster_self *ret,
                     struct error *err)
{
    int rc;
    *ret_number = cursor_u32(c);
    if ((rc = wire_get_text(c, WIRE_NAME, ret->name, sizeof(ret->name), "self.name", err)) != 0 ||
        (rc = node_figures_decode(c, &ret->figures, err)) != 0 ||
        (rc = wire_get_bool(c, &ret->is_stopping, "self.is_stopping", err)) != 0)
        return rc;
    return check_end(c, "self", err);
}

int message_put_links(struct buf *b, uint64_t incarnation, uint32_t number, uint32_t n,
                      const struct message_link *links)
{
    put_head(b, CLUSTER_LINKS, incarnation);
    buf_append_u32(b, number);
    buf_append_u32(b, n);
    for (uint32_t i = 0; i < n; i++) {
        wire_put_id(b, &links[i].node);
        link_figures_encode(b, &links[i].figures);
        link_figures_encode(b, &links[i].taken);
    }
    return b->error;
}

int message_get_links(struct cursor *c, uint32_t *ret_number, uint32_t *ret_n,
                      struct message_link *links, struct error *err)
{
    *ret_number = cursor_u32(c);
    int rc = wire_get_u32(c, LIMIT_PEERS, ret_n, "links.n", err);
    for (uint32_t i = 0; rc == 0 && i < *ret_n; i++) {
        links[i].node = wire_get_id(c);
        rc = link_figures_decode(c, &links[i].figures, err);
        if (rc == 0)
            rc = link_figures_decode(c, &links[i].taken, err);
        if (rc == 0 && i > 0 && node_id_compare(&links[i - 1].node, &links[i].node) >= 0)
            rc = error_set(err, E_PROTOCOL, "links are out of order");
    }
    return rc != 0 ? rc : check_end(c, "links", err);
}

/* ---- reports ---- */

int instance_report_check(const struct instance_report *r, struct error *err)
{
    if (node_id_is_none(&r->instance))
        return error_set(err, E_INVALID, "report without an instance");
    if ((unsigned)r->status >= INSTANCE_STATUS_COUNT)
        return error_set(err, E_INVALID, "report with status %d", (int)r->status);
    if (r->n_ranks > LIMIT_RANKS)
        return error_set(err, E_INVALID, "report on %" PRIu32 " ranks; at most %d are possible",
                         r->n_ranks, LIMIT_RANKS);
    for (uint32_t i = 0; i < r->n_ranks; i++) {
        const struct rank_report *k = &r->rank[i];
        if ((unsigned)k->status >= RANK_STATUS_COUNT || k->stage >= LIMIT_STAGES ||
            k->layers.end < k->layers.begin || k->layers.end > LIMIT_MODEL_LAYERS ||
            k->kv_heads.end < k->kv_heads.begin || k->kv_heads.end > LIMIT_MODEL_WIDTH)
            return error_set(err, E_INVALID, "report: rank %" PRIu32 " is out of range", i);
    }
    return 0;
}

static void put_work(struct buf *b, const struct rank_work *w)
{
    buf_append_u64(b, w->n_steps);
    buf_append_u64(b, w->n_tokens);
    buf_append_u64(b, w->step_ns);
    buf_append_u64(b, w->wait_ns);
    buf_append_u64(b, w->prepare_ns);
    buf_append_u64(b, w->sample_ns);
    buf_append_u64(b, w->bytes_sent);
    buf_append_u64(b, w->n_operations);
}

static void get_work(struct cursor *c, struct rank_work *ret)
{
    ret->n_steps = cursor_u64(c);
    ret->n_tokens = cursor_u64(c);
    ret->step_ns = cursor_u64(c);
    ret->wait_ns = cursor_u64(c);
    ret->prepare_ns = cursor_u64(c);
    ret->sample_ns = cursor_u64(c);
    ret->bytes_sent = cursor_u64(c);
    ret->n_operations = cursor_u64(c);
}

static void put_head_work(struct buf *b, const struct head_work *h)
{
    buf_append_u64(b, h->read_ms);
    buf_append_u64(b, h->n_prompt_tokens);
    buf_append_u64(b, h->n_cached_tokens);
    buf_append_u64(b, h->n_generated_tokens);
    buf_append_u64(b, h->n_drafted);
    buf_append_u64(b, h->n_accepted);
    buf_append_u64(b, h->n_preempted);
    buf_append_u32(b, h->n_running);
    buf_append_u32(b, h->n_queued);
    buf_append_u32(b, h->n_blocks);
    buf_append_u32(b, h->n_blocks_free);
}

static void get_head_work(struct cursor *c, struct head_work *ret)
{
    ret->read_ms = cursor_u64(c);
    ret->n_prompt_tokens = cursor_u64(c);
    ret->n_cached_tokens = cursor_u64(c);
    ret->n_generated_tokens = cursor_u64(c);
    ret->n_drafted = cursor_u64(c);
    ret->n_accepted = cursor_u64(c);
    ret->n_preempted = cursor_u64(c);
    ret->n_running = cursor_u32(c);
    ret->n_queued = cursor_u32(c);
    ret->n_blocks = cursor_u32(c);
    ret->n_blocks_free = cursor_u32(c);
}

int message_put_report(struct buf *b, uint64_t incarnation, const struct instance_report *r)
{
    put_head(b, CLUSTER_REPORT, incarnation);
    wire_put_id(b, &r->instance);
    buf_append_u64(b, r->epoch);
    buf_append_u32(b, r->number);
    buf_append_u8(b, (uint8_t)r->status);
    wire_put_text(b, r->error);
    buf_append_u64(b, r->bad_ranks);
    buf_append_u8(b, r->is_node_unfit);
    buf_append_u32(b, r->n_ctx);
    buf_append_u32(b, r->n_slots);
    buf_append_u64(b, r->created_s);
    put_head_work(b, &r->head);
    buf_append_u32(b, r->n_ranks);
    for (uint32_t i = 0; i < r->n_ranks; i++) {
        const struct rank_report *k = &r->rank[i];
        buf_append_u8(b, (uint8_t)k->status);
        buf_append_u32(b, k->stage);
        buf_append_u32(b, k->layers.begin);
        buf_append_u32(b, k->layers.end);
        buf_append_u32(b, k->kv_heads.begin);
        buf_append_u32(b, k->kv_heads.end);
        buf_append_u64(b, k->weight_bytes);
        buf_append_u64(b, k->kv_bytes);
        buf_append_u32(b, k->pid);
        put_work(b, &k->work);
    }
    return b->error;
}

static int get_rank_report(struct cursor *c, struct rank_report *ret, struct error *err)
{
    uint32_t status = 0;
    int rc = wire_get_u8(c, RANK_STATUS_COUNT - 1, &status, "rank.status", err);
    ret->status = (enum rank_status)status;
    ret->stage = cursor_u32(c);
    ret->layers.begin = cursor_u32(c);
    ret->layers.end = cursor_u32(c);
    ret->kv_heads.begin = cursor_u32(c);
    ret->kv_heads.end = cursor_u32(c);
    ret->weight_bytes = cursor_u64(c);
    ret->kv_bytes = cursor_u64(c);
    ret->pid = cursor_u32(c);
    get_work(c, &ret->work);
    return rc;
}

int message_get_report(struct cursor *c, struct instance_report *ret, struct error *err)
{
    uint32_t status = 0;
    int rc;
    ret->instance = wire_get_id(c);
    ret->epoch = cursor_u64(c);
    ret->number = cursor_u32(c);
    if ((rc = wire_get_u8(c, INSTANCE_STATUS_COUNT - 1, &status, "report.status", err)) != 0 ||
        (rc = wire_get_text(c, WIRE_BYTES, ret->error, sizeof(ret->error), "report.error", err)) !=
            0)
        return rc;
    ret->status = (enum instance_status)status;
    ret->bad_ranks = cursor_u64(c);
    if ((rc = wire_get_bool(c, &ret->is_node_unfit, "report.is_node_unfit", err)) != 0)
        return rc;
    ret->n_ctx = cursor_u32(c);
    ret->n_slots = cursor_u32(c);
    ret->created_s = cursor_u64(c);
    get_head_work(c, &ret->head);
    rc = wire_get_u32(c, LIMIT_RANKS, &ret->n_ranks, "report.n_ranks", err);
    for (uint32_t i = 0; rc == 0 && i < ret->n_ranks; i++)
        rc = get_rank_report(c, &ret->rank[i], err);
    if (rc != 0 || (rc = check_end(c, "report", err)) != 0)
        return rc;
    return instance_report_check(ret, err) != 0 ? error_wrap(err, E_PROTOCOL, "report") : 0;
}

/* ---- state, merge ---- */

int message_put_state(struct buf *b, uint64_t incarnation, bool is_live, uint32_t age_ms,
                      const struct cluster_state *s)
{
    put_head(b, CLUSTER_STATE, incarnation);
    buf_append_u8(b, is_live);
    buf_append_u32(b, age_ms);
    return cluster_state_encode(b, s);
}

int message_get_state(struct cursor *c, bool *ret_is_live, uint32_t *ret_age_ms,
                      struct cluster_state *ret, struct error *err)
{
    int rc = wire_get_bool(c, ret_is_live, "state.is_live", err);
    *ret_age_ms = cursor_u32(c);
    if (rc == 0)
        rc = cluster_state_decode(c, ret, err);
    return rc != 0 ? rc : check_end(c, "state", err);
}

int message_put_merge(struct buf *b, uint64_t incarnation, uint32_t hops,
                      const struct cluster_state *s)
{
    put_head(b, CLUSTER_MERGE, incarnation);
    buf_append_u8(b, (uint8_t)hops);
    return cluster_state_encode(b, s);
}

int message_get_merge(struct cursor *c, uint32_t *ret_hops, struct cluster_state *ret,
                      struct error *err)
{
    int rc = wire_get_u8(c, CLUSTER_HOPS_MAX, ret_hops, "merge.hops", err);
    if (rc == 0)
        rc = cluster_state_decode(c, ret, err);
    return rc != 0 ? rc : check_end(c, "merge", err);
}

/* ---- suspects ---- */

int message_put_ask(struct buf *b, uint64_t incarnation, const struct message_ask *m)
{
    put_head(b, CLUSTER_ASK, incarnation);
    buf_append_u32(b, m->number);
    return wire_put_id(b, &m->suspect);
}

int message_get_ask(struct cursor *c, struct message_ask *ret, struct error *err)
{
    ret->number = cursor_u32(c);
    ret->suspect = wire_get_id(c);
    return check_end(c, "ask", err);
}

int message_put_tell(struct buf *b, uint64_t incarnation, const struct message_tell *m)
{
    put_head(b, CLUSTER_TELL, incarnation);
    buf_append_u32(b, m->number);
    wire_put_id(b, &m->suspect);
    buf_append_u64(b, m->incarnation);
    buf_append_u8(b, m->is_heard);
    return buf_append_u32(b, m->silent_ms);
}

int message_get_tell(struct cursor *c, struct message_tell *ret, struct error *err)
{
    ret->number = cursor_u32(c);
    ret->suspect = wire_get_id(c);
    ret->incarnation = cursor_u64(c);
    int rc = wire_get_bool(c, &ret->is_heard, "tell.is_heard", err);
    ret->silent_ms = cursor_u32(c);
    return rc != 0 ? rc : check_end(c, "tell", err);
}

/* ---- orders ---- */

int cluster_order_check(const struct cluster_order *o, struct error *err)
{
    const struct desired_model *m = &o->model;
    if ((unsigned)o->type >= ORDER_TYPE_COUNT)
        return error_set(err, E_INVALID, "order of unknown type %d", (int)o->type);
    if (o->type != ORDER_LOAD && o->type != ORDER_UNLOAD) {
        if (node_id_is_none(&o->node))
            return error_set(err, E_INVALID, "order without a node: name the node it is about");
        return 0;
    }
    if (m->id[0] == '\0' || !wire_is_name(m->id, sizeof(m->id)))
        return error_set(
            err, E_INVALID,
            "order without a clean name of a model: name it in 1 to %zu bytes of UTF-8",
            sizeof(m->id) - 1);
    if (o->type == ORDER_UNLOAD)
        return 0;
    if (memchr(m->path, '\0', sizeof(m->path)) == NULL || !wire_is_name(m->split, sizeof(m->split)))
        return error_set(err, E_INVALID, "model '%s': path or split is no clean text", m->id);
    int rc = instance_options_check(&m->options, err);
    if (rc != 0)
        return error_wrap(err, rc, "model '%s'", m->id);
    if (m->n_nodes_min > LIMIT_PEERS + 1)
        return error_set(err, E_INVALID,
                         "model '%s': waits for %" PRIu32 " nodes; at most %d are possible", m->id,
                         m->n_nodes_min, LIMIT_PEERS + 1);
    if ((unsigned)m->rule >= PLACEMENT_RULE_COUNT)
        return error_set(err, E_INVALID, "model '%s': unknown placement rule %d", m->id,
                         (int)m->rule);
    return model_shape_check(&m->shape, err) != 0 ? error_wrap(err, E_INVALID, "model '%s'", m->id)
                                                  : 0;
}

int message_put_order(struct buf *b, uint64_t incarnation, const struct message_order *m)
{
    put_head(b, CLUSTER_ORDER, incarnation);
    wire_put_id(b, &m->origin);
    buf_append_u64(b, m->origin_incarnation);
    buf_append_u64(b, m->number);
    buf_append_u8(b, (uint8_t)m->hops);
    buf_append_u8(b, (uint8_t)m->order.type);
    if (m->order.type == ORDER_LOAD)
        return desired_model_encode(b, &m->order.model);
    if (m->order.type == ORDER_UNLOAD)
        return wire_put_text(b, m->order.model.id);
    return wire_put_id(b, &m->order.node);
}

int message_get_order(struct cursor *c, struct message_order *ret, struct error *err)
{
    struct cluster_order *o = &ret->order;
    uint32_t type = 0;
    int rc;
    *ret = (struct message_order){.origin = wire_get_id(c)};
    ret->origin_incarnation = cursor_u64(c);
    ret->number = cursor_u64(c);
    if ((rc = wire_get_u8(c, CLUSTER_HOPS_MAX, &ret->hops, "order.hops", err)) != 0 ||
        (rc = wire_get_u8(c, ORDER_TYPE_COUNT - 1, &type, "order.type", err)) != 0)
        return rc;
    o->type = (enum order_type)type;
    if (o->type == ORDER_LOAD)
        rc = desired_model_decode(c, &o->model, err);
    else if (o->type == ORDER_UNLOAD)
        rc = wire_get_text(c, WIRE_NAME, o->model.id, sizeof(o->model.id), "order.model", err);
    else
        o->node = wire_get_id(c);
    if (rc != 0 || (rc = check_end(c, "order", err)) != 0)
        return rc;
    if (node_id_is_none(&ret->origin))
        return error_set(err, E_PROTOCOL, "order without an origin");
    return cluster_order_check(o, err) != 0 ? error_wrap(err, E_PROTOCOL, "order") : 0;
}

int message_put_order_answer(struct buf *b, uint64_t incarnation,
                             const struct message_order_answer *m)
{
    put_head(b, CLUSTER_ORDER_ANSWER, incarnation);
    wire_put_id(b, &m->origin);
    buf_append_u64(b, m->origin_incarnation);
    buf_append_u64(b, m->number);
    buf_append_u8(b, (uint8_t)m->hops);
    buf_append_u32(b, (uint32_t)m->code);
    return wire_put_text(b, m->message);
}

int message_get_order_answer(struct cursor *c, struct message_order_answer *ret, struct error *err)
{
    int rc;
    ret->origin = wire_get_id(c);
    ret->origin_incarnation = cursor_u64(c);
    ret->number = cursor_u64(c);
    if ((rc = wire_get_u8(c, CLUSTER_HOPS_MAX, &ret->hops, "order_answer.hops", err)) != 0)
        return rc;
    ret->code = (int32_t)cursor_u32(c);
    if ((rc = wire_get_text(c, WIRE_BYTES, ret->message, sizeof(ret->message),
                            "order_answer.message", err)) != 0)
        return rc;
    if (ret->code > 0)
        return error_set(err, E_PROTOCOL, "order_answer.code is %" PRId32, ret->code);
    return check_end(c, "order answer", err);
}

/* ---- want ---- */

int message_put_want(struct buf *b, uint64_t incarnation, const struct message_want *m)
{
    put_head(b, CLUSTER_WANT, incarnation);
    buf_append_u8(b, (uint8_t)m->what);
    buf_append_u8(b, (uint8_t)m->n_reports);
    for (uint32_t i = 0; i < m->n_reports; i++) {
        wire_put_id(b, &m->report[i].instance);
        buf_append_u64(b, m->report[i].epoch);
        buf_append_u32(b, m->report[i].number);
    }
    return b->error;
}

int message_get_want(struct cursor *c, struct message_want *ret, struct error *err)
{
    int rc = wire_get_u8(c, WANT_ALL, &ret->what, "want.what", err);
    if (rc == 0)
        rc = wire_get_u8(c, WANT_REPORTS_MAX, &ret->n_reports, "want.n_reports", err);
    for (uint32_t i = 0; rc == 0 && i < ret->n_reports; i++) {
        ret->report[i].instance = wire_get_id(c);
        ret->report[i].epoch = cursor_u64(c);
        ret->report[i].number = cursor_u32(c);
    }
    return rc != 0 ? rc : check_end(c, "want", err);
}
