/*
 * The two texts of the mesh that people may touch: the file of trusted keys and the line of an
 * invite. Both come from outside, so nothing in them is believed before it is checked. Thread: pure
 * functions.
 */
#ifndef SHOAL_MESH_TEXT_H
#define SHOAL_MESH_TEXT_H

#include "mesh/message.h"

enum { TEXT_ADDRESS_BYTES = 80, TEXT_DATE_BYTES = 11, INVITE_ADDRESSES_MAX = 8 };

/* ---- addresses: 192.0.2.1:8421 or [2001:db8::1]:8421, numeric, port not 0 ---- */

/* Errors: E_INVALID. */
int address_parse(const char *text, size_t len, struct mesh_address *ret);
/* Returns text. */
const char *address_text(const struct mesh_address *a, char text[TEXT_ADDRESS_BYTES]);

/* ---- bytes as hexadecimal digits ---- */

/* False when text does not begin with 2 n lower-case digits. */
bool hex_parse(const char *text, size_t len, void *ret_bytes, size_t n);
/* 2 n digits and a NUL. */
void hex_format(const void *bytes, size_t n, char *ret_text);

/* ---- who is trusted, who is revoked ---- */

enum { TRUST_TRUSTED_MAX = LIMIT_PEERS, TRUST_MAX = MESH_TRUST_ENTRIES_MAX };

struct trust_entry {
    bool is_revoked;   /* then key and address are zero */
    bool is_temporary; /* trusted while this process lives; not in the file */
    uint8_t key[32];
    struct node_id id;
    char name[64];
    char date[TEXT_DATE_BYTES];  /* 2026-01-31 */
    struct mesh_address address; /* where it was last; port 0: not known */
};

struct trust {
    uint32_t n, n_trusted;
    struct trust_entry entry[TRUST_MAX];
};

/* Fills t, which must be empty, from the file's text. Errors: E_FORMAT with path:line, E_LIMIT. */
int trust_parse(struct trust *t, const char *text, size_t len, const char *path, struct error *err);
int trust_format(const struct trust *t, struct buf *b);
struct trust_entry *trust_find(struct trust *t, const struct node_id *id);
/* Puts a key in, or makes a temporary one lasting. Returns 1 when that changed anything, 0 when
 * not; E_UNAVAILABLE when it is revoked, E_LIMIT when there are too many. */
int trust_add(struct trust *t, const uint8_t key[32], const char *name, const char *date,
              bool is_temporary);
/* Returns 1, 0 when it was revoked already, or E_LIMIT. */
int trust_revoke(struct trust *t, const struct node_id *id, const char *date);

/* ---- shoal://HOST:PORT[,HOST:PORT...]/ID/TOKEN ---- */

struct invite_line {
    uint32_t n_addresses;
    struct mesh_address address[INVITE_ADDRESSES_MAX];
    struct node_id id; /* of the inviter's key */
    uint8_t token[16];
};

/* Spaces around it are skipped. Errors: E_INVALID, says what is wrong with it. */
int invite_line_parse(const char *text, struct invite_line *ret, struct error *err);
/* Errors: E_LIMIT. */
int invite_line_format(const struct invite_line *i, char *ret_text, size_t size);

#endif
