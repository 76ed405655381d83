#include "runner/prefix_tree.h"

#include "runner/plan.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum {
    NONE = UINT32_MAX,
    /* Children that are looked at for a part-full continuation, the latest first. */
    TAIL_CANDIDATES = 256,
};

struct node { /* a block; a block outside the tree uses n_users and, when it is free, next */
    uint32_t n_users;
    bool is_known; /* in the tree */
    bool is_listed;
    uint32_t n_tokens; /* what it holds, as far as the tree knows */
    uint32_t parent, child;
    uint32_t prev, next;         /* of the same parent, the latest first */
    uint32_t hash_next;          /* of the same bucket; whole blocks only */
    uint32_t lru_prev, lru_next; /* leaves without users, the least recently used first */
    uint64_t hash;               /* of all tokens from the root to the end of this block */
    uint64_t used_at;
};

struct prefix_tree {
    uint32_t n_blocks, block_tokens;
    struct node *node; /* [n_blocks + 1]: the last one is the root, and no block */
    int32_t *tokens;   /* [n_blocks][block_tokens] */
    uint32_t *bucket;  /* [n_buckets] first whole block whose hash falls here */
    uint32_t n_buckets;
    uint32_t free, n_free; /* a stack */
    uint32_t n_kept;       /* in the tree, without users */
    uint32_t oldest, newest;
    uint64_t clock, n_evicted;
};

int prefix_tree_new(uint32_t n_blocks, uint32_t block_tokens, struct prefix_tree **ret_tree,
                    struct error *err)
{
    struct prefix_tree *t = calloc(1, sizeof(*t));
    uint32_t n_buckets = 16;
    while (n_buckets < n_blocks && n_buckets < 1u << 30)
        n_buckets *= 2;
    if (t != NULL) {
        t->node = calloc((size_t)n_blocks + 1, sizeof(*t->node));
        t->tokens = calloc(n_blocks, block_tokens * sizeof(*t->tokens));
        t->bucket = malloc(n_buckets * sizeof(*t->bucket));
    }
    if (t == NULL || t->node == NULL || t->tokens == NULL || t->bucket == NULL) {
        prefix_tree_free(t);
        return error_set(err, E_NOMEM, "no memory for the tree of %u blocks", n_blocks);
    }
    t->n_blocks = n_blocks;
    t->block_tokens = block_tokens;
    t->n_buckets = n_buckets;
    for (uint32_t i = 0; i < n_buckets; i++)
        t->bucket[i] = NONE;
    t->oldest = t->newest = t->free = NONE;
    for (uint32_t i = n_blocks; i-- > 0;) {
        t->node[i].next = t->free;
        t->free = i;
    }
    t->n_free = n_blocks;
    t->node[n_blocks] = (struct node){.is_known = true,
                                      .n_tokens = block_tokens,
                                      .parent = NONE,
                                      .child = NONE,
                                      .hash = PLAN_HASH_EMPTY};
    *ret_tree = t;
    return 0;
}

void prefix_tree_free(struct prefix_tree *t)
{
    if (t == NULL)
        return;
    free(t->node);
    free(t->tokens);
    free(t->bucket);
    free(t);
}

uint32_t prefix_tree_n_available(const struct prefix_tree *t)
{
    return t->n_free + t->n_kept;
}

uint32_t prefix_tree_n_free(const struct prefix_tree *t)
{
    return t->n_free;
}

uint64_t prefix_tree_n_evicted(const struct prefix_tree *t)
{
    return t->n_evicted;
}

/* ---- leaves without users, in the order in which they go ---- */

static void unlist(struct prefix_tree *t, uint32_t b)
{
    struct node *node = &t->node[b];
    if (!node->is_listed)
        return;
    *(node->lru_prev != NONE ? &t->node[node->lru_prev].lru_next : &t->oldest) = node->lru_next;
    *(node->lru_next != NONE ? &t->node[node->lru_next].lru_prev : &t->newest) = node->lru_prev;
    node->is_listed = false;
}

/* Puts the block in its place by used_at, if it is a leaf without users. Looks from the end where
 * the place nearly always is: just used ones are the newest, and a parent that has lost its last
 * leaf was used with it, so that it follows among the oldest. */
static void list(struct prefix_tree *t, uint32_t b)
{
    struct node *node = &t->node[b];
    if (b == t->n_blocks || node->is_listed || !node->is_known || node->n_users > 0 ||
        node->child != NONE)
        return;
    uint32_t next = NONE;
    if (t->newest != NONE && t->node[t->newest].used_at > node->used_at)
        for (next = t->oldest; t->node[next].used_at < node->used_at;)
            next = t->node[next].lru_next;
    node->lru_next = next;
    node->lru_prev = next != NONE ? t->node[next].lru_prev : t->newest;
    *(node->lru_prev != NONE ? &t->node[node->lru_prev].lru_next : &t->oldest) = b;
    *(next != NONE ? &t->node[next].lru_prev : &t->newest) = b;
    node->is_listed = true;
}

