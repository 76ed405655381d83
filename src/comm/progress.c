#include "comm/internal.h"

#include "base/clock.h"

#include <sched.h>
#include <string.h>

/* At most this much in one call, so that summing goes on while the bytes are still in the cache and
 * no peer waits for another. */
enum { MOVE_BYTES_MAX = 1 << 20 };
/* A frame whose bytes become ready little by little leaves in pieces of at least this size. */
enum { PIECE_BYTES_MIN = 16 << 10 };
/* Between two looks at the deadlines. */
enum { CHECK_EVERY_NS = 1000000 };
/* Who has waited this long takes in what others send, and looks again as often: a peer that waits
 * until we take its bytes may be the one who keeps us waiting. */
enum { INBOX_EVERY_NS = 50000 };
enum { SLEEP_MS_MAX = 60000 };
/* A yield that takes this long gave the core to somebody else, who keeps it for milliseconds. Who
 * sleeps instead gets it back as soon as he is woken: so when it happens twice within a short time
 * there is no yielding for a while. */
enum { YIELD_LONG_NS = 1000000, YIELD_AGAIN_NS = 10000000, CONTENDED_NS = 100000000 };

/* ---- the queues ---- */

static struct transfer *push(struct lane *lane, uint64_t *busy, uint32_t peer)
{
    if (lane->head == lane->n)
        lane->head = lane->n = 0;
    *busy |= UINT64_C(1) << peer;
    struct transfer *t = &lane->transfers[lane->n++];
    *t = (struct transfer){0};
    return t;
}

void comm_queue_out(struct comm *c, uint32_t peer, uint32_t kind, const void *data, size_t n,
                    size_t ready)
{
    struct lane *lane = &c->links[peer].out;
    struct transfer *t = push(lane, &c->sending, peer);
    t->data = (uint8_t *)(uintptr_t)data; /* only read */
    t->n = n;
    t->ready = ready;
    t->kind = kind;
    struct frame_header h = {.kind = kind, .length = (uint32_t)n, .sequence = lane->sequence++};
    frame_header_write(&h, t->header);
}

void comm_queue_in(struct comm *c, uint32_t peer, uint32_t kind, void *data, size_t n,
                   bool any_size)
{
    struct transfer *t = push(&c->links[peer].in, &c->receiving, peer);
    t->data = data;
    t->n = n;
    t->kind = kind;
    t->any_size = any_size;
}

size_t lane_payload_done(const struct lane *lane, uint32_t i)
{
    const struct transfer *t = &lane->transfers[i];
    if (i < lane->head)
        return t->n;
    return i > lane->head || t->done < FRAME_HEADER_BYTES ? 0 : t->done - FRAME_HEADER_BYTES;
}

static bool is_finished(const struct transfer *t)
{
    return t->done == FRAME_HEADER_BYTES + t->n;
}

static bool may_send(const struct transfer *t)
{
    size_t sent = t->done > FRAME_HEADER_BYTES ? t->done - FRAME_HEADER_BYTES : 0;
    return t->ready == t->n || t->ready - sent >= PIECE_BYTES_MIN;
}

/* ---- moving bytes ---- */

/* The bytes of header and payload from t->done to `end` payload bytes. */
static int describe(struct transfer *t, size_t end, struct iovec iov[2])
{
    int n = 0;
    size_t payload_done = 0;
    if (t->done < FRAME_HEADER_BYTES) {
        iov[n].iov_base = t->header + t->done;
        iov[n++].iov_len = FRAME_HEADER_BYTES - t->done;
    } else {
        payload_done = t->done - FRAME_HEADER_BYTES;
    }
    size_t bytes = end - payload_done;
    if (bytes > MOVE_BYTES_MAX)
        bytes = MOVE_BYTES_MAX;
    if (bytes > 0) {
        iov[n].iov_base = t->data + payload_done;
        iov[n++].iov_len = bytes;
    }
    return n;
}

