/*
 * What a node remembers over restarts: named values in one SQLite file. A value is written as a
 * whole, and is on the disk when the call returns. A file that is damaged is put aside, not
 * deleted, and a new one begun. Calls block on the disk: from the thread pool, not from the loop,
 * one at a time. Thread: any, but one at a time.
 */
#ifndef SHOAL_STORE_STORE_H
#define SHOAL_STORE_STORE_H

#include "base/buf.h"
#include "base/error.h"

#include <stddef.h>

enum { STORE_VALUE_BYTES_MAX = 16 << 20 };

struct store; /* opaque */

/* Opens or makes the file. ret_damaged (may be NULL) gets the name that a damaged file was given,
 * else "". Errors: E_IO with path and cause; E_NOMEM. */
int store_open(const char *path, struct store **ret_store, char ret_damaged[4096],
               struct error *err);
void store_close(struct store *s); /* NULL is fine */

/* Appends the value to ret_value. Errors: E_NOTFOUND, E_IO, those of buf_append. */
int store_read(struct store *s, const char *key, struct buf *ret_value, struct error *err);
/* Errors: E_IO (disk full, for instance), E_LIMIT; then the old value stays. */
int store_write(struct store *s, const char *key, const void *value, size_t n, struct error *err);

#endif