static void touch(struct prefix_tree *t, uint32_t b)
{
    t->node[b].used_at = t->clock;
    if (t->node[b].is_listed) {
        unlist(t, b);
        list(t, b);
    }
}

/* ---- the tree ---- */

static int32_t *tokens_of(const struct prefix_tree *t, uint32_t b)
{
    return t->tokens + (size_t)b * t->block_tokens;
}

static uint32_t *bucket_of(const struct prefix_tree *t, uint64_t hash)
{
    return &t->bucket[hash & (t->n_buckets - 1)];
}

/* The whole block under parent with these tokens. */
static uint32_t find_child(const struct prefix_tree *t, uint32_t parent, uint64_t hash,
                           const int32_t *tokens)
{
    for (uint32_t b = *bucket_of(t, hash); b != NONE; b = t->node[b].hash_next)
        if (t->node[b].hash == hash && t->node[b].parent == parent &&
            memcmp(tokens_of(t, b), tokens, t->block_tokens * sizeof(*tokens)) == 0)
            return b;
    return NONE;
}

/* Notes what a block of the tree holds; a whole one can be found by its hash from then on. */
static void fill(struct prefix_tree *t, uint32_t b, uint64_t hash, const int32_t *tokens,
                 uint32_t n_tokens)
{
    struct node *node = &t->node[b];
    memcpy(tokens_of(t, b), tokens, n_tokens * sizeof(*tokens));
    node->n_tokens = n_tokens;
    if (n_tokens < t->block_tokens)
        return;
    node->hash = hash;
    node->hash_next = *bucket_of(t, hash);
    *bucket_of(t, hash) = b;
}

static void link_child(struct prefix_tree *t, uint32_t parent, uint32_t b)
{
    struct node *node = &t->node[b];
    node->is_known = true;
    node->parent = parent;
    node->child = NONE;
    node->prev = NONE;
    node->next = t->node[parent].child;
    if (node->next != NONE)
        t->node[node->next].prev = b;
    t->node[parent].child = b;
    unlist(t, parent);
    if (node->n_users == 0) { /* not by our callers; kept right all the same */
        t->n_kept++;
        list(t, b);
    }
}

static void put_free(struct prefix_tree *t, uint32_t b)
{
    t->node[b].next = t->free;
    t->free = b;
    t->n_free++;
}

/* Takes a leaf out of the tree. Without users it is free then, else its sequence's own. */
static void remove_leaf(struct prefix_tree *t, uint32_t b)
{
    struct node *node = &t->node[b];
    uint32_t parent = node->parent;
    assert(node->is_known && node->child == NONE && b < t->n_blocks);
    unlist(t, b);
    *(node->prev != NONE ? &t->node[node->prev].next : &t->node[parent].child) = node->next;
    if (node->next != NONE)
        t->node[node->next].prev = node->prev;
    if (node->n_tokens == t->block_tokens) {
        uint32_t *p = bucket_of(t, node->hash);
        while (*p != b)
            p = &t->node[*p].hash_next;
        *p = node->hash_next;
    }
    node->is_known = false;
    if (node->n_users == 0) {
        t->n_kept--;
        t->n_evicted++;
        put_free(t, b);
    }
    list(t, parent);
}

static void remove_subtree(struct prefix_tree *t, uint32_t top)
{
    uint32_t b = top, parent;
    do {
        while (t->node[b].child != NONE)
            b = t->node[b].child;
        parent = t->node[b].parent;
        remove_leaf(t, b);
        if (b == top)
            return;
        b = parent;
    } while (true);
}

/* Makes a block free. Leaves go first. When there is none, every kept block lies above some that
 * are in use: a sequence had a copy of its own of what the tree knew already, and what it wrote
 * behind hangs on the tree's block. The oldest of these goes, and what hangs on it becomes unknown.
 */
static void evict(struct prefix_tree *t)
{
    if (t->oldest != NONE) {
        remove_leaf(t, t->oldest);
        return;
    }
    uint32_t oldest = NONE;
    for (uint32_t b = 0; b < t->n_blocks; b++)
        if (t->node[b].is_known && t->node[b].n_users == 0 &&
            (oldest == NONE || t->node[b].used_at < t->node[oldest].used_at))
            oldest = b;
    if (oldest != NONE)
        remove_subtree(t, oldest);
}

/* ---- what sequences do ---- */

