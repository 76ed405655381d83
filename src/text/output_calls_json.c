/* Calls as JSON objects: {"name": ..., "arguments": {...}}, alone, one after another or in a list;
 * and the reading of one JSON value, which other syntaxes use too. */
#include "text/output_parser_impl.h"

#include <string.h>

/* -- one value -------------------------------------------------------------------------------- */

bool output_value_start(struct output_parser *p, enum output_value kind, enum output_state after)
{
    p->value_kind = kind;
    p->value_at = p->at;
    p->after_value = after;
    json_scan_init(&p->scan);
    return output_go(p, STATE_VALUE);
}

static void take_argument_byte(struct output_parser *p, char c, bool in_string)
{
    static const char hex[] = "0123456789abcdef";
    char text[8] = {c};
    size_t n = 1;
    if (in_string && (unsigned char)c < 0x20) { /* a control character that must be escaped */
        static const char *const known[32] = {['\t'] = "\\t", ['\n'] = "\\n", ['\r'] = "\\r"};
        const char *escaped = known[(unsigned char)c];
        n = escaped != NULL ? 2 : 6;
        memcpy(text, escaped != NULL ? escaped : "\\u00", escaped != NULL ? 2 : 4);
        if (escaped == NULL) {
            text[4] = hex[(unsigned char)c >> 4];
            text[5] = hex[(unsigned char)c & 15];
        }
    }
    if (p->value_kind == VALUE_STREAMED)
        output_emit(p, OUTPUT_TOOL_ARGUMENTS, text, n);
    else
        buf_append(&p->arguments, text, n);
}

/* The text of the JSON string that was just read. False: it is no string that C can hold. */
static bool decode_string(const char *text, size_t len, struct buf *out)
{
    json_t *value = json_loadb(text, len, JSON_DECODE_ANY, NULL);
    bool is_string = json_is_string(value);
    buf_reset(out);
    if (is_string)
        buf_append(out, json_string_value(value), json_string_length(value));
    json_decref(value);
    return is_string && out->error == 0;
}

static bool is_object_text(const char *text, size_t len)
{
    while (len > 0 && strchr(" \t\r\n", *text) != NULL && *text != '\0') {
        text++;
        len--;
    }
    return len > 0 && *text == '{' && json_scan_is_value(text, len);
}

/* Models also write arguments as a string with JSON in it, or as null. */
static bool normalize_arguments(struct output_parser *p)
{
    struct buf *a = &p->arguments;
    const char *text = buf_str(a);
    if (text[0] == '{')
        return true;
    if (strcmp(text, "null") == 0) {
        buf_reset(a);
        return true;
    }
    struct buf decoded;
    buf_init(&decoded, LIMIT_OUTPUT_CALL_BYTES);
    bool good = text[0] == '"' && decode_string(text, a->len, &decoded) &&
                (decoded.len == 0 || is_object_text(decoded.data, decoded.len));
    buf_reset(a);
    if (good)
        buf_append(a, decoded.data, decoded.len);
    buf_done(&decoded);
    return good;
}

static bool finish_value(struct output_parser *p)
{
    const char *raw = p->input.data + p->value_at;
    size_t len = p->at - p->value_at;
    p->state = p->after_value;
    switch (p->value_kind) {
    case VALUE_SKIPPED:
        return true;
    case VALUE_KEY:
        if (!decode_string(raw, len, &p->key))
            buf_reset(&p->key); /* no key of ours */
        return true;
    case VALUE_NAME: {
        struct buf name;
        buf_init(&name, 2u * LIMIT_OUTPUT_NAME_BYTES);
        bool good =
            decode_string(raw, len, &name) && output_call_set_name(p, buf_str(&name), name.len);
        buf_done(&name);
        if (!good)
            return output_fail(p);
        break;
    }
    case VALUE_ARGUMENTS:
        if (!normalize_arguments(p))
            return output_fail(p);
        p->has_arguments = true;
        break;
    case VALUE_STREAMED:
        p->has_arguments = true;
        output_call_end(p, true);
        return true;
    }
    if (p->has_name && p->has_arguments && !output_call_report(p))
        return output_fail(p);
    return true;
}

static bool step_value(struct output_parser *p)
{
    bool at_end = output_at_end(p);
    if (at_end && !p->finishing)
        return false;
    char c = at_end ? ' ' : p->input.data[p->at];
    bool in_string = json_scan_in_string(&p->scan);
    enum json_scan_result r = json_scan_byte(&p->scan, c);
    if (r == JSON_SCAN_BAD || (at_end && r != JSON_SCAN_DONE_BEFORE))
        return output_fail(p);
    if (r != JSON_SCAN_DONE_BEFORE) {
        if (p->value_kind >= VALUE_ARGUMENTS)
            take_argument_byte(p, c, in_string);
        p->at++;
    }
    return r == JSON_SCAN_MORE || finish_value(p);
}

