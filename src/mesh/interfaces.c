/* The addresses of this node that others may reach: of interfaces that are up, of both families. */
#include "mesh/internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { V4_PER_INTERFACE = 2, V6_PER_INTERFACE = 1, LINK_LOCAL_PER_INTERFACE = 1 };

void interfaces_strip(const char *host, char ret[64])
{
    snprintf(ret, 64, "%.*s", (int)strcspn(host, "%"), host);
}

bool interfaces_is_same(const char *a, const char *b)
{
    char x[64], y[64];
    interfaces_strip(a, x);
    interfaces_strip(b, y);
    return strcmp(x, y) == 0;
}

static bool parse(const char *host, struct own_address *ret)
{
    char plain[64];
    interfaces_strip(host, plain);
    memset(ret, 0, sizeof(*ret));
    snprintf(ret->is.host, sizeof(ret->is.host), "%s", plain); /* zeros behind it: is compared */
    ret->prefix_bits = 128;
    if (inet_pton(AF_INET, plain, ret->bytes) == 1) {
        ret->family = AF_INET;
        ret->prefix_bits = 32;
        ret->is_link_local = ret->bytes[0] == 169 && ret->bytes[1] == 254;
        return true;
    }
    ret->family = AF_INET6;
    if (inet_pton(AF_INET6, plain, ret->bytes) != 1)
        return false;
    ret->is_link_local = ret->bytes[0] == 0xfe && (ret->bytes[1] & 0xc0) == 0x80;
    return true;
}

bool interfaces_is_link_local(const char *host)
{
    struct own_address a;
    return parse(host, &a) && a.family == AF_INET6 && a.is_link_local;
}

static uint8_t count_bits(const struct sockaddr *mask, uint8_t family)
{
    const uint8_t *bytes = family == AF_INET
                               ? (const uint8_t *)&((const struct sockaddr_in *)mask)->sin_addr
                               : ((const struct sockaddr_in6 *)mask)->sin6_addr.s6_addr;
    uint8_t n = 0, n_max = family == AF_INET ? 32 : 128;
    while (n < n_max && (bytes[n / 8] & (0x80 >> (n % 8))) != 0)
        n++;
    return n;
}

static bool take_entry(const struct ifaddrs *entry, struct own_address *ret)
{
    char host[64];
    if (entry->ifa_addr == NULL || entry->ifa_name == NULL || entry->ifa_netmask == NULL ||
        (entry->ifa_flags & IFF_UP) == 0 || (entry->ifa_flags & IFF_RUNNING) == 0 ||
        (entry->ifa_flags & IFF_LOOPBACK) != 0 || strlen(entry->ifa_name) >= sizeof(ret->is.name) ||
        uv_ip_name(entry->ifa_addr, host, sizeof(host)) != 0 || !parse(host, ret))
        return false;
    snprintf(ret->is.name, sizeof(ret->is.name), "%s", entry->ifa_name);
    ret->prefix_bits = count_bits(entry->ifa_netmask, ret->family);
    return true;
}

/* An IPv6 address is tentative for a second or two, until it is clear that nobody else has it:
 * the system lists it and lets nobody use it. */
static bool is_usable(const struct sockaddr *address)
{
    size_t len =
        address->sa_family == AF_INET ? sizeof(struct sockaddr_in) : sizeof(struct sockaddr_in6);
    int fd = socket(address->sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return true;
    bool is_ours = bind(fd, address, (socklen_t)len) == 0 || errno != EADDRNOTAVAIL;
    close(fd);
    return is_ours;
}

static bool has_enough(const struct own_address *list, uint32_t n, const struct own_address *a)
{
    uint32_t n_like = 0;
    for (uint32_t i = 0; i < n; i++)
        n_like += strcmp(list[i].is.name, a->is.name) == 0 && list[i].family == a->family &&
                  (a->family == AF_INET || list[i].is_link_local == a->is_link_local);
    return n_like >= (a->family == AF_INET ? V4_PER_INTERFACE
                      : a->is_link_local   ? LINK_LOCAL_PER_INTERFACE
                                           : V6_PER_INTERFACE);
}

/* What stands for hardware first, so that the many bridges of a computer with containers do not
 * push it out. */
static int compare(const void *a, const void *b)
{
    const struct own_address *x = a, *y = b;
    int x_virtual = x->is.kind == DEVICE_LINK_VIRTUAL,
        y_virtual = y->is.kind == DEVICE_LINK_VIRTUAL;
    if (x_virtual != y_virtual)
        return x_virtual - y_virtual;
    int rc = strcmp(x->is.name, y->is.name);
    return rc != 0                  ? rc
           : x->family != y->family ? x->family - y->family
                                    : memcmp(x->bytes, y->bytes, sizeof(x->bytes));
}

static void find_kinds(struct own_address *list, uint32_t n)
{
    static const struct device_options options;
    struct device_capabilities c;
    device_get_capabilities(&options, &c);
    for (uint32_t i = 0; i < n; i++)
        for (uint32_t k = 0; k < c.n_links; k++)
            if (strcmp(c.link[k].name, list[i].is.name) == 0)
                list[i].is.kind = (uint8_t)c.link[k].kind;
}

/* A kind is looked up once for an interface: it takes some files of the system. */
static void copy_kinds(const struct mesh *m, struct own_address *list, uint32_t n)
{
    bool is_any_new = false;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = 0;
        while (k < m->n_own && strcmp(m->own[k].is.name, list[i].is.name) != 0)
            k++;
        if (k < m->n_own)
            list[i].is.kind = m->own[k].is.kind;
        is_any_new = is_any_new || k == m->n_own;
    }
    if (is_any_new)
        find_kinds(list, n);
}

