/*
 * One connection's way from a stranger to a rank.
 *
 *   connector                     acceptor
 *   hello            ->
 *                    <-           hello, proof
 *   proof            ->
 *                    <-           verdict
 *
 * The accepting side shows nothing before it has seen a hello of our protocol, and neither side
 * believes anything of the other's hello before it has seen the proof that the other holds the key.
 */
#include "comm/tcp_attempt.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"

#include <openssl/crypto.h>

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* ---- the ends of an attempt ---- */

void attempt_end(struct attempt *a)
{
    if (a->fd >= 0)
        close(a->fd);
    a->fd = -1;
    a->stage = UNUSED;
    a->n_in = a->n_out = a->n_out_sent = 0;
}

void attempt_refuse(struct shake *s, struct attempt *a, const char *why)
{
    char from[ADDRESS_TEXT_BYTES];
    tcp_address_text(&a->address, from);
    s->listener->n_refused++;
    if (s->n_refused++ == 0)
        log_warn("comm", "refused a connection from %s: %s (further ones are only counted)", from,
                 why);
    else
        log_debug("comm", "refused a connection from %s: %s", from, why);
    attempt_end(a);
}

/* A connection of ours that came to nothing: later again, until the deadline of all. */
static void retry_because(struct attempt *a, const struct error *why)
{
    uint32_t rank = a->rank;
    attempt_end(a);
    a->last = *why;
    a->rank = rank;
    a->stage = RETRY;
    a->deadline_ns = clock_now_ns() + CONNECT_RETRY_MS * UINT64_C(1000000);
}

void attempt_retry(struct attempt *a, const char *why)
{
    struct error e = {0};
    error_set(&e, E_PEERLOST, "%s", why);
    retry_because(a, &e);
}

static void establish(struct shake *s, struct attempt *a, uint32_t rank)
{
    tcp_tune(a->fd);
    s->fds[rank] = a->fd;
    a->fd = -1;
    attempt_end(a);
    s->n_connected++;
    log_debug("comm", "rank %u is connected to rank %u", s->me->rank, rank);
}

/* ---- what we say ---- */

static void say(struct attempt *a, const void *data, size_t n)
{
    memcpy(a->out + a->n_out, data, n);
    a->n_out += n;
}

void attempt_want(struct attempt *a, enum stage stage, size_t n)
{
    a->stage = stage;
    a->n_in = 0;
    a->n_in_want = n;
}

static int make_hello(const struct shake *s, struct attempt *a, struct error *err)
{
    struct hello h = {.rank = s->me->rank, .n_ranks = s->me->n_ranks};
    memcpy(h.program_hash, s->me->program_hash, HASH_BYTES);
    if (rng_system(h.nonce, sizeof(h.nonce)) != 0)
        return error_set(err, E_INTERNAL, "the system gives no random numbers");
    hello_write(&h, a->our_hello);
    return 0;
}

