/*
 * All-reduce, two ways that give the same bits. Direct exchange: each contributing rank sends its
 * vector to every other, and each rank sums all of it: one trip, for small vectors. In slices: rank
 * i gets everybody's slice i, sums it and passes the sum on while later elements still arrive: two
 * trips, but (n-1)/n of the vector sent twice instead of n-1 times, for large vectors.
 *
 * Every element is summed in rank order from the same values in both, by one rank or by all: no bit
 * depends on the way. (Which of several NaNs survives a sum is the processor's choice.)
 */
#include "comm/form.h"
#include "comm/internal.h"

#include "base/clock.h"

#include <string.h>

/* Slices pay when they keep this much off each rank's link: at 1 Gbit/s 0.4 ms, several times the
 * second trip they cost. */
enum { SLICES_SAVED_BYTES_MIN = 48 << 10 };
/* A pair sends the same bytes either way and saves half the summing, which pays from about here on:
 * measured on loopback and through shared memory; a second trip over a link costs more. In other
 * forms than F32 the sum is encoded and decoded once more, which eats up what is saved. */
enum { SLICES_PAIR_BYTES_MIN = 256 << 10, SLICES_SHARING_PAIR_BYTES_MIN = 32 << 10 };
/* No slices that are hardly longer than their headers. */
enum { SLICE_BYTES_MIN = 1 << 10 };
/* Sums are taken in steps of at least this many elements: 16 KiB. */
enum { STEP_ELEMENTS = 4096 };
/* Slices begin at multiples of this many elements: whole blocks and, in form F32, cache lines. */
enum { SLICE_ALIGN = FORM_BLOCK };
enum { SLICE_BYTES_ALIGN = 64 };

/* The same answer on every rank: it follows from what all of the group know. A pair that does
 * something else in the meantime has no use for a second trip. */
static bool slices_pay(const struct comm *c, struct comm_group g, size_t bytes, bool in_halves)
{
    if (g.n == 2 && in_halves)
        return false;
    if (g.n == 2) {
        bool sharing = c->sharing >> (c->rank == g.first ? g.first + 1 : g.first) & 1;
        return c->wire == COMM_WIRE_F32 &&
               bytes >= (sharing ? SLICES_SHARING_PAIR_BYTES_MIN : SLICES_PAIR_BYTES_MIN);
    }
    return g.n > 2 && bytes / g.n >= SLICE_BYTES_MIN &&
           bytes * (g.n - 1) / g.n * (g.n - 2) >= SLICES_SAVED_BYTES_MIN;
}

/* A range of the sum comes from another rank. */
static void add_sum(struct reduce *op, uint32_t rank, size_t first, size_t count)
{
    op->sums[op->n_sums].rank = rank;
    op->sums[op->n_sums].first = first;
    op->sums[op->n_sums].count = count;
    op->sums[op->n_sums++].n_decoded = 0;
}

static size_t slice_start(size_t n, uint32_t n_slices, uint32_t i)
{
    return i == n_slices ? n : n * i / n_slices / SLICE_ALIGN * SLICE_ALIGN;
}

/* One contributor: its values are the sum. */
static void queue_copy(struct comm *c, uint32_t root)
{
    struct reduce *op = &c->reduce;
    size_t bytes = form_bytes(c->wire, op->n);
    op->n_summed = op->count;
    if (c->rank != root) {
        comm_queue_in(c, root, FRAME_REDUCE, op->own, bytes, false);
        add_sum(op, root, 0, op->n);
        return;
    }
    for (uint32_t i = 0; i < op->group.n; i++)
        if (op->group.first + i != c->rank)
            comm_queue_out(c, op->group.first + i, FRAME_REDUCE, op->own, bytes, bytes);
    if (c->wire != COMM_WIRE_F32)
        form_decode(c->wire, op->own, op->n, op->x);
}

/* Parts [count] of the range that this rank sums: its own lies in op->own, the others arrive in
 * scratch. */
static int queue_parts(struct comm *c, uint64_t mask, struct error *err)
{
    struct reduce *op = &c->reduce;
    uint32_t n_others =
        (uint32_t)__builtin_popcountll(mask) - (uint32_t)(mask >> (c->rank - op->group.first) & 1);
    size_t bytes = form_bytes(c->wire, op->count);
    /* Each begins at a cache line of its own. */
    size_t stride = (bytes + SLICE_BYTES_ALIGN - 1) / SLICE_BYTES_ALIGN * SLICE_BYTES_ALIGN;
    int r = scratch_reserve(&c->parts, n_others * stride, err);
    if (r != 0)
        return r;
    uint8_t *scratch = c->parts.data;
    for (; mask != 0; mask &= mask - 1) {
        uint32_t rank = op->group.first + (uint32_t)__builtin_ctzll(mask);
        const uint8_t *data = op->own + form_bytes(c->wire, op->first);
        if (rank != c->rank) {
            data = scratch;
            comm_queue_in(c, rank, FRAME_REDUCE, scratch, bytes, false);
            scratch += stride;
        }
        op->parts[op->n_parts].data = data;
        op->parts[op->n_parts++].rank = rank;
    }
    return 0;
}

