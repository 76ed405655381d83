/* One message of each type with every field set, for the tests of the mesh protocol and as a fuzz
 * corpus. */
#ifndef TESTS_UNIT_MESH_SAMPLES_H
#define TESTS_UNIT_MESH_SAMPLES_H

#include "mesh/message.h"

#include <stdio.h>
#include <string.h>

enum { N_SAMPLES = MESH_TYPE_LAST - MESH_GREETING + 1 };

static inline struct node_id sample_id(uint8_t seed)
{
    struct node_id id;
    for (size_t i = 0; i < sizeof(id.bytes); i++)
        id.bytes[i] = (uint8_t)(seed + 7 * i);
    return id;
}

static inline struct mesh_hello sample_hello(void)
{
    return (struct mesh_hello){
        .name = "alpha \xC3\xA9",
        .api = {.host = "127.0.0.1", .port = 8420},
        .mesh = {.host = "fe80::1", .port = 65535},
        .incarnation = 1800000000123,
        .memory_bytes_total = 1ull << 40,
        .memory_bytes_free = 12345678901,
        .n_cores = 64,
    };
}

static inline int sample_encode_trust(struct buf *b)
{
    struct mesh_trust_entry entries[3] = {
        {.key = {1, 2, 3},
         .id = sample_id(1),
         .name = "alpha",
         .address = {.host = "192.0.2.1", .port = 8421}},
        {.is_temporary = true, .key = {4}, .id = sample_id(2), .name = ""},
        {.is_revoked = true, .id = sample_id(3), .name = "gone"},
    };
    struct mesh_trust t = {.n_entries = 3, .entries = entries};
    return mesh_encode_trust(b, &t);
}

static inline int sample_encode_paths(struct buf *b)
{
    struct mesh_paths m = {
        .best = 1,
        .n = 2,
        .path = {{.remote = "192.0.2.7", .status = MESH_PATH_UNREACHED, .is_route = true},
                 {.local = "fe80::1",
                  .remote = "fe80::2",
                  .local_interface = "eth0",
                  .remote_interface = "enp3s0",
                  .status = MESH_PATH_REACHED,
                  .rtt_us = 180,
                  .mbit_s = 941.5f,
                  .age_ms = 1234}}};
    return mesh_encode_paths(b, &m);
}

/* Appends the sample of this type. */
static inline int sample_encode(struct buf *b, enum mesh_type type)
{
    static const char frame[] = "a frame of a runner, not looked at here";
    struct mesh_hello hello = sample_hello();
    switch (type) {
#define SAMPLE(TYPE, kind, ...)                                                                    \
    case TYPE: {                                                                                   \
        struct mesh_##kind m = {__VA_ARGS__};                                                      \
        return mesh_encode_##kind(b, &m);                                                          \
    }
        SAMPLE(MESH_GREETING, greeting, .version = 3, .version_min = 2, .is_trusting = true,
               .has_secret = true, .is_newcomer = true, .is_probe = true)
        SAMPLE(MESH_PROOF, proof, .mac = {1, 2, 3})
        SAMPLE(MESH_JOIN_COMMIT, join_commit, .name = "beta", .cluster_tag = {7}, .commit = {8, 9})
        SAMPLE(MESH_JOIN_REVEAL, join_reveal, .nonce = {0xff})
        SAMPLE(MESH_BULK, bulk, .burst = 3, .is_last = true, .data = frame, .len = sizeof(frame))
        SAMPLE(MESH_BULK_ACK, bulk_ack, .burst = 3, .bytes = 983040, .ns = 123456789)
        SAMPLE(MESH_RANK_START, rank_start, .instance = sample_id(4), .epoch = 0x0123456789abcdef,
               .rank = 63, .n_node_ranks = 2, .model_hash = {9}, .path = "/models/a b.gguf",
               .frame = frame, .frame_len = sizeof(frame))
        SAMPLE(MESH_RANK_FRAME, rank_frame, .instance = sample_id(4), .epoch = 1, .rank = 1,
               .frame = frame, .frame_len = sizeof(frame))
        SAMPLE(MESH_RANK_STOP, rank_stop, .instance = sample_id(4), .epoch = 42, .rank = 7)
        SAMPLE(MESH_RANK_ENDED, rank_ended, .instance = sample_id(4), .epoch = 42, .rank = 7,
               .is_node_unfit = true, .reason = "signal 9")
        SAMPLE(MESH_SUBMIT, submit, .instance = sample_id(5), .epoch = 6, .frame = frame,
               .frame_len = sizeof(frame))
        SAMPLE(MESH_ADDRESSES, addresses, .has_route = true, .n = 2,
               .at = {{"192.0.2.1", "eth0", 2}, {"fe80::1", "wlan0", 255}})
        SAMPLE(MESH_PART, part, .is_last = true, .data = frame, .len = sizeof(frame))
#undef SAMPLE
    case MESH_PATHS:
        return sample_encode_paths(b);
    case MESH_BULK_ASK:
        return mesh_encode_bulk_ask(b, 65536);
    case MESH_REFUSED:
        return mesh_encode_refused(b, 5);
    case MESH_JOIN_APPROVE:
        return mesh_encode_join_approve(b);
    case MESH_JOIN_ACCEPT:
        return mesh_encode_join_accept(b);
    case MESH_HELLO:
        return mesh_encode_hello(b, &hello);
    case MESH_TRUST:
        return sample_encode_trust(b);
    case MESH_PING:
        return mesh_encode_ping(b, 1);
    case MESH_PONG:
        return mesh_encode_pong(b, UINT64_MAX);
    case MESH_CLUSTER:
        return mesh_encode_cluster(b, frame, sizeof(frame));
    case MESH_CANCEL:
        return mesh_encode_cancel(b, UINT64_MAX);
    case MESH_EVENT:
        return mesh_encode_event(b, frame, sizeof(frame));
    }
    return E_INVALID;
}

