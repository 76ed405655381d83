/* What the coordinator runs where: first placement, repair, moves. */
#include "cluster/internal.h"

#include "cluster/wire.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

/* Why an instance cannot stay as it is. */
enum need {
    NEED_NOTHING,
    NEED_OTHER_WAY, /* its ranks have lost each other, and reach each other another way */
    NEED_MOVE,      /* it runs, and stays if there is no other place */
    NEED_REPAIR,    /* it does not run any more */
};

/* ---- work: what the coordinator remembers of a model ---- */

struct work *repair_find_work(struct cluster *c, const char *model_id)
{
    struct work *found = NULL;
    for (uint32_t i = 0; i < sizeof(c->work) / sizeof(c->work[0]); i++) {
        struct work *w = &c->work[i];
        if (w->is_used && strcmp(w->model_id, model_id) == 0)
            return w;
        if (!w->is_used && found == NULL)
            found = w;
    }
    if (found == NULL)
        return NULL;
    *found = (struct work){.is_used = true, .wanted_ms = c->now_ms};
    snprintf(found->model_id, sizeof(found->model_id), "%s", model_id);
    return found;
}

void repair_reset(struct cluster *c)
{
    memset(c->work, 0, sizeof(c->work));
    c->rebalance_ms = 0;
}

static void forget_unwanted(struct cluster *c)
{
    for (uint32_t i = 0; i < sizeof(c->work) / sizeof(c->work[0]); i++) {
        int at = c->work[i].is_used ? cluster_state_find_model(c->state, c->work[i].model_id) : -1;
        if (c->work[i].is_used && (at < 0 || !c->state->model[at].is_wanted))
            c->work[i] = (struct work){0};
    }
}

static struct unfit *find_unfit(struct work *w, const struct node_id *node, uint64_t now_ms)
{
    struct unfit *oldest = &w->unfit[0];
    for (uint32_t i = 0; i < UNFIT_MAX; i++) {
        struct unfit *u = &w->unfit[i];
        if (node_id_equal(&u->node, node)) {
            if (u->until_ms != 0 && u->until_ms <= now_ms)
                *u = (struct unfit){.node = *node};
            return u;
        }
        if (u->until_ms < oldest->until_ms)
            oldest = u;
    }
    *oldest = (struct unfit){.node = *node};
    return oldest;
}

/* A node that says that it cannot, or whose ranks fail again and again, is left out for a while. */
static void blame_nodes(struct cluster *c, struct work *w, const struct placed_instance *p,
                        const struct instance_report *r)
{
    char name[64];
    for (uint32_t k = 0; k < p->split.n_ranks; k++) {
        if ((r->bad_ranks >> k & 1) == 0)
            continue;
        struct unfit *u = find_unfit(w, &p->node_of_rank[k], c->now_ms);
        u->n_failures++;
        u->is_hard |= r->is_node_unfit;
        if (!u->is_hard && u->n_failures < UNFIT_FAILURES)
            continue;
        u->until_ms = c->now_ms + UNFIT_MS;
        cluster_trace(c, true, "model=%s node=%s %s -> kept out for %d s", p->model_id,
                      cluster_label(c, &u->node, name),
                      u->is_hard ? "cannot take part" : "failed often", UNFIT_MS / 1000);
    }
}

/* The text may hold figures that change all the time: another version only now and then. */
static void set_problem(struct cluster *c, struct desired_model *m, struct work *w,
                        const char *text)
{
    char problem[sizeof(m->problem)];
    snprintf(problem, sizeof(problem), "%s", text);
    if (!wire_is_name(problem, sizeof(problem)))
        snprintf(problem, sizeof(problem), "it could not be placed");
    bool is_other = (m->problem[0] == '\0') != (problem[0] == '\0');
    if (strcmp(m->problem, problem) == 0 ||
        (!is_other && c->now_ms - w->problem_ms < 2 * PLACE_RETRY_MS_MAX))
        return;
    w->problem_ms = c->now_ms;
    memcpy(m->problem, problem, sizeof(problem));
    if (problem[0] != '\0')
        cluster_trace(c, true, "model=%s %s -> waits", m->id, problem);
    election_bump(c);
}

/* ---- placing ---- */

