/*
 * One TLS connection without a socket: bytes of the socket go in, plain bytes come out, and the
 * other way round. It holds no bytes that it could hand on, so an idle one is small. Thread: one.
 *
 * Accepted are TLS 1.3 and a self-signed Ed25519 certificate on both sides, nothing else. Whether
 * the key is welcome is for the caller to say.
 */
#ifndef SHOAL_MESH_CHANNEL_H
#define SHOAL_MESH_CHANNEL_H

#include "mesh/identity.h"

enum { CHANNEL_CLOSED = -1 }; /* the peer has said that nothing more comes */

struct channel {
    SSL *ssl;
    const char *in; /* bytes of the socket that TLS has not taken yet. Borrows: the caller's */
    size_t in_len;
    struct buf out; /* bytes for the socket */
};

/* Settings that all connections of an identity share. Errors: E_NOMEM. */
int channel_context_new(const struct mesh_identity *i, SSL_CTX **ret_context, struct error *err);

int channel_init(struct channel *c, SSL_CTX *context, bool is_client);
void channel_done(struct channel *c);
/* Goes on with the handshake. Returns 1 when it is over, 0 when it needs bytes, or E_PROTOCOL; then
 * ret_refusal says of what kind. */
int channel_handshake(struct channel *c, enum mesh_refusal *ret_refusal, struct error *err);
/* Reads plain bytes. Returns their number, 0 when `in` is used up, CHANNEL_CLOSED, or E_PROTOCOL.
 */
int64_t channel_read(struct channel *c, void *data, size_t size, struct error *err);
/* Encrypts all of it into out. Errors: E_NOMEM, E_LIMIT, E_PROTOCOL. */
int channel_write(struct channel *c, const void *data, size_t len);
/* Puts the good-bye into out, if the handshake was over. */
void channel_shut_down(struct channel *c);
/* The peer's public key, after the handshake. */
int channel_get_key(const struct channel *c, uint8_t ret_key[32]);
/* 32 bytes that only the two ends of this very connection know. */
int channel_export(const struct channel *c, uint8_t ret_bytes[32]);

#endif
