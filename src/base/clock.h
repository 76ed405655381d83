/* Time for measuring and for deadlines. Code that must be replayable takes its time as an argument
 * instead. Thread: any. */
#ifndef SHOAL_BASE_CLOCK_H
#define SHOAL_BASE_CLOCK_H

#include <stdint.h>

/* Nanoseconds of a clock that never goes back (CLOCK_MONOTONIC). */
uint64_t clock_now_ns(void);
/* Nanoseconds since 1970 (CLOCK_REALTIME): for people and for API fields, never for deadlines. */
uint64_t clock_wall_ns(void);

#endif
