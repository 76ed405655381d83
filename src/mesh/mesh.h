/*
 * A node's control links to other nodes: TLS 1.3 over TCP between Ed25519 identities. Listens,
 * dials and dials again with back-off, decides who is a member, lets newcomers in by invite, by
 * approval or by the cluster's secret, tells members of each other, measures the paths between each
 * pair, notices silence, and keeps one link per node. What members say to each other is the owner's
 * business.
 *
 * Who is a member: whose key is in data_dir/trusted. Both ends of a link decide by the key that the
 * TLS handshake has proven; certificates carry nothing else. A stranger may ask to join, may send
 * frames of 4 KiB at most, and learns a name and a tag of the cluster when it asks, else nothing.
 * docs/internals/security.md has the reasons.
 *
 * A link pointer is valid from link_up until link_down returns. Events come from the loop; only
 * mesh_approve and mesh_revoke may call them before they return. The process must ignore SIGPIPE.
 * Thread: the loop's.
 */
#ifndef SHOAL_MESH_MESH_H
#define SHOAL_MESH_MESH_H

#include "base/buf.h"
#include "base/error.h"
#include "cluster/figures.h"
#include "cluster/node_id.h"
#include "device/device.h"
#include "mesh/message.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

enum {
    MESH_TICK_MS = 250,
    MESH_SILENCE_LOST_MS = 10000, /* without any byte; the cluster judges much earlier */
    MESH_GREETING_MS = 5000,      /* from connection to member, or to a request that waits */
    MESH_DIAL_MS_MIN = 250,
    MESH_DIAL_MS_MAX = 10000,
    MESH_PING_MS = 2000,
    MESH_BULK_FIRST_MS = 1000, /* after link_up */
    MESH_BULK_MS = 600000,
    MESH_REQUESTS_MAX = 16, /* strangers that wait for an answer */
    MESH_REQUEST_MS = 300000,
    MESH_INVITES_MAX = 32, /* that can be used; more make the oldest void */
    MESH_INVITE_LINE_BYTES = 512,
    MESH_ROUTES_MAX = 64,
    MESH_INTERFACES_MS = 2000,     /* how often the computer's addresses are looked at */
    MESH_INTERFACES_SOON_MS = 500, /* while one of them cannot be used yet */
    MESH_PATHS_FIRST_MS = 20,      /* after link_up: before the first instance, if possible */
    MESH_PATHS_CHANGED_MS = 500,   /* after addresses have changed */
    MESH_PATHS_MS = 600000,        /* all paths of a pair anew, while they are idle */
    MESH_PATHS_CHECK_MS = 60000,   /* whether the best one is still there */
    MESH_PROBE_CONNECT_MS = 3000,  /* until the other side has shown who it is */
    MESH_PROBE_MS_MAX = 8000,
};

struct mesh;          /* opaque */
struct mesh_link;     /* opaque */
struct mesh_identity; /* opaque: Ed25519 key pair, self-signed certificate, node id */

/* ---- identity ---- */

/* Reads data_dir/identity.pem (mode 0600), or makes it. The folder must be there. Errors: E_IO,
 * E_FORMAT (say what to do), E_NOMEM. */
int mesh_identity_load(const char *data_dir, struct mesh_identity **ret, struct error *err);
void mesh_identity_free(struct mesh_identity *i);
const struct node_id *mesh_identity_id(const struct mesh_identity *i);

/* ---- the mesh ---- */

struct mesh_route { /* "tensors to this node go there": a person knows better than a measurement */
    char peer[64];  /* name, or id as text */
    char host[64];  /* numeric; a link-local address with its interface */
};

struct mesh_options {
    struct mesh_address listen;
    uint32_t n_peers; /* static peers: dialled for as long as the mesh lives */
    const struct mesh_address *peers;
    const void *secret; /* the cluster's; who proves that it knows it is a member while this process
                           lives. NULL: none */
    size_t secret_len;
    const struct mesh_identity *identity;
    const char *data_dir; /* trusted keys are kept there, in the file `trusted` */
    bool is_closed;       /* strangers cannot ask to join; invites and the secret still work */
    bool is_adoptable;    /* while this node belongs to no cluster and sees at most one, a member's
                             approval is enough; else a person must approve here, too */
    uint32_t n_routes;
    const struct mesh_route *routes;
    const struct mesh_addresses *addresses; /* of this node; NULL: those of its interfaces */
    struct mesh_hello self; /* name, api, incarnation, memory, cores; the mesh fills in the rest */
};

struct mesh_join_request { /* an unknown node and this one; both show the same code */
    struct node_id id;
    char name[64];               /* as it says; nobody has checked it */
    struct mesh_address address; /* where it is seen */
    char code[7];                /* 6 digits */
    bool is_newcomer;            /* it belongs to no cluster and asks to join ours; else we ask */
    bool is_approved_here, is_approved_there;
    uint64_t age_ms;
};

