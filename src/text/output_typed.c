/* What the text of an XML parameter means, after the tool's JSON schema. */
#include "text/output_parser_impl.h"

#include <string.h>

enum {
    TYPE_STRING = 1,
    TYPE_NUMBER = 2,
    TYPE_BOOLEAN = 4,
    TYPE_NULL = 8,
    TYPE_OBJECT = 16,
    TYPE_ARRAY = 32,
    TYPE_ANY = 63,
    SCHEMA_DEPTH_MAX = 8,
};

static unsigned type_of_name(const char *name)
{
    static const struct {
        const char *name;
        unsigned type;
    } types[] = {{"string", TYPE_STRING},   {"number", TYPE_NUMBER}, {"integer", TYPE_NUMBER},
                 {"boolean", TYPE_BOOLEAN}, {"null", TYPE_NULL},     {"object", TYPE_OBJECT},
                 {"array", TYPE_ARRAY}};
    for (size_t i = 0; name != NULL && i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(types[i].name, name) == 0)
            return types[i].type;
    return TYPE_ANY;
}

static unsigned type_of_value(const json_t *v)
{
    return json_is_string(v)    ? TYPE_STRING
           : json_is_number(v)  ? TYPE_NUMBER
           : json_is_boolean(v) ? TYPE_BOOLEAN
           : json_is_null(v)    ? TYPE_NULL
           : json_is_object(v)  ? TYPE_OBJECT
           : json_is_array(v)   ? TYPE_ARRAY
                                : 0;
}

/* Types that a schema allows; TYPE_ANY where it does not say (or says it in a way we do not read).
 */
static unsigned schema_types(const json_t *schema, unsigned depth)
{
    const json_t *type = json_object_get(schema, "type");
    const json_t *values = json_object_get(schema, "enum");
    const json_t *any = json_object_get(schema, "anyOf");
    unsigned types = 0;
    size_t i;
    json_t *item;
    if (any == NULL)
        any = json_object_get(schema, "oneOf");
    if (json_is_string(type))
        return type_of_name(json_string_value(type));
    if (json_is_array(type)) {
        json_array_foreach(type, i, item) types |= type_of_name(json_string_value(item));
    } else if (json_is_array(values)) {
        json_array_foreach(values, i, item) types |= type_of_value(item);
    } else if (json_is_array(any) && depth < SCHEMA_DEPTH_MAX) {
        json_array_foreach(any, i, item) types |= schema_types(item, depth + 1);
    } else {
        types = type_of_value(json_object_get(schema, "const"));
    }
    return types != 0 ? types : TYPE_ANY;
}

bool output_schema_is_string(const json_t *schema)
{
    return schema_types(schema, 0) == TYPE_STRING;
}

static unsigned type_of_text(const char *text, size_t len)
{
    while (len > 0 && text[0] != '\0' && strchr(" \t\r\n", text[0]) != NULL) {
        text++;
        len--;
    }
    if (!json_scan_is_value(text, len))
        return 0;
    switch (text[0]) {
    case '"':
        return TYPE_STRING;
    case '{':
        return TYPE_OBJECT;
    case '[':
        return TYPE_ARRAY;
    case 't':
    case 'f':
        return TYPE_BOOLEAN;
    case 'n':
        return TYPE_NULL;
    default:
        return TYPE_NUMBER;
    }
}

static bool text_is(const char *text, size_t len, const char *word)
{
    return len == strlen(word) && memcmp(text, word, len) == 0;
}

void output_append_typed(struct buf *out, const char *text, size_t len, const json_t *schema)
{
    unsigned allowed = schema_types(schema, 0), type = type_of_text(text, len);
    /* Python's words, which models of every family write. */
    if (type == 0 && (allowed & TYPE_BOOLEAN) != 0 && text_is(text, len, "True"))
        buf_append_str(out, "true");
    else if (type == 0 && (allowed & TYPE_BOOLEAN) != 0 && text_is(text, len, "False"))
        buf_append_str(out, "false");
    else if (type == 0 && (allowed & TYPE_NULL) != 0 && text_is(text, len, "None"))
        buf_append_str(out, "null");
    else if (type == 0)
        json_append_string(out, text, len);
    else if ((allowed & type) != 0 && (type != TYPE_STRING || allowed == TYPE_ANY))
        buf_append(out, text, len);
    else if ((allowed & TYPE_STRING) != 0)
        json_append_string(out, text, len);
    else
        buf_append(out, text, len);
}
