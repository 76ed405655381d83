#include "base/log.h"
#include "base/rng.h"
#include "mesh/internal.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct write { /* one uv_write under way; the bytes follow it */
    uv_write_t request;
    char *data;
};

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
    l->phase = LINK_CLOSING;
    uv_close((uv_handle_t *)&l->tcp, on_closed);
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
    l->next = m->links;
    m->links = l;
    m->n_links++;
    m->n_handles++;
    return l;
}

static void on_written(uv_write_t *request, int status)
{
    struct write *w = (struct write *)request;
    struct mesh_link *l = request->data;
    if (status != 0 && status != UV_ECANCELED)
        mesh_link_close(l, uv_strerror(status));
    free(w->data);
    free(w);
}

int mesh_link_send(struct mesh_link *l, struct buf *frames)
{
    int rc = frames->error;
    if (rc != 0) {
        mesh_link_close(l, "a message to this peer could not be built: out of memory or too long");
        buf_done(frames);
        return rc;
    }
    if (l->phase == LINK_CLOSING || frames->len == 0) {
        buf_done(frames);
        return l->phase == LINK_CLOSING ? E_UNAVAILABLE : 0;
    }
    if (uv_stream_get_write_queue_size((uv_stream_t *)&l->tcp) > LIMIT_CONTROL_FRAME_BYTES) {
        mesh_link_close(l, "peer reads too slowly");
        buf_done(frames);
        return E_LIMIT;
    }
    struct write *w = malloc(sizeof(*w));
    if (w == NULL) {
        mesh_link_close(l, "out of memory");
        buf_done(frames);
        return E_NOMEM;
    }
    w->data = frames->data;
    w->request.data = l;
    uv_buf_t span = uv_buf_init(frames->data, (unsigned)frames->len);
    buf_init(frames, frames->max_len); /* its bytes are the write's now */
    rc = uv_write(&w->request, (uv_stream_t *)&l->tcp, &span, 1, on_written);
    if (rc != 0) {
        free(w->data);
        free(w);
        mesh_link_close(l, uv_strerror(rc));
    }
    return rc != 0 ? E_UNAVAILABLE : 0;
}

/* What a side proves: that it knows the secret, for this pair of nodes and nonces, as this side. */
static void compute_proof(const struct mesh_options *o, const struct node_id *prover,
                          const uint8_t prover_nonce[32], const struct node_id *checker,
                          const uint8_t checker_nonce[32], uint8_t ret_mac[32])
{
    uint8_t text[16 + 32 + 16 + 32];
    unsigned len = 32;
    memcpy(text, prover->bytes, 16);
    memcpy(text + 16, prover_nonce, 32);
    memcpy(text + 48, checker->bytes, 16);
    memcpy(text + 64, checker_nonce, 32);
    if (HMAC(EVP_sha256(), o->secret, (int)o->secret_len, text, sizeof(text), ret_mac, &len) ==
        NULL)
        rng_system(ret_mac, 32); /* out of memory: a proof that no one accepts */
}

static void send_hello(struct mesh_link *l)
{
    struct mesh_hello hello = l->mesh->options.self;
    struct mesh_heartbeat now = {0};
    struct buf b;
    l->mesh->events.heartbeat(l->mesh->events.self, &now);
    hello.version = MESH_PROTOCOL_VERSION;
    hello.memory_bytes_free = now.memory_bytes_free;
    hello.has_secret = l->mesh->options.secret != NULL;
    memcpy(hello.nonce, l->nonce, sizeof(hello.nonce));
    buf_init(&b, MESH_GREETING_BYTES_MAX);
    mesh_encode_hello(&b, &hello);
    mesh_link_send(l, &b);
}

static void send_proof(struct mesh_link *l)
{
    const struct mesh_options *o = &l->mesh->options;
    struct mesh_proof proof;
    struct buf b;
    compute_proof(o, &o->self.id, l->nonce, &l->hello.id, l->hello.nonce, proof.mac);
    buf_init(&b, MESH_GREETING_BYTES_MAX);
    mesh_encode_proof(&b, &proof);
    mesh_link_send(l, &b);
}

