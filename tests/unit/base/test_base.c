/* base/: errors, buffers, cursors, random numbers, UTF-8, JSON, log levels. */
#include "base/buf.h"
#include "base/error.h"
#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "base/utf8.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static void errors_carry_context_and_stay_bounded(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(error_set(&err, E_LIMIT, "%d is too many", 7), E_LIMIT);
    assert_int_equal(error_wrap(&err, E_LIMIT, "file '%s'", "a.gguf"), E_LIMIT);
    assert_string_equal(err.message, "file 'a.gguf': 7 is too many");
    char huge[2 * ERROR_MESSAGE_BYTES];
    memset(huge, 'x', sizeof(huge) - 1);
    huge[sizeof(huge) - 1] = '\0';
    error_set(&err, E_IO, "%s", huge);
    assert_int_equal(strlen(err.message), ERROR_MESSAGE_BYTES - 1);
    assert_string_equal(err.message + ERROR_MESSAGE_BYTES - 4, "...");
    assert_int_equal(error_set(NULL, E_BUSY, "nobody reads this"), E_BUSY);
    assert_string_equal(error_name(E_BUSY), "E_BUSY");
    assert_int_equal(error_http_status(E_BUSY), 429);
    assert_string_equal(error_name(-22), "E_SYSTEM");
    error_clear(&err);
    assert_int_equal(error_wrap(&err, E_TIMEOUT, "peer b"), E_TIMEOUT);
    assert_string_equal(err.message, "peer b: timed out");
}

static void buffers_grow_to_their_limit_and_remember_failure(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 10);
    assert_string_equal(buf_str(&b), "");
    assert_int_equal(buf_append_str(&b, "hello"), 0);
    assert_int_equal(buf_printf(&b, "%d", 12345), 0);
    assert_string_equal(buf_str(&b), "hello12345");
    assert_int_equal(buf_append_char(&b, '!'), E_LIMIT);
    assert_int_equal(buf_append(&b, "", 0), E_LIMIT); /* sticky */
    assert_int_equal(b.len, 10);
    buf_reset(&b);
    assert_int_equal(buf_append_str(&b, "abcdef"), 0);
    buf_consume(&b, 4);
    assert_string_equal(buf_str(&b), "ef");
    buf_done(&b);
}

static void cursors_never_leave_their_span(void **state)
{
    (void)state;
    struct buf b;
    struct cursor c;
    buf_init(&b, 100);
    buf_append_u8(&b, 0xAB);
    buf_append_u16(&b, 0x1234);
    buf_append_u32(&b, 0xDEADBEEF);
    buf_append_u64(&b, 0x0123456789ABCDEF);
    buf_append_f32(&b, -1.5f);
    assert_int_equal((unsigned char)b.data[1], 0x34); /* little-endian */
    for (size_t size = 0; size <= b.len; size++) {
        cursor_init(&c, b.data, size);
        uint8_t u8 = cursor_u8(&c);
        uint16_t u16 = cursor_u16(&c);
        uint32_t u32 = cursor_u32(&c);
        uint64_t u64 = cursor_u64(&c);
        float f = cursor_f32(&c);
        assert_int_equal(c.failed, size < b.len);
        assert_true(c.offset <= size);
        if (!c.failed) {
            assert_int_equal(u8, 0xAB);
            assert_int_equal(u16, 0x1234);
            assert_int_equal(u32, 0xDEADBEEF);
            assert_true(u64 == 0x0123456789ABCDEF && f == -1.5f);
            assert_int_equal(cursor_left(&c), 0);
            assert_null(cursor_bytes(&c, 1));
            assert_true(c.failed);
        }
    }
    cursor_init(&c, b.data, b.len);
    assert_null(cursor_bytes(&c, SIZE_MAX));
    buf_done(&b);
}

/* Known answers of philox4x32-10 from the Random123 distribution (kat_vectors). */
static void random_numbers_match_the_paper(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], expected[4];
    } known[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        uint32_t block[4];
        rng_block(known[i].key, known[i].counter, block);
        assert_memory_equal(block, known[i].expected, sizeof(block));
    }
    double sum = 0;
    for (uint64_t i = 0; i < 10000; i++) {
        double u = rng_uniform(5, i, 0);
        assert_true(u >= 0 && u < 1 && u == rng_uniform(5, i, 0));
        sum += u;
    }
    assert_true(fabs(sum / 10000 - 0.5) < 0.01);
}

