/*
 * All-reduce, two ways that give the same bits. Direct exchange: each contributing rank sends its
 * vector to every other, and each rank sums all of it: one trip, for small vectors. In slices: rank
 * i gets everybody's slice i, sums it and passes the sum on while later elements still arrive: two
 * trips, but (n-1)/n of the vector sent twice instead of n-1 times, for large vectors.
 *
 * Every element is summed in rank order from the same values in both, by one rank or by all: no bit
 * depends on the way. (Which of several NaNs survives a sum is the processor's choice.)
 */
#include "comm/internal.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

/* Slices pay when they keep this much off each rank's link: at 1 Gbit/s 0.4 ms, several times the
 * second trip they cost. */
enum { SLICES_SAVED_BYTES_MIN = 48 << 10 };
/* A pair sends the same bytes either way and saves half the summing: 5 to 10 % on loopback from
 * about here on. */
enum { SLICES_PAIR_BYTES_MIN = 512 << 10 };
/* No slices that are hardly longer than their headers. */
enum { SLICE_BYTES_MIN = 1 << 10 };
/* Sums are taken in steps of at least this many elements: 16 KiB. */
enum { STEP_ELEMENTS = 4096 };
/* Slices begin at multiples of this many elements: a cache line. */
enum { SLICE_ALIGN = 16 };

/* The same answer on every rank: it follows from the call's arguments alone. */
static bool slices_pay(uint32_t n_ranks, size_t bytes)
{
    if (n_ranks <= 2)
        return n_ranks == 2 && bytes >= SLICES_PAIR_BYTES_MIN;
    return bytes / n_ranks >= SLICE_BYTES_MIN &&
           bytes * (n_ranks - 1) / n_ranks * (n_ranks - 2) >= SLICES_SAVED_BYTES_MIN;
}

static size_t slice_start(size_t n, uint32_t n_slices, uint32_t i)
{
    return i == n_slices ? n : n * i / n_slices / SLICE_ALIGN * SLICE_ALIGN;
}

static int reserve_scratch(struct comm *c, size_t bytes, struct error *err)
{
    if (bytes == 0)
        bytes = 1; /* empty vectors have places too */
    if (bytes <= c->scratch_bytes)
        return 0;
    free(c->scratch);
    c->scratch_bytes = 0;
    c->scratch = malloc(bytes);
    if (c->scratch == NULL)
        return error_set(err, E_NOMEM, "no memory for %zu bytes of partial sums", bytes);
    c->scratch_bytes = bytes;
    return 0;
}

/* One contributor: its values are the sum. */
static void queue_copy(struct comm *c, uint32_t root)
{
    struct reduce *op = &c->reduce;
    size_t bytes = op->count * sizeof(float);
    if (c->rank != root)
        comm_queue_in(c, root, FRAME_REDUCE, op->x, bytes, false);
    for (uint32_t i = 0; c->rank == root && i < op->group.n; i++)
        if (op->group.first + i != c->rank)
            comm_queue_out(c, op->group.first + i, FRAME_REDUCE, op->x, bytes, bytes);
    op->n_summed = op->count;
}

/* Parts [count] of the range that this rank sums: its own lies in x, the others arrive in scratch.
 */
static int queue_parts(struct comm *c, uint64_t mask, struct error *err)
{
    struct reduce *op = &c->reduce;
    uint32_t n_others =
        (uint32_t)__builtin_popcountll(mask) - (uint32_t)(mask >> (c->rank - op->group.first) & 1);
    size_t bytes = op->count * sizeof(float);
    int r = reserve_scratch(c, n_others * bytes, err);
    if (r != 0)
        return r;
    uint8_t *scratch = c->scratch;
    for (; mask != 0; mask &= mask - 1) {
        uint32_t rank = op->group.first + (uint32_t)__builtin_ctzll(mask);
        const float *data = op->x + op->first;
        if (rank != c->rank) {
            data = (const float *)(const void *)scratch;
            comm_queue_in(c, rank, FRAME_REDUCE, scratch, bytes, false);
            scratch += bytes;
        }
        op->parts[op->n_parts].data = data;
        op->parts[op->n_parts++].rank = rank;
    }
    return 0;
}

static void queue_direct(struct comm *c)
{
    struct reduce *op = &c->reduce;
    for (uint32_t i = 0; i < op->group.n; i++)
        if (op->group.first + i != c->rank)
            comm_queue_out(c, op->group.first + i, FRAME_REDUCE, op->x, op->count * sizeof(float),
                           op->count * sizeof(float));
}

static void queue_slices(struct comm *c, size_t n, bool contributes)
{
    struct reduce *op = &c->reduce;
    for (uint32_t i = 0; i < op->group.n; i++) {
        uint32_t peer = op->group.first + i;
        if (peer == c->rank)
            continue;
        size_t start = slice_start(n, op->group.n, i);
        size_t bytes = (slice_start(n, op->group.n, i + 1) - start) * sizeof(float);
        if (contributes)
            comm_queue_out(c, peer, FRAME_REDUCE, op->x + start, bytes, bytes);
        comm_queue_out(c, peer, FRAME_SUM, op->x + op->first, op->count * sizeof(float), 0);
        /* In place: the peer cannot have summed what has not left here. */
        comm_queue_in(c, peer, FRAME_SUM, op->x + start, bytes, false);
    }
}

