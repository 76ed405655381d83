/*
 * What the head does next: the queue of requests, the slots, the blocks of the KV cache, and the
 * plan of each step (continuous batching: Yu et al., Orca, OSDI 2022; chunks of prompts beside
 * decoding: Agrawal et al., Sarathi-Serve, OSDI 2024). A step has one token, or a token and drafts,
 * of sequences that decode, and chunks of as many prompts as fit into its budget. With stages, as
 * many steps may be under way as there are stages: chunks of one prompt follow each other, and
 * decoding sequences are spread over the steps.
 *
 * Pure, but for a draft model that runs while a step is planned: no I/O; the time is passed in;
 * results and cancellations come as calls, answers go out through callbacks. Thread: one.
 */
#ifndef SHOAL_RUNNER_SCHEDULER_H
#define SHOAL_RUNNER_SCHEDULER_H

#include "base/error.h"
#include "runner/draft.h"
#include "runner/plan.h"
#include "runner/protocol.h"

#include <stdbool.h>
#include <stdint.h>

struct scheduler; /* opaque */

struct scheduler_options {
    uint32_t n_slots, n_ctx, n_batch, n_vocab;
    uint32_t block_tokens, n_blocks; /* of the KV cache */
    uint32_t n_attached_max;         /* blocks in all slots together */
    uint32_t n_in_flight;            /* steps under way at once: the number of stages; 0: 1 */
    uint32_t n_chunk; /* tokens of prompts in a step that also decodes; 0: SCHEDULER_CHUNK */
    uint32_t n_draft; /* tokens guessed ahead at most; 0: none; at most LIMIT_DRAFT_TOKENS */
    const struct draft_source *draft_model; /* guesses where the text itself does not tell; its
                                               cost() is needed. Borrowed; NULL: none */
    uint64_t
        step_ns_max; /* chunks are cut so that a step stays below this, as far as earlier
                        steps tell; 0: no bound. Other ranks wait for a step with a deadline. */
};

struct scheduler_output { /* answers to the node; called from inside the functions below */
    void (*progress)(void *arg, const struct message_progress *m);
    void (*tokens)(void *arg, const struct message_tokens *m);
    void (*done)(void *arg, const struct message_done *m);
    void *arg;
};

/* Tokens guessed ahead where nobody says otherwise. */
enum { SCHEDULER_DRAFT_DEFAULT = 8 };
/* Prompt tokens in a step with decoding sequences: one long prompt may not stall them. */
enum { SCHEDULER_CHUNK = 128 };
/* A chunk while the speed is not known yet (with step_ns_max). */
enum { SCHEDULER_CHUNK_FIRST = 128 };
enum { SCHEDULER_IN_FLIGHT_MAX = LIMIT_STAGES };

/* Errors: E_INVALID, E_NOMEM. */
int scheduler_new(const struct scheduler_options *o, const struct scheduler_output *output,
                  struct scheduler **ret_scheduler, struct error *err);
void scheduler_free(struct scheduler *s);

/* Queues a request (copied). A request that cannot run is answered at once with DONE and E_BUSY,
 * E_LIMIT or E_INVALID, and 0 is returned. Errors: E_PROTOCOL when its number is in use; E_NOMEM is
 * answered. */
int scheduler_submit(struct scheduler *s, const struct message_submit *m, uint64_t now_ns,
                     struct error *err);
/* The same for a request that has a grammar, which has been told what was generated before
 * (m->tokens behind m->sampling.n_prompt). Takes the grammar, also on failure. A sequence ends with
 * FINISH_STOP where nothing can follow. */
int scheduler_submit_grammar(struct scheduler *s, const struct message_submit *m,
                             struct grammar *grammar, uint64_t now_ns, struct error *err);
/* Ends a request with DONE (cancelled) at once; unknown ones are ignored. What steps under way
 * still compute for it is dropped when they end. */
void scheduler_cancel(struct scheduler *s, uint64_t request, uint64_t now_ns);
/* Fills in the next step, except its number. Masks are borrowed until the step's result, or until
 * a request is cancelled. Returns false when there is nothing to do before a
 * result, or when n_in_flight steps are under way. */
bool scheduler_plan(struct scheduler *s, uint64_t now_ns, struct plan *ret_plan);
/* The rows of the oldest step under way: plan_n_rows of them. logprobs: of the rows that ask; NULL
 * when none does. */
void scheduler_result(struct scheduler *s, const struct step_row *rows,
                      const struct logprobs *logprobs, uint64_t now_ns);

uint32_t scheduler_n_in_flight(const struct scheduler *s);
uint32_t scheduler_n_running(const struct scheduler *s);
uint32_t scheduler_n_queued(const struct scheduler *s);
void scheduler_get_stats(const struct scheduler *s, struct scheduler_stats *ret_stats);

#endif
