/* Ranks that gather over TCP among strangers, liars and the absent. */
#include "world.h"

#include "comm/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

static const uint8_t key[32] = {1, 2, 3}, wrong_key[32] = {1, 2, 4};
static const uint8_t hash[32] = {9, 9}, wrong_hash[32] = {9, 8};

/* One rank's part, each with its own idea of the world. */
struct joiner {
    uint32_t rank, n_ranks;
    const uint8_t *key, *hash;
    uint32_t timeout_ms, delay_ms;
    struct comm_tcp_listener *listener;
    const struct comm_tcp_peer *peers;
    struct comm *comm;
    int result;
    struct error err;
    uint64_t took_ms;
    pthread_t thread;
};

struct stage {
    uint32_t n;
    struct joiner joiners[WORLD_MAX];
    struct comm_tcp_peer peers[WORLD_MAX];
};

static void *joiner_main(void *arg)
{
    struct joiner *j = arg;
    usleep(j->delay_ms * 1000);
    struct comm_options options = {.connect_timeout_ms = j->timeout_ms, .timeout_ms = 5000};
    uint64_t start = clock_now_ns();
    j->result = comm_tcp_connect(j->listener, j->rank, j->n_ranks, j->peers, j->key, j->hash,
                                 &options, &j->comm, &j->err);
    j->took_ms = (clock_now_ns() - start) / 1000000;
    return NULL;
}

static void stage_set(struct stage *s, uint32_t n, const char *host)
{
    struct error e = {0};
    memset(s, 0, sizeof(*s));
    s->n = n;
    for (uint32_t i = 0; i < n; i++) {
        s->joiners[i] = (struct joiner){.rank = i,
                                        .n_ranks = n,
                                        .key = key,
                                        .hash = hash,
                                        .timeout_ms = 5000,
                                        .peers = s->peers};
        strcpy(s->peers[i].host, host);
        if (comm_tcp_listen(host, 0, &s->joiners[i].listener, &s->peers[i].port, &e) != 0)
            fail_msg("%s", e.message);
    }
}

static void start(struct joiner *j)
{
    assert_int_equal(pthread_create(&j->thread, NULL, joiner_main, j), 0);
}

static void stage_run(struct stage *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        start(&s->joiners[i]);
    for (uint32_t i = 0; i < s->n; i++)
        pthread_join(s->joiners[i].thread, NULL);
}

static uint64_t stage_strike(struct stage *s)
{
    uint64_t n_refused = 0;
    for (uint32_t i = 0; i < s->n; i++) {
        comm_close(s->joiners[i].comm);
        n_refused += comm_tcp_listener_refused(s->joiners[i].listener);
        comm_tcp_listener_close(s->joiners[i].listener);
    }
    return n_refused;
}

static void expect_all_connected(struct stage *s)
{
    for (uint32_t i = 0; i < s->n; i++)
        if (s->joiners[i].result != 0)
            fail_msg("rank %u: %s", i, s->joiners[i].err.message);
    struct error e = {0};
    uint32_t last = s->n - 1, got = 0;
    assert_int_equal(comm_send(s->joiners[0].comm, last, &last, sizeof(last), &e), 0);
    assert_int_equal(comm_recv(s->joiners[last].comm, 0, &got, sizeof(got), &e), 0);
    assert_int_equal(got, last);
}

static int dial(uint16_t port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    return fd;
}

/* Reads until the other side closes, at most max bytes. Returns how many. */
static size_t drain(int fd, uint8_t *bytes, size_t max)
{
    size_t n = 0;
    ssize_t r = 1;
    while (n < max && r > 0) {
        r = recv(fd, bytes + n, max - n, 0);
        n += r > 0 ? (size_t)r : 0;
    }
    return n;
}

/* ---- the right ones ---- */

