/* Nodes that talk over loopback, all on one loop, each with its own data folder: for the tests of
 * the mesh. Include after cmocka.h. */
#ifndef TESTS_UNIT_MESH_WORLD_H
#define TESTS_UNIT_MESH_WORLD_H

#include "mesh/identity.h"
#include "mesh/mesh.h"
#include "mesh/text.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { TIMEOUT_MS = 20000, SIDES = 5 };

struct side { /* one node and what it has seen */
    char dir[64];
    struct mesh_identity *identity;
    struct mesh *mesh;
    struct mesh_address address;
    struct mesh_link *link; /* the last that came up and is still up */
    int n_up, n_down, n_messages, n_requests, n_results, n_figures;
    char reason[256];
    bool is_closed;
    size_t bytes;
    struct mesh_join_request request;
    struct mesh_join_result result;
    struct link_figures figures;
    enum mesh_type types[8]; /* of its first messages */
    bool is_busy;
};

struct world {
    uv_loop_t loop;
    uv_timer_t timer; /* the test's own end */
    bool is_late;
    int n_closing;
    struct side side[SIDES];
};

struct side_options {
    const char *secret;
    int peer; /* 1 + the side to dial, 0: none */
    bool is_adoptable, is_closed;
    const struct mesh_address *peer_address; /* in the place of peer */
    const char *host;                        /* to listen on; NULL: 127.0.0.1 */
    const struct mesh_addresses *addresses;
    const struct mesh_route *route;
};

static inline void on_up(void *self, struct mesh_link *link)
{
    struct side *s = self;
    s->n_up++;
    s->link = link;
}

static inline void on_down(void *self, struct mesh_link *link, const char *reason, bool is_closed)
{
    struct side *s = self;
    s->n_down++;
    if (s->link == link)
        s->link = NULL;
    s->is_closed = is_closed;
    snprintf(s->reason, sizeof(s->reason), "%s", reason);
}

static inline int on_message(void *self, struct mesh_link *link, const struct mesh_message *m,
                             struct error *err)
{
    struct side *s = self;
    (void)link;
    if (s->n_messages < 8)
        s->types[s->n_messages] = m->type;
    s->n_messages++;
    s->bytes += m->len;
    return m->type == MESH_RANK_STOP ? error_set(err, E_PROTOCOL, "not that one") : 0;
}

static inline void on_requested(void *self, const struct mesh_join_request *r)
{
    struct side *s = self;
    s->n_requests++;
    s->request = *r;
}

static inline void on_result(void *self, const struct mesh_join_result *r)
{
    struct side *s = self;
    s->n_results++;
    s->result = *r;
}

static inline void on_figures(void *self, struct mesh_link *link, const struct link_figures *f)
{
    struct side *s = self;
    (void)link;
    s->n_figures++;
    s->figures = *f;
}

static inline bool on_busy_asked(void *self, const struct node_id *id)
{
    struct side *s = self;
    (void)id;
    return s->is_busy;
}

static inline int try_open(struct world *w, int index, struct side_options so, struct error *err)
{
    struct side *s = &w->side[index];
    struct mesh_options o = {
        .listen = {.port = s->address.port},
        .n_peers = so.peer > 0 || so.peer_address != NULL,
        .peers = so.peer > 0 ? &w->side[so.peer - 1].address : so.peer_address,
        .addresses = so.addresses,
        .n_routes = so.route != NULL,
        .routes = so.route,
        .secret = so.secret,
        .secret_len = so.secret != NULL ? strlen(so.secret) : 0,
        .identity = s->identity,
        .data_dir = s->dir,
        .is_adoptable = so.is_adoptable,
        .is_closed = so.is_closed,
        .self = {.n_cores = 1, .incarnation = (uint64_t)index + 7},
    };
    struct mesh_events events = {.self = s,
                                 .link_up = on_up,
                                 .link_down = on_down,
                                 .message = on_message,
                                 .link_figures = on_figures,
                                 .is_busy = on_busy_asked,
                                 .join_requested = on_requested,
                                 .join_result = on_result};
    snprintf(o.self.name, sizeof(o.self.name), "side-%d", index);
    snprintf(o.listen.host, sizeof(o.listen.host), "%s", so.host != NULL ? so.host : "127.0.0.1");
    return mesh_open(&w->loop, &o, &events, &s->mesh, err);
}

static inline void open_side(struct world *w, int index, struct side_options so)
{
    struct error err = {0};
    struct side *s = &w->side[index];
    if (try_open(w, index, so, &err) != 0)
        fail_msg("%s", err.message);
    snprintf(s->address.host, sizeof(s->address.host), "127.0.0.1");
    s->address.port = mesh_port(s->mesh);
}

