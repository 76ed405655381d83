/* Runners on this node. A rank belongs to the leader of its instance, this node or another; what
 * its runner says goes there. Of one instance only the newest epoch runs: ranks of older ones are
 * let go, and the new ones wait until they have ended, so that their memory is free.
 */
#include "node/ranks.h"
#include "base/log.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_own(const struct hosted_rank *h)
{
    return node_id_equal(&h->owner.leader, &h->node->id);
}

static struct hosted_rank *find_rank(struct node *n, const struct rank_owner *owner, uint32_t rank)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (!h->is_orphan && !h->is_parked && h->rank == rank && h->owner.epoch == owner->epoch &&
            node_id_equal(&h->owner.instance, &owner->instance) &&
            node_id_equal(&h->owner.leader, &owner->leader))
            return h;
    return NULL;
}

uint32_t ranks_count(const struct node *n)
{
    uint32_t count = 0;
    for (const struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        count++;
    return count;
}

uint64_t node_memory_bytes_free(const struct node *n)
{
    return n->config.device_bytes_total != 0 ? n->config.memory_bytes_max
                                             : device_memory_bytes_free();
}

uint64_t ranks_bytes(const struct node *n)
{
    const struct cluster_state *s = n->cluster != NULL ? cluster_get_state(n->cluster) : NULL;
    uint64_t bytes = 0;
    for (const struct hosted_rank *h = n->ranks; s != NULL && h != NULL; h = h->next)
        for (uint32_t i = 0; i < s->n_instances && !h->is_parked; i++)
            if (s->instance[i].epoch == h->owner.epoch &&
                node_id_equal(&s->instance[i].id, &h->owner.instance))
                bytes += s->instance[i].bytes_of_rank[h->rank];
    return bytes;
}

void rank_unlink(struct hosted_rank *h)
{
    for (struct hosted_rank **p = &h->node->ranks; *p != NULL; p = &(*p)->next)
        if (*p == h) {
            *p = h->next;
            break;
        }
}

static void start_waiting(struct node *n);

static void tell_ended(struct node *n, const struct rank_owner *owner, uint32_t rank,
                       const char *reason, bool is_unfit)
{
    struct mesh_link *link = mesh_find(n->mesh, &owner->leader);
    struct mesh_rank_ended m = {.instance = owner->instance,
                                .epoch = owner->epoch,
                                .rank = rank,
                                .is_node_unfit = is_unfit};
    struct buf b;
    if (link == NULL)
        return;
    snprintf(m.reason, sizeof(m.reason), "%s", reason);
    for (char *p = m.reason; *p != '\0'; p++) /* the other side takes no control characters */
        if ((unsigned char)*p < ' ' || *p == 0x7f)
            *p = ' ';
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_rank_ended(&b, &m);
    mesh_link_send(link, &b);
}

/* The end of a rank, told to whom it belongs; h is a copy of what it was. Others may start now. */
static void tell_owner(const struct hosted_rank *h, const char *reason, bool is_unfit)
{
    struct node *n = h->node;
    start_waiting(n);
    if (h->is_orphan) {
        /* nobody to tell */
    } else if (is_own(h)) {
        struct instance *i = instance_find(n, &h->owner.instance, h->owner.epoch);
        if (i != NULL)
            instance_on_rank_ended(i, h->rank, reason, is_unfit);
    } else {
        tell_ended(n, &h->owner, h->rank, reason, is_unfit);
    }
    node_check_stop(n);
}

static void end_rank(struct hosted_rank *h, const char *reason, bool is_unfit)
{
    rank_unlink(h);
    h->is_orphan |= h->is_parked; /* told before */
    tell_owner(h, reason, is_unfit);
    free(h);
}

void rank_stop(struct hosted_rank *h)
{
    h->is_stopping = true;
    if (h->process != NULL)
        runner_process_stop(h->process);
}

/* Ends a rank: its runner is parked if that makes sense. */
static void let_go(struct hosted_rank *h)
{
    if (!parked_is_worth(h)) {
        rank_stop(h);
    } else if (!h->is_releasing) {
        h->is_releasing = true;
        runner_process_release(h->process);
    }
}

static void on_released(struct hosted_rank *h, const struct message *m)
{
    h->is_releasing = false;
    if (message_decode_u64(m, &h->parked_bytes, NULL) != 0 || !parked_is_worth(h) ||
        !parked_has_room(h)) {
        rank_stop(h);
        return;
    }
    struct hosted_rank ended = *h; /* another rank may take its runner over at once */
    h->is_parked = true;
    h->parked_ms = uv_now(h->node->loop);
    log_info("node", "rank=%u epoch=%llx pid=%u parked with %.1f MiB of weights", h->rank,
             (unsigned long long)h->owner.epoch, runner_process_pid(h->process),
             (double)h->parked_bytes / (1 << 20));
    tell_owner(&ended, "it gave way to another placement", false);
}

static void on_frame(void *arg, const struct message *m, const void *frame, size_t len)
{
    struct hosted_rank *h = arg;
    if (m->type == MESSAGE_RELEASED && h->is_releasing) {
        on_released(h, m);
        return;
    }
    h->is_ready |= m->type == MESSAGE_READY;
    if (h->is_orphan || h->is_releasing || h->is_parked)
        return;
    if (is_own(h)) {
        struct instance *i = instance_find(h->node, &h->owner.instance, h->owner.epoch);
        if (i != NULL)
            instance_on_frame(i, h->rank, m);
        return;
    }
    struct mesh_link *link = mesh_find(h->node->mesh, &h->owner.leader);
    struct mesh_rank_frame relay = {.instance = h->owner.instance,
                                    .epoch = h->owner.epoch,
                                    .rank = h->rank,
                                    .frame = frame,
                                    .frame_len = len};
    struct buf b;
    if (link == NULL)
        return;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES + 64);
    mesh_encode_rank_frame(&b, &relay);
    mesh_link_send(link, &b);
}

