/* What this node knows of the cluster: nodes that it has links to, nodes that those have told of,
 * instances that others coordinate. And the telling of it. */
#include "base/log.h"
#include "node/internal.h"

#include <stdlib.h>
#include <string.h>

enum { GOSSIP_DELAY_MS = 20 }; /* changes of one moment go out together */

static struct known_node *find_known(struct node *n, const struct node_id *id)
{
    for (uint32_t i = 0; i < n->n_known; i++)
        if (node_id_equal(&n->known[i].info.id, id))
            return &n->known[i];
    return NULL;
}

/* The entry for a node; when the table is full, one that was lost longest ago makes room. */
static struct known_node *find_or_add(struct node *n, const struct node_id *id)
{
    struct known_node *k = find_known(n, id);
    if (k != NULL)
        return k;
    uint32_t at = n->n_known;
    if (at < KNOWN_NODES_MAX) {
        n->n_known++;
    } else {
        uint64_t oldest_ms = UINT64_MAX;
        for (uint32_t i = 0; i < n->n_known; i++)
            if (n->known[i].link == NULL && n->known[i].seen_ms < oldest_ms) {
                at = i;
                oldest_ms = n->known[i].seen_ms;
            }
        if (at == KNOWN_NODES_MAX)
            return NULL;
    }
    n->known[at] = (struct known_node){.info.id = *id, .seen_ms = uv_now(n->loop)};
    return &n->known[at];
}

/* ---- telling ---- */

void peers_send_state(struct node *n)
{
    struct mesh_link *links[LIMIT_PEERS];
    struct mesh_state state = {0};
    struct node_info *nodes = calloc(LIMIT_PEERS, sizeof(*nodes));
    uint32_t n_links = 0;
    struct buf b;
    while (n_links < LIMIT_PEERS && (links[n_links] = mesh_link_at(n->mesh, n_links)) != NULL)
        n_links++;
    for (uint32_t i = 0; nodes != NULL && i < n->n_known; i++)
        if (n->known[i].link != NULL) {
            nodes[state.n_nodes] = n->known[i].info;
            nodes[state.n_nodes++].memory_bytes_free =
                mesh_link_heartbeat(n->known[i].link)->memory_bytes_free;
        }
    state.nodes = nodes;
    if (n->instance != NULL) {
        state.n_instances = 1;
        state.instances = &n->instance->info;
    }
    for (uint32_t i = 0; i < n_links; i++) {
        buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
        mesh_encode_state(&b, &state);
        mesh_link_send(links[i], &b);
    }
    free(nodes);
}

static void on_gossip(uv_timer_t *timer)
{
    struct node *n = timer->data;
    if (n->mesh != NULL && n->phase < NODE_CLOSING)
        peers_send_state(n);
}

void peers_state_changed(struct node *n)
{
    if (n->phase < NODE_CLOSING && !uv_is_active((uv_handle_t *)&n->gossip_timer))
        uv_timer_start(&n->gossip_timer, on_gossip, GOSSIP_DELAY_MS, 0);
}

/* ---- hearing ---- */

void peers_link_up(struct node *n, struct mesh_link *link)
{
    const struct mesh_hello *hello = mesh_link_hello(link);
    struct known_node *k = find_or_add(n, &hello->id);
    if (k == NULL) {
        mesh_link_close(link, "too many nodes");
        return;
    }
    memcpy(k->info.name, hello->name, sizeof(k->info.name));
    k->info.api = hello->api;
    k->info.mesh = hello->mesh;
    k->info.memory_bytes_total = hello->memory_bytes_total;
    k->info.memory_bytes_free = hello->memory_bytes_free;
    k->info.n_cores = hello->n_cores;
    k->link = link;
    k->via = NULL;
    k->is_lost = false;
    k->seen_ms = uv_now(n->loop);
    log_info("node", "peer=%s address=%s cores=%u memory_free_mib=%llu joined", hello->name,
             mesh_link_remote_host(link), hello->n_cores,
             (unsigned long long)(hello->memory_bytes_free >> 20));
    peers_state_changed(n);
}

static void forget_remote(struct node *n, const struct mesh_link *link)
{
    for (uint32_t i = 0; i < n->n_remote;)
        if (n->remote[i].link == link) {
            free(n->remote[i].info);
            n->remote[i] = n->remote[--n->n_remote];
        } else {
            i++;
        }
}

static void forget_hearsay(struct node *n, const struct mesh_link *link)
{
    for (uint32_t i = 0; i < n->n_known;)
        if (n->known[i].via == link)
            n->known[i] = n->known[--n->n_known];
        else
            i++;
}

void peers_link_down(struct node *n, const struct mesh_link *link)
{
    struct known_node *k = find_known(n, &mesh_link_hello(link)->id);
    forget_remote(n, link);
    if (k != NULL && k->link == link) {
        k->link = NULL;
        k->is_lost = true;
        k->seen_ms = uv_now(n->loop) - mesh_link_silent_ms(link);
    }
    forget_hearsay(n, link);
    backend_refresh(n);
    peers_state_changed(n);
}

static bool is_loopback(const char *host)
{
    return strncmp(host, "127.", 4) == 0 || strcmp(host, "::1") == 0;
}

static void take_nodes(struct node *n, struct mesh_link *link, const struct mesh_state *state)
{
    forget_hearsay(n, link);
    for (uint32_t i = 0; i < state->n_nodes; i++) {
        const struct node_info *info = &state->nodes[i];
        if (node_id_equal(&info->id, &n->id))
            continue;
        struct known_node *k = find_or_add(n, &info->id);
        if (k == NULL || k->link != NULL)
            continue;
        k->info = *info;
        k->via = link;
        k->is_lost = false;
        k->seen_ms = uv_now(n->loop);
        /* Its loopback is only ours when the teller is on this computer, too. */
        if (!is_loopback(info->mesh.host) || is_loopback(mesh_link_remote_host(link)))
            mesh_learn(n->mesh, &info->id, &info->mesh);
    }
}

static int take_instances(struct node *n, struct mesh_link *link, const struct mesh_state *state,
                          struct error *err)
{
    forget_remote(n, link);
    for (uint32_t i = 0; i < state->n_instances; i++) {
        const struct instance_info *info = &state->instances[i];
        if (!node_id_equal(&info->coordinator, &mesh_link_hello(link)->id))
            return error_set(err, E_PROTOCOL, "instance of another coordinator");
        if (n->n_remote == REMOTE_INSTANCES_MAX)
            break;
        struct instance_info *copy = malloc(sizeof(*copy));
        if (copy == NULL)
            return error_set(err, E_NOMEM, "out of memory for an instance's state");
        *copy = *info;
        n->remote[n->n_remote++] = (struct remote_instance){.info = copy, .link = link};
    }
    return 0;
}

int peers_take_state(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                     struct error *err)
{
    struct mesh_state state;
    int rc = mesh_decode_state(m, &state, err);
    if (rc != 0)
        return rc;
    take_nodes(n, link, &state);
    rc = take_instances(n, link, &state, err);
    mesh_state_done(&state);
    backend_refresh(n);
    return rc;
}
