/* Calls that write each parameter between tags: Qwen3-Coder, GLM, MiniMax, Seed, DeepSeek V3.2. The
 * parameters become a JSON object; what a value is follows from the tool's schema. */
#include "text/output_parser_impl.h"

#include <string.h>

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static const json_t *schema_of(const struct output_parser *p, const char *key)
{
    const json_t *parameters = json_object_get(p->tool, "parameters");
    return json_object_get(json_object_get(parameters, "properties"), key);
}

/* Arguments go out at once, or wait with the call. */
static void append_arguments(struct output_parser *p, const char *text, size_t len)
{
    if (p->call_open)
        output_emit(p, OUTPUT_TOOL_ARGUMENTS, text, len);
    else
        buf_append(&p->arguments, text, len);
}

static bool step_open(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    const struct output_calls *c = p->calls;
    enum output_match m = c->name_begin != NULL ? output_skip(p, c->name_begin) : MATCH_YES;
    if (m == MATCH_MORE)
        return false;
    if (m == MATCH_NO)
        return output_fail(p);
    output_call_reset(p);
    p->n_keys = 0;
    p->value_at = p->at;
    return output_go(p, STATE_XML_NAME);
}

static bool step_name(struct output_parser *p)
{
    const struct output_calls *c = p->calls;
    const char *ends[] = {c->name_end != NULL ? c->name_end : "\n",
                          c->name_end != NULL ? NULL : c->key_begin,
                          c->name_end != NULL ? NULL : c->end};
    size_t at, which, from = p->value_at;
    enum output_match m = output_find(p, from, LIMIT_OUTPUT_NAME_BYTES + 16, ends, 3, &at, &which);
    if (m == MATCH_MORE)
        return false;
    size_t to = at;
    while (m == MATCH_YES && to > from && is_space(p->input.data[to - 1]))
        to--;
    if (m == MATCH_NO || !output_call_set_name(p, p->input.data + from, to - from))
        return output_fail(p);
    p->at = at + (which == 0 ? strlen(ends[0]) : 0);
    if (p->options.stream_arguments && !output_call_begin(p))
        return output_fail(p);
    append_arguments(p, "{", 1);
    return output_go(p, STATE_XML_NEXT_KEY);
}

/* The call is whole. Another one may follow inside of the same tags. */
static bool finish_call(struct output_parser *p)
{
    append_arguments(p, "}", 1);
    if (p->call_open)
        output_call_end(p, true);
    else if (!output_call_report(p))
        return output_fail(p);
    p->has_undo = false;
    p->n_keys = UINT32_MAX;
    return true;
}

/* Behind a call: the end tag, which models forget, another call, or the answer. */
static bool step_after_call(struct output_parser *p)
{
    const struct output_calls *c = p->calls;
    enum output_match end = c->end != NULL ? output_look(p, p->at, c->end) : MATCH_NO;
    enum output_match next =
        c->name_begin != NULL ? output_look(p, p->at, c->name_begin) : MATCH_NO;
    if (end != MATCH_YES && next != MATCH_YES && (end == MATCH_MORE || next == MATCH_MORE))
        return false;
    if (next == MATCH_YES) {
        output_try(p, strlen(c->name_begin));
        return output_go(p, STATE_XML_OPEN);
    }
    if (end == MATCH_YES)
        p->at += strlen(c->end);
    return output_leave(p);
}

static bool step_next_key(struct output_parser *p)
{
    const struct output_calls *c = p->calls;
    bool has_text = output_skip_space(p);
    if (p->n_keys == UINT32_MAX)
        return (has_text || p->finishing) && step_after_call(p);
    if (!has_text)
        return output_more_or_fail(p);
    const char *const tags[] = {c->key_begin, c->call_end, c->end};
    enum output_match more = MATCH_NO;
    for (size_t i = 0; i < 3; i++) {
        /* The end tag without the call's own is an end too; it is taken behind the call. */
        enum output_match m = tags[i] == NULL ? MATCH_NO
                              : i == 2        ? output_look(p, p->at, tags[i])
                                              : output_skip(p, tags[i]);
        if (m == MATCH_YES && i > 0)
            return finish_call(p);
        if (m == MATCH_YES) {
            p->value_at = p->at;
            return output_go(p, STATE_XML_KEY);
        }
        more = m == MATCH_MORE ? m : more;
    }
    return more != MATCH_MORE && output_fail(p);
}

/* DSML says of each parameter whether it is a string. */
static enum output_match take_type_flag(struct output_parser *p)
{
    enum output_match yes = output_skip(p, "true\">"), no = MATCH_NO;
    if (yes != MATCH_YES)
        no = output_skip(p, "false\">");
    p->is_string = yes == MATCH_YES;
    return yes == MATCH_YES || no == MATCH_YES     ? MATCH_YES
           : yes == MATCH_MORE || no == MATCH_MORE ? MATCH_MORE
                                                   : MATCH_NO;
}

