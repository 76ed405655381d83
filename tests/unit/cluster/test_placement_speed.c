/* The rule by speed: against brute force where that is possible, and against what must hold
 * everywhere else. */
#include "cluster/placement_internal.h"

#include "base/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { NODES_MAX = 100 };

struct dice {
    uint64_t seed, position;
};

static uint64_t roll(struct dice *d, uint64_t min, uint64_t max)
{
    return min + rng_u64(d->seed, d->position++, 0) % (max - min + 1);
}

/* About a 1B model of 4 bits: 16 layers of 34 MB. */
static const struct model_shape model_1b = {
    .n_layer = 16,
    .n_embd = 2048,
    .n_ff = 8192,
    .n_head = 32,
    .n_head_kv = 8,
    .head_dim = 64,
    .n_vocab = 49152,
    .n_ctx_train = 4096,
    .layer_bytes = 34u << 20,
    .embd_bytes = 56u << 20,
    .output_bytes = 56u << 20,
    .kv_token_layer_bytes = 2048,
};

struct cluster_fixture {
    struct placement_node nodes[NODES_MAX];
    struct link_figures links[NODES_MAX * NODES_MAX];
    struct placement_request r;
};

static struct cluster_fixture *make_cluster(const struct model_shape *shape, uint32_t n)
{
    struct cluster_fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    for (uint32_t i = 0; i < n; i++) {
        f->nodes[i].figures = (struct node_figures){.memory_bytes_free = 16ull << 30,
                                                    .n_cores = 8,
                                                    .gflops = 400,
                                                    .memory_gb_s = 40,
                                                    .battery_percent = 255};
        snprintf(f->nodes[i].name, sizeof(f->nodes[i].name), "node-%u", i);
    }
    for (uint32_t i = 0; i < n * n; i++)
        f->links[i] = (struct link_figures){.rtt_us = 300, .mbit_s = 1000};
    f->r = (struct placement_request){.shape = shape,
                                      .model_name = "model",
                                      .n_ctx = 2048,
                                      .n_nodes = n,
                                      .nodes = f->nodes,
                                      .links = f->links};
    return f;
}

static void set_link(struct cluster_fixture *f, uint32_t a, uint32_t b, uint32_t rtt_us, float mbit)
{
    f->links[a * f->r.n_nodes + b] = f->links[b * f->r.n_nodes + a] =
        (struct link_figures){.rtt_us = rtt_us, .mbit_s = mbit};
}

/* Unlike nodes and links. tightness: 0, everything fits anywhere; 1, some nodes are too small; 2,
 * most are needed. */
static void randomize(struct cluster_fixture *f, struct dice *d, int tightness)
{
    uint32_t n = f->r.n_nodes;
    uint64_t layer = f->r.shape->layer_bytes, whole = f->r.shape->n_layer * layer;
    uint64_t part = whole / n > 2 * layer ? whole / n : 2 * layer;
    for (uint32_t i = 0; i < n; i++) {
        struct node_figures *x = &f->nodes[i].figures;
        x->gflops = (float)roll(d, 20, 2000);
        x->memory_gb_s = (float)roll(d, 5, 200);
        x->memory_bytes_free = roll(d, 4, 16) << 30;
        if (tightness > 0)
            x->memory_bytes_free = roll(d, whole / 4, 3 * whole);
        if (tightness > 1)
            x->memory_bytes_free = roll(d, part + (180u << 20), 3 * part + (360u << 20));
        if (roll(d, 0, 9) == 0)
            x->gflops = x->memory_gb_s = 0;
        if (roll(d, 0, 14) == 0)
            f->nodes[i].is_excluded = true;
        for (uint32_t k = 0; k < i; k++)
            set_link(f, i, k, (uint32_t)roll(d, 20, 2000), (float)roll(d, 100, 10000));
        if (i > 0 && roll(d, 0, 5) == 0)
            set_link(f, i, (uint32_t)roll(d, 0, i - 1), roll(d, 0, 1) ? UINT32_MAX : 0, 0);
    }
}

/* ---- what must hold for every placement ---- */

