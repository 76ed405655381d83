#include "engine/devices.h"

#include "engine/compute.h"

#include <ggml-cpu.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char cpu_name[] = "cpu", any_name[] = "auto";
/* The processors in the role of a device, so that tests can walk its paths anywhere. */
static const char stand_in_name[] = "cpu-as-device";

static bool is_gpu(ggml_backend_dev_t device)
{
    enum ggml_backend_dev_type type = ggml_backend_dev_type(device);
    return type == GGML_BACKEND_DEVICE_TYPE_GPU || type == GGML_BACKEND_DEVICE_TYPE_IGPU;
}

static void describe(ggml_backend_dev_t device, struct engine_device *ret)
{
    size_t n_free = 0, n_total = 0;
    ggml_backend_dev_memory(device, &n_free, &n_total);
    *ret = (struct engine_device){.is_cpu =
                                      ggml_backend_dev_type(device) == GGML_BACKEND_DEVICE_TYPE_CPU,
                                  .memory_bytes_total = n_total,
                                  .memory_bytes_free = n_free};
    snprintf(ret->name, sizeof(ret->name), "%s",
             ret->is_cpu ? cpu_name : ggml_backend_dev_name(device));
    snprintf(ret->description, sizeof(ret->description), "%s",
             ggml_backend_dev_description(device));
}

uint32_t engine_devices(struct engine_device *ret, uint32_t n_max)
{
    uint32_t n = 0;
    compute_forward_log();
    if (n_max > 0)
        describe(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0), &ret[n++]);
    for (size_t i = 0; i < ggml_backend_dev_count() && n < n_max; i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU)
            describe(device, &ret[n++]);
    }
    return n;
}

/* "cpu, Vulkan0 (its description), ..." */
static void list_names(char *text, size_t size)
{
    struct engine_device device[ENGINE_DEVICES_MAX];
    uint32_t n = engine_devices(device, ENGINE_DEVICES_MAX);
    size_t len = (size_t)snprintf(text, size, "%s", cpu_name);
    for (uint32_t i = 1; i < n && len < size; i++)
        len += (size_t)snprintf(text + len, size - len, ", %s (%s)", device[i].name,
                                device[i].description);
}

int compute_find(const char *name, ggml_backend_dev_t *ret_device, struct error *err)
{
    char names[320];
    *ret_device = NULL;
    compute_forward_log();
    if (name[0] == '\0' || strcasecmp(name, cpu_name) == 0)
        return 0; /* without a look at the others, which would start their drivers */
    if (strcmp(name, stand_in_name) == 0) {
        *ret_device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
        return 0;
    }
    bool is_any = strcasecmp(name, any_name) == 0;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        if (is_any ? is_gpu(device)
                   : strcasecmp(name, ggml_backend_dev_name(device)) == 0 &&
                         ggml_backend_dev_type(device) != GGML_BACKEND_DEVICE_TYPE_CPU) {
            *ret_device = device;
            return 0;
        }
    }
    if (is_any)
        return 0;
    list_names(names, sizeof(names));
    return error_set(err, E_INVALID,
                     "there is no device '%s' here; what this build of ggml finds: %s", name,
                     names);
}

int engine_device_find(const char *name, struct engine_device *ret, struct error *err)
{
    ggml_backend_dev_t device;
    int rc = compute_find(name, &device, err);
    if (rc == 0)
        describe(device != NULL ? device : ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
                 ret);
    return rc;
}

int engine_device_nth(const char *list, uint32_t i, char ret_name[ENGINE_DEVICE_BYTES],
                      struct error *err)
{
    const char *comma = strchr(list, ',');
    for (; i > 0 && comma != NULL; i--) {
        list = comma + 1;
        comma = strchr(list, ',');
    }
    size_t len = comma != NULL ? (size_t)(comma - list) : strlen(list);
    if (len >= ENGINE_DEVICE_BYTES)
        return error_set(err, E_INVALID, "a device has no name of %zu bytes: at most %d", len,
                         ENGINE_DEVICE_BYTES - 1);
    memcpy(ret_name, list, len);
    ret_name[len] = '\0';
    return 0;
}
