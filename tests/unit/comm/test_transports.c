/* The same tests for every transport: ranks are threads of this process. */
#include "world.h"

#include <unistd.h>

static enum transport_kind kind;
/* Up to five ranks may share two cores here: spin briefly. */
static const struct comm_options options = {.timeout_ms = 20000, .spin_us = 50};

/* The last is more than any ring or socket buffer holds, twice. */
static const size_t sizes[] = {0, 1, 7, 2304, 1 << 20, 9 << 20};
enum { N_SIZES = sizeof(sizes) / sizeof(sizes[0]) };

static uint8_t *new_bytes(uint64_t seed, size_t n)
{
    uint8_t *bytes = malloc(n + 8);
    for (size_t i = 0; bytes != NULL && i < n; i += 8) {
        uint64_t v = (seed + i) * UINT64_C(0x9e3779b97f4a7c15);
        memcpy(bytes + i, &v, 8);
    }
    if (bytes == NULL)
        abort();
    return bytes;
}

static void fill_floats(float *x, size_t n, uint64_t seed)
{
    for (size_t i = 0; i < n; i++)
        x[i] = i < 4096 ? odd_float(seed, i) : x[i - 4096] * 1.0009765625f;
}

/* Sum by definition. */
static void expect_sum(float *sum, size_t n, struct comm_group g, uint64_t mask, uint64_t seed)
{
    float *x = malloc((n + 1) * sizeof(float));
    bool first = true;
    memset(sum, 0, n * sizeof(float));
    for (uint32_t i = 0; i < g.n; i++) {
        if ((mask >> i & 1) == 0)
            continue;
        fill_floats(x, n, seed + g.first + i);
        for (size_t k = 0; k < n; k++)
            sum[k] = first ? x[k] : sum[k] + x[k];
        first = false;
    }
    free(x);
}

/* ---- send and receive, broadcast, all-gather ---- */

static void run_send(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    for (int s = 0; s < N_SIZES; s++) {
        size_t n = sizes[s];
        uint8_t *in = malloc(n + 1);
        /* Round the ring, then back by recv_any. */
        uint32_t next = (rank + 1) % w->n, last = (rank + w->n - 1) % w->n;
        uint8_t *mine = new_bytes(rank, n), *theirs = new_bytes(last, n);
        for (int turn = 0; turn < 2; turn++) {
            if (rank % 2 == (uint32_t)turn)
                CHECK_OK(comm_send(c, next, mine, n, &e));
            if (last % 2 == (uint32_t)turn) {
                memset(in, 0xee, n);
                CHECK_OK(comm_recv(c, last, in, n, &e));
                CHECK(memcmp(in, theirs, n) == 0);
            }
        }
        free(theirs);
        theirs = new_bytes(next, n);
        for (int turn = 0; turn < 2; turn++) {
            size_t got = 99;
            if (rank % 2 == (uint32_t)turn)
                CHECK_OK(comm_send(c, last, mine, n, &e));
            if (next % 2 == (uint32_t)turn) {
                CHECK_OK(comm_recv_any(c, next, in, n + 1, &got, 0, &e));
                CHECK(got == n && memcmp(in, theirs, n) == 0);
            }
        }
        free(theirs);
        free(mine);
        free(in);
    }
}

static void test_send(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 4; n += 2) {
        struct world w;
        world_open(&w, kind, n, &options);
        world_run(&w, run_send);
        world_close(&w);
    }
}

