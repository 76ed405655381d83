#include "api/prompt.h"

#include "base/limits.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { MARK_BYTES = 3, MARK_FIRST = 0xE000, MARK_LAST = 0xF8FF }; /* the private use area */

struct scan {
    const struct control_set *controls;
    bool has_controls;
    uint8_t used[(MARK_LAST - MARK_FIRST) / 8 + 1]; /* private characters that the request uses */
};

static void scan_text(struct scan *s, const char *text, size_t len)
{
    token_id id;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)text[i];
        if (!s->has_controls && control_set_match(s->controls, text + i, len - i, &id) > 0)
            s->has_controls = true;
        if ((c == 0xEE || c == 0xEF) && utf8_sequence_length(text + i, len - i) == 3) {
            uint32_t point = utf8_decode(text + i, 3);
            if (point >= MARK_FIRST && point <= MARK_LAST)
                s->used[(point - MARK_FIRST) / 8] |= (uint8_t)(1u << (point - MARK_FIRST) % 8);
        }
    }
}

/* The parser bounds the depth of values (2,048), so recursion is safe. */
static void scan_value(struct scan *s, json_t *v)
{
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_string(v)) {
        scan_text(s, json_string_value(v), json_string_length(v));
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, item) scan_value(s, item);
    } else if (json_is_object(v)) {
        json_object_foreach(v, key, item)
        {
            scan_text(s, key, strlen(key));
            scan_value(s, item);
        }
    }
}

static bool choose_mark(const struct scan *s, char mark[MARK_BYTES + 1])
{
    for (uint32_t i = 0; i <= MARK_LAST - MARK_FIRST; i++) {
        if ((s->used[i / 8] & (1u << i % 8)) == 0) {
            mark[utf8_encode(MARK_FIRST + i, mark)] = '\0';
            return true;
        }
    }
    return false;
}

static void append_marked(struct buf *out, struct buf *scratch, const char *text, size_t len,
                          const struct control_set *controls, const char *mark)
{
    buf_reset(scratch);
    size_t done = 0;
    for (size_t i = 0; mark != NULL && i < len; i++) {
        token_id id;
        if (control_set_match(controls, text + i, len - i, &id) == 0)
            continue;
        size_t first = utf8_sequence_length(text + i, len - i);
        first = first > 0 ? first : 1;
        buf_append(scratch, text + done, i + first - done);
        buf_append(scratch, mark, MARK_BYTES);
        done = i + first;
    }
    buf_append(scratch, text + done, len - done);
    json_append_string(out, buf_str(scratch), scratch->len);
    if (out->error == 0)
        out->error = scratch->error;
}

static void append_value(struct buf *out, struct buf *scratch, json_t *v,
                         const struct control_set *controls, const char *mark)
{
    const char *key;
    json_t *item;
    size_t i;
    if (json_is_string(v)) {
        append_marked(out, scratch, json_string_value(v), json_string_length(v), controls, mark);
    } else if (json_is_array(v)) {
        buf_append_char(out, '[');
        json_array_foreach(v, i, item)
        {
            if (i > 0)
                buf_append_char(out, ',');
            append_value(out, scratch, item, controls, mark);
        }
        buf_append_char(out, ']');
    } else if (json_is_object(v)) {
        const char *comma = "";
        buf_append_char(out, '{');
        json_object_foreach(v, key, item)
        {
            buf_append_str(out, comma);
            append_marked(out, scratch, key, strlen(key), controls, mark);
            buf_append_char(out, ':');
            append_value(out, scratch, item, controls, mark);
            comma = ",";
        }
        buf_append_char(out, '}');
    } else {
        json_append_value(out, v);
    }
}

static bool wants_tools(const struct chat_request *r)
{
    return r->tools != NULL && r->tool_choice != CHAT_TOOLS_NONE;
}

/* Families have different words for thinking; templates ignore those that they do not know. What
 * the request says by chat_template_kwargs wins. */
static void append_thinking(struct buf *out, const struct chat_request *r)
{
    static const char *const switches[] = {"enable_thinking", "thinking"};
    for (size_t i = 0; r->thinking != CHAT_THINKING_DEFAULT && i < 2; i++)
        if (json_object_get(r->template_args, switches[i]) == NULL)
            buf_printf(out, ",\"%s\":%s", switches[i],
                       r->thinking == CHAT_THINKING_ON ? "true" : "false");
    if (r->effort != NULL && json_object_get(r->template_args, "reasoning_effort") == NULL)
        buf_printf(out, ",\"reasoning_effort\":\"%s\"", r->effort);
}

