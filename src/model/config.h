/* Reads a model's configuration from the metadata of its file; used by model.c alone. Thread: any.
 */
#ifndef SHOAL_MODEL_CONFIG_H
#define SHOAL_MODEL_CONFIG_H

#include "base/error.h"
#include "model/arch.h"
#include "model/gguf.h"
#include "model/model.h"

/* Finds the architecture row and fills the configuration, with the defaults that converters rely
 * on. Every number is in range afterwards. n_vocab comes from the token embedding. Errors:
 * E_UNSUPPORTED, E_FORMAT, E_LIMIT: the message names the key. */
int config_read(const struct gguf_file *f, const struct arch **ret_arch,
                struct model_config *ret_config, struct error *err);

#endif
