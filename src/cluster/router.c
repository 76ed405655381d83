/*
 * Every call out may come back in and end any request, so nothing here keeps a pointer to a request
 * over one: it is found again by its id, and an id is never used twice.
 */
#include "cluster/router.h"

#include <stdlib.h>
#include <string.h>

enum {
    SLOT_BITS = 10,   /* of an id: where it is in the table; the rest is a serial number */
    ROOM_TOKENS = 64, /* for generated ones at first */
    CANCEL_MS = 5000, /* for the leader's answer; then the request ends without it */
};
_Static_assert(ROUTER_REQUESTS_MAX <= 1 << SLOT_BITS, "an id has room for each place in the table");

struct request {
    uint64_t id, attempt; /* attempt 0: waits for a place */
    void *arg;
    char model_id[128];
    int32_t *tokens; /* [n_tokens_room]: prompt, then what its client has */
    size_t n_tokens_room;
    uint32_t n_prompt, n_tokens, n_max; /* n_max: generated ones in all */
    void *user;

    struct router_place place; /* of the attempt, or of the last one */
    uint32_t n_received;       /* of this attempt */
    uint32_t n_attempts;       /* that left */

    /* Without a place since waiting_since_ms, and waited_ms before that, since something last came
       from an instance. Time in an instance's own queue does not count. */
    uint64_t waiting_since_ms, waited_ms;
    bool is_held; /* not to `place` again before retry_ms */
    uint64_t retry_ms;
    bool is_cancelled, is_cancel_timed;
    uint64_t cancelled_ms;
    struct error cause; /* why the last attempt ended */

    uint32_t n_cached, n_repairs;
    uint64_t queue_ns, prefill_ns, decode_ns;
};

struct router {
    struct router_callbacks callbacks;
    uint64_t serial;
    struct request *slot[ROUTER_REQUESTS_MAX];
    uint32_t n;
    uint64_t order[ROUTER_REQUESTS_MAX]; /* ids as they were accepted, ascending */
};

int router_new(const struct router_callbacks *callbacks, struct router **ret_router,
               struct error *err)
{
    struct router *r = calloc(1, sizeof(*r));
    if (r == NULL)
        return error_set(err, E_NOMEM, "out of memory for the table of requests");
    r->callbacks = *callbacks;
    *ret_router = r;
    return 0;
}

static void free_request(struct request *q)
{
    if (q == NULL)
        return;
    free(q->tokens);
    free(q->user);
    free(q);
}

void router_free(struct router *r)
{
    if (r == NULL)
        return;
    for (size_t i = 0; i < ROUTER_REQUESTS_MAX; i++)
        free_request(r->slot[i]);
    free(r);
}

static uint64_t make_id(struct router *r, uint32_t slot)
{
    return ++r->serial << SLOT_BITS | slot;
}

static struct request *find_request(const struct router *r, uint64_t id)
{
    size_t slot = id & ((1u << SLOT_BITS) - 1);
    if (slot >= ROUTER_REQUESTS_MAX || r->slot[slot] == NULL || r->slot[slot]->id != id)
        return NULL;
    return r->slot[slot];
}

static struct request *find_attempt(const struct router *r, uint64_t attempt)
{
    size_t slot = attempt & ((1u << SLOT_BITS) - 1);
    if (attempt == 0 || slot >= ROUTER_REQUESTS_MAX || r->slot[slot] == NULL ||
        r->slot[slot]->attempt != attempt)
        return NULL;
    return r->slot[slot];
}

static uint32_t count_generated(const struct request *q)
{
    return q->n_tokens - q->n_prompt;
}

/* ---- its end ---- */

static void take_out(struct router *r, const struct request *q)
{
    uint32_t k = 0;
    while (r->order[k] != q->id)
        k++;
    memmove(&r->order[k], &r->order[k + 1], (r->n - k - 1) * sizeof(r->order[0]));
    r->n--;
    r->slot[q->id & ((1u << SLOT_BITS) - 1)] = NULL;
}

/* cause: for ROUTER_ERROR; may be the request's own. The request is gone before its client hears of
 * it. */
