/* Meshes that talk to each other over loopback, all on one loop. */
#include "mesh/mesh.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TIMEOUT_MS = 20000 };

struct side { /* one mesh and what it has seen */
    struct mesh *mesh;
    struct mesh_link *link; /* the one that is up */
    int n_up, n_down, n_messages;
    char reason[256];
    size_t bytes;
};

struct world {
    uv_loop_t loop;
    uv_timer_t timer; /* the test's own end */
    bool is_late;
    struct side side[3];
    struct mesh_address address[3];
};

static void on_up(void *self, struct mesh_link *link)
{
    struct side *s = self;
    s->n_up++;
    s->link = link;
}

static void on_down(void *self, struct mesh_link *link, const char *reason)
{
    struct side *s = self;
    s->n_down++;
    if (s->link == link)
        s->link = NULL;
    snprintf(s->reason, sizeof(s->reason), "%s", reason);
}

static int on_message(void *self, struct mesh_link *link, const struct mesh_message *m,
                      struct error *err)
{
    struct side *s = self;
    (void)link;
    s->n_messages++;
    s->bytes += m->len;
    return m->type == MESH_RANK_STOP ? error_set(err, E_PROTOCOL, "not that one") : 0;
}

static void on_heartbeat(void *self, struct mesh_heartbeat *ret)
{
    (void)self;
    ret->memory_bytes_free = 1234;
}

static void open_side(struct world *w, int index, uint8_t id, const char *secret,
                      const struct mesh_address *peer)
{
    struct error err = {0};
    struct side *s = &w->side[index];
    struct mesh_options o = {
        .listen = {.host = "127.0.0.1"},
        .n_peers = peer != NULL,
        .peers = peer,
        .secret = secret,
        .secret_len = secret != NULL ? strlen(secret) : 0,
        .self = {.id = {{id}}, .n_cores = 1},
    };
    struct mesh_events events = {.self = s,
                                 .link_up = on_up,
                                 .link_down = on_down,
                                 .message = on_message,
                                 .heartbeat = on_heartbeat};
    snprintf(o.self.name, sizeof(o.self.name), "side-%d", index);
    if (mesh_open(&w->loop, &o, &events, &s->mesh, &err) != 0)
        fail_msg("%s", err.message);
    snprintf(w->address[index].host, sizeof(w->address[index].host), "127.0.0.1");
    w->address[index].port = mesh_port(s->mesh);
}

static void on_late(uv_timer_t *timer)
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

static int set_up(void **state)
{
    struct world *w = calloc(1, sizeof(*w));
    if (w == NULL || uv_loop_init(&w->loop) != 0)
        return -1;
    uv_timer_init(&w->loop, &w->timer);
    w->timer.data = w;
    *state = w;
    return 0;
}

static int tear_down(void **state)
{
    struct world *w = *state;
    for (int i = 0; i < 3; i++)
        if (w->side[i].mesh != NULL)
            mesh_close(w->side[i].mesh, NULL, NULL);
    uv_close((uv_handle_t *)&w->timer, NULL);
    uv_run(&w->loop, UV_RUN_DEFAULT);
    int rc = uv_loop_close(&w->loop);
    free(w);
    return rc;
}

static void test_link_and_heartbeat(void **state)
{
    struct world *w = *state;
    open_side(w, 0, 1, NULL, NULL);
    open_side(w, 1, 2, NULL, &w->address[0]);
    assert_int_equal(mesh_n_missing(w->side[1].mesh), 1);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    assert_int_equal(mesh_n_missing(w->side[1].mesh), 0);
    assert_string_equal(mesh_link_hello(w->side[0].link)->name, "side-1");
    assert_string_equal(mesh_link_local_host(w->side[0].link), "127.0.0.1");
    assert_int_equal(mesh_link_hello(w->side[1].link)->mesh.port, w->address[0].port);
    struct node_id id = {{1}};
    assert_ptr_equal(mesh_find(w->side[1].mesh, &id), w->side[1].link);
    RUN_UNTIL(w, mesh_link_heartbeat(w->side[0].link)->memory_bytes_free == 1234);
}

/* A message of many megabytes arrives whole. */
static void test_large_message(void **state)
{
    struct world *w = *state;
    size_t len = 8u << 20;
    open_side(w, 0, 1, NULL, NULL);
    open_side(w, 1, 2, NULL, &w->address[0]);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    char *frame = calloc(1, len);
    struct buf b;
    assert_non_null(frame);
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_event(&b, frame, len);
    free(frame);
    assert_int_equal(mesh_link_send(w->side[1].link, &b), 0);
    RUN_UNTIL(w, w->side[0].n_messages == 1);
    assert_int_equal(w->side[0].bytes, len + 4);
}

