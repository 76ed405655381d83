/* Runners that have no rank any more and still have their weights (node/ranks.h). */
#include "base/log.h"
#include "device/device.h"
#include "node/ranks.h"

#include <stdlib.h>
#include <string.h>

/* Ranks of an instance that the cluster's state has here and that have no runner yet. */
static uint32_t n_ranks_to_come(const struct node *n, const struct placed_instance *p)
{
    uint32_t count = 0, running = 0;
    for (uint32_t r = 0; r < p->split.n_ranks; r++)
        count += node_id_equal(&p->node_of_rank[r], &n->id);
    for (const struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        running += !h->is_parked && h->process != NULL && h->owner.epoch >= p->epoch &&
                   node_id_equal(&h->owner.instance, &p->id);
    return count > running ? count - running : 0;
}

bool parked_is_worth(const struct hosted_rank *h)
{
    const struct node *n = h->node;
    const struct cluster_state *s = n->cluster != NULL ? cluster_get_state(n->cluster) : NULL;
    if (s == NULL || n->phase != NODE_RUNNING || h->process == NULL || h->is_stopping)
        return false;
    int order = cluster_state_find_order(s, &n->id);
    int at = cluster_state_find_instance(s, &h->owner.instance);
    if (at < 0 || (order >= 0 && (s->order[order].is_drained || s->order[order].is_revoked)))
        return false;
    const struct placed_instance *p = &s->instance[at];
    int model = cluster_state_find_model(s, p->model_id);
    return model >= 0 && s->model[model].is_wanted &&
           (p->epoch <= h->owner.epoch || n_ranks_to_come(n, p) > 0);
}

void ranks_tick(struct node *n)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (h->is_parked && !h->is_stopping &&
            (uv_now(n->loop) - h->parked_ms >= PARK_MS || !parked_is_worth(h))) {
            log_info("node", "pid=%u is not needed any more -> stopped",
                     runner_process_pid(h->process));
            rank_stop(h);
        }
}

uint64_t ranks_parked_bytes(const struct node *n)
{
    uint64_t bytes = 0;
    for (const struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (h->is_parked)
            bytes += h->parked_bytes;
    return bytes;
}

/* ---- memory ---- */

static bool is_usable(const struct hosted_rank *parked, const struct hosted_rank *h)
{
    return parked->is_parked && !parked->is_stopping &&
           node_id_equal(&parked->owner.instance, &h->owner.instance) &&
           memcmp(parked->load.model_hash, h->load.model_hash, sizeof(h->load.model_hash)) == 0;
}

/* What a rank takes or will take, as the cluster's state says; UINT64_MAX when it is not known. */
static uint64_t bytes_of(const struct hosted_rank *h)
{
    const struct cluster_state *s = cluster_get_state(h->node->cluster);
    int at = cluster_state_find_instance(s, &h->owner.instance);
    return at >= 0 && s->instance[at].epoch == h->owner.epoch &&
                   h->rank < s->instance[at].split.n_ranks
               ? s->instance[at].bytes_of_rank[h->rank]
               : UINT64_MAX;
}

/* Whether so much more can be taken, as the system and people's limit say. Ranks that are placed
 * here count against the limit whether or not they have loaded. */
static bool is_free(const struct node *n, uint64_t bytes)
{
    uint64_t max = n->config.memory_bytes_max, used = ranks_bytes(n) + ranks_parked_bytes(n);
    return bytes <= node_memory_bytes_free(n) && (max == 0 || used <= max);
}

bool parked_has_room(const struct hosted_rank *h)
{
    uint64_t bytes = 0;
    for (const struct hosted_rank *o = h->node->ranks; o != NULL; o = o->next)
        if (o != h && !o->is_ready && !o->is_parked && o->process != NULL &&
            !node_id_equal(&o->owner.instance, &h->owner.instance)) {
            uint64_t more = bytes_of(o);
            bytes = more < UINT64_MAX - bytes ? bytes + more : UINT64_MAX;
        }
    return is_free(h->node, bytes);
}

bool parked_is_in_the_way(const struct hosted_rank *parked, const struct hosted_rank *h)
{
    uint64_t bytes = bytes_of(h), own = 0;
    if (!parked->is_parked || is_usable(parked, h))
        return false;
    for (const struct hosted_rank *o = h->node->ranks; o != NULL; o = o->next)
        own += is_usable(o, h) ? o->parked_bytes : 0;
    return bytes == UINT64_MAX || !is_free(h->node, bytes > own ? bytes - own : 0);
}

/* ---- another rank goes on ---- */

static const struct split_stage *stage_of(const struct message_load *l)
{
    uint32_t i = 0;
    while (i + 1 < l->split.n_stages &&
           l->rank >= l->split.stage[i].rank_first + l->split.stage[i].n_ranks)
        i++;
    return &l->split.stage[i];
}

/* How much of what a has loaded b can use: layers in common, of which other slices of tensors are
 * worth next to nothing. */
static uint32_t match(const struct message_load *a, const struct message_load *b)
{
    const struct split_stage *x = stage_of(a), *y = stage_of(b);
    uint32_t begin = x->layers.begin > y->layers.begin ? x->layers.begin : y->layers.begin;
    uint32_t end = x->layers.end < y->layers.end ? x->layers.end : y->layers.end;
    bool is_same_slice =
        x->n_ranks == y->n_ranks && a->rank - x->rank_first == b->rank - y->rank_first;
    return begin < end ? (end - begin) * (is_same_slice ? 1000 : 1) : 0;
}

bool parked_take(struct hosted_rank *h)
{
    struct hosted_rank *best = NULL;
    for (struct hosted_rank *o = h->node->ranks; o != NULL; o = o->next)
        if (is_usable(o, h) &&
            (best == NULL || match(&o->load, &h->load) > match(&best->load, &h->load)))
            best = o;
    if (best == NULL)
        return false;
    h->process = best->process;
    rank_unlink(best);
    free(best);
    return true;
}
