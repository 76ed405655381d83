/*
 * Placements over any number of nodes. Two ways, and the better wins. Small crews: the fastest
 * nodes, the largest, and those near to each of them, each crew searched exactly. Long pipelines,
 * for models that no small crew can hold: begun with the fastest or the largest nodes, then
 * improved by leaving out, exchanging, adding and moving one node at a time. Everything is bounded
 * by counts, so that the same question has the same answer on any machine.
 */
#include "cluster/placement_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    CREW_NODES = 7,
    CREWS_FAST = 4, /* crews around so many of the fastest nodes */
    CREWS_LARGE = 3,
    EVALUATIONS_MAX = 20000, /* pipelines priced while one is improved */
};

struct pipe_node {
    double layer, last, speed_rank; /* prices */
    uint32_t layers_max[4];         /* by place, see stage_layers_max */
};

struct pipe { /* nodes in the order of their stages */
    uint32_t n, node[LIMIT_RANKS], n_layers[LIMIT_RANKS];
    double price;
};

struct guided {
    const struct pricing *p;
    uint32_t n; /* that may take part */
    uint32_t by_speed[PLACEMENT_NODES_MAX], by_memory[PLACEMENT_NODES_MAX];
    struct pipe_node node[PLACEMENT_NODES_MAX]; /* by index of the request */
    double *hop; /* [r->n_nodes][r->n_nodes], and the token's way back */
    double *back;
    uint64_t n_evaluated;
};

/* ---- pipelines ---- */

static uint32_t layers_max(const struct guided *g, const struct pipe *x, uint32_t i)
{
    unsigned place = (i == 0 ? 1u : 0u) | (i + 1 == x->n ? 2u : 0u);
    return g->node[x->node[i]].layers_max[place];
}

/* Every stage one layer; the others to the cheapest nodes, as many as they can hold. Sets price,
 * INFINITY when the model does not fit. */
static void price_pipe(struct guided *g, struct pipe *x)
{
    uint32_t left = g->p->shape->n_layer;
    bool is_full[LIMIT_RANKS] = {false};
    g->n_evaluated++;
    x->price = INFINITY;
    if (x->n == 0 || x->n > left)
        return;
    double price = g->node[x->node[x->n - 1]].last;
    for (uint32_t i = 0; i < x->n; i++) {
        if (layers_max(g, x, i) == 0)
            return;
        x->n_layers[i] = 1;
        left--;
        if (i > 0)
            price += g->hop[(size_t)x->node[i - 1] * g->p->r->n_nodes + x->node[i]];
    }
    if (x->n > 1)
        price += g->back[(size_t)x->node[x->n - 1] * g->p->r->n_nodes + x->node[0]];
    while (left > 0) {
        uint32_t best = x->n;
        for (uint32_t i = 0; i < x->n; i++)
            if (!is_full[i] &&
                (best == x->n || g->node[x->node[i]].layer < g->node[x->node[best]].layer))
                best = i;
        if (best == x->n)
            return;
        uint32_t room = layers_max(g, x, best) - 1, n = room < left ? room : left;
        x->n_layers[best] += n;
        left -= n;
        is_full[best] = true;
    }
    for (uint32_t i = 0; i < x->n; i++)
        price += x->n_layers[i] * g->node[x->node[i]].layer;
    x->price = price;
}

static bool is_linked_to_all(const struct guided *g, const struct pipe *x, uint32_t node,
                             uint32_t except)
{
    for (uint32_t i = 0; i < x->n; i++)
        if (i != except && (x->node[i] == node || !nodes_are_linked(g->p->r, x->node[i], node)))
            return false;
    return true;
}

/* Nodes in this order until the model fits. */
static void begin_pipe(struct guided *g, const uint32_t *order, struct pipe *ret)
{
    *ret = (struct pipe){.price = INFINITY};
    for (uint32_t i = 0; i < g->n && ret->n < LIMIT_RANKS && ret->price == INFINITY; i++) {
        if (!is_linked_to_all(g, ret, order[i], LIMIT_RANKS) ||
            g->node[order[i]].layers_max[0] == 0)
            continue;
        ret->node[ret->n++] = order[i];
        price_pipe(g, ret);
    }
}

static bool take_better(struct guided *g, struct pipe *best, struct pipe *trial)
{
    price_pipe(g, trial);
    if (!(trial->price < best->price * (1 - 1e-9)))
        return false;
    *best = *trial;
    return true;
}

