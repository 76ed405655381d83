/*
 * Fails the n-th allocation in turn, for every n, while three nodes come together, load a model,
 * lose one of them and meet again. A lost allocation costs a message or an event, never the state:
 * all must agree in the end. The sources are included here with their allocator replaced.
 */
#include "failing_alloc.h"

#include "base/buf.c"
#include "cluster/cluster.c"
#include "cluster/election.c"
#include "cluster/gain.c"
#include "cluster/lead.c"
#include "cluster/membership.c"
#include "cluster/orders.c"
#include "cluster/place.c"
#include "cluster/repair.c"
#include "cluster/suspicion.c"
#include "cluster/ways.c"
#undef malloc
#undef calloc
#undef realloc

#include "cluster/net.h"

static void run_story(struct net *n)
{
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t k = 0; k < i; k++)
            net_link(n, k, i);
    }
    net_run(n, 1000);
    net_load(n, 0, 1, "m");
    net_run(n, 1000);
    net_cut(n, 0, 2, true);
    net_cut(n, 1, 2, true);
    net_run(n, 2500);
    net_load(n, 2, 2, "k");
    net_run(n, 1000);
    net_cut(n, 0, 2, false);
    net_cut(n, 1, 2, false);
    net_run(n, 8000);
}

static void check_end(struct net *n, long which)
{
    if (net_coordinator(n) < 0)
        fail_msg("allocation %ld: no coordinator in the end", which);
    for (uint32_t i = 0; i < 3; i++) {
        /* An order that was lost for lack of memory was answered so. */
        bool is_m = n->node[0].answer.code == 0, is_k = n->node[2].answer.code == 0;
        if ((is_m && !net_is_serving(n, i, "m")) || (is_k && !net_is_serving(n, i, "k")))
            fail_msg("allocation %ld: a model does not serve in the end", which);
    }
    assert_int_equal(n->node[0].n_answers, 1);
    assert_int_equal(n->node[2].n_answers, 1);
}

static void test_each_allocation(void **state)
{
    (void)state;
    long n_tried = 0;
    for (bool is_over = false; !is_over; n_tried++) {
        struct net *n = net_new(3, false);
        n->is_nomem_allowed = true;
        allocations_left = n_tried;
        run_story(n);
        is_over = allocations_left >= 0;
        allocations_left = -1;
        if (n->n_link_ups_lost == 0) /* the mesh would close such a link and try again */
            check_end(n, n_tried);
        net_free(n);
        assert_true(n_tried < 5000);
    }
    assert_true(n_tried > 20);
}

static void test_new(void **state)
{
    (void)state;
    const struct cluster_options o = {.id = net_id(0), .incarnation = 1};
    for (long i = 0;; i++) {
        struct cluster *c = NULL;
        struct error err = {0};
        allocations_left = i;
        int rc = cluster_new(&o, 1000, &c, &err);
        allocations_left = -1;
        if (rc == 0) {
            cluster_free(c);
            assert_true(i >= 4);
            break;
        }
        assert_int_equal(rc, E_NOMEM);
        assert_null(c);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_allocation),
        cmocka_unit_test(test_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
