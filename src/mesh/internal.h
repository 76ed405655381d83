/*
 * Shared by the files of the mesh. Nobody else includes it.
 *
 *   mesh.c       open, close, listen, tick: the set of links
 *   dial.c       addresses to keep links to, back-off
 *   link.c       one link: socket, TLS, frames
 *   link_send.c  its queue
 *   greeting.c   from TLS to member: who is let in, and how
 *   pairing.c    strangers and newcomers that wait for people
 *   members.c    trusted keys: table, file, what members tell each other
 *   invite.c     invites given and used; proofs
 *   measure.c    round trip and bandwidth of one connection
 *   interfaces.c addresses of this node
 *   paths.c      the ways to another node: when they are measured, which is best
 *   paths_list.c which there are
 *   paths_said.c what the two nodes say of them
 *   probe.c      measuring one of them
 *   strangers.c  what was refused: counted, logged once
 */
#ifndef SHOAL_MESH_INTERNAL_H
#define SHOAL_MESH_INTERNAL_H

#include "mesh/channel.h"
#include "mesh/text.h"

enum {
    LINK_READ_BYTES = 64 << 10,
    LINK_FLYING_BYTES_MAX = 256 << 10,  /* encrypted and not yet taken by the kernel */
    LINK_STRANGER_QUEUE_MAX = 64 << 10, /* a stranger that does not read is no loss */
    HALF_OPEN_MAX = 64,                 /* connections that have not shown yet who they are */
    HALF_OPEN_ADDRESS_MAX = 32,         /* of them from one address */
    ACCEPTED_PER_SECOND = 200,
    REQUESTS_ADDRESS_MAX = 4,
    PINGS = 8,
    LINK_LANES =
        2, /* 0: what must not wait; 1: what may be long, and must not keep others waiting */
    LINK_PART_FLYING_BYTES_MAX = 64 << 10, /* while more than this is under way lane 1 waits */
    PROBE_FRAME_BYTES_MAX = MESH_BULK_FRAME_BYTES + 64,
    INTERFACES_MAX = 4 * MESH_ADDRESSES_MAX, /* addresses that are looked at */
};

struct dial { /* an address to keep a link to */
    struct mesh_address address;
    bool is_static;
    bool is_self; /* it turned out to be this node */
    bool has_id;
    bool is_known; /* id was proven by a handshake or told by a member; else it is a hint */
    struct node_id id;
    struct mesh_link *link; /* the attempt or link under way, NULL */
    uint64_t backoff_ms, next_ms;
    uint32_t n_failed;
};

struct invite { /* given out by this node */
    bool is_given;
    uint8_t token[16];
    uint64_t until_ms, until_wall_ms; /* whichever comes first: clocks are set, machines sleep */
    bool is_used;
    struct node_id used_by;
};

struct denial { /* a key that a person has said no to, or that nobody has answered */
    struct node_id id;
    uint64_t until_ms;
};

struct noted { /* a refusal that was logged */
    char host[64];
    enum mesh_refusal kind;
    uint64_t at_ms;
};

struct joining { /* the invite that is being used here */
    bool is_active;
    struct invite_line line;
    struct mesh_link *link; /* the one whose other end has proven to be the inviter */
    uint32_t n_links;
    char reason[ERROR_MESSAGE_BYTES]; /* of the last failure */
};

struct own_address {
    struct mesh_interface is;
    uint8_t family; /* AF_INET, AF_INET6 */
    uint8_t bytes[16], prefix_bits;
    bool is_link_local;
};

struct path {
    struct mesh_path is;
    bool is_due;  /* in the round that is under way */
    bool is_link; /* the only one, and the link's own: it has the link's figures */
    uint64_t measured_ms;
};