static void finish_greeting(struct mesh_link *l)
{
    if (!mesh_link_ready(l->mesh, l))
        return;
    l->phase = LINK_UP;
    l->is_announced = true;
    l->mesh->events.link_up(l->mesh->events.self, l);
}

static int take_hello(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    const struct mesh_options *o = &l->mesh->options;
    int rc = mesh_decode_hello(m, &l->hello, err);
    if (rc != 0)
        return rc;
    l->has_hello = true;
    if (l->hello.has_secret != (o->secret != NULL))
        return error_set(err, E_PROTOCOL, "%s has %s shared secret and this node has %s",
                         l->hello.name, l->hello.has_secret ? "a" : "no",
                         o->secret != NULL ? "one" : "none");
    l->heartbeat.memory_bytes_free = l->hello.memory_bytes_free;
    /* A node that listens on all addresses is reached where it came from. */
    struct mesh_address *addresses[] = {&l->hello.api, &l->hello.mesh};
    for (int i = 0; i < 2; i++)
        if (strcmp(addresses[i]->host, "0.0.0.0") == 0 || strcmp(addresses[i]->host, "::") == 0)
            memcpy(addresses[i]->host, l->remote_host, sizeof(l->remote_host));
    if (o->secret != NULL && !node_id_equal(&l->hello.id, &o->self.id))
        send_proof(l);
    else
        finish_greeting(l);
    return 0;
}

static int take_proof(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    const struct mesh_options *o = &l->mesh->options;
    struct mesh_proof proof;
    uint8_t expected[32];
    int rc = mesh_decode_proof(m, &proof, err);
    if (rc != 0)
        return rc;
    compute_proof(o, &l->hello.id, l->hello.nonce, &o->self.id, l->nonce, expected);
    if (CRYPTO_memcmp(expected, proof.mac, sizeof(expected)) != 0)
        return error_set(err, E_PROTOCOL, "%s does not know the shared secret", l->hello.name);
    finish_greeting(l);
    return 0;
}

static int take_message(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    if (l->phase == LINK_GREETING) {
        if (m->type == MESH_HELLO && !l->has_hello)
            return take_hello(l, m, err);
        if (m->type == MESH_PROOF && l->has_hello && l->mesh->options.secret != NULL)
            return take_proof(l, m, err);
        return error_set(err, E_PROTOCOL, "message of type %d before the greeting is over",
                         m->type);
    }
    if (m->type == MESH_HEARTBEAT)
        return mesh_decode_heartbeat(m, &l->heartbeat, err);
    if (m->type == MESH_HELLO || m->type == MESH_PROOF)
        return error_set(err, E_PROTOCOL, "second greeting");
    return l->mesh->events.message(l->mesh->events.self, l, m, err);
}

static void take_bytes(struct mesh_link *l)
{
    struct error err = {0};
    size_t offset = 0;
    while (l->phase == LINK_GREETING || l->phase == LINK_UP) {
        struct mesh_message m;
        size_t len_max =
            l->phase == LINK_GREETING ? MESH_GREETING_BYTES_MAX : LIMIT_CONTROL_FRAME_BYTES;
        int64_t n = mesh_message_next(l->in.data + offset, l->in.len - offset, len_max, &m, &err);
        if (n == 0)
            break;
        int rc = n < 0 ? (int)n : take_message(l, &m, &err);
        if (rc != 0) {
            l->mesh->stats.n_malformed += rc == E_PROTOCOL;
            mesh_link_close(l, err.message);
            break;
        }
        offset += (size_t)n;
    }
    buf_consume(&l->in, offset);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret)
{
    struct mesh_link *l = handle->data;
    (void)suggested;
    size_t room = 64 * 1024;
    if (room > l->in.max_len - l->in.len)
        room = l->in.max_len - l->in.len;
    if (room == 0 || buf_reserve(&l->in, room) != 0)
        *ret = uv_buf_init(NULL, 0); /* becomes UV_ENOBUFS */
    else
        *ret = uv_buf_init(l->in.data + l->in.len, (unsigned)room);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *unused)
{
    struct mesh_link *l = stream->data;
    (void)unused;
    if (l->phase == LINK_CLOSING || n == 0)
        return;
    if (n < 0) {
        mesh_link_close(l, n == UV_EOF ? "peer closed the link" : uv_strerror((int)n));
        return;
    }
    l->in.len += (size_t)n;
    l->in.data[l->in.len] = '\0';
    l->heard_ms = uv_now(l->mesh->loop);
    if (l->is_silent) {
        l->is_silent = false;
        log_info("mesh", "peer=%s heard again", l->hello.name);
    }
    take_bytes(l);
}

