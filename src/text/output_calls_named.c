/* Calls that write the name in front of the arguments: Mistral, DeepSeek, Kimi, Functionary. */
#include "text/output_parser_impl.h"

#include <string.h>

enum { NAME_SPAN_MAX = LIMIT_OUTPUT_NAME_BYTES + 64 }; /* with white space and an id */

static const char call_id[] = "[CALL_ID]", fence[] = "```", json_fence[] = "```json";

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* Takes the name out of the text: white space around it and Kimi's ":0" behind it go. */
static bool take_name(struct output_parser *p, size_t from, size_t to)
{
    const char *text = p->input.data;
    while (from < to && is_space(text[from]))
        from++;
    while (to > from && is_space(text[to - 1]))
        to--;
    size_t digits = to;
    while (digits > from && text[digits - 1] >= '0' && text[digits - 1] <= '9')
        digits--;
    if (digits < to && digits > from + 1 && text[digits - 1] == ':')
        to = digits - 1;
    return output_call_set_name(p, text + from, to - from);
}

static bool step_open(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    const struct output_calls *c = p->calls;
    char byte = p->input.data[p->at];
    if (c->call_begin == NULL && (byte == '[' || byte == '{'))
        return output_go(p, STATE_JSON_OPEN); /* Mistral's older way behind the same marker */
    if (output_skip(p, c->call_begin) == MATCH_MORE)
        return false;
    output_call_reset(p);
    p->value_at = p->at;
    return output_go(p, STATE_NAMED_NAME);
}

static bool step_name(struct output_parser *p)
{
    const struct output_calls *c = p->calls;
    const char *ends[] = {c->name_end, c->call_begin == NULL ? "{" : NULL,
                          c->call_begin == NULL ? call_id : NULL};
    size_t at, which;
    switch (output_find(p, p->value_at, NAME_SPAN_MAX, ends, 3, &at, &which)) {
    case MATCH_NO:
        return output_fail(p);
    case MATCH_MORE:
        return false;
    case MATCH_YES:
        break;
    }
    if (which == 2) { /* the id is ours to choose: passed over */
        size_t id_end;
        enum output_match m = output_find(p, at, NAME_SPAN_MAX, ends, 2, &id_end, &which);
        if (m == MATCH_MORE)
            return false;
        if (m == MATCH_NO || !take_name(p, p->value_at, at))
            return output_fail(p);
        at = id_end;
    } else if (!take_name(p, p->value_at, at)) {
        return output_fail(p);
    }
    p->at = at + (which == 0 ? strlen(ends[0]) : 0);
    return output_go(p, STATE_NAMED_BODY);
}

/* DeepSeek R1 and V3: the type stood where the name was looked for; name and fence follow. */
static enum output_match take_fenced_name(struct output_parser *p)
{
    static const char *const ends[] = {"\n", "{", fence};
    size_t at, which;
    enum output_match m = output_find(p, p->at, NAME_SPAN_MAX, ends, 3, &at, &which);
    if (m != MATCH_YES)
        return m;
    if (!take_name(p, p->at, at))
        return MATCH_NO;
    p->at = at;
    return MATCH_YES;
}

static bool step_body(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    if (p->input.data[p->at] == '{') {
        if (!p->options.stream_arguments) {
            buf_reset(&p->arguments);
            return output_value_start(p, VALUE_ARGUMENTS, STATE_NAMED_CLOSE);
        }
        if (!output_call_begin(p))
            return output_fail(p);
        return output_value_start(p, VALUE_STREAMED, STATE_NAMED_CLOSE);
    }
    if (!p->calls->has_fence)
        return output_fail(p);
    enum output_match m = output_skip(p, json_fence);
    if (m == MATCH_NO)
        m = output_skip(p, fence);
    if (m == MATCH_NO)
        m = take_fenced_name(p);
    if (m == MATCH_MORE)
        return false;
    return m == MATCH_YES || output_fail(p);
}

static bool step_close(struct output_parser *p)
{
    if (!output_skip_space(p) && !p->finishing)
        return false;
    enum output_match m = p->calls->has_fence ? output_skip(p, fence) : MATCH_NO;
    if (m != MATCH_NO)
        return m == MATCH_YES;
    if (output_skip(p, p->calls->call_end) == MATCH_MORE)
        return false;
    p->has_undo = false;
    return p->calls->end != NULL ? output_go(p, STATE_NAMED_NEXT) : output_leave(p);
}

static bool step_next(struct output_parser *p)
{
    if (!output_skip_space(p) && !p->finishing)
        return false;
    enum output_match m = output_look(p, p->at, p->calls->call_begin);
    if (m == MATCH_MORE)
        return false;
    if (m == MATCH_YES) {
        output_try(p, strlen(p->calls->call_begin));
        return output_go(p, STATE_NAMED_OPEN);
    }
    return output_skip(p, p->calls->end) != MATCH_MORE && output_leave(p);
}

bool output_step_named(struct output_parser *p)
{
    switch (p->state) {
    case STATE_NAMED_OPEN:
        return step_open(p);
    case STATE_NAMED_NAME:
        return step_name(p);
    case STATE_NAMED_BODY:
        return step_body(p);
    case STATE_NAMED_CLOSE:
        return step_close(p);
    default:
        return step_next(p);
    }
}
