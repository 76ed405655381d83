#include "base/log.h"
#include "base/words.h"
#include "cli/cli.h"
#include "runner/runner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Every verb of the program, in the order of the help. A verb without help is for our own use. */
static const struct verb {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} verbs[] = {
    {"run", cli_run, "answer one prompt with a model, on this computer alone"},
    {"bench", cli_bench, "measure prefill and decode speed of a model on this computer"},
    {"serve", cli_serve, "be a node: serve the API, and a model over the connected nodes"},
    {"local", cli_local, "start several nodes on this computer, as a cluster to try out"},
    {"status", cli_status, "show the nodes, models and shards of a cluster"},
    {"profile", cli_profile, "show where the time of a running model goes, and what would help"},
    {"chat", cli_chat, "talk to a model that a cluster serves"},
    {"pull", cli_pull, "get a model: by name, from a hub, an address or a file"},
    {"ls", cli_ls, "list the models that are here"},
    {"show", cli_show, "show what is known of a model"},
    {"rm", cli_rm, "remove a model's file"},
    {"ps", cli_ps, "list the models that a cluster runs"},
    {"plan", cli_order, "show where a cluster would run a model, and how fast"},
    {"load", cli_order, "run a model on a cluster"},
    {"unload", cli_order, "end a model on a cluster"},
    {"drain", cli_order, "take all models from a node"},
    {"undrain", cli_order, "let a drained node take part again"},
    {"invite", cli_order, "print a line that lets one more machine join"},
    {"join", cli_order, "join the cluster that printed the line"},
    {"requests", cli_order, "list machines that ask to join"},
    {"approve", cli_order, "let such a machine join"},
    {"deny", cli_order, "refuse such a machine"},
    {"revoke", cli_order, "throw a node out of the cluster"},
    {"devices", cli_devices, "list what can compute here: processors and GPUs"},
    {"measure", cli_measure, NULL},
    {"runner", cli_runner, NULL},
};
enum { N_VERBS = sizeof(verbs) / sizeof(verbs[0]) };

static void print_help(FILE *out)
{
    fprintf(out, "shoal: turns the computers you own into one server for language models\n\n"
                 "usage: shoal VERB ...\n\n");
    for (size_t i = 0; i < N_VERBS; i++)
        if (verbs[i].help != NULL)
            fprintf(out, "  %-8s %s\n", verbs[i].name, verbs[i].help);
    fprintf(out, "\n`shoal VERB --help` says more. SHOAL_LOG=debug shows what happens inside.\n");
}

static int refuse_verb(const char *name)
{
    const char *nearest = NULL;
    size_t distance = 3; /* further away it is not a typing mistake */
    for (size_t i = 0; i < N_VERBS; i++) {
        size_t d = word_distance(name, verbs[i].name);
        if (verbs[i].help != NULL && d < distance) {
            nearest = verbs[i].name;
            distance = d;
        }
    }
    fprintf(stderr, "shoal: there is no verb '%s'", name);
    if (nearest != NULL)
        fprintf(stderr, "; did you mean '%s'?", nearest);
    fprintf(stderr, "\nTry `shoal --help`.\n");
    return error_exit_code(E_INVALID);
}

int main(int argc, char **argv)
{
    struct error err = {0};
    if (log_configure(getenv("SHOAL_LOG"), &err) != 0)
        return cli_fail(&err);
    if (argc < 2) {
        print_help(stderr);
        return error_exit_code(E_INVALID);
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_help(stdout);
        return 0;
    }
    if (strcmp(name, "--version") == 0) {
        printf("shoal %s\n", SHOAL_VERSION);
        return 0;
    }
    for (size_t i = 0; i < N_VERBS; i++)
        if (strcmp(name, verbs[i].name) == 0)
            return verbs[i].run(argc - 1, argv + 1);
    return refuse_verb(name);
}
