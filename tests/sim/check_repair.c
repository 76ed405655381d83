/* How soon a loss is noticed and repaired, and how much of the time is served at all. Bounds are
 * asked for where nothing else goes wrong meanwhile; figures are kept of everything. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>

enum {
    PROBE_US = 20000,
    SAMPLE_US = 100000,
    DETECT_KILL_US = 1000000,
    DETECT_SILENT_US = 10000000,
    REPAIR_US = 3000000, /* beside the time that runners take to start and load */
    ROOM_US = 6000000,   /* one model may have to wait until another's memory is seen to be free */
    GIVE_UP_US = 60000000,
};

struct checks *checks_new(struct world *w)
{
    struct checks *c = calloc(1, sizeof(*c));
    assert(c != NULL);
    world_push(w, world_event(w, EV_PROBE, PROBE_US));
    return c;
}

void checks_free(struct checks *c)
{
    while (c->losses != NULL) {
        struct loss *l = c->losses;
        c->losses = l->next;
        free(l);
    }
    free(c->term);
    free(c->epoch);
    free(c);
}

static bool is_all_served(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->node[i];
        if (!n->is_alive || n->is_paused || n->is_stopping)
            continue;
        for (uint32_t m = 0; m < w->n_models; m++)
            if (w->model[m].is_loaded && !check_is_served(n, m))
                return false;
    }
    return true;
}

/* To be called before the victim dies. */
void check_repair_loss(struct sim_node *victim, bool is_silent)
{
    struct world *w = victim->w;
    struct loss *l = calloc(1, sizeof(*l));
    assert(l != NULL);
    *l = (struct loss){.next = w->checks->losses,
                       .victim = victim->index,
                       .boot = victim->boot,
                       .is_silent = is_silent,
                       .had_ranks = victim->hosted != NULL,
                       .was_calm = world_is_calm(w, 3000000) && is_all_served(w) && w->loss == 0 &&
                                   w->delay_us + w->jitter_us < 50000,
                       .at_us = w->now_us,
                       .n_changes = w->n_changes + 1}; /* this one */
    w->checks->losses = l;
}

static bool is_noticed(struct world *w, const struct loss *l)
{
    const struct sim_node *victim = &w->node[l->victim];
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        const struct sim_node *n = &w->node[i];
        if (!n->is_alive || i == l->victim)
            continue;
        const struct member *m = cluster_find_member(n->cluster, &victim->id);
        if (m != NULL && m->status != MEMBER_GONE)
            return false;
    }
    return true;
}

static bool can_be_repaired(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++)
        for (uint32_t m = 0; m < w->n_models; m++)
            if (w->node[i].is_alive && w->model[m].is_loaded &&
                !check_is_feasible(w, &w->node[i], m))
                return false;
    return true;
}

static uint64_t load_us(const struct world *w)
{
    double slowest = 1;
    for (uint32_t i = 0; i < w->n_nodes; i++)
        if (w->node[i].is_alive && w->node[i].speed < slowest)
            slowest = w->node[i].speed;
    return (uint64_t)((w->start_ms + w->end_ms + w->load_ms / slowest) * 1000) +
           12u * (w->delay_us + w->jitter_us);
}

/* Returns whether there is nothing more to see. */
static bool look_at(struct world *w, struct loss *l)
{
    uint64_t passed_us = w->now_us - l->at_us;
    uint64_t detect_us = l->is_silent ? DETECT_SILENT_US : DETECT_KILL_US;
    bool is_clean = l->was_calm && w->n_changes == l->n_changes;
    if (!l->is_noticed && is_noticed(w, l)) {
        l->is_noticed = true;
        if (is_clean)
            samples_add(l->is_silent ? &w->report->detect_silent_ms : &w->report->detect_kill_ms,
                        (double)passed_us / 1e3);
    }
    if (!l->is_repaired && l->is_noticed && is_all_served(w)) {
        l->is_repaired = true;
        if (is_clean && l->had_ranks)
            samples_add(&w->report->repair_ms, (double)passed_us / 1e3);
    }
    if (!is_clean)
        return true;
    if (!l->is_noticed && passed_us > detect_us)
        world_fail(w, "detection", "%s was lost at %.3f ms and is not noticed after %llu ms",
                   w->node[l->victim].name, (double)l->at_us / 1e3,
                   (unsigned long long)(passed_us / 1000));
    uint64_t repair_us = REPAIR_US + load_us(w) + (w->n_models > 1 ? ROOM_US : 0);
    if (!l->is_repaired && passed_us > (l->is_silent ? detect_us : 0) + repair_us) {
        if (can_be_repaired(w))
            world_fail(w, "repair", "%s was lost at %.3f ms and is not made good after %llu ms",
                       w->node[l->victim].name, (double)l->at_us / 1e3,
                       (unsigned long long)(passed_us / 1000));
        return true;
    }
    return l->is_repaired || passed_us > GIVE_UP_US;
}

static void sample(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->node[i];
        if (!n->is_alive || n->is_paused || n->is_stopping)
            continue;
        for (uint32_t m = 0; m < w->n_models; m++) {
            if (!w->model[m].is_loaded)
                continue;
            bool is_served = check_is_served(n, m);
            w->report->n_asked++;
            w->report->n_served += is_served;
            /* The solver's word costs much, and a request that is served needs none. */
            bool is_feasible = is_served || check_is_feasible(w, n, m);
            w->report->n_asked_feasible += is_feasible;
            w->report->n_served_feasible += is_served;
        }
    }
}

void check_repair_probe(struct world *w)
{
    struct checks *c = w->checks;
    for (struct loss **p = &c->losses; *p != NULL;) {
        struct loss *l = *p;
        if (look_at(w, l)) {
            *p = l->next;
            free(l);
        } else {
            p = &l->next;
        }
    }
    if (w->now_us - c->sample_us >= SAMPLE_US && (w->options.is_year || w->options.is_campaign)) {
        c->sample_us = w->now_us;
        sample(w);
    }
    world_push(w, world_event(w, EV_PROBE, c->losses != NULL ? PROBE_US : SAMPLE_US));
}
