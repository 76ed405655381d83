/* Moves that nothing forces: a new node, better figures. The coordinator's. */
#include "cluster/internal.h"

#include <stdio.h>

static uint32_t count_nodes(const struct placement *b)
{
    uint32_t n = 0;
    for (uint32_t r = 0; r < b->split.n_ranks; r++) {
        bool is_new = true;
        for (uint32_t k = 0; k < r; k++)
            is_new = is_new && b->node_of_rank[k] != b->node_of_rank[r];
        n += is_new;
    }
    return n;
}

bool gain_describe(const struct placed_instance *i, const struct place *p, struct placement *ret)
{
    *ret = (struct placement){.split = i->split};
    for (uint32_t r = 0; r < i->split.n_ranks; r++) {
        uint32_t k = 0;
        while (k < p->request.n_nodes && !node_id_equal(&p->id[k], &i->node_of_rank[r]))
            k++;
        if (k == p->request.n_nodes)
            return false;
        ret->node_of_rank[r] = k;
        ret->bytes_of_rank[r] = i->bytes_of_rank[r];
    }
    return true;
}

/* Large clusters take long to price, and need not be perfect. */
uint32_t gain_wait_ms(const struct cluster *c, const struct work *w)
{
    uint32_t least_ms = CLUSTER_REBALANCE_MS * (1 + c->n_peers / 16);
    return w->gain_wait_ms > least_ms ? w->gain_wait_ms : least_ms;
}

/* Figures that waver must not move an instance to and fro. */
void gain_note_move(struct cluster *c, struct work *w)
{
    w->moved_ms = c->now_ms;
    if (w->gain_wait_ms < GAIN_WAIT_MS_MAX)
        w->gain_wait_ms = 2 * gain_wait_ms(c, w);
}

static void consider_gain(struct cluster *c, struct desired_model *m, struct work *w,
                          struct placed_instance *present)
{
    struct place p = {0};
    struct placement fresh, now;
    struct error err = {0};
    char why[160];
    if (repair_solve(c, m, present, w, &p, &fresh, &err) == 0 && gain_describe(present, &p, &now) &&
        !repair_is_same(present, &p, &fresh)) {
        placement_price(&p.request, &now);
        bool is_known = fresh.decode_tok_s > 0 && now.decode_tok_s > 0;
        bool is_gain =
            is_known && m->rule == PLACEMENT_SPEED && m->split[0] == '\0'
                ? fresh.decode_tok_s >= now.decode_tok_s * (1 + CLUSTER_REBALANCE_PERCENT / 100.0F)
                : count_nodes(&fresh) > count_nodes(&now);
        if (is_gain) {
            snprintf(why, sizeof(why), "tok_s=%.1f better_tok_s=%.1f nodes=%u better_nodes=%u",
                     (double)now.decode_tok_s, (double)fresh.decode_tok_s, count_nodes(&now),
                     count_nodes(&fresh));
            repair_install(c, m, w, present, &p, &fresh, false, why);
            gain_note_move(c, w);
        }
    }
    w->gain_ms = c->now_ms;
    place_done(&p);
}

void gain_rebalance(struct cluster *c)
{
    uint64_t again_ms = 0;
    for (uint32_t i = 0; i < c->state->n_instances; i++) {
        struct placed_instance *p = &c->state->instance[i];
        int at = cluster_state_find_model(c->state, p->model_id);
        struct work *w = at >= 0 ? repair_find_work(c, p->model_id) : NULL;
        if (w == NULL)
            continue;
        ways_improve(c, &c->state->model[at], w, p);
        uint64_t due_ms = w->gain_ms != 0 ? w->gain_ms + gain_wait_ms(c, w) : 0;
        if (w->serving_ms == 0)
            due_ms = c->now_ms + CLUSTER_SETTLE_MS; /* first let it come up */
        if (due_ms <= c->now_ms)
            consider_gain(c, &c->state->model[at], w, p);
        else if (again_ms == 0 || due_ms < again_ms)
            again_ms = due_ms;
    }
    c->rebalance_ms = again_ms;
}

void gain_reconsider(struct cluster *c)
{
    if (c->is_coordinator && c->rebalance_ms == 0)
        c->rebalance_ms = c->now_ms + CLUSTER_SETTLE_MS;
}

void gain_on_way(struct cluster *c)
{
    uint64_t at_ms = c->now_ms + CLUSTER_SETTLE_MS;
    if (c->is_coordinator && (c->rebalance_ms == 0 || c->rebalance_ms > at_ms))
        c->rebalance_ms = at_ms;
}

void gain_on_join(struct cluster *c)
{
    if (!c->is_coordinator)
        return;
    c->rebalance_ms = c->now_ms + CLUSTER_SETTLE_MS; /* the last that comes counts */
    for (uint32_t i = 0; i < sizeof(c->work) / sizeof(c->work[0]); i++) {
        c->work[i].gain_wait_ms = 0;
        c->work[i].gain_ms = c->work[i].moved_ms;
    }
}
