/* Guessing ahead: what the lookup finds, what is learned, and whether it pays, on a clock that
 * charges each step for its rows. */
#include "base/rng.h"
#include "runner/draft.h"
#include "runner/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- the lookup ---- */

static struct draft propose(const int32_t *tokens, uint32_t n_tokens, uint32_t n_max)
{
    struct draft d;
    void *l = draft_lookup.begin(NULL, 1000, NULL);
    assert_non_null(l);
    draft_lookup.propose(l, tokens, n_tokens, n_max, &d);
    draft_lookup.end(l);
    return d;
}

static void what_came_then_comes_again(void **state)
{
    (void)state;
    const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 2, 3, 4};
    struct draft d = propose(tokens, 11, 3);
    assert_int_equal(d.n_tokens, 3);
    assert_memory_equal(d.tokens, ((int32_t[]){5, 6, 7}), 3 * sizeof(int32_t));
    assert_int_equal(d.grade[0], 1); /* three tokens are the same */
    assert_int_equal(d.grade[1], 2);
    /* One token says nothing. */
    assert_int_equal(propose(tokens, 9, 3).n_tokens, 0);
    assert_int_equal(propose(tokens, 1, 3).n_tokens, 0);
    assert_int_equal(propose(tokens, 10, 3).n_tokens, 3);
}

static void the_longest_match_counts_then_the_latest(void **state)
{
    (void)state;
    /* 1 2 3 -> 9, 2 3 -> 8 (later) */
    const int32_t longest[] = {1, 2, 3, 9, 5, 2, 3, 8, 6, 1, 2, 3};
    assert_int_equal(propose(longest, 12, 1).tokens[0], 9);
    const int32_t latest[] = {2, 3, 9, 5, 2, 3, 8, 6, 2, 3};
    assert_int_equal(propose(latest, 10, 1).tokens[0], 8);
}

static void loops_go_on(void **state)
{
    (void)state;
    const int32_t tokens[] = {4, 5, 6, 4, 5, 6, 4, 5};
    struct draft d = propose(tokens, 8, 8);
    assert_int_equal(d.n_tokens, 8);
    assert_memory_equal(d.tokens, ((int32_t[]){6, 4, 5, 6, 4, 5, 6, 4}), 8 * sizeof(int32_t));
}

/* The index follows the text, whether tokens come one by one or many at once. */
static void the_index_is_kept_up(void **state)
{
    (void)state;
    int32_t tokens[600];
    void *one = draft_lookup.begin(NULL, 600, NULL);
    for (uint32_t i = 0; i < 600; i++)
        tokens[i] = (int32_t)(rng_u64(1, i, 1) % 12);
    for (uint32_t n = 1; n <= 600; n++) {
        struct draft a, b;
        draft_lookup.propose(one, tokens, n, 4, &a);
        b = propose(tokens, n, 4);
        assert_int_equal(a.n_tokens, b.n_tokens);
        assert_memory_equal(a.tokens, b.tokens, a.n_tokens * sizeof(*a.tokens));
        for (uint32_t i = 0; i < a.n_tokens; i++)
            assert_true(a.tokens[i] >= 0 && a.tokens[i] < 12 && a.grade[i] < DRAFT_GRADES);
    }
    draft_lookup.end(one);
}

/* ---- what is learned ---- */

static void rates_follow_what_happens(void **state)
{
    (void)state;
    struct draft_rates own = {0}, all = {0};
    double before = draft_rates_get(&own, &all, 2);
    for (int i = 0; i < 200; i++)
        draft_rates_learn(&all, 2, i % 4 == 0);
    assert_true(draft_rates_get(&own, &all, 2) < before);
    assert_true(draft_rates_get(&own, &all, 2) > 0.2 && draft_rates_get(&own, &all, 2) < 0.35);
    for (int i = 0; i < 30; i++)
        draft_rates_learn(&own, 2, true);
    assert_true(draft_rates_get(&own, &all, 2) > 0.85);
    assert_true(draft_rates_get(&own, &all, 3) > draft_rates_get(&own, &all, 0));
}

