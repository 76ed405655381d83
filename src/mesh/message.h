/*
 * What nodes say to each other over a control link. Frames are laid out as on a runner's link
 * (runner/protocol.h): u32 length of the payload, u16 type, u16 zero, payload; little-endian;
 * strings are u32 length + bytes; lists are u32 count + items. Type numbers start at 128, so that
 * the two kinds of frames are never taken for each other.
 *
 * The conversation, inside TLS. Both sides send GREETING at once. It shows what each can do; then
 * one of these makes them members of one cluster:
 *
 *   both trust each other's key                      nothing to send
 *   both have a secret                               PROOF both ways
 *   the dialler brings an invite                     PROOF, then the acceptor's PROOF
 *   else, if one of them is a newcomer               JOIN_COMMIT and JOIN_REVEAL both ways, then
 *                                                    JOIN_APPROVE and JOIN_ACCEPT as people decide
 *
 * or the acceptor says REFUSED and closes. Members send HELLO; then the link is up, and these may
 * come in any order:
 *
 *   TRUST         keys that the sender trusts or has revoked
 *   PING, PONG    round trip; also keep a link alive on which people are still to decide
 *   BULK, BULK_ACK  bandwidth
 *   ADDRESSES     where the sender can be reached
 *   PATHS         what the sender has measured of the ways between the two
 *   PART          a piece of a long frame: others may go between
 *   CLUSTER       bytes of cluster_step
 *   RANK_START    leader -> node: start a runner for this rank (holds a runner LOAD frame)
 *   RANK_FRAME    a runner's control frame, relayed, either way
 *   RANK_STOP     leader -> node
 *   RANK_ENDED    node -> leader: the runner is gone, exactly once after RANK_START
 *   SUBMIT        node -> leader of an instance: a request (holds a runner SUBMIT frame)
 *   CANCEL        node -> leader: that request is no longer wanted
 *   EVENT         leader -> node: TOKENS, PROGRESS or DONE of a request (a runner frame)
 *
 * A connection whose greeting says that it is a probe never becomes a link. Members only: PING,
 * PONG, BULK, BULK_ACK and BULK_ASK may come on it, until whoever dialled it closes it.
 *
 * Version 3 has ADDRESSES, PATHS, PART, BULK_ASK and probes; none of them is said to version 2.
 *
 * Everything is checked while it is decoded: a message with a field out of range, bytes missing or
 * left over is E_PROTOCOL, and the link that brought it is closed. Thread: pure functions.
 */
#ifndef SHOAL_MESH_MESSAGE_H
#define SHOAL_MESH_MESSAGE_H

#include "base/buf.h"
#include "base/error.h"
#include "base/limits.h"
#include "cluster/node_id.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    MESH_PROTOCOL_VERSION = 4,
    MESH_PROTOCOL_VERSION_MIN = 2, /* the oldest that this program still speaks */
    MESH_VERSION_PATHS = 3,        /* the first with probes and parts */
    MESH_VERSION_GRAMMARS = 4,     /* the first whose SUBMIT may have a grammar or ask for
                                      log-probabilities */
};
enum {
    MESH_HEADER_BYTES = 8,
    MESH_STRANGER_BYTES_MAX = 4096, /* of a frame before its sender is a member */
    MESH_CLUSTER_BYTES_MAX = 1 << 20,
    MESH_BULK_FRAME_BYTES = 64 << 10,
    MESH_BULK_BURST_BYTES = 4 << 20,
    MESH_PART_BYTES = 64 << 10,
    MESH_ADDRESSES_MAX = 16, /* that a node tells of itself */
    MESH_PATHS_MAX = 16,     /* that are measured between two nodes, routes not counted */
    MESH_INTERFACE_BYTES = 16,
    MESH_TRUST_ENTRIES_MAX = 4 * LIMIT_PEERS, /* trusted and revoked, of one TRUST message */
};

enum mesh_type {
    MESH_GREETING = 128,
    MESH_PROOF,
    MESH_REFUSED,
    MESH_JOIN_COMMIT,
    MESH_JOIN_REVEAL,
    MESH_JOIN_APPROVE,
    MESH_JOIN_ACCEPT,
    MESH_HELLO,
    MESH_TRUST,
    MESH_PING,
    MESH_PONG,
    MESH_BULK,
    MESH_BULK_ACK,
    MESH_CLUSTER,
    MESH_RANK_START,
    MESH_RANK_FRAME,
    MESH_RANK_STOP,
    MESH_RANK_ENDED,
    MESH_SUBMIT,
    MESH_CANCEL,
    MESH_EVENT,
    MESH_ADDRESSES,
    MESH_PATHS,
    MESH_BULK_ASK,
    MESH_PART,
};
enum { MESH_TYPE_LAST = MESH_PART };

struct mesh_address {
    char host[64]; /* numeric */
    uint16_t port;
};

