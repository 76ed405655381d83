/*
 * Guessing ahead (Leviathan et al., ICML 2023): whoever guesses the next tokens of a sequence lets
 * a step check several at once, and what the model would have chosen anyway is accepted. Sources of
 * guesses; learned figures that say which guesses pay.
 *
 * The model's choice is compared with the guess, and random numbers are keyed by position, so an
 * answer is the same with and without guesses. Thread: one.
 */
#ifndef SHOAL_RUNNER_DRAFT_H
#define SHOAL_RUNNER_DRAFT_H

#include "base/limits.h"
#include "engine/sampler.h"

#include <stdbool.h>
#include <stdint.h>

/* How sure a source is of a token. What a grade is worth is learned. Of each source the first is
 * the least. */
enum {
    DRAFT_LOOKUP_GRADES = 6,
    DRAFT_MODEL_FIRST = DRAFT_LOOKUP_GRADES, /* of those of a model */
    DRAFT_MODEL_GRADES = 6,
    DRAFT_GRADES = DRAFT_MODEL_FIRST + DRAFT_MODEL_GRADES,
};

struct draft {
    uint32_t n_tokens;
    int32_t tokens[LIMIT_DRAFT_TOKENS];
    uint8_t grade[LIMIT_DRAFT_TOKENS]; /* of a token, given that those before it are right */
    uint64_t ns;                       /* that guessing took */
};

struct draft_cost {    /* as it was measured so far */
    uint32_t n_unread; /* tokens that the source has to read before its first guess */
    double read_ns;    /* each of them */
    double token_ns;   /* each guess */
};

/* A way to guess: from the text itself, or with a small model. */
struct draft_source {
    /* State for a sequence that has at most n_tokens_max tokens and is sampled so; NULL: no guesses
     * for it. Owns: the caller, end(). */
    void *(*begin)(void *arg, uint32_t n_tokens_max, const struct sampling *sampling);
    /* Adds to the draft, which may have some already, at most n_max tokens that may follow them.
     * tokens[n_tokens] is all of the sequence, of which earlier calls have seen a beginning. A
     * source that has much to read may do a part of that, and add nothing. */
    void (*propose)(void *sequence, const int32_t *tokens, uint32_t n_tokens, uint32_t n_max,
                    struct draft *draft);
    /* What guesses of this sequence would take; false: it has none now. NULL: no time worth
     * counting. A source that has this is asked for one token after the other, as long as they
     * should pay. */
    bool (*cost)(void *sequence, const int32_t *tokens, uint32_t n_tokens,
                 struct draft_cost *ret_cost);
    void (*end)(void *sequence); /* NULL is fine */
    void *arg;
};

/* Prompt lookup (Saxena 2023; Yang et al., "Inference with Reference", 2023): where the last four,
 * three or two tokens were before, what came then may come again. The longer the text is the same,
 * the higher the grade. */
extern const struct draft_source draft_lookup;

/* ---- what guesses are worth ---- */

struct draft_rates { /* of guesses that turned out right, the latest ones */
    float n_right[DRAFT_GRADES], n_tried[DRAFT_GRADES];
    float n_model_right, n_model; /* of all that the model was asked for, also those not tried */
};

void draft_rates_learn(struct draft_rates *r, uint32_t grade, bool is_right);
/* The model was asked for a token that was not tried, and is right with this chance. */
void draft_rates_expect(struct draft_rates *r, double chance);
/* The chance that a token of this grade is right, in a sequence with rates `own` of its own among
 * others that had `all`. */
double draft_rates_get(const struct draft_rates *own, const struct draft_rates *all,
                       uint32_t grade);
/* The same for the next token of the model, before it is asked. */
double draft_rates_get_model(const struct draft_rates *own, const struct draft_rates *all);
/* What is known of the model counts less from now on: `keep` of it. */
void draft_rates_fade_model(struct draft_rates *r, float keep);

enum { STEP_TIMES_ROWS = 128 };

struct step_times { /* of steps of decoding sequences, by their rows */
    double ns[STEP_TIMES_ROWS + 1];
    uint32_t n[STEP_TIMES_ROWS + 1];    /* measurements, counted up to a few */
    uint32_t seen[STEP_TIMES_ROWS + 1]; /* n_all at the last one */
    uint32_t n_all;
};

void step_times_learn(struct step_times *t, uint32_t n_rows, uint64_t ns);
/* What a step should take; between and beyond what was measured, by straight lines. 0 while nothing
 * is known. */
double step_times_get(const struct step_times *t, uint32_t n_rows);
/* The longest step that was measured; 0: none. */
uint32_t step_times_longest(const struct step_times *t);

#endif
