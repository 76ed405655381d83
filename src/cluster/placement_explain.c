/* What else was considered, and why it lost: for people. */
#include "cluster/placement_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SINGLES_MAX = 24, REASON_BYTES = sizeof(((struct placement_candidate *)0)->reason) };

struct option { /* a candidate, and its place in the order */
    struct placement_candidate candidate;
    double price; /* INFINITY when it is not feasible */
    bool is_asked_for;
};

struct options {
    const struct pricing *p;
    uint32_t n, n_nodes, nodes[PLACEMENT_NODES_MAX]; /* those that may take part */
    struct option option[PLACEMENT_CANDIDATES_MAX];
};

/* ---- collecting ---- */

static bool is_same(const struct placement *a, const struct placement *b)
{
    if (a->split.n_ranks != b->split.n_ranks || a->split.n_stages != b->split.n_stages ||
        memcmp(a->node_of_rank, b->node_of_rank, a->split.n_ranks * sizeof(uint32_t)) != 0)
        return false;
    for (uint32_t i = 0; i < a->split.n_stages; i++)
        if (a->split.stage[i].layers.end != b->split.stage[i].layers.end ||
            a->split.stage[i].n_ranks != b->split.stage[i].n_ranks)
            return false;
    return true;
}

static struct option *add(struct options *o, const struct found *f)
{
    if (o->n == PLACEMENT_CANDIDATES_MAX)
        return NULL;
    for (uint32_t i = 0; i < o->n; i++)
        if (is_same(&o->option[i].candidate.placement, &f->placement))
            return NULL;
    struct option *x = &o->option[o->n++];
    *x = (struct option){.price = f->price};
    x->candidate.placement = f->placement;
    x->candidate.is_feasible = f->price < INFINITY;
    return x;
}

static void add_feasible(struct options *o, const struct found *found, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        if (found[i].price < INFINITY)
            add(o, &found[i]);
}

/* The node that is most over its limit, or none. */
static void explain_shortage(const struct options *o, struct option *x)
{
    const struct placement *a = &x->candidate.placement;
    double most = 0;
    for (uint32_t i = 0; i < a->split.n_ranks; i++) {
        uint32_t node = a->node_of_rank[i];
        double missing = (double)a->bytes_of_rank[i] - o->p->node[node].limit_bytes;
        if (missing <= most)
            continue;
        most = missing;
        snprintf(x->candidate.reason, REASON_BYTES, "%.2f GiB short on node %s",
                 missing / (1024.0 * 1024 * 1024), o->p->r->nodes[node].name);
    }
}

/* One stage over these nodes. */
static void add_stage_of(struct options *o, const uint32_t *nodes, uint32_t n)
{
    struct found f = {0};
    struct split *s = &f.placement.split;
    s->n_stages = 1;
    s->n_ranks = n;
    s->stage[0] = (struct split_stage){.layers = {0, o->p->shape->n_layer}, .n_ranks = n};
    s->weight[0] = 1;
    memcpy(f.placement.node_of_rank, nodes, n * sizeof(*nodes));
    if (n > 1 && !stage_weights(o->p, nodes, n, 0, s->weight))
        return;
    found_finish(o->p, &f);
    bool is_excluded = n == 1 && o->p->r->nodes[nodes[0]].is_excluded;
    if (is_excluded)
        f.price = INFINITY;
    struct option *x = add(o, &f);
    if (x == NULL || x->candidate.is_feasible)
        return;
    explain_shortage(o, x);
    if (is_excluded)
        snprintf(x->candidate.reason, REASON_BYTES,
                 "node %s takes no part: drained, stopping or too hot",
                 o->p->r->nodes[nodes[0]].name);
}

static bool are_all_linked(const struct options *o)
{
    for (uint32_t i = 0; i < o->n_nodes; i++)
        for (uint32_t k = 0; k < i; k++)
            if (!nodes_are_linked(o->p->r, o->nodes[i], o->nodes[k]))
                return false;
    return true;
}

