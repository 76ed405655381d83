/* Ways that change under an instance: it connects anew when that is worth it, where it is. */
#include "cluster/net.h"

static const struct link_figures slow = {.rtt_us = 2000, .mbit_s = 2, .path = 1};
static const struct link_figures fast = {.rtt_us = 200, .mbit_s = 4000, .path = 2};
static const struct link_figures dead = {.rtt_us = UINT32_MAX, .path = 2};

/* What a node's mesh says of its ways to another one. */
static void say(struct net *n, uint32_t i, uint32_t to, struct link_figures now,
                struct link_figures taken)
{
    net_step(
        n, i,
        &(struct cluster_event){
            .type = CLUSTER_EVENT_LINK_FIGURES, .node = net_id(to), .link = now, .taken = taken});
}

/* Rank 0 on a, rank 1 on b, which has connected to a; and so on. */
static struct net *start(uint32_t n_nodes, const char *split)
{
    struct net *n = net_new_linked(n_nodes);
    struct cluster_order o = {.type = ORDER_LOAD, .model = net_model("m")};
    snprintf(o.model.split, sizeof(o.model.split), "%s", split);
    net_run(n, 2000);
    net_order(n, 0, 1, &o);
    net_run(n, 2000);
    const struct placed_instance *p = net_placed(n, 0, "m");
    assert_non_null(p);
    assert_int_equal(p->split.n_ranks, n_nodes);
    for (uint32_t r = 0; r < n_nodes; r++)
        assert_int_equal(net_index(&p->node_of_rank[r]), r);
    assert_true(net_is_serving(n, 0, "m"));
    net_forget_trace(n);
    return n;
}

static uint64_t epoch(const struct net *n)
{
    const struct placed_instance *p = net_placed(n, 0, "m");
    return p != NULL ? p->epoch : 0;
}

/* Another epoch of the same, which serves. */
static void check_renewed(struct net *n, const struct placed_instance *before)
{
    const struct placed_instance *p = net_placed(n, 0, "m");
    assert_non_null(p);
    assert_true(p->epoch > before->epoch && node_id_equal(&p->id, &before->id));
    assert_memory_equal(&p->split, &before->split, sizeof(p->split));
    assert_memory_equal(p->node_of_rank, before->node_of_rank, sizeof(p->node_of_rank));
    assert_int_equal(p->n_repairs, before->n_repairs);
    assert_true(net_is_serving(n, 0, "m"));
}

static void check_better(uint32_t n_nodes, const char *split)
{
    struct net *n = start(n_nodes, split);
    struct placed_instance before = *net_placed(n, 0, "m");
    say(n, 1, 0, slow, slow);
    net_run(n, 20000);
    assert_int_equal(epoch(n), before.epoch);
    say(n, 1, 0, fast, slow);
    net_run(n, CLUSTER_SETTLE_MS + 1000);
    check_renewed(n, &before);
    assert_true(net_has_trace(n, "other ways are faster"));
    before = *net_placed(n, 0, "m");
    say(n, 1, 0, fast, fast);
    net_run(n, 60000);
    assert_int_equal(epoch(n), before.epoch);
    net_free(n);
}

static void test_better_way(void **state)
{
    (void)state;
    check_better(2, ""); /* the coordinator's own way */
    check_better(3, ""); /* somebody else's */
    check_better(2, "tensor");
    check_better(3, "pipeline");
}

/* Figures alone, a way that is hardly better, one that nobody took, and the lower rank's word. */
static void test_not_worth_it(void **state)
{
    (void)state;
    struct net *n = start(2, "");
    uint64_t before = epoch(n);
    struct link_figures a_little = {.rtt_us = 1900, .mbit_s = 2.2F, .path = 2};
    struct link_figures same_way = {.rtt_us = 200, .mbit_s = 4000, .path = 1};
    struct link_figures unmeasured = {.path = 1};
    for (int i = 0; i < 10; i++) {
        say(n, 1, 0, i % 2 == 0 ? slow : same_way, slow);
        net_run(n, 3000);
    }
    say(n, 1, 0, a_little, slow);
    net_run(n, 30000);
    say(n, 1, 0, fast, unmeasured);
    net_run(n, 30000);
    say(n, 1, 0, fast, (struct link_figures){0});
    net_run(n, 30000);
    say(n, 0, 1, fast, slow);
    net_run(n, 30000);
    assert_int_equal(epoch(n), before);
    net_free(n);
}

/* Each time it waits longer. */
static void test_to_and_fro(void **state)
{
    (void)state;
    struct net *n = start(2, "");
    uint64_t before = 0;
    uint32_t n_renewed = 0;
    for (uint32_t i = 0; i < 300; i++) { /* five minutes */
        struct link_figures better = fast;
        better.path = 3 + i;
        before = epoch(n);
        say(n, 1, 0, better, slow);
        net_run(n, 1000);
        n_renewed += epoch(n) != before;
    }
    assert_in_range(n_renewed, 3, 5); /* 20, 40, 80, 160 s between them */
    net_free(n);
}

static void test_dead_way(void **state)
{
    (void)state;
    struct net *n = start(3, "");
    struct placed_instance before = *net_placed(n, 0, "m");
    say(n, 2, 1, fast, fast);
    net_run(n, 5000);
    say(n, 2, 1, fast, dead); /* no other way is known: its ranks find out by themselves */
    net_run(n, 5000);
    say(n, 2, 1, slow, dead); /* and back: it was a mistake */
    net_run(n, 1000);
    say(n, 2, 1, fast, fast);
    net_run(n, 1000);
    assert_int_equal(epoch(n), before.epoch);
    say(n, 2, 1, slow, dead);
    net_run(n, 2500);
    check_renewed(n, &before);
    assert_true(net_has_trace(n, "model=m node=c has lost the way to node=b that rank 2 took, and "
                                 "has another -> placed"));
    before = *net_placed(n, 0, "m");
    net_run(n, 5000); /* it did not help */
    assert_int_equal(epoch(n), before.epoch);
    say(n, 2, 1, slow, slow);
    net_run(n, 30000);
    assert_int_equal(epoch(n), before.epoch);
    net_free(n);
}

/* Who coordinates next knows what was taken. */
static void test_another_coordinator(void **state)
{
    (void)state;
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    assert_int_equal(net_coordinator(n), 2);
    net_node_order(n, 0, 1, ORDER_DRAIN, 2);
    net_load(n, 0, 2, "m");
    net_run(n, 2000);
    struct placed_instance before = *net_placed(n, 0, "m");
    assert_int_equal(before.split.n_ranks, 2);
    say(n, 1, 0, slow, slow);
    net_run(n, 1000);
    net_kill(n, 2, true);
    net_run(n, 5000);
    assert_in_range(net_coordinator(n), 0, 1);
    assert_int_equal(epoch(n), before.epoch);
    say(n, 1, 0, fast, slow);
    net_run(n, 3000);
    check_renewed(n, &before);
    net_free(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_better_way),          cmocka_unit_test(test_not_worth_it),
        cmocka_unit_test(test_to_and_fro),          cmocka_unit_test(test_dead_way),
        cmocka_unit_test(test_another_coordinator),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
