/* What people order: taken anywhere, done by the coordinator, answered exactly once. */
#include "cluster/internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- at the coordinator ---- */

static int load(struct cluster *c, struct desired_model *m, struct error *err)
{
    uint32_t n_wanted = 0;
    bool is_full;
    int at = cluster_state_find_model(c->state, m->id);
    for (uint32_t i = 0; i < c->state->n_models; i++)
        n_wanted += c->state->model[i].is_wanted && (int)i != at;
    if (n_wanted >= LIMIT_INSTANCES)
        return error_set(err, E_LIMIT,
                         "%d models are loaded, which is the most: unload one, then load '%s'",
                         LIMIT_INSTANCES, m->id);
    m->is_wanted = true;
    if (at >= 0 && desired_model_equal(&c->state->model[at], m))
        return 0; /* as it was: also when an order whose answer was lost comes again */
    if (!election_merge_model(c, m, &is_full))
        return error_set(err, E_LIMIT, "there is no room for another model: unload one");
    struct work *w = repair_find_work(c, m->id);
    if (w != NULL)
        *w = (struct work){0};
    election_bump(c);
    return 0;
}

static int unload(struct cluster *c, const struct stamp *stamp, const char *id, struct error *err)
{
    int at = cluster_state_find_model(c->state, id);
    if (at < 0 || !c->state->model[at].is_wanted)
        return error_set(err, E_NOTFOUND, "model '%s' is not loaded", id);
    struct desired_model *m = &c->state->model[at];
    m->is_wanted = false;
    m->stamp = *stamp;
    m->problem[0] = '\0';
    int instance = cluster_state_find_instance_of(c->state, id);
    if (instance >= 0)
        cluster_state_remove_instance(c->state, (uint32_t)instance);
    election_bump(c);
    return 0;
}

static int change_node(struct cluster *c, const struct stamp *stamp, const struct cluster_order *o,
                       struct error *err)
{
    char digits[33];
    bool is_full;
    int at = cluster_state_find_order(c->state, &o->node);
    struct node_order n = {.node = o->node};
    if (at >= 0)
        n = c->state->order[at];
    else if (!node_id_equal(&o->node, &c->id) && peer_find(c, &o->node) == NULL)
        return error_set(err, E_NOTFOUND, "no node %s is known", node_id_text(&o->node, digits));
    n.is_drained = o->type == ORDER_DRAIN || (n.is_drained && o->type != ORDER_UNDRAIN);
    n.is_revoked = n.is_revoked || o->type == ORDER_REVOKE;
    n.stamp = *stamp;
    if (at >= 0 && n.is_drained == c->state->order[at].is_drained &&
        n.is_revoked == c->state->order[at].is_revoked)
        return 0;
    if (!cluster_state_merge_order(c->state, &n, &is_full))
        return error_set(err, E_LIMIT,
                         "orders about %d nodes are kept, which is the most: undrain one",
                         LIMIT_PEERS);
    election_bump(c);
    return 0;
}

static int apply(struct cluster *c, const struct node_id *origin, struct cluster_order *o,
                 struct error *err)
{
    static const char *const verb[] = {"load", "unload", "drain", "undrain", "revoke"};
    char name[64], who[64];
    uint64_t version = c->state->claim.version;
    struct stamp stamp = {c->state->claim.term, version + 1, *origin};
    int rc;
    o->model.stamp = stamp;
    if (o->type == ORDER_LOAD)
        rc = load(c, &o->model, err);
    else if (o->type == ORDER_UNLOAD)
        rc = unload(c, &stamp, o->model.id, err);
    else
        rc = change_node(c, &stamp, o, err);
    bool is_model = o->type == ORDER_LOAD || o->type == ORDER_UNLOAD;
    cluster_trace(c, false, "order=%s %s=%s by=%s -> %s", verb[o->type],
                  is_model ? "model" : "node",
                  is_model ? o->model.id : cluster_label(c, &o->node, name),
                  cluster_label(c, origin, who), rc == 0 ? "done" : error_text(rc));
    if (rc == 0 && c->state->claim.version != version) {
        cluster_save_soon(c);
        c->is_reconcile_due = true;
        c->inputs++;
        gain_reconsider(c);
    }
    return rc;
}

static const struct answer_kept *find_answer(const struct cluster *c, const struct message_order *m)
{
    for (uint32_t i = 0; i < ANSWERS_MAX; i++) {
        const struct answer_kept *a = &c->answer[i];
        if (a->number == m->number && a->origin_incarnation == m->origin_incarnation &&
            node_id_equal(&a->origin, &m->origin))
            return a;
    }
    return NULL;
}

static const struct answer_kept *decide(struct cluster *c, struct message_order *m)
{
    const struct answer_kept *known = find_answer(c, m);
    if (known != NULL)
        return known;
    struct answer_kept *a = &c->answer[c->answer_next++ % ANSWERS_MAX];
    *a = (struct answer_kept){
        .origin = m->origin, .origin_incarnation = m->origin_incarnation, .number = m->number};
    apply(c, &m->origin, &m->order, &a->error);
    return a;
}

