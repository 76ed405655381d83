/* The ways between two nodes: measured by one side, known to both, chosen alike; routes win. The
 * addresses are of loopback, where each process has as many as it likes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mesh/world.h"

/* Two for each side; the last digit of the interface's name is its index. */
static struct mesh_addresses make_addresses(int first)
{
    struct mesh_addresses a = {.n = 2};
    for (int i = 0; i < 2; i++) {
        snprintf(a.at[i].host, sizeof(a.at[i].host), "127.0.0.%d", first + i);
        snprintf(a.at[i].name, sizeof(a.at[i].name), "eth%d", first + i);
        a.at[i].kind = DEVICE_LINK_ETHERNET;
    }
    return a;
}

struct both { /* sides 0 and 1; 0 is the one with the lower id, which tries the paths */
    struct mesh_addresses addresses[2];
    struct mesh_route route[2];
    int low, high;
};

static void init_both(struct world *w, struct both *b)
{
    *b = (struct both){.low = lower_side(w, 0, 1)};
    b->high = 1 - b->low;
    trust_each_other(w, 0, 1);
    b->addresses[0] = make_addresses(11);
    b->addresses[1] = make_addresses(21);
}

static struct side_options options_of(struct both *b, int index)
{
    return (struct side_options){.host = "0.0.0.0",
                                 .addresses = &b->addresses[index],
                                 .route =
                                     b->route[index].peer[0] != '\0' ? &b->route[index] : NULL};
}

static void open_both(struct world *w, struct both *b)
{
    struct side_options second = options_of(b, 1);
    second.peer = 1;
    open_side(w, 0, options_of(b, 0));
    open_side(w, 1, second);
    RUN_UNTIL(w, are_linked(w, 0, 1));
}

static bool path_at(struct world *w, int index, uint32_t i, struct mesh_path *ret)
{
    const struct side *other = &w->side[1 - index];
    return mesh_path_at(w->side[index].mesh, &other->identity->id, i, ret);
}

static uint32_t n_paths(struct world *w, int index, enum mesh_path_status status)
{
    struct mesh_path p;
    uint32_t n = 0;
    for (uint32_t i = 0; path_at(w, index, i, &p); i++)
        n += p.status == status && p.figures.mbit_s > 0;
    return n;
}

/* Where tensors to the other side go. */
static const char *host_of(struct world *w, int index)
{
    static char host[2][64];
    if (!mesh_tensor_host(w->side[index].mesh, &w->side[1 - index].identity->id, host[index]))
        return "none";
    return host[index];
}

static void test_both_know(void **state)
{
    struct world *w = *state;
    struct both b;
    struct mesh_path p;
    init_both(w, &b);
    open_both(w, &b);
    /* At first there is only what the link itself shows. */
    assert_true(path_at(w, b.high, 0, &p));
    assert_true(p.is_used && !path_at(w, b.high, 1, &p));
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 2 &&
                     n_paths(w, b.high, MESH_PATH_REACHED) == 2);
    uint32_t n_used[2] = {0};
    for (int side = 0; side < 2; side++)
        for (uint32_t i = 0; path_at(w, side, i, &p); i++) {
            assert_int_equal(p.status, MESH_PATH_REACHED);
            assert_in_range(p.figures.rtt_us, 1, 500000);
            assert_true(p.figures.mbit_s > 10);
            assert_false(p.is_route);
            n_used[side] += p.is_used;
            if (p.is_used) {
                assert_string_equal(p.remote, host_of(w, side));
                assert_true(mesh_link_figures(w->side[side].link).mbit_s == p.figures.mbit_s);
            }
            if (side == b.low) {
                assert_non_null(strstr(p.remote, b.high == 0 ? "127.0.0.1" : "127.0.0.2"));
                assert_int_equal(p.remote_kind, DEVICE_LINK_ETHERNET);
            }
        }
    assert_int_equal(n_used[0], 1);
    assert_int_equal(n_used[1], 1);
    /* Probes are no links, and nobody is told of them. */
    assert_int_equal(w->side[0].n_up + w->side[1].n_up, 2);
    assert_int_equal(w->side[0].n_down + w->side[1].n_down, 0);
    assert_int_equal(w->side[0].n_messages + w->side[1].n_messages, 0);
}

