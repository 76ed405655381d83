#include "text/spm.h"

#include "base/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct scored {
    double score;
    token_id id;
    bool user;
};

/* User-defined tokens first, as SentencePiece takes them before it merges; then by score, then by
 * id. */
static int compare_scored(const void *pa, const void *pb)
{
    const struct scored *a = pa, *b = pb;
    if (a->user != b->user)
        return a->user ? -1 : 1;
    if (!a->user && a->score != b->score)
        return a->score > b->score ? -1 : 1;
    return a->id < b->id ? -1 : 1;
}

static int load_ranks(struct spm *s, const struct gguf_file *file, struct error *err)
{
    static const char key[] = "tokenizer.ggml.scores";
    const struct vocab *v = s->vocab;
    const struct gguf_value *scores;
    int rc = vocab_array(file, key, GGUF_KIND_F32, &scores, err);
    if (rc != 0)
        return rc;
    if (scores->count != v->n)
        return error_set(err, E_FORMAT, "%s has %llu entries for %u tokens", key,
                         (unsigned long long)scores->count, v->n);
    struct scored *sorted = malloc(v->n * sizeof(*sorted));
    s->rank = malloc(v->n * sizeof(*s->rank));
    if (sorted == NULL || s->rank == NULL) {
        free(sorted);
        return error_set(err, E_NOMEM, "no memory for the scores of %u tokens", v->n);
    }
    size_t n = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        double score = gguf_value_item_f64(scores, i);
        s->rank[i] = UINT32_MAX;
        if (isnan(score)) {
            free(sorted);
            return error_set(err, E_FORMAT, "%s: entry %u is not a number", key, i);
        }
        if (v->type[i] == TOKEN_TYPE_NORMAL || v->type[i] == TOKEN_TYPE_USER)
            sorted[n++] = (struct scored){score, (token_id)i, v->type[i] == TOKEN_TYPE_USER};
    }
    qsort(sorted, n, sizeof(*sorted), compare_scored);
    for (size_t i = 0; i < n; i++)
        s->rank[sorted[i].id] = (uint32_t)i;
    free(sorted);
    return 0;
}

static uint64_t pair_bit(const struct spm *s, uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) ^ s->vocab->seed;
    h *= 0x9E3779B97F4A7C15u;
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h >> 32 & s->pair_mask;
}

static bool may_join(const struct spm *s, uint32_t left, uint32_t right)
{
    uint64_t bit = pair_bit(s, left, right);
    return (s->pairs[bit / 64] >> (bit % 64) & 1) != 0;
}

/* A boundary between two characters that stand next to each other in no token is never merged
 * across: text may be cut there without any change of the result. A false positive of the filter
 * only means a longer piece. */
static int load_pairs(struct spm *s, struct error *err)
{
    const struct vocab *v = s->vocab;
    uint32_t n_bits = 1024;
    while (n_bits < v->n * 16)
        n_bits *= 2;
    s->pairs = calloc(n_bits / 64, sizeof(*s->pairs));
    if (s->pairs == NULL)
        return error_set(err, E_NOMEM, "no memory for the character pairs of %u tokens", v->n);
    s->pair_mask = n_bits - 1;
    for (uint32_t id = 0; id < v->n; id++) {
        size_t len;
        const char *text = vocab_text(v, (token_id)id, &len);
        if (s->rank[id] == UINT32_MAX || len > VOCAB_TOKEN_BYTES_MAX)
            continue;
        uint32_t left = UINT32_MAX;
        for (size_t i = 0; i < len;) {
            size_t step = utf8_sequence_length(text + i, len - i);
            if (step == 0)
                break; /* text is valid UTF-8: it never becomes this token */
            uint32_t right = utf8_decode(text + i, step);
            if (left != UINT32_MAX) {
                uint64_t bit = pair_bit(s, left, right);
                s->pairs[bit / 64] |= (uint64_t)1 << (bit % 64);
            }
            left = right;
            i += step;
        }
    }
    return 0;
}

