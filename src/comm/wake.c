#include "comm/wake.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

int wake_init(struct wake *w, struct error *err)
{
    int fds[2];
    if (pipe(fds) != 0)
        return error_set(err, E_IO, "pipe: %s", strerror(errno));
    for (int i = 0; i < 2; i++) {
        fcntl(fds[i], F_SETFD, FD_CLOEXEC);
        fcntl(fds[i], F_SETFL, O_NONBLOCK);
    }
    w->fd = fds[0];
    w->write_fd = fds[1];
    return 0;
}

void wake_done(struct wake *w)
{
    close(w->fd);
    close(w->write_fd);
    w->fd = w->write_fd = -1;
}

void wake_signal(struct wake *w)
{
    /* A full pipe is readable too, so a byte that finds no room is not missed. */
    ssize_t n;
    do
        n = write(w->write_fd, "", 1);
    while (n < 0 && errno == EINTR);
}

void wake_clear(struct wake *w)
{
    char bytes[64];
    while (read(w->fd, bytes, sizeof(bytes)) == (ssize_t)sizeof(bytes))
        continue;
}