struct mesh_greeting {             /* all that a stranger gets to see */
    uint32_t version, version_min; /* the newest and oldest that the sender speaks */
    bool is_trusting;              /* the sender trusts the receiver's key */
    bool has_secret;
    bool has_invite;  /* and a PROOF of it follows */
    bool is_newcomer; /* belongs to no cluster */
    bool is_closed;   /* takes no requests to join */
    bool is_probe;    /* only measures; from version 3 on */
};

struct mesh_proof {
    uint8_t mac[32];
};

struct mesh_join_commit {
    char name[64];
    uint8_t cluster_tag[8]; /* the same for all members of a cluster, as they say */
    uint8_t commit[32];
};

struct mesh_join_reveal {
    uint8_t nonce[32];
};

struct mesh_hello {
    uint32_t version;  /* of this link, from the greetings; not sent */
    struct node_id id; /* of the key that the handshake has proven; not sent */
    char name[64];
    struct mesh_address api, mesh; /* where this node listens */
    uint64_t incarnation;          /* of the process: grows from start to start */
    uint64_t memory_bytes_total, memory_bytes_free;
    uint32_t n_cores;
};

struct mesh_trust_entry {
    bool is_revoked;
    bool is_temporary; /* by the secret: until the receiver's process ends */
    uint8_t key[32];   /* zero when revoked */
    struct node_id id;
    char name[64];
    struct mesh_address address; /* of its mesh; port 0: not known */
};

struct mesh_trust {
    uint32_t n_entries;
    struct mesh_trust_entry *entries;
};

struct mesh_bulk {
    uint32_t burst;
    bool is_last;
    const void *data; /* Borrows: the message */
    size_t len;
};

struct mesh_bulk_ack {
    uint32_t burst;
    uint32_t bytes; /* that came after the first frame */
    uint64_t ns;    /* from the first frame to the last */
};

struct mesh_interface { /* an address of a node and what it belongs to */
    char host[64];      /* numeric; a link-local one without its interface */
    char name[MESH_INTERFACE_BYTES];
    uint8_t kind; /* enum device_link_kind; unknown numbers are those of later versions */
};

struct mesh_addresses {
    bool has_route; /* somebody has said where the sender's tensors to the receiver go */
    uint32_t n;
    struct mesh_interface at[MESH_ADDRESSES_MAX];
};

enum mesh_path_status { MESH_PATH_UNTRIED, MESH_PATH_REACHED, MESH_PATH_UNREACHED };

struct mesh_path_report { /* as the sender sees it */
    char local[64];       /* numeric, without interfaces; "": not known */
    char remote[64];      /* the receiver's, or where its route leads */
    char local_interface[MESH_INTERFACE_BYTES], remote_interface[MESH_INTERFACE_BYTES];
    enum mesh_path_status status;
    bool is_route; /* somebody has said that the sender's tensors go there */
    uint32_t rtt_us;
    float mbit_s;
    uint32_t age_ms;
};

struct mesh_paths {
    uint32_t best; /* index; n: none */
    uint32_t n;
    struct mesh_path_report path[MESH_PATHS_MAX + 1];
};

struct mesh_part {
    bool is_last;
    const void *data; /* Borrows: the message */
    size_t len;
};

struct mesh_rank_start {
    struct node_id instance;
    uint64_t epoch;
    uint32_t rank;
    uint32_t n_node_ranks; /* ranks of this epoch on the same node: they share its processors */
    uint8_t model_hash[32];
    char path[4096];   /* of the model file where the order was given; tried here too */
    const void *frame; /* a runner LOAD frame. Borrows: the message */
    size_t frame_len;
};

struct mesh_rank_frame {
    struct node_id instance;
    uint64_t epoch;
    uint32_t rank;
    const void *frame; /* Borrows: the message */
    size_t frame_len;
};

struct mesh_rank_stop {
    struct node_id instance;
    uint64_t epoch;
    uint32_t rank;
};

struct mesh_rank_ended {
    struct node_id instance;
    uint64_t epoch;
    uint32_t rank;
    bool is_node_unfit; /* the node cannot take part at all: no such file there */
    char reason[ERROR_MESSAGE_BYTES];
};

struct mesh_submit {
    struct node_id instance;
    uint64_t epoch;
    const void *frame; /* a runner SUBMIT frame; its request number is the sender's */
    size_t frame_len;
};

struct mesh_message { /* one frame; payload borrows the input */
    enum mesh_type type;
    const uint8_t *payload;
    size_t len;
};

/* Looks for a whole frame at the front of data. A payload over len_max is refused before it has
 * come: E_LIMIT. Returns its total bytes, 0 when more bytes are needed, or E_PROTOCOL. */
int64_t mesh_message_next(const void *data, size_t n, size_t len_max,
                          struct mesh_message *ret_message, struct error *err);

