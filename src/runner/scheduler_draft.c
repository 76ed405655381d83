#include "runner/scheduler_internal.h"

#include <string.h>

/* Which guesses go into a step. Every guess makes the step longer, and gives a token with some
 * chance; both are learned. The guesses are ordered by their chance, and as many are taken as give
 * the most tokens per second, all sequences of the step together.
 *
 * Lookup is free. A model takes time for each guess, while all ranks wait, so it is asked for the
 * next one only if that should pay, given what its guesses were worth so far; and what it takes is
 * part of what trying costs. */

enum {
    ROWS_BOLD = 4, /* more than were ever measured, which a model may try */
    TIMES_MIN = 3, /* steps that must have been measured before anything is guessed */
    TO_COME = 64, /* an answer is expected to go on for so many tokens, and for as many as it has */
};

static const double gain_min = 1.03;      /* expected, else it is not worth the trouble */
static const double optimism = 0.95;      /* for steps of a size that was never measured */
static const double slope_bold = 0.02;    /* of a row that is hoped to cost little */
static const double loss_share = 0.005;   /* of the time, for each grade, may be lost by trying */
static const double loss_first = 0.3;     /* and so much of a step at the beginning; */
static const double loss_first_model = 6; /* of a model, which has to read before it guesses */
static const double credit_steps = 8;     /* gains that may be lost again, in steps */
/* Where a model is not asked, its past has so much of its weight left after a step: in a sequence,
 * and in all. */
static const float keep_own = 0.97F;
static const float keep_all = 0.99F;

/* Losses are counted for each grade of the lookup, and for a model as a whole: it takes its time
 * before the grade is known. */
static uint32_t account(uint32_t grade)
{
    return grade < DRAFT_MODEL_FIRST ? grade : DRAFT_MODEL_FIRST;
}

/* What a grade has cost so far must stay small; so text that does not repeat is hardly slowed down,
 * however often it looks as if it did. What is to be tried takes ns before it can give anything. */
static bool may_try(const struct scheduler *s, uint32_t grade, double ns)
{
    double first = grade < DRAFT_MODEL_FIRST ? loss_first : loss_first_model;
    double step_ns = step_times_get(&s->times, 1);
    return s->loss_ns[account(grade)] + ns <= loss_share * s->decode_ns + first * step_ns;
}

/* The tokens that a request is ended by are of no use as guesses, nor is anything behind. */
static uint32_t cut_at_end(const struct request *r, const struct draft *d)
{
    uint32_t n = 0;
    while (n < d->n_tokens && !scheduler_is_end(r, d->tokens[n]))
        n++;
    return n;
}

static bool begin(const struct scheduler *s, struct request *r, enum draft_kind kind)
{
    const struct draft_source *source = s->source[kind];
    if (r->guesses[kind] == NULL)
        r->guesses[kind] =
            source->begin(source->arg, r->submit.n_tokens + r->n_max, &r->submit.sampling);
    return r->guesses[kind] != NULL;
}

static uint32_t guesses_max(const struct scheduler *s, const struct request *r)
{
    uint32_t n_left = r->n_max - r->n_generated;
    return n_left - 1 < s->options.n_draft ? n_left - 1 : s->options.n_draft;
}

/* Puts guesses behind the tokens of the sequence. */
static void put(struct request *r, const struct draft *d, uint32_t n)
{
    memcpy(r->tokens + r->n_tokens, d->tokens, n * sizeof(*d->tokens));
    memcpy(r->grade, d->grade, n * sizeof(*d->grade));
}

/* What the text itself tells; returns how many guesses. */
static uint32_t look_up(struct scheduler *s, struct request *r)
{
    struct draft d = {0};
    if (guesses_max(s, r) == 0 || !begin(s, r, DRAFT_LOOKUP))
        return 0;
    s->source[DRAFT_LOOKUP]->propose(r->guesses[DRAFT_LOOKUP], r->tokens, r->n_tokens,
                                     guesses_max(s, r), &d);
    uint32_t n = cut_at_end(r, &d);
    if (n == 0 || !may_try(s, d.grade[0], 0))
        return 0;
    put(r, &d, n);
    return n;
}

