/* Typed reads of a GGUF file's values. */
#include "model/gguf.h"

#include <inttypes.h>
#include <string.h>

static uint64_t load_unsigned(const uint8_t *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

/* An integer kind's value as 64 bits, sign-extended for the signed kinds. Returns false for the
 * other kinds. */
static bool load_integer(enum gguf_kind kind, const uint8_t *data, uint64_t index,
                         uint64_t *ret_bits, bool *ret_signed)
{
    static const struct {
        uint8_t bytes;
        bool is_signed;
    } table[] = {
        [GGUF_KIND_U8] = {1, false},   [GGUF_KIND_I8] = {1, true},   [GGUF_KIND_U16] = {2, false},
        [GGUF_KIND_I16] = {2, true},   [GGUF_KIND_U32] = {4, false}, [GGUF_KIND_I32] = {4, true},
        [GGUF_KIND_BOOL] = {0, false}, [GGUF_KIND_U64] = {8, false}, [GGUF_KIND_I64] = {8, true},
    };
    if ((size_t)kind >= sizeof(table) / sizeof(table[0]) || table[kind].bytes == 0)
        return false;
    size_t n = table[kind].bytes;
    uint64_t v = load_unsigned(data + index * n, n);
    if (table[kind].is_signed && n < 8 && (v >> (8 * n - 1)) != 0)
        v |= UINT64_MAX << (8 * n);
    *ret_bits = v;
    *ret_signed = table[kind].is_signed;
    return true;
}

static bool load_float(enum gguf_kind kind, const uint8_t *data, uint64_t index, double *ret)
{
    if (kind == GGUF_KIND_F32) {
        uint32_t bits = (uint32_t)load_unsigned(data + index * 4, 4);
        float v;
        memcpy(&v, &bits, sizeof(v));
        *ret = (double)v;
        return true;
    }
    if (kind == GGUF_KIND_F64) {
        uint64_t bits = load_unsigned(data + index * 8, 8);
        memcpy(ret, &bits, sizeof(*ret));
        return true;
    }
    return false;
}

static int find_value(const struct gguf_file *f, const char *key, const struct gguf_value **ret,
                      struct error *err)
{
    *ret = gguf_file_find(f, key);
    return *ret != NULL ? 0 : error_set(err, E_NOTFOUND, "the file has no value '%s'", key);
}

int gguf_file_get_u64(const struct gguf_file *f, const char *key, uint64_t *ret, struct error *err)
{
    const struct gguf_value *v;
    uint64_t bits;
    bool is_signed;
    int rc = find_value(f, key, &v, err);
    if (rc != 0)
        return rc;
    if (!load_integer(v->kind, v->data, 0, &bits, &is_signed))
        return error_set(err, E_FORMAT, "value '%s' is not an integer", key);
    if (is_signed && (int64_t)bits < 0)
        return error_set(err, E_FORMAT, "value '%s' is %" PRId64 ", which is negative", key,
                         (int64_t)bits);
    *ret = bits;
    return 0;
}

int gguf_file_get_i64(const struct gguf_file *f, const char *key, int64_t *ret, struct error *err)
{
    const struct gguf_value *v;
    uint64_t bits;
    bool is_signed;
    int rc = find_value(f, key, &v, err);
    if (rc != 0)
        return rc;
    if (!load_integer(v->kind, v->data, 0, &bits, &is_signed))
        return error_set(err, E_FORMAT, "value '%s' is not an integer", key);
    if (!is_signed && bits > INT64_MAX)
        return error_set(err, E_FORMAT, "value '%s' is %" PRIu64 ", which is too large", key, bits);
    *ret = (int64_t)bits;
    return 0;
}

int gguf_file_get_f64(const struct gguf_file *f, const char *key, double *ret, struct error *err)
{
    const struct gguf_value *v;
    int rc = find_value(f, key, &v, err);
    if (rc != 0)
        return rc;
    if (!load_float(v->kind, v->data, 0, ret))
        return error_set(err, E_FORMAT, "value '%s' is not a floating-point number", key);
    return 0;
}

int gguf_file_get_bool(const struct gguf_file *f, const char *key, bool *ret, struct error *err)
{
    const struct gguf_value *v;
    int rc = find_value(f, key, &v, err);
    if (rc != 0)
        return rc;
    if (v->kind != GGUF_KIND_BOOL)
        return error_set(err, E_FORMAT, "value '%s' is neither true nor false", key);
    *ret = v->data[0] != 0;
    return 0;
}

int gguf_file_get_string(const struct gguf_file *f, const char *key, struct gguf_string *ret,
                         struct error *err)
{
    const struct gguf_value *v;
    int rc = find_value(f, key, &v, err);
    if (rc != 0)
        return rc;
    if (v->kind != GGUF_KIND_STRING)
        return error_set(err, E_FORMAT, "value '%s' is not a string", key);
    *ret = v->strings[0];
    return 0;
}

int64_t gguf_value_item_i64(const struct gguf_value *v, uint64_t index)
{
    uint64_t bits;
    bool is_signed;
    if (index >= v->count)
        return 0;
    if (v->item_kind == GGUF_KIND_BOOL)
        return v->data[index];
    return load_integer(v->item_kind, v->data, index, &bits, &is_signed) ? (int64_t)bits : 0;
}

double gguf_value_item_f64(const struct gguf_value *v, uint64_t index)
{
    double number;
    if (index >= v->count)
        return 0.0;
    return load_float(v->item_kind, v->data, index, &number) ? number : 0.0;
}
