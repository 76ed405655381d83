/* Linux: /proc/meminfo, the memory limit of our control group, the affinity mask. */
#ifdef __linux__
#include "device/device.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* The value of "Name: 123 kB" in /proc/meminfo, in bytes; 0 when absent. */
static uint64_t read_meminfo(const char *name)
{
    FILE *file = fopen("/proc/meminfo", "re");
    if (file == NULL)
        return 0;
    char line[256];
    unsigned long long kib = 0;
    size_t len = strlen(name);
    while (fgets(line, sizeof(line), file) != NULL)
        if (strncmp(line, name, len) == 0 && line[len] == ':') {
            if (sscanf(line + len + 1, "%llu", &kib) != 1)
                kib = 0;
            break;
        }
    fclose(file);
    return (uint64_t)kib * 1024;
}

static uint64_t read_number(const char *path)
{
    FILE *file = fopen(path, "re");
    unsigned long long v = 0;
    if (file == NULL)
        return 0;
    if (fscanf(file, "%llu", &v) != 1) /* "max" means no limit */
        v = 0;
    fclose(file);
    return v;
}

/* Containers see the host's meminfo, but are killed at the limit of their control group (v2, as
 * seen from inside; the page cache in use counts as free because it can be dropped). */
static uint64_t cgroup_bytes_free(uint64_t limit)
{
    uint64_t used = read_number("/sys/fs/cgroup/memory.current");
    FILE *file = fopen("/sys/fs/cgroup/memory.stat", "re");
    char line[256];
    unsigned long long cache = 0;
    while (file != NULL && fgets(line, sizeof(line), file) != NULL)
        if (sscanf(line, "inactive_file %llu", &cache) == 1)
            break;
    if (file != NULL)
        fclose(file);
    used -= cache < used ? cache : used;
    return used < limit ? limit - used : 0;
}

uint64_t device_memory_bytes_free(void)
{
    uint64_t bytes = read_meminfo("MemAvailable");
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    if (limit > 0) {
        uint64_t in_group = cgroup_bytes_free(limit);
        if (in_group < bytes)
            bytes = in_group;
    }
    return bytes;
}

void device_get_info(struct device_info *ret_info)
{
    struct device_info info = {.n_cores = 1};
    info.memory_bytes_total = read_meminfo("MemTotal");
    uint64_t limit = read_number("/sys/fs/cgroup/memory.max");
    if (limit > 0 && limit < info.memory_bytes_total)
        info.memory_bytes_total = limit;
    info.memory_bytes_free = device_memory_bytes_free();

    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof(set), &set) == 0 && CPU_COUNT(&set) > 0)
        info.n_cores = (uint32_t)CPU_COUNT(&set);
    if (gethostname(info.host_name, sizeof(info.host_name) - 1) != 0 || info.host_name[0] == '\0')
        snprintf(info.host_name, sizeof(info.host_name), "node");
    info.host_name[strcspn(info.host_name, ".")] = '\0';
    *ret_info = info;
}
#endif
