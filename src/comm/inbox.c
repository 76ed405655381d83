#include "comm/internal.h"

#include <stdlib.h>
#include <string.h>

bool inbox_is_empty(const struct comm *c, uint32_t peer)
{
    const struct inbox *b = &c->links[peer].inbox;
    return b->first == NULL && b->header_done == 0;
}

bool inbox_has_whole(const struct comm *c, uint32_t peer)
{
    const struct parcel *p = c->links[peer].inbox.first;
    return p != NULL && p->done == p->n;
}

static bool fits(const struct comm *c, size_t n)
{
    return sizeof(struct parcel) + n <= c->inbox_bytes_max - c->inbox_bytes;
}

bool inbox_has_room(const struct comm *c, uint32_t peer)
{
    const struct inbox *b = &c->links[peer].inbox;
    struct frame_header h;
    return b->header_done < FRAME_HEADER_BYTES ||
           (frame_header_parse(b->header, &h, NULL) == 0 && fits(c, h.length));
}

bool inbox_is_stuck(const struct comm *c, uint32_t peer)
{
    const struct inbox *b = &c->links[peer].inbox;
    return b->first == NULL && b->header_done == FRAME_HEADER_BYTES;
}

/* Whose frames may be taken in: no receive waits for them. */
static uint64_t others(const struct comm *c)
{
    uint64_t all = c->size < 64 ? (UINT64_C(1) << c->size) - 1 : UINT64_MAX;
    return all & ~c->receiving & ~(UINT64_C(1) << c->rank);
}

uint64_t inbox_open_peers(const struct comm *c)
{
    uint64_t open = 0;
    for (uint64_t peers = others(c); peers != 0; peers &= peers - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(peers);
        if (!c->links[peer].inbox.closed && inbox_has_room(c, peer))
            open |= UINT64_C(1) << peer;
    }
    return open;
}

/* The header is here: makes room for its payload. False: not now. */
static bool add_parcel(struct comm *c, struct inbox *b, const struct frame_header *h)
{
    struct parcel *p = fits(c, h->length) ? malloc(sizeof(*p) + h->length) : NULL;
    if (p == NULL)
        return false;
    p->next = NULL;
    p->n = h->length;
    p->done = 0;
    memcpy(p->header, b->header, sizeof(p->header));
    b->header_done = 0;
    *(b->last != NULL ? &b->last->next : &b->first) = p;
    b->last = p;
    c->inbox_bytes += sizeof(*p) + p->n;
    return true;
}

static int receive(struct comm *c, uint32_t peer, void *to, size_t n, size_t *done,
                   struct error *err)
{
    struct iovec iov = {.iov_base = (uint8_t *)to + *done, .iov_len = n - *done};
    size_t moved = 0;
    int r = c->transport->ops->try_recv(c->transport, peer, &iov, 1, &moved, err);
    *done += moved;
    c->stats.bytes_received += moved;
    return r;
}

int inbox_fill(struct comm *c, uint32_t peer, bool *ret_moved, struct error *err)
{
    struct inbox *b = &c->links[peer].inbox;
    for (;;) {
        struct parcel *p = b->last;
        int r = 0;
        if (p != NULL && p->done < p->n) {
            size_t before = p->done;
            r = receive(c, peer, p->data, p->n, &p->done, err);
            *ret_moved |= p->done > before;
            if (r == 0 && p->done == p->n)
                continue;
        } else if (b->header_done < FRAME_HEADER_BYTES) {
            size_t before = b->header_done;
            r = receive(c, peer, b->header, FRAME_HEADER_BYTES, &b->header_done, err);
            *ret_moved |= b->header_done > before;
            if (r == 0 && b->header_done == FRAME_HEADER_BYTES)
                continue;
        } else {
            struct frame_header h;
            r = frame_header_parse(b->header, &h, err);
            if (r == 0 && add_parcel(c, b, &h))
                continue;
            if (r != 0)
                error_wrap(err, r, "from rank %u", peer);
        }
        b->closed |= r != 0;
        return r;
    }
}

void inbox_fill_others(struct comm *c, uint64_t now_ns, bool *ret_moved)
{
    for (uint64_t peers = inbox_open_peers(c); peers != 0; peers &= peers - 1) {
        uint32_t peer = (uint32_t)__builtin_ctzll(peers);
        bool moved = false;
        (void)inbox_fill(c, peer, &moved, NULL);
        if (moved)
            c->links[peer].heard_ns = now_ns;
        *ret_moved |= moved;
    }
}

void inbox_give_header(struct comm *c, uint32_t peer, struct transfer *t)
{
    struct inbox *b = &c->links[peer].inbox;
    if (b->first != NULL) {
        memcpy(t->header, b->first->header, FRAME_HEADER_BYTES);
        t->done = FRAME_HEADER_BYTES;
        return;
    }
    memcpy(t->header, b->header, b->header_done);
    t->done = b->header_done;
    b->header_done = 0;
}

void inbox_give_payload(struct comm *c, uint32_t peer, struct transfer *t)
{
    struct inbox *b = &c->links[peer].inbox;
    struct parcel *p = b->first;
    if (p == NULL)
        return;
    if (p->done > 0)
        memcpy(t->data, p->data, p->done);
    t->done += p->done;
    b->first = p->next;
    if (b->first == NULL)
        b->last = NULL;
    c->inbox_bytes -= sizeof(*p) + p->n;
    free(p);
}

void inbox_done(struct comm *c)
{
    for (uint32_t i = 0; i < c->size; i++)
        for (struct parcel *p = c->links[i].inbox.first, *next; p != NULL; p = next) {
            next = p->next;
            free(p);
        }
}
