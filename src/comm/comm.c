#include "comm/form.h"
#include "comm/internal.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Where each rank has a core: after this long the peer is evidently not about to answer, and others
 * may want ours. */
enum { YIELD_AFTER_NS = 20000 };

uint32_t comm_cores(void)
{
    /* Not those this process may run on: a rank that is pinned to one core still has neighbours on
     * others. */
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (uint32_t)n : 1;
}

int comm_new(struct transport *t, uint32_t rank, uint32_t size, uint32_t n_neighbours,
             const struct comm_options *options, uint32_t spin_us, struct comm **ret_comm,
             struct error *err)
{
    enum comm_wire wire = options != NULL ? options->wire : COMM_WIRE_F32;
    if ((int)wire < 0 || wire >= COMM_WIRE_COUNT)
        return error_set(err, E_INVALID, "%d is not a wire form", (int)wire);
    struct comm *c = calloc(1, sizeof(*c) + size * sizeof(c->links[0]));
    if (c == NULL)
        return error_set(err, E_NOMEM, "no memory for a comm of %u ranks", size);
    uint32_t timeout_ms = COMM_TIMEOUT_MS;
    bool crowded = n_neighbours > comm_cores();
    /* With 3 ranks on 2 busy cores sleeping answered in 0.4 ms, spinning and yielding in 1.1. */
    if (crowded)
        spin_us = 0;
    if (options != NULL) {
        if (options->timeout_ms != 0)
            timeout_ms = options->timeout_ms;
        if (options->spin_us != UINT32_MAX)
            spin_us = options->spin_us;
    }
    c->transport = t;
    c->rank = rank;
    c->size = size;
    c->wire = wire;
    c->inbox_bytes_max = LIMIT_COMM_INBOX_BYTES;
    c->timeout_ns = timeout_ms * UINT64_C(1000000);
    c->spin_ns = spin_us * UINT64_C(1000);
    /* A peer that shares our core cannot answer while we hold it. */
    c->yield_after_ns = crowded ? 0 : YIELD_AFTER_NS;
    atomic_init(&c->aborted, false);
    *ret_comm = c;
    return 0;
}

void comm_close(struct comm *c)
{
    if (c == NULL)
        return;
    c->transport->ops->shutdown(c->transport);
    c->transport->ops->free(c->transport);
    inbox_done(c);
    free(c->parts.data);
    free(c->encoded.data);
    free(c);
}

uint32_t comm_rank(const struct comm *c)
{
    return c->rank;
}

uint32_t comm_size(const struct comm *c)
{
    return c->size;
}

void comm_get_stats(const struct comm *c, struct comm_stats *ret_stats)
{
    *ret_stats = c->stats;
}

void comm_abort(struct comm *c)
{
    atomic_store(&c->aborted, true);
    c->transport->ops->wake(c->transport);
}

/* ---- checks that each operation begins with ---- */

int comm_begin(struct comm *c, const char *operation, struct error *err)
{
    if (c->cause.code != 0)
        return error_set(err, c->cause.code, "%s", c->cause.message);
    if (atomic_load_explicit(&c->aborted, memory_order_relaxed)) {
        struct error cause = {0};
        error_set(&cause, E_CANCELLED, "aborted");
        return comm_break(c, operation, E_CANCELLED, &cause, err);
    }
    if (c->reduce.active)
        return error_set(err, E_INVALID, "%s: an all-reduce is under way, finish it first",
                         operation);
    return 0;
}

int comm_check_peer(const struct comm *c, const char *operation, uint32_t peer, size_t n,
                    struct error *err)
{
    if (peer >= c->size || peer == c->rank)
        return error_set(err, E_INVALID, "%s: rank %u is not a peer of rank %u of %u", operation,
                         peer, c->rank, c->size);
    if (n > LIMIT_COMM_FRAME_BYTES)
        return error_set(err, E_LIMIT, "%s: %zu bytes, the limit is %u", operation, n,
                         LIMIT_COMM_FRAME_BYTES);
    return 0;
}

int comm_check_group(const struct comm *c, const char *operation, struct comm_group g, size_t n,
                     struct error *err)
{
    if (g.n < 1 || g.n > c->size || g.first > c->size - g.n || c->rank < g.first ||
        c->rank - g.first >= g.n)
        return error_set(err, E_INVALID,
                         "%s: the group of %u ranks from %u on is not one of rank %u of %u",
                         operation, g.n, g.first, c->rank, c->size);
    if (n > LIMIT_COMM_FRAME_BYTES)
        return error_set(err, E_LIMIT, "%s: %zu bytes, the limit is %u", operation, n,
                         LIMIT_COMM_FRAME_BYTES);
    return 0;
}

int scratch_reserve(struct scratch *s, size_t bytes, struct error *err)
{
    if (bytes == 0)
        bytes = 1; /* empty vectors have places too */
    if (bytes <= s->bytes)
        return 0;
    free(s->data);
    s->bytes = 0;
    s->data = malloc(bytes);
    if (s->data == NULL)
        return error_set(err, E_NOMEM, "no memory for %zu bytes on their way", bytes);
    s->bytes = bytes;
    return 0;
}

/* ---- point to point ---- */

int comm_send(struct comm *c, uint32_t dst, const void *data, size_t n, struct error *err)
{
    int r = comm_begin(c, "send", err);
    if (r == 0)
        r = comm_check_peer(c, "send", dst, n, err);
    if (r != 0)
        return r;
    comm_queue_out(c, dst, FRAME_MESSAGE, data, n, n);
    c->stats.n_operations++;
    return comm_drive(c, "send", c->timeout_ns, err);
}

