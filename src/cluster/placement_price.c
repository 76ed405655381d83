/* The time of a step, estimated: docs/internals/placement.md explains each term. */
#include "cluster/placement_internal.h"

#include "base/gcd.h"

#include <inttypes.h>
#include <math.h>

enum {
    N_CTX_DEFAULT = 4096, /* the engine's */
    N_BATCH = 512,
    N_PREFILL = 512, /* tokens of the prompt that is priced */
    N_KV_READ = 512, /* tokens in the cache of the decode step that is priced */
    PREFILL_PERCENT = 20,
    PROMPT_TOKENS =
        16, /* with PREFILL_PERCENT: a prompt of four tokens for each that is answered */
};

/* Assumed where nothing was measured: a core of a common computer, and a wired network. */
#define CORE_BYTES_S      6e9
#define CORES_BYTES_S_MAX 24e9 /* more cores than four do not read faster */
#define CORE_FLOPS_S      20e9
#define LINK_RTT_S        500e-6
#define LINK_BYTES_S      (1e9 / 8)
/* Ranks on one node. */
#define LOCAL_TRIP_S  10e-6
#define LOCAL_BYTES_S 3e9
/* What every layer and every step costs beside reading weights: operations of a graph begin and end
 * on all threads together. Estimates, not measured apart. */
#define LAYER_S 25e-6
#define STEP_S  150e-6
/* Pages of a model file that have no room in memory: a solid-state disk. */
#define DISK_BYTES_S 1e9

/* ---- the request ---- */

static void resolve_nodes(struct pricing *p)
{
    const struct placement_request *r = p->r;
    uint32_t percent =
        r->memory_percent_max != 0 ? r->memory_percent_max : PLACEMENT_MEMORY_PERCENT;
    for (uint32_t i = 0; i < r->n_nodes; i++) {
        const struct node_figures *f = &r->nodes[i].figures;
        struct node_speed *n = &p->node[i];
        double cores = f->n_cores > 0 ? f->n_cores : 1;
        n->is_known = f->gflops > 0 && f->memory_gb_s > 0;
        n->bytes_s = f->memory_gb_s > 0 ? f->memory_gb_s * 1e9
                                        : fmin(cores * CORE_BYTES_S, CORES_BYTES_S_MAX);
        n->flops_s = f->gflops > 0 ? f->gflops * 1e9 : cores * CORE_FLOPS_S;
        n->limit_bytes = (double)f->memory_bytes_free / 100 * percent;
    }
}

uint32_t placement_kv_tokens(uint32_t n_ctx, uint32_t n_slots, uint32_t n_kv_tokens)
{
    enum { WHOLE_CONTEXTS = 4 };
    uint64_t n = (uint64_t)n_ctx * (n_slots < WHOLE_CONTEXTS ? n_slots : WHOLE_CONTEXTS);
    if (n_kv_tokens != 0)
        return n_kv_tokens < n_ctx ? n_ctx : n_kv_tokens;
    return n < UINT32_MAX ? (uint32_t)n : UINT32_MAX;
}

static void resolve_shape(struct pricing *p)
{
    const struct model_shape *s = p->shape;
    double q = (double)s->n_head * s->head_dim, kv = (double)s->n_head_kv * s->head_dim;
    double attn = s->n_embd * 2 * (q + kv), ff = 3.0 * s->n_embd * s->n_ff;
    double matrices = (double)s->layer_bytes;
    p->norm_bytes = 8.0 * s->n_embd; /* two vectors of f32 */
    if (p->norm_bytes > matrices / 2)
        p->norm_bytes = 0;
    matrices -= p->norm_bytes;
    p->attn_bytes = matrices * attn / (attn + ff);
    p->ff_bytes = matrices * ff / (attn + ff);
    /* The shape's figure is for f16; blocks of q8 have 34 bytes for 32 elements. */
    double kv_scale = p->r->kv_type == KV_Q8_0 ? 34.0 / 64 : 1.0;
    p->kv_bytes = kv_scale * (double)s->kv_token_layer_bytes *
                  placement_kv_tokens(p->n_ctx, p->n_slots, p->r->n_kv_tokens);
    p->kv_read_bytes =
        (double)s->kv_token_layer_bytes * (p->n_ctx < N_KV_READ ? p->n_ctx : N_KV_READ);
    p->attn_flops = 2 * attn * p->n_prefill + 4 * q * p->n_prefill * p->n_prefill;
    p->ff_flops = 2 * ff * p->n_prefill;
    /* Columns of the output projection are cut at blocks, of 32 in most types. */
    uint32_t group = s->n_head / s->n_head_kv * s->head_dim;
    p->kv_unit = 32 / gcd_u32(32, group > 0 ? group : 32);
}

