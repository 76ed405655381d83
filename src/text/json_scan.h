/* Follows one JSON value byte by byte and says where it ends or breaks, without keeping it.
 * Stricter than needed nowhere, looser in one place: raw control characters inside of strings pass,
 * because models write them; json_scan_in_string() tells the caller to escape them. Source: RFC
 * 8259. */
#ifndef SHOAL_TEXT_JSON_SCAN_H
#define SHOAL_TEXT_JSON_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { JSON_SCAN_DEPTH_MAX = 256 };

enum json_scan_result {
    JSON_SCAN_MORE,
    JSON_SCAN_DONE,        /* the value ends with this byte */
    JSON_SCAN_DONE_BEFORE, /* a number ended before this byte, which is not part of it */
    JSON_SCAN_BAD,
};

struct json_scan {
    uint8_t state;
    bool is_key;
    bool wants_low; /* the second half of a surrogate pair must follow */
    uint8_t n_hex;  /* digits of \u still to come */
    uint16_t unit;  /* value of \u so far */
    uint16_t depth;
    const char *rest; /* of true, false or null */
    uint8_t is_object[JSON_SCAN_DEPTH_MAX / 8];
};

void json_scan_init(struct json_scan *s);
enum json_scan_result json_scan_byte(struct json_scan *s, char c);
/* Whether the next byte would be a plain character of a string. */
bool json_scan_in_string(const struct json_scan *s);
/* Whether the text is one whole value, with white space around it at most. */
bool json_scan_is_value(const char *text, size_t len);

#endif