struct mesh_join_result {
    struct error error; /* code 0: both are members of one cluster now; link_up follows */
    bool is_invite;     /* of mesh_join, else of a request */
    struct node_id id;  /* the other node */
    char name[64];      /* "" when it has not said */
};

struct mesh_events {
    void *self;
    void (*link_up)(void *self, struct mesh_link *link);
    /* is_closed: the other process closed the link or is gone (FIN, RST, close_notify), as opposed
     * to silence or a decision here. */
    void (*link_down)(void *self, struct mesh_link *link, const char *reason, bool is_closed);
    /* A message of a member: CLUSTER (the payload as it was given to mesh_send_cluster), RANK_*,
     * SUBMIT, CANCEL, EVENT. An error closes the link. */
    int (*message)(void *self, struct mesh_link *link, const struct mesh_message *m,
                   struct error *err);
    /* The rest may be NULL. */
    /* Of the path that tensors would take now (mesh_link_figures); also when what mesh_link_taken
     * says has changed. */
    void (*link_figures)(void *self, struct mesh_link *link, const struct link_figures *f);
    /* Whether tensors go to that node: then what was measured is not measured again for want of
     * anything better to do. */
    bool (*is_busy)(void *self, const struct node_id *id);
    /* An unknown node waits for an answer; on its side the same happens. The mesh logs it, too. */
    void (*join_requested)(void *self, const struct mesh_join_request *r);
    /* Once for each mesh_join that returned 0, and once for each request that ended; not in
     * mesh_close. */
    void (*join_result)(void *self, const struct mesh_join_result *r);
};

/* name, text */
#define MESH_REFUSALS(X)                                                                           \
    X(GARBAGE, "garbage")         /* no TLS, or no frames inside it */                             \
    X(OLD_TLS, "old_tls")         /* less than TLS 1.3 */                                          \
    X(CERTIFICATE, "certificate") /* none, or not a self-signed Ed25519 one */                     \
    X(OVERSIZE, "oversize")       /* a frame that a stranger may not send */                       \
    X(SLOW, "slow")               /* greeting not over in time */                                  \
    X(CROWD, "crowd")             /* too many connections at once */                               \
    X(VERSION, "version")         /* speaks no version that we speak */                            \
    X(UNINVITED, "uninvited")     /* a stranger that may not ask */                                \
    X(WRONG_SECRET, "wrong_secret")                                                                \
    X(INVITE_UNKNOWN, "invite_unknown")                                                            \
    X(INVITE_USED, "invite_used")                                                                  \
    X(INVITE_EXPIRED, "invite_expired")                                                            \
    X(REVOKED, "revoked")                                                                          \
    X(DENIED, "denied")         /* a person said no, or nobody said anything */                    \
    X(BUSY, "busy")             /* too many requests to join */                                    \
    X(OTHER_NODE, "other_node") /* not the node that the invite is from */
#define MESH_REFUSAL_ENUM(name, text) MESH_REFUSED_##name,
enum mesh_refusal { MESH_REFUSALS(MESH_REFUSAL_ENUM) MESH_REFUSAL_COUNT };
#undef MESH_REFUSAL_ENUM
const char *mesh_refusal_name(enum mesh_refusal kind);

struct mesh_stats {
    uint64_t n_refused; /* the sum of the kinds */
    uint64_t n_refused_of[MESH_REFUSAL_COUNT];
    uint64_t n_malformed; /* links of members closed for what they sent */
    uint64_t n_lost;      /* links that were up */
};

/* Reads data_dir/trusted, listens and begins to dial. Borrows loop, peers, routes, addresses,
 * secret and identity until closed. Errors: libuv's, with the address; E_FORMAT, E_IO of the file,
 * with its line. */
int mesh_open(uv_loop_t *loop, const struct mesh_options *o, const struct mesh_events *events,
              struct mesh **ret_mesh, struct error *err);
uint16_t mesh_port(const struct mesh *m);
/* An address where a node may be, from discovery: a hint that nobody has checked. Dialled until it
 * is reached or has failed for a while, if its node can become a link at all: it is trusted, or
 * there is a secret, or one of the two is a newcomer. id may be NULL. */
void mesh_learn(struct mesh *m, const struct node_id *id, const struct mesh_address *address);
/* How many static peers have no link yet. */
uint32_t mesh_n_missing(const struct mesh *m);
/* Whether this node belongs to no cluster: it trusts nobody and has no secret. */
bool mesh_is_newcomer(const struct mesh *m);
void mesh_get_stats(const struct mesh *m, struct mesh_stats *ret_stats);
/* Closes links (without link_down) and listener, writes what is unsaved, then calls closed and
 * frees itself. */
void mesh_close(struct mesh *m, void (*closed)(void *arg), void *arg);