/* What a model was asked for counts by its grade, and as a whole; and less, the longer ago. */
static void rates_of_a_model_fade(void **state)
{
    (void)state;
    struct draft_rates own = {0}, all = {0};
    double before = draft_rates_get_model(&own, &all);
    for (int i = 0; i < 60; i++)
        draft_rates_learn(&own, DRAFT_MODEL_FIRST + 1, false);
    double bad = draft_rates_get_model(&own, &all);
    assert_true(bad < 0.1 && draft_rates_get(&own, &all, DRAFT_MODEL_FIRST + 1) < 0.1);
    assert_true(draft_rates_get(&own, &all, 1) > 0.4); /* the lookup's have nothing to do with it */
    for (int i = 0; i < 30; i++)
        draft_rates_expect(&own, 0.9);
    double better = draft_rates_get_model(&own, &all);
    assert_true(better > bad + 0.2);
    for (int i = 0; i < 300; i++)
        draft_rates_fade_model(&own, 0.97F);
    assert_true(draft_rates_get_model(&own, &all) > before - 0.01);
}

static void times_between_measurements_are_guessed(void **state)
{
    (void)state;
    struct step_times t = {0};
    assert_true(step_times_get(&t, 1) == 0);
    step_times_learn(&t, 1, 1000);
    assert_true(step_times_get(&t, 1) == 1000);
    assert_true(step_times_get(&t, 5) == 2000); /* the slope is assumed */
    step_times_learn(&t, 5, 1400);
    assert_true(step_times_get(&t, 3) == 1200);
    assert_true(step_times_get(&t, 9) == 1800);
    /* Everything gets slower: also what was not measured again. */
    for (int i = 0; i < 20; i++)
        step_times_learn(&t, 1, 1000);
    for (int i = 0; i < 70; i++)
        step_times_learn(&t, 1, 2000);
    assert_true(step_times_get(&t, 5) > 1700 && step_times_get(&t, 5) < 2800);
    assert_int_equal(step_times_longest(&t), 5);
    /* What was seen once, long ago, may have been chance. */
    for (int i = 0; i < 50; i++)
        step_times_learn(&t, 1, 2000);
    assert_int_equal(step_times_longest(&t), 1);
    assert_true(step_times_get(&t, 5) > 3500);
    step_times_learn(&t, STEP_TIMES_ROWS + 1, 1);
    step_times_learn(&t, 0, 1);
}

/* ---- does it pay ---- */

enum { N_PROMPT = 100, N_ANSWER = 512, N_SEQUENCES_MAX = 8, N_VOCAB = 1000 };

static int32_t text[N_SEQUENCES_MAX][N_PROMPT + N_ANSWER]; /* what the model will say */
static uint32_t n_got[N_SEQUENCES_MAX];

/* A model that is made up. For each token of the text it is sure or not, and right or not. */
static const struct fake {
    uint64_t token_ns, read_ns;
    uint32_t sure_percent, right_percent[2]; /* when it is not sure; when it is */
} *fake;
static uint64_t fake_ns;          /* that it has taken since the last look */
static uint32_t fake_wrong_until; /* this token of the text */

struct fake_sequence {
    uint32_t n_read;
};

static void *fake_begin(void *arg, uint32_t n_tokens_max, const struct sampling *sampling)
{
    (void)arg;
    (void)n_tokens_max;
    assert_non_null(sampling);
    return calloc(1, sizeof(struct fake_sequence));
}

static bool fake_cost(void *sequence, const int32_t *tokens, uint32_t n_tokens,
                      struct draft_cost *ret_cost)
{
    const struct fake_sequence *q = sequence;
    (void)tokens;
    ret_cost->n_unread = n_tokens - 1 > q->n_read ? n_tokens - 1 - q->n_read : 0;
    ret_cost->read_ns = (double)fake->read_ns;
    ret_cost->token_ns = (double)fake->token_ns;
    return true;
}

static void fake_take(struct draft *draft, uint64_t ns)
{
    draft->ns += ns;
    fake_ns += ns;
}

