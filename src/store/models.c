#include "store/models.h"

#include "base/log.h"
#include "model/arch.h"
#include "store/files.h"
#include "store/model_facts.h"
#include "store/store.h"

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOTE_BYTES_MAX = 64 << 10, NOTE_VERSION = 1 };

struct models {
    pthread_mutex_t mutex;
    struct cards *cards;
    char folder[3200]; /* data_dir/models */
    uint32_t n_folders;
    char *folders[MODELS_FOLDERS_MAX];
    struct store *index; /* NULL until the folder is there */
};

/* ---- opening ---- */

int models_open(const struct models_config *config, struct models **ret_models, struct error *err)
{
    char path[4096];
    struct models *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return error_set(err, E_NOMEM, "out of memory for the models");
    pthread_mutex_init(&m->mutex, NULL);
    int n = snprintf(m->folder, sizeof(m->folder), "%s/models", config->data_dir);
    int rc = n > 0 && (size_t)n < sizeof(m->folder) && config->n_folders <= MODELS_FOLDERS_MAX
                 ? 0
                 : error_set(err, E_LIMIT,
                             "the data folder's path is too long, or there are over %d folders",
                             MODELS_FOLDERS_MAX);
    for (uint32_t i = 0; rc == 0 && i < config->n_folders; i++) {
        m->folders[i] = strdup(config->folders[i]);
        m->n_folders++;
        if (m->folders[i] == NULL)
            rc = error_set(err, E_NOMEM, "out of memory for the models");
    }
    if (rc == 0) {
        snprintf(path, sizeof(path), "%s/cards.json", config->data_dir);
        rc = cards_load(path, &m->cards, err);
    }
    if (rc != 0) {
        models_close(m);
        return rc;
    }
    *ret_models = m;
    return 0;
}

void models_close(struct models *m)
{
    if (m == NULL)
        return;
    for (uint32_t i = 0; i < m->n_folders; i++)
        free(m->folders[i]);
    store_close(m->index);
    cards_free(m->cards);
    pthread_mutex_destroy(&m->mutex);
    free(m);
}

const struct cards *models_cards(const struct models *m)
{
    return m->cards;
}

int models_path(const struct models *m, const char *file, char ret_path[4096], struct error *err)
{
    int n = snprintf(ret_path, 4096, "%s/%s", m->folder, file);
    return n > 0 && n < 4096 ? 0 : error_set(err, E_LIMIT, "the path of %.200s is too long", file);
}

/* A folder that cannot be written has no index: then nothing is remembered. */
static struct store *open_index(struct models *m)
{
    char path[4096], damaged[4096] = "";
    struct error err = {0};
    if (m->index != NULL || access(m->folder, W_OK) != 0)
        return m->index;
    snprintf(path, sizeof(path), "%s/index.db", m->folder);
    if (store_open(path, &m->index, damaged, &err) != 0) {
        m->index = NULL;
        log_warn("store", "%s -> nothing is remembered of model files", err.message);
    } else if (damaged[0] != '\0') {
        log_warn("store", "%s was damaged -> kept as %s, and begun anew", path, damaged);
    }
    return m->index;
}

/* ---- what is remembered of a file ---- */

static bool is_own(const struct models *m, const char *path)
{
    size_t n = strlen(m->folder);
    return strncmp(path, m->folder, n) == 0 && path[n] == '/' && strchr(path + n + 1, '/') == NULL;
}

/* Files of our folder are known by name, so that the folder can be moved. */
static const char *key_of(const struct models *m, const char *path)
{
    return is_own(m, path) ? files_base_name(path) : path;
}

static void copy_text(const json_t *note, const char *key, char *ret, size_t size)
{
    const char *text = json_string_value(json_object_get(note, key));
    if (text != NULL && strlen(text) < size)
        memcpy(ret, text, strlen(text) + 1);
}

static uint64_t number_of(const json_t *note, const char *key)
{
    json_int_t v = json_integer_value(json_object_get(note, key));
    return v > 0 ? (uint64_t)v : 0;
}

