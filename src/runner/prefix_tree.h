/*
 * Which KV blocks hold what: a tree of blocks by the tokens in them (radix tree: Zheng et al.,
 * SGLang, 2024; here a node is a block). A path from the root is a beginning that some sequence
 * has had; sequences with the same beginning share its blocks. Blocks that no sequence uses stay
 * until their memory is wanted, and go least recently used first, leaves before what they hang on.
 * Deterministic. Thread: one.
 */
#ifndef SHOAL_RUNNER_PREFIX_TREE_H
#define SHOAL_RUNNER_PREFIX_TREE_H

#include "base/error.h"

#include <stdint.h>

struct prefix_tree; /* opaque */

/* Errors: E_NOMEM. */
int prefix_tree_new(uint32_t n_blocks, uint32_t block_tokens, struct prefix_tree **ret_tree,
                    struct error *err);
void prefix_tree_free(struct prefix_tree *t);

/* Blocks that can be had: free ones, and those that only the tree keeps. */
uint32_t prefix_tree_n_available(const struct prefix_tree *t);
uint32_t prefix_tree_n_free(const struct prefix_tree *t); /* nothing in them */
/* Takes a block for writing, evicting if it must; UINT32_MAX when there is none. It has one user.
 */
uint32_t prefix_tree_take(struct prefix_tree *t);

/* The longest beginning of tokens[n_tokens] that the tree knows: whole blocks into ret_blocks
 * [n_tokens / block_tokens], each with one more user from now on. *ret_tail is a block whose first
 * *ret_n_tail tokens continue it (to be copied; not given a user; valid until the next take), or
 * UINT32_MAX. Returns the number of whole blocks. */
uint32_t prefix_tree_match(struct prefix_tree *t, const int32_t *tokens, uint32_t n_tokens,
                           uint32_t *ret_blocks, uint32_t *ret_tail, uint32_t *ret_n_tail);
/* Makes known what the blocks of a sequence hold: blocks[n] for tokens[n_tokens], in order (n =
 * n_tokens / block_tokens rounded up; the last may be part full). May be called again as the
 * sequence grows. A block whose tokens the tree knows from another block stays the sequence's own.
 */
void prefix_tree_insert(struct prefix_tree *t, const uint32_t *blocks, const int32_t *tokens,
                        uint32_t n_tokens);
/* One user less for each; without users, blocks in the tree stay in it, others are free. */
void prefix_tree_release(struct prefix_tree *t, const uint32_t *blocks, uint32_t n);

uint64_t prefix_tree_n_evicted(const struct prefix_tree *t);

#endif
