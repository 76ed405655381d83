/* What arrives before it is asked for: polling, and ranks that send before they receive. */
#include "world.h"

#include "comm/internal.h"

#include <unistd.h>

static enum transport_kind kind;
static const struct comm_options options = {.timeout_ms = 20000, .spin_us = 50};

/* Messages repeat after a prime number of bytes, so that no piece of a ring's size is in its place
 * by chance. */
enum { PERIOD = 65521 };

static uint8_t *new_message(uint32_t rank, size_t n)
{
    uint8_t *bytes = malloc(n + 1);
    for (size_t i = 0; i < n && i < PERIOD; i++)
        bytes[i] = (uint8_t)((i * 2654435761u >> 13) + rank * 77);
    for (size_t i = PERIOD; i < n; i += PERIOD)
        memcpy(bytes + i, bytes, n - i < PERIOD ? n - i : PERIOD);
    return bytes;
}

static bool is_message(const uint8_t *bytes, uint32_t rank, size_t n)
{
    uint8_t *start = new_message(rank, n < PERIOD ? n : PERIOD);
    bool same = true;
    for (size_t i = 0; same && i < n; i += PERIOD)
        same = memcmp(bytes + i, start, n - i < PERIOD ? n - i : PERIOD) == 0;
    free(start);
    return same;
}

static void run_ranks(uint32_t n, const struct comm_options *o, void *arg,
                      void (*body)(struct world *w, struct comm *c, uint32_t rank))
{
    struct world w;
    world_open(&w, kind, n, o);
    w.arg = arg;
    world_run(&w, body);
    world_close(&w);
}

/* ---- everybody sends first ---- */

static void run_ring(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    static const size_t sizes[] = {24 << 20, 0, 100, 3 << 20, 9 << 20};
    uint32_t next = (rank + 1) % w->n, last = (rank + w->n - 1) % w->n;
    uint8_t *in = malloc(24 << 20), *out = new_message(rank, 24 << 20);
    /* Several messages before the first is received. */
    for (int i = 0; i < 5; i++)
        CHECK_OK(comm_send(c, next, out, sizes[i], &e));
    for (int i = 0; i < 5; i++) {
        size_t n = 0;
        if (i % 2)
            CHECK_OK(comm_recv_any(c, last, in, 24 << 20, &n, 0, &e));
        else
            CHECK_OK(comm_recv(c, last, in, n = sizes[i], &e));
        CHECK(n == sizes[i] && is_message(in, last, n));
    }
    /* Then the usual again, values and sums. */
    float x[1000];
    for (int i = 0; i < 1000; i++)
        x[i] = (float)rank;
    CHECK_OK(comm_all_reduce_f32(c, (struct comm_group){0, w->n}, (1u << w->n) - 1, x, 1000, &e));
    CHECK(x[999] == (float)(w->n * (w->n - 1) / 2));
    CHECK(c->inbox_bytes == 0);
    free(in);
    free(out);
}

static void test_ring(void **state)
{
    (void)state;
    static const struct comm_options no_spin = {.timeout_ms = 20000};
    for (uint32_t n = 2; n <= 4; n++)
        run_ranks(n, n % 2 ? &no_spin : &options, NULL, run_ring);
}

/* Rank 0 waits for rank 1, which sends only when rank 2 has said so, which says so only when rank 0
 * has taken its megabytes. */
static void run_detour(struct world *w, struct comm *c, uint32_t rank)
{
    (void)w;
    struct error e = {0};
    char byte = 0;
    size_t n = 20 << 20;
    uint8_t *bytes = new_message(2, n);
    if (rank == 0) {
        CHECK_OK(comm_recv(c, 1, &byte, 1, &e));
        memset(bytes, 0, n);
        CHECK_OK(comm_recv(c, 2, bytes, n, &e));
        CHECK(is_message(bytes, 2, n));
    } else if (rank == 1) {
        CHECK_OK(comm_recv(c, 2, &byte, 1, &e));
        CHECK_OK(comm_send(c, 0, &byte, 1, &e));
    } else {
        CHECK_OK(comm_send(c, 0, bytes, n, &e));
        CHECK_OK(comm_send(c, 1, &byte, 1, &e));
    }
    free(bytes);
}

static void test_detour(void **state)
{
    (void)state;
    run_ranks(3, &options, NULL, run_detour);
}

/* A pipeline of stages with several steps in flight, large and small in turn, and a sum within the
 * last stage while the next step already arrives there. */
