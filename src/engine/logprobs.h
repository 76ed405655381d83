/*
 * How likely the model held the token that was chosen, and those that it held likeliest: natural
 * logarithms of the distribution that its logits are, before bias, penalties, mask and temperature
 * (as OpenAI's API reports it). Over all slices of the vocabulary, and the same on all ranks.
 * Thread: pure functions.
 */
#ifndef SHOAL_ENGINE_LOGPROBS_H
#define SHOAL_ENGINE_LOGPROBS_H

#include "base/error.h"
#include "base/limits.h"
#include "comm/comm.h"
#include "model/shard.h"

#include <stdint.h>

/* Below this a token counts as impossible; JSON has no minus infinity. */
#define LOGPROB_MIN (-9999.0f)

struct token_logprob {
    int32_t token;
    float logprob;
};

struct logprobs {
    float chosen; /* of the token that was chosen */
    uint32_t n_top;
    struct token_logprob top[LIMIT_TOP_LOGPROBS]; /* the likeliest first; of equals the lower id */
};

/* logits[vocab.end - vocab.begin] are this rank's slice. n_top: at most LIMIT_TOP_LOGPROBS; fewer
 * come when the vocabulary has fewer. comm NULL: the slice is the whole vocabulary. All ranks of
 * group call it with the same token and n_top. Errors: those of comm. */
int logprobs_compute(const float *logits, struct range vocab, int32_t token, uint32_t n_top,
                     struct comm *comm, struct comm_group group, struct logprobs *ret_logprobs,
                     struct error *err);

#endif
