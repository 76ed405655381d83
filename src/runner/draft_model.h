/*
 * Guesses of a small model with the vocabulary of the main one (Leviathan et al., ICML 2023; Chen
 * et al., 2023), which runs whole in the head's process. It draws with the random numbers of the
 * main model, at the same positions, so that it says what that would say also when that samples. Of
 * a long text it reads the end only: what a first reading takes, and its cache, have a bound.
 * Thread: one.
 */
#ifndef SHOAL_RUNNER_DRAFT_MODEL_H
#define SHOAL_RUNNER_DRAFT_MODEL_H

#include "base/error.h"
#include "engine/engine.h"
#include "runner/draft.h"

#include <stdint.h>

struct draft_model; /* opaque */

/* Whether one may guess for the other: every token has the same number and text. Errors: E_INVALID
 * (says what differs). */
int draft_model_check(const struct model *model, const struct model *draft, struct error *err);
/* The same for a file, and what it would take: weights, cache and buffers. Errors: as model_open;
 * E_INVALID. */
int draft_model_check_file(const struct model *model, const char *path, uint64_t *ret_bytes,
                           struct error *err);

/* Opens the file and loads it. Of the main engine's options n_slots and n_ctx count; kept is as in
 * engine_open, taken also on failure. Errors: as draft_model_check_file and engine_open. Owns: the
 * caller. */
int draft_model_open(const struct model *model, const char *path,
                     const struct engine_options *options, struct weights *kept,
                     struct draft_model **ret_model, struct error *err);
/* Closes all but the weights, see engine_close_keeping. NULL for NULL. */
struct weights *draft_model_close_keeping(struct draft_model *m);
void draft_model_close(struct draft_model *m); /* NULL is fine */

/* Borrows: until the model is closed, and all its sequences have ended before. */
const struct draft_source *draft_model_source(const struct draft_model *m);
void draft_model_get_info(const struct draft_model *m, struct engine_info *ret_info);

#endif
