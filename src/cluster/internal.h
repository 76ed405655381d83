/*
 * The cluster core's insides, shared by its files: cluster.c (life, step, actions), membership.c
 * (links, heartbeats), suspicion.c (who is silent, who is gone), election.c (claims, whom to
 * follow, merging), orders.c (people's orders), lead.c (instances that this node leads, reports),
 * place.c (requests to placement), repair.c (what the coordinator runs where), gain.c (moves that
 * nothing forces), and ways.c (connections over ways that have become worse than others).
 * docs/internals/cluster.md explains it in words.
 */
#ifndef SHOAL_CLUSTER_INTERNAL_H
#define SHOAL_CLUSTER_INTERNAL_H

#include "cluster/cluster.h"
#include "cluster/message.h"

enum {
    DISCONNECTS_MAX = 16,   /* in one step; the others in the next */
    HEARSAY_MS = 3000,      /* a coordinator heard of through others lives this long */
    HEARSAY_SLACK_MS = 250, /* heard this long after it was declared gone: it is there */
    ASK_MS = 250,           /* between questions about one suspect */
    ASKED_MAX = 32,         /* members asked about one suspect */
    FRESH_MS = 500,         /* heard this lately: there, whatever others think */
    WANT_MS = 100,          /* between two wishes for the same thing */
    GONE_FORGET_MS = 60000, /* members are forgotten after */
    PAUSE_MS = 1000,        /* between ticks: this process was stopped */
    PUSH_LINKS_MAX = 32,    /* members up to which everyone is told everyone's links */
    RECLAIM_MS = 500,       /* a greater dead claim is known: take a greater term */
    ADOPT_MS = 2000,        /* a leader waits so long for another coordinator to adopt */
    ORDER_RETRY_MS = 500,
    ORDER_MS_MAX = 10000,
    ORDERS_MAX = 64,           /* of this node's people, waiting for an answer */
    ANSWERS_MAX = 64,          /* remembered, for orders whose answer was lost */
    MERGE_MS = 500,            /* between sendings */
    PLACE_RETRY_MS = 1000,     /* after a placement failed */
    PLACE_RETRY_MS_MAX = 5000, /* when nothing has changed since */
    GAIN_WAIT_MS_MAX = 600000, /* between moves for gain, when they come one after the other */
    LEARN_MS = 500,            /* a new coordinator waits so long for who hears whom */
    NO_REPORT_MS = 15000,      /* a leader that never reports has failed */
    SERVED_MS = 30000,         /* long enough to call the last repair a success */
    UNFIT_MS = 60000,
    UNFIT_MAX = 16,
    UNFIT_FAILURES = 3, /* a node whose ranks failed so often is avoided */
    MEMORY_MS = 60000,  /* between two moves for memory */
    MEMORY_PERCENT_LOW = 5,
    BROKEN_MS = 1500, /* two nodes of an instance do not hear each other: it is moved */
    FREED_MS = 3000,  /* figures may still count a failed instance's memory as taken */
    REPORTS_MAX = 2 * LIMIT_INSTANCES,
    LED_MAX = 2 * LIMIT_INSTANCES,
};

static inline bool bit_get(const uint8_t *bits, uint32_t i)
{
    return (bits[i / 8] >> (i % 8) & 1) != 0;
}

static inline void bit_set(uint8_t *bits, uint32_t i, bool on)
{
    uint8_t bit = (uint8_t)(1u << (i % 8));
    bits[i / 8] = (uint8_t)(on ? bits[i / 8] | bit : bits[i / 8] & ~bit);
}

struct peer {
    struct member member;
    uint32_t slot;  /* 0 .. LIMIT_PEERS - 1, its own as long as it is known */
    bool is_linked; /* the mesh has a link */
    /* What it said last. */
    uint32_t heartbeat_number, self_number, links_number, links_number_said, self_number_said;
    struct claim claim;
    bool is_live, is_coordinator;
    uint32_t coordinator_age_ms;
    uint64_t reports_digest;
    uint32_t n_links;
    struct message_link *links; /* [n_links], in the order of ids; owned */
    /* How its heartbeats come. */
    uint64_t heartbeat_ms; /* the last one; 0: none to measure a gap from */
    float gap_mean_ms, gap_dev_ms;
    /* Suspicion. */
    uint64_t suspect_ms, gone_ms, ask_ms;
    uint64_t remote_ms; /* last heard by others */
    uint32_t ask_number;
    bool is_closed;                 /* its process closed the link, or is not there any more */
    bool is_asked;                  /* somebody was */
    uint8_t asked[LIMIT_PEERS / 8]; /* by slot: has not answered yet */
    uint64_t want_ms;               /* last wish to it */
};

