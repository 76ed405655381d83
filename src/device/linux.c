/* Linux: the parts put together. */
#ifdef __linux__
#include "device/linux_files.h"

#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

uint64_t device_memory_bytes_free(void)
{
    return linux_memory_free(NULL);
}

/* Without domain. */
static void get_host_name(const char *root, char *name, size_t size)
{
    char text[256] = "";
    if (root == NULL || root[0] == '\0') {
        if (gethostname(text, sizeof(text) - 1) != 0)
            text[0] = '\0';
    } else {
        sys_read(root, text, sizeof(text), "/proc/sys/kernel/hostname");
    }
    text[strcspn(text, ".")] = '\0';
    sys_copy_text(name, size, text);
    if (name[0] == '\0')
        snprintf(name, size, "node");
}

void device_get_info(struct device_info *ret_info)
{
    bool is_limited;
    memset(ret_info, 0, sizeof(*ret_info));
    ret_info->memory_bytes_total = linux_memory_total(NULL, &is_limited);
    ret_info->memory_bytes_free = device_memory_bytes_free();
    ret_info->n_cores = linux_n_cores(NULL);
    get_host_name(NULL, ret_info->host_name, sizeof(ret_info->host_name));
}

static bool has_temperature(const char *root)
{
    struct device_sampler s = {.options = {.root = root}};
    struct device_telemetry t;
    memset(&t, 0, sizeof(t));
    t.n_gpus = linux_get_gpus(root, t.gpu);
    linux_sample_sensors(&s, 0, &t);
    return t.temperature_c > 0;
}

void device_get_capabilities(const struct device_options *o, struct device_capabilities *ret)
{
    const char *root = o == NULL ? NULL : o->root;
    struct utsname u;
    char text[160];
    memset(ret, 0, sizeof(*ret));
    get_host_name(root, ret->host_name, sizeof(ret->host_name));
    if (uname(&u) == 0) {
        snprintf(text, sizeof(text), "%.60s %.60s", u.sysname, u.release);
        sys_copy_text(ret->os, sizeof(ret->os), text);
        sys_copy_text(ret->arch, sizeof(ret->arch), u.machine);
    }
    linux_get_cpu(root, ret);
    ret->memory_bytes_total = linux_memory_total(root, &ret->is_memory_limited);
    ret->has_battery = linux_has_battery(root);
    ret->has_temperature = has_temperature(root);
    ret->n_gpus = linux_get_gpus(root, ret->gpu);
    ret->n_links = linux_get_links(root, ret->link);
}

void device_sample(struct device_sampler *s, uint64_t now_ns, struct device_telemetry *ret)
{
    const char *root = s->options.root;
    bool is_limited;
    memset(ret, 0, sizeof(*ret));
    ret->memory_bytes_total = linux_memory_total(root, &is_limited);
    ret->memory_bytes_free = linux_memory_free(root);
    if (ret->memory_bytes_free > ret->memory_bytes_total)
        ret->memory_bytes_free = ret->memory_bytes_total;
    linux_sample_cpu(s, ret);
    ret->n_gpus = linux_get_gpus(root, ret->gpu);
    linux_sample_sensors(s, now_ns, ret);
    s->thermal = device_thermal_step(s->thermal, ret->temperature_c);
    ret->thermal = s->thermal;
    s->sampled_ns = now_ns;
}
#endif
