/* Stories of what people order, and of what is done when nodes fail, leave, come and change. */
#include "cluster/net.h"

static struct net *start_three(void)
{
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    assert_int_equal(net_coordinator(n), 2);
    net_load(n, 0, 1, "m");
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    net_forget_trace(n);
    return n;
}

static void test_load_and_unload(void **state)
{
    (void)state;
    struct net *n = start_three();
    assert_int_equal(net_index(&net_placed(n, 1, "m")->node_of_rank[0]), 0); /* the file is there */
    const struct cluster_order unload = {.type = ORDER_UNLOAD, .model = {.id = "m"}};
    net_order(n, 1, 2, &unload);
    net_run(n, 200);
    assert_int_equal(n->node[1].answer.code, 0);
    assert_int_equal(net_n_running(n, "m"), 0);
    assert_null(net_placed(n, 0, "m"));
    net_order(n, 1, 3, &unload);
    net_run(n, 200);
    assert_int_equal(n->node[1].answer.code, E_NOTFOUND);
    assert_int_equal(n->node[1].n_answers, 2);
    net_load(n, 1, 4, "m");
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    net_free(n);
}

static void test_bad_orders(void **state)
{
    (void)state;
    struct net *n = start_three();
    struct cluster_order o = {.type = ORDER_LOAD, .model = net_model("")};
    net_order(n, 0, 2, &o);
    assert_int_equal(n->node[0].answer.code, E_INVALID);
    o.model = net_model("bad\x01name");
    net_order(n, 0, 3, &o);
    assert_int_equal(n->node[0].answer.code, E_INVALID);
    o.model = net_model("no layers");
    o.model.shape.n_layer = 0;
    net_order(n, 0, 4, &o);
    assert_int_equal(n->node[0].answer.code, E_INVALID);
    net_node_order(n, 0, 5, ORDER_REVOKE, 0);
    assert_int_equal(n->node[0].answer.code, E_INVALID);
    net_node_order(n, 0, 6, ORDER_DRAIN, 7);
    net_run(n, 100);
    assert_int_equal(n->node[0].answer.code, E_NOTFOUND);
    assert_int_equal(n->node[0].n_answers, 6);
    net_free(n);
}

static void test_limit_of_models(void **state)
{
    (void)state;
    struct net *n = net_new(1, true);
    char id[8];
    net_run(n, 60);
    for (uint32_t i = 0; i <= LIMIT_INSTANCES; i++) {
        snprintf(id, sizeof(id), "m%u", i);
        net_load(n, 0, i, id);
        assert_int_equal(n->node[0].answer.code, i < LIMIT_INSTANCES ? 0 : E_LIMIT);
    }
    /* Unloaded ones are remembered, up to a limit. */
    for (uint32_t i = 0; i < 5 * LIMIT_INSTANCES; i++) {
        struct cluster_order unload = {.type = ORDER_UNLOAD};
        snprintf(unload.model.id, sizeof(unload.model.id), "m%u", i);
        net_order(n, 0, 100, &unload);
        assert_int_equal(n->node[0].answer.code, 0);
        snprintf(id, sizeof(id), "m%u", LIMIT_INSTANCES + i);
        net_load(n, 0, 101, id);
        assert_int_equal(n->node[0].answer.code, 0);
        net_run(n, 100);
    }
    assert_int_equal(cluster_get_state(n->node[0].core)->n_models, 2 * LIMIT_INSTANCES);
    net_free(n);
}

/* The answer is lost again and again; the order is done once, and answered once. */
static void test_lost_answer(void **state)
{
    (void)state;
    struct net *n = net_new_linked(2);
    net_run(n, 2000);
    n->is_answer_lost = true;
    net_load(n, 0, 9, "m");
    net_run(n, 2000);
    assert_int_equal(n->node[0].n_answers, 0);
    assert_true(net_is_serving(n, 0, "m"));
    n->is_answer_lost = false;
    net_run(n, 600);
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[0].answered_order, 9);
    assert_int_equal(n->node[0].answer.code, 0);
    assert_int_equal(n->node[0].n_starts, 1);
    net_free(n);
}

static void test_no_answer(void **state)
{
    (void)state;
    struct net *n = net_new_linked(2);
    net_run(n, 2000);
    n->is_answer_lost = true;
    net_load(n, 0, 9, "m");
    net_run(n, 11000);
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[0].answer.code, E_UNAVAILABLE);
    net_free(n);
}

/* The coordinator dies with the order on its way: whoever comes after it does it. */
static void test_order_outlives_coordinator(void **state)
{
    (void)state;
    struct net *n = net_new_linked(3);
    net_run(n, 2000);
    n->is_answer_lost = true;
    net_load(n, 0, 9, "m");
    net_kill(n, 2, true);
    n->is_answer_lost = false;
    net_run(n, 2000);
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[0].answer.code, 0);
    assert_true(net_is_serving(n, 0, "m"));
    net_free(n);
}

