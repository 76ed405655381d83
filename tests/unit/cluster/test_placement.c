/* Placement: every layer once, within each node's memory, or a refusal that gives the numbers. */
#include "cluster/placement.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model/gguf_builder.h"

enum { NODES_MAX = 12 };

struct fixture {
    struct builder builder;
    struct model *model;
};

static struct fixture open_model(uint32_t n_layer)
{
    struct fixture f = {0};
    struct builder_shape shape = builder_tiny;
    struct gguf_file *file;
    struct error err = {0};
    shape.n_layer = n_layer;
    builder_init(&f.builder);
    builder_model(&f.builder, &shape);
    if (gguf_file_parse(f.builder.file.data, f.builder.file.len, &file, &err) != 0 ||
        model_from_file(file, &f.model, &err) != 0)
        fail_msg("%s", err.message);
    return f;
}

static void close_model(struct fixture *f)
{
    model_close(f->model);
    builder_done(&f->builder);
}

static void name_nodes(struct placement_node *nodes, uint32_t n, uint64_t bytes_free)
{
    for (uint32_t i = 0; i < n; i++) {
        nodes[i] = (struct placement_node){.memory_bytes_free = bytes_free, .n_cores = 4};
        snprintf(nodes[i].name, sizeof(nodes[i].name), "node-%u", i);
    }
}

