/*
 * The simulator: real cluster cores (cluster/cluster.h) and real routers (cluster/router.h) in a
 * world made of one seed. Time is virtual; links, processes, disks, devices, runners, engines and
 * clients are fakes that fail on command. The same seed gives the same run, to the byte.
 *
 *   world.c     time, events, chance, faults in words
 *   net.c       links: delay, loss, doubling, reordering, partitions, silence, closing
 *   node.c      a node's process around its core and router
 *   executor.c  instances that a node leads, ranks that it hosts, and the engine
 *   clients.c   people: requests and orders
 *   swarm.c     which faults a seed brings
 *   year.c      faults at the rate of real machines, and what it does to availability
 *   story.c     scripted runs with their expected trace
 *   check_*.c   what must hold
 *
 * Thread: one; the program runs many worlds in many processes.
 */
#ifndef SHOAL_TESTS_SIM_H
#define SHOAL_TESTS_SIM_H

#include "base/buf.h"
#include "cluster/cluster.h"
#include "cluster/router.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    SIM_NODES_MAX = 256,
    SIM_MODELS_MAX = 4,
    SIM_PROMPT_MAX = 12,
    SIM_GENERATED_MAX = 160,
    SIM_LINK_SILENCE_US = 10000000, /* MESH_SILENCE_LOST_MS */
    SIM_COMM_TIMEOUT_US = 10000000, /* COMM_TIMEOUT_MS */
};

struct world;
struct sim_node;

/* ---- events ---- */

enum event_type {
    EV_TICK,       /* node, boot */
    EV_DELIVER,    /* a core message; conn */
    EV_APP,        /* a message between executors and routers */
    EV_CONNECT,    /* a pair tries to connect */
    EV_LINK_UP,    /* one side learns it */
    EV_LINK_DOWN,  /* one side learns it */
    EV_SAVED,      /* a write to the disk has ended */
    EV_RANK,       /* a hosted rank goes on */
    EV_ENGINE,     /* a head's next step */
    EV_CLIENT,     /* the next request of a client */
    EV_CLIENT_END, /* a client goes away */
    EV_FAULT,      /* the swarm's next doing; of its mixture */
    EV_HEAL,       /* the end of a fault */
    EV_RESUME,     /* a pause ends */
    EV_PROBE,      /* checkers look */
    EV_NONE,       /* was made void */
};

struct event {
    uint64_t at_us, seq;
    enum event_type type;
    uint32_t node, boot; /* whose; boot 0: of the world */
    uint32_t from, conn;
    uint64_t arg;
    void *data; /* owned */
    uint32_t len;
    struct event *next; /* in the free list, in a pause's list, or held by a link */
};

struct event *world_event(struct world *w, enum event_type type, uint64_t delay_us);
void world_push(struct world *w, struct event *e);

/* ---- links ---- */

struct wire {                       /* one direction between two nodes */
    bool is_cut;                    /* nothing passes */
    uint32_t conn;                  /* the receiver's connection to the sender, 0: none */
    uint64_t heard_us;              /* by the receiver, anything */
    uint64_t last_us;               /* arrival of the last reliable message: they stay in order */
    struct event *held, **held_end; /* reliable ones that wait for the cut's end */
    bool is_dialing;                /* of the lower-numbered node's wire: for both */
    uint32_t dial_ms;
    uint64_t connecting_us; /* a handshake is under way until then */
    double loss;            /* beside the world's */
    uint32_t extra_us;      /* delay beside the world's */
};

/* ---- executor ---- */

enum app_type {
    APP_RANK_START,
    APP_RANK_CONNECT,
    APP_RANK_STOP,
    APP_RANK_STATUS,
    APP_RANK_ENDED,
    APP_DATA_BROKEN, /* a rank's connections to it have closed */
    APP_SUBMIT,
    APP_CANCEL,
    APP_TOKENS,
    APP_DONE,
};

struct app {
    enum app_type type;
    struct node_id instance;
    uint64_t epoch, bytes;
    uint32_t rank, model;
    enum rank_status status;
    bool is_unfit;
    uint64_t attempt;
    uint32_t n_before, n_tokens, n_max, n_generated;
    enum router_finish reason;
    int code;
    int32_t tokens[]; /* [n_tokens] */
};

struct job { /* a request at its head */
    struct job *next;
    uint32_t origin, origin_boot;
    uint64_t attempt, stream;
    uint32_t n_prompt, n_generated, n_max, n_prefill_left;
    bool is_running, is_abandoned, is_cancelled;
};

struct led { /* an instance that the node leads */
    struct led *next;
    struct placed_instance placed;
    struct instance_report report;
    uint32_t model;
    bool is_report_due, is_stopping, is_ticking;
    uint64_t stalled_us, began_us;
    struct job *jobs;
    uint32_t n_jobs;
};

