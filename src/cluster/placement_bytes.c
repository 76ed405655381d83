/* Bytes of ranks from a model's shape alone, and shares that fit. model/shard.h computes the exact
 * ones from the model; this agrees with it within a few per cent. */
#include "cluster/placement_internal.h"

#include <math.h>
#include <string.h>

enum { WEIGHT_SUM = 10000 /* of the ranks of a stage, about */ };

/* ---- KV heads ---- */

void head_dealer_init(struct head_dealer *d, const struct pricing *p, const uint32_t *weight,
                      uint32_t n_ranks)
{
    *d = (struct head_dealer){
        .n_ranks = n_ranks, .n_heads = p->shape->n_head_kv, .unit = p->kv_unit, .weight = weight};
    for (uint32_t i = 0; i < n_ranks; i++)
        d->weight_sum += weight[i];
}

/* Whole units by weight; those that do not divide evenly go to whoever is owed most. */
void head_dealer_next(struct head_dealer *d, uint32_t *ret_heads)
{
    uint64_t n_all = (d->n_heads + d->unit - 1) / d->unit, left = n_all, n_units[LIMIT_RANKS] = {0};
    int64_t claim[LIMIT_RANKS] = {0}, sum = (int64_t)d->weight_sum;
    for (uint32_t i = 0; i < d->n_ranks; i++) {
        n_units[i] = n_all * d->weight[i] / d->weight_sum;
        left -= n_units[i];
        claim[i] = d->owed[i] + (int64_t)((uint64_t)d->n_heads * d->weight[i]) -
                   (int64_t)(n_units[i] * d->unit) * sum;
    }
    for (; left > 0; left--) {
        uint32_t best = 0;
        for (uint32_t i = 1; i < d->n_ranks; i++)
            if (claim[i] > claim[best])
                best = i;
        n_units[best]++;
        claim[best] = INT64_MIN;
    }
    uint64_t begin = 0;
    for (uint32_t i = 0; i < d->n_ranks; i++) {
        uint64_t end = begin + n_units[i] * d->unit;
        end = end < d->n_heads ? end : d->n_heads;
        ret_heads[i] = (uint32_t)(end - begin);
        d->owed[i] += (int64_t)((uint64_t)d->n_heads * d->weight[i]) - (int64_t)(end - begin) * sum;
        begin = end;
    }
}

/* ---- bytes ---- */

/* Graph buffers of a full prefill step, from above: a few activations of the stream's width, the
 * feed-forward block, the heads, two masks of attention, and the logits of every slot. */
static double graph_bytes(const struct pricing *p, uint32_t n_heads_kv, double share, bool is_last)
{
    const struct model_shape *s = p->shape;
    double heads = (double)n_heads_kv * s->n_head / s->n_head_kv;
    double floats = p->n_batch * (4.0 * s->n_embd + 3.0 * share * s->n_ff +
                                  3.0 * heads * s->head_dim + p->n_ctx);
    if (is_last)
        floats += (double)p->n_slots * share * s->n_vocab;
    return 4 * floats;
}

double rank_bytes(const struct pricing *p, uint32_t n_layers, uint64_t n_heads_sum,
                  uint32_t n_heads_max, double share, bool is_first, bool is_last)
{
    const struct model_shape *s = p->shape;
    double layers_of_heads = (double)n_heads_sum / s->n_head_kv;
    double bytes = n_layers * (p->norm_bytes + share * p->ff_bytes) +
                   layers_of_heads * (p->attn_bytes + p->kv_bytes);
    if (is_first)
        bytes += (double)s->embd_bytes + (double)p->r->draft_bytes;
    if (is_last)
        bytes += share * (double)s->output_bytes + 4.0 * s->n_embd;
    return bytes + graph_bytes(p, n_heads_max, share, is_last);
}

double rank_bytes_resident(const struct pricing *p, uint32_t n_layers, bool is_last)
{
    return n_layers * p->kv_bytes + graph_bytes(p, p->shape->n_head_kv, 1, is_last);
}

static double weight_share(const uint32_t *weight, uint32_t n, uint32_t i)
{
    double sum = 0;
    for (uint32_t k = 0; k < n; k++)
        sum += weight[k];
    return weight[i] / sum;
}

void stage_bytes(const struct pricing *p, const uint32_t *weight, uint32_t n_ranks,
                 uint32_t n_layers, bool is_first, bool is_last, uint64_t *ret_bytes)
{
    struct head_dealer dealer;
    uint64_t sum[LIMIT_RANKS] = {0};
    uint32_t most[LIMIT_RANKS] = {0}, heads[LIMIT_RANKS] = {0};
    head_dealer_init(&dealer, p, weight, n_ranks);
    for (uint32_t l = 0; l < n_layers; l++) {
        head_dealer_next(&dealer, heads);
        for (uint32_t i = 0; i < n_ranks; i++) {
            sum[i] += heads[i];
            most[i] = heads[i] > most[i] ? heads[i] : most[i];
        }
    }
    for (uint32_t i = 0; i < n_ranks; i++)
        ret_bytes[i] = (uint64_t)rank_bytes(p, n_layers, sum[i], most[i],
                                            weight_share(weight, n_ranks, i), is_first, is_last);
}