static void test_gather(void **state)
{
    (void)state;
    for (uint32_t n = 1; n <= 5; n += 2) {
        struct stage s;
        stage_set(&s, n, "127.0.0.1");
        for (uint32_t i = 0; i < n; i++)
            s.joiners[i].delay_ms = (n - i) * 30; /* the low ones come last */
        stage_run(&s);
        if (n > 1)
            expect_all_connected(&s);
        assert_int_equal(stage_strike(&s), 0);
    }
}

static void test_ipv6(void **state)
{
    (void)state;
    struct comm_tcp_listener *l;
    struct error e = {0};
    uint16_t port;
    if (comm_tcp_listen("::1", 0, &l, &port, &e) != 0) {
        print_message("no IPv6 here: %s\n", e.message);
        skip();
    }
    comm_tcp_listener_close(l);
    struct stage s;
    stage_set(&s, 3, "::1");
    stage_run(&s);
    expect_all_connected(&s);
    stage_strike(&s);
}

static void test_addresses(void **state)
{
    (void)state;
    struct comm_tcp_listener *l;
    struct error e = {0};
    uint16_t port;
    static const char *const bad[] = {"localhost", "", "1.2.3", "1.2.3.4.5", ":::", "example.org"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        int r = comm_tcp_listen(bad[i], 0, &l, &port, &e);
        if (i != 2) /* "1.2.3" is an old spelling of 1.2.0.3 */
            assert_int_equal(r, E_INVALID);
    }
    struct stage s;
    stage_set(&s, 2, "127.0.0.1");
    strcpy(s.peers[0].host, "somewhere");
    s.joiners[0].timeout_ms = 200;
    stage_run(&s);
    assert_int_equal(s.joiners[1].result, E_INVALID);
    assert_non_null(strstr(s.joiners[1].err.message, "somewhere"));
    assert_int_equal(s.joiners[0].result, E_TIMEOUT);
    struct comm *c;
    assert_int_equal(comm_tcp_connect(NULL, 2, 2, s.peers, key, hash, NULL, &c, &e), E_INVALID);
    assert_int_equal(comm_tcp_connect(NULL, 0, 65, s.peers, key, hash, NULL, &c, &e), E_INVALID);
    assert_int_equal(comm_tcp_connect(NULL, 0, 2, s.peers, key, hash, NULL, &c, &e), E_INVALID);
    stage_strike(&s);
}

/* ---- strangers ---- */

/* Garbage, half a hello, silence and hang-ups, more of them than are waited for, do not keep the
 * true ranks out. */
static void test_strangers(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 3, "127.0.0.1");
    enum { N_STRANGERS = 100 };
    int fds[N_STRANGERS];
    for (int i = 0; i < 40; i++)
        fds[i] = dial(s.peers[0].port);
    uint8_t garbage[300];
    memset(garbage, 0x41, sizeof(garbage));
    for (int i = 0; i < 10; i++)
        assert_true(send(fds[i], garbage, sizeof(garbage), MSG_NOSIGNAL) > 0);
    for (int i = 10; i < 20; i++)
        assert_true(send(fds[i], "shoalcm", 5, MSG_NOSIGNAL) > 0);
    for (int i = 20; i < 25; i++)
        close(fds[i]);
    s.joiners[1].delay_ms = s.joiners[2].delay_ms = 200;
    for (uint32_t i = 0; i < 3; i++)
        start(&s.joiners[i]);
    for (int i = 40; i < N_STRANGERS; i++)
        fds[i] = dial(s.peers[0].port);
    for (uint32_t i = 0; i < 3; i++)
        pthread_join(s.joiners[i].thread, NULL);
    expect_all_connected(&s);
    assert_true(s.joiners[2].took_ms < 2500);
    for (int i = 0; i < N_STRANGERS; i++)
        if (i < 20 || i >= 25)
            close(fds[i]);
    uint64_t n_refused = stage_strike(&s);
    assert_true(n_refused >= 15 && n_refused <= N_STRANGERS);
}

/* A stranger who knows the protocol but not the key learns nothing it could answer with, and does
 * not get in by answering a rank with that rank's own words. */
