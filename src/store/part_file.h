/*
 * A file that is being fetched: NAME.part, written in the thread pool in any order and hashed from
 * the front as far as it is there, with NAME.part.json, which says what is on the disk and of which
 * version of the source. Both outlive the process. A finished file is hashed, checked, synced and
 * gets its name in one step; before that nothing is under that name.
 *
 * One process at a time: the part file is locked. Thread: the loop's; callbacks never come from
 * inside a call.
 */
#ifndef SHOAL_STORE_PART_FILE_H
#define SHOAL_STORE_PART_FILE_H

#include "base/error.h"
#include "store/ranges.h"

#include <stddef.h>
#include <stdint.h>
#include <uv.h>

enum {
    PART_SOURCE_BYTES = 4096, /* an address */
    PART_TAG_BYTES = 256,     /* an ETag, or a date */
    PART_SHA256_BYTES = 32,
    PART_PENDING_BYTES_MAX = 8 << 20, /* handed over and not written: more must wait */
};

#define PART_TOTAL_UNKNOWN UINT64_MAX

struct part_file; /* opaque */

struct part_options {
    const char *path;      /* the finished file's; its folder exists or is made */
    const uint8_t *sha256; /* that it must have; NULL: any */
    bool checks_gguf;      /* must be a whole GGUF file */
};

struct part_source { /* what the part file is a part of */
    char url[PART_SOURCE_BYTES], etag[PART_TAG_BYTES], modified[PART_TAG_BYTES];
    uint64_t total; /* bytes, or PART_TOTAL_UNKNOWN */
};

struct part_events {
    void *arg;
    /* After part_open. Errors: E_AGAIN (another process fetches it), E_IO. */
    void (*opened)(void *arg, const struct error *err);
    /* Something was written or hashed, or that has failed (part_error). */
    void (*worked)(void *arg);
    /* After part_finish: the file is there. Errors: E_FORMAT (a wrong hash, or no model file: the
     * part file is removed), E_IO. */
    void (*finished)(void *arg, const uint8_t sha256[PART_SHA256_BYTES], const struct error *err);
};

/* Errors: E_NOMEM, E_LIMIT; then nothing follows. */
int part_open(uv_loop_t *loop, const struct part_options *options, const struct part_events *events,
              struct part_file **ret_part, struct error *err);
/* What was found on the disk when it was opened; url is "" when there was nothing. */
const struct part_source *part_source(const struct part_file *p);
/* What has been written. Bytes count only once they are. */
const struct ranges *part_written(const struct part_file *p);
/* E_IO (a full disk, for instance), once work has failed; code 0 before. */
const struct error *part_error(const struct part_file *p);

/* Begins with another version: what is there is void if is_new. Looks for room on the disk. */
void part_set_source(struct part_file *p, const struct part_source *source, bool is_new);

/* Memory for n bytes that will be written; NULL: none. Bytes go to part_chunk_data. */
struct part_chunk;
struct part_chunk *part_chunk_new(size_t n);
char *part_chunk_data(struct part_chunk *c);
void part_chunk_free(struct part_chunk *c);
/* Takes the chunk. */
void part_write(struct part_file *p, struct part_chunk *c, uint64_t offset, size_t n);
uint64_t part_bytes_pending(const struct part_file *p);

/* All bytes are written; total is known. finished follows. */
void part_finish(struct part_file *p);
/* Waits for what is under way and writes down what is there; with is_removed, or after finished,
 * nothing stays. closed comes last, after the object is freed. */
void part_close(struct part_file *p, bool is_removed, void (*closed)(void *arg), void *arg);

#endif