/* What a step should take. Of one longer than all that were measured little is known, as rows often
 * cost nothing until there are a few: a model may take the chance, a few rows at a time, and what
 * it loses by that is counted. */
static double step_ns(const struct scheduler *s, uint32_t n_rows, bool is_bold)
{
    double ns = step_times_get(&s->times, n_rows);
    if (s->times.n[n_rows] > 0)
        return ns;
    uint32_t n_longest = is_bold ? step_times_longest(&s->times) : 0;
    if (!is_bold || n_rows < n_longest || n_rows > n_longest + ROWS_BOLD)
        return ns * optimism;
    return step_times_get(&s->times, n_longest) * (1 + slope_bold * (n_rows - n_longest));
}

/* ---- a model ---- */

struct outlook { /* of a step with guesses for one of its sequences */
    uint32_t n_list;
    uint32_t n_max;                         /* guesses */
    double step_ns[LIMIT_DRAFT_TOKENS + 1]; /* with so many */
};

static void look_out(const struct scheduler *s, uint32_t n_list, uint32_t n_rows_max,
                     struct outlook *ret)
{
    ret->n_list = n_list;
    ret->n_max = s->options.n_draft;
    if (ret->n_max > n_rows_max - n_list)
        ret->n_max = n_rows_max - n_list;
    for (uint32_t n = 0; n <= ret->n_max; n++)
        ret->step_ns[n] = step_ns(s, n_list + n, n > 0);
}

/* Tokens per ns of a step that has n guesses, of which n_expected should count, and takes ns more.
 */
static double speed(const struct outlook *o, uint32_t n, double n_expected, double ns)
{
    return (o->n_list + n_expected) / (o->step_ns[n] + ns);
}

/* The best speed with these guesses, or with the first of them; at least what any must gain. */
static double speed_of(const struct scheduler *s, const struct request *r, const struct outlook *o,
                       const uint8_t *grade, uint32_t n)
{
    double best = speed(o, 0, 0, 0) * (1 + (gain_min - 1) / o->n_list);
    double chance = 1, n_expected = 0;
    for (uint32_t i = 0; i < n && i < o->n_max; i++) {
        chance *= draft_rates_get(&r->rates, &s->rates, grade[i]);
        n_expected += chance;
        if (speed(o, i + 1, n_expected, 0) > best)
            best = speed(o, i + 1, n_expected, 0);
    }
    return best;
}

struct chain { /* guesses of the model so far */
    uint32_t n;
    double chance; /* that all of them are right */
    double n_expected;
};

/* Whether it should pay to ask the model for one or several tokens more, which takes first_ns
 * before and token_ns for each. What the others have taken is spent. */
static bool is_worth(const struct outlook *o, const struct chain *t, uint32_t n_max, double rate,
                     double first_ns, double token_ns, double than)
{
    double chance = t->chance, n_expected = t->n_expected, ns = first_ns;
    for (uint32_t n = t->n + 1; n <= n_max; n++) {
        chance *= rate;
        n_expected += chance;
        ns += token_ns;
        if (speed(o, n, n_expected, ns) > than)
            return true;
    }
    return false;
}

/* What has to be read before the first guess, as far as it is this step's: more than the tokens
 * since the last one serves all steps to come. */
static double reading_ns(const struct request *r, const struct draft_cost *cost)
{
    enum { EACH_STEP = 2 }; /* after guesses that were all right */
    uint32_t n_now = cost->n_unread < EACH_STEP ? cost->n_unread : EACH_STEP;
    uint32_t n_left = r->n_max - r->n_generated, n_to_come = r->n_generated + TO_COME;
    double n_steps = (n_left < n_to_come ? n_left : n_to_come) / 2.0;
    return cost->read_ns * (n_now + (cost->n_unread - n_now) / n_steps);
}

