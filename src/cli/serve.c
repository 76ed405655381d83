/* `shoal serve`: the daemon. */
#include "base/log.h"
#include "cli/cli.h"
#include "cli/instance_options.h"
#include "cli/node_options.h"
#include "node/node.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void print_help(void)
{
    printf(
        "usage: shoal serve [options]\n\n"
        "Makes this computer a node: finds the others of its cluster, serves the cluster's API, "
        "and\n"
        "the model, if one is given, on all of them.\n\n"
        "  --model MODEL        file, or name of one that is here (`shoal ls`)\n"
        "  --models DIR         another folder with models, only read; may be repeated\n"
        "  --hub URL            where models are fetched from (SHOAL_HUB)\n"
        "  --offline            fetches no models\n"
        "  --listen ADDR:PORT   where the API listens (default 127.0.0.1:%d)\n"
        "  --mesh ADDR:PORT     where other nodes connect (default 0.0.0.0:%d)\n"
        "  --peer ADDR:PORT     another node's mesh address; may be repeated\n"
        "  --route PEER=ADDR    tensors to that node (name or id) go to this address of it,\n"
        "                       whatever was measured; may be repeated\n"
        "  --no-discovery       does not look for other nodes by multicast DNS\n"
        "  --mlx                announces itself as _mlx-worker._tcp, too\n"
        "  --secret-file FILE   a secret that all nodes share: who knows it is a member\n"
        "  --api-keys FILE      keys that users of the API need, and what each may do\n"
        "  --closed             takes no requests to join, only invites and the secret\n"
        "  --name NAME          of this node (default: the host's)\n"
        "  --data-dir DIR       default $XDG_DATA_HOME/shoal\n"
        "  --split SPLIT        pipeline, tensor or SxT (S stages of T ranks); default: by the "
        "rule\n"
        "  --placement RULE     speed (default): what is predicted to be fastest; memory: over "
        "all\n"
        "                       nodes by their free memory\n"
        "  --memory MIB         that models may take here (default: what is free)\n"
        "  --no-measure         does not measure how fast this computer is\n"
        "  --threads N          compute threads of this node (default: all cores)\n"
        "  --device NAME        what computes here: cpu (default), auto (a GPU if there is one), "
        "or a\n"
        "                       name that `shoal devices` lists\n" INSTANCE_OPTIONS_HELP "\n"
        "A new node joins by `shoal invite` on a member and `shoal join` here, or by `shoal "
        "approve`.\n"
        "Links between nodes are encrypted; tensors between runners are authenticated, not\n"
        "encrypted. SIGTERM and SIGINT let requests finish; a second one stops at once.\n",
        NODE_API_PORT, NODE_MESH_PORT);
}

struct serve {
    uv_loop_t loop;
    uv_signal_t term, interrupt;
    struct node *node;
    bool is_stopping, is_ready;
    struct node_config config;
    int exit_code;
};

static void on_stopped(void *arg)
{
    struct serve *s = arg;
    s->node = NULL;
    uv_close((uv_handle_t *)&s->term, NULL);
    uv_close((uv_handle_t *)&s->interrupt, NULL);
    /* One that comes now, when the process is about to end well, would kill it. */
    signal(SIGTERM, SIG_IGN);
    signal(SIGINT, SIG_IGN);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct serve *s = handle->data;
    log_info("node", "signal %d -> %s", number, s->is_stopping ? "stop at once" : "stop");
    if (s->node != NULL)
        node_stop(s->node, s->is_stopping, on_stopped, s);
    s->is_stopping = true;
}

/* A model that cannot even be opened is the caller's mistake: say so and end, rather than serve
 * nothing. Everything else is tried again. */
static void on_model_refused(void *arg, const struct error *err)
{
    struct serve *s = arg;
    fprintf(stderr, "shoal: model %s: %s\n", s->config.model, err->message);
    s->exit_code = error_exit_code(err->code);
    s->is_stopping = true;
    node_stop(s->node, true, on_stopped, s);
}

static void on_serving(void *arg, const char *model_id, const char *split, uint32_t n_ranks)
{
    struct serve *s = arg;
    printf("shoal: model %s is ready (%s, %u rank%s) at http://%s:%u\n", model_id, split, n_ranks,
           n_ranks == 1 ? "" : "s", s->config.api.host, node_api_port(s->node));
    fflush(stdout);
}

static int serve(struct serve *s)
{
    struct error err = {0};
    struct node_events events = {
        .arg = s, .model_refused = on_model_refused, .serving = on_serving};
    uv_loop_init(&s->loop);
    int rc = node_start(&s->loop, &s->config, &events, &s->node, &err);
    if (rc != 0) {
        uv_run(&s->loop, UV_RUN_DEFAULT); /* what was begun ends */
        uv_loop_close(&s->loop);
        return cli_fail(&err);
    }
    uv_signal_init(&s->loop, &s->term);
    uv_signal_init(&s->loop, &s->interrupt);
    s->term.data = s->interrupt.data = s;
    uv_signal_start(&s->term, on_signal, SIGTERM);
    uv_signal_start(&s->interrupt, on_signal, SIGINT);
    printf("shoal: node %s serves its API at http://%s:%u, mesh at %s:%u%s\n", s->config.name,
           s->config.api.host, node_api_port(s->node), s->config.mesh.host, node_mesh_port(s->node),
           s->config.model[0] != '\0' ? "; the model is loading" : "");
    fflush(stdout);
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_loop_close(&s->loop);
    return s->exit_code;
}

int cli_serve(int argc, char **argv)
{
    struct error err = {0};
    struct serve *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_exit_code(E_NOMEM);
    bool wants_help = false;
    int rc = node_options_parse(argc, argv, &s->config, &wants_help, &err);
    if (rc == 0 && wants_help) {
        print_help();
        free(s);
        return 0;
    }
    if (rc != 0) {
        free(s);
        return cli_fail(&err);
    }
    /* Writes to a peer or client that has left are errors here, not signals. */
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN);
    char identity[96];
    snprintf(identity, sizeof(identity), "node=%s", s->config.name);
    log_set_identity(identity);
    int code = serve(s);
    free(s);
    return code;
}
