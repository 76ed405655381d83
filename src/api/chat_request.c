#include "api/chat_request.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct parse {
    struct chat_request *r;
    struct openai_error *e;
};

static const char *kind_of(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return "an object";
    case JSON_ARRAY:
        return "an array";
    case JSON_STRING:
        return "a string";
    case JSON_INTEGER:
        return "an integer";
    case JSON_REAL:
        return "a number";
    case JSON_NULL:
        return "null";
    default:
        return "a boolean";
    }
}

static int refuse_type(struct parse *p, const char *param, const char *wanted, const json_t *v)
{
    return openai_error_set(p->e, 400, "invalid_type", param,
                            "Invalid type for '%s': expected %s, but got %s instead.", param,
                            wanted, kind_of(v));
}

static int refuse_value(struct parse *p, const char *param, const char *why)
{
    return openai_error_set(p->e, 400, "invalid_value", param, "Invalid value for '%s': %s", param,
                            why);
}

static int refuse_feature(struct parse *p, const char *param, const char *why)
{
    return openai_error_set(p->e, 400, "unsupported_parameter", param,
                            "Unsupported parameter '%s': %s", param, why);
}

/* The field, NULL when it is absent or null (which OpenAI treats alike). */
static json_t *field(const json_t *object, const char *name)
{
    json_t *v = json_object_get(object, name);
    return json_is_null(v) ? NULL : v;
}

static int read_bool(struct parse *p, const json_t *object, const char *name, const char *param,
                     bool *ret)
{
    const json_t *v = field(object, name);
    if (v == NULL)
        return 0;
    if (!json_is_boolean(v))
        return refuse_type(p, param, "a boolean", v);
    *ret = json_is_true(v);
    return 0;
}

static int read_number(struct parse *p, const char *name, double min, double max, float *ret)
{
    const json_t *v = field(p->r->body, name);
    if (v == NULL)
        return 0;
    if (!json_is_number(v))
        return refuse_type(p, name, "a number", v);
    double x = json_number_value(v);
    if (!(x >= min && x <= max))
        return openai_error_set(p->e, 400, "invalid_value", name,
                                "Invalid '%s': %g is not between %g and %g.", name, x, min, max);
    *ret = (float)x;
    return 0;
}

static int read_integer(struct parse *p, const char *name, json_int_t min, json_int_t max,
                        json_int_t *ret)
{
    const json_t *v = field(p->r->body, name);
    if (v == NULL)
        return 0;
    if (!json_is_integer(v))
        return refuse_type(p, name, "an integer", v);
    json_int_t x = json_integer_value(v);
    if (x < min || x > max)
        return openai_error_set(p->e, 400, "invalid_value", name,
                                "Invalid '%s': %" JSON_INTEGER_FORMAT
                                " is not between %" JSON_INTEGER_FORMAT " and %" JSON_INTEGER_FORMAT
                                ".",
                                name, x, min, max);
    *ret = x;
    return 0;
}

static int read_sampling(struct parse *p)
{
    struct sampling *s = &p->r->sampling;
    json_int_t top_k = 0, seed = 0;
    sampling_init(s);
    s->temperature = 1; /* OpenAI's defaults */
    s->top_p = 1;
    if (read_number(p, "temperature", 0, 2, &s->temperature) != 0 ||
        read_number(p, "top_p", 0, 1, &s->top_p) != 0 ||
        read_number(p, "min_p", 0, 1, &s->min_p) != 0 ||
        read_number(p, "repetition_penalty", 0.01, 100, &s->repetition_penalty) != 0 ||
        read_number(p, "frequency_penalty", -2, 2, &s->frequency_penalty) != 0 ||
        read_number(p, "presence_penalty", -2, 2, &s->presence_penalty) != 0 ||
        read_integer(p, "top_k", -1, INT_MAX, &top_k) != 0 ||
        read_integer(p, "seed", INT64_MIN, INT64_MAX, &seed) != 0)
        return -1;
    if (s->top_p <= 0) { /* the smallest set that reaches 0 is the best token alone */
        s->top_p = 1;
        s->temperature = 0;
    }
    s->top_k = top_k > 0 ? (uint32_t)top_k : 0; /* -1 is vLLM's word for off */
    s->seed = (uint64_t)seed;
    p->r->has_seed = field(p->r->body, "seed") != NULL;
    return 0;
}

