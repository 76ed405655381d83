/* What a model file says of itself, for lists. Blocks on the disk. Thread: any. */
#ifndef SHOAL_STORE_MODEL_FACTS_H
#define SHOAL_STORE_MODEL_FACTS_H

#include "model/gguf.h"
#include "store/models.h"

/* Fills title, architecture, quantization, n_params, n_layers, n_ctx, capabilities, can_run; or
 * is_damaged and problem. */
void model_facts_read(const char *path, struct model_entry *e);
/* The same of a file that is open already. Reads nothing from the disk but its header. */
void model_facts_of(const struct gguf_file *f, struct model_entry *e);

#endif
