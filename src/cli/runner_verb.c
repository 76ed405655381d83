/* `shoal runner`: one rank, started by a node or by `shoal run` with the control link on descriptor
 * 3. Not for people. */
#include "cli/cli.h"
#include "runner/runner.h"

#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>

enum { LINK_FD = 3 };

int cli_runner(int argc, char **argv)
{
    int type;
    socklen_t len = sizeof(type);
    (void)argv;
    if (argc > 1 || getsockopt(LINK_FD, SOL_SOCKET, SO_TYPE, &type, &len) != 0 ||
        type != SOCK_STREAM) {
        fprintf(stderr,
                "shoal: `runner` is started by shoal itself, with a link on descriptor 3\n");
        return error_exit_code(E_INVALID);
    }
    /* Ctrl-C in a terminal reaches the whole group; the parent decides, and ends the link. */
    signal(SIGINT, SIG_IGN);
    signal(SIGPIPE, SIG_IGN);
    int rc = runner_main(LINK_FD, NULL);
    return rc == 0 ? 0 : error_exit_code(rc);
}
