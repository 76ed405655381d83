/*
 * The parts of a node and how they call each other. Nobody outside node/ includes it.
 *
 *   node.c      start, stop, events of the mesh
 *   ranks.c     runners on this node, for its own instance and for other coordinators
 *   instance.c  the instance that this node coordinates; instance_place.c: who holds what
 *   requests.c  requests: from the API or another node, to the head's runner or another node
 *   backend.c   what the API sees: models that some instance serves
 *   peers.c     what this node knows of the cluster, and tells
 *   state.c     the cluster's state as JSON
 */
#ifndef SHOAL_NODE_INTERNAL_H
#define SHOAL_NODE_INTERNAL_H

#include "api/api.h"
#include "cluster/placement.h"
#include "device/device.h"
#include "node/model_file.h"
#include "node/node.h"
#include "node/runner_process.h"

struct hosted_rank; /* ranks.c */
struct request;     /* requests.c */

struct instance {
    struct node *node;
    struct instance_info info; /* what others may know; also our own record of the ranks */
    struct model_file *file;
    struct placement placement;
    uint64_t launch;                          /* of the attempt under way */
    struct node_id node_of_rank[LIMIT_RANKS]; /* all zero bytes never: own id for local ranks */
    struct message_connect connect;           /* filled as ranks report where they listen */
    uv_timer_t timer;                         /* waiting, deadline, back-off: by status */
    bool has_timer;
    bool is_stopping;
    bool is_file_loading;
    uint64_t started_ms, serving_since_ms, backoff_ms;
};

struct known_node { /* another node, linked or heard of */
    struct node_info info;
    struct mesh_link *link;      /* NULL: no link of our own */
    const struct mesh_link *via; /* who told of it, when we have no link */
    bool is_lost;
    uint64_t seen_ms;
};

struct remote_instance {
    struct instance_info *info; /* owned */
    struct mesh_link *link;     /* to its coordinator */
};

struct served_model { /* a name that clients may use; lives as long as the node */
    struct api_model api;
    struct node *node;
    char id[128];
    uint8_t hash[32];
    struct model_file *file; /* NULL while loading, or when this node does not have it */
    bool owns_file;
    bool is_loading;
    bool is_listed; /* some instance has it */
    uint64_t retry_ms;
};

enum { SERVED_MAX = 64, REMOTE_INSTANCES_MAX = 64, KNOWN_NODES_MAX = LIMIT_PEERS };

struct node {
    uv_loop_t *loop;
    struct node_config config;
    struct node_events events;
    struct node_id id;
    int lock; /* on the data folder; -1: none */
    uint64_t memory_bytes_total;
    uint32_t n_cores;
    struct api_backend backend;
    struct api *api;
    struct mesh *mesh;
    struct instance *instance; /* NULL: coordinates none */
    struct hosted_rank *ranks;
    struct request *requests;
    uint64_t request_last;
    struct {
        uint64_t completed, failed, cancelled;
    } counts;
    struct known_node known[KNOWN_NODES_MAX];
    uint32_t n_known;
    struct remote_instance remote[REMOTE_INSTANCES_MAX];
    uint32_t n_remote;
    struct served_model *served[SERVED_MAX];
    uint32_t n_served;
    uv_timer_t gossip_timer; /* bundles changes of a moment into one STATE message */
    uv_timer_t stop_timer;   /* end of draining */
    uint32_t n_loads;        /* files being loaded in the pool */
    uint32_t n_handles;      /* timers, instance timer included */
    enum { NODE_RUNNING, NODE_DRAINING, NODE_CLOSING_API, NODE_STOPPING_RANKS, NODE_CLOSING } phase;
    bool is_api_closed, is_mesh_closed;
    void (*stopped)(void *arg);
    void *stopped_arg;
};

/* ---- node.c ---- */
/* Goes on with the stop as far as it can; called whenever something that it waits for has ended. */
void node_check_stop(struct node *n);

/* ---- ranks.c ---- */
/* Starts a runner and sends it LOAD. owner NULL: our own instance. n_node_ranks share the node's
 * threads. Errors: those of runner_process_start; then no event follows. */
