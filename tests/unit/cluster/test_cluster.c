/* Stories of a few nodes: who is there, who coordinates. Each reads from top to bottom, with the
 * trace that it must leave. */
#include "cluster/net.h"

static void test_alone(void **state)
{
    (void)state;
    struct net *n = net_new(1, true);
    net_run(n, 60);
    net_load(n, 0, 7, "m");
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[0].answered_order, 7);
    assert_int_equal(n->node[0].answer.code, 0);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    net_expect(
        n, (const char *const[]){"a: term=1 members=1 no coordinator -> coordinate",
                                 "a: order=load model=m by=a -> done",
                                 "a: model=m wanted -> placed split=1x1 ranks=1 leader=a epoch=1.3",
                                 "a: instance=...", NULL});
    net_free(n);
}

static void test_alone_unexpectedly(void **state)
{
    (void)state;
    struct net *n = net_new(1, false);
    net_run(n, CLUSTER_ELECTION_MS - CLUSTER_TICK_MS);
    assert_false(cluster_has_coordinator(n->node[0].core));
    net_run(n, 2 * CLUSTER_TICK_MS);
    assert_true(cluster_is_coordinator(n->node[0].core));
    net_free(n);
}

static void test_two_one_dies(void **state)
{
    (void)state;
    struct net *n = net_new_linked(2);
    net_run(n, 1000);
    net_load(n, 0, 1, "m");
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    assert_true(net_holds(net_placed(n, 0, "m"), 1));
    net_expect(n, (const char *const[]){
                      "a: peer=b linked was=new -> up", "b: peer=a linked was=new -> up",
                      "b: term=1 members=2 no coordinator -> coordinate",
                      "a: term=1 version=1 coordinator=b -> follow",
                      "b: order=load model=m by=a -> done",
                      "b: model=m wanted -> placed split=pipeline ranks=2 leader=a epoch=1.3",
                      "a: instance=...", NULL});
    net_kill(n, 1, true);
    net_run(n, 500);
    assert_true(net_is_serving(n, 0, "m"));
    net_expect(n, (const char *const[]){
                      "a: peer=b closed its link -> suspect",
                      "a: peer=b silent_ms=248 nobody to ask -> gone",
                      "a: coordinator=b term=1 is gone -> none",
                      "a: term=2 members=1 best survivor -> coordinate",
                      "a: model=m node=b of rank 1 is gone -> placed again in 0 ms",
                      "a: model=m node=b of rank 1 is gone -> placed split=1x1 ranks=1 leader=a "
                      "epoch=2.2",
                      "a: instance=...", "a: instance=...", NULL});
    assert_int_equal(n->node[0].n_starts, 2);
    assert_int_equal(n->node[0].n_stops, 1);
    net_free(n);
}

static void test_two_one_falls_silent(void **state)
{
    (void)state;
    struct net *n = net_new_linked(2);
    net_run(n, 3000);
    net_kill(n, 1, false);
    uint64_t dead_ms = n->now_ms;
    while (net_status(n, 0, 1) != MEMBER_GONE && n->now_ms < dead_ms + 5000)
        net_run(n, 1);
    assert_in_range(n->now_ms - dead_ms, CLUSTER_SILENT_MS - CLUSTER_HEARTBEAT_MS,
                    CLUSTER_SILENT_MS + 2 * CLUSTER_TICK_MS);
    assert_true(cluster_is_coordinator(n->node[0].core));
    net_free(n);
}

/* Our own system dropped the link, and it is back before the silence is too long: nothing is lost.
 */
static void test_two_link_breaks(void **state)
{
    (void)state;
    struct net *n = net_new_linked(2);
    net_run(n, 2000);
    net_load(n, 0, 1, "m");
    net_run(n, 1000);
    uint64_t epoch = net_placed(n, 0, "m")->epoch;
    net_unlink(n, 0, 1, false);
    net_run(n, 400);
    assert_int_equal(net_status(n, 0, 1), MEMBER_SUSPECT);
    net_link(n, 0, 1);
    net_run(n, 3000);
    assert_int_equal(net_status(n, 0, 1), MEMBER_UP);
    assert_int_equal(net_placed(n, 0, "m")->epoch, epoch);
    assert_int_equal(cluster_get_state(n->node[0].core)->claim.term, 1);
    net_free(n);
}

