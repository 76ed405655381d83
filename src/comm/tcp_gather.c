/*
 * How the ranks find each other: one poll loop over the listener, our own attempts to reach the
 * lower ranks, and the accepted connections that have yet to show who they are. Nobody is waited
 * for alone: a silent stranger delays no one, and gives its place to the next when it is the
 * oldest.
 */
#include "comm/tcp_attempt.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- connecting ---- */

static int start_connect(struct shake *s, struct attempt *a, const struct comm_tcp_peer *peer,
                         struct error *err)
{
    char host[sizeof(peer->host) + 1] = {0};
    memcpy(host, peer->host, sizeof(peer->host));
    socklen_t len;
    int r = tcp_address_parse(host, peer->port, &a->address, &len, err);
    if (r != 0)
        return error_wrap(err, r, "address of rank %u", a->rank);
    a->fd = socket(a->address.ss_family, SOCK_STREAM, 0);
    if (a->fd < 0 || tcp_set_nonblocking(a->fd) != 0) {
        attempt_retry(a, strerror(errno));
        return 0;
    }
    /* Before connecting: the window is agreed on then. */
    tcp_tune(a->fd);
    a->stage = CONNECTING;
    a->deadline_ns = s->deadline_ns;
    a->since_ns = clock_now_ns();
    if (connect(a->fd, (struct sockaddr *)&a->address, len) == 0)
        return attempt_connected(s, a, err);
    if (errno != EINPROGRESS && errno != EINTR)
        attempt_retry(a, strerror(errno));
    return 0;
}

/* ---- accepting ---- */

static struct attempt *find_place(struct shake *s)
{
    struct attempt *oldest = &s->in[0];
    for (int i = 0; i < LIMIT_HANDSHAKES; i++) {
        struct attempt *a = &s->in[i];
        if (a->stage == UNUSED)
            return a;
        if (a->since_ns < oldest->since_ns)
            oldest = a;
    }
    attempt_refuse(s, oldest, "it showed nothing, and others wait");
    return oldest;
}

static void accept_some(struct shake *s, uint64_t now_ns)
{
    /* A few at a time, so that a flood leaves turns to those who are here. */
    for (int i = 0; i < 16; i++) {
        struct sockaddr_storage address = {0};
        socklen_t len = sizeof(address);
        int fd = accept(s->listener->fd, (struct sockaddr *)&address, &len);
        if (fd < 0) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                s->accept_again_ns = now_ns + CONNECT_RETRY_MS * UINT64_C(1000000);
            return;
        }
        if (tcp_set_nonblocking(fd) != 0) {
            close(fd);
            continue;
        }
        struct attempt *a = find_place(s);
        a->fd = fd;
        a->address = address;
        a->since_ns = now_ns;
        a->deadline_ns = now_ns + HANDSHAKE_TIMEOUT_MS * UINT64_C(1000000);
        attempt_want(a, WANT_HELLO, HELLO_BYTES);
    }
}

/* ---- the loop ---- */

static void expire(struct shake *s, uint64_t now_ns)
{
    for (int i = 0; i < LIMIT_HANDSHAKES; i++)
        if (s->in[i].stage != UNUSED && now_ns >= s->in[i].deadline_ns)
            attempt_refuse(s, &s->in[i], "it did not show in time who it is");
}

static uint64_t next_time(const struct shake *s)
{
    uint64_t next = s->deadline_ns;
    for (int i = 0; i < LIMIT_HANDSHAKES; i++)
        if (s->in[i].stage != UNUSED && s->in[i].deadline_ns < next)
            next = s->in[i].deadline_ns;
    for (uint32_t i = 0; i < s->me->rank; i++)
        if (s->out[i].stage == RETRY && s->out[i].deadline_ns < next)
            next = s->out[i].deadline_ns;
    if (s->accept_again_ns != 0 && s->accept_again_ns < next)
        next = s->accept_again_ns;
    return next;
}

static nfds_t add_poll(struct pollfd *fds, nfds_t n, struct attempt **who, struct attempt *a)
{
    if (a->fd < 0)
        return n;
    fds[n].fd = a->fd;
    fds[n].events =
        (short)(a->stage == CONNECTING ? POLLOUT : POLLIN | (a->n_out > 0 ? POLLOUT : 0));
    fds[n].revents = 0;
    who[n] = a;
    return n + 1;
}