static void run_broadcast_gather(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    struct comm_group g = {0, w->n};
    CHECK(comm_rank(c) == rank && comm_size(c) == w->n);
    for (int s = 0; s < N_SIZES - 1; s++) {
        size_t n = sizes[s];
        uint8_t *in = malloc(n * w->n + 1);
        for (uint32_t root = 0; root < w->n; root++) {
            uint8_t *data = new_bytes(root, n);
            size_t got = n;
            if (rank == root)
                CHECK_OK(comm_broadcast(c, g, data, n, &e));
            else if (root % 2 == 0)
                CHECK_OK(comm_recv(c, root, in, n, &e));
            else
                CHECK_OK(comm_recv_any(c, root, in, n, &got, 5000, &e));
            CHECK(got == n && (rank == root || memcmp(in, data, n) == 0));
            free(data);
        }
        uint8_t *mine = new_bytes(rank, n);
        memset(in, 0xee, n * w->n);
        CHECK_OK(comm_all_gather(c, g, mine, n, in, &e));
        for (uint32_t i = 0; i < w->n; i++) {
            uint8_t *theirs = new_bytes(i, n);
            CHECK(memcmp(in + i * n, theirs, n) == 0);
            free(theirs);
        }
        /* In place. */
        CHECK_OK(comm_all_gather(c, g, in + rank * n, n, in, &e));
        CHECK(memcmp(in + rank * n, mine, n) == 0);
        free(mine);
        free(in);
    }
    struct comm_stats stats;
    comm_get_stats(c, &stats);
    CHECK(stats.n_operations == (N_SIZES - 1) * (w->n + 2));
    CHECK(w->n == 1 || stats.bytes_received > (1 << 20));
}

static void test_broadcast_gather(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) {
        struct world w;
        world_open(&w, kind, n, &options);
        world_run(&w, run_broadcast_gather);
        world_close(&w);
    }
}

/* ---- all-reduce ---- */

static void check_reduce(struct comm *c, struct comm_group g, uint64_t mask, size_t n,
                         uint64_t seed)
{
    struct error e = {0};
    uint32_t rank = comm_rank(c);
    float *x = malloc((n + 1) * sizeof(float)), *sum = malloc((n + 1) * sizeof(float));
    if (mask >> (rank - g.first) & 1)
        fill_floats(x, n, seed + rank);
    else
        memset(x, 0xff, n * sizeof(float)); /* what does not contribute is overwritten */
    x[n] = sum[n] = 42;
    expect_sum(sum, n, g, mask, seed);
    CHECK_OK(comm_all_reduce_f32(c, g, mask, x, n, &e));
    CHECK(memcmp(x, sum, (n + 1) * sizeof(float)) == 0);
    free(x);
    free(sum);
}

static void run_reduce(struct world *w, struct comm *c, uint32_t rank)
{
    (void)rank;
    /* Both ways of reducing, their borders, and what no slice divides evenly. */
    static const size_t counts[] = {0,     1,     7,     576,   4095,   16383,
                                    16384, 16385, 65535, 65536, 100003, 262147};
    struct comm_group g = {0, w->n};
    uint64_t all = (UINT64_C(1) << w->n) - 1;
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        check_reduce(c, g, all, counts[i], 100 + i);
    for (uint64_t mask = 0; mask <= all; mask++) {
        check_reduce(c, g, mask, 576, mask);
        check_reduce(c, g, mask, 40001, mask);
    }
}

static void test_reduce(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n++) {
        struct world w;
        world_open(&w, kind, n, &options);
        world_run(&w, run_reduce);
        world_close(&w);
    }
}

static void run_reduce_big(struct world *w, struct comm *c, uint32_t rank)
{
    (void)rank;
    struct comm_group g = {0, w->n};
    check_reduce(c, g, (UINT64_C(1) << w->n) - 1, 9 << 18, 9); /* 9 MiB */
    check_reduce(c, g, 2, 9 << 18, 9);
}

static void test_reduce_big(void **state)
{
    (void)state;
    for (uint32_t n = 2; n <= 3; n++) {
        struct world w;
        world_open(&w, kind, n, &options);
        world_run(&w, run_reduce_big);
        world_close(&w);
    }
}