struct pair { /* this node and another one that it has or had a link to */
    struct pair *next;
    struct node_id id;
    uint16_t port; /* of the other's mesh */
    struct mesh_addresses theirs;
    bool has_theirs;
    uint32_t n_paths, best; /* n_paths: none is */
    struct path path[MESH_PATHS_MAX];
    bool has_route, has_their_route, is_route_noted, is_route_good;
    bool is_their_route_tried;
    struct path route, their_route;
    uint64_t round_ms, check_ms; /* when the next begins */
    uint64_t rounded_ms;         /* when the last full one ended */
    bool is_known;               /* a round has ended, here or there */
    bool is_forced;              /* the next is for a reason, not for the time that has passed */
    bool is_swapped;             /* the higher id tries */
    uint64_t doubt_ms; /* since when an answer of the best path is waited for; 0: it is not */
    bool is_in_round, is_quick; /* only the round trip of the best */
    char taken[64];             /* what mesh_take_path said last; "": nothing */
    bool is_news;               /* figures may have changed and have not been told */
};

struct probe {              /* the one that is under way */
    struct mesh_link *link; /* NULL: none */
    struct node_id id;
    char remote[64];
    bool is_quick, is_route;
    enum { PROBE_PINGS, PROBE_WARM, PROBE_FORTH, PROBE_BACK } stage;
    uint32_t n_pings;
    uint64_t since_ns;
    uint32_t burst_bytes;
    struct link_figures figures;
};

struct mesh {
    uv_loop_t *loop;
    struct mesh_options options;
    struct mesh_events events;
    uint8_t secret_key[32]; /* derived from the secret */
    char data_dir[4000];
    SSL_CTX *context;
    uv_tcp_t listener;
    uv_timer_t timer; /* one tick for silence, greetings, pings and dials */
    uint64_t tick_ms;
    uint16_t port;
    struct mesh_link *links;
    uint32_t n_links;
    struct dial dials[2 * LIMIT_PEERS];
    uint32_t n_dials;
    struct trust trust;
    bool is_trust_dirty;
    uv_work_t save; /* writes the file in the thread pool */
    bool is_saving, has_save_failed;
    struct buf save_text;
    char save_path[4096];
    struct error save_error;
    struct invite invites[MESH_INVITES_MAX];
    uint32_t n_invites; /* ever given; the slot is this modulo the limit */
    struct joining joining;
    struct denial denials[MESH_REQUESTS_MAX];
    uint32_t n_denials;
    uint32_t n_accepted; /* in the second that began at accepted_ms */
    uint64_t accepted_ms;
    uint32_t request_credit; /* how many requests may begin now */
    uint64_t request_credit_ms;
    uint32_t n_broken_off; /* since broken_off_ms */
    uint64_t broken_off_ms;
    struct noted noted[64];
    struct own_address own[MESH_ADDRESSES_MAX];
    uint32_t n_own;
    uint64_t own_ms;     /* when they were looked at */
    bool is_own_to_come; /* there are addresses that cannot be used yet */
    struct pair *pairs;
    uint32_t n_pairs;
    struct probe probe;
    uv_timer_t probe_timer; /* the next probe */
    struct mesh_stats stats;
    bool is_closing;
    uint32_t n_handles; /* that must be closed before the mesh is freed, links included */
    void (*closed)(void *arg);
    void *closed_arg;
    char read_bytes[LINK_READ_BYTES];  /* what one read brings; used up before the next */
    char plain_bytes[LINK_READ_BYTES]; /* and what TLS makes of it */
};

enum link_phase { /* in the order of a life */
                  LINK_CONNECTING,
                  LINK_TLS,
                  LINK_GREETING,
                  LINK_ASKING,  /* people are to decide */
                  LINK_PROBING, /* in the place of UP: a probe is no link */
                  LINK_UP,
                  LINK_CLOSING,
};

struct chunk { /* whole frames that wait to be sent */
    struct chunk *next;
    char *data;
    size_t len, offset;
};

struct lane {
    struct chunk *first, *last;
};

