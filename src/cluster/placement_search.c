/*
 * The best placement over up to ten nodes, exactly. A placement is a row of groups of nodes: each
 * group is a stage, its nodes are the ranks of a tensor split. Its price is a sum: of a price for
 * each layer of each stage, of hops from each group to the next, and of what the first and the last
 * stage pay once. So the cheapest way to have so many layers on such nodes, with such a group as
 * the last, follows from the cheapest ways without that group (Held and Karp, "A Dynamic
 * Programming Approach to Sequencing Problems", 1962). The token's way back depends on the head:
 * one pass for each head. Nodes with equal figures and links are interchangeable, so that only the
 * first of them is tried.
 */
#include "cluster/placement_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    N = PLACEMENT_EXACT_NODES,
    N_SETS = 1 << N,
    N_PAIRS = 59049, /* 3^10: a set of nodes and a part of it */
    VARIANTS_MAX = 4,
    UNITS_MAX = 128, /* layers beyond are placed in twos, threes, ... */
    HEAD_ANY = N,    /* the way back costs the same from everywhere */
};

struct variant {              /* one way to share a stage's work among its ranks */
    float layer, first, last; /* prices; layer: of one unit */
    uint32_t units_max[4];    /* by place, see stage_layers_max */
    uint32_t weight[N];
};

struct group {
    uint32_t n_variants; /* 0: these nodes make no stage */
    struct variant variant[VARIANTS_MAX];
};

struct record { /* the last stage of a whole placement; the others are found backwards */
    float price;
    uint32_t before, group, variant, units;
};

struct exact {
    struct search *s;
    const struct pricing *p;
    uint32_t n_sets, n_units, unit; /* unit: layers */
    uint32_t n_best;                /* places of found in use */
    float bound;                    /* what costs more is not followed */
    float price_min[N_SETS];        /* of a unit, whoever of a set takes it */
    uint32_t units_most[N_SETS];    /* that a set can hold at most, from above */
    uint32_t pow3[N_SETS];
    uint32_t linked[N], twins_before[N]; /* sets; of interchangeable nodes, those of lower index */
    struct group group[N_SETS];
    float hop[N_PAIRS];    /* pow3[from] + 2 * pow3[to] */
    float back[N][N_SETS]; /* of the token, from a group to this head */
    bool is_alive[N_PAIRS];
    struct record record[N + 1]; /* of this head, by number of nodes */
    float entry[UNITS_MAX + 1];  /* price before a group's first unit */
    float
        *row; /* [N_PAIRS][n_units + 1]: so many units on the set, its part being the last group */
};

static float *row_of(struct exact *x, uint32_t set, uint32_t last)
{
    return x->row + (size_t)(x->pow3[set] + x->pow3[last]) * (x->n_units + 1);
}

/* ---- what is worked out once ---- */

static uint32_t members(const struct exact *x, uint32_t set, uint32_t *ret_nodes)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < x->s->n_nodes; i++)
        if (set >> i & 1)
            ret_nodes[n++] = x->s->node[i];
    return n;
}

static void add_variant(struct exact *x, struct group *g, const uint32_t *nodes, uint32_t n,
                        const uint32_t *weight)
{
    struct stage_cost c;
    uint32_t layers_max[4];
    for (uint32_t i = 0; i < g->n_variants; i++)
        if (memcmp(g->variant[i].weight, weight, n * sizeof(*weight)) == 0)
            return;
    stage_layers_max(x->p, nodes, weight, n, layers_max);
    if (layers_max[0] == 0)
        return;
    struct variant *v = &g->variant[g->n_variants++];
    stage_price(x->p, nodes, weight, n, &c);
    v->layer = (float)(pricing_scalar(x->p, &c.layer) * x->unit);
    v->first = (float)pricing_scalar(x->p, &c.first);
    v->last = (float)pricing_scalar(x->p, &c.last);
    memcpy(v->weight, weight, n * sizeof(*weight));
    for (int i = 0; i < 4; i++) /* the last unit may be short */
        v->units_max[i] =
            layers_max[i] == x->p->shape->n_layer ? x->n_units : layers_max[i] / x->unit;
}

/* Shares by speed; where memory does not allow that for all layers, also by memory and in between.
 */
