/*
 * SentencePiece's BPE: pairs of neighbours are joined if the result is a token, best score first;
 * characters without a token become byte tokens. Owns its tables. Thread: immutable once loaded.
 */
#ifndef SHOAL_TEXT_SPM_H
#define SHOAL_TEXT_SPM_H

#include "base/buf.h"
#include "text/merge.h"
#include "text/pretokenizer.h"
#include "text/vocab.h"

struct spm {
    const struct vocab *vocab;
    uint32_t *rank;  /* [n_vocab] place in the order of merging; UINT32_MAX: never made from text */
    uint64_t *pairs; /* Bloom filter of the pairs of neighbouring characters inside tokens */
    uint32_t pair_mask;
    token_id byte_token[256]; /* -1 when there is none */
    token_id unknown; /* for characters without token and byte tokens; -1: they are dropped */
    bool add_space_prefix;
};

/* Borrows vocab. Errors: E_NOTFOUND, E_FORMAT, E_NOMEM. Must be done after a failure too. */
int spm_load(struct spm *s, const struct vocab *v, token_id unknown, const struct gguf_file *file,
             struct error *err);
void spm_done(struct spm *s);
/* Appends the text as SentencePiece sees it: spaces as U+2581, and one before it all if the model
 * wants that. Errors: those of buf_append. */
int spm_append_normalized(const struct spm *s, const char *text, size_t len, struct buf *out);
/* Cuts normalized text where no token can reach across and calls word for each piece. Errors: those
 * of word. */
int spm_split(const struct spm *s, const char *text, size_t len, pretokenizer_word_fn word,
              void *arg);
/* Appends the tokens of one piece. Errors: E_NOMEM, E_LIMIT. */
int spm_encode_word(const struct spm *s, struct merger *m, const char *word, size_t len,
                    struct token_list *out);

#endif
