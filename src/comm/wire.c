#include "comm/wire.h"

#include "base/buf.h"
#include "base/limits.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
               "vectors travel as they lie in memory, and the wire is little-endian");
_Static_assert(LIMIT_COMM_FRAME_BYTES <= UINT32_MAX, "frame lengths are 32 bits wide");

#define FRAME_MAGIC   0x316d6673u /* "sfm1" */
#define VERDICT_MAGIC 0x31766673u /* "sfv1" */
#define OFFER_MAGIC   0x316f6673u /* "sfo1" */
#define ANSWER_MAGIC  0x31616673u /* "sfa1" */

static const uint8_t hello_magic[8] = "shoalcm";

static void put_u32(uint8_t *out, uint32_t v)
{
    out[0] = (uint8_t)v;
    out[1] = (uint8_t)(v >> 8);
    out[2] = (uint8_t)(v >> 16);
    out[3] = (uint8_t)(v >> 24);
}

const char *frame_kind_name(uint32_t kind)
{
    switch (kind) {
    case FRAME_MESSAGE:
        return "message";
    case FRAME_REDUCE:
        return "all-reduce values";
    case FRAME_SUM:
        return "all-reduce sum";
    case FRAME_GATHER:
        return "all-gather";
    default:
        return "unknown";
    }
}

void frame_header_write(const struct frame_header *h, uint8_t out[FRAME_HEADER_BYTES])
{
    put_u32(out, FRAME_MAGIC);
    put_u32(out + 4, h->kind);
    put_u32(out + 8, h->length);
    put_u32(out + 12, h->sequence);
}

int frame_header_parse(const uint8_t in[FRAME_HEADER_BYTES], struct frame_header *ret_header,
                       struct error *err)
{
    struct cursor c;
    cursor_init(&c, in, FRAME_HEADER_BYTES);
    uint32_t magic = cursor_u32(&c);
    struct frame_header h = {0};
    h.kind = cursor_u32(&c);
    h.length = cursor_u32(&c);
    h.sequence = cursor_u32(&c);
    if (magic != FRAME_MAGIC)
        return error_set(err, E_PROTOCOL, "frame starts with 0x%08x, not 0x%08x", magic,
                         FRAME_MAGIC);
    if (h.kind < FRAME_MESSAGE || h.kind > FRAME_GATHER)
        return error_set(err, E_PROTOCOL, "frame of unknown kind %u", h.kind);
    if (h.length > LIMIT_COMM_FRAME_BYTES)
        return error_set(err, E_PROTOCOL, "frame of %u bytes, the limit is %u", h.length,
                         LIMIT_COMM_FRAME_BYTES);
    *ret_header = h;
    return 0;
}

/* magic[8] version u32, rank u32, n_ranks u32, zero u32, nonce[32], program_hash[32] */
void hello_write(const struct hello *h, uint8_t out[HELLO_BYTES])
{
    memcpy(out, hello_magic, 8);
    put_u32(out + 8, WIRE_VERSION);
    put_u32(out + 12, h->rank);
    put_u32(out + 16, h->n_ranks);
    put_u32(out + 20, 0);
    memcpy(out + 24, h->nonce, 32);
    memcpy(out + 56, h->program_hash, HASH_BYTES);
}

int hello_parse(const uint8_t in[HELLO_BYTES], struct hello *ret_hello, struct error *err)
{
    struct cursor c;
    cursor_init(&c, in, HELLO_BYTES);
    if (memcmp(cursor_bytes(&c, 8), hello_magic, 8) != 0)
        return error_set(err, E_PROTOCOL, "the other side does not speak this protocol");
    uint32_t version = cursor_u32(&c);
    if (version != WIRE_VERSION)
        return error_set(err, E_PROTOCOL,
                         "the other side speaks version %u of the data plane, this one %d: run the "
                         "same release on both",
                         version, WIRE_VERSION);
    struct hello h;
    h.rank = cursor_u32(&c);
    h.n_ranks = cursor_u32(&c);
    uint32_t zero = cursor_u32(&c);
    memcpy(h.nonce, cursor_bytes(&c, 32), 32);
    memcpy(h.program_hash, cursor_bytes(&c, HASH_BYTES), HASH_BYTES);
    if (h.n_ranks < 1 || h.n_ranks > LIMIT_RANKS || h.rank >= h.n_ranks || zero != 0)
        return error_set(err, E_PROTOCOL, "malformed hello (rank %u of %u)", h.rank, h.n_ranks);
    *ret_hello = h;
    return 0;
}