struct pairing { /* a request to join, either way; exists in phase ASKING */
    struct mesh_join_commit theirs;
    uint8_t nonce[32];
    bool has_commit, has_code, is_announced, is_over;
    bool accepted_here, accepted_there;
    struct mesh_join_request request; /* for people */
    uint64_t since_ms;
};

struct measure {
    uint64_t ping_number, ping_sent_ns; /* 0: none under way */
    uint64_t ping_due_ms;
    uint32_t rtt_us[PINGS];
    uint32_t n_rtt;
    struct link_figures told, told_taken; /* by the last event */
    uint64_t bulk_due_ms, bulk_since_ms;  /* since: 0 when no burst goes out */
    uint32_t bulk_burst, bulk_sent_bytes;
    uint32_t bulk_bytes_max, bulk_ms_max, bulk_frame_bytes;
    uint32_t in_burst, in_bytes; /* the burst that comes in */
    uint64_t in_first_ns;
};

struct mesh_link {
    struct mesh *mesh;
    struct mesh_link *next;
    uv_tcp_t tcp;
    uv_connect_t connect;
    enum link_phase phase;
    bool is_dialled;
    bool is_joining; /* dialled to use an invite */
    bool is_probe;
    bool is_second;    /* given up for another link to the same node */
    bool is_member;    /* decided; HELLO was sent */
    bool is_announced; /* link_up was called */
    bool is_closed;    /* by the other process */
    bool is_refused;   /* counted as such */
    bool has_key, has_greeting, has_proof;
    struct channel channel;
    uint8_t key[32];
    struct mesh_greeting told, greeting; /* ours, theirs */
    struct mesh_hello hello;
    struct pairing *pairing;
    struct link_figures figures;
    struct measure measure;
    uint64_t opened_ms, heard_ms;
    char local_host[64], remote_host[64];
    uint16_t remote_port;
    struct buf in;    /* the beginning of a frame */
    struct buf parts; /* of a frame that comes in pieces */
    struct lane lanes[LINK_LANES];
    size_t queued_bytes, flying_bytes;
    char reason[ERROR_MESSAGE_BYTES];
};

/* ---- link.c ---- */

