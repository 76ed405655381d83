/* Figures of made-up computers: limits, caches, sensors, batteries, cards, interfaces, and
 * nonsense. */
#include "device/tree.h"

#include "base/rng.h"
#include "device/device.h"

#include <math.h>

static const uint64_t GIB = 1ull << 30;
static struct tree tree;
static struct device_options options;

static int setup(void **state)
{
    (void)state;
    tree_init(&tree);
    options.root = tree.root;
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    tree_done(&tree);
    return 0;
}

static struct device_telemetry sample(void)
{
    struct device_sampler s = {.options = options};
    struct device_telemetry t;
    device_sample(&s, 1000000000, &t);
    return t;
}

static struct device_capabilities *capabilities(void)
{
    static struct device_capabilities c;
    device_get_capabilities(&options, &c);
    return &c;
}

static void put_meminfo(unsigned total_gib, unsigned free_gib)
{
    char text[256];
    snprintf(text, sizeof(text), "MemTotal:  %u kB\nMemFree: 1 kB\nMemAvailable:  %u kB\n",
             total_gib << 20, free_gib << 20);
    tree_put(&tree, "proc/meminfo", text);
}

static void test_this_computer(void **state)
{
    (void)state;
    struct device_info info;
    struct device_options here = {.root = NULL};
    static struct device_capabilities c;
    struct device_sampler s = {.options = here};
    struct device_telemetry t;
    device_get_info(&info);
    assert_true(info.memory_bytes_total > 0 && info.n_cores >= 1 && info.host_name[0] != '\0');
    assert_true(info.memory_bytes_free > 0 && info.memory_bytes_free <= info.memory_bytes_total);
    assert_true(device_memory_bytes_free() > 0);
    device_get_capabilities(&here, &c);
    assert_true(c.n_cores == info.n_cores && c.n_cpus >= 1 && c.n_links >= 1);
    assert_int_equal(c.memory_bytes_total, info.memory_bytes_total);
    device_sample(&s, 1, &t);
    assert_true(t.utilization_percent == 0);
}

static void test_nothing_there(void **state)
{
    (void)state;
    struct device_telemetry t = sample();
    struct device_capabilities *c = capabilities();
    assert_true(t.memory_bytes_total == 0 && t.memory_bytes_free == 0 && t.n_gpus == 0);
    assert_true(t.temperature_c == 0 && t.power_w == 0 && !t.on_battery);
    assert_int_equal(t.battery_percent, 255);
    assert_int_equal(t.thermal, DEVICE_THERMAL_NORMAL);
    assert_true(c->n_cores == 1 && c->n_cpus == 1 && c->n_links == 0 && !c->has_battery);
    assert_string_equal(c->host_name, "node");
    assert_string_equal(c->cpu, "");
}

static void test_memory_without_groups(void **state)
{
    (void)state;
    put_meminfo(16, 12);
    struct device_telemetry t = sample();
    assert_int_equal(t.memory_bytes_total, 16 * GIB);
    assert_int_equal(t.memory_bytes_free, 12 * GIB);
    assert_false(capabilities()->is_memory_limited);
}

static void test_memory_v2(void **state)
{
    (void)state;
    put_meminfo(16, 12);
    tree_put(&tree, "proc/self/cgroup", "0::/outer/inner\n");
    tree_put(&tree, "sys/fs/cgroup/outer/inner/memory.max", "max\n");
    assert_int_equal(sample().memory_bytes_total, 16 * GIB);
    /* The limit of a group around ours ends us all the same. */
    tree_put(&tree, "sys/fs/cgroup/outer/memory.max", "4294967296\n");
    tree_put(&tree, "sys/fs/cgroup/outer/memory.current", "3221225472\n");
    tree_put(&tree, "sys/fs/cgroup/outer/memory.stat", "anon 5\ninactive_file 1073741824\n");
    struct device_telemetry t = sample();
    assert_int_equal(t.memory_bytes_total, 4 * GIB);
    assert_int_equal(t.memory_bytes_free, 2 * GIB);
    assert_true(capabilities()->is_memory_limited);
    /* In a container the path may be the host's, and its files not there: the mount's own count. */
    tree_put(&tree, "proc/self/cgroup", "0::/docker/0123456789\n");
    tree_put(&tree, "sys/fs/cgroup/memory.max", "1073741824\n");
    assert_int_equal(sample().memory_bytes_total, GIB);
    tree_put(&tree, "sys/fs/cgroup/memory.current", "2147483648\n");
    assert_int_equal(sample().memory_bytes_free, 0);
}

