/*
 * What can compute on this machine: its processors, and the GPUs that the back ends of this build's
 * ggml find. Asking for GPUs starts their drivers, which may end the process: a node lets a child
 * ask. Thread: any.
 */
#ifndef SHOAL_ENGINE_DEVICES_H
#define SHOAL_ENGINE_DEVICES_H

#include "engine/engine.h"

#include <stdbool.h>
#include <stdint.h>

enum { ENGINE_DEVICES_MAX = 16 };

struct engine_device {
    char name[ENGINE_DEVICE_BYTES]; /* for engine_options.device; "cpu": the processors */
    char description[128];
    bool is_cpu;
    uint64_t memory_bytes_total, memory_bytes_free; /* of its own or of the machine; 0: unknown */
};

/* Lists them, the processors first. Returns how many, at most n_max. */
uint32_t engine_devices(struct engine_device *ret, uint32_t n_max);
/* The one that engine_options.device means. Errors: E_INVALID (there is none of this name; says
 * which there are). */
int engine_device_find(const char *name, struct engine_device *ret, struct error *err);
/* Names between commas, one for each of several ranks or nodes: copies that of number i; those that
 * are not named have the last one. Errors: E_INVALID (a name is too long). */
int engine_device_nth(const char *list, uint32_t i, char ret_name[ENGINE_DEVICE_BYTES],
                      struct error *err);

#endif