static int check_header(struct transfer *t, uint32_t sequence, uint32_t peer, struct error *err)
{
    struct frame_header h;
    int r = frame_header_parse(t->header, &h, err);
    if (r != 0)
        return error_wrap(err, r, "from rank %u", peer);
    if (h.sequence != sequence)
        return error_set(err, E_PROTOCOL, "rank %u sent frame number %u, expected %u", peer,
                         h.sequence, sequence);
    if (h.kind != t->kind)
        return error_set(err, E_PROTOCOL,
                         "rank %u is at another operation: it sent %s, expected %s", peer,
                         frame_kind_name(h.kind), frame_kind_name(t->kind));
    if (t->any_size ? h.length > t->n : h.length != t->n)
        return error_set(err, E_PROTOCOL, "rank %u sent %u bytes, expected %s%zu", peer, h.length,
                         t->any_size ? "at most " : "", t->n);
    t->n = h.length;
    t->any_size = false;
    return 0;
}

/* The last frame of the lane has left: may its sender turn to other things? */
static int finish_out(struct comm *c, uint32_t peer, struct lane *lane, struct error *err)
{
    bool done = true;
    int r = 0;
    if (c->transport->ops->flush != NULL)
        r = c->transport->ops->flush(c->transport, peer, &done, err);
    if (r == 0 && done) {
        lane->head++;
        c->sending &= ~(UINT64_C(1) << peer);
    }
    return r;
}

static int move_out(struct comm *c, uint32_t peer, bool *ret_moved, struct error *err)
{
    struct lane *lane = &c->links[peer].out;
    for (;;) {
        struct transfer *t = &lane->transfers[lane->head];
        if (is_finished(t)) {
            if (lane->head + 1 == lane->n)
                return finish_out(c, peer, lane, err);
            lane->head++;
            continue;
        }
        if (!may_send(t))
            return 0;
        struct iovec iov[2];
        size_t moved;
        int r = c->transport->ops->try_send(c->transport, peer, iov, describe(t, t->ready, iov),
                                            &moved, err);
        if (r != 0)
            return r;
        if (moved == 0)
            return 0;
        *ret_moved = true;
        c->stats.bytes_sent += moved;
        t->done += moved;
        if (!is_finished(t))
            return 0; /* the buffer is full, or it is another peer's turn */
    }
}

/* Begins with what came before it was asked for. */
static int take_from_inbox(struct comm *c, uint32_t peer, struct lane *lane, struct error *err)
{
    struct transfer *t = &lane->transfers[lane->head];
    inbox_give_header(c, peer, t);
    if (t->done < FRAME_HEADER_BYTES)
        return 0;
    int r = check_header(t, lane->sequence, peer, err);
    if (r != 0)
        return r;
    lane->sequence++;
    inbox_give_payload(c, peer, t);
    return 0;
}

static int move_in(struct comm *c, uint32_t peer, bool *ret_moved, struct error *err)
{
    struct lane *lane = &c->links[peer].in;
    while (lane->head < lane->n) {
        struct transfer *t = &lane->transfers[lane->head];
        if (t->done == 0 && !inbox_is_empty(c, peer)) {
            int r = take_from_inbox(c, peer, lane, err);
            if (r != 0)
                return r;
            *ret_moved = true;
            if (is_finished(t)) {
                lane->head++;
                continue;
            }
        }
        bool had_header = t->done >= FRAME_HEADER_BYTES;
        /* Header and payload come with one call, never a byte of the next frame. */
        size_t end = t->any_size ? 0 : t->n;
        struct iovec iov[2];
        size_t moved;
        int r = c->transport->ops->try_recv(c->transport, peer, iov, describe(t, end, iov), &moved,
                                            err);
        if (r != 0)
            return r;
        if (moved == 0)
            return 0;
        *ret_moved = true;
        c->stats.bytes_received += moved;
        t->done += moved;
        if (!had_header && t->done >= FRAME_HEADER_BYTES) {
            r = check_header(t, lane->sequence, peer, err);
            if (r != 0)
                return r;
            lane->sequence++;
        }
        if (!is_finished(t)) {
            if (!had_header && t->done == FRAME_HEADER_BYTES)
                continue;
            return 0;
        }
        lane->head++;
    }
    c->receiving &= ~(UINT64_C(1) << peer);
    return 0;
}

