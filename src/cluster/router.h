/*
 * The requests that one node has accepted from its clients, as pure bookkeeping: which instance
 * each is at, what its client has been given, and what is sent again when the instance is lost. A
 * request that was accepted ends exactly once. Its tokens are delivered in order, none lost, none
 * twice: after a loss it waits for an instance of its model and goes on with prompt + tokens so far
 * (sampling is keyed by (seed, position), so the rest is what the model says from there).
 *
 * No I/O, no clock. Answers go out through callbacks, called from inside the functions below; a
 * callback may call back into the router. Thread: one.
 */
#ifndef SHOAL_CLUSTER_ROUTER_H
#define SHOAL_CLUSTER_ROUTER_H

#include "base/error.h"
#include "cluster/node_id.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    ROUTER_REQUESTS_MAX = 640, /* what a head may have running and waiting, twice */
    ROUTER_PARKED_MS = 30000,  /* a request without an instance ends with an error after this */
    ROUTER_RETRY_MS = 200,     /* after an instance was busy */
};

struct router_place { /* where requests for a model can go now */
    struct node_id instance, leader;
    uint64_t epoch;
    uint32_t n_ctx;
};

struct router_attempt {        /* one sending of a request */
    uint64_t request, attempt; /* attempt: unique in this router; names the attempt towards the
                                  leader */
    struct router_place place;
    const int32_t *tokens;    /* prompt and what was generated so far */
    uint32_t n_tokens, n_max; /* n_max: tokens still to generate */
    const void *user;         /* the caller's settings, as given to router_submit */
};

enum router_finish { ROUTER_STOP, ROUTER_LENGTH, ROUTER_CANCELLED, ROUTER_ERROR };

struct router_done {
    enum router_finish reason;
    struct error error;          /* ROUTER_ERROR */
    uint32_t n_prompt, n_cached; /* n_cached: of the first attempt */
    uint32_t n_generated;        /* what the client was given */
    uint32_t n_repairs;
    uint64_t queue_ns, prefill_ns, decode_ns; /* of all attempts that said so */
};

struct router_callbacks {
    void *self;
    /* Returns whether there is an instance of this model that serves. */
    bool (*find_place)(void *self, const char *model_id, struct router_place *ret_place);
    /* Errors mean that it did not leave: it is sent again later. What `a` points to may be gone
       once send() calls back into the router. */
    int (*send)(void *self, const struct router_attempt *a);
    void (*send_cancel)(void *self, const struct router_place *place, uint64_t attempt);
    /* tokens: those of router_on_tokens that are new, where the caller has them. */
    void (*tokens)(void *self, void *arg, const int32_t *tokens, uint32_t n);
    void (*progress)(void *self, void *arg, uint32_t n_done, uint32_t n_prompt);
    void (*done)(void *self, void *arg, const struct router_done *done); /* the last call for arg */
};

struct router; /* opaque */

int router_new(const struct router_callbacks *callbacks, struct router **ret_router,
               struct error *err);
/* Ends nothing: router_end_all first. */
void router_free(struct router *r);

struct router_request {
    const char *model_id;
    const int32_t *tokens; /* prompt; copied */
    uint32_t n_tokens, n_max;
    const void *user; /* copied, user_len bytes: whatever send() needs beside tokens */
    size_t user_len;
};

/* Accepts a request, or refuses it: E_UNAVAILABLE when no instance of the model serves now, E_BUSY
 * when the table is full, E_INVALID without prompt or n_max, E_NOMEM; then there is no done. When
 * it is accepted, callbacks may come, even done, before this returns. */
int router_submit(struct router *r, const struct router_request *from, void *arg, uint64_t now_ms,
                  uint64_t *ret_request, struct error *err);
/* The client has gone: done follows, at once, when the leader has answered, or when it does not;
 * tokens do not. */
void router_cancel(struct router *r, uint64_t request);

/* From the leader of an attempt. n_before: tokens that this attempt generated before these. Unknown
 * attempts are ignored; what is there twice is skipped; after a gap the attempt is given up and the
 * request sent again. */
void router_on_tokens(struct router *r, uint64_t attempt, uint32_t n_before, const int32_t *tokens,
                      uint32_t n, uint64_t now_ms);
void router_on_progress(struct router *r, uint64_t attempt, uint32_t n_done, uint32_t n_prompt);
/* error.code E_PEERLOST or E_UNAVAILABLE: the instance was lost, the request goes on elsewhere.
 * n_generated: by this attempt; tokens that are missing then are asked for again. */
void router_on_done(struct router *r, uint64_t attempt, const struct router_done *done,
                    uint64_t now_ms);
/* Places have changed: attempts at (instance, epoch) that are no more are given up; requests that
 * wait are sent. is_there is asked for each place in use. */
void router_on_places(struct router *r, bool (*is_there)(void *self, const struct router_place *p),
                      uint64_t now_ms);
/* The node of these places is gone: its attempts are given up. */
void router_on_node_lost(struct router *r, const struct node_id *node, uint64_t now_ms);
/* Ends what has waited too long, sends again what was busy. To be called every 50 ms. */
void router_tick(struct router *r, uint64_t now_ms);
/* Ends all requests with this error. */
void router_end_all(struct router *r, int code, const char *message);

void router_count(const struct router *r, uint32_t *ret_sent, uint32_t *ret_parked);

#endif
