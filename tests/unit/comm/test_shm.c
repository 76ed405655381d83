/* Memory that two ranks share: the rings alone, a side that lies, processes that die, and ranks
 * that cannot or will not share. */
#include "world.h"

#include "comm/shm.h"
#include "comm/wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const uint8_t key[32] = {1, 2, 3}, hash[32] = {4, 5, 6};

struct pair {
    uint8_t name[SHM_NAME_BYTES];
    struct shm *a, *b;
};

static void path_of(const uint8_t *name, char path[48])
{
    int n = snprintf(path, 48, "/shoal-");
    for (int i = 0; i < SHM_NAME_BYTES; i++)
        n += snprintf(path + n, 48 - (size_t)n, "%02x", name[i]);
}

static void open_pair(struct pair *p, size_t ring_bytes)
{
    struct error e = {0};
    *p = (struct pair){0};
    if (shm_create(ring_bytes, p->name, &p->a, &e) != 0)
        fail_msg("%s", e.message);
    assert_int_equal(shm_attach(p->name, ring_bytes, &p->b, &e), 0);
}

static void close_pair(struct pair *p)
{
    shm_forget_name(p->name);
    shm_close(p->a);
    shm_close(p->b);
}

static uint8_t byte_of(uint64_t i)
{
    return (uint8_t)(i * 131 >> 3);
}

/* ---- the rings ---- */

/* Any sizes, any turn order: a stream of bytes comes out as it went in. */
static void test_stream(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p, SHM_RING_BYTES_MIN);
    struct shm *from[2] = {p.a, p.b}, *to[2] = {p.b, p.a};
    static uint8_t out[2][200000], in[200000];
    uint64_t sent[2] = {0}, got[2] = {0};
    for (uint64_t step = 0; step < 40000; step++) {
        uint64_t r = rng_u64(11, step, 1);
        int way = (int)(r & 1);
        size_t moved;
        struct error e = {0};
        /* Now and then everything is read: the ring begins again at its beginning. */
        size_t n = r & 0x700 ? r >> 40 & 0x1ff : (r >> 40) % sizeof(in);
        if (r & 2) {
            for (size_t i = 0; i < n; i++)
                out[way][i] = byte_of(sent[way] + i);
            size_t split = n / 3;
            struct iovec iov[2] = {{out[way], split}, {out[way] + split, n - split}};
            assert_int_equal(shm_write(from[way], iov, 2, &moved, &e), 0);
            assert_true(moved == n || sent[way] + moved - got[way] == SHM_RING_BYTES_MIN);
            sent[way] += moved;
        } else {
            size_t split = n / 4;
            struct iovec iov[2] = {{in, split}, {in + split, n - split}};
            assert_true(shm_is_readable(to[way]) == (sent[way] > got[way]));
            assert_int_equal(shm_read(to[way], iov, 2, &moved, &e), 0);
            assert_true(moved <= n && moved <= sent[way] - got[way]);
            for (size_t i = 0; i < moved; i++)
                assert_int_equal(in[i], byte_of(got[way] + i));
            got[way] += moved;
        }
        assert_true(shm_is_writable(from[way]) == (sent[way] - got[way] < SHM_RING_BYTES_MIN));
    }
    assert_true(sent[0] > 20 * SHM_RING_BYTES_MIN && sent[1] > 20 * SHM_RING_BYTES_MIN);
    close_pair(&p);
}

struct side {
    struct shm *shm;
    uint64_t n;
};

static void *write_main(void *arg)
{
    struct side *s = arg;
    static uint8_t bytes[30000];
    for (uint64_t done = 0; done < s->n;) {
        size_t n = 1 + rng_u64(3, done, 1) % sizeof(bytes), moved;
        n = n < s->n - done ? n : s->n - done;
        for (size_t i = 0; i < n; i++)
            bytes[i] = byte_of(done + i);
        struct iovec iov = {bytes, n};
        CHECK(shm_write(s->shm, &iov, 1, &moved, NULL) == 0);
        done += moved;
        if (moved == 0)
            sched_yield();
    }
    return NULL;
}

