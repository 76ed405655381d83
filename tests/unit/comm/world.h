/*
 * Ranks for tests: one thread each, joined by a transport. cmocka's asserts belong to the main
 * thread, so ranks use CHECK, which remembers the first failure; world_run() reports it.
 */
#ifndef TESTS_UNIT_COMM_WORLD_H
#define TESTS_UNIT_COMM_WORLD_H

#include "base/clock.h"
#include "base/rng.h"
#include "comm/comm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORLD_MAX = 8 };

/* MPI: each rank is a process of its own, that mpirun started. */
enum transport_kind {
    TRANSPORT_LOCAL,
    TRANSPORT_TCP,
    TRANSPORT_SHM,
    TRANSPORT_MIXED,
    TRANSPORT_UCX,
    N_THREAD_TRANSPORTS,
    TRANSPORT_MPI = N_THREAD_TRANSPORTS,
};

static const char *const transport_names[] = {"local", "tcp", "shm", "shm and tcp", "ucx", "mpi"};

struct world {
    uint32_t n;
    uint64_t here; /* ranks that are of this process */
    struct comm *comms[WORLD_MAX];
    void *arg;
};

struct rank_thread {
    struct world *world;
    uint32_t rank;
    void (*body)(struct world *w, struct comm *c, uint32_t rank);
    pthread_t thread;
};

static atomic_int n_failures;

static inline void note_failure(const char *file, int line, const char *what, const char *message)
{
    if (atomic_fetch_add(&n_failures, 1) < 5)
        fprintf(stderr, "%s:%d: %s (%s)\n", file, line, what, message);
}

#define CHECK(x)                                                                                   \
    do {                                                                                           \
        if (!(x))                                                                                  \
            note_failure(__FILE__, __LINE__, #x, "");                                              \
    } while (0)

/* For calls that take `&e`. */
#define CHECK_OK(call)                                                                             \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            note_failure(__FILE__, __LINE__, #call, e.message);                                    \
    } while (0)

static inline void *rank_main(void *arg)
{
    struct rank_thread *t = arg;
    t->body(t->world, t->world->comms[t->rank], t->rank);
    return NULL;
}

static inline void world_run(struct world *w,
                             void (*body)(struct world *w, struct comm *c, uint32_t rank))
{
    struct rank_thread threads[WORLD_MAX];
    for (uint32_t i = 0; i < w->n; i++) {
        if ((w->here >> i & 1) == 0)
            continue;
        threads[i] = (struct rank_thread){.world = w, .rank = i, .body = body};
        assert_int_equal(pthread_create(&threads[i].thread, NULL, rank_main, &threads[i]), 0);
    }
    for (uint32_t i = 0; i < w->n; i++)
        if (w->here >> i & 1)
            pthread_join(threads[i].thread, NULL);
    assert_int_equal(atomic_exchange(&n_failures, 0), 0);
}

struct join {
    struct world *world;
    struct comm_options options;
    enum transport_kind kind;
    uint32_t rank;
    struct comm_tcp_listener *listener;
    const struct comm_tcp_peer *peers;
    pthread_t thread;
};

static inline void *join_main(void *arg)
{
    static const uint8_t key[32] = {1, 2, 3}, hash[32] = {4, 5, 6};
    struct join *j = arg;
    struct error e = {0};
    CHECK_OK((j->kind == TRANSPORT_UCX ? comm_ucx_connect : comm_tcp_connect)(
        j->listener, j->rank, j->world->n, j->peers, key, hash, &j->options,
        &j->world->comms[j->rank], &e));
    return NULL;
}

