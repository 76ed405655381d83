/*
 * Links. A pair of nodes has at most one connection, a stream in each direction. The core's
 * messages may be lost, doubled and reordered as the seed says; everything else arrives in order,
 * or not at all once the connection has ended.
 *
 * A cut direction passes nothing: streams hold what was sent until the cut ends, then it comes
 * late, as TCP would have it. A process that dies closes its connections, where that can be heard;
 * one that loses power does not. A side that has heard nothing for ten seconds closes its own end.
 * Both sides dial again, with growing pauses.
 */
#include "sim.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { DIAL_MS_MIN = 250, DIAL_MS_MAX = 2000, PING_US = 2000000, RETRANSMIT_US = 400000 };

bool net_is_linked(struct world *w, uint32_t a, uint32_t b)
{
    return wire_of(w, b, a)->conn != 0;
}

bool net_passes(struct world *w, uint32_t a, uint32_t b)
{
    return w->node[a].is_alive && w->node[b].is_alive && !wire_of(w, a, b)->is_cut &&
           !wire_of(w, b, a)->is_cut;
}

static uint64_t trip_us(struct world *w, const struct wire *wire)
{
    uint64_t us = w->delay_us + wire->extra_us;
    if (w->jitter_us > 0)
        us += chance_below(w, w->jitter_us);
    return us + 1;
}

/* ---- sending ---- */

static struct event *delivery(struct world *w, enum event_type type, uint32_t from, uint32_t to,
                              uint32_t conn, uint64_t delay_us)
{
    struct event *e = world_event(w, type, delay_us);
    e->node = to;
    e->boot = w->node[to].boot;
    e->from = from;
    e->conn = conn;
    return e;
}

/* In order behind what was sent before; late by retransmission where packets are lost. */
static void push_in_order(struct world *w, struct wire *wire, struct event *e)
{
    if (wire->is_cut) {
        e->next = NULL;
        *wire->held_end = e;
        wire->held_end = &e->next;
        return;
    }
    if (chance_is(w, w->loss + wire->loss))
        e->at_us += RETRANSMIT_US / 2 + chance_below(w, RETRANSMIT_US);
    if (e->at_us <= wire->last_us)
        e->at_us = wire->last_us + 1;
    wire->last_us = e->at_us;
    world_push(w, e);
}

static void *copy_bytes(const void *data, size_t len)
{
    void *copy = malloc(len > 0 ? len : 1);
    assert(copy != NULL);
    memcpy(copy, data, len);
    return copy;
}

void net_send_core(struct world *w, uint32_t from, uint32_t to, const void *data, size_t len)
{
    struct wire *wire = wire_of(w, from, to);
    uint32_t conn = wire_of(w, to, from)->conn; /* the sender's end */
    if (conn == 0 || from == to)
        return;
    if (!w->is_lossy) {
        struct event *e = delivery(w, EV_DELIVER, from, to, conn, trip_us(w, wire));
        e->data = copy_bytes(data, len);
        e->len = (uint32_t)len;
        push_in_order(w, wire, e);
        return;
    }
    uint32_t n_copies = chance_is(w, w->doubling) ? 2 : 1;
    for (uint32_t i = 0; i < n_copies; i++) {
        if (wire->is_cut || chance_is(w, w->loss + wire->loss))
            continue;
        uint64_t us = trip_us(w, wire);
        if (chance_is(w, w->reordering))
            us += chance_below(w, 10 * w->delay_us + 5000);
        struct event *e = delivery(w, EV_DELIVER, from, to, conn, us);
        e->data = copy_bytes(data, len);
        e->len = (uint32_t)len;
        world_push(w, e);
    }
}

bool net_send_app(struct world *w, uint32_t from, uint32_t to, struct app *m)
{
    struct wire *wire = wire_of(w, from, to);
    uint32_t conn = from == to ? 0 : wire_of(w, to, from)->conn;
    if (from != to && conn == 0) {
        free(m);
        return false;
    }
    struct event *e = delivery(w, EV_APP, from, to, conn, from == to ? 20 : trip_us(w, wire));
    e->data = m;
    push_in_order(w, wire, e);
    return true;
}

