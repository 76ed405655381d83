/* See discovery_records.h. */
#include "mesh/discovery_records.h"

#include "base/utf8.h"

#include <assert.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

static void clean(char *to, size_t size, const char *from, const char *otherwise)
{
    size_t n = strnlen(from, size);
    bool is_clean = n > 0 && n < size && discovery_text_is_clean(from, n);
    snprintf(to, size, "%s", is_clean ? from : otherwise);
}

/* "name (0123456789abcdef)" in one label: people see the name, the id makes it unique, so that
 * names need no probing. */
static void make_label(char label[DNS_LABEL_BYTES_MAX + 1], const char *name, const char *id)
{
    size_t n_max = DNS_LABEL_BYTES_MAX - sizeof(" ()") + 1 - 16, n = 0, len;
    while ((len = utf8_sequence_length(name + n, strlen(name + n))) > 0 && n + len <= n_max)
        n += len;
    snprintf(label, DNS_LABEL_BYTES_MAX + 1, "%.*s (%.16s)", (int)n, name, id);
}

void discovery_records_init(struct discovery_records *r, const struct discovery_options *o,
                            uint32_t boot)
{
    static const char *const services[2] = {DISCOVERY_SERVICE, DISCOVERY_SERVICE_MLX};
    memset(r, 0, sizeof(*r));
    r->info = o->self;
    r->boot = boot;
    r->port = o->port;
    clean(r->info.name, sizeof(r->info.name), o->self.name, "node");
    clean(r->info.device, sizeof(r->info.device), o->self.device, "");
    clean(r->info.version, sizeof(r->info.version), o->self.version, "");
    r->n_services = o->is_silent ? 0 : o->is_mlx_too ? 2 : 1;
    char id[33], label[DNS_LABEL_BYTES_MAX + 1], host[DNS_LABEL_BYTES_MAX + 1];
    node_id_text(&o->self.id, id);
    make_label(label, r->info.name, id);
    for (int i = 0; i < 2; i++) {
        dns_name_make(&r->service[i], NULL, services[i]);
        dns_name_make(&r->instance[i], label, services[i]);
    }
    dns_name_make(&r->services, NULL, DISCOVERY_SERVICES);
    snprintf(host, sizeof(host), "shoal-%.16s", id);
    dns_name_make(&r->host, host, "local");
}

static void write_pointer(struct dns_writer *w, const struct dns_name *name, uint32_t ttl_s,
                          const struct dns_name *target)
{
    size_t record = dns_write_record(w, DNS_ANSWER, name, DNS_TYPE_PTR, false, ttl_s);
    dns_write_name(w, target);
    dns_write_end_record(w, record);
}

static void write_number(struct dns_writer *w, const char *key, uint64_t v)
{
    char text[24];
    snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
    dns_write_text(w, key, text);
}

static void write_text(const struct discovery_records *r, uint32_t index, uint32_t ttl_s,
                       struct dns_writer *w)
{
    char id[33];
    size_t record = dns_write_record(w, DNS_ANSWER, &r->instance[index], DNS_TYPE_TXT, true, ttl_s);
    dns_write_text(w, "txtvers", "1");
    dns_write_text(w, "id", node_id_text(&r->info.id, id));
    write_number(w, "memory", r->info.memory_mib);
    dns_write_text(w, "device", r->info.device);
    write_number(w, "cores", r->info.n_cores);
    dns_write_text(w, "version", r->info.version);
    dns_write_text(w, "name", r->info.name);
    write_number(w, "boot", r->boot);
    dns_write_end_record(w, record);
}

static void write_address(const struct discovery_records *r, const struct sockaddr_storage *address,
                          uint32_t ttl_s, struct dns_writer *w)
{
    bool is_v4 = address->ss_family == AF_INET;
    size_t record =
        dns_write_record(w, DNS_ANSWER, &r->host, is_v4 ? DNS_TYPE_A : DNS_TYPE_AAAA, true, ttl_s);
    if (is_v4)
        dns_write_bytes(w, &((const struct sockaddr_in *)address)->sin_addr, 4);
    else
        dns_write_bytes(w, &((const struct sockaddr_in6 *)address)->sin6_addr, 16);
    dns_write_end_record(w, record);
}

