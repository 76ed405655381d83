/*
 * A small set of byte ranges of one file: which are there, and which are not. Thread: none of this
 * is shared.
 */
#ifndef SHOAL_STORE_RANGES_H
#define SHOAL_STORE_RANGES_H

#include <stdbool.h>
#include <stdint.h>

enum { RANGES_MAX = 64 }; /* connections come and go; what they leave behind merges */

struct range {
    uint64_t begin, end; /* end is not included */
};

struct ranges { /* sorted, apart from each other */
    uint32_t n;
    struct range item[RANGES_MAX];
};

/* False when it does not fit: then it is as if it had not been there. */
bool ranges_add(struct ranges *r, uint64_t begin, uint64_t end);
/* When a hole does not fit, more than asked for is taken out. */
void ranges_remove(struct ranges *r, uint64_t begin, uint64_t end);
uint64_t ranges_bytes(const struct ranges *r);
/* End of the range that begins at 0. */
uint64_t ranges_prefix(const struct ranges *r);
/* The first hole below `total`. False: there is none. */
bool ranges_first_hole(const struct ranges *r, uint64_t total, struct range *ret_hole);

#endif
