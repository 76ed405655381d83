/* Links between members: who is one already, what they carry, how they end and begin again. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mesh/world.h"

/* Two members, the second dials the first. */
static void open_pair(struct world *w)
{
    trust_each_other(w, 0, 1);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
}

static void test_members(void **state)
{
    struct world *w = *state;
    trust_each_other(w, 0, 1);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    assert_int_equal(mesh_n_missing(w->side[1].mesh), 1);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    assert_int_equal(mesh_n_missing(w->side[1].mesh), 0);
    const struct mesh_hello *hello = mesh_link_hello(w->side[0].link);
    assert_string_equal(hello->name, "side-1");
    assert_int_equal(hello->incarnation, 8);
    assert_int_equal(hello->version, MESH_PROTOCOL_VERSION);
    assert_true(node_id_equal(&hello->id, mesh_identity_id(w->side[1].identity)));
    assert_string_equal(mesh_link_local_host(w->side[0].link), "127.0.0.1");
    assert_int_equal(mesh_link_hello(w->side[1].link)->mesh.port, w->side[0].address.port);
    assert_ptr_equal(mesh_find(w->side[1].mesh, &w->side[0].identity->id), w->side[1].link);
    assert_ptr_equal(mesh_link_at(w->side[1].mesh, 0), w->side[1].link);
    assert_null(mesh_link_at(w->side[1].mesh, 1));
}

/* A message of many megabytes arrives whole, and small ones in order behind it. */
static void test_large_message(void **state)
{
    struct world *w = *state;
    size_t len = 8u << 20;
    open_pair(w);
    char *frame = calloc(1, len);
    struct buf b;
    assert_non_null(frame);
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    mesh_encode_event(&b, frame, len);
    free(frame);
    assert_int_equal(mesh_link_send(w->side[1].link, &b), 0);
    for (int i = 0; i < 100; i++)
        assert_int_equal(mesh_send_cluster(w->side[1].link, "abc", 3), 0);
    RUN_UNTIL(w, w->side[0].n_messages == 101);
    assert_int_equal(w->side[0].bytes, len + 4 + 300);
    RUN_UNTIL(w, mesh_link_queued_bytes(w->side[1].link) == 0);
}

/* Who does not read is let go before memory is. */
static void test_slow_reader(void **state)
{
    struct world *w = *state;
    int rc = 0;
    open_pair(w);
    char *frame = calloc(1, 16u << 20);
    assert_non_null(frame);
    for (int i = 0; i < 10 && rc == 0; i++) {
        struct buf b;
        buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
        mesh_encode_event(&b, frame, 16u << 20);
        rc = mesh_link_send(w->side[1].link, &b); /* the loop does not turn: nothing is read */
    }
    free(frame);
    assert_int_equal(rc, E_LIMIT);
    RUN_UNTIL(w, w->side[1].n_down == 1 && w->side[0].n_down == 1);
    assert_non_null(strstr(w->side[1].reason, "slowly"));
    assert_false(w->side[1].is_closed);
}

/* Both dial each other: in the end there is one link, and both sides mean the same one. */
static void test_mutual_dial(void **state)
{
    struct world *w = *state;
    trust_each_other(w, 0, 1);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    mesh_learn(w->side[0].mesh, &w->side[1].identity->id, &w->side[1].address);
    RUN_UNTIL(w, w->side[0].link != NULL && w->side[1].link != NULL);
    run_ms(w, 1500);
    mesh_send_cluster(w->side[0].link, "x", 1);
    RUN_UNTIL(w, w->side[1].n_messages == 1);
    assert_int_equal(w->side[0].n_up - w->side[0].n_down, 1);
    assert_int_equal(w->side[1].n_up - w->side[1].n_down, 1);
}

static void test_dials_again(void **state)
{
    struct world *w = *state;
    open_pair(w);
    mesh_link_close(w->side[0].link, "a test");
    RUN_UNTIL(w, w->side[0].n_down == 1 && w->side[1].n_down == 1);
    assert_string_equal(w->side[0].reason, "a test");
    assert_false(w->side[0].is_closed);
    assert_true(w->side[1].is_closed);
    RUN_UNTIL(w, w->side[0].n_up == 2 && w->side[1].n_up == 2);
}

/* A node that comes back is linked again, though nobody was told its address: it is remembered. */
static void test_addresses_are_remembered(void **state)
{
    struct world *w = *state;
    open_pair(w);
    run_ms(w, 600);
    close_side(w, 1);
    RUN_UNTIL(w, w->side[0].n_down == 1);
    assert_true(w->side[0].is_closed);
    w->side[1].address.port = 0; /* elsewhere: only it can find the other now */
    open_side(w, 1, (struct side_options){0});
    RUN_UNTIL(w, w->side[0].n_up == 2 && w->side[1].n_up == 2);
    assert_non_null(strstr(trusted_text(w, 1), "127.0.0.1:"));
}