static int read_logit_bias(struct parse *p)
{
    struct sampling *s = &p->r->sampling;
    json_t *map = field(p->r->body, "logit_bias"), *v;
    const char *key;
    if (map == NULL)
        return 0;
    if (!json_is_object(map))
        return refuse_type(p, "logit_bias", "an object", map);
    if (json_object_size(map) > LIMIT_LOGIT_BIAS)
        return refuse_value(p, "logit_bias", "too many tokens.");
    json_object_foreach(map, key, v)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || id > INT32_MAX)
            return refuse_value(p, "logit_bias", "keys are token ids.");
        if (!json_is_number(v))
            return refuse_type(p, "logit_bias", "numbers as values", v);
        double bias = json_number_value(v);
        if (!(bias >= -100 && bias <= 100))
            return refuse_value(p, "logit_bias", "values are between -100 and 100.");
        s->bias[s->n_bias++] = (struct logit_bias){.token = (int32_t)id, .bias = (float)bias};
    }
    return 0;
}

static int add_stop(struct parse *p, const json_t *v)
{
    struct chat_request *r = p->r;
    if (!json_is_string(v))
        return refuse_type(p, "stop", "a string or an array of strings", v);
    size_t len = json_string_length(v);
    if (len == 0 || len > LIMIT_STOP_STRING_BYTES)
        return openai_error_set(p->e, 400, "invalid_value", "stop",
                                "Invalid 'stop': a stop string has 1 to %d bytes, this one %zu.",
                                LIMIT_STOP_STRING_BYTES, len);
    r->stop[r->n_stop] = json_string_value(v);
    r->stop_len[r->n_stop++] = len;
    return 0;
}

static int read_stop(struct parse *p)
{
    json_t *stop = field(p->r->body, "stop"), *v;
    size_t i;
    if (stop == NULL)
        return 0;
    if (!json_is_array(stop))
        return add_stop(p, stop);
    if (json_array_size(stop) > LIMIT_STOP_STRINGS)
        return openai_error_set(p->e, 400, "array_above_max_length", "stop",
                                "Invalid 'stop': at most %d stop strings, but got %zu.",
                                LIMIT_STOP_STRINGS, json_array_size(stop));
    json_array_foreach(stop, i, v) if (add_stop(p, v) != 0) return -1;
    return 0;
}

/* Joins the text parts of a content array into one string. */
static json_t *join_parts(struct parse *p, const json_t *parts, size_t index)
{
    char param[96];
    struct buf text;
    const json_t *part;
    size_t i;
    buf_init(&text, LIMIT_HTTP_BODY_BYTES);
    json_array_foreach(parts, i, part)
    {
        snprintf(param, sizeof(param), "messages[%zu].content[%zu]", index, i);
        const char *type = json_string_value(json_object_get(part, "type"));
        const json_t *value = json_object_get(part, "text");
        if (!json_is_object(part)) {
            refuse_type(p, param, "an object", part);
            goto fail;
        }
        if (type != NULL && strcmp(type, "refusal") == 0)
            value = json_object_get(part, "refusal");
        else if (type == NULL || strcmp(type, "text") != 0) {
            openai_error_set(p->e, 400, "unsupported_value", param,
                             "Unsupported content part at '%s': this model takes parts of type "
                             "'text' only.",
                             param);
            goto fail;
        }
        if (!json_is_string(value)) {
            strncat(param, ".text", sizeof(param) - strlen(param) - 1);
            openai_error_set(p->e, 400, "invalid_type", param, "'%s' must be a string.", param);
            goto fail;
        }
        buf_append(&text, json_string_value(value), json_string_length(value));
    }
    json_t *joined = text.error == 0 ? json_stringn(buf_str(&text), text.len) : NULL;
    if (joined == NULL)
        openai_error_set(p->e, 503, NULL, NULL, "out of memory");
    buf_done(&text);
    return joined;
fail:
    buf_done(&text);
    return NULL;
}

