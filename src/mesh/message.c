#include "mesh/message.h"

#include <string.h>

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
    if (zero != 0 || type < MESH_GREETING || type > MESH_TYPE_LAST)
        return error_set(err, E_PROTOCOL, "not a frame of a mesh link: type %u, reserved field %u",
                         type, zero);
    if (len > len_max)
        return error_set(err, E_LIMIT, "frame of type %u claims %u bytes (at most %zu)", type, len,
                         len_max);
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

int mesh_encode_greeting(struct buf *b, const struct mesh_greeting *m)
{
    size_t start = frame_begin(b, MESH_GREETING);
    buf_append_u32(b, m->version);
    buf_append_u32(b, m->version_min);
    buf_append_u8(b, m->is_trusting);
    buf_append_u8(b, m->has_secret);
    buf_append_u8(b, m->has_invite);
    buf_append_u8(b, m->is_newcomer);
    buf_append_u8(b, m->is_closed);
    if (m->version >= MESH_VERSION_PATHS)
        buf_append_u8(b, m->is_probe);
    return frame_end(b, start);
}

int mesh_encode_proof(struct buf *b, const struct mesh_proof *m)
{
    size_t start = frame_begin(b, MESH_PROOF);
    buf_append(b, m->mac, sizeof(m->mac));
    return frame_end(b, start);
}

int mesh_encode_refused(struct buf *b, uint8_t kind)
{
    size_t start = frame_begin(b, MESH_REFUSED);
    buf_append_u8(b, kind);
    return frame_end(b, start);
}

int mesh_encode_join_commit(struct buf *b, const struct mesh_join_commit *m)
{
    size_t start = frame_begin(b, MESH_JOIN_COMMIT);
    put_text(b, m->name);
    buf_append(b, m->cluster_tag, sizeof(m->cluster_tag));
    buf_append(b, m->commit, sizeof(m->commit));
    return frame_end(b, start);
}

int mesh_encode_join_reveal(struct buf *b, const struct mesh_join_reveal *m)
{
    size_t start = frame_begin(b, MESH_JOIN_REVEAL);
    buf_append(b, m->nonce, sizeof(m->nonce));
    return frame_end(b, start);
}

int mesh_encode_join_approve(struct buf *b)
{
    return frame_end(b, frame_begin(b, MESH_JOIN_APPROVE));
}

int mesh_encode_join_accept(struct buf *b)
{
    return frame_end(b, frame_begin(b, MESH_JOIN_ACCEPT));
}

int mesh_encode_hello(struct buf *b, const struct mesh_hello *m)
{
    size_t start = frame_begin(b, MESH_HELLO);
    put_text(b, m->name);
    put_address(b, &m->api);
    put_address(b, &m->mesh);
    buf_append_u64(b, m->incarnation);
    buf_append_u64(b, m->memory_bytes_total);
    buf_append_u64(b, m->memory_bytes_free);
    buf_append_u32(b, m->n_cores);
    return frame_end(b, start);
}

static void put_trust_entry(struct buf *b, const struct mesh_trust_entry *e)
{
    buf_append_u8(b, e->is_revoked);
    buf_append_u8(b, e->is_temporary);
    buf_append(b, e->key, sizeof(e->key));
    put_id(b, &e->id);
    put_text(b, e->name);
    put_address(b, &e->address);
}

int mesh_encode_trust(struct buf *b, const struct mesh_trust *m)
{
    size_t start = frame_begin(b, MESH_TRUST);
    buf_append_u32(b, m->n_entries);
    for (uint32_t i = 0; i < m->n_entries; i++)
        put_trust_entry(b, &m->entries[i]);
    return frame_end(b, start);
}

static int encode_number(struct buf *b, enum mesh_type type, uint64_t number)
{
    size_t start = frame_begin(b, type);
    buf_append_u64(b, number);
    return frame_end(b, start);
}

int mesh_encode_ping(struct buf *b, uint64_t number)
{
    return encode_number(b, MESH_PING, number);
}

int mesh_encode_pong(struct buf *b, uint64_t number)
{
    return encode_number(b, MESH_PONG, number);
}

int mesh_encode_bulk(struct buf *b, const struct mesh_bulk *m)
{
    size_t start = frame_begin(b, MESH_BULK);
    buf_append_u32(b, m->burst);
    buf_append_u8(b, m->is_last);
    put_bytes(b, m->data, m->len);
    return frame_end(b, start);
}