struct order_wait { /* an order of this node's people, on its way */
    uint64_t order_id, number;
    uint64_t taken_ms, sent_ms;
    struct cluster_order *order; /* owned; NULL: this place is free */
};

struct answer_kept { /* by the coordinator */
    struct node_id origin;
    uint64_t origin_incarnation, number;
    struct error error;
};

struct led {
    struct node_id instance;
    uint64_t epoch;
    bool is_used, is_stopped; /* stopped ones are remembered: they are never started again */
    uint64_t orphan_ms;       /* since when the state has not had it; 0: it has */
    uint64_t digest;          /* of the placement */
};

struct report_kept {
    bool is_used;
    uint64_t taken_ms;
    struct instance_report report;
};

struct unfit {
    struct node_id node;
    uint32_t n_failures;
    uint64_t until_ms; /* 0: only counted */
    bool is_hard;      /* said by the leader: the node cannot; otherwise it seems so */
};

struct work { /* of the coordinator, for one desired model */
    bool is_used;
    char model_id[128];
    struct node_id instance_id; /* of its last instance; none: no instance yet */
    uint64_t wanted_ms;         /* since when it is wanted and not placed */
    uint64_t try_ms;            /* no attempt to place before */
    uint32_t backoff_ms, n_repairs;
    uint64_t failed_epoch; /* whose failure was counted */
    uint64_t failed_ms;
    uint64_t placed_ms, serving_ms; /* serving_ms 0: not yet in this epoch */
    uint64_t gain_ms;               /* when a better place was last looked for */
    uint64_t moved_ms;              /* last such move */
    uint32_t gain_wait_ms; /* not again before: doubles with each such move, until a member comes */
    uint64_t move_try_ms;  /* no attempt to move before */
    uint64_t memory_ms;
    uint64_t broken_ms;  /* since when two of its nodes do not hear each other, or have lost the way
                            that their ranks took; 0: neither */
    uint64_t renewed_ms; /* last time that this was mended by connecting again */
    uint64_t problem_ms;
    uint32_t inputs; /* of the last failed attempt */
    struct unfit unfit[UNFIT_MAX];
};

struct cluster {
    struct node_id id;
    uint64_t incarnation, seed, n_ids;
    struct cluster_self self;
    uint32_t self_number, links_number, heartbeat_number;
    bool is_links_dirty, is_self_dirty;
    struct message_link links_said[LIMIT_PEERS]; /* by slot */
    bool is_alone_expected, no_paging;
    uint64_t now_ms, start_ms, tick_ms, beat_ms;
    bool has_ticked;

    uint32_t n_peers;
    struct peer *peer[LIMIT_PEERS]; /* in the order of ids; owned */
    uint8_t slots[LIMIT_PEERS / 8];
    uint32_t ask_number;

    struct cluster_state *state, *incoming; /* owned */
    struct cluster_state
        *pending; /* entries that the coordinator's state lacks; NULL: none. Owned */
    uint64_t pending_ms, pending_sent_ms;
    bool is_coordinator;
    bool is_live;             /* the coordinator of state's claim is there */
    bool is_coordinator_lost; /* found gone or restarted by ourselves */
    bool is_after_loss;       /* there was a coordinator: the best survivor need not wait */
    uint64_t lost_ms;
    uint64_t coordinator_ms; /* last heard, by anybody */
    uint64_t no_coordinator_ms;
    uint64_t term_ms; /* since when this node coordinates */
    struct claim claim_max;
    uint64_t claim_max_ms; /* since when it is greater than ours */
    uint64_t want_state_ms, want_reports_ms;

    struct order_wait order[ORDERS_MAX];
    uint64_t order_number;
    struct answer_kept answer[ANSWERS_MAX];
    uint32_t answer_next;

    struct led led[LED_MAX];
    struct report_kept report[REPORTS_MAX];
    uint64_t reports_digest;

    struct work work[2 * LIMIT_INSTANCES];
    uint32_t inputs; /* counts changes of what placements depend on */
    uint64_t reconcile_ms;
    uint64_t rebalance_ms; /* when to look for better places; 0: not */

    /* of the present step */
    struct cluster_action *action;
    uint32_t n_actions, n_actions_max;
    struct buf arena;  /* bytes of the messages */
    size_t message_at; /* of the last one */
    bool is_changed, is_save_due, is_state_dirty, is_reconcile_due, is_lead_due;
};

