/* See discovery_table.h. */
#include "mesh/discovery_table.h"

#include "base/utf8.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Found events are paid from a purse that fills with time. */
enum { PURSE_MAX = DISCOVERY_FOUND_PER_S, FOUND_COST_MS = 1000 / DISCOVERY_FOUND_PER_S };

struct known { /* one service instance */
    struct dns_name instance, host;
    uint8_t source[16];  /* who brought it */
    uint64_t expires_ms; /* the whole entry */
    uint64_t address_expires_ms[DISCOVERY_ADDRESSES_MAX];
    bool has_service, has_text;
    uint32_t boot; /* of the sender's life: a change of it alone is news too */
    struct discovery_peer peer;
    bool is_changed;  /* since it was reported */
    bool is_reported; /* as reported_id */
    struct node_id reported_id;
    uint64_t reported_ms;
};

struct discovery_table {
    struct node_id self;
    const struct discovery_events *events;
    struct dns_name service;
    uint32_t n_known;
    struct known *known[DISCOVERY_PEERS_MAX];
    bool is_dropping;         /* some of the packet at hand had no room */
    uint64_t n_dropped;       /* such packets */
    uint64_t purse, purse_ms; /* events that may be sent; when it was last filled */
};

int discovery_table_new(const struct node_id *self, const struct discovery_events *events,
                        struct discovery_table **ret_table, struct error *err)
{
    struct discovery_table *t = calloc(1, sizeof(*t));
    if (t == NULL)
        return error_set(err, E_NOMEM, "out of memory for the table of discovered nodes");
    t->self = *self;
    t->events = events;
    t->purse = PURSE_MAX;
    dns_name_make(&t->service, NULL, DISCOVERY_SERVICE);
    *ret_table = t;
    return 0;
}

void discovery_table_free(struct discovery_table *t)
{
    if (t == NULL)
        return;
    for (uint32_t i = 0; i < t->n_known; i++)
        free(t->known[i]);
    free(t);
}

static bool is_complete(const struct known *k)
{
    return k->has_service && k->has_text && k->peer.n_addresses > 0;
}

/* ---- entries ---- */

static void source_key(const struct packet_source *from, uint8_t ret_key[16])
{
    memset(ret_key, 0, 16);
    if (from->address.ss_family == AF_INET6)
        memcpy(ret_key, &((const struct sockaddr_in6 *)&from->address)->sin6_addr, 16);
    else if (from->address.ss_family == AF_INET)
        memcpy(ret_key, &((const struct sockaddr_in *)&from->address)->sin_addr, 4);
}

static struct known *find(const struct discovery_table *t, const struct dns_name *instance)
{
    for (uint32_t i = 0; i < t->n_known; i++)
        if (dns_name_equal(&t->known[i]->instance, instance))
            return t->known[i];
    return NULL;
}

static struct known *find_or_add(struct discovery_table *t, const struct dns_name *instance,
                                 const struct packet_source *from)
{
    struct known *k = find(t, instance);
    if (k != NULL)
        return k;
    uint8_t source[16];
    source_key(from, source);
    uint32_t n_same = 0;
    for (uint32_t i = 0; i < t->n_known; i++)
        n_same += t->known[i] != NULL && memcmp(t->known[i]->source, source, sizeof(source)) == 0;
    if (t->n_known < DISCOVERY_PEERS_MAX && n_same < DISCOVERY_PER_SOURCE_MAX)
        k = calloc(1, sizeof(*k));
    if (k == NULL) {
        t->is_dropping = true;
        return NULL;
    }
    k->instance = *instance;
    memcpy(k->source, source, sizeof(source));
    t->known[t->n_known++] = k;
    return k;
}

static void remove_at(struct discovery_table *t, uint32_t i)
{
    free(t->known[i]);
    t->known[i] = t->known[--t->n_known];
}

/* Two instances of one node (it has a new name): the one heard last stands for it. */
static void supersede(struct discovery_table *t, struct known *k)
{
    for (uint32_t i = 0; i < t->n_known; i++) {
        struct known *other = t->known[i];
        if (other == k || !other->has_text ||
            !node_id_equal(&other->peer.info.id, &k->peer.info.id))
            continue;
        if (other->is_reported && !k->is_reported) {
            k->is_reported = true;
            k->reported_id = other->reported_id;
            k->reported_ms = other->reported_ms;
            other->is_reported = false;
        }
        other->has_text = false; /* invisible until it speaks again; it expires in its time */
    }
}

