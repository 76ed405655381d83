/*
 * What nodes say to each other over a control link. Frames are laid out as on a runner's link
 * (runner/protocol.h): u32 length of the payload, u16 type, u16 zero, payload; little-endian;
 * strings are u32 length + bytes; lists are u32 count + items. Type numbers start at 128, so that
 * the two kinds of frames are never taken for each other.
 *
 * The conversation: both sides send HELLO; if they share a secret, both send PROOF. Then the link
 * is up, and these may come in any order:
 *
 *   HEARTBEAT     each 250 ms
 *   STATE         what the sender knows about nodes and what it runs, whole, when it changes
 *   RANK_START    coordinator -> node: start a runner for this rank (holds a runner LOAD frame)
 *   RANK_FRAME    a runner's control frame, relayed, either way
 *   RANK_STOP     coordinator -> node
 *   RANK_ENDED    node -> coordinator: the runner is gone, exactly once after RANK_START
 *   SUBMIT        node -> coordinator of an instance: a request (holds a runner SUBMIT frame)
 *   CANCEL        node -> coordinator: that request is no longer wanted
 *   EVENT         coordinator -> node: TOKENS, PROGRESS or DONE of a request (a runner frame)
 *
 * Everything is checked while it is decoded: a message with a field out of range, bytes missing or
 * left over is E_PROTOCOL, and the link that brought it is closed. Thread: pure functions.
 */
#ifndef SHOAL_MESH_MESSAGE_H
#define SHOAL_MESH_MESSAGE_H

#include "base/buf.h"
#include "base/error.h"
#include "base/limits.h"
#include "model/shard.h"

#include <stdbool.h>
#include <stdint.h>

enum { MESH_PROTOCOL_VERSION = 1 };
enum { MESH_HEADER_BYTES = 8, MESH_GREETING_BYTES_MAX = 4096 };

enum mesh_type {
    MESH_HELLO = 128,
    MESH_PROOF,
    MESH_HEARTBEAT,
    MESH_STATE,
    MESH_RANK_START,
    MESH_RANK_FRAME,
    MESH_RANK_STOP,
    MESH_RANK_ENDED,
    MESH_SUBMIT,
    MESH_CANCEL,
    MESH_EVENT,
};

struct node_id {
    uint8_t bytes[16];
};

struct mesh_address {
    char host[64]; /* numeric */
    uint16_t port;
};

struct mesh_hello {
    uint32_t version; /* MESH_PROTOCOL_VERSION */
    struct node_id id;
    uint8_t nonce[32];
    bool has_secret;
    char name[64];
    struct mesh_address api, mesh; /* where this node listens */
    uint64_t memory_bytes_total, memory_bytes_free;
    uint32_t n_cores;
};

struct mesh_proof {
    uint8_t mac[32];
};

struct mesh_heartbeat {
    uint64_t memory_bytes_free;
    uint32_t n_running; /* requests */
    bool is_stopping;
};

enum instance_status { /* in the order of a life */
                       INSTANCE_WAITING,
                       INSTANCE_STARTING,
                       INSTANCE_LOADING,
                       INSTANCE_SERVING,
                       INSTANCE_FAILED, /* will be tried again */
                       INSTANCE_STOPPED,
                       INSTANCE_STATUS_COUNT,
};
const char *instance_status_name(enum instance_status status);

enum rank_status {
    RANK_STARTING,
    RANK_LISTENING,
    RANK_LOADING,
    RANK_READY,
    RANK_ENDED,
    RANK_STATUS_COUNT,
};
const char *rank_status_name(enum rank_status status);

struct rank_info {
    struct node_id node;
    enum rank_status status;
    uint32_t stage;
    struct range layers;   /* of the model */
    struct range kv_heads; /* in its first layer; remainders rotate over the layers */
    uint64_t weight_bytes, kv_bytes;
    uint32_t pid;
};

struct instance_info { /* what everyone may know about an instance */
    struct node_id id, coordinator;
    char model_id[128]; /* as clients name it */
    char path[4096];    /* of the model file at the coordinator; others try it too */
    uint8_t model_hash[32];
    enum instance_status status;
    char error[ERROR_MESSAGE_BYTES]; /* why it failed last, "" if never */
    char split[32];                  /* for people */
    uint32_t n_ctx, n_slots, n_restarts;
    uint64_t created_s;
    uint32_t n_ranks;
    struct rank_info rank[LIMIT_RANKS];
};