static void test_drain(void **state)
{
    (void)state;
    struct net *n = start_three();
    assert_true(net_holds(net_placed(n, 0, "m"), 0));
    net_node_order(n, 1, 2, ORDER_DRAIN, 0);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    assert_false(net_holds(net_placed(n, 0, "m"), 0));
    assert_int_equal(net_placed(n, 0, "m")->n_repairs, 0);
    assert_true(net_has_trace(n, "model=m node=a is drained -> placed"));
    /* Nowhere else: it stays, and says so. */
    net_node_order(n, 1, 3, ORDER_DRAIN, 1);
    net_node_order(n, 1, 4, ORDER_DRAIN, 2);
    net_run(n, 2000);
    assert_true(net_is_serving(n, 0, "m"));
    int at = cluster_state_find_model(cluster_get_state(n->node[1].core), "m");
    assert_true(cluster_get_state(n->node[1].core)->model[at].problem[0] != '\0');
    net_node_order(n, 1, 5, ORDER_UNDRAIN, 0);
    net_run(n, 2000);
    assert_true(net_is_serving(n, 0, "m"));
    assert_true(net_holds(net_placed(n, 0, "m"), 0));
    assert_false(net_holds(net_placed(n, 0, "m"), 1));
    at = cluster_state_find_model(cluster_get_state(n->node[1].core), "m");
    assert_true(cluster_get_state(n->node[1].core)->model[at].problem[0] == '\0');
    net_free(n);
}

static void say_self(struct net *n, uint32_t i)
{
    net_step(n, i, &(struct cluster_event){.type = CLUSTER_EVENT_SELF, .self = &n->node[i].self});
}

static void test_stopping(void **state)
{
    (void)state;
    struct net *n = start_three();
    n->node[0].self.is_stopping = true;
    say_self(n, 0);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 1, "m"));
    assert_false(net_holds(net_placed(n, 1, "m"), 0));
    net_kill(n, 0, true);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 1, "m"));
    assert_int_equal(net_placed(n, 1, "m")->n_repairs, 0);
    net_free(n);
}

static void test_hot_node(void **state)
{
    (void)state;
    struct net *n = start_three();
    assert_true(net_holds(net_placed(n, 0, "m"), 1));
    n->node[1].self.figures.thermal = THERMAL_CRITICAL;
    say_self(n, 1);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    assert_false(net_holds(net_placed(n, 0, "m"), 1));
    net_free(n);
}

static void test_low_memory(void **state)
{
    (void)state;
    struct net *n = start_three();
    uint64_t epoch = net_placed(n, 0, "m")->epoch;
    n->node[1].self.figures.memory_bytes_free = 100 << 20;
    say_self(n, 1);
    net_run(n, 1000);
    assert_true(net_placed(n, 0, "m")->epoch > epoch);
    epoch = net_placed(n, 0, "m")->epoch;
    net_run(n, 20000); /* once */
    assert_int_equal(net_placed(n, 0, "m")->epoch, epoch);
    net_free(n);
}

static void test_revoke(void **state)
{
    (void)state;
    struct net *n = start_three();
    net_node_order(n, 0, 2, ORDER_REVOKE, 1);
    net_run(n, 2000);
    assert_true(n->node[0].n_disconnects > 0 && n->node[2].n_disconnects > 0);
    const struct node_id b = net_id(1);
    assert_true(cluster_is_revoked(n->node[0].core, &b));
    assert_null(cluster_find_member(n->node[2].core, &b));
    assert_true(net_is_serving(n, 0, "m"));
    assert_false(net_holds(net_placed(n, 0, "m"), 1));
    n->node[0].n_disconnects = 0;
    net_link(n, 0, 1); /* it tries again */
    assert_int_equal(n->node[0].n_disconnects, 1);
    assert_null(cluster_find_member(n->node[0].core, &b));
    net_free(n);
}

/* A node of an instance dies: the others keep their order, the instance its id. */
static void test_rank_dies(void **state)
{
    (void)state;
    struct net *n = start_three();
    struct node_id instance = net_placed(n, 0, "m")->id;
    net_kill(n, 1, true);
    net_run(n, 700);
    assert_true(net_is_serving(n, 0, "m"));
    const struct placed_instance *p = net_placed(n, 0, "m");
    assert_true(node_id_equal(&p->id, &instance));
    assert_int_equal(p->split.n_ranks, 2);
    assert_int_equal(net_index(&p->node_of_rank[0]), 0);
    assert_int_equal(net_index(&p->node_of_rank[1]), 2);
    net_free(n);
}

