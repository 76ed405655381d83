/* Headers of servers, good and bad; when a part is of the same file; pauses. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "store/download.h"
#include "store/response.h"

#include <stdio.h>
#include <string.h>

static void take(struct response *r, const char *line)
{
    response_take_line(r, line, strlen(line));
}

static void test_headers(void **state)
{
    struct response r = {0};
    (void)state;
    take(&r, "HTTP/1.1 206 Partial Content\r\n");
    take(&r, "ETag:  \"abc\" \r\n");
    take(&r, "last-modified: Wed, 21 Oct 2015 07:28:00 GMT\r\n");
    take(&r, "CONTENT-RANGE: bytes 10-19/100\r\n");
    take(&r, "Content-Length: 10\r\n");
    take(&r, "Retry-After: 7\r\n");
    assert_string_equal(r.etag, "\"abc\"");
    assert_string_equal(r.modified, "Wed, 21 Oct 2015 07:28:00 GMT");
    assert_true(r.has_range && r.range_begin == 10 && r.range_end == 20 && r.range_total == 100);
    assert_true(r.has_length && r.length == 10 && r.retry_after_s == 7);
    take(&r, "HTTP/2 200\r\n"); /* after a redirect */
    assert_true(r.etag[0] == '\0' && !r.has_range && !r.has_length);
    take(&r, "ETag: W/\"weak\"\r\n");
    assert_string_equal(r.etag, "");
    take(&r, "Content-Range: bytes 0-9/*\r\n");
    assert_true(r.has_range && r.range_total == PART_TOTAL_UNKNOWN);
}

static void test_bad_headers(void **state)
{
    static const char *const ranges[] = {
        "bytes 10-9/100",
        "bytes 0-100/100",
        "bytes 0-9",
        "bytes */100",
        "bytes 0-9/100 x",
        "items 0-9/100",
        "bytes -9/100",
        "bytes 0-9/",
        "bytes 0-",
        "",
        "bytes 0-18446744073709551616/18446744073709551617",
    };
    char line[600];
    (void)state;
    for (size_t i = 0; i < sizeof(ranges) / sizeof(ranges[0]); i++) {
        struct response r = {0};
        snprintf(line, sizeof(line), "Content-Range: %s\r\n", ranges[i]);
        take(&r, line);
        assert_false(r.has_range);
    }
    struct response r = {0};
    memset(line, 'x', sizeof(line));
    memcpy(line, "ETag: \"", 7);
    response_take_line(&r, line, sizeof(line)); /* too long to be kept whole */
    assert_string_equal(r.etag, "");
    take(&r, "Content-Length: -5\r\n");
    take(&r, "Content-Length: 99999999999999999999999\r\n");
    take(&r, ":\r\n");
    take(&r, "");
    assert_false(r.has_length);
    take(&r, "Retry-After: 99999999\r\n");
    assert_int_equal(r.retry_after_s, 3600);
    for (uint64_t i = 0; i < 50000; i++) { /* whatever comes, nothing breaks */
        size_t n = rng_u64(2, i, 0) % sizeof(line);
        static const char *const names[] = {"etag:", "content-range: bytes ",
                                            "content-length:", "retry-after:"};
        for (size_t k = 0; k < n; k++)
            line[k] = "0123456789-/* \"x\r\n"[rng_u64(2, i, (uint32_t)k + 9) % 17];
        const char *name = names[i % 4];
        if (n > strlen(name))
            memcpy(line, name, strlen(name));
        response_take_line(&r, line, n > 60 ? 60 : n);
    }
}

static void test_same(void **state)
{
    struct part_source found = {.total = 100};
    struct response r = {.etag = "\"1\"", .modified = "then"};
    (void)state;
    assert_false(response_is_same(&r, 100, "u", &found, true)); /* there is nothing */
    strcpy(found.url, "u");
    strcpy(found.etag, "\"1\"");
    assert_true(response_is_same(&r, 100, "u", &found, false));
    assert_false(response_is_same(&r, 101, "u", &found, true));
    assert_false(response_is_same(&r, 100, "v", &found, false));
    assert_true(response_is_same(&r, 100, "v", &found, true)); /* another place, the same hash */
    strcpy(found.etag, "\"2\"");
    assert_false(response_is_same(&r, 100, "u", &found, true));
    found.etag[0] = r.etag[0] = '\0';
    assert_false(response_is_same(&r, 100, "u", &found, false));
    strcpy(found.modified, "then");
    assert_true(response_is_same(&r, 100, "u", &found, false));
    found.modified[0] = r.modified[0] = '\0';
    assert_false(response_is_same(&r, 100, "u", &found, false)); /* nobody can tell */
}

static void test_pauses(void **state)
{
    (void)state;
    for (uint32_t n = 1; n < 12; n++)
        for (uint32_t chance = 0; chance < 1024; chance++) {
            uint64_t most = n >= 6 ? 30000 : (uint64_t)500 << n;
            uint64_t ms = download_pause_ms(n, chance);
            assert_true(ms >= most / 2 && ms <= most);
        }
    assert_true(download_status_passes(429) && download_status_passes(503));
    assert_false(download_status_passes(404) || download_status_passes(403));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_headers),
        cmocka_unit_test(test_bad_headers),
        cmocka_unit_test(test_same),
        cmocka_unit_test(test_pauses),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