static inline void on_late(uv_timer_t *timer)
{
    struct world *w = timer->data;
    w->is_late = true;
}

/* Turns the loop until the condition holds. */
#define RUN_UNTIL(w, condition)                                                                    \
    do {                                                                                           \
        uv_timer_start(&(w)->timer, on_late, TIMEOUT_MS, 0);                                       \
        (w)->is_late = false;                                                                      \
        while (!(condition) && !(w)->is_late)                                                      \
            uv_run(&(w)->loop, UV_RUN_ONCE);                                                       \
        if (!(condition))                                                                          \
            fail_msg("not in time: %s", #condition);                                               \
    } while (0)

/* Turns it for so long. */
static inline void run_ms(struct world *w, uint64_t ms)
{
    uv_timer_start(&w->timer, on_late, ms, 0);
    w->is_late = false;
    while (!w->is_late)
        uv_run(&w->loop, UV_RUN_ONCE);
}

static inline void on_side_closed(void *arg)
{
    struct world *w = arg;
    w->n_closing--;
}

static inline void close_side(struct world *w, int index)
{
    struct side *s = &w->side[index];
    w->n_closing++;
    mesh_close(s->mesh, on_side_closed, w);
    s->mesh = NULL;
    s->link = NULL;
    RUN_UNTIL(w, w->n_closing == 0);
}

/* Which of two sides has the lower id. */
static inline int lower_side(const struct world *w, int a, int b)
{
    return node_id_compare(&w->side[a].identity->id, &w->side[b].identity->id) < 0 ? a : b;
}

static inline char *side_path(const struct side *s, const char *name, char path[128])
{
    snprintf(path, 128, "%.63s/%.32s", s->dir, name);
    return path;
}

/* Writes into its trusted file that a knows b. Before it is opened. */
static inline void trust_side(struct world *w, int a, int b)
{
    char path[128], key[65];
    FILE *f = fopen(side_path(&w->side[a], "trusted", path), "a");
    assert_non_null(f);
    hex_format(w->side[b].identity->key, 32, key);
    fprintf(f, "trusted %s 2026-01-31 - side-%d\n", key, b);
    fclose(f);
}

static inline void trust_each_other(struct world *w, int a, int b)
{
    trust_side(w, a, b);
    trust_side(w, b, a);
}

/* What is in its trusted file. */
static inline const char *trusted_text(struct world *w, int index)
{
    static char text[4096];
    char path[128];
    FILE *f = fopen(side_path(&w->side[index], "trusted", path), "r");
    size_t n = f != NULL ? fread(text, 1, sizeof(text) - 1, f) : 0;
    text[n] = '\0';
    if (f != NULL)
        fclose(f);
    return text;
}

static inline bool has_link(struct world *w, int a, int b)
{
    struct side *s = &w->side[a];
    return s->mesh != NULL && mesh_find(s->mesh, &w->side[b].identity->id) != NULL;
}

/* Both ends say so. */
static inline bool are_linked(struct world *w, int a, int b)
{
    return has_link(w, a, b) && has_link(w, b, a);
}

static inline uint64_t n_refused(struct world *w, int index, enum mesh_refusal kind)
{
    struct mesh_stats stats;
    mesh_get_stats(w->side[index].mesh, &stats);
    return stats.n_refused_of[kind];
}

static inline int set_up(void **state)
{
    struct error err = {0};
    signal(SIGPIPE, SIG_IGN);
    struct world *w = calloc(1, sizeof(*w));
    if (w == NULL || uv_loop_init(&w->loop) != 0)
        return -1;
    uv_timer_init(&w->loop, &w->timer);
    w->timer.data = w;
    for (int i = 0; i < SIDES; i++) {
        struct side *s = &w->side[i];
        snprintf(s->dir, sizeof(s->dir), "/tmp/shoal-mesh-XXXXXX");
        if (mkdtemp(s->dir) == NULL || mesh_identity_load(s->dir, &s->identity, &err) != 0)
            return -1;
    }
    *state = w;
    return 0;
}

static inline int tear_down(void **state)
{
    struct world *w = *state;
    char path[128];
    for (int i = 0; i < SIDES; i++)
        if (w->side[i].mesh != NULL)
            mesh_close(w->side[i].mesh, NULL, NULL);
    uv_close((uv_handle_t *)&w->timer, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&w->loop);
    for (int i = 0; i < SIDES; i++) {
        mesh_identity_free(w->side[i].identity);
        unlink(side_path(&w->side[i], "identity.pem", path));
        unlink(side_path(&w->side[i], "trusted", path));
        rmdir(w->side[i].dir);
    }
    free(w);
    return rc;
}

#endif
