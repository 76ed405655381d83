#include "base/log.h"
#include "mesh/internal.h"

#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LISTEN_BACKLOG = 128, PAUSE_MS = 1000 };

struct mesh_link *mesh_find(const struct mesh *m, const struct node_id *id)
{
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (l->phase == LINK_UP && node_id_equal(&l->hello.id, id))
            return l;
    return NULL;
}

struct mesh_link *mesh_link_at(const struct mesh *m, uint32_t index)
{
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (l->phase == LINK_UP && index-- == 0)
            return l;
    return NULL;
}

uint16_t mesh_port(const struct mesh *m)
{
    return m->port;
}

void mesh_get_stats(const struct mesh *m, struct mesh_stats *ret_stats)
{
    *ret_stats = m->stats;
}

void mesh_link_ready(struct mesh *m, struct mesh_link *l)
{
    struct mesh_link *old = m->links; /* one that is closing, too, if its end is still to be told */
    while (old != NULL && (!old->is_announced || !node_id_equal(&old->hello.id, &l->hello.id)))
        old = old->next;
    if (old == NULL)
        return;
    mesh_link_close(old, "replaced by another link to the same node");
    /* The owner hears of the old link's end before it hears of the new one. */
    old->is_announced = false;
    m->events.link_down(m->events.self, old, old->reason, false);
}

/* The invite has failed when the inviter has closed the link, or no address leads to it. */
static void joining_link_gone(struct mesh *m, struct mesh_link *l)
{
    struct joining *j = &m->joining;
    bool is_chosen = j->link == l;
    j->n_links--;
    if (is_chosen || j->link == NULL)
        snprintf(j->reason, sizeof(j->reason), "%.80s: %.400s", l->remote_host, l->reason);
    if ((is_chosen || (j->n_links == 0 && j->link == NULL)) && !m->is_closing)
        members_end_joining(m, NULL, E_UNAVAILABLE, j->reason);
}

void mesh_link_gone(struct mesh *m, struct mesh_link *l)
{
    char text[TEXT_ADDRESS_BYTES];
    for (struct mesh_link **p = &m->links; *p != NULL; p = &(*p)->next)
        if (*p == l) {
            *p = l->next;
            m->n_links--;
            break;
        }
    dial_link_gone(m, l);
    probe_link_gone(l);
    if (l->is_announced && !m->is_closing) {
        m->stats.n_lost++;
        m->events.link_down(m->events.self, l, l->reason, l->is_closed);
    } else if (!l->is_refused && !l->is_dialled && !m->is_closing) {
        /* A port scan, or a node that has changed its mind. */
        if (!l->has_key)
            strangers_note(m, l->remote_host, l->remote_port, MESH_REFUSED_GARBAGE, l->reason);
        else
            log_debug("mesh", "peer=%s link closed: %s", link_label(l, text), l->reason);
    }
    if (l->is_joining)
        joining_link_gone(m, l);
    pairing_end(l);
    channel_done(&l->channel);
    buf_done(&l->in);
    buf_done(&l->parts);
    free(l);
    mesh_handle_closed(m);
}

void mesh_handle_closed(struct mesh *m)
{
    if (--m->n_handles > 0 || !m->is_closing)
        return;
    void (*closed)(void *) = m->closed;
    void *arg = m->closed_arg;
    paths_done(m);
    SSL_CTX_free(m->context);
    OPENSSL_cleanse(m->secret_key, sizeof(m->secret_key));
    OPENSSL_cleanse(m->invites, sizeof(m->invites));
    free(m);
    if (closed != NULL)
        closed(arg);
}

/* A handshake costs about a millisecond of the loop: strangers may have some of it, not all. */
static bool is_rush(struct mesh *m)
{
    uint64_t now_ms = uv_now(m->loop);
    if (now_ms - m->accepted_ms >= 1000) {
        m->accepted_ms = now_ms;
        m->n_accepted = 0;
    }
    return ++m->n_accepted > ACCEPTED_PER_SECOND;
}

/* Who holds connections open without saying who he is takes room from few others. */
static bool is_crowded(const struct mesh *m, const struct mesh_link *l)
{
    uint32_t n = 0, n_near = 0;
    for (const struct mesh_link *o = m->links; o != NULL; o = o->next) {
        if (o == l || o->is_dialled || o->is_member || o->phase >= LINK_ASKING)
            continue;
        n++;
        n_near += strcmp(o->remote_host, l->remote_host) == 0;
    }
    return n >= HALF_OPEN_MAX || n_near >= HALF_OPEN_ADDRESS_MAX || m->n_links > 3 * LIMIT_PEERS;
}

static void on_connection(uv_stream_t *listener, int status)
{
    struct mesh *m = listener->data;
    if (status != 0) {
        log_warn("mesh", "cannot accept a link: %s", uv_strerror(status));
        return;
    }
    struct mesh_link *l = link_new(m, false);
    if (l == NULL)
        return;
    int rc = uv_accept(listener, (uv_stream_t *)&l->tcp);
    if (rc == 0)
        link_start(l);
    else
        mesh_link_close(l, uv_strerror(rc));
    if (l->phase == LINK_TLS && (is_crowded(m, l) || is_rush(m)))
        link_refuse(l, MESH_REFUSED_CROWD, "too many connections that have not shown who they are");
}

