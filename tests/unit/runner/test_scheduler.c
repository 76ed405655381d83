/* The head's decisions, told as stories: plans go in, answers come out, no engine anywhere. */
#include "runner/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "text/tiny_vocab.h"

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
    buf_printf(&trace, "token %llu ", (unsigned long long)m->request);
    for (uint32_t i = 0; i < m->n_tokens; i++)
        buf_printf(&trace, "%d%s", m->tokens[i], i + 1 < m->n_tokens ? " " : ", ");
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

static struct story begin_with(const struct scheduler_options *o)
{
    struct scheduler_output output = {
        .progress = on_progress, .tokens = on_tokens, .done = on_done};
    struct story s = {.plan = calloc(1, sizeof(*s.plan)), .now_ns = 1000};
    assert_non_null(s.plan);
    assert_int_equal(scheduler_new(o, &output, &s.scheduler, NULL), 0);
    buf_init(&trace, 1u << 20);
    return s;
}

static struct scheduler_options options(uint32_t n_slots, uint32_t n_ctx, uint32_t n_batch)
{
    return (struct scheduler_options){.n_slots = n_slots,
                                      .n_ctx = n_ctx,
                                      .n_batch = n_batch,
                                      .n_vocab = 1000,
                                      .block_tokens = 32,
                                      .n_blocks = n_slots * ((n_ctx + 31) / 32),
                                      .n_attached_max = 1000};
}

static struct story begin(uint32_t n_slots, uint32_t n_ctx, uint32_t n_batch)
{
    struct scheduler_options o = options(n_slots, n_ctx, n_batch);
    return begin_with(&o);
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

/* Plans a step and describes it in the trace: copies, attaches, parts with new blocks and whether
 * they give a token. */
static bool plan(struct story *s)
{
    struct plan *p = s->plan;
    if (!scheduler_plan(s->scheduler, s->now_ns, p))
        return false;
    for (uint32_t i = 0; i < p->n_copies; i++)
        buf_printf(&trace, "copy %u of %u to %u, ", p->copy[i].n_tokens, p->copy[i].from,
                   p->copy[i].to);
    for (uint32_t i = 0; i < p->n_attaches; i++)
        buf_printf(&trace, "attach %u keep %u, ", p->attach[i].slot, p->attach[i].n_keep);
    uint32_t n_tokens = 0;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        const struct plan_part *part = &p->part[i];
        buf_printf(&trace, "%u:%u+%u%s ", part->slot, part->n_past, part->n_tokens,
                   part->output == STEP_OUTPUT_NONE ? "" : "!");
        n_tokens += part->n_tokens;
    }
    assert_int_equal(n_tokens, p->n_tokens);
    return true;
}

/* The oldest step under way gives this token in every row. */
static void result(struct story *s, int32_t token)
{
    static struct step_row rows[LIMIT_BATCH_TOKENS];
    for (uint32_t i = 0; i < LIMIT_BATCH_TOKENS; i++)
        rows[i] = (struct step_row){.token = token};
    s->now_ns += 1000;
    buf_append_str(&trace, "-> ");
    scheduler_result(s->scheduler, rows, NULL, s->now_ns);
}

static bool step(struct story *s, int32_t token)
{
    if (!plan(s))
        return false;
    result(s, token);
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
    struct story s = begin(2, 100, 32);
    submit(&s, 1, 100, 5, 10);
    expect("");
    step(&s, 42);
    expect("attach 0 keep 0, 0:0+5! -> token 1 42, ");
    assert_int_equal(s.plan->tokens[4], 104);
    assert_int_equal(s.plan->attach[0].sampling.seed, 1);
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
    struct story s = begin(1, 100, 32);
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
    struct story s = begin(1, 10, 32);
    submit(&s, 1, 100, 3, 2);
    submit(&s, 2, 200, 8, 1000);
    step(&s, 42);
    step(&s, 42);
    expect("attach 0 keep 0, 0:0+3! -> token 1 42, 0:3+1! -> token 1 42, done 1 length 2, ");
    while (step(&s, 43))
        ;
    /* 8 + 2 = the context of 10 */
    expect("attach 0 keep 0, 0:0+8! -> token 2 43, 0:8+1! -> token 2 43, done 2 length 2, ");
    end(&s);
}

