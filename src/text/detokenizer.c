#include "base/utf8.h"
#include "text/tokenizer_impl.h"

#include <string.h>

static const char replacement[] = "\xEF\xBF\xBD"; /* U+FFFD */

void detokenizer_init(struct detokenizer *d, const struct tokenizer *t, bool with_special,
                      bool at_start)
{
    memset(d, 0, sizeof(*d));
    d->tokenizer = t;
    d->with_special = with_special;
    d->at_start = at_start && t->kind == VOCAB_SPM && t->spm.add_space_prefix;
}

/* One byte: pending is always the beginning of a valid sequence, or empty. */
static void push_byte(struct detokenizer *d, char c, struct buf *out)
{
    d->pending[d->n_pending++] = c;
    if (utf8_sequence_length(d->pending, d->n_pending) == d->n_pending) {
        buf_append(out, d->pending, d->n_pending);
        d->n_pending = 0;
    } else if (!utf8_is_incomplete(d->pending, d->n_pending)) {
        bool alone = d->n_pending == 1;
        buf_append(out, replacement, 3);
        d->n_pending = 0;
        if (!alone) /* the byte does not continue what was pending, but may begin something */
            push_byte(d, c, out);
    }
}

int detokenizer_push(struct detokenizer *d, token_id id, struct buf *out)
{
    size_t len;
    const char *piece = tokenizer_piece(d->tokenizer, id, d->with_special, &len);
    if (d->at_start && len > 0) {
        d->at_start = false;
        if (piece[0] == ' ') {
            piece++;
            len--;
        }
    }
    for (size_t i = 0; i < len;) {
        size_t n = d->n_pending == 0 ? utf8_sequence_length(piece + i, len - i) : 0;
        if (n > 0)
            buf_append(out, piece + i, n);
        else
            push_byte(d, piece[i], out);
        i += n > 0 ? n : 1;
    }
    return out->error;
}

int detokenizer_finish(struct detokenizer *d, struct buf *out)
{
    if (d->n_pending > 0)
        buf_append(out, replacement, 3);
    d->n_pending = 0;
    return out->error;
}
