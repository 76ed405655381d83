#include "runner/control.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

/* A node that reads nothing while so much is due (100,000 tokens) is lost. */
#define OUT_BYTES_MAX (4u << 20)
/* Frames that wait for the main thread: a step's worth of requests and their cancellations. */
enum { COMMANDS_MAX = 4 * LIMIT_REQUESTS_QUEUED, FLUSH_MS = 500 };

struct control {
    int fd, wake[2]; /* wake: a pipe that ends poll */
    bool owns_process;
    pthread_t thread;
    struct buf in; /* of the thread */

    pthread_mutex_t lock; /* for all below */
    pthread_cond_t changed;
    struct command *first, **last;
    uint32_t n_commands;
    struct buf out;
    struct comm *comm;
    struct engine *engine;
    struct message_pong figures;
    bool is_idle, is_closing, is_ended, is_released;
    struct error end; /* why it ended */
};

static void wake_thread(struct control *c)
{
    ssize_t n = write(c->wake[1], "", 1);
    (void)n; /* a full pipe wakes as well */
}

/* Writes what the socket takes. Under the lock. */
static int flush_some(struct control *c)
{
    while (c->out.len > 0) {
        ssize_t n = send(c->fd, c->out.data, c->out.len, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno == EAGAIN || errno == EWOULDBLOCK ? 0 : E_IO;
        buf_consume(&c->out, (size_t)n);
    }
    return 0;
}

/* Under the lock. */
static void abort_targets(struct control *c)
{
    if (c->engine != NULL)
        engine_abort(c->engine);
    if (c->comm != NULL)
        comm_abort(c->comm);
}

/* Marks the link as ended and stops what runs. Under the lock. */
static void end_link(struct control *c, const struct error *why, bool may_finish)
{
    if (c->is_ended)
        return;
    c->is_ended = true;
    c->end = *why;
    pthread_cond_broadcast(&c->changed);
    if (!may_finish || !c->is_idle)
        abort_targets(c);
}

/* Under the lock. */
static void drop_commands(struct control *c)
{
    while (c->first != NULL) {
        struct command *next = c->first->next;
        free(c->first);
        c->first = next;
    }
    c->last = &c->first;
    c->n_commands = 0;
}

static void release(struct control *c)
{
    pthread_mutex_lock(&c->lock);
    drop_commands(c);
    c->is_released = true;
    pthread_cond_broadcast(&c->changed);
    if (!c->is_idle)
        abort_targets(c);
    pthread_mutex_unlock(&c->lock);
}

static uint64_t memory_peak_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (uint64_t)usage.ru_maxrss * 1024 : 0;
}

/* ---- frames in ---- */

static int answer_ping(struct control *c, const struct message *m, struct error *err)
{
    uint64_t nonce;
    int rc = message_decode_u64(m, &nonce, err);
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&c->lock);
    struct message_pong pong = c->figures;
    pong.nonce = nonce;
    pong.memory_peak_bytes = memory_peak_bytes();
    rc = message_encode_pong(&c->out, &pong);
    if (rc == 0)
        rc = flush_some(c);
    pthread_mutex_unlock(&c->lock);
    return rc != 0 ? error_set(err, rc, "control link: cannot send") : 0;
}

static int queue_command(struct control *c, const struct message *m, struct error *err)
{
    struct command *command = malloc(sizeof(*command) + m->len);
    if (command == NULL)
        return error_set(err, E_NOMEM, "control link: no memory for a frame of %zu bytes", m->len);
    uint8_t *payload = (uint8_t *)(command + 1);
    memcpy(payload, m->payload, m->len);
    *command = (struct command){.message = {.type = m->type, .payload = payload, .len = m->len}};

    pthread_mutex_lock(&c->lock);
    bool is_full = c->n_commands >= COMMANDS_MAX;
    if (!is_full) {
        *c->last = command;
        c->last = &command->next;
        c->n_commands++;
        pthread_cond_broadcast(&c->changed);
    }
    pthread_mutex_unlock(&c->lock);
    if (is_full) {
        free(command);
        return error_set(err, E_PROTOCOL, "control link: %d commands wait already", COMMANDS_MAX);
    }
    return 0;
}

static int take_frame(struct control *c, const struct message *m, struct error *err)
{
    if (m->type == MESSAGE_PING)
        return answer_ping(c, m, err);
    if (m->type != MESSAGE_STOP && m->type != MESSAGE_RELEASE)
        return queue_command(c, m, err);
    if (m->len != 0)
        return error_set(err, E_PROTOCOL, "%s: %zu bytes too many",
                         m->type == MESSAGE_STOP ? "stop" : "release", m->len);
    if (m->type == MESSAGE_STOP)
        return error_set(err, E_CANCELLED, "stopped");
    release(c);
    return 0;
}