static void prompts_that_cannot_run(void **state)
{
    (void)state;
    struct story s = begin(1, 10, 32);
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
    struct story s = begin(1, 100, 32);
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
    struct story s = begin(3, 1000, 200);
    submit(&s, 1, 100, 4, 100);
    step(&s, 42);
    expect("attach 0 keep 0, 0:0+4! -> token 1 42, ");
    submit(&s, 2, 200, 300, 100);
    submit(&s, 3, 500, 4, 100);
    /* The long prompt comes in chunks; the first sequence gets its token in each step; the short
     * prompt does not wait for the long one. */
    step(&s, 43);
    expect("attach 1 keep 0, attach 2 keep 0, 0:4+1! 1:0+124 2:0+4! -> "
           "token 1 43, progress 2 124/300, token 3 43, ");
    step(&s, 44);
    step(&s, 45);
    expect("0:5+1! 2:4+1! 1:124+128 -> token 1 44, token 3 44, progress 2 252/300, "
           "0:6+1! 2:5+1! 1:252+48! -> token 1 45, token 3 45, progress 2 300/300, token 2 45, ");
    step(&s, 46);
    expect("0:7+1! 1:300+1! 2:6+1! -> token 1 46, token 2 46, token 3 46, ");
    assert_int_equal(scheduler_n_running(s.scheduler), 3);
    end(&s);
}

/* Half of a step's tokens of prompts are for the oldest; the rest goes to the shortest. */
static void prompts_share_a_step(void **state)
{
    (void)state;
    struct story s = begin(4, 1000, 100);
    submit(&s, 1, 100, 400, 100);
    submit(&s, 2, 200, 300, 100);
    submit(&s, 3, 300, 20, 100);
    submit(&s, 4, 400, 60, 100);
    step(&s, 42);
    expect("attach 0 keep 0, attach 2 keep 0, attach 3 keep 0, 0:0+50 2:0+20! 3:0+30 -> "
           "progress 1 50/400, token 3 42, progress 4 30/60, ");
    step(&s, 43);
    expect("2:20+1! 0:50+69 3:30+30! -> "
           "token 3 43, progress 1 119/400, progress 4 60/60, token 4 43, ");
    end(&s);
}

static void a_small_batch_starves_nobody(void **state)
{
    (void)state;
    struct story s = begin(3, 100, 2);
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
    struct scheduler_options o = options(1, 1000, 200);
    o.step_ns_max = 500;
    struct story s = begin_with(&o);
    submit(&s, 1, 100, 400, 100);
    step(&s, 42);
    expect("attach 0 keep 0, 0:0+128 -> progress 1 128/400, ");
    step(&s, 42);
    expect("0:128+50 -> progress 1 178/400, ");
    end(&s);
}

static void cached_prefixes_are_used_again(void **state)
{
    (void)state;
    struct scheduler_options o = options(2, 200, 200);
    o.n_blocks = 50;
    struct story s = begin_with(&o);
    submit(&s, 1, 100, 72, 1);
    submit(&s, 2, 500, 40, 3);
    while (step(&s, 42))
        ;
    buf_reset(&trace);
    /* The same prompt: its blocks are shared; less than half a block behind them is not worth a
     * copy. */
    submit(&s, 3, 100, 72, 1);
    step(&s, 43);
    expect("attach 0 keep 64, 0:64+8! -> token 3 43, done 3 length 1, ");
    assert_int_equal(last_done.n_cached, 64);
    /* All but the last token, since that chooses the next: 31 of the second block are copied. */
    submit(&s, 4, 100, 64, 1);
    step(&s, 43);
    expect("copy 31 of 1 to 5, attach 0 keep 63, 0:63+1! -> token 4 43, done 4 length 1, ");
    /* The answer is known too, but for its last token, which never ran: 500.., 42, 42. */
    submit(&s, 5, 500, 60, 1);
    step(&s, 43);
    expect("attach 1 keep 32, 1:32+28! -> token 5 43, done 5 length 1, ");
    /* Running sequences share what they have already. */
    submit(&s, 6, 100, 100, 5);
    step(&s, 44);
    submit(&s, 7, 100, 100, 5);
    step(&s, 44);
    expect("attach 0 keep 64, 0:64+36! -> token 6 44, "
           "attach 1 keep 96, 0:100+1! 1:96+4! -> token 6 44, token 7 44, ");
    struct scheduler_stats stats;
    scheduler_get_stats(s.scheduler, &stats);
    assert_int_equal(stats.n_blocks_used, 3 + 2);
    assert_int_equal(stats.n_block_tokens_used, 96 + 5 + 4);
    end(&s);
}

