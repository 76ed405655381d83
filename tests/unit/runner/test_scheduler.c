/* The head's decisions, told as stories: plans go in, answers come out, no engine anywhere. */
#include "runner/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { END_TOKEN = 9 };

/* What came out, as one line of text: "tokens 1: 42, done 1 stop 2, ". */
static struct buf trace;
static struct message_done last_done;

static void on_progress(void *arg, const struct message_progress *m)
{
    (void)arg;
    buf_printf(&trace, "progress %llu %u/%u, ", (unsigned long long)m->request, m->n_done,
               m->n_prompt);
}

static void on_tokens(void *arg, const struct message_tokens *m)
{
    (void)arg;
    assert_int_equal(m->n_tokens, 1);
    buf_printf(&trace, "token %llu %d, ", (unsigned long long)m->request, m->tokens[0]);
}

static void on_done(void *arg, const struct message_done *m)
{
    static const char *const reasons[] = {"stop", "length", "cancelled", "error"};
    (void)arg;
    last_done = *m;
    buf_printf(&trace, "done %llu %s %u, ", (unsigned long long)m->request, reasons[m->reason],
               m->n_generated);
}

struct story {
    struct scheduler *scheduler;
    struct plan *plan;
    uint64_t now_ns;
};

static struct story begin(uint32_t n_slots, uint32_t n_ctx, uint32_t n_batch, uint64_t step_ns_max)
{
    struct scheduler_options o = {.n_slots = n_slots,
                                  .n_ctx = n_ctx,
                                  .n_batch = n_batch,
                                  .n_vocab = 1000,
                                  .step_ns_max = step_ns_max};
    struct scheduler_output output = {
        .progress = on_progress, .tokens = on_tokens, .done = on_done};
    struct story s = {.plan = calloc(1, sizeof(*s.plan)), .now_ns = 1000};
    assert_non_null(s.plan);
    assert_int_equal(scheduler_new(&o, &output, &s.scheduler, NULL), 0);
    buf_init(&trace, 1u << 20);
    return s;
}

static void end(struct story *s)
{
    scheduler_free(s->scheduler);
    free(s->plan);
    buf_done(&trace);
}

/* Prompt of n tokens: base, base + 1, ... */
static void submit(struct story *s, uint64_t request, int32_t base, uint32_t n, uint32_t n_max)
{
    static struct message_submit m;
    int32_t *tokens = malloc((n + 1) * sizeof(*tokens));
    assert_non_null(tokens);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (base + (int32_t)i) % 1000;
    memset(&m, 0, sizeof(m));
    m.request = request;
    m.n_max = n_max;
    sampling_init(&m.sampling);
    m.sampling.seed = request;
    m.n_end = 1;
    m.end[0] = END_TOKEN;
    m.n_tokens = n;
    m.tokens = tokens;
    assert_int_equal(scheduler_submit(s->scheduler, &m, s->now_ns, NULL), 0);
    free(tokens); /* the scheduler has its copy */
}

/* One step in which every row gives this token. Describes the plan in the trace. */
static bool step(struct story *s, int32_t token)
{
    struct step_row rows[LIMIT_SLOTS];
    if (!scheduler_plan(s->scheduler, s->now_ns, s->plan))
        return false;
    for (uint32_t i = 0; i < s->plan->n_resets; i++)
        buf_printf(&trace, "reset %u keep %u, ", s->plan->reset[i].slot, s->plan->reset[i].n_keep);
    uint32_t n_tokens = 0;
    for (uint32_t i = 0; i < s->plan->n_parts; i++) {
        const struct plan_part *part = &s->plan->part[i];
        buf_printf(&trace, "%u:%u+%u%s ", part->slot, part->n_past, part->n_tokens,
                   part->output == STEP_OUTPUT_LAST ? "!" : "");
        n_tokens += part->n_tokens;
    }
    buf_append_str(&trace, "-> ");
    assert_int_equal(n_tokens, s->plan->n_tokens);
    for (uint32_t i = 0; i < LIMIT_SLOTS; i++)
        rows[i] = (struct step_row){.token = token};
    s->now_ns += 1000;
    scheduler_result(s->scheduler, rows, s->now_ns);
    return true;
}

static void expect(const char *text)
{
    assert_string_equal(buf_str(&trace), text);
    buf_reset(&trace);
}

