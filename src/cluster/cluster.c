/* Life and step of the core, and the actions that a step gives back. */
#include "cluster/internal.h"

#include "base/rng.h"
#include "cluster/wire.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    ACTIONS_KEPT = 192, /* room that messages and traces leave for what must not be lost */
    ARENA_BYTES_MAX = 64 << 20,
};

const char *instance_status_name(enum instance_status status)
{
    static const char *const name[] = {"waiting", "starting", "loading",
                                       "serving", "failed",   "stopped"};
    return (unsigned)status < INSTANCE_STATUS_COUNT ? name[status] : "unknown";
}

const char *rank_status_name(enum rank_status status)
{
    static const char *const name[] = {"starting", "listening", "loading", "ready", "ended"};
    return (unsigned)status < RANK_STATUS_COUNT ? name[status] : "unknown";
}

const char *member_status_name(enum member_status status)
{
    static const char *const name[] = {"up", "suspect", "remote", "gone"};
    return (unsigned)status < MEMBER_STATUS_COUNT ? name[status] : "unknown";
}

/* ---- actions ---- */

/* Makes room for n more actions beside those kept. */
static int reserve_actions(struct cluster *c, uint32_t n)
{
    uint32_t need = c->n_actions + n + ACTIONS_KEPT;
    if (need <= c->n_actions_max)
        return 0;
    uint32_t n_max = c->n_actions_max + c->n_actions_max / 2;
    n_max = n_max < need ? need : n_max;
    struct cluster_action *action = realloc(c->action, n_max * sizeof(*action));
    if (action == NULL)
        return E_NOMEM;
    c->action = action;
    c->n_actions_max = n_max;
    return 0;
}

/* Only the fields that the type has are set: a broadcast should not clear a kilobyte per peer. */
static struct cluster_action *push_action(struct cluster *c, enum cluster_action_type type)
{
    struct cluster_action *a = &c->action[c->n_actions++];
    a->type = type;
    a->node = (struct node_id){0};
    a->data = NULL;
    a->len = 0;
    a->instance = NULL;
    a->instance_id = (struct node_id){0};
    a->epoch = a->order_id = 0;
    a->error.code = 0;
    a->error.message[0] = a->trace[0] = '\0';
    a->is_warning = false;
    return a;
}

struct cluster_action *cluster_act(struct cluster *c, enum cluster_action_type type)
{
    assert(c->n_actions < c->n_actions_max);
    return push_action(c, type);
}

struct buf *cluster_begin(struct cluster *c)
{
    c->arena.error = 0; /* what failed before was another message */
    c->message_at = c->arena.len;
    return &c->arena;
}

void cluster_send(struct cluster *c, const struct node_id *to)
{
    if (c->arena.error != 0 || reserve_actions(c, 1) != 0)
        return;
    struct cluster_action *a = push_action(c, CLUSTER_SEND);
    a->node = *to;
    /* The arena may still move: an offset for now, see finish_actions. */
    a->epoch = c->message_at;
    a->len = c->arena.len - c->message_at;
}

void cluster_send_all(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n_peers; i++) {
        if (c->peer[i]->is_linked)
            cluster_send(c, &c->peer[i]->member.id);
    }
}

static void finish_actions(struct cluster *c, struct cluster_actions *ret)
{
    for (uint32_t i = 0; i < c->n_actions; i++) {
        struct cluster_action *a = &c->action[i];
        if (a->type != CLUSTER_SEND)
            continue;
        a->data = c->arena.data + a->epoch;
        a->epoch = 0;
    }
    ret->n = c->n_actions;
    ret->action = c->action;
}

void cluster_trace(struct cluster *c, bool is_warning, const char *fmt, ...)
{
    if (reserve_actions(c, 1) != 0)
        return;
    struct cluster_action *a = push_action(c, CLUSTER_TRACE);
    va_list args;
    va_start(args, fmt);
    vsnprintf(a->trace, sizeof(a->trace), fmt, args);
    va_end(args);
    a->is_warning = is_warning;
}

void cluster_answer(struct cluster *c, uint64_t order_id, const struct error *error)
{
    struct cluster_action *a = cluster_act(c, CLUSTER_ANSWER);
    a->order_id = order_id;
    a->error = *error;
}

void cluster_save_soon(struct cluster *c)
{
    if (!c->is_save_due)
        cluster_act(c, CLUSTER_SAVE);
    c->is_save_due = true;
}

const char *cluster_label(const struct cluster *c, const struct node_id *id, char text[64])
{
    const struct peer *p = peer_find(c, id);
    const char *name = p != NULL                   ? p->member.self.name
                       : node_id_equal(id, &c->id) ? c->self.name
                                                   : "";
    char digits[33];
    if (name[0] != '\0')
        snprintf(text, 64, "%s", name);
    else
        snprintf(text, 64, "%.8s", node_id_text(id, digits));
    return text;
}

struct node_id cluster_make_id(struct cluster *c)
{
    struct node_id id;
    for (uint32_t i = 0; i < 2; i++) {
        uint64_t half = rng_u64(c->seed ^ c->incarnation, c->n_ids, i);
        memcpy(id.bytes + 8 * (size_t)i, &half, 8);
    }
    c->n_ids++;
    id.bytes[0] |= 1; /* never none */
    return id;
}