void net_cut(struct world *w, uint32_t from, uint32_t to, bool is_cut)
{
    struct wire *wire = wire_of(w, from, to);
    if (wire->is_cut == is_cut)
        return;
    wire->is_cut = is_cut;
    if (is_cut)
        return;
    struct event *e = wire->held;
    uint64_t late_us = chance_below(w, RETRANSMIT_US);
    wire->held = NULL;
    wire->held_end = &wire->held;
    while (e != NULL) {
        struct event *next = e->next;
        e->at_us = w->now_us + late_us + trip_us(w, wire);
        push_in_order(w, wire, e);
        e = next;
    }
}

/* ---- connections ---- */

static void drop_held(struct world *w, uint32_t from, uint32_t to)
{
    struct wire *wire = wire_of(w, from, to);
    struct event *e = wire->held;
    wire->held = NULL;
    wire->held_end = &wire->held;
    while (e != NULL) {
        struct event *next = e->next;
        free(e->data);
        free(e);
        e = next;
    }
}

static void dial(struct world *w, uint32_t a, uint32_t b)
{
    struct wire *wire = wire_of(w, a < b ? a : b, a < b ? b : a);
    if (wire->is_dialing)
        return;
    wire->is_dialing = true;
    struct event *e = world_event(w, EV_CONNECT, 0);
    wire->dial_ms = wire->dial_ms == 0 ? DIAL_MS_MIN : 2 * wire->dial_ms;
    if (wire->dial_ms > DIAL_MS_MAX)
        wire->dial_ms = DIAL_MS_MAX;
    e->at_us += wire->dial_ms * 500u + chance_below(w, wire->dial_ms * 500u);
    e->node = a < b ? a : b;
    e->from = a < b ? b : a;
    world_push(w, e);
}

/* One end is told that its connection has ended. */
static void push_down(struct world *w, uint32_t at, uint32_t other, uint64_t delay_us,
                      bool is_closed)
{
    struct wire *wire = wire_of(w, other, at);
    if (wire->conn == 0)
        return;
    struct event *e = delivery(w, EV_LINK_DOWN, other, at, wire->conn, delay_us);
    e->arg = is_closed;
    if (delay_us > 0 && e->at_us <= wire->last_us) /* behind what was sent before */
        e->at_us = wire->last_us + 1;
    world_push(w, e);
}

void net_close(struct world *w, uint32_t a, uint32_t b)
{
    push_down(w, a, b, trip_us(w, wire_of(w, b, a)), true);
    push_down(w, b, a, trip_us(w, wire_of(w, a, b)), true);
}

/* The end at n goes at once; the other hears of it when it can. */
static void close_end(struct world *w, uint32_t at, uint32_t other, bool is_silent)
{
    struct wire *out = wire_of(w, at, other);
    uint32_t conn = wire_of(w, other, at)->conn;
    if (!is_silent && !out->is_cut && w->node[other].is_alive && out->conn == conn)
        push_down(w, other, at, trip_us(w, out), true);
    drop_held(w, at, other);
    wire_of(w, other, at)->conn = 0;
}

static void lose_link(struct sim_node *n, uint32_t other, bool is_closed)
{
    struct world *w = n->w;
    struct cluster_event e = {
        .type = CLUSTER_EVENT_LINK_DOWN, .node = w->node[other].id, .is_closed = is_closed};
    close_end(w, n->index, other, false);
    world_trace(w, n, false, "link to %s down%s", w->node[other].name, is_closed ? ", closed" : "");
    executor_link_down(n, other);
    node_step(n, &e);
    router_on_node_lost(n->router, &e.node, node_now_ms(n));
    dial(w, n->index, other);
}

void net_disconnect(struct sim_node *n, uint32_t peer)
{
    if (net_is_linked(n->w, n->index, peer))
        lose_link(n, peer, false);
}

