#include "node/node.h"

#include "base/clock.h"
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
    const struct mesh_hello *hello = mesh_link_hello(link);
    struct cluster_event e = {.type = CLUSTER_EVENT_LINK_UP, .node = hello->id};
    snprintf(e.name, sizeof(e.name), "%s", hello->name);
    log_info("node", "peer=%s address=%s cores=%u linked", hello->name, mesh_link_remote_host(link),
             hello->n_cores);
    core_step(n, &e, NULL);
    core_touch(n); /* a leader may be within reach again */
}

static void on_link_down(void *self, struct mesh_link *link, const char *reason, bool is_closed)
{
    struct node *n = self;
    const struct mesh_hello *hello = mesh_link_hello(link);
    struct cluster_event e = {
        .type = CLUSTER_EVENT_LINK_DOWN, .node = hello->id, .is_closed = is_closed};
    log_warn("node", "peer=%s link lost: %s", hello->name, reason);
    ranks_drop_leader(n, &hello->id);
    instance_on_link_down(n, link);
    requests_on_link_down(n, link);
    core_step(n, &e, NULL);
}

static void on_link_figures(void *self, struct mesh_link *link, const struct link_figures *f)
{
    struct node *n = self;
    struct cluster_event e = {.type = CLUSTER_EVENT_LINK_FIGURES,
                              .node = mesh_link_hello(link)->id,
                              .link = *f,
                              .taken = mesh_link_taken(link)};
    core_step(n, &e, NULL);
}

static void on_join_result(void *self, const struct mesh_join_result *r)
{
    control_on_join(self, r);
}

/* The instance that a message of a rank is for, if the sender may speak for that rank. */
static struct instance *find_led(struct node *n, const struct mesh_link *link,
                                 const struct node_id *id, uint64_t epoch, uint32_t rank)
{
    struct instance *i = instance_find(n, id, epoch);
    return i != NULL && rank < i->report.n_ranks &&
                   node_id_equal(&i->placed.node_of_rank[rank], &mesh_link_hello(link)->id)
               ? i
               : NULL;
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
        struct rank_owner owner = {
            .leader = mesh_link_hello(link)->id, .instance = relay.instance, .epoch = relay.epoch};
        struct buf b;
        buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
        buf_append(&b, relay.frame, relay.frame_len);
        ranks_send(n, &owner, relay.rank, &b);
        return 0;
    }
    struct instance *i = find_led(n, link, &relay.instance, relay.epoch, relay.rank);
    if (i != NULL)
        instance_on_frame(i, relay.rank, &frame);
    return 0;
}

static int take_rank_stop(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                          struct error *err)
{
    struct mesh_rank_stop stop;
    int rc = mesh_decode_rank_stop(m, &stop, err);
    struct rank_owner owner = {
        .leader = mesh_link_hello(link)->id, .instance = stop.instance, .epoch = stop.epoch};
    if (rc == 0)
        ranks_stop(n, &owner, stop.rank);
    return rc;
}

