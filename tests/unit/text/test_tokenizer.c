#include "base/clock.h"
#include "base/limits.h"
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text/tiny_vocab.h"

static struct tokenizer *open_and_free(struct tiny *tiny)
{
    struct tokenizer *t = NULL;
    struct error err = {0};
    tiny_finish(tiny);
    if (tiny_open(tiny, &t, &err) != 0)
        fail_msg("%s", err.message);
    tiny_done(tiny);
    return t;
}

static struct tokenizer *open_bpe(const char *pre)
{
    struct tiny tiny;
    tiny_bpe(&tiny, pre);
    return open_and_free(&tiny);
}

static struct tokenizer *open_spm(bool prefix)
{
    struct tiny tiny;
    tiny_spm(&tiny, prefix);
    return open_and_free(&tiny);
}

static void expect_bytes(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                         const token_id *ids, size_t n)
{
    struct token_list list;
    struct error err = {0};
    token_list_init(&list);
    assert_int_equal(tokenizer_encode(t, text, len, flags, &list, &err), 0);
    if (list.n != n || (n > 0 && memcmp(list.ids, ids, n * sizeof(*ids)) != 0)) {
        for (size_t i = 0; i < list.n; i++)
            print_message("%d ", list.ids[i]);
        fail_msg("\"%.*s\" gave these %zu tokens, not the %zu expected", (int)len, text, list.n, n);
    }
    token_list_done(&list);
}

#define EXPECT(t, text, flags, ...)                                                                \
    do {                                                                                           \
        const token_id wanted[] = {__VA_ARGS__};                                                   \
        expect_bytes(t, text, strlen(text), flags, wanted, sizeof(wanted) / sizeof(wanted[0]));    \
    } while (0)

static void test_bpe_merges_by_rank(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    EXPECT(t, "hello world", 0, TINY_HELLO, TINY_G_W, 'o', 'r', 'l', 'd');
    EXPECT(t, "hell", 0, TINY_HELL);
    EXPECT(t, "aaaaa", 0, TINY_AA, TINY_AAA); /* pairs from the left first, then aa + a */
    EXPECT(t, "a\xC3\xA9", 0, 'a', 0xC3, 0xA9);
    expect_bytes(t, "", 0, 0, NULL, 0);
    tokenizer_free(t);
}

static void test_pre_tokenizers_cut_words(void **state)
{
    (void)state;
    struct tokenizer *gpt2 = open_bpe("gpt-2"), *smollm = open_bpe("smollm");
    /* GPT-2 leaves one space for the word; SmolLM2 cuts at each digit first, so spaces before a
     * digit stay together. */
    EXPECT(gpt2, "a  wo", 0, 'a', ' ', TINY_G_W, 'o');
    EXPECT(smollm, "a  12", 0, 'a', ' ', ' ', '1', '2');
    tokenizer_free(gpt2);
    tokenizer_free(smollm);
}

static void test_special_tokens_need_leave(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    EXPECT(t, "<|im_end|>", TOKENIZE_PARSE_SPECIAL, TINY_IM_END);
    EXPECT(t, "hello<|im_end|>hello", TOKENIZE_PARSE_SPECIAL, TINY_HELLO, TINY_IM_END, TINY_HELLO);
    EXPECT(t, "<|im_end|>", 0, '<', '|', 'i', 'm', '_', 'e', 'n', 'd', '|', '>');
    EXPECT(t, "<tool>", 0, TINY_TOOL); /* user-defined: always */
    EXPECT(t, "<|im_end<tool>", TOKENIZE_PARSE_SPECIAL, '<', '|', 'i', 'm', '_', 'e', 'n', 'd',
           TINY_TOOL);
    EXPECT(t, "a", TOKENIZE_ADD_BOS, 'a'); /* not asked for by the metadata */
    tokenizer_free(t);
}

