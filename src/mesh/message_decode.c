/* Reading the messages of message.h: nothing is believed before it is checked. */
#include "base/utf8.h"
#include "mesh/message.h"

#include <arpa/inet.h>
#include <math.h>
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
static void get_path(struct reader *r, char *ret_text, size_t size, const char *field)
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

/* The same, and UTF-8, since it ends in JSON; files may have names that are not. */
static void get_text(struct reader *r, char *ret_text, size_t size, const char *field)
{
    get_path(r, ret_text, size, field);
    size_t len = strlen(ret_text);
    for (size_t i = 0, n; i < len; i += n) {
        n = utf8_sequence_length(ret_text + i, len - i);
        uint32_t c = n > 0 ? utf8_decode(ret_text + i, n) : 0x80;
        if (c >= 0x80 && c < 0xa0) { /* the second block of control characters */
            refuse(r, field);
            ret_text[0] = '\0';
            return;
        }
    }
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

static bool get_bool(struct reader *r, const char *field)
{
    return get_u8_max(r, 1, field) != 0;
}

int mesh_decode_greeting(const struct mesh_message *m, struct mesh_greeting *ret, struct error *err)
{
    struct reader r;
    struct mesh_greeting v = {0};
    reader_init(&r, m);
    v.version = cursor_u32(&r.c);
    v.version_min = cursor_u32(&r.c);
    if (v.version_min == 0 || v.version_min > v.version)
        refuse(&r, "version_min");
    v.is_trusting = get_bool(&r, "is_trusting");
    v.has_secret = get_bool(&r, "has_secret");
    v.has_invite = get_bool(&r, "has_invite");
    v.is_newcomer = get_bool(&r, "is_newcomer");
    v.is_closed = get_bool(&r, "is_closed");
    if (v.version >= MESH_VERSION_PATHS)
        v.is_probe = get_bool(&r, "is_probe");
    /* Later versions may say more here: it must be possible to greet them at all. */
    if (v.version > MESH_PROTOCOL_VERSION && !r.c.failed)
        cursor_bytes(&r.c, cursor_left(&r.c));
    int rc = reader_end(&r, "GREETING", err);
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

int mesh_decode_refused(const struct mesh_message *m, uint8_t *ret_kind, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_kind = cursor_u8(&r.c);
    return reader_end(&r, "REFUSED", err);
}

int mesh_decode_join_commit(const struct mesh_message *m, struct mesh_join_commit *ret,
                            struct error *err)
{
    struct reader r;
    struct mesh_join_commit v = {0};
    reader_init(&r, m);
    get_text(&r, v.name, sizeof(v.name), "name");
    get_array(&r, v.cluster_tag, sizeof(v.cluster_tag));
    get_array(&r, v.commit, sizeof(v.commit));
    int rc = reader_end(&r, "JOIN_COMMIT", err);
    if (rc == 0)
        *ret = v;
    return rc;
}

int mesh_decode_join_reveal(const struct mesh_message *m, struct mesh_join_reveal *ret,
                            struct error *err)
{
    struct reader r;
    struct mesh_join_reveal v = {0};
    reader_init(&r, m);
    get_array(&r, v.nonce, sizeof(v.nonce));
    int rc = reader_end(&r, "JOIN_REVEAL", err);
    if (rc == 0)
        *ret = v;
    return rc;
}

int mesh_decode_empty(const struct mesh_message *m, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    return reader_end(&r, "JOIN", err);
}

int mesh_decode_hello(const struct mesh_message *m, struct mesh_hello *ret, struct error *err)
{
    struct reader r;
    struct mesh_hello v = {0};
    reader_init(&r, m);
    get_text(&r, v.name, sizeof(v.name), "name");
    get_address(&r, &v.api, "api");
    get_address(&r, &v.mesh, "mesh");
    v.incarnation = cursor_u64(&r.c);
    v.memory_bytes_total = cursor_u64(&r.c);
    v.memory_bytes_free = cursor_u64(&r.c);
    v.n_cores = cursor_u32(&r.c);
    int rc = reader_end(&r, "HELLO", err);
    if (rc == 0)
        *ret = v;
    return rc;
}

static void get_trust_entry(struct reader *r, struct mesh_trust_entry *ret)
{
    static const uint8_t no_key[32];
    ret->is_revoked = get_bool(r, "is_revoked");
    ret->is_temporary = get_bool(r, "is_temporary");
    get_array(r, ret->key, sizeof(ret->key));
    if (ret->is_revoked && memcmp(ret->key, no_key, sizeof(no_key)) != 0)
        refuse(r, "key");
    get_array(r, ret->id.bytes, sizeof(ret->id.bytes));
    get_text(r, ret->name, sizeof(ret->name), "name");
    get_address(r, &ret->address, "address");
}

int mesh_decode_trust(const struct mesh_message *m, struct mesh_trust *ret, struct error *err)
{
    struct reader r;
    struct mesh_trust v = {0};
    reader_init(&r, m);
    v.n_entries = get_u32_max(&r, MESH_TRUST_ENTRIES_MAX, "n_entries");
    v.entries = calloc(v.n_entries + 1, sizeof(*v.entries));
    for (uint32_t i = 0; v.entries != NULL && i < v.n_entries && !r.c.failed; i++)
        get_trust_entry(&r, &v.entries[i]);
    int rc = v.entries == NULL ? error_set(err, E_NOMEM, "out of memory for a TRUST message")
                               : reader_end(&r, "TRUST", err);
    if (rc != 0)
        mesh_trust_done(&v);
    else
        *ret = v;
    return rc;
}

void mesh_trust_done(struct mesh_trust *t)
{
    free(t->entries);
    *t = (struct mesh_trust){0};
}

static int decode_number(const struct mesh_message *m, uint64_t *ret_number, const char *message,
                         struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_number = cursor_u64(&r.c);
    return reader_end(&r, message, err);
}

int mesh_decode_number(const struct mesh_message *m, uint64_t *ret_number, struct error *err)
{
    return decode_number(m, ret_number, m->type == MESH_PING ? "PING" : "PONG", err);
}

int mesh_decode_bulk(const struct mesh_message *m, struct mesh_bulk *ret, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_bulk){0};
    ret->burst = cursor_u32(&r.c);
    ret->is_last = get_bool(&r, "is_last");
    ret->data = get_bytes(&r, &ret->len);
    return reader_end(&r, "BULK", err);
}

int mesh_decode_bulk_ack(const struct mesh_message *m, struct mesh_bulk_ack *ret, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    ret->burst = cursor_u32(&r.c);
    ret->bytes = get_u32_max(&r, MESH_BULK_BURST_BYTES, "bytes");
    ret->ns = cursor_u64(&r.c);
    return reader_end(&r, "BULK_ACK", err);
}

static void get_rank(struct reader *r, struct node_id *ret_instance, uint64_t *ret_epoch,
                     uint32_t *ret_rank)
{
    get_array(r, ret_instance->bytes, sizeof(ret_instance->bytes));
    *ret_epoch = cursor_u64(&r->c);
    *ret_rank = get_u32_max(r, LIMIT_RANKS - 1, "rank");
}

int mesh_decode_rank_start(const struct mesh_message *m, struct mesh_rank_start *ret,
                           struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_rank_start){0};
    get_rank(&r, &ret->instance, &ret->epoch, &ret->rank);
    ret->n_node_ranks = get_u32_max(&r, LIMIT_RANKS, "n_node_ranks");
    get_array(&r, ret->model_hash, sizeof(ret->model_hash));
    get_path(&r, ret->path, sizeof(ret->path), "path");
    ret->frame = get_bytes(&r, &ret->frame_len);
    return reader_end(&r, "RANK_START", err);
}