/* ---- life ---- */

/* What was saved names who coordinated, and where things ran, in another life: what people said is
 * all that counts of it. Version 0 lets any living copy of that term be the newer one. */
static int restore(struct cluster *c, const void *saved, size_t len, struct error *err)
{
    struct cursor cursor;
    cursor_init(&cursor, saved, len);
    int rc = cluster_state_decode(&cursor, c->state, err);
    if (rc == 0 && cursor_left(&cursor) != 0)
        rc = error_set(err, E_PROTOCOL, "%zu bytes too many", cursor_left(&cursor));
    if (rc != 0)
        return error_wrap(err, rc, "saved state of the cluster");
    c->state->n_instances = 0;
    c->state->claim.version = 0;
    return 0;
}

int cluster_new(const struct cluster_options *o, uint64_t now_ms, struct cluster **ret_cluster,
                struct error *err)
{
    struct cluster *c = calloc(1, sizeof(*c));
    int rc = 0;
    if (c == NULL)
        return error_set(err, E_NOMEM, "no memory for the cluster's state");
    buf_init(&c->arena, ARENA_BYTES_MAX);
    c->id = o->id;
    c->incarnation = o->incarnation != 0 ? o->incarnation : 1;
    c->seed = o->seed;
    c->is_alone_expected = o->is_alone_expected;
    c->no_paging = o->no_paging;
    c->now_ms = c->start_ms = c->tick_ms = c->no_coordinator_ms = now_ms;
    c->state = calloc(1, sizeof(*c->state));
    c->incoming = calloc(1, sizeof(*c->incoming));
    if (c->state == NULL || c->incoming == NULL || reserve_actions(c, 64) != 0)
        rc = error_set(err, E_NOMEM, "no memory for the cluster's state");
    if (rc == 0 && o->saved != NULL)
        rc = restore(c, o->saved, o->saved_len, err);
    if (rc != 0) {
        cluster_free(c);
        return rc;
    }
    c->claim_max = c->state->claim;
    membership_self(c, &o->self);
    *ret_cluster = c;
    return 0;
}

void cluster_free(struct cluster *c)
{
    if (c == NULL)
        return;
    membership_free(c);
    orders_free(c);
    free(c->state);
    free(c->incoming);
    free(c->pending);
    free(c->action);
    buf_done(&c->arena);
    free(c);
}

/* Where things ran is of no use after a restart, so it is not saved. */
int cluster_save(const struct cluster *c, struct buf *b)
{
    uint32_t n_instances = c->state->n_instances;
    c->state->n_instances = 0;
    int rc = cluster_state_encode(b, c->state);
    c->state->n_instances = n_instances;
    return rc;
}

/* ---- step ---- */

static int dispatch(struct cluster *c, struct peer *p, const struct message_head *head,
                    struct cursor *cursor, struct error *err)
{
    union {
        struct message_heartbeat heartbeat;
        struct cluster_self self;
        struct message_link links[LIMIT_PEERS];
        struct instance_report report;
        struct message_ask ask;
        struct message_tell tell;
        struct message_order order;
        struct message_order_answer answer;
        struct message_want want;
    } m;
    uint32_t number, n;
    bool flag;
    int rc = 0;
#define HEARD membership_heard(c, p, head->incarnation)
    switch (head->type) {
    case CLUSTER_HEARTBEAT:
        if ((rc = message_get_heartbeat(cursor, &m.heartbeat, err)) == 0 && HEARD)
            membership_on_heartbeat(c, p, &m.heartbeat);
        break;
    case CLUSTER_SELF:
        if ((rc = message_get_self(cursor, &number, &m.self, err)) == 0 && HEARD)
            membership_on_self(c, p, number, &m.self);
        break;
    case CLUSTER_LINKS:
        if ((rc = message_get_links(cursor, &number, &n, m.links, err)) == 0 && HEARD)
            rc = membership_on_links(c, p, number, n, m.links, err);
        break;
    case CLUSTER_REPORT:
        if ((rc = message_get_report(cursor, &m.report, err)) == 0 && HEARD)
            reports_take(c, &m.report);
        break;
    case CLUSTER_STATE:
        if ((rc = message_get_state(cursor, &flag, &number, c->incoming, err)) == 0 && HEARD)
            rc = election_on_state(c, p, flag, number, err);
        break;
    case CLUSTER_MERGE:
        if ((rc = message_get_merge(cursor, &number, c->incoming, err)) == 0 && HEARD)
            election_on_merge(c, p, number);
        break;
    case CLUSTER_ASK:
        if ((rc = message_get_ask(cursor, &m.ask, err)) == 0 && HEARD)
            suspicion_on_ask(c, p, &m.ask);
        break;
    case CLUSTER_TELL:
        if ((rc = message_get_tell(cursor, &m.tell, err)) == 0 && HEARD)
            suspicion_on_tell(c, p, &m.tell);
        break;
    case CLUSTER_ORDER:
        if ((rc = message_get_order(cursor, &m.order, err)) == 0 && HEARD)
            orders_on_order(c, p, &m.order);
        break;
    case CLUSTER_ORDER_ANSWER:
        if ((rc = message_get_order_answer(cursor, &m.answer, err)) == 0 && HEARD)
            orders_on_answer(c, &m.answer);
        break;
    case CLUSTER_WANT:
        if ((rc = message_get_want(cursor, &m.want, err)) == 0 && HEARD)
            membership_on_want(c, p, &m.want);
        break;
    case CLUSTER_MESSAGE_END:
        break;
    }
#undef HEARD
    return rc;
}

