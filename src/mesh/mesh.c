#include "mesh/mesh.h"

#include "base/log.h"
#include "mesh/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LEARNED_FAILURES_MAX = 5, LISTEN_BACKLOG = 64 };

bool node_id_equal(const struct node_id *a, const struct node_id *b)
{
    return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

const char *node_id_text(const struct node_id *id, char text[33])
{
    for (size_t i = 0; i < sizeof(id->bytes); i++)
        snprintf(text + 2 * i, 3, "%02x", id->bytes[i]);
    return text;
}

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

static bool dial_is_linked(const struct mesh *m, const struct dial *d)
{
    return d->is_self || (d->has_id && mesh_find(m, &d->id) != NULL);
}

uint32_t mesh_n_missing(const struct mesh *m)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_dials; i++)
        n += m->dials[i].is_static && !dial_is_linked(m, &m->dials[i]);
    return n;
}

static struct dial *find_dial(struct mesh *m, const struct mesh_link *l)
{
    for (uint32_t i = 0; i < m->n_dials; i++)
        if (m->dials[i].link == l)
            return &m->dials[i];
    return NULL;
}

/* Of two links between the same pair both sides keep the one that the node with the lower id has
 * dialled; of two dialled by the same side the newer one, since the older may be dead. */
static bool prefers_new(const struct mesh *m, const struct mesh_link *old,
                        const struct mesh_link *new)
{
    if (old->is_dialled == new->is_dialled)
        return true;
    bool we_are_lower =
        memcmp(m->options.self.id.bytes, new->hello.id.bytes, sizeof(new->hello.id.bytes)) < 0;
    return new->is_dialled == we_are_lower;
}

bool mesh_link_ready(struct mesh *m, struct mesh_link *l)
{
    struct dial *d = find_dial(m, l);
    bool is_self = node_id_equal(&l->hello.id, &m->options.self.id);
    if (d != NULL) {
        d->has_id = true;
        d->id = l->hello.id;
        d->is_self = is_self;
        d->n_failed = 0;
        d->backoff_ms = MESH_DIAL_MS_MIN;
    }
    if (is_self) {
        mesh_link_close(l, "that is this node itself");
        return false;
    }
    struct mesh_link *old = mesh_find(m, &l->hello.id);
    if (old == NULL)
        return true;
    if (!prefers_new(m, old, l)) {
        mesh_link_close(l, "second link to the same node");
        return false;
    }
    mesh_link_close(old, "replaced by another link to the same node");
    /* The owner hears of the old link's end before it hears of the new one. */
    old->is_announced = false;
    m->events.link_down(m->events.self, old, old->reason);
    return true;
}

static void note_failed_dial(struct mesh *m, struct mesh_link *l)
{
    struct dial *d = find_dial(m, l);
    if (d == NULL)
        return;
    d->link = NULL;
    d->next_ms = uv_now(m->loop) + d->backoff_ms;
    d->backoff_ms = d->backoff_ms * 2 < MESH_DIAL_MS_MAX ? d->backoff_ms * 2 : MESH_DIAL_MS_MAX;
    if (!l->has_hello && d->n_failed++ == 0 && !m->is_closing)
        log_info("mesh", "address=%s:%u cannot be reached: %s -> will try again", d->address.host,
                 d->address.port, l->reason);
}

void mesh_link_gone(struct mesh *m, struct mesh_link *l)
{
    for (struct mesh_link **p = &m->links; *p != NULL; p = &(*p)->next)
        if (*p == l) {
            *p = l->next;
            m->n_links--;
            break;
        }
    note_failed_dial(m, l);
    if (l->is_announced && !m->is_closing) {
        m->stats.n_lost++;
        m->events.link_down(m->events.self, l, l->reason);
    } else if (!l->is_announced && !l->is_dialled) {
        m->stats.n_refused++;
        log_warn("mesh", "address=%s:%u refused: %s", l->remote_host, l->remote_port, l->reason);
    } else if (!l->is_announced && l->has_hello) {
        log_info("mesh", "peer=%s link closed: %s", l->hello.name, l->reason);
    }
    buf_done(&l->in);
    free(l);
    mesh_handle_closed(m);
}

