/*
 * Writes GGUF version 3 files: values first, then tensors in the order in which they were declared,
 * each row group as it is made, so that no tensor is ever whole in memory. Thread: one.
 */
#ifndef SHOAL_TOOLS_GGUF_WRITER_H
#define SHOAL_TOOLS_GGUF_WRITER_H

#include "base/buf.h"
#include "base/error.h"
#include "model/gguf.h"

#include <stdint.h>
#include <stdio.h>

struct gguf_writer {
    struct buf values, tensors; /* encoded */
    uint64_t n_values, n_tensors;
    uint64_t data_bytes;              /* of the tensors declared so far, padded */
    uint64_t written;                 /* of those */
    char path[4096], part_path[4096]; /* the file gets its name when it is whole */
    FILE *file;
};

void writer_init(struct gguf_writer *w);
/* Removes what was written, unless writer_finish succeeded. */
void writer_done(struct gguf_writer *w);

/* Values. Failures are kept and come out of writer_open. */
void writer_u32(struct gguf_writer *w, const char *key, uint32_t v);
void writer_f32(struct gguf_writer *w, const char *key, float v);
void writer_bool(struct gguf_writer *w, const char *key, bool v);
void writer_string(struct gguf_writer *w, const char *key, const char *text);
/* Begins an array of n items, which the caller appends to w->values (strings with writer_item). */
void writer_array(struct gguf_writer *w, const char *key, enum gguf_kind item_kind, uint64_t n);
void writer_item(struct gguf_writer *w, const char *text);
/* Copies a value of another file. */
void writer_copy(struct gguf_writer *w, const struct gguf_value *v);

/* Declares the next tensor; dim and type as in struct gguf_tensor. */
void writer_tensor(struct gguf_writer *w, const char *name, uint32_t n_dims, const uint64_t *dim,
                   uint32_t type, uint64_t size_bytes);

/* Creates the file and writes its header. Errors: E_IO, E_NOMEM, E_INVALID. */
int writer_open(struct gguf_writer *w, const char *path, struct error *err);
/* Bytes of the current tensor; writer_pad after the last ones of each. */
int writer_data(struct gguf_writer *w, const void *data, size_t n, struct error *err);
int writer_pad(struct gguf_writer *w, struct error *err);
/* Errors: E_IO; E_INTERNAL when the data is not what was declared. */
int writer_finish(struct gguf_writer *w, struct error *err);

#endif