/* ---- cluster.c: actions ---- */

/* Encoding of one message: `message_put_x(cluster_begin(c), ...); cluster_send(c, &to)` and more
 * cluster_send for the same bytes. A message for which there is no memory is one that was lost. */
struct buf *cluster_begin(struct cluster *c);
void cluster_send(struct cluster *c, const struct node_id *to);
/* To all linked peers. */
void cluster_send_all(struct cluster *c);
void cluster_trace(struct cluster *c, bool is_warning, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Never fails: room is kept. */
struct cluster_action *cluster_act(struct cluster *c, enum cluster_action_type type);
void cluster_answer(struct cluster *c, uint64_t order_id, const struct error *error);
/* Name or the first digits of the id. Returns text. */
const char *cluster_label(const struct cluster *c, const struct node_id *id, char text[64]);
struct node_id cluster_make_id(struct cluster *c);

/* What people ordered, or the term, has changed: said once per step, before the answer to them. */
void cluster_save_soon(struct cluster *c);

/* ---- membership.c ---- */

struct peer *peer_find(const struct cluster *c, const struct node_id *id);
/* Errors: E_NOMEM. */
int membership_link_up(struct cluster *c, const struct cluster_event *e, struct error *err);
void membership_link_down(struct cluster *c, const struct cluster_event *e);
void membership_link_figures(struct cluster *c, const struct cluster_event *e);
void membership_self(struct cluster *c, const struct cluster_self *self);
/* Anything from this process came. Returns false when it is of a process that is no more. */
bool membership_heard(struct cluster *c, struct peer *p, uint64_t incarnation);
void membership_on_heartbeat(struct cluster *c, struct peer *p, const struct message_heartbeat *m);
void membership_on_self(struct cluster *c, struct peer *p, uint32_t number,
                        const struct cluster_self *self);
int membership_on_links(struct cluster *c, struct peer *p, uint32_t number, uint32_t n,
                        const struct message_link *links, struct error *err);
void membership_on_want(struct cluster *c, struct peer *p, const struct message_want *m);
void membership_tick(struct cluster *c);
/* Members that the state revokes are disconnected. */
void membership_revoke(struct cluster *c);
void membership_free(struct cluster *c);
bool peer_is_there(const struct peer *p); /* not gone */
bool peer_is_up(const struct peer *p);    /* linked and not suspected */
/* What it says of its link to another one; NULL: it does not hear that one. */
const struct message_link *peer_find_link(const struct peer *p, const struct node_id *to);

/* What placements depend on, and what others are told, has changed. */
void membership_changed(struct cluster *c);

/* ---- suspicion.c ---- */

/* It is there. */
void suspicion_clear(struct cluster *c, struct peer *p, const char *why);
/* It is gone. */
void suspicion_confirm(struct cluster *c, struct peer *p, const char *why);
void suspicion_begin(struct cluster *c, struct peer *p, bool is_closed, const char *why);
void suspicion_on_ask(struct cluster *c, struct peer *p, const struct message_ask *m);
void suspicion_on_tell(struct cluster *c, struct peer *p, const struct message_tell *m);
/* Proof through others that it was heard at heard_ms. */
void suspicion_hearsay(struct cluster *c, struct peer *p, uint64_t heard_ms);
/* At each tick. */
void suspicion_watch(struct cluster *c, struct peer *p);
/* This node was stopped for a while: nobody else is to blame. */
void suspicion_forgive(struct cluster *c);

/* ---- election.c ---- */

void election_on_heartbeat(struct cluster *c, struct peer *p, const struct message_heartbeat *m);
int election_on_state(struct cluster *c, struct peer *p, bool is_live, uint32_t age_ms,
                      struct error *err); /* the state is c->incoming */
void election_on_merge(struct cluster *c, struct peer *p, uint32_t hops);
/* A member is gone, or its process is another one. */
void election_on_lost(struct cluster *c, const struct peer *p);
void election_tick(struct cluster *c);
/* The coordinator changes the state: a new version. */
void election_bump(struct cluster *c);
/* A model's entry becomes this one, if it is newer; an instance of what it was before is removed.
 * Returns whether the state has changed. */
bool election_merge_model(struct cluster *c, const struct desired_model *m, bool *ret_is_full);
/* A peer on the way to the coordinator, NULL when there is none. */
struct peer *election_route(const struct cluster *c);
uint32_t election_age_ms(const struct cluster *c);

/* ---- orders.c ---- */

void orders_take(struct cluster *c, uint64_t order_id, const struct cluster_order *o);
void orders_on_order(struct cluster *c, struct peer *from, struct message_order *m);
void orders_on_answer(struct cluster *c, struct message_order_answer *m);
void orders_tick(struct cluster *c);
void orders_free(struct cluster *c);

/* ---- lead.c ---- */

/* Starts and stops what this node leads, by the state. At the end of a step. */
void lead_follow(struct cluster *c);
/* A report of this node's own instance. */
int lead_report(struct cluster *c, const struct instance_report *r, struct error *err);
/* Returns whether it was news. */
bool reports_take(struct cluster *c, const struct instance_report *r);
const struct instance_report *reports_find(const struct cluster *c, const struct node_id *instance,
                                           uint64_t epoch);
/* The present instances are others, or a report has come. */
void reports_digest(struct cluster *c);
void reports_fill_want(const struct cluster *c, struct message_want *m);
void reports_answer_want(struct cluster *c, struct peer *p, const struct message_want *m);

/* ---- place.c ---- */

struct place { /* a placement request with what it borrows */
    struct placement_request request;
    struct placement_node *nodes; /* owned */
    struct link_figures *links;   /* owned */
    struct node_id id[LIMIT_PEERS + 1];
    uint64_t incarnation[LIMIT_PEERS + 1];
};

/* What a placement of m would be solved from. present: its instance, or NULL; work: whose unfit
 * nodes are excluded, or NULL; is_lenient: only those that certainly are. Errors: E_NOMEM. */
int place_init(struct place *p, const struct cluster *c, const struct desired_model *m,
               const struct placed_instance *present, const struct work *work, bool is_lenient,
               struct error *err);
void place_done(struct place *p);
uint32_t place_n_eligible(const struct place *p);
bool place_is_meshed(const struct place *p); /* all that are eligible have links to each other */

/* ---- repair.c ---- */

/* The coordinator looks at everything that should run. */
void repair_reconcile(struct cluster *c);
void repair_reset(struct cluster *c); /* a new term */
void repair_tick(struct cluster *c);
struct work *repair_find_work(struct cluster *c, const char *model_id);
bool repair_is_same(const struct placed_instance *a, const struct place *p,
                    const struct placement *b);
/* Puts a placement into the state: in the place of `present`, or (NULL) as a new instance. */
void repair_install(struct cluster *c, struct desired_model *m, struct work *w,
                    struct placed_instance *present, const struct place *p,
                    const struct placement *b, bool is_repair, const char *why);
/* The best placement now, without the nodes that have failed this model; if there is none, also
 * with those that only seem to be at fault. The caller ends p in any case. */
int repair_solve(struct cluster *c, const struct desired_model *m,
                 const struct placed_instance *present, const struct work *w, struct place *p,
                 struct placement *ret, struct error *err);

/* ---- gain.c ---- */

/* Moves that nothing forces, of one instance: not sooner after each other than this. */
uint32_t gain_wait_ms(const struct cluster *c, const struct work *w);
/* One has been made. */
void gain_note_move(struct cluster *c, struct work *w);
/* The present placement in the words of the request. Returns false when a node is not in it. */
bool gain_describe(const struct placed_instance *i, const struct place *p, struct placement *ret);
/* When it is time: moves instances that would be better off elsewhere. */
void gain_rebalance(struct cluster *c);
/* What instances could gain from has changed. */
void gain_reconsider(struct cluster *c);
/* Tensors would take another way now than they do: soon, whatever else has been looked at. */
void gain_on_way(struct cluster *c);
/* A member has come. */
void gain_on_join(struct cluster *c);

/* ---- ways.c ---- */

/* Whether connections that were made over one way would be made over another one now. */
bool ways_differ(const struct link_figures *now, const struct link_figures *taken);
/* Whether two ranks are connected over a way that leads nowhere any more, and there is another. */
bool ways_have_died(const struct cluster *c, const struct placed_instance *i, const struct work *w,
                    char why[160]);
/* Each places an instance again where it is, so that its ranks connect anew: in any case, or if
 * that makes it so much faster that a move would be worth it. */
void ways_renew(struct cluster *c, struct desired_model *m, struct work *w,
                struct placed_instance *i, const char *why);
void ways_improve(struct cluster *c, struct desired_model *m, struct work *w,
                  struct placed_instance *i);

#endif
