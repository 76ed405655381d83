/*
 * A few cluster cores in one process, with a network in memory and an executor that only pretends:
 * enough to tell stories. Time is virtual and begins at 1000; everything is repeatable.
 *
 * Nodes are called a, b, c ... and have ids in that order. What they trace is kept, one line each,
 * as "node: text".
 */
#ifndef TESTS_UNIT_CLUSTER_NET_H
#define TESTS_UNIT_CLUSTER_NET_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/rng.h"
#include "cluster/cluster.h"
#include "cluster/message.h"

enum {
    NET_NODES_MAX = 8,
    NET_TRACES_MAX = 4000,
    NET_MESSAGES_MAX = 20000,
    NET_RUNS_MAX = 64,
    NET_LOAD_MS = 300, /* from CLUSTER_START to SERVING */
};

struct net_message {
    uint64_t due_ms, number;
    uint32_t from, to, life_of_from, life_of_to;
    char *data;
    size_t len;
};

struct net_run { /* a placement that a leader has been told to start */
    bool is_used, is_stopping;
    struct placed_instance placed;
    uint64_t due_ms;
    enum instance_status status; /* last reported */
};

struct net_node {
    struct cluster *core;
    struct cluster_self self;
    uint64_t incarnation;
    uint32_t life;
    bool is_paused;
    char *saved; /* the disk */
    size_t saved_len;
    struct net_run run[NET_RUNS_MAX];
    uint32_t n_starts, n_stops, n_answers, n_saves, n_disconnects;
    uint64_t answered_order;
    struct error answer;
};

struct net {
    uint64_t now_ms, n_messages, n_sent;
    uint32_t n_nodes;
    struct net_node node[NET_NODES_MAX];
    bool is_linked[NET_NODES_MAX][NET_NODES_MAX];
    bool is_cut[NET_NODES_MAX][NET_NODES_MAX]; /* from, to: messages vanish */
    uint32_t delay_ms, jitter_ms, loss_percent, twice_percent;
    bool is_answer_lost; /* ORDER_ANSWERs vanish */
    bool is_nomem_allowed;
    uint32_t n_link_ups_lost; /* for lack of memory */
    struct net_message message[NET_MESSAGES_MAX];
    uint32_t n_queued;
    char trace[NET_TRACES_MAX][300];
    uint32_t n_traces, n_read;
};

static inline struct node_id net_id(uint32_t i)
{
    struct node_id id = {{0}};
    id.bytes[0] = (uint8_t)('a' + i);
    id.bytes[15] = 1;
    return id;
}

static inline uint32_t net_index(const struct node_id *id)
{
    return (uint32_t)(id->bytes[0] - 'a');
}

static inline void net_step(struct net *n, uint32_t i, const struct cluster_event *e);

static inline bool net_is_alive(const struct net *n, uint32_t i)
{
    return i < n->n_nodes && n->node[i].core != NULL;
}

/* ---- the executor ---- */

static inline void net_report(struct net *n, uint32_t i, const struct net_run *run,
                              enum instance_status status, uint64_t bad_ranks, bool is_unfit)
{
    struct instance_report r = {.instance = run->placed.id,
                                .epoch = run->placed.epoch,
                                .status = status,
                                .bad_ranks = bad_ranks,
                                .is_node_unfit = is_unfit,
                                .n_ranks = run->placed.split.n_ranks};
    if (status == INSTANCE_FAILED)
        snprintf(r.error, sizeof(r.error), "a rank has ended");
    net_step(n, i, &(struct cluster_event){.type = CLUSTER_EVENT_REPORT, .report = &r});
}

static inline void net_start(struct net *n, uint32_t i, const struct placed_instance *p)
{
    for (uint32_t k = 0; k < NET_RUNS_MAX; k++) {
        struct net_run *run = &n->node[i].run[k];
        if (run->is_used) /* never the same twice, never two of one model at one leader */
            assert_false(node_id_equal(&run->placed.id, &p->id) && !run->is_stopping);
        if (run->is_used)
            continue;
        *run = (struct net_run){.is_used = true, .placed = *p, .due_ms = n->now_ms + 100};
        n->node[i].n_starts++;
        return;
    }
    fail();
}