/* ---- records ---- */

static bool is_same_info(const struct discovery_info *a, const struct discovery_info *b)
{
    return node_id_equal(&a->id, &b->id) && a->memory_mib == b->memory_mib &&
           a->n_cores == b->n_cores && strcmp(a->name, b->name) == 0 &&
           strcmp(a->device, b->device) == 0 && strcmp(a->version, b->version) == 0;
}

bool discovery_text_is_clean(const char *text, size_t n)
{
    for (size_t at = 0; at < n;) {
        size_t len = utf8_sequence_length(text + at, n - at);
        if (len == 0 || (uint8_t)text[at] < 0x20 || text[at] == 0x7f)
            return false;
        at += len;
    }
    return true;
}

/* A text for people, from outside: whole, or nothing. */
static void copy_text(char *to, size_t size, const uint8_t *from, size_t n)
{
    to[0] = '\0';
    if (n >= size || !discovery_text_is_clean((const char *)from, n))
        return;
    memcpy(to, from, n);
    to[n] = '\0';
}

static uint64_t read_decimal(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n && n <= 15; i++) {
        if (p[i] < '0' || p[i] > '9')
            return 0;
        v = v * 10 + (uint64_t)(p[i] - '0');
    }
    return v;
}

static void read_pair(struct discovery_info *info, uint32_t *boot, const uint8_t *p, size_t n)
{
    const uint8_t *equals = memchr(p, '=', n);
    if (equals == NULL)
        return;
    size_t n_key = (size_t)(equals - p), n_value = n - n_key - 1;
    const uint8_t *value = equals + 1;
#define IS(text) (n_key == sizeof(text) - 1 && memcmp(p, text, sizeof(text) - 1) == 0)
    if (IS("id")) {
        char hex[64];
        copy_text(hex, sizeof(hex), value, n_value);
        if (!node_id_parse(hex, &info->id))
            memset(&info->id, 0, sizeof(info->id));
    } else if (IS("name")) {
        copy_text(info->name, sizeof(info->name), value, n_value);
    } else if (IS("device")) {
        copy_text(info->device, sizeof(info->device), value, n_value);
    } else if (IS("version")) {
        copy_text(info->version, sizeof(info->version), value, n_value);
    } else if (IS("memory")) {
        info->memory_mib = read_decimal(value, n_value);
    } else if (IS("cores")) {
        uint64_t n_cores = read_decimal(value, n_value);
        info->n_cores = n_cores > UINT32_MAX ? 0 : (uint32_t)n_cores;
    } else if (IS("boot")) {
        *boot = (uint32_t)read_decimal(value, n_value);
    }
#undef IS
}

static void take_text(struct discovery_table *t, struct known *k, const struct dns_record *record)
{
    struct discovery_info info;
    uint32_t boot = 0;
    memset(&info, 0, sizeof(info));
    for (size_t at = 0; at < record->data_len;) {
        size_t n = record->data[at++];
        if (n > record->data_len - at)
            return;
        read_pair(&info, &boot, record->data + at, n);
        at += n;
    }
    if (node_id_is_none(&info.id) || node_id_equal(&info.id, &t->self))
        return;
    if (!k->has_text || !is_same_info(&info, &k->peer.info) || boot != k->boot)
        k->is_changed = true;
    k->peer.info = info;
    k->boot = boot;
    k->has_text = true;
}

static void take_service(const struct dns_reader *r, struct known *k,
                         const struct dns_record *record)
{
    struct dns_name host;
    if (!dns_record_name(r, record, 6, &host))
        return;
    uint16_t port = (uint16_t)(record->data[4] << 8 | record->data[5]);
    if (port == 0)
        return;
    if (port != k->peer.port || !k->has_service)
        k->is_changed = true;
    k->peer.port = port;
    for (uint32_t i = 0; i < k->peer.n_addresses; i++) /* same place in both kinds */
        ((struct sockaddr_in *)&k->peer.address[i].address)->sin_port = htons(port);
    k->host = host;
    k->has_service = true;
}

