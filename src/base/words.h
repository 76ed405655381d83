/* What people may have meant: how far apart two short words are. Thread: any. */
#ifndef SHOAL_BASE_WORDS_H
#define SHOAL_BASE_WORDS_H

#include <stddef.h>

enum { WORD_BYTES_MAX = 48 };

/* Letters to put in, take out or change to make b of a (Levenshtein 1966); WORD_BYTES_MAX when one
 * of them is longer than that. */
size_t word_distance(const char *a, const char *b);

#endif
