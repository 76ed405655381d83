#include "node/node.h"

#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CANCEL_MS = 1000 };

/* ---- events of the mesh ---- */

static void on_link_up(void *self, struct mesh_link *link)
{
    struct node *n = self;
    peers_link_up(n, link);
    if (n->instance != NULL)
        instance_on_link_up(n->instance);
}

static void on_link_down(void *self, struct mesh_link *link, const char *reason)
{
    struct node *n = self;
    char text[ERROR_MESSAGE_BYTES];
    if (mesh_link_heartbeat(link)->is_stopping)
        log_info("node", "peer=%s has left", mesh_link_hello(link)->name);
    else
        log_warn("node", "peer=%s lost: %s", mesh_link_hello(link)->name, reason);
    ranks_drop_owner(n, link);
    requests_drop_origin(n, link);
    peers_link_down(n, link);
    snprintf(text, sizeof(text), "node %s, which serves this model, is lost",
             mesh_link_hello(link)->name);
    requests_fail(n, link, E_PEERLOST, text);
    if (n->instance != NULL)
        instance_on_link_down(n->instance, link);
}

static int take_rank_frame(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                           struct error *err)
{
    struct mesh_rank_frame relay;
    struct message frame;
    int rc = mesh_decode_rank_frame(m, &relay, err);
    if (rc != 0)
        return rc;
    int64_t frame_bytes = message_next(relay.frame, relay.frame_len, &frame, err);
    if (frame_bytes <= 0 || (size_t)frame_bytes != relay.frame_len)
        return error_set(err, E_PROTOCOL, "RANK_FRAME does not hold one whole frame");
    /* Towards the runner or from it: the type tells. */
    if (frame.type == MESSAGE_CONNECT || frame.type == MESSAGE_PING) {
        struct buf b;
        buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
        buf_append(&b, relay.frame, relay.frame_len);
        ranks_send(n, link, relay.launch, relay.rank, &b);
        return 0;
    }
    struct instance *i = n->instance;
    if (i != NULL && relay.rank < i->info.n_ranks &&
        node_id_equal(&i->node_of_rank[relay.rank], &mesh_link_hello(link)->id))
        instance_on_frame(i, relay.launch, relay.rank, &frame);
    return 0;
}

static int take_rank_ended(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                           struct error *err)
{
    struct mesh_rank_ended ended;
    struct instance *i = n->instance;
    int rc = mesh_decode_rank_ended(m, &ended, err);
    if (rc == 0 && i != NULL && ended.rank < i->info.n_ranks &&
        node_id_equal(&i->node_of_rank[ended.rank], &mesh_link_hello(link)->id))
        instance_on_rank_ended(i, ended.launch, ended.rank, ended.reason);
    return rc;
}

static int take_event(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                      struct error *err)
{
    const void *data;
    size_t len;
    struct message frame;
    int rc = mesh_decode_event(m, &data, &len, err);
    if (rc != 0)
        return rc;
    int64_t frame_bytes = message_next(data, len, &frame, err);
    if (frame_bytes <= 0 || (size_t)frame_bytes != len)
        return error_set(err, E_PROTOCOL, "EVENT does not hold one whole frame");
    return requests_on_event(n, link, &frame, err);
}

static int on_message(void *self, struct mesh_link *link, const struct mesh_message *m,
                      struct error *err)
{
    struct node *n = self;
    struct mesh_rank_start start;
    struct mesh_submit submit;
    uint64_t number;
    uint32_t rank;
    int rc;
    switch (m->type) {
    case MESH_STATE:
        return peers_take_state(n, link, m, err);
    case MESH_RANK_START:
        rc = mesh_decode_rank_start(m, &start, err);
        return rc != 0 ? rc : ranks_start_for(n, link, &start, err);
    case MESH_RANK_FRAME:
        return take_rank_frame(n, link, m, err);
    case MESH_RANK_STOP:
        rc = mesh_decode_rank_stop(m, &number, &rank, err);
        if (rc == 0)
            ranks_stop(n, link, number, rank);
        return rc;
    case MESH_RANK_ENDED:
        return take_rank_ended(n, link, m, err);
    case MESH_SUBMIT:
        rc = mesh_decode_submit(m, &submit, err);
        return rc != 0 ? rc : requests_take(n, link, &submit, err);
    case MESH_CANCEL:
        rc = mesh_decode_cancel(m, &number, err);
        if (rc == 0)
            requests_cancel_for(n, link, number);
        return rc;
    case MESH_EVENT:
        return take_event(n, link, m, err);
    default:
        return error_set(err, E_PROTOCOL, "unexpected message of type %d", m->type);
    }
}

