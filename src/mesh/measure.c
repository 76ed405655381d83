/*
 * What a link can do. Round trip: a small frame every 2 s, the least of the last 8. Bandwidth: now
 * and then a burst, of which the receiver says how long it took from the first frame to the last. A
 * burst goes out piece by piece, each when the one before is on its way, so that a heartbeat never
 * waits behind all of it, and ends early on a slow link.
 */
#include "base/clock.h"
#include "mesh/internal.h"

#include <math.h>
#include <string.h>

enum { BULK_BYTES = 1 << 20, BULK_MS_MAX = 300 }; /* of a burst on a link */
enum { BULK_QUEUE_MAX = 256 << 10, BULK_AHEAD_BYTES = 64 << 10 };

static const char zeros[MESH_BULK_FRAME_BYTES];

void measure_start(struct mesh_link *l)
{
    uint64_t now_ms = uv_now(l->mesh->loop);
    l->measure =
        (struct measure){.ping_due_ms = now_ms, .bulk_due_ms = now_ms + MESH_BULK_FIRST_MS};
}

static bool is_far_from(double a, double b)
{
    return fabs(a - b) > 0.2 * b;
}

static bool differs(const struct link_figures *f, const struct link_figures *told)
{
    return f->path != told->path || is_far_from(f->rtt_us, told->rtt_us) ||
           is_far_from(f->mbit_s, told->mbit_s);
}

void measure_publish(struct mesh_link *l)
{
    struct link_figures f = paths_figures(l), taken = paths_taken_figures(l);
    const struct mesh_events *e = &l->mesh->events;
    if (l->phase != LINK_UP ||
        (!differs(&f, &l->measure.told) && !differs(&taken, &l->measure.told_taken)))
        return;
    l->measure.told = f;
    l->measure.told_taken = taken;
    if (e->link_figures != NULL)
        e->link_figures(e->self, l, &f);
}

/* ---- round trip ---- */

void measure_ping(struct mesh_link *l)
{
    struct measure *s = &l->measure;
    s->ping_number++;
    s->ping_sent_ns = clock_now_ns();
    LINK_SEND(l, mesh_encode_ping, s->ping_number);
}

static void take_pong(struct mesh_link *l, uint64_t number)
{
    struct measure *s = &l->measure;
    if (s->ping_sent_ns == 0 || number != s->ping_number)
        return; /* late, or an answer to nothing */
    uint64_t us = (clock_now_ns() - s->ping_sent_ns) / 1000;
    s->ping_sent_ns = 0;
    s->rtt_us[s->n_rtt++ % PINGS] = us == 0 ? 1 : us > UINT32_MAX ? UINT32_MAX : (uint32_t)us;
    uint32_t n = s->n_rtt < PINGS ? s->n_rtt : PINGS, least = s->rtt_us[0];
    for (uint32_t i = 1; i < n; i++)
        least = s->rtt_us[i] < least ? s->rtt_us[i] : least;
    l->figures.rtt_us = least;
    if (l->phase == LINK_PROBING) {
        probe_on_pong(l, least);
        return;
    }
    paths_note_rtt(l);
    measure_publish(l);
}

/* ---- bandwidth ---- */

void measure_continue(struct mesh_link *l)
{
    struct measure *s = &l->measure;
    while (s->bulk_since_ms != 0 && (l->phase == LINK_UP || l->phase == LINK_PROBING) &&
           mesh_link_queued_bytes(l) <= BULK_AHEAD_BYTES) {
        struct mesh_bulk bulk = {.burst = s->bulk_burst, .data = zeros, .len = s->bulk_frame_bytes};
        struct buf b;
        s->bulk_sent_bytes += s->bulk_frame_bytes;
        uv_update_time(l->mesh->loop);
        /* The first frame only starts the receiver's clock: one alone says nothing. */
        bulk.is_last = s->bulk_sent_bytes >= s->bulk_bytes_max ||
                       (s->bulk_sent_bytes >= 4 * s->bulk_frame_bytes &&
                        uv_now(l->mesh->loop) - s->bulk_since_ms > s->bulk_ms_max);
        if (bulk.is_last)
            s->bulk_since_ms = 0;
        buf_init(&b, 2 * MESH_BULK_FRAME_BYTES);
        mesh_encode_bulk(&b, &bulk);
        mesh_link_send(l, &b);
    }
}

