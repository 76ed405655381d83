/*
 * What people want of the cluster, by POST /v1/cluster/<verb> (docs/internals/http.md) or by the
 * configuration: read from JSON, checked, given to the core or to the mesh, answered once.
 */
#include "base/json.h"
#include "base/log.h"
#include "comm/comm.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ORDERS_MAX = 64, AGAIN_MS = 2000, INVITE_S_DEFAULT = 3600, INVITE_S_MAX = 7 * 86400 };

struct order {
    struct order *next;
    struct node *node;
    uint64_t id;
    bool is_configured; /* the model of the configuration: there is no one to answer */
    bool is_plan, is_join;
    bool is_loading; /* its file is being read: it must stay until that is over */
    bool is_dropped; /* and then it goes */
    void (*answer)(void *arg, int http_status, const char *json, size_t len);
    void *arg;
    struct cluster_order order;
    uv_timer_t later; /* answers never come from inside the call */
    int status;       /* of the answer that is due */
    struct buf body;
};

/* ---- answers ---- */

static void on_later_closed(uv_handle_t *handle)
{
    struct order *o = handle->data;
    struct node *n = o->node;
    n->n_handles--;
    buf_done(&o->body);
    free(o);
    node_check_stop(n);
}

static void drop(struct order *o)
{
    for (struct order **p = &o->node->orders; *p != NULL; p = &(*p)->next)
        if (*p == o) {
            *p = o->next;
            break;
        }
    uv_close((uv_handle_t *)&o->later, on_later_closed);
}

static void on_later(uv_timer_t *timer)
{
    struct order *o = timer->data;
    if (o->answer != NULL)
        o->answer(o->arg, o->status, buf_str(&o->body), o->body.len);
    drop(o);
}

/* Sends what is in o->body, in the next turn of the loop. */
static void answer(struct order *o, int status)
{
    o->status = status;
    uv_timer_start(&o->later, on_later, 0, 0);
}

static void answer_error(struct order *o, const struct error *err)
{
    buf_append_str(&o->body, "{\"error\":{\"message\":");
    json_append_string(&o->body, err->message, strlen(err->message));
    buf_printf(&o->body, ",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}",
               error_http_status(err->code) >= 500 ? "server_error" : "invalid_request_error",
               error_name(err->code));
    answer(o, error_http_status(err->code));
}

static void submit(struct order *o);

static void on_again(uv_timer_t *timer)
{
    submit(timer->data);
}

/* The coordinator may be gone, or have too much to do: that passes. */
static bool is_passing(int code)
{
    return code == E_UNAVAILABLE || code == E_BUSY || code == E_TIMEOUT || code == E_PEERLOST;
}

static void answer_result(struct order *o, const struct error *err)
{
    struct node *n = o->node;
    if (o->is_configured && is_passing(err->code) && n->phase < NODE_CLOSING_API) {
        log_warn("node", "model %s: %s -> asked for again in %d s", n->config.model, err->message,
                 AGAIN_MS / 1000);
        uv_timer_start(&o->later, on_again, AGAIN_MS, 0);
    } else if (o->is_configured) {
        if (err->code != 0) {
            log_error("node", "model %s: %s", n->config.model, err->message);
            if (n->events.model_refused != NULL)
                n->events.model_refused(n->events.arg, err);
        }
        answer(o, 0);
    } else if (err->code != 0) {
        answer_error(o, err);
    } else {
        buf_append_str(&o->body, "{\"ok\":true}");
        answer(o, 200);
    }
}

void control_on_answer(struct node *n, uint64_t id, const struct error *result)
{
    for (struct order *o = n->orders; o != NULL; o = o->next)
        if (o->id == id && id != 0) {
            o->id = 0;
            answer_result(o, result);
            return;
        }
}

void control_drop_all(struct node *n)
{
    static const char text[] = "{\"error\":{\"message\":\"the node stops\"}}";
    for (struct order *o = n->orders, *next; o != NULL; o = next) {
        next = o->next;
        if (o->answer != NULL)
            o->answer(o->arg, 503, text, sizeof(text) - 1);
        o->answer = NULL;
        if (o->is_loading)
            o->is_dropped = true;
        else
            drop(o);
    }
}

