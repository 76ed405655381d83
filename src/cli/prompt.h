/* From what a person typed to the tokens that a model gets. Thread: one. */
#ifndef SHOAL_CLI_PROMPT_H
#define SHOAL_CLI_PROMPT_H

#include "base/error.h"
#include "model/model.h"
#include "text/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct prompt_options {
    bool is_raw;        /* no chat template */
    const char *system; /* NULL: none; not with is_raw */
};

/* Appends the tokens of the text, put into the model's chat template unless raw. Errors: E_NOTFOUND
 * when the model has no template (says to use --raw), those of the template and the tokenizer. */
int prompt_tokens(const struct model *model, const struct tokenizer *tokenizer, const char *text,
                  size_t len, const struct prompt_options *o, struct token_list *out,
                  struct error *err);

#endif
