/* Speed and time left of something that is being fetched. Thread: none of this is shared. */
#ifndef SHOAL_STORE_METER_H
#define SHOAL_STORE_METER_H

#include "store/download.h"

struct meter {
    uint64_t last_ms, last_bytes;
    double bytes_per_s; /* smoothed over some seconds */
};

void meter_start(struct meter *m, uint64_t now_ms, uint64_t bytes);
void meter_read(struct meter *m, uint64_t now_ms, uint64_t bytes, uint64_t total,
                struct fetch_progress *ret);

#endif
