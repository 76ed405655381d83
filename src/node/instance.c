/*
 * The instance that this node coordinates: waits for peers, places, starts a runner per rank, tells
 * the ranks of each other, serves; and when any rank ends, ends them all, fails what was running,
 * and starts again after a while.
 *
 *   WAITING -> STARTING -> LOADING -> SERVING          FAILED -> (back-off) -> WAITING
 *
 * An attempt has a number, the launch: what a rank of an earlier attempt says is not heard.
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    BACKOFF_MS_MIN = 500,
    BACKOFF_MS_MAX = 30000,
    BACKOFF_RESET_MS = 30000, /* having served this long, a failure counts as the first again */
    STARTING_MS_MAX = 30000,
    LOADING_MS_MAX = 600000, /* disks of small machines read 100 MB/s: 60 GB */
    WAITING_POLL_MS = 100,
};

static void try_start(struct instance *i);

static bool is_local(const struct instance *i, uint32_t rank)
{
    return node_id_equal(&i->node_of_rank[rank], &i->node->id);
}

static void set_status(struct instance *i, enum instance_status status)
{
    i->info.status = status;
    if (status == INSTANCE_FAILED)
        log_warn("node", "instance=%s status=failed ranks=%u error=%s", i->info.model_id,
                 i->info.n_ranks, i->info.error);
    else
        log_info("node", "instance=%s status=%s ranks=%u", i->info.model_id,
                 instance_status_name(status), i->info.n_ranks);
    backend_refresh(i->node);
    peers_state_changed(i->node);
    if (i->node->events.model_status != NULL)
        i->node->events.model_status(i->node->events.arg, &i->info);
}

/* ---- the timer: what it means depends on the status ---- */

static void fail(struct instance *i, const char *reason);

static void on_timer(uv_timer_t *timer)
{
    struct instance *i = timer->data;
    char text[160];
    uint32_t missing = 0;
    switch (i->info.status) {
    case INSTANCE_WAITING:
        try_start(i);
        break;
    case INSTANCE_FAILED:
        i->info.status = INSTANCE_WAITING;
        try_start(i);
        break;
    case INSTANCE_STARTING:
    case INSTANCE_LOADING:
        for (uint32_t r = 0; r < i->info.n_ranks; r++)
            missing += i->info.status == INSTANCE_STARTING ? i->info.rank[r].status == RANK_STARTING
                                                           : i->info.rank[r].status != RANK_READY;
        snprintf(text, sizeof(text), "%u of %u ranks were not %s in time (%d s)", missing,
                 i->info.n_ranks, i->info.status == INSTANCE_STARTING ? "listening" : "ready",
                 (i->info.status == INSTANCE_STARTING ? STARTING_MS_MAX : LOADING_MS_MAX) / 1000);
        fail(i, text);
        break;
    default:
        break;
    }
}

static void arm(struct instance *i, uint64_t ms)
{
    uv_timer_start(&i->timer, on_timer, ms, 0);
}

/* ---- the end of an attempt ---- */

static void stop_rank(struct instance *i, uint32_t rank)
{
    if (i->info.rank[rank].status == RANK_ENDED)
        return;
    if (is_local(i, rank)) {
        ranks_stop(i->node, NULL, i->launch, rank);
        return;
    }
    struct mesh_link *link = mesh_find(i->node->mesh, &i->node_of_rank[rank]);
    if (link == NULL) {
        i->info.rank[rank].status = RANK_ENDED;
        return;
    }
    struct buf b;
    buf_init(&b, 256);
    mesh_encode_rank_stop(&b, i->launch, rank);
    mesh_link_send(link, &b);
}

static bool all_ended(const struct instance *i)
{
    for (uint32_t r = 0; r < i->info.n_ranks; r++)
        if (i->info.rank[r].status != RANK_ENDED)
            return false;
    return true;
}

/* Once the last rank of a failed attempt is gone, its memory is free and the next may begin. */
static void check_ended(struct instance *i)
{
    if (!all_ended(i) || i->is_stopping || i->info.status != INSTANCE_FAILED)
        return;
    log_info("node", "instance=%s starts again in %llu ms", i->info.model_id,
             (unsigned long long)i->backoff_ms);
    arm(i, i->backoff_ms);
    i->backoff_ms = i->backoff_ms * 2 < BACKOFF_MS_MAX ? i->backoff_ms * 2 : BACKOFF_MS_MAX;
}

