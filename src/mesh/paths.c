/*
 * The ways between this node and another. Both tell each other their addresses; the one with the
 * lower id tries them (probe.c) and tells the other what it found, so that both choose the
 * same. A path is an address of the other node: connections for tensors are made the same way, so
 * that the system picks the interface here, too. If the lower id reaches nothing, the other one
 * tries.
 *
 * A round tries each path once: after link_up, when addresses have changed, when the path in use
 * has gone or has become another, and each 10 minutes while nobody needs it. Between rounds a few
 * pings see whether the best one is still there.
 */
#include "base/log.h"
#include "base/rng.h"
#include "mesh/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PAIRS_MAX = 2 * LIMIT_PEERS,
    PROBE_GAP_MS = 40,
    AGAIN_MS = 30000, /* between rounds for a round trip that wavers */
    RTT_NOISE_US = 1000,
    COST_BYTES = 64 << 10, /* of tensors, weighed against a round trip */
};
static const double better_by = 0.8; /* of the cost: less is noise */
static const double unknown_mbit_s = 10;

struct pair *paths_find_pair(const struct mesh *m, const struct node_id *id)
{
    for (struct pair *p = m->pairs; p != NULL; p = p->next)
        if (node_id_equal(&p->id, id))
            return p;
    return NULL;
}

bool paths_is_prober(const struct mesh *m, const struct pair *p)
{
    return (node_id_compare(&m->options.identity->id, &p->id) < 0) != p->is_swapped;
}

static bool is_busy(const struct mesh *m, const struct pair *p)
{
    return m->events.is_busy != NULL && m->events.is_busy(m->events.self, &p->id);
}

static uint64_t jitter_ms(uint64_t max_ms)
{
    uint32_t v = 0;
    return rng_system(&v, sizeof(v)) == 0 ? v % (max_ms + 1) : 0;
}

void paths_want_round(struct mesh *m, struct pair *p, uint64_t in_ms)
{
    uint64_t at_ms = uv_now(m->loop) + in_ms;
    if (!p->is_forced || at_ms < p->round_ms)
        p->round_ms = at_ms;
    p->is_forced = true;
}

/* Goes on with what is due, so soon. */
void paths_schedule(struct mesh *m, uint64_t in_ms)
{
    if (!m->is_closing)
        uv_timer_start(&m->probe_timer, paths_on_timer, in_ms, 0);
}

/* ---- which one ---- */

static double cost_s(const struct path *p)
{
    double mbit_s = p->is.figures.mbit_s > 0 ? (double)p->is.figures.mbit_s : unknown_mbit_s;
    return p->is.figures.rtt_us * 1e-6 + COST_BYTES * 8 / (mbit_s * 1e6);
}

uint32_t paths_find_best(const struct pair *p, uint32_t but)
{
    uint32_t best = p->n_paths;
    for (uint32_t i = 0; i < p->n_paths; i++)
        if (i != but && p->path[i].is.status == MESH_PATH_REACHED &&
            (best == p->n_paths || cost_s(&p->path[i]) < cost_s(&p->path[best])))
            best = i;
    return best;
}

const struct path *paths_find_used(const struct pair *p)
{
    if (p->has_route && p->route.is.status == MESH_PATH_REACHED)
        return &p->route;
    if (p->has_their_route && p->their_route.is.status == MESH_PATH_REACHED)
        return &p->their_route;
    return p->best < p->n_paths ? &p->path[p->best] : NULL;
}

void paths_note_best(const struct mesh *m, const struct pair *p)
{
    const struct mesh_link *l = mesh_find(m, &p->id);
    if (p->best == p->n_paths || l == NULL)
        return;
    const struct mesh_path *is = &p->path[p->best].is;
    log_info(
        "mesh",
        "peer=%s remote=%s local=%s interface=%s rtt_us=%u mbit_s=%.0f is the best of %u paths",
        l->hello.name, is->remote, is->local, is->local_interface, is->figures.rtt_us,
        (double)is->figures.mbit_s, p->n_paths);
}

