#include "cluster/placement.h"

#include <stdio.h>
#include <string.h>

enum { MEMORY_PERCENT_DEFAULT = 80, N_CTX_DEFAULT = 4096, N_BATCH = 512 };

static double gib(uint64_t bytes)
{
    return (double)bytes / (1024.0 * 1024.0 * 1024.0);
}

/* The context that the engine will make room for: its own default when none was asked for. */
static uint32_t effective_n_ctx(const struct placement_request *r)
{
    if (r->n_ctx != 0)
        return r->n_ctx;
    uint32_t train = r->model->config.n_ctx_train;
    return train != 0 && train < N_CTX_DEFAULT ? train : N_CTX_DEFAULT;
}

/* Graph buffers of a full prefill step, from above: a few activations of the stream's width, the
 * feed-forward block, one matrix of attention scores, and the logits of every slot. */
static uint64_t graph_bytes(const struct model_config *c, const struct shard *s, uint32_t n_ctx,
                            uint32_t n_slots)
{
    uint64_t n_batch = n_ctx < N_BATCH ? n_ctx : N_BATCH;
    uint64_t kv_heads = 0, ff = 0;
    for (uint32_t i = 0; i < s->layers.end - s->layers.begin; i++) {
        uint64_t n = s->layer[i].kv_heads.end - s->layer[i].kv_heads.begin;
        uint64_t f = s->layer[i].ff.end - s->layer[i].ff.begin;
        kv_heads = n > kv_heads ? n : kv_heads;
        ff = f > ff ? f : ff;
    }
    uint64_t heads = c->n_head_kv != 0 ? kv_heads * (c->n_head / c->n_head_kv) : 0;
    uint64_t floats =
        n_batch * (8ull * c->n_embd + 3 * ff + 4 * heads * c->head_dim) + n_batch * n_ctx * heads;
    floats += (uint64_t)n_slots * (s->vocab.end - s->vocab.begin);
    return 4 * floats;
}

static int rank_bytes(const struct placement_request *r, const struct split *split, uint32_t rank,
                      uint64_t *ret_bytes, struct error *err)
{
    struct shard shard;
    int rc = shard_init(&shard, r->model, split, rank, err);
    if (rc != 0)
        return rc;
    uint32_t n_ctx = effective_n_ctx(r), n_slots = r->n_slots != 0 ? r->n_slots : 1;
    *ret_bytes = shard_weight_bytes(&shard, r->model) +
                 shard_kv_token_bytes(&shard, r->model) * n_ctx * n_slots +
                 graph_bytes(&r->model->config, &shard, n_ctx, n_slots);
    shard_done(&shard);
    return 0;
}

/* Shares in MiB: nodes differ by gigabytes, and a share must not be zero. */
static uint32_t memory_weight(uint64_t bytes)
{
    uint64_t mib = bytes >> 20;
    return mib == 0 ? 1 : mib > UINT32_MAX / LIMIT_RANKS ? UINT32_MAX / LIMIT_RANKS : (uint32_t)mib;
}

/* Makes the split over nodes[node_index[0 .. n)] and the bytes of each rank; does not judge. */
static int layout(const struct placement_request *r, const uint32_t *node_index, uint32_t n,
                  uint32_t n_ranks, const char *text, struct placement *p, struct error *err)
{
    uint32_t weight[LIMIT_RANKS] = {0}, ranks_of[LIMIT_RANKS] = {0};
    *p = (struct placement){0};
    for (uint32_t i = 0; i < n_ranks; i++)
        ranks_of[i % n]++;
    for (uint32_t i = 0; i < n_ranks; i++) {
        uint32_t node = node_index[i % n];
        p->node_of_rank[i] = node;
        weight[i] = memory_weight(r->nodes[node].memory_bytes_free / ranks_of[i % n]);
    }
    int rc = split_parse(text, n_ranks, r->model->config.n_layer, weight, &p->split, err);
    for (uint32_t i = 0; rc == 0 && i < n_ranks; i++)
        rc = rank_bytes(r, &p->split, i, &p->bytes_of_rank[i], err);
    return rc;
}

/* Finds the node that is most over its limit. Returns r->n_nodes when all is well. */
static uint32_t find_overfull(const struct placement_request *r, const struct placement *p,
                              uint64_t *ret_need)
{
    uint32_t percent = r->memory_percent_max != 0 ? r->memory_percent_max : MEMORY_PERCENT_DEFAULT;
    uint32_t worst = r->n_nodes;
    double worst_share = 0;
    for (uint32_t node = 0; node < r->n_nodes; node++) {
        uint64_t need = 0;
        for (uint32_t i = 0; i < p->split.n_ranks; i++)
            if (p->node_of_rank[i] == node)
                need += p->bytes_of_rank[i];
        uint64_t usable = r->nodes[node].memory_bytes_free / 100 * percent;
        if (need <= usable)
            continue;
        double share = (double)need / (usable > 0 ? (double)usable : 1);
        if (share > worst_share) {
            worst_share = share;
            worst = node;
            *ret_need = need;
        }
    }
    return worst;
}

