#include "engine/memory.h"

#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

/* Shrinks [address, address + bytes) to whole pages inside it (grow = 0) or around it (grow = 1).
 */
static void align_to_pages(void **address, size_t *bytes, int grow)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = (uintptr_t)*address, end = begin + *bytes;
    begin = grow ? begin / page * page : (begin + page - 1) / page * page;
    end = grow ? (end + page - 1) / page * page : end / page * page;
    *address = (void *)begin;
    *bytes = end > begin ? end - begin : 0;
}

void *memory_reserve(size_t bytes)
{
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address != MAP_FAILED ? address : NULL;
}

void memory_unreserve(void *address, size_t bytes)
{
    if (address != NULL)
        munmap(address, bytes);
}

void memory_advise_huge(void *address, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    align_to_pages(&address, &bytes, 0);
    if (bytes > 0)
        madvise(address, bytes, MADV_HUGEPAGE); /* a wish: nothing breaks when it is not granted */
#else
    (void)address;
    (void)bytes;
#endif
}

void memory_prefault(void *address, size_t bytes)
{
    align_to_pages(&address, &bytes, 1);
#ifdef MADV_POPULATE_READ
    if (madvise(address, bytes, MADV_POPULATE_READ) == 0)
        return;
#endif
    madvise(address, bytes, MADV_WILLNEED);
}
