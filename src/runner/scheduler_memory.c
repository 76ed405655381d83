#include "runner/scheduler_internal.h"

#include <assert.h>
#include <string.h>

/* ---- blocks in slots, as the engine counts them ---- */

static bool is_attach_due(const struct slot *slot)
{
    return slot->request != NULL && !slot->request->is_attached;
}

/* The most blocks that this slot can have at any moment until the next plan is carried out, when n
 * more are taken. Until a sequence is attached the slot has what the last one left there. */
static uint32_t count_there(const struct slot *slot, uint32_t n)
{
    if (slot->request == NULL)
        return slot->detach_is_due ? 0 : slot->n_there;
    n += slot->n_blocks;
    return is_attach_due(slot) && slot->n_there > n ? slot->n_there : n;
}

/* Whether a slot can have n more blocks; slots that nobody uses are emptied for them. */
static bool can_attach(struct scheduler *s, const struct slot *slot, uint32_t n)
{
    uint64_t n_attached = 0, n_max = s->options.n_attached_max;
    for (uint32_t i = 0; i < s->options.n_slots; i++)
        n_attached += count_there(&s->slot[i], slot == &s->slot[i] ? n : 0);
    for (uint32_t i = 0; i < s->options.n_slots && n_attached > n_max; i++) {
        struct slot *unused = &s->slot[i];
        if (unused->request != NULL || unused->detach_is_due || unused->n_there == 0)
            continue;
        unused->detach_is_due = true;
        n_attached -= unused->n_there;
    }
    return n_attached <= n_max;
}

/* ---- a sequence begins ---- */

/* Blocks that begun prompts still need, and one for each decoding sequence, so that what begins now
 * need not go again soon. */
static uint32_t count_promised(const struct scheduler *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->n_running; i++) {
        const struct request *r = s->running[i];
        if (!scheduler_has_begun(r))
            continue;
        uint32_t n_blocks = s->slot[r->slot].n_blocks;
        uint32_t n_needed = scheduler_blocks(s, r->n_target + 1);
        if (scheduler_is_decoding(r))
            n += 1;
        else if (n_needed > n_blocks)
            n += n_needed - n_blocks;
    }
    return n;
}

static uint32_t n_equal(const uint32_t *a, const uint32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* The free slot that has most of these blocks, so that the engine finds them in place; of equals
 * the one that was used longest ago. */
static uint32_t choose_slot(const struct scheduler *s, const uint32_t *blocks, uint32_t n)
{
    uint32_t best = SCHEDULER_NONE, best_n = 0;
    for (uint32_t i = 0; i < s->options.n_slots; i++) {
        const struct slot *slot = &s->slot[i];
        if (slot->request != NULL)
            continue;
        uint32_t n_same = n_equal(slot->there, blocks, n < slot->n_there ? n : slot->n_there);
        if (best == SCHEDULER_NONE || n_same > best_n ||
            (n_same == best_n && slot->used_at < s->slot[best].used_at)) {
            best = i;
            best_n = n_same;
        }
    }
    return best;
}

/* Blocks that the next plan attaches. */
static uint32_t count_to_attach(const struct scheduler *s)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < s->options.n_slots; i++)
        if (is_attach_due(&s->slot[i]))
            n += s->slot[i].n_blocks;
    return n;
}

/* A copy of the first n_tail tokens of a block, in a block of its own. */
static void copy_tail(struct scheduler *s, struct slot *slot, uint32_t tail, uint32_t n_tail)
{
    uint32_t block = prefix_tree_take(s->tree);
    assert(block != SCHEDULER_NONE);
    slot->blocks[slot->n_blocks++] = block;
    if (block != tail) /* it was the only one left: what it holds is in place */
        s->copy[s->n_copies++] = (struct plan_copy){.from = tail, .to = block, .n_tokens = n_tail};
}