int pricing_init(struct pricing *p, const struct placement_request *r, struct error *err)
{
    const struct model_shape *s = r->shape;
    if (s == NULL || r->n_nodes == 0 || r->nodes == NULL)
        return error_set(err, E_INVALID, "placement needs a model and at least one node");
    if (r->n_nodes > PLACEMENT_NODES_MAX)
        return error_set(err, E_INVALID, "%" PRIu32 " nodes; at most %d are possible", r->n_nodes,
                         (int)PLACEMENT_NODES_MAX);
    if (s->n_layer == 0 || s->n_layer > LIMIT_MODEL_LAYERS || s->n_head_kv == 0 || s->n_head == 0 ||
        s->n_embd == 0 || s->head_dim == 0 || s->n_ff == 0 || s->n_vocab == 0)
        return error_set(err, E_INVALID, "the model's shape is not complete");
    if (r->memory_percent_max > 100 || r->prefill_percent > 100)
        return error_set(err, E_INVALID,
                         "memory share %" PRIu32 " %%, prefill share %" PRIu32
                         " %%: none may be over 100 %%",
                         r->memory_percent_max, r->prefill_percent);
    uint32_t train = s->n_ctx_train;
    *p = (struct pricing){.r = r, .shape = s};
    p->n_ctx = r->n_ctx != 0                         ? r->n_ctx
               : train != 0 && train < N_CTX_DEFAULT ? train
                                                     : N_CTX_DEFAULT;
    p->n_slots = r->n_slots != 0 ? r->n_slots : 1;
    p->n_batch = p->n_ctx < N_BATCH ? p->n_ctx : N_BATCH;
    p->n_prefill = p->n_ctx < N_PREFILL ? p->n_ctx : N_PREFILL;
    double share = (r->prefill_percent != 0 ? r->prefill_percent : PREFILL_PERCENT) / 100.0;
    p->decode_weight = 1 - share;
    p->prefill_weight = share * PROMPT_TOKENS / p->n_prefill;
    resolve_shape(p);
    resolve_nodes(p);
    return 0;
}

double pricing_scalar(const struct pricing *p, const struct cost *c)
{
    return p->decode_weight * c->decode_s + p->prefill_weight * c->prefill_s;
}

/* ---- links ---- */

static const struct link_figures *find_link(const struct placement_request *r, uint32_t a,
                                            uint32_t b)
{
    static const struct link_figures unknown = {0};
    return r->links != NULL ? &r->links[(size_t)a * r->n_nodes + b] : &unknown;
}

bool nodes_are_linked(const struct placement_request *r, uint32_t a, uint32_t b)
{
    return a == b ||
           (find_link(r, a, b)->rtt_us != UINT32_MAX && find_link(r, b, a)->rtt_us != UINT32_MAX);
}

double link_trip_s(const struct pricing *p, uint32_t a, uint32_t b, double bytes)
{
    if (a == b)
        return LOCAL_TRIP_S + bytes / LOCAL_BYTES_S;
    const struct link_figures *l = find_link(p->r, a, b);
    double rtt_s = l->rtt_us != 0 ? l->rtt_us * 1e-6 : LINK_RTT_S;
    double bytes_s = l->mbit_s > 0 ? l->mbit_s * 1e6 / 8 : LINK_BYTES_S;
    return rtt_s / 2 + bytes / bytes_s;
}