int comm_progress(struct comm *c, uint64_t now_ns, bool *ret_moved, struct error *err)
{
    *ret_moved = false;
    uint64_t out = c->sending, in = c->receiving;
    for (; out != 0; out &= out - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(out);
        bool moved = false;
        int r = move_out(c, peer, &moved, err);
        if (r != 0)
            return r;
        if (moved) {
            c->links[peer].progress_ns = now_ns;
            *ret_moved = true;
        }
    }
    for (; in != 0; in &= in - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(in);
        bool moved = false;
        int r = move_in(c, peer, &moved, err);
        if (r != 0)
            return r;
        if (moved) {
            c->links[peer].progress_ns = c->links[peer].heard_ns = now_ns;
            *ret_moved = true;
        }
    }
    if (c->reduce.active && reduce_advance(c))
        *ret_moved = true;
    return 0;
}

/* ---- waiting ---- */

/* Peers whose turn it is: those we receive from, and those who have yet to take bytes that are
 * ready. */
static uint64_t peers_to_send(const struct comm *c)
{
    uint64_t peers = 0;
    for (uint64_t out = c->sending; out != 0; out &= out - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(out);
        const struct lane *lane = &c->links[peer].out;
        const struct transfer *t = &lane->transfers[lane->head];
        if (may_send(t))
            peers |= UINT64_C(1) << peer;
    }
    return peers;
}

/* When the next deadline will be missed. A byte either way puts it off. */
static uint64_t next_deadline(const struct comm *c, uint64_t peers, uint64_t timeout_ns)
{
    uint64_t oldest = UINT64_MAX;
    for (; peers != 0; peers &= peers - 1) {
        const struct link *link = &c->links[__builtin_ctzll(peers)];
        oldest = link->progress_ns < oldest ? link->progress_ns : oldest;
    }
    return oldest > UINT64_MAX - timeout_ns ? UINT64_MAX : oldest + timeout_ns;
}

/* Who has said nothing for longest. Bytes that a socket buffer took from us are no sign of life, so
 * they do not count here: a peer that waits for the silent one itself is not blamed. */
static uint32_t find_silent(const struct comm *c, uint64_t sending)
{
    uint64_t oldest = UINT64_MAX;
    uint32_t silent = 0;
    for (uint64_t peers = c->receiving != 0 ? c->receiving : sending; peers != 0;
         peers &= peers - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(peers);
        if (c->links[peer].heard_ns < oldest) {
            oldest = c->links[peer].heard_ns;
            silent = peer;
        }
    }
    return silent;
}

static inline void relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Is a peer silent for too long? */
static int check_patience(const struct comm *c, uint64_t now_ns, uint64_t timeout_ns,
                          struct error *err)
{
    uint64_t sending = peers_to_send(c);
    if (now_ns < next_deadline(c, sending | c->receiving, timeout_ns))
        return 0;
    error_set(err, E_TIMEOUT, "rank %u is silent (limit %llu ms)", find_silent(c, sending),
              (unsigned long long)(timeout_ns / 1000000));
    for (uint32_t peer = 0; peer < c->size; peer++)
        if (!inbox_has_room(c, peer))
            return error_wrap(err, E_TIMEOUT,
                              "nothing more is taken in of rank %u: %zu bytes have arrived that "
                              "were not asked for (limit %zu)",
                              peer, c->inbox_bytes, c->inbox_bytes_max);
    return E_TIMEOUT;
}

