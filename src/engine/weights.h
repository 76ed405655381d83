/*
 * A shard's weights as ggml tensors. Each lands in one of three places: pages of the model file
 * mapped in place (contiguous slices in a type whose kernels read the file's layout), a repacked
 * buffer (types for which ggml has an interleaved layout that its kernels prefer), or plain memory
 * (slices cut across rows). Files are read with pread for the latter two, so that a weight never
 * occupies memory twice.
 *
 * Thread: loading by one thread; afterwards immutable.
 */
#ifndef SHOAL_ENGINE_WEIGHTS_H
#define SHOAL_ENGINE_WEIGHTS_H

#include "base/error.h"
#include "model/model.h"
#include "model/shard.h"

#include <ggml-backend.h>
#include <ggml.h>
#include <stdbool.h>
#include <stdint.h>

struct weights {
    struct ggml_tensor *global[ROLE_FIRST_OF_LAYER]; /* NULL: not in this shard */
    struct ggml_tensor *(*layer)[ROLE_COUNT];        /* [shard layers][role] */

    /* private from here */
    struct ggml_context *context;
    ggml_backend_buffer_t mapped, repacked, plain;
    void *map;
    size_t map_bytes;
    uint64_t bytes_mapped, bytes_repacked, bytes_plain;
};

/* Loads every slice that the shard needs. Errors: E_IO, E_NOMEM, E_UNSUPPORTED. Owns: the caller,
 * weights_done. */
int weights_load(struct weights *w, const struct model *m, const struct shard *s, bool repack,
                 struct error *err);
void weights_done(struct weights *w);

#endif
