/*
 * One node's part in the cluster, as a step function: events in, actions out. Members and whether
 * they live, who coordinates, the state that all agree on, placement and repair. No I/O, no clock,
 * no threads: the node (src/node/) feeds it from libuv, the simulator (tests/sim/) from a seed.
 *
 * Messages between nodes may be lost, doubled and reordered. Whatever matters is repeated until a
 * heartbeat shows that it has arrived, and old news is recognised as old.
 *
 * Roles. Every node is a member and keeps the state. The coordinator, one node, decides what runs
 * where. The leader of an instance, the node of its rank 0, starts and stops its ranks; it never
 * decides where they are. A leader tells everyone how its instance is (a report).
 *
 * Detection. A peer that is silent for CLUSTER_SILENT_MS (longer where its heartbeats are known to
 * come unevenly), or whose process has closed the link, is suspected: other members are asked. If
 * one of them has heard from it since, only the link is bad, and the two are not placed together.
 * If none has, or none is there to ask, it is gone. What it held is placed again.
 *
 * Election. No quorum, since two machines must survive the loss of one: each group of nodes that
 * hear each other has a coordinator. When groups meet, the greater claim wins (cluster/state.h);
 * orders of people are merged by their stamps; instances of the other group that the winner lacks
 * are adopted, the others stopped.
 *
 * Within one process the claim of cluster_get_state never becomes smaller: the coordinator counts
 * its own on, everybody else replaces the whole state only by one with a greater claim. A process
 * that starts from what was saved begins with version 0 of the saved term, without instances.
 *
 * Thread: one.
 */
#ifndef SHOAL_CLUSTER_CLUSTER_H
#define SHOAL_CLUSTER_CLUSTER_H

#include "base/error.h"
#include "cluster/figures.h"
#include "cluster/node_id.h"
#include "cluster/state.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    CLUSTER_TICK_MS = 50,       /* at least that often a tick is due */
    CLUSTER_HEARTBEAT_MS = 250, /* to every linked peer */
    CLUSTER_SILENT_MS = 1000,
    CLUSTER_SILENT_MS_MAX = 8000, /* whatever the link's past */
    CLUSTER_CONFIRM_MS = 250,     /* for the answers of others about a suspect */
    CLUSTER_ELECTION_MS = 500,    /* without a coordinator, before the second best claims */
    CLUSTER_SETTLE_MS = 1500,     /* after a node has come, before instances are moved for it */
    CLUSTER_WAIT_MS = 5000,       /* for n_nodes_min */
    CLUSTER_REPAIR_MS_MIN = 250,  /* back-off of an instance that fails again and again */
    CLUSTER_REPAIR_MS_MAX = 30000,
    CLUSTER_REBALANCE_PERCENT = 20, /* gain in predicted decode speed that is worth a move */
    CLUSTER_REBALANCE_MS = 10000,   /* between two moves of one instance that nothing forces */
};

/* ---- what a node says about itself ---- */

struct cluster_self { /* changes now and then */
    char name[64];
    struct node_figures figures;
    bool
        is_stopping; /* it leaves in order: nothing is placed there, what it leads is moved first */
};

enum instance_status {                    /* in the order of a life */
                       INSTANCE_WAITING,  /* placed; the leader has not begun */
                       INSTANCE_STARTING, /* runners are being started */
                       INSTANCE_LOADING,
                       INSTANCE_SERVING,
                       INSTANCE_FAILED, /* all its ranks are being stopped; placed anew */
                       INSTANCE_STOPPED,
                       INSTANCE_STATUS_COUNT,
};
const char *instance_status_name(enum instance_status status);

enum rank_status {
    RANK_STARTING,
    RANK_LISTENING,
    RANK_LOADING,
    RANK_READY,
    RANK_ENDED,
    RANK_STATUS_COUNT,
};
const char *rank_status_name(enum rank_status status);

