#include "node/runner_process.h"

#include "base/log.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct runner_process {
    uv_loop_t *loop;
    uv_process_t process;
    uv_pipe_t link;
    uv_timer_t timer; /* pings while it serves; then the kill after a stop */
    struct runner_events events;
    struct buf in;
    uint32_t pid;
    bool has_exited, has_link_ended, is_stopping, is_releasing, is_done;
    int n_handles;
    uint64_t heard_ms;
    char
        reason[ERROR_MESSAGE_BYTES]; /* the first cause wins: what it reported, why it was killed */
};

struct write {
    uv_write_t request;
    char *data;
};

static void note_reason(struct runner_process *p, const char *reason)
{
    if (p->reason[0] == '\0')
        snprintf(p->reason, sizeof(p->reason), "%s", reason);
}

static void on_handle_closed(uv_handle_t *handle)
{
    struct runner_process *p = handle->data;
    if (--p->n_handles > 0)
        return;
    buf_done(&p->in);
    free(p);
}

/* The end has come when the process is gone and all that it said has been read. */
static void check_end(struct runner_process *p)
{
    if (!p->has_exited || !p->has_link_ended || p->is_done)
        return;
    p->is_done = true;
    p->events.ended(p->events.arg, p->reason);
    uv_close((uv_handle_t *)&p->process, on_handle_closed);
    uv_close((uv_handle_t *)&p->timer, on_handle_closed);
}

static void end_link(struct runner_process *p)
{
    if (p->has_link_ended)
        return;
    p->has_link_ended = true;
    uv_close((uv_handle_t *)&p->link, on_handle_closed);
    check_end(p);
}

static void on_exit_seen(uv_process_t *process, int64_t status, int signal_number)
{
    struct runner_process *p = process->data;
    char text[128];
    if (signal_number != 0)
        snprintf(text, sizeof(text), "runner process %u was ended by signal %d (%s)", p->pid,
                 signal_number, strsignal(signal_number));
    else
        snprintf(text, sizeof(text), "runner process %u exited with code %lld", p->pid,
                 (long long)status);
    note_reason(p, text);
    p->has_exited = true;
    check_end(p);
}

void runner_process_kill(struct runner_process *p, const char *reason)
{
    note_reason(p, reason);
    if (!p->has_exited)
        uv_process_kill(&p->process, SIGKILL);
}

static void on_kill_timer(uv_timer_t *timer)
{
    struct runner_process *p = timer->data;
    runner_process_kill(p, "runner did not stop in time and was killed");
}

static void kill_later(struct runner_process *p)
{
    uv_timer_start(&p->timer, on_kill_timer, RUNNER_KILL_MS, 0);
}

static void on_ping_timer(uv_timer_t *timer)
{
    struct runner_process *p = timer->data;
    struct buf b;
    char text[96];
    uint64_t silent_ms = uv_now(p->loop) - p->heard_ms;
    if (silent_ms > RUNNER_SILENCE_MS_MAX) {
        snprintf(text, sizeof(text), "runner process %u did not answer for %llu ms (limit %d)",
                 p->pid, (unsigned long long)silent_ms, RUNNER_SILENCE_MS_MAX);
        runner_process_kill(p, text);
        return;
    }
    buf_init(&b, 256);
    message_encode_ping(&b, uv_now(p->loop));
    runner_process_send(p, &b);
}

static void start_pings(struct runner_process *p)
{
    if (!p->is_stopping)
        uv_timer_start(&p->timer, on_ping_timer, RUNNER_PING_MS, RUNNER_PING_MS);
}

static void take_frame(struct runner_process *p, const struct message *m, const void *frame,
                       size_t n)
{
    struct message_failed failed;
    if (m->type == MESSAGE_FAILED && message_decode_failed(m, &failed, NULL) == 0)
        note_reason(p, failed.message);
    if (p->is_releasing && m->type != MESSAGE_RELEASED)
        return;
    if (p->is_releasing) {
        p->is_releasing = false;
        p->reason[0] = '\0'; /* what its last task failed of is no cause of its end */
        start_pings(p);
    }
    /* From now on it answers at any time, also during a step, so silence means that it hangs. */
    if (m->type == MESSAGE_READY)
        start_pings(p);
    p->events.frame(p->events.arg, m, frame, n);
}

static void take_bytes(struct runner_process *p)
{
    struct error err = {0};
    size_t offset = 0;
    while (!p->has_link_ended) {
        struct message m;
        int64_t n = message_next(p->in.data + offset, p->in.len - offset, &m, &err);
        if (n == 0)
            break;
        if (n < 0) {
            runner_process_kill(p, err.message);
            end_link(p);
            return;
        }
        take_frame(p, &m, p->in.data + offset, (size_t)n);
        offset += (size_t)n;
    }
    buf_consume(&p->in, offset);
}

static void on_alloc(uv_handle_t *handle, size_t suggested, uv_buf_t *ret)
{
    struct runner_process *p = handle->data;
    (void)suggested;
    if (buf_reserve(&p->in, 16 * 1024) != 0)
        *ret = uv_buf_init(NULL, 0); /* becomes UV_ENOBUFS */
    else
        *ret = uv_buf_init(p->in.data + p->in.len, 16 * 1024);
}

