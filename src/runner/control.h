/*
 * A runner's end of the control link: one thread that reads frames into a bounded queue, answers
 * PING by itself (so also during a step), and acts when the link ends: a running step is aborted
 * and, in a process of its own, the process ends within CONTROL_EXIT_MS whatever the main thread
 * does. RELEASE aborts a running step, too, and leaves the rest to the main thread. Sending never
 * blocks: what the socket does not take waits in a bounded buffer.
 *
 * Thread: the functions below are for the main thread of the runner.
 */
#ifndef SHOAL_RUNNER_CONTROL_H
#define SHOAL_RUNNER_CONTROL_H

#include "base/buf.h"
#include "base/error.h"
#include "comm/comm.h"
#include "engine/engine.h"
#include "runner/protocol.h"

#include <stdbool.h>
#include <stdint.h>

enum { CONTROL_EXIT_MS = 1500 };

struct control; /* opaque */

struct command { /* one frame for the main thread */
    struct command *next;
    struct message message; /* payload is in this allocation */
};

/* Takes fd. owns_process: may end the process. Errors: E_IO, E_NOMEM. */
int control_open(int fd, bool owns_process, struct control **ret_control, struct error *err);
/* Sends what waits (for a bounded time), ends the thread, closes the link. NULL is fine. */
void control_close(struct control *c);

/* The next frame, waiting at most timeout_ms. Sets *ret_command NULL when there is none; owned by
 * the caller, free(). Errors: E_CANCELLED after STOP, RELEASE, or when the link was closed;
 * E_PROTOCOL when it brought nonsense, E_IO. */
int control_take(struct control *c, uint32_t timeout_ms, struct command **ret_command,
                 struct error *err);
/* 0 while the link is up, else why it ended, as control_take says it. */
int control_end(struct control *c, struct error *err);
/* Whether the node has said RELEASE. Commands from before are gone; those after it come once
 * control_take_release has been called, when nothing runs any more. */
bool control_is_released(struct control *c);
void control_take_release(struct control *c);
/* Sends frames. When the buffer is full the link counts as lost. */
void control_send(struct control *c, const struct buf *frames);

/* What to abort when the link ends; NULL before they are closed. */
void control_set_targets(struct control *c, struct comm *comm, struct engine *engine);
/* While idle, STOP or RELEASE is left to the main thread, which ends all ranks in order. */
void control_set_idle(struct control *c, bool is_idle);
/* Figures for the next PONG; nonce and memory are filled in by the thread. */
void control_publish(struct control *c, const struct message_pong *figures);

#endif