/* What a rank has done since it was loaded, in sums: two readings tell what it does now. */
struct rank_work {
    uint64_t n_steps, n_tokens;
    uint64_t step_ns;    /* whole steps, of which: */
    uint64_t wait_ns;    /* communication, waiting for other ranks included */
    uint64_t prepare_ns; /* graphs and inputs */
    uint64_t sample_ns;
    uint64_t bytes_sent, n_operations; /* to other ranks */
};

/* What the head has done with requests, likewise in sums, but for the last four. */
struct head_work {
    uint64_t read_ms; /* the leader's clock when all of these figures were read */
    uint64_t n_prompt_tokens, n_cached_tokens, n_generated_tokens;
    uint64_t n_drafted, n_accepted;
    uint64_t n_preempted;
    uint32_t n_running, n_queued;
    uint32_t n_blocks, n_blocks_free;
};

struct rank_report {
    enum rank_status status;
    uint32_t stage;
    struct range layers;   /* of the model */
    struct range kv_heads; /* in its first layer; remainders rotate over the layers */
    uint64_t weight_bytes, kv_bytes;
    uint32_t pid;
    struct rank_work work;
};

struct instance_report { /* by its leader; its node is the reporter */
    struct node_id instance;
    uint64_t epoch;
    uint32_t number; /* counts on with each report of the leader: the greater is the newer */
    enum instance_status status;
    char error[ERROR_MESSAGE_BYTES]; /* why it failed, "" */
    uint64_t bad_ranks;              /* bit r: rank r ended by itself or could not start */
    bool is_node_unfit; /* the bad ranks' nodes cannot take part at all (no such file there): keep
                           them out of this model for a minute */
    uint32_t n_ctx, n_slots;
    uint64_t created_s; /* wall clock of the leader */
    struct head_work head;
    uint32_t n_ranks;
    struct rank_report rank[LIMIT_RANKS];
};

/* ---- events ---- */

enum cluster_event_type {
    CLUSTER_EVENT_TICK,
    CLUSTER_EVENT_SELF,      /* our figures; also when they change much */
    CLUSTER_EVENT_LINK_UP,   /* a link to node; events of one node's links alternate */
    CLUSTER_EVENT_LINK_DOWN, /* is_closed: the other process closed it or is not there any more */
    CLUSTER_EVENT_LINK_FIGURES, /* measured */
    CLUSTER_EVENT_MESSAGE,      /* from node */
    CLUSTER_EVENT_ORDER,        /* a person wants something; answered by exactly one ANSWER */
    CLUSTER_EVENT_REPORT,       /* of an instance that this node leads */
};

enum order_type {
    ORDER_LOAD,   /* model: all but stamp */
    ORDER_UNLOAD, /* model.id */
    ORDER_DRAIN,  /* node */
    ORDER_UNDRAIN,
    ORDER_REVOKE, /* node */
    ORDER_TYPE_COUNT,
};

struct cluster_order {
    enum order_type type;
    struct node_id node;
    struct desired_model model;
};

struct cluster_event {
    enum cluster_event_type type;
    struct node_id node;             /* LINK_*, MESSAGE: the other one */
    char name[64];                   /* LINK_UP */
    bool is_closed;                  /* LINK_DOWN */
    struct link_figures link;        /* LINK_FIGURES: of the way that tensors would take now */
    struct link_figures taken;       /* and of the one that runners here took to connect there
                                        last; path 0: none did; rtt_us UINT32_MAX: that way leads
                                        nowhere any more */
    const struct cluster_self *self; /* SELF */
    const void *data;                /* MESSAGE */
    size_t len;
    uint64_t order_id; /* ORDER: the caller's */
    const struct cluster_order *order;
    const struct instance_report *report; /* REPORT: the core sets its number */
};

/* ---- actions ---- */

enum cluster_action_type {
    CLUSTER_SEND,       /* data to node; may be lost */
    CLUSTER_DISCONNECT, /* close the link to node: it is revoked */
    CLUSTER_SAVE,       /* the state has changed and should outlive this process */
    CLUSTER_START,      /* lead this instance: start its ranks. An older epoch of it has been
                           stopped by CLUSTER_STOP before */
    CLUSTER_STOP,       /* stop the ranks of (instance, epoch) that this node leads; report STOPPED
                           when they are gone */
    CLUSTER_CHANGED,    /* members, state or reports have: look at them again */
    CLUSTER_ANSWER,     /* to order_id: error.code 0, or why not */
    CLUSTER_TRACE,      /* one line that says what was decided, and on what ground */
};