/* An old converter's types: what ends a turn is a control token nevertheless. */
static void test_user_defined_chat_markers_are_control(void **state)
{
    (void)state;
    struct tiny tiny;
    tiny_init(&tiny);
    tiny_string(&tiny, "model", "gpt2");
    tiny_string(&tiny, "pre", "qwen2");
    tiny_byte_alphabet(&tiny);
    tiny_rule(&tiny, "a", "a");
    token_id end = tiny_token(&tiny, "<|im_end|>", TINY_USER, 0);
    token_id start = tiny_token(&tiny, "<|im_start|>", TINY_USER, 0);
    struct tokenizer *t = open_and_free(&tiny);
    struct token_list list;
    token_list_init(&list);
    assert_int_equal(tokenizer_encode(t, "<|im_start|><|im_end|>", 22, 0, &list, NULL), 0);
    for (size_t i = 0; i < list.n; i++)
        assert_true(list.ids[i] != end && list.ids[i] != start);
    token_list_done(&list);
    assert_true(tokenizer_is_end(t, end));
    assert_false(tokenizer_is_end(t, start));
    tokenizer_free(t);
}

/* <|end|> ends a turn of Phi; in harmony it ends a message, and the answer goes on. */
static void test_harmony_goes_on_after_a_message(void **state)
{
    (void)state;
    for (int is_harmony = 0; is_harmony < 2; is_harmony++) {
        struct tiny tiny;
        tiny_init(&tiny);
        tiny_string(&tiny, "model", "gpt2");
        tiny_string(&tiny, "pre", "qwen2");
        tiny_byte_alphabet(&tiny);
        tiny_rule(&tiny, "a", "a");
        token_id end = tiny_token(&tiny, "<|end|>", TINY_USER, 0);
        token_id last = tiny_token(&tiny, "<|return|>", TINY_USER, 0);
        if (is_harmony)
            tiny_token(&tiny, "<|channel|>", TINY_USER, 0);
        struct tokenizer *t = open_and_free(&tiny);
        assert_int_equal(tokenizer_is_end(t, end), !is_harmony);
        assert_true(tokenizer_is_end(t, last));
        tokenizer_free(t);
    }
}

static void test_spm_merges_by_score(void **state)
{
    (void)state;
    struct tokenizer *plain = open_spm(false), *prefix = open_spm(true);
    EXPECT(plain, "hello", 0, TINY_SPM_HELLO);
    EXPECT(plain, "hello hello", 0, TINY_SPM_HELLO, TINY_SPM_SPACE_HELLO);
    EXPECT(plain, "a", TOKENIZE_ADD_BOS, TINY_SPM_BOS,
           TINY_SPM_A); /* SentencePiece models want BOS unless they say no */
    EXPECT(prefix, "hello", 0, TINY_SPM_SPACE_HELLO);
    EXPECT(prefix, "hello</s>hello", TOKENIZE_PARSE_SPECIAL, TINY_SPM_SPACE_HELLO, TINY_SPM_EOS,
           TINY_SPM_SPACE_HELLO);
    EXPECT(plain, "\xC3\xA9", 0, TINY_SPM_BYTE_0 + 0xC3, TINY_SPM_BYTE_0 + 0xA9);
    EXPECT(plain, "</s>", 0, TINY_SPM_BYTE_0 + '<', TINY_SPM_BYTE_0 + '/', TINY_SPM_A + 's' - 'a',
           TINY_SPM_BYTE_0 + '>');
    EXPECT(plain, "<0x41>", 0, TINY_SPM_BYTE_0 + '<', TINY_SPM_BYTE_0 + '0', TINY_SPM_A + 'x' - 'a',
           TINY_SPM_BYTE_0 + '4', TINY_SPM_BYTE_0 + '1', TINY_SPM_BYTE_0 + '>');
    EXPECT(plain, "a   a", 0, TINY_SPM_A, TINY_SPM_SPACES, TINY_SPM_SPACE, TINY_SPM_A);
    tokenizer_free(plain);
    tokenizer_free(prefix);
}

