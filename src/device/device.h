/*
 * What this computer has and how it is: memory, processors, caches, GPUs, temperature, power,
 * battery, network interfaces. Every figure is 0, "" or false when the system cannot tell; broken
 * and absurd answers of the system count as none. Limits of control groups are respected, as they
 * end processes. Linux: all files are read below options.root, so that tests can bring their own.
 *
 * docs/internals/telemetry.md has the sources and the JSON schema. Thread: any; a sampler belongs
 * to one thread at a time. Reading sysfs takes some milliseconds on large machines: not for every
 * heartbeat, but for device_memory_bytes_free().
 */
#ifndef SHOAL_DEVICE_DEVICE_H
#define SHOAL_DEVICE_DEVICE_H

#include "base/buf.h"

#include <stdbool.h>
#include <stdint.h>

/* ---- the short answer ---- */

struct device_info {
    uint64_t memory_bytes_total;
    uint64_t memory_bytes_free; /* what a new process could take without swapping */
    uint32_t n_cores;           /* that this process may use; at least 1 */
    char host_name[64];         /* without domain; "node" when unknown */
};

void device_get_info(struct device_info *ret_info);
/* Only the free memory: cheap enough for every heartbeat. */
uint64_t device_memory_bytes_free(void);

/* ---- heat ---- */

/* In degrees Celsius: below 60, from 60, from 75, from 90. The values are those of cluster/'s enum
 * thermal_state. */
enum device_thermal {
    DEVICE_THERMAL_NORMAL,
    DEVICE_THERMAL_WARNING,
    DEVICE_THERMAL_THROTTLING,
    DEVICE_THERMAL_CRITICAL,
    DEVICE_THERMAL_COUNT,
};
enum { DEVICE_THERMAL_HYSTERESIS = 3 }; /* degrees below its bound at which a state ends */

const char *device_thermal_name(enum device_thermal state);
/* The state that follows. An unknown temperature (0) leaves it as it is, once one was known. */
enum device_thermal device_thermal_step(enum device_thermal state, float celsius);

/* ---- everything ---- */

enum { DEVICE_GPUS_MAX = 16, DEVICE_LINKS_MAX = 64, DEVICE_CACHE_LEVELS = 4 };

enum device_link_kind {
    DEVICE_LINK_UNKNOWN,
    DEVICE_LINK_LOOPBACK,
    DEVICE_LINK_ETHERNET,
    DEVICE_LINK_WIFI,
    DEVICE_LINK_THUNDERBOLT,
    DEVICE_LINK_INFINIBAND,
    DEVICE_LINK_VIRTUAL, /* bridges, tunnels, pairs: no hardware of their own */
    DEVICE_LINK_KIND_COUNT,
};
const char *device_link_kind_name(enum device_link_kind kind);

struct device_link {
    char name[16];
    enum device_link_kind kind;
    bool is_up;
    uint32_t mbit_s; /* nominal */
};

struct device_gpu {
    char name[96];   /* "vendor:device" in hexadecimal when there is no better one */
    char vendor[16]; /* "nvidia", "amd", "intel", or as hexadecimal digits */
    char driver[32];
    char compute[16]; /* CUDA's compute capability, such as "9.0" */
    uint32_t n_compute_units;
    uint64_t memory_bytes_total, memory_bytes_used;
    float utilization_percent;
    float temperature_c;
    float power_w;
};

struct device_precision { /* what the processor multiplies natively */
    bool f16, bf16, int8, matrix;
};

struct device_capabilities {
    char host_name[64];
    char os[64];   /* "Linux 6.1.0" */
    char arch[32]; /* "x86_64" */
    char cpu[96];
    uint32_t n_cores; /* that this process may use; at least 1 */
    uint32_t n_cpus;  /* of the machine */
    float cpu_quota;  /* cores that the control group may keep busy; 0: no limit */
    uint64_t cache_bytes[DEVICE_CACHE_LEVELS + 1]; /* [level]: data cache of the first processor */
    struct device_precision precision;
    uint64_t memory_bytes_total;
    bool is_memory_limited; /* by the control group */
    bool has_battery, has_temperature;
    uint32_t n_gpus;
    struct device_gpu gpu[DEVICE_GPUS_MAX];
    uint32_t n_links;
    struct device_link link[DEVICE_LINKS_MAX];
};

struct device_telemetry {
    uint64_t memory_bytes_total, memory_bytes_free;
    float utilization_percent; /* of all processors since the sample before; 0 in the first */
    float temperature_c;       /* of the hottest sensor in a processor or GPU */
    char temperature_sensor[64];
    float power_w;
    char power_source[16]; /* "battery": the whole machine; "rapl": processors; "gpu"; "rapl+gpu" */
    bool on_battery;
    uint8_t battery_percent; /* 255: none or unknown */
    enum device_thermal thermal;
    uint32_t n_gpus;
    struct device_gpu gpu[DEVICE_GPUS_MAX];
};

struct device_options {
    const char *root; /* NULL or "": this computer; else a folder with proc/ and sys/ */
};

/* Remembers what rates and states are made from. Plain data: zero it, set options. Borrows:
 * options.root. */
struct device_sampler {
    struct device_options options;
    bool has_cpu, has_energy;
    uint64_t cpu_total, cpu_idle;
    uint64_t energy_uj[8], energy_range_uj[8]; /* of each processor package */
    uint32_t n_energy;
    uint64_t sampled_ns;
    enum device_thermal thermal;
};

void device_get_capabilities(const struct device_options *o, struct device_capabilities *ret);
/* now_ns: of a clock that never goes back. */
void device_sample(struct device_sampler *s, uint64_t now_ns, struct device_telemetry *ret);

/* ---- messages ---- */

enum { DEVICE_SCHEMA = 1, DEVICE_TELEMETRY_MS = 5000 };

struct device_measured { /* by others, of this node; 0: not measured */
    float gflops, memory_gb_s;
};

struct device_peer_link { /* telemetry also says how near others are */
    char id[33];
    uint32_t rtt_us; /* 0: not measured */
    float mbit_s;
};

/* Appends one JSON object. Errors: those of buf_append. */
int device_capabilities_json(struct buf *b, const char *node_id, uint64_t time_ms,
                             const struct device_capabilities *c,
                             const struct device_measured *measured);
int device_telemetry_json(struct buf *b, const char *node_id, uint64_t time_ms,
                          const struct device_telemetry *t, uint32_t n_peers,
                          const struct device_peer_link *peers);

#endif