static void on_heartbeat(void *self, struct mesh_heartbeat *ret)
{
    struct node *n = self;
    uint32_t running, queued;
    requests_count(n, &running, &queued);
    ret->memory_bytes_free = device_memory_bytes_free();
    ret->n_running = running;
    ret->is_stopping = n->phase != NODE_RUNNING;
}

/* ---- start ---- */

static int open_mesh(struct node *n, struct error *err)
{
    struct mesh_options options = {
        .listen = n->config.mesh,
        .n_peers = n->config.n_peers,
        .peers = n->config.peers,
        .secret = n->config.n_secret > 0 ? n->config.secret : NULL,
        .secret_len = n->config.n_secret,
        .self = {.id = n->id,
                 .memory_bytes_total = n->memory_bytes_total,
                 .n_cores = n->n_cores,
                 .api = n->config.api},
    };
    struct mesh_events events = {
        .self = n,
        .link_up = on_link_up,
        .link_down = on_link_down,
        .message = on_message,
        .heartbeat = on_heartbeat,
    };
    options.self.api.port = api_port(n->api);
    memcpy(options.self.name, n->config.name, sizeof(options.self.name));
    return mesh_open(n->loop, &options, &events, &n->mesh, err);
}

static void init_timer(struct node *n, uv_timer_t *timer)
{
    uv_timer_init(n->loop, timer);
    timer->data = n;
    n->n_handles++;
}

static void warn_open_addresses(const struct node *n)
{
    const struct mesh_address *a = &n->config.mesh;
    if (strncmp(a->host, "127.", 4) != 0 && strcmp(a->host, "::1") != 0)
        log_warn("node",
                 "mesh=%s:%u node links are not encrypted%s in this version: use trusted "
                 "networks only",
                 a->host, node_mesh_port(n),
                 n->config.n_secret > 0 ? "" : " and not authenticated");
}

int node_start(uv_loop_t *loop, const struct node_config *config, const struct node_events *events,
               struct node **ret_node, struct error *err)
{
    struct device_info device;
    struct node *n = calloc(1, sizeof(*n));
    if (n == NULL)
        return error_set(err, E_NOMEM, "out of memory for the node");
    device_get_info(&device);
    n->loop = loop;
    n->lock = -1;
    n->config = *config;
    if (events != NULL)
        n->events = *events;
    if (n->config.name[0] == '\0')
        snprintf(n->config.name, sizeof(n->config.name), "%s", device.host_name);
    if (n->config.n_slots == 0)
        n->config.n_slots = NODE_SLOTS_DEFAULT;
    n->memory_bytes_total = device.memory_bytes_total;
    n->n_cores = device.n_cores;
    init_timer(n, &n->gossip_timer);
    init_timer(n, &n->stop_timer);
    backend_init(n, &n->backend);

    int rc = identity_load(n->config.data_dir, &n->id, &n->lock, err);
    struct api_options api = {.host = n->config.api.host, .port = n->config.api.port};
    if (rc == 0)
        rc = api_open(loop, &api, &n->backend, &n->api, err);
    if (rc == 0)
        rc = open_mesh(n, err);
    if (rc == 0 && n->config.model[0] != '\0')
        rc = instance_new(n, n->config.model, err);
    if (rc != 0) {
        node_stop(n, true, NULL, NULL);
        return rc;
    }
    warn_open_addresses(n);
    log_info("node", "api=%s:%u mesh=%s:%u cores=%u memory_free_mib=%llu started",
             n->config.api.host, node_api_port(n), n->config.mesh.host, node_mesh_port(n),
             n->n_cores, (unsigned long long)(device.memory_bytes_free >> 20));
    *ret_node = n;
    return 0;
}

uint16_t node_api_port(const struct node *n)
{
    return n->api != NULL ? api_port(n->api) : 0;
}

