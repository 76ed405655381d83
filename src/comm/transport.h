/*
 * What a back end gives to the operations of comm.c: a reliable, ordered stream of bytes to and
 * from each other rank, moved without blocking, and a way to sleep until something can move.
 * Frames, sums and deadlines are not its business.
 *
 * Thread: the comm's thread, except wake().
 */
#ifndef SHOAL_COMM_TRANSPORT_H
#define SHOAL_COMM_TRANSPORT_H

#include "comm/comm.h"

#include <sys/uio.h>

struct transport;

struct transport_ops {
    const char *name;
    /* Moves as many bytes as can go now; *ret_moved 0 means "try later". Errors: E_PEERLOST, E_IO.
     */
    int (*try_send)(struct transport *t, uint32_t peer, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err);
    int (*try_recv)(struct transport *t, uint32_t peer, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err);
    /* Whether what was sent to the peer needs no more calls from here to arrive. NULL: always; the
     * system sees to it. Errors: as try_send. */
    int (*flush)(struct transport *t, uint32_t peer, bool *ret_done, struct error *err);
    /* Sleeps until one of the peers (bit i: rank i) may give or take bytes, wake() was called, or
     * timeout_ms passed. May return early. */
    int (*wait)(struct transport *t, uint64_t receiving, uint64_t sending, int timeout_ms,
                struct error *err);
    /* Ends the wait that goes on, and all later ones. Any thread. */
    void (*wake)(struct transport *t);
    /* Lets go of all peers: they see that this rank is lost. May be called again. */
    void (*shutdown)(struct transport *t);
    void (*free)(struct transport *t);
};

struct transport {
    const struct transport_ops *ops;
};

/* Makes a comm on a transport. Takes: t, when it succeeds. spin_us is used where the options leave
 * the choice open; n_neighbours ranks (this one included) share the machine's cores. Errors:
 * E_NOMEM. */
int comm_new(struct transport *t, uint32_t rank, uint32_t size, uint32_t n_neighbours,
             const struct comm_options *options, uint32_t spin_us, struct comm **ret_comm,
             struct error *err);

/* ---- what back ends share ---- */

/* The peer is not there any more. Returns E_PEERLOST. */
int transport_lost(uint32_t peer, const char *why, struct error *err);
/* Copies as many bytes as both sides have room for, from the pieces or into them; returns how many.
 */
size_t iov_gather(uint8_t *to, size_t n_max, const struct iovec *iov, int n_iov);
size_t iov_scatter(const uint8_t *from, size_t n_max, const struct iovec *iov, int n_iov);

/* Cores of this machine. */
uint32_t comm_cores(void);

#endif
