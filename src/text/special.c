#include "text/special.h"

#include <stdlib.h>
#include <string.h>

enum { SPECIAL_NODES_MAX = 1 << 22, FIRST_BYTES = 257 };

static int add_node(struct special_set *s, uint8_t byte, uint32_t *ret_index, struct error *err)
{
    if (s->n == s->cap) {
        if (s->cap >= SPECIAL_NODES_MAX)
            return error_set(err, E_LIMIT,
                             "control and user-defined tokens hold more than %d bytes",
                             SPECIAL_NODES_MAX);
        uint32_t cap = s->cap == 0 ? 1024 : s->cap * 2;
        struct special_node *nodes = realloc(s->nodes, cap * sizeof(*nodes));
        if (nodes == NULL)
            return error_set(err, E_NOMEM, "no memory for %u nodes of special tokens", cap);
        s->nodes = nodes;
        s->cap = cap;
    }
    s->nodes[s->n] = (struct special_node){.byte = byte, .id = -1};
    *ret_index = s->n++;
    return 0;
}

static uint32_t find_child(const struct special_set *s, uint32_t parent, uint8_t byte)
{
    uint32_t child = s->nodes[parent].first_child;
    while (child != 0 && s->nodes[child].byte != byte)
        child = s->nodes[child].next_sibling;
    return child;
}

static int add_text(struct special_set *s, const char *text, size_t len, token_id id,
                    struct error *err)
{
    uint32_t at = 1u + (uint8_t)text[0];
    for (size_t i = 1; i < len; i++) {
        uint32_t child = find_child(s, at, (uint8_t)text[i]);
        if (child == 0) {
            int rc = add_node(s, (uint8_t)text[i], &child, err);
            if (rc != 0)
                return rc;
            s->nodes[child].next_sibling = s->nodes[at].first_child;
            s->nodes[at].first_child = child;
        }
        at = child;
    }
    if (s->nodes[at].id < 0)
        s->nodes[at].id = id;
    return 0;
}

int special_set_load(struct special_set *s, const struct vocab *v, struct error *err)
{
    uint32_t index;
    memset(s, 0, sizeof(*s));
    for (int i = 0; i < FIRST_BYTES; i++) {
        int rc = add_node(s, (uint8_t)(i - 1), &index, err);
        if (rc != 0)
            return rc;
    }
    for (token_id id = 0; id < (token_id)v->n; id++) {
        size_t len;
        const char *text = vocab_text(v, id, &len);
        bool special = v->type[id] == TOKEN_TYPE_CONTROL || v->type[id] == TOKEN_TYPE_USER ||
                       v->type[id] == TOKEN_TYPE_UNKNOWN;
        if (!special || len == 0 || len > SPECIAL_BYTES_MAX)
            continue;
        int rc = add_text(s, text, len, id, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

void special_set_done(struct special_set *s)
{
    free(s->nodes);
    memset(s, 0, sizeof(*s));
}

size_t special_set_match(const struct special_set *s, const char *text, size_t len,
                         token_id *ret_id)
{
    size_t longest = 0;
    uint32_t at = 1u + (uint8_t)text[0];
    for (size_t n = 1;; n++) {
        if (s->nodes[at].id >= 0) {
            longest = n;
            *ret_id = s->nodes[at].id;
        }
        if (n == len)
            break;
        at = find_child(s, at, (uint8_t)text[n]);
        if (at == 0)
            break;
    }
    return longest;
}
