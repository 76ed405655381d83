/* The head under random load: requests, cancellations, scarce memory, several steps under way,
 * drafts. The plans are carried out literally by an engine that computes nothing but remembers
 * which beginning each cell of its cache belongs to, and a model whose next token is a hash of all
 * tokens before it. Whatever the schedule, every request must end once, with the model's tokens. */
#include "base/rng.h"
#include "runner/scheduler.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    N_VOCAB = 97,
    END_TOKEN = 5,
    N_REQUESTS = 24,
    CTX_MAX = 256,
    BLOCKS_MAX = 512,
    ROWS_MAX = LIMIT_BATCH_TOKENS,
};

static uint64_t seed, drawn;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(rng_u64(seed, drawn++, 7) % below);
}

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            print_error("seed %llu: ", (unsigned long long)seed);                                  \
            fail_msg(__VA_ARGS__);                                                                 \
        }                                                                                          \
    } while (0)

/* ---- the model ---- */

static bool repeats; /* the next token depends on the last two only, so that text comes again */

static int32_t next_token(const int32_t *tokens, uint32_t n)
{
    uint64_t hash = repeats && n > 2 ? plan_hash(1, tokens + n - 2, 2) : plan_hash(2, tokens, n);
    return (int32_t)(hash >> 20) & INT32_MAX;
}

static int32_t choose(const int32_t *tokens, uint32_t n)
{
    return next_token(tokens, n) % (repeats ? 12 : N_VOCAB);
}

/* ---- the engine ---- */

struct block {
    uint64_t slots;
    uint32_t n_tokens;
    int32_t *tokens;
    uint64_t *cells; /* hash of all tokens up to this one */
};

struct view {
    uint32_t blocks[CTX_MAX];
    uint32_t n_blocks, n_tokens;
    int32_t tokens[CTX_MAX];
};

struct engine_fake {
    struct scheduler_options o;
    struct block block[BLOCKS_MAX];
    struct view view[LIMIT_SLOTS];
    struct step_row rows[8][ROWS_MAX]; /* of the steps under way, a ring */
    uint32_t rows_first, n_rows_queued;
} *engine;

static uint32_t n_attached(void)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < engine->o.n_slots; i++)
        n += engine->view[i].n_blocks;
    CHECK(n <= engine->o.n_attached_max, "%u blocks in slots, at most %u", n,
          engine->o.n_attached_max);
    return n;
}

static void give_up(uint32_t slot)
{
    struct view *v = &engine->view[slot];
    for (uint32_t i = 0; i < v->n_blocks; i++)
        engine->block[v->blocks[i]].slots &= ~(UINT64_C(1) << slot);
    v->n_blocks = v->n_tokens = 0;
}

/* Slots that still have a block that will be written are over. */
static void give_up_others(uint32_t slot, uint32_t block)
{
    for (uint32_t i = 0; i < engine->o.n_slots; i++)
        if (i != slot && engine->block[block].slots >> i & 1)
            give_up(i);
}

static void add_blocks(uint32_t slot, const uint32_t *blocks, uint32_t n)
{
    struct view *v = &engine->view[slot];
    for (uint32_t i = 0; i < n; i++) {
        CHECK(blocks[i] < engine->o.n_blocks, "block %u", blocks[i]);
        struct block *b = &engine->block[blocks[i]];
        CHECK(!(b->slots >> slot & 1), "block %u twice in slot %u", blocks[i], slot);
        b->slots |= UINT64_C(1) << slot;
        v->blocks[v->n_blocks++] = blocks[i];
    }
    n_attached();
}

static void attach(const struct plan_attach *a, const uint32_t *blocks)
{
    uint32_t n_block = engine->o.block_tokens;
    struct view *v = &engine->view[a->slot];
    CHECK(a->slot < engine->o.n_slots, "slot %u", a->slot);
    CHECK(a->n_keep <= a->n_blocks * n_block, "keeps %u in %u blocks", a->n_keep, a->n_blocks);
    give_up(a->slot);
    add_blocks(a->slot, blocks, a->n_blocks);
    for (uint32_t i = a->n_keep / n_block; i < a->n_blocks; i++)
        give_up_others(a->slot, blocks[i]);
    for (uint32_t i = 0; i < a->n_keep; i++) {
        const struct block *b = &engine->block[blocks[i / n_block]];
        CHECK(i % n_block < b->n_tokens, "block %u holds %u tokens", blocks[i / n_block],
              b->n_tokens);
        v->tokens[i] = b->tokens[i % n_block];
    }
    v->n_tokens = a->n_keep;
}