static void make_group(struct exact *x, uint32_t set)
{
    uint32_t nodes[N] = {0}, weight[N] = {1}, n = members(x, set, nodes);
    uint32_t n_layer = x->p->shape->n_layer;
    struct group *g = &x->group[set];
    if (n == 1) {
        add_variant(x, g, nodes, n, weight);
        return;
    }
    if (stage_weights(x->p, nodes, n, 0, weight))
        add_variant(x, g, nodes, n, weight);
    if (g->n_variants == 1 && g->variant[0].units_max[3] == x->n_units)
        return;
    if (stage_weights(x->p, nodes, n, n_layer, weight))
        add_variant(x, g, nodes, n, weight);
    if (stage_weights(x->p, nodes, n, (n_layer + 1) / 2, weight))
        add_variant(x, g, nodes, n, weight);
    stage_weights_by_memory(x->p, nodes, n, weight);
    add_variant(x, g, nodes, n, weight);
}

static bool is_same_figures(const struct node_speed *a, const struct node_speed *b)
{
    return a->bytes_s == b->bytes_s && a->flops_s == b->flops_s &&
           a->limit_bytes == b->limit_bytes && a->is_known == b->is_known;
}

static bool is_same_trip(const struct exact *x, uint32_t a, uint32_t b, uint32_t c, uint32_t d)
{
    const uint32_t *node = x->s->node;
    return nodes_are_linked(x->p->r, node[a], node[b]) ==
               nodes_are_linked(x->p->r, node[c], node[d]) &&
           link_trip_s(x->p, node[a], node[b], 0) == link_trip_s(x->p, node[c], node[d], 0) &&
           link_trip_s(x->p, node[a], node[b], 1e6) == link_trip_s(x->p, node[c], node[d], 1e6);
}

static bool are_twins(const struct exact *x, uint32_t a, uint32_t b)
{
    bool same = is_same_figures(&x->p->node[x->s->node[a]], &x->p->node[x->s->node[b]]) &&
                is_same_trip(x, a, b, b, a);
    for (uint32_t i = 0; i < x->s->n_nodes && same; i++)
        if (i != a && i != b)
            same = is_same_trip(x, a, i, b, i) && is_same_trip(x, i, a, i, b);
    return same;
}

static void make_links(struct exact *x)
{
    uint32_t n = x->s->n_nodes;
    const uint32_t *node = x->s->node;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < n; k++) {
            if (nodes_are_linked(x->p->r, node[i], node[k]))
                x->linked[i] |= 1u << k;
            if (k < i && are_twins(x, k, i))
                x->twins_before[i] |= 1u << k;
        }
    }
}

/* Worst pairs by the greater of what a part of the set has and one node more. */
static void make_hops(struct exact *x)
{
    uint32_t n = x->s->n_nodes, full = x->n_sets - 1;
    const uint32_t *node = x->s->node;
    float pair[N][N];
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < n; k++) {
            struct cost c, token = {0};
            hop_cost(x->p, &node[i], 1, &node[k], 1, &c);
            pair[i][k] = (float)pricing_scalar(x->p, &c);
            token.decode_s = token.prefill_s = return_cost_s(x->p, &node[i], 1, node[k]);
            x->back[k][1u << i] = (float)pricing_scalar(x->p, &token);
        }
    }
    for (uint32_t k = 0; k < n; k++)
        for (uint32_t set = 1; set <= full; set++)
            x->back[k][set] = fmaxf(x->back[k][set & -set], x->back[k][set & (set - 1)]);
    for (uint32_t from = 1; from <= full; from++) {
        uint32_t rest = full & ~from, i = (uint32_t)__builtin_ctz(from);
        for (uint32_t to = rest; to != 0; to = (to - 1) & rest) {
            float worst = 0;
            for (uint32_t k = 0; k < n; k++)
                if (to >> k & 1)
                    worst = fmaxf(worst, pair[i][k]);
            if ((from & (from - 1)) != 0)
                worst = fmaxf(worst, x->hop[x->pow3[from & (from - 1)] + 2 * x->pow3[to]]);
            x->hop[x->pow3[from] + 2 * x->pow3[to]] = worst;
        }
    }
}

static uint32_t common_links(const struct exact *x, uint32_t set)
{
    uint32_t links = x->n_sets - 1;
    for (uint32_t i = 0; i < x->s->n_nodes; i++)
        if (set >> i & 1)
            links &= x->linked[i];
    return links;
}

static void make_groups(struct exact *x)
{
    for (uint32_t set = 1; set < x->n_sets; set++)
        if ((uint32_t)__builtin_popcount(set) <= x->s->n_group_max &&
            (common_links(x, set) & set) == set)
            make_group(x, set);
}

