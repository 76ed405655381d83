/*
 * POST /v1/chat/completions: the writer; openai_request.c has the parser.
 *
 * Source: OpenAI API reference ("chat.completion", "chat.completion.chunk"); WHATWG HTML, section
 * 9.2 (server-sent events).
 */
#include "api/openai.h"

#include "base/json.h"

#include <string.h>

static const char *finish_text(const struct chat_choice *choice)
{
    switch (choice->finish) {
    case CHAT_FINISH_LENGTH:
        return "length";
    case CHAT_FINISH_TOOLS:
        return "tool_calls";
    default:
        return "stop";
    }
}

void openai_append_usage(struct buf *b, const struct chat_call *c)
{
    uint32_t n = chat_call_n_generated(c);
    buf_printf(b,
               "\"usage\":{\"prompt_tokens\":%u,\"completion_tokens\":%u,\"total_tokens\":%u,"
               "\"prompt_tokens_details\":{\"cached_tokens\":%u},"
               "\"completion_tokens_details\":{\"reasoning_tokens\":%u}}",
               c->n_prompt, n, c->n_prompt + n, c->n_cached, chat_call_n_reasoning(c));
}

void openai_append_error(const struct chat_call *c, const struct api_error *e, struct buf *out)
{
    if (c->is_streaming)
        buf_append_str(out, "data: ");
    api_error_append(out, e);
    if (c->is_streaming)
        buf_append_str(out, "\n\n");
}

void openai_keepalive(struct chat_call *c, uint32_t n_done, uint32_t n_prompt, struct buf *out)
{
    (void)c;
    if (n_prompt > 0)
        buf_printf(out, ": prefill %u/%u\n\n", n_done, n_prompt);
    else
        buf_append_str(out, ": keepalive\n\n");
}

/* ---- log-probabilities ---- */

static void append_token(struct buf *b, const struct chat_choice *choice, int32_t id, float logprob)
{
    size_t len;
    const char *text = tokenizer_piece(choice->call->model->tokenizer, id, true, &len);
    buf_append_str(b, "{\"token\":");
    json_append_string(b, text, len);
    buf_append_str(b, ",\"logprob\":");
    json_append_double(b, (double)logprob);
    buf_append_str(b, ",\"bytes\":[");
    for (size_t i = 0; i < len; i++)
        buf_printf(b, "%s%u", i > 0 ? "," : "", (unsigned)(unsigned char)text[i]);
    buf_append_char(b, ']');
}

void openai_append_logprob_list(struct buf *b, const struct chat_choice *choice)
{
    for (size_t i = 0; i < choice->n_logprobs; i++) {
        const struct chat_logprobs *t = &choice->logprobs[i];
        buf_append_str(b, i > 0 ? "," : "");
        append_token(b, choice, t->token, t->of.chosen);
        buf_append_str(b, ",\"top_logprobs\":[");
        for (uint32_t k = 0; k < t->of.n_top; k++) {
            buf_append_str(b, k > 0 ? "," : "");
            append_token(b, choice, t->of.top[k].token, t->of.top[k].logprob);
            buf_append_char(b, '}');
        }
        buf_append_str(b, "]}");
    }
}

static void append_logprobs(struct buf *b, struct chat_choice *choice)
{
    if (choice->n_logprobs == 0) {
        buf_append_str(b, ",\"logprobs\":null");
        return;
    }
    buf_append_str(b, ",\"logprobs\":{\"content\":[");
    openai_append_logprob_list(b, choice);
    buf_append_str(b, "],\"refusal\":null}");
    chat_choice_drop_logprobs(choice);
}

/* ---- streams ---- */

static void append_prefix(struct chat_call *c)
{
    struct buf *b = &c->prefix;
    buf_append_str(b, "data: {\"id\":\"");
    buf_append_str(b, c->id);
    buf_printf(b, "\",\"object\":\"chat.completion.chunk\",\"created\":%llu,\"model\":",
               (unsigned long long)c->created_s);
    json_append_string(b, c->model->id, strlen(c->model->id));
    buf_append_str(b, ",\"choices\":[");
}

static void begin_chunk(struct buf *b, const struct chat_choice *choice)
{
    char index[16];
    int n = 0;
    uint32_t p = 1;
    while (choice->index / p >= 10)
        p *= 10;
    for (; p > 0; p /= 10)
        index[n++] = (char)('0' + choice->index / p % 10); /* printf is slow, this is often */
    buf_append(b, choice->call->prefix.data, choice->call->prefix.len);
    buf_append_str(b, "{\"index\":");
    buf_append(b, index, (size_t)n);
    buf_append_str(b, ",\"delta\":{");
}

static void end_chunk(struct buf *b, struct chat_choice *choice, const char *finish)
{
    buf_append_char(b, '}');
    append_logprobs(b, choice);
    if (finish != NULL) {
        buf_append_str(b, ",\"finish_reason\":\"");
        buf_append_str(b, finish);
        buf_append_char(b, '"');
    } else {
        buf_append_str(b, ",\"finish_reason\":null");
    }
    buf_append_str(b, choice->call->request.include_usage ? "}],\"usage\":null}\n\n" : "}]}\n\n");
}

static void open_stream(struct chat_call *c, struct buf *b)
{
    append_prefix(c);
    for (uint32_t i = 0; i < c->n_choices; i++) {
        begin_chunk(b, &c->choices[i]);
        buf_append_str(b, "\"role\":\"assistant\",\"content\":\"\",\"refusal\":null");
        end_chunk(b, &c->choices[i], NULL);
    }
}