int mesh_decode_rank_frame(const struct mesh_message *m, struct mesh_rank_frame *ret,
                           struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_rank_frame){0};
    get_rank(&r, &ret->instance, &ret->epoch, &ret->rank);
    ret->frame = get_bytes(&r, &ret->frame_len);
    return reader_end(&r, "RANK_FRAME", err);
}

int mesh_decode_rank_stop(const struct mesh_message *m, struct mesh_rank_stop *ret,
                          struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_rank_stop){0};
    get_rank(&r, &ret->instance, &ret->epoch, &ret->rank);
    return reader_end(&r, "RANK_STOP", err);
}

int mesh_decode_rank_ended(const struct mesh_message *m, struct mesh_rank_ended *ret,
                           struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_rank_ended){0};
    get_rank(&r, &ret->instance, &ret->epoch, &ret->rank);
    ret->is_node_unfit = get_bool(&r, "is_node_unfit");
    get_text(&r, ret->reason, sizeof(ret->reason), "reason");
    return reader_end(&r, "RANK_ENDED", err);
}

int mesh_decode_submit(const struct mesh_message *m, struct mesh_submit *ret, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_submit){0};
    get_array(&r, ret->instance.bytes, sizeof(ret->instance.bytes));
    ret->epoch = cursor_u64(&r.c);
    ret->frame = get_bytes(&r, &ret->frame_len);
    return reader_end(&r, "SUBMIT", err);
}

