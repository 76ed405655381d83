/*
 * POST /v1/responses: the writer. An answer is a list of items (reasoning, messages, calls); each
 * piece belongs to the item that is open, or closes it and opens the next. Streams and whole
 * answers go the same way; only streams write events on it.
 *
 * Source: OpenAI API reference ("Responses", "Streaming events").
 */
#include "api/openai_responses.h"

#include "base/json.h"

#include <string.h>

struct responses_state {
    uint32_t n_events; /* the number of the next one */
    uint32_t n_items;  /* the open one too */
    bool is_open;
    enum output_piece_kind kind; /* of the open item; OUTPUT_TOOL_BEGIN: a call */
    char id[48], call_id[32];
    struct buf name;     /* of the function */
    struct buf text;     /* or arguments */
    struct buf logprobs; /* items of a list */
    struct buf output;   /* closed items */
};

static struct responses_state *state_of(const struct chat_call *c)
{
    return c->state;
}

static void state_done(void *state)
{
    struct responses_state *s = state;
    buf_done(&s->name);
    buf_done(&s->text);
    buf_done(&s->logprobs);
    buf_done(&s->output);
}

/* A writer of whole answers has no room for events: b is NULL then. */
static void state_begin(struct chat_call *c)
{
    struct responses_state *s = state_of(c);
    buf_init(&s->name, 4096);
    buf_init(&s->text, LIMIT_PROMPT_BYTES);
    buf_init(&s->logprobs, SIZE_MAX / 4);
    buf_init(&s->output, SIZE_MAX / 4);
}

/* ---- events ---- */

static void begin_event(struct buf *b, const struct chat_call *c, const char *type)
{
    buf_printf(b, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%u", type, type,
               state_of(c)->n_events++);
}

static void end_event(struct buf *b)
{
    buf_append_str(b, "}\n\n");
}

static void append_place(struct buf *b, const struct responses_state *s)
{
    buf_printf(b, ",\"item_id\":\"%s\",\"output_index\":%u", s->id, s->n_items - 1);
    if (s->kind != OUTPUT_TOOL_BEGIN)
        buf_append_str(b, ",\"content_index\":0");
}

static void write_response(struct buf *b, const struct chat_call *c, const char *type,
                           enum response_status status, const struct api_error *failure)
{
    begin_event(b, c, type);
    buf_append_str(b, ",\"response\":");
    openai_response_append(b, c, status, &state_of(c)->output, failure);
    end_event(b);
}

/* ---- items ---- */

static void append_text(struct buf *b, const struct buf *text)
{
    json_append_string(b, buf_str(text), text->len);
    if (text->error != 0)
        b->error = text->error;
}

static void append_part(struct buf *b, const struct responses_state *s)
{
    bool is_reasoning = s->kind == OUTPUT_REASONING;
    buf_printf(b, "{\"type\":\"%s\",\"text\":", is_reasoning ? "reasoning_text" : "output_text");
    append_text(b, &s->text);
    if (!is_reasoning) {
        buf_append_str(b, ",\"annotations\":[],\"logprobs\":[");
        buf_append(b, buf_str(&s->logprobs), s->logprobs.len);
        buf_append_char(b, ']');
    }
    buf_append_char(b, '}');
}

static void append_item(struct buf *b, const struct responses_state *s, enum response_status status)
{
    bool is_begun = status == RESPONSE_IN_PROGRESS;
    buf_printf(b, "{\"id\":\"%s\",\"status\":\"%s\",", s->id, openai_response_status_text(status));
    if (s->kind == OUTPUT_TOOL_BEGIN) {
        buf_printf(b, "\"type\":\"function_call\",\"call_id\":\"%s\",\"name\":", s->call_id);
        append_text(b, &s->name);
        buf_append_str(b, ",\"arguments\":");
        append_text(b, &s->text);
        buf_append_char(b, '}');
        return;
    }
    buf_append_str(b, s->kind == OUTPUT_REASONING
                          ? "\"type\":\"reasoning\",\"summary\":[],\"content\":["
                          : "\"type\":\"message\",\"role\":\"assistant\",\"content\":[");
    if (!is_begun)
        append_part(b, s);
    buf_append_str(b, "]}");
}

/* What the deltas of an item repeat. */
static void set_prefix(struct chat_call *c)
{
    const struct responses_state *s = state_of(c);
    struct buf *b = &c->prefix;
    const char *type = s->kind == OUTPUT_CONTENT     ? "response.output_text.delta"
                       : s->kind == OUTPUT_REASONING ? "response.reasoning_text.delta"
                                                     : "response.function_call_arguments.delta";
    buf_reset(b);
    buf_printf(b, "event: %s\ndata: {\"type\":\"%s\"", type, type);
    append_place(b, s);
    buf_append_str(b, ",\"sequence_number\":");
}

