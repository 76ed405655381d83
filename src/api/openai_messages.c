/* Messages and tools as OpenAI has them, into the form of templates. */
#include "api/openai.h"
#include "api/request_fields.h"

#include <string.h>

static int refuse_memory(struct api_error *e)
{
    return api_error_set(e, 503, NULL, NULL, "out of memory");
}

/* The text of one part of a content array, NULL with the error. */
static const json_t *part_text(const json_t *part, const char *path, struct api_error *e)
{
    static const char *const kinds[] = {"text", "input_text", "output_text", "refusal"};
    char at[FIELD_PATH_BYTES];
    if (!json_is_object(part)) {
        field_refuse_type(e, path, "an object", part);
        return NULL;
    }
    const char *type = json_string_value(json_object_get(part, "type"));
    for (size_t i = 0; type != NULL && i < sizeof(kinds) / sizeof(kinds[0]); i++) {
        if (strcmp(type, kinds[i]) != 0)
            continue;
        const char *name = strcmp(type, "refusal") == 0 ? "refusal" : "text";
        const json_t *text = json_object_get(part, name);
        if (json_is_string(text))
            return text;
        snprintf(at, sizeof(at), "%.80s.%s", path, name);
        field_refuse_type(e, at, "a string", text);
        return NULL;
    }
    api_error_set(e, 400, "unsupported_value", path,
                  "Unsupported content part at '%s': this model takes parts of type 'text' only.",
                  path);
    return NULL;
}

json_t *openai_join_parts(const json_t *content, const char *path, struct api_error *e)
{
    char at[FIELD_PATH_BYTES];
    struct buf text;
    const json_t *part;
    size_t i;
    if (json_is_string(content))
        return json_incref((json_t *)(uintptr_t)content);
    if (!json_is_array(content)) {
        field_refuse_type(e, path, "a string or an array of parts", content);
        return NULL;
    }
    buf_init(&text, LIMIT_HTTP_BODY_BYTES);
    json_array_foreach(content, i, part)
    {
        snprintf(at, sizeof(at), "%.64s[%zu]", path, i);
        const json_t *piece = part_text(part, at, e);
        if (piece == NULL) {
            buf_done(&text);
            return NULL;
        }
        buf_append(&text, json_string_value(piece), json_string_length(piece));
    }
    json_t *joined = text.error == 0 ? json_stringn(buf_str(&text), text.len) : NULL;
    if (joined == NULL)
        refuse_memory(e);
    buf_done(&text);
    return joined;
}

/* The role that templates know. `developer` is OpenAI's newer word for `system`. */
static const char *template_role(const char *role)
{
    static const char *const known[] = {"system", "user", "assistant", "tool", "function"};
    if (strcmp(role, "developer") == 0)
        return "system";
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(role, known[i]) == 0)
            return known[i];
    return NULL;
}

json_t *openai_tool_call(const char *id, const char *name, const json_t *arguments)
{
    struct error err;
    json_t *object = NULL;
    /* Templates print arguments as JSON: they want the object that the text stands for. */
    if (json_is_string(arguments) &&
        json_parse(json_string_value(arguments), json_string_length(arguments), &object, &err) ==
            0 &&
        !json_is_object(object)) {
        json_decref(object);
        object = NULL;
    }
    if (object == NULL)
        object = arguments != NULL ? json_incref((json_t *)(uintptr_t)arguments) : json_object();
    json_t *call = json_pack("{s:s, s:{s:s, s:o}}", "type", "function", "function", "name", name,
                             "arguments", object);
    if (call != NULL && id != NULL)
        json_object_set_new(call, "id", json_string(id));
    return call;
}

static int read_tool_calls(const json_t *message, json_t *out, size_t index, struct api_error *e)
{
    char path[FIELD_PATH_BYTES];
    json_t *calls, *call;
    size_t i;
    snprintf(path, sizeof(path), "messages[%zu].tool_calls", index);
    if (field_array(e, message, "tool_calls", path, &calls) != 0)
        return -1;
    if (json_array_size(calls) == 0)
        return 0;
    json_t *list = json_array();
    if (list == NULL || json_object_set_new(out, "tool_calls", list) != 0)
        return refuse_memory(e);
    json_array_foreach(calls, i, call)
    {
        const char *id = NULL, *name = NULL;
        const json_t *f = json_object_get(call, "function");
        snprintf(path, sizeof(path), "messages[%zu].tool_calls[%zu].id", index, i);
        if (field_string(e, call, "id", path, &id) != 0)
            return -1;
        snprintf(path, sizeof(path), "messages[%zu].tool_calls[%zu].function.name", index, i);
        if (field_string(e, f, "name", path, &name) != 0)
            return -1;
        if (name == NULL)
            return field_refuse_missing(e, path);
        snprintf(path, sizeof(path), "messages[%zu].tool_calls[%zu].function.arguments", index, i);
        const json_t *arguments = field_get(f, "arguments");
        if (arguments != NULL && !json_is_string(arguments) && !json_is_object(arguments))
            return field_refuse_type(e, path, "a string or an object", arguments);
        json_t *known = openai_tool_call(id, name, arguments);
        if (known == NULL || json_array_append_new(list, known) != 0)
            return refuse_memory(e);
    }
    return 0;
}

