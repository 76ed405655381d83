/* The rule by memory and explicit splits: every layer once, within each node's memory, or a refusal
 * that gives the numbers. And the bytes of ranks, against the exact shards. */
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
    struct model_shape shape;
};

static struct fixture open_shape(const struct builder_shape *shape)
{
    struct fixture f = {0};
    struct gguf_file *file;
    struct error err = {0};
    builder_init(&f.builder);
    builder_model(&f.builder, shape);
    if (gguf_file_parse(f.builder.file.data, f.builder.file.len, &file, &err) != 0 ||
        model_from_file(file, &f.model, &err) != 0)
        fail_msg("%s", err.message);
    model_shape_init(&f.shape, f.model);
    return f;
}

static struct fixture open_model(uint32_t n_layer)
{
    struct builder_shape shape = builder_tiny;
    shape.n_layer = n_layer;
    return open_shape(&shape);
}

static struct placement_request request_of(const struct fixture *f, uint32_t n_nodes,
                                           const struct placement_node *nodes)
{
    return (struct placement_request){.shape = &f->shape,
                                      .model_name = "tiny",
                                      .n_nodes = n_nodes,
                                      .nodes = nodes,
                                      .rule = PLACEMENT_MEMORY};
}

static void close_model(struct fixture *f)
{
    model_close(f->model);
    builder_done(&f->builder);
}

static void name_nodes(struct placement_node *nodes, uint32_t n, uint64_t bytes_free)
{
    for (uint32_t i = 0; i < n; i++) {
        nodes[i] =
            (struct placement_node){.figures = {.memory_bytes_free = bytes_free, .n_cores = 4}};
        snprintf(nodes[i].name, sizeof(nodes[i].name), "node-%u", i);
    }
}

/* What every placement must satisfy. */
static void check(const struct placement_request *r, const struct placement *p)
{
    struct error err = {0};
    uint64_t used[NODES_MAX] = {0};
    uint32_t percent = r->memory_percent_max != 0 ? r->memory_percent_max : 80;
    if (split_check(&p->split, r->shape->n_layer, &err) != 0)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < p->split.n_ranks; i++) {
        assert_true(p->node_of_rank[i] < r->n_nodes);
        assert_false(r->nodes[p->node_of_rank[i]].is_excluded);
        assert_true(p->bytes_of_rank[i] > 0);
        used[p->node_of_rank[i]] += p->bytes_of_rank[i];
    }
    for (uint32_t i = 0; i < r->n_nodes; i++)
        assert_true(used[i] <= r->nodes[i].figures.memory_bytes_free / 100 * percent);
}

static void test_one_node(void **state)
{
    (void)state;
    struct fixture f = open_model(5);
    struct placement_node nodes[1];
    struct placement p;
    struct error err = {0};
    struct placement_request r = request_of(&f, 1, nodes);
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
    struct placement_request r = request_of(&f, 3, nodes);
    name_nodes(nodes, 3, 1ull << 30);
    nodes[1].figures.memory_bytes_free *= 2;
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
    struct placement_request r = request_of(&f, 4, nodes);
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
    struct placement_request r = request_of(&f, 3, nodes);
    name_nodes(nodes, 3, 8ull << 30);
    nodes[1].figures.memory_bytes_free = 1000;
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
    struct placement_request r = request_of(&f, 3, nodes);
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
    struct placement_request r = request_of(&f, 2, nodes);
    r.n_ctx = 1u << 20;
    r.n_slots = 64;
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
    r = request_of(&f, 1, nodes);
    r.memory_percent_max = 100;
    name_nodes(nodes, 1, 1ull << 40);
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    nodes[0].figures.memory_bytes_free = p.bytes_of_rank[0] + p.bytes_of_rank[0] / 10;
    assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
    nodes[0].figures.memory_bytes_free = p.bytes_of_rank[0] + p.bytes_of_rank[0] / 3;
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    close_model(&f);
}

