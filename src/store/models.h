/*
 * The model files of this computer: those in models/ of the data folder, which may be fetched and
 * removed, and those in other folders that people name, which are only read. What is known of a
 * file beyond its bytes (where it came from, its hash) is in models/index.db, by name, size and
 * time: a file that was replaced behind our back is looked at anew. Several processes may do this
 * at the same time.
 *
 * Calls block on the disk: from the thread pool, not from a loop. Thread: any; calls wait for each
 * other.
 */
#ifndef SHOAL_STORE_MODELS_H
#define SHOAL_STORE_MODELS_H

#include "base/buf.h"
#include "base/error.h"
#include "store/cards.h"
#include "store/source.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { MODELS_FOLDERS_MAX = 16, MODELS_FILES_MAX = 4096 };

struct models_config {
    const char *data_dir;
    uint32_t n_folders; /* others, read only */
    const char *const *folders;
};

struct model_entry {
    char name[CARD_FILE_BYTES]; /* the file's, without .gguf */
    char path[4096];
    char card[CARD_NAME_BYTES]; /* "": of no card */
    char title[128];            /* what the file calls itself */
    char architecture[64], quantization[QUANTIZATION_BYTES];
    char source[4096]; /* where it came from, "" if nobody knows */
    uint64_t size_bytes, n_params, modified_ns;
    uint32_t n_layers, n_ctx, capabilities;
    bool has_sha256;
    uint8_t sha256[32];
    bool is_read_only, is_damaged, can_run;
    char problem[256]; /* of a damaged file */
};

struct models; /* opaque */

/* Errors: E_FORMAT (people's cards), E_NOMEM, E_LIMIT. */
int models_open(const struct models_config *config, struct models **ret_models, struct error *err);
void models_close(struct models *m); /* NULL is fine */
const struct cards *models_cards(const struct models *m);
/* The path that a file of this name has, or would have, in the folder of models. Pure. */
int models_path(const struct models *m, const char *file, char ret_path[4096], struct error *err);

/* All files, sorted by name. Owns: the caller, free(). Errors: E_IO, E_NOMEM. */
int models_list(struct models *m, struct model_entry **ret_entries, uint32_t *ret_n,
                struct error *err);
/* A model as people name it: a path, a file's name, a card (the file that is there; with several
 * quantizations the one that the card has first), a repository or an address it came from. Errors:
 * E_NOTFOUND. */
int models_find(struct models *m, const char *name, struct model_entry *ret_entry,
                struct error *err);
/* The same for one file. Errors: E_NOTFOUND. A damaged one is no error. */
int models_read(struct models *m, const char *path, struct model_entry *ret_entry,
                struct error *err);
/* Keeps what was learnt when a file was fetched. source may be NULL: nothing new. */
int models_remember(struct models *m, const char *path, const struct model_source *source,
                    const char *origin, const uint8_t sha256[32], struct error *err);
/* Reads all of a file and compares with the hash that it had when it came, or keeps that of today.
 * is_cancelled may be NULL. Errors: E_FORMAT (it has changed, or is damaged), E_NOTFOUND, E_IO,
 * E_CANCELLED. */
int models_check(struct models *m, const char *name, const atomic_bool *is_cancelled,
                 struct model_entry *ret_entry, struct error *err);
/* Removes a file of the folder of models, and what was fetched of one that is not whole. Errors:
 * E_NOTFOUND, E_INVALID (of another folder), E_IO. */
int models_remove(struct models *m, const char *name, struct model_entry *ret_entry,
                  struct error *err);

int model_entry_append_json(const struct model_entry *e, struct buf *b);
/* {"models": [...], "cards": [...]}; without cards if !with_cards. Errors: those of models_list. */
int models_append_json(struct models *m, bool with_cards, struct buf *b, struct error *err);

#endif