/* Two groups side by side, each with its own sequence of operations, then all together. */
static void run_groups(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    struct comm_group g = rank < 2 ? (struct comm_group){0, 2} : (struct comm_group){2, 3};
    for (size_t i = 0; i < 20; i++) {
        check_reduce(c, g, rank < 2 ? 3 : 5, rank < 2 ? 300 : 40000, i);
        /* The last rank of the first group feeds the first of the second, as stages do. */
        uint32_t v = (uint32_t)i, got = 0;
        if (rank == 1)
            CHECK_OK(comm_send(c, 2, &v, sizeof(v), &e));
        if (rank == 2) {
            CHECK_OK(comm_recv(c, 1, &got, sizeof(got), &e));
            CHECK(got == v);
        }
    }
    check_reduce(c, (struct comm_group){0, w->n}, 31, 50000, 3);
    float x = 1;
    struct comm_group other = rank < 2 ? (struct comm_group){2, 3} : (struct comm_group){0, 2};
    CHECK(comm_all_reduce_f32(c, other, 3, &x, 1, &e) == E_INVALID);
    CHECK(comm_all_reduce_f32(c, (struct comm_group){0, 6}, 3, &x, 1, &e) == E_INVALID);
    CHECK(comm_all_reduce_f32(c, g, 1 << 4, &x, 1, &e) == E_INVALID);
    CHECK(comm_all_reduce_f32(c, g, 1, &x, SIZE_MAX, &e) == E_LIMIT);
    CHECK(comm_send(c, rank, &x, 1, &e) == E_INVALID);
    CHECK(comm_send(c, 5, &x, 1, &e) == E_INVALID);
    CHECK(comm_recv(c, rank, &x, 1, &e) == E_INVALID);
    check_reduce(c, g, 3, 10, 1); /* none of this broke it */
}

static void test_groups(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, kind, 5, &options);
    world_run(&w, run_groups);
    world_close(&w);
}

/* ---- in halves ---- */

static void run_halves(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    struct comm_group g = {0, w->n};
    uint64_t all = (UINT64_C(1) << w->n) - 1;
    static const size_t counts[] = {3, 576, 300000};
    for (int i = 0; i < 3; i++) {
        size_t n = counts[i];
        float *x = malloc(n * sizeof(float)), *sum = malloc(n * sizeof(float));
        fill_floats(x, n, rank);
        expect_sum(sum, n, g, all, 0);
        CHECK_OK(comm_all_reduce_f32_start(c, g, all, x, n, &e));
        CHECK(comm_all_reduce_f32_start(c, g, all, x, n, &e) == E_INVALID);
        CHECK(comm_broadcast(c, g, x, n, &e) == E_INVALID);
        for (int turn = 0; turn < i; turn++) {
            usleep(1000 * rank); /* the caller's own work */
            CHECK_OK(comm_all_reduce_f32_advance(c, &e));
        }
        CHECK_OK(comm_all_reduce_f32_finish(c, &e));
        CHECK(memcmp(x, sum, n * sizeof(float)) == 0);
        CHECK(comm_all_reduce_f32_advance(c, &e) == E_INVALID);
        CHECK(comm_all_reduce_f32_finish(c, &e) == E_INVALID);
        free(x);
        free(sum);
    }
}

/* Ranks 0 and 1 share memory in the world of both; nobody else does there. */
static void run_overlaps(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    bool travels = kind == TRANSPORT_TCP || kind == TRANSPORT_MIXED, overlaps = !travels;
    CHECK_OK(comm_group_overlaps(c, (struct comm_group){0, w->n}, &overlaps, &e));
    CHECK(overlaps == travels);
    CHECK_OK(comm_group_overlaps(c, (struct comm_group){rank, 1}, &overlaps, &e));
    CHECK(!overlaps);
    if (rank < 2) {
        CHECK_OK(comm_group_overlaps(c, (struct comm_group){0, 2}, &overlaps, &e));
        CHECK(overlaps == (kind == TRANSPORT_TCP));
    }
}

static void test_overlaps(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, kind, 3, &options);
    world_run(&w, run_overlaps);
    world_close(&w);
}

