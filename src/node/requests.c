/*
 * Requests. Those of this node's clients are kept by the router (cluster/router.h), which sends
 * them, again if need be, to the instance that serves their model. An instance that this node leads
 * gets them here, from our own router or from another node's: each becomes a relay, with a number
 * that is unique towards the head, until the head's DONE or the end of the instance.
 */
#include "base/clock.h"
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct relay {
    struct relay *next;
    uint64_t id;           /* towards the head */
    struct node_id origin; /* whose router; ours too */
    uint64_t attempt;      /* there */
    struct node_id instance;
    uint64_t epoch;
    bool is_running;   /* the head has begun with it */
    bool is_abandoned; /* the origin is gone: the answer goes nowhere */
};

/* What the router keeps of a request beside its tokens. */
struct wishes {
    struct message_submit submit;
    char grammar[]; /* [submit.n_grammar_bytes] */
};

struct client_request { /* arg of the router's callbacks */
    struct api_generation_events events;
    void *arg;
};

static bool is_ours(const struct node *n, const struct node_id *id)
{
    return node_id_equal(id, &n->id);
}

static struct relay *find_relay(const struct node *n, uint64_t id)
{
    for (struct relay *r = n->relays; r != NULL; r = r->next)
        if (r->id == id)
            return r;
    return NULL;
}

/* One that its origin still wants: a node that has started again counts its attempts from the
 * beginning, while the head may not have ended the abandoned ones. */
static struct relay *find_relay_of(const struct node *n, const struct node_id *origin,
                                   uint64_t attempt)
{
    for (struct relay *r = n->relays; r != NULL; r = r->next)
        if (!r->is_abandoned && r->attempt == attempt && node_id_equal(&r->origin, origin))
            return r;
    return NULL;
}

static void unlink_relay(struct node *n, struct relay *r)
{
    for (struct relay **p = &n->relays; *p != NULL; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            break;
        }
}

void requests_count(const struct node *n, uint32_t *ret_running, uint32_t *ret_queued)
{
    uint32_t sent = 0, parked = 0;
    *ret_running = *ret_queued = 0;
    for (const struct relay *r = n->relays; r != NULL; r = r->next)
        ++*(r->is_running ? ret_running : ret_queued);
    /* Our own at other leaders are counted as running; at ourselves they are relays, too. */
    router_count(n->router, &sent, &parked);
    uint32_t own = 0;
    for (const struct relay *r = n->relays; r != NULL; r = r->next)
        own += is_ours(n, &r->origin) && !r->is_abandoned;
    *ret_running += sent > own ? sent - own : 0;
    *ret_queued += parked;
}

bool requests_are_none(const struct node *n)
{
    uint32_t running, queued;
    if (n->router == NULL)
        return true;
    requests_count(n, &running, &queued);
    return running + queued == 0;
}

static void count_end(struct node *n, bool is_error, bool is_cancelled)
{
    if (is_error)
        n->counts.failed++;
    else if (is_cancelled)
        n->counts.cancelled++;
    else
        n->counts.completed++;
}

/* ---- towards the head ---- */

static struct rank_owner owner_of(const struct node *n, const struct relay *r)
{
    return (struct rank_owner){.leader = n->id, .instance = r->instance, .epoch = r->epoch};
}

/* Gives a request to the head that this node leads. */
static int start_relay(struct node *n, const struct node_id *origin, uint64_t attempt,
                       const struct node_id *instance, uint64_t epoch,
                       const struct message_submit *m, struct error *err)
{
    const struct instance *i = instance_find(n, instance, epoch);
    uint32_t count = 0;
    struct buf frame;
    if (n->phase >= NODE_STOPPING_RANKS || i == NULL || i->is_stopping ||
        i->report.status != INSTANCE_SERVING)
        return error_set(err, E_UNAVAILABLE, "the model is not served by node %s any more",
                         n->config.name);
    for (const struct relay *r = n->relays; r != NULL; r = r->next)
        count++;
    if (count >= ROUTER_REQUESTS_MAX)
        return error_set(err, E_BUSY, "node %s has %u requests under way (at most %d): try later",
                         n->config.name, count, ROUTER_REQUESTS_MAX);
    struct relay *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return error_set(err, E_NOMEM, "out of memory for a request");
    *r = (struct relay){.next = n->relays,
                        .id = ++n->relay_last,
                        .origin = *origin,
                        .attempt = attempt,
                        .instance = *instance,
                        .epoch = epoch};
    n->relays = r;
    struct message_submit submit = *m;
    struct rank_owner owner = owner_of(n, r);
    submit.request = r->id;
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_submit(&frame, &submit);
    ranks_send(n, &owner, 0, &frame);
    return 0;
}

