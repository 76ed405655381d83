/*
 * The parts of a node and how they call each other. Nobody outside node/ includes it.
 *
 *   node.c      start, stop, events of the mesh
 *   core.c      the shell around the cluster's step function: feeds it, does what it says
 *   control.c   what people want: load, unload, drain, plan, invite ...
 *   instance.c  instances that this node leads
 *   figures.c   what their ranks do
 *   ranks.c     runners on this node, for instances of any leader
 *   requests.c  requests: of this node's clients (cluster/router.h), and those that other nodes
 *               send to an instance that this node leads
 *   backend.c   what the API sees: models that should run, with their files
 *   peers.c     finding other nodes on the network
 *   paths.c     which way tensors go
 *   library.c   the model files of this node, and fetching them
 *   measure.c   how fast this computer is
 *   telemetry.c how it fares: heat, power, memory
 *   state.c     the cluster's state as JSON
 *
 * Only events change the core, and only the loop makes events. While actions are carried out, parts
 * mark what has changed (core_touch, instance reports); the core is told when they are done.
 */
#ifndef SHOAL_NODE_INTERNAL_H
#define SHOAL_NODE_INTERNAL_H

#include "api/api.h"
#include "base/json.h"
#include "cluster/cluster.h"
#include "cluster/router.h"
#include "device/device.h"
#include "mesh/discovery.h"
#include "node/model_file.h"
#include "node/node.h"
#include "node/runner_process.h"
#include "store/store.h"

struct hosted_rank; /* ranks.c */
struct relay;       /* requests.c */
struct order;       /* control.c */
struct measure;     /* measure.c */
struct model_pull;  /* library.c */
struct models;
struct puller;
struct held_frame; /* paths.c */

struct instance { /* led by this node; one for each epoch that has not ended */
    struct instance *next;
    struct node *node;
    struct placed_instance placed;
    struct instance_report report; /* also our own record of the ranks */
    bool is_report_due;
    bool is_stopping;               /* the core wants it to end */
    struct message_connect connect; /* filled as ranks report where they listen */
    uv_timer_t timer;               /* deadline, by status */
    uint64_t figures_ms;            /* when the cluster was told last what the ranks do */
    uint64_t n_steps_told;          /* and how many the head had done */
};

struct served_model { /* a name that clients may use; lives as long as the node */
    struct api_model api;
    struct node *node;
    char id[128];
    uint8_t hash[32];
    struct model_file *file; /* NULL while loading, or when this node does not have it */
    bool is_loading;
    bool is_listed;  /* people want it */
    bool is_missing; /* looked for, and not found: `error` says why */
    char error[ERROR_MESSAGE_BYTES];
    uint64_t retry_ms;
};

enum { SERVED_MAX = 64 };

