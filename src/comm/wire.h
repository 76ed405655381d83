/*
 * Bytes of the data plane, as pure functions: the frame header in front of each message, and the
 * hello, proof and verdict by which two ranks get to know each other. docs/protocol.md, "Data
 * plane", has the tables. Everything read here is hostile until it is checked. Thread: any.
 */
#ifndef SHOAL_COMM_WIRE_H
#define SHOAL_COMM_WIRE_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { WIRE_VERSION = 2 };

enum frame_kind {
    FRAME_MESSAGE = 1, /* comm_send, comm_broadcast */
    FRAME_REDUCE = 2,  /* all-reduce: a rank's whole vector, or the slice that the receiver sums */
    FRAME_SUM = 3,     /* all-reduce: a slice that is summed */
    FRAME_GATHER = 4,  /* all-gather */
};

enum { FRAME_HEADER_BYTES = 16 };

struct frame_header {
    uint32_t kind;     /* enum frame_kind */
    uint32_t length;   /* payload bytes that follow */
    uint32_t sequence; /* of this direction of this pair of ranks: 0, 1, ... and round again */
};

void frame_header_write(const struct frame_header *h, uint8_t out[FRAME_HEADER_BYTES]);
/* Errors: E_PROTOCOL for a wrong magic, an unknown kind, bits that must be zero, or a length over
 * LIMIT_COMM_FRAME_BYTES. */
int frame_header_parse(const uint8_t in[FRAME_HEADER_BYTES], struct frame_header *ret_header,
                       struct error *err);
const char *frame_kind_name(uint32_t kind);

enum { HELLO_BYTES = 88, PROOF_BYTES = 32, VERDICT_BYTES = 8, KEY_BYTES = 32, HASH_BYTES = 32 };

struct hello {
    uint32_t rank, n_ranks;
    uint8_t nonce[32];
    uint8_t program_hash[HASH_BYTES];
};

enum hello_role { HELLO_CONNECTOR = 1, HELLO_ACCEPTOR = 2 };

enum verdict {
    VERDICT_WELCOME = 0,
    VERDICT_OTHER_PROGRAM = 1,
    VERDICT_OTHER_SIZE = 2,
    VERDICT_WRONG_RANK = 3,
    VERDICT_DUPLICATE = 4,
};

void hello_write(const struct hello *h, uint8_t out[HELLO_BYTES]);
/* Errors: E_PROTOCOL for a wrong magic, another version, or ranks beyond LIMIT_RANKS. */
int hello_parse(const uint8_t in[HELLO_BYTES], struct hello *ret_hello, struct error *err);
/* What shows that role holds the key, without showing the key: HMAC-SHA256 over role and both
 * hellos. Errors: E_INTERNAL. */
int hello_prove(const uint8_t key[KEY_BYTES], enum hello_role role,
                const uint8_t connector[HELLO_BYTES], const uint8_t acceptor[HELLO_BYTES],
                uint8_t ret_proof[PROOF_BYTES]);

void verdict_write(enum verdict v, uint8_t out[VERDICT_BYTES]);
/* Errors: E_PROTOCOL. */
int verdict_parse(const uint8_t in[VERDICT_BYTES], enum verdict *ret_verdict, struct error *err);
const char *verdict_text(enum verdict v);

/* After the verdict: the connector offers memory to share, or none (ring_bytes 0). */
enum { OFFER_BYTES = 24, OFFER_NAME_BYTES = 16, ANSWER_BYTES = 8 };

struct offer {
    uint32_t ring_bytes;
    uint8_t name[OFFER_NAME_BYTES];
};

void offer_write(const struct offer *o, uint8_t out[OFFER_BYTES]);
/* Errors: E_PROTOCOL. */
int offer_parse(const uint8_t in[OFFER_BYTES], struct offer *ret_offer, struct error *err);
void answer_write(bool taken, uint8_t out[ANSWER_BYTES]);
/* Errors: E_PROTOCOL. */
int answer_parse(const uint8_t in[ANSWER_BYTES], bool *ret_taken, struct error *err);

#endif
