/* Requests and what becomes of them, told as stories: a model that answers with the position of
 * each token (so that a lost, doubled or changed token shows), and a trace of everything that goes
 * out. The source is included with its allocator replaced. */
#include "failing_alloc.h"

#include "cluster/router.c"
#undef malloc
#undef calloc
#undef realloc

#include "base/buf.h"
#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

static const struct node_id node_a = {{0xa}}, node_b = {{0xb}};
static const struct node_id instance_id = {{1}};

struct client {
    uint64_t request;
    int n_done;
    uint32_t n_tokens, n_prompt;
    struct router_done done;
    void (*on_tokens)(struct client *c); /* what it does when it gets some */
    void (*on_done)(struct client *c);
};

static struct {
    struct router *router;
    struct buf trace;
    bool has_place;
    struct router_place place;
    int send_rc;
    void (*on_send)(const struct router_attempt *a);
    void (*on_cancel)(uint64_t attempt);
    struct router_attempt last; /* tokens, user: not to be used */
    int32_t last_tokens[4096];
    uint32_t n_sent;
    uint64_t now_ms;
} w;

static const struct router_done done_stop = {.reason = ROUTER_STOP},
                                done_length = {.reason = ROUTER_LENGTH};

static bool find_place(void *self, const char *model_id, struct router_place *ret_place)
{
    assert_ptr_equal(self, &w);
    assert_string_equal(model_id, "m");
    if (w.has_place)
        *ret_place = w.place;
    return w.has_place;
}

static bool is_there(void *self, const struct router_place *p)
{
    assert_ptr_equal(self, &w);
    return w.has_place && p->epoch == w.place.epoch;
}

static int send_attempt(void *self, const struct router_attempt *a)
{
    assert_ptr_equal(self, &w);
    assert_string_equal(a->user, "user");
    assert_true(a->n_max > 0);
    w.last = *a;
    w.n_sent++;
    memcpy(w.last_tokens, a->tokens, a->n_tokens * sizeof(int32_t));
    for (uint32_t i = 0; i < a->n_tokens; i++)
        assert_int_equal(a->tokens[i], (int32_t)i);
    buf_printf(&w.trace, "send %x/%llu %u+%u%s, ", a->place.leader.bytes[0],
               (unsigned long long)a->place.epoch, a->n_tokens, a->n_max,
               w.send_rc != 0 ? " fails" : "");
    if (w.on_send != NULL)
        w.on_send(a);
    return w.send_rc;
}

static void send_cancel(void *self, const struct router_place *place, uint64_t attempt)
{
    assert_ptr_equal(self, &w);
    buf_printf(&w.trace, "cancel %x/%llu, ", place->leader.bytes[0],
               (unsigned long long)place->epoch);
    if (w.on_cancel != NULL)
        w.on_cancel(attempt);
}

static void on_tokens(void *self, void *arg, const int32_t *tokens, uint32_t n)
{
    struct client *c = arg;
    assert_ptr_equal(self, &w);
    assert_int_equal(c->n_done, 0);
    assert_true(n > 0);
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(tokens[i], (int32_t)(c->n_prompt + c->n_tokens++));
    buf_printf(&w.trace, "+%u, ", n);
    if (c->on_tokens != NULL)
        c->on_tokens(c);
}

static void on_progress(void *self, void *arg, uint32_t n_done, uint32_t n_prompt)
{
    assert_ptr_equal(self, &w);
    assert_int_equal(((struct client *)arg)->n_done, 0);
    buf_printf(&w.trace, "%u/%u, ", n_done, n_prompt);
}

