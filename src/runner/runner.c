#include "runner/runner.h"

#include "base/log.h"
#include "runner/control.h"
#include "runner/serve.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct runner {
    struct control *control;
    struct message_load load;
    struct model *model;
    struct comm_tcp_listener *listener;
    struct comm *comm; /* NULL with one rank and no local comm */
    bool is_local;     /* comm came with the thread */
    struct engine *engine;
};

/* ---- the conversation ---- */

/* Waits for the next command, which must be of this type. */
static int expect(struct runner *r, enum message_type type, struct command **ret_command,
                  struct error *err)
{
    struct command *command = NULL;
    int rc = 0;
    while (rc == 0 && command == NULL)
        rc = control_take(r->control, 60000, &command, err);
    if (rc == 0 && command->message.type != type)
        rc = error_set(err, E_PROTOCOL, "control frame of type %d came, type %d was due",
                       (int)command->message.type, (int)type);
    if (rc != 0) {
        free(command);
        return rc;
    }
    *ret_command = command;
    return 0;
}

static void send_and_free(struct runner *r, struct buf *frames)
{
    control_send(r->control, frames);
    buf_done(frames);
}

static struct buf new_frames(void)
{
    struct buf frames;
    buf_init(&frames, 65536);
    return frames;
}

/* ---- LOAD ---- */

static int pin_to_cpu(int32_t cpu, struct error *err)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu >= CPU_SETSIZE)
        return error_set(err, E_INVALID, "processor %d, at most %d are known", cpu,
                         CPU_SETSIZE - 1);
    CPU_SET((size_t)cpu, &set);
    int code = pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
    return code != 0
               ? error_set(err, E_INVALID, "cannot pin to processor %d: %s", cpu, strerror(code))
               : 0;
}

static int check_model(const struct runner *r, struct error *err)
{
    static const uint8_t unchecked[32];
    const struct message_load *load = &r->load;
    if (memcmp(load->model_hash, unchecked, sizeof(unchecked)) != 0 &&
        memcmp(load->model_hash, r->model->hash, sizeof(unchecked)) != 0)
        return error_set(err, E_INVALID,
                         "%s is not the same model file as on the head: copy it again",
                         load->model_path);
    return split_check(&load->split, r->model->config.n_layer, err);
}

/* Whether the ranks talk over tcp: a single rank talks to nobody. */
static bool uses_tcp(const struct runner *r)
{
    return !r->is_local && r->load.split.n_ranks > 1;
}

static int do_load(struct runner *r, struct error *err)
{
    struct command *command;
    int rc = expect(r, MESSAGE_LOAD, &command, err);
    if (rc != 0)
        return rc;
    rc = message_decode_load(&command->message, &r->load, err);
    free(command);
    if (rc != 0)
        return rc;
    if (!r->is_local) {
        char identity[32];
        snprintf(identity, sizeof(identity), "rank=%u", r->load.rank);
        log_set_identity(identity);
    }
    if (r->is_local && r->comm != NULL &&
        (comm_rank(r->comm) != r->load.rank || comm_size(r->comm) != r->load.split.n_ranks))
        return error_set(err, E_INVALID, "rank %u of %u has the comm of rank %u of %u",
                         r->load.rank, r->load.split.n_ranks, comm_rank(r->comm),
                         comm_size(r->comm));
    if (r->load.cpu >= 0)
        rc = pin_to_cpu(r->load.cpu, err);
    if (rc == 0)
        rc = model_open(r->load.model_path, &r->model, err);
    if (rc == 0)
        rc = check_model(r, err);
    uint16_t port = 0;
    if (rc == 0 && uses_tcp(r))
        rc = comm_tcp_listen(r->load.host, 0, &r->listener, &port, err);
    if (rc != 0)
        return rc;
    struct buf frames = new_frames();
    message_encode_listening(&frames, port);
    send_and_free(r, &frames);
    return 0;
}

/* ---- CONNECT ---- */

/* SHA-256 of everything that must be the same on all ranks for their steps to fit together. */
static int hash_program(const struct runner *r, uint8_t ret_hash[32], struct error *err)
{
    struct buf b;
    buf_init(&b, 65536);
    buf_append_str(&b, "shoal " SHOAL_VERSION " wire f32\n");
    buf_append(&b, r->model->hash, sizeof(r->model->hash));
    split_encode(&r->load.split, &b);
    buf_append_u32(&b, r->load.engine.n_ctx);
    buf_append_u32(&b, r->load.engine.n_slots);
    buf_append_u32(&b, r->load.engine.n_batch);
    unsigned int len = 32;
    bool ok = b.error == 0 && EVP_Digest(b.data, b.len, ret_hash, &len, EVP_sha256(), NULL) == 1;
    buf_done(&b);
    return ok ? 0 : error_set(err, E_INTERNAL, "cannot hash the program");
}

