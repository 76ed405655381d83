/*
 * What a link has to send: two queues of frames, of which as much is encrypted and given to the
 * kernel as may be under way at once. What may be long (a prompt has up to 64 MiB) has a queue of
 * its own, is cut into parts, and has little under way, so that a heartbeat waits for some hundred
 * kilobytes at most, not for all of it. CANCEL goes after the SUBMIT that it belongs to.
 */
#include "mesh/internal.h"

#include <stdlib.h>

/* A frame that is no longer than WHOLE is not cut, such as one of BULK. */
enum { PIECE = MESH_PART_BYTES, WHOLE = PIECE + 4096 };

struct write { /* one uv_write under way */
    uv_write_t request;
    char *data;
    size_t len;
};

void link_drop_queue(struct mesh_link *l)
{
    for (int i = 0; i < LINK_LANES; i++) {
        while (l->lanes[i].first != NULL) {
            struct chunk *c = l->lanes[i].first;
            l->lanes[i].first = c->next;
            free(c->data);
            free(c);
        }
        l->lanes[i].last = NULL;
    }
    l->queued_bytes = 0;
}

static void pump(struct mesh_link *l);

static void on_written(uv_write_t *request, int status)
{
    struct write *w = (struct write *)request;
    struct mesh_link *l = request->data;
    l->flying_bytes -= w->len;
    free(w->data);
    free(w);
    if (l->phase == LINK_CLOSING)
        return;
    if (status != 0) {
        link_close_by_error(l, status);
        return;
    }
    pump(l);
    measure_continue(l);
}

/* Gives what TLS has put out to the kernel, without copying where the kernel does not take it at
 * once. Small frames on an idle link cost one system call and no memory. */
void link_flush(struct mesh_link *l)
{
    struct buf *out = &l->channel.out;
    uv_stream_t *stream = (uv_stream_t *)&l->tcp;
    if (out->len == 0 || l->phase == LINK_CLOSING)
        return;
    uv_buf_t span = uv_buf_init(out->data, (unsigned)out->len);
    int n = l->flying_bytes == 0 ? uv_try_write(stream, &span, 1) : UV_EAGAIN;
    if (n < 0 && n != UV_EAGAIN) {
        link_close_by_error(l, n);
        return;
    }
    if (n > 0)
        buf_consume(out, (size_t)n);
    if (out->len == 0) {
        if (out->cap > 4096)
            buf_done(out);
        return;
    }
    struct write *w = malloc(sizeof(*w));
    if (w == NULL) {
        mesh_link_close(l, "out of memory");
        return;
    }
    *w = (struct write){.data = out->data, .len = out->len, .request.data = l};
    span = uv_buf_init(w->data, (unsigned)w->len);
    buf_init(out, out->max_len); /* its bytes are the write's now */
    l->flying_bytes += w->len;
    int rc = uv_write(&w->request, stream, &span, 1, on_written);
    if (rc != 0) {
        l->flying_bytes -= w->len;
        free(w->data);
        free(w);
        link_close_by_error(l, rc);
    }
}

static struct lane *find_lane(struct mesh_link *l, const struct buf *frames)
{
    struct cursor c;
    cursor_init(&c, frames->data, frames->len);
    cursor_u32(&c);
    uint16_t type = cursor_u16(&c);
    bool may_be_long = type == MESH_SUBMIT || type == MESH_CANCEL || type == MESH_BULK;
    return &l->lanes[may_be_long ? 1 : 0];
}

/* What goes next: lane 0, unless a frame of lane 1 has begun that cannot be cut. */
static struct lane *next_lane(struct mesh_link *l)
{
    struct lane *first = &l->lanes[0], *second = &l->lanes[1];
    bool is_cut = link_speaks(l, MESH_VERSION_PATHS);
    if (second->first != NULL && (first->first == NULL || (second->first->offset > 0 && !is_cut)))
        return l->flying_bytes < LINK_PART_FLYING_BYTES_MAX || first->first != NULL ? second : NULL;
    return first->first != NULL ? first : NULL;
}