bool repair_is_same(const struct placed_instance *a, const struct place *p,
                    const struct placement *b)
{
    if (a->split.n_ranks != b->split.n_ranks || a->split.n_stages != b->split.n_stages ||
        memcmp(a->split.stage, b->split.stage, a->split.n_stages * sizeof(a->split.stage[0])) != 0)
        return false;
    for (uint32_t r = 0; r < a->split.n_ranks; r++) {
        if (!node_id_equal(&a->node_of_rank[r], &p->id[b->node_of_rank[r]]))
            return false;
    }
    return true;
}

static void fill_instance(struct placed_instance *i, const struct place *p,
                          const struct placement *b)
{
    i->split = b->split;
    memset(i->node_of_rank, 0, sizeof(i->node_of_rank));
    memset(i->incarnation_of_rank, 0, sizeof(i->incarnation_of_rank));
    memset(i->bytes_of_rank, 0, sizeof(i->bytes_of_rank));
    for (uint32_t r = 0; r < b->split.n_ranks; r++) {
        i->node_of_rank[r] = p->id[b->node_of_rank[r]];
        i->incarnation_of_rank[r] = p->incarnation[b->node_of_rank[r]];
        i->bytes_of_rank[r] = b->bytes_of_rank[r];
    }
    i->decode_tok_s = b->decode_tok_s;
    i->prefill_tok_s = b->prefill_tok_s;
}

void repair_install(struct cluster *c, struct desired_model *m, struct work *w,
                    struct placed_instance *present, const struct place *p,
                    const struct placement *b, bool is_repair, const char *why)
{
    char leader[64], split[32];
    struct placed_instance *i = present;
    if (i == NULL) {
        i = &c->state->instance[c->state->n_instances++];
        *i = (struct placed_instance){.id = w->instance_id, .n_repairs = w->n_repairs};
        memcpy(i->model_id, m->id, sizeof(i->model_id));
        if (node_id_is_none(&i->id))
            i->id = cluster_make_id(c);
    }
    fill_instance(i, p, b);
    m->problem[0] = '\0';
    election_bump(c);
    /* Two groups may count alike while they are apart, and a coordinator that has lost its disk as
     * it did before: the tag keeps their placements' reports apart. */
    uint16_t tag = (uint16_t)((uint64_t)(c->id.bytes[0] << 8 | c->id.bytes[1]) ^ c->incarnation);
    i->epoch = c->state->claim.term << 32 | c->state->claim.version << 16 | tag;
    i->n_repairs += is_repair;
    w->instance_id = i->id;
    w->n_repairs = i->n_repairs;
    w->placed_ms = c->now_ms;
    w->broken_ms = 0;
    w->serving_ms = w->wanted_ms = w->failed_ms = 0;
    cluster_trace(c, false, "model=%s %s -> placed split=%s ranks=%u leader=%s epoch=%llu.%llu",
                  m->id, why, split_describe(&i->split, split), i->split.n_ranks,
                  cluster_label(c, &i->node_of_rank[0], leader), (ull)(i->epoch >> 32),
                  (ull)(i->epoch >> 16 & UINT16_MAX));
    if (b->bytes_paged > 0)
        cluster_trace(c, true,
                      "model=%s there is no memory for %.2f GiB of it -> read from disk in every "
                      "step, which is slow: add nodes, or take a smaller model",
                      m->id, (double)b->bytes_paged / (1024.0 * 1024 * 1024));
}

/* The best placement now, without the nodes that have failed this model; if there is none, also
 * with those that only seem to be at fault. The caller ends p in any case. */
int repair_solve(struct cluster *c, const struct desired_model *m,
                 const struct placed_instance *present, const struct work *w, struct place *p,
                 struct placement *ret, struct error *err)
{
    int rc = place_init(p, c, m, present, w, false, err);
    if (rc == 0)
        rc = placement_solve(&p->request, ret, err);
    if (rc == 0 || rc == E_NOMEM)
        return rc;
    place_done(p);
    if (place_init(p, c, m, present, w, true, &(struct error){0}) != 0)
        return rc;
    return placement_solve(&p->request, ret, &(struct error){0}) == 0 ? 0 : rc;
}

/* Whether another attempt makes sense: not before its time, nor often when nothing has changed. */
static bool is_attempt_due(const struct cluster *c, const struct work *w)
{
    if (c->now_ms < w->try_ms)
        return false;
    return w->inputs != c->inputs + 1 || c->now_ms - w->try_ms >= PLACE_RETRY_MS_MAX;
}

static void attempt_failed(struct cluster *c, struct desired_model *m, struct work *w,
                           const char *why)
{
    w->try_ms = c->now_ms + PLACE_RETRY_MS;
    w->inputs = c->inputs + 1; /* 0 says: there was none */
    set_problem(c, m, w, why);
}

