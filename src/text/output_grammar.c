/* Lark grammars, in llguidance's dialect, of outputs that call a tool. */
#include "text/output_format.h"

#include <stdio.h>
#include <string.h>

enum { GRAMMAR_BYTES_MAX = 8 << 20, TEXT_BYTES_MAX = 4096 };

struct writer {
    const struct output_format *format;
    const struct output_calls *calls;
    const struct output_grammar_options *options;
    struct buf *out;
    struct buf text;  /* literal text that is not written yet */
    struct buf rules; /* rules that the current one needs */
    unsigned n_rules;
};

/* A marker that is a control token cannot be written as text: -1 for the others. */
static token_id control_token(const struct writer *w, const char *marker)
{
    const struct tokenizer *t = w->options->tokenizer;
    token_id id = t != NULL ? tokenizer_find(t, marker, strlen(marker)) : -1;
    size_t len = 1;
    if (id >= 0)
        tokenizer_piece(t, id, false, &len);
    return len == 0 ? id : -1;
}

static void end_text(struct writer *w)
{
    if (w->text.len > 0) {
        buf_append_char(w->out, ' ');
        json_append_string(w->out, buf_str(&w->text), w->text.len);
    }
    buf_reset(&w->text);
}

static void add_text(struct writer *w, const char *text)
{
    buf_append_str(&w->text, text);
}

static void add_marker(struct writer *w, const char *marker)
{
    token_id id = marker != NULL ? control_token(w, marker) : -1;
    if (marker == NULL)
        return;
    if (id < 0) {
        add_text(w, marker);
        return;
    }
    end_text(w);
    buf_printf(w->out, " <[%d]>", (int)id);
}

static void add_part(struct writer *w, const char *part)
{
    end_text(w);
    buf_append_char(w->out, ' ');
    buf_append_str(w->out, part);
}

/* Anything up to the marker, and the marker. */
static void add_text_until(struct writer *w, const char *marker)
{
    token_id id = control_token(w, marker);
    end_text(w);
    if (id >= 0) {
        buf_printf(w->out, " /(?s:.*)/ <[%d]>", (int)id);
        return;
    }
    unsigned rule = w->n_rules++;
    buf_printf(w->out, " until_%u", rule);
    buf_printf(&w->rules, "until_%u[suffix=", rule);
    json_append_string(&w->rules, marker, strlen(marker));
    buf_append_str(&w->rules, "]: /(?s:.*)/\n");
}

/* Arguments are an object, also where the schema forgets to say so. */
static void append_object_schema(struct buf *out, const json_t *schema)
{
    struct buf text;
    buf_init(&text, GRAMMAR_BYTES_MAX);
    if (json_is_object(schema))
        json_append_value(&text, schema);
    if (text.len <= 2) {
        buf_append_str(out, "{\"type\":\"object\"}");
    } else {
        bool has_type = json_object_get(schema, "type") != NULL;
        buf_append_str(out, has_type ? "{" : "{\"type\":\"object\",");
        buf_append(out, text.data + 1, text.len - 1);
    }
    if (text.error != 0)
        out->error = text.error;
    buf_done(&text);
}

static void add_arguments(struct writer *w, const json_t *function)
{
    end_text(w);
    buf_append_str(w->out, " %json ");
    append_object_schema(w->out, json_object_get(function, "parameters"));
}

/* -- parameters between tags ------------------------------------------------------------------ */

static bool is_required(const json_t *schema, const char *key)
{
    const json_t *required = json_object_get(schema, "required");
    for (size_t i = 0; i < json_array_size(required); i++) {
        const char *name = json_string_value(json_array_get(required, i));
        if (name != NULL && strcmp(name, key) == 0)
            return true;
    }
    return false;
}

static bool is_free_text(const json_t *schema)
{
    const char *type = json_string_value(json_object_get(schema, "type"));
    return type != NULL && strcmp(type, "string") == 0 && json_object_get(schema, "enum") == NULL &&
           json_object_get(schema, "const") == NULL;
}

/* Strings of an enum stand there without quotes. */
static bool add_enum(struct writer *w, const json_t *schema)
{
    const json_t *values = json_object_get(schema, "enum");
    size_t i;
    json_t *v;
    if (json_array_size(values) == 0)
        return false;
    json_array_foreach(values, i, v) if (!json_is_string(v)) return false;
    end_text(w);
    buf_append_str(w->out, " (");
    json_array_foreach(values, i, v)
    {
        buf_append_str(w->out, i > 0 ? " | " : "");
        json_append_string(w->out, json_string_value(v), json_string_length(v));
    }
    buf_append_char(w->out, ')');
    return true;
}

