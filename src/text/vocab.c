#include "text/vocab.h"

#include "base/limits.h"
#include "base/rng.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

static const char space_mark[] = "\xE2\x96\x81"; /* U+2581, SentencePiece's space */

uint64_t vocab_hash(uint64_t seed, const char *text, size_t len)
{
    const uint64_t k = 0x9E3779B97F4A7C15u;
    uint64_t h = (seed ^ len) * k;
    for (; len >= 8; text += 8, len -= 8) {
        uint64_t word;
        memcpy(&word, text, 8);
        h = (h ^ word) * k;
        h ^= h >> 29;
    }
    if (len > 0) {
        uint64_t word = 0;
        memcpy(&word, text, len);
        h = (h ^ word) * k;
    }
    h ^= h >> 32;
    h *= 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

/* Bytes that print keep their code point; the 68 others take U+0100 onwards, in order. Source:
 * GPT-2's encoder.py. */
static bool byte_prints(unsigned byte)
{
    return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

static uint32_t byte_code_point(unsigned byte)
{
    if (byte_prints(byte))
        return byte;
    if (byte <= 0x20)
        return 0x100 + byte;
    return byte == 0xAD ? 0x143 : 0x121 + (byte - 0x7F);
}

size_t byte_to_char(uint8_t byte, char ret_text[4])
{
    return utf8_encode(byte_code_point(byte), ret_text);
}

/* The byte of a mapped character, -1 when the code point is not one. */
static int char_to_byte(uint32_t code_point)
{
    if (code_point < 0x100)
        return byte_prints(code_point) ? (int)code_point : -1;
    if (code_point <= 0x120)
        return (int)(code_point - 0x100);
    if (code_point <= 0x142)
        return (int)(code_point - 0x121 + 0x7F);
    return code_point == 0x143 ? 0xAD : -1;
}

int vocab_array(const struct gguf_file *file, const char *key, enum gguf_kind item_kind,
                const struct gguf_value **ret_value, struct error *err)
{
    const struct gguf_value *v = gguf_file_find(file, key);
    if (v == NULL)
        return error_set(err, E_NOTFOUND, "the file has no %s: it holds no usable tokenizer", key);
    bool fits = v->kind == GGUF_KIND_ARRAY;
    bool is_float = v->item_kind == GGUF_KIND_F32 || v->item_kind == GGUF_KIND_F64;
    bool is_string = v->item_kind == GGUF_KIND_STRING;
    if (item_kind == GGUF_KIND_STRING)
        fits = fits && is_string;
    else if (item_kind == GGUF_KIND_F32)
        fits = fits && is_float;
    else
        fits = fits && !is_float && !is_string && v->item_kind != GGUF_KIND_ARRAY;
    if (!fits)
        return error_set(err, E_FORMAT, "%s is not an array of %s (its type is %d of %d)", key,
                         item_kind == GGUF_KIND_STRING ? "strings"
                         : item_kind == GGUF_KIND_F32  ? "floats"
                                                       : "integers",
                         (int)v->kind, (int)v->item_kind);
    *ret_value = v;
    return 0;
}

const char *vocab_text(const struct vocab *v, token_id id, size_t *ret_len)
{
    *ret_len = v->text_start[id + 1] - v->text_start[id];
    return v->text + v->text_start[id];
}

static const struct vocab_slot *find_slot(const struct vocab *v, const char *text, size_t len,
                                          uint32_t hash)
{
    for (uint32_t i = hash & v->slot_mask;; i = (i + 1) & v->slot_mask) {
        const struct vocab_slot *slot = &v->slots[i];
        if (slot->token == 0)
            return slot;
        if (slot->hash != hash)
            continue;
        size_t n;
        const char *found = vocab_text(v, (token_id)(slot->token - 1), &n);
        if (n == len && memcmp(found, text, len) == 0)
            return slot;
    }
}

token_id vocab_find(const struct vocab *v, const char *text, size_t len)
{
    if (v->slots == NULL)
        return -1;
    const struct vocab_slot *slot =
        find_slot(v, text, len, (uint32_t)vocab_hash(v->seed, text, len));
    return (token_id)slot->token - 1;
}

token_id vocab_find_plain(const struct vocab *v, const char *text, size_t len)
{
    if (len > VOCAB_TOKEN_BYTES_MAX)
        return -1;
    token_id id = vocab_find(v, text, len);
    if (id >= 0 && v->type[id] != TOKEN_TYPE_NORMAL && v->type[id] != TOKEN_TYPE_USER)
        return -1;
    return id;
}

token_id vocab_find_byte(const struct vocab *v, uint8_t byte)
{
    static const char digits[] = "0123456789ABCDEF";
    if (v->kind == VOCAB_BPE) {
        char text[4];
        return vocab_find_plain(v, text, byte_to_char(byte, text));
    }
    const char text[6] = {'<', '0', 'x', digits[byte >> 4], digits[byte & 15], '>'};
    token_id id = vocab_find(v, text, sizeof(text));
    return id >= 0 && v->type[id] == TOKEN_TYPE_BYTE ? id : -1;
}

/* The byte of a text such as <0x0A>, -1 when it is not one. */
static int parse_byte_token(const char *text, size_t len)
{
    if (len != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>')
        return -1;
    int value = 0;
    for (int i = 3; i < 5; i++) {
        char c = text[i];
        int digit = c >= '0' && c <= '9'   ? c - '0'
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10
                    : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                           : -1;
        if (digit < 0)
            return -1;
        value = value * 16 + digit;
    }
    return value;
}

/* Without the array all tokens are normal, but for SentencePiece's byte tokens, which their text
 * tells. */
static int load_types(struct vocab *v, const struct gguf_file *file,
                      const struct gguf_value *tokens, struct error *err)
{
    static const char key[] = "tokenizer.ggml.token_type";
    v->type = malloc(v->n);
    if (v->type == NULL)
        return error_set(err, E_NOMEM, "no memory for the types of %u tokens", v->n);
    memset(v->type, TOKEN_TYPE_NORMAL, v->n);
    const struct gguf_value *types;
    if (gguf_file_find(file, key) == NULL) {
        for (uint32_t i = 0; v->kind == VOCAB_SPM && i < v->n; i++)
            if (parse_byte_token(tokens->strings[i].data, tokens->strings[i].len) >= 0)
                v->type[i] = TOKEN_TYPE_BYTE;
        return 0;
    }
    int rc = vocab_array(file, key, GGUF_KIND_I32, &types, err);
    if (rc != 0)
        return rc;
    if (types->count != v->n)
        return error_set(err, E_FORMAT, "%s has %llu entries for %u tokens", key,
                         (unsigned long long)types->count, v->n);
    for (uint32_t i = 0; i < v->n; i++) {
        int64_t type = gguf_value_item_i64(types, i);
        if (type < 0 || type > TOKEN_TYPE_BYTE)
            return error_set(err, E_FORMAT, "%s: entry %u is %lld, not 0 to 6", key, i,
                             (long long)type);
        if (type != 0)
            v->type[i] = (uint8_t)type;
    }
    return 0;
}

/* Copies a token's text. The converter wrote the spaces of SentencePiece's user-defined tokens as
 * spaces; they are put back as the model has them, because Hugging Face finds these tokens in text
 * that is not normalized yet (so it finds U+2581, not spaces). */
static size_t copy_text(const struct vocab *v, uint32_t id, const struct gguf_string *s, char *out)
{
    size_t n = 0;
    bool marks = v->kind == VOCAB_SPM && v->type[id] == TOKEN_TYPE_USER;
    for (size_t i = 0; i < s->len; i++) {
        bool is_space = marks && s->data[i] == ' ';
        memcpy(out + n, is_space ? space_mark : s->data + i, is_space ? 3 : 1);
        n += is_space ? 3 : 1;
    }
    return n;
}

static int make_index(struct vocab *v, struct error *err)
{
    uint32_t n_slots = 16;
    while (n_slots < v->n * 2)
        n_slots *= 2;
    v->slots = calloc(n_slots, sizeof(*v->slots));
    if (v->slots == NULL)
        return error_set(err, E_NOMEM, "no memory for the index of %u tokens", v->n);
    v->slot_mask = n_slots - 1;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t len;
        const char *text = vocab_text(v, (token_id)i, &len);
        uint32_t hash = (uint32_t)vocab_hash(v->seed, text, len);
        size_t at = (size_t)(find_slot(v, text, len, hash) - v->slots);
        if (v->slots[at].token == 0)
            v->slots[at] = (struct vocab_slot){.hash = hash, .token = i + 1};
    }
    return 0;
}

int vocab_load(struct vocab *v, enum vocab_kind kind, const struct gguf_file *file,
               struct error *err)
{
    static const char key[] = "tokenizer.ggml.tokens";
    const struct gguf_value *tokens;
    memset(v, 0, sizeof(*v));
    v->kind = kind;
    int rc = vocab_array(file, key, GGUF_KIND_STRING, &tokens, err);
    if (rc != 0)
        return rc;
    if (tokens->count == 0)
        return error_set(err, E_FORMAT, "%s is empty", key);
    if (tokens->count > LIMIT_VOCAB_TOKENS)
        return error_set(err, E_LIMIT, "%s has %llu tokens, more than %u", key,
                         (unsigned long long)tokens->count, LIMIT_VOCAB_TOKENS);
    v->n = (uint32_t)tokens->count;
    uint64_t n_bytes = 0;
    for (uint32_t i = 0; i < v->n; i++)
        n_bytes += tokens->strings[i].len;
    if (n_bytes > (256u << 20))
        return error_set(err, E_LIMIT, "%s holds %llu bytes of text, more than 256 MiB", key,
                         (unsigned long long)n_bytes);
    rc = load_types(v, file, tokens, err);
    if (rc != 0)
        return rc;
    v->text = malloc(n_bytes * 3 + 1); /* a space may become three bytes */
    v->text_start = malloc((v->n + 1) * sizeof(*v->text_start));
    if (v->text == NULL || v->text_start == NULL)
        return error_set(err, E_NOMEM, "no memory for %u tokens", v->n);
    v->text_start[0] = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t n = copy_text(v, i, &tokens->strings[i], v->text + v->text_start[i]);
        v->text_start[i + 1] = v->text_start[i] + (uint32_t)n;
    }
    if (rng_system(&v->seed, sizeof(v->seed)) != 0)
        v->seed = 0x243F6A8885A308D3u; /* still right, only not secret */
    return make_index(v, err);
}

/* Output bytes of one token, appended at out; returns how many. At most as many as the text has. */
static size_t write_piece(const struct vocab *v, token_id id, char *out)
{
    size_t len, n = 0;
    const char *text = vocab_text(v, id, &len);
    enum token_type type = v->type[id];
    if (type == TOKEN_TYPE_BYTE) {
        out[0] = (char)parse_byte_token(text, len);
        return 1;
    }
    if (type == TOKEN_TYPE_NORMAL && v->kind == VOCAB_BPE) {
        for (size_t i = 0; i < len;) {
            size_t step = utf8_sequence_length(text + i, len - i);
            int byte = step > 0 ? char_to_byte(utf8_decode(text + i, step)) : -1;
            if (byte < 0) { /* not in the byte alphabet: an added token, which stands for itself */
                memcpy(out, text, len);
                return len;
            }
            out[n++] = (char)byte;
            i += step;
        }
        return n;
    }
    if ((type == TOKEN_TYPE_NORMAL || type == TOKEN_TYPE_USER) && v->kind == VOCAB_SPM) {
        for (size_t i = 0; i < len;) {
            bool is_space = len - i >= 3 && memcmp(text + i, space_mark, 3) == 0;
            out[n++] = is_space ? ' ' : text[i];
            i += is_space ? 3 : 1;
        }
        return n;
    }
    memcpy(out, text, len);
    return len;
}

int vocab_make_pieces(struct vocab *v, struct error *err)
{
    v->piece = malloc((size_t)v->text_start[v->n] + 1);
    v->piece_start = malloc((v->n + 1) * sizeof(*v->piece_start));
    if (v->piece == NULL || v->piece_start == NULL)
        return error_set(err, E_NOMEM, "no memory for the output bytes of %u tokens", v->n);
    v->piece_start[0] = 0;
    for (uint32_t i = 0; i < v->n; i++) {
        size_t len;
        const char *text = vocab_text(v, (token_id)i, &len);
        if (v->type[i] == TOKEN_TYPE_BYTE && parse_byte_token(text, len) < 0)
            return error_set(err, E_FORMAT, "token %u is a byte token but not written as <0xNN>",
                             i);
        size_t n = write_piece(v, (token_id)i, v->piece + v->piece_start[i]);
        v->piece_start[i + 1] = v->piece_start[i] + (uint32_t)n;
    }
    return 0;
}

void vocab_done(struct vocab *v)
{
    free(v->text);
    free(v->text_start);
    free(v->piece);
    free(v->piece_start);
    free(v->type);
    free(v->slots);
    memset(v, 0, sizeof(*v));
}
