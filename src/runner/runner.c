#include "runner/runner.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/weights.h"
#include "runner/control.h"
#include "runner/draft_model.h"
#include "runner/plan.h"
#include "runner/serve.h"

#include <openssl/evp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How long a runner without a task keeps its weights for another one: longer than a node waits. */
enum { IDLE_MS = 60 * 1000 };

struct runner {
    struct control *control;
    struct message_load load;
    struct model *model;
    struct comm_tcp_listener *listener;
    struct comm *comm; /* NULL with one rank and no comm that came along */
    bool is_local;     /* comm came with the thread */
    struct engine *engine;
    struct weights *kept;      /* of the last engine */
    struct draft_model *draft; /* of the head; NULL: none */
    struct weights *draft_kept;
    struct command *command; /* the first of this task, taken already; NULL: none */
    bool is_faultless;       /* whatever fails now is the other ranks' or the network's doing */
};

/* ---- the conversation ---- */

/* Waits for the next command, which must be of this type. */
static int expect(struct runner *r, enum message_type type, struct command **ret_command,
                  struct error *err)
{
    struct command *command = r->command;
    int rc = 0;
    r->command = NULL;
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

/* Whether this rank must meet the others: a single one talks to nobody. */
static bool must_connect(const struct runner *r)
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
    if (rc == 0 && must_connect(r))
        rc = comm_tcp_listen(r->load.host, 0, &r->listener, &port, err);
    if (rc != 0)
        return rc;
    struct buf frames = new_frames();
    message_encode_listening(&frames, port);
    send_and_free(r, &frames);
    return 0;
}

/* ---- CONNECT ---- */

int runner_hash_program(const struct message_load *load, const uint8_t model_hash[32],
                        uint8_t ret_hash[32], struct error *err)
{
    struct buf b;
    buf_init(&b, 65536);
    buf_append_str(&b, "shoal " SHOAL_VERSION "\n");
    buf_append_u32(&b, PLAN_VERSION);
    buf_append(&b, model_hash, 32);
    split_encode(&load->split, &b);
    buf_append_u32(&b, load->engine.n_ctx);
    buf_append_u32(&b, load->engine.n_slots);
    buf_append_u32(&b, load->engine.n_batch);
    buf_append_u32(&b, load->engine.n_kv_tokens);
    buf_append_u32(&b, load->engine.kv_type);
    buf_append_u32(&b, load->wire);
    buf_append_u32(&b, load->transport);
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
    if (rc != 0 || !must_connect(r))
        return rc;
    rc = runner_hash_program(&r->load, r->model->hash, hash, err);
    r->is_faultless = rc == 0;
    struct comm_options options = {
        .wire = r->load.wire, .timeout_ms = r->load.timeout_ms, .spin_us = r->load.spin_us};
    if (rc == 0)
        rc = (r->load.transport == COMM_UCX ? comm_ucx_connect : comm_tcp_connect)(
            r->listener, r->load.rank, r->load.split.n_ranks, connect.peer, r->load.key, hash,
            &options, &r->comm, err);
    comm_tcp_listener_close(r->listener);
    r->listener = NULL;
    r->is_faultless = r->is_faultless && rc != 0;
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

/* A draft model takes memory, too. */
static void add_draft(const struct runner *r, struct engine_info *info)
{
    struct engine_info draft;
    if (r->draft == NULL)
        return;
    draft_model_get_info(r->draft, &draft);
    info->weight_bytes += draft.weight_bytes;
    info->weight_bytes_mapped += draft.weight_bytes_mapped;
    info->weight_bytes_repacked += draft.weight_bytes_repacked;
    info->weight_bytes_kept += draft.weight_bytes_kept;
    info->weight_bytes_device += draft.weight_bytes_device;
    info->kv_bytes += draft.kv_bytes;
    info->compute_bytes += draft.compute_bytes;
}

/* What guesses ahead for the head. Without it the answers are the same, so it is not worth failing
 * for. */
static void open_draft(struct runner *r)
{
    const struct message_load *load = &r->load;
    struct weights *kept = r->draft_kept;
    struct error err = {0};
    r->draft_kept = NULL;
    if (load->rank != 0 || load->n_draft == 0 || load->draft_path[0] == '\0') {
        weights_free(kept);
        return;
    }
    struct engine_options options = load->engine;
    options.n_ctx = read_info(r).n_ctx;
    if (draft_model_open(r->model, load->draft_path, &options, kept, &r->draft, &err) != 0)
        log_warn("runner", "serves without the draft model %s: %s", load->draft_path, err.message);
}

static int do_open(struct runner *r, const struct serve_options *o, struct error *err)
{
    struct buf frames = new_frames();
    message_encode_loading(&frames, 0.0f);
    send_and_free(r, &frames);
    control_set_targets(r->control, r->comm, NULL);
    struct engine_options options = r->load.engine;
    options.kept = r->kept;
    r->kept = NULL;
    int rc =
        engine_open(r->model, &r->load.split, r->load.rank, o->comm, &options, &r->engine, err);
    if (rc != 0)
        return rc;
    open_draft(r);
    r->is_faultless = true;
    control_set_targets(r->control, r->comm, r->engine);
    rc = serve_barrier(o, err);
    if (rc != 0)
        return rc;
    struct message_ready ready = {.info = read_info(r), .pid = (uint32_t)getpid()};
    add_draft(r, &ready.info);
    frames = new_frames();
    message_encode_ready(&frames, &ready);
    send_and_free(r, &frames);
    log_debug("runner", "rank %u of %u is ready", o->rank, o->n_ranks);
    return 0;
}

/* ---- one task: from LOAD to the end of the step loop ---- */

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
        .n_stages = split->n_stages,
        .rows_rank = split->stage[split->n_stages - 1].rank_first,
        .n_vocab = r->model->config.n_vocab,
        .model_path = r->load.model_path,
        .n_chunk = r->load.n_chunk,
        .n_draft = r->load.n_draft,
        .timeout_ms = r->load.timeout_ms != 0 ? r->load.timeout_ms : COMM_TIMEOUT_MS,
    };
    rc = do_open(r, &o, err);
    if (rc != 0)
        return rc;
    o.engine = r->engine;
    o.n_ctx = read_info(r).n_ctx;
    o.draft_model = r->draft != NULL ? draft_model_source(r->draft) : NULL;
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

