/*
 * POST /v1/completions: prompts that go to the model as they are, several at a time. Templates are
 * the client's business here: control tokens written in a prompt count.
 *
 * Prompts that are echoed have no log-probabilities of their own: their places hold null, as
 * OpenAI's first token has it.
 *
 * Source: OpenAI API reference ("text_completion").
 */
#include "api/openai.h"

#include "api/request_fields.h"
#include "base/json.h"
#include "base/utf8.h"

#include <stdlib.h>
#include <string.h>

enum {
    COMPLETIONS_N_MAX = 16,         /* answers to one prompt */
    COMPLETIONS_LOGPROBS_MAX = 5,   /* OpenAI's bound */
    COMPLETIONS_TOKENS_DEFAULT = 16 /* OpenAI's */
};

/* ---- the body ---- */

static int read_prompt(struct chat_prompt *p, const json_t *v, const char *path,
                       struct api_error *e)
{
    const json_t *id;
    size_t i;
    if (json_is_string(v)) {
        *p = (struct chat_prompt){
            .text = json_string_value(v), .len = json_string_length(v), .has_controls = true};
        return 0;
    }
    if (!json_is_array(v))
        return field_refuse_type(e, path, "a string or an array of token ids", v);
    if (json_array_size(v) == 0)
        return field_refuse_value(e, path, "it has no tokens.");
    json_array_foreach(v, i, id) if (!json_is_integer(id)) return field_refuse_type(
        e, path, "token ids only", id);
    *p = (struct chat_prompt){.ids = v};
    return 0;
}

/* A string, strings, token ids, or lists of token ids. */
static int read_prompts(struct chat_request *r, struct api_error *e)
{
    const json_t *v = field_get(r->body, "prompt");
    char path[FIELD_PATH_BYTES];
    if (v == NULL)
        return field_refuse_missing(e, "prompt");
    bool is_list = json_is_array(v) && !json_is_integer(json_array_get(v, 0));
    size_t n = is_list ? json_array_size(v) : 1;
    if (n == 0 || n > CHAT_CHOICES_MAX)
        return field_refuse_value(e, "prompt", "needs 1 to 128 prompts.");
    r->prompts = calloc(n, sizeof(*r->prompts));
    if (r->prompts == NULL)
        return api_error_set(e, 503, NULL, NULL, "out of memory");
    r->n_prompts = (uint32_t)n;
    if (!is_list)
        return read_prompt(r->prompts, v, "prompt", e);
    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof(path), "prompt[%zu]", i);
        if (read_prompt(&r->prompts[i], json_array_get(v, i), path, e) != 0)
            return -1;
    }
    return 0;
}

static int read_limits(struct chat_request *r, struct api_error *e)
{
    json_int_t n = 1, n_max = COMPLETIONS_TOKENS_DEFAULT, n_top = 0;
    if (field_integer(e, r->body, "max_tokens", NULL, 1, UINT32_MAX, &n_max) != 0 ||
        field_integer(e, r->body, "n", NULL, 1, COMPLETIONS_N_MAX, &n) != 0 ||
        field_integer(e, r->body, "logprobs", NULL, 0, COMPLETIONS_LOGPROBS_MAX, &n_top) != 0)
        return -1;
    json_int_t best_of = n;
    if (field_integer(e, r->body, "best_of", NULL, 1, COMPLETIONS_N_MAX, &best_of) != 0)
        return -1;
    if (best_of != n)
        return field_refuse_feature(e, "best_of", "this server gives all that it makes: n.");
    r->n_tokens_max = (uint32_t)n_max;
    r->n_choices = (uint32_t)n;
    r->wants_logprobs = field_get(r->body, "logprobs") != NULL;
    r->n_top_logprobs = (uint32_t)n_top;
    return 0;
}

static int parse(struct chat_request *r, struct api_error *e)
{
    const char *suffix = "";
    if (chat_request_read_model(r, e) != 0 || read_prompts(r, e) != 0 ||
        chat_request_read_sampling(r, r->body, "", 2, e) != 0 ||
        openai_read_logit_bias(r, e) != 0 ||
        chat_request_read_stop(r, json_object_get(r->body, "stop"), "stop", e) != 0 ||
        read_limits(r, e) != 0 || openai_read_stream(r, e) != 0 ||
        field_bool(e, r->body, "echo", NULL, &r->is_echo) != 0 ||
        field_string(e, r->body, "suffix", NULL, &suffix) != 0)
        return -1;
    if (suffix[0] != '\0')
        return field_refuse_feature(e, "suffix", "this server only goes on where a text ends.");
    return chat_request_check(r, e);
}

