/*
 * The back end within one process: a ring of bytes for each ordered pair of ranks, written by one
 * thread and read by one other. A rank that sleeps says so in its `sleeping` flag; whoever moves
 * bytes to or from it looks there afterwards and wakes it.
 */
#include "comm/internal.h"
#include "comm/transport.h"
#include "comm/wake.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* All rings together are at most about this large; the pages of a ring that is never used are never
 * touched. */
enum { RINGS_BYTES_MAX = 64 << 20, RING_BYTES_MAX = 256 << 10, RING_BYTES_MIN = 16 << 10 };
/* Threads share cores with their peers sooner or later: spin briefly. */
enum { SPIN_US = 200 };
enum { CACHE_LINE_BYTES = 64 };

struct ring {
    _Alignas(CACHE_LINE_BYTES) atomic_size_t written; /* bytes, ever */
    _Alignas(CACHE_LINE_BYTES) atomic_size_t read;
    uint8_t *data; /* [ring_bytes] */
};

struct seat {
    _Alignas(CACHE_LINE_BYTES) atomic_bool sleeping;
    atomic_bool gone;
    struct wake wake;
};

/* Shared by all ranks; the last to leave frees it. */
struct hub {
    atomic_uint n_users;
    uint32_t n;
    size_t ring_bytes; /* a power of two */
    uint8_t *bytes;
    struct ring *rings; /* [n][n], from row to column */
    struct seat *seats; /* [n] */
};

struct local {
    struct transport base;
    struct hub *hub;
    uint32_t rank;
};

static struct ring *find_ring(const struct hub *h, uint32_t from, uint32_t to)
{
    return &h->rings[from * h->n + to];
}

static void wake_if_asleep(struct hub *h, uint32_t rank)
{
    /* Sequentially consistent with the counters: either the sleeper saw our bytes, or we see that
     * it sleeps. */
    if (atomic_load(&h->seats[rank].sleeping))
        wake_signal(&h->seats[rank].wake);
}

static int lost(const struct local *l, uint32_t peer, struct error *err)
{
    if (atomic_load(&l->hub->seats[l->rank].gone))
        return error_set(err, E_PEERLOST, "the connection to rank %u is closed", peer);
    return error_set(err, E_PEERLOST, "rank %u is gone", peer);
}

static int try_send(struct transport *t, uint32_t peer, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct local *l = (struct local *)t;
    struct hub *h = l->hub;
    if (atomic_load(&h->seats[peer].gone))
        return lost(l, peer, err);
    struct ring *ring = find_ring(h, l->rank, peer);
    size_t written = atomic_load_explicit(&ring->written, memory_order_relaxed);
    size_t room = h->ring_bytes - (written - atomic_load(&ring->read));
    size_t moved = 0;
    for (int i = 0; i < n_iov && room > 0; i++) {
        const uint8_t *from = iov[i].iov_base;
        size_t n = iov[i].iov_len < room ? iov[i].iov_len : room;
        size_t at = (written + moved) & (h->ring_bytes - 1);
        size_t first = n < h->ring_bytes - at ? n : h->ring_bytes - at;
        memcpy(ring->data + at, from, first);
        memcpy(ring->data, from + first, n - first);
        moved += n;
        room -= n;
    }
    *ret_moved = moved;
    if (moved > 0) {
        atomic_store(&ring->written, written + moved);
        wake_if_asleep(h, peer);
    }
    return 0;
}

static int try_recv(struct transport *t, uint32_t peer, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct local *l = (struct local *)t;
    struct hub *h = l->hub;
    /* Looked at before the ring, so that what the peer wrote before it left is still read. */
    bool gone = atomic_load(&h->seats[peer].gone);
    struct ring *ring = find_ring(h, peer, l->rank);
    size_t read = atomic_load_explicit(&ring->read, memory_order_relaxed);
    size_t here = atomic_load(&ring->written) - read;
    if (here == 0 && gone)
        return lost(l, peer, err);
    size_t moved = 0;
    for (int i = 0; i < n_iov && here > 0; i++) {
        uint8_t *to = iov[i].iov_base;
        size_t n = iov[i].iov_len < here ? iov[i].iov_len : here;
        size_t at = (read + moved) & (h->ring_bytes - 1);
        size_t first = n < h->ring_bytes - at ? n : h->ring_bytes - at;
        memcpy(to, ring->data + at, first);
        memcpy(to + first, ring->data, n - first);
        moved += n;
        here -= n;
    }
    *ret_moved = moved;
    if (moved > 0) {
        atomic_store(&ring->read, read + moved);
        wake_if_asleep(h, peer);
    }
    return 0;
}

static bool may_move(const struct local *l, uint64_t receiving, uint64_t sending)
{
    const struct hub *h = l->hub;
    for (; receiving != 0; receiving &= receiving - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(receiving);
        struct ring *ring = find_ring(h, peer, l->rank);
        if (atomic_load(&h->seats[peer].gone) ||
            atomic_load(&ring->written) != atomic_load(&ring->read))
            return true;
    }
    for (; sending != 0; sending &= sending - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(sending);
        struct ring *ring = find_ring(h, l->rank, peer);
        if (atomic_load(&h->seats[peer].gone) ||
            atomic_load(&ring->written) - atomic_load(&ring->read) < h->ring_bytes)
            return true;
    }
    return false;
}