/* Ends the task; the weights stay. Peers learn that this rank is gone before its memory is
 * returned, which may take a while. */
static void end_task(struct runner *r, bool has_failed)
{
    control_set_targets(r->control, NULL, NULL);
    comm_tcp_listener_close(r->listener);
    if (r->engine != NULL && r->comm != NULL && has_failed)
        comm_abort(r->comm);
    if (r->engine != NULL)
        r->kept = engine_close_keeping(r->engine);
    if (r->draft != NULL)
        r->draft_kept = draft_model_close_keeping(r->draft);
    comm_close(r->comm);
    model_close(r->model);
    r->listener = NULL;
    r->engine = NULL;
    r->draft = NULL;
    r->comm = NULL;
    r->model = NULL;
    control_publish(r->control, &(struct message_pong){0});
}

/* ---- between two tasks ---- */

/* Whether another task may follow: nothing is wrong here, and there is a process to keep. */
static bool may_go_on(const struct runner *r, int rc)
{
    bool is_no_fault =
        rc == 0 || rc == E_CANCELLED ||
        (r->is_faultless && (rc == E_PEERLOST || rc == E_TIMEOUT || rc == E_PROTOCOL));
    return is_no_fault && !r->is_local && control_end(r->control, NULL) == 0;
}

/* Waits until the node says what becomes of this runner: RELEASE is answered (what the last task
 * failed of is over then: *status is 0), and LOAD begins another task. Whatever else comes was
 * meant for the one that has ended. Errors: E_CANCELLED when the runner shall end. */
static int wait_for_task(struct runner *r, int *status)
{
    struct error err;
    bool is_free = false;
    uint64_t until_ns = clock_now_ns() + IDLE_MS * UINT64_C(1000000);
    for (;;) {
        struct command *command = NULL;
        uint64_t now_ns = clock_now_ns();
        uint64_t left_ms = now_ns < until_ns ? (until_ns - now_ns + 999999) / 1000000 : 0;
        int rc = control_take(r->control, (uint32_t)left_ms, &command, &err);
        if (control_is_released(r->control)) {
            struct buf frames = new_frames();
            free(command);
            control_take_release(r->control);
            message_encode_released(&frames, weights_bytes_held(r->kept) +
                                                 weights_bytes_held(r->draft_kept));
            send_and_free(r, &frames);
            is_free = true;
            *status = 0;
            until_ns = clock_now_ns() + IDLE_MS * UINT64_C(1000000);
            continue;
        }
        if (rc != 0)
            return E_CANCELLED;
        if (command != NULL && is_free && command->message.type == MESSAGE_LOAD) {
            r->command = command;
            return 0;
        }
        free(command);
        if (left_ms == 0) {
            log_info("runner", "no other task within %d s -> ends", IDLE_MS / 1000);
            return E_CANCELLED;
        }
    }
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
    bool goes_on;
    do {
        r.is_faultless = false;
        rc = run(&r, &err);
        goes_on = may_go_on(&r, rc);
        /* After STOP or RELEASE every error is a consequence. */
        if (rc != 0 && (control_end(r.control, NULL) == E_CANCELLED ||
                        (goes_on && control_is_released(r.control))))
            rc = 0;
        else if (rc != 0)
            report(&r, &err);
        end_task(&r, rc != 0);
    } while (goes_on && wait_for_task(&r, &rc) == 0);
    weights_free(r.kept);
    weights_free(r.draft_kept);
    control_close(r.control);
    return rc;
}
