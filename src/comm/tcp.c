/*
 * The back end over TCP: one connection for each pair of ranks, never blocking. Pairs on one host
 * that share memory (tcp_share.c) move their frames there; their connection then carries only bytes
 * that wake a sleeper, and its end tells that the other side is gone.
 */
#include "comm/tcp.h"

#include "base/clock.h"
#include "comm/internal.h"
#include "comm/shm.h"
#include "comm/transport.h"
#include "comm/wake.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long to spin on the sockets before sleeping: longer than the ranks of a group usually differ
 * within a layer. */
enum { SPIN_US = 1000 };
/* Calls between two looks at the connection of a pair that shares memory: some ten microseconds of
 * spinning, so that a peer's death is noticed without sleeping. */
enum { LOOK_EVERY = 256 };
/* Between two looks at paths on which a sleeper waits. */
enum { LOOK_AT_PATHS_MS = 500 };

struct tcp {
    struct transport base;
    uint32_t rank, n_ranks;
    struct wake wake;
    struct shm *shms[LIMIT_RANKS]; /* NULL: frames go over the connection */
    uint32_t n_looks[LIMIT_RANKS]; /* since the connection of a sharing pair was looked at */
    bool is_closed[LIMIT_RANKS];   /* its connection is: what is in the ring is the last */
    bool is_dead[LIMIT_RANKS];     /* the path of a connection that carries frames is */
    uint64_t paths_seen_ns;        /* when they were looked at */
    int fds[LIMIT_RANKS];          /* -1: our own place, or closed */
};

/* ---- moving bytes ---- */

static int check_moved(ssize_t n, uint32_t peer, size_t *ret_moved, struct error *err)
{
    *ret_moved = 0;
    if (n >= 0) {
        *ret_moved = (size_t)n;
        return 0;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR || errno == ENOBUFS)
        return 0;
    return transport_lost(peer, strerror(errno), err);
}

/* Takes the wake-ups from a sharing pair's connection, and sees whether it still stands. */
static void look_at_connection(struct tcp *tcp, uint32_t peer)
{
    char bytes[256];
    ssize_t n;
    tcp->n_looks[peer] = 0;
    do
        n = recv(tcp->fds[peer], bytes, sizeof(bytes), MSG_DONTWAIT);
    while (n == (ssize_t)sizeof(bytes));
    if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
        tcp->is_closed[peer] = true;
}

