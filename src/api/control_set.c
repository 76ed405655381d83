#include "api/control_set.h"

#include <stdlib.h>
#include <string.h>

struct control {
    const char *text; /* borrowed from the tokenizer while building, then our own copy */
    size_t len;
    token_id id;
};

struct control_set {
    unsigned n_refs;
    size_t n;
    size_t first[257];     /* items that begin with byte b: [first[b], first[b + 1]) */
    struct control *items; /* sorted by bytes, a prefix before what it begins */
    char *text;
};

static int compare(const void *a, const void *b)
{
    const struct control *x = a, *y = b;
    int c = memcmp(x->text, y->text, x->len < y->len ? x->len : y->len);
    if (c != 0)
        return c;
    return x->len < y->len ? -1 : x->len > y->len;
}

/* A control token has no text in output, but has one when special tokens are asked for. */
static bool is_control(const struct tokenizer *t, token_id id, struct control *ret)
{
    size_t plain_len;
    tokenizer_piece(t, id, false, &plain_len);
    ret->text = tokenizer_piece(t, id, true, &ret->len);
    ret->id = id;
    return plain_len == 0 && ret->len > 0;
}

int control_set_new(const struct tokenizer *t, struct control_set **ret_set, struct error *err)
{
    struct control_set *s = calloc(1, sizeof(*s));
    struct control c;
    size_t n_bytes = 0, n = 0;
    uint32_t n_vocab = tokenizer_n_vocab(t);
    if (s == NULL)
        goto fail;
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (is_control(t, (token_id)i, &c)) {
            n++;
            n_bytes += c.len;
        }
    }
    s->n_refs = 1;
    s->items = calloc(n + 1, sizeof(*s->items));
    s->text = malloc(n_bytes + 1);
    if (s->items == NULL || s->text == NULL)
        goto fail;
    char *at = s->text;
    for (uint32_t i = 0; i < n_vocab; i++) {
        if (!is_control(t, (token_id)i, &c))
            continue;
        memcpy(at, c.text, c.len);
        c.text = at;
        at += c.len;
        s->items[s->n++] = c;
    }
    qsort(s->items, s->n, sizeof(*s->items), compare);
    for (size_t i = 0, b = 0; b <= 256; b++) {
        while (i < s->n && (unsigned char)s->items[i].text[0] < b)
            i++;
        s->first[b] = i;
    }
    *ret_set = s;
    return 0;
fail:
    control_set_unref(s);
    return error_set(err, E_NOMEM, "out of memory for the list of control tokens");
}

struct control_set *control_set_ref(struct control_set *s)
{
    s->n_refs++;
    return s;
}

void control_set_unref(struct control_set *s)
{
    if (s == NULL || (s->n_refs > 0 && --s->n_refs > 0))
        return;
    free(s->items);
    free(s->text);
    free(s);
}

size_t control_set_match(const struct control_set *s, const char *text, size_t len,
                         token_id *ret_id)
{
    if (len == 0)
        return 0;
    size_t low = s->first[(unsigned char)text[0]];
    size_t high = s->first[(unsigned char)text[0] + 1];
    size_t best = 0;
    /* Items [low, high) agree with the first `depth` bytes of the text; each round narrows them. */
    for (size_t depth = 1; low < high; depth++) {
        if (s->items[low].len == depth) {
            best = depth;
            *ret_id = s->items[low].id;
            while (low < high && s->items[low].len == depth)
                low++;
        }
        if (depth == len)
            break;
        unsigned char c = (unsigned char)text[depth];
        while (low < high && (unsigned char)s->items[low].text[depth] < c)
            low++;
        while (low < high && (unsigned char)s->items[high - 1].text[depth] > c)
            high--;
    }
    return best;
}
