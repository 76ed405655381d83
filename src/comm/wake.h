/* A file descriptor that any thread can make readable: ends a poll(2). A pipe, since not every
 * system has eventfd. */
#ifndef SHOAL_COMM_WAKE_H
#define SHOAL_COMM_WAKE_H

#include "base/error.h"

struct wake {
    int fd;       /* poll this for reading */
    int write_fd; /* not negative: the pipe is open */
};

/* Errors: E_IO. On failure there is nothing to undo. */
int wake_init(struct wake *w, struct error *err);
void wake_done(struct wake *w);
/* Thread: any. */
void wake_signal(struct wake *w);
/* Forgets the signals so far. */
void wake_clear(struct wake *w);

#endif
