#include "base/rng.h"

#include <errno.h>
#include <sys/random.h>

void rng_block(const uint32_t key[2], const uint32_t counter[4], uint32_t ret_block[4])
{
    uint32_t k0 = key[0], k1 = key[1];
    uint32_t c0 = counter[0], c1 = counter[1], c2 = counter[2], c3 = counter[3];
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    ret_block[0] = c0;
    ret_block[1] = c1;
    ret_block[2] = c2;
    ret_block[3] = c3;
}

uint64_t rng_u64(uint64_t seed, uint64_t position, uint32_t stream)
{
    uint32_t key[2] = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint32_t counter[4] = {(uint32_t)position, (uint32_t)(position >> 32), stream, 0};
    uint32_t block[4];
    rng_block(key, counter, block);
    return (uint64_t)block[1] << 32 | block[0];
}

double rng_uniform(uint64_t seed, uint64_t position, uint32_t stream)
{
    return (double)(rng_u64(seed, position, stream) >> 11) * 0x1.0p-53;
}

int rng_system(void *data, size_t n)
{
    uint8_t *p = data;
    while (n > 0) {
        ssize_t got = getrandom(p, n, 0);
        if (got < 0 && errno != EINTR)
            return -errno;
        if (got > 0) {
            p += got;
            n -= (size_t)got;
        }
    }
    return 0;
}
