#include "runner/local_set.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "engine/devices.h"
#include "runner/draft_model.h"
#include "runner/local_process.h"
#include "runner/runner.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    LISTEN_TIMEOUT_MS = 60 * 1000,     /* opening a model's header */
    READY_TIMEOUT_MS = 30 * 60 * 1000, /* reading weights from the slowest disk */
    PING_TIMEOUT_MS = 2000,
    SEND_TIMEOUT_MS = 5000,
    STOP_TIMEOUT_MS = 2000,
    BLAME_MS = 500, /* survivors report first; the one that died may take so long to be seen */
};

struct local_rank {
    bool is_elsewhere; /* in another process, which drives it; nothing below is used */
    int fd;            /* -1 once the link has ended */
    pid_t pid;         /* 0: a thread */
    int exit_status;   /* of waitpid, when pid was reaped */
    bool is_reaped;
    pthread_t thread;
    bool has_thread;
    int thread_fd; /* arguments of the thread */
    struct comm *thread_comm;
    struct buf in;
    bool is_listening, is_ready, has_failed, has_pong;
    uint16_t port;
    struct message_ready ready;
    struct message_failed failed;
    struct message_pong pong;
};

struct local_set {
    uint32_t n_ranks;
    struct split split;
    struct local_rank rank[LIMIT_RANKS];
    struct buf answers;  /* whole TOKENS, PROGRESS and DONE frames of the head, in order */
    size_t answer_bytes; /* of the frame at the front that the caller has seen */
    uint64_t nonce;
    struct error broken; /* sticky */
};

static const char *const comm_names[LOCAL_SET_COMM_COUNT] = {"local", "tcp", "ucx", "mpi"};

bool local_set_comm_parse(const char *text, enum local_set_comm *ret)
{
    for (int i = 0; i < LOCAL_SET_COMM_COUNT; i++)
        if (strcmp(text, comm_names[i]) == 0) {
            *ret = (enum local_set_comm)i;
            return true;
        }
    return false;
}

const char *local_set_comm_name(enum local_set_comm comm)
{
    return comm_names[comm];
}

/* ---- what ranks say ---- */

static int take_frame(struct local_set *s, uint32_t index, const struct message *m,
                      const void *frame, size_t frame_bytes, struct error *err)
{
    struct local_rank *r = &s->rank[index];
    float fraction;
    int rc = 0;
    switch (m->type) {
    case MESSAGE_LISTENING:
        rc = message_decode_listening(m, &r->port, err);
        r->is_listening = true;
        return rc;
    case MESSAGE_LOADING:
        return message_decode_loading(m, &fraction, err);
    case MESSAGE_READY:
        rc = message_decode_ready(m, &r->ready, err);
        r->is_ready = true;
        return rc;
    case MESSAGE_FAILED:
        rc = message_decode_failed(m, &r->failed, err);
        r->has_failed = rc == 0;
        return rc;
    case MESSAGE_PONG:
        rc = message_decode_pong(m, &r->pong, err);
        r->has_pong = r->pong.nonce == s->nonce;
        return rc;
    case MESSAGE_TOKENS:
    case MESSAGE_PROGRESS:
    case MESSAGE_DONE:
        if (index == 0) {
            rc = buf_append(&s->answers, frame, frame_bytes);
            return rc != 0 ? error_set(err, rc, "too many answers wait to be read") : 0;
        }
        break;
    default:
        break;
    }
    return error_set(err, E_PROTOCOL, "control frame of type %d is out of place", (int)m->type);
}

static void close_link(struct local_rank *r)
{
    if (r->fd >= 0)
        close(r->fd);
    r->fd = -1;
}

/* Reads once from a link. A rank that talks nonsense counts as failed. */
static void read_rank(struct local_set *s, uint32_t index)
{
    enum { READ_BYTES = 65536 };
    struct local_rank *r = &s->rank[index];
    struct error err = {0};
    if (buf_reserve(&r->in, READ_BYTES) != 0) {
        close_link(r);
        return;
    }
    ssize_t n = recv(r->fd, r->in.data + r->in.len, READ_BYTES, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR))
        return;
    if (n <= 0) {
        close_link(r);
        return;
    }
    r->in.len += (size_t)n;
    size_t used = 0;
    for (;;) {
        struct message m;
        const char *frame = r->in.data + used;
        int64_t len = message_next(frame, r->in.len - used, &m, &err);
        if (len == 0)
            break;
        if (len < 0 || take_frame(s, index, &m, frame, (size_t)len, &err) != 0) {
            r->has_failed = true;
            r->failed.code = err.code;
            memcpy(r->failed.message, err.message, sizeof(r->failed.message));
            close_link(r);
            return;
        }
        used += (size_t)len;
    }
    buf_consume(&r->in, used);
}