/* Of two requests with the same beginning the second waits until the first has computed it. */
static void the_same_prompt_twice_at_once(void **state)
{
    (void)state;
    struct story s = begin(3, 400, 64);
    submit(&s, 1, 100, 130, 2);
    submit(&s, 2, 100, 120, 2);
    submit(&s, 3, 500, 10, 2);
    step(&s, 42);
    expect("attach 0 keep 0, attach 1 keep 0, 0:0+54 1:0+10! -> progress 1 54/130, token 3 42, ");
    step(&s, 42);
    expect("1:10+1! 0:54+63 -> token 3 42, done 3 length 2, progress 1 117/130, ");
    step(&s, 42);
    expect("0:117+13! -> progress 1 130/130, token 1 42, ");
    /* 96 tokens are in whole blocks; the beginning of the next one is copied, which the first goes
     * on to fill. */
    step(&s, 42);
    expect("copy 23 of 4 to 6, attach 2 keep 119, 0:130+1! 2:119+1! -> "
           "token 1 42, done 1 length 2, token 2 42, ");
    step(&s, 42);
    expect("2:120+1! -> token 2 42, done 2 length 2, ");
    assert_int_equal(last_done.n_cached, 119);
    end(&s);
}

static void the_youngest_gives_way(void **state)
{
    (void)state;
    /* Five blocks of 32 tokens: two sequences fit, until both need a third block. */
    struct scheduler_options o = options(2, 128, 128);
    o.n_blocks = 5;
    struct story s = begin_with(&o);
    submit(&s, 1, 100, 58, 20);
    step(&s, 42);
    submit(&s, 2, 500, 62, 20);
    for (int i = 0; i < 6; i++)
        step(&s, 42);
    assert_non_null(strstr(buf_str(&trace), "0:63+1! 1:66+1! -> token 1 42, token 2 42, "));
    buf_reset(&trace);
    /* The first goes on; the second waits in the queue, and its prompt is longer now. */
    step(&s, 43);
    expect("0:64+1! -> token 1 43, ");
    assert_int_equal(scheduler_n_queued(s.scheduler) + scheduler_n_running(s.scheduler), 2);
    struct scheduler_stats stats;
    scheduler_get_stats(s.scheduler, &stats);
    assert_int_equal(stats.n_preempted, 1);
    while (stats.n_generated_tokens < 26) { /* until the first has its 20 */
        assert_true(step(&s, 44));
        scheduler_get_stats(s.scheduler, &stats);
    }
    assert_non_null(strstr(buf_str(&trace), "done 1 length 20, "));
    assert_null(strstr(buf_str(&trace), "token 2"));
    buf_reset(&trace);
    /* Two of its blocks are still there. Six tokens were delivered; the seventh comes next. */
    step(&s, 45);
    expect("attach 1 keep 64, 1:64+4! -> token 2 45, ");
    while (step(&s, 46))
        ;
    assert_int_equal(last_done.n_generated, 20);
    assert_int_equal(last_done.n_prompt, 62);
    assert_int_equal(last_done.n_cached, 0);
    end(&s);
}

