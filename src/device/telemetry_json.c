/* The two telemetry messages as JSON. docs/internals/telemetry.md is their schema. */
#include "base/json.h"
#include "device/device.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

const char *device_link_kind_name(enum device_link_kind kind)
{
    static const char *const names[] = {"unknown",     "loopback",   "ethernet", "wifi",
                                        "thunderbolt", "infiniband", "virtual"};
    return (unsigned)kind < DEVICE_LINK_KIND_COUNT ? names[kind] : "unknown";
}

/* Each of these writes `,"key":value`: a message begins with its type, so a comma always fits. */
static void put_text(struct buf *b, const char *key, const char *value)
{
    buf_printf(b, ",\"%s\":", key);
    if (value[0] == '\0')
        buf_append_str(b, "null");
    else
        json_append_string(b, value, strlen(value));
}

static void put_count(struct buf *b, const char *key, uint64_t v)
{
    buf_printf(b, ",\"%s\":%" PRIu64, key, v);
}

/* 0 and what is no number: not known. */
static void put_known_count(struct buf *b, const char *key, uint64_t v)
{
    if (v > 0)
        put_count(b, key, v);
    else
        buf_printf(b, ",\"%s\":null", key);
}

static void put_known(struct buf *b, const char *key, float v)
{
    buf_printf(b, ",\"%s\":", key);
    if (v > 0 && isfinite(v))
        json_append_double(b, round((double)v * 1000) / 1000);
    else
        buf_append_str(b, "null");
}

static void put_bool(struct buf *b, const char *key, bool v)
{
    buf_printf(b, ",\"%s\":%s", key, v ? "true" : "false");
}

static void begin(struct buf *b, const char *type, const char *node_id, uint64_t time_ms)
{
    buf_printf(b, "{\"type\":\"%s\",\"schema\":%d", type, DEVICE_SCHEMA);
    put_text(b, "node", node_id);
    put_count(b, "time_ms", time_ms);
}

static const char *gpu_type(const struct device_gpu *g)
{
    return strcmp(g->vendor, "nvidia") == 0 ? "cuda"
           : strcmp(g->vendor, "amd") == 0  ? "rocm"
                                            : "vulkan";
}

static void put_precision(struct buf *b, const struct device_precision *p)
{
    buf_append_str(b, ",\"precision\":{\"f32\":true");
    put_bool(b, "f16", p->f16);
    put_bool(b, "bf16", p->bf16);
    put_bool(b, "int8", p->int8);
    put_bool(b, "matrix", p->matrix);
    buf_append_str(b, "}");
}

static void put_cpu(struct buf *b, const struct device_capabilities *c,
                    const struct device_measured *measured)
{
    buf_append_str(b, "{\"id\":\"cpu\",\"type\":\"cpu\"");
    put_text(b, "name", c->cpu);
    put_count(b, "compute_units", c->n_cores);
    put_known_count(b, "memory_bytes", c->memory_bytes_total);
    put_known(b, "memory_gb_s", measured == NULL ? 0 : measured->memory_gb_s);
    put_known(b, "gflops", measured == NULL ? 0 : measured->gflops);
    put_precision(b, &c->precision);
    buf_append_str(b, ",\"cache_bytes\":[");
    for (int level = 1; level <= DEVICE_CACHE_LEVELS; level++)
        buf_printf(b, "%s%" PRIu64, level > 1 ? "," : "", c->cache_bytes[level]);
    buf_append_str(b, "]}");
}

static void put_gpu(struct buf *b, const struct device_gpu *g, uint32_t index)
{
    buf_printf(b, ",{\"id\":\"gpu%" PRIu32 "\",\"type\":\"%s\"", index, gpu_type(g));
    put_text(b, "name", g->name);
    put_text(b, "vendor", g->vendor);
    put_text(b, "driver", g->driver);
    put_text(b, "compute_capability", g->compute);
    put_known_count(b, "compute_units", g->n_compute_units);
    put_known_count(b, "memory_bytes", g->memory_bytes_total);
    buf_append_str(b, "}");
}