/* Reads once and handles every whole frame. Errors end the link: E_CANCELLED in order (STOP). */
static int read_frames(struct control *c, struct error *err)
{
    enum { READ_BYTES = 65536 };
    if (buf_reserve(&c->in, READ_BYTES) != 0)
        return error_set(err, c->in.error, "control link: no memory");
    ssize_t n = recv(c->fd, c->in.data + c->in.len, READ_BYTES, MSG_DONTWAIT);
    if (n < 0)
        return errno == EINTR || errno == EAGAIN || errno == EWOULDBLOCK
                   ? 0
                   : error_set(err, E_CANCELLED, "control link: %s", strerror(errno));
    if (n == 0)
        return error_set(err, E_CANCELLED, "control link closed");
    c->in.len += (size_t)n;

    size_t used = 0;
    for (;;) {
        struct message m;
        int64_t len = message_next(c->in.data + used, c->in.len - used, &m, err);
        int rc = len < 0 ? (int)len : len == 0 ? 0 : take_frame(c, &m, err);
        if (rc != 0)
            return rc;
        if (len == 0)
            break;
        used += (size_t)len;
    }
    buf_consume(&c->in, used);
    return 0;
}

/* ---- the thread ---- */

/* After the link has ended: the main thread gets a little time to clean up, then the process ends
 * without it. */
static void watch_end(struct control *c)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += CONTROL_EXIT_MS / 1000;
    until.tv_nsec += CONTROL_EXIT_MS % 1000 * 1000000L;
    if (until.tv_nsec >= 1000000000L) {
        until.tv_nsec -= 1000000000L;
        until.tv_sec++;
    }
    pthread_mutex_lock(&c->lock);
    while (!c->is_closing)
        if (pthread_cond_timedwait(&c->changed, &c->lock, &until) == ETIMEDOUT)
            break;
    bool is_closing = c->is_closing;
    pthread_mutex_unlock(&c->lock);
    if (!is_closing && c->owns_process)
        _exit(error_exit_code(E_CANCELLED));
}

static void *run_control(void *arg)
{
    struct control *c = arg;
    for (;;) {
        pthread_mutex_lock(&c->lock);
        bool has_out = c->out.len > 0, is_closing = c->is_closing;
        pthread_mutex_unlock(&c->lock);
        if (is_closing)
            return NULL;
        struct pollfd fds[2] = {
            {.fd = c->fd, .events = (short)(POLLIN | (has_out ? POLLOUT : 0))},
            {.fd = c->wake[0], .events = POLLIN},
        };
        struct error err = {0};
        int rc = 0;
        if (poll(fds, 2, -1) < 0 && errno != EINTR)
            rc = error_set(&err, E_IO, "control link: poll: %s", strerror(errno));
        if (fds[1].revents != 0) {
            char drain[64];
            ssize_t n = read(c->wake[0], drain, sizeof(drain));
            (void)n;
        }
        if (rc == 0 && (fds[0].revents & POLLOUT)) {
            pthread_mutex_lock(&c->lock);
            rc = flush_some(c);
            pthread_mutex_unlock(&c->lock);
            if (rc != 0)
                error_set(&err, E_CANCELLED, "control link lost");
        }
        if (rc == 0 && (fds[0].revents & (POLLIN | POLLHUP | POLLERR)))
            rc = read_frames(c, &err);
        pthread_mutex_lock(&c->lock);
        if (rc != 0)
            end_link(c, &err, true);
        bool is_ended = c->is_ended;
        pthread_mutex_unlock(&c->lock);
        if (is_ended) {
            watch_end(c);
            return NULL;
        }
    }
}

/* ---- for the main thread ---- */

static int open_wake(struct control *c)
{
    if (pipe(c->wake) != 0)
        return -1;
    for (int i = 0; i < 2; i++) {
        fcntl(c->wake[i], F_SETFD, FD_CLOEXEC);
        fcntl(c->wake[i], F_SETFL, O_NONBLOCK);
    }
    return 0;
}

int control_open(int fd, bool owns_process, struct control **ret_control, struct error *err)
{
    struct control *c = calloc(1, sizeof(*c));
    if (c == NULL) {
        close(fd);
        return error_set(err, E_NOMEM, "no memory for the control link");
    }
    c->fd = fd;
    c->owns_process = owns_process;
    c->last = &c->first;
    buf_init(&c->in, LIMIT_CONTROL_FRAME_BYTES + 131072u);
    buf_init(&c->out, OUT_BYTES_MAX);
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&c->lock, NULL);
    pthread_cond_init(&c->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    c->wake[0] = c->wake[1] = -1;
    if (open_wake(c) != 0 || pthread_create(&c->thread, NULL, run_control, c) != 0) {
        int code = errno;
        if (c->wake[0] >= 0) {
            close(c->wake[0]);
            close(c->wake[1]);
        }
        close(fd);
        free(c);
        return error_set(err, E_IO, "control link: cannot start its thread: %s", strerror(code));
    }
    *ret_control = c;
    return 0;
}