/* A late message of a link that is down says nothing about now, and nobody could be answered. */
static int take_message(struct cluster *c, const struct cluster_event *e, struct error *err)
{
    struct message_head head;
    struct cursor cursor;
    struct peer *p = peer_find(c, &e->node);
    if (p == NULL || !p->is_linked)
        return 0;
    cursor_init(&cursor, e->data, e->len);
    int rc = message_get_head(&cursor, &head, err);
    if (rc == 0)
        rc = dispatch(c, p, &head, &cursor, err);
    return rc;
}

static void tick(struct cluster *c)
{
    uint64_t gap_ms = c->now_ms - c->tick_ms;
    c->tick_ms = c->now_ms;
    if (c->has_ticked && gap_ms > PAUSE_MS) {
        cluster_trace(c, true, "paused_ms=%llu limit_ms=%d -> nobody is blamed",
                      (unsigned long long)gap_ms, PAUSE_MS);
        suspicion_forgive(c);
    }
    c->has_ticked = true;
    membership_tick(c);
    election_tick(c);
    orders_tick(c);
    repair_tick(c);
    c->is_lead_due = true;
}

static int take_event(struct cluster *c, const struct cluster_event *e, struct error *err)
{
    switch (e->type) {
    case CLUSTER_EVENT_TICK:
        tick(c);
        break;
    case CLUSTER_EVENT_SELF:
        membership_self(c, e->self);
        break;
    case CLUSTER_EVENT_LINK_UP:
        return membership_link_up(c, e, err);
    case CLUSTER_EVENT_LINK_DOWN:
        membership_link_down(c, e);
        break;
    case CLUSTER_EVENT_LINK_FIGURES:
        membership_link_figures(c, e);
        break;
    case CLUSTER_EVENT_MESSAGE:
        return take_message(c, e, err);
    case CLUSTER_EVENT_ORDER:
        orders_take(c, e->order_id, e->order);
        break;
    case CLUSTER_EVENT_REPORT:
        return lead_report(c, e->report, err);
    }
    return 0;
}

/* What follows from the event, in an order that lets each part see the ones before. */
static void settle(struct cluster *c)
{
    if (c->is_coordinator && c->is_reconcile_due)
        repair_reconcile(c);
    c->is_reconcile_due = false;
    if (c->is_state_dirty) {
        reports_digest(c);
        membership_revoke(c);
        c->is_lead_due = c->is_changed = true;
        if (c->is_coordinator) {
            message_put_state(cluster_begin(c), c->incarnation, true, 0, c->state);
            cluster_send_all(c);
        }
    }
    if (c->is_lead_due)
        lead_follow(c);
    if (c->is_changed)
        cluster_act(c, CLUSTER_CHANGED);
}

int cluster_step(struct cluster *c, const struct cluster_event *e, uint64_t now_ms,
                 struct cluster_actions *ret_actions, struct error *err)
{
    c->now_ms = now_ms > c->now_ms ? now_ms : c->now_ms;
    c->n_actions = 0;
    buf_reset(&c->arena);
    c->is_changed = c->is_save_due = c->is_state_dirty = c->is_lead_due = false;
    int rc = take_event(c, e, err);
    settle(c);
    finish_actions(c, ret_actions);
    return rc;
}

/* ---- what it knows ---- */

const struct member *cluster_member_at(const struct cluster *c, uint32_t index)
{
    return index < c->n_peers ? &c->peer[index]->member : NULL;
}

const struct member *cluster_find_member(const struct cluster *c, const struct node_id *id)
{
    const struct peer *p = peer_find(c, id);
    return p != NULL ? &p->member : NULL;
}

const struct cluster_state *cluster_get_state(const struct cluster *c)
{
    return c->state;
}

bool cluster_has_coordinator(const struct cluster *c)
{
    return c->is_live;
}

bool cluster_is_coordinator(const struct cluster *c)
{
    return c->is_coordinator;
}

const struct instance_report *cluster_find_report(const struct cluster *c,
                                                  const struct node_id *instance)
{
    int at = cluster_state_find_instance(c->state, instance);
    return at < 0 ? NULL : reports_find(c, instance, c->state->instance[at].epoch);
}

bool cluster_is_revoked(const struct cluster *c, const struct node_id *id)
{
    int at = cluster_state_find_order(c->state, id);
    return at >= 0 && c->state->order[at].is_revoked;
}

bool cluster_is_drained(const struct cluster *c, const struct node_id *id)
{
    int at = cluster_state_find_order(c->state, id);
    return at >= 0 && c->state->order[at].is_drained;
}
