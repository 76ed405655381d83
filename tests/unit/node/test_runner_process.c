/* Runner processes: this program plays the runner itself, in the way that the environment variable
 * FAKE_RUNNER says. */
#include "node/runner_process.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the runner's side ---- */

static void say(struct buf *b)
{
    const char *p = b->data;
    size_t left = b->len;
    while (left > 0) {
        ssize_t n = write(3, p, left);
        if (n <= 0)
            _exit(9);
        p += n;
        left -= (size_t)n;
    }
    buf_reset(b);
}

/* Reads until a whole frame of this type has come; 0 at the end of the link. */
static bool hear(enum message_type type)
{
    static char data[1 << 16];
    static size_t len;
    struct message m;
    for (;;) {
        int64_t n = message_next(data, len, &m, NULL);
        if (n > 0) {
            enum message_type got = m.type;
            len -= (size_t)n;
            memmove(data, data + n, len);
            if (got == type)
                return true;
            continue;
        }
        ssize_t got = read(3, data + len, sizeof(data) - len);
        if (got <= 0)
            return false;
        len += (size_t)got;
    }
}

static int play_runner(const char *how)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    if (strcmp(how, "exit") == 0)
        return 7;
    if (strcmp(how, "abort") == 0)
        abort();
    if (strcmp(how, "failed") == 0) {
        struct message_failed m = {.code = E_FORMAT, .message = "the file is broken"};
        message_encode_failed(&b, &m);
        say(&b);
        buf_done(&b);
        return 1;
    }
    if (strcmp(how, "garbage") == 0) {
        buf_append_str(&b, "this is not a frame at all");
        say(&b);
        pause();
    }
    if (strcmp(how, "stubborn") == 0) {
        message_encode_listening(&b, 1);
        say(&b);
        for (;;)
            pause();
    }
    if (strcmp(how, "free") == 0) { /* fails, is released, and goes on with another task */
        struct message_failed m = {.code = E_PEERLOST, .message = "rank 1 is gone"};
        message_encode_failed(&b, &m);
        say(&b);
        hear(MESSAGE_RELEASE);
        message_encode_listening(&b, 1); /* of the old task: nobody wants to hear it */
        message_encode_released(&b, 77);
        say(&b);
        hear(MESSAGE_LOAD);
    }
    message_encode_listening(&b, 4711);
    say(&b);
    buf_done(&b);
    hear(MESSAGE_STOP);
    return 0;
}

/* ---- the node's side ---- */

struct seen {
    uv_loop_t loop;
    struct runner_process *process;
    int n_frames, n_ended;
    uint16_t port;
    char reason[ERROR_MESSAGE_BYTES];
    uint64_t released_bytes;
    void (*on_frame)(struct seen *s);
};

static char program[4096];

static void on_frame(void *arg, const struct message *m, const void *frame, size_t n)
{
    struct seen *s = arg;
    struct message again;
    assert_int_equal(message_next(frame, n, &again, NULL), n);
    s->n_frames++;
    if (m->type == MESSAGE_RELEASED)
        assert_int_equal(message_decode_u64(m, &s->released_bytes, NULL), 0);
    if (m->type == MESSAGE_LISTENING)
        assert_int_equal(message_decode_listening(m, &s->port, NULL), 0);
    if (s->on_frame != NULL)
        s->on_frame(s);
}

static void on_ended(void *arg, const char *reason)
{
    struct seen *s = arg;
    s->n_ended++;
    snprintf(s->reason, sizeof(s->reason), "%s", reason);
}

static void start(struct seen *s, const char *how, void (*frame_seen)(struct seen *))
{
    struct error err = {0};
    struct runner_events events = {.arg = s, .frame = on_frame, .ended = on_ended};
    memset(s, 0, sizeof(*s));
    s->on_frame = frame_seen;
    setenv("FAKE_RUNNER", how, 1);
    assert_int_equal(uv_loop_init(&s->loop), 0);
    if (runner_process_start(&s->loop, program, &events, &s->process, &err) != 0)
        fail_msg("%s", err.message);
}

/* Runs until nothing is left to wait for: every handle was closed, every object freed. */
static void finish(struct seen *s)
{
    uv_run(&s->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&s->loop), 0);
    assert_int_equal(s->n_ended, 1);
}

static void stop(struct seen *s)
{
    runner_process_stop(s->process);
}

static void kill_it(struct seen *s)
{
    kill((pid_t)runner_process_pid(s->process), SIGKILL);
}

static void test_life(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "good", stop);
    finish(&s);
    assert_int_equal(s.port, 4711);
    assert_non_null(strstr(s.reason, "code 0"));
}