static void fake_propose(void *sequence, const int32_t *tokens, uint32_t n_tokens, uint32_t n_max,
                         struct draft *draft)
{
    enum { CHUNK = 64 };
    struct fake_sequence *q = sequence;
    uint32_t n_unread = n_tokens - 1 > q->n_read ? n_tokens - 1 - q->n_read : 0, which = 0;
    uint32_t n_now = n_unread < CHUNK ? n_unread : CHUNK;
    assert_int_equal(n_max, 1);
    q->n_read += n_now;
    fake_take(draft, n_now * fake->read_ns);
    if (n_now < n_unread)
        return;
    while (memcmp(text[which], tokens, 8 * sizeof(*tokens)) != 0)
        which++;
    uint32_t at = n_tokens + draft->n_tokens;
    bool is_sure = rng_u64(which, at, 8) % 100 < fake->sure_percent;
    bool is_right =
        at >= fake_wrong_until && rng_u64(which, at, 9) % 100 < fake->right_percent[is_sure];
    int32_t token = at < N_PROMPT + N_ANSWER ? text[which][at] : 0;
    fake_take(draft, fake->token_ns);
    draft->tokens[draft->n_tokens] = is_right ? token : (token + 1) % N_VOCAB;
    draft->grade[draft->n_tokens++] = DRAFT_MODEL_FIRST + (is_sure ? 5 : 1);
}

static const struct draft_source fake_source = {
    .begin = fake_begin, .propose = fake_propose, .cost = fake_cost, .end = free};

static void on_progress(void *arg, const struct message_progress *m)
{
    (void)arg;
    (void)m;
}

static void on_tokens(void *arg, const struct message_tokens *m)
{
    (void)arg;
    assert_int_equal(m->n_before, n_got[m->request]);
    for (uint32_t i = 0; i < m->n_tokens; i++)
        assert_int_equal(m->tokens[i], text[m->request][N_PROMPT + n_got[m->request]++]);
}

static void on_done(void *arg, const struct message_done *m)
{
    (void)arg;
    assert_int_equal(m->reason, FINISH_LENGTH);
    assert_int_equal(m->n_generated, N_ANSWER);
}

struct clock { /* a step takes so long, give or take a twentieth */
    uint64_t step_ns, row_ns;
    uint32_t n_in_flight;
    uint32_t n_tile; /* rows that cost as much as one; 0: 1 */
};

static uint64_t step_ns(const struct clock *c, uint32_t n_rows, uint64_t number)
{
    uint32_t n_tile = c->n_tile > 0 ? c->n_tile : 1;
    uint64_t ns = c->step_ns + c->row_ns * ((n_rows + n_tile - 1) / n_tile * n_tile);
    return ns * (95 + rng_u64(3, number, 1) % 10) / 100;
}

static void submit(struct scheduler *s, uint64_t request)
{
    static struct message_submit m;
    memset(&m, 0, sizeof(m));
    m.request = request;
    m.n_max = N_ANSWER;
    sampling_init(&m.sampling);
    m.n_tokens = N_PROMPT;
    m.tokens = text[request];
    assert_int_equal(scheduler_submit(s, &m, 0, NULL), 0);
    n_got[request] = 0;
}

/* Rows of a plan: what the text says comes next, as if each guess before it were right. */
static void give_rows(const struct plan *p, const uint32_t *request_of_slot, struct step_row *rows)
{
    for (uint32_t i = 0; i < p->n_parts; i++) {
        const struct plan_part *part = &p->part[i];
        uint32_t n_rows = part->output == STEP_OUTPUT_ALL    ? part->n_tokens
                          : part->output == STEP_OUTPUT_LAST ? 1
                                                             : 0;
        for (uint32_t k = 0; k < n_rows; k++) {
            uint32_t at = part->n_past + part->n_tokens - n_rows + k + 1;
            if (at < N_PROMPT + N_ANSWER)
                rows->token = text[request_of_slot[part->slot]][at];
            rows++;
        }
    }
}