static void test_broken_utf8_is_replaced(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    EXPECT(t,
           "\xFF"
           "a",
           0, 0xEF, 0xBF, 0xBD, 'a');
    EXPECT(t, "\xE2\x96", 0, 0xEF, 0xBF, 0xBD); /* a cut-off sequence is one */
    EXPECT(t, "\xED\xA0\x80", 0, 0xEF, 0xBF, 0xBD, 0xEF, 0xBF, 0xBD, 0xEF, 0xBF,
           0xBD); /* a surrogate is three */
    tokenizer_free(t);
}

static void test_qwen2_composes(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("qwen2");
    EXPECT(t, "e\xCC\x81", 0, 0xC3, 0xA9);
    EXPECT(t, "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", 0, 0xEA, 0xB0, 0x81);
    EXPECT(t, "a\xCC\x88\xCC\xA3", 0, 0xE1, 0xBA, 0xA1, 0xCC,
           0x88); /* the mark below comes first */
    tokenizer_free(t);
}

static void test_questions(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    token_id ids[4];
    size_t n;
    assert_int_equal(tokenizer_n_vocab(t), TINY_BPE_N);
    assert_int_equal(tokenizer_bos(t), TINY_IM_START);
    assert_int_equal(tokenizer_eos(t), TINY_IM_END);
    assert_false(tokenizer_adds_bos(t));
    assert_int_equal(tokenizer_end_ids(t, ids, 4), 1);
    assert_int_equal(ids[0], TINY_IM_END);
    assert_int_equal(tokenizer_find(t, "<tool>", 6), TINY_TOOL);
    assert_int_equal(tokenizer_find(t, "nothing", 7), -1);
    assert_memory_equal(tokenizer_piece(t, TINY_G_W, false, &n), " w", 2);
    assert_int_equal(n, 2);
    tokenizer_piece(t, TINY_IM_END, false, &n);
    assert_int_equal(n, 0);
    tokenizer_piece(t, TINY_IM_END, true, &n);
    assert_int_equal(n, 10);
    tokenizer_piece(t, -1, true, &n);
    assert_int_equal(n, 0);
    tokenizer_piece(t, TINY_BPE_N, true, &n);
    assert_int_equal(n, 0);
    tokenizer_free(t);
}

/* A megabyte without a space, a run of marks, of spaces, of almost-tokens: time that grows with n
 * log n, not with its square. */
static void test_hostile_texts_take_bounded_time(void **state)
{
    (void)state;
    enum { SIZE = 1 << 20 };
    static const char *const units[] = {"a",       "hell",         " ", "\n", "\xCC\x81\xCC\xA3",
                                        "<|im_en", "\xE2\x96\x81", "'", "1",  "\xFF",
                                        "Ab"};
    struct tokenizer *all[] = {open_bpe("gpt-2"), open_bpe("qwen2"), open_bpe("gpt-4o"),
                               open_bpe("deepseek-v3"), open_spm(true)};
    char *text = malloc(SIZE);
    assert_non_null(text);
    uint64_t before = clock_now_ns();
    for (size_t u = 0; u < sizeof(units) / sizeof(units[0]); u++) {
        size_t n = strlen(units[u]), size = u < 3 ? SIZE : SIZE / 8;
        for (size_t i = 0; i < size; i++)
            text[i] = units[u][i % n];
        for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++) {
            struct token_list list;
            struct error err = {0};
            token_list_init(&list);
            uint64_t start = clock_now_ns();
            if (tokenizer_encode(all[k], text, size, TOKENIZE_PARSE_SPECIAL, &list, &err) != 0)
                fail_msg("tokenizer %zu on repeated \"%s\": %s", k, units[u], err.message);
            double seconds = (double)(clock_now_ns() - start) / 1e9;
            if (seconds > 20)
                fail_msg("tokenizer %zu took %.1f s on repeated \"%s\"", k, seconds, units[u]);
            token_list_done(&list);
        }
    }
    print_message("20 MiB in %.1f s\n", (double)(clock_now_ns() - before) / 1e9);
    free(text);
    for (size_t k = 0; k < sizeof(all) / sizeof(all[0]); k++)
        tokenizer_free(all[k]);
}

