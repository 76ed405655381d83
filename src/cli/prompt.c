#include "cli/prompt.h"

#include "base/clock.h"
#include "base/json.h"
#include "base/limits.h"
#include "text/chat_template.h"

#include <string.h>

static void append_message(struct buf *b, const char *role, const char *text, size_t len)
{
    buf_printf(b, "{\"role\":\"%s\",\"content\":", role);
    json_append_string(b, text, len);
    buf_append_char(b, '}');
}

static void append_special(struct buf *b, const char *name, const struct tokenizer *t, token_id id)
{
    size_t len = 0;
    const char *text = id >= 0 ? tokenizer_piece(t, id, true, &len) : "";
    buf_printf(b, ",\"%s\":", name);
    json_append_string(b, text, len);
}

/* The JSON object that a template renders. */
static int make_context(const struct tokenizer *t, const char *text, size_t len, const char *system,
                        struct buf *b)
{
    buf_append_str(b, "{\"messages\":[");
    if (system != NULL) {
        append_message(b, "system", system, strlen(system));
        buf_append_char(b, ',');
    }
    append_message(b, "user", text, len);
    buf_append_str(b, "],\"add_generation_prompt\":true,\"tools\":null");
    append_special(b, "bos_token", t, tokenizer_bos(t));
    append_special(b, "eos_token", t, tokenizer_eos(t));
    return buf_append_char(b, '}');
}

static int render(const struct model *model, const struct tokenizer *t, const char *text,
                  size_t len, const char *system, struct buf *out, struct error *err)
{
    struct gguf_string source;
    struct chat_template *template = NULL;
    struct buf context;
    int rc = gguf_file_get_string(model->file, "tokenizer.chat_template", &source, err);
    if (rc == E_NOTFOUND)
        return error_set(err, rc, "the model %s has no chat template: use --raw", model->name);
    buf_init(&context, 4u * LIMIT_PROMPT_BYTES);
    if (rc == 0)
        rc = chat_template_new(source.data, source.len, &template, err);
    if (rc == 0) {
        rc = make_context(t, text, len, system, &context);
        if (rc != 0)
            error_set(err, rc, "the prompt is too long for its template");
    }
    if (rc == 0)
        rc = chat_template_render(template, context.data, context.len,
                                  clock_wall_ns() / 1000000000u, out, err);
    chat_template_free(template);
    buf_done(&context);
    return rc != 0 ? error_wrap(err, rc, "chat template") : 0;
}

int prompt_tokens(const struct model *model, const struct tokenizer *tokenizer, const char *text,
                  size_t len, const struct prompt_options *o, struct token_list *out,
                  struct error *err)
{
    if (o->is_raw)
        return tokenizer_encode(tokenizer, text, len, TOKENIZE_ADD_BOS, out, err);
    struct buf rendered;
    buf_init(&rendered, LIMIT_PROMPT_BYTES);
    int rc = render(model, tokenizer, text, len, o->system, &rendered, err);
    /* Templates write the BOS token themselves. */
    if (rc == 0)
        rc = tokenizer_encode(tokenizer, buf_str(&rendered), rendered.len, TOKENIZE_PARSE_SPECIAL,
                              out, err);
    buf_done(&rendered);
    return rc;
}
