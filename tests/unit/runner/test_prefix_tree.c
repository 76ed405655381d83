/* The tree of blocks against a naive one: a list of what every block holds. */
#include "base/rng.h"
#include "runner/prefix_tree.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N_BLOCKS_MAX = 40, N_BLOCK_TOKENS_MAX = 8, N_SEQUENCES = 6, N_TOKENS_MAX = 100 };

static uint64_t seed, drawn;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(rng_u64(seed, drawn++, 5) % below);
}

static struct prefix_tree *new_tree(uint32_t n_blocks, uint32_t block_tokens)
{
    struct prefix_tree *t;
    assert_int_equal(prefix_tree_new(n_blocks, block_tokens, &t, NULL), 0);
    return t;
}

/* Blocks for tokens[n], made known and given back. */
static void put(struct prefix_tree *t, uint32_t block_tokens, const int32_t *tokens, uint32_t n,
                uint32_t *ret_blocks)
{
    uint32_t n_blocks = (n + block_tokens - 1) / block_tokens;
    for (uint32_t i = 0; i < n_blocks; i++)
        ret_blocks[i] = prefix_tree_take(t);
    prefix_tree_insert(t, ret_blocks, tokens, n);
    prefix_tree_release(t, ret_blocks, n_blocks);
}

static void beginnings_are_found(void **state)
{
    (void)state;
    const int32_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, other[] = {1, 2, 3, 4, 5, 6, 0, 8};
    uint32_t blocks[3], found[3], tail, n_tail;
    struct prefix_tree *t = new_tree(8, 4);
    put(t, 4, tokens, 10, blocks);
    assert_int_equal(prefix_tree_n_free(t), 5);
    assert_int_equal(prefix_tree_n_available(t), 8);

    assert_int_equal(prefix_tree_match(t, tokens, 10, found, &tail, &n_tail), 2);
    assert_memory_equal(found, blocks, 2 * sizeof(*found));
    assert_int_equal(tail, blocks[2]);
    assert_int_equal(n_tail, 2);
    assert_int_equal(prefix_tree_n_available(t), 6);
    prefix_tree_release(t, found, 2);
    /* A whole block can be a tail too: as far as it is the same, and as far as is asked. */
    assert_int_equal(prefix_tree_match(t, other, 8, found, &tail, &n_tail), 1);
    assert_int_equal(tail, blocks[1]);
    assert_int_equal(n_tail, 2);
    prefix_tree_release(t, found, 1);
    assert_int_equal(prefix_tree_match(t, tokens, 3, found, &tail, &n_tail), 0);
    assert_int_equal(tail, blocks[0]);
    assert_int_equal(n_tail, 3);
    assert_int_equal(prefix_tree_match(t, tokens + 1, 9, found, &tail, &n_tail), 0);
    assert_int_equal(tail, UINT32_MAX);
    prefix_tree_free(t);
}

static void the_least_recently_used_go_first(void **state)
{
    (void)state;
    const int32_t a[] = {1, 2, 3, 4}, b[] = {5, 6, 7, 8}, c[] = {9, 9};
    uint32_t of_a[2], of_b[2], of_c[1], found[2], tail, n_tail;
    struct prefix_tree *t = new_tree(5, 2);
    put(t, 2, a, 4, of_a);
    put(t, 2, b, 4, of_b);
    put(t, 2, c, 2, of_c);
    /* a was used after the others: b goes, its end first, then c. */
    assert_int_equal(prefix_tree_match(t, a, 4, found, &tail, &n_tail), 2);
    prefix_tree_release(t, found, 2);
    assert_int_equal(prefix_tree_take(t), of_b[1]);
    assert_int_equal(prefix_tree_take(t), of_b[0]);
    assert_int_equal(prefix_tree_take(t), of_c[0]);
    assert_int_equal(prefix_tree_take(t), of_a[1]);
    assert_int_equal(prefix_tree_take(t), of_a[0]);
    assert_int_equal(prefix_tree_take(t), UINT32_MAX);
    assert_int_equal(prefix_tree_n_evicted(t), 5);
    prefix_tree_free(t);
}