static int take_rank_ended(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                           struct error *err)
{
    struct mesh_rank_ended ended;
    int rc = mesh_decode_rank_ended(m, &ended, err);
    if (rc != 0)
        return rc;
    struct instance *i = find_led(n, link, &ended.instance, ended.epoch, ended.rank);
    if (i != NULL)
        instance_on_rank_ended(i, ended.rank, ended.reason, ended.is_node_unfit);
    return 0;
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

static int take_cluster(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                        struct error *err)
{
    struct cluster_event e = {.type = CLUSTER_EVENT_MESSAGE,
                              .node = mesh_link_hello(link)->id,
                              .data = m->payload,
                              .len = m->len};
    return core_step(n, &e, err);
}

static int on_message(void *self, struct mesh_link *link, const struct mesh_message *m,
                      struct error *err)
{
    struct node *n = self;
    struct mesh_rank_start start;
    struct mesh_submit submit;
    uint64_t number;
    int rc;
    switch (m->type) {
    case MESH_CLUSTER:
        return take_cluster(n, link, m, err);
    case MESH_RANK_START:
        rc = mesh_decode_rank_start(m, &start, err);
        return rc != 0 ? rc : ranks_start_for(n, link, &start, err);
    case MESH_RANK_FRAME:
        return take_rank_frame(n, link, m, err);
    case MESH_RANK_STOP:
        return take_rank_stop(n, link, m, err);
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

/* ---- start ---- */

static void on_tick(uv_timer_t *timer)
{
    core_tick(timer->data);
    paths_tick(timer->data);
}

static int open_mesh(struct node *n, struct error *err)
{
    struct mesh_options options = {
        .listen = n->config.mesh,
        .n_peers = n->config.n_peers,
        .peers = n->config.peers,
        .secret = n->config.n_secret > 0 ? n->config.secret : NULL,
        .secret_len = n->config.n_secret,
        .identity = n->identity,
        .data_dir = n->config.data_dir,
        .is_closed = n->config.is_closed,
        .is_adoptable = true,
        .n_routes = n->config.n_routes,
        .routes = n->config.routes,
        .self = {.memory_bytes_total = n->device.memory_bytes_total,
                 .memory_bytes_free = n->device.memory_bytes_free,
                 .n_cores = n->device.n_cores,
                 .incarnation = clock_wall_ns() / 1000000u,
                 .api = n->config.api},
    };
    struct mesh_events events = {
        .self = n,
        .link_up = on_link_up,
        .link_down = on_link_down,
        .message = on_message,
        .link_figures = on_link_figures,
        .is_busy = paths_is_busy,
        .join_result = on_join_result,
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

/* The parts that need nothing but memory and the data folder. */
static int start_inside(struct node *n, struct error *err)
{
    int rc = data_dir_lock(n->config.data_dir, &n->lock, err);
    if (rc == 0)
        rc = mesh_identity_load(n->config.data_dir, &n->identity, err);
    if (rc != 0)
        return rc;
    n->id = *mesh_identity_id(n->identity);
    rc = library_init(n, err);
    if (rc == 0)
        rc = requests_init(n, err);
    return rc != 0 ? rc : core_init(n, err);
}

/* The parts that face the network. */
static int start_outside(struct node *n, struct error *err)
{
    struct api_options api = {.host = n->config.api.host, .port = n->config.api.port};
    if (n->config.api_keys[0] != '\0')
        api.keys_file = n->config.api_keys;
    int rc = api_open(n->loop, &api, &n->backend, &n->api, err);
    if (rc == 0)
        rc = open_mesh(n, err);
    if (rc == 0 && n->config.model[0] != '\0')
        rc = control_load_configured(n, err);
    if (rc != 0)
        return rc;
    peers_init(n);
    measure_begin(n);
    uv_timer_start(&n->tick, on_tick, 0, CLUSTER_TICK_MS);
    return 0;
}

int node_start(uv_loop_t *loop, const struct node_config *config, const struct node_events *events,
               struct node **ret_node, struct error *err)
{
    struct node *n = calloc(1, sizeof(*n));
    if (n == NULL)
        return error_set(err, E_NOMEM, "out of memory for the node");
    device_get_info(&n->device);
    if (n->config.device_bytes_total != 0) {
        n->device.memory_bytes_total = n->config.device_bytes_total;
        n->device.memory_bytes_free = n->config.memory_bytes_max;
    }
    telemetry_init(n);
    n->loop = loop;
    n->lock = -1;
    n->config = *config;
    if (events != NULL)
        n->events = *events;
    if (n->config.name[0] == '\0')
        snprintf(n->config.name, sizeof(n->config.name), "%s", n->device.host_name);
    if (n->config.options.n_slots == 0)
        n->config.options.n_slots = NODE_SLOTS_DEFAULT;
    init_timer(n, &n->tick);
    init_timer(n, &n->stop_timer);
    init_timer(n, &n->cancel_timer);
    backend_init(n, &n->backend);
    int rc = start_inside(n, err);
    if (rc == 0)
        rc = start_outside(n, err);
    if (rc != 0) {
        node_stop(n, true, NULL, NULL);
        return rc;
    }
    log_info("node", "api=%s:%u mesh=%s:%u cores=%u memory_free_mib=%llu started",
             n->config.api.host, node_api_port(n), n->config.mesh.host, node_mesh_port(n),
             n->device.n_cores, (unsigned long long)(n->device.memory_bytes_free >> 20));
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
        requests_end_all(n, E_UNAVAILABLE, "the node stops");
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
    control_drop_all(n);
    paths_drop_all(n);
    measure_stop(n);
    library_stop(n);
    instance_stop_all(n);
    ranks_stop_all(n);
}

static void begin_closing(struct node *n)
{
    n->phase = NODE_CLOSING;
    if (n->mesh != NULL)
        mesh_close(n->mesh, on_mesh_closed, n);
    else
        n->is_mesh_closed = true;
    peers_close(n);
    uv_close((uv_handle_t *)&n->tick, on_handle_closed);
    uv_close((uv_handle_t *)&n->stop_timer, on_handle_closed);
    uv_close((uv_handle_t *)&n->cancel_timer, on_handle_closed);
}

static void free_node(struct node *n)
{
    void (*stopped)(void *) = n->stopped;
    void *arg = n->stopped_arg;
    requests_done(n);
    backend_done(n);
    library_done(n);
    core_done(n);
    mesh_identity_free(n->identity);
    if (n->lock >= 0)
        close(n->lock);
    free(n);
    if (stopped != NULL)
        stopped(arg);
}

/* Others go on with what this node holds before it leaves, if there are others. */
static bool is_handed_over(const struct node *n)
{
    return n->ranks == NULL || (n->is_told_of_stop && !core_has_live_peer(n));
}

void node_check_stop(struct node *n)
{
    if (n->phase == NODE_DRAINING && requests_are_none(n) && is_handed_over(n))
        begin_closing_api(n);
    if (n->phase == NODE_CLOSING_API && n->is_api_closed)
        begin_stopping_ranks(n);
    if (n->phase == NODE_STOPPING_RANKS && n->ranks == NULL && n->instances == NULL &&
        n->n_loads == 0 && n->is_puller_closed)
        begin_closing(n);
    if (n->phase == NODE_CLOSING && n->is_mesh_closed && n->is_discovery_closed &&
        n->n_handles == 0)
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
        uv_timer_start(&n->stop_timer, on_drain_over, at_once ? 0 : NODE_DRAIN_MS, 0);
        /* Not from inside this call, even when there is nothing to wait for. */
        if (n->ranks == NULL && requests_are_none(n))
            uv_timer_start(&n->stop_timer, on_drain_over, 0, 0);
    } else if (n->phase == NODE_DRAINING && at_once) {
        uv_timer_start(&n->stop_timer, on_drain_over, 0, 0);
    }
}