/* In a large cluster a new coordinator does not know yet who hears whom; all tell it at once. */
static bool is_learning(const struct cluster *c)
{
    if (c->now_ms - c->term_ms >= LEARN_MS)
        return false;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct peer *p = c->peer[i];
        if (peer_is_up(p) && p->member.incarnation != 0 && p->links_number == 0)
            return true;
    }
    return false;
}

/* Waits for the nodes that the order named, but not for ever. */
static bool is_waiting(struct cluster *c, struct desired_model *m, struct work *w,
                       const struct place *p)
{
    char text[160];
    uint32_t n = place_n_eligible(p);
    uint64_t since_ms = w->wanted_ms;
    if (m->n_nodes_min <= 1 || c->now_ms - since_ms >= CLUSTER_WAIT_MS ||
        (n >= m->n_nodes_min && place_is_meshed(p)))
        return false;
    snprintf(text, sizeof(text), "waits for %u nodes, %u are here", m->n_nodes_min, n);
    if (m->problem[0] == '\0')
        set_problem(c, m, w, text);
    return true;
}

static void place_first(struct cluster *c, struct desired_model *m, struct work *w)
{
    struct place p = {0};
    struct placement b;
    struct error err = {0};
    if (w->wanted_ms == 0)
        w->wanted_ms = c->now_ms;
    if (!is_attempt_due(c, w) || is_learning(c))
        return;
    if (c->state->n_instances == LIMIT_INSTANCES) {
        attempt_failed(c, m, w, "as many models run as can: unload one");
        return;
    }
    if (place_init(&p, c, m, NULL, w, false, &err) == 0 && is_waiting(c, m, w, &p)) {
        place_done(&p);
        return;
    }
    place_done(&p);
    if (repair_solve(c, m, NULL, w, &p, &b, &err) == 0)
        repair_install(c, m, w, NULL, &p, &b, w->n_repairs > 0,
                       w->n_repairs > 0 ? "wanted again" : "wanted");
    else
        attempt_failed(c, m, w, err.message);
    place_done(&p);
}

/* ---- looking after ---- */

static bool is_here(const struct cluster *c, const struct placed_instance *p, uint32_t rank)
{
    const struct node_id *id = &p->node_of_rank[rank];
    if (node_id_equal(id, &c->id))
        return p->incarnation_of_rank[rank] == c->incarnation;
    const struct peer *peer = peer_find(c, id);
    /* Right after an election somebody who is there may not have been heard yet. */
    if (peer == NULL || peer->member.incarnation == 0)
        return c->now_ms - c->term_ms < CLUSTER_SILENT_MS && !cluster_is_revoked(c, id);
    return peer_is_there(peer) && peer->member.incarnation == p->incarnation_of_rank[rank];
}

static const struct cluster_self *find_self(const struct cluster *c, const struct node_id *id)
{
    const struct peer *p = peer_find(c, id);
    return node_id_equal(id, &c->id) ? &c->self : p != NULL ? &p->member.self : NULL;
}

static enum need judge_rank(const struct cluster *c, const struct placed_instance *p, uint32_t r,
                            const struct work *w, bool *ret_is_memory, char why[160])
{
    char name[64];
    const struct node_id *id = &p->node_of_rank[r];
    const struct cluster_self *self = find_self(c, id);
    cluster_label(c, id, name);
    if (!is_here(c, p, r)) {
        snprintf(why, 160, "node=%s of rank %u is gone", name, r);
        return NEED_REPAIR;
    }
    if (self == NULL)
        return NEED_NOTHING;
    const struct node_figures *f = &self->figures;
    bool is_paged = p->bytes_of_rank[r] > f->memory_bytes_total;
    bool is_low = f->memory_bytes_free < f->memory_bytes_total / 100 * MEMORY_PERCENT_LOW &&
                  w->serving_ms != 0 && !is_paged &&
                  (w->memory_ms == 0 || c->now_ms - w->memory_ms >= MEMORY_MS);
    if (self->is_stopping)
        snprintf(why, 160, "node=%s is stopping", name);
    else if (cluster_is_drained(c, id))
        snprintf(why, 160, "node=%s is drained", name);
    else if (f->thermal == THERMAL_CRITICAL)
        snprintf(why, 160, "node=%s is too hot", name);
    else if (is_low)
        snprintf(why, 160, "node=%s has %llu MiB free", name, (ull)(f->memory_bytes_free >> 20));
    else
        return NEED_NOTHING;
    *ret_is_memory |= is_low;
    return NEED_MOVE;
}