/* About 4 GiB of weights on two nodes. */
static void test_larger_than_memory(void **state)
{
    (void)state;
    const struct model_shape shape = {.n_layer = 16,
                                      .n_embd = 4096,
                                      .n_ff = 14336,
                                      .n_head = 32,
                                      .n_head_kv = 8,
                                      .head_dim = 128,
                                      .n_vocab = 32000,
                                      .n_ctx_train = 2048,
                                      .layer_bytes = 256ull << 20,
                                      .embd_bytes = 64ull << 20,
                                      .output_bytes = 64ull << 20,
                                      .kv_token_layer_bytes = 4096};
    struct placement_node nodes[2];
    struct placement p, roomy;
    struct error err = {0};
    struct placement_request r = {
        .shape = &shape, .model_name = "large", .n_ctx = 512, .n_nodes = 2, .nodes = nodes};
    for (int rule = 0; rule < PLACEMENT_RULE_COUNT; rule++) {
        r.rule = (enum placement_rule)rule;
        r.may_page = true;
        name_nodes(nodes, 2, 16ull << 30);
        for (int i = 0; i < 2; i++) {
            nodes[i].figures.gflops = 100;
            nodes[i].figures.memory_gb_s = 10;
        }
        assert_int_equal(placement_solve(&r, &roomy, &err), 0);
        assert_true(roomy.bytes_paged == 0);

        nodes[0].figures.memory_bytes_free = nodes[1].figures.memory_bytes_free = 1ull << 30;
        r.may_page = false;
        assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
        r.may_page = true;
        assert_int_equal(placement_solve(&r, &p, &err), 0);
        assert_int_equal(split_check(&p.split, shape.n_layer, &err), 0);
        assert_int_equal(p.split.n_stages, 2);
        assert_int_equal(p.bytes_paged, p.bytes_of_rank[0] + p.bytes_of_rank[1] - (2ull << 30));
        assert_true(p.decode_tok_s < roomy.decode_tok_s / 2);

        /* What is no weight must be in memory; and there is an end to everything. */
        nodes[0].figures.memory_bytes_free = nodes[1].figures.memory_bytes_free = 16ull << 20;
        assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
        r.split = "tensor";
        nodes[0].figures.memory_bytes_free = nodes[1].figures.memory_bytes_free = 1ull << 30;
        assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
        r.split = NULL;
    }
    struct placement_report *report = calloc(1, sizeof(*report));
    assert_int_equal(placement_explain(&r, report, &err), 0);
    assert_true(report->candidate[0].is_feasible);
    assert_non_null(strstr(report->candidate[0].reason, "read from disk"));
    free(report);
}

static void test_excluded_and_unlinked(void **state)
{
    (void)state;
    struct fixture f = open_model(6);
    struct placement_node nodes[4];
    struct link_figures links[4][4];
    struct placement p;
    struct error err = {0};
    struct placement_request r = request_of(&f, 4, nodes);
    name_nodes(nodes, 4, 8ull << 30);
    nodes[0].is_excluded = true;
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    check(&r, &p);
    assert_int_equal(p.split.n_ranks, 3);
    /* Nodes 1 and 2 have no link: 3 stays with the one that has more memory. */
    memset(links, 0, sizeof(links));
    links[1][2].rtt_us = links[2][1].rtt_us = UINT32_MAX;
    r.links = links[0];
    nodes[2].figures.memory_bytes_free *= 2;
    assert_int_equal(placement_solve(&r, &p, &err), 0);
    check(&r, &p);
    assert_int_equal(p.split.n_ranks, 2);
    assert_int_equal(p.node_of_rank[0], 2);
    assert_int_equal(p.node_of_rank[1], 3);
    for (int i = 0; i < 4; i++)
        nodes[i].is_excluded = true;
    assert_int_equal(placement_solve(&r, &p, &err), E_UNAVAILABLE);
    assert_non_null(strstr(err.message, "none of 4"));
    close_model(&f);
}

