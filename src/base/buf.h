/*
 * Bytes: a growable buffer with a hard upper bound, and a cursor that reads from a fixed span
 * without ever leaving it. Wire and file integers are little-endian.
 *
 * A buffer remembers its first failure: after one append has failed all later ones do nothing, so
 * a writer may check once, at the end. Thread: none of this is shared.
 */
#ifndef SHOAL_BASE_BUF_H
#define SHOAL_BASE_BUF_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct buf {
    char *data; /* owned; NUL follows the last byte whenever data is not NULL */
    size_t len;
    size_t cap;     /* bytes allocated, NUL included */
    size_t max_len; /* never more than this */
    int error;      /* 0, E_NOMEM or E_LIMIT; sticky */
};

/* Prepares an empty buffer that holds at most max_len bytes. */
void buf_init(struct buf *b, size_t max_len);
/* Frees the bytes. The buffer is as after buf_init. */
void buf_done(struct buf *b);
/* Forgets contents and error, keeps the allocation. */
void buf_reset(struct buf *b);
/* Makes room for n more bytes. Errors: E_NOMEM, E_LIMIT. */
int buf_reserve(struct buf *b, size_t n);
/* Appends. Errors (also kept in b->error): E_NOMEM, E_LIMIT. */
int buf_append(struct buf *b, const void *data, size_t n);
int buf_append_str(struct buf *b, const char *text);
int buf_append_char(struct buf *b, char c);
int buf_printf(struct buf *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
int buf_append_u8(struct buf *b, uint8_t v);
int buf_append_u16(struct buf *b, uint16_t v);
int buf_append_u32(struct buf *b, uint32_t v);
int buf_append_u64(struct buf *b, uint64_t v);
int buf_append_f32(struct buf *b, float v);
/* Removes n bytes from the front (n <= len). */
void buf_consume(struct buf *b, size_t n);
/* The text, "" when empty. Borrows: valid until the next change. */
const char *buf_str(const struct buf *b);

/* Reads a span. A read past the end sets `failed`, returns zero, and every later read fails too, so
 * a parser may check once per record. */
struct cursor {
    const uint8_t *data;
    size_t size;
    size_t offset; /* of the next byte; stays where the first failure was */
    bool failed;
};

void cursor_init(struct cursor *c, const void *data, size_t size);
size_t cursor_left(const struct cursor *c);
uint8_t cursor_u8(struct cursor *c);
uint16_t cursor_u16(struct cursor *c);
uint32_t cursor_u32(struct cursor *c);
uint64_t cursor_u64(struct cursor *c);
float cursor_f32(struct cursor *c);
/* The next n bytes, or NULL. Borrows the span. */
const void *cursor_bytes(struct cursor *c, size_t n);

#endif
