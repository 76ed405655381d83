/* One coordinator per term. Once the world is whole again: one at all, and all follow it. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>

static bool is_good(const struct world *w)
{
    return w->loss == 0 && w->delay_us + w->jitter_us < 50000 && w->reordering == 0;
}

void check_coordinator_step(struct sim_node *n)
{
    struct world *w = n->w;
    struct checks *c = w->checks;
    bool is_now = cluster_is_coordinator(n->cluster);
    uint64_t term = cluster_get_state(n->cluster)->claim.term;
    if (is_now && !n->was_coordinator)
        world_trace(w, n, true, "coordinates");
    else if (!is_now && n->was_coordinator)
        world_trace(w, n, true, "coordinates no more");
    bool is_news = is_now && (!n->was_coordinator || n->claim.term != term);
    n->was_coordinator = is_now;
    if (!is_news)
        return;
    for (uint32_t i = 0; i < c->n_terms; i++)
        if (c->term[i].term == term) {
            /* Groups that cannot hear each other, or not in time, may well count alike; a term is
             * then named by both its number and its coordinator (state.h), and the claims' order
             * decides when they meet. With good links it is an error. */
            if (node_id_equal(&c->term[i].node, &n->id))
                return;
            const struct sim_node *other = node_find(w, &c->term[i].node);
            if (world_is_calm(w, 2000000) && is_good(w) && other->is_alive &&
                net_passes(w, other->index, n->index))
                world_fail(w, "coordinator",
                           "%s and %s both coordinate term %llu, with a good link", other->name,
                           n->name, (unsigned long long)term);
        }
    if (c->n_terms == c->n_terms_max) {
        c->n_terms_max = c->n_terms_max > 0 ? 2 * c->n_terms_max : 16;
        c->term = realloc(c->term, c->n_terms_max * sizeof(*c->term));
        assert(c->term != NULL);
    }
    c->term[c->n_terms++] = (struct term_seen){.term = term, .node = n->id};
    w->report->n_terms++;
}

void check_coordinator_end(struct world *w)
{
    const struct sim_node *first = NULL, *leader = NULL;
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        const struct sim_node *n = &w->node[i];
        if (!n->is_alive)
            continue;
        if (first == NULL)
            first = n;
        if (cluster_is_coordinator(n->cluster)) {
            if (leader != NULL)
                world_fail(w, "coordinator", "%s and %s both coordinate a whole world",
                           leader->name, n->name);
            leader = n;
        }
        if (!cluster_has_coordinator(n->cluster))
            world_fail(w, "coordinator", "%s knows no coordinator in a whole world", n->name);
        const struct claim *a = &cluster_get_state(first->cluster)->claim;
        const struct claim *b = &cluster_get_state(n->cluster)->claim;
        if (claim_compare(a, b) != 0)
            world_fail(w, "coordinator",
                       "%s has state %llu.%llu, %s has %llu.%llu, in a whole world", first->name,
                       (unsigned long long)a->term, (unsigned long long)a->version, n->name,
                       (unsigned long long)b->term, (unsigned long long)b->version);
    }
    if (first != NULL && leader == NULL)
        world_fail(w, "coordinator", "nobody coordinates a whole world");
}
