/* The body of POST /v1/messages and of /v1/messages/count_tokens. */
#include "api/anthropic.h"
#include "api/request_fields.h"

#include <string.h>

static int read_tool(struct chat_request *r, const json_t *tool, size_t index, struct api_error *e)
{
    char path[FIELD_PATH_BYTES], at[FIELD_PATH_BYTES];
    const char *type = NULL, *name = NULL, *description = NULL;
    json_t *schema;
    snprintf(path, sizeof(path), "tools.%zu", index);
    if (!json_is_object(tool))
        return field_refuse_type(e, path, "an object", tool);
    snprintf(at, sizeof(at), "%.64s.type", path);
    if (field_string(e, tool, "type", at, &type) != 0)
        return -1;
    if (type != NULL && strcmp(type, "custom") != 0)
        return api_error_set(e, 400, "unsupported_value", at,
                             "%s: tools of type '%.64s' are not available here: this server runs "
                             "no tools itself and its models know only tools that a request "
                             "describes, with name, description and input_schema.",
                             at, type);
    snprintf(at, sizeof(at), "%.64s.name", path);
    if (field_string(e, tool, "name", at, &name) != 0)
        return -1;
    snprintf(at, sizeof(at), "%.64s.description", path);
    if (field_string(e, tool, "description", at, &description) != 0)
        return -1;
    snprintf(at, sizeof(at), "%.64s.input_schema", path);
    if (field_object(e, tool, "input_schema", at, &schema) != 0)
        return -1;
    if (name != NULL && schema == NULL)
        return field_refuse_missing(e, at);
    return chat_request_add_tool(r, name, description, schema, path, e);
}

static int read_tools(struct chat_request *r, struct api_error *e)
{
    json_t *list, *tool;
    size_t i;
    if (field_array(e, r->body, "tools", NULL, &list) != 0)
        return -1;
    json_array_foreach(list, i, tool) if (read_tool(r, tool, i, e) != 0) return -1;
    return 0;
}

static int read_tool_choice(struct chat_request *r, struct api_error *e)
{
    static const struct {
        const char *type;
        enum chat_tool_choice choice;
    } known[] = {{"auto", CHAT_TOOLS_AUTO},
                 {"any", CHAT_TOOLS_REQUIRED},
                 {"tool", CHAT_TOOLS_NAMED},
                 {"none", CHAT_TOOLS_NONE}};
    json_t *choice;
    const char *type = NULL;
    if (field_object(e, r->body, "tool_choice", NULL, &choice) != 0 ||
        field_string(e, choice, "type", "tool_choice.type", &type) != 0 ||
        field_bool(e, choice, "disable_parallel_tool_use", "tool_choice.disable_parallel_tool_use",
                   &r->is_one_tool) != 0)
        return -1;
    if (choice == NULL)
        return 0;
    size_t i = 0, n = sizeof(known) / sizeof(known[0]);
    while (type != NULL && i < n && strcmp(type, known[i].type) != 0)
        i++;
    if (type == NULL || i == n)
        return field_refuse_value(e, "tool_choice.type", "'auto', 'any', 'tool' or 'none'.");
    r->tool_choice = known[i].choice;
    if (r->tool_choice != CHAT_TOOLS_NAMED)
        return 0;
    if (field_string(e, choice, "name", "tool_choice.name", &r->tool_name) != 0)
        return -1;
    return r->tool_name != NULL ? 0 : field_refuse_missing(e, "tool_choice.name");
}

/* Without the field, the model does as it is used to: what happens then depends on the model in
 * the API, too. A budget is accepted and not enforced: max_tokens bounds thinking and answer. */
static int read_thinking(struct chat_request *r, struct api_error *e)
{
    json_t *thinking;
    const char *type = NULL, *display = NULL;
    json_int_t budget = 0;
    if (field_object(e, r->body, "thinking", NULL, &thinking) != 0 ||
        field_string(e, thinking, "type", "thinking.type", &type) != 0 ||
        field_string(e, thinking, "display", "thinking.display", &display) != 0 ||
        field_integer(e, thinking, "budget_tokens", "thinking.budget_tokens", 1, UINT32_MAX,
                      &budget) != 0)
        return -1;
    if (thinking == NULL)
        return 0;
    if (display != NULL && strcmp(display, "summarized") != 0 && strcmp(display, "omitted") != 0)
        return field_refuse_value(e, "thinking.display", "'summarized' or 'omitted'.");
    if (type != NULL && strcmp(type, "disabled") == 0)
        r->thinking = CHAT_THINKING_OFF;
    else if (type != NULL && (strcmp(type, "enabled") == 0 || strcmp(type, "adaptive") == 0 ||
                              strcmp(type, "between_tools") == 0))
        r->thinking = CHAT_THINKING_ON;
    else
        return field_refuse_value(e, "thinking.type",
                                  "'enabled', 'adaptive', 'between_tools' or 'disabled'.");
    return 0;
}

