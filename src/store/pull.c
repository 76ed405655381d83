#include "store/pull.h"

#include "base/json.h"
#include "base/log.h"
#include "base/rng.h"
#include "store/files.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    PULLS_MAX = 64,
    LIST_BYTES_MAX = 8 << 20,
    LIST_TRIES = 3,
    WAIT_MS = 1000, /* before we look again what another process has fetched */
};

struct fetch { /* of one file; pulls share it */
    struct puller *puller;
    struct fetch *next;
    char path[4096];
    struct download *download;
    struct copy *copy;
    bool is_cancelled;
};

struct pull {
    struct puller *puller;
    struct pull *next;
    uint64_t id;
    char name[4096];
    bool must_link, is_trusting;
    struct pull_events events;
    enum { LOOKING, LISTING, FETCHING, WAITING, REMEMBERING, ENDING } phase;
    struct model_source source;
    bool is_parsed, is_listed, is_found;
    atomic_bool is_cancelled; /* the thread pool looks at it, too */
    char path[4096];
    struct copy_reader reader; /* of a local file, or the caller's; self NULL: none */
    uint64_t reader_bytes;
    char reader_tag[256], origin[4096];
    struct http_get *get;
    uint32_t n_lists;
    struct fetch *fetch;
    struct fetch_progress progress;
    uint8_t sha256[32];
    struct model_entry entry;
    struct error error;
    uv_work_t work;
    uv_timer_t timer;
};

struct puller {
    uv_loop_t *loop;
    struct models *models;
    char hub[1024], token[512];
    struct puller_config config; /* the numbers of it */
    struct http_multi *multi;
    struct pull *pulls;
    struct fetch *fetches;
    uint64_t last_id;
    uint32_t n_pulls; /* also those whose timer is being closed */
    bool is_closing, is_multi_closing;
    void (*closed)(void *arg);
    void *closed_arg;
};

static void look(struct pull *p);

/* ---- the end ---- */

static void on_multi_closed(void *arg)
{
    struct puller *u = arg;
    void (*closed)(void *) = u->closed;
    void *closed_arg = u->closed_arg;
    free(u);
    if (closed != NULL)
        closed(closed_arg);
}

static void check_closed(struct puller *u)
{
    if (!u->is_closing || u->is_multi_closing || u->n_pulls > 0 || u->fetches != NULL)
        return;
    u->is_multi_closing = true;
    http_multi_close(u->multi, on_multi_closed, u);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct pull *p = handle->data;
    struct puller *u = p->puller;
    free(p);
    u->n_pulls--;
    check_closed(u);
}

static void on_end(uv_timer_t *timer)
{
    struct pull *p = timer->data;
    for (struct pull **at = &p->puller->pulls; *at != NULL; at = &(*at)->next)
        if (*at == p) {
            *at = p->next;
            break;
        }
    if (p->reader.self != NULL)
        p->reader.close(p->reader.self);
    p->events.done(p->events.arg, p->error.code == 0 ? &p->entry : NULL, p->is_found, &p->error);
    uv_close((uv_handle_t *)timer, on_timer_closed);
}

/* The end comes in the next turn of the loop, from wherever this is called. */
static void end(struct pull *p, const struct error *err)
{
    if (p->phase == ENDING)
        return;
    p->phase = ENDING;
    p->error = *err;
    uv_timer_start(&p->timer, on_end, 0, 0);
}

static void end_cancelled(struct pull *p)
{
    struct error err;
    error_set(&err, E_CANCELLED, "fetching %.200s was cancelled", p->name);
    end(p, &err);
}

static void tell(const struct pull *p)
{
    static const char *const names[] = {"looking", "listing",  "fetching",
                                        "waiting", "fetching", "fetching"};
    struct pull_status s = {
        .file = p->source.name, .phase = names[p->phase], .progress = p->progress};
    if (p->events.status != NULL && p->phase != ENDING)
        p->events.status(p->events.arg, &s);
}

/* ---- fetching ---- */

static void remember(struct pull *p);

static void on_wait_over(uv_timer_t *timer)
{
    look(timer->data);
}

static void on_fetch_progress(void *arg, const struct fetch_progress *progress)
{
    struct fetch *f = arg;
    for (struct pull *p = f->puller->pulls; p != NULL; p = p->next)
        if (p->fetch == f) {
            p->progress = *progress;
            tell(p);
        }
}

