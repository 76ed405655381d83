/*
 * Runners, and the node's part in them: instances that it leads (src/node/instance.c, in little),
 * ranks that it hosts for itself and others (ranks.c), and the head's engine, whose next token is a
 * function of all tokens before it and of nothing else.
 */
#include "sim.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STALL_LOOK_US = 50000, QUEUE_MAX = 16, STARTING_MS_MAX = 30000 };

struct app *app_new(enum app_type type, uint32_t n_tokens)
{
    struct app *m = calloc(1, sizeof(*m) + n_tokens * sizeof(int32_t));
    assert(m != NULL);
    m->type = type;
    m->n_tokens = n_tokens;
    return m;
}

struct led *executor_find(struct sim_node *n, const struct node_id *id, uint64_t epoch)
{
    for (struct led *l = n->led; l != NULL; l = l->next)
        if (l->placed.epoch == epoch && node_id_equal(&l->placed.id, id))
            return l;
    return NULL;
}

static struct sim_node *node_of_rank(const struct led *l, struct sim_node *n, uint32_t rank)
{
    return node_find(n->w, &l->placed.node_of_rank[rank]);
}

uint64_t executor_bytes(const struct sim_node *n)
{
    uint64_t bytes = 0;
    for (const struct hosted *h = n->hosted; h != NULL; h = h->next)
        bytes += h->state != HOSTED_WAITING ? h->bytes : 0;
    return bytes;
}

/* ---- requests at the head ---- */

static void tell_done(struct sim_node *n, struct job *j, enum router_finish reason, int code)
{
    if (j->is_abandoned)
        return;
    if (j->origin == n->index) {
        struct router_done done = {.reason = reason, .n_generated = j->n_generated};
        if (code != 0)
            error_set(&done.error, code, "said by the engine");
        router_on_done(n->router, j->attempt, &done, node_now_ms(n));
        return;
    }
    struct app *m = app_new(APP_DONE, 0);
    m->attempt = j->attempt;
    m->reason = reason;
    m->code = code;
    m->n_generated = j->n_generated;
    net_send_app(n->w, n->index, j->origin, m);
}

/* Takes the job out before anyone hears of its end, since they may come back in. */
static void end_job(struct sim_node *n, struct led *l, struct job *j, enum router_finish reason,
                    int code)
{
    for (struct job **p = &l->jobs; *p != NULL; p = &(*p)->next)
        if (*p == j) {
            *p = j->next;
            break;
        }
    l->n_jobs--;
    tell_done(n, j, reason, code);
    free(j);
}

static void lose_jobs(struct sim_node *n, struct led *l)
{
    while (l->jobs != NULL)
        end_job(n, l, l->jobs, ROUTER_ERROR, E_PEERLOST);
}

static void schedule_engine(struct sim_node *n, struct led *l, uint64_t us)
{
    struct event *e = world_event(n->w, EV_ENGINE, us);
    e->node = n->index;
    e->boot = n->boot;
    e->arg = l->placed.epoch;
    e->data = malloc(sizeof(l->placed.id));
    assert(e->data != NULL);
    memcpy(e->data, &l->placed.id, sizeof(l->placed.id));
    l->is_ticking = true;
    world_push(n->w, e);
}

static uint64_t step_us(struct sim_node *n, const struct led *l)
{
    double slowest = 1;
    for (uint32_t r = 0; r < l->report.n_ranks; r++) {
        const struct sim_node *host = node_of_rank(l, n, r);
        if (host->speed < slowest)
            slowest = host->speed;
    }
    return (uint64_t)(n->w->token_us / slowest) + n->w->delay_us * l->placed.split.n_stages;
}

int executor_submit(struct sim_node *n, uint32_t origin, const struct node_id *instance,
                    uint64_t epoch, uint64_t attempt, const int32_t *tokens, uint32_t n_tokens,
                    uint32_t n_max)
{
    struct led *l = executor_find(n, instance, epoch);
    if (l == NULL || l->is_stopping || l->report.status != INSTANCE_SERVING)
        return E_UNAVAILABLE;
    if (l->n_jobs >= QUEUE_MAX)
        return E_BUSY;
    struct job *j = calloc(1, sizeof(*j)), **end = &l->jobs;
    assert(j != NULL);
    *j = (struct job){.origin = origin,
                      .origin_boot = n->w->node[origin].boot,
                      .attempt = attempt,
                      .n_prompt = n_tokens,
                      .n_max = n_max,
                      .n_prefill_left = 1 + n_tokens / 64};
    for (uint32_t i = 0; i < n_tokens; i++)
        j->stream = stream_mix(j->stream, tokens[i]);
    while (*end != NULL)
        end = &(*end)->next;
    *end = j;
    l->n_jobs++;
    if (!l->is_ticking)
        schedule_engine(n, l, step_us(n, l));
    return 0;
}