static void on_ended(void *arg, const char *reason)
{
    struct hosted_rank *h = arg;
    h->process = NULL;
    if (h->is_stopping)
        log_info("node", "rank=%u epoch=%llx stopped", h->rank, (unsigned long long)h->owner.epoch);
    else
        log_warn("node", "rank=%u epoch=%llx ended: %s", h->rank,
                 (unsigned long long)h->owner.epoch, reason);
    end_rank(h, reason, false);
}

/* A rank for which there is no memory: placement gives one only when the model fits nowhere. Its
 * weights then stay pages of the file, which the system drops and reads again as it likes. */
static bool must_page(const struct hosted_rank *h)
{
    const struct node *n = h->node;
    const struct placed_instance *p = paths_find_placed(n, &h->owner.instance, h->owner.epoch);
    uint64_t bytes = p != NULL ? p->bytes_of_rank[h->rank] : 0, free = node_memory_bytes_free(n);
    uint64_t max = n->config.memory_bytes_max;
    return bytes > free || (max != 0 && ranks_bytes(n) > max);
}

static int spawn_rank(struct hosted_rank *h, struct error *err)
{
    struct node *n = h->node;
    struct runner_events events = {.arg = h, .frame = on_frame, .ended = on_ended};
    struct buf b;
    uint32_t n_threads = n->config.n_threads != 0 ? n->config.n_threads : n->device.n_cores;
    if (h->n_node_ranks > 1)
        n_threads /= h->n_node_ranks;
    h->load.engine.n_threads = n_threads > 0 ? n_threads : 1;
    memcpy(h->load.engine.device, n->config.device, sizeof(h->load.engine.device));
    if (must_page(h)) {
        log_warn("node", "rank=%u there is no memory for its weights -> read from disk as needed",
                 h->rank);
        h->load.engine.no_repack = true;
    }
    bool is_parked = parked_take(h);
    int rc = 0;
    if (is_parked)
        runner_process_hand_over(h->process, &events);
    else
        rc = runner_process_start(n->loop, n->config.program, &events, &h->process, err);
    if (rc != 0)
        return rc;
    log_info("node", "rank=%u epoch=%llx pid=%u threads=%u %s", h->rank,
             (unsigned long long)h->owner.epoch, runner_process_pid(h->process),
             h->load.engine.n_threads, is_parked ? "goes on in a parked runner" : "started");
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_load(&b, &h->load);
    runner_process_send(h->process, &b);
    return 0;
}