static void cancel_relay(struct node *n, const struct relay *r)
{
    struct rank_owner owner = owner_of(n, r);
    struct buf frame;
    buf_init(&frame, 64);
    message_encode_cancel(&frame, r->id);
    ranks_send(n, &owner, 0, &frame);
}

/* ---- the router's way out ---- */

static bool find_place(void *self, const char *model_id, struct router_place *ret_place)
{
    const struct node *n = self;
    const struct cluster_state *s = cluster_get_state(n->cluster);
    for (uint32_t k = 0; k < s->n_instances; k++) {
        const struct placed_instance *i = &s->instance[k];
        const struct instance_report *r = cluster_find_report(n->cluster, &i->id);
        const struct node_id *leader = &i->node_of_rank[0];
        if (strcmp(i->model_id, model_id) != 0 || r == NULL || r->status != INSTANCE_SERVING)
            continue;
        if (!is_ours(n, leader) && mesh_find(n->mesh, leader) == NULL)
            continue;
        *ret_place = (struct router_place){
            .instance = i->id, .leader = *leader, .epoch = i->epoch, .n_ctx = r->n_ctx};
        return true;
    }
    return false;
}

static bool is_there(void *self, const struct router_place *p)
{
    const struct node *n = self;
    const struct cluster_state *s = cluster_get_state(n->cluster);
    for (uint32_t k = 0; k < s->n_instances; k++)
        if (s->instance[k].epoch == p->epoch && node_id_equal(&s->instance[k].id, &p->instance)) {
            const struct instance_report *r = cluster_find_report(n->cluster, &p->instance);
            return r == NULL || r->status <= INSTANCE_SERVING;
        }
    return false;
}

static int send_attempt(void *self, const struct router_attempt *a)
{
    struct node *n = self;
    const struct wishes *wishes = a->user;
    struct message_submit m = wishes->submit;
    m.grammar = wishes->grammar;
    m.request = a->attempt;
    m.n_max = a->n_max;
    m.n_tokens = a->n_tokens;
    m.tokens = a->tokens;
    if (is_ours(n, &a->place.leader))
        return start_relay(n, &n->id, a->attempt, &a->place.instance, a->place.epoch, &m, NULL);
    struct mesh_link *link = mesh_find(n->mesh, &a->place.leader);
    struct buf frame, b;
    if (link == NULL)
        return E_UNAVAILABLE;
    if ((m.has_grammar || m.n_logprobs > 0) &&
        mesh_link_hello(link)->version < MESH_VERSION_GRAMMARS)
        return E_UNSUPPORTED;
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_submit(&frame, &m);
    struct mesh_submit submit = {.instance = a->place.instance,
                                 .epoch = a->place.epoch,
                                 .frame = frame.data,
                                 .frame_len = frame.len};
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES + 64);
    mesh_encode_submit(&b, &submit);
    if (frame.error != 0)
        b.error = frame.error;
    buf_done(&frame);
    return mesh_link_send(link, &b);
}

static void send_cancel(void *self, const struct router_place *place, uint64_t attempt)
{
    struct node *n = self;
    if (is_ours(n, &place->leader)) {
        const struct relay *r = find_relay_of(n, &n->id, attempt);
        if (r != NULL)
            cancel_relay(n, r);
        return;
    }
    struct mesh_link *link = mesh_find(n->mesh, &place->leader);
    struct buf b;
    if (link == NULL)
        return;
    buf_init(&b, 64);
    mesh_encode_cancel(&b, attempt);
    mesh_link_send(link, &b);
}

static void give_tokens(void *self, void *arg, const int32_t *tokens, uint32_t n_tokens)
{
    const struct client_request *c = arg;
    const struct node *n = self;
    const struct message_tokens *m = n->delivered;
    /* The router passes on a part of what it was given. */
    if (c->events.logprobs != NULL && m->logprobs != NULL && n_tokens > 0)
        c->events.logprobs(c->arg, tokens, m->logprobs + (tokens - m->tokens), n_tokens);
    if (c->events.tokens != NULL)
        c->events.tokens(c->arg, tokens, n_tokens);
}

static void give_progress(void *self, void *arg, uint32_t n_done, uint32_t n_prompt)
{
    const struct client_request *c = arg;
    (void)self;
    if (c->events.progress != NULL)
        c->events.progress(c->arg, n_done, n_prompt);
}