void executor_cancel(struct sim_node *n, uint32_t origin, uint64_t attempt)
{
    for (struct led *l = n->led; l != NULL; l = l->next)
        for (struct job *j = l->jobs; j != NULL; j = j->next)
            if (j->origin == origin && j->attempt == attempt)
                j->is_cancelled = true; /* seen by the next step */
}

/* ---- instances ---- */

static void stop_rank(struct sim_node *n, struct led *l, uint32_t rank)
{
    const struct sim_node *host = node_of_rank(l, n, rank);
    if (l->report.rank[rank].status == RANK_ENDED)
        return;
    struct app *m = app_new(APP_RANK_STOP, 0);
    m->instance = l->placed.id;
    m->epoch = l->placed.epoch;
    m->rank = rank;
    if (!net_send_app(n->w, n->index, host->index, m))
        l->report.rank[rank].status = RANK_ENDED;
}

static void fail(struct sim_node *n, struct led *l, const char *reason)
{
    if (l->report.status == INSTANCE_FAILED || l->is_stopping)
        return;
    snprintf(l->report.error, sizeof(l->report.error), "%s", reason);
    for (uint32_t r = 0; r < l->report.n_ranks; r++)
        stop_rank(n, l, r);
    l->report.status = INSTANCE_FAILED;
    l->is_report_due = true;
    world_trace(n->w, n, false, "%s %llx failed: %s", l->placed.model_id,
                (unsigned long long)l->placed.epoch, reason);
    lose_jobs(n, l);
}

void executor_start(struct sim_node *n, const struct placed_instance *p)
{
    struct led *l = calloc(1, sizeof(*l));
    char split[32];
    assert(l != NULL);
    check_placement_start(n, p);
    l->placed = *p;
    l->report.instance = p->id;
    l->report.epoch = p->epoch;
    l->report.n_ranks = p->split.n_ranks;
    l->report.created_s = 1700000000;
    l->report.status = INSTANCE_STARTING;
    l->began_us = n->w->now_us;
    for (l->model = 0; l->model < n->w->n_models; l->model++)
        if (strcmp(n->w->model[l->model].id, p->model_id) == 0)
            break;
    l->next = n->led;
    n->led = l;
    l->is_report_due = true;
    world_trace(n->w, n, false, "%s %llx starts, %s of %u", p->model_id,
                (unsigned long long)p->epoch, split_describe(&p->split, split), p->split.n_ranks);
    for (uint32_t r = 0; r < p->split.n_ranks; r++)
        l->report.rank[r].status = RANK_ENDED;
    for (uint32_t r = 0; r < p->split.n_ranks; r++) {
        const struct sim_node *host = node_of_rank(l, n, r);
        struct app *m = app_new(APP_RANK_START, 0);
        m->instance = p->id;
        m->epoch = p->epoch;
        m->rank = r;
        m->bytes = p->bytes_of_rank[r];
        m->model = l->model;
        if (host == NULL || !net_send_app(n->w, n->index, host->index, m)) {
            l->report.bad_ranks |= (uint64_t)1 << r;
            fail(n, l, "the node of a rank cannot be reached");
            return;
        }
        l->report.rank[r].status = RANK_STARTING;
    }
}

void executor_stop(struct sim_node *n, const struct node_id *id, uint64_t epoch)
{
    struct led *l = executor_find(n, id, epoch);
    if (n->w->options.canary == CANARY_EPOCH && l != NULL && l->report.status == INSTANCE_SERVING &&
        l->placed.split.n_ranks == 1)
        return; /* it goes on as if nobody had said so */
    if (l == NULL || l->is_stopping)
        return;
    world_trace(n->w, n, false, "%s %llx stops", l->placed.model_id, (unsigned long long)epoch);
    l->is_stopping = true;
    for (uint32_t r = 0; r < l->report.n_ranks; r++)
        stop_rank(n, l, r);
    l->is_report_due = true;
    lose_jobs(n, l);
}

static bool all_are(const struct led *l, enum rank_status status)
{
    for (uint32_t r = 0; r < l->report.n_ranks; r++)
        if (l->report.rank[r].status != status)
            return false;
    return true;
}

