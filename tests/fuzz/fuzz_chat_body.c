/* A body of POST /v1/chat/completions through the parser: no crash, and what is accepted is in
 * range, what is refused says why in JSON that can be read. */
#include "api/openai.h"

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

static void check_request(const struct chat_request *r)
{
    const struct sampling *s = &r->sampling;
    struct error err;
    size_t i;
    json_t *message;
    check(r->model != NULL && json_array_size(r->messages) > 0);
    check(r->tool_choice != CHAT_TOOLS_NAMED || r->tool_name != NULL);
    check(r->tool_choice != CHAT_TOOLS_REQUIRED || json_array_size(r->tools) > 0);
    json_array_foreach(r->messages, i, message)
    {
        const json_t *content = json_object_get(message, "content");
        check(json_is_string(json_object_get(message, "role")));
        check(json_is_string(content) || json_is_null(content));
    }
    check(r->n_choices >= 1 && r->n_choices <= CHAT_CHOICES_MAX);
    check(r->n_stop <= LIMIT_STOP_STRINGS && s->n_bias <= LIMIT_LOGIT_BIAS);
    for (i = 0; i < r->n_stop; i++)
        check(r->stop_len[i] > 0 && r->stop_len[i] <= LIMIT_STOP_STRING_BYTES);
    check(r->stream || !r->include_usage);
    check(isfinite(s->temperature) && s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1);
    /* The sampler agrees, unless a biased token is outside of its vocabulary. */
    check(sampling_check(s, INT32_MAX, &err) == 0 || s->n_bias > 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_request r;
    struct api_error e = {0};
    struct error parse_error;
    chat_request_init(&r);
    if (json_parse((const char *)data, size, &r.body, &parse_error) != 0 ||
        !json_is_object(r.body)) {
        json_decref(r.body);
        return 0;
    }
    if (openai_chat_parse(&r, &e) == 0) {
        check_request(&r);
    } else {
        struct buf out;
        struct error err;
        json_t *value = NULL;
        check(e.status >= 400 && e.status < 600 && e.message[0] != '\0');
        buf_init(&out, 65536);
        api_error_append(&out, &e);
        check(json_parse(buf_str(&out), out.len, &value, &err) == 0);
        json_decref(value);
        buf_done(&out);
    }
    chat_request_done(&r);
    return 0;
}
