#include "base/log.h"
#include "mesh/internal.h"

#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum { KEEPALIVE_S = 5, USER_TIMEOUT_MS = 10000, NOT_SENT_BYTES_MAX = 128 << 10 };
enum { RESERVED_MAX = 1 << 20 };

static void on_closed(uv_handle_t *handle)
{
    struct mesh_link *l = handle->data;
    mesh_link_gone(l->mesh, l);
}

void mesh_link_close(struct mesh_link *l, const char *reason)
{
    if (l->phase == LINK_CLOSING)
        return;
    snprintf(l->reason, sizeof(l->reason), "%s", reason);
    bool has_tls = l->phase > LINK_CONNECTING && l->channel.ssl != NULL;
    l->phase = LINK_CLOSING;
    link_drop_queue(l);
    if (has_tls && l->flying_bytes == 0 && !l->is_closed) {
        channel_shut_down(&l->channel);
        uv_buf_t span = uv_buf_init(l->channel.out.data, (unsigned)l->channel.out.len);
        if (span.len > 0)
            uv_try_write((uv_stream_t *)&l->tcp, &span, 1);
    }
    uv_close((uv_handle_t *)&l->tcp, on_closed);
}

void link_close_by_error(struct mesh_link *l, int status)
{
    l->is_closed = status == UV_EOF || status == UV_ECONNRESET || status == UV_EPIPE ||
                   status == UV_ECONNREFUSED || status == UV_ECONNABORTED;
    mesh_link_close(l, status == UV_EOF ? "peer closed the link" : uv_strerror(status));
}

struct mesh_link *link_new(struct mesh *m, bool is_dialled)
{
    struct mesh_link *l = calloc(1, sizeof(*l));
    if (l == NULL || uv_tcp_init(m->loop, &l->tcp) != 0) {
        free(l);
        return NULL;
    }
    l->mesh = m;
    l->tcp.data = l;
    l->is_dialled = is_dialled;
    l->opened_ms = l->heard_ms = uv_now(m->loop);
    buf_init(&l->in, LIMIT_CONTROL_FRAME_BYTES + MESH_HEADER_BYTES);
    buf_init(&l->parts, LIMIT_CONTROL_FRAME_BYTES + MESH_HEADER_BYTES);
    l->next = m->links;
    m->links = l;
    m->n_links++;
    m->n_handles++;
    return l;
}

const char *link_label(const struct mesh_link *l, char text[TEXT_ADDRESS_BYTES])
{
    struct mesh_address a = {.port = l->remote_port};
    if (l->hello.name[0] != '\0') {
        snprintf(text, TEXT_ADDRESS_BYTES, "%s", l->hello.name);
        return text;
    }
    memcpy(a.host, l->remote_host, sizeof(a.host));
    return address_text(&a, text);
}

/* ---- receiving ---- */

static int take_part(struct mesh_link *l, const struct mesh_message *m, struct error *err);

static int take_message(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    if (l->phase == LINK_PROBING)
        return probe_take(l, m, err);
    if (l->phase != LINK_UP)
        return greeting_take(l, m, err);
    if (m->type < MESH_TRUST)
        return error_set(err, E_PROTOCOL, "second greeting: message of type %d", m->type);
    if (m->type == MESH_TRUST)
        return members_take_trust(l, m, err);
    if (m->type <= MESH_BULK_ACK)
        return measure_take(l, m, err);
    if (m->type == MESH_PART)
        return take_part(l, m, err);
    if (m->type == MESH_ADDRESSES || m->type == MESH_PATHS)
        return paths_take(l, m, err);
    if (m->type == MESH_CLUSTER && m->len > MESH_CLUSTER_BYTES_MAX)
        return error_set(err, E_PROTOCOL, "CLUSTER message of %zu bytes (at most %d)", m->len,
                         MESH_CLUSTER_BYTES_MAX);
    return l->mesh->events.message(l->mesh->events.self, l, m, err);
}

