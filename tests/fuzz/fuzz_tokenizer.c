/*
 * Tokenizers. The first byte of the input chooses: text for one of the built-in vocabularies, or
 * metadata made of the input. Checked: a text's tokens are in range, control tokens appear only
 * with leave, and valid UTF-8 comes back from its tokens; hostile metadata is refused or makes a
 * tokenizer that works without fault.
 */
#include "text/tokenizer.h"

#include "text/tiny_vocab.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>

static const char *const names[] = {"gpt-2",  "smollm",      "llama-bpe",      "qwen2",  "gpt-4o",
                                    "tekken", "deepseek-v3", "deepseek-coder", "falcon", "default"};
enum { N_NAMES = sizeof(names) / sizeof(names[0]), N_BUILT_IN = N_NAMES + 2 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool condition)
{
    if (!condition)
        abort();
}

static struct tokenizer *built_in(size_t i)
{
    static struct tokenizer *all[N_BUILT_IN];
    if (all[i] == NULL) {
        struct tiny tiny;
        struct error err;
        if (i < N_NAMES)
            tiny_bpe(&tiny, names[i]);
        else
            tiny_spm(&tiny, i == N_NAMES);
        tiny_finish(&tiny);
        require(tiny_open(&tiny, &all[i], &err) == 0);
        tiny_done(&tiny);
    }
    return all[i];
}

static bool is_control(const struct tokenizer *t, token_id id)
{
    size_t shown, whole;
    tokenizer_piece(t, id, false, &shown);
    tokenizer_piece(t, id, true, &whole);
    return shown == 0 && whole > 0;
}

/* Encodes and decodes. Returns the decoded text, which must be UTF-8. */
static void round_trip(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                       token_id unknown, struct buf *back)
{
    struct token_list ids;
    struct detokenizer d;
    struct error err;
    token_list_init(&ids);
    require(tokenizer_encode(t, text, len, flags, &ids, &err) == 0);
    detokenizer_init(&d, t, true, true);
    for (size_t i = 0; i < ids.n; i++) {
        require(ids.ids[i] >= 0 && (uint32_t)ids.ids[i] < tokenizer_n_vocab(t));
        if ((flags & TOKENIZE_PARSE_SPECIAL) == 0) {
            require(!tokenizer_is_end(t, ids.ids[i]) && ids.ids[i] != tokenizer_bos(t));
            require(!is_control(t, ids.ids[i]) || ids.ids[i] == unknown);
        }
        require(detokenizer_push(&d, ids.ids[i], back) == 0);
    }
    require(detokenizer_finish(&d, back) == 0);
    for (size_t i = 0; i < back->len;) {
        size_t n = utf8_sequence_length(back->data + i, back->len - i);
        require(n > 0);
        i += n;
    }
    token_list_done(&ids);
}

static void fuzz_text(size_t which, unsigned flags, const char *text, size_t len)
{
    const struct tokenizer *t = built_in(which % N_BUILT_IN);
    bool composes = which % N_BUILT_IN < N_NAMES && strcmp(names[which % N_BUILT_IN], "qwen2") == 0;
    const token_id unknown = -1; /* there are all byte tokens */
    bool valid = true, has_mark = false;
    for (size_t i = 0; valid && i < len;) {
        size_t n = utf8_sequence_length(text + i, len - i);
        valid = n > 0;
        has_mark = has_mark || (n == 3 && memcmp(text + i, "\xE2\x96\x81", 3) == 0);
        i += n;
    }
    struct buf back, again;
    buf_init(&back, TINY_BYTES_MAX);
    buf_init(&again, TINY_BYTES_MAX);
    round_trip(t, text, len, flags, unknown, &back);
    /* SentencePiece cannot tell U+2581 from a space, and puts spaces after special tokens; Form C
     * is another text. */
    bool plain =
        which % N_BUILT_IN < N_NAMES || (!has_mark && (flags & TOKENIZE_PARSE_SPECIAL) == 0);
    if (valid && plain && !composes) {
        require(back.len == len);
        require(len == 0 || memcmp(buf_str(&back), text, len) == 0);
    }
    if (composes) { /* what is composed stays as it is */
        round_trip(t, buf_str(&back), back.len, flags, unknown, &again);
        require(again.len == back.len);
        require(memcmp(buf_str(&again), buf_str(&back), back.len) == 0);
    }
    buf_done(&back);
    buf_done(&again);
}

/* Tokens, types, scores and merges as the input says: lengths, duplicates and counts that do not
 * fit each other. */
static void fuzz_metadata(bool spm, const uint8_t *data, size_t size)
{
    struct tiny tiny;
    struct tokenizer *t = NULL;
    struct error err;
    struct cursor c;
    cursor_init(&c, data, size);
    tiny_init(&tiny);
    tiny_string(&tiny, "model", spm ? "llama" : "gpt2");
    tiny_string(&tiny, "pre", names[cursor_u8(&c) % N_NAMES]);
    unsigned shape = cursor_u8(&c);
    if ((shape & 1) != 0)
        tiny_byte_alphabet(&tiny);
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "eot_token_id",
                                       "unknown_token_id"};
    token_id unknown = -1;
    for (unsigned i = 0; i < 4; i++) {
        uint8_t id = (shape & 2u << i) != 0 ? cursor_u8(&c) : 0;
        if ((shape & 2u << i) != 0)
            tiny_u32(&tiny, keys[i], id);
        if (i == 3 && (shape & 2u << i) != 0)
            unknown = id;
    }
    while (cursor_left(&c) > 2) {
        unsigned what = cursor_u8(&c), n = cursor_u8(&c) % 24;
        n = n < cursor_left(&c) ? n : (unsigned)cursor_left(&c);
        const char *text = n > 0 ? cursor_bytes(&c, n) : "";
        if (what < 160) {
            if (what % 7 == TINY_UNKNOWN && unknown < 0)
                unknown = (token_id)tiny.n_tokens;
            float score = (float)(what % 16) - 8;
            tiny_token_bytes(&tiny, text, n, (int)(what % 7), what == 159 ? NAN : score);
        } else if (what < 250) {
            tiny_bytes(&tiny.merges, text, n);
            tiny.n_merges++;
        } else if (what < 253) {
            buf_append_u32(&tiny.types, what);
            tiny.n_types++;
        } else {
            buf_append_f32(&tiny.scores, 1);
            tiny.n_scores++;
        }
    }
    tiny_finish(&tiny);
    if (tiny_open(&tiny, &t, &err) == 0) {
        struct buf back;
        buf_init(&back, TINY_BYTES_MAX);
        round_trip(t, (const char *)data, size, shape & TOKENIZE_PARSE_SPECIAL, unknown, &back);
        buf_done(&back);
        tokenizer_free(t);
    }
    tiny_done(&tiny);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 2 || size > 1 << 16)
        return 0;
    if (data[0] < 128)
        fuzz_text(data[0], data[1] & TOKENIZE_PARSE_SPECIAL, (const char *)data + 2, size - 2);
    else
        fuzz_metadata(data[0] % 2 != 0, data + 1, size - 1);
    return 0;
}
