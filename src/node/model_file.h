/*
 * A model file as a node needs it: shape and hash, and, for a node that answers requests, tokenizer
 * and chat template. No weights. Opened in the thread pool, because it reads and hashes headers of
 * many megabytes. Thread: load is called and its callback comes on the loop; a loaded file is
 * immutable.
 */
#ifndef SHOAL_NODE_MODEL_FILE_H
#define SHOAL_NODE_MODEL_FILE_H

#include "base/error.h"
#include "model/model.h"
#include "store/models.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

#include <stdbool.h>
#include <stdint.h>
#include <uv.h>

struct model_file {
    char path[4096];
    struct model *model;
    struct tokenizer *tokenizer;         /* NULL when loaded without text */
    struct chat_template *chat_template; /* NULL: the model has none that can be used */
    char bos_text[64], eos_text[64];
    uint32_t n_end;
    int32_t end[32];          /* tokens that end a generation */
    char draft_path[4096];    /* of the small model that was looked for, too */
    uint64_t draft_bytes;     /* what that takes in memory */
    struct model_entry facts; /* loaded with text: what the file says of itself */
};

struct model_file_wanted {
    uint32_t n_paths;
    char path[2][4096];    /* tried in this order */
    struct models *models; /* then the first path as a name of one of these; NULL: not */
    bool has_hash;
    uint8_t hash[32]; /* files with another one are passed over */
    bool with_text;
    uint32_t n_draft_paths; /* of a small model that is to guess ahead; 0: none. It must be there
                               and have the same vocabulary. */
    char draft_path[2][4096];
};

/* file is NULL on failure (err says why), else the receiver's: model_file_free. */
typedef void model_file_loaded(void *arg, struct model_file *file, const struct error *err);

/* Errors: E_NOMEM; then loaded is not called. */
int model_file_load(uv_loop_t *loop, const struct model_file_wanted *wanted,
                    model_file_loaded *loaded, void *arg);
void model_file_free(struct model_file *f); /* NULL is fine */

/* Adds the places where a file may be: as given, and by its name in data_dir/models (with .gguf
 * added when missing); then, if models is not NULL, whatever it finds by that name. */
void model_file_candidates(struct model_file_wanted *w, const char *path, const char *data_dir,
                           struct models *models);
/* The same for a small model that is to guess ahead. */
void model_file_draft_candidates(struct model_file_wanted *w, const char *path,
                                 const char *data_dir);
/* The first of these places where there is a file. False: none. */
bool model_file_find(const char *path, const char *data_dir, char ret_path[4096]);
/* The name that clients use: the file's, without folder and .gguf. */
void model_file_id(const char *path, char *ret_id, size_t size);

#endif
