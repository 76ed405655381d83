/* From tokens to pieces of an answer: bytes, stop strings, then what the model's family means by
 * its markers. */
#include "api/chat_call.h"
#include "api/model_text.h"

#include <stdlib.h>
#include <string.h>

static int add_piece(void *arg, const struct output_piece *p)
{
    struct chat_choice *choice = arg;
    struct chat_piece *last = choice->n_pieces > 0 ? &choice->pieces[choice->n_pieces - 1] : NULL;
    bool is_text = p->kind != OUTPUT_TOOL_BEGIN && p->kind != OUTPUT_TOOL_END;
    if (choice->is_enough)
        return 0;
    if (p->len > 0 || !is_text)
        choice->last_kind = p->kind;
    choice->is_enough =
        choice->call->request.is_one_tool && p->kind == OUTPUT_TOOL_END && p->complete;
    if (p->kind == OUTPUT_TOOL_BEGIN)
        choice->n_tools = p->index + 1;
    if (buf_append(&choice->text, p->text, p->len) != 0)
        return choice->text.error;
    if (is_text && p->len == 0)
        return 0;
    if (is_text && last != NULL && last->kind == p->kind && last->tool == p->index) {
        last->end = choice->text.len;
        return 0;
    }
    if (choice->n_pieces == choice->cap_pieces) {
        size_t cap = choice->cap_pieces > 0 ? 2 * choice->cap_pieces : 8;
        struct chat_piece *pieces = realloc(choice->pieces, cap * sizeof(*pieces));
        if (pieces == NULL)
            return E_NOMEM;
        choice->pieces = pieces;
        choice->cap_pieces = cap;
    }
    choice->pieces[choice->n_pieces++] = (struct chat_piece){
        .kind = p->kind, .tool = p->index, .complete = p->complete, .end = choice->text.len};
    return 0;
}

int chat_choices_new(struct chat_call *c, struct api_error *e)
{
    struct chat_request *r = &c->request;
    struct error err = {0};
    uint64_t n = (uint64_t)r->n_prompts * r->n_choices;
    if (n > CHAT_CHOICES_MAX)
        return api_error_set(e, 400, "invalid_value", "n",
                             "Invalid 'n': %llu answers are asked for; at most %d are possible.",
                             (unsigned long long)n, CHAT_CHOICES_MAX);
    c->choices = calloc(n, sizeof(*c->choices));
    c->prompts = calloc(r->n_prompts, sizeof(*c->prompts));
    if (c->choices == NULL || c->prompts == NULL)
        return api_error_set(e, 503, NULL, NULL, "out of memory");
    for (uint32_t i = 0; i < r->n_prompts; i++)
        token_list_init(&c->prompts[i]);
    c->n_choices = (uint32_t)n;
    for (uint32_t i = 0; i < n; i++) {
        struct chat_choice *choice = &c->choices[i];
        choice->call = c;
        choice->index = i;
        choice->prompt = i / r->n_choices;
        token_list_init(&choice->tokens);
        detokenizer_init(&choice->detokenizer, c->model->tokenizer, false, false);
        buf_init(&choice->text, r->stream ? LIMIT_HTTP_WRITE_QUEUE_BYTES : LIMIT_PROMPT_BYTES);
        if (stop_matcher_new(r->stop, r->stop_len, r->n_stop, &choice->stop, &err) != 0) {
            api_error_from(e, &err);
            return -1;
        }
    }
    return 0;
}

void chat_choices_free(struct chat_call *c)
{
    for (uint32_t i = 0; c->choices != NULL && i < c->n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        stop_matcher_free(choice->stop);
        output_parser_free(choice->parser);
        buf_done(&choice->text);
        free(choice->pieces);
        free(choice->logprobs);
        token_list_done(&choice->tokens);
    }
    for (uint32_t i = 0; c->prompts != NULL && i < c->request.n_prompts; i++)
        token_list_done(&c->prompts[i]);
    free(c->choices);
    free(c->prompts);
}

int chat_choices_begin(struct chat_call *c, struct api_error *e)
{
    const struct chat_request *r = &c->request;
    struct error err = {0};
    if (r->messages == NULL)
        return 0; /* text for the model as it is: so is its answer */
    struct output_parser_options o = {
        .has_tools = r->tools != NULL && r->tool_choice != CHAT_TOOLS_NONE,
        .tools = r->tools,
        .begins_in_reasoning = c->begins_in_reasoning,
        .stream_arguments = r->stream && !c->dialect->has_whole_tools,
    };
    for (uint32_t i = 0; i < c->n_choices; i++) {
        if (output_parser_new(c->text->format, &o, &c->choices[i].parser, &err) != 0) {
            api_error_from(e, &err);
            return -1;
        }
    }
    return 0;
}

static int feed(struct chat_choice *choice, const char *text, size_t len)
{
    if (choice->parser != NULL)
        return output_parser_push(choice->parser, text, len, add_piece, choice);
    return add_piece(choice,
                     &(struct output_piece){.kind = OUTPUT_CONTENT, .text = text, .len = len});
}

int chat_choice_echo(struct chat_choice *choice, const char *text, size_t len)
{
    return add_piece(choice,
                     &(struct output_piece){.kind = OUTPUT_CONTENT, .text = text, .len = len});
}

/* Markers of the family are control tokens in many models: their text is wanted, though they are
 * no text. */