static void test_leader_dies(void **state)
{
    (void)state;
    struct net *n = start_three();
    net_kill(n, 0, true);
    net_run(n, 700);
    assert_true(net_is_serving(n, 1, "m"));
    assert_int_equal(net_index(&net_placed(n, 1, "m")->node_of_rank[0]), 1);
    net_free(n);
}

static struct net_run *find_run(struct net *n, uint32_t i)
{
    for (uint32_t k = 0; k < NET_RUNS_MAX; k++) {
        if (n->node[i].run[k].is_used && !n->node[i].run[k].is_stopping)
            return &n->node[i].run[k];
    }
    return NULL;
}

/* It fails again and again: at once, then after longer and longer waits, in the end without the
 * node that is to blame. */
static void test_backoff(void **state)
{
    (void)state;
    struct net *n = start_three();
    uint64_t failed_ms[6] = {0}, waits_ms[5];
    for (uint32_t i = 0; i < 5; i++) {
        struct net_run *run;
        uint64_t epoch = net_placed(n, 0, "m")->epoch;
        while ((run = find_run(n, 0)) == NULL || run->placed.epoch != epoch)
            net_run(n, 1);
        failed_ms[i] = n->now_ms;
        run->status = INSTANCE_FAILED;
        net_report(n, 0, run, INSTANCE_FAILED, 1u << 1, false);
        while (net_placed(n, 0, "m")->epoch == epoch)
            net_run(n, 1);
        waits_ms[i] = n->now_ms - failed_ms[i];
    }
    assert_in_range(waits_ms[0], 0, 10);
    assert_in_range(waits_ms[1], 250, 250 + 60);
    assert_in_range(waits_ms[2], 500, 500 + 300);
    assert_in_range(waits_ms[3], 1000, 1000 + 300);
    assert_false(net_holds(net_placed(n, 0, "m"), 1));
    assert_true(net_has_trace(n, "node=b failed often -> kept out"));
    net_free(n);
}

static void test_unfit_node(void **state)
{
    (void)state;
    struct net *n = start_three();
    struct net_run *run = find_run(n, 0);
    run->status = INSTANCE_FAILED;
    net_report(n, 0, run, INSTANCE_FAILED, 1u << 2, true);
    net_run(n, 1000);
    assert_true(net_is_serving(n, 0, "m"));
    assert_false(net_holds(net_placed(n, 0, "m"), 2));
    assert_true(net_has_trace(n, "cannot take part -> kept out"));
    net_free(n);
}

/* A new node is used, but only once the others have settled. */
static void test_join(void **state)
{
    (void)state;
    struct net *n = net_new(3, false);
    net_link(n, 0, 1);
    net_kill(n, 2, false);
    net_run(n, 2000);
    net_load(n, 0, 1, "m");
    net_run(n, 1000);
    assert_int_equal(net_placed(n, 0, "m")->split.n_ranks, 2);
    net_boot(n, 2, false, false);
    net_link(n, 0, 2);
    net_link(n, 1, 2);
    net_run(n, 1400);
    assert_int_equal(net_placed(n, 0, "m")->split.n_ranks, 2);
    net_run(n, 1000);
    assert_int_equal(net_placed(n, 0, "m")->split.n_ranks, 3);
    assert_true(net_is_serving(n, 2, "m"));
    assert_int_equal(net_placed(n, 0, "m")->n_repairs, 0);
    net_free(n);
}

static void test_wait_for_nodes(void **state)
{
    (void)state;
    struct net *n = net_new(3, false);
    net_link(n, 0, 1);
    net_run(n, 2000);
    struct cluster_order o = {.type = ORDER_LOAD, .model = net_model("m")};
    o.model.n_nodes_min = 3;
    net_order(n, 0, 1, &o);
    net_run(n, 2000);
    assert_null(net_placed(n, 0, "m"));
    assert_true(net_has_trace(n, "model=m waits for 3 nodes, 2 are here -> waits"));
    net_link(n, 0, 2);
    net_link(n, 1, 2);
    net_run(n, 2500);
    assert_int_equal(net_placed(n, 0, "m")->split.n_ranks, 3);
    /* Not for ever. */
    o.model = net_model("k");
    o.model.n_nodes_min = 7;
    net_order(n, 0, 2, &o);
    net_run(n, CLUSTER_WAIT_MS + 1000);
    assert_non_null(net_placed(n, 0, "k"));
    net_free(n);
}