void orders_on_order(struct cluster *c, struct peer *from, struct message_order *m)
{
    struct peer *to = election_route(c);
    if (!c->is_coordinator) {
        if (to == NULL || to == from || m->hops >= CLUSTER_HOPS_MAX)
            return; /* it comes again */
        m->hops++;
        message_put_order(cluster_begin(c), c->incarnation, m);
        cluster_send(c, &to->member.id);
        return;
    }
    const struct answer_kept *a = decide(c, m);
    struct message_order_answer answer = {.origin = m->origin,
                                          .origin_incarnation = m->origin_incarnation,
                                          .number = m->number,
                                          .code = a->error.code};
    memcpy(answer.message, a->error.message, sizeof(answer.message));
    to = peer_find(c, &m->origin);
    if (to == NULL || !peer_is_up(to))
        to = from;
    message_put_order_answer(cluster_begin(c), c->incarnation, &answer);
    cluster_send(c, &to->member.id);
}

/* ---- where it was taken ---- */

static void finish(struct cluster *c, struct order_wait *w, const struct error *error)
{
    cluster_answer(c, w->order_id, error);
    free(w->order);
    *w = (struct order_wait){0};
}

static void forward(struct cluster *c, struct order_wait *w)
{
    struct peer *to = election_route(c);
    if (to == NULL)
        return;
    struct message_order m = {.origin = c->id,
                              .origin_incarnation = c->incarnation,
                              .number = w->number,
                              .order = *w->order};
    w->sent_ms = c->now_ms;
    message_put_order(cluster_begin(c), c->incarnation, &m);
    cluster_send(c, &to->member.id);
}

static int keep_order(struct cluster *c, uint64_t order_id, const struct cluster_order *o,
                      struct error *err)
{
    for (uint32_t i = 0; i < ORDERS_MAX; i++) {
        struct order_wait *w = &c->order[i];
        if (w->order != NULL)
            continue;
        struct cluster_order *copy = malloc(sizeof(*copy));
        if (copy == NULL)
            return error_set(err, E_NOMEM, "no memory for an order");
        *copy = *o;
        *w = (struct order_wait){.order_id = order_id,
                                 .number = ++c->order_number,
                                 .taken_ms = c->now_ms,
                                 .order = copy};
        forward(c, w);
        return 0;
    }
    return error_set(err, E_BUSY, "%d orders wait for the coordinator: try again later",
                     ORDERS_MAX);
}

void orders_take(struct cluster *c, uint64_t order_id, const struct cluster_order *o)
{
    struct error error = {0};
    struct cluster_order copy;
    int rc = cluster_order_check(o, &error);
    if (rc == 0 && o->type == ORDER_REVOKE && node_id_equal(&o->node, &c->id))
        rc = error_set(&error, E_INVALID, "a node cannot revoke itself: do it at another one");
    if (rc == 0 && !c->is_coordinator) {
        rc = keep_order(c, order_id, o, &error);
        if (rc == 0)
            return;
    } else if (rc == 0) {
        copy = *o;
        apply(c, &c->id, &copy, &error);
    }
    cluster_answer(c, order_id, &error);
}

void orders_on_answer(struct cluster *c, struct message_order_answer *m)
{
    struct error error = {.code = m->code};
    if (!node_id_equal(&m->origin, &c->id)) {
        struct peer *to = peer_find(c, &m->origin);
        if (to == NULL || !to->is_linked || m->hops >= CLUSTER_HOPS_MAX)
            return;
        m->hops++;
        message_put_order_answer(cluster_begin(c), c->incarnation, m);
        cluster_send(c, &to->member.id);
        return;
    }
    if (m->origin_incarnation != c->incarnation)
        return;
    memcpy(error.message, m->message, sizeof(error.message));
    for (uint32_t i = 0; i < ORDERS_MAX; i++) {
        if (c->order[i].order != NULL && c->order[i].number == m->number)
            finish(c, &c->order[i], &error);
    }
}

void orders_tick(struct cluster *c)
{
    for (uint32_t i = 0; i < ORDERS_MAX; i++) {
        struct order_wait *w = &c->order[i];
        struct error error = {0};
        if (w->order == NULL)
            continue;
        if (c->is_coordinator) {
            apply(c, &c->id, w->order, &error);
            finish(c, w, &error);
        } else if (c->now_ms - w->taken_ms >= ORDER_MS_MAX) {
            error_set(&error, E_UNAVAILABLE,
                      "no coordinator has answered in %d s; the order may have been taken: look at "
                      "the cluster before you repeat it",
                      ORDER_MS_MAX / 1000);
            finish(c, w, &error);
        } else if (w->sent_ms == 0 || c->now_ms - w->sent_ms >= ORDER_RETRY_MS) {
            forward(c, w);
        }
    }
}

void orders_free(struct cluster *c)
{
    for (uint32_t i = 0; i < ORDERS_MAX; i++)
        free(c->order[i].order);
}
