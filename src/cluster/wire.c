#include "cluster/wire.h"

#include "base/utf8.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

int wire_put_text(struct buf *b, const char *text)
{
    size_t len = strlen(text);
    if (len > UINT16_MAX)
        len = UINT16_MAX;
    buf_append_u16(b, (uint16_t)len);
    return buf_append(b, text, len);
}

int wire_put_id(struct buf *b, const struct node_id *id)
{
    return buf_append(b, id->bytes, sizeof(id->bytes));
}

static bool is_for_people(const char *text, size_t len)
{
    for (size_t at = 0; at < len;) {
        size_t n = utf8_sequence_length(text + at, len - at);
        if (n == 0 || (unsigned char)text[at] < 0x20 || text[at] == 0x7f)
            return false;
        at += n;
    }
    return true;
}

bool wire_is_name(const char *text, size_t size)
{
    size_t len = strnlen(text, size);
    return len < size && is_for_people(text, len);
}

int wire_get_text(struct cursor *c, enum wire_text kind, char *ret_text, size_t size,
                  const char *field, struct error *err)
{
    size_t len = cursor_u16(c);
    const char *bytes = len < size ? cursor_bytes(c, len) : NULL;
    ret_text[0] = '\0';
    if (len >= size)
        return error_set(err, E_PROTOCOL, "%s has %zu bytes; %zu are allowed", field, len,
                         size - 1);
    if (c->failed)
        return wire_check(c, field, err);
    if (memchr(bytes, '\0', len) != NULL || (kind == WIRE_NAME && !is_for_people(bytes, len)))
        return error_set(err, E_PROTOCOL, "%s is no clean text", field);
    memcpy(ret_text, bytes, len);
    ret_text[len] = '\0';
    return 0;
}

struct node_id wire_get_id(struct cursor *c)
{
    struct node_id id = {0};
    const void *bytes = cursor_bytes(c, sizeof(id.bytes));
    if (bytes != NULL)
        memcpy(id.bytes, bytes, sizeof(id.bytes));
    return id;
}

static int check_max(uint64_t v, uint64_t max, const char *field, struct error *err)
{
    if (v <= max)
        return 0;
    return error_set(err, E_PROTOCOL, "%s is %" PRIu64 "; at most %" PRIu64 " is allowed", field, v,
                     max);
}

int wire_get_u8(struct cursor *c, uint32_t max, uint32_t *ret, const char *field, struct error *err)
{
    *ret = cursor_u8(c);
    return check_max(*ret, max, field, err);
}

int wire_get_u32(struct cursor *c, uint32_t max, uint32_t *ret, const char *field,
                 struct error *err)
{
    *ret = cursor_u32(c);
    return check_max(*ret, max, field, err);
}

int wire_get_u64(struct cursor *c, uint64_t max, uint64_t *ret, const char *field,
                 struct error *err)
{
    *ret = cursor_u64(c);
    return check_max(*ret, max, field, err);
}

int wire_get_bool(struct cursor *c, bool *ret, const char *field, struct error *err)
{
    uint32_t v;
    int rc = wire_get_u8(c, 1, &v, field, err);
    *ret = v != 0;
    return rc;
}

int wire_get_f32(struct cursor *c, float *ret, const char *field, struct error *err)
{
    *ret = cursor_f32(c);
    if (isfinite(*ret) && !signbit(*ret))
        return 0;
    return error_set(err, E_PROTOCOL, "%s is %g; finite and not negative is allowed", field,
                     (double)*ret);
}

int wire_check(const struct cursor *c, const char *what, struct error *err)
{
    if (!c->failed)
        return 0;
    return error_set(err, E_PROTOCOL, "%s is cut off at byte %zu", what, c->offset);
}