/* What is left to place costs at least so much, and needs at least so much memory. */
static void make_bounds(struct exact *x)
{
    const struct pricing *p = x->p;
    double unit_bytes = x->unit * (p->norm_bytes + p->attn_bytes + p->ff_bytes + p->kv_bytes);
    x->price_min[0] = INFINITY;
    for (uint32_t set = 1; set < x->n_sets; set++) {
        const struct group *g = &x->group[set];
        double bytes = 0;
        float least = INFINITY;
        for (uint32_t i = 0; i < g->n_variants; i++)
            least = fminf(least, g->variant[i].layer);
        for (uint32_t i = 0; i < x->s->n_nodes; i++) {
            if (!(set >> i & 1))
                continue;
            least = fminf(least, x->price_min[set & ~(1u << i)]);
            bytes += p->node[x->s->node[i]].limit_bytes;
        }
        x->price_min[set] = least;
        /* The last unit may be short. */
        x->units_most[set] = (uint32_t)fmin(bytes / unit_bytes + 1, x->n_units);
    }
}

/* ---- a pass ---- */

/* Whether the nodes of a group come after their twins. */
static bool is_first_of_twins(const struct exact *x, uint32_t before, uint32_t group)
{
    for (uint32_t i = 0; i < x->s->n_nodes; i++)
        if ((group >> i & 1) && (x->twins_before[i] & ~(before | group)) != 0)
            return false;
    return true;
}

/* rest: the nodes that are left for what follows */
static void relax(struct exact *x, float *row, uint32_t rest, uint32_t units, float price)
{
    uint32_t left = x->n_units - units;
    if (price < row[units] && left <= x->units_most[rest] &&
        price + (float)left * x->price_min[rest] < x->bound)
        row[units] = price;
}

static float *open_row(struct exact *x, uint32_t set, uint32_t group)
{
    uint32_t pair = x->pow3[set] + x->pow3[group];
    float *row = row_of(x, set, group);
    for (uint32_t u = 0; u <= x->n_units && !x->is_alive[pair]; u++)
        row[u] = INFINITY;
    x->is_alive[pair] = true;
    return row;
}

static void close_row(struct exact *x, uint32_t set, uint32_t group)
{
    const float *row = row_of(x, set, group);
    bool is_alive = false;
    for (uint32_t u = 0; u <= x->n_units; u++)
        is_alive = is_alive || row[u] < INFINITY;
    x->is_alive[x->pow3[set] + x->pow3[group]] = is_alive;
}

/* x->entry, then 1 to units_max units of this price: the cheapest for each end. Prices fall by a
 * unit's price for each unit, so a window of candidates slides along. */
static void extend(struct exact *x, const struct variant *v, uint32_t rest, float *row)
{
    uint32_t window[UNITS_MAX + 1], first = 0, end = 0, most = v->units_max[0];
    for (uint32_t units = 1; units < x->n_units; units++) {
        uint32_t from = units - 1;
        float price = x->entry[from] - (float)from * v->layer;
        if (x->entry[from] < INFINITY) {
            while (end > first &&
                   x->entry[window[end - 1]] - (float)window[end - 1] * v->layer >= price)
                end--;
            window[end++] = from;
        }
        while (first < end && window[first] + most < units)
            first++;
        if (first < end)
            relax(x, row, rest, units,
                  x->entry[window[first]] + (float)(units - window[first]) * v->layer);
    }
}

static void record_whole(struct exact *x, float price, uint32_t before, uint32_t group,
                         uint32_t variant, uint32_t units)
{
    uint32_t n = x->s->wants_each_size ? (uint32_t)__builtin_popcount(before | group) : 0;
    struct record *r = &x->record[n];
    if (price >= r->price)
        return;
    *r = (struct record){price, before, group, variant, units};
    if (!x->s->wants_each_size)
        x->bound = fminf(x->bound, price);
}

static void begin(struct exact *x, uint32_t head)
{
    for (uint32_t set = 1; set < x->n_sets; set++) {
        const struct group *g = &x->group[set];
        if (g->n_variants == 0 || (head != HEAD_ANY && !(set >> head & 1)) ||
            !is_first_of_twins(x, 0, set))
            continue;
        x->s->n_evaluated++;
        float *row = open_row(x, set, set);
        for (uint32_t i = 0; i < g->n_variants; i++) {
            const struct variant *v = &g->variant[i];
            for (uint32_t u = 1; u <= v->units_max[1] && u < x->n_units; u++)
                relax(x, row, x->n_sets - 1 - set, u, v->first + (float)u * v->layer);
            if (v->units_max[3] >= x->n_units)
                record_whole(x, v->first + (float)x->n_units * v->layer + v->last, 0, set, i,
                             x->n_units);
        }
        close_row(x, set, set);
    }
}