static void test_halves(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 3; n++) {
        struct world w;
        world_open(&w, kind, n, &options);
        world_run(&w, run_halves);
        world_close(&w);
    }
}

/* ---- random sequences of operations ---- */

enum { N_RANDOM_STEPS = 60 };

struct random_run {
    uint64_t seed;
    uint64_t digest[WORLD_MAX];
};

static void digest(uint64_t *d, const void *data, size_t n)
{
    const uint8_t *bytes = data;
    for (size_t i = 0; i < n; i++)
        *d = (*d ^ bytes[i]) * UINT64_C(0x100000001b3);
}

static void run_random(struct world *w, struct comm *c, uint32_t rank)
{
    struct random_run *run = w->arg;
    struct error e = {0};
    struct comm_group all = {0, w->n};
    uint64_t d = 0;
    enum { N_MAX = 90000 };
    float *x = malloc(N_MAX * sizeof(float) * w->n), *y = malloc(N_MAX * sizeof(float) * w->n);
    for (uint64_t step = 0; step < N_RANDOM_STEPS; step++) {
        uint64_t r = rng_u64(run->seed, step, 1), r2 = rng_u64(run->seed, step, 2);
        uint32_t first = (uint32_t)(r >> 40) % w->n;
        struct comm_group g = {first, 1 + (uint32_t)(r >> 48) % (w->n - first)};
        uint64_t mask = r2 & ((UINT64_C(1) << g.n) - 1);
        size_t n = (r >> 8 & 3) == 0 ? r2 % N_MAX : (r2 >> 20) % 2000;
        bool in_group = rank >= g.first && rank < g.first + g.n;
        size_t got;
        fill_floats(x, n, step + rank);
        switch (r & 3) {
        case 0:
            if (in_group) {
                CHECK_OK(comm_all_reduce_f32(c, g, mask, x, n, &e));
                digest(&d, x, n * sizeof(float));
            }
            break;
        case 1:
            CHECK_OK(comm_all_reduce_f32_start(c, all, r2 & ((UINT64_C(1) << w->n) - 1), x, n, &e));
            if (r2 >> 62 == rank)
                usleep(200);
            if ((r2 >> 60 & 1) != 0)
                CHECK_OK(comm_all_reduce_f32_advance(c, &e));
            CHECK_OK(comm_all_reduce_f32_finish(c, &e));
            digest(&d, x, n * sizeof(float));
            break;
        case 2:
            if (in_group) {
                CHECK_OK(comm_all_gather(c, g, x, n * sizeof(float), y, &e));
                digest(&d, y, n * sizeof(float) * g.n);
            }
            break;
        default:
            if (rank == g.first)
                CHECK_OK(comm_broadcast(c, g, x, n, &e));
            else if (in_group)
                CHECK_OK(comm_recv_any(c, g.first, x, n, &got, 0, &e));
            if (in_group)
                digest(&d, x, n);
        }
    }
    run->digest[rank] = d;
    free(x);
    free(y);
}

/* Each transport must give every rank the bits that local gives it. */
static void test_random(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        struct random_run runs[2] = {{.seed = seed}, {.seed = seed}};
        uint32_t n = 2 + (uint32_t)seed % 4;
        uint64_t here = 0;
        for (int i = 0; i < 2; i++) {
            struct world w;
            world_open(&w, i == 0 ? TRANSPORT_LOCAL : kind, n, &options);
            w.arg = &runs[i];
            here = w.here;
            world_run(&w, run_random);
            world_close(&w);
        }
        for (uint32_t i = 0; i < n; i++)
            if (here >> i & 1 && runs[0].digest[i] != runs[1].digest[i])
                fail_msg("seed %d: rank %u differs from local", (int)seed, i);
    }
}

/* ---- failures ---- */

static const struct comm_options impatient = {.timeout_ms = 300, .spin_us = 50};