/* Fields beside role and content that templates read. */
static int copy_extras(const json_t *message, json_t *out, size_t index, struct api_error *e)
{
    /* name in the request, name for the template; vLLM renamed reasoning_content, Ollama has words
     * of its own */
    static const char *const strings[][2] = {{"tool_call_id", "tool_call_id"},
                                             {"reasoning_content", "reasoning_content"},
                                             {"reasoning", "reasoning_content"},
                                             {"thinking", "reasoning_content"},
                                             {"tool_name", "name"}};
    char path[FIELD_PATH_BYTES];
    const char *name = NULL;
    snprintf(path, sizeof(path), "messages[%zu].name", index);
    if (field_string(e, message, "name", path, &name) != 0)
        return -1;
    if (name != NULL && !field_is_plain_name(name, strlen(name), 128))
        return field_refuse_value(e, path, "1 to 128 letters, digits, '_', '-' or '.'.");
    if (name != NULL)
        json_object_set(out, "name", json_object_get(message, "name"));
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
        const char *text = NULL;
        snprintf(path, sizeof(path), "messages[%zu].%s", index, strings[i][0]);
        if (field_string(e, message, strings[i][0], path, &text) != 0)
            return -1;
        if (text != NULL)
            json_object_set(out, strings[i][1], json_object_get(message, strings[i][0]));
    }
    return read_tool_calls(message, out, index, e);
}

static int read_message(struct chat_request *r, const json_t *message, size_t index,
                        struct api_error *e)
{
    char path[FIELD_PATH_BYTES];
    const char *role = NULL;
    snprintf(path, sizeof(path), "messages[%zu]", index);
    if (!json_is_object(message))
        return field_refuse_type(e, path, "an object", message);
    snprintf(path, sizeof(path), "messages[%zu].role", index);
    if (field_string(e, message, "role", path, &role) != 0)
        return -1;
    if (role == NULL)
        return field_refuse_missing(e, path);
    const char *known = template_role(role);
    if (known == NULL)
        return api_error_set(e, 400, "invalid_value", path,
                             "Invalid value for '%s': '%.64s'. Supported are 'developer', "
                             "'system', 'user', 'assistant', 'tool' and 'function'.",
                             path, role);
    json_t *content = field_get(message, "content");
    snprintf(path, sizeof(path), "messages[%zu].content", index);
    if (content == NULL && strcmp(known, "assistant") != 0)
        return field_refuse_missing(e, path);
    /* null: an answer that was only tool calls */
    content = content != NULL ? openai_join_parts(content, path, e) : json_null();
    if (content == NULL)
        return -1;
    json_t *images = field_get(message, "images"); /* Ollama's */
    if (json_array_size(images) > 0) {
        json_decref(content);
        snprintf(path, sizeof(path), "messages[%zu].images", index);
        return field_refuse_feature(e, path, "this model takes text only.");
    }
    json_t *out = chat_request_add_message(r, known, content, e);
    return out != NULL ? copy_extras(message, out, index, e) : -1;
}

int openai_read_messages(struct chat_request *r, struct api_error *e)
{
    json_t *list, *message;
    size_t i;
    if (field_array(e, r->body, "messages", NULL, &list) != 0)
        return -1;
    if (list == NULL)
        return field_refuse_missing(e, "messages");
    if (json_array_size(list) == 0 || json_array_size(list) > CHAT_MESSAGES_MAX)
        return field_refuse_value(e, "messages", "needs at least one message, and not over 65536.");
    json_array_foreach(list, i, message) if (read_message(r, message, i, e) != 0) return -1;
    return 0;
}

