/* The child processes of `shoal local`: one node each. Blocking; the signals given to start are
 * blocked by the caller and waited for here. Thread: the main one. */
#ifndef SHOAL_CLI_LOCAL_NODES_H
#define SHOAL_CLI_LOCAL_NODES_H

#include "base/error.h"
#include "base/limits.h"
#include "cli/instance_options.h"

#include <signal.h>
#include <stdbool.h>
#include <stdint.h>

enum { LOCAL_NODES_MAX = 32 };

struct local_config {
    uint32_t n_nodes, n_threads;
    const char *option[N_INSTANCE_OPTIONS]; /* values of instance_options, as said; NULL: unsaid */
    char model[4096];                       /* absolute or relative path; "": none */
    const char *split;                      /* NULL: by the rule */
    const char *placement;                  /* NULL: memory, so that all nodes take part */
    const char *devices;                    /* between commas, one for each node; NULL: unsaid */
    const char *data_dir;                   /* NULL: temporary */
    bool json, wants_help;
};

struct local_set_of_nodes;

/* Starts all and waits until the model can be asked at each. Errors: E_CANCELLED when a signal
 * asked to stop; what a node reported. ret_set is set also then, for local_nodes_stop. */
int local_nodes_start(const struct local_config *c, const sigset_t *signals,
                      struct local_set_of_nodes **ret_set, struct error *err);
/* What runs where, for people or as JSON. */
int local_nodes_print(struct local_set_of_nodes *set, struct error *err);
/* Takes note of nodes that have ended, and says so on standard error. */
void local_nodes_reap(struct local_set_of_nodes *set);
uint32_t local_nodes_alive(const struct local_set_of_nodes *set);
/* Ends all, kills what does not end, removes temporary folders. NULL is fine. */
void local_nodes_stop(struct local_set_of_nodes *set, const sigset_t *signals);

#endif
