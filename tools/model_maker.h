/* Makes model files: random weights of any shape, or a real model with its weights in other types.
 * Thread: one. */
#ifndef SHOAL_TOOLS_MODEL_MAKER_H
#define SHOAL_TOOLS_MODEL_MAKER_H

#include "base/error.h"
#include "model/model.h"

#include <stdbool.h>
#include <stdint.h>

struct maker_options {
    const char *output;
    const char *source; /* of maker_convert */
    const char *arch, *tokenizer,
        *name; /* and all below but type: of maker_random; NULL and 0 where optional */
    uint32_t n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab, n_ctx, window;
    float rope_base;
    uint64_t seed;
    bool tied;
    int type[ROLE_COUNT]; /* enum dtype */
};

/* Errors: those of gguf_file_open, E_INVALID, E_IO, E_NOMEM. */
int maker_random(const struct maker_options *options, struct error *err);
int maker_convert(const struct maker_options *options, struct error *err);

#endif
