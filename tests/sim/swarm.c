/*
 * What a seed brings: how many nodes of which kind, how bad the network is, which models, and a
 * list of faults of its own mixture. Then everything heals, and within a bound all must be well
 * again.
 */
#include "sim.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    WHOLE_US_MAX = 45000000, /* after healing: silent links take 10 s, back-off up to 30 s */
    STABLE_US = 1500000,
};

static double between(struct world *w, double min, double max)
{
    return min + (max - min) * chance_unit(w);
}

/* ---- the world that a seed makes ---- */

uint32_t sim_choose_nodes(const struct sim_options *o)
{
    uint64_t z = (o->seed + 77) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    uint32_t u = (uint32_t)(z >> 40) % 100;
    if (o->n_nodes != 0)
        return o->n_nodes;
    return u < 3 ? 1 : u < 28 ? 2 : u < 50 ? 3 : u < 70 ? 4 : u < 97 ? 5 + u % 4 : 9 + u % 12;
}

void sim_add_node(struct world *w, uint32_t index, double memory_gb, double speed)
{
    struct sim_node *n = &w->node[index];
    n->w = w;
    n->index = index;
    for (uint32_t i = 0; i < 14; i++)
        n->id.bytes[i] = (uint8_t)chance_u64(w);
    n->id.bytes[14] = (uint8_t)(index >> 8);
    n->id.bytes[15] = (uint8_t)index;
    if (index < 26)
        snprintf(n->name, sizeof(n->name), "%c", 'a' + (char)index);
    else
        snprintf(n->name, sizeof(n->name), "n%u", index);
    n->memory_bytes = (uint64_t)(memory_gb * 1e9);
    n->speed = speed;
    n->clock_rate = 1;
    n->deferred_end = &n->deferred;
    buf_init(&n->disk, 1 << 20);
    buf_init(&n->writing, 1 << 20);
}

/* kind: total gigabytes, as far as weights go. */
void sim_add_model(struct world *w, uint32_t kind)
{
    struct sim_model *m = &w->model[w->n_models];
    snprintf(m->id, sizeof(m->id), "m%u", ++w->n_models);
    m->shape = (struct model_shape){.n_layer = 12 + 4 * kind,
                                    .n_embd = 1024,
                                    .n_ff = 2816,
                                    .n_head = 16,
                                    .n_head_kv = 8,
                                    .head_dim = 64,
                                    .n_vocab = 32768,
                                    .n_ctx_train = 8192,
                                    .embd_bytes = 30000000,
                                    .output_bytes = 30000000,
                                    .kv_token_layer_bytes = 2048};
    m->shape.layer_bytes = kind * 1000000000ull / m->shape.n_layer;
}

void swarm_choose(struct world *w)
{
    static const uint32_t delays_us[] = {100, 300, 1000, 5000, 20000, 100000};
    w->delay_us = delays_us[chance_below(w, 6)];
    w->jitter_us = chance_below(w, w->delay_us + 500);
    w->is_lossy = chance_is(w, 0.5);
    w->loss = chance_is(w, 0.4) ? between(w, 0, 0.08) : 0;
    w->doubling = chance_is(w, 0.3) ? between(w, 0, 0.2) : 0;
    w->reordering = chance_is(w, 0.3) ? between(w, 0, 0.3) : 0;
    w->load_ms = 100 + chance_below(w, 900);
    w->start_ms = 10 + chance_below(w, 100);
    w->end_ms = 5 + chance_below(w, 150);
    w->token_us = 10000 + chance_below(w, 60000);
    w->save_us = 1000 + chance_below(w, chance_is(w, 0.2) ? 1000000 : 20000);
    w->n_slots = 1 + chance_below(w, 4);
    /* An answer has some 45 tokens; heads are busy for a tenth to nearly all of their time. */
    w->request_gap_us = 45.0 * (w->token_us + 3 * w->delay_us) / w->n_slots / between(w, 0.1, 0.9);
    if (w->request_gap_us < 50000)
        w->request_gap_us = 50000;
    uint32_t n_models = chance_is(w, 0.7) ? 1 : 2;
    double total_gb = 0, needed_gb = 0;
    for (uint32_t i = 0; i < n_models; i++) {
        uint32_t gb = 1 + chance_below(w, 5);
        sim_add_model(w, gb);
        needed_gb += gb + 1;
    }
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        double gb = between(w, 2, 9);
        sim_add_node(w, i, gb, chance_is(w, 0.2) ? between(w, 0.3, 1) : 1);
        total_gb += gb;
        if (chance_is(w, 0.3))
            w->node[i].clock_rate = between(w, 0.97, 1.03);
        w->node[i].clock_offset_us = chance_below(w, 1000000000);
    }
    /* Mostly there is room to spare, so that a repair is possible. */
    double least_gb = needed_gb * (chance_is(w, 0.8) ? 2.5 : 1.2);
    if (total_gb < least_gb)
        for (uint32_t i = 0; i < w->n_nodes; i++)
            w->node[i].memory_bytes =
                (uint64_t)((double)w->node[i].memory_bytes * least_gb / total_gb);
}