int device_capabilities_json(struct buf *b, const char *node_id, uint64_t time_ms,
                             const struct device_capabilities *c,
                             const struct device_measured *measured)
{
    begin(b, "capabilities", node_id, time_ms);
    put_text(b, "host", c->host_name);
    put_text(b, "os", c->os);
    put_text(b, "arch", c->arch);
    put_count(b, "cpus", c->n_cpus);
    put_known(b, "cpu_quota", c->cpu_quota);
    put_bool(b, "memory_limited", c->is_memory_limited);
    put_bool(b, "is_mobile", c->has_battery);
    put_bool(b, "has_temperature", c->has_temperature);
    buf_append_str(b, ",\"devices\":[");
    put_cpu(b, c, measured);
    for (uint32_t i = 0; i < c->n_gpus && i < DEVICE_GPUS_MAX; i++)
        put_gpu(b, &c->gpu[i], i);
    buf_append_str(b, "],\"links\":[");
    for (uint32_t i = 0; i < c->n_links && i < DEVICE_LINKS_MAX; i++) {
        const struct device_link *l = &c->link[i];
        buf_append_str(b, i > 0 ? ",{\"name\":" : "{\"name\":");
        json_append_string(b, l->name, strlen(l->name));
        put_text(b, "kind", device_link_kind_name(l->kind));
        put_bool(b, "up", l->is_up);
        put_known_count(b, "mbit_s", l->mbit_s);
        buf_append_str(b, "}");
    }
    return buf_append_str(b, "]}");
}

static void put_gpu_sample(struct buf *b, const struct device_gpu *g, uint32_t index)
{
    buf_printf(b, "%s{\"id\":\"gpu%" PRIu32 "\"", index > 0 ? "," : "", index);
    put_known_count(b, "memory_bytes_total", g->memory_bytes_total);
    put_known_count(b, "memory_bytes_used", g->memory_bytes_used);
    put_known(b, "utilization_percent", g->utilization_percent);
    put_known(b, "temperature_c", g->temperature_c);
    put_known(b, "power_w", g->power_w);
    buf_append_str(b, "}");
}

int device_telemetry_json(struct buf *b, const char *node_id, uint64_t time_ms,
                          const struct device_telemetry *t, uint32_t n_peers,
                          const struct device_peer_link *peers)
{
    begin(b, "telemetry", node_id, time_ms);
    uint64_t used = t->memory_bytes_total > t->memory_bytes_free
                        ? t->memory_bytes_total - t->memory_bytes_free
                        : 0;
    put_known_count(b, "memory_bytes_total", t->memory_bytes_total);
    put_count(b, "memory_bytes_used", used);
    put_count(b, "memory_bytes_free", t->memory_bytes_free);
    put_known(b, "utilization_percent", t->utilization_percent);
    put_known(b, "temperature_c", t->temperature_c);
    put_text(b, "temperature_sensor", t->temperature_sensor);
    put_text(b, "thermal_state", device_thermal_name(t->thermal));
    put_known(b, "power_w", t->power_w);
    put_text(b, "power_source", t->power_source);
    put_bool(b, "on_battery", t->on_battery);
    if (t->battery_percent <= 100)
        put_count(b, "battery_percent", t->battery_percent);
    else
        buf_append_str(b, ",\"battery_percent\":null");
    buf_append_str(b, ",\"gpus\":[");
    for (uint32_t i = 0; i < t->n_gpus && i < DEVICE_GPUS_MAX; i++)
        put_gpu_sample(b, &t->gpu[i], i);
    buf_append_str(b, "],\"peers\":[");
    for (uint32_t i = 0; i < n_peers; i++) {
        buf_append_str(b, i > 0 ? ",{\"node\":" : "{\"node\":");
        json_append_string(b, peers[i].id, strnlen(peers[i].id, sizeof(peers[i].id)));
        put_known(b, "rtt_ms", (float)peers[i].rtt_us / 1000);
        put_known(b, "mbit_s", peers[i].mbit_s);
        buf_append_str(b, "}");
    }
    return buf_append_str(b, "]}");
}