static void run_pipeline(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    enum { N_STEPS = 24, N_FLOATS_MAX = 400000 };
    float *x = malloc(N_FLOATS_MAX * sizeof(float));
    (void)w;
    for (int step = 0; step < N_STEPS; step++) {
        size_t n = step % 3 == 0 ? N_FLOATS_MAX : 576;
        if (rank == 0) {
            for (size_t i = 0; i < n; i++)
                x[i] = (float)step;
            CHECK_OK(comm_send_f32(c, 1, x, n, &e));
        } else if (rank == 1) {
            CHECK_OK(comm_recv_f32(c, 0, x, n, &e));
            CHECK_OK(comm_send_f32(c, 2, x, n, &e));
            CHECK_OK(comm_send_f32(c, 3, x, n, &e));
        } else {
            CHECK_OK(comm_recv_f32(c, 1, x, n, &e));
            CHECK_OK(comm_all_reduce_f32(c, (struct comm_group){2, 2}, 3, x, n, &e));
            CHECK(x[0] == (float)(2 * step) && x[n - 1] == (float)(2 * step));
        }
        if (rank == 2)
            CHECK_OK(comm_send(c, 0, &step, sizeof(step), &e));
        /* The head keeps four steps under way. */
        int got, due = step - 3;
        if (rank == 0 && due >= 0) {
            CHECK_OK(comm_recv(c, 2, &got, sizeof(got), &e));
            CHECK(got == due);
        }
    }
    for (int due = N_STEPS - 3, got; rank == 0 && due < N_STEPS; due++) {
        CHECK_OK(comm_recv(c, 2, &got, sizeof(got), &e));
        CHECK(got == due);
    }
    free(x);
}

static void test_pipeline(void **state)
{
    (void)state;
    run_ranks(4, &options, NULL, run_pipeline);
}

/* ---- polling ---- */

static bool wait_ready(struct comm *c, uint32_t src)
{
    struct error e = {0};
    uint64_t start = clock_now_ns();
    bool ready = false;
    while (!ready && clock_now_ns() - start < UINT64_C(10000000000)) {
        CHECK_OK(comm_poll(c, src, &ready, &e));
        if (!ready)
            usleep(100);
    }
    return ready;
}

static void run_poll(struct world *w, struct comm *c, uint32_t rank)
{
    (void)w;
    struct error e = {0};
    static const size_t sizes[] = {1, 0, 5000, 12 << 20, 3};
    uint8_t *in = malloc(12 << 20), *out = new_message(1, 12 << 20);
    bool ready = true;
    size_t n;
    if (rank == 0) {
        CHECK_OK(comm_poll(c, 1, &ready, &e));
        CHECK(!ready);
        CHECK(comm_poll(c, 0, &ready, &e) == E_INVALID && comm_poll(c, 2, &ready, &e) == E_INVALID);
        CHECK_OK(comm_send(c, 1, "g", 1, &e));
        for (int i = 0; i < 5; i++) {
            CHECK(wait_ready(c, 1));
            CHECK_OK(comm_poll(c, 1, &ready, &e)); /* again, no harm */
            CHECK(ready);
            CHECK_OK(comm_recv_any(c, 1, in, 12 << 20, &n, 0, &e));
            CHECK(n == sizes[i] && is_message(in, 1, n));
        }
        CHECK_OK(comm_poll(c, 1, &ready, &e));
        CHECK(!ready);
        CHECK_OK(comm_send(c, 1, "g", 1, &e));
        /* The peer's last words, then its end. */
        CHECK(wait_ready(c, 1));
        usleep(50000);
        CHECK_OK(comm_poll(c, 1, &ready, &e));
        CHECK(ready);
        CHECK_OK(comm_recv(c, 1, in, 3, &e));
        int r = 0;
        for (int i = 0; i < 10000 && r == 0; i++) {
            r = comm_poll(c, 1, &ready, &e);
            CHECK(r != 0 || !ready);
        }
        CHECK(r == E_PEERLOST && comm_poll(c, 1, &ready, &e) == E_PEERLOST);
    } else {
        CHECK_OK(comm_recv(c, 0, in, 1, &e));
        for (int i = 0; i < 5; i++)
            CHECK_OK(comm_send(c, 0, out, sizes[i], &e));
        CHECK_OK(comm_recv(c, 0, in, 1, &e));
        CHECK_OK(comm_send(c, 0, out, 3, &e));
        comm_close(c);
        w->comms[1] = NULL;
    }
    free(in);
    free(out);
}

static void test_poll(void **state)
{
    (void)state;
    run_ranks(2, &options, NULL, run_poll);
}

/* A poll may stop anywhere in a frame; the receive goes on from there. */
static void run_halfway(struct world *w, struct comm *c, uint32_t rank)
{
    (void)w;
    struct error e = {0};
    size_t n = 16 << 20;
    uint8_t *bytes = new_message(0, n);
    for (int turn = 0; turn < 12; turn++, n = n * 2 / 3) {
        bool ready;
        if (rank == 0) {
            CHECK_OK(comm_send(c, 1, bytes, n, &e));
            continue;
        }
        memset(bytes, 0, n);
        for (int i = 0; i < turn; i++)
            CHECK_OK(comm_poll(c, 0, &ready, &e));
        CHECK_OK(comm_recv(c, 0, bytes, n, &e));
        CHECK(is_message(bytes, 0, n));
    }
    free(bytes);
}

static void test_halfway(void **state)
{
    (void)state;
    run_ranks(2, &options, NULL, run_halfway);
}

/* ---- its limit ---- */

