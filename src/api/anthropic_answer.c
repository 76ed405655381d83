/*
 * Messages as Anthropic writes them, whole and as a stream of events.
 *
 * An answer is a list of blocks. Each has its index, a start, deltas and a stop; a tool's input
 * begins as {} and its deltas are pieces of JSON. The usage that is known only at the end comes
 * with message_delta and replaces what message_start said.
 *
 * Source: Anthropic API reference ("Messages", "Streaming messages").
 */
#include "api/anthropic.h"

#include "base/json.h"

#include <string.h>

/* Clients want a signature behind each thinking block and hand both back. There is nothing to
 * prove here: thinking that comes back is taken as the text that it is. So the signature is the
 * same for all: the name of this server in Base64. */
static const char thinking_signature[] = "c2hvYWw=";

enum open_block { OPEN_NONE, OPEN_TEXT, OPEN_THINKING, OPEN_TOOL };

struct stream_state {
    enum open_block open;
    uint32_t tool, n_blocks;
    bool omits_thinking;
};

static const char *stop_reason(const struct chat_choice *choice)
{
    switch (choice->finish) {
    case CHAT_FINISH_STOP_STRING:
        return "stop_sequence";
    case CHAT_FINISH_TOOLS:
        return "tool_use";
    case CHAT_FINISH_LENGTH: /* what was asked for was more than the context had room for */
        return choice->n_generated < choice->call->request.n_tokens_max
                   ? "model_context_window_exceeded"
                   : "max_tokens";
    default:
        return "end_turn";
    }
}

static void append_stop(struct buf *b, const struct chat_choice *choice)
{
    const struct chat_request *r = &choice->call->request;
    buf_printf(b, "\"stop_reason\":\"%s\",\"stop_sequence\":", stop_reason(choice));
    if (choice->finish == CHAT_FINISH_STOP_STRING)
        json_append_string(b, r->stop[choice->stop_index], r->stop_len[choice->stop_index]);
    else
        buf_append_str(b, "null");
    buf_append_str(b, ",\"stop_details\":null");
}

/* input_tokens leaves out what came from the cache. The cache writes by itself and costs nobody
 * anything, so nothing counts as written to it. */
static void append_usage(struct buf *b, const struct chat_call *c)
{
    uint32_t n_cached = c->n_cached < c->n_prompt ? c->n_cached : c->n_prompt;
    buf_printf(b,
               "\"usage\":{\"input_tokens\":%u,\"cache_creation_input_tokens\":0,"
               "\"cache_read_input_tokens\":%u,\"cache_creation\":{\"ephemeral_5m_input_tokens\":0,"
               "\"ephemeral_1h_input_tokens\":0},\"output_tokens\":%u,"
               "\"output_tokens_details\":{\"thinking_tokens\":%u}}",
               c->n_prompt - n_cached, n_cached, chat_call_n_generated(c),
               chat_call_n_reasoning(c));
}

static void append_message_head(struct buf *b, const struct chat_call *c)
{
    buf_printf(b, "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", c->id);
    json_append_string(b, c->model->id, strlen(c->model->id));
    buf_append_str(b, ",\"content\":[");
}

/* "toolu_" and what is unique of the call. */
static void append_tool_head(struct buf *b, const struct chat_choice *choice, uint32_t tool,
                             const char *name, size_t len)
{
    char id[32];
    chat_choice_tool_id(choice, tool, id);
    const char *unique = strchr(id, '_');
    buf_printf(b, "{\"type\":\"tool_use\",\"id\":\"toolu_%s\",\"name\":",
               unique != NULL ? unique + 1 : id);
    json_append_string(b, name, len);
    buf_append_str(b, ",\"input\":");
}

/* ---- streams ---- */

static void open_stream(struct chat_call *c, struct buf *b)
{
    struct stream_state *s = c->state;
    s->omits_thinking = anthropic_omits_thinking(&c->request);
    buf_append_str(b, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":");
    append_message_head(b, c);
    buf_append_str(b, "],\"stop_reason\":null,\"stop_sequence\":null,\"stop_details\":null,");
    append_usage(b, c);
    buf_append_str(b, "}}\n\n");
}