static void free_led(struct sim_node *n, struct led *l)
{
    for (struct led **p = &n->led; *p != NULL; p = &(*p)->next)
        if (*p == l) {
            *p = l->next;
            break;
        }
    lose_jobs(n, l);
    free(l);
}

static bool report_one(struct sim_node *n, struct led *l)
{
    struct cluster_event e = {.type = CLUSTER_EVENT_REPORT};
    bool is_over =
        (l->report.status == INSTANCE_FAILED || l->is_stopping) && all_are(l, RANK_ENDED);
    if (is_over && l->report.status != INSTANCE_FAILED)
        l->report.status = INSTANCE_STOPPED;
    if (!l->is_report_due && !is_over)
        return false;
    struct instance_report report = l->report;
    l->is_report_due = false;
    e.report = &report;
    if (is_over)
        free_led(n, l);
    node_step(n, &e);
    return true;
}

bool executor_send_reports(struct sim_node *n)
{
    /* From the front again after each: a step may start and stop instances. */
    for (struct led *l = n->led; l != NULL; l = l->next)
        if (report_one(n, l))
            return true;
    return false;
}

static void on_rank_ended(struct sim_node *n, struct led *l, uint32_t rank, bool is_unfit,
                          const char *reason)
{
    if (l->report.rank[rank].status == RANK_ENDED)
        return;
    l->report.rank[rank].status = RANK_ENDED;
    if (l->report.status != INSTANCE_FAILED && !l->is_stopping) {
        l->report.bad_ranks |= (uint64_t)1 << rank;
        l->report.is_node_unfit = is_unfit;
        fail(n, l, reason);
    }
    if (all_are(l, RANK_ENDED))
        l->is_report_due = true;
}

static void on_rank_status(struct sim_node *n, struct led *l, uint32_t rank,
                           enum rank_status status)
{
    if (l->report.rank[rank].status == RANK_ENDED || l->is_stopping ||
        l->report.status == INSTANCE_FAILED)
        return;
    l->report.rank[rank].status = status;
    if (status == RANK_LISTENING && all_are(l, RANK_LISTENING)) {
        l->report.status = INSTANCE_LOADING;
        l->is_report_due = true;
        for (uint32_t r = 0; r < l->report.n_ranks; r++) {
            struct app *m = app_new(APP_RANK_CONNECT, 0);
            m->instance = l->placed.id;
            m->epoch = l->placed.epoch;
            m->rank = r;
            l->report.rank[r].status = RANK_LOADING;
            net_send_app(n->w, n->index, node_of_rank(l, n, r)->index, m);
        }
    } else if (status == RANK_READY && all_are(l, RANK_READY)) {
        l->report.status = INSTANCE_SERVING;
        l->report.n_ctx = 4096;
        l->report.n_slots = n->w->n_slots;
        l->is_report_due = true;
        world_trace(n->w, n, false, "%s %llx serves, %llu ms after its start", l->placed.model_id,
                    (unsigned long long)l->placed.epoch,
                    (unsigned long long)((n->w->now_us - l->began_us) / 1000));
        check_placement_serving(n, l);
    }
}

void executor_link_down(struct sim_node *n, uint32_t peer)
{
    for (struct led *l = n->led; l != NULL; l = l->next) {
        for (struct job *j = l->jobs; j != NULL; j = j->next)
            if (j->origin == peer)
                j->is_abandoned = j->is_cancelled = true;
        for (uint32_t r = 0; r < l->report.n_ranks; r++)
            if (node_of_rank(l, n, r)->index == peer)
                on_rank_ended(n, l, r, false, "the link to a rank's node is lost");
    }
    if (n->w->options.canary == CANARY_ORPHAN)
        return;
    for (struct hosted *h = n->hosted; h != NULL; h = h->next)
        if (h->leader == peer && h->leader != n->index)
            h->is_orphan = true; /* ends at its next event */
    for (struct hosted *h = n->hosted; h != NULL; h = h->next)
        if (h->is_orphan && h->state != HOSTED_ENDING) {
            struct event *e = world_event(n->w, EV_RANK, n->w->end_ms * 1000u);
            e->node = n->index;
            e->boot = n->boot;
            e->arg = h->number;
            h->state = h->state == HOSTED_WAITING ? HOSTED_WAITING : HOSTED_ENDING;
            world_push(n->w, e);
        }
}

/* ---- hosted ranks ---- */