/* False when nothing is known, or it is of another version of the file. */
static bool read_note(struct models *m, struct model_entry *e)
{
    struct buf b;
    struct error ignored = {0};
    json_t *note = NULL;
    char sha256[65] = "";
    buf_init(&b, NOTE_BYTES_MAX);
    bool is_known = open_index(m) != NULL &&
                    store_read(m->index, key_of(m, e->path), &b, &ignored) == 0 &&
                    json_parse(buf_str(&b), b.len, &note, &ignored) == 0;
    buf_done(&b);
    if (is_known) {
        /* These hold for the next version, too. */
        copy_text(note, "card", e->card, sizeof(e->card));
        copy_text(note, "source", e->source, sizeof(e->source));
    }
    is_known = is_known && number_of(note, "version") == NOTE_VERSION &&
               number_of(note, "size_bytes") == e->size_bytes &&
               number_of(note, "modified_ns") == e->modified_ns;
    if (is_known) {
        copy_text(note, "title", e->title, sizeof(e->title));
        copy_text(note, "architecture", e->architecture, sizeof(e->architecture));
        copy_text(note, "quantization", e->quantization, sizeof(e->quantization));
        copy_text(note, "problem", e->problem, sizeof(e->problem));
        copy_text(note, "sha256", sha256, sizeof(sha256));
        e->n_params = number_of(note, "n_params");
        e->n_layers = (uint32_t)number_of(note, "n_layers");
        e->n_ctx = (uint32_t)number_of(note, "n_ctx");
        e->capabilities = (uint32_t)number_of(note, "capabilities");
        e->can_run = json_is_true(json_object_get(note, "can_run"));
        e->is_damaged = json_is_true(json_object_get(note, "is_damaged"));
        e->has_sha256 = files_unhex(sha256, e->sha256, sizeof(e->sha256)) == 0;
    }
    json_decref(note);
    return is_known;
}

static void append_text(struct buf *b, const char *key, const char *text)
{
    buf_printf(b, ",\"%s\":", key);
    json_append_string(b, text, strlen(text));
}

static int write_note(struct models *m, const struct model_entry *e, struct error *err)
{
    struct buf b;
    char sha256[65] = "";
    if (open_index(m) == NULL)
        return 0;
    if (e->has_sha256)
        files_hex(e->sha256, sizeof(e->sha256), sha256);
    buf_init(&b, NOTE_BYTES_MAX);
    buf_printf(&b, "{\"version\":%d,\"size_bytes\":%llu,\"modified_ns\":%llu", NOTE_VERSION,
               (unsigned long long)e->size_bytes, (unsigned long long)e->modified_ns);
    append_text(&b, "card", e->card);
    append_text(&b, "source", e->source);
    append_text(&b, "title", e->title);
    append_text(&b, "architecture", e->architecture);
    append_text(&b, "quantization", e->quantization);
    append_text(&b, "problem", e->problem);
    append_text(&b, "sha256", sha256);
    buf_printf(&b,
               ",\"n_params\":%llu,\"n_layers\":%u,\"n_ctx\":%u,\"capabilities\":%u,\"can_run\":%s,"
               "\"is_damaged\":%s}",
               (unsigned long long)e->n_params, e->n_layers, e->n_ctx, e->capabilities,
               e->can_run ? "true" : "false", e->is_damaged ? "true" : "false");
    int rc = b.error != 0 ? error_set(err, b.error, "out of memory")
                          : store_write(m->index, key_of(m, e->path), b.data, b.len, err);
    buf_done(&b);
    return rc;
}

/* ---- one file ---- */

static int read_entry(struct models *m, const char *path, struct model_entry *e, struct error *err)
{
    char quantization[QUANTIZATION_BYTES];
    struct stat info;
    struct error ignored = {0};
    memset(e, 0, sizeof(*e));
    if (strlen(path) >= sizeof(e->path) || stat(path, &info) != 0 || !S_ISREG(info.st_mode))
        return error_set(err, E_NOTFOUND, "there is no model file %.300s", path);
    memcpy(e->path, path, strlen(path) + 1);
    const char *name = files_base_name(path);
    size_t n = strlen(name);
    n -= n > 5 && strcasecmp(name + n - 5, ".gguf") == 0 ? 5 : 0;
    snprintf(e->name, sizeof(e->name), "%.*s", (int)n, name);
    e->size_bytes = (uint64_t)info.st_size;
    e->modified_ns = (uint64_t)info.st_mtim.tv_sec * 1000000000u + (uint64_t)info.st_mtim.tv_nsec;
    e->is_read_only = !is_own(m, path);
    if (!read_note(m, e)) {
        model_facts_read(path, e);
        write_note(m, e, &ignored);
    }
    e->can_run = !e->is_damaged && arch_find(e->architecture, strlen(e->architecture)) != NULL;
    if (e->card[0] == '\0') {
        const struct card *k = cards_find_file(m->cards, name, quantization);
        snprintf(e->card, sizeof(e->card), "%s", k != NULL ? k->name : "");
    }
    return 0;
}