static void a_cache_too_small_is_named(void **state)
{
    (void)state;
    struct scheduler_options o = options(2, 1000, 128);
    o.n_blocks = 4;
    struct story s = begin_with(&o);
    submit(&s, 1, 100, 128, 5);
    expect("done 1 error 0, ");
    assert_int_equal(last_done.code, E_LIMIT);
    assert_string_equal(
        last_done.message,
        "the prompt has 128 tokens; the KV cache of 128 tokens leaves room for 127");
    submit(&s, 2, 100, 127, 5);
    step(&s, 42);
    expect("attach 0 keep 0, 0:0+127! -> token 2 42, done 2 length 1, ");
    end(&s);
}

/* Blocks in slots are counted with what finished sequences left there: these are emptied first. */
static void slots_are_emptied_for_others(void **state)
{
    (void)state;
    struct scheduler_options o = options(2, 128, 128);
    o.n_blocks = 20;
    o.n_attached_max = 4;
    struct story s = begin_with(&o);
    submit(&s, 1, 100, 40, 1);
    submit(&s, 2, 300, 40, 1);
    step(&s, 42);
    buf_reset(&trace);
    submit(&s, 3, 500, 90, 1);
    step(&s, 42);
    expect("attach 1 keep 0, attach 0 keep 0, 0:0+90! -> token 3 42, done 3 length 1, ");
    end(&s);
}

static void two_stages_are_kept_busy(void **state)
{
    (void)state;
    struct scheduler_options o = options(2, 3000, 512);
    o.n_in_flight = 2;
    struct story s = begin_with(&o);
    /* Chunk follows chunk; sixteen of them for two stages. */
    submit(&s, 1, 100, 2048, 100);
    plan(&s);
    plan(&s);
    assert_false(plan(&s));
    expect("attach 0 keep 0, 0:0+128 0:128+128 ");
    assert_int_equal(scheduler_n_in_flight(s.scheduler), 2);
    result(&s, 42);
    plan(&s);
    expect("-> progress 1 128/2048, 0:256+128 ");
    for (int i = 0; i < 14; i++) {
        result(&s, 42);
        plan(&s);
    }
    assert_non_null(strstr(buf_str(&trace), "0:1920+128! -> progress 1 1920/2048, "));
    buf_reset(&trace);
    result(&s, 42);
    expect("-> progress 1 2048/2048, token 1 42, ");
    /* A decoding sequence is in one step; two of them are in one each. */
    submit(&s, 2, 100, 10, 100);
    plan(&s);
    plan(&s);
    expect("attach 1 keep 0, 0:2048+1! 1:0+10! ");
    result(&s, 43);
    plan(&s);
    plan(&s);
    assert_false(plan(&s));
    expect("-> token 1 43, token 2 43, 0:2049+1! 1:10+1! ");
    end(&s);
}

static void cancelling(void **state)
{
    (void)state;
    struct story s = begin(1, 100, 32);
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
    expect("attach 0 keep 0, 0:0+3! -> token 2 43, ");
    scheduler_cancel(s.scheduler, 2, s.now_ns);
    step(&s, 44);
    expect("done 2 cancelled 1, attach 0 keep 0, 0:0+3! -> token 4 44, ");
    assert_int_equal(scheduler_n_queued(s.scheduler), 0);
    end(&s);
}

static void cancelling_under_way(void **state)
{
    (void)state;
    struct scheduler_options o = options(1, 400, 64);
    o.n_in_flight = 2;
    struct story s = begin_with(&o);
    submit(&s, 1, 100, 200, 50);
    submit(&s, 2, 100, 150, 50);
    plan(&s);
    plan(&s);
    scheduler_cancel(s.scheduler, 1, s.now_ns);
    expect("attach 0 keep 0, 0:0+64 0:64+64 done 1 cancelled 0, ");
    /* The slot is free, and what the steps under way compute will be there when the next begins. */
    result(&s, 42);
    plan(&s);
    result(&s, 42);
    result(&s, 42);
    expect("-> attach 0 keep 128, 0:128+22! -> -> token 2 42, ");
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
    o = options(1, 10, 10);
    o.n_blocks = 0;
    assert_int_equal(scheduler_new(&o, &output, &scheduler, NULL), E_INVALID);
    o = options(1, 10, 10);
    o.n_in_flight = SCHEDULER_IN_FLIGHT_MAX + 1;
    assert_int_equal(scheduler_new(&o, &output, &scheduler, NULL), E_INVALID);
    o = options(1, 10, 10);
    o.n_draft = LIMIT_DRAFT_TOKENS + 1;
    assert_int_equal(scheduler_new(&o, &output, &scheduler, NULL), E_INVALID);
}