static struct order *new_order(struct node *n, struct error *err)
{
    uint32_t count = 0;
    for (const struct order *o = n->orders; o != NULL; o = o->next)
        count++;
    if (count >= ORDERS_MAX) {
        error_set(err, E_BUSY, "%u orders are being carried out: try later", count);
        return NULL;
    }
    struct order *o = calloc(1, sizeof(*o));
    if (o == NULL) {
        error_set(err, E_NOMEM, "out of memory for an order");
        return NULL;
    }
    o->node = n;
    o->next = n->orders;
    n->orders = o;
    uv_timer_init(n->loop, &o->later);
    o->later.data = o;
    n->n_handles++;
    buf_init(&o->body, 16u << 20);
    return o;
}

/* To the core. It may answer at once, or after the coordinator has. */
static void submit(struct order *o)
{
    struct node *n = o->node;
    struct cluster_event e = {.type = CLUSTER_EVENT_ORDER, .order = &o->order};
    o->id = ++n->order_last;
    e.order_id = o->id;
    core_step(n, &e, NULL);
}

/* ---- plan ---- */

static void put_rank(struct node *n, struct buf *b, const struct placement *p,
                     const struct node_id *ids, uint32_t rank)
{
    char name[64];
    uint32_t stage = 0;
    while (stage + 1 < p->split.n_stages && rank >= p->split.stage[stage + 1].rank_first)
        stage++;
    buf_printf(b, "{\"rank\":%u,\"node\":", rank);
    core_node_name(n, &ids[p->node_of_rank[rank]], name);
    json_append_string(b, name, strlen(name));
    buf_printf(b, ",\"stage\":%u,\"layers\":[%u,%u],\"bytes\":%llu}", stage,
               p->split.stage[stage].layers.begin, p->split.stage[stage].layers.end,
               (unsigned long long)p->bytes_of_rank[rank]);
}

static void put_candidate(struct node *n, struct buf *b, const struct placement_candidate *c,
                          const struct node_id *ids)
{
    char split[32];
    buf_printf(b, "{\"feasible\":%s,\"reason\":", c->is_feasible ? "true" : "false");
    json_append_string(b, c->reason, strlen(c->reason));
    split_describe(&c->placement.split, split);
    buf_printf(b, ",\"split\":\"%s\",\"decode_tok_s\":%.3f,\"prefill_tok_s\":%.3f,\"ranks\":[",
               split, (double)c->placement.decode_tok_s, (double)c->placement.prefill_tok_s);
    for (uint32_t r = 0; r < c->placement.split.n_ranks; r++) {
        if (r > 0)
            buf_append_char(b, ',');
        put_rank(n, b, &c->placement, ids, r);
    }
    buf_append_str(b, "]}");
}

static void answer_plan(struct order *o)
{
    struct node *n = o->node;
    struct error err = {0};
    struct placement_request request;
    struct node_id *ids = calloc(LIMIT_PEERS + 1, sizeof(*ids));
    struct placement_report *report = calloc(1, sizeof(*report));
    int rc = ids != NULL && report != NULL ? 0 : error_set(&err, E_NOMEM, "out of memory");
    if (rc == 0) {
        rc = cluster_plan_request(n->cluster, &o->order.model, &request, ids, &err);
        if (rc == 0) {
            rc = placement_explain(&request, report, &err);
            free((void *)(uintptr_t)request.nodes);
            free((void *)(uintptr_t)request.links);
        }
    }
    if (rc != 0 && (report == NULL || report->n_candidates == 0)) {
        answer_error(o, &err);
    } else {
        buf_append_str(&o->body, "{\"model\":");
        json_append_string(&o->body, o->order.model.id, strlen(o->order.model.id));
        buf_append_str(&o->body, ",\"candidates\":[");
        for (uint32_t i = 0; i < report->n_candidates; i++) {
            if (i > 0)
                buf_append_char(&o->body, ',');
            put_candidate(n, &o->body, &report->candidate[i], ids);
        }
        buf_append_str(&o->body, "]}");
        answer(o, 200);
    }
    free(ids);
    free(report);
}