static void take_instance(struct discovery_table *t, const struct dns_reader *r,
                          const struct dns_record *record, const struct packet_source *from,
                          uint64_t now_ms)
{
    struct dns_name target;
    const struct dns_name *instance = &record->name;
    if (record->type == DNS_TYPE_PTR) {
        if (!dns_name_equal(&record->name, &t->service) || !dns_record_name(r, record, 0, &target))
            return;
        instance = &target;
    } else if (record->type != DNS_TYPE_SRV && record->type != DNS_TYPE_TXT) {
        return;
    }
    if (!dns_name_is_child(instance, &t->service))
        return;
    if (record->ttl_s == 0) { /* goodbye */
        struct known *k = find(t, instance);
        if (k != NULL && k->expires_ms > now_ms + DISCOVERY_GOODBYE_MS)
            k->expires_ms = now_ms + DISCOVERY_GOODBYE_MS;
        return;
    }
    struct known *k = find_or_add(t, instance, from);
    if (k == NULL)
        return;
    uint64_t ttl_s = record->ttl_s < DISCOVERY_TTL_S ? record->ttl_s : DISCOVERY_TTL_S;
    /* The pointer alone does not keep an instance: others answer it from memory. */
    if (record->type != DNS_TYPE_PTR || k->expires_ms == 0)
        k->expires_ms = now_ms + ttl_s * 1000;
    if (record->type == DNS_TYPE_TXT)
        take_text(t, k, record);
    else if (record->type == DNS_TYPE_SRV)
        take_service(r, k, record);
}

/* ---- addresses ---- */

/* Smaller is tried first. */
static int address_rank(const struct sockaddr_storage *a)
{
    if (a->ss_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)a;
        uint32_t v = ntohl(in->sin_addr.s_addr);
        return v >> 24 == 127 ? 3 : v >> 16 == 0xa9fe ? 4 : 0;
    }
    const struct in6_addr *a6 = &((const struct sockaddr_in6 *)a)->sin6_addr;
    return IN6_IS_ADDR_LOOPBACK(a6) ? 3 : IN6_IS_ADDR_LINKLOCAL(a6) ? 2 : 1;
}

static bool read_address(const struct dns_record *record, uint16_t port, uint32_t interface_index,
                         struct sockaddr_storage *ret)
{
    memset(ret, 0, sizeof(*ret));
    if (record->type == DNS_TYPE_A && record->data_len == 4) {
        struct sockaddr_in *in = (struct sockaddr_in *)ret;
        in->sin_family = AF_INET;
        in->sin_port = htons(port);
        memcpy(&in->sin_addr, record->data, 4);
        uint32_t v = ntohl(in->sin_addr.s_addr);
        return v >> 24 != 0 && v >> 28 < 0xe; /* neither "this network" nor multicast */
    }
    if (record->type == DNS_TYPE_AAAA && record->data_len == 16) {
        struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)ret;
        in6->sin6_family = AF_INET6;
        in6->sin6_port = htons(port);
        memcpy(&in6->sin6_addr, record->data, 16);
        if (IN6_IS_ADDR_LINKLOCAL(&in6->sin6_addr))
            in6->sin6_scope_id = interface_index;
        return !IN6_IS_ADDR_UNSPECIFIED(&in6->sin6_addr) &&
               !IN6_IS_ADDR_MULTICAST(&in6->sin6_addr) && !IN6_IS_ADDR_V4MAPPED(&in6->sin6_addr);
    }
    return false;
}

static void remove_address(struct known *k, uint32_t i)
{
    uint32_t n = k->peer.n_addresses - i - 1;
    memmove(&k->peer.address[i], &k->peer.address[i + 1], n * sizeof(k->peer.address[0]));
    memmove(&k->address_expires_ms[i], &k->address_expires_ms[i + 1], n * sizeof(uint64_t));
    k->peer.n_addresses--;
    memset(&k->peer.address[k->peer.n_addresses], 0, sizeof(k->peer.address[0]));
    k->is_changed = true;
}

