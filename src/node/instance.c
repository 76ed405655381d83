/*
 * Instances that this node leads: starts a runner per rank where the placement says, tells the
 * ranks of each other, serves; and when any rank ends, ends them all and says so. Where ranks are
 * is decided by the core (cluster/cluster.h), never here: a failed instance is placed anew, as a
 * new epoch, which is another struct instance.
 *
 *   WAITING -> STARTING -> LOADING -> SERVING -> FAILED or STOPPED, once all ranks have ended
 */
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "node/internal.h"
#include "runner/scheduler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    FILE_MS_MAX = 30000, /* headers of large models on slow disks */
    STARTING_MS_MAX = 30000,
    LOADING_MS_MAX = 600000, /* disks of small machines read 100 MB/s: 60 GB */
};

static struct rank_owner owner_of(const struct instance *i)
{
    return (struct rank_owner){
        .leader = i->node->id, .instance = i->placed.id, .epoch = i->placed.epoch};
}

static bool is_local(const struct instance *i, uint32_t rank)
{
    return node_id_equal(&i->placed.node_of_rank[rank], &i->node->id);
}

struct instance *instance_find(const struct node *n, const struct node_id *id, uint64_t epoch)
{
    for (struct instance *i = n->instances; i != NULL; i = i->next)
        if (i->placed.epoch == epoch && node_id_equal(&i->placed.id, id))
            return i;
    return NULL;
}

/* ---- reports ---- */

static void touch(struct instance *i)
{
    i->is_report_due = true;
    core_touch(i->node);
}

static void set_status(struct instance *i, enum instance_status status)
{
    const struct instance_report *r = &i->report;
    i->report.status = status;
    if (status == INSTANCE_FAILED)
        log_warn("node", "instance=%s epoch=%llx status=failed ranks=%u error=%s",
                 i->placed.model_id, (unsigned long long)i->placed.epoch, r->n_ranks, r->error);
    else
        log_info("node", "instance=%s epoch=%llx status=%s ranks=%u", i->placed.model_id,
                 (unsigned long long)i->placed.epoch, instance_status_name(status), r->n_ranks);
    touch(i);
}

static void on_timer_closed(uv_handle_t *handle)
{
    struct instance *i = handle->data;
    struct node *n = i->node;
    n->n_handles--;
    free(i);
    node_check_stop(n);
}

static void forget(struct instance *i)
{
    for (struct instance **p = &i->node->instances; *p != NULL; p = &(*p)->next)
        if (*p == i) {
            *p = i->next;
            break;
        }
    uv_close((uv_handle_t *)&i->timer, on_timer_closed);
}

static bool all_ended(const struct instance *i)
{
    for (uint32_t r = 0; r < i->report.n_ranks; r++)
        if (i->report.rank[r].status != RANK_ENDED)
            return false;
    return true;
}

bool instance_send_reports(struct node *n)
{
    bool sent = false;
    for (struct instance *i = n->instances, *next; i != NULL; i = next) {
        struct cluster_event e = {.type = CLUSTER_EVENT_REPORT, .report = &i->report};
        next = i->next;
        bool is_over = (i->report.status == INSTANCE_FAILED || i->is_stopping) && all_ended(i);
        if (is_over && i->report.status != INSTANCE_FAILED)
            i->report.status = INSTANCE_STOPPED;
        if (i->is_report_due || is_over) {
            i->is_report_due = false;
            sent = true;
            core_step(n, &e, NULL);
        }
        if (is_over) {
            if (i->report.status == INSTANCE_STOPPED)
                log_info("node", "instance=%s epoch=%llx status=stopped", i->placed.model_id,
                         (unsigned long long)i->placed.epoch);
            next = i->next;
            forget(i);
        }
    }
    return sent;
}

/* ---- the end ---- */

