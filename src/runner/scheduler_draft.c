#include "runner/scheduler_internal.h"

#include <string.h>

/* Which guesses go into a step. Every guess makes the step longer, and gives a token with some
 * chance; both are learned. The guesses are ordered by their chance, and as many are taken as give
 * the most tokens per second, all sequences of the step together. */

enum { TIMES_MIN = 3 /* steps that must have been measured before anything is guessed */ };

static const double gain_min = 1.03;    /* expected, else it is not worth the trouble */
static const double optimism = 0.95;    /* for steps of a size that was never measured */
static const double loss_share = 0.005; /* of the time, for each grade, may be lost by trying */
static const double loss_first = 0.3;   /* and so much of a step at the beginning */
static const double credit_steps = 8;   /* gains that may be lost again, in steps */

/* What a grade has cost so far must stay small; so text that does not repeat is hardly slowed down,
 * however often it looks as if it did. */
static bool may_try(const struct scheduler *s, uint32_t grade)
{
    double step_ns = step_times_get(&s->times, 1);
    return s->loss_ns[grade] <= loss_share * s->decode_ns + loss_first * step_ns;
}

/* The tokens that a request is ended by are of no use as guesses, nor is anything behind. */
static uint32_t cut_at_end(const struct request *r, const struct draft *d)
{
    for (uint32_t i = 0; i < d->n_tokens; i++)
        for (uint32_t k = 0; k < r->submit.n_end; k++)
            if (d->tokens[i] == r->submit.end[k])
                return i;
    return d->n_tokens;
}

/* Puts the guesses behind the tokens of the sequence; returns how many. */
static uint32_t propose(struct scheduler *s, struct request *r)
{
    uint32_t n_left = r->n_max - r->n_generated;
    uint32_t n_max = n_left - 1 < s->options.n_draft ? n_left - 1 : s->options.n_draft;
    struct draft d = {0};
    if (n_max == 0)
        return 0;
    if (r->guesses == NULL)
        r->guesses = s->source->begin(s->source->arg, r->submit.n_tokens + r->n_max);
    if (r->guesses == NULL)
        return 0;
    s->source->propose(r->guesses, r->tokens, r->n_tokens, n_max, &d);
    uint32_t n = cut_at_end(r, &d);
    if (n == 0 || !may_try(s, d.grade[0]))
        return 0;
    memcpy(r->tokens + r->n_tokens, d.tokens, n * sizeof(*d.tokens));
    memcpy(r->grade, d.grade, n * sizeof(*d.grade));
    return n;
}

struct offer { /* of one sequence */
    uint32_t n, n_taken;
    double chance; /* that the next guess is right, and all before it */
};

static void next_chance(const struct scheduler *s, const struct request *r, struct offer *offer)
{
    if (offer->n_taken < offer->n)
        offer->chance *= draft_rates_get(&r->rates, &s->rates, r->grade[offer->n_taken]);
}

static double step_ns(const struct scheduler *s, uint32_t n_rows)
{
    double ns = step_times_get(&s->times, n_rows);
    return s->times.n[n_rows] == 0 ? ns * optimism : ns;
}

/* Takes guesses one by one, the likeliest first, and returns how many are best. */
static uint32_t count_best(const struct scheduler *s, struct request *const *list, uint32_t n_list,
                           struct offer *offers, uint32_t n_most)
{
    double n_expected = n_list, best = n_list / step_times_get(&s->times, n_list) * gain_min;
    uint32_t n_best = 0;
    for (uint32_t n = 1; n <= n_most; n++) {
        uint32_t next = n_list;
        for (uint32_t i = 0; i < n_list; i++)
            if (offers[i].n_taken < offers[i].n &&
                (next == n_list || offers[i].chance > offers[next].chance))
                next = i;
        if (next == n_list)
            break;
        n_expected += offers[next].chance;
        offers[next].n_taken++;
        next_chance(s, list[next], &offers[next]);
        if (n_expected / step_ns(s, n_list + n) > best) {
            best = n_expected / step_ns(s, n_list + n);
            n_best = n;
        }
    }
    return n_best;
}

void scheduler_draft(struct scheduler *s, struct request *const *list, uint32_t n_list,
                     uint32_t n_rows_max)
{
    struct offer offers[LIMIT_SLOTS], taken[LIMIT_SLOTS];
    if (n_rows_max > STEP_TIMES_ROWS)
        n_rows_max = STEP_TIMES_ROWS;
    if (s->options.n_draft == 0 || n_list >= n_rows_max || s->times.n_all < TIMES_MIN)
        return;
    uint32_t n_offered = 0;
    for (uint32_t i = 0; i < n_list; i++) {
        offers[i] = (struct offer){.n = propose(s, list[i]), .chance = 1};
        next_chance(s, list[i], &offers[i]);
        n_offered += offers[i].n;
    }
    if (n_offered == 0)
        return;
    if (n_offered > n_rows_max - n_list)
        n_offered = n_rows_max - n_list;
    memcpy(taken, offers, n_list * sizeof(*taken));
    uint32_t n_best = count_best(s, list, n_list, taken, n_offered);
    if (n_best == 0)
        return;
    count_best(s, list, n_list, offers, n_best); /* as far as that */
    for (uint32_t i = 0; i < n_list; i++) {
        struct request *r = list[i];
        uint32_t n = offers[i].n_taken;
        if (n == 0 || !scheduler_reserve_idle(s, r, r->n_past + 1 + n))
            continue;
        r->n_granted += n;
        s->stats.n_drafted += n;
    }
}

void scheduler_draft_result(struct scheduler *s, struct request *r, struct flight_part *part,
                            uint32_t n_right)
{
    uint32_t n_drafts = part->n_rows - 1;
    part->n_right = n_right;
    s->stats.n_accepted += n_right;
    for (uint32_t i = 0; i < n_drafts && i <= n_right; i++) {
        draft_rates_learn(&r->rates, r->grade[i], i < n_right);
        draft_rates_learn(&s->rates, r->grade[i], i < n_right);
    }
}

/* What the guesses of a step have cost beyond what they gave, by the grade of the first of each
 * sequence: a token that was guessed right saves a sequence's share of a step. */
static void learn_losses(struct scheduler *s, const struct flight *f)
{
    double n_parts = f->n_parts, plain_ns = step_times_get(&s->times, f->n_parts);
    double row_ns =
        (step_times_get(&s->times, f->n_tokens) - plain_ns) / ((double)f->n_tokens - n_parts);
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const struct flight_part *part = &f->part[i];
        if (part->n_rows < 2)
            continue;
        double *loss_ns = &s->loss_ns[part->grade];
        *loss_ns += row_ns * (part->n_rows - 1) - plain_ns / n_parts * part->n_right;
        if (*loss_ns < -credit_steps * plain_ns)
            *loss_ns = -credit_steps * plain_ns;
    }
}

void scheduler_draft_measure(struct scheduler *s, const struct flight *f, uint64_t ns)
{
    step_times_learn(&s->times, f->n_tokens, ns);
    s->decode_ns += (double)ns;
    if (f->n_tokens > f->n_parts && f->n_tokens <= STEP_TIMES_ROWS)
        learn_losses(s, f);
}