/* A link with its handle initialised, in the mesh's list. NULL when out of memory. */
struct mesh_link *link_new(struct mesh *m, bool is_dialled);
/* Starts to connect; the outcome comes later. Errors: libuv's; the link is then closing. */
int link_dial(struct mesh_link *l, const struct mesh_address *address);
/* The connection stands: begins TLS. */
void link_start(struct mesh_link *l);
void link_tick(struct mesh_link *l, uint64_t now_ms);
/* A read, write or connect has failed: closes, and notes whether that was the other process. */
void link_close_by_error(struct mesh_link *l, int status);
/* Gives what TLS has put out to the kernel. */
void link_flush(struct mesh_link *l);
/* Whether both ends know the messages of this version. */
static inline bool link_speaks(const struct mesh_link *l, uint32_t version)
{
    return l->hello.version >= version;
}
/* Forgets what was not sent. */
void link_drop_queue(struct mesh_link *l);
/* "name" or "address:port", for logs. */
const char *link_label(const struct mesh_link *l, char text[TEXT_ADDRESS_BYTES]);
/* A frame of the connection's beginning. Its buffer is on the stack of the caller's macro. */
#define LINK_SEND(l, encode, ...)                                                                  \
    do {                                                                                           \
        struct buf link_send_buf;                                                                  \
        buf_init(&link_send_buf, MESH_STRANGER_BYTES_MAX + MESH_HEADER_BYTES);                     \
        encode(&link_send_buf, ##__VA_ARGS__);                                                     \
        mesh_link_send(l, &link_send_buf);                                                         \
    } while (0)

/* ---- greeting.c ---- */

/* The handshake is over: looks at the key and greets. */
void greeting_start(struct mesh_link *l);
/* Any message before the link is up. Errors: the link is to be closed with it. */
int greeting_take(struct mesh_link *l, const struct mesh_message *m, struct error *err);
/* The other node is a member: sends HELLO. */
void greeting_become_member(struct mesh_link *l);

/* ---- pairing.c ---- */

void pairing_start(struct mesh_link *l);
int pairing_take(struct mesh_link *l, const struct mesh_message *m, struct error *err);
void pairing_tick(struct mesh_link *l, uint64_t now_ms);
/* The link is closing: the request ends with it. */
void pairing_end(struct mesh_link *l);

/* ---- members.c ---- */

int members_load(struct mesh *m, struct error *err);
/* Trusts a key from now on; tells the other members but those behind `source`. Errors: E_LIMIT,
 * E_UNAVAILABLE (revoked). */
int members_add(struct mesh *m, const uint8_t key[32], const char *name, bool is_temporary);
bool members_trust_key(struct mesh *m, const struct node_id *id);
bool members_is_revoked(struct mesh *m, const struct node_id *id);
/* A member's link is up: notes its name and address, tells it of all keys. */
void members_link_up(struct mesh_link *l);
int members_take_trust(struct mesh_link *l, const struct mesh_message *m, struct error *err);
/* Saves what has changed. At once and in this thread when is_last. */
void members_save(struct mesh *m, bool is_last);
/* The same for all members once they have heard of each other. */
void members_get_tag(struct mesh *m, uint8_t ret_tag[8]);
/* ---- invite.c ---- */

/* Finds the invite that made this proof. Returns NULL and says why in ret_refusal when there is
 * none that still works for this key. */
struct invite *members_find_invite(struct mesh_link *l, const uint8_t proof[32],
                                   enum mesh_refusal *ret_refusal);
/* The outcome of mesh_join; link may be NULL. */
void members_end_joining(struct mesh *m, const struct mesh_link *l, int code, const char *reason);
/* What a side proves: that it knows the secret or the token, on this connection, in this role. */
int members_compute_proof(const struct mesh_link *l, const void *token, size_t len, bool is_dialler,
                          uint8_t ret_mac[32]);

/* ---- measure.c ---- */

void measure_start(struct mesh_link *l);
void measure_ping(struct mesh_link *l);
/* Sends at most so many bytes, for at most so long. */
void measure_burst(struct mesh_link *l, uint32_t bytes_max, uint32_t ms_max, uint32_t frame_bytes);
/* Tells the owner figures that differ much from those it was told. */
void measure_publish(struct mesh_link *l);
void measure_tick(struct mesh_link *l, uint64_t now_ms);
/* The link has taken bytes: the next part of a burst may go. */
void measure_continue(struct mesh_link *l);
int measure_take(struct mesh_link *l, const struct mesh_message *m, struct error *err);

/* ---- interfaces.c ---- */

/* Looks at the addresses of this node. Returns whether they have changed. */
bool interfaces_refresh(struct mesh *m);
const struct own_address *interfaces_find(const struct mesh *m, const char *host);
/* Which of ours is in the same network; NULL: none. */
const struct own_address *interfaces_find_near(const struct mesh *m, const char *host);
/* The host without "%interface". */
void interfaces_strip(const char *host, char ret[64]);
/* Whether two hosts are the same address, whatever interface is said with them. */
bool interfaces_is_same(const char *a, const char *b);
bool interfaces_is_link_local(const char *host);

/* ---- paths.c ---- */

void paths_link_up(struct mesh_link *l);
void paths_on_tick(struct mesh *m, uint64_t now_ms);
void paths_on_timer(uv_timer_t *timer);
void paths_done(struct mesh *m);
/* A probe has ended. */
void paths_take_result(struct mesh *m, const struct probe *result, const char *local,
                       bool is_reached);
/* Of the path that tensors would take; those of the link itself while there is no better. */
struct link_figures paths_figures(const struct mesh_link *l);
/* Of the one that they took last. */
struct link_figures paths_taken_figures(const struct mesh_link *l);
/* The link's own round trip has changed. */
void paths_note_rtt(struct mesh_link *l);

struct pair *paths_find_pair(const struct mesh *m, const struct node_id *id);
/* Whether this side tries the paths. */
bool paths_is_prober(const struct mesh *m, const struct pair *p);
void paths_want_round(struct mesh *m, struct pair *p, uint64_t in_ms);
/* Looks again which path is best. */
void paths_choose(struct mesh *m, struct pair *p);
/* Logs it. */
void paths_note_best(const struct mesh *m, const struct pair *p);
/* The one that tensors take; NULL: none is known. */
const struct path *paths_find_used(const struct pair *p);
/* Index of the cheapest path but one; n_paths: there is none. */
uint32_t paths_find_best(const struct pair *p, uint32_t but);
/* A few pings over what is in use. */
void paths_begin_check(struct mesh *m, struct pair *p, const struct mesh_link *l);
/* Does what is due now, or so soon. */
void paths_go_on(struct mesh *m);
void paths_schedule(struct mesh *m, uint64_t in_ms);

/* ---- paths_list.c ---- */

/* Lists them anew, all to be tried: addresses in a network of ours first, then those behind
 * routers, then link-local ones, which need an interface and mostly repeat the others. What is
 * known of a path is kept. */
void paths_list(struct mesh *m, struct pair *p, const struct mesh_link *l);

/* ---- paths_said.c ---- */

void paths_send(struct mesh *m, const struct pair *p);
void paths_send_addresses(struct mesh_link *l);
int paths_take(struct mesh_link *l, const struct mesh_message *m, struct error *err);

/* ---- probe.c ---- */

/* Begins to measure a path; paths_take_result follows. False: it cannot begin. */
bool probe_start(struct mesh *m, const struct pair *pair, const struct path *path, bool is_quick);
/* The greeting is over, on either side. */
void probe_greeted(struct mesh_link *l);
int probe_take(struct mesh_link *l, const struct mesh_message *m, struct error *err);
/* A pong has come, or the other side has said how fast a burst was, or has sent one. */
void probe_on_pong(struct mesh_link *l, uint32_t rtt_us);
void probe_on_burst(struct mesh_link *l, float mbit_s);
void probe_tick(struct mesh_link *l, uint64_t now_ms);
void probe_link_gone(struct mesh_link *l);

/* ---- strangers.c ---- */

/* Counts and logs a refusal, tells the other side its kind where that is possible, and closes. */
void link_refuse(struct mesh_link *l, enum mesh_refusal kind, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Only counts and logs. */
void strangers_note(struct mesh *m, const char *host, uint16_t port, enum mesh_refusal kind,
                    const char *detail);

/* ---- dial.c ---- */

struct dial *dial_add(struct mesh *m, const struct mesh_address *address);
/* mesh_learn; is_known: a member says so. */
void dial_learn(struct mesh *m, const struct node_id *id, const struct mesh_address *address,
                bool is_known);
struct dial *dial_find(struct mesh *m, const struct mesh_link *l);
void dial_tick(struct mesh *m, uint64_t now_ms);
/* The link is about to be freed. */
void dial_link_gone(struct mesh *m, struct mesh_link *l);
/* The key behind an address is known. */
void dial_note_key(struct mesh *m, const struct mesh_link *l);
/* The node has become trusted: no need to wait. */
void dial_hurry(struct mesh *m, const struct node_id *id);

/* ---- mesh.c ---- */

/* Called by the link when it is a member's: the one before it ends. */
void mesh_link_ready(struct mesh *m, struct mesh_link *l);
/* Called by the link once its handle is closed; frees it. */
void mesh_link_gone(struct mesh *m, struct mesh_link *l);
void mesh_handle_closed(struct mesh *m);

#endif
