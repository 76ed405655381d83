/* Shared by mesh.c (the set of links) and link.c (one link). Nobody else includes it. */
#ifndef SHOAL_MESH_INTERNAL_H
#define SHOAL_MESH_INTERNAL_H

#include "mesh/mesh.h"

struct dial { /* an address to keep a link to */
    struct mesh_address address;
    bool is_static;
    bool is_self; /* it turned out to be this node */
    bool has_id;  /* id is known from an earlier greeting, or from who told of it */
    struct node_id id;
    struct mesh_link *link; /* the attempt or link under way, NULL */
    uint64_t backoff_ms, next_ms;
    uint32_t n_failed;
};

struct mesh {
    uv_loop_t *loop;
    struct mesh_options options;
    struct mesh_events events;
    uv_tcp_t listener;
    uv_timer_t timer; /* one tick for heartbeats, silence, greetings and dials */
    uint64_t tick_ms;
    uint16_t port;
    struct mesh_link *links;
    uint32_t n_links;
    struct dial dials[2 * LIMIT_PEERS];
    uint32_t n_dials;
    struct mesh_stats stats;
    bool is_closing;
    uint32_t n_handles; /* that must be closed before the mesh is freed, links included */
    void (*closed)(void *arg);
    void *closed_arg;
};

enum link_phase { LINK_CONNECTING, LINK_GREETING, LINK_UP, LINK_CLOSING };

struct mesh_link {
    struct mesh *mesh;
    struct mesh_link *next;
    uv_tcp_t tcp;
    uv_connect_t connect;
    enum link_phase phase;
    bool is_dialled;
    bool is_announced; /* link_up was called */
    bool is_silent;    /* and that was logged */
    bool has_hello;
    uint8_t nonce[32]; /* ours, in our HELLO */
    struct mesh_hello hello;
    struct mesh_heartbeat heartbeat;
    uint64_t opened_ms, heard_ms;
    char local_host[64], remote_host[64];
    uint16_t remote_port;
    struct buf in;
    char reason[ERROR_MESSAGE_BYTES];
};

/* A link with its handle initialised, in the mesh's list. NULL when out of memory or full. */
struct mesh_link *link_new(struct mesh *m, bool is_dialled);
/* Starts to connect; the outcome comes later. Errors: libuv's; the link is then closing. */
int link_dial(struct mesh_link *l, const struct mesh_address *address);
/* The connection stands: greets. */
void link_greet(struct mesh_link *l);
void link_send_heartbeat(struct mesh_link *l);
/* What the tick does for one link. */
void link_tick(struct mesh_link *l, uint64_t now_ms);
/* Called by the link when its greeting is over. Returns false when another link to that node is
 * kept instead: the link is then closing. */
bool mesh_link_ready(struct mesh *m, struct mesh_link *l);
/* Called by the link once its handle is closed; frees it. */
void mesh_link_gone(struct mesh *m, struct mesh_link *l);
void mesh_handle_closed(struct mesh *m);

#endif
