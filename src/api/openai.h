/*
 * OpenAI's API: what its calls share. Each call's file has the parser and the writer of one
 * dialect. Source: OpenAI API reference; extras as vLLM and llama.cpp name them (top_k, min_p,
 * repetition_penalty, chat_template_kwargs, reasoning_content). Nobody outside src/api includes it.
 */
#ifndef SHOAL_API_OPENAI_H
#define SHOAL_API_OPENAI_H

#include "api/chat_call.h"
#include "api/chat_request.h"

/* Chat completions, completions, responses. */
extern const struct chat_dialect openai_chat_dialect, openai_completions_dialect,
    openai_responses_dialect;

int openai_chat_parse(struct chat_request *r, struct api_error *e);
/* "messages" of the body. */
int openai_read_messages(struct chat_request *r, struct api_error *e);
/* "tools" of the body: functions only. */
int openai_read_tools(struct chat_request *r, struct api_error *e);
/* "tool_choice" and "parallel_tool_calls". */
int openai_read_tool_choice(struct chat_request *r, struct api_error *e);
/* logit_bias: token id -> -100 .. 100. */
int openai_read_logit_bias(struct chat_request *r, struct api_error *e);
/* stream, stream_options. */
int openai_read_stream(struct chat_request *r, struct api_error *e);
/* reasoning_effort's words: "none" turns thinking off. NULL: nothing. */
int openai_read_effort(struct chat_request *r, const char *effort, const char *path,
                       struct api_error *e);
/* A string, or the text of an array of text parts, as a new string; NULL with the error. */
json_t *openai_join_parts(const json_t *content, const char *path, struct api_error *e);
/* A call as templates read it: arguments as an object where they are one. id may be NULL. */
json_t *openai_tool_call(const char *id, const char *name, const json_t *arguments);

/* "usage":{...} of completions. */
void openai_append_usage(struct buf *b, const struct chat_call *c);
/* The log-probabilities that choice has, as the items of a list. */
void openai_append_logprob_list(struct buf *b, const struct chat_choice *choice);
/* {"error": ...}; in a stream as an event. */
void openai_append_error(const struct chat_call *c, const struct api_error *e, struct buf *out);
void openai_keepalive(struct chat_call *c, uint32_t n_done, uint32_t n_prompt, struct buf *out);

#endif
