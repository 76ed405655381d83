/*
 * The body of POST /v1/responses: its items are turned into messages as chat templates read them.
 * The server keeps nothing between calls, so that what refers to an earlier one is refused.
 *
 * Source: OpenAI API reference ("Create a model response").
 */
#include "api/openai_responses.h"

#include "api/request_fields.h"

#include <string.h>

enum { METADATA_MAX = 16 };

/* Where the items have got to: answers of a model are spread over several items, which templates
 * want as one message. */
struct item_reader {
    struct chat_request *r;
    struct api_error *e;
    json_t *turn; /* the assistant's message that later calls belong to; borrowed; NULL: none */
    json_t *reasoning; /* owned: waits for the message that it led to */
    char path[FIELD_PATH_BYTES];
};

static int refuse_memory(struct api_error *e)
{
    return api_error_set(e, 503, NULL, NULL, "out of memory");
}

/* Writes "input[i].name" and returns it. */
static const char *at(struct item_reader *s, size_t index, const char *name)
{
    snprintf(s->path, sizeof(s->path), "input[%zu]%s%s", index, name[0] != '\0' ? "." : "", name);
    return s->path;
}

/* Begins the assistant's next message, with the reasoning before it. */
static int begin_turn(struct item_reader *s, json_t *content)
{
    s->turn = chat_request_add_message(s->r, "assistant", content, s->e);
    if (s->turn == NULL)
        return -1;
    if (s->reasoning == NULL)
        return 0;
    json_t *text = s->reasoning;
    s->reasoning = NULL;
    return json_object_set_new(s->turn, "reasoning_content", text) == 0 ? 0 : refuse_memory(s->e);
}

/* Many templates take one system message, and only in front: those that stand there are joined. */
static int add_system(struct item_reader *s, json_t *content)
{
    size_t n = json_array_size(s->r->messages);
    json_t *last = n == 1 ? json_array_get(s->r->messages, 0) : NULL;
    const char *role = json_string_value(json_object_get(last, "role"));
    const json_t *first = json_object_get(last, "content");
    struct buf both;
    if (role == NULL || strcmp(role, "system") != 0)
        return chat_request_add_message(s->r, "system", content, s->e) != NULL ? 0 : -1;
    buf_init(&both, LIMIT_HTTP_BODY_BYTES);
    buf_append(&both, json_string_value(first), json_string_length(first));
    buf_append_str(&both, "\n\n");
    buf_append(&both, json_string_value(content), json_string_length(content));
    json_decref(content);
    json_t *all = both.error == 0 ? json_stringn(both.data, both.len) : NULL;
    buf_done(&both);
    return json_object_set_new(last, "content", all) == 0 ? 0 : refuse_memory(s->e);
}

static int read_message(struct item_reader *s, const json_t *item, size_t i)
{
    const char *role = NULL;
    if (field_string(s->e, item, "role", at(s, i, "role"), &role) != 0)
        return -1;
    if (role == NULL)
        return field_refuse_missing(s->e, s->path);
    json_t *content = field_get(item, "content");
    if (content == NULL)
        return field_refuse_missing(s->e, at(s, i, "content"));
    content = openai_join_parts(content, at(s, i, "content"), s->e);
    if (content == NULL)
        return -1;
    if (strcmp(role, "assistant") == 0)
        return begin_turn(s, content);
    s->turn = NULL;
    if (strcmp(role, "system") == 0 || strcmp(role, "developer") == 0)
        return add_system(s, content);
    if (strcmp(role, "user") == 0)
        return chat_request_add_message(s->r, "user", content, s->e) != NULL ? 0 : -1;
    json_decref(content);
    return field_refuse_value(s->e, at(s, i, "role"),
                              "'user', 'assistant', 'system' or 'developer'.");
}