/* Whether the model may be asked, and should be: then it is known what it costs. */
static bool may_ask(struct scheduler *s, struct request *r, struct draft_cost *ret_cost)
{
    const struct draft_source *source = s->source[DRAFT_MODEL];
    return may_try(s, DRAFT_MODEL_FIRST, 0) && begin(s, r, DRAFT_MODEL) &&
           source->cost(r->guesses[DRAFT_MODEL], r->tokens, r->n_tokens, ret_cost) &&
           may_try(s, DRAFT_MODEL_FIRST, ret_cost->n_unread * ret_cost->read_ns);
}

/* Asks the model, where that should be better than the n guesses that are there; returns how many
 * there are then. *ret_is_asked: it took its time. */
static uint32_t ask_model(struct scheduler *s, struct request *r, const struct outlook *o,
                          uint32_t n, bool *ret_is_asked)
{
    const struct draft_source *source = s->source[DRAFT_MODEL];
    uint32_t n_max = guesses_max(s, r) < o->n_max ? guesses_max(s, r) : o->n_max;
    double rate = draft_rates_get_model(&r->rates, &s->rates);
    double before = speed_of(s, r, o, r->grade, n), best = speed(o, 0, 0, 0);
    struct chain t = {.chance = 1};
    struct draft_cost cost;
    struct draft d = {0};
    if (n_max == 0)
        return n;
    if (!may_ask(s, r, &cost) ||
        !is_worth(o, &t, n_max, rate, reading_ns(r, &cost), cost.token_ns, before)) {
        draft_rates_fade_model(&r->rates, keep_own);
        return n;
    }
    *ret_is_asked = true;
    do {
        source->propose(r->guesses[DRAFT_MODEL], r->tokens, r->n_tokens, 1, &d);
        if (d.n_tokens == t.n || scheduler_is_end(r, d.tokens[t.n]))
            break;
        t.chance *= draft_rates_get(&r->rates, &s->rates, d.grade[t.n]);
        t.n_expected += t.chance;
        t.n++;
        if (speed(o, t.n, t.n_expected, 0) > best)
            best = speed(o, t.n, t.n_expected, 0);
    } while (is_worth(o, &t, n_max, rate, 0, cost.token_ns, best));
    s->draft_ns += d.ns;
    s->loss_ns[DRAFT_MODEL_FIRST] += (double)d.ns;
    if (t.n == 0 || (n > 0 && speed_of(s, r, o, d.grade, t.n) < before))
        return n;
    put(r, &d, t.n);
    return t.n;
}

/* ---- what goes into the step ---- */

struct offer { /* of one sequence */
    uint32_t n, n_taken;
    bool is_of_model;
    double chance; /* that the next guess is right, and all before it */
};

static void next_chance(const struct scheduler *s, const struct request *r, struct offer *offer)
{
    if (offer->n_taken < offer->n)
        offer->chance *= draft_rates_get(&r->rates, &s->rates, r->grade[offer->n_taken]);
}

/* Takes guesses one by one, the likeliest first, and returns how many are best. */
static uint32_t count_best(const struct scheduler *s, struct request *const *list, uint32_t n_list,
                           struct offer *offers, uint32_t n_most)
{
    bool is_bold = false;
    for (uint32_t i = 0; i < n_list; i++)
        is_bold |= offers[i].is_of_model;
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
        double ns = step_ns(s, n_list + n, is_bold);
        if (n_expected / ns > best) {
            best = n_expected / ns;
            n_best = n;
        }
    }
    return n_best;
}

