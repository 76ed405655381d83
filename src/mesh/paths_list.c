/* Paths: which there are between this node and another. */
#include "mesh/internal.h"

#include <stdio.h>
#include <string.h>

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

static void add_path(struct mesh *m, struct pair *p, const struct path *old, uint32_t n_old,
                     const struct mesh_interface *theirs, const struct own_address *near)
{
    struct path *path = &p->path[p->n_paths];
    bool is_link_local = interfaces_is_link_local(theirs->host);
    (void)m;
    if (p->n_paths == MESH_PATHS_MAX)
        return;
    memset(path, 0, sizeof(*path));
    if (is_link_local)
        snprintf(path->is.remote, sizeof(path->is.remote), "%.46s%%%s", theirs->host,
                 near->is.name);
    else
        snprintf(path->is.remote, sizeof(path->is.remote), "%s", theirs->host);
    for (uint32_t i = 0; i < n_old; i++)
        if (strcmp(old[i].is.remote, path->is.remote) == 0)
            *path = old[i];
    snprintf(path->is.remote_interface, sizeof(path->is.remote_interface), "%s", theirs->name);
    path->is.remote_kind = theirs->kind < DEVICE_LINK_KIND_COUNT
                               ? (enum device_link_kind)theirs->kind
                               : DEVICE_LINK_UNKNOWN;
    if (near != NULL) {
        snprintf(path->is.local, sizeof(path->is.local), is_link_local ? "%.46s%%%s" : "%.46s",
                 near->is.host, near->is.name);
        snprintf(path->is.local_interface, sizeof(path->is.local_interface), "%s", near->is.name);
        path->is.local_kind = (enum device_link_kind)near->is.kind;
    }
    path->is_link = false;
    path->is_due = true;
    p->n_paths++;
}

static bool has_family(const struct mesh *m, bool is_v6)
{
    for (uint32_t i = 0; i < m->n_own; i++)
        if ((m->own[i].family == AF_INET6) == is_v6)
            return true;
    return false;
}

/* An address of theirs that could lead somewhere else than to this computer itself. */
static bool is_plausible(const struct mesh *m, const struct mesh_link *l, const char *host)
{
    return interfaces_find(m, host) == NULL && has_family(m, strchr(host, ':') != NULL) &&
           (!is_loopback(host) || is_loopback(l->remote_host));
}

void paths_list(struct mesh *m, struct pair *p, const struct mesh_link *l)
{
    struct path old[MESH_PATHS_MAX];
    char used[64] = "";
    uint32_t n_old = p->n_paths;
    bool has_links = false;
    struct mesh_interface of_link = {0};
    memcpy(old, p->path, sizeof(old));
    if (p->best < p->n_paths)
        memcpy(used, p->path[p->best].is.remote, sizeof(used));
    p->n_paths = 0;
    for (int pass = 0; pass < 3; pass++)
        for (uint32_t i = 0; i < p->theirs.n; i++) {
            const struct mesh_interface *a = &p->theirs.at[i];
            const struct own_address *near = interfaces_find_near(m, a->host);
            bool is_link_local = interfaces_is_link_local(a->host);
            has_links = has_links || interfaces_is_same(a->host, l->remote_host);
            if ((is_link_local ? 2 : near != NULL ? 0 : 1) != pass || !is_plausible(m, l, a->host))
                continue;
            for (uint32_t k = 0; is_link_local && k < m->n_own; k++)
                if (m->own[k].is_link_local && m->own[k].family == AF_INET6)
                    add_path(m, p, old, n_old, a, &m->own[k]);
            if (!is_link_local)
                add_path(m, p, old, n_old, a, near);
        }
    interfaces_strip(l->remote_host, of_link.host);
    if (!has_links && !is_loopback(of_link.host) && !interfaces_is_link_local(of_link.host) &&
        is_plausible(m, l, of_link.host))
        add_path(m, p, old, n_old, &of_link, interfaces_find_near(m, of_link.host));
    p->best = p->n_paths;
    for (uint32_t i = 0; i < p->n_paths; i++)
        if (strcmp(p->path[i].is.remote, used) == 0)
            p->best = i;
}
