/*
 * Two ranks that agree on memory to share, and then use it. The input is what the other rank says
 * and does: a byte of flags, its offer or its answer, and then records of 11 bytes (u8 what, u16
 * word, u64 value) that write words of the memory or have our side move bytes. Our side must end
 * with or without memory, and never move more than it was asked to.
 */
#include "base/buf.h"
#include "base/log.h"
#include "comm/shm.h"
#include "comm/tcp.h"
#include "comm/wire.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    FLAG_WE_OFFER = 1,  /* otherwise the other rank does */
    FLAG_REAL_NAME = 2, /* its offer names memory that is there */
    FLAG_UNWILLING = 4,
};
enum { HEADER_PAGE_BYTES = 4096, RECORD_BYTES = 11 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t *map_header(const uint8_t name[SHM_NAME_BYTES])
{
    char path[48];
    int n = snprintf(path, sizeof(path), "/shoal-");
    for (int i = 0; i < SHM_NAME_BYTES; i++)
        n += snprintf(path + n, sizeof(path) - (size_t)n, "%02x", name[i]);
    int fd = shm_open(path, O_RDWR, 0);
    void *at = mmap(NULL, HEADER_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (fd < 0 || at == MAP_FAILED)
        abort();
    close(fd);
    return at;
}

static void use(struct shm *ours, uint64_t *words, struct cursor *c)
{
    static uint8_t bytes[2 * SHM_RING_BYTES_MIN];
    while (cursor_left(c) >= RECORD_BYTES) {
        uint32_t what = cursor_u8(c), word = cursor_u16(c);
        uint64_t value = cursor_u64(c);
        struct iovec iov = {bytes, value % sizeof(bytes)};
        size_t moved = 0;
        int r = 0;
        if (what % 3 == 0 && words != NULL)
            words[word % (HEADER_PAGE_BYTES / sizeof(*words))] = value;
        else
            r = what % 3 == 1 ? shm_write(ours, &iov, 1, &moved, NULL)
                              : shm_read(ours, &iov, 1, &moved, NULL);
        if ((r != 0 && r != E_PROTOCOL) || moved > iov.iov_len)
            abort();
        (void)shm_is_readable(ours);
        (void)shm_is_writable(ours);
        (void)shm_take_sleeper(ours);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const uint8_t zero[32];
    struct cursor c;
    struct shm *theirs = NULL, *ours[2] = {NULL, NULL};
    uint64_t *words = NULL;
    uint8_t name[SHM_NAME_BYTES], said[OFFER_BYTES] = {0};
    int pair[2], fds[2] = {-1, -1};
    struct error err = {0};
    log_configure("error", NULL);
    cursor_init(&c, data, size);
    unsigned flags = cursor_u8(&c);
    size_t n = flags & FLAG_WE_OFFER ? ANSWER_BYTES : OFFER_BYTES;
    if (n > cursor_left(&c))
        n = cursor_left(&c);
    if (n > 0)
        memcpy(said, cursor_bytes(&c, n), n);
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) != 0)
        return 0;
    if ((flags & (FLAG_WE_OFFER | FLAG_REAL_NAME)) == FLAG_REAL_NAME && n == OFFER_BYTES) {
        if (shm_create(SHM_RING_BYTES_MIN, name, &theirs, &err) != 0)
            abort();
        words = map_header(name);
        memcpy(said + OFFER_BYTES - SHM_NAME_BYTES, name, SHM_NAME_BYTES);
    }
    if (send(pair[1], said, n, 0) != (ssize_t)n || shutdown(pair[1], SHUT_WR) != 0)
        abort();

    uint32_t rank = flags & FLAG_WE_OFFER ? 1 : 0;
    struct tcp_identity me = {rank, 2, zero, zero};
    fds[1 - rank] = pair[0];
    int r = tcp_share(&me, fds, 2, (flags & FLAG_UNWILLING) == 0, 1000, ours, &err);
    if (r != 0 && (r != err.code || ours[1 - rank] != NULL))
        abort();
    if (ours[1 - rank] != NULL)
        use(ours[1 - rank], words, &c);

    shm_close(ours[1 - rank]);
    if (words != NULL) {
        munmap(words, HEADER_PAGE_BYTES);
        shm_forget_name(name);
        shm_close(theirs);
    }
    close(pair[0]);
    close(pair[1]);
    return 0;
}
