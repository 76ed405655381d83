/*
 * Where weights lie: chunks of memory that the tensors of one load share, and the pieces of them
 * that hold a tensor each. A chunk lives as long as any piece in it; one that has lost pieces gives
 * their pages back. Private to weights.c. Thread: as weights.h.
 */
#ifndef SHOAL_ENGINE_WEIGHTS_MEMORY_H
#define SHOAL_ENGINE_WEIGHTS_MEMORY_H

#include "base/error.h"
#include "model/model.h"
#include "model/shard.h"

#include <ggml-backend.h>
#include <stdint.h>

struct weights_chunk {
    ggml_backend_buffer_t buffer;
    char *base;
    size_t bytes;
    bool is_file;   /* pages of the mapped file; else memory of the buffer's own */
    bool is_device; /* which is not in this process's address space */
    uint32_t n_refs;
};

enum weights_place { PLACE_MAPPED, PLACE_PACKED, PLACE_REPACKED, PLACE_PLAIN, PLACE_DEVICE };

struct weights_piece { /* one tensor */
    enum role role;
    uint32_t layer; /* of the model; 0 for global roles */
    enum weights_place place;
    struct tensor_slice slice; /* slice.tensor is the model's, which may be closed by now */
    struct weights_chunk *chunk;
    char *address;
    size_t bytes;
};

/* A chunk with one reference. Errors: E_NOMEM; E_IO for a file. Owns: the caller, chunk_unref. */
int chunk_new(ggml_backend_buffer_type_t type, size_t bytes, struct weights_chunk **ret_chunk,
              struct error *err);
int chunk_map(int fd, size_t bytes, const char *path, struct weights_chunk **ret_chunk,
              struct error *err);
struct weights_chunk *chunk_ref(struct weights_chunk *c);
void chunk_unref(struct weights_chunk *c); /* NULL is fine */

/* Gives back all memory of the chunks of these pieces in which none of the pieces lies. Sorts them.
 * A device's chunk is whole or gone. */
void chunk_discard_rest(struct weights_piece **pieces, size_t n);

#endif