static void copy(const struct plan_copy *c)
{
    struct block *from = &engine->block[c->from], *to = &engine->block[c->to];
    CHECK(c->from < engine->o.n_blocks && c->to < engine->o.n_blocks && c->from != c->to, "copy");
    CHECK(c->n_tokens > 0 && c->n_tokens <= from->n_tokens, "copies %u of %u tokens", c->n_tokens,
          from->n_tokens);
    give_up_others(UINT32_MAX, c->to);
    memcpy(to->tokens, from->tokens, c->n_tokens * sizeof(*to->tokens));
    memcpy(to->cells, from->cells, c->n_tokens * sizeof(*to->cells));
    to->n_tokens = c->n_tokens;
}

static void append(uint32_t slot, int32_t token)
{
    struct view *v = &engine->view[slot];
    uint32_t n_block = engine->o.block_tokens, at = v->n_tokens % n_block;
    CHECK(v->n_tokens < v->n_blocks * n_block, "slot %u has no block for token %u", slot,
          v->n_tokens);
    struct block *b = &engine->block[v->blocks[v->n_tokens / n_block]];
    CHECK(b->slots == UINT64_C(1) << slot, "slot %u writes into a shared block", slot);
    v->tokens[v->n_tokens++] = token;
    b->tokens[at] = token;
    b->cells[at] = plan_hash(PLAN_HASH_EMPTY, v->tokens, v->n_tokens);
    b->n_tokens = at + 1;
}

/* Every cell of the slot belongs to its beginning. */
static void check_cells(const struct plan_part *part)
{
    const struct view *v = &engine->view[part->slot];
    uint32_t n_block = engine->o.block_tokens;
    uint64_t hash = PLAN_HASH_EMPTY;
    CHECK(part->n_past <= v->n_tokens, "slot %u holds %u tokens, not %u", part->slot, v->n_tokens,
          part->n_past);
    for (uint32_t i = 0; i < part->n_past; i++) {
        hash = plan_hash(hash, &v->tokens[i], 1);
        CHECK(engine->block[v->blocks[i / n_block]].cells[i % n_block] == hash,
              "slot %u: cell %u is of another sequence", part->slot, i);
    }
    CHECK(hash == part->prefix_hash, "slot %u lost its place", part->slot);
}

static void carry_out(const struct plan *p)
{
    const uint32_t *blocks = p->blocks;
    const int32_t *token = p->tokens;
    struct step_row *row =
        engine->rows[(engine->rows_first + engine->n_rows_queued++) % engine->o.n_in_flight];
    for (uint32_t i = 0; i < p->n_copies; i++)
        copy(&p->copy[i]);
    for (uint32_t i = 0; i < p->n_attaches; i++) {
        attach(&p->attach[i], blocks);
        blocks += p->attach[i].n_blocks;
    }
    for (uint32_t i = 0; i < p->n_parts; i++) {
        add_blocks(p->part[i].slot, blocks, p->part[i].n_new_blocks);
        for (uint32_t k = 0; k < p->part[i].n_new_blocks; k++)
            give_up_others(p->part[i].slot, blocks[k]);
        blocks += p->part[i].n_new_blocks;
    }
    CHECK(blocks == p->blocks + p->n_blocks, "blocks are left over");
    for (uint32_t i = 0; i < p->n_parts; i++) {
        const struct plan_part *part = &p->part[i];
        struct view *v = &engine->view[part->slot];
        check_cells(part);
        v->n_tokens = part->n_past;
        for (uint32_t k = 0; k < part->n_tokens; k++) {
            append(part->slot, *token++);
            if (part->output == STEP_OUTPUT_ALL ||
                (part->output == STEP_OUTPUT_LAST && k + 1 == part->n_tokens))
                *row++ = (struct step_row){.token = choose(v->tokens, v->n_tokens)};
        }
    }
    CHECK(token == p->tokens + p->n_tokens, "tokens are left over");
}

static void open_engine(const struct scheduler_options *o)
{
    engine = calloc(1, sizeof(*engine));
    assert_non_null(engine);
    engine->o = *o;
    for (uint32_t i = 0; i < o->n_blocks; i++) {
        engine->block[i].tokens = calloc(o->block_tokens, sizeof(int32_t));
        engine->block[i].cells = calloc(o->block_tokens, sizeof(uint64_t));
        assert_true(engine->block[i].tokens != NULL && engine->block[i].cells != NULL);
    }
}