static void add_address(struct known *k, const struct sockaddr_storage *address,
                        uint32_t interface_index, uint64_t expires_ms)
{
    struct discovery_peer *p = &k->peer;
    for (uint32_t i = 0; i < p->n_addresses; i++)
        if (p->address[i].interface_index == interface_index &&
            memcmp(&p->address[i].address, address, sizeof(*address)) == 0) {
            k->address_expires_ms[i] = expires_ms;
            return;
        }
    if (p->n_addresses == DISCOVERY_ADDRESSES_MAX) {
        uint32_t oldest = 0;
        for (uint32_t i = 1; i < p->n_addresses; i++)
            if (k->address_expires_ms[i] < k->address_expires_ms[oldest])
                oldest = i;
        if (k->address_expires_ms[oldest] >= expires_ms)
            return; /* all are as new: these will do */
        remove_address(k, oldest);
    }
    uint32_t at = 0;
    while (at < p->n_addresses && address_rank(&p->address[at].address) <= address_rank(address))
        at++;
    uint32_t n = p->n_addresses - at;
    memmove(&p->address[at + 1], &p->address[at], n * sizeof(p->address[0]));
    memmove(&k->address_expires_ms[at + 1], &k->address_expires_ms[at], n * sizeof(uint64_t));
    p->address[at] =
        (struct discovery_address){.address = *address, .interface_index = interface_index};
    k->address_expires_ms[at] = expires_ms;
    p->n_addresses++;
    k->is_changed = true;
}

/* A flush names all addresses of a host: others heard on that interface end in a second, unless the
 * same packet brings them. */
static void flush_addresses(struct known *k, const struct dns_record *record,
                            uint32_t interface_index, uint64_t now_ms)
{
    int family = record->type == DNS_TYPE_A ? AF_INET : AF_INET6;
    for (uint32_t i = 0; i < k->peer.n_addresses; i++)
        if (k->peer.address[i].interface_index == interface_index &&
            k->peer.address[i].address.ss_family == family &&
            k->address_expires_ms[i] > now_ms + DISCOVERY_GOODBYE_MS)
            k->address_expires_ms[i] = now_ms + DISCOVERY_GOODBYE_MS;
}

static void take_address(struct discovery_table *t, const struct dns_record *record,
                         const struct packet_source *from, bool is_flushing, uint64_t now_ms)
{
    for (uint32_t i = 0; i < t->n_known; i++) {
        struct known *k = t->known[i];
        struct sockaddr_storage address;
        if (!k->has_service || !dns_name_equal(&k->host, &record->name))
            continue;
        if (is_flushing) {
            flush_addresses(k, record, from->interface_index, now_ms);
            continue;
        }
        uint64_t ttl_s = record->ttl_s < DISCOVERY_TTL_S ? record->ttl_s : DISCOVERY_TTL_S;
        if (ttl_s > 0 && read_address(record, k->peer.port, from->interface_index, &address))
            add_address(k, &address, from->interface_index, now_ms + ttl_s * 1000);
    }
}

static bool is_address(const struct dns_record *record)
{
    return record->type == DNS_TYPE_A || record->type == DNS_TYPE_AAAA;
}

bool discovery_table_take(struct discovery_table *t, const void *data, size_t size,
                          const struct packet_source *from, uint64_t now_ms)
{
    if (!dns_check(data, size))
        return false;
    t->is_dropping = false;
    /* Records come in any order: first instances, then which addresses end, then addresses. */
    for (int pass = 0; pass < 3; pass++) {
        struct dns_reader r;
        struct dns_question question;
        struct dns_record record;
        if (!dns_open(&r, data, size))
            return false;
        while (dns_next_question(&r, &question) > 0)
            ;
        while (dns_next_record(&r, &record) > 0) {
            if (record.class != DNS_CLASS_IN || record.is_authority)
                continue;
            if (pass == 0)
                take_instance(t, &r, &record, from, now_ms);
            else if (is_address(&record) && (pass == 2 || record.is_flush))
                take_address(t, &record, from, pass == 1, now_ms);
        }
    }
    t->n_dropped += t->is_dropping;
    return true;
}