/* Both sides at once. */
static void test_threads(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p, SHM_RING_BYTES_MIN);
    struct side s = {.shm = p.a, .n = 8 << 20};
    pthread_t thread;
    assert_int_equal(pthread_create(&thread, NULL, write_main, &s), 0);
    static uint8_t bytes[10000];
    for (uint64_t done = 0; done < s.n;) {
        size_t moved;
        struct iovec iov = {bytes, 1 + rng_u64(4, done, 1) % sizeof(bytes)};
        assert_int_equal(shm_read(p.b, &iov, 1, &moved, NULL), 0);
        for (size_t i = 0; i < moved; i++)
            CHECK(bytes[i] == byte_of(done + i));
        done += moved;
        if (moved == 0)
            sched_yield();
    }
    pthread_join(thread, NULL);
    assert_int_equal(atomic_exchange(&n_failures, 0), 0);
    close_pair(&p);
}

static void test_sleepers(void **state)
{
    (void)state;
    struct pair p;
    open_pair(&p, SHM_RING_BYTES_MIN);
    assert_false(shm_take_sleeper(p.a));
    shm_set_asleep(p.b, true);
    assert_false(shm_take_sleeper(p.b));
    assert_true(shm_take_sleeper(p.a));
    assert_false(shm_take_sleeper(p.a));
    shm_set_asleep(p.b, true);
    shm_set_asleep(p.b, false);
    assert_false(shm_take_sleeper(p.a));
    close_pair(&p);
}

/* ---- a side that lies ---- */

/* Whatever stands in the shared page, the other side neither reads nor writes beyond its rings. */
static void test_nonsense(void **state)
{
    (void)state;
    static uint8_t bytes[100000];
    for (uint64_t seed = 0; seed < 60; seed++) {
        struct pair p;
        char path[48];
        open_pair(&p, SHM_RING_BYTES_MIN);
        path_of(p.name, path);
        int fd = shm_open(path, O_RDWR, 0);
        uint64_t *words = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
        assert_true(words != MAP_FAILED);
        for (uint64_t step = 0; step < 200; step++) {
            uint64_t r = rng_u64(seed, step, 5);
            size_t moved;
            if (step % 10 == 9)
                words[1 + (r >> 8) % 60] = r & 4 ? r : r >> 50;
            struct iovec iov = {bytes, (r >> 20) % sizeof(bytes)};
            int result = r & 1 ? shm_write(p.a, &iov, 1, &moved, NULL)
                               : shm_read(p.a, &iov, 1, &moved, NULL);
            assert_true(result == 0 || result == E_PROTOCOL);
        }
        munmap(words, 4096);
        close(fd);
        close_pair(&p);
    }
}

static void test_attach(void **state)
{
    (void)state;
    struct pair p;
    struct error e = {0};
    struct shm *other = NULL;
    uint8_t nobody[SHM_NAME_BYTES] = {1};
    char path[48];
    open_pair(&p, SHM_RING_BYTES_MIN);
    assert_int_equal(shm_attach(nobody, SHM_RING_BYTES_MIN, &other, &e), E_IO);
    static const size_t sizes[] = {
        0, 1, SHM_RING_BYTES_MIN * 2, SHM_RING_BYTES_MIN * 3, SHM_RING_BYTES_MAX * 2, SIZE_MAX};
    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
        assert_int_equal(shm_attach(p.name, sizes[i], &other, &e), E_PROTOCOL);
    /* Others may read it: not ours. */
    path_of(p.name, path);
    int fd = shm_open(path, O_RDWR, 0);
    assert_true(fd >= 0 && fchmod(fd, 0644) == 0);
    assert_int_equal(shm_attach(p.name, SHM_RING_BYTES_MIN, &other, &e), E_PROTOCOL);
    assert_int_equal(fchmod(fd, 0600), 0);
    /* Something else of the right size. */
    assert_int_equal(pwrite(fd, "x", 1, 0), 1);
    assert_int_equal(shm_attach(p.name, SHM_RING_BYTES_MIN, &other, &e), E_PROTOCOL);
    close(fd);
    assert_null(other);
    shm_forget_name(p.name);
    assert_int_equal(shm_attach(p.name, SHM_RING_BYTES_MIN, &other, &e), E_IO);
    close_pair(&p);
}

