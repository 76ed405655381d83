/*
 * The catalogue: model cards that come with the program (share/models.json, built in), and those
 * that people add in cards.json of the data folder, which win where names are the same. A card says
 * what a model is and where its files are published; a size or a checksum is there only if it is
 * known. Thread: immutable once loaded; any thread may read.
 */
#ifndef SHOAL_STORE_CARDS_H
#define SHOAL_STORE_CARDS_H

#include "base/error.h"
#include "base/json.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    CARDS_MAX = 4096,
    CARD_NAME_BYTES = 96,
    CARD_QUANTIZATIONS_MAX = 32,
    QUANTIZATION_BYTES = 24,
    CARD_FILE_BYTES = 256,
};

enum capability { /* bits */
                  CAPABILITY_COMPLETION = 1,
                  CAPABILITY_TOOLS = 2,
                  CAPABILITY_THINKING = 4,
                  CAPABILITY_EMBEDDING = 8,
};

struct card { /* texts are borrowed from the catalogue; "" when absent */
    const char *name, *family, *architecture, *parameters;
    uint32_t n_layers, n_ctx;
    uint32_t capabilities;
    bool is_user; /* added by people */
    bool can_run; /* the engine knows this architecture */
    const json_t *doc;
};

struct card_file { /* one quantization of a card */
    char quantization[QUANTIZATION_BYTES];
    const char *repo; /* on a hub, or "" */
    const char *url;  /* or "" */
    char file[CARD_FILE_BYTES];
    uint64_t size_bytes; /* 0: not known */
    bool has_sha256;
    uint8_t sha256[32];
};

struct cards; /* opaque */

/* user_path may be NULL, and the file need not be there. Errors: E_NOMEM; E_FORMAT for a file of
 * people's that is wrong (says where). */
int cards_load(const char *user_path, struct cards **ret_cards, struct error *err);
void cards_free(struct cards *c); /* NULL is fine */
uint32_t cards_count(const struct cards *c);
const struct card *cards_at(const struct cards *c, uint32_t index);
/* By name or alias, without regard to case; a quantization may follow after ':' or '-' and is then
 * put into ret_quantization, else "". NULL: there is none. */
const struct card *cards_find(const struct cards *c, const char *name,
                              char ret_quantization[QUANTIZATION_BYTES]);
/* The card that a file of this name is published by. */
const struct card *cards_find_file(const struct cards *c, const char *file,
                                   char ret_quantization[QUANTIZATION_BYTES]);
/* A name that looks like this one, for messages; NULL: none. */
const char *cards_suggest(const struct cards *c, const char *name);

uint32_t card_n_files(const struct card *k);
bool card_file_at(const struct card *k, uint32_t index, struct card_file *ret);
/* quantization "": the first. Errors: E_NOTFOUND (names those that are there). */
int card_find_file(const struct card *k, const char *quantization, struct card_file *ret,
                   struct error *err);
/* {"name": ...} with files, as an API would show it. */
int card_append_json(const struct card *k, struct buf *b);
/* "completion", "tools" ...: a JSON list. */
int capabilities_append_json(uint32_t capabilities, struct buf *b);

#endif
