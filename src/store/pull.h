/*
 * Getting models: finds out what people mean (source.h), looks whether it is here and whole, asks
 * the hub for the list of files where that is needed, fetches, and remembers what came. Two pulls
 * of one file share one fetch; two processes wait for each other. Thread: the loop's; callbacks
 * never come from inside a call.
 */
#ifndef SHOAL_STORE_PULL_H
#define SHOAL_STORE_PULL_H

#include "base/error.h"
#include "store/copy.h"
#include "store/download.h"
#include "store/models.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

#define PULL_HUB_DEFAULT "https://huggingface.co" /* where the catalogue's repositories are */

struct puller; /* opaque */

struct puller_config { /* texts are copied */
    struct models *models;
    const char *hub;                            /* "" or NULL: the default */
    const char *token;                          /* for the hub; "" or NULL: none */
    bool is_offline;                            /* nothing is fetched from anywhere */
    uint32_t n_connections, stall_ms, attempts; /* 0: the defaults */
    uint64_t piece_bytes;
};

struct pull_status {
    const char *file;  /* that is fetched; "" until it is known */
    const char *phase; /* "looking", "listing", "fetching", "waiting" (for another process) */
    struct fetch_progress progress;
};

struct pull_events {
    void *arg;
    void (*status)(void *arg, const struct pull_status *s);
    /* Exactly once, last. entry is NULL on failure; was_there: nothing had to be fetched. Errors:
     * those of source.h and download.h; E_UNAVAILABLE when offline. */
    void (*done)(void *arg, const struct model_entry *entry, bool was_there,
                 const struct error *err);
};

struct pull_options {
    const char *name; /* as source.h has it */
    bool must_link;   /* of a local file: a link to it instead of a copy */
    bool is_trusting; /* a file that is there is not hashed again */
};

int puller_new(uv_loop_t *loop, const struct puller_config *config, struct puller **ret_puller,
               struct error *err);
/* Cancels everything; each pull gets its end before closed. */
void puller_close(struct puller *u, void (*closed)(void *arg), void *arg);

/* Errors: E_NOMEM, E_LIMIT, E_BUSY; then no event follows. */
int puller_pull(struct puller *u, const struct pull_options *options,
                const struct pull_events *events, uint64_t *ret_id, struct error *err);
/* done(E_CANCELLED) follows, unless it came. What nobody wants any more is not fetched any further,
 * and kept. */
void puller_cancel(struct puller *u, uint64_t id);
/* A file from a reader of the caller's (another node), as `file` in the folder of models. Takes the
 * reader. sha256 may be NULL. */
int puller_copy(struct puller *u, const struct copy_reader *reader, const char *file,
                const char *origin, const char *tag, uint64_t size_bytes, const uint8_t *sha256,
                const struct pull_events *events, uint64_t *ret_id, struct error *err);
/* {"pulls": [{"id", "model", "file", "phase", "downloaded_bytes", "total_bytes", "bytes_per_s",
 * "eta_s"}]}: eta_s and total_bytes are null when unknown. */
int puller_append_json(const struct puller *u, struct buf *b);

#endif