int mesh_encode_bulk_ack(struct buf *b, const struct mesh_bulk_ack *m)
{
    size_t start = frame_begin(b, MESH_BULK_ACK);
    buf_append_u32(b, m->burst);
    buf_append_u32(b, m->bytes);
    buf_append_u64(b, m->ns);
    return frame_end(b, start);
}

int mesh_encode_cluster(struct buf *b, const void *data, size_t len)
{
    if (len > MESH_CLUSTER_BYTES_MAX)
        return b->error = b->error != 0 ? b->error : E_LIMIT;
    size_t start = frame_begin(b, MESH_CLUSTER);
    buf_append(b, data, len);
    return frame_end(b, start);
}

static void put_rank(struct buf *b, const struct node_id *instance, uint64_t epoch, uint32_t rank)
{
    put_id(b, instance);
    buf_append_u64(b, epoch);
    buf_append_u32(b, rank);
}

int mesh_encode_rank_start(struct buf *b, const struct mesh_rank_start *m)
{
    size_t start = frame_begin(b, MESH_RANK_START);
    put_rank(b, &m->instance, m->epoch, m->rank);
    buf_append_u32(b, m->n_node_ranks);
    buf_append(b, m->model_hash, sizeof(m->model_hash));
    put_text(b, m->path);
    put_bytes(b, m->frame, m->frame_len);
    return frame_end(b, start);
}

int mesh_encode_rank_frame(struct buf *b, const struct mesh_rank_frame *m)
{
    size_t start = frame_begin(b, MESH_RANK_FRAME);
    put_rank(b, &m->instance, m->epoch, m->rank);
    put_bytes(b, m->frame, m->frame_len);
    return frame_end(b, start);
}

int mesh_encode_rank_stop(struct buf *b, const struct mesh_rank_stop *m)
{
    size_t start = frame_begin(b, MESH_RANK_STOP);
    put_rank(b, &m->instance, m->epoch, m->rank);
    return frame_end(b, start);
}

int mesh_encode_rank_ended(struct buf *b, const struct mesh_rank_ended *m)
{
    size_t start = frame_begin(b, MESH_RANK_ENDED);
    put_rank(b, &m->instance, m->epoch, m->rank);
    buf_append_u8(b, m->is_node_unfit);
    put_text(b, m->reason);
    return frame_end(b, start);
}

int mesh_encode_submit(struct buf *b, const struct mesh_submit *m)
{
    size_t start = frame_begin(b, MESH_SUBMIT);
    put_id(b, &m->instance);
    buf_append_u64(b, m->epoch);
    put_bytes(b, m->frame, m->frame_len);
    return frame_end(b, start);
}

int mesh_encode_cancel(struct buf *b, uint64_t request)
{
    return encode_number(b, MESH_CANCEL, request);
}

int mesh_encode_event(struct buf *b, const void *frame, size_t frame_len)
{
    size_t start = frame_begin(b, MESH_EVENT);
    put_bytes(b, frame, frame_len);
    return frame_end(b, start);
}

int mesh_encode_addresses(struct buf *b, const struct mesh_addresses *m)
{
    size_t start = frame_begin(b, MESH_ADDRESSES);
    buf_append_u8(b, m->has_route);
    buf_append_u32(b, m->n);
    for (uint32_t i = 0; i < m->n; i++) {
        put_text(b, m->at[i].host);
        put_text(b, m->at[i].name);
        buf_append_u8(b, m->at[i].kind);
    }
    return frame_end(b, start);
}

int mesh_encode_paths(struct buf *b, const struct mesh_paths *m)
{
    size_t start = frame_begin(b, MESH_PATHS);
    buf_append_u32(b, m->best);
    buf_append_u32(b, m->n);
    for (uint32_t i = 0; i < m->n; i++) {
        const struct mesh_path_report *p = &m->path[i];
        put_text(b, p->local);
        put_text(b, p->remote);
        put_text(b, p->local_interface);
        put_text(b, p->remote_interface);
        buf_append_u8(b, (uint8_t)p->status);
        buf_append_u8(b, p->is_route);
        buf_append_u32(b, p->rtt_us);
        buf_append_f32(b, p->mbit_s);
        buf_append_u32(b, p->age_ms);
    }
    return frame_end(b, start);
}

int mesh_encode_bulk_ask(struct buf *b, uint32_t bytes)
{
    size_t start = frame_begin(b, MESH_BULK_ASK);
    buf_append_u32(b, bytes);
    return frame_end(b, start);
}

int mesh_encode_part(struct buf *b, const struct mesh_part *m)
{
    size_t start = frame_begin(b, MESH_PART);
    buf_append_u8(b, m->is_last);
    put_bytes(b, m->data, m->len);
    return frame_end(b, start);
}