static void utf8_is_checked_strictly(void **state)
{
    (void)state;
    assert_int_equal(utf8_sequence_length("a", 1), 1);
    assert_int_equal(utf8_sequence_length("\xC3\xA9", 2), 2);
    assert_int_equal(utf8_sequence_length("\xE2\x82\xAC", 3), 3);
    assert_int_equal(utf8_sequence_length("\xF0\x9F\x98\x80", 4), 4);
    static const char *const invalid[] = {
        "\x80",         "\xC0\xAF",         "\xC1\xBF",         "\xE0\x80\x80",
        "\xED\xA0\x80", "\xF0\x80\x80\x80", "\xF4\x90\x80\x80", "\xF5\x80\x80\x80",
        "\xFF"};
    for (size_t i = 0; i < sizeof(invalid) / sizeof(invalid[0]); i++)
        assert_int_equal(utf8_sequence_length(invalid[i], strlen(invalid[i])), 0);
    assert_true(utf8_is_incomplete("\xE2\x82", 2));
    assert_true(utf8_is_incomplete("\xF0", 1));
    assert_false(utf8_is_incomplete("\xE2\x41", 2));
    assert_false(utf8_is_incomplete("a", 1));
    for (uint32_t cp = 1; cp < 0x110000; cp += 97) {
        char text[4];
        if (cp >= 0xD800 && cp < 0xE000)
            continue;
        size_t n = utf8_encode(cp, text);
        assert_int_equal(utf8_sequence_length(text, n), n);
        assert_int_equal(utf8_decode(text, n), cp);
    }
}

static void json_is_strict_in_and_clean_out(void **state)
{
    (void)state;
    json_t *value;
    struct error err;
    static const char *const bad[] = {"",         "{",       "{\"a\":1} x", "[1,]",
                                      "\"\xFF\"", "{'a':1}", "nul",         "01"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(json_parse(bad[i], strlen(bad[i]), &value, &err), E_FORMAT);
    static char deep[200000];
    memset(deep, '[', sizeof(deep));
    assert_int_equal(json_parse(deep, sizeof(deep), &value, &err), E_FORMAT);

    struct buf b;
    buf_init(&b, 1000);
    json_append_string(&b, "a\"\\\n\x01\xC3\xA9\xFF\0z", 10);
    assert_string_equal(buf_str(&b), "\"a\\\"\\\\\\n\\u0001\xC3\xA9\xEF\xBF\xBD\\u0000z\"");
    assert_int_equal(json_parse(b.data, b.len, &value, &err), 0);
    json_decref(value);
    static const double numbers[] = {
        0, 1, -1.5, 0.1, 1e300, 3.0000000000000004, 123456789012345678.0};
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        buf_reset(&b);
        json_append_double(&b, numbers[i]);
        assert_int_equal(json_parse(b.data, b.len, &value, &err), 0);
        assert_true(json_number_value(value) == numbers[i]);
        json_decref(value);
    }
    buf_reset(&b);
    json_append_double(&b, NAN);
    assert_string_equal(buf_str(&b), "null");
    assert_int_equal(json_parse("{\"b\": [1, null], \"a\": true}", 27, &value, &err), 0);
    buf_reset(&b);
    assert_int_equal(json_append_value(&b, value), 0);
    assert_string_equal(buf_str(&b), "{\"b\":[1,null],\"a\":true}");
    json_decref(value);
    buf_done(&b);
}

static void log_levels_are_per_component(void **state)
{
    (void)state;
    struct error err;
    assert_int_equal(log_configure("warn,mesh=debug,comm=off", &err), 0);
    assert_true(log_enabled(LOG_LEVEL_DEBUG, "mesh"));
    assert_false(log_enabled(LOG_LEVEL_ERROR, "comm"));
    assert_false(log_enabled(LOG_LEVEL_INFO, "api"));
    assert_true(log_enabled(LOG_LEVEL_WARN, "api"));
    assert_int_equal(log_configure("loud", &err), E_INVALID);
    assert_int_equal(log_configure(NULL, &err), 0);
    assert_true(log_enabled(LOG_LEVEL_INFO, "api"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(errors_carry_context_and_stay_bounded),
        cmocka_unit_test(buffers_grow_to_their_limit_and_remember_failure),
        cmocka_unit_test(cursors_never_leave_their_span),
        cmocka_unit_test(random_numbers_match_the_paper),
        cmocka_unit_test(utf8_is_checked_strictly),
        cmocka_unit_test(json_is_strict_in_and_clean_out),
        cmocka_unit_test(log_levels_are_per_component),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