static void open_item(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    struct chat_call *c = choice->call;
    struct responses_state *s = state_of(c);
    const char *word = p->kind == OUTPUT_CONTENT     ? "msg"
                       : p->kind == OUTPUT_REASONING ? "rs"
                                                     : "fc";
    s->is_open = true;
    s->kind = p->kind;
    snprintf(s->id, sizeof(s->id), "%s_%.24s%03x", word, c->id + strlen(c->dialect->id_prefix),
             s->n_items++ & 0xfffu);
    buf_reset(&s->text);
    buf_reset(&s->name);
    if (p->kind == OUTPUT_TOOL_BEGIN) {
        chat_choice_tool_id(choice, p->index, s->call_id);
        buf_append(&s->name, p->text, p->len);
    }
    if (b == NULL)
        return;
    set_prefix(c);
    begin_event(b, c, "response.output_item.added");
    buf_printf(b, ",\"output_index\":%u,\"item\":", s->n_items - 1);
    append_item(b, s, RESPONSE_IN_PROGRESS);
    end_event(b);
    if (p->kind == OUTPUT_TOOL_BEGIN)
        return;
    begin_event(b, c, "response.content_part.added");
    append_place(b, s);
    buf_append_str(b, ",\"part\":");
    buf_append_str(b, p->kind == OUTPUT_REASONING
                          ? "{\"type\":\"reasoning_text\",\"text\":\"\"}"
                          : "{\"type\":\"output_text\",\"text\":\"\",\"annotations\":[],"
                            "\"logprobs\":[]}");
    end_event(b);
}

static void write_text_done(struct chat_call *c, struct buf *b)
{
    const struct responses_state *s = state_of(c);
    bool is_reasoning = s->kind == OUTPUT_REASONING;
    begin_event(b, c, is_reasoning ? "response.reasoning_text.done" : "response.output_text.done");
    append_place(b, s);
    buf_append_str(b, ",\"text\":");
    append_text(b, &s->text);
    if (!is_reasoning) {
        buf_append_str(b, ",\"logprobs\":[");
        buf_append(b, buf_str(&s->logprobs), s->logprobs.len);
        buf_append_char(b, ']');
    }
    end_event(b);
    begin_event(b, c, "response.content_part.done");
    append_place(b, s);
    buf_append_str(b, ",\"part\":");
    append_part(b, s);
    end_event(b);
}

static void write_call_done(struct chat_call *c, struct buf *b)
{
    const struct responses_state *s = state_of(c);
    begin_event(b, c, "response.function_call_arguments.done");
    append_place(b, s);
    buf_append_str(b, ",\"name\":");
    append_text(b, &s->name);
    buf_append_str(b, ",\"arguments\":");
    append_text(b, &s->text);
    end_event(b);
}

static void close_item(struct chat_call *c, enum response_status status, struct buf *b)
{
    struct responses_state *s = state_of(c);
    if (!s->is_open)
        return;
    s->is_open = false;
    if (b != NULL && s->kind == OUTPUT_TOOL_BEGIN)
        write_call_done(c, b);
    else if (b != NULL)
        write_text_done(c, b);
    if (b != NULL) {
        begin_event(b, c, "response.output_item.done");
        buf_printf(b, ",\"output_index\":%u,\"item\":", s->n_items - 1);
        append_item(b, s, status);
        end_event(b);
    }
    if (s->output.len > 0)
        buf_append_char(&s->output, ',');
    append_item(&s->output, s, status);
    if (s->kind == OUTPUT_CONTENT)
        buf_reset(&s->logprobs);
}

/* Takes the log-probabilities that have come: they belong to this message. */
static void take_logprobs(struct chat_choice *choice, struct buf *b)
{
    struct responses_state *s = state_of(choice->call);
    size_t begin = s->logprobs.len;
    if (choice->n_logprobs == 0)
        return;
    if (begin > 0)
        buf_append_char(&s->logprobs, ',');
    begin = s->logprobs.len;
    openai_append_logprob_list(&s->logprobs, choice);
    chat_choice_drop_logprobs(choice);
    if (b != NULL && s->logprobs.error == 0)
        buf_append(b, s->logprobs.data + begin, s->logprobs.len - begin);
}

