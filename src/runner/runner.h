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

/* Ranks of different versions do not run the same program and refuse each other. */
#ifndef SHOAL_VERSION
#define SHOAL_VERSION "0.1.0"
#endif

/* Serves control_fd (a connected stream socket, taken) until it ends. local_comm: this rank's comm
 * when all ranks are threads of this process (taken; LISTENING and CONNECT are then only
 * formalities), NULL for tcp. Returns 0 after STOP or a closed link, else the error that was
 * reported. Thread: blocks the calling one; starts one more for the control link. */
int runner_main(int control_fd, struct comm *local_comm);

#endif