void hop_cost(const struct pricing *p, const uint32_t *from, uint32_t n_from, const uint32_t *to,
              uint32_t n_to, struct cost *ret)
{
    double worst = -1, bytes = 4.0 * p->shape->n_embd;
    for (uint32_t i = 0; i < n_from; i++) {
        for (uint32_t k = 0; k < n_to; k++) {
            struct cost c = {.decode_s = link_trip_s(p, from[i], to[k], bytes),
                             .prefill_s = link_trip_s(p, from[i], to[k], bytes * p->n_prefill)};
            c.decode_hop_s = c.decode_s;
            if (pricing_scalar(p, &c) > worst) {
                worst = pricing_scalar(p, &c);
                *ret = c;
            }
        }
    }
}

double return_cost_s(const struct pricing *p, const uint32_t *last, uint32_t n_last, uint32_t head)
{
    double worst = 0;
    for (uint32_t i = 0; i < n_last; i++)
        worst = fmax(worst, last[i] == head ? 0 : link_trip_s(p, last[i], head, 0));
    return worst;
}

/* ---- stages ---- */

struct group_links { /* between the ranks of a stage: the worst of each */
    double trip_s, byte_s;
};

static struct group_links find_group_links(const struct pricing *p, const uint32_t *nodes,
                                           uint32_t n)
{
    struct group_links g = {0, 0};
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < n; k++) {
            if (i == k)
                continue;
            double trip = link_trip_s(p, nodes[i], nodes[k], 0);
            g.trip_s = fmax(g.trip_s, trip);
            g.byte_s = fmax(g.byte_s, link_trip_s(p, nodes[i], nodes[k], 1) - trip);
        }
    }
    return g;
}

/* One all-reduce: direct, or in slices (comm/reduce.c), whichever is shorter. */
static double reduce_s(const struct group_links *g, uint32_t n_ranks, double bytes)
{
    double direct = g->trip_s + (n_ranks - 1) * bytes * g->byte_s;
    double slices = 2 * g->trip_s + 2.0 * (n_ranks - 1) / n_ranks * bytes * g->byte_s;
    return fmin(direct, slices);
}

/* Ranks of a stage work at the same time: those on one node share its speed. */
static double speed_share(const uint32_t *nodes, uint32_t n, uint32_t i)
{
    uint32_t same = 0;
    for (uint32_t k = 0; k < n; k++)
        same += nodes[k] == nodes[i];
    return 1.0 / same;
}

/* Attention of one layer, the mean over all: whole heads are dealt, so the slowest rank changes. */
static void attention_price(const struct pricing *p, const uint32_t *nodes, const uint32_t *weight,
                            const double *speed, uint32_t n_ranks, struct cost *ret)
{
    struct head_dealer dealer;
    uint32_t heads[LIMIT_RANKS] = {0};
    double bytes = (p->attn_bytes + p->kv_read_bytes) / p->shape->n_head_kv;
    double flops = p->attn_flops / p->shape->n_head_kv;
    head_dealer_init(&dealer, p, weight, n_ranks);
    *ret = (struct cost){0};
    for (uint32_t l = 0; l < p->shape->n_layer; l++) {
        double decode = 0, prefill = 0;
        head_dealer_next(&dealer, heads);
        for (uint32_t i = 0; i < n_ranks; i++) {
            const struct node_speed *n = &p->node[nodes[i]];
            decode = fmax(decode, heads[i] * bytes / (n->bytes_s * speed[i]));
            prefill = fmax(prefill, heads[i] * flops / (n->flops_s * speed[i]));
        }
        ret->decode_s += decode / p->shape->n_layer;
        ret->prefill_s += prefill / p->shape->n_layer;
    }
}