/* The prober decides, and tells the other when the first round is over; the other side only leaves
 * what does not lead anywhere. */
void paths_choose(struct mesh *m, struct pair *p)
{
    bool is_kept = p->best < p->n_paths && p->path[p->best].is.status == MESH_PATH_REACHED;
    uint32_t best = paths_find_best(p, p->n_paths);
    if (best == p->best ||
        (is_kept && (!paths_is_prober(m, p) ||
                     cost_s(&p->path[best]) > better_by * cost_s(&p->path[p->best]))))
        return;
    p->best = best;
    if (!p->is_known)
        return;
    paths_note_best(m, p);
    paths_send(m, p);
}

/* A number for an address, never 0. */
static uint32_t number_of(const char *host)
{
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (; *host != '\0'; host++)
        hash = (hash ^ (uint8_t)*host) * 16777619u;
    return hash != 0 ? hash : 1;
}

static bool is_links_own(const struct mesh_link *l, const struct path *p)
{
    return p->is_link || (interfaces_is_same(p->is.remote, l->remote_host) &&
                          interfaces_is_same(p->is.local, l->local_host));
}

/* NULL: the link's own. */
static struct link_figures figures_of(const struct mesh_link *l, const struct path *path)
{
    struct link_figures f = l->figures;
    f.path = number_of(path != NULL ? path->is.remote : l->remote_host);
    if (path == NULL || path->is_link)
        return f;
    if (!is_links_own(l, path) || f.rtt_us == 0)
        f.rtt_us = path->is.figures.rtt_us;
    if (path->is.figures.mbit_s > 0)
        f.mbit_s = path->is.figures.mbit_s;
    return f;
}

struct link_figures paths_figures(const struct mesh_link *l)
{
    const struct pair *p = paths_find_pair(l->mesh, &l->hello.id);
    return figures_of(l, p != NULL ? paths_find_used(p) : NULL);
}

/* The one in use first: others may lead to the same address, from another interface of theirs. */
static const struct path *find_taken(const struct pair *p)
{
    const struct path *used = paths_find_used(p);
    if (used != NULL && strcmp(used->is.remote, p->taken) == 0)
        return used;
    if (p->has_route && strcmp(p->route.is.remote, p->taken) == 0)
        return &p->route;
    if (p->has_their_route && strcmp(p->their_route.is.remote, p->taken) == 0)
        return &p->their_route;
    for (uint32_t i = 0; i < p->n_paths; i++)
        if (strcmp(p->path[i].is.remote, p->taken) == 0)
            return &p->path[i];
    return NULL;
}

struct link_figures paths_taken_figures(const struct mesh_link *l)
{
    const struct pair *p = paths_find_pair(l->mesh, &l->hello.id);
    if (p == NULL || p->taken[0] == '\0')
        return (struct link_figures){0};
    const struct path *path = find_taken(p);
    /* An address that is not among theirs any more is a path that is not listed. */
    bool is_gone = path != NULL ? path->is.status == MESH_PATH_UNREACHED
                                : strcmp(p->taken, l->remote_host) != 0;
    if (is_gone)
        return (struct link_figures){.rtt_us = UINT32_MAX, .path = number_of(p->taken)};
    return figures_of(l, path);
}

/* ---- rounds ---- */

static void begin_round(struct mesh *m, struct pair *p, const struct mesh_link *l)
{
    p->is_in_round = true;
    p->is_quick = p->is_forced = false;
    if (p->has_route)
        p->route.is_due = true;
    if (!paths_is_prober(m, p))
        return;
    paths_list(m, p, l);
    if (p->n_paths == 1 && interfaces_is_same(p->path[0].is.remote, l->remote_host)) {
        struct path *only = &p->path[0];
        only->is_due = false;
        only->is_link = true;
        only->is.status = MESH_PATH_REACHED;
        snprintf(only->is.local, sizeof(only->is.local), "%s", l->local_host);
    }
}

