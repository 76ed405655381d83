/*
 * What this computer has: memory, processors, name. One implementation file per platform; every
 * figure is 0 when the platform cannot tell. Thread: any; each call asks the system afresh.
 */
#ifndef SHOAL_DEVICE_DEVICE_H
#define SHOAL_DEVICE_DEVICE_H

#include <stdint.h>

struct device_info {
    uint64_t memory_bytes_total;
    uint64_t memory_bytes_free; /* what a new process could take without swapping */
    uint32_t n_cores;           /* that this process may use; at least 1 */
    char host_name[64];         /* without domain; "node" when unknown */
};

void device_get_info(struct device_info *ret_info);
/* Only the free memory: cheap enough for every heartbeat. */
uint64_t device_memory_bytes_free(void);

#endif