struct node {
    uv_loop_t *loop;
    struct node_config config;
    struct node_events events;
    int lock; /* on the data folder; -1: none */
    struct mesh_identity *identity;
    struct node_id id;
    struct device_info device;
    struct device_capabilities capabilities;
    struct device_sampler sampler;             /* of the thread pool while is_sampling */
    struct device_telemetry sample, telemetry; /* being taken; the last one */
    uv_work_t sample_work;
    uint64_t sampled_ms;
    bool is_sampling;
    struct api_backend backend;
    struct api *api;
    struct mesh *mesh;
    struct discovery *discovery;
    struct cluster *cluster;
    struct router *router;
    struct store *store;
    struct models *models;          /* any thread */
    struct puller *puller;          /* fetches into them (store/pull.h) */
    struct model_pull *model_pulls; /* newest first */
    uv_work_t save_work;            /* one at a time */
    struct buf saving;
    struct error save_error;
    bool is_saving, is_save_due;
    bool is_stepping; /* inside core_step */
    bool is_changed;  /* members, state, reports or places: parts look at them again */
    bool is_told_of_stop, is_leaving;
    uint64_t figures_ms;       /* when our figures were last given to the core */
    struct measure *measure;   /* under way */
    float gflops, memory_gb_s; /* measured; 0: not yet */
    struct {
        struct node_id id;
        uint64_t epoch;
    } announced[LIMIT_INSTANCES]; /* whose serving was told */
    uint32_t n_announced;
    struct instance *instances;
    struct hosted_rank *ranks;
    struct held_frame *held;
    bool is_held_late; /* those must go now, whatever is known */
    struct relay *relays;
    uint64_t relay_last;
    const struct message_tokens *delivered; /* what the router is just being given */
    uint64_t *cancels; /* requests whose client has left, of this turn of the loop */
    uint32_t n_cancels, cancels_max;
    uv_timer_t cancel_timer;
    struct order *orders;
    uint64_t order_last;
    struct {
        uint64_t completed, failed, cancelled, repaired;
    } counts;
    struct served_model *served[SERVED_MAX];
    uint32_t n_served;
    uv_timer_t tick;       /* of core and router */
    uv_timer_t stop_timer; /* end of draining */
    uint32_t n_loads;      /* work in the thread pool */
    uint32_t n_handles;    /* timers */
    enum { NODE_RUNNING, NODE_DRAINING, NODE_CLOSING_API, NODE_STOPPING_RANKS, NODE_CLOSING } phase;
    bool is_api_closed, is_mesh_closed, is_discovery_closed;
    bool is_puller_closing, is_puller_closed;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

/* ---- node.c ---- */
/* Goes on with the stop as far as it can; called whenever something that it waits for has ended. */
void node_check_stop(struct node *n);

/* ---- core.c ---- */
int core_init(struct node *n, struct error *err);
void core_done(struct node *n);
/* Gives the core an event and does what it says. Errors: E_PROTOCOL from a peer's message. */
int core_step(struct node *n, const struct cluster_event *e, struct error *err);
void core_tick(struct node *n);
/* Something that parts should look at has changed. */
void core_touch(struct node *n);
/* Something that should outlive this process has changed. */
void core_save(struct node *n);
/* Whether another node could take over what this one holds. */
bool core_has_live_peer(const struct node *n);
/* What this node says of itself now. */
void core_describe_self(const struct node *n, struct cluster_self *self);
/* A node's name where we know it, else its id. Returns text. */
const char *core_node_name(const struct node *n, const struct node_id *id, char text[64]);

/* ---- control.c ---- */
int control_call(struct node *n, const char *verb, const char *body, size_t len,
                 void (*answer)(void *arg, int http_status, const char *json, size_t len),
                 void *arg, struct error *err);
/* The model of the configuration. */
int control_load_configured(struct node *n, struct error *err);
void control_on_join(struct node *n, const struct mesh_join_result *r);
void control_on_answer(struct node *n, uint64_t id, const struct error *result);
void control_drop_all(struct node *n);

/* ---- instance.c ---- */
void instance_lead(struct node *n, const struct placed_instance *placed);
void instance_stop(struct node *n, const struct node_id *id, uint64_t epoch);
void instance_stop_all(struct node *n);
struct instance *instance_find(const struct node *n, const struct node_id *id, uint64_t epoch);
/* A model's file is there now, or is known to be missing. */
void instance_on_files(struct node *n);
void instance_on_frame(struct instance *i, uint32_t rank, const struct message *m);
void instance_on_rank_ended(struct instance *i, uint32_t rank, const char *reason, bool is_unfit);
void instance_on_link_down(struct node *n, const struct mesh_link *link);
/* A frame for a rank, wherever it runs. Takes frame. */
void instance_send(struct instance *i, uint32_t rank, struct buf *frame);
/* Gives the core the reports that are due. Returns whether there were any. */
bool instance_send_reports(struct node *n);

/* ---- figures.c ---- */
/* Every runner answers its node's pings, and the leader gets the answers. Returns whether the
 * cluster should hear of it. */
bool figures_take(struct instance *i, uint32_t rank, const struct message_pong *p);
/* , "work": {...}: sums since the ranks were loaded, as the leader knew them last. */
void figures_put_head(struct buf *b, const struct head_work *h);
void figures_put_rank(struct buf *b, const struct rank_work *w);

/* ---- ranks.c ---- */
struct rank_owner { /* whose rank it is: (instance, epoch), led by that node */
    struct node_id leader, instance;
    uint64_t epoch;
};
/* Sends LOAD to a runner here, a new one or one that an older epoch of this instance has left, once
 * the ranks of older epochs have ended; they are let go. n_node_ranks share the node's threads.
 * Errors: E_NOMEM; E_UNAVAILABLE when a newer epoch is known; then no event follows. */
int ranks_start(struct node *n, const struct rank_owner *owner, uint32_t rank,
                uint32_t n_node_ranks, const struct message_load *load, struct error *err);
/* A leader elsewhere asks for a rank: finds the file first. Answers by RANK_ENDED when it cannot.
 */
int ranks_start_for(struct node *n, struct mesh_link *link, const struct mesh_rank_start *m,
                    struct error *err);
/* Sends a frame to a rank; takes the bytes. Unknown ranks are ignored. */
void ranks_send(struct node *n, const struct rank_owner *owner, uint32_t rank, struct buf *frame);
/* The rank ends. Its runner stays for a while, with its weights, where the instance is still wanted
 * here. */
void ranks_stop(struct node *n, const struct rank_owner *owner, uint32_t rank);
/* The link to a leader is gone: so are its orders. */
void ranks_drop_leader(struct node *n, const struct node_id *leader);
void ranks_stop_all(struct node *n);
/* Ends runners without a rank that nobody will need. */
void ranks_tick(struct node *n);
uint32_t ranks_count(const struct node *n);
/* Weights and caches that ranks here hold or will hold, as their leaders said. */
uint64_t ranks_bytes(const struct node *n);
/* Memory of runners without a rank: whoever needs it gets it. */
uint64_t ranks_parked_bytes(const struct node *n);
/* What the system has free now; on a device, which the node does not ask while it runs, what models
 * may take in all. */
uint64_t node_memory_bytes_free(const struct node *n);

/* ---- requests.c ---- */
int requests_init(struct node *n, struct error *err);
int requests_submit(struct node *n, const struct api_generation *g,
                    const struct api_generation_events *events, void *arg, uint64_t *ret_id,
                    struct error *err);
/* Soon: done never comes from inside the call. */
void requests_cancel(struct node *n, uint64_t id);
int requests_take(struct node *n, struct mesh_link *origin, const struct mesh_submit *m,
                  struct error *err);
void requests_cancel_for(struct node *n, const struct mesh_link *origin, uint64_t attempt);
/* TOKENS, PROGRESS or DONE from a head's runner here. */
int requests_on_frame(struct node *n, const struct message *m, struct error *err);
/* The same from a leader elsewhere. */
int requests_on_event(struct node *n, const struct mesh_link *from, const struct message *m,
                      struct error *err);
/* An instance that this node led has ended: whoever sent requests to it hears so. */
void requests_lose_instance(struct node *n, const struct instance *i, const char *reason);
void requests_on_link_down(struct node *n, const struct mesh_link *link);
/* Instances have come or gone. */
void requests_on_places(struct node *n);
void requests_end_all(struct node *n, int code, const char *message);
void requests_count(const struct node *n, uint32_t *ret_running, uint32_t *ret_queued);
bool requests_are_none(const struct node *n);
void requests_done(struct node *n);

/* ---- backend.c ---- */
void backend_init(struct node *n, struct api_backend *ret_backend);
/* Brings the list of served models in line with what should run. */
void backend_refresh(struct node *n);
struct served_model *backend_find(const struct node *n, const char *id, const uint8_t hash[32]);
void backend_done(struct node *n);

/* ---- peers.c ---- */
int peers_init(struct node *n);
void peers_close(struct node *n);

/* ---- paths.c ---- */
/* A placement that the cluster's state holds; NULL: it does not. */
const struct placed_instance *paths_find_placed(const struct node *n, const struct node_id *id,
                                                uint64_t epoch);
/* A rank of it is about to start here: looks whether the ways to the other nodes are still there,
 * and makes `host` the one to listen on, where it must be another. placed may be NULL: not known
 * yet. */
void paths_prepare(struct node *n, const struct placed_instance *placed, char host[64]);
/* A frame for a runner of this node: in a CONNECT, puts in where this node finds the others. While
 * that is being measured for the first time it takes the frame, and hands it to ranks_send later;
 * then it returns true. */
bool paths_direct(struct node *n, const struct rank_owner *owner, uint32_t rank, struct buf *frame);
void paths_tick(struct node *n);
void paths_drop_all(struct node *n);
/* Whether an instance has ranks both here and there (mesh_events.is_busy). */
bool paths_is_busy(void *self, const struct node_id *id);
/* "paths": [...] of that node. */
void paths_json(const struct node *n, struct buf *b, const struct node_id *id);

/* ---- state.c ---- */
int state_json(struct node *n, struct buf *out);
bool state_health(struct node *n, struct buf *out);

/* ---- library.c ---- */
int library_init(struct node *n, struct error *err);
/* Cancels what is being fetched; node_check_stop when that is over. */
void library_stop(struct node *n);
void library_done(struct node *n);
/* Begins to fetch the file that has this name elsewhere, if the catalogue knows it. Returns whether
 * it is on its way. */
bool library_want(struct node *n, const char *path);
/* Orders about model files: models, show, remove, pull, pulls (docs/internals/models.md). The
 * answer comes later, once. */
bool library_is_order(const char *verb);
int library_call(struct node *n, const char *verb, const json_t *body,
                 void (*answer)(void *arg, int http_status, const char *json, size_t len),
                 void *arg, struct error *err);

/* ---- library_api.c: of struct api_backend ---- */
int library_api_pull(void *self, const char *name, const struct api_pull_events *events, void *arg,
                     uint64_t *ret_id, struct error *err);
void library_api_cancel(void *self, uint64_t id);
int library_api_remove(void *self, const char *name,
                       void (*done)(void *arg, const struct error *err), void *arg,
                       struct error *err);

/* ---- measure.c ---- */
/* Begins, if the disk does not know it yet; the figures come later. */
void measure_begin(struct node *n);
void measure_stop(struct node *n);
/* Keeps the figures; from the thread pool. */
int measure_save(struct node *n, struct error *err);

/* ---- telemetry.c ---- */
void telemetry_init(struct node *n);
/* Takes a sample, in the thread pool, when it is time. */
void telemetry_tick(struct node *n);
/* "capabilities": {...}, "telemetry": {...} (docs/internals/telemetry.md). */
int telemetry_json(struct node *n, struct buf *b);

/* ---- data_dir.c ---- */
/* Makes the data folder and locks it: nobody else may use it for as long as ret_lock is open.
 * Errors: E_BUSY when another node does. */
int data_dir_lock(const char *data_dir, int *ret_lock, struct error *err);

#endif
