/*
 * Where a model comes from, as people say it:
 *
 *   llama3.2:3b, llama3.2:3b-Q8_0     a card, with a quantization or without
 *   hf:OWNER/REPO/FILE.gguf           a file on the hub
 *   OWNER/REPO, OWNER/REPO:Q4_K_M     of a repository on the hub, the file of this quantization
 *   https://HOST/FILE.gguf            an address
 *   /FOLDER/FILE.gguf, ./FILE.gguf    a file of this computer
 *
 * A repository is asked for its list of files, which has sizes and hashes. Pure functions, but for
 * a look whether a file is there. Thread: any.
 */
#ifndef SHOAL_STORE_SOURCE_H
#define SHOAL_STORE_SOURCE_H

#include "base/error.h"
#include "store/cards.h"

#include <stdbool.h>
#include <stdint.h>

enum source_kind { SOURCE_URL, SOURCE_REPO, SOURCE_PATH };

struct model_source {
    enum source_kind kind;
    char card[CARD_NAME_BYTES]; /* "": of no card */
    char quantization[QUANTIZATION_BYTES];
    char url[4096];             /* of the file; "" until a repository has been asked */
    char repo[256];             /* OWNER/REPO */
    char file[CARD_FILE_BYTES]; /* in the repository; "": to be chosen by quantization */
    char path[4096];            /* of a local file */
    char name[CARD_FILE_BYTES]; /* that it gets in the folder of models; "" until it is known */
    uint64_t size_bytes;        /* 0: not known */
    bool has_sha256;
    uint8_t sha256[32];
};

/* Errors: E_INVALID, E_NOTFOUND (with what may have been meant). */
int source_parse(const struct cards *cards, const char *text, struct model_source *ret,
                 struct error *err);
/* The address of the repository's list of files, as JSON. Errors: E_LIMIT. */
int source_list_url(const struct model_source *s, const char *hub, char ret_url[4096],
                    struct error *err);
/* Picks the file out of that list. Errors: E_FORMAT, E_NOTFOUND (says what is there),
 * E_UNSUPPORTED (in several pieces). */
int source_choose(struct model_source *s, const char *hub, const char *json, size_t len,
                  struct error *err);
/* Without a list: the file must be known. Errors: E_NOTFOUND. */
int source_guess(struct model_source *s, const char *hub, struct error *err);
/* The quantization that a file's name tells, "" if none. */
void source_quantization_of(const char *file, char ret[QUANTIZATION_BYTES]);

#endif