static void test_three_bad_link(void **state)
{
    (void)state;
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    assert_int_equal(net_coordinator(n), 2);
    net_forget_trace(n);
    net_cut(n, 0, 1, true);
    net_run(n, 5000);
    net_expect(n, (const char *const[]){
                      "a: peer=b silent_ms=1048 limit_ms=1000 -> suspect",
                      "b: peer=a silent_ms=1000 limit_ms=1000 -> suspect",
                      "a: peer=b was=suspect heard by others -> remote, the link is bad",
                      "b: peer=a was=suspect heard by others -> remote, the link is bad", NULL});
    assert_int_equal(net_status(n, 2, 0), MEMBER_UP);
    assert_int_equal(net_status(n, 2, 1), MEMBER_UP);
    assert_int_equal(net_coordinator(n), 2);
    /* The two are not placed together. */
    net_load(n, 0, 1, "m");
    net_run(n, 1000);
    const struct placed_instance *p = net_placed(n, 0, "m");
    assert_non_null(p);
    assert_false(net_holds(p, 0) && net_holds(p, 1));
    net_cut(n, 0, 1, false);
    net_run(n, 1000);
    assert_int_equal(net_status(n, 0, 1), MEMBER_UP);
    net_free(n);
}

static void test_three_one_dies(void **state)
{
    (void)state;
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    net_forget_trace(n);
    net_kill(n, 0, true);
    net_run(n, 60);
    net_expect(n, (const char *const[]){"b: peer=a closed its link -> suspect",
                                        "c: peer=a closed its link -> suspect",
                                        "b: peer=a silent_ms=202 heard by nobody -> gone",
                                        "c: peer=a silent_ms=203 heard by nobody -> gone", NULL});
    net_free(n);
}

static void test_coordinator_dies(void **state)
{
    (void)state;
    struct net *n = net_new_linked(4);
    net_run(n, 2000);
    assert_int_equal(net_coordinator(n), 3);
    net_load(n, 0, 1, "m");
    net_run(n, 2000);
    net_forget_trace(n);
    uint64_t epoch = net_placed(n, 0, "m")->epoch;
    struct node_id instance = net_placed(n, 0, "m")->id;
    net_kill(n, 3, true);
    net_run(n, 100);
    assert_int_equal(net_coordinator(n), 2);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    const struct placed_instance *p = net_placed(n, 0, "m");
    assert_true(p->epoch > epoch);
    assert_true(node_id_equal(&p->id, &instance));
    assert_int_equal(p->n_repairs, 1);
    assert_false(net_holds(p, 3));
    assert_int_equal(net_n_running(n, "m"), 1);
    net_free(n);
}

/* The coordinator is out of reach of one node, which hears of it through others. */
static void test_coordinator_through_others(void **state)
{
    (void)state;
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    assert_int_equal(net_coordinator(n), 2);
    net_cut(n, 0, 2, true);
    net_run(n, 10000);
    assert_int_equal(net_coordinator(n), 2);
    assert_int_equal(cluster_get_state(n->node[0].core)->claim.term, 1);
    net_load(n, 0, 5, "m"); /* goes through b and back */
    net_run(n, 1000);
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[0].answer.code, 0);
    assert_non_null(net_placed(n, 0, "m"));
    /* Its reports come through b, too. */
    net_run(n, 2000);
    assert_true(net_is_serving(n, 0, "m") && net_is_serving(n, 2, "m"));
    /* Now it really dies. */
    net_kill(n, 2, false);
    net_run(n, 6000);
    assert_int_equal(net_coordinator(n), 1);
    net_free(n);
}

static void test_pause(void **state)
{
    (void)state;
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    net_load(n, 0, 1, "m");
    net_run(n, 2000);
    net_forget_trace(n);
    n->node[0].is_paused = true;
    net_run(n, 5000);
    assert_int_equal(net_status(n, 2, 0), MEMBER_GONE);
    n->node[0].is_paused = false;
    net_run(n, 3000);
    assert_true(net_has_trace(n, "a: paused_ms="));
    assert_false(net_has_trace(n, "a: peer=b silent"));
    assert_int_equal(net_status(n, 2, 0), MEMBER_UP);
    assert_int_equal(net_status(n, 0, 2), MEMBER_UP);
    assert_int_equal(net_coordinator(n), 2);
    net_run(n, 12000);
    assert_int_equal(net_n_running(n, "m"), 1);
    assert_true(net_is_serving(n, 1, "m"));
    net_free(n);
}

static void cut_sides(struct net *n, bool on)
{
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t k = 2; k < 4; k++)
            net_cut(n, i, k, on);
    }
}

