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

static void put_figures(struct buf *b, const struct node_figures *f)
{
    buf_printf(b,
               ",\"memory_bytes_total\":%llu,\"memory_bytes_free\":%llu,\"cores\":%u,"
               "\"gflops\":%.1f,\"memory_gb_s\":%.1f,\"thermal\":\"%s\"",
               (unsigned long long)f->memory_bytes_total, (unsigned long long)f->memory_bytes_free,
               f->n_cores, (double)f->gflops, (double)f->memory_gb_s,
               thermal_state_name(f->thermal));
    if (f->battery_percent <= 100)
        buf_printf(b, ",\"battery_percent\":%u,\"on_battery\":%s", f->battery_percent,
                   f->on_battery ? "true" : "false");
}

static void put_self(struct node *n, struct buf *b)
{
    struct mesh_address api = n->config.api, mesh = n->config.mesh;
    struct cluster_self self;
    core_describe_self(n, &self);
    api.port = node_api_port(n);
    mesh.port = node_mesh_port(n);
    buf_append_char(b, '{');
    put_id(b, "id", &n->id);
    buf_append_char(b, ',');
    put_text(b, "name", n->config.name);
    buf_append_char(b, ',');
    put_address(b, "api", &api);
    buf_append_char(b, ',');
    put_address(b, "mesh", &mesh);
    buf_printf(b, ",\"status\":\"%s\",\"is_self\":true,\"is_drained\":%s,\"last_seen_ms\":0",
               n->phase == NODE_RUNNING ? "up" : "stopping",
               cluster_is_drained(n->cluster, &n->id) ? "true" : "false");
    put_figures(b, &self.figures);
    buf_append_char(b, '}');
}

static void put_member(struct node *n, struct buf *b, const struct member *m)
{
    const struct mesh_link *link = mesh_find(n->mesh, &m->id);
    uint64_t now_ms = uv_now(n->loop);
    buf_append_char(b, '{');
    put_id(b, "id", &m->id);
    buf_append_char(b, ',');
    put_text(b, "name", m->self.name);
    buf_append_char(b, ',');
    if (link != NULL) {
        put_address(b, "api", &mesh_link_hello(link)->api);
        buf_append_char(b, ',');
        put_address(b, "mesh", &mesh_link_hello(link)->mesh);
        buf_append_char(b, ',');
    }
    buf_printf(b, "\"status\":\"%s\",\"is_self\":false,\"is_drained\":%s,\"last_seen_ms\":%llu",
               m->status == MEMBER_UP && m->self.is_stopping ? "stopping"
                                                             : member_status_name(m->status),
               m->is_drained ? "true" : "false",
               (unsigned long long)(now_ms > m->heard_ms ? now_ms - m->heard_ms : 0));
    buf_printf(b, ",\"rtt_us\":%u,\"mbit_s\":%.0f", m->link.rtt_us, (double)m->link.mbit_s);
    put_figures(b, &m->self.figures);
    buf_append_char(b, ',');
    paths_json(n, b, &m->id);
    buf_append_char(b, '}');
}

static void put_node_name(const struct node *n, struct buf *b, const char *key,
                          const struct node_id *id)
{
    char name[64];
    put_text(b, key, core_node_name(n, id, name));
}

static void put_rank(const struct node *n, struct buf *b, const struct placed_instance *p,
                     const struct instance_report *report, uint32_t rank)
{
    static const struct rank_report none = {.status = RANK_ENDED};
    const struct rank_report *r =
        report != NULL && rank < report->n_ranks ? &report->rank[rank] : &none;
    buf_printf(b, "{\"rank\":%u,", rank);
    put_node_name(n, b, "node", &p->node_of_rank[rank]);
    buf_append_char(b, ',');
    put_id(b, "node_id", &p->node_of_rank[rank]);
    buf_printf(b,
               ",\"stage\":%u,\"layers\":[%u,%u],\"kv_heads\":[%u,%u],\"weight_bytes\":%llu,"
               "\"kv_bytes\":%llu,\"pid\":%u,",
               r->stage, r->layers.begin, r->layers.end, r->kv_heads.begin, r->kv_heads.end,
               (unsigned long long)r->weight_bytes, (unsigned long long)r->kv_bytes, r->pid);
    put_text(b, "status", rank_status_name(r->status));
    figures_put_rank(b, &r->work);
    buf_append_char(b, '}');
}

