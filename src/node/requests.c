/*
 * Requests. A request comes from this node's API or from another node (its origin), and goes to the
 * head's runner on this node or to the node that coordinates the instance (its destination). On its
 * way it gets this node's number; the answer is given the origin's number back. Each ends with
 * exactly one DONE.
 */
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a head may have running and waiting, and as much again for other instances. */
enum { REQUESTS_MAX = 2 * (LIMIT_REQUESTS_QUEUED + LIMIT_SLOTS) };

struct request {
    struct request *next;
    uint64_t id;
    struct mesh_link *origin; /* NULL: our API */
    uint64_t origin_id;
    struct api_generation_events events;
    void *arg;
    struct mesh_link *destination; /* NULL: our own instance */
    bool is_running;               /* the head has begun with it */
    bool is_abandoned;             /* the origin is gone: the answer goes nowhere */
};

static struct request *find_request(const struct node *n, uint64_t id)
{
    for (struct request *r = n->requests; r != NULL; r = r->next)
        if (r->id == id)
            return r;
    return NULL;
}

void requests_count(const struct node *n, uint32_t *ret_running, uint32_t *ret_queued)
{
    *ret_running = *ret_queued = 0;
    for (const struct request *r = n->requests; r != NULL; r = r->next)
        ++*(r->is_running ? ret_running : ret_queued);
}

/* ---- towards the head ---- */

static void send_to(struct node *n, struct mesh_link *destination, const struct node_id *instance,
                    const struct message_submit *m)
{
    struct buf frame, b;
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_submit(&frame, m);
    if (destination == NULL) {
        ranks_send(n, NULL, n->instance->launch, 0, &frame);
        return;
    }
    struct mesh_submit relay = {.instance = *instance, .frame = frame.data, .frame_len = frame.len};
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES + 64);
    mesh_encode_submit(&b, &relay);
    if (frame.error != 0)
        b.error = frame.error;
    buf_done(&frame);
    mesh_link_send(destination, &b);
}

static void send_cancel(struct node *n, const struct request *r)
{
    struct buf b;
    buf_init(&b, 256);
    if (r->destination != NULL) {
        mesh_encode_cancel(&b, r->id);
        mesh_link_send(r->destination, &b);
    } else if (n->instance != NULL) {
        message_encode_cancel(&b, r->id);
        ranks_send(n, NULL, n->instance->launch, 0, &b);
    }
}

static struct request *add_request(struct node *n, struct error *err)
{
    uint32_t running, queued;
    requests_count(n, &running, &queued);
    if (running + queued >= REQUESTS_MAX) {
        error_set(err, E_BUSY, "this node has %u requests under way (at most %d): try again later",
                  running + queued, REQUESTS_MAX);
        return NULL;
    }
    struct request *r = calloc(1, sizeof(*r));
    if (r == NULL) {
        error_set(err, E_NOMEM, "out of memory for a request");
        return NULL;
    }
    r->id = ++n->request_last;
    r->next = n->requests;
    n->requests = r;
    return r;
}

/* Where requests for a model go: our own instance, else another coordinator's. */
static bool find_destination(const struct node *n, const char *model_id,
                             struct mesh_link **ret_link, struct node_id *ret_instance)
{
    if (n->instance != NULL && n->instance->info.status == INSTANCE_SERVING &&
        strcmp(n->instance->info.model_id, model_id) == 0) {
        *ret_link = NULL;
        *ret_instance = n->instance->info.id;
        return true;
    }
    for (uint32_t i = 0; i < n->n_remote; i++)
        if (n->remote[i].info->status == INSTANCE_SERVING &&
            strcmp(n->remote[i].info->model_id, model_id) == 0) {
            *ret_link = n->remote[i].link;
            *ret_instance = n->remote[i].info->id;
            return true;
        }
    return false;
}

