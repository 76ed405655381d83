#include "runner/scheduler_internal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    PIPELINE_CHUNKS = 8,     /* chunks of a prompt for each stage, so that few wait at the ends */
    PIPELINE_CHUNK_MIN = 64, /* shorter ones cost more than they save */
    PIPELINE_CHUNK_STEP = 32,
};

/* ---- admission ---- */

static bool grow_tokens(struct request *r)
{
    size_t n = (size_t)r->submit.n_tokens + r->n_max;
    int32_t *tokens = realloc(r->tokens, n * sizeof(*tokens));
    if (tokens == NULL)
        return false;
    r->tokens = tokens;
    r->submit.tokens = tokens;
    return true;
}

/* Requests run in the order in which they came, as many as there are slots. */
static void admit(struct scheduler *s, uint64_t now_ns)
{
    while (s->queue != NULL && s->n_running < s->options.n_slots) {
        struct request *r = s->queue;
        s->queue = r->next;
        if (s->queue == NULL)
            s->queue_end = &s->queue;
        r->next = NULL;
        s->n_queued--;
        if (!grow_tokens(r)) {
            struct error e = {0};
            error_set(&e, E_NOMEM, "no memory for %u tokens", r->submit.n_tokens + r->n_max);
            scheduler_end(s, r, FINISH_ERROR, &e, now_ns);
            continue;
        }
        if (r->admitted_ns == 0)
            r->admitted_ns = now_ns;
        uint32_t at = s->n_running++;
        for (; at > 0 && s->running[at - 1]->order > r->order; at--)
            s->running[at] = s->running[at - 1];
        s->running[at] = r;
    }
}

static bool is_prompt(const struct request *r)
{
    return scheduler_has_begun(r) && r->n_past < r->n_target && !scheduler_is_decoding(r);
}

/* Of n tokens that another sequence has too, those that are worth taking from it: whole blocks, and
 * a part of one if it is long enough to be copied. */
static uint32_t n_usable(const struct scheduler *s, uint32_t n)
{
    uint32_t n_tail = n % s->options.block_tokens;
    return n_tail < SCHEDULER_TAIL_MIN ? n - n_tail : n;
}

/* Whether another sequence is about to compute what this one begins with too: then it waits, and
 * takes it from there. */
static bool has_forerunner(const struct scheduler *s, const struct request *r)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct request *q = s->running[i];
        if (!is_prompt(q))
            continue;
        uint32_t n_max = r->n_tokens - 1 < q->n_target ? r->n_tokens - 1 : q->n_target, n = 0;
        while (n < n_max && r->tokens[n] == q->tokens[n])
            n++;
        if (n > q->n_past && n_usable(s, n) > n_usable(s, q->n_past))
            return true;
    }
    return false;
}

/* Admitted sequences get their blocks in the order of their age, so that a long prompt is not
 * overtaken for ever by those that need less memory. */
static void begin_waiting(struct scheduler *s)
{
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct request *r = s->running[i];
        if (!scheduler_has_begun(r) && !has_forerunner(s, r) && !scheduler_begin(s, r))
            return;
    }
}

/* ---- parts ---- */

static void add_part(struct scheduler *s, struct plan *p, struct request *r, uint32_t n_tokens,
                     enum step_output output)
{
    struct flight *f = &s->flight[(s->flight_first + s->n_flights) % SCHEDULER_IN_FLIGHT_MAX];
    scheduler_hash(r, r->n_past);
    f->part[p->n_parts] = (struct flight_part){.request = r,
                                               .n_past = r->n_past,
                                               .n_tokens = n_tokens,
                                               .n_rows = output == STEP_OUTPUT_NONE  ? 0
                                                         : output == STEP_OUTPUT_ALL ? n_tokens
                                                                                     : 1,
                                               .is_prompt = !scheduler_is_decoding(r),
                                               .grade = r->grade[0]};
    struct plan_part *part = &p->part[p->n_parts++];
    *part = (struct plan_part){.slot = r->slot,
                               .n_tokens = n_tokens,
                               .output = output,
                               .n_past = r->n_past,
                               .prefix_hash = r->hash};
    if (output != STEP_OUTPUT_NONE) {
        part->n_logprobs = r->submit.n_logprobs;
        part->mask = r->mask;
        if (r->mask != NULL)
            p->n_mask_bytes = sampler_mask_bytes(s->options.n_vocab);
    }
    memcpy(p->tokens + p->n_tokens, r->tokens + r->n_past, n_tokens * sizeof(*p->tokens));
    p->n_tokens += n_tokens;
    r->planned_at = s->n_planned;
    r->n_past += scheduler_is_decoding(r) ? 1 : n_tokens;
}

