/* Text before it is tokenized: bytes that are not UTF-8 replaced, and Unicode's composed form.
 * Thread: any; there is no state. */
#ifndef SHOAL_TEXT_NORMALIZE_H
#define SHOAL_TEXT_NORMALIZE_H

#include "base/buf.h"

/* Bytes at the front that are UTF-8: len when all of them are. */
size_t text_valid_length(const char *text, size_t len);
/* Appends the text with U+FFFD for each byte, or cut-off sequence, that is not UTF-8 (Unicode 15,
 * section 3.9, "maximal subparts"; the same as Python's decode with errors="replace"). Errors:
 * those of buf_append. */
int text_append_valid(struct buf *out, const char *text, size_t len);
/* Appends valid UTF-8 in Normalization Form C. Errors: those of buf_append. Source: Unicode
 * Standard Annex 15. */
int text_append_nfc(struct buf *out, const char *text, size_t len);

#endif
