/* Child processes of a local set: started as `program runner` with the link on descriptor 3.
 * Private to this folder. Thread: any, each child by one. */
#ifndef SHOAL_RUNNER_LOCAL_PROCESS_H
#define SHOAL_RUNNER_LOCAL_PROCESS_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Borrows link. Standard input is empty, standard output goes to standard error: the parent's own
 * output stays clean. Errors: E_IO. */
int local_process_start(const char *program, int link, pid_t *ret_pid, struct error *err);
/* Says how a child ended ("was killed by signal 9 (Killed)"), reaping it if it can be soon. */
void local_process_describe(pid_t pid, bool *is_reaped, int *exit_status, char *ret_text,
                            size_t size);
/* Waits for the child until the given time, then kills it. It is gone afterwards. */
void local_process_end(pid_t pid, uint64_t until_ns);

#endif
