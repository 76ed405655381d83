/* Large pieces of memory: zeroed lazily, in huge pages where the kernel grants them. Thread: any.
 */
#ifndef SHOAL_ENGINE_MEMORY_H
#define SHOAL_ENGINE_MEMORY_H

#include <stdbool.h>
#include <stddef.h>

/* Zeroed pages that cost nothing until they are written. NULL when there is no address space left.
 * Owns: the caller, memory_unreserve. */
void *memory_reserve(size_t bytes);
void memory_unreserve(void *address, size_t bytes);
/* Gives the whole pages inside back to the system; their content is lost. */
void memory_discard(void *address, size_t bytes);
/* Pages that read as zeros, cannot be written and never become resident. NULL when there is no
 * address space left. Owns: the caller, memory_unreserve. */
void *memory_reserve_zeros(size_t bytes);
/* The same in the place of what is mapped there; whole pages. */
bool memory_zeros_at(void *address, size_t bytes);
/* Memory that can be mapped in several places, zeroed lazily: a file descriptor of a file without a
 * name, or -1 with errno. Owns: the caller, close. */
int memory_shared_new(size_t bytes);
/* Drops the pages of a mapping of such memory from the process's tables; what they hold stays. */
void memory_forget_shared(void *address, size_t bytes);
size_t memory_page_bytes(void);
/* Asks for huge pages: fewer TLB misses while weights stream through (transparent huge pages are
 * often on request only). */
void memory_advise_huge(void *address, size_t bytes);
/* Brings mapped file pages in now, so that the first step does not wait for them. */
void memory_prefault(void *address, size_t bytes);
/* Makes writable memory resident, where that can be asked for; what it holds stays. */
void memory_prefault_writable(void *address, size_t bytes);

#endif
