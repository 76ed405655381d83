/* What the headers of an HTTP answer say about a file and the range of it that follows. Hostile
 * input: everything is bounded. Thread: none of this is shared. */
#ifndef SHOAL_STORE_RESPONSE_H
#define SHOAL_STORE_RESPONSE_H

#include "store/part_file.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct response {
    char etag[PART_TAG_BYTES]; /* a strong one, with its quotes; "": none */
    char modified[PART_TAG_BYTES];
    bool has_range;                  /* Content-Range: bytes BEGIN-END/TOTAL, and it makes sense */
    uint64_t range_begin, range_end; /* end is not included */
    uint64_t range_total;            /* PART_TOTAL_UNKNOWN: "*" */
    bool has_length;
    uint64_t length;
    uint32_t retry_after_s; /* 0: not said */
};

/* One header line as curl gives it; a status line begins a new answer. */
void response_take_line(struct response *r, const char *line, size_t len);
/* Whether what is on the disk is of the same file as this answer. */
bool response_is_same(const struct response *r, uint64_t total, const char *url,
                      const struct part_source *found, bool has_sha256);

#endif