static void on_done(void *self, void *arg, const struct router_done *done)
{
    static const char *const names[] = {"stop", "length", "cancelled", "error"};
    struct client *c = arg;
    assert_ptr_equal(self, &w);
    assert_int_equal(c->n_done++, 0);
    assert_int_equal(done->n_generated, c->n_tokens);
    assert_int_equal(done->n_prompt, c->n_prompt);
    assert_int_equal(done->reason == ROUTER_ERROR, done->error.code != 0);
    c->done = *done;
    buf_printf(&w.trace, "%s%s%s %u, ", names[done->reason], done->error.code != 0 ? " " : "",
               done->error.code != 0 ? error_name(done->error.code) : "", done->n_generated);
    if (c->on_done != NULL)
        c->on_done(c);
}

static const struct router_callbacks callbacks = {
    .self = &w,
    .find_place = find_place,
    .send = send_attempt,
    .send_cancel = send_cancel,
    .tokens = on_tokens,
    .progress = on_progress,
    .done = on_done,
};

static int begin(void **state)
{
    (void)state;
    memset(&w, 0, sizeof(w));
    allocations_left = -1;
    buf_init(&w.trace, 1 << 20);
    w.has_place = true;
    w.place =
        (struct router_place){.instance = instance_id, .leader = node_a, .epoch = 1, .n_ctx = 4096};
    w.now_ms = 1000000;
    return router_new(&callbacks, &w.router, NULL);
}

static int end(void **state)
{
    (void)state;
    router_free(w.router);
    buf_done(&w.trace);
    return 0;
}

static int32_t numbers[4096];

static int submit(struct client *c, uint32_t n_prompt, uint32_t n_max)
{
    struct router_request q = {.model_id = "m",
                               .tokens = numbers,
                               .n_tokens = n_prompt,
                               .n_max = n_max,
                               .user = "user",
                               .user_len = 5};
    struct error err = {0};
    c->n_prompt = n_prompt;
    int rc = router_submit(w.router, &q, c, w.now_ms, &c->request, &err);
    assert_int_equal(rc, err.code);
    return rc;
}

/* The attempt that was sent last gives its tokens from n_before on, as its prompt demands. */
static void give(uint32_t n_before, uint32_t n)
{
    int32_t tokens[4096];
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(w.last.n_tokens + n_before + i);
    router_on_tokens(w.router, w.last.attempt, n_before, tokens, n, w.now_ms);
}

static void finish(const struct router_done *from, uint32_t n_generated)
{
    struct router_done done = *from;
    done.n_generated = n_generated;
    router_on_done(w.router, w.last.attempt, &done, w.now_ms);
}

static void finish_error(int code)
{
    struct router_done done = {.reason = ROUTER_ERROR};
    error_set(&done.error, code, "as the story says");
    router_on_done(w.router, w.last.attempt, &done, w.now_ms);
}

static void tick(uint32_t ms)
{
    for (uint32_t i = 0; i < ms; i += 50) {
        w.now_ms += 50;
        router_tick(w.router, w.now_ms);
    }
}

static void new_place(const struct node_id *leader)
{
    w.has_place = true;
    w.place.leader = *leader;
    w.place.epoch++;
}

static void expect_(const char *trace, const char *file, int line)
{
    if (strcmp(buf_str(&w.trace), trace) != 0)
        print_error("trace: %s\nnot:   %s\n", buf_str(&w.trace), trace);
    _assert_true(strcmp(buf_str(&w.trace), trace) == 0, "trace", file, line);
    buf_reset(&w.trace);
}
#define expect(trace) expect_(trace, __FILE__, __LINE__)

static void expect_none_left(void)
{
    uint32_t sent, parked;
    router_count(w.router, &sent, &parked);
    assert_int_equal(sent, 0);
    assert_int_equal(parked, 0);
}

/* ---- the undisturbed life ---- */