/* field: where the arguments are. Those of custom tools are text of any kind, not JSON. */
static int read_call(struct item_reader *s, const json_t *item, size_t i, const char *field)
{
    const char *id = NULL, *name = NULL, *text = NULL;
    if (field_string(s->e, item, "call_id", at(s, i, "call_id"), &id) != 0)
        return -1;
    if (id == NULL)
        return field_refuse_missing(s->e, s->path);
    if (field_string(s->e, item, "name", at(s, i, "name"), &name) != 0)
        return -1;
    if (name == NULL)
        return field_refuse_missing(s->e, s->path);
    if (field_string(s->e, item, field, at(s, i, field), &text) != 0)
        return -1;
    json_t *arguments = json_incref(field_get(item, field));
    if (strcmp(field, "input") == 0) {
        json_decref(arguments);
        arguments = json_pack("{s:s}", "input", text != NULL ? text : "");
    }
    json_t *call = openai_tool_call(id, name, arguments);
    json_decref(arguments);
    if (s->turn == NULL && begin_turn(s, json_null()) != 0) {
        json_decref(call);
        return -1;
    }
    json_t *calls = json_object_get(s->turn, "tool_calls");
    if (calls == NULL) {
        calls = json_array();
        if (json_object_set_new(s->turn, "tool_calls", calls) != 0)
            calls = NULL;
    }
    if (calls == NULL) {
        json_decref(call);
        return refuse_memory(s->e);
    }
    return json_array_append_new(calls, call) == 0 ? 0 : refuse_memory(s->e);
}

static int read_output(struct item_reader *s, const json_t *item, size_t i)
{
    const char *id = NULL;
    if (field_string(s->e, item, "call_id", at(s, i, "call_id"), &id) != 0)
        return -1;
    if (id == NULL)
        return field_refuse_missing(s->e, s->path);
    json_t *output = field_get(item, "output");
    if (output == NULL)
        return field_refuse_missing(s->e, at(s, i, "output"));
    json_t *content = openai_join_parts(output, at(s, i, "output"), s->e);
    if (content == NULL)
        return -1;
    s->turn = NULL;
    json_t *message = chat_request_add_message(s->r, "tool", content, s->e);
    if (message == NULL)
        return -1;
    return json_object_set_new(message, "tool_call_id", json_string(id)) == 0 ? 0
                                                                              : refuse_memory(s->e);
}

/* Its text is in content; who got a summary only sends that. */
static int read_reasoning(struct item_reader *s, const json_t *item, size_t i)
{
    static const char *const names[] = {"content", "summary"};
    struct buf text;
    json_t *list;
    const json_t *part;
    size_t k;
    buf_init(&text, LIMIT_HTTP_BODY_BYTES);
    for (size_t n = 0; n < 2 && text.len == 0; n++) {
        if (field_array(s->e, item, names[n], at(s, i, names[n]), &list) != 0) {
            buf_done(&text);
            return -1;
        }
        json_array_foreach(list, k, part)
        {
            const json_t *piece = json_object_get(part, "text");
            if (json_is_string(piece))
                buf_append(&text, json_string_value(piece), json_string_length(piece));
        }
    }
    s->turn = NULL;
    json_decref(s->reasoning);
    s->reasoning = text.len > 0 && text.error == 0 ? json_stringn(text.data, text.len) : NULL;
    buf_done(&text);
    return text.error == 0 ? 0 : refuse_memory(s->e);
}

static int read_item(struct item_reader *s, const json_t *item, size_t i)
{
    const char *type = "message"; /* may be left out */
    if (!json_is_object(item))
        return field_refuse_type(s->e, at(s, i, ""), "an object", item);
    if (field_string(s->e, item, "type", at(s, i, "type"), &type) != 0)
        return -1;
    if (strcmp(type, "message") == 0)
        return read_message(s, item, i);
    if (strcmp(type, "function_call") == 0)
        return read_call(s, item, i, "arguments");
    if (strcmp(type, "custom_tool_call") == 0)
        return read_call(s, item, i, "input");
    if (strcmp(type, "function_call_output") == 0 || strcmp(type, "custom_tool_call_output") == 0)
        return read_output(s, item, i);
    if (strcmp(type, "reasoning") == 0)
        return read_reasoning(s, item, i);
    if (strcmp(type, "item_reference") == 0)
        return field_refuse_feature(s->e, at(s, i, "type"),
                                    "this server keeps no items; send the item itself.");
    return api_error_set(
        s->e, 400, "unsupported_value", at(s, i, "type"),
        "Unsupported value for 'input[%zu].type': '%.64s'. Supported are messages, "
        "calls of functions and their outputs, and reasoning.",
        i, type);
}