/* The best pipeline, the best tensor split and the best of any kind, of each number of nodes. */
static int add_exact(struct options *o, struct error *err)
{
    static const struct {
        uint32_t n_group_max, n_stages_max;
    } kinds[] = {{PLACEMENT_EXACT_NODES, PLACEMENT_EXACT_NODES},
                 {1, PLACEMENT_EXACT_NODES},
                 {PLACEMENT_EXACT_NODES, 1}};
    struct found *found = calloc(PLACEMENT_EXACT_NODES + 1, sizeof(*found));
    int rc = found != NULL ? 0 : error_set(err, E_NOMEM, "no memory to search a placement");
    for (size_t i = 0; i < sizeof(kinds) / sizeof(kinds[0]) && rc == 0; i++) {
        struct search s = {.p = o->p,
                           .n_nodes = o->n_nodes,
                           .n_group_max = kinds[i].n_group_max,
                           .n_stages_max = kinds[i].n_stages_max,
                           .wants_each_size = true};
        memcpy(s.node, o->nodes, o->n_nodes * sizeof(*o->nodes));
        rc = search_exact(&s, found, err);
        if (rc == 0)
            add_feasible(o, found, PLACEMENT_EXACT_NODES + 1);
    }
    free(found);
    return rc;
}

static int add_guided(struct options *o, struct error *err)
{
    struct found *found = calloc(PLACEMENT_GUIDED_FOUND, sizeof(*found));
    uint64_t n_evaluated = 0;
    if (found == NULL)
        return error_set(err, E_NOMEM, "no memory to search a placement");
    int rc = search_guided(o->p, o->nodes, o->n_nodes, found, &n_evaluated, err);
    if (rc == 0)
        add_feasible(o, found, PLACEMENT_GUIDED_FOUND);
    free(found);
    return rc;
}

/* A rule's answer or refusal. Returns where it is, NULL when it was there before. */
static struct option *add_rule(struct options *o,
                               int (*solve)(const struct pricing *p, struct placement *ret,
                                            struct error *err))
{
    struct found f = {.price = INFINITY};
    struct error why = {0};
    int rc = solve(o->p, &f.placement, &why);
    if (rc == 0) {
        struct cost c;
        placement_rate(o->p, &f.placement);
        placement_cost(o->p, &f.placement, &c);
        f.price = pricing_scalar(o->p, &c);
    } else {
        f.placement = (struct placement){0};
    }
    for (uint32_t i = 0; i < o->n; i++) {
        struct option *same = &o->option[i];
        if (rc != 0 || !is_same(&same->candidate.placement, &f.placement))
            continue;
        if (!same->candidate.is_feasible) /* it did not fit, and shall be paged */
            *same = (struct option){.price = f.price,
                                    .candidate = {.placement = f.placement, .is_feasible = true}};
        return same;
    }
    struct option *x = add(o, &f);
    if (x != NULL && rc != 0)
        snprintf(x->candidate.reason, REASON_BYTES, "%.*s", REASON_BYTES - 1, why.message);
    return x;
}

static bool is_any_feasible(const struct options *o)
{
    for (uint32_t i = 0; i < o->n; i++)
        if (o->option[i].candidate.is_feasible)
            return true;
    return false;
}

static int collect(struct options *o, struct error *err)
{
    const struct placement_request *r = o->p->r;
    struct option *asked_for = NULL;
    int rc = 0;
    if (r->split != NULL)
        asked_for = add_rule(o, solve_explicit);
    else if (r->rule == PLACEMENT_MEMORY)
        asked_for = add_rule(o, solve_by_memory);
    if (asked_for != NULL)
        asked_for->is_asked_for = true;
    if (o->n_nodes > PLACEMENT_EXACT_NODES)
        rc = add_guided(o, err);
    else if (o->n_nodes > 0)
        rc = add_exact(o, err);
    if (rc != 0)
        return rc;
    add_rule(o, solve_by_memory);
    if (o->n_nodes > 1 && o->n_nodes <= PLACEMENT_EXACT_NODES && are_all_linked(o))
        add_stage_of(o, o->nodes, o->n_nodes);
    for (uint32_t i = 0; i < r->n_nodes && i < SINGLES_MAX; i++)
        add_stage_of(o, &i, 1);
    if (r->may_page && r->split == NULL && !is_any_feasible(o)) {
        struct option *paged = add_rule(o, solve_by_paging);
        if (paged != NULL && paged->candidate.is_feasible) {
            if (asked_for != NULL)
                asked_for->is_asked_for = false;
            paged->is_asked_for = true;
        }
    }
    return 0;
}

/* ---- reasons ---- */