/* An address at which nobody is, and one at which another node is. */
static void test_wrong_addresses(void **state)
{
    struct world *w = *state;
    struct both b;
    struct mesh_path p;
    int n_unreached = 0;
    init_both(w, &b);
    for (int i = 0; i < 2; i++) {
        b.addresses[i].n = 3;
        b.addresses[i].at[2] = b.addresses[i].at[1];
        snprintf(b.addresses[i].at[2].name, sizeof(b.addresses[i].at[2].name), "eth9");
        snprintf(b.addresses[i].at[0].host, sizeof(b.addresses[i].at[0].host), "127.0.0.1");
        snprintf(b.addresses[i].at[1].host, sizeof(b.addresses[i].at[1].host), "127.0.0.%d", 98);
        snprintf(b.addresses[i].at[2].host, sizeof(b.addresses[i].at[2].host), "127.0.0.%d", 99);
    }
    /* Each must not take the other's for its own. */
    struct mesh_addresses own = {.n = 1, .at = {{.host = "127.0.0.77", .name = "eth7"}}};
    b.addresses[b.low] = own;
    struct side_options low = options_of(&b, b.low), high = options_of(&b, b.high);
    high.host = "127.0.0.1";
    open_side(w, b.high, high);
    w->side[2].address.port = w->side[b.high].address.port;
    open_side(w, 2, (struct side_options){.host = "127.0.0.98"});
    low.peer = b.high + 1;
    open_side(w, b.low, low);
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 1 && path_at(w, b.low, 2, &p) &&
                     p.status == MESH_PATH_UNREACHED && n_paths(w, b.high, MESH_PATH_REACHED) == 1);
    for (uint32_t i = 0; path_at(w, b.low, i, &p); i++)
        n_unreached += p.status == MESH_PATH_UNREACHED;
    assert_int_equal(n_unreached, 2);
    assert_string_equal(host_of(w, b.low), "127.0.0.1");
    assert_int_equal(w->side[2].n_up, 0);
}

/* A route of either side wins over what was measured, and both sides keep to it. */
static void check_route(struct world *w, bool is_low)
{
    struct both b;
    char other[64];
    init_both(w, &b);
    int owner = is_low ? b.low : b.high;
    snprintf(b.route[owner].peer, sizeof(b.route[owner].peer), "side-%d", 1 - owner);
    snprintf(b.route[owner].host, sizeof(b.route[owner].host), "127.0.0.5");
    open_both(w, &b);
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 3 &&
                     n_paths(w, b.high, MESH_PATH_REACHED) == 3);
    assert_string_equal(host_of(w, owner), "127.0.0.5");
    struct mesh_path p;
    int n_used = 0;
    for (uint32_t i = 0; path_at(w, 1 - owner, i, &p); i++)
        if (p.is_used) {
            n_used++;
            assert_true(p.is_route);
            snprintf(other, sizeof(other), "%s", p.remote);
        }
    assert_int_equal(n_used, 1);
    assert_string_equal(host_of(w, 1 - owner), other);
}

static void test_route_of_the_lower(void **state)
{
    check_route(*state, true);
}

static void test_route_of_the_higher(void **state)
{
    check_route(*state, false);
}

static void test_route_that_leads_nowhere(void **state)
{
    struct world *w = *state;
    struct both b;
    struct mesh_path p;
    init_both(w, &b);
    for (int i = 0; i < 2; i++) {
        char id[33];
        node_id_text(&w->side[1 - i].identity->id, id); /* a name will do, or an id */
        snprintf(b.route[i].peer, sizeof(b.route[i].peer), "%s", id);
        snprintf(b.route[i].host, sizeof(b.route[i].host), "::1"); /* they listen on IPv4 only */
    }
    open_both(w, &b);
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 2 &&
                     n_paths(w, b.high, MESH_PATH_REACHED) == 2);
    assert_non_null(strstr(host_of(w, b.low), "127.0.0."));
    assert_true(path_at(w, b.low, 2, &p));
    assert_true(p.is_route && !p.is_used);
    assert_int_equal(p.status, MESH_PATH_UNREACHED);
}

