#include "gguf_writer.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#define ALIGNMENT        32
#define HEADER_BYTES_MAX (256u << 20)

void writer_init(struct gguf_writer *w)
{
    *w = (struct gguf_writer){0};
    buf_init(&w->values, HEADER_BYTES_MAX);
    buf_init(&w->tensors, HEADER_BYTES_MAX);
}

void writer_done(struct gguf_writer *w)
{
    if (w->file != NULL) {
        fclose(w->file);
        unlink(w->part_path);
        w->file = NULL;
    }
    buf_done(&w->values);
    buf_done(&w->tensors);
}

static void append_string(struct buf *b, const char *data, size_t n)
{
    buf_append_u64(b, n);
    buf_append(b, data, n);
}

static void begin_value(struct gguf_writer *w, const char *key, enum gguf_kind kind)
{
    append_string(&w->values, key, strlen(key));
    buf_append_u32(&w->values, kind);
    w->n_values++;
}

void writer_u32(struct gguf_writer *w, const char *key, uint32_t v)
{
    begin_value(w, key, GGUF_KIND_U32);
    buf_append_u32(&w->values, v);
}

void writer_f32(struct gguf_writer *w, const char *key, float v)
{
    begin_value(w, key, GGUF_KIND_F32);
    buf_append_f32(&w->values, v);
}

void writer_bool(struct gguf_writer *w, const char *key, bool v)
{
    begin_value(w, key, GGUF_KIND_BOOL);
    buf_append_u8(&w->values, v);
}

void writer_string(struct gguf_writer *w, const char *key, const char *text)
{
    begin_value(w, key, GGUF_KIND_STRING);
    writer_item(w, text);
}

void writer_array(struct gguf_writer *w, const char *key, enum gguf_kind item_kind, uint64_t n)
{
    begin_value(w, key, GGUF_KIND_ARRAY);
    buf_append_u32(&w->values, item_kind);
    buf_append_u64(&w->values, n);
}

void writer_item(struct gguf_writer *w, const char *text)
{
    append_string(&w->values, text, strlen(text));
}

void writer_copy(struct gguf_writer *w, const struct gguf_value *v)
{
    static const uint8_t bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8}; /* by kind */
    append_string(&w->values, v->key.data, v->key.len);
    buf_append_u32(&w->values, v->kind);
    w->n_values++;
    if (v->kind == GGUF_KIND_ARRAY) {
        buf_append_u32(&w->values, v->item_kind);
        buf_append_u64(&w->values, v->count);
    }
    if (v->strings == NULL)
        buf_append(&w->values, v->data, (size_t)v->count * bytes[v->item_kind]);
    for (uint64_t i = 0; v->strings != NULL && i < v->count; i++)
        append_string(&w->values, v->strings[i].data, v->strings[i].len);
}

static uint64_t padded(uint64_t n)
{
    return (n + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

void writer_tensor(struct gguf_writer *w, const char *name, uint32_t n_dims, const uint64_t *dim,
                   uint32_t type, uint64_t size_bytes)
{
    append_string(&w->tensors, name, strlen(name));
    buf_append_u32(&w->tensors, n_dims);
    for (uint32_t d = 0; d < n_dims; d++)
        buf_append_u64(&w->tensors, dim[d]);
    buf_append_u32(&w->tensors, type);
    buf_append_u64(&w->tensors, w->data_bytes);
    w->data_bytes += padded(size_bytes);
    w->n_tensors++;
}

static int put(struct gguf_writer *w, const void *data, size_t n, struct error *err)
{
    if (n > 0 && fwrite(data, 1, n, w->file) != n)
        return error_set(err, E_IO, "writing %s: %s", w->part_path, strerror(errno));
    return 0;
}

static int put_zeros(struct gguf_writer *w, uint64_t n, struct error *err)
{
    static const uint8_t zeros[ALIGNMENT];
    return put(w, zeros, (size_t)n, err);
}

int writer_open(struct gguf_writer *w, const char *path, struct error *err)
{
    struct buf head;
    int rc = w->values.error != 0 ? w->values.error : w->tensors.error;
    if (rc != 0)
        return error_set(err, rc, "the header: %s", error_text(rc));
    int n = snprintf(w->path, sizeof(w->path), "%s", path);
    int n_part = snprintf(w->part_path, sizeof(w->part_path), "%s.part", path);
    if (n < 0 || n_part < 0 || (size_t)n_part >= sizeof(w->part_path))
        return error_set(err, E_INVALID, "the path is too long");
    w->file = fopen(w->part_path, "wb");
    if (w->file == NULL)
        return error_set(err, E_IO, "%s: %s", w->part_path, strerror(errno));

    buf_init(&head, 64);
    buf_append_str(&head, "GGUF");
    buf_append_u32(&head, 3);
    buf_append_u64(&head, w->n_tensors);
    buf_append_u64(&head, w->n_values);
    uint64_t size = head.len + w->values.len + w->tensors.len;
    rc = head.error != 0 ? error_set(err, head.error, "no memory")
                         : put(w, head.data, head.len, err);
    if (rc == 0)
        rc = put(w, w->values.data, w->values.len, err);
    if (rc == 0)
        rc = put(w, w->tensors.data, w->tensors.len, err);
    if (rc == 0)
        rc = put_zeros(w, padded(size) - size, err);
    buf_done(&head);
    return rc;
}

int writer_data(struct gguf_writer *w, const void *data, size_t n, struct error *err)
{
    w->written += n;
    return put(w, data, n, err);
}

int writer_pad(struct gguf_writer *w, struct error *err)
{
    uint64_t n = padded(w->written) - w->written;
    w->written += n;
    return put_zeros(w, n, err);
}

int writer_finish(struct gguf_writer *w, struct error *err)
{
    if (w->written != w->data_bytes)
        return error_set(err, E_INTERNAL,
                         "%" PRIu64 " bytes of tensors written, %" PRIu64 " declared", w->written,
                         w->data_bytes);
    FILE *file = w->file;
    w->file = NULL;
    if (fclose(file) != 0 || rename(w->part_path, w->path) != 0) {
        int rc = error_set(err, E_IO, "%s: %s", w->path, strerror(errno));
        unlink(w->part_path);
        return rc;
    }
    return 0;
}
