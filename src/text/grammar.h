/*
 * Grammars that generated text must follow: JSON schemas, Lark grammars, regular expressions. A
 * matcher says which tokens may come next and is told which one came. The engine is llguidance in
 * the small Rust library (src/text/rust).
 *
 * A matcher is told tokens, but what counts are their bytes: any way to cut the same text into
 * tokens is allowed. Control tokens are never allowed, but for those that end the text, which are
 * when it is complete. Between the parts of JSON text there may be a space, or a line's end and an
 * indent of up to 32 characters.
 *
 * Grammars are hostile: their size, the work of compiling one and that of each step are bounded.
 * Thread: a vocabulary is immutable, and any thread may compile with it; a matcher is one thread's
 * at a time.
 */
#ifndef SHOAL_TEXT_GRAMMAR_H
#define SHOAL_TEXT_GRAMMAR_H

#include "base/error.h"
#include "text/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum grammar_kind {
    GRAMMAR_JSON_SCHEMA,
    GRAMMAR_JSON_OBJECT, /* any object; there is no text */
    GRAMMAR_LARK,        /* Lark's syntax as llguidance has it */
    GRAMMAR_REGEX,       /* of the whole text; syntax of Rust's regex crate */
    GRAMMAR_KIND_COUNT,
};

struct grammar_vocab; /* opaque: a vocabulary prepared for matching */
struct grammar;       /* opaque: a matcher */

/* Takes a second and 100 MB for 250,000 tokens, so it is made once. Borrows nothing.
 * Errors: E_NOMEM, E_INVALID, E_INTERNAL. */
int grammar_vocab_new(const struct tokenizer *t, struct grammar_vocab **ret_vocab,
                      struct error *err);
/* Matchers made with it may live on. NULL is fine. */
void grammar_vocab_free(struct grammar_vocab *v);

/* Errors: E_INVALID (says what is wrong in the grammar), E_LIMIT (a schema over
 * LIMIT_GRAMMAR_BYTES, another text over a sixteenth of that, or it takes too much work),
 * E_INTERNAL. */
int grammar_compile(const struct grammar_vocab *v, enum grammar_kind kind, const char *text,
                    size_t len, struct grammar **ret_grammar, struct error *err);
void grammar_free(struct grammar *g); /* NULL is fine */

/* Sets the bits of tokens that may come next (token i: bit i % 8 of byte i / 8), and clears the
 * others. ret_is_over: nothing can; no bit is set then. Errors: E_LIMIT (too much work),
 * E_INTERNAL; then the matcher is broken. */
int grammar_mask(struct grammar *g, uint8_t *bits, size_t n_bytes, bool *ret_is_over,
                 struct error *err);
/* Takes the token that came. Errors: E_INVALID when it is not allowed, E_LIMIT, E_INTERNAL; then
 * the matcher is broken. */
int grammar_accept(struct grammar *g, token_id token, struct error *err);
/* Whether the text so far is complete. */
bool grammar_may_end(struct grammar *g);

#endif