static int turn(struct shake *s, const struct comm_tcp_peer *peers, struct error *err)
{
    struct pollfd fds[1 + LIMIT_RANKS + LIMIT_HANDSHAKES];
    struct attempt *who[1 + LIMIT_RANKS + LIMIT_HANDSHAKES];
    uint64_t now = clock_now_ns();
    for (uint32_t i = 0; i < s->me->rank; i++)
        if (s->out[i].stage == RETRY && now >= s->out[i].deadline_ns) {
            int r = start_connect(s, &s->out[i], &peers[i], err);
            if (r != 0)
                return r;
        }
    expire(s, now);
    if (now >= s->accept_again_ns)
        s->accept_again_ns = 0;
    nfds_t n = 1;
    bool accepting = s->me->rank + 1 < s->me->n_ranks && s->accept_again_ns == 0;
    fds[0].fd = accepting ? s->listener->fd : -1;
    fds[0].events = POLLIN;
    fds[0].revents = 0;
    for (uint32_t i = 0; i < s->me->rank; i++)
        n = add_poll(fds, n, who, &s->out[i]);
    for (int i = 0; i < LIMIT_HANDSHAKES; i++)
        n = add_poll(fds, n, who, &s->in[i]);
    uint64_t next = next_time(s);
    int ms = next > now ? (int)((next - now + 999999) / 1000000) : 0;
    if (poll(fds, n, ms) < 0)
        return errno == EINTR ? 0 : error_set(err, E_IO, "poll: %s", strerror(errno));
    for (nfds_t i = 1; i < n; i++) {
        /* An earlier one's turn may have ended this one. */
        if (fds[i].revents == 0 || who[i]->fd != fds[i].fd)
            continue;
        int r = who[i]->stage == CONNECTING ? attempt_connected(s, who[i], err)
                                            : attempt_read(s, who[i], err);
        if (r != 0)
            return r;
    }
    if (fds[0].revents != 0)
        accept_some(s, clock_now_ns());
    return 0;
}

static int time_out(const struct shake *s, uint32_t timeout_ms, struct error *err)
{
    char text[384];
    size_t len = 0;
    for (uint32_t i = 0; i < s->me->n_ranks; i++) {
        if (i == s->me->rank || s->fds[i] >= 0)
            continue;
        int n = snprintf(text + len, sizeof(text) - len, "%s%u", len > 0 ? ", " : "", i);
        len += (size_t)n < sizeof(text) - len ? (size_t)n : sizeof(text) - len - 1;
        const char *why = i < s->me->rank ? s->out[i].last.message : "";
        n = why[0] != '\0' ? snprintf(text + len, sizeof(text) - len, " (%.120s)", why) : 0;
        len += (size_t)n < sizeof(text) - len ? (size_t)n : sizeof(text) - len - 1;
    }
    return error_set(err, E_TIMEOUT, "rank %u waited %u ms and misses rank %s", s->me->rank,
                     timeout_ms, text);
}

int tcp_gather(struct comm_tcp_listener *l, const struct tcp_identity *me,
               const struct comm_tcp_peer *peers, uint32_t timeout_ms, int *fds, struct error *err)
{
    if (me->rank + 1 < me->n_ranks && l == NULL)
        return error_set(err, E_INVALID, "rank %u of %u needs a listener", me->rank, me->n_ranks);
    struct shake *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "no memory to connect %u ranks", me->n_ranks);
    s->listener = l;
    s->me = me;
    s->fds = fds;
    s->deadline_ns = clock_now_ns() + timeout_ms * UINT64_C(1000000);
    for (int i = 0; i < LIMIT_HANDSHAKES; i++)
        s->in[i].fd = -1;
    for (uint32_t i = 0; i < LIMIT_RANKS; i++) {
        s->out[i].fd = -1;
        s->out[i].rank = i;
        s->out[i].stage = i < me->rank ? RETRY : UNUSED;
    }
    for (uint32_t i = 0; i < me->n_ranks; i++)
        fds[i] = -1;

    int r = 0;
    while (r == 0 && s->n_connected + 1 < me->n_ranks)
        r = clock_now_ns() >= s->deadline_ns ? time_out(s, timeout_ms, err) : turn(s, peers, err);

    for (uint32_t i = 0; i < LIMIT_RANKS; i++)
        attempt_end(&s->out[i]);
    for (int i = 0; i < LIMIT_HANDSHAKES; i++)
        attempt_end(&s->in[i]);
    if (s->n_refused > 1)
        log_warn("comm", "refused %llu connections while the ranks gathered",
                 (unsigned long long)s->n_refused);
    for (uint32_t i = 0; r != 0 && i < me->n_ranks; i++) {
        if (fds[i] >= 0)
            close(fds[i]);
        fds[i] = -1;
    }
    free(s);
    return r;
}
