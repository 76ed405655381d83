/* `shoal plan`: the candidates of a placement, as a table. The order itself is in orders.c. */
#include "cli/orders.h"

#include <stdio.h>

enum { FEASIBLE_SHOWN = 12 };

static double number_of(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static const char *text_of(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text != NULL ? text : "-";
}

static void print_speed(double tok_s)
{
    if (tok_s > 0)
        printf(" %9.1f", tok_s);
    else
        printf(" %9s", "?");
}

static void print_ranks(const json_t *candidate)
{
    const json_t *rank;
    size_t i;
    json_array_foreach(json_object_get(candidate, "ranks"), i, rank)
    {
        const json_t *layers = json_object_get(rank, "layers");
        long long begin = (long long)json_integer_value(json_array_get(layers, 0));
        long long end = (long long)json_integer_value(json_array_get(layers, 1));
        printf("      rank %-2.0f %-16s stage %.0f, layers %lld-%lld, %.2f GiB\n",
               number_of(rank, "rank"), text_of(rank, "node"), number_of(rank, "stage"), begin,
               end - 1, number_of(rank, "bytes") / (1024.0 * 1024 * 1024));
    }
}

/* Who takes part, in short. */
static void print_nodes(const json_t *candidate)
{
    const json_t *rank;
    size_t i;
    json_array_foreach(json_object_get(candidate, "ranks"), i, rank)
        printf("%s%s", i > 0 ? "," : "", text_of(rank, "node"));
}

void plan_print(const json_t *answer)
{
    const json_t *list = json_object_get(answer, "candidates"), *c;
    size_t i, n_shown = 0;
    printf("%s: predicted tokens/s of one conversation\n\n", text_of(answer, "model"));
    printf("  %-10s %9s %9s  %s\n", "SPLIT", "DECODE", "PREFILL", "NODES: WHY");
    json_array_foreach(list, i, c)
    {
        bool is_feasible = json_is_true(json_object_get(c, "feasible"));
        if (is_feasible && n_shown++ >= FEASIBLE_SHOWN)
            continue;
        printf("%s %-10s", i == 0 && is_feasible ? "*" : " ",
               is_feasible ? text_of(c, "split") : "no");
        print_speed(is_feasible ? number_of(c, "decode_tok_s") : 0);
        print_speed(is_feasible ? number_of(c, "prefill_tok_s") : 0);
        printf("  ");
        print_nodes(c);
        printf(": %s\n", text_of(c, "reason"));
        if (i == 0)
            print_ranks(c);
    }
    if (n_shown > FEASIBLE_SHOWN)
        printf("\n%zu slower ones are left out; --json shows all.\n", n_shown - FEASIBLE_SHOWN);
}
