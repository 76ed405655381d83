/* Pieces that control frames and step plans have in common. Private to this folder. Thread: pure
 * functions. */
#ifndef SHOAL_RUNNER_WIRE_H
#define SHOAL_RUNNER_WIRE_H

#include "base/buf.h"
#include "base/error.h"
#include "engine/logprobs.h"
#include "engine/sampler.h"

/* Errors: those of buf_append. */
int wire_put_sampling(struct buf *b, const struct sampling *s);
/* Reads settings whose counts are in range and whose numbers are finite; sampling_check does the
 * rest once the vocabulary is known. Errors: E_PROTOCOL. */
int wire_get_sampling(struct cursor *c, struct sampling *ret, struct error *err);

/* How likely a token was: f32, u8 n_top, then n_top times u32 token, f32. Errors: those of
 * buf_append; E_PROTOCOL, also for numbers that are no log-probabilities. */
int wire_put_logprobs(struct buf *b, const struct logprobs *l);
int wire_get_logprobs(struct cursor *c, struct logprobs *ret, struct error *err);

#endif
