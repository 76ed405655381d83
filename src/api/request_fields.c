#include "api/request_fields.h"

#include <string.h>

json_t *field_get(const json_t *object, const char *name)
{
    json_t *v = json_object_get(object, name);
    return json_is_null(v) ? NULL : v;
}

const char *field_kind(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}

int field_refuse_type(struct api_error *e, const char *path, const char *wanted, const json_t *v)
{
    return api_error_set(e, 400, "invalid_type", path,
                         "Invalid type for '%s': expected %s, but got %s instead.", path, wanted,
                         v != NULL ? field_kind(v) : "nothing");
}

int field_refuse_value(struct api_error *e, const char *path, const char *why)
{
    return api_error_set(e, 400, "invalid_value", path, "Invalid value for '%s': %s", path, why);
}

int field_refuse_feature(struct api_error *e, const char *path, const char *why)
{
    return api_error_set(e, 400, "unsupported_parameter", path, "Unsupported parameter '%s': %s",
                         path, why);
}

int field_refuse_missing(struct api_error *e, const char *path)
{
    return api_error_set(e, 400, "missing_required_parameter", path,
                         "Missing required parameter: '%s'.", path);
}

int field_bool(struct api_error *e, const json_t *object, const char *name, const char *path,
               bool *ret)
{
    const json_t *v = field_get(object, name);
    if (v == NULL)
        return 0;
    if (!json_is_boolean(v))
        return field_refuse_type(e, path != NULL ? path : name, "a boolean", v);
    *ret = json_is_true(v);
    return 0;
}

int field_number(struct api_error *e, const json_t *object, const char *name, const char *path,
                 double min, double max, float *ret)
{
    const json_t *v = field_get(object, name);
    path = path != NULL ? path : name;
    if (v == NULL)
        return 0;
    if (!json_is_number(v))
        return field_refuse_type(e, path, "a number", v);
    double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return api_error_set(e, 400, "invalid_value", path,
                             "Invalid '%s': %g is not between %g and %g.", path, x, min, max);
    *ret = (float)x;
    return 0;
}

int field_integer(struct api_error *e, const json_t *object, const char *name, const char *path,
                  json_int_t min, json_int_t max, json_int_t *ret)
{
    const json_t *v = field_get(object, name);
    path = path != NULL ? path : name;
    if (v == NULL)
        return 0;
    if (!json_is_integer(v))
        return field_refuse_type(e, path, "an integer", v);
    json_int_t x = json_integer_value(v);
    if (x < min || x > max)
        return api_error_set(e, 400, "invalid_value", path,
                             "Invalid '%s': %" JSON_INTEGER_FORMAT
                             " is not between %" JSON_INTEGER_FORMAT " and %" JSON_INTEGER_FORMAT
                             ".",
                             path, x, min, max);
    *ret = x;
    return 0;
}

int field_string(struct api_error *e, const json_t *object, const char *name, const char *path,
                 const char **ret)
{
    const json_t *v = field_get(object, name);
    path = path != NULL ? path : name;
    if (v == NULL)
        return 0;
    if (!json_is_string(v))
        return field_refuse_type(e, path, "a string", v);
    if (strlen(json_string_value(v)) != json_string_length(v))
        return field_refuse_value(e, path, "it has a NUL character.");
    *ret = json_string_value(v);
    return 0;
}

static int read_typed(struct api_error *e, const json_t *object, const char *name, const char *path,
                      json_type type, const char *wanted, json_t **ret)
{
    json_t *v = field_get(object, name);
    *ret = NULL;
    if (v != NULL && json_typeof(v) != type)
        return field_refuse_type(e, path != NULL ? path : name, wanted, v);
    *ret = v;
    return 0;
}

int field_object(struct api_error *e, const json_t *object, const char *name, const char *path,
                 json_t **ret)
{
    return read_typed(e, object, name, path, JSON_OBJECT, "an object", ret);
}

int field_array(struct api_error *e, const json_t *object, const char *name, const char *path,
                json_t **ret)
{
    return read_typed(e, object, name, path, JSON_ARRAY, "an array", ret);
}

bool field_is_plain_name(const char *text, size_t len, size_t max)
{
    return len > 0 && len <= max &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == len;
}
