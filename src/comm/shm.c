#include "comm/shm.h"

#include "base/rng.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { CACHE_LINE_BYTES = 64 };
enum { DATA_OFFSET = 4096 };
/* A long message is shown to the reader in pieces, so that it copies while we do. */
enum { PIECE_BYTES = 4 << 10 };
/* A ring that is found empty this far from its beginning begins again there: what is used stays in
 * the caches, however large the ring. */
enum { REWIND_BYTES = 64 << 10 };
#define SHM_MAGIC UINT64_C(0x316d68736c616873) /* "shalshm1" */

_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2, "counters are shared between processes");

/* As it lies in the shared memory, then at DATA_OFFSET the bytes of ring 0 and ring 1. */
struct segment {
    uint64_t magic;
    struct {
        _Alignas(CACHE_LINE_BYTES) _Atomic uint64_t written; /* bytes, ever */
        _Atomic uint64_t base; /* byte number that lies at the ring's beginning */
        _Alignas(CACHE_LINE_BYTES) _Atomic uint64_t read;
    } rings[2]; /* 0: from the creator, 1: to it */
    struct {
        _Alignas(CACHE_LINE_BYTES) _Atomic uint32_t asleep;
    } sides[2]; /* 0: the creator */
};
_Static_assert(sizeof(struct segment) <= DATA_OFFSET, "one page");

struct shm {
    struct segment *segment;
    size_t ring_bytes;
    int side;               /* ours */
    uint64_t written, read; /* ours */
    uint64_t base;          /* of the ring we write */
    uint64_t written_seen;  /* of the other side, when we looked last */
    uint64_t read_seen;
};

static size_t segment_bytes(size_t ring_bytes)
{
    return DATA_OFFSET + 2 * ring_bytes;
}

/* ---- making and finding ---- */

enum { PATH_BYTES = 8 + 2 * SHM_NAME_BYTES + 1 };

static void path_of(const uint8_t name[SHM_NAME_BYTES], char out[PATH_BYTES])
{
    memcpy(out, "/shoal-", 8);
    for (int i = 0; i < SHM_NAME_BYTES; i++)
        snprintf(out + 7 + 2 * i, 3, "%02x", name[i]);
}

/* All of it now: a page that is missing later would be a crash. */
static int reserve(int fd, size_t bytes)
{
    if (ftruncate(fd, (off_t)bytes) != 0)
        return errno;
#ifdef __linux__
    return posix_fallocate(fd, 0, (off_t)bytes);
#else
    return 0;
#endif
}

static int map(int fd, size_t ring_bytes, int side, struct shm **ret_shm, struct error *err)
{
    struct shm *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "no memory for a pair of rings");
    int flags = MAP_SHARED;
#ifdef MAP_POPULATE
    flags |= MAP_POPULATE; /* no page faults in the first prompt */
#endif
    void *at = mmap(NULL, segment_bytes(ring_bytes), PROT_READ | PROT_WRITE, flags, fd, 0);
    if (at == MAP_FAILED) {
        free(s);
        return error_set(err, E_IO, "cannot map shared memory: %s", strerror(errno));
    }
    s->segment = at;
    s->ring_bytes = ring_bytes;
    s->side = side;
    *ret_shm = s;
    return 0;
}

int shm_create(size_t ring_bytes, uint8_t ret_name[SHM_NAME_BYTES], struct shm **ret_shm,
               struct error *err)
{
    char path[PATH_BYTES];
    if (rng_system(ret_name, SHM_NAME_BYTES) != 0)
        return error_set(err, E_INTERNAL, "the system gives no random numbers");
    path_of(ret_name, path);
    int fd = shm_open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(err, E_IO, "cannot make shared memory: %s", strerror(errno));
    int r = reserve(fd, segment_bytes(ring_bytes));
    if (r != 0)
        r = error_set(err, E_IO, "no room for %zu bytes of shared memory: %s",
                      segment_bytes(ring_bytes), strerror(r));
    else
        r = map(fd, ring_bytes, 0, ret_shm, err);
    close(fd);
    if (r != 0)
        shm_unlink(path);
    else
        (*ret_shm)->segment->magic = SHM_MAGIC; /* the rest is zero */
    return r;
}

int shm_attach(const uint8_t name[SHM_NAME_BYTES], size_t ring_bytes, struct shm **ret_shm,
               struct error *err)
{
    char path[PATH_BYTES];
    if (ring_bytes < SHM_RING_BYTES_MIN || ring_bytes > SHM_RING_BYTES_MAX ||
        (ring_bytes & (ring_bytes - 1)) != 0)
        return error_set(err, E_PROTOCOL, "rings of %zu bytes", ring_bytes);
    path_of(name, path);
    int fd = shm_open(path, O_RDWR | O_CLOEXEC, 0);
    if (fd < 0)
        return error_set(err, E_IO, "cannot open shared memory: %s", strerror(errno));
    struct stat st;
    struct shm *s = NULL;
    int r;
    if (fstat(fd, &st) != 0 || st.st_uid != geteuid() || (st.st_mode & 077) != 0 ||
        st.st_size != (off_t)segment_bytes(ring_bytes))
        r = error_set(err, E_PROTOCOL, "shared memory of another size or owner");
    else
        r = map(fd, ring_bytes, 1, &s, err);
    close(fd);
    if (r != 0)
        return r;
    if (s->segment->magic != SHM_MAGIC) {
        shm_close(s);
        return error_set(err, E_PROTOCOL, "shared memory that is something else");
    }
    *ret_shm = s;
    return 0;
}

