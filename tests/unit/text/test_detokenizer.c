#include "base/rng.h"
#include "text/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text/tiny_vocab.h"

static struct tokenizer *open_kind(bool spm)
{
    struct tiny tiny;
    struct tokenizer *t = NULL;
    struct error err = {0};
    if (spm)
        tiny_spm(&tiny, true);
    else
        tiny_bpe(&tiny, "gpt-2");
    tiny_finish(&tiny);
    if (tiny_open(&tiny, &t, &err) != 0)
        fail_msg("%s", err.message);
    tiny_done(&tiny);
    return t;
}

static bool is_utf8(const struct buf *b)
{
    for (size_t i = 0; i < b->len;) {
        size_t n = utf8_sequence_length(b->data + i, b->len - i);
        if (n == 0)
            return false;
        i += n;
    }
    return true;
}

/* All bytes at once, each that is not part of a character or its beginning replaced: what a stream
 * must add up to. */
static void decode_at_once(const struct tokenizer *t, const token_id *ids, size_t n, bool at_start,
                           struct buf *out)
{
    struct buf raw;
    buf_init(&raw, 1 << 20);
    for (size_t i = 0; i < n; i++) {
        size_t len;
        const char *piece = tokenizer_piece(t, ids[i], false, &len);
        buf_append(&raw, piece, len);
    }
    size_t i = at_start && raw.len > 0 && raw.data[0] == ' ' ? 1 : 0;
    while (i < raw.len) {
        size_t len = utf8_sequence_length(raw.data + i, raw.len - i), bad = 1;
        while (len == 0 && i + bad < raw.len && bad < 3 &&
               utf8_is_incomplete(raw.data + i, bad + 1))
            bad++;
        buf_append(out, len > 0 ? raw.data + i : "\xEF\xBF\xBD", len > 0 ? len : 3);
        i += len > 0 ? len : bad;
    }
    buf_done(&raw);
}

/* Any tokens in any order: the stream equals the whole, and every state of it is UTF-8. */
static void test_stream_equals_whole(void **state)
{
    (void)state;
    for (int spm = 0; spm < 2; spm++) {
        struct tokenizer *t = open_kind(spm != 0);
        for (uint64_t seed = 0; seed < 3000; seed++) {
            token_id ids[24];
            size_t n = rng_u64(seed, 0, 1) % 25;
            struct buf stream, whole;
            struct detokenizer d;
            buf_init(&stream, 1 << 20);
            buf_init(&whole, 1 << 20);
            detokenizer_init(&d, t, false, true);
            for (size_t i = 0; i < n; i++) {
                ids[i] = (token_id)(rng_u64(seed, i + 1, 1) % (tokenizer_n_vocab(t) + 2)) - 1;
                assert_int_equal(detokenizer_push(&d, ids[i], &stream), 0);
                assert_true(is_utf8(&stream));
            }
            assert_int_equal(detokenizer_finish(&d, &stream), 0);
            decode_at_once(t, ids, n, spm != 0, &whole);
            assert_int_equal(stream.len, whole.len);
            assert_memory_equal(buf_str(&stream), buf_str(&whole), whole.len);
            assert_true(is_utf8(&stream));
            buf_done(&stream);
            buf_done(&whole);
        }
        tokenizer_free(t);
    }
}

/* Text that is UTF-8 comes back from its tokens, whatever the text. */
static void test_round_trip(void **state)
{
    (void)state;
    for (int spm = 0; spm < 2; spm++) {
        struct tokenizer *t = open_kind(spm != 0);
        for (uint64_t seed = 0; seed < 3000; seed++) {
            struct buf text, back;
            struct token_list list;
            struct detokenizer d;
            buf_init(&text, 1 << 20);
            buf_init(&back, 1 << 20);
            token_list_init(&list);
            for (uint64_t i = 0, n = rng_u64(seed, 0, 2) % 40; i < n; i++) {
                static const uint32_t bounds[] = {0x80, 0x80, 0x80, 0x800, 0xD800, 0x110000};
                uint32_t c =
                    (uint32_t)(rng_u64(seed, i + 1, 2) % bounds[rng_u64(seed, i + 1, 3) % 6]);
                char encoded[4];
                if (c == 0x2581 ||
                    (c >= 0xD800 && c < 0xE000)) /* SentencePiece's space comes back as one */
                    c = 'h';
                buf_append(&text, encoded, utf8_encode(c, encoded));
                if (i % 3 == 0)
                    buf_append_str(&text, i % 2 == 0 ? "hello" : "  ");
            }
            assert_int_equal(tokenizer_encode(t, buf_str(&text), text.len, 0, &list, NULL), 0);
            detokenizer_init(&d, t, false, true);
            for (size_t i = 0; i < list.n; i++)
                detokenizer_push(&d, list.ids[i], &back);
            assert_int_equal(detokenizer_finish(&d, &back), 0);
            assert_int_equal(back.len, text.len);
            assert_memory_equal(buf_str(&back), buf_str(&text), text.len);
            token_list_done(&list);
            buf_done(&text);
            buf_done(&back);
        }
        tokenizer_free(t);
    }
}

static void expect_stream(const struct tokenizer *t, const token_id *ids, size_t n,
                          bool with_special, bool at_start, const char *text)
{
    struct detokenizer d;
    struct buf out;
    buf_init(&out, 1000);
    detokenizer_init(&d, t, with_special, at_start);
    for (size_t i = 0; i < n; i++)
        detokenizer_push(&d, ids[i], &out);
    detokenizer_finish(&d, &out);
    assert_string_equal(buf_str(&out), text);
    buf_done(&out);
}

static void test_first_space_and_special_tokens(void **state)
{
    (void)state;
    struct tokenizer *spm = open_kind(true), *bpe = open_kind(false);
    const token_id hellos[] = {TINY_SPM_BOS, TINY_SPM_SPACE_HELLO, TINY_SPM_SPACE_HELLO};
    expect_stream(spm, hellos, 3, false, true, "hello hello");
    expect_stream(spm, hellos, 3, false, false, " hello hello");
    expect_stream(spm, hellos, 3, true, true, "<s> hello hello");
    const token_id chat[] = {TINY_IM_START, TINY_G_W, TINY_TOOL, TINY_IM_END};
    expect_stream(bpe, chat, 4, false, true, " w<tool>");
    expect_stream(bpe, chat, 4, true, true, "<|im_start|> w<tool><|im_end|>");
    const token_id cut[] = {0xE2, 0x96, 'a', 0xFF, 0xF0};
    expect_stream(bpe, cut, 5, false, true,
                  "\xEF\xBF\xBD"
                  "a\xEF\xBF\xBD\xEF\xBF\xBD");
    tokenizer_free(spm);
    tokenizer_free(bpe);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stream_equals_whole),
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_first_space_and_special_tokens),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