static enum need judge(struct cluster *c, const struct placed_instance *p, const struct work *w,
                       bool *ret_is_memory, char why[160])
{
    enum need worst = NEED_NOTHING;
    const struct instance_report *r = reports_find(c, &p->id, p->epoch);
    uint64_t since_ms = w->placed_ms != 0 ? w->placed_ms : c->term_ms;
    for (uint32_t k = 0; k < p->split.n_ranks && worst != NEED_REPAIR; k++) {
        char text[160];
        enum need n = judge_rank(c, p, k, w, ret_is_memory, text);
        if (n > worst) {
            worst = n;
            memcpy(why, text, sizeof(text));
        }
    }
    if (worst == NEED_REPAIR)
        return worst;
    if (r != NULL && (r->status == INSTANCE_FAILED || r->status == INSTANCE_STOPPED))
        snprintf(why, 160, "%s: %.120s", instance_status_name(r->status), r->error);
    else if (r == NULL && c->now_ms - since_ms >= NO_REPORT_MS)
        snprintf(why, 160, "its leader has not begun in %d s", NO_REPORT_MS / 1000);
    else
        return worst;
    return NEED_REPAIR;
}

/* Whether it failed because a node is gone, or is about to be: that is no fault of the instance. */
static bool has_lost_node(const struct cluster *c, const struct placed_instance *p,
                          const struct instance_report *r)
{
    for (uint32_t k = 0; k < p->split.n_ranks; k++) {
        const struct node_id *id = &p->node_of_rank[k];
        bool is_bad = r != NULL && r->status == INSTANCE_FAILED && (r->bad_ranks >> k & 1) != 0;
        const struct peer *peer = peer_find(c, id);
        if (!is_here(c, p, k))
            return true;
        if (is_bad && !node_id_equal(id, &c->id) && (peer == NULL || !peer_is_up(peer)))
            return true;
    }
    return false;
}

/* The first look at a failure: when to try again. At once, unless it fails again and again. */
static void count_failure(struct cluster *c, struct work *w, const struct placed_instance *p,
                          const char *why)
{
    const struct instance_report *r = reports_find(c, &p->id, p->epoch);
    if (w->serving_ms != 0 && c->now_ms - w->serving_ms >= SERVED_MS) {
        w->backoff_ms = 0;
        memset(w->unfit, 0, sizeof(w->unfit));
    }
    w->failed_epoch = p->epoch;
    w->failed_ms = c->now_ms;
    w->inputs = 0;
    bool is_node_lost = has_lost_node(c, p, r);
    w->try_ms = c->now_ms + (is_node_lost ? 0 : w->backoff_ms);
    cluster_trace(c, true, "model=%s %s -> placed again in %u ms", p->model_id, why,
                  is_node_lost ? 0 : w->backoff_ms);
    if (is_node_lost)
        return;
    w->backoff_ms = w->backoff_ms == 0 ? CLUSTER_REPAIR_MS_MIN : 2 * w->backoff_ms;
    if (w->backoff_ms > CLUSTER_REPAIR_MS_MAX)
        w->backoff_ms = CLUSTER_REPAIR_MS_MAX;
    if (r != NULL && r->status == INSTANCE_FAILED)
        blame_nodes(c, w, p, r);
}

/* Without any other place it is taken out of the state: what is left of it is stopped. */
static void repair(struct cluster *c, struct desired_model *m, struct work *w, uint32_t index,
                   const char *why)
{
    struct placed_instance *present = &c->state->instance[index];
    struct place p = {0};
    struct placement b;
    struct error err = {0};
    if (w->failed_epoch != present->epoch)
        count_failure(c, w, present, why);
    if (c->now_ms < w->try_ms || is_learning(c))
        return;
    if (repair_solve(c, m, present, w, &p, &b, &err) == 0) {
        repair_install(c, m, w, present, &p, &b, true, why);
    } else {
        w->instance_id = present->id;
        w->n_repairs = present->n_repairs + 1;
        cluster_state_remove_instance(c->state, index);
        election_bump(c);
        attempt_failed(c, m, w, err.message);
    }
    place_done(&p);
}

