/*
 * What was heard of other nodes: takes mDNS packets apart, keeps one entry per service instance
 * with its times, and decides when its owner is told. Pure: time, packets and interface numbers are
 * passed in. docs/internals/discovery.md says how records become peers. Thread: one.
 */
#ifndef SHOAL_MESH_DISCOVERY_TABLE_H
#define SHOAL_MESH_DISCOVERY_TABLE_H

#include "mesh/discovery.h"
#include "mesh/discovery_dns.h"

enum {
    DISCOVERY_TTL_S = 120,         /* of all our records; longer ones of others are cut to it */
    DISCOVERY_GOODBYE_MS = 1000,   /* from a goodbye to the loss, so that others can object */
    DISCOVERY_PER_SOURCE_MAX = 32, /* instances that packets of one address may bring */
};

#define DISCOVERY_SERVICE     "_shoal-worker._tcp.local"
#define DISCOVERY_SERVICE_MLX "_mlx-worker._tcp.local"
#define DISCOVERY_SERVICES    "_services._dns-sd._udp.local"

struct packet_source {
    uint32_t interface_index;
    struct sockaddr_storage address; /* of the sender */
};

struct discovery_table; /* opaque */

/* Valid UTF-8 without control characters. */
bool discovery_text_is_clean(const char *text, size_t n);

/* Borrows events. Errors: E_NOMEM. */
int discovery_table_new(const struct node_id *self, const struct discovery_events *events,
                        struct discovery_table **ret_table, struct error *err);
void discovery_table_free(struct discovery_table *t);
/* Takes the records of an answer. Returns false when it is malformed: then none is taken. Calls
 * nobody. */
bool discovery_table_take(struct discovery_table *t, const void *data, size_t size,
                          const struct packet_source *from, uint64_t now_ms);
/* Forgets what was heard on an interface that is gone. */
void discovery_table_forget(struct discovery_table *t, uint32_t interface_index, uint64_t now_ms);
/* Ends what has expired and tells the owner what is due. Returns the time of the next change,
 * UINT64_MAX for none. */
uint64_t discovery_table_tick(struct discovery_table *t, uint64_t now_ms);
/* Entries that have been heard on this interface lately enough not to be asked for again, from
 * index *i on; returns false past the last. */
bool discovery_table_known(const struct discovery_table *t, uint32_t interface_index,
                           uint64_t now_ms, uint32_t *i, const struct dns_name **ret_instance,
                           uint32_t *ret_ttl_s);
/* As discovery_peer_at. */
const struct discovery_peer *discovery_table_peer(const struct discovery_table *t, uint32_t index);
void discovery_table_get_stats(const struct discovery_table *t, struct discovery_stats *stats);

#endif
