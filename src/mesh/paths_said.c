/* Paths: what two nodes tell each other of them, and what the owner of the mesh hears. */
#include "base/log.h"
#include "mesh/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DOUBT_MS = 300 }; /* a best path that has not answered for so long is not used */

/* ---- what both tell each other ---- */

void paths_send_addresses(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    const struct pair *p = paths_find_pair(m, &l->hello.id);
    struct mesh_addresses a = {.has_route = p != NULL && p->has_route, .n = m->n_own};
    for (uint32_t i = 0; i < m->n_own; i++)
        a.at[i] = m->own[i].is;
    if (link_speaks(l, MESH_VERSION_PATHS))
        LINK_SEND(l, mesh_encode_addresses, &a);
}

static void fill_report(const struct mesh *m, struct mesh_path_report *ret, const struct path *p)
{
    uint64_t age_ms = p->measured_ms != 0 ? uv_now(m->loop) - p->measured_ms : 0;
    *ret = (struct mesh_path_report){
        .status = p->is.status,
        .is_route = p->is.is_route,
        .rtt_us = p->is.figures.rtt_us,
        .mbit_s = p->is.figures.mbit_s,
        .age_ms = age_ms < UINT32_MAX ? (uint32_t)age_ms : UINT32_MAX,
    };
    interfaces_strip(p->is.local, ret->local);
    interfaces_strip(p->is.remote, ret->remote);
    memcpy(ret->local_interface, p->is.local_interface, sizeof(ret->local_interface));
    memcpy(ret->remote_interface, p->is.remote_interface, sizeof(ret->remote_interface));
}

void paths_send(struct mesh *m, const struct pair *p)
{
    struct mesh_link *l = mesh_find(m, &p->id);
    struct mesh_paths *t = calloc(1, sizeof(*t));
    struct buf b;
    bool is_all = paths_is_prober(m, p);
    if (t == NULL || l == NULL || !link_speaks(l, MESH_VERSION_PATHS) ||
        (!is_all && !p->has_route)) {
        free(t);
        return;
    }
    for (uint32_t i = 0; is_all && i < p->n_paths; i++)
        fill_report(m, &t->path[t->n++], &p->path[i]);
    if (p->has_route)
        fill_report(m, &t->path[t->n++], &p->route);
    t->best = is_all && p->best < p->n_paths ? p->best : t->n;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_paths(&b, t);
    mesh_link_send(l, &b);
    free(t);
}

/* Their path as it looks from here. */
static bool invert(const struct mesh *m, struct path *ret, const struct mesh_path_report *r)
{
    const struct own_address *own = interfaces_find(m, r->remote);
    bool is_link_local = interfaces_is_link_local(r->local);
    memset(ret, 0, sizeof(*ret));
    if (r->local[0] == '\0')
        return false;
    const char *with = is_link_local ? "%.46s%%%s" : "%.46s";
    snprintf(ret->is.remote, sizeof(ret->is.remote), with, r->local, r->remote_interface);
    snprintf(ret->is.local, sizeof(ret->is.local), with, r->remote, r->remote_interface);
    memcpy(ret->is.local_interface, r->remote_interface, sizeof(r->remote_interface));
    memcpy(ret->is.remote_interface, r->local_interface, sizeof(r->local_interface));
    if (own != NULL) {
        memcpy(ret->is.local_interface, own->is.name, sizeof(own->is.name));
        ret->is.local_kind = (enum device_link_kind)own->is.kind;
    }
    ret->is.status = r->status;
    ret->is.is_route = r->is_route;
    ret->is.figures.rtt_us = r->rtt_us;
    ret->is.figures.mbit_s = r->mbit_s;
    uint64_t now_ms = uv_now(m->loop);
    ret->measured_ms = now_ms > r->age_ms ? now_ms - r->age_ms : 1;
    return true;
}

static enum device_link_kind find_their_kind(const struct pair *p, const char *remote)
{
    for (uint32_t i = 0; i < p->theirs.n; i++)
        if (interfaces_is_same(p->theirs.at[i].host, remote) &&
            p->theirs.at[i].kind < DEVICE_LINK_KIND_COUNT)
            return (enum device_link_kind)p->theirs.at[i].kind;
    return DEVICE_LINK_UNKNOWN;
}

/* The prober's table replaces ours; a route of theirs counts either way. */
static void take_table(struct mesh *m, struct pair *p, const struct mesh_paths *t)
{
    bool is_table = !paths_is_prober(m, p);
    char before[64] = "";
    if (p->best < p->n_paths)
        memcpy(before, p->path[p->best].is.remote, sizeof(before));
    if (is_table)
        p->n_paths = p->best = 0;
    uint32_t best = MESH_PATHS_MAX, n_said = 0;
    p->has_their_route = false;
    for (uint32_t i = 0; i < t->n; i++) {
        struct path path;
        n_said += !t->path[i].is_route;
        p->is_their_route_tried |= t->path[i].is_route;
        if (!invert(m, &path, &t->path[i]))
            continue;
        path.is.remote_kind = find_their_kind(p, path.is.remote);
        if (path.is.is_route) {
            p->has_their_route = true;
            p->their_route = path;
        } else if (is_table && p->n_paths < MESH_PATHS_MAX) {
            if (i == t->best)
                best = p->n_paths;
            p->path[p->n_paths++] = path;
        }
    }
    if (!is_table)
        return;
    p->best = best < p->n_paths ? best : p->n_paths;
    p->is_known = true;
    p->doubt_ms = 0;
    if (p->best < p->n_paths && strcmp(before, p->path[p->best].is.remote) != 0)
        paths_note_best(m, p);
    if (t->best == t->n && n_said > 0) { /* they reach nothing: our turn */
        p->is_swapped = !p->is_swapped;
        paths_want_round(m, p, 0);
    }
}

