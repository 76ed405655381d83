/* How fast this computer (or the device that computes here) computes and reads memory: measured
 * once, by `shoal measure` in a child process, and remembered with the number of threads and the
 * names of processor and device. */
#include "base/json.h"
#include "base/log.h"
#include "node/internal.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { OUTPUT_BYTES_MAX = 4096, MEASURE_MS_MAX = 60000 };

struct measure {
    struct node *node;
    uv_process_t process;
    uv_pipe_t pipe;
    uv_timer_t timer;
    uint32_t n_handles;
    bool is_running; /* the process */
    size_t len;
    char output[OUTPUT_BYTES_MAX];
};

static uint32_t n_threads(const struct node *n)
{
    return n->config.n_threads != 0 ? n->config.n_threads : n->device.n_cores;
}

/* A figure that can be true of a computer. */
static float figure(const json_t *doc, const char *key)
{
    double v = json_number_value(json_object_get(doc, key));
    return isfinite(v) && v > 0 && v < 1e7 ? (float)v : 0.0f;
}

static void take(struct node *n, const json_t *doc)
{
    float gflops = figure(doc, "gflops"), memory_gb_s = figure(doc, "memory_gb_s");
    if (gflops == 0.0f || memory_gb_s == 0.0f)
        return;
    n->gflops = gflops;
    n->memory_gb_s = memory_gb_s;
    n->figures_ms = 0; /* told to the core at the next tick */
}

/* ---- what was measured before ---- */

static const char speed_key[] = "speed";

/* Older nodes saved no name: they measured processors. */
static bool is_same_device(const struct node *n, const char *saved)
{
    return strcmp(saved != NULL ? saved : "", n->config.device) == 0;
}

static bool read_saved(struct node *n)
{
    struct buf b;
    struct error err;
    json_t *doc = NULL;
    bool is_same = false;
    buf_init(&b, OUTPUT_BYTES_MAX);
    if (n->store != NULL && store_read(n->store, speed_key, &b, NULL) == 0 &&
        json_parse(buf_str(&b), b.len, &doc, &err) == 0) {
        const char *cpu = json_string_value(json_object_get(doc, "cpu"));
        is_same = cpu != NULL && strcmp(cpu, n->capabilities.cpu) == 0 &&
                  json_integer_value(json_object_get(doc, "threads")) == n_threads(n) &&
                  is_same_device(n, json_string_value(json_object_get(doc, "device")));
        if (is_same)
            take(n, doc);
    }
    json_decref(doc);
    buf_done(&b);
    return is_same && n->gflops > 0;
}

int measure_save(struct node *n, struct error *err)
{
    struct buf b;
    if (n->gflops == 0.0f)
        return 0;
    buf_init(&b, OUTPUT_BYTES_MAX);
    buf_printf(&b, "{\"threads\":%u,\"gflops\":%.6g,\"memory_gb_s\":%.6g,\"cpu\":", n_threads(n),
               (double)n->gflops, (double)n->memory_gb_s);
    json_append_string(&b, n->capabilities.cpu, strlen(n->capabilities.cpu));
    buf_append_str(&b, ",\"device\":");
    json_append_string(&b, n->config.device, strlen(n->config.device));
    buf_append_char(&b, '}');
    int rc = b.error == 0 ? store_write(n->store, speed_key, b.data, b.len, err) : b.error;
    buf_done(&b);
    return rc;
}

/* ---- the child ---- */

static void on_closed(uv_handle_t *handle)
{
    struct measure *m = handle->data;
    struct node *n = m->node;
    n->n_handles--;
    if (--m->n_handles > 0)
        return;
    struct error err;
    json_t *doc = NULL;
    if (json_parse(m->output, m->len, &doc, &err) == 0)
        take(n, doc);
    json_decref(doc);
    if (n->gflops > 0) {
        log_info("node", "gflops=%.1f memory_gb_s=%.1f threads=%u measured", (double)n->gflops,
                 (double)n->memory_gb_s, n_threads(n));
        core_save(n);
    } else if (n->phase == NODE_RUNNING) {
        log_warn("node", "this computer's speed could not be measured -> it is taken for average");
    }
    n->measure = NULL;
    free(m);
    node_check_stop(n);
}

static void on_process_exit(uv_process_t *process, int64_t status, int number)
{
    struct measure *m = process->data;
    (void)status, (void)number;
    m->is_running = false;
    uv_close((uv_handle_t *)&m->process, on_closed);
    uv_close((uv_handle_t *)&m->timer, on_closed);
}

static void on_alloc(uv_handle_t *handle, size_t wanted, uv_buf_t *buf)
{
    struct measure *m = handle->data;
    (void)wanted;
    *buf = uv_buf_init(m->output + m->len, (unsigned)(sizeof(m->output) - m->len));
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *buf)
{
    struct measure *m = stream->data;
    (void)buf;
    if (n > 0)
        m->len += (size_t)n;
    if ((n < 0 || m->len == sizeof(m->output)) && !uv_is_closing((uv_handle_t *)stream))
        uv_close((uv_handle_t *)stream, on_closed);
}

void measure_stop(struct node *n)
{
    if (n->measure != NULL && n->measure->is_running)
        uv_process_kill(&n->measure->process, SIGKILL);
}

static void on_timeout(uv_timer_t *timer)
{
    struct measure *m = timer->data;
    measure_stop(m->node);
}

void measure_begin(struct node *n)
{
    char threads[16];
    struct measure *m;
    if (!n->config.measures || read_saved(n) || (m = calloc(1, sizeof(*m))) == NULL)
        return;
    snprintf(threads, sizeof(threads), "%u", n_threads(n));
    char *arguments[] = {n->config.program, "measure",  "--json",         "--threads",
                         threads,           "--device", n->config.device, NULL};
    uv_stdio_container_t stdio[] = {
        {.flags = UV_IGNORE},
        {.flags = UV_CREATE_PIPE | UV_WRITABLE_PIPE, .data.stream = (uv_stream_t *)&m->pipe},
        {.flags = UV_IGNORE}};
    uv_process_options_t options = {.file = n->config.program,
                                    .args = arguments,
                                    .exit_cb = on_process_exit,
                                    .stdio = stdio,
                                    .stdio_count = 3};
    m->node = n;
    n->measure = m;
    m->process.data = m->pipe.data = m->timer.data = m;
    m->n_handles = 3;
    n->n_handles += 3;
    uv_pipe_init(n->loop, &m->pipe, 0);
    uv_timer_init(n->loop, &m->timer);
    int rc = uv_spawn(n->loop, &m->process, &options);
    if (rc != 0) {
        uv_close((uv_handle_t *)&m->process, on_closed);
        uv_close((uv_handle_t *)&m->timer, on_closed);
        uv_close((uv_handle_t *)&m->pipe, on_closed);
        return;
    }
    m->is_running = true;
    uv_read_start((uv_stream_t *)&m->pipe, on_alloc, on_read);
    uv_timer_start(&m->timer, on_timeout, MEASURE_MS_MAX, 0);
}
