/* Paths over which packets no longer arrive, and peers that are only slow. A filter on a socket
 * that accepts nothing drops what arrives there, as a network that has gone away does. */
#include "world.h"

#include "comm/tcp.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/filter.h>
#endif

/* Far more than the seconds within which these must end. */
static const struct comm_options options = {.timeout_ms = 60000, .spin_us = 50};

static uint64_t seconds_since(uint64_t start_ns)
{
    return (clock_now_ns() - start_ns) / 1000000000;
}

#ifdef __linux__

/* Every connection that this process has so far. What was sent there has been acknowledged. */
static void cut_paths(void)
{
    usleep(200000); /* the system puts off its acknowledgements by 40 ms */
    struct sock_filter nothing = BPF_STMT(BPF_RET | BPF_K, 0);
    struct sock_fprog program = {.len = 1, .filter = &nothing};
    struct rlimit limit;
    int n_cut = 0;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    for (int fd = 3; fd < (int)limit.rlim_cur && fd < 1024; fd++) {
        struct sockaddr_storage a;
        socklen_t len = sizeof(a);
        if (getpeername(fd, (struct sockaddr *)&a, &len) != 0 || a.ss_family != AF_INET)
            continue;
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_ATTACH_FILTER, &program, sizeof(program)),
                         0);
        n_cut++;
    }
    assert_true(n_cut > 0);
}

static void say_hello(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    float x[8] = {1};
    CHECK_OK(comm_all_reduce_f32(c, (struct comm_group){0, w->n}, 3, x, 8, &e));
    CHECK(x[0] == 2.0f);
    (void)rank;
}

/* Both have sent, and nothing is acknowledged: an answer within about 3 s. */
static void expect_lost_in_step(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    float x[1000] = {0};
    uint64_t start = clock_now_ns();
    CHECK(comm_all_reduce_f32(c, (struct comm_group){0, w->n}, 3, x, 1000, &e) == E_PEERLOST);
    CHECK(strstr(e.message, "is gone (its computer acknowledges nothing any more)") != NULL);
    CHECK(seconds_since(start) >= 2 && seconds_since(start) < 8);
    (void)rank;
}

/* Nothing is under way: the system asks, and hears nothing for 5 s. */
static void expect_lost_while_waiting(struct world *w, struct comm *c, uint32_t rank)
{
    struct error e = {0};
    uint8_t byte;
    uint64_t start = clock_now_ns();
    if (rank == 0)
        return; /* computes */
    CHECK(comm_recv(c, 0, &byte, 1, &e) == E_PEERLOST);
    CHECK(strstr(e.message, strerror(ETIMEDOUT)) != NULL);
    CHECK(seconds_since(start) >= 3 && seconds_since(start) < 10);
    (void)w;
}

/* All buffers are full for longer than a dead path is waited for, and the peer's system says so. */
static void expect_patience(struct world *w, struct comm *c, uint32_t rank)
{
    enum { N = 48 << 20 };
    struct error e = {0};
    uint8_t *bytes = calloc(1, N);
    CHECK(bytes != NULL);
    if (rank == 0)
        CHECK_OK(comm_send(c, 1, bytes, N, &e));
    else {
        usleep(4500000);
        CHECK_OK(comm_recv(c, 0, bytes, N, &e));
    }
    free(bytes);
    (void)w;
}

/* All at once, since they only wait. */
static void test_paths(void **state)
{
    (void)state;
    void (*const bodies[])(struct world *, struct comm *, uint32_t) = {
        expect_lost_in_step, expect_lost_while_waiting, expect_patience};
    enum { N_WORLDS = sizeof(bodies) / sizeof(bodies[0]), N_CUT = 2 };
    struct world worlds[N_WORLDS];
    struct rank_thread threads[N_WORLDS][2];
    for (int i = 0; i < N_WORLDS; i++) {
        world_open(&worlds[i], TRANSPORT_TCP, 2, &options);
        world_run(&worlds[i], say_hello);
        if (i + 1 == N_CUT)
            cut_paths();
    }
    for (int i = 0; i < N_WORLDS; i++)
        for (uint32_t rank = 0; rank < 2; rank++) {
            threads[i][rank] = (struct rank_thread){&worlds[i], rank, bodies[i], 0};
            assert_int_equal(
                pthread_create(&threads[i][rank].thread, NULL, rank_main, &threads[i][rank]), 0);
        }
    for (int i = 0; i < N_WORLDS; i++) {
        for (uint32_t rank = 0; rank < 2; rank++)
            pthread_join(threads[i][rank].thread, NULL);
        world_close(&worlds[i]);
    }
    assert_int_equal(atomic_exchange(&n_failures, 0), 0);
}

#else

static void test_paths(void **state)
{
    (void)state;
    (void)options;
    (void)seconds_since;
    skip();
}

#endif

static int option_of(int fd, int level, int name)
{
    int value = 0;
    socklen_t len = sizeof(value);
    assert_int_equal(getsockopt(fd, level, name, &value, &len), 0);
    return value;
}

static void test_options(void **state)
{
    (void)state;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_true(fd >= 0);
    tcp_tune(fd);
    assert_true(option_of(fd, IPPROTO_TCP, TCP_NODELAY) != 0);
    assert_true(option_of(fd, SOL_SOCKET, SO_KEEPALIVE) != 0);
#ifdef TCP_KEEPIDLE
    assert_int_equal(option_of(fd, IPPROTO_TCP, TCP_KEEPIDLE), 2);
    assert_int_equal(option_of(fd, IPPROTO_TCP, TCP_KEEPINTVL), 1);
    assert_int_equal(option_of(fd, IPPROTO_TCP, TCP_KEEPCNT), 3);
#endif
    assert_false(tcp_path_is_dead(fd));
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_options),
        cmocka_unit_test(test_paths),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