void stage_layers_max(const struct pricing *p, const uint32_t *nodes, const uint32_t *weight,
                      uint32_t n_ranks, uint32_t ret_n_layers[4])
{
    struct head_dealer dealer;
    uint64_t sum[LIMIT_RANKS] = {0};
    uint32_t most[LIMIT_RANKS] = {0}, heads[LIMIT_RANKS] = {0};
    double share[LIMIT_RANKS] = {0};
    bool fits[4] = {true, true, true, true};
    head_dealer_init(&dealer, p, weight, n_ranks);
    for (uint32_t i = 0; i < n_ranks; i++)
        share[i] = weight_share(weight, n_ranks, i);
    memset(ret_n_layers, 0, 4 * sizeof(*ret_n_layers));
    for (uint32_t l = 1; l <= p->shape->n_layer && (fits[0] || fits[1] || fits[2] || fits[3]);
         l++) {
        head_dealer_next(&dealer, heads);
        for (uint32_t i = 0; i < n_ranks; i++) {
            sum[i] += heads[i];
            most[i] = heads[i] > most[i] ? heads[i] : most[i];
        }
        for (unsigned place = 0; place < 4; place++) {
            for (uint32_t i = 0; i < n_ranks && fits[place]; i++)
                fits[place] = floor(rank_bytes(p, l, sum[i], most[i], share[i], place & 1,
                                               place & 2)) <= p->node[nodes[i]].limit_bytes;
            if (fits[place])
                ret_n_layers[place] = l;
        }
    }
}

void placement_fill_bytes(const struct pricing *p, struct placement *x)
{
    for (uint32_t i = 0; i < x->split.n_stages; i++) {
        const struct split_stage *stage = &x->split.stage[i];
        stage_bytes(p, &x->split.weight[stage->rank_first], stage->n_ranks,
                    stage->layers.end - stage->layers.begin, i == 0, i + 1 == x->split.n_stages,
                    &x->bytes_of_rank[stage->rank_first]);
    }
}

/* ---- shares ---- */

static void to_weights(const double *share, uint32_t n, uint32_t *ret_weight)
{
    for (uint32_t i = 0; i < n; i++) {
        double w = share[i] * WEIGHT_SUM + 0.5;
        ret_weight[i] = w < 1 ? 1 : (uint32_t)w; /* a rank without a share would only wait */
    }
}

/* Memory of a node for its part of the layers, when the stage is first and last. */
static double room(const struct pricing *p, uint32_t node)
{
    double bytes = p->node[node].limit_bytes - rank_bytes(p, 0, 0, 1, 0, true, true);
    return bytes > 0 ? bytes : 0;
}

void stage_weights_by_memory(const struct pricing *p, const uint32_t *nodes, uint32_t n_ranks,
                             uint32_t *ret_weight)
{
    double share[LIMIT_RANKS] = {0}, sum = 0;
    for (uint32_t i = 0; i < n_ranks; i++)
        sum += share[i] = room(p, nodes[i]) + 1;
    for (uint32_t i = 0; i < n_ranks; i++)
        share[i] /= sum;
    to_weights(share, n_ranks, ret_weight);
}

/* What a node would take for a layer alone: the smaller, the greater its share. */
static double layer_alone(const struct pricing *p, uint32_t node)
{
    struct cost c = {
        .decode_s = (p->attn_bytes + p->ff_bytes + p->kv_read_bytes) / p->node[node].bytes_s,
        .prefill_s = (p->attn_flops + p->ff_flops) / p->node[node].flops_s,
    };
    return pricing_scalar(p, &c);
}

bool stage_weights(const struct pricing *p, const uint32_t *nodes, uint32_t n_ranks,
                   uint32_t n_layers, uint32_t *ret_weight)
{
    double share[LIMIT_RANKS] = {0}, most[LIMIT_RANKS] = {0}, speed[LIMIT_RANKS] = {0};
    bool is_full[LIMIT_RANKS] = {false};
    double all =
        n_layers * (p->attn_bytes + p->ff_bytes + p->kv_bytes) + (double)p->shape->output_bytes;
    for (uint32_t i = 0; i < n_ranks; i++) {
        speed[i] = 1 / layer_alone(p, nodes[i]);
        /* A little less than fits: heads and blocks do not divide evenly. */
        most[i] = n_layers == 0 ? 1 : 0.98 * room(p, nodes[i]) / all;
    }
    /* Whoever would get more than fits is filled; the rest is shared by speed again. */
    for (uint32_t round = 0; round <= n_ranks; round++) {
        double left = 1, speeds = 0;
        bool has_filled = false;
        for (uint32_t i = 0; i < n_ranks; i++) {
            left -= is_full[i] ? most[i] : 0;
            speeds += is_full[i] ? 0 : speed[i];
        }
        if (left > 0 && speeds <= 0)
            return false;
        for (uint32_t i = 0; i < n_ranks; i++) {
            if (is_full[i])
                continue;
            share[i] = left > 0 ? left * speed[i] / speeds : 0;
            if (share[i] > most[i]) {
                share[i] = most[i];
                is_full[i] = has_filled = true;
            }
        }
        if (!has_filled)
            break;
    }
    to_weights(share, n_ranks, ret_weight);
    return true;
}