void shm_forget_name(const uint8_t name[SHM_NAME_BYTES])
{
    char path[PATH_BYTES];
    path_of(name, path);
    shm_unlink(path);
}

void shm_close(struct shm *s)
{
    if (s == NULL)
        return;
    munmap(s->segment, segment_bytes(s->ring_bytes));
    free(s);
}

/* ---- moving bytes ---- */

static uint8_t *ring_data(const struct shm *s, int ring)
{
    return (uint8_t *)s->segment + DATA_OFFSET + (size_t)ring * s->ring_bytes;
}

static int bad_counter(struct error *err)
{
    return error_set(err, E_PROTOCOL, "the other side broke the shared memory");
}

/* The other side's counter is looked at only when it matters: its cache line is theirs. */
static int find_room(struct shm *s, size_t wanted, size_t *ret_room, struct error *err)
{
    int ring = s->side;
    bool far = s->written - s->base >= REWIND_BYTES;
    if (far || s->written - s->read_seen + wanted > s->ring_bytes)
        s->read_seen = atomic_load_explicit(&s->segment->rings[ring].read, memory_order_acquire);
    if (s->written - s->read_seen > s->ring_bytes)
        return bad_counter(err);
    if (far && s->written == s->read_seen) {
        /* The reader looks at it when it sees new bytes, and not before. */
        s->base = s->written;
        atomic_store_explicit(&s->segment->rings[ring].base, s->base, memory_order_relaxed);
    }
    *ret_room = s->ring_bytes - (size_t)(s->written - s->read_seen);
    return 0;
}

int shm_write(struct shm *s, const struct iovec *iov, int n_iov, size_t *ret_moved,
              struct error *err)
{
    _Atomic uint64_t *written = &s->segment->rings[s->side].written;
    uint8_t *data = ring_data(s, s->side);
    size_t wanted = 0, room, unseen = 0;
    uint64_t before = s->written;
    *ret_moved = 0;
    for (int i = 0; i < n_iov; i++)
        wanted += iov[i].iov_len;
    int r = find_room(s, wanted, &room, err);
    if (r != 0)
        return r;
    for (int i = 0; i < n_iov && room > 0; i++) {
        const uint8_t *from = iov[i].iov_base;
        for (size_t left = iov[i].iov_len < room ? iov[i].iov_len : room; left > 0;) {
            size_t n = left < PIECE_BYTES ? left : PIECE_BYTES;
            size_t at = (size_t)(s->written - s->base) & (s->ring_bytes - 1);
            size_t first = n < s->ring_bytes - at ? n : s->ring_bytes - at;
            memcpy(data + at, from, first);
            memcpy(data, from + first, n - first);
            s->written += n;
            from += n;
            left -= n;
            room -= n;
            unseen += n;
            if (unseen >= PIECE_BYTES && left > 0) {
                atomic_store_explicit(written, s->written, memory_order_release);
                unseen = 0;
            }
        }
    }
    /* Sequentially consistent with `asleep`: either the sleeper saw our bytes, or we see that it
     * sleeps. */
    if (s->written != before)
        atomic_store(written, s->written);
    *ret_moved = (size_t)(s->written - before);
    return 0;
}

int shm_read(struct shm *s, const struct iovec *iov, int n_iov, size_t *ret_moved,
             struct error *err)
{
    int ring = 1 - s->side;
    size_t wanted = 0, moved = 0;
    *ret_moved = 0;
    for (int i = 0; i < n_iov; i++)
        wanted += iov[i].iov_len;
    if (s->written_seen - s->read < wanted)
        s->written_seen =
            atomic_load_explicit(&s->segment->rings[ring].written, memory_order_acquire);
    if (s->written_seen - s->read > s->ring_bytes)
        return bad_counter(err);
    size_t here = (size_t)(s->written_seen - s->read);
    if (here == 0)
        return 0;
    /* It changes only while the ring is empty. */
    uint64_t base = atomic_load_explicit(&s->segment->rings[ring].base, memory_order_relaxed);
    const uint8_t *data = ring_data(s, ring);
    for (int i = 0; i < n_iov && here > 0; i++) {
        uint8_t *to = iov[i].iov_base;
        size_t n = iov[i].iov_len < here ? iov[i].iov_len : here;
        size_t at = (size_t)(s->read + moved - base) & (s->ring_bytes - 1);
        size_t first = n < s->ring_bytes - at ? n : s->ring_bytes - at;
        memcpy(to, data + at, first);
        memcpy(to + first, data, n - first);
        moved += n;
        here -= n;
    }
    s->read += moved;
    atomic_store(&s->segment->rings[ring].read, s->read);
    *ret_moved = moved;
    return 0;
}

/* ---- sleeping ---- */

bool shm_is_readable(const struct shm *s)
{
    return atomic_load(&s->segment->rings[1 - s->side].written) != s->read;
}

bool shm_is_writable(const struct shm *s)
{
    return s->written - atomic_load(&s->segment->rings[s->side].read) < s->ring_bytes;
}

void shm_set_asleep(struct shm *s, bool asleep)
{
    atomic_store(&s->segment->sides[s->side].asleep, asleep);
}

bool shm_take_sleeper(struct shm *s)
{
    _Atomic uint32_t *asleep = &s->segment->sides[1 - s->side].asleep;
    return atomic_load(asleep) != 0 && atomic_exchange(asleep, 0) != 0;
}
