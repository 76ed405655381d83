/*
 * The back end over UCX, for links that it knows better than TCP does. The ranks meet as over TCP,
 * then tell each other their UCX addresses over those connections. The stream to a peer is a
 * sequence of tagged messages of at most CHUNK_BYTES, copied on both sides; an empty one says that
 * the sender has left. The connections stay: the end of one without that message means that the
 * peer died.
 */
#include "comm/transport.h"

#ifdef SHOAL_HAVE_UCX

#include "base/clock.h"
#include "comm/tcp.h"
#include "comm/wake.h"

#include <ucp/api/ucp.h>

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK_BYTES = 256 << 10, N_CHUNKS = 16 };
enum { ADDRESS_BYTES_MAX = 16 << 10 };
enum { SPIN_US = 1000 };
/* Leaving waits this long for what is still on its way. */
enum { LINGER_NS = 1000000000 };
/* What was on its way when the connection ended may arrive this much later. */
enum { LAST_WORDS_NS = 50000000 };
enum { LOOK_EVERY = 256 };

struct chunk {
    void *request; /* NULL: arrived */
    uint8_t *data; /* [CHUNK_BYTES], NULL: never used */
};

struct peer {
    int fd;
    ucp_ep_h endpoint;
    struct chunk out[N_CHUNKS]; /* a ring: n_out from first_out on are under way */
    uint32_t first_out, n_out;
    uint8_t *in; /* [CHUNK_BYTES] the message that is being read */
    size_t n_in, in_done;
    uint32_t n_looks;   /* since the connection was looked at */
    uint64_t closed_ns; /* when the connection was found to be closed; 0: it stands */
    bool gone;
};

struct ucx {
    struct transport base;
    uint32_t rank, size;
    bool left;
    struct wake wake;
    ucp_context_h context;
    ucp_worker_h worker;
    int event_fd;
    struct peer peers[];
};

static int failed(ucs_status_t status, uint32_t peer, struct error *err)
{
    return error_set(err, E_PEERLOST, "rank %u: UCX: %s", peer, ucs_status_string(status));
}

/* ---- moving bytes ---- */

static int reclaim(struct peer *p, uint32_t rank, struct error *err)
{
    while (p->n_out > 0) {
        struct chunk *c = &p->out[p->first_out];
        ucs_status_t status = c->request == NULL ? UCS_OK : ucp_request_check_status(c->request);
        if (status == UCS_INPROGRESS)
            return 0;
        if (c->request != NULL)
            ucp_request_free(c->request);
        c->request = NULL;
        p->first_out = (p->first_out + 1) % N_CHUNKS;
        p->n_out--;
        if (status != UCS_OK)
            return failed(status, rank, err);
    }
    return 0;
}

/* An empty message when n is 0. There is room for it. */
static int send_chunk(struct ucx *u, struct peer *p, uint32_t rank, size_t n, struct error *err)
{
    struct chunk *c = &p->out[(p->first_out + p->n_out) % N_CHUNKS];
    ucp_request_param_t param = {0};
    void *request = ucp_tag_send_nbx(p->endpoint, c->data, n, u->rank, &param);
    if (UCS_PTR_IS_ERR(request))
        return failed(UCS_PTR_STATUS(request), rank, err);
    c->request = request;
    p->n_out++;
    return 0;
}

static void look_at_connection(struct peer *p)
{
    char byte;
    p->n_looks = 0;
    ssize_t n = recv(p->fd, &byte, 1, MSG_DONTWAIT);
    if (p->closed_ns == 0 &&
        (n >= 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR)))
        p->closed_ns = clock_now_ns();
}