static void test_memory_v1(void **state)
{
    (void)state;
    put_meminfo(16, 12);
    tree_put(&tree, "proc/self/cgroup", "5:cpu,cpuacct:/\n4:memory,other:/a\n0::/\n");
    tree_put(&tree, "sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    tree_put(&tree, "sys/fs/cgroup/memory/a/memory.limit_in_bytes", "2147483648\n");
    tree_put(&tree, "sys/fs/cgroup/memory/a/memory.usage_in_bytes", "1073741824\n");
    tree_put(&tree, "sys/fs/cgroup/memory/a/memory.stat",
             "inactive_file 1\ntotal_inactive_file 536870912\n");
    struct device_telemetry t = sample();
    assert_int_equal(t.memory_bytes_total, 2 * GIB);
    assert_int_equal(t.memory_bytes_free, GIB + GIB / 2);
}

static void test_cores(void **state)
{
    (void)state;
    tree_put(&tree, "sys/devices/system/cpu/online", "0-7,12,14-15\n");
    assert_int_equal(capabilities()->n_cores, 11);
    tree_put(&tree, "proc/self/cgroup", "0::/x\n");
    tree_put(&tree, "sys/fs/cgroup/x/cpu.max", "250000 100000\n");
    assert_int_equal(capabilities()->n_cores, 3);
    assert_true(capabilities()->cpu_quota > 2.4f && capabilities()->cpu_quota < 2.6f);
    tree_put(&tree, "sys/fs/cgroup/x/cpu.max", "max 100000\n");
    assert_int_equal(capabilities()->n_cores, 11);
    tree_put(&tree, "sys/fs/cgroup/cpu.max", "1000 100000\n");
    assert_int_equal(capabilities()->n_cores, 1);
    tree_put(&tree, "proc/self/cgroup", "3:cpu:/\n");
    tree_put(&tree, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    tree_put(&tree, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_int_equal(capabilities()->n_cores, 11);
    tree_put(&tree, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "400000\n");
    assert_int_equal(capabilities()->n_cores, 4);
    static const char *const broken[] = {"", "-", "3-1", "0-99999999999", "a", "0-", "1;2"};
    for (size_t i = 0; i < sizeof(broken) / sizeof(broken[0]); i++) {
        tree_put(&tree, "sys/devices/system/cpu/online", broken[i]);
        assert_int_equal(capabilities()->n_cpus, 1);
    }
}

static void test_cpu(void **state)
{
    (void)state;
    tree_put(&tree, "proc/cpuinfo",
             "processor\t: 0\nmodel\t\t: 1\nmodel name\t: Some   CPU\x01 5000\n"
             "flags\t\t: fpu avx512_vnni avx512_bf16x amx_tile\n\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index0/level", "1\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index0/type", "Data\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index0/size", "48K\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index1/level", "1\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index1/type", "Instruction\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index1/size", "32K\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index2/level", "3\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index2/type", "Unified\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index2/size", "32M\n");
    tree_put(&tree, "sys/devices/system/cpu/cpu0/cache/index3/level", "9\n");
    struct device_capabilities *c = capabilities();
    assert_string_equal(c->cpu, "Some CPU 5000");
    assert_true(c->precision.int8 && c->precision.matrix && !c->precision.bf16 &&
                !c->precision.f16);
    assert_int_equal(c->cache_bytes[1], 48 << 10);
    assert_int_equal(c->cache_bytes[2], 0);
    assert_int_equal(c->cache_bytes[3], 32 << 20);
}

static void test_utilization(void **state)
{
    (void)state;
    struct device_sampler s = {.options = options};
    struct device_telemetry t;
    tree_put(&tree, "proc/stat", "cpu  100 0 100 700 100 0 0 0 5 5\ncpu0 1 2 3\n");
    device_sample(&s, 1, &t);
    assert_true(t.utilization_percent == 0);
    tree_put(&tree, "proc/stat", "cpu  160 0 115 720 105 0 0 0 5 5\n");
    device_sample(&s, 2, &t);
    assert_true(t.utilization_percent > 74.9f && t.utilization_percent < 75.1f);
    tree_put(&tree, "proc/stat", "cpu  1 1 1 1\n"); /* backwards */
    device_sample(&s, 3, &t);
    assert_true(t.utilization_percent == 0);
}

static void test_temperature(void **state)
{
    (void)state;
    tree_put(&tree, "sys/class/thermal/thermal_zone0/type", "acpitz\n");
    tree_put(&tree, "sys/class/thermal/thermal_zone0/temp", "95000\n");
    assert_true(sample().temperature_c == 95);
    assert_string_equal(sample().temperature_sensor, "acpitz");
    /* A processor's own sensor is believed before the board's; of several the hottest. */
    tree_put(&tree, "sys/class/hwmon/hwmon0/name", "coretemp\n");
    tree_put(&tree, "sys/class/hwmon/hwmon0/temp1_input", "51000\n");
    tree_put(&tree, "sys/class/hwmon/hwmon0/temp2_input", "62500\n");
    tree_put(&tree, "sys/class/hwmon/hwmon0/temp3_input", "-273000\n");
    tree_put(&tree, "sys/class/hwmon/hwmon0/temp4_input", "65261850\n");
    tree_put(&tree, "sys/class/hwmon/hwmon0/temp5_input", "abc\n");
    tree_put(&tree, "sys/class/hwmon/hwmon1/name", "nvme\n");
    tree_put(&tree, "sys/class/hwmon/hwmon1/temp1_input", "80000\n");
    struct device_telemetry t = sample();
    assert_true(t.temperature_c == 62.5f);
    assert_string_equal(t.temperature_sensor, "coretemp");
    assert_int_equal(t.thermal, DEVICE_THERMAL_WARNING);
    assert_true(capabilities()->has_temperature);
}

static void test_thermal_states(void **state)
{
    (void)state;
    static const struct {
        float celsius;
        enum device_thermal expected;
    } steps[] = {
        {55, DEVICE_THERMAL_NORMAL},        {59.9f, DEVICE_THERMAL_NORMAL},
        {60, DEVICE_THERMAL_WARNING},       {57, DEVICE_THERMAL_WARNING},
        {56.9f, DEVICE_THERMAL_NORMAL},     {80, DEVICE_THERMAL_THROTTLING},
        {72, DEVICE_THERMAL_THROTTLING},    {71.9f, DEVICE_THERMAL_WARNING},
        {90, DEVICE_THERMAL_CRITICAL},      {0, DEVICE_THERMAL_CRITICAL},
        {NAN, DEVICE_THERMAL_CRITICAL},     {87, DEVICE_THERMAL_CRITICAL},
        {86.9f, DEVICE_THERMAL_THROTTLING}, {20, DEVICE_THERMAL_NORMAL},
        {-40, DEVICE_THERMAL_NORMAL},       {1e9f, DEVICE_THERMAL_NORMAL},
        {95, DEVICE_THERMAL_CRITICAL},      {65, DEVICE_THERMAL_WARNING},
    };
    enum device_thermal thermal = DEVICE_THERMAL_NORMAL;
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        thermal = device_thermal_step(thermal, steps[i].celsius);
        assert_int_equal(thermal, steps[i].expected);
    }
    assert_string_equal(device_thermal_name(DEVICE_THERMAL_CRITICAL), "critical");
    assert_string_equal(device_thermal_name((enum device_thermal)99), "unknown");
}

static void test_power(void **state)
{
    (void)state;
    struct device_sampler s = {.options = options};
    struct device_telemetry t;
    tree_put(&tree, "sys/class/powercap/intel-rapl:0/name", "package-0\n");
    tree_put(&tree, "sys/class/powercap/intel-rapl:0/energy_uj", "1000000\n");
    tree_put(&tree, "sys/class/powercap/intel-rapl:0/max_energy_range_uj", "100000000\n");
    tree_put(&tree, "sys/class/powercap/intel-rapl:0:0/name", "core\n");
    tree_put(&tree, "sys/class/powercap/intel-rapl:0:0/energy_uj", "1\n");
    device_sample(&s, 1000000000, &t);
    assert_true(t.power_w == 0);
    tree_put(&tree, "sys/class/powercap/intel-rapl:0/energy_uj", "51000000\n");
    device_sample(&s, 3000000000, &t);
    assert_true(t.power_w == 25);
    assert_string_equal(t.power_source, "rapl");
    tree_put(&tree, "sys/class/powercap/intel-rapl:0/energy_uj", "1000000\n"); /* began anew */
    device_sample(&s, 4000000000, &t);
    assert_true(t.power_w == 50);
    device_sample(&s, 4000000000, &t); /* no time passed */
    assert_true(t.power_w == 0);
}

static void test_battery(void **state)
{
    (void)state;
    tree_put(&tree, "sys/class/power_supply/AC/type", "Mains\n");
    tree_put(&tree, "sys/class/power_supply/AC/online", "0\n");
    tree_put(&tree, "sys/class/power_supply/BAT0/type", "Battery\n");
    tree_put(&tree, "sys/class/power_supply/BAT0/capacity", "73\n");
    tree_put(&tree, "sys/class/power_supply/BAT0/status", "Discharging\n");
    tree_put(&tree, "sys/class/power_supply/BAT0/current_now", "1500000\n");
    tree_put(&tree, "sys/class/power_supply/BAT0/voltage_now", "12000000\n");
    tree_put(&tree, "sys/class/power_supply/mouse/type", "Battery\n");
    tree_put(&tree, "sys/class/power_supply/mouse/scope", "Device\n");
    tree_put(&tree, "sys/class/power_supply/mouse/capacity", "5\n");
    struct device_telemetry t = sample();
    assert_true(t.on_battery && t.battery_percent == 73 && t.power_w == 18);
    assert_string_equal(t.power_source, "battery");
    tree_put(&tree, "sys/class/power_supply/AC/online", "1\n");
    assert_false(sample().on_battery);
    assert_true(capabilities()->has_battery);
    tree_put(&tree, "sys/class/power_supply/BAT0/capacity", "400\n");
    assert_int_equal(sample().battery_percent, 255);
}

static void test_gpus(void **state)
{
    (void)state;
    tree_put(&tree, "sys/class/drm/card0/device/vendor", "0x1002\n");
    tree_put(&tree, "sys/class/drm/card0/device/device", "0x744c\n");
    tree_put(&tree, "sys/class/drm/card0/device/uevent", "DRIVER=amdgpu\nPCI_ID=1002:744C\n");
    tree_put(&tree, "sys/class/drm/card0/device/mem_info_vram_total", "25753026560\n");
    tree_put(&tree, "sys/class/drm/card0/device/mem_info_vram_used", "1048576\n");
    tree_put(&tree, "sys/class/drm/card0/device/gpu_busy_percent", "42\n");
    tree_put(&tree, "sys/class/drm/card0/device/hwmon/hwmon3/temp1_input", "66000\n");
    tree_put(&tree, "sys/class/drm/card0/device/hwmon/hwmon3/power1_average", "120000000\n");
    tree_put(&tree, "sys/class/drm/card0-HDMI-A-1/status", "connected\n");
    tree_put(&tree, "sys/class/drm/card1/device/vendor", "0x8086\n");
    tree_put(&tree, "sys/class/drm/card1/device/mem_info_vram_total", "-5\n");
    tree_put(&tree, "sys/class/drm/version", "drm\n");
    struct device_telemetry t = sample();
    assert_int_equal(t.n_gpus, 2);
    assert_string_equal(t.gpu[0].vendor, "amd");
    assert_string_equal(t.gpu[0].driver, "amdgpu");
    assert_string_equal(t.gpu[0].name, "0x1002:0x744c");
    assert_int_equal(t.gpu[0].memory_bytes_total, 25753026560);
    assert_int_equal(t.gpu[0].memory_bytes_used, 1048576);
    assert_true(t.gpu[0].utilization_percent == 42 && t.gpu[0].temperature_c == 66);
    assert_true(t.gpu[0].power_w == 120 && t.power_w == 120 && t.temperature_c == 66);
    assert_string_equal(t.temperature_sensor, "gpu0");
    assert_string_equal(t.gpu[1].vendor, "intel");
    assert_int_equal(t.gpu[1].memory_bytes_total, 0);
}

static void test_links(void **state)
{
    (void)state;
    tree_put(&tree, "sys/class/net/lo/type", "772\n");
    tree_put(&tree, "sys/class/net/lo/operstate", "unknown\n");
    tree_put(&tree, "sys/class/net/eth0/type", "1\n");
    tree_put(&tree, "sys/class/net/eth0/operstate", "up\n");
    tree_put(&tree, "sys/class/net/eth0/speed", "2500\n");
    tree_put(&tree, "sys/class/net/eth0/device/uevent", "DRIVER=r8125\n");
    tree_put(&tree, "sys/class/net/eth1/type", "1\n");
    tree_put(&tree, "sys/class/net/eth1/operstate", "down\n");
    tree_put(&tree, "sys/class/net/eth1/speed", "-1\n");
    tree_folder(&tree, "sys/class/net/eth1/device");
    tree_put(&tree, "sys/class/net/tb0/type", "1\n");
    tree_put(&tree, "sys/class/net/tb0/device/uevent", "DRIVER=thunderbolt-net\n");
    tree_put(&tree, "sys/class/net/veth1/type", "1\n");
    tree_put(&tree, "sys/class/net/wlan0/type", "1\n");
    tree_folder(&tree, "sys/class/net/wlan0/phy80211");
    tree_put(&tree, "sys/class/net/bonding_masters", "\n");
    static const enum device_link_kind kinds[] = {DEVICE_LINK_ETHERNET, DEVICE_LINK_ETHERNET,
                                                  DEVICE_LINK_LOOPBACK, DEVICE_LINK_THUNDERBOLT,
                                                  DEVICE_LINK_VIRTUAL,  DEVICE_LINK_WIFI};
    struct device_capabilities *c = capabilities();
    assert_int_equal(c->n_links, 6);
    for (int i = 0; i < 6; i++)
        assert_int_equal(c->link[i].kind, kinds[i]);
    assert_true(c->link[0].is_up && c->link[0].mbit_s == 2500);
    assert_true(!c->link[1].is_up && c->link[1].mbit_s == 0);
    assert_true(c->link[2].is_up);
}

/* Every file we read, with bytes from a generator, nothing, far too much, or a folder in its place.
 */
static void test_nonsense(void **state)
{
    (void)state;
    static const char *const names[] = {
        "proc/meminfo",
        "proc/stat",
        "proc/cpuinfo",
        "proc/self/cgroup",
        "sys/fs/cgroup/memory.max",
        "sys/fs/cgroup/memory.current",
        "sys/fs/cgroup/memory.stat",
        "sys/fs/cgroup/cpu.max",
        "sys/devices/system/cpu/online",
        "sys/devices/system/cpu/cpu0/cache/index0/size",
        "sys/devices/system/cpu/cpu0/cache/index0/level",
        "sys/class/hwmon/hwmon0/name",
        "sys/class/hwmon/hwmon0/temp1_input",
        "sys/class/thermal/thermal_zone0/type",
        "sys/class/thermal/thermal_zone0/temp",
        "sys/class/powercap/intel-rapl:0/name",
        "sys/class/powercap/intel-rapl:0/energy_uj",
        "sys/class/power_supply/BAT0/capacity",
        "sys/class/power_supply/BAT0/power_now",
        "sys/class/drm/card0/device/vendor",
        "sys/class/drm/card0/device/uevent",
        "sys/class/drm/card0/device/mem_info_vram_total",
        "sys/class/net/eth0/type",
        "sys/class/net/eth0/speed",
        "sys/class/net/eth0/uevent",
    };
    static const char *const seeds[] = {
        "0::/a/../../..\n",
        "4:memory:",
        "9223372036854775807\n",
        "-9223372036854775808\n",
        "99999999999999999999999999\n",
        "MemTotal: -1 kB\nMemAvailable: 18446744073709551615 kB\n",
        "cpu  18446744073709551615 18446744073709551615 1 1\n",
        "0-18446744073709551615\n",
        "::::\n",
        "max",
        "1 0",
        "1e9",
        "0x",
        "package",
        "flags : \n",
        "DRIVER=\xff\xfe\n",
        "\n\n\n",
    };
    enum { N_NAMES = sizeof(names) / sizeof(names[0]), N_SEEDS = sizeof(seeds) / sizeof(seeds[0]) };
    static uint8_t data[20000];
    static struct device_capabilities c;
    struct device_sampler s = {.options = options};
    struct device_telemetry t;
    tree_put(&tree, "sys/class/power_supply/BAT0/type", "Battery\n");
    tree_put(&tree, "sys/class/power_supply/BAT0/status", "Discharging\n");
    for (uint64_t round = 0; round < 120; round++) {
        for (size_t i = 0; i < N_NAMES; i++) {
            uint64_t random = rng_u64(round, i, 7);
            size_t n = random % 3 == 0 ? random / 3 % sizeof(data) : random / 3 % 40;
            for (size_t j = 0; j < n; j++)
                data[j] = (uint8_t)rng_u64(round, i << 20 | j, 8);
            if (random % 4 == 1)
                tree_put(&tree, names[i], seeds[random / 4 % N_SEEDS]);
            else
                tree_write(&tree, names[i], data, n);
        }
        device_get_capabilities(&options, &c);
        device_sample(&s, round, &t);
        assert_true(c.n_cores >= 1 && t.memory_bytes_free <= t.memory_bytes_total);
        assert_true(t.temperature_c >= 0 && t.temperature_c <= 150);
        assert_true(t.utilization_percent >= 0 && t.utilization_percent <= 100);
        assert_true(t.power_w >= 0 && t.power_w < 1e6f);
        assert_true(t.battery_percent <= 100 || t.battery_percent == 255);
        struct buf b;
        buf_init(&b, 1 << 20);
        assert_int_equal(device_capabilities_json(&b, "x", 1, &c, NULL), 0);
        assert_int_equal(device_telemetry_json(&b, "x", 1, &t, 0, NULL), 0);
        buf_done(&b);
    }
}

static void test_folders_in_place_of_files(void **state)
{
    (void)state;
    tree_folder(&tree, "proc/meminfo");
    tree_folder(&tree, "proc/stat");
    tree_folder(&tree, "sys/class/hwmon/hwmon0/name");
    tree_put(&tree, "sys/class/net", "not a folder");
    char pipe_path[128];
    snprintf(pipe_path, sizeof(pipe_path), "%s/proc/cpuinfo", tree.root);
    assert_int_equal(mkfifo(pipe_path, 0600), 0); /* reading it would wait for ever */
    assert_int_equal(sample().memory_bytes_total, 0);
    assert_int_equal(capabilities()->n_links, 0);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_this_computer),
        TEST(test_nothing_there),
        TEST(test_memory_without_groups),
        TEST(test_memory_v2),
        TEST(test_memory_v1),
        TEST(test_cores),
        TEST(test_cpu),
        TEST(test_utilization),
        TEST(test_temperature),
        TEST(test_thermal_states),
        TEST(test_power),
        TEST(test_battery),
        TEST(test_gpus),
        TEST(test_links),
        TEST(test_nonsense),
        TEST(test_folders_in_place_of_files),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
