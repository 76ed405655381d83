/*
 * Watches the bytes of an HTTP/1.x request head before the parser sees them, and refuses what
 * parsers have read in different ways: a space before the colon, folded lines, bare CR or LF,
 * control bytes, more than two spaces in the request line. It also counts bytes, fields and the
 * target's length. Two readers that must agree on where the head ends make request smuggling hard,
 * and the older llhttp versions let two of these through.
 *
 * Source: RFC 9112, sections 2.2, 3, 5.1, 5.2. Thread: none; plain state.
 */
#ifndef SHOAL_API_HTTP_GUARD_H
#define SHOAL_API_HTTP_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct http_guard {
    uint8_t state;
    uint8_t n_spaces;  /* in the request line */
    uint16_t n_fields; /* header lines begun */
    uint32_t n_bytes;
    uint32_t n_target_bytes;
    int status;          /* of the refusal: 400, 414 or 431 */
    const char *problem; /* its text; NULL while all is well */
};

void http_guard_init(struct http_guard *g);
/* Reads on. Returns how many bytes belong to the head: all, or fewer when it ended (*ret_done) or
 * is refused (g->problem). */
size_t http_guard_scan(struct http_guard *g, const char *data, size_t len, bool *ret_done);

#endif