int comm_recv(struct comm *c, uint32_t src, void *data, size_t n, struct error *err)
{
    int r = comm_begin(c, "receive", err);
    if (r == 0)
        r = comm_check_peer(c, "receive", src, n, err);
    if (r != 0)
        return r;
    comm_queue_in(c, src, FRAME_MESSAGE, data, n, false);
    c->stats.n_operations++;
    return comm_drive(c, "receive", c->timeout_ns, err);
}

int comm_recv_any(struct comm *c, uint32_t src, void *data, size_t max, size_t *ret_n,
                  uint32_t timeout_ms, struct error *err)
{
    int r = comm_begin(c, "receive", err);
    if (r == 0)
        r = comm_check_peer(c, "receive", src, 0, err);
    if (r != 0)
        return r;
    uint64_t timeout_ns = timeout_ms == 0            ? c->timeout_ns
                          : timeout_ms == UINT32_MAX ? UINT64_MAX
                                                     : timeout_ms * UINT64_C(1000000);
    comm_queue_in(c, src, FRAME_MESSAGE, data, max, true);
    c->stats.n_operations++;
    r = comm_drive(c, "receive", timeout_ns, err);
    if (r == 0)
        *ret_n = c->links[src].in.transfers[0].n;
    return r;
}

int comm_poll(struct comm *c, uint32_t src, bool *ret_ready, struct error *err)
{
    int r = comm_begin(c, "poll", err);
    if (r == 0)
        r = comm_check_peer(c, "poll", src, 0, err);
    if (r != 0)
        return r;
    struct error cause = {0};
    bool moved = false;
    r = inbox_has_whole(c, src) ? 0 : inbox_fill(c, src, &moved, &cause);
    /* A message that finds no room is as ready as it will be: receiving it makes room. */
    bool ready = inbox_has_whole(c, src) || (r == 0 && inbox_is_stuck(c, src));
    if (r != 0 && !ready)
        return comm_break(c, "poll", r, &cause, err);
    *ret_ready = ready;
    return 0;
}

/* ---- values, in the comm's form ---- */

static int check_values(struct comm *c, const char *operation, uint32_t peer, size_t n,
                        struct error *err)
{
    int r = comm_begin(c, operation, err);
    return r == 0
               ? comm_check_peer(c, operation, peer,
                                 n > SIZE_MAX / sizeof(float) ? SIZE_MAX : n * sizeof(float), err)
               : r;
}

int comm_send_f32(struct comm *c, uint32_t dst, const float *x, size_t n, struct error *err)
{
    int r = check_values(c, "send", dst, n, err);
    if (r != 0)
        return r;
    size_t bytes = form_bytes(c->wire, n);
    if (c->wire == COMM_WIRE_F32)
        return comm_send(c, dst, x, bytes, err);
    struct error cause = {0};
    r = scratch_reserve(&c->encoded, bytes, &cause);
    if (r != 0) /* the peer would wait for us */
        return comm_break(c, "send", r, &cause, err);
    form_encode(c->wire, x, n, c->encoded.data);
    return comm_send(c, dst, c->encoded.data, bytes, err);
}

int comm_recv_f32(struct comm *c, uint32_t src, float *x, size_t n, struct error *err)
{
    int r = check_values(c, "receive", src, n, err);
    if (r != 0)
        return r;
    size_t bytes = form_bytes(c->wire, n);
    if (c->wire == COMM_WIRE_F32)
        return comm_recv(c, src, x, bytes, err);
    struct error cause = {0};
    r = scratch_reserve(&c->encoded, bytes, &cause);
    if (r != 0)
        return comm_break(c, "receive", r, &cause, err);
    r = comm_recv(c, src, c->encoded.data, bytes, err);
    if (r == 0)
        form_decode(c->wire, c->encoded.data, n, x);
    return r;
}

/* ---- one to all, all to all ---- */

int comm_broadcast(struct comm *c, struct comm_group g, const void *data, size_t n,
                   struct error *err)
{
    int r = comm_begin(c, "broadcast", err);
    if (r == 0)
        r = comm_check_group(c, "broadcast", g, n, err);
    if (r != 0)
        return r;
    for (uint32_t i = 0; i < g.n; i++)
        if (g.first + i != c->rank)
            comm_queue_out(c, g.first + i, FRAME_MESSAGE, data, n, n);
    c->stats.n_operations++;
    return comm_drive(c, "broadcast", c->timeout_ns, err);
}

int comm_all_gather(struct comm *c, struct comm_group g, const void *mine, size_t n, void *all,
                    struct error *err)
{
    int r = comm_begin(c, "all-gather", err);
    if (r == 0)
        r = comm_check_group(c, "all-gather", g, n, err);
    if (r != 0)
        return r;
    uint8_t *out = all;
    size_t own = (c->rank - g.first) * n;
    if (n > 0)
        memmove(out + own, mine, n); /* mine may lie in its place already */
    for (uint32_t i = 0; i < g.n; i++) {
        if (g.first + i == c->rank)
            continue;
        comm_queue_out(c, g.first + i, FRAME_GATHER, n > 0 ? out + own : NULL, n, n);
        comm_queue_in(c, g.first + i, FRAME_GATHER, n > 0 ? out + i * n : NULL, n, false);
    }
    c->stats.n_operations++;
    return comm_drive(c, "all-gather", c->timeout_ns, err);
}