/* ---- who belongs to the cluster ---- */

/* Makes a line that lets one node join, once, within valid_s seconds, while this process lives.
 * Errors: E_LIMIT (valid_s is 0 or over a week), E_NOMEM, of the system's random numbers. */
int mesh_invite(struct mesh *m, uint32_t valid_s, char ret_line[MESH_INVITE_LINE_BYTES],
                struct error *err);
/* Uses such a line: dials, checks that the inviter answers, proves the invite. The outcome is a
 * join_result. Errors: E_INVALID (not such a line), E_BUSY (another is being used). */
int mesh_join(struct mesh *m, const char *line, struct error *err);
/* Requests that wait, oldest first. Returns false past the end. */
bool mesh_request_at(const struct mesh *m, uint32_t index, struct mesh_join_request *ret);
/* A person has compared the codes. Errors: E_NOTFOUND, E_BUSY (two requests with that code: deny
 * both). */
int mesh_approve(struct mesh *m, const char *code, struct error *err);
int mesh_deny(struct mesh *m, const char *code, struct error *err);
bool mesh_is_trusted(const struct mesh *m, const struct node_id *id);
/* Never again a member, here and wherever this node's word reaches; closes its link. Errors:
 * E_INVALID (this node itself), E_LIMIT. */
int mesh_revoke(struct mesh *m, const struct node_id *id, struct error *err);

/* ---- links that are up ---- */

/* Sends frames; takes the bytes and leaves the buffer empty. On an error (E_UNAVAILABLE, E_LIMIT
 * when the peer reads too slowly, E_NOMEM) the link closes; link_down follows. A buffer with its
 * error set counts as E_NOMEM or E_LIMIT. */
int mesh_link_send(struct mesh_link *l, struct buf *frames);
/* One CLUSTER frame around data, at most MESH_CLUSTER_BYTES_MAX. Errors: as mesh_link_send. */
int mesh_send_cluster(struct mesh_link *l, const void *data, size_t len);
/* Closes a link; link_down follows. */
void mesh_link_close(struct mesh_link *l, const char *reason);
/* The other's HELLO; its id is that of the key that it has proven. */
const struct mesh_hello *mesh_link_hello(const struct mesh_link *l);
/* What was measured of the path that tensors would take now; 0: not yet. */
struct link_figures mesh_link_figures(const struct mesh_link *l);
/* The same of the path that mesh_take_path gave last; path 0: it has given none since the link
 * came up. rtt_us UINT32_MAX: it leads nowhere any more. */
struct link_figures mesh_link_taken(const struct mesh_link *l);
/* Numeric addresses of both ends. */
const char *mesh_link_local_host(const struct mesh_link *l);
const char *mesh_link_remote_host(const struct mesh_link *l);
uint64_t mesh_link_silent_ms(const struct mesh_link *l);
/* Bytes that wait to be sent. */
size_t mesh_link_queued_bytes(const struct mesh_link *l);
struct mesh_link *mesh_find(const struct mesh *m, const struct node_id *id);
/* Links that are up, in no order; NULL past the end. */
struct mesh_link *mesh_link_at(const struct mesh *m, uint32_t index);

/* ---- paths: the ways between this node and another, for tensors ---- */

struct mesh_path {
    char local[64], remote[64]; /* numeric; link-local ones with the interface of this node */
    char local_interface[MESH_INTERFACE_BYTES], remote_interface[MESH_INTERFACE_BYTES];
    enum device_link_kind local_kind, remote_kind;
    enum mesh_path_status status;
    bool is_route;
    bool is_used;  /* what mesh_tensor_host says */
    bool is_taken; /* what mesh_take_path said last */
    struct link_figures figures;
    uint64_t age_ms; /* since it was measured */
};

/* Returns false past the end, and where nothing is known of that node. */
bool mesh_path_at(const struct mesh *m, const struct node_id *id, uint32_t index,
                  struct mesh_path *ret);
/* Where tensors for that node go: a route that somebody has given, of this node or of the other;
 * else the best path that was measured; else where the link leads. False: there is no link. */
bool mesh_tensor_host(const struct mesh *m, const struct node_id *id, char ret_host[64]);
/* The same for a connection that is made from here: what becomes of this path is told from now on
 * (mesh_link_taken). */
bool mesh_take_path(struct mesh *m, const struct node_id *id, char ret_host[64]);
/* Whether the paths have been tried since the two nodes know each other; true, too, when they never
 * will be. Until then mesh_tensor_host only knows the link. */
bool mesh_paths_are_known(const struct mesh *m, const struct node_id *id);
/* Tensors are about to go there: looks at once whether the path in use still leads anywhere. While
 * it does not answer, mesh_tensor_host says another. */
void mesh_check_path(struct mesh *m, const struct node_id *id);

#endif