static void fail(struct instance *i, const char *reason)
{
    struct error cause;
    if (i->info.status == INSTANCE_FAILED || i->is_stopping)
        return;
    if (i->info.status == INSTANCE_SERVING &&
        uv_now(i->node->loop) - i->serving_since_ms >= BACKOFF_RESET_MS)
        i->backoff_ms = BACKOFF_MS_MIN;
    uv_timer_stop(&i->timer);
    snprintf(i->info.error, sizeof(i->info.error), "%s", reason);
    for (char *p = i->info.error; *p != '\0'; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    i->info.n_restarts++;
    set_status(i, INSTANCE_FAILED);
    for (uint32_t r = 0; r < i->info.n_ranks; r++)
        stop_rank(i, r);
    error_set(&cause, E_PEERLOST, "model %s stopped and is being started again: %s",
              i->info.model_id, i->info.error);
    requests_fail(i->node, NULL, E_PEERLOST, cause.message);
    check_ended(i);
}

/* ---- the beginning of an attempt ---- */

/* Where the ranks on this node listen: loopback when nobody else takes part, else the address that
 * the first other node knows us by. */
static void choose_local_host(const struct instance *i, char host[64])
{
    snprintf(host, 64, "127.0.0.1");
    for (uint32_t r = 0; r < i->info.n_ranks; r++) {
        struct mesh_link *l = is_local(i, r) ? NULL : mesh_find(i->node->mesh, &i->node_of_rank[r]);
        if (l != NULL) {
            snprintf(host, 64, "%s", mesh_link_local_host(l));
            return;
        }
    }
}

static int start_rank(struct instance *i, uint32_t rank, struct message_load *load,
                      struct error *err)
{
    uint32_t n_node_ranks = 0;
    for (uint32_t r = 0; r < i->info.n_ranks; r++)
        n_node_ranks += node_id_equal(&i->node_of_rank[r], &i->node_of_rank[rank]);
    load->rank = rank;
    if (is_local(i, rank))
        return ranks_start(i->node, NULL, i->launch, rank, n_node_ranks, load, err);
    struct mesh_link *link = mesh_find(i->node->mesh, &i->node_of_rank[rank]);
    struct mesh_rank_start m = {.launch = i->launch, .rank = rank, .n_node_ranks = n_node_ranks};
    struct buf frame, b;
    if (link == NULL)
        return error_set(err, E_PEERLOST, "the node of rank %u has just left", rank);
    memcpy(m.model_hash, i->file->model->hash, sizeof(m.model_hash));
    snprintf(m.path, sizeof(m.path), "%s", i->file->path);
    buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_load(&frame, load);
    m.frame = frame.data;
    m.frame_len = frame.len;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_rank_start(&b, &m);
    if (frame.error != 0)
        b.error = frame.error;
    buf_done(&frame);
    int rc = mesh_link_send(link, &b);
    return rc != 0 ? error_set(err, rc, "the node of rank %u cannot be reached", rank) : 0;
}

static int launch(struct instance *i, struct error *err)
{
    struct message_load load = {.cpu = -1, .spin_us = UINT32_MAX};
    int rc = rng_system(&i->launch, sizeof(i->launch));
    if (rc == 0)
        rc = rng_system(load.key, sizeof(load.key));
    if (rc != 0)
        return error_set(err, rc, "the system gives no random numbers");
    load.split = i->placement.split;
    memcpy(load.model_hash, i->file->model->hash, sizeof(load.model_hash));
    load.engine.n_ctx = i->node->config.n_ctx;
    load.engine.n_slots = i->node->config.n_slots;
    choose_local_host(i, load.host);
    snprintf(load.model_path, sizeof(load.model_path), "%s", i->file->path);
    i->connect = (struct message_connect){.n_peers = i->info.n_ranks};
    for (uint32_t r = 0; r < i->info.n_ranks; r++) {
        rc = start_rank(i, r, &load, err);
        if (rc != 0)
            return rc;
        i->info.rank[r].status = RANK_STARTING;
    }
    return 0;
}

static void try_start(struct instance *i)
{
    struct error err = {0};
    struct node *n = i->node;
    uint64_t waited_ms = uv_now(n->loop) - i->started_ms;
    if (i->file == NULL || i->is_stopping)
        return;
    if (mesh_n_missing(n->mesh) > 0 && waited_ms < n->config.wait_peers_ms) {
        arm(i, WAITING_POLL_MS);
        return;
    }
    if (mesh_n_missing(n->mesh) > 0)
        log_warn("node",
                 "instance=%s starts without %u of %u peers, which were not there in %llu "
                 "ms",
                 i->info.model_id, mesh_n_missing(n->mesh), n->config.n_peers,
                 (unsigned long long)waited_ms);
    int rc = instance_place(i, &err);
    if (rc == 0)
        rc = launch(i, &err);
    if (rc != 0) {
        fail(i, err.message);
        return;
    }
    arm(i, STARTING_MS_MAX);
    set_status(i, INSTANCE_STARTING);
}

/* ---- what the ranks say ---- */

static void connect_ranks(struct instance *i)
{
    struct buf b, relay;
    for (uint32_t r = 0; r < i->info.n_ranks; r++) {
        buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
        message_encode_connect(&b, &i->connect);
        i->info.rank[r].status = RANK_LOADING;
        if (is_local(i, r)) {
            ranks_send(i->node, NULL, i->launch, r, &b);
            continue;
        }
        struct mesh_link *link = mesh_find(i->node->mesh, &i->node_of_rank[r]);
        struct mesh_rank_frame m = {
            .launch = i->launch, .rank = r, .frame = b.data, .frame_len = b.len};
        buf_init(&relay, LIMIT_CONTROL_FRAME_BYTES);
        mesh_encode_rank_frame(&relay, &m);
        if (b.error != 0)
            relay.error = b.error;
        buf_done(&b);
        if (link != NULL)
            mesh_link_send(link, &relay);
        else
            buf_done(&relay);
    }
    arm(i, LOADING_MS_MAX);
    set_status(i, INSTANCE_LOADING);
}

static void on_listening(struct instance *i, uint32_t rank, uint16_t port)
{
    struct comm_tcp_peer *peer = &i->connect.peer[rank];
    if (i->info.status != INSTANCE_STARTING || i->info.rank[rank].status != RANK_STARTING)
        return;
    if (is_local(i, rank)) {
        choose_local_host(i, peer->host);
    } else {
        struct mesh_link *link = mesh_find(i->node->mesh, &i->node_of_rank[rank]);
        if (link == NULL)
            return; /* its end follows */
        snprintf(peer->host, sizeof(peer->host), "%s", mesh_link_remote_host(link));
    }
    peer->port = port;
    i->info.rank[rank].status = RANK_LISTENING;
    for (uint32_t r = 0; r < i->info.n_ranks; r++)
        if (i->info.rank[r].status != RANK_LISTENING)
            return;
    connect_ranks(i);
}

static void on_ready(struct instance *i, uint32_t rank, const struct message_ready *ready)
{
    struct rank_info *r = &i->info.rank[rank];
    if (i->info.status != INSTANCE_LOADING || r->status != RANK_LOADING)
        return;
    r->status = RANK_READY;
    r->weight_bytes = ready->info.weight_bytes;
    r->kv_bytes = ready->info.kv_bytes;
    r->pid = ready->pid;
    i->info.n_ctx = ready->info.n_ctx;
    i->info.n_slots = ready->info.n_slots;
    for (uint32_t k = 0; k < i->info.n_ranks; k++)
        if (i->info.rank[k].status != RANK_READY)
            return;
    uv_timer_stop(&i->timer);
    i->serving_since_ms = uv_now(i->node->loop);
    i->info.error[0] = '\0';
    set_status(i, INSTANCE_SERVING);
}

void instance_on_frame(struct instance *i, uint64_t launch_number, uint32_t rank,
                       const struct message *m)
{
    struct error err = {0};
    struct message_ready ready;
    struct message_failed failed;
    uint16_t port;
    int rc = 0;
    if (launch_number != i->launch || rank >= i->info.n_ranks)
        return;
    switch (m->type) {
    case MESSAGE_LISTENING:
        rc = message_decode_listening(m, &port, &err);
        if (rc == 0)
            on_listening(i, rank, port);
        break;
    case MESSAGE_READY:
        rc = message_decode_ready(m, &ready, &err);
        if (rc == 0)
            on_ready(i, rank, &ready);
        break;
    case MESSAGE_FAILED:
        rc = message_decode_failed(m, &failed, &err);
        if (rc == 0)
            fail(i, failed.message);
        break;
    case MESSAGE_PROGRESS:
    case MESSAGE_TOKENS:
    case MESSAGE_DONE:
        if (rank == 0 && i->info.status == INSTANCE_SERVING)
            rc = requests_on_event(i->node, NULL, m, &err);
        break;
    case MESSAGE_LOADING:
        break;
    default:
        rc = error_set(&err, E_PROTOCOL, "rank %u sent a message of type %d", rank, m->type);
    }
    if (rc != 0)
        fail(i, err.message);
}

void instance_on_rank_ended(struct instance *i, uint64_t launch_number, uint32_t rank,
                            const char *reason)
{
    struct error cause;
    if (launch_number != i->launch || rank >= i->info.n_ranks ||
        i->info.rank[rank].status == RANK_ENDED)
        return;
    i->info.rank[rank].status = RANK_ENDED;
    i->info.rank[rank].pid = 0;
    error_set(&cause, E_PEERLOST, "rank %u: %s", rank, reason);
    fail(i, cause.message);
    check_ended(i);
}

void instance_on_link_down(struct instance *i, const struct mesh_link *link)
{
    const struct mesh_hello *hello = mesh_link_hello(link);
    char text[128];
    bool had_rank = false;
    for (uint32_t r = 0; r < i->info.n_ranks; r++)
        if (!is_local(i, r) && node_id_equal(&i->node_of_rank[r], &hello->id) &&
            i->info.rank[r].status != RANK_ENDED) {
            i->info.rank[r].status = RANK_ENDED;
            had_rank = true;
        }
    if (!had_rank)
        return;
    snprintf(text, sizeof(text), "node %s is lost", hello->name);
    fail(i, text);
    check_ended(i);
}

void instance_on_link_up(struct instance *i)
{
    if (i->info.status == INSTANCE_WAITING && i->file != NULL && !i->is_stopping)
        arm(i, 0);
}

/* ---- life ---- */

static void on_file(void *arg, struct model_file *file, const struct error *err)
{
    struct instance *i = arg;
    struct node *n = i->node;
    n->n_loads--;
    i->is_file_loading = false;
    if (i->is_stopping || file == NULL) {
        model_file_free(file);
        if (!i->is_stopping) {
            /* Nothing heals a bad file, but a missing one may still be copied here. */
            snprintf(i->info.error, sizeof(i->info.error), "%s", err->message);
            set_status(i, INSTANCE_FAILED);
        }
        node_check_stop(n);
        return;
    }
    i->file = file;
    memcpy(i->info.model_hash, file->model->hash, sizeof(i->info.model_hash));
    snprintf(i->info.path, sizeof(i->info.path), "%s", file->path);
    try_start(i);
    backend_refresh(n);
}

int instance_new(struct node *n, const char *model, struct error *err)
{
    struct model_file_wanted wanted = {.with_text = true};
    struct instance *i = calloc(1, sizeof(*i));
    if (i == NULL)
        return error_set(err, E_NOMEM, "out of memory for an instance");
    i->node = n;
    i->started_ms = uv_now(n->loop);
    i->backoff_ms = BACKOFF_MS_MIN;
    i->info.coordinator = n->id;
    i->info.created_s = clock_wall_ns() / 1000000000u;
    model_file_id(model, i->info.model_id, sizeof(i->info.model_id));
    model_file_candidates(&wanted, model, n->config.data_dir);
    int rc = rng_system(i->info.id.bytes, sizeof(i->info.id.bytes));
    if (rc == 0)
        rc = model_file_load(n->loop, &wanted, on_file, i);
    if (rc != 0) {
        free(i);
        return error_set(err, rc, "cannot begin to load model %s", model);
    }
    n->n_loads++;
    i->is_file_loading = true;
    uv_timer_init(n->loop, &i->timer);
    i->timer.data = i;
    i->has_timer = true;
    n->n_handles++;
    n->instance = i;
    return 0;
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct instance *i = handle->data;
    struct node *n = i->node;
    n->n_handles--;
    node_check_stop(n);
}

void instance_stop(struct instance *i)
{
    if (i->is_stopping)
        return;
    i->is_stopping = true;
    for (uint32_t r = 0; r < i->info.n_ranks; r++)
        stop_rank(i, r);
    set_status(i, INSTANCE_STOPPED);
    requests_fail(i->node, NULL, E_UNAVAILABLE, "the node stops");
    uv_close((uv_handle_t *)&i->timer, on_timer_closed);
}

void instance_free(struct instance *i)
{
    if (i == NULL)
        return;
    model_file_free(i->file);
    free(i);
}
