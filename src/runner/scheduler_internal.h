/*
 * What the files of the scheduler share. scheduler.c: requests come, end, and get their results;
 * scheduler_plan.c: what goes into a step; scheduler_memory.c: slots and blocks; scheduler_draft.c:
 * guesses; scheduler_grammar.c: what grammars allow. Private to this folder.
 */
#ifndef SHOAL_RUNNER_SCHEDULER_INTERNAL_H
#define SHOAL_RUNNER_SCHEDULER_INTERNAL_H

#include "runner/draft.h"
#include "runner/prefix_tree.h"
#include "runner/scheduler.h"

enum {
    SCHEDULER_NONE = UINT32_MAX,
    /* A part-full block is copied when at least so many tokens of it help. */
    SCHEDULER_TAIL_MIN = 16,
    /* Blocks that a plan attaches at most; the rest of PLAN_BLOCKS_MAX is for its parts. */
    SCHEDULER_ATTACH_MAX = PLAN_BLOCKS_MAX - LIMIT_BATCH_TOKENS - 2 * LIMIT_SLOTS,
};

enum draft_kind { DRAFT_LOOKUP, DRAFT_MODEL, DRAFT_KINDS };

/* A request waits in the queue, then runs. A running one is waiting for its begin, then it has a
 * slot and blocks; its prompt runs up to n_target, then it decodes. */
struct request {
    struct request *next; /* in the queue */
    struct message_submit submit;
    uint64_t order;  /* of arrival: the smaller the older */
    int32_t *tokens; /* the prompt and what was generated; owned */
    uint32_t n_tokens;
    uint32_t n_max; /* tokens to generate, cut where context or cache end */
    uint32_t n_cached, n_generated, n_progress;
    uint64_t submitted_ns, admitted_ns, first_token_ns;

    uint32_t slot;     /* SCHEDULER_NONE: has not begun */
    bool is_attached;  /* the engine knows that it has begun */
    uint32_t n_begin;  /* tokens that were there when it began */
    uint32_t n_target; /* tokens to run before the first (or next) token is sampled */
    uint32_t n_past;   /* tokens in the cache when all steps under way are over, as far as it is
                          sure: without drafts whose result is still to come */
    uint32_t n_hashed;
    uint64_t hash; /* of the first n_hashed tokens */
    uint32_t n_in_flight;
    uint64_t planned_at; /* the count of plans when it was last in one */
    uint32_t n_granted;  /* while a step is planned: its tokens in it */
    bool yields;         /* not planned, so that it can be preempted */

    void *guesses[DRAFT_KINDS];        /* of the draft sources; NULL: none yet */
    uint8_t grade[LIMIT_DRAFT_TOKENS]; /* of the guesses under way, which lie behind the tokens */
    struct draft_rates rates;

    struct grammar *grammar; /* knows all generated tokens; NULL: none */
    uint8_t *mask;           /* of what may follow them, [sampler_mask_bytes] */
};

struct slot {
    struct request *request;
    uint32_t *blocks, n_blocks; /* of the sequence */
    uint32_t *there, n_there;   /* what the engine has in the slot, also when nobody uses it */
    bool detach_is_due;
    uint64_t used_at;
};

struct flight_part {
    struct request *request; /* NULL: cancelled */
    uint32_t n_past, n_tokens, n_rows;
    bool is_prompt;
    uint32_t n_right; /* guesses that were */
    uint8_t grade;    /* of the first guess */
};

struct flight { /* a step under way */
    uint32_t n_parts, n_tokens;
    bool has_prompt;
    uint64_t planned_ns;
    uint64_t draft_ns; /* of guessing, from then on */
    struct flight_part part[LIMIT_SLOTS];
};

struct scheduler {
    struct scheduler_options options;
    struct scheduler_output output;
    struct scheduler_stats stats;
    struct prefix_tree *tree;
    struct slot slot[LIMIT_SLOTS];
    uint32_t n_slot_blocks; /* of a slot at most */
    uint32_t n_room;        /* tokens of a sequence at most: the context, or all of the cache */

    struct request *queue, **queue_end;
    uint32_t n_queued;
    struct request *running[LIMIT_SLOTS]; /* the oldest first */
    uint32_t n_running;
    uint64_t n_submitted, n_planned, n_begun;