static inline void net_stop(struct net *n, uint32_t i, const struct node_id *id, uint64_t epoch)
{
    for (uint32_t k = 0; k < NET_RUNS_MAX; k++) {
        struct net_run *run = &n->node[i].run[k];
        if (!run->is_used || run->placed.epoch != epoch || !node_id_equal(&run->placed.id, id))
            continue;
        run->is_stopping = true;
        run->due_ms = n->now_ms + 20;
        n->node[i].n_stops++;
        return;
    }
    fail(); /* it was never started */
}

/* A leader notices when a rank's node is dead or cut off. */
static inline uint64_t net_bad_ranks(const struct net *n, uint32_t i, const struct net_run *run)
{
    uint64_t bad = 0;
    for (uint32_t r = 0; r < run->placed.split.n_ranks; r++) {
        uint32_t k = net_index(&run->placed.node_of_rank[r]);
        bool is_cut = k != i && (n->is_cut[i][k] || n->is_cut[k][i]);
        if (!net_is_alive(n, k) || n->node[k].incarnation != run->placed.incarnation_of_rank[r] ||
            is_cut)
            bad |= 1ull << r;
    }
    return bad;
}

static inline void net_run_runs(struct net *n, uint32_t i)
{
    for (uint32_t k = 0; net_is_alive(n, i) && k < NET_RUNS_MAX; k++) {
        struct net_run *run = &n->node[i].run[k];
        if (!run->is_used)
            continue;
        uint64_t bad = net_bad_ranks(n, i, run);
        if (run->is_stopping) {
            if (n->now_ms >= run->due_ms) {
                net_report(n, i, run, INSTANCE_STOPPED, 0, false);
                run->is_used = false;
            }
        } else if (bad != 0 && run->status != INSTANCE_FAILED) {
            run->status = INSTANCE_FAILED;
            net_report(n, i, run, INSTANCE_FAILED, bad, false);
        } else if (bad == 0 && run->status < INSTANCE_SERVING && n->now_ms >= run->due_ms) {
            bool is_loading = run->status == INSTANCE_WAITING;
            run->status = is_loading ? INSTANCE_LOADING : INSTANCE_SERVING;
            run->due_ms = n->now_ms + NET_LOAD_MS - 100;
            net_report(n, i, run, run->status, 0, false);
        }
    }
}

/* ---- the network ---- */

static inline uint32_t net_chance(struct net *n, uint32_t below, uint32_t stream)
{
    return (uint32_t)(rng_u64(7, ++n->n_messages, stream) % below);
}

static inline void net_queue(struct net *n, uint32_t from, uint32_t to, const void *data,
                             size_t len)
{
    assert_true(n->n_queued < NET_MESSAGES_MAX);
    struct net_message *m = &n->message[n->n_queued++];
    *m = (struct net_message){.due_ms = n->now_ms + n->delay_ms,
                              .number = ++n->n_messages,
                              .from = from,
                              .to = to,
                              .life_of_from = n->node[from].life,
                              .life_of_to = n->node[to].life,
                              .data = malloc(len),
                              .len = len};
    if (n->jitter_ms > 0)
        m->due_ms += net_chance(n, n->jitter_ms, 1);
    assert_non_null(m->data);
    memcpy(m->data, data, len);
}

static inline void net_send(struct net *n, uint32_t from, const struct cluster_action *a)
{
    uint32_t to = net_index(&a->node);
    n->n_sent++;
    if (!net_is_alive(n, to) || !n->is_linked[from][to] || n->is_cut[from][to])
        return;
    if (n->is_answer_lost && ((const uint8_t *)a->data)[1] == CLUSTER_ORDER_ANSWER)
        return;
    if (n->loss_percent > 0 && net_chance(n, 100, 2) < n->loss_percent)
        return;
    net_queue(n, from, to, a->data, a->len);
    if (n->twice_percent > 0 && net_chance(n, 100, 3) < n->twice_percent)
        net_queue(n, from, to, a->data, a->len);
}

static inline void net_save(const struct net *n, struct net_node *node)
{
    struct buf b;
    buf_init(&b, 1 << 20);
    int rc = cluster_save(node->core, &b);
    if (rc != 0 && n->is_nomem_allowed) {
        buf_done(&b);
        return;
    }
    assert_int_equal(rc, 0);
    free(node->saved);
    node->saved = malloc(b.len);
    assert_non_null(node->saved);
    memcpy(node->saved, b.data, b.len);
    node->saved_len = b.len;
    node->n_saves++;
    buf_done(&b);
}