/* A long frame comes in pieces, so that others may come between. It holds what the owner gets. */
static int take_part(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct mesh_part part;
    struct mesh_message whole;
    int rc = mesh_decode_part(m, &part, err);
    if (rc != 0)
        return rc;
    if (buf_append(&l->parts, part.data, part.len) != 0)
        return error_set(err, l->parts.error, "a frame in parts: %s",
                         l->parts.error == E_LIMIT ? "too long" : "out of memory");
    if (!part.is_last)
        return 0;
    struct buf frame = l->parts;
    buf_init(&l->parts, frame.max_len);
    int64_t n = mesh_message_next(frame.data, frame.len, LIMIT_CONTROL_FRAME_BYTES, &whole, err);
    if (n < 0)
        rc = (int)n;
    else if (n == 0 || (size_t)n != frame.len)
        rc = error_set(err, E_PROTOCOL, "PART messages do not make one whole frame");
    else if (whole.type < MESH_CLUSTER || whole.type > MESH_EVENT)
        rc = error_set(err, E_PROTOCOL, "PART messages of a frame of type %d", whole.type);
    else
        rc = take_message(l, &whole, err);
    buf_done(&frame);
    return rc;
}

static void close_for(struct mesh_link *l, int rc, const struct error *err)
{
    if (l->phase == LINK_UP || l->phase == LINK_PROBING) {
        l->mesh->stats.n_malformed += rc == E_PROTOCOL || rc == E_LIMIT;
        mesh_link_close(l, err->message);
    } else {
        link_refuse(l, rc == E_LIMIT ? MESH_REFUSED_OVERSIZE : MESH_REFUSED_GARBAGE, "%s",
                    err->message);
    }
}

/* Takes whole frames from the front. Returns how many bytes that were. */
static size_t take_frames(struct mesh_link *l, const char *data, size_t len)
{
    struct error err = {0};
    size_t offset = 0;
    while (l->phase != LINK_CLOSING) {
        struct mesh_message m;
        size_t len_max = l->phase == LINK_PROBING ? PROBE_FRAME_BYTES_MAX
                         : l->is_member           ? LIMIT_CONTROL_FRAME_BYTES
                                                  : MESH_STRANGER_BYTES_MAX;
        int64_t n = mesh_message_next(data + offset, len - offset, len_max, &m, &err);
        if (n == 0)
            break;
        int rc = n < 0 ? (int)n : take_message(l, &m, &err);
        if (rc != 0) {
            close_for(l, rc, &err);
            break;
        }
        offset += (size_t)n;
    }
    return offset;
}

/* Room for the frame that has begun, so that it is not copied again and again while it grows. What
 * a header merely claims costs at most a megabyte. */
static void reserve_for_frame(struct mesh_link *l, const char *data, size_t len)
{
    struct cursor c;
    cursor_init(&c, data, len);
    size_t claimed = (size_t)cursor_u32(&c) + MESH_HEADER_BYTES;
    if (!c.failed && claimed > len && l->is_member)
        buf_reserve(&l->in, claimed < RESERVED_MAX ? claimed : RESERVED_MAX);
}

/* Most reads bring whole frames: then nothing is kept, and an idle link holds no buffer. */
static void take_plain(struct mesh_link *l, const char *data, size_t len)
{
    if (l->in.len == 0) {
        size_t n = take_frames(l, data, len);
        data += n;
        len -= n;
        if (len == 0)
            return;
    }
    if (l->phase == LINK_CLOSING)
        return;
    if (l->in.len == 0)
        reserve_for_frame(l, data, len);
    if (buf_append(&l->in, data, len) != 0) {
        mesh_link_close(l, "out of memory");
        return;
    }
    buf_consume(&l->in, take_frames(l, l->in.data, l->in.len));
    if (l->in.len == 0)
        buf_done(&l->in);
}