static void give_done(void *self, void *arg, const struct router_done *d)
{
    static const enum api_finish reasons[] = {
        [ROUTER_STOP] = API_FINISH_STOP,
        [ROUTER_LENGTH] = API_FINISH_LENGTH,
        [ROUTER_CANCELLED] = API_FINISH_CANCELLED,
        [ROUTER_ERROR] = API_FINISH_ERROR,
    };
    struct node *n = self;
    struct client_request *c = arg;
    struct api_done done = {
        .reason = reasons[d->reason],
        .error = d->error,
        .n_prompt = d->n_prompt,
        .n_cached = d->n_cached,
        .n_generated = d->n_generated,
        .queue_ns = d->queue_ns,
        .prefill_ns = d->prefill_ns,
        .decode_ns = d->decode_ns,
    };
    count_end(n, d->reason == ROUTER_ERROR, d->reason == ROUTER_CANCELLED);
    n->counts.repaired += d->n_repairs > 0;
    c->events.done(c->arg, &done);
    free(c);
    node_check_stop(n);
}

int requests_init(struct node *n, struct error *err)
{
    struct router_callbacks callbacks = {
        .self = n,
        .find_place = find_place,
        .send = send_attempt,
        .send_cancel = send_cancel,
        .tokens = give_tokens,
        .progress = give_progress,
        .done = give_done,
    };
    return router_new(&callbacks, &n->router, err);
}

/* Gives tokens of an attempt to the router. */
static void deliver(struct node *n, uint64_t attempt, const struct message_tokens *m)
{
    const struct message_tokens *outer = n->delivered;
    n->delivered = m;
    router_on_tokens(n->router, attempt, m->n_before, m->tokens, m->n_tokens, uv_now(n->loop));
    n->delivered = outer;
}

static struct wishes *make_wishes(const struct served_model *served, const struct api_generation *g,
                                  size_t *ret_bytes)
{
    size_t n_grammar = g->grammar != NULL ? g->grammar->len : 0;
    *ret_bytes = sizeof(struct wishes) + n_grammar;
    struct wishes *w = calloc(1, *ret_bytes);
    if (w == NULL)
        return NULL;
    struct message_submit *m = &w->submit;
    m->sampling = g->sampling;
    m->n_end = served->file->n_end;
    memcpy(m->end, served->file->end, sizeof(m->end));
    m->n_logprobs = g->wants_logprobs ? 1 + g->n_top_logprobs : 0;
    if (g->grammar != NULL) {
        m->has_grammar = true;
        m->grammar_kind = g->grammar->kind;
        m->n_grammar_bytes = (uint32_t)n_grammar;
        if (n_grammar > 0)
            memcpy(w->grammar, g->grammar->text, n_grammar);
    }
    return w;
}

int requests_submit(struct node *n, const struct api_generation *g,
                    const struct api_generation_events *events, void *arg, uint64_t *ret_id,
                    struct error *err)
{
    const struct served_model *served = (const struct served_model *)g->model;
    if (n->phase != NODE_RUNNING)
        return error_set(err, E_UNAVAILABLE, "this node is stopping");
    if (served->file == NULL)
        return error_set(err, E_UNAVAILABLE, "model %s is not ready: it is loading or has failed",
                         served->id);
    if (g->grammar != NULL && g->grammar->len > LIMIT_GRAMMAR_BYTES)
        return error_set(err, E_LIMIT, "the grammar has %zu bytes: at most %u", g->grammar->len,
                         LIMIT_GRAMMAR_BYTES);
    if (g->wants_logprobs && g->n_top_logprobs > LIMIT_TOP_LOGPROBS)
        return error_set(err, E_INVALID, "top_logprobs is %u: at most %d", g->n_top_logprobs,
                         LIMIT_TOP_LOGPROBS);
    size_t wishes_bytes;
    struct wishes *w = make_wishes(served, g, &wishes_bytes);
    struct client_request *c = calloc(1, sizeof(*c));
    if (w == NULL || c == NULL) {
        free(w);
        free(c);
        return error_set(err, E_NOMEM, "out of memory for a request");
    }
    *c = (struct client_request){.events = *events, .arg = arg};
    struct router_request q = {
        .model_id = served->id,
        .tokens = g->tokens,
        .n_tokens = g->n_tokens,
        .n_max = g->n_max,
        .user = w,
        .user_len = wishes_bytes,
    };
    int rc = router_submit(n->router, &q, c, uv_now(n->loop), ret_id, err);
    free(w);
    if (rc != 0)
        free(c);
    return rc;
}

static void on_cancels(uv_timer_t *timer)
{
    struct node *n = timer->data;
    uint32_t count = n->n_cancels;
    uint64_t *ids = n->cancels;
    n->cancels = NULL;
    n->n_cancels = n->cancels_max = 0;
    for (uint32_t i = 0; i < count; i++)
        router_cancel(n->router, ids[i]);
    free(ids);
}

