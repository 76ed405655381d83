/* Between tcp.c (sockets that are connected) and tcp_gather.c (how they come to be). */
#ifndef SHOAL_COMM_TCP_H
#define SHOAL_COMM_TCP_H

#include "comm/comm.h"

#include <sys/socket.h>

/* An accepted connection that has not shown who it is after this long is a stranger. */
enum { HANDSHAKE_TIMEOUT_MS = 3000 };
/* Accepted connections that have yet to show who they are; the oldest makes room for a new one. A
 * true rank needs milliseconds. */
enum { LIMIT_HANDSHAKES = 64 };
/* Between two attempts to connect to a rank that is not there yet. */
enum { CONNECT_RETRY_MS = 50 };

struct comm_tcp_listener {
    int fd;
    _Atomic uint64_t n_refused;
};

/* Room for "[address]:port". */
enum { ADDRESS_TEXT_BYTES = 80 };
void tcp_address_text(const struct sockaddr_storage *a, char out[ADDRESS_TEXT_BYTES]);
/* Errors: E_INVALID. */
int tcp_address_parse(const char *host, uint16_t port, struct sockaddr_storage *ret_address,
                      socklen_t *ret_len, struct error *err);
/* Big buffers, no delay, and a system that finds out when a quiet peer is out of reach. */
void tcp_tune(int fd);
/* Whether bytes that were sent no longer arrive: sent again and again, they were not acknowledged
 * for about 3 s. A peer's system acknowledges while the peer computes, is stopped, or reads
 * nothing, so this is about the path and the other computer. False where the system does not tell.
 */
bool tcp_path_is_dead(int fd);
int tcp_set_nonblocking(int fd);

/* What one rank shows and expects. */
struct tcp_identity {
    uint32_t rank, n_ranks;
    const uint8_t *key;          /* [32] */
    const uint8_t *program_hash; /* [32] */
};

/* Connects to all lower ranks and accepts all higher ones; fds[n_ranks] get the connected sockets,
 * -1 in our own place. On failure none is left open. Errors: E_TIMEOUT (says who is missing),
 * E_PROTOCOL, E_INVALID, E_NOMEM, E_IO. */
int tcp_gather(struct comm_tcp_listener *l, const struct tcp_identity *me,
               const struct comm_tcp_peer *peers, uint32_t timeout_ms, int *fds, struct error *err);

/* Whether the other end is on this host, as far as the addresses tell. */
bool tcp_is_neighbour(int fd);

/* Reads exactly n bytes of a connected rank. Errors: E_TIMEOUT, E_PEERLOST. */
int tcp_hear(int fd, uint32_t rank, void *to, size_t n, uint64_t deadline_ns, struct error *err);

struct shm;
/* After tcp_gather: agrees with each neighbour on memory to share; ret_shms[n_ranks] (NULL before)
 * get it, NULL for none. Every rank calls it, willing or not. Errors: E_TIMEOUT, E_PEERLOST,
 * E_PROTOCOL. */
int tcp_share(const struct tcp_identity *me, const int *fds, uint32_t n_neighbours, bool willing,
              uint32_t timeout_ms, struct shm **ret_shms, struct error *err);

#endif