static void test_message_that_is_refused_closes_the_link(void **state)
{
    struct world *w = *state;
    struct mesh_rank_stop stop = {.epoch = 1, .rank = 1};
    struct mesh_stats stats;
    struct buf b;
    open_pair(w);
    buf_init(&b, 1024);
    mesh_encode_rank_stop(&b, &stop);
    mesh_link_send(w->side[1].link, &b);
    RUN_UNTIL(w, w->side[0].n_down == 1);
    assert_string_equal(w->side[0].reason, "not that one");
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_malformed, 1);
    assert_int_equal(stats.n_refused, 0);
}

static void test_cluster_message_has_a_limit(void **state)
{
    struct world *w = *state;
    char *data = calloc(1, MESH_CLUSTER_BYTES_MAX + 1);
    assert_non_null(data);
    open_pair(w);
    assert_int_equal(mesh_send_cluster(w->side[1].link, data, MESH_CLUSTER_BYTES_MAX), 0);
    RUN_UNTIL(w, w->side[0].bytes == MESH_CLUSTER_BYTES_MAX);
    assert_int_equal(mesh_send_cluster(w->side[1].link, data, MESH_CLUSTER_BYTES_MAX + 1), E_LIMIT);
    RUN_UNTIL(w, w->side[1].n_down == 1);
    free(data);
}

static void test_same_secret(void **state)
{
    struct world *w = *state;
    open_side(w, 0, (struct side_options){.secret = "correct horse battery"});
    open_side(w, 1, (struct side_options){.secret = "correct horse battery", .peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    assert_true(mesh_is_trusted(w->side[0].mesh, &w->side[1].identity->id));
    run_ms(w, 300);
    assert_string_equal(trusted_text(w, 0), ""); /* only while the process lives */
}

/* Three nodes that know only one of them: all pairs are linked. */
static void test_members_tell_each_other(void **state)
{
    struct world *w = *state;
    open_side(w, 0, (struct side_options){.secret = "correct horse battery"});
    open_side(w, 1, (struct side_options){.secret = "correct horse battery", .peer = 1});
    open_side(w, 2, (struct side_options){.secret = "correct horse battery", .peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1) && are_linked(w, 0, 2) && are_linked(w, 1, 2));
}

static void test_figures(void **state)
{
    struct world *w = *state;
    open_pair(w);
    RUN_UNTIL(w, w->side[0].figures.rtt_us > 0 && w->side[1].figures.rtt_us > 0);
    assert_true(w->side[0].figures.rtt_us < 100000);
    RUN_UNTIL(w, w->side[0].figures.mbit_s > 0 && w->side[1].figures.mbit_s > 0);
    assert_true(mesh_link_figures(w->side[0].link).mbit_s > 10);
    assert_int_equal(w->side[0].n_messages, 0); /* they are the mesh's own business */
}

/* Its own address is no peer: it is dialled once and then left alone. */
static void test_self(void **state)
{
    struct world *w = *state;
    open_side(w, 0, (struct side_options){0});
    close_side(w, 0);
    open_side(w, 0, (struct side_options){.peer = 1});
    RUN_UNTIL(w, mesh_n_missing(w->side[0].mesh) == 0);
    assert_int_equal(w->side[0].n_up, 0);
}

static void test_address_in_use(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    open_side(w, 0, (struct side_options){0});
    w->side[1].address = w->side[0].address;
    assert_int_equal(try_open(w, 1, (struct side_options){0}, &err), UV_EADDRINUSE);
    assert_non_null(strstr(err.message, "127.0.0.1"));
}

static void test_broken_file(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    char path[128];
    FILE *f = fopen(side_path(&w->side[0], "trusted", path), "w");
    assert_non_null(f);
    fputs("# hello\n\nfriend 12\n", f);
    fclose(f);
    assert_int_equal(try_open(w, 0, (struct side_options){0}, &err), E_FORMAT);
    assert_non_null(strstr(err.message, "/trusted:3: "));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_members),
        TEST(test_large_message),
        TEST(test_slow_reader),
        TEST(test_mutual_dial),
        TEST(test_dials_again),
        TEST(test_addresses_are_remembered),
        TEST(test_message_that_is_refused_closes_the_link),
        TEST(test_cluster_message_has_a_limit),
        TEST(test_same_secret),
        TEST(test_members_tell_each_other),
        TEST(test_figures),
        TEST(test_self),
        TEST(test_address_in_use),
        TEST(test_broken_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
