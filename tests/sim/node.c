/*
 * A node's process: what src/node does around the core and the router, in little. Its disk outlives
 * it, with the last state whose writing had ended.
 */
#include "sim.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TICK_US = 50000, FIGURES_US = 1000000, LEAVE_US_MAX = 10000000, STATE_BYTES_MAX = 1 << 20 };

uint64_t node_now_ms(const struct sim_node *n)
{
    return (uint64_t)((double)(n->w->now_us - n->boot_us) * n->clock_rate +
                      (double)n->clock_offset_us) /
           1000;
}

struct sim_node *node_find(struct world *w, const struct node_id *id)
{
    uint32_t i = (uint32_t)id->bytes[14] << 8 | id->bytes[15]; /* swarm.c puts it there */
    return i < w->n_nodes && node_id_equal(&w->node[i].id, id) ? &w->node[i] : NULL;
}

/* ---- what it says of itself ---- */

uint64_t node_memory_free(const struct sim_node *n)
{
    uint64_t used = n->memory_taken + executor_bytes(n);
    return n->memory_bytes > used ? n->memory_bytes - used : 0;
}

static bool has_peer(const struct sim_node *n)
{
    const struct member *m;
    for (uint32_t i = 0; (m = cluster_member_at(n->cluster, i)) != NULL; i++)
        if (m->status == MEMBER_UP && !m->self.is_stopping)
            return true;
    return false;
}

static void describe_self(const struct sim_node *n, struct cluster_self *self)
{
    *self = (struct cluster_self){
        .figures = {.memory_bytes_total = n->memory_bytes,
                    .memory_bytes_free = node_memory_free(n),
                    .n_cores = 8,
                    .gflops = (float)(100 * n->speed),
                    .memory_gb_s = (float)(20 * n->speed),
                    .thermal = n->thermal,
                    .battery_percent = 255},
        .is_stopping = n->is_stopping && n->cluster != NULL && has_peer(n),
    };
    strcpy(self->name, n->name);
}

void node_self_changed(struct sim_node *n)
{
    struct cluster_self self;
    struct cluster_event e = {.type = CLUSTER_EVENT_SELF, .self = &self};
    if (!n->is_alive || n->is_paused)
        return;
    describe_self(n, &self);
    n->figures_us = n->w->now_us;
    node_step(n, &e);
    node_settle(n);
}

/* ---- the disk ---- */

static void save(struct sim_node *n)
{
    if (n->is_writing) {
        n->is_save_due = true;
        return;
    }
    n->is_save_due = false;
    buf_done(&n->writing);
    buf_init(&n->writing, STATE_BYTES_MAX);
    assert(cluster_save(n->cluster, &n->writing) == 0);
    n->is_writing = true;
    struct event *e = world_event(n->w, EV_SAVED, n->w->save_us + chance_below(n->w, 1000));
    e->node = n->index;
    e->boot = n->boot;
    world_push(n->w, e);
}

static void after_save(struct sim_node *n)
{
    buf_done(&n->disk);
    n->disk = n->writing;
    buf_init(&n->writing, STATE_BYTES_MAX);
    n->is_writing = false;
    if (n->is_save_due)
        save(n);
}

/* ---- the core ---- */

static void do_action(struct sim_node *n, const struct cluster_action *a)
{
    struct world *w = n->w;
    struct sim_node *to;
    switch (a->type) {
    case CLUSTER_SEND:
        to = node_find(w, &a->node);
        if (to == NULL)
            world_fail(w, "actions", "%s sends to a node that does not exist", n->name);
        else
            net_send_core(w, n->index, to->index, a->data, a->len);
        break;
    case CLUSTER_DISCONNECT:
        to = node_find(w, &a->node);
        if (to != NULL) {
            /* Not from inside a step: the link's end is an event of its own. */
            struct event *e = world_event(w, EV_LINK_DOWN, 0);
            e->node = n->index;
            e->boot = n->boot;
            e->from = to->index;
            e->conn = wire_of(w, to->index, n->index)->conn;
            world_push(w, e);
        }
        break;
    case CLUSTER_SAVE:
        save(n);
        break;
    case CLUSTER_START:
        executor_start(n, a->instance);
        break;
    case CLUSTER_STOP:
        executor_stop(n, &a->instance_id, a->epoch);
        break;
    case CLUSTER_CHANGED:
        n->is_changed = true;
        break;
    case CLUSTER_ANSWER:
        clients_on_answer(n, a->order_id, &a->error);
        break;
    case CLUSTER_TRACE:
        world_trace(w, n, false, "%s%s", a->is_warning ? "warning " : "", a->trace);
        break;
    }
}