static void on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *unused)
{
    struct runner_process *p = stream->data;
    (void)unused;
    if (n == 0)
        return;
    if (n < 0) {
        /* It closed its link: it exits now, or it hangs and is killed. */
        if (!p->has_exited)
            kill_later(p);
        end_link(p);
        return;
    }
    p->heard_ms = uv_now(p->loop);
    p->in.len += (size_t)n;
    p->in.data[p->in.len] = '\0';
    take_bytes(p);
}

static void on_written(uv_write_t *request, int status)
{
    struct write *w = (struct write *)request;
    struct runner_process *p = request->data;
    if (status != 0 && status != UV_ECANCELED && status != UV_EPIPE)
        runner_process_kill(p, uv_strerror(status));
    free(w->data);
    free(w);
}

void runner_process_send(struct runner_process *p, struct buf *frames)
{
    struct write *w = frames->error == 0 ? malloc(sizeof(*w)) : NULL;
    if (p->has_link_ended || frames->error != 0 || frames->len == 0 || w == NULL) {
        if (!p->has_link_ended && (frames->error != 0 || w == NULL))
            runner_process_kill(p, "a message to the runner could not be built: out of memory");
        buf_done(frames);
        free(w);
        return;
    }
    w->data = frames->data;
    w->request.data = p;
    uv_buf_t span = uv_buf_init(frames->data, (unsigned)frames->len);
    buf_init(frames, frames->max_len); /* its bytes are the write's now */
    int rc = uv_write(&w->request, (uv_stream_t *)&p->link, &span, 1, on_written);
    if (rc != 0) {
        free(w->data);
        free(w);
        runner_process_kill(p, uv_strerror(rc));
    }
}

void runner_process_stop(struct runner_process *p)
{
    struct buf b;
    if (p->is_stopping)
        return;
    p->is_stopping = true;
    buf_init(&b, 256);
    message_encode_stop(&b);
    runner_process_send(p, &b);
    kill_later(p);
}

static void on_release_timer(uv_timer_t *timer)
{
    runner_process_kill(timer->data, "runner did not end its task in time and was killed");
}

void runner_process_release(struct runner_process *p)
{
    struct buf b;
    if (p->is_stopping || p->is_releasing)
        return;
    p->is_releasing = true;
    buf_init(&b, 256);
    message_encode_release(&b);
    runner_process_send(p, &b);
    uv_timer_start(&p->timer, on_release_timer, RUNNER_RELEASE_MS, 0);
}

void runner_process_hand_over(struct runner_process *p, const struct runner_events *events)
{
    p->events = *events;
}

uint32_t runner_process_pid(const struct runner_process *p)
{
    return p->pid;
}

static int spawn(struct runner_process *p, const char *program)
{
    char verb[] = "runner";
    char *file = strdup(program);
    if (file == NULL)
        return E_NOMEM;
    char *args[] = {file, verb, NULL};
    uv_stdio_container_t stdio[4] = {
        {.flags = UV_IGNORE},
        {.flags = UV_INHERIT_FD, .data.fd = 2}, /* stdout is for what programs read */
        {.flags = UV_INHERIT_FD, .data.fd = 2},
        {.flags = UV_CREATE_PIPE | UV_READABLE_PIPE | UV_WRITABLE_PIPE,
         .data.stream = (uv_stream_t *)&p->link},
    };
    uv_process_options_t options = {
        .exit_cb = on_exit_seen,
        .file = file,
        .args = args,
        /* Its own session: Ctrl-C is for the node, which then lets requests finish. */
        .flags = UV_PROCESS_DETACHED,
        .stdio_count = 4,
        .stdio = stdio,
    };
    int rc = uv_spawn(p->loop, &p->process, &options);
    free(file);
    return rc;
}

int runner_process_start(uv_loop_t *loop, const char *program, const struct runner_events *events,
                         struct runner_process **ret_process, struct error *err)
{
    struct runner_process *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "out of memory for a runner process");
    p->loop = loop;
    p->events = *events;
    p->heard_ms = uv_now(loop);
    buf_init(&p->in, LIMIT_CONTROL_FRAME_BYTES + 64 * 1024);
    uv_pipe_init(loop, &p->link, 0);
    uv_timer_init(loop, &p->timer);
    p->process.data = p->link.data = p->timer.data = p;
    p->n_handles = 3;
    int rc = spawn(p, program);
    if (rc != 0) {
        /* uv_spawn leaves a handle that must be closed even when it fails. */
        if (rc != E_NOMEM)
            uv_close((uv_handle_t *)&p->process, on_handle_closed);
        else
            p->n_handles--;
        uv_close((uv_handle_t *)&p->link, on_handle_closed);
        uv_close((uv_handle_t *)&p->timer, on_handle_closed);
        return error_set(err, rc, "cannot start %s runner: %s", program,
                         rc == E_NOMEM ? "out of memory" : uv_strerror(rc));
    }
    p->pid = (uint32_t)uv_process_get_pid(&p->process);
    rc = uv_read_start((uv_stream_t *)&p->link, on_alloc, on_read);
    if (rc != 0)
        runner_process_kill(p, uv_strerror(rc));
    *ret_process = p;
    return 0;
}