static void wake_peer(struct tcp *tcp, uint32_t peer)
{
    /* No room: then there is enough for it to read. */
    if (shm_take_sleeper(tcp->shms[peer]))
        (void)!send(tcp->fds[peer], "", 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static int shared_failed(int code, uint32_t peer, struct error *err)
{
    return error_wrap(err, code, "rank %u", peer);
}

static int send_shared(struct tcp *tcp, uint32_t peer, const struct iovec *iov, int n_iov,
                       size_t *ret_moved, struct error *err)
{
    int r = shm_write(tcp->shms[peer], iov, n_iov, ret_moved, err);
    if (r != 0)
        return shared_failed(r, peer, err);
    if (*ret_moved > 0)
        wake_peer(tcp, peer);
    if (++tcp->n_looks[peer] >= LOOK_EVERY)
        look_at_connection(tcp, peer);
    return tcp->is_closed[peer] ? transport_lost(peer, "it closed the connection", err) : 0;
}

static int recv_shared(struct tcp *tcp, uint32_t peer, const struct iovec *iov, int n_iov,
                       size_t *ret_moved, struct error *err)
{
    int r = shm_read(tcp->shms[peer], iov, n_iov, ret_moved, err);
    if (r != 0)
        return shared_failed(r, peer, err);
    if (*ret_moved > 0) {
        wake_peer(tcp, peer);
        return 0;
    }
    /* What was written before the connection closed is still read. */
    if (tcp->is_closed[peer])
        return shm_is_readable(tcp->shms[peer])
                   ? 0
                   : transport_lost(peer, "it closed the connection", err);
    if (++tcp->n_looks[peer] >= LOOK_EVERY)
        look_at_connection(tcp, peer);
    return 0;
}

static int dead_path(uint32_t peer, struct error *err)
{
    return transport_lost(peer, "its computer acknowledges nothing any more", err);
}

static int try_send(struct transport *t, uint32_t peer, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct tcp *tcp = (struct tcp *)t;
    if (tcp->shms[peer] != NULL)
        return send_shared(tcp, peer, iov, n_iov, ret_moved, err);
    if (tcp->is_dead[peer])
        return dead_path(peer, err);
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n_iov};
    return check_moved(sendmsg(tcp->fds[peer], &m, MSG_NOSIGNAL | MSG_DONTWAIT), peer, ret_moved,
                       err);
}

static int try_recv(struct transport *t, uint32_t peer, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct tcp *tcp = (struct tcp *)t;
    if (tcp->shms[peer] != NULL)
        return recv_shared(tcp, peer, iov, n_iov, ret_moved, err);
    struct msghdr m = {.msg_iov = (struct iovec *)(uintptr_t)iov, .msg_iovlen = (size_t)n_iov};
    ssize_t n = recvmsg(tcp->fds[peer], &m, MSG_DONTWAIT);
    if (n == 0)
        return transport_lost(peer, "it closed the connection", err);
    int r = check_moved(n, peer, ret_moved, err);
    return r == 0 && *ret_moved == 0 && tcp->is_dead[peer] ? dead_path(peer, err) : r;
}

static bool may_move_shared(const struct tcp *tcp, uint32_t peer, bool receiving, bool sending)
{
    return tcp->is_closed[peer] || (receiving && shm_is_readable(tcp->shms[peer])) ||
           (sending && shm_is_writable(tcp->shms[peer]));
}

/* Says to all who share memory with us that they have to wake us, or that they need not. Returns
 * whether something has moved there already. */
static bool set_asleep(struct tcp *tcp, uint64_t receiving, uint64_t sending, bool asleep)
{
    bool moved = false;
    for (uint64_t peers = receiving | sending; peers != 0; peers &= peers - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(peers);
        if (tcp->shms[peer] == NULL)
            continue;
        shm_set_asleep(tcp->shms[peer], asleep);
        moved |= may_move_shared(tcp, peer, receiving >> peer & 1, sending >> peer & 1);
    }
    return moved;
}

/* Connections over which bytes no longer arrive. Only its own peer's operations fail by that. */
static void look_at_paths(struct tcp *tcp, uint64_t peers)
{
    uint64_t now = clock_now_ns();
    if (now - tcp->paths_seen_ns < LOOK_AT_PATHS_MS * UINT64_C(1000000))
        return;
    tcp->paths_seen_ns = now;
    for (; peers != 0; peers &= peers - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(peers);
        tcp->is_dead[peer] |= tcp->shms[peer] == NULL && tcp_path_is_dead(tcp->fds[peer]);
    }
}

static int sleep_until(struct transport *t, uint64_t receiving, uint64_t sending, int timeout_ms,
                       struct error *err)
{
    struct tcp *tcp = (struct tcp *)t;
    struct pollfd fds[LIMIT_RANKS + 1];
    uint32_t ranks[LIMIT_RANKS];
    nfds_t n = 0;
    int r = 0;
    bool has_paths = false;
    for (uint64_t peers = receiving | sending; peers != 0; peers &= peers - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(peers);
        has_paths |= tcp->shms[peer] == NULL;
        ranks[n] = peer;
        fds[n].fd = tcp->fds[peer];
        fds[n].revents = 0;
        fds[n++].events = tcp->shms[peer] != NULL ? POLLIN
                                                  : (short)((receiving >> peer & 1 ? POLLIN : 0) |
                                                            (sending >> peer & 1 ? POLLOUT : 0));
    }
    fds[n].fd = tcp->wake.fd;
    fds[n].events = POLLIN;
    if (has_paths && timeout_ms > LOOK_AT_PATHS_MS)
        timeout_ms = LOOK_AT_PATHS_MS;
    if (!set_asleep(tcp, receiving, sending, true) && poll(fds, n + 1, timeout_ms) < 0) {
        if (errno != EINTR)
            r = error_set(err, E_IO, "poll: %s", strerror(errno));
        n = 0;
    }
    set_asleep(tcp, receiving, sending, false);
    for (nfds_t i = 0; i < n; i++)
        if (fds[i].revents != 0 && tcp->shms[ranks[i]] != NULL)
            look_at_connection(tcp, ranks[i]);
    if (has_paths)
        look_at_paths(tcp, receiving | sending);
    return r;
}

static void wake(struct transport *t)
{
    wake_signal(&((struct tcp *)t)->wake);
}

static void close_all(struct transport *t)
{
    struct tcp *tcp = (struct tcp *)t;
    for (uint32_t i = 0; i < tcp->n_ranks; i++) {
        if (tcp->fds[i] >= 0)
            close(tcp->fds[i]);
        tcp->fds[i] = -1;
        shm_close(tcp->shms[i]);
        tcp->shms[i] = NULL;
    }
}

static void free_tcp(struct transport *t)
{
    struct tcp *tcp = (struct tcp *)t;
    close_all(t);
    wake_done(&tcp->wake);
    free(tcp);
}

static const struct transport_ops tcp_ops = {
    .name = "tcp",
    .try_send = try_send,
    .try_recv = try_recv,
    .wait = sleep_until,
    .wake = wake,
    .shutdown = close_all,
    .free = free_tcp,
};

/* ---- making one ---- */

int comm_tcp_listen(const char *host, uint16_t port, struct comm_tcp_listener **ret_listener,
                    uint16_t *ret_port, struct error *err)
{
    struct sockaddr_storage a;
    socklen_t len;
    int r = tcp_address_parse(host, port, &a, &len, err);
    if (r != 0)
        return r;
    struct comm_tcp_listener *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return error_set(err, E_NOMEM, "no memory for a listener");
    l->fd = socket(a.ss_family, SOCK_STREAM, 0);
    const int yes = 1;
    if (l->fd >= 0)
        setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes));
    if (l->fd < 0 || tcp_set_nonblocking(l->fd) != 0 ||
        bind(l->fd, (struct sockaddr *)&a, len) != 0 || listen(l->fd, LIMIT_HANDSHAKES) != 0 ||
        getsockname(l->fd, (struct sockaddr *)&a, &len) != 0) {
        r = error_set(err, E_IO, "cannot listen on %s port %u: %s", host, port, strerror(errno));
        comm_tcp_listener_close(l);
        return r;
    }
    *ret_listener = l;
    *ret_port = ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)(void *)&a)->sin6_port
                                              : ((struct sockaddr_in *)(void *)&a)->sin_port);
    return 0;
}