static int sleep_turn(struct comm *c, uint64_t now_ns, uint64_t timeout_ns, struct error *err)
{
    uint64_t sending = peers_to_send(c);
    uint64_t deadline = next_deadline(c, sending | c->receiving, timeout_ns);
    uint64_t ms = deadline > now_ns ? (deadline - now_ns + 999999) / 1000000 : 0;
    return c->transport->ops->wait(c->transport, c->receiving | inbox_open_peers(c), sending,
                                   ms < SLEEP_MS_MAX ? (int)ms : SLEEP_MS_MAX, err);
}

/* Nothing moved for idle_ns: spin a turn, or sleep. */
static int wait_turn(struct comm *c, uint64_t now_ns, uint64_t idle_ns, uint64_t timeout_ns,
                     struct error *err)
{
    if (idle_ns < c->yield_after_ns && idle_ns < c->spin_ns) {
        relax();
        return 0;
    }
    if (idle_ns >= c->spin_ns || now_ns < c->contended_until_ns)
        return sleep_turn(c, now_ns, timeout_ns, err);
    sched_yield();
    uint64_t back_ns = clock_now_ns();
    if (back_ns - now_ns > YIELD_LONG_NS) {
        if (now_ns - c->long_yield_ns < YIELD_AGAIN_NS)
            c->contended_until_ns = back_ns + CONTENDED_NS;
        c->long_yield_ns = back_ns;
    }
    return 0;
}

int comm_drive(struct comm *c, const char *operation, uint64_t timeout_ns, struct error *err)
{
    struct error cause = {0};
    uint64_t start_ns = clock_now_ns(), now_ns = start_ns, moved_ns = start_ns;
    uint64_t check_ns = start_ns + CHECK_EVERY_NS, inbox_ns = start_ns + INBOX_EVERY_NS;
    for (uint64_t peers = c->sending | c->receiving; peers != 0; peers &= peers - 1) {
        struct link *link = &c->links[__builtin_ctzll(peers)];
        link->progress_ns = link->heard_ns = start_ns;
    }
    int r;
    for (;;) {
        bool moved;
        r = comm_progress(c, now_ns, &moved, &cause);
        if (r != 0 || ((c->sending | c->receiving) == 0 && reduce_done(c)))
            break;
        now_ns = clock_now_ns();
        /* Always before sleeping: what has arrived would end the sleep at once. */
        if (!moved && (now_ns >= inbox_ns || now_ns - moved_ns >= c->spin_ns)) {
            inbox_fill_others(c, now_ns, &moved);
            inbox_ns = moved ? now_ns : now_ns + INBOX_EVERY_NS;
        }
        if (moved)
            moved_ns = now_ns;
        if (atomic_load_explicit(&c->aborted, memory_order_relaxed)) {
            r = error_set(&cause, E_CANCELLED, "aborted");
            break;
        }
        /* Also while bytes move: those of one peer must not hide the silence of another. */
        if (now_ns >= check_ns) {
            r = check_patience(c, now_ns, timeout_ns, &cause);
            check_ns = now_ns + CHECK_EVERY_NS;
        }
        if (r == 0 && !moved)
            r = wait_turn(c, now_ns, now_ns - moved_ns, timeout_ns, &cause);
        if (r != 0)
            break;
    }
    c->stats.wait_ns += clock_now_ns() - start_ns;
    return r == 0 ? 0 : comm_break(c, operation, r, &cause, err);
}

int comm_break(struct comm *c, const char *operation, int code, const struct error *cause,
               struct error *err)
{
    if (c->cause.code == 0) {
        c->cause = *cause;
        error_wrap(&c->cause, code, "rank %u, %s", c->rank, operation);
        c->transport->ops->shutdown(c->transport);
        c->sending = c->receiving = 0;
        c->reduce.active = false;
    }
    return error_set(err, c->cause.code, "%s", c->cause.message);
}
