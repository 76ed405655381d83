/* Whatever the chunks, the company and the blocks, a sequence's logits are those of the plain
 * loops, on every kind of split. */
#include "company.h"

static const struct company companies[] = {{.split = "pipeline", .n_ranks = 1},
                                           {.split = "pipeline", .n_ranks = 3},
                                           {.split = "tensor", .n_ranks = 2},
                                           {.split = "tensor", .n_ranks = 3},
                                           {.split = "2x2", .n_ranks = 4}};
enum { N_COMPANIES = sizeof(companies) / sizeof(companies[0]) };
static const double tolerance = 0.02; /* the cache is f16, and sequences are long */

static void llama_in_any_company(void **state)
{
    (void)state;
    check_shape(&llama_shape, 1, 8, companies, N_COMPANIES, tolerance);
}

static void gemma_in_any_company(void **state)
{
    (void)state;
    check_shape(&gemma_shape, 100, 4, companies, N_COMPANIES, tolerance);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(llama_in_any_company),
        cmocka_unit_test(gemma_in_any_company),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