int openai_read_tools(struct chat_request *r, struct api_error *e)
{
    char path[FIELD_PATH_BYTES];
    json_t *list, *tool;
    size_t i;
    if (field_array(e, r->body, "tools", NULL, &list) != 0)
        return -1;
    json_array_foreach(list, i, tool)
    {
        const char *type = NULL, *name = NULL, *description = NULL;
        json_t *function;
        snprintf(path, sizeof(path), "tools[%zu].type", i);
        if (field_string(e, tool, "type", path, &type) != 0)
            return -1;
        if (type != NULL && strcmp(type, "function") != 0)
            return api_error_set(e, 400, "unsupported_value", path,
                                 "Unsupported value for '%s': '%.64s'. Supported is 'function'.",
                                 path, type);
        snprintf(path, sizeof(path), "tools[%zu].function", i);
        if (field_object(e, tool, "function", path, &function) != 0)
            return -1;
        if (function == NULL)
            return field_refuse_missing(e, path);
        if (field_string(e, function, "name", path, &name) != 0 ||
            field_string(e, function, "description", path, &description) != 0 ||
            chat_request_add_tool(r, name, description, field_get(function, "parameters"), path,
                                  e) != 0)
            return -1;
    }
    return 0;
}

/* {"type": "function", "function": {"name"}} or, in the Responses API, {"type", "name"}. */
static int read_named_tool(struct chat_request *r, const json_t *choice, struct api_error *e)
{
    const json_t *function = field_get(choice, "function");
    if (field_string(e, function != NULL ? function : choice, "name", "tool_choice.function.name",
                     &r->tool_name) != 0)
        return -1;
    if (r->tool_name == NULL)
        return field_refuse_missing(e, "tool_choice.function.name");
    r->tool_choice = CHAT_TOOLS_NAMED;
    return 0;
}

static int set_tool_mode(struct chat_request *r, const char *mode, const char *path,
                         struct api_error *e)
{
    static const char *const modes[] = {"auto", "none", "required"};
    for (size_t i = 0; i < 3; i++) {
        if (mode != NULL && strcmp(mode, modes[i]) == 0) {
            r->tool_choice = (enum chat_tool_choice)i;
            return 0;
        }
    }
    return field_refuse_value(e, path, "'auto', 'none', 'required' or a named function.");
}

/* Leaves only the named ones: {"allowed_tools": {"mode", "tools": [..]}}. */
static int keep_allowed_tools(struct chat_request *r, const json_t *choice, struct api_error *e)
{
    const json_t *inner = field_get(choice, "allowed_tools");
    const json_t *allowed = inner != NULL ? inner : choice, *item;
    json_t *list;
    size_t i, k;
    if (field_array(e, allowed, "tools", "tool_choice.allowed_tools.tools", &list) != 0 ||
        set_tool_mode(r, json_string_value(json_object_get(allowed, "mode")),
                      "tool_choice.allowed_tools.mode", e) != 0)
        return -1;
    for (i = json_array_size(r->tools); i-- > 0;) {
        const json_t *tool = json_object_get(json_array_get(r->tools, i), "function");
        const char *name = json_string_value(json_object_get(tool, "name"));
        bool is_allowed = false;
        json_array_foreach(list, k, item)
        {
            const json_t *f = field_get(item, "function");
            const char *one = json_string_value(field_get(f != NULL ? f : item, "name"));
            is_allowed = is_allowed || (one != NULL && strcmp(one, name) == 0);
        }
        if (!is_allowed)
            json_array_remove(r->tools, i);
    }
    if (json_array_size(r->tools) > 0)
        return 0;
    json_decref(r->tools);
    r->tools = NULL;
    return 0;
}

int openai_read_tool_choice(struct chat_request *r, struct api_error *e)
{
    const json_t *choice = field_get(r->body, "tool_choice");
    bool is_parallel = true;
    if (field_bool(e, r->body, "parallel_tool_calls", NULL, &is_parallel) != 0)
        return -1;
    r->is_one_tool = !is_parallel;
    if (choice == NULL)
        return 0;
    if (json_is_string(choice))
        return set_tool_mode(r, json_string_value(choice), "tool_choice", e);
    if (!json_is_object(choice))
        return field_refuse_type(e, "tool_choice", "a string or an object", choice);
    const char *type = json_string_value(json_object_get(choice, "type"));
    if (type != NULL && strcmp(type, "allowed_tools") == 0)
        return keep_allowed_tools(r, choice, e);
    if (type == NULL || strcmp(type, "function") != 0)
        return api_error_set(e, 400, "unsupported_value", "tool_choice.type",
                             "Unsupported 'tool_choice.type': 'function' and 'allowed_tools' are "
                             "supported.");
    return read_named_tool(r, choice, e);
}
