/*
 * The C side of the Rust library in this folder: it compiles and renders chat templates, and
 * matches tokens with grammars; it owns nothing of the caller's. No panic crosses this border: it
 * becomes SHOAL_RUST_INTERNAL. Memory that one call may ask for is bounded (src/budget.rs,
 * src/grammar.rs); when the system refuses even that, Rust's allocator ends the process. Thread:
 * templates and vocabularies are immutable; any thread may use them. A grammar is one thread's at a
 * time.
 */
#ifndef SHOAL_TEXT_RUST_H
#define SHOAL_TEXT_RUST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum shoal_rust_status {
    SHOAL_RUST_OK = 0,
    SHOAL_RUST_FORMAT =
        1, /* the template, its context or the grammar is malformed, or they do not fit */
    SHOAL_RUST_LIMIT = 2,    /* too large, too many steps, too deep */
    SHOAL_RUST_REFUSED = 3,  /* the template called raise_exception; the message is its own */
    SHOAL_RUST_INTERNAL = 4, /* a panic, or no thread could be started */
    SHOAL_RUST_NOTHING = 5,  /* no error: no token can follow */
};

struct shoal_rust_template; /* opaque */

/* Compiles a template of len bytes of UTF-8, at most SHOAL_RUST_SOURCE_BYTES. On failure message
 * (NUL-terminated, cut to message_bytes, which must not be 0) says why, and *ret_template is
 * untouched. Returns an enum shoal_rust_status. */
int32_t shoal_rust_template_new(const char *source, size_t len,
                                struct shoal_rust_template **ret_template, char *message,
                                size_t message_bytes);
void shoal_rust_template_free(struct shoal_rust_template *t);

/* Renders with a JSON object as the context; now_s is Unix time for strftime_now (UTC). On success
 * write(arg, text, len) is called exactly once, on the calling thread, with at most max_bytes of
 * UTF-8. */
int32_t shoal_rust_template_render(const struct shoal_rust_template *t, const char *context,
                                   size_t len, uint64_t now_s, size_t max_bytes,
                                   void (*write)(void *arg, const char *text, size_t len),
                                   void *arg, char *message, size_t message_bytes);

enum { SHOAL_RUST_SOURCE_BYTES = 256 * 1024 }; /* the largest real template has about 100 KB */

/* ---- grammars ---- */

struct shoal_rust_vocab;   /* opaque */
struct shoal_rust_grammar; /* opaque */

enum { SHOAL_RUST_GRAMMAR_BYTES = 256 * 1024 };

/* Token i is pieces[starts[i] .. starts[i + 1]], starts[n_vocab + 1]; an empty one is never
 * allowed. ends[n_ends] are allowed where the text may end. */
int32_t shoal_rust_vocab_new(const uint8_t *pieces, const uint32_t *starts, uint32_t n_vocab,
                             const uint32_t *ends, uint32_t n_ends,
                             struct shoal_rust_vocab **ret_vocab, char *message,
                             size_t message_bytes);
void shoal_rust_vocab_free(struct shoal_rust_vocab *v); /* its grammars may live on */

/* kind: 0 JSON schema, 1 JSON object, 2 Lark, 3 regular expression; text of len bytes, at most
 * SHOAL_RUST_GRAMMAR_BYTES. */
int32_t shoal_rust_grammar_new(const struct shoal_rust_vocab *v, uint32_t kind, const char *text,
                               size_t len, struct shoal_rust_grammar **ret_grammar, char *message,
                               size_t message_bytes);
void shoal_rust_grammar_free(struct shoal_rust_grammar *g);

/* Fills bits[n_bytes]: token i is bit i % 8 of byte i / 8, set where it may come next.
 * SHOAL_RUST_NOTHING: none can. */
int32_t shoal_rust_grammar_mask(struct shoal_rust_grammar *g, uint8_t *bits, size_t n_bytes,
                                char *message, size_t message_bytes);
int32_t shoal_rust_grammar_accept(struct shoal_rust_grammar *g, uint32_t token, char *message,
                                  size_t message_bytes);
bool shoal_rust_grammar_may_end(struct shoal_rust_grammar *g);

#endif