/* Fills x->entry for a group behind a set; returns false when nothing leads there. */
static bool enter(struct exact *x, uint32_t set, uint32_t group)
{
    bool is_open = false;
    for (uint32_t u = 0; u <= x->n_units; u++)
        x->entry[u] = INFINITY;
    for (uint32_t last = set; last != 0; last = (last - 1) & set) {
        if (!x->is_alive[x->pow3[set] + x->pow3[last]])
            continue;
        const float *row = row_of(x, set, last);
        float hop = x->hop[x->pow3[last] + 2 * x->pow3[group]];
        for (uint32_t u = 0; u <= x->n_units; u++) {
            float price = row[u] + hop;
            x->entry[u] = price < x->entry[u] ? price : x->entry[u];
        }
        is_open = true;
    }
    return is_open;
}

static void append_group(struct exact *x, uint32_t set, uint32_t group, uint32_t head)
{
    const struct group *g = &x->group[group];
    if (!enter(x, set, group))
        return;
    x->s->n_evaluated++;
    float back = x->back[head == HEAD_ANY ? (uint32_t)__builtin_ctz(set) : head][group];
    float *row = open_row(x, set | group, group);
    for (uint32_t i = 0; i < g->n_variants; i++) {
        const struct variant *v = &g->variant[i];
        extend(x, v, x->n_sets - 1 - (set | group), row);
        for (uint32_t u = 1; u <= v->units_max[2] && u <= x->n_units; u++)
            record_whole(x, x->entry[x->n_units - u] + (float)u * v->layer + v->last + back, set,
                         group, i, u);
    }
    close_row(x, set | group, group);
}

static void pass(struct exact *x, uint32_t head)
{
    memset(x->is_alive, 0, sizeof(x->is_alive));
    for (uint32_t i = 0; i <= N; i++)
        x->record[i] = (struct record){.price = INFINITY};
    begin(x, head);
    if (x->s->n_stages_max == 1)
        return;
    for (uint32_t set = 1; set < x->n_sets; set++) {
        if (head != HEAD_ANY && !(set >> head & 1))
            continue;
        uint32_t rest = common_links(x, set) & ~set;
        for (uint32_t group = rest; group != 0; group = (group - 1) & rest)
            if (x->group[group].n_variants > 0 && is_first_of_twins(x, set, group))
                append_group(x, set, group, head);
    }
}

/* ---- from prices back to placements ---- */

struct step_back {
    uint32_t group, variant, units;
};

/* The last group of the way to `units` units on `set`, when `next` follows. */
static struct step_back find_before(struct exact *x, uint32_t set, uint32_t next, uint32_t units)
{
    struct step_back best = {0};
    float least = INFINITY;
    for (uint32_t last = set; last != 0; last = (last - 1) & set) {
        if (!x->is_alive[x->pow3[set] + x->pow3[last]])
            continue;
        float price = row_of(x, set, last)[units] + x->hop[x->pow3[last] + 2 * x->pow3[next]];
        if (price < least) {
            least = price;
            best.group = last;
        }
    }
    const struct group *g = &x->group[best.group];
    uint32_t before = set & ~best.group;
    bool is_first = before == 0;
    if (!is_first)
        enter(x, before, best.group);
    least = INFINITY;
    for (uint32_t i = 0; i < g->n_variants; i++) {
        const struct variant *v = &g->variant[i];
        uint32_t most = v->units_max[is_first ? 1 : 0];
        for (uint32_t u = is_first ? units : 1; u <= most && u <= units; u++) {
            float price = (is_first ? v->first : x->entry[units - u]) + (float)u * v->layer;
            if (price < least) {
                least = price;
                best.variant = i;
                best.units = u;
            }
        }
    }
    return best;
}

