#include "text/tokenizer.h"

#include "base/limits.h"
#include "text/tokenizer_impl.h"

#include <stdlib.h>
#include <string.h>

/* Texts of tokens that end a turn, in the models that are about. Those with `always` are control
 * tokens even if the file says otherwise. */
static const struct {
    const char *text;
    bool always;
} end_texts[] = {
    {"<|im_end|>", true},
    {"<|eot_id|>", true},
    {"<|eom_id|>", true},
    {"<|end|>", true},
    {"<|return|>", true},
    {"<|call|>", true},
    {"<end_of_turn>", true},
    {"<turn|>", true},
    {"<|endoftext|>", true},
    {"<|end_of_text|>", true},
    {"<|END_OF_TURN_TOKEN|>", true},
    {"<end_of_utterance>", true},
    {"<\xEF\xBD\x9C"
     "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>",
     true},
    {"<EOT>", true},
    {"[EOS]", false},
    {"[EOT]", false},
    {"</s>", false},
    {"<eos>", false},
};

void token_list_init(struct token_list *l)
{
    memset(l, 0, sizeof(*l));
}

void token_list_done(struct token_list *l)
{
    free(l->ids);
    token_list_init(l);
}

int token_list_append(struct token_list *l, token_id id)
{
    if (l->n == l->cap) {
        /* Each byte of a prompt may become three (U+FFFD, U+2581), each of them a token, and there
         * is BOS. */
        if (l->n > 3u * LIMIT_PROMPT_BYTES + 1)
            return E_LIMIT;
        size_t cap = l->cap == 0 ? 64 : l->cap * 2;
        token_id *ids = realloc(l->ids, cap * sizeof(*ids));
        if (ids == NULL)
            return E_NOMEM;
        l->ids = ids;
        l->cap = cap;
    }
    l->ids[l->n++] = id;
    return 0;
}

/* An optional token id: -1 when absent or when the file says -1. */
static int load_id(const struct gguf_file *file, const char *key, uint32_t n_vocab,
                   token_id *ret_id, struct error *err)
{
    int64_t value;
    *ret_id = -1;
    if (gguf_file_find(file, key) == NULL)
        return 0;
    int rc = gguf_file_get_i64(file, key, &value, err);
    if (rc != 0)
        return rc;
    if (value == -1 || value == UINT32_MAX)
        return 0;
    if (value < 0 || value >= n_vocab)
        return error_set(err, E_FORMAT, "%s is %lld, but there are %u tokens", key,
                         (long long)value, n_vocab);
    *ret_id = (token_id)value;
    return 0;
}

static void add_end_id(struct tokenizer *t, token_id id)
{
    size_t at = 0;
    while (at < t->n_end_ids && t->end_ids[at] < id)
        at++;
    if (id < 0 || t->n_end_ids == END_IDS_MAX || (at < t->n_end_ids && t->end_ids[at] == id))
        return;
    memmove(t->end_ids + at + 1, t->end_ids + at, (t->n_end_ids - at) * sizeof(t->end_ids[0]));
    t->end_ids[at] = id;
    t->n_end_ids++;
}

/* Marks a token that structures a conversation as control, so that plain text never becomes it. */
static void make_control(struct tokenizer *t, token_id id)
{
    if (id >= 0 && t->vocab.type[id] != TOKEN_TYPE_BYTE && t->vocab.type[id] != TOKEN_TYPE_UNKNOWN)
        t->vocab.type[id] = TOKEN_TYPE_CONTROL;
}

/* Converters before mid-2024 wrote chat markers such as <|im_start|> as user-defined tokens. */
static bool looks_control(const char *text, size_t len)
{
    static const char wide_left[] = "<\xEF\xBD\x9C", wide_right[] = "\xEF\xBD\x9C>";
    static const char *const exact[] = {"<start_of_turn>", "<bos>", "<pad>", "<mask>"};
    if (len >= 4 && memcmp(text, "<|", 2) == 0 && memcmp(text + len - 2, "|>", 2) == 0)
        return true;
    if (len >= 8 && memcmp(text, wide_left, 4) == 0 && memcmp(text + len - 4, wide_right, 4) == 0)
        return true;
    for (size_t i = 0; i < sizeof(exact) / sizeof(exact[0]); i++)
        if (strlen(exact[i]) == len && memcmp(exact[i], text, len) == 0)
            return true;
    return false;
}

