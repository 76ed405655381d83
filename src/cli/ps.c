/* `shoal ps`: the models that a cluster runs now, one line each. */
#include "cli/cli.h"
#include "cli/http_client.h"
#include "cli/model_options.h"

#include <stdio.h>
#include <string.h>

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text != NULL && text[0] != '\0' ? text : "-";
}

static void print_instance(const json_t *instance)
{
    const json_t *ranks = json_object_get(instance, "ranks"), *rank;
    const json_t *work = json_object_get(instance, "work");
    char size[32], nodes[256] = "";
    uint64_t bytes = 0;
    size_t i;
    json_array_foreach(ranks, i, rank)
    {
        bytes += (uint64_t)json_integer_value(json_object_get(rank, "weight_bytes")) +
                 (uint64_t)json_integer_value(json_object_get(rank, "kv_bytes"));
        size_t n = strlen(nodes);
        if (strstr(nodes, text_of(rank, "node")) == NULL)
            snprintf(nodes + n, sizeof(nodes) - n, "%s%.60s", n > 0 ? "," : "",
                     text_of(rank, "node"));
    }
    printf("%-32s %-10s %-10s %10s %8lld %8lld  %s\n", text_of(instance, "model"),
           text_of(instance, "status"), text_of(instance, "split"), text_of_bytes(bytes, size),
           (long long)json_integer_value(json_object_get(work, "running")),
           (long long)json_integer_value(json_object_get(instance, "n_ctx")), nodes);
}

int cli_ps(int argc, char **argv)
{
    struct model_options o;
    struct error err = {0};
    json_t *state = NULL;
    int rc = model_options_parse(&o, argc, argv, NULL, &err);
    if (rc == 0 && o.wants_help) {
        printf("usage: shoal ps [--api URL] [--json]\n\n"
               "Lists the models that the cluster runs (default %s); `shoal status` says more.\n",
               CLI_DEFAULT_API);
        return 0;
    }
    if (rc == 0)
        rc = http_client_get_json(o.api != NULL ? o.api : CLI_DEFAULT_API, "/v1/cluster/state",
                                  &state, &err);
    const json_t *instances = json_object_get(state, "instances"), *instance;
    size_t i;
    if (rc == 0 && o.as_json) {
        json_dumpf(instances, stdout, JSON_COMPACT);
        printf("\n");
    } else if (rc == 0) {
        printf("%-32s %-10s %-10s %10s %8s %8s  %s\n", "MODEL", "STATUS", "SPLIT", "MEMORY",
               "REQUESTS", "CONTEXT", "NODES");
        json_array_foreach(instances, i, instance) print_instance(instance);
    }
    json_decref(state);
    return rc != 0 ? cli_fail(&err) : 0;
}