/* -- one object ------------------------------------------------------------------------------- */

static bool key_is(const struct output_parser *p, const char *key)
{
    return strcmp(buf_str(&p->key), key) == 0;
}

static bool step_key(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    char c = p->input.data[p->at];
    if (c == '}')
        return output_go(p, STATE_OBJECT_NEXT);
    if (c != '"')
        return output_fail(p);
    return output_value_start(p, VALUE_KEY, STATE_OBJECT_COLON);
}

static bool step_colon(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    if (p->input.data[p->at] != ':')
        return output_fail(p);
    p->at++;
    return output_go(p, STATE_OBJECT_VALUE);
}

static bool begin_arguments(struct output_parser *p, char c)
{
    if (p->options.stream_arguments && p->has_name && c == '{') {
        if (!output_call_begin(p))
            return output_fail(p);
        return output_value_start(p, VALUE_STREAMED, STATE_OBJECT_NEXT);
    }
    buf_reset(&p->arguments);
    return output_value_start(p, VALUE_ARGUMENTS, STATE_OBJECT_NEXT);
}

static bool step_object_value(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    char c = p->input.data[p->at];
    bool is_function = key_is(p, "function");
    if (is_function && c == '{' && p->level == 0) {
        p->level++;
        p->at++;
        return output_go(p, STATE_OBJECT_KEY);
    }
    if ((key_is(p, "name") || key_is(p, "tool_name") || is_function) && !p->has_name)
        return c == '"' ? output_value_start(p, VALUE_NAME, STATE_OBJECT_NEXT) : output_fail(p);
    if ((key_is(p, "arguments") || key_is(p, "parameters")) && !p->has_arguments)
        return begin_arguments(p, c);
    /* Bare objects with other keys are answers in JSON. */
    if (p->calls->begin == NULL && !p->is_reported && !key_is(p, "type") && !key_is(p, "id"))
        return output_fail(p);
    return output_value_start(p, VALUE_SKIPPED, STATE_OBJECT_NEXT);
}

static bool object_done(struct output_parser *p)
{
    if (!p->is_reported && (!p->has_name || p->calls->begin == NULL || !output_call_report(p)))
        return output_fail(p);
    p->has_undo = false;
    return output_go(p, STATE_JSON_NEXT_ITEM);
}

static bool step_object_next(struct output_parser *p)
{
    bool has_text = output_skip_space(p);
    if (!has_text && !p->finishing)
        return false;
    char c = has_text ? p->input.data[p->at] : '\0';
    if (c == '}') {
        p->at++;
        return p->level-- > 0 || object_done(p);
    }
    if (c == ',') {
        if (p->is_reported)
            output_try(p, 0);
        p->at++;
        return output_go(p, STATE_OBJECT_KEY);
    }
    /* Small models forget the last brace. */
    return p->is_reported ? object_done(p) : output_fail(p);
}

/* -- the list --------------------------------------------------------------------------------- */

static bool step_open(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    if (p->input.data[p->at] == '[') {
        p->in_list = true;
        p->at++;
    }
    return output_go(p, STATE_JSON_ITEM);
}

static bool step_item(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    if (p->input.data[p->at] != '{')
        return output_fail(p);
    p->at++;
    output_call_reset(p);
    return output_go(p, STATE_OBJECT_KEY);
}

/* The end tag, which models forget. */
static bool step_close(struct output_parser *p)
{
    if (!output_skip_space(p) && !p->finishing)
        return false;
    return output_skip(p, p->calls->end) != MATCH_MORE && output_leave(p);
}

static bool step_next_item(struct output_parser *p)
{
    if (!output_skip_space(p))
        return p->finishing && output_leave(p);
    char c = p->input.data[p->at];
    if (c == ',' || (c == ';' && !p->in_list) || (c == '{' && !p->in_list)) {
        output_try(p, 0);
        p->at += c == '{' ? 0 : 1;
        return output_go(p, STATE_JSON_ITEM);
    }
    if (c == ']' && p->in_list) {
        p->in_list = false;
        p->at++;
    }
    return output_go(p, STATE_JSON_CLOSE);
}

bool output_step_calls(struct output_parser *p)
{
    switch (p->state) {
    case STATE_VALUE:
        return step_value(p);
    case STATE_JSON_OPEN:
        return step_open(p);
    case STATE_JSON_ITEM:
        return step_item(p);
    case STATE_JSON_NEXT_ITEM:
        return step_next_item(p);
    case STATE_JSON_CLOSE:
        return step_close(p);
    case STATE_OBJECT_KEY:
        return step_key(p);
    case STATE_OBJECT_COLON:
        return step_colon(p);
    case STATE_OBJECT_VALUE:
        return step_object_value(p);
    default:
        return step_object_next(p);
    }
}