static void add_stage(const struct exact *x, const struct step_back *s, uint32_t head,
                      struct placement *ret)
{
    struct split *split = &ret->split;
    struct split_stage *stage = &split->stage[split->n_stages++];
    const struct variant *v = &x->group[s->group].variant[s->variant];
    uint32_t n = 0, begin_layer = split->n_stages > 1 ? stage[-1].layers.end : 0;
    uint32_t end_layer = begin_layer + s->units * x->unit, at = split->n_ranks;
    end_layer = end_layer < x->p->shape->n_layer ? end_layer : x->p->shape->n_layer;
    stage->layers = (struct range){begin_layer, end_layer};
    stage->rank_first = at;
    for (uint32_t i = 0; i < x->s->n_nodes; i++) {
        if (!(s->group >> i & 1))
            continue;
        ret->node_of_rank[at + n] = x->s->node[i];
        split->weight[at + n] = v->weight[n];
        if (i == head && at == 0 && n > 0) { /* the head is rank 0 */
            uint32_t node = ret->node_of_rank[n], weight = split->weight[n];
            memmove(&ret->node_of_rank[1], ret->node_of_rank, n * sizeof(node));
            memmove(&split->weight[1], split->weight, n * sizeof(weight));
            ret->node_of_rank[0] = node;
            split->weight[0] = weight;
        }
        n++;
    }
    stage->n_ranks = n;
    split->n_ranks += n;
}

static void build(struct exact *x, const struct record *r, uint32_t head, struct found *f)
{
    struct step_back steps[N];
    uint32_t n = 0, set = r->before, units = x->n_units - r->units;
    steps[n++] = (struct step_back){r->group, r->variant, r->units};
    while (set != 0) {
        steps[n] = find_before(x, set, steps[n - 1].group, units);
        set &= ~steps[n].group;
        units -= steps[n].units;
        n++;
    }
    f->placement = (struct placement){0};
    while (n > 0)
        add_stage(x, &steps[--n], head, &f->placement);
    found_finish(x->p, f);
}

void found_finish(const struct pricing *p, struct found *f)
{
    struct placement *x = &f->placement;
    struct cost c;
    placement_fill_bytes(p, x);
    placement_rate(p, x);
    placement_cost(p, x, &c);
    f->price = pricing_scalar(p, &c);
    for (uint32_t i = 0; i < x->split.n_ranks; i++)
        if ((double)x->bytes_of_rank[i] > p->node[x->node_of_rank[i]].limit_bytes)
            f->price = INFINITY;
}

/* Whether the way back costs the same whoever is the head. */
static bool is_back_uniform(const struct exact *x)
{
    for (uint32_t i = 0; i < x->s->n_nodes; i++)
        for (uint32_t k = 0; k < x->s->n_nodes; k++)
            if (i != k && x->back[i][1u << k] != x->back[0][2])
                return false;
    return true;
}

static void run_passes(struct exact *x, struct found *found)
{
    bool is_uniform = is_back_uniform(x);
    for (uint32_t head = is_uniform ? HEAD_ANY : 0;
         head < x->s->n_nodes || (is_uniform && head == HEAD_ANY); head++) {
        if (head != HEAD_ANY && x->twins_before[head] != 0)
            continue;
        pass(x, head);
        for (uint32_t i = 0; i <= N; i++) {
            struct found f;
            if (x->record[i].price == INFINITY)
                continue;
            build(x, &x->record[i], head, &f);
            if (f.price < found[i].price)
                found[i] = f;
        }
        if (is_uniform)
            break;
    }
}

int search_exact(struct search *s, struct found *found, struct error *err)
{
    struct exact *x = calloc(1, sizeof(*x));
    uint32_t n_layer = s->p->shape->n_layer, n_pairs = 1;
    for (uint32_t i = 0; i <= N; i++)
        found[i].price = INFINITY;
    if (x == NULL)
        return error_set(err, E_NOMEM, "no memory to search a placement");
    x->s = s;
    x->p = s->p;
    x->n_sets = 1u << s->n_nodes;
    x->unit = (n_layer + UNITS_MAX - 1) / UNITS_MAX;
    x->n_units = (n_layer + x->unit - 1) / x->unit;
    x->bound = s->bound > 0 ? (float)s->bound : INFINITY;
    for (uint32_t i = 0; i < s->n_nodes; i++, n_pairs *= 3)
        for (uint32_t set = 0; set < 1u << i; set++)
            x->pow3[set | 1u << i] = x->pow3[set] + n_pairs;
    x->row = malloc((size_t)n_pairs * (x->n_units + 1) * sizeof(*x->row));
    if (x->row == NULL) {
        free(x);
        return error_set(err, E_NOMEM, "no memory to search a placement");
    }
    make_links(x);
    make_hops(x);
    make_groups(x);
    make_bounds(x);
    run_passes(x, found);
    free(x->row);
    free(x);
    return 0;
}