static void add_parameter(struct writer *w, const char *key, const json_t *schema)
{
    const struct output_calls *c = w->calls;
    bool is_text = is_free_text(schema), has_value_tag = c->value_begin != NULL;
    bool has_lines = !has_value_tag && !c->has_type_flag;
    char end[64];
    const char *line = has_lines ? "\n" : "";
    snprintf(end, sizeof(end), "%s%s", line, c->value_end);
    add_text(w, c->key_begin);
    add_text(w, key);
    add_text(w, c->key_end);
    if (c->has_type_flag)
        add_text(w, is_text || json_object_get(schema, "enum") != NULL ? "true\">" : "false\">");
    if (has_value_tag)
        add_part(w, "\"\\n\"?");
    add_text(w, has_value_tag ? c->value_begin : line);
    if (is_text) {
        add_text_until(w, end);
    } else {
        if (!add_enum(w, schema)) {
            end_text(w);
            buf_append_str(w->out, " %json ");
            json_append_value(w->out, schema);
        }
        add_text(w, end);
    }
    add_part(w, "\"\\n\"?");
}

static void add_parameters(struct writer *w, const json_t *function)
{
    const json_t *schema = json_object_get(function, "parameters");
    const char *key;
    json_t *property;
    end_text(w);
    json_object_foreach(json_object_get((json_t *)schema, "properties"), key, property)
    {
        buf_append_str(w->out, " (");
        add_parameter(w, key, property);
        end_text(w);
        buf_append_str(w->out, is_required(schema, key) ? ")" : ")?");
    }
}

/* -- one call of one tool --------------------------------------------------------------------- */

static void add_json_call(struct writer *w, const char *name, const json_t *function)
{
    add_text(w, "{\"");
    add_text(w, w->format->name_key);
    add_text(w, "\": ");
    json_append_string(&w->text, name, strlen(name));
    add_text(w, ", \"");
    add_text(w, w->format->arguments_key);
    add_text(w, "\": ");
    add_arguments(w, function);
    add_text(w, "}");
}

static void add_named_call(struct writer *w, const char *name, const json_t *function)
{
    const struct output_calls *c = w->calls;
    bool is_fenced = strcmp(w->format->name, "deepseek-r1") == 0;
    bool is_numbered = strcmp(w->format->name, "kimi-k2") == 0;
    add_marker(w, c->call_begin != NULL ? c->call_begin : c->begin);
    if (is_fenced) {
        add_text(w, "function");
        add_marker(w, c->name_end);
        add_text(w, name);
        add_text(w, "\n```json\n");
    } else {
        add_text(w, is_numbered ? "functions." : "");
        add_text(w, name);
        if (is_numbered) {
            add_text(w, ":");
            add_part(w, "/[0-9]{1,3}/");
        }
        add_marker(w, c->name_end);
    }
    add_arguments(w, function);
    add_text(w, is_fenced ? "\n```" : "");
    add_marker(w, c->call_end);
}

static void add_xml_call(struct writer *w, const char *name, const json_t *function)
{
    const struct output_calls *c = w->calls;
    add_marker(w, c->name_begin);
    add_text(w, name);
    add_marker(w, c->name_end);
    add_part(w, "\"\\n\"?");
    add_parameters(w, function);
    add_marker(w, c->call_end);
}

static void add_harmony_call(struct writer *w, const char *name, const json_t *function)
{
    add_marker(w, "<|channel|>");
    add_text(w, "commentary to=functions.");
    add_text(w, name);
    add_text(w, " ");
    add_marker(w, "<|constrain|>");
    add_text(w, "json");
    add_marker(w, "<|message|>");
    add_arguments(w, function);
}

static void write_call_rule(struct writer *w, size_t i, const json_t *function)
{
    const char *name = json_string_value(json_object_get(function, "name"));
    buf_printf(w->out, "call_%zu:", i);
    if (w->format->is_harmony)
        add_harmony_call(w, name, function);
    else if (w->format->writes_list || w->calls->syntax == OUTPUT_SYNTAX_JSON)
        add_json_call(w, name, function);
    else if (w->calls->syntax == OUTPUT_SYNTAX_NAMED)
        add_named_call(w, name, function);
    else
        add_xml_call(w, name, function);
    end_text(w);
    buf_append_char(w->out, '\n');
}

/* -- all calls -------------------------------------------------------------------------------- */

static void add_more(struct writer *w, const char *between)
{
    if (!w->options->allow_parallel)
        return;
    end_text(w);
    buf_append_str(w->out, " (");
    add_text(w, between);
    add_part(w, "call");
    buf_append_str(w->out, ")*");
}