static void close_engine(void)
{
    for (uint32_t i = 0; i < engine->o.n_blocks; i++) {
        free(engine->block[i].tokens);
        free(engine->block[i].cells);
    }
    free(engine);
}

/* ---- the people ---- */

struct client {
    int32_t prompt[CTX_MAX], answer[CTX_MAX];
    uint32_t n_prompt, n_max, n_answer;
    bool is_done, is_cancelled, is_refused;
} client[N_REQUESTS];

static void on_progress(void *arg, const struct message_progress *m)
{
    (void)arg;
    CHECK(!client[m->request].is_done && m->n_done <= m->n_prompt, "progress");
}

static void on_tokens(void *arg, const struct message_tokens *m)
{
    (void)arg;
    struct client *c = &client[m->request];
    CHECK(!c->is_done && m->n_before == c->n_answer, "request %u: %u tokens before, not %u",
          (unsigned)m->request, c->n_answer, m->n_before);
    memcpy(c->answer + c->n_answer, m->tokens, m->n_tokens * sizeof(*m->tokens));
    c->n_answer += m->n_tokens;
}

/* What the model says to this prompt. */
static uint32_t answer_of(const struct client *c, int32_t *text, enum finish_reason *ret_reason)
{
    int32_t all[2 * CTX_MAX];
    uint32_t n = c->n_prompt, n_room = engine->o.n_ctx;
    uint32_t n_cache = engine->o.n_blocks < engine->o.n_attached_max ? engine->o.n_blocks
                                                                     : engine->o.n_attached_max;
    if (n_room > n_cache * engine->o.block_tokens)
        n_room = n_cache * engine->o.block_tokens;
    memcpy(all, c->prompt, n * sizeof(*all));
    *ret_reason = FINISH_LENGTH;
    while (n < n_room && n - c->n_prompt < c->n_max) {
        all[n] = choose(all, n);
        if (all[n] == END_TOKEN) {
            *ret_reason = FINISH_STOP;
            break;
        }
        text[n - c->n_prompt] = all[n];
        n++;
    }
    return n - c->n_prompt;
}

static void on_done(void *arg, const struct message_done *m)
{
    (void)arg;
    struct client *c = &client[m->request];
    int32_t text[CTX_MAX];
    enum finish_reason reason;
    CHECK(!c->is_done, "request %u ends twice", (unsigned)m->request);
    c->is_done = true;
    if (c->is_refused) {
        CHECK(m->reason == FINISH_ERROR && m->code == E_LIMIT, "too long, but not refused");
        return;
    }
    uint32_t n = answer_of(c, text, &reason);
    CHECK(m->n_generated == c->n_answer && m->n_prompt == c->n_prompt, "usage");
    CHECK(m->n_cached < m->n_prompt, "cached %u of %u", m->n_cached, m->n_prompt);
    CHECK(memcmp(text, c->answer, c->n_answer * sizeof(*text)) == 0,
          "request %u: not the model's tokens", (unsigned)m->request);
    if (c->is_cancelled)
        CHECK(m->reason == FINISH_CANCELLED && c->n_answer <= n, "cancelled");
    else
        CHECK(m->reason == reason && c->n_answer == n, "request %u: %u tokens, not %u",
              (unsigned)m->request, c->n_answer, n);
}

/* Half of the prompts begin like an earlier one, some with its answer. */
static void draw_prompt(struct client *c, uint32_t index, uint32_t n_most)
{
    memset(c, 0, sizeof(*c));
    c->n_prompt = 1 + draw(n_most);
    c->n_max = 1 + draw(40);
    for (uint32_t i = 0; i < c->n_prompt; i++)
        c->prompt[i] = (int32_t)draw(N_VOCAB);
    if (index > 0 && draw(2) == 0) {
        const struct client *old = &client[draw(index)];
        uint32_t n = 1 + draw(old->n_prompt);
        if (n > c->n_prompt || draw(3) == 0)
            n = c->n_prompt < old->n_prompt ? c->n_prompt : old->n_prompt;
        memcpy(c->prompt, old->prompt, n * sizeof(*c->prompt));
        for (uint32_t i = 0; n == old->n_prompt && i < old->n_answer && n + i < c->n_prompt; i++)
            c->prompt[n + i] = old->answer[i];
    }
}

