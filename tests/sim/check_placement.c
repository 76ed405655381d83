/* Every layer of every instance is placed exactly once and within memory; an epoch of an instance
 * has one leader for ever; in a whole world, all that can run serves. */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Each version of each coordinator's state. */
void check_placement_step(struct sim_node *n)
{
    struct world *w = n->w;
    struct checks *c = w->checks;
    const struct cluster_state *s = cluster_get_state(n->cluster);
    struct error err = {0};
    if (claim_compare(&s->claim, &c->placement_claim) == 0)
        return;
    c->placement_claim = s->claim;
    for (uint32_t i = 0; i < s->n_instances; i++) {
        const struct placed_instance *p = &s->instance[i];
        int k = cluster_state_find_model(s, p->model_id);
        if (k < 0 || split_check(&p->split, s->model[k].shape.n_layer, &err) != 0) {
            world_fail(w, "placement", "%s: instance of %s: %s", n->name, p->model_id,
                       k < 0 ? "no such model" : err.message);
            return;
        }
        for (uint32_t j = 0; j < i; j++)
            if (strcmp(s->instance[j].model_id, p->model_id) == 0)
                world_fail(w, "placement", "%s: two instances of %s", n->name, p->model_id);
        for (uint32_t r = 0; r < p->split.n_ranks; r++) {
            const struct sim_node *host = node_find(w, &p->node_of_rank[r]);
            if (host == NULL || p->bytes_of_rank[r] > host->memory_bytes)
                world_fail(w, "placement", "%s: rank %u of %s needs %llu MB on %s", n->name, r,
                           p->model_id, (unsigned long long)(p->bytes_of_rank[r] >> 20),
                           host != NULL ? host->name : "no node");
        }
    }
}

static struct epoch_seen *find_epoch(struct checks *c, const struct node_id *instance,
                                     uint64_t epoch, uint32_t node)
{
    for (uint32_t i = 0; i < c->n_epochs; i++)
        if (c->epoch[i].epoch == epoch && (c->epoch[i].node == node || node == UINT32_MAX) &&
            node_id_equal(&c->epoch[i].instance, instance))
            return &c->epoch[i];
    return NULL;
}

void check_placement_start(struct sim_node *n, const struct placed_instance *p)
{
    struct world *w = n->w;
    struct checks *c = w->checks;
    const struct epoch_seen *seen = find_epoch(c, &p->id, p->epoch, UINT32_MAX);
    if (!node_id_equal(&p->node_of_rank[0], &n->id))
        world_fail(w, "placement", "%s is to lead an instance whose rank 0 is elsewhere", n->name);
    for (const struct led *l = n->led; l != NULL; l = l->next)
        if (node_id_equal(&l->placed.id, &p->id) && !l->is_stopping &&
            l->report.status != INSTANCE_FAILED)
            world_fail(w, "placement", "%s is to start %s %llx while %llx runs", n->name,
                       p->model_id, (unsigned long long)p->epoch,
                       (unsigned long long)l->placed.epoch);
    /* Of one coordinator; when groups meet, the other's may have counted further. */
    for (uint32_t i = 0; i < c->n_epochs; i++)
        if (c->epoch[i].node == n->index && c->epoch[i].boot == n->boot &&
            node_id_equal(&c->epoch[i].instance, &p->id) && c->epoch[i].epoch >= p->epoch &&
            (uint16_t)c->epoch[i].epoch == (uint16_t)p->epoch)
            world_fail(w, "placement", "%s is to start %s %llx after %llx", n->name, p->model_id,
                       (unsigned long long)p->epoch, (unsigned long long)c->epoch[i].epoch);
    if (seen != NULL)
        world_fail(w, "placement", "%s is to start %s %llx, which %s has started", n->name,
                   p->model_id, (unsigned long long)p->epoch, w->node[seen->node].name);
    if (c->n_epochs == c->n_epochs_max) {
        c->n_epochs_max = c->n_epochs_max > 0 ? 2 * c->n_epochs_max : 32;
        c->epoch = realloc(c->epoch, c->n_epochs_max * sizeof(*c->epoch));
        assert(c->epoch != NULL);
    }
    c->epoch[c->n_epochs++] = (struct epoch_seen){
        .instance = p->id, .epoch = p->epoch, .node = n->index, .boot = n->boot};
    w->report->n_epochs++;
}

