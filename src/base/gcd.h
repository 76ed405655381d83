/* The greatest common divisor. Thread: any. */
#ifndef SHOAL_BASE_GCD_H
#define SHOAL_BASE_GCD_H

#include <stdint.h>

/* Of a and 0: a. */
static inline uint32_t gcd_u32(uint32_t a, uint32_t b)
{
    while (b != 0) {
        uint32_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

#endif
