/*
 * The merging that both kinds of tokenizer share: a list of symbols, of which the best neighbouring
 * pair is joined until no pair is left. A heap keeps it at n log n, so that a megabyte without a
 * space takes no longer than it must. Owns scratch memory of one call to tokenizer_encode. Thread:
 * one call, one thread.
 */
#ifndef SHOAL_TEXT_MERGE_H
#define SHOAL_TEXT_MERGE_H

#include "text/tokenizer.h"

struct symbol {
    int32_t prev, next; /* -1 at the ends */
    token_id id;
    uint32_t start,
        len; /* bytes of the text it covers; len 0 once it has been joined to its left neighbour */
    uint32_t n_chars; /* 0 for a byte of a character that has no token: such a symbol never merges
                         (SentencePiece only) */
};

struct merge_candidate {
    uint64_t key; /* lowest first */
    uint32_t pos; /* of the left symbol; leftmost first */
    token_id id;  /* of the result */
};

struct merger {
    struct symbol *symbols;
    size_t n_symbols, cap_symbols;
    struct merge_candidate *heap;
    size_t n_heap, cap_heap;
};

/* Says whether two neighbours may be joined, with which key and result. */
typedef bool (*merge_find_fn)(const void *arg, const char *text, const struct symbol *left,
                              const struct symbol *right, uint64_t *ret_key, token_id *ret_id);

void merger_init(struct merger *m);
void merger_done(struct merger *m);
void merger_reset(struct merger *m);
/* Appends a symbol to the list. Errors: E_NOMEM. */
int merger_add(struct merger *m, token_id id, uint32_t start, uint32_t len, uint32_t n_chars);
/* Joins all that can be joined and appends the ids that are left. Errors: E_NOMEM, E_LIMIT. */
int merger_run(struct merger *m, const char *text, merge_find_fn find, const void *arg,
               struct token_list *out);

#endif
