/*
 * What a client asks a model for, whichever API it speaks: the parser of each (openai_chat,
 * openai_completions, openai_responses, ollama, anthropic) fills one of these, and the rest of the
 * way knows no dialect. Fields that change the answer in a way that we cannot deliver are refused
 * by the parsers, never silently dropped; unknown ones are ignored.
 *
 * Messages and tools are in the form that chat templates read (OpenAI's). Thread: any, one at a
 * time.
 */
#ifndef SHOAL_API_CHAT_REQUEST_H
#define SHOAL_API_CHAT_REQUEST_H

#include "api/api_error.h"
#include "api/backend.h"
#include "base/json.h"
#include "base/limits.h"
#include "engine/sampler.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    CHAT_CHOICES_MAX = 128,    /* answers of a request; each is a generation of its own */
    CHAT_MESSAGES_MAX = 65536, /* a body of 32 MB cannot hold many more that say something */
    CHAT_TOOLS_MAX = 512,
    CHAT_TOP_LOGPROBS_MAX = 20,
};

enum chat_tool_choice {
    CHAT_TOOLS_AUTO,     /* as the model likes */
    CHAT_TOOLS_NONE,     /* the template does not see them */
    CHAT_TOOLS_REQUIRED, /* one at least */
    CHAT_TOOLS_NAMED,    /* tool_name */
};

enum chat_thinking { CHAT_THINKING_DEFAULT, CHAT_THINKING_ON, CHAT_THINKING_OFF };

struct chat_prompt { /* text that goes to the model as it is, or token ids */
    const char *text;
    size_t len;
    const json_t *ids; /* array of integers, NULL: text */
    bool has_controls; /* control tokens in the text count: it is rendered already */
};

struct chat_request {
    json_t *body;      /* owned; all text below points into it */
    const char *model; /* as sent */

    json_t *messages; /* owned: objects for the template; NULL: prompts */
    json_t *tools;    /* owned: [{"type": "function", "function": {name, description, parameters}}];
                         NULL when there are none */
    json_t *template_args; /* owned: flat and harmless values for the template; NULL when none */
    enum chat_tool_choice tool_choice;
    const char *tool_name;
    bool is_one_tool; /* at most one call in an answer */
    enum chat_thinking thinking;
    const char *effort; /* of thinking: "low" .. "high"; NULL: the model's default */

    /* Owned array. With messages: what a model without a chat template gets; NULL: it is refused.
     */
    struct chat_prompt *prompts;
    uint32_t n_prompts;    /* 1 with messages */
    bool is_echo;          /* the answer begins with the prompt */
    const json_t *context; /* token ids that go before the prompt; NULL: none */
    bool is_load;          /* there is no prompt: the model is looked up, that is all */
    bool keeps_tokens;     /* the dialect tells the tokens of prompt and answer */

    struct sampling sampling;
    bool has_seed;
    uint32_t n_tokens_max; /* 0: to the end of the context */
    uint32_t n_choices;    /* for each prompt */
    size_t n_stop;
    const char *stop[LIMIT_STOP_STRINGS];
    size_t stop_len[LIMIT_STOP_STRINGS];

    bool has_grammar; /* otherwise the text is free */
    enum grammar_kind grammar;
    char *grammar_text; /* owned */
    size_t grammar_len;
    bool wants_logprobs;
    uint32_t n_top_logprobs;

    bool stream, include_usage;
};

/* Everything off, greedy or not as OpenAI has it: temperature 1, one answer. */
void chat_request_init(struct chat_request *r);
void chat_request_done(struct chat_request *r);

/* ---- parts that several dialects share; 0, or -1 with the error ---- */

/* "model", which must be there. */
int chat_request_read_model(struct chat_request *r, struct api_error *e);
/* temperature, top_p, top_k, min_p, penalties and seed, of an object that has them by these names;
 * prefix is put before them in messages ("options."). */
int chat_request_read_sampling(struct chat_request *r, const json_t *object, const char *prefix,
                               double temperature_max, struct api_error *e);
/* A string or an array of strings; NULL: none. */
int chat_request_read_stop(struct chat_request *r, const json_t *stop, const char *path,
                           struct api_error *e);
int chat_request_add_stop(struct chat_request *r, const json_t *text, const char *path,
                          struct api_error *e);
/* chat_template_kwargs: plain names with booleans, numbers or short words. */
int chat_request_read_template_args(struct chat_request *r, const json_t *args, const char *path,
                                    struct api_error *e);
/* Adds {"type": "function", "function": {name, description, parameters}}. parameters may be NULL,
 * else a schema object. All are borrowed. */
int chat_request_add_tool(struct chat_request *r, const char *name, const char *description,
                          const json_t *parameters, const char *path, struct api_error *e);
/* The answer must match this schema (copied as text); NULL: any JSON object. */
int chat_request_set_schema(struct chat_request *r, const json_t *schema, const char *path,
                            struct api_error *e);
/* Appends {"role", "content"} and returns it (borrowed), NULL with the error. Takes content. */
json_t *chat_request_add_message(struct chat_request *r, const char *role, json_t *content,
                                 struct api_error *e);
/* The named tool must exist, and required ones too. To be called when all is read. */
int chat_request_check(const struct chat_request *r, struct api_error *e);

#endif
