/* Every allocation of loading and encoding fails once, in turn: the answer is E_NOMEM, or right,
 * and nothing leaks or crashes. */
#include "text/stop.h"
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text/tiny_vocab.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__GLIBC__) && !defined(SANITIZED) && !defined(__SANITIZE_ADDRESS__) &&                 \
    !defined(__SANITIZE_THREAD__)

extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);

static long countdown = -1; /* allocations until one fails; negative: none does */

static bool fails(void)
{
    return countdown >= 0 && countdown-- == 0;
}

void *malloc(size_t n)
{
    return fails() ? NULL : __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    return fails() ? NULL : __libc_realloc(p, n);
}

/* Long enough for the word cache; broken UTF-8, marks, special tokens. */
static const char text[] = "hello world a\xCC\x88\xCC\xA3 \xFF <|im_end|> <tool> "
                           "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                           "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                           "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
                           "hello hello hello hello hello hello hello hello hello";

static int load_and_encode(const struct gguf_file *file, struct token_list *out)
{
    struct tokenizer *t = NULL;
    struct error err = {0};
    int rc = tokenizer_new(file, &t, &err);
    if (rc == 0)
        rc = tokenizer_encode(t, text, sizeof(text) - 1, TOKENIZE_PARSE_SPECIAL, out, &err);
    assert_int_equal(rc, err.code);
    tokenizer_free(t);
    return rc;
}

static void test_each_allocation_fails(void **state)
{
    (void)state;
    for (int kind = 0; kind < 2; kind++) {
        struct tiny tiny;
        struct gguf_file *file = NULL;
        struct token_list whole;
        if (kind == 0)
            tiny_bpe(&tiny, "qwen2");
        else
            tiny_spm(&tiny, true);
        tiny_finish(&tiny);
        assert_int_equal(gguf_file_parse(buf_str(&tiny.file), tiny.file.len, &file, NULL), 0);
        token_list_init(&whole);
        assert_int_equal(load_and_encode(file, &whole), 0);
        long n_failures = 0;
        bool reached_end = false;
        for (long n = 0; !reached_end; n++) {
            struct token_list list;
            token_list_init(&list);
            countdown = n;
            int rc = load_and_encode(file, &list);
            reached_end = countdown >= 0; /* fewer allocations than that */
            countdown = -1;
            if (rc != 0) {
                assert_int_equal(rc, E_NOMEM);
                assert_int_equal(list.n, 0);
                n_failures++;
            } else {
                assert_int_equal(list.n, whole.n);
                assert_memory_equal(list.ids, whole.ids, whole.n * sizeof(whole.ids[0]));
            }
            token_list_done(&list);
        }
        assert_true(n_failures > 10);
        token_list_done(&whole);
        gguf_file_close(file);
        tiny_done(&tiny);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_each_allocation_fails)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

#else

#include <stdio.h>

int main(void)
{
    printf("skipped: malloc cannot be replaced under a sanitizer\n");
    return 77;
}

#endif