static int read_instructions(struct item_reader *s)
{
    const char *text = NULL;
    if (field_string(s->e, s->r->body, "instructions", NULL, &text) != 0)
        return -1;
    if (text == NULL)
        return 0;
    json_t *content = json_incref(json_object_get(s->r->body, "instructions"));
    return chat_request_add_message(s->r, "system", content, s->e) != NULL ? 0 : -1;
}

static int read_input(struct chat_request *r, struct api_error *e)
{
    struct item_reader s = {.r = r, .e = e};
    json_t *input = field_get(r->body, "input"), *item;
    int rc = read_instructions(&s);
    size_t i;
    if (rc != 0)
        return rc;
    if (input == NULL && r->messages == NULL)
        return field_refuse_missing(e, "input");
    if (json_is_string(input))
        return chat_request_add_message(r, "user", json_incref(input), e) != NULL ? 0 : -1;
    if (input != NULL && !json_is_array(input))
        return field_refuse_type(e, "input", "a string or an array of items", input);
    json_array_foreach(input, i, item) if ((rc = read_item(&s, item, i)) != 0) break;
    json_decref(s.reasoning);
    if (rc != 0 || json_array_size(r->messages) > 0)
        return rc;
    /* Clients probe with an empty input: it is answered like an empty question. */
    return chat_request_add_message(r, "user", json_string(""), e) != NULL ? 0 : -1;
}

/* Functions, flat. Clients offer tools that OpenAI itself carries out with them: those are left
 * out, since the model works without. */
static int read_tools(struct chat_request *r, struct api_error *e)
{
    char path[FIELD_PATH_BYTES];
    json_t *list, *tool;
    size_t i;
    if (field_array(e, r->body, "tools", NULL, &list) != 0)
        return -1;
    json_array_foreach(list, i, tool)
    {
        const char *type = NULL, *name = NULL, *description = NULL;
        snprintf(path, sizeof(path), "tools[%zu]", i);
        if (!json_is_object(tool))
            return field_refuse_type(e, path, "an object", tool);
        if (!openai_responses_is_function(tool))
            continue;
        if (field_string(e, tool, "type", path, &type) != 0 ||
            field_string(e, tool, "name", path, &name) != 0 ||
            field_string(e, tool, "description", path, &description) != 0 ||
            chat_request_add_tool(r, name, description, field_get(tool, "parameters"), path, e) !=
                0)
            return -1;
    }
    return 0;
}

static int read_format(struct chat_request *r, struct api_error *e)
{
    json_t *text, *format;
    const char *type = NULL;
    if (field_object(e, r->body, "text", NULL, &text) != 0 ||
        field_object(e, text, "format", "text.format", &format) != 0 ||
        field_string(e, format, "type", "text.format.type", &type) != 0)
        return -1;
    if (format == NULL || (type != NULL && strcmp(type, "text") == 0))
        return 0;
    if (type != NULL && strcmp(type, "json_object") == 0)
        return chat_request_set_schema(r, NULL, NULL, e);
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return field_refuse_value(e, "text.format.type", "'text', 'json_object' or 'json_schema'.");
    if (field_get(format, "schema") == NULL)
        return field_refuse_missing(e, "text.format.schema");
    return chat_request_set_schema(r, field_get(format, "schema"), "text.format.schema", e);
}

static int read_reasoning_effort(struct chat_request *r, struct api_error *e)
{
    json_t *reasoning;
    const char *effort = NULL;
    if (field_object(e, r->body, "reasoning", NULL, &reasoning) != 0 ||
        field_string(e, reasoning, "effort", "reasoning.effort", &effort) != 0)
        return -1;
    return openai_read_effort(r, effort, "reasoning.effort", e);
}