/* ---- sequences that decode ---- */

static uint32_t count_decoding(const struct scheduler *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_running; i++)
        n += scheduler_is_decoding(s->running[i]);
    return n;
}

static bool can_decode(const struct request *r)
{
    return scheduler_is_decoding(r) && r->n_in_flight == 0 && !r->yields;
}

/* Those that can have a token now, the one first that was in no step for the longest time; of
 * equals the oldest. */
static uint32_t list_decodable(const struct scheduler *s, struct request **ret_list)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        struct request *r = s->running[i];
        if (!can_decode(r))
            continue;
        uint32_t at = n++;
        for (; at > 0 && ret_list[at - 1]->planned_at > r->planned_at; at--)
            ret_list[at] = ret_list[at - 1];
        ret_list[at] = r;
    }
    return n;
}

/* One token of each sequence, up to n_max, and of no more than their share of the steps under way,
 * so that no stage is left without work; and guesses, in steps that nobody's prompt is in. In the
 * order of the slots, so that steps keep their shape. */
static void plan_decodes(struct scheduler *s, struct plan *p, uint32_t n_max, bool has_prompt)
{
    struct request *list[LIMIT_SLOTS], *chosen[LIMIT_SLOTS];
    uint32_t n_list = list_decodable(s, list), n_chosen = 0;
    uint32_t n_share = (count_decoding(s) + s->options.n_in_flight - 1) / s->options.n_in_flight;
    if (n_max > n_share)
        n_max = n_share;
    for (uint32_t i = 0; i < n_list && n_chosen < n_max; i++) {
        struct request *r = list[i];
        if (!can_decode(r) || !scheduler_reserve(s, r, r->n_past + 1))
            continue;
        r->n_granted = 1;
        r->n_in_flight++;
        chosen[n_chosen++] = r;
    }
    if (n_chosen > 0 && !has_prompt)
        scheduler_draft(s, chosen, n_chosen, s->options.n_batch);
    for (uint32_t i = 0; i < s->options.n_slots && n_chosen > 0; i++) {
        struct request *r = s->slot[i].request;
        if (r != NULL && scheduler_is_decoding(r) && r->n_granted > 0)
            add_part(s, p, r, r->n_granted, r->n_granted > 1 ? STEP_OUTPUT_ALL : STEP_OUTPUT_LAST);
    }
}

/* ---- prompts ---- */

/* With stages, the chunks of prompts are cut so that every stage has one to work on for most of the
 * time. */
static uint32_t pipeline_chunk(const struct scheduler *s, struct request *const *list,
                               uint32_t n_list)
{
    uint64_t n_tokens = 0;
    for (uint32_t i = 0; i < n_list; i++)
        n_tokens += list[i]->n_target - list[i]->n_begin;
    uint64_t n_chunks = (uint64_t)PIPELINE_CHUNKS * s->options.n_in_flight;
    uint64_t n = (n_tokens + n_chunks - 1) / n_chunks;
    n = (n + PIPELINE_CHUNK_STEP - 1) / PIPELINE_CHUNK_STEP * PIPELINE_CHUNK_STEP;
    if (n < PIPELINE_CHUNK_MIN)
        n = PIPELINE_CHUNK_MIN;
    return n < LIMIT_BATCH_TOKENS ? (uint32_t)n : LIMIT_BATCH_TOKENS;
}