enum hosted_state {
    HOSTED_WAITING,
    HOSTED_STARTING,
    HOSTED_LISTENING,
    HOSTED_LOADING,
    HOSTED_READY,
    HOSTED_ENDING
};

struct hosted {
    struct hosted *next;
    struct node_id instance;
    uint64_t epoch, bytes;
    uint32_t leader, leader_boot, rank, model, number;
    enum hosted_state state;
    bool is_orphan;
};

/* ---- nodes ---- */

struct sim_node {
    struct world *w;
    uint32_t index;
    struct node_id id;
    char name[16];

    bool is_there;  /* in the cluster at all, running or not */
    bool is_alive;  /* its process runs */
    bool is_paused; /* stopped, with all its runners */
    bool is_stopping;
    uint64_t stopping_us; /* since when */
    uint32_t boot;
    struct event *deferred, **deferred_end;
    struct cluster *cluster;
    struct router *router;
    double clock_rate;
    uint64_t clock_offset_us;
    bool is_changed, is_stepping, is_tick_due;
    uint64_t figures_us;

    uint64_t memory_bytes, memory_taken; /* taken: by others than us */
    enum thermal_state thermal;
    double speed; /* 1: as good as new */
    struct buf disk, writing;
    bool is_writing, is_save_due;

    struct hosted *hosted;
    uint32_t hosted_last;
    struct led *led;

    /* What the checkers remember. */
    struct claim claim;
    bool was_coordinator;
    uint64_t pause_end_us, boot_us;
};

/* ---- people ---- */

struct sim_model {
    char id[16];
    struct model_shape shape;
    uint64_t bytes;
    uint32_t split_nodes_min;
    bool is_loaded, is_unloaded; /* some person's order was answered well */
    uint32_t n_orders;           /* accepted */
    bool is_excused;             /* every copy of the order was lost */
};

struct sim_request {
    struct sim_request *next;
    struct world *w;
    uint32_t number, node, boot, model;
    uint64_t id; /* the router's */
    uint32_t n_prompt, n_max, n_got;
    uint64_t stream;                      /* what the next token depends on */
    bool is_ended, is_cancelled, is_lost; /* lost: its node died */
    enum router_finish reason;
    uint64_t submit_us, cancel_us;
    uint64_t last_us; /* of the last token */
};

struct sim_order {
    struct sim_order *next;
    uint32_t node, boot, n_answers, number;
    uint64_t at_us;
    struct cluster_order *order; /* owned */
    uint32_t model;
    int code;
};

/* ---- the world ---- */

enum fault_kind {
    FAULT_KILL,
    FAULT_POWER,
    FAULT_RESTART,
    FAULT_PAUSE,
    FAULT_PARTITION,
    FAULT_ONE_WAY,
    FAULT_CUT,
    FAULT_CLOSE,
    FAULT_DELAY,
    FAULT_LOSS,
    FAULT_RANK,
    FAULT_DATA,
    FAULT_SLOW,
    FAULT_HOT,
    FAULT_MEMORY,
    FAULT_DRAIN,
    FAULT_UNDRAIN,
    FAULT_LEAVE,
    FAULT_JOIN,
    FAULT_LOAD,
    FAULT_UNLOAD,
    FAULT_KIND_COUNT,
};
const char *fault_name(enum fault_kind kind);

enum canary { CANARY_NONE, CANARY_ROUTER, CANARY_EPOCH, CANARY_ORPHAN, CANARY_COUNT };

struct sim_options {
    uint64_t seed;
    uint32_t n_nodes; /* 0: the seed chooses */
    uint64_t time_us; /* of faults; 0: the seed chooses */
    bool is_traced;
    enum canary canary;
    bool is_year;     /* a stated rate of faults for time_us, otherwise a swarm */
    bool is_campaign; /* a swarm's faults, rarely, for time_us */
};

enum { SIM_SAMPLES = 512 };
struct samples { /* of one quantity, for percentiles */
    uint32_t n, n_seen;
    float v[SIM_SAMPLES];
};
void samples_add(struct samples *s, double v);

struct sim_report { /* sums over worlds; plain data, so that it goes through a pipe */
    uint64_t n_seeds, n_events, virtual_us, n_failed;
    uint64_t n_faults[FAULT_KIND_COUNT];
    uint64_t n_requests, n_refused, n_busy, n_completed, n_cancelled, n_repaired, n_lost, n_errors;
    uint64_t n_tokens, n_orders, n_terms, n_epochs;
    uint64_t n_asked, n_served, n_asked_feasible, n_served_feasible; /* availability: samples */
    uint64_t skipped_us; /* of a year: nothing would have happened */
    struct samples detect_kill_ms, detect_silent_ms, repair_ms, gap_ms;
};