static void test_undisturbed(void **state)
{
    struct client c = {0};
    (void)state;
    assert_int_equal(submit(&c, 10, 5), 0);
    router_on_progress(w.router, w.last.attempt, 8, 10);
    give(0, 1);
    give(1, 3);
    struct router_done d = {.reason = ROUTER_STOP,
                            .n_prompt = 10,
                            .n_cached = 7,
                            .n_generated = 4,
                            .queue_ns = 1,
                            .prefill_ns = 2,
                            .decode_ns = 3};
    router_on_done(w.router, w.last.attempt, &d, w.now_ms);
    expect("send a/1 10+5, 8/10, +1, +3, stop 4, ");
    assert_int_equal(c.done.n_cached, 7);
    assert_int_equal(c.done.n_repairs, 0);
    assert_int_equal(c.done.queue_ns, 1);
    assert_int_equal(c.done.prefill_ns, 2);
    assert_int_equal(c.done.decode_ns, 3);
    router_on_done(w.router, w.last.attempt, &d, w.now_ms);
    give(4, 1);
    router_on_progress(w.router, w.last.attempt, 10, 10);
    router_cancel(w.router, c.request);
    expect("");
    expect_none_left();
}

static void test_refusals(void **state)
{
    static struct client c[ROUTER_REQUESTS_MAX];
    struct client late = {0};
    (void)state;
    w.has_place = false;
    assert_int_equal(submit(&late, 3, 5), E_UNAVAILABLE);
    w.has_place = true;
    assert_int_equal(submit(&late, 0, 5), E_INVALID);
    assert_int_equal(submit(&late, 3, 0), E_INVALID);
    for (int i = 0; i < ROUTER_REQUESTS_MAX; i++) {
        c[i] = (struct client){0};
        assert_int_equal(submit(&c[i], 3, 5), 0);
    }
    assert_int_equal(submit(&late, 3, 5), E_BUSY);
    finish(&done_stop, 0);
    assert_int_equal(submit(&late, 3, 5), 0);
    router_end_all(w.router, E_UNAVAILABLE, "bye");
    for (int i = 0; i < ROUTER_REQUESTS_MAX; i++)
        assert_int_equal(c[i].n_done, 1);
    assert_int_equal(late.n_done, 1);
    assert_string_equal(late.done.error.message, "bye");
    expect_none_left();
}

/* ---- losses ---- */

static void test_duplicates_and_overlaps(void **state)
{
    struct client c = {0};
    (void)state;
    submit(&c, 2, 10);
    give(0, 3);
    give(0, 3);
    give(1, 1);
    give(1, 4);
    give(5, 0);
    give(5, 100); /* more than was asked for */
    give(105, 2);
    expect("send a/1 2+10, +3, +2, +5, cancel a/1, length 10, ");
    expect_none_left();
}

static void test_gap(void **state)
{
    struct client c = {0};
    (void)state;
    submit(&c, 2, 10);
    give(0, 3);
    uint64_t attempt = w.last.attempt;
    give(4, 1);
    expect("send a/1 2+10, +3, cancel a/1, send a/1 5+7, ");
    assert_true(attempt != w.last.attempt);
    router_on_done(w.router, attempt, &done_stop, w.now_ms); /* of the old attempt */
    give(0, 7);
    finish(&done_length, 7);
    expect("+7, length 10, ");
    assert_int_equal(c.done.n_repairs, 1);
}

static void test_missing_at_the_end(void **state)
{
    struct client c = {0};
    (void)state;
    submit(&c, 2, 10);
    give(0, 3);
    finish(&done_stop, 5);
    expect("send a/1 2+10, +3, send a/1 5+7, ");
    give(0, 2);
    finish(&done_stop, 2);
    expect("+2, stop 5, ");
}

/* The loss comes after every number of tokens that the first attempt can have delivered, and the
 * second time, too; by every kind of news. */
