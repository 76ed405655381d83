/* Sets of byte ranges, against a map of single bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "store/ranges.h"

#include <string.h>

enum { SIZE = 100, ROUNDS = 20000 };

static void check_against(const struct ranges *r, const char map[SIZE])
{
    struct ranges want = {0};
    for (uint32_t i = 0; i < SIZE; i++) {
        if (!map[i])
            continue;
        if (i == 0 || !map[i - 1])
            want.item[want.n++].begin = i;
        want.item[want.n - 1].end = i + 1;
    }
    assert_int_equal(r->n, want.n);
    assert_memory_equal(r->item, want.item, want.n * sizeof(want.item[0]));
    uint32_t sum = 0, prefix = 0, hole = 0, hole_end;
    for (uint32_t i = 0; i < SIZE; i++)
        sum += map[i] != 0;
    while (prefix < SIZE && map[prefix])
        prefix++;
    hole = hole_end = prefix;
    while (hole_end < SIZE && !map[hole_end])
        hole_end++;
    struct range found;
    assert_int_equal(ranges_bytes(r), sum);
    assert_int_equal(ranges_prefix(r), prefix);
    assert_int_equal(ranges_first_hole(r, SIZE, &found), hole < SIZE);
    if (hole < SIZE) {
        assert_int_equal(found.begin, hole);
        assert_int_equal(found.end, hole_end);
    }
}

static void test_random(void **state)
{
    struct ranges r = {0};
    char map[SIZE] = {0};
    (void)state;
    for (uint64_t i = 0; i < ROUNDS; i++) {
        uint64_t begin = rng_u64(1, i, 0) % SIZE,
                 end = begin + rng_u64(1, i, 1) % (SIZE - begin + 1);
        bool is_added = rng_u64(1, i, 2) % 2 == 0;
        memset(map + begin, is_added, end - begin);
        if (is_added)
            assert_true(ranges_add(&r, begin, end));
        else
            ranges_remove(&r, begin, end);
        check_against(&r, map);
    }
}

static void test_full(void **state)
{
    struct ranges r = {0};
    (void)state;
    for (uint32_t i = 0; i < RANGES_MAX; i++)
        assert_true(ranges_add(&r, 10 * i, 10 * i + 5));
    assert_false(ranges_add(&r, 7, 8));
    assert_true(ranges_add(&r, 5, 10)); /* joins two */
    assert_int_equal(r.n, RANGES_MAX - 1);
    assert_true(ranges_add(&r, 0, UINT64_MAX));
    assert_int_equal(r.n, 1);
    /* A hole that does not fit takes more than it should, never less. */
    r.n = 0;
    for (uint32_t i = 0; i < RANGES_MAX; i++)
        assert_true(ranges_add(&r, 10 * i, 10 * i + 5));
    ranges_remove(&r, 2, 3);
    assert_int_equal(r.item[0].end, 2);
    assert_int_equal(r.item[1].begin, 3);
    assert_true(r.n <= RANGES_MAX);
    assert_true(ranges_bytes(&r) < 5 * RANGES_MAX);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_full),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
