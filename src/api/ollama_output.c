/*
 * POST /api/chat and POST /api/generate: the writers. A stream is a line of JSON for each piece and
 * a last one with "done": true; without streaming there is the last one alone, with everything.
 * There is never an empty line: clients parse each.
 */
#include "api/ollama.h"
#include "api/openai.h"
#include "api/request_fields.h"
#include "base/clock.h"

#include <string.h>

static bool is_chat(const struct chat_call *c)
{
    return c->dialect == &ollama_chat_dialect;
}

/* {"model":...,"created_at":"...", */
static void begin_object(struct buf *b, struct chat_call *c)
{
    struct buf *prefix = &c->prefix;
    if (prefix->len == 0) { /* the name as the client wrote it */
        buf_append_str(prefix, "{\"model\":");
        json_append_string(prefix, c->request.model, strlen(c->request.model));
        buf_append_str(prefix, ",\"created_at\":\"");
    }
    buf_append(b, prefix->data, prefix->len);
    ollama_append_time(b, clock_wall_ns());
    buf_append_str(b, "\",");
}

static void append_logprobs(struct buf *b, struct chat_choice *choice)
{
    if (choice->n_logprobs == 0)
        return;
    buf_append_str(b, ",\"logprobs\":[");
    openai_append_logprob_list(b, choice);
    buf_append_char(b, ']');
    chat_choice_drop_logprobs(choice);
}

static void append_joined(struct buf *b, const struct chat_choice *choice,
                          enum output_piece_kind kind, uint32_t tool, bool as_string)
{
    struct buf text;
    buf_init(&text, LIMIT_PROMPT_BYTES);
    chat_choice_join(choice, kind, tool, &text);
    if (as_string)
        json_append_string(b, buf_str(&text), text.len);
    else
        buf_append(b, buf_str(&text), text.len);
    if (text.error != 0)
        b->error = text.error;
    buf_done(&text);
}

/* Its name and arguments are among the choice's pieces: has_whole_tools. Arguments of a complete
 * call are an object of JSON. */
static void append_tool_call(struct buf *b, const struct chat_choice *choice, uint32_t tool)
{
    char id[32];
    chat_choice_tool_id(choice, tool, id);
    buf_printf(b, "{\"id\":\"%s\",\"function\":{\"index\":%u,\"name\":", id, tool);
    append_joined(b, choice, OUTPUT_TOOL_BEGIN, tool, true);
    buf_append_str(b, ",\"arguments\":");
    size_t before = b->len;
    append_joined(b, choice, OUTPUT_TOOL_ARGUMENTS, tool, false);
    buf_append_str(b, b->len == before ? "{}}}" : "}}");
}

/* ---- streams ---- */

static void append_text(struct buf *b, const struct chat_choice *choice,
                        const struct output_piece *p)
{
    bool is_message = is_chat(choice->call);
    bool is_thinking = p->kind == OUTPUT_REASONING;
    buf_append_str(b, is_message ? "\"message\":{\"role\":\"assistant\",\"content\":"
                                 : "\"response\":");
    if (is_thinking)
        buf_append_str(b, "\"\",\"thinking\":");
    json_append_string(b, p->text, p->len);
    buf_append_str(b, is_message ? "}" : "");
}

static void write_piece(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    size_t from = b->len;
    bool is_call = p->kind == OUTPUT_TOOL_END && p->complete;
    if (p->kind != OUTPUT_CONTENT && p->kind != OUTPUT_REASONING && !is_call)
        return;
    begin_object(b, choice->call);
    if (is_call) {
        buf_append_str(b, "\"message\":{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[");
        append_tool_call(b, choice, p->index);
        buf_append_str(b, "]}");
    } else {
        append_text(b, choice, p);
    }
    buf_append_str(b, ",\"done\":false");
    append_logprobs(b, choice);
    buf_append_char(b, '}');
    ollama_end_line(b, from);
}

static void write_finish(struct chat_choice *choice, struct buf *b)
{
    (void)choice, (void)b; /* there is one answer: close has its end */
}

static void write_keepalive(struct chat_call *c, uint32_t n_done, uint32_t n_prompt, struct buf *b)
{
    size_t from = b->len;
    (void)n_done;
    if (n_prompt > 0) /* the API has no word for progress; the tick comes when it takes long */
        return;
    begin_object(b, c);
    buf_append_str(b, is_chat(c) ? "\"message\":{\"role\":\"assistant\",\"content\":\"\"}"
                                 : "\"response\":\"\"");
    buf_append_str(b, ",\"done\":false}");
    ollama_end_line(b, from);
}

/* ---- the last line, and whole answers ---- */

static const char *done_reason(const struct chat_call *c)
{
    double keep_alive_s = -1;
    struct api_error e;
    if (!c->request.is_load)
        return c->choices[0].finish == CHAT_FINISH_LENGTH ? "length" : "stop";
    (void)ollama_read_duration(field_get(c->request.body, "keep_alive"), "", &keep_alive_s, &e);
    return keep_alive_s == 0 ? "unload" : "load";
}

static void append_time_field(struct buf *b, const char *name, uint64_t ns)
{
    buf_printf(b, ",\"%s\":%llu", name, (unsigned long long)ns);
}