static int push_token(struct chat_choice *choice, int32_t id, struct buf *piece)
{
    const struct chat_call *c = choice->call;
    if (choice->parser == NULL || !model_text_is_marker(c->text, id))
        return detokenizer_push(&choice->detokenizer, id, piece);
    size_t len;
    const char *text = tokenizer_piece(c->model->tokenizer, id, true, &len);
    int rc = detokenizer_finish(&choice->detokenizer, piece);
    return rc != 0 ? rc : buf_append(piece, text, len);
}

int chat_choice_push(struct chat_choice *choice, const int32_t *ids, uint32_t n)
{
    struct buf piece, safe;
    bool is_stopped = false;
    int rc = 0;
    buf_init(&piece, LIMIT_HTTP_WRITE_QUEUE_BYTES);
    buf_init(&safe, LIMIT_HTTP_WRITE_QUEUE_BYTES);
    for (uint32_t i = 0; rc == 0 && !is_stopped && !choice->is_enough && i < n; i++) {
        choice->n_generated++;
        buf_reset(&piece);
        buf_reset(&safe);
        if (choice->call->request.keeps_tokens)
            rc = token_list_append(&choice->tokens, ids[i]);
        if (rc == 0)
            rc = push_token(choice, ids[i], &piece);
        if (rc == 0 && piece.len > 0)
            rc = stop_matcher_push(choice->stop, buf_str(&piece), piece.len, &safe, &is_stopped,
                                   &choice->stop_index);
        if (rc == 0 && safe.len > 0)
            rc = feed(choice, safe.data, safe.len);
        if (choice->last_kind == OUTPUT_REASONING)
            choice->n_reasoning++;
    }
    if (choice->is_enough)
        choice->finish = CHAT_FINISH_TOOLS;
    else if (is_stopped)
        choice->finish = CHAT_FINISH_STOP_STRING;
    if (rc == 0 && is_stopped && choice->parser != NULL)
        rc = output_parser_finish(choice->parser, add_piece, choice);
    buf_done(&piece);
    buf_done(&safe);
    return rc != 0 ? rc : choice->text.error;
}

int chat_choice_end(struct chat_choice *choice, const struct api_done *done)
{
    if (choice->finish != CHAT_FINISH_NONE) /* it had ended already; later tokens do not count */
        return 0;
    struct buf rest, safe;
    bool is_stopped = false;
    buf_init(&rest, 64);
    buf_init(&safe, LIMIT_HTTP_WRITE_QUEUE_BYTES);
    detokenizer_finish(&choice->detokenizer, &rest);
    stop_matcher_push(choice->stop, buf_str(&rest), rest.len, &safe, &is_stopped,
                      &choice->stop_index);
    if (!is_stopped)
        stop_matcher_finish(choice->stop, &safe);
    is_stopped = stop_matcher_stopped(choice->stop, &choice->stop_index);
    int rc = safe.error != 0 ? safe.error : feed(choice, buf_str(&safe), safe.len);
    if (rc == 0 && choice->parser != NULL)
        rc = output_parser_finish(choice->parser, add_piece, choice);
    buf_done(&rest);
    buf_done(&safe);
    choice->n_generated = done->n_generated;
    choice->finish = is_stopped                          ? CHAT_FINISH_STOP_STRING
                     : done->reason == API_FINISH_LENGTH ? CHAT_FINISH_LENGTH
                     : choice->n_tools > 0               ? CHAT_FINISH_TOOLS
                                                         : CHAT_FINISH_STOP;
    return rc != 0 ? rc : choice->text.error;
}

int chat_choice_add_logprobs(struct chat_choice *choice, const int32_t *ids,
                             const struct logprobs *of, uint32_t n)
{
    if (choice->n_logprobs + n > choice->cap_logprobs) {
        size_t cap = 2 * (choice->n_logprobs + n);
        struct chat_logprobs *list = realloc(choice->logprobs, cap * sizeof(*list));
        if (list == NULL)
            return E_NOMEM;
        choice->logprobs = list;
        choice->cap_logprobs = cap;
    }
    for (uint32_t i = 0; i < n; i++)
        if (!tokenizer_is_end(choice->call->model->tokenizer, ids[i])) /* it is no text */
            choice->logprobs[choice->n_logprobs++] =
                (struct chat_logprobs){.token = ids[i], .of = of[i]};
    return 0;
}

void chat_choice_drop_logprobs(struct chat_choice *choice)
{
    choice->n_logprobs = 0;
}

void chat_choice_join(const struct chat_choice *choice, enum output_piece_kind kind, uint32_t tool,
                      struct buf *out)
{
    size_t begin = 0;
    for (size_t i = 0; i < choice->n_pieces; begin = choice->pieces[i++].end) {
        const struct chat_piece *p = &choice->pieces[i];
        bool is_tool = kind != OUTPUT_CONTENT && kind != OUTPUT_REASONING;
        if (p->kind == kind && (!is_tool || p->tool == tool))
            buf_append(out, choice->text.data + begin, p->end - begin);
    }
}

void chat_choice_tool_id(const struct chat_choice *choice, uint32_t tool, char ret_id[32])
{
    /* The call's id ends with 24 hexadecimal digits. */
    const char *id = choice->call->id;
    size_t len = strlen(id);
    snprintf(ret_id, 32, "call_%.12s%03x%03x", id + len - 24, choice->index & 0xfff, tool & 0xfff);
}

uint32_t chat_call_n_generated(const struct chat_call *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_choices; i++)
        n += c->choices[i].n_generated;
    return n;
}

uint32_t chat_call_n_reasoning(const struct chat_call *c)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_choices; i++)
        n += c->choices[i].n_reasoning;
    return n;
}
