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

#include <stdbool.h>
#include <stdint.h>

/* How sure a source is of a token: 0 is the least. What a grade is worth is learned. */
enum { DRAFT_GRADES = 6 };

struct draft {
    uint32_t n_tokens;
    int32_t tokens[LIMIT_DRAFT_TOKENS];
    uint8_t grade[LIMIT_DRAFT_TOKENS]; /* of a token, given that those before it are right */
};

/* A way to guess: from the text itself, or with a small model. */
struct draft_source {
    /* State for a sequence that has at most n_tokens_max tokens; NULL: no guesses for it. Owns: the
     * caller, end(). */
    void *(*begin)(void *arg, uint32_t n_tokens_max);
    /* At most n_max tokens that may follow tokens[n_tokens]: all of the sequence, of which earlier
     * calls have seen a beginning. */
    void (*propose)(void *sequence, const int32_t *tokens, uint32_t n_tokens, uint32_t n_max,
                    struct draft *ret_draft);
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
};

void draft_rates_learn(struct draft_rates *r, uint32_t grade, bool is_right);
/* The chance that a token of this grade is right, in a sequence with rates `own` of its own among
 * others that had `all`. */
double draft_rates_get(const struct draft_rates *own, const struct draft_rates *all,
                       uint32_t grade);

enum { STEP_TIMES_ROWS = 128 };

struct step_times { /* of steps of decoding sequences, by their rows */
    double ns[STEP_TIMES_ROWS + 1];
    uint32_t n[STEP_TIMES_ROWS + 1]; /* measurements, counted up to a few */
    uint32_t n_all;
};

void step_times_learn(struct step_times *t, uint32_t n_rows, uint64_t ns);
/* What a step should take; between and beyond what was measured, by straight lines. 0 while nothing
 * is known. */
double step_times_get(const struct step_times *t, uint32_t n_rows);

#endif
