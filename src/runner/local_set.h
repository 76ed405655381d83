/*
 * All ranks of one instance, driven without a node: for `shoal run`, `shoal bench` and tests. Ranks
 * are threads (comm local), child processes (comm tcp or ucx over loopback), or what mpirun started
 * (comm mpi): then each process has one rank as a thread, and that of rank 0 drives. They speak the
 * same control protocol either way. Blocking calls. Thread: one.
 */
#ifndef SHOAL_RUNNER_LOCAL_SET_H
#define SHOAL_RUNNER_LOCAL_SET_H

#include "base/error.h"
#include "engine/engine.h"
#include "runner/protocol.h"

#include <stdbool.h>
#include <stdint.h>

struct local_set; /* opaque */

enum local_set_comm {
    LOCAL_SET_LOCAL, /* threads of this process */
    LOCAL_SET_TCP,   /* child processes */
    LOCAL_SET_UCX,   /* likewise */
    LOCAL_SET_MPI,   /* processes that mpirun started; this is one */
    LOCAL_SET_COMM_COUNT,
};
/* "local", "tcp", "ucx", "mpi". */
bool local_set_comm_parse(const char *text, enum local_set_comm *ret);
const char *local_set_comm_name(enum local_set_comm comm);

struct local_set_options {
    const char *model_path;
    uint32_t n_ranks;  /* 0: 1 */
    const char *split; /* text for split_parse; NULL: "pipeline" */
    enum local_set_comm comm;
    bool has_comm;     /* comm was chosen by the user */
    uint32_t mpi_rank; /* MPI: which of the n_ranks that MPI started this process is */
    bool pin;          /* rank r on processor r modulo their number */
    enum comm_wire wire;
    uint32_t n_chunk, n_draft; /* of the scheduler */
    char draft_path[4096];     /* of a small model that guesses ahead; "": none */
    struct engine_options engine;
    const char *devices; /* names between commas, one for each rank (engine/devices.h); NULL: that
                            of engine for all */
    const char *program; /* path of the program that child processes run as `program runner`, with
                            the link on descriptor 3; NULL: this one */
};

/* Starts and loads all ranks; returns when all are ready. Errors: what a rank reported; E_PEERLOST
 * when one died. */
int local_set_start(const struct local_set_options *o, struct local_set **ret_set,
                    struct error *err);
/* MPI, where mpi_rank is not 0: runs this process's rank until the head stops. That the head is
 * lost is no error here, because it is one of mpirun. Errors: as local_set_start. */
int local_set_follow(const struct local_set_options *o, struct error *err);
/* Sends a request to the head. */
int local_set_submit(struct local_set *s, const struct message_submit *m, struct error *err);
int local_set_cancel(struct local_set *s, uint64_t request, struct error *err);
/* Waits for the head's next message (TOKENS, PROGRESS, DONE), at most timeout_ms. Borrows until the
 * next call. Errors: E_TIMEOUT; E_PEERLOST when any rank died. */
int local_set_next(struct local_set *s, uint32_t timeout_ms, struct message *ret_message,
                   struct error *err);
/* Asks a rank for its figures; all zero for one of another process. */
int local_set_ping(struct local_set *s, uint32_t rank, struct message_pong *ret_pong,
                   struct error *err);
/* NULL for a rank of another process. */
const struct message_ready *local_set_ready(const struct local_set *s, uint32_t rank);
uint32_t local_set_n_ranks(const struct local_set *s);
const struct split *local_set_split(const struct local_set *s);
/* Stops all ranks and waits for them (killed after 2 s). NULL is fine. */
void local_set_stop(struct local_set *s);

#endif
