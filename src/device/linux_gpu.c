/*
 * Linux: GPUs that the kernel's graphics drivers know, and those of NVIDIA through its management
 * library, which is opened while we run and is no dependency.
 */
#ifdef __linux__
#include "device/linux_files.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t memory_max = 1ull << 46; /* 64 TiB: a larger one is a broken answer */

static uint64_t read_bytes(const char *root, const char *device, const char *name)
{
    int64_t v;
    if (!sys_read_number(root, &v, "%s/%s", device, name) || v < 0 || (uint64_t)v > memory_max)
        return 0;
    return (uint64_t)v;
}

static float read_scaled(const char *root, const char *path, const char *name, double scale,
                         double max)
{
    int64_t v;
    if (!sys_read_number(root, &v, "%s/%s", path, name) || v <= 0 || (double)v * scale > max)
        return 0;
    return (float)((double)v * scale);
}

static void read_monitor(const char *root, const char *device, struct device_gpu *g)
{
    struct sys_names monitors;
    char path[256];
    sys_list(root, &monitors, "%s/hwmon", device);
    for (uint32_t i = 0; i < monitors.n; i++) {
        snprintf(path, sizeof(path), "%s/hwmon/%s", device, monitors.name[i]);
        float celsius = read_scaled(root, path, "temp1_input", 1e-3, 150);
        float watts = read_scaled(root, path, "power1_average", 1e-6, 5000);
        if (watts == 0)
            watts = read_scaled(root, path, "power1_input", 1e-6, 5000);
        g->temperature_c = celsius > g->temperature_c ? celsius : g->temperature_c;
        g->power_w = watts > g->power_w ? watts : g->power_w;
    }
}

/* False for what is no GPU that could compute: virtual and server display adapters stay in, as
 * their memory says what they are. */
static bool read_card(const char *root, const char *card, struct device_gpu *g)
{
    char device[160], vendor[16], model[16], uevent[1024], driver[64];
    snprintf(device, sizeof(device), "/sys/class/drm/%s/device", card);
    memset(g, 0, sizeof(*g));
    sys_read(root, uevent, sizeof(uevent), "%s/uevent", device);
    if (sys_find_line(uevent, "DRIVER=", driver, sizeof(driver)))
        sys_copy_text(g->driver, sizeof(g->driver), driver);
    if (sys_read(root, vendor, sizeof(vendor), "%s/vendor", device) == 0)
        return g->driver[0] != '\0' && sys_exists(root, "/sys/class/drm/%s/dev", card);
    sys_read(root, model, sizeof(model), "%s/device", device);
    unsigned long id = strtoul(vendor, NULL, 16);
    const char *name = id == 0x10de ? "nvidia" : id == 0x1002 ? "amd" : id == 0x8086 ? "intel" : "";
    if (*name != '\0')
        snprintf(g->vendor, sizeof(g->vendor), "%s", name);
    else
        sys_copy_text(g->vendor, sizeof(g->vendor), vendor);
    char product[96];
    if (sys_read(root, product, sizeof(product), "%s/product_name", device) > 0)
        sys_copy_text(g->name, sizeof(g->name), product);
    if (g->name[0] == '\0') {
        snprintf(product, sizeof(product), "%.15s:%.15s", vendor, model);
        sys_copy_text(g->name, sizeof(g->name), product);
    }
    g->memory_bytes_total = read_bytes(root, device, "mem_info_vram_total");
    g->memory_bytes_used = read_bytes(root, device, "mem_info_vram_used");
    g->utilization_percent = read_scaled(root, device, "gpu_busy_percent", 1, 100);
    read_monitor(root, device, g);
    return true;
}

/* ---- NVIDIA ---- */

struct nvml_memory {
    unsigned long long total, free, used;
};
struct nvml_utilization {
    unsigned gpu, memory;
};

/* Functions of NVML's stable interface; 0 means success. Source: NVML API reference. */
struct nvml {
    void *library;
    int (*init)(void);
    int (*shutdown)(void);
    int (*count)(unsigned *);
    int (*get)(unsigned, void **);
    int (*name)(void *, char *, unsigned);
    int (*memory)(void *, struct nvml_memory *);
    int (*temperature)(void *, int, unsigned *);
    int (*power)(void *, unsigned *);
    int (*utilization)(void *, struct nvml_utilization *);
    int (*compute)(void *, int *, int *);
    int (*cores)(void *, unsigned *);
};

/* dlsym gives an object pointer; a copy of its bytes is the function pointer on every POSIX system.
 */
static void look_up(void *library, const char *name, void *ret_function)
{
    void *symbol = dlsym(library, name);
    memcpy(ret_function, &symbol, sizeof(symbol));
}

