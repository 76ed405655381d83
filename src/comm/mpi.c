/*
 * The back end over MPI, for ranks that mpirun started. The stream to a peer is a sequence of MPI
 * messages of at most CHUNK_BYTES, copied on both sides; an empty one says that the sender has
 * left. MPI has nothing that poll() could wait for, so a sleeping rank looks every SLEEP_NS.
 *
 * MPI itself ends all ranks when one dies; what this adds is that a rank which leaves is missed at
 * once.
 */
#include "comm/transport.h"

#ifdef SHOAL_HAVE_MPI

#include "base/clock.h"
#include "comm/wake.h"

#include <mpi.h>

#include <poll.h>
#include <stdlib.h>
#include <string.h>

enum { CHUNK_BYTES = 256 << 10, N_CHUNKS = 16 };
enum { TAG = 1 };
enum { SLEEP_NS = 100000 };
enum { SPIN_US = 1000 };
/* Closing waits this long for what is still on its way to the others. */
enum { LINGER_NS = 1000000000 };

struct chunk {
    MPI_Request request;
    uint8_t *data; /* [CHUNK_BYTES], NULL: never used */
};

struct peer {
    struct chunk out[N_CHUNKS]; /* a ring: n_out from first_out on are under way */
    uint32_t first_out, n_out;
    MPI_Request goodbye;
    uint8_t *in; /* [CHUNK_BYTES] the message that is being read */
    size_t n_in, in_done;
    bool gone;
};

struct mpi {
    struct transport base;
    MPI_Comm comm;
    uint32_t rank, size;
    bool left;
    struct wake wake;
    struct peer peers[];
};

static int failed(int code, uint32_t peer, struct error *err)
{
    char text[MPI_MAX_ERROR_STRING] = "?";
    int n = 0;
    MPI_Error_string(code, text, &n);
    return error_set(err, E_PEERLOST, "rank %u: MPI: %.200s", peer, text);
}

/* ---- moving bytes ---- */

/* Forgets what has arrived at the other side. */
static int reclaim(struct peer *p, uint32_t rank, struct error *err)
{
    while (p->n_out > 0) {
        int done = 0, r = MPI_Test(&p->out[p->first_out].request, &done, MPI_STATUS_IGNORE);
        if (r != MPI_SUCCESS)
            return failed(r, rank, err);
        if (!done)
            return 0;
        p->first_out = (p->first_out + 1) % N_CHUNKS;
        p->n_out--;
    }
    return 0;
}

/* Takes in the next message, when there is one and the last is read. */
static int take_in(struct mpi *m, uint32_t rank, struct error *err)
{
    struct peer *p = &m->peers[rank];
    if (p->gone || p->in_done < p->n_in)
        return 0;
    int here = 0, n = 0;
    MPI_Message message;
    MPI_Status status;
    int r = MPI_Improbe((int)rank, TAG, m->comm, &here, &message, &status);
    if (r != MPI_SUCCESS)
        return failed(r, rank, err);
    if (!here)
        return 0;
    MPI_Get_count(&status, MPI_BYTE, &n);
    if (n < 0 || n > CHUNK_BYTES)
        return error_set(err, E_PROTOCOL, "rank %u sent an MPI message of %d bytes", rank, n);
    if (p->in == NULL && (p->in = malloc(CHUNK_BYTES)) == NULL)
        return error_set(err, E_NOMEM, "no memory for what rank %u sends", rank);
    r = MPI_Mrecv(p->in, n, MPI_BYTE, &message, MPI_STATUS_IGNORE);
    if (r != MPI_SUCCESS)
        return failed(r, rank, err);
    p->n_in = (size_t)n;
    p->in_done = 0;
    p->gone = n == 0;
    return 0;
}

static int try_send(struct transport *t, uint32_t rank, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct mpi *m = (struct mpi *)t;
    struct peer *p = &m->peers[rank];
    *ret_moved = 0;
    int r = reclaim(p, rank, err);
    if (r == 0)
        r = take_in(m, rank, err);
    if (r != 0)
        return r;
    if (m->left || p->gone)
        return transport_lost(rank, m->left ? "the connection is closed" : "it left", err);
    if (p->n_out == N_CHUNKS)
        return 0;
    struct chunk *c = &p->out[(p->first_out + p->n_out) % N_CHUNKS];
    if (c->data == NULL && (c->data = malloc(CHUNK_BYTES)) == NULL)
        return error_set(err, E_NOMEM, "no memory to send to rank %u", rank);
    size_t n = iov_gather(c->data, CHUNK_BYTES, iov, n_iov);
    r = MPI_Isend(c->data, (int)n, MPI_BYTE, (int)rank, TAG, m->comm, &c->request);
    if (r != MPI_SUCCESS)
        return failed(r, rank, err);
    p->n_out++;
    *ret_moved = n;
    return 0;
}

