/*
 * Nodes that find each other: announces this node as a DNS-SD service by multicast DNS on every
 * network interface, and browses for others, in process, on the node's loop. Interfaces that come,
 * go and change their addresses are followed. Works with no mDNS daemon on the computer, and shares
 * port 5353 with one that is there.
 *
 * Only says who claims to be where: whoever answers may lie, so nothing here is to be believed
 * before the link to that address has proved the node's identity. It is neither a check of life:
 * a node that was killed stays known for up to two minutes. docs/internals/discovery.md has the
 * records. Source: RFC 6762, RFC 6763. Thread: the loop's; nothing blocks.
 */
#ifndef SHOAL_MESH_DISCOVERY_H
#define SHOAL_MESH_DISCOVERY_H

#include "base/error.h"
#include "cluster/node_id.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>
#include <uv.h>

enum {
    DISCOVERY_PEERS_MAX = 256,   /* known at a time; more are ignored and counted */
    DISCOVERY_ADDRESSES_MAX = 8, /* of one peer */
    DISCOVERY_FOUND_MS = 1000,   /* between two `found` for the same peer */
    DISCOVERY_FOUND_PER_S = 64,  /* `found` for all peers together; later ones wait */
};

struct discovery; /* opaque */

struct discovery_info { /* what the TXT record says; texts are valid UTF-8 without control
                           characters */
    struct node_id id;
    char name[64];
    char device[64]; /* such as "cpu: AMD Ryzen 7 5800X" */
    char version[32];
    uint64_t memory_mib;
    uint32_t n_cores;
};

struct discovery_address {
    struct sockaddr_storage address; /* with the mesh port; IPv6 link-local ones with their scope */
    uint32_t interface_index;        /* our interface it was heard on */
};

struct discovery_peer {
    struct discovery_info info;
    uint16_t port;        /* of the mesh */
    uint32_t n_addresses; /* at least 1; routable ones first, IPv4 before IPv6 */
    struct discovery_address address[DISCOVERY_ADDRESSES_MAX];
};

struct discovery_options {
    struct discovery_info self;
    uint16_t port;       /* of our mesh; announced */
    bool is_mlx_too;     /* announces _mlx-worker._tcp beside _shoal-worker._tcp */
    bool is_on_loopback; /* uses loopback instead of every other interface: nodes that share one
                            computer and are to be seen by no other */
    bool is_silent;      /* browses only: for programs that look but do not serve */
};

struct discovery_events {
    void *self;
    /* A peer is new, or its port, addresses or TXT are now these. Never this node itself. Borrows:
     * peer, for the call. */
    void (*found)(void *self, const struct discovery_peer *peer);
    /* It said goodbye, or was not heard of for two minutes. */
    void (*lost)(void *self, const struct node_id *id);
};

struct discovery_stats {
    uint32_t n_interfaces; /* in use now */
    uint32_t n_peers;
    uint64_t n_packets, n_malformed;
    uint64_t n_dropped; /* beyond the rate or the table */
};

/* Begins. Callbacks come from the loop, never from inside a call. A computer without a network is
 * no error: interfaces are used as they come. Errors: libuv's, when port 5353 cannot be shared; a
 * node may go on without discovery. */
int discovery_open(uv_loop_t *loop, const struct discovery_options *o,
                   const struct discovery_events *events, struct discovery **ret_discovery,
                   struct error *err);
/* Asks now, at most once a second: after a peer was lost. */
void discovery_refresh(struct discovery *d);
/* Peers known now, in no order; NULL past the end. Borrows: until the loop runs. */
const struct discovery_peer *discovery_peer_at(const struct discovery *d, uint32_t index);
void discovery_get_stats(const struct discovery *d, struct discovery_stats *ret_stats);
/* Says goodbye on every interface, then calls closed (may be NULL) and frees itself. No lost. */
void discovery_close(struct discovery *d, void (*closed)(void *arg), void *arg);

#endif
