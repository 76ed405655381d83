/* The sampler against a plain one that sorts the whole vocabulary, alone and over ranks that hold
 * slices. */
#include "base/rng.h"
#include "engine/logprobs.h"
#include "engine/sampler.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_VOCAB = 3000, N_RANKS_MAX = 4 };

static float random_logits[N_VOCAB];

/* Spread: the standard deviation; small ones make flat distributions whose tail matters. */
static void make_logits(uint64_t seed, float spread)
{
    for (uint32_t i = 0; i < N_VOCAB; i++) {
        double u = rng_uniform(seed, i, 1) + 1e-12, v = rng_uniform(seed, i, 2);
        random_logits[i] = spread * (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
    }
}

struct plain {
    double logit;
    int32_t token;
};

static int compare_plain(const void *a, const void *b)
{
    const struct plain *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : 1;
}

/* Straight from the definitions: sort all, soft-max, cut, draw. Gives how near the draw was to a
 * border between two tokens. */
static int32_t choose_plainly(const struct sampling *s, const float *logits, uint32_t position,
                              double *ret_margin)
{
    static struct plain all[N_VOCAB];
    double weight[N_VOCAB], total = 0, kept = 0;
    for (int32_t i = 0; i < N_VOCAB; i++)
        all[i] = (struct plain){(double)logits[i], i};
    qsort(all, N_VOCAB, sizeof(all[0]), compare_plain);
    *ret_margin = 1;
    if (s->temperature == 0)
        return all[0].token;
    uint32_t n = s->top_k != 0 && s->top_k < N_VOCAB ? s->top_k : N_VOCAB, n_kept = 0;
    for (uint32_t i = 0; i < n; i++)
        total += weight[i] = exp((all[i].logit - all[0].logit) / (double)s->temperature);
    while (n_kept < n) {
        if (n_kept > 0 && (kept >= (double)s->top_p * total || weight[n_kept] < (double)s->min_p))
            break;
        kept += weight[n_kept++];
    }
    double target = rng_uniform(s->seed, position, 0) * kept, sum = 0;
    for (uint32_t i = 0; i < n_kept; i++) {
        sum += weight[i];
        double margin = fabs(target - sum) / kept;
        *ret_margin = margin < *ret_margin ? margin : *ret_margin;
        if (target < sum)
            return all[i].token;
    }
    return all[n_kept - 1].token;
}

struct job {
    const struct sampling *sampling;
    const float *logits;
    struct range vocab;
    const int32_t *tokens;
    uint32_t n_tokens;
    struct comm *comm;
    struct comm_group group;
    struct sampler_choice choice;
    struct logprobs logprobs;
    int rc;
    pthread_t thread;
};

static const uint8_t *mask; /* for all jobs */
static uint32_t n_top;

static void *run_job(void *arg)
{
    struct job *j = arg;
    struct sampler *s;
    if (sampler_new(N_VOCAB, &s, NULL) != 0)
        abort();
    j->rc = sampler_choose(s, j->sampling, j->logits + j->vocab.begin, j->vocab, mask, j->tokens,
                           j->n_tokens, j->comm, j->group, &j->choice, NULL);
    if (j->rc == 0)
        j->rc = logprobs_compute(j->logits + j->vocab.begin, j->vocab, j->choice.token, n_top,
                                 j->comm, j->group, &j->logprobs, NULL);
    sampler_free(s);
    return NULL;
}

static struct logprobs last_logprobs; /* of choose_over */

static struct sampler_choice choose_over(uint32_t n_ranks, const struct sampling *sampling,
                                         const float *logits, const int32_t *tokens,
                                         uint32_t n_tokens)
{
    /* uneven slices, one of them empty when there are four */
    static const uint32_t borders[N_RANKS_MAX][N_RANKS_MAX + 1] = {
        {0, N_VOCAB}, {0, 1900, N_VOCAB}, {0, 10, 1500, N_VOCAB}, {0, 700, 700, 2999, N_VOCAB}};
    struct job job[N_RANKS_MAX];
    struct comm *comms[N_RANKS_MAX] = {0};
    struct comm_options options = {.spin_us = 0};
    if (n_ranks > 1)
        assert_int_equal(comm_local_new(n_ranks, &options, comms, NULL), 0);
    for (uint32_t i = 0; i < n_ranks; i++) {
        job[i] = (struct job){.sampling = sampling,
                              .logits = logits,
                              .vocab = {borders[n_ranks - 1][i], borders[n_ranks - 1][i + 1]},
                              .tokens = tokens,
                              .n_tokens = n_tokens,
                              .comm = comms[i],
                              .group = {0, n_ranks}};
        pthread_create(&job[i].thread, NULL, run_job, &job[i]);
    }
    for (uint32_t i = 0; i < n_ranks; i++) {
        pthread_join(job[i].thread, NULL);
        assert_int_equal(job[i].rc, 0);
        assert_int_equal(job[i].choice.token, job[0].choice.token);
        assert_memory_equal(&job[i].logprobs, &job[0].logprobs, sizeof(job[0].logprobs));
    }
    for (uint32_t i = 0; i < n_ranks; i++)
        comm_close(comms[i]);
    last_logprobs = job[0].logprobs;
    return job[0].choice;
}

static void equals_the_plain_sampler(void **state)
{
    (void)state;
    int32_t tokens[1] = {0};
    uint32_t n_near = 0;
    for (uint32_t trial = 0; trial < 300; trial++) {
        static const float temperatures[] = {0, 0.2f, 0.7f, 1, 1.5f, 3};
        static const float top_ps[] = {1, 0.95f, 0.5f, 0.01f}, min_ps[] = {0, 0, 0.05f, 0.3f},
                           spreads[] = {0.1f, 1, 3, 8};
        static const uint32_t top_ks[] = {0, 0, 1, 40, 1023, 1024, 2500};
        struct sampling s;
        sampling_init(&s);
        s.temperature = temperatures[rng_u64(1, trial, 1) % 6];
        s.top_p = top_ps[rng_u64(1, trial, 2) % 4];
        s.min_p = min_ps[rng_u64(1, trial, 3) % 4];
        s.top_k = top_ks[rng_u64(1, trial, 4) % 7];
        s.seed = trial;
        make_logits(trial, spreads[rng_u64(1, trial, 5) % 4]);
        double margin;
        int32_t expected = choose_plainly(&s, random_logits, trial, &margin);
        for (uint32_t n = 1; n <= N_RANKS_MAX; n++) {
            /* n_tokens is the position that keys the draw; without penalties the tokens are not
             * read */
            struct sampler_choice got = choose_over(n, &s, random_logits, tokens, trial);
            if (got.token != expected && margin < 1e-5)
                n_near++; /* the draw fell on a border within rounding */
            else if (got.token != expected)
                fail_msg("trial %u over %u ranks: token %d, expected %d (margin %g)", trial, n,
                         got.token, expected, margin);
        }
    }
    assert_true(n_near < 10);
}

static void draws_follow_the_distribution(void **state)
{
    (void)state;
    enum { N_DRAWS = 20000, N_SMALL = 12 };
    float logits[N_SMALL];
    double probability[N_SMALL], sum = 0;
    uint32_t count[N_SMALL] = {0};
    for (uint32_t i = 0; i < N_SMALL; i++) {
        logits[i] = 0.4f * (float)i;
        sum += probability[i] = exp((double)logits[i] / 1.3);
    }
    struct sampling s;
    struct sampler *sampler;
    sampling_init(&s);
    s.temperature = 1.3f;
    s.seed = 42;
    assert_int_equal(sampler_new(N_SMALL, &sampler, NULL), 0);
    for (uint32_t i = 0; i < N_DRAWS; i++) {
        struct sampler_choice choice;
        assert_int_equal(sampler_choose(sampler, &s, logits, (struct range){0, N_SMALL}, NULL, NULL,
                                        i, NULL, (struct comm_group){0, 1}, &choice, NULL),
                         0);
        count[choice.token]++;
    }
    double chi_square = 0;
    for (uint32_t i = 0; i < N_SMALL; i++) {
        double expected = probability[i] / sum * N_DRAWS;
        chi_square += (count[i] - expected) * (count[i] - expected) / expected;
    }
    assert_true(chi_square < 31.26); /* 11 degrees of freedom, p = 0.001 */
    sampler_free(sampler);
}

static void ties_go_to_the_lower_token(void **state)
{
    (void)state;
    struct sampling s;
    sampling_init(&s);
    for (uint32_t i = 0; i < N_VOCAB; i++)
        random_logits[i] = i % 100 == 77 ? 5.0f : 1.0f;
    for (uint32_t n = 1; n <= N_RANKS_MAX; n++) {
        struct sampler_choice c = choose_over(n, &s, random_logits, NULL, 0);
        assert_int_equal(c.token, 77);
        assert_true(c.logit == 5.0f && c.logit_second == 5.0f);
    }
}

static void penalties_and_bias(void **state)
{
    (void)state;
    struct sampling s;
    for (uint32_t i = 0; i < N_VOCAB; i++)
        random_logits[i] = 0;
    random_logits[100] = 10; /* in the prompt */
    random_logits[2000] = 9; /* generated, twice */
    random_logits[2500] = 8;
    const int32_t tokens[] = {100, 100, 7, 2000, 2000};
    for (uint32_t n = 1; n <= N_RANKS_MAX; n++) {
        sampling_init(&s);
        s.n_prompt = 3;
        assert_int_equal(choose_over(n, &s, random_logits, tokens, 5).token, 100);
        s.repetition_penalty = 2; /* counts the prompt: 5, 4.5, 8 */
        assert_int_equal(choose_over(n, &s, random_logits, tokens, 5).token, 2500);
        s.repetition_penalty = 1;
        s.presence_penalty = 1.5f; /* does not: 10, 7.5, 8 */
        assert_int_equal(choose_over(n, &s, random_logits, tokens, 5).token, 100);
        s.presence_penalty = 0;
        s.frequency_penalty = -1; /* 10, 11, 8 */
        struct sampler_choice c = choose_over(n, &s, random_logits, tokens, 5);
        assert_int_equal(c.token, 2000);
        assert_true(fabsf(c.logit - 11) < 1e-6f && fabsf(c.logit_second - 10) < 1e-6f);
        s.n_bias = 2;
        s.bias[0] = (struct logit_bias){2000, -100};
        s.bias[1] = (struct logit_bias){2999, 50};
        assert_int_equal(choose_over(n, &s, random_logits, tokens, 5).token, 2999);
    }
}

/* Masks of any density, against the plain sampler on logits that are as good as minus infinity. */
static void masked_tokens_do_not_exist(void **state)
{
    static uint8_t bits[(N_VOCAB + 7) / 8];
    static float masked[N_VOCAB];
    int32_t tokens[1] = {0};
    (void)state;
    mask = bits;
    for (uint32_t trial = 0; trial < 200; trial++) {
        static const float temperatures[] = {0, 0.7f, 1, 3, 100}, top_ps[] = {1, 0.9f, 0.2f};
        static const uint32_t top_ks[] = {0, 1, 40, 2000};
        static const double densities[] = {0, 0.001, 0.02, 0.5, 0.99};
        struct sampling s;
        sampling_init(&s);
        s.temperature = temperatures[rng_u64(2, trial, 1) % 5];
        s.top_p = top_ps[rng_u64(2, trial, 2) % 3];
        s.top_k = top_ks[rng_u64(2, trial, 3) % 4];
        s.min_p = rng_u64(2, trial, 6) % 3 == 0 ? 0.1f : 0;
        s.seed = trial;
        make_logits(trial, rng_u64(2, trial, 4) % 2 == 0 ? 0.1f : 4);
        memset(bits, 0, sizeof(bits));
        uint32_t sure = (uint32_t)(rng_u64(2, trial, 5) % N_VOCAB);
        for (uint32_t i = 0; i < N_VOCAB; i++) {
            if (i == sure || rng_uniform(trial, i, 9) < densities[trial % 5])
                bits[i / 8] |= (uint8_t)(1u << i % 8);
            masked[i] = sampler_mask_allows(bits, i) ? random_logits[i] : -1e30f;
        }
        double margin;
        int32_t expected = choose_plainly(&s, masked, 0, &margin);
        for (uint32_t n = 1; n <= N_RANKS_MAX; n++) {
            struct sampler_choice c = choose_over(n, &s, random_logits, tokens, 0);
            assert_true(sampler_mask_allows(bits, (uint32_t)c.token));
            if (margin > 1e-5)
                assert_int_equal(c.token, expected);
        }
    }
    memset(bits, 0, sizeof(bits));
    struct sampler *sampler;
    struct sampler_choice choice;
    struct sampling s;
    struct error err;
    sampling_init(&s);
    assert_int_equal(sampler_new(N_VOCAB, &sampler, NULL), 0);
    assert_int_equal(sampler_choose(sampler, &s, random_logits, (struct range){0, N_VOCAB}, bits,
                                    tokens, 0, NULL, (struct comm_group){0, 1}, &choice, &err),
                     E_INVALID);
    sampler_free(sampler);
    mask = NULL;
}

static void bias_and_penalties_meet_the_mask(void **state)
{
    static uint8_t bits[(N_VOCAB + 7) / 8];
    struct sampling s;
    const int32_t tokens[] = {100, 2000};
    (void)state;
    sampling_init(&s);
    s.repetition_penalty = 2;
    s.n_bias = 2;
    s.bias[0] = (struct logit_bias){50, 100}; /* not allowed, however wanted */
    s.bias[1] = (struct logit_bias){2500, 3};
    for (uint32_t i = 0; i < N_VOCAB; i++)
        random_logits[i] = 0;
    random_logits[2000] = 5;
    memset(bits, 0, sizeof(bits));
    bits[2000 / 8] |= 1u << 2000 % 8;
    bits[2500 / 8] |= 1u << 2500 % 8;
    bits[7 / 8] |= 1u << 7;
    mask = bits;
    for (uint32_t n = 1; n <= N_RANKS_MAX; n++) {
        struct sampler_choice c = choose_over(n, &s, random_logits, tokens, 2);
        assert_int_equal(c.token, 2500);
        assert_true(c.logit == 3.0f && c.logit_second == 2.5f);
    }
    mask = NULL;
}

static void logprobs_are_those_of_the_model(void **state)
{
    static struct plain all[N_VOCAB];
    int32_t tokens[1] = {0};
    (void)state;
    for (uint32_t trial = 0; trial < 60; trial++) {
        struct sampling s;
        double sum = 0;
        sampling_init(&s);
        s.temperature = trial % 3 == 0 ? 0 : 2;
        s.seed = trial;
        s.n_bias = 1;
        s.bias[0] = (struct logit_bias){3, 20};
        n_top = trial % (LIMIT_TOP_LOGPROBS + 1);
        make_logits(trial, trial % 2 == 0 ? 0.1f : 5);
        for (int32_t i = 0; i < N_VOCAB; i++) {
            all[i] = (struct plain){(double)random_logits[i], i};
            sum += exp((double)random_logits[i]);
        }
        qsort(all, N_VOCAB, sizeof(all[0]), compare_plain);
        for (uint32_t n = 1; n <= N_RANKS_MAX; n++) {
            int32_t token = choose_over(n, &s, random_logits, tokens, 0).token;
            const struct logprobs *l = &last_logprobs;
            assert_true(fabs((double)l->chosen - ((double)random_logits[token] - log(sum))) < 1e-5);
            assert_int_equal(l->n_top, n_top);
            for (uint32_t i = 0; i < n_top; i++) {
                assert_int_equal(l->top[i].token, all[i].token);
                assert_true(fabs((double)l->top[i].logprob - (all[i].logit - log(sum))) < 1e-5);
            }
        }
    }
    n_top = 0;
}

static void impossible_tokens_have_a_number(void **state)
{
    struct logprobs l;
    float logits[3] = {0, -20000, -INFINITY};
    (void)state;
    for (int32_t token = 1; token < 3; token++) {
        assert_int_equal(logprobs_compute(logits, (struct range){0, 3}, token, 5, NULL,
                                          (struct comm_group){0, 1}, &l, NULL),
                         0);
        assert_true(l.chosen == LOGPROB_MIN);
        assert_int_equal(l.n_top, 3);
        assert_true(l.top[0].logprob == 0.0f && l.top[2].logprob == LOGPROB_MIN);
    }
}

static void bad_settings_are_refused(void **state)
{
    (void)state;
    struct error err;
    struct sampling s;
    sampling_init(&s);
    assert_int_equal(sampling_check(&s, 10, &err), 0);
    s.temperature = NAN;
    assert_int_equal(sampling_check(&s, 10, &err), E_INVALID);
    assert_non_null(strstr(err.message, "temperature"));
    sampling_init(&s);
    s.top_p = 1.01f;
    assert_int_equal(sampling_check(&s, 10, &err), E_INVALID);
    sampling_init(&s);
    s.repetition_penalty = 0;
    assert_int_equal(sampling_check(&s, 10, &err), E_INVALID);
    sampling_init(&s);
    s.n_bias = 1;
    s.bias[0] = (struct logit_bias){10, 1};
    assert_int_equal(sampling_check(&s, 10, &err), E_INVALID);
    s.n_bias = LIMIT_LOGIT_BIAS + 1;
    assert_int_equal(sampling_check(&s, 10, &err), E_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(equals_the_plain_sampler),
        cmocka_unit_test(draws_follow_the_distribution),
        cmocka_unit_test(ties_go_to_the_lower_token),
        cmocka_unit_test(penalties_and_bias),
        cmocka_unit_test(masked_tokens_do_not_exist),
        cmocka_unit_test(bias_and_penalties_meet_the_mask),
        cmocka_unit_test(logprobs_are_those_of_the_model),
        cmocka_unit_test(impossible_tokens_have_a_number),
        cmocka_unit_test(bad_settings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