/* Decodes a frame of any type and writes it again. Returns 0 when it was accepted. */
static inline int sample_recode(const struct mesh_message *m, struct buf *b, struct error *err)
{
    struct mesh_trust trust;
    uint64_t number;
    uint32_t bytes;
    uint8_t kind;
    size_t len;
    const void *frame;
    int rc = E_PROTOCOL;
    switch (m->type) {
#define RECODE(TYPE, name)                                                                         \
    case TYPE: {                                                                                   \
        static struct mesh_##name v;                                                               \
        rc = mesh_decode_##name(m, &v, err);                                                       \
        return rc != 0 ? rc : mesh_encode_##name(b, &v);                                           \
    }
        RECODE(MESH_GREETING, greeting)
        RECODE(MESH_PROOF, proof)
        RECODE(MESH_JOIN_COMMIT, join_commit)
        RECODE(MESH_JOIN_REVEAL, join_reveal)
        RECODE(MESH_HELLO, hello)
        RECODE(MESH_BULK, bulk)
        RECODE(MESH_BULK_ACK, bulk_ack)
        RECODE(MESH_RANK_START, rank_start)
        RECODE(MESH_RANK_FRAME, rank_frame)
        RECODE(MESH_RANK_STOP, rank_stop)
        RECODE(MESH_RANK_ENDED, rank_ended)
        RECODE(MESH_SUBMIT, submit)
        RECODE(MESH_ADDRESSES, addresses)
        RECODE(MESH_PATHS, paths)
        RECODE(MESH_PART, part)
#undef RECODE
    case MESH_BULK_ASK:
        rc = mesh_decode_bulk_ask(m, &bytes, err);
        return rc != 0 ? rc : mesh_encode_bulk_ask(b, bytes);
    case MESH_REFUSED:
        rc = mesh_decode_refused(m, &kind, err);
        return rc != 0 ? rc : mesh_encode_refused(b, kind);
    case MESH_JOIN_APPROVE:
    case MESH_JOIN_ACCEPT:
        rc = mesh_decode_empty(m, err);
        if (rc != 0)
            return rc;
        return m->type == MESH_JOIN_APPROVE ? mesh_encode_join_approve(b)
                                            : mesh_encode_join_accept(b);
    case MESH_TRUST:
        rc = mesh_decode_trust(m, &trust, err);
        if (rc != 0)
            return rc;
        rc = mesh_encode_trust(b, &trust);
        mesh_trust_done(&trust);
        return rc;
    case MESH_PING:
    case MESH_PONG:
        rc = mesh_decode_number(m, &number, err);
        if (rc != 0)
            return rc;
        return m->type == MESH_PING ? mesh_encode_ping(b, number) : mesh_encode_pong(b, number);
    case MESH_CLUSTER: /* any bytes, up to the encoder's bound */
        return mesh_encode_cluster(b, m->payload, m->len);
    case MESH_CANCEL:
        rc = mesh_decode_cancel(m, &number, err);
        return rc != 0 ? rc : mesh_encode_cancel(b, number);
    case MESH_EVENT:
        rc = mesh_decode_event(m, &frame, &len, err);
        return rc != 0 ? rc : mesh_encode_event(b, frame, len);
    }
    return rc;
}

#endif