static int check(struct comm *c, struct comm_group g, uint64_t mask, size_t n, struct error *err)
{
    int r = comm_begin(c, "all-reduce", err);
    if (r == 0)
        r = comm_check_group(c, "all-reduce", g,
                             n > SIZE_MAX / sizeof(float) ? SIZE_MAX : n * sizeof(float), err);
    if (r == 0 && g.n < 64 && mask >> g.n != 0)
        r = error_set(err, E_INVALID, "all-reduce: mask 0x%llx names ranks beyond the group of %u",
                      (unsigned long long)mask, g.n);
    return r;
}

int comm_all_reduce_f32_start(struct comm *c, struct comm_group g, uint64_t mask, float *x,
                              size_t n, struct error *err)
{
    int r = check(c, g, mask, n, err);
    if (r != 0)
        return r;
    struct reduce *op = &c->reduce;
    size_t bytes = n * sizeof(float);
    uint32_t n_contributing = (uint32_t)__builtin_popcountll(mask), me = c->rank - g.first;
    bool contributes = mask >> me & 1;
    op->slices = n_contributing > 1 && slices_pay(g.n, bytes);
    op->group = g;
    op->x = x;
    op->n_parts = 0;
    op->n_summed = 0;
    op->first = op->slices ? slice_start(n, g.n, me) : 0;
    op->count = (op->slices ? slice_start(n, g.n, me + 1) : n) - op->first;
    if (n_contributing == 0) {
        if (n > 0)
            memset(x, 0, bytes);
        op->n_summed = n;
    } else if (n_contributing == 1) {
        queue_copy(c, g.first + (uint32_t)__builtin_ctzll(mask));
    } else {
        /* Values before sums, in each lane: the parts are queued first. */
        struct error cause = {0};
        r = queue_parts(c, mask, &cause);
        if (r != 0) /* the others would wait for us */
            return comm_break(c, "all-reduce", r, &cause, err);
        if (op->slices)
            queue_slices(c, n, contributes);
        else if (contributes)
            queue_direct(c);
    }
    op->active = true;
    c->stats.n_operations++;

    /* What goes without waiting goes now. */
    struct error cause = {0};
    bool moved;
    uint64_t start_ns = clock_now_ns();
    r = comm_progress(c, start_ns, &moved, &cause);
    c->stats.wait_ns += clock_now_ns() - start_ns;
    return r == 0 ? 0 : comm_break(c, "all-reduce", r, &cause, err);
}

int comm_all_reduce_f32_finish(struct comm *c, struct error *err)
{
    if (c->cause.code != 0)
        return error_set(err, c->cause.code, "%s", c->cause.message);
    if (!c->reduce.active)
        return error_set(err, E_INVALID, "all-reduce: finished without a start");
    int r = comm_drive(c, "all-reduce", c->timeout_ns, err);
    c->reduce.active = false;
    return r;
}

int comm_all_reduce_f32(struct comm *c, struct comm_group g, uint64_t mask, float *x, size_t n,
                        struct error *err)
{
    int r = comm_all_reduce_f32_start(c, g, mask, x, n, err);
    return r == 0 ? comm_all_reduce_f32_finish(c, err) : r;
}

/* ---- summing as the values arrive ---- */

/* Elements of the range that are here from all, and, where the sum overwrites what we send, have
 * left to all. */
static size_t elements_available(const struct comm *c)
{
    const struct reduce *op = &c->reduce;
    size_t bytes = op->count * sizeof(float);
    bool contributes = false;
    for (uint32_t i = 0; i < op->n_parts; i++) {
        uint32_t rank = op->parts[i].rank;
        if (rank == c->rank) {
            contributes = true;
            continue;
        }
        size_t here = lane_payload_done(&c->links[rank].in, 0);
        bytes = here < bytes ? here : bytes;
    }
    for (uint32_t i = 0; contributes && !op->slices && i < op->group.n; i++) {
        if (op->group.first + i == c->rank)
            continue;
        size_t gone = lane_payload_done(&c->links[op->group.first + i].out, 0);
        bytes = gone < bytes ? gone : bytes;
    }
    return bytes / sizeof(float);
}

/* More of this rank's slice may go to the others. */
static void release_sums(struct comm *c)
{
    struct reduce *op = &c->reduce;
    for (uint32_t i = 0; i < op->group.n; i++) {
        if (op->group.first + i == c->rank)
            continue;
        struct lane *lane = &c->links[op->group.first + i].out;
        lane->transfers[lane->n - 1].ready = op->n_summed * sizeof(float);
    }
}

bool reduce_advance(struct comm *c)
{
    struct reduce *op = &c->reduce;
    if (op->n_summed == op->count)
        return false;
    size_t available = elements_available(c);
    if (available < op->count && available - op->n_summed < STEP_ELEMENTS)
        return false;
    const float *parts[LIMIT_RANKS];
    for (uint32_t i = 0; i < op->n_parts; i++)
        parts[i] = op->parts[i].data;
    sum_parts(op->x + op->first, parts, op->n_parts, op->n_summed, available);
    op->n_summed = available;
    if (op->slices)
        release_sums(c);
    return true;
}

bool reduce_done(const struct comm *c)
{
    return !c->reduce.active || c->reduce.n_summed == c->reduce.count;
}