static void end_request(struct router *r, struct request *q, enum router_finish reason,
                        const struct error *cause)
{
    struct router_done done = {
        .reason = reason,
        .n_prompt = q->n_prompt,
        .n_cached = q->n_cached < q->n_prompt ? q->n_cached : q->n_prompt,
        .n_generated = count_generated(q),
        .n_repairs = q->n_repairs,
        .queue_ns = q->queue_ns,
        .prefill_ns = q->prefill_ns,
        .decode_ns = q->decode_ns,
    };
    void *arg = q->arg;
    if (reason == ROUTER_ERROR)
        done.error = *cause;
    take_out(r, q);
    free_request(q);
    r->callbacks.done(r->callbacks.self, arg, &done);
}

/* ---- to an instance ---- */

static void hold(struct request *q, uint64_t now_ms)
{
    q->is_held = true;
    q->retry_ms = now_ms + ROUTER_RETRY_MS;
}

static bool is_same_place(const struct router_place *a, const struct router_place *b)
{
    return a->epoch == b->epoch && node_id_equal(&a->instance, &b->instance);
}

/* Sends a request that waits, if there is a place for it. */
static void try_send(struct router *r, struct request *q, uint64_t now_ms)
{
    struct router_place place = {0};
    uint64_t id = q->id;
    if (!r->callbacks.find_place(r->callbacks.self, q->model_id, &place))
        return;
    /* find_place() may have come back in. */
    if ((q = find_request(r, id)) == NULL || q->attempt != 0)
        return;
    if (q->is_held && now_ms < q->retry_ms && is_same_place(&place, &q->place))
        return;
    /* What is full cannot go on; the answer that said so may have been lost. */
    if (count_generated(q) > 0 && place.n_ctx != 0 && q->n_tokens >= place.n_ctx) {
        end_request(r, q, ROUTER_LENGTH, NULL);
        return;
    }
    uint64_t attempt = make_id(r, (uint32_t)(id & ((1u << SLOT_BITS) - 1)));
    struct router_attempt a = {
        .request = id,
        .attempt = attempt,
        .place = place,
        .tokens = q->tokens,
        .n_tokens = q->n_tokens,
        .n_max = q->n_max - count_generated(q),
        .user = q->user,
    };
    q->attempt = attempt;
    q->place = place;
    q->n_received = 0;
    q->is_held = false;
    q->n_attempts++;
    q->waited_ms += now_ms - q->waiting_since_ms;
    q->waiting_since_ms = now_ms;
    int rc = r->callbacks.send(r->callbacks.self, &a);
    if (rc == 0 || (q = find_attempt(r, attempt)) == NULL)
        return;
    q->attempt = 0;
    q->n_attempts--;
    error_set(&q->cause, rc, "the request could not be sent to its instance: %s", error_text(rc));
    if (q->is_cancelled)
        end_request(r, q, ROUTER_CANCELLED, NULL);
}

/* The attempt has ended without its end; the request goes on, if anything is missing. */
static void go_on(struct router *r, struct request *q, uint64_t now_ms)
{
    q->attempt = 0;
    q->waiting_since_ms = now_ms;
    if (q->is_cancelled)
        end_request(r, q, ROUTER_CANCELLED, NULL);
    else if (count_generated(q) == q->n_max)
        end_request(r, q, ROUTER_LENGTH, NULL);
    else
        try_send(r, q, now_ms);
}

static void lose_attempt(struct router *r, struct request *q, uint64_t now_ms)
{
    if (count_generated(q) < q->n_max)
        q->n_repairs++;
    go_on(r, q, now_ms);
}

/* Its leader may still be at work on it. */
static void abandon_attempt(struct router *r, struct request *q, uint64_t now_ms)
{
    struct router_place place = q->place;
    uint64_t attempt = q->attempt, id = q->id;
    q->attempt = 0;
    r->callbacks.send_cancel(r->callbacks.self, &place, attempt);
    if ((q = find_request(r, id)) != NULL && q->attempt == 0)
        lose_attempt(r, q, now_ms);
}

