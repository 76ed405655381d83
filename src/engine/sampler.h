/*
 * Choosing a token from logits that are spread over the ranks of a stage by vocabulary. Each rank
 * reduces its slice to its best candidates and a sum of exponentials; these few bytes are gathered,
 * and every rank makes the same choice. Random numbers are keyed by (seed, position), so a run that
 * is repeated from the middle chooses the same tokens.
 *
 * Order of operations: logit bias, penalties (over all tokens of the sequence), mask, temperature,
 * top-k, top-p, min-p. Temperature 0 is greedy. Ties go to the lower token id. Thread: no shared
 * state.
 */
#ifndef SHOAL_ENGINE_SAMPLER_H
#define SHOAL_ENGINE_SAMPLER_H

#include "base/error.h"
#include "base/limits.h"
#include "comm/comm.h"
#include "model/shard.h"

#include <stdbool.h>
#include <stdint.h>

struct logit_bias {
    int32_t token;
    float bias;
};

struct sampling {
    float temperature;        /* 0: greedy */
    uint32_t top_k;           /* 0: off */
    float top_p;              /* 1: off */
    float min_p;              /* 0: off */
    float repetition_penalty; /* 1: off; divides positive and multiplies negative logits of tokens
                                 seen (Keskar et al. 2019) */
    float frequency_penalty;  /* 0: off; times the number of occurrences in the generated text, as
                                 OpenAI defines it */
    float presence_penalty;   /* 0: off */
    uint64_t seed;
    uint32_t n_prompt; /* tokens at the front of the sequence that frequency and presence penalties
                          do not count */
    uint32_t n_bias;
    struct logit_bias bias[LIMIT_LOGIT_BIAS];
};

/* Greedy, everything off. */
void sampling_init(struct sampling *s);
/* Values in range, numbers finite. Errors: E_INVALID (names the setting and its range). */
int sampling_check(const struct sampling *s, uint32_t n_vocab, struct error *err);

struct sampler_choice {
    int32_t token;
    float logit, logit_second;
};

/* Work space for a vocabulary of n_vocab tokens, of which a rank has a slice. */
struct sampler;
int sampler_new(uint32_t n_vocab, struct sampler **ret_sampler, struct error *err);
void sampler_free(struct sampler *s);

/* Chooses the token that follows tokens[n_tokens]. logits[vocab.end - vocab.begin] are this rank's
 * slice and are not changed. mask: bits over the whole vocabulary, token i in byte i / 8,
 * [sampler_mask_bytes(n_vocab)]; tokens whose bit is 0 are as if they did not exist; NULL: all may
 * be chosen. comm NULL: the slice
 * is the whole vocabulary. All ranks of group call it with the same settings, mask and tokens.
 * Errors: E_INVALID when the mask allows nothing; those of comm. */
int sampler_choose(struct sampler *s, const struct sampling *sampling, const float *logits,
                   struct range vocab, const uint8_t *mask, const int32_t *tokens,
                   uint32_t n_tokens, struct comm *comm, struct comm_group group,
                   struct sampler_choice *ret_choice, struct error *err);

static inline uint32_t sampler_mask_bytes(uint32_t n_vocab)
{
    return (n_vocab + 7) / 8;
}

static inline bool sampler_mask_allows(const uint8_t *mask, uint32_t token)
{
    return mask[token / 8] >> token % 8 & 1;
}

#endif