/* Whether something has to end first: a rank of an older epoch, or a parked runner whose memory is
 * needed, which is stopped. */
static bool has_to_wait(const struct hosted_rank *h)
{
    bool waits = false;
    for (struct hosted_rank *o = h->node->ranks; o != NULL; o = o->next) {
        bool is_older = !o->is_parked && o->owner.epoch < h->owner.epoch &&
                        node_id_equal(&o->owner.instance, &h->owner.instance);
        bool is_in_the_way = parked_is_in_the_way(o, h);
        if (is_in_the_way && !o->is_stopping)
            rank_stop(o);
        waits |= is_older || is_in_the_way;
    }
    return waits;
}

/* Starts what nothing stands in the way of any more. One that fails ends, which calls this again:
 * the list is looked at from the front each time. */
static void start_waiting(struct node *n)
{
    struct error err = {0};
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (h->is_found && h->process == NULL && !has_to_wait(h)) {
            bool is_wanted = !h->is_stopping && !h->is_orphan && n->phase < NODE_STOPPING_RANKS;
            if (!is_wanted)
                error_set(&err, E_CANCELLED, "stopped before it was started");
            if (is_wanted && spawn_rank(h, &err) == 0)
                continue;
            end_rank(h, err.message, false);
            return;
        }
}

/* Older epochs give way; a newer one, or the same from another leader, means that this order is
 * void. */
static int check_epoch(struct node *n, const struct rank_owner *owner, struct error *err)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (!h->is_parked && node_id_equal(&h->owner.instance, &owner->instance) &&
            h->owner.epoch > owner->epoch)
            return error_set(err, E_UNAVAILABLE, "a newer placement of this instance is known");
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (node_id_equal(&h->owner.instance, &owner->instance) && h->owner.epoch < owner->epoch &&
            !h->is_stopping && !h->is_parked)
            let_go(h);
    return 0;
}

static struct hosted_rank *add_rank(struct node *n, const struct rank_owner *owner, uint32_t rank,
                                    uint32_t n_node_ranks, const struct message_load *load)
{
    struct hosted_rank *h = calloc(1, sizeof(*h));
    if (h == NULL)
        return NULL;
    *h = (struct hosted_rank){.next = n->ranks,
                              .node = n,
                              .owner = *owner,
                              .rank = rank,
                              .n_node_ranks = n_node_ranks,
                              .load = *load};
    n->ranks = h;
    return h;
}

int ranks_start(struct node *n, const struct rank_owner *owner, uint32_t rank,
                uint32_t n_node_ranks, const struct message_load *load, struct error *err)
{
    int rc = check_epoch(n, owner, err);
    if (rc != 0)
        return rc;
    struct hosted_rank *h = add_rank(n, owner, rank, n_node_ranks, load);
    if (h == NULL)
        return error_set(err, E_NOMEM, "out of memory for rank %u", rank);
    if (has_to_wait(h)) {
        h->is_found = true;
        return 0;
    }
    rc = spawn_rank(h, err);
    if (rc != 0) {
        rank_unlink(h);
        free(h);
        return rc;
    }
    h->is_found = true;
    return 0;
}

static void on_file_found(void *arg, struct model_file *file, const struct error *cause)
{
    struct hosted_rank *h = arg;
    struct node *n = h->node;
    struct error err = *cause;
    n->n_loads--;
    if (file != NULL) {
        snprintf(h->load.model_path, sizeof(h->load.model_path), "%s", file->path);
        model_file_free(file);
        h->is_found = true;
        start_waiting(n);
        node_check_stop(n);
        return;
    }
    if (library_want(n, h->load.model_path))
        error_wrap(&err, err.code, "the file is being fetched");
    error_wrap(&err, err.code, "node %s", n->config.name);
    log_warn("node", "rank=%u epoch=%llx cannot start: %s", h->rank,
             (unsigned long long)h->owner.epoch, err.message);
    end_rank(h, err.message, true);
}