/* Waits until a link has news or the time is up. Returns false when it is. */
static bool pump(struct local_set *s, uint64_t until_ns)
{
    struct pollfd fds[LIMIT_RANKS];
    for (uint32_t i = 0; i < s->n_ranks; i++)
        fds[i] = (struct pollfd){.fd = s->rank[i].fd, .events = POLLIN};
    uint64_t now_ns = clock_now_ns();
    uint64_t left_ms = now_ns < until_ns ? (until_ns - now_ns + 999999) / 1000000 : 0;
    int n = poll(fds, s->n_ranks, left_ms < INT32_MAX ? (int)left_ms : INT32_MAX);
    if (n < 0 && errno == EINTR)
        return clock_now_ns() < until_ns;
    for (uint32_t i = 0; n > 0 && i < s->n_ranks; i++)
        if (fds[i].revents != 0)
            read_rank(s, i);
    return n > 0;
}

/* ---- whose fault ---- */

/* A rank whose link ended without a report: it died. */
static struct local_rank *find_dead(struct local_set *s)
{
    for (uint32_t i = 0; i < s->n_ranks; i++)
        if (!s->rank[i].is_elsewhere && s->rank[i].fd < 0 && !s->rank[i].has_failed)
            return &s->rank[i];
    return NULL;
}

/* A rank that reported an error; one that is not only the loss of another rank, if there is one. */
static struct local_rank *find_failed(struct local_set *s, bool *ret_is_cause)
{
    struct local_rank *found = NULL;
    *ret_is_cause = false;
    for (uint32_t i = 0; i < s->n_ranks && !*ret_is_cause; i++) {
        struct local_rank *r = &s->rank[i];
        if (!r->has_failed)
            continue;
        int code = r->failed.code;
        *ret_is_cause = code != E_PEERLOST && code != E_TIMEOUT && code != E_CANCELLED;
        if (found == NULL || *ret_is_cause)
            found = r;
    }
    return found;
}

static int blame(struct local_set *s, struct error *err)
{
    uint64_t until_ns = clock_now_ns() + BLAME_MS * UINT64_C(1000000);
    struct local_rank *dead, *failed;
    bool is_cause = false;
    for (;;) {
        dead = find_dead(s);
        failed = find_failed(s, &is_cause);
        if (dead != NULL || is_cause || clock_now_ns() >= until_ns)
            break;
        pump(s, until_ns);
    }
    if (dead != NULL && !is_cause) {
        unsigned index = (unsigned)(dead - s->rank);
        if (dead->pid == 0)
            return error_set(err, E_PEERLOST, "rank %u ended without being asked to", index);
        char how[128];
        local_process_describe(dead->pid, &dead->is_reaped, &dead->exit_status, how, sizeof(how));
        return error_set(err, E_PEERLOST, "rank %u (process %d) %s", index, (int)dead->pid, how);
    }
    return error_set(err, failed->failed.code, "rank %u: %s", (unsigned)(failed - s->rank),
                     failed->failed.message[0] != '\0' ? failed->failed.message
                                                       : error_text(failed->failed.code));
}

/* 0 while every rank lives; afterwards always the same error. */
static int check(struct local_set *s, struct error *err)
{
    bool ignored;
    if (s->broken.code == 0 && (find_dead(s) != NULL || find_failed(s, &ignored) != NULL))
        blame(s, &s->broken);
    if (s->broken.code != 0 && err != NULL)
        *err = s->broken;
    return s->broken.code;
}

/* ---- talking ---- */

static int send_to(struct local_set *s, uint32_t index, const struct buf *frames, struct error *err)
{
    struct local_rank *r = &s->rank[index];
    if (frames->error != 0)
        return error_set(err, frames->error, "cannot make a control frame");
    size_t done = 0;
    while (done < frames->len) {
        ssize_t n = r->fd < 0 ? -1
                              : send(r->fd, frames->data + done, frames->len - done,
                                     MSG_NOSIGNAL | MSG_DONTWAIT);
        struct pollfd fd = {.fd = r->fd, .events = POLLOUT};
        if (n >= 0)
            done += (size_t)n;
        else if (r->fd >= 0 && errno == EINTR)
            continue;
        else if (r->fd < 0 || (errno != EAGAIN && errno != EWOULDBLOCK) ||
                 poll(&fd, 1, SEND_TIMEOUT_MS) == 0) {
            /* Its last words may explain it. */
            while (pump(s, clock_now_ns()))
                ;
            int rc = check(s, err);
            return rc != 0 ? rc : error_set(err, E_PEERLOST, "rank %u does not read", index);
        }
    }
    return 0;
}