/* Runs n sequences at once; returns the time of their decoding. */
static double run(uint32_t n, uint32_t n_draft, const struct clock *c,
                  struct scheduler_stats *ret_stats)
{
    struct scheduler_options o = {.n_slots = n,
                                  .n_ctx = 1024,
                                  .n_batch = 512,
                                  .n_vocab = N_VOCAB,
                                  .block_tokens = 64,
                                  .n_blocks = 16 * n,
                                  .n_attached_max = 1000,
                                  .n_in_flight = c->n_in_flight,
                                  .n_draft = n_draft,
                                  .draft_model = fake != NULL ? &fake_source : NULL};
    struct scheduler_output output = {
        .progress = on_progress, .tokens = on_tokens, .done = on_done};
    static struct step_row rows[8][LIMIT_BATCH_TOKENS];
    uint64_t end_ns[8] = {0}, now_ns = 1000, stage_ns = 0, first_ns = 0;
    uint32_t request_of_slot[LIMIT_SLOTS], first = 0, n_flights = 0;
    struct scheduler *s;
    struct plan *p = malloc(sizeof(*p));
    assert_non_null(p);
    assert_int_equal(scheduler_new(&o, &output, &s, NULL), 0);
    for (uint32_t i = 0; i < n; i++)
        submit(s, i);
    for (uint64_t number = 0;; number++) {
        while (scheduler_plan(s, now_ns, p)) {
            uint32_t at = (first + n_flights++) % 8;
            now_ns += fake_ns;
            fake_ns = 0;
            const int32_t *tokens = p->tokens;
            for (uint32_t i = 0; i < p->n_parts; tokens += p->part[i++].n_tokens)
                for (uint32_t k = 0; k < n && p->part[i].n_past == 0; k++)
                    if (memcmp(tokens, text[k], 8 * sizeof(*tokens)) == 0)
                        request_of_slot[p->part[i].slot] = k;
            give_rows(p, request_of_slot, rows[at]);
            /* The last stage begins when the stages before it have passed the step on. */
            uint64_t ns = step_ns(c, p->n_tokens, number);
            uint64_t begin_ns = now_ns + (c->n_in_flight - 1) * ns;
            stage_ns = (begin_ns > stage_ns ? begin_ns : stage_ns) + ns;
            end_ns[at] = stage_ns;
        }
        if (n_flights == 0)
            break;
        now_ns = end_ns[first];
        scheduler_result(s, rows[first], NULL, now_ns);
        first = (first + 1) % 8;
        n_flights--;
        if (first_ns == 0 && n_got[n - 1] > 0)
            first_ns = now_ns;
    }
    for (uint32_t i = 0; i < n; i++)
        assert_int_equal(n_got[i], N_ANSWER);
    scheduler_get_stats(s, ret_stats);
    scheduler_free(s);
    free(p);
    return (double)(now_ns - first_ns);
}

/* Time without guesses over time with them. */
static double gain(const char *what, uint32_t n, const struct clock *c)
{
    struct scheduler_stats with, without;
    double ratio = run(n, 0, c, &without) / run(n, 8, c, &with);
    assert_int_equal(without.n_drafted, 0);
    print_message("%s, %u at once, %u in flight, a row costs %u %%: %.2f times as fast; %llu of "
                  "%llu guesses right\n",
                  what, n, c->n_in_flight, (unsigned)(100 * c->row_ns / c->step_ns), ratio,
                  (unsigned long long)with.n_accepted, (unsigned long long)with.n_drafted);
    return ratio;
}

/* Text that repeats: passages of 20 to 60 tokens from the prompt, with a few new tokens between. */
static void write_quotes(void)
{
    for (uint32_t q = 0; q < N_SEQUENCES_MAX; q++) {
        uint32_t i = 0;
        for (; i < N_PROMPT; i++)
            text[q][i] = (int32_t)(rng_u64(q, i, 1) % N_VOCAB);
        while (i < N_PROMPT + N_ANSWER) {
            uint32_t from = (uint32_t)(rng_u64(q, i, 2) % 40), n = 20 + from;
            for (uint32_t k = 0; k < 3 && i < N_PROMPT + N_ANSWER; k++, i++)
                text[q][i] = (int32_t)(rng_u64(q, i, 3) % N_VOCAB);
            for (uint32_t k = 0; k < n && i < N_PROMPT + N_ANSWER; k++, i++)
                text[q][i] = text[q][from + k];
        }
    }
}

/* Text of n_words words that come in any order: with few of them, pairs come again and again, and
 * say nothing about what follows. */
static void write_noise(uint32_t n_words)
{
    for (uint32_t q = 0; q < N_SEQUENCES_MAX; q++)
        for (uint32_t i = 0; i < N_PROMPT + N_ANSWER; i++)
            text[q][i] = (int32_t)(rng_u64(q + 50, i, 4) % n_words);
}