/* What an action leads to must not touch the core, whose list of actions is being read. */
void node_step(struct sim_node *n, const struct cluster_event *e)
{
    struct cluster_actions actions = {0};
    struct error err = {0};
    assert(!n->is_stepping);
    n->is_stepping = true;
    int rc = cluster_step(n->cluster, e, node_now_ms(n), &actions, &err);
    if (rc != 0)
        world_fail(n->w, "core", "%s: event %d: %s", n->name, e->type, err.message);
    for (uint32_t i = 0; i < actions.n; i++)
        do_action(n, &actions.action[i]);
    n->is_stepping = false;
    check_coordinator_step(n);
    check_state_step(n);
}

static bool is_there(void *self, const struct router_place *p)
{
    const struct sim_node *n = self;
    const struct cluster_state *s = cluster_get_state(n->cluster);
    for (uint32_t k = 0; k < s->n_instances; k++)
        if (s->instance[k].epoch == p->epoch && node_id_equal(&s->instance[k].id, &p->instance)) {
            const struct instance_report *r = cluster_find_report(n->cluster, &p->instance);
            return r == NULL || r->status <= INSTANCE_SERVING;
        }
    return false;
}

/* As src/node/core.c: until nothing is left to say. */
void node_settle(struct sim_node *n)
{
    if (!n->is_alive)
        return;
    do {
        if (n->is_changed) {
            n->is_changed = false;
            check_placement_step(n);
            router_on_places(n->router, is_there, node_now_ms(n));
        }
    } while (n->is_alive && (executor_send_reports(n) || n->is_changed));
}

/* ---- the router ---- */

bool node_find_place(struct sim_node *n, const char *model_id, struct router_place *ret)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    for (uint32_t k = 0; k < s->n_instances; k++) {
        const struct placed_instance *i = &s->instance[k];
        const struct instance_report *r = cluster_find_report(n->cluster, &i->id);
        const struct node_id *leader = &i->node_of_rank[0];
        if (strcmp(i->model_id, model_id) != 0 || r == NULL || r->status != INSTANCE_SERVING)
            continue;
        struct sim_node *to = node_find(n->w, leader);
        if (to != n && (to == NULL || !net_is_linked(n->w, n->index, to->index)))
            continue;
        *ret = (struct router_place){
            .instance = i->id, .leader = *leader, .epoch = i->epoch, .n_ctx = r->n_ctx};
        return true;
    }
    return false;
}

static bool find_place(void *self, const char *model_id, struct router_place *ret)
{
    return node_find_place(self, model_id, ret);
}

static int send_attempt(void *self, const struct router_attempt *a)
{
    struct sim_node *n = self, *to = node_find(n->w, &a->place.leader);
    world_trace(n->w, n, false, "attempt %llx to %s, %u tokens", (unsigned long long)a->attempt,
                to->name, a->n_tokens);
    if (to == n)
        return executor_submit(n, n->index, &a->place.instance, a->place.epoch, a->attempt,
                               a->tokens, a->n_tokens, a->n_max);
    struct app *m = app_new(APP_SUBMIT, a->n_tokens);
    m->instance = a->place.instance;
    m->epoch = a->place.epoch;
    m->attempt = a->attempt;
    m->n_max = a->n_max;
    memcpy(m->tokens, a->tokens, a->n_tokens * sizeof(int32_t));
    return net_send_app(n->w, n->index, to->index, m) ? 0 : E_UNAVAILABLE;
}

static void send_cancel(void *self, const struct router_place *place, uint64_t attempt)
{
    struct sim_node *n = self, *to = node_find(n->w, &place->leader);
    if (to == n) {
        executor_cancel(n, n->index, attempt);
        return;
    }
    struct app *m = app_new(APP_CANCEL, 0);
    m->attempt = attempt;
    net_send_app(n->w, n->index, to->index, m);
}

static void on_tokens(void *self, void *arg, const int32_t *tokens, uint32_t n)
{
    (void)self;
    clients_on_tokens(arg, tokens, n);
}

static void on_progress(void *self, void *arg, uint32_t n_done, uint32_t n_prompt)
{
    (void)self;
    (void)arg;
    (void)n_done;
    (void)n_prompt;
}

static void on_done(void *self, void *arg, const struct router_done *done)
{
    (void)self;
    clients_on_done(arg, done);
}

/* ---- life ---- */

static void schedule_tick(struct sim_node *n, uint64_t us)
{
    struct event *e = world_event(n->w, EV_TICK, us);
    e->node = n->index;
    e->boot = n->boot;
    world_push(n->w, e);
}