static void on_fetch_done(void *arg, const uint8_t sha256[32], const struct error *err)
{
    struct fetch *f = arg;
    struct puller *u = f->puller;
    for (struct fetch **at = &u->fetches; *at != NULL; at = &(*at)->next)
        if (*at == f) {
            *at = f->next;
            break;
        }
    for (struct pull *p = u->pulls; p != NULL; p = p->next) {
        if (p->fetch != f)
            continue;
        p->fetch = NULL;
        if (err->code == E_AGAIN && p->reader.self == NULL && !u->is_closing) {
            p->phase = WAITING;
            tell(p);
            uv_timer_start(&p->timer, on_wait_over, WAIT_MS, 0);
        } else if (err->code != 0) {
            end(p, err);
        } else {
            memcpy(p->sha256, sha256, sizeof(p->sha256));
            p->progress.downloaded_bytes = p->progress.total_bytes;
            remember(p);
        }
    }
    free(f);
    check_closed(u);
}

static int start_download(struct fetch *f, struct pull *p, const struct fetch_events *events,
                          struct error *err)
{
    struct puller *u = p->puller;
    /* The token is the hub's: no other address gets it. */
    size_t n = strlen(u->hub);
    bool is_of_hub = strncmp(p->source.url, u->hub, n) == 0 && p->source.url[n] == '/';
    struct download_options o = {
        .url = p->source.url,
        .path = p->path,
        .bearer = is_of_hub ? u->token : NULL,
        .sha256 = p->source.has_sha256 ? p->source.sha256 : NULL,
        .size_bytes = p->source.size_bytes,
        .checks_gguf = true,
        .n_connections = u->config.n_connections,
        .stall_ms = u->config.stall_ms,
        .attempts = u->config.attempts,
        .piece_bytes = u->config.piece_bytes,
    };
    snprintf(p->origin, sizeof(p->origin), "%s", p->source.url);
    return download_start(u->multi, &o, events, &f->download, err);
}

static int start_copy(struct fetch *f, struct pull *p, const struct fetch_events *events,
                      struct error *err)
{
    struct copy_options o = {
        .origin = p->origin,
        .tag = p->reader_tag,
        .path = p->path,
        .size_bytes = p->reader_bytes,
        .sha256 = p->source.has_sha256 ? p->source.sha256 : NULL,
        .checks_gguf = true,
    };
    struct copy_reader reader = p->reader;
    p->reader.self = NULL;
    return copy_start(p->puller->loop, &o, &reader, events, &f->copy, err);
}

static void fetch(struct pull *p)
{
    struct puller *u = p->puller;
    struct error err = {0};
    p->phase = FETCHING;
    for (struct fetch *f = u->fetches; f != NULL; f = f->next)
        if (strcmp(f->path, p->path) == 0) {
            if (f->is_cancelled) { /* that one is just being given up */
                p->phase = WAITING;
                uv_timer_start(&p->timer, on_wait_over, WAIT_MS, 0);
                return;
            }
            p->fetch = f;
            snprintf(p->origin, sizeof(p->origin), "%s", p->source.url);
            return;
        }
    struct fetch *f = calloc(1, sizeof(*f));
    if (f == NULL) {
        error_set(&err, E_NOMEM, "out of memory to fetch %.200s", p->name);
        end(p, &err);
        return;
    }
    f->puller = u;
    memcpy(f->path, p->path, sizeof(f->path));
    struct fetch_events events = {.arg = f, .progress = on_fetch_progress, .done = on_fetch_done};
    int rc = p->reader.self != NULL ? start_copy(f, p, &events, &err)
                                    : start_download(f, p, &events, &err);
    if (rc != 0) {
        free(f);
        end(p, &err);
        return;
    }
    log_info("store", "fetches %s from %s", p->path, p->origin);
    f->next = u->fetches;
    u->fetches = f;
    p->fetch = f;
    tell(p);
}

/* ---- what came is remembered, in the thread pool ---- */

static void do_remember(uv_work_t *work)
{
    struct pull *p = work->data;
    struct models *m = p->puller->models;
    struct error ignored = {0};
    models_remember(m, p->path, &p->source, p->origin, p->sha256, &ignored);
    models_read(m, p->path, &p->entry, &p->error);
}

