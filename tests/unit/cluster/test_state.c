/* The state that all agree on: which is newer, what is merged, and its bytes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cluster/samples.h"

static void test_claims(void **state)
{
    (void)state;
    const struct claim order[] = {{0, 0, {{0}}},          {1, 5, sample_id('a')},
                                  {1, 5, sample_id('b')}, {1, 6, sample_id('a')},
                                  {2, 1, sample_id('a')}, {2, 1, sample_id('c')}};
    for (size_t i = 0; i < 6; i++) {
        for (size_t k = 0; k < 6; k++) {
            int r = claim_compare(&order[i], &order[k]);
            assert_int_equal(r < 0, i < k);
            assert_int_equal(r > 0, i > k);
        }
    }
}

static void test_merge_models(void **state)
{
    (void)state;
    struct cluster_state *s = sample_state();
    bool is_full;
    struct desired_model m = sample_model("one");
    m.options.n_ctx = 1;
    assert_false(cluster_state_merge_model(s, &m, &is_full)); /* the same stamp */
    m.stamp.version--;
    assert_false(cluster_state_merge_model(s, &m, &is_full));
    m.stamp.version += 2;
    assert_true(cluster_state_merge_model(s, &m, &is_full));
    assert_int_equal(s->model[0].options.n_ctx, 1);
    assert_int_equal(s->n_models, 2);
    /* Full: what was unloaded first makes room, until all are wanted. */
    for (uint32_t i = 0; i < 2 * LIMIT_INSTANCES - 1; i++) {
        char id[16];
        snprintf(id, sizeof(id), "m%u", i);
        m = sample_model(id);
        assert_true(cluster_state_merge_model(s, &m, &is_full));
    }
    assert_int_equal(s->n_models, 2 * LIMIT_INSTANCES);
    assert_int_equal(cluster_state_find_model(s, "two"), -1);
    m = sample_model("last");
    assert_false(cluster_state_merge_model(s, &m, &is_full));
    assert_true(is_full);
    free(s);
}

static void test_merge_orders(void **state)
{
    (void)state;
    struct cluster_state *s = sample_state();
    bool is_full;
    for (uint32_t i = 0; i < LIMIT_PEERS - 1; i++) {
        struct node_order o = {.node = {{1, (uint8_t)(i >> 8), (uint8_t)i}}, .is_drained = i != 7};
        o.stamp.version = i;
        assert_true(cluster_state_merge_order(s, &o, &is_full));
    }
    struct node_order o = {.node = sample_id('z'), .is_revoked = true};
    assert_true(
        cluster_state_merge_order(s, &o, &is_full)); /* in the place of one that says nothing */
    o.node = sample_id('y');
    assert_false(cluster_state_merge_order(s, &o, &is_full));
    assert_true(is_full);
    free(s);
}

static void test_remove_instance(void **state)
{
    (void)state;
    struct cluster_state *s = sample_state();
    s->instance[1] = s->instance[0];
    s->instance[1].epoch = 99;
    s->n_instances = 2;
    cluster_state_remove_instance(s, 0);
    assert_int_equal(s->n_instances, 1);
    assert_int_equal(s->instance[0].epoch, 99);
    cluster_state_remove_instance(s, 0);
    assert_int_equal(s->n_instances, 0);
    free(s);
}

static int recode(const struct cluster_state *s, struct cluster_state *ret, struct error *err)
{
    struct buf b;
    struct cursor c;
    buf_init(&b, 1 << 20);
    assert_int_equal(cluster_state_encode(&b, s), 0);
    cursor_init(&c, b.data, b.len);
    int rc = cluster_state_decode(&c, ret, err);
    buf_done(&b);
    return rc;
}