static void test_loss_at_every_point(void **state)
{
    (void)state;
    for (int kind = 0; kind < 5; kind++)
        for (uint32_t first = 0; first <= 4; first++)
            for (uint32_t second = 0; first + second <= 4; second++) {
                struct client c = {0};
                uint32_t n_given[2] = {first, second};
                end(NULL);
                begin(NULL);
                submit(&c, 7, 4);
                for (int k = 0; k < 2 && c.n_done == 0; k++) {
                    struct node_id here = w.place.leader;
                    give(0, n_given[k]);
                    if (kind == 0) {
                        w.has_place = false;
                        router_on_node_lost(w.router, &here, w.now_ms);
                    } else if (kind == 1) {
                        w.has_place = false;
                        router_on_places(w.router, is_there, w.now_ms);
                    } else if (kind == 2) {
                        finish_error(E_PEERLOST);
                    } else if (kind == 3) {
                        finish_error(E_UNAVAILABLE);
                    } else {
                        struct router_done d = {.reason = ROUTER_CANCELLED};
                        router_on_done(w.router, w.last.attempt, &d, w.now_ms);
                    }
                    tick(100); /* within the time that the old place is avoided */
                    assert_int_equal(w.n_sent, (uint32_t)k + 1);
                    new_place(k == 0 ? &node_b : &node_a);
                    router_on_places(w.router, is_there, w.now_ms);
                    router_on_node_lost(w.router, &here, w.now_ms);
                    assert_int_equal(w.n_sent, (uint32_t)k + 1 + (c.n_done == 0));
                }
                if (c.n_done == 0) {
                    give(0, 4 - first - second);
                    finish(&done_stop, 4 - first - second);
                    assert_int_equal(c.done.reason, ROUTER_STOP);
                    assert_int_equal(c.done.n_repairs, 2);
                } else { /* only the answer's end was lost */
                    assert_int_equal(c.done.reason, ROUTER_LENGTH);
                }
                assert_int_equal(c.n_done, 1);
                assert_int_equal(c.n_tokens, 4);
                expect_none_left();
            }
}

static void test_done_lost(void **state)
{
    struct client c = {0}, full = {0};
    (void)state;
    submit(&c, 2, 3);
    give(0, 3);
    router_on_node_lost(w.router, &node_b, w.now_ms); /* of another */
    router_on_node_lost(w.router, &node_a, w.now_ms);
    expect("send a/1 2+3, +3, length 3, ");
    /* the context was full */
    w.place.n_ctx = 5;
    submit(&full, 2, 30);
    give(0, 3);
    router_on_node_lost(w.router, &node_a, w.now_ms);
    expect("send a/1 2+30, +3, length 3, ");
}

static void test_usage_of_all_attempts(void **state)
{
    struct client c = {0};
    struct router_done lost = {.reason = ROUTER_ERROR,
                               .n_prompt = 100,
                               .n_cached = 64,
                               .n_generated = 2,
                               .queue_ns = 10,
                               .prefill_ns = 20,
                               .decode_ns = 30};
    struct router_done last = {.reason = ROUTER_STOP,
                               .n_prompt = 102,
                               .n_cached = 102,
                               .n_generated = 1,
                               .queue_ns = 1,
                               .prefill_ns = 2,
                               .decode_ns = 3};
    (void)state;
    lost.error.code = E_PEERLOST;
    submit(&c, 100, 8);
    give(0, 2);
    router_on_done(w.router, w.last.attempt, &lost, w.now_ms);
    new_place(&node_b);
    tick(50);
    give(0, 1);
    router_on_done(w.router, w.last.attempt, &last, w.now_ms);
    expect("send a/1 100+8, +2, send b/2 102+6, +1, stop 3, ");
    assert_int_equal(c.done.n_prompt, 100);
    assert_int_equal(c.done.n_cached, 64);
    assert_int_equal(c.done.n_repairs, 1);
    assert_int_equal(c.done.queue_ns, 11);
    assert_int_equal(c.done.prefill_ns, 22);
    assert_int_equal(c.done.decode_ns, 33);
}

/* ---- waiting ---- */