static void append_tool_piece(struct buf *b, const struct chat_choice *choice,
                              const struct output_piece *p)
{
    char id[32];
    buf_printf(b, "\"tool_calls\":[{\"index\":%u,", p->index);
    if (p->kind == OUTPUT_TOOL_BEGIN) { /* id, type and name only once: clients join repeats */
        chat_choice_tool_id(choice, p->index, id);
        buf_printf(b, "\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":", id);
        json_append_string(b, p->text, p->len);
        buf_append_str(b, ",\"arguments\":\"\"}}]");
        return;
    }
    buf_append_str(b, "\"function\":{\"arguments\":");
    json_append_string(b, p->text, p->len);
    buf_append_str(b, "}}]");
}

static void write_piece(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    if (p->kind == OUTPUT_TOOL_END)
        return;
    begin_chunk(b, choice);
    if (p->kind == OUTPUT_CONTENT) {
        buf_append_str(b, "\"content\":");
        json_append_string(b, p->text, p->len);
    } else if (p->kind == OUTPUT_REASONING) { /* clients are split between the two names */
        buf_append_str(b, "\"reasoning_content\":");
        json_append_string(b, p->text, p->len);
        buf_append_str(b, ",\"reasoning\":");
        json_append_string(b, p->text, p->len);
    } else {
        append_tool_piece(b, choice, p);
    }
    end_chunk(b, choice, NULL);
}

static void write_finish(struct chat_choice *choice, struct buf *b)
{
    begin_chunk(b, choice);
    end_chunk(b, choice, finish_text(choice));
}

static void close_stream(struct chat_call *c, struct buf *b)
{
    if (c->request.include_usage) {
        buf_append(b, c->prefix.data, c->prefix.len);
        buf_append_str(b, "],");
        openai_append_usage(b, c);
        buf_append_str(b, "}\n\n");
    }
    buf_append_str(b, "data: [DONE]\n\n");
}

/* ---- whole answers ---- */

static void append_joined(struct buf *b, const struct chat_choice *choice,
                          enum output_piece_kind kind, uint32_t tool)
{
    struct buf text;
    buf_init(&text, LIMIT_PROMPT_BYTES);
    chat_choice_join(choice, kind, tool, &text);
    json_append_string(b, buf_str(&text), text.len);
    if (text.error != 0)
        b->error = text.error;
    buf_done(&text);
}

static bool has_kind(const struct chat_choice *choice, enum output_piece_kind kind)
{
    for (size_t i = 0; i < choice->n_pieces; i++)
        if (choice->pieces[i].kind == kind)
            return true;
    return false;
}

static void append_message(struct buf *b, const struct chat_choice *choice)
{
    char id[32];
    bool has_tools = choice->n_tools > 0;
    buf_append_str(b, "{\"role\":\"assistant\",\"content\":");
    if (has_tools && !has_kind(choice, OUTPUT_CONTENT))
        buf_append_str(b, "null");
    else
        append_joined(b, choice, OUTPUT_CONTENT, 0);
    buf_append_str(b, ",\"refusal\":null");
    if (has_kind(choice, OUTPUT_REASONING)) {
        buf_append_str(b, ",\"reasoning_content\":");
        append_joined(b, choice, OUTPUT_REASONING, 0);
        buf_append_str(b, ",\"reasoning\":");
        append_joined(b, choice, OUTPUT_REASONING, 0);
    }
    if (has_tools)
        buf_append_str(b, ",\"tool_calls\":[");
    for (uint32_t i = 0; i < choice->n_tools; i++) {
        chat_choice_tool_id(choice, i, id);
        buf_printf(b, "%s{\"id\":\"%s\",\"type\":\"function\",\"function\":{\"name\":",
                   i > 0 ? "," : "", id);
        append_joined(b, choice, OUTPUT_TOOL_BEGIN, i);
        buf_append_str(b, ",\"arguments\":");
        append_joined(b, choice, OUTPUT_TOOL_ARGUMENTS, i);
        buf_append_str(b, "}}");
    }
    buf_append_str(b, has_tools ? "]}" : "}");
}

static void write_whole(struct chat_call *c, struct buf *b)
{
    buf_printf(b,
               "{\"id\":\"%s\",\"object\":\"chat.completion\",\"created\":%llu,\"model\":", c->id,
               (unsigned long long)c->created_s);
    json_append_string(b, c->model->id, strlen(c->model->id));
    buf_append_str(b, ",\"choices\":[");
    for (uint32_t i = 0; i < c->n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        buf_printf(b, "%s{\"index\":%u,\"message\":", i > 0 ? "," : "", i);
        append_message(b, choice);
        append_logprobs(b, choice);
        buf_printf(b, ",\"finish_reason\":\"%s\"}", finish_text(choice));
    }
    buf_append_str(b, "],");
    openai_append_usage(b, c);
    buf_append_char(b, '}');
}

const struct chat_dialect openai_chat_dialect = {
    .name = "chat",
    .stream_type = "text/event-stream; charset=utf-8",
    .id_prefix = "chatcmpl-",
    .parse = openai_chat_parse,
    .open = open_stream,
    .piece = write_piece,
    .finish = write_finish,
    .close = close_stream,
    .keepalive = openai_keepalive,
    .whole = write_whole,
    .error = openai_append_error,
};
