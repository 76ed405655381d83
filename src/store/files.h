/* Small things that parts of this folder do with files. All of them block on the disk: from the
 * thread pool. Thread: any. */
#ifndef SHOAL_STORE_FILES_H
#define SHOAL_STORE_FILES_H

#include "base/buf.h"
#include "base/error.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Makes the folder that a path lies in, and those above it. Errors: E_IO. */
int files_make_folder_of(const char *path, struct error *err);
/* Appends a file. Errors: E_NOTFOUND, E_IO, those of buf_append. */
int files_read(const char *path, struct buf *ret, struct error *err);
/* Replaces a file as a whole: after a crash it is the old one or the new one. Errors: E_IO. */
int files_write(const char *path, const void *data, size_t n, struct error *err);
/* So that a new name outlives a power cut. Returns 0 or -1 with errno. */
int files_sync_folder_of(const char *path);
/* SHA-256 of a file. is_cancelled (may be NULL) ends it early. Errors: E_NOTFOUND, E_IO, E_NOMEM,
 * E_CANCELLED. */
int files_sha256(const char *path, const atomic_bool *is_cancelled, uint8_t ret[32],
                 struct error *err);

/* Pure functions on texts. */
void files_hex(const uint8_t *data, size_t n, char *ret); /* [2n + 1] */
/* Exactly 2n digits. */
int files_unhex(const char *text, uint8_t *ret, size_t n);
/* What follows the last slash. */
const char *files_base_name(const char *path);

#endif