/* ---- load and plan: the file first ---- */

static bool is_as_wanted(const struct node *n, const struct desired_model *m)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    for (uint32_t k = 0; k < s->n_models; k++) {
        const struct desired_model *d = &s->model[k];
        if (strcmp(d->id, m->id) == 0)
            return d->is_wanted && memcmp(d->hash, m->hash, sizeof(m->hash)) == 0 &&
                   instance_options_equal(&d->options, &m->options) && d->rule == m->rule &&
                   strcmp(d->split, m->split) == 0;
    }
    return false;
}

static void on_file(void *arg, struct model_file *file, const struct error *cause)
{
    struct order *o = arg;
    struct node *n = o->node;
    struct desired_model *m = &o->order.model;
    struct error err = *cause;
    n->n_loads--;
    o->is_loading = false;
    if (o->is_dropped) {
        model_file_free(file);
        drop(o);
        node_check_stop(n);
        return;
    }
    if (file != NULL) {
        snprintf(m->path, sizeof(m->path), "%s", file->path);
        snprintf(m->options.draft_model, sizeof(m->options.draft_model), "%s", file->draft_path);
        m->draft_bytes = file->draft_bytes;
        memcpy(m->hash, file->model->hash, sizeof(m->hash));
        model_shape_init(&m->shape, file->model);
        model_file_free(file);
    }
    if (n->phase >= NODE_CLOSING_API)
        error_set(&err, E_UNAVAILABLE, "the node stops");
    if (err.code != 0)
        answer_result(o, &err);
    else if (o->is_plan)
        answer_plan(o);
    else if (is_as_wanted(n, m))
        answer_result(o, &err); /* after a restart: nothing to change */
    else
        submit(o);
    node_check_stop(n);
}

static int find_model_file(struct order *o, const char *model, struct error *err)
{
    struct node *n = o->node;
    struct model_file_wanted wanted = {0};
    const char *draft = o->order.model.options.draft_model;
    model_file_candidates(&wanted, model, n->config.data_dir, n->models);
    if (draft[0] != '\0')
        model_file_draft_candidates(&wanted, draft, n->config.data_dir);
    model_file_id(model, o->order.model.id, sizeof(o->order.model.id));
    if (o->order.model.id[0] == '\0')
        return error_set(err, E_INVALID, "'%.200s' is no name of a model", model);
    if (model_file_load(n->loop, &wanted, on_file, o) != 0)
        return error_set(err, E_NOMEM, "out of memory for model %.200s", model);
    o->is_loading = true;
    n->n_loads++;
    return 0;
}

int control_load_configured(struct node *n, struct error *err)
{
    struct order *o = new_order(n, err);
    if (o == NULL)
        return E_BUSY;
    struct desired_model *m = &o->order.model;
    o->is_configured = true;
    o->order.type = ORDER_LOAD;
    m->is_wanted = true;
    m->options = n->config.options;
    m->rule = n->config.rule;
    snprintf(m->split, sizeof(m->split), "%s", n->config.split);
    m->n_nodes_min = n->config.n_peers + 1;
    int rc = find_model_file(o, n->config.model, err);
    if (rc != 0)
        drop(o);
    return rc;
}

/* ---- verbs ---- */

struct call { /* one order under way to be read */
    struct node *node;
    struct order *order;
    const json_t *body;
};

static int get_text(const struct call *c, const char *key, bool is_needed, char *ret, size_t size,
                    struct error *err)
{
    const json_t *v = json_object_get(c->body, key);
    ret[0] = '\0';
    if (v == NULL || json_is_null(v))
        return is_needed ? error_set(err, E_INVALID, "'%s' is missing", key) : 0;
    const char *text = json_string_value(v);
    if (text == NULL || strlen(text) >= size || (is_needed && text[0] == '\0') ||
        strlen(text) != json_string_length(v))
        return error_set(err, E_INVALID, "'%s' must be a text of 1 to %zu bytes", key, size - 1);
    memcpy(ret, text, strlen(text) + 1);
    return 0;
}

