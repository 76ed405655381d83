/*
 * The daemon: one libuv loop that serves the API, keeps links to other nodes, takes part in the
 * cluster's decisions and runs runners. Never computes, never blocks: files are read and state is
 * written in the thread pool. Thread: the loop's.
 */
#ifndef SHOAL_NODE_NODE_H
#define SHOAL_NODE_NODE_H

#include "base/error.h"
#include "cluster/state.h"
#include "mesh/mesh.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct node; /* opaque */

enum { NODE_FOLDERS_MAX = 16 };

struct node_config {
    char name[64];       /* "": the host's name */
    char data_dir[3072]; /* identity, trusted keys, state, models/; made if absent */
    char program[4096];  /* this program, for runners: `program runner` */
    char model[4096];    /* file, or name of one that is here, that the cluster is to serve; "":
                            whatever it serves already */
    struct mesh_address api, mesh;
    char api_keys[4096]; /* file with keys for the API; "": nobody needs one */
    uint32_t n_peers;
    struct mesh_address peers[LIMIT_PEERS];
    uint32_t n_routes;
    struct mesh_route routes[MESH_ROUTES_MAX];
    bool discovers;                 /* announces itself by mDNS, and looks for others */
    bool announces_mlx;             /* as _mlx-worker._tcp, too */
    bool is_closed;                 /* takes no requests to join */
    char hub[1024], hub_token[512]; /* where models are fetched from; "": the default, none */
    bool is_offline;                /* nothing is fetched */
    uint32_t n_folders;             /* with models, beside data_dir/models; only read */
    char folders[NODE_FOLDERS_MAX][1024];
    char split[32]; /* of the model; "": by the rule */
    enum placement_rule rule;
    uint32_t n_threads;              /* of this node, shared by its ranks; 0: all cores */
    struct instance_options options; /* of models that are loaded here without others */
    char device[64];                 /* what computes, as engine_options.device */
    uint64_t device_bytes_total;     /* its memory, of which models take memory_bytes_max; 0: they
                                        take memory of the computer */
    uint64_t memory_bytes_max;       /* that runners may take; 0: what is free */
    bool measures;                   /* how fast it is, in a child process, at the first start */
    uint32_t n_secret;
    uint8_t secret[256];
};

enum { NODE_SLOTS_DEFAULT = 16, NODE_DRAIN_MS = 10000 };

struct node_events {
    void *arg;
    /* The model of the configuration cannot be served: its file, or the cluster's answer. */
    void (*model_refused)(void *arg, const struct error *err);
    /* An instance of any node serves, after it was placed or repaired. */
    void (*serving)(void *arg, const char *model_id, const char *split, uint32_t n_ranks);
};

/* Starts everything; models load in the background. Borrows loop. Errors: addresses in use, data
 * folder not writable, E_NOMEM. */
int node_start(uv_loop_t *loop, const struct node_config *config, const struct node_events *events,
               struct node **ret_node, struct error *err);
uint16_t node_api_port(const struct node *n);
uint16_t node_mesh_port(const struct node *n);
/* Lets running requests finish (at most NODE_DRAIN_MS; new ones are refused), hands instances to
 * other nodes, then stops runners, links and API, calls stopped and frees itself. A second call
 * with at_once ends the draining. */
void node_stop(struct node *n, bool at_once, void (*stopped)(void *arg), void *arg);

#endif
