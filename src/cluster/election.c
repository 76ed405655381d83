/* Who coordinates: claims, whom to follow, and what happens when groups meet. */
#include "cluster/internal.h"

#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

/* ---- claims ---- */

uint32_t election_age_ms(const struct cluster *c)
{
    uint64_t age_ms = c->is_coordinator ? 0 : c->now_ms - c->coordinator_ms;
    return age_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)age_ms;
}

static void note_claim(struct cluster *c, const struct claim *claim)
{
    if (claim_compare(claim, &c->claim_max) > 0)
        c->claim_max = *claim;
}

static bool is_same_term(const struct claim *a, const struct claim *b)
{
    return a->term == b->term && node_id_equal(&a->coordinator, &b->coordinator);
}

void election_bump(struct cluster *c)
{
    struct claim *claim = &c->state->claim;
    if (claim->version < CLUSTER_VERSION_MAX) {
        claim->version++;
    } else {
        claim->term++;
        claim->version = 1;
    }
    note_claim(c, claim);
    c->is_state_dirty = true;
}

/* A peer that is nearer to the coordinator: itself, or who heard of it most lately. */
struct peer *election_route(const struct cluster *c)
{
    const struct claim *claim = &c->state->claim;
    struct peer *best = peer_find(c, &claim->coordinator);
    if (!c->is_live || c->is_coordinator)
        return NULL;
    if (best != NULL && best->is_linked && best->member.status == MEMBER_UP)
        return best;
    best = NULL;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        struct peer *p = c->peer[i];
        if (peer_is_up(p) && p->is_live && is_same_term(&p->claim, claim) &&
            (best == NULL || p->coordinator_age_ms < best->coordinator_age_ms))
            best = p;
    }
    return best;
}

/* ---- merging ---- */

bool election_merge_model(struct cluster *c, const struct desired_model *m, bool *ret_is_full)
{
    int at = cluster_state_find_model(c->state, m->id);
    bool is_same = at >= 0 && desired_model_equal(&c->state->model[at], m);
    if (!cluster_state_merge_model(c->state, m, ret_is_full))
        return false;
    at = cluster_state_find_model(c->state, m->id);
    c->state->model[at].problem[0] = '\0';
    int instance = cluster_state_find_instance_of(c->state, m->id);
    if (!is_same && instance >= 0)
        cluster_state_remove_instance(c->state, (uint32_t)instance);
    return true;
}

/* All its nodes must be here, in the processes that it was placed on, and take part. */
static bool can_adopt(const struct cluster *c, const struct placed_instance *p)
{
    int model = cluster_state_find_model(c->state, p->model_id);
    if (model < 0 || !c->state->model[model].is_wanted ||
        c->state->n_instances == LIMIT_INSTANCES ||
        cluster_state_find_instance_of(c->state, p->model_id) >= 0 ||
        cluster_state_find_instance(c->state, &p->id) >= 0)
        return false;
    for (uint32_t r = 0; r < p->split.n_ranks; r++) {
        bool is_self = node_id_equal(&p->node_of_rank[r], &c->id);
        const struct peer *peer = is_self ? NULL : peer_find(c, &p->node_of_rank[r]);
        if (!is_self && (peer == NULL || !peer_is_up(peer)))
            return false;
        if (p->incarnation_of_rank[r] != (is_self ? c->incarnation : peer->member.incarnation) ||
            cluster_is_drained(c, &p->node_of_rank[r]) ||
            (is_self ? c->self.is_stopping : peer->member.self.is_stopping))
            return false;
    }
    const struct instance_report *report = reports_find(c, &p->id, p->epoch);
    return report == NULL || report->status == INSTANCE_SERVING;
}

static bool adopt(struct cluster *c, const struct placed_instance *p)
{
    char name[64];
    if (!can_adopt(c, p))
        return false;
    c->state->instance[c->state->n_instances++] = *p;
    cluster_trace(c, false, "model=%s leader=%s epoch=%llu.%llu of another group -> adopted",
                  p->model_id, cluster_label(c, &p->node_of_rank[0], name), (ull)(p->epoch >> 32),
                  (ull)(p->epoch >> 16 & UINT16_MAX));
    return true;
}

