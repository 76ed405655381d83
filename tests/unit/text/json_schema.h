/* Whether a JSON value follows a JSON schema, for the keywords that the tests use; written from the
 * specification (2020-12), without a look at what the grammar engine makes of it. */
#ifndef SHOAL_TESTS_JSON_SCHEMA_H
#define SHOAL_TESTS_JSON_SCHEMA_H

#define PCRE2_CODE_UNIT_WIDTH 8
#include <jansson.h>
#include <math.h>
#include <pcre2.h>
#include <stdbool.h>
#include <string.h>

static inline bool schema_accepts(const json_t *root, const json_t *schema, const json_t *v);

static inline bool schema_has_type(const char *type, const json_t *v)
{
    return strcmp(type, "object") == 0    ? json_is_object(v)
           : strcmp(type, "array") == 0   ? json_is_array(v)
           : strcmp(type, "string") == 0  ? json_is_string(v)
           : strcmp(type, "boolean") == 0 ? json_is_boolean(v)
           : strcmp(type, "null") == 0    ? json_is_null(v)
           : strcmp(type, "number") == 0  ? json_is_number(v)
           : strcmp(type, "integer") == 0
               ? json_is_integer(v) ||
                     (json_is_real(v) && json_real_value(v) == floor(json_real_value(v)))
               : false;
}

static inline bool schema_type(const json_t *type, const json_t *v)
{
    size_t i;
    const json_t *one;
    if (json_is_string(type))
        return schema_has_type(json_string_value(type), v);
    json_array_foreach(type, i, one) if (schema_has_type(json_string_value(one), v)) return true;
    return type == NULL;
}

static inline size_t schema_n_characters(const json_t *v)
{
    size_t n = 0;
    const char *s = json_string_value(v);
    for (size_t i = 0; i < json_string_length(v); i++)
        n += (s[i] & 0xC0) != 0x80;
    return n;
}

static inline bool schema_matches(const char *pattern, const json_t *v)
{
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                   PCRE2_UTF | PCRE2_DOLLAR_ENDONLY, &code, &at, NULL);
    if (re == NULL)
        return false;
    pcre2_match_data *data = pcre2_match_data_create_from_pattern(re, NULL);
    int n =
        pcre2_match(re, (PCRE2_SPTR)json_string_value(v), json_string_length(v), 0, 0, data, NULL);
    pcre2_match_data_free(data);
    pcre2_code_free(re);
    return n >= 0;
}

static inline double schema_number(const json_t *schema, const char *key, double absent)
{
    const json_t *n = json_object_get(schema, key);
    return n != NULL ? json_number_value(n) : absent;
}

static inline bool schema_object(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *properties = json_object_get(schema, "properties"),
                 *more = json_object_get(schema, "additionalProperties"), *name, *value;
    const char *key;
    size_t i;
    json_array_foreach(json_object_get(schema, "required"), i,
                       name) if (json_object_get(v, json_string_value(name)) == NULL) return false;
    json_object_foreach((json_t *)(uintptr_t)v, key, value)
    {
        const json_t *known = json_object_get(properties, key);
        if (known == NULL)
            known = more;
        if (known != NULL && !schema_accepts(root, known, value))
            return false;
    }
    double n = (double)json_object_size(v);
    return n >= schema_number(schema, "minProperties", 0) &&
           n <= schema_number(schema, "maxProperties", INFINITY);
}

static inline bool schema_array(const json_t *root, const json_t *schema, const json_t *v)
{
    const json_t *first = json_object_get(schema, "prefixItems"),
                 *items = json_object_get(schema, "items"), *value;
    size_t i;
    json_array_foreach(v, i, value)
    {
        const json_t *one = i < json_array_size(first) ? json_array_get(first, i) : items;
        if (one != NULL && !schema_accepts(root, one, value))
            return false;
    }
    double n = (double)json_array_size(v);
    return n >= schema_number(schema, "minItems", 0) &&
           n <= schema_number(schema, "maxItems", INFINITY);
}

static inline bool schema_scalar(const json_t *schema, const json_t *v)
{
    const json_t *pattern = json_object_get(schema, "pattern");
    if (json_is_string(v)) {
        double n = (double)schema_n_characters(v);
        return n >= schema_number(schema, "minLength", 0) &&
               n <= schema_number(schema, "maxLength", INFINITY) &&
               (pattern == NULL || schema_matches(json_string_value(pattern), v));
    }
    if (!json_is_number(v))
        return true;
    double x = json_number_value(v), step = schema_number(schema, "multipleOf", 0);
    return x >= schema_number(schema, "minimum", -INFINITY) &&
           x <= schema_number(schema, "maximum", INFINITY) &&
           x > schema_number(schema, "exclusiveMinimum", -INFINITY) &&
           x < schema_number(schema, "exclusiveMaximum", INFINITY) &&
           (step == 0 || fabs(x / step - round(x / step)) < 1e-9);
}

static inline size_t schema_count(const json_t *root, const json_t *schema, const char *key,
                                  const json_t *v)
{
    size_t i, n = 0;
    const json_t *one;
    json_array_foreach(json_object_get(schema, key), i, one) n += schema_accepts(root, one, v);
    return n;
}

/* "#" or "#/a/b". */
static inline const json_t *schema_resolve(const json_t *root, const char *ref)
{
    char path[256];
    const json_t *at = root;
    snprintf(path, sizeof(path), "%s", ref);
    for (char *save, *part = strtok_r(path, "/", &save); part != NULL;
         part = strtok_r(NULL, "/", &save))
        at = strcmp(part, "#") == 0 ? root : json_object_get(at, part);
    return at;
}

static inline bool schema_is_one_of(const json_t *list, const json_t *v)
{
    size_t i;
    const json_t *one;
    json_array_foreach(list, i, one) if (json_equal(one, v)) return true;
    return false;
}

static inline bool schema_accepts(const json_t *root, const json_t *schema, const json_t *v)
{
    if (json_is_boolean(schema))
        return json_is_true(schema);
    const json_t *ref = json_object_get(schema, "$ref"), *same = json_object_get(schema, "const"),
                 *list = json_object_get(schema, "enum");
    if (ref != NULL && !schema_accepts(root, schema_resolve(root, json_string_value(ref)), v))
        return false;
    if (!schema_type(json_object_get(schema, "type"), v) ||
        (same != NULL && !json_equal(same, v)) || (list != NULL && !schema_is_one_of(list, v)))
        return false;
    if (json_object_get(schema, "anyOf") != NULL && schema_count(root, schema, "anyOf", v) == 0)
        return false;
    if (json_object_get(schema, "oneOf") != NULL && schema_count(root, schema, "oneOf", v) != 1)
        return false;
    if (schema_count(root, schema, "allOf", v) != json_array_size(json_object_get(schema, "allOf")))
        return false;
    return json_is_object(v)  ? schema_object(root, schema, v)
           : json_is_array(v) ? schema_array(root, schema, v)
                              : schema_scalar(schema, v);
}

#endif