/* What every placement must satisfy. */
static void check(const struct placement_request *r, const struct placement *p)
{
    struct error err = {0};
    uint64_t used[NODES_MAX] = {0};
    uint32_t percent = r->memory_percent_max != 0 ? r->memory_percent_max : 80;
    if (split_check(&p->split, r->model->config.n_layer, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(p->node_of_rank[0], 0); /* the coordinator's own rank is the head */
    for (uint32_t i = 0; i < p->split.n_ranks; i++) {
        assert_true(p->node_of_rank[i] < r->n_nodes);
        assert_true(p->bytes_of_rank[i] > 0);
        used[p->node_of_rank[i]] += p->bytes_of_rank[i];
    }
    for (uint32_t i = 0; i < r->n_nodes; i++)
        assert_true(used[i] <= r->nodes[i].memory_bytes_free / 100 * percent);
}

static void test_one_node(void **state)
{
    (void)state;
    struct fixture f = open_model(5);
    struct placement_node nodes[1];
    struct placement p;
    struct error err = {0};
    struct placement_request r = {.model = f.model, .n_nodes = 1, .nodes = nodes};
    name_nodes(nodes, 1, 8ull << 30);
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    check(&r, &p);
    assert_int_equal(p.split.n_ranks, 1);
    assert_int_equal(p.split.stage[0].layers.end, 5);
    close_model(&f);
}

/* Layers in proportion to memory: 1 : 2 : 1 GiB of eight layers. */
static void test_by_memory(void **state)
{
    (void)state;
    struct fixture f = open_model(8);
    struct placement_node nodes[3];
    struct placement p;
    struct error err = {0};
    struct placement_request r = {.model = f.model, .n_nodes = 3, .nodes = nodes};
    name_nodes(nodes, 3, 1ull << 30);
    nodes[1].memory_bytes_free *= 2;
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    check(&r, &p);
    static const uint32_t expected[] = {2, 4, 2};
    assert_int_equal(p.split.n_ranks, 3);
    for (uint32_t i = 0; i < 3; i++)
        assert_int_equal(p.split.stage[i].layers.end - p.split.stage[i].layers.begin, expected[i]);
    close_model(&f);
}

static void test_more_nodes_than_layers(void **state)
{
    (void)state;
    struct fixture f = open_model(2);
    struct placement_node nodes[4];
    struct placement p;
    struct error err = {0};
    struct placement_request r = {.model = f.model, .n_nodes = 4, .nodes = nodes};
    name_nodes(nodes, 4, 8ull << 30);
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    check(&r, &p);
    assert_int_equal(p.split.n_ranks, 2);
    close_model(&f);
}

static void test_node_without_memory_is_left_out(void **state)
{
    (void)state;
    struct fixture f = open_model(6);
    struct placement_node nodes[3];
    struct placement p;
    struct error err = {0};
    struct placement_request r = {.model = f.model, .n_nodes = 3, .nodes = nodes};
    name_nodes(nodes, 3, 8ull << 30);
    nodes[1].memory_bytes_free = 1000;
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    check(&r, &p);
    assert_int_equal(p.split.n_ranks, 2);
    assert_int_equal(p.node_of_rank[1], 2);
    close_model(&f);
}

static void test_explicit(void **state)
{
    (void)state;
    struct fixture f = open_model(6);
    struct placement_node nodes[3];
    struct placement p;
    struct error err = {0};
    struct placement_request r = {.model = f.model, .n_nodes = 3, .nodes = nodes};
    name_nodes(nodes, 3, 8ull << 30);
    static const struct {
        const char *split;
        uint32_t n_ranks, n_stages;
    } cases[] = {{"pipeline", 3, 3}, {"tensor", 3, 1}, {"2x2", 4, 2}, {"1x2", 2, 1}, {"6x1", 6, 6}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        r.split = cases[i].split;
        if (placement_solve(&r, &p, &err) != 0)
            fail_msg("%s: %s", r.split, err.message);
        check(&r, &p);
        assert_int_equal(p.split.n_ranks, cases[i].n_ranks);
        assert_int_equal(p.split.n_stages, cases[i].n_stages);
        for (uint32_t k = 0; k < p.split.n_ranks; k++) /* round robin over the nodes */
            assert_int_equal(p.node_of_rank[k], k % (p.split.n_ranks < 3 ? p.split.n_ranks : 3));
    }
    static const char *const wrong[] = {"", "ring", "0x2", "2x0", "65x1", "99x99", "7x1", "2x2x2"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        r.split = wrong[i];
        assert_int_equal(placement_solve(&r, &p, &err), E_INVALID);
    }
    close_model(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    struct fixture f = open_model(6);
    struct placement_node nodes[2];
    struct placement p;
    struct error err = {0};
    struct placement_request r = {
        .model = f.model, .n_nodes = 2, .nodes = nodes, .n_ctx = 1u << 20, .n_slots = 64};
    name_nodes(nodes, 2, 1ull << 20);
    assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "GiB"));
    assert_non_null(strstr(err.message, "80 %"));
    assert_non_null(strstr(err.message, "node-"));
    r.split = "tensor";
    assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
    r.n_nodes = 0;
    assert_int_equal(placement_solve(&r, &p, &err), E_INVALID);
    r.n_nodes = 1;
    r.memory_percent_max = 101;
    assert_int_equal(placement_solve(&r, &p, &err), E_INVALID);
    /* A node may be filled to 100 %, the whole cluster never over 80 %. */
    r = (struct placement_request){
        .model = f.model, .n_nodes = 1, .nodes = nodes, .memory_percent_max = 100};
    name_nodes(nodes, 1, 1ull << 40);
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    nodes[0].memory_bytes_free = p.bytes_of_rank[0] + p.bytes_of_rank[0] / 10;
    assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
    nodes[0].memory_bytes_free = p.bytes_of_rank[0] + p.bytes_of_rank[0] / 3;
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    close_model(&f);
}

static uint64_t roll(uint64_t seed, uint64_t *position, uint64_t min, uint64_t max)
{
    return min + rng_u64(seed, (*position)++, 0) % (max - min + 1);
}

/* Random clusters: what is solved is right, what is refused says why; and the same question has the
 * same answer. */
static void test_properties(void **state)
{
    (void)state;
    static const char *const splits[] = {NULL, NULL, "pipeline", "tensor", "2x2", "3x2", "1x4"};
    int n_solved = 0, n_refused = 0;
    for (uint64_t seed = 1; seed <= 40; seed++) {
        uint64_t position = 0;
        struct fixture f = open_model((uint32_t)roll(seed, &position, 1, 40));
        for (int i = 0; i < 25; i++) {
            struct placement_node nodes[NODES_MAX];
            struct placement p = {0}, again = {0};
            struct error err = {0};
            struct placement_request r = {
                .model = f.model,
                .n_ctx = (uint32_t)roll(seed, &position, 0, 8192),
                .n_slots = (uint32_t)roll(seed, &position, 0, 16),
                .n_nodes = (uint32_t)roll(seed, &position, 1, NODES_MAX),
                .nodes = nodes,
                .split = splits[roll(seed, &position, 0, sizeof(splits) / sizeof(splits[0]) - 1)],
                .memory_percent_max = (uint32_t)roll(seed, &position, 0, 100),
            };
            name_nodes(nodes, r.n_nodes, 0);
            for (uint32_t k = 0; k < r.n_nodes; k++)
                nodes[k].memory_bytes_free = 1ull << roll(seed, &position, 10, 34);
            int rc = placement_solve(&r, &p, &err);
            assert_int_equal(placement_solve(&r, &again, &err), rc);
            assert_memory_equal(&p, &again, sizeof(p));
            if (rc == 0) {
                check(&r, &p);
                n_solved++;
            } else {
                assert_true(rc == E_UNAVAILABLE || rc == E_INVALID);
                assert_true(err.message[0] != '\0');
                n_refused++;
            }
        }
        close_model(&f);
    }
    assert_true(n_solved > 100 && n_refused > 100);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_node),
        cmocka_unit_test(test_by_memory),
        cmocka_unit_test(test_more_nodes_than_layers),
        cmocka_unit_test(test_node_without_memory_is_left_out),
        cmocka_unit_test(test_explicit),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_properties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