/* Another path between the same two interfaces has been tried and leads there. */
static bool is_repetition(const struct pair *p, const struct path *path)
{
    for (uint32_t i = 0; i < p->n_paths; i++) {
        const struct path *o = &p->path[i];
        if (o != path && !o->is_due && o->is.status == MESH_PATH_REACHED &&
            path->is.remote_interface[0] != '\0' &&
            strcmp(o->is.remote_interface, path->is.remote_interface) == 0 &&
            (path->is.local_interface[0] == '\0' ||
             strcmp(o->is.local_interface, path->is.local_interface) == 0))
            return true;
    }
    return false;
}

static struct path *next_due(struct pair *p)
{
    if (p->has_route && p->route.is_due)
        return &p->route;
    for (uint32_t i = 0; i < p->n_paths; i++) {
        struct path *path = &p->path[i];
        if (path->is_due && !p->is_quick && is_repetition(p, path)) {
            path->is_due = false;
            path->is.status = MESH_PATH_UNTRIED;
        }
        if (path->is_due)
            return path;
    }
    return NULL;
}

static void note_known(struct mesh *m, struct pair *p)
{
    p->is_known = true;
    paths_note_best(m, p);
    paths_send(m, p);
}

/* Link-local addresses come last, and each of those that lead nowhere takes seconds: the first
 * instance does not wait for them. */
static void check_known(struct mesh *m, struct pair *p)
{
    const struct path *next = next_due(p);
    if (!p->is_known && paths_is_prober(m, p) && p->best < p->n_paths && next != NULL &&
        interfaces_is_link_local(next->is.remote))
        note_known(m, p);
}

static void end_round(struct mesh *m, struct pair *p)
{
    uint64_t now_ms = uv_now(m->loop);
    bool was_quick = p->is_quick;
    p->is_in_round = p->is_quick = false;
    p->check_ms = now_ms + MESH_PATHS_CHECK_MS + jitter_ms(MESH_PATHS_CHECK_MS / 4);
    if (was_quick)
        return;
    p->rounded_ms = now_ms;
    if (!p->is_forced)
        p->round_ms = now_ms + MESH_PATHS_MS + jitter_ms(MESH_PATHS_MS / 4);
    paths_choose(m, p);
    if (!p->is_known && paths_is_prober(m, p))
        note_known(m, p);
    else
        paths_send(m, p);
    /* Nothing leads there: it may be that the other way round something does. In the end the lower
     * id tries again. */
    if (paths_is_prober(m, p))
        p->is_swapped = !p->is_swapped && p->best == p->n_paths;
}

/* A few pings over what is in use. */
void paths_begin_check(struct mesh *m, struct pair *p, const struct mesh_link *l)
{
    p->check_ms = uv_now(m->loop) + MESH_PATHS_CHECK_MS;
    if (p->has_route)
        p->route.is_due = true;
    if (p->best < p->n_paths && !is_links_own(l, &p->path[p->best]))
        p->path[p->best].is_due = true;
    p->is_in_round = p->is_quick = next_due(p) != NULL;
}

void paths_go_on(struct mesh *m)
{
    uint64_t now_ms = uv_now(m->loop);
    for (struct pair *p = m->pairs; p != NULL && m->probe.link == NULL; p = p->next) {
        const struct mesh_link *l = mesh_find(m, &p->id);
        if (l == NULL || !link_speaks(l, MESH_VERSION_PATHS) || !p->has_theirs)
            continue;
        if (!p->is_in_round && now_ms >= p->round_ms) {
            if (p->is_forced || !is_busy(m, p))
                begin_round(m, p, l);
            else
                p->round_ms = now_ms + MESH_PATHS_CHECK_MS;
        }
        if (!p->is_in_round && now_ms >= p->check_ms)
            paths_begin_check(m, p, l);
        if (!p->is_in_round)
            continue;
        struct path *path = next_due(p);
        if (path == NULL) {
            end_round(m, p);
            continue;
        }
        bool is_measured = path->is.figures.mbit_s > 0;
        if (!probe_start(m, p, path, is_measured && (p->is_quick || is_busy(m, p))))
            return;
    }
}

