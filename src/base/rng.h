/*
 * Counter-based random numbers: a value is a function of (key, counter) and nothing else, so a run
 * that is repeated from the middle draws the same numbers again.
 *
 * Source: Philox4x32-10, Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011.
 * Thread: any; there is no state.
 */
#ifndef SHOAL_BASE_RNG_H
#define SHOAL_BASE_RNG_H

#include <stddef.h>
#include <stdint.h>

/* The block of four 32-bit numbers for this key and 128-bit counter. */
void rng_block(const uint32_t key[2], const uint32_t counter[4], uint32_t ret_block[4]);
/* Uniform in [0, 1) with 53 bits, for the pair (seed, position) and a stream number that tells uses
 * apart. */
double rng_uniform(uint64_t seed, uint64_t position, uint32_t stream);
/* Uniform 64-bit number, likewise. */
uint64_t rng_u64(uint64_t seed, uint64_t position, uint32_t stream);
/* Bytes from the operating system, for ids and secrets. Returns 0 or a negative errno. */
int rng_system(void *data, size_t n);

#endif