static uint32_t scan(struct mesh *m, bool wants_v6, struct own_address *list)
{
    struct ifaddrs *all;
    uint32_t n = 0;
    m->is_own_to_come = false;
    if (getifaddrs(&all) != 0)
        return 0;
    for (const struct ifaddrs *e = all; e != NULL && n < INTERFACES_MAX; e = e->ifa_next) {
        if (!take_entry(e, &list[n]) || (!wants_v6 && list[n].family != AF_INET) ||
            has_enough(list, n, &list[n]))
            continue;
        bool is_here = is_usable(e->ifa_addr);
        m->is_own_to_come |= !is_here;
        n += is_here;
    }
    freeifaddrs(all);
    copy_kinds(m, list, n);
    qsort(list, n, sizeof(list[0]), compare);
    return n < MESH_ADDRESSES_MAX ? n : MESH_ADDRESSES_MAX;
}

/* A node that listens on one address is reached there and nowhere else. */
static uint32_t take_only(const char *host, struct own_address *list)
{
    struct ifaddrs *all;
    struct own_address found;
    if (!parse(host, &list[0]))
        return 0;
    if (getifaddrs(&all) != 0)
        return 1;
    for (const struct ifaddrs *e = all; e != NULL; e = e->ifa_next)
        if (take_entry(e, &found) && found.family == list[0].family &&
            memcmp(found.bytes, list[0].bytes, sizeof(found.bytes)) == 0) {
            list[0] = found;
            find_kinds(list, 1);
        }
    freeifaddrs(all);
    return 1;
}

bool interfaces_refresh(struct mesh *m)
{
    struct own_address list[INTERFACES_MAX];
    const char *host = m->options.listen.host;
    uint32_t n = 0;
    if (m->options.addresses != NULL)
        for (; n < m->options.addresses->n; n++) {
            if (!parse(m->options.addresses->at[n].host, &list[n]))
                break;
            list[n].is = m->options.addresses->at[n];
        }
    else if (strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0)
        n = scan(m, host[0] == ':', list);
    else if (m->n_own == 1)
        return false;
    else
        n = take_only(host, list);
    bool is_changed = n != m->n_own;
    for (uint32_t i = 0; i < n; i++)
        is_changed = is_changed || memcmp(&list[i], &m->own[i], sizeof(list[i])) != 0;
    memcpy(m->own, list, n * sizeof(list[0]));
    m->n_own = n;
    return is_changed;
}

const struct own_address *interfaces_find(const struct mesh *m, const char *host)
{
    struct own_address a;
    if (!parse(host, &a))
        return NULL;
    for (uint32_t i = 0; i < m->n_own; i++)
        if (m->own[i].family == a.family && memcmp(m->own[i].bytes, a.bytes, sizeof(a.bytes)) == 0)
            return &m->own[i];
    return NULL;
}

static bool is_same_network(const struct own_address *ours, const struct own_address *a)
{
    uint8_t n = ours->prefix_bits;
    if (ours->family != a->family || n == 0 || memcmp(ours->bytes, a->bytes, n / 8) != 0)
        return false;
    return n % 8 == 0 ||
           ((ours->bytes[n / 8] ^ a->bytes[n / 8]) & (0xff << (8 - n % 8)) & 0xff) == 0;
}

const struct own_address *interfaces_find_near(const struct mesh *m, const char *host)
{
    struct own_address a;
    const struct own_address *best = NULL;
    if (!parse(host, &a))
        return NULL;
    for (uint32_t i = 0; i < m->n_own; i++)
        if (is_same_network(&m->own[i], &a) &&
            (best == NULL || m->own[i].prefix_bits > best->prefix_bits))
            best = &m->own[i];
    return best;
}
