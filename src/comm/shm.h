/*
 * A stretch of memory that two ranks of one host share: a ring of bytes each way, each written by
 * one side and read by the other, without locks. It has no way to wake anybody and does not notice
 * that the other side died: the TCP connection of the pair serves for both.
 *
 * What the other side writes there is believed no further than that it is bytes: its counters are
 * checked, ours are kept outside. Thread: the comm's thread.
 */
#ifndef SHOAL_COMM_SHM_H
#define SHOAL_COMM_SHM_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

enum { SHM_RING_BYTES_MIN = 64 << 10, SHM_RING_BYTES_MAX = 4 << 20 }; /* powers of two */
enum { SHM_NAME_BYTES = 16 };                                         /* random */

struct shm;

/* Makes one with rings of ring_bytes, under a new name, for the user of this process only. Errors:
 * E_NOMEM, E_IO (no shared memory here, or no room). */
int shm_create(size_t ring_bytes, uint8_t ret_name[SHM_NAME_BYTES], struct shm **ret_shm,
               struct error *err);
/* The other side of it. Errors: E_IO (not there, not ours), E_PROTOCOL (not one of these). */
int shm_attach(const uint8_t name[SHM_NAME_BYTES], size_t ring_bytes, struct shm **ret_shm,
               struct error *err);
/* The memory stays with those who have it; nobody else finds it. */
void shm_forget_name(const uint8_t name[SHM_NAME_BYTES]);
void shm_close(struct shm *s);

/* Bytes moved, 0 when there is no room or nothing there. Errors: E_PROTOCOL for a counter that
 * cannot be. */
int shm_write(struct shm *s, const struct iovec *iov, int n_iov, size_t *ret_moved,
              struct error *err);
int shm_read(struct shm *s, const struct iovec *iov, int n_iov, size_t *ret_moved,
             struct error *err);
bool shm_is_readable(const struct shm *s);
bool shm_is_writable(const struct shm *s);

/* Before this side sleeps; it looks at the rings once more after that. */
void shm_set_asleep(struct shm *s, bool asleep);
/* After bytes moved: whether the other side sleeps and has to be woken. True once for each sleep.
 */
bool shm_take_sleeper(struct shm *s);

#endif