static void schedule_rank(struct sim_node *n, struct hosted *h, uint64_t us)
{
    struct event *e = world_event(n->w, EV_RANK, us);
    e->node = n->index;
    e->boot = n->boot;
    e->arg = (uint64_t)h->state << 32 | h->number;
    world_push(n->w, e);
}

static struct hosted *find_hosted(struct sim_node *n, const struct app *m, uint32_t leader)
{
    for (struct hosted *h = n->hosted; h != NULL; h = h->next)
        if (h->epoch == m->epoch && h->rank == m->rank && h->leader == leader && !h->is_orphan &&
            node_id_equal(&h->instance, &m->instance))
            return h;
    return NULL;
}

static void tell_leader(struct sim_node *n, const struct hosted *h, enum app_type type,
                        enum rank_status status, bool is_unfit)
{
    if (h->is_orphan)
        return;
    struct app *m = app_new(type, 0);
    m->instance = h->instance;
    m->epoch = h->epoch;
    m->rank = h->rank;
    m->status = status;
    m->is_unfit = is_unfit;
    net_send_app(n->w, n->index, h->leader, m);
}

/* Of one instance only the newest epoch runs: it waits until the older ones have ended. */
static bool has_older(const struct sim_node *n, const struct hosted *h)
{
    for (const struct hosted *o = n->hosted; o != NULL; o = o->next)
        if (o != h && o->epoch < h->epoch && node_id_equal(&o->instance, &h->instance))
            return true;
    return false;
}

static void end_hosted(struct sim_node *n, struct hosted *h, bool is_unfit);

static void begin_waiting_ranks(struct sim_node *n)
{
    for (struct hosted *h = n->hosted, *next; h != NULL; h = next) {
        next = h->next;
        if (h->state != HOSTED_WAITING || has_older(n, h))
            continue;
        if (n->memory_taken + executor_bytes(n) + h->bytes > n->memory_bytes) {
            end_hosted(n, h, false); /* no memory */
            return;
        }
        h->state = HOSTED_STARTING;
        schedule_rank(n, h, n->w->start_ms * 1000u);
    }
}

static void unlink_hosted(struct sim_node *n, const struct hosted *h)
{
    for (struct hosted **p = &n->hosted; *p != NULL; p = &(*p)->next)
        if (*p == h) {
            *p = h->next;
            return;
        }
}

static void end_hosted(struct sim_node *n, struct hosted *h, bool is_unfit)
{
    unlink_hosted(n, h);
    tell_leader(n, h, APP_RANK_ENDED, RANK_ENDED, is_unfit);
    free(h);
    begin_waiting_ranks(n);
}

static void stop_hosted(struct sim_node *n, struct hosted *h)
{
    if (h->state == HOSTED_WAITING) {
        end_hosted(n, h, false);
    } else if (h->state != HOSTED_ENDING) {
        h->state = HOSTED_ENDING;
        schedule_rank(n, h, n->w->end_ms * 1000u);
    }
}

static void host_rank(struct sim_node *n, uint32_t leader, const struct app *m)
{
    struct hosted *h = calloc(1, sizeof(*h));
    assert(h != NULL);
    *h = (struct hosted){.next = n->hosted,
                         .instance = m->instance,
                         .epoch = m->epoch,
                         .bytes = m->bytes,
                         .leader = leader,
                         .leader_boot = n->w->node[leader].boot,
                         .rank = m->rank,
                         .model = m->model,
                         .number = ++n->hosted_last};
    n->hosted = h;
    for (struct hosted *o = n->hosted, *next; o != NULL; o = next) {
        next = o->next;
        if (!node_id_equal(&o->instance, &h->instance) || o == h)
            continue;
        if (o->epoch < h->epoch && o->state != HOSTED_ENDING) {
            if (o->state == HOSTED_WAITING) {
                unlink_hosted(n, o);
                tell_leader(n, o, APP_RANK_ENDED, RANK_ENDED, false);
                free(o);
            } else {
                o->state = HOSTED_ENDING;
                schedule_rank(n, o, n->w->end_ms * 1000u);
            }
        } else if (o->epoch > h->epoch) { /* late news of an older one */
            end_hosted(n, h, false);
            return;
        }
    }
    begin_waiting_ranks(n);
}