/* Two sequences compute the same beginning at the same time: the tree has the first one's block,
 * and what the second writes behind hangs on that. When the first block's memory is wanted, and the
 * second sequence runs on, its continuation is forgotten, not lost. */
static void a_copy_of_what_is_known_stays_private(void **state)
{
    (void)state;
    const int32_t tokens[] = {1, 2, 3, 4};
    uint32_t found[2], tail, n_tail;
    struct prefix_tree *t = new_tree(3, 2);
    uint32_t first[1] = {prefix_tree_take(t)};
    uint32_t second[2] = {prefix_tree_take(t), prefix_tree_take(t)};
    prefix_tree_insert(t, first, tokens, 2);
    prefix_tree_insert(t, second, tokens, 4);
    prefix_tree_release(t, first, 1);
    assert_int_equal(prefix_tree_match(t, tokens, 4, found, &tail, &n_tail), 2);
    assert_int_equal(found[0], first[0]);
    assert_int_equal(found[1], second[1]);
    prefix_tree_release(t, found, 2);
    assert_int_equal(prefix_tree_n_available(t), 1);
    assert_int_equal(prefix_tree_take(t), first[0]);
    assert_int_equal(prefix_tree_match(t, tokens, 4, found, &tail, &n_tail), 0);
    assert_int_equal(tail, UINT32_MAX);
    prefix_tree_insert(t, second, tokens, 4); /* the second tells what it has again */
    assert_int_equal(prefix_tree_match(t, tokens, 4, found, &tail, &n_tail), 2);
    assert_int_equal(found[0], second[0]);
    prefix_tree_free(t);
}

/* ---- against the naive model ---- */

struct held { /* what the tree may know of a block: a beginning up to its end */
    uint32_t n_users;
    uint32_t n_tokens; /* 0: nothing is known */
    int32_t tokens[N_TOKENS_MAX];
};

struct sequence {
    uint32_t n_tokens, n_blocks;
    int32_t tokens[N_TOKENS_MAX];
    uint32_t blocks[N_TOKENS_MAX];
};

static struct held held[N_BLOCKS_MAX];
static struct sequence sequence[N_SEQUENCES];
static uint32_t n_blocks, block_tokens;

static void check_counts(const struct prefix_tree *t)
{
    uint32_t n_used = 0;
    for (uint32_t i = 0; i < n_blocks; i++)
        n_used += held[i].n_users > 0;
    assert_int_equal(prefix_tree_n_available(t), n_blocks - n_used);
    assert_true(prefix_tree_n_free(t) <= n_blocks - n_used);
}

/* A block that was handed out for writing holds nothing from then on, and neither does what
 * continued it. */
static uint32_t take(struct prefix_tree *t)
{
    uint32_t n_available = prefix_tree_n_available(t), b = prefix_tree_take(t);
    if (n_available == 0) {
        assert_int_equal(b, UINT32_MAX);
        return b;
    }
    assert_true(b < n_blocks);
    assert_int_equal(held[b].n_users, 0);
    held[b].n_users = 1;
    held[b].n_tokens = 0;
    return b;
}

static void begin(struct prefix_tree *t, struct sequence *s)
{
    uint32_t tail, n_tail, n_match = draw(N_TOKENS_MAX / 2), n_best = 0;
    for (uint32_t i = 0; i < n_match; i++)
        s->tokens[i] = (int32_t)draw(2);
    uint32_t n = prefix_tree_match(t, s->tokens, n_match, s->blocks, &tail, &n_tail);
    assert_true(n <= n_match / block_tokens);
    for (uint32_t i = 0; i < n; i++) {
        const struct held *h = &held[s->blocks[i]];
        assert_int_equal(h->n_tokens, (i + 1) * block_tokens);
        assert_memory_equal(h->tokens, s->tokens, h->n_tokens * sizeof(int32_t));
        held[s->blocks[i]].n_users++;
    }
    if (tail != UINT32_MAX) {
        n_best = n * block_tokens + n_tail;
        assert_true(n_tail > 0 && n_best <= n_match && n_best <= held[tail].n_tokens);
        assert_memory_equal(held[tail].tokens, s->tokens, n_best * sizeof(int32_t));
    }
    s->n_blocks = n;
    s->n_tokens = n * block_tokens;
    check_counts(t);
}