uint16_t node_mesh_port(const struct node *n)
{
    return n->mesh != NULL ? mesh_port(n->mesh) : 0;
}

/* ---- stop: drain, then the API, then the ranks, then everything else ---- */

static void on_handle_closed(uv_handle_t *handle)
{
    struct node *n = handle->data;
    n->n_handles--;
    node_check_stop(n);
}

static void on_api_closed(void *arg)
{
    struct node *n = arg;
    n->is_api_closed = true;
    n->api = NULL;
    requests_drop_origin(n, NULL); /* whatever is still under way has nobody to go to */
    node_check_stop(n);
}

static void on_mesh_closed(void *arg)
{
    struct node *n = arg;
    n->is_mesh_closed = true;
    n->mesh = NULL;
    node_check_stop(n);
}

/* A head that does not answer must not keep the API from closing. */
static void on_cancel_over(uv_timer_t *timer)
{
    struct node *n = timer->data;
    if (n->phase == NODE_CLOSING_API)
        requests_fail_all(n, E_UNAVAILABLE, "the node stops");
}

static void begin_closing_api(struct node *n)
{
    n->phase = NODE_CLOSING_API;
    uv_timer_start(&n->stop_timer, on_cancel_over, CANCEL_MS, 0);
    if (n->api != NULL)
        api_close(n->api, on_api_closed, n);
    else
        n->is_api_closed = true;
}

static void begin_stopping_ranks(struct node *n)
{
    n->phase = NODE_STOPPING_RANKS;
    if (n->instance != NULL)
        instance_stop(n->instance);
    ranks_stop_all(n);
}

static void begin_closing(struct node *n)
{
    n->phase = NODE_CLOSING;
    if (n->mesh != NULL)
        mesh_close(n->mesh, on_mesh_closed, n);
    else
        n->is_mesh_closed = true;
    uv_close((uv_handle_t *)&n->gossip_timer, on_handle_closed);
    uv_close((uv_handle_t *)&n->stop_timer, on_handle_closed);
}

static void free_node(struct node *n)
{
    void (*stopped)(void *) = n->stopped;
    void *arg = n->stopped_arg;
    requests_fail_all(n, E_UNAVAILABLE, "the node stops");
    backend_done(n);
    instance_free(n->instance);
    for (uint32_t i = 0; i < n->n_remote; i++)
        free(n->remote[i].info);
    if (n->lock >= 0)
        close(n->lock);
    free(n);
    if (stopped != NULL)
        stopped(arg);
}

void node_check_stop(struct node *n)
{
    if (n->phase == NODE_DRAINING && n->requests == NULL)
        begin_closing_api(n);
    if (n->phase == NODE_CLOSING_API && n->is_api_closed)
        begin_stopping_ranks(n);
    if (n->phase == NODE_STOPPING_RANKS && n->ranks == NULL && n->n_loads == 0)
        begin_closing(n);
    if (n->phase == NODE_CLOSING && n->is_mesh_closed && n->n_handles == 0)
        free_node(n);
}

static void on_drain_over(uv_timer_t *timer)
{
    struct node *n = timer->data;
    uint32_t running, queued;
    if (n->phase != NODE_DRAINING)
        return;
    requests_count(n, &running, &queued);
    if (running + queued > 0)
        log_warn("node", "%u requests have not finished -> cancelled", running + queued);
    begin_closing_api(n);
    node_check_stop(n);
}

void node_stop(struct node *n, bool at_once, void (*stopped)(void *arg), void *arg)
{
    if (stopped != NULL) {
        n->stopped = stopped;
        n->stopped_arg = arg;
    }
    if (n->phase == NODE_RUNNING) {
        n->phase = NODE_DRAINING;
        log_info("node", "stops");
        if (n->mesh != NULL)
            mesh_send_heartbeats(n->mesh);
        uv_timer_start(&n->stop_timer, on_drain_over, at_once ? 0 : NODE_DRAIN_MS, 0);
        /* Not from inside this call, even when there is nothing to wait for. */
        if (n->requests == NULL)
            uv_timer_start(&n->stop_timer, on_drain_over, 0, 0);
    } else if (n->phase == NODE_DRAINING && at_once) {
        uv_timer_start(&n->stop_timer, on_drain_over, 0, 0);
    }
}