static void on_rank_event(struct sim_node *n, uint64_t arg)
{
    struct hosted *h = n->hosted;
    while (h != NULL && h->number != (uint32_t)arg)
        h = h->next;
    if (h == NULL)
        return;
    if (h->is_orphan || h->state == HOSTED_ENDING) {
        if (h->is_orphan || arg >> 32 == HOSTED_ENDING)
            end_hosted(n, h, false);
    } else if (arg >> 32 != h->state) {
        return; /* of an earlier life */
    } else if (h->state == HOSTED_STARTING) {
        h->state = HOSTED_LISTENING;
        tell_leader(n, h, APP_RANK_STATUS, RANK_LISTENING, false);
    } else if (h->state == HOSTED_LOADING) {
        h->state = HOSTED_READY;
        tell_leader(n, h, APP_RANK_STATUS, RANK_READY, false);
    }
}

/* ---- losses ---- */

/* The other ranks' connections to a dead one are closed; the leader's own runner says so. */
static void break_connections(struct sim_node *n, const struct hosted *h)
{
    struct sim_node *leader = &n->w->node[h->leader];
    if (h->is_orphan || leader == n || !leader->is_alive || leader->boot != h->leader_boot ||
        wire_of(n->w, n->index, leader->index)->is_cut)
        return;
    struct app *m = app_new(APP_DATA_BROKEN, 0);
    m->instance = h->instance;
    m->epoch = h->epoch;
    m->rank = h->rank;
    struct event *e = world_event(n->w, EV_APP, n->w->delay_us + 100);
    e->node = e->from = leader->index;
    e->boot = leader->boot;
    e->data = m;
    world_push(n->w, e);
}

void executor_die(struct sim_node *n, bool is_silent)
{
    while (n->hosted != NULL) {
        struct hosted *h = n->hosted;
        n->hosted = h->next;
        if (!is_silent)
            break_connections(n, h);
        free(h);
    }
    while (n->led != NULL) {
        struct led *l = n->led;
        n->led = l->next;
        while (l->jobs != NULL) {
            struct job *j = l->jobs;
            l->jobs = j->next;
            free(j);
        }
        free(l);
    }
}

void executor_crash_rank(struct sim_node *n, struct hosted *h)
{
    world_trace(n->w, n, true, "rank %u of %s crashes", h->rank, n->w->model[h->model].id);
    end_hosted(n, h, false);
    node_settle(n);
}

/* A connection between two ranks breaks although both live. */
void executor_break_data(struct sim_node *n)
{
    for (struct led *l = n->led; l != NULL; l = l->next)
        if (l->report.n_ranks > 1 && l->report.status == INSTANCE_SERVING) {
            uint32_t rank = chance_below(n->w, l->report.n_ranks);
            l->report.bad_ranks |= (uint64_t)1 << rank;
            fail(n, l, "a connection between ranks has broken");
            break;
        }
    node_settle(n);
}

bool executor_is_whole(struct world *w, const struct led *l)
{
    for (uint32_t r = 0; r < l->placed.split.n_ranks; r++) {
        struct sim_node *host = node_find(w, &l->placed.node_of_rank[r]);
        const struct hosted *h = host->hosted;
        if (!host->is_alive || host->is_paused)
            return false;
        while (h != NULL && !(h->state == HOSTED_READY && h->epoch == l->placed.epoch &&
                              h->rank == r && node_id_equal(&h->instance, &l->placed.id)))
            h = h->next;
        if (h == NULL)
            return false;
        for (uint32_t k = 0; k < r; k++) {
            struct sim_node *other = node_find(w, &l->placed.node_of_rank[k]);
            if (other != host && !net_passes(w, host->index, other->index))
                return false;
        }
    }
    return true;
}

/* ---- the engine ---- */

static void give_token(struct sim_node *n, struct job *j, int32_t token)
{
    j->stream = stream_mix(j->stream, token);
    j->n_generated++;
    if (j->is_abandoned)
        return;
    if (j->origin == n->index) {
        router_on_tokens(n->router, j->attempt, j->n_generated - 1, &token, 1, node_now_ms(n));
        return;
    }
    struct app *m = app_new(APP_TOKENS, 1);
    m->attempt = j->attempt;
    m->n_before = j->n_generated - 1;
    m->tokens[0] = token;
    net_send_app(n->w, n->index, j->origin, m);
}

static void step_job(struct sim_node *n, struct led *l, struct job *j)
{
    if (j->is_cancelled) {
        end_job(n, l, j, ROUTER_CANCELLED, 0);
        return;
    }
    if (j->n_prefill_left > 0) {
        j->n_prefill_left--;
        return;
    }
    int32_t token = stream_next(j->stream);
    if (token < 0) {
        end_job(n, l, j, ROUTER_STOP, 0);
        return;
    }
    uint64_t attempt = j->attempt;
    give_token(n, j, token);
    for (j = l->jobs; j != NULL; j = j->next) /* the client may have gone */
        if (j->attempt == attempt && j->n_generated == j->n_max) {
            end_job(n, l, j, ROUTER_LENGTH, 0);
            return;
        }
}

