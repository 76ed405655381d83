/* UTF-8 checks shared by JSON, tokenizers and the stream of generated text. Source: RFC 3629.
 * Thread: any. */
#ifndef SHOAL_BASE_UTF8_H
#define SHOAL_BASE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Bytes (1-4) of the valid sequence at the front, 0 when it is invalid or cut off. */
size_t utf8_sequence_length(const char *text, size_t len);
/* True when the bytes are the beginning of a valid sequence that needs more bytes. */
bool utf8_is_incomplete(const char *text, size_t len);
/* Code point of the valid sequence at the front. */
uint32_t utf8_decode(const char *text, size_t sequence_length);
/* Writes a code point (below 0x110000, no surrogate) and returns its 1-4 bytes. */
size_t utf8_encode(uint32_t code_point, char ret_text[4]);

#endif
