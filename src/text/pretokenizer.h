/*
 * Cuts text into the words within which byte-level BPE merges: a named list of regular expressions,
 * each applied to the pieces that the one before it left, as Hugging Face's pre-tokenizer sequences
 * do (matches and the gaps between them are both pieces). Owns compiled patterns. Thread: immutable
 * once made; match data is per call.
 */
#ifndef SHOAL_TEXT_PRETOKENIZER_H
#define SHOAL_TEXT_PRETOKENIZER_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>

struct pretokenizer; /* opaque */

/* By the value of tokenizer.ggml.pre. Errors: E_UNSUPPORTED (names the value), E_NOMEM, E_INTERNAL.
 */
int pretokenizer_new(const char *name, size_t len, struct pretokenizer **ret_pretokenizer,
                     struct error *err);
void pretokenizer_free(struct pretokenizer *p);
bool pretokenizer_composes(
    const struct pretokenizer *p); /* text is put in Unicode's form C first */
bool pretokenizer_ignores_merges(
    const struct pretokenizer *p);                        /* a word that is a token is that token */
bool pretokenizer_adds_bos(const struct pretokenizer *p); /* unless the metadata says otherwise */

typedef int (*pretokenizer_word_fn)(void *arg, const char *word, size_t len);
/* Calls word for each piece, in order, until one call fails. The text is valid UTF-8. Errors:
 * E_NOMEM, E_INTERNAL (match limits), those of word. */
int pretokenizer_split(const struct pretokenizer *p, const char *text, size_t len,
                       pretokenizer_word_fn word, void *arg, struct error *err);

#endif