static int sleep_until(struct transport *t, uint64_t receiving, uint64_t sending, int timeout_ms,
                       struct error *err)
{
    struct local *l = (struct local *)t;
    struct seat *seat = &l->hub->seats[l->rank];
    int r = 0;
    atomic_store(&seat->sleeping, true);
    if (!may_move(l, receiving, sending)) {
        struct pollfd fd = {.fd = seat->wake.fd, .events = POLLIN};
        if (poll(&fd, 1, timeout_ms) < 0 && errno != EINTR)
            r = error_set(err, E_IO, "poll: %s", strerror(errno));
    }
    atomic_store(&seat->sleeping, false);
    wake_clear(&seat->wake);
    return r;
}

static void wake(struct transport *t)
{
    struct local *l = (struct local *)t;
    wake_signal(&l->hub->seats[l->rank].wake);
}

static void leave(struct transport *t)
{
    struct local *l = (struct local *)t;
    if (atomic_exchange(&l->hub->seats[l->rank].gone, true))
        return;
    for (uint32_t i = 0; i < l->hub->n; i++)
        if (i != l->rank)
            wake_if_asleep(l->hub, i);
}

static void free_hub(struct hub *h)
{
    for (uint32_t i = 0; h->seats != NULL && i < h->n; i++)
        if (h->seats[i].wake.write_fd >= 0)
            wake_done(&h->seats[i].wake);
    free(h->seats);
    free(h->rings);
    free(h->bytes);
    free(h);
}

static void free_local(struct transport *t)
{
    struct local *l = (struct local *)t;
    if (atomic_fetch_sub(&l->hub->n_users, 1) == 1)
        free_hub(l->hub);
    free(l);
}

static const struct transport_ops local_ops = {
    .name = "local",
    .try_send = try_send,
    .try_recv = try_recv,
    .wait = sleep_until,
    .wake = wake,
    .shutdown = leave,
    .free = free_local,
};

static int new_hub(uint32_t n, struct hub **ret_hub, struct error *err)
{
    struct hub *h = calloc(1, sizeof(*h));
    if (h == NULL)
        goto no_memory;
    h->n = n;
    h->ring_bytes = RING_BYTES_MAX;
    while (h->ring_bytes > RING_BYTES_MIN && h->ring_bytes * n * n > RINGS_BYTES_MAX)
        h->ring_bytes /= 2;
    h->bytes = malloc(h->ring_bytes * n * n);
    h->rings = aligned_alloc(CACHE_LINE_BYTES, sizeof(struct ring) * n * n);
    h->seats = aligned_alloc(CACHE_LINE_BYTES, sizeof(struct seat) * n);
    if (h->bytes == NULL || h->rings == NULL || h->seats == NULL) {
        free(h->seats);
        h->seats = NULL;
        goto no_memory;
    }
    for (uint32_t i = 0; i < n * n; i++) {
        atomic_init(&h->rings[i].written, 0);
        atomic_init(&h->rings[i].read, 0);
        h->rings[i].data = h->bytes + i * h->ring_bytes;
    }
    for (uint32_t i = 0; i < n; i++) {
        atomic_init(&h->seats[i].sleeping, false);
        atomic_init(&h->seats[i].gone, false);
        h->seats[i].wake.write_fd = -1;
    }
    for (uint32_t i = 0; i < n; i++) {
        int r = wake_init(&h->seats[i].wake, err);
        if (r != 0) {
            h->seats[i].wake.write_fd = -1;
            free_hub(h);
            return r;
        }
    }
    *ret_hub = h;
    return 0;

no_memory:
    if (h != NULL)
        free_hub(h);
    return error_set(err, E_NOMEM, "no memory to connect %u local ranks", n);
}

int comm_local_new(uint32_t n, const struct comm_options *options, struct comm **ret_comms,
                   struct error *err)
{
    if (n < 1 || n > LIMIT_RANKS)
        return error_set(err, E_INVALID, "%u ranks, must be 1 to %d", n, LIMIT_RANKS);
    struct hub *h = NULL;
    int r = new_hub(n, &h, err);
    if (r != 0)
        return r;
    struct comm *comms[LIMIT_RANKS];
    uint32_t made = 0;
    atomic_init(&h->n_users, 1); /* us, until all are made */
    for (; made < n; made++) {
        struct local *l = calloc(1, sizeof(*l));
        if (l == NULL) {
            r = error_set(err, E_NOMEM, "no memory for local rank %u", made);
            break;
        }
        l->base.ops = &local_ops;
        l->hub = h;
        l->rank = made;
        r = comm_new(&l->base, made, n, n, options, SPIN_US, &comms[made], err);
        if (r != 0) {
            free(l);
            break;
        }
        comms[made]->sharing = UINT64_MAX;
        atomic_fetch_add(&h->n_users, 1);
    }
    for (uint32_t i = 0; i < made; i++) {
        if (r != 0)
            comm_close(comms[i]);
        else
            ret_comms[i] = comms[i];
    }
    if (atomic_fetch_sub(&h->n_users, 1) == 1)
        free_hub(h);
    return r;
}
