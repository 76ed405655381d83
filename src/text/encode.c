#include "base/limits.h"
#include "text/normalize.h"
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

/* Words repeat: the tokens of short ones are remembered for the length of one call. */
enum { CACHE_SLOTS = 2048, CACHE_WORD_BYTES = 30, CACHE_TOKENS = 6, CACHE_MIN_TEXT_BYTES = 256 };

struct cached_word {
    uint64_t hash;
    token_id ids[CACHE_TOKENS];
    uint8_t len; /* 0 when free */
    uint8_t n_ids;
    char text[CACHE_WORD_BYTES];
};

struct encode_call {
    const struct tokenizer *t;
    struct token_list *out;
    struct error *err;
    struct merger merger;
    struct cached_word *cache; /* NULL for short texts */
    struct buf normalized;     /* of the segment at hand */
};

static int merge_word(struct encode_call *call, const char *word, size_t len)
{
    return call->t->kind == VOCAB_BPE
               ? bpe_encode_word(&call->t->bpe, &call->merger, word, len, call->out)
               : spm_encode_word(&call->t->spm, &call->merger, word, len, call->out);
}

static int encode_word(void *arg, const char *word, size_t len)
{
    struct encode_call *call = arg;
    struct cached_word *slot = NULL;
    size_t n_before = call->out->n;
    uint64_t hash = 0;
    int rc = 0;
    if (call->cache != NULL && len <= CACHE_WORD_BYTES) {
        hash = vocab_hash(call->t->vocab.seed, word, len);
        slot = &call->cache[hash % CACHE_SLOTS];
        if (slot->len == len && slot->hash == hash && memcmp(slot->text, word, len) == 0) {
            for (uint8_t i = 0; rc == 0 && i < slot->n_ids; i++)
                rc = token_list_append(call->out, slot->ids[i]);
            return rc;
        }
    }
    rc = merge_word(call, word, len);
    size_t n_ids = call->out->n - n_before;
    if (rc == 0 && slot != NULL && n_ids <= CACHE_TOKENS) {
        slot->hash = hash;
        slot->len = (uint8_t)len;
        slot->n_ids = (uint8_t)n_ids;
        memcpy(slot->text, word, len);
        if (n_ids > 0)
            memcpy(slot->ids, call->out->ids + n_before, n_ids * sizeof(slot->ids[0]));
    }
    return rc;
}

/* Characters without a token that follow each other are one unknown token, as in SentencePiece and
 * Hugging Face's fuse_unk. */
static void fuse_unknown(struct token_list *l, size_t from, token_id unknown)
{
    size_t n = from;
    for (size_t i = from; i < l->n; i++)
        if (unknown < 0 || i == from || l->ids[i] != unknown || l->ids[i - 1] != unknown)
            l->ids[n++] = l->ids[i];
    l->n = n;
}

/* Text without special tokens in it. */
static int encode_plain(struct encode_call *call, const char *text, size_t len)
{
    const struct tokenizer *t = call->t;
    size_t n_before = call->out->n;
    if (len == 0)
        return 0;
    buf_reset(&call->normalized);
    if (t->kind == VOCAB_SPM) {
        int rc = spm_append_normalized(&t->spm, text, len, &call->normalized);
        if (rc == 0)
            rc = spm_split(&t->spm, call->normalized.data, call->normalized.len, encode_word, call);
        if (rc == 0)
            fuse_unknown(call->out, n_before, t->unknown);
        return rc;
    }
    if (pretokenizer_composes(t->bpe.pretokenizer)) {
        int rc = text_append_nfc(&call->normalized, text, len);
        if (rc != 0)
            return rc;
        text = call->normalized.data;
        len = call->normalized.len;
    }
    return pretokenizer_split(t->bpe.pretokenizer, text, len, encode_word, call, call->err);
}

/* Splits at special tokens. As in Hugging Face, the longest at the leftmost place is found whether
 * or not it may be used; a control token without leave stays text. User-defined tokens are always
 * taken, since they are a part of how plain text of these models is written (gemma's runs of line
 * ends); they give a text no power over the conversation. */
static int encode_text(struct encode_call *call, const char *text, size_t len, unsigned flags)
{
    const struct tokenizer *t = call->t;
    size_t done = 0;
    for (size_t i = 0; i < len;) {
        token_id id;
        size_t n = special_set_match(&t->special, text + i, len - i, &id);
        if (n == 0) {
            i++;
            continue;
        }
        if (t->vocab.type[id] == TOKEN_TYPE_USER || (flags & TOKENIZE_PARSE_SPECIAL) != 0) {
            int rc = encode_plain(call, text + done, i - done);
            if (rc == 0)
                rc = token_list_append(call->out, id);
            if (rc != 0)
                return rc;
            done = i + n;
        }
        i += n;
    }
    return encode_plain(call, text + done, len - done);
}

int tokenizer_encode(const struct tokenizer *t, const char *text, size_t len, unsigned flags,
                     struct token_list *out, struct error *err)
{
    if (len > LIMIT_PROMPT_BYTES)
        return error_set(err, E_LIMIT, "the text has %zu bytes, more than %u", len,
                         LIMIT_PROMPT_BYTES);
    struct encode_call call = {.t = t, .out = out, .err = err};
    struct buf valid; /* the text with bytes that are not UTF-8 replaced, if there are any */
    size_t n_before = out->n;
    int rc = 0;
    error_clear(err);
    buf_init(&valid, 3u * LIMIT_PROMPT_BYTES + 3);
    buf_init(&call.normalized, 9u * LIMIT_PROMPT_BYTES + 12);
    merger_init(&call.merger);
    if (text_valid_length(text, len) < len) {
        rc = text_append_valid(&valid, text, len);
        text = valid.data;
        len = valid.len;
    }
    if (len >= CACHE_MIN_TEXT_BYTES)
        call.cache = calloc(CACHE_SLOTS, sizeof(*call.cache)); /* without it: only slower */
    if (rc == 0 && (flags & TOKENIZE_ADD_BOS) != 0 && tokenizer_adds_bos(t))
        rc = token_list_append(out, t->bos);
    if (rc == 0)
        rc = encode_text(&call, text, len, flags);
    free(call.cache);
    merger_done(&call.merger);
    buf_done(&call.normalized);
    buf_done(&valid);
    if (rc != 0)
        out->n = n_before;
    if (rc != 0 && err != NULL && err->code == 0)
        return error_set(err, rc, "%s while tokenizing %zu bytes", error_text(rc), len);
    return rc;
}
