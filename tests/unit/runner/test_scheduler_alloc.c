/*
 * Fails the n-th allocation in turn, for every n, while the scheduler is made and requests run with
 * guesses. The sources are included here with their allocator replaced.
 */
#include "failing_alloc.h"

#include "runner/draft.c"
#include "runner/prefix_tree.c"
#include "runner/scheduler.c"
#include "runner/scheduler_draft.c"
#include "runner/scheduler_memory.c"
#include "runner/scheduler_plan.c"
#undef malloc
#undef calloc
#undef realloc

#include <setjmp.h>
#include <stdarg.h>

#include <cmocka.h>

static uint32_t n_done, n_failed, n_tokens_got;

static void on_progress(void *arg, const struct message_progress *m)
{
    (void)arg;
    (void)m;
}

static void on_tokens(void *arg, const struct message_tokens *m)
{
    (void)arg;
    n_tokens_got += m->n_tokens;
}

static void on_done(void *arg, const struct message_done *m)
{
    (void)arg;
    n_done++;
    if (m->reason == FINISH_ERROR) {
        n_failed++;
        assert_int_equal(m->code, E_NOMEM);
        assert_true(m->message[0] != '\0');
    } else {
        assert_int_equal(m->n_generated, 20);
    }
}

static int run_two(struct plan *p, struct error *err)
{
    static struct message_submit m;
    static const int32_t tokens[] = {1, 2, 3, 1, 2};
    static struct step_row rows[LIMIT_BATCH_TOKENS];
    struct scheduler_options o = {.n_slots = 2,
                                  .n_ctx = 100,
                                  .n_batch = 64,
                                  .n_vocab = 10,
                                  .block_tokens = 4,
                                  .n_blocks = 50,
                                  .n_attached_max = 50,
                                  .n_draft = 4};
    struct scheduler_output output = {
        .progress = on_progress, .tokens = on_tokens, .done = on_done};
    struct scheduler *s;
    uint64_t now_ns = 1;
    int rc = scheduler_new(&o, &output, &s, err);
    if (rc != 0)
        return rc;
    for (m.request = 1; m.request <= 2; m.request++) {
        m.n_max = 20;
        m.n_tokens = 5;
        m.tokens = tokens;
        sampling_init(&m.sampling);
        assert_int_equal(scheduler_submit(s, &m, now_ns, err), 0);
    }
    while (scheduler_plan(s, now_ns, p)) {
        for (uint32_t i = 0; i < LIMIT_BATCH_TOKENS; i++)
            rows[i].token = 7;
        now_ns += 10000 + p->n_tokens;
        scheduler_result(s, rows, NULL, now_ns);
    }
    scheduler_free(s);
    return 0;
}

static void fails_at_each_allocation(void **state)
{
    (void)state;
    struct plan *p = malloc(sizeof(*p));
    assert_non_null(p);
    long n = 0;
    for (bool was_reached = true; was_reached; n++) {
        struct error err = {0};
        n_done = n_failed = n_tokens_got = 0;
        allocations_left = n;
        int rc = run_two(p, &err);
        was_reached = allocations_left < 0;
        allocations_left = -1;
        if (rc != 0) {
            assert_int_equal(rc, E_NOMEM);
            assert_true(err.message[0] != '\0');
        } else {
            assert_int_equal(n_done, 2);
            assert_int_equal(n_tokens_got, 20 * (2 - n_failed));
            assert_true(n_failed <= (was_reached ? 1 : 0));
        }
    }
    assert_true(n > 15);
    free(p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fails_at_each_allocation)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