static bool try_without(struct guided *g, struct pipe *best, uint32_t at)
{
    struct pipe trial = *best;
    memmove(&trial.node[at], &trial.node[at + 1], (trial.n - at - 1) * sizeof(*trial.node));
    trial.n--;
    return take_better(g, best, &trial);
}

static bool try_moved(struct guided *g, struct pipe *best, uint32_t from, uint32_t to)
{
    struct pipe trial = *best;
    uint32_t node = trial.node[from];
    memmove(&trial.node[from], &trial.node[from + 1], (trial.n - from - 1) * sizeof(node));
    memmove(&trial.node[to + 1], &trial.node[to], (trial.n - 1 - to) * sizeof(node));
    trial.node[to] = node;
    return take_better(g, best, &trial);
}

static bool try_other(struct guided *g, struct pipe *best, uint32_t at, uint32_t node)
{
    struct pipe trial = *best;
    if (!is_linked_to_all(g, best, node, at) || best->node[at] == node)
        return false;
    trial.node[at] = node;
    return take_better(g, best, &trial);
}

static bool try_added(struct guided *g, struct pipe *best, uint32_t at, uint32_t node)
{
    struct pipe trial = *best;
    if (best->n == LIMIT_RANKS || !is_linked_to_all(g, best, node, LIMIT_RANKS))
        return false;
    memmove(&trial.node[at + 1], &trial.node[at], (trial.n - at) * sizeof(node));
    trial.node[at] = node;
    trial.n++;
    return take_better(g, best, &trial);
}

static bool improve_once(struct guided *g, struct pipe *best, uint64_t limit)
{
    for (uint32_t i = 0; i < best->n && g->n_evaluated < limit; i++) {
        if (best->n > 1 && try_without(g, best, i))
            return true;
        for (uint32_t k = 0; k < best->n; k++)
            if (k != i && try_moved(g, best, i, k))
                return true;
        for (uint32_t k = 0; k < g->n && g->n_evaluated < limit; k++)
            if (try_other(g, best, i, g->by_speed[k]) || try_added(g, best, i, g->by_speed[k]))
                return true;
    }
    return false;
}

static void give_pipe(const struct guided *g, const struct pipe *x, struct found *ret)
{
    struct split *split = &ret->placement.split;
    uint32_t layer = 0;
    ret->placement = (struct placement){0};
    ret->price = INFINITY;
    if (x->price == INFINITY)
        return;
    split->n_stages = split->n_ranks = x->n;
    for (uint32_t i = 0; i < x->n; i++) {
        split->stage[i] = (struct split_stage){
            .layers = {layer, layer + x->n_layers[i]}, .rank_first = i, .n_ranks = 1};
        split->weight[i] = 1;
        ret->placement.node_of_rank[i] = x->node[i];
        layer += x->n_layers[i];
    }
    found_finish(g->p, ret);
}

static void search_pipe(struct guided *g, const uint32_t *order, struct found *ret)
{
    struct pipe best;
    begin_pipe(g, order, &best);
    uint64_t limit = g->n_evaluated + EVALUATIONS_MAX;
    while (best.price < INFINITY && g->n_evaluated < limit && improve_once(g, &best, limit))
        ;
    give_pipe(g, &best, ret);
}

/* ---- crews ---- */

struct near {
    uint32_t node;
    double distance;
};

static int compare_near(const void *a, const void *b)
{
    const struct near *x = a, *y = b;
    if (x->distance != y->distance)
        return x->distance < y->distance ? -1 : 1;
    return x->node < y->node ? -1 : x->node > y->node;
}

/* Sorts nodes by a figure, smallest first. */
static void sort_nodes(uint32_t *nodes, const double *figure, uint32_t n)
{
    struct near list[PLACEMENT_NODES_MAX];
    for (uint32_t i = 0; i < n; i++)
        list[i] = (struct near){nodes[i], figure[nodes[i]]};
    qsort(list, n, sizeof(*list), compare_near);
    for (uint32_t i = 0; i < n; i++)
        nodes[i] = list[i].node;
}

