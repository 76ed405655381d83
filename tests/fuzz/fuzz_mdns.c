/* Packets from the local network, with time between them: { u8 tenths of a second, u16 length,
 * packet } again and again. Tables stay within their bounds, what is told is whole and clean, and
 * what we would say to it is a message that can be read. */
#include "mesh/discovery_records.h"
#include "mesh/discovery_table.h"

#include <assert.h>
#include <netinet/in.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct node_id known[DISCOVERY_PEERS_MAX];
static uint32_t n_known;
static const struct node_id self = {{0xab, 0xcd}};

static uint32_t find(const struct node_id *id)
{
    uint32_t i = 0;
    while (i < n_known && !node_id_equal(&known[i], id))
        i++;
    return i;
}

static void found(void *arg, const struct discovery_peer *p)
{
    (void)arg;
    assert(!node_id_is_none(&p->info.id) && !node_id_equal(&p->info.id, &self));
    assert(p->port != 0 && p->n_addresses > 0 && p->n_addresses <= DISCOVERY_ADDRESSES_MAX);
    for (uint32_t i = 0; i < p->n_addresses; i++) {
        const struct sockaddr_in *a = (const struct sockaddr_in *)&p->address[i].address;
        assert(a->sin_family == AF_INET || a->sin_family == AF_INET6);
        assert(ntohs(a->sin_port) == p->port);
    }
    assert(discovery_text_is_clean(p->info.name, strlen(p->info.name)));
    uint32_t i = find(&p->info.id);
    if (i == n_known) {
        assert(n_known < DISCOVERY_PEERS_MAX);
        known[n_known++] = p->info.id;
    }
}

/* Only who was found can be lost, and once. */
static void lost(void *arg, const struct node_id *id)
{
    (void)arg;
    uint32_t i = find(id);
    assert(i < n_known);
    known[i] = known[--n_known];
}

static void check_queries(const struct discovery_table *t, uint64_t now)
{
    uint32_t i = 0;
    for (bool is_more = true; is_more;) {
        struct dns_writer w;
        uint32_t before = i;
        is_more = discovery_query_write(t, 2, now, &i, &w);
        assert(!w.is_full && dns_check(w.data, w.len) && (!is_more || i > before));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const struct discovery_events events = {.found = found, .lost = lost};
    static const struct discovery_options options = {
        .self = {.id = {{0xab, 0xcd}}, .name = "fuzz"}, .port = 7000, .is_mlx_too = true};
    struct discovery_table *t;
    struct discovery_records records;
    struct packet_source from = {.interface_index = 2};
    from.address.ss_family = AF_INET;
    uint64_t now = 1000000;
    n_known = 0;
    discovery_records_init(&records, &options, 1);
    if (discovery_table_new(&self, &events, &t, NULL) != 0)
        return 0;
    while (size >= 3) {
        size_t n = (size_t)(data[1] | data[2] << 8);
        now += (uint64_t)data[0] * 100;
        data += 3;
        size -= 3;
        n = n < size ? n : size;
        struct dns_reader r;
        enum records_asked asked;
        bool is_well = dns_check(data, n);
        if (dns_open(&r, data, n) && (r.flags & DNS_FLAG_RESPONSE) != 0)
            assert(discovery_table_take(t, data, n, &from, now) == is_well);
        else
            assert(discovery_records_asked(&records, data, n, &asked) == is_well);
        discovery_records_is_known(&records, data, n);
        uint64_t next = discovery_table_tick(t, now);
        assert(next > now);
        check_queries(t, now);
        data += n;
        size -= n;
    }
    discovery_table_forget(t, 2, now);
    discovery_table_tick(t, now);
    assert(n_known == 0);
    discovery_table_free(t);
    return 0;
}