static void put_instance(const struct node *n, struct buf *b, const struct placed_instance *p)
{
    const struct instance_report *r = cluster_find_report(n->cluster, &p->id);
    char split[32];
    buf_append_char(b, '{');
    put_id(b, "id", &p->id);
    buf_append_char(b, ',');
    put_text(b, "model", p->model_id);
    buf_append_char(b, ',');
    put_node_name(n, b, "leader", &p->node_of_rank[0]);
    buf_append_char(b, ',');
    put_text(b, "status", instance_status_name(r != NULL ? r->status : INSTANCE_WAITING));
    buf_append_char(b, ',');
    put_text(b, "error", r != NULL ? r->error : "");
    buf_append_char(b, ',');
    put_text(b, "split", split_describe(&p->split, split));
    buf_printf(b,
               ",\"epoch\":%llu,\"n_ctx\":%u,\"n_slots\":%u,\"restarts\":%u,\"created\":%llu,"
               "\"decode_tok_s\":%.2f,\"prefill_tok_s\":%.2f",
               (unsigned long long)p->epoch, r != NULL ? r->n_ctx : 0, r != NULL ? r->n_slots : 0,
               p->n_repairs, (unsigned long long)(r != NULL ? r->created_s : 0),
               (double)p->decode_tok_s, (double)p->prefill_tok_s);
    if (r != NULL)
        figures_put_head(b, &r->head);
    buf_append_str(b, ",\"ranks\":[");
    for (uint32_t k = 0; k < p->split.n_ranks; k++) {
        if (k > 0)
            buf_append_char(b, ',');
        put_rank(n, b, p, r, k);
    }
    buf_append_str(b, "]}");
}

static void put_wanted(struct buf *b, const struct desired_model *m)
{
    buf_append_char(b, '{');
    put_text(b, "model", m->id);
    buf_append_char(b, ',');
    put_text(b, "path", m->path);
    buf_append_char(b, ',');
    put_text(b, "placement", placement_rule_name(m->rule));
    buf_append_char(b, ',');
    put_text(b, "problem", m->problem);
    buf_append_char(b, '}');
}

static void put_mesh_errors(const struct node *n, struct buf *b)
{
    struct mesh_stats mesh = {0};
    if (n->mesh != NULL)
        mesh_get_stats(n->mesh, &mesh);
    buf_printf(b, "{\"refused\":%llu,\"malformed\":%llu,\"lost\":%llu,\"refused_because\":{",
               (unsigned long long)mesh.n_refused, (unsigned long long)mesh.n_malformed,
               (unsigned long long)mesh.n_lost);
    for (int k = 0; k < MESH_REFUSAL_COUNT; k++)
        buf_printf(b, "%s\"%s\":%llu", k > 0 ? "," : "", mesh_refusal_name((enum mesh_refusal)k),
                   (unsigned long long)mesh.n_refused_of[k]);
    buf_append_str(b, "}}");
}

int state_json(struct node *n, struct buf *out)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    const struct member *m;
    uint32_t running, queued, n_wanted = 0;
    buf_append_str(out, "{\"version\":2,\"node\":");
    put_self(n, out);
    buf_append_char(out, ',');
    telemetry_json(n, out);
    buf_append_str(out, ",\"nodes\":[");
    put_self(n, out);
    for (uint32_t i = 0; (m = cluster_member_at(n->cluster, i)) != NULL; i++) {
        buf_append_char(out, ',');
        put_member(n, out, m);
    }
    buf_append_str(out, "],\"coordinator\":");
    if (cluster_has_coordinator(n->cluster)) {
        char name[64];
        core_node_name(n, &s->claim.coordinator, name);
        json_append_string(out, name, strlen(name));
    } else {
        buf_append_str(out, "null");
    }
    buf_printf(out, ",\"term\":%llu,\"state_version\":%llu,\"models\":[",
               (unsigned long long)s->claim.term, (unsigned long long)s->claim.version);
    for (uint32_t k = 0; k < s->n_models; k++)
        if (s->model[k].is_wanted) {
            if (n_wanted++ > 0)
                buf_append_char(out, ',');
            put_wanted(out, &s->model[k]);
        }
    buf_append_str(out, "],\"instances\":[");
    for (uint32_t k = 0; k < s->n_instances; k++) {
        if (k > 0)
            buf_append_char(out, ',');
        put_instance(n, out, &s->instance[k]);
    }
    requests_count(n, &running, &queued);
    buf_printf(out,
               "],\"requests\":{\"running\":%u,\"queued\":%u,\"completed\":%llu,\"failed\":%llu,"
               "\"cancelled\":%llu,\"repaired\":%llu},\"mesh_errors\":",
               running, queued, (unsigned long long)n->counts.completed,
               (unsigned long long)n->counts.failed, (unsigned long long)n->counts.cancelled,
               (unsigned long long)n->counts.repaired);
    put_mesh_errors(n, out);
    return buf_append_char(out, '}');
}

bool state_health(struct node *n, struct buf *out)
{
    uint32_t n_ready = 0, n_known = 0, n_up = 0;
    const struct member *m;
    for (uint32_t i = 0; (m = cluster_member_at(n->cluster, i)) != NULL; i++)
        n_up += m->status == MEMBER_UP;
    for (uint32_t i = 0; i < n->n_served; i++) {
        n_known += n->served[i]->is_listed;
        n_ready += n->served[i]->is_listed && n->served[i]->api.is_ready;
    }
    put_text(out, "node", n->config.name);
    buf_printf(out, ",\"models\":%u,\"models_ready\":%u,\"peers\":%u", n_known, n_ready, n_up);
    /* A node without a model is healthy: it has nothing to serve yet. */
    return n->phase == NODE_RUNNING && (n_known == 0 || n_ready > 0);
}