static void after_remember(uv_work_t *work, int status)
{
    struct pull *p = work->data;
    struct error err = p->error;
    (void)status;
    if (err.code == 0)
        log_info("store", "has fetched %s", p->path);
    end(p, &err);
}

static void remember(struct pull *p)
{
    p->phase = REMEMBERING;
    error_clear(&p->error);
    uv_queue_work(p->puller->loop, &p->work, do_remember, after_remember);
}

/* ---- asking the hub ---- */

static void list(struct pull *p);

static void on_list_again(uv_timer_t *timer)
{
    list(timer->data);
}

static void on_list(void *arg, long status, const struct buf *body, const char *cause)
{
    struct pull *p = arg;
    struct puller *u = p->puller;
    struct error err = {0};
    p->get = NULL;
    if (status == 200) {
        p->is_listed = true;
        if (source_choose(&p->source, u->hub, buf_str(body), body->len, &err) != 0)
            end(p, &err);
        else
            look(p);
        return;
    }
    if (status == 401 || status == 403 || status == 404) {
        error_set(&err, E_NOTFOUND,
                  "%s has no repository %s, or it is not for everybody (%ld): then accept its "
                  "licence there and set HF_TOKEN",
                  u->hub, p->source.repo, status);
        end(p, &err);
        return;
    }
    if ((status == 0 || download_status_passes(status)) && ++p->n_lists < LIST_TRIES) {
        uint32_t chance = 0;
        rng_system(&chance, sizeof(chance));
        uv_timer_start(&p->timer, on_list_again, download_pause_ms(p->n_lists, chance), 0);
        return;
    }
    if (source_guess(&p->source, u->hub, &err) == 0) { /* the file may be there all the same */
        p->is_listed = true;
        look(p);
        return;
    }
    if (status == 0)
        error_set(&err, E_UNAVAILABLE, "%s cannot be asked for %s: %s", u->hub, p->source.repo,
                  cause);
    else
        error_set(&err, E_UNAVAILABLE, "%s answered with status %ld for %s", u->hub, status,
                  p->source.repo);
    end(p, &err);
}

static void list(struct pull *p)
{
    struct puller *u = p->puller;
    char url[4096];
    struct error err = {0};
    p->phase = LISTING;
    int rc = source_list_url(&p->source, u->hub, url, &err);
    if (rc == 0)
        rc = http_get_start(u->multi, url, u->token, LIST_BYTES_MAX, on_list, p, &p->get, &err);
    if (rc != 0)
        end(p, &err);
    else
        tell(p);
}

/* ---- looking, in the thread pool ---- */

/* Whether what is here will do. */
static bool is_whole(struct pull *p)
{
    struct models *m = p->puller->models;
    struct error ignored = {0};
    const struct model_source *s = &p->source;
    struct model_entry *e = &p->entry;
    if (models_read(m, p->path, e, &ignored) != 0)
        return false;
    bool is_other =
        (s->size_bytes != 0 && e->size_bytes != s->size_bytes) ||
        (s->has_sha256 && e->has_sha256 && memcmp(e->sha256, s->sha256, sizeof(e->sha256)) != 0);
    if (e->is_damaged || is_other)
        return false;
    if (!p->is_trusting && models_check(m, p->path, &p->is_cancelled, e, &ignored) != 0)
        return false;
    return !s->has_sha256 || !e->has_sha256 || memcmp(e->sha256, s->sha256, sizeof(e->sha256)) == 0;
}

static void do_link(struct pull *p)
{
    char *real = realpath(p->source.path, NULL);
    if (real == NULL)
        error_set(&p->error, E_NOTFOUND, "there is no file %s", p->source.path);
    else if (files_make_folder_of(p->path, &p->error) == 0 && symlink(real, p->path) != 0)
        error_set(&p->error, E_IO, "cannot make the link %s: %s", p->path, strerror(errno));
    free(real);
    if (p->error.code == 0)
        models_read(p->puller->models, p->path, &p->entry, &p->error);
    p->is_found = p->error.code == 0;
}