/* The cluster as a whole: even when each node could take its part, 80 % of all memory is the end.
 */
static int check_total(const struct placement_request *r, const struct placement *p,
                       struct error *err)
{
    uint64_t need = 0, free_bytes = 0;
    for (uint32_t i = 0; i < p->split.n_ranks; i++)
        need += p->bytes_of_rank[i];
    for (uint32_t i = 0; i < r->n_nodes; i++)
        free_bytes += r->nodes[i].memory_bytes_free;
    if (need <= free_bytes / 100 * MEMORY_PERCENT_DEFAULT)
        return 0;
    return error_set(
        err, E_UNAVAILABLE,
        "model %s needs %.2f GiB but %u node(s) have %.2f GiB free, of which %d %% may "
        "be used: free memory, add nodes, or lower --ctx or --slots",
        r->model->name, gib(need), r->n_nodes, gib(free_bytes), MEMORY_PERCENT_DEFAULT);
}

static int refuse(const struct placement_request *r, uint32_t node, uint64_t need,
                  struct error *err)
{
    uint32_t percent = r->memory_percent_max != 0 ? r->memory_percent_max : MEMORY_PERCENT_DEFAULT;
    uint64_t free_bytes = r->nodes[node].memory_bytes_free;
    return error_set(err, E_UNAVAILABLE,
                     "model %s does not fit: node %s would need %.2f GiB but has %.2f GiB free, of "
                     "which %u %% may be used: free memory, add nodes, or lower --ctx or --slots",
                     r->model->name, r->nodes[node].name, gib(need), gib(free_bytes), percent);
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

static int check_request(const struct placement_request *r, struct error *err)
{
    if (r->model == NULL || r->n_nodes == 0 || r->nodes == NULL)
        return error_set(err, E_INVALID, "placement needs a model and at least one node");
    if (r->memory_percent_max > 100)
        return error_set(err, E_INVALID, "memory share %u %% is over 100 %%",
                         r->memory_percent_max);
    return 0;
}

static int solve_explicit(const struct placement_request *r, const uint32_t *order, uint32_t n,
                          struct placement *p, struct error *err)
{
    uint32_t n_ranks = ranks_in_text(r->split);
    if (n_ranks == 0)
        n_ranks = n;
    if (n_ranks > LIMIT_RANKS)
        return error_set(err, E_INVALID, "split %s has %u ranks; at most %d are possible", r->split,
                         n_ranks, LIMIT_RANKS);
    int rc = layout(r, order, n < n_ranks ? n : n_ranks, n_ranks, r->split, p, err);
    if (rc != 0)
        return rc;
    uint64_t need = 0;
    uint32_t overfull = find_overfull(r, p, &need);
    return overfull < r->n_nodes ? refuse(r, overfull, need, err) : 0;
}

/* All nodes; one that cannot take its part is left out and the rest tried again, so that a phone
 * with little memory does not keep the model from everyone. */
static int solve_by_memory(const struct placement_request *r, uint32_t *order, uint32_t n,
                           struct placement *p, struct error *err)
{
    uint32_t first_overfull = r->n_nodes;
    uint64_t first_need = 0;
    if (n > r->model->config.n_layer)
        n = r->model->config.n_layer;
    while (n > 0) {
        int rc = layout(r, order, n, n, "pipeline", p, err);
        if (rc != 0)
            return rc;
        uint64_t need = 0;
        uint32_t overfull = find_overfull(r, p, &need);
        if (overfull == r->n_nodes)
            return 0;
        if (first_overfull == r->n_nodes) {
            first_overfull = overfull;
            first_need = need;
        }
        if (overfull == 0)
            break; /* the head's own node cannot be left out */
        uint32_t at = 0;
        while (order[at] != overfull)
            at++;
        memmove(order + at, order + at + 1, (n - at - 1) * sizeof(*order));
        n--;
    }
    return refuse(r, first_overfull, first_need, err);
}

int placement_solve(const struct placement_request *r, struct placement *ret_placement,
                    struct error *err)
{
    int rc = check_request(r, err);
    if (rc != 0)
        return rc;
    uint32_t order[LIMIT_RANKS] = {0};
    uint32_t n = r->n_nodes < LIMIT_RANKS ? r->n_nodes : LIMIT_RANKS;
    for (uint32_t i = 0; i < n; i++)
        order[i] = i;
    struct placement p = {0};
    rc = r->split != NULL ? solve_explicit(r, order, n, &p, err)
                          : solve_by_memory(r, order, n, &p, err);
    if (rc == 0)
        rc = check_total(r, &p, err);
    if (rc == 0)
        *ret_placement = p;
    return rc;
}