static struct buf new_frames(size_t max_len)
{
    struct buf frames;
    buf_init(&frames, max_len);
    return frames;
}

static int send_and_free(struct local_set *s, uint32_t index, struct buf *frames, struct error *err)
{
    int rc = send_to(s, index, frames, err);
    buf_done(frames);
    return rc;
}

static bool all_listen(const struct local_set *s)
{
    for (uint32_t i = 0; i < s->n_ranks; i++)
        if (!s->rank[i].is_elsewhere && !s->rank[i].is_listening)
            return false;
    return true;
}

static bool all_ready(const struct local_set *s)
{
    for (uint32_t i = 0; i < s->n_ranks; i++)
        if (!s->rank[i].is_elsewhere && !s->rank[i].is_ready)
            return false;
    return true;
}

static int wait_for(struct local_set *s, bool (*is_true)(const struct local_set *s),
                    uint32_t timeout_ms, const char *what, struct error *err)
{
    uint64_t until_ns = clock_now_ns() + timeout_ms * UINT64_C(1000000);
    while (!is_true(s)) {
        int rc = check(s, err);
        if (rc != 0)
            return rc;
        if (!pump(s, until_ns) && clock_now_ns() >= until_ns)
            return error_set(err, E_TIMEOUT, "ranks did not %s within %u s", what,
                             timeout_ms / 1000);
    }
    return check(s, err);
}

/* ---- starting ---- */

static void *run_thread(void *arg)
{
    struct local_rank *r = arg;
    runner_main(r->thread_fd, r->thread_comm);
    return NULL;
}

/* Starts rank `index` with its end of the link; takes comm. */
static int start_rank(struct local_set *s, const struct local_set_options *o, uint32_t index,
                      struct comm *comm, struct error *err)
{
    struct local_rank *r = &s->rank[index];
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) != 0) {
        comm_close(comm);
        return error_set(err, E_IO, "no socket for rank %u: %s", index, strerror(errno));
    }
    r->fd = fds[0];
    if (o->comm == LOCAL_SET_TCP || o->comm == LOCAL_SET_UCX) {
        int rc = local_process_start(o->program, fds[1], &r->pid, err);
        close(fds[1]);
        if (rc != 0)
            close_link(r);
        return rc;
    }
    r->thread_fd = fds[1];
    r->thread_comm = comm;
    int code = pthread_create(&r->thread, NULL, run_thread, r);
    if (code != 0) {
        close(fds[1]);
        close_link(r);
        comm_close(comm);
        return error_set(err, E_IO, "no thread for rank %u: %s", index, strerror(code));
    }
    r->has_thread = true;
    return 0;
}

/* The comms of threads; processes make their own. */
static int open_comms(const struct local_set *s, const struct local_set_options *o,
                      const struct message_load *load, struct comm **comms, struct error *err)
{
    struct comm_options options = {.wire = o->wire, .spin_us = UINT32_MAX};
    uint8_t hash[32];
    if (o->comm == LOCAL_SET_LOCAL)
        return comm_local_new(s->n_ranks, &options, comms, err);
    if (o->comm != LOCAL_SET_MPI)
        return 0;
    int rc = runner_hash_program(load, load->model_hash, hash, err);
    return rc != 0 ? rc : comm_mpi_open(s->n_ranks, hash, &options, &comms[o->mpi_rank], err);
}

static int start_ranks(struct local_set *s, const struct local_set_options *o,
                       const struct message_load *load, struct error *err)
{
    struct comm *comms[LIMIT_RANKS] = {0};
    int rc = open_comms(s, o, load, comms, err);
    for (uint32_t i = 0; i < s->n_ranks; i++) {
        if (rc == 0 && !s->rank[i].is_elsewhere)
            rc = start_rank(s, o, i, comms[i], err);
        else
            comm_close(comms[i]);
    }
    return rc;
}

/* What all ranks are told. */
static int make_load(const struct local_set *s, const struct local_set_options *o,
                     struct message_load *load, struct error *err)
{
    load->split = s->split;
    load->engine = o->engine;
    load->n_chunk = o->n_chunk;
    load->n_draft = o->n_draft;
    snprintf(load->draft_path, sizeof(load->draft_path), "%s", o->draft_path);
    load->wire = o->wire;
    load->transport = o->comm == LOCAL_SET_UCX ? COMM_UCX : COMM_TCP;
    load->spin_us = UINT32_MAX;
    load->cpu = -1;
    snprintf(load->host, sizeof(load->host), "127.0.0.1");
    if (strlen(o->model_path) >= sizeof(load->model_path))
        return error_set(err, E_INVALID, "the model's path is longer than %zu bytes",
                         sizeof(load->model_path) - 1);
    snprintf(load->model_path, sizeof(load->model_path), "%s", o->model_path);
    if (rng_system(load->key, sizeof(load->key)) != 0)
        return error_set(err, E_IO, "the system gives no random numbers");
    return 0;
}

