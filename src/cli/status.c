/* `shoal status`: nodes, instances and shards of a cluster, as any of its nodes knows them. */
#include "base/buf.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cli/http_client.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct option options[] = {
    {"api", required_argument, NULL, 'a'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "-";
}

static long long number_of(const json_t *object, const char *key)
{
    return (long long)json_integer_value(json_object_get(object, key));
}

static double mib_of(const json_t *object, const char *key)
{
    return (double)number_of(object, key) / (1024.0 * 1024.0);
}

static int item_of(const json_t *object, const char *key, size_t index)
{
    return (int)json_integer_value(json_array_get(json_object_get(object, key), index));
}

static void print_nodes(const json_t *state)
{
    const json_t *node;
    size_t i;
    printf("%-16s %-9s %-22s %-22s %5s %12s %10s\n", "NODE", "STATUS", "API", "MESH", "CORES",
           "FREE MiB", "SEEN");
    json_array_foreach(json_object_get(state, "nodes"), i, node)
    {
        char seen[32];
        snprintf(seen, sizeof(seen), "%lld ms", number_of(node, "last_seen_ms"));
        printf("%-16s %-9s %-22s %-22s %5lld %12.0f %10s\n", text_of(node, "name"),
               text_of(node, "status"), text_of(node, "api"), text_of(node, "mesh"),
               number_of(node, "cores"), mib_of(node, "memory_bytes_free"),
               json_is_true(json_object_get(node, "is_self")) ? "this node" : seen);
    }
}

static void print_instance(const json_t *instance)
{
    const json_t *rank;
    size_t i;
    printf("\n%s: %s, %s, %lld slots of %lld tokens, %lld restarts\n", text_of(instance, "model"),
           text_of(instance, "status"), text_of(instance, "split"), number_of(instance, "n_slots"),
           number_of(instance, "n_ctx"), number_of(instance, "restarts"));
    if (text_of(instance, "error")[0] != '\0')
        printf("  last error: %s\n", text_of(instance, "error"));
    printf("  %4s %-16s %5s %-9s %-9s %12s %10s %8s %s\n", "RANK", "NODE", "STAGE", "LAYERS",
           "KV HEADS", "WEIGHTS MiB", "KV MiB", "PID", "STATUS");
    json_array_foreach(json_object_get(instance, "ranks"), i, rank)
    {
        char layers[32], heads[32];
        snprintf(layers, sizeof(layers), "%d-%d", item_of(rank, "layers", 0),
                 item_of(rank, "layers", 1) - 1);
        snprintf(heads, sizeof(heads), "%d-%d", item_of(rank, "kv_heads", 0),
                 item_of(rank, "kv_heads", 1) - 1);
        printf("  %4lld %-16s %5lld %-9s %-9s %12.1f %10.1f %8lld %s\n", number_of(rank, "rank"),
               text_of(rank, "node"), number_of(rank, "stage"), layers, heads,
               mib_of(rank, "weight_bytes"), mib_of(rank, "kv_bytes"), number_of(rank, "pid"),
               text_of(rank, "status"));
    }
}

static void print_state(const json_t *state)
{
    const json_t *requests = json_object_get(state, "requests"), *instance;
    size_t i;
    print_nodes(state);
    json_array_foreach(json_object_get(state, "instances"), i, instance) print_instance(instance);
    printf("\nrequests of this node: %lld running, %lld queued, %lld completed, %lld failed, %lld "
           "cancelled\n",
           number_of(requests, "running"), number_of(requests, "queued"),
           number_of(requests, "completed"), number_of(requests, "failed"),
           number_of(requests, "cancelled"));
}

static int show(const char *api, bool as_json)
{
    struct error err = {0};
    json_t *state = NULL;
    if (http_client_get_json(api, "/v1/cluster/state", &state, &err) != 0)
        return cli_fail(&err);
    if (as_json) {
        json_dumpf(state, stdout, JSON_COMPACT);
        printf("\n");
    } else {
        print_state(state);
    }
    json_decref(state);
    return 0;
}

int cli_status(int argc, char **argv)
{
    const char *api = CLI_DEFAULT_API;
    bool as_json = false;
    int key;
    optind = 1;
    while ((key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == 'a') {
            api = optarg;
        } else if (key == 'j') {
            as_json = true;
        } else {
            FILE *out = key == 'h' ? stdout : stderr;
            fprintf(out,
                    "usage: shoal status [--api URL] [--json]\n\n"
                    "Shows the cluster as the node at URL (default %s) knows it.\n",
                    api);
            return key == 'h' ? 0 : error_exit_code(E_INVALID);
        }
    }
    return show(api, as_json);
}