static void write_calls_rule(struct writer *w)
{
    const struct output_format *f = w->format;
    const struct output_calls *c = w->calls;
    bool is_json = f->writes_list || c->syntax == OUTPUT_SYNTAX_JSON;
    bool is_section = !is_json && c->end != NULL && !f->is_harmony;
    buf_append_str(w->out, "calls:");
    if (f->is_harmony) {
        add_part(w, "call"); /* the family makes one call, then waits for its result */
    } else if (f->writes_list) {
        add_marker(w, c->begin);
        add_text(w, "[");
        add_part(w, "call");
        add_more(w, ", ");
        add_text(w, "]");
        add_marker(w, c->end);
    } else if (is_json && c->begin == NULL) {
        add_part(w, "call");
        add_more(w, "; ");
    } else if (is_json || (is_section && c->syntax == OUTPUT_SYNTAX_XML)) {
        add_part(w, w->options->allow_parallel ? "block (\"\\n\"? block)*" : "block");
        buf_append_str(w->out, "\nblock:");
        const char *line = c->name_begin == NULL && !is_json ? "" : "\n"; /* GLM has none */
        add_marker(w, c->begin);
        add_text(w, line);
        add_part(w, "call");
        add_text(w, line);
        add_marker(w, c->end);
    } else {
        if (is_section)
            add_marker(w, c->begin);
        add_part(w, "call");
        add_more(w, "");
        if (is_section)
            add_marker(w, c->end);
    }
    end_text(w);
    buf_append_char(w->out, '\n');
}

/* Models that reason may do so first. */
static void write_start(struct writer *w)
{
    const struct output_format *f = w->format;
    const struct output_tags *tags = &f->reasoning[0];
    buf_append_str(w->out, "start:");
    if (f->is_harmony) {
        buf_append_str(w->out, " (");
        add_marker(w, "<|channel|>");
        add_text(w, "analysis");
        add_marker(w, "<|message|>");
        add_text_until(w, "<|end|>");
        add_marker(w, "<|start|>");
        add_text(w, "assistant");
        end_text(w);
        buf_append_str(w->out, ")?");
    } else if (tags->begin != NULL) {
        buf_append_str(w->out, " (");
        if (!w->options->begins_in_reasoning)
            add_marker(w, tags->begin);
        add_text_until(w, tags->end);
        add_part(w, "/\\n{0,2}/");
        buf_append_str(w->out, w->options->begins_in_reasoning ? ")" : ")?");
    }
    buf_append_str(w->out, " calls\n");
    buf_append(w->out, w->rules.data, w->rules.len);
    buf_reset(&w->rules);
}

static int write_tools(struct writer *w, const json_t *tools, struct error *err)
{
    const char *only = w->options->choice == OUTPUT_CHOICE_NAMED ? w->options->name : NULL;
    size_t n = 0;
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = output_tool_function(json_array_get(tools, i));
        if (function == NULL)
            continue;
        if (only != NULL && strcmp(json_string_value(json_object_get(function, "name")), only) != 0)
            continue;
        write_call_rule(w, n++, function);
        buf_append(w->out, w->rules.data, w->rules.len);
        buf_reset(&w->rules);
    }
    if (n == 0 && only != NULL)
        return error_set(err, E_NOTFOUND, "tool_choice names \"%.80s\", which is not in tools",
                         only);
    if (n == 0)
        return error_set(err, E_INVALID, "tool_choice wants a call, but tools has no function");
    buf_append_str(w->out, "call: call_0");
    for (size_t i = 1; i < n; i++)
        buf_printf(w->out, " | call_%zu", i);
    return buf_append_char(w->out, '\n');
}

int output_format_grammar(const struct output_format *f, const json_t *tools,
                          const struct output_grammar_options *options, struct buf *out,
                          struct error *err)
{
    struct writer w = {.format = f, .calls = &f->calls[0], .options = options, .out = out};
    buf_init(&w.text, TEXT_BYTES_MAX);
    buf_init(&w.rules, GRAMMAR_BYTES_MAX);
    write_start(&w);
    write_calls_rule(&w);
    int rc = write_tools(&w, tools, err);
    int sticky = w.text.error != 0 ? w.text.error : w.rules.error != 0 ? w.rules.error : out->error;
    if (rc == 0 && sticky != 0)
        rc = error_set(err, sticky, "%s for the grammar of the tools", error_text(sticky));
    buf_done(&w.text);
    buf_done(&w.rules);
    return rc;
}