/* ---- processes ---- */

static void run_child(struct comm_tcp_listener *l, const struct comm_tcp_peer *peers)
{
    struct error e = {0};
    struct comm *c;
    const struct comm_options options = {.timeout_ms = 20000, .spin_us = UINT32_MAX};
    float x[100] = {1};
    if (comm_tcp_connect(l, 1, 2, peers, key, hash, &options, &c, &e) != 0)
        _exit(1);
    for (int i = 0; i < 10; i++)
        if (comm_all_reduce_f32(c, (struct comm_group){0, 2}, 3, x, 100, &e) != 0)
            _exit(2);
    if (comm_send(c, 0, "last words", 10, &e) != 0)
        _exit(3);
    pause();
    _exit(4);
}

/* Killed while we spin, and while we sleep: noticed at once, and its last words are heard. */
static void test_kill(void **state)
{
    (void)state;
    for (int spin = 0; spin < 2; spin++) {
        struct error e = {0};
        struct comm_tcp_listener *l[2];
        struct comm_tcp_peer peers[2] = {{.host = "127.0.0.1"}, {.host = "127.0.0.1"}};
        struct comm *c;
        for (int i = 0; i < 2; i++)
            assert_int_equal(comm_tcp_listen("127.0.0.1", 0, &l[i], &peers[i].port, &e), 0);
        pid_t pid = fork();
        assert_true(pid >= 0);
        if (pid == 0)
            run_child(l[1], peers);
        struct comm_options options = {.timeout_ms = 20000, .spin_us = spin ? 20000000 : 0};
        assert_int_equal(comm_tcp_connect(l[0], 0, 2, peers, key, hash, &options, &c, &e), 0);
        struct comm_stats stats;
        comm_get_stats(c, &stats);
        assert_int_equal(stats.n_shm_peers, 1);
        float x[100] = {1};
        for (int i = 0; i < 10; i++)
            assert_int_equal(comm_all_reduce_f32(c, (struct comm_group){0, 2}, 3, x, 100, &e), 0);
        assert_true(x[0] == 1024);
        usleep(50000);
        kill(pid, SIGKILL);
        uint64_t start = clock_now_ns();
        char text[10];
        assert_int_equal(comm_recv(c, 1, text, 10, &e), 0);
        assert_memory_equal(text, "last words", 10);
        assert_int_equal(comm_recv(c, 1, text, 10, &e), E_PEERLOST);
        assert_non_null(strstr(e.message, "rank 1 is gone"));
        assert_true(clock_now_ns() - start < 500000000);
        comm_close(c);
        waitpid(pid, NULL, 0);
        for (int i = 0; i < 2; i++)
            comm_tcp_listener_close(l[i]);
    }
}

/* A rank that only sends notices too. */
static void test_kill_receiver(void **state)
{
    (void)state;
    struct error e = {0};
    struct world w;
    const struct comm_options options = {.timeout_ms = 5000};
    world_open(&w, TRANSPORT_SHM, 2, &options);
    comm_close(w.comms[1]);
    w.comms[1] = NULL;
    int r = 0;
    for (int i = 0; i < 1000 && r == 0; i++)
        r = comm_send(w.comms[0], 1, "hello", 5, &e);
    assert_int_equal(r, E_PEERLOST);
    world_close(&w);
}

/* ---- ranks that offer what cannot be ---- */

struct acceptor {
    struct comm_tcp_listener *listener;
    struct comm *comm;
    int result;
    struct error err;
};