static int try_recv(struct transport *t, uint32_t rank, const struct iovec *iov, int n_iov,
                    size_t *ret_moved, struct error *err)
{
    struct mpi *m = (struct mpi *)t;
    struct peer *p = &m->peers[rank];
    *ret_moved = 0;
    int r = m->left ? 0 : take_in(m, rank, err);
    if (r != 0)
        return r;
    if (p->in_done == p->n_in)
        return m->left || p->gone
                   ? transport_lost(rank, m->left ? "the connection is closed" : "it left", err)
                   : 0;
    *ret_moved = iov_scatter(p->in + p->in_done, p->n_in - p->in_done, iov, n_iov);
    p->in_done += *ret_moved;
    return 0;
}

/* MPI moves large messages only while both sides call it. */
static int flush(struct transport *t, uint32_t rank, bool *ret_done, struct error *err)
{
    struct mpi *m = (struct mpi *)t;
    struct peer *p = &m->peers[rank];
    int r = reclaim(p, rank, err);
    if (r == 0 && p->n_out > 0)
        r = take_in(m, rank, err);
    *ret_done = p->n_out == 0;
    return r == 0 && p->n_out > 0 && p->gone ? transport_lost(rank, "it left", err) : r;
}

static int sleep_a_little(struct transport *t, uint64_t receiving, uint64_t sending, int timeout_ms,
                          struct error *err)
{
    struct mpi *m = (struct mpi *)t;
    struct pollfd fd = {.fd = m->wake.fd, .events = POLLIN};
    struct timespec time = {.tv_nsec = SLEEP_NS};
    (void)receiving;
    (void)sending;
    (void)err;
    if (timeout_ms > 0)
        ppoll(&fd, 1, &time, NULL);
    return 0;
}

static void wake(struct transport *t)
{
    wake_signal(&((struct mpi *)t)->wake);
}

/* ---- the end ---- */

static void leave(struct transport *t)
{
    struct mpi *m = (struct mpi *)t;
    if (m->left)
        return;
    m->left = true;
    for (uint32_t i = 0; i < m->size; i++)
        if (i != m->rank)
            MPI_Isend(NULL, 0, MPI_BYTE, (int)i, TAG, m->comm, &m->peers[i].goodbye);
}

/* What is left to send: a peer that waits to send to us is heard meanwhile. */
static bool linger(struct mpi *m)
{
    bool all = true;
    for (uint32_t i = 0; i < m->size; i++) {
        struct peer *p = &m->peers[i];
        int done = 1;
        if (i == m->rank)
            continue;
        p->in_done = p->n_in;
        if (take_in(m, i, NULL) != 0 || reclaim(p, i, NULL) != 0)
            continue;
        if (p->n_out == 0 && p->goodbye != MPI_REQUEST_NULL)
            MPI_Test(&p->goodbye, &done, MPI_STATUS_IGNORE);
        all &= p->n_out == 0 && done;
    }
    return all;
}

static void free_mpi(struct transport *t)
{
    struct mpi *m = (struct mpi *)t;
    uint64_t deadline = clock_now_ns() + LINGER_NS;
    while (!linger(m) && clock_now_ns() < deadline)
        sleep_a_little(t, 0, 0, 1, NULL);
    for (uint32_t i = 0; i < m->size; i++) {
        struct peer *p = &m->peers[i];
        /* What nobody took stays with MPI until the process ends, its memory too. */
        for (uint32_t k = 0; k < N_CHUNKS && p->n_out == 0; k++)
            free(p->out[k].data);
        free(p->in);
    }
    /* The communicator stays: freeing it is a collective operation, and others may be gone. */
    wake_done(&m->wake);
    free(m);
}

static const struct transport_ops mpi_ops = {
    .name = "mpi",
    .try_send = try_send,
    .try_recv = try_recv,
    .flush = flush,
    .wait = sleep_a_little,
    .wake = wake,
    .shutdown = leave,
    .free = free_mpi,
};

/* ---- making one ---- */

static void finalize(void)
{
    int done = 0;
    MPI_Finalized(&done);
    if (!done)
        MPI_Finalize();
}

static int initialize(struct error *err)
{
    int before = 0, level = 0;
    MPI_Initialized(&before);
    if (before)
        return 0;
    if (MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level) != MPI_SUCCESS)
        return error_set(err, E_IO, "MPI does not start");
    atexit(finalize);
    if (level < MPI_THREAD_SERIALIZED)
        return error_set(err, E_UNSUPPORTED, "this MPI serves only the thread that started it");
    return 0;
}

