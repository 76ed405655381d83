/*
 * Model files in Ollama's words: /api/pull, /api/delete, /api/copy. A pull is a stream of what it
 * does; while the client is behind, only the latest status is kept. A client that leaves ends its
 * pull, as in Ollama: what was fetched stays, and the next pull goes on from there. Removing and
 * copying are not undone when the client leaves.
 *
 * A job lives until the backend is done with it and its response has ended; jobs that outlive the
 * api (the backend may still answer) refer to nothing.
 */
#include "api/ollama.h"
#include "api/request_fields.h"
#include "base/clock.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum {
    JOBS_MAX = 64, /* at a time */
    BODY_BYTES_MAX = 65536,
    STATUS_EVERY_MS = 60, /* people see no more */
    KEEPALIVE_MS = 10000,
    FILE_BYTES = 256,
};

#define NS_PER_MS 1000000u

struct ollama_job {
    struct api *api; /* NULL: it is closed */
    struct ollama_job *next, *prev;
    struct http_response *response; /* NULL: ended or gone */
    uint64_t pull_id;
    bool is_pull, is_running; /* the backend will say done */
    bool stream, is_streaming, is_held_back;
    bool has_status, is_unsent; /* in the fields below */
    uint64_t last_write_ns;
    struct api_pull_status status; /* file is below */
    char file[FILE_BYTES];
};

static void job_release(struct ollama_job *j)
{
    struct api *a = j->api;
    if (j->response != NULL || j->is_running)
        return;
    if (a != NULL) {
        if (j->prev != NULL)
            j->prev->next = j->next;
        else
            a->ollama_jobs = j->next;
        if (j->next != NULL)
            j->next->prev = j->prev;
        a->n_ollama_jobs--;
    }
    free(j);
}

static void append_status(struct buf *b, const struct ollama_job *j)
{
    const struct api_pull_status *s = &j->status;
    size_t from = b->len;
    buf_append_str(b, "{\"status\":");
    if (s->phase == API_PULL_FETCHING) {
        struct buf text;
        buf_init(&text, FILE_BYTES + 16);
        if (s->digest[0] != '\0') /* clients have a bar for each digest */
            buf_printf(&text, "pulling %.12s", s->digest);
        else
            buf_printf(&text, "pulling %s", j->file);
        json_append_string(b, buf_str(&text), text.len);
        buf_done(&text);
        if (s->digest[0] != '\0')
            buf_printf(b, ",\"digest\":\"sha256:%s\"", s->digest);
        if (s->n_total > 0)
            buf_printf(b, ",\"total\":%llu,\"completed\":%llu", (unsigned long long)s->n_total,
                       (unsigned long long)s->n_done);
    } else {
        buf_append_str(b, s->phase == API_PULL_LOOKING    ? "\"pulling manifest\""
                          : s->phase == API_PULL_WAITING  ? "\"waiting for another process\""
                          : s->phase == API_PULL_CHECKING ? "\"verifying sha256 digest\""
                                                          : "\"writing manifest\"");
    }
    buf_append_char(b, '}');
    ollama_end_line(b, from);
}

static void begin_stream(struct ollama_job *j)
{
    if (j->is_streaming)
        return;
    j->is_streaming = true;
    http_response_header(j->response, "cache-control", "no-cache");
    http_response_header(j->response, "x-accel-buffering", "no");
    http_stream_begin(j->response, 200, OLLAMA_STREAM_TYPE);
}

static void flush(struct ollama_job *j)
{
    j->last_write_ns = clock_now_ns();
    if (http_stream_flush(j->response) == E_AGAIN)
        j->is_held_back = true;
}

static void send_status(struct ollama_job *j)
{
    begin_stream(j);
    append_status(http_stream_buf(j->response), j);
    j->is_unsent = false;
    flush(j);
}

static void fail(struct ollama_job *j, const struct api_error *e)
{
    struct http_response *r = j->response;
    j->response = NULL;
    if (!j->is_streaming) {
        api_error_respond(r, e);
        return;
    }
    struct buf *b = http_stream_buf(r);
    if (j->is_unsent)
        append_status(b, j);
    api_error_append_for(b, e, "/api/");
    ollama_end_line(b, b->len);
    http_stream_flush(r);
    http_stream_end(r, true);
}

