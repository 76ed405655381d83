/* Pieces that control frames and step plans have in common. Private to this folder. Thread: pure
 * functions. */
#ifndef SHOAL_RUNNER_WIRE_H
#define SHOAL_RUNNER_WIRE_H

#include "base/buf.h"
#include "base/error.h"
#include "engine/sampler.h"

/* Errors: those of buf_append. */
int wire_put_sampling(struct buf *b, const struct sampling *s);
/* Reads settings whose counts are in range and whose numbers are finite; sampling_check does the
 * rest once the vocabulary is known. Errors: E_PROTOCOL. */
int wire_get_sampling(struct cursor *c, struct sampling *ret, struct error *err);

#endif