int mesh_decode_cancel(const struct mesh_message *m, uint64_t *ret_request, struct error *err)
{
    return decode_number(m, ret_request, "CANCEL", err);
}

int mesh_decode_event(const struct mesh_message *m, const void **ret_frame, size_t *ret_len,
                      struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_frame = get_bytes(&r, ret_len);
    return reader_end(&r, "EVENT", err);
}

/* A numeric address, without an interface: what that is called differs from node to node. */
static void get_host(struct reader *r, char ret[64], bool may_be_empty, const char *field)
{
    uint8_t binary[16];
    get_text(r, ret, 64, field);
    bool is_good = (may_be_empty && ret[0] == '\0') || inet_pton(AF_INET, ret, binary) == 1 ||
                   inet_pton(AF_INET6, ret, binary) == 1;
    if (!is_good && !r->c.failed)
        refuse(r, field);
}

int mesh_decode_addresses(const struct mesh_message *m, struct mesh_addresses *ret,
                          struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_addresses){0};
    ret->has_route = get_bool(&r, "has_route");
    uint32_t n = get_u32_max(&r, MESH_ADDRESSES_MAX, "n");
    for (uint32_t i = 0; i < n && !r.c.failed; i++) {
        get_host(&r, ret->at[i].host, false, "host");
        get_text(&r, ret->at[i].name, sizeof(ret->at[i].name), "interface");
        ret->at[i].kind = cursor_u8(&r.c);
    }
    int rc = reader_end(&r, "ADDRESSES", err);
    ret->n = rc == 0 ? n : 0;
    return rc;
}

static void get_path_report(struct reader *r, struct mesh_path_report *ret)
{
    get_host(r, ret->local, true, "local");
    get_host(r, ret->remote, false, "remote");
    get_text(r, ret->local_interface, sizeof(ret->local_interface), "local_interface");
    get_text(r, ret->remote_interface, sizeof(ret->remote_interface), "remote_interface");
    ret->status = (enum mesh_path_status)get_u8_max(r, MESH_PATH_UNREACHED, "status");
    ret->is_route = get_bool(r, "is_route");
    ret->rtt_us = cursor_u32(&r->c);
    ret->mbit_s = cursor_f32(&r->c);
    if (!isfinite(ret->mbit_s) || ret->mbit_s < 0)
        refuse(r, "mbit_s");
    ret->age_ms = cursor_u32(&r->c);
}

int mesh_decode_paths(const struct mesh_message *m, struct mesh_paths *ret, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_paths){0};
    uint32_t best = cursor_u32(&r.c);
    uint32_t n = get_u32_max(&r, MESH_PATHS_MAX + 1, "n");
    if (best > n)
        refuse(&r, "best");
    for (uint32_t i = 0; i < n && !r.c.failed; i++)
        get_path_report(&r, &ret->path[i]);
    int rc = reader_end(&r, "PATHS", err);
    if (rc == 0) {
        ret->best = best;
        ret->n = n;
    }
    return rc;
}

int mesh_decode_bulk_ask(const struct mesh_message *m, uint32_t *ret_bytes, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret_bytes = get_u32_max(&r, MESH_BULK_BURST_BYTES, "bytes");
    return reader_end(&r, "BULK_ASK", err);
}

int mesh_decode_part(const struct mesh_message *m, struct mesh_part *ret, struct error *err)
{
    struct reader r;
    reader_init(&r, m);
    *ret = (struct mesh_part){0};
    ret->is_last = get_bool(&r, "is_last");
    ret->data = get_bytes(&r, &ret->len);
    if (ret->len > MESH_PART_BYTES)
        refuse(&r, "data");
    return reader_end(&r, "PART", err);
}
