#include "store/meter.h"

enum { SAMPLE_MS = 200, SMOOTH_MS = 3000 };

void meter_start(struct meter *m, uint64_t now_ms, uint64_t bytes)
{
    *m = (struct meter){.last_ms = now_ms, .last_bytes = bytes};
}

void meter_read(struct meter *m, uint64_t now_ms, uint64_t bytes, uint64_t total,
                struct fetch_progress *ret)
{
    uint64_t passed_ms = now_ms - m->last_ms;
    if (bytes < m->last_bytes)
        meter_start(m, now_ms, bytes); /* it began anew */
    else if (passed_ms >= SAMPLE_MS) {
        double now = (double)(bytes - m->last_bytes) * 1000 / (double)passed_ms;
        double weight = passed_ms < SMOOTH_MS ? (double)passed_ms / SMOOTH_MS : 1;
        m->bytes_per_s =
            m->bytes_per_s > 0 ? m->bytes_per_s + weight * (now - m->bytes_per_s) : now;
        m->last_ms = now_ms;
        m->last_bytes = bytes;
    }
    *ret = (struct fetch_progress){.downloaded_bytes = bytes,
                                   .total_bytes = total,
                                   .bytes_per_s = (uint64_t)m->bytes_per_s,
                                   .eta_s = -1};
    if (total >= bytes && total > 0 && m->bytes_per_s >= 1)
        ret->eta_s = (int64_t)((double)(total - bytes) / m->bytes_per_s + 0.5);
}
