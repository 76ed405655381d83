/* What a link has to send: a queue of plain bytes, of which as much is encrypted and given to the
 * kernel as may be under way at once. */
#include "mesh/internal.h"

#include <stdlib.h>

enum { PIECE = 64 << 10 };

struct write { /* one uv_write under way */
    uv_write_t request;
    char *data;
    size_t len;
};

void link_drop_queue(struct mesh_link *l)
{
    while (l->first_chunk != NULL) {
        struct chunk *c = l->first_chunk;
        l->first_chunk = c->next;
        free(c->data);
        free(c);
    }
    l->last_chunk = NULL;
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

/* Encrypts as much of the queue as may be under way at once, so that a frame of many megabytes
 * neither holds up the loop nor is in memory twice. */
static void pump(struct mesh_link *l)
{
    while (l->first_chunk != NULL && l->phase != LINK_CLOSING &&
           l->flying_bytes < LINK_FLYING_BYTES_MAX) {
        size_t taken = 0;
        size_t due = l->queued_bytes < PIECE ? l->queued_bytes : PIECE;
        buf_reserve(&l->channel.out, due + due / 64 + 256); /* records add 22 bytes each */
        while (l->first_chunk != NULL && taken < PIECE) {
            struct chunk *c = l->first_chunk;
            size_t n = c->len - c->offset < PIECE - taken ? c->len - c->offset : PIECE - taken;
            if (channel_write(&l->channel, c->data + c->offset, n) != 0) {
                mesh_link_close(l, "cannot encrypt: out of memory");
                return;
            }
            taken += n;
            c->offset += n;
            l->queued_bytes -= n;
            if (c->offset < c->len)
                break;
            l->first_chunk = c->next;
            if (c->next == NULL)
                l->last_chunk = NULL;
            free(c->data);
            free(c);
        }
        link_flush(l);
    }
}

static int enqueue(struct mesh_link *l, struct buf *frames)
{
    struct chunk *c = malloc(sizeof(*c));
    if (c == NULL)
        return E_NOMEM;
    *c = (struct chunk){.data = frames->data, .len = frames->len};
    if (l->last_chunk != NULL)
        l->last_chunk->next = c;
    else
        l->first_chunk = c;
    l->last_chunk = c;
    l->queued_bytes += c->len;
    buf_init(frames, frames->max_len); /* its bytes are the queue's now */
    return 0;
}

int mesh_link_send(struct mesh_link *l, struct buf *frames)
{
    int rc = frames->error;
    size_t limit = l->phase == LINK_UP ? LIMIT_CONTROL_FRAME_BYTES : LINK_STRANGER_QUEUE_MAX;
    if (l->phase == LINK_CLOSING) {
        rc = E_UNAVAILABLE;
    } else if (rc != 0) {
        mesh_link_close(l, "a message to this peer could not be built: out of memory or too long");
    } else if (mesh_link_queued_bytes(l) > limit) {
        mesh_link_close(l, "peer reads too slowly");
        rc = E_LIMIT;
    } else if (frames->len > 0) {
        /* With nothing in the way a small frame goes straight to TLS. */
        if (l->first_chunk == NULL && l->flying_bytes == 0 && frames->len <= PIECE) {
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
