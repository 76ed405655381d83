/* What the API sees of the node: the models that people want, each with the tokenizer of this
 * node's copy of the file, and the calls behind struct api_backend. */
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_RETRY_MS = 10000 }; /* a missing file may be copied here at any time */

/* The entry that clients mean by a name: the one that people want now. */
static struct served_model *find_listed(const struct node *n, const char *id)
{
    for (uint32_t i = 0; i < n->n_served; i++)
        if (n->served[i]->is_listed && strcmp(n->served[i]->id, id) == 0)
            return n->served[i];
    return NULL;
}

struct served_model *backend_find(const struct node *n, const char *id, const uint8_t hash[32])
{
    for (uint32_t i = 0; i < n->n_served; i++)
        if (strcmp(n->served[i]->id, id) == 0 &&
            memcmp(n->served[i]->hash, hash, sizeof(n->served[i]->hash)) == 0)
            return n->served[i];
    return NULL;
}

static struct served_model *add_served(struct node *n, const struct desired_model *m)
{
    struct served_model *s = n->n_served < SERVED_MAX ? calloc(1, sizeof(*s)) : NULL;
    if (s == NULL)
        return NULL;
    s->node = n;
    snprintf(s->id, sizeof(s->id), "%s", m->id);
    memcpy(s->hash, m->hash, sizeof(s->hash));
    s->api.id = s->id;
    s->api.bos_text = s->api.eos_text = s->api.architecture = s->api.quantization = "";
    n->served[n->n_served++] = s;
    return s;
}

/* What lists and descriptions say of it. */
static void describe(struct served_model *s)
{
    const struct model_entry *facts = &s->file->facts;
    s->api.architecture = facts->architecture;
    s->api.quantization = facts->quantization;
    s->api.n_parameters = facts->n_params;
    s->api.file_bytes = facts->size_bytes;
    for (size_t i = 0; i < sizeof(s->hash); i++)
        snprintf(s->api.digest + 2 * i, 3, "%02x", s->hash[i]);
}

static void on_file(void *arg, struct model_file *file, const struct error *err)
{
    struct served_model *s = arg;
    struct node *n = s->node;
    n->n_loads--;
    s->is_loading = false;
    if (file == NULL) {
        s->is_missing = true;
        s->retry_ms = uv_now(n->loop) + FILE_RETRY_MS;
        snprintf(s->error, sizeof(s->error), "node %s: %.440s", n->config.name, err->message);
        log_warn("node", "model=%s cannot be used here: %s", s->id, err->message);
    } else if (n->phase >= NODE_STOPPING_RANKS) {
        model_file_free(file);
    } else {
        s->is_missing = false;
        s->file = file;
        s->api.tokenizer = file->tokenizer;
        s->api.chat_template = file->chat_template;
        s->api.bos_text = file->bos_text;
        s->api.eos_text = file->eos_text;
        describe(s);
    }
    if (n->phase < NODE_STOPPING_RANKS)
        core_touch(n);
    node_check_stop(n);
}

/* Looks for this node's copy of a model. */
static void find_file(struct served_model *s, const struct desired_model *m)
{
    struct node *n = s->node;
    struct model_file_wanted wanted = {.has_hash = true, .with_text = true};
    if (s->is_loading || uv_now(n->loop) < s->retry_ms || n->phase >= NODE_STOPPING_RANKS)
        return;
    memcpy(wanted.hash, m->hash, sizeof(wanted.hash));
    model_file_candidates(&wanted, m->path, n->config.data_dir, n->models);
    if (model_file_load(n->loop, &wanted, on_file, s) != 0)
        return;
    s->is_loading = true;
    n->n_loads++;
}

static void refresh_one(struct node *n, const struct desired_model *m)
{
    const struct cluster_state *state = cluster_get_state(n->cluster);
    struct served_model *s = backend_find(n, m->id, m->hash);
    if (s == NULL)
        s = add_served(n, m);
    if (s == NULL)
        return;
    s->is_listed = true;
    if (s->file == NULL)
        find_file(s, m);
    for (uint32_t k = 0; k < state->n_instances; k++) {
        const struct placed_instance *i = &state->instance[k];
        const struct instance_report *r = cluster_find_report(n->cluster, &i->id);
        if (strcmp(i->model_id, m->id) != 0 || r == NULL)
            continue;
        if (r->status == INSTANCE_SERVING || s->api.created_s == 0) {
            s->api.created_s = r->created_s;
            s->api.n_ctx = r->n_ctx;
        }
        s->api.is_ready |= r->status == INSTANCE_SERVING && s->file != NULL;
    }
}

void backend_refresh(struct node *n)
{
    const struct cluster_state *state = cluster_get_state(n->cluster);
    for (uint32_t i = 0; i < n->n_served; i++) {
        n->served[i]->is_listed = false;
        n->served[i]->api.is_ready = false;
    }
    for (uint32_t k = 0; k < state->n_models; k++)
        if (state->model[k].is_wanted)
            refresh_one(n, &state->model[k]);
    instance_on_files(n);
}

void backend_done(struct node *n)
{
    for (uint32_t i = 0; i < n->n_served; i++) {
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
    core_touch(n); /* a file that was missing may be there now */
    const struct served_model *s = find_listed(n, id);
    return s != NULL ? &s->api : NULL;
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

static int call_cluster(void *self, const char *verb, const char *body, size_t len,
                        void (*answer)(void *arg, int http_status, const char *json, size_t len),
                        void *arg, struct error *err)
{
    return control_call(self, verb, body, len, answer, arg, err);
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
        .cluster_call = call_cluster,
        .models_pull = library_api_pull,
        .models_pull_cancel = library_api_cancel,
        .models_remove = library_api_remove,
        .state_json = append_state,
        .health = append_health,
    };
}
