/*
 * JSON: strict documents in (jansson: bad UTF-8, trailing bytes and duplicate surprises refused,
 * depth bounded), append-only text out. Documents are jansson's json_t, used directly by callers.
 * Source: RFC 8259. Thread: a document belongs to one thread at a time.
 */
#ifndef SHOAL_BASE_JSON_H
#define SHOAL_BASE_JSON_H

#include "base/buf.h"
#include "base/error.h"

#include <jansson.h>

/* Parses exactly one value. Owns: the caller, json_decref. Errors: E_FORMAT with line and column,
 * E_NOMEM. */
int json_parse(const char *text, size_t len, json_t **ret_value, struct error *err);

/* Appends text as a JSON string with quotes. Bytes that are not UTF-8 become U+FFFD. Errors: those
 * of buf_append. */
int json_append_string(struct buf *b, const char *text, size_t len);
/* Appends a finite number with the fewest digits that read back the same; others as null. */
int json_append_double(struct buf *b, double v);
/* Appends a whole document in compact form. Errors: those of buf_append. */
int json_append_value(struct buf *b, const json_t *value);

#endif
