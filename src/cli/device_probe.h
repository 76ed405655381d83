/* Looks at a device from a child process, since its driver may end whoever asks, and keeps threads
 * and memory. Thread: the main one, before there are others. */
#ifndef SHOAL_CLI_DEVICE_PROBE_H
#define SHOAL_CLI_DEVICE_PROBE_H

#include "engine/devices.h"

/* As engine_device_find; also E_UNAVAILABLE when the child died. */
int device_probe(const char *name, struct engine_device *ret, struct error *err);

#endif
