#include "text/bpe.h"

#include "base/limits.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

static uint32_t rule_hash(uint64_t seed, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) ^ seed;
    h *= 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return (uint32_t)(h >> 32);
}

static struct bpe_rule *find_rule(const struct bpe *b, uint32_t left, uint32_t right)
{
    for (uint32_t i = rule_hash(b->vocab->seed, left, right) & b->mask;; i = (i + 1) & b->mask) {
        struct bpe_rule *rule = &b->rules[i];
        if (rule->left == UINT32_MAX || (rule->left == left && rule->right == right))
            return rule;
    }
}

/* Parses "left right" and adds the rule. Returns 1 when one of the tokens is not in the vocabulary
 * or must not come from text. */
static int add_rule(struct bpe *b, const struct gguf_string *s, uint32_t rank, struct error *err)
{
    const char *space = s->len > 2 ? memchr(s->data + 1, ' ', s->len - 2) : NULL;
    if (space == NULL)
        return error_set(
            err, E_FORMAT,
            "tokenizer.ggml.merges: entry %u (\"%.*s\") is not two tokens with a space between",
            rank, s->len > 64 ? 64 : (int)s->len, s->len > 0 ? s->data : "");
    size_t n_left = (size_t)(space - s->data), n_right = s->len - n_left - 1;
    char joined[VOCAB_TOKEN_BYTES_MAX];
    if (n_left + n_right > sizeof(joined))
        return 1;
    memcpy(joined, s->data, n_left);
    memcpy(joined + n_left, space + 1, n_right);
    token_id left = vocab_find_plain(b->vocab, s->data, n_left);
    token_id right = vocab_find_plain(b->vocab, space + 1, n_right);
    token_id result = vocab_find_plain(b->vocab, joined, n_left + n_right);
    if (left < 0 || right < 0 || result < 0)
        return 1;
    /* A pair named twice has the last rank, as in Hugging Face's table. */
    *find_rule(b, (uint32_t)left, (uint32_t)right) =
        (struct bpe_rule){(uint32_t)left, (uint32_t)right, rank, result};
    return 0;
}

static int load_rules(struct bpe *b, const struct gguf_file *file, struct error *err)
{
    const struct gguf_value *merges;
    int rc = vocab_array(file, "tokenizer.ggml.merges", GGUF_KIND_STRING, &merges, err);
    if (rc != 0)
        return rc;
    if (merges->count > 4u * LIMIT_VOCAB_TOKENS)
        return error_set(err, E_LIMIT, "tokenizer.ggml.merges has %llu entries, more than %u",
                         (unsigned long long)merges->count, 4u * LIMIT_VOCAB_TOKENS);
    uint32_t n_slots = 16;
    while (n_slots < merges->count * 2)
        n_slots *= 2;
    b->rules = malloc(n_slots * sizeof(*b->rules));
    if (b->rules == NULL)
        return error_set(err, E_NOMEM, "no memory for %llu merges",
                         (unsigned long long)merges->count);
    memset(b->rules, 0xFF, n_slots * sizeof(*b->rules));
    b->mask = n_slots - 1;
    uint32_t n_useless = 0;
    for (uint32_t i = 0; i < (uint32_t)merges->count; i++) {
        rc = add_rule(b, &merges->strings[i], i, err);
        if (rc < 0)
            return rc;
        n_useless += (uint32_t)rc;
    }
    if (n_useless > 0)
        log_warn("text", "%u of %u merges name tokens that the vocabulary lacks -> ignored",
                 n_useless, (uint32_t)merges->count);
    return 0;
}

int bpe_load(struct bpe *b, const struct vocab *v, const struct gguf_file *file, struct error *err)
{
    struct gguf_string pre = {"default", 7};
    memset(b, 0, sizeof(*b));
    b->vocab = v;
    int rc = 0;
    if (gguf_file_find(file, "tokenizer.ggml.pre") != NULL)
        rc = gguf_file_get_string(file, "tokenizer.ggml.pre", &pre, err);
    if (rc == 0)
        rc = pretokenizer_new(pre.data, pre.len, &b->pretokenizer, err);
    if (rc != 0)
        return rc;
    for (unsigned i = 0; i < 256; i++)
        b->byte_token[i] = vocab_find_byte(v, (uint8_t)i);
    return load_rules(b, file, err);
}

void bpe_done(struct bpe *b)
{
    pretokenizer_free(b->pretokenizer);
    free(b->rules);
    memset(b, 0, sizeof(*b));
}

static bool find_merge(const void *arg, const char *text, const struct symbol *left,
                       const struct symbol *right, uint64_t *ret_key, token_id *ret_id)
{
    (void)text;
    const struct bpe_rule *rule = find_rule(arg, (uint32_t)left->id, (uint32_t)right->id);
    if (rule->left == UINT32_MAX)
        return false;
    *ret_key = rule->rank;
    *ret_id = rule->result;
    return true;
}

/* The token that is the whole word, -1 when there is none. */
static token_id find_word(const struct bpe *b, const char *word, size_t len)
{
    char mapped[VOCAB_TOKEN_BYTES_MAX + 4];
    size_t n = 0;
    if (len > VOCAB_TOKEN_BYTES_MAX)
        return -1;
    for (size_t i = 0; i < len && n <= VOCAB_TOKEN_BYTES_MAX; i++)
        n += byte_to_char((uint8_t)word[i], mapped + n);
    return n <= VOCAB_TOKEN_BYTES_MAX ? vocab_find_plain(b->vocab, mapped, n) : -1;
}

int bpe_encode_word(const struct bpe *b, struct merger *m, const char *word, size_t len,
                    struct token_list *out)
{
    if (pretokenizer_ignores_merges(b->pretokenizer)) {
        token_id id = find_word(b, word, len);
        if (id >= 0)
            return token_list_append(out, id);
    }
    merger_reset(m);
    for (size_t i = 0; i < len; i++) {
        token_id id = b->byte_token[(uint8_t)word[i]];
        int rc = id >= 0 ? merger_add(m, id, (uint32_t)i, 1, 1) : 0;
        if (rc != 0)
            return rc;
    }
    return merger_run(m, word, find_merge, b, out);
}
