/* The rules that look at memory alone: a pipeline over all nodes, and splits that were asked for.
 */
#include "cluster/placement_internal.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static double gib(double bytes)
{
    return bytes / (1024.0 * 1024.0 * 1024.0);
}

static uint64_t free_bytes(const struct pricing *p, uint32_t node)
{
    return p->r->nodes[node].figures.memory_bytes_free;
}

/* Of the groups of nodes that all have links to each other, one that has much memory: a group is
 * begun at each node, and takes the others in their order. */
uint32_t usable_nodes(const struct placement_request *r, uint32_t *ret_nodes)
{
    uint32_t n_best = 0;
    uint64_t best_bytes = 0;
    for (uint32_t first = 0; first < r->n_nodes; first++) {
        uint32_t n = 0, group[PLACEMENT_NODES_MAX] = {0};
        uint64_t bytes = 0;
        bool is_whole = true;
        if (r->nodes[first].is_excluded)
            continue;
        for (uint32_t i = 0; i < r->n_nodes; i++) {
            bool is_linked = !r->nodes[i].is_excluded && nodes_are_linked(r, first, i);
            for (uint32_t k = 0; k < n && is_linked; k++)
                is_linked = nodes_are_linked(r, group[k], i);
            is_whole = is_whole && (is_linked || r->nodes[i].is_excluded);
            if (!is_linked)
                continue;
            group[n++] = i;
            bytes += r->nodes[i].figures.memory_bytes_free;
        }
        if (n_best == 0 || bytes > best_bytes) {
            n_best = n;
            best_bytes = bytes;
            memcpy(ret_nodes, group, n * sizeof(*group));
        }
        if (is_whole)
            break;
    }
    return n_best;
}

/* What all ranks on a node need. */
static double bytes_on_node(const struct placement *x, uint32_t node)
{
    double bytes = 0;
    for (uint32_t i = 0; i < x->split.n_ranks; i++)
        bytes += x->node_of_rank[i] == node ? (double)x->bytes_of_rank[i] : 0;
    return bytes;
}

/* Shares in MiB: nodes differ by gigabytes, and a share must not be zero. */
static uint32_t memory_weight(uint64_t bytes)
{
    uint64_t mib = bytes >> 20;
    return mib == 0 ? 1 : mib > UINT32_MAX / LIMIT_RANKS ? UINT32_MAX / LIMIT_RANKS : (uint32_t)mib;
}

/* Makes the split over nodes [n] and the bytes of each rank; does not judge. */
static int layout(const struct pricing *p, const uint32_t *nodes, uint32_t n, uint32_t n_ranks,
                  const char *text, struct placement *ret, struct error *err)
{
    uint32_t weight[LIMIT_RANKS] = {0}, ranks_of[LIMIT_RANKS] = {0};
    *ret = (struct placement){0};
    for (uint32_t i = 0; i < n_ranks; i++)
        ranks_of[i % n]++;
    for (uint32_t i = 0; i < n_ranks; i++) {
        ret->node_of_rank[i] = nodes[i % n];
        weight[i] = memory_weight(free_bytes(p, nodes[i % n]) / ranks_of[i % n]);
    }
    int rc = split_parse(text, n_ranks, p->shape->n_layer, weight, &ret->split, err);
    if (rc == 0)
        placement_fill_bytes(p, ret);
    return rc;
}

/* Finds the node that is most over its limit. Returns r->n_nodes when all is well. */
static uint32_t find_overfull(const struct pricing *p, const struct placement *x, double *ret_need)
{
    uint32_t worst = p->r->n_nodes;
    double worst_share = 0;
    for (uint32_t i = 0; i < x->split.n_ranks; i++) {
        uint32_t node = x->node_of_rank[i];
        double need = bytes_on_node(x, node), usable = p->node[node].limit_bytes;
        double share = need / (usable > 0 ? usable : 1);
        if (need > usable && share > worst_share) {
            worst_share = share;
            worst = node;
            *ret_need = need;
        }
    }
    return worst;
}

/* The cluster as a whole: even when each node could take its part, 80 % of all memory is the end.
 */
static int check_total(const struct pricing *p, const uint32_t *nodes, uint32_t n,
                       const struct placement *x, struct error *err)
{
    double need = 0;
    uint64_t all = 0;
    for (uint32_t i = 0; i < x->split.n_ranks; i++)
        need += (double)x->bytes_of_rank[i];
    for (uint32_t i = 0; i < n; i++)
        all += free_bytes(p, nodes[i]);
    if (need <= (double)all / 100 * PLACEMENT_MEMORY_PERCENT)
        return 0;
    return error_set(
        err, E_UNAVAILABLE,
        "model %s needs %.2f GiB but %" PRIu32 " node(s) have %.2f GiB free, of which %d %% may "
        "be used: free memory, add nodes, or lower --ctx or --slots",
        p->r->model_name, gib(need), n, gib((double)all), (int)PLACEMENT_MEMORY_PERCENT);
}