static void *accept_main(void *arg)
{
    struct acceptor *a = arg;
    const struct comm_tcp_peer peers[2] = {0};
    const struct comm_options options = {.connect_timeout_ms = 700, .timeout_ms = 3000};
    a->result = comm_tcp_connect(a->listener, 0, 2, peers, key, hash, &options, &a->comm, &a->err);
    return NULL;
}

static void read_all(int fd, void *to, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t r = recv(fd, (uint8_t *)to + done, n - done, 0);
        if (r <= 0)
            fail_msg("the rank closed the connection");
        done += (size_t)r;
    }
}

/* The handshake of rank 1, up to the welcome. */
static int join_by_hand(uint16_t port)
{
    struct hello h = {.rank = 1, .n_ranks = 2};
    uint8_t hello[HELLO_BYTES], answer[HELLO_BYTES + PROOF_BYTES], proof[PROOF_BYTES];
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(fd, (struct sockaddr *)&a, sizeof(a)), 0);
    memcpy(h.program_hash, hash, 32);
    hello_write(&h, hello);
    send(fd, hello, sizeof(hello), MSG_NOSIGNAL);
    read_all(fd, answer, sizeof(answer));
    hello_prove(key, HELLO_CONNECTOR, hello, answer, proof);
    send(fd, proof, sizeof(proof), MSG_NOSIGNAL);
    read_all(fd, answer, VERDICT_BYTES);
    return fd;
}

static void test_bad_offers(void **state)
{
    (void)state;
    enum { NOTHING, NO_MEMORY, WRONG_NAME, WRONG_SIZE, WRONG_MAGIC, CLOSED, N_CASES };
    static const int results[] = {E_TIMEOUT, 0, 0, 0, E_PROTOCOL, E_PEERLOST};
    struct pair p;
    open_pair(&p, SHM_RING_BYTES_MIN);
    for (int i = 0; i < N_CASES; i++) {
        struct acceptor a = {0};
        struct offer o = {.ring_bytes = i == WRONG_SIZE ? 12345 : SHM_RING_BYTES_MIN};
        uint8_t bytes[OFFER_BYTES], answer[ANSWER_BYTES];
        uint16_t port;
        pthread_t thread;
        assert_int_equal(comm_tcp_listen("127.0.0.1", 0, &a.listener, &port, &a.err), 0);
        assert_int_equal(pthread_create(&thread, NULL, accept_main, &a), 0);
        int fd = join_by_hand(port);
        if (i == WRONG_SIZE)
            memcpy(o.name, p.name, SHM_NAME_BYTES);
        if (i == NO_MEMORY)
            o.ring_bytes = 0;
        offer_write(&o, bytes);
        bytes[0] = (uint8_t)(bytes[0] ^ (i == WRONG_MAGIC));
        if (i == CLOSED)
            shutdown(fd, SHUT_RDWR);
        else if (i != NOTHING)
            assert_int_equal(send(fd, bytes, sizeof(bytes), MSG_NOSIGNAL), sizeof(bytes));
        if (results[i] == 0) {
            bool taken = true;
            read_all(fd, answer, sizeof(answer));
            assert_true(answer_parse(answer, &taken, NULL) == 0 && !taken);
        }
        pthread_join(thread, NULL);
        assert_int_equal(a.result, results[i]);
        if (a.result == 0) { /* they talk over the connection */
            uint8_t frame[FRAME_HEADER_BYTES + 2];
            struct error e = {0};
            assert_int_equal(comm_send(a.comm, 1, "ok", 2, &e), 0);
            read_all(fd, frame, sizeof(frame));
            assert_memory_equal(frame + FRAME_HEADER_BYTES, "ok", 2);
            comm_close(a.comm);
        }
        close(fd);
        comm_tcp_listener_close(a.listener);
    }
    close_pair(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream),        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_sleepers),      cmocka_unit_test(test_nonsense),
        cmocka_unit_test(test_attach),        cmocka_unit_test(test_kill),
        cmocka_unit_test(test_kill_receiver), cmocka_unit_test(test_bad_offers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
