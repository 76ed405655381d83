#include "text/merge.h"

#include <stdlib.h>
#include <string.h>

void merger_init(struct merger *m)
{
    memset(m, 0, sizeof(*m));
}

void merger_done(struct merger *m)
{
    free(m->symbols);
    free(m->heap);
    merger_init(m);
}

void merger_reset(struct merger *m)
{
    m->n_symbols = 0;
    m->n_heap = 0;
}

int merger_add(struct merger *m, token_id id, uint32_t start, uint32_t len, uint32_t n_chars)
{
    if (m->n_symbols == m->cap_symbols) {
        size_t cap = m->cap_symbols == 0 ? 64 : m->cap_symbols * 2;
        struct symbol *symbols = realloc(m->symbols, cap * sizeof(*symbols));
        if (symbols == NULL)
            return E_NOMEM;
        m->symbols = symbols;
        m->cap_symbols = cap;
    }
    int32_t index = (int32_t)m->n_symbols++;
    m->symbols[index] = (struct symbol){
        .prev = index - 1, .next = -1, .id = id, .start = start, .len = len, .n_chars = n_chars};
    if (index > 0)
        m->symbols[index - 1].next = index;
    return 0;
}

static bool comes_before(const struct merge_candidate *a, const struct merge_candidate *b)
{
    return a->key != b->key ? a->key < b->key : a->pos < b->pos;
}

static int heap_push(struct merger *m, struct merge_candidate c)
{
    if (m->n_heap == m->cap_heap) {
        size_t cap = m->cap_heap == 0 ? 64 : m->cap_heap * 2;
        struct merge_candidate *heap = realloc(m->heap, cap * sizeof(*heap));
        if (heap == NULL)
            return E_NOMEM;
        m->heap = heap;
        m->cap_heap = cap;
    }
    size_t i = m->n_heap++;
    while (i > 0 && comes_before(&c, &m->heap[(i - 1) / 2])) {
        m->heap[i] = m->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    m->heap[i] = c;
    return 0;
}

static struct merge_candidate heap_pop(struct merger *m)
{
    struct merge_candidate top = m->heap[0], last = m->heap[--m->n_heap];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= m->n_heap)
            break;
        if (child + 1 < m->n_heap && comes_before(&m->heap[child + 1], &m->heap[child]))
            child++;
        if (!comes_before(&m->heap[child], &last))
            break;
        m->heap[i] = m->heap[child];
        i = child;
    }
    if (m->n_heap > 0)
        m->heap[i] = last;
    return top;
}

static int consider(struct merger *m, const char *text, int32_t left, merge_find_fn find,
                    const void *arg)
{
    struct merge_candidate c = {.pos = (uint32_t)left};
    int32_t right = m->symbols[left].next;
    if (right < 0 || !find(arg, text, &m->symbols[left], &m->symbols[right], &c.key, &c.id))
        return 0;
    return heap_push(m, c);
}

static int join(struct merger *m, const char *text, int32_t left, token_id id, merge_find_fn find,
                const void *arg)
{
    struct symbol *l = &m->symbols[left], *r = &m->symbols[l->next];
    l->id = id;
    l->len += r->len;
    l->n_chars += r->n_chars;
    l->next = r->next;
    r->len = 0;
    if (r->next >= 0)
        m->symbols[r->next].prev = left;
    int rc = l->prev >= 0 ? consider(m, text, l->prev, find, arg) : 0;
    return rc != 0 ? rc : consider(m, text, left, find, arg);
}

int merger_run(struct merger *m, const char *text, merge_find_fn find, const void *arg,
               struct token_list *out)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && i + 1 < m->n_symbols; i++)
        rc = consider(m, text, (int32_t)i, find, arg);
    while (rc == 0 && m->n_heap > 0) {
        struct merge_candidate c = heap_pop(m);
        struct symbol *left = &m->symbols[c.pos];
        uint64_t key;
        token_id id;
        /* The entry may be out of date. Like Hugging Face's BPE it counts as good while the pair
         * that now stands there has the same result, even if by another rule. */
        if (left->len == 0 || left->next < 0 ||
            !find(arg, text, left, &m->symbols[left->next], &key, &id) || id != c.id)
            continue;
        rc = join(m, text, (int32_t)c.pos, id, find, arg);
    }
    for (int32_t i = m->n_symbols > 0 ? 0 : -1; rc == 0 && i >= 0; i = m->symbols[i].next)
        rc = token_list_append(out, m->symbols[i].id);
    return rc;
}
