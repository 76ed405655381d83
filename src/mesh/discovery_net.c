/* See discovery_net.h. */
#include "mesh/discovery_net.h"

#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#endif

static const uint8_t GROUP_V4[4] = {224, 0, 0, 251};
static const uint8_t GROUP_V6[16] = {0xff, 0x02, [15] = 0xfb};

/* ---- interfaces ---- */

static bool is_wanted(const struct ifaddrs *entry, bool is_on_loopback)
{
    unsigned flags = entry->ifa_flags;
    if ((flags & IFF_UP) == 0 || (flags & IFF_RUNNING) == 0)
        return false;
    if (is_on_loopback || (flags & IFF_LOOPBACK) != 0)
        return is_on_loopback && (flags & IFF_LOOPBACK) != 0;
    return (flags & IFF_MULTICAST) != 0 && (flags & IFF_POINTOPOINT) == 0;
}

static struct net_link *find_link(struct net_link *links, uint32_t *n_links, const char *name)
{
    for (uint32_t i = 0; i < *n_links; i++)
        if (strcmp(links[i].name, name) == 0)
            return &links[i];
    uint32_t index = if_nametoindex(name);
    if (index == 0 || *n_links == DISCOVERY_LINKS_MAX || strlen(name) >= IF_NAMESIZE)
        return NULL;
    struct net_link *link = &links[(*n_links)++];
    memset(link, 0, sizeof(*link));
    link->index = index;
    memcpy(link->name, name, strlen(name) + 1);
    return link;
}

static void take_address(struct net_link *link, const struct sockaddr *address)
{
    if (link->n_addresses == DISCOVERY_LINK_ADDRESSES_MAX)
        return;
    struct sockaddr_storage *to = &link->address[link->n_addresses];
    memset(to, 0, sizeof(*to));
    to->ss_family = address->sa_family;
    if (address->sa_family == AF_INET) {
        ((struct sockaddr_in *)to)->sin_addr = ((const struct sockaddr_in *)address)->sin_addr;
        link->has_v4 = true;
    } else {
        ((struct sockaddr_in6 *)to)->sin6_addr = ((const struct sockaddr_in6 *)address)->sin6_addr;
        link->has_v6 = true;
    }
    link->n_addresses++;
}

static int compare_addresses(const void *a, const void *b)
{
    return memcmp(a, b, sizeof(struct sockaddr_storage));
}

uint32_t net_scan(bool is_on_loopback, struct net_link ret_links[DISCOVERY_LINKS_MAX])
{
    struct ifaddrs *all;
    uint32_t n_links = 0;
    if (getifaddrs(&all) != 0)
        return 0;
    for (const struct ifaddrs *entry = all; entry != NULL; entry = entry->ifa_next) {
        if (entry->ifa_addr == NULL || entry->ifa_name == NULL || !is_wanted(entry, is_on_loopback))
            continue;
        int family = entry->ifa_addr->sa_family;
        /* IPv6 loopback has no multicast route on most systems; IPv4 does there. */
        if (family != AF_INET && (family != AF_INET6 || (entry->ifa_flags & IFF_LOOPBACK) != 0))
            continue;
        struct net_link *link = find_link(ret_links, &n_links, entry->ifa_name);
        if (link != NULL)
            take_address(link, entry->ifa_addr);
    }
    freeifaddrs(all);
    for (uint32_t i = 0; i < n_links; i++)
        qsort(ret_links[i].address, ret_links[i].n_addresses, sizeof(ret_links[i].address[0]),
              compare_addresses);
    return n_links;
}

/* ---- sockets ---- */

static int set(int fd, int level, int option, int v)
{
    return setsockopt(fd, level, option, &v, sizeof(v)) == 0 ? 0 : -errno;
}

