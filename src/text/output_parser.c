#include "text/output_parser_impl.h"

#include <stdlib.h>
#include <string.h>

enum {
    OUT_FLUSH_BYTES = 4096,
    /* Broken calls up to this long are read again as text, in which calls may begin; longer ones
     * are text as a whole, so that hostile output cannot make us read it again and again. */
    REREAD_BYTES_MAX = 4096,
};

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/* -- giving out ------------------------------------------------------------------------------- */

static void fail_with(struct output_parser *p, int rc)
{
    if (p->rc == 0)
        p->rc = rc;
}

static void call_sink(struct output_parser *p, const struct output_piece *piece)
{
    if (p->rc == 0)
        p->rc = p->sink(p->sink_arg, piece);
}

static void flush(struct output_parser *p)
{
    struct output_piece piece = {.kind = p->out_kind, .text = p->out.data, .len = p->out.len};
    if (p->out_kind == OUTPUT_TOOL_ARGUMENTS)
        piece.index = p->n_calls - 1;
    if (p->out.len > 0)
        call_sink(p, &piece);
    buf_reset(&p->out);
}

void output_emit(struct output_parser *p, enum output_piece_kind kind, const char *text, size_t len)
{
    if (len == 0)
        return;
    if (p->out_kind != kind || p->out.len >= OUT_FLUSH_BYTES)
        flush(p);
    p->out_kind = kind;
    fail_with(p, buf_append(&p->out, text, len));
}

static void emit_content(struct output_parser *p, const char *text, size_t len)
{
    if (len == 0)
        return;
    output_emit(p, OUTPUT_CONTENT, text, len);
    p->content_started = true;
    p->trim_leading = false;
    p->line_started = text[len - 1] != '\n';
}

/* White space that waited goes out in front of the text. */
static void emit_space(struct output_parser *p, enum output_piece_kind kind)
{
    if (kind == OUTPUT_CONTENT)
        emit_content(p, p->space.data, p->space.len);
    else
        output_emit(p, kind, p->space.data, p->space.len);
    buf_reset(&p->space);
}

/* -- looking at the input --------------------------------------------------------------------- */

bool output_at_end(const struct output_parser *p)
{
    return p->at == p->input.len;
}

enum output_match output_look(const struct output_parser *p, size_t at, const char *literal)
{
    size_t n = strlen(literal), left = p->input.len - at;
    if (left >= n)
        return memcmp(p->input.data + at, literal, n) == 0 ? MATCH_YES : MATCH_NO;
    if (left > 0 && memcmp(p->input.data + at, literal, left) != 0)
        return MATCH_NO;
    return p->finishing ? MATCH_NO : MATCH_MORE;
}

enum output_match output_find(const struct output_parser *p, size_t from, size_t max,
                              const char *const *literals, size_t n, size_t *ret_at,
                              size_t *ret_which)
{
    for (size_t at = from; at < p->input.len && at - from <= max; at++) {
        for (size_t i = 0; i < n; i++) {
            enum output_match m = literals[i] != NULL ? output_look(p, at, literals[i]) : MATCH_NO;
            *ret_at = at;
            *ret_which = i;
            if (m != MATCH_NO)
                return m;
        }
    }
    return p->input.len - from > max || p->finishing ? MATCH_NO : MATCH_MORE;
}

/* Judged by what was read, not by what has arrived, so that pushes may be cut anywhere. */
static bool is_too_long(const struct output_parser *p)
{
    return p->has_undo && p->at - p->undo > LIMIT_OUTPUT_CALL_BYTES;
}

bool output_skip_space(struct output_parser *p)
{
    while (p->at < p->input.len && is_space(p->input.data[p->at]) && !is_too_long(p))
        p->at++;
    return p->at < p->input.len;
}

enum output_match output_skip(struct output_parser *p, const char *literal)
{
    enum output_match m = literal != NULL ? output_look(p, p->at, literal) : MATCH_NO;
    if (m == MATCH_YES)
        p->at += strlen(literal);
    return m;
}

/* -- deciding --------------------------------------------------------------------------------- */

bool output_go(struct output_parser *p, enum output_state state)
{
    p->state = state;
    return true;
}

void output_try(struct output_parser *p, size_t literal)
{
    p->has_undo = true;
    p->undo = p->at;
    p->undo_literal = literal;
    buf_reset(&p->undo_space);
    fail_with(p, buf_append(&p->undo_space, p->space.data, p->space.len));
    buf_reset(&p->space);
}

