/*
 * Ranks talking to ranks: the data plane of one instance. Send, receive, broadcast, all-reduce (one
 * call, or started and finished with work in between), all-gather, abort, close, over
 * interchangeable transports (local, tcp, shm, mpi, ucx).
 *
 * Every rank calls the collectives of a group in the same order. Sums are taken in rank order from
 * the same values on every rank, so all ranks hold the same bits, whatever the transport and the
 * algorithm. A failure (peer lost, timeout, malformed frame, abort) is an error to the caller
 * within timeout_ms, never a hang; after it the comm is broken: every later call fails at once with
 * the same error. Arguments that cannot be meant (E_INVALID, E_LIMIT) break nothing.
 *
 * Waiting: spin for spin_us, then sleep in poll. Thread: one thread per comm, except comm_abort,
 * which any thread may call.
 */
#ifndef SHOAL_COMM_COMM_H
#define SHOAL_COMM_COMM_H

#include "base/element.h"
#include "base/error.h"
#include "base/limits.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct comm; /* one rank's place */

struct comm_options {
    enum comm_wire wire;
    uint32_t timeout_ms; /* 0: COMM_TIMEOUT_MS */
    uint32_t spin_us;    /* how long to spin before sleeping; 0: never; UINT32_MAX: the back end's
                            default */
    uint32_t connect_timeout_ms; /* tcp; 0: COMM_CONNECT_TIMEOUT_MS */
    bool no_shm; /* tcp; false: pairs on one host share memory where both can and will */
};

struct comm_stats {
    uint64_t bytes_sent, bytes_received;
    uint64_t n_operations;
    uint64_t wait_ns;     /* inside communication calls, all told */
    uint32_t n_shm_peers; /* ranks whose frames go through shared memory */
};

/* A set of consecutive ranks [first, first + n) that run collectives together: the ranks of a
 * stage, or all of them. */
struct comm_group {
    uint32_t first, n;
};

uint32_t comm_rank(const struct comm *c);
uint32_t comm_size(const struct comm *c);

/* Point to point, whole messages; sizes must match on both sides. Different (src, dst) pairs are
 * independent; messages of a pair arrive in order. send returns when the bytes are handed over (it
 * may have to wait for the peer to drain). Who waits, in whatever call, takes in what the others
 * send, up to LIMIT_COMM_INBOX_BYTES: ranks that send to each other, or round a ring, do not block
 * each other. Errors: E_TIMEOUT, E_PEERLOST, E_PROTOCOL, E_CANCELLED.
 */
int comm_send(struct comm *c, uint32_t dst, const void *data, size_t n, struct error *err);
int comm_recv(struct comm *c, uint32_t src, void *data, size_t n, struct error *err);
/* A message whose size the receiver does not know (step plans): at most max bytes. Pairs with
 * comm_send and comm_broadcast. timeout_ms 0: the comm's. */
int comm_recv_any(struct comm *c, uint32_t src, void *data, size_t max, size_t *ret_n,
                  uint32_t timeout_ms, struct error *err);
/* Whether a whole message of src has arrived, so that receiving it does not wait. Takes in what the
 * transport has of src, never waits. (A message for which there is no memory, or that is larger
 * than LIMIT_COMM_INBOX_BYTES, is ready when it begins to arrive.) Errors: as comm_recv. */
int comm_poll(struct comm *c, uint32_t src, bool *ret_ready, struct error *err);
/* x[n] in the comm's wire form; the receiver's x is what the sender's was, rounded. */
int comm_send_f32(struct comm *c, uint32_t dst, const float *x, size_t n, struct error *err);
int comm_recv_f32(struct comm *c, uint32_t src, float *x, size_t n, struct error *err);
/* root's bytes to all ranks of the group; non-roots receive with comm_recv or comm_recv_any from
 * root. Only root calls this. */
int comm_broadcast(struct comm *c, struct comm_group g, const void *data, size_t n,
                   struct error *err);

/* x[n] becomes the sum of all contributing ranks' x; on return all ranks of g hold the same bits.
 * mask has bit i set when rank g.first + i contributes and must be the same on all ranks; a rank
 * that does not contribute (an empty slice) sends no values and its x need not be cleared. */
int comm_all_reduce_f32(struct comm *c, struct comm_group g, uint64_t mask, float *x, size_t n,
                        struct error *err);
/* The same in two halves: start sends this rank's values as far as that goes without waiting (x may
 * not change until finish), finish waits and leaves the sum in x. Between them advance, as often as
 * wanted, moves what can move by then: more than the system's buffers hold, and the sums that
 * slices pass on. At most one is under way; between the halves every other operation of this comm
 * is E_INVALID. All ranks of g start it so, or all call it whole. */
