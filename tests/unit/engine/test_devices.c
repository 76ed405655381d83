/* What there is to compute with, and what is said of what there is not. */
#include "engine/devices.h"
#include "fixture.h"

static void processors_come_first(void **state)
{
    (void)state;
    struct engine_device device[ENGINE_DEVICES_MAX];
    uint32_t n = engine_devices(device, ENGINE_DEVICES_MAX);
    assert_in_range(n, 1, ENGINE_DEVICES_MAX);
    for (uint32_t i = 0; i < n; i++) {
        struct engine_device found;
        print_message("%s: %s, %.1f GiB\n", device[i].name, device[i].description,
                      (double)device[i].memory_bytes_total / 0x1p30);
        assert_int_equal(device[i].is_cpu, i == 0);
        assert_int_equal(engine_device_find(device[i].name, &found, NULL), 0);
        assert_string_equal(found.name, device[i].name);
    }
    assert_string_equal(device[0].name, "cpu");
    assert_int_equal(engine_devices(device, 0), 0);
}

static void names_mean_devices(void **state)
{
    (void)state;
    struct engine_device all[ENGINE_DEVICES_MAX], found;
    uint32_t n = engine_devices(all, ENGINE_DEVICES_MAX);
    assert_int_equal(engine_device_find("", &found, NULL), 0);
    assert_true(found.is_cpu);
    assert_int_equal(engine_device_find("CPU", &found, NULL), 0);
    assert_true(found.is_cpu);
    assert_int_equal(engine_device_find("auto", &found, NULL), 0);
    assert_string_equal(found.name, all[n > 1 ? 1 : 0].name);

    struct error err = {0};
    assert_int_equal(engine_device_find("Vulkan77", &found, &err), E_INVALID);
    assert_non_null(strstr(err.message, "'Vulkan77'"));
    assert_non_null(strstr(err.message, "cpu"));
}

static void lists_of_names(void **state)
{
    (void)state;
    char name[ENGINE_DEVICE_BYTES];
    static const struct {
        const char *list, *name[3];
    } cases[] = {{"", {"", "", ""}},
                 {"auto", {"auto", "auto", "auto"}},
                 {"CUDA0,cpu", {"CUDA0", "cpu", "cpu"}},
                 {"CUDA0,,CUDA1", {"CUDA0", "", "CUDA1"}}};
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        for (uint32_t k = 0; k < 3; k++) {
            assert_int_equal(engine_device_nth(cases[i].list, k, name, NULL), 0);
            assert_string_equal(name, cases[i].name[k]);
        }
    char longest[2 * ENGINE_DEVICE_BYTES];
    memset(longest, 'x', sizeof(longest));
    longest[ENGINE_DEVICE_BYTES - 1] = '\0';
    assert_int_equal(engine_device_nth(longest, 0, name, NULL), 0);
    longest[ENGINE_DEVICE_BYTES - 1] = 'x';
    longest[ENGINE_DEVICE_BYTES] = '\0';
    assert_int_equal(engine_device_nth(longest, 0, name, NULL), E_INVALID);
}

/* An engine on the processors says so, and one on nothing says what there is. */
static void engines_name_theirs(void **state)
{
    (void)state;
    enum { N = 5 };
    static const uint32_t block[] = {0};
    struct fixture f;
    struct engine_options options = {.n_ctx = 64, .device = "CPU"};
    int32_t tokens[N];
    fixture_init(&f, &llama_shape, &options);
    assert_string_equal(f.info.device, "cpu");
    assert_int_equal(f.info.weight_bytes_device, 0);
    float *logits = calloc((size_t)N * f.n_vocab, sizeof(*logits));
    double *expected = calloc((size_t)N * f.n_vocab, sizeof(*expected));
    make_tokens(1, f.n_vocab, tokens, N);
    reference_logits(&f.tiny, tokens, N, expected);
    assert_int_equal(attach(&f, 0, block, 1, 0), 0);
    assert_int_equal(run(&f, 0, tokens, N, logits), 0);
    for (uint32_t i = 0; i < N * f.n_vocab; i++)
        assert_true(fabs((double)logits[i] - expected[i]) < 0.02);
    free(logits);
    free(expected);

    struct engine *e;
    struct split split;
    struct error err = {0};
    snprintf(options.device, sizeof(options.device), "abacus");
    assert_int_equal(split_parse("pipeline", 1, llama_shape.n_layer, NULL, &split, &err), 0);
    assert_int_equal(engine_open(f.model, &split, 0, NULL, &options, &e, &err), E_INVALID);
    assert_non_null(strstr(err.message, "abacus"));
    fixture_done(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(processors_come_first),
        cmocka_unit_test(names_mean_devices),
        cmocka_unit_test(lists_of_names),
        cmocka_unit_test(engines_name_theirs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
