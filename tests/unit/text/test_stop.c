#include "base/limits.h"
#include "base/rng.h"
#include "text/stop.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

enum { STRINGS_MAX = 5 };

struct result {
    char text[512];
    size_t len;
    bool stopped;
    size_t index;
};

/* The definition: the earliest place where a stop string begins, and of those there the shortest.
 */
static void define(const char *const *strings, size_t n, const char *text, struct result *ret)
{
    size_t len = strlen(text), at = 0;
    ret->stopped = false;
    for (; at < len && !ret->stopped; at++)
        for (size_t i = 0; i < n; i++)
            if (strncmp(text + at, strings[i], strlen(strings[i])) == 0 &&
                (!ret->stopped || strlen(strings[i]) < strlen(strings[ret->index]))) {
                ret->stopped = true;
                ret->index = i;
            }
    ret->len = ret->stopped ? at - 1 : len;
    memcpy(ret->text, text, ret->len);
}

/* The text in pieces whose lengths the seed chooses. */
static void stream(const char *const *strings, size_t n, const char *text, uint64_t seed,
                   struct result *ret)
{
    struct stop_matcher *m = NULL;
    struct buf out;
    size_t lens[STRINGS_MAX], len = strlen(text);
    for (size_t i = 0; i < n; i++)
        lens[i] = strlen(strings[i]);
    assert_int_equal(stop_matcher_new(strings, lens, n, &m, NULL), 0);
    buf_init(&out, sizeof(ret->text));
    ret->stopped = false;
    for (size_t i = 0, step; i < len; i += step) {
        step = 1 + rng_u64(seed, i, 9) % 7;
        step = step < len - i ? step : len - i;
        assert_int_equal(stop_matcher_push(m, text + i, step, &out, &ret->stopped, &ret->index), 0);
    }
    assert_int_equal(stop_matcher_finish(m, &out), 0);
    ret->stopped = stop_matcher_stopped(m, &ret->index);
    ret->len = out.len;
    memcpy(ret->text, buf_str(&out), out.len);
    buf_done(&out);
    stop_matcher_free(m);
}

static void expect(const char *const *strings, size_t n, const char *text, const char *shown,
                   int index)
{
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct result r = {0};
        stream(strings, n, text, seed, &r);
        assert_int_equal(r.len, strlen(shown));
        assert_memory_equal(r.text, shown, r.len);
        assert_int_equal(r.stopped, index >= 0);
        if (index >= 0)
            assert_int_equal(r.index, index);
    }
}

static void test_known_cases(void **state)
{
    (void)state;
    const char *const user[] = {"\nUser:", "###"};
    expect(user, 2, "hello\nUser: x", "hello", 0);
    expect(user, 2, "a ## b ### c", "a ## b ", 1);
    expect(user, 2, "ends in \nUse", "ends in \nUse", -1);
    expect(user, 2, "", "", -1);
    const char *const overlapping[] = {"abcd", "bc", "abce"};
    expect(overlapping, 3, "xabcdx", "x",
           0); /* begins earlier than bc, though it is complete later */
    expect(overlapping, 3, "xabcx", "xa", 1);
    expect(overlapping, 3, "xabc", "xa", 1);
    const char *const together[] = {"stop!", "stop"};
    expect(together, 2, "please stop!", "please ", 1);
    const char *const repeated[] = {"aab"};
    expect(repeated, 1, "aaaaab", "aaa", 0);
    expect(NULL, 0, "no strings", "no strings", -1);
}

/* Random strings over a small alphabet, so that they overlap in every way. */
static void test_streams_equal_definition(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 20000; seed++) {
        char store[STRINGS_MAX][8], text[64];
        const char *strings[STRINGS_MAX];
        size_t n = 1 + rng_u64(seed, 0, 4) % STRINGS_MAX, len = rng_u64(seed, 1, 4) % 60;
        for (size_t i = 0; i < n; i++) {
            size_t k = 1 + rng_u64(seed, i, 5) % 6;
            for (size_t j = 0; j < k; j++)
                store[i][j] = (char)('a' + rng_u64(seed, i * 8 + j, 6) % 3);
            store[i][k] = '\0';
            strings[i] = store[i];
        }
        for (size_t j = 0; j < len; j++)
            text[j] = (char)('a' + rng_u64(seed, j, 7) % 3);
        text[len] = '\0';
        struct result wanted = {0}, got = {0};
        define(strings, n, text, &wanted);
        stream(strings, n, text, seed, &got);
        if (got.len != wanted.len || memcmp(got.text, wanted.text, got.len) != 0 ||
            got.stopped != wanted.stopped)
            fail_msg("seed %llu: \"%.*s\" instead of \"%.*s\"", (unsigned long long)seed,
                     (int)got.len, got.text, (int)wanted.len, wanted.text);
        if (got.stopped)
            assert_int_equal(strlen(strings[got.index]), strlen(strings[wanted.index]));
    }
}

static void test_longest_strings(void **state)
{
    (void)state;
    char string[LIMIT_STOP_STRING_BYTES], text[LIMIT_STOP_STRING_BYTES * 8];
    struct stop_matcher *m = NULL;
    struct buf out;
    bool stopped;
    memset(string, 'x', sizeof(string));
    string[sizeof(string) - 1] = 'y';
    memset(text, 'x', sizeof(text));
    text[sizeof(text) - 1] = 'y';
    const char *const strings[] = {string};
    const size_t lens[] = {sizeof(string)};
    assert_int_equal(stop_matcher_new(strings, lens, 1, &m, NULL), 0);
    buf_init(&out, 1 << 20);
    assert_int_equal(stop_matcher_push(m, text, sizeof(text), &out, &stopped, NULL), 0);
    assert_true(stopped);
    assert_int_equal(out.len, sizeof(text) - sizeof(string));
    assert_int_equal(stop_matcher_push(m, "more", 4, &out, &stopped, NULL), 0); /* ignored */
    assert_true(stopped);
    assert_int_equal(out.len, sizeof(text) - sizeof(string));
    buf_done(&out);
    stop_matcher_free(m);
}

static void test_bad_strings_are_refused(void **state)
{
    (void)state;
    static const char big[LIMIT_STOP_STRING_BYTES + 1] = {'a'};
    const char *strings[LIMIT_STOP_STRINGS + 1];
    size_t lens[LIMIT_STOP_STRINGS + 1];
    struct stop_matcher *m = NULL;
    struct error err = {0};
    for (size_t i = 0; i <= LIMIT_STOP_STRINGS; i++) {
        strings[i] = big;
        lens[i] = 1;
    }
    assert_int_equal(stop_matcher_new(strings, lens, LIMIT_STOP_STRINGS + 1, &m, &err), E_LIMIT);
    lens[0] = sizeof(big);
    assert_int_equal(stop_matcher_new(strings, lens, 1, &m, &err), E_LIMIT);
    lens[0] = 0;
    assert_int_equal(stop_matcher_new(strings, lens, 1, &m, &err), E_INVALID);
    assert_null(m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_known_cases),
        cmocka_unit_test(test_streams_equal_definition),
        cmocka_unit_test(test_longest_strings),
        cmocka_unit_test(test_bad_strings_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