static void check(const struct placement_request *r, const struct placement *p)
{
    struct error err = {0};
    if (split_check(&p->split, r->shape->n_layer, &err) != 0)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < p->split.n_ranks; i++) {
        uint32_t node = p->node_of_rank[i];
        assert_true(node < r->n_nodes);
        assert_false(r->nodes[node].is_excluded);
        assert_true(p->bytes_of_rank[i] > 0);
        assert_true(p->bytes_of_rank[i] <= r->nodes[node].figures.memory_bytes_free / 100 * 80);
        for (uint32_t k = 0; k < i; k++) {
            assert_true(p->node_of_rank[k] != node);
            assert_true(nodes_are_linked(r, p->node_of_rank[k], node));
        }
    }
    struct placement again = *p;
    placement_price(r, &again);
    assert_memory_equal(&again, p, sizeof(again));
}

static double price_of(const struct placement_request *r, const struct placement *x)
{
    struct pricing p;
    struct cost c;
    struct error err = {0};
    assert_int_equal(pricing_init(&p, r, &err), 0);
    placement_cost(&p, x, &c);
    return pricing_scalar(&p, &c);
}

/* ---- brute force ---- */

struct brute {
    const struct pricing *p;
    uint32_t used; /* set of nodes */
    struct placement x;
    double best;
    uint64_t n_tried;
};

static void try_stages(struct brute *b);

/* The stage's ranks are there: every number of layers. */
static void try_layers(struct brute *b)
{
    struct split *s = &b->x.split;
    struct split_stage *stage = &s->stage[s->n_stages - 1];
    uint32_t begin = s->n_stages > 1 ? stage[-1].layers.end : 0, n_layer = b->p->shape->n_layer;
    for (uint32_t end = begin + 1; end <= n_layer; end++) {
        stage->layers = (struct range){begin, end};
        if (end < n_layer) {
            try_stages(b);
            continue;
        }
        struct found f = {.placement = b->x};
        found_finish(b->p, &f);
        b->n_tried++;
        b->best = fmin(b->best, f.price);
    }
}

/* Shares as the search has them, and any node of the first stage as the head. */
static void try_shares(struct brute *b, const uint32_t *nodes, uint32_t n)
{
    struct split *s = &b->x.split;
    struct split_stage *stage = &s->stage[s->n_stages++];
    uint32_t first = s->n_ranks, n_layer = b->p->shape->n_layer;
    uint32_t n_heads = s->n_stages == 1 ? n : 1;
    *stage = (struct split_stage){.rank_first = first, .n_ranks = n};
    s->n_ranks += n;
    for (uint32_t head = 0; head < n_heads; head++) {
        for (uint32_t i = 0; i < n; i++)
            b->x.node_of_rank[first + i] = nodes[i];
        b->x.node_of_rank[first] = nodes[head];
        b->x.node_of_rank[first + head] = nodes[0];
        const uint32_t *order = &b->x.node_of_rank[first];
        uint32_t *weight = &s->weight[first];
        for (int way = 0; way < (n == 1 ? 1 : 4); way++) {
            bool is_possible = true;
            if (n == 1)
                weight[0] = 1;
            else if (way < 3)
                is_possible = stage_weights(b->p, order, n,
                                            way == 0   ? 0
                                            : way == 1 ? n_layer
                                                       : (n_layer + 1) / 2,
                                            weight);
            else
                stage_weights_by_memory(b->p, order, n, weight);
            if (is_possible)
                try_layers(b);
        }
    }
    s->n_ranks -= n;
    s->n_stages--;
}

static void try_stages(struct brute *b)
{
    const struct placement_request *r = b->p->r;
    for (uint32_t set = 1; set < 1u << r->n_nodes; set++) {
        uint32_t nodes[8] = {0}, n = 0;
        bool is_possible = (set & b->used) == 0;
        for (uint32_t i = 0; i < r->n_nodes; i++) {
            if (!(set >> i & 1))
                continue;
            nodes[n++] = i;
            is_possible = is_possible && !r->nodes[i].is_excluded;
            for (uint32_t k = 0; k < r->n_nodes; k++)
                if ((set | b->used) >> k & 1)
                    is_possible = is_possible && nodes_are_linked(r, i, k);
        }
        if (!is_possible)
            continue;
        b->used |= set;
        try_shares(b, nodes, n);
        b->used &= ~set;
    }
}

/* Two pairs of neighbours, far from each other, and a model that one pair cannot hold. */
static void make_pairs(struct cluster_fixture *f, uint64_t model_bytes)
{
    for (uint32_t i = 0; i < f->r.n_nodes; i++) {
        f->nodes[i].is_excluded = false;
        f->nodes[i].figures.memory_bytes_free = model_bytes * 2 / 5 + (300u << 20);
        for (uint32_t k = 0; k < i; k++)
            set_link(f, i, k, i / 2 == k / 2 ? 10 + i : 2000 + i, 20000);
    }
}

