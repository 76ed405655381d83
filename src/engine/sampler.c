#include "engine/sampler.h"

#include "base/rng.h"
#include "engine/slice.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a rank tells the others about its slice: enough to sample exactly in nearly every case. With
 * the slice's whole sum, a draw that falls among the best candidates is decided; one that falls
 * into the tail makes all ranks fetch the whole slices. */
enum { CANDIDATES_MAX = 1024, CANDIDATES_DEFAULT = 256 };

struct summary_head {
    float max;  /* best logit of the slice, after bias and penalties; -INFINITY when it is empty */
    float sum;  /* of exp((logit - max) / temperature) over the slice; 0 when it is not needed */
    uint32_t n; /* candidates that follow */
    uint32_t is_whole; /* 1: the candidates are the whole slice */
};

struct sampler {
    uint32_t n_vocab;
    float *adjusted; /* [n_vocab] a slice, or the gathered whole */
    float *gathered; /* [n ranks][n_vocab], made when first needed */
    size_t gathered_cap;
    uint32_t *counts; /* [n_vocab] occurrences, all zero between calls */
    int32_t *allowed; /* [allowed_cap] token ids, made when first needed */
    size_t allowed_cap;
    struct candidate *merged; /* [merged_cap] */
    size_t merged_cap;
    uint8_t *wire; /* summaries of all ranks */
    size_t wire_cap;
};

/* ---- settings ---- */

void sampling_init(struct sampling *s)
{
    *s = (struct sampling){.top_p = 1, .repetition_penalty = 1};
}

static int check_range(const char *name, float v, float min, float max, struct error *err)
{
    if (v >= min && v <= max) /* false for NaN */
        return 0;
    return error_set(err, E_INVALID, "%s is %g: it must be between %g and %g", name, (double)v,
                     (double)min, (double)max);
}

int sampling_check(const struct sampling *s, uint32_t n_vocab, struct error *err)
{
    int rc = check_range("temperature", s->temperature, 0, 100, err);
    if (rc == 0)
        rc = check_range("top_p", s->top_p, 0, 1, err);
    if (rc == 0)
        rc = check_range("min_p", s->min_p, 0, 1, err);
    if (rc == 0)
        rc = check_range("repetition_penalty", s->repetition_penalty, 0.01f, 100, err);
    if (rc == 0)
        rc = check_range("frequency_penalty", s->frequency_penalty, -100, 100, err);
    if (rc == 0)
        rc = check_range("presence_penalty", s->presence_penalty, -100, 100, err);
    if (rc == 0 && s->n_bias > LIMIT_LOGIT_BIAS)
        rc = error_set(err, E_INVALID, "logit_bias has %u entries: at most %d", s->n_bias,
                       LIMIT_LOGIT_BIAS);
    for (uint32_t i = 0; i < s->n_bias && rc == 0; i++) {
        if (s->bias[i].token < 0 || (uint32_t)s->bias[i].token >= n_vocab)
            rc = error_set(err, E_INVALID, "logit_bias names token %d: the vocabulary has %u",
                           s->bias[i].token, n_vocab);
        else
            rc = check_range("logit_bias", s->bias[i].bias, -100, 100, err);
    }
    return rc;
}

int sampler_new(uint32_t n_vocab, struct sampler **ret_sampler, struct error *err)
{
    struct sampler *s = calloc(1, sizeof(*s));
    if (s != NULL) {
        s->n_vocab = n_vocab;
        s->adjusted = malloc(n_vocab * sizeof(float));
        s->counts = calloc(n_vocab, sizeof(uint32_t));
    }
    if (s == NULL || s->adjusted == NULL || s->counts == NULL) {
        sampler_free(s);
        return error_set(err, E_NOMEM, "out of memory");
    }
    *ret_sampler = s;
    return 0;
}

void sampler_free(struct sampler *s)
{
    if (s == NULL)
        return;
    free(s->adjusted);
    free(s->gathered);
    free(s->counts);
    free(s->allowed);
    free(s->merged);
    free(s->wire);
    free(s);
}

