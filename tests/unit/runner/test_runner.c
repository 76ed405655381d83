/* A runner that changes its task: what it was doing ends, its weights stay, and what it computes
 * afterwards is what a new one computes. */
#include "base/clock.h"
#include "engine/tiny_model.h"
#include "runner/protocol.h"
#include "runner/runner.h"

#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/socket.h>

#include <cmocka.h>

enum { N_MAX = 20, WAIT_MS = 20000 };

static const struct tiny_shape shape = {.n_layer = 4,
                                        .n_embd = 64,
                                        .n_ff = 160,
                                        .n_head = 4,
                                        .n_head_kv = 2,
                                        .head_dim = 16,
                                        .n_vocab = 200};

struct subject {
    pthread_t thread;
    int theirs, ours; /* ends of the control link */
    int result;
    struct buf in;
    size_t frame_bytes; /* of the frame that was read last */
};

static void *subject_main(void *arg)
{
    struct subject *s = arg;
    s->result = runner_main(s->theirs, NULL);
    return NULL;
}

static void start(struct subject *s)
{
    int fds[2];
    *s = (struct subject){0};
    buf_init(&s->in, 1u << 20);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
    s->theirs = fds[0];
    s->ours = fds[1];
    assert_int_equal(pthread_create(&s->thread, NULL, subject_main, s), 0);
}

static void say(struct subject *s, struct buf *b)
{
    assert_int_equal(b->error, 0);
    assert_int_equal(send(s->ours, b->data, b->len, MSG_NOSIGNAL), b->len);
    buf_done(b);
}

static struct buf frame(void)
{
    struct buf b;
    buf_init(&b, 1u << 20);
    return b;
}

/* The next frame. */
static struct message hear(struct subject *s)
{
    struct message m;
    buf_consume(&s->in, s->frame_bytes);
    s->frame_bytes = 0;
    for (;;) {
        int64_t n = message_next(s->in.data, s->in.len, &m, NULL);
        assert_true(n >= 0);
        if (n > 0) {
            s->frame_bytes = (size_t)n;
            return m;
        }
        struct pollfd fd = {.fd = s->ours, .events = POLLIN};
        assert_int_equal(poll(&fd, 1, WAIT_MS), 1);
        assert_int_equal(buf_reserve(&s->in, 65536), 0);
        ssize_t got = recv(s->ours, s->in.data + s->in.len, 65536, 0);
        assert_true(got > 0);
        s->in.len += (size_t)got;
    }
}

/* Frames up to one of this type; FAILED is none of those that may come before. */
static struct message hear_type(struct subject *s, enum message_type type)
{
    for (;;) {
        struct message m = hear(s);
        struct message_failed failed;
        if (m.type == type)
            return m;
        if (m.type == MESSAGE_FAILED && message_decode_failed(&m, &failed, NULL) == 0)
            fail_msg("%s", failed.message);
    }
}

static struct message_load make_load(const char *path)
{
    struct message_load load = {.cpu = -1,
                                .spin_us = UINT32_MAX,
                                .engine = {.n_threads = 1, .n_ctx = 512, .n_slots = 1},
                                .split = {.n_stages = 1,
                                          .n_ranks = 1,
                                          .stage = {{.layers = {0, 4}, .n_ranks = 1}},
                                          .weight = {1}}};
    snprintf(load.host, sizeof(load.host), "127.0.0.1");
    snprintf(load.model_path, sizeof(load.model_path), "%s", path);
    return load;
}

static void say_load(struct subject *s, const struct message_load *load)
{
    struct buf b = frame();
    message_encode_load(&b, load);
    say(s, &b);
    hear_type(s, MESSAGE_LISTENING);
}

static struct message_ready connect_alone(struct subject *s)
{
    struct buf b = frame();
    struct message_connect connect = {.n_peers = 1};
    struct message_ready ready;
    message_encode_connect(&b, &connect);
    say(s, &b);
    struct message m = hear_type(s, MESSAGE_READY);
    assert_int_equal(message_decode_ready(&m, &ready, NULL), 0);
    return ready;
}

static struct message_ready load_alone(struct subject *s, const char *path)
{
    struct message_load load = make_load(path);
    say_load(s, &load);
    return connect_alone(s);
}

