/*
 * Measuring one path: a connection of its own, which says in its greeting what it is, carries a few
 * pings and three bursts, and ends. One at a time on each node. The first burst opens TCP's window
 * and shows how long the others may be; they take about a tenth of a second each way, or 4 MiB.
 */
#include "base/clock.h"
#include "mesh/internal.h"

#include <stdio.h>
#include <string.h>

enum {
    PROBE_PINGS_MAX = 6,
    PROBE_PINGS_NS = 300000000, /* fewer where they take long */
    PROBE_FRAME_BYTES = 16 << 10,
    PROBE_WARM_BYTES = 256 << 10,
    PROBE_WARM_MS = 30,
    PROBE_BURST_BYTES_MIN = 64 << 10,
    PROBE_BURST_MS = 100,
};

bool probe_start(struct mesh *m, const struct pair *pair, const struct path *path, bool is_quick)
{
    struct mesh_address address = {.port = pair->port};
    if (m->probe.link != NULL || m->is_closing)
        return false;
    struct mesh_link *l = link_new(m, true);
    if (l == NULL)
        return false;
    m->probe = (struct probe){
        .link = l, .id = pair->id, .is_quick = is_quick, .is_route = path->is.is_route};
    memcpy(m->probe.remote, path->is.remote, sizeof(m->probe.remote));
    memcpy(address.host, path->is.remote, sizeof(address.host));
    l->is_probe = true;
    link_dial(l, &address);
    return true;
}

void probe_greeted(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    /* Who begins anew has given the one before up. */
    for (struct mesh_link *o = m->links; o != NULL && !l->is_dialled; o = o->next)
        if (o != l && o->phase == LINK_PROBING && !o->is_dialled &&
            node_id_equal(&o->hello.id, &l->hello.id))
            mesh_link_close(o, "another probe has come");
    l->is_member = true;
    l->phase = LINK_PROBING;
    if (!l->is_dialled)
        return;
    m->probe.since_ns = clock_now_ns();
    measure_ping(l);
}

static void finish(struct mesh_link *l)
{
    mesh_link_close(l, "measured");
}

void probe_on_pong(struct mesh_link *l, uint32_t rtt_us)
{
    struct probe *p = &l->mesh->probe;
    if (p->link != l || p->stage != PROBE_PINGS)
        return;
    p->figures.rtt_us = rtt_us;
    if (++p->n_pings < PROBE_PINGS_MAX && clock_now_ns() - p->since_ns < PROBE_PINGS_NS) {
        measure_ping(l);
    } else if (p->is_quick) {
        finish(l);
    } else {
        p->stage = PROBE_WARM;
        measure_burst(l, PROBE_WARM_BYTES, PROBE_WARM_MS, PROBE_FRAME_BYTES);
    }
}

static uint32_t burst_bytes(float mbit_s)
{
    double bytes = (double)mbit_s * 1e6 / 8 * PROBE_BURST_MS / 1000;
    return bytes < PROBE_BURST_BYTES_MIN   ? PROBE_BURST_BYTES_MIN
           : bytes > MESH_BULK_BURST_BYTES ? MESH_BULK_BURST_BYTES
                                           : (uint32_t)bytes;
}

void probe_on_burst(struct mesh_link *l, float mbit_s)
{
    struct probe *p = &l->mesh->probe;
    if (p->link != l || l->phase != LINK_PROBING)
        return;
    switch (p->stage) {
    case PROBE_PINGS:
        break;
    case PROBE_WARM:
        p->stage = PROBE_FORTH;
        p->burst_bytes = burst_bytes(mbit_s);
        measure_burst(l, p->burst_bytes, PROBE_BURST_MS, PROBE_FRAME_BYTES);
        break;
    case PROBE_FORTH:
        p->stage = PROBE_BACK;
        p->figures.mbit_s = mbit_s;
        LINK_SEND(l, mesh_encode_bulk_ask, p->burst_bytes);
        break;
    case PROBE_BACK: /* a split needs both ways: the slower one counts */
        if (mbit_s > 0 && mbit_s < p->figures.mbit_s)
            p->figures.mbit_s = mbit_s;
        finish(l);
        break;
    }
}

int probe_take(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    uint32_t bytes;
    if (m->type >= MESH_PING && m->type <= MESH_BULK_ACK)
        return measure_take(l, m, err);
    if (m->type != MESH_BULK_ASK || l->is_dialled || l->measure.bulk_since_ms != 0)
        return error_set(err, E_PROTOCOL, "message of type %d on a probe", m->type);
    int rc = mesh_decode_bulk_ask(m, &bytes, err);
    if (rc == 0)
        measure_burst(l, bytes, PROBE_BURST_MS, PROBE_FRAME_BYTES);
    return rc;
}

void probe_tick(struct mesh_link *l, uint64_t now_ms)
{
    uint64_t age_ms = now_ms - l->opened_ms;
    if (l->phase == LINK_CLOSING)
        return;
    if (l->phase < LINK_PROBING ? age_ms > MESH_PROBE_CONNECT_MS : age_ms > MESH_PROBE_MS_MAX)
        mesh_link_close(l, "no answer in time");
}

void probe_link_gone(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    if (m->probe.link != l)
        return;
    struct probe result = m->probe;
    m->probe.link = NULL;
    if (!m->is_closing)
        paths_take_result(m, &result, l->local_host, result.n_pings > 0);
}