int hello_prove(const uint8_t key[KEY_BYTES], enum hello_role role,
                const uint8_t connector[HELLO_BYTES], const uint8_t acceptor[HELLO_BYTES],
                uint8_t ret_proof[PROOF_BYTES])
{
    /* The role is part of it, so that nobody can answer a rank with the rank's own proof. */
    uint8_t text[1 + 2 * HELLO_BYTES];
    text[0] = (uint8_t)role;
    memcpy(text + 1, connector, HELLO_BYTES);
    memcpy(text + 1 + HELLO_BYTES, acceptor, HELLO_BYTES);
    unsigned int n = 0;
    if (HMAC(EVP_sha256(), key, KEY_BYTES, text, sizeof(text), ret_proof, &n) == NULL ||
        n != PROOF_BYTES)
        return E_INTERNAL;
    return 0;
}

void verdict_write(enum verdict v, uint8_t out[VERDICT_BYTES])
{
    put_u32(out, VERDICT_MAGIC);
    put_u32(out + 4, (uint32_t)v);
}

int verdict_parse(const uint8_t in[VERDICT_BYTES], enum verdict *ret_verdict, struct error *err)
{
    struct cursor c;
    cursor_init(&c, in, VERDICT_BYTES);
    uint32_t magic = cursor_u32(&c);
    uint32_t v = cursor_u32(&c);
    if (magic != VERDICT_MAGIC || v > VERDICT_DUPLICATE)
        return error_set(err, E_PROTOCOL, "malformed verdict");
    *ret_verdict = (enum verdict)v;
    return 0;
}

const char *verdict_text(enum verdict v)
{
    switch (v) {
    case VERDICT_WELCOME:
        return "welcome";
    case VERDICT_OTHER_PROGRAM:
        return "it runs another program (release, model, split or wire type differ)";
    case VERDICT_OTHER_SIZE:
        return "it counts another number of ranks";
    case VERDICT_WRONG_RANK:
        return "ranks of higher number connect to lower ones, and this is not such a pair";
    case VERDICT_DUPLICATE:
        return "this rank is connected already: two processes were started with the same rank";
    }
    return "unknown verdict";
}

void offer_write(const struct offer *o, uint8_t out[OFFER_BYTES])
{
    put_u32(out, OFFER_MAGIC);
    put_u32(out + 4, o->ring_bytes);
    memcpy(out + 8, o->name, OFFER_NAME_BYTES);
}

int offer_parse(const uint8_t in[OFFER_BYTES], struct offer *ret_offer, struct error *err)
{
    struct cursor c;
    cursor_init(&c, in, OFFER_BYTES);
    uint32_t magic = cursor_u32(&c);
    if (magic != OFFER_MAGIC)
        return error_set(err, E_PROTOCOL, "malformed offer of shared memory");
    ret_offer->ring_bytes = cursor_u32(&c);
    memcpy(ret_offer->name, in + 8, OFFER_NAME_BYTES);
    return 0;
}

void answer_write(bool taken, uint8_t out[ANSWER_BYTES])
{
    put_u32(out, ANSWER_MAGIC);
    put_u32(out + 4, taken);
}

int answer_parse(const uint8_t in[ANSWER_BYTES], bool *ret_taken, struct error *err)
{
    struct cursor c;
    cursor_init(&c, in, ANSWER_BYTES);
    uint32_t magic = cursor_u32(&c);
    uint32_t taken = cursor_u32(&c);
    if (magic != ANSWER_MAGIC || taken > 1)
        return error_set(err, E_PROTOCOL, "malformed answer to an offer of shared memory");
    *ret_taken = taken == 1;
    return 0;
}
