/* What the cluster asks of placement: solve, explain, price. */
#include "cluster/placement.h"

#include "cluster/placement_internal.h"

#include <math.h>
#include <string.h>

static const char *const rule_names[PLACEMENT_RULE_COUNT] = {
    [PLACEMENT_SPEED] = "speed",
    [PLACEMENT_MEMORY] = "memory",
};

const char *placement_rule_name(enum placement_rule rule)
{
    return (unsigned)rule < PLACEMENT_RULE_COUNT ? rule_names[rule] : "unknown";
}

bool placement_rule_parse(const char *text, enum placement_rule *ret_rule)
{
    for (unsigned i = 0; i < PLACEMENT_RULE_COUNT; i++) {
        if (strcmp(text, rule_names[i]) == 0) {
            *ret_rule = (enum placement_rule)i;
            return true;
        }
    }
    return false;
}

int placement_solve(const struct placement_request *r, struct placement *ret_placement,
                    struct error *err)
{
    struct pricing p;
    struct placement x = {0};
    int rc = pricing_init(&p, r, err);
    if (rc == 0 && r->split != NULL)
        rc = solve_explicit(&p, &x, err);
    else if (rc == 0 && r->rule == PLACEMENT_MEMORY)
        rc = solve_by_memory(&p, &x, err);
    else if (rc == 0)
        rc = solve_by_speed(&p, &x, NULL, err);
    if (rc == E_UNAVAILABLE && r->split == NULL && r->may_page &&
        solve_by_paging(&p, &x, &(struct error){0}) == 0)
        rc = 0;
    if (rc != 0)
        return rc;
    placement_rate(&p, &x);
    *ret_placement = x;
    return 0;
}

static bool can_be_priced(const struct placement_request *r, const struct placement *p,
                          struct pricing *ret)
{
    struct error err;
    for (uint32_t i = 0; i < p->split.n_ranks; i++)
        if (p->node_of_rank[i] >= r->n_nodes)
            return false;
    return pricing_init(ret, r, &err) == 0 && split_check(&p->split, r->shape->n_layer, &err) == 0;
}

void placement_price(const struct placement_request *r, struct placement *p)
{
    struct pricing pricing;
    p->decode_tok_s = p->prefill_tok_s = 0;
    if (can_be_priced(r, p, &pricing))
        placement_rate(&pricing, p);
}

bool placement_seconds(const struct placement_request *r, const struct placement *p,
                       double *ret_decode_s, double *ret_prefill_s)
{
    struct pricing pricing;
    struct cost c;
    if (!can_be_priced(r, p, &pricing))
        return false;
    placement_cost(&pricing, p, &c);
    *ret_decode_s = c.decode_s;
    *ret_prefill_s = c.prefill_s;
    return true;
}