void check_placement_serving(struct sim_node *n, const struct led *l)
{
    struct epoch_seen *seen = find_epoch(n->w->checks, &l->placed.id, l->placed.epoch, n->index);
    world_trace(n->w, n, true, "%s serves on %u ranks", l->placed.model_id, l->report.n_ranks);
    if (seen == NULL)
        world_fail(n->w, "placement", "%s serves %s %llx, which it was not told to start", n->name,
                   l->placed.model_id, (unsigned long long)l->placed.epoch);
    else
        seen->was_serving = true;
}

/* Whether a placement over the nodes that n can reach exists, by the solver's own word. */
bool check_is_feasible(struct world *w, const struct sim_node *n, uint32_t model)
{
    struct placement_node nodes[SIM_NODES_MAX];
    struct placement_request r = {.shape = &w->model[model].shape,
                                  .model_name = w->model[model].id,
                                  .n_ctx = 4096,
                                  .n_slots = w->n_slots,
                                  .nodes = nodes};
    static struct placement placement;
    uint64_t held[SIM_NODES_MAX] = {0};
    for (uint32_t i = 0; i < w->n_nodes; i++) /* its present ranks count as free */
        for (const struct hosted *h = w->node[i].hosted; h != NULL; h = h->next)
            held[i] += h->model == model && h->state != HOSTED_WAITING ? h->bytes : 0;
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        const struct sim_node *x = &w->node[i];
        bool reaches = x == n || net_passes(w, n->index, i);
        if (!x->is_alive || x->is_paused || x->is_stopping || !reaches ||
            x->thermal == THERMAL_CRITICAL || cluster_is_drained(n->cluster, &x->id))
            continue;
        nodes[r.n_nodes] =
            (struct placement_node){.figures = {.memory_bytes_total = x->memory_bytes,
                                                .memory_bytes_free = node_memory_free(x) + held[i],
                                                .n_cores = 8,
                                                .gflops = (float)(100 * x->speed),
                                                .memory_gb_s = (float)(20 * x->speed)}};
        strcpy(nodes[r.n_nodes++].name, x->name);
    }
    return r.n_nodes > 0 && placement_solve(&r, &placement, NULL) == 0;
}

/* Whether a request at n would really be served now: what the node believes is true. */
bool check_is_served(struct sim_node *n, uint32_t model)
{
    struct world *w = n->w;
    struct router_place place;
    if (!node_find_place(n, w->model[model].id, &place))
        return false;
    struct sim_node *leader = node_find(w, &place.leader);
    if (!leader->is_alive || leader->is_paused ||
        (leader != n && !net_passes(w, n->index, leader->index)))
        return false;
    const struct led *l = executor_find(leader, &place.instance, place.epoch);
    return l != NULL && l->report.status == INSTANCE_SERVING && !l->is_stopping &&
           executor_is_whole(w, l);
}

static bool is_wanted(const struct sim_node *n, uint32_t model)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    int k = cluster_state_find_model(s, n->w->model[model].id);
    return k >= 0 && s->model[k].is_wanted;
}

void check_placement_end(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->node[i];
        for (uint32_t m = 0; m < w->n_models && n->is_alive; m++)
            if (is_wanted(n, m) && !check_is_served(n, m) && check_is_feasible(w, n, m))
                world_fail(w, "placement",
                           "%s: %s does not serve in a whole world with room for it", n->name,
                           w->model[m].id);
        for (const struct led *l = n->led; l != NULL; l = l->next) {
            const struct cluster_state *s = cluster_get_state(n->cluster);
            int k = cluster_state_find_instance(s, &l->placed.id);
            /* One that stops may wait for a host that is silent. */
            if (!l->is_stopping && (k < 0 || s->instance[k].epoch != l->placed.epoch ||
                                    !node_id_equal(&s->instance[k].node_of_rank[0], &n->id)))
                world_fail(w, "placement", "%s still leads %s %llx, which the state does not have",
                           n->name, l->placed.model_id, (unsigned long long)l->placed.epoch);
        }
        for (const struct hosted *h = n->hosted; h != NULL; h = h->next)
            if (executor_find(&w->node[h->leader], &h->instance, h->epoch) == NULL)
                world_fail(w, "placement", "%s still holds a rank of %s whose leader is gone",
                           n->name, w->model[h->model].id);
    }
}