    struct flight flight[SCHEDULER_IN_FLIGHT_MAX]; /* a ring */
    uint32_t flight_first, n_flights;
    uint64_t result_ns; /* of the latest */
    bool result_had_prompt;
    double prefill_token_ns; /* measured, of the latest chunks; 0: not known */

    const struct draft_source *source[DRAFT_KINDS]; /* the model's may be NULL */
    struct draft_rates rates;
    struct step_times times;
    double loss_ns[DRAFT_GRADES]; /* what guesses cost more than they gave, below 0: a gain; all of
                                     a model's in its first grade */
    double decode_ns;             /* all steps without prompts */
    uint64_t draft_ns;            /* of guessing for the step that is being planned */

    struct request *waiter;             /* lacks blocks that a sequence in flight will give up */
    uint32_t waiter_end;                /* tokens that it needs blocks for */
    struct plan_copy copy[LIMIT_SLOTS]; /* for the next plan */
    uint32_t n_copies;
    uint32_t *match; /* [n_slot_blocks] work space */
};

/* ---- scheduler.c ---- */

/* Answers with DONE and forgets the request, which is neither queued nor running. */
void scheduler_end(struct scheduler *s, struct request *r, enum finish_reason reason,
                   const struct error *e, uint64_t now_ns);
/* Takes a running sequence out, its blocks included. */
void scheduler_stop(struct scheduler *s, struct request *r);
/* Extends r->hash to the first n tokens, n >= n_hashed. */
void scheduler_hash(struct request *r, uint32_t n);

/* ---- scheduler_memory.c ---- */

/* Gives a waiting sequence a slot, and the blocks that the tree knows. False: not now. */
bool scheduler_begin(struct scheduler *s, struct request *r);
/* Makes sure that a sequence has blocks for its first n_end tokens; younger sequences may have to
 * go for that. False: not now. */
bool scheduler_reserve(struct scheduler *s, struct request *r, uint32_t n_end);
/* Likewise, but only what is there for the asking. */
bool scheduler_reserve_idle(struct scheduler *s, struct request *r, uint32_t n_end);
/* Gives its slot and blocks back; what they hold stays known. */
void scheduler_release(struct scheduler *s, struct request *r);

/* ---- scheduler_draft.c ---- */

/* Adds guesses to the steps of list[n_list], which all decode and have one token each, up to
 * n_rows_max tokens. */
void scheduler_draft(struct scheduler *s, struct request *const *list, uint32_t n_list,
                     uint32_t n_rows_max);
/* Of the guesses of a part, n_right were right. */
void scheduler_draft_result(struct scheduler *s, struct request *r, struct flight_part *part,
                            uint32_t n_right);
/* A step without prompts took so long. */
void scheduler_draft_measure(struct scheduler *s, const struct flight *f, uint64_t ns);

/* ---- scheduler_grammar.c ---- */

/* Works out what may come first. ret_is_over: nothing can. Errors: those of grammar_mask, E_NOMEM.
 */
int scheduler_grammar_begin(const struct scheduler *s, struct request *r, bool *ret_is_over,
                            struct error *err);
/* A token came: works out what may follow it. Likewise. */
int scheduler_grammar_follow(const struct scheduler *s, struct request *r, int32_t token,
                             bool *ret_is_over, struct error *err);
void scheduler_grammar_free(struct request *r);

static inline struct slot *scheduler_slot(struct scheduler *s, const struct request *r)
{
    return &s->slot[r->slot];
}

static inline bool scheduler_has_begun(const struct request *r)
{
    return r->slot != SCHEDULER_NONE;
}

static inline bool scheduler_is_decoding(const struct request *r)
{
    return scheduler_has_begun(r) && r->n_tokens > r->n_target;
}

/* Whether this token ends the request. */
static inline bool scheduler_is_end(const struct request *r, int32_t token)
{
    for (uint32_t i = 0; i < r->submit.n_end; i++)
        if (r->submit.end[i] == token)
            return true;
    return false;
}

static inline uint32_t scheduler_blocks(const struct scheduler *s, uint32_t n_tokens)
{
    return (n_tokens + s->options.block_tokens - 1) / s->options.block_tokens;
}

#endif