/* Takes what is newer in other into the coordinator's state. */
static bool merge_state(struct cluster *c, const struct cluster_state *other)
{
    bool is_changed = false, is_full = false, is_person = false;
    for (uint32_t i = 0; i < other->n_models; i++) {
        is_person |= election_merge_model(c, &other->model[i], &is_full);
        if (is_full)
            cluster_trace(c, true, "model=%s of another group: %u models are wanted -> forgotten",
                          other->model[i].id, c->state->n_models);
    }
    for (uint32_t i = 0; i < other->n_orders; i++)
        is_person |= cluster_state_merge_order(c->state, &other->order[i], &is_full);
    for (uint32_t i = 0; i < other->n_instances; i++)
        is_changed |= adopt(c, &other->instance[i]);
    if (is_person)
        cluster_save_soon(c);
    return is_changed || is_person;
}

/* Keeps of old what fresh lacks. Returns false without memory. */
static bool keep_entries(struct cluster_state **pending, const struct cluster_state *old,
                         const struct cluster_state *fresh)
{
    bool is_full;
    for (uint32_t i = 0; i < old->n_models; i++) {
        int at = cluster_state_find_model(fresh, old->model[i].id);
        if (at >= 0 && stamp_compare(&old->model[i].stamp, &fresh->model[at].stamp) <= 0)
            continue;
        if (*pending == NULL && (*pending = calloc(1, sizeof(**pending))) == NULL)
            return false;
        cluster_state_merge_model(*pending, &old->model[i], &is_full);
    }
    for (uint32_t i = 0; i < old->n_orders; i++) {
        int at = cluster_state_find_order(fresh, &old->order[i].node);
        if (at >= 0 && stamp_compare(&old->order[i].stamp, &fresh->order[at].stamp) <= 0)
            continue;
        if (*pending == NULL && (*pending = calloc(1, sizeof(**pending))) == NULL)
            return false;
        cluster_state_merge_order(*pending, &old->order[i], &is_full);
    }
    return true;
}

/* Keeps the instances of old that serve and whose model fresh has not placed. Everybody offers
 * them: the model must not come to the other coordinator without what runs it. */
static bool keep_instances(struct cluster *c, struct cluster_state **pending,
                           const struct cluster_state *old, const struct cluster_state *fresh)
{
    for (uint32_t i = 0; i < old->n_instances; i++) {
        const struct placed_instance *p = &old->instance[i];
        const struct instance_report *report = reports_find(c, &p->id, p->epoch);
        if (report == NULL || report->status != INSTANCE_SERVING ||
            cluster_state_find_instance_of(fresh, p->model_id) >= 0)
            continue;
        if (*pending == NULL && (*pending = calloc(1, sizeof(**pending))) == NULL)
            return false;
        if ((*pending)->n_instances < LIMIT_INSTANCES &&
            cluster_state_find_instance_of(*pending, p->model_id) < 0)
            (*pending)->instance[(*pending)->n_instances++] = *p;
    }
    return true;
}

/* What must be told to the coordinator of `fresh`. Within one term it made each version from the
 * one before, so only what was pending already can be lacking; but a coordinator that has lost its
 * disk counts anew, and then our copy from the disk (version 0) may have what it lacks. */
static int update_pending(struct cluster *c, const struct cluster_state *fresh, struct error *err)
{
    bool is_new_term =
        !is_same_term(&c->state->claim, &fresh->claim) || c->state->claim.version == 0;
    bool is_ok = true;
    struct cluster_state *pending = NULL;
    if (is_new_term)
        is_ok =
            keep_entries(&pending, c->state, fresh) && keep_instances(c, &pending, c->state, fresh);
    if (c->pending != NULL)
        is_ok = is_ok && keep_entries(&pending, c->pending, fresh);
    if (c->pending != NULL && c->now_ms - c->pending_ms < ADOPT_MS)
        is_ok = is_ok && keep_instances(c, &pending, c->pending, fresh);
    if (!is_ok) {
        free(pending);
        return error_set(err, E_NOMEM, "no memory to merge the states of two groups");
    }
    if (is_new_term) {
        c->pending_ms = c->now_ms;
        c->pending_sent_ms = 0;
    }
    free(c->pending);
    c->pending = pending;
    return 0;
}