/* Grows *array to n elements of size bytes. */
static int ensure(void **array, size_t *cap, size_t n, size_t size, struct error *err)
{
    if (n <= *cap)
        return 0;
    void *grown = realloc(*array, n * size);
    if (grown == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    *array = grown;
    *cap = n;
    return 0;
}

/* ---- bias and penalties ---- */

static void add_bias(const struct sampling *p, float *logits, struct range vocab)
{
    for (uint32_t i = 0; i < p->n_bias; i++) {
        uint32_t token = (uint32_t)p->bias[i].token;
        if (token >= vocab.begin && token < vocab.end)
            logits[token - vocab.begin] += p->bias[i].bias;
    }
}

static void penalize(struct sampler *s, const struct sampling *p, float *logits, struct range vocab,
                     const int32_t *tokens, uint32_t n_tokens)
{
    uint32_t *counts = s->counts;
    for (uint32_t i = p->n_prompt; i < n_tokens; i++)
        counts[tokens[i]]++;
    const uint32_t done = UINT32_MAX; /* marks a token whose logit has had its penalties */
    for (uint32_t i = 0; i < n_tokens; i++) {
        uint32_t token = (uint32_t)tokens[i];
        if (token < vocab.begin || token >= vocab.end || counts[token] == done)
            continue;
        float *logit = &logits[token - vocab.begin];
        *logit = *logit > 0 ? *logit / p->repetition_penalty : *logit * p->repetition_penalty;
        if (counts[token] > 0)
            *logit -= (float)counts[token] * p->frequency_penalty + p->presence_penalty;
        counts[token] = done;
    }
    for (uint32_t i = 0; i < n_tokens; i++)
        counts[tokens[i]] = 0;
}

/* Tokens that are not allowed leave the slice: what is not there cannot be chosen. from may be
 * s->adjusted. */
static int keep_allowed(struct sampler *s, const float *from, struct range vocab,
                        const uint8_t *mask, struct slice *slice, struct error *err)
{
    int rc = ensure((void **)&s->allowed, &s->allowed_cap, s->n_vocab, sizeof(*s->allowed), err);
    if (rc != 0)
        return rc;
    uint32_t n = 0;
    for (uint32_t id = vocab.begin; id < vocab.end; id++) {
        if (id % 8 == 0 && mask[id / 8] == 0) {
            id += 7;
            continue;
        }
        if (!sampler_mask_allows(mask, id))
            continue;
        s->adjusted[n] = from[id - vocab.begin];
        s->allowed[n++] = (int32_t)id;
    }
    *slice = (struct slice){.logits = s->adjusted, .ids = s->allowed, .n = n};
    return 0;
}

/* The slice with bias, penalties and without what the mask excludes. */
static int adjust(struct sampler *s, const struct sampling *p, const float *logits,
                  struct range vocab, const uint8_t *mask, const int32_t *tokens, uint32_t n_tokens,
                  struct slice *ret_slice, struct error *err)
{
    bool has_penalty =
        p->repetition_penalty != 1 || p->frequency_penalty != 0 || p->presence_penalty != 0;
    uint32_t n = vocab.end - vocab.begin;
    *ret_slice = (struct slice){.logits = logits, .first = vocab.begin, .n = n};
    if (n == 0)
        return 0;
    if (p->n_bias > 0 || has_penalty) {
        memcpy(s->adjusted, logits, n * sizeof(float));
        add_bias(p, s->adjusted, vocab);
        if (has_penalty)
            penalize(s, p, s->adjusted, vocab, tokens, n_tokens);
        ret_slice->logits = s->adjusted;
    }
    return mask != NULL ? keep_allowed(s, ret_slice->logits, vocab, mask, ret_slice, err) : 0;
}

/* ---- what a rank says of its slice ---- */

static size_t summary_bytes(uint32_t n_max)
{
    return sizeof(struct summary_head) + n_max * sizeof(struct candidate);
}

/* best[n_max] is work space. */
static void summarize(const struct sampling *p, const struct slice *slice, uint32_t n_max,
                      struct candidate *best, uint8_t *out)
{
    struct summary_head head = {.max = -INFINITY};
    memset(out, 0, summary_bytes(n_max));
    head.n = slice_select(slice, n_max, best);
    head.is_whole = head.n == slice->n;
    if (head.n > 0)
        head.max = best[0].logit;
    /* With top-k inside the candidates the sum over the rest plays no part. */
    if (p->temperature > 0 && (p->top_k == 0 || p->top_k > n_max))
        head.sum = slice_sum(slice, head.max, 1 / p->temperature);
    memcpy(out, &head, sizeof(head));
    memcpy(out + sizeof(head), best, head.n * sizeof(*best));
}

/* ---- choosing ---- */

/* All candidates in order, of which the first n_exact are surely the best n_exact of the whole
 * vocabulary. */
struct pool {
    const struct candidate *best;
    uint32_t n, n_exact;
    bool is_whole; /* n_exact covers the whole vocabulary */
    double sum;    /* of exp((logit - best[0].logit) / temperature) over the whole vocabulary */
};

static int merge(struct sampler *s, const struct sampling *p, const uint8_t *wire, uint32_t n_ranks,
                 uint32_t n_max, struct pool *ret_pool, struct error *err)
{
    struct pool pool = {.best = s->merged, .is_whole = true};
    /* Behind the limit a slice may hold better ones than we know. */
    struct candidate limit = {-INFINITY, INT32_MAX};
    float max = -INFINITY;
    for (uint32_t r = 0; r < n_ranks; r++) {
        struct summary_head head;
        const uint8_t *at = wire + r * summary_bytes(n_max);
        memcpy(&head, at, sizeof(head));
        if (head.n > n_max || (head.n == 0 && !head.is_whole)) {
            error_set(err, E_PROTOCOL, "a rank sent %u candidates, of at most %u", head.n, n_max);
            return E_PROTOCOL;
        }
        memcpy(s->merged + pool.n, at + sizeof(head), head.n * sizeof(struct candidate));
        pool.n += head.n;
        max = head.max > max ? head.max : max;
        if (!head.is_whole) {
            pool.is_whole = false;
            if (candidate_is_before(s->merged[pool.n - 1], limit))
                limit = s->merged[pool.n - 1];
        }
    }
    for (uint32_t r = 0; r < n_ranks && p->temperature > 0; r++) {
        struct summary_head head;
        memcpy(&head, wire + r * summary_bytes(n_max), sizeof(head));
        if (head.n > 0)
            pool.sum +=
                (double)head.sum * exp(((double)head.max - (double)max) / (double)p->temperature);
    }
    if (n_ranks > 1)
        qsort(s->merged, pool.n, sizeof(*s->merged), candidate_compare);
    while (pool.n_exact < pool.n && !candidate_is_before(limit, s->merged[pool.n_exact]))
        pool.n_exact++;
    if (pool.n == 0)
        return error_set(err, E_INVALID, "the mask allows no token");
    if (pool.n_exact == 0) {
        error_set(err, E_INTERNAL, "no candidates to sample from: the logits are not numbers");
        return E_INTERNAL;
    }
    *ret_pool = pool;
    return 0;
}

/* Draws from the pool; false when the answer may lie outside its exact part. */
static bool draw(const struct sampling *p, const struct pool *pool, double uniform,
                 uint32_t *ret_index)
{
    const struct candidate *best = pool->best;
    double inverse = 1 / (double)p->temperature, max = (double)best[0].logit;
    uint32_t n_set = pool->n_exact;  /* top-k */
    bool is_closed = pool->is_whole; /* nothing outside the exact part can be drawn */
    if (p->top_k != 0 && p->top_k <= pool->n_exact) {
        n_set = p->top_k;
        is_closed = true;
    } else if (p->top_k != 0 && !pool->is_whole) {
        return false;
    }
    double total = 0;
    for (uint32_t i = 0; i < n_set; i++)
        total += exp(((double)best[i].logit - max) * inverse);
    if (!is_closed)
        total = pool->sum > total ? pool->sum : total;

    double kept = 0; /* mass of the set that remains after top-p and min-p */
    uint32_t n_kept = 0;
    bool cut = false;
    while (n_kept < n_set) {
        double weight = exp(((double)best[n_kept].logit - max) * inverse);
        if (n_kept > 0 && (kept >= (double)p->top_p * total || weight < (double)p->min_p)) {
            cut = true;
            break;
        }
        kept += weight;
        n_kept++;
    }
    if (!cut && !is_closed) {
        if (p->top_p < 1 && kept < (double)p->top_p * total)
            return false;
        if (p->min_p > 0)
            return false;
        if (p->top_p >= 1)
            kept = total;
    }
    double target = uniform * kept, sum = 0;
    for (uint32_t i = 0; i < n_kept; i++) {
        sum += exp(((double)best[i].logit - max) * inverse);
        if (target < sum) {
            *ret_index = i;
            return true;
        }
    }
    *ret_index = n_kept - 1;
    return cut || is_closed || kept <= sum; /* otherwise the draw lies in the tail */
}

/* The rare case: everybody's whole slice. Every rank works out the same pool of the whole
 * vocabulary. */
static int gather_all(struct sampler *s, const struct slice *slice, struct range vocab,
                      const uint8_t *mask, struct comm *comm, struct comm_group group,
                      struct pool *ret_pool, struct error *err)
{
    uint32_t n_ranks = comm != NULL ? group.n : 1;
    size_t stride = s->n_vocab + 2; /* slice bounds in front */
    int rc =
        ensure((void **)&s->gathered, &s->gathered_cap, (n_ranks + 1) * stride, sizeof(float), err);
    if (rc == 0)
        rc = ensure((void **)&s->merged, &s->merged_cap, s->n_vocab, sizeof(*s->merged), err);
    if (rc != 0)
        return rc;
    float *mine = s->gathered + n_ranks * stride;
    memset(mine, 0, stride * sizeof(float));
    memcpy(mine, &vocab, sizeof(vocab));
    if (slice->n > 0 && slice->ids == NULL)
        memcpy(mine + 2, slice->logits, slice->n * sizeof(float));
    for (uint32_t i = 0; i < slice->n && slice->ids != NULL; i++)
        mine[2 + (uint32_t)slice->ids[i] - vocab.begin] = slice->logits[i];
    if (comm != NULL)
        rc = comm_all_gather(comm, group, mine, stride * sizeof(float), s->gathered, err);
    else
        memcpy(s->gathered, mine, stride * sizeof(float));

    struct pool pool = {.best = s->merged, .is_whole = true};
    for (uint32_t r = 0; r < n_ranks && rc == 0; r++) {
        const float *logits = s->gathered + r * stride;
        struct range range;
        memcpy(&range, logits, sizeof(range));
        if (range.end > s->n_vocab || range.begin > range.end ||
            range.end - range.begin > s->n_vocab - pool.n)
            return error_set(err, E_PROTOCOL, "a rank sent logits of tokens %u to %u", range.begin,
                             range.end);
        for (uint32_t i = range.begin; i < range.end; i++)
            if (mask == NULL || sampler_mask_allows(mask, i))
                s->merged[pool.n++] = (struct candidate){logits[2 + i - range.begin], (int32_t)i};
    }
    if (rc != 0)
        return rc;
    qsort(s->merged, pool.n, sizeof(*s->merged), candidate_compare);
    pool.n_exact = pool.n;
    *ret_pool = pool;
    return 0;
}

static uint32_t candidates_wanted(const struct sampling *p)
{
    if (p->temperature == 0)
        return 2; /* the best, and the runner-up that says how near a tie was */
    if (p->top_k == 0 || p->top_k + 1 > CANDIDATES_MAX)
        return p->top_k == 0 ? CANDIDATES_DEFAULT : CANDIDATES_MAX;
    return p->top_k + 1;
}

int sampler_choose(struct sampler *s, const struct sampling *sampling, const float *logits,
                   struct range vocab, const uint8_t *mask, const int32_t *tokens,
                   uint32_t n_tokens, struct comm *comm, struct comm_group group,
                   struct sampler_choice *ret_choice, struct error *err)
{
    uint32_t n_max = candidates_wanted(sampling), n_ranks = comm != NULL ? group.n : 1;
    struct slice slice;
    int rc = adjust(s, sampling, logits, vocab, mask, tokens, n_tokens, &slice, err);
    if (rc == 0)
        rc = ensure((void **)&s->wire, &s->wire_cap, (n_ranks + 1) * summary_bytes(n_max), 1, err);
    if (rc == 0)
        rc = ensure((void **)&s->merged, &s->merged_cap, (size_t)n_ranks * n_max,
                    sizeof(*s->merged), err);
    if (rc != 0)
        return rc;
    uint8_t *mine = comm != NULL ? s->wire + n_ranks * summary_bytes(n_max) : s->wire;
    summarize(sampling, &slice, n_max, s->merged, mine);
    if (comm != NULL)
        rc = comm_all_gather(comm, group, mine, summary_bytes(n_max), s->wire, err);
    struct pool pool;
    if (rc == 0)
        rc = merge(s, sampling, s->wire, n_ranks, n_max, &pool, err);
    if (rc != 0)
        return rc;

    uint32_t index = 0;
    if (sampling->temperature > 0) {
        double uniform = rng_uniform(sampling->seed, n_tokens, 0);
        if (!draw(sampling, &pool, uniform, &index)) {
            rc = gather_all(s, &slice, vocab, mask, comm, group, &pool, err);
            if (rc != 0)
                return rc;
            draw(sampling, &pool, uniform, &index);
        }
    }
    uint32_t second = index == 0 ? 1 : 0;
    *ret_choice = (struct sampler_choice){.token = pool.best[index].token,
                                          .logit = pool.best[index].logit,
                                          .logit_second = second < pool.n ? pool.best[second].logit
                                                                          : -INFINITY};
    return 0;
}