static void queue_direct(struct comm *c)
{
    struct reduce *op = &c->reduce;
    size_t bytes = form_bytes(c->wire, op->n);
    for (uint32_t i = 0; i < op->group.n; i++)
        if (op->group.first + i != c->rank)
            comm_queue_out(c, op->group.first + i, FRAME_REDUCE, op->own, bytes, bytes);
}

static void queue_slices(struct comm *c, bool contributes)
{
    struct reduce *op = &c->reduce;
    const uint8_t *mine = op->own + form_bytes(c->wire, op->first);
    for (uint32_t i = 0; i < op->group.n; i++) {
        uint32_t peer = op->group.first + i;
        if (peer == c->rank)
            continue;
        size_t start = slice_start(op->n, op->group.n, i);
        size_t count = slice_start(op->n, op->group.n, i + 1) - start;
        uint8_t *slice = op->own + form_bytes(c->wire, start);
        size_t bytes = form_bytes(c->wire, count);
        if (contributes)
            comm_queue_out(c, peer, FRAME_REDUCE, slice, bytes, bytes);
        comm_queue_out(c, peer, FRAME_SUM, mine, form_bytes(c->wire, op->count), 0);
        /* In place: the peer cannot have summed what has not left here. */
        comm_queue_in(c, peer, FRAME_SUM, slice, bytes, false);
        add_sum(op, peer, start, count);
    }
}