bool output_fail(struct output_parser *p)
{
    size_t from = p->has_undo ? p->undo : p->at, seen = p->at - from;
    size_t n = p->has_undo && p->undo_literal > 0 ? p->undo_literal : 1;
    if (p->call_open)
        output_call_end(p, false);
    if (p->has_undo)
        emit_content(p, p->undo_space.data, p->undo_space.len);
    if (seen > REREAD_BYTES_MAX && seen > n)
        n = seen;
    if (n > p->input.len - from)
        n = p->input.len - from;
    emit_content(p, p->input.data + from, n);
    p->at = from + n;
    p->has_undo = false;
    if (p->format->is_harmony) {
        p->body_kind = OUTPUT_CONTENT;
        return output_go(p, STATE_HARMONY_BODY);
    }
    return output_go(p, STATE_CONTENT);
}

bool output_more_or_fail(struct output_parser *p)
{
    return p->finishing && output_fail(p);
}

bool output_leave(struct output_parser *p)
{
    p->has_undo = false;
    p->trim_leading = true;
    p->content_started = false;
    p->line_started = false;
    return output_go(p, p->format->is_harmony ? STATE_HARMONY_BODY : STATE_CONTENT);
}

/* -- calls ------------------------------------------------------------------------------------ */

bool output_name_is_valid(const char *name, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if ((unsigned char)name[i] <= ' ' || name[i] == 0x7F || strchr("<>{}[]()\"'`,", name[i]))
            return false;
    return len > 0 && len <= LIMIT_OUTPUT_NAME_BYTES;
}

void output_call_reset(struct output_parser *p)
{
    p->call_open = p->has_name = p->has_arguments = p->is_reported = false;
    p->level = 0;
    p->tool = NULL;
    buf_reset(&p->arguments);
}

bool output_call_set_name(struct output_parser *p, const char *name, size_t len)
{
    static const char prefix[] = "functions.";
    if (len > sizeof(prefix) - 1 && memcmp(name, prefix, sizeof(prefix) - 1) == 0) {
        name += sizeof(prefix) - 1;
        len -= sizeof(prefix) - 1;
    }
    if (!output_name_is_valid(name, len))
        return false;
    memcpy(p->name, name, len);
    p->name[len] = '\0';
    p->has_name = true;
    p->tool = output_tool_find(p->options.tools, p->name);
    return true;
}

bool output_call_begin(struct output_parser *p)
{
    if (p->n_calls == LIMIT_OUTPUT_CALLS || (p->must_be_known && p->tool == NULL))
        return false;
    flush(p);
    struct output_piece piece = {
        .kind = OUTPUT_TOOL_BEGIN, .index = p->n_calls++, .text = p->name, .len = strlen(p->name)};
    call_sink(p, &piece);
    p->call_open = p->is_reported = true;
    p->has_undo = false;
    buf_reset(&p->undo_space);
    return true;
}

void output_call_end(struct output_parser *p, bool complete)
{
    flush(p);
    struct output_piece piece = {
        .kind = OUTPUT_TOOL_END, .index = p->n_calls - 1, .complete = complete};
    call_sink(p, &piece);
    p->call_open = false;
}

bool output_call_report(struct output_parser *p)
{
    if (p->is_reported)
        return true;
    if (!output_call_begin(p))
        return false;
    if (p->arguments.len == 0)
        output_emit(p, OUTPUT_TOOL_ARGUMENTS, "{}", 2);
    output_emit(p, OUTPUT_TOOL_ARGUMENTS, p->arguments.data, p->arguments.len);
    output_call_end(p, true);
    return true;
}

/* -- answer and reasoning --------------------------------------------------------------------- */

static bool begin_calls(struct output_parser *p, const struct output_calls *calls)
{
    size_t n = calls->begin != NULL ? strlen(calls->begin) : 0;
    output_try(p, n);
    p->at += n;
    p->calls = calls;
    p->in_list = false;
    p->must_be_known = n == 0 && p->content_started;
    output_call_reset(p);
    return output_go(p, calls->syntax == OUTPUT_SYNTAX_JSON    ? STATE_JSON_OPEN
                        : calls->syntax == OUTPUT_SYNTAX_NAMED ? STATE_NAMED_OPEN
                                                               : STATE_XML_OPEN);
}

static bool begin_reasoning(struct output_parser *p, const char *tag)
{
    p->at += strlen(tag);
    buf_reset(&p->space);
    p->trim_leading = true;
    p->reasoning_started = false;
    return output_go(p, STATE_REASONING);
}

/* A bare object may stand at the beginning, or at a line's if it names a tool of ours. */
static bool may_be_bare(const struct output_parser *p)
{
    if (!p->content_started)
        return true;
    return p->options.tools != NULL &&
           (!p->line_started || memchr(buf_str(&p->space), '\n', p->space.len) != NULL);
}