static void test_wrong_key(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 2, "127.0.0.1");
    s.joiners[1].key = wrong_key;
    s.joiners[0].timeout_ms = s.joiners[1].timeout_ms = 400;
    stage_run(&s);
    assert_int_equal(s.joiners[0].result, E_TIMEOUT);
    assert_non_null(strstr(s.joiners[0].err.message, "misses rank 1"));
    assert_int_equal(s.joiners[1].result, E_TIMEOUT);
    assert_non_null(strstr(s.joiners[1].err.message, "does not hold this instance's key"));
    assert_true(stage_strike(&s) >= 1);

    stage_set(&s, 2, "127.0.0.1");
    s.joiners[0].timeout_ms = 2000;
    start(&s.joiners[0]);
    for (int mode = 0; mode < 3; mode++) {
        struct hello h = {.rank = 1, .n_ranks = 2};
        uint8_t hello[HELLO_BYTES], answer[HELLO_BYTES + PROOF_BYTES + 1], proof[PROOF_BYTES] = {0};
        memcpy(h.program_hash, hash, 32);
        hello_write(&h, hello);
        int fd = dial(s.peers[0].port);
        send(fd, hello, sizeof(hello), MSG_NOSIGNAL);
        assert_int_equal(drain(fd, answer, HELLO_BYTES + PROOF_BYTES), HELLO_BYTES + PROOF_BYTES);
        if (mode == 1)
            memcpy(proof, answer + HELLO_BYTES, PROOF_BYTES);
        if (mode == 2)
            hello_prove(wrong_key, HELLO_CONNECTOR, hello, answer, proof);
        send(fd, proof, sizeof(proof), MSG_NOSIGNAL);
        assert_int_equal(drain(fd, answer, 1), 0);
        close(fd);
    }
    assert_int_equal(comm_tcp_listener_refused(s.joiners[0].listener) >= 2, 1);
    start(&s.joiners[1]);
    pthread_join(s.joiners[0].thread, NULL);
    pthread_join(s.joiners[1].thread, NULL);
    expect_all_connected(&s);
    assert_int_equal(stage_strike(&s), 3);
}

/* A slow loris sends a byte now and then: it has its deadline all the same, and nobody waits for
 * it. */
static void *trickle(void *arg)
{
    int fd = *(int *)arg;
    struct hello h = {.rank = 1, .n_ranks = 2};
    uint8_t hello[HELLO_BYTES];
    hello_write(&h, hello);
    for (int i = 0; i < HELLO_BYTES - 1; i++) {
        if (send(fd, hello + i, 1, MSG_NOSIGNAL) < 0)
            break;
        usleep(60000);
    }
    return NULL;
}

static void test_slow_loris(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 2, "127.0.0.1");
    s.joiners[1].delay_ms = 3400; /* after the stranger's deadline */
    int fd = dial(s.peers[0].port);
    pthread_t thread;
    pthread_create(&thread, NULL, trickle, &fd);
    stage_run(&s);
    expect_all_connected(&s);
    assert_true(s.joiners[1].took_ms < 2500);
    assert_int_equal(stage_strike(&s), 1);
    pthread_join(thread, NULL);
    close(fd);
}

/* The other way round: who listens at a rank's address is a stranger. */
static void *bad_listener(void *arg)
{
    int listener = *(int *)arg;
    for (int i = 0; i < 3; i++) {
        int fd = accept(listener, NULL, NULL);
        uint8_t bytes[HELLO_BYTES + PROOF_BYTES] = {0};
        if (i == 1) /* an echo: our own hello and a proof it cannot know */
            drain(fd, bytes, HELLO_BYTES);
        if (i > 0)
            send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL);
        close(fd);
    }
    return NULL;
}

