/* Time, events and chance. */
#include "sim.h"

#include <assert.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *fault_name(enum fault_kind kind)
{
    static const char *const name[] = {
        "kill",   "power", "restart", "pause", "partition", "one-way", "cut",
        "close",  "delay", "loss",    "rank",  "data",      "slow",    "hot",
        "memory", "drain", "undrain", "leave", "join",      "load",    "unload",
    };
    return (unsigned)kind < FAULT_KIND_COUNT ? name[kind] : "unknown";
}

/* ---- chance ---- */

/* splitmix64: drawn millions of times, so it must cost nothing. */
uint64_t chance_u64(struct world *w)
{
    uint64_t z = (w->chance += 0x9E3779B97F4A7C15u);
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

double chance_unit(struct world *w)
{
    return (double)(chance_u64(w) >> 11) * 0x1.0p-53;
}

uint32_t chance_below(struct world *w, uint32_t n)
{
    return n == 0 ? 0 : (uint32_t)((chance_u64(w) >> 32) * n >> 32);
}

bool chance_is(struct world *w, double p)
{
    return p > 0 && chance_unit(w) < p;
}

/* ---- events: a binary heap by (time, order of making) ---- */

static bool is_before(const struct event *a, const struct event *b)
{
    return a->at_us != b->at_us ? a->at_us < b->at_us : a->seq < b->seq;
}

struct event *world_event(struct world *w, enum event_type type, uint64_t delay_us)
{
    struct event *e = w->free_events;
    if (e != NULL)
        w->free_events = e->next;
    else
        e = malloc(sizeof(*e));
    assert(e != NULL);
    *e = (struct event){.type = type, .at_us = w->now_us + delay_us, .seq = ++w->seq};
    return e;
}

void world_push(struct world *w, struct event *e)
{
    if (w->n_heap == w->n_heap_max) {
        w->n_heap_max = w->n_heap_max > 0 ? 2 * w->n_heap_max : 1024;
        w->heap = realloc(w->heap, w->n_heap_max * sizeof(struct event *));
        assert(w->heap != NULL);
    }
    uint32_t i = w->n_heap++;
    while (i > 0 && is_before(e, w->heap[(i - 1) / 2])) {
        w->heap[i] = w->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    w->heap[i] = e;
}

static struct event *pop(struct world *w)
{
    struct event *first = w->heap[0], *last = w->heap[--w->n_heap];
    uint32_t i = 0;
    for (;;) {
        uint32_t k = 2 * i + 1;
        if (k >= w->n_heap)
            break;
        if (k + 1 < w->n_heap && is_before(w->heap[k + 1], w->heap[k]))
            k++;
        if (!is_before(w->heap[k], last))
            break;
        w->heap[i] = w->heap[k];
        i = k;
    }
    if (w->n_heap > 0)
        w->heap[i] = last;
    return first;
}

static void free_event(struct world *w, struct event *e)
{
    free(e->data);
    e->next = w->free_events;
    w->free_events = e;
}

static void dispatch(struct world *w, struct event *e)
{
    struct sim_node *n = &w->node[e->node];
    switch (e->type) {
    case EV_CONNECT:
    case EV_LINK_UP:
    case EV_LINK_DOWN:
        net_event(w, e);
        break;
    case EV_CLIENT:
    case EV_CLIENT_END:
        clients_event(w, e);
        break;
    case EV_FAULT:
    case EV_HEAL:
        swarm_event(w, e);
        break;
    case EV_RESUME:
        if (n->is_paused && n->boot == e->boot && w->now_us >= n->pause_end_us)
            node_resume(n);
        break;
    case EV_PROBE:
        check_repair_probe(w);
        break;
    case EV_NONE:
        break;
    case EV_TICK:
    case EV_DELIVER:
    case EV_APP:
    case EV_SAVED:
    case EV_RANK:
    case EV_ENGINE:
        if (n->is_alive && n->boot == e->boot)
            node_event(n, e);
        break;
    }
}

bool world_step(struct world *w)
{
    if (w->n_heap == 0 || w->is_failed)
        return false;
    struct event *e = pop(w);
    w->now_us = e->at_us;
    w->report->n_events++;
    struct sim_node *n = &w->node[e->node];
    bool is_of_process = e->boot != 0 && e->type != EV_RESUME;
    if (is_of_process && n->is_alive && n->boot == e->boot && n->is_paused) {
        /* It stays where it is until the process goes on; one tick is as good as many. */
        if (e->type == EV_TICK) {
            n->is_tick_due = true;
            free_event(w, e);
        } else {
            e->next = NULL;
            *n->deferred_end = e;
            n->deferred_end = &e->next;
        }
        return true;
    }
    dispatch(w, e);
    free_event(w, e);
    return !w->is_failed;
}

void world_run(struct world *w, uint64_t until_us)
{
    while (!w->is_failed && w->n_heap > 0 && w->heap[0]->at_us <= until_us)
        world_step(w);
    if (!w->is_failed && w->now_us < until_us)
        w->now_us = until_us;
}

/* ---- what is told ---- */

void world_trace(struct world *w, const struct sim_node *n, bool is_story, const char *fmt, ...)
{
    char text[512];
    va_list args;
    if (w->wants_story ? !is_story : !w->options.is_traced)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    if (w->wants_story)
        buf_printf(w->trace, "%s%s%s\n", n != NULL ? n->name : "", n != NULL ? ": " : "", text);
    if (w->options.is_traced)
        printf("%10.3f %-5s %s%s\n", (double)w->now_us / 1e3, n != NULL ? n->name : "",
               is_story ? "* " : "  ", text);
}

void world_fail(struct world *w, const char *check, const char *fmt, ...)
{
    char text[400];
    va_list args;
    if (w->is_failed)
        return;
    va_start(args, fmt);
    vsnprintf(text, sizeof(text), fmt, args);
    va_end(args);
    w->is_failed = true;
    snprintf(w->failure, sizeof(w->failure), "%s: at %.3f ms: %s", check, (double)w->now_us / 1e3,
             text);
    if (w->options.is_traced)
        printf("FAILED %s\n", w->failure);
}

void world_disturb(struct world *w, int change)
{
    w->n_disturbed = (uint32_t)((int)w->n_disturbed + change);
    w->n_changes++;
    w->fault_us = w->now_us;
}

bool world_is_calm(const struct world *w, uint64_t for_us)
{
    return w->n_disturbed == 0 && w->now_us - w->fault_us >= for_us;
}

/* Keeps a random sample of a stream of unknown length (reservoir), without the world's chance. */
void samples_add(struct samples *s, double v)
{
    uint64_t z = (s->n_seen + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    s->n_seen++;
    if (s->n < SIM_SAMPLES)
        s->v[s->n++] = (float)v;
    else if ((z >> 33) % s->n_seen < SIM_SAMPLES)
        s->v[(z >> 33) % s->n_seen] = (float)v;
}

/* ---- life ---- */

struct world *world_new(const struct sim_options *o, uint32_t n_nodes, struct sim_report *report)
{
    struct world *w = calloc(1, sizeof(*w));
    assert(w != NULL && n_nodes > 0 && n_nodes <= SIM_NODES_MAX);
    w->options = *o;
    w->report = report;
    w->chance = o->seed * 0xD1B54A32D192ED03u + 1;
    w->now_us = 1000000;
    w->n_nodes = n_nodes;
    w->node = calloc(n_nodes, sizeof(*w->node));
    w->wire = calloc((size_t)n_nodes * n_nodes, sizeof(*w->wire));
    assert(w->node != NULL && w->wire != NULL);
    for (uint32_t i = 0; i < n_nodes * n_nodes; i++)
        w->wire[i].held_end = &w->wire[i].held;
    w->checks = checks_new(w);
    return w;
}

static void free_list(struct event *e)
{
    while (e != NULL) {
        struct event *next = e->next;
        free(e->data);
        free(e);
        e = next;
    }
}

void world_free(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->node[i];
        if (n->is_alive)
            node_die(n, true);
        buf_done(&n->disk);
        buf_done(&n->writing);
        while (n->hosted != NULL) {
            struct hosted *h = n->hosted;
            n->hosted = h->next;
            free(h);
        }
    }
    for (uint32_t i = 0; i < w->n_nodes * w->n_nodes; i++)
        free_list(w->wire[i].held);
    for (uint32_t i = 0; i < w->n_heap; i++) {
        free(w->heap[i]->data);
        free(w->heap[i]);
    }
    for (struct event *e = w->free_events, *next; e != NULL; e = next) {
        next = e->next;
        free(e);
    }
    while (w->requests != NULL) {
        struct sim_request *q = w->requests;
        w->requests = q->next;
        free(q);
    }
    while (w->orders != NULL) {
        struct sim_order *o = w->orders;
        w->orders = o->next;
        free(o->order);
        free(o);
    }
    checks_free(w->checks);
    free(w->mixture);
    free(w->heap);
    free(w->node);
    free(w->wire);
    free(w);
}
