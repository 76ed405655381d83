#include "cluster/node_id.h"

#include <stddef.h>
#include <string.h>

bool node_id_equal(const struct node_id *a, const struct node_id *b)
{
    return node_id_compare(a, b) == 0;
}

int node_id_compare(const struct node_id *a, const struct node_id *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes));
}

bool node_id_is_none(const struct node_id *id)
{
    static const struct node_id none;
    return node_id_equal(id, &none);
}

static const char digits[] = "0123456789abcdef";

const char *node_id_text(const struct node_id *id, char text[33])
{
    for (size_t i = 0; i < sizeof(id->bytes); i++) {
        text[2 * i] = digits[id->bytes[i] >> 4];
        text[2 * i + 1] = digits[id->bytes[i] & 15];
    }
    text[32] = '\0';
    return text;
}

bool node_id_parse(const char *text, struct node_id *ret_id)
{
    struct node_id id = {0};
    for (size_t i = 0; i < 32; i++) {
        const char *at = text[i] != '\0' ? strchr(digits, text[i]) : NULL;
        if (at == NULL)
            return false;
        id.bytes[i / 2] = (uint8_t)(id.bytes[i / 2] << 4 | (at - digits));
    }
    if (text[32] != '\0')
        return false;
    *ret_id = id;
    return true;
}
