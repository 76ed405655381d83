#include "text/normalize.h"

#include "base/error.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

size_t text_valid_length(const char *text, size_t len)
{
    size_t i = 0;
    while (i < len) {
        if ((unsigned char)text[i] < 0x80) {
            i++;
            continue;
        }
        size_t n = utf8_sequence_length(text + i, len - i);
        if (n == 0)
            break;
        i += n;
    }
    return i;
}

int text_append_valid(struct buf *out, const char *text, size_t len)
{
    while (len > 0 && out->error == 0) {
        size_t n = text_valid_length(text, len);
        buf_append(out, text, n);
        text += n;
        len -= n;
        if (len == 0)
            break;
        n = 1;
        while (n < len && n < 3 && utf8_is_incomplete(text, n + 1))
            n++;
        buf_append_str(out, "\xEF\xBF\xBD");
        text += n;
        len -= n;
    }
    return out->error;
}

/* Characters that are their own composed form and never join the character before them, as far as
 * ranges can tell: text is cut before them. All of U+0000-02FF are; of what follows, only the
 * blocks of much text are listed, and U+11A7, which utf8proc (2.8) takes for a final consonant of a
 * Hangul syllable and swallows. */
static bool starts_span(uint32_t c)
{
    return c < 0x300 || c == 0x11A7 || (c >= 0x400 && c < 0x483) || (c >= 0x4E00 && c <= 0x9FFF) ||
           (c >= 0xAC00 && c <= 0xD7A3) || (c >= 0x3041 && c <= 0x3096) ||
           (c >= 0x30A1 && c <= 0x30FA);
}

struct marked { /* a code point with its canonical combining class */
    utf8proc_int32_t code_point;
    int32_t class;
};

struct nfc_scratch {
    struct marked *marked, *sorted;
    utf8proc_int32_t *points;
    size_t cap;
};

static int grow(struct nfc_scratch *s, size_t n)
{
    if (n <= s->cap)
        return 0;
    size_t cap = s->cap == 0 ? 64 : s->cap;
    while (cap < n)
        cap *= 2;
    struct marked *marked = realloc(s->marked, cap * sizeof(*marked));
    if (marked != NULL)
        s->marked = marked;
    struct marked *sorted = realloc(s->sorted, cap * sizeof(*sorted));
    if (sorted != NULL)
        s->sorted = sorted;
    utf8proc_int32_t *points = realloc(s->points, cap * sizeof(*points));
    if (points != NULL)
        s->points = points;
    if (marked == NULL || sorted == NULL || points == NULL)
        return E_NOMEM;
    s->cap = cap;
    return 0;
}

/* Sorts a run of combining marks by class, stable, in linear time: utf8proc's own ordering is
 * quadratic in the length of a run, which a hostile text chooses. */
static void sort_marks(struct marked *run, struct marked *scratch, size_t n)
{
    size_t start[256] = {0};
    for (size_t i = 0; i < n; i++)
        if (run[i].class < 255)
            start[run[i].class + 1]++;
    for (size_t c = 1; c < 256; c++)
        start[c] += start[c - 1];
    for (size_t i = 0; i < n; i++)
        scratch[start[run[i].class]++] = run[i];
    memcpy(run, scratch, n * sizeof(*run));
}

static void order_canonically(struct nfc_scratch *s, size_t n)
{
    for (size_t i = 0; i < n;) {
        size_t end = i;
        bool sorted = true;
        while (end < n && s->marked[end].class != 0) {
            sorted = sorted && (end == i || s->marked[end - 1].class <= s->marked[end].class);
            end++;
        }
        if (!sorted)
            sort_marks(s->marked + i, s->sorted, end - i);
        i = end > i ? end : i + 1;
    }
}

/* Decomposes, orders and composes one span. */
static int append_span(struct nfc_scratch *s, struct buf *out, const char *text, size_t len)
{
    size_t n = 0;
    for (size_t i = 0; i < len;) {
        size_t step = utf8_sequence_length(text + i, len - i);
        utf8proc_int32_t parts[32];
        int last_class = 0;
        utf8proc_ssize_t n_parts =
            utf8proc_decompose_char((utf8proc_int32_t)utf8_decode(text + i, step), parts, 32,
                                    UTF8PROC_STABLE | UTF8PROC_COMPOSE, &last_class);
        if (n_parts < 0 || n_parts > 32)
            return E_INTERNAL;
        int rc = grow(s, n + (size_t)n_parts);
        if (rc != 0)
            return rc;
        for (utf8proc_ssize_t k = 0; k < n_parts; k++)
            s->marked[n++] =
                (struct marked){parts[k], utf8proc_get_property(parts[k])->combining_class & 0xFF};
        i += step;
    }
    if (n == 0)
        return out->error;
    order_canonically(s, n);
    for (size_t i = 0; i < n; i++)
        s->points[i] = s->marked[i].code_point;
    utf8proc_ssize_t n_out = utf8proc_normalize_utf32(s->points, (utf8proc_ssize_t)n,
                                                      UTF8PROC_STABLE | UTF8PROC_COMPOSE);
    for (utf8proc_ssize_t i = 0; i < n_out; i++) {
        char encoded[4];
        buf_append(out, encoded, utf8_encode((uint32_t)s->points[i], encoded));
    }
    return n_out < 0 ? E_INTERNAL : out->error;
}

int text_append_nfc(struct buf *out, const char *text, size_t len)
{
    struct nfc_scratch scratch = {0};
    int rc = 0;
    size_t clean = 0; /* text[0, clean) has been appended */
    for (size_t i = 0; rc == 0 && i < len;) {
        /* A span: one character that starts it and those after it that do not. Alone it is its own
         * composed form. */
        size_t step = utf8_sequence_length(text + i, len - i), end = i + step;
        bool alone = starts_span(utf8_decode(text + i, step));
        while (end < len) {
            step = utf8_sequence_length(text + end, len - end);
            if (starts_span(utf8_decode(text + end, step)))
                break;
            alone = false;
            end += step;
        }
        if (!alone) {
            buf_append(out, text + clean, i - clean);
            rc = append_span(&scratch, out, text + i, end - i);
            clean = end;
        }
        i = end;
    }
    free(scratch.marked);
    free(scratch.sorted);
    free(scratch.points);
    if (rc != 0)
        return rc;
    return buf_append(out, text + clean, len - clean);
}
