/* The file of API keys, finding keys, and their limits over time. */
#include "api/keys.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t second_ns = 1000000000u;
static const char key_text[] = "sk-0123456789abcdef";

static struct api_keys *parse(const char *text)
{
    struct api_keys *keys = NULL;
    struct error err = {0};
    int rc = api_keys_parse(text, strlen(text), &keys, &err);
    if (rc != 0)
        fail_msg("%s", err.message);
    return keys;
}

static void assert_refused(const char *text, size_t len, int code, const char *words)
{
    struct api_keys *keys = NULL;
    struct error err = {0};
    assert_int_equal(api_keys_parse(text, len, &keys, &err), code);
    assert_null(keys);
    if (strstr(err.message, words) == NULL)
        fail_msg("'%s' does not say '%s'", err.message, words);
}

static void test_parse(void **state)
{
    (void)state;
    char text[512], hash[72];
    api_key_hash_text(key_text, strlen(key_text), hash);
    assert_int_equal(strlen(hash), 71);
    snprintf(text, sizeof(text),
             "# who may do what, and many words more\r\n\n"
             "  %s\tlaptop  inference,read 60 100000\r\n"
             "another-key-0123456789 owner admin - 0\n"
             "a-third-key-0123456789 reader read",
             hash);
    struct api_keys *keys = parse(text);
    assert_int_equal(keys->n, 3);
    assert_string_equal(keys->list[0].name, "laptop");
    assert_int_equal(keys->list[0].scopes, API_SCOPE_INFERENCE | API_SCOPE_READ);
    assert_int_equal(keys->list[0].requests.n_per_min, 60);
    assert_int_equal(keys->list[0].tokens.n_per_min, 100000);
    assert_int_equal(keys->list[1].requests.n_per_min, 0);
    assert_int_equal(keys->list[1].tokens.n_per_min, 0);
    assert_ptr_equal(api_keys_find(keys, key_text, strlen(key_text)), &keys->list[0]);
    assert_ptr_equal(api_keys_find(keys, "another-key-0123456789", 22), &keys->list[1]);
    assert_ptr_equal(api_keys_find(keys, "a-third-key-0123456789", 22), &keys->list[2]);
    assert_null(api_keys_find(keys, key_text, strlen(key_text) - 1));
    assert_null(api_keys_find(keys, hash, strlen(hash)));
    assert_null(api_keys_find(keys, "", 0));
    api_keys_free(keys);
}