static int encode_own(struct comm *c, bool contributes, struct error *err)
{
    struct reduce *op = &c->reduce;
    if (c->wire == COMM_WIRE_F32) {
        op->own = (uint8_t *)(void *)op->x;
        return 0;
    }
    int r = scratch_reserve(&c->encoded, form_bytes(c->wire, op->n), err);
    if (r != 0)
        return r;
    op->own = c->encoded.data;
    if (contributes)
        form_encode(c->wire, op->x, op->n, op->own);
    return 0;
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

/* Moves what can move without waiting. */
static int move(struct comm *c, struct error *err)
{
    struct error cause = {0};
    bool moved = true;
    uint64_t start_ns = clock_now_ns(), now_ns = start_ns;
    int r = 0;
    while (r == 0 && moved) {
        r = comm_progress(c, now_ns, &moved, &cause);
        now_ns = clock_now_ns();
    }
    c->stats.wait_ns += now_ns - start_ns;
    return r == 0 ? 0 : comm_break(c, "all-reduce", r, &cause, err);
}

static int start(struct comm *c, struct comm_group g, uint64_t mask, float *x, size_t n,
                 bool in_halves, struct error *err)
{
    int r = check(c, g, mask, n, err);
    if (r != 0)
        return r;
    struct reduce *op = &c->reduce;
    uint32_t n_contributing = (uint32_t)__builtin_popcountll(mask), me = c->rank - g.first;
    bool contributes = mask >> me & 1;
    op->slices = n_contributing > 1 && slices_pay(c, g, form_bytes(c->wire, n), in_halves);
    op->group = g;
    op->x = x;
    op->n = n;
    op->n_parts = op->n_sums = 0;
    op->n_summed = 0;
    op->first = op->slices ? slice_start(n, g.n, me) : 0;
    op->count = (op->slices ? slice_start(n, g.n, me + 1) : n) - op->first;
    if (n_contributing == 0) {
        if (n > 0)
            memset(x, 0, n * sizeof(float));
        op->n_summed = n;
    } else if (g.n == 1) {
        op->n_summed = n;
    } else {
        struct error cause = {0};
        r = encode_own(c, contributes, &cause);
        if (r == 0 && n_contributing == 1)
            queue_copy(c, g.first + (uint32_t)__builtin_ctzll(mask));
        else if (r == 0)
            r = queue_parts(c, mask, &cause); /* values before sums, in each lane */
        if (r != 0)                           /* the others would wait for us */
            return comm_break(c, "all-reduce", r, &cause, err);
        if (op->slices)
            queue_slices(c, contributes);
        else if (contributes && n_contributing > 1)
            queue_direct(c);
    }
    op->active = true;
    c->stats.n_operations++;
    return 0;
}

int comm_all_reduce_f32_start(struct comm *c, struct comm_group g, uint64_t mask, float *x,
                              size_t n, struct error *err)
{
    int r = start(c, g, mask, x, n, true, err);
    return r == 0 ? move(c, err) : r;
}

static int check_active(const struct comm *c, struct error *err)
{
    if (c->cause.code != 0)
        return error_set(err, c->cause.code, "%s", c->cause.message);
    return c->reduce.active ? 0 : error_set(err, E_INVALID, "all-reduce: finished without a start");
}

int comm_all_reduce_f32_advance(struct comm *c, struct error *err)
{
    int r = check_active(c, err);
    return r == 0 ? move(c, err) : r;
}

int comm_all_reduce_f32_finish(struct comm *c, struct error *err)
{
    int r = check_active(c, err);
    if (r != 0)
        return r;
    r = comm_drive(c, "all-reduce", c->timeout_ns, err);
    c->reduce.active = false;
    return r;
}

int comm_all_reduce_f32(struct comm *c, struct comm_group g, uint64_t mask, float *x, size_t n,
                        struct error *err)
{
    int r = start(c, g, mask, x, n, false, err);
    return r == 0 ? comm_all_reduce_f32_finish(c, err) : r;
}

int comm_group_overlaps(struct comm *c, struct comm_group g, bool *ret_overlaps, struct error *err)
{
    uint64_t me = UINT64_C(1) << c->rank, sharing[LIMIT_RANKS];
    uint64_t mine = c->sharing | me;
    int r = comm_all_gather(c, g, &mine, sizeof(mine), sharing, err);
    if (r != 0)
        return r;
    uint64_t all = (g.n < 64 ? (UINT64_C(1) << g.n) - 1 : UINT64_MAX) << g.first;
    *ret_overlaps = false;
    /* Where a back end moves bytes only while somebody calls it, nothing travels by itself. */
    for (uint32_t i = 0; i < g.n && c->transport->ops->flush == NULL; i++)
        *ret_overlaps = *ret_overlaps || (sharing[i] & all) != all;
    return 0;
}

/* ---- summing as the values arrive ---- */

/* Elements of the range that are here from all, and, where the sum overwrites what we send, have
 * left to all. */
static size_t elements_available(const struct comm *c)
{
    const struct reduce *op = &c->reduce;
    size_t bytes = form_bytes(c->wire, op->count);
    bool overwrites = false;
    for (uint32_t i = 0; i < op->n_parts; i++) {
        uint32_t rank = op->parts[i].rank;
        if (rank == c->rank) {
            overwrites = !op->slices && c->wire == COMM_WIRE_F32;
            continue;
        }
        size_t here = lane_payload_done(&c->links[rank].in, 0);
        bytes = here < bytes ? here : bytes;
    }
    for (uint32_t i = 0; overwrites && i < op->group.n; i++) {
        if (op->group.first + i == c->rank)
            continue;
        size_t gone = lane_payload_done(&c->links[op->group.first + i].out, 0);
        bytes = gone < bytes ? gone : bytes;
    }
    return form_elements(c->wire, op->count, bytes);
}

/* More of this rank's slice may go to the others: [from, op->n_summed) of it is summed. */
static void release_sums(struct comm *c, size_t from)
{
    struct reduce *op = &c->reduce;
    if (c->wire != COMM_WIRE_F32) {
        /* Where this rank's own values lay: they are in the sum now. What it keeps is what the
         * others get. */
        uint8_t *at = op->own + form_bytes(c->wire, op->first + from);
        form_encode(c->wire, op->x + op->first + from, op->n_summed - from, at);
        form_decode(c->wire, at, op->n_summed - from, op->x + op->first + from);
    }
    size_t ready = form_bytes(c->wire, op->n_summed);
    for (uint32_t i = 0; i < op->group.n; i++) {
        if (op->group.first + i == c->rank)
            continue;
        struct lane *lane = &c->links[op->group.first + i].out;
        lane->transfers[lane->n - 1].ready = ready;
    }
}

/* Whether a step may end here: at the end, or when it is worth it. */
static bool is_step(size_t done, size_t available, size_t count)
{
    return available > done && (available == count || available - done >= STEP_ELEMENTS);
}

static bool sum_more(struct comm *c)
{
    struct reduce *op = &c->reduce;
    if (op->n_summed == op->count)
        return false;
    size_t available = elements_available(c), from = op->n_summed;
    if (!is_step(from, available, op->count))
        return false;
    const uint8_t *parts[LIMIT_RANKS];
    for (uint32_t i = 0; i < op->n_parts; i++)
        parts[i] = op->parts[i].data;
    sum_parts(c->wire, op->x + op->first, parts, op->n_parts, from, available);
    op->n_summed = available;
    if (op->slices)
        release_sums(c, from);
    return true;
}

/* Sums of others, in forms other than F32. They are the last that is queued of each. */
static bool decode_more(struct comm *c)
{
    struct reduce *op = &c->reduce;
    bool any = false;
    for (uint32_t i = 0; i < op->n_sums; i++) {
        const struct lane *lane = &c->links[op->sums[i].rank].in;
        size_t first = op->sums[i].first, count = op->sums[i].count, from = op->sums[i].n_decoded;
        if (from == count)
            continue;
        size_t available = form_elements(c->wire, count, lane_payload_done(lane, lane->n - 1));
        if (!is_step(from, available, count))
            continue;
        form_decode(c->wire, op->own + form_bytes(c->wire, first + from), available - from,
                    op->x + first + from);
        op->sums[i].n_decoded = available;
        any = true;
    }
    return any;
}

bool reduce_advance(struct comm *c)
{
    bool summed = sum_more(c);
    bool decoded = c->wire != COMM_WIRE_F32 && decode_more(c);
    return summed || decoded;
}

bool reduce_done(const struct comm *c)
{
    const struct reduce *op = &c->reduce;
    if (!op->active)
        return true;
    for (uint32_t i = 0; c->wire != COMM_WIRE_F32 && i < op->n_sums; i++)
        if (op->sums[i].n_decoded < op->sums[i].count)
            return false;
    return op->n_summed == op->count;
}