/* Takes in the next message, when there is one and the last is read. */
static int take_in(struct ucx *u, uint32_t rank, struct error *err)
{
    struct peer *p = &u->peers[rank];
    if (p->gone || p->in_done < p->n_in)
        return 0;
    ucp_tag_recv_info_t info = {0};
    ucp_worker_progress(u->worker);
    ucp_tag_message_h message = ucp_tag_probe_nb(u->worker, rank, UINT64_MAX, 1, &info);
    if (message == NULL) {
        if (++p->n_looks >= LOOK_EVERY)
            look_at_connection(p);
        p->gone = p->closed_ns != 0 && clock_now_ns() - p->closed_ns > LAST_WORDS_NS;
        return 0;
    }
    if (info.length > CHUNK_BYTES)
        return error_set(err, E_PROTOCOL, "rank %u sent a UCX message of %zu bytes", rank,
                         info.length);
    if (p->in == NULL && (p->in = malloc(CHUNK_BYTES)) == NULL)
        return error_set(err, E_NOMEM, "no memory for what rank %u sends", rank);
    ucp_request_param_t param = {0};
    void *request = ucp_tag_msg_recv_nbx(u->worker, p->in, info.length, message, &param);
    ucs_status_t status = UCS_PTR_IS_ERR(request) ? UCS_PTR_STATUS(request) : UCS_OK;
    if (request != NULL && !UCS_PTR_IS_ERR(request)) {
        /* A large message is fetched from the sender, who may be dead. */
        uint64_t deadline = clock_now_ns() + COMM_TIMEOUT_MS * UINT64_C(1000000);
        while ((status = ucp_request_check_status(request)) == UCS_INPROGRESS &&
               clock_now_ns() < deadline) {
            if (ucp_worker_progress(u->worker) == 0 && ++p->n_looks >= LOOK_EVERY)
                look_at_connection(p);
            if (p->closed_ns != 0 && clock_now_ns() - p->closed_ns > LAST_WORDS_NS)
                break;
        }
        if (status == UCS_INPROGRESS)
            p->in = NULL; /* UCX may write there yet */
        else
            ucp_request_free(request);
    }
    if (status != UCS_OK)
        return failed(status, rank, err);
    p->n_in = info.length;
    p->in_done = 0;
    p->gone = info.length == 0;
    return 0;
}

static int try_send(struct transport *t, uint32_t rank, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct ucx *u = (struct ucx *)t;
    struct peer *p = &u->peers[rank];
    *ret_moved = 0;
    if (u->left)
        return transport_lost(rank, "the connection is closed", err);
    int r = take_in(u, rank, err);
    if (r == 0)
        r = reclaim(p, rank, err);
    if (r == 0 && p->gone)
        r = transport_lost(rank, "it left", err);
    if (r != 0 || p->n_out == N_CHUNKS)
        return r;
    struct chunk *c = &p->out[(p->first_out + p->n_out) % N_CHUNKS];
    if (c->data == NULL && (c->data = malloc(CHUNK_BYTES)) == NULL)
        return error_set(err, E_NOMEM, "no memory to send to rank %u", rank);
    size_t n = iov_gather(c->data, CHUNK_BYTES, iov, n_iov);
    r = send_chunk(u, p, rank, n, err);
    if (r == 0)
        *ret_moved = n;
    return r;
}

static int try_recv(struct transport *t, uint32_t rank, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct ucx *u = (struct ucx *)t;
    struct peer *p = &u->peers[rank];
    *ret_moved = 0;
    if (u->left)
        return transport_lost(rank, "the connection is closed", err);
    int r = take_in(u, rank, err);
    if (r != 0)
        return r;
    if (p->in_done == p->n_in)
        return p->gone ? transport_lost(rank, "it left", err) : 0;
    *ret_moved = iov_scatter(p->in + p->in_done, p->n_in - p->in_done, iov, n_iov);
    p->in_done += *ret_moved;
    return 0;
}

/* UCX moves large messages only while both sides call it. */
static int flush(struct transport *t, uint32_t rank, bool *ret_done, struct error *err)
{
    struct ucx *u = (struct ucx *)t;
    struct peer *p = &u->peers[rank];
    int r = reclaim(p, rank, err);
    if (r == 0 && p->n_out > 0) {
        ucp_worker_progress(u->worker);
        r = take_in(u, rank, err);
    }
    *ret_done = p->n_out == 0;
    return r == 0 && p->n_out > 0 && p->gone ? transport_lost(rank, "it left", err) : r;
}

static int sleep_until(struct transport *t, uint64_t receiving, uint64_t sending, int timeout_ms,
                       struct error *err)
{
    struct ucx *u = (struct ucx *)t;
    struct pollfd fds[LIMIT_RANKS + 2];
    uint32_t ranks[LIMIT_RANKS];
    nfds_t n = 0;
    for (uint64_t peers = receiving | sending; peers != 0; peers &= peers - 1) {
        uint32_t rank = (uint32_t)__builtin_ctzll(peers);
        struct peer *p = &u->peers[rank];
        if (p->gone || p->closed_ns != 0 || sending >> rank & 1)
            timeout_ms = timeout_ms > 1 ? 1 : timeout_ms;
        if (p->closed_ns != 0)
            continue;
        ranks[n] = rank;
        fds[n++] = (struct pollfd){.fd = p->fd, .events = POLLIN};
    }
    fds[n] = (struct pollfd){.fd = u->wake.fd, .events = POLLIN};
    fds[n + 1] = (struct pollfd){.fd = u->event_fd, .events = POLLIN};
    /* Busy: something has moved since. */
    if (ucp_worker_arm(u->worker) != UCS_OK)
        return 0;
    if (poll(fds, n + 2, timeout_ms) < 0)
        return errno == EINTR ? 0 : error_set(err, E_IO, "poll: %s", strerror(errno));
    for (nfds_t i = 0; i < n; i++)
        if (fds[i].revents != 0)
            look_at_connection(&u->peers[ranks[i]]);
    return 0;
}

