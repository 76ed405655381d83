/*
 * Linux: temperature (hwmon, else thermal zones), power (RAPL energy counters, GPUs, battery) and
 * battery (power_supply).
 */
#ifdef __linux__
#include "device/linux_files.h"

#include <stdio.h>
#include <string.h>

/* Sensors of processors and GPUs, by the name of their driver or zone. */
static const char *const chips[] = {
    "coretemp", "k8temp", "k10temp", "zenpower", "cpu",  "gpu", "soc",   "x86_pkg",
    "tctl",     "tdie",   "nouveau", "radeon",   "i915", "xe",  "tsens", "macsmc"};
/* Of the board: only where there is none of the above. */
static const char *const boards[] = {"acpitz", "thermal_zone", "bcm2835"};

static const int64_t milli_min = 1000, milli_max = 150000; /* outside, a sensor is broken */

static bool is_one_of(const char *name, const char *const *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (strncasecmp(name, list[i], strlen(list[i])) == 0 ||
            (strlen(list[i]) > 2 && strcasestr(name, list[i]) != NULL))
            return true;
    return false;
}

struct hottest {
    int rank; /* 0: none, 1: of the board, 2: of a chip */
    int64_t milli;
    char name[64];
};

static void consider(struct hottest *h, const char *name, int64_t milli)
{
    int rank = is_one_of(name, chips, sizeof(chips) / sizeof(chips[0]))      ? 2
               : is_one_of(name, boards, sizeof(boards) / sizeof(boards[0])) ? 1
                                                                             : 0;
    if (rank == 0 || milli < milli_min || milli > milli_max)
        return;
    if (rank > h->rank || (rank == h->rank && milli > h->milli)) {
        h->rank = rank;
        h->milli = milli;
        sys_copy_text(h->name, sizeof(h->name), name);
    }
}

static void read_hwmon(const char *root, struct hottest *h)
{
    struct sys_names monitors;
    sys_list(root, &monitors, "/sys/class/hwmon");
    for (uint32_t i = 0; i < monitors.n; i++) {
        char name[64];
        int64_t milli;
        if (sys_read(root, name, sizeof(name), "/sys/class/hwmon/%s/name", monitors.name[i]) == 0)
            continue;
        for (int j = 1; j <= 64; j++)
            if (sys_read_number(root, &milli, "/sys/class/hwmon/%s/temp%d_input", monitors.name[i],
                                j))
                consider(h, name, milli);
    }
}

static void read_zones(const char *root, struct hottest *h)
{
    struct sys_names zones;
    sys_list(root, &zones, "/sys/class/thermal");
    for (uint32_t i = 0; i < zones.n; i++) {
        char type[64];
        int64_t milli;
        if (strncmp(zones.name[i], "thermal_zone", 12) != 0 ||
            !sys_read_number(root, &milli, "/sys/class/thermal/%s/temp", zones.name[i]))
            continue;
        sys_read(root, type, sizeof(type), "/sys/class/thermal/%s/type", zones.name[i]);
        consider(h, type[0] != '\0' ? type : zones.name[i], milli);
    }
}

static void sample_temperature(const char *root, struct device_telemetry *t)
{
    struct hottest h = {.rank = 0};
    read_hwmon(root, &h);
    read_zones(root, &h);
    t->temperature_c = (float)h.milli / 1000;
    snprintf(t->temperature_sensor, sizeof(t->temperature_sensor), "%s", h.name);
    for (uint32_t i = 0; i < t->n_gpus; i++) /* NVIDIA's are in no file */
        if (t->gpu[i].temperature_c > t->temperature_c ||
            (h.rank == 1 && t->gpu[i].temperature_c > 0)) {
            t->temperature_c = t->gpu[i].temperature_c;
            h.rank = 2;
            snprintf(t->temperature_sensor, sizeof(t->temperature_sensor), "gpu%u", i);
        }
}

/* ---- power ---- */

/* Watts of all processor packages since the sample before: intel-rapl:0, :1; parts of a package
 * have names with two colons and are left out. */