static int send_load(struct local_set *s, const struct local_set_options *o,
                     struct message_load *load, struct error *err)
{
    long n_cpus = sysconf(_SC_NPROCESSORS_ONLN);
    int rc = 0;
    for (uint32_t i = 0; i < s->n_ranks && rc == 0; i++) {
        if (s->rank[i].is_elsewhere)
            continue;
        load->rank = i;
        if (o->devices != NULL)
            rc = engine_device_nth(o->devices, i, load->engine.device, err);
        if (rc != 0)
            return rc;
        if (o->pin && n_cpus > 0)
            load->cpu = (int32_t)(i % (uint32_t)n_cpus);
        struct buf frames = new_frames(65536);
        message_encode_load(&frames, load);
        rc = send_and_free(s, i, &frames, err);
    }
    return rc;
}

static int send_connect(struct local_set *s, struct error *err)
{
    struct message_connect connect = {.n_peers = s->n_ranks};
    for (uint32_t i = 0; i < s->n_ranks; i++) {
        snprintf(connect.peer[i].host, sizeof(connect.peer[i].host), "127.0.0.1");
        connect.peer[i].port = s->rank[i].port;
    }
    int rc = 0;
    for (uint32_t i = 0; i < s->n_ranks && rc == 0; i++) {
        if (s->rank[i].is_elsewhere)
            continue;
        struct buf frames = new_frames(65536);
        message_encode_connect(&frames, &connect);
        rc = send_and_free(s, i, &frames, err);
    }
    return rc;
}

/* Looks into the model for what a split needs to know. */
static int read_model(struct local_set *s, const struct local_set_options *o, uint8_t ret_hash[32],
                      struct error *err)
{
    struct model *model = NULL;
    int rc = model_open(o->model_path, &model, err);
    if (rc == 0)
        rc = split_parse(o->split != NULL ? o->split : "pipeline", s->n_ranks,
                         model->config.n_layer, NULL, &s->split, err);
    if (rc == 0)
        split_count_head(&s->split, model->config.n_layer, model_head_layers(model));
    uint64_t draft_bytes;
    if (rc == 0 && o->draft_path[0] != '\0')
        rc = draft_model_check_file(model, o->draft_path, &draft_bytes, err);
    if (rc == 0)
        memcpy(ret_hash, model->hash, 32);
    model_close(model);
    return rc;
}

int local_set_start(const struct local_set_options *o, struct local_set **ret_set,
                    struct error *err)
{
    uint32_t n_ranks = o->n_ranks != 0 ? o->n_ranks : 1;
    struct message_load load = {0};
    if (n_ranks > LIMIT_RANKS)
        return error_set(err, E_INVALID, "%u ranks, at most %d are possible", n_ranks, LIMIT_RANKS);
    struct local_set *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "no memory for %u ranks", n_ranks);
    s->n_ranks = n_ranks;
    buf_init(&s->answers, LIMIT_CONTROL_FRAME_BYTES);
    for (uint32_t i = 0; i < n_ranks; i++) {
        s->rank[i].fd = -1;
        s->rank[i].is_elsewhere = o->comm == LOCAL_SET_MPI && i != o->mpi_rank;
        buf_init(&s->rank[i].in, 1u << 20);
    }
    int rc = read_model(s, o, load.model_hash, err);
    if (rc == 0)
        rc = make_load(s, o, &load, err);
    if (rc == 0)
        rc = start_ranks(s, o, &load, err);
    if (rc == 0)
        rc = send_load(s, o, &load, err);
    if (rc == 0)
        rc = wait_for(s, all_listen, LISTEN_TIMEOUT_MS, "open the model", err);
    if (rc == 0)
        rc = send_connect(s, err);
    if (rc == 0)
        rc = wait_for(s, all_ready, READY_TIMEOUT_MS, "load the model", err);
    if (rc != 0) {
        local_set_stop(s);
        return rc;
    }
    *ret_set = s;
    return 0;
}