static void append_delta(struct chat_call *c, const char *text, size_t len, struct buf *b)
{
    buf_append(b, c->prefix.data, c->prefix.len);
    json_append_string(b, text, len);
    buf_append_str(b, "}}\n\n");
}

static void set_delta(struct chat_call *c, const char *type, const char *name)
{
    const struct stream_state *s = c->state;
    buf_reset(&c->prefix);
    buf_printf(&c->prefix,
               "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":%u,"
               "\"delta\":{\"type\":\"%s\",\"%s\":",
               s->n_blocks, type, name);
}

static void close_block(struct chat_call *c, struct buf *b)
{
    struct stream_state *s = c->state;
    if (s->open == OPEN_NONE)
        return;
    if (s->open == OPEN_THINKING) {
        set_delta(c, "signature_delta", "signature");
        append_delta(c, thinking_signature, strlen(thinking_signature), b);
    }
    buf_printf(
        b, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\",\"index\":%u}\n\n",
        s->n_blocks);
    s->n_blocks++;
    s->open = OPEN_NONE;
}

static void open_block(struct chat_choice *choice, const struct output_piece *p,
                       enum open_block kind, struct buf *b)
{
    struct chat_call *c = choice->call;
    struct stream_state *s = c->state;
    close_block(c, b);
    buf_printf(b,
               "event: content_block_start\ndata: {\"type\":\"content_block_start\",\"index\":%u,"
               "\"content_block\":",
               s->n_blocks);
    if (kind == OPEN_TEXT) {
        buf_append_str(b, "{\"type\":\"text\",\"text\":\"\"");
        set_delta(c, "text_delta", "text");
    } else if (kind == OPEN_THINKING) {
        buf_append_str(b, "{\"type\":\"thinking\",\"thinking\":\"\",\"signature\":\"\"");
        set_delta(c, "thinking_delta", "thinking");
    } else {
        append_tool_head(b, choice, p->index, p->text, p->len);
        buf_append_str(b, "{}");
        set_delta(c, "input_json_delta", "partial_json");
    }
    buf_append_str(b, "}}\n\n");
    s->open = kind;
    s->tool = p->index;
}

static void write_piece(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    struct stream_state *s = choice->call->state;
    if (p->kind == OUTPUT_TOOL_END) {
        close_block(choice->call, b);
        return;
    }
    if (p->kind == OUTPUT_TOOL_BEGIN) {
        open_block(choice, p, OPEN_TOOL, b);
        return;
    }
    enum open_block kind = p->kind == OUTPUT_CONTENT     ? OPEN_TEXT
                           : p->kind == OUTPUT_REASONING ? OPEN_THINKING
                                                         : OPEN_TOOL;
    if (kind == OPEN_TOOL && (s->open != OPEN_TOOL || s->tool != p->index))
        return; /* of a call that never began */
    if (kind != s->open)
        open_block(choice, p, kind, b);
    if (kind != OPEN_THINKING || !s->omits_thinking)
        append_delta(choice->call, p->text, p->len, b);
}

static void write_finish(struct chat_choice *choice, struct buf *b)
{
    close_block(choice->call, b);
}