static void test_does_not_fit(void **state)
{
    (void)state;
    struct net *n = net_new(2, false);
    for (uint32_t i = 0; i < 2; i++) {
        n->node[i].self.figures.memory_bytes_free = 1500 << 20;
        say_self(n, i);
    }
    net_run(n, 1000);
    net_load(n, 0, 1, "m");
    net_run(n, 3000);
    assert_null(net_placed(n, 0, "m"));
    const struct cluster_state *s = cluster_get_state(n->node[0].core);
    assert_true(s->model[0].problem[0] != '\0');
    net_link(n, 0, 1); /* together it fits */
    net_run(n, 4000);
    assert_true(net_is_serving(n, 0, "m"));
    assert_int_equal(net_placed(n, 0, "m")->split.n_ranks, 2);
    assert_true(cluster_get_state(n->node[0].core)->model[0].problem[0] == '\0');
    net_free(n);
}

/* ---- restarts ---- */

static void test_restart_with_disk(void **state)
{
    (void)state;
    struct net *n = start_three();
    net_node_order(n, 0, 2, ORDER_DRAIN, 1);
    net_run(n, 1000);
    for (uint32_t i = 0; i < 3; i++)
        net_kill(n, i, true);
    n->now_ms += 1000;
    for (uint32_t i = 0; i < 3; i++)
        net_boot(n, i, true, false);
    net_link(n, 0, 1);
    net_link(n, 0, 2);
    net_link(n, 1, 2);
    net_run(n, 2000);
    assert_int_equal(net_coordinator(n), 2);
    assert_true(cluster_get_state(n->node[0].core)->claim.term > 1);
    assert_true(net_is_serving(n, 0, "m"));
    assert_false(net_holds(net_placed(n, 0, "m"), 1));
    net_free(n);
}

/* It comes back before anybody has noticed: what it held is placed anew all the same. */
static void test_restart_unnoticed(void **state)
{
    (void)state;
    struct net *n = start_three();
    uint64_t epoch = net_placed(n, 1, "m")->epoch;
    net_kill(n, 0, false);
    net_boot(n, 0, false, false);
    net_link(n, 0, 1);
    net_link(n, 0, 2);
    net_run(n, 3500);
    assert_true(net_placed(n, 1, "m")->epoch > epoch);
    assert_true(net_is_serving(n, 0, "m"));
    assert_int_equal(net_n_running(n, "m"), 1);
    assert_true(net_has_trace(n, "c: peer=a has restarted"));
    net_free(n);
}

static void test_restart_of_coordinator(void **state)
{
    (void)state;
    struct net *n = start_three();
    net_kill(n, 2, true);
    net_run(n, 5);
    net_boot(n, 2, false, false);
    net_link(n, 0, 2);
    net_link(n, 1, 2);
    net_run(n, 4000);
    assert_int_equal(net_coordinator(n), 1);
    assert_true(net_is_serving(n, 2, "m"));
    assert_int_equal(net_n_running(n, "m"), 1);
    net_free(n);
}

/* It was alone with a greater term when it was saved: nobody's order is lost when it comes back. */
static void test_restart_with_greater_claim(void **state)
{
    (void)state;
    struct net *n = start_three();
    net_cut(n, 0, 1, true);
    net_cut(n, 0, 2, true);
    net_run(n, 3000);
    assert_true(cluster_is_coordinator(n->node[0].core));
    net_load(n, 0, 7, "mine");
    net_load(n, 1, 8, "yours");
    net_run(n, 500);
    net_kill(n, 0, true);
    net_run(n, 500);
    net_cut(n, 0, 1, false);
    net_cut(n, 0, 2, false);
    net_boot(n, 0, true, false);
    net_link(n, 0, 1);
    net_link(n, 0, 2);
    net_run(n, 4000);
    assert_int_equal(net_coordinator(n), 2);
    for (uint32_t i = 0; i < 3; i++) {
        assert_true(net_is_serving(n, i, "mine"));
        assert_true(net_is_serving(n, i, "yours"));
        assert_true(net_is_serving(n, i, "m"));
    }
    net_free(n);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_and_unload),
        cmocka_unit_test(test_bad_orders),
        cmocka_unit_test(test_limit_of_models),
        cmocka_unit_test(test_lost_answer),
        cmocka_unit_test(test_no_answer),
        cmocka_unit_test(test_order_outlives_coordinator),
        cmocka_unit_test(test_drain),
        cmocka_unit_test(test_stopping),
        cmocka_unit_test(test_hot_node),
        cmocka_unit_test(test_low_memory),
        cmocka_unit_test(test_revoke),
        cmocka_unit_test(test_rank_dies),
        cmocka_unit_test(test_leader_dies),
        cmocka_unit_test(test_backoff),
        cmocka_unit_test(test_unfit_node),
        cmocka_unit_test(test_join),
        cmocka_unit_test(test_wait_for_nodes),
        cmocka_unit_test(test_does_not_fit),
        cmocka_unit_test(test_restart_with_disk),
        cmocka_unit_test(test_restart_unnoticed),
        cmocka_unit_test(test_restart_of_coordinator),
        cmocka_unit_test(test_restart_with_greater_claim),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
