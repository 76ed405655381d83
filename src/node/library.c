/* The model files of this node: the store, what is fetched into it, and the orders about both.
 * Files are looked at in the thread pool; an order is answered when that is over. */
#include "base/json.h"
#include "base/log.h"
#include "node/internal.h"
#include "store/files.h"
#include "store/models.h"
#include "store/pull.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENDED_MAX = 32, ANSWER_BYTES_MAX = 64 << 20 };

struct model_pull { /* begun by an order, or because a rank needs its file */
    struct model_pull *next;
    struct node *node;
    uint64_t id;
    char model[CARD_FILE_BYTES], file[CARD_FILE_BYTES];
    bool is_over;
    char error[ERROR_MESSAGE_BYTES]; /* "": it has come */
};

struct model_order {
    uv_work_t work;
    struct node *node;
    void (*run)(struct model_order *o); /* in the thread pool; NULL: nothing to do there */
    char model[4096];
    struct buf body;
    struct error error;
    void (*answer)(void *arg, int http_status, const char *json, size_t len);
    void *arg;
};

int library_init(struct node *n, struct error *err)
{
    struct node_config *c = &n->config;
    const char *folders[MODELS_FOLDERS_MAX];
    for (uint32_t i = 0; i < c->n_folders; i++)
        folders[i] = c->folders[i];
    struct models_config config = {
        .data_dir = c->data_dir, .n_folders = c->n_folders, .folders = folders};
    int rc = models_open(&config, &n->models, err);
    if (rc != 0)
        return rc;
    struct puller_config puller = {
        .models = n->models, .hub = c->hub, .token = c->hub_token, .is_offline = c->is_offline};
    return puller_new(n->loop, &puller, &n->puller, err);
}

static void on_puller_closed(void *arg)
{
    struct node *n = arg;
    n->is_puller_closed = true;
    node_check_stop(n);
}

void library_stop(struct node *n)
{
    if (n->puller == NULL)
        n->is_puller_closed = true;
    else if (!n->is_puller_closing)
        puller_close(n->puller, on_puller_closed, n);
    n->is_puller_closing = true;
}

void library_done(struct node *n)
{
    for (struct model_pull *p = n->model_pulls, *next; p != NULL; p = next) {
        next = p->next;
        free(p);
    }
    n->model_pulls = NULL;
    models_close(n->models);
}

/* ---- fetching ---- */

/* The oldest that are over are forgotten. */
static void forget_ended(struct node *n)
{
    uint32_t count = 0;
    for (struct model_pull **at = &n->model_pulls; *at != NULL;) {
        struct model_pull *p = *at;
        count += p->is_over;
        if (p->is_over && count > ENDED_MAX) {
            *at = p->next;
            free(p);
        } else {
            at = &p->next;
        }
    }
}

static void on_pulled(void *arg, const struct model_entry *entry, bool was_there,
                      const struct error *err)
{
    struct model_pull *p = arg;
    struct node *n = p->node;
    (void)was_there;
    p->is_over = true;
    if (entry != NULL)
        snprintf(p->file, sizeof(p->file), "%s", files_base_name(entry->path));
    else
        snprintf(p->error, sizeof(p->error), "%s", err->message);
    if (entry == NULL)
        log_warn("node", "model=%s cannot be fetched: %s", p->model, err->message);
    for (uint32_t i = 0; i < n->n_served; i++)
        n->served[i]->retry_ms = 0; /* it may be what one of them waits for */
    if (n->phase < NODE_STOPPING_RANKS)
        core_touch(n);
    forget_ended(n);
}

static int begin_pull(struct node *n, const char *model, bool is_trusting, uint64_t *ret_id,
                      struct error *err)
{
    struct model_pull *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "out of memory to fetch %.200s", model);
    p->node = n;
    snprintf(p->model, sizeof(p->model), "%s", model);
    struct pull_options options = {.name = model, .is_trusting = is_trusting};
    struct pull_events events = {.arg = p, .done = on_pulled};
    int rc = puller_pull(n->puller, &options, &events, &p->id, err);
    if (rc != 0) {
        free(p);
        return rc;
    }
    p->next = n->model_pulls;
    n->model_pulls = p;
    *ret_id = p->id;
    return 0;
}