static void test_partition(void **state)
{
    (void)state;
    struct net *n = net_new_linked(4);
    net_run(n, 2000);
    net_load(n, 0, 1, "m");
    net_run(n, 2000);
    cut_sides(n, true);
    net_run(n, 5000);
    assert_true(cluster_is_coordinator(n->node[3].core));
    assert_true(cluster_is_coordinator(n->node[1].core));
    assert_int_equal(cluster_get_state(n->node[0].core)->claim.term, 2);
    assert_int_equal(net_n_running(n, "m"), 2); /* one on each side: both serve */
    net_load(n, 0, 2, "left");
    net_load(n, 3, 3, "right");
    net_node_order(n, 2, 4, ORDER_DRAIN, 2);
    net_run(n, 5000);
    assert_true(net_is_serving(n, 1, "left"));
    assert_true(net_is_serving(n, 2, "right"));
    assert_null(net_placed(n, 0, "right"));
    cut_sides(n, false);
    net_run(n, 6000);
    assert_int_equal(net_coordinator(n), 1);
    for (uint32_t i = 0; i < 4; i++) {
        assert_true(net_is_serving(n, i, "m"));
        assert_true(net_is_serving(n, i, "left"));
        assert_true(net_is_serving(n, i, "right"));
        const struct node_id c = net_id(2);
        assert_true(cluster_is_drained(n->node[i].core, &c));
    }
    assert_int_equal(net_n_running(n, "m"), 1);
    assert_int_equal(net_n_running(n, "left"), 1);
    assert_int_equal(net_n_running(n, "right"), 1);
    net_free(n);
}

/* What only the losing group runs goes on without a break. */
static void test_partition_adopts(void **state)
{
    (void)state;
    struct net *n = net_new_linked(4);
    net_run(n, 2000);
    cut_sides(n, true);
    net_run(n, 5000);
    net_load(n, 3, 3, "right");
    net_run(n, 2000);
    assert_true(net_is_serving(n, 3, "right"));
    struct node_id instance = net_placed(n, 3, "right")->id;
    uint32_t n_starts = n->node[2].n_starts + n->node[3].n_starts;
    cut_sides(n, false);
    net_run(n, 1300);
    assert_int_equal(net_coordinator(n), 1);
    assert_true(net_has_trace(n, "of another group -> adopted"));
    assert_true(net_is_serving(n, 0, "right"));
    assert_true(node_id_equal(&net_placed(n, 0, "right")->id, &instance));
    assert_int_equal(n->node[2].n_starts + n->node[3].n_starts, n_starts);
    net_free(n);
}

/* Three groups that elect at the same time claim the same term; one remains, with a term of its
 * own. */
static void test_same_term(void **state)
{
    (void)state;
    struct net *n = net_new(3, false);
    net_run(n, 1000);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(cluster_get_state(n->node[i].core)->claim.term, 1);
    net_load(n, 0, 1, "x");
    net_load(n, 1, 2, "y");
    net_run(n, 1000);
    net_link(n, 0, 1);
    net_link(n, 0, 2);
    net_link(n, 1, 2);
    net_run(n, 3000);
    assert_int_not_equal(net_coordinator(n), -1);
    assert_true(cluster_get_state(n->node[0].core)->claim.term > 1);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(net_is_serving(n, i, "x"));
        assert_true(net_is_serving(n, i, "y"));
    }
    assert_int_equal(net_n_running(n, "x"), 1);
    assert_int_equal(net_n_running(n, "y"), 1);
    net_free(n);
}

/* Loss, doubling, reordering: everybody still agrees, and nobody is declared gone. */
static void test_bad_network(void **state)
{
    (void)state;
    struct net *n = net_new(4, false);
    n->loss_percent = 5;
    n->twice_percent = 5;
    n->jitter_ms = 200;
    for (uint32_t i = 0; i < 4; i++) {
        for (uint32_t k = 0; k < i; k++)
            net_link(n, k, i);
    }
    net_run(n, 3000);
    net_load(n, 0, 1, "m");
    net_load(n, 1, 2, "k");
    net_run(n, 5000);
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[1].n_answers, 1);
    net_run(n, 60000);
    assert_int_not_equal(net_coordinator(n), -1);
    assert_false(net_has_trace(n, "-> gone"));
    for (uint32_t i = 0; i < 4; i++)
        assert_true(net_is_serving(n, i, "m") && net_is_serving(n, i, "k"));
    net_free(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alone),
        cmocka_unit_test(test_alone_unexpectedly),
        cmocka_unit_test(test_two_one_dies),
        cmocka_unit_test(test_two_one_falls_silent),
        cmocka_unit_test(test_two_link_breaks),
        cmocka_unit_test(test_three_bad_link),
        cmocka_unit_test(test_three_one_dies),
        cmocka_unit_test(test_coordinator_dies),
        cmocka_unit_test(test_coordinator_through_others),
        cmocka_unit_test(test_pause),
        cmocka_unit_test(test_partition),
        cmocka_unit_test(test_partition_adopts),
        cmocka_unit_test(test_same_term),
        cmocka_unit_test(test_bad_network),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