/* ---- log-probabilities ---- */

static uint32_t count_characters(const char *text, size_t len)
{
    uint32_t n = 0;
    for (size_t i = 0; i < len; i++)
        n += ((unsigned char)text[i] & 0xC0) != 0x80;
    return n;
}

static bool is_utf8(const char *text, size_t len)
{
    for (size_t i = 0, n; i < len; i += n)
        if ((n = utf8_sequence_length(text + i, len - i)) == 0)
            return false;
    return true;
}

/* A token's text; one that is no text by itself is written as OpenAI does it: "bytes:\xe2\x80". */
static void append_token(struct buf *b, const char *text, size_t len)
{
    if (is_utf8(text, len)) {
        json_append_string(b, text, len);
        return;
    }
    buf_append_str(b, "\"bytes:");
    for (size_t i = 0; i < len; i++)
        buf_printf(b, "\\\\x%02x", (unsigned)(unsigned char)text[i]);
    buf_append_char(b, '"');
}

/* What is written side by side. */
struct logprob_lists {
    struct buf tokens, logprobs, tops, offsets;
};

static void append_commas(struct logprob_lists *l)
{
    if (l->tokens.len == 0)
        return;
    buf_append_char(&l->tokens, ',');
    buf_append_char(&l->logprobs, ',');
    buf_append_char(&l->tops, ',');
    buf_append_char(&l->offsets, ',');
}

/* The most likely tokens and the one that was taken; names are unique in an object. */
static void append_top(struct buf *b, const struct tokenizer *tokenizer,
                       const struct chat_logprobs *t)
{
    const char *seen[LIMIT_TOP_LOGPROBS + 1], *comma = "";
    size_t seen_len[LIMIT_TOP_LOGPROBS + 1], n_seen = 0, len;
    buf_append_char(b, '{');
    for (uint32_t i = 0; i <= t->of.n_top && i <= LIMIT_TOP_LOGPROBS; i++) {
        bool is_top = i < t->of.n_top;
        const char *text =
            tokenizer_piece(tokenizer, is_top ? t->of.top[i].token : t->token, true, &len);
        bool is_new = true;
        for (size_t k = 0; k < n_seen; k++)
            is_new = is_new && (seen_len[k] != len || memcmp(seen[k], text, len) != 0);
        if (!is_new)
            continue;
        seen[n_seen] = text;
        seen_len[n_seen++] = len;
        buf_append_str(b, comma);
        append_token(b, text, len);
        buf_append_char(b, ':');
        json_append_double(b, (double)(is_top ? t->of.top[i].logprob : t->of.chosen));
        comma = ",";
    }
    buf_append_char(b, '}');
}

/* The tokens of an echoed prompt that are text. */
static void append_prompt(struct chat_choice *choice, struct logprob_lists *l)
{
    const struct token_list *prompt = &choice->call->prompts[choice->prompt];
    const struct tokenizer *tokenizer = choice->call->model->tokenizer;
    struct detokenizer d;
    struct buf text;
    buf_init(&text, LIMIT_PROMPT_BYTES);
    detokenizer_init(&d, tokenizer, false, true);
    for (size_t i = 0; i < prompt->n; i++) {
        size_t len;
        const char *piece = tokenizer_piece(tokenizer, prompt->ids[i], false, &len);
        if (len == 0)
            continue;
        append_commas(l);
        append_token(&l->tokens, piece, len);
        buf_append_str(&l->logprobs, "null");
        buf_append_str(&l->tops, "null");
        buf_printf(&l->offsets, "%u", choice->n_text);
        buf_reset(&text);
        detokenizer_push(&d, prompt->ids[i], &text);
        choice->n_text += count_characters(buf_str(&text), text.len);
    }
    buf_done(&text);
}

static void append_list(struct buf *b, const char *name, const struct buf *list)
{
    buf_printf(b, "\"%s\":[", name);
    buf_append(b, buf_str(list), list->len);
    buf_append_char(b, ']');
    if (list->error != 0)
        b->error = list->error;
}

