/*
 * Small files of /proc and /sys below a root. Whatever they hold, reading them is bounded, does not
 * wait and never fails loudly: there is a value or there is none. Thread: any.
 */
#ifndef SHOAL_DEVICE_LINUX_FILES_H
#define SHOAL_DEVICE_LINUX_FILES_H

#include "device/device.h"

#include <stddef.h>

enum { SYS_PATH_MAX = 1024, SYS_NAME_MAX = 64, SYS_NAMES_MAX = 256 };

/* The first size - 1 bytes of root + path (printf style), white space at the end cut off. Returns
 * their number; 0: nothing there. */
size_t sys_read(const char *root, char *ret_text, size_t size, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* A whole number and nothing else, sign allowed. */
bool sys_read_number(const char *root, int64_t *ret_v, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
bool sys_exists(const char *root, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* What follows key in a file of lines: "MemTotal:" -> "  123 kB". */
bool sys_find_line(const char *text, const char *key, char *ret_rest, size_t size);

struct sys_names { /* of a folder, sorted; those too long are left out */
    uint32_t n;
    char name[SYS_NAMES_MAX][SYS_NAME_MAX];
};
void sys_list(const char *root, struct sys_names *ret, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Copies what may be shown: control characters become spaces, bad UTF-8 ends it, spaces are
 * squeezed. */
void sys_copy_text(char *to, size_t size, const char *from);

/* Parts of device_get_capabilities and device_sample, one file each. */
uint64_t linux_memory_total(const char *root, bool *ret_is_limited);
uint64_t linux_memory_free(const char *root);
float linux_cpu_quota(const char *root);
uint32_t linux_n_cores(const char *root);
void linux_get_cpu(const char *root, struct device_capabilities *c);
void linux_sample_cpu(struct device_sampler *s, struct device_telemetry *t);
bool linux_has_battery(const char *root);
void linux_sample_sensors(struct device_sampler *s, uint64_t now_ns, struct device_telemetry *t);
uint32_t linux_get_gpus(const char *root, struct device_gpu gpus[DEVICE_GPUS_MAX]);
uint32_t linux_get_links(const char *root, struct device_link links[DEVICE_LINKS_MAX]);
/* GPUs of NVIDIA through its own library, when this computer has it. */
uint32_t nvml_get_gpus(struct device_gpu *gpus, uint32_t n_max);

#endif