/* It is there, or removed, or copied. */
static void succeed(struct ollama_job *j)
{
    static const char text[] = "{\"status\":\"success\"}";
    struct http_response *r = j->response;
    if (j->is_pull && j->stream) {
        begin_stream(j);
        struct buf *b = http_stream_buf(r);
        if (j->is_unsent)
            append_status(b, j);
        buf_append_str(b, text);
        buf_append_char(b, '\n');
        j->response = NULL;
        http_stream_flush(r);
        http_stream_end(r, false);
        return;
    }
    j->response = NULL;
    if (j->is_pull)
        http_respond(r, 200, "application/json", text, sizeof(text) - 1);
    else
        http_respond(r, 200, "text/plain; charset=utf-8", "", 0);
}

static void on_status(void *arg, const struct api_pull_status *s)
{
    struct ollama_job *j = arg;
    bool is_new = !j->has_status || s->phase != j->status.phase || strcmp(s->file, j->file) != 0;
    if (j->response == NULL || !j->stream)
        return;
    if (is_new && j->is_unsent && !j->is_held_back)
        send_status(j); /* the end of what came before */
    snprintf(j->file, sizeof(j->file), "%s", s->file);
    j->status = *s;
    j->status.file = j->file;
    j->has_status = j->is_unsent = true;
    bool is_due = clock_now_ns() - j->last_write_ns >= (uint64_t)STATUS_EVERY_MS * NS_PER_MS;
    if (!j->is_held_back && (is_new || is_due))
        send_status(j);
}

static void on_done(void *arg, const struct error *err)
{
    struct ollama_job *j = arg;
    struct api_error e;
    j->is_running = false;
    if (j->response != NULL && err->code == 0) {
        succeed(j);
    } else if (j->response != NULL) {
        api_error_from(&e, err);
        fail(j, &e);
    }
    job_release(j);
}

static void on_gone(void *arg)
{
    struct ollama_job *j = arg;
    const struct api_backend *b = j->api->backend;
    j->response = NULL;
    if (j->is_pull && j->is_running) {
        log_info("api", "pull=%llu client left -> cancelled", (unsigned long long)j->pull_id);
        b->models_pull_cancel(b->self, j->pull_id);
    }
    job_release(j);
}

static void on_drained(void *arg)
{
    struct ollama_job *j = arg;
    j->is_held_back = false;
    if (j->is_unsent)
        send_status(j);
}

/* What changes files is taken from where orders to the cluster are taken. */
static struct ollama_job *job_new(struct api *a, const struct http_request *q,
                                  struct http_response *r, struct api_error *e)
{
    if (cluster_orders_check_client(q, r, e) != 0)
        return NULL;
    if (a->n_ollama_jobs >= JOBS_MAX) {
        api_error_set(e, 429, NULL, NULL, "%u models are being fetched or changed already",
                      a->n_ollama_jobs);
        return NULL;
    }
    struct ollama_job *j = calloc(1, sizeof(*j));
    if (j == NULL) {
        api_error_set(e, 503, NULL, NULL, "out of memory");
        return NULL;
    }
    j->api = a;
    j->next = a->ollama_jobs;
    if (j->next != NULL)
        j->next->prev = j;
    a->ollama_jobs = j;
    a->n_ollama_jobs++;
    j->last_write_ns = clock_now_ns();
    return j;
}

/* rc: of the backend, whether it has taken the job. */
static void job_start(struct ollama_job *j, int rc, struct http_response *r, struct error *err)
{
    static const struct http_response_events events = {.drained = on_drained, .gone = on_gone};
    struct api_error e;
    if (rc != 0) {
        err->code = rc;
        api_error_from(&e, err);
        api_error_respond(r, &e);
        job_release(j);
        return;
    }
    j->response = r;
    j->is_running = true;
    http_response_watch(r, &events, j);
    api_start_tick(j->api);
}

/* The model's name in a body, without ":latest". */
static int read_name(const char *name, struct buf *ret_name, struct api_error *e)
{
    buf_init(ret_name, LIMIT_HTTP_URL_BYTES);
    if (ollama_append_plain_name(ret_name, name) == 0)
        return 0;
    return field_refuse_value(e, "model", "the name is too long.");
}

static int refuse_unserved(const struct http_request *q, struct api_error *e)
{
    return api_error_set(e, 501, NULL, NULL, "%.64s: this server does not have it", q->path);
}

