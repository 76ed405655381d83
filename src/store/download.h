/*
 * Fetches one file over HTTP into a part file (part_file.h): several ranges at a time where the
 * server has ranges, one stream where it has not. Goes on where an earlier attempt, or an earlier
 * process, stopped, if the server's file is still the same; begins anew if it is not. What passes
 * is tried again with growing pauses; what does not is an error. Thread: the loop's; callbacks
 * never come from inside a call.
 */
#ifndef SHOAL_STORE_DOWNLOAD_H
#define SHOAL_STORE_DOWNLOAD_H

#include "base/error.h"
#include "store/http_multi.h"

#include <stdbool.h>
#include <stdint.h>

struct download; /* opaque */

enum {
    DOWNLOAD_CONNECTIONS_MAX = 16,
    DOWNLOAD_CONNECTIONS_DEFAULT = 4,
    DOWNLOAD_STALL_MS_DEFAULT = 30000,
    DOWNLOAD_ATTEMPTS_DEFAULT = 8, /* in a row, without a new byte: about two minutes */
    DOWNLOAD_PIECE_BYTES_MIN = 8 << 20,
    DOWNLOAD_PIECE_BYTES_MAX = 256 << 20,
};

struct download_options {
    const char *url, *path;
    const char *bearer;    /* a token for the server; may be NULL */
    const uint8_t *sha256; /* of the whole file; NULL: unknown */
    uint64_t size_bytes;   /* 0: unknown */
    bool checks_gguf;
    uint32_t n_connections, stall_ms, attempts; /* 0: the defaults */
    uint64_t piece_bytes;                       /* 0: by the file's size */
};

struct fetch_progress {
    uint64_t downloaded_bytes, total_bytes; /* total 0: unknown */
    uint64_t bytes_per_s;
    int64_t eta_s; /* -1: unknown */
};

struct fetch_events { /* of everything that fetches a file: download.h, copy.h */
    void *arg;
    void (*progress)(void *arg, const struct fetch_progress *p); /* about four times a second */
    /* Exactly once, last. Errors: E_NOTFOUND, E_UNAVAILABLE, E_TIMEOUT, E_PROTOCOL, E_FORMAT (hash,
     * or no GGUF file), E_IO (disk), E_BUSY (429 to the end), E_AGAIN
     * (another process fetches it), E_CANCELLED. */
    void (*done)(void *arg, const uint8_t sha256[32], const struct error *err);
};

int download_start(struct http_multi *m, const struct download_options *options,
                   const struct fetch_events *events, struct download **ret_download,
                   struct error *err);
/* done(E_CANCELLED) follows unless done already came. What was fetched is kept. */
void download_cancel(struct download *d);

/* What passes by itself: busy servers, lost connections. */
bool download_status_passes(long status);
/* Pause before attempt n (from 1), in ms: grows to 30 s, with jitter from `chance`. */
uint64_t download_pause_ms(uint32_t n, uint32_t chance);

#endif