/* ---- faults ---- */

struct heal {
    enum fault_kind kind;
    uint32_t a, b;
    uint64_t arg;
    bool sides[SIM_NODES_MAX];
};

static void push_heal(struct world *w, const struct heal *h, uint64_t us)
{
    struct event *e = world_event(w, EV_HEAL, us);
    e->data = malloc(sizeof(*h));
    assert(e->data != NULL);
    memcpy(e->data, h, sizeof(*h));
    world_disturb(w, 1);
    world_push(w, e);
}

static void cut_sides(struct world *w, const bool *sides, bool is_cut)
{
    for (uint32_t i = 0; i < w->n_nodes; i++)
        for (uint32_t k = 0; k < w->n_nodes; k++)
            if (i != k && sides[i] != sides[k])
                net_cut(w, i, k, is_cut);
}

static void lose_node(struct world *w, struct sim_node *n, bool is_silent)
{
    world_trace(w, n, true, is_silent ? "loses power" : "is killed");
    check_repair_loss(n, is_silent);
    node_die(n, is_silent);
    check_state_death(w);
    world_disturb(w, 0);
}

void fault_begin(struct world *w, enum fault_kind kind, uint32_t a, uint32_t b, uint64_t us)
{
    struct sim_node *n = &w->node[a], *other = &w->node[b];
    struct heal h = {.kind = kind, .a = a, .b = b};
    struct hosted *rank = n->hosted;
    w->report->n_faults[kind]++;
    switch (kind) {
    case FAULT_KILL:
    case FAULT_POWER:
        if (n->is_alive)
            lose_node(w, n, kind == FAULT_POWER);
        break;
    case FAULT_JOIN:
    case FAULT_RESTART:
        if (!n->is_alive) {
            node_start(n, us == 0);
            check_state_death(w); /* its disk may have been the last copy */
            world_disturb(w, 0);
        }
        break;
    case FAULT_PAUSE:
        if (n->is_alive && !n->is_paused) {
            world_trace(w, n, true, "is stopped for %llu ms", (unsigned long long)us / 1000);
            node_pause(n, us);
            push_heal(w, &h, us);
        }
        break;
    case FAULT_PARTITION:
        for (uint32_t i = 0; i < w->n_nodes; i++)
            h.sides[i] = b == UINT32_MAX ? i == a : chance_is(w, 0.5);
        world_trace(w, NULL, true, "partition");
        for (uint32_t i = 0; i < w->n_nodes; i++)
            world_trace(w, NULL, false, "side %d: %s", h.sides[i], w->node[i].name);
        cut_sides(w, h.sides, true);
        push_heal(w, &h, us);
        break;
    case FAULT_ONE_WAY:
        world_trace(w, n, true, "is not heard by %s any more", other->name);
        net_cut(w, a, b, true);
        push_heal(w, &h, us);
        break;
    case FAULT_CUT:
        world_trace(w, n, true, "and %s hear each other no more", other->name);
        net_cut(w, a, b, true);
        net_cut(w, b, a, true);
        push_heal(w, &h, us);
        break;
    case FAULT_CLOSE:
        world_trace(w, n, true, "its connection to %s is reset", other->name);
        net_close(w, a, b);
        world_disturb(w, 0);
        break;
    case FAULT_DELAY:
        world_trace(w, n, false, "slow link to %s", other->name);
        wire_of(w, a, b)->extra_us = wire_of(w, b, a)->extra_us = 200000;
        push_heal(w, &h, us);
        break;
    case FAULT_LOSS:
        world_trace(w, n, false, "bad link to %s", other->name);
        wire_of(w, a, b)->loss = wire_of(w, b, a)->loss = 0.2;
        push_heal(w, &h, us);
        break;
    case FAULT_RANK:
        if (n->is_alive && !n->is_paused && rank != NULL && rank->state != HOSTED_WAITING) {
            executor_crash_rank(n, rank);
            world_disturb(w, 0);
        }
        break;
    case FAULT_DATA:
        if (n->is_alive && !n->is_paused) {
            executor_break_data(n);
            world_disturb(w, 0);
        }
        break;
    case FAULT_SLOW:
        world_trace(w, n, false, "slows down");
        h.arg = (uint64_t)(n->speed * 1e6);
        n->speed *= 0.4;
        node_self_changed(n);
        push_heal(w, &h, us);
        break;
    case FAULT_HOT:
        world_trace(w, n, true, "is hot");
        n->thermal = us % 2 == 0 ? THERMAL_CRITICAL : THERMAL_THROTTLING;
        node_self_changed(n);
        push_heal(w, &h, us);
        break;
    case FAULT_MEMORY:
        h.arg = n->memory_bytes / 4 + chance_below(w, 1000) * (n->memory_bytes / 4000);
        world_trace(w, n, false, "others take %llu MB", (unsigned long long)(h.arg >> 20));
        n->memory_taken += h.arg;
        node_self_changed(n);
        push_heal(w, &h, us);
        break;
    case FAULT_DRAIN:
    case FAULT_UNDRAIN:
        if (n->is_alive && !n->is_paused) {
            client_order(w, n, kind == FAULT_DRAIN ? ORDER_DRAIN : ORDER_UNDRAIN, 0, &other->id);
            world_disturb(w, 0);
        }
        break;
    case FAULT_LEAVE:
        if (n->is_alive && !n->is_paused) {
            world_trace(w, n, true, "leaves");
            node_leave(n);
            world_disturb(w, 0);
        }
        break;
    case FAULT_LOAD:
    case FAULT_UNLOAD:
        if (n->is_alive && !n->is_paused && !n->is_stopping) {
            client_order(w, n, kind == FAULT_LOAD ? ORDER_LOAD : ORDER_UNLOAD, b, NULL);
            world_disturb(w, 0);
        }
        break;
    case FAULT_KIND_COUNT:
        break;
    }
}

