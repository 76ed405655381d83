/*
 * How fast this computer, or a device in it, is at what engines do: multiplying 4-bit weights. Two
 * figures, in about a second: many rows at a time, which computing bounds (prefill), and one row,
 * which reading the weights from memory bounds (decode). The weights are laid out as the engine
 * lays them out. Thread: the caller's, which it blocks; compute threads are inside. ggml may abort:
 * call it in a process of its own where that matters.
 */
#ifndef SHOAL_ENGINE_MEASURE_H
#define SHOAL_ENGINE_MEASURE_H

#include "base/error.h"

#include <stdint.h>

struct measured {
    double gflops;      /* multiply-adds x 2; 128 rows */
    double memory_gb_s; /* 10^9 bytes of weights per second; one row */
};

/* device: as engine_options.device. Errors: E_INVALID (no such device, no or over 512 threads),
 * E_NOMEM, E_UNAVAILABLE. */
int measure_speed(const char *device, uint32_t n_threads, struct measured *ret, struct error *err);

#endif