static inline void net_act(struct net *n, uint32_t i, const struct cluster_action *a)
{
    struct net_node *node = &n->node[i];
    switch (a->type) {
    case CLUSTER_SEND:
        net_send(n, i, a);
        break;
    case CLUSTER_SAVE:
        net_save(n, node);
        break;
    case CLUSTER_START:
        net_start(n, i, a->instance);
        break;
    case CLUSTER_STOP:
        net_stop(n, i, &a->instance_id, a->epoch);
        break;
    case CLUSTER_ANSWER:
        node->n_answers++;
        node->answered_order = a->order_id;
        node->answer = a->error;
        break;
    case CLUSTER_DISCONNECT:
        node->n_disconnects++;
        n->is_linked[i][net_index(&a->node)] = n->is_linked[net_index(&a->node)][i] = false;
        break;
    case CLUSTER_TRACE:
        assert_true(n->n_traces < NET_TRACES_MAX);
        snprintf(n->trace[n->n_traces++], sizeof(n->trace[0]), "%c: %s", 'a' + (int)i, a->trace);
        if (getenv("NET_TRACE") != NULL)
            printf("%6llu %c: %s\n", (unsigned long long)n->now_ms, 'a' + (int)i, a->trace);
        break;
    case CLUSTER_CHANGED:
        break;
    }
}

static inline void net_step(struct net *n, uint32_t i, const struct cluster_event *e)
{
    struct cluster_actions actions;
    struct error err = {0};
    int rc = cluster_step(n->node[i].core, e, n->now_ms, &actions, &err);
    if (rc == E_NOMEM && n->is_nomem_allowed)
        n->n_link_ups_lost += e->type == CLUSTER_EVENT_LINK_UP;
    else if (rc != 0)
        fail_msg("step: %s", err.message);
    for (uint32_t k = 0; k < actions.n; k++)
        net_act(n, i, &actions.action[k]);
}

/* The oldest message that is due; those to a node that is stopped wait for it. */
static inline bool net_deliver_one(struct net *n)
{
    int best = -1;
    for (uint32_t i = 0; i < n->n_queued; i++) {
        const struct net_message *m = &n->message[i];
        if (m->due_ms > n->now_ms || n->node[m->to].is_paused)
            continue;
        if (best < 0 || m->due_ms < n->message[best].due_ms ||
            (m->due_ms == n->message[best].due_ms && m->number < n->message[best].number))
            best = (int)i;
    }
    if (best < 0)
        return false;
    struct net_message m = n->message[best];
    n->message[best] = n->message[--n->n_queued];
    if (net_is_alive(n, m.to) && n->node[m.to].life == m.life_of_to && n->is_linked[m.from][m.to] &&
        n->node[m.from].life == m.life_of_from) {
        const struct cluster_event e = {
            .type = CLUSTER_EVENT_MESSAGE, .node = net_id(m.from), .data = m.data, .len = m.len};
        net_step(n, m.to, &e);
    }
    free(m.data);
    return true;
}

/* Runs for so many milliseconds. */
static inline void net_run(struct net *n, uint64_t ms)
{
    for (uint64_t end_ms = n->now_ms + ms; n->now_ms < end_ms;) {
        n->now_ms++;
        while (net_deliver_one(n)) {
        }
        for (uint32_t i = 0; i < n->n_nodes; i++) {
            if (!net_is_alive(n, i) || n->node[i].is_paused)
                continue;
            if (n->now_ms % CLUSTER_TICK_MS == i)
                net_step(n, i, &(struct cluster_event){.type = CLUSTER_EVENT_TICK});
            net_run_runs(n, i);
        }
    }
}

static inline void net_link(struct net *n, uint32_t a, uint32_t b)
{
    struct cluster_event e = {.type = CLUSTER_EVENT_LINK_UP};
    n->is_linked[a][b] = n->is_linked[b][a] = true;
    e.node = net_id(b);
    snprintf(e.name, sizeof(e.name), "%c", 'a' + (int)b);
    net_step(n, a, &e);
    e.node = net_id(a);
    snprintf(e.name, sizeof(e.name), "%c", 'a' + (int)a);
    net_step(n, b, &e);
}