static void one_request_to_its_end(void **state)
{
    (void)state;
    struct story s = begin(2, 100, 32, 0);
    submit(&s, 1, 100, 5, 10);
    expect("");
    step(&s, 42);
    expect("reset 0 keep 0, 0:0+5! -> token 1 42, ");
    assert_int_equal(s.plan->tokens[4], 104);
    assert_int_equal(s.plan->reset[0].sampling.seed, 1);
    step(&s, 43);
    expect("0:5+1! -> token 1 43, ");
    assert_int_equal(s.plan->tokens[0], 42);
    step(&s, END_TOKEN);
    expect("0:6+1! -> done 1 stop 2, ");
    assert_int_equal(last_done.n_prompt, 5);
    assert_int_equal(last_done.prefill_ns, 1000);
    assert_int_equal(last_done.decode_ns, 2000);
    assert_false(step(&s, 0));
    end(&s);
}

static void parts_carry_the_hash_of_their_prefix(void **state)
{
    (void)state;
    struct story s = begin(1, 100, 32, 0);
    const int32_t tokens[] = {100, 101, 102, 42};
    submit(&s, 1, 100, 3, 10);
    step(&s, 42);
    assert_true(s.plan->part[0].prefix_hash == PLAN_HASH_EMPTY);
    step(&s, 43);
    assert_true(s.plan->part[0].prefix_hash == plan_hash(PLAN_HASH_EMPTY, tokens, 3));
    step(&s, 44);
    assert_true(s.plan->part[0].prefix_hash == plan_hash(PLAN_HASH_EMPTY, tokens, 4));
    end(&s);
}

static void length_ends_generation(void **state)
{
    (void)state;
    struct story s = begin(1, 10, 32, 0);
    submit(&s, 1, 100, 3, 2);
    submit(&s, 2, 200, 8, 1000);
    step(&s, 42);
    step(&s, 42);
    expect("reset 0 keep 0, 0:0+3! -> token 1 42, 0:3+1! -> token 1 42, done 1 length 2, ");
    while (step(&s, 43))
        ;
    /* 8 + 2 = the context of 10 */
    expect("reset 0 keep 0, 0:0+8! -> token 2 43, 0:8+1! -> token 2 43, done 2 length 2, ");
    end(&s);
}

static void prompts_that_cannot_run(void **state)
{
    (void)state;
    struct story s = begin(1, 10, 32, 0);
    submit(&s, 1, 100, 10, 5);
    expect("done 1 error 0, ");
    assert_int_equal(last_done.code, E_LIMIT);
    assert_string_equal(last_done.message,
                        "the prompt has 10 tokens; the context of 10 leaves room for 9");
    submit(&s, 2, 100, 0, 5);
    assert_int_equal(last_done.code, E_INVALID);
    submit(&s, 3, -5, 2, 5);
    assert_int_equal(last_done.code, E_INVALID);
    assert_int_equal(scheduler_n_queued(s.scheduler), 0);
    end(&s);
}

static void the_queue_is_bounded(void **state)
{
    (void)state;
    struct story s = begin(1, 100, 32, 0);
    for (uint64_t i = 1; i <= LIMIT_REQUESTS_QUEUED; i++)
        submit(&s, i, 100, 3, 5);
    expect("");
    submit(&s, 1000, 100, 3, 5);
    expect("done 1000 error 0, ");
    assert_int_equal(last_done.code, E_BUSY);
    struct message_submit *again = calloc(1, sizeof(*again));
    int32_t token = 1;
    assert_non_null(again);
    again->request = 7;
    again->n_max = again->n_tokens = 1;
    again->tokens = &token;
    assert_int_equal(scheduler_submit(s.scheduler, again, 0, NULL), E_PROTOCOL);
    free(again);
    end(&s);
}

static void decodes_share_steps_with_a_chunk(void **state)
{
    (void)state;
    struct story s = begin(3, 1000, 200, 0);
    submit(&s, 1, 100, 4, 100);
    step(&s, 42);
    expect("reset 0 keep 0, 0:0+4! -> token 1 42, ");
    submit(&s, 2, 200, 300, 100);
    submit(&s, 3, 500, 4, 100);
    /* The long prompt comes in chunks; the first sequence gets its token in each step; the short
     * prompt waits for its turn. */
    step(&s, 43);
    step(&s, 44);
    step(&s, 45);
    expect("reset 1 keep 0, 0:4+1! 1:0+128 -> token 1 43, progress 2 128/300, "
           "0:5+1! 1:128+128 -> token 1 44, progress 2 256/300, "
           "0:6+1! 1:256+44! -> token 1 45, progress 2 300/300, token 2 45, ");
    step(&s, 46);
    expect("reset 2 keep 0, 0:7+1! 1:300+1! 2:0+4! -> token 1 46, token 2 46, token 3 46, ");
    step(&s, 47);
    expect("0:8+1! 1:301+1! 2:4+1! -> token 1 47, token 2 47, token 3 47, ");
    assert_int_equal(scheduler_n_running(s.scheduler), 3);
    end(&s);
}

