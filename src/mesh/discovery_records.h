/*
 * What this node says by mDNS: its records, which questions they answer, and its own questions.
 * Pure: addresses and times are passed in. Thread: one.
 */
#ifndef SHOAL_MESH_DISCOVERY_RECORDS_H
#define SHOAL_MESH_DISCOVERY_RECORDS_H

#include "mesh/discovery_table.h"

struct discovery_records {
    struct discovery_info info;
    uint32_t boot; /* a number of this process, so that others notice a restart */
    uint16_t port;
    uint32_t n_services; /* 0: says nothing of itself */
    struct dns_name service[2], instance[2];
    struct dns_name services, host;
};

/* Takes the name apart from what may not stand in a record. */
void discovery_records_init(struct discovery_records *r, const struct discovery_options *o,
                            uint32_t boot);
/* One packet for each service, index < n_services, with everything about it: pointer, service, text
 * and this interface's addresses. ttl_s 0 is a goodbye. Returns false when it does not fit. */
bool discovery_records_write(const struct discovery_records *r, uint32_t index,
                             const struct sockaddr_storage *addresses, uint32_t n_addresses,
                             uint32_t ttl_s, struct dns_writer *w);

enum records_asked {
    RECORDS_NOT_ASKED,
    RECORDS_ASKED_ALONE,  /* only we have these: at once */
    RECORDS_ASKED_SHARED, /* others answer too: after a short, random time */
    RECORDS_ASKED_MORE, /* and what the asker knows already is still to come: after a longer time */
};
/* What a query wants of us. Returns false when it is malformed. */
bool discovery_records_asked(const struct discovery_records *r, const void *data, size_t size,
                             enum records_asked *ret_asked);
/* Whether a packet says that the asker has our answer already. */
bool discovery_records_is_known(const struct discovery_records *r, const void *data, size_t size);

/* The next packet of a question for all nodes, with as many known answers as fit; *i counts on
 * through them, 0 for the first packet. Returns whether there is more to send. */
bool discovery_query_write(const struct discovery_table *t, uint32_t interface_index,
                           uint64_t now_ms, uint32_t *i, struct dns_writer *w);

#endif
