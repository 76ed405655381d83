#include "node/model_file.h"

#include "base/log.h"
#include "runner/draft_model.h"
#include "store/model_facts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct load {
    uv_work_t work;
    struct model_file_wanted wanted;
    struct model_file *file;
    struct error err;
    model_file_loaded *loaded;
    void *arg;
};

static void copy_piece(const struct tokenizer *t, token_id id, char *ret_text, size_t size)
{
    size_t len = 0;
    const char *piece = id >= 0 ? tokenizer_piece(t, id, true, &len) : "";
    if (len >= size)
        len = 0;
    memcpy(ret_text, piece, len);
    ret_text[len] = '\0';
}

static int load_text(struct model_file *f, struct error *err)
{
    int rc = tokenizer_new(f->model->file, &f->tokenizer, err);
    if (rc != 0)
        return error_wrap(err, rc, "tokenizer of %s", f->path);
    copy_piece(f->tokenizer, tokenizer_bos(f->tokenizer), f->bos_text, sizeof(f->bos_text));
    copy_piece(f->tokenizer, tokenizer_eos(f->tokenizer), f->eos_text, sizeof(f->eos_text));
    f->n_end = (uint32_t)tokenizer_end_ids(f->tokenizer, f->end, 32);

    struct gguf_string source;
    struct error cause;
    if (gguf_file_get_string(f->model->file, "tokenizer.chat_template", &source, NULL) != 0)
        return 0;
    /* A model without a usable template still completes text, so this is not fatal. */
    if (chat_template_new(source.data, source.len, &f->chat_template, &cause) != 0) {
        f->chat_template = NULL;
        log_warn("node", "model=%s chat template cannot be used: %s", f->path, cause.message);
    }
    return 0;
}

/* Opens one candidate. E_NOTFOUND lets the next one have its try. */
static int open_path(const struct model_file_wanted *w, const char *path,
                     struct model_file **ret_file, struct error *err)
{
    struct model_file *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return error_set(err, E_NOMEM, "out of memory for model %s", path);
    snprintf(f->path, sizeof(f->path), "%s", path);
    int rc = model_open(path, &f->model, err);
    if (rc == 0 && w->has_hash && memcmp(f->model->hash, w->hash, sizeof(w->hash)) != 0)
        rc = error_set(err, E_NOTFOUND,
                       "model file %s is not the one that the coordinator has: copy that file here",
                       path);
    if (rc == 0 && w->with_text)
        rc = load_text(f, err);
    if (rc == 0 && w->with_text)
        model_facts_of(f->model->file, &f->facts);
    if (rc == 0)
        f->facts.size_bytes = gguf_file_size(f->model->file);
    if (rc != 0) {
        model_file_free(f);
        return rc;
    }
    *ret_file = f;
    return 0;
}

static int find_draft(const struct model_file_wanted *w, struct model_file *f, struct error *err)
{
    int rc = w->n_draft_paths > 0 ? E_NOTFOUND : 0;
    for (uint32_t i = 0; i < w->n_draft_paths && rc == E_NOTFOUND; i++) {
        struct error cause = {0};
        rc = draft_model_check_file(f->model, w->draft_path[i], &f->draft_bytes, &cause);
        if (i == 0 || rc != E_NOTFOUND) /* a file that is not there, as people named it */
            *err = cause;
        snprintf(f->draft_path, sizeof(f->draft_path), "%s", w->draft_path[i]);
    }
    return rc;
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash != NULL ? slash + 1 : path;
}

/* By the name of a card, or in other folders. With a hash it is a path of another computer, of
 * which only the file's name means something here. */
static int open_named(struct load *l)
{
    const struct model_file_wanted *w = &l->wanted;
    const char *name = w->has_hash ? base_name(w->path[0]) : w->path[0];
    struct error err = {0};
    struct model_entry *e = malloc(sizeof(*e));
    int rc = e != NULL ? models_find(w->models, name, e, &err) : E_NOMEM;
    if (rc == 0) {
        rc = open_path(w, e->path, &l->file, &err);
        l->err = err;
    } else if (rc == E_NOTFOUND && !w->has_hash && strchr(name, '/') == NULL) {
        l->err = err; /* says how to get it */
    }
    free(e);
    return rc;
}