static void test_bad_listener(void **state)
{
    (void)state;
    struct sockaddr_in a = {.sin_family = AF_INET};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t len = sizeof(a);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&a, len), 0);
    assert_int_equal(listen(listener, 5), 0);
    getsockname(listener, (struct sockaddr *)&a, &len);
    struct stage s;
    stage_set(&s, 2, "127.0.0.1");
    s.peers[0].port = ntohs(a.sin_port);
    s.joiners[1].timeout_ms = 500;
    pthread_t thread;
    pthread_create(&thread, NULL, bad_listener, &listener);
    start(&s.joiners[1]);
    pthread_join(s.joiners[1].thread, NULL);
    pthread_join(thread, NULL);
    assert_int_equal(s.joiners[1].result, E_TIMEOUT);
    assert_non_null(strstr(s.joiners[1].err.message, "misses rank 0"));
    close(listener);
    stage_strike(&s);
}

/* ---- true ranks with false ideas ---- */

static void test_wrong_program(void **state)
{
    (void)state;
    for (int mode = 0; mode < 2; mode++) {
        struct stage s;
        stage_set(&s, 2, "127.0.0.1");
        if (mode == 0)
            s.joiners[1].hash = wrong_hash;
        else
            s.joiners[1].n_ranks = 3;
        stage_run(&s);
        for (uint32_t i = 0; i < 2; i++) {
            assert_int_equal(s.joiners[i].result, E_PROTOCOL);
            assert_non_null(
                strstr(s.joiners[i].err.message, mode == 0 ? "another program" : "counts 3"));
            assert_true(s.joiners[i].took_ms < 2500);
        }
        stage_strike(&s);
    }
}

static void test_duplicate_rank(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 3, "127.0.0.1");
    struct joiner twin = s.joiners[1];
    twin.delay_ms = 200;
    s.joiners[2].delay_ms = 600;
    start(&twin);
    stage_run(&s);
    pthread_join(twin.thread, NULL);
    assert_int_equal(twin.result, E_PROTOCOL);
    assert_non_null(strstr(twin.err.message, "connected already"));
    expect_all_connected(&s);
    assert_int_equal(stage_strike(&s), 1);
}

/* A rank that died while the ranks gather may come again. */
static void test_rank_returns(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 3, "127.0.0.1");
    struct joiner first = s.joiners[1];
    first.timeout_ms = 300; /* gives up before rank 2 is there */
    s.joiners[1].delay_ms = 500;
    s.joiners[2].delay_ms = 800;
    start(&first);
    stage_run(&s);
    pthread_join(first.thread, NULL);
    assert_int_equal(first.result, E_TIMEOUT);
    expect_all_connected(&s);
    stage_strike(&s);
}

static void test_swapped_addresses(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 3, "127.0.0.1");
    struct comm_tcp_peer swapped[3] = {s.peers[1], s.peers[0], s.peers[2]};
    s.joiners[2].peers = swapped;
    s.joiners[0].timeout_ms = s.joiners[1].timeout_ms = 300;
    stage_run(&s);
    assert_int_equal(s.joiners[2].result, E_PROTOCOL);
    assert_non_null(strstr(s.joiners[2].err.message, "belongs to rank"));
    stage_strike(&s);
}

static void test_missing_rank(void **state)
{
    (void)state;
    struct stage s;
    stage_set(&s, 3, "127.0.0.1");
    struct joiner absent = s.joiners[1];
    comm_tcp_listener_close(absent.listener);
    s.joiners[1].listener = NULL;
    s.joiners[0].timeout_ms = s.joiners[2].timeout_ms = 300;
    start(&s.joiners[0]);
    start(&s.joiners[2]);
    pthread_join(s.joiners[0].thread, NULL);
    pthread_join(s.joiners[2].thread, NULL);
    for (int i = 0; i < 3; i += 2) {
        assert_int_equal(s.joiners[i].result, E_TIMEOUT);
        assert_non_null(strstr(s.joiners[i].err.message, "misses rank 1"));
        assert_true(s.joiners[i].took_ms >= 290 && s.joiners[i].took_ms < 2500);
    }
    assert_non_null(strstr(s.joiners[2].err.message, "refused"));
    comm_close(s.joiners[0].comm);
    comm_close(s.joiners[2].comm);
    comm_tcp_listener_close(s.joiners[0].listener);
    comm_tcp_listener_close(s.joiners[2].listener);
}