bool anthropic_omits_thinking(const struct chat_request *r)
{
    const char *display =
        json_string_value(json_object_get(json_object_get(r->body, "thinking"), "display"));
    return display != NULL && strcmp(display, "omitted") == 0;
}

static int read_format(struct chat_request *r, const json_t *format, const char *path,
                       struct api_error *e)
{
    char at[FIELD_PATH_BYTES];
    const char *type = NULL;
    if (format == NULL)
        return 0;
    snprintf(at, sizeof(at), "%.80s.type", path);
    if (field_string(e, format, "type", at, &type) != 0)
        return -1;
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return field_refuse_value(e, at, "'json_schema'.");
    const json_t *schema = field_get(format, "schema");
    snprintf(at, sizeof(at), "%.80s.schema", path);
    return schema != NULL ? chat_request_set_schema(r, schema, at, e) : field_refuse_missing(e, at);
}

static int read_output_config(struct chat_request *r, struct api_error *e)
{
    static const char *const efforts[] = {"low", "medium", "high", "xhigh", "max"};
    json_t *config, *format, *old;
    const char *effort = NULL;
    if (field_object(e, r->body, "output_config", NULL, &config) != 0 ||
        field_string(e, config, "effort", "output_config.effort", &effort) != 0 ||
        field_object(e, config, "format", "output_config.format", &format) != 0 ||
        field_object(e, r->body, "output_format", NULL, &old) != 0 || /* its name in the beta */
        read_format(r, old, "output_format", e) != 0 ||
        read_format(r, format, "output_config.format", e) != 0)
        return -1;
    for (size_t i = 0; effort != NULL && i < sizeof(efforts) / sizeof(efforts[0]); i++)
        if (strcmp(effort, efforts[i]) == 0)
            r->effort = efforts[i];
    if (effort != NULL && r->effort == NULL)
        return field_refuse_value(e, "output_config.effort",
                                  "'low', 'medium', 'high', 'xhigh' or 'max'.");
    return 0;
}

/* What would change the answer and cannot be done. */
static int refuse_features(struct chat_request *r, struct api_error *e)
{
    json_t *servers;
    if (field_array(e, r->body, "mcp_servers", NULL, &servers) != 0)
        return -1;
    if (json_array_size(servers) > 0)
        return field_refuse_feature(e, "mcp_servers", "this server calls no other servers.");
    if (field_get(r->body, "container") != NULL)
        return field_refuse_feature(e, "container", "this server runs no tools.");
    return 0;
}

static int parse_common(struct chat_request *r, struct api_error *e)
{
    if (chat_request_read_model(r, e) != 0 || anthropic_read_messages(r, e) != 0 ||
        read_tools(r, e) != 0 || read_tool_choice(r, e) != 0 || read_thinking(r, e) != 0 ||
        read_output_config(r, e) != 0 || refuse_features(r, e) != 0)
        return -1;
    return chat_request_check(r, e);
}

int anthropic_messages_parse(struct chat_request *r, struct api_error *e)
{
    json_int_t n_max = 0;
    if (parse_common(r, e) != 0 ||
        field_integer(e, r->body, "max_tokens", NULL, 1, UINT32_MAX, &n_max) != 0 ||
        field_bool(e, r->body, "stream", NULL, &r->stream) != 0 ||
        chat_request_read_sampling(r, r->body, "", 1, e) != 0 ||
        chat_request_read_stop(r, json_object_get(r->body, "stop_sequences"), "stop_sequences",
                               e) != 0)
        return -1;
    if (n_max == 0)
        return field_refuse_missing(e, "max_tokens");
    r->n_tokens_max = (uint32_t)n_max;
    const json_t *last = json_array_get(r->messages, json_array_size(r->messages) - 1);
    if (strcmp(json_string_value(json_object_get(last, "role")), "assistant") == 0)
        return api_error_set(
            e, 400, "unsupported_value", "messages",
            "messages: the conversation must end with a user message; models "
            "here do not support prefill, the continuing of an assistant message.");
    return 0;
}

int anthropic_count_parse(struct chat_request *r, struct api_error *e)
{
    return parse_common(r, e);
}