static void do_load(uv_work_t *work)
{
    struct load *l = work->data;
    int rc = E_NOTFOUND;
    for (uint32_t i = 0; i < l->wanted.n_paths; i++) {
        struct error err = {0};
        rc = open_path(&l->wanted, l->wanted.path[i], &l->file, &err);
        if (rc == 0)
            break;
        /* The most telling error: a file that is there and bad says more than one that is not. */
        if (l->err.code == 0 || (l->err.code == E_NOTFOUND && rc != E_NOTFOUND))
            l->err = err;
        if (rc != E_NOTFOUND)
            break;
    }
    if (rc == E_NOTFOUND && l->wanted.models != NULL)
        rc = open_named(l);
    if (rc == 0)
        error_clear(&l->err);
    if (rc == 0 && find_draft(&l->wanted, l->file, &l->err) != 0) {
        model_file_free(l->file);
        l->file = NULL;
    }
}

static void after_load(uv_work_t *work, int status)
{
    struct load *l = work->data;
    if (status != 0 && l->file == NULL)
        error_set(&l->err, E_CANCELLED, "loading was cancelled");
    l->loaded(l->arg, l->file, &l->err);
    free(l);
}

int model_file_load(uv_loop_t *loop, const struct model_file_wanted *wanted,
                    model_file_loaded *loaded, void *arg)
{
    struct load *l = calloc(1, sizeof(*l));
    if (l == NULL)
        return E_NOMEM;
    l->work.data = l;
    l->wanted = *wanted;
    l->loaded = loaded;
    l->arg = arg;
    int rc = uv_queue_work(loop, &l->work, do_load, after_load);
    if (rc != 0)
        free(l);
    return rc != 0 ? E_NOMEM : 0;
}

void model_file_free(struct model_file *f)
{
    if (f == NULL)
        return;
    chat_template_free(f->chat_template);
    tokenizer_free(f->tokenizer);
    model_close(f->model);
    free(f);
}

static bool has_suffix(const char *name)
{
    size_t len = strlen(name);
    return len > 5 && strcmp(name + len - 5, ".gguf") == 0;
}

/* As given, and by its name in the folder of models. */
static uint32_t list_places(const char *path, const char *data_dir, char ret_paths[2][4096])
{
    const char *name = base_name(path);
    snprintf(ret_paths[0], sizeof(ret_paths[0]), "%s", path);
    if (name[0] == '\0' || name[0] == '.')
        return 1;
    int n = snprintf(ret_paths[1], sizeof(ret_paths[1]), "%s/models/%s%s", data_dir, name,
                     has_suffix(name) ? "" : ".gguf");
    return n > 0 && (size_t)n < sizeof(ret_paths[1]) ? 2 : 1;
}

void model_file_candidates(struct model_file_wanted *w, const char *path, const char *data_dir,
                           struct models *models)
{
    w->models = models;
    w->n_paths = list_places(path, data_dir, w->path);
}

void model_file_draft_candidates(struct model_file_wanted *w, const char *path,
                                 const char *data_dir)
{
    w->n_draft_paths = list_places(path, data_dir, w->draft_path);
}

bool model_file_find(const char *path, const char *data_dir, char ret_path[4096])
{
    char paths[2][4096];
    uint32_t n = list_places(path, data_dir, paths), i = 0;
    while (i < n && access(paths[i], R_OK) != 0)
        i++;
    if (i < n)
        memcpy(ret_path, paths[i], sizeof(paths[i]));
    return i < n;
}

void model_file_id(const char *path, char *ret_id, size_t size)
{
    const char *name = base_name(path);
    snprintf(ret_id, size, "%s", name);
    if (has_suffix(ret_id))
        ret_id[strlen(ret_id) - 5] = '\0';
}
