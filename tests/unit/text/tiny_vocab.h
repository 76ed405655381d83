/* Tokenizers for tests and fuzzing: GGUF files in memory that hold nothing but a small vocabulary.
 */
#ifndef SHOAL_TESTS_TINY_VOCAB_H
#define SHOAL_TESTS_TINY_VOCAB_H

#include "base/buf.h"
#include "base/utf8.h"
#include "model/gguf.h"
#include "text/tokenizer.h"

#include <stdio.h>
#include <string.h>

enum { TINY_BYTES_MAX = 8 << 20 };
enum {
    TINY_NORMAL = 1,
    TINY_UNKNOWN = 2,
    TINY_CONTROL = 3,
    TINY_USER = 4,
    TINY_UNUSED = 5,
    TINY_BYTE = 6
};

struct tiny {
    struct buf values;                        /* key-value pairs so far */
    struct buf tokens, types, scores, merges; /* items of the arrays */
    uint64_t n_values;
    uint64_t n_tokens, n_types, n_scores, n_merges; /* may be made wrong on purpose */
    struct buf file;
};

static inline void tiny_init(struct tiny *t)
{
    memset(t, 0, sizeof(*t));
    struct buf *const all[] = {&t->values, &t->tokens, &t->types, &t->scores, &t->merges, &t->file};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        buf_init(all[i], TINY_BYTES_MAX);
}

static inline void tiny_done(struct tiny *t)
{
    struct buf *const all[] = {&t->values, &t->tokens, &t->types, &t->scores, &t->merges, &t->file};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
        buf_done(all[i]);
}

static inline void tiny_bytes(struct buf *b, const char *text, size_t n)
{
    buf_append_u64(b, n);
    buf_append(b, text, n);
}

static inline void tiny_key(struct tiny *t, const char *key, enum gguf_kind kind)
{
    char full[96];
    snprintf(full, sizeof(full), "tokenizer.ggml.%s", key);
    tiny_bytes(&t->values, full, strlen(full));
    buf_append_u32(&t->values, kind);
    t->n_values++;
}

static inline void tiny_string(struct tiny *t, const char *key, const char *text)
{
    tiny_key(t, key, GGUF_KIND_STRING);
    tiny_bytes(&t->values, text, strlen(text));
}

static inline void tiny_u32(struct tiny *t, const char *key, uint32_t v)
{
    tiny_key(t, key, GGUF_KIND_U32);
    buf_append_u32(&t->values, v);
}

static inline void tiny_bool(struct tiny *t, const char *key, bool v)
{
    tiny_key(t, key, GGUF_KIND_BOOL);
    buf_append_u8(&t->values, v);
}

static inline token_id tiny_token_bytes(struct tiny *t, const char *text, size_t n, int type,
                                        float score)
{
    tiny_bytes(&t->tokens, text, n);
    buf_append_u32(&t->types, (uint32_t)type);
    buf_append_f32(&t->scores, score);
    t->n_types++;
    t->n_scores++;
    return (token_id)t->n_tokens++;
}

static inline token_id tiny_token(struct tiny *t, const char *text, int type, float score)
{
    return tiny_token_bytes(t, text, strlen(text), type, score);
}

static inline void tiny_merge(struct tiny *t, const char *text)
{
    tiny_bytes(&t->merges, text, strlen(text));
    t->n_merges++;
}

static inline void tiny_array(struct tiny *t, const char *key, enum gguf_kind kind, uint64_t n,
                              const struct buf *items)
{
    tiny_key(t, key, GGUF_KIND_ARRAY);
    buf_append_u32(&t->values, kind);
    buf_append_u64(&t->values, n);
    buf_append(&t->values, buf_str(items), items->len);
}

/* The arrays that have items, then the header and all values. */
static inline void tiny_finish(struct tiny *t)
{
    if (t->n_tokens > 0)
        tiny_array(t, "tokens", GGUF_KIND_STRING, t->n_tokens, &t->tokens);
    if (t->n_types > 0)
        tiny_array(t, "token_type", GGUF_KIND_I32, t->n_types, &t->types);
    if (t->n_scores > 0)
        tiny_array(t, "scores", GGUF_KIND_F32, t->n_scores, &t->scores);
    if (t->n_merges > 0)
        tiny_array(t, "merges", GGUF_KIND_STRING, t->n_merges, &t->merges);
    buf_append_str(&t->file, "GGUF");
    buf_append_u32(&t->file, 3);
    buf_append_u64(&t->file, 0);
    buf_append_u64(&t->file, t->n_values);
    buf_append(&t->file, buf_str(&t->values), t->values.len);
    while (t->file.len % 32 != 0)
        buf_append_char(&t->file, '\0');
}