static void send_pending(struct cluster *c)
{
    struct peer *to = election_route(c);
    if (c->pending == NULL || to == NULL ||
        (c->pending_sent_ms != 0 && c->now_ms - c->pending_sent_ms < MERGE_MS))
        return;
    if (c->now_ms - c->pending_ms >= ADOPT_MS)
        c->pending->n_instances = 0;
    if (c->pending->n_models + c->pending->n_orders + c->pending->n_instances == 0) {
        free(c->pending);
        c->pending = NULL;
        return;
    }
    c->pending_sent_ms = c->now_ms;
    c->pending->claim = c->state->claim;
    message_put_merge(cluster_begin(c), c->incarnation, 0, c->pending);
    cluster_send(c, &to->member.id);
}

void election_on_merge(struct cluster *c, struct peer *p, uint32_t hops)
{
    struct peer *to = election_route(c);
    if (c->is_coordinator) {
        if (merge_state(c, c->incoming)) {
            election_bump(c);
            c->is_reconcile_due = true;
            c->inputs++;
        }
    } else if (to != NULL && to != p && hops < CLUSTER_HOPS_MAX) {
        message_put_merge(cluster_begin(c), c->incarnation, hops + 1, c->incoming);
        cluster_send(c, &to->member.id);
    }
}

/* ---- following ---- */

static bool is_entry_changed(const struct cluster_state *a, const struct cluster_state *b)
{
    if (a->claim.term != b->claim.term || a->n_models != b->n_models || a->n_orders != b->n_orders)
        return true;
    for (uint32_t i = 0; i < a->n_models; i++) {
        if (strcmp(a->model[i].id, b->model[i].id) != 0 ||
            stamp_compare(&a->model[i].stamp, &b->model[i].stamp) != 0)
            return true;
    }
    for (uint32_t i = 0; i < a->n_orders; i++) {
        if (!node_id_equal(&a->order[i].node, &b->order[i].node) ||
            stamp_compare(&a->order[i].stamp, &b->order[i].stamp) != 0)
            return true;
    }
    return false;
}

/* The only way in which a node's state is replaced: by a greater claim. */
static int follow(struct cluster *c, uint64_t heard_ms, struct error *err)
{
    char name[64];
    const struct claim *claim = &c->incoming->claim;
    int rc = update_pending(c, c->incoming, err);
    if (rc != 0)
        return rc;
    if (!is_same_term(&c->state->claim, claim) || c->state->claim.version == 0)
        cluster_trace(c, false, "term=%llu version=%llu coordinator=%s%s -> follow",
                      (ull)claim->term, (ull)claim->version,
                      cluster_label(c, &claim->coordinator, name),
                      c->is_coordinator ? " is greater than ours" : "");
    if (!is_same_term(&c->state->claim, claim))
        c->is_links_dirty = true; /* a new coordinator may need to know them */
    if (is_entry_changed(c->state, c->incoming))
        cluster_save_soon(c);
    struct cluster_state *old = c->state;
    c->state = c->incoming;
    c->incoming = old;
    c->is_coordinator = c->is_coordinator_lost = c->is_after_loss = false;
    c->is_live = true;
    c->coordinator_ms = heard_ms;
    c->is_state_dirty = true;
    send_pending(c);
    return 0;
}

