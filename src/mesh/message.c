#include "mesh/message.h"

#include <string.h>

enum { TYPE_LAST = MESH_EVENT };

static const char *const status_names[INSTANCE_STATUS_COUNT] = {
    [INSTANCE_WAITING] = "waiting", [INSTANCE_STARTING] = "starting",
    [INSTANCE_LOADING] = "loading", [INSTANCE_SERVING] = "serving",
    [INSTANCE_FAILED] = "failed",   [INSTANCE_STOPPED] = "stopped",
};

static const char *const rank_names[RANK_STATUS_COUNT] = {
    [RANK_STARTING] = "starting", [RANK_LISTENING] = "listening", [RANK_LOADING] = "loading",
    [RANK_READY] = "ready",       [RANK_ENDED] = "ended",
};

const char *instance_status_name(enum instance_status status)
{
    return status_names[status];
}

const char *rank_status_name(enum rank_status status)
{
    return rank_names[status];
}

int64_t mesh_message_next(const void *data, size_t n, size_t len_max,
                          struct mesh_message *ret_message, struct error *err)
{
    struct cursor c;
    if (n < MESH_HEADER_BYTES)
        return 0;
    cursor_init(&c, data, n);
    uint32_t len = cursor_u32(&c);
    uint16_t type = cursor_u16(&c);
    uint16_t zero = cursor_u16(&c);
    if (zero != 0 || type < MESH_HELLO || type > TYPE_LAST)
        return error_set(err, E_PROTOCOL, "not a frame of a mesh link: type %u, reserved field %u",
                         type, zero);
    if (len > len_max)
        return error_set(err, E_PROTOCOL, "frame of type %u claims %u bytes (at most %zu)", type,
                         len, len_max);
    if (n - MESH_HEADER_BYTES < len)
        return 0;
    *ret_message = (struct mesh_message){
        .type = (enum mesh_type)type,
        .payload = (const uint8_t *)data + MESH_HEADER_BYTES,
        .len = len,
    };
    return (int64_t)MESH_HEADER_BYTES + len;
}

static size_t frame_begin(struct buf *b, enum mesh_type type)
{
    size_t start = b->len;
    buf_append_u32(b, 0);
    buf_append_u16(b, (uint16_t)type);
    buf_append_u16(b, 0);
    return start;
}

/* Puts the length in, now that it is known. */
static int frame_end(struct buf *b, size_t start)
{
    if (b->error != 0)
        return b->error;
    uint64_t len = b->len - start - MESH_HEADER_BYTES;
    if (len > LIMIT_CONTROL_FRAME_BYTES)
        return b->error = E_LIMIT;
    for (size_t i = 0; i < 4; i++)
        b->data[start + i] = (char)(uint8_t)(len >> (8 * i));
    return 0;
}

static void put_bytes(struct buf *b, const void *data, size_t n)
{
    buf_append_u32(b, (uint32_t)n);
    buf_append(b, data, n);
}

static void put_text(struct buf *b, const char *text)
{
    put_bytes(b, text, strlen(text));
}

static void put_id(struct buf *b, const struct node_id *id)
{
    buf_append(b, id->bytes, sizeof(id->bytes));
}

static void put_address(struct buf *b, const struct mesh_address *a)
{
    put_text(b, a->host);
    buf_append_u16(b, a->port);
}

static void put_range(struct buf *b, struct range r)
{
    buf_append_u32(b, r.begin);
    buf_append_u32(b, r.end);
}

int mesh_encode_hello(struct buf *b, const struct mesh_hello *m)
{
    size_t start = frame_begin(b, MESH_HELLO);
    buf_append_u32(b, m->version);
    put_id(b, &m->id);
    buf_append(b, m->nonce, sizeof(m->nonce));
    buf_append_u8(b, m->has_secret);
    put_text(b, m->name);
    put_address(b, &m->api);
    put_address(b, &m->mesh);
    buf_append_u64(b, m->memory_bytes_total);
    buf_append_u64(b, m->memory_bytes_free);
    buf_append_u32(b, m->n_cores);
    return frame_end(b, start);
}

int mesh_encode_proof(struct buf *b, const struct mesh_proof *m)
{
    size_t start = frame_begin(b, MESH_PROOF);
    buf_append(b, m->mac, sizeof(m->mac));
    return frame_end(b, start);
}