void mesh_handle_closed(struct mesh *m)
{
    if (--m->n_handles > 0 || !m->is_closing)
        return;
    void (*closed)(void *) = m->closed;
    void *arg = m->closed_arg;
    free(m);
    if (closed != NULL)
        closed(arg);
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
    if (rc != 0)
        mesh_link_close(l, uv_strerror(rc));
    else if (m->n_links > 2 * LIMIT_PEERS)
        mesh_link_close(l, "too many links");
    else
        link_greet(l);
}

void mesh_send_heartbeats(struct mesh *m)
{
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (l->phase == LINK_UP)
            link_send_heartbeat(l);
}

static void tick_dial(struct mesh *m, struct dial *d, uint64_t now_ms)
{
    if (d->link != NULL || now_ms < d->next_ms || dial_is_linked(m, d))
        return;
    struct mesh_link *l = link_new(m, true);
    if (l == NULL)
        return;
    d->link = l;
    link_dial(l, &d->address);
}

static void on_tick(uv_timer_t *timer)
{
    struct mesh *m = timer->data;
    uint64_t now_ms = uv_now(m->loop);
    bool was_paused = now_ms - m->tick_ms > MESH_SILENCE_LOG_MS;
    m->tick_ms = now_ms;
    for (struct mesh_link *l = m->links; l != NULL; l = l->next) {
        /* A process that was stopped itself must not blame its peers. */
        if (was_paused)
            l->heard_ms = now_ms;
        link_tick(l, now_ms);
    }
    for (uint32_t i = 0; i < m->n_dials;) {
        struct dial *d = &m->dials[i];
        if (!d->is_static && d->link == NULL && d->n_failed > LEARNED_FAILURES_MAX) {
            *d = m->dials[--m->n_dials];
            continue;
        }
        tick_dial(m, d, now_ms);
        i++;
    }
}

static struct dial *add_dial(struct mesh *m, const struct mesh_address *address)
{
    if (m->n_dials == sizeof(m->dials) / sizeof(m->dials[0]))
        return NULL;
    struct dial *d = &m->dials[m->n_dials++];
    *d = (struct dial){.address = *address, .backoff_ms = MESH_DIAL_MS_MIN};
    return d;
}

void mesh_learn(struct mesh *m, const struct node_id *id, const struct mesh_address *address)
{
    if (node_id_equal(id, &m->options.self.id) || address->port == 0 || mesh_find(m, id) != NULL)
        return;
    for (uint32_t i = 0; i < m->n_dials; i++) {
        const struct dial *d = &m->dials[i];
        if ((d->has_id && node_id_equal(&d->id, id)) ||
            (d->address.port == address->port && strcmp(d->address.host, address->host) == 0))
            return;
    }
    struct dial *d = add_dial(m, address);
    if (d == NULL)
        return;
    d->has_id = true;
    d->id = *id;
    /* Both sides hear of each other at about the same time: the lower id goes first. */
    bool we_are_lower = memcmp(m->options.self.id.bytes, id->bytes, sizeof(id->bytes)) < 0;
    d->next_ms = uv_now(m->loop) + (we_are_lower ? 0 : 4 * MESH_HEARTBEAT_MS);
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
    m->events = *events;
    m->tick_ms = uv_now(loop);
    for (uint32_t i = 0; i < o->n_peers; i++)
        add_dial(m, &o->peers[i])->is_static = true;
    uv_tcp_init(loop, &m->listener);
    uv_timer_init(loop, &m->timer);
    m->listener.data = m->timer.data = m;
    m->n_handles = 2;
    int rc = start_listening(m, err);
    if (rc != 0) {
        mesh_close(m, NULL, NULL);
        return rc;
    }
    uv_timer_start(&m->timer, on_tick, 0, MESH_HEARTBEAT_MS);
    *ret_mesh = m;
    return 0;
}

void mesh_close(struct mesh *m, void (*closed)(void *arg), void *arg)
{
    m->is_closing = true;
    m->closed = closed;
    m->closed_arg = arg;
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        mesh_link_close(l, "this node stops");
    uv_close((uv_handle_t *)&m->timer, on_handle_closed);
    uv_close((uv_handle_t *)&m->listener, on_handle_closed);
}
