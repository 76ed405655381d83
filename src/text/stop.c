#include "text/stop.h"

#include "base/limits.h"

#include <stdlib.h>
#include <string.h>

struct stop_matcher {
    size_t n;
    size_t lens[LIMIT_STOP_STRINGS];
    char strings[LIMIT_STOP_STRINGS][LIMIT_STOP_STRING_BYTES];
    bool starts[256];                   /* bytes with which a stop string begins */
    char held[LIMIT_STOP_STRING_BYTES]; /* text that may be the beginning of a stop string; shorter
                                           than the longest */
    size_t n_held;
    bool stopped;
    size_t index;
};

int stop_matcher_new(const char *const *strings, const size_t *lens, size_t n,
                     struct stop_matcher **ret_matcher, struct error *err)
{
    if (n > LIMIT_STOP_STRINGS)
        return error_set(err, E_LIMIT, "%zu stop strings, more than %d", n, LIMIT_STOP_STRINGS);
    for (size_t i = 0; i < n; i++) {
        if (lens[i] == 0)
            return error_set(err, E_INVALID, "stop string %zu is empty", i);
        if (lens[i] > LIMIT_STOP_STRING_BYTES)
            return error_set(err, E_LIMIT, "stop string %zu has %zu bytes, more than %d", i,
                             lens[i], LIMIT_STOP_STRING_BYTES);
    }
    struct stop_matcher *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return error_set(err, E_NOMEM, "no memory for %zu stop strings", n);
    m->n = n;
    for (size_t i = 0; i < n; i++) {
        m->lens[i] = lens[i];
        memcpy(m->strings[i], strings[i], lens[i]);
        m->starts[(unsigned char)strings[i][0]] = true;
    }
    *ret_matcher = m;
    return 0;
}

void stop_matcher_free(struct stop_matcher *m)
{
    free(m);
}

enum outcome { NOTHING, MAYBE, FOUND };

/* What begins here: a whole stop string (the shortest), perhaps one that goes on in later text, or
 * none. */
static enum outcome look(const struct stop_matcher *m, const char *text, size_t len,
                         size_t *ret_index)
{
    enum outcome result = NOTHING;
    for (size_t i = 0; i < m->n; i++) {
        size_t n = m->lens[i] < len ? m->lens[i] : len;
        if (memcmp(m->strings[i], text, n) != 0)
            continue;
        if (n < m->lens[i]) {
            if (result == NOTHING)
                result = MAYBE;
        } else if (result != FOUND || m->lens[i] < m->lens[*ret_index]) {
            result = FOUND;
            *ret_index = i;
        }
    }
    return result;
}

/* Goes through the text up to where a stop string is or may be: returns how many bytes are safe to
 * show. */
static size_t scan(struct stop_matcher *m, const char *text, size_t len, bool at_end)
{
    for (size_t i = 0; i < len; i++) {
        if (!m->starts[(unsigned char)text[i]])
            continue;
        enum outcome outcome = look(m, text + i, len - i, &m->index);
        if (outcome == FOUND)
            m->stopped = true;
        if (outcome == FOUND || (outcome == MAYBE && !at_end))
            return i;
    }
    return len;
}

int stop_matcher_push(struct stop_matcher *m, const char *text, size_t len, struct buf *out,
                      bool *ret_stopped, size_t *ret_index)
{
    /* What was held back and the new text are looked at together, a window at a time. */
    char window[4 * LIMIT_STOP_STRING_BYTES];
    while (!m->stopped && len > 0) {
        size_t n = sizeof(window) - m->n_held;
        n = len < n ? len : n;
        memcpy(window, m->held, m->n_held);
        memcpy(window + m->n_held, text, n);
        size_t n_window = m->n_held + n;
        size_t safe = scan(m, window, n_window, false);
        buf_append(out, window, safe);
        m->n_held = m->stopped ? 0 : n_window - safe;
        memcpy(m->held, window + safe, m->n_held);
        text += n;
        len -= n;
    }
    *ret_stopped = m->stopped;
    if (m->stopped && ret_index != NULL)
        *ret_index = m->index;
    return out->error;
}

int stop_matcher_finish(struct stop_matcher *m, struct buf *out)
{
    /* No more text: a string that was still possible is not there, but one that begins later in
     * what is held may be. */
    size_t safe = scan(m, m->held, m->n_held, true);
    buf_append(out, m->held, safe);
    m->n_held = 0;
    return out->error;
}

bool stop_matcher_stopped(const struct stop_matcher *m, size_t *ret_index)
{
    if (m->stopped && ret_index != NULL)
        *ret_index = m->index;
    return m->stopped;
}
