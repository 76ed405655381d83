/*
 * A runner as its node sees it: a child process with a control link on its descriptor 3. Its death
 * is noticed at once; what it says is handed on frame by frame. Thread: the loop's; callbacks never
 * come from inside a call.
 */
#ifndef SHOAL_NODE_RUNNER_PROCESS_H
#define SHOAL_NODE_RUNNER_PROCESS_H

#include "base/buf.h"
#include "base/error.h"
#include "runner/protocol.h"

#include <stdint.h>
#include <uv.h>

enum {
    RUNNER_KILL_MS = 2000,
    RUNNER_RELEASE_MS = 1500,
    RUNNER_PING_MS = 1000,
    RUNNER_SILENCE_MS_MAX = 10000
};

struct runner_process; /* opaque */

struct runner_events {
    void *arg;
    /* One whole frame, as bytes and taken apart; both borrowed. PONG is not handed on. */
    void (*frame)(void *arg, const struct message *m, const void *frame, size_t n);
    /* The process is gone: exactly once, last. The object is freed afterwards. */
    void (*ended)(void *arg, const char *reason);
};

/* Errors: libuv's for spawn, E_NOMEM; then no event follows. */
int runner_process_start(uv_loop_t *loop, const char *program, const struct runner_events *events,
                         struct runner_process **ret_process, struct error *err);
/* Sends frames; takes the bytes and leaves the buffer empty. When it fails the process is killed,
 * and ended follows. */
void runner_process_send(struct runner_process *p, struct buf *frames);
/* Asks it to stop; kills it after RUNNER_KILL_MS. ended follows. */
void runner_process_stop(struct runner_process *p);
/* Asks it to end its task and to keep its weights. The next frame is RELEASED, which says that it
 * is ready for another LOAD; what it said for the old task is not handed on any more. Kills it
 * after RUNNER_RELEASE_MS without. */
void runner_process_release(struct runner_process *p);
/* What comes from now on is for somebody else. Of a process that has said RELEASED. */
void runner_process_hand_over(struct runner_process *p, const struct runner_events *events);
/* Ends it now; ended follows with this reason. */
void runner_process_kill(struct runner_process *p, const char *reason);
uint32_t runner_process_pid(const struct runner_process *p);

#endif