static void test_busy(void **state)
{
    struct client c = {0}, again = {0};
    (void)state;
    submit(&c, 2, 10);
    finish_error(E_BUSY);
    expect("send a/1 2+10, error E_BUSY 0, ");
    submit(&again, 2, 10);
    router_on_node_lost(w.router, &node_a, w.now_ms);
    finish_error(E_BUSY);
    expect("send a/1 2+10, send a/1 2+10, ");
    tick(ROUTER_RETRY_MS - 50);
    expect("");
    tick(50);
    expect("send a/1 2+10, ");
    finish_error(E_BUSY);
    new_place(&node_b); /* another need not wait */
    tick(50);
    expect("send b/2 2+10, ");
    give(0, 10);
    finish(&done_length, 10);
    expect("+10, length 10, ");
}

static void test_busy_for_too_long(void **state)
{
    struct client c = {0};
    (void)state;
    submit(&c, 2, 10);
    router_on_node_lost(w.router, &node_a, w.now_ms);
    finish_error(E_BUSY);
    uint64_t begin_ms = w.now_ms;
    while (c.n_done == 0) {
        uint32_t n_sent = w.n_sent;
        tick(50);
        if (w.n_sent > n_sent && c.n_done == 0)
            finish_error(E_BUSY);
        assert_true(w.now_ms - begin_ms <= ROUTER_PARKED_MS + 1000);
    }
    assert_int_equal(c.done.error.code, E_BUSY);
    assert_true(w.now_ms - begin_ms >= ROUTER_PARKED_MS);
}

static void test_parked_for_too_long(void **state)
{
    struct client c = {0};
    (void)state;
    submit(&c, 2, 10);
    give(0, 4);
    tick(2 * ROUTER_PARKED_MS); /* in the instance's queue: no reason to end */
    expect("send a/1 2+10, +4, ");
    w.has_place = false;
    router_on_node_lost(w.router, &node_a, w.now_ms);
    tick(ROUTER_PARKED_MS - 50);
    expect("");
    tick(50);
    expect("error E_UNAVAILABLE 4, ");
    assert_non_null(strstr(c.done.error.message, "after 4 tokens"));
}

/* An instance that takes the request and loses it, again and again, does not keep it for ever. */
static void test_flapping_instance(void **state)
{
    struct client c = {0};
    (void)state;
    submit(&c, 2, 10);
    for (int i = 0; i < 1000 && c.n_done == 0; i++) {
        finish_error(E_PEERLOST);
        tick(ROUTER_RETRY_MS);
    }
    assert_int_equal(c.n_done, 1);
    assert_int_equal(c.done.error.code, E_UNAVAILABLE);
    assert_true(w.n_sent >= 140 && w.n_sent <= 151);
}

static void test_send_fails(void **state)
{
    struct client c = {0};
    (void)state;
    w.send_rc = E_UNAVAILABLE;
    submit(&c, 2, 10);
    tick(100);
    expect("send a/1 2+10 fails, send a/1 2+10 fails, send a/1 2+10 fails, ");
    w.send_rc = 0;
    tick(50);
    tick(50);
    finish_error(E_BUSY); /* the first that left */
    expect("send a/1 2+10, error E_BUSY 0, ");
    w.send_rc = E_UNAVAILABLE;
    struct client late = {0};
    submit(&late, 2, 10);
    tick(ROUTER_PARKED_MS);
    assert_int_equal(late.done.error.code, E_UNAVAILABLE);
}

static void test_order_of_waiting(void **state)
{
    struct client c[3] = {0};
    (void)state;
    submit(&c[0], 1, 9);
    submit(&c[1], 2, 9);
    router_cancel(w.router, c[0].request);
    finish(&done_stop, 0); /* of the second: its place in the table is taken by the next */
    submit(&c[2], 3, 9);
    struct client last = {0};
    submit(&last, 4, 9);
    buf_reset(&w.trace);
    w.has_place = false;
    router_on_node_lost(w.router, &node_a, w.now_ms);
    new_place(&node_b);
    router_on_places(w.router, is_there, w.now_ms);
    expect("cancelled 0, send b/2 3+9, send b/2 4+9, ");
}

/* ---- other ends ---- */