int requests_submit(struct node *n, const struct api_generation *g,
                    const struct api_generation_events *events, void *arg, uint64_t *ret_id,
                    struct error *err)
{
    const struct served_model *served = (const struct served_model *)g->model;
    struct mesh_link *link = NULL;
    struct node_id instance;
    if (n->phase != NODE_RUNNING)
        return error_set(err, E_UNAVAILABLE, "this node is stopping");
    if (served->file == NULL || !find_destination(n, served->id, &link, &instance))
        return error_set(err, E_UNAVAILABLE, "model %s is not ready: it is loading or has failed",
                         served->id);
    struct request *r = add_request(n, err);
    if (r == NULL)
        return err != NULL ? err->code : E_BUSY;
    r->destination = link;
    r->events = *events;
    r->arg = arg;
    struct message_submit m = {
        .request = r->id,
        .n_max = g->n_max,
        .sampling = g->sampling,
        .n_end = served->file->n_end,
        .n_tokens = g->n_tokens,
        .tokens = g->tokens,
    };
    memcpy(m.end, served->file->end, sizeof(m.end));
    send_to(n, link, &instance, &m);
    *ret_id = r->id;
    return 0;
}

void requests_cancel(struct node *n, uint64_t id)
{
    const struct request *r = find_request(n, id);
    if (r != NULL)
        send_cancel(n, r);
}

/* ---- towards the origin ---- */

static void send_event(struct mesh_link *origin, struct buf *frame)
{
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_event(&b, frame->data, frame->len);
    if (frame->error != 0)
        b.error = frame->error;
    buf_done(frame);
    mesh_link_send(origin, &b);
}