/* Looks for a marker of the answer at `at`. YES: it was taken. */
static enum output_match take_marker(struct output_parser *p)
{
    const struct output_format *f = p->format;
    enum output_match m, best = MATCH_NO;
    for (size_t i = 0; i < OUTPUT_TAGS_MAX && !p->content_started; i++) {
        m = f->reasoning[i].begin != NULL ? output_look(p, p->at, f->reasoning[i].begin) : MATCH_NO;
        if (m == MATCH_YES)
            return begin_reasoning(p, f->reasoning[i].begin) ? MATCH_YES : MATCH_NO;
        best = m != MATCH_NO ? m : best;
    }
    for (size_t i = 0; i < OUTPUT_DROPPED_MAX && f->dropped[i] != NULL; i++) {
        m = output_skip(p, f->dropped[i]);
        if (m == MATCH_YES) {
            buf_reset(&p->space);
            p->trim_leading = true;
            return MATCH_YES;
        }
        best = m != MATCH_NO ? m : best;
    }
    for (size_t i = 0; p->options.has_tools && i < OUTPUT_CALLS_MAX; i++) {
        const struct output_calls *c = &f->calls[i];
        if (c->syntax == OUTPUT_SYNTAX_NONE)
            break;
        if (c->begin == NULL)
            m = p->input.data[p->at] == '{' && may_be_bare(p) ? MATCH_YES : MATCH_NO;
        else
            m = output_look(p, p->at, c->begin);
        if (m == MATCH_YES)
            return begin_calls(p, c) ? MATCH_YES : MATCH_NO;
        best = m != MATCH_NO ? m : best;
    }
    return best;
}

/* Keeps white space back, because it is dropped before a marker. */
static bool hold_space(struct output_parser *p, enum output_piece_kind kind)
{
    char c = p->input.data[p->at];
    if (!is_space(c))
        return false;
    p->at++;
    if (p->trim_leading)
        return true;
    if (p->space.len == LIMIT_OUTPUT_SPACE_BYTES)
        emit_space(p, kind);
    fail_with(p, buf_append_char(&p->space, c));
    return true;
}

static bool step_content(struct output_parser *p)
{
    if (output_at_end(p))
        return false;
    if (hold_space(p, OUTPUT_CONTENT))
        return true;
    if (p->first[(unsigned char)p->input.data[p->at]]) {
        enum output_match m = take_marker(p);
        if (m != MATCH_NO)
            return m == MATCH_YES;
    }
    emit_space(p, OUTPUT_CONTENT);
    emit_content(p, p->input.data + p->at, 1);
    p->at++;
    return true;
}

static bool end_reasoning(struct output_parser *p, size_t n)
{
    p->at += n;
    buf_reset(&p->space);
    p->trim_leading = true;
    p->content_started = false;
    return output_go(p, STATE_CONTENT);
}

/* A tag that ends the reasoning at `at`, or its beginning once more, as models write it that were
 * begun inside. */
static enum output_match take_reasoning_tag(struct output_parser *p)
{
    const struct output_format *f = p->format;
    enum output_match m, best = MATCH_NO;
    for (size_t i = 0; i < OUTPUT_TAGS_MAX && f->reasoning[i].begin != NULL; i++) {
        m = output_look(p, p->at, f->reasoning[i].end);
        if (m == MATCH_YES)
            return end_reasoning(p, strlen(f->reasoning[i].end)) ? MATCH_YES : MATCH_NO;
        best = m != MATCH_NO ? m : best;
        m = p->reasoning_started ? MATCH_NO : output_skip(p, f->reasoning[i].begin);
        if (m == MATCH_YES)
            return MATCH_YES;
        best = m != MATCH_NO ? m : best;
    }
    if (f->calls_end_reasoning && p->options.has_tools) {
        m = output_look(p, p->at, f->calls[0].begin);
        if (m == MATCH_YES)
            return end_reasoning(p, 0) ? MATCH_YES : MATCH_NO;
        best = m != MATCH_NO ? m : best;
    }
    return best;
}

static bool step_reasoning(struct output_parser *p)
{
    if (output_at_end(p))
        return false;
    if (hold_space(p, OUTPUT_REASONING))
        return true;
    enum output_match m = take_reasoning_tag(p);
    if (m != MATCH_NO)
        return m == MATCH_YES;
    emit_space(p, OUTPUT_REASONING);
    output_emit(p, OUTPUT_REASONING, p->input.data + p->at, 1);
    p->trim_leading = false;
    p->reasoning_started = true;
    p->at++;
    return true;
}

