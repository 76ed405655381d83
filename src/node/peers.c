/* How other nodes are found on the network: announces this one by multicast DNS, and gives what is
 * heard to the mesh as hints. Who they are is proven on the link. */
#include "base/log.h"
#include "node/internal.h"
#include "runner/runner.h"

#include <stdio.h>
#include <string.h>

static void on_found(void *self, const struct discovery_peer *peer)
{
    struct node *n = self;
    for (uint32_t i = 0; i < peer->n_addresses; i++) {
        struct mesh_address address = {.port = peer->port};
        const struct sockaddr *a = (const struct sockaddr *)&peer->address[i].address;
        if (uv_ip_name(a, address.host, sizeof(address.host)) != 0)
            continue;
        /* A link-local address means nothing without its interface. */
        const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)a;
        char interface[UV_IF_NAMESIZE];
        size_t size = sizeof(interface), len = strlen(address.host);
        if (a->sa_family == AF_INET6 && v6->sin6_scope_id != 0) {
            if (uv_if_indextoname(v6->sin6_scope_id, interface, &size) != 0 ||
                len + 1 + size >= sizeof(address.host))
                continue;
            snprintf(address.host + len, sizeof(address.host) - len, "%%%s", interface);
        }
        mesh_learn(n->mesh, &peer->info.id, &address);
    }
}

static void on_lost(void *self, const struct node_id *id)
{
    /* Links say who lives; an announcement that is gone means nothing for them. */
    (void)self, (void)id;
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

int peers_init(struct node *n)
{
    struct error err = {0};
    struct discovery_options o = {
        .self = {.id = n->id,
                 .memory_mib = n->device.memory_bytes_total >> 20,
                 .n_cores = n->device.n_cores},
        .port = mesh_port(n->mesh),
        .is_mlx_too = n->config.announces_mlx,
        .is_on_loopback = is_loopback(n->config.mesh.host),
    };
    struct discovery_events events = {.self = n, .found = on_found, .lost = on_lost};
    if (!n->config.discovers)
        return 0;
    snprintf(o.self.name, sizeof(o.self.name), "%s", n->config.name);
    snprintf(o.self.device, sizeof(o.self.device), "%.63s", n->capabilities.cpu);
    snprintf(o.self.version, sizeof(o.self.version), "%s", SHOAL_VERSION);
    int rc = discovery_open(n->loop, &o, &events, &n->discovery, &err);
    if (rc != 0)
        log_warn("node", "other nodes cannot be found by themselves: %s -> use --peer",
                 err.message);
    return rc;
}

static void on_closed(void *arg)
{
    struct node *n = arg;
    n->is_discovery_closed = true;
    node_check_stop(n);
}

void peers_close(struct node *n)
{
    struct discovery *d = n->discovery;
    n->discovery = NULL;
    n->is_discovery_closed = d == NULL;
    if (d != NULL)
        discovery_close(d, on_closed, n);
}