static void test_too_long_a_text_is_refused(void **state)
{
    (void)state;
    struct tokenizer *t = open_bpe("gpt-2");
    struct token_list list;
    struct error err = {0};
    char *text = calloc(1, LIMIT_PROMPT_BYTES + 1);
    assert_non_null(text);
    token_list_init(&list);
    assert_int_equal(tokenizer_encode(t, text, LIMIT_PROMPT_BYTES + 1, 0, &list, &err), E_LIMIT);
    assert_int_equal(list.n, 0);
    free(text);
    token_list_done(&list);
    tokenizer_free(t);
}

static void refuse(struct tiny *tiny, int code, const char *part)
{
    struct tokenizer *t = NULL;
    struct error err = {0};
    tiny_finish(tiny);
    assert_int_equal(tiny_open(tiny, &t, &err), code);
    assert_null(t);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' does not contain '%s'", err.message, part);
    tiny_done(tiny);
}

static void test_bad_metadata_is_refused(void **state)
{
    (void)state;
    struct tiny tiny;
    tiny_init(&tiny);
    tiny_string(&tiny, "model", "gpt2");
    refuse(&tiny, E_NOTFOUND, "tokenizer.ggml.tokens");
    tiny_init(&tiny);
    tiny_string(&tiny, "model", "bert");
    refuse(&tiny, E_UNSUPPORTED, "bert");
    tiny_bpe(&tiny, "no-such-rule");
    refuse(&tiny, E_UNSUPPORTED, "no-such-rule");
    tiny_bpe(&tiny, "gpt-2");
    tiny_merge(&tiny, "nospace");
    refuse(&tiny, E_FORMAT, "nospace");
    tiny_bpe(&tiny, "gpt-2");
    tiny_u32(&tiny, "eot_token_id", 100000);
    refuse(&tiny, E_FORMAT, "eot_token_id is 100000");
    tiny_bpe(&tiny, "gpt-2");
    buf_append_u32(&tiny.types, 1);
    tiny.n_types++;
    refuse(&tiny, E_FORMAT, "token_type");
    tiny_spm(&tiny, true);
    buf_append_f32(&tiny.scores, 1);
    tiny.n_scores++;
    refuse(&tiny, E_FORMAT, "scores");
    tiny_spm(&tiny, true);
    tiny_token(&tiny, "<0xZZ>", TINY_BYTE, 0);
    refuse(&tiny, E_FORMAT, "<0xNN>");
    tiny_spm(&tiny, true);
    tiny_token(&tiny, "type", 7, 0);
    refuse(&tiny, E_FORMAT, "0 to 6");
    tiny_spm(&tiny, true);
    tiny.n_scores = 0;
    refuse(&tiny, E_NOTFOUND, "scores");
}

static void test_unknown_characters_fuse(void **state)
{
    (void)state;
    struct tiny tiny;
    tiny_init(&tiny);
    tiny_string(&tiny, "model", "llama");
    tiny_bool(&tiny, "add_space_prefix", false);
    token_id unknown = tiny_token(&tiny, "<unk>", TINY_UNKNOWN, 0),
             a = tiny_token(&tiny, "a", TINY_NORMAL, 0);
    struct tokenizer *t = open_and_free(&tiny);
    EXPECT(t, "aXYa\xC3\xA9", 0, a, unknown, a, unknown);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bpe_merges_by_rank),
        cmocka_unit_test(test_pre_tokenizers_cut_words),
        cmocka_unit_test(test_special_tokens_need_leave),
        cmocka_unit_test(test_user_defined_chat_markers_are_control),
        cmocka_unit_test(test_harmony_goes_on_after_a_message),
        cmocka_unit_test(test_spm_merges_by_score),
        cmocka_unit_test(test_broken_utf8_is_replaced),
        cmocka_unit_test(test_qwen2_composes),
        cmocka_unit_test(test_questions),
        cmocka_unit_test(test_hostile_texts_take_bounded_time),
        cmocka_unit_test(test_too_long_a_text_is_refused),
        cmocka_unit_test(test_bad_metadata_is_refused),
        cmocka_unit_test(test_unknown_characters_fuse),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