static void add_text(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    struct chat_call *c = choice->call;
    struct responses_state *s = state_of(c);
    buf_append(&s->text, p->text, p->len);
    if (b != NULL) {
        buf_append(b, c->prefix.data, c->prefix.len);
        buf_printf(b, "%u,\"delta\":", s->n_events++);
        json_append_string(b, p->text, p->len);
    }
    if (s->kind == OUTPUT_CONTENT) {
        if (b != NULL)
            buf_append_str(b, ",\"logprobs\":[");
        take_logprobs(choice, b);
        if (b != NULL)
            buf_append_char(b, ']');
    }
    if (b != NULL)
        end_event(b);
}

/* ---- the dialect ---- */

static void open_stream(struct chat_call *c, struct buf *b)
{
    state_begin(c);
    write_response(b, c, "response.created", RESPONSE_IN_PROGRESS, NULL);
    write_response(b, c, "response.in_progress", RESPONSE_IN_PROGRESS, NULL);
}

static void write_piece(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    struct chat_call *c = choice->call;
    const struct responses_state *s = state_of(c);
    bool is_call = s->is_open && s->kind == OUTPUT_TOOL_BEGIN;
    switch (p->kind) {
    case OUTPUT_TOOL_BEGIN:
        close_item(c, RESPONSE_COMPLETED, b);
        open_item(choice, p, b);
        return;
    case OUTPUT_TOOL_ARGUMENTS:
        if (is_call)
            add_text(choice, p, b);
        return;
    case OUTPUT_TOOL_END:
        if (is_call)
            close_item(c, p->complete ? RESPONSE_COMPLETED : RESPONSE_INCOMPLETE, b);
        return;
    default:
        if (!s->is_open || s->kind != p->kind) {
            close_item(c, RESPONSE_COMPLETED, b);
            open_item(choice, p, b);
        }
        add_text(choice, p, b);
    }
}

static enum response_status end_output(struct chat_call *c, struct buf *b)
{
    struct chat_choice *choice = &c->choices[0];
    const struct responses_state *s = state_of(c);
    enum response_status status =
        choice->finish == CHAT_FINISH_LENGTH ? RESPONSE_INCOMPLETE : RESPONSE_COMPLETED;
    if (s->n_items == 0) /* a model that says nothing has said an empty message */
        open_item(choice, &(struct output_piece){.kind = OUTPUT_CONTENT, .text = ""}, b);
    if (s->is_open && s->kind == OUTPUT_CONTENT)
        take_logprobs(choice, NULL);
    close_item(c, status, b);
    return status;
}

static void write_finish(struct chat_choice *choice, struct buf *b)
{
    (void)choice; /* there is one, and the end of the stream is its end */
    (void)b;
}

static void close_stream(struct chat_call *c, struct buf *b)
{
    enum response_status status = end_output(c, b);
    write_response(b, c,
                   status == RESPONSE_COMPLETED ? "response.completed" : "response.incomplete",
                   status, NULL);
    if (state_of(c)->output.error != 0)
        b->error = state_of(c)->output.error;
}

static void write_whole(struct chat_call *c, struct buf *b)
{
    struct chat_choice *choice = &c->choices[0];
    size_t begin = 0;
    state_begin(c);
    for (size_t i = 0; i < choice->n_pieces; begin = choice->pieces[i++].end) {
        const struct chat_piece *piece = &choice->pieces[i];
        const struct output_piece p = {.kind = piece->kind,
                                       .index = piece->tool,
                                       .text = buf_str(&choice->text) + begin,
                                       .len = piece->end - begin,
                                       .complete = piece->complete};
        write_piece(choice, &p, NULL);
    }
    enum response_status status = end_output(c, NULL);
    openai_response_append(b, c, status, &state_of(c)->output, NULL);
    if (state_of(c)->output.error != 0)
        b->error = state_of(c)->output.error;
}

static void write_error(const struct chat_call *c, const struct api_error *e, struct buf *out)
{
    if (c->is_streaming)
        write_response(out, c, "response.failed", RESPONSE_FAILED, e);
    else
        api_error_append(out, e);
}

const struct chat_dialect openai_responses_dialect = {
    .name = "responses",
    .stream_type = "text/event-stream; charset=utf-8",
    .id_prefix = "resp_",
    .state_bytes = sizeof(struct responses_state),
    .state_done = state_done,
    .parse = openai_responses_parse,
    .open = open_stream,
    .piece = write_piece,
    .finish = write_finish,
    .close = close_stream,
    .keepalive = openai_keepalive,
    .whole = write_whole,
    .error = write_error,
};