static void stop_rank(struct instance *i, uint32_t rank)
{
    struct rank_owner owner = owner_of(i);
    if (i->report.rank[rank].status == RANK_ENDED)
        return;
    if (is_local(i, rank)) {
        ranks_stop(i->node, &owner, rank);
        return;
    }
    struct mesh_link *link = mesh_find(i->node->mesh, &i->placed.node_of_rank[rank]);
    if (link == NULL) {
        i->report.rank[rank].status = RANK_ENDED;
        return;
    }
    struct mesh_rank_stop m = {.instance = i->placed.id, .epoch = i->placed.epoch, .rank = rank};
    struct buf b;
    buf_init(&b, 256);
    mesh_encode_rank_stop(&b, &m);
    mesh_link_send(link, &b);
}

static void stop_all_ranks(struct instance *i)
{
    uv_timer_stop(&i->timer);
    for (uint32_t r = 0; r < i->report.n_ranks; r++)
        stop_rank(i, r);
}

static void fail(struct instance *i, const char *reason)
{
    if (i->report.status == INSTANCE_FAILED || i->is_stopping)
        return;
    snprintf(i->report.error, sizeof(i->report.error), "%s", reason);
    for (char *p = i->report.error; *p != '\0'; p++)
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    stop_all_ranks(i);
    set_status(i, INSTANCE_FAILED);
    requests_lose_instance(i->node, i, i->report.error);
}

void instance_stop(struct node *n, const struct node_id *id, uint64_t epoch)
{
    struct instance *i = instance_find(n, id, epoch);
    if (i == NULL || i->is_stopping)
        return;
    i->is_stopping = true;
    stop_all_ranks(i);
    requests_lose_instance(n, i, "the instance has been moved or stopped");
    touch(i);
}

void instance_stop_all(struct node *n)
{
    for (struct instance *i = n->instances, *next; i != NULL; i = next) {
        next = i->next;
        instance_stop(n, &i->placed.id, i->placed.epoch);
    }
}

static void on_timer(uv_timer_t *timer)
{
    struct instance *i = timer->data;
    char text[160];
    uint32_t missing = 0;
    if (i->report.status == INSTANCE_WAITING) {
        fail(i, "the model's file was not read in time");
        return;
    }
    bool is_starting = i->report.status == INSTANCE_STARTING;
    for (uint32_t r = 0; r < i->report.n_ranks; r++) {
        enum rank_status s = i->report.rank[r].status;
        bool is_late = is_starting ? s == RANK_STARTING : s != RANK_READY;
        missing += is_late;
        if (is_late)
            i->report.bad_ranks |= (uint64_t)1 << r;
    }
    snprintf(text, sizeof(text), "%u of %u ranks were not %s in time (%d s)", missing,
             i->report.n_ranks, is_starting ? "listening" : "ready",
             (is_starting ? STARTING_MS_MAX : LOADING_MS_MAX) / 1000);
    fail(i, text);
}

static void arm(struct instance *i, uint64_t ms)
{
    uv_timer_start(&i->timer, on_timer, ms, 0);
}

/* ---- the beginning ---- */

/* Where the ranks on this node listen: loopback when nobody else takes part, else the address that
 * the first other node knows us by. */
static void choose_local_host(const struct instance *i, char host[64])
{
    snprintf(host, 64, "127.0.0.1");
    for (uint32_t r = 0; r < i->report.n_ranks; r++) {
        struct mesh_link *l =
            is_local(i, r) ? NULL : mesh_find(i->node->mesh, &i->placed.node_of_rank[r]);
        if (l != NULL) {
            snprintf(host, 64, "%s", mesh_link_local_host(l));
            return;
        }
    }
}