static void test_exact_equals_brute_force(void **state)
{
    (void)state;
    uint64_t n_tried = 0;
    int n_solved = 0, n_hybrid = 0, n_several = 0;
    for (uint64_t seed = 1; seed <= 100; seed++) {
        struct dice d = {seed, 0};
        struct model_shape shape = model_1b;
        shape.n_layer = (uint32_t)roll(&d, 2, 5);
        shape.layer_bytes *= 16;
        shape.n_head_kv = (uint32_t)roll(&d, 0, 1) ? 8 : 3;
        shape.n_head = shape.n_head_kv * 4;
        struct cluster_fixture *f = make_cluster(&shape, (uint32_t)roll(&d, 1, 4));
        randomize(f, &d, (int)roll(&d, 0, 2));
        if (seed % 3 == 0)
            make_pairs(f, shape.n_layer * shape.layer_bytes);
        struct pricing p;
        struct placement x = {0};
        struct error err = {0};
        assert_int_equal(pricing_init(&p, &f->r, &err), 0);
        struct brute b = {.p = &p, .best = INFINITY};
        try_stages(&b);
        n_tried += b.n_tried;
        uint64_t n_evaluated = 0;
        int rc = solve_by_speed(&p, &x, &n_evaluated, &err);
        assert_int_equal(rc == 0, b.best < INFINITY);
        if (rc == 0) {
            double price = price_of(&f->r, &x);
            if (fabs(price - b.best) > 1e-5 * b.best)
                fail_msg("seed %llu: %g, by brute force %g", (unsigned long long)seed, price,
                         b.best);
            n_solved++;
            n_several += x.split.n_ranks > 1;
            n_hybrid += x.split.n_stages > 1 && x.split.n_stages < x.split.n_ranks;
        }
        free(f);
    }
    print_message("%d solved, %d on several nodes, %d hybrids, %llu placements by brute force\n",
                  n_solved, n_several, n_hybrid, (unsigned long long)n_tried);
    assert_true(n_solved > 40 && n_several > 20 && n_hybrid > 0);
}

/* ---- stories ---- */

static void solve(const struct cluster_fixture *f, struct placement *ret)
{
    struct error err = {0};
    if (placement_solve(&f->r, ret, &err) != 0)
        fail_msg("%s", err.message);
    check(&f->r, ret);
}

static void test_one_node_when_the_network_is_slow(void **state)
{
    (void)state;
    struct cluster_fixture *f = make_cluster(&model_1b, 3);
    struct placement p;
    for (uint32_t i = 0; i < 3; i++)
        for (uint32_t k = 0; k < i; k++)
            set_link(f, i, k, 5000, 100);
    f->nodes[1].figures.memory_gb_s = 80;
    solve(f, &p);
    assert_int_equal(p.split.n_ranks, 1);
    assert_int_equal(p.node_of_rank[0], 1);
    assert_true(p.decode_tok_s > 60 && p.prefill_tok_s > 60);
    free(f);
}

static void test_tensor_when_it_is_fast(void **state)
{
    (void)state;
    struct cluster_fixture *f = make_cluster(&model_1b, 4);
    struct placement p, alone;
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t k = 0; k < i; k++)
            set_link(f, i, k, 20, 40000);
    solve(f, &p);
    assert_int_equal(p.split.n_stages, 1);
    assert_true(p.split.n_ranks > 1);
    f->r.n_nodes = 1;
    f->r.links = NULL;
    assert_int_equal(placement_solve(&f->r, &alone, NULL), 0);
    assert_true(p.decode_tok_s > 1.5f * alone.decode_tok_s);
    free(f);
}

/* A model for which all three are needed: who is slow gets less, and the whole is faster than by
 * memory alone. */
