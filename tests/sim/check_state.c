/* The state of a process never goes back; orders are answered exactly once and in time; what a
 * person was told is done stays done, as long as one copy of it survives. */
#include "sim.h"

#include <stdlib.h>
#include <string.h>

enum { ANSWER_US_MAX = 13000000 };

void check_state_step(struct sim_node *n)
{
    const struct claim *now = &cluster_get_state(n->cluster)->claim;
    int order = claim_compare(now, &n->claim);
    if (order < 0)
        world_fail(n->w, "state", "%s: goes back from %llu.%llu to %llu.%llu", n->name,
                   (unsigned long long)n->claim.term, (unsigned long long)n->claim.version,
                   (unsigned long long)now->term, (unsigned long long)now->version);
    else if (order > 0)
        n->claim = *now;
}

static void note_effect(struct world *w, const struct sim_order *o)
{
    if (o->order->type != ORDER_LOAD && o->order->type != ORDER_UNLOAD)
        return;
    struct sim_model *m = &w->model[o->model];
    m->n_orders++;
    m->is_loaded = o->order->type == ORDER_LOAD;
    m->is_unloaded = !m->is_loaded;
    m->is_excused = false;
}

void check_state_answer(struct world *w, struct sim_order *o, const struct error *error)
{
    if (++o->n_answers > 1)
        world_fail(w, "orders", "%s: order %u is answered twice", w->node[o->node].name, o->number);
    o->code = error->code;
    if (error->code == 0)
        note_effect(w, o);
}

static bool state_has(const struct cluster_state *s, const struct sim_model *m)
{
    int k = cluster_state_find_model(s, m->id);
    return k >= 0 && s->model[k].is_wanted == m->is_loaded;
}

/* After a process has died: whether any copy is left, in a process or on a disk. */
void check_state_death(struct world *w)
{
    static struct cluster_state saved;
    for (uint32_t k = 0; k < w->n_models; k++) {
        struct sim_model *m = &w->model[k];
        bool is_there = false;
        if (m->n_orders == 0 || m->is_excused)
            continue;
        for (uint32_t i = 0; i < w->n_nodes && !is_there; i++) {
            const struct sim_node *n = &w->node[i];
            struct cursor c;
            if (n->is_alive && state_has(cluster_get_state(n->cluster), m))
                is_there = true;
            if (n->is_alive || n->disk.len == 0)
                continue;
            cursor_init(&c, n->disk.data, n->disk.len);
            is_there |= cluster_state_decode(&c, &saved, NULL) == 0 && state_has(&saved, m);
        }
        m->is_excused = !is_there;
    }
}

/* From now on nobody comes back: what only a disk of the dead has is out of reach. */
void check_state_heal(struct world *w)
{
    for (uint32_t k = 0; k < w->n_models; k++) {
        bool is_there = false;
        for (uint32_t i = 0; i < w->n_nodes; i++)
            is_there |= w->node[i].is_alive &&
                        state_has(cluster_get_state(w->node[i].cluster), &w->model[k]);
        w->model[k].is_excused |= !is_there;
    }
}

static void check_model(struct world *w, const struct sim_node *n, const struct sim_model *m)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    int k = cluster_state_find_model(s, m->id);
    /* Of several orders on two sides of a partition, the stamps say which was the last. */
    if (m->n_orders == 0 || m->is_excused || (k >= 0 && m->n_orders > 1))
        return;
    if (k < 0 || s->model[k].is_wanted != m->is_loaded)
        world_fail(w, "state", "%s: the order about %s that was answered well is lost", n->name,
                   m->id);
}

void check_state_end(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++)
        for (uint32_t k = 0; k < w->n_models && w->node[i].is_alive; k++)
            check_model(w, &w->node[i], &w->model[k]);
    for (const struct sim_order *o = w->orders; o != NULL; o = o->next) {
        const struct sim_node *n = &w->node[o->node];
        if (o->n_answers == 0 && n->is_alive && n->boot == o->boot &&
            w->now_us - o->at_us > ANSWER_US_MAX)
            world_fail(w, "orders", "%s: order %u of %.3f ms has no answer", n->name, o->number,
                       (double)o->at_us / 1e3);
    }
}
