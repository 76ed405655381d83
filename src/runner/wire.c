#include "runner/wire.h"

#include <math.h>
#include <string.h>

int wire_put_sampling(struct buf *b, const struct sampling *s)
{
    buf_append_f32(b, s->temperature);
    buf_append_u32(b, s->top_k);
    buf_append_f32(b, s->top_p);
    buf_append_f32(b, s->min_p);
    buf_append_f32(b, s->repetition_penalty);
    buf_append_f32(b, s->frequency_penalty);
    buf_append_f32(b, s->presence_penalty);
    buf_append_u64(b, s->seed);
    buf_append_u32(b, s->n_prompt);
    buf_append_u32(b, s->n_bias);
    for (uint32_t i = 0; i < s->n_bias && i < LIMIT_LOGIT_BIAS; i++) {
        buf_append_u32(b, (uint32_t)s->bias[i].token);
        buf_append_f32(b, s->bias[i].bias);
    }
    return b->error;
}

static bool read_finite(struct cursor *c, float *ret)
{
    *ret = cursor_f32(c);
    return isfinite(*ret);
}

int wire_get_sampling(struct cursor *c, struct sampling *ret, struct error *err)
{
    bool finite = read_finite(c, &ret->temperature);
    ret->top_k = cursor_u32(c);
    finite &= read_finite(c, &ret->top_p);
    finite &= read_finite(c, &ret->min_p);
    finite &= read_finite(c, &ret->repetition_penalty);
    finite &= read_finite(c, &ret->frequency_penalty);
    finite &= read_finite(c, &ret->presence_penalty);
    ret->seed = cursor_u64(c);
    ret->n_prompt = cursor_u32(c);
    ret->n_bias = cursor_u32(c);
    if (ret->n_bias > LIMIT_LOGIT_BIAS)
        return error_set(err, E_PROTOCOL, "sampling: %u logit biases, at most %d are allowed",
                         ret->n_bias, LIMIT_LOGIT_BIAS);
    for (uint32_t i = 0; i < ret->n_bias; i++) {
        ret->bias[i].token = (int32_t)cursor_u32(c);
        finite &= read_finite(c, &ret->bias[i].bias);
    }
    if (c->failed)
        return error_set(err, E_PROTOCOL, "sampling: cut off");
    if (!finite)
        return error_set(err, E_PROTOCOL, "sampling: a setting is not a finite number");
    return 0;
}

int wire_put_logprobs(struct buf *b, const struct logprobs *l)
{
    buf_append_f32(b, l->chosen);
    buf_append_u8(b, (uint8_t)l->n_top);
    for (uint32_t i = 0; i < l->n_top && i < LIMIT_TOP_LOGPROBS; i++) {
        buf_append_u32(b, (uint32_t)l->top[i].token);
        buf_append_f32(b, l->top[i].logprob);
    }
    return b->error;
}

static bool is_logprob(float p)
{
    return p >= LOGPROB_MIN && p <= 0;
}

int wire_get_logprobs(struct cursor *c, struct logprobs *ret, struct error *err)
{
    *ret = (struct logprobs){.chosen = cursor_f32(c), .n_top = cursor_u8(c)};
    bool is_fine = is_logprob(ret->chosen) && ret->n_top <= LIMIT_TOP_LOGPROBS;
    for (uint32_t i = 0; i < ret->n_top && is_fine; i++) {
        ret->top[i].token = (int32_t)cursor_u32(c);
        ret->top[i].logprob = cursor_f32(c);
        is_fine = ret->top[i].token >= 0 && is_logprob(ret->top[i].logprob);
    }
    if (c->failed)
        return error_set(err, E_PROTOCOL, "log-probabilities: cut off");
    return is_fine ? 0 : error_set(err, E_PROTOCOL, "log-probabilities: no such numbers");
}