/* Other responders on this computer set both of the first two, or the first one. */
static int configure(int fd, int family)
{
    int rc = set(fd, SOL_SOCKET, SO_REUSEADDR, 1);
#ifdef SO_REUSEPORT
    if (rc == 0)
        rc = set(fd, SOL_SOCKET, SO_REUSEPORT, 1);
#endif
    if (rc == 0 && family == AF_INET) {
        rc = set(fd, IPPROTO_IP, IP_PKTINFO, 1);
        rc = rc == 0 ? set(fd, IPPROTO_IP, IP_MULTICAST_TTL, 255) : rc;
        rc = rc == 0 ? set(fd, IPPROTO_IP, IP_MULTICAST_LOOP, 1) : rc;
#ifdef IP_MULTICAST_ALL
        rc = rc == 0 ? set(fd, IPPROTO_IP, IP_MULTICAST_ALL, 0) : rc;
#endif
    } else if (rc == 0) {
        rc = set(fd, IPPROTO_IPV6, IPV6_V6ONLY, 1);
        rc = rc == 0 ? set(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, 1) : rc;
        rc = rc == 0 ? set(fd, IPPROTO_IPV6, IPV6_MULTICAST_HOPS, 255) : rc;
        rc = rc == 0 ? set(fd, IPPROTO_IPV6, IPV6_MULTICAST_LOOP, 1) : rc;
    }
    return rc;
}

int net_open(int family, int *ret_fd, struct error *err)
{
    const char *family_name = family == AF_INET ? "IPv4" : "IPv6";
    int fd = socket(family, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_set(err, -errno, "mDNS over %s: cannot make a socket: %s", family_name,
                         strerror(errno));
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(DISCOVERY_PORT)};
    struct sockaddr_in6 in6 = {.sin6_family = AF_INET6, .sin6_port = htons(DISCOVERY_PORT)};
    int rc = configure(fd, family);
    if (rc == 0 && (family == AF_INET ? bind(fd, (struct sockaddr *)&in, sizeof(in))
                                      : bind(fd, (struct sockaddr *)&in6, sizeof(in6))) != 0)
        rc = -errno;
    if (rc != 0) {
        close(fd);
        return error_set(err, rc,
                         "mDNS over %s: cannot share UDP port %d: %s; another program on this "
                         "computer may hold it for itself",
                         family_name, DISCOVERY_PORT, strerror(-rc));
    }
    *ret_fd = fd;
    return 0;
}

static int change_membership(int fd, int family, const struct net_link *link, bool is_joining)
{
    int rc;
    if (family == AF_INET) {
        struct ip_mreqn m = {.imr_ifindex = (int)link->index};
        memcpy(&m.imr_multiaddr, GROUP_V4, sizeof(GROUP_V4));
        rc = setsockopt(fd, IPPROTO_IP, is_joining ? IP_ADD_MEMBERSHIP : IP_DROP_MEMBERSHIP, &m,
                        sizeof(m));
    } else {
        struct ipv6_mreq m = {.ipv6mr_interface = link->index};
        memcpy(&m.ipv6mr_multiaddr, GROUP_V6, sizeof(GROUP_V6));
        rc = setsockopt(fd, IPPROTO_IPV6, is_joining ? IPV6_JOIN_GROUP : IPV6_LEAVE_GROUP, &m,
                        sizeof(m));
    }
    return rc == 0 ? 0 : -errno;
}

int net_join(int fd, int family, const struct net_link *link)
{
    int rc = change_membership(fd, family, link, true);
    return rc == -EADDRINUSE ? 0 : rc; /* it is still there from before */
}

void net_leave(int fd, int family, const struct net_link *link)
{
    change_membership(fd, family, link, false);
}

/* ---- packets ---- */

union control { /* for one ancillary message of either family, aligned */
    struct cmsghdr header;
    char v4[CMSG_SPACE(sizeof(struct in_pktinfo))];
    char v6[CMSG_SPACE(sizeof(struct in6_pktinfo))];
    char room[256];
};

static const struct sockaddr_in *first_v4(const struct net_link *link)
{
    for (uint32_t i = 0; i < link->n_addresses; i++)
        if (link->address[i].ss_family == AF_INET)
            return (const struct sockaddr_in *)&link->address[i];
    return NULL;
}

