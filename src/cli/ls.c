/* `shoal ls`: the model files of this computer, or of a node; and what could be fetched by name. */
#include "cli/cli.h"
#include "cli/model_options.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { OPTION_ALL = 600 };

static const struct option options[] = {
    MODEL_OPTIONS,
    {"all", no_argument, NULL, OPTION_ALL},
    {NULL, 0, NULL, 0},
};

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text != NULL && text[0] != '\0' ? text : "-";
}

static void print_model(const json_t *m)
{
    char size[32], when[32] = "-";
    time_t modified = (time_t)json_integer_value(json_object_get(m, "modified_s"));
    struct tm tm;
    if (localtime_r(&modified, &tm) != NULL)
        strftime(when, sizeof(when), "%Y-%m-%d %H:%M", &tm);
    bool is_damaged = json_is_true(json_object_get(m, "is_damaged"));
    bool can_run = json_is_true(json_object_get(m, "can_run"));
    printf("%-40s %-22s %-10s %-8s %10s  %s%s\n", text_of(m, "name"), text_of(m, "card"),
           text_of(m, "architecture"), text_of(m, "quantization"),
           text_of_bytes((uint64_t)json_integer_value(json_object_get(m, "size_bytes")), size),
           when,
           is_damaged ? "  DAMAGED"
           : can_run  ? ""
                      : "  cannot run here");
}

static void print_card(const json_t *card)
{
    const json_t *list = json_object_get(card, "quantizations"), *q;
    size_t i;
    printf("%-24s %-10s %-8s %8s %8lld  ", text_of(card, "name"), text_of(card, "family"),
           text_of(card, "parameters"),
           json_is_true(json_object_get(card, "can_run")) ? "yes" : "no",
           (long long)json_integer_value(json_object_get(card, "context")));
    json_array_foreach(list, i, q) printf("%s%s", i > 0 ? " " : "", text_of(q, "name"));
    printf("\n");
}

static void print_answer(const json_t *answer, bool with_cards)
{
    const json_t *models = json_object_get(answer, "models"), *item;
    size_t i;
    if (json_array_size(models) == 0)
        printf(
            "No models are here; `shoal pull MODEL` fetches one, `shoal ls --all` lists names.\n");
    else
        printf("%-40s %-22s %-10s %-8s %10s  %s\n", "NAME", "MODEL", "ARCH", "QUANT", "SIZE",
               "MODIFIED");
    json_array_foreach(models, i, item) print_model(item);
    if (!with_cards)
        return;
    printf("\n%-24s %-10s %-8s %8s %8s  %s\n", "CAN BE FETCHED", "FAMILY", "PARAMS", "RUNS",
           "CONTEXT", "AS");
    json_array_foreach(json_object_get(answer, "cards"), i, item) print_card(item);
}

static int list_here(const struct model_options *o, bool with_cards, json_t **ret,
                     struct error *err)
{
    struct models *models = NULL;
    struct buf b;
    buf_init(&b, 64u << 20);
    int rc = model_options_open(o, &models, err);
    if (rc == 0)
        rc = models_append_json(models, with_cards, &b, err);
    if (rc == 0)
        rc = json_parse(buf_str(&b), b.len, ret, err);
    models_close(models);
    buf_done(&b);
    return rc;
}

int cli_ls(int argc, char **argv)
{
    struct model_options o;
    struct error err = {0};
    json_t *answer = NULL;
    bool with_cards = false;
    int key, rc = model_options_init(&o, &err);
    optind = 1;
    while (rc == 0 && !o.wants_help && (key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == OPTION_ALL)
            with_cards = true;
        else
            rc = model_option_take(&o, key, optarg, &err);
    }
    if (rc == 0 && o.wants_help) {
        printf("usage: shoal ls [--all] [options]\n\n"
               "Lists the models that are here.\n\n" MODEL_OPTIONS_HELP
               "  --all              also those that `shoal pull` knows by name\n");
        return 0;
    }
    if (rc == 0 && optind < argc)
        rc = error_set(&err, E_INVALID, "ls takes no argument: try `shoal ls --help`");
    if (rc == 0)
        rc = o.api != NULL ? model_api_call(o.api, "models", NULL, &answer, &err)
                           : list_here(&o, with_cards, &answer, &err);
    if (rc == 0 && o.as_json) {
        json_dumpf(answer, stdout, JSON_COMPACT);
        printf("\n");
    } else if (rc == 0) {
        print_answer(answer, with_cards);
    }
    json_decref(answer);
    return rc != 0 ? cli_fail(&err) : 0;
}