static bool step_key(struct output_parser *p)
{
    const struct output_calls *c = p->calls;
    const char *const ends[] = {c->key_end};
    size_t at, which, from = p->value_at, max = LIMIT_OUTPUT_NAME_BYTES;
    enum output_match m = output_find(p, from, max, ends, 1, &at, &which);
    if (m == MATCH_MORE)
        return false;
    if (m == MATCH_NO || at == from || at - from > max)
        return output_fail(p);
    buf_reset(&p->key);
    buf_append(&p->key, p->input.data + from, at - from);
    p->at = at + strlen(c->key_end);
    return output_go(p, STATE_XML_VALUE_OPEN);
}

static bool step_value_open(struct output_parser *p)
{
    const struct output_calls *c = p->calls;
    enum output_match m = MATCH_YES;
    p->is_string = output_schema_is_string(schema_of(p, buf_str(&p->key)));
    if (c->has_type_flag) {
        m = take_type_flag(p);
    } else if (c->value_begin != NULL) {
        if (!output_skip_space(p))
            return output_more_or_fail(p);
        m = output_skip(p, c->value_begin);
    }
    if (m == MATCH_MORE)
        return false;
    if (m == MATCH_NO)
        return output_fail(p);
    struct buf key;
    buf_init(&key, 8u * LIMIT_OUTPUT_NAME_BYTES);
    if (p->n_keys++ > 0)
        buf_append(&key, ", ", 2);
    json_append_string(&key, p->key.data, p->key.len);
    buf_append(&key, ": ", 2);
    p->is_streamed_string = p->is_string && p->call_open;
    if (p->is_streamed_string)
        buf_append_char(&key, '"');
    append_arguments(p, buf_str(&key), key.len);
    buf_done(&key);
    buf_reset(&p->value);
    p->holds_newline = p->value_started = false;
    return output_go(p, STATE_XML_VALUE);
}

static void take_value_byte(struct output_parser *p, char c)
{
    static const char hex[] = "0123456789abcdef";
    if (!p->is_streamed_string) {
        buf_append_char(&p->value, c);
        return;
    }
    char text[8] = {'\\', c};
    size_t n = 2;
    if (c == '\n') {
        text[1] = 'n';
    } else if ((unsigned char)c < 0x20) {
        text[1] = 'u';
        text[2] = text[3] = '0';
        text[4] = hex[(unsigned char)c >> 4];
        text[5] = hex[(unsigned char)c & 15];
        n = 6;
    } else if (c != '"' && c != '\\') {
        text[0] = c;
        n = 1;
    }
    output_emit(p, OUTPUT_TOOL_ARGUMENTS, text, n);
}

static bool finish_value(struct output_parser *p)
{
    if (p->is_streamed_string) {
        output_emit(p, OUTPUT_TOOL_ARGUMENTS, "\"", 1);
        return output_go(p, STATE_XML_NEXT_KEY);
    }
    struct buf json;
    buf_init(&json, 8u * LIMIT_OUTPUT_CALL_BYTES);
    if (p->is_string)
        json_append_string(&json, buf_str(&p->value), p->value.len);
    else
        output_append_typed(&json, buf_str(&p->value), p->value.len,
                            schema_of(p, buf_str(&p->key)));
    append_arguments(p, buf_str(&json), json.len);
    if (p->rc == 0)
        p->rc = json.error;
    buf_done(&json);
    return output_go(p, STATE_XML_NEXT_KEY);
}

/* One newline behind the opening tag and one before the closing one belong to the tags, in the
 * families that have no tags of their own for values. */
static bool step_value(struct output_parser *p)
{
    if (output_at_end(p))
        return output_more_or_fail(p);
    char c = p->input.data[p->at];
    enum output_match m =
        c == p->calls->value_end[0] ? output_skip(p, p->calls->value_end) : MATCH_NO;
    if (m == MATCH_MORE)
        return false;
    if (m == MATCH_YES)
        return finish_value(p);
    bool trims = p->calls->value_begin == NULL && !p->calls->has_type_flag;
    bool is_first = !p->value_started;
    p->value_started = true;
    p->at++;
    if (trims && c == '\n' && is_first)
        return true;
    if (p->holds_newline)
        take_value_byte(p, '\n');
    p->holds_newline = trims && c == '\n';
    if (!p->holds_newline)
        take_value_byte(p, c);
    return p->value.len <= LIMIT_OUTPUT_CALL_BYTES || output_fail(p);
}

bool output_step_xml(struct output_parser *p)
{
    switch (p->state) {
    case STATE_XML_OPEN:
        return step_open(p);
    case STATE_XML_NAME:
        return step_name(p);
    case STATE_XML_NEXT_KEY:
        return step_next_key(p);
    case STATE_XML_KEY:
        return step_key(p);
    case STATE_XML_VALUE_OPEN:
        return step_value_open(p);
    default:
        return step_value(p);
    }
}