/* ---- results ---- */

static void note_route(struct pair *p, const struct mesh_link *l)
{
    bool is_reached = p->route.is.status == MESH_PATH_REACHED;
    if (p->is_route_noted && p->is_route_good == is_reached)
        return;
    p->is_route_noted = true;
    p->is_route_good = is_reached;
    if (is_reached)
        log_info("mesh", "peer=%s route=%s is used", l->hello.name, p->route.is.remote);
    else
        log_warn("mesh",
                 "peer=%s route=%s leads nowhere -> the best path that was measured is used",
                 l->hello.name, p->route.is.remote);
}

static struct path *find_path(struct pair *p, const struct probe *result)
{
    if (result->is_route)
        return p->has_route ? &p->route : NULL;
    for (uint32_t i = 0; i < p->n_paths; i++)
        if (strcmp(p->path[i].is.remote, result->remote) == 0)
            return &p->path[i];
    return NULL;
}

static bool has_changed(uint32_t before_us, uint32_t now_us)
{
    uint32_t more = before_us > now_us ? before_us : now_us, less = before_us + now_us - more;
    return before_us != 0 && now_us != 0 && more / 2 > less && more - less > RTT_NOISE_US;
}

static void fill_path(const struct mesh *m, struct path *path, const struct probe *result,
                      const char *local)
{
    const struct own_address *own = interfaces_find(m, local);
    path->is.status = MESH_PATH_REACHED;
    path->is.figures.rtt_us = result->figures.rtt_us;
    if (result->figures.mbit_s > 0)
        path->is.figures.mbit_s = result->figures.mbit_s;
    path->measured_ms = uv_now(m->loop);
    snprintf(path->is.local, sizeof(path->is.local), "%s", local);
    if (own != NULL) {
        memcpy(path->is.local_interface, own->is.name, sizeof(own->is.name));
        path->is.local_kind = (enum device_link_kind)own->is.kind;
    }
}

void paths_take_result(struct mesh *m, const struct probe *result, const char *local,
                       bool is_reached)
{
    struct pair *p = paths_find_pair(m, &result->id);
    struct path *path = p != NULL ? find_path(p, result) : NULL;
    struct mesh_link *l = mesh_find(m, &result->id);
    paths_schedule(m, PROBE_GAP_MS);
    if (path == NULL)
        return;
    uint32_t before_us = path->is.figures.rtt_us;
    path->is_due = false;
    p->doubt_ms = 0;
    if (is_reached) {
        fill_path(m, path, result, local);
    } else {
        path->is.status = MESH_PATH_UNREACHED;
        path->is.figures = (struct link_figures){0};
    }
    if (result->is_quick && (!is_reached || has_changed(before_us, path->is.figures.rtt_us)))
        paths_want_round(m, p, 0);
    if (result->is_route && l != NULL)
        note_route(p, l);
    paths_choose(m, p);
    check_known(m, p);
    if (next_due(p) == NULL)
        end_round(m, p);
    if (l != NULL)
        measure_publish(l);
}

void paths_note_rtt(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct pair *p = paths_find_pair(m, &l->hello.id);
    const struct path *used = p != NULL ? paths_find_used(p) : NULL;
    if (used != NULL && !used->is_link && is_links_own(l, used) &&
        has_changed(used->is.figures.rtt_us, l->figures.rtt_us) &&
        uv_now(m->loop) - p->rounded_ms > AGAIN_MS)
        paths_want_round(m, p, 0);
}

/* ---- life ---- */