static void a_small_batch_starves_nobody(void **state)
{
    (void)state;
    struct story s = begin(3, 100, 2, 0);
    for (uint64_t i = 1; i <= 3; i++)
        submit(&s, i, (int32_t)i * 100, 1, 4);
    while (step(&s, 42))
        assert_true(s.plan->n_tokens <= 2);
    assert_int_equal(scheduler_n_running(s.scheduler), 0);
    for (int i = 1; i <= 3; i++) {
        char text[32];
        snprintf(text, sizeof(text), "done %d length 4, ", i);
        assert_non_null(strstr(buf_str(&trace), text));
    }
    end(&s);
}

static void slow_ranks_get_short_chunks(void **state)
{
    (void)state;
    /* Steps take 1000 ns here. 128 tokens are the trial; at 8 ns a token 60 fit into 500 ns, and
     * halving 200 gives 50. */
    struct story s = begin(1, 1000, 200, 500);
    submit(&s, 1, 100, 400, 100);
    step(&s, 42);
    expect("reset 0 keep 0, 0:0+128 -> progress 1 128/400, ");
    step(&s, 42);
    expect("0:128+50 -> progress 1 178/400, ");
    end(&s);
}

static void cached_prefixes_are_used_again(void **state)
{
    (void)state;
    struct story s = begin(2, 200, 200, 0);
    submit(&s, 1, 100, 40, 1);
    submit(&s, 2, 500, 40, 1);
    while (step(&s, 42))
        ;
    buf_reset(&trace);
    /* The same prompt: all but its last token are there. */
    submit(&s, 3, 500, 40, 1);
    step(&s, 43);
    expect("reset 1 keep 39, 1:39+1! -> token 3 43, done 3 length 1, ");
    assert_int_equal(last_done.n_cached, 39);
    /* A longer one that begins like the first. */
    submit(&s, 4, 100, 50, 1);
    step(&s, 43);
    expect("reset 0 keep 40, 0:40+10! -> token 4 43, done 4 length 1, ");
    /* A new one takes the slot that was used longest ago. */
    submit(&s, 5, 700, 20, 1);
    step(&s, 43);
    expect("reset 1 keep 0, 1:0+20! -> token 5 43, done 5 length 1, ");
    /* A busy slot's tokens are not for others. */
    submit(&s, 6, 100, 50, 5);
    submit(&s, 7, 100, 50, 5);
    step(&s, 44);
    step(&s, 44);
    expect("reset 0 keep 49, 0:49+1! -> token 6 44, "
           "reset 1 keep 0, 0:50+1! 1:0+50! -> token 6 44, token 7 44, ");
    end(&s);
}

static void cancelling(void **state)
{
    (void)state;
    struct story s = begin(1, 100, 32, 0);
    submit(&s, 1, 100, 3, 50);
    submit(&s, 2, 200, 3, 50);
    submit(&s, 3, 300, 3, 50);
    step(&s, 42);
    buf_reset(&trace);
    scheduler_cancel(s.scheduler, 3, s.now_ns); /* the last in the queue */
    scheduler_cancel(s.scheduler, 99, s.now_ns);
    expect("done 3 cancelled 0, ");
    submit(&s, 4, 400, 3, 50);
    scheduler_cancel(s.scheduler, 1, s.now_ns); /* running */
    expect("done 1 cancelled 1, ");
    step(&s, 43); /* its slot is free at once */
    expect("reset 0 keep 0, 0:0+3! -> token 2 43, ");
    scheduler_cancel(s.scheduler, 2, s.now_ns);
    step(&s, 44);
    expect("done 2 cancelled 1, reset 0 keep 0, 0:0+3! -> token 4 44, ");
    assert_int_equal(scheduler_n_queued(s.scheduler), 0);
    end(&s);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    struct scheduler_output output = {0};
    struct scheduler *scheduler;
    struct scheduler_options o = {
        .n_slots = LIMIT_SLOTS + 1, .n_ctx = 10, .n_batch = 1, .n_vocab = 1};
    assert_int_equal(scheduler_new(&o, &output, &scheduler, NULL), E_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_to_its_end),
        cmocka_unit_test(parts_carry_the_hash_of_their_prefix),
        cmocka_unit_test(length_ends_generation),
        cmocka_unit_test(prompts_that_cannot_run),
        cmocka_unit_test(the_queue_is_bounded),
        cmocka_unit_test(decodes_share_steps_with_a_chunk),
        cmocka_unit_test(a_small_batch_starves_nobody),
        cmocka_unit_test(slow_ranks_get_short_chunks),
        cmocka_unit_test(cached_prefixes_are_used_again),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