void requests_cancel(struct node *n, uint64_t id)
{
    if (n->n_cancels == n->cancels_max) {
        uint32_t max = n->cancels_max > 0 ? 2 * n->cancels_max : 16;
        uint64_t *ids = realloc(n->cancels, max * sizeof(*ids));
        if (ids == NULL)
            return; /* it runs to its end for nobody */
        n->cancels = ids;
        n->cancels_max = max;
    }
    n->cancels[n->n_cancels++] = id;
    uv_timer_start(&n->cancel_timer, on_cancels, 0, 0);
}

/* ---- from the head, or from another leader ---- */

static void take_done(struct node *n, uint64_t attempt, const struct message_done *m)
{
    static const enum router_finish reasons[] = {
        [FINISH_STOP] = ROUTER_STOP,
        [FINISH_LENGTH] = ROUTER_LENGTH,
        [FINISH_CANCELLED] = ROUTER_CANCELLED,
        [FINISH_ERROR] = ROUTER_ERROR,
    };
    struct router_done done = {
        .reason = reasons[m->reason],
        .n_prompt = m->n_prompt,
        .n_cached = m->n_cached,
        .n_generated = m->n_generated,
        .queue_ns = m->queue_ns,
        .prefill_ns = m->prefill_ns,
        .decode_ns = m->decode_ns,
    };
    if (m->reason == FINISH_ERROR)
        error_set(&done.error, m->code, "%s", m->message);
    router_on_done(n->router, attempt, &done, uv_now(n->loop));
}

static void send_event(struct node *n, const struct node_id *origin, struct buf *frame)
{
    struct mesh_link *link = mesh_find(n->mesh, origin);
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    if (link != NULL && mesh_encode_event(&b, frame->data, frame->len) == 0 && frame->error != 0)
        b.error = frame->error;
    buf_done(frame);
    if (link != NULL)
        mesh_link_send(link, &b);
    else
        buf_done(&b);
}

static void tell_done(struct node *n, const struct node_id *origin, uint64_t attempt,
                      const struct message_done *m)
{
    struct buf frame;
    struct message_done done = *m;
    if (is_ours(n, origin)) {
        take_done(n, attempt, m);
        return;
    }
    done.request = attempt;
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_done(&frame, &done);
    send_event(n, origin, &frame);
}

static void end_relay(struct node *n, struct relay *r, const struct message_done *m)
{
    unlink_relay(n, r);
    /* Those of our own clients are counted when the client has its answer. One whose instance was
     * lost goes on elsewhere. */
    if (!is_ours(n, &r->origin) && m->code != E_PEERLOST)
        count_end(n, m->reason == FINISH_ERROR, m->reason == FINISH_CANCELLED);
    if (!r->is_abandoned)
        tell_done(n, &r->origin, r->attempt, m);
    free(r);
    node_check_stop(n);
}

static void relay_tokens(struct node *n, struct relay *r, struct message_tokens *m)
{
    struct buf frame;
    r->is_running = true;
    if (r->is_abandoned)
        return;
    if (is_ours(n, &r->origin)) {
        deliver(n, r->attempt, m);
        return;
    }
    m->request = r->attempt;
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_tokens(&frame, m);
    send_event(n, &r->origin, &frame);
}

static void relay_progress(struct node *n, struct relay *r, struct message_progress *m)
{
    struct buf frame;
    r->is_running = true;
    if (r->is_abandoned)
        return;
    if (is_ours(n, &r->origin)) {
        router_on_progress(n->router, r->attempt, m->n_done, m->n_prompt);
        return;
    }
    m->request = r->attempt;
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_progress(&frame, m);
    send_event(n, &r->origin, &frame);
}

int requests_on_frame(struct node *n, const struct message *m, struct error *err)
{
    struct message_tokens tokens;
    struct logprobs logprobs[MESSAGE_LOGPROBS_MAX];
    struct message_progress progress;
    struct message_done done;
    struct relay *r;
    int rc;
    switch (m->type) {
    case MESSAGE_TOKENS:
        rc = message_decode_tokens(m, &tokens, logprobs, err);
        if (rc == 0 && (r = find_relay(n, tokens.request)) != NULL)
            relay_tokens(n, r, &tokens);
        return rc;
    case MESSAGE_PROGRESS:
        rc = message_decode_progress(m, &progress, err);
        if (rc == 0 && (r = find_relay(n, progress.request)) != NULL)
            relay_progress(n, r, &progress);
        return rc;
    case MESSAGE_DONE:
        rc = message_decode_done(m, &done, err);
        if (rc == 0 && (r = find_relay(n, done.request)) != NULL)
            end_relay(n, r, &done);
        return rc;
    default:
        return error_set(err, E_PROTOCOL, "message of type %d is not about a request", m->type);
    }
}

