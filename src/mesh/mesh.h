/*
 * A node's control links to other nodes, over TCP: listens, dials its peers and dials again with
 * back-off, greets, checks the shared secret, sends heartbeats, notices silence, and keeps one link
 * per node. What the messages mean is the owner's business.
 *
 * NOT authenticated beyond the optional secret and NOT encrypted: for loopback and trusted
 * networks.
 *
 * A link pointer is valid from link_up until link_down returns. Callbacks come from the loop, never
 * from inside a call. Thread: the loop's.
 */
#ifndef SHOAL_MESH_MESH_H
#define SHOAL_MESH_MESH_H

#include "base/buf.h"
#include "base/error.h"
#include "mesh/message.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

enum {
    MESH_HEARTBEAT_MS = 250,
    MESH_SILENCE_LOG_MS = 1000,  /* four heartbeats missed: worth a line */
    MESH_SILENCE_LOST_MS = 5000, /* the link is given up */
    MESH_GREETING_MS = 5000,     /* from connection to the end of the greeting */
    MESH_DIAL_MS_MIN = 250,
    MESH_DIAL_MS_MAX = 10000,
};

struct mesh;      /* opaque */
struct mesh_link; /* opaque */

struct mesh_options {
    struct mesh_address listen;
    uint32_t n_peers; /* static peers: dialled for as long as the mesh lives */
    const struct mesh_address *peers;
    const void *secret; /* NULL: none */
    size_t secret_len;
    struct mesh_hello self; /* id, name, api, memory, cores; the mesh fills in the rest */
};

struct mesh_events {
    void *self;
    void (*link_up)(void *self, struct mesh_link *link);
    void (*link_down)(void *self, struct mesh_link *link, const char *reason);
    /* Any message but HELLO, PROOF and HEARTBEAT. An error closes the link. */
    int (*message)(void *self, struct mesh_link *link, const struct mesh_message *m,
                   struct error *err);
    /* What the next heartbeat says. */
    void (*heartbeat)(void *self, struct mesh_heartbeat *ret_heartbeat);
};

struct mesh_stats {
    uint64_t n_refused; /* connections closed before the greeting was over */
    uint64_t n_malformed;
    uint64_t n_lost;
};

/* Listens and begins to dial. Borrows loop, peers and secret until closed. Errors: libuv's, with
 * the address. */
int mesh_open(uv_loop_t *loop, const struct mesh_options *o, const struct mesh_events *events,
              struct mesh **ret_mesh, struct error *err);
uint16_t mesh_port(const struct mesh *m);
/* Another node's address, heard from a peer: dialled until it is reached or has failed for a
 * while. Nodes already linked, and this node, are ignored. */
void mesh_learn(struct mesh *m, const struct node_id *id, const struct mesh_address *address);
/* Sends a heartbeat on every link now, because what it says has changed. */
void mesh_send_heartbeats(struct mesh *m);
/* How many static peers have no link yet. */
uint32_t mesh_n_missing(const struct mesh *m);
void mesh_get_stats(const struct mesh *m, struct mesh_stats *ret_stats);
/* Closes links (without link_down) and listener, then calls closed and frees itself. */
void mesh_close(struct mesh *m, void (*closed)(void *arg), void *arg);

/* Sends frames; takes the bytes and leaves the buffer empty. On an error (E_UNAVAILABLE, E_LIMIT
 * when the peer reads too slowly, E_NOMEM) the link closes; link_down follows. A buffer with its
 * error set counts as E_NOMEM or E_LIMIT. */
int mesh_link_send(struct mesh_link *l, struct buf *frames);
/* Closes a link; link_down follows. */
void mesh_link_close(struct mesh_link *l, const char *reason);
const struct mesh_hello *mesh_link_hello(const struct mesh_link *l);
/* The last heartbeat: memory and requests. */
const struct mesh_heartbeat *mesh_link_heartbeat(const struct mesh_link *l);
/* Numeric addresses of both ends. */
const char *mesh_link_local_host(const struct mesh_link *l);
const char *mesh_link_remote_host(const struct mesh_link *l);
uint64_t mesh_link_silent_ms(const struct mesh_link *l);
struct mesh_link *mesh_find(const struct mesh *m, const struct node_id *id);
/* Links that are up, in no order; NULL past the end. */
struct mesh_link *mesh_link_at(const struct mesh *m, uint32_t index);

bool node_id_equal(const struct node_id *a, const struct node_id *b);
/* 32 hexadecimal digits. Returns text. */
const char *node_id_text(const struct node_id *id, char text[33]);

#endif
