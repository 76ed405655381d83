/* What this node leads, and what leaders report. */
#include "cluster/internal.h"

#include <string.h>

typedef unsigned long long ull;

/* ---- reports ---- */

static struct report_kept *find_kept(const struct cluster *c, const struct node_id *instance,
                                     uint64_t epoch)
{
    for (uint32_t i = 0; i < REPORTS_MAX; i++) {
        const struct report_kept *k = &c->report[i];
        if (k->is_used && k->report.epoch == epoch && node_id_equal(&k->report.instance, instance))
            return (struct report_kept *)k;
    }
    return NULL;
}

const struct instance_report *reports_find(const struct cluster *c, const struct node_id *instance,
                                           uint64_t epoch)
{
    const struct report_kept *k = find_kept(c, instance, epoch);
    return k != NULL ? &k->report : NULL;
}

static bool is_placed(const struct cluster *c, const struct node_id *instance, uint64_t epoch)
{
    int at = cluster_state_find_instance(c->state, instance);
    return at >= 0 && c->state->instance[at].epoch == epoch;
}

/* Reports on what is placed no more make room, the oldest first. */
static struct report_kept *make_place(struct cluster *c)
{
    struct report_kept *oldest = NULL;
    for (uint32_t i = 0; i < REPORTS_MAX; i++) {
        struct report_kept *k = &c->report[i];
        if (!k->is_used)
            return k;
        if (!is_placed(c, &k->report.instance, k->report.epoch) &&
            (oldest == NULL || k->taken_ms < oldest->taken_ms))
            oldest = k;
    }
    return oldest;
}

static uint64_t mix(uint64_t v)
{
    v ^= v >> 33;
    v *= 0xff51afd7ed558ccdull;
    v ^= v >> 33;
    v *= 0xc4ceb9fe1a85ec53ull;
    return v ^ v >> 33;
}

static uint64_t id_half(const struct node_id *id)
{
    uint64_t half;
    memcpy(&half, id->bytes, sizeof(half));
    return half;
}

void reports_digest(struct cluster *c)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < c->state->n_instances; i++) {
        const struct placed_instance *p = &c->state->instance[i];
        const struct instance_report *r = reports_find(c, &p->id, p->epoch);
        if (r != NULL)
            sum += mix(mix(id_half(&p->id) ^ mix(p->epoch)) ^ r->number);
    }
    c->reports_digest = sum;
}

bool reports_take(struct cluster *c, const struct instance_report *r)
{
    struct report_kept *k = find_kept(c, &r->instance, r->epoch);
    if (k != NULL && r->number <= k->report.number)
        return false;
    enum instance_status before = k != NULL ? k->report.status : INSTANCE_WAITING;
    if (k == NULL && (k = make_place(c)) == NULL)
        return false;
    k->is_used = true;
    k->taken_ms = c->now_ms;
    k->report = *r;
    reports_digest(c);
    c->is_changed = true;
    c->is_reconcile_due |= before != r->status;
    return true;
}

void reports_fill_want(const struct cluster *c, struct message_want *m)
{
    for (uint32_t i = 0; i < c->state->n_instances; i++) {
        const struct placed_instance *p = &c->state->instance[i];
        const struct instance_report *r = reports_find(c, &p->id, p->epoch);
        if (r == NULL || m->n_reports == WANT_REPORTS_MAX)
            continue;
        m->report[m->n_reports].instance = p->id;
        m->report[m->n_reports].epoch = p->epoch;
        m->report[m->n_reports++].number = r->number;
    }
}

static bool has_report(const struct message_want *m, const struct instance_report *r)
{
    for (uint32_t i = 0; i < m->n_reports; i++) {
        if (m->report[i].epoch == r->epoch && m->report[i].number >= r->number &&
            node_id_equal(&m->report[i].instance, &r->instance))
            return true;
    }
    return false;
}

void reports_answer_want(struct cluster *c, struct peer *p, const struct message_want *m)
{
    for (uint32_t i = 0; i < c->state->n_instances; i++) {
        const struct placed_instance *placed = &c->state->instance[i];
        const struct instance_report *r = reports_find(c, &placed->id, placed->epoch);
        if (r == NULL || has_report(m, r))
            continue;
        message_put_report(cluster_begin(c), c->incarnation, r);
        cluster_send(c, &p->member.id);
    }
}

/* ---- leading ---- */

static struct led *find_led(struct cluster *c, const struct node_id *instance, uint64_t epoch)
{
    for (uint32_t i = 0; i < LED_MAX; i++) {
        struct led *l = &c->led[i];
        if (l->is_used && l->epoch == epoch && node_id_equal(&l->instance, instance))
            return l;
    }
    return NULL;
}

static struct led *make_led(struct cluster *c)
{
    struct led *oldest = NULL;
    for (uint32_t i = 0; i < LED_MAX; i++) {
        struct led *l = &c->led[i];
        if (!l->is_used)
            return l;
        if (l->is_stopped && (oldest == NULL || l->orphan_ms < oldest->orphan_ms))
            oldest = l;
    }
    return oldest;
}

