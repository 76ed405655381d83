/*
 * A rank's slice of the logits of one row, and what of it others need: its best candidates and sums
 * of exponentials. Private to this folder. Thread: pure functions.
 */
#ifndef SHOAL_ENGINE_SLICE_H
#define SHOAL_ENGINE_SLICE_H

#include <stdbool.h>
#include <stdint.h>

struct slice {
    const float *logits; /* [n] */
    const int32_t *ids;  /* [n] of the tokens, ascending; NULL: from `first` on */
    uint32_t first, n;
};

struct candidate {
    float logit;
    int32_t token;
};

/* Order of candidates: higher logit first, then lower token id. */
bool candidate_is_before(struct candidate a, struct candidate b);
/* The same for qsort. */
int candidate_compare(const void *a, const void *b);

/* The n_max best of the slice, in order. Returns how many. */
uint32_t slice_select(const struct slice *s, uint32_t n_max, struct candidate *ret_best);
/* Of exp((logit - max) * inverse_temperature), relative error below 1e-6. */
float slice_sum(const struct slice *s, float max, float inverse_temperature);

#endif
