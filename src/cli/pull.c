/* `shoal pull`: gets a model, by name, from a hub, an address, or a file. */
#include "cli/cli.h"
#include "cli/model_options.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPTION_LINK = 600, OPTION_CONNECTIONS, OPTION_STALL, OPTION_ATTEMPTS, OPTION_PIECE };
enum { POLL_MS = 500, LINE_S = 10 };

static const struct option options[] = {
    MODEL_OPTIONS,
    {"hub", required_argument, NULL, MODEL_OPTION_HUB},
    {"offline", no_argument, NULL, MODEL_OPTION_OFFLINE},
    {"link", no_argument, NULL, OPTION_LINK},
    {"connections", required_argument, NULL, OPTION_CONNECTIONS},
    {"stall", required_argument, NULL, OPTION_STALL},
    {"attempts", required_argument, NULL, OPTION_ATTEMPTS},
    {"piece-kib", required_argument, NULL, OPTION_PIECE},
    {NULL, 0, NULL, 0},
};

struct pulling {
    struct model_options options;
    struct puller_config config;
    bool must_link;
    uv_loop_t loop;
    uv_signal_t interrupt, term;
    struct puller *puller;
    uint64_t id;
    const char *name;
    bool is_tty, is_line_open;
    uint64_t line_ms;
    struct error error;
};

static void print_help(FILE *out)
{
    fprintf(
        out,
        "usage: shoal pull MODEL [options]\n\n"
        "Gets a model. MODEL is\n"
        "  llama3.2:3b, llama3.2:3b-Q8_0      a name that `shoal ls --all` lists\n"
        "  OWNER/REPO, OWNER/REPO:Q4_K_M      a repository of the hub; hf:OWNER/REPO/FILE.gguf\n"
        "  https://HOST/FILE.gguf             an address\n"
        "  FILE.gguf, FOLDER                  of this computer: copied, or linked with --link\n\n"
        "What was interrupted goes on where it stopped.\n\n" MODEL_OPTIONS_HELP
        "  --hub URL          where repositories are (%s)\n"
        "  --offline          fetches nothing: says whether the model is here\n"
        "  --link             links a file of this computer, instead of copying it\n"
        "  --connections N    at a time (%d)\n"
        "  --stall SECONDS    of silence after which a connection is given up (%d)\n"
        "  --attempts N       in a row without a new byte (%d)\n"
        "  --piece-kib N      that one connection asks for at a time (default: by the size)\n\n"
        "HF_TOKEN is sent to the hub. http_proxy, https_proxy and no_proxy are followed.\n",
        PULL_HUB_DEFAULT, DOWNLOAD_CONNECTIONS_DEFAULT, DOWNLOAD_STALL_MS_DEFAULT / 1000,
        DOWNLOAD_ATTEMPTS_DEFAULT);
}

/* ---- what is shown ---- */

static void print_json(const char *file, const char *phase, const struct fetch_progress *p)
{
    struct buf b;
    buf_init(&b, 65536);
    buf_append_str(&b, "{\"file\":");
    json_append_string(&b, file, strlen(file));
    buf_printf(
        &b, ",\"phase\":\"%s\",\"downloaded_bytes\":%llu,\"total_bytes\":%llu,\"bytes_per_s\":%llu",
        phase, (unsigned long long)p->downloaded_bytes, (unsigned long long)p->total_bytes,
        (unsigned long long)p->bytes_per_s);
    if (p->eta_s >= 0)
        buf_printf(&b, ",\"eta_s\":%lld}", (long long)p->eta_s);
    else
        buf_append_str(&b, ",\"eta_s\":null}");
    printf("%s\n", buf_str(&b));
    fflush(stdout);
    buf_done(&b);
}

/* On a terminal one line that changes; elsewhere a line now and then. */
static void show(struct pulling *s, const char *file, const char *phase,
                 const struct fetch_progress *p)
{
    char have[32], total[32], speed[32], left[32] = "";
    uint64_t now_ms = uv_hrtime() / 1000000u;
    if (s->options.as_json) {
        print_json(file, phase, p);
        return;
    }
    if (!s->is_tty && now_ms - s->line_ms < LINE_S * 1000u)
        return;
    s->line_ms = now_ms;
    if (s->is_tty)
        fprintf(stderr, "\r\033[K");
    if (strcmp(phase, "fetching") != 0) {
        fprintf(stderr, "%s%s", strcmp(phase, "waiting") == 0 ? "another process fetches " : phase,
                strcmp(phase, "waiting") == 0 ? file : " ...");
    } else {
        if (p->eta_s >= 0)
            text_of_seconds(p->eta_s, left);
        fprintf(stderr, "%s  %3.0f %%  %s of %s  %s/s  %s", file,
                p->total_bytes > 0 ? 100.0 * (double)p->downloaded_bytes / (double)p->total_bytes
                                   : 0.0,
                text_of_bytes(p->downloaded_bytes, have),
                p->total_bytes > 0 ? text_of_bytes(p->total_bytes, total) : "?",
                text_of_bytes(p->bytes_per_s, speed), left);
    }
    if (!s->is_tty)
        fprintf(stderr, "\n");
    s->is_line_open = s->is_tty;
}