struct node_info { /* another node, as a node knows it */
    struct node_id id;
    char name[64];
    struct mesh_address api, mesh;
    uint64_t memory_bytes_total, memory_bytes_free;
    uint32_t n_cores;
};

struct mesh_state {
    uint32_t n_nodes; /* that the sender has links to, at most LIMIT_PEERS */
    struct node_info *nodes;
    uint32_t n_instances; /* that the sender coordinates, at most LIMIT_INSTANCES */
    struct instance_info *instances;
};

struct mesh_rank_start {
    uint64_t launch; /* one attempt to start an instance; chosen at random by the coordinator */
    uint32_t rank;
    uint32_t n_node_ranks; /* ranks of this launch on the same node: they share its processors */
    uint8_t model_hash[32];
    char path[4096];   /* of the model file at the coordinator; tried here too */
    const void *frame; /* a runner LOAD frame. Borrows: the message */
    size_t frame_len;
};

struct mesh_rank_frame {
    uint64_t launch;
    uint32_t rank;
    const void *frame; /* Borrows: the message */
    size_t frame_len;
};

struct mesh_rank_ended {
    uint64_t launch;
    uint32_t rank;
    char reason[ERROR_MESSAGE_BYTES];
};

struct mesh_submit {
    struct node_id instance;
    const void *frame; /* a runner SUBMIT frame; its request number is the sender's */
    size_t frame_len;
};

struct mesh_message { /* one frame; payload borrows the input */
    enum mesh_type type;
    const uint8_t *payload;
    size_t len;
};

/* Looks for a whole frame at the front of data. A payload over len_max is refused before it has
 * come. Returns its total bytes, 0 when more bytes are needed, or E_PROTOCOL. */
int64_t mesh_message_next(const void *data, size_t n, size_t len_max,
                          struct mesh_message *ret_message, struct error *err);

/* Each appends one whole frame. Errors: those of buf_append. */
int mesh_encode_hello(struct buf *b, const struct mesh_hello *m);
int mesh_encode_proof(struct buf *b, const struct mesh_proof *m);
int mesh_encode_heartbeat(struct buf *b, const struct mesh_heartbeat *m);
int mesh_encode_state(struct buf *b, const struct mesh_state *m);
int mesh_encode_rank_start(struct buf *b, const struct mesh_rank_start *m);
int mesh_encode_rank_frame(struct buf *b, const struct mesh_rank_frame *m);
int mesh_encode_rank_stop(struct buf *b, uint64_t launch, uint32_t rank);
int mesh_encode_rank_ended(struct buf *b, const struct mesh_rank_ended *m);
int mesh_encode_submit(struct buf *b, const struct mesh_submit *m);
int mesh_encode_cancel(struct buf *b, uint64_t request);
int mesh_encode_event(struct buf *b, const void *frame, size_t frame_len);

/* Each reads the payload of a frame of its type. Errors: E_PROTOCOL (names the field). */
int mesh_decode_hello(const struct mesh_message *m, struct mesh_hello *ret, struct error *err);
int mesh_decode_proof(const struct mesh_message *m, struct mesh_proof *ret, struct error *err);
int mesh_decode_heartbeat(const struct mesh_message *m, struct mesh_heartbeat *ret,
                          struct error *err);
/* Owns: the caller, mesh_state_done. Also E_NOMEM. */
int mesh_decode_state(const struct mesh_message *m, struct mesh_state *ret, struct error *err);
void mesh_state_done(struct mesh_state *s);
int mesh_decode_rank_start(const struct mesh_message *m, struct mesh_rank_start *ret,
                           struct error *err);
int mesh_decode_rank_frame(const struct mesh_message *m, struct mesh_rank_frame *ret,
                           struct error *err);
int mesh_decode_rank_stop(const struct mesh_message *m, uint64_t *ret_launch, uint32_t *ret_rank,
                          struct error *err);
int mesh_decode_rank_ended(const struct mesh_message *m, struct mesh_rank_ended *ret,
                           struct error *err);
int mesh_decode_submit(const struct mesh_message *m, struct mesh_submit *ret, struct error *err);
int mesh_decode_cancel(const struct mesh_message *m, uint64_t *ret_request, struct error *err);
int mesh_decode_event(const struct mesh_message *m, const void **ret_frame, size_t *ret_len,
                      struct error *err);

#endif