uint32_t prefix_tree_take(struct prefix_tree *t)
{
    if (t->n_free == 0)
        evict(t);
    if (t->n_free == 0)
        return NONE;
    uint32_t b = t->free;
    t->free = t->node[b].next;
    t->n_free--;
    t->node[b] = (struct node){.n_users = 1};
    return b;
}

static uint32_t n_common(const int32_t *a, const int32_t *b, uint32_t n)
{
    uint32_t i = 0;
    while (i < n && a[i] == b[i])
        i++;
    return i;
}

/* The child of parent with the longest common beginning. */
static uint32_t find_tail(const struct prefix_tree *t, uint32_t parent, const int32_t *tokens,
                          uint32_t n_tokens, uint32_t *ret_n)
{
    uint32_t best = NONE, n_looked = 0;
    *ret_n = 0;
    for (uint32_t b = t->node[parent].child; b != NONE && n_looked < TAIL_CANDIDATES;
         b = t->node[b].next, n_looked++) {
        uint32_t n_max = t->node[b].n_tokens < n_tokens ? t->node[b].n_tokens : n_tokens;
        uint32_t n = n_common(tokens_of(t, b), tokens, n_max);
        if (n > *ret_n) {
            *ret_n = n;
            best = b;
        }
    }
    return best;
}

uint32_t prefix_tree_match(struct prefix_tree *t, const int32_t *tokens, uint32_t n_tokens,
                           uint32_t *ret_blocks, uint32_t *ret_tail, uint32_t *ret_n_tail)
{
    uint32_t parent = t->n_blocks, n = 0, n_whole = n_tokens / t->block_tokens;
    t->clock++;
    for (; n < n_whole; n++) {
        const int32_t *at = tokens + (size_t)n * t->block_tokens;
        uint64_t hash = plan_hash(t->node[parent].hash, at, t->block_tokens);
        uint32_t b = find_child(t, parent, hash, at);
        if (b == NONE)
            break;
        if (t->node[b].n_users++ == 0) {
            t->n_kept--;
            unlist(t, b);
        }
        ret_blocks[n] = parent = b;
    }
    uint32_t n_left = n_tokens - n * t->block_tokens;
    if (n_left > t->block_tokens)
        n_left = t->block_tokens;
    *ret_tail = find_tail(t, parent, tokens + (size_t)n * t->block_tokens, n_left, ret_n_tail);
    if (*ret_tail != NONE)
        touch(t, *ret_tail);
    return n;
}

/* Makes a whole block known. Returns the block that the tree has for these tokens. */
static uint32_t insert_whole(struct prefix_tree *t, uint32_t parent, uint32_t b,
                             const int32_t *tokens)
{
    struct node *node = &t->node[b];
    if (node->is_known && node->n_tokens == t->block_tokens) {
        assert(node->parent == parent);
        return b;
    }
    uint64_t hash = plan_hash(t->node[parent].hash, tokens, t->block_tokens);
    uint32_t known = find_child(t, parent, hash, tokens);
    if (known != NONE) {
        if (node->is_known) /* it was different as long as it was shorter */
            remove_leaf(t, b);
        return known;
    }
    if (!node->is_known)
        link_child(t, parent, b);
    fill(t, b, hash, tokens, t->block_tokens);
    return b;
}

void prefix_tree_insert(struct prefix_tree *t, const uint32_t *blocks, const int32_t *tokens,
                        uint32_t n_tokens)
{
    uint32_t parent = t->n_blocks, n_whole = n_tokens / t->block_tokens;
    for (uint32_t i = 0; i < n_whole; i++)
        parent = insert_whole(t, parent, blocks[i], tokens + (size_t)i * t->block_tokens);
    uint32_t n_left = n_tokens - n_whole * t->block_tokens, n_known;
    if (n_left == 0)
        return;
    const int32_t *at = tokens + (size_t)n_whole * t->block_tokens;
    uint32_t b = blocks[n_whole];
    if (t->node[b].is_known) {
        if (t->node[b].n_tokens < n_left)
            fill(t, b, 0, at, n_left);
        return;
    }
    find_tail(t, parent, at, n_left, &n_known);
    if (n_known == n_left)
        return;
    link_child(t, parent, b);
    fill(t, b, 0, at, n_left);
}

void prefix_tree_release(struct prefix_tree *t, const uint32_t *blocks, uint32_t n)
{
    t->clock++;
    for (uint32_t i = n; i-- > 0;) {
        struct node *node = &t->node[blocks[i]];
        assert(node->n_users > 0);
        if (--node->n_users > 0)
            continue;
        if (node->is_known) {
            t->n_kept++;
            node->used_at = t->clock;
            list(t, blocks[i]);
        } else {
            put_free(t, blocks[i]);
        }
    }
}