/* Each appends one whole frame. Errors: those of buf_append. */
int mesh_encode_greeting(struct buf *b, const struct mesh_greeting *m);
int mesh_encode_proof(struct buf *b, const struct mesh_proof *m);
int mesh_encode_refused(struct buf *b, uint8_t kind);
int mesh_encode_join_commit(struct buf *b, const struct mesh_join_commit *m);
int mesh_encode_join_reveal(struct buf *b, const struct mesh_join_reveal *m);
int mesh_encode_join_approve(struct buf *b);
int mesh_encode_join_accept(struct buf *b);
int mesh_encode_hello(struct buf *b, const struct mesh_hello *m);
int mesh_encode_trust(struct buf *b, const struct mesh_trust *m);
int mesh_encode_ping(struct buf *b, uint64_t number);
int mesh_encode_pong(struct buf *b, uint64_t number);
int mesh_encode_bulk(struct buf *b, const struct mesh_bulk *m);
int mesh_encode_bulk_ack(struct buf *b, const struct mesh_bulk_ack *m);
int mesh_encode_cluster(struct buf *b, const void *data, size_t len);
int mesh_encode_rank_start(struct buf *b, const struct mesh_rank_start *m);
int mesh_encode_rank_frame(struct buf *b, const struct mesh_rank_frame *m);
int mesh_encode_rank_stop(struct buf *b, const struct mesh_rank_stop *m);
int mesh_encode_rank_ended(struct buf *b, const struct mesh_rank_ended *m);
int mesh_encode_submit(struct buf *b, const struct mesh_submit *m);
int mesh_encode_cancel(struct buf *b, uint64_t request);
int mesh_encode_event(struct buf *b, const void *frame, size_t frame_len);
int mesh_encode_addresses(struct buf *b, const struct mesh_addresses *m);
int mesh_encode_paths(struct buf *b, const struct mesh_paths *m);
int mesh_encode_bulk_ask(struct buf *b, uint32_t bytes);
int mesh_encode_part(struct buf *b, const struct mesh_part *m);

/* Each reads the payload of a frame of its type; CLUSTER is its payload. Errors: E_PROTOCOL (names
 * the field). */
int mesh_decode_greeting(const struct mesh_message *m, struct mesh_greeting *ret,
                         struct error *err);
int mesh_decode_proof(const struct mesh_message *m, struct mesh_proof *ret, struct error *err);
int mesh_decode_refused(const struct mesh_message *m, uint8_t *ret_kind, struct error *err);
int mesh_decode_join_commit(const struct mesh_message *m, struct mesh_join_commit *ret,
                            struct error *err);
int mesh_decode_join_reveal(const struct mesh_message *m, struct mesh_join_reveal *ret,
                            struct error *err);
/* JOIN_APPROVE, JOIN_ACCEPT. */
int mesh_decode_empty(const struct mesh_message *m, struct error *err);
int mesh_decode_hello(const struct mesh_message *m, struct mesh_hello *ret, struct error *err);
/* Owns: the caller, mesh_trust_done. Also E_NOMEM. */
int mesh_decode_trust(const struct mesh_message *m, struct mesh_trust *ret, struct error *err);
void mesh_trust_done(struct mesh_trust *t);
/* PING, PONG. */
int mesh_decode_number(const struct mesh_message *m, uint64_t *ret_number, struct error *err);
int mesh_decode_bulk(const struct mesh_message *m, struct mesh_bulk *ret, struct error *err);
int mesh_decode_bulk_ack(const struct mesh_message *m, struct mesh_bulk_ack *ret,
                         struct error *err);
int mesh_decode_rank_start(const struct mesh_message *m, struct mesh_rank_start *ret,
                           struct error *err);
int mesh_decode_rank_frame(const struct mesh_message *m, struct mesh_rank_frame *ret,
                           struct error *err);
int mesh_decode_rank_stop(const struct mesh_message *m, struct mesh_rank_stop *ret,
                          struct error *err);
int mesh_decode_rank_ended(const struct mesh_message *m, struct mesh_rank_ended *ret,
                           struct error *err);
int mesh_decode_submit(const struct mesh_message *m, struct mesh_submit *ret, struct error *err);
int mesh_decode_cancel(const struct mesh_message *m, uint64_t *ret_request, struct error *err);
int mesh_decode_event(const struct mesh_message *m, const void **ret_frame, size_t *ret_len,
                      struct error *err);
int mesh_decode_addresses(const struct mesh_message *m, struct mesh_addresses *ret,
                          struct error *err);
int mesh_decode_paths(const struct mesh_message *m, struct mesh_paths *ret, struct error *err);
int mesh_decode_bulk_ask(const struct mesh_message *m, uint32_t *ret_bytes, struct error *err);
int mesh_decode_part(const struct mesh_message *m, struct mesh_part *ret, struct error *err);

#endif