void discovery_table_forget(struct discovery_table *t, uint32_t interface_index, uint64_t now_ms)
{
    for (uint32_t i = 0; i < t->n_known; i++)
        for (uint32_t j = 0; j < t->known[i]->peer.n_addresses; j++)
            if (t->known[i]->peer.address[j].interface_index == interface_index)
                t->known[i]->address_expires_ms[j] = now_ms;
}

/* ---- time ---- */

static void report_lost(struct discovery_table *t, struct known *k)
{
    if (!k->is_reported)
        return;
    struct node_id id = k->reported_id;
    k->is_reported = false;
    t->events->lost(t->events->self, &id);
}

/* Returns when this entry next wants attention; 0: it is over. */
static uint64_t tick_known(struct discovery_table *t, struct known *k, uint64_t now_ms)
{
    if (k->expires_ms <= now_ms)
        return 0;
    for (uint32_t i = k->peer.n_addresses; i-- > 0;)
        if (k->address_expires_ms[i] <= now_ms)
            remove_address(k, i);
    if (k->is_reported && (!is_complete(k) || !node_id_equal(&k->reported_id, &k->peer.info.id)))
        report_lost(t, k);
    uint64_t next = k->expires_ms;
    if (is_complete(k) && (!k->is_reported || k->is_changed)) {
        supersede(t, k);
        uint64_t due = k->is_reported ? k->reported_ms + DISCOVERY_FOUND_MS : now_ms;
        if (due <= now_ms && t->purse > 0) {
            t->purse--;
            k->is_reported = true;
            k->is_changed = false;
            k->reported_id = k->peer.info.id;
            k->reported_ms = now_ms;
            t->events->found(t->events->self, &k->peer);
        } else {
            next = due > now_ms ? due : now_ms + FOUND_COST_MS;
        }
    }
    for (uint32_t i = 0; i < k->peer.n_addresses; i++)
        if (k->address_expires_ms[i] < next)
            next = k->address_expires_ms[i];
    return next;
}

uint64_t discovery_table_tick(struct discovery_table *t, uint64_t now_ms)
{
    uint64_t earned = (now_ms - t->purse_ms) / FOUND_COST_MS;
    if (earned > 0) {
        t->purse = t->purse + earned > PURSE_MAX ? PURSE_MAX : t->purse + earned;
        t->purse_ms = now_ms;
    }
    uint64_t next = UINT64_MAX;
    for (uint32_t i = 0; i < t->n_known;) {
        uint64_t due = tick_known(t, t->known[i], now_ms);
        if (due == 0) {
            report_lost(t, t->known[i]);
            remove_at(t, i);
            continue;
        }
        if (due < next)
            next = due;
        i++;
    }
    return next;
}

/* ---- what is there ---- */

bool discovery_table_known(const struct discovery_table *t, uint32_t interface_index,
                           uint64_t now_ms, uint32_t *i, const struct dns_name **ret_instance,
                           uint32_t *ret_ttl_s)
{
    for (; *i < t->n_known; (*i)++) {
        const struct known *k = t->known[*i];
        uint64_t expires_ms = 0;
        for (uint32_t j = 0; j < k->peer.n_addresses; j++)
            if (k->peer.address[j].interface_index == interface_index &&
                k->address_expires_ms[j] > expires_ms)
                expires_ms = k->address_expires_ms[j];
        if (k->expires_ms < expires_ms)
            expires_ms = k->expires_ms;
        if (!is_complete(k) || expires_ms < now_ms + DISCOVERY_TTL_S * 1000 / 2)
            continue;
        *ret_instance = &k->instance;
        *ret_ttl_s = (uint32_t)((expires_ms - now_ms) / 1000);
        (*i)++;
        return true;
    }
    return false;
}

const struct discovery_peer *discovery_table_peer(const struct discovery_table *t, uint32_t index)
{
    for (uint32_t i = 0; i < t->n_known; i++)
        if (t->known[i]->is_reported && index-- == 0)
            return &t->known[i]->peer;
    return NULL;
}

void discovery_table_get_stats(const struct discovery_table *t, struct discovery_stats *stats)
{
    stats->n_peers = 0;
    for (uint32_t i = 0; i < t->n_known; i++)
        stats->n_peers += t->known[i]->is_reported;
    stats->n_dropped += t->n_dropped;
}
