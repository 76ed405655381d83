/* `shoal rm`: removes a model's file from this computer, or from a node. */
#include "cli/cli.h"
#include "cli/model_options.h"

#include <stdio.h>
#include <stdlib.h>

static int remove_here(const struct model_options *o, const char *name, struct error *err)
{
    struct models *models = NULL;
    struct model_entry *e = malloc(sizeof(*e));
    int rc =
        e != NULL ? model_options_open(o, &models, err) : error_set(err, E_NOMEM, "out of memory");
    if (rc == 0)
        rc = models_remove(models, name, e, err);
    if (rc == 0 && o->as_json)
        printf("{\"ok\":true}\n");
    else if (rc == 0)
        printf("removed %s\n", e->path);
    models_close(models);
    free(e);
    return rc;
}

int cli_rm(int argc, char **argv)
{
    struct model_options o;
    struct error err = {0};
    const char *name = NULL;
    json_t *answer = NULL;
    int rc = model_options_parse(&o, argc, argv, &name, &err);
    if (rc == 0 && o.wants_help) {
        printf(
            "usage: shoal rm MODEL [options]\n\n"
            "Removes a model's file, and what was fetched of one that is not whole. A model that "
            "a\nnode serves goes on until it is unloaded; ask that node with --api, and it "
            "refuses.\n\n" MODEL_OPTIONS_HELP);
        return 0;
    }
    if (rc == 0 && o.api == NULL) {
        rc = remove_here(&o, name, &err);
    } else if (rc == 0) {
        rc = model_api_call(o.api, "remove", name, &answer, &err);
        if (rc == 0)
            printf(o.as_json ? "{\"ok\":true}\n" : "removed\n");
    }
    json_decref(answer);
    return rc != 0 ? cli_fail(&err) : 0;
}