static int search_crew(struct guided *g, const uint32_t *order, struct found *ret,
                       struct error *err)
{
    struct found found[PLACEMENT_EXACT_NODES + 1];
    struct search s = {.p = g->p, .n_group_max = CREW_NODES, .n_stages_max = CREW_NODES};
    for (uint32_t i = 0; i < g->n && s.n_nodes < CREW_NODES; i++) {
        bool is_linked = g->node[order[i]].layers_max[0] > 0;
        for (uint32_t k = 0; k < s.n_nodes && is_linked; k++)
            is_linked = nodes_are_linked(g->p->r, s.node[k], order[i]);
        if (is_linked)
            s.node[s.n_nodes++] = order[i];
    }
    ret->price = INFINITY;
    if (s.n_nodes == 0)
        return 0;
    int rc = search_exact(&s, found, err);
    if (rc == 0)
        *ret = found[0];
    g->n_evaluated += s.n_evaluated;
    return rc;
}

/* The nodes near to one, and fast. */
static int search_near(struct guided *g, uint32_t center, struct found *ret, struct error *err)
{
    uint32_t order[PLACEMENT_NODES_MAX];
    double distance[PLACEMENT_NODES_MAX] = {0};
    memcpy(order, g->by_speed, sizeof(order));
    for (uint32_t i = 0; i < g->n; i++) {
        uint32_t node = order[i];
        /* A hop, and what a layer costs there: both are prices. */
        distance[node] = node == center
                             ? -1
                             : g->hop[(size_t)center * g->p->r->n_nodes + node] +
                                   g->node[node].layer * g->p->shape->n_layer / CREW_NODES;
    }
    sort_nodes(order, distance, g->n);
    return search_crew(g, order, ret, err);
}

/* ---- all of it ---- */

static void prepare(struct guided *g, const uint32_t *nodes, uint32_t n)
{
    const uint32_t one = 1;
    double speed[PLACEMENT_NODES_MAX] = {0}, memory[PLACEMENT_NODES_MAX] = {0};
    size_t n_nodes = g->p->r->n_nodes;
    g->n = n;
    for (uint32_t i = 0; i < n; i++) {
        struct stage_cost c;
        uint32_t a = nodes[i];
        stage_price(g->p, &a, &one, 1, &c);
        g->node[a].layer = pricing_scalar(g->p, &c.layer);
        g->node[a].last = pricing_scalar(g->p, &c.last);
        stage_layers_max(g->p, &a, &one, 1, g->node[a].layers_max);
        speed[a] = g->node[a].layer;
        memory[a] = -g->p->node[a].limit_bytes;
        for (uint32_t k = 0; k < n; k++) {
            struct cost hop, token = {0};
            hop_cost(g->p, &a, 1, &nodes[k], 1, &hop);
            token.decode_s = token.prefill_s = return_cost_s(g->p, &a, 1, nodes[k]);
            g->hop[a * n_nodes + nodes[k]] = pricing_scalar(g->p, &hop);
            g->back[a * n_nodes + nodes[k]] = pricing_scalar(g->p, &token);
        }
    }
    memcpy(g->by_speed, nodes, n * sizeof(*nodes));
    memcpy(g->by_memory, nodes, n * sizeof(*nodes));
    sort_nodes(g->by_speed, speed, n);
    sort_nodes(g->by_memory, memory, n);
}

static int search_crews(struct guided *g, struct found *found, struct error *err)
{
    uint32_t n = 0;
    int rc = search_crew(g, g->by_speed, &found[n++], err);
    if (rc == 0)
        rc = search_crew(g, g->by_memory, &found[n++], err);
    for (uint32_t i = 0; i < CREWS_FAST && i < g->n && rc == 0; i++)
        rc = search_near(g, g->by_speed[i], &found[n++], err);
    for (uint32_t i = 0; i < CREWS_LARGE && i < g->n && rc == 0; i++)
        rc = search_near(g, g->by_memory[i], &found[n++], err);
    return rc;
}

static void guided_free(struct guided *g)
{
    if (g == NULL)
        return;
    free(g->hop);
    free(g->back);
    free(g);
}

static int guided_new(const struct pricing *p, const uint32_t *nodes, uint32_t n,
                      struct guided **ret_guided, struct error *err)
{
    struct guided *g = calloc(1, sizeof(*g));
    size_t n_pairs = (size_t)p->r->n_nodes * p->r->n_nodes;
    if (g != NULL) {
        g->hop = calloc(n_pairs, sizeof(*g->hop));
        g->back = calloc(n_pairs, sizeof(*g->back));
    }
    if (g == NULL || g->hop == NULL || g->back == NULL) {
        guided_free(g);
        return error_set(err, E_NOMEM, "no memory to search a placement");
    }
    g->p = p;
    prepare(g, nodes, n);
    *ret_guided = g;
    return 0;
}