static inline void net_unlink(struct net *n, uint32_t a, uint32_t b, bool is_closed)
{
    struct cluster_event e = {.type = CLUSTER_EVENT_LINK_DOWN, .is_closed = is_closed};
    if (!n->is_linked[a][b])
        return;
    n->is_linked[a][b] = n->is_linked[b][a] = false;
    e.node = net_id(b);
    if (net_is_alive(n, a) && !n->node[a].is_paused)
        net_step(n, a, &e);
    e.node = net_id(a);
    if (net_is_alive(n, b) && !n->node[b].is_paused)
        net_step(n, b, &e);
}

static inline void net_cut(struct net *n, uint32_t a, uint32_t b, bool on)
{
    n->is_cut[a][b] = n->is_cut[b][a] = on;
}

/* ---- nodes ---- */

static inline void net_boot(struct net *n, uint32_t i, bool with_disk, bool is_alone)
{
    struct net_node *node = &n->node[i];
    struct error err = {0};
    node->incarnation = 1000 * (uint64_t)++node->life + i;
    if (node->self.name[0] == '\0') {
        snprintf(node->self.name, sizeof(node->self.name), "%c", 'a' + (int)i);
        node->self.figures = (struct node_figures){.memory_bytes_total = 16ull << 30,
                                                   .memory_bytes_free = 12ull << 30,
                                                   .n_cores = 8,
                                                   .gflops = 100,
                                                   .memory_gb_s = 20,
                                                   .battery_percent = 255};
    }
    memset(node->run, 0, sizeof(node->run));
    const struct cluster_options o = {.id = net_id(i),
                                      .incarnation = node->incarnation,
                                      .seed = 42,
                                      .self = node->self,
                                      .saved = with_disk ? node->saved : NULL,
                                      .saved_len = with_disk ? node->saved_len : 0,
                                      .is_alone_expected = is_alone};
    assert_int_equal(cluster_new(&o, n->now_ms, &node->core, &err), 0);
}

static inline struct net *net_new(uint32_t n_nodes, bool is_alone)
{
    struct net *n = calloc(1, sizeof(*n));
    assert_non_null(n);
    n->now_ms = 1000;
    n->n_nodes = n_nodes;
    n->delay_ms = 1;
    for (uint32_t i = 0; i < n_nodes; i++)
        net_boot(n, i, false, is_alone);
    return n;
}

/* All linked with all. */
static inline struct net *net_new_linked(uint32_t n_nodes)
{
    struct net *n = net_new(n_nodes, false);
    for (uint32_t i = 0; i < n_nodes; i++) {
        for (uint32_t k = 0; k < i; k++)
            net_link(n, k, i);
    }
    return n;
}

/* is_seen: its links are closed by its system; otherwise it just falls silent. */
static inline void net_kill(struct net *n, uint32_t i, bool is_seen)
{
    cluster_free(n->node[i].core);
    n->node[i].core = NULL;
    for (uint32_t k = 0; is_seen && k < n->n_nodes; k++)
        net_unlink(n, i, k, true);
}

static inline void net_free(struct net *n)
{
    for (uint32_t i = 0; i < n->n_nodes; i++) {
        cluster_free(n->node[i].core);
        free(n->node[i].saved);
    }
    for (uint32_t i = 0; i < n->n_queued; i++)
        free(n->message[i].data);
    free(n);
}

/* ---- orders ---- */

static inline struct desired_model net_model(const char *id)
{
    struct desired_model m = {.rule = PLACEMENT_MEMORY,
                              .shape = {.n_layer = 24,
                                        .n_embd = 2048,
                                        .n_ff = 8192,
                                        .n_head = 16,
                                        .n_head_kv = 8,
                                        .head_dim = 128,
                                        .n_vocab = 32000,
                                        .n_ctx_train = 4096,
                                        .layer_bytes = 40 << 20,
                                        .embd_bytes = 40 << 20,
                                        .output_bytes = 40 << 20,
                                        .kv_token_layer_bytes = 4096}};
    snprintf(m.id, sizeof(m.id), "%s", id);
    snprintf(m.path, sizeof(m.path), "/models/%s", id);
    return m;
}