/* Encrypts a piece of the lane's first frames. Errors: those of channel_write. */
static int write_piece(struct mesh_link *l, struct lane *lane)
{
    struct chunk *c = lane->first;
    size_t left = c->len - c->offset, n = left <= WHOLE && c->len <= WHOLE ? left
                                          : left < PIECE                   ? left
                                                                           : PIECE;
    int rc = 0;
    buf_reserve(&l->channel.out, n + n / 64 + 512); /* records add 22 bytes each */
    if (lane == &l->lanes[1] && c->len > WHOLE && link_speaks(l, MESH_VERSION_PATHS)) {
        struct mesh_part part = {.is_last = n == left, .data = "", .len = 0};
        struct buf b;
        buf_init(&b, 64);
        mesh_encode_part(&b, &part);
        /* Header, flag and length of the data, then the data themselves, which are not copied. */
        for (size_t i = 0; b.error == 0 && i < 4; i++) {
            b.data[i] = (char)(uint8_t)((5 + n) >> (8 * i));
            b.data[MESH_HEADER_BYTES + 1 + i] = (char)(uint8_t)(n >> (8 * i));
        }
        rc = b.error != 0 ? b.error : channel_write(&l->channel, b.data, b.len);
        buf_done(&b);
    }
    if (rc == 0)
        rc = channel_write(&l->channel, c->data + c->offset, n);
    c->offset += n;
    l->queued_bytes -= n;
    if (c->offset < c->len)
        return rc;
    lane->first = c->next;
    if (c->next == NULL)
        lane->last = NULL;
    free(c->data);
    free(c);
    return rc;
}

/* Encrypts as much as may be under way at once, so that a frame of many megabytes neither holds up
 * the loop nor is in memory twice. */
static void pump(struct mesh_link *l)
{
    struct lane *lane;
    while (l->phase != LINK_CLOSING && l->flying_bytes < LINK_FLYING_BYTES_MAX &&
           (lane = next_lane(l)) != NULL) {
        if (write_piece(l, lane) != 0) {
            mesh_link_close(l, "cannot encrypt: out of memory");
            return;
        }
        /* Small ones go together. */
        bool is_more_small = lane == &l->lanes[0] && lane->first != NULL;
        if (!is_more_small || l->channel.out.len >= PIECE)
            link_flush(l);
    }
}

static int enqueue(struct mesh_link *l, struct buf *frames)
{
    struct lane *lane = find_lane(l, frames);
    struct chunk *c = malloc(sizeof(*c));
    if (c == NULL)
        return E_NOMEM;
    *c = (struct chunk){.data = frames->data, .len = frames->len};
    if (lane->last != NULL)
        lane->last->next = c;
    else
        lane->first = c;
    lane->last = c;
    l->queued_bytes += c->len;
    buf_init(frames, frames->max_len); /* its bytes are the queue's now */
    return 0;
}

int mesh_link_send(struct mesh_link *l, struct buf *frames)
{
    int rc = frames->error;
    size_t limit = l->phase == LINK_UP || l->phase == LINK_PROBING ? LIMIT_CONTROL_FRAME_BYTES
                                                                   : LINK_STRANGER_QUEUE_MAX;
    if (l->phase == LINK_CLOSING) {
        rc = E_UNAVAILABLE;
    } else if (rc != 0) {
        mesh_link_close(l, "a message to this peer could not be built: out of memory or too long");
    } else if (mesh_link_queued_bytes(l) > limit) {
        mesh_link_close(l, "peer reads too slowly");
        rc = E_LIMIT;
    } else if (frames->len > 0) {
        /* With nothing in the way a small frame goes straight to TLS. */
        if (l->queued_bytes == 0 && l->flying_bytes == 0 && frames->len <= PIECE) {
            rc = channel_write(&l->channel, frames->data, frames->len);
            if (rc == 0)
                link_flush(l);
        } else {
            rc = enqueue(l, frames);
            if (rc == 0)
                pump(l);
        }
        if (rc != 0)
            mesh_link_close(l, "out of memory");
        else if (l->phase == LINK_CLOSING)
            rc = E_UNAVAILABLE;
    }
    buf_done(frames);
    return rc;
}

int mesh_send_cluster(struct mesh_link *l, const void *data, size_t len)
{
    struct buf b;
    buf_init(&b, MESH_CLUSTER_BYTES_MAX + MESH_HEADER_BYTES);
    mesh_encode_cluster(&b, data, len);
    return mesh_link_send(l, &b);
}

size_t mesh_link_queued_bytes(const struct mesh_link *l)
{
    return l->queued_bytes + l->flying_bytes;
}
