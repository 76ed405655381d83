#include "model/gguf.h"

#include "base/limits.h"
#include "model/dtype.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* The largest headers known (300,000 tokens with their merges) are under 32 MiB. */
#define HEADER_BYTES_MAX  (256u << 20)
#define READ_CHUNK_BYTES  (1u << 20)
#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MIN     8
#define ALIGNMENT_MAX     (1u << 20)
#define TENSOR_ELEMS_MAX  (UINT64_C(1) << 40)

/* The least bytes that a value (key of one byte, U8) and a tensor (name of one byte, one dimension)
 * take. */
#define VALUE_BYTES_MIN  (8 + 1 + 4 + 1)
#define TENSOR_BYTES_MIN (8 + 1 + 4 + 8 + 4 + 8)

struct gguf_file {
    char *path;
    const uint8_t *header; /* bytes of the file from its start */
    uint8_t *header_owned; /* the same, or NULL when borrowed */
    size_t header_size;
    uint64_t size;
    uint64_t data_offset;
    size_t n_values, n_tensors;
    struct gguf_value *values;
    struct gguf_tensor *tensors;
    struct gguf_value *
        *values_by_key; /* sorted: a lookup is a binary search, which no file can make slow */
    struct gguf_tensor **tensors_by_name;
};

/* Reads the header front to back, fetching bytes from the file as they are asked for. */
struct reader {
    struct gguf_file *file;
    int fd;           /* -1: all bytes are there */
    uint64_t offset;  /* of the next byte */
    uint64_t fetched; /* bytes of the file that are in memory */
    uint64_t end;     /* the header cannot go beyond: end of the file or the limit */
    struct error *err;
};

/* Text of a name for messages: bytes that are not printable ASCII become '?'. */
static const char *printable(struct gguf_string s, char text[96])
{
    size_t n = s.len < 92 ? s.len : 92;
    for (size_t i = 0; i < n; i++)
        text[i] = s.data[i] >= 32 && s.data[i] < 127 ? s.data[i] : '?';
    memcpy(text + n, s.len > n ? "..." : "", s.len > n ? 4 : 1);
    return text;
}

static int fetch(struct reader *r, uint64_t end)
{
    uint64_t want = end + READ_CHUNK_BYTES < r->end ? end + READ_CHUNK_BYTES : r->end;
    while (r->fetched < want) {
        ssize_t n = pread(r->fd, r->file->header_owned + r->fetched, (size_t)(want - r->fetched),
                          (off_t)r->fetched);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set(r->err, E_IO, "reading the header at byte %" PRIu64 ": %s", r->fetched,
                             strerror(errno));
        if (n == 0)
            return error_set(r->err, E_IO,
                             "the file became shorter than %" PRIu64 " bytes while it was read",
                             r->fetched);
        r->fetched += (uint64_t)n;
    }
    return 0;
}

/* The next n bytes, which stay where they are as long as the file is open. what names the field in
 * messages. */
static int take(struct reader *r, uint64_t n, const char *what, const uint8_t **ret_data)
{
    if (n > r->end - r->offset) {
        if (r->end < r->file->size)
            return error_set(r->err, E_LIMIT,
                             "%s at byte %" PRIu64 ": the header is longer than %u bytes", what,
                             r->offset, HEADER_BYTES_MAX);
        return error_set(r->err, E_FORMAT,
                         "%s at byte %" PRIu64 " needs %" PRIu64
                         " bytes, but the file ends at byte %" PRIu64 "; it is cut off or damaged",
                         what, r->offset, n, r->file->size);
    }
    if (r->offset + n > r->fetched) {
        int rc = fetch(r, r->offset + n);
        if (rc != 0)
            return rc;
    }
    *ret_data = r->file->header + r->offset;
    r->offset += n;
    return 0;
}