/* Two groups may have given the same epoch to different placements; this tells them apart. */
static uint64_t placement_digest(const struct placed_instance *p)
{
    uint64_t sum = mix(p->split.n_stages) ^ p->split.n_ranks;
    for (uint32_t i = 0; i < p->split.n_stages; i++) {
        sum = mix(sum ^ p->split.stage[i].layers.end);
        sum = mix(sum ^ p->split.stage[i].n_ranks);
    }
    for (uint32_t r = 0; r < p->split.n_ranks; r++) {
        sum = mix(sum ^ id_half(&p->node_of_rank[r]));
        sum = mix(sum ^ p->incarnation_of_rank[r]);
        sum = mix(sum ^ p->split.weight[r]);
    }
    return sum;
}

static void send_report(struct cluster *c, struct instance_report *r)
{
    const struct instance_report *before = reports_find(c, &r->instance, r->epoch);
    r->number = before != NULL ? before->number + 1 : 1;
    if (!reports_take(c, r))
        return;
    message_put_report(cluster_begin(c), c->incarnation, r);
    cluster_send_all(c);
}

int lead_report(struct cluster *c, const struct instance_report *r, struct error *err)
{
    struct instance_report copy = *r;
    if (memchr(copy.error, '\0', sizeof(copy.error)) == NULL)
        return error_set(err, E_INVALID, "report whose error text has no end");
    int rc = instance_report_check(&copy, err);
    if (rc != 0 || find_led(c, &r->instance, r->epoch) == NULL)
        return rc; /* of a placement long forgotten */
    send_report(c, &copy);
    return 0;
}

/* Another coordinator may still adopt what it has been offered. */
static bool may_be_adopted(const struct cluster *c, const struct led *l)
{
    return c->pending != NULL && c->now_ms - l->orphan_ms < ADOPT_MS &&
           cluster_state_find_instance(c->pending, &l->instance) >= 0;
}

static void stop(struct cluster *c, struct led *l, const char *why)
{
    char digits[33];
    struct cluster_action *a = cluster_act(c, CLUSTER_STOP);
    a->instance_id = l->instance;
    a->epoch = l->epoch;
    l->is_stopped = true;
    l->orphan_ms = c->now_ms;
    cluster_trace(c, false, "instance=%.8s epoch=%llu.%llu %s -> stop",
                  node_id_text(&l->instance, digits), (ull)(l->epoch >> 32),
                  (ull)(l->epoch >> 16 & UINT16_MAX), why);
}

static void check_led(struct cluster *c, struct led *l)
{
    int at = cluster_state_find_instance(c->state, &l->instance);
    const struct placed_instance *p = at >= 0 ? &c->state->instance[at] : NULL;
    if (p != NULL && p->epoch == l->epoch && placement_digest(p) == l->digest) {
        l->orphan_ms = 0;
        return;
    }
    if (l->orphan_ms == 0)
        l->orphan_ms = c->now_ms;
    if (p != NULL)
        stop(c, l, "is placed anew");
    else if (!may_be_adopted(c, l))
        stop(c, l, "is not wanted");
}

/* It was stopped and cannot be what the state wants: the coordinator must place it anew. */
static void refuse(struct cluster *c, const struct placed_instance *p)
{
    const struct instance_report *before = reports_find(c, &p->id, p->epoch);
    if (before != NULL && (before->status == INSTANCE_FAILED || before->status == INSTANCE_STOPPED))
        return;
    struct instance_report r = {
        .instance = p->id, .epoch = p->epoch, .status = INSTANCE_FAILED, .n_ranks = 0};
    memcpy(r.error, "this placement was stopped before",
           sizeof("this placement was stopped before"));
    send_report(c, &r);
}

static void start(struct cluster *c, const struct placed_instance *p)
{
    char digits[33];
    struct led *l = find_led(c, &p->id, p->epoch);
    if (l != NULL) {
        if (l->is_stopped)
            refuse(c, p);
        return;
    }
    if ((l = make_led(c)) == NULL)
        return; /* what is to be stopped makes room at a later tick */
    *l = (struct led){
        .instance = p->id, .epoch = p->epoch, .is_used = true, .digest = placement_digest(p)};
    struct cluster_action *a = cluster_act(c, CLUSTER_START);
    a->instance = p;
    a->instance_id = p->id;
    a->epoch = p->epoch;
    cluster_trace(c, false, "instance=%.8s model=%s epoch=%llu.%llu ranks=%u -> start",
                  node_id_text(&p->id, digits), p->model_id, (ull)(p->epoch >> 32),
                  (ull)(p->epoch >> 16 & UINT16_MAX), p->split.n_ranks);
}

void lead_follow(struct cluster *c)
{
    for (uint32_t i = 0; i < LED_MAX; i++) {
        if (c->led[i].is_used && !c->led[i].is_stopped)
            check_led(c, &c->led[i]);
    }
    for (uint32_t i = 0; i < c->state->n_instances; i++) {
        const struct placed_instance *p = &c->state->instance[i];
        if (node_id_equal(&p->node_of_rank[0], &c->id) &&
            p->incarnation_of_rank[0] == c->incarnation)
            start(c, p);
    }
}
