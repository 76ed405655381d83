/*
 * Finds control and user-defined tokens in text: the longest one at the leftmost place, in one
 * pass. Owns its nodes. Thread: immutable once made.
 */
#ifndef SHOAL_TEXT_SPECIAL_H
#define SHOAL_TEXT_SPECIAL_H

#include "text/vocab.h"

/* Real ones are under 64 bytes. Longer ones are never found in text, so that a text of n bytes
 * costs at most n x this. */
enum { SPECIAL_BYTES_MAX = 256 };

struct special_node {
    uint32_t first_child, next_sibling; /* 0 when there is none */
    token_id id;                        /* of the token that ends here, or -1 */
    uint8_t byte;
};

struct special_set {
    struct special_node *nodes; /* nodes[1 + byte] are the first bytes */
    uint32_t n, cap;
};

/* Errors: E_LIMIT, E_NOMEM. The set must be done after a failure too. */
int special_set_load(struct special_set *s, const struct vocab *v, struct error *err);
void special_set_done(struct special_set *s);
/* The longest token at the front of the text: returns its length and id, 0 when there is none. */
size_t special_set_match(const struct special_set *s, const char *text, size_t len,
                         token_id *ret_id);

#endif
