#include "api/chat_request.h"

#include "api/request_fields.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

void chat_request_init(struct chat_request *r)
{
    *r = (struct chat_request){.n_choices = 1, .n_prompts = 1};
    sampling_init(&r->sampling);
    r->sampling.temperature = 1;
    r->sampling.top_p = 1;
}

void chat_request_done(struct chat_request *r)
{
    json_decref(r->messages);
    json_decref(r->tools);
    json_decref(r->template_args);
    json_decref(r->body);
    free(r->prompts);
    free(r->grammar_text);
    *r = (struct chat_request){0};
}

static int refuse_memory(struct api_error *e)
{
    return api_error_set(e, 503, NULL, NULL, "out of memory");
}

int chat_request_read_model(struct chat_request *r, struct api_error *e)
{
    if (field_string(e, r->body, "model", NULL, &r->model) != 0)
        return -1;
    return r->model != NULL ? 0 : field_refuse_missing(e, "model");
}

int chat_request_read_sampling(struct chat_request *r, const json_t *object, const char *prefix,
                               double temperature_max, struct api_error *e)
{
    struct sampling *s = &r->sampling;
    const struct {
        const char *name;
        double min, max;
        float *ret;
    } numbers[] = {
        {"temperature", 0, temperature_max, &s->temperature},
        {"top_p", 0, 1, &s->top_p},
        {"min_p", 0, 1, &s->min_p},
        {"repetition_penalty", 0.01, 100, &s->repetition_penalty},
        {"repeat_penalty", 0.01, 100, &s->repetition_penalty}, /* Ollama's name */
        {"frequency_penalty", -2, 2, &s->frequency_penalty},
        {"presence_penalty", -2, 2, &s->presence_penalty},
    };
    char path[FIELD_PATH_BYTES];
    json_int_t top_k = s->top_k, seed = (json_int_t)s->seed;
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++) {
        snprintf(path, sizeof(path), "%s%s", prefix, numbers[i].name);
        if (field_number(e, object, numbers[i].name, path, numbers[i].min, numbers[i].max,
                         numbers[i].ret) != 0)
            return -1;
    }
    snprintf(path, sizeof(path), "%stop_k", prefix);
    if (field_integer(e, object, "top_k", path, -1, INT_MAX, &top_k) != 0)
        return -1;
    snprintf(path, sizeof(path), "%sseed", prefix);
    if (field_integer(e, object, "seed", path, INT64_MIN, INT64_MAX, &seed) != 0)
        return -1;
    if (s->top_p <= 0) { /* the smallest set that reaches 0 is the best token alone */
        s->top_p = 1;
        s->temperature = 0;
    }
    s->top_k = top_k > 0 ? (uint32_t)top_k : 0; /* -1 is vLLM's word for off */
    s->seed = (uint64_t)seed;
    r->has_seed = r->has_seed || field_get(object, "seed") != NULL;
    return 0;
}

int chat_request_add_stop(struct chat_request *r, const json_t *text, const char *path,
                          struct api_error *e)
{
    if (!json_is_string(text))
        return field_refuse_type(e, path, "a string or an array of strings", text);
    size_t len = json_string_length(text);
    if (len == 0 || len > LIMIT_STOP_STRING_BYTES)
        return api_error_set(e, 400, "invalid_value", path,
                             "Invalid '%s': a stop string has 1 to %d bytes, this one %zu.", path,
                             LIMIT_STOP_STRING_BYTES, len);
    if (r->n_stop >= LIMIT_STOP_STRINGS)
        return api_error_set(e, 400, "array_above_max_length", path,
                             "Invalid '%s': at most %d stop strings.", path, LIMIT_STOP_STRINGS);
    r->stop[r->n_stop] = json_string_value(text);
    r->stop_len[r->n_stop++] = len;
    return 0;
}

int chat_request_read_stop(struct chat_request *r, const json_t *stop, const char *path,
                           struct api_error *e)
{
    const json_t *v;
    size_t i;
    if (stop == NULL || json_is_null(stop))
        return 0;
    if (!json_is_array(stop))
        return chat_request_add_stop(r, stop, path, e);
    json_array_foreach(stop, i, v) if (chat_request_add_stop(r, v, path, e) != 0) return -1;
    return 0;
}