static void note_address(const struct sockaddr_storage *address, char host[64], uint16_t *ret_port)
{
    if (address->ss_family == AF_INET6) {
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)address;
        uv_ip6_name(v6, host, 64);
        *ret_port = ntohs(v6->sin6_port);
    } else {
        const struct sockaddr_in *v4 = (const struct sockaddr_in *)address;
        uv_ip4_name(v4, host, 64);
        *ret_port = ntohs(v4->sin_port);
    }
}

void link_greet(struct mesh_link *l)
{
    struct sockaddr_storage address = {0};
    int len = sizeof(address);
    uint16_t port;
    int rc = rng_system(l->nonce, sizeof(l->nonce));
    if (rc == 0)
        rc = uv_tcp_getsockname(&l->tcp, (struct sockaddr *)&address, &len);
    if (rc == 0)
        note_address(&address, l->local_host, &port);
    len = sizeof(address);
    if (rc == 0)
        rc = uv_tcp_getpeername(&l->tcp, (struct sockaddr *)&address, &len);
    if (rc == 0) {
        note_address(&address, l->remote_host, &l->remote_port);
        uv_tcp_nodelay(&l->tcp, 1);
        rc = uv_read_start((uv_stream_t *)&l->tcp, on_alloc, on_read);
    }
    if (rc != 0) {
        mesh_link_close(l, uv_strerror(rc));
        return;
    }
    l->phase = LINK_GREETING;
    l->opened_ms = l->heard_ms = uv_now(l->mesh->loop);
    send_hello(l);
}

static void on_connected(uv_connect_t *request, int status)
{
    struct mesh_link *l = request->data;
    if (l->phase == LINK_CLOSING)
        return;
    if (status != 0)
        mesh_link_close(l, uv_strerror(status));
    else
        link_greet(l);
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
        mesh_link_close(l, uv_strerror(rc));
    return rc;
}

void link_send_heartbeat(struct mesh_link *l)
{
    struct mesh_heartbeat heartbeat = {0};
    struct buf b;
    l->mesh->events.heartbeat(l->mesh->events.self, &heartbeat);
    buf_init(&b, MESH_GREETING_BYTES_MAX);
    mesh_encode_heartbeat(&b, &heartbeat);
    mesh_link_send(l, &b);
}

void link_tick(struct mesh_link *l, uint64_t now_ms)
{
    char text[128];
    if (l->phase == LINK_CONNECTING || l->phase == LINK_GREETING) {
        if (now_ms - l->opened_ms > MESH_GREETING_MS)
            mesh_link_close(l, "no greeting in time");
        return;
    }
    if (l->phase != LINK_UP)
        return;
    uint64_t silent_ms = now_ms - l->heard_ms;
    if (silent_ms > MESH_SILENCE_LOST_MS) {
        snprintf(text, sizeof(text), "silent %llu ms (limit %d)", (unsigned long long)silent_ms,
                 MESH_SILENCE_LOST_MS);
        mesh_link_close(l, text);
        return;
    }
    if (silent_ms > MESH_SILENCE_LOG_MS && !l->is_silent) {
        l->is_silent = true;
        log_warn("mesh", "peer=%s silent %llu ms (limit %d) -> lost at %d ms", l->hello.name,
                 (unsigned long long)silent_ms, MESH_SILENCE_LOG_MS, MESH_SILENCE_LOST_MS);
    }
    link_send_heartbeat(l);
}

const struct mesh_hello *mesh_link_hello(const struct mesh_link *l)
{
    return &l->hello;
}

const struct mesh_heartbeat *mesh_link_heartbeat(const struct mesh_link *l)
{
    return &l->heartbeat;
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
