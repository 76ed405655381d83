/*
 * Renders chat templates for test_chat_templates.py. Each line of stdin is {"template": text,
 * "context": object, "now": seconds}; each line of stdout is the answer, {"text": text} or
 * {"error": text, "code": name}, in the same order.
 */
#include "base/json.h"
#include "base/limits.h"
#include "text/chat_template.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int render(const json_t *request, struct buf *text, struct error *err)
{
    const json_t *source = json_object_get(request, "template");
    char *context = json_dumps(json_object_get(request, "context"), JSON_COMPACT);
    uint64_t now_s = (uint64_t)json_integer_value(json_object_get(request, "now"));
    struct chat_template *t = NULL;
    int rc;
    if (!json_is_string(source) || context == NULL) {
        rc = error_set(err, E_INVALID, "a request needs a template and a context");
        goto out;
    }
    rc = chat_template_new(json_string_value(source), json_string_length(source), &t, err);
    if (rc != 0)
        goto out;
    rc = chat_template_render(t, context, strlen(context), now_s, text, err);
out:
    chat_template_free(t);
    free(context);
    return rc;
}

static int answer(const char *line, size_t len, struct buf *reply)
{
    struct error err = {0};
    struct buf text;
    json_t *request = NULL;
    buf_init(&text, LIMIT_PROMPT_BYTES);
    int rc = json_parse(line, len, &request, &err);
    if (rc == 0)
        rc = render(request, &text, &err);
    if (rc == 0) {
        buf_append_str(reply, "{\"text\":");
        json_append_string(reply, buf_str(&text), text.len);
    } else {
        buf_printf(reply, "{\"code\":\"%s\",\"error\":", error_name(rc));
        json_append_string(reply, err.message, strlen(err.message));
    }
    rc = buf_append_str(reply, "}\n");
    json_decref(request);
    buf_done(&text);
    return rc;
}

int main(void)
{
    char *line = NULL;
    size_t cap = 0;
    ssize_t len;
    struct buf reply;
    int rc = 0;
    buf_init(&reply, (size_t)8 * LIMIT_PROMPT_BYTES);
    while (rc == 0 && (len = getline(&line, &cap, stdin)) > 0) {
        buf_reset(&reply);
        rc = answer(line, (size_t)len, &reply);
        fwrite(reply.data, 1, reply.len, stdout);
        fflush(stdout);
    }
    buf_done(&reply);
    free(line);
    return rc != 0;
}