/* In nanoseconds. total: from the complete request to this line, with waiting in the queue.
 * load: models are loaded before they are served. prompt_eval: the backend's prefill, of all tokens
 * of the prompt, those that the cache had, too. eval: the backend's decoding, first to last token.
 */
static void append_times(struct buf *b, const struct chat_call *c)
{
    append_time_field(b, "total_duration", clock_now_ns() - c->arrival_ns);
    append_time_field(b, "load_duration", 0);
    buf_printf(b, ",\"prompt_eval_count\":%u", c->n_prompt);
    append_time_field(b, "prompt_eval_duration", c->prefill_ns);
    buf_printf(b, ",\"eval_count\":%u", chat_call_n_generated(c));
    append_time_field(b, "eval_duration", c->decode_ns);
}

/* The tokens that a later request may put before its prompt. */
static void append_context(struct buf *b, const struct chat_call *c)
{
    const struct token_list *lists[] = {&c->prompts[0], &c->choices[0].tokens};
    const char *comma = "";
    buf_append_str(b, ",\"context\":[");
    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < lists[k]->n; i++, comma = ",")
            buf_printf(b, "%s%d", comma, lists[k]->ids[i]);
    buf_append_char(b, ']');
}

static void append_end(struct buf *b, struct chat_call *c)
{
    buf_printf(b, ",\"done\":true,\"done_reason\":\"%s\"", done_reason(c));
    if (!c->request.is_load) {
        append_times(b, c);
        if (c->request.keeps_tokens)
            append_context(b, c);
        append_logprobs(b, &c->choices[0]);
    }
    buf_append_char(b, '}');
}

static void close_stream(struct chat_call *c, struct buf *b)
{
    size_t from = b->len;
    begin_object(b, c);
    buf_append_str(b, is_chat(c) ? "\"message\":{\"role\":\"assistant\",\"content\":\"\"}"
                                 : "\"response\":\"\"");
    append_end(b, c);
    ollama_end_line(b, from);
}

static bool has_kind(const struct chat_choice *choice, enum output_piece_kind kind)
{
    for (size_t i = 0; i < choice->n_pieces; i++)
        if (choice->pieces[i].kind == kind)
            return true;
    return false;
}

static void append_answer(struct buf *b, const struct chat_choice *choice)
{
    const char *comma = ",\"tool_calls\":[";
    append_joined(b, choice, OUTPUT_CONTENT, 0, true);
    if (has_kind(choice, OUTPUT_REASONING)) {
        buf_append_str(b, ",\"thinking\":");
        append_joined(b, choice, OUTPUT_REASONING, 0, true);
    }
    for (size_t i = 0; i < choice->n_pieces; i++) {
        if (choice->pieces[i].kind != OUTPUT_TOOL_END || !choice->pieces[i].complete)
            continue;
        buf_append_str(b, comma);
        append_tool_call(b, choice, choice->pieces[i].tool);
        comma = ",";
    }
    buf_append_str(b, strcmp(comma, ",") == 0 ? "]" : "");
}

static void write_whole(struct chat_call *c, struct buf *b)
{
    begin_object(b, c);
    buf_append_str(b, is_chat(c) ? "\"message\":{\"role\":\"assistant\",\"content\":"
                                 : "\"response\":");
    if (c->request.is_load)
        buf_append_str(b, "\"\"");
    else
        append_answer(b, &c->choices[0]);
    buf_append_str(b, is_chat(c) ? "}" : "");
    append_end(b, c);
}

static void append_error(const struct chat_call *c, const struct api_error *e, struct buf *b)
{
    size_t from = b->len;
    buf_append_str(b, "{\"error\":");
    if (e->code != NULL && strcmp(e->code, "model_not_found") == 0) {
        struct buf text; /* in the words that clients look for */
        buf_init(&text, LIMIT_HTTP_URL_BYTES);
        buf_printf(&text, "model '%.256s' not found", c->request.model);
        json_append_string(b, buf_str(&text), text.len);
        buf_done(&text);
    } else {
        json_append_string(b, e->message, strlen(e->message));
    }
    buf_append_char(b, '}');
    if (c->is_streaming)
        ollama_end_line(b, from);
}

const struct chat_dialect ollama_chat_dialect = {
    .name = "ollama-chat",
    .stream_type = OLLAMA_STREAM_TYPE,
    .id_prefix = "ollama-",
    .has_whole_tools = true,
    .find_model = ollama_find_model,
    .parse = ollama_chat_parse,
    .piece = write_piece,
    .finish = write_finish,
    .close = close_stream,
    .keepalive = write_keepalive,
    .whole = write_whole,
    .error = append_error,
};

const struct chat_dialect ollama_generate_dialect = {
    .name = "ollama-generate",
    .stream_type = OLLAMA_STREAM_TYPE,
    .id_prefix = "ollama-",
    .has_whole_tools = true,
    .find_model = ollama_find_model,
    .parse = ollama_generate_parse,
    .piece = write_piece,
    .finish = write_finish,
    .close = close_stream,
    .keepalive = write_keepalive,
    .whole = write_whole,
    .error = append_error,
};
