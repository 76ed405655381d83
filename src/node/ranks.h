/*
 * Between ranks.c (ranks: orders of their leaders) and parked.c (runners without a rank).
 *
 * A runner whose rank has ended while its instance is still wanted here is parked: it has closed
 * all but its weights, and the next rank of this instance goes on in it. Nobody has to wait for
 * such memory, and nobody goes without it: parked runners end when another rank needs what they
 * hold, when no rank of their instance will come here, and after PARK_MS.
 */
#ifndef SHOAL_NODE_RANKS_H
#define SHOAL_NODE_RANKS_H

#include "node/internal.h"

enum { PARK_MS = 30000 };

struct hosted_rank {
    struct hosted_rank *next;
    struct node *node;
    struct rank_owner owner;
    bool is_orphan; /* the leader is gone: nobody wants to hear of it */
    bool is_stopping;
    bool is_releasing; /* its runner is asked to end what it does; what it still says is void */
    bool is_parked;    /* the rank has ended; its runner is free */
    bool is_ready;     /* has loaded */
    bool is_found;     /* its file: it may start */
    uint32_t rank, n_node_ranks;
    struct runner_process *process; /* NULL until it starts */
    struct message_load load;
    uint64_t parked_ms, parked_bytes; /* since when, and what its weights take */
};

/* ---- ranks.c ---- */
void rank_unlink(struct hosted_rank *h);
/* Ends its process, if it has one. */
void rank_stop(struct hosted_rank *h);

/* ---- parked.c ---- */
/* Whether a rank of this instance may come here, so that what is loaded is worth its memory: the
 * instance is wanted, and is to be placed again, or has been placed here. */
bool parked_is_worth(const struct hosted_rank *h);
/* Whether what a runner holds leaves room for ranks of other instances that are being loaded. */
bool parked_has_room(const struct hosted_rank *h);
/* Whether this parked runner must end before the rank h starts. */
bool parked_is_in_the_way(const struct hosted_rank *parked, const struct hosted_rank *h);
/* Gives h the process of the parked runner that has most of what it needs. False: there is none. */
bool parked_take(struct hosted_rank *h);

#endif
