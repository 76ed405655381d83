/*
 * The control tokens of a vocabulary as text, to be found in prompts: what a user writes must never
 * become one of them. Built once for a model, shared by reference. Thread: immutable once made; the
 * references are counted on the loop.
 */
#ifndef SHOAL_API_CONTROL_SET_H
#define SHOAL_API_CONTROL_SET_H

#include "base/error.h"
#include "text/tokenizer.h"

#include <stddef.h>

struct control_set; /* opaque */

/* Walks the vocabulary: tens of microseconds per thousand tokens. Errors: E_NOMEM. */
int control_set_new(const struct tokenizer *t, struct control_set **ret_set, struct error *err);
struct control_set *control_set_ref(struct control_set *s);
void control_set_unref(struct control_set *s);
/* Length of the longest control token at the front of the text, 0 when there is none. */
size_t control_set_match(const struct control_set *s, const char *text, size_t len,
                         token_id *ret_id);

#endif