void net_boot(struct world *w, uint32_t a)
{
    for (uint32_t b = 0; b < w->n_nodes; b++) {
        if (b == a || !w->node[b].is_alive)
            continue;
        wire_of(w, a, b)->dial_ms = wire_of(w, b, a)->dial_ms = 0;
        dial(w, a, b);
    }
}

void net_die(struct world *w, uint32_t a, bool is_silent)
{
    for (uint32_t b = 0; b < w->n_nodes; b++)
        if (b != a) {
            close_end(w, a, b, is_silent);
            wire_of(w, b, a)->last_us = 0;
        }
}

/* Each side for itself: nothing heard for too long. Pings would have been heard. */
void net_tick(struct sim_node *n)
{
    struct world *w = n->w;
    for (uint32_t b = 0; b < w->n_nodes; b++) {
        struct wire *in = wire_of(w, b, n->index);
        if (in->conn == 0)
            continue;
        if (!in->is_cut && w->node[b].is_alive && !w->node[b].is_paused &&
            wire_of(w, n->index, b)->conn == in->conn)
            in->heard_us = w->now_us;
        else if (w->now_us - in->heard_us > SIM_LINK_SILENCE_US)
            lose_link(n, b, false);
    }
}

static void try_connect(struct world *w, uint32_t a, uint32_t b)
{
    struct sim_node *x = &w->node[a], *y = &w->node[b];
    struct wire *ab = wire_of(w, a, b), *ba = wire_of(w, b, a);
    ab->is_dialing = false;
    if (!x->is_alive || !y->is_alive) /* whoever boots dials */
        return;
    if (ab->conn != 0 && ab->conn == ba->conn)
        return; /* connected */
    if (w->now_us < ab->connecting_us || ab->is_cut || ba->is_cut || x->is_paused || y->is_paused ||
        (x->cluster != NULL && cluster_is_revoked(x->cluster, &y->id)) ||
        (y->cluster != NULL && cluster_is_revoked(y->cluster, &x->id))) {
        dial(w, a, b);
        return;
    }
    /* A side that still believes in an older connection hears that it is no more. */
    uint64_t trip = 2 * trip_us(w, ab);
    push_down(w, a, b, 1, true);
    push_down(w, b, a, 1, true);
    uint32_t conn = ++w->conn_last;
    ab->dial_ms = ba->dial_ms = 0;
    ab->connecting_us = w->now_us + 2 * trip;
    struct event *e = delivery(w, EV_LINK_UP, b, a, conn, trip + 2);
    ba->last_us = e->at_us; /* nothing comes before its link */
    world_push(w, e);
    e = delivery(w, EV_LINK_UP, a, b, conn, trip + trip_us(w, ab) + 2);
    ab->last_us = e->at_us;
    world_push(w, e);
}

static void link_up(struct world *w, struct sim_node *n, uint32_t other, uint32_t conn)
{
    struct wire *in = wire_of(w, other, n->index);
    struct cluster_event e = {.type = CLUSTER_EVENT_LINK_UP, .node = w->node[other].id};
    if (in->conn != 0)
        return;
    in->conn = conn;
    in->heard_us = w->now_us;
    strcpy(e.name, w->node[other].name);
    world_trace(w, n, false, "link to %s up", e.name);
    node_step(n, &e);
    e = (struct cluster_event){.type = CLUSTER_EVENT_LINK_FIGURES,
                               .node = w->node[other].id,
                               .link = {.rtt_us = 2 * w->delay_us + w->jitter_us, .mbit_s = 1000}};
    node_step(n, &e);
}

void net_event(struct world *w, struct event *e)
{
    struct sim_node *n = &w->node[e->node];
    if (e->type == EV_CONNECT) {
        try_connect(w, e->node, e->from);
        return;
    }
    if (!n->is_alive || n->boot != e->boot)
        return;
    if (e->type == EV_LINK_UP) {
        if (w->node[e->from].is_alive)
            link_up(w, n, e->from, e->conn);
        else
            dial(w, e->node, e->from);
    } else if (wire_of(w, e->from, e->node)->conn == e->conn) {
        lose_link(n, e->from, e->arg != 0);
    }
    node_settle(n);
}