static void move(struct cluster *c, struct desired_model *m, struct work *w,
                 struct placed_instance *present, bool is_memory, const char *why)
{
    struct place p = {0};
    struct placement b;
    struct error err = {0};
    if (c->now_ms < w->move_try_ms || is_learning(c))
        return;
    w->move_try_ms = c->now_ms + PLACE_RETRY_MS;
    if (is_memory)
        w->memory_ms = c->now_ms;
    if (repair_solve(c, m, present, w, &p, &b, &err) != 0)
        set_problem(c, m, w, err.message);
    else if (!repair_is_same(present, &p, &b))
        repair_install(c, m, w, present, &p, &b, false, why);
    place_done(&p);
}

/* Whether a hears b, as far as we know. */
static bool hears(const struct cluster *c, const struct node_id *a, const struct node_id *b)
{
    const struct peer *p = peer_find(c, node_id_equal(a, &c->id) ? b : a);
    if (p == NULL)
        return false;
    return node_id_equal(a, &c->id) ? peer_is_up(p) : peer_find_link(p, b) != NULL;
}

/* Two nodes of an instance that lost each other, though both are there: their ranks have, too, or
 * will; its leader would find out only when a step's time is over. */
static bool is_broken(const struct cluster *c, const struct placed_instance *p, char why[160])
{
    for (uint32_t i = 0; i < p->split.n_ranks; i++)
        for (uint32_t k = 0; k < p->split.n_ranks; k++) {
            const struct node_id *a = &p->node_of_rank[i], *b = &p->node_of_rank[k];
            char name[2][64];
            if (node_id_equal(a, b) || hears(c, a, b))
                continue;
            snprintf(why, 160, "node=%s does not hear node=%s", cluster_label(c, a, name[0]),
                     cluster_label(c, b, name[1]));
            return true;
        }
    return false;
}

static void look_after(struct cluster *c, struct desired_model *m, struct work *w, uint32_t index)
{
    char why[160];
    bool is_memory = false;
    struct placed_instance *p = &c->state->instance[index];
    const struct instance_report *r = reports_find(c, &p->id, p->epoch);
    if (r != NULL && r->status == INSTANCE_SERVING && w->serving_ms == 0)
        w->serving_ms = c->now_ms;
    w->instance_id = p->id;
    enum need need = judge(c, p, w, &is_memory, why);
    bool is_apart = need == NEED_NOTHING && is_broken(c, p, why);
    bool is_lost = need == NEED_NOTHING && !is_apart && ways_have_died(c, p, w, why);
    if (!is_apart && !is_lost)
        w->broken_ms = 0;
    else if (w->broken_ms == 0)
        w->broken_ms = c->now_ms;
    if (w->broken_ms != 0 && c->now_ms - w->broken_ms >= BROKEN_MS)
        need = is_apart ? NEED_MOVE : NEED_OTHER_WAY;
    if (need == NEED_REPAIR)
        repair(c, m, w, index, why);
    else if (need == NEED_MOVE)
        move(c, m, w, p, is_memory, why);
    else if (need == NEED_OTHER_WAY)
        ways_renew(c, m, w, p, why);
    else if (m->problem[0] != '\0')
        set_problem(c, m, w, "");
}

/* ---- in turn ---- */

static void remove_unwanted(struct cluster *c)
{
    for (uint32_t i = c->state->n_instances; i-- > 0;) {
        int at = cluster_state_find_model(c->state, c->state->instance[i].model_id);
        if (at >= 0 && c->state->model[at].is_wanted)
            continue;
        cluster_state_remove_instance(c->state, i);
        election_bump(c);
    }
}

void repair_reconcile(struct cluster *c)
{
    c->reconcile_ms = c->now_ms;
    forget_unwanted(c);
    remove_unwanted(c);
    for (uint32_t i = 0; i < c->state->n_models; i++) {
        struct desired_model *m = &c->state->model[i];
        struct work *w = m->is_wanted ? repair_find_work(c, m->id) : NULL;
        if (w == NULL)
            continue;
        int at = cluster_state_find_instance_of(c->state, m->id);
        if (at >= 0)
            look_after(c, m, w, (uint32_t)at);
        else
            place_first(c, m, w);
    }
}

void repair_tick(struct cluster *c)
{
    if (!c->is_coordinator)
        return;
    if (c->now_ms - c->reconcile_ms >= CLUSTER_HEARTBEAT_MS)
        c->is_reconcile_due = true;
    if (c->rebalance_ms != 0 && c->now_ms >= c->rebalance_ms)
        gain_rebalance(c);
}
