#include "runner/draft.h"

#include "runner/plan.h"

#include <stdlib.h>
#include <string.h>

/* ---- prompt lookup ---- */

enum {
    GRAM_MIN = 2,
    GRAM_MAX = 4,
    MATCH_MAX = 24, /* tokens that are compared backwards to find the grade */
    TABLE_MAX = 1u << 20,
};

struct lookup { /* for each gram the place behind its latest occurrence; 0: none */
    uint32_t *table[GRAM_MAX - GRAM_MIN + 1];
    uint32_t mask;
    uint32_t n_indexed; /* tokens in front of the last place */
};

static void lookup_end(void *sequence)
{
    struct lookup *l = sequence;
    if (l == NULL)
        return;
    for (uint32_t i = 0; i <= GRAM_MAX - GRAM_MIN; i++)
        free(l->table[i]);
    free(l);
}

static void *lookup_begin(void *arg, uint32_t n_tokens_max, const struct sampling *sampling)
{
    (void)arg;
    (void)sampling;
    struct lookup *l = calloc(1, sizeof(*l));
    uint32_t n = 64;
    if (l == NULL)
        return NULL;
    while (n < n_tokens_max && n < TABLE_MAX)
        n *= 2;
    l->mask = n - 1;
    for (uint32_t i = 0; i <= GRAM_MAX - GRAM_MIN; i++) {
        l->table[i] = calloc(n, sizeof(uint32_t));
        if (l->table[i] == NULL) {
            lookup_end(l);
            return NULL;
        }
    }
    return l;
}

/* Place in the table of the gram that ends before tokens[end]. Different grams may share one: the
 * later stays, and whoever looks compares the tokens. */
static uint32_t *entry(const struct lookup *l, const int32_t *tokens, uint32_t end, uint32_t n_gram)
{
    uint64_t hash = plan_hash(PLAN_HASH_EMPTY, tokens + end - n_gram, n_gram);
    return &l->table[n_gram - GRAM_MIN][hash & l->mask];
}

static void index_tokens(struct lookup *l, const int32_t *tokens, uint32_t n_tokens)
{
    for (uint32_t end = l->n_indexed + 1; end < n_tokens; end++)
        for (uint32_t n = GRAM_MIN; n <= GRAM_MAX && n <= end; n++)
            *entry(l, tokens, end, n) = end;
    if (n_tokens > l->n_indexed + 1)
        l->n_indexed = n_tokens - 1;
}

/* Tokens before both places that are the same, up to MATCH_MAX. */
static uint32_t match_length(const int32_t *tokens, uint32_t at, uint32_t end)
{
    uint32_t n = 0;
    while (n < at && n < MATCH_MAX && tokens[at - 1 - n] == tokens[end - 1 - n])
        n++;
    return n;
}

static uint8_t grade_of(uint32_t n_match)
{
    static const uint8_t least[DRAFT_LOOKUP_GRADES] = {0, 3, 4, 6, 10, 18};
    uint8_t grade = DRAFT_LOOKUP_GRADES - 1;
    while (n_match < least[grade])
        grade--;
    return grade;
}

static void lookup_propose(void *sequence, const int32_t *tokens, uint32_t n_tokens, uint32_t n_max,
                           struct draft *draft)
{
    struct lookup *l = sequence;
    uint32_t at = 0, n_match = 0;
    draft->n_tokens = 0; /* it gives all at once */
    index_tokens(l, tokens, n_tokens);
    for (uint32_t n = GRAM_MAX; n >= GRAM_MIN && n_match < n; n--) {
        if (n >= n_tokens)
            continue;
        at = *entry(l, tokens, n_tokens, n);
        n_match = at > 0 ? match_length(tokens, at, n_tokens) : 0;
        if (n_match < n)
            n_match = 0;
    }
    if (n_match < GRAM_MIN)
        return;
    if (n_max > LIMIT_DRAFT_TOKENS)
        n_max = LIMIT_DRAFT_TOKENS;
    for (uint32_t i = 0; i < n_max; i++) {
        /* Where the text ends the guess goes on with itself: it is a loop. */
        draft->tokens[i] = at + i < n_tokens ? tokens[at + i] : draft->tokens[at + i - n_tokens];
        draft->grade[i] = grade_of(n_match + i);
    }
    draft->n_tokens = n_max;
}

const struct draft_source draft_lookup = {
    .begin = lookup_begin, .propose = lookup_propose, .end = lookup_end};

/* ---- what guesses are worth ---- */

static void count(float *n_right, float *n_tried, double chance)
{
    const float n_max = 64; /* so that what is long ago counts less and less */
    *n_tried += 1;
    *n_right += (float)chance;
    if (*n_tried >= n_max) {
        *n_tried /= 2;
        *n_right /= 2;
    }
}