static bool shake_hands(struct mesh_link *l)
{
    struct error err = {0};
    enum mesh_refusal kind;
    int rc = channel_handshake(&l->channel, &kind, &err);
    link_flush(l);
    if (l->phase == LINK_CLOSING)
        return false;
    if (rc < 0)
        link_refuse(l, kind, "%s", err.message);
    if (rc <= 0)
        return false;
    greeting_start(l);
    return l->phase != LINK_CLOSING;
}

static void take_bytes(struct mesh_link *l, const char *data, size_t len)
{
    struct error err = {0};
    l->channel.in = data;
    l->channel.in_len = len;
    if (l->phase == LINK_TLS && !shake_hands(l))
        return;
    while (l->phase != LINK_CLOSING) {
        int64_t n = channel_read(&l->channel, l->mesh->plain_bytes, LINK_READ_BYTES, &err);
        if (n == 0)
            break;
        if (n == CHANNEL_CLOSED) {
            link_close_by_error(l, UV_EOF);
        } else if (n < 0 && l->is_dialled && l->phase != LINK_UP) {
            /* The other side refuses our certificate: with TLS 1.3 the one who dials hears of it
             * only when it believes that the handshake is over. */
            mesh_link_close(l, err.message);
        } else if (n < 0) {
            close_for(l, E_PROTOCOL, &err);
        } else {
            take_plain(l, l->mesh->plain_bytes, (size_t)n);
        }
    }
    link_flush(l); /* answers of TLS itself */
    l->channel.in = NULL;
    l->channel.in_len = 0;
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret)
{
    struct mesh_link *l = handle->data;
    (void)suggested;
    *ret = uv_buf_init(l->mesh->read_bytes, LINK_READ_BYTES);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *bytes)
{
    struct mesh_link *l = stream->data;
    if (l->phase == LINK_CLOSING || n == 0)
        return;
    if (n < 0) {
        link_close_by_error(l, (int)n);
        return;
    }
    l->heard_ms = uv_now(l->mesh->loop);
    take_bytes(l, bytes->base, (size_t)n);
}

/* ---- life ---- */

/* A socket for both families shows IPv4 addresses in a dress of IPv6; a link-local address means
 * nothing without its interface. */
static void note_v6(const struct sockaddr_in6 *v6, char host[64])
{
    char interface[UV_IF_NAMESIZE];
    size_t size = sizeof(interface);
    if (IN6_IS_ADDR_V4MAPPED(&v6->sin6_addr)) {
        struct sockaddr_in v4 = {.sin_family = AF_INET};
        memcpy(&v4.sin_addr, v6->sin6_addr.s6_addr + 12, 4);
        uv_ip4_name(&v4, host, 64);
        return;
    }
    uv_ip6_name(v6, host, 64);
    size_t len = strlen(host);
    if (IN6_IS_ADDR_LINKLOCAL(&v6->sin6_addr) &&
        uv_if_indextoname(v6->sin6_scope_id, interface, &size) == 0 && len + 1 + size < 64)
        snprintf(host + len, 64 - len, "%%%s", interface);
}

static void note_address(const struct sockaddr_storage *address, char host[64], uint16_t *ret_port)
{
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
        note_v6(v6, host);
        *ret_port = ntohs(v6->sin6_port);
    } else {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        uv_ip4_name(v4, host, 64);
        *ret_port = ntohs(v4->sin_port);
    }
}

/* A dead peer is noticed even while nothing is read, and what is queued in the kernel is bounded,
 * so that a heartbeat waits behind little. */
static void set_socket_options(struct mesh_link *l)
{
    int fd;
    uv_tcp_nodelay(&l->tcp, 1);
    uv_tcp_keepalive(&l->tcp, 1, KEEPALIVE_S);
    if (uv_fileno((uv_handle_t *)&l->tcp, &fd) != 0)
        return;
#ifdef TCP_USER_TIMEOUT
    unsigned timeout_ms = USER_TIMEOUT_MS;
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout_ms, sizeof(timeout_ms));
#endif
#ifdef TCP_NOTSENT_LOWAT
    int unsent = NOT_SENT_BYTES_MAX;
    setsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &unsent, sizeof(unsent));
