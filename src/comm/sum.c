#include "comm/form.h"
#include "comm/internal.h"

#include <string.h>

/* Explicit vectors, because compilers do not vectorize a loop of unknown length at -O2. Elements
 * are added one by one all the same: the width changes no bit. */
enum { WIDTH = 4 };
typedef float vector __attribute__((vector_size(WIDTH * sizeof(float)), aligned(4), may_alias));

static inline vector load(const float *p)
{
    vector v;
    memcpy(&v, p, sizeof(v));
    return v;
}

static void sum_two(float *to, const float *a, const float *b, size_t from, size_t end)
{
    size_t i = from;
    for (; i + WIDTH <= end; i += WIDTH) {
        vector v = load(a + i) + load(b + i);
        memcpy(to + i, &v, sizeof(v));
    }
    for (; i < end; i++)
        to[i] = a[i] + b[i];
}

static void sum_floats(float *to, const float *const *parts, uint32_t n_parts, size_t from,
                       size_t end)
{
    if (n_parts == 0)
        return;
    if (n_parts == 1) {
        if (to != parts[0])
            memcpy(to + from, parts[0] + from, (end - from) * sizeof(float));
        return;
    }
    if (n_parts == 2) {
        sum_two(to, parts[0], parts[1], from, end);
        return;
    }
    size_t i = from;
    for (; i + WIDTH <= end; i += WIDTH) {
        vector v = load(parts[0] + i);
        for (uint32_t p = 1; p < n_parts; p++)
            v = v + load(parts[p] + i);
        memcpy(to + i, &v, sizeof(v));
    }
    for (; i < end; i++) {
        float v = parts[0][i];
        for (uint32_t p = 1; p < n_parts; p++)
            v = v + parts[p][i];
        to[i] = v;
    }
}

/* Elements summed at once in the other forms: they stay in the first cache. */
enum { CHUNK = 1024 };

void sum_parts(enum comm_wire form, float *to, const uint8_t *const *parts, uint32_t n_parts,
               size_t from, size_t end)
{
    if (form == COMM_WIRE_F32) {
        const float *floats[LIMIT_RANKS];
        for (uint32_t p = 0; p < n_parts; p++)
            floats[p] = (const float *)(const void *)parts[p];
        sum_floats(to, floats, n_parts, from, end);
        return;
    }
    for (size_t i = from; i < end; i += CHUNK) {
        size_t n = end - i < CHUNK ? end - i : CHUNK, at = form_bytes(form, i);
        form_decode(form, parts[0] + at, n, to + i);
        for (uint32_t p = 1; p < n_parts; p++)
            form_add(form, parts[p] + at, n, to + i);
    }
}