/* ---- grammars ---- */

static void submit_regex(struct story *s, const struct grammar_vocab *vocab, uint64_t request,
                         const char *regex, uint32_t n, uint32_t n_max)
{
    static struct message_submit m;
    int32_t tokens[64];
    struct grammar *g = NULL;
    assert_int_equal(grammar_compile(vocab, GRAMMAR_REGEX, regex, strlen(regex), &g, NULL), 0);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = (int32_t)(request * 50 + i);
    m = (struct message_submit){
        .request = request, .n_max = n_max, .n_tokens = n, .tokens = tokens, .n_logprobs = 1};
    m.n_end = 1;
    m.end[0] = TINY_IM_END;
    sampling_init(&m.sampling);
    m.sampling.n_prompt = n;
    assert_int_equal(scheduler_submit_grammar(s->scheduler, &m, g, s->now_ns, NULL), 0);
}

static struct grammar_vocab *open_vocab(void)
{
    struct tiny tiny;
    struct tokenizer *t = NULL;
    struct grammar_vocab *vocab = NULL;
    tiny_bpe(&tiny, "gpt-2");
    tiny_finish(&tiny);
    assert_int_equal(tiny_open(&tiny, &t, NULL), 0);
    assert_int_equal(grammar_vocab_new(t, &vocab, NULL), 0);
    tokenizer_free(t);
    tiny_done(&tiny);
    return vocab;
}

/* Each row gives the lowest token that its mask allows, or, without one, 500. Returns false when
 * there was nothing to plan. */
static bool step_allowed(struct story *s)
{
    static struct step_row rows[LIMIT_BATCH_TOKENS];
    uint32_t n = 0;
    if (!plan(s))
        return false;
    for (uint32_t i = 0; i < s->plan->n_parts; i++) {
        const struct plan_part *part = &s->plan->part[i];
        uint32_t token = 0;
        while (part->mask != NULL && !sampler_mask_allows(part->mask, token))
            assert_in_range(++token, 0, 999);
        assert_int_not_equal(part->output, STEP_OUTPUT_ALL);
        if (part->output == STEP_OUTPUT_LAST)
            rows[n++].token = part->mask != NULL ? (int32_t)token : 500;
    }
    s->now_ns += 1000;
    buf_append_str(&trace, "-> ");
    scheduler_result(s->scheduler, rows, NULL, s->now_ns);
    return true;
}

static void grammars_go_with_their_sequences(void **state)
{
    (void)state;
    struct grammar_vocab *vocab = open_vocab();
    struct story s = begin(2, 100, 32);
    submit_regex(&s, vocab, 1, "x(bc|yz)", 3, 10);
    grammar_vocab_free(vocab); /* the grammar does not need it */
    submit(&s, 2, 100, 3, 4);
    step_allowed(&s);
    expect("attach 0 keep 0, attach 1 keep 0, 0:0+3! 1:0+3! -> token 1 120, token 2 500, ");
    assert_int_equal(s.plan->n_mask_bytes, 125);
    assert_null(s.plan->part[1].mask);
    assert_int_equal(s.plan->part[0].n_logprobs, 1);
    assert_int_equal(s.plan->part[1].n_logprobs, 0);
    step_allowed(&s);
    expect("0:3+1! 1:3+1! -> token 1 98, token 2 500, ");
    step_allowed(&s); /* nothing can follow: the end, without a step for it */
    expect("0:4+1! 1:4+1! -> token 1 99, done 1 stop 3, token 2 500, ");
    step_allowed(&s);
    expect("1:5+1! -> token 2 500, done 2 length 4, ");
    assert_int_equal(s.plan->n_mask_bytes, 0);
    end(&s);
}

