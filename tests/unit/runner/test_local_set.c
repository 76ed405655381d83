/* Whole runners as threads: what a node may send at the wrong time, and many requests at once on a
 * real model (skipped without one). */
#include "base/rng.h"
#include "runner/local_set.h"
#include "runner/runner.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- one runner, and a node that misbehaves ---- */

struct subject {
    pthread_t thread;
    int theirs, ours; /* ends of the control link */
    int result;
};

static void *subject_main(void *arg)
{
    struct subject *s = arg;
    s->result = runner_main(s->theirs, NULL);
    return NULL;
}

static void start_subject(struct subject *s)
{
    int fds[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    s->theirs = fds[0];
    s->ours = fds[1];
    assert_int_equal(pthread_create(&s->thread, NULL, subject_main, s), 0);
}

/* Sends these bytes and expects FAILED with this code, then the end. */
static void expect_failure(const void *data, size_t n, int code)
{
    struct subject s;
    struct buf in;
    struct message m;
    struct message_failed failed;
    ssize_t got;
    start_subject(&s);
    buf_init(&in, 1u << 20);
    assert_int_equal(send(s.ours, data, n, MSG_NOSIGNAL), n);
    do {
        assert_int_equal(buf_reserve(&in, 4096), 0);
        got = recv(s.ours, in.data + in.len, 4096, 0);
        assert_true(got >= 0);
        in.len += (size_t)got;
    } while (got > 0);
    assert_int_equal(message_next(in.data, in.len, &m, NULL), in.len);
    assert_int_equal(m.type, MESSAGE_FAILED);
    assert_int_equal(message_decode_failed(&m, &failed, NULL), 0);
    assert_int_equal(failed.code, code);
    pthread_join(s.thread, NULL);
    assert_int_equal(s.result, code);
    close(s.ours);
    buf_done(&in);
}

static void nonsense_ends_a_runner(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 65536);
    expect_failure("GET / HTTP/1.1\r\n\r\n", 18, E_PROTOCOL);
    message_encode_cancel(&b, 7); /* before LOAD */
    expect_failure(b.data, b.len, E_PROTOCOL);
    buf_reset(&b);
    message_encode_ready(&b, &(struct message_ready){.pid = 1}); /* the wrong way */
    expect_failure(b.data, b.len, E_PROTOCOL);

    static struct message_load load = {.cpu = -1,
                                       .host = "127.0.0.1",
                                       .model_path = "/nonexistent/model.gguf",
                                       .split = {.n_stages = 1,
                                                 .n_ranks = 1,
                                                 .stage = {{.layers = {0, 4}, .n_ranks = 1}},
                                                 .weight = {1}}};
    buf_reset(&b);
    message_encode_load(&b, &load);
    expect_failure(b.data, b.len, E_NOTFOUND);
    buf_done(&b);
}

static void an_early_end_is_in_order(void **state)
{
    (void)state;
    struct subject s;
    struct buf b;
    buf_init(&b, 1024);
    start_subject(&s);
    close(s.ours);
    pthread_join(s.thread, NULL);
    assert_int_equal(s.result, 0);

    start_subject(&s);
    message_encode_ping(&b, 77); /* answered although nothing is loaded */
    assert_int_equal(send(s.ours, b.data, b.len, MSG_NOSIGNAL), b.len);
    struct message m;
    struct message_pong pong;
    uint8_t bytes[1024];
    ssize_t n = recv(s.ours, bytes, sizeof(bytes), 0);
    assert_true(n > 0);
    assert_int_equal(message_next(bytes, (size_t)n, &m, NULL), n);
    assert_int_equal(message_decode_pong(&m, &pong, NULL), 0);
    assert_int_equal(pong.nonce, 77);
    assert_true(pong.memory_peak_bytes > 0);
    buf_reset(&b);
    message_encode_stop(&b);
    assert_int_equal(send(s.ours, b.data, b.len, MSG_NOSIGNAL), b.len);
    pthread_join(s.thread, NULL);
    assert_int_equal(s.result, 0);
    close(s.ours);
    buf_done(&b);
}

