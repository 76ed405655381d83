#include "engine/logprobs.h"

#include "engine/slice.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

struct summary { /* of a slice, for the other ranks */
    float max;   /* -INFINITY: the slice is empty */
    float sum;   /* of exp(logit - max) */
    float token; /* its logit, when it is in this slice */
    uint32_t has_token, n_best;
    struct candidate best[LIMIT_TOP_LOGPROBS];
};

static void summarize(const float *logits, struct range vocab, int32_t token, uint32_t n_top,
                      struct summary *ret_summary)
{
    struct slice slice = {.logits = logits, .first = vocab.begin, .n = vocab.end - vocab.begin};
    struct summary *s = ret_summary;
    *s = (struct summary){.max = -INFINITY};
    if (slice.n == 0)
        return;
    uint32_t n = slice_select(&slice, n_top > 0 ? n_top : 1, s->best);
    s->n_best = n_top > 0 ? n : 0;
    s->max = s->best[0].logit;
    s->sum = slice_sum(&slice, s->max, 1);
    s->has_token = (uint32_t)token >= vocab.begin && (uint32_t)token < vocab.end;
    if (s->has_token)
        s->token = logits[(uint32_t)token - vocab.begin];
}

static float logprob(double logit, double log_sum)
{
    double p = logit - log_sum;
    if (p > 0)
        return 0;                                            /* rounding */
    return p > (double)LOGPROB_MIN ? (float)p : LOGPROB_MIN; /* what is no number, too */
}

int logprobs_compute(const float *logits, struct range vocab, int32_t token, uint32_t n_top,
                     struct comm *comm, struct comm_group group, struct logprobs *ret_logprobs,
                     struct error *err)
{
    struct summary mine, all[LIMIT_RANKS];
    struct candidate best[LIMIT_RANKS * LIMIT_TOP_LOGPROBS];
    uint32_t n_ranks = comm != NULL ? group.n : 1, n_best = 0;
    assert(n_top <= LIMIT_TOP_LOGPROBS && n_ranks <= LIMIT_RANKS);
    summarize(logits, vocab, token, n_top, &mine);
    all[0] = mine;
    int rc = comm != NULL ? comm_all_gather(comm, group, &mine, sizeof(mine), all, err) : 0;
    if (rc != 0)
        return rc;

    double max = -INFINITY, sum = 0, chosen = -INFINITY;
    for (uint32_t r = 0; r < n_ranks; r++) {
        if (all[r].n_best > n_top)
            return error_set(err, E_PROTOCOL, "a rank sent %u likely tokens, of at most %u",
                             all[r].n_best, n_top);
        max = (double)all[r].max > max ? (double)all[r].max : max;
        if (all[r].has_token)
            chosen = (double)all[r].token;
        for (uint32_t i = 0; i < all[r].n_best; i++)
            best[n_best++] = all[r].best[i];
    }
    for (uint32_t r = 0; r < n_ranks; r++)
        if (all[r].sum > 0)
            sum += (double)all[r].sum * exp((double)all[r].max - max);
    double log_sum = max + log(sum);
    qsort(best, n_best, sizeof(best[0]), candidate_compare);

    *ret_logprobs = (struct logprobs){.chosen = logprob(chosen, log_sum),
                                      .n_top = n_best < n_top ? n_best : n_top};
    for (uint32_t i = 0; i < ret_logprobs->n_top; i++)
        ret_logprobs->top[i] =
            (struct token_logprob){best[i].token, logprob((double)best[i].logit, log_sum)};
    return 0;
}