static bool is_plain_name(const char *text, size_t len, size_t max)
{
    return len > 0 && len <= max &&
           strspn(text, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.") == len;
}

/* The role that templates know. `developer` is OpenAI's newer word for `system`. */
static const char *template_role(const char *role)
{
    static const char *const known[] = {"system", "user", "assistant", "tool", "function"};
    if (role == NULL)
        return NULL;
    if (strcmp(role, "developer") == 0)
        return "system";
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
        if (strcmp(role, known[i]) == 0)
            return known[i];
    return NULL;
}

/* Fields beside role and content that templates read. */
static int copy_extras(struct parse *p, const json_t *message, json_t *out, size_t index)
{
    static const char *const strings[] = {"tool_call_id", "reasoning_content", "reasoning"};
    char param[96];
    const json_t *name = field(message, "name");
    if (name != NULL) {
        snprintf(param, sizeof(param), "messages[%zu].name", index);
        if (!json_is_string(name))
            return refuse_type(p, param, "a string", name);
        if (!is_plain_name(json_string_value(name), json_string_length(name), 64))
            return refuse_value(p, param, "1 to 64 letters, digits, '_', '-' or '.'.");
        json_object_set(out, "name", (json_t *)(uintptr_t)name);
    }
    for (size_t i = 0; i < sizeof(strings) / sizeof(strings[0]); i++) {
        json_t *v = field(message, strings[i]);
        snprintf(param, sizeof(param), "messages[%zu].%s", index, strings[i]);
        if (v != NULL && !json_is_string(v))
            return refuse_type(p, param, "a string", v);
        if (v != NULL)
            json_object_set(out, strings[i], v);
    }
    json_t *calls = field(message, "tool_calls");
    snprintf(param, sizeof(param), "messages[%zu].tool_calls", index);
    if (calls != NULL && !json_is_array(calls))
        return refuse_type(p, param, "an array", calls);
    if (calls != NULL && json_array_size(calls) > 0)
        json_object_set(out, "tool_calls", calls);
    return 0;
}

static int read_message(struct parse *p, const json_t *message, size_t index)
{
    char param[96];
    snprintf(param, sizeof(param), "messages[%zu]", index);
    if (!json_is_object(message))
        return refuse_type(p, param, "an object", message);
    snprintf(param, sizeof(param), "messages[%zu].role", index);
    const json_t *role = json_object_get(message, "role");
    if (role == NULL)
        return openai_error_set(p->e, 400, "missing_required_parameter", param,
                                "Missing required parameter: '%s'.", param);
    if (!json_is_string(role))
        return refuse_type(p, param, "a string", role);
    const char *known = template_role(json_string_value(role));
    if (known == NULL)
        return openai_error_set(p->e, 400, "invalid_value", param,
                                "Invalid value for '%s': '%.64s'. Supported are 'developer', "
                                "'system', 'user', 'assistant', 'tool' and 'function'.",
                                param, json_string_value(role));
    json_t *content = field(message, "content");
    snprintf(param, sizeof(param), "messages[%zu].content", index);
    if (json_is_array(content)) {
        content = join_parts(p, content, index);
        if (content == NULL)
            return -1;
    } else if (json_is_string(content)) {
        json_incref(content);
    } else if (content == NULL && strcmp(known, "assistant") == 0) {
        content = json_null(); /* an answer that was only tool calls */
    } else if (content == NULL) {
        return openai_error_set(p->e, 400, "missing_required_parameter", param,
                                "Missing required parameter: '%s'.", param);
    } else {
        return refuse_type(p, param, "a string or an array of parts", content);
    }
    json_t *out = json_pack("{s:s, s:o}", "role", known, "content", content);
    if (out == NULL || json_array_append_new(p->r->messages, out) != 0)
        return openai_error_set(p->e, 503, NULL, NULL, "out of memory");
    return copy_extras(p, message, out, index);
}

static int read_messages(struct parse *p)
{
    json_t *list = field(p->r->body, "messages"), *message;
    size_t i;
    if (list == NULL)
        return openai_error_set(p->e, 400, "missing_required_parameter", "messages",
                                "Missing required parameter: 'messages'.");
    if (!json_is_array(list))
        return refuse_type(p, "messages", "an array", list);
    if (json_array_size(list) == 0 || json_array_size(list) > CHAT_MESSAGES_MAX)
        return refuse_value(p, "messages", "needs at least one message, and not over 65536.");
    p->r->messages = json_array();
    if (p->r->messages == NULL)
        return openai_error_set(p->e, 503, NULL, NULL, "out of memory");
    json_array_foreach(list, i, message) if (read_message(p, message, i) != 0) return -1;
    return 0;
}

/* Values for the template: flat, and with no text that could mean anything to a tokenizer. */
static int read_template_args(struct parse *p)
{
    json_t *args = field(p->r->body, "chat_template_kwargs"), *v;
    const char *key;
    if (args == NULL)
        return 0;
    if (!json_is_object(args))
        return refuse_type(p, "chat_template_kwargs", "an object", args);
    if (json_object_size(args) > 64)
        return refuse_value(p, "chat_template_kwargs", "at most 64 values.");
    json_object_foreach(args, key, v)
    {
        bool is_text =
            json_is_string(v) && is_plain_name(json_string_value(v), json_string_length(v), 64);
        if (!is_plain_name(key, strlen(key), 64) ||
            !(json_is_boolean(v) || json_is_number(v) || json_is_null(v) || is_text))
            return refuse_value(p, "chat_template_kwargs",
                                "plain names with booleans, numbers or short words only.");
    }
    p->r->template_args = args;
    return 0;
}

/* What would change the answer and cannot be done is refused. */
static int refuse_features(struct parse *p)
{
    const json_t *body = p->r->body, *v;
    static const char *const lists[] = {"tools", "functions"};
    for (size_t i = 0; i < 2; i++) {
        v = field(body, lists[i]);
        if (v != NULL && !json_is_array(v))
            return refuse_type(p, lists[i], "an array", v);
        if (v != NULL && json_array_size(v) > 0)
            return refuse_feature(p, lists[i],
                                  "this server does not parse tool calls from a model's output; "
                                  "leave it out or send an empty array.");
    }
    bool logprobs = false;
    if (read_bool(p, body, "logprobs", "logprobs", &logprobs) != 0)
        return -1;
    if (logprobs)
        return refuse_feature(p, "logprobs", "this server does not report log probabilities.");
    v = field(body, "top_logprobs");
    if (v != NULL && !(json_is_integer(v) && json_integer_value(v) == 0))
        return refuse_feature(p, "top_logprobs", "this server does not report log probabilities.");
    v = field(body, "response_format");
    if (v != NULL && !json_is_object(v))
        return refuse_type(p, "response_format", "an object", v);
    const char *type = json_string_value(json_object_get(v, "type"));
    if (v != NULL && (type == NULL || strcmp(type, "text") != 0))
        return refuse_feature(
            p, "response_format",
            "only {\"type\": \"text\"}; this server cannot constrain a model's output.");
    v = field(body, "audio");
    if (v != NULL)
        return refuse_feature(p, "audio", "this server gives text only.");
    return 0;
}

static int read_limits(struct parse *p)
{
    json_int_t n = 1, n_max = 0;
    /* The newer name wins when both are there. */
    if (read_integer(p, "max_tokens", 1, UINT32_MAX, &n_max) != 0 ||
        read_integer(p, "max_completion_tokens", 1, UINT32_MAX, &n_max) != 0 ||
        read_integer(p, "n", 1, CHAT_CHOICES_MAX, &n) != 0)
        return -1;
    p->r->n_tokens_max = (uint32_t)n_max;
    p->r->n_choices = (uint32_t)n;
    return 0;
}

static int read_stream(struct parse *p)
{
    struct chat_request *r = p->r;
    if (read_bool(p, r->body, "stream", "stream", &r->stream) != 0)
        return -1;
    const json_t *options = field(r->body, "stream_options");
    if (options == NULL)
        return 0;
    if (!json_is_object(options))
        return refuse_type(p, "stream_options", "an object", options);
    if (!r->stream)
        return refuse_value(p, "stream_options", "only allowed when 'stream' is true.");
    return read_bool(p, options, "include_usage", "stream_options.include_usage",
                     &r->include_usage);
}

int chat_request_parse(const char *body, size_t len, struct chat_request *r,
                       struct openai_error *ret_error)
{
    struct parse p = {.r = r, .e = ret_error};
    struct error err;
    *r = (struct chat_request){.n_choices = 1};
    if (json_parse(body, len, &r->body, &err) != 0)
        return openai_error_set(ret_error, err.code == E_NOMEM ? 503 : 400, "invalid_json", NULL,
                                "We could not parse the JSON body of your request: %s",
                                err.message);
    if (!json_is_object(r->body))
        return openai_error_set(ret_error, 400, "invalid_type", NULL,
                                "The body of the request must be a JSON object, but is %s.",
                                kind_of(r->body));
    const json_t *model = field(r->body, "model");
    if (model == NULL)
        return openai_error_set(ret_error, 400, "missing_required_parameter", "model",
                                "Missing required parameter: 'model'.");
    if (!json_is_string(model))
        return refuse_type(&p, "model", "a string", model);
    r->model = json_string_value(model);
    if (strlen(r->model) != json_string_length(model))
        return refuse_value(&p, "model", "it has a NUL character.");
    if (read_messages(&p) != 0 || read_sampling(&p) != 0 || read_logit_bias(&p) != 0 ||
        read_stop(&p) != 0 || read_limits(&p) != 0 || read_stream(&p) != 0 ||
        refuse_features(&p) != 0 || read_template_args(&p) != 0)
        return -1;
    return 0;
}

void chat_request_done(struct chat_request *r)
{
    json_decref(r->messages);
    json_decref(r->body);
    r->messages = NULL;
    r->body = NULL;
}