static double worst_rtt_ms(const struct pricing *p, const struct placement *x)
{
    double worst = 0;
    for (uint32_t s = 0; s < x->split.n_stages; s++) {
        const struct split_stage *stage = &x->split.stage[s];
        const uint32_t *nodes = &x->node_of_rank[stage->rank_first];
        for (uint32_t i = 0; i < stage->n_ranks; i++)
            for (uint32_t k = 0; k < stage->n_ranks; k++)
                if (i != k)
                    worst = fmax(worst, 2e3 * link_trip_s(p, nodes[i], nodes[k], 0));
    }
    return worst;
}

/* What most of a token's time goes to. */
static void explain_speed(const struct pricing *p, const struct placement *x, double ratio,
                          bool is_first, char *reason)
{
    struct cost c;
    int n = 0;
    placement_cost(p, x, &c);
    double all = c.decode_s * 1e3, reduce = c.decode_reduce_s * 1e3, hop = c.decode_hop_s * 1e3;
    bool is_known = true;
    for (uint32_t i = 0; i < x->split.n_ranks; i++)
        is_known = is_known && p->node[x->node_of_rank[i]].is_known;
    if (!is_first && ratio > 1.005)
        n = snprintf(reason, REASON_BYTES, "fits, but %.*fx slower: ", ratio < 1.1 ? 2 : 1, ratio);
    else if (!is_first && ratio < 0.995)
        n = snprintf(reason, REASON_BYTES, "%.1fx faster: ", 1 / ratio);
    char *at = reason + n;
    size_t left = REASON_BYTES - (size_t)n;
    if (x->bytes_paged > 0)
        n = snprintf(at, left, "no memory for %.2f GiB, read from disk in each step: add nodes",
                     (double)x->bytes_paged / (1024.0 * 1024 * 1024));
    else if (reduce > 0.4 * all)
        n = snprintf(at, left, "all-reduce over %.2g ms links costs %.3g ms of %.3g ms a token",
                     worst_rtt_ms(p, x), reduce, all);
    else if (hop > 0.4 * all)
        n = snprintf(at, left, "hops between stages cost %.3g ms of %.3g ms a token", hop, all);
    else
        n = snprintf(at, left, "reading weights takes %.3g ms of %.3g ms a token",
                     all - reduce - hop, all);
    if (!is_known && n > 0 && (size_t)n < left)
        snprintf(at + n, left - (size_t)n, " (speeds assumed, not measured)");
}

/* What was asked for, then by price, what is not feasible last. */
static int compare(const void *a, const void *b)
{
    const struct option *x = a, *y = b;
    if (x->is_asked_for != y->is_asked_for)
        return x->is_asked_for ? -1 : 1;
    if (x->price != y->price)
        return x->price < y->price ? -1 : 1;
    if (x->candidate.placement.split.n_ranks != y->candidate.placement.split.n_ranks)
        return x->candidate.placement.split.n_ranks < y->candidate.placement.split.n_ranks ? -1 : 1;
    return memcmp(x->candidate.placement.node_of_rank, y->candidate.placement.node_of_rank,
                  sizeof(x->candidate.placement.node_of_rank));
}

int placement_explain(const struct placement_request *r, struct placement_report *ret_report,
                      struct error *err)
{
    struct pricing p;
    int rc = pricing_init(&p, r, err);
    if (rc != 0)
        return rc;
    struct options *o = calloc(1, sizeof(*o));
    if (o == NULL)
        return error_set(err, E_NOMEM, "no memory to search a placement");
    o->p = &p;
    for (uint32_t i = 0; i < r->n_nodes; i++)
        if (!r->nodes[i].is_excluded)
            o->nodes[o->n_nodes++] = i;
    rc = collect(o, err);
    if (rc == 0) {
        qsort(o->option, o->n, sizeof(o->option[0]), compare);
        uint32_t base = 0; /* what the others are compared with */
        while (base < o->n && o->option[base].price == INFINITY)
            base++;
        ret_report->n_candidates = o->n;
        for (uint32_t i = 0; i < o->n; i++) {
            struct placement_candidate *c = &o->option[i].candidate;
            if (c->is_feasible)
                explain_speed(&p, &c->placement, o->option[i].price / o->option[base].price,
                              i == base, c->reason);
            ret_report->candidate[i] = *c;
        }
    }
    free(o);
    return rc;
}
