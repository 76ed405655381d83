/* The body of POST /v1/chat/completions, and fields that it shares with other calls. */
#include "api/openai.h"
#include "api/request_fields.h"

#include <stdlib.h>
#include <string.h>

enum { OPENAI_N_MAX = 16 }; /* answers to one prompt */

int openai_read_logit_bias(struct chat_request *r, struct api_error *e)
{
    struct sampling *s = &r->sampling;
    json_t *map, *v;
    const char *key;
    if (field_object(e, r->body, "logit_bias", NULL, &map) != 0)
        return -1;
    if (json_object_size(map) > LIMIT_LOGIT_BIAS)
        return field_refuse_value(e, "logit_bias", "too many tokens.");
    json_object_foreach(map, key, v)
    {
        char *end;
        long id = strtol(key, &end, 10);
        if (key[0] < '0' || key[0] > '9' || *end != '\0' || id > INT32_MAX)
            return field_refuse_value(e, "logit_bias", "keys are token ids.");
        if (!json_is_number(v))
            return field_refuse_type(e, "logit_bias", "numbers as values", v);
        double bias = json_number_value(v);
        if (!(bias >= -100 && bias <= 100))
            return field_refuse_value(e, "logit_bias", "values are between -100 and 100.");
        s->bias[s->n_bias++] = (struct logit_bias){.token = (int32_t)id, .bias = (float)bias};
    }
    return 0;
}

int openai_read_stream(struct chat_request *r, struct api_error *e)
{
    json_t *options;
    if (field_bool(e, r->body, "stream", NULL, &r->stream) != 0 ||
        field_object(e, r->body, "stream_options", NULL, &options) != 0)
        return -1;
    if (options != NULL && !r->stream)
        return field_refuse_value(e, "stream_options", "only allowed when 'stream' is true.");
    return field_bool(e, options, "include_usage", "stream_options.include_usage",
                      &r->include_usage);
}

int openai_read_effort(struct chat_request *r, const char *effort, const char *path,
                       struct api_error *e)
{
    static const char *const known[] = {"none", "minimal", "low", "medium", "high", "xhigh", "max"};
    if (effort == NULL)
        return 0;
    for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++) {
        if (strcmp(effort, known[i]) != 0)
            continue;
        r->thinking = i == 0 ? CHAT_THINKING_OFF : CHAT_THINKING_ON;
        r->effort = i == 0 ? NULL : known[i];
        return 0;
    }
    return field_refuse_value(e, path, "'none', 'minimal', 'low', 'medium', 'high' or 'max'.");
}

static int read_limits(struct chat_request *r, struct api_error *e)
{
    json_int_t n = 1, n_max = 0;
    /* The newer name wins when both are there. */
    if (field_integer(e, r->body, "max_tokens", NULL, 1, UINT32_MAX, &n_max) != 0 ||
        field_integer(e, r->body, "max_completion_tokens", NULL, 1, UINT32_MAX, &n_max) != 0 ||
        field_integer(e, r->body, "n", NULL, 1, OPENAI_N_MAX, &n) != 0)
        return -1;
    r->n_tokens_max = (uint32_t)n_max;
    r->n_choices = (uint32_t)n;
    return 0;
}

static int read_logprobs(struct chat_request *r, struct api_error *e)
{
    json_int_t n_top = 0;
    if (field_bool(e, r->body, "logprobs", NULL, &r->wants_logprobs) != 0 ||
        field_integer(e, r->body, "top_logprobs", NULL, 0, CHAT_TOP_LOGPROBS_MAX, &n_top) != 0)
        return -1;
    if (n_top > 0 && !r->wants_logprobs)
        return field_refuse_value(e, "top_logprobs", "only allowed when 'logprobs' is true.");
    r->n_top_logprobs = (uint32_t)n_top;
    return 0;
}

static int read_format(struct chat_request *r, struct api_error *e)
{
    json_t *format, *schema;
    const char *type = NULL;
    if (field_object(e, r->body, "response_format", NULL, &format) != 0 ||
        field_string(e, format, "type", "response_format.type", &type) != 0)
        return -1;
    if (format == NULL || (type != NULL && strcmp(type, "text") == 0))
        return 0;
    if (type != NULL && strcmp(type, "json_object") == 0)
        return chat_request_set_schema(r, NULL, NULL, e);
    if (type == NULL || strcmp(type, "json_schema") != 0)
        return field_refuse_value(e, "response_format.type",
                                  "'text', 'json_object' or 'json_schema'.");
    if (field_object(e, format, "json_schema", "response_format.json_schema", &schema) != 0)
        return -1;
    if (schema == NULL)
        return field_refuse_missing(e, "response_format.json_schema");
    return chat_request_set_schema(r, field_get(schema, "schema"),
                                   "response_format.json_schema.schema", e);
}

/* What would change the answer and cannot be done is refused. */
static int refuse_features(struct chat_request *r, struct api_error *e)
{
    json_t *functions;
    if (field_array(e, r->body, "functions", NULL, &functions) != 0)
        return -1;
    if (json_array_size(functions) > 0)
        return field_refuse_feature(e, "functions", "it was replaced by 'tools'.");
    if (field_get(r->body, "audio") != NULL)
        return field_refuse_feature(e, "audio", "this server gives text only.");
    return 0;
}

int openai_chat_parse(struct chat_request *r, struct api_error *e)
{
    const char *effort = NULL;
    json_t *args = field_get(r->body, "chat_template_kwargs");
    if (chat_request_read_model(r, e) != 0 || openai_read_messages(r, e) != 0 ||
        chat_request_read_sampling(r, r->body, "", 2, e) != 0 ||
        openai_read_logit_bias(r, e) != 0 ||
        chat_request_read_stop(r, json_object_get(r->body, "stop"), "stop", e) != 0 ||
        read_limits(r, e) != 0 || openai_read_stream(r, e) != 0 || openai_read_tools(r, e) != 0 ||
        openai_read_tool_choice(r, e) != 0 || read_logprobs(r, e) != 0 || read_format(r, e) != 0 ||
        refuse_features(r, e) != 0 ||
        field_string(e, r->body, "reasoning_effort", NULL, &effort) != 0 ||
        openai_read_effort(r, effort, "reasoning_effort", e) != 0 ||
        chat_request_read_template_args(r, args, "chat_template_kwargs", e) != 0)
        return -1;
    return chat_request_check(r, e);
}