static void ask(struct subject *s, uint64_t request, uint32_t n_max)
{
    static const int32_t prompt[] = {3, 1, 4, 1, 5, 9, 2, 6};
    static struct message_submit m;
    struct buf b = frame();
    m = (struct message_submit){
        .request = request, .n_max = n_max, .n_tokens = 8, .tokens = prompt};
    sampling_init(&m.sampling);
    message_encode_submit(&b, &m);
    say(s, &b);
}

static void answer(struct subject *s, uint64_t request, int32_t tokens[N_MAX])
{
    uint32_t n = 0;
    ask(s, request, N_MAX);
    for (;;) {
        struct message m = hear(s);
        struct message_tokens t;
        struct message_done done;
        if (m.type == MESSAGE_DONE) {
            assert_int_equal(message_decode_done(&m, &done, NULL), 0);
            assert_int_equal(done.request, request);
            assert_int_equal(done.reason, FINISH_LENGTH);
            assert_int_equal(n, N_MAX);
            return;
        }
        if (m.type != MESSAGE_TOKENS)
            continue;
        assert_int_equal(message_decode_tokens(&m, &t, NULL, NULL), 0);
        assert_int_equal(t.request, request);
        assert_true(n + t.n_tokens <= N_MAX);
        memcpy(tokens + n, t.tokens, t.n_tokens * sizeof(int32_t));
        n += t.n_tokens;
    }
}

static void say_release(struct subject *s)
{
    struct buf b = frame();
    message_encode_release(&b);
    say(s, &b);
}

static uint64_t release(struct subject *s)
{
    uint64_t bytes;
    struct message m;
    say_release(s);
    do /* it may have failed, for want of a rank that was released earlier */
        m = hear(s);
    while (m.type != MESSAGE_RELEASED);
    assert_int_equal(message_decode_u64(&m, &bytes, NULL), 0);
    return bytes;
}

static void stop(struct subject *s, int result)
{
    struct buf b = frame();
    message_encode_stop(&b);
    say(s, &b);
    pthread_join(s->thread, NULL);
    assert_int_equal(s->result, result);
    close(s->ours);
    buf_done(&s->in);
}

static void weights_stay(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct subject s;
    struct message_ready first, second;
    int32_t before[N_MAX], after[N_MAX];
    tiny_model_init(&tiny, &shape);
    start(&s);
    first = load_alone(&s, tiny.path);
    assert_int_equal(first.info.weight_bytes_kept, 0);
    answer(&s, 1, before);
    uint64_t held = first.info.weight_bytes - first.info.weight_bytes_mapped;
    assert_int_equal(release(&s), held); /* while it is idle */

    second = load_alone(&s, tiny.path);
    assert_int_equal(second.info.weight_bytes_kept, first.info.weight_bytes);
    answer(&s, 1, after); /* the number is free again */
    assert_memory_equal(after, before, sizeof(before));

    ask(&s, 2, 400); /* in the middle of an answer: nothing of it comes later */
    hear_type(&s, MESSAGE_TOKENS);
    ask(&s, 3, 400);
    assert_int_equal(release(&s), held);
    assert_int_equal(release(&s), held); /* asked twice, answered twice */
    load_alone(&s, tiny.path);
    answer(&s, 4, after);
    assert_memory_equal(after, before, sizeof(before));
    assert_int_equal(release(&s), held);
    stop(&s, 0);
    tiny_model_done(&tiny);
}

/* A head with a draft model: its weights stay, too, and are given up when it is not wanted any
 * more. One that is not there is no fault. */
static void a_draft_model_stays(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct subject s;
    struct message_ready ready;
    int32_t before[N_MAX], after[N_MAX];
    tiny_model_init(&tiny, &shape);
    start(&s);
    uint64_t alone = load_alone(&s, tiny.path).info.weight_bytes;
    answer(&s, 1, before);
    uint64_t held = release(&s);

    struct message_load load = make_load(tiny.path);
    load.n_draft = 4;
    snprintf(load.draft_path, sizeof(load.draft_path), "%s", tiny.path);
    say_load(&s, &load);
    ready = connect_alone(&s);
    assert_int_equal(ready.info.weight_bytes, 2 * alone);
    assert_int_equal(ready.info.weight_bytes_kept, alone);
    answer(&s, 1, after);
    assert_memory_equal(after, before, sizeof(before));
    assert_int_equal(release(&s), 2 * held);
    say_load(&s, &load);
    ready = connect_alone(&s);
    assert_int_equal(ready.info.weight_bytes_kept, 2 * alone);
    assert_int_equal(release(&s), 2 * held);

    snprintf(load.draft_path, sizeof(load.draft_path), "/nonexistent/small.gguf");
    say_load(&s, &load);
    assert_int_equal(connect_alone(&s).info.weight_bytes, alone);
    answer(&s, 1, after);
    assert_memory_equal(after, before, sizeof(before));
    assert_int_equal(release(&s), held);
    stop(&s, 0);
    tiny_model_done(&tiny);
}

