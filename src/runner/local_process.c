#include "runner/local_process.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;

enum { LINK_FD = 3, REAP_MS = 300 };

int local_process_start(const char *program, int link, pid_t *ret_pid, struct error *err)
{
    char path[4096];
    if (program == NULL) { /* this very program, even when its file was moved */
        ssize_t n = readlink("/proc/self/exe", path, sizeof(path) - 1);
        if (n <= 0)
            return error_set(err, E_IO, "cannot find this program's file: %s", strerror(errno));
        path[n] = '\0';
        program = path;
    }
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    if (posix_spawn_file_actions_init(&actions) != 0)
        return error_set(err, E_NOMEM, "no memory to start a runner");
    if (posix_spawnattr_init(&attributes) != 0) {
        posix_spawn_file_actions_destroy(&actions);
        return error_set(err, E_NOMEM, "no memory to start a runner");
    }
    /* dup2 onto itself clears close-on-exec in posix_spawn, so link may be 3 already. */
    int code = posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(&actions, STDERR_FILENO, STDOUT_FILENO);
    if (code == 0)
        code = posix_spawn_file_actions_adddup2(&actions, link, LINK_FD);
    sigset_t none;
    sigemptyset(&none);
    posix_spawnattr_setsigmask(&attributes, &none);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    char runner[] = "runner", name[] = "shoal";
    char *argv[] = {name, runner, NULL};
    if (code == 0)
        code = posix_spawn(ret_pid, program, &actions, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return code != 0 ? error_set(err, E_IO, "cannot start %s: %s", program, strerror(code)) : 0;
}

/* Reaps the child if it ends before the given time. */
static bool reap(pid_t pid, uint64_t until_ns, int *ret_status)
{
    for (;;) {
        pid_t n = waitpid(pid, ret_status, WNOHANG);
        if (n == pid || (n < 0 && errno == ECHILD))
            return true;
        if (clock_now_ns() >= until_ns)
            return false;
        nanosleep(&(struct timespec){.tv_nsec = 2000000}, NULL);
    }
}

void local_process_describe(pid_t pid, bool *is_reaped, int *exit_status, char *ret_text,
                            size_t size)
{
    if (!*is_reaped)
        *is_reaped = reap(pid, clock_now_ns() + REAP_MS * UINT64_C(1000000), exit_status);
    if (!*is_reaped)
        snprintf(ret_text, size, "closed its link");
    else if (WIFSIGNALED(*exit_status))
        snprintf(ret_text, size, "was killed by signal %d (%s)", WTERMSIG(*exit_status),
                 strsignal(WTERMSIG(*exit_status)));
    else
        snprintf(ret_text, size, "ended with exit code %d", WEXITSTATUS(*exit_status));
}

void local_process_end(pid_t pid, uint64_t until_ns)
{
    int status;
    if (reap(pid, until_ns, &status))
        return;
    kill(pid, SIGKILL);
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
}
