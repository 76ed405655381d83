/* What the verbs about model files (pull, ls, show, rm) share: their options, the store on this
 * computer, the same of a node, and figures as people read them. Thread: the main one. */
#ifndef SHOAL_CLI_MODEL_OPTIONS_H
#define SHOAL_CLI_MODEL_OPTIONS_H

#include "base/error.h"
#include "base/json.h"
#include "store/models.h"
#include "store/pull.h"

#include <getopt.h>
#include <stdbool.h>

struct model_options {
    const char *api; /* NULL: the files of this computer */
    char data_dir[3072];
    uint32_t n_folders;
    const char *folders[MODELS_FOLDERS_MAX];
    const char *hub, *token;
    bool is_offline, as_json, wants_help;
};

enum model_option {
    MODEL_OPTION_API = 500,
    MODEL_OPTION_DATA_DIR,
    MODEL_OPTION_MODELS,
    MODEL_OPTION_JSON,
    MODEL_OPTION_HELP,
    MODEL_OPTION_HUB,
    MODEL_OPTION_OFFLINE,
};

#define MODEL_OPTIONS                                                                              \
    {"api", required_argument, NULL, MODEL_OPTION_API},                                            \
        {"data-dir", required_argument, NULL, MODEL_OPTION_DATA_DIR},                              \
        {"models", required_argument, NULL, MODEL_OPTION_MODELS},                                  \
        {"json", no_argument, NULL, MODEL_OPTION_JSON},                                            \
    {                                                                                              \
        "help", no_argument, NULL, MODEL_OPTION_HELP                                               \
    }

#define MODEL_OPTIONS_HELP                                                                         \
    "  --api URL          the files of a node, not of this computer\n"                             \
    "  --data-dir DIR     default $XDG_DATA_HOME/shoal\n"                                          \
    "  --models DIR       another folder with models, which is only read; may be repeated\n"       \
    "  --json             the answer as JSON\n"

/* With what the environment says: SHOAL_HUB, HF_TOKEN, SHOAL_OFFLINE, SHOAL_MODELS (folders with
 * ':' between). Errors: E_INVALID. */
int model_options_init(struct model_options *o, struct error *err);
/* Takes one of MODEL_OPTION_*. Errors: E_INVALID. */
int model_option_take(struct model_options *o, int key, const char *value, struct error *err);
/* Parses options that are only MODEL_OPTIONS, and at most one argument (NULL: none). */
int model_options_parse(struct model_options *o, int argc, char **argv, const char **ret_argument,
                        struct error *err);
int model_options_open(const struct model_options *o, struct models **ret_models,
                       struct error *err);

/* POSTs {"model": name} (name NULL: {}) to the verb of a node. Owns: the caller, json_decref. */
int model_api_call(const char *api, const char *verb, const char *name, json_t **ret_answer,
                   struct error *err);

/* "1.9 GiB", "7 s", "1 min 20 s". Returns text. */
const char *text_of_bytes(uint64_t bytes, char text[32]);
const char *text_of_seconds(int64_t s, char text[32]);

#endif