static void expect_broken(struct comm *c, int code)
{
    struct error e = {0};
    float x[2] = {1, 2};
    struct comm_group g = {0, comm_size(c)};
    uint64_t start = clock_now_ns();
    CHECK(comm_all_reduce_f32(c, g, 1, x, 2, &e) == code);
    CHECK(e.code == code && e.message[0] != '\0');
    CHECK(comm_send(c, comm_rank(c) == 0 ? 1 : 0, x, 4, &e) == code);
    CHECK(clock_now_ns() - start < 500000000u);
}

/* Rank 2 does nothing; the others must say so, in time. */
static void run_silence(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    if (rank == 2) {
        usleep(2000000);
        return;
    }
    size_t n = *(size_t *)w->arg;
    float *x = calloc(n, sizeof(float));
    uint64_t start = clock_now_ns();
    int r = comm_all_reduce_f32(c, (struct comm_group){0, w->n}, 7, x, n, &e);
    uint64_t ms = (clock_now_ns() - start) / 1000000;
    CHECK(ms >= 250 && ms < 1800);
    /* One of them is first; the other may see that one leave. */
    if (r == E_TIMEOUT)
        CHECK(strstr(e.message, "rank 2 is silent") != NULL);
    else
        CHECK(r == E_PEERLOST);
    expect_broken(c, r);
    free(x);
}

static void test_silence(void **state)
{
    (void)state;
    static const size_t counts[] = {10, 2 << 20};
    for (int i = 0; i < 2; i++) {
        struct world w;
        world_open(&w, kind, 3, &impatient);
        w.arg = (void *)(uintptr_t)&counts[i];
        world_run(&w, run_silence);
        world_close(&w);
    }
}

static void run_recv_silence(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    char byte;
    size_t n;
    uint64_t start = clock_now_ns();
    if (rank == 0)
        CHECK(comm_recv_any(c, 1, &byte, 1, &n, 50, &e) == E_TIMEOUT);
    else if (rank == 1)
        usleep(150000);
    (void)w;
    CHECK(clock_now_ns() - start < 1500000000u);
}

static void test_recv_silence(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, kind, 2, &options);
    world_run(&w, run_recv_silence);
    world_close(&w);
}

/* Rank 1 leaves while the others wait for it. */
static void run_leave(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    struct comm_group g = {0, w->n};
    float *x = calloc(3 << 20, sizeof(float));
    if (rank == 1) {
        /* What was sent before leaving is still read. */
        CHECK_OK(comm_broadcast(c, g, "bye", 4, &e));
        usleep(100000);
        comm_close(c);
        w->comms[1] = NULL;
        free(x);
        return;
    }
    char text[4];
    CHECK_OK(comm_recv(c, 1, text, 4, &e));
    uint64_t start = clock_now_ns();
    int r = rank == 0 ? comm_recv(c, 1, x, 4, &e) : comm_all_reduce_f32(c, g, 7, x, 3 << 20, &e);
    CHECK(r == E_PEERLOST);
    CHECK(rank != 0 || strstr(e.message, "rank 1 is gone") != NULL);
    CHECK(clock_now_ns() - start < 2000000000u);
    expect_broken(c, E_PEERLOST);
    free(x);
}

static void test_leave(void **state)
{
    (void)state;
    struct world w;
    world_open(&w, kind, 3, &options);
    world_run(&w, run_leave);
    world_close(&w);
}

static void *abort_soon(void *arg)
{
    usleep(50000);
    comm_abort(arg);
    return NULL;
}

static void run_abort(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    char byte;
    size_t n;
    (void)w;
    uint64_t start = clock_now_ns();
    if (rank == 0) {
        pthread_t thread;
        pthread_create(&thread, NULL, abort_soon, c);
        CHECK(comm_recv_any(c, 1, &byte, 1, &n, UINT32_MAX, &e) == E_CANCELLED);
        expect_broken(c, E_CANCELLED);
        pthread_join(thread, NULL);
    } else {
        CHECK(comm_recv_any(c, 0, &byte, 1, &n, UINT32_MAX, &e) == E_PEERLOST);
    }
    CHECK(clock_now_ns() - start < 3000000000u);
}