/* Log-probabilities are wanted by "include" or by a number of them. */
static int read_logprobs(struct chat_request *r, struct api_error *e)
{
    json_t *list, *v;
    json_int_t n_top = 0;
    size_t i;
    if (field_array(e, r->body, "include", NULL, &list) != 0 ||
        field_integer(e, r->body, "top_logprobs", NULL, 0, CHAT_TOP_LOGPROBS_MAX, &n_top) != 0)
        return -1;
    json_array_foreach(list, i, v)
    {
        if (!json_is_string(v))
            return field_refuse_type(e, "include", "an array of strings", v);
        if (strcmp(json_string_value(v), "message.output_text.logprobs") == 0)
            r->wants_logprobs = true;
    }
    r->wants_logprobs = r->wants_logprobs || n_top > 0;
    r->n_top_logprobs = (uint32_t)n_top;
    return 0;
}

static int check_metadata(struct chat_request *r, struct api_error *e)
{
    json_t *metadata, *v;
    const char *key;
    if (field_object(e, r->body, "metadata", NULL, &metadata) != 0)
        return -1;
    if (json_object_size(metadata) > METADATA_MAX)
        return field_refuse_value(e, "metadata", "at most 16 pairs.");
    json_object_foreach(metadata, key, v) if (!json_is_string(v)) return field_refuse_type(
        e, "metadata", "strings as values", v);
    return 0;
}

static int refuse_features(struct chat_request *r, struct api_error *e)
{
    static const char *const stateful[] = {"previous_response_id", "conversation"};
    const char *truncation = NULL;
    bool is_background = false;
    for (size_t i = 0; i < 2; i++)
        if (field_get(r->body, stateful[i]) != NULL)
            return field_refuse_feature(
                e, stateful[i], "this server keeps no responses; send the whole input each time.");
    if (field_get(r->body, "prompt") != NULL)
        return field_refuse_feature(e, "prompt", "this server has no stored prompts.");
    if (field_bool(e, r->body, "background", NULL, &is_background) != 0 ||
        field_string(e, r->body, "truncation", NULL, &truncation) != 0)
        return -1;
    if (is_background)
        return field_refuse_feature(e, "background",
                                    "this server keeps no responses; stream the answer instead.");
    if (truncation != NULL && strcmp(truncation, "disabled") != 0)
        return field_refuse_feature(e, "truncation",
                                    "nothing is left out of an input; only 'disabled' is known.");
    return 0;
}

int openai_responses_parse(struct chat_request *r, struct api_error *e)
{
    json_int_t n_max = 0;
    json_t *args = field_get(r->body, "chat_template_kwargs");
    bool is_stored; /* accepted; nothing is kept, and the answer says so */
    if (chat_request_read_model(r, e) != 0 || refuse_features(r, e) != 0 || read_input(r, e) != 0 ||
        chat_request_read_sampling(r, r->body, "", 2, e) != 0 ||
        field_integer(e, r->body, "max_output_tokens", NULL, 1, UINT32_MAX, &n_max) != 0 ||
        openai_read_stream(r, e) != 0 || read_tools(r, e) != 0 ||
        openai_read_tool_choice(r, e) != 0 || read_format(r, e) != 0 ||
        read_reasoning_effort(r, e) != 0 || read_logprobs(r, e) != 0 || check_metadata(r, e) != 0 ||
        field_bool(e, r->body, "store", NULL, &is_stored) != 0 ||
        chat_request_read_template_args(r, args, "chat_template_kwargs", e) != 0)
        return -1;
    r->n_tokens_max = (uint32_t)n_max;
    return chat_request_check(r, e);
}

bool openai_responses_is_function(const json_t *tool)
{
    const char *type = json_string_value(json_object_get(tool, "type"));
    return type != NULL && strcmp(type, "function") == 0;
}
