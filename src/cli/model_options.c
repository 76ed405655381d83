#include "cli/model_options.h"

#include "cli/cli.h"
#include "cli/http_client.h"
#include "cli/node_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ANSWER_BYTES_MAX = 16 << 20, TIMEOUT_MS = 60000 };

static int add_folder(struct model_options *o, const char *folder, struct error *err)
{
    if (folder[0] == '\0' || o->n_folders == MODELS_FOLDERS_MAX)
        return error_set(err, E_INVALID, "--models: at most %d folders, each with a name",
                         MODELS_FOLDERS_MAX);
    o->folders[o->n_folders++] = folder;
    return 0;
}

int model_options_init(struct model_options *o, struct error *err)
{
    const char *offline = getenv("SHOAL_OFFLINE");
    char *folders = getenv("SHOAL_MODELS");
    int rc = 0;
    memset(o, 0, sizeof(*o));
    o->hub = getenv("SHOAL_HUB");
    o->token = getenv("HF_TOKEN");
    o->is_offline = offline != NULL && offline[0] != '\0' && strcmp(offline, "0") != 0;
    while (rc == 0 && folders != NULL && folders[0] != '\0') {
        char *colon = strchr(folders, ':');
        size_t n = colon != NULL ? (size_t)(colon - folders) : strlen(folders);
        char *folder = n > 0 ? strndup(folders, n) : NULL; /* for the life of the process */
        rc = folder != NULL ? add_folder(o, folder, err) : 0;
        if (rc != 0)
            free(folder);
        folders = colon != NULL ? colon + 1 : NULL;
    }
    return rc;
}

int model_option_take(struct model_options *o, int key, const char *value, struct error *err)
{
    switch (key) {
    case MODEL_OPTION_API:
        o->api = value;
        return 0;
    case MODEL_OPTION_DATA_DIR:
        if (value[0] == '\0' || strlen(value) >= sizeof(o->data_dir))
            return error_set(err, E_INVALID, "--data-dir: must have 1 to %zu characters",
                             sizeof(o->data_dir) - 1);
        memcpy(o->data_dir, value, strlen(value) + 1);
        return 0;
    case MODEL_OPTION_MODELS:
        return add_folder(o, value, err);
    case MODEL_OPTION_JSON:
        o->as_json = true;
        return 0;
    case MODEL_OPTION_HUB:
        o->hub = value;
        return 0;
    case MODEL_OPTION_OFFLINE:
        o->is_offline = true;
        return 0;
    case MODEL_OPTION_HELP:
        o->wants_help = true;
        return 0;
    default:
        return error_set(err, E_INVALID, "--help says which options there are");
    }
}

int model_options_parse(struct model_options *o, int argc, char **argv, const char **ret_argument,
                        struct error *err)
{
    static const struct option options[] = {MODEL_OPTIONS, {NULL, 0, NULL, 0}};
    int key, rc = model_options_init(o, err);
    optind = 1;
    while (rc == 0 && !o->wants_help && (key = getopt_long(argc, argv, "", options, NULL)) != -1)
        rc = model_option_take(o, key, optarg, err);
    if (rc != 0 || o->wants_help)
        return rc;
    int n = argc - optind, n_wanted = ret_argument != NULL ? 1 : 0;
    if (n != n_wanted)
        return error_set(err, E_INVALID, "%s takes %s, not %d: try `shoal %s --help`", argv[0],
                         n_wanted > 0 ? "one model" : "no argument", n, argv[0]);
    if (ret_argument != NULL)
        *ret_argument = argv[optind];
    return 0;
}

int model_options_open(const struct model_options *o, struct models **ret_models, struct error *err)
{
    char data_dir[3072];
    int rc = 0;
    if (o->data_dir[0] != '\0')
        memcpy(data_dir, o->data_dir, sizeof(data_dir));
    else
        rc = node_options_data_dir(data_dir, sizeof(data_dir), err);
    struct models_config config = {
        .data_dir = data_dir, .n_folders = o->n_folders, .folders = o->folders};
    return rc != 0 ? rc : models_open(&config, ret_models, err);
}

int model_api_call(const char *api, const char *verb, const char *name, json_t **ret_answer,
                   struct error *err)
{
    char url[512];
    struct buf body, answer;
    json_t *value = NULL;
    long status = 0;
    int n = snprintf(url, sizeof(url), "%s/v1/cluster/%s", api, verb);
    if (n < 0 || (size_t)n >= sizeof(url))
        return error_set(err, E_INVALID, "--api: the address is too long");
    buf_init(&body, 65536);
    buf_init(&answer, ANSWER_BYTES_MAX);
    buf_append_char(&body, '{');
    if (name != NULL) {
        buf_append_str(&body, "\"model\":");
        json_append_string(&body, name, strlen(name));
    }
    buf_append_char(&body, '}');
    int rc = body.error != 0
                 ? error_set(err, E_INVALID, "the model's name is too long")
                 : http_client_get(url, buf_str(&body), TIMEOUT_MS, &answer, &status, err);
    if (rc == 0 && status != 200)
        rc = http_client_refuse(url, status, &answer, err);
    if (rc == 0 && json_parse(buf_str(&answer), answer.len, &value, err) != 0)
        rc = E_UNAVAILABLE;
    buf_done(&body);
    buf_done(&answer);
    if (rc != 0)
        json_decref(value);
    else
        *ret_answer = value;
    return rc;
}

const char *text_of_bytes(uint64_t bytes, char text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    size_t unit = 0;
    while (v >= 1000 && unit + 1 < sizeof(units) / sizeof(units[0])) {
        v /= 1024;
        unit++;
    }
    snprintf(text, 32, unit == 0 || v >= 99.95 ? "%.0f %s" : "%.1f %s", v, units[unit]);
    return text;
}

const char *text_of_seconds(int64_t s, char text[32])
{
    if (s < 60)
        snprintf(text, 32, "%lld s", (long long)s);
    else if (s < 3600)
        snprintf(text, 32, "%lld min %lld s", (long long)(s / 60), (long long)(s % 60));
    else
        snprintf(text, 32, "%lld h %lld min", (long long)(s / 3600), (long long)(s / 60 % 60));
    return text;
}