bool discovery_records_write(const struct discovery_records *r, uint32_t index,
                             const struct sockaddr_storage *addresses, uint32_t n_addresses,
                             uint32_t ttl_s, struct dns_writer *w)
{
    assert(index < r->n_services);
    dns_write_begin(w, DNS_FLAG_RESPONSE | DNS_FLAG_AUTHORITATIVE);
    write_pointer(w, &r->service[index], ttl_s, &r->instance[index]);
    size_t record = dns_write_record(w, DNS_ANSWER, &r->instance[index], DNS_TYPE_SRV, true, ttl_s);
    dns_write_bytes(w, (uint8_t[4]){0}, 4); /* priority, weight */
    dns_write_u16(w, r->port);
    dns_write_name(w, &r->host);
    dns_write_end_record(w, record);
    write_text(r, index, ttl_s, w);
    for (uint32_t i = 0; i < n_addresses; i++)
        write_address(r, &addresses[i], ttl_s, w);
    /* Other services of this type may live on, so it is never said goodbye to. */
    if (ttl_s > 0)
        write_pointer(w, &r->services, ttl_s, &r->service[index]);
    return !w->is_full;
}

static bool is_type(uint16_t asked, uint16_t type)
{
    return asked == type || asked == DNS_TYPE_ANY;
}

static enum records_asked match(const struct discovery_records *r, const struct dns_question *q)
{
    if (q->class != DNS_CLASS_IN && q->class != DNS_CLASS_ANY)
        return RECORDS_NOT_ASKED;
    if (is_type(q->type, DNS_TYPE_PTR) && dns_name_equal(&q->name, &r->services))
        return RECORDS_ASKED_SHARED;
    for (uint32_t i = 0; i < r->n_services; i++) {
        if (is_type(q->type, DNS_TYPE_PTR) && dns_name_equal(&q->name, &r->service[i]))
            return RECORDS_ASKED_SHARED;
        if ((is_type(q->type, DNS_TYPE_SRV) || is_type(q->type, DNS_TYPE_TXT)) &&
            dns_name_equal(&q->name, &r->instance[i]))
            return RECORDS_ASKED_ALONE;
    }
    if ((is_type(q->type, DNS_TYPE_A) || is_type(q->type, DNS_TYPE_AAAA)) &&
        dns_name_equal(&q->name, &r->host))
        return RECORDS_ASKED_ALONE;
    return RECORDS_NOT_ASKED;
}

bool discovery_records_is_known(const struct discovery_records *r, const void *data, size_t size)
{
    struct dns_reader reader;
    struct dns_question question;
    struct dns_record record;
    struct dns_name target;
    if (!dns_open(&reader, data, size))
        return false;
    while (dns_next_question(&reader, &question) > 0)
        ;
    uint32_t n_known = 0;
    while (dns_next_record(&reader, &record) > 0)
        for (uint32_t i = 0; i < r->n_services; i++)
            if (record.type == DNS_TYPE_PTR && record.class == DNS_CLASS_IN &&
                record.ttl_s >= DISCOVERY_TTL_S / 2 &&
                dns_name_equal(&record.name, &r->service[i]) &&
                dns_record_name(&reader, &record, 0, &target) &&
                dns_name_equal(&target, &r->instance[i]))
                n_known++;
    return n_known > 0;
}

bool discovery_records_asked(const struct discovery_records *r, const void *data, size_t size,
                             enum records_asked *ret_asked)
{
    struct dns_reader reader;
    struct dns_question question;
    enum records_asked asked = RECORDS_NOT_ASKED;
    if (!dns_check(data, size) || !dns_open(&reader, data, size))
        return false;
    while (r->n_services > 0 && dns_next_question(&reader, &question) > 0) {
        enum records_asked one = match(r, &question);
        if (one != RECORDS_NOT_ASKED && asked != RECORDS_ASKED_ALONE)
            asked = one;
    }
    if (asked == RECORDS_ASKED_SHARED) {
        if (discovery_records_is_known(r, data, size))
            asked = RECORDS_NOT_ASKED;
        else if ((reader.flags & DNS_FLAG_TRUNCATED) != 0)
            asked = RECORDS_ASKED_MORE;
    }
    *ret_asked = asked;
    return true;
}

bool discovery_query_write(const struct discovery_table *t, uint32_t interface_index,
                           uint64_t now_ms, uint32_t *i, struct dns_writer *w)
{
    struct dns_name service;
    const struct dns_name *instance;
    uint32_t ttl_s, at = *i;
    dns_name_make(&service, NULL, DISCOVERY_SERVICE);
    dns_write_begin(w, 0);
    if (at == 0)
        dns_write_question(w, &service, DNS_TYPE_PTR);
    while (discovery_table_known(t, interface_index, now_ms, &at, &instance, &ttl_s)) {
        struct dns_writer before = *w;
        write_pointer(w, &service, ttl_s, instance);
        if (w->is_full) {
            *w = before;
            w->data[2] |= DNS_FLAG_TRUNCATED >> 8;
            return true;
        }
        *i = at;
    }
    return false;
}