static void test_refusals(void **state)
{
    (void)state;
    static const char nul[] = "another-key-0123456789 a admin\n\0";
    static const struct {
        const char *text, *words;
    } cases[] = {
        {"", "no API key"},
        {"# none\n", "no API key"},
        {"another-key-0123456789 a", "line 1"},
        {"\n\nshort a admin", "line 3"},
        {"sha256:12 a admin", "64 hexadecimal"},
        {"sha256:zz23456789012345678901234567890123456789012345678901234567890123 a admin",
         "64 hexadecimal"},
        {"\xc3\xa9notASCII0123456789 a admin", "printable ASCII"},
        {"another-key-0123456789 a admin,,read", "scopes"},
        {"another-key-0123456789 a Admin", "scopes"},
        {"another-key-0123456789 a admin 4294967296", "below 2^32"},
        {"another-key-0123456789 a admin 99999999999999999999999999", "below 2^32"},
        {"another-key-0123456789 a admin -1", "below 2^32"},
        {"another-key-0123456789 a admin 1 2 3", "more than"},
        {"another-key-0123456789 a admin\nanother-key-0123456788 a read", "this name"},
        {"another-key-0123456789 a admin\nanother-key-0123456789 b read", "twice"},
        {"another-key-0123456789 a;b admin", "letters"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_refused(cases[i].text, strlen(cases[i].text), E_FORMAT, cases[i].words);
    assert_refused(nul, sizeof(nul), E_FORMAT, "NUL");
}

static void test_many(void **state)
{
    (void)state;
    enum { LINE_BYTES = 64 };
    char *text = calloc(API_KEYS_MAX + 2, LINE_BYTES), line[LINE_BYTES];
    size_t len = 0;
    assert_non_null(text);
    for (int i = 0; i <= API_KEYS_MAX; i++) {
        int n = snprintf(line, sizeof(line), "key-of-many-%08d name%d read\n", i, i);
        memcpy(text + len, line, (size_t)n);
        if (i == API_KEYS_MAX)
            assert_refused(text, len + (size_t)n, E_LIMIT, "more than 1024");
        else
            len += (size_t)n;
    }
    struct api_keys *keys = parse((text[len] = '\0', text));
    assert_int_equal(keys->n, API_KEYS_MAX);
    assert_string_equal(api_keys_find(keys, "key-of-many-00001023", 20)->name, "name1023");
    api_keys_free(keys);
    free(text);
}

static void test_scopes(void **state)
{
    (void)state;
    const struct api_key reader = {.scopes = API_SCOPE_READ}, owner = {.scopes = API_SCOPE_ADMIN};
    assert_true(api_key_may(&reader, API_SCOPE_READ | API_SCOPE_INFERENCE));
    assert_false(api_key_may(&reader, API_SCOPE_INFERENCE));
    assert_false(api_key_may(&reader, API_SCOPE_ADMIN));
    assert_false(api_key_may(&reader, 0));
    assert_true(api_key_may(&owner, API_SCOPE_INFERENCE));
    assert_true(api_key_may(&owner, 0));
}

/* Whoever waits as long as was said gets in, and not a second earlier. */
static void test_requests(void **state)
{
    (void)state;
    struct api_keys *keys = parse("another-key-0123456789 a inference 7 -");
    struct api_key *key = &keys->list[0];
    uint64_t now_ns = 5 * second_ns;
    for (int i = 0; i < 7; i++)
        assert_int_equal(api_key_take_request(key, true, now_ns), 0);
    for (int i = 0; i < 50; i++) {
        uint32_t wait_s = api_key_take_request(key, true, now_ns);
        assert_in_range(wait_s, 8, 9); /* 60 / 7 */
        assert_int_equal(api_key_take_request(key, true, now_ns + (wait_s - 1) * second_ns), 1);
        now_ns += wait_s * second_ns;
        assert_int_equal(api_key_take_request(key, true, now_ns), 0);
    }
    now_ns += 3600 * second_ns; /* a bucket holds no more than a minute's */
    for (int i = 0; i < 7; i++)
        assert_int_equal(api_key_take_request(key, true, now_ns), 0);
    assert_int_not_equal(api_key_take_request(key, true, now_ns), 0);
    api_keys_free(keys);
}

static void test_tokens(void **state)
{
    (void)state;
    struct api_keys *keys = parse("another-key-0123456789 a inference - 600");
    struct api_key *key = &keys->list[0];
    uint64_t now_ns = 5 * second_ns;
    assert_int_equal(api_key_take_request(key, true, now_ns), 0);
    api_key_charge_tokens(key, 1000, now_ns); /* 400 are owed, 10 come back each second */
    assert_int_equal(api_key_take_request(key, true, now_ns), 41);
    assert_int_equal(api_key_take_request(key, false, now_ns), 0);
    now_ns += 40 * second_ns;
    assert_int_equal(api_key_take_request(key, true, now_ns), 1);
    assert_int_equal(api_key_take_request(key, true, now_ns + second_ns), 0);
    api_key_charge_tokens(key, UINT64_MAX, now_ns + second_ns);
    assert_int_equal(api_key_take_request(key, true, now_ns + second_ns), 86400);
    api_keys_free(keys);

    keys = parse("another-key-0123456789 a inference");
    api_key_charge_tokens(&keys->list[0], UINT64_MAX, now_ns);
    assert_int_equal(api_key_take_request(&keys->list[0], true, now_ns), 0);
    api_keys_free(keys);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_parse),    cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_many),     cmocka_unit_test(test_scopes),
        cmocka_unit_test(test_requests), cmocka_unit_test(test_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
