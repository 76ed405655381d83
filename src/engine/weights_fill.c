#include "engine/weights_fill.h"

#include "engine/memory.h"
#include "engine/multiply.h"

#include <errno.h>
#include <ggml-backend.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static int read_bytes(const struct weights_file *f, uint64_t offset, void *data, size_t n,
                      struct error *err)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(f->fd, (char *)data + done, n - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return error_set(err, E_IO, "cannot read %zu bytes at %llu of '%s': %s", n,
                             (unsigned long long)offset, f->path,
                             got < 0 ? strerror(errno) : "the file has become shorter");
        done += (size_t)got;
    }
    return 0;
}

/* Brings one slice, row by row where it is not contiguous, into dst. Strided rows are read in
 * chunks of whole rows, so that a narrow slice of many rows does not cost one system call a row. */
int weights_read(const struct weights_file *f, const struct tensor_slice *s, char *dst,
                 struct error *err)
{
    if (s->row_bytes == s->row_stride_bytes || s->n_rows == 1)
        return read_bytes(f, s->file_offset, dst, s->row_bytes * s->n_rows, err);

    enum { CHUNK_BYTES = 4 << 20 };
    uint64_t rows_per_chunk =
        CHUNK_BYTES / s->row_stride_bytes > 0 ? CHUNK_BYTES / s->row_stride_bytes : 1;
    char *chunk = malloc(rows_per_chunk * s->row_stride_bytes);
    if (chunk == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int rc = 0;
    for (uint64_t row = 0; row < s->n_rows && rc == 0; row += rows_per_chunk) {
        uint64_t n = s->n_rows - row < rows_per_chunk ? s->n_rows - row : rows_per_chunk;
        rc = read_bytes(f, s->file_offset + row * s->row_stride_bytes, chunk,
                        (n - 1) * s->row_stride_bytes + s->row_bytes, err);
        for (uint64_t i = 0; i < n && rc == 0; i++)
            memcpy(dst + (row + i) * s->row_bytes, chunk + i * s->row_stride_bytes, s->row_bytes);
    }
    free(chunk);
    return rc;
}

/* A few groups of rows at a time, so that little is there twice. */
int weights_pack(const struct weights_file *f, const struct tensor_slice *s, struct ggml_tensor *t,
                 struct error *err)
{
    enum { ROWS = 32 * MULTIPLY_GROUP };
    size_t group_bytes = multiply_bytes(t->type, t->ne[0], MULTIPLY_GROUP);
    char *rows = memory_reserve(ROWS * s->row_bytes), *group = t->data; /* malloc would keep it */
    int rc = rows != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
    for (uint64_t row = 0; row < s->n_rows && rc == 0; row += ROWS) {
        struct tensor_slice part = *s;
        part.file_offset += row * s->row_stride_bytes;
        part.n_rows = s->n_rows - row < ROWS ? s->n_rows - row : ROWS;
        rc = weights_read(f, &part, rows, err);
        for (uint64_t i = 0; i < part.n_rows && rc == 0; i += MULTIPLY_GROUP) {
            uint64_t n = part.n_rows - i < MULTIPLY_GROUP ? part.n_rows - i : MULTIPLY_GROUP;
            multiply_pack(t->type, t->ne[0], rows + i * s->row_bytes, (int64_t)n, group);
            group += group_bytes;
        }
    }
    memory_unreserve(rows, ROWS * s->row_bytes);
    return rc;
}

/* A repacked tensor, and one on a device, is set as a whole, from the file's pages where they hold
 * just this slice: they can be had back at any time, so that they do not count while memory is
 * short. */
static int set_mapped(const struct weights_file *f, const struct tensor_slice *s,
                      struct ggml_tensor *t, struct error *err)
{
    size_t page = memory_page_bytes(), before = s->file_offset % page;
    size_t bytes = ggml_nbytes(t);
    char *map =
        mmap(NULL, before + bytes, PROT_READ, MAP_SHARED, f->fd, (off_t)(s->file_offset - before));
    if (map == MAP_FAILED)
        return error_set(err, E_IO, "cannot map '%s': %s", f->path, strerror(errno));
    memory_prefault(map, before + bytes);
    ggml_backend_tensor_set(t, map + before, 0, bytes);
    munmap(map, before + bytes);
    return 0;
}

/* Else from a copy that exists beside it for a moment. The copy is mapped, since malloc keeps what
 * is freed. */
static int set_copied(const struct weights_file *f, const struct tensor_slice *s,
                      struct ggml_tensor *t, struct error *err)
{
    size_t bytes = ggml_nbytes(t);
    char *copy = memory_reserve(bytes);
    if (copy == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    int rc = weights_read(f, s, copy, err);
    if (rc == 0)
        ggml_backend_tensor_set(t, copy, 0, bytes);
    memory_unreserve(copy, bytes);
    return rc;
}

int weights_set(const struct weights_file *f, const struct tensor_slice *s, struct ggml_tensor *t,
                struct error *err)
{
    return s->row_bytes == s->row_stride_bytes ? set_mapped(f, s, t, err)
                                               : set_copied(f, s, t, err);
}