int mesh_encode_heartbeat(struct buf *b, const struct mesh_heartbeat *m)
{
    size_t start = frame_begin(b, MESH_HEARTBEAT);
    buf_append_u64(b, m->memory_bytes_free);
    buf_append_u32(b, m->n_running);
    buf_append_u8(b, m->is_stopping);
    return frame_end(b, start);
}

static void put_rank(struct buf *b, const struct rank_info *r)
{
    put_id(b, &r->node);
    buf_append_u8(b, (uint8_t)r->status);
    buf_append_u32(b, r->stage);
    put_range(b, r->layers);
    put_range(b, r->kv_heads);
    buf_append_u64(b, r->weight_bytes);
    buf_append_u64(b, r->kv_bytes);
    buf_append_u32(b, r->pid);
}

static void put_instance(struct buf *b, const struct instance_info *i)
{
    put_id(b, &i->id);
    put_id(b, &i->coordinator);
    put_text(b, i->model_id);
    put_text(b, i->path);
    buf_append(b, i->model_hash, sizeof(i->model_hash));
    buf_append_u8(b, (uint8_t)i->status);
    put_text(b, i->error);
    put_text(b, i->split);
    buf_append_u32(b, i->n_ctx);
    buf_append_u32(b, i->n_slots);
    buf_append_u32(b, i->n_restarts);
    buf_append_u64(b, i->created_s);
    buf_append_u32(b, i->n_ranks);
    for (uint32_t r = 0; r < i->n_ranks; r++)
        put_rank(b, &i->rank[r]);
}

static void put_node(struct buf *b, const struct node_info *n)
{
    put_id(b, &n->id);
    put_text(b, n->name);
    put_address(b, &n->api);
    put_address(b, &n->mesh);
    buf_append_u64(b, n->memory_bytes_total);
    buf_append_u64(b, n->memory_bytes_free);
    buf_append_u32(b, n->n_cores);
}

int mesh_encode_state(struct buf *b, const struct mesh_state *m)
{
    size_t start = frame_begin(b, MESH_STATE);
    buf_append_u32(b, m->n_nodes);
    for (uint32_t i = 0; i < m->n_nodes; i++)
        put_node(b, &m->nodes[i]);
    buf_append_u32(b, m->n_instances);
    for (uint32_t i = 0; i < m->n_instances; i++)
        put_instance(b, &m->instances[i]);
    return frame_end(b, start);
}

int mesh_encode_rank_start(struct buf *b, const struct mesh_rank_start *m)
{
    size_t start = frame_begin(b, MESH_RANK_START);
    buf_append_u64(b, m->launch);
    buf_append_u32(b, m->rank);
    buf_append_u32(b, m->n_node_ranks);
    buf_append(b, m->model_hash, sizeof(m->model_hash));
    put_text(b, m->path);
    put_bytes(b, m->frame, m->frame_len);
    return frame_end(b, start);
}

int mesh_encode_rank_frame(struct buf *b, const struct mesh_rank_frame *m)
{
    size_t start = frame_begin(b, MESH_RANK_FRAME);
    buf_append_u64(b, m->launch);
    buf_append_u32(b, m->rank);
    put_bytes(b, m->frame, m->frame_len);
    return frame_end(b, start);
}

int mesh_encode_rank_stop(struct buf *b, uint64_t launch, uint32_t rank)
{
    size_t start = frame_begin(b, MESH_RANK_STOP);
    buf_append_u64(b, launch);
    buf_append_u32(b, rank);
    return frame_end(b, start);
}

int mesh_encode_rank_ended(struct buf *b, const struct mesh_rank_ended *m)
{
    size_t start = frame_begin(b, MESH_RANK_ENDED);
    buf_append_u64(b, m->launch);
    buf_append_u32(b, m->rank);
    put_text(b, m->reason);
    return frame_end(b, start);
}

int mesh_encode_submit(struct buf *b, const struct mesh_submit *m)
{
    size_t start = frame_begin(b, MESH_SUBMIT);
    put_id(b, &m->instance);
    put_bytes(b, m->frame, m->frame_len);
    return frame_end(b, start);
}

int mesh_encode_cancel(struct buf *b, uint64_t request)
{
    size_t start = frame_begin(b, MESH_CANCEL);
    buf_append_u64(b, request);
    return frame_end(b, start);
}

int mesh_encode_event(struct buf *b, const void *frame, size_t frame_len)
{
    size_t start = frame_begin(b, MESH_EVENT);
    put_bytes(b, frame, frame_len);
    return frame_end(b, start);
}