int net_send(int fd, int family, const struct net_link *link, const void *data, size_t n)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_port = htons(DISCOVERY_PORT)};
    struct sockaddr_in6 in6 = {
        .sin6_family = AF_INET6, .sin6_port = htons(DISCOVERY_PORT), .sin6_scope_id = link->index};
    memcpy(&in.sin_addr, GROUP_V4, sizeof(GROUP_V4));
    memcpy(&in6.sin6_addr, GROUP_V6, sizeof(GROUP_V6));
    union control control;
    memset(&control, 0, sizeof(control));
    struct iovec piece = {.iov_base = (void *)(uintptr_t)data, .iov_len = n};
    struct msghdr m = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = &control};
    if (family == AF_INET) {
        struct in_pktinfo info = {.ipi_ifindex = (int)link->index};
        const struct sockaddr_in *from = first_v4(link);
        if (from != NULL)
            info.ipi_spec_dst = from->sin_addr;
        control.header = (struct cmsghdr){
            .cmsg_level = IPPROTO_IP, .cmsg_type = IP_PKTINFO, .cmsg_len = CMSG_LEN(sizeof(info))};
        memcpy(CMSG_DATA(&control.header), &info, sizeof(info));
        m.msg_controllen = CMSG_SPACE(sizeof(info));
        m.msg_name = &in;
        m.msg_namelen = sizeof(in);
    } else {
        struct in6_pktinfo info = {.ipi6_ifindex = link->index};
        control.header = (struct cmsghdr){.cmsg_level = IPPROTO_IPV6,
                                          .cmsg_type = IPV6_PKTINFO,
                                          .cmsg_len = CMSG_LEN(sizeof(info))};
        memcpy(CMSG_DATA(&control.header), &info, sizeof(info));
        m.msg_controllen = CMSG_SPACE(sizeof(info));
        m.msg_name = &in6;
        m.msg_namelen = sizeof(in6);
    }
    return sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Only what was sent to the group, from the port: anything else could come from beyond the link. */
static bool is_multicast(struct msghdr *m, int family, struct packet_source *ret_from)
{
    for (struct cmsghdr *c = CMSG_FIRSTHDR(m); c != NULL; c = CMSG_NXTHDR(m, c)) {
        if (family == AF_INET && c->cmsg_level == IPPROTO_IP && c->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            ret_from->interface_index = (uint32_t)info.ipi_ifindex;
            return memcmp(&info.ipi_addr, GROUP_V4, sizeof(GROUP_V4)) == 0 &&
                   ((struct sockaddr_in *)&ret_from->address)->sin_port == htons(DISCOVERY_PORT);
        }
        if (family == AF_INET6 && c->cmsg_level == IPPROTO_IPV6 && c->cmsg_type == IPV6_PKTINFO) {
            struct in6_pktinfo info;
            memcpy(&info, CMSG_DATA(c), sizeof(info));
            ret_from->interface_index = info.ipi6_ifindex;
            return memcmp(&info.ipi6_addr, GROUP_V6, sizeof(GROUP_V6)) == 0 &&
                   ((struct sockaddr_in6 *)&ret_from->address)->sin6_port == htons(DISCOVERY_PORT);
        }
    }
    return false;
}

int64_t net_receive(int fd, int family, uint8_t data[DNS_PACKET_BYTES_MAX],
                    struct packet_source *ret_from)
{
    union control control;
    memset(ret_from, 0, sizeof(*ret_from));
    struct iovec piece = {.iov_base = data, .iov_len = DNS_PACKET_BYTES_MAX};
    struct msghdr m = {.msg_iov = &piece,
                       .msg_iovlen = 1,
                       .msg_control = &control,
                       .msg_controllen = sizeof(control),
                       .msg_name = &ret_from->address,
                       .msg_namelen = sizeof(ret_from->address)};
    ssize_t n = recvmsg(fd, &m, MSG_DONTWAIT);
    if (n < 0)
        return -errno;
    if ((m.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || !is_multicast(&m, family, ret_from))
        return 0;
    return n;
}

/* ---- changes ---- */

int net_watch_open(void)
{
#ifdef __linux__
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_NONBLOCK | SOCK_CLOEXEC, NETLINK_ROUTE);
    struct sockaddr_nl address = {.nl_family = AF_NETLINK,
                                  .nl_groups =
                                      RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR};
    if (fd >= 0 && bind(fd, (struct sockaddr *)&address, sizeof(address)) != 0) {
        close(fd);
        fd = -1;
    }
    return fd;
#else
    return -1;
#endif
}

void net_watch_drain(int fd)
{
    char data[4096];
    /* Also past ENOBUFS, which says that some were lost: that there were any is all we want. */
    for (int i = 0; i < 64; i++)
        if (recv(fd, data, sizeof(data), MSG_DONTWAIT) < 0 && errno != ENOBUFS)
            break;
}
