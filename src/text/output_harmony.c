/* gpt-oss' harmony: messages with a header, <|channel|>analysis<|message|>text<|end|>. The prompt
 * ends with <|start|>assistant, so the first header is already begun. */
#include "text/output_parser_impl.h"

#include <string.h>

enum { HEADER_BYTES_MAX = 2 * LIMIT_OUTPUT_NAME_BYTES };

static const char message[] = "<|message|>";

static const char *find_text(const char *text, size_t len, const char *needle)
{
    size_t n = strlen(needle);
    for (size_t i = 0; i + n <= len; i++)
        if (memcmp(text + i, needle, n) == 0)
            return text + i;
    return NULL;
}

static bool begin_call(struct output_parser *p, const char *recipient, size_t len,
                       size_t header_len)
{
    static const struct output_calls harmony_calls = {.syntax = OUTPUT_SYNTAX_NAMED};
    p->calls = &harmony_calls;
    p->must_be_known = false;
    output_call_reset(p);
    p->body_kind = OUTPUT_CONTENT;
    output_try(p, header_len);
    bool is_name = output_call_set_name(p, recipient, len);
    p->at += header_len;
    return is_name ? output_go(p, STATE_HARMONY_CALL) : output_fail(p);
}

static bool take_header(struct output_parser *p, size_t len)
{
    static const char channel_tag[] = "<|channel|>", to_tag[] = "to=";
    const char *header = p->input.data + p->at;
    const char *channel = find_text(header, len, channel_tag);
    const char *to = find_text(header, len, to_tag);
    size_t n = 0;
    if (to != NULL) {
        to += sizeof(to_tag) - 1;
        while (to + n < header + len && (unsigned char)to[n] > ' ' && to[n] != '<')
            n++;
        if (n > 0 && p->options.has_tools)
            return begin_call(p, to, n, len + sizeof(message) - 1);
    }
    p->body_kind = OUTPUT_CONTENT;
    if (to == NULL && channel != NULL) {
        channel += sizeof(channel_tag) - 1;
        if (find_text(channel, (size_t)(header + len - channel), "analysis") == channel)
            p->body_kind = OUTPUT_REASONING;
    }
    p->at += len + sizeof(message) - 1;
    return output_go(p, STATE_HARMONY_BODY);
}

static bool step_header(struct output_parser *p)
{
    static const char *const begins[] = {"<|channel|>", "<|start|>", "<|constrain|>",
                                         message,       " to=",      "to="};
    static const char *const ends[] = {message};
    bool is_header = false;
    size_t at, which;
    if (output_at_end(p))
        return false;
    for (size_t i = 0; i < sizeof(begins) / sizeof(begins[0]) && !is_header; i++) {
        enum output_match m = output_look(p, p->at, begins[i]);
        if (m == MATCH_MORE)
            return false;
        is_header = m == MATCH_YES;
    }
    if (is_header) {
        switch (output_find(p, p->at, HEADER_BYTES_MAX, ends, 1, &at, &which)) {
        case MATCH_YES:
            return take_header(p, at - p->at);
        case MATCH_MORE:
            return false;
        case MATCH_NO:
            break;
        }
    }
    p->body_kind = OUTPUT_CONTENT; /* an output without headers, or a broken one */
    output_emit(p, OUTPUT_CONTENT, p->input.data + p->at, 1);
    p->at++;
    return output_go(p, STATE_HARMONY_BODY);
}

static bool step_body(struct output_parser *p)
{
    static const char *const ends[] = {"<|end|>", "<|return|>", "<|call|>"};
    static const char *const begins[] = {"<|start|>", "<|channel|>"};
    if (output_at_end(p))
        return false;
    enum output_match more = MATCH_NO;
    for (size_t i = 0; i < 3 && p->input.data[p->at] == '<'; i++) {
        enum output_match m = output_skip(p, ends[i]);
        if (m == MATCH_YES)
            return output_go(p, STATE_HARMONY_HEADER);
        more = m == MATCH_MORE ? m : more;
    }
    for (size_t i = 0; i < 2 && p->input.data[p->at] == '<'; i++) {
        enum output_match m = output_look(p, p->at, begins[i]);
        if (m == MATCH_YES)
            return output_go(p, STATE_HARMONY_HEADER);
        more = m == MATCH_MORE ? m : more;
    }
    if (more == MATCH_MORE)
        return false;
    output_emit(p, p->body_kind, p->input.data + p->at, 1);
    p->at++;
    return true;
}

static bool step_call(struct output_parser *p)
{
    if (!output_skip_space(p))
        return output_more_or_fail(p);
    if (p->input.data[p->at] != '{')
        return output_fail(p);
    if (!p->options.stream_arguments)
        return output_value_start(p, VALUE_ARGUMENTS, STATE_HARMONY_BODY);
    if (!output_call_begin(p))
        return output_fail(p);
    return output_value_start(p, VALUE_STREAMED, STATE_HARMONY_BODY);
}

bool output_step_harmony(struct output_parser *p)
{
    switch (p->state) {
    case STATE_HARMONY_HEADER:
        return step_header(p);
    case STATE_HARMONY_BODY:
        return step_body(p);
    default:
        return step_call(p);
    }
}