static void end_line(struct pulling *s)
{
    if (s->is_line_open)
        fprintf(stderr, "\r\033[K");
    s->is_line_open = false;
}

static void print_entry(const struct pulling *s, const struct model_entry *e, bool was_there)
{
    char size[32];
    struct buf b;
    if (!s->options.as_json) {
        printf("%s %s (%s, %s)\n", was_there ? "is here already:" : "has come:", e->path,
               e->quantization, text_of_bytes(e->size_bytes, size));
        if (!e->can_run)
            printf("note: shoal cannot run the architecture '%s'\n", e->architecture);
        return;
    }
    buf_init(&b, 65536);
    buf_printf(&b, "{\"phase\":\"done\",\"was_there\":%s,\"model\":", was_there ? "true" : "false");
    model_entry_append_json(e, &b);
    printf("%s}\n", buf_str(&b));
    buf_done(&b);
}

/* ---- here ---- */

static void on_status(void *arg, const struct pull_status *status)
{
    struct pulling *s = arg;
    show(s, status->file, status->phase, &status->progress);
}

static void on_closed(void *arg)
{
    struct pulling *s = arg;
    uv_close((uv_handle_t *)&s->interrupt, NULL);
    uv_close((uv_handle_t *)&s->term, NULL);
}

static void on_done(void *arg, const struct model_entry *entry, bool was_there,
                    const struct error *err)
{
    struct pulling *s = arg;
    end_line(s);
    s->error = *err;
    if (entry != NULL)
        print_entry(s, entry, was_there);
    puller_close(s->puller, on_closed, s);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct pulling *s = handle->data;
    (void)number;
    puller_cancel(s->puller, s->id);
}

static int pull_here(struct pulling *s, struct models *models, const char *name, struct error *err)
{
    struct pull_options pull = {.name = name, .must_link = s->must_link};
    struct pull_events events = {.arg = s, .status = on_status, .done = on_done};
    s->config.models = models;
    s->config.hub = s->options.hub;
    s->config.token = s->options.token;
    s->config.is_offline = s->options.is_offline;
    s->name = name;
    uv_loop_init(&s->loop);
    int rc = puller_new(&s->loop, &s->config, &s->puller, err);
    if (rc == 0) {
        uv_signal_init(&s->loop, &s->interrupt);
        uv_signal_init(&s->loop, &s->term);
        s->interrupt.data = s->term.data = s;
        uv_signal_start(&s->interrupt, on_signal, SIGINT);
        uv_signal_start(&s->term, on_signal, SIGTERM);
        rc = puller_pull(s->puller, &pull, &events, &s->id, err);
        if (rc != 0)
            puller_close(s->puller, on_closed, s);
    }
    uv_run(&s->loop, UV_RUN_DEFAULT);
    uv_loop_close(&s->loop);
    if (rc == 0 && s->error.code != 0) {
        *err = s->error;
        rc = err->code;
    }
    return rc;
}

/* Each model of a folder. */
static int pull_folder(struct pulling *s, struct models *models, const char *folder,
                       struct error *err)
{
    char path[4096];
    struct dirent *d;
    uint32_t n_files = 0;
    int rc = 0;
    DIR *dir = opendir(folder);
    while (dir != NULL && rc == 0 && (d = readdir(dir)) != NULL) {
        size_t len = strlen(d->d_name);
        if (len <= 5 || strcasecmp(d->d_name + len - 5, ".gguf") != 0)
            continue;
        int n = snprintf(path, sizeof(path), "%s/%s", folder, d->d_name);
        n_files++;
        rc = n > 0 && (size_t)n < sizeof(path)
                 ? pull_here(s, models, path, err)
                 : error_set(err, E_LIMIT, "the path of %s is too long", d->d_name);
    }
    if (dir != NULL)
        closedir(dir);
    return rc == 0 && n_files == 0
               ? error_set(err, E_NOTFOUND, "there is no GGUF file in %s", folder)
               : rc;
}

/* ---- at a node ---- */

static struct fetch_progress progress_of(const json_t *o)
{
    const json_t *eta = json_object_get(o, "eta_s");
    return (struct fetch_progress){
        .downloaded_bytes = (uint64_t)json_integer_value(json_object_get(o, "downloaded_bytes")),
        .total_bytes = (uint64_t)json_integer_value(json_object_get(o, "total_bytes")),
        .bytes_per_s = (uint64_t)json_integer_value(json_object_get(o, "bytes_per_s")),
        .eta_s = json_is_integer(eta) ? (int64_t)json_integer_value(eta) : -1,
    };
}