/* ---- from clients ---- */

static uint32_t find_free_slot(const struct router *r)
{
    uint32_t slot = 0;
    while (r->slot[slot] != NULL)
        slot++;
    return slot;
}

static struct request *new_request(const struct router_request *from, struct error *err)
{
    struct request *q = calloc(1, sizeof(*q));
    if (q == NULL)
        goto fail;
    q->n_tokens_room =
        (size_t)from->n_tokens + (from->n_max < ROOM_TOKENS ? from->n_max : ROOM_TOKENS);
    q->tokens = malloc(q->n_tokens_room * sizeof(*q->tokens));
    q->user = malloc(from->user_len > 0 ? from->user_len : 1);
    if (q->tokens == NULL || q->user == NULL)
        goto fail;
    memcpy(q->tokens, from->tokens, from->n_tokens * sizeof(*q->tokens));
    if (from->user_len > 0)
        memcpy(q->user, from->user, from->user_len);
    memcpy(q->model_id, from->model_id, strlen(from->model_id) + 1);
    q->n_prompt = q->n_tokens = from->n_tokens;
    q->n_max =
        from->n_max < UINT32_MAX - from->n_tokens ? from->n_max : UINT32_MAX - from->n_tokens;
    return q;
fail:
    free_request(q);
    error_set(err, E_NOMEM, "out of memory for a request of %u tokens", from->n_tokens);
    return NULL;
}

int router_submit(struct router *r, const struct router_request *from, void *arg, uint64_t now_ms,
                  uint64_t *ret_request, struct error *err)
{
    struct router_place place;
    if (from->n_tokens == 0 || from->n_max == 0 ||
        strlen(from->model_id) >= sizeof(((struct request *)0)->model_id))
        return error_set(err, E_INVALID,
                         "a request needs a prompt, room for an answer, and a model's name of at "
                         "most 127 bytes");
    if (!r->callbacks.find_place(r->callbacks.self, from->model_id, &place))
        return error_set(err, E_UNAVAILABLE,
                         "model %s is served by no node that can be reached now", from->model_id);
    if (r->n == ROUTER_REQUESTS_MAX)
        return error_set(err, E_BUSY, "this node has %d requests under way: try later",
                         ROUTER_REQUESTS_MAX);
    struct request *q = new_request(from, err);
    if (q == NULL)
        return E_NOMEM;
    uint32_t slot = find_free_slot(r);
    q->id = make_id(r, slot);
    q->arg = arg;
    r->slot[slot] = q;
    r->order[r->n++] = q->id;
    *ret_request = q->id;
    q->waiting_since_ms = now_ms;
    try_send(r, q, now_ms);
    return 0;
}

void router_cancel(struct router *r, uint64_t request)
{
    struct request *q = find_request(r, request);
    if (q == NULL || q->is_cancelled)
        return;
    q->is_cancelled = true;
    if (q->attempt == 0) {
        end_request(r, q, ROUTER_CANCELLED, NULL);
        return;
    }
    struct router_place place = q->place;
    r->callbacks.send_cancel(r->callbacks.self, &place, q->attempt);
}

/* ---- from leaders ---- */

static bool make_room(struct request *q, uint32_t n)
{
    size_t needed = (size_t)q->n_tokens + n;
    if (needed <= q->n_tokens_room)
        return true;
    size_t room = q->n_tokens_room * 2 > needed ? q->n_tokens_room * 2 : needed;
    int32_t *tokens = realloc(q->tokens, room * sizeof(*tokens));
    if (tokens == NULL)
        return false;
    q->tokens = tokens;
    q->n_tokens_room = room;
    return true;
}

/* Without its tokens a request cannot be repaired, so it ends rather than go on unsafely. */
static void end_without_memory(struct router *r, struct request *q)
{
    struct router_place place = q->place;
    struct error err;
    uint64_t attempt = q->attempt;
    error_set(&err, E_NOMEM, "out of memory for the answer's tokens, after %u of them",
              count_generated(q));
    end_request(r, q, ROUTER_ERROR, &err);
    r->callbacks.send_cancel(r->callbacks.self, &place, attempt);
}

