/*
 * Fetches one file from something that reads bytes at a place: a file of this computer, or another
 * node (the reader is the caller's then). Into a part file, as downloads are: an interrupted copy
 * goes on, and nothing has the file's name before it is whole. Thread: the loop's; callbacks never
 * come from inside a call.
 */
#ifndef SHOAL_STORE_COPY_H
#define SHOAL_STORE_COPY_H

#include "base/error.h"
#include "store/download.h"

#include <uv.h>

enum {
    COPY_READS_MAX = 4, /* under way at a time */
    COPY_READ_BYTES = 1 << 20,
};

typedef void copy_read_done(void *arg, const struct error *err);

struct copy_reader {
    void *self;
    /* Reads exactly n bytes at offset into data; done follows, once, never from inside the call.
     * Errors: then done does not follow. */
    int (*read)(void *self, uint64_t offset, char *data, size_t n, copy_read_done *done, void *arg,
                struct error *err);
    /* No read is under way any more. */
    void (*close)(void *self);
};

struct copy_options {
    const char *origin; /* where from, for people, and to tell whether a part is of the same file */
    const char *tag;    /* changes when the source does */
    const char *path;   /* of the copy */
    uint64_t size_bytes;
    const uint8_t *sha256; /* NULL: unknown */
    bool checks_gguf;
};

struct copy; /* opaque */

/* Takes the reader, in every case. Errors: E_NOMEM, E_LIMIT. */
int copy_start(uv_loop_t *loop, const struct copy_options *options,
               const struct copy_reader *reader, const struct fetch_events *events,
               struct copy **ret_copy, struct error *err);
/* done(E_CANCELLED) follows unless done already came. */
void copy_cancel(struct copy *c);

/* A reader of a file, read in the thread pool. Blocks while it opens it. Errors: E_NOTFOUND, E_IO.
 */
int copy_open_file(uv_loop_t *loop, const char *path, struct copy_reader *ret_reader,
                   uint64_t *ret_size_bytes, char ret_tag[64], struct error *err);

#endif
