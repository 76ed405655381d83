/* Of a pair of nodes that dial each other one link comes up, once; a long frame holds up nobody. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mesh/world.h"

/* ---- a cable that lets nothing through until it is told to ---- */

struct cable {
    uv_loop_t *loop;
    uv_tcp_t listener, ends[2];
    uv_connect_t connect;
    uv_timer_t timer;
    struct mesh_address address, target;
    bool is_connected, is_open, is_asked;
};

struct cable_write {
    uv_write_t request;
    char bytes[65536];
};

static void cable_on_written(uv_write_t *request, int status)
{
    (void)status;
    free(request);
}

static void cable_on_alloc(uv_handle_t *handle, size_t size, uv_buf_t *ret)
{
    struct cable_write *w = malloc(sizeof(*w));
    (void)handle, (void)size;
    assert_non_null(w);
    *ret = uv_buf_init(w->bytes, sizeof(w->bytes));
}

static void cable_close_end(uv_tcp_t *end)
{
    if (!uv_is_closing((uv_handle_t *)end))
        uv_close((uv_handle_t *)end, NULL);
}

static void cable_on_read(uv_stream_t *stream, ssize_t n, const uv_buf_t *span)
{
    struct cable *c = stream->data;
    uv_tcp_t *other = stream == (uv_stream_t *)&c->ends[0] ? &c->ends[1] : &c->ends[0];
    struct cable_write *w =
        span->base != NULL ? (void *)(span->base - offsetof(struct cable_write, bytes)) : NULL;
    if (n > 0) {
        uv_buf_t out = uv_buf_init(w->bytes, (unsigned)n);
        if (uv_write(&w->request, (uv_stream_t *)other, &out, 1, cable_on_written) != 0)
            free(w);
        return;
    }
    free(w);
    if (n < 0) {
        cable_close_end(&c->ends[0]);
        cable_close_end(&c->ends[1]);
    }
}

static void cable_try(struct cable *c)
{
    if (!c->is_connected || !c->is_asked || c->is_open)
        return;
    c->is_open = true;
    for (int i = 0; i < 2; i++)
        if (!uv_is_closing((uv_handle_t *)&c->ends[i]))
            uv_read_start((uv_stream_t *)&c->ends[i], cable_on_alloc, cable_on_read);
}

static void cable_on_connected(uv_connect_t *request, int status)
{
    struct cable *c = request->data;
    c->is_connected = status == 0;
    cable_try(c);
}

static void cable_on_connection(uv_stream_t *listener, int status)
{
    struct cable *c = listener->data;
    struct sockaddr_in a;
    assert_int_equal(status, 0);
    if (c->is_connected || uv_accept(listener, (uv_stream_t *)&c->ends[0]) != 0)
        return; /* one is enough; others are left waiting */
    uv_ip4_addr(c->target.host, c->target.port, &a);
    c->connect.data = c;
    uv_tcp_connect(&c->connect, &c->ends[1], (struct sockaddr *)&a, cable_on_connected);
}

static void cable_on_timer(uv_timer_t *timer)
{
    struct cable *c = timer->data;
    c->is_asked = true;
    cable_try(c);
}

static void cable_open(struct cable *c, struct world *w, const struct mesh_address *target)
{
    struct sockaddr_in a;
    int len = sizeof(a);
    memset(c, 0, sizeof(*c));
    c->loop = &w->loop;
    c->target = *target;
    uv_tcp_init(&w->loop, &c->listener);
    uv_timer_init(&w->loop, &c->timer);
    for (int i = 0; i < 2; i++) {
        uv_tcp_init(&w->loop, &c->ends[i]);
        c->ends[i].data = c;
    }
    c->listener.data = c->timer.data = c;
    uv_ip4_addr("127.0.0.1", 0, &a);
    assert_int_equal(uv_tcp_bind(&c->listener, (struct sockaddr *)&a, 0), 0);
    assert_int_equal(uv_listen((uv_stream_t *)&c->listener, 8, cable_on_connection), 0);
    uv_tcp_getsockname(&c->listener, (struct sockaddr *)&a, &len);
    snprintf(c->address.host, sizeof(c->address.host), "127.0.0.1");
    c->address.port = ntohs(a.sin_port);
}