void router_on_tokens(struct router *r, uint64_t attempt, uint32_t n_before, const int32_t *tokens,
                      uint32_t n, uint64_t now_ms)
{
    struct request *q = find_attempt(r, attempt);
    if (q == NULL || q->is_cancelled || (uint64_t)n_before + n <= q->n_received)
        return;
    if (n_before > q->n_received) {
        abandon_attempt(r, q, now_ms);
        return;
    }
    uint32_t n_left = q->n_max - count_generated(q), n_known = q->n_received - n_before;
    tokens += n_known;
    n -= n_known;
    if (n > n_left) /* more than was asked for */
        n = n_left;
    if (n == 0)
        return;
    if (!make_room(q, n)) {
        end_without_memory(r, q);
        return;
    }
    memcpy(q->tokens + q->n_tokens, tokens, n * sizeof(*tokens));
    q->n_tokens += n;
    q->n_received += n;
    q->waited_ms = 0;
    r->callbacks.tokens(r->callbacks.self, q->arg, tokens, n);
}

void router_on_progress(struct router *r, uint64_t attempt, uint32_t n_done, uint32_t n_prompt)
{
    struct request *q = find_attempt(r, attempt);
    if (q == NULL || q->is_cancelled)
        return;
    q->waited_ms = 0;
    r->callbacks.progress(r->callbacks.self, q->arg, n_done, n_prompt);
}

static void add_usage(struct request *q, const struct router_done *done)
{
    q->queue_ns += done->queue_ns;
    q->prefill_ns += done->prefill_ns;
    q->decode_ns += done->decode_ns;
    if (q->n_attempts == 1)
        q->n_cached = done->n_cached;
}

static void on_error(struct router *r, struct request *q, const struct error *cause,
                     uint64_t now_ms)
{
    if (cause->code == E_PEERLOST || cause->code == E_UNAVAILABLE) {
        /* The news that the instance is gone may be behind the news that the request has failed. */
        q->cause = *cause;
        hold(q, now_ms);
        lose_attempt(r, q, now_ms);
    } else if (cause->code == E_BUSY && q->n_attempts > 1) {
        q->cause = *cause;
        q->waited_ms += now_ms - q->waiting_since_ms; /* on the way to a refusal */
        hold(q, now_ms);
        go_on(r, q, now_ms);
    } else {
        end_request(r, q, ROUTER_ERROR, cause);
    }
}

void router_on_done(struct router *r, uint64_t attempt, const struct router_done *done,
                    uint64_t now_ms)
{
    struct request *q = find_attempt(r, attempt);
    if (q == NULL)
        return;
    struct error cause = done->error;
    add_usage(q, done);
    if (q->is_cancelled)
        end_request(r, q, ROUTER_CANCELLED, NULL);
    else if (done->reason == ROUTER_ERROR)
        on_error(r, q, &cause, now_ms);
    else if (done->reason == ROUTER_CANCELLED) {
        /* Not by us: its leader lost sight of us, or is being stopped. */
        hold(q, now_ms);
        lose_attempt(r, q, now_ms);
    } else if (done->n_generated > q->n_received && count_generated(q) < q->n_max)
        lose_attempt(r, q, now_ms);
    else
        end_request(r, q, done->reason, NULL);
}

/* ---- changes around ---- */

/* Ids of all requests, in the order in which they were accepted: a list that holds while requests
 * come and go. Returns their number. */
static uint32_t list_requests(const struct router *r, uint64_t *ret_ids)
{
    memcpy(ret_ids, r->order, r->n * sizeof(r->order[0]));
    return r->n;
}

static void send_waiting(struct router *r, uint64_t now_ms)
{
    uint64_t ids[ROUTER_REQUESTS_MAX];
    uint32_t n = list_requests(r, ids);
    for (uint32_t i = 0; i < n; i++) {
        struct request *q = find_request(r, ids[i]);
        if (q != NULL && q->attempt == 0 && !q->is_cancelled)
            try_send(r, q, now_ms);
    }
}