void stage_price(const struct pricing *p, const uint32_t *nodes, const uint32_t *weight,
                 uint32_t n_ranks, struct stage_cost *ret)
{
    double speed[LIMIT_RANKS] = {0}, sum = 0, ff_decode = 0, ff_prefill = 0, head = 0;
    for (uint32_t i = 0; i < n_ranks; i++)
        sum += weight[i];
    for (uint32_t i = 0; i < n_ranks; i++) {
        const struct node_speed *n = &p->node[nodes[i]];
        double share = weight[i] / sum;
        speed[i] = speed_share(nodes, n_ranks, i);
        ff_decode = fmax(ff_decode, share * p->ff_bytes / (n->bytes_s * speed[i]));
        ff_prefill = fmax(ff_prefill, share * p->ff_flops / (n->flops_s * speed[i]));
        head = fmax(head, share * (double)p->shape->output_bytes / (n->bytes_s * speed[i]));
    }
    *ret = (struct stage_cost){0};
    attention_price(p, nodes, weight, speed, n_ranks, &ret->layer);
    ret->layer.decode_s += ff_decode + LAYER_S;
    ret->layer.prefill_s += ff_prefill + LAYER_S;
    ret->last.decode_s = ret->last.prefill_s = head;
    if (n_ranks == 1)
        return;
    struct group_links links = find_group_links(p, nodes, n_ranks);
    double bytes = 4.0 * p->shape->n_embd;
    ret->layer.decode_reduce_s = 2 * reduce_s(&links, n_ranks, bytes);
    ret->layer.decode_s += ret->layer.decode_reduce_s;
    ret->layer.prefill_s += 2 * reduce_s(&links, n_ranks, bytes * p->n_prefill);
    /* The step's plan to the other ranks; the candidates of each to the one that samples. */
    ret->first.decode_s = ret->first.prefill_s = links.trip_s;
    ret->last.decode_s += links.trip_s;
    ret->last.prefill_s += links.trip_s;
}

/* ---- a placement ---- */

static void cost_add(struct cost *sum, const struct cost *c, double factor)
{
    sum->decode_s += factor * c->decode_s;
    sum->prefill_s += factor * c->prefill_s;
    sum->decode_reduce_s += factor * c->decode_reduce_s;
    sum->decode_hop_s += factor * c->decode_hop_s;
}

void placement_cost(const struct pricing *p, const struct placement *x, struct cost *ret)
{
    const struct split *split = &x->split;
    struct cost sum = {.decode_s = STEP_S, .prefill_s = STEP_S}, hop = {0};
    for (uint32_t i = 0; i < split->n_stages; i++) {
        const struct split_stage *stage = &split->stage[i];
        const uint32_t *nodes = &x->node_of_rank[stage->rank_first];
        struct stage_cost c;
        stage_price(p, nodes, &split->weight[stage->rank_first], stage->n_ranks, &c);
        cost_add(&sum, &c.layer, stage->layers.end - stage->layers.begin);
        if (i == 0)
            cost_add(&sum, &c.first, 1);
        else
            hop_cost(p, &x->node_of_rank[stage[-1].rank_first], stage[-1].n_ranks, nodes,
                     stage->n_ranks, &hop);
        if (i > 0)
            cost_add(&sum, &hop, 1);
        if (i + 1 < split->n_stages)
            continue;
        cost_add(&sum, &c.last, 1);
        if (i > 0) {
            double back = return_cost_s(p, nodes, stage->n_ranks, x->node_of_rank[0]);
            struct cost token = {.decode_s = back, .prefill_s = back, .decode_hop_s = back};
            cost_add(&sum, &token, 1);
        }
    }
    double paged_s = (double)x->bytes_paged / DISK_BYTES_S;
    sum.decode_s += paged_s;
    sum.prefill_s += paged_s;
    *ret = sum;
}

void placement_rate(const struct pricing *p, struct placement *x)
{
    struct cost c;
    bool is_known = true;
    for (uint32_t i = 0; i < x->split.n_ranks; i++)
        is_known = is_known && p->node[x->node_of_rank[i]].is_known;
    x->bytes_paged = placement_bytes_paged(p, x);
    placement_cost(p, x, &c);
    x->decode_tok_s = is_known ? (float)(1 / c.decode_s) : 0;
    x->prefill_tok_s = is_known ? (float)(p->n_prefill / c.prefill_s) : 0;
}
