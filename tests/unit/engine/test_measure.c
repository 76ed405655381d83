/* Measuring a device: figures that a computer can have, and refusals. */
#include "engine/measure.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_figures(void **state)
{
    (void)state;
    struct measured m = {0};
    struct error err = {0};
    if (measure_speed("", 1, &m, &err) != 0)
        fail_msg("%s", err.message);
    print_message("one thread: %.1f GFLOPS, %.2f GB/s\n", m.gflops, m.memory_gb_s);
    assert_true(isfinite(m.gflops) && m.gflops > 0.01 && m.gflops < 1e5);
    assert_true(isfinite(m.memory_gb_s) && m.memory_gb_s > 0.001 && m.memory_gb_s < 1e4);
}

static void test_refusals(void **state)
{
    (void)state;
    struct measured m;
    struct error err = {0};
    assert_int_equal(measure_speed("", 0, &m, &err), E_INVALID);
    assert_int_equal(measure_speed("", 513, &m, &err), E_INVALID);
    assert_int_equal(measure_speed("abacus", 1, &m, &err), E_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_figures),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