static void close_stream(struct chat_call *c, struct buf *b)
{
    buf_append_str(b, "event: message_delta\ndata: {\"type\":\"message_delta\",\"delta\":{");
    append_stop(b, &c->choices[0]);
    buf_append_str(b, "},");
    append_usage(b, c);
    buf_append_str(b, "}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

static void write_keepalive(struct chat_call *c, uint32_t n_done, uint32_t n_prompt, struct buf *b)
{
    (void)c;
    if (n_prompt > 0)
        buf_printf(b, ": prefill %u/%u\n\n", n_done, n_prompt);
    else
        buf_append_str(b, "event: ping\ndata: {\"type\":\"ping\"}\n\n");
}

static void write_error(const struct chat_call *c, const struct api_error *e, struct buf *b)
{
    struct api_error said = *e;
    const char *id = c->response != NULL ? http_response_id(c->response) : NULL;
    /* Clients look for these words to make a conversation shorter by themselves. */
    if (e->code != NULL && strcmp(e->code, "context_length_exceeded") == 0) {
        if (c->n_prompt > 0)
            snprintf(said.message, sizeof(said.message),
                     "prompt is too long: %u tokens > %u maximum", c->n_prompt,
                     c->model->n_ctx - 1);
        else
            snprintf(said.message, sizeof(said.message), "prompt is too long: %.400s", e->message);
    }
    if (c->is_streaming)
        buf_append_str(b, "event: error\ndata: ");
    anthropic_append_error(b, &said, id);
    if (c->is_streaming)
        buf_append_str(b, "\n\n");
}

/* ---- whole answers ---- */

/* What a tool is called with is an object, whatever the model wrote. */
static void append_input(struct buf *b, const struct chat_choice *choice, uint32_t tool)
{
    struct buf text;
    struct error err;
    json_t *value = NULL;
    buf_init(&text, LIMIT_PROMPT_BYTES);
    chat_choice_join(choice, OUTPUT_TOOL_ARGUMENTS, tool, &text);
    if (json_parse(buf_str(&text), text.len, &value, &err) == 0 && json_is_object(value))
        buf_append(b, text.data, text.len);
    else
        buf_append_str(b, "{}");
    json_decref(value);
    if (text.error != 0)
        b->error = text.error;
    buf_done(&text);
}

static void append_blocks(struct buf *b, const struct chat_choice *choice)
{
    bool omits = anthropic_omits_thinking(&choice->call->request);
    const char *comma = "";
    size_t begin = 0;
    for (size_t i = 0; i < choice->n_pieces; begin = choice->pieces[i++].end) {
        const struct chat_piece *p = &choice->pieces[i];
        const char *text = buf_str(&choice->text) + begin;
        size_t len = p->end - begin;
        if (p->kind == OUTPUT_TOOL_ARGUMENTS || p->kind == OUTPUT_TOOL_END)
            continue;
        buf_append_str(b, comma);
        comma = ",";
        if (p->kind == OUTPUT_CONTENT) {
            buf_append_str(b, "{\"type\":\"text\",\"text\":");
            json_append_string(b, text, len);
        } else if (p->kind == OUTPUT_REASONING) {
            buf_append_str(b, "{\"type\":\"thinking\",\"thinking\":");
            json_append_string(b, text, omits ? 0 : len);
            buf_printf(b, ",\"signature\":\"%s\"", thinking_signature);
        } else {
            append_tool_head(b, choice, p->tool, text, len);
            append_input(b, choice, p->tool);
        }
        buf_append_char(b, '}');
    }
}

static void write_whole(struct chat_call *c, struct buf *b)
{
    append_message_head(b, c);
    append_blocks(b, &c->choices[0]);
    buf_append_str(b, "],");
    append_stop(b, &c->choices[0]);
    buf_append_char(b, ',');
    append_usage(b, c);
    buf_append_char(b, '}');
}

static void write_count(struct chat_call *c, struct buf *b)
{
    buf_printf(b, "{\"input_tokens\":%u}", c->n_prompt);
}

const struct chat_dialect anthropic_messages_dialect = {
    .name = "messages",
    .stream_type = "text/event-stream; charset=utf-8",
    .id_prefix = "msg_",
    .state_bytes = sizeof(struct stream_state),
    .parse = anthropic_messages_parse,
    .open = open_stream,
    .piece = write_piece,
    .finish = write_finish,
    .close = close_stream,
    .keepalive = write_keepalive,
    .whole = write_whole,
    .error = write_error,
};

const struct chat_dialect anthropic_count_dialect = {
    .name = "count_tokens",
    .id_prefix = "msg_",
    .is_count = true,
    .parse = anthropic_count_parse,
    .whole = write_count,
    .error = write_error,
};