static void heal(struct world *w, const struct heal *h)
{
    struct sim_node *n = &w->node[h->a];
    world_disturb(w, -1);
    switch (h->kind) {
    case FAULT_PARTITION:
        world_trace(w, NULL, true, "partition heals");
        cut_sides(w, h->sides, false);
        break;
    case FAULT_CUT:
        net_cut(w, h->b, h->a, false);
        net_cut(w, h->a, h->b, false);
        world_trace(w, n, true, "and %s hear each other again", w->node[h->b].name);
        break;
    case FAULT_ONE_WAY:
        net_cut(w, h->a, h->b, false);
        world_trace(w, n, true, "is heard by %s again", w->node[h->b].name);
        break;
    case FAULT_DELAY:
        wire_of(w, h->a, h->b)->extra_us = wire_of(w, h->b, h->a)->extra_us = 0;
        break;
    case FAULT_LOSS:
        wire_of(w, h->a, h->b)->loss = wire_of(w, h->b, h->a)->loss = 0;
        break;
    case FAULT_SLOW:
        n->speed = (double)h->arg / 1e6;
        node_self_changed(n);
        break;
    case FAULT_HOT:
        n->thermal = THERMAL_NORMAL;
        node_self_changed(n);
        break;
    case FAULT_MEMORY:
        n->memory_taken -= h->arg;
        node_self_changed(n);
        break;
    default:
        break;
    }
}

/* ---- a seed's mixture ---- */

struct mixture {
    double rate[FAULT_KIND_COUNT];
    double sum;
    double gap_us;
    uint64_t end_us;
};

struct mixture *swarm_mixture(struct world *w)
{
    struct mixture *f = calloc(1, sizeof(*f));
    assert(f != NULL);
    static const double usual[FAULT_KIND_COUNT] = {
        [FAULT_KILL] = 3,      [FAULT_POWER] = 1.5, [FAULT_RESTART] = 5,  [FAULT_PAUSE] = 1,
        [FAULT_PARTITION] = 1, [FAULT_ONE_WAY] = 1, [FAULT_CUT] = 1,      [FAULT_CLOSE] = 1,
        [FAULT_DELAY] = 1,     [FAULT_LOSS] = 1,    [FAULT_RANK] = 1,     [FAULT_DATA] = 1,
        [FAULT_SLOW] = 0.5,    [FAULT_HOT] = 0.5,   [FAULT_MEMORY] = 0.5, [FAULT_DRAIN] = 0.3,
        [FAULT_UNDRAIN] = 0.5, [FAULT_LEAVE] = 0.3, [FAULT_JOIN] = 0.5,   [FAULT_LOAD] = 0.3,
        [FAULT_UNLOAD] = 0.15};
    for (int k = 0; k < FAULT_KIND_COUNT; k++) {
        f->rate[k] = chance_is(w, 0.5) ? usual[k] * between(w, 0.2, 2) : 0;
        f->sum += f->rate[k];
    }
    f->gap_us = between(w, 200000, 4000000);
    uint64_t us = w->options.time_us;
    if (us == 0)
        us = (uint64_t)(chance_is(w, 0.9) ? between(w, 2e6, 10e6) : between(w, 10e6, 40e6));
    f->end_us = w->now_us + us;
    return f;
}