static float sample_rapl(struct device_sampler *s, uint64_t now_ns)
{
    struct sys_names zones;
    const char *root = s->options.root;
    uint64_t sum_uj = 0;
    uint32_t n = 0;
    bool is_whole = s->has_energy && now_ns > s->sampled_ns;
    sys_list(root, &zones, "/sys/class/powercap");
    for (uint32_t i = 0; i < zones.n && n < sizeof(s->energy_uj) / sizeof(s->energy_uj[0]); i++) {
        char name[32];
        int64_t energy, range = 0;
        const char *colon = strchr(zones.name[i], ':');
        if (colon == NULL || strchr(colon + 1, ':') != NULL)
            continue;
        sys_read(root, name, sizeof(name), "/sys/class/powercap/%s/name", zones.name[i]);
        if (strncmp(name, "package", 7) != 0 ||
            !sys_read_number(root, &energy, "/sys/class/powercap/%s/energy_uj", zones.name[i]) ||
            energy < 0)
            continue;
        sys_read_number(root, &range, "/sys/class/powercap/%s/max_energy_range_uj", zones.name[i]);
        if (is_whole && n < s->n_energy) {
            uint64_t now = (uint64_t)energy, before = s->energy_uj[n];
            if (now >= before)
                sum_uj += now - before;
            else if (range > 0 && before <= (uint64_t)range) /* the counter began anew */
                sum_uj += (uint64_t)range - before + now;
        }
        s->energy_uj[n++] = (uint64_t)energy;
    }
    is_whole = is_whole && n == s->n_energy;
    s->n_energy = n;
    s->has_energy = n > 0;
    double seconds = (double)(now_ns - s->sampled_ns) / 1e9;
    float watts = is_whole ? (float)((double)sum_uj / 1e6 / seconds) : 0;
    return watts < 10000 ? watts : 0;
}

/* ---- battery ---- */

struct supply {
    bool has_battery, has_mains, is_discharging;
    uint32_t n_capacities, capacity_sum;
    double watts;
};

static void read_battery(const char *root, const char *name, struct supply *p)
{
    char scope[32], status[32];
    int64_t v, volts;
    /* Mice and keyboards have batteries too. */
    sys_read(root, scope, sizeof(scope), "/sys/class/power_supply/%s/scope", name);
    if (strcmp(scope, "Device") == 0)
        return;
    if (sys_read_number(root, &v, "/sys/class/power_supply/%s/present", name) && v == 0)
        return;
    p->has_battery = true;
    sys_read(root, status, sizeof(status), "/sys/class/power_supply/%s/status", name);
    bool is_discharging = strcmp(status, "Discharging") == 0;
    p->is_discharging |= is_discharging;
    if (sys_read_number(root, &v, "/sys/class/power_supply/%s/capacity", name) && v >= 0 &&
        v <= 100) {
        p->n_capacities++;
        p->capacity_sum += (uint32_t)v;
    }
    if (!is_discharging)
        return;
    double watts = 0;
    if (sys_read_number(root, &v, "/sys/class/power_supply/%s/power_now", name))
        watts = (double)v / 1e6;
    else if (sys_read_number(root, &v, "/sys/class/power_supply/%s/current_now", name) &&
             sys_read_number(root, &volts, "/sys/class/power_supply/%s/voltage_now", name))
        watts = (double)v / 1e6 * ((double)volts / 1e6);
    watts = watts < 0 ? -watts : watts; /* some drivers count outwards */
    if (watts < 2000)
        p->watts += watts;
}

static void read_supplies(const char *root, struct supply *p)
{
    struct sys_names names;
    memset(p, 0, sizeof(*p));
    sys_list(root, &names, "/sys/class/power_supply");
    for (uint32_t i = 0; i < names.n; i++) {
        char type[32];
        int64_t v;
        sys_read(root, type, sizeof(type), "/sys/class/power_supply/%s/type", names.name[i]);
        if (strcmp(type, "Battery") == 0)
            read_battery(root, names.name[i], p);
        else if (sys_read_number(root, &v, "/sys/class/power_supply/%s/online", names.name[i]) &&
                 v > 0)
            p->has_mains = true;
    }
}

bool linux_has_battery(const char *root)
{
    struct supply p;
    read_supplies(root, &p);
    return p.has_battery;
}

void linux_sample_sensors(struct device_sampler *s, uint64_t now_ns, struct device_telemetry *t)
{
    struct supply p;
    sample_temperature(s->options.root, t);
    read_supplies(s->options.root, &p);
    t->on_battery = p.has_battery && p.is_discharging && !p.has_mains;
    t->battery_percent = p.n_capacities > 0 ? (uint8_t)(p.capacity_sum / p.n_capacities) : 255;
    float packages = sample_rapl(s, now_ns), gpus = 0;
    for (uint32_t i = 0; i < t->n_gpus; i++)
        gpus += t->gpu[i].power_w;
    const char *source = packages > 0 && gpus > 0 ? "rapl+gpu"
                         : packages > 0           ? "rapl"
                         : gpus > 0               ? "gpu"
                                                  : "";
    t->power_w = packages + gpus;
    if (t->on_battery && p.watts > 0) {
        t->power_w = (float)p.watts;
        source = "battery";
    }
    snprintf(t->power_source, sizeof(t->power_source), "%s", source);
}
#endif