int ranks_start(struct node *n, struct mesh_link *owner, uint64_t launch, uint32_t rank,
                uint32_t n_node_ranks, struct message_load *load, struct error *err);
/* A coordinator asks for a rank: finds the file first. Answers by RANK_ENDED when it cannot. */
int ranks_start_for(struct node *n, struct mesh_link *owner, const struct mesh_rank_start *m,
                    struct error *err);
/* Sends a frame to a rank; takes the bytes. Unknown ranks are ignored. */
void ranks_send(struct node *n, const struct mesh_link *owner, uint64_t launch, uint32_t rank,
                struct buf *frame);
void ranks_stop(struct node *n, const struct mesh_link *owner, uint64_t launch, uint32_t rank);
/* The link to a coordinator is gone: so are its orders. */
void ranks_drop_owner(struct node *n, const struct mesh_link *owner);
void ranks_stop_all(struct node *n);
uint32_t ranks_count(const struct node *n);

/* ---- instance.c ---- */
int instance_new(struct node *n, const char *model, struct error *err);
/* Stops the ranks and does not start them again. */
void instance_stop(struct instance *i);
void instance_free(struct instance *i); /* its timer is closed, its file not loading */
void instance_on_frame(struct instance *i, uint64_t launch, uint32_t rank, const struct message *m);
void instance_on_rank_ended(struct instance *i, uint64_t launch, uint32_t rank, const char *reason);
void instance_on_link_down(struct instance *i, const struct mesh_link *link);
void instance_on_link_up(struct instance *i);

/* ---- instance_place.c ---- */
/* Decides which connected nodes take part and what each holds; fills placement, node_of_rank and
 * the ranks of info. Errors: those of placement_solve. */
int instance_place(struct instance *i, struct error *err);

/* ---- requests.c ---- */
int requests_submit(struct node *n, const struct api_generation *g,
                    const struct api_generation_events *events, void *arg, uint64_t *ret_id,
                    struct error *err);
void requests_cancel(struct node *n, uint64_t id);
int requests_take(struct node *n, struct mesh_link *origin, const struct mesh_submit *m,
                  struct error *err);
void requests_cancel_for(struct node *n, const struct mesh_link *origin, uint64_t origin_id);
/* TOKENS, PROGRESS or DONE from the head's runner (from NULL) or from another node. */
int requests_on_event(struct node *n, const struct mesh_link *from, const struct message *m,
                      struct error *err);
/* All that go to this destination (NULL: our own head) end with this error. */
void requests_fail(struct node *n, const struct mesh_link *destination, int code,
                   const char *message);
/* NULL: our own API. */
void requests_drop_origin(struct node *n, const struct mesh_link *origin);
void requests_fail_all(struct node *n, int code, const char *message);
void requests_count(const struct node *n, uint32_t *ret_running, uint32_t *ret_queued);

/* ---- backend.c ---- */
void backend_init(struct node *n, struct api_backend *ret_backend);
/* Brings the list of served models in line with the instances that are known. */
void backend_refresh(struct node *n);
void backend_done(struct node *n);

/* ---- peers.c ---- */
/* Something that others should know has changed. */
void peers_state_changed(struct node *n);
void peers_send_state(struct node *n);
void peers_link_up(struct node *n, struct mesh_link *link);
void peers_link_down(struct node *n, const struct mesh_link *link);
int peers_take_state(struct node *n, struct mesh_link *link, const struct mesh_message *m,
                     struct error *err);

/* ---- state.c ---- */
int state_json(struct node *n, struct buf *out);
bool state_health(struct node *n, struct buf *out);

/* ---- identity.c ---- */
/* Makes the data folder, and reads or makes the node's id in it. ret_lock is a descriptor that
 * keeps other nodes from using the same folder for as long as it is open. Errors: E_BUSY when one
 * does. */
int identity_load(const char *data_dir, struct node_id *ret_id, int *ret_lock, struct error *err);

#endif