/* Of the text that goes out with it and was not yet told. */
static void append_logprobs(struct buf *b, struct chat_choice *choice)
{
    const struct chat_request *r = &choice->call->request;
    const struct tokenizer *tokenizer = choice->call->model->tokenizer;
    struct logprob_lists l;
    if (!r->wants_logprobs) {
        buf_append_str(b, ",\"logprobs\":null");
        return;
    }
    buf_init(&l.tokens, SIZE_MAX / 4);
    buf_init(&l.logprobs, SIZE_MAX / 4);
    buf_init(&l.tops, SIZE_MAX / 4);
    buf_init(&l.offsets, SIZE_MAX / 4);
    if (r->is_echo && choice->n_text == 0)
        append_prompt(choice, &l);
    for (size_t i = 0; i < choice->n_logprobs; i++) {
        const struct chat_logprobs *t = &choice->logprobs[i];
        size_t len;
        const char *piece = tokenizer_piece(tokenizer, t->token, true, &len);
        append_commas(&l);
        append_token(&l.tokens, piece, len);
        json_append_double(&l.logprobs, (double)t->of.chosen);
        append_top(&l.tops, tokenizer, t);
        buf_printf(&l.offsets, "%u", choice->n_text);
        choice->n_text += count_characters(piece, len);
    }
    chat_choice_drop_logprobs(choice);
    buf_append_str(b, ",\"logprobs\":{");
    append_list(b, "tokens", &l.tokens);
    buf_append_char(b, ',');
    append_list(b, "token_logprobs", &l.logprobs);
    buf_append_char(b, ',');
    if (r->n_top_logprobs > 0)
        append_list(b, "top_logprobs", &l.tops);
    else
        buf_append_str(b, "\"top_logprobs\":null");
    buf_append_char(b, ',');
    append_list(b, "text_offset", &l.offsets);
    buf_append_char(b, '}');
    buf_done(&l.tokens);
    buf_done(&l.logprobs);
    buf_done(&l.tops);
    buf_done(&l.offsets);
}

/* ---- the answer ---- */

static void append_head(struct buf *b, const struct chat_call *c)
{
    buf_printf(b,
               "{\"id\":\"%s\",\"object\":\"text_completion\",\"created\":%llu,\"model\":", c->id,
               (unsigned long long)c->created_s);
    json_append_string(b, c->model->id, strlen(c->model->id));
    buf_append_str(b, ",\"choices\":[");
}

static void append_choice(struct buf *b, struct chat_choice *choice, const char *text, size_t len,
                          bool is_last)
{
    buf_append_str(b, "{\"text\":");
    json_append_string(b, text, len);
    buf_printf(b, ",\"index\":%u", choice->index);
    append_logprobs(b, choice);
    if (is_last)
        buf_printf(b, ",\"finish_reason\":\"%s\"}",
                   choice->finish == CHAT_FINISH_LENGTH ? "length" : "stop");
    else
        buf_append_str(b, ",\"finish_reason\":null}");
}

static void open_stream(struct chat_call *c, struct buf *b)
{
    (void)b;
    buf_append_str(&c->prefix, "data: ");
    append_head(&c->prefix, c);
}

static void write_chunk(struct chat_choice *choice, const char *text, size_t len, bool is_last,
                        struct buf *b)
{
    const struct chat_call *c = choice->call;
    buf_append(b, c->prefix.data, c->prefix.len);
    append_choice(b, choice, text, len, is_last);
    buf_append_str(b, c->request.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n");
}

static void write_piece(struct chat_choice *choice, const struct output_piece *p, struct buf *b)
{
    write_chunk(choice, p->text, p->len, false, b);
}

static void write_finish(struct chat_choice *choice, struct buf *b)
{
    write_chunk(choice, "", 0, true, b);
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

static void write_whole(struct chat_call *c, struct buf *b)
{
    append_head(b, c);
    for (uint32_t i = 0; i < c->n_choices; i++) {
        struct chat_choice *choice = &c->choices[i];
        if (i > 0)
            buf_append_char(b, ',');
        append_choice(b, choice, buf_str(&choice->text), choice->text.len, true);
    }
    buf_append_str(b, "],");
    openai_append_usage(b, c);
    buf_append_char(b, '}');
}

const struct chat_dialect openai_completions_dialect = {
    .name = "completions",
    .stream_type = "text/event-stream; charset=utf-8",
    .id_prefix = "cmpl-",
    .parse = parse,
    .open = open_stream,
    .piece = write_piece,
    .finish = write_finish,
    .close = close_stream,
    .keepalive = openai_keepalive,
    .whole = write_whole,
    .error = openai_append_error,
};
