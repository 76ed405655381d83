/* Which way tensors go. The mesh measures the paths to each node and knows the routes that people
 * have given (mesh.h); here ranks are told of them: a runner listens where the mesh does, and each
 * node puts the best way that it knows itself into the CONNECT frame of its own runners. */
#include "base/json.h"
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_any(const char *host)
{
    return strcmp(host, "0.0.0.0") == 0 || strcmp(host, "::") == 0;
}

const struct placed_instance *paths_find_placed(const struct node *n, const struct node_id *id,
                                                uint64_t epoch)
{
    const struct cluster_state *s = n->cluster != NULL ? cluster_get_state(n->cluster) : NULL;
    for (uint32_t i = 0; s != NULL && i < s->n_instances; i++)
        if (s->instance[i].epoch == epoch && node_id_equal(&s->instance[i].id, id))
            return &s->instance[i];
    return NULL;
}

void paths_prepare(struct node *n, const struct placed_instance *placed, char host[64])
{
    bool has_others = placed == NULL;
    for (uint32_t r = 0; placed != NULL && r < placed->split.n_ranks; r++)
        if (!node_id_equal(&placed->node_of_rank[r], &n->id)) {
            has_others = true;
            mesh_check_path(n->mesh, &placed->node_of_rank[r]);
        }
    if (has_others && is_any(n->config.mesh.host))
        snprintf(host, 64, "%s", n->config.mesh.host);
}

/* Where this node's own runner finds a rank of that node. False: where the leader says. Higher
 * ranks connect to lower ones. */
static bool find_host(const struct node *n, const struct node_id *id, bool is_connecting,
                      char host[64])
{
    if (!node_id_equal(id, &n->id))
        return is_connecting ? mesh_take_path(n->mesh, id, host)
                             : mesh_tensor_host(n->mesh, id, host);
    if (!is_any(n->config.mesh.host))
        return false;
    snprintf(host, 64, "%s", n->config.mesh.host[0] == ':' ? "::1" : "127.0.0.1");
    return true;
}

/* ---- frames that wait ---- */

enum { HELD_MS_MAX = 2500 };

struct held_frame {
    struct held_frame *next;
    struct rank_owner owner;
    uint32_t rank;
    uint64_t until_ms;
    struct buf frame;
};

static bool are_paths_known(const struct node *n, const struct placed_instance *placed)
{
    for (uint32_t r = 0; r < placed->split.n_ranks; r++)
        if (!node_id_equal(&placed->node_of_rank[r], &n->id) &&
            !mesh_paths_are_known(n->mesh, &placed->node_of_rank[r]))
            return false;
    return true;
}

static bool hold(struct node *n, const struct rank_owner *owner, uint32_t rank, struct buf *frame)
{
    struct held_frame *h = calloc(1, sizeof(*h));
    if (h == NULL)
        return false; /* then over the link's address */
    *h = (struct held_frame){.next = n->held,
                             .owner = *owner,
                             .rank = rank,
                             .until_ms = uv_now(n->loop) + HELD_MS_MAX,
                             .frame = *frame};
    buf_init(frame, frame->max_len); /* its bytes are ours now */
    n->held = h;
    return true;
}

bool paths_direct(struct node *n, const struct rank_owner *owner, uint32_t rank, struct buf *frame)
{
    const struct placed_instance *placed = paths_find_placed(n, &owner->instance, owner->epoch);
    struct message m;
    struct message_connect connect;
    struct error err = {0};
    bool has_others = false;
    if (placed == NULL || n->mesh == NULL || frame->error != 0 ||
        message_next(frame->data, frame->len, &m, &err) <= 0 || m.type != MESSAGE_CONNECT ||
        message_decode_connect(&m, &connect, &err) != 0 || connect.n_peers != placed->split.n_ranks)
        return false;
    for (uint32_t r = 0; r < connect.n_peers; r++)
        has_others = has_others || !node_id_equal(&placed->node_of_rank[r], &n->id);
    if (!has_others)
        return false;
    if (!n->is_held_late && !are_paths_known(n, placed) && hold(n, owner, rank, frame))
        return true;
    for (uint32_t r = 0; r < connect.n_peers; r++) {
        char host[64], name[64];
        if (!find_host(n, &placed->node_of_rank[r], r < rank, host))
            continue;
        if (!node_id_equal(&placed->node_of_rank[r], &n->id))
            log_info("node", "epoch=%llx rank=%u peer=%s address=%s tensors go there",
                     (unsigned long long)owner->epoch, r,
                     core_node_name(n, &placed->node_of_rank[r], name), host);
        memcpy(connect.peer[r].host, host, sizeof(connect.peer[r].host));
    }
    buf_reset(frame);
    message_encode_connect(frame, &connect);
    return false;
}

void paths_tick(struct node *n)
{
    struct held_frame *held = n->held;
    n->held = NULL;
    while (held != NULL) {
        struct held_frame *h = held;
        held = h->next;
        n->is_held_late = uv_now(n->loop) >= h->until_ms;
        struct held_frame *before = n->held;
        ranks_send(n, &h->owner, h->rank, &h->frame); /* may hold it again */
        if (n->held != before)
            n->held->until_ms = h->until_ms;
        n->is_held_late = false;
        free(h);
    }
}

void paths_drop_all(struct node *n)
{
    while (n->held != NULL) {
        struct held_frame *h = n->held;
        n->held = h->next;
        buf_done(&h->frame);
        free(h);
    }
}

bool paths_is_busy(void *self, const struct node_id *id)
{
    const struct node *n = self;
    const struct cluster_state *s = n->cluster != NULL ? cluster_get_state(n->cluster) : NULL;
    for (uint32_t i = 0; s != NULL && i < s->n_instances; i++) {
        const struct placed_instance *p = &s->instance[i];
        bool has_us = false, has_them = false;
        for (uint32_t r = 0; r < p->split.n_ranks; r++) {
            has_us = has_us || node_id_equal(&p->node_of_rank[r], &n->id);
            has_them = has_them || node_id_equal(&p->node_of_rank[r], id);
        }
        if (has_us && has_them)
            return true;
    }
    return false;
}

/* ---- for people ---- */

static const char *const status_names[] = {"untried", "reached", "unreached"};

static void put_text(struct buf *b, const char *key, const char *text)
{
    buf_printf(b, "\"%s\":", key);
    json_append_string(b, text, strlen(text));
    buf_append_char(b, ',');
}

void paths_json(const struct node *n, struct buf *b, const struct node_id *id)
{
    struct mesh_path p;
    buf_append_str(b, "\"paths\":[");
    for (uint32_t i = 0; n->mesh != NULL && mesh_path_at(n->mesh, id, i, &p); i++) {
        buf_append_str(b, i > 0 ? ",{" : "{");
        put_text(b, "local", p.local);
        put_text(b, "remote", p.remote);
        put_text(b, "local_interface", p.local_interface);
        put_text(b, "remote_interface", p.remote_interface);
        put_text(b, "local_kind", device_link_kind_name(p.local_kind));
        put_text(b, "remote_kind", device_link_kind_name(p.remote_kind));
        put_text(b, "status", status_names[p.status]);
        buf_printf(b,
                   "\"rtt_us\":%u,\"mbit_s\":%.1f,\"age_ms\":%llu,\"is_route\":%s,\"is_used\":%s,"
                   "\"is_taken\":%s}",
                   p.figures.rtt_us, (double)p.figures.mbit_s, (unsigned long long)p.age_ms,
                   p.is_route ? "true" : "false", p.is_used ? "true" : "false",
                   p.is_taken ? "true" : "false");
    }
    buf_append_char(b, ']');
}