static void test_slow_node_gets_less(void **state)
{
    (void)state;
    struct cluster_fixture *f = make_cluster(&model_1b, 3);
    struct placement p, baseline;
    for (uint32_t i = 0; i < 3; i++)
        f->nodes[i].figures.memory_bytes_free = 700u << 20;
    f->nodes[1].figures.memory_gb_s = 10;
    f->nodes[1].figures.gflops = 50;
    solve(f, &p);
    f->r.rule = PLACEMENT_MEMORY;
    solve(f, &baseline);
    assert_true(p.decode_tok_s > 1.2f * baseline.decode_tok_s);
    for (uint32_t i = 0; i < p.split.n_stages; i++)
        if (p.node_of_rank[i] == 1)
            assert_true(p.split.stage[i].layers.end - p.split.stage[i].layers.begin <= 3);
    free(f);
}

/* Tensor shares follow speed: 1 : 3 in reading and computing. */
static void test_shares_follow_speed(void **state)
{
    (void)state;
    struct cluster_fixture *f = make_cluster(&model_1b, 2);
    struct placement p;
    set_link(f, 0, 1, 10, 100000);
    f->nodes[0].figures.memory_gb_s = 20;
    f->nodes[0].figures.gflops = 200;
    f->nodes[1].figures.memory_gb_s = 60;
    f->nodes[1].figures.gflops = 600;
    solve(f, &p);
    assert_int_equal(p.split.n_ranks, 2);
    assert_int_equal(p.split.n_stages, 1);
    uint32_t slow = p.node_of_rank[0] == 0 ? 0 : 1;
    double ratio = (double)p.split.weight[1 - slow] / p.split.weight[slow];
    assert_true(ratio > 2.9 && ratio < 3.1);
    free(f);
}

/* Unknown figures: an answer, by cores, but no prediction. */
static void test_unknown_figures(void **state)
{
    (void)state;
    struct cluster_fixture *f = make_cluster(&model_1b, 3);
    struct placement p;
    for (uint32_t i = 0; i < 3; i++)
        f->nodes[i].figures.gflops = f->nodes[i].figures.memory_gb_s = 0;
    f->nodes[2].figures.n_cores = 16;
    for (uint32_t i = 0; i < 9; i++)
        f->links[i] = (struct link_figures){.rtt_us = 9000};
    solve(f, &p);
    assert_int_equal(p.split.n_ranks, 1);
    assert_int_equal(p.node_of_rank[0], 2);
    assert_true(p.decode_tok_s == 0 && p.prefill_tok_s == 0);
    free(f);
}

/* ---- properties ---- */

static void test_properties(void **state)
{
    (void)state;
    int n_solved = 0, n_refused = 0, n_better = 0;
    for (uint64_t seed = 1; seed <= 120; seed++) {
        struct dice d = {seed, 0};
        struct model_shape shape = model_1b;
        shape.n_layer = (uint32_t)roll(&d, 1, 300);
        shape.n_head_kv = (uint32_t)roll(&d, 1, 9);
        shape.n_head = shape.n_head_kv * (uint32_t)roll(&d, 1, 4);
        struct cluster_fixture *f =
            make_cluster(&shape, (uint32_t)roll(&d, 1, seed % 4 == 0 ? 40 : 7));
        randomize(f, &d, (int)roll(&d, 0, 2));
        f->r.prefill_percent = (uint32_t)roll(&d, 0, 100);
        f->r.n_slots = (uint32_t)roll(&d, 0, 8);
        struct placement p = {0}, again = {0}, baseline;
        struct error err = {0};
        int rc = placement_solve(&f->r, &p, &err);
        assert_int_equal(placement_solve(&f->r, &again, &err), rc);
        assert_memory_equal(&p, &again, sizeof(p));
        if (rc != 0) {
            assert_int_equal(rc, E_UNAVAILABLE);
            assert_true(err.message[0] != '\0');
            n_refused++;
        } else {
            check(&f->r, &p);
            n_solved++;
        }
        f->r.rule = PLACEMENT_MEMORY;
        if (placement_solve(&f->r, &baseline, &err) == 0) {
            assert_int_equal(rc, 0); /* what memory allows, speed finds */
            if (price_of(&f->r, &p) > price_of(&f->r, &baseline) * 1.00001)
                fail_msg("seed %llu, %u nodes, %u layers: %g, by memory %g",
                         (unsigned long long)seed, f->r.n_nodes, shape.n_layer, price_of(&f->r, &p),
                         price_of(&f->r, &baseline));
            n_better += price_of(&f->r, &p) < price_of(&f->r, &baseline) * 0.99;
        }
        free(f);
    }
    print_message("%d solved, %d refused, %d better than by memory\n", n_solved, n_refused,
                  n_better);
    assert_true(n_solved > 50 && n_refused > 3 && n_better > 20);
}

