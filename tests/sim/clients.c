/* People: they ask models at any node, go away in the middle of an answer, and give orders. */
#include "sim.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- requests ---- */

struct sim_request *client_submit(struct world *w, struct sim_node *n, uint32_t model,
                                  uint32_t n_max)
{
    struct sim_request *q = calloc(1, sizeof(*q));
    int32_t prompt[SIM_PROMPT_MAX];
    struct error err = {0};
    assert(q != NULL);
    *q = (struct sim_request){.next = w->requests,
                              .w = w,
                              .number = ++w->n_requests,
                              .node = n->index,
                              .boot = n->boot,
                              .model = model,
                              .n_prompt = 1 + chance_below(w, SIM_PROMPT_MAX),
                              .n_max = n_max,
                              .submit_us = w->now_us};
    for (uint32_t i = 0; i < q->n_prompt; i++) {
        prompt[i] = (int32_t)chance_below(w, 32768);
        q->stream = stream_mix(q->stream, prompt[i]);
    }
    struct router_request from = {
        .model_id = w->model[model].id, .tokens = prompt, .n_tokens = q->n_prompt, .n_max = n_max};
    w->requests = q;
    w->report->n_requests++;
    int rc = router_submit(n->router, &from, q, node_now_ms(n), &q->id, &err);
    if (rc != 0) {
        w->report->n_refused++;
        w->requests = q->next; /* nothing was accepted, so nothing was added meanwhile */
        free(q);
        return NULL;
    }
    world_trace(w, n, true, "request %u for %s", q->number, from.model_id);
    node_settle(n);
    return q;
}

void client_cancel(struct sim_request *q)
{
    struct sim_node *n = &q->w->node[q->node];
    if (q->is_ended || q->is_lost || q->is_cancelled)
        return;
    world_trace(q->w, n, true, "request %u: its client goes", q->number);
    q->is_cancelled = true;
    q->cancel_us = q->w->now_us;
    router_cancel(n->router, q->id);
    node_settle(n);
}

void clients_on_tokens(struct sim_request *q, const int32_t *tokens, uint32_t n)
{
    struct world *w = q->w;
    if (w->options.canary == CANARY_ROUTER && q->n_got > 3 && chance_is(w, 0.01) && n == 1)
        return; /* a router that loses a token now and then */
    if (q->last_us != 0)
        samples_add(&w->report->gap_ms, (double)(w->now_us - q->last_us) / 1e3);
    q->last_us = w->now_us;
    w->report->n_tokens += n;
    check_tokens(q, tokens, n);
}

void clients_on_done(struct sim_request *q, const struct router_done *done)
{
    static const char *const reasons[] = {"stop", "length", "cancelled", "error"};
    struct world *w = q->w;
    world_trace(w, &w->node[q->node], true, "request %u ends: %s%s%s, %u tokens, %u repairs",
                q->number, reasons[done->reason], done->error.code != 0 ? " " : "",
                done->error.code != 0 ? error_name(done->error.code) : "", done->n_generated,
                done->n_repairs);
    check_done(q, done);
    q->is_ended = true;
    q->reason = done->reason;
    if (done->reason == ROUTER_CANCELLED)
        w->report->n_cancelled++;
    else if (done->reason != ROUTER_ERROR)
        w->report->n_completed++;
    else if (done->error.code == E_BUSY)
        w->report->n_busy++;
    else
        w->report->n_errors++;
    w->report->n_repaired += done->n_repairs > 0;
}

void clients_on_death(struct sim_node *n)
{
    for (struct sim_request *q = n->w->requests; q != NULL; q = q->next)
        if (q->node == n->index && q->boot == n->boot && !q->is_ended && !q->is_lost) {
            q->is_lost = true;
            n->w->report->n_lost++;
        }
}

/* ---- orders ---- */

struct sim_order *client_order(struct world *w, struct sim_node *n, enum order_type type,
                               uint32_t model, const struct node_id *node)
{
    struct sim_order *o = calloc(1, sizeof(*o));
    struct cluster_event e = {.type = CLUSTER_EVENT_ORDER};
    assert(o != NULL);
    o->order = calloc(1, sizeof(*o->order));
    assert(o->order != NULL);
    o->node = n->index;
    o->boot = n->boot;
    o->number = ++w->n_orders;
    o->at_us = w->now_us;
    o->model = model;
    o->order->type = type;
    o->next = w->orders;
    w->orders = o;
    w->report->n_orders++;
    if (type == ORDER_LOAD || type == ORDER_UNLOAD) {
        struct desired_model *m = &o->order->model;
        strcpy(m->id, w->model[model].id);
        m->is_wanted = type == ORDER_LOAD;
        snprintf(m->path, sizeof(m->path), "/models/%s.gguf", m->id);
        m->hash[0] = (uint8_t)(model + 1);
        m->shape = w->model[model].shape;
        m->options.n_slots = w->n_slots;
        m->options.n_ctx = 4096;
    } else {
        o->order->node = *node;
    }
    static const char *const names[] = {"load", "unload", "drain", "undrain", "revoke"};
    world_trace(w, n, true, "order %s %s", names[type],
                node != NULL ? node_find(w, node)->name : w->model[model].id);
    e.order_id = o->number;
    e.order = o->order;
    node_step(n, &e);
    node_settle(n);
    return o;
}

void clients_on_answer(struct sim_node *n, uint64_t order_id, const struct error *error)
{
    struct sim_order *o = n->w->orders;
    while (o != NULL && o->number != order_id)
        o = o->next;
    if (o == NULL) {
        world_fail(n->w, "orders", "%s answers order %llu, which nobody gave", n->name,
                   (unsigned long long)order_id);
        return;
    }
    world_trace(n->w, n, true, "answer: %s", error->code == 0 ? "done" : error_name(error->code));
    check_state_answer(n->w, o, error);
}

/* ---- from the seed ---- */

static struct sim_node *choose_node(struct world *w)
{
    for (int i = 0; i < 20; i++) {
        struct sim_node *n = &w->node[chance_below(w, w->n_nodes)];
        if (n->is_alive && !n->is_paused && !n->is_stopping)
            return n;
    }
    return NULL;
}

static void schedule(struct world *w)
{
    struct event *e =
        world_event(w, EV_CLIENT, (uint64_t)(w->request_gap_us * (0.2 + 1.6 * chance_unit(w))));
    world_push(w, e);
}

void clients_begin(struct world *w)
{
    schedule(w);
}

void clients_event(struct world *w, const struct event *e)
{
    if (e->type == EV_CLIENT_END) {
        for (struct sim_request *q = w->requests; q != NULL; q = q->next)
            if (q->number == e->arg && w->node[q->node].is_alive && !w->node[q->node].is_paused)
                client_cancel(q);
        return;
    }
    if (w->are_clients_quiet)
        return;
    schedule(w);
    struct sim_node *n = choose_node(w);
    uint32_t model = chance_below(w, w->n_models);
    uint32_t n_max = 1 + chance_below(w, SIM_GENERATED_MAX);
    if (n == NULL || w->n_models == 0)
        return;
    const struct sim_request *q = client_submit(w, n, model, n_max);
    if (q != NULL && chance_is(w, 0.1)) {
        struct event *end = world_event(w, EV_CLIENT_END, chance_below(w, 3000000));
        end->arg = q->number;
        world_push(w, end);
    }
}
