/* The cluster's state as JSON: GET /v1/cluster/state. docs/internals/node.md lists the fields. */
#include "base/json.h"
#include "node/internal.h"

#include <string.h>

static void put_text(struct buf *b, const char *key, const char *text)
{
    buf_printf(b, "\"%s\":", key);
    json_append_string(b, text, strlen(text));
}

static void put_address(struct buf *b, const char *key, const struct mesh_address *a)
{
    bool is_v6 = strchr(a->host, ':') != NULL;
    char text[96];
    snprintf(text, sizeof(text), "%s%s%s:%u", is_v6 ? "[" : "", a->host, is_v6 ? "]" : "", a->port);
    put_text(b, key, text);
}

static void put_id(struct buf *b, const char *key, const struct node_id *id)
{
    char text[33];
    put_text(b, key, node_id_text(id, text));
}

static void put_node(struct buf *b, const struct node_info *info, bool is_self, const char *status,
                     uint64_t last_seen_ms)
{
    buf_append_char(b, '{');
    put_id(b, "id", &info->id);
    buf_append_char(b, ',');
    put_text(b, "name", info->name);
    buf_append_char(b, ',');
    put_address(b, "api", &info->api);
    buf_append_char(b, ',');
    put_address(b, "mesh", &info->mesh);
    buf_append_char(b, ',');
    put_text(b, "status", status);
    buf_printf(b,
               ",\"is_self\":%s,\"memory_bytes_total\":%llu,\"memory_bytes_free\":%llu,"
               "\"cores\":%u,\"last_seen_ms\":%llu}",
               is_self ? "true" : "false", (unsigned long long)info->memory_bytes_total,
               (unsigned long long)info->memory_bytes_free, info->n_cores,
               (unsigned long long)last_seen_ms);
}

static void put_self(struct node *n, struct buf *b)
{
    struct node_info self = {
        .id = n->id,
        .api = {.port = node_api_port(n)},
        .mesh = {.port = node_mesh_port(n)},
        .memory_bytes_total = n->memory_bytes_total,
        .memory_bytes_free = device_memory_bytes_free(),
        .n_cores = n->n_cores,
    };
    memcpy(self.name, n->config.name, sizeof(self.name));
    memcpy(self.api.host, n->config.api.host, sizeof(self.api.host));
    memcpy(self.mesh.host, n->config.mesh.host, sizeof(self.mesh.host));
    put_node(b, &self, true, n->phase == NODE_RUNNING ? "up" : "stopping", 0);
}

static const char *known_status(const struct known_node *k)
{
    if (k->link == NULL)
        return k->is_lost ? "lost" : "heard";
    return mesh_link_silent_ms(k->link) > MESH_SILENCE_LOG_MS ? "silent" : "up";
}

static void put_known(struct node *n, struct buf *b, const struct known_node *k)
{
    struct node_info info = k->info;
    if (k->link != NULL)
        info.memory_bytes_free = mesh_link_heartbeat(k->link)->memory_bytes_free;
    uint64_t ms = k->link != NULL ? mesh_link_silent_ms(k->link) : uv_now(n->loop) - k->seen_ms;
    put_node(b, &info, false, known_status(k), ms);
}

/* A node's name where we know it, for people; else its id. */
static void put_node_name(const struct node *n, struct buf *b, const char *key,
                          const struct node_id *id)
{
    if (node_id_equal(id, &n->id)) {
        put_text(b, key, n->config.name);
        return;
    }
    for (uint32_t i = 0; i < n->n_known; i++)
        if (node_id_equal(&n->known[i].info.id, id)) {
            put_text(b, key, n->known[i].info.name);
            return;
        }
    put_id(b, key, id);
}

static void put_rank(const struct node *n, struct buf *b, uint32_t rank, const struct rank_info *r)
{
    buf_printf(b, "{\"rank\":%u,", rank);
    put_node_name(n, b, "node", &r->node);
    buf_append_char(b, ',');
    put_id(b, "node_id", &r->node);
    buf_printf(b,
               ",\"stage\":%u,\"layers\":[%u,%u],\"kv_heads\":[%u,%u],\"weight_bytes\":%llu,"
               "\"kv_bytes\":%llu,\"pid\":%u,",
               r->stage, r->layers.begin, r->layers.end, r->kv_heads.begin, r->kv_heads.end,
               (unsigned long long)r->weight_bytes, (unsigned long long)r->kv_bytes, r->pid);
    put_text(b, "status", rank_status_name(r->status));
    buf_append_char(b, '}');
}

static void put_instance(const struct node *n, struct buf *b, const struct instance_info *i)
{
    buf_append_char(b, '{');
    put_id(b, "id", &i->id);
    buf_append_char(b, ',');
    put_text(b, "model", i->model_id);
    buf_append_char(b, ',');
    put_node_name(n, b, "coordinator", &i->coordinator);
    buf_append_char(b, ',');
    put_text(b, "status", instance_status_name(i->status));
    buf_append_char(b, ',');
    put_text(b, "error", i->error);
    buf_append_char(b, ',');
    put_text(b, "split", i->split);
    buf_printf(b, ",\"n_ctx\":%u,\"n_slots\":%u,\"restarts\":%u,\"created\":%llu,\"ranks\":[",
               i->n_ctx, i->n_slots, i->n_restarts, (unsigned long long)i->created_s);
    for (uint32_t r = 0; r < i->n_ranks; r++) {
        if (r > 0)
            buf_append_char(b, ',');
        put_rank(n, b, r, &i->rank[r]);
    }
    buf_append_str(b, "]}");
}

int state_json(struct node *n, struct buf *out)
{
    uint32_t running, queued;
    struct mesh_stats mesh;
    buf_append_str(out, "{\"version\":1,\"node\":");
    put_self(n, out);
    buf_append_str(out, ",\"nodes\":[");
    put_self(n, out);
    for (uint32_t i = 0; i < n->n_known; i++) {
        buf_append_char(out, ',');
        put_known(n, out, &n->known[i]);
    }
    buf_append_str(out, "],\"instances\":[");
    if (n->instance != NULL)
        put_instance(n, out, &n->instance->info);
    for (uint32_t i = 0; i < n->n_remote; i++) {
        if (i > 0 || n->instance != NULL)
            buf_append_char(out, ',');
        put_instance(n, out, n->remote[i].info);
    }
    requests_count(n, &running, &queued);
    mesh_get_stats(n->mesh, &mesh);
    return buf_printf(
        out,
        "],\"requests\":{\"running\":%u,\"queued\":%u,\"completed\":%llu,\"failed\":%llu,"
        "\"cancelled\":%llu},\"mesh_errors\":{\"refused\":%llu,\"malformed\":%llu,\"lost\":%llu}}",
        running, queued, (unsigned long long)n->counts.completed,
        (unsigned long long)n->counts.failed, (unsigned long long)n->counts.cancelled,
        (unsigned long long)mesh.n_refused, (unsigned long long)mesh.n_malformed,
        (unsigned long long)mesh.n_lost);
}

bool state_health(struct node *n, struct buf *out)
{
    uint32_t n_ready = 0, n_known = 0;
    for (uint32_t i = 0; i < n->n_served; i++) {
        n_known += n->served[i]->is_listed;
        n_ready += n->served[i]->is_listed && n->served[i]->api.is_ready;
    }
    put_text(out, "node", n->config.name);
    buf_printf(out, ",\"models\":%u,\"models_ready\":%u,\"peers\":%u", n_known, n_ready,
               n->n_known);
    /* A node without a model is healthy: it has nothing to serve yet. */
    return n->phase == NODE_RUNNING && (n_known == 0 || n_ready > 0);
}