/* Both dial each other: in the end there is one link, and both sides mean the same one. */
static void test_mutual_dial(void **state)
{
    struct world *w = *state;
    open_side(w, 0, 9, NULL, NULL);
    open_side(w, 1, 2, NULL, &w->address[0]);
    struct node_id other = {{2}};
    mesh_learn(w->side[0].mesh, &other, &w->address[1]);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    struct buf b;
    buf_init(&b, 1024);
    mesh_encode_cancel(&b, 1);
    mesh_link_send(w->side[0].link, &b);
    RUN_UNTIL(w, w->side[1].n_messages == 1);
    assert_int_equal(w->side[0].n_up - w->side[0].n_down, 1);
    assert_int_equal(w->side[1].n_up - w->side[1].n_down, 1);
}

static void test_dials_again(void **state)
{
    struct world *w = *state;
    open_side(w, 0, 1, NULL, NULL);
    open_side(w, 1, 2, NULL, &w->address[0]);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    mesh_link_close(w->side[0].link, "a test");
    RUN_UNTIL(w, w->side[0].n_down == 1 && w->side[1].n_down == 1);
    assert_string_equal(w->side[0].reason, "a test");
    RUN_UNTIL(w, w->side[0].n_up == 2 && w->side[1].n_up == 2);
}

static void test_message_that_is_refused_closes_the_link(void **state)
{
    struct world *w = *state;
    struct mesh_stats stats;
    struct buf b;
    open_side(w, 0, 1, NULL, NULL);
    open_side(w, 1, 2, NULL, &w->address[0]);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    buf_init(&b, 1024);
    mesh_encode_rank_stop(&b, 1, 1);
    mesh_link_send(w->side[1].link, &b);
    RUN_UNTIL(w, w->side[0].n_down == 1);
    assert_string_equal(w->side[0].reason, "not that one");
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_malformed, 1);
}

static void test_same_secret(void **state)
{
    struct world *w = *state;
    open_side(w, 0, 1, "correct horse battery", NULL);
    open_side(w, 1, 2, "correct horse battery", &w->address[0]);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
}

static uint64_t n_refused(const struct side *s)
{
    struct mesh_stats stats;
    mesh_get_stats(s->mesh, &stats);
    return stats.n_refused;
}

static void test_another_secret(void **state)
{
    struct world *w = *state;
    open_side(w, 0, 1, "correct horse battery", NULL);
    open_side(w, 1, 2, "correct horse buttery", &w->address[0]);
    RUN_UNTIL(w, n_refused(&w->side[0]) >= 2);
    assert_int_equal(w->side[0].n_up + w->side[1].n_up, 0);
}

static void test_no_secret(void **state)
{
    struct world *w = *state;
    open_side(w, 0, 1, "correct horse battery", NULL);
    open_side(w, 1, 2, NULL, &w->address[0]);
    RUN_UNTIL(w, n_refused(&w->side[0]) >= 2);
    assert_int_equal(w->side[0].n_up, 0);
}

/* Its own address is no peer: it is dialled once and then left alone. */
static void test_self(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    open_side(w, 0, 1, NULL, NULL);
    open_side(w, 1, 1, NULL, &w->address[0]); /* the same id */
    RUN_UNTIL(w, mesh_n_missing(w->side[1].mesh) == 0);
    assert_int_equal(w->side[0].n_up + w->side[1].n_up, 0);
    (void)err;
}

static void test_address_in_use(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    struct mesh *second = NULL;
    open_side(w, 0, 1, NULL, NULL);
    struct mesh_options o = {.listen = w->address[0], .self = {.id = {{2}}}};
    struct mesh_events events = {.self = &w->side[1], .heartbeat = on_heartbeat};
    assert_int_equal(mesh_open(&w->loop, &o, &events, &second, &err), UV_EADDRINUSE);
    assert_non_null(strstr(err.message, "127.0.0.1"));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_link_and_heartbeat),
        TEST(test_large_message),
        TEST(test_mutual_dial),
        TEST(test_dials_again),
        TEST(test_message_that_is_refused_closes_the_link),
        TEST(test_same_secret),
        TEST(test_another_secret),
        TEST(test_no_secret),
        TEST(test_self),
        TEST(test_address_in_use),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