static void an_end_may_be_chosen_where_it_is_allowed(void **state)
{
    (void)state;
    struct grammar_vocab *vocab = open_vocab();
    struct story s = begin(1, 100, 32);
    submit_regex(&s, vocab, 1, "xy*", 3, 10);
    assert_true(plan(&s));
    assert_false(sampler_mask_allows(s.plan->part[0].mask, TINY_IM_END));
    result(&s, 'x');
    assert_true(plan(&s));
    assert_true(sampler_mask_allows(s.plan->part[0].mask, TINY_IM_END));
    assert_true(sampler_mask_allows(s.plan->part[0].mask, 'y'));
    result(&s, TINY_IM_END);
    expect("attach 0 keep 0, 0:0+3! -> token 1 120, 0:3+1! -> done 1 stop 1, ");
    submit_regex(&s, vocab, 2, "", 3, 10); /* only the end */
    assert_true(plan(&s));
    for (int32_t id = 0; id < 1000; id++)
        assert_int_equal(sampler_mask_allows(s.plan->part[0].mask, (uint32_t)id),
                         id == TINY_IM_END);
    result(&s, TINY_IM_END);
    expect("attach 0 keep 0, 0:0+3! -> done 2 stop 0, ");
    submit_regex(&s, vocab, 3, "x", 3, 10);
    scheduler_cancel(s.scheduler, 3, s.now_ns);
    expect("done 3 cancelled 0, ");
    grammar_vocab_free(vocab);
    end(&s);
}

/* Put back for want of memory, a sequence goes on where its grammar was. */
static void grammars_outlive_preemption(void **state)
{
    (void)state;
    struct grammar_vocab *vocab = open_vocab();
    struct scheduler_options o = options(2, 80, 32);
    o.n_blocks = 3;
    struct story s = begin_with(&o);
    struct scheduler_stats stats;
    submit(&s, 1, 100, 30, 20);
    submit_regex(&s, vocab, 2, "p{6}q{6}", 28, 40);
    while (step_allowed(&s))
        continue;
    scheduler_get_stats(s.scheduler, &stats);
    assert_true(stats.n_preempted > 0);
    uint32_t n_p = 0, n_q = 0;
    for (const char *at = buf_str(&trace); (at = strstr(at, "token 2 ")) != NULL; at += 8) {
        int token = atoi(at + 8);
        assert_true(token == (n_p < 6 ? 'p' : 'q'));
        n_p += token == 'p';
        n_q += token == 'q';
    }
    assert_int_equal(n_p, 6);
    assert_int_equal(n_q, 6);
    assert_non_null(strstr(buf_str(&trace), "done 2 stop 12"));
    grammar_vocab_free(vocab);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_request_to_its_end),
        cmocka_unit_test(grammars_go_with_their_sequences),
        cmocka_unit_test(an_end_may_be_chosen_where_it_is_allowed),
        cmocka_unit_test(grammars_outlive_preemption),
        cmocka_unit_test(parts_carry_the_hash_of_their_prefix),
        cmocka_unit_test(length_ends_generation),
        cmocka_unit_test(prompts_that_cannot_run),
        cmocka_unit_test(the_queue_is_bounded),
        cmocka_unit_test(decodes_share_steps_with_a_chunk),
        cmocka_unit_test(prompts_share_a_step),
        cmocka_unit_test(a_small_batch_starves_nobody),
        cmocka_unit_test(slow_ranks_get_short_chunks),
        cmocka_unit_test(cached_prefixes_are_used_again),
        cmocka_unit_test(the_same_prompt_twice_at_once),
        cmocka_unit_test(the_youngest_gives_way),
        cmocka_unit_test(a_cache_too_small_is_named),
        cmocka_unit_test(slots_are_emptied_for_others),
        cmocka_unit_test(two_stages_are_kept_busy),
        cmocka_unit_test(cancelling),
        cmocka_unit_test(cancelling_under_way),
        cmocka_unit_test(bad_options_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