static int load_special_ids(struct tokenizer *t, const struct gguf_file *file, struct error *err)
{
    static const char *const end_keys[] = {"tokenizer.ggml.eos_token_id",
                                           "tokenizer.ggml.eot_token_id",
                                           "tokenizer.ggml.eom_token_id"};
    struct vocab *v = &t->vocab;
    int rc = load_id(file, "tokenizer.ggml.bos_token_id", v->n, &t->bos, err);
    if (rc == 0)
        rc = load_id(file, "tokenizer.ggml.unknown_token_id", v->n, &t->unknown, err);
    for (size_t i = 0; rc == 0 && i < sizeof(end_keys) / sizeof(end_keys[0]); i++) {
        token_id id;
        rc = load_id(file, end_keys[i], v->n, &id, err);
        if (rc == 0 && i == 0)
            t->eos = id;
        if (rc == 0) {
            make_control(t, id);
            add_end_id(t, id);
        }
    }
    if (rc != 0)
        return rc;
    make_control(t, t->bos);
    /* In harmony (gpt-oss) <|end|> closes a message, after which the answer goes on. */
    bool is_harmony = vocab_find(v, "<|channel|>", 11) >= 0 && vocab_find(v, "<|return|>", 10) >= 0;
    for (size_t i = 0; i < sizeof(end_texts) / sizeof(end_texts[0]); i++) {
        token_id id = vocab_find(v, end_texts[i].text, strlen(end_texts[i].text));
        if (id >= 0 && end_texts[i].always)
            make_control(t, id);
        bool is_end = !is_harmony || strcmp(end_texts[i].text, "<|end|>") != 0;
        if (id >= 0 && is_end && v->type[id] == TOKEN_TYPE_CONTROL)
            add_end_id(t, id);
    }
    for (uint32_t i = 0; i < v->n; i++) {
        size_t len;
        const char *text = vocab_text(v, (token_id)i, &len);
        if (v->type[i] == TOKEN_TYPE_USER && looks_control(text, len))
            v->type[i] = TOKEN_TYPE_CONTROL;
        if (v->type[i] == TOKEN_TYPE_UNKNOWN && t->unknown < 0)
            t->unknown = (token_id)i;
    }
    /* Some files name the end of text as the unknown token; strange characters must not end a text.
     */
    if (t->unknown >= 0 && (t->unknown == t->bos || tokenizer_is_end(t, t->unknown)))
        t->unknown = -1;
    return 0;
}

static int load_kind(const struct gguf_file *file, enum vocab_kind *ret_kind, struct error *err)
{
    struct gguf_string model;
    int rc = gguf_file_get_string(file, "tokenizer.ggml.model", &model, err);
    if (rc != 0)
        return rc;
    if (model.len == 4 && memcmp(model.data, "gpt2", 4) == 0)
        *ret_kind = VOCAB_BPE;
    else if (model.len == 5 && memcmp(model.data, "llama", 5) == 0)
        *ret_kind = VOCAB_SPM;
    else
        return error_set(err, E_UNSUPPORTED,
                         "tokenizer.ggml.model is \"%.*s\"; known are \"gpt2\" and \"llama\"",
                         model.len > 64 ? 64 : (int)model.len,
                         model.data != NULL ? model.data : "");
    return 0;
}

static int load(struct tokenizer *t, const struct gguf_file *file, struct error *err)
{
    static const char bos_key[] = "tokenizer.ggml.add_bos_token";
    t->bos = t->eos = t->unknown = -1;
    int rc = load_kind(file, &t->kind, err);
    if (rc == 0)
        rc = vocab_load(&t->vocab, t->kind, file, err);
    if (rc == 0)
        rc = load_special_ids(t, file, err);
    if (rc == 0)
        rc = vocab_make_pieces(&t->vocab, err);
    if (rc == 0)
        rc = special_set_load(&t->special, &t->vocab, err);
    if (rc == 0)
        rc = t->kind == VOCAB_BPE ? bpe_load(&t->bpe, &t->vocab, file, err)
                                  : spm_load(&t->spm, &t->vocab, t->unknown, file, err);
    if (rc != 0)
        return rc;
    t->adds_bos = t->kind == VOCAB_SPM || pretokenizer_adds_bos(t->bpe.pretokenizer);
    if (gguf_file_find(file, bos_key) != NULL)
        rc = gguf_file_get_bool(file, bos_key, &t->adds_bos, err);
    return rc;
}

int tokenizer_new(const struct gguf_file *file, struct tokenizer **ret_tokenizer, struct error *err)
{
    struct tokenizer *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return error_set(err, E_NOMEM, "no memory for a tokenizer");
    int rc = load(t, file, err);
    if (rc != 0) {
        tokenizer_free(t);
        return rc;
    }
    *ret_tokenizer = t;
    return 0;
}

void tokenizer_free(struct tokenizer *t)
{
    if (t == NULL)
        return;
    bpe_done(&t->bpe);
    spm_done(&t->spm);
    special_set_done(&t->special);
    vocab_done(&t->vocab);
    free(t);
}

uint32_t tokenizer_n_vocab(const struct tokenizer *t)
{
    return t->vocab.n;
}

token_id tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

token_id tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

bool tokenizer_adds_bos(const struct tokenizer *t)
{
    return t->adds_bos && t->bos >= 0;
}

bool tokenizer_is_end(const struct tokenizer *t, token_id id)
{
    for (size_t i = 0; i < t->n_end_ids; i++)
        if (t->end_ids[i] == id)
            return true;
    return false;
}

size_t tokenizer_end_ids(const struct tokenizer *t, token_id *ret_ids, size_t max)
{
    for (size_t i = 0; i < t->n_end_ids && i < max; i++)
        ret_ids[i] = t->end_ids[i];
    return t->n_end_ids;
}

token_id tokenizer_find(const struct tokenizer *t, const char *text, size_t len)
{
    return vocab_find(&t->vocab, text, len);
}

const char *tokenizer_piece(const struct tokenizer *t, token_id id, bool with_special,
                            size_t *ret_len)
{
    *ret_len = 0;
    if (id < 0 || (uint32_t)id >= t->vocab.n)
        return "";
    enum token_type type = t->vocab.type[id];
    bool hidden =
        type == TOKEN_TYPE_CONTROL || type == TOKEN_TYPE_UNKNOWN || type == TOKEN_TYPE_UNUSED;
    if (hidden && !with_special)
        return "";
    *ret_len = t->vocab.piece_start[id + 1] - t->vocab.piece_start[id];
    return t->vocab.piece + t->vocab.piece_start[id];
}
