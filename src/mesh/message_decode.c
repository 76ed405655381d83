/* Reading the messages of message.h: nothing is believed before it is checked. */
#include "mesh/message.h"

#include <stdlib.h>
#include <string.h>

struct reader { /* a cursor that remembers the first field that was wrong */
    struct cursor c;
    const char *bad_field;
};

static void reader_init(struct reader *r, const struct mesh_message *m)
{
    cursor_init(&r->c, m->payload, m->len);
    r->bad_field = NULL;
}

static void refuse(struct reader *r, const char *field)
{
    if (r->bad_field == NULL)
        r->bad_field = field;
    r->c.failed = true;
}

static int reader_end(struct reader *r, const char *message, struct error *err)
{
    if (r->bad_field != NULL)
        return error_set(err, E_PROTOCOL, "%s message: field %s is out of range", message,
                         r->bad_field);
    if (r->c.failed)
        return error_set(err, E_PROTOCOL, "%s message ends early, at byte %zu of %zu", message,
                         r->c.offset, r->c.size);
    if (cursor_left(&r->c) != 0)
        return error_set(err, E_PROTOCOL, "%s message has %zu bytes too many", message,
                         cursor_left(&r->c));
    return 0;
}

/* Text without control characters: it ends in logs and on terminals. */
static void get_text(struct reader *r, char *ret_text, size_t size, const char *field)
{
    uint32_t len = cursor_u32(&r->c);
    ret_text[0] = '\0';
    if (len >= size) {
        refuse(r, field);
        return;
    }
    const char *text = cursor_bytes(&r->c, len);
    if (text == NULL)
        return;
    for (uint32_t i = 0; i < len; i++)
        if ((unsigned char)text[i] < ' ' || text[i] == 0x7f) {
            refuse(r, field);
            return;
        }
    memcpy(ret_text, text, len);
    ret_text[len] = '\0';
}

static void get_array(struct reader *r, void *ret, size_t n)
{
    const void *p = cursor_bytes(&r->c, n);
    if (p != NULL)
        memcpy(ret, p, n);
}

static const void *get_bytes(struct reader *r, size_t *ret_len)
{
    uint32_t len = cursor_u32(&r->c);
    const void *p = cursor_bytes(&r->c, len);
    *ret_len = p != NULL ? len : 0;
    return p;
}

static uint32_t get_u32_max(struct reader *r, uint32_t max, const char *field)
{
    uint32_t v = cursor_u32(&r->c);
    if (v > max) {
        refuse(r, field);
        return 0;
    }
    return v;
}

static uint8_t get_u8_max(struct reader *r, uint8_t max, const char *field)
{
    uint8_t v = cursor_u8(&r->c);
    if (v > max) {
        refuse(r, field);
        return 0;
    }
    return v;
}

static void get_address(struct reader *r, struct mesh_address *ret, const char *field)
{
    get_text(r, ret->host, sizeof(ret->host), field);
    ret->port = cursor_u16(&r->c);
}

static struct range get_range(struct reader *r, uint32_t max, const char *field)
{
    struct range v;
    v.begin = get_u32_max(r, max, field);
    v.end = get_u32_max(r, max, field);
    if (v.begin > v.end)
        refuse(r, field);
    return v;
}

int mesh_decode_hello(const struct mesh_message *m, struct mesh_hello *ret, struct error *err)
{
    struct reader r;
    struct mesh_hello v = {0};
    reader_init(&r, m);
    /* The version stands first and says how to read the rest. */
    v.version = cursor_u32(&r.c);
    if (!r.c.failed && v.version != MESH_PROTOCOL_VERSION)
        return error_set(err, E_PROTOCOL,
                         "peer speaks mesh protocol %u, this node %d: run the same version on both",
                         v.version, MESH_PROTOCOL_VERSION);
    get_array(&r, v.id.bytes, sizeof(v.id.bytes));
    get_array(&r, v.nonce, sizeof(v.nonce));
    v.has_secret = get_u8_max(&r, 1, "has_secret");
    get_text(&r, v.name, sizeof(v.name), "name");
    get_address(&r, &v.api, "api");
    get_address(&r, &v.mesh, "mesh");
    v.memory_bytes_total = cursor_u64(&r.c);
    v.memory_bytes_free = cursor_u64(&r.c);
    v.n_cores = cursor_u32(&r.c);
    int rc = reader_end(&r, "HELLO", err);
    if (rc == 0)
        *ret = v;
    return rc;
}

int mesh_decode_proof(const struct mesh_message *m, struct mesh_proof *ret, struct error *err)
{
    struct reader r;
    struct mesh_proof v = {0};
    reader_init(&r, m);
    get_array(&r, v.mac, sizeof(v.mac));
    int rc = reader_end(&r, "PROOF", err);
    if (rc == 0)
        *ret = v;
    return rc;
}

int mesh_decode_heartbeat(const struct mesh_message *m, struct mesh_heartbeat *ret,
                          struct error *err)
{
    struct reader r;
    struct mesh_heartbeat v = {0};
    reader_init(&r, m);
    v.memory_bytes_free = cursor_u64(&r.c);
    v.n_running = cursor_u32(&r.c);
    v.is_stopping = get_u8_max(&r, 1, "is_stopping");
    int rc = reader_end(&r, "HEARTBEAT", err);
    if (rc == 0)
        *ret = v;
    return rc;
}

static void get_rank(struct reader *r, struct rank_info *ret)
{
    get_array(r, ret->node.bytes, sizeof(ret->node.bytes));
    ret->status = (enum rank_status)get_u8_max(r, RANK_STATUS_COUNT - 1, "rank status");
    ret->stage = get_u32_max(r, LIMIT_STAGES - 1, "stage");
    ret->layers = get_range(r, LIMIT_MODEL_LAYERS, "layers");
    ret->kv_heads = get_range(r, LIMIT_MODEL_WIDTH, "kv_heads");
    ret->weight_bytes = cursor_u64(&r->c);
    ret->kv_bytes = cursor_u64(&r->c);
    ret->pid = cursor_u32(&r->c);
}