static void grow(struct prefix_tree *t, struct sequence *s)
{
    uint32_t n = draw(2 * block_tokens);
    for (uint32_t i = 0; i < n && s->n_tokens < N_TOKENS_MAX; i++) {
        if (s->n_tokens == s->n_blocks * block_tokens) {
            uint32_t b = take(t);
            if (b == UINT32_MAX)
                return;
            s->blocks[s->n_blocks++] = b;
        }
        s->tokens[s->n_tokens++] = (int32_t)draw(2);
    }
}

static void insert(struct prefix_tree *t, const struct sequence *s, uint32_t n_tokens)
{
    uint32_t n = (n_tokens + block_tokens - 1) / block_tokens;
    prefix_tree_insert(t, s->blocks, s->tokens, n_tokens);
    for (uint32_t i = 0; i < n; i++) {
        struct held *h = &held[s->blocks[i]];
        uint32_t n_here = (i + 1) * block_tokens < n_tokens ? (i + 1) * block_tokens : n_tokens;
        if (n_here > h->n_tokens)
            h->n_tokens = n_here;
        memcpy(h->tokens, s->tokens, h->n_tokens * sizeof(int32_t));
    }
}

static void leave(struct prefix_tree *t, struct sequence *s)
{
    prefix_tree_release(t, s->blocks, s->n_blocks);
    for (uint32_t i = 0; i < s->n_blocks; i++)
        held[s->blocks[i]].n_users--;
    s->n_blocks = s->n_tokens = 0;
}

/* What was made known and not handed out again can be found, from its first block on. */
static void check_is_found(struct prefix_tree *t, const struct sequence *s, uint32_t n_tokens)
{
    uint32_t found[N_TOKENS_MAX], tail, n_tail;
    uint32_t n = prefix_tree_match(t, s->tokens, n_tokens, found, &tail, &n_tail);
    assert_int_equal(n, n_tokens / block_tokens);
    if (n_tokens % block_tokens > 0)
        assert_int_equal(n_tail, n_tokens % block_tokens);
    prefix_tree_release(t, found, n);
}

static void any_order_of_calls(void **state)
{
    (void)state;
    for (seed = 0; seed < 300; seed++) {
        drawn = 0;
        memset(held, 0, sizeof(held));
        memset(sequence, 0, sizeof(sequence));
        n_blocks = 1 + draw(N_BLOCKS_MAX);
        block_tokens = 1 + draw(N_BLOCK_TOKENS_MAX);
        struct prefix_tree *t = new_tree(n_blocks, block_tokens);
        for (int i = 0; i < 300; i++) {
            struct sequence *s = &sequence[draw(N_SEQUENCES)];
            uint32_t n;
            switch (draw(5)) {
            case 0:
                insert(t, s, s->n_tokens);
                check_is_found(t, s, s->n_tokens);
                leave(t, s);
                break;
            case 1: /* and it runs on */
                n = draw(2) == 0 ? s->n_tokens : s->n_tokens / block_tokens * block_tokens;
                insert(t, s, n);
                check_is_found(t, s, n);
                break;
            default:
                if (s->n_blocks == 0)
                    begin(t, s);
                grow(t, s);
            }
            check_counts(t);
        }
        for (int i = 0; i < N_SEQUENCES; i++)
            leave(t, &sequence[i]);
        assert_int_equal(prefix_tree_n_available(t), n_blocks);
        for (uint32_t i = 0; i < n_blocks; i++) /* each once */
            take(t);
        assert_int_equal(prefix_tree_take(t), UINT32_MAX);
        prefix_tree_free(t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(beginnings_are_found),
        cmocka_unit_test(the_least_recently_used_go_first),
        cmocka_unit_test(a_copy_of_what_is_known_stays_private),
        cmocka_unit_test(any_order_of_calls),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