static const struct clock clocks[] = {
    {.step_ns = 10000000, .row_ns = 500000, .n_in_flight = 1},  /* memory-bound */
    {.step_ns = 10000000, .row_ns = 2000000, .n_in_flight = 1}, /* a slow processor */
    {.step_ns = 1000000, .row_ns = 9000000, .n_in_flight = 1},  /* where nothing can be won */
    {.step_ns = 10000000, .row_ns = 500000, .n_in_flight = 2},
    {.step_ns = 2000000, .row_ns = 2000000, .n_in_flight = 1, .n_tile = 4}, /* four at a time */
};

/* The noise is such that lookup finds nothing in it. */
static double model_gain(const char *what, uint32_t n, const struct clock *c, const struct fake *f)
{
    fake = f;
    print_message("[a guess of the model costs %u %%] ",
                  (unsigned)(100 * f->token_ns / c->step_ns));
    double ratio = gain(what, n, c);
    fake = NULL;
    return ratio;
}

static void text_that_repeats_is_faster(void **state)
{
    (void)state;
    write_quotes();
    assert_true(gain("quotes", 1, &clocks[0]) >= 1.8);
    assert_true(gain("quotes", 1, &clocks[1]) >= 1.3);
    assert_true(gain("quotes", 1, &clocks[2]) >= 0.97);
    assert_true(gain("quotes", 1, &clocks[3]) >= 1.8);
    assert_true(gain("quotes", 8, &clocks[0]) >= 1.3);
    assert_true(gain("quotes", 8, &clocks[2]) >= 0.97);
    assert_true(gain("quotes", 4, &clocks[3]) >= 1.3);
    assert_true(gain("quotes", 1, &clocks[4]) >= 1.8);
}

/* Bad experience does not last: noise first, where guesses are wrong, then quotes. */
static void quotes_after_noise_are_found(void **state)
{
    (void)state;
    write_quotes();
    for (uint32_t i = N_PROMPT; i < N_PROMPT + N_ANSWER / 2; i++)
        text[0][i] = (int32_t)(rng_u64(9, i, 4) % 20);
    double ratio = gain("noise, then quotes", 1, &clocks[0]);
    /* 3.6 times in one half of the text is 1.57 in all. */
    assert_true(ratio >= 1.45);
    assert_true(gain("noise, then quotes", 1, &clocks[1]) >= 1.3);
}

static void text_that_does_not_repeat_is_not_slower(void **state)
{
    (void)state;
    static const uint32_t n_words[] = {N_VOCAB, 100, 20, 8};
    for (size_t k = 0; k < 4; k++)
        for (size_t i = 0; i < 5; i++) {
            write_noise(n_words[k]);
            assert_true(gain("noise", 1, &clocks[i]) >= 0.97);
            assert_true(gain("noise", 4, &clocks[i]) >= 0.97);
        }
}

enum { MS = 1000000 };

static void a_good_model_makes_it_faster(void **state)
{
    (void)state;
    static const struct fake right = {MS, MS / 10, 100, {100, 100}},
                             good = {MS, MS / 10, 70, {30, 95}},
                             slow = {4 * MS, MS / 4, 70, {30, 95}};
    write_noise(N_VOCAB);
    assert_true(model_gain("right", 1, &clocks[0], &right) >= 2.5);
    assert_true(model_gain("right", 1, &clocks[1], &right) >= 1.8);
    assert_true(model_gain("right", 1, &clocks[3], &right) >= 2);
    assert_true(model_gain("right", 1, &clocks[4], &right) >= 1.2);
    assert_true(model_gain("right", 4, &clocks[0], &right) >= 1.2);
    assert_true(model_gain("good", 1, &clocks[0], &good) >= 1.4);
    assert_true(model_gain("good, slow", 1, &clocks[0], &slow) >= 1.05);
}

/* However a model guesses, and whatever it takes: most that may be lost is a hundredth, and the
 * six steps that it gets to show what it is worth. */