static const json_t *find_pull(const json_t *answer, json_int_t id)
{
    const json_t *list = json_object_get(answer, "pulls"), *item;
    size_t i;
    json_array_foreach(list, i,
                       item) if (json_integer_value(json_object_get(item, "id")) == id) return item;
    return NULL;
}

/* The node fetches, also when nobody watches; this asks how far it is. */
static int pull_there(struct pulling *s, const char *name, struct error *err)
{
    const char *api = s->options.api;
    json_t *answer = NULL;
    bool is_over = false;
    int rc = model_api_call(api, "pull", name, &answer, err);
    if (rc != 0)
        return rc;
    json_int_t id = json_integer_value(json_object_get(answer, "id"));
    json_decref(answer);
    while (rc == 0 && !is_over) {
        answer = NULL;
        rc = model_api_call(api, "pulls", NULL, &answer, err);
        const json_t *p = rc == 0 ? find_pull(answer, id) : NULL;
        const char *file = json_string_value(json_object_get(p, "file"));
        const char *phase = json_string_value(json_object_get(p, "phase"));
        const char *message = json_string_value(json_object_get(p, "error"));
        if (rc == 0 && (file == NULL || phase == NULL)) {
            rc =
                error_set(err, E_UNAVAILABLE, "the node at %s knows nothing of this any more", api);
        } else if (rc == 0 && strcmp(phase, "failed") == 0) {
            rc = error_set(err, E_UNAVAILABLE, "%s", message != NULL ? message : "failed");
        } else if (rc == 0 && strcmp(phase, "done") == 0) {
            end_line(s);
            printf("has come: %s\n", file);
            is_over = true;
        } else if (rc == 0) {
            struct fetch_progress progress = progress_of(p);
            show(s, file, phase, &progress);
        }
        json_decref(answer);
        if (rc == 0 && !is_over)
            usleep(POLL_MS * 1000);
    }
    end_line(s);
    return rc;
}

/* ---- options ---- */

static int take_option(struct pulling *s, int key, const char *value, struct error *err)
{
    struct puller_config *c = &s->config;
    uint32_t number = 0;
    int rc = 0;
    switch (key) {
    case OPTION_LINK:
        s->must_link = true;
        return 0;
    case OPTION_CONNECTIONS:
        return cli_parse_u32("--connections", value, 1, DOWNLOAD_CONNECTIONS_MAX, &c->n_connections,
                             err);
    case OPTION_STALL:
        rc = cli_parse_u32("--stall", value, 1, 3600, &number, err);
        c->stall_ms = number * 1000;
        return rc;
    case OPTION_ATTEMPTS:
        return cli_parse_u32("--attempts", value, 1, 1000, &c->attempts, err);
    case OPTION_PIECE:
        rc = cli_parse_u32("--piece-kib", value, 1, 1u << 20, &number, err);
        c->piece_bytes = (uint64_t)number << 10;
        return rc;
    default:
        return model_option_take(&s->options, key, value, err);
    }
}

static int pull(struct pulling *s, const char *name, struct error *err)
{
    struct models *models = NULL;
    struct stat info;
    if (s->options.api != NULL) {
        char *path = stat(name, &info) == 0 ? realpath(name, NULL) : NULL;
        int rc = pull_there(s, path != NULL ? path : name, err);
        free(path);
        return rc;
    }
    int rc = model_options_open(&s->options, &models, err);
    if (rc != 0)
        return rc;
    bool is_folder = stat(name, &info) == 0 && S_ISDIR(info.st_mode);
    rc = is_folder ? pull_folder(s, models, name, err) : pull_here(s, models, name, err);
    models_close(models);
    return rc;
}

int cli_pull(int argc, char **argv)
{
    struct error err = {0};
    struct pulling *s = calloc(1, sizeof(*s));
    int key, rc = s != NULL ? model_options_init(&s->options, &err) : E_NOMEM;
    optind = 1;
    while (rc == 0 && !s->options.wants_help &&
           (key = getopt_long(argc, argv, "", options, NULL)) != -1)
        rc = take_option(s, key, optarg, &err);
    if (rc == 0 && s->options.wants_help) {
        print_help(stdout);
        free(s);
        return 0;
    }
    if (rc == 0 && argc - optind != 1)
        rc = error_set(&err, E_INVALID, "pull takes one model: try `shoal pull --help`");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGXFSZ, SIG_IGN); /* a limit on the size of files is an error of write() */
    if (rc == 0) {
        s->is_tty = isatty(STDERR_FILENO) == 1;
        rc = pull(s, argv[optind], &err);
    }
    free(s);
    return rc != 0 ? cli_fail(&err) : 0;
}