bool library_want(struct node *n, const char *path)
{
    char quantization[QUANTIZATION_BYTES];
    struct error err = {0};
    uint64_t id;
    const char *file = files_base_name(path);
    if (n->config.is_offline || n->phase != NODE_RUNNING ||
        cards_find_file(models_cards(n->models), file, quantization) == NULL)
        return false;
    for (const struct model_pull *p = n->model_pulls; p != NULL; p = p->next)
        if (!p->is_over && strcmp(p->model, file) == 0)
            return true;
    return begin_pull(n, file, true, &id, &err) == 0;
}

/* ---- orders ---- */

static void do_order(uv_work_t *work)
{
    struct model_order *o = work->data;
    if (o->run != NULL)
        o->run(o);
}

static void after_order(uv_work_t *work, int status)
{
    struct model_order *o = work->data;
    struct node *n = o->node;
    (void)status;
    n->n_loads--;
    if (o->error.code == 0 && o->body.error != 0)
        error_set(&o->error, o->body.error, "out of memory for the answer");
    if (o->error.code != 0) {
        buf_reset(&o->body);
        buf_append_str(&o->body, "{\"error\":{\"message\":");
        json_append_string(&o->body, o->error.message, strlen(o->error.message));
        buf_printf(&o->body, ",\"type\":\"%s\",\"param\":null,\"code\":\"%s\"}}",
                   error_http_status(o->error.code) >= 500 ? "server_error"
                                                           : "invalid_request_error",
                   error_name(o->error.code));
    }
    o->answer(o->arg, o->error.code != 0 ? error_http_status(o->error.code) : 200,
              buf_str(&o->body), o->body.len);
    buf_done(&o->body);
    free(o);
    node_check_stop(n);
}

static void run_list(struct model_order *o)
{
    models_append_json(o->node->models, true, &o->body, &o->error);
}

static void run_show(struct model_order *o)
{
    char quantization[QUANTIZATION_BYTES];
    struct models *m = o->node->models;
    const struct card *card = cards_find(models_cards(m), o->model, quantization);
    struct model_entry *e = malloc(sizeof(*e));
    int rc = e != NULL ? models_find(m, o->model, e, &o->error)
                       : error_set(&o->error, E_NOMEM, "out of memory");
    if (rc == 0 && card == NULL && e->card[0] != '\0')
        card = cards_find(models_cards(m), e->card, quantization);
    if (rc == E_NOTFOUND && card != NULL)
        error_clear(&o->error);
    buf_append_char(&o->body, '{');
    if (rc == 0) {
        buf_append_str(&o->body, "\"model\":");
        model_entry_append_json(e, &o->body);
    }
    if (card != NULL) {
        buf_append_str(&o->body, rc == 0 ? ",\"card\":" : "\"card\":");
        card_append_json(card, &o->body);
    }
    buf_append_char(&o->body, '}');
    free(e);
}

static void run_remove(struct model_order *o)
{
    struct model_entry *e = malloc(sizeof(*e));
    int rc = e != NULL ? models_remove(o->node->models, o->model, e, &o->error)
                       : error_set(&o->error, E_NOMEM, "out of memory");
    if (rc == 0) {
        log_info("node", "removed %s", e->path);
        buf_append_str(&o->body, "{\"ok\":true}");
    }
    free(e);
}