/* Tokens of prompts in this step. */
static uint32_t prompt_budget(const struct scheduler *s, const struct plan *p,
                              struct request *const *list, uint32_t n_list)
{
    uint32_t n = s->options.n_batch - p->n_tokens, n_max = n;
    if (count_decoding(s) > 0)
        n_max = s->options.n_chunk;
    else if (s->options.n_in_flight > 1)
        n_max = pipeline_chunk(s, list, n_list);
    if (n > n_max)
        n = n_max;
    if (s->options.step_ns_max == 0)
        return n;
    if (s->prefill_token_ns == 0.0)
        return n < SCHEDULER_CHUNK_FIRST ? n : SCHEDULER_CHUNK_FIRST;
    /* Halved rather than cut exactly, so that a little jitter does not change the shapes of steps
     * (and with them the rounding of results). */
    while (n > 1 && (double)n * s->prefill_token_ns > (double)s->options.step_ns_max)
        n /= 2;
    return n;
}

static uint32_t n_left(const struct request *r)
{
    return r->n_target - r->n_past - r->n_granted;
}

static uint32_t grant(struct request *r, uint32_t n_max)
{
    uint32_t n = n_left(r) < n_max ? n_left(r) : n_max;
    r->n_granted += n;
    return n;
}

/* Half of the budget is for the oldest prompt, so that it makes progress whatever else comes; the
 * rest goes to those that need the least, so that short ones need not wait for a long one. */
static void grant_prompts(struct request *const *list, uint32_t n_list, uint32_t budget)
{
    uint32_t n = budget - grant(list[0], n_list > 1 ? (budget + 1) / 2 : budget);
    while (n > 0) {
        struct request *least = NULL;
        for (uint32_t i = 0; i < n_list; i++)
            if (n_left(list[i]) > 0 && (least == NULL || n_left(list[i]) < n_left(least)))
                least = list[i];
        if (least == NULL)
            return;
        n -= grant(least, n);
    }
}

static void plan_prompts(struct scheduler *s, struct plan *p)
{
    struct request *list[LIMIT_SLOTS];
    uint32_t n_list = 0;
    for (uint32_t i = 0; i < s->n_running; i++)
        if (is_prompt(s->running[i]) && !s->running[i]->yields)
            list[n_list++] = s->running[i];
    uint32_t budget = n_list > 0 ? prompt_budget(s, p, list, n_list) : 0;
    if (budget == 0)
        return;
    grant_prompts(list, n_list, budget);
    for (uint32_t i = 0; i < n_list; i++) {
        struct request *r = list[i];
        if (r->n_granted == 0 || !is_prompt(r) || r->yields ||
            !scheduler_reserve(s, r, r->n_past + r->n_granted))
            continue;
        r->n_in_flight++;
        bool is_last = r->n_past + r->n_granted == r->n_target;
        add_part(s, p, r, r->n_granted, is_last ? STEP_OUTPUT_LAST : STEP_OUTPUT_NONE);
    }
}

/* ---- the plan ---- */

static void put_blocks(struct plan *p, const uint32_t *blocks, uint32_t n)
{
    assert(n <= PLAN_BLOCKS_MAX - p->n_blocks);
    memcpy(p->blocks + p->n_blocks, blocks, n * sizeof(*blocks));
    p->n_blocks += n;
}