static void submit(struct scheduler *s, uint32_t index, uint64_t now_ns)
{
    static struct message_submit m;
    struct client *c = &client[index];
    uint32_t n_cache = engine->o.n_blocks < engine->o.n_attached_max ? engine->o.n_blocks
                                                                     : engine->o.n_attached_max;
    uint32_t n_room = n_cache * engine->o.block_tokens;
    draw_prompt(c, index, engine->o.n_ctx);
    c->is_refused =
        c->n_prompt + 1 > engine->o.n_ctx || (n_room < engine->o.n_ctx && c->n_prompt + 1 > n_room);
    memset(&m, 0, sizeof(m));
    m.request = index;
    m.n_max = c->n_max;
    sampling_init(&m.sampling);
    m.n_end = 1;
    m.end[0] = END_TOKEN;
    m.n_tokens = c->n_prompt;
    m.tokens = c->prompt;
    assert_int_equal(scheduler_submit(s, &m, now_ns, NULL), 0);
}

static void cancel_one(struct scheduler *s, uint32_t n, uint64_t now_ns)
{
    if (n == 0)
        return;
    uint32_t i = draw(n);
    if (!client[i].is_done)
        client[i].is_cancelled = true;
    scheduler_cancel(s, i, now_ns);
    CHECK(client[i].is_done, "a cancelled request goes on");
}

/* ---- a draft model that is as capricious as the rest ---- */

static void *model_begin(void *arg, uint32_t n_tokens_max, const struct sampling *sampling)
{
    (void)arg;
    CHECK(n_tokens_max <= CTX_MAX && sampling != NULL, "a sequence of %u tokens", n_tokens_max);
    return draw(10) > 0 ? calloc(1, 1) : NULL;
}

static bool model_cost(void *sequence, const int32_t *tokens, uint32_t n_tokens,
                       struct draft_cost *ret_cost)
{
    (void)tokens;
    CHECK(sequence != NULL && n_tokens > 0, "nothing to guess for");
    ret_cost->n_unread = draw(2) * draw(n_tokens);
    ret_cost->read_ns = draw(100);
    ret_cost->token_ns = draw(5000);
    return draw(5) > 0;
}

static void model_propose(void *sequence, const int32_t *tokens, uint32_t n_tokens, uint32_t n_max,
                          struct draft *draft)
{
    int32_t all[CTX_MAX + LIMIT_DRAFT_TOKENS];
    CHECK(sequence != NULL && n_max == 1 && draft->n_tokens < LIMIT_DRAFT_TOKENS, "%u guesses",
          n_max);
    draft->ns += draw(20000);
    if (draw(10) == 0)
        return;
    memcpy(all, tokens, n_tokens * sizeof(*all));
    memcpy(all + n_tokens, draft->tokens, draft->n_tokens * sizeof(*all));
    draft->tokens[draft->n_tokens] =
        draw(3) > 0 ? choose(all, n_tokens + draft->n_tokens) : (int32_t)draw(N_VOCAB);
    draft->grade[draft->n_tokens++] = (uint8_t)(DRAFT_MODEL_FIRST + draw(DRAFT_MODEL_GRADES));
}

static const struct draft_source model = {
    .begin = model_begin, .propose = model_propose, .cost = model_cost, .end = free};

static void draw_options(struct scheduler_options *o)
{
    static const uint32_t block_tokens[] = {1, 4, 16, 32, 64};
    memset(o, 0, sizeof(*o));
    o->n_slots = 1 + draw(8);
    o->n_ctx = 20 + draw(CTX_MAX - 20);
    o->n_batch = 1 + draw(draw(3) == 0 ? 8 : 300);
    o->n_vocab = N_VOCAB;
    o->block_tokens = block_tokens[draw(5)];
    uint32_t n_most = (o->n_ctx + o->block_tokens - 1) / o->block_tokens;
    o->n_blocks = n_most * (1 + draw(3)) / (1 + draw(2)) + 2;
    o->n_attached_max = draw(3) == 0 ? n_most + draw(2 * n_most) : 1000000;
    if (o->n_blocks > BLOCKS_MAX)
        o->n_blocks = BLOCKS_MAX;
    o->n_in_flight = 1 + draw(4);
    o->n_chunk = draw(2) == 0 ? 0 : 1 + draw(64);
    o->n_draft = draw(2) == 0 ? 0 : 1 + draw(LIMIT_DRAFT_TOKENS);
    o->draft_model = draw(3) == 0 ? &model : NULL;
    o->step_ns_max = draw(3) == 0 ? 1 + draw(100000) : 0;
}