static int do_connect(struct runner *r, struct error *err)
{
    struct command *command;
    struct message_connect connect;
    uint8_t hash[32];
    int rc = expect(r, MESSAGE_CONNECT, &command, err);
    if (rc != 0)
        return rc;
    rc = message_decode_connect(&command->message, &connect, err);
    free(command);
    if (rc == 0 && connect.n_peers != r->load.split.n_ranks)
        rc = error_set(err, E_PROTOCOL, "connect: %u peers for %u ranks", connect.n_peers,
                       r->load.split.n_ranks);
    if (rc != 0 || !uses_tcp(r))
        return rc;
    rc = hash_program(r, hash, err);
    struct comm_options options = {.timeout_ms = r->load.timeout_ms, .spin_us = r->load.spin_us};
    if (rc == 0)
        rc = comm_tcp_connect(r->listener, r->load.rank, r->load.split.n_ranks, connect.peer,
                              r->load.key, hash, &options, &r->comm, err);
    comm_tcp_listener_close(r->listener);
    r->listener = NULL;
    return rc;
}

/* The engine's figures, with the context that was asked for: its own may be rounded up. */
static struct engine_info read_info(const struct runner *r)
{
    struct engine_info info;
    engine_get_info(r->engine, &info);
    uint32_t n_ctx = r->load.engine.n_ctx;
    if (n_ctx != 0 && n_ctx < info.n_ctx)
        info.n_ctx = n_ctx;
    return info;
}

static int do_open(struct runner *r, const struct serve_options *o, struct error *err)
{
    struct buf frames = new_frames();
    message_encode_loading(&frames, 0.0f);
    send_and_free(r, &frames);
    control_set_targets(r->control, r->comm, NULL);
    int rc = engine_open(r->model, &r->load.split, r->load.rank, o->comm, &r->load.engine,
                         &r->engine, err);
    if (rc != 0)
        return rc;
    control_set_targets(r->control, r->comm, r->engine);
    rc = serve_barrier(o, err);
    if (rc != 0)
        return rc;
    struct message_ready ready = {.info = read_info(r), .pid = (uint32_t)getpid()};
    frames = new_frames();
    message_encode_ready(&frames, &ready);
    send_and_free(r, &frames);
    log_debug("runner", "rank %u of %u is ready", o->rank, o->n_ranks);
    return 0;
}

/* ---- all of it ---- */

static int run(struct runner *r, struct error *err)
{
    int rc = do_load(r, err);
    if (rc == 0)
        rc = do_connect(r, err);
    if (rc != 0)
        return rc;
    const struct split *split = &r->load.split;
    struct serve_options o = {
        .control = r->control,
        .comm = split->n_ranks > 1 ? r->comm : NULL,
        .rank = r->load.rank,
        .n_ranks = split->n_ranks,
        .rows_rank = split->stage[split->n_stages - 1].rank_first,
        .n_vocab = r->model->config.n_vocab,
        .timeout_ms = r->load.timeout_ms != 0 ? r->load.timeout_ms : COMM_TIMEOUT_MS,
    };
    rc = do_open(r, &o, err);
    if (rc != 0)
        return rc;
    o.engine = r->engine;
    o.n_ctx = read_info(r).n_ctx;
    return serve(&o, err);
}

static void report(struct runner *r, const struct error *err)
{
    struct message_failed failed = {.code = err->code < 0 ? err->code : E_INTERNAL};
    memcpy(failed.message, err->message, sizeof(failed.message));
    struct buf frames = new_frames();
    message_encode_failed(&frames, &failed);
    send_and_free(r, &frames);
}

int runner_main(int control_fd, struct comm *local_comm)
{
    struct runner r = {.comm = local_comm, .is_local = local_comm != NULL};
    struct error err = {0};
    int rc = control_open(control_fd, !r.is_local, &r.control, &err);
    if (rc != 0) {
        log_error("runner", "%s", err.message);
        comm_close(local_comm);
        return rc;
    }
    rc = run(&r, &err);
    /* After STOP every error is a consequence of stopping. */
    if (rc != 0 && control_end(r.control, NULL) == E_CANCELLED)
        rc = 0;
    else if (rc != 0)
        report(&r, &err);
    control_set_targets(r.control, NULL, NULL);
    /* Peers learn that this rank is gone before its memory is returned, which may take a while. */
    comm_tcp_listener_close(r.listener);
    if (r.engine != NULL && r.comm != NULL && rc != 0)
        comm_abort(r.comm);
    engine_close(r.engine);
    comm_close(r.comm);
    model_close(r.model);
    control_close(r.control);
    return rc;
}