#endif
}

void link_start(struct mesh_link *l)
{
    struct sockaddr_storage address = {0};
    int len = sizeof(address);
    uint16_t port;
    int rc = uv_tcp_getsockname(&l->tcp, (struct sockaddr *)&address, &len);
    if (rc == 0)
        note_address(&address, l->local_host, &port);
    len = sizeof(address);
    if (rc == 0)
        rc = uv_tcp_getpeername(&l->tcp, (struct sockaddr *)&address, &len);
    if (rc == 0) {
        note_address(&address, l->remote_host, &l->remote_port);
        set_socket_options(l);
        rc = uv_read_start((uv_stream_t *)&l->tcp, on_alloc, on_read);
    }
    if (rc != 0) {
        link_close_by_error(l, rc);
        return;
    }
    if (channel_init(&l->channel, l->mesh->context, l->is_dialled) != 0) {
        mesh_link_close(l, "out of memory");
        return;
    }
    l->phase = LINK_TLS;
    l->opened_ms = l->heard_ms = uv_now(l->mesh->loop);
    if (l->is_dialled)
        shake_hands(l);
}

static void on_connected(uv_connect_t *request, int status)
{
    struct mesh_link *l = request->data;
    if (l->phase == LINK_CLOSING)
        return;
    if (status != 0)
        link_close_by_error(l, status);
    else
        link_start(l);
}

int link_dial(struct mesh_link *l, const struct mesh_address *address)
{
    struct sockaddr_storage a = {0};
    int rc = uv_ip4_addr(address->host, address->port, (struct sockaddr_in *)&a);
    if (rc != 0)
        rc = uv_ip6_addr(address->host, address->port, (struct sockaddr_in6 *)&a);
    snprintf(l->remote_host, sizeof(l->remote_host), "%s", address->host);
    l->remote_port = address->port;
    l->connect.data = l;
    if (rc == 0)
        rc = uv_tcp_connect(&l->connect, &l->tcp, (const struct sockaddr *)&a, on_connected);
    if (rc != 0)
        link_close_by_error(l, rc);
    return rc;
}

void link_tick(struct mesh_link *l, uint64_t now_ms)
{
    char text[128];
    if (l->phase == LINK_CLOSING)
        return;
    if (l->is_probe) {
        probe_tick(l, now_ms);
        return;
    }
    if (l->phase < LINK_ASKING && now_ms - l->opened_ms > MESH_GREETING_MS) {
        if (l->is_dialled)
            mesh_link_close(l, "no greeting in time");
        else
            link_refuse(l, MESH_REFUSED_SLOW, "no greeting in %d ms", MESH_GREETING_MS);
        return;
    }
    uint64_t silent_ms = now_ms - l->heard_ms;
    if (silent_ms > MESH_SILENCE_LOST_MS) {
        snprintf(text, sizeof(text), "silent %llu ms (limit %d)", (unsigned long long)silent_ms,
                 MESH_SILENCE_LOST_MS);
        mesh_link_close(l, text);
        return;
    }
    if (l->phase == LINK_ASKING)
        pairing_tick(l, now_ms);
    if (l->phase == LINK_ASKING || l->phase == LINK_UP)
        measure_tick(l, now_ms);
}

const struct mesh_hello *mesh_link_hello(const struct mesh_link *l)
{
    return &l->hello;
}

struct link_figures mesh_link_figures(const struct mesh_link *l)
{
    return paths_figures(l);
}

struct link_figures mesh_link_taken(const struct mesh_link *l)
{
    return paths_taken_figures(l);
}

const char *mesh_link_local_host(const struct mesh_link *l)
{
    return l->local_host;
}

const char *mesh_link_remote_host(const struct mesh_link *l)
{
    return l->remote_host;
}

uint64_t mesh_link_silent_ms(const struct mesh_link *l)
{
    return uv_now(l->mesh->loop) - l->heard_ms;
}