static int get_u32(const struct call *c, const char *key, uint32_t max, uint32_t *ret,
                   struct error *err)
{
    const json_t *v = json_object_get(c->body, key);
    *ret = 0;
    if (v == NULL || json_is_null(v))
        return 0;
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > (int64_t)max)
        return error_set(err, E_INVALID, "'%s' must be a whole number from 0 to %u", key, max);
    *ret = (uint32_t)json_integer_value(v);
    return 0;
}

/* The word of a choice, NULL when there is none. What is no text is no word that anybody knows. */
static const char *get_word(const struct call *c, const char *key)
{
    const json_t *v = json_object_get(c->body, key);
    if (v == NULL || json_is_null(v))
        return NULL;
    const char *text = json_string_value(v);
    return text != NULL && strlen(text) == json_string_length(v) ? text : "";
}

/* A type by its name; without one, it stays as it is. */
static int get_types(const struct call *c, struct instance_options *o, struct error *err)
{
    const char *kv = get_word(c, "kv_type"), *wire = get_word(c, "wire"),
               *transport = get_word(c, "transport");
    if (kv != NULL && !kv_type_parse(kv, &o->kv_type))
        return error_set(err, E_INVALID, "'kv_type' must be f16 or q8");
    if (wire != NULL && !comm_wire_parse(wire, &o->wire))
        return error_set(err, E_INVALID, "'wire' must be f32, f16 or q8");
    if (transport != NULL && !comm_transport_parse(transport, &o->transport))
        return error_set(err, E_INVALID, "'transport' must be tcp or ucx");
    return comm_check_transport(o->transport, err);
}

/* What the body does not say is as this node's configuration has it. */
static int get_options(const struct call *c, struct instance_options *ret, struct error *err)
{
    const struct {
        const char *key;
        uint32_t max;
        uint32_t *value;
    } numbers[] = {
        {"n_ctx", LIMIT_CONTEXT_TOKENS, &ret->n_ctx},
        {"n_slots", LIMIT_SLOTS, &ret->n_slots},
        {"n_kv_tokens", UINT32_MAX, &ret->n_kv_tokens},
        {"n_chunk", LIMIT_BATCH_TOKENS, &ret->n_chunk},
    };
    *ret = c->node->config.options;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        uint32_t value;
        int rc = get_u32(c, numbers[i].key, numbers[i].max, &value, err);
        if (rc != 0)
            return rc;
        if (value != 0)
            *numbers[i].value = value;
    }
    const json_t *draft = json_object_get(c->body, "n_draft");
    if (draft != NULL && !json_is_null(draft)) { /* 0 is something to say */
        int rc = get_u32(c, "n_draft", LIMIT_DRAFT_TOKENS, &ret->n_draft, err);
        if (rc != 0)
            return rc;
        if (ret->n_draft == 0)
            ret->n_draft = INSTANCE_NO_DRAFT;
    }
    const json_t *draft_model = json_object_get(c->body, "draft_model");
    if (draft_model != NULL && !json_is_null(draft_model)) { /* so is "" */
        int rc = get_text(c, "draft_model", false, ret->draft_model, sizeof(ret->draft_model), err);
        if (rc != 0)
            return rc;
    }
    return get_types(c, ret, err);
}

static int call_load(struct call *c, struct error *err)
{
    struct desired_model *m = &c->order->order.model;
    char model[4096], placement[32];
    int rc = get_text(c, "model", true, model, sizeof(model), err);
    if (rc == 0)
        rc = get_options(c, &m->options, err);
    if (rc == 0)
        rc = get_u32(c, "n_nodes_min", LIMIT_PEERS + 1, &m->n_nodes_min, err);
    if (rc == 0)
        rc = get_text(c, "split", false, m->split, sizeof(m->split), err);
    if (rc == 0)
        rc = m->split[0] != '\0' ? split_check_text(m->split, err) : 0;
    if (rc == 0)
        rc = get_text(c, "placement", false, placement, sizeof(placement), err);
    if (rc != 0)
        return rc;
    m->rule = c->node->config.rule;
    if (placement[0] != '\0' && !placement_rule_parse(placement, &m->rule))
        return error_set(err, E_INVALID, "'placement' must be speed or memory");
    m->is_wanted = true;
    c->order->order.type = ORDER_LOAD;
    return find_model_file(c->order, model, err);
}