/* ---- many requests ---- */

enum { N_REQUESTS = 9, N_MAX = 6, CANCELLED = 5, REFUSED = 7 };

static void submit(struct local_set *set, uint64_t request)
{
    static struct message_submit m;
    int32_t tokens[600];
    memset(&m, 0, sizeof(m));
    m.request = request;
    m.n_max = request == CANCELLED ? 200 : N_MAX;
    m.n_tokens = request == REFUSED ? 600 : 10 + (uint32_t)request;
    for (uint32_t i = 0; i < m.n_tokens; i++)
        tokens[i] = (int32_t)(rng_u64(request, i, 5) % 1000);
    m.tokens = tokens;
    sampling_init(&m.sampling);
    assert_int_equal(local_set_submit(set, &m, NULL), 0);
}

/* More requests than slots, over two ranks: each ends exactly once, in the way it should. */
static void every_request_ends_once(void **state)
{
    const char *split = *state;
    char path[4096];
    const char *folder = getenv("SHOAL_TEST_MODELS");
    snprintf(path, sizeof(path), "%s/smollm2.gguf", folder != NULL ? folder : "build/models");
    if (access(path, R_OK) != 0)
        skip();
    struct local_set_options o = {
        .model_path = path,
        .n_ranks = 2,
        .split = split,
        .engine = {.n_threads = 1, .n_slots = 3, .n_ctx = 512, .n_batch = 64}};
    struct local_set *set;
    struct error err = {0};
    if (local_set_start(&o, &set, &err) != 0)
        fail_msg("%s", err.message);
    for (uint64_t i = 1; i <= N_REQUESTS; i++)
        submit(set, i);
    uint32_t n_done = 0, n_tokens[N_REQUESTS + 1] = {0};
    bool is_done[N_REQUESTS + 1] = {false};
    while (n_done < N_REQUESTS) {
        struct message m;
        if (local_set_next(set, 60000, &m, &err) != 0)
            fail_msg("%s", err.message);
        if (m.type == MESSAGE_TOKENS) {
            struct message_tokens t;
            assert_int_equal(message_decode_tokens(&m, &t, NULL, NULL), 0);
            assert_in_range(t.request, 1, N_REQUESTS);
            assert_false(is_done[t.request]);
            n_tokens[t.request] += t.n_tokens;
            if (t.request == CANCELLED && n_tokens[CANCELLED] == 2)
                assert_int_equal(local_set_cancel(set, CANCELLED, NULL), 0);
        } else if (m.type == MESSAGE_DONE) {
            struct message_done d;
            assert_int_equal(message_decode_done(&m, &d, NULL), 0);
            assert_in_range(d.request, 1, N_REQUESTS);
            assert_false(is_done[d.request]);
            is_done[d.request] = true;
            assert_int_equal(d.n_generated, n_tokens[d.request]);
            enum finish_reason reason = d.request == CANCELLED ? FINISH_CANCELLED
                                        : d.request == REFUSED ? FINISH_ERROR
                                                               : FINISH_LENGTH;
            assert_int_equal(d.reason, reason);
            if (reason == FINISH_LENGTH)
                assert_int_equal(d.n_generated, N_MAX);
            n_done++;
        }
    }
    struct message_pong pong;
    for (uint32_t rank = 0; rank < 2; rank++) {
        assert_int_equal(local_set_ping(set, rank, &pong, &err), 0);
        assert_true(pong.timing.n_steps > 0);
        assert_int_equal(pong.n_running + pong.n_queued, 0);
    }
    local_set_stop(set);
}

int main(void)
{
    char pipeline[] = "pipeline", tensor[] = "tensor";
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(nonsense_ends_a_runner),
        cmocka_unit_test(an_early_end_is_in_order),
        cmocka_unit_test_prestate(every_request_ends_once, pipeline),
        cmocka_unit_test_prestate(every_request_ends_once, tensor),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