/* What is still due goes out if the node takes it soon. */
static void flush_all(struct control *c)
{
    uint64_t until_ns = clock_now_ns() + FLUSH_MS * UINT64_C(1000000);
    while (c->out.len > 0 && flush_some(c) == 0 && c->out.len > 0) {
        uint64_t now_ns = clock_now_ns();
        if (now_ns >= until_ns)
            return;
        struct pollfd fd = {.fd = c->fd, .events = POLLOUT};
        poll(&fd, 1, (int)((until_ns - now_ns) / 1000000) + 1);
    }
}

void control_close(struct control *c)
{
    if (c == NULL)
        return;
    pthread_mutex_lock(&c->lock);
    c->is_closing = true;
    pthread_cond_broadcast(&c->changed);
    pthread_mutex_unlock(&c->lock);
    wake_thread(c);
    pthread_join(c->thread, NULL);
    flush_all(c);
    close(c->fd);
    close(c->wake[0]);
    close(c->wake[1]);
    drop_commands(c);
    pthread_cond_destroy(&c->changed);
    pthread_mutex_destroy(&c->lock);
    buf_done(&c->in);
    buf_done(&c->out);
    free(c);
}

int control_take(struct control *c, uint32_t timeout_ms, struct command **ret_command,
                 struct error *err)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    uint64_t until_ns = (uint64_t)until.tv_nsec + timeout_ms % 1000 * UINT64_C(1000000);
    until.tv_sec += (time_t)(timeout_ms / 1000 + until_ns / 1000000000u);
    until.tv_nsec = (long)(until_ns % 1000000000u);

    struct command *command = NULL;
    int rc = 0;
    pthread_mutex_lock(&c->lock);
    while (c->first == NULL && !c->is_ended && !c->is_released)
        if (timeout_ms == 0 || pthread_cond_timedwait(&c->changed, &c->lock, &until) == ETIMEDOUT)
            break;
    if (c->is_ended) {
        rc = c->end.code;
        if (err != NULL)
            *err = c->end;
    } else if (c->is_released) {
        rc = error_set(err, E_CANCELLED, "released");
    } else if (c->first != NULL) {
        command = c->first;
        c->first = command->next;
        if (c->first == NULL)
            c->last = &c->first;
        c->n_commands--;
        command->next = NULL;
    }
    pthread_mutex_unlock(&c->lock);
    *ret_command = command;
    return rc;
}

int control_end(struct control *c, struct error *err)
{
    pthread_mutex_lock(&c->lock);
    int rc = c->is_ended ? c->end.code : 0;
    if (rc != 0 && err != NULL)
        *err = c->end;
    pthread_mutex_unlock(&c->lock);
    return rc;
}

bool control_is_released(struct control *c)
{
    pthread_mutex_lock(&c->lock);
    bool is_released = c->is_released && !c->is_ended;
    pthread_mutex_unlock(&c->lock);
    return is_released;
}

void control_take_release(struct control *c)
{
    pthread_mutex_lock(&c->lock);
    c->is_released = false;
    pthread_mutex_unlock(&c->lock);
}

void control_send(struct control *c, const struct buf *frames)
{
    pthread_mutex_lock(&c->lock);
    bool was_empty = c->out.len == 0;
    int rc = frames->error != 0 ? frames->error : buf_append(&c->out, frames->data, frames->len);
    if (rc == 0)
        rc = flush_some(c);
    if (rc != 0) {
        struct error err = {0};
        error_set(&err, E_CANCELLED, "control link: %s with %zu bytes unsent", error_text(rc),
                  c->out.len);
        log_warn("runner", "%s -> the node is lost", err.message);
        end_link(c, &err, false);
    }
    bool needs_thread = rc != 0 || (was_empty && c->out.len > 0);
    pthread_mutex_unlock(&c->lock);
    if (needs_thread)
        wake_thread(c);
}

void control_set_targets(struct control *c, struct comm *comm, struct engine *engine)
{
    pthread_mutex_lock(&c->lock);
    c->comm = comm;
    c->engine = engine;
    if (c->is_ended || c->is_released)
        abort_targets(c);
    pthread_mutex_unlock(&c->lock);
}

void control_set_idle(struct control *c, bool is_idle)
{
    pthread_mutex_lock(&c->lock);
    c->is_idle = is_idle;
    pthread_mutex_unlock(&c->lock);
}

void control_publish(struct control *c, const struct message_pong *figures)
{
    pthread_mutex_lock(&c->lock);
    c->figures = *figures;
    pthread_mutex_unlock(&c->lock);
}