int paths_take(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct mesh *mesh = l->mesh;
    struct pair *p = paths_find_pair(mesh, &l->hello.id);
    if (m->type == MESH_ADDRESSES) {
        struct mesh_addresses a;
        int rc = mesh_decode_addresses(m, &a, err);
        if (rc != 0 || p == NULL)
            return rc;
        bool is_news = a.n != p->theirs.n || memcmp(a.at, p->theirs.at, sizeof(a.at)) != 0;
        /* What they do not have any more leads nowhere. */
        p->theirs = a;
        for (uint32_t i = 0; i < p->n_paths; i++) {
            bool is_there = p->path[i].is.remote_interface[0] == '\0';
            for (uint32_t k = 0; k < a.n; k++)
                is_there = is_there || interfaces_is_same(a.at[k].host, p->path[i].is.remote);
            if (!is_there)
                p->path[i].is.status = MESH_PATH_UNREACHED;
        }
        paths_choose(mesh, p);
        if (p->has_theirs && is_news)
            paths_want_round(mesh, p, MESH_PATHS_CHANGED_MS);
        p->has_theirs = true;
        p->is_news = true;
        paths_schedule(mesh, MESH_PATHS_FIRST_MS);
        return 0;
    }
    struct mesh_paths *t = malloc(sizeof(*t));
    if (t == NULL)
        return error_set(err, E_NOMEM, "out of memory for a PATHS message");
    int rc = mesh_decode_paths(m, t, err);
    if (rc == 0 && p != NULL)
        take_table(mesh, p, t);
    free(t);
    measure_publish(l);
    return rc;
}

/* ---- for the owner ---- */

static void show(const struct mesh *m, const struct pair *p, const struct path *path,
                 const struct mesh_link *l, struct mesh_path *ret)
{
    *ret = path->is;
    ret->is_used = path == paths_find_used(p);
    ret->is_taken = strcmp(path->is.remote, p->taken) == 0;
    ret->age_ms = path->measured_ms != 0 ? uv_now(m->loop) - path->measured_ms : 0;
    if (path->is_link)
        ret->figures = l->figures;
}

bool mesh_path_at(const struct mesh *m, const struct node_id *id, uint32_t index,
                  struct mesh_path *ret)
{
    const struct mesh_link *l = mesh_find(m, id);
    const struct pair *p = paths_find_pair(m, id);
    uint32_t n_routes = p != NULL ? p->has_route + (uint32_t)p->has_their_route : 0;
    if (l == NULL)
        return false;
    if (p != NULL && index < p->n_paths) {
        show(m, p, &p->path[index], l, ret);
        return true;
    }
    if (p != NULL && index - p->n_paths < n_routes) {
        show(m, p, index == p->n_paths && p->has_route ? &p->route : &p->their_route, l, ret);
        return true;
    }
    if (index > 0 || (p != NULL && n_routes > 0))
        return false;
    *ret = (struct mesh_path){.status = MESH_PATH_REACHED,
                              .is_used = true,
                              .is_taken = p != NULL && strcmp(p->taken, l->remote_host) == 0,
                              .figures = l->figures};
    memcpy(ret->local, l->local_host, sizeof(ret->local));
    memcpy(ret->remote, l->remote_host, sizeof(ret->remote));
    return true;
}

bool mesh_tensor_host(const struct mesh *m, const struct node_id *id, char ret_host[64])
{
    const struct mesh_link *l = mesh_find(m, id);
    const struct pair *p = paths_find_pair(m, id);
    const struct path *used = p != NULL ? paths_find_used(p) : NULL;
    if (l == NULL)
        return false;
    if (used != NULL && p->doubt_ms != 0 && uv_now(m->loop) - p->doubt_ms > DOUBT_MS) {
        uint32_t other = paths_find_best(p, used->is.is_route ? p->n_paths : p->best);
        used = other < p->n_paths ? &p->path[other] : used;
    }
    snprintf(ret_host, 64, "%s", used != NULL ? used->is.remote : l->remote_host);
    return true;
}

bool mesh_take_path(struct mesh *m, const struct node_id *id, char ret_host[64])
{
    struct pair *p = paths_find_pair(m, id);
    if (!mesh_tensor_host(m, id, ret_host))
        return false;
    if (p != NULL) {
        memcpy(p->taken, ret_host, sizeof(p->taken));
        p->is_news = true; /* told at the next tick: this may be in the middle of something */
    }
    return true;
}

bool mesh_paths_are_known(const struct mesh *m, const struct node_id *id)
{
    const struct mesh_link *l = mesh_find(m, id);
    const struct pair *p = paths_find_pair(m, id);
    if (l == NULL || p == NULL || !link_speaks(l, MESH_VERSION_PATHS))
        return true;
    return p->is_known && p->has_theirs &&
           (!p->has_route || p->route.is.status != MESH_PATH_UNTRIED) &&
           (!p->theirs.has_route || p->is_their_route_tried);
}

void mesh_check_path(struct mesh *m, const struct node_id *id)
{
    const struct mesh_link *l = mesh_find(m, id);
    struct pair *p = paths_find_pair(m, id);
    if (l == NULL || p == NULL || !p->has_theirs || p->is_in_round || paths_find_used(p) == NULL)
        return;
    paths_begin_check(m, p, l);
    if (p->is_in_round)
        p->doubt_ms = uv_now(m->loop);
    if (m->probe.link == NULL)
        paths_go_on(m);
}