static void release_before_ready(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct subject s;
    tiny_model_init(&tiny, &shape);
    start(&s);
    assert_int_equal(release(&s), 0); /* nothing was loaded */
    struct message_load load = make_load(tiny.path);
    say_load(&s, &load);
    assert_int_equal(release(&s), 0); /* it waited for CONNECT */
    load_alone(&s, tiny.path);
    assert_true(release(&s) > 0);
    stop(&s, 0);
    tiny_model_done(&tiny);
}

static void connect_both(struct subject s[2], const char *path)
{
    struct message_load load = make_load(path);
    struct message_connect connect = {.n_peers = 2};
    load.split = (struct split){.n_stages = 2,
                                .n_ranks = 2,
                                .stage = {{.layers = {0, 2}, .n_ranks = 1},
                                          {.layers = {2, 4}, .rank_first = 1, .n_ranks = 1}},
                                .weight = {1, 1}};
    for (uint32_t i = 0; i < 2; i++) {
        struct buf b = frame();
        load.rank = i;
        message_encode_load(&b, &load);
        say(&s[i], &b);
        struct message m = hear_type(&s[i], MESSAGE_LISTENING);
        assert_int_equal(message_decode_listening(&m, &connect.peer[i].port, NULL), 0);
        snprintf(connect.peer[i].host, sizeof(connect.peer[i].host), "127.0.0.1");
    }
    for (uint32_t i = 0; i < 2; i++) {
        struct buf b = frame();
        message_encode_connect(&b, &connect);
        say(&s[i], &b);
    }
    for (uint32_t i = 0; i < 2; i++)
        hear_type(&s[i], MESSAGE_READY);
}

/* The other rank is lost: no fault of this one, which says so and keeps what it has. A fault of its
 * own is its end. */
static void others_faults_are_survived(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct subject s[2];
    struct message_failed failed;
    struct message m;
    tiny_model_init(&tiny, &shape);
    start(&s[0]);
    start(&s[1]);
    connect_both(s, tiny.path);
    ask(&s[0], 1, 400);
    hear_type(&s[0], MESSAGE_TOKENS);
    close(s[0].ours);
    pthread_join(s[0].thread, NULL);
    buf_done(&s[0].in);
    do
        m = hear(&s[1]);
    while (m.type != MESSAGE_FAILED);
    assert_int_equal(message_decode_failed(&m, &failed, NULL), 0);
    assert_int_equal(failed.code, E_PEERLOST);
    assert_true(release(&s[1]) > 0);
    struct message_ready ready = load_alone(&s[1], tiny.path);
    assert_true(ready.info.weight_bytes_kept > ready.info.weight_bytes / 3);
    assert_true(ready.info.weight_bytes_kept < ready.info.weight_bytes);

    release(&s[1]);
    struct message_load bad = make_load("/nonexistent/model.gguf");
    struct buf b = frame();
    message_encode_load(&b, &bad);
    say(&s[1], &b);
    do
        m = hear(&s[1]);
    while (m.type != MESSAGE_FAILED);
    pthread_join(s[1].thread, NULL);
    assert_int_equal(s[1].result, E_NOTFOUND);
    close(s[1].ours);
    buf_done(&s[1].in);
    tiny_model_done(&tiny);
}

/* Ranks of one instance part, and meet again as often as they are told to. */
static void ranks_part_and_meet(void **state)
{
    (void)state;
    struct tiny_model tiny;
    struct subject s[2];
    tiny_model_init(&tiny, &shape);
    start(&s[0]);
    start(&s[1]);
    for (int i = 0; i < 5; i++) {
        connect_both(s, tiny.path);
        release(&s[0]);
        release(&s[1]);
    }
    stop(&s[0], 0);
    stop(&s[1], 0);
    tiny_model_done(&tiny);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_stay),         cmocka_unit_test(a_draft_model_stays),
        cmocka_unit_test(release_before_ready), cmocka_unit_test(others_faults_are_survived),
        cmocka_unit_test(ranks_part_and_meet),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
