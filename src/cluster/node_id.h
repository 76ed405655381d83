/* The name of a node: the first 16 bytes of the SHA-256 of its public key. Thread: pure functions.
 */
#ifndef SHOAL_CLUSTER_NODE_ID_H
#define SHOAL_CLUSTER_NODE_ID_H

#include <stdbool.h>
#include <stdint.h>

struct node_id {
    uint8_t bytes[16]; /* all zero: none */
};

bool node_id_equal(const struct node_id *a, const struct node_id *b);
/* As memcmp. */
int node_id_compare(const struct node_id *a, const struct node_id *b);
bool node_id_is_none(const struct node_id *id);
/* 32 hexadecimal digits. Returns text. */
const char *node_id_text(const struct node_id *id, char text[33]);
/* Returns false when text is not 32 hexadecimal digits. */
bool node_id_parse(const char *text, struct node_id *ret_id);

#endif
