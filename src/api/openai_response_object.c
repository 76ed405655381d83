/* The object "response" of POST /v1/responses: what was asked, and how far it is.
 * Source: OpenAI API reference ("The response object"). */
#include "api/openai_responses.h"

#include "api/request_fields.h"
#include "base/json.h"

#include <string.h>

const char *openai_response_status_text(enum response_status status)
{
    static const char *const texts[] = {"in_progress", "completed", "incomplete", "failed"};
    return texts[status];
}

/* A field of the request as it was sent. */
static void append_echo(struct buf *b, const json_t *body, const char *name, const char *otherwise)
{
    const json_t *v = field_get(body, name);
    buf_printf(b, ",\"%s\":", name);
    if (v != NULL)
        json_append_value(b, v);
    else
        buf_append_str(b, otherwise);
}

static void append_tools(struct buf *b, const json_t *body)
{
    const json_t *tool;
    size_t i;
    const char *comma = "";
    buf_append_str(b, ",\"tools\":[");
    json_array_foreach(field_get(body, "tools"), i, tool)
    {
        if (!openai_responses_is_function(tool))
            continue;
        buf_append_str(b, comma);
        json_append_value(b, tool);
        comma = ",";
    }
    buf_append_char(b, ']');
}

static void append_settings(struct buf *b, const struct chat_request *r)
{
    const json_t *body = r->body;
    append_echo(b, body, "instructions", "null");
    append_echo(b, body, "metadata", "{}");
    append_echo(b, body, "temperature", "1");
    append_echo(b, body, "top_p", "1");
    append_echo(b, body, "max_output_tokens", "null");
    append_echo(b, body, "top_logprobs", "0");
    append_echo(b, body, "tool_choice", "\"auto\"");
    append_tools(b, body);
    buf_printf(b, ",\"parallel_tool_calls\":%s", r->is_one_tool ? "false" : "true");
    if (field_get(field_get(body, "text"), "format") != NULL)
        append_echo(b, body, "text", "null");
    else
        buf_append_str(b, ",\"text\":{\"format\":{\"type\":\"text\"}}");
    buf_append_str(b, ",\"reasoning\":{\"summary\":null");
    append_echo(b, field_get(body, "reasoning"), "effort", "null");
    buf_append_str(b, "},\"truncation\":\"disabled\",\"store\":false,\"background\":false,"
                      "\"previous_response_id\":null");
}

static void append_usage(struct buf *b, const struct chat_call *c)
{
    uint32_t n = chat_call_n_generated(c);
    buf_printf(b,
               ",\"usage\":{\"input_tokens\":%u,\"input_tokens_details\":{\"cached_tokens\":%u,"
               "\"cache_write_tokens\":0},\"output_tokens\":%u,\"output_tokens_details\":{"
               "\"reasoning_tokens\":%u},\"total_tokens\":%u}",
               c->n_prompt, c->n_cached, n, chat_call_n_reasoning(c), c->n_prompt + n);
}

static void append_failure(struct buf *b, const struct api_error *e)
{
    buf_append_str(b, ",\"error\":");
    if (e == NULL) {
        buf_append_str(b, "null");
        return;
    }
    buf_printf(b, "{\"code\":\"%s\",\"message\":",
               e->status == 429   ? "rate_limit_exceeded"
               : e->status >= 500 ? "server_error"
                                  : "invalid_prompt");
    json_append_string(b, e->message, strlen(e->message));
    buf_append_char(b, '}');
}

void openai_response_append(struct buf *b, const struct chat_call *c, enum response_status status,
                            const struct buf *output, const struct api_error *failure)
{
    buf_printf(b, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%llu,\"status\":\"%s\"",
               c->id, (unsigned long long)c->created_s, openai_response_status_text(status));
    append_failure(b, failure);
    buf_printf(b, ",\"incomplete_details\":%s,\"model\":",
               status == RESPONSE_INCOMPLETE ? "{\"reason\":\"max_output_tokens\"}" : "null");
    json_append_string(b, c->model->id, strlen(c->model->id));
    append_settings(b, &c->request);
    buf_append_str(b, ",\"output\":[");
    buf_append(b, buf_str(output), output->len);
    buf_append_char(b, ']');
    if (status == RESPONSE_COMPLETED || status == RESPONSE_INCOMPLETE)
        append_usage(b, c);
    else
        buf_append_str(b, ",\"usage\":null");
    buf_append_char(b, '}');
}