static uint64_t choose_length_us(struct world *w)
{
    return (uint64_t)(chance_is(w, 0.8) ? between(w, 50000, 4000000) : between(w, 4e6, 12e6));
}

void swarm_fault(struct world *w, const struct mixture *f)
{
    double u = chance_unit(w) * f->sum;
    int kind = 0;
    while (kind < FAULT_KIND_COUNT - 1 && (u -= f->rate[kind]) >= 0)
        kind++;
    uint32_t a = chance_below(w, w->n_nodes), b = chance_below(w, w->n_nodes);
    uint64_t us = choose_length_us(w);
    bool needs_two = kind == FAULT_ONE_WAY || kind == FAULT_CUT || kind == FAULT_CLOSE ||
                     kind == FAULT_DELAY || kind == FAULT_LOSS || kind == FAULT_PARTITION;
    if (f->sum == 0 || f->rate[kind] == 0 || (needs_two && w->n_nodes < 2))
        return;
    if (needs_two && a == b)
        b = (a + 1) % w->n_nodes;
    if (kind == FAULT_RESTART || kind == FAULT_JOIN)
        us = chance_is(w, 0.2); /* without its disk */
    if (kind == FAULT_LOAD || kind == FAULT_UNLOAD)
        b = chance_below(w, w->n_models);
    if (kind == FAULT_SLOW && w->node[a].speed < 0.2)
        return;
    fault_begin(w, (enum fault_kind)kind, a, b, us);
}

void swarm_event(struct world *w, struct event *e)
{
    if (e->type == EV_HEAL) {
        heal(w, e->data);
        return;
    }
    struct mixture *f = w->mixture;
    if (w->now_us >= f->end_us)
        return;
    swarm_fault(w, f);
    world_push(w, world_event(w, EV_FAULT, (uint64_t)(f->gap_us * between(w, 0.05, 2))));
}

/* ---- the run ---- */

/* Every fault ends: what is cut is joined, who was stopped goes on. */
void fault_heal_all(struct world *w)
{
    for (uint32_t i = 0; i < w->n_heap; i++)
        if (w->heap[i]->type == EV_HEAL && w->heap[i]->data != NULL) {
            struct heal h;
            memcpy(&h, w->heap[i]->data, sizeof(h));
            free(w->heap[i]->data);
            w->heap[i]->data = NULL;
            w->heap[i]->type = EV_NONE;
            heal(w, &h);
        }
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->node[i];
        if (n->is_paused)
            node_resume(n);
        for (uint32_t k = 0; k < w->n_nodes; k++)
            net_cut(w, i, k, false);
    }
}

static bool is_placed(const struct sim_node *n, const struct led *l)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    int k = cluster_state_find_instance(s, &l->placed.id);
    return k >= 0 && s->instance[k].epoch == l->placed.epoch;
}

bool swarm_is_well(struct world *w)
{
    const struct claim *first = NULL;
    uint32_t n_alive = 0, n_coordinators = 0;
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        struct sim_node *n = &w->node[i];
        if (!n->is_alive)
            continue;
        n_alive++;
        n_coordinators += cluster_is_coordinator(n->cluster);
        if (n->is_stopping || !cluster_has_coordinator(n->cluster))
            return false;
        const struct claim *claim = &cluster_get_state(n->cluster)->claim;
        if (first != NULL && claim_compare(first, claim) != 0)
            return false;
        first = claim;
        for (const struct led *l = n->led; l != NULL; l = l->next)
            if (!l->is_stopping && (l->report.status != INSTANCE_SERVING || !is_placed(n, l)))
                return false;
        for (uint32_t m = 0; m < w->n_models; m++) {
            const struct cluster_state *s = cluster_get_state(n->cluster);
            int k = cluster_state_find_model(s, w->model[m].id);
            if (k >= 0 && s->model[k].is_wanted && !check_is_served(n, m) &&
                check_is_feasible(w, n, m))
                return false;
        }
    }
    return n_alive == 0 || n_coordinators == 1;
}