/* Rank 1's messages fill rank 0's inbox; more is not read, and nothing is lost. */
static void run_full(struct world *w, struct comm *c, uint32_t rank)
{
    (void)w;
    struct error e = {0};
    enum { N = 40 };
    size_t n = 1 << 20;
    uint8_t *bytes = new_message(1, n);
    bool ready;
    char byte;
    if (rank == 0) {
        c->inbox_bytes_max = 5 << 20;
        /* Polling takes in what is there, and no more than there is room for. */
        CHECK(wait_ready(c, 1));
        for (int i = 0; i < 10; i++)
            CHECK_OK(comm_poll(c, 1, &ready, &e));
        CHECK(ready && c->inbox_bytes <= c->inbox_bytes_max);
        /* Who waits for somebody else takes in more. */
        CHECK_OK(comm_recv(c, 2, &byte, 1, &e));
        CHECK(c->inbox_bytes <= c->inbox_bytes_max && c->inbox_bytes > 4 * n);
        for (int i = 0; i < N; i++) {
            memset(bytes, 0, n);
            CHECK_OK(comm_recv(c, 1, bytes, n, &e));
            CHECK(is_message(bytes, 1, n));
        }
        /* One that is larger than all the room there is. */
        c->inbox_bytes_max = 1000;
        CHECK(wait_ready(c, 1));
        CHECK_OK(comm_recv(c, 1, bytes, n, &e));
        CHECK(is_message(bytes, 1, n) && c->inbox_bytes == 0);
    } else if (rank == 1) {
        for (int i = 0; i < N + 1; i++)
            CHECK_OK(comm_send(c, 0, bytes, n, &e));
    } else {
        usleep(200000);
        CHECK_OK(comm_send(c, 0, "x", 1, &e));
    }
    free(bytes);
}

static void test_full(void **state)
{
    (void)state;
    run_ranks(3, &options, NULL, run_full);
}

/* More than fits, both ways at once: an error that says so, within the time limit. */
static void run_too_much(struct world *w, struct comm *c, uint32_t rank)
{
    (void)w;
    struct error e = {0};
    size_t n = 40 << 20;
    uint8_t *bytes = calloc(n, 1);
    c->inbox_bytes_max = 1 << 20;
    uint64_t start = clock_now_ns();
    int r = comm_send(c, 1 - rank, bytes, n, &e);
    if (r == E_TIMEOUT)
        CHECK(strstr(e.message, "nothing more is taken in") != NULL);
    else /* the other was first; over MPI who leaves takes what is on its way, and throws it away */
        CHECK(r == E_PEERLOST || (r == 0 && kind == TRANSPORT_MPI));
    CHECK(clock_now_ns() - start < 3000000000u);
    free(bytes);
}

static void test_too_much(void **state)
{
    (void)state;
    static const struct comm_options impatient = {.timeout_ms = 400, .spin_us = 50};
    run_ranks(2, &impatient, NULL, run_too_much);
}

/* What came unasked is checked like everything else. */
static void run_mismatch(struct world *w, struct comm *c, uint32_t rank)
{
    (void)w;
    struct error e = {0};
    float x[8] = {0};
    if (rank == 1) {
        CHECK_OK(comm_send(c, 0, x, 20, &e));
        usleep(100000);
        return;
    }
    CHECK(wait_ready(c, 1));
    if (*(int *)w->arg == 0) {
        CHECK(comm_recv(c, 1, x, 21, &e) == E_PROTOCOL);
        CHECK(strstr(e.message, "sent 20 bytes") != NULL);
    } else {
        CHECK(comm_all_reduce_f32(c, (struct comm_group){0, 2}, 3, x, 5, &e) == E_PROTOCOL);
        CHECK(strstr(e.message, "at another operation") != NULL);
    }
}

static void test_mismatch(void **state)
{
    (void)state;
    for (int i = 0; i < 2; i++)
        run_ranks(2, &options, &i, run_mismatch);
}

/* Who leaves while others wait for somebody else: they notice when they want it. */
static void run_bystander(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    char byte = 0;
    if (rank == 2) {
        CHECK_OK(comm_send(c, 0, "b", 1, &e));
        comm_close(c);
        w->comms[2] = NULL;
    } else if (rank == 1) {
        usleep(150000);
        CHECK_OK(comm_send(c, 0, "a", 1, &e));
        CHECK(comm_recv(c, 0, &byte, 1, &e) == E_PEERLOST);
    } else {
        CHECK_OK(comm_recv(c, 1, &byte, 1, &e));
        CHECK_OK(comm_recv(c, 2, &byte, 1, &e));
        CHECK(byte == 'b');
        CHECK(comm_recv(c, 2, &byte, 1, &e) == E_PEERLOST);
    }
}

static void test_bystander(void **state)
{
    (void)state;
    run_ranks(3, &options, NULL, run_bystander);
}

static int run_group(const char *name)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ring),      cmocka_unit_test(test_detour),
        cmocka_unit_test(test_pipeline),  cmocka_unit_test(test_poll),
        cmocka_unit_test(test_halfway),   cmocka_unit_test(test_full),
        cmocka_unit_test(test_too_much),  cmocka_unit_test(test_mismatch),
        cmocka_unit_test(test_bystander),
    };
    return cmocka_run_group_tests_name(name, tests, NULL, NULL);
}

int main(int argc, char **argv)
{
    return world_main(argc, argv, &kind, run_group);
}
