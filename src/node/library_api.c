/* The model files of this node as the API has them (struct api_backend): fetching and removing. */
#include "base/json.h"
#include "node/internal.h"
#include "store/pull.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct api_pull { /* of one client */
    struct api_pull_events events;
    void *arg;
};

struct api_removal {
    void (*done)(void *arg, const struct error *err);
    void *arg;
};

static void on_status(void *arg, const struct pull_status *s)
{
    const struct api_pull *p = arg;
    struct api_pull_status status = {
        .phase = strcmp(s->phase, "fetching") == 0  ? API_PULL_FETCHING
                 : strcmp(s->phase, "waiting") == 0 ? API_PULL_WAITING
                                                    : API_PULL_LOOKING,
        .file = s->file,
        .n_total = s->progress.total_bytes,
        .n_done = s->progress.downloaded_bytes,
    };
    p->events.status(p->arg, &status);
}

static void on_pulled(void *arg, const struct model_entry *entry, bool was_there,
                      const struct error *err)
{
    struct api_pull *p = arg;
    struct error none = {0};
    (void)was_there;
    p->events.done(p->arg, entry != NULL ? &none : err);
    free(p);
}

int library_api_pull(void *self, const char *name, const struct api_pull_events *events, void *arg,
                     uint64_t *ret_id, struct error *err)
{
    struct node *n = self;
    struct api_pull *p = malloc(sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "out of memory to fetch %.200s", name);
    *p = (struct api_pull){.events = *events, .arg = arg};
    const struct pull_options options = {.name = name};
    const struct pull_events ours = {.arg = p, .status = on_status, .done = on_pulled};
    int rc = puller_pull(n->puller, &options, &ours, ret_id, err);
    if (rc != 0)
        free(p);
    return rc;
}

void library_api_cancel(void *self, uint64_t id)
{
    struct node *n = self;
    puller_cancel(n->puller, id);
}

static int code_of(int http_status)
{
    return http_status == 200   ? 0
           : http_status == 404 ? E_NOTFOUND
           : http_status < 500  ? E_BUSY
                                : E_IO;
}

static void on_removed(void *arg, int http_status, const char *json, size_t len)
{
    struct api_removal *r = arg;
    struct error err = {.code = code_of(http_status)}, unused;
    json_t *body = NULL;
    if (err.code != 0 && json_parse(json, len, &body, &unused) == 0) {
        const char *why =
            json_string_value(json_object_get(json_object_get(body, "error"), "message"));
        snprintf(err.message, sizeof(err.message), "%s", why != NULL ? why : "it failed");
    }
    json_decref(body);
    r->done(r->arg, &err);
    free(r);
}

int library_api_remove(void *self, const char *name,
                       void (*done)(void *arg, const struct error *err), void *arg,
                       struct error *err)
{
    struct node *n = self;
    struct api_removal *r = malloc(sizeof(*r));
    json_t *body = json_pack("{s:s}", "model", name);
    int rc = r != NULL && body != NULL
                 ? 0
                 : error_set(err, E_NOMEM, "out of memory to remove %.200s", name);
    if (rc == 0) {
        *r = (struct api_removal){done, arg};
        rc = library_call(n, "remove", body, on_removed, r, err);
    }
    json_decref(body);
    if (rc != 0)
        free(r);
    return rc;
}
