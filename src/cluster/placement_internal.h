/*
 * What the files of placement share: a request made ready for pricing, the bytes and the time of a
 * stage, and the two searches. docs/internals/placement.md has the formulas. Thread: any.
 */
#ifndef SHOAL_CLUSTER_PLACEMENT_INTERNAL_H
#define SHOAL_CLUSTER_PLACEMENT_INTERNAL_H

#include "base/limits.h"
#include "cluster/placement.h"

enum {
    PLACEMENT_NODES_MAX = LIMIT_PEERS + 1,
    PLACEMENT_MEMORY_PERCENT = 80, /* of free memory; also of all nodes together */
    PLACEMENT_PAGED_TIMES = 8,     /* of free memory that a model may be as large as */
};

struct node_speed {
    double bytes_s, flops_s; /* reading weights; multiplying them by many rows */
    double limit_bytes;      /* that a model may take there */
    bool is_known;           /* false: assumed from the number of cores */
};

struct pricing { /* a request, with everything that its price needs worked out once */
    const struct placement_request *r;
    const struct model_shape *shape;
    uint32_t n_ctx, n_slots, n_batch;
    uint32_t n_prefill; /* tokens of the prefill step that is priced */
    uint32_t kv_unit;   /* KV heads that are not divided */
    /* of one layer */
    double norm_bytes, attn_bytes, ff_bytes; /* weights; norms are on every rank */
    double kv_bytes;                         /* cache of all slots */
    double kv_read_bytes;                    /* by the decode step that is priced */
    double attn_flops, ff_flops;             /* of the prefill step */
    /* price of a placement = decode_weight * seconds of a decode step + prefill_weight * seconds of
       a prefill step */
    double decode_weight, prefill_weight;
    struct node_speed node[PLACEMENT_NODES_MAX];
};

struct cost { /* seconds of one step */
    double decode_s, prefill_s;
    double decode_reduce_s, decode_hop_s; /* parts of decode_s: all-reduces; between stages */
};

/* ---- placement_price.c ---- */

/* Errors: E_INVALID. */
int pricing_init(struct pricing *p, const struct placement_request *r, struct error *err);
double pricing_scalar(const struct pricing *p, const struct cost *c);
bool nodes_are_linked(const struct placement_request *r, uint32_t a, uint32_t b);
/* One trip of so many bytes from a to b. */
double link_trip_s(const struct pricing *p, uint32_t a, uint32_t b, double bytes);
/* Hidden states from the ranks of one stage to those of the next: the worst of the pairs. */
void hop_cost(const struct pricing *p, const uint32_t *from, uint32_t n_from, const uint32_t *to,
              uint32_t n_to, struct cost *ret);
/* The sampled token's way from the last stage to the head. */
double return_cost_s(const struct pricing *p, const uint32_t *last, uint32_t n_last, uint32_t head);

struct stage_cost {    /* of the ranks of one stage */
    struct cost layer; /* one layer, the mean of all */
    struct cost first; /* once when it is the first stage */
    struct cost last;  /* once when it is the last stage: the output head */
};
/* nodes, weight: [n_ranks] */
void stage_price(const struct pricing *p, const uint32_t *nodes, const uint32_t *weight,
                 uint32_t n_ranks, struct stage_cost *ret);
/* Seconds of the whole step, and what they consist of. */
void placement_cost(const struct pricing *p, const struct placement *x, struct cost *ret);
/* Fills decode_tok_s and prefill_tok_s. */
void placement_rate(const struct pricing *p, struct placement *x);

/* ---- placement_bytes.c ---- */

/* Deals the KV heads of one layer after another to the ranks of a stage, as model/shard.c does. */
struct head_dealer {
    uint32_t n_ranks, n_heads, unit;
    const uint32_t *weight;
    uint64_t weight_sum;
    int64_t owed[LIMIT_RANKS];
};
void head_dealer_init(struct head_dealer *d, const struct pricing *p, const uint32_t *weight,
                      uint32_t n_ranks);
/* ret_heads: [n_ranks] */
void head_dealer_next(struct head_dealer *d, uint32_t *ret_heads);

/* What a rank holds that has dealt n_heads_sum KV heads over n_layers layers, at most n_heads_max
 * in one of them, and this share of everything else. */
double rank_bytes(const struct pricing *p, uint32_t n_layers, uint64_t n_heads_sum,
                  uint32_t n_heads_max, double share, bool is_first, bool is_last);