int models_read(struct models *m, const char *path, struct model_entry *ret_entry,
                struct error *err)
{
    pthread_mutex_lock(&m->mutex);
    int rc = read_entry(m, path, ret_entry, err);
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

int models_remember(struct models *m, const char *path, const struct model_source *source,
                    const char *origin, const uint8_t sha256[32], struct error *err)
{
    struct model_entry *e = malloc(sizeof(*e));
    if (e == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    pthread_mutex_lock(&m->mutex);
    int rc = read_entry(m, path, e, err);
    if (rc == 0) {
        if (source != NULL)
            memcpy(e->card, source->card, sizeof(e->card));
        snprintf(e->source, sizeof(e->source), "%s", origin);
        e->has_sha256 = true;
        memcpy(e->sha256, sha256, sizeof(e->sha256));
        rc = write_note(m, e, err);
    }
    pthread_mutex_unlock(&m->mutex);
    free(e);
    return rc;
}

/* ---- the folders ---- */

struct listing {
    struct model_entry *entries;
    uint32_t n, max;
};

static int add_folder(struct models *m, const char *folder, struct listing *l, struct error *err)
{
    DIR *dir = opendir(folder);
    struct dirent *d;
    char path[4096 + 300];
    int rc = 0;
    if (dir == NULL)
        return errno == ENOENT
                   ? 0
                   : error_set(err, E_IO, "cannot list %s: %s", folder, strerror(errno));
    while (rc == 0 && (d = readdir(dir)) != NULL) {
        size_t n = strlen(d->d_name);
        struct error ignored = {0};
        if (n <= 5 || strcasecmp(d->d_name + n - 5, ".gguf") != 0 || d->d_name[0] == '.')
            continue;
        if (l->n == l->max) {
            uint32_t max = l->max > 0 ? 2 * l->max : 16;
            struct model_entry *more =
                l->n < MODELS_FILES_MAX ? realloc(l->entries, max * sizeof(*more)) : NULL;
            if (more == NULL) {
                rc = error_set(err, l->n < MODELS_FILES_MAX ? E_NOMEM : E_LIMIT,
                               "%s has too many model files", folder);
                break;
            }
            l->entries = more;
            l->max = max;
        }
        snprintf(path, sizeof(path), "%s/%s", folder, d->d_name);
        if (read_entry(m, path, &l->entries[l->n], &ignored) == 0)
            l->n++;
    }
    closedir(dir);
    return rc;
}

static int compare_names(const void *a, const void *b)
{
    const struct model_entry *x = a, *y = b;
    int order = strcasecmp(x->name, y->name);
    return order != 0 ? order : strcmp(x->path, y->path);
}

static int list_all(struct models *m, struct listing *l, struct error *err)
{
    int rc = add_folder(m, m->folder, l, err);
    for (uint32_t i = 0; rc == 0 && i < m->n_folders; i++)
        rc = add_folder(m, m->folders[i], l, err);
    if (rc != 0) {
        free(l->entries);
        l->entries = NULL;
    } else if (l->n > 0) {
        qsort(l->entries, l->n, sizeof(l->entries[0]), compare_names);
    }
    return rc;
}

int models_list(struct models *m, struct model_entry **ret_entries, uint32_t *ret_n,
                struct error *err)
{
    struct listing l = {0};
    pthread_mutex_lock(&m->mutex);
    int rc = list_all(m, &l, err);
    pthread_mutex_unlock(&m->mutex);
    if (rc != 0)
        return rc;
    *ret_entries = l.entries;
    *ret_n = l.n;
    return 0;
}

/* By the file's name, with or without .gguf, in each folder. */
static int find_by_name(struct models *m, const char *name, struct model_entry *e)
{
    char path[4096];
    struct error ignored = {0};
    if (name[0] == '\0' || name[0] == '.' || strchr(name, '/') != NULL)
        return E_NOTFOUND;
    for (uint32_t i = 0; i <= m->n_folders; i++)
        for (int k = 0; k < 2; k++) {
            const char *folder = i == 0 ? m->folder : m->folders[i - 1];
            int n = snprintf(path, sizeof(path), "%s/%s%s", folder, name, k == 0 ? "" : ".gguf");
            if (n > 0 && (size_t)n < sizeof(path) && read_entry(m, path, e, &ignored) == 0)
                return 0;
        }
    return E_NOTFOUND;
}

/* Whether a file came from an address, or from a repository with the quantization that is named. */
static bool came_from(const struct model_entry *e, const char *name)
{
    char repo[300];
    const char *start = strncmp(name, "hf:", 3) == 0 ? name + 3 : name;
    const char *colon = strrchr(start, ':');
    if (strcmp(e->source, name) == 0)
        return true;
    size_t n = colon != NULL ? (size_t)(colon - start) : strlen(start);
    int len = snprintf(repo, sizeof(repo), "/%.*s/", (int)n, start);
    return strchr(start, '/') != NULL && len > 0 && (size_t)len < sizeof(repo) &&
           strstr(e->source, repo) != NULL &&
           (colon == NULL || strcasecmp(colon + 1, e->quantization) == 0);
}

/* How well a file is what people mean: 0: not at all. */
static uint32_t rate(const struct model_entry *e, const struct card *k, const char *quantization,
                     const char *name)
{
    struct card_file f;
    if (e->is_damaged)
        return 0;
    if (k == NULL)
        return came_from(e, name) ? 1 : 0;
    if (strcasecmp(e->card, k->name) != 0)
        return 0;
    if (quantization[0] != '\0')
        return strcasecmp(e->quantization, quantization) == 0 ||
                       (card_find_file(k, quantization, &f, NULL) == 0 &&
                        strncasecmp(files_base_name(f.file), e->name, strlen(e->name)) == 0)
                   ? 1
                   : 0;
    for (uint32_t i = 0; card_file_at(k, i, &f); i++)
        if (strcasecmp(f.quantization, e->quantization) == 0)
            return CARD_QUANTIZATIONS_MAX + 1 - i;
    return 1;
}

static int find_by_card(struct models *m, const char *name, struct model_entry *e,
                        struct error *err)
{
    char quantization[QUANTIZATION_BYTES];
    struct listing l = {0};
    const struct card *k = cards_find(m->cards, name, quantization);
    const struct model_entry *best = NULL;
    uint32_t rating = 0;
    int rc = list_all(m, &l, err);
    for (uint32_t i = 0; rc == 0 && i < l.n; i++) {
        uint32_t r = rate(&l.entries[i], k, quantization, name);
        if (r > rating) {
            rating = r;
            best = &l.entries[i];
        }
    }
    if (rc == 0 && best != NULL)
        *e = *best;
    else if (rc == 0 && k != NULL)
        rc = error_set(err, E_NOTFOUND,
                       "model %s is not on this computer: `shoal pull %s` fetches it", name, name);
    else if (rc == 0)
        rc = error_set(err, E_NOTFOUND, "there is no model '%.200s' in %s", name, m->folder);
    free(l.entries);
    return rc;
}

static int find(struct models *m, const char *name, struct model_entry *e, struct error *err)
{
    if ((name[0] == '/' || strchr(name, '/') != NULL) && read_entry(m, name, e, err) == 0)
        return 0;
    if (find_by_name(m, name, e) == 0)
        return 0;
    return find_by_card(m, name, e, err);
}

int models_find(struct models *m, const char *name, struct model_entry *ret_entry,
                struct error *err)
{
    pthread_mutex_lock(&m->mutex);
    int rc = find(m, name, ret_entry, err);
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

/* ---- changes ---- */

int models_check(struct models *m, const char *name, const atomic_bool *is_cancelled,
                 struct model_entry *ret_entry, struct error *err)
{
    uint8_t sha256[32];
    struct error ignored = {0};
    pthread_mutex_lock(&m->mutex);
    int rc = find(m, name, ret_entry, err);
    pthread_mutex_unlock(&m->mutex);
    if (rc != 0)
        return rc;
    rc = files_sha256(ret_entry->path, is_cancelled, sha256,
                      err); /* minutes: others go on meanwhile */
    if (rc != 0)
        return rc;
    bool was_known = ret_entry->has_sha256;
    if (was_known && memcmp(sha256, ret_entry->sha256, sizeof(sha256)) != 0)
        return error_set(err, E_FORMAT, "%s is damaged: its bytes are not those that came",
                         ret_entry->path);
    if (ret_entry->is_damaged)
        return error_set(err, E_FORMAT, "%s is damaged: %s", ret_entry->path, ret_entry->problem);
    ret_entry->has_sha256 = true;
    memcpy(ret_entry->sha256, sha256, sizeof(sha256));
    pthread_mutex_lock(&m->mutex);
    if (!was_known)
        write_note(m, ret_entry, &ignored);
    pthread_mutex_unlock(&m->mutex);
    return 0;
}

static void remove_parts(const char *path)
{
    char part[4096 + 16];
    snprintf(part, sizeof(part), "%s.part", path);
    unlink(part);
    snprintf(part, sizeof(part), "%s.part.json", path);
    unlink(part);
}

int models_remove(struct models *m, const char *name, struct model_entry *ret_entry,
                  struct error *err)
{
    pthread_mutex_lock(&m->mutex);
    int rc = find(m, name, ret_entry, err);
    if (rc == 0 && ret_entry->is_read_only)
        rc =
            error_set(err, E_INVALID, "%s is not in %s: shoal removes only files of its own folder",
                      ret_entry->path, m->folder);
    if (rc == 0 && unlink(ret_entry->path) != 0)
        rc = error_set(err, E_IO, "cannot remove %s: %s", ret_entry->path, strerror(errno));
    if (rc == 0) {
        struct error ignored = {0};
        remove_parts(ret_entry->path);
        if (open_index(m) != NULL)
            store_write(m->index, key_of(m, ret_entry->path), "{}", 2, &ignored);
    }
    pthread_mutex_unlock(&m->mutex);
    return rc;
}

/* ---- JSON ---- */

int model_entry_append_json(const struct model_entry *e, struct buf *b)
{
    char sha256[65];
    buf_append_str(b, "{\"name\":");
    json_append_string(b, e->name, strlen(e->name));
    append_text(b, "card", e->card);
    append_text(b, "path", e->path);
    append_text(b, "title", e->title);
    append_text(b, "architecture", e->architecture);
    append_text(b, "quantization", e->quantization);
    append_text(b, "source", e->source);
    buf_printf(b,
               ",\"size_bytes\":%llu,\"parameters\":%llu,\"layers\":%u,\"context\":%u,"
               "\"modified_s\":%llu,\"can_run\":%s,\"is_read_only\":%s,\"is_damaged\":%s",
               (unsigned long long)e->size_bytes, (unsigned long long)e->n_params, e->n_layers,
               e->n_ctx, (unsigned long long)(e->modified_ns / 1000000000u),
               e->can_run ? "true" : "false", e->is_read_only ? "true" : "false",
               e->is_damaged ? "true" : "false");
    if (e->is_damaged)
        append_text(b, "problem", e->problem);
    if (e->has_sha256) {
        files_hex(e->sha256, sizeof(e->sha256), sha256);
        append_text(b, "sha256", sha256);
    }
    buf_append_str(b, ",\"capabilities\":");
    capabilities_append_json(e->capabilities, b);
    return buf_append_char(b, '}');
}

int models_append_json(struct models *m, bool with_cards, struct buf *b, struct error *err)
{
    struct model_entry *entries = NULL;
    uint32_t n = 0;
    int rc = models_list(m, &entries, &n, err);
    if (rc != 0)
        return rc;
    buf_append_str(b, "{\"models\":[");
    for (uint32_t i = 0; i < n; i++) {
        buf_append_str(b, i > 0 ? "," : "");
        model_entry_append_json(&entries[i], b);
    }
    buf_append_char(b, ']');
    if (with_cards) {
        buf_append_str(b, ",\"cards\":[");
        for (uint32_t i = 0; i < cards_count(m->cards); i++) {
            buf_append_str(b, i > 0 ? "," : "");
            card_append_json(cards_at(m->cards, i), b);
        }
        buf_append_char(b, ']');
    }
    buf_append_char(b, '}');
    free(entries);
    return b->error != 0 ? error_set(err, b->error, "out of memory for the list of models") : 0;
}
