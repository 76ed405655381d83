#include "base/json.h"

#include "base/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

int json_parse(const char *text, size_t len, json_t **ret_value, struct error *err)
{
    json_error_t cause;
    /* jansson's own nesting bound (JSON_PARSER_MAX_DEPTH, 2048) keeps the stack safe. */
    json_t *value = json_loadb(text, len, JSON_ALLOW_NUL | JSON_DECODE_ANY, &cause);
    if (value == NULL)
        return error_set(err, E_FORMAT, "invalid JSON at line %d, column %d: %s", cause.line,
                         cause.column, cause.text);
    *ret_value = value;
    return 0;
}

int json_append_string(struct buf *b, const char *text, size_t len)
{
    buf_append_char(b, '"');
    for (size_t i = 0; i < len;) {
        unsigned char c = (unsigned char)text[i];
        size_t n = utf8_sequence_length(text + i, len - i);
        if (n == 0) {
            buf_append_str(b, "\xEF\xBF\xBD");
            i++;
        } else if (n > 1) {
            buf_append(b, text + i, n);
            i += n;
        } else {
            if (c == '"' || c == '\\') {
                buf_append_char(b, '\\');
                buf_append_char(b, (char)c);
            } else if (c == '\n') {
                buf_append_str(b, "\\n");
            } else if (c < ' ' || c == 0x7f) {
                buf_printf(b, "\\u%04x", c);
            } else {
                size_t run = 1; /* plain ASCII goes out in one piece */
                while (i + run < len && (unsigned char)text[i + run] >= ' ' &&
                       (unsigned char)text[i + run] < 0x7f && text[i + run] != '"' &&
                       text[i + run] != '\\')
                    run++;
                buf_append(b, text + i, run);
                i += run - 1;
            }
            i++;
        }
    }
    return buf_append_char(b, '"');
}

int json_append_double(struct buf *b, double v)
{
    if (!isfinite(v))
        return buf_append_str(b, "null");
    char text[40];
    for (int digits = 6; digits <= 17; digits++) {
        snprintf(text, sizeof(text), "%.*g", digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    return buf_append_str(b, text);
}

static int append_chunk(const char *data, size_t n, void *arg)
{
    return buf_append(arg, data, n) == 0 ? 0 : -1;
}

int json_append_value(struct buf *b, const json_t *value)
{
    if (json_dump_callback(value, append_chunk, b, JSON_COMPACT | JSON_ENCODE_ANY) != 0 &&
        b->error == 0)
        b->error = E_NOMEM;
    return b->error;
}