void comm_tcp_listener_close(struct comm_tcp_listener *l)
{
    if (l == NULL)
        return;
    if (l->fd >= 0)
        close(l->fd);
    free(l);
}

uint64_t comm_tcp_listener_refused(const struct comm_tcp_listener *l)
{
    return atomic_load_explicit(&l->n_refused, memory_order_relaxed);
}

/* Ranks on this machine. */
static uint32_t count_neighbours(const struct tcp *tcp)
{
    uint32_t n = 1;
    for (uint32_t i = 0; i < tcp->n_ranks; i++)
        n += tcp_is_neighbour(tcp->fds[i]);
    return n;
}

static uint64_t who_shares(const struct tcp *tcp)
{
    uint64_t ranks = 0;
    for (uint32_t i = 0; i < tcp->n_ranks; i++)
        ranks |= (uint64_t)(tcp->shms[i] != NULL) << i;
    return ranks;
}

int comm_tcp_connect(struct comm_tcp_listener *l, uint32_t rank, uint32_t n_ranks,
                     const struct comm_tcp_peer *peers, const uint8_t key[32],
                     const uint8_t program_hash[32], const struct comm_options *options,
                     struct comm **ret_comm, struct error *err)
{
    if (n_ranks < 1 || n_ranks > LIMIT_RANKS || rank >= n_ranks)
        return error_set(err, E_INVALID, "rank %u of %u: there are 1 to %d ranks", rank, n_ranks,
                         LIMIT_RANKS);
    struct tcp *tcp = calloc(1, sizeof(*tcp));
    if (tcp == NULL)
        return error_set(err, E_NOMEM, "no memory for %u connections", n_ranks);
    tcp->base.ops = &tcp_ops;
    tcp->rank = rank;
    tcp->n_ranks = n_ranks;
    for (uint32_t i = 0; i < n_ranks; i++)
        tcp->fds[i] = -1;
    int r = wake_init(&tcp->wake, err);
    if (r != 0) {
        free(tcp);
        return r;
    }
    struct tcp_identity me = {rank, n_ranks, key, program_hash};
    uint32_t timeout_ms = options != NULL && options->connect_timeout_ms != 0
                              ? options->connect_timeout_ms
                              : COMM_CONNECT_TIMEOUT_MS;
    bool willing = options == NULL || !options->no_shm;
    r = tcp_gather(l, &me, peers, timeout_ms, tcp->fds, err);
    uint32_t n_neighbours = r == 0 ? count_neighbours(tcp) : 0;
    if (r == 0)
        r = tcp_share(&me, tcp->fds, n_neighbours, willing, timeout_ms, tcp->shms, err);
    if (r == 0)
        r = comm_new(&tcp->base, rank, n_ranks, n_neighbours, options, SPIN_US, ret_comm, err);
    if (r == 0) {
        (*ret_comm)->sharing = who_shares(tcp);
        (*ret_comm)->stats.n_shm_peers = (uint32_t)__builtin_popcountll((*ret_comm)->sharing);
    }
    if (r != 0)
        free_tcp(&tcp->base);
    return r;
}