void router_on_places(struct router *r, bool (*is_there)(void *self, const struct router_place *p),
                      uint64_t now_ms)
{
    uint64_t ids[ROUTER_REQUESTS_MAX];
    uint32_t n = list_requests(r, ids);
    for (uint32_t i = 0; i < n; i++) {
        struct request *q = find_request(r, ids[i]);
        if (q == NULL || q->attempt == 0)
            continue;
        struct router_place place = q->place;
        uint64_t attempt = q->attempt;
        if (!is_there(r->callbacks.self, &place) && (q = find_attempt(r, attempt)) != NULL) {
            error_set(&q->cause, E_PEERLOST, "its instance was stopped or lost");
            abandon_attempt(r, q, now_ms);
        }
    }
    send_waiting(r, now_ms);
}

void router_on_node_lost(struct router *r, const struct node_id *node, uint64_t now_ms)
{
    uint64_t ids[ROUTER_REQUESTS_MAX];
    struct node_id lost = *node;
    uint32_t n = list_requests(r, ids);
    for (uint32_t i = 0; i < n; i++) {
        struct request *q = find_request(r, ids[i]);
        if (q == NULL || q->attempt == 0 || !node_id_equal(&q->place.leader, &lost))
            continue;
        error_set(&q->cause, E_PEERLOST, "the node that led its instance was lost");
        lose_attempt(r, q, now_ms);
    }
}

static void end_if_late(struct router *r, struct request *q, uint64_t now_ms)
{
    if (q->is_cancelled) {
        if (!q->is_cancel_timed) {
            q->is_cancel_timed = true;
            q->cancelled_ms = now_ms;
        } else if (now_ms - q->cancelled_ms >= CANCEL_MS) {
            struct router_place place = q->place;
            uint64_t attempt = q->attempt;
            end_request(r, q, ROUTER_CANCELLED, NULL);
            r->callbacks.send_cancel(r->callbacks.self, &place, attempt);
        }
    } else if (q->attempt == 0 &&
               q->waited_ms + (now_ms - q->waiting_since_ms) >= ROUTER_PARKED_MS) {
        struct error err;
        int code = q->cause.code == E_BUSY ? E_BUSY : E_UNAVAILABLE;
        error_set(&err, code,
                  "no instance of model %s took the request within %d s, after %u tokens of the "
                  "answer%s%s",
                  q->model_id, ROUTER_PARKED_MS / 1000, count_generated(q),
                  q->cause.code != 0 ? ": " : "", q->cause.code != 0 ? q->cause.message : "");
        end_request(r, q, ROUTER_ERROR, &err);
    }
}

void router_tick(struct router *r, uint64_t now_ms)
{
    uint64_t ids[ROUTER_REQUESTS_MAX];
    uint32_t n = list_requests(r, ids);
    for (uint32_t i = 0; i < n; i++) {
        struct request *q = find_request(r, ids[i]);
        if (q != NULL)
            end_if_late(r, q, now_ms);
    }
    send_waiting(r, now_ms);
}

void router_end_all(struct router *r, int code, const char *message)
{
    uint64_t ids[ROUTER_REQUESTS_MAX];
    uint32_t n = list_requests(r, ids);
    struct error err;
    error_set(&err, code, "%s", message);
    for (uint32_t i = 0; i < n; i++) {
        struct request *q = find_request(r, ids[i]);
        if (q == NULL)
            continue;
        struct router_place place = q->place;
        uint64_t attempt = q->attempt;
        end_request(r, q, ROUTER_ERROR, &err);
        if (attempt != 0)
            r->callbacks.send_cancel(r->callbacks.self, &place, attempt);
    }
}

void router_count(const struct router *r, uint32_t *ret_sent, uint32_t *ret_parked)
{
    *ret_sent = *ret_parked = 0;
    for (uint32_t i = 0; i < r->n; i++)
        ++*(find_request(r, r->order[i])->attempt != 0 ? ret_sent : ret_parked);
}