static void a_bad_model_costs_little(void **state)
{
    (void)state;
    static const uint32_t right_percent[][3] = {
        {0, 0, 0}, {30, 10, 20}, {100, 0, 0}, {100, 20, 30}};
    static const uint64_t token_ns[] = {MS / 5, MS, 3 * MS, 10 * MS, 50 * MS};
    write_noise(N_VOCAB);
    for (size_t k = 0; k < 4; k++)
        for (size_t t = 0; t < 5; t++)
            for (size_t i = 0; i < 5; i++) {
                const struct fake f = {token_ns[t],
                                       token_ns[t] / 5,
                                       right_percent[k][0],
                                       {right_percent[k][1], right_percent[k][2]}};
                assert_true(model_gain("bad", 1, &clocks[i], &f) >= 0.975);
                if (t % 2 == 0)
                    assert_true(model_gain("bad", 4, &clocks[i], &f) >= 0.975);
            }
}

/* A model as slow as what it guesses for is of no use, however good it is. */
static void a_slow_model_is_left_alone(void **state)
{
    (void)state;
    static const struct fake twin = {10 * MS, MS, 100, {100, 100}};
    struct scheduler_stats stats;
    write_noise(N_VOCAB);
    assert_true(model_gain("twin", 1, &clocks[0], &twin) >= 0.98);
    fake = &twin;
    run(1, 8, &clocks[0], &stats);
    fake = NULL;
    assert_true(stats.n_drafted < 20);
}

/* Reading is part of the price: for a long prompt a model that is not known yet must be cheap. */
static void reading_is_paid_for(void **state)
{
    (void)state;
    static const struct fake bad = {MS, MS / 2, 50, {5, 10}}, right = {MS, MS / 2, 100, {100, 100}},
                             late = {MS, MS, 100, {100, 100}}, never = {MS, 9 * MS, 0, {0, 0}};
    write_noise(N_VOCAB);
    assert_true(model_gain("bad, slow to read", 1, &clocks[0], &bad) >= 0.975);
    assert_true(model_gain("right, slow to read", 1, &clocks[0], &right) >= 2);
    assert_true(model_gain("right, slower to read", 1, &clocks[0], &late) >= 0.99);
    assert_true(model_gain("bad, very slow to read", 1, &clocks[0], &never) >= 0.99);
}

/* What the text tells is taken from there, the rest from the model. */
static void both_sources_are_used(void **state)
{
    (void)state;
    static const struct fake good = {MS, MS / 10, 60, {30, 95}};
    write_quotes();
    double lookup = gain("quotes", 1, &clocks[0]);
    double both = model_gain("quotes and a model", 1, &clocks[0], &good);
    assert_true(both >= 0.98 * lookup);
    for (uint32_t i = N_PROMPT; i < N_PROMPT + N_ANSWER / 2; i++) /* half of it is news */
        text[0][i] = (int32_t)(rng_u64(9, i, 4) % N_VOCAB);
    lookup = gain("half quotes", 1, &clocks[0]);
    both = model_gain("half quotes and a model", 1, &clocks[0], &good);
    assert_true(both >= 1.1 * lookup);
}

/* Where the model has become good, after it was bad, it is asked again. */
static void a_model_gets_another_chance(void **state)
{
    (void)state;
    static const struct fake half = {MS, MS / 10, 100, {0, 100}};
    write_noise(N_VOCAB);
    fake_wrong_until = N_PROMPT + N_ANSWER / 3;
    assert_true(model_gain("bad, then right", 1, &clocks[0], &half) >= 1.3);
    fake_wrong_until = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_came_then_comes_again),
        cmocka_unit_test(the_longest_match_counts_then_the_latest),
        cmocka_unit_test(loops_go_on),
        cmocka_unit_test(the_index_is_kept_up),
        cmocka_unit_test(rates_follow_what_happens),
        cmocka_unit_test(rates_of_a_model_fade),
        cmocka_unit_test(times_between_measurements_are_guessed),
        cmocka_unit_test(text_that_repeats_is_faster),
        cmocka_unit_test(quotes_after_noise_are_found),
        cmocka_unit_test(text_that_does_not_repeat_is_not_slower),
        cmocka_unit_test(a_good_model_makes_it_faster),
        cmocka_unit_test(a_bad_model_costs_little),
        cmocka_unit_test(a_slow_model_is_left_alone),
        cmocka_unit_test(reading_is_paid_for),
        cmocka_unit_test(both_sources_are_used),
        cmocka_unit_test(a_model_gets_another_chance),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
