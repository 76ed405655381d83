/* Runners on this node. A rank belongs to the coordinator that asked for it: this node's own
 * instance, or the other end of a link; what its runner says goes there. */
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct hosted_rank {
    struct hosted_rank *next;
    struct node *node;
    struct mesh_link *owner; /* NULL: our own instance */
    bool is_orphan;          /* the owner is gone: nobody wants to hear of it */
    bool is_stopping;
    uint64_t launch;
    uint32_t rank, n_node_ranks;
    struct runner_process *process; /* NULL while its file is being looked for */
    struct message_load load;
};

static struct hosted_rank *find_rank(struct node *n, const struct mesh_link *owner, uint64_t launch,
                                     uint32_t rank)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (h->owner == owner && !h->is_orphan && h->launch == launch && h->rank == rank)
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

static void unlink_rank(struct hosted_rank *h)
{
    for (struct hosted_rank **p = &h->node->ranks; *p != NULL; p = &(*p)->next)
        if (*p == h) {
            *p = h->next;
            break;
        }
}

/* The end of a rank, told to whom it belongs. */
static void end_rank(struct hosted_rank *h, const char *reason)
{
    struct node *n = h->node;
    unlink_rank(h);
    if (h->is_orphan) {
        /* nobody to tell */
    } else if (h->owner == NULL) {
        if (n->instance != NULL)
            instance_on_rank_ended(n->instance, h->launch, h->rank, reason);
    } else {
        struct mesh_rank_ended m = {.launch = h->launch, .rank = h->rank};
        struct buf b;
        snprintf(m.reason, sizeof(m.reason), "%s", reason);
        for (char *p = m.reason; *p != '\0'; p++) /* the other side takes no control characters */
            if ((unsigned char)*p < ' ' || *p == 0x7f)
                *p = ' ';
        buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
        mesh_encode_rank_ended(&b, &m);
        mesh_link_send(h->owner, &b);
    }
    free(h);
    node_check_stop(n);
}

static void on_frame(void *arg, const struct message *m, const void *frame, size_t len)
{
    struct hosted_rank *h = arg;
    if (h->is_orphan)
        return;
    if (h->owner == NULL) {
        if (h->node->instance != NULL)
            instance_on_frame(h->node->instance, h->launch, h->rank, m);
        return;
    }
    struct mesh_rank_frame relay = {
        .launch = h->launch, .rank = h->rank, .frame = frame, .frame_len = len};
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES + 64);
    mesh_encode_rank_frame(&b, &relay);
    mesh_link_send(h->owner, &b);
}

static void on_ended(void *arg, const char *reason)
{
    struct hosted_rank *h = arg;
    if (h->is_stopping)
        log_info("node", "rank=%u launch=%016llx stopped", h->rank, (unsigned long long)h->launch);
    else
        log_warn("node", "rank=%u launch=%016llx ended: %s", h->rank, (unsigned long long)h->launch,
                 reason);
    end_rank(h, reason);
}

static struct hosted_rank *add_rank(struct node *n, struct mesh_link *owner, uint64_t launch,
                                    uint32_t rank, uint32_t n_node_ranks,
                                    const struct message_load *load)
{
    struct hosted_rank *h = calloc(1, sizeof(*h));
    if (h == NULL)
        return NULL;
    *h = (struct hosted_rank){.next = n->ranks,
                              .node = n,
                              .owner = owner,
                              .launch = launch,
                              .rank = rank,
                              .n_node_ranks = n_node_ranks,
                              .load = *load};
    n->ranks = h;
    return h;
}

/* Starts the process of a rank that is in the list. */
static int spawn_rank(struct hosted_rank *h, struct error *err)
{
    struct node *n = h->node;
    struct runner_events events = {.arg = h, .frame = on_frame, .ended = on_ended};
    struct buf b;
    uint32_t n_threads = n->config.n_threads != 0 ? n->config.n_threads : n->n_cores;
    if (h->n_node_ranks > 1)
        n_threads /= h->n_node_ranks;
    h->load.engine.n_threads = n_threads > 0 ? n_threads : 1;
    int rc = runner_process_start(n->loop, n->config.program, &events, &h->process, err);
    if (rc != 0)
        return rc;
    log_info("node", "rank=%u launch=%016llx pid=%u threads=%u started", h->rank,
             (unsigned long long)h->launch, runner_process_pid(h->process),
             h->load.engine.n_threads);
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    message_encode_load(&b, &h->load);
    runner_process_send(h->process, &b);
    return 0;
}

