/*
 * Reads GGUF files (versions 2 and 3, little-endian) strictly: every count, length, type, offset
 * and string is checked against the file and against base/limits.h before it is used, so that ggml
 * never sees a byte of a bad file. Tensor data is never touched here: only its place in the file.
 *
 * Names start with gguf_file_ because ggml has functions that start with gguf_.
 * Source: GGUF specification (ggml-org/ggml, docs/gguf.md). Thread: immutable once opened; any
 * thread may read.
 */
#ifndef SHOAL_MODEL_GGUF_H
#define SHOAL_MODEL_GGUF_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum gguf_kind { /* the format's value types */
                 GGUF_KIND_U8 = 0,
                 GGUF_KIND_I8 = 1,
                 GGUF_KIND_U16 = 2,
                 GGUF_KIND_I16 = 3,
                 GGUF_KIND_U32 = 4,
                 GGUF_KIND_I32 = 5,
                 GGUF_KIND_F32 = 6,
                 GGUF_KIND_BOOL = 7,
                 GGUF_KIND_STRING = 8,
                 GGUF_KIND_ARRAY = 9,
                 GGUF_KIND_U64 = 10,
                 GGUF_KIND_I64 = 11,
                 GGUF_KIND_F64 = 12,
};

struct gguf_string { /* not NUL-terminated; bytes as in the file, not checked for UTF-8 */
    const char *data;
    size_t len;
};

struct gguf_value {
    struct gguf_string key;
    enum gguf_kind kind;
    enum gguf_kind item_kind; /* of an array's items; arrays of arrays are refused */
    uint64_t count;           /* items of an array, 1 for a scalar */
    const uint8_t
        *data; /* scalar or array items as stored; unaligned; for strings see gguf_file_string */
    struct gguf_string *strings; /* [count] for strings and arrays of strings, else NULL */
};

struct gguf_tensor {
    char name[64];
    uint32_t n_dims; /* 1..4 */
    uint64_t dim[4]; /* dim[0] is the row length; unused ones are 1 */
    uint32_t type;   /* enum dtype */
    uint64_t offset; /* bytes from the start of the file */
    uint64_t size_bytes;
};

struct gguf_file; /* opaque */

/* Opens and checks a file. The header is read into memory that the file object owns; tensor data
 * stays on disk. Errors: E_NOTFOUND, E_IO, E_FORMAT (says which field at which byte), E_LIMIT,
 * E_UNSUPPORTED, E_NOMEM. Owns: the caller, gguf_file_close. */
int gguf_file_open(const char *path, struct gguf_file **ret_file, struct error *err);
/* The same on bytes in memory (tests, fuzzing). Borrows: data must outlive the file. */
int gguf_file_parse(const void *data, size_t size, struct gguf_file **ret_file, struct error *err);
void gguf_file_close(struct gguf_file *f); /* NULL is fine */

const char *gguf_file_path(const struct gguf_file *f); /* "" when parsed from memory */
uint64_t gguf_file_size(const struct gguf_file *f);    /* bytes of the whole file */
uint64_t gguf_file_data_offset(const struct gguf_file *f);
/* The header's bytes: everything before the padding that precedes tensor data. Borrows from the
 * file. */
const void *gguf_file_header(const struct gguf_file *f, size_t *ret_size);

size_t gguf_file_n_values(const struct gguf_file *f);
const struct gguf_value *gguf_file_value(const struct gguf_file *f, size_t index);
/* NULL when absent. */
const struct gguf_value *gguf_file_find(const struct gguf_file *f, const char *key);

size_t gguf_file_n_tensors(const struct gguf_file *f);
const struct gguf_tensor *gguf_file_tensor(const struct gguf_file *f, size_t index);
const struct gguf_tensor *gguf_file_find_tensor(const struct gguf_file *f, const char *name);

/* Typed reads of scalars. Any integer kind serves an integer, any float kind a float, if the value
 * fits. Errors: E_NOTFOUND (absent), E_FORMAT (another kind or out of range): the message names the
 * key. */
int gguf_file_get_u64(const struct gguf_file *f, const char *key, uint64_t *ret, struct error *err);
int gguf_file_get_i64(const struct gguf_file *f, const char *key, int64_t *ret, struct error *err);
int gguf_file_get_f64(const struct gguf_file *f, const char *key, double *ret, struct error *err);
int gguf_file_get_bool(const struct gguf_file *f, const char *key, bool *ret, struct error *err);
int gguf_file_get_string(const struct gguf_file *f, const char *key, struct gguf_string *ret,
                         struct error *err);
/* Item of an array value that holds integers / floats; index < count. */
int64_t gguf_value_item_i64(const struct gguf_value *v, uint64_t index);
double gguf_value_item_f64(const struct gguf_value *v, uint64_t index);

#endif
