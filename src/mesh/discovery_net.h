/*
 * The sockets and interfaces of discovery: port 5353 shared with whoever else answers mDNS on this
 * computer, packets sent and received by interface. Nothing here waits. Thread: the loop's.
 */
#ifndef SHOAL_MESH_DISCOVERY_NET_H
#define SHOAL_MESH_DISCOVERY_NET_H

#include "mesh/discovery_table.h"

#include <net/if.h>

enum { DISCOVERY_LINKS_MAX = 64, DISCOVERY_LINK_ADDRESSES_MAX = 12, DISCOVERY_PORT = 5353 };

struct net_link { /* an interface as it is now */
    uint32_t index;
    char name[IF_NAMESIZE];
    bool has_v4, has_v6;
    uint32_t n_addresses;
    struct sockaddr_storage
        address[DISCOVERY_LINK_ADDRESSES_MAX]; /* without port and scope, sorted */
};

/* The interfaces that are up, running and can multicast, or loopback instead. Tunnels are left
 * out. Returns how many. */
uint32_t net_scan(bool is_on_loopback, struct net_link ret_links[DISCOVERY_LINKS_MAX]);
/* AF_INET or AF_INET6. Errors: libuv's. */
int net_open(int family, int *ret_fd, struct error *err);
/* 0 or a negative errno. */
int net_join(int fd, int family, const struct net_link *link);
void net_leave(int fd, int family, const struct net_link *link);
int net_send(int fd, int family, const struct net_link *link, const void *data, size_t n);
/* Bytes of a multicast from port 5353; 0 for a packet that is not one, or is too long; a negative
 * errno when there is none. */
int64_t net_receive(int fd, int family, uint8_t data[DNS_PACKET_BYTES_MAX],
                    struct packet_source *ret_from);
/* A descriptor that becomes readable when interfaces or addresses change; -1 when the system has
 * none, so that only looking again now and then helps. */
int net_watch_open(void);
void net_watch_drain(int fd);

#endif