static void test_abort(void **state)
{
    (void)state;
    /* While it sleeps, and while it spins. */
    static const struct comm_options waits[] = {{.spin_us = 0}, {.spin_us = 5000000}};
    for (int i = 0; i < 2; i++) {
        struct world w;
        world_open(&w, kind, 2, &waits[i]);
        world_run(&w, run_abort);
        world_close(&w);
    }
    if (kind == TRANSPORT_MPI)
        return;
    struct world w;
    struct error e = {0};
    world_open(&w, kind, 2, &options);
    comm_abort(w.comms[0]);
    assert_int_equal(comm_send(w.comms[0], 1, "", 1, &e), E_CANCELLED);
    assert_int_equal(comm_recv(w.comms[1], 0, &w, 1, &e), E_PEERLOST);
    world_close(&w);
}

static void run_mismatch(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    float x[600] = {0};
    int mode = *(int *)w->arg, r;
    size_t n;
    if (mode == 0)
        r = comm_all_reduce_f32(c, (struct comm_group){0, 2}, 3, x, rank == 0 ? 500 : 600, &e);
    else if (mode == 1)
        r = rank == 0 ? comm_send(c, 1, x, 100, &e) : comm_recv(c, 0, x, 101, &e);
    else if (mode == 2)
        r = rank == 0 ? comm_send(c, 1, x, 100, &e) : comm_recv_any(c, 0, x, 99, &n, 0, &e);
    else
        r = rank == 0 ? comm_all_gather(c, (struct comm_group){0, 2}, x, 40, x + 20, &e)
                      : comm_all_reduce_f32(c, (struct comm_group){0, 2}, 3, x, 10, &e);
    if (rank == 1 || (mode != 1 && mode != 2))
        CHECK(r == E_PROTOCOL || r == E_PEERLOST);
    if (rank == 1 && (mode == 1 || mode == 2))
        CHECK(r == E_PROTOCOL && strstr(e.message, "sent 100 bytes") != NULL);
    if (r != 0)
        expect_broken(c, r);
}

static void test_mismatch(void **state)
{
    (void)state;
    for (int mode = 0; mode < 4; mode++) {
        struct world w;
        world_open(&w, kind, 2, &impatient);
        w.arg = &mode;
        world_run(&w, run_mismatch);
        world_close(&w);
    }
}

/* Everybody sends megabytes to everybody before anybody receives: only collectives that do both at
 * once survive. */
static void run_crossing(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    size_t n = 8 << 20;
    uint8_t *mine = new_bytes(rank, n), *all = malloc(n * w->n);
    CHECK_OK(comm_all_gather(c, (struct comm_group){0, w->n}, mine, n, all, &e));
    for (uint32_t i = 0; i < w->n; i++) {
        uint8_t *theirs = new_bytes(i, n);
        CHECK(memcmp(all + i * n, theirs, n) == 0);
        free(theirs);
    }
    free(mine);
    free(all);
}

static void test_crossing(void **state)
{
    (void)state;
    struct world w;
    static const struct comm_options no_spin = {.timeout_ms = 20000, .spin_us = 0};
    world_open(&w, kind, 4, &no_spin);
    world_run(&w, run_crossing);
    world_close(&w);
}

static int run_group(const char *name)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_send),     cmocka_unit_test(test_broadcast_gather),
        cmocka_unit_test(test_reduce),   cmocka_unit_test(test_reduce_big),
        cmocka_unit_test(test_groups),   cmocka_unit_test(test_halves),
        cmocka_unit_test(test_overlaps), cmocka_unit_test(test_random),
        cmocka_unit_test(test_silence),  cmocka_unit_test(test_recv_silence),
        cmocka_unit_test(test_leave),    cmocka_unit_test(test_abort),
        cmocka_unit_test(test_mismatch), cmocka_unit_test(test_crossing),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    return world_main(argc, argv, &kind, run_group);
}