int comm_all_reduce_f32_start(struct comm *c, struct comm_group g, uint64_t mask, float *x,
                              size_t n, struct error *err);
int comm_all_reduce_f32_advance(struct comm *c, struct error *err);
int comm_all_reduce_f32_finish(struct comm *c, struct error *err);
/* Whether work between the halves has something to hide: values of some pair of g travel over a
 * connection, by themselves. A collective, so that all ranks of g get the same answer. */
int comm_group_overlaps(struct comm *c, struct comm_group g, bool *ret_overlaps, struct error *err);
/* Every rank's n bytes, in rank order, into all[g.n * n]. */
int comm_all_gather(struct comm *c, struct comm_group g, const void *mine, size_t n, void *all,
                    struct error *err);

/* Makes every call that waits, here, return E_CANCELLED soon. Any thread. */
void comm_abort(struct comm *c);
void comm_get_stats(const struct comm *c, struct comm_stats *ret_stats);
/* Closes; peers that wait for this rank see E_PEERLOST. NULL is fine. */
void comm_close(struct comm *c);

/* ---- back ends ---- */

/* All ranks in this process, one thread each: the oracle for the others. Makes n comms at once;
 * each is closed by its owner, in any order. */
int comm_local_new(uint32_t n, const struct comm_options *options, struct comm **ret_comms,
                   struct error *err);

/* TCP between processes. First listen (port 0: any free one), then tell the others the address,
 * then connect: ranks of higher number connect to lower ones. Both sides prove that they hold the
 * 32-byte instance key (random; never sent, never logged): a stranger is refused and counted, and
 * the listener goes on waiting for the right one. A true rank whose 32-byte program hash (version,
 * model, split, wire type) differs ends the connecting of both with E_PROTOCOL: waiting would not
 * mend it. What follows is neither encrypted nor signed: keep the links in a network that you
 * trust. */
struct comm_tcp_listener;
int comm_tcp_listen(const char *host, uint16_t port, struct comm_tcp_listener **ret_listener,
                    uint16_t *ret_port, struct error *err);
void comm_tcp_listener_close(struct comm_tcp_listener *l);
/* Connections that were turned away so far: strangers, wrong keys, wrong ranks, silence. Thread:
 * any. */
uint64_t comm_tcp_listener_refused(const struct comm_tcp_listener *l);

struct comm_tcp_peer {
    char host[64]; /* numeric address */
    uint16_t port;
};
/* Connects rank to all others; peers[n_ranks] (its own entry is ignored). Takes nothing: the
 * listener may be closed after. Within COMM_CONNECT_TIMEOUT_MS. Errors: E_TIMEOUT (says which ranks
 * are missing), E_PEERLOST, E_PROTOCOL, E_INVALID. */
int comm_tcp_connect(struct comm_tcp_listener *l, uint32_t rank, uint32_t n_ranks,
                     const struct comm_tcp_peer *peers, const uint8_t key[32],
                     const uint8_t program_hash[32], const struct comm_options *options,
                     struct comm **ret_comm, struct error *err);

/* As comm_tcp_connect, and then the frames go over what UCX finds best (UCX_TLS and its other
 * variables choose). Errors: E_UNSUPPORTED (built without UCX) and those of comm_tcp_connect. */
int comm_ucx_connect(struct comm_tcp_listener *l, uint32_t rank, uint32_t n_ranks,
                     const struct comm_tcp_peer *peers, const uint8_t key[32],
                     const uint8_t program_hash[32], const struct comm_options *options,
                     struct comm **ret_comm, struct error *err);
bool comm_ucx_is_built(void);
/* Whether this build has the back end. Errors: E_UNSUPPORTED. */
int comm_check_transport(enum comm_transport transport, struct error *err);

/* Ranks that mpirun started. Starts MPI if nobody has; it ends with the process. Which MPI rank
 * this process is, of how many. Errors: E_UNSUPPORTED (built without MPI), E_IO. */
int comm_mpi_start(uint32_t *ret_rank, uint32_t *ret_n_ranks, struct error *err);
/* How many of them are on this host. All of them call this at the same time. */
int comm_mpi_count_host(uint32_t *ret_n_ranks, struct error *err);
/* Ends them all: the others may be waiting for this one. Returns when MPI was not started or has
 * ended. */
void comm_mpi_abort(int exit_code);
/* The first n_ranks of them call this at the same time, each becomes its MPI rank. Thread: the
 * comm's, while no other uses MPI. Errors: E_UNSUPPORTED, E_INVALID (not that many ranks were
 * started), E_PROTOCOL (other program), E_IO. */
int comm_mpi_open(uint32_t n_ranks, const uint8_t program_hash[32],
                  const struct comm_options *options, struct comm **ret_comm, struct error *err);
bool comm_mpi_is_built(void);

#endif