struct cluster_action {
    enum cluster_action_type type;
    struct node_id node;
    const void *data; /* SEND. Borrows: until the next step */
    size_t len;
    const struct placed_instance *instance; /* START. Borrows: until the next step */
    struct node_id instance_id;             /* STOP */
    uint64_t epoch;
    uint64_t order_id; /* ANSWER */
    struct error error;
    char trace[256];
    bool is_warning; /* TRACE */
};

struct cluster_actions {
    uint32_t n;
    const struct cluster_action *action; /* Borrows: until the next step */
};

/* ---- life and step ---- */

struct cluster; /* opaque */

struct cluster_options {
    struct node_id id;
    uint64_t incarnation; /* of this process: grows from start to start, e.g. wall clock in ms */
    uint64_t seed;        /* for ids of instances */
    struct cluster_self self;
    const void *saved; /* what CLUSTER_SAVE said last, from cluster_save; NULL: nothing */
    size_t saved_len;
    bool is_alone_expected; /* no peers are known and none searched for: claim at once */
    bool no_paging; /* a model that does not fit in memory waits for more of it, as coordinator */
};

/* Errors: E_NOMEM; E_PROTOCOL when saved is not a state (start without it, or refuse). */
int cluster_new(const struct cluster_options *o, uint64_t now_ms, struct cluster **ret_cluster,
                struct error *err);
void cluster_free(struct cluster *c);

/* Takes one event. now_ms never goes back; only differences count. A malformed message is an error,
 * changes nothing, and the link that brought it should be closed. Errors: E_PROTOCOL, E_NOMEM (the
 * event is lost, the state consistent). ret_actions is valid in either case. */
int cluster_step(struct cluster *c, const struct cluster_event *e, uint64_t now_ms,
                 struct cluster_actions *ret_actions, struct error *err);
/* The state for the disk. Errors: those of buf_append. */
int cluster_save(const struct cluster *c, struct buf *b);

/* ---- what it knows; pointers are valid until the next step ---- */

enum member_status {
    MEMBER_UP,
    MEMBER_SUSPECT,
    MEMBER_REMOTE, /* no link of ours, but others hear it */
    MEMBER_GONE,
    MEMBER_STATUS_COUNT,
};
const char *member_status_name(enum member_status status);

struct member {
    struct node_id id;
    uint64_t incarnation;
    struct cluster_self self;
    enum member_status status;
    uint64_t heard_ms;               /* when */
    struct link_figures link, taken; /* from us to it, as in the event */
    bool is_drained;
};

/* Other nodes, in the order of their ids; NULL past the end. Those gone for over a minute are
 * forgotten. */
const struct member *cluster_member_at(const struct cluster *c, uint32_t index);
const struct member *cluster_find_member(const struct cluster *c, const struct node_id *id);
const struct cluster_state *cluster_get_state(const struct cluster *c);
bool cluster_has_coordinator(const struct cluster *c);
bool cluster_is_coordinator(const struct cluster *c);
/* The newest report on an instance's present epoch, NULL when none has come. */
const struct instance_report *cluster_find_report(const struct cluster *c,
                                                  const struct node_id *instance);
bool cluster_is_revoked(const struct cluster *c, const struct node_id *id);
bool cluster_is_drained(const struct cluster *c, const struct node_id *id);
/* The request that a placement of this model would be solved from now, for `shoal plan`. Owns: the
 * caller frees ret_request->nodes and ->links with free(). node_ids: [n_nodes]. Errors: E_NOMEM. */
int cluster_plan_request(const struct cluster *c, const struct desired_model *m,
                         struct placement_request *ret_request,
                         struct node_id node_ids[LIMIT_PEERS + 1], struct error *err);

#endif