/* A node that was here long ago makes room. */
static struct pair *add_pair(struct mesh *m, const struct node_id *id)
{
    struct pair **p = &m->pairs;
    while (*p != NULL && m->n_pairs >= PAIRS_MAX) {
        struct pair *old = *p;
        if (mesh_find(m, &old->id) != NULL) {
            p = &old->next;
            continue;
        }
        *p = old->next;
        free(old);
        m->n_pairs--;
    }
    struct pair *new = calloc(1, sizeof(*new));
    if (new == NULL)
        return NULL;
    new->id = *id;
    new->next = m->pairs;
    m->pairs = new;
    m->n_pairs++;
    return new;
}

static void find_route(struct pair *p, const struct mesh_link *l)
{
    const struct mesh_options *o = &l->mesh->options;
    char text[33];
    node_id_text(&p->id, text);
    for (uint32_t i = 0; i < o->n_routes && !p->has_route; i++)
        if (strcmp(o->routes[i].peer, l->hello.name) == 0 || strcmp(o->routes[i].peer, text) == 0) {
            p->has_route = true;
            p->route.is.is_route = true;
            memcpy(p->route.is.remote, o->routes[i].host, sizeof(p->route.is.remote));
        }
}

void paths_link_up(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct pair *p = paths_find_pair(m, &l->hello.id);
    if (p == NULL)
        p = add_pair(m, &l->hello.id);
    if (p == NULL)
        return; /* the link's own figures will do */
    p->port = l->hello.mesh.port;
    p->has_theirs = p->has_their_route = p->is_their_route_tried = p->is_in_round = p->is_swapped =
        false;
    p->doubt_ms = 0;
    p->taken[0] = '\0';
    find_route(p, l);
    paths_want_round(m, p, 0);
    p->check_ms = UINT64_MAX; /* after the first round */
    paths_send_addresses(l);
}

/* What went over an interface that is gone leads nowhere. */
static void drop_paths_without_interface(struct mesh *m, struct pair *p)
{
    for (uint32_t i = 0; i < p->n_paths; i++)
        if (!p->path[i].is_link && p->path[i].is.local[0] != '\0' &&
            interfaces_find(m, p->path[i].is.local) == NULL)
            p->path[i].is.status = MESH_PATH_UNREACHED;
    paths_choose(m, p);
    p->is_news = true;
}

static void tell_news(struct mesh *m)
{
    for (struct pair *p = m->pairs; p != NULL; p = p->next) {
        struct mesh_link *l = p->is_news ? mesh_find(m, &p->id) : NULL;
        p->is_news = false;
        if (l != NULL)
            measure_publish(l);
    }
}

void paths_on_tick(struct mesh *m, uint64_t now_ms)
{
    if (now_ms - m->own_ms >= (m->is_own_to_come ? MESH_INTERFACES_SOON_MS : MESH_INTERFACES_MS)) {
        m->own_ms = now_ms;
        if (interfaces_refresh(m)) {
            log_info("mesh", "addresses=%u the addresses of this node have changed", m->n_own);
            for (struct mesh_link *l = m->links; l != NULL; l = l->next)
                if (l->phase == LINK_UP)
                    paths_send_addresses(l);
            for (struct pair *p = m->pairs; p != NULL; p = p->next) {
                drop_paths_without_interface(m, p);
                paths_want_round(m, p, MESH_PATHS_CHANGED_MS);
            }
        }
    }
    tell_news(m);
    if (m->probe.link == NULL && !uv_is_active((uv_handle_t *)&m->probe_timer))
        paths_go_on(m);
}

void paths_on_timer(uv_timer_t *timer)
{
    struct mesh *m = timer->data;
    if (m->probe.link == NULL)
        paths_go_on(m);
}

void paths_done(struct mesh *m)
{
    while (m->pairs != NULL) {
        struct pair *p = m->pairs;
        m->pairs = p->next;
        free(p);
    }
}