static void test_exit_is_seen(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "exit", NULL);
    finish(&s);
    assert_non_null(strstr(s.reason, "code 7"));
}

static void test_signals_are_named(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "good", kill_it);
    finish(&s);
    assert_non_null(strstr(s.reason, "signal 9"));
    start(&s, "abort", NULL);
    finish(&s);
    assert_non_null(strstr(s.reason, "signal 6"));
}

/* What it said last is read although it has already exited, and says more than the exit code. */
static void test_reported_cause_wins(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "failed", NULL);
    finish(&s);
    assert_int_equal(s.n_frames, 1);
    assert_string_equal(s.reason, "the file is broken");
}

static void test_garbage_ends_it(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "garbage", NULL);
    finish(&s);
    assert_int_equal(s.n_frames, 0);
    assert_null(strstr(s.reason, "signal"));
}

static void test_one_that_does_not_stop_is_killed(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "stubborn", stop);
    uint64_t start_ms = uv_hrtime() / 1000000;
    finish(&s);
    uint64_t took_ms = uv_hrtime() / 1000000 - start_ms;
    assert_true(took_ms >= RUNNER_KILL_MS - 100 && took_ms < RUNNER_KILL_MS + 5000);
    assert_non_null(strstr(s.reason, "killed"));
}

static void next_task(struct seen *s)
{
    static struct message_load load;
    struct buf b;
    if (s->port != 0) {
        runner_process_stop(s->process);
    } else if (s->released_bytes != 0) {
        buf_init(&b, 1 << 20);
        message_encode_load(&b, &load);
        runner_process_send(s->process, &b);
    } else {
        runner_process_release(s->process);
    }
}

static struct seen other; /* has the runner after the first one */

static void give_away(struct seen *s)
{
    if (s->released_bytes != 0) {
        struct runner_events events = {.arg = &other, .frame = on_frame, .ended = on_ended};
        runner_process_hand_over(s->process, &events);
    }
    next_task(s);
}

static void stop_other(struct seen *s)
{
    runner_process_stop(s->process);
}

/* What it failed of earlier is not why it ends. */
static void test_goes_on_with_another_task(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "free", next_task);
    finish(&s);
    assert_int_equal(s.released_bytes, 77);
    assert_int_equal(s.n_frames, 3); /* FAILED, RELEASED, LISTENING */
    assert_int_equal(s.port, 4711);
    assert_non_null(strstr(s.reason, "code 0"));

    other = (struct seen){.on_frame = stop_other};
    start(&s, "free", give_away);
    other.process = s.process;
    uv_run(&s.loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&s.loop), 0);
    assert_int_equal(s.n_ended, 0);
    assert_int_equal(s.n_frames, 2);
    assert_int_equal(other.n_frames, 1);
    assert_int_equal(other.n_ended, 1);
}

static void release_it(struct seen *s)
{
    runner_process_release(s->process);
}

static void test_one_that_is_not_released_is_killed(void **state)
{
    (void)state;
    struct seen s;
    start(&s, "stubborn", release_it);
    uint64_t start_ms = uv_hrtime() / 1000000;
    finish(&s);
    uint64_t took_ms = uv_hrtime() / 1000000 - start_ms;
    assert_true(took_ms >= RUNNER_RELEASE_MS - 100 && took_ms < RUNNER_RELEASE_MS + 5000);
    assert_non_null(strstr(s.reason, "killed"));
}

static void test_program_that_is_not_there(void **state)
{
    (void)state;
    struct error err = {0};
    uv_loop_t loop;
    struct runner_process *p = NULL;
    struct runner_events events = {.frame = on_frame, .ended = on_ended};
    uv_loop_init(&loop);
    assert_int_equal(runner_process_start(&loop, "/nowhere/shoal", &events, &p, &err), UV_ENOENT);
    assert_non_null(strstr(err.message, "/nowhere/shoal"));
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_life),
        cmocka_unit_test(test_exit_is_seen),
        cmocka_unit_test(test_signals_are_named),
        cmocka_unit_test(test_reported_cause_wins),
        cmocka_unit_test(test_garbage_ends_it),
        cmocka_unit_test(test_one_that_does_not_stop_is_killed),
        cmocka_unit_test(test_goes_on_with_another_task),
        cmocka_unit_test(test_one_that_is_not_released_is_killed),
        cmocka_unit_test(test_program_that_is_not_there),
    };
    const char *how = getenv("FAKE_RUNNER");
    if (argc > 1 && strcmp(argv[1], "runner") == 0)
        return play_runner(how != NULL ? how : "good");
    ssize_t n = readlink("/proc/self/exe", program, sizeof(program) - 1);
    if (n <= 0)
        return 77;
    signal(SIGPIPE, SIG_IGN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