void measure_burst(struct mesh_link *l, uint32_t bytes_max, uint32_t ms_max, uint32_t frame_bytes)
{
    struct measure *s = &l->measure;
    uint64_t now_ms = uv_now(l->mesh->loop);
    s->bulk_since_ms = now_ms > 0 ? now_ms : 1;
    s->bulk_sent_bytes = 0;
    s->bulk_bytes_max = bytes_max;
    s->bulk_ms_max = ms_max;
    s->bulk_frame_bytes = frame_bytes;
    s->bulk_burst++;
    measure_continue(l);
}

static void begin_burst(struct mesh_link *l, uint64_t now_ms)
{
    struct measure *s = &l->measure;
    const struct mesh_events *e = &l->mesh->events;
    bool is_news = l->figures.mbit_s == 0;
    if (mesh_link_queued_bytes(l) > BULK_QUEUE_MAX ||
        (!is_news && e->is_busy != NULL && e->is_busy(e->self, &l->hello.id)))
        return; /* the link has work: the next tick looks again */
    s->bulk_due_ms = now_ms + MESH_BULK_MS;
    measure_burst(l, BULK_BYTES, BULK_MS_MAX, MESH_BULK_FRAME_BYTES);
}

static float rate_of(const struct mesh_bulk_ack *ack)
{
    return ack->ns > 0 ? (float)((double)ack->bytes * 8e3 / (double)ack->ns) : 0;
}

static void take_bulk(struct mesh_link *l, const struct mesh_bulk *bulk)
{
    struct measure *s = &l->measure;
    uint64_t now_ns = clock_now_ns();
    if (s->in_burst != bulk->burst || s->in_first_ns == 0) {
        s->in_burst = bulk->burst;
        s->in_bytes = 0;
        s->in_first_ns = now_ns;
    } else if (s->in_bytes <= MESH_BULK_BURST_BYTES - bulk->len) {
        s->in_bytes += (uint32_t)bulk->len;
    }
    if (!bulk->is_last)
        return;
    struct mesh_bulk_ack ack = {
        .burst = bulk->burst, .bytes = s->in_bytes, .ns = now_ns - s->in_first_ns};
    s->in_first_ns = 0;
    LINK_SEND(l, mesh_encode_bulk_ack, &ack);
    if (l->phase == LINK_PROBING)
        probe_on_burst(l, rate_of(&ack));
}

static void take_ack(struct mesh_link *l, const struct mesh_bulk_ack *ack)
{
    struct measure *s = &l->measure;
    if (ack->burst != s->bulk_burst || s->bulk_since_ms != 0)
        return; /* of an older burst */
    if (l->phase == LINK_PROBING) {
        probe_on_burst(l, rate_of(ack));
        return;
    }
    if (ack->bytes == 0 || ack->ns == 0)
        return; /* its only frame says nothing */
    l->figures.mbit_s = rate_of(ack);
    measure_publish(l);
}

/* ---- */

void measure_tick(struct mesh_link *l, uint64_t now_ms)
{
    struct measure *s = &l->measure;
    if (now_ms >= s->ping_due_ms) {
        s->ping_due_ms = now_ms + MESH_PING_MS;
        measure_ping(l);
    }
    if (l->phase == LINK_UP && now_ms >= s->bulk_due_ms)
        begin_burst(l, now_ms);
}

int measure_take(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct mesh_bulk bulk;
    struct mesh_bulk_ack ack;
    uint64_t number;
    int rc;
    switch (m->type) {
    case MESH_PING:
    case MESH_PONG:
        rc = mesh_decode_number(m, &number, err);
        if (rc != 0)
            return rc;
        if (m->type == MESH_PING)
            LINK_SEND(l, mesh_encode_pong, number);
        else
            take_pong(l, number);
        return 0;
    case MESH_BULK:
        rc = mesh_decode_bulk(m, &bulk, err);
        if (rc == 0 && bulk.len > MESH_BULK_FRAME_BYTES)
            rc = error_set(err, E_PROTOCOL, "BULK message of %zu bytes", bulk.len);
        if (rc == 0)
            take_bulk(l, &bulk);
        return rc;
    default:
        rc = mesh_decode_bulk_ack(m, &ack, err);
        if (rc == 0)
            take_ack(l, &ack);
        return rc;
    }
}