static void give_done_to_api(const struct request *r, const struct message_done *m)
{
    static const enum api_finish reasons[] = {
        [FINISH_STOP] = API_FINISH_STOP,
        [FINISH_LENGTH] = API_FINISH_LENGTH,
        [FINISH_CANCELLED] = API_FINISH_CANCELLED,
        [FINISH_ERROR] = API_FINISH_ERROR,
    };
    struct api_done done = {
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
    r->events.done(r->arg, &done);
}

/* Ends a request: out of the table first, because the receiver may start another at once. */
static void finish(struct node *n, struct request *r, const struct message_done *m)
{
    for (struct request **p = &n->requests; *p != NULL; p = &(*p)->next)
        if (*p == r) {
            *p = r->next;
            break;
        }
    if (m->reason == FINISH_ERROR)
        n->counts.failed++;
    else if (m->reason == FINISH_CANCELLED)
        n->counts.cancelled++;
    else
        n->counts.completed++;
    if (r->is_abandoned) {
        /* nobody to tell */
    } else if (r->origin != NULL) {
        struct message_done relay = *m;
        struct buf frame;
        relay.request = r->origin_id;
        buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
        message_encode_done(&frame, &relay);
        send_event(r->origin, &frame);
    } else {
        give_done_to_api(r, m);
    }
    free(r);
    node_check_stop(n);
}

static int take_done(struct node *n, const struct mesh_link *from, const struct message *m,
                     struct error *err)
{
    struct message_done done;
    int rc = message_decode_done(m, &done, err);
    if (rc != 0)
        return rc;
    struct request *r = find_request(n, done.request);
    if (r != NULL && r->destination == from)
        finish(n, r, &done);
    return 0;
}

static int take_tokens(struct node *n, const struct mesh_link *from, const struct message *m,
                       struct error *err)
{
    struct message_tokens tokens;
    int rc = message_decode_tokens(m, &tokens, err);
    if (rc != 0)
        return rc;
    struct request *r = find_request(n, tokens.request);
    if (r == NULL || r->destination != from || r->is_abandoned)
        return 0;
    r->is_running = true;
    if (r->origin != NULL) {
        struct buf frame;
        tokens.request = r->origin_id;
        buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
        message_encode_tokens(&frame, &tokens);
        send_event(r->origin, &frame);
    } else if (r->events.tokens != NULL) {
        r->events.tokens(r->arg, tokens.tokens, tokens.n_tokens);
    }
    return 0;
}

static int take_progress(struct node *n, const struct mesh_link *from, const struct message *m,
                         struct error *err)
{
    struct message_progress progress;
    int rc = message_decode_progress(m, &progress, err);
    if (rc != 0)
        return rc;
    struct request *r = find_request(n, progress.request);
    if (r == NULL || r->destination != from || r->is_abandoned)
        return 0;
    r->is_running = true;
    if (r->origin != NULL) {
        struct buf frame;
        progress.request = r->origin_id;
        buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
        message_encode_progress(&frame, &progress);
        send_event(r->origin, &frame);
    } else if (r->events.progress != NULL) {
        r->events.progress(r->arg, progress.n_done, progress.n_prompt);
    }
    return 0;
}

int requests_on_event(struct node *n, const struct mesh_link *from, const struct message *m,
                      struct error *err)
{
    switch (m->type) {
    case MESSAGE_TOKENS:
        return take_tokens(n, from, m, err);
    case MESSAGE_PROGRESS:
        return take_progress(n, from, m, err);
    case MESSAGE_DONE:
        return take_done(n, from, m, err);
    default:
        return error_set(err, E_PROTOCOL, "message of type %d is not an event of a request",
                         m->type);
    }
}

/* ---- from another node ---- */

static void refuse_relayed(struct mesh_link *origin, uint64_t origin_id, const struct error *cause)
{
    struct message_done done = {.request = origin_id, .reason = FINISH_ERROR, .code = cause->code};
    struct buf frame;
    snprintf(done.message, sizeof(done.message), "%s", cause->message);
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_done(&frame, &done);
    send_event(origin, &frame);
}

int requests_take(struct node *n, struct mesh_link *origin, const struct mesh_submit *m,
                  struct error *err)
{
    struct message frame;
    struct message_submit submit;
    struct error cause = {0};
    int64_t frame_bytes = message_next(m->frame, m->frame_len, &frame, err);
    if (frame_bytes < 0 || (size_t)frame_bytes != m->frame_len || frame.type != MESSAGE_SUBMIT)
        return error_set(err, E_PROTOCOL, "SUBMIT without a request's frame");
    int rc = message_decode_submit(&frame, &submit, err);
    if (rc != 0)
        return rc;
    struct instance *i = n->instance;
    struct request *r = NULL;
    if (n->phase != NODE_RUNNING || i == NULL || i->info.status != INSTANCE_SERVING ||
        !node_id_equal(&i->info.id, &m->instance))
        error_set(&cause, E_UNAVAILABLE, "the model is not served by node %s any more: try again",
                  n->config.name);
    else
        r = add_request(n, &cause);
    if (r == NULL) {
        refuse_relayed(origin, submit.request, &cause);
    } else {
        r->origin = origin;
        r->origin_id = submit.request;
        submit.request = r->id;
        send_to(n, NULL, NULL, &submit);
    }
    free((void *)(uintptr_t)submit.tokens);
    return 0;
}

void requests_cancel_for(struct node *n, const struct mesh_link *origin, uint64_t origin_id)
{
    for (struct request *r = n->requests; r != NULL; r = r->next)
        if (r->origin == origin && r->origin_id == origin_id && !r->is_abandoned) {
            send_cancel(n, r);
            return;
        }
}

void requests_drop_origin(struct node *n, const struct mesh_link *origin)
{
    for (struct request *r = n->requests; r != NULL; r = r->next)
        if (r->origin == origin && !r->is_abandoned) {
            r->is_abandoned = true;
            send_cancel(n, r);
        }
}

/* ---- ends that no head reports ---- */

/* Ends each request that is there now and matches. From the front again after each one, since
 * receivers may change the list; requests that they add have higher numbers. */
static void fail_matching(struct node *n, bool all, const struct mesh_link *destination, int code,
                          const char *message)
{
    struct message_done done = {.reason = FINISH_ERROR, .code = code};
    struct request *r = n->requests;
    uint64_t last = n->request_last;
    snprintf(done.message, sizeof(done.message), "%s", message);
    while (r != NULL) {
        if ((all || r->destination == destination) && r->id <= last) {
            done.request = r->id;
            finish(n, r, &done);
            r = n->requests;
        } else {
            r = r->next;
        }
    }
}

void requests_fail(struct node *n, const struct mesh_link *destination, int code,
                   const char *message)
{
    fail_matching(n, false, destination, code, message);
}

void requests_fail_all(struct node *n, int code, const char *message)
{
    fail_matching(n, true, NULL, code, message);
}
