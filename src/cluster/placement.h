/*
 * Which node holds what, as a pure function of figures: no I/O, no clock.
 *
 * Two rules. By memory: a pipeline over all nodes, layers proportional to usable memory, the last
 * takes the rest; a node that cannot take its part is left out. By speed: pipelines, tensor splits
 * and hybrids over subsets of the nodes are priced by compute speed, memory bandwidth, links,
 * memory and heat; exact up to PLACEMENT_EXACT_NODES, guided beyond. The price is an estimate of
 * the time of a decode step and of a prefill step; docs/internals/placement.md has the formulas.
 *
 * A model that fits nowhere can still be placed (may_page), by either rule, as long as its caches
 * and buffers fit: as a pipeline over all nodes, whose weights are pages of the model file that
 * come and go. That is slow, and the caller should warn (bytes_paged). Thread: any.
 */
#ifndef SHOAL_CLUSTER_PLACEMENT_H
#define SHOAL_CLUSTER_PLACEMENT_H

#include "base/element.h"
#include "base/error.h"
#include "cluster/figures.h"
#include "model/shard.h"

#include <stdbool.h>
#include <stdint.h>

enum { PLACEMENT_EXACT_NODES = 10, PLACEMENT_CANDIDATES_MAX = 64 };

enum placement_rule { PLACEMENT_SPEED, PLACEMENT_MEMORY, PLACEMENT_RULE_COUNT };
const char *placement_rule_name(enum placement_rule rule);
bool placement_rule_parse(const char *text, enum placement_rule *ret_rule);

struct placement_node {
    char name[64];
    struct node_figures figures; /* memory_bytes_free: usable now, its present ranks of this model
                                    counted as free */
    bool is_excluded;            /* drained, stopping, critical: holds nothing */
};

/* Tokens that the KV cache of an instance holds, when nobody says it: a whole context for each
 * slot, but for four at most. More sequences share it, as most are far shorter than a context. */
uint32_t placement_kv_tokens(uint32_t n_ctx, uint32_t n_slots, uint32_t n_kv_tokens);

struct placement_request {
    const struct model_shape *shape;
    const char *model_name;  /* for messages */
    uint32_t n_ctx, n_slots; /* 0: engine's default, 1 */
    uint32_t n_kv_tokens;    /* KV cache to make room for; 0: see placement_kv_tokens */
    enum kv_type kv_type;
    enum comm_wire wire;
    uint64_t draft_bytes; /* of a small model beside rank 0; counted for all ranks of its stage */
    uint32_t n_nodes;     /* at most LIMIT_PEERS + 1 */
    const struct placement_node *nodes; /* [n_nodes] */
    const struct link_figures *links;   /* [n_nodes][n_nodes], both directions alike; rtt_us 0: not
                                           measured, a common network is assumed; rtt_us UINT32_MAX:
                                           no link, these two are never in one placement. NULL: none
                                           measured */
    enum placement_rule rule;
    const char *split; /* NULL: by the rule; else text for split_parse, over all nodes in their
                          order (of preference), round robin when ranks are more than nodes */
    uint32_t memory_percent_max; /* of free memory that one model may take; 0: 80 */
    bool may_page;               /* a model that does not fit shall be placed all the same */
    uint32_t prefill_percent;    /* weight of prefill beside decode in the price; 0: 20 */
};

struct placement {
    struct split split;
    uint32_t node_of_rank[LIMIT_RANKS];  /* index into nodes */
    uint64_t bytes_of_rank[LIMIT_RANKS]; /* weights + KV cache + estimated graph buffers */
    uint64_t bytes_paged; /* weights for which there is no memory: read from their files in every
                             step; 0: all fits */
    float decode_tok_s, prefill_tok_s; /* predicted; 0: figures are missing */
};

struct placement_candidate { /* for people: `shoal plan` */
    struct placement placement;
    bool is_feasible;
    char reason[160]; /* why it is not feasible, or what bounds its speed */
};

struct placement_report {  /* large: on the heap */
    uint32_t n_candidates; /* best first; the first is what placement_solve gives */
    struct placement_candidate candidate[PLACEMENT_CANDIDATES_MAX];
};

/* Errors: E_UNAVAILABLE with the numbers when the model does not fit (needed, free, per node), not
 * even paged; E_INVALID. */
int placement_solve(const struct placement_request *r, struct placement *ret_placement,
                    struct error *err);
/* The same with what else was considered. */
int placement_explain(const struct placement_request *r, struct placement_report *ret_report,
                      struct error *err);
/* The price of a given placement, to compare with a better one. Fills decode_tok_s and
 * prefill_tok_s. */
void placement_price(const struct placement_request *r, struct placement *p);
/* The same in seconds of a step, with common speeds for nodes whose own are not known. False: this
 * placement is not possible. */
bool placement_seconds(const struct placement_request *r, const struct placement *p,
                       double *ret_decode_s, double *ret_prefill_s);

#endif