void node_start(struct sim_node *n, bool has_disk)
{
    const struct router_callbacks callbacks = {.self = n,
                                               .find_place = find_place,
                                               .send = send_attempt,
                                               .send_cancel = send_cancel,
                                               .tokens = on_tokens,
                                               .progress = on_progress,
                                               .done = on_done};
    struct world *w = n->w;
    struct error err = {0};
    assert(!n->is_alive);
    if (!has_disk)
        buf_done(&n->disk);
    n->is_there = n->is_alive = true;
    n->is_paused = n->is_stopping = n->is_writing = n->is_save_due = n->is_changed = false;
    n->is_tick_due = n->is_stepping = n->was_coordinator = false;
    n->deferred = NULL;
    n->deferred_end = &n->deferred;
    n->boot++;
    n->boot_us = w->now_us;
    n->claim = (struct claim){0};
    struct cluster_options o = {
        .id = n->id,
        .incarnation = 1700000000000u + w->now_us / 1000 + n->boot,
        .seed = chance_u64(w),
        .saved = n->disk.len > 0 ? n->disk.data : NULL,
        .saved_len = n->disk.len,
        .is_alone_expected = w->n_nodes == 1,
        .no_paging = true, /* the checkers want every layer within memory */
    };
    describe_self(n, &o.self);
    world_trace(w, n, true, "starts%s", o.saved != NULL ? " with its disk" : "");
    if (cluster_new(&o, node_now_ms(n), &n->cluster, &err) != 0)
        world_fail(w, "core", "%s: cannot start: %s", n->name, err.message);
    else if (router_new(&callbacks, &n->router, &err) != 0)
        world_fail(w, "core", "%s: no router: %s", n->name, err.message);
    if (w->is_failed) {
        n->is_alive = false;
        return;
    }
    net_boot(w, n->index);
    schedule_tick(n, chance_below(w, TICK_US));
}

static void drop_deferred(struct sim_node *n)
{
    while (n->deferred != NULL) {
        struct event *e = n->deferred;
        n->deferred = e->next;
        free(e->data);
        free(e);
    }
    n->deferred_end = &n->deferred;
}

void node_die(struct sim_node *n, bool is_silent)
{
    struct world *w = n->w;
    if (!n->is_alive)
        return;
    n->is_alive = false;
    n->is_paused = false;
    drop_deferred(n);
    clients_on_death(n);
    executor_die(n, is_silent);
    net_die(w, n->index, is_silent);
    cluster_free(n->cluster);
    router_free(n->router);
    n->cluster = NULL;
    n->router = NULL;
    n->boot++; /* what was on its way to the process is void */
}

void node_pause(struct sim_node *n, uint64_t us)
{
    struct event *e = world_event(n->w, EV_RESUME, us);
    n->is_paused = true;
    n->pause_end_us = n->w->now_us + us;
    e->node = n->index;
    e->boot = n->boot;
    world_push(n->w, e);
}

void node_resume(struct sim_node *n)
{
    struct event *first = n->deferred;
    if (!n->is_paused)
        return;
    n->is_paused = false;
    n->deferred = NULL;
    n->deferred_end = &n->deferred;
    /* The loop finds everything at once, ticks among it. */
    if (n->is_tick_due && chance_is(n->w, 0.5)) {
        n->is_tick_due = false;
        schedule_tick(n, 0);
    }
    for (struct event *e = first, *next; e != NULL; e = next) {
        next = e->next;
        e->at_us = n->w->now_us;
        e->seq = ++n->w->seq;
        world_push(n->w, e);
    }
    if (n->is_tick_due)
        schedule_tick(n, 0);
    n->is_tick_due = false;
}

/* Leaves in order: its instances are moved first, then its process ends; also when nobody takes
 * them in time, as nodes do (NODE_DRAIN_MS). */
void node_leave(struct sim_node *n)
{
    n->is_stopping = true;
    n->stopping_us = n->w->now_us;
    node_self_changed(n);
}

static void tick(struct sim_node *n)
{
    struct cluster_event e = {.type = CLUSTER_EVENT_TICK};
    if (n->w->now_us - n->figures_us >= FIGURES_US)
        node_self_changed(n);
    net_tick(n);
    node_step(n, &e);
    router_tick(n->router, node_now_ms(n));
    node_settle(n);
    uint32_t sent, parked;
    router_count(n->router, &sent, &parked);
    bool is_empty = n->led == NULL && n->hosted == NULL && sent + parked == 0;
    if (n->is_stopping && (is_empty || n->w->now_us - n->stopping_us >= LEAVE_US_MAX)) {
        world_trace(n->w, n, true, "has left");
        n->is_there = false;
        node_die(n, false);
        world_disturb(n->w, 0);
        check_state_death(n->w);
        return;
    }
    schedule_tick(n, (uint64_t)(TICK_US / n->clock_rate));
}

void node_event(struct sim_node *n, struct event *e)
{
    struct cluster_event message = {.type = CLUSTER_EVENT_MESSAGE};
    switch (e->type) {
    case EV_TICK:
        tick(n);
        break;
    case EV_DELIVER:
        if (wire_of(n->w, e->from, n->index)->conn != e->conn)
            break;
        message.node = n->w->node[e->from].id;
        message.data = e->data;
        message.len = e->len;
        node_step(n, &message);
        node_settle(n);
        break;
    case EV_APP:
        if (e->from != n->index && wire_of(n->w, e->from, n->index)->conn != e->conn)
            break;
        executor_app(n, e->from, e->data);
        node_settle(n);
        break;
    case EV_SAVED:
        after_save(n);
        break;
    default:
        executor_event(n, e);
        node_settle(n);
        break;
    }
}
