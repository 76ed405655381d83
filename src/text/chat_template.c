#include "text/chat_template.h"

#include "base/limits.h"
#include "text/rust/shoal_rust.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct chat_template {
    struct shoal_rust_template *made;
    size_t len;
    char source[]; /* NUL follows */
};

/* What the Rust library hands back, and what became of it. */
struct sink {
    struct buf *out;
    int rc;
};

static int code_of(int32_t status)
{
    switch (status) {
    case SHOAL_RUST_OK:
        return 0;
    case SHOAL_RUST_FORMAT:
        return E_FORMAT;
    case SHOAL_RUST_LIMIT:
        return E_LIMIT;
    case SHOAL_RUST_REFUSED:
        return E_INVALID;
    default:
        return E_INTERNAL;
    }
}

int chat_template_new(const char *source, size_t len, struct chat_template **ret_template,
                      struct error *err)
{
    char message[ERROR_MESSAGE_BYTES];
    struct shoal_rust_template *made = NULL;
    int rc = code_of(shoal_rust_template_new(source, len, &made, message, sizeof(message)));
    if (rc != 0)
        return error_set(err, rc, "%s", message);
    struct chat_template *t = malloc(sizeof(*t) + len + 1);
    if (t == NULL) {
        shoal_rust_template_free(made);
        return error_set(err, E_NOMEM, "out of memory for a chat template");
    }
    t->made = made;
    t->len = len;
    memcpy(t->source, source, len);
    t->source[len] = '\0';
    *ret_template = t;
    return 0;
}

void chat_template_free(struct chat_template *t)
{
    if (t != NULL)
        shoal_rust_template_free(t->made);
    free(t);
}

const char *chat_template_source(const struct chat_template *t, size_t *ret_len)
{
    *ret_len = t->len;
    return t->source;
}

static void take_text(void *arg, const char *text, size_t len)
{
    struct sink *sink = arg;
    sink->rc = buf_append(sink->out, text, len);
}

int chat_template_render(const struct chat_template *t, const char *context, size_t len,
                         uint64_t now_s, struct buf *out, struct error *err)
{
    assert(t != NULL);
    if (out->error != 0)
        return error_set(err, out->error, "the prompt's buffer failed before");
    char message[ERROR_MESSAGE_BYTES];
    size_t max_bytes = out->max_len - out->len;
    if (max_bytes > LIMIT_PROMPT_BYTES)
        max_bytes = LIMIT_PROMPT_BYTES;
    struct sink sink = {.out = out};
    int rc = code_of(shoal_rust_template_render(t->made, context, len, now_s, max_bytes, take_text,
                                                &sink, message, sizeof(message)));
    if (rc != 0)
        return error_set(err, rc, "%s", message);
    if (sink.rc != 0)
        return error_set(err, sink.rc, "%s: a prompt of the chat template", error_text(sink.rc));
    return 0;
}