static void test_explain(void **state)
{
    (void)state;
    struct placement_report *report = calloc(1, sizeof(*report));
    int n_short = 0, n_slower = 0, n_reduce = 0;
    assert_non_null(report);
    for (uint64_t seed = 1; seed <= 40; seed++) {
        struct dice d = {seed, 0};
        struct cluster_fixture *f =
            make_cluster(&model_1b, (uint32_t)roll(&d, 1, seed > 35 ? 30 : 6));
        struct placement p;
        struct error err = {0};
        randomize(f, &d, (int)roll(&d, 0, 2));
        f->r.rule = seed % 5 == 0 ? PLACEMENT_MEMORY : PLACEMENT_SPEED;
        f->r.split = seed % 7 == 0 ? "pipeline" : NULL;
        int rc = placement_solve(&f->r, &p, &err);
        assert_int_equal(placement_explain(&f->r, report, &err), 0);
        assert_true(report->n_candidates > 0);
        for (uint32_t i = 0; i < report->n_candidates; i++) {
            const struct placement_candidate *c = &report->candidate[i];
            assert_true(c->reason[0] != '\0');
            n_short += strstr(c->reason, "short on node") != NULL;
            n_slower += strstr(c->reason, "slower") != NULL;
            n_reduce += strstr(c->reason, "all-reduce over") != NULL;
            if (c->is_feasible)
                check(&f->r, &c->placement);
            if (i > 1 && c->is_feasible)
                assert_true(report->candidate[i - 1].is_feasible);
        }
        assert_int_equal(report->candidate[0].is_feasible, rc == 0);
        if (rc == 0 && f->r.rule == PLACEMENT_SPEED)
            assert_true(fabs(price_of(&f->r, &report->candidate[0].placement) -
                             price_of(&f->r, &p)) < 1e-5 * price_of(&f->r, &p));
        free(f);
    }
    free(report);
    print_message("reasons: %d short of memory, %d slower, %d by all-reduce\n", n_short, n_slower,
                  n_reduce);
    assert_true(n_short > 10 && n_slower > 50 && n_reduce > 5);
}

/* ---- bounds ---- */

/* Large clusters and models: the work is bounded, whatever the figures are. */
static uint64_t solve_counted(const struct cluster_fixture *f, struct placement *ret)
{
    struct pricing p;
    struct error err = {0};
    uint64_t n_evaluated = 0;
    assert_int_equal(pricing_init(&p, &f->r, &err), 0);
    int rc = solve_by_speed(&p, ret, &n_evaluated, &err);
    assert_true(rc == 0 || rc == E_UNAVAILABLE);
    if (rc == 0) {
        placement_rate(&p, ret);
        check(&f->r, ret);
    }
    return n_evaluated;
}

static void test_work_is_bounded(void **state)
{
    (void)state;
    struct model_shape shape = model_1b;
    shape.n_layer = 80;
    shape.layer_bytes *= 10;
    for (int tightness = 0; tightness < 3; tightness++) {
        struct dice d = {7, 0};
        struct placement x = {0};
        struct cluster_fixture *f = make_cluster(&shape, 10);
        uint64_t n_equal = solve_counted(f, &x);
        randomize(f, &d, tightness);
        uint64_t n_unlike = solve_counted(f, &x);
        free(f);
        f = make_cluster(&shape, 100);
        randomize(f, &d, tightness);
        x = (struct placement){0};
        uint64_t n_large = solve_counted(f, &x);
        free(f);
        print_message("tightness %d: %llu extensions for 10 equal nodes, %llu for 10 unlike, %llu "
                      "for 100 nodes (%u ranks)\n",
                      tightness, (unsigned long long)n_equal, (unsigned long long)n_unlike,
                      (unsigned long long)n_large, x.split.n_ranks);
        assert_true(n_equal < 200 && n_unlike < 600000 && n_large < 300000);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_equals_brute_force),
        cmocka_unit_test(test_one_node_when_the_network_is_slow),
        cmocka_unit_test(test_tensor_when_it_is_fast),
        cmocka_unit_test(test_slow_node_gets_less),
        cmocka_unit_test(test_shares_follow_speed),
        cmocka_unit_test(test_unknown_figures),
        cmocka_unit_test(test_properties),
        cmocka_unit_test(test_explain),
        cmocka_unit_test(test_work_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