static void cable_release(struct cable *c, uint64_t in_ms)
{
    uv_timer_start(&c->timer, cable_on_timer, in_ms, 0);
}

static void cable_close(struct cable *c)
{
    cable_close_end(&c->ends[0]);
    cable_close_end(&c->ends[1]);
    uv_close((uv_handle_t *)&c->listener, NULL);
    uv_close((uv_handle_t *)&c->timer, NULL);
    for (int i = 0; i < 20; i++)
        uv_run(c->loop, UV_RUN_NOWAIT);
}

/* ---- which link ---- */

/* Gives both a port, so that each can dial the other from the beginning. */
static void find_ports(struct world *w)
{
    trust_each_other(w, 0, 1);
    for (int i = 0; i < 2; i++) {
        open_side(w, i, (struct side_options){0});
        close_side(w, i);
    }
}

static void assert_one_link(struct world *w)
{
    for (int i = 0; i < 2; i++) {
        assert_int_equal(w->side[i].n_up, 1);
        assert_int_equal(w->side[i].n_down, 0);
    }
    w->side[0].n_messages = w->side[1].n_messages = 0;
    mesh_send_cluster(w->side[0].link, "x", 1);
    mesh_send_cluster(w->side[1].link, "x", 1);
    RUN_UNTIL(w, w->side[0].n_messages == 1 && w->side[1].n_messages == 1);
}

/* One side's connection gets through when the other's has long been up. */
static void check_late(struct world *w, int slow)
{
    struct cable cable;
    find_ports(w);
    cable_open(&cable, w, &w->side[1 - slow].address);
    open_side(w, slow, (struct side_options){.peer_address = &cable.address});
    open_side(w, 1 - slow, (struct side_options){.peer = slow + 1});
    RUN_UNTIL(w, are_linked(w, 0, 1) && cable.is_connected);
    cable_release(&cable, 0);
    run_ms(w, 700);
    assert_true(cable.is_open);
    assert_one_link(w);
    close_side(w, 0);
    close_side(w, 1);
    cable_close(&cable);
}

static void test_late_dial_of_the_lower(void **state)
{
    struct world *w = *state;
    check_late(w, lower_side(w, 0, 1));
}

static void test_late_dial_of_the_higher(void **state)
{
    struct world *w = *state;
    check_late(w, 1 - lower_side(w, 0, 1));
}

/* Whatever the order of the two handshakes. */
static void test_dials_at_the_same_time(void **state)
{
    struct world *w = *state;
    struct cable cable;
    find_ports(w);
    for (int round = 0; round < 24; round++) {
        int slow = round % 2;
        for (int i = 0; i < 2; i++)
            w->side[i].n_up = w->side[i].n_down = 0;
        cable_open(&cable, w, &w->side[1 - slow].address);
        open_side(w, slow, (struct side_options){.peer_address = &cable.address});
        open_side(w, 1 - slow, (struct side_options){.peer = slow + 1});
        cable_release(&cable, (uint64_t)round / 2);
        RUN_UNTIL(w, are_linked(w, 0, 1));
        run_ms(w, 60);
        assert_one_link(w);
        close_side(w, 0);
        close_side(w, 1);
        cable_close(&cable);
    }
}