static void do_look(uv_work_t *work)
{
    struct pull *p = work->data;
    struct puller *u = p->puller;
    if (!p->is_parsed && source_parse(models_cards(u->models), p->name, &p->source, &p->error) != 0)
        return;
    p->is_parsed = true;
    if (p->source.name[0] == '\0') {
        p->is_found =
            u->config.is_offline && models_find(u->models, p->name, &p->entry, &p->error) == 0;
        return;
    }
    if (models_path(u->models, p->source.name, p->path, &p->error) != 0)
        return;
    p->is_found = is_whole(p);
    if (p->is_found || p->source.kind != SOURCE_PATH)
        return;
    if (p->must_link) {
        do_link(p);
    } else if (p->reader.self == NULL) {
        snprintf(p->origin, sizeof(p->origin), "%s", p->source.path);
        copy_open_file(u->loop, p->source.path, &p->reader, &p->reader_bytes, p->reader_tag,
                       &p->error);
    }
}

static void after_look(uv_work_t *work, int status)
{
    struct pull *p = work->data;
    struct error err = p->error;
    (void)status;
    if (p->is_cancelled) {
        end_cancelled(p);
    } else if (err.code != 0 || p->is_found) {
        end(p, &err);
    } else if (p->puller->config.is_offline && p->reader.self == NULL) {
        error_set(&err, E_UNAVAILABLE,
                  "%.200s is not on this computer, and this is offline: nothing is fetched",
                  p->name);
        end(p, &err);
    } else if (p->source.kind == SOURCE_REPO && !p->is_listed) {
        list(p);
    } else {
        fetch(p);
    }
}

static void look(struct pull *p)
{
    p->phase = LOOKING;
    error_clear(&p->error);
    p->work.data = p;
    tell(p);
    uv_queue_work(p->puller->loop, &p->work, do_look, after_look);
}

/* ---- the interface ---- */

int puller_new(uv_loop_t *loop, const struct puller_config *config, struct puller **ret_puller,
               struct error *err)
{
    const char *hub =
        config->hub != NULL && config->hub[0] != '\0' ? config->hub : PULL_HUB_DEFAULT;
    const char *token = config->token != NULL ? config->token : "";
    struct puller *u = calloc(1, sizeof(*u));
    if (u == NULL)
        return error_set(err, E_NOMEM, "out of memory for fetching models");
    size_t n = strlen(hub);
    while (n > 0 && hub[n - 1] == '/')
        n--;
    bool is_address = strncmp(hub, "http://", 7) == 0 || strncmp(hub, "https://", 8) == 0;
    int rc =
        !is_address || n >= sizeof(u->hub)
            ? error_set(err, E_INVALID, "the hub '%.100s' must be an http or https address", hub)
        : strlen(token) >= sizeof(u->token)
            ? error_set(err, E_INVALID, "the hub's token has over %zu bytes", sizeof(u->token) - 1)
            : http_multi_new(loop, &u->multi, err);
    if (rc != 0) {
        free(u);
        return rc;
    }
    snprintf(u->hub, sizeof(u->hub), "%.*s", (int)n, hub);
    memcpy(u->token, token, strlen(token) + 1);
    u->loop = loop;
    u->models = config->models;
    u->config = *config;
    u->config.hub = u->config.token = NULL;
    *ret_puller = u;
    return 0;
}

void puller_close(struct puller *u, void (*closed)(void *arg), void *arg)
{
    u->is_closing = true;
    u->closed = closed;
    u->closed_arg = arg;
    for (struct pull *p = u->pulls; p != NULL; p = p->next)
        puller_cancel(u, p->id);
    check_closed(u);
}

static int new_pull(struct puller *u, const char *name, const struct pull_events *events,
                    struct pull **ret_pull, struct error *err)
{
    if (u->is_closing || u->n_pulls >= PULLS_MAX)
        return error_set(err, E_BUSY, "%u models are being fetched: try later", u->n_pulls);
    if (strlen(name) >= sizeof((*ret_pull)->name))
        return error_set(err, E_LIMIT, "the model's name is too long");
    struct pull *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "out of memory to fetch %.200s", name);
    p->puller = u;
    p->id = ++u->last_id;
    p->events = *events;
    p->progress.eta_s = -1;
    memcpy(p->name, name, strlen(name) + 1);
    uv_timer_init(u->loop, &p->timer);
    p->timer.data = p;
    p->work.data = p;
    p->next = u->pulls;
    u->pulls = p;
    u->n_pulls++;
    *ret_pull = p;
    return 0;
}