/* ---- an authenticated rank that then sends nonsense ---- */

static int join_by_hand(struct stage *s, uint32_t rank)
{
    struct hello h = {.rank = rank, .n_ranks = s->n};
    uint8_t hello[HELLO_BYTES], answer[HELLO_BYTES + PROOF_BYTES], proof[PROOF_BYTES];
    memcpy(h.program_hash, hash, 32);
    hello_write(&h, hello);
    int fd = dial(s->peers[0].port);
    send(fd, hello, sizeof(hello), MSG_NOSIGNAL);
    assert_int_equal(drain(fd, answer, sizeof(answer)), sizeof(answer));
    hello_prove(key, HELLO_CONNECTOR, hello, answer, proof);
    send(fd, proof, sizeof(proof), MSG_NOSIGNAL);
    assert_int_equal(drain(fd, answer, VERDICT_BYTES), VERDICT_BYTES);
    enum verdict v;
    assert_int_equal(verdict_parse(answer, &v, NULL), 0);
    assert_int_equal(v, VERDICT_WELCOME);
    uint8_t offer[OFFER_BYTES];
    offer_write(&(struct offer){0}, offer);
    send(fd, offer, sizeof(offer), MSG_NOSIGNAL);
    assert_int_equal(drain(fd, answer, ANSWER_BYTES), ANSWER_BYTES);
    bool taken = true;
    assert_true(answer_parse(answer, &taken, NULL) == 0 && !taken);
    return fd;
}

static void test_bad_frames(void **state)
{
    (void)state;
    static const struct {
        struct frame_header header;
        const char *message;
        int code;
    } cases[] = {
        {{FRAME_MESSAGE, 8, 0}, "", 0},
        {{FRAME_MESSAGE, 8, 1}, "frame number 1", E_PROTOCOL},
        {{FRAME_SUM, 8, 0}, "another operation", E_PROTOCOL},
        {{99, 8, 0}, "unknown kind", E_PROTOCOL},
        {{FRAME_MESSAGE, 7, 0}, "sent 7 bytes", E_PROTOCOL},
        {{FRAME_MESSAGE, UINT32_MAX, 0}, "limit", E_PROTOCOL},
        {{0, 0, 0}, "frame starts with", E_PROTOCOL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct stage s;
        stage_set(&s, 2, "127.0.0.1");
        start(&s.joiners[0]);
        int fd = join_by_hand(&s, 1);
        pthread_join(s.joiners[0].thread, NULL);
        assert_int_equal(s.joiners[0].result, 0);
        uint8_t bytes[FRAME_HEADER_BYTES + 8] = {0};
        if (cases[i].header.kind != 0)
            frame_header_write(&cases[i].header, bytes);
        /* In pieces. */
        assert_int_equal(send(fd, bytes, 5, MSG_NOSIGNAL), 5);
        assert_int_equal(send(fd, bytes + 5, sizeof(bytes) - 5, MSG_NOSIGNAL), sizeof(bytes) - 5);
        struct error e = {0};
        char data[8];
        assert_int_equal(comm_recv(s.joiners[0].comm, 1, data, 8, &e), cases[i].code);
        assert_non_null(strstr(e.message, cases[i].message));
        if (cases[i].code != 0) /* it let go at once */
            drain(fd, bytes, 1);
        close(fd);
        stage_strike(&s);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gather),
        cmocka_unit_test(test_ipv6),
        cmocka_unit_test(test_addresses),
        cmocka_unit_test(test_strangers),
        cmocka_unit_test(test_wrong_key),
        cmocka_unit_test(test_slow_loris),
        cmocka_unit_test(test_bad_listener),
        cmocka_unit_test(test_wrong_program),
        cmocka_unit_test(test_duplicate_rank),
        cmocka_unit_test(test_rank_returns),
        cmocka_unit_test(test_swapped_addresses),
        cmocka_unit_test(test_missing_rank),
        cmocka_unit_test(test_bad_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