/* The file, from what this node has loaded for its API, or from the disk. */
static int find_file(struct hosted_rank *h, const struct mesh_rank_start *m)
{
    struct node *n = h->node;
    struct model_file_wanted wanted = {.has_hash = true};
    for (uint32_t i = 0; i < n->n_served; i++)
        if (n->served[i]->file != NULL &&
            memcmp(n->served[i]->hash, m->model_hash, sizeof(m->model_hash)) == 0) {
            snprintf(h->load.model_path, sizeof(h->load.model_path), "%s",
                     n->served[i]->file->path);
            h->is_found = true;
            start_waiting(n);
            return 0;
        }
    memcpy(wanted.hash, m->model_hash, sizeof(wanted.hash));
    snprintf(h->load.model_path, sizeof(h->load.model_path), "%s", m->path);
    model_file_candidates(&wanted, m->path, n->config.data_dir, n->models);
    int rc = model_file_load(n->loop, &wanted, on_file_found, h);
    if (rc == 0)
        n->n_loads++;
    return rc;
}

int ranks_start_for(struct node *n, struct mesh_link *link, const struct mesh_rank_start *m,
                    struct error *err)
{
    struct rank_owner owner = {
        .leader = mesh_link_hello(link)->id, .instance = m->instance, .epoch = m->epoch};
    struct message frame;
    struct message_load load;
    struct error cause;
    int64_t frame_bytes = message_next(m->frame, m->frame_len, &frame, err);
    if (frame_bytes < 0 || (size_t)frame_bytes != m->frame_len || frame.type != MESSAGE_LOAD)
        return error_set(err, E_PROTOCOL, "RANK_START without a LOAD frame");
    int rc = message_decode_load(&frame, &load, err);
    if (rc != 0)
        return rc;
    if (load.rank != m->rank || find_rank(n, &owner, m->rank) != NULL)
        return error_set(err, E_PROTOCOL, "RANK_START for rank %u: out of order", m->rank);
    /* What is this node's own business: where it listens and where its files are. */
    snprintf(load.host, sizeof(load.host), "%s", mesh_link_local_host(link));
    paths_prepare(n, paths_find_placed(n, &m->instance, m->epoch), load.host);
    load.cpu = -1;
    memcpy(load.model_hash, m->model_hash, sizeof(load.model_hash));
    if (ranks_count(n) >= 2 * LIMIT_RANKS)
        rc = error_set(&cause, E_BUSY, "node %s holds %u ranks already", n->config.name,
                       ranks_count(n));
    else if (n->phase >= NODE_STOPPING_RANKS)
        rc = error_set(&cause, E_UNAVAILABLE, "node %s is stopping", n->config.name);
    else
        rc = check_epoch(n, &owner, &cause);
    struct hosted_rank *h = rc == 0 ? add_rank(n, &owner, m->rank, m->n_node_ranks, &load) : NULL;
    if (rc == 0 && h == NULL)
        rc = error_set(&cause, E_NOMEM, "out of memory for rank %u", m->rank);
    if (rc != 0) {
        tell_ended(n, &owner, m->rank, cause.message, false);
        return 0;
    }
    if (find_file(h, m) != 0)
        end_rank(h, "out of memory", false);
    return 0;
}

void ranks_send(struct node *n, const struct rank_owner *owner, uint32_t rank, struct buf *frame)
{
    struct hosted_rank *h = find_rank(n, owner, rank);
    if (paths_direct(n, owner, rank, frame))
        return;
    if (h == NULL || h->process == NULL || h->is_releasing)
        buf_done(frame);
    else
        runner_process_send(h->process, frame);
}

void ranks_stop(struct node *n, const struct rank_owner *owner, uint32_t rank)
{
    struct hosted_rank *h = find_rank(n, owner, rank);
    if (h == NULL)
        return;
    let_go(h);
    if (h->is_found && h->process == NULL)
        end_rank(h, "stopped before it was started", false);
}

void ranks_drop_leader(struct node *n, const struct node_id *leader)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (node_id_equal(&h->owner.leader, leader) && !h->is_orphan && !h->is_parked) {
            h->is_orphan = true;
            let_go(h);
        }
    start_waiting(n);
}

void ranks_stop_all(struct node *n)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        rank_stop(h);
    start_waiting(n);
}
