/*
 * What cluster cores say to each other: the bytes of CLUSTER_SEND and CLUSTER_EVENT_MESSAGE. The
 * mesh carries them without looking inside. Each begins with a version, a type and the incarnation
 * of the sender's process; integers are little-endian.
 *
 *   HEARTBEAT     each 250 ms to each linked peer: what the sender follows, how lately the
 *                 coordinator was heard of, and numbers that show which of its words are the newest
 *   SELF          name and figures, when they change
 *   LINKS         whom the sender hears, how well, and over which way, when that changes
 *   REPORT        how an instance is; passed on by anybody who has a newer one
 *   STATE         the whole state of the cluster, when it changes or is wanted
 *   MERGE         to a coordinator: entries that its state lacks, until its state shows them
 *   ASK, TELL     when did you last hear this suspect
 *   ORDER, ORDER_ANSWER  an order of a person, to the coordinator and back
 *   WANT          please send what I lack
 *
 * Everything is checked while it is read: a message with a field out of range, bytes missing or
 * left over is E_PROTOCOL. Thread: pure functions.
 */
#ifndef SHOAL_CLUSTER_MESSAGE_H
#define SHOAL_CLUSTER_MESSAGE_H

#include "cluster/cluster.h"

enum {
    CLUSTER_MESSAGE_VERSION = 3,
    CLUSTER_MESSAGE_BYTES_MAX = 1 << 20, /* the largest is a STATE, under 550 KB */
    CLUSTER_HOPS_MAX = 4,                /* of an order or a merge on its way to the coordinator */
};

enum cluster_message_type {
    CLUSTER_HEARTBEAT = 1,
    CLUSTER_SELF,
    CLUSTER_LINKS,
    CLUSTER_REPORT,
    CLUSTER_STATE,
    CLUSTER_MERGE,
    CLUSTER_ASK,
    CLUSTER_TELL,
    CLUSTER_ORDER,
    CLUSTER_ORDER_ANSWER,
    CLUSTER_WANT,
    CLUSTER_MESSAGE_END,
};

struct message_head {
    enum cluster_message_type type;
    uint64_t incarnation; /* of the sender; never 0 */
};

struct message_heartbeat {
    uint32_t number; /* counts on: an older one that comes late is nothing */
    struct claim claim;
    bool is_live;        /* the sender believes that the coordinator of this claim is there */
    bool is_coordinator; /* and is it itself */
    bool is_stopping;
    uint32_t coordinator_age_ms; /* since the coordinator was heard, by anybody in between */
    struct claim claim_max;      /* the greatest it has ever heard of */
    uint32_t self_number, links_number;
    uint64_t reports_digest; /* of the reports on the instances of this claim's state */
    uint64_t memory_bytes_free;
    enum thermal_state thermal;
};

struct message_link {
    struct node_id node;
    struct link_figures figures, taken; /* as in CLUSTER_EVENT_LINK_FIGURES */
};

struct message_ask {
    uint32_t number;
    struct node_id suspect;
};

struct message_tell {
    uint32_t number; /* of the question */
    struct node_id suspect;
    uint64_t incarnation; /* of the suspect, as the sender knows it */
    bool is_heard;        /* it has a link to it and does not suspect it */
    uint32_t silent_ms;
};

struct message_order {
    struct node_id origin; /* who took it */
    uint64_t origin_incarnation, number;
    uint32_t hops;
    struct cluster_order order;
};

struct message_order_answer {
    struct node_id origin;
    uint64_t origin_incarnation, number;
    uint32_t hops;
    int32_t code; /* 0 or a negative code */
    char message[ERROR_MESSAGE_BYTES];
};

enum { WANT_SELF = 1, WANT_LINKS = 2, WANT_STATE = 4, WANT_REPORTS = 8, WANT_ALL = 15 };
enum { WANT_REPORTS_MAX = 2 * LIMIT_INSTANCES };

struct message_want {
    uint32_t what; /* bits */
    uint32_t n_reports;
    struct { /* what the sender has of them */
        struct node_id instance;
        uint64_t epoch;
        uint32_t number;
    } report[WANT_REPORTS_MAX];
};

/* Each appends one whole message. Errors: those of buf_append. */
int message_put_heartbeat(struct buf *b, uint64_t incarnation, const struct message_heartbeat *m);
int message_put_self(struct buf *b, uint64_t incarnation, uint32_t number,
                     const struct cluster_self *self);
int message_put_links(struct buf *b, uint64_t incarnation, uint32_t number, uint32_t n,
                      const struct message_link *links);
int message_put_report(struct buf *b, uint64_t incarnation, const struct instance_report *r);
int message_put_state(struct buf *b, uint64_t incarnation, bool is_live, uint32_t age_ms,
                      const struct cluster_state *s);
int message_put_merge(struct buf *b, uint64_t incarnation, uint32_t hops,
                      const struct cluster_state *s);
int message_put_ask(struct buf *b, uint64_t incarnation, const struct message_ask *m);
int message_put_tell(struct buf *b, uint64_t incarnation, const struct message_tell *m);
int message_put_order(struct buf *b, uint64_t incarnation, const struct message_order *m);
int message_put_order_answer(struct buf *b, uint64_t incarnation,
                             const struct message_order_answer *m);
int message_put_want(struct buf *b, uint64_t incarnation, const struct message_want *m);

/* Reads the head; the cursor then stands at the rest, which the function of its type reads to the
 * end. Errors of all: E_PROTOCOL (names the field). */
int message_get_head(struct cursor *c, struct message_head *ret, struct error *err);
int message_get_heartbeat(struct cursor *c, struct message_heartbeat *ret, struct error *err);
int message_get_self(struct cursor *c, uint32_t *ret_number, struct cluster_self *ret,
                     struct error *err);
/* links: room for LIMIT_PEERS; they come in the order of their ids. */
int message_get_links(struct cursor *c, uint32_t *ret_number, uint32_t *ret_n,
                      struct message_link *links, struct error *err);
int message_get_report(struct cursor *c, struct instance_report *ret, struct error *err);
int message_get_state(struct cursor *c, bool *ret_is_live, uint32_t *ret_age_ms,
                      struct cluster_state *ret, struct error *err);
int message_get_merge(struct cursor *c, uint32_t *ret_hops, struct cluster_state *ret,
                      struct error *err);
int message_get_ask(struct cursor *c, struct message_ask *ret, struct error *err);
int message_get_tell(struct cursor *c, struct message_tell *ret, struct error *err);
int message_get_order(struct cursor *c, struct message_order *ret, struct error *err);
int message_get_order_answer(struct cursor *c, struct message_order_answer *ret, struct error *err);
int message_get_want(struct cursor *c, struct message_want *ret, struct error *err);

/* What cluster_step refuses in an order of its own caller as well. Errors: E_INVALID. */
int cluster_order_check(const struct cluster_order *o, struct error *err);
/* Errors: E_INVALID. */
int instance_report_check(const struct instance_report *r, struct error *err);

#endif
