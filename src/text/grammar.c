#include "text/grammar.h"

#include "base/limits.h"
#include "text/rust/shoal_rust.h"

#include <stdlib.h>
#include <string.h>

_Static_assert(LIMIT_GRAMMAR_BYTES == SHOAL_RUST_GRAMMAR_BYTES, "one bound for both languages");

enum { END_IDS_MAX = 64 };

static int code_of(int32_t status)
{
    switch (status) {
    case SHOAL_RUST_OK:
    case SHOAL_RUST_NOTHING:
        return 0;
    case SHOAL_RUST_FORMAT:
        return E_INVALID;
    case SHOAL_RUST_LIMIT:
        return E_LIMIT;
    default:
        return E_INTERNAL;
    }
}

static int check(int32_t status, const char *message, struct error *err)
{
    int rc = code_of(status);
    return rc != 0 ? error_set(err, rc, "%s", message) : 0;
}

/* All pieces one after another. Returns the total, or writes nothing when ret_bytes is NULL. */
static size_t join_pieces(const struct tokenizer *t, uint32_t *ret_starts, char *ret_bytes)
{
    uint32_t n = tokenizer_n_vocab(t);
    size_t total = 0, len;
    for (uint32_t i = 0; i < n; i++) {
        const char *piece = tokenizer_piece(t, (token_id)i, false, &len);
        if (ret_bytes != NULL) {
            ret_starts[i] = (uint32_t)total;
            memcpy(ret_bytes + total, piece, len);
        }
        total += len;
    }
    if (ret_bytes != NULL)
        ret_starts[n] = (uint32_t)total;
    return total;
}

int grammar_vocab_new(const struct tokenizer *t, struct grammar_vocab **ret_vocab,
                      struct error *err)
{
    token_id ids[END_IDS_MAX];
    uint32_t ends[END_IDS_MAX], n_vocab = tokenizer_n_vocab(t);
    size_t n_ends = tokenizer_end_ids(t, ids, END_IDS_MAX), n_bytes = join_pieces(t, NULL, NULL);
    if (n_ends > END_IDS_MAX)
        n_ends = END_IDS_MAX;
    for (size_t i = 0; i < n_ends; i++)
        ends[i] = (uint32_t)ids[i];
    if (n_bytes > UINT32_MAX)
        return error_set(err, E_INVALID, "the vocabulary has %zu bytes of text", n_bytes);
    uint32_t *starts = malloc((n_vocab + (size_t)1) * sizeof(*starts));
    char *bytes = malloc(n_bytes > 0 ? n_bytes : 1);
    int rc = 0;
    if (starts == NULL || bytes == NULL) {
        rc = error_set(err, E_NOMEM, "no memory for a vocabulary of %u tokens", n_vocab);
    } else {
        char message[ERROR_MESSAGE_BYTES];
        struct shoal_rust_vocab *made = NULL;
        join_pieces(t, starts, bytes);
        rc = check(shoal_rust_vocab_new((const uint8_t *)bytes, starts, n_vocab, ends,
                                        (uint32_t)n_ends, &made, message, sizeof(message)),
                   message, err);
        if (rc == 0)
            *ret_vocab = (struct grammar_vocab *)made; /* never more than a name for it */
    }
    free(starts);
    free(bytes);
    return rc;
}

void grammar_vocab_free(struct grammar_vocab *v)
{
    shoal_rust_vocab_free((struct shoal_rust_vocab *)v);
}

int grammar_compile(const struct grammar_vocab *v, enum grammar_kind kind, const char *text,
                    size_t len, struct grammar **ret_grammar, struct error *err)
{
    char message[ERROR_MESSAGE_BYTES];
    struct shoal_rust_grammar *made = NULL;
    int rc = check(shoal_rust_grammar_new((const struct shoal_rust_vocab *)v, (uint32_t)kind, text,
                                          len, &made, message, sizeof(message)),
                   message, err);
    if (rc == 0)
        *ret_grammar = (struct grammar *)made;
    return rc;
}

void grammar_free(struct grammar *g)
{
    shoal_rust_grammar_free((struct shoal_rust_grammar *)g);
}

int grammar_mask(struct grammar *g, uint8_t *bits, size_t n_bytes, bool *ret_is_over,
                 struct error *err)
{
    char message[ERROR_MESSAGE_BYTES];
    int32_t status = shoal_rust_grammar_mask((struct shoal_rust_grammar *)g, bits, n_bytes, message,
                                             sizeof(message));
    int rc = check(status, message, err);
    if (rc == 0)
        *ret_is_over = status == SHOAL_RUST_NOTHING;
    return rc;
}

int grammar_accept(struct grammar *g, token_id token, struct error *err)
{
    char message[ERROR_MESSAGE_BYTES];
    return check(shoal_rust_grammar_accept((struct shoal_rust_grammar *)g, (uint32_t)token, message,
                                           sizeof(message)),
                 message, err);
}

bool grammar_may_end(struct grammar *g)
{
    return shoal_rust_grammar_may_end((struct shoal_rust_grammar *)g);
}
