#include "cli/device_probe.h"

#include <errno.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

struct answer {
    int rc;
    struct error err;
    struct engine_device device;
};

/* The child. What it writes fits into a pipe's buffer. */
static void ask(const char *name, int fd)
{
    struct answer a = {0};
    a.rc = engine_device_find(name, &a.device, &a.err);
    _exit(write(fd, &a, sizeof(a)) == (ssize_t)sizeof(a) ? 0 : 1);
}

static size_t read_answer(int fd, struct answer *ret)
{
    size_t n = 0;
    ssize_t got = 1;
    while (n < sizeof(*ret) && got != 0) {
        got = read(fd, (char *)ret + n, sizeof(*ret) - n);
        if (got < 0 && errno != EINTR)
            break;
        n += got > 0 ? (size_t)got : 0;
    }
    return n;
}

int device_probe(const char *name, struct engine_device *ret, struct error *err)
{
    int fds[2], status;
    struct answer a;
    if (pipe(fds) != 0)
        return error_set(err, E_IO, "no pipe: %s", strerror(errno));
    pid_t pid = fork();
    if (pid == 0)
        ask(name, fds[1]);
    close(fds[1]);
    size_t n = pid > 0 ? read_answer(fds[0], &a) : 0;
    close(fds[0]);
    if (pid < 0)
        return error_set(err, E_IO, "no process to look at devices: %s", strerror(errno));
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        continue;
    if (n != sizeof(a))
        return error_set(err, E_UNAVAILABLE, "the driver of the device '%s' ends who asks for it",
                         name);
    *ret = a.device;
    if (a.rc != 0 && err != NULL)
        *err = a.err;
    return a.rc;
}