/* Writes what is queued, as far as it goes. False: the connection is lost. */
static bool flush(struct attempt *a)
{
    while (a->n_out_sent < a->n_out) {
        ssize_t n = send(a->fd, a->out + a->n_out_sent, a->n_out - a->n_out_sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR;
        a->n_out_sent += (size_t)n;
    }
    a->n_out = a->n_out_sent = 0;
    return true;
}

/* ---- what they said: the connecting side ---- */

static bool proof_is_right(const struct shake *s, enum hello_role role, const uint8_t *connector,
                           const uint8_t *acceptor, const uint8_t *proof)
{
    uint8_t expected[PROOF_BYTES];
    bool right = hello_prove(s->me->key, role, connector, acceptor, expected) == 0 &&
                 CRYPTO_memcmp(expected, proof, PROOF_BYTES) == 0;
    OPENSSL_cleanse(expected, sizeof(expected));
    return right;
}

static int wrong_program(const struct shake *s, const struct hello *h, struct error *err)
{
    if (h->n_ranks != s->me->n_ranks)
        return error_set(
            err, E_PROTOCOL,
            "rank %u counts %u ranks, rank %u counts %u: start all ranks from the same plan",
            h->rank, h->n_ranks, s->me->rank, s->me->n_ranks);
    return error_set(
        err, E_PROTOCOL,
        "rank %u would run another program than rank %u (release, model, split or wire "
        "type differ): start all ranks from the same plan and release",
        h->rank, s->me->rank);
}

static bool same_program(const struct shake *s, const struct hello *h)
{
    return h->n_ranks == s->me->n_ranks &&
           memcmp(h->program_hash, s->me->program_hash, HASH_BYTES) == 0;
}

static int take_answer(struct shake *s, struct attempt *a, struct error *err)
{
    struct hello h;
    struct error why = {0};
    memcpy(a->their_hello, a->in, HELLO_BYTES);
    if (hello_parse(a->their_hello, &h, &why) != 0) {
        retry_because(a, &why);
        return 0;
    }
    if (!proof_is_right(s, HELLO_ACCEPTOR, a->our_hello, a->their_hello, a->in + HELLO_BYTES)) {
        attempt_retry(a, "who listens there does not hold this instance's key");
        return 0;
    }
    uint8_t proof[PROOF_BYTES];
    int r = hello_prove(s->me->key, HELLO_CONNECTOR, a->our_hello, a->their_hello, proof);
    if (r != 0)
        return error_set(err, r, "cannot compute HMAC-SHA256");
    say(a, proof, PROOF_BYTES);
    /* Even when it ends here: the other side should learn the reason too. */
    bool sent = flush(a);
    if (!same_program(s, &h))
        return wrong_program(s, &h, err);
    if (h.rank != a->rank)
        return error_set(err, E_PROTOCOL, "the address of rank %u belongs to rank %u", a->rank,
                         h.rank);
    if (!sent) {
        attempt_retry(a, "it closed the connection");
        return 0;
    }
    attempt_want(a, WANT_VERDICT, VERDICT_BYTES);
    return 0;
}

static int take_verdict(struct shake *s, struct attempt *a, struct error *err)
{
    enum verdict v;
    struct error why = {0};
    if (verdict_parse(a->in, &v, &why) != 0) {
        retry_because(a, &why);
        return 0;
    }
    if (v != VERDICT_WELCOME)
        return error_set(err, E_PROTOCOL, "rank %u refuses rank %u: %s", a->rank, s->me->rank,
                         verdict_text(v));
    establish(s, a, a->rank);
    return 0;
}

/* ---- what they said: the accepting side ---- */

static int take_hello(struct shake *s, struct attempt *a, struct error *err)
{
    struct hello h;
    struct error why = {0};
    memcpy(a->their_hello, a->in, HELLO_BYTES);
    if (hello_parse(a->their_hello, &h, &why) != 0) {
        attempt_refuse(s, a, why.message);
        return 0;
    }
    uint8_t proof[PROOF_BYTES];
    int r = make_hello(s, a, err);
    if (r != 0)
        return r;
    r = hello_prove(s->me->key, HELLO_ACCEPTOR, a->their_hello, a->our_hello, proof);
    if (r != 0)
        return error_set(err, r, "cannot compute HMAC-SHA256");
    say(a, a->our_hello, HELLO_BYTES);
    say(a, proof, PROOF_BYTES);
    attempt_want(a, WANT_PROOF, PROOF_BYTES);
    return 0;
}

/* Whether a connection that was made before is dead, so that the rank may come again. What it said
 * before it died may be there unread. */
static bool is_dead(int fd)
{
#ifdef POLLRDHUP
    struct pollfd p = {.fd = fd, .events = POLLRDHUP};
    return poll(&p, 1, 0) > 0;
#else
    char byte;
    ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
#endif
}

static enum verdict judge(struct shake *s, const struct hello *h)
{
    if (h->n_ranks != s->me->n_ranks)
        return VERDICT_OTHER_SIZE;
    if (!same_program(s, h))
        return VERDICT_OTHER_PROGRAM;
    if (h->rank <= s->me->rank)
        return VERDICT_WRONG_RANK;
    int *fd = &s->fds[h->rank];
    if (*fd < 0)
        return VERDICT_WELCOME;
    if (!is_dead(*fd))
        return VERDICT_DUPLICATE;
    close(*fd);
    *fd = -1;
    s->n_connected--;
    return VERDICT_WELCOME;
}

static int take_proof(struct shake *s, struct attempt *a, struct error *err)
{
    struct hello h;
    if (!proof_is_right(s, HELLO_CONNECTOR, a->their_hello, a->our_hello, a->in)) {
        attempt_refuse(s, a, "it does not hold this instance's key");
        return 0;
    }
    int r = hello_parse(a->their_hello, &h, err);
    if (r != 0)
        return r;
    enum verdict v = judge(s, &h);
    uint8_t bytes[VERDICT_BYTES];
    verdict_write(v, bytes);
    say(a, bytes, sizeof(bytes));
    /* Eight bytes on a connection that carried more before: they fit, or the connection is lost. */
    bool sent = flush(a) && a->n_out == 0;
    if (v == VERDICT_OTHER_SIZE || v == VERDICT_OTHER_PROGRAM)
        return wrong_program(s, &h, err);
    if (v != VERDICT_WELCOME)
        attempt_refuse(s, a, verdict_text(v));
    else if (!sent)
        attempt_refuse(s, a, "the connection was lost");
    else
        establish(s, a, h.rank);
    return 0;
}

/* ---- one attempt's turn ---- */

static void fail_attempt(struct shake *s, struct attempt *a, const char *why)
{
    if (a->stage == WANT_HELLO || a->stage == WANT_PROOF)
        attempt_refuse(s, a, why);
    else
        attempt_retry(a, why);
}

static int take(struct shake *s, struct attempt *a, struct error *err)
{
    switch (a->stage) {
    case WANT_ANSWER:
        return take_answer(s, a, err);
    case WANT_VERDICT:
        return take_verdict(s, a, err);
    case WANT_HELLO:
        return take_hello(s, a, err);
    case WANT_PROOF:
        return take_proof(s, a, err);
    default:
        return error_set(err, E_INTERNAL, "handshake in stage %d", (int)a->stage);
    }
}

/* Reads exactly what this stage wants, so that no byte of the data plane is swallowed. */
int attempt_read(struct shake *s, struct attempt *a, struct error *err)
{
    while (a->fd >= 0 && a->stage != UNUSED) {
        ssize_t n = recv(a->fd, a->in + a->n_in, a->n_in_want - a->n_in, MSG_DONTWAIT);
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
            break;
        if (n <= 0) {
            fail_attempt(s, a, n == 0 ? "it closed the connection" : strerror(errno));
            return 0;
        }
        a->n_in += (size_t)n;
        if (a->n_in < a->n_in_want)
            continue;
        int r = take(s, a, err);
        if (r != 0)
            return r;
    }
    if (a->fd >= 0 && !flush(a))
        fail_attempt(s, a, "it closed the connection");
    return 0;
}

static bool is_connected_to_itself(int fd)
{
    struct sockaddr_storage ours = {0}, theirs = {0};
    socklen_t our_len = sizeof(ours), their_len = sizeof(theirs);
    return getsockname(fd, (struct sockaddr *)&ours, &our_len) == 0 &&
           getpeername(fd, (struct sockaddr *)&theirs, &their_len) == 0 && our_len == their_len &&
           memcmp(&ours, &theirs, our_len) == 0;
}

int attempt_connected(struct shake *s, struct attempt *a, struct error *err)
{
    int error = 0;
    socklen_t len = sizeof(error);
    if (getsockopt(a->fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0)
        error = errno;
    if (error != 0) {
        attempt_retry(a, strerror(error));
        return 0;
    }
    /* TCP may join a socket to itself where nobody listens on a port that the system also hands
     * out. */
    if (is_connected_to_itself(a->fd)) {
        attempt_retry(a, "nobody listens there");
        return 0;
    }
    int r = make_hello(s, a, err);
    if (r != 0)
        return r;
    say(a, a->our_hello, HELLO_BYTES);
    attempt_want(a, WANT_ANSWER, HELLO_BYTES + PROOF_BYTES);
    a->deadline_ns = s->deadline_ns; /* it may be busy elsewhere until it accepts */
    if (!flush(a))
        attempt_retry(a, "it closed the connection");
    return 0;
}