/* The first n_ranks of all, and how many of them are on this host. */
static int make_communicator(struct mpi *m, uint32_t *ret_neighbours, struct error *err)
{
    MPI_Group all, group;
    MPI_Comm host;
    int range[1][3] = {{0, (int)m->size - 1, 1}}, n = 1;
    MPI_Comm_group(MPI_COMM_WORLD, &all);
    int r = MPI_Group_range_incl(all, 1, range, &group);
    if (r == MPI_SUCCESS)
        r = MPI_Comm_create_group(MPI_COMM_WORLD, group, TAG, &m->comm);
    if (r == MPI_SUCCESS)
        r = MPI_Comm_split_type(m->comm, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    if (r != MPI_SUCCESS)
        return error_set(err, E_IO, "MPI makes no communicator of %u ranks", m->size);
    MPI_Comm_set_errhandler(m->comm, MPI_ERRORS_RETURN);
    MPI_Comm_size(host, &n);
    MPI_Comm_free(&host);
    MPI_Group_free(&group);
    MPI_Group_free(&all);
    *ret_neighbours = (uint32_t)n;
    return 0;
}

static int compare_programs(struct mpi *m, const uint8_t hash[32], struct error *err)
{
    uint8_t hashes[LIMIT_RANKS][32];
    int r = MPI_Allgather(hash, 32, MPI_BYTE, hashes, 32, MPI_BYTE, m->comm);
    if (r != MPI_SUCCESS)
        return failed(r, m->rank, err);
    for (uint32_t i = 0; i < m->size; i++)
        if (memcmp(hashes[i], hash, 32) != 0)
            return error_set(err, E_PROTOCOL,
                             "rank %u would run another program than rank %u (release, model, "
                             "split or wire type differ): start all ranks from the same plan and "
                             "release",
                             i, m->rank);
    return 0;
}

int comm_mpi_start(uint32_t *ret_rank, uint32_t *ret_n_ranks, struct error *err)
{
    int rank = 0, size = 1, r = initialize(err);
    if (r != 0)
        return r;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &size);
    *ret_rank = (uint32_t)rank;
    *ret_n_ranks = (uint32_t)size;
    return 0;
}

int comm_mpi_count_host(uint32_t *ret_n_ranks, struct error *err)
{
    MPI_Comm host;
    int n = 1;
    int r = MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &host);
    if (r != MPI_SUCCESS)
        return error_set(err, E_IO, "MPI does not tell which ranks are on this host");
    MPI_Comm_size(host, &n);
    MPI_Comm_free(&host);
    *ret_n_ranks = (uint32_t)n;
    return 0;
}

void comm_mpi_abort(int exit_code)
{
    int is_started = 0, has_ended = 0;
    MPI_Initialized(&is_started);
    MPI_Finalized(&has_ended);
    if (is_started && !has_ended)
        MPI_Abort(MPI_COMM_WORLD, exit_code);
}

int comm_mpi_open(uint32_t n_ranks, const uint8_t program_hash[32],
                  const struct comm_options *options, struct comm **ret_comm, struct error *err)
{
    uint32_t rank, size, n_neighbours = 1;
    int r = comm_mpi_start(&rank, &size, err);
    if (r != 0)
        return r;
    if (n_ranks < 1 || n_ranks > LIMIT_RANKS || n_ranks > size || rank >= n_ranks)
        return error_set(err, E_INVALID,
                         "rank %u of %u that MPI started cannot be one of %u: start them with "
                         "mpirun -n %u",
                         rank, size, n_ranks, n_ranks);
    struct mpi *m = calloc(1, sizeof(*m) + n_ranks * sizeof(m->peers[0]));
    if (m == NULL)
        return error_set(err, E_NOMEM, "no memory for %u ranks", n_ranks);
    m->base.ops = &mpi_ops;
    m->rank = rank;
    m->size = n_ranks;
    for (uint32_t i = 0; i < n_ranks; i++)
        m->peers[i].goodbye = MPI_REQUEST_NULL;
    r = wake_init(&m->wake, err);
    if (r != 0) {
        free(m);
        return r;
    }
    r = make_communicator(m, &n_neighbours, err);
    if (r == 0)
        r = compare_programs(m, program_hash, err);
    if (r == 0)
        r = comm_new(&m->base, m->rank, n_ranks, n_neighbours, options, SPIN_US, ret_comm, err);
    if (r != 0) {
        wake_done(&m->wake);
        free(m);
    }
    return r;
}

bool comm_mpi_is_built(void)
{
    return true;
}

#else

static int not_built(struct error *err)
{
    return error_set(err, E_UNSUPPORTED,
                     "this build has no MPI: install libopenmpi-dev (or another MPI) and build "
                     "again, or let the ranks talk over tcp");
}

int comm_mpi_start(uint32_t *ret_rank, uint32_t *ret_n_ranks, struct error *err)
{
    (void)ret_rank;
    (void)ret_n_ranks;
    return not_built(err);
}

int comm_mpi_count_host(uint32_t *ret_n_ranks, struct error *err)
{
    (void)ret_n_ranks;
    return not_built(err);
}

void comm_mpi_abort(int exit_code)
{
    (void)exit_code;
}

int comm_mpi_open(uint32_t n_ranks, const uint8_t program_hash[32],
                  const struct comm_options *options, struct comm **ret_comm, struct error *err)
{
    (void)n_ranks;
    (void)program_hash;
    (void)options;
    (void)ret_comm;
    return not_built(err);
}

bool comm_mpi_is_built(void)
{
    return false;
}

#endif
