/*
 * Sequences that follow a grammar. The mask of the next token is worked out when the one before it
 * arrives, so that a sequence that cannot go on ends then, and not a step later. Such sequences are
 * not guessed for: each guess would need a mask of its own.
 */
#include "runner/scheduler_internal.h"
#include "text/grammar.h"

#include <stdlib.h>

static bool allows_any(const struct scheduler *s, const uint8_t *mask)
{
    for (uint32_t id = 0; id < s->options.n_vocab; id++) {
        if (id % 8 == 0 && mask[id / 8] == 0)
            id += 7;
        else if (sampler_mask_allows(mask, id))
            return true;
    }
    return false;
}

static int find_mask(const struct scheduler *s, struct request *r, bool *ret_is_over,
                     struct error *err)
{
    bool is_over = false;
    int rc =
        grammar_mask(r->grammar, r->mask, sampler_mask_bytes(s->options.n_vocab), &is_over, err);
    if (rc != 0)
        return error_wrap(err, rc, "the grammar, after %u tokens", r->n_generated);
    /* The tokenizer may know tokens that the model has no logits for. */
    *ret_is_over = is_over || !allows_any(s, r->mask);
    return 0;
}

int scheduler_grammar_begin(const struct scheduler *s, struct request *r, bool *ret_is_over,
                            struct error *err)
{
    uint32_t n_bytes = sampler_mask_bytes(s->options.n_vocab);
    r->mask = malloc(n_bytes);
    if (r->mask == NULL)
        return error_set(err, E_NOMEM, "no memory for a mask of %u bytes", n_bytes);
    return find_mask(s, r, ret_is_over, err);
}

int scheduler_grammar_follow(const struct scheduler *s, struct request *r, int32_t token,
                             bool *ret_is_over, struct error *err)
{
    int rc = grammar_accept(r->grammar, token, err);
    if (rc != 0) /* its own mask allowed it */
        return error_set(err, E_INTERNAL, "the grammar does not take token %d, which it allowed",
                         token);
    return find_mask(s, r, ret_is_over, err);
}

void scheduler_grammar_free(struct request *r)
{
    grammar_free(r->grammar);
    free(r->mask);
}
