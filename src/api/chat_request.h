/*
 * The body of POST /v1/chat/completions, parsed strictly: each field that we act on has the right
 * type and range, or the error names it. Unknown fields are ignored; fields that change the answer
 * in a way that we cannot deliver are refused, never silently dropped.
 *
 * Source: OpenAI API reference, "Create chat completion"; extras as vLLM and llama.cpp name them
 * (top_k, min_p, repetition_penalty, chat_template_kwargs). Thread: any, one at a time.
 */
#ifndef SHOAL_API_CHAT_REQUEST_H
#define SHOAL_API_CHAT_REQUEST_H

#include "api/openai_error.h"
#include "base/json.h"
#include "base/limits.h"
#include "engine/sampler.h"

#include <stdbool.h>
#include <stdint.h>

enum {
    CHAT_CHOICES_MAX = 16,     /* n; each is a generation of its own */
    CHAT_MESSAGES_MAX = 65536, /* a body of 32 MB cannot hold many more that say something */
};

struct chat_request {
    json_t *body;          /* owned; all text below points into it */
    const char *model;     /* as sent */
    json_t *messages;      /* owned: objects for the template; text parts are joined */
    json_t *template_args; /* chat_template_kwargs or NULL; flat and harmless; borrowed from body */
    struct sampling sampling;
    bool has_seed;
    uint32_t n_tokens_max; /* 0: to the end of the context */
    uint32_t n_choices;
    size_t n_stop;
    const char *stop[LIMIT_STOP_STRINGS];
    size_t stop_len[LIMIT_STOP_STRINGS];
    bool stream, include_usage;
};

/* Returns 0, or -1 with ret_error. The request must be done in both cases. Token ids of logit_bias
 * are checked against a vocabulary later (sampling_check). */
int chat_request_parse(const char *body, size_t len, struct chat_request *r,
                       struct openai_error *ret_error);
void chat_request_done(struct chat_request *r);

#endif