int local_set_follow(const struct local_set_options *o, struct error *err)
{
    struct local_set *s;
    char identity[32];
    snprintf(identity, sizeof(identity), "rank=%u", o->mpi_rank);
    log_set_identity(identity);
    int rc = local_set_start(o, &s, err);
    if (rc != 0)
        return rc;
    const struct local_rank *r = &s->rank[o->mpi_rank];
    while (r->fd >= 0 && !r->has_failed)
        pump(s, UINT64_MAX);
    /* A head that ended in the middle of a step has said nothing, and is lost. */
    if (r->has_failed && r->failed.code != E_PEERLOST)
        rc = check(s, err);
    local_set_stop(s);
    return rc;
}

/* ---- using ---- */

int local_set_submit(struct local_set *s, const struct message_submit *m, struct error *err)
{
    struct buf frames = new_frames(LIMIT_CONTROL_FRAME_BYTES + 64u);
    message_encode_submit(&frames, m);
    return send_and_free(s, 0, &frames, err);
}

int local_set_cancel(struct local_set *s, uint64_t request, struct error *err)
{
    struct buf frames = new_frames(64);
    message_encode_cancel(&frames, request);
    return send_and_free(s, 0, &frames, err);
}

int local_set_next(struct local_set *s, uint32_t timeout_ms, struct message *ret_message,
                   struct error *err)
{
    buf_consume(&s->answers, s->answer_bytes);
    s->answer_bytes = 0;
    uint64_t until_ns = clock_now_ns() + timeout_ms * UINT64_C(1000000);
    for (;;) {
        int64_t len = s->answers.len > 0
                          ? message_next(s->answers.data, s->answers.len, ret_message, err)
                          : 0;
        if (len > 0) {
            s->answer_bytes = (size_t)len;
            return 0;
        }
        int rc = len < 0 ? (int)len : check(s, err);
        if (rc != 0)
            return rc;
        if (!pump(s, until_ns) && clock_now_ns() >= until_ns)
            return error_set(err, E_TIMEOUT, "no answer within %u ms", timeout_ms);
    }
}

int local_set_ping(struct local_set *s, uint32_t rank, struct message_pong *ret_pong,
                   struct error *err)
{
    if (rank >= s->n_ranks)
        return error_set(err, E_INVALID, "rank %u of %u", rank, s->n_ranks);
    struct local_rank *r = &s->rank[rank];
    if (r->is_elsewhere) {
        *ret_pong = (struct message_pong){0};
        return 0;
    }
    r->has_pong = false;
    struct buf frames = new_frames(64);
    message_encode_ping(&frames, ++s->nonce);
    int rc = send_and_free(s, rank, &frames, err);
    uint64_t until_ns = clock_now_ns() + PING_TIMEOUT_MS * UINT64_C(1000000);
    while (rc == 0 && !r->has_pong) {
        rc = check(s, err);
        if (rc == 0 && !pump(s, until_ns) && clock_now_ns() >= until_ns)
            rc = error_set(err, E_TIMEOUT, "rank %u did not answer within %d ms", rank,
                           PING_TIMEOUT_MS);
    }
    if (rc == 0)
        *ret_pong = r->pong;
    return rc;
}

const struct message_ready *local_set_ready(const struct local_set *s, uint32_t rank)
{
    return rank < s->n_ranks && !s->rank[rank].is_elsewhere ? &s->rank[rank].ready : NULL;
}

uint32_t local_set_n_ranks(const struct local_set *s)
{
    return s->n_ranks;
}

const struct split *local_set_split(const struct local_set *s)
{
    return &s->split;
}

/* ---- stopping ---- */

static bool all_ended(const struct local_set *s)
{
    for (uint32_t i = 0; i < s->n_ranks; i++)
        if (s->rank[i].fd >= 0)
            return false;
    return true;
}

void local_set_stop(struct local_set *s)
{
    if (s == NULL)
        return;
    uint64_t until_ns = clock_now_ns() + STOP_TIMEOUT_MS * UINT64_C(1000000);
    struct buf frames = new_frames(64);
    message_encode_stop(&frames);
    for (uint32_t i = 0; i < s->n_ranks; i++)
        if (s->rank[i].fd >= 0)
            (void)!send(s->rank[i].fd, frames.data, frames.len, MSG_NOSIGNAL | MSG_DONTWAIT);
    buf_done(&frames);
    while (!all_ended(s) && clock_now_ns() < until_ns)
        pump(s, until_ns);
    for (uint32_t i = 0; i < s->n_ranks; i++) {
        struct local_rank *r = &s->rank[i];
        close_link(r);
        if (r->pid > 0 && !r->is_reaped)
            local_process_end(r->pid, until_ns);
        if (r->has_thread)
            pthread_join(r->thread, NULL);
        buf_done(&r->in);
    }
    buf_done(&s->answers);
    free(s);
}
