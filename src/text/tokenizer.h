/*
 * Text to tokens and back, from a GGUF file's tokenizer.ggml.* metadata: byte-level BPE ("gpt2"
 * model, with a pre-tokenizer rule) and SentencePiece ("llama" model: bigram merges by score; byte
 * fallback).
 *
 * Bytes that are not UTF-8 are replaced by U+FFFD before tokenizing (as Hugging Face's Python layer
 * does); the docs say so. Thread: immutable once made; any thread may use it (PCRE2 match data is
 * per call).
 */
#ifndef SHOAL_TEXT_TOKENIZER_H
#define SHOAL_TEXT_TOKENIZER_H

#include "base/buf.h"
#include "base/error.h"
#include "model/gguf.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef int32_t token_id;

struct token_list { /* growable, owned by the caller */
    token_id *ids;
    size_t n, cap;
};
void token_list_init(struct token_list *l);
void token_list_done(struct token_list *l);
int token_list_append(struct token_list *l, token_id id); /* E_NOMEM, E_LIMIT */

struct tokenizer; /* opaque */

/* Owns: the caller. Borrows nothing: the file may be closed after. Errors: E_NOTFOUND, E_FORMAT,
 * E_UNSUPPORTED (unknown pre-tokenizer: the message names it), E_LIMIT, E_NOMEM. */
int tokenizer_new(const struct gguf_file *file, struct tokenizer **ret_tokenizer,
                  struct error *err);
void tokenizer_free(struct tokenizer *t);

enum { TOKENIZE_ADD_BOS = 1, TOKENIZE_PARSE_SPECIAL = 2 };
/* Appends the tokens of text. ADD_BOS: begin with the BOS token if the model's metadata wants one.
 * PARSE_SPECIAL: control and user-defined tokens written in the text become themselves (templates
 * need it; user text never gets it). Errors: E_LIMIT (over LIMIT_PROMPT_BYTES), E_NOMEM, E_INTERNAL
 * (regex match limits). */
int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                     struct token_list *out, struct error *err);

uint32_t tokenizer_n_vocab(const struct tokenizer *t);
token_id tokenizer_bos(const struct tokenizer *t); /* -1 when there is none */
token_id tokenizer_eos(const struct tokenizer *t); /* -1 when there is none */
bool tokenizer_adds_bos(const struct tokenizer *t);
/* End of generation: eos, eot, eom, and tokens known to end a turn (<|im_end|>, <|eot_id|>,
 * <end_of_turn>, <|endoftext|>, ...). */
bool tokenizer_is_end(const struct tokenizer *t, token_id id);
/* All of them: returns how many, at most max written. */
size_t tokenizer_end_ids(const struct tokenizer *t, token_id *ret_ids, size_t max);
/* The token with exactly this text, -1 when there is none. */
token_id tokenizer_find(const struct tokenizer *t, const char *text, size_t len);
/* Bytes that the token stands for in output ("" for control tokens unless with_special). Borrows;
 * ret_len bytes. Out of range ids give "". */
const char *tokenizer_piece(const struct tokenizer *t, token_id id, bool with_special,
                            size_t *ret_len);

/* Streaming detokenizer: appends to out only whole UTF-8 sequences; bytes of an unfinished one wait
 * for the next token. An invalid byte becomes U+FFFD. */
struct detokenizer {
    const struct tokenizer *tokenizer;
    char pending[4];
    uint8_t n_pending;
    bool with_special;
    bool at_start; /* SentencePiece: the space that the tokenizer put before the first word is
                      dropped at the start of a decode of a whole text */
};
void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool with_special,
                      bool at_start);
int detokenizer_push(struct detokenizer *d, token_id id,
                     struct buf *out); /* errors of buf_append */
/* End of stream: what is still pending becomes U+FFFD. */
int detokenizer_finish(struct detokenizer *d, struct buf *out);

#endif