static void get_instance(struct reader *r, struct instance_info *ret)
{
    get_array(r, ret->id.bytes, sizeof(ret->id.bytes));
    get_array(r, ret->coordinator.bytes, sizeof(ret->coordinator.bytes));
    get_text(r, ret->model_id, sizeof(ret->model_id), "model_id");
    get_text(r, ret->path, sizeof(ret->path), "path");
    get_array(r, ret->model_hash, sizeof(ret->model_hash));
    ret->status = (enum instance_status)get_u8_max(r, INSTANCE_STATUS_COUNT - 1, "instance status");
    get_text(r, ret->error, sizeof(ret->error), "error");
    get_text(r, ret->split, sizeof(ret->split), "split");
    ret->n_ctx = cursor_u32(&r->c);
    ret->n_slots = cursor_u32(&r->c);
    ret->n_restarts = cursor_u32(&r->c);
    ret->created_s = cursor_u64(&r->c);
    ret->n_ranks = get_u32_max(r, LIMIT_RANKS, "n_ranks");
    for (uint32_t i = 0; i < ret->n_ranks && !r->c.failed; i++)
        get_rank(r, &ret->rank[i]);
}

static void get_node(struct reader *r, struct node_info *ret)
{
    get_array(r, ret->id.bytes, sizeof(ret->id.bytes));
    get_text(r, ret->name, sizeof(ret->name), "name");
    get_address(r, &ret->api, "api");
    get_address(r, &ret->mesh, "mesh");
    ret->memory_bytes_total = cursor_u64(&r->c);
    ret->memory_bytes_free = cursor_u64(&r->c);
    ret->n_cores = cursor_u32(&r->c);
}

int mesh_decode_state(const struct mesh_message *m, struct mesh_state *ret, struct error *err)
{
    struct reader r;
    struct mesh_state v = {0};
    reader_init(&r, m);
    v.n_nodes = get_u32_max(&r, LIMIT_PEERS, "n_nodes");
    v.nodes = calloc(v.n_nodes + 1, sizeof(*v.nodes));
    for (uint32_t i = 0; v.nodes != NULL && i < v.n_nodes && !r.c.failed; i++)
        get_node(&r, &v.nodes[i]);
    v.n_instances = get_u32_max(&r, LIMIT_INSTANCES, "n_instances");
    v.instances = calloc(v.n_instances + 1, sizeof(*v.instances));
    for (uint32_t i = 0; v.instances != NULL && i < v.n_instances && !r.c.failed; i++)
        get_instance(&r, &v.instances[i]);
    int rc = v.nodes == NULL || v.instances == NULL
                 ? error_set(err, E_NOMEM, "out of memory for a STATE message")
                 : reader_end(&r, "STATE", err);
    if (rc != 0) {
        mesh_state_done(&v);
        return rc;
    }
    *ret = v;
    return 0;
}

void mesh_state_done(struct mesh_state *s)
{
    free(s->nodes);
    free(s->instances);
    *s = (struct mesh_state){0};
}

int mesh_decode_rank_start(const struct mesh_message *m, struct mesh_rank_start *ret,
                           struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_rank_start){0};
    ret->launch = cursor_u64(&r.c);
    ret->rank = get_u32_max(&r, LIMIT_RANKS - 1, "rank");
    ret->n_node_ranks = get_u32_max(&r, LIMIT_RANKS, "n_node_ranks");
    get_array(&r, ret->model_hash, sizeof(ret->model_hash));
    get_text(&r, ret->path, sizeof(ret->path), "path");
    ret->frame = get_bytes(&r, &ret->frame_len);
    return reader_end(&r, "RANK_START", err);
}

int mesh_decode_rank_frame(const struct mesh_message *m, struct mesh_rank_frame *ret,
                           struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    ret->launch = cursor_u64(&r.c);
    ret->rank = get_u32_max(&r, LIMIT_RANKS - 1, "rank");
    ret->frame = get_bytes(&r, &ret->frame_len);
    return reader_end(&r, "RANK_FRAME", err);
}

int mesh_decode_rank_stop(const struct mesh_message *m, uint64_t *ret_launch, uint32_t *ret_rank,
                          struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_launch = cursor_u64(&r.c);
    *ret_rank = get_u32_max(&r, LIMIT_RANKS - 1, "rank");
    return reader_end(&r, "RANK_STOP", err);
}

int mesh_decode_rank_ended(const struct mesh_message *m, struct mesh_rank_ended *ret,
                           struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    ret->launch = cursor_u64(&r.c);
    ret->rank = get_u32_max(&r, LIMIT_RANKS - 1, "rank");
    get_text(&r, ret->reason, sizeof(ret->reason), "reason");
    return reader_end(&r, "RANK_ENDED", err);
}

int mesh_decode_submit(const struct mesh_message *m, struct mesh_submit *ret, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    get_array(&r, ret->instance.bytes, sizeof(ret->instance.bytes));
    ret->frame = get_bytes(&r, &ret->frame_len);
    return reader_end(&r, "SUBMIT", err);
}

int mesh_decode_cancel(const struct mesh_message *m, uint64_t *ret_request, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_request = cursor_u64(&r.c);
    return reader_end(&r, "CANCEL", err);
}

int mesh_decode_event(const struct mesh_message *m, const void **ret_frame, size_t *ret_len,
                      struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_frame = get_bytes(&r, ret_len);
    return reader_end(&r, "EVENT", err);
}
