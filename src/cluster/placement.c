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
    if (rc != 0)
        return rc;
    placement_rate(&p, &x);
    *ret_placement = x;
    return 0;
}

void placement_price(const struct placement_request *r, struct placement *p)
{
    struct pricing pricing;
    struct error err;
    p->decode_tok_s = p->prefill_tok_s = 0;
    for (uint32_t i = 0; i < p->split.n_ranks; i++)
        if (p->node_of_rank[i] >= r->n_nodes)
            return;
    if (pricing_init(&pricing, r, &err) != 0 ||
        split_check(&p->split, r->shape->n_layer, &err) != 0)
        return;
    placement_rate(&pricing, p);
}
