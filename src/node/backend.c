/* What the API sees of the node: the models that some instance serves, each with the tokenizer of
 * this node's copy of the file, and the calls behind struct api_backend. */
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_RETRY_MS = 10000 }; /* a missing file may be copied here at any time */

static struct served_model *find_served(const struct node *n, const char *id)
{
    for (uint32_t i = 0; i < n->n_served; i++)
        if (strcmp(n->served[i]->id, id) == 0)
            return n->served[i];
    return NULL;
}

static struct served_model *add_served(struct node *n, const char *id)
{
    struct served_model *s = n->n_served < SERVED_MAX ? calloc(1, sizeof(*s)) : NULL;
    if (s == NULL)
        return NULL;
    s->node = n;
    snprintf(s->id, sizeof(s->id), "%s", id);
    s->api.id = s->id;
    s->api.bos_text = s->api.eos_text = "";
    n->served[n->n_served++] = s;
    return s;
}

static void use_file(struct served_model *s, struct model_file *file, bool owns_file)
{
    s->file = file;
    s->owns_file = owns_file;
    memcpy(s->hash, file->model->hash, sizeof(s->hash));
    s->api.tokenizer = file->tokenizer;
    s->api.chat_template = file->chat_template;
    s->api.bos_text = file->bos_text;
    s->api.eos_text = file->eos_text;
}

static void on_file(void *arg, struct model_file *file, const struct error *err)
{
    struct served_model *s = arg;
    struct node *n = s->node;
    n->n_loads--;
    s->is_loading = false;
    if (file == NULL) {
        s->retry_ms = uv_now(n->loop) + FILE_RETRY_MS;
        log_warn("node", "model=%s cannot be served by this node's API: %s", s->id, err->message);
    } else if (s->file != NULL || n->phase >= NODE_STOPPING_RANKS) {
        model_file_free(file);
    } else {
        use_file(s, file, true);
    }
    if (n->phase < NODE_STOPPING_RANKS)
        backend_refresh(n);
    node_check_stop(n);
}

/* Looks for this node's copy of a model that another node coordinates. */
static void find_file(struct served_model *s, const struct instance_info *info)
{
    struct node *n = s->node;
    struct model_file_wanted wanted = {.has_hash = true, .with_text = true};
    if (s->is_loading || uv_now(n->loop) < s->retry_ms || n->phase >= NODE_STOPPING_RANKS)
        return;
    memcpy(wanted.hash, info->model_hash, sizeof(wanted.hash));
    model_file_candidates(&wanted, info->path, n->config.data_dir);
    if (model_file_load(n->loop, &wanted, on_file, s) != 0)
        return;
    s->is_loading = true;
    n->n_loads++;
}

static void refresh_one(struct node *n, const struct instance_info *info, struct model_file *own)
{
    struct served_model *s = find_served(n, info->model_id);
    if (info->model_id[0] == '\0' || info->path[0] == '\0')
        return;
    if (s == NULL)
        s = add_served(n, info->model_id);
    if (s == NULL)
        return;
    s->is_listed = true;
    if (s->file == NULL && own != NULL)
        use_file(s, own, false);
    if (s->file == NULL)
        find_file(s, info);
    /* Another file under the same name is another model: the first one keeps the name here. */
    if (s->file == NULL || memcmp(s->hash, info->model_hash, sizeof(s->hash)) != 0)
        return;
    if (info->status == INSTANCE_SERVING || s->api.created_s == 0) {
        s->api.created_s = info->created_s;
        s->api.n_ctx = info->n_ctx;
    }
    s->api.is_ready |= info->status == INSTANCE_SERVING;
}

void backend_refresh(struct node *n)
{
    for (uint32_t i = 0; i < n->n_served; i++) {
        n->served[i]->is_listed = false;
        n->served[i]->api.is_ready = false;
    }
    if (n->instance != NULL)
        refresh_one(n, &n->instance->info, n->instance->file);
    for (uint32_t i = 0; i < n->n_remote; i++)
        refresh_one(n, n->remote[i].info, NULL);
}

void backend_done(struct node *n)
{
    for (uint32_t i = 0; i < n->n_served; i++) {
        if (n->served[i]->owns_file)
            model_file_free(n->served[i]->file);
        free(n->served[i]);
    }
    n->n_served = 0;
}

/* ---- struct api_backend ---- */

static uint32_t get_n_models(void *self)
{
    const struct node *n = self;
    uint32_t count = 0;
    for (uint32_t i = 0; i < n->n_served; i++)
        count += n->served[i]->is_listed;
    return count;
}

static const struct api_model *get_model_at(void *self, uint32_t index)
{
    const struct node *n = self;
    for (uint32_t i = 0; i < n->n_served; i++)
        if (n->served[i]->is_listed && index-- == 0)
            return &n->served[i]->api;
    return NULL;
}

static const struct api_model *find_model(void *self, const char *id)
{
    struct node *n = self;
    backend_refresh(n); /* a file that was missing may be there now */
    const struct served_model *s = find_served(n, id);
    return s != NULL && s->is_listed ? &s->api : NULL;
}

static int submit(void *self, const struct api_generation *g,
                  const struct api_generation_events *events, void *arg, uint64_t *ret_id,
                  struct error *err)
{
    return requests_submit(self, g, events, arg, ret_id, err);
}

static void cancel(void *self, uint64_t id)
{
    requests_cancel(self, id);
}

static int append_state(void *self, struct buf *out)
{
    return state_json(self, out);
}

static bool append_health(void *self, struct buf *out)
{
    return state_health(self, out);
}

void backend_init(struct node *n, struct api_backend *ret_backend)
{
    *ret_backend = (struct api_backend){
        .self = n,
        .n_models = get_n_models,
        .model_at = get_model_at,
        .model_find = find_model,
        .submit = submit,
        .cancel = cancel,
        .state_json = append_state,
        .health = append_health,
    };
}
