/*
 * An allocator that fails where a test says. From here on malloc, calloc and realloc are that one:
 * a test includes this, then the sources that are to fail, and then has it undone (#undef malloc,
 * calloc, realloc).
 */
#ifndef TESTS_UNIT_FAILING_ALLOC_H
#define TESTS_UNIT_FAILING_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>

static long allocations_left = -1; /* before one fails; negative: none does */

static inline bool allocation_fails(void)
{
    return allocations_left >= 0 && allocations_left-- == 0;
}

static inline void *test_malloc(size_t n)
{
    return allocation_fails() ? NULL : malloc(n);
}

static inline void *test_calloc(size_t n, size_t size)
{
    return allocation_fails() ? NULL : calloc(n, size);
}

static inline void *test_realloc(void *p, size_t n)
{
    return allocation_fails() ? NULL : realloc(p, n);
}

#define malloc  test_malloc
#define calloc  test_calloc
#define realloc test_realloc

#endif
