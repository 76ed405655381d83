/*
 * All ranks of one instance on this computer, driven without a node: for `shoal run`, `shoal bench`
 * and tests. Ranks are threads (comm local) or child processes (comm tcp over loopback), and speak
 * the same control protocol either way. Blocking calls. Thread: one.
 */
#ifndef SHOAL_RUNNER_LOCAL_SET_H
#define SHOAL_RUNNER_LOCAL_SET_H

#include "base/error.h"
#include "engine/engine.h"
#include "runner/protocol.h"

#include <stdbool.h>
#include <stdint.h>

struct local_set; /* opaque */

struct local_set_options {
    const char *model_path;
    uint32_t n_ranks;  /* 0: 1 */
    const char *split; /* text for split_parse; NULL: "pipeline" */
    bool processes;    /* child processes and tcp; otherwise threads and local */
    bool has_comm;     /* processes was chosen by the user */
    bool pin;          /* rank r on processor r modulo their number */
    enum comm_wire wire;
    uint32_t n_chunk, n_draft; /* of the scheduler */
    struct engine_options engine;
    const char *program; /* path of the program that child processes run as `program runner`, with
                            the link on descriptor 3; NULL: this one */
};

/* Starts and loads all ranks; returns when all are ready. Errors: what a rank reported; E_PEERLOST
 * when one died. */
int local_set_start(const struct local_set_options *o, struct local_set **ret_set,
                    struct error *err);
/* Sends a request to the head. */
int local_set_submit(struct local_set *s, const struct message_submit *m, struct error *err);
int local_set_cancel(struct local_set *s, uint64_t request, struct error *err);
/* Waits for the head's next message (TOKENS, PROGRESS, DONE), at most timeout_ms. Borrows until the
 * next call. Errors: E_TIMEOUT; E_PEERLOST when any rank died. */
int local_set_next(struct local_set *s, uint32_t timeout_ms, struct message *ret_message,
                   struct error *err);
/* Asks a rank for its figures. */
int local_set_ping(struct local_set *s, uint32_t rank, struct message_pong *ret_pong,
                   struct error *err);
const struct message_ready *local_set_ready(const struct local_set *s, uint32_t rank);
uint32_t local_set_n_ranks(const struct local_set *s);
const struct split *local_set_split(const struct local_set *s);
/* Stops all ranks and waits for them (killed after 2 s). NULL is fine. */
void local_set_stop(struct local_set *s);

#endif