static void test_other_errors_end_it(void **state)
{
    static const int codes[] = {E_LIMIT, E_INVALID, E_INTERNAL, E_NOMEM, E_TIMEOUT};
    (void)state;
    for (size_t i = 0; i < sizeof(codes) / sizeof(codes[0]); i++) {
        struct client c = {0};
        submit(&c, 2, 10);
        give(0, 1);
        finish_error(codes[i]);
        assert_int_equal(c.done.error.code, codes[i]);
        assert_string_equal(c.done.error.message, "as the story says");
    }
    expect_none_left();
}

static void test_cancel(void **state)
{
    struct client sent = {0}, parked = {0}, lost = {0}, silent = {0}, crossed = {0};
    struct router_done cancelled = {.reason = ROUTER_CANCELLED, .n_generated = 3};
    (void)state;
    submit(&sent, 2, 10);
    give(0, 2);
    router_cancel(w.router, sent.request);
    router_cancel(w.router, sent.request);
    give(2, 1);
    give(9, 1);
    router_on_progress(w.router, w.last.attempt, 1, 2);
    router_on_done(w.router, w.last.attempt, &cancelled, w.now_ms);
    expect("send a/1 2+10, +2, cancel a/1, cancelled 2, ");

    submit(&parked, 2, 10);
    w.has_place = false;
    router_on_node_lost(w.router, &node_a, w.now_ms);
    router_cancel(w.router, parked.request);
    expect("send a/1 2+10, cancelled 0, ");

    w.has_place = true;
    submit(&lost, 2, 10);
    router_cancel(w.router, lost.request);
    router_on_node_lost(w.router, &node_a, w.now_ms);
    expect("send a/1 2+10, cancel a/1, cancelled 0, ");

    submit(&silent, 2, 10);
    router_cancel(w.router, silent.request);
    tick(4000);
    expect("send a/1 2+10, cancel a/1, ");
    tick(1050);
    expect("cancelled 0, cancel a/1, ");

    submit(&crossed, 2, 10);
    router_cancel(w.router, crossed.request);
    finish(&done_stop, 0);
    expect("send a/1 2+10, cancel a/1, cancelled 0, ");
    expect_none_left();
}

/* ---- callbacks that call back in ---- */

static void answer_at_once(const struct router_attempt *a)
{
    (void)a;
    w.on_send = NULL;
    give(0, 4);
    finish(&done_stop, 4);
}

static void refuse_at_once(const struct router_attempt *a)
{
    (void)a;
    w.on_send = NULL;
    finish_error(E_BUSY);
}

static void lose_at_once(const struct router_attempt *a)
{
    (void)a;
    w.on_send = NULL;
    finish_error(E_PEERLOST);
}

static void cancel_at_once(const struct router_attempt *a)
{
    w.on_send = NULL;
    router_cancel(w.router, a->request);
}

static void answer_cancel(uint64_t attempt)
{
    struct router_done d = {.reason = ROUTER_CANCELLED};
    router_on_done(w.router, attempt, &d, w.now_ms);
}

static void cancel_self(struct client *c)
{
    router_cancel(w.router, c->request);
}

static struct client *next_client;

static void submit_next(struct client *c)
{
    (void)c;
    if (next_client != NULL) {
        struct client *n = next_client;
        next_client = NULL;
        assert_int_equal(submit(n, 2, 10), 0);
    }
}

static void end_all(struct client *c)
{
    (void)c;
    router_end_all(w.router, E_UNAVAILABLE, "bye");
}