static int start_rank(struct instance *i, uint32_t rank, struct message_load *load,
                      const struct served_model *model, struct error *err)
{
    struct rank_owner owner = owner_of(i);
    uint32_t n_node_ranks = 0;
    for (uint32_t r = 0; r < i->report.n_ranks; r++)
        n_node_ranks += node_id_equal(&i->placed.node_of_rank[r], &i->placed.node_of_rank[rank]);
    load->rank = rank;
    if (is_local(i, rank))
        return ranks_start(i->node, &owner, rank, n_node_ranks, load, err);
    struct mesh_link *link = mesh_find(i->node->mesh, &i->placed.node_of_rank[rank]);
    struct mesh_rank_start m = {.instance = i->placed.id,
                                .epoch = i->placed.epoch,
                                .rank = rank,
                                .n_node_ranks = n_node_ranks};
    struct buf frame, b;
    if (link == NULL)
        return error_set(err, E_PEERLOST, "the node of rank %u has just left", rank);
    memcpy(m.model_hash, model->hash, sizeof(m.model_hash));
    snprintf(m.path, sizeof(m.path), "%s", model->file->path);
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

static void describe_ranks(struct instance *i, const struct model *model)
{
    for (uint32_t r = 0; r < i->report.n_ranks; r++) {
        struct rank_report *rank = &i->report.rank[r];
        struct shard shard;
        if (shard_init(&shard, model, &i->placed.split, r, NULL) != 0)
            continue;
        rank->stage = shard.stage;
        rank->layers = shard.layers;
        if (shard.layers.end > shard.layers.begin)
            rank->kv_heads = shard.layer[0].kv_heads;
        shard_done(&shard);
    }
}

static void set_options(struct message_load *load, const struct instance_options *o,
                        const struct model *model)
{
    uint32_t n_slots = o->n_slots != 0 ? o->n_slots : NODE_SLOTS_DEFAULT;
    uint32_t n_ctx = o->n_ctx != 0 ? o->n_ctx : engine_default_n_ctx(model);
    load->engine.n_ctx = n_ctx;
    load->engine.n_slots = n_slots;
    load->engine.n_kv_tokens = placement_kv_tokens(n_ctx, n_slots, o->n_kv_tokens);
    load->engine.kv_type = o->kv_type;
    load->wire = o->wire;
    load->transport = o->transport;
    load->n_chunk = o->n_chunk;
    load->n_draft = o->n_draft == INSTANCE_NO_DRAFT ? 0
                    : o->n_draft != 0               ? o->n_draft
                                                    : SCHEDULER_DRAFT_DEFAULT;
}

/* The head's node is this one. */
static void find_draft(const struct instance *i, const struct instance_options *o,
                       struct message_load *load)
{
    if (o->draft_model[0] != '\0' && load->n_draft > 0 &&
        !model_file_find(o->draft_model, i->node->config.data_dir, load->draft_path))
        log_warn("node", "instance=%s there is no draft model %s here -> serves without",
                 i->placed.model_id, o->draft_model);
}

static int launch(struct instance *i, const struct desired_model *wanted,
                  const struct served_model *model, struct error *err)
{
    struct message_load load = {.cpu = -1, .spin_us = UINT32_MAX};
    int rc = rng_system(load.key, sizeof(load.key));
    if (rc != 0)
        return error_set(err, rc, "the system gives no random numbers");
    rc = split_check(&i->placed.split, model->file->model->config.n_layer, err);
    if (rc != 0)
        return rc;
    describe_ranks(i, model->file->model);
    load.split = i->placed.split;
    memcpy(load.model_hash, model->hash, sizeof(load.model_hash));
    set_options(&load, &wanted->options, model->file->model);
    find_draft(i, &wanted->options, &load);
    choose_local_host(i, load.host);
    paths_prepare(i->node, &i->placed, load.host);
    snprintf(load.model_path, sizeof(load.model_path), "%s", model->file->path);
    i->connect = (struct message_connect){.n_peers = i->report.n_ranks};
    for (uint32_t r = 0; r < i->report.n_ranks; r++) {
        rc = start_rank(i, r, &load, model, err);
        if (rc != 0) {
            i->report.bad_ranks |= (uint64_t)1 << r;
            return rc;
        }
        i->report.rank[r].status = RANK_STARTING;
    }
    return 0;
}

static const struct desired_model *find_wanted(const struct instance *i)
{
    const struct cluster_state *s = cluster_get_state(i->node->cluster);
    for (uint32_t k = 0; k < s->n_models; k++)
        if (s->model[k].is_wanted && strcmp(s->model[k].id, i->placed.model_id) == 0)
            return &s->model[k];
    return NULL;
}

/* Goes on when the model's file is there, and gives up when it is known not to be. */
static void try_start(struct instance *i)
{
    struct error err = {0};
    const struct desired_model *wanted = find_wanted(i);
    if (i->report.status != INSTANCE_WAITING || i->is_stopping || wanted == NULL)
        return; /* STOP follows when it is not wanted any more */
    const struct served_model *model = backend_find(i->node, wanted->id, wanted->hash);
    if (model == NULL || (model->file == NULL && !model->is_missing))
        return;
    if (model->file == NULL) {
        i->report.bad_ranks = 1;
        i->report.is_node_unfit = true;
        fail(i, model->error);
        return;
    }
    if (launch(i, wanted, model, &err) != 0) {
        fail(i, err.message);
        return;
    }
    arm(i, STARTING_MS_MAX);
    set_status(i, INSTANCE_STARTING);
}

void instance_on_files(struct node *n)
{
    for (struct instance *i = n->instances, *next; i != NULL; i = next) {
        next = i->next;
        try_start(i);
    }
}

void instance_lead(struct node *n, const struct placed_instance *placed)
{
    if (n->phase >= NODE_CLOSING_API)
        return; /* it is too late: others will see that this node is gone */
    struct instance *i = calloc(1, sizeof(*i));
    if (i == NULL) {
        log_error("node", "out of memory for instance %s", placed->model_id);
        return; /* the core does not hear of it and places it anew in time */
    }
    i->node = n;
    i->placed = *placed;
    i->report.instance = placed->id;
    i->report.epoch = placed->epoch;
    i->report.n_ranks = placed->split.n_ranks;
    i->report.created_s = clock_wall_ns() / 1000000000u;
    for (uint32_t r = 0; r < i->report.n_ranks; r++)
        i->report.rank[r].status = RANK_ENDED;
    uv_timer_init(n->loop, &i->timer);
    i->timer.data = i;
    n->n_handles++;
    i->next = n->instances;
    n->instances = i;
    i->is_report_due = true;
    arm(i, FILE_MS_MAX);
    n->is_changed = true; /* the file may be there: settle() asks */
}

/* ---- what the ranks say ---- */

void instance_send(struct instance *i, uint32_t rank, struct buf *frame)
{
    struct rank_owner owner = owner_of(i);
    struct buf relay;
    if (is_local(i, rank)) {
        ranks_send(i->node, &owner, rank, frame);
        return;
    }
    struct mesh_link *link = mesh_find(i->node->mesh, &i->placed.node_of_rank[rank]);
    struct mesh_rank_frame m = {.instance = i->placed.id,
                                .epoch = i->placed.epoch,
                                .rank = rank,
                                .frame = frame->data,
                                .frame_len = frame->len};
    buf_init(&relay, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_rank_frame(&relay, &m);
    if (frame->error != 0)
        relay.error = frame->error;
    buf_done(frame);
    if (link != NULL)
        mesh_link_send(link, &relay);
    else
        buf_done(&relay);
}

static void connect_ranks(struct instance *i)
{
    for (uint32_t r = 0; r < i->report.n_ranks; r++) {
        struct buf frame;
        buf_init(&frame, LIMIT_CONTROL_FRAME_BYTES);
        message_encode_connect(&frame, &i->connect);
        i->report.rank[r].status = RANK_LOADING;
        instance_send(i, r, &frame);
    }
    arm(i, LOADING_MS_MAX);
    set_status(i, INSTANCE_LOADING);
}

static void on_listening(struct instance *i, uint32_t rank, uint16_t port)
{
    struct comm_tcp_peer *peer = &i->connect.peer[rank];
    if (i->report.status != INSTANCE_STARTING || i->report.rank[rank].status != RANK_STARTING)
        return;
    if (is_local(i, rank)) {
        choose_local_host(i, peer->host);
    } else {
        struct mesh_link *link = mesh_find(i->node->mesh, &i->placed.node_of_rank[rank]);
        if (link == NULL)
            return; /* its end follows */
        snprintf(peer->host, sizeof(peer->host), "%s", mesh_link_remote_host(link));
    }
    peer->port = port;
    i->report.rank[rank].status = RANK_LISTENING;
    for (uint32_t r = 0; r < i->report.n_ranks; r++)
        if (i->report.rank[r].status != RANK_LISTENING)
            return;
    connect_ranks(i);
}

static void on_ready(struct instance *i, uint32_t rank, const struct message_ready *ready)
{
    struct rank_report *r = &i->report.rank[rank];
    if (i->report.status != INSTANCE_LOADING || r->status != RANK_LOADING)
        return;
    r->status = RANK_READY;
    r->weight_bytes = ready->info.weight_bytes;
    r->kv_bytes = ready->info.kv_bytes;
    r->pid = ready->pid;
    i->report.n_ctx = ready->info.n_ctx;
    i->report.n_slots = ready->info.n_slots;
    for (uint32_t k = 0; k < i->report.n_ranks; k++)
        if (i->report.rank[k].status != RANK_READY)
            return;
    uv_timer_stop(&i->timer);
    set_status(i, INSTANCE_SERVING);
}

void instance_on_frame(struct instance *i, uint32_t rank, const struct message *m)
{
    struct error err = {0};
    struct message_ready ready;
    struct message_failed failed;
    struct message_pong pong;
    uint16_t port;
    int rc = 0;
    if (rank >= i->report.n_ranks)
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
        if (rank == 0 && i->report.status == INSTANCE_SERVING && !i->is_stopping)
            rc = requests_on_frame(i->node, m, &err);
        break;
    case MESSAGE_PONG:
        rc = message_decode_pong(m, &pong, &err);
        if (rc == 0 && i->report.status == INSTANCE_SERVING && figures_take(i, rank, &pong))
            touch(i);
        break;
    case MESSAGE_LOADING:
        break;
    default:
        rc = error_set(&err, E_PROTOCOL, "rank %u sent a message of type %d", rank, m->type);
    }
    if (rc != 0)
        fail(i, err.message);
}

void instance_on_rank_ended(struct instance *i, uint32_t rank, const char *reason, bool is_unfit)
{
    struct error cause;
    if (rank >= i->report.n_ranks || i->report.rank[rank].status == RANK_ENDED)
        return;
    i->report.rank[rank].status = RANK_ENDED;
    i->report.rank[rank].pid = 0;
    if (i->report.status != INSTANCE_FAILED && !i->is_stopping) {
        i->report.bad_ranks |= (uint64_t)1 << rank;
        i->report.is_node_unfit = is_unfit;
        error_set(&cause, E_PEERLOST, "rank %u: %s", rank, reason);
        fail(i, cause.message);
    }
    if (all_ended(i))
        touch(i);
}

void instance_on_link_down(struct node *n, const struct mesh_link *link)
{
    const struct node_id *id = &mesh_link_hello(link)->id;
    char text[128];
    for (struct instance *i = n->instances, *next; i != NULL; i = next) {
        bool had_rank = false;
        next = i->next;
        for (uint32_t r = 0; r < i->report.n_ranks; r++)
            if (node_id_equal(&i->placed.node_of_rank[r], id) &&
                i->report.rank[r].status != RANK_ENDED) {
                i->report.rank[r].status = RANK_ENDED;
                had_rank = true;
                if (i->report.status != INSTANCE_FAILED && !i->is_stopping)
                    i->report.bad_ranks |= (uint64_t)1 << r;
            }
        if (!had_rank)
            continue;
        snprintf(text, sizeof(text), "the link to node %s is lost", mesh_link_hello(link)->name);
        fail(i, text);
        if (all_ended(i))
            i->is_report_due = true;
    }
    core_touch(n);
}