static void wake(struct transport *t)
{
    wake_signal(&((struct ucx *)t)->wake);
}

/* ---- the end ---- */

/* Says good-bye where there is room for it, waits for what is on its way, lets go. */
static void leave(struct transport *t)
{
    struct ucx *u = (struct ucx *)t;
    if (u->left)
        return;
    u->left = true;
    uint64_t said = 0, deadline = clock_now_ns() + LINGER_NS;
    for (bool all = false; !all && clock_now_ns() < deadline;) {
        all = true;
        ucp_worker_progress(u->worker);
        for (uint32_t i = 0; i < u->size; i++) {
            struct peer *p = &u->peers[i];
            if (p->endpoint == NULL)
                continue;
            p->in_done = p->n_in; /* who waits to send to us is heard */
            if (take_in(u, i, NULL) != 0 || reclaim(p, i, NULL) != 0 || p->gone)
                continue;
            if ((said >> i & 1) == 0 && p->n_out < N_CHUNKS && send_chunk(u, p, i, 0, NULL) == 0)
                said |= UINT64_C(1) << i;
            all &= (said >> i & 1) != 0 && p->n_out == 0;
        }
    }
    for (uint32_t i = 0; i < u->size; i++) {
        if (u->peers[i].fd >= 0)
            close(u->peers[i].fd);
        u->peers[i].fd = -1;
    }
}

static void close_endpoints(struct ucx *u)
{
    void *requests[LIMIT_RANKS] = {0};
    uint64_t deadline = clock_now_ns() + LINGER_NS;
    for (uint32_t i = 0; i < u->size; i++) {
        ucp_request_param_t param = {0};
        if (u->peers[i].endpoint != NULL)
            requests[i] = ucp_ep_close_nbx(u->peers[i].endpoint, &param);
    }
    for (uint32_t i = 0; i < u->size; i++) {
        if (requests[i] == NULL || UCS_PTR_IS_ERR(requests[i]))
            continue;
        while (ucp_request_check_status(requests[i]) == UCS_INPROGRESS && clock_now_ns() < deadline)
            ucp_worker_progress(u->worker);
        ucp_request_free(requests[i]);
    }
}

static void free_ucx(struct transport *t)
{
    struct ucx *u = (struct ucx *)t;
    for (uint32_t i = 0; i < u->size; i++)
        if (u->peers[i].fd >= 0)
            close(u->peers[i].fd);
    if (u->worker != NULL) {
        close_endpoints(u);
        ucp_worker_destroy(u->worker);
    }
    if (u->context != NULL)
        ucp_cleanup(u->context);
    for (uint32_t i = 0; i < u->size; i++) {
        struct peer *p = &u->peers[i];
        for (uint32_t k = 0; k < N_CHUNKS; k++)
            free(p->out[k].data);
        free(p->in);
    }
    wake_done(&u->wake);
    free(u);
}

static const struct transport_ops ucx_ops = {
    .name = "ucx",
    .try_send = try_send,
    .try_recv = try_recv,
    .flush = flush,
    .wait = sleep_until,
    .wake = wake,
    .shutdown = leave,
    .free = free_ucx,
};

/* ---- making one ---- */

static int start_worker(struct ucx *u, struct error *err)
{
    ucp_params_t params = {.field_mask = UCP_PARAM_FIELD_FEATURES,
                           .features = UCP_FEATURE_TAG | UCP_FEATURE_WAKEUP};
    ucp_worker_params_t worker = {.field_mask = UCP_WORKER_PARAM_FIELD_THREAD_MODE,
                                  .thread_mode = UCS_THREAD_MODE_SERIALIZED};
    ucs_status_t status = ucp_init(&params, NULL, &u->context);
    if (status == UCS_OK)
        status = ucp_worker_create(u->context, &worker, &u->worker);
    if (status == UCS_OK)
        status = ucp_worker_get_efd(u->worker, &u->event_fd);
    return status == UCS_OK
               ? 0
               : error_set(err, E_IO, "UCX does not start: %s", ucs_status_string(status));
}

/* Our address to all: a length and the bytes, which fit into a fresh connection. */
static int tell_address(struct ucx *u, struct error *err)
{
    ucp_address_t *address;
    size_t n;
    uint8_t bytes[4 + ADDRESS_BYTES_MAX];
    ucs_status_t status = ucp_worker_get_address(u->worker, &address, &n);
    if (status != UCS_OK || n > ADDRESS_BYTES_MAX)
        return error_set(err, E_IO, "UCX tells no address: %s", ucs_status_string(status));
    uint32_t length = (uint32_t)n;
    memcpy(bytes, &length, 4);
    memcpy(bytes + 4, address, n);
    ucp_worker_release_address(u->worker, address);
    for (uint32_t i = 0; i < u->size; i++)
        if (u->peers[i].fd >= 0 &&
            send(u->peers[i].fd, bytes, n + 4, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)(n + 4))
            return transport_lost(i, "it closed the connection", err);
    return 0;
}

