/* A body of POST /api/chat and POST /api/generate through the parsers: no crash, and what is
 * accepted is in range, what is refused says why in JSON that can be read. The same bytes as text
 * of a line: no client finds more than one line in it. */
#include "api/ollama.h"

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

static void check_messages(const json_t *messages)
{
    const json_t *message;
    size_t i;
    json_array_foreach(messages, i, message)
    {
        const json_t *content = json_object_get(message, "content");
        check(json_is_string(json_object_get(message, "role")));
        check(json_is_string(content) || json_is_null(content));
    }
}

static void check_request(const struct chat_request *r)
{
    const struct sampling *s = &r->sampling;
    struct error err;
    check(r->model != NULL && r->model[0] != '\0');
    check(r->is_load == (r->messages == NULL && r->prompts == NULL));
    check(r->n_choices == 1 && r->n_prompts == 1);
    check_messages(r->messages);
    for (size_t i = 0; i < r->n_stop; i++)
        check(r->stop_len[i] > 0 && r->stop_len[i] <= LIMIT_STOP_STRING_BYTES);
    check(r->n_stop <= LIMIT_STOP_STRINGS && r->n_top_logprobs <= CHAT_TOP_LOGPROBS_MAX);
    check(!r->has_grammar || r->grammar != GRAMMAR_JSON_SCHEMA || r->grammar_len > 0);
    check(r->context == NULL || json_array_size(r->context) > 0);
    check(isfinite(s->temperature) && s->temperature >= 0 && s->top_p > 0 && s->top_p <= 1);
    check(sampling_check(s, INT32_MAX, &err) == 0);
}

static void check_error(const struct api_error *e)
{
    struct buf out;
    struct error err;
    json_t *value = NULL;
    check(e->status >= 400 && e->status < 600 && e->message[0] != '\0');
    buf_init(&out, 65536);
    api_error_append_for(&out, e, "/api/chat");
    check(json_parse(buf_str(&out), out.len, &value, &err) == 0);
    check(json_is_string(json_object_get(value, "error")));
    json_decref(value);
    buf_done(&out);
}

static void parse(const uint8_t *data, size_t size,
                  int (*parser)(struct chat_request *r, struct api_error *e))
{
    struct chat_request r;
    struct api_error e = {0};
    struct error err;
    chat_request_init(&r);
    if (json_parse((const char *)data, size, &r.body, &err) == 0 && json_is_object(r.body)) {
        if (parser(&r, &e) == 0)
            check_request(&r);
        else
            check_error(&e);
    }
    chat_request_done(&r);
}

static void check_line(const uint8_t *data, size_t size)
{
    struct buf text, line;
    struct error err;
    json_t *before = NULL, *after = NULL;
    buf_init(&text, 16u << 20);
    buf_init(&line, 16u << 20);
    buf_append_str(&line, "{}\n");
    size_t from = line.len;
    json_append_string(&text, (const char *)data, size);
    buf_append_str(&line, "{\n\"a\":");
    buf_append(&line, text.data, text.len);
    buf_append_char(&line, '}');
    ollama_end_line(&line, from);
    check(line.error == 0 && memchr(line.data + from, '\n', line.len - from - 1) == NULL);
    check(memmem(line.data, line.len, "\xe2\x80\xa8", 3) == NULL);
    check(memmem(line.data, line.len, "\xc2\x85", 2) == NULL);
    /* NUL is the one character that documents do not take. */
    if (memchr(data, '\0', size) == NULL) {
        buf_reset(&text);
        buf_append_str(&text, "{\"a\":");
        json_append_string(&text, (const char *)data, size);
        buf_append_char(&text, '}');
        check(json_parse(buf_str(&text), text.len, &before, &err) == 0);
        check(json_parse(line.data + from, line.len - from, &after, &err) == 0);
        check(json_equal(before, after));
    }
    json_decref(before);
    json_decref(after);
    buf_done(&text);
    buf_done(&line);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    parse(data, size, ollama_chat_parse);
    parse(data, size, ollama_generate_parse);
    if (size > 0)
        check_line(data, size);
    return 0;
}
