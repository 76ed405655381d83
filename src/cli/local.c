/* `shoal local N`: a cluster of N nodes on this computer, to try out and to test. Each node is a
 * `shoal serve` of its own, on free loopback ports, with its own data folder. */
#include "cli/cli.h"
#include "cli/instance_options.h"
#include "cli/local_nodes.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static void print_help(void)
{
    printf(
        "usage: shoal local N [options]\n\n"
        "Starts N nodes on this computer and connects them. Ends them all at SIGTERM or SIGINT.\n\n"
        "  --model MODEL    file, or name in the folder of models: served by all nodes together\n"
        "  --split SPLIT    pipeline, tensor, or SxT: S stages of T ranks\n"
        "  --placement RULE memory (default): a pipeline over all nodes; speed: what is predicted "
        "to\n"
        "                   be fastest\n"
        "  --threads N      compute threads of each node (default: cores / N)\n"
        "  --device A,B     what computes on each node: see `shoal serve "
        "--help`\n" INSTANCE_OPTIONS_HELP
        "  --data-dir DIR   keeps the nodes' folders there (default: temporary)\n"
        "  --json           once it serves, prints one JSON object that tells nodes and runners\n");
}

enum option_key {
    OPTION_MODEL = 1,
    OPTION_SPLIT,
    OPTION_PLACEMENT,
    OPTION_THREADS,
    OPTION_DEVICE,
    OPTION_DATA_DIR,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option options[] = {
    {"model", required_argument, NULL, OPTION_MODEL},
    {"split", required_argument, NULL, OPTION_SPLIT},
    {"placement", required_argument, NULL, OPTION_PLACEMENT},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"device", required_argument, NULL, OPTION_DEVICE},
    INSTANCE_OPTIONS,
    {"data-dir", required_argument, NULL, OPTION_DATA_DIR},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int take_option(int key, const char *value, struct local_config *c, struct error *err)
{
    switch (key) {
    case OPTION_MODEL:
        return cli_find_model(value, c->model, sizeof(c->model), err);
    case OPTION_SPLIT:
        c->split = value;
        return 0;
    case OPTION_PLACEMENT:
        c->placement = value;
        return 0;
    case OPTION_THREADS:
        return cli_parse_u32("--threads", value, 1, 1024, &c->n_threads, err);
    case OPTION_DEVICE:
        c->devices = value;
        return 0;
    case OPTION_DATA_DIR:
        c->data_dir = value;
        return 0;
    case OPTION_JSON:
        c->json = true;
        return 0;
    case OPTION_HELP:
        c->wants_help = true;
        return 0;
    default:
        if (key >= INSTANCE_OPTION_FIRST) {
            struct instance_options checked = {0};
            c->option[key - INSTANCE_OPTION_FIRST] = value;
            return instance_option_take(&checked, (enum instance_option)key, value, err);
        }
        return error_set(err, E_INVALID, "see `shoal local --help`");
    }
}

static int parse(int argc, char **argv, struct local_config *c, struct error *err)
{
    int key, rc = 0;
    optind = 1;
    while (rc == 0 && !c->wants_help && (key = getopt_long(argc, argv, "", options, NULL)) != -1)
        rc = take_option(key, optarg, c, err);
    if (rc != 0 || c->wants_help)
        return rc;
    if (optind + 1 != argc)
        return error_set(err, E_INVALID, "say how many nodes: `shoal local 3 --model MODEL`");
    rc = cli_parse_u32("N", argv[optind], 1, LOCAL_NODES_MAX, &c->n_nodes, err);
    if (rc == 0 && c->n_threads == 0)
        c->n_threads = cli_default_threads(c->n_nodes);
    return rc;
}

/* Until a signal asks to stop: reaps nodes that end, says so, and goes on. */
static void stay(struct local_set_of_nodes *set, const sigset_t *signals)
{
    for (;;) {
        struct timespec second = {.tv_sec = 1};
        int number = sigtimedwait(signals, NULL, &second);
        local_nodes_reap(set);
        if (number == SIGTERM || number == SIGINT || local_nodes_alive(set) == 0)
            return;
    }
}

int cli_local(int argc, char **argv)
{
    struct local_config config = {0};
    struct local_set_of_nodes *set = NULL;
    struct error err = {0};
    sigset_t signals;
    int rc = parse(argc, argv, &config, &err);
    if (rc == 0 && config.wants_help) {
        print_help();
        return 0;
    }
    if (rc != 0)
        return cli_fail(&err);
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGCHLD);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    signal(SIGPIPE, SIG_IGN);
    rc = local_nodes_start(&config, &signals, &set, &err);
    if (rc == 0)
        rc = local_nodes_print(set, &err);
    if (rc == 0)
        stay(set, &signals);
    local_nodes_stop(set, &signals);
    return rc != 0 && rc != E_CANCELLED ? cli_fail(&err) : 0;
}
