#include "base/buf.h"

#include "base/error.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void buf_init(struct buf *b, size_t max_len)
{
    *b = (struct buf){.max_len = max_len};
}

void buf_done(struct buf *b)
{
    if (b == NULL)
        return;
    free(b->data);
    buf_init(b, b->max_len);
}

void buf_reset(struct buf *b)
{
    b->len = 0;
    b->error = 0;
    if (b->data != NULL)
        b->data[0] = '\0';
}

int buf_reserve(struct buf *b, size_t n)
{
    if (b->error != 0)
        return b->error;
    if (n > b->max_len - b->len)
        return b->error = E_LIMIT;
    size_t need = b->len + n + 1;
    if (need <= b->cap)
        return 0;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap += cap / 2;
    if (cap > b->max_len + 1)
        cap = b->max_len + 1;
    char *data = realloc(b->data, cap);
    if (data == NULL)
        return b->error = E_NOMEM;
    b->data = data;
    b->cap = cap;
    b->data[b->len] = '\0';
    return 0;
}

int buf_append(struct buf *b, const void *data, size_t n)
{
    int rc = buf_reserve(b, n);
    if (rc != 0)
        return rc;
    if (n > 0)
        memcpy(b->data + b->len, data, n);
    b->len += n;
    b->data[b->len] = '\0';
    return 0;
}

int buf_append_str(struct buf *b, const char *text)
{
    return buf_append(b, text, strlen(text));
}

int buf_append_char(struct buf *b, char c)
{
    return buf_append(b, &c, 1);
}

int buf_printf(struct buf *b, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(NULL, 0, fmt, args);
    va_end(args);
    if (n < 0)
        return b->error != 0 ? b->error : (b->error = E_INVALID);
    int rc = buf_reserve(b, (size_t)n);
    if (rc != 0)
        return rc;
    va_start(args, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, args);
    va_end(args);
    b->len += (size_t)n;
    return 0;
}

static int append_le(struct buf *b, uint64_t v, size_t n)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)(v >> (8 * i));
    return buf_append(b, bytes, n);
}

int buf_append_u8(struct buf *b, uint8_t v)
{
    return append_le(b, v, 1);
}

int buf_append_u16(struct buf *b, uint16_t v)
{
    return append_le(b, v, 2);
}

int buf_append_u32(struct buf *b, uint32_t v)
{
    return append_le(b, v, 4);
}

int buf_append_u64(struct buf *b, uint64_t v)
{
    return append_le(b, v, 8);
}

int buf_append_f32(struct buf *b, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof(bits));
    return append_le(b, bits, 4);
}

void buf_consume(struct buf *b, size_t n)
{
    assert(n <= b->len);
    if (n == 0)
        return;
    memmove(b->data, b->data + n, b->len - n);
    b->len -= n;
    b->data[b->len] = '\0';
}

const char *buf_str(const struct buf *b)
{
    return b->data != NULL ? b->data : "";
}

void cursor_init(struct cursor *c, const void *data, size_t size)
{
    *c = (struct cursor){.data = data, .size = size};
}

size_t cursor_left(const struct cursor *c)
{
    return c->failed ? 0 : c->size - c->offset;
}

const void *cursor_bytes(struct cursor *c, size_t n)
{
    if (c->failed || n > c->size - c->offset) {
        c->failed = true;
        return NULL;
    }
    const uint8_t *p = c->data + c->offset;
    c->offset += n;
    return p;
}

static uint64_t read_le(struct cursor *c, size_t n)
{
    const uint8_t *p = cursor_bytes(c, n);
    uint64_t v = 0;
    for (size_t i = 0; p != NULL && i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

uint8_t cursor_u8(struct cursor *c)
{
    return (uint8_t)read_le(c, 1);
}

uint16_t cursor_u16(struct cursor *c)
{
    return (uint16_t)read_le(c, 2);
}

uint32_t cursor_u32(struct cursor *c)
{
    return (uint32_t)read_le(c, 4);
}

uint64_t cursor_u64(struct cursor *c)
{
    return read_le(c, 8);
}

float cursor_f32(struct cursor *c)
{
    uint32_t bits = cursor_u32(c);
    float v;
    memcpy(&v, &bits, sizeof(v));
    return v;
}