static bool has_orphans(struct world *w)
{
    for (uint32_t i = 0; i < w->n_nodes; i++)
        for (const struct hosted *h = w->node[i].hosted; h != NULL; h = h->next)
            if (executor_find(&w->node[h->leader], &h->instance, h->epoch) == NULL)
                return true;
    return false;
}

static bool are_requests_over(const struct world *w)
{
    for (const struct sim_request *q = w->requests; q != NULL; q = q->next)
        if (!q->is_ended && !q->is_lost)
            return false;
    return true;
}

/* Loads each model, as a person would: again, elsewhere, until somebody says that it is done. */
void swarm_load_models(struct world *w)
{
    for (uint32_t m = 0; m < w->n_models; m++)
        for (int i = 0; i < 30 && w->model[m].n_orders == 0 && !w->is_failed; i++) {
            struct sim_node *n = &w->node[chance_below(w, w->n_nodes)];
            if (n->is_alive && !n->is_paused)
                client_order(w, n, ORDER_LOAD, m, NULL);
            for (int k = 0; k < 20 && w->model[m].n_orders == 0; k++)
                world_run(w, w->now_us + 50000);
        }
}

static void settle(struct world *w)
{
    uint64_t well_us = 0;
    w->is_healing = true;
    w->heal_us = w->now_us;
    world_trace(w, NULL, true, "all heals");
    fault_heal_all(w);
    bool is_all_back = chance_is(w, 0.5);
    for (uint32_t i = 0; i < w->n_nodes; i++)
        if (!w->node[i].is_alive && is_all_back)
            node_start(&w->node[i], true);
    check_state_heal(w);
    world_disturb(w, 0);
    while (!w->is_failed && w->now_us - w->heal_us < WHOLE_US_MAX) {
        world_run(w, w->now_us + 200000);
        if (w->now_us - w->heal_us > 2000000)
            w->are_clients_quiet = true;
        if (!swarm_is_well(w) || has_orphans(w) || !are_requests_over(w))
            well_us = 0;
        else if (well_us == 0)
            well_us = w->now_us;
        else if (w->are_clients_quiet && w->now_us - well_us >= STABLE_US)
            break;
    }
}

void swarm_run(struct world *w)
{
    struct mixture *f = swarm_mixture(w);
    w->mixture = f;
    world_trace(w, NULL, false,
                "seed %llu: %u nodes, delay %u + %u us, %s, loss %.3f, doubled %.3f, reordered "
                "%.3f, load %u ms, save %u us, token %u us, %u slots",
                (unsigned long long)w->options.seed, w->n_nodes, w->delay_us, w->jitter_us,
                w->is_lossy ? "packets" : "streams", w->loss, w->doubling, w->reordering,
                w->load_ms, w->save_us, w->token_us, w->n_slots);
    for (uint32_t i = 0; i < w->n_nodes; i++)
        world_trace(w, &w->node[i], false, "%llu MB, speed %.2f, clock %.3f",
                    (unsigned long long)(w->node[i].memory_bytes >> 20), w->node[i].speed,
                    w->node[i].clock_rate);
    for (uint32_t i = 0; i < w->n_models; i++)
        world_trace(
            w, NULL, false, "%s: %llu MB", w->model[i].id,
            (unsigned long long)(w->model[i].shape.layer_bytes * w->model[i].shape.n_layer >> 20));
    uint32_t n_late = chance_is(w, 0.2) && w->n_nodes > 2 ? 1 : 0; /* joins later */
    for (uint32_t i = 0; i < w->n_nodes - n_late; i++)
        node_start(&w->node[i], false);
    world_run(w, w->now_us + 1000000 + chance_below(w, 1500000));
    swarm_load_models(w);
    clients_begin(w);
    world_run(w, w->now_us + chance_below(w, 3000000));
    world_push(w, world_event(w, EV_FAULT, 0));
    f->end_us += 2000000;
    world_run(w, f->end_us);
    if (!w->is_failed)
        settle(w);
    if (!w->is_failed) {
        check_coordinator_end(w);
        check_placement_end(w);
        check_requests_end(w);
        check_state_end(w);
    }
    w->report->virtual_us += w->now_us;
}
