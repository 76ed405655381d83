/*
 * Stop strings in a stream of text, across token borders: text that might be the beginning of a
 * stop string is held back until it is decided. The stop string itself is not part of the output.
 * Thread: one matcher, one thread.
 */
#ifndef SHOAL_TEXT_STOP_H
#define SHOAL_TEXT_STOP_H

#include "base/buf.h"
#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct stop_matcher; /* opaque */

/* n strings (copied), each 1 .. LIMIT_STOP_STRING_BYTES bytes, at most LIMIT_STOP_STRINGS. n may be
 * 0. Errors: E_LIMIT, E_INVALID, E_NOMEM. */
int stop_matcher_new(const char *const *strings, const size_t *lens, size_t n,
                     struct stop_matcher **ret_matcher, struct error *err);
void stop_matcher_free(struct stop_matcher *m);
/* Feeds text, appends to out what is safe to show. Sets *ret_stopped (and *ret_index of the string,
 * may be NULL) once a stop string is complete; later text is ignored. The earliest occurrence in
 * the text wins; of those that start together, the one that completes first. */
int stop_matcher_push(struct stop_matcher *m, const char *text, size_t len, struct buf *out,
                      bool *ret_stopped, size_t *ret_index);
/* End of stream: appends what was held back. A stop string may turn out to be complete only here:
 * one inside the beginning of another that began earlier ("bc" in the text "abc", with "abcd" and
 * "bc"); ask stop_matcher_stopped() then. */
int stop_matcher_finish(struct stop_matcher *m, struct buf *out);
/* Whether a stop string was found, and which (*ret_index, may be NULL). */
bool stop_matcher_stopped(const struct stop_matcher *m, size_t *ret_index);

#endif