static int make_endpoint(struct ucx *u, uint32_t rank, uint64_t deadline_ns, struct error *err)
{
    uint8_t bytes[ADDRESS_BYTES_MAX];
    uint32_t length;
    int fd = u->peers[rank].fd, r = tcp_hear(fd, rank, &length, 4, deadline_ns, err);
    if (r == 0 && length > ADDRESS_BYTES_MAX)
        r = error_set(err, E_PROTOCOL, "rank %u has an address of %u bytes", rank, length);
    if (r == 0)
        r = tcp_hear(fd, rank, bytes, length, deadline_ns, err);
    if (r != 0)
        return r;
    ucp_ep_params_t params = {.field_mask = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS,
                              .address = (const ucp_address_t *)(const void *)bytes};
    ucs_status_t status = ucp_ep_create(u->worker, &params, &u->peers[rank].endpoint);
    return status == UCS_OK ? 0 : failed(status, rank, err);
}

int comm_ucx_connect(struct comm_tcp_listener *l, uint32_t rank, uint32_t n_ranks,
                     const struct comm_tcp_peer *peers, const uint8_t key[32],
                     const uint8_t program_hash[32], const struct comm_options *options,
                     struct comm **ret_comm, struct error *err)
{
    if (n_ranks < 1 || n_ranks > LIMIT_RANKS || rank >= n_ranks)
        return error_set(err, E_INVALID, "rank %u of %u: there are 1 to %d ranks", rank, n_ranks,
                         LIMIT_RANKS);
    struct ucx *u = calloc(1, sizeof(*u) + n_ranks * sizeof(u->peers[0]));
    if (u == NULL)
        return error_set(err, E_NOMEM, "no memory for %u connections", n_ranks);
    u->base.ops = &ucx_ops;
    u->rank = rank;
    u->size = n_ranks;
    int fds[LIMIT_RANKS];
    for (uint32_t i = 0; i < n_ranks; i++)
        u->peers[i].fd = -1;
    int r = wake_init(&u->wake, err);
    if (r != 0) {
        free(u);
        return r;
    }
    struct tcp_identity me = {rank, n_ranks, key, program_hash};
    uint32_t timeout_ms = options != NULL && options->connect_timeout_ms != 0
                              ? options->connect_timeout_ms
                              : COMM_CONNECT_TIMEOUT_MS;
    uint64_t deadline_ns = clock_now_ns() + timeout_ms * UINT64_C(1000000);
    uint32_t n_neighbours = 1;
    r = start_worker(u, err);
    if (r == 0)
        r = tcp_gather(l, &me, peers, timeout_ms, fds, err);
    for (uint32_t i = 0; r == 0 && i < n_ranks; i++) {
        u->peers[i].fd = fds[i];
        n_neighbours += tcp_is_neighbour(fds[i]);
    }
    if (r == 0)
        r = tell_address(u, err);
    for (uint32_t i = 0; r == 0 && i < n_ranks; i++)
        if (i != rank)
            r = make_endpoint(u, i, deadline_ns, err);
    if (r == 0)
        r = comm_new(&u->base, rank, n_ranks, n_neighbours, options, SPIN_US, ret_comm, err);
    if (r != 0)
        free_ucx(&u->base);
    return r;
}

bool comm_ucx_is_built(void)
{
    return true;
}

int comm_check_transport(enum comm_transport transport, struct error *err)
{
    (void)transport;
    (void)err;
    return 0;
}

#else

static int not_built(struct error *err)
{
    return error_set(err, E_UNSUPPORTED,
                     "this build has no UCX: install libucx-dev and build again, or let the ranks "
                     "talk over tcp");
}

int comm_ucx_connect(struct comm_tcp_listener *l, uint32_t rank, uint32_t n_ranks,
                     const struct comm_tcp_peer *peers, const uint8_t key[32],
                     const uint8_t program_hash[32], const struct comm_options *options,
                     struct comm **ret_comm, struct error *err)
{
    (void)l;
    (void)rank;
    (void)n_ranks;
    (void)peers;
    (void)key;
    (void)program_hash;
    (void)options;
    (void)ret_comm;
    return not_built(err);
}

bool comm_ucx_is_built(void)
{
    return false;
}

int comm_check_transport(enum comm_transport transport, struct error *err)
{
    return transport == COMM_UCX ? not_built(err) : 0;
}

#endif
