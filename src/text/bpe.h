/* Byte-level BPE: merge rules of GPT-2 and its descendants. Owns its table. Thread: immutable once
 * loaded. */
#ifndef SHOAL_TEXT_BPE_H
#define SHOAL_TEXT_BPE_H

#include "text/merge.h"
#include "text/pretokenizer.h"
#include "text/vocab.h"

struct bpe_rule {
    uint32_t left, right; /* token ids; left is UINT32_MAX in a free slot */
    uint32_t rank;
    token_id result;
};

struct bpe {
    const struct vocab *vocab;
    struct pretokenizer *pretokenizer;
    struct bpe_rule *rules; /* hash table by (left, right) */
    uint32_t mask;
    token_id byte_token[256]; /* -1: bytes without a token are dropped, as Hugging Face does */
};

/* Borrows vocab. Errors: E_NOTFOUND, E_FORMAT, E_UNSUPPORTED, E_LIMIT, E_NOMEM. Must be done after
 * a failure too. */
int bpe_load(struct bpe *b, const struct vocab *v, const struct gguf_file *file, struct error *err);
void bpe_done(struct bpe *b);
/* Appends the tokens of one word. Errors: E_NOMEM, E_LIMIT. */
int bpe_encode_word(const struct bpe *b, struct merger *m, const char *word, size_t len,
                    struct token_list *out);

#endif
