/* Bytes of a model's file on their way into tensors. Private to weights.c. Thread: as weights.h. */
#ifndef SHOAL_ENGINE_WEIGHTS_FILL_H
#define SHOAL_ENGINE_WEIGHTS_FILL_H

#include "base/error.h"
#include "model/shard.h"

#include <ggml.h>

struct weights_file {
    int fd;
    const char *path;
};

/* A slice, row after row, into plain memory. Errors: E_IO, E_NOMEM. */
int weights_read(const struct weights_file *f, const struct tensor_slice *s, char *dst,
                 struct error *err);
/* A slice in the layout of engine/multiply.h. Errors: E_IO, E_NOMEM. */
int weights_pack(const struct weights_file *f, const struct tensor_slice *s, struct ggml_tensor *t,
                 struct error *err);
/* A slice into a tensor in memory that only ggml knows how to write. Errors: E_IO, E_NOMEM. */
int weights_set(const struct weights_file *f, const struct tensor_slice *s, struct ggml_tensor *t,
                struct error *err);

#endif
