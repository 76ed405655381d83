/* Sockets of the data plane: addresses, options, and what the system knows of a path. */
#include "comm/tcp.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Asked for as socket buffers, so that a started all-reduce leaves while its caller computes. */
enum { SOCKET_BUFFER_BYTES = 4 << 20 };
/* Ends a quiet connection after 5 s in which three probes found no answer. */
enum { KEEPALIVE_IDLE_S = 2, KEEPALIVE_INTERVAL_S = 1, KEEPALIVE_PROBES = 3 };
/* Repeated so often without an answer, bytes do not arrive. The pauses double: on a network of
 * short trips (the system's least pause is 0.2 s) this is after 3 s. */
enum { PATH_REPEATS = 4 };

/* ---- addresses ---- */

void tcp_address_text(const struct sockaddr_storage *a, char out[ADDRESS_TEXT_BYTES])
{
    char host[INET6_ADDRSTRLEN] = "?";
    if (a->ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)(const void *)a;
        inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof(host));
        snprintf(out, ADDRESS_TEXT_BYTES, "[%s]:%u", host, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)(const void *)a;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof(host));
        snprintf(out, ADDRESS_TEXT_BYTES, "%s:%u", host, ntohs(in->sin_port));
    }
}

int tcp_address_parse(const char *host, uint16_t port, struct sockaddr_storage *ret_address,
                      socklen_t *ret_len, struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM,
                             .ai_flags = AI_NUMERICHOST | AI_NUMERICSERV};
    struct addrinfo *found = NULL;
    char service[8];
    snprintf(service, sizeof(service), "%u", port);
    int r = host[0] == '\0' ? EAI_NONAME : getaddrinfo(host, service, &hints, &found);
    if (r != 0)
        return error_set(err, E_INVALID, "'%.64s' is not a numeric IPv4 or IPv6 address", host);
    memset(ret_address, 0, sizeof(*ret_address));
    memcpy(ret_address, found->ai_addr, found->ai_addrlen);
    *ret_len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static bool is_same_host(const struct sockaddr_storage *a, const struct sockaddr_storage *b)
{
    struct sockaddr_in x, y;
    struct sockaddr_in6 x6, y6;
    if (a->ss_family != b->ss_family)
        return false;
    if (a->ss_family == AF_INET6) {
        memcpy(&x6, a, sizeof(x6));
        memcpy(&y6, b, sizeof(y6));
        return memcmp(&x6.sin6_addr, &y6.sin6_addr, sizeof(x6.sin6_addr)) == 0;
    }
    memcpy(&x, a, sizeof(x));
    memcpy(&y, b, sizeof(y));
    return memcmp(&x.sin_addr, &y.sin_addr, sizeof(x.sin_addr)) == 0;
}

bool tcp_is_neighbour(int fd)
{
    struct sockaddr_storage ours = {0}, theirs = {0};
    socklen_t our_len = sizeof(ours), their_len = sizeof(theirs);
    return fd >= 0 && getsockname(fd, (struct sockaddr *)&ours, &our_len) == 0 &&
           getpeername(fd, (struct sockaddr *)&theirs, &their_len) == 0 &&
           is_same_host(&ours, &theirs);
}

/* ---- options, and what the system knows ---- */

int tcp_set_nonblocking(int fd)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
        return E_IO;
    return 0;
}

static void set_option(int fd, int level, int name, int value)
{
    setsockopt(fd, level, name, &value, sizeof(value));
}

/* Setting a buffer's size switches the kernel's own tuning off, which is the better choice where
 * the system's limit for set sizes is low (a common default is 208 KiB, while tuning goes to
 * megabytes). So it is tried on a socket that nobody uses. */
static bool buffers_may_grow(int family, int name)
{
    int fd = socket(family, SOCK_STREAM, 0), value = SOCKET_BUFFER_BYTES;
    if (fd < 0)
        return false;
    socklen_t len = sizeof(value);
    bool big = setsockopt(fd, SOL_SOCKET, name, &value, len) == 0 &&
               getsockopt(fd, SOL_SOCKET, name, &value, &len) == 0 && value >= SOCKET_BUFFER_BYTES;
    close(fd);
    return big;
}

void tcp_tune(int fd)
{
    struct sockaddr_storage a = {0};
    socklen_t len = sizeof(a);
    if (getsockname(fd, (struct sockaddr *)&a, &len) == 0) {
        if (buffers_may_grow(a.ss_family, SO_SNDBUF))
            set_option(fd, SOL_SOCKET, SO_SNDBUF, SOCKET_BUFFER_BYTES);
        if (buffers_may_grow(a.ss_family, SO_RCVBUF))
            set_option(fd, SOL_SOCKET, SO_RCVBUF, SOCKET_BUFFER_BYTES);
    }
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    /* A rank that only waits learns of a path that no longer carries packets: with nothing under
     * way the system asks, and the peer's system answers whatever the peer itself does. */
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
#ifdef TCP_KEEPIDLE
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, KEEPALIVE_IDLE_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, KEEPALIVE_PROBES);
#endif
}

/* TCP_USER_TIMEOUT would say so too, but it also ends the connection to a peer whose system answers
 * and only has no room, because the peer computes or is stopped; and it lets a single lost probe of
 * the keep-alive decide. */
bool tcp_path_is_dead(int fd)
{
#ifdef __linux__
    struct tcp_info info = {0};
    socklen_t len = sizeof(info);
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &len) == 0 && info.tcpi_unacked > 0 &&
           info.tcpi_retransmits >= PATH_REPEATS;
#else
    (void)fd;
    return false;
#endif
}