int search_pipelines(const struct pricing *p, const uint32_t *nodes, uint32_t n,
                     struct found *found, uint64_t *n_evaluated, struct error *err)
{
    struct guided *g;
    int rc = guided_new(p, nodes, n, &g, err);
    if (rc != 0)
        return rc;
    search_pipe(g, g->by_speed, &found[0]);
    search_pipe(g, g->by_memory, &found[1]);
    *n_evaluated += g->n_evaluated;
    guided_free(g);
    return 0;
}

int search_guided(const struct pricing *p, const uint32_t *nodes, uint32_t n, struct found *found,
                  uint64_t *n_evaluated, struct error *err)
{
    struct guided *g;
    for (uint32_t i = 0; i < PLACEMENT_GUIDED_FOUND; i++)
        found[i].price = INFINITY;
    int rc = guided_new(p, nodes, n, &g, err);
    if (rc != 0)
        return rc;
    search_pipe(g, g->by_speed, &found[0]);
    search_pipe(g, g->by_memory, &found[1]);
    rc = search_crews(g, &found[2], err);
    *n_evaluated += g->n_evaluated;
    guided_free(g);
    return rc;
}

/* found: [PLACEMENT_EXACT_NODES + 3]. A pipeline is found quickly, and keeps the exact search from
 * following what costs more. */
static int search_few(const struct pricing *p, const uint32_t *nodes, uint32_t n,
                      struct found *found, uint64_t *n_evaluated, struct error *err)
{
    struct search s = {.p = p, .n_nodes = n, .n_group_max = n, .n_stages_max = n};
    struct found pipe[2] = {{.price = INFINITY}, {.price = INFINITY}};
    memcpy(s.node, nodes, n * sizeof(*nodes));
    int rc = search_pipelines(p, nodes, n, pipe, n_evaluated, err);
    double least = fmin(pipe[0].price, pipe[1].price);
    s.bound = least < INFINITY ? least * (1 + 1e-5) : 0;
    if (rc == 0)
        rc = search_exact(&s, found, err);
    found[PLACEMENT_EXACT_NODES + 1] = pipe[0]; /* of many layers the exact search places several */
    found[PLACEMENT_EXACT_NODES + 2] = pipe[1]; /* at a time */
    *n_evaluated += s.n_evaluated;
    return rc;
}

static void keep_better(struct found *best, const struct found *f)
{
    if (f->price < best->price)
        *best = *f;
}

/* What the rule by memory would do is there anyway, and sometimes as good as any. */
static int try_memory(const struct pricing *p, struct found *best, struct error *err)
{
    struct found f = {0};
    int rc = solve_by_memory(p, &f.placement, err);
    if (rc != 0)
        return rc;
    found_finish(p, &f);
    keep_better(best, &f);
    return 0;
}

int solve_by_speed(const struct pricing *p, struct placement *ret, uint64_t *n_evaluated,
                   struct error *err)
{
    enum { FOUND_MAX = PLACEMENT_GUIDED_FOUND + PLACEMENT_EXACT_NODES + 1 };
    struct found *found = calloc(FOUND_MAX, sizeof(*found)), best = {.price = INFINITY};
    uint32_t nodes[PLACEMENT_NODES_MAX] = {0}, n = 0;
    uint64_t count = 0;
    int rc = 0;
    if (found == NULL)
        return error_set(err, E_NOMEM, "no memory to search a placement");
    for (uint32_t i = 0; i < p->r->n_nodes; i++)
        if (!p->r->nodes[i].is_excluded)
            nodes[n++] = i;
    for (uint32_t i = 0; i < FOUND_MAX; i++)
        found[i].price = INFINITY;
    if (n > PLACEMENT_EXACT_NODES)
        rc = search_guided(p, nodes, n, found, &count, err);
    else if (n > 0)
        rc = search_few(p, nodes, n, found, &count, err);
    for (uint32_t i = 0; i < FOUND_MAX && rc == 0; i++)
        keep_better(&best, &found[i]);
    free(found);
    if (rc == 0)
        rc = try_memory(p, &best, err); /* its refusal has the numbers */
    if (n_evaluated != NULL)
        *n_evaluated = count;
    if (best.price == INFINITY)
        return rc;
    *ret = best.placement;
    return 0;
}
