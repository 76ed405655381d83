/*
 * What all nodes agree on: what should run, and where it runs. Every node keeps a whole copy; the
 * coordinator changes it. A copy is named by its claim; of two, the greater claim is the truth, and
 * entries that people made in the other one are merged by their stamps. Thread: data, pure
 * functions.
 */
#ifndef SHOAL_CLUSTER_STATE_H
#define SHOAL_CLUSTER_STATE_H

#include "base/buf.h"
#include "base/element.h"
#include "base/error.h"
#include "base/limits.h"
#include "cluster/node_id.h"
#include "cluster/placement.h"

#include <stdbool.h>
#include <stdint.h>

struct claim {        /* compared in this order */
    uint64_t term;    /* of the coordinator; one election, one term */
    uint64_t version; /* of the state, counted on within a term */
    struct node_id coordinator;
};
int claim_compare(const struct claim *a, const struct claim *b);

enum { /* bounds that keep an epoch (term << 32 | version << 16 | tag of the coordinator) in 64
          bits, whatever others say */
       CLUSTER_TERM_MAX = INT32_MAX,
       CLUSTER_VERSION_MAX = UINT16_MAX,
};

struct stamp { /* when an entry was last changed by a person; compared in this order */
    uint64_t term, version;
    struct node_id node; /* who took the order */
};
int stamp_compare(const struct stamp *a, const struct stamp *b);

/* How an instance is run, as people asked for it; all zero: by default. */
struct instance_options {
    uint32_t n_ctx, n_slots;
    uint32_t n_kv_tokens;   /* of the KV cache; placement_kv_tokens says what 0 means */
    uint32_t n_chunk;       /* tokens of prompts in a step in which others decode */
    uint32_t n_draft;       /* tokens guessed ahead at most; INSTANCE_NO_DRAFT: none */
    char draft_model[4096]; /* file of a small model that guesses ahead, where the order was given;
                               the head's node looks there and in its own folder; "": none */
    enum kv_type kv_type;
    enum comm_wire wire;
    enum comm_transport transport;
};
#define INSTANCE_NO_DRAFT UINT32_MAX
bool instance_options_equal(const struct instance_options *a, const struct instance_options *b);
/* Errors: E_INVALID (names the option and its range). */
int instance_options_check(const struct instance_options *o, struct error *err);

struct desired_model {
    char id[128];   /* as clients name it; unique */
    bool is_wanted; /* false: was unloaded; kept so that an older copy does not bring it back */
    struct stamp stamp;
    char path[4096]; /* of the file where the order was given; others look there and in their own
                        model folders for a file with this hash */
    uint8_t hash[32];
    struct model_shape shape;
    struct instance_options options;
    uint64_t draft_bytes; /* memory that options.draft_model takes beside rank 0 */
    enum placement_rule rule;
    char split[32]; /* "": by the rule */
    uint32_t
        n_nodes_min;   /* nodes to wait for, at most CLUSTER_WAIT_MS, before the first placement */
    char problem[160]; /* the coordinator's: why it runs nowhere, or not where it should; "" */
};

struct node_order { /* what people said about a node */
    struct node_id node;
    bool is_drained; /* holds no ranks */
    bool is_revoked; /* is no member any more: links refuse it */
    struct stamp stamp;
};

struct placed_instance {
    struct node_id id;  /* of the instance: stays the same through repairs */
    char model_id[128]; /* of its desired_model */
    uint64_t epoch;     /* of this placement: grows with each; older orders are void */
    struct split split;
    struct node_id node_of_rank[LIMIT_RANKS];  /* [split.n_ranks]; rank 0's node leads it */
    uint64_t incarnation_of_rank[LIMIT_RANKS]; /* of the node's process: one that has restarted
                                                  holds nothing any more */
    uint64_t bytes_of_rank[LIMIT_RANKS];
    float decode_tok_s, prefill_tok_s; /* predicted */
    uint32_t n_repairs;
};

struct cluster_state { /* about 200 KB: on the heap */
    struct claim claim;
    uint32_t n_models, n_orders, n_instances;
    struct desired_model model[2 * LIMIT_INSTANCES]; /* unloaded ones included; the oldest of those
                                                        make room */
    struct node_order order[LIMIT_PEERS];
    struct placed_instance instance[LIMIT_INSTANCES];
};

/* Wire and disk form; begins with a version of the form. Decoding checks every field. Errors: those
 * of buf_append / E_PROTOCOL, E_NOMEM. */
int cluster_state_encode(struct buf *b, const struct cluster_state *s);
int cluster_state_decode(struct cursor *c, struct cluster_state *ret, struct error *err);
/* One entry of it, as it also travels in an order. */
int desired_model_encode(struct buf *b, const struct desired_model *m);
int desired_model_decode(struct cursor *c, struct desired_model *ret, struct error *err);

/* Whether both ask for the same thing to run: all but stamp, path and problem. */
bool desired_model_equal(const struct desired_model *a, const struct desired_model *b);
/* Each returns the index, -1 when there is none. */
int cluster_state_find_model(const struct cluster_state *s, const char *id);
int cluster_state_find_order(const struct cluster_state *s, const struct node_id *node);
int cluster_state_find_instance(const struct cluster_state *s, const struct node_id *id);
int cluster_state_find_instance_of(const struct cluster_state *s, const char *model_id);
/* Takes this entry unless a newer one is there. Returns whether the state has changed;
 * *ret_is_full: there was no room (the oldest unloaded models and orders that say nothing make
 * room). */
bool cluster_state_merge_model(struct cluster_state *s, const struct desired_model *m,
                               bool *ret_is_full);
bool cluster_state_merge_order(struct cluster_state *s, const struct node_order *o,
                               bool *ret_is_full);
void cluster_state_remove_instance(struct cluster_state *s, uint32_t index);

#endif