/* Templates that know nothing of tools get them as text in the system message. */
static int add_tool_prompt(const struct prompt_model *m, const struct chat_request *r,
                           struct error *err)
{
    json_t *first = json_array_get(r->messages, 0);
    const char *role = json_string_value(json_object_get(first, "role"));
    const json_t *content = json_object_get(first, "content");
    bool has_system = role != NULL && strcmp(role, "system") == 0 && json_is_string(content);
    struct buf text;
    if (!wants_tools(r) || !m->format->needs_tool_prompt)
        return 0;
    buf_init(&text, LIMIT_HTTP_BODY_BYTES);
    if (has_system) {
        buf_append(&text, json_string_value(content), json_string_length(content));
        buf_append_str(&text, "\n\n");
    }
    int rc = output_format_tool_prompt(r->tools, &text);
    json_t *all = rc == 0 ? json_stringn(buf_str(&text), text.len) : NULL;
    buf_done(&text);
    if (all == NULL)
        return error_set(err, rc != 0 ? rc : E_NOMEM, "the tools cannot be described: %s",
                         error_text(rc != 0 ? rc : E_NOMEM));
    if (has_system)
        rc = json_object_set_new(first, "content", all);
    else
        rc = json_array_insert_new(r->messages, 0,
                                   json_pack("{s:s, s:o}", "role", "system", "content", all));
    return rc != 0 ? error_set(err, E_NOMEM, "out of memory for the tools") : 0;
}

static int build_context(const struct prompt_model *m, const struct chat_request *r,
                         const char *mark, struct buf *out)
{
    struct buf scratch;
    const char *key;
    json_t *v;
    buf_init(&scratch, 4u * LIMIT_PROMPT_BYTES);
    buf_append_str(out, "{\"messages\":");
    append_value(out, &scratch, r->messages, m->controls, mark);
    buf_append_str(out, ",\"tools\":");
    if (wants_tools(r) && !m->format->needs_tool_prompt)
        append_value(out, &scratch, r->tools, m->controls, mark);
    else
        buf_append_str(out, "null");
    buf_append_str(out, ",\"documents\":null,\"add_generation_prompt\":true,\"bos_token\":");
    json_append_string(out, m->bos_text, strlen(m->bos_text));
    buf_append_str(out, ",\"eos_token\":");
    json_append_string(out, m->eos_text, strlen(m->eos_text));
    append_thinking(out, r);
    json_object_foreach(r->template_args, key, v)
    {
        static const char *const ours[] = {"messages",  "tools",     "documents",
                                           "bos_token", "eos_token", "add_generation_prompt"};
        bool is_ours = false;
        for (size_t i = 0; i < sizeof(ours) / sizeof(ours[0]); i++)
            is_ours = is_ours || strcmp(key, ours[i]) == 0;
        if (is_ours)
            continue;
        buf_append_char(out, ',');
        json_append_string(out, key, strlen(key));
        buf_append_char(out, ':');
        json_append_value(out, v);
    }
    buf_done(&scratch);
    return buf_append_char(out, '}');
}

/* Takes the marks out of the text and notes where they were. Returns the new length. */
static size_t strip_marks(char *text, size_t len, const char *mark, size_t *ret_at, size_t *ret_n)
{
    size_t n = 0, to = 0;
    for (size_t i = 0; i < len;) {
        if (len - i >= MARK_BYTES && memcmp(text + i, mark, MARK_BYTES) == 0) {
            ret_at[n++] = to;
            i += MARK_BYTES;
        } else {
            text[to++] = text[i++];
        }
    }
    *ret_n = n;
    return to;
}

static size_t count_marks(const char *text, size_t len, const char *mark)
{
    size_t n = 0;
    for (const char *at = text; (at = memmem(at, len - (size_t)(at - text), mark, MARK_BYTES));
         at += MARK_BYTES)
        n++;
    return n;
}

/* Cuts at the control tokens that are not marked; what is between stays text. */
static int encode_between(const struct prompt_model *m, const char *text, size_t len,
                          const size_t *marks, size_t n_marks, struct token_list *out,
                          struct error *err)
{
    size_t done = 0, k = 0;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < len;) {
        token_id id = -1;
        size_t n = control_set_match(m->controls, text + i, len - i, &id);
        size_t first = n > 0 ? utf8_sequence_length(text + i, len - i) : 1;
        while (k < n_marks && marks[k] <= i)
            k++;
        if (n == 0 || (k < n_marks && marks[k] == i + (first > 0 ? first : 1))) {
            i++;
            continue;
        }
        rc = tokenizer_encode(m->tokenizer, text + done, i - done, 0, out, err);
        if (rc == 0 && token_list_append(out, id) != 0)
            rc = error_set(err, E_NOMEM, "out of memory for a prompt's tokens");
        i += n;
        done = i;
    }
    if (rc == 0)
        rc = tokenizer_encode(m->tokenizer, text + done, len - done, 0, out, err);
    return rc;
}