int chat_request_read_template_args(struct chat_request *r, const json_t *args, const char *path,
                                    struct api_error *e)
{
    const char *key;
    json_t *v;
    if (args == NULL)
        return 0;
    if (!json_is_object(args))
        return field_refuse_type(e, path, "an object", args);
    if (json_object_size(args) > 64)
        return field_refuse_value(e, path, "at most 64 values.");
    if (r->template_args == NULL && (r->template_args = json_object()) == NULL)
        return refuse_memory(e);
    json_object_foreach((json_t *)(uintptr_t)args, key, v)
    {
        bool is_text = json_is_string(v) &&
                       field_is_plain_name(json_string_value(v), json_string_length(v), 64);
        if (!field_is_plain_name(key, strlen(key), 64) ||
            !(json_is_boolean(v) || json_is_number(v) || json_is_null(v) || is_text))
            return field_refuse_value(e, path,
                                      "plain names with booleans, numbers or short words only.");
        if (json_object_set(r->template_args, key, v) != 0)
            return refuse_memory(e);
    }
    return 0;
}

int chat_request_add_tool(struct chat_request *r, const char *name, const char *description,
                          const json_t *parameters, const char *path, struct api_error *e)
{
    char at[FIELD_PATH_BYTES];
    snprintf(at, sizeof(at), "%.80s.name", path);
    if (name == NULL)
        return field_refuse_missing(e, at);
    if (!field_is_plain_name(name, strlen(name), 128))
        return field_refuse_value(e, at, "1 to 128 letters, digits, '_', '-' or '.'.");
    snprintf(at, sizeof(at), "%.80s.parameters", path);
    if (parameters != NULL && !json_is_object(parameters))
        return field_refuse_type(e, at, "an object", parameters);
    if (r->tools == NULL && (r->tools = json_array()) == NULL)
        return refuse_memory(e);
    if (json_array_size(r->tools) >= CHAT_TOOLS_MAX)
        return field_refuse_value(e, "tools", "more than 512.");
    json_t *schema = parameters != NULL ? json_incref((json_t *)(uintptr_t)parameters)
                                        : json_pack("{s:s, s:{}}", "type", "object", "properties");
    json_t *tool =
        json_pack("{s:s, s:{s:s, s:s, s:o}}", "type", "function", "function", "name", name,
                  "description", description != NULL ? description : "", "parameters", schema);
    if (tool == NULL || json_array_append_new(r->tools, tool) != 0)
        return refuse_memory(e);
    return 0;
}

int chat_request_set_schema(struct chat_request *r, const json_t *schema, const char *path,
                            struct api_error *e)
{
    struct buf text;
    r->has_grammar = true;
    r->grammar = GRAMMAR_JSON_OBJECT;
    if (schema == NULL)
        return 0;
    if (!json_is_object(schema) && !json_is_boolean(schema))
        return field_refuse_type(e, path, "a JSON schema", schema);
    buf_init(&text, LIMIT_GRAMMAR_BYTES);
    int rc = json_append_value(&text, schema);
    if (rc != 0) {
        buf_done(&text);
        return rc == E_LIMIT ? api_error_set(e, 400, "invalid_value", path,
                                             "Invalid '%s': a schema of over %d bytes.", path,
                                             LIMIT_GRAMMAR_BYTES)
                             : refuse_memory(e);
    }
    r->grammar = GRAMMAR_JSON_SCHEMA;
    free(r->grammar_text);
    r->grammar_text = text.data;
    r->grammar_len = text.len;
    return 0;
}

json_t *chat_request_add_message(struct chat_request *r, const char *role, json_t *content,
                                 struct api_error *e)
{
    if (r->messages == NULL)
        r->messages = json_array();
    if (json_array_size(r->messages) >= CHAT_MESSAGES_MAX) {
        json_decref(content);
        field_refuse_value(e, "messages", "not over 65536.");
        return NULL;
    }
    json_t *m = json_pack("{s:s, s:o}", "role", role, "content", content);
    if (m == NULL || json_array_append_new(r->messages, m) != 0) {
        refuse_memory(e);
        return NULL;
    }
    return m;
}

int chat_request_check(const struct chat_request *r, struct api_error *e)
{
    const json_t *tool;
    size_t i;
    if (r->messages != NULL && json_array_size(r->messages) == 0)
        return field_refuse_value(e, "messages", "needs at least one message.");
    if (r->tool_choice == CHAT_TOOLS_REQUIRED && r->tools == NULL)
        return field_refuse_value(e, "tool_choice", "only allowed when 'tools' are given.");
    if (r->tool_choice != CHAT_TOOLS_NAMED)
        return 0;
    json_array_foreach(r->tools, i, tool)
    {
        const json_t *f = json_object_get(tool, "function");
        if (strcmp(json_string_value(json_object_get(f, "name")), r->tool_name) == 0)
            return 0;
    }
    return api_error_set(e, 400, "invalid_value", "tool_choice",
                         "Invalid 'tool_choice': there is no tool '%.128s' in 'tools'.",
                         r->tool_name);
}
