/* One message of each type with every field set, for the tests of the mesh protocol and as a fuzz
 * corpus. */
#ifndef TESTS_UNIT_MESH_SAMPLES_H
#define TESTS_UNIT_MESH_SAMPLES_H

#include "mesh/message.h"

#include <stdio.h>
#include <string.h>

enum { N_SAMPLES = MESH_EVENT - MESH_HELLO + 1 };

static inline struct node_id sample_id(uint8_t seed)
{
    struct node_id id;
    for (size_t i = 0; i < sizeof(id.bytes); i++)
        id.bytes[i] = (uint8_t)(seed + 7 * i);
    return id;
}

static inline struct mesh_hello sample_hello(void)
{
    struct mesh_hello m = {
        .version = MESH_PROTOCOL_VERSION,
        .id = sample_id(1),
        .has_secret = true,
        .name = "alpha \xC3\xA9",
        .api = {.host = "127.0.0.1", .port = 8420},
        .mesh = {.host = "fe80::1", .port = 65535},
        .memory_bytes_total = 1ull << 40,
        .memory_bytes_free = 12345678901,
        .n_cores = 64,
    };
    memset(m.nonce, 0xA5, sizeof(m.nonce));
    return m;
}

static inline void fill_instance(struct instance_info *i, uint8_t seed, uint32_t n_ranks)
{
    memset(i, 0, sizeof(*i));
    i->id = sample_id(seed);
    i->coordinator = sample_id((uint8_t)(seed + 1));
    snprintf(i->model_id, sizeof(i->model_id), "model-%u", seed);
    snprintf(i->path, sizeof(i->path), "/models/model-%u.gguf", seed);
    memset(i->model_hash, seed, sizeof(i->model_hash));
    i->status = INSTANCE_SERVING;
    snprintf(i->error, sizeof(i->error), "rank 1: ended");
    snprintf(i->split, sizeof(i->split), "%ux1", n_ranks);
    i->n_ctx = 4096;
    i->n_slots = 4;
    i->n_restarts = 3;
    i->created_s = 1800000000;
    i->n_ranks = n_ranks;
    for (uint32_t r = 0; r < n_ranks; r++)
        i->rank[r] = (struct rank_info){
            .node = sample_id((uint8_t)(seed + r)),
            .status = RANK_READY,
            .stage = r,
            .layers = {10 * r, 10 * r + 10},
            .kv_heads = {0, 3},
            .weight_bytes = 1ull << (20 + r % 20),
            .kv_bytes = 99,
            .pid = 1000 + r,
        };
}

/* Appends the sample of this type. */
static inline int sample_encode(struct buf *b, enum mesh_type type)
{
    static const char frame[] = "a frame of a runner, not looked at here";
    static struct instance_info instances[2];
    static struct node_info nodes[2];
    struct mesh_hello hello = sample_hello();
    switch (type) {
    case MESH_HELLO:
        return mesh_encode_hello(b, &hello);
    case MESH_PROOF: {
        struct mesh_proof m = {.mac = {1, 2, 3}};
        return mesh_encode_proof(b, &m);
    }
    case MESH_HEARTBEAT: {
        struct mesh_heartbeat m = {.memory_bytes_free = 77, .n_running = 5, .is_stopping = true};
        return mesh_encode_heartbeat(b, &m);
    }
    case MESH_STATE: {
        struct mesh_state m = {
            .n_nodes = 2, .nodes = nodes, .n_instances = 2, .instances = instances};
        fill_instance(&instances[0], 3, 2);
        fill_instance(&instances[1], 9, LIMIT_RANKS);
        for (int i = 0; i < 2; i++)
            nodes[i] = (struct node_info){.id = hello.id,
                                          .api = hello.api,
                                          .mesh = hello.mesh,
                                          .name = "beta",
                                          .memory_bytes_total = 5,
                                          .memory_bytes_free = 4,
                                          .n_cores = 3};
        return mesh_encode_state(b, &m);
    }
    case MESH_RANK_START: {
        struct mesh_rank_start m = {.launch = 0x0123456789abcdef,
                                    .rank = 63,
                                    .n_node_ranks = 2,
                                    .model_hash = {9},
                                    .path = "/models/a b.gguf",
                                    .frame = frame,
                                    .frame_len = sizeof(frame)};
        return mesh_encode_rank_start(b, &m);
    }
    case MESH_RANK_FRAME: {
        struct mesh_rank_frame m = {
            .launch = 1, .rank = 1, .frame = frame, .frame_len = sizeof(frame)};
        return mesh_encode_rank_frame(b, &m);
    }
    case MESH_RANK_STOP:
        return mesh_encode_rank_stop(b, 42, 7);
    case MESH_RANK_ENDED: {
        struct mesh_rank_ended m = {.launch = 42, .rank = 7, .reason = "signal 9"};
        return mesh_encode_rank_ended(b, &m);
    }
    case MESH_SUBMIT: {
        struct mesh_submit m = {
            .instance = sample_id(5), .frame = frame, .frame_len = sizeof(frame)};
        return mesh_encode_submit(b, &m);
    }
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
    uint64_t number;
    uint32_t rank;
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
        RECODE(MESH_HELLO, hello)
        RECODE(MESH_PROOF, proof)
        RECODE(MESH_HEARTBEAT, heartbeat)
        RECODE(MESH_RANK_START, rank_start)
        RECODE(MESH_RANK_FRAME, rank_frame)
        RECODE(MESH_RANK_ENDED, rank_ended)
        RECODE(MESH_SUBMIT, submit)
#undef RECODE
    case MESH_STATE: {
        struct mesh_state s;
        rc = mesh_decode_state(m, &s, err);
        if (rc != 0)
            return rc;
        rc = mesh_encode_state(b, &s);
        mesh_state_done(&s);
        return rc;
    }
    case MESH_RANK_STOP:
        rc = mesh_decode_rank_stop(m, &number, &rank, err);
        return rc != 0 ? rc : mesh_encode_rank_stop(b, number, rank);
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