bool scheduler_begin(struct scheduler *s, struct request *r)
{
    /* The last token always runs again: its logits choose the first new one. */
    uint32_t n_match = r->n_tokens - 1, tail, n_tail;
    if (n_match / s->options.block_tokens > SCHEDULER_ATTACH_MAX - 1)
        n_match = (SCHEDULER_ATTACH_MAX - 1) * s->options.block_tokens;
    uint32_t n_known = prefix_tree_match(s->tree, r->tokens, n_match, s->match, &tail, &n_tail);
    uint32_t n_blocks = scheduler_blocks(s, r->n_tokens + 1), n_promised = count_promised(s);
    uint32_t index = choose_slot(s, s->match, n_known);
    struct slot *slot = &s->slot[index];
    slot->request = r; /* so that what is there is counted as what it will be */
    if (prefix_tree_n_available(s->tree) < n_blocks - n_known + n_promised ||
        !can_attach(s, slot, n_blocks + n_promised) ||
        count_to_attach(s) + n_known + 1 > SCHEDULER_ATTACH_MAX) {
        slot->request = NULL;
        prefix_tree_release(s->tree, s->match, n_known);
        return false;
    }
    slot->detach_is_due = false;
    slot->used_at = ++s->n_begun;
    slot->n_blocks = n_known;
    memcpy(slot->blocks, s->match, n_known * sizeof(*slot->blocks));
    r->slot = index;
    r->n_past = n_known * s->options.block_tokens;
    if (n_tail >= SCHEDULER_TAIL_MIN && s->n_copies < LIMIT_SLOTS) {
        copy_tail(s, slot, tail, n_tail);
        r->n_past += n_tail;
    }
    r->n_begin = r->n_past;
    r->n_target = r->n_tokens;
    r->n_granted = 0;
    r->yields = false;
    r->n_hashed = 0;
    r->hash = PLAN_HASH_EMPTY;
    s->stats.n_cached_tokens += r->n_past;
    if (r->n_generated == 0 && r->n_progress == 0)
        r->n_cached = r->n_past;
    return true;
}

void scheduler_release(struct scheduler *s, struct request *r)
{
    if (!scheduler_has_begun(r))
        return;
    struct slot *slot = scheduler_slot(s, r);
    /* Every step that was planned is carried out, and before any later one: what it puts into the
     * cache can be known already. What an unconfirmed draft puts there cannot. */
    prefix_tree_insert(s->tree, slot->blocks, r->tokens, r->n_past);
    prefix_tree_release(s->tree, slot->blocks, slot->n_blocks);
    slot->n_blocks = 0;
    slot->request = NULL;
    r->slot = SCHEDULER_NONE;
    r->is_attached = false;
}

/* ---- a sequence grows ---- */

static void take_blocks(struct scheduler *s, struct slot *slot, uint32_t n_blocks)
{
    while (slot->n_blocks < n_blocks) {
        uint32_t block = prefix_tree_take(s->tree);
        assert(block != SCHEDULER_NONE);
        slot->blocks[slot->n_blocks++] = block;
    }
}

static bool have_blocks(struct scheduler *s, const struct slot *slot, uint32_t n)
{
    return prefix_tree_n_available(s->tree) >= n && can_attach(s, slot, n);
}

/* Puts a running sequence back to the front of the queue: what it has generated is delivered, and
 * becomes part of a longer prompt. */
static void preempt(struct scheduler *s, struct request *r)
{
    scheduler_stop(s, r);
    r->next = s->queue;
    s->queue = r;
    if (r->next == NULL)
        s->queue_end = &r->next;
    s->n_queued++;
    s->stats.n_preempted++;
}

/* Makes the youngest sequence that has blocks give them up. False when that is r itself, or when
 * its result must be waited for. */
static bool preempt_youngest(struct scheduler *s, struct request *r)
{
    struct request *victim = r;
    for (uint32_t i = 0; i < s->n_running; i++)
        if (scheduler_has_begun(s->running[i]))
            victim = s->running[i]; /* the last of these is the youngest */
    if (victim->n_in_flight > 0) {
        victim->yields = true;
        return false;
    }
    preempt(s, victim);
    return victim != r;
}

bool scheduler_reserve_idle(struct scheduler *s, struct request *r, uint32_t n_end)
{
    struct slot *slot = scheduler_slot(s, r);
    uint32_t n_blocks = scheduler_blocks(s, n_end);
    if (n_blocks > slot->n_blocks && !have_blocks(s, slot, n_blocks - slot->n_blocks))
        return false;
    take_blocks(s, slot, n_blocks);
    return true;
}

bool scheduler_reserve(struct scheduler *s, struct request *r, uint32_t n_end)
{
    while (!scheduler_reserve_idle(s, r, n_end)) {
        if (preempt_youngest(s, r))
            continue;
        /* Gone itself, or the oldest that waits comes first in the next plan. */
        if (scheduler_has_begun(r) && (s->waiter == NULL || r->order <= s->waiter->order)) {
            s->waiter = r;
            s->waiter_end = n_end;
        }
        return false;
    }
    return true;
}