static int call_plan(struct call *c, struct error *err)
{
    c->order->is_plan = true;
    return call_load(c, err);
}

static int call_unload(struct call *c, struct error *err)
{
    struct desired_model *m = &c->order->order.model;
    const struct cluster_state *s = cluster_get_state(c->node->cluster);
    char model[4096];
    int rc = get_text(c, "model", true, model, sizeof(model), err);
    if (rc != 0)
        return rc;
    model_file_id(model, m->id, sizeof(m->id));
    for (uint32_t k = 0; k < s->n_models; k++)
        if (s->model[k].is_wanted && strcmp(s->model[k].id, m->id) == 0) {
            c->order->order.type = ORDER_UNLOAD;
            submit(c->order);
            return 0;
        }
    return error_set(err, E_NOTFOUND, "model '%.100s' is not loaded", m->id);
}

/* A node by its name or id. A name that two nodes have must be told apart by id. */
static int find_node(const struct call *c, struct node_id *ret_id, struct error *err)
{
    struct node *n = c->node;
    char text[128];
    uint32_t n_found = 0;
    const struct member *m;
    int rc = get_text(c, "node", true, text, sizeof(text), err);
    if (rc != 0)
        return rc;
    if (node_id_parse(text, ret_id))
        return 0;
    if (strcmp(text, n->config.name) == 0) {
        *ret_id = n->id;
        n_found++;
    }
    for (uint32_t i = 0; (m = cluster_member_at(n->cluster, i)) != NULL; i++)
        if (strcmp(text, m->self.name) == 0) {
            *ret_id = m->id;
            n_found++;
        }
    if (n_found == 1)
        return 0;
    return n_found == 0
               ? error_set(err, E_NOTFOUND, "no node is called '%s'", text)
               : error_set(err, E_INVALID, "%u nodes are called '%s': give the id", n_found, text);
}

static int call_node(struct call *c, enum order_type type, struct error *err)
{
    int rc = find_node(c, &c->order->order.node, err);
    if (rc != 0)
        return rc;
    c->order->order.type = type;
    submit(c->order);
    return 0;
}

static int call_drain(struct call *c, struct error *err)
{
    return call_node(c, ORDER_DRAIN, err);
}

static int call_undrain(struct call *c, struct error *err)
{
    return call_node(c, ORDER_UNDRAIN, err);
}

static int call_revoke(struct call *c, struct error *err)
{
    struct node_id id;
    int rc = find_node(c, &id, err);
    if (rc == 0 && node_id_equal(&id, &c->node->id))
        rc = error_set(err, E_INVALID, "this node cannot revoke itself: ask another one");
    return rc != 0 ? rc : call_node(c, ORDER_REVOKE, err);
}

static int call_invite(struct call *c, struct error *err)
{
    char line[MESH_INVITE_LINE_BYTES];
    uint32_t valid_s;
    int rc = get_u32(c, "valid_s", INVITE_S_MAX, &valid_s, err);
    if (rc == 0 && valid_s == 0)
        valid_s = INVITE_S_DEFAULT;
    if (rc == 0)
        rc = mesh_invite(c->node->mesh, valid_s, line, err);
    if (rc != 0)
        return rc;
    buf_append_str(&c->order->body, "{\"invite\":");
    json_append_string(&c->order->body, line, strlen(line));
    buf_printf(&c->order->body, ",\"expires_s\":%u}", valid_s);
    answer(c->order, 200);
    return 0;
}

static int call_join(struct call *c, struct error *err)
{
    char line[MESH_INVITE_LINE_BYTES];
    int rc = get_text(c, "invite", true, line, sizeof(line), err);
    if (rc == 0)
        rc = mesh_join(c->node->mesh, line, err);
    if (rc == 0)
        c->order->is_join = true; /* control_on_join answers */
    return rc;
}

