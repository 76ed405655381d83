/* The two messages are JSON that says what was put in, and null for what is not known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "base/json.h"
#include "device/device.h"

#include <math.h>
#include <string.h>

static struct device_capabilities capabilities;
static struct device_telemetry telemetry;

static json_t *parse(struct buf *b)
{
    json_t *value;
    struct error err;
    assert_int_equal(b->error, 0);
    if (json_parse(buf_str(b), b->len, &value, &err) != 0)
        fail_msg("%s: %s", err.message, buf_str(b));
    buf_done(b);
    return value;
}

static void test_capabilities(void **state)
{
    (void)state;
    struct buf b;
    struct device_capabilities *c = &capabilities;
    *c = (struct device_capabilities){
        .host_name = "a\"b",
        .cpu = "CPU",
        .n_cores = 4,
        .n_cpus = 8,
        .memory_bytes_total = 1ull << 40,
        .precision = {.int8 = true},
        .has_battery = true,
        .n_gpus = 1,
        .gpu = {{.name = "G", .vendor = "amd", .memory_bytes_total = 5}},
        .n_links = 2,
        .link = {{.name = "eth0", .kind = DEVICE_LINK_ETHERNET, .is_up = true, .mbit_s = 1000},
                 {.name = "lo", .kind = DEVICE_LINK_LOOPBACK}},
    };
    c->cache_bytes[3] = 1 << 20;
    struct device_measured measured = {.gflops = 123.5f};
    buf_init(&b, 1 << 16);
    assert_int_equal(device_capabilities_json(&b, "0123", 1700000000000, c, &measured), 0);
    json_t *v = parse(&b), *devices = json_object_get(v, "devices");
    assert_string_equal(json_string_value(json_object_get(v, "type")), "capabilities");
    assert_int_equal(json_integer_value(json_object_get(v, "schema")), DEVICE_SCHEMA);
    assert_int_equal(json_integer_value(json_object_get(v, "time_ms")), 1700000000000);
    assert_string_equal(json_string_value(json_object_get(v, "host")), "a\"b");
    assert_true(json_is_null(json_object_get(v, "os")));
    assert_true(json_is_true(json_object_get(v, "is_mobile")));
    assert_int_equal(json_array_size(devices), 2);
    json_t *cpu = json_array_get(devices, 0), *gpu = json_array_get(devices, 1);
    assert_int_equal(json_integer_value(json_object_get(cpu, "compute_units")), 4);
    assert_int_equal(json_integer_value(json_object_get(cpu, "memory_bytes")), 1ll << 40);
    assert_true(json_real_value(json_object_get(cpu, "gflops")) == 123.5);
    assert_true(json_is_null(json_object_get(cpu, "memory_gb_s")));
    assert_true(json_is_true(json_object_get(json_object_get(cpu, "precision"), "int8")));
    assert_int_equal(json_integer_value(json_array_get(json_object_get(cpu, "cache_bytes"), 2)),
                     1 << 20);
    assert_string_equal(json_string_value(json_object_get(gpu, "type")), "rocm");
    assert_int_equal(json_array_size(json_object_get(v, "links")), 2);
    json_decref(v);
}

static void test_telemetry(void **state)
{
    (void)state;
    struct buf b;
    struct device_telemetry *t = &telemetry;
    *t = (struct device_telemetry){.memory_bytes_total = 100,
                                   .memory_bytes_free = 40,
                                   .temperature_c = 61.25f,
                                   .utilization_percent = NAN,
                                   .thermal = DEVICE_THERMAL_WARNING,
                                   .battery_percent = 255,
                                   .n_gpus = 1,
                                   .gpu = {{.power_w = 12}}};
    const struct device_peer_link peers[2] = {{.id = "aa", .rtt_us = 250, .mbit_s = 940},
                                              {.id = "bb"}};
    buf_init(&b, 1 << 16);
    assert_int_equal(device_telemetry_json(&b, "0123", 5, t, 2, peers), 0);
    json_t *v = parse(&b), *list = json_object_get(v, "peers");
    assert_string_equal(json_string_value(json_object_get(v, "type")), "telemetry");
    assert_int_equal(json_integer_value(json_object_get(v, "memory_bytes_used")), 60);
    assert_true(json_real_value(json_object_get(v, "temperature_c")) == 61.25);
    assert_true(json_is_null(json_object_get(v, "utilization_percent")));
    assert_true(json_is_null(json_object_get(v, "battery_percent")));
    assert_string_equal(json_string_value(json_object_get(v, "thermal_state")), "warning");
    assert_int_equal(json_array_size(json_object_get(v, "gpus")), 1);
    assert_int_equal(json_array_size(list), 2);
    assert_true(json_real_value(json_object_get(json_array_get(list, 0), "rtt_ms")) == 0.25);
    assert_true(json_is_null(json_object_get(json_array_get(list, 1), "rtt_ms")));
    json_decref(v);
}

static void test_full_buffer(void **state)
{
    (void)state;
    struct buf b;
    buf_init(&b, 50);
    assert_true(device_telemetry_json(&b, "0123", 5, &telemetry, 0, NULL) < 0);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_capabilities),
        cmocka_unit_test(test_telemetry),
        cmocka_unit_test(test_full_buffer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
