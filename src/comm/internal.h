/*
 * One rank's place, seen from inside src/comm: the transfers that are under way to and from each
 * other rank, and the loop that moves them (progress.c) for the operations (comm.c, reduce.c).
 *
 * An operation queues its transfers, then calls comm_drive(), which sends and receives in one loop
 * without blocking on either: no order of full socket buffers can stop it.
 */
#ifndef SHOAL_COMM_INTERNAL_H
#define SHOAL_COMM_INTERNAL_H

#include "comm/comm.h"
#include "comm/transport.h"
#include "comm/wire.h"

#include <stdatomic.h>

/* One frame, one way. */
struct transfer {
    uint8_t header[FRAME_HEADER_BYTES];
    uint8_t *data; /* sent from, or received into */
    size_t n;      /* payload bytes; of a receive of any size: at most */
    size_t ready;  /* sending: payload bytes that may leave by now */
    size_t done;   /* bytes moved, header and payload */
    uint32_t kind;
    bool any_size; /* receiving: the header decides n */
};

/* An operation needs at most two frames each way to a peer. */
enum { LANE_TRANSFERS = 2 };

struct lane {
    struct transfer transfers[LANE_TRANSFERS];
    uint32_t n;    /* queued in this operation */
    uint32_t head; /* the one under way; n: all are done */
    uint32_t sequence;
};

/* A frame that arrived, wholly or in part, before anybody asked for it. */
struct parcel {
    struct parcel *next;
    uint8_t header[FRAME_HEADER_BYTES];
    size_t n, done; /* payload bytes: all, and here so far */
    uint8_t data[];
};

/* What came from a peer unasked, in order. Only the last frame may be incomplete. */
struct inbox {
    struct parcel *first, *last;
    uint8_t header[FRAME_HEADER_BYTES]; /* of the frame after the last, as far as it is here */
    size_t header_done;
    bool closed; /* nothing more is taken in: an operation that wants this peer will see why */
};

struct link {
    struct lane out, in;
    struct inbox inbox;
    uint64_t progress_ns; /* when a byte last moved, either way */
    uint64_t heard_ns;    /* when one last came from the peer */
};

/* The all-reduce under way. This rank sums the elements [first, first + count) of x. */
struct reduce {
    bool active;
    bool slices; /* each rank sums its slice and passes it on; otherwise each sums all */
    struct comm_group group;
    float *x;
    size_t n;     /* elements of x */
    uint8_t *own; /* x as it travels: x itself in form F32 */
    size_t first, count;
    size_t n_summed;
    uint32_t n_parts;
    struct {
        const uint8_t *data; /* [count], as they travel */
        uint32_t rank;
    } parts[LIMIT_RANKS]; /* of the contributing ranks, in rank order */
    /* Forms other than F32: sums of others arrive in `own` and are decoded from there. */
    uint32_t n_sums;
    struct {
        uint32_t rank;
        size_t first, count, n_decoded;
    } sums[LIMIT_RANKS];
};

struct scratch {
    uint8_t *data;
    size_t bytes;
};

struct comm {
    struct transport *transport;
    uint32_t rank, size;
    enum comm_wire wire;
    uint64_t sharing; /* ranks that this one shares memory with, and they with it */
    uint64_t timeout_ns, spin_ns;
    uint64_t yield_after_ns;     /* into spinning: from then on offer the core at each turn */
    uint64_t long_yield_ns;      /* when a yield last gave the core away for long */
    uint64_t contended_until_ns; /* others want our core: sleep rather than yield */
    atomic_bool aborted;
    struct error cause;          /* code != 0: broken, and why */
    uint64_t sending, receiving; /* ranks with transfers under way */
    struct reduce reduce;
    struct scratch parts;                /* of others, to be summed */
    struct scratch encoded;              /* what leaves or arrives in another form than F32 */
    size_t inbox_bytes, inbox_bytes_max; /* of all parcels */
    struct comm_stats stats;
    struct link links[]; /* [size] */
};

/* ---- comm.c: what each operation begins with ---- */

/* Errors: the cause when the comm is broken, E_CANCELLED, E_INVALID while an all-reduce is under
 * way. */
int comm_begin(struct comm *c, const char *operation, struct error *err);
/* Errors: E_INVALID, E_LIMIT; the comm is not broken by them. */
int comm_check_peer(const struct comm *c, const char *operation, uint32_t peer, size_t n,
                    struct error *err);
int comm_check_group(const struct comm *c, const char *operation, struct comm_group g, size_t n,
                     struct error *err);

/* Errors: E_NOMEM. */
int scratch_reserve(struct scratch *s, size_t bytes, struct error *err);

/* ---- inbox.c: what arrives before it is asked for ---- */

/* Takes in what the transport has of the peer, as far as there is room. Errors: E_PEERLOST, E_IO,
 * E_PROTOCOL; the inbox is closed then, what is in it stays. */
int inbox_fill(struct comm *c, uint32_t peer, bool *ret_moved, struct error *err);
/* The same for all peers that no receive waits for. Their failures wait until they matter. */
void inbox_fill_others(struct comm *c, uint64_t now_ns, bool *ret_moved);
/* Peers that inbox_fill_others() looks at, and whose bytes there is room for. */
uint64_t inbox_open_peers(const struct comm *c);
/* False: a header is here, and its payload has to wait until there is room or a receive asks. */
bool inbox_has_room(const struct comm *c, uint32_t peer);
/* Whether the oldest frame waits so. */
bool inbox_is_stuck(const struct comm *c, uint32_t peer);
bool inbox_is_empty(const struct comm *c, uint32_t peer);
/* Whether the oldest frame is wholly here. */
bool inbox_has_whole(const struct comm *c, uint32_t peer);
/* Gives the oldest frame, as far as it is here, to a receive that has nothing yet. The header is
 * not checked. */
void inbox_give_header(struct comm *c, uint32_t peer, struct transfer *t);
/* After the header was found to be right. */
void inbox_give_payload(struct comm *c, uint32_t peer, struct transfer *t);
void inbox_done(struct comm *c);

/* ---- progress.c ---- */

/* Queues a frame to or from a rank. */
void comm_queue_out(struct comm *c, uint32_t peer, uint32_t kind, const void *data, size_t n,
                    size_t ready);
void comm_queue_in(struct comm *c, uint32_t peer, uint32_t kind, void *data, size_t n,
                   bool any_size);
/* Payload bytes of the lane's i-th transfer that are through. */
size_t lane_payload_done(const struct lane *lane, uint32_t i);
/* One pass over all transfers. Errors: as comm_send; the comm is not yet broken. */
int comm_progress(struct comm *c, uint64_t now_ns, bool *ret_moved, struct error *err);
/* Moves everything that is queued. On failure the comm is broken. */
int comm_drive(struct comm *c, const char *operation, uint64_t timeout_ns, struct error *err);
/* Keeps the cause, lets go of the peers so that they notice at once, and returns code. */
int comm_break(struct comm *c, const char *operation, int code, const struct error *cause,
               struct error *err);

/* ---- reduce.c ---- */

/* Sums what has arrived. Returns whether anything was summed. */
bool reduce_advance(struct comm *c);
bool reduce_done(const struct comm *c);

/* ---- sum.c ---- */

/* to[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ... for i in [from, end). n_parts >= 1. In
 * form F32 to may be one of the parts; in others from is a multiple of FORM_BLOCK. */
void sum_parts(enum comm_wire form, float *to, const uint8_t *const *parts, uint32_t n_parts,
               size_t from, size_t end);

#endif