int ranks_start(struct node *n, struct mesh_link *owner, uint64_t launch, uint32_t rank,
                uint32_t n_node_ranks, struct message_load *load, struct error *err)
{
    struct hosted_rank *h = add_rank(n, owner, launch, rank, n_node_ranks, load);
    if (h == NULL)
        return error_set(err, E_NOMEM, "out of memory for rank %u", rank);
    int rc = spawn_rank(h, err);
    if (rc != 0) {
        unlink_rank(h);
        free(h);
    }
    return rc;
}

static void on_file_found(void *arg, struct model_file *file, const struct error *cause)
{
    struct hosted_rank *h = arg;
    struct error err = *cause;
    h->node->n_loads--;
    if (file != NULL && !h->is_orphan && !h->is_stopping) {
        snprintf(h->load.model_path, sizeof(h->load.model_path), "%s", file->path);
        if (spawn_rank(h, &err) == 0) {
            model_file_free(file);
            return;
        }
    }
    model_file_free(file);
    if (err.code == 0)
        error_set(&err, E_CANCELLED, "stopped before it was started");
    error_wrap(&err, err.code, "node %s", h->node->config.name);
    log_warn("node", "rank=%u launch=%016llx cannot start: %s", h->rank,
             (unsigned long long)h->launch, err.message);
    end_rank(h, err.message);
}

int ranks_start_for(struct node *n, struct mesh_link *owner, const struct mesh_rank_start *m,
                    struct error *err)
{
    struct message frame;
    struct message_load load;
    struct model_file_wanted wanted = {.has_hash = true};
    int64_t frame_bytes = message_next(m->frame, m->frame_len, &frame, err);
    if (frame_bytes < 0 || (size_t)frame_bytes != m->frame_len || frame.type != MESSAGE_LOAD)
        return error_set(err, E_PROTOCOL, "RANK_START without a LOAD frame");
    int rc = message_decode_load(&frame, &load, err);
    if (rc != 0)
        return rc;
    if (load.rank != m->rank || ranks_count(n) >= LIMIT_RANKS ||
        find_rank(n, owner, m->launch, m->rank) != NULL)
        return error_set(err, E_PROTOCOL, "RANK_START for rank %u: out of order", m->rank);
    /* What is this node's own business: where it listens and where its files are. */
    snprintf(load.host, sizeof(load.host), "%s", mesh_link_local_host(owner));
    load.cpu = -1;
    memcpy(load.model_hash, m->model_hash, sizeof(load.model_hash));
    memcpy(wanted.hash, m->model_hash, sizeof(wanted.hash));
    model_file_candidates(&wanted, m->path, n->config.data_dir);
    struct hosted_rank *h = add_rank(n, owner, m->launch, m->rank, m->n_node_ranks, &load);
    if (h == NULL)
        return error_set(err, E_NOMEM, "out of memory for rank %u", m->rank);
    rc = model_file_load(n->loop, &wanted, on_file_found, h);
    if (rc != 0) {
        unlink_rank(h);
        free(h);
        return error_set(err, E_NOMEM, "out of memory for rank %u", m->rank);
    }
    n->n_loads++;
    return 0;
}

void ranks_send(struct node *n, const struct mesh_link *owner, uint64_t launch, uint32_t rank,
                struct buf *frame)
{
    struct hosted_rank *h = find_rank(n, owner, launch, rank);
    if (h == NULL || h->process == NULL)
        buf_done(frame);
    else
        runner_process_send(h->process, frame);
}

static void stop_rank(struct hosted_rank *h)
{
    h->is_stopping = true;
    if (h->process != NULL)
        runner_process_stop(h->process);
}

void ranks_stop(struct node *n, const struct mesh_link *owner, uint64_t launch, uint32_t rank)
{
    struct hosted_rank *h = find_rank(n, owner, launch, rank);
    if (h != NULL)
        stop_rank(h);
}

void ranks_drop_owner(struct node *n, const struct mesh_link *owner)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        if (h->owner == owner && !h->is_orphan) {
            h->is_orphan = true;
            stop_rank(h);
        }
}

void ranks_stop_all(struct node *n)
{
    for (struct hosted_rank *h = n->ranks; h != NULL; h = h->next)
        stop_rank(h);
}