int prompt_encode_marked(const struct prompt_model *m, char *text, size_t len, const char *mark,
                         struct token_list *out, struct error *err)
{
    bool has_bos = m->bos_text[0] != '\0' && len >= strlen(m->bos_text) &&
                   memcmp(text, m->bos_text, strlen(m->bos_text)) == 0;
    unsigned add_bos = has_bos ? 0 : TOKENIZE_ADD_BOS;
    if (mark == NULL)
        return tokenizer_encode(m->tokenizer, text, len, TOKENIZE_PARSE_SPECIAL | add_bos, out,
                                err);
    size_t n_marks = count_marks(text, len, mark);
    size_t *marks = calloc(n_marks + 1, sizeof(*marks));
    if (marks == NULL)
        return error_set(err, E_NOMEM, "out of memory for a prompt");
    len = strip_marks(text, len, mark, marks, &n_marks);
    int rc = 0;
    if (add_bos != 0 && tokenizer_adds_bos(m->tokenizer) && tokenizer_bos(m->tokenizer) >= 0)
        rc = token_list_append(out, tokenizer_bos(m->tokenizer));
    if (rc != 0)
        error_set(err, rc, "out of memory for a prompt's tokens");
    else
        rc = encode_between(m, text, len, marks, n_marks, out, err);
    free(marks);
    return rc;
}

int prompt_encode(const struct prompt_model *m, const struct chat_prompt *p, uint32_t n_max,
                  struct token_list *out, struct error *err)
{
    uint32_t n_vocab = tokenizer_n_vocab(m->tokenizer);
    const json_t *id;
    size_t i;
    int rc = 0;
    if (p->ids == NULL)
        return tokenizer_encode(m->tokenizer, p->text, p->len,
                                TOKENIZE_ADD_BOS | (p->has_controls ? TOKENIZE_PARSE_SPECIAL : 0),
                                out, err);
    if (json_array_size(p->ids) > n_max)
        return error_set(err, E_LIMIT, "a prompt of %zu tokens; the model's context has %u",
                         json_array_size(p->ids), n_max);
    json_array_foreach(p->ids, i, id)
    {
        json_int_t v = json_integer_value(id);
        if (!json_is_integer(id) || v < 0 || v >= n_vocab)
            return error_set(err, E_INVALID, "token %zu of the prompt is none of this model's", i);
        if ((rc = token_list_append(out, (token_id)v)) != 0)
            return error_set(err, rc, "out of memory for a prompt's tokens");
    }
    return 0;
}

int prompt_build(const struct prompt_model *m, const struct chat_request *r, uint64_t now_s,
                 struct token_list *out, bool *ret_begins_in_reasoning, struct error *err)
{
    struct scan scan = {.controls = m->controls};
    struct buf context, text;
    char mark[MARK_BYTES + 2] = "";
    if (add_tool_prompt(m, r, err) != 0)
        return err->code;
    scan_value(&scan, r->messages);
    if (wants_tools(r))
        scan_value(&scan, r->tools);
    if (scan.has_controls && !choose_mark(&scan, mark))
        return error_set(err, E_INVALID,
                         "the messages use every private-use character and control tokens too");
    const char *used_mark = scan.has_controls ? mark : NULL;
    /* Escapes of JSON make a byte six at most. */
    buf_init(&context, 6u * LIMIT_HTTP_BODY_BYTES);
    buf_init(&text, LIMIT_PROMPT_BYTES);
    int rc = build_context(m, r, used_mark, &context);
    if (rc != 0)
        error_set(err, rc, "%s for the chat template's context", error_text(rc));
    if (rc == 0)
        rc = chat_template_render(m->chat_template, buf_str(&context), context.len, now_s, &text,
                                  err);
    buf_done(&context);
    if (rc == 0 && text.len == 0)
        rc = error_set(err, E_INVALID, "the chat template made an empty prompt of these messages");
    if (rc == 0) {
        *ret_begins_in_reasoning =
            output_format_begins_in_reasoning(m->format, text.data, text.len);
        rc = prompt_encode_marked(m, text.data, text.len, used_mark, out, err);
    }
    buf_done(&text);
    return rc;
}