/* Shapes like those of real models, with fewer layers and words. */
static const struct builder_shape real_shapes[] = {
    {"llama", 6, 576, 1536, 9, 3, 64, 8192, DTYPE_Q4_0, DTYPE_Q4_0, DTYPE_Q4_0, true, false, NULL},
    {"gemma3", 6, 640, 2048, 4, 1, 256, 8192, DTYPE_Q4_0, DTYPE_Q4_0, DTYPE_Q4_0, true, false,
     NULL},
    {"llama", 5, 1024, 3072, 16, 8, 64, 4096, DTYPE_Q4_0, DTYPE_Q4_0, DTYPE_Q8_0, false, false,
     NULL},
    {"llama", 5, 448, 2432, 14, 2, 32, 8192, DTYPE_Q8_0, DTYPE_Q8_0, DTYPE_Q8_0, true, true, NULL},
};

/* Weights and cache of each rank against the exact shard. With a context of one token graph
 * buffers, of which a shard knows nothing, are next to nothing. */
static void test_bytes_agree_with_shards(void **state)
{
    (void)state;
    static const char *const splits[] = {"1x1", "2x1", "4x1", "1x2", "1x3", "2x2", "1x5", "3x2"};
    double least = 0, most = 0;
    for (size_t i = 0; i < sizeof(real_shapes) / sizeof(real_shapes[0]); i++) {
        struct fixture f = open_shape(&real_shapes[i]);
        struct placement_node nodes[6];
        struct placement_request r = request_of(&f, 6, nodes);
        r.n_ctx = 1;
        name_nodes(nodes, 6, 8ull << 30);
        nodes[1].figures.memory_bytes_free *= 2;
        nodes[3].figures.memory_bytes_free *= 3;
        for (size_t k = 0; k < sizeof(splits) / sizeof(splits[0]); k++) {
            struct placement p;
            struct error err = {0};
            r.split = splits[k];
            assert_int_equal(placement_solve(&r, &p, &err), 0);
            for (uint32_t rank = 0; rank < p.split.n_ranks; rank++) {
                struct shard s;
                assert_int_equal(shard_init(&s, f.model, &p.split, rank, &err), 0);
                double exact =
                    (double)(shard_weight_bytes(&s, f.model) + shard_kv_token_bytes(&s, f.model));
                double error = ((double)p.bytes_of_rank[rank] - exact) / exact;
                least = error < least ? error : least;
                most = error > most ? error : most;
                if (error < -0.04 || error > 0.06)
                    fail_msg("shape %zu, %s, rank %u: %.0f bytes, %+.1f %% off", i, splits[k], rank,
                             exact, 100 * error);
                shard_done(&s);
            }
        }
        close_model(&f);
    }
    print_message("bytes of ranks are %+.1f to %+.1f %% off\n", 100 * least, 100 * most);
}

static void test_rule_names(void **state)
{
    (void)state;
    enum placement_rule rule;
    for (int i = 0; i < PLACEMENT_RULE_COUNT; i++) {
        assert_true(placement_rule_parse(placement_rule_name((enum placement_rule)i), &rule));
        assert_int_equal(rule, i);
    }
    assert_false(placement_rule_parse("luck", &rule));
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
                .shape = &f.shape,
                .model_name = "tiny",
                .rule = PLACEMENT_MEMORY,
                .n_ctx = (uint32_t)roll(seed, &position, 0, 8192),
                .n_slots = (uint32_t)roll(seed, &position, 0, 16),
                .n_nodes = (uint32_t)roll(seed, &position, 1, NODES_MAX),
                .nodes = nodes,
                .split = splits[roll(seed, &position, 0, sizeof(splits) / sizeof(splits[0]) - 1)],
                .memory_percent_max = (uint32_t)roll(seed, &position, 0, 100),
            };
            name_nodes(nodes, NODES_MAX, 0);
            nodes[roll(seed, &position, 0, NODES_MAX - 1)].is_excluded = true;
            for (uint32_t k = 0; k < r.n_nodes; k++)
                nodes[k].figures.memory_bytes_free = 1ull << roll(seed, &position, 10, 34);
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
        cmocka_unit_test(test_larger_than_memory),
        cmocka_unit_test(test_excluded_and_unlinked),
        cmocka_unit_test(test_bytes_agree_with_shards),
        cmocka_unit_test(test_rule_names),
        cmocka_unit_test(test_properties),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