int requests_on_event(struct node *n, const struct mesh_link *from, const struct message *m,
                      struct error *err)
{
    struct message_tokens tokens;
    struct logprobs logprobs[MESSAGE_LOGPROBS_MAX];
    struct message_progress progress;
    struct message_done done;
    int rc;
    (void)from;
    switch (m->type) {
    case MESSAGE_TOKENS:
        rc = message_decode_tokens(m, &tokens, logprobs, err);
        if (rc == 0)
            deliver(n, tokens.request, &tokens);
        return rc;
    case MESSAGE_PROGRESS:
        rc = message_decode_progress(m, &progress, err);
        if (rc == 0)
            router_on_progress(n->router, progress.request, progress.n_done, progress.n_prompt);
        return rc;
    case MESSAGE_DONE:
        rc = message_decode_done(m, &done, err);
        if (rc == 0)
            take_done(n, done.request, &done);
        return rc;
    default:
        return error_set(err, E_PROTOCOL, "message of type %d is not an event of a request",
                         m->type);
    }
}

/* ---- from another node's router ---- */

int requests_take(struct node *n, struct mesh_link *origin, const struct mesh_submit *m,
                  struct error *err)
{
    struct message frame;
    struct message_submit submit;
    struct error cause = {0};
    const struct node_id *id = &mesh_link_hello(origin)->id;
    int64_t frame_bytes = message_next(m->frame, m->frame_len, &frame, err);
    if (frame_bytes < 0 || (size_t)frame_bytes != m->frame_len || frame.type != MESSAGE_SUBMIT)
        return error_set(err, E_PROTOCOL, "SUBMIT without a request's frame");
    int rc = message_decode_submit(&frame, &submit, err);
    if (rc != 0)
        return rc;
    if (find_relay_of(n, id, submit.request) != NULL)
        rc = error_set(err, E_PROTOCOL, "SUBMIT of a request that is under way already");
    else if (start_relay(n, id, submit.request, &m->instance, m->epoch, &submit, &cause) != 0) {
        struct message_done done = {
            .request = submit.request, .reason = FINISH_ERROR, .code = cause.code};
        snprintf(done.message, sizeof(done.message), "%s", cause.message);
        tell_done(n, id, submit.request, &done);
    }
    free((void *)(uintptr_t)submit.tokens);
    return rc;
}

void requests_cancel_for(struct node *n, const struct mesh_link *origin, uint64_t attempt)
{
    const struct relay *r = find_relay_of(n, &mesh_link_hello(origin)->id, attempt);
    if (r != NULL)
        cancel_relay(n, r);
}

/* ---- losses ---- */

void requests_lose_instance(struct node *n, const struct instance *i, const char *reason)
{
    struct message_done done = {.reason = FINISH_ERROR, .code = E_PEERLOST};
    uint64_t last = n->relay_last;
    struct relay *r = n->relays;
    snprintf(done.message, sizeof(done.message), "%s", reason);
    /* From the front again after each, since those who hear of it may change the list; what they
     * add has higher numbers. */
    while (r != NULL) {
        if (r->epoch == i->placed.epoch && node_id_equal(&r->instance, &i->placed.id) &&
            r->id <= last) {
            end_relay(n, r, &done);
            r = n->relays;
        } else {
            r = r->next;
        }
    }
}

void requests_on_link_down(struct node *n, const struct mesh_link *link)
{
    const struct node_id *id = &mesh_link_hello(link)->id;
    for (struct relay *r = n->relays; r != NULL; r = r->next)
        if (node_id_equal(&r->origin, id) && !r->is_abandoned) {
            r->is_abandoned = true;
            cancel_relay(n, r);
        }
    router_on_node_lost(n->router, id, uv_now(n->loop));
}

void requests_on_places(struct node *n)
{
    if (n->router != NULL)
        router_on_places(n->router, is_there, uv_now(n->loop));
}

void requests_end_all(struct node *n, int code, const char *message)
{
    if (n->router != NULL)
        router_end_all(n->router, code, message);
}

void requests_done(struct node *n)
{
    requests_end_all(n, E_UNAVAILABLE, "the node stops");
    while (n->relays != NULL) {
        struct relay *r = n->relays;
        n->relays = r->next;
        free(r);
    }
    free(n->cancels);
    router_free(n->router);
    n->router = NULL;
}