/* The guesses of all sequences; returns how many there are. */
static uint32_t collect(struct scheduler *s, struct request *const *list, uint32_t n_list,
                        uint32_t n_rows_max, struct offer *offers)
{
    struct outlook outlook;
    bool is_model_asked = false;
    uint32_t n_offered = 0;
    if (s->source[DRAFT_MODEL] != NULL)
        look_out(s, n_list, n_rows_max, &outlook);
    for (uint32_t i = 0; i < n_list; i++) {
        struct request *r = list[i];
        uint32_t n = r->grammar == NULL ? look_up(s, r) : 0;
        if (s->source[DRAFT_MODEL] != NULL && r->grammar == NULL)
            n = ask_model(s, r, &outlook, n, &is_model_asked);
        offers[i] = (struct offer){.n = n, .chance = 1};
        offers[i].is_of_model = n > 0 && r->grade[0] >= DRAFT_MODEL_FIRST;
        next_chance(s, r, &offers[i]);
        n_offered += n;
    }
    if (!is_model_asked)
        draft_rates_fade_model(&s->rates, keep_all);
    return n_offered;
}

/* What the model said and nobody will check: it is worth what was expected of it. */
static void learn_untaken(struct scheduler *s, struct request *r, const struct offer *offer)
{
    for (uint32_t i = offer->n_taken; offer->is_of_model && i < offer->n; i++) {
        double chance = draft_rates_get(&r->rates, &s->rates, r->grade[i]);
        draft_rates_expect(&r->rates, chance);
        draft_rates_expect(&s->rates, chance);
    }
}

void scheduler_draft(struct scheduler *s, struct request *const *list, uint32_t n_list,
                     uint32_t n_rows_max)
{
    struct offer offers[LIMIT_SLOTS], taken[LIMIT_SLOTS];
    if (n_rows_max > STEP_TIMES_ROWS)
        n_rows_max = STEP_TIMES_ROWS;
    if (s->options.n_draft == 0 || n_list >= n_rows_max || s->times.n_all < TIMES_MIN)
        return;
    uint32_t n_offered = collect(s, list, n_list, n_rows_max, offers);
    if (n_offered == 0)
        return;
    if (n_offered > n_rows_max - n_list)
        n_offered = n_rows_max - n_list;
    memcpy(taken, offers, n_list * sizeof(*taken));
    uint32_t n_best = count_best(s, list, n_list, taken, n_offered);
    if (n_best > 0)
        count_best(s, list, n_list, offers, n_best); /* as far as that */
    for (uint32_t i = 0; i < n_list; i++) {
        struct request *r = list[i];
        uint32_t n = offers[i].n_taken;
        learn_untaken(s, r, &offers[i]);
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
 * sequence: a token that was guessed right saves a sequence's share of a step. What a model took to
 * find them has been counted already. */
static void learn_losses(struct scheduler *s, const struct flight *f)
{
    double n_parts = f->n_parts, plain_ns = step_times_get(&s->times, f->n_parts);
    double row_ns =
        (step_times_get(&s->times, f->n_tokens) - plain_ns) / ((double)f->n_tokens - n_parts);
    for (uint32_t i = 0; i < f->n_parts; i++) {
        const struct flight_part *part = &f->part[i];
        if (part->n_rows < 2)
            continue;
        double *loss_ns = &s->loss_ns[account(part->grade)];
        *loss_ns += row_ns * (part->n_rows - 1) - plain_ns / n_parts * part->n_right;
        if (*loss_ns < -credit_steps * plain_ns)
            *loss_ns = -credit_steps * plain_ns;
    }
}

void scheduler_draft_measure(struct scheduler *s, const struct flight *f, uint64_t ns)
{
    /* With several steps under way, guessing may have been going on beside an earlier one. */
    uint64_t most_ns = s->options.n_in_flight > 1 ? ns / 2 : ns;
    uint64_t draft_ns = f->draft_ns < most_ns ? f->draft_ns : most_ns;
    step_times_learn(&s->times, f->n_tokens, ns - draft_ns);
    s->decode_ns += (double)ns;
    if (f->n_tokens > f->n_parts && f->n_tokens <= STEP_TIMES_ROWS)
        learn_losses(s, f);
}
