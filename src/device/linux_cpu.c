/* Linux: processors, caches and what they can multiply; how busy they are. */
#ifdef __linux__
#include "device/linux_files.h"

#include <ctype.h>
#include <math.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CPUS_MAX = 8192 };

/* How many numbers a list such as "0-3,8" has; 0 when it is none. */
static uint32_t count_list(const char *text)
{
    uint64_t n = 0;
    while (*text != '\0') {
        char *end;
        unsigned long first = strtoul(text, &end, 10), last = first;
        if (end == text)
            return 0;
        if (*end == '-') {
            text = end + 1;
            last = strtoul(text, &end, 10);
            if (end == text)
                return 0;
        }
        if (last < first || last >= CPUS_MAX || (*end != ',' && *end != '\0'))
            return 0;
        n += last - first + 1;
        text = end + (*end == ',');
    }
    return n <= CPUS_MAX ? (uint32_t)n : 0;
}

static uint32_t count_online(const char *root)
{
    char text[4096];
    sys_read(root, text, sizeof(text), "/sys/devices/system/cpu/online");
    uint32_t n = count_list(text);
    return n > 0 ? n : 1;
}

uint32_t linux_n_cores(const char *root)
{
    uint32_t n = 0;
    cpu_set_t set;
    CPU_ZERO(&set);
    /* Whoever brings files of another machine wants to know of that one. */
    if ((root == NULL || root[0] == '\0') && sched_getaffinity(0, sizeof(set), &set) == 0)
        n = (uint32_t)CPU_COUNT(&set);
    if (n == 0) /* more processors than the set has room for */
        n = count_online(root);
    float quota = linux_cpu_quota(root);
    if (quota > 0 && ceilf(quota) < (float)n)
        n = (uint32_t)ceilf(quota);
    return n > 0 ? n : 1;
}

/* "32K" or "49152K" or "1M"; 0 when it is none. */
static uint64_t parse_size(const char *text)
{
    char *end;
    unsigned long long v = strtoull(text, &end, 10);
    if (end == text || v > 1ull << 30)
        return 0;
    return *end == 'K' ? v << 10 : *end == 'M' ? v << 20 : *end == '\0' ? v : 0;
}

static void get_caches(const char *root, uint64_t cache_bytes[DEVICE_CACHE_LEVELS + 1])
{
    for (int i = 0; i < 16; i++) {
        char path[96], type[32], size[32];
        int64_t level;
        snprintf(path, sizeof(path), "/sys/devices/system/cpu/cpu0/cache/index%d", i);
        if (!sys_read_number(root, &level, "%s/level", path) || level < 1 ||
            level > DEVICE_CACHE_LEVELS)
            continue;
        sys_read(root, type, sizeof(type), "%s/type", path);
        sys_read(root, size, sizeof(size), "%s/size", path);
        if (strcmp(type, "Instruction") != 0)
            cache_bytes[level] = parse_size(size);
    }
}

/* Whether a word is in a line of words. */
static bool has_word(const char *words, const char *word)
{
    size_t n = strlen(word);
    for (const char *at = words; (at = strstr(at, word)) != NULL; at += n)
        if ((at == words || isspace((uint8_t)at[-1])) && (at[n] == '\0' || isspace((uint8_t)at[n])))
            return true;
    return false;
}

static void get_precision(const char *flags, struct device_precision *p)
{
    p->f16 = has_word(flags, "avx512_fp16") || has_word(flags, "asimdhp");
    p->bf16 =
        has_word(flags, "avx512_bf16") || has_word(flags, "amx_bf16") || has_word(flags, "bf16");
    p->int8 = has_word(flags, "avx512_vnni") || has_word(flags, "avx_vnni") ||
              has_word(flags, "amx_int8") || has_word(flags, "asimddp") || has_word(flags, "i8mm");
    p->matrix = has_word(flags, "amx_tile") || has_word(flags, "i8mm") || has_word(flags, "sme");
}

/* The value of a line "key   : value" of /proc/cpuinfo. */
static bool find_value(const char *text, const char *key, char *ret_value, size_t size)
{
    if (!sys_find_line(text, key, ret_value, size))
        return false;
    size_t blank = strspn(ret_value, " \t");
    if (ret_value[blank] != ':')
        return false;
    memmove(ret_value, ret_value + blank + 1, strlen(ret_value + blank + 1) + 1);
    return true;
}

void linux_get_cpu(const char *root, struct device_capabilities *c)
{
    static const char *const models[] = {"model name", "Model", "Hardware", "cpu model", "uarch"};
    char text[16384], value[8192];
    c->n_cores = linux_n_cores(root);
    c->n_cpus = count_online(root);
    c->cpu_quota = linux_cpu_quota(root);
    get_caches(root, c->cache_bytes);
    sys_read(root, text, sizeof(text), "/proc/cpuinfo");
    for (size_t i = 0; i < sizeof(models) / sizeof(models[0]) && c->cpu[0] == '\0'; i++)
        if (find_value(text, models[i], value, sizeof(value)))
            sys_copy_text(c->cpu, sizeof(c->cpu), value);
    if (c->cpu[0] == '\0' &&
        sys_read(root, value, sizeof(value), "/sys/firmware/devicetree/base/model") > 0)
        sys_copy_text(c->cpu, sizeof(c->cpu), value);
    if (find_value(text, "flags", value, sizeof(value)) ||
        find_value(text, "Features", value, sizeof(value)))
        get_precision(value, &c->precision);
}

/* "cpu  user nice system idle iowait irq softirq steal ...", in ticks. */
void linux_sample_cpu(struct device_sampler *s, struct device_telemetry *t)
{
    char text[512], rest[256];
    sys_read(s->options.root, text, sizeof(text), "/proc/stat");
    if (!sys_find_line(text, "cpu ", rest, sizeof(rest)))
        return;
    uint64_t total = 0, idle = 0;
    const char *at = rest;
    for (int i = 0; i < 8; i++) { /* what comes later is counted in these */
        char *end;
        unsigned long long v = strtoull(at, &end, 10);
        if (end == at || v > UINT64_MAX / 16)
            break;
        total += v;
        if (i == 3 || i == 4)
            idle += v;
        at = end;
    }
    if (s->has_cpu && total > s->cpu_total && idle >= s->cpu_idle) {
        double all = (double)(total - s->cpu_total), free = (double)(idle - s->cpu_idle);
        t->utilization_percent = free < all ? (float)(100.0 * (all - free) / all) : 0;
    }
    s->has_cpu = true;
    s->cpu_total = total;
    s->cpu_idle = idle;
}
#endif