/* A node that begins anew while the other still takes the old link for good gets its link. */
static void test_old_link_gives_way(void **state)
{
    struct world *w = *state;
    int higher = 1 - lower_side(w, 0, 1), lower = 1 - higher;
    struct cable cable;
    find_ports(w);
    open_side(w, lower, (struct side_options){0});
    cable_open(&cable, w, &w->side[lower].address);
    open_side(w, higher, (struct side_options){.peer_address = &cable.address});
    cable_release(&cable, 0);
    RUN_UNTIL(w, are_linked(w, 0, 1));
    uv_read_stop((uv_stream_t *)&cable.ends[0]); /* the other side will not hear that it ends */
    close_side(w, higher);
    assert_int_equal(w->side[lower].n_down, 0);
    open_side(w, higher, (struct side_options){.peer = lower + 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    RUN_UNTIL(w, w->side[lower].n_up == 2 && w->side[lower].n_down == 1);
    close_side(w, 0);
    close_side(w, 1);
    cable_close(&cable);
}

/* ---- long frames ---- */

static void send_submit(struct world *w, int index, size_t len)
{
    char *data = calloc(1, len);
    struct mesh_submit m = {.epoch = 1, .frame = data, .frame_len = len};
    struct buf b;
    assert_non_null(data);
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    assert_int_equal(mesh_encode_submit(&b, &m), 0);
    free(data);
    assert_int_equal(mesh_link_send(w->side[index].link, &b), 0);
}

static void test_long_frame_holds_up_nobody(void **state)
{
    struct world *w = *state;
    size_t len = 48u << 20;
    struct buf b;
    find_ports(w);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    send_submit(w, 1, len);
    buf_init(&b, 64);
    mesh_encode_cancel(&b, 7);
    mesh_link_send(w->side[1].link, &b);
    for (int i = 0; i < 3; i++) {
        size_t queued = mesh_link_queued_bytes(w->side[1].link);
        mesh_send_cluster(w->side[1].link, "beat", 4);
        RUN_UNTIL(w, w->side[0].n_messages == i + 1);
        assert_int_equal(w->side[0].types[i], MESH_CLUSTER);
        /* What was let through meanwhile is what may be under way, here and in the kernel. */
        assert_in_range(queued - mesh_link_queued_bytes(w->side[1].link), 0, 16u << 20);
    }
    RUN_UNTIL(w, w->side[0].n_messages == 5);
    assert_int_equal(w->side[0].types[3], MESH_SUBMIT); /* whole, and CANCEL is behind it */
    assert_int_equal(w->side[0].types[4], MESH_CANCEL);
    assert_int_equal(w->side[0].bytes, 3 * 4 + (16 + 8 + 4 + len) + 8);
    assert_int_equal(w->side[0].n_down, 0);
}

static void test_long_frames_in_both_directions(void **state)
{
    struct world *w = *state;
    find_ports(w);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    for (int i = 0; i < 6; i++)
        send_submit(w, i % 2, (size_t)70000 + (size_t)i * 1000003);
    RUN_UNTIL(w, w->side[0].n_messages == 3 && w->side[1].n_messages == 3);
    RUN_UNTIL(w, mesh_link_queued_bytes(w->side[0].link) == 0 &&
                     mesh_link_queued_bytes(w->side[1].link) == 0);
    assert_int_equal(w->side[0].n_down + w->side[1].n_down, 0);
}

static void send_part(struct world *w, bool is_last, const void *data, size_t len)
{
    struct mesh_part part = {.is_last = is_last, .data = data, .len = len};
    struct buf b;
    buf_init(&b, 1 << 20);
    mesh_encode_part(&b, &part);
    mesh_link_send(w->side[1].link, &b);
}

/* Parts that make no frame, or one that must not come in parts. */
static void test_bad_parts(void **state)
{
    struct world *w = *state;
    struct buf b;
    find_ports(w);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    for (int i = 0; i < 4; i++) {
        w->side[0].n_down = w->side[1].n_down = 0;
        RUN_UNTIL(w, are_linked(w, 0, 1));
        buf_init(&b, 1024);
        if (i == 0)
            mesh_encode_cancel(&b, 1);
        else if (i == 1)
            mesh_encode_ping(&b, 1);
        else if (i == 2)
            send_part(w, false, "x", 1);
        mesh_encode_cancel(&b, 2);
        send_part(w, true, i == 3 ? "" : b.data, i == 3 ? 0 : b.len);
        buf_done(&b);
        RUN_UNTIL(w, w->side[0].n_down == 1 && w->side[1].n_down == 1);
    }
    struct mesh_stats stats;
    mesh_get_stats(w->side[0].mesh, &stats);
    assert_int_equal(stats.n_malformed, 4);
    assert_int_equal(w->side[0].n_messages, 0);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_late_dial_of_the_lower),
        TEST(test_late_dial_of_the_higher),
        TEST(test_dials_at_the_same_time),
        TEST(test_old_link_gives_way),
        TEST(test_long_frame_holds_up_nobody),
        TEST(test_long_frames_in_both_directions),
        TEST(test_bad_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