void draft_rates_learn(struct draft_rates *r, uint32_t grade, bool is_right)
{
    count(&r->n_right[grade], &r->n_tried[grade], is_right ? 1 : 0);
    if (grade >= DRAFT_MODEL_FIRST)
        draft_rates_expect(r, is_right ? 1 : 0);
}

void draft_rates_expect(struct draft_rates *r, double chance)
{
    count(&r->n_model_right, &r->n_model, chance);
}

/* What is believed before anything was seen, and the weight of that: so many guesses. */
static const double first_rate[DRAFT_GRADES] = {0.3,  0.45, 0.6, 0.75, 0.85, 0.92,
                                                0.35, 0.45, 0.6, 0.75, 0.85, 0.92};
static const double first_rate_model = 0.65;
static const double first_weight = 4;

static double mix(float n_right, float n_tried, double before)
{
    return ((double)n_right + first_weight * before) / ((double)n_tried + first_weight);
}

double draft_rates_get(const struct draft_rates *own, const struct draft_rates *all, uint32_t grade)
{
    double others = mix(all->n_right[grade], all->n_tried[grade], first_rate[grade]);
    return mix(own->n_right[grade], own->n_tried[grade], others);
}

double draft_rates_get_model(const struct draft_rates *own, const struct draft_rates *all)
{
    double others = mix(all->n_model_right, all->n_model, first_rate_model);
    return mix(own->n_model_right, own->n_model, others);
}

void draft_rates_fade_model(struct draft_rates *r, float keep)
{
    for (uint32_t grade = DRAFT_MODEL_FIRST; grade < DRAFT_GRADES; grade++) {
        r->n_right[grade] *= keep;
        r->n_tried[grade] *= keep;
    }
    r->n_model_right *= keep;
    r->n_model *= keep;
}

void step_times_learn(struct step_times *t, uint32_t n_rows, uint64_t ns)
{
    enum { N_SURE = 4, N_MAX = 8 }; /* measurements that an average remembers */
    enum {
        N_CHANCE = 2,
        AGE_MAX = 100
    }; /* so few may be chance, and are forgotten after a while */
    const double shared = 0.5, outlier = 3;
    if (n_rows == 0 || n_rows > STEP_TIMES_ROWS || ns == 0)
        return;
    double now = (double)ns, before = t->ns[n_rows];
    if (t->n[n_rows] >= N_SURE && now > outlier * before)
        now = outlier * before;
    bool is_sure = t->n[n_rows] >= N_SURE;
    t->n[n_rows] += t->n[n_rows] < N_MAX;
    t->ns[n_rows] += (now - before) / t->n[n_rows];
    t->seen[n_rows] = ++t->n_all;
    /* Contexts grow and processors get warm: what makes these steps slower than they were makes
     * others slower too, which are not measured meanwhile. */
    double change = is_sure ? 1 + shared * (t->ns[n_rows] / before - 1) : 1;
    for (uint32_t i = 1; i <= STEP_TIMES_ROWS; i++) {
        if (i != n_rows)
            t->ns[i] *= change;
        if (t->n[i] <= N_CHANCE && t->n_all - t->seen[i] > AGE_MAX) {
            t->n[i] = 0;
            t->ns[i] = 0;
        }
    }
}

uint32_t step_times_longest(const struct step_times *t)
{
    uint32_t n = STEP_TIMES_ROWS;
    while (n > 0 && t->n[n] == 0)
        n--;
    return n;
}

double step_times_get(const struct step_times *t, uint32_t n_rows)
{
    const double slope_first = 0.25; /* of a step with one row: each further row, until measured */
    uint32_t below = 0, above = 0, least = 0;
    for (uint32_t i = 1; i <= STEP_TIMES_ROWS; i++) {
        if (t->n[i] == 0)
            continue;
        least = least == 0 ? i : least;
        if (i <= n_rows)
            below = i;
        else if (above == 0)
            above = i;
    }
    if (below == n_rows || least == 0)
        return t->ns[below];
    if (below != 0 && above != 0)
        return t->ns[below] +
               (t->ns[above] - t->ns[below]) * (n_rows - below) / (double)(above - below);
    if (below == 0 || below == least) { /* one side, and one point: the assumed slope */
        uint32_t i = below == 0 ? above : below;
        return t->ns[i] * (1 + slope_first * (n_rows - 1)) / (1 + slope_first * (i - 1));
    }
    double slope = (t->ns[below] - t->ns[least]) / (double)(below - least);
    return t->ns[below] + (slope > 0 ? slope : 0) * (n_rows - below);
}