int puller_pull(struct puller *u, const struct pull_options *options,
                const struct pull_events *events, uint64_t *ret_id, struct error *err)
{
    struct pull *p;
    int rc = new_pull(u, options->name, events, &p, err);
    if (rc != 0)
        return rc;
    p->must_link = options->must_link;
    p->is_trusting = options->is_trusting;
    *ret_id = p->id;
    p->phase = LOOKING;
    uv_queue_work(u->loop, &p->work, do_look, after_look);
    return 0;
}

int puller_copy(struct puller *u, const struct copy_reader *reader, const char *file,
                const char *origin, const char *tag, uint64_t size_bytes, const uint8_t *sha256,
                const struct pull_events *events, uint64_t *ret_id, struct error *err)
{
    struct pull *p = NULL;
    int rc = strlen(file) < sizeof(p->source.name) && strchr(file, '/') == NULL && file[0] != '.' &&
                     strlen(origin) < sizeof(p->origin) && strlen(tag) < sizeof(p->reader_tag)
                 ? new_pull(u, file, events, &p, err)
                 : error_set(err, E_INVALID, "'%.100s' is no name for a file", file);
    if (rc == 0)
        rc = models_path(u->models, file, p->path, err);
    if (rc != 0) {
        reader->close(reader->self);
        return rc;
    }
    snprintf(p->source.name, sizeof(p->source.name), "%s", file);
    snprintf(p->origin, sizeof(p->origin), "%s", origin);
    snprintf(p->reader_tag, sizeof(p->reader_tag), "%s", tag);
    p->source.has_sha256 = sha256 != NULL;
    if (sha256 != NULL)
        memcpy(p->source.sha256, sha256, sizeof(p->source.sha256));
    p->reader = *reader;
    p->reader_bytes = size_bytes;
    *ret_id = p->id;
    fetch(p);
    return 0;
}

void puller_cancel(struct puller *u, uint64_t id)
{
    struct pull *p = u->pulls;
    while (p != NULL && p->id != id)
        p = p->next;
    if (p == NULL || p->phase == ENDING)
        return;
    p->is_cancelled = true;
    if (p->phase == LOOKING || p->phase == REMEMBERING)
        return; /* the thread pool has it: it ends when that does */
    if (p->phase == LISTING) {
        http_get_cancel(p->get);
        p->get = NULL;
    }
    struct fetch *f = p->fetch;
    p->fetch = NULL;
    end_cancelled(p);
    for (const struct pull *o = u->pulls; o != NULL; o = o->next)
        if (f != NULL && o->fetch == f)
            return;
    if (f == NULL || f->is_cancelled)
        return;
    f->is_cancelled = true;
    if (f->download != NULL)
        download_cancel(f->download);
    else
        copy_cancel(f->copy);
}

int puller_append_json(const struct puller *u, struct buf *b)
{
    static const char *const names[] = {"looking", "listing",  "fetching",
                                        "waiting", "fetching", "ending"};
    buf_append_str(b, "{\"pulls\":[");
    for (const struct pull *p = u->pulls; p != NULL; p = p->next) {
        buf_printf(b, "%s{\"id\":%llu,\"model\":", p == u->pulls ? "" : ",",
                   (unsigned long long)p->id);
        json_append_string(b, p->name, strlen(p->name));
        buf_append_str(b, ",\"file\":");
        json_append_string(b, p->phase == LOOKING ? "" : p->source.name,
                           p->phase == LOOKING ? 0 : strlen(p->source.name));
        buf_printf(b, ",\"phase\":\"%s\",\"downloaded_bytes\":%llu,\"bytes_per_s\":%llu",
                   names[p->phase], (unsigned long long)p->progress.downloaded_bytes,
                   (unsigned long long)p->progress.bytes_per_s);
        if (p->progress.total_bytes > 0)
            buf_printf(b, ",\"total_bytes\":%llu", (unsigned long long)p->progress.total_bytes);
        else
            buf_append_str(b, ",\"total_bytes\":null");
        if (p->progress.eta_s >= 0)
            buf_printf(b, ",\"eta_s\":%lld}", (long long)p->progress.eta_s);
        else
            buf_append_str(b, ",\"eta_s\":null}");
    }
    return buf_append_str(b, "]}");
}
