/*
 * Texts, ids and numbers as the cluster's messages hold them: little-endian, texts as u16 length +
 * bytes. Reading checks ranges: what comes from outside is believed only within them. Thread: pure
 * functions.
 */
#ifndef SHOAL_CLUSTER_WIRE_H
#define SHOAL_CLUSTER_WIRE_H

#include "base/buf.h"
#include "base/error.h"
#include "cluster/node_id.h"

#include <stdbool.h>
#include <stdint.h>

enum wire_text {
    WIRE_NAME,  /* for people: UTF-8 without control characters */
    WIRE_BYTES, /* a path: anything but NUL */
};

/* Whether the text, at most size - 1 bytes, is one that others would read as a WIRE_NAME. */
bool wire_is_name(const char *text, size_t size);
int wire_put_text(struct buf *b, const char *text);
int wire_put_id(struct buf *b, const struct node_id *id);

/* Errors: E_PROTOCOL, which names the field; then ret_text is "". */
int wire_get_text(struct cursor *c, enum wire_text kind, char *ret_text, size_t size,
                  const char *field, struct error *err);
/* Past the end the cursor has failed and the id is none. */
struct node_id wire_get_id(struct cursor *c);
/* A number from 0 to max. Errors: E_PROTOCOL. */
int wire_get_u8(struct cursor *c, uint32_t max, uint32_t *ret, const char *field,
                struct error *err);
int wire_get_u32(struct cursor *c, uint32_t max, uint32_t *ret, const char *field,
                 struct error *err);
int wire_get_u64(struct cursor *c, uint64_t max, uint64_t *ret, const char *field,
                 struct error *err);
int wire_get_bool(struct cursor *c, bool *ret, const char *field, struct error *err);
/* Finite and not negative. */
int wire_get_f32(struct cursor *c, float *ret, const char *field, struct error *err);
/* Errors: E_PROTOCOL when something was cut off. */
int wire_check(const struct cursor *c, const char *what, struct error *err);

#endif