static void engine_stalls(struct sim_node *n, struct led *l)
{
    struct world *w = n->w;
    if (l->stalled_us == 0)
        l->stalled_us = w->now_us;
    if (w->now_us - l->stalled_us <= SIM_COMM_TIMEOUT_US) {
        schedule_engine(n, l, STALL_LOOK_US);
        return;
    }
    for (uint32_t r = 1; r < l->report.n_ranks; r++) {
        const struct sim_node *host = node_of_rank(l, n, r);
        if (host != n && (host->is_paused || !net_passes(w, n->index, host->index)))
            l->report.bad_ranks |= (uint64_t)1 << r;
    }
    fail(n, l, "ranks were silent for ten seconds");
}

static void on_engine(struct sim_node *n, const struct node_id *id, uint64_t epoch)
{
    struct led *l = executor_find(n, id, epoch);
    uint64_t attempts[QUEUE_MAX];
    uint32_t n_running = 0;
    if (l == NULL)
        return;
    l->is_ticking = false;
    if (l->report.status != INSTANCE_SERVING || l->is_stopping || l->jobs == NULL)
        return;
    if (l->report.n_ranks > 1 && !executor_is_whole(n->w, l)) {
        engine_stalls(n, l);
        return;
    }
    l->stalled_us = 0;
    for (struct job *j = l->jobs; j != NULL && n_running < n->w->n_slots; j = j->next)
        attempts[n_running++] = (uint64_t)j->origin << 48 ^ j->attempt;
    for (uint32_t i = 0; i < n_running; i++)
        for (struct job *j = l->jobs; j != NULL; j = j->next)
            if (((uint64_t)j->origin << 48 ^ j->attempt) == attempts[i]) {
                step_job(n, l, j);
                break;
            }
    if (l->jobs != NULL && !l->is_ticking)
        schedule_engine(n, l, step_us(n, l));
}

/* ---- what comes in ---- */

static void on_submit(struct sim_node *n, uint32_t from, const struct app *m)
{
    struct job refused = {.origin = from, .attempt = m->attempt};
    int rc = executor_submit(n, from, &m->instance, m->epoch, m->attempt, m->tokens, m->n_tokens,
                             m->n_max);
    if (rc != 0)
        tell_done(n, &refused, ROUTER_ERROR, rc);
}

void executor_app(struct sim_node *n, uint32_t from, const struct app *m)
{
    struct led *l = executor_find(n, &m->instance, m->epoch);
    struct hosted *h;
    struct router_done done = {.reason = m->reason, .n_generated = m->n_generated};
    switch (m->type) {
    case APP_RANK_START:
        host_rank(n, from, m);
        break;
    case APP_RANK_CONNECT:
        h = find_hosted(n, m, from);
        if (h != NULL && h->state == HOSTED_LISTENING) {
            h->state = HOSTED_LOADING;
            schedule_rank(n, h, (uint64_t)(n->w->load_ms * 1000u / n->speed));
        }
        break;
    case APP_RANK_STOP:
        h = find_hosted(n, m, from);
        if (h != NULL)
            stop_hosted(n, h);
        break;
    case APP_RANK_STATUS:
        if (l != NULL)
            on_rank_status(n, l, m->rank, m->status);
        break;
    case APP_RANK_ENDED:
        if (l != NULL)
            on_rank_ended(n, l, m->rank, m->is_unfit, "a rank has ended");
        break;
    case APP_DATA_BROKEN:
        if (l != NULL)
            on_rank_ended(n, l, m->rank, false, "the connection to a rank was closed");
        break;
    case APP_SUBMIT:
        on_submit(n, from, m);
        break;
    case APP_CANCEL:
        executor_cancel(n, from, m->attempt);
        break;
    case APP_TOKENS:
        router_on_tokens(n->router, m->attempt, m->n_before, m->tokens, m->n_tokens,
                         node_now_ms(n));
        break;
    case APP_DONE:
        if (m->code != 0)
            error_set(&done.error, m->code, "said by the engine");
        router_on_done(n->router, m->attempt, &done, node_now_ms(n));
        break;
    }
}

void executor_event(struct sim_node *n, const struct event *e)
{
    if (e->type == EV_RANK)
        on_rank_event(n, e->arg);
    else
        on_engine(n, e->data, e->arg);
}