static inline void net_order(struct net *n, uint32_t i, uint64_t id, const struct cluster_order *o)
{
    net_step(n, i,
             &(struct cluster_event){.type = CLUSTER_EVENT_ORDER, .order_id = id, .order = o});
}

static inline void net_load(struct net *n, uint32_t i, uint64_t id, const char *model)
{
    const struct cluster_order o = {.type = ORDER_LOAD, .model = net_model(model)};
    net_order(n, i, id, &o);
}

static inline void net_node_order(struct net *n, uint32_t i, uint64_t id, enum order_type type,
                                  uint32_t about)
{
    const struct cluster_order o = {.type = type, .node = net_id(about)};
    net_order(n, i, id, &o);
}

/* ---- what is so ---- */

/* The coordinator that all living nodes follow, -1: there is none, or not one. */
static inline int net_coordinator(const struct net *n)
{
    int found = -1;
    for (uint32_t i = 0; i < n->n_nodes; i++) {
        if (!net_is_alive(n, i))
            continue;
        const struct cluster_state *s = cluster_get_state(n->node[i].core);
        int at = (int)net_index(&s->claim.coordinator);
        if (!cluster_has_coordinator(n->node[i].core) || (found >= 0 && at != found))
            return -1;
        found = at;
    }
    return found >= 0 && net_is_alive(n, (uint32_t)found) &&
                   cluster_is_coordinator(n->node[found].core)
               ? found
               : -1;
}

static inline const struct placed_instance *net_placed(const struct net *n, uint32_t i,
                                                       const char *model)
{
    const struct cluster_state *s = cluster_get_state(n->node[i].core);
    int at = cluster_state_find_instance_of(s, model);
    return at < 0 ? NULL : &s->instance[at];
}

static inline bool net_is_serving(const struct net *n, uint32_t i, const char *model)
{
    const struct placed_instance *p = net_placed(n, i, model);
    const struct instance_report *r =
        p != NULL ? cluster_find_report(n->node[i].core, &p->id) : NULL;
    return r != NULL && r->status == INSTANCE_SERVING;
}

/* How many nodes run an instance of this model. */
static inline uint32_t net_n_running(const struct net *n, const char *model)
{
    uint32_t n_running = 0;
    for (uint32_t i = 0; i < n->n_nodes; i++) {
        for (uint32_t k = 0; net_is_alive(n, i) && k < NET_RUNS_MAX; k++) {
            const struct net_run *run = &n->node[i].run[k];
            n_running +=
                run->is_used && !run->is_stopping && strcmp(run->placed.model_id, model) == 0;
        }
    }
    return n_running;
}

static inline bool net_holds(const struct placed_instance *p, uint32_t node)
{
    for (uint32_t r = 0; p != NULL && r < p->split.n_ranks; r++) {
        if (net_index(&p->node_of_rank[r]) == node)
            return true;
    }
    return false;
}

static inline enum member_status net_status(const struct net *n, uint32_t i, uint32_t of)
{
    const struct node_id id = net_id(of);
    const struct member *m = cluster_find_member(n->node[i].core, &id);
    return m != NULL ? m->status : MEMBER_GONE;
}

/* ---- traces ---- */

/* The lines since the last call must be these, in this order; "..." stands for the rest of a line.
 * End with NULL. */
static inline void net_expect(struct net *n, const char *const *line)
{
    uint32_t at = n->n_read;
    for (; *line != NULL; line++, at++) {
        size_t len = strlen(*line);
        bool is_open = len >= 3 && strcmp(*line + len - 3, "...") == 0;
        if (at >= n->n_traces)
            fail_msg("the trace ends before: %s", *line);
        else if (is_open ? strncmp(n->trace[at], *line, len - 3) != 0
                         : strcmp(n->trace[at], *line) != 0)
            fail_msg("expected: %s\n   found: %s", *line, n->trace[at]);
    }
    if (at < n->n_traces)
        fail_msg("not expected: %s", n->trace[at]);
    n->n_read = n->n_traces;
}

static inline void net_forget_trace(struct net *n)
{
    n->n_read = n->n_traces;
}

/* Whether a line since the last call holds this text. */
static inline bool net_has_trace(const struct net *n, const char *text)
{
    for (uint32_t i = n->n_read; i < n->n_traces; i++) {
        if (strstr(n->trace[i], text) != NULL)
            return true;
    }
    return false;
}

#endif