void control_on_join(struct node *n, const struct mesh_join_result *r)
{
    for (struct order *o = n->orders; o != NULL && r->is_invite; o = o->next)
        if (o->is_join) {
            o->is_join = false;
            answer_result(o, &r->error);
            return;
        }
}

static int call_requests(struct call *c, struct error *err)
{
    struct mesh_join_request r;
    struct buf *b = &c->order->body;
    (void)err;
    buf_append_str(b, "{\"requests\":[");
    for (uint32_t i = 0; mesh_request_at(c->node->mesh, i, &r); i++) {
        buf_append_str(b, i > 0 ? ",{\"code\":\"" : "{\"code\":\"");
        buf_append_str(b, r.code);
        buf_append_str(b, "\",\"name\":");
        json_append_string(b, r.name, strlen(r.name));
        buf_append_str(b, ",\"address\":");
        json_append_string(b, r.address.host, strlen(r.address.host));
        buf_printf(b,
                   ",\"age_s\":%llu,\"is_newcomer\":%s,\"approved_here\":%s,\"approved_there\":%s}",
                   (unsigned long long)(r.age_ms / 1000), r.is_newcomer ? "true" : "false",
                   r.is_approved_here ? "true" : "false", r.is_approved_there ? "true" : "false");
    }
    buf_append_str(b, "]}");
    answer(c->order, 200);
    return 0;
}

static int call_code(struct call *c, bool is_approval, struct error *err)
{
    char code[16];
    struct error none = {0};
    int rc = get_text(c, "code", true, code, sizeof(code), err);
    if (rc == 0)
        rc = is_approval ? mesh_approve(c->node->mesh, code, err)
                         : mesh_deny(c->node->mesh, code, err);
    if (rc == 0)
        answer_result(c->order, &none);
    return rc;
}

static int call_approve(struct call *c, struct error *err)
{
    return call_code(c, true, err);
}

static int call_deny(struct call *c, struct error *err)
{
    return call_code(c, false, err);
}

int control_call(struct node *n, const char *verb, const char *body, size_t len,
                 void (*on_answer)(void *arg, int http_status, const char *json, size_t len),
                 void *arg, struct error *err)
{
    static const struct {
        const char *verb;
        int (*call)(struct call *c, struct error *err);
    } table[] = {
        {"plan", call_plan},       {"load", call_load},       {"unload", call_unload},
        {"drain", call_drain},     {"undrain", call_undrain}, {"revoke", call_revoke},
        {"invite", call_invite},   {"join", call_join},       {"requests", call_requests},
        {"approve", call_approve}, {"deny", call_deny},
    };
    size_t at = 0;
    while (at < sizeof(table) / sizeof(table[0]) && strcmp(table[at].verb, verb) != 0)
        at++;
    if (at == sizeof(table) / sizeof(table[0]) && !library_is_order(verb))
        return error_set(err, E_NOTFOUND, "there is no order '%.64s'", verb);
    if (n->phase != NODE_RUNNING)
        return error_set(err, E_UNAVAILABLE, "this node is stopping");
    json_t *doc = NULL;
    int rc = len > 0 ? json_parse(body, len, &doc, err) : 0;
    if (rc == 0 && doc != NULL && !json_is_object(doc))
        rc = error_set(err, E_INVALID, "the body must be a JSON object");
    if (rc == 0 && library_is_order(verb)) {
        rc = library_call(n, verb, doc, on_answer, arg, err);
        json_decref(doc);
        return rc;
    }
    struct call c = {.node = n, .body = doc};
    if (rc == 0) {
        c.order = new_order(n, err);
        rc = c.order != NULL ? 0 : E_BUSY;
    }
    if (rc == 0 && c.order != NULL) {
        c.order->answer = on_answer;
        c.order->arg = arg;
        rc = table[at].call(&c, err);
        if (rc != 0) {
            c.order->answer = NULL;
            drop(c.order);
        }
    }
    json_decref(doc);
    return rc;
}