struct world {
    struct sim_options options;
    uint64_t now_us, seq, chance;
    struct event **heap;
    uint32_t n_heap, n_heap_max;
    struct event *free_events;

    uint32_t n_nodes; /* that may ever be */
    struct sim_node *node;
    struct wire *wire; /* [n_nodes][n_nodes], from, to */
    uint32_t conn_last;

    /* The seed's choices. */
    uint32_t delay_us, jitter_us;
    double loss, doubling, reordering;
    bool is_lossy; /* core messages get lost; otherwise they travel as a stream's */
    uint32_t load_ms, start_ms, end_ms, token_us, save_us, n_slots;
    double request_gap_us;
    uint32_t n_clients;
    struct mixture *mixture; /* owned */

    uint32_t n_models;
    struct sim_model model[SIM_MODELS_MAX];
    struct sim_request *requests;
    struct sim_order *orders;
    uint32_t n_requests, n_orders;

    /* What is wrong now, for checkers that ask for peace. */
    uint64_t fault_us;    /* of the last change */
    uint64_t n_changes;   /* faults that began or ended */
    uint32_t n_disturbed; /* faults that have begun and not ended */
    bool is_healing;
    bool are_clients_quiet;
    uint64_t heal_us;

    bool is_failed;
    char failure[512];
    struct buf *trace; /* NULL: lines are printed when traced */
    bool wants_story;  /* only what stories show */
    struct sim_report *report;
    struct checks *checks;
};