static void test_reentrant_send(void **state)
{
    struct client a = {0}, b = {0}, c = {0}, d = {0}, e = {0};
    (void)state;
    w.on_send = answer_at_once;
    assert_int_equal(submit(&a, 2, 10), 0);
    expect("send a/1 2+10, +4, stop 4, ");
    w.on_send = refuse_at_once;
    assert_int_equal(submit(&b, 2, 10), 0);
    expect("send a/1 2+10, error E_BUSY 0, ");
    w.on_send = lose_at_once;
    assert_int_equal(submit(&c, 2, 10), 0);
    tick(ROUTER_RETRY_MS);
    expect("send a/1 2+10, send a/1 2+10, ");
    finish(&done_stop, 0);
    expect("stop 0, ");
    w.on_send = cancel_at_once;
    w.on_cancel = answer_cancel;
    assert_int_equal(submit(&d, 2, 10), 0);
    expect("send a/1 2+10, cancel a/1, cancelled 0, ");
    w.on_send = cancel_at_once;
    w.on_cancel = NULL;
    w.send_rc = E_UNAVAILABLE; /* cancelled while it was being sent, and then it did not leave */
    assert_int_equal(submit(&e, 2, 10), 0);
    expect("send a/1 2+10 fails, cancel a/1, cancelled 0, ");
    expect_none_left();
}

static void test_reentrant_clients(void **state)
{
    struct client a = {.on_tokens = cancel_self}, b = {.on_done = submit_next}, next = {0},
                  d = {.on_tokens = end_all}, e = {0}, f = {.on_done = submit_next}, last = {0};
    (void)state;
    w.on_cancel = answer_cancel;
    submit(&a, 2, 10);
    give(0, 2);
    expect("send a/1 2+10, +2, cancel a/1, cancelled 2, ");
    next_client = &next;
    submit(&b, 2, 10);
    finish(&done_stop, 0);
    expect("send a/1 2+10, stop 0, send a/1 2+10, ");
    finish(&done_stop, 0);
    submit(&e, 2, 10);
    submit(&d, 2, 10);
    give(0, 1);
    expect("stop 0, send a/1 2+10, send a/1 2+10, +1, error E_UNAVAILABLE 0, cancel a/1, "
           "error E_UNAVAILABLE 1, cancel a/1, ");
    expect_none_left();
    /* What is submitted while all are being ended is none of them. */
    submit(&f, 2, 10);
    next_client = &last;
    router_end_all(w.router, E_UNAVAILABLE, "bye");
    expect("send a/1 2+10, error E_UNAVAILABLE 0, send a/1 2+10, cancel a/1, ");
    assert_int_equal(last.n_done, 0);
    w.on_cancel = NULL;
    router_end_all(w.router, E_UNAVAILABLE, "bye"); /* `last` is ours */
    assert_int_equal(last.n_done, 1);
}

/* Everybody's done ends everybody else, from within each loop over the requests. */
static void test_reentrant_loops(void **state)
{
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        static struct client c[50];
        for (int i = 0; i < 50; i++) {
            c[i] = (struct client){.on_done = end_all};
            submit(&c[i], 2, 1);
            give(0, 1); /* only its end is missing */
        }
        if (kind == 0) {
            router_on_node_lost(w.router, &node_a, w.now_ms);
        } else if (kind == 1) {
            w.has_place = false;
            router_on_places(w.router, is_there, w.now_ms);
            w.has_place = true;
        } else if (kind == 2) {
            router_end_all(w.router, E_UNAVAILABLE, "bye");
        } else {
            for (int i = 0; i < 50; i++)
                router_cancel(w.router, c[i].request);
            tick(6000);
        }
        for (int i = 0; i < 50; i++)
            assert_int_equal(c[i].n_done, 1);
        expect_none_left();
        buf_reset(&w.trace);
    }
}

/* ---- memory ---- */

static void test_each_allocation_fails(void **state)
{
    (void)state;
    struct router *r;
    struct error err = {0};
    allocations_left = 0;
    assert_int_equal(router_new(&callbacks, &r, &err), E_NOMEM);
    int rc = E_NOMEM;
    for (long n = 0; rc != 0; n++) {
        struct client c = {0};
        assert_true(n < 10);
        allocations_left = n;
        rc = submit(&c, 100, 1000);
        allocations_left = -1;
        assert_true(rc == 0 || rc == E_NOMEM);
        if (rc == 0)
            finish(&done_stop, 0);
        expect_none_left();
    }
    struct client c = {0};
    buf_reset(&w.trace);
    submit(&c, 100, 1000);
    give(0, 3);
    allocations_left = 0;
    give(3, 900);
    allocations_left = -1;
    expect("send a/1 100+1000, +3, error E_NOMEM 3, cancel a/1, ");
    expect_none_left();
}

