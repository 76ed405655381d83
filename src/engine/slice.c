#include "engine/slice.h"

#include <stdlib.h>

bool candidate_is_before(struct candidate a, struct candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

int candidate_compare(const void *a, const void *b)
{
    const struct candidate *x = a, *y = b;
    return candidate_is_before(*x, *y) ? -1 : candidate_is_before(*y, *x);
}

/* Restores the heap (worst candidate on top) after its top was replaced. */
static void sift_down(struct candidate *heap, uint32_t n)
{
    for (uint32_t i = 0;;) {
        uint32_t worst = i, left = 2 * i + 1, right = left + 1;
        if (left < n && candidate_is_before(heap[worst], heap[left]))
            worst = left;
        if (right < n && candidate_is_before(heap[worst], heap[right]))
            worst = right;
        if (worst == i)
            return;
        struct candidate t = heap[i];
        heap[i] = heap[worst];
        heap[worst] = t;
        i = worst;
    }
}

static struct candidate candidate_at(const struct slice *s, uint32_t i)
{
    return (struct candidate){s->logits[i], s->ids != NULL ? s->ids[i] : (int32_t)(s->first + i)};
}

uint32_t slice_select(const struct slice *s, uint32_t n_max, struct candidate *best)
{
    uint32_t n = s->n < n_max ? s->n : n_max;
    if (n == 0)
        return 0;
    for (uint32_t i = 0; i < n; i++)
        best[i] = candidate_at(s, i);
    qsort(best, n, sizeof(*best), candidate_compare);
    for (uint32_t i = 0; i < n / 2; i++) { /* worst first is a heap */
        struct candidate t = best[i];
        best[i] = best[n - 1 - i];
        best[n - 1 - i] = t;
    }
    float threshold = best[0].logit; /* a later token with an equal logit never goes before */
    for (uint32_t i = n; i < s->n; i++)
        if (s->logits[i] > threshold) {
            best[0] = candidate_at(s, i);
            sift_down(best, n);
            threshold = best[0].logit;
        }
    qsort(best, n, sizeof(*best), candidate_compare);
    return n;
}

/* exp(x) for x <= 0, relative error below 2e-7, written so that compilers vectorize loops over it:
 * 2^k by exponent bits, 2^f on [-1/2, 1/2] by the Taylor polynomial of degree 7. */
static inline float exp_negative(float x)
{
    float y = x * 1.44269504f;
    y = y < -126.0f ? -126.0f : y;
    float k = (float)(int32_t)(y - 0.5f); /* rounds to nearest for y <= 0 */
    float f = (y - k) * 0.693147181f;
    float p = 1.0f +
              f * (1.0f + f * (0.5f + f * (1.66666667e-1f +
                                           f * (4.16666667e-2f +
                                                f * (8.33333333e-3f +
                                                     f * (1.38888889e-3f + f * 1.98412698e-4f))))));
    union {
        int32_t i;
        float f;
    } scale = {.i = ((int32_t)k + 127) << 23};
    return p * scale.f;
}

float slice_sum(const struct slice *s, float max, float inverse_temperature)
{
    enum { LANES = 16, BLOCK = 4096 };
    const float *logits = s->logits;
    uint32_t n = s->n;
    double sum = 0;
    for (uint32_t begin = 0; begin < n; begin += BLOCK) {
        uint32_t end = n - begin < BLOCK ? n : begin + BLOCK, i = begin;
        float lane[LANES] = {0};
        for (; i + LANES <= end; i += LANES)
            for (uint32_t j = 0; j < LANES; j++)
                lane[j] += exp_negative((logits[i + j] - max) * inverse_temperature);
        for (; i < end; i++)
            lane[0] += exp_negative((logits[i] - max) * inverse_temperature);
        for (uint32_t j = 0; j < LANES; j++)
            sum += (double)lane[j];
    }
    return (float)sum;
}