static inline void world_open(struct world *w, enum transport_kind kind, uint32_t n,
                              const struct comm_options *options)
{
    struct error e = {0};
    *w = (struct world){.n = n, .here = (UINT64_C(1) << n) - 1};
    if (kind == TRANSPORT_MPI) {
        static const uint8_t hash[32] = {4, 5, 6};
        uint32_t rank, n_ranks;
        assert_int_equal(comm_mpi_start(&rank, &n_ranks, &e), 0);
        w->here &= UINT64_C(1) << rank;
        if (w->here != 0 && comm_mpi_open(n, hash, options, &w->comms[rank], &e) != 0)
            fail_msg("%s", e.message);
        return;
    }
    if (kind == TRANSPORT_LOCAL) {
        assert_int_equal(comm_local_new(n, options, w->comms, &e), 0);
        return;
    }
    struct comm_tcp_peer peers[WORLD_MAX] = {0};
    struct join joins[WORLD_MAX];
    for (uint32_t i = 0; i < n; i++) {
        joins[i] =
            (struct join){.world = w, .options = *options, .kind = kind, .rank = i, .peers = peers};
        /* Mixed: ranks 0 and 1 share memory, the others do not. */
        joins[i].options.no_shm = kind == TRANSPORT_TCP || (kind == TRANSPORT_MIXED && i >= 2);
        strcpy(peers[i].host, "127.0.0.1");
        assert_int_equal(comm_tcp_listen("127.0.0.1", 0, &joins[i].listener, &peers[i].port, &e),
                         0);
    }
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(pthread_create(&joins[i].thread, NULL, join_main, &joins[i]), 0);
    for (uint32_t i = 0; i < n; i++) {
        pthread_join(joins[i].thread, NULL);
        comm_tcp_listener_close(joins[i].listener);
    }
    for (uint32_t i = 0; i < n && w->comms[i] != NULL; i++) {
        struct comm_stats stats;
        comm_get_stats(w->comms[i], &stats);
        uint32_t expected = kind == TRANSPORT_SHM                       ? n - 1
                            : kind == TRANSPORT_MIXED && i < 2 && n > 1 ? 1
                                                                        : 0;
        assert_int_equal(stats.n_shm_peers, expected);
    }
    assert_int_equal(atomic_exchange(&n_failures, 0), 0);
}

static inline void world_close(struct world *w)
{
    for (uint32_t i = 0; i < w->n; i++)
        comm_close(w->comms[i]);
}

/* UCX is not built for the thread sanitizer, which would not see what orders its threads. */
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WORLD_WITHOUT_UCX
#endif
#endif
#ifdef __SANITIZE_THREAD__
#define WORLD_WITHOUT_UCX
#endif

static inline bool world_has_ucx(void)
{
#ifdef WORLD_WITHOUT_UCX
    return false;
#else
    return comm_ucx_is_built();
#endif
}

/* Runs the tests over each transport whose ranks are threads, or, with the argument mpi, over MPI;
 * returns what main() returns. */
static inline int world_main(int argc, char **argv, enum transport_kind *kind,
                             int (*run_group)(const char *name))
{
    int n_failed = 0;
    if (argc > 1 && strcmp(argv[1], "mpi") == 0) {
        if (!comm_mpi_is_built())
            return 77;
        *kind = TRANSPORT_MPI;
        return run_group(transport_names[*kind]);
    }
    for (int i = 0; i < N_THREAD_TRANSPORTS; i++) {
        *kind = (enum transport_kind)i;
        if (*kind == TRANSPORT_UCX && !world_has_ucx())
            continue;
        n_failed += run_group(transport_names[i]);
    }
    return n_failed;
}

/* ---- values ---- */

/* Floats that show each difference in the order of a sum: many magnitudes, denormals, both zeros.
 * No overflow: of which sign inf - inf is a NaN is not told by the order. */
static inline float odd_float(uint64_t seed, uint64_t i)
{
    uint64_t r = rng_u64(seed, i, 7);
    uint32_t bits = (uint32_t)r;
    switch (r >> 32 & 7) {
    case 0:
        bits &= 0x807fffffu; /* denormal */
        break;
    case 1:
        bits &= 0x80000000u; /* 0 or -0 */
        break;
    case 2:
        bits = (bits & 0x80ffffffu) | 0x3f000000u; /* near 1 */
        break;
    default:
        bits = (bits & 0x80ffffffu) | (48u + (bits >> 24 & 0x1f)) << 24;
    }
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

#endif
