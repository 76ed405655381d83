/*
 * A shard's weights as ggml tensors. Each lands in one of these places: pages of the model file
 * mapped in place (contiguous slices in a type whose kernels read the file's layout), a repacked
 * buffer (types for which ggml has an interleaved layout that its kernels prefer), plain memory
 * (slices cut across rows), or the memory of a device. All but the first are filled from the file's
 * pages or with pread, one tensor at a time, so that weights never occupy memory twice.
 *
 * With a device, the processors keep the embedding table, of which a step needs a few rows, and
 * matrices that the device cannot multiply by.
 *
 * Weights outlive the engine that they were loaded for: what another shard of the same model also
 * needs is used where it lies, the rest gives its memory back before anything is read.
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
#include <sys/types.h>

struct weights_piece; /* engine/weights_memory.h */

struct weights_target {
    ggml_backend_dev_t device; /* NULL: the processors alone */
    bool repack;
};

struct weights {
    struct ggml_tensor *global[ROLE_FIRST_OF_LAYER]; /* NULL: not in this shard */
    struct ggml_tensor *(*layer)[ROLE_COUNT];        /* [shard layers][role] */
    uint64_t bytes_mapped, bytes_packed, bytes_repacked, bytes_plain, bytes_device;
    uint64_t bytes_kept;        /* of these: taken over from earlier weights */
    uint32_t n_matrices_beside; /* that the device of the target cannot multiply by */

    /* private from here */
    struct ggml_context *context;
    struct weights_piece *pieces; /* [n_pieces] where each tensor lies */
    uint32_t n_pieces;
    uint8_t model_hash[32];
    struct { /* the file's state when it was read: one that has changed has other weights */
        dev_t device;
        ino_t inode;
        off_t bytes;
        int64_t changed_ns;
    } file;
};

/* Loads every slice that the shard needs. kept: earlier weights, of which what fits is used, unless
 * they are of another model; taken, also on failure; NULL: none. Errors: E_IO, E_NOMEM,
 * E_UNSUPPORTED. Owns: the caller, weights_free. */
int weights_load(const struct model *m, const struct shard *s, const struct weights_target *target,
                 struct weights *kept, struct weights **ret_weights, struct error *err);
void weights_free(struct weights *w); /* NULL is fine */
uint64_t weights_bytes(const struct weights *w);
/* Memory that ends with them: all but pages of the file, which the system may take at any time. */
uint64_t weights_bytes_held(const struct weights *w);

#endif
