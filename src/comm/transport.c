#include "comm/transport.h"

#include <string.h>

int transport_lost(uint32_t peer, const char *why, struct error *err)
{
    return error_set(err, E_PEERLOST, "rank %u is gone (%s)", peer, why);
}

size_t iov_gather(uint8_t *to, size_t n_max, const struct iovec *iov, int n_iov)
{
    size_t n = 0;
    for (int i = 0; i < n_iov && n < n_max; i++) {
        size_t part = iov[i].iov_len < n_max - n ? iov[i].iov_len : n_max - n;
        memcpy(to + n, iov[i].iov_base, part);
        n += part;
    }
    return n;
}

size_t iov_scatter(const uint8_t *from, size_t n_max, const struct iovec *iov, int n_iov)
{
    size_t n = 0;
    for (int i = 0; i < n_iov && n < n_max; i++) {
        size_t part = iov[i].iov_len < n_max - n ? iov[i].iov_len : n_max - n;
        memcpy(iov[i].iov_base, from + n, part);
        n += part;
    }
    return n;
}