void ollama_pull(struct api *a, const struct http_request *q, struct http_response *r)
{
    static const struct api_pull_events events = {.status = on_status, .done = on_done};
    const struct api_backend *b = a->backend;
    struct api_error e = {0};
    struct error err = {0};
    struct ollama_job *j = NULL;
    struct buf plain = {0};
    const char *name = NULL;
    bool stream = true;
    json_t *body = NULL;
    int rc = 0;
    if (b->models_pull == NULL) {
        refuse_unserved(q, &e);
        rc = -1;
    }
    if (rc == 0)
        rc = ollama_read_body(q, BODY_BYTES_MAX, &body, &e);
    if (rc == 0)
        rc = ollama_read_model(body, &name, &e);
    if (rc == 0)
        rc = field_bool(&e, body, "stream", NULL, &stream);
    if (rc == 0)
        rc = read_name(name, &plain, &e);
    if (rc == 0 && (j = job_new(a, q, r, &e)) != NULL) {
        j->is_pull = true;
        j->stream = stream;
        job_start(j, b->models_pull(b->self, buf_str(&plain), &events, j, &j->pull_id, &err), r,
                  &err);
    } else {
        api_error_respond(r, &e);
    }
    buf_done(&plain);
    json_decref(body);
}

void ollama_delete(struct api *a, const struct http_request *q, struct http_response *r)
{
    const struct api_backend *b = a->backend;
    struct api_error e = {0};
    struct error err = {0};
    struct ollama_job *j = NULL;
    struct buf plain = {0};
    const char *name = NULL;
    json_t *body = NULL;
    int rc = 0;
    if (b->models_remove == NULL) {
        refuse_unserved(q, &e);
        rc = -1;
    }
    if (rc == 0)
        rc = ollama_read_body(q, BODY_BYTES_MAX, &body, &e);
    if (rc == 0)
        rc = ollama_read_model(body, &name, &e);
    if (rc == 0)
        rc = read_name(name, &plain, &e);
    if (rc == 0 && (j = job_new(a, q, r, &e)) != NULL)
        job_start(j, b->models_remove(b->self, buf_str(&plain), on_done, j, &err), r, &err);
    else
        api_error_respond(r, &e);
    buf_done(&plain);
    json_decref(body);
}

static int read_ends(const json_t *body, struct buf *ret_source, struct buf *ret_destination,
                     struct api_error *e)
{
    const char *source = NULL, *destination = NULL;
    if (field_string(e, body, "source", NULL, &source) != 0 ||
        field_string(e, body, "destination", NULL, &destination) != 0)
        return -1;
    if (source == NULL || source[0] == '\0')
        return field_refuse_missing(e, "source");
    if (destination == NULL || destination[0] == '\0')
        return field_refuse_missing(e, "destination");
    return read_name(source, ret_source, e) != 0 ? -1 : read_name(destination, ret_destination, e);
}

void ollama_copy(struct api *a, const struct http_request *q, struct http_response *r)
{
    const struct api_backend *b = a->backend;
    struct api_error e = {0};
    struct error err = {0};
    struct ollama_job *j = NULL;
    struct buf source = {0}, destination = {0};
    json_t *body = NULL;
    int rc = 0;
    if (b->models_copy == NULL) {
        refuse_unserved(q, &e);
        rc = -1;
    }
    if (rc == 0)
        rc = ollama_read_body(q, BODY_BYTES_MAX, &body, &e);
    if (rc == 0)
        rc = read_ends(body, &source, &destination, &e);
    if (rc == 0 && (j = job_new(a, q, r, &e)) != NULL)
        job_start(
            j, b->models_copy(b->self, buf_str(&source), buf_str(&destination), on_done, j, &err),
            r, &err);
    else
        api_error_respond(r, &e);
    buf_done(&source);
    buf_done(&destination);
    json_decref(body);
}

void ollama_jobs_tick(struct api *a)
{
    for (struct ollama_job *j = a->ollama_jobs; j != NULL; j = j->next) {
        uint64_t silent_ms = (clock_now_ns() - j->last_write_ns) / NS_PER_MS;
        bool is_silent =
            silent_ms >= KEEPALIVE_MS || (j->is_unsent && silent_ms >= STATUS_EVERY_MS);
        if (j->response != NULL && j->has_status && !j->is_held_back && is_silent)
            send_status(j); /* the same once more: clients that draw it see nothing of it */
    }
}

void ollama_jobs_stop_all(struct api *a)
{
    const struct api_backend *b = a->backend;
    struct api_error e;
    api_error_set(&e, 503, NULL, NULL, "the server is shutting down");
    for (struct ollama_job *j = a->ollama_jobs, *next; j != NULL; j = next) {
        next = j->next;
        if (j->response != NULL)
            fail(j, &e);
        if (j->is_pull && j->is_running)
            b->models_pull_cancel(b->self, j->pull_id);
        j->api = NULL;
        j->next = j->prev = NULL;
        job_release(j);
    }
    a->ollama_jobs = NULL;
    a->n_ollama_jobs = 0;
}