/* ---- anything at any time ---- */

static void random_news(uint64_t seed, uint64_t k, struct client *c)
{
    uint32_t n = (uint32_t)(rng_u64(seed, k, 2) % 5), at = (uint32_t)(rng_u64(seed, k, 3) % 8);
    switch (rng_u64(seed, k, 1) % 12) {
    case 0:
        router_on_node_lost(w.router, n < 2 ? &node_a : &node_b, w.now_ms);
        break;
    case 1:
        new_place(n < 2 ? &node_a : &node_b);
        router_on_places(w.router, is_there, w.now_ms);
        break;
    case 2:
        finish_error(n == 0 ? E_PEERLOST : n == 1 ? E_UNAVAILABLE : E_BUSY);
        break;
    case 3:
        finish(n < 3 ? &done_stop : &done_length, at);
        break;
    case 4:
        tick(50 * n);
        break;
    case 5:
        w.has_place = n > 0;
        break;
    case 6:
        if (n == 0 && c->request != 0)
            router_cancel(w.router, c->request);
        break;
    case 7:
        w.send_rc = n == 0 ? E_UNAVAILABLE : 0;
        break;
    default:
        give(at, n);
        break;
    }
}

static void test_anything(void **state)
{
    static struct client c[64];
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        uint32_t n = 0;
        memset(c, 0, sizeof(c));
        for (uint64_t k = 0; k < 500; k++) {
            if (rng_u64(seed, k, 4) % 8 == 0 && n < 64 && submit(&c[n], 5, 8) == 0)
                n++;
            if (w.n_sent > 0)
                random_news(seed, k, &c[rng_u64(seed, k, 5) % 64]);
        }
        router_end_all(w.router, E_UNAVAILABLE, "bye");
        for (uint32_t i = 0; i < n; i++)
            assert_int_equal(c[i].n_done, 1);
        expect_none_left();
        buf_reset(&w.trace);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_undisturbed, begin, end),
        cmocka_unit_test_setup_teardown(test_refusals, begin, end),
        cmocka_unit_test_setup_teardown(test_duplicates_and_overlaps, begin, end),
        cmocka_unit_test_setup_teardown(test_gap, begin, end),
        cmocka_unit_test_setup_teardown(test_missing_at_the_end, begin, end),
        cmocka_unit_test_setup_teardown(test_loss_at_every_point, begin, end),
        cmocka_unit_test_setup_teardown(test_done_lost, begin, end),
        cmocka_unit_test_setup_teardown(test_usage_of_all_attempts, begin, end),
        cmocka_unit_test_setup_teardown(test_busy, begin, end),
        cmocka_unit_test_setup_teardown(test_busy_for_too_long, begin, end),
        cmocka_unit_test_setup_teardown(test_parked_for_too_long, begin, end),
        cmocka_unit_test_setup_teardown(test_flapping_instance, begin, end),
        cmocka_unit_test_setup_teardown(test_send_fails, begin, end),
        cmocka_unit_test_setup_teardown(test_order_of_waiting, begin, end),
        cmocka_unit_test_setup_teardown(test_other_errors_end_it, begin, end),
        cmocka_unit_test_setup_teardown(test_cancel, begin, end),
        cmocka_unit_test_setup_teardown(test_reentrant_send, begin, end),
        cmocka_unit_test_setup_teardown(test_reentrant_clients, begin, end),
        cmocka_unit_test_setup_teardown(test_reentrant_loops, begin, end),
        cmocka_unit_test_setup_teardown(test_each_allocation_fails, begin, end),
        cmocka_unit_test_setup_teardown(test_anything, begin, end),
    };
    for (int32_t i = 0; i < 4096; i++)
        numbers[i] = i;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