/* -- the stream ------------------------------------------------------------------------------- */

static bool step(struct output_parser *p)
{
    if (p->state == STATE_CONTENT)
        return step_content(p);
    if (p->state == STATE_REASONING)
        return step_reasoning(p);
    if (p->state <= STATE_HARMONY_CALL)
        return output_step_harmony(p);
    if (p->state <= STATE_OBJECT_NEXT || p->state == STATE_VALUE)
        return output_step_calls(p);
    return p->state <= STATE_NAMED_NEXT ? output_step_named(p) : output_step_xml(p);
}

static void run(struct output_parser *p)
{
    while (p->rc == 0 && step(p))
        if (is_too_long(p))
            output_fail(p);
    size_t keep = p->has_undo ? p->undo : p->at;
    buf_consume(&p->input, keep);
    p->at -= keep;
    p->value_at -= p->value_at >= keep ? keep : p->value_at;
    p->undo = 0;
    fail_with(p, p->arguments.error);
    fail_with(p, p->value.error);
    fail_with(p, p->key.error);
    flush(p);
}

int output_parser_push(struct output_parser *p, const char *text, size_t len, output_sink_fn sink,
                       void *arg)
{
    p->sink = sink;
    p->sink_arg = arg;
    /* The input never keeps more than an undecided call and one push. */
    while (p->rc == 0 && len > 0) {
        size_t n = len < LIMIT_OUTPUT_CALL_BYTES ? len : LIMIT_OUTPUT_CALL_BYTES;
        fail_with(p, buf_append(&p->input, text, n));
        run(p);
        text += n;
        len -= n;
    }
    return p->rc;
}

int output_parser_finish(struct output_parser *p, output_sink_fn sink, void *arg)
{
    p->sink = sink;
    p->sink_arg = arg;
    p->finishing = true;
    run(p);
    if (p->state == STATE_CONTENT && !p->trim_leading)
        emit_space(p, OUTPUT_CONTENT);
    if (p->call_open)
        output_call_end(p, false);
    flush(p);
    return p->rc;
}

static void mark_first_bytes(struct output_parser *p)
{
    const struct output_format *f = p->format;
    for (size_t i = 0; i < OUTPUT_TAGS_MAX; i++)
        if (f->reasoning[i].begin != NULL)
            p->first[(unsigned char)f->reasoning[i].begin[0]] = 1;
    for (size_t i = 0; i < OUTPUT_DROPPED_MAX; i++)
        if (f->dropped[i] != NULL)
            p->first[(unsigned char)f->dropped[i][0]] = 1;
    for (size_t i = 0; i < OUTPUT_CALLS_MAX; i++)
        if (f->calls[i].syntax != OUTPUT_SYNTAX_NONE)
            p->first[(unsigned char)(f->calls[i].begin != NULL ? f->calls[i].begin[0] : '{')] = 1;
}

int output_parser_new(const struct output_format *f, const struct output_parser_options *options,
                      struct output_parser **ret_parser, struct error *err)
{
    struct output_parser *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "out of memory for a parser of output");
    p->format = f;
    p->options = *options;
    buf_init(&p->input, 4u * LIMIT_OUTPUT_CALL_BYTES);
    buf_init(&p->space, LIMIT_OUTPUT_SPACE_BYTES);
    buf_init(&p->undo_space, LIMIT_OUTPUT_SPACE_BYTES);
    /* Escapes make a byte six at most. */
    buf_init(&p->arguments, 8u * LIMIT_OUTPUT_CALL_BYTES);
    buf_init(&p->value, 4u * LIMIT_OUTPUT_CALL_BYTES);
    buf_init(&p->key, LIMIT_OUTPUT_NAME_BYTES);
    buf_init(&p->out, 16u * LIMIT_OUTPUT_CALL_BYTES);
    mark_first_bytes(p);
    if (f->is_harmony)
        p->state = STATE_HARMONY_HEADER;
    else if (options->begins_in_reasoning)
        p->state = STATE_REASONING;
    p->trim_leading = p->state == STATE_REASONING;
    p->body_kind = OUTPUT_CONTENT;
    *ret_parser = p;
    return 0;
}

void output_parser_free(struct output_parser *p)
{
    if (p == NULL)
        return;
    buf_done(&p->input);
    buf_done(&p->space);
    buf_done(&p->undo_space);
    buf_done(&p->arguments);
    buf_done(&p->value);
    buf_done(&p->key);
    buf_done(&p->out);
    free(p);
}

unsigned output_parser_n_calls(const struct output_parser *p)
{
    return p->n_calls;
}
