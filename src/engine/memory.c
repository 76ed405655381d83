#include "engine/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

size_t memory_page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

/* Shrinks [address, address + bytes) to whole pages inside it (grow = 0) or around it (grow = 1).
 */
static void align_to_pages(void **address, size_t *bytes, int grow)
{
    uintptr_t page = memory_page_bytes();
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

void *memory_reserve_zeros(size_t bytes)
{
    void *address =
        mmap(NULL, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return address != MAP_FAILED ? address : NULL;
}

bool memory_zeros_at(void *address, size_t bytes)
{
    return mmap(address, bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED,
                -1, 0) != MAP_FAILED;
}

/* A name for the moment between making and unlinking it. */
static int open_unnamed(void)
{
#ifdef MFD_CLOEXEC
    int fd = memfd_create("shoal-kv", MFD_CLOEXEC);
    if (fd >= 0 || errno != ENOSYS)
        return fd;
#endif
    static atomic_uint n_made;
    char name[48];
    snprintf(name, sizeof(name), "/shoal-kv-%ld-%u", (long)getpid(), atomic_fetch_add(&n_made, 1u));
    int unnamed = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (unnamed >= 0)
        shm_unlink(name);
    return unnamed;
}

int memory_shared_new(size_t bytes)
{
    int fd = open_unnamed();
    if (fd >= 0 && ftruncate(fd, (off_t)bytes) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    return fd;
}

void memory_forget_shared(void *address, size_t bytes)
{
#ifdef __linux__ /* elsewhere this might drop what the pages hold */
    madvise(address, bytes, MADV_DONTNEED);
#else
    (void)address;
    (void)bytes;
#endif
}

void memory_discard(void *address, size_t bytes)
{
    align_to_pages(&address, &bytes, 0);
    if (bytes > 0)
        madvise(address, bytes, MADV_DONTNEED);
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

void memory_prefault_writable(void *address, size_t bytes)
{
#ifdef MADV_POPULATE_WRITE
    align_to_pages(&address, &bytes, 0);
    if (bytes > 0)
        madvise(address, bytes, MADV_POPULATE_WRITE);
#else
    (void)address;
    (void)bytes;
#endif
}