int election_on_state(struct cluster *c, struct peer *p, bool is_live, uint32_t age_ms,
                      struct error *err)
{
    const struct claim *claim = &c->incoming->claim;
    uint64_t heard_ms = age_ms < c->now_ms ? c->now_ms - age_ms : 0;
    note_claim(c, claim);
    if (!is_live || age_ms > HEARSAY_MS || node_id_equal(&claim->coordinator, &c->id) ||
        claim_compare(claim, &c->state->claim) <= 0)
        return 0;
    struct peer *coordinator = peer_find(c, &claim->coordinator);
    if (coordinator != NULL && coordinator != p && !peer_is_there(coordinator)) {
        suspicion_hearsay(c, coordinator, heard_ms);
        if (!peer_is_there(coordinator))
            return 0;
    }
    return follow(c, heard_ms, err);
}

/* ---- coordinating ---- */

static void begin_term(struct cluster *c, const char *why)
{
    struct claim *claim = &c->state->claim;
    uint64_t term = c->claim_max.term > claim->term ? c->claim_max.term : claim->term;
    uint32_t n = 1;
    for (uint32_t i = 0; i < c->n_peers; i++)
        n += peer_is_up(c->peer[i]);
    if (term >= CLUSTER_TERM_MAX)
        return;
    if (!c->is_coordinator) {
        c->is_coordinator = true;
        c->term_ms = c->now_ms;
        repair_reset(c);
    }
    *claim = (struct claim){.term = term + 1, .version = 1, .coordinator = c->id};
    note_claim(c, claim);
    c->claim_max_ms = 0;
    c->is_live = true;
    c->is_coordinator_lost = c->is_after_loss = false;
    c->is_state_dirty = c->is_reconcile_due = true;
    cluster_trace(c, false, "term=%llu members=%u %s -> coordinate", (ull)claim->term, n, why);
    cluster_save_soon(c);
    if (c->pending != NULL) {
        merge_state(c, c->pending);
        free(c->pending);
        c->pending = NULL;
    }
}

static bool is_coordinator_alive(const struct cluster *c)
{
    const struct claim *claim = &c->state->claim;
    const struct peer *p = peer_find(c, &claim->coordinator);
    if (c->is_coordinator)
        return true;
    if (c->is_coordinator_lost || node_id_is_none(&claim->coordinator) ||
        node_id_equal(&claim->coordinator, &c->id))
        return false;
    if (p != NULL && p->is_linked && p->is_coordinator && p->claim.term == claim->term &&
        (p->member.status == MEMBER_UP || p->member.status == MEMBER_SUSPECT))
        return true;
    return c->now_ms - c->coordinator_ms <= HEARSAY_MS;
}

/* Candidates before us: they know more, or as much and have a greater id. One that is about to
 * leave comes last. */
static uint32_t count_better(const struct cluster *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct peer *p = c->peer[i];
        if (!peer_is_up(p) || p->member.incarnation == 0)
            continue;
        bool is_stopping = p->member.self.is_stopping;
        int order = claim_compare(&p->claim, &c->state->claim);
        if (order == 0)
            order = node_id_compare(&p->member.id, &c->id);
        if (is_stopping != c->self.is_stopping)
            order = is_stopping ? -1 : 1;
        n += order > 0;
    }
    return n;
}

/* Somebody follows a coordinator that we do not know to be gone: we should, too, or it is about to
 * take a term greater than what we know. */
static bool is_coordinator_near(const struct cluster *c)
{
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct peer *p = c->peer[i];
        const struct claim *claim = &p->claim;
        const struct peer *coordinator = peer_find(c, &claim->coordinator);
        if (!peer_is_up(p) || !p->is_live || node_id_equal(&claim->coordinator, &c->id) ||
            (coordinator != NULL && !peer_is_there(coordinator)) ||
            (c->is_coordinator_lost && is_same_term(claim, &c->state->claim)))
            continue;
        return true;
    }
    return false;
}

static void elect(struct cluster *c)
{
    uint64_t wait_ms = 0;
    if (!c->is_after_loss && !(c->is_alone_expected && c->n_peers == 0))
        wait_ms = CLUSTER_ELECTION_MS;
    if (is_coordinator_near(c))
        wait_ms = 4ull * CLUSTER_ELECTION_MS;
    wait_ms += (uint64_t)count_better(c) * CLUSTER_ELECTION_MS;
    if (c->now_ms - c->no_coordinator_ms >= wait_ms)
        begin_term(c, c->is_after_loss ? "best survivor" : "no coordinator");
}