/* Reads the file that was built. */
static inline int tiny_open(const struct tiny *t, struct tokenizer **ret_tokenizer,
                            struct error *err)
{
    struct gguf_file *file;
    int rc = gguf_file_parse(buf_str(&t->file), t->file.len, &file, err);
    if (rc != 0)
        return rc;
    rc = tokenizer_new(file, ret_tokenizer, err);
    gguf_file_close(file);
    return rc;
}

/* The 256 byte characters, in the order of the bytes: tokens 0 to 255. */
static inline void tiny_byte_alphabet(struct tiny *t)
{
    unsigned next = 256;
    for (unsigned byte = 0; byte < 256; byte++) {
        bool prints = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
        char text[4];
        tiny_token_bytes(t, text, utf8_encode(prints ? byte : next++, text), TINY_NORMAL, 0);
    }
}

/* Merges a pair and adds its result as a token. */
static inline token_id tiny_rule(struct tiny *t, const char *left, const char *right)
{
    char text[64];
    snprintf(text, sizeof(text), "%s %s", left, right);
    tiny_merge(t, text);
    snprintf(text, sizeof(text), "%s%s", left, right);
    return tiny_token(t, text, TINY_NORMAL, 0);
}

enum {
    TINY_HE = 256,
    TINY_LL,
    TINY_HELL,
    TINY_HELLO,
    TINY_G_W,
    TINY_AA,
    TINY_AAA,
    TINY_IM_START,
    TINY_IM_END,
    TINY_TOOL,
    TINY_BPE_N
};

/* Byte-level BPE; the ids are those above. */
static inline void tiny_bpe(struct tiny *t, const char *pre)
{
    tiny_init(t);
    tiny_string(t, "model", "gpt2");
    tiny_string(t, "pre", pre);
    tiny_byte_alphabet(t);
    tiny_rule(t, "h", "e");
    tiny_rule(t, "l", "l");
    tiny_rule(t, "he", "ll");
    tiny_rule(t, "hell", "o");
    tiny_rule(t, "\xC4\xA0", "w");
    tiny_rule(t, "a", "a");
    tiny_rule(t, "aa", "a");
    tiny_token(t, "<|im_start|>", TINY_CONTROL, 0);
    tiny_token(t, "<|im_end|>", TINY_CONTROL, 0);
    tiny_token(t, "<tool>", TINY_USER, 0);
    tiny_u32(t, "bos_token_id", TINY_IM_START);
    tiny_u32(t, "eos_token_id", TINY_IM_END);
}

enum {
    TINY_SPM_UNK,
    TINY_SPM_BOS,
    TINY_SPM_EOS,
    TINY_SPM_BYTE_0,
    TINY_SPM_HE = TINY_SPM_BYTE_0 + 256,
    TINY_SPM_LL,
    TINY_SPM_HELL,
    TINY_SPM_HELLO,
    TINY_SPM_SPACE_HELLO,
    TINY_SPM_SPACES,
    TINY_SPM_SPACE,
    TINY_SPM_A
};

/* SentencePiece with byte tokens, letters a to z, and a user-defined run of two spaces. */
static inline void tiny_spm(struct tiny *t, bool prefix)
{
    tiny_init(t);
    tiny_string(t, "model", "llama");
    tiny_bool(t, "add_space_prefix", prefix);
    tiny_token(t, "<unk>", TINY_UNKNOWN, 0);
    tiny_token(t, "<s>", TINY_CONTROL, 0);
    tiny_token(t, "</s>", TINY_CONTROL, 0);
    for (unsigned i = 0; i < 256; i++) {
        char text[8];
        snprintf(text, sizeof(text), "<0x%02X>", i);
        tiny_token(t, text, TINY_BYTE, 0);
    }
    static const char *const words[] = {"he", "ll", "hell", "hello", "\xE2\x96\x81hello"};
    for (unsigned i = 0; i < 5; i++)
        tiny_token(t, words[i], TINY_NORMAL, -(float)i);
    tiny_token(t, "  ", TINY_USER, -1000);
    tiny_token(t, "\xE2\x96\x81", TINY_NORMAL, -100);
    for (char c = 'a'; c <= 'z'; c++)
        tiny_token_bytes(t, &c, 1, TINY_NORMAL, -101 - (float)(c - 'a'));
    tiny_u32(t, "bos_token_id", TINY_SPM_BOS);
    tiny_u32(t, "eos_token_id", TINY_SPM_EOS);
    tiny_u32(t, "unknown_token_id", TINY_SPM_UNK);
}

#endif