/* The engine's slots become what the parts need. Emptied slots come first: they make room. */
static void put_attaches(struct scheduler *s, struct plan *p)
{
    for (uint32_t i = 0; i < s->options.n_slots; i++) {
        struct slot *slot = &s->slot[i];
        if (!slot->detach_is_due)
            continue;
        struct plan_attach *attach = &p->attach[p->n_attaches++];
        *attach = (struct plan_attach){.slot = i};
        sampling_init(&attach->sampling);
        slot->detach_is_due = false;
        slot->n_there = 0;
    }
    for (uint32_t i = 0; i < p->n_parts; i++) {
        struct slot *slot = &s->slot[p->part[i].slot];
        struct request *r = slot->request;
        if (r->is_attached)
            continue;
        uint32_t n_keep = r->n_begin, n_blocks = scheduler_blocks(s, n_keep);
        p->attach[p->n_attaches++] = (struct plan_attach){.slot = r->slot,
                                                          .n_keep = n_keep,
                                                          .n_blocks = n_blocks,
                                                          .sampling = r->submit.sampling};
        put_blocks(p, slot->blocks, n_blocks);
        memcpy(slot->there, slot->blocks, n_blocks * sizeof(*slot->there));
        slot->n_there = n_blocks;
        r->is_attached = true;
    }
}

static void put_new_blocks(struct scheduler *s, struct plan *p)
{
    for (uint32_t i = 0; i < p->n_parts; i++) {
        struct slot *slot = &s->slot[p->part[i].slot];
        uint32_t n = slot->n_blocks - slot->n_there;
        p->part[i].n_new_blocks = n;
        put_blocks(p, slot->blocks + slot->n_there, n);
        memcpy(slot->there + slot->n_there, slot->blocks + slot->n_there, n * sizeof(*slot->there));
        slot->n_there = slot->n_blocks;
    }
}

/* What a step puts into the cache for prompts is known from now on: whoever uses it is in a later
 * step. The block that is not full yet will be written on, behind what others copy. */
static void publish_blocks(struct scheduler *s, const struct plan *p)
{
    for (uint32_t i = 0; i < p->n_parts; i++) {
        const struct slot *slot = &s->slot[p->part[i].slot];
        const struct request *r = slot->request;
        if (!scheduler_is_decoding(r))
            prefix_tree_insert(s->tree, slot->blocks, r->tokens, r->n_past);
    }
}

static void choose_parts(struct scheduler *s, struct plan *p, uint64_t now_ns)
{
    struct request *waiter = s->waiter;
    for (uint32_t i = 0; i < s->n_running; i++) {
        s->running[i]->yields = false;
        s->running[i]->n_granted = 0;
    }
    s->waiter = NULL;
    if (waiter != NULL)
        scheduler_reserve(s, waiter, s->waiter_end);
    admit(s, now_ns);
    begin_waiting(s);
    bool has_prompt = false;
    for (uint32_t i = 0; i < s->n_running; i++)
        has_prompt |= is_prompt(s->running[i]);
    plan_decodes(s, p, s->options.n_batch - (has_prompt ? 1 : 0), has_prompt);
    plan_prompts(s, p);
    if (p->n_parts == 0)
        plan_decodes(s, p, s->options.n_batch, has_prompt);
}

bool scheduler_plan(struct scheduler *s, uint64_t now_ns, struct plan *ret_plan)
{
    struct plan *p = ret_plan;
    if (s->n_flights == s->options.n_in_flight)
        return false;
    p->kind = PLAN_STEP;
    p->n_copies = p->n_attaches = p->n_parts = p->n_blocks = p->n_tokens = 0;
    p->n_mask_bytes = 0;
    s->n_planned++;
    s->draft_ns = 0;
    choose_parts(s, p, now_ns);
    if (p->n_parts == 0)
        return false;
    memcpy(p->copy, s->copy, s->n_copies * sizeof(*p->copy));
    p->n_copies = s->n_copies;
    s->n_copies = 0;
    put_attaches(s, p);
    put_new_blocks(s, p);
    publish_blocks(s, p);

    struct flight *f = &s->flight[(s->flight_first + s->n_flights++) % SCHEDULER_IN_FLIGHT_MAX];
    f->n_parts = p->n_parts;
    f->n_tokens = p->n_tokens;
    f->has_prompt = false;
    for (uint32_t i = 0; i < f->n_parts; i++)
        f->has_prompt |= f->part[i].is_prompt;
    f->planned_ns = now_ns;
    f->draft_ns = s->draft_ns;
    s->stats.n_steps++;
    return true;
}