static void test_bytes(void **state)
{
    (void)state;
    struct cluster_state *s = sample_state(), *t = calloc(1, sizeof(*t));
    struct error err = {0};
    assert_non_null(t);
    assert_int_equal(recode(s, t, &err), 0);
    assert_memory_equal(s, t, sizeof(*s));
    s->model[1] = s->model[0];
    assert_int_equal(recode(s, t, &err), E_PROTOCOL); /* twice the same */
    s->n_models = 1;
    s->order[1] = s->order[0];
    s->n_orders = 2;
    assert_int_equal(recode(s, t, &err), E_PROTOCOL);
    s->n_orders = 1;
    s->instance[1] = s->instance[0];
    s->instance[1].id = sample_id('j');
    s->n_instances = 2;
    assert_int_equal(recode(s, t, &err), E_PROTOCOL);
    s->n_instances = 1;
    s->claim.term = (uint64_t)CLUSTER_TERM_MAX + 1;
    assert_int_equal(recode(s, t, &err), E_PROTOCOL);
    s->claim.term = 1;
    s->model[0].shape.n_layer = 0;
    assert_int_equal(recode(s, t, &err), E_PROTOCOL);
    s->model[0].shape.n_layer = 24;
    memcpy(s->model[0].id, "a\nb", 4);
    assert_int_equal(recode(s, t, &err), E_PROTOCOL);
    free(s);
    free(t);
}

/* The largest state that can be fits into a message. */
static void test_largest(void **state)
{
    (void)state;
    struct cluster_state *s = sample_state();
    struct buf b;
    for (s->n_models = 0; s->n_models < 2 * LIMIT_INSTANCES; s->n_models++) {
        struct desired_model *m = &s->model[s->n_models];
        *m = sample_model("");
        memset(m->id, 'x', sizeof(m->id) - 1);
        memset(m->path, 'x', sizeof(m->path) - 1);
        memset(m->split, 'x', sizeof(m->split) - 1);
        memset(m->problem, 'x', sizeof(m->problem) - 1);
    }
    s->n_orders = LIMIT_PEERS;
    for (s->n_instances = 0; s->n_instances < LIMIT_INSTANCES; s->n_instances++) {
        struct placed_instance *p = &s->instance[s->n_instances];
        *p = s->instance[0];
        memset(p->model_id, 'x', sizeof(p->model_id) - 1);
        assert_int_equal(split_parse("pipeline", LIMIT_RANKS, 64, NULL, &p->split, NULL), 0);
    }
    buf_init(&b, CLUSTER_MESSAGE_BYTES_MAX);
    assert_int_equal(message_put_state(&b, 1, true, 0, s), 0);
    assert_true(b.len < 400000);
    buf_done(&b);
    free(s);
}

static void test_figures(void **state)
{
    (void)state;
    struct node_figures f = {.battery_percent = 255, .thermal = THERMAL_CRITICAL}, g;
    struct buf b;
    struct cursor c;
    buf_init(&b, 1000);
    node_figures_encode(&b, &f);
    cursor_init(&c, b.data, b.len);
    assert_int_equal(node_figures_decode(&c, &g, NULL), 0);
    assert_memory_equal(&f, &g, sizeof(f));
    static const float bad[] = {-1, 1.0F / 0.0F, 0.0F / 0.0F};
    for (size_t i = 0; i < 3; i++) {
        f.gflops = bad[i];
        buf_reset(&b);
        node_figures_encode(&b, &f);
        cursor_init(&c, b.data, b.len);
        assert_int_equal(node_figures_decode(&c, &g, NULL), E_PROTOCOL);
    }
    assert_string_equal(thermal_state_name(THERMAL_THROTTLING), "throttling");
    assert_string_equal(thermal_state_name((enum thermal_state)99), "unknown");
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_claims),       cmocka_unit_test(test_merge_models),
        cmocka_unit_test(test_merge_orders), cmocka_unit_test(test_remove_instance),
        cmocka_unit_test(test_bytes),        cmocka_unit_test(test_largest),
        cmocka_unit_test(test_figures),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
