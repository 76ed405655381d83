/* A body of POST /v1/messages through the parser: no crash; what is accepted is in range and in the
 * form of templates, what is refused says why in JSON that can be read. */
#include "api/anthropic.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check(bool holds)
{
    if (!holds)
        abort();
}

/* User and assistant take turns, the system speaks first or not at all. */
static void check_messages(const json_t *messages)
{
    const char *before = "";
    const json_t *message;
    size_t i;
    check(json_array_size(messages) > 0);
    json_array_foreach(messages, i, message)
    {
        const json_t *content = json_object_get(message, "content");
        const json_t *calls = json_object_get(message, "tool_calls");
        const char *role = json_string_value(json_object_get(message, "role"));
        check(role != NULL && (json_is_string(content) || json_is_null(content)));
        check(strcmp(role, "system") != 0 || i == 0);
        check(strcmp(role, "tool") == 0 || strcmp(role, before) != 0);
        check(!json_is_null(content) || strcmp(role, "assistant") == 0);
        check(calls == NULL || json_array_size(calls) > 0);
        before = role;
    }
    check(strcmp(before, "system") != 0);
}

static void check_request(const struct chat_request *r, bool is_count)
{
    const struct sampling *s = &r->sampling;
    struct error err;
    check(r->model != NULL && (is_count || r->n_tokens_max > 0));
    check_messages(r->messages);
    check(r->tool_choice != CHAT_TOOLS_NAMED || r->tool_name != NULL);
    check(r->tool_choice != CHAT_TOOLS_REQUIRED || json_array_size(r->tools) > 0);
    check(r->n_choices == 1 && !(is_count && r->stream));
    check(r->n_stop <= LIMIT_STOP_STRINGS);
    for (size_t i = 0; i < r->n_stop; i++)
        check(r->stop_len[i] > 0 && r->stop_len[i] <= LIMIT_STOP_STRING_BYTES);
    check(s->temperature >= 0 && (is_count || s->temperature <= 1) && s->top_p > 0 &&
          s->top_p <= 1);
    check(sampling_check(s, INT32_MAX, &err) == 0);
}

static void check_refusal(const struct api_error *e)
{
    struct buf out;
    struct error err;
    json_t *value = NULL;
    check(e->status >= 400 && e->status < 600 && e->message[0] != '\0');
    buf_init(&out, 65536);
    anthropic_append_error(&out, e, "req_1");
    check(json_parse(buf_str(&out), out.len, &value, &err) == 0);
    json_decref(value);
    buf_done(&out);
}

static void read_body(const uint8_t *data, size_t size, bool is_count)
{
    struct chat_request r;
    struct api_error e = {0};
    struct error parse_error;
    chat_request_init(&r);
    if (json_parse((const char *)data, size, &r.body, &parse_error) != 0 ||
        !json_is_object(r.body)) {
        json_decref(r.body);
        return;
    }
    if ((is_count ? anthropic_count_parse(&r, &e) : anthropic_messages_parse(&r, &e)) == 0)
        check_request(&r, is_count);
    else
        check_refusal(&e);
    chat_request_done(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    read_body(data, size, false);
    read_body(data, size, true);
    return 0;
}
