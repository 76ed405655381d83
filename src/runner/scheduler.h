/*
 * What the head does next: the queue of requests, the slots, and the plan of each step. All
 * decoding sequences get one token a step, and one sequence a chunk of its prompt. Pure: no I/O;
 * the time is passed in; results and cancellations come as calls, answers go out through callbacks.
 * Thread: one.
 */
#ifndef SHOAL_RUNNER_SCHEDULER_H
#define SHOAL_RUNNER_SCHEDULER_H

#include "base/error.h"
#include "runner/plan.h"
#include "runner/protocol.h"

#include <stdbool.h>
#include <stdint.h>

struct scheduler; /* opaque */

struct scheduler_options {
    uint32_t n_slots, n_ctx, n_batch, n_vocab;
    uint64_t step_ns_max; /* a chunk is cut so that a step stays below this, as far as earlier steps
                             tell; 0: no bound. Other ranks wait for a step with a deadline. */
};

struct scheduler_output { /* answers to the node; called from inside the functions below */
    void (*progress)(void *arg, const struct message_progress *m);
    void (*tokens)(void *arg, const struct message_tokens *m);
    void (*done)(void *arg, const struct message_done *m);
    void *arg;
};

/* A chunk while others decode: one long prompt may not stall them. */
enum { SCHEDULER_CHUNK_SHARED = 128 };
/* A chunk while the speed is not known yet (with step_ns_max). */
enum { SCHEDULER_CHUNK_FIRST = 128 };
/* A slot's cached tokens attract a request only when at least so many of them can be used. */
enum { SCHEDULER_PREFIX_MIN = 16 };

/* Errors: E_INVALID, E_NOMEM. */
int scheduler_new(const struct scheduler_options *o, const struct scheduler_output *output,
                  struct scheduler **ret_scheduler, struct error *err);
void scheduler_free(struct scheduler *s);

/* Queues a request (copied). A request that cannot run is answered at once with DONE and E_BUSY,
 * E_LIMIT or E_INVALID, and 0 is returned. Errors: E_PROTOCOL when its number is in use; E_NOMEM is
 * answered. */
int scheduler_submit(struct scheduler *s, const struct message_submit *m, uint64_t now_ns,
                     struct error *err);
/* Ends a request with DONE (cancelled); unknown ones are ignored. Not between plan and result. */
void scheduler_cancel(struct scheduler *s, uint64_t request, uint64_t now_ns);
/* Fills in the next step, except its number. Returns false when there is nothing to do. Each plan
 * must be followed by its result. */
bool scheduler_plan(struct scheduler *s, uint64_t now_ns, struct plan *ret_plan);
/* The rows of the step that scheduler_plan gave last: plan_n_rows of them. */
void scheduler_result(struct scheduler *s, const struct step_row *rows, uint64_t now_ns);

uint32_t scheduler_n_running(const struct scheduler *s);
uint32_t scheduler_n_queued(const struct scheduler *s);

#endif
