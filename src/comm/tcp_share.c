/*
 * Ranks that are connected agree on memory to share. Rank of higher number: offer, then the other's
 * answer, over the connection that both have just proved to be each other's. Whoever cannot or will
 * not share says so, and the pair's frames go over the connection.
 *
 * Only ranks whose connection has the same address at both ends try: network namespaces of one host
 * are different hosts, whose link is what somebody made it.
 */
#include "comm/tcp.h"

#include "base/clock.h"
#include "base/log.h"
#include "comm/shm.h"
#include "comm/transport.h"
#include "comm/wire.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

_Static_assert((int)OFFER_NAME_BYTES == (int)SHM_NAME_BYTES, "the offer names the memory");

/* Of all pairs of a host together. */
enum { RINGS_BYTES_MAX = 64 << 20 };

struct share {
    const struct tcp_identity *me;
    const int *fds;
    uint64_t deadline_ns;
};

static size_t choose_ring_bytes(uint32_t n_neighbours)
{
    size_t bytes = SHM_RING_BYTES_MAX, n_rings = (size_t)n_neighbours * (n_neighbours - 1);
    while (bytes > SHM_RING_BYTES_MIN && bytes * n_rings > RINGS_BYTES_MAX)
        bytes /= 2;
    return bytes;
}

/* The first bytes of a connection, or eight bytes on one that carried more before: they fit. */
static int say(const struct share *s, uint32_t peer, const void *data, size_t n, struct error *err)
{
    ssize_t sent = send(s->fds[peer], data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent == (ssize_t)n)
        return 0;
    return transport_lost(peer, sent < 0 ? strerror(errno) : "it takes no bytes", err);
}

int tcp_hear(int fd, uint32_t rank, void *to, size_t n, uint64_t deadline_ns, struct error *err)
{
    for (size_t got = 0; got < n;) {
        ssize_t r = recv(fd, (uint8_t *)to + got, n - got, MSG_DONTWAIT);
        if (r > 0) {
            got += (size_t)r;
            continue;
        }
        if (r == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
            return transport_lost(rank, r == 0 ? "it closed the connection" : strerror(errno), err);
        uint64_t now = clock_now_ns();
        if (now >= deadline_ns)
            return error_set(err, E_TIMEOUT, "rank %u is connected and does not say how to go on",
                             rank);
        struct pollfd p = {.fd = fd, .events = POLLIN};
        poll(&p, 1, (int)((deadline_ns - now + 999999) / 1000000));
    }
    return 0;
}

static int hear(const struct share *s, uint32_t peer, uint8_t *to, size_t n, struct error *err)
{
    return tcp_hear(s->fds[peer], peer, to, n, s->deadline_ns, err);
}

static int offer(const struct share *s, uint32_t peer, size_t ring_bytes, struct offer *o,
                 struct shm **ret_shm, struct error *err)
{
    struct error why = {0};
    if (ring_bytes > 0 && tcp_is_neighbour(s->fds[peer])) {
        if (shm_create(ring_bytes, o->name, ret_shm, &why) == 0)
            o->ring_bytes = (uint32_t)ring_bytes;
        else
            log_info("comm", "no memory shared with rank %u: %s", peer, why.message);
    }
    uint8_t bytes[OFFER_BYTES];
    offer_write(o, bytes);
    return say(s, peer, bytes, sizeof(bytes), err);
}

static int take_offer(const struct share *s, uint32_t peer, bool willing, struct shm **ret_shm,
                      struct error *err)
{
    uint8_t bytes[OFFER_BYTES], answer[ANSWER_BYTES];
    struct offer o;
    struct error why = {0};
    int r = hear(s, peer, bytes, sizeof(bytes), err);
    if (r == 0)
        r = offer_parse(bytes, &o, err);
    if (r != 0)
        return r;
    bool taken = false;
    if (willing && o.ring_bytes > 0 && tcp_is_neighbour(s->fds[peer])) {
        taken = shm_attach(o.name, o.ring_bytes, ret_shm, &why) == 0;
        if (!taken)
            log_info("comm", "no memory shared with rank %u: %s", peer, why.message);
    }
    answer_write(taken, answer);
    return say(s, peer, answer, sizeof(answer), err);
}

static int hear_answer(const struct share *s, uint32_t peer, struct shm **shm, struct error *err)
{
    uint8_t bytes[ANSWER_BYTES];
    bool taken = false;
    int r = hear(s, peer, bytes, sizeof(bytes), err);
    if (r == 0)
        r = answer_parse(bytes, &taken, err);
    if (r == 0 && !taken) {
        shm_close(*shm);
        *shm = NULL;
    }
    return r;
}

int tcp_share(const struct tcp_identity *me, const int *fds, uint32_t n_neighbours, bool willing,
              uint32_t timeout_ms, struct shm **ret_shms, struct error *err)
{
    struct share s = {
        .me = me, .fds = fds, .deadline_ns = clock_now_ns() + timeout_ms * UINT64_C(1000000)};
    struct offer offers[LIMIT_RANKS] = {0};
    size_t ring_bytes = willing ? choose_ring_bytes(n_neighbours) : 0;
    int r = 0;
    /* All offers before any waiting: nobody waits for somebody who waits. */
    for (uint32_t i = 0; r == 0 && i < me->rank; i++)
        r = offer(&s, i, ring_bytes, &offers[i], &ret_shms[i], err);
    for (uint32_t i = me->rank + 1; r == 0 && i < me->n_ranks; i++)
        r = take_offer(&s, i, willing, &ret_shms[i], err);
    for (uint32_t i = 0; r == 0 && i < me->rank; i++)
        r = hear_answer(&s, i, &ret_shms[i], err);
    for (uint32_t i = 0; i < me->rank; i++)
        if (offers[i].ring_bytes > 0)
            shm_forget_name(offers[i].name);
    for (uint32_t i = 0; r != 0 && i < me->n_ranks; i++) {
        shm_close(ret_shms[i]);
        ret_shms[i] = NULL;
    }
    return r;
}