int spm_load(struct spm *s, const struct vocab *v, token_id unknown, const struct gguf_file *file,
             struct error *err)
{
    static const char prefix_key[] = "tokenizer.ggml.add_space_prefix";
    memset(s, 0, sizeof(*s));
    s->vocab = v;
    s->unknown = unknown;
    s->add_space_prefix = true;
    for (unsigned i = 0; i < 256; i++)
        s->byte_token[i] = vocab_find_byte(v, (uint8_t)i);
    int rc = 0;
    if (gguf_file_find(file, prefix_key) != NULL)
        rc = gguf_file_get_bool(file, prefix_key, &s->add_space_prefix, err);
    if (rc == 0)
        rc = load_ranks(s, file, err);
    return rc != 0 ? rc : load_pairs(s, err);
}

void spm_done(struct spm *s)
{
    free(s->rank);
    free(s->pairs);
    memset(s, 0, sizeof(*s));
}

int spm_append_normalized(const struct spm *s, const char *text, size_t len, struct buf *out)
{
    static const char mark[] = "\xE2\x96\x81";
    if (s->add_space_prefix && len > 0)
        buf_append(out, mark, 3);
    while (len > 0) {
        const char *space = memchr(text, ' ', len);
        size_t n = space != NULL ? (size_t)(space - text) : len;
        buf_append(out, text, n);
        if (space != NULL) {
            buf_append(out, mark, 3);
            n++;
        }
        text += n;
        len -= n;
    }
    return out->error;
}

int spm_split(const struct spm *s, const char *text, size_t len, pretokenizer_word_fn word,
              void *arg)
{
    size_t start = 0;
    uint32_t left = UINT32_MAX;
    for (size_t i = 0; i < len;) {
        size_t step = utf8_sequence_length(text + i, len - i);
        uint32_t right = utf8_decode(text + i, step);
        if (left != UINT32_MAX && !may_join(s, left, right)) {
            int rc = word(arg, text + start, i - start);
            if (rc != 0)
                return rc;
            start = i;
        }
        left = right;
        i += step;
    }
    return start < len ? word(arg, text + start, len - start) : 0;
}

/* Key: the result's place in the order, then the shorter left side, as the usual conversion of
 * these vocabularies to merge rules sorts. */
static bool find_merge(const void *arg, const char *text, const struct symbol *left,
                       const struct symbol *right, uint64_t *ret_key, token_id *ret_id)
{
    const struct spm *s = arg;
    if (left->n_chars == 0 || right->n_chars == 0 || left->len + right->len > VOCAB_TOKEN_BYTES_MAX)
        return false;
    token_id id = vocab_find(s->vocab, text + left->start, left->len + right->len);
    if (id < 0 || s->rank[id] == UINT32_MAX)
        return false;
    *ret_key = (uint64_t)s->rank[id] << 32 | left->n_chars;
    *ret_id = id;
    return true;
}

/* A character without a token: its bytes if each has a token, else the unknown token, else nothing.
 */
static int add_fallback(const struct spm *s, struct merger *m, const char *c, uint32_t start,
                        size_t len)
{
    int rc = 0;
    for (size_t i = 0; i < len; i++)
        if (s->byte_token[(uint8_t)c[i]] < 0)
            return s->unknown >= 0 ? merger_add(m, s->unknown, start, (uint32_t)len, 0) : 0;
    for (size_t i = 0; rc == 0 && i < len; i++)
        rc = merger_add(m, s->byte_token[(uint8_t)c[i]], start + (uint32_t)i, 1, 0);
    return rc;
}

int spm_encode_word(const struct spm *s, struct merger *m, const char *word, size_t len,
                    struct token_list *out)
{
    merger_reset(m);
    for (size_t i = 0; i < len;) {
        size_t step = utf8_sequence_length(word + i, len - i);
        token_id id = vocab_find_plain(s->vocab, word + i, step);
        int rc = id >= 0 ? merger_add(m, id, (uint32_t)i, (uint32_t)step, 1)
                         : add_fallback(s, m, word + i, (uint32_t)i, step);
        if (rc != 0)
            return rc;
        i += step;
    }
    return merger_run(m, word, find_merge, s, out);
}