/* Whether the cluster serves the file of this name: it is not to be removed under it. */
static int check_unused(const struct node *n, const char *model, struct error *err)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    char quantization[QUANTIZATION_BYTES], other[QUANTIZATION_BYTES];
    const struct card *card = cards_find(models_cards(n->models), model, quantization);
    for (uint32_t i = 0; i < s->n_models; i++) {
        const char *file = files_base_name(s->model[i].path), *name = files_base_name(model);
        size_t len = strlen(name);
        bool is_it =
            strcmp(s->model[i].id, name) == 0 ||
            (strncmp(file, name, len) == 0 &&
             (file[len] == '\0' || strcmp(file + len, ".gguf") == 0)) ||
            (card != NULL && cards_find_file(models_cards(n->models), file, other) == card);
        if (s->model[i].is_wanted && is_it)
            return error_set(err, E_INVALID, "the cluster serves %s: `shoal unload %s` first",
                             s->model[i].id, s->model[i].id);
    }
    return 0;
}

static void put_pulls(struct node *n, struct buf *b)
{
    puller_append_json(n->puller, b);
    if (b->error != 0)
        return;
    b->len -= 2; /* "]}" */
    for (const struct model_pull *p = n->model_pulls; p != NULL; p = p->next) {
        if (!p->is_over)
            continue;
        buf_printf(b, "%s{\"id\":%llu,\"model\":", b->data[b->len - 1] == '[' ? "" : ",",
                   (unsigned long long)p->id);
        json_append_string(b, p->model, strlen(p->model));
        buf_append_str(b, ",\"file\":");
        json_append_string(b, p->file, strlen(p->file));
        buf_printf(b, ",\"phase\":\"%s\"", p->error[0] == '\0' ? "done" : "failed");
        if (p->error[0] != '\0') {
            buf_append_str(b, ",\"error\":");
            json_append_string(b, p->error, strlen(p->error));
        }
        buf_append_char(b, '}');
    }
    buf_append_str(b, "]}");
}

static int get_model(const json_t *body, char ret[4096], struct error *err)
{
    const json_t *v = json_object_get(body, "model");
    const char *text = json_string_value(v);
    if (text == NULL || text[0] == '\0' || strlen(text) >= 4096 ||
        strlen(text) != json_string_length(v))
        return error_set(err, E_INVALID, "'model' must be a text of 1 to 4095 bytes");
    memcpy(ret, text, strlen(text) + 1);
    return 0;
}

static int begin_order(struct model_order *o, const char *verb, const json_t *body,
                       struct error *err)
{
    struct node *n = o->node;
    bool takes_model = strcmp(verb, "models") != 0 && strcmp(verb, "pulls") != 0;
    uint64_t id = 0;
    int rc = takes_model ? get_model(body, o->model, err) : 0;
    if (rc != 0)
        return rc;
    if (strcmp(verb, "models") == 0) {
        o->run = run_list;
    } else if (strcmp(verb, "show") == 0) {
        o->run = run_show;
    } else if (strcmp(verb, "remove") == 0) {
        o->run = run_remove;
        rc = check_unused(n, o->model, err);
    } else if (strcmp(verb, "pull") == 0) {
        rc = begin_pull(n, o->model, false, &id, err);
        buf_printf(&o->body, "{\"id\":%llu}", (unsigned long long)id);
    } else {
        put_pulls(n, &o->body);
    }
    return rc;
}

bool library_is_order(const char *verb)
{
    static const char *const verbs[] = {"models", "show", "remove", "pull", "pulls"};
    for (size_t i = 0; i < sizeof(verbs) / sizeof(verbs[0]); i++)
        if (strcmp(verbs[i], verb) == 0)
            return true;
    return false;
}

int library_call(struct node *n, const char *verb, const json_t *body,
                 void (*answer)(void *arg, int http_status, const char *json, size_t len),
                 void *arg, struct error *err)
{
    struct model_order *o = calloc(1, sizeof(*o));
    if (o == NULL)
        return error_set(err, E_NOMEM, "out of memory for an order");
    o->node = n;
    o->answer = answer;
    o->arg = arg;
    o->work.data = o;
    buf_init(&o->body, ANSWER_BYTES_MAX);
    int rc = begin_order(o, verb, body, err);
    if (rc == 0)
        rc = uv_queue_work(n->loop, &o->work, do_order, after_order);
    if (rc != 0) {
        buf_done(&o->body);
        free(o);
        return rc;
    }
    n->n_loads++;
    return 0;
}
