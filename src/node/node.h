/*
 * The daemon: one libuv loop that serves the API, keeps links to other nodes, runs runners and,
 * when it was given a model, coordinates the instance that serves it. Never computes, never blocks:
 * files are read in the thread pool. Thread: the loop's.
 */
#ifndef SHOAL_NODE_NODE_H
#define SHOAL_NODE_NODE_H

#include "base/error.h"
#include "mesh/mesh.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct node; /* opaque */

struct node_config {
    char name[64];       /* "": the host's name */
    char data_dir[3072]; /* identity, models/; made if absent */
    char program[4096];  /* this program, for runners: `program runner` */
    char model[4096];    /* file, or name of one in data_dir/models; "": coordinates nothing */
    struct mesh_address api, mesh;
    uint32_t n_peers;
    struct mesh_address peers[LIMIT_PEERS];
    uint32_t wait_peers_ms; /* before placing without all of them */
    char split[32];         /* "": by the rule of cluster/placement.h */
    uint32_t n_threads;     /* of this node, shared by its ranks; 0: all cores */
    uint32_t n_ctx;         /* 0: the engine's default */
    uint32_t n_slots;       /* 0: NODE_SLOTS_DEFAULT */
    uint32_t n_secret;
    uint8_t secret[256];
};

enum { NODE_SLOTS_DEFAULT = 4, NODE_WAIT_PEERS_MS = 5000, NODE_DRAIN_MS = 10000 };

struct node_events {
    void *arg;
    void (*model_status)(void *arg, const struct instance_info *info); /* after each change */
};

/* Starts everything; models load in the background. Borrows loop. Errors: addresses in use, data
 * folder not writable, E_NOMEM. */
int node_start(uv_loop_t *loop, const struct node_config *config, const struct node_events *events,
               struct node **ret_node, struct error *err);
uint16_t node_api_port(const struct node *n);
uint16_t node_mesh_port(const struct node *n);
/* Lets running requests finish (at most NODE_DRAIN_MS; new ones are refused), then stops runners,
 * links and API, calls stopped and frees itself. A second call with at_once ends the draining. */
void node_stop(struct node *n, bool at_once, void (*stopped)(void *arg), void *arg);

#endif