/* An address goes and another comes: both sides hear of it, and nothing that is gone is used. */
static void test_addresses_change(void **state)
{
    struct world *w = *state;
    struct both b;
    init_both(w, &b);
    open_both(w, &b);
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 2 &&
                     n_paths(w, b.high, MESH_PATH_REACHED) == 2);
    for (int i = 0; i < 2; i++) {
        struct mesh_addresses *a = &b.addresses[b.high];
        char before[64], after[64];
        snprintf(before, sizeof(before), "%s", host_of(w, b.low));
        int k = strcmp(a->at[0].host, before) == 0 ? 0 : 1;
        snprintf(a->at[k].host, sizeof(a->at[k].host), "127.0.0.%d", 200 + i);
        snprintf(after, sizeof(after), "%s", a->at[k].host);
        RUN_UNTIL(w, strcmp(host_of(w, b.low), before) != 0);
        struct mesh_path p;
        bool is_there = false;
        while (!is_there) {
            for (uint32_t j = 0; path_at(w, b.low, j, &p); j++)
                is_there =
                    is_there || (strcmp(p.remote, after) == 0 && p.status == MESH_PATH_REACHED);
            uv_run(&w->loop, UV_RUN_ONCE);
        }
    }
}

/* Just before it is needed a path is tried; the one that does not answer is not taken. */
static void test_check(void **state)
{
    struct world *w = *state;
    struct both b;
    struct mesh_path p;
    init_both(w, &b);
    open_both(w, &b);
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 2 &&
                     n_paths(w, b.high, MESH_PATH_REACHED) == 2);
    run_ms(w, 300);
    uint32_t i = 0;
    mesh_check_path(w->side[b.low].mesh, &w->side[b.high].identity->id);
    while (path_at(w, b.low, i, &p) && !p.is_used)
        i++;
    uint64_t age_ms = p.age_ms;
    RUN_UNTIL(w, path_at(w, b.low, i, &p) && p.age_ms < age_ms);
    assert_true(p.figures.mbit_s > 10); /* kept: only the round trip was measured */
}

/* What becomes of the way that a connection has taken: it is told also when tensors would go
 * elsewhere by now. */
static void test_taken(void **state)
{
    struct world *w = *state;
    struct both b;
    char host[64];
    init_both(w, &b);
    open_both(w, &b);
    RUN_UNTIL(w, n_paths(w, b.low, MESH_PATH_REACHED) == 2 &&
                     n_paths(w, b.high, MESH_PATH_REACHED) == 2);
    for (int i = 0; i < 2; i++) {
        int taker = i == 0 ? b.low : b.high;
        struct side *s = &w->side[taker], *other = &w->side[1 - taker];
        assert_int_equal(mesh_link_taken(s->link).path, 0);
        int n_figures = s->n_figures;
        assert_true(mesh_take_path(s->mesh, &other->identity->id, host));
        assert_string_equal(host, host_of(w, taker));
        struct link_figures now = mesh_link_figures(s->link), taken = mesh_link_taken(s->link);
        assert_true(taken.path != 0 && taken.path == now.path);
        assert_true(taken.rtt_us > 0 && taken.mbit_s == now.mbit_s);
        RUN_UNTIL(w, s->n_figures > n_figures);

        struct mesh_addresses *a = &b.addresses[1 - taker];
        int k = strcmp(a->at[0].host, host) == 0 ? 0 : 1;
        snprintf(a->at[k].host, sizeof(a->at[k].host), "127.0.0.%d", 200 + i);
        RUN_UNTIL(w, mesh_link_taken(s->link).rtt_us == UINT32_MAX);
        assert_int_equal(mesh_link_taken(s->link).path, taken.path);
        RUN_UNTIL(w, s->figures.path != taken.path);
        assert_string_not_equal(host_of(w, taker), host);
        assert_true(mesh_take_path(s->mesh, &other->identity->id, host));
        taken = mesh_link_taken(s->link);
        assert_true(taken.path == mesh_link_figures(s->link).path && taken.rtt_us != UINT32_MAX);
    }
}

/* One way only is not tried again and again: the link's own figures are its. */
static void test_single_path(void **state)
{
    struct world *w = *state;
    struct mesh_path p;
    trust_each_other(w, 0, 1);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1) && w->side[0].figures.mbit_s > 0);
    run_ms(w, 2500);
    for (int side = 0; side < 2; side++) {
        assert_true(path_at(w, side, 0, &p));
        assert_string_equal(p.remote, "127.0.0.1");
        assert_true(p.is_used && p.figures.rtt_us > 0);
        assert_false(path_at(w, side, 1, &p));
        assert_string_equal(host_of(w, side), "127.0.0.1");
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_both_know),
        TEST(test_wrong_addresses),
        TEST(test_route_of_the_lower),
        TEST(test_route_of_the_higher),
        TEST(test_route_that_leads_nowhere),
        TEST(test_addresses_change),
        TEST(test_check),
        TEST(test_taken),
        TEST(test_single_path),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
