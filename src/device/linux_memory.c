/*
 * Linux: memory and processor limits. /proc/meminfo tells of the machine; a process in a control
 * group is ended at the group's limit, and at that of every group around it. Both versions of
 * control groups are read, since both are in use.
 */
#ifdef __linux__
#include "device/linux_files.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUP_PATH_MAX = 512, GROUP_DEPTH_MAX = 32 };

/* Version 1 writes "no limit" as a number near 2^63. */
static const int64_t limit_max = 1ll << 60;

struct group { /* one controller of the group that this process is in */
    bool is_v2;
    char path[GROUP_PATH_MAX]; /* below root; "" when there is none */
};

/* Lines are `0::/path` (version 2) or `4:memory,other:/path`. */
static bool find_v1(const char *text, const char *controller, char *ret_path)
{
    for (const char *line = text; *line != '\0';) {
        size_t n = strcspn(line, "\n");
        const char *names = memchr(line, ':', n);
        const char *path =
            names == NULL ? NULL : memchr(names + 1, ':', n - (size_t)(names + 1 - line));
        for (const char *name = names; path != NULL && name < path;) {
            size_t n_name = strcspn(name + 1, ",:");
            if (n_name == strlen(controller) && strncmp(name + 1, controller, n_name) == 0) {
                size_t n_path = n - (size_t)(path + 1 - line);
                if (n_path >= GROUP_PATH_MAX)
                    return false;
                memcpy(ret_path, path + 1, n_path);
                ret_path[n_path] = '\0';
                return true;
            }
            name += n_name + 1;
        }
        line += n + (line[n] == '\n');
    }
    return false;
}

static void find_group(const char *root, const char *controller, struct group *ret)
{
    char text[8192], path[GROUP_PATH_MAX];
    memset(ret, 0, sizeof(*ret));
    sys_read(root, text, sizeof(text), "/proc/self/cgroup");
    const char *mount;
    if (find_v1(text, controller, path)) {
        mount = controller;
    } else if (sys_find_line(text, "0::", path, sizeof(path))) {
        mount = "";
        ret->is_v2 = true;
    } else {
        return;
    }
    if (path[0] != '/' || strstr(path, "/..") != NULL)
        path[0] = '\0';
    snprintf(ret->path, sizeof(ret->path), "/sys/fs/cgroup%s%.16s%.400s", *mount != '\0' ? "/" : "",
             mount, strcmp(path, "/") == 0 ? "" : path);
}

/* The group around this one; false at the mount. */
static bool leave_group(struct group *g)
{
    char *slash = strrchr(g->path, '/');
    size_t n_mount = strlen("/sys/fs/cgroup");
    if (slash == NULL || (size_t)(slash - g->path) < n_mount)
        return false;
    *slash = '\0';
    return true;
}

static bool read_limit(const char *root, const struct group *g, uint64_t *ret_bytes)
{
    int64_t v;
    const char *name = g->is_v2 ? "memory.max" : "memory.limit_in_bytes";
    if (!sys_read_number(root, &v, "%s/%s", g->path, name) || v <= 0 || v >= limit_max)
        return false;
    *ret_bytes = (uint64_t)v;
    return true;
}

/* What is in use, less the file cache that is dropped first. */
static uint64_t read_used(const char *root, const struct group *g)
{
    char text[8192], rest[64];
    int64_t used;
    const char *name = g->is_v2 ? "memory.current" : "memory.usage_in_bytes";
    if (!sys_read_number(root, &used, "%s/%s", g->path, name) || used < 0)
        return 0;
    sys_read(root, text, sizeof(text), "%s/memory.stat", g->path);
    const char *key = g->is_v2 ? "inactive_file " : "total_inactive_file ";
    if (!sys_find_line(text, key, rest, sizeof(rest)))
        return (uint64_t)used;
    unsigned long long cache = strtoull(rest, NULL, 10);
    return (uint64_t)used - (cache < (uint64_t)used ? cache : (uint64_t)used);
}

static uint64_t read_meminfo(const char *text, const char *key)
{
    char rest[64];
    if (!sys_find_line(text, key, rest, sizeof(rest)))
        return 0;
    unsigned long long kib = strtoull(rest, NULL, 10);
    return kib < (uint64_t)limit_max / 1024 ? kib * 1024 : 0;
}

uint64_t linux_memory_total(const char *root, bool *ret_is_limited)
{
    char text[8192];
    sys_read(root, text, sizeof(text), "/proc/meminfo");
    uint64_t total = read_meminfo(text, "MemTotal:"), limit;
    struct group g;
    *ret_is_limited = false;
    find_group(root, "memory", &g);
    for (int depth = 0; depth < GROUP_DEPTH_MAX && g.path[0] != '\0'; depth++) {
        if (read_limit(root, &g, &limit) && (limit < total || total == 0)) {
            total = limit;
            *ret_is_limited = true;
        }
        if (!leave_group(&g))
            break;
    }
    return total;
}

uint64_t linux_memory_free(const char *root)
{
    char text[8192];
    sys_read(root, text, sizeof(text), "/proc/meminfo");
    uint64_t bytes = read_meminfo(text, "MemAvailable:"), limit;
    struct group g;
    find_group(root, "memory", &g);
    for (int depth = 0; depth < GROUP_DEPTH_MAX && g.path[0] != '\0'; depth++) {
        if (read_limit(root, &g, &limit)) {
            uint64_t used = read_used(root, &g);
            uint64_t left = used < limit ? limit - used : 0;
            if (left < bytes)
                bytes = left;
        }
        if (!leave_group(&g))
            break;
    }
    return bytes;
}

/* Cores that one group may keep busy; 0: no limit. */
static float read_quota(const char *root, const struct group *g)
{
    char text[64];
    int64_t quota_us = 0, period_us = 0;
    if (g->is_v2) {
        char *end;
        if (sys_read(root, text, sizeof(text), "%s/cpu.max", g->path) == 0)
            return 0;
        quota_us = strtoll(text, &end, 10); /* "max 100000" */
        period_us = end == text ? 0 : strtoll(end, NULL, 10);
    } else if (!sys_read_number(root, &quota_us, "%s/cpu.cfs_quota_us", g->path) ||
               !sys_read_number(root, &period_us, "%s/cpu.cfs_period_us", g->path)) {
        return 0;
    }
    if (quota_us <= 0 || period_us <= 0 || quota_us > limit_max / 1000)
        return 0;
    return (float)((double)quota_us / (double)period_us);
}

float linux_cpu_quota(const char *root)
{
    struct group g;
    float least = 0;
    find_group(root, "cpu", &g);
    for (int depth = 0; depth < GROUP_DEPTH_MAX && g.path[0] != '\0'; depth++) {
        float quota = read_quota(root, &g);
        if (quota > 0 && (least == 0 || quota < least))
            least = quota;
        if (!leave_group(&g))
            break;
    }
    return least;
}
#endif