static void on_tick(uv_timer_t *timer)
{
    struct mesh *m = timer->data;
    uint64_t now_ms = uv_now(m->loop);
    bool was_paused = now_ms - m->tick_ms > PAUSE_MS;
    m->tick_ms = now_ms;
    for (struct mesh_link *l = m->links; l != NULL; l = l->next) {
        /* A process that was stopped itself must not blame its peers. */
        if (was_paused)
            l->heard_ms = now_ms;
        link_tick(l, now_ms);
    }
    dial_tick(m, now_ms);
    paths_on_tick(m, now_ms);
    members_save(m, false);
}

static void on_handle_closed(uv_handle_t *handle)
{
    mesh_handle_closed(handle->data);
}

static int start_listening(struct mesh *m, struct error *err)
{
    const struct mesh_address *a = &m->options.listen;
    struct sockaddr_storage address = {0};
    int len = sizeof(address);
    int rc = uv_ip4_addr(a->host, a->port, (struct sockaddr_in *)&address);
    if (rc != 0)
        rc = uv_ip6_addr(a->host, a->port, (struct sockaddr_in6 *)&address);
    if (rc == 0)
        rc = uv_tcp_bind(&m->listener, (const struct sockaddr *)&address, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)&m->listener, LISTEN_BACKLOG, on_connection);
    if (rc == 0)
        rc = uv_tcp_getsockname(&m->listener, (struct sockaddr *)&address, &len);
    if (rc != 0)
        return error_set(err, rc, "cannot listen for other nodes on %s:%u: %s", a->host, a->port,
                         uv_strerror(rc));
    m->port = ntohs(address.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&address)->sin6_port
                                                  : ((struct sockaddr_in *)&address)->sin_port);
    m->options.self.mesh = *a;
    m->options.self.mesh.port = m->port;
    return 0;
}

/* A secret that a person has made up can be guessed; each guess shall cost a while, too. */
static int derive_secret(struct mesh *m, struct error *err)
{
    static const unsigned char salt[] = "shoal mesh secret";
    if (m->options.secret == NULL)
        return 0;
    if (EVP_PBE_scrypt(m->options.secret, m->options.secret_len, salt, sizeof(salt), 1 << 14, 8, 1,
                       64 << 20, m->secret_key, sizeof(m->secret_key)) != 1)
        return error_set(err, E_NOMEM, "cannot use the cluster's secret: out of memory");
    return 0;
}

static int set_up(struct mesh *m, struct error *err)
{
    const struct mesh_options *o = &m->options;
    if (strlen(o->data_dir) >= sizeof(m->data_dir))
        return error_set(err, E_INVALID, "data folder's path is too long");
    snprintf(m->data_dir, sizeof(m->data_dir), "%s", o->data_dir);
    for (uint32_t i = 0; i < o->n_peers; i++) {
        struct dial *d = dial_add(m, &o->peers[i]);
        if (d != NULL)
            d->is_static = true;
    }
    int rc = channel_context_new(o->identity, &m->context, err);
    if (rc == 0)
        rc = derive_secret(m, err);
    if (rc == 0)
        rc = members_load(m, err);
    if (rc == 0)
        rc = start_listening(m, err);
    return rc;
}

int mesh_open(uv_loop_t *loop, const struct mesh_options *o, const struct mesh_events *events,
              struct mesh **ret_mesh, struct error *err)
{
    if (o->n_peers > LIMIT_PEERS)
        return error_set(err, E_LIMIT, "%u peers; at most %d are possible", o->n_peers,
                         LIMIT_PEERS);
    struct mesh *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return error_set(err, E_NOMEM, "out of memory for the mesh");
    m->loop = loop;
    m->options = *o;
    m->options.self.id = o->identity->id;
    m->options.self.version = MESH_PROTOCOL_VERSION;
    m->events = *events;
    m->tick_ms = uv_now(loop);
    m->request_credit = UINT32_MAX / 2; /* as many as there may be */
    interfaces_refresh(m);
    uv_tcp_init(loop, &m->listener);
    uv_timer_init(loop, &m->timer);
    uv_timer_init(loop, &m->probe_timer);
    m->listener.data = m->timer.data = m->probe_timer.data = m;
    m->n_handles = 3;
    int rc = set_up(m, err);
    m->options.data_dir = NULL; /* the caller's; ours is m->data_dir */
    if (rc != 0) {
        mesh_close(m, NULL, NULL);
        return rc;
    }
    uv_timer_start(&m->timer, on_tick, 0, MESH_TICK_MS);
    *ret_mesh = m;
    return 0;
}

void mesh_close(struct mesh *m, void (*closed)(void *arg), void *arg)
{
    m->is_closing = true;
    m->closed = closed;
    m->closed_arg = arg;
    members_save(m, true);
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        mesh_link_close(l, "this node stops");
    uv_close((uv_handle_t *)&m->timer, on_handle_closed);
    uv_close((uv_handle_t *)&m->probe_timer, on_handle_closed);
    uv_close((uv_handle_t *)&m->listener, on_handle_closed);
}