/* world.c */
struct world *world_new(const struct sim_options *o, uint32_t n_nodes, struct sim_report *report);
void world_free(struct world *w);
uint64_t chance_u64(struct world *w);
double chance_unit(struct world *w);
uint32_t chance_below(struct world *w, uint32_t n);
bool chance_is(struct world *w, double p);
bool world_step(struct world *w); /* one event; false: failed or none left */
void world_run(struct world *w, uint64_t until_us);
void world_trace(struct world *w, const struct sim_node *n, bool is_story, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
void world_fail(struct world *w, const char *check, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
void world_disturb(struct world *w, int change); /* a fault begins (+1), ends (-1), happens (0) */
bool world_is_calm(const struct world *w, uint64_t for_us);

/* net.c */
static inline struct wire *wire_of(struct world *w, uint32_t from, uint32_t to)
{
    return &w->wire[(size_t)from * w->n_nodes + to];
}
bool net_is_linked(struct world *w, uint32_t a, uint32_t b); /* as a sees it */
bool net_passes(struct world *w, uint32_t a, uint32_t b);    /* both ways, both run */
void net_send_core(struct world *w, uint32_t from, uint32_t to, const void *data, size_t len);
bool net_send_app(struct world *w, uint32_t from, uint32_t to, struct app *m); /* takes m */
void net_cut(struct world *w, uint32_t from, uint32_t to, bool is_cut);
void net_close(struct world *w, uint32_t a, uint32_t b); /* both learn it */
void net_boot(struct world *w, uint32_t a);
void net_die(struct world *w, uint32_t a, bool is_silent);
void net_tick(struct sim_node *n); /* silent links */
void net_event(struct world *w, struct event *e);
void net_disconnect(struct sim_node *n, uint32_t peer); /* n closes it */

/* node.c */
void node_start(struct sim_node *n, bool has_disk);
void node_die(struct sim_node *n, bool is_silent);
void node_pause(struct sim_node *n, uint64_t us);
void node_resume(struct sim_node *n);
void node_event(struct sim_node *n, struct event *e);
void node_step(struct sim_node *n, const struct cluster_event *e);
void node_settle(struct sim_node *n);
void node_leave(struct sim_node *n);
uint64_t node_now_ms(const struct sim_node *n);
uint64_t node_memory_free(const struct sim_node *n);
struct sim_node *node_find(struct world *w, const struct node_id *id);
bool node_find_place(struct sim_node *n, const char *model_id, struct router_place *ret);
void node_self_changed(struct sim_node *n);

/* executor.c */
void executor_start(struct sim_node *n, const struct placed_instance *p);
void executor_stop(struct sim_node *n, const struct node_id *id, uint64_t epoch);
void executor_app(struct sim_node *n, uint32_t from, const struct app *m);
void executor_event(struct sim_node *n, const struct event *e);
bool executor_send_reports(struct sim_node *n);
void executor_link_down(struct sim_node *n, uint32_t peer);
void executor_die(struct sim_node *n, bool is_silent);
uint64_t executor_bytes(const struct sim_node *n);
void executor_crash_rank(struct sim_node *n, struct hosted *h);
void executor_break_data(struct sim_node *n);
struct led *executor_find(struct sim_node *n, const struct node_id *id, uint64_t epoch);
bool executor_is_whole(struct world *w, const struct led *l); /* all its ranks run and reach */
int executor_submit(struct sim_node *n, uint32_t origin, const struct node_id *instance,
                    uint64_t epoch, uint64_t attempt, const int32_t *tokens, uint32_t n_tokens,
                    uint32_t n_max);
void executor_cancel(struct sim_node *n, uint32_t origin, uint64_t attempt);
struct app *app_new(enum app_type type, uint32_t n_tokens);

/* The model's one answer. */
static inline uint64_t stream_mix(uint64_t stream, int32_t token)
{
    stream = (stream ^ (uint64_t)(uint32_t)token) * 0x9E3779B97F4A7C15u;
    return stream ^ stream >> 29;
}
static inline int32_t stream_next(uint64_t stream) /* -1: the answer ends */
{
    return stream % 67 == 0 ? -1 : (int32_t)(stream >> 32 & 0x7fff);
}

/* clients.c */
void clients_event(struct world *w, const struct event *e);
void clients_begin(struct world *w);
struct sim_request *client_submit(struct world *w, struct sim_node *n, uint32_t model,
                                  uint32_t n_max);
void client_cancel(struct sim_request *q);
struct sim_order *client_order(struct world *w, struct sim_node *n, enum order_type type,
                               uint32_t model, const struct node_id *node);
void clients_on_tokens(struct sim_request *q, const int32_t *tokens, uint32_t n);
void clients_on_done(struct sim_request *q, const struct router_done *done);
void clients_on_answer(struct sim_node *n, uint64_t order_id, const struct error *error);
void clients_on_death(struct sim_node *n);

/* swarm.c */
void swarm_choose(struct world *w);
void swarm_event(struct world *w, struct event *e);
void swarm_run(struct world *w);
struct mixture *swarm_mixture(struct world *w);
void swarm_fault(struct world *w, const struct mixture *f);
void swarm_load_models(struct world *w);
bool swarm_is_well(struct world *w); /* all agree, and all that can serve does */
void fault_begin(struct world *w, enum fault_kind kind, uint32_t a, uint32_t b, uint64_t us);
void fault_heal_all(struct world *w);
uint32_t sim_choose_nodes(const struct sim_options *o);
void sim_add_model(struct world *w, uint32_t kind);
void sim_add_node(struct world *w, uint32_t index, double memory_gb, double speed);

/* year.c */
void year_choose(struct world *w);
void year_run(struct world *w);

/* story.c: 0: as expected, 1: not, 2: cannot be read */
int story_run(const char *path, bool is_updated, bool is_traced);

/* ---- checkers ---- */

struct checks *checks_new(struct world *w);
void checks_free(struct checks *c);

/* check_coordinator.c */
void check_coordinator_step(struct sim_node *n); /* after each change of a core */
void check_coordinator_end(struct world *w);
/* check_placement.c */
void check_placement_step(struct sim_node *n);
void check_placement_start(struct sim_node *n, const struct placed_instance *p);
void check_placement_serving(struct sim_node *n, const struct led *l);
bool check_is_feasible(struct world *w, const struct sim_node *n, uint32_t model);
bool check_is_served(struct sim_node *n, uint32_t model);
void check_placement_end(struct world *w);
/* check_requests.c */
void check_tokens(struct sim_request *q, const int32_t *tokens, uint32_t n);
void check_done(struct sim_request *q, const struct router_done *done);
void check_requests_end(struct world *w);
/* check_repair.c */
void check_repair_loss(struct sim_node *victim, bool is_silent);
void check_repair_probe(struct world *w);
/* check_state.c */
void check_state_step(struct sim_node *n);
void check_state_answer(struct world *w, struct sim_order *o, const struct error *error);
void check_state_death(struct world *w);
void check_state_heal(struct world *w);
void check_state_end(struct world *w);

struct term_seen {
    uint64_t term;
    struct node_id node;
};
struct epoch_seen {
    struct node_id instance;
    uint64_t epoch;
    uint32_t node, boot;
    bool was_serving;
};
struct loss { /* of a node, until it is noticed and repaired */
    struct loss *next;
    uint32_t victim, boot;
    bool is_silent, was_calm, is_noticed, is_repaired, had_ranks;
    uint64_t at_us, n_changes;
};
struct checks {
    struct term_seen *term;
    uint32_t n_terms, n_terms_max;
    struct epoch_seen *epoch;
    uint32_t n_epochs, n_epochs_max;
    struct loss *losses;
    uint64_t last_version_checked;
    struct claim placement_claim;
    uint64_t sample_us, not_served_us[SIM_MODELS_MAX];
};

#endif
