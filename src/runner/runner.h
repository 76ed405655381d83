/*
 * A runner: the process (or thread) around one engine. It obeys a control link (runner/protocol.h),
 * connects to the other ranks, and runs the step loop; rank 0 plans the steps for all
 * (runner/scheduler.h) and broadcasts each plan over comm. When idle the head sends an empty plan
 * every second, so that every wait has a deadline. The loop ends when the control link closes, at
 * STOP, at RELEASE, or at an error, which is reported with FAILED.
 *
 * After RELEASE, and after an error that is other ranks' doing, the runner is free: it has closed
 * all but its weights, and waits for RELEASE, for another LOAD, which finds them, or for its end.
 */
#ifndef SHOAL_RUNNER_RUNNER_H
#define SHOAL_RUNNER_RUNNER_H

#include "base/error.h"
#include "comm/comm.h"
#include "runner/protocol.h"

/* Ranks of different versions do not run the same program and refuse each other. */
#ifndef SHOAL_VERSION
#define SHOAL_VERSION "0.1.0"
#endif

/* SHA-256 of everything that must be the same on all ranks for their steps to fit together. */
int runner_hash_program(const struct message_load *load, const uint8_t model_hash[32],
                        uint8_t ret_hash[32], struct error *err);

/* Serves control_fd (a connected stream socket, taken) until it ends. local_comm: this rank's comm
 * when the rank is a thread, and all ranks are, or MPI started the others (taken; LISTENING and
 * CONNECT are then only formalities); NULL in a process of its own. Returns 0 after STOP or a
 * closed link, else the error that was reported. Thread: blocks the calling one; starts one more
 * for the control link. */
int runner_main(int control_fd, struct comm *local_comm);

#endif