static void check_blocks(struct scheduler *s, const struct scheduler_options *o, bool is_over)
{
    struct scheduler_stats stats;
    scheduler_get_stats(s, &stats);
    CHECK(stats.n_blocks_used + stats.n_blocks_kept + stats.n_blocks_free == o->n_blocks,
          "%u + %u + %u blocks of %u", stats.n_blocks_used, stats.n_blocks_kept,
          stats.n_blocks_free, o->n_blocks);
    CHECK(stats.n_block_tokens_used <= stats.n_blocks_used * o->block_tokens, "tokens in blocks");
    CHECK(stats.n_accepted <= stats.n_drafted, "accepted more than drafted");
    if (is_over)
        CHECK(stats.n_blocks_used == 0, "%u blocks are lost", stats.n_blocks_used);
}

static struct scheduler_stats total;

static void run_one(void)
{
    struct scheduler_options o;
    struct scheduler_output output = {
        .progress = on_progress, .tokens = on_tokens, .done = on_done};
    struct scheduler *s;
    struct scheduler_stats stats;
    struct plan *p = calloc(1, sizeof(*p));
    uint64_t now_ns = 1000;
    uint32_t n_submitted = 0, n_idle = 0;
    drawn = 0;
    repeats = seed % 3 == 0;
    draw_options(&o);
    assert_non_null(p);
    assert_int_equal(scheduler_new(&o, &output, &s, NULL), 0);
    open_engine(&o);
    while (n_idle < 2) {
        if (n_submitted < N_REQUESTS && draw(3) == 0)
            submit(s, n_submitted++, now_ns);
        if (draw(40) == 0)
            cancel_one(s, n_submitted, now_ns);
        bool is_planned = draw(4) > 0 && scheduler_plan(s, now_ns, p);
        if (is_planned) {
            CHECK(p->n_tokens <= o.n_batch, "%u tokens in a step", p->n_tokens);
            carry_out(p);
        } else if (scheduler_n_in_flight(s) > 0) {
            /* Time is as capricious as the rest, or such that guesses pay. */
            now_ns += repeats ? 50000 + 1000 * p->n_tokens : 1 + draw(100000);
            scheduler_result(s, engine->rows[engine->rows_first], NULL, now_ns);
            engine->rows_first = (engine->rows_first + 1) % o.n_in_flight;
            engine->n_rows_queued--;
        } else if (scheduler_plan(s, now_ns, p)) {
            carry_out(p);
        } else {
            CHECK(scheduler_n_running(s) == 0 && scheduler_n_queued(s) == 0,
                  "%u run, %u wait, and there is nothing to do", scheduler_n_running(s),
                  scheduler_n_queued(s));
            n_idle += n_submitted == N_REQUESTS;
        }
        check_blocks(s, &o, false);
    }
    check_blocks(s, &o, true);
    for (uint32_t i = 0; i < N_REQUESTS; i++)
        CHECK(client[i].is_done, "request %u has no end", i);
    scheduler_get_stats(s, &stats);
    total.n_preempted += stats.n_preempted;
    total.n_evicted += stats.n_evicted;
    total.n_cached_tokens += stats.n_cached_tokens;
    total.n_drafted += stats.n_drafted;
    total.n_accepted += stats.n_accepted;
    scheduler_free(s);
    close_engine();
    free(p);
}

static void any_load_gives_the_tokens_of_the_model(void **state)
{
    (void)state;
    const char *only = getenv("SHOAL_TEST_SEED");
    uint64_t first = only != NULL ? strtoull(only, NULL, 10) : 0, n = only != NULL ? 1 : 400;
    const char *count = getenv("SHOAL_TEST_SEEDS");
    if (count != NULL)
        n = strtoull(count, NULL, 10);
    for (seed = first; seed < first + n; seed++)
        run_one();
    if (n < 400)
        return;
    /* The rules that are hard to reach were reached. */
    assert_true(total.n_preempted > 100);
    assert_true(total.n_evicted > 1000);
    assert_true(total.n_cached_tokens > 10000);
    assert_true(total.n_drafted > 1000 && total.n_accepted > total.n_drafted / 4);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(any_load_gives_the_tokens_of_the_model)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