static int refuse(const struct pricing *p, uint32_t node, double need, struct error *err)
{
    const struct placement_request *r = p->r;
    return error_set(err, E_UNAVAILABLE,
                     "model %s does not fit: node %s would need %.2f GiB but has %.2f GiB free, of "
                     "which %" PRIu32 " %% may be used: free memory, add nodes, or lower --ctx or "
                     "--slots",
                     r->model_name, r->nodes[node].name, gib(need),
                     gib((double)free_bytes(p, node)),
                     r->memory_percent_max != 0 ? r->memory_percent_max : PLACEMENT_MEMORY_PERCENT);
}

static int refuse_without_nodes(const struct pricing *p, struct error *err)
{
    return error_set(err, E_UNAVAILABLE,
                     "model %s has no place: none of %" PRIu32
                     " node(s) may take part (drained, stopping or too hot)",
                     p->r->model_name, p->r->n_nodes);
}

/* Ranks that a split's text asks for: the product of "SxT"; 0 when the text leaves it open. */
static uint32_t ranks_in_text(const char *text)
{
    unsigned stages = 0, ranks = 0;
    char end = 0;
    if (sscanf(text, "%3ux%3u%c", &stages, &ranks, &end) == 2)
        return stages * ranks;
    return 0;
}

int solve_explicit(const struct pricing *p, struct placement *ret, struct error *err)
{
    const struct placement_request *r = p->r;
    uint32_t nodes[PLACEMENT_NODES_MAX] = {0}, n = usable_nodes(r, nodes);
    if (n == 0)
        return refuse_without_nodes(p, err);
    n = n < LIMIT_RANKS ? n : LIMIT_RANKS;
    uint32_t n_ranks = ranks_in_text(r->split);
    if (n_ranks == 0)
        n_ranks = n;
    if (n_ranks > LIMIT_RANKS)
        return error_set(err, E_INVALID, "split %s has %" PRIu32 " ranks; at most %d are possible",
                         r->split, n_ranks, LIMIT_RANKS);
    int rc = layout(p, nodes, n < n_ranks ? n : n_ranks, n_ranks, r->split, ret, err);
    if (rc != 0)
        return rc;
    double need = 0;
    uint32_t overfull = find_overfull(p, ret, &need);
    return overfull < r->n_nodes ? refuse(p, overfull, need, err)
                                 : check_total(p, nodes, n, ret, err);
}

/* All nodes; one that cannot take its part is left out and the rest tried again, so that a phone
 * with little memory does not keep the model from everyone. */
int solve_by_memory(const struct pricing *p, struct placement *ret, struct error *err)
{
    const struct placement_request *r = p->r;
    uint32_t all[PLACEMENT_NODES_MAX] = {0}, nodes[PLACEMENT_NODES_MAX] = {0};
    uint32_t n_all = usable_nodes(r, all), n = n_all;
    uint32_t first_overfull = r->n_nodes;
    double first_need = 0;
    if (n == 0)
        return refuse_without_nodes(p, err);
    memcpy(nodes, all, sizeof(nodes));
    n = n < LIMIT_RANKS ? n : LIMIT_RANKS;
    n = n < p->shape->n_layer ? n : p->shape->n_layer;
    for (; n > 0; n--) {
        double need = 0;
        int rc = layout(p, nodes, n, n, "pipeline", ret, err);
        if (rc != 0)
            return rc;
        uint32_t overfull = find_overfull(p, ret, &need), at = 0;
        if (overfull == r->n_nodes)
            return check_total(p, all, n_all, ret, err);
        if (first_overfull == r->n_nodes) {
            first_overfull = overfull;
            first_need = need;
        }
        while (nodes[at] != overfull)
            at++;
        memmove(nodes + at, nodes + at + 1, (n - at - 1) * sizeof(*nodes));
    }
    return refuse(p, first_overfull, first_need, err);
}

int solve_by_paging(const struct pricing *p, struct placement *ret, struct error *err)
{
    const struct placement_request *r = p->r;
    uint32_t nodes[PLACEMENT_NODES_MAX] = {0}, n = usable_nodes(r, nodes);
    double need = 0, room = 0;
    if (n == 0)
        return refuse_without_nodes(p, err);
    n = n < LIMIT_RANKS ? n : LIMIT_RANKS;
    n = n < p->shape->n_layer ? n : p->shape->n_layer;
    int rc = layout(p, nodes, n, n, "pipeline", ret, err);
    for (uint32_t i = 0; i < n && rc == 0; i++) {
        const struct range *layers = &ret->split.stage[i].layers;
        double resident = rank_bytes_resident(p, layers->end - layers->begin, i + 1 == n);
        need += (double)ret->bytes_of_rank[i];
        room += p->node[nodes[i]].limit_bytes;
        if (resident > p->node[nodes[i]].limit_bytes)
            rc = refuse(p, nodes[i], resident, err);
    }
    return rc == 0 && need > PLACEMENT_PAGED_TIMES * room ? refuse(p, nodes[0], need, err) : rc;
}

uint64_t placement_bytes_paged(const struct pricing *p, const struct placement *x)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < x->split.n_ranks; i++) {
        uint32_t node = x->node_of_rank[i];
        bool is_first = true;
        for (uint32_t k = 0; k < i; k++)
            is_first = is_first && x->node_of_rank[k] != node;
        double over = bytes_on_node(x, node) - (double)free_bytes(p, node);
        bytes += is_first && over > 0 ? (uint64_t)over : 0;
    }
    return bytes;
}