/* Bytes of each rank of a stage: ret_bytes [n_ranks]. */
void stage_bytes(const struct pricing *p, const uint32_t *weight, uint32_t n_ranks,
                 uint32_t n_layers, bool is_first, bool is_last, uint64_t *ret_bytes);
/* Most layers that such a stage can hold within its nodes' limits, for each place in the pipeline:
 * index 1 first, 2 last, 3 both, 0 neither. */
void stage_layers_max(const struct pricing *p, const uint32_t *nodes, const uint32_t *weight,
                      uint32_t n_ranks, uint32_t ret_n_layers[4]);
/* Of a stage's bytes those that must be in memory: cache and buffers, not weights. */
double rank_bytes_resident(const struct pricing *p, uint32_t n_layers, bool is_last);
/* Fills bytes_of_rank from split. */
void placement_fill_bytes(const struct pricing *p, struct placement *x);
/* Shares for the ranks of a stage: by speed, but none more than fits when the stage has n_layers
 * (0: whatever fits). Returns false when they cannot hold so many. */
bool stage_weights(const struct pricing *p, const uint32_t *nodes, uint32_t n_ranks,
                   uint32_t n_layers, uint32_t *ret_weight);
/* Shares by memory alone. */
void stage_weights_by_memory(const struct pricing *p, const uint32_t *nodes, uint32_t n_ranks,
                             uint32_t *ret_weight);

/* ---- placement_search.c, placement_guided.c ---- */

struct found {    /* the best placement of a kind */
    double price; /* INFINITY: none */
    struct placement placement;
};

struct search {
    const struct pricing *p;
    uint32_t n_nodes;
    uint32_t node[PLACEMENT_EXACT_NODES]; /* that may take part */
    uint32_t n_group_max;                 /* ranks of a stage at most */
    uint32_t n_stages_max;                /* 1: tensor splits alone; else any number */
    bool wants_each_size; /* the best of each number of nodes, not only the best of all */
    double bound; /* a price that can be had anyway: dearer ones are not looked for; 0: none */
    uint64_t n_evaluated; /* out: extensions of a partial placement that were priced */
};

/* Exact. found: [PLACEMENT_EXACT_NODES + 1], by number of nodes; without wants_each_size only the
 * best of all is filled, the others have price INFINITY. Errors: E_NOMEM. */
int search_exact(struct search *s, struct found *found, struct error *err);
/* For any number of nodes: guided by speed, memory and nearness. found: [PLACEMENT_GUIDED_FOUND],
 * the best of each way that was tried. n_evaluated is added to. Errors: E_NOMEM. */
enum { PLACEMENT_GUIDED_FOUND = 12 };
int search_guided(const struct pricing *p, const uint32_t *nodes, uint32_t n, struct found *found,
                  uint64_t *n_evaluated, struct error *err);
/* The rule by speed: exact for few nodes, guided for many; by memory when neither finds a place.
 * n_evaluated may be NULL. Errors: those of solve_by_memory. */
int solve_by_speed(const struct pricing *p, struct placement *ret, uint64_t *n_evaluated,
                   struct error *err);
/* Long pipelines alone; found: [2]. */
int search_pipelines(const struct pricing *p, const uint32_t *nodes, uint32_t n,
                     struct found *found, uint64_t *n_evaluated, struct error *err);
/* Bytes, price; price INFINITY when a node would hold more than it may. */
void found_finish(const struct pricing *p, struct found *f);

/* ---- placement_rules.c ---- */

/* Nodes that may take part: ret_nodes [r->n_nodes]. */
uint32_t usable_nodes(const struct placement_request *r, uint32_t *ret_nodes);
/* The rule by memory. Errors: E_UNAVAILABLE with the numbers, E_INVALID. */
int solve_by_memory(const struct pricing *p, struct placement *ret, struct error *err);
/* What does not fit, all the same: see placement.h. Errors: likewise. */
int solve_by_paging(const struct pricing *p, struct placement *ret, struct error *err);
/* Bytes of a placement beyond the free memory of its nodes. */
uint64_t placement_bytes_paged(const struct pricing *p, const struct placement *x);
/* A split that was asked for. Errors: likewise. */
int solve_explicit(const struct pricing *p, struct placement *ret, struct error *err);

#endif