static void lose_coordinator(struct cluster *c, const char *why)
{
    char name[64];
    if (!c->is_live)
        return;
    c->is_live = false;
    c->is_after_loss = true;
    c->no_coordinator_ms = c->now_ms;
    c->is_changed = true;
    cluster_trace(c, true, "coordinator=%s term=%llu %s -> none",
                  cluster_label(c, &c->state->claim.coordinator, name), (ull)c->state->claim.term,
                  why);
}

void election_on_lost(struct cluster *c, const struct peer *p)
{
    if (c->is_coordinator || !node_id_equal(&p->member.id, &c->state->claim.coordinator))
        return;
    c->is_coordinator_lost = true;
    c->lost_ms = c->now_ms;
    lose_coordinator(c, "is gone");
    if (!c->is_live)
        elect(c);
}

/* A copy that is greater than ours is known, but whoever made it does not coordinate: what it holds
 * comes to us once our claim is the greater one. */
static void reclaim(struct cluster *c)
{
    if (claim_compare(&c->claim_max, &c->state->claim) <= 0) {
        c->claim_max_ms = 0;
        return;
    }
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct peer *p = c->peer[i];
        if (peer_is_up(p) && p->is_live && !node_id_equal(&p->claim.coordinator, &c->id) &&
            claim_compare(&p->claim, &c->state->claim) > 0 &&
            c->now_ms - p->member.heard_ms < 2 * CLUSTER_HEARTBEAT_MS + CLUSTER_TICK_MS) {
            c->claim_max_ms = c->now_ms; /* it is alive: its state is on the way */
            return;
        }
    }
    if (c->claim_max_ms == 0)
        c->claim_max_ms = c->now_ms;
    else if (c->now_ms - c->claim_max_ms >= RECLAIM_MS)
        begin_term(c, "a greater claim without a coordinator is known");
}

void election_on_heartbeat(struct cluster *c, struct peer *p, const struct message_heartbeat *m)
{
    uint64_t age_ms = m->is_coordinator ? 0 : m->coordinator_age_ms;
    uint64_t heard_ms = age_ms < c->now_ms ? c->now_ms - age_ms : 0;
    note_claim(c, &m->claim);
    note_claim(c, &m->claim_max);
    if (!m->is_live || age_ms > HEARSAY_MS || node_id_equal(&m->claim.coordinator, &c->id))
        return;
    struct peer *coordinator = peer_find(c, &m->claim.coordinator);
    if (coordinator != NULL && coordinator != p &&
        heard_ms > coordinator->member.heard_ms + CLUSTER_HEARTBEAT_MS &&
        heard_ms > coordinator->suspect_ms)
        suspicion_hearsay(c, coordinator, heard_ms);
    if (c->is_coordinator) {
        /* Both were elected at the same time, in groups that now meet: the winner's term becomes
         * its own. */
        if (m->claim.term == c->state->claim.term && claim_compare(&m->claim, &c->state->claim) < 0)
            begin_term(c, "another coordinator has this term");
        return;
    }
    if (!is_same_term(&m->claim, &c->state->claim))
        return;
    if (c->is_coordinator_lost && heard_ms > c->lost_ms + HEARSAY_SLACK_MS)
        c->is_coordinator_lost = false;
    if (heard_ms > c->coordinator_ms)
        c->coordinator_ms = heard_ms;
}

void election_tick(struct cluster *c)
{
    bool is_alive = is_coordinator_alive(c);
    if (c->is_coordinator) {
        reclaim(c);
        return;
    }
    if (!is_alive)
        lose_coordinator(c, "was not heard");
    else if (!c->is_live)
        c->is_live = c->is_changed = true;
    if (!c->is_live)
        elect(c);
    else
        send_pending(c);
}
