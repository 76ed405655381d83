/* Large pieces of memory: zeroed lazily, in huge pages where the kernel grants them. Thread: any.
 */
#ifndef SHOAL_ENGINE_MEMORY_H
#define SHOAL_ENGINE_MEMORY_H

#include <stddef.h>

/* Zeroed pages that cost nothing until they are written. NULL when there is no address space left.
 * Owns: the caller, memory_unreserve. */
void *memory_reserve(size_t bytes);
void memory_unreserve(void *address, size_t bytes);
/* Asks for huge pages: fewer TLB misses while weights stream through (transparent huge pages are
 * often on request only). */
void memory_advise_huge(void *address, size_t bytes);
/* Brings mapped file pages in now, so that the first step does not wait for them. */
void memory_prefault(void *address, size_t bytes);

#endif
