/* `shoal show`: what is known of a model, here or at a node, and of its card. */
#include "cli/cli.h"
#include "cli/model_options.h"
#include "store/files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OPTION_CHECK = 600 };

static const struct option options[] = {
    MODEL_OPTIONS,
    {"check", no_argument, NULL, OPTION_CHECK},
    {NULL, 0, NULL, 0},
};

static const char *text_of(const json_t *o, const char *key)
{
    const char *text = json_string_value(json_object_get(o, key));
    return text != NULL && text[0] != '\0' ? text : "-";
}

static long long number_of(const json_t *o, const char *key)
{
    return (long long)json_integer_value(json_object_get(o, key));
}

static void print_list(const char *title, const json_t *list, const char *key)
{
    const json_t *item;
    size_t i;
    printf("%-14s", title);
    json_array_foreach(list, i, item)
        printf(" %s", key != NULL ? text_of(item, key) : json_string_value(item));
    printf("\n");
}

static void print_model(const json_t *m)
{
    char size[32];
    printf("name           %s\n", text_of(m, "name"));
    printf("model          %s\n", text_of(m, "card"));
    printf("title          %s\n", text_of(m, "title"));
    printf("architecture   %s%s\n", text_of(m, "architecture"),
           json_is_true(json_object_get(m, "can_run")) ? "" : " (shoal cannot run it)");
    printf("parameters     %.2f billion\n", (double)number_of(m, "parameters") / 1e9);
    printf("layers         %lld\n", number_of(m, "layers"));
    printf("context        %lld tokens\n", number_of(m, "context"));
    printf("quantization   %s\n", text_of(m, "quantization"));
    print_list("capabilities", json_object_get(m, "capabilities"), NULL);
    printf("size           %s (%lld bytes)\n",
           text_of_bytes((uint64_t)number_of(m, "size_bytes"), size), number_of(m, "size_bytes"));
    printf("path           %s%s\n", text_of(m, "path"),
           json_is_true(json_object_get(m, "is_read_only")) ? " (only read)" : "");
    printf("came from      %s\n", text_of(m, "source"));
    printf("sha256         %s\n", text_of(m, "sha256"));
    if (json_is_true(json_object_get(m, "is_damaged")))
        printf("DAMAGED        %s\n", text_of(m, "problem"));
}

static void print_card(const json_t *card)
{
    printf("card           %s (%s, %s parameters, %lld layers, %lld tokens)%s\n",
           text_of(card, "name"), text_of(card, "family"), text_of(card, "parameters"),
           number_of(card, "layers"), number_of(card, "context"),
           json_is_true(json_object_get(card, "can_run")) ? "" : "; shoal cannot run it");
    print_list("as", json_object_get(card, "quantizations"), "name");
    print_list("also called", json_object_get(card, "aliases"), NULL);
}

/* {"model": {...}, "card": {...}}, each where there is one. */
static int describe(struct models *models, const char *name, bool must_check, struct buf *b,
                    struct error *err)
{
    char quantization[QUANTIZATION_BYTES];
    struct model_entry *e = malloc(sizeof(*e));
    const struct card *card = cards_find(models_cards(models), name, quantization);
    int rc = e == NULL    ? error_set(err, E_NOMEM, "out of memory")
             : must_check ? models_check(models, name, NULL, e, err)
                          : models_find(models, name, e, err);
    bool is_here = rc == 0;
    if (rc == E_NOTFOUND && card != NULL && !must_check)
        rc = 0;
    if (is_here && card == NULL && e->card[0] != '\0')
        card = cards_find(models_cards(models), e->card, quantization);
    if (rc == 0) {
        buf_append_char(b, '{');
        if (is_here) {
            buf_append_str(b, "\"model\":");
            model_entry_append_json(e, b);
        }
        if (card != NULL) {
            buf_append_str(b, is_here ? ",\"card\":" : "\"card\":");
            card_append_json(card, b);
        }
        buf_append_char(b, '}');
    }
    free(e);
    return rc;
}

static int show_here(const struct model_options *o, const char *name, bool must_check, json_t **ret,
                     struct error *err)
{
    struct models *models = NULL;
    struct buf b;
    buf_init(&b, 1 << 20);
    int rc = model_options_open(o, &models, err);
    if (rc == 0)
        rc = describe(models, name, must_check, &b, err);
    if (rc == 0)
        rc = json_parse(buf_str(&b), b.len, ret, err);
    models_close(models);
    buf_done(&b);
    return rc;
}

static void print_answer(const json_t *answer)
{
    const json_t *m = json_object_get(answer, "model"), *card = json_object_get(answer, "card");
    if (m != NULL)
        print_model(m);
    else
        printf("not on this computer\n");
    if (card != NULL)
        print_card(card);
}

int cli_show(int argc, char **argv)
{
    struct model_options o;
    struct error err = {0};
    json_t *answer = NULL;
    bool must_check = false;
    int key, rc = model_options_init(&o, &err);
    optind = 1;
    while (rc == 0 && !o.wants_help && (key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == OPTION_CHECK)
            must_check = true;
        else
            rc = model_option_take(&o, key, optarg, &err);
    }
    if (rc == 0 && o.wants_help) {
        printf("usage: shoal show MODEL [options]\n\n"
               "Says what is known of a model.\n\n" MODEL_OPTIONS_HELP
               "  --check            reads the whole file and compares its hash\n");
        return 0;
    }
    if (rc == 0 && argc - optind != 1)
        rc = error_set(&err, E_INVALID, "show takes one model: try `shoal show --help`");
    if (rc == 0)
        rc = o.api != NULL ? model_api_call(o.api, "show", argv[optind], &answer, &err)
                           : show_here(&o, argv[optind], must_check, &answer, &err);
    if (rc == 0 && o.as_json) {
        json_dumpf(answer, stdout, JSON_COMPACT);
        printf("\n");
    } else if (rc == 0) {
        print_answer(answer);
    }
    json_decref(answer);
    return rc != 0 ? cli_fail(&err) : 0;
}