static bool nvml_open(struct nvml *n)
{
    memset(n, 0, sizeof(*n));
    n->library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (n->library == NULL)
        return false;
    look_up(n->library, "nvmlInit_v2", &n->init);
    look_up(n->library, "nvmlShutdown", &n->shutdown);
    look_up(n->library, "nvmlDeviceGetCount_v2", &n->count);
    look_up(n->library, "nvmlDeviceGetHandleByIndex_v2", &n->get);
    look_up(n->library, "nvmlDeviceGetName", &n->name);
    look_up(n->library, "nvmlDeviceGetMemoryInfo", &n->memory);
    look_up(n->library, "nvmlDeviceGetTemperature", &n->temperature);
    look_up(n->library, "nvmlDeviceGetPowerUsage", &n->power);
    look_up(n->library, "nvmlDeviceGetUtilizationRates", &n->utilization);
    look_up(n->library, "nvmlDeviceGetCudaComputeCapability", &n->compute);
    look_up(n->library, "nvmlDeviceGetNumGpuCores", &n->cores);
    if (n->init != NULL && n->shutdown != NULL && n->count != NULL && n->get != NULL &&
        n->init() == 0)
        return true;
    dlclose(n->library);
    return false;
}

static void nvml_read(const struct nvml *n, void *handle, struct device_gpu *g)
{
    char name[96] = "";
    struct nvml_memory memory;
    struct nvml_utilization utilization;
    unsigned v;
    int major, minor;
    snprintf(g->vendor, sizeof(g->vendor), "nvidia");
    snprintf(g->driver, sizeof(g->driver), "nvidia");
    if (n->name != NULL && n->name(handle, name, sizeof(name) - 1) == 0)
        sys_copy_text(g->name, sizeof(g->name), name);
    if (n->memory != NULL && n->memory(handle, &memory) == 0 && memory.total <= memory_max &&
        memory.used <= memory.total) {
        g->memory_bytes_total = memory.total;
        g->memory_bytes_used = memory.used;
    }
    if (n->temperature != NULL && n->temperature(handle, 0, &v) == 0 && v <= 150)
        g->temperature_c = (float)v;
    if (n->power != NULL && n->power(handle, &v) == 0 && v < 5000000)
        g->power_w = (float)v / 1000;
    if (n->utilization != NULL && n->utilization(handle, &utilization) == 0 &&
        utilization.gpu <= 100)
        g->utilization_percent = (float)utilization.gpu;
    if (n->compute != NULL && n->compute(handle, &major, &minor) == 0 && major >= 0 &&
        major < 1000 && minor >= 0 && minor < 1000)
        snprintf(g->compute, sizeof(g->compute), "%d.%d", major, minor);
    if (n->cores != NULL && n->cores(handle, &v) == 0)
        g->n_compute_units = v;
}

uint32_t nvml_get_gpus(struct device_gpu *gpus, uint32_t n_max)
{
    struct nvml n;
    unsigned count = 0;
    uint32_t n_gpus = 0;
    if (!nvml_open(&n))
        return 0;
    if (n.count(&count) != 0)
        count = 0;
    for (unsigned i = 0; i < count && n_gpus < n_max; i++) {
        void *handle;
        if (n.get(i, &handle) != 0)
            continue;
        memset(&gpus[n_gpus], 0, sizeof(gpus[0]));
        nvml_read(&n, handle, &gpus[n_gpus++]);
    }
    n.shutdown();
    dlclose(n.library);
    return n_gpus;
}

uint32_t linux_get_gpus(const char *root, struct device_gpu gpus[DEVICE_GPUS_MAX])
{
    struct sys_names cards;
    uint32_t n = 0;
    /* Asking NVIDIA's library wakes its driver, so only where that is loaded. */
    if ((root == NULL || root[0] == '\0') && sys_exists(NULL, "/proc/driver/nvidia/version"))
        n = nvml_get_gpus(gpus, DEVICE_GPUS_MAX);
    bool has_nvml = n > 0;
    sys_list(root, &cards, "/sys/class/drm");
    for (uint32_t i = 0; i < cards.n && n < DEVICE_GPUS_MAX; i++) {
        const char *card = cards.name[i];
        /* "card0"; "card0-HDMI-A-1" is a socket of it. */
        if (strncmp(card, "card", 4) != 0 || card[4] == '\0' ||
            strspn(card + 4, "0123456789") != strlen(card + 4))
            continue;
        if (read_card(root, card, &gpus[n]) && !(has_nvml && strcmp(gpus[n].vendor, "nvidia") == 0))
            n++;
    }
    return n;
}
#endif