static uint64_t load_le(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static int take_u32(struct reader *r, const char *what, uint32_t *ret)
{
    const uint8_t *p;
    int rc = take(r, 4, what, &p);
    if (rc == 0)
        *ret = (uint32_t)load_le(p, 4);
    return rc;
}

static int take_u64(struct reader *r, const char *what, uint64_t *ret)
{
    const uint8_t *p;
    int rc = take(r, 8, what, &p);
    if (rc == 0)
        *ret = load_le(p, 8);
    return rc;
}

static int take_string(struct reader *r, const char *what, uint64_t limit, struct gguf_string *ret)
{
    uint64_t at = r->offset, len;
    const uint8_t *p = NULL;
    int rc = take_u64(r, what, &len);
    if (rc != 0)
        return rc;
    if (len > limit)
        return error_set(r->err, E_LIMIT,
                         "%s at byte %" PRIu64 " is %" PRIu64 " bytes long (limit %" PRIu64 ")",
                         what, at, len, limit);
    rc = take(r, len, what, &p);
    if (rc == 0)
        *ret = (struct gguf_string){.data = (const char *)p, .len = (size_t)len};
    return rc;
}

/* Keys and tensor names: not empty, and without NUL, because they are looked up as C strings. */
static int take_name(struct reader *r, const char *what, uint64_t limit, struct gguf_string *ret)
{
    uint64_t at = r->offset;
    int rc = take_string(r, what, limit, ret);
    if (rc == 0 && (ret->len == 0 || memchr(ret->data, '\0', ret->len) != NULL))
        return error_set(r->err, E_FORMAT, "%s at byte %" PRIu64 " is empty or holds a NUL byte",
                         what, at);
    return rc;
}

/* Bytes of a scalar of a kind, 0 for those without a fixed size and for unknown kinds. */
static size_t kind_bytes(uint32_t kind)
{
    static const uint8_t bytes[] = {
        [GGUF_KIND_U8] = 1,  [GGUF_KIND_I8] = 1,  [GGUF_KIND_U16] = 2, [GGUF_KIND_I16] = 2,
        [GGUF_KIND_U32] = 4, [GGUF_KIND_I32] = 4, [GGUF_KIND_F32] = 4, [GGUF_KIND_BOOL] = 1,
        [GGUF_KIND_U64] = 8, [GGUF_KIND_I64] = 8, [GGUF_KIND_F64] = 8,
    };
    return kind < sizeof(bytes) ? bytes[kind] : 0;
}

static int parse_array_head(struct reader *r, struct gguf_value *v)
{
    char name[96];
    uint64_t at = r->offset;
    uint32_t kind;
    int rc = take_u32(r, "array item kind", &kind);
    if (rc == 0)
        rc = take_u64(r, "array length", &v->count);
    if (rc != 0)
        return rc;
    if (kind == GGUF_KIND_ARRAY)
        return error_set(r->err, E_UNSUPPORTED,
                         "value '%s' at byte %" PRIu64 " is an array of arrays",
                         printable(v->key, name), at);
    if (kind > GGUF_KIND_F64)
        return error_set(r->err, E_FORMAT,
                         "value '%s' at byte %" PRIu64 ": unknown array item kind %" PRIu32,
                         printable(v->key, name), at, kind);
    if (v->count > LIMIT_GGUF_ARRAY_COUNT)
        return error_set(r->err, E_LIMIT,
                         "value '%s' at byte %" PRIu64 " has %" PRIu64 " items (limit %u)",
                         printable(v->key, name), at, v->count, LIMIT_GGUF_ARRAY_COUNT);
    v->item_kind = kind;
    return 0;
}

static int parse_strings(struct reader *r, struct gguf_value *v)
{
    /* Each string takes eight bytes at least: a count that the file cannot hold must not cost
     * memory. */
    if (v->count > (r->end - r->offset) / 8) {
        char name[96];
        return error_set(r->err, E_FORMAT,
                         "value '%s' at byte %" PRIu64 " claims %" PRIu64
                         " strings, more than the file holds",
                         printable(v->key, name), r->offset, v->count);
    }
    v->strings = calloc(v->count > 0 ? (size_t)v->count : 1, sizeof(v->strings[0]));
    if (v->strings == NULL)
        return error_set(r->err, E_NOMEM, "no memory for %" PRIu64 " strings", v->count);
    for (uint64_t i = 0; i < v->count; i++) {
        int rc = take_string(r, "string", LIMIT_GGUF_STRING_BYTES, &v->strings[i]);
        if (rc != 0)
            return rc;
    }
    return 0;
}

static int parse_value(struct reader *r, struct gguf_value *v)
{
    char name[96];
    uint32_t kind;
    int rc = take_name(r, "key", LIMIT_GGUF_KEY_BYTES, &v->key);
    uint64_t at = r->offset;
    if (rc == 0)
        rc = take_u32(r, "value kind", &kind);
    if (rc != 0)
        return rc;
    if (kind > GGUF_KIND_F64)
        return error_set(r->err, E_FORMAT, "value '%s' at byte %" PRIu64 ": unknown kind %" PRIu32,
                         printable(v->key, name), at, kind);
    v->kind = kind;
    v->item_kind = kind;
    v->count = 1;
    if (kind == GGUF_KIND_ARRAY && (rc = parse_array_head(r, v)) != 0)
        return rc;

    v->data = r->file->header + r->offset;
    if (v->item_kind == GGUF_KIND_STRING)
        return parse_strings(r, v);
    at = r->offset;
    rc = take(r, v->count * kind_bytes(v->item_kind), "value", &v->data);
    if (rc != 0)
        return rc;
    for (uint64_t i = 0; v->item_kind == GGUF_KIND_BOOL && i < v->count; i++)
        if (v->data[i] > 1)
            return error_set(r->err, E_FORMAT,
                             "value '%s' at byte %" PRIu64 ": %u is neither true nor false",
                             printable(v->key, name), at + i, v->data[i]);
    return 0;
}

/* Size of a tensor from its dimensions and type, with every product checked. */
static int tensor_size(struct reader *r, uint64_t at, struct gguf_tensor *t)
{
    const struct dtype_traits *traits = dtype_traits(t->type);
    if (traits == NULL)
        return error_set(r->err, E_UNSUPPORTED,
                         "tensor '%s' at byte %" PRIu64 ": type %" PRIu32
                         " is not known to this version",
                         t->name, at, t->type);
    uint64_t n_elems = 1;
    for (uint32_t d = 0; d < 4; d++) {
        if (t->dim[d] == 0 || t->dim[d] >= TENSOR_ELEMS_MAX / n_elems)
            return error_set(r->err, E_FORMAT,
                             "tensor '%s' at byte %" PRIu64 ": dimension %" PRIu32 " is %" PRIu64
                             ", which is zero or too large",
                             t->name, at, d, t->dim[d]);
        n_elems *= t->dim[d];
    }
    uint64_t row_bytes = dtype_row_bytes(t->type, t->dim[0]);
    if (row_bytes == 0)
        return error_set(r->err, E_FORMAT,
                         "tensor '%s' at byte %" PRIu64 ": rows of %" PRIu64
                         " elements are not a whole number of %s blocks of %" PRIu32,
                         t->name, at, t->dim[0], traits->name, traits->block_elems);
    t->size_bytes = row_bytes * (n_elems / t->dim[0]);
    return 0;
}

static int parse_tensor(struct reader *r, struct gguf_tensor *t)
{
    struct gguf_string name;
    uint64_t at = r->offset;
    int rc = take_name(r, "tensor name", LIMIT_GGUF_TENSOR_NAME_BYTES, &name);
    if (rc != 0)
        return rc;
    static_assert(LIMIT_GGUF_TENSOR_NAME_BYTES < sizeof(t->name), "names are kept with their NUL");
    char text[96];
    memcpy(t->name, printable(name, text), name.len + 1);
    if (memcmp(t->name, name.data, name.len) != 0)
        return error_set(r->err, E_FORMAT,
                         "tensor name '%s' at byte %" PRIu64
                         " has bytes that are not printable ASCII",
                         t->name, at);
    rc = take_u32(r, "number of dimensions", &t->n_dims);
    if (rc == 0 && (t->n_dims < 1 || t->n_dims > 4))
        return error_set(r->err, E_FORMAT,
                         "tensor '%s' at byte %" PRIu64 " has %" PRIu32 " dimensions, not 1 to 4",
                         t->name, at, t->n_dims);
    for (uint32_t d = 0; rc == 0 && d < 4; d++) {
        t->dim[d] = 1;
        if (d < t->n_dims)
            rc = take_u64(r, "dimension", &t->dim[d]);
    }
    if (rc == 0)
        rc = take_u32(r, "tensor type", &t->type);
    if (rc == 0)
        rc = take_u64(r, "tensor offset", &t->offset);
    return rc != 0 ? rc : tensor_size(r, at, t);
}

static int compare_strings(struct gguf_string a, struct gguf_string b)
{
    int order = memcmp(a.data, b.data, a.len < b.len ? a.len : b.len);
    return order != 0 ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_values(const void *a, const void *b)
{
    return compare_strings((*(struct gguf_value *const *)a)->key,
                           (*(struct gguf_value *const *)b)->key);
}

static int compare_names(const void *a, const void *b)
{
    return strcmp((*(struct gguf_tensor *const *)a)->name, (*(struct gguf_tensor *const *)b)->name);
}

static int compare_offsets(const void *a, const void *b)
{
    uint64_t x = (*(struct gguf_tensor *const *)a)->offset,
             y = (*(struct gguf_tensor *const *)b)->offset;
    return (x > y) - (x < y);
}

static int index_values(struct gguf_file *f, struct error *err)
{
    f->values_by_key = calloc(f->n_values + 1, sizeof(struct gguf_value *));
    if (f->values_by_key == NULL)
        return error_set(err, E_NOMEM, "no memory for %zu values", f->n_values);
    for (size_t i = 0; i < f->n_values; i++)
        f->values_by_key[i] = &f->values[i];
    qsort(f->values_by_key, f->n_values, sizeof(f->values_by_key[0]), compare_values);
    for (size_t i = 1; i < f->n_values; i++)
        if (compare_values(&f->values_by_key[i - 1], &f->values_by_key[i]) == 0) {
            char name[96];
            const char *at = f->values_by_key[i]->key.data;
            return error_set(err, E_FORMAT, "key '%s' appears twice (once at byte %td)",
                             printable(f->values_by_key[i]->key, name),
                             at - (const char *)f->header);
        }
    return 0;
}

/* Offsets become absolute. Tensors must lie in the file, aligned, without sharing a byte: shared
 * bytes would let a small file claim a large model. */
static int place_tensors(struct gguf_file *f, uint64_t alignment, struct error *err)
{
    f->tensors_by_name = calloc(f->n_tensors + 1, sizeof(struct gguf_tensor *));
    if (f->tensors_by_name == NULL)
        return error_set(err, E_NOMEM, "no memory for %zu tensors", f->n_tensors);
    for (size_t i = 0; i < f->n_tensors; i++) {
        struct gguf_tensor *t = f->tensors_by_name[i] = &f->tensors[i];
        if (t->offset % alignment != 0)
            return error_set(err, E_FORMAT,
                             "tensor '%s': offset %" PRIu64 " is not a multiple of %" PRIu64,
                             t->name, t->offset, alignment);
        if (f->data_offset > f->size || t->size_bytes > f->size - f->data_offset ||
            t->offset > f->size - f->data_offset - t->size_bytes)
            return error_set(err, E_FORMAT,
                             "tensor '%s' takes %" PRIu64 " bytes from byte %" PRIu64 " + %" PRIu64
                             ", but the file ends at byte %" PRIu64 "; it is cut off or damaged",
                             t->name, t->size_bytes, f->data_offset, t->offset, f->size);
        t->offset += f->data_offset;
    }
    qsort(f->tensors_by_name, f->n_tensors, sizeof(f->tensors_by_name[0]), compare_offsets);
    for (size_t i = 1; i < f->n_tensors; i++) {
        const struct gguf_tensor *a = f->tensors_by_name[i - 1], *b = f->tensors_by_name[i];
        if (b->offset - a->offset < a->size_bytes)
            return error_set(err, E_FORMAT, "tensors '%s' and '%s' overlap at byte %" PRIu64,
                             a->name, b->name, b->offset);
    }
    qsort(f->tensors_by_name, f->n_tensors, sizeof(f->tensors_by_name[0]), compare_names);
    for (size_t i = 1; i < f->n_tensors; i++)
        if (compare_names(&f->tensors_by_name[i - 1], &f->tensors_by_name[i]) == 0)
            return error_set(err, E_FORMAT, "tensor '%s' appears twice",
                             f->tensors_by_name[i]->name);
    return 0;
}

static int read_alignment(const struct gguf_file *f, uint64_t *ret, struct error *err)
{
    *ret = ALIGNMENT_DEFAULT;
    int rc = gguf_file_get_u64(f, "general.alignment", ret, err);
    if (rc == E_NOTFOUND) {
        error_clear(err);
        return 0;
    }
    if (rc == 0 && (*ret < ALIGNMENT_MIN || *ret > ALIGNMENT_MAX || (*ret & (*ret - 1)) != 0))
        return error_set(err, E_FORMAT,
                         "general.alignment is %" PRIu64 ", not a power of two from %d to %u", *ret,
                         ALIGNMENT_MIN, ALIGNMENT_MAX);
    return rc;
}

static int parse_preamble(struct reader *r, uint64_t *ret_n_tensors, uint64_t *ret_n_values)
{
    const uint8_t *magic;
    uint32_t version;
    int rc = take(r, 4, "magic number", &magic);
    if (rc == 0 && memcmp(magic, "GGUF", 4) != 0)
        return error_set(r->err, E_FORMAT,
                         "not a GGUF file: it begins with %02x %02x %02x %02x, not 'GGUF'",
                         magic[0], magic[1], magic[2], magic[3]);
    if (rc == 0)
        rc = take_u32(r, "version", &version);
    if (rc == 0 && version != 2 && version != 3)
        return error_set(r->err, E_UNSUPPORTED,
                         "GGUF version %" PRIu32 "%s; versions 2 and 3 are supported", version,
                         (version & 0xffff) == 0 ? " (a big-endian file)" : "");
    if (rc == 0)
        rc = take_u64(r, "number of tensors", ret_n_tensors);
    if (rc == 0)
        rc = take_u64(r, "number of values", ret_n_values);
    if (rc != 0)
        return rc;
    if (*ret_n_tensors > LIMIT_GGUF_TENSOR_COUNT || *ret_n_values > LIMIT_GGUF_KV_COUNT)
        return error_set(
            r->err, E_LIMIT, "%" PRIu64 " tensors and %" PRIu64 " values (limits %d and %d)",
            *ret_n_tensors, *ret_n_values, LIMIT_GGUF_TENSOR_COUNT, LIMIT_GGUF_KV_COUNT);
    uint64_t left = r->file->size - r->offset;
    if (*ret_n_tensors * TENSOR_BYTES_MIN + *ret_n_values * VALUE_BYTES_MIN > left)
        return error_set(r->err, E_FORMAT,
                         "%" PRIu64 " tensors and %" PRIu64 " values do not fit in the %" PRIu64
                         " bytes that follow; the file is cut off or damaged",
                         *ret_n_tensors, *ret_n_values, left);
    return 0;
}

static int parse_header(struct reader *r)
{
    struct gguf_file *f = r->file;
    uint64_t n_tensors = 0, n_values = 0, alignment;
    int rc = parse_preamble(r, &n_tensors, &n_values);
    if (rc != 0)
        return rc;
    f->values = calloc((size_t)n_values + 1, sizeof(f->values[0]));
    f->tensors = calloc((size_t)n_tensors + 1, sizeof(f->tensors[0]));
    if (f->values == NULL || f->tensors == NULL)
        return error_set(r->err, E_NOMEM,
                         "no memory for %" PRIu64 " values and %" PRIu64 " tensors", n_values,
                         n_tensors);
    while (f->n_values <
           n_values) /* counted first: what a failing value holds is freed with the file */
        if ((rc = parse_value(r, &f->values[f->n_values++])) != 0)
            return rc;
    if ((rc = index_values(f, r->err)) != 0 || (rc = read_alignment(f, &alignment, r->err)) != 0)
        return rc;
    while (f->n_tensors < n_tensors)
        if ((rc = parse_tensor(r, &f->tensors[f->n_tensors++])) != 0)
            return rc;
    f->header_size = (size_t)r->offset;
    f->data_offset = (r->offset + alignment - 1) & ~(alignment - 1);
    return place_tensors(f, alignment, r->err);
}

int gguf_file_parse(const void *data, size_t size, struct gguf_file **ret_file, struct error *err)
{
    struct gguf_file *f = calloc(1, sizeof(*f));
    if (f == NULL)
        return error_set(err, E_NOMEM, "no memory for a model file");
    f->header = data;
    f->size = size;
    struct reader r = {.file = f, .fd = -1, .fetched = size, .err = err};
    r.end = size < HEADER_BYTES_MAX ? size : HEADER_BYTES_MAX;
    int rc = parse_header(&r);
    if (rc != 0) {
        gguf_file_close(f);
        return rc;
    }
    *ret_file = f;
    return 0;
}

static int open_regular(const char *path, int *ret_fd, uint64_t *ret_size, struct error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not make us wait */
    if (fd < 0)
        return error_set(err, errno == ENOENT ? E_NOTFOUND : E_IO, "%s", strerror(errno));
    if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < 0) {
        close(fd);
        return error_set(err, E_IO, "not a regular file");
    }
    *ret_fd = fd;
    *ret_size = (uint64_t)st.st_size;
    return 0;
}

static int parse_fd(struct gguf_file *f, int fd, struct error *err)
{
    struct reader r = {.file = f, .fd = fd, .err = err};
    r.end = f->size < HEADER_BYTES_MAX ? f->size : HEADER_BYTES_MAX;
    /* Room for the longest header this file could have, so that values never move; only what is
     * read costs memory. */
    f->header_owned = malloc(r.end > 0 ? (size_t)r.end : 1);
    if (f->header_owned == NULL)
        return error_set(err, E_NOMEM, "no memory for a header of up to %" PRIu64 " bytes", r.end);
    f->header = f->header_owned;
    return parse_header(&r);
}

int gguf_file_open(const char *path, struct gguf_file **ret_file, struct error *err)
{
    int fd = -1, rc;
    struct gguf_file *f = calloc(1, sizeof(*f));
    if (f == NULL || (f->path = strdup(path)) == NULL)
        rc = error_set(err, E_NOMEM, "no memory for a model file");
    else if ((rc = open_regular(path, &fd, &f->size, err)) == 0)
        rc = parse_fd(f, fd, err);
    if (fd >= 0)
        close(fd);
    if (rc != 0) {
        gguf_file_close(f);
        return error_wrap(err, rc, "%s", path);
    }
    *ret_file = f;
    return 0;
}

void gguf_file_close(struct gguf_file *f)
{
    if (f == NULL)
        return;
    for (size_t i = 0; i < f->n_values; i++)
        free(f->values[i].strings);
    free(f->values);
    free(f->tensors);
    free(f->values_by_key);
    free(f->tensors_by_name);
    free(f->header_owned);
    free(f->path);
    free(f);
}

const char *gguf_file_path(const struct gguf_file *f)
{
    return f->path != NULL ? f->path : "";
}

uint64_t gguf_file_size(const struct gguf_file *f)
{
    return f->size;
}

uint64_t gguf_file_data_offset(const struct gguf_file *f)
{
    return f->data_offset;
}

const void *gguf_file_header(const struct gguf_file *f, size_t *ret_size)
{
    *ret_size = f->header_size;
    return f->header;
}

size_t gguf_file_n_values(const struct gguf_file *f)
{
    return f->n_values;
}

const struct gguf_value *gguf_file_value(const struct gguf_file *f, size_t index)
{
    return index < f->n_values ? &f->values[index] : NULL;
}

const struct gguf_value *gguf_file_find(const struct gguf_file *f, const char *key)
{
    struct gguf_value wanted = {.key = {.data = key, .len = strlen(key)}}, *p = &wanted;
    struct gguf_value **found =
        bsearch(&p, f->values_by_key, f->n_values, sizeof(f->values_by_key[0]), compare_values);
    return found != NULL ? *found : NULL;
}

size_t gguf_file_n_tensors(const struct gguf_file *f)
{
    return f->n_tensors;
}

const struct gguf_tensor *gguf_file_tensor(const struct gguf_file *f, size_t index)
{
    return index < f->n_tensors ? &f->tensors[index] : NULL;
}

const struct gguf_tensor *gguf_file_find_tensor(const struct gguf_file *f, const char *name)
{
    struct gguf_tensor wanted, *p = &wanted;
    if (strlen(name) >= sizeof(wanted.name))
        return NULL;
    memcpy(wanted.name, name, strlen(name) + 1);
    struct gguf_tensor **found =
        bsearch(&p, f->tensors_by_name, f->n_tensors, sizeof(f->tensors_by_name[0]), compare_names);
    return found != NULL ? *found : NULL;
}
