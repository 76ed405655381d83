/*
 * The way out of a chat call: tokens to text, stop strings, and the two forms of the answer: one
 * JSON object, or server-sent events. Text waits in its choice while the client is behind, and then
 * goes out in one piece.
 *
 * Source: OpenAI API reference ("chat.completion", "chat.completion.chunk"); WHATWG HTML, section
 * 9.2 (server-sent events). Thread: the loop's.
 */
#ifndef SHOAL_API_CHAT_OUTPUT_H
#define SHOAL_API_CHAT_OUTPUT_H

#include "api/api_internal.h"
#include "api/chat_request.h"
#include "api/prompt.h"
#include "text/stop.h"
#include "text/tokenizer.h"

struct chat_choice { /* one of n answers: one generation */
    struct chat_call *call;
    uint32_t index;
    uint64_t id; /* the backend's; while is_running */
    bool is_running;
    bool is_finish_sent;
    const char *finish; /* finish_reason; NULL while it goes on */
    uint32_t n_generated;
    struct detokenizer detokenizer;
    struct stop_matcher *stop;
    struct buf text; /* not sent yet; the whole answer when it is not streamed */
};

struct chat_call {
    struct api *api;
    struct chat_call *next, *prev;
    struct http_response *response; /* NULL once ended or gone */
    struct chat_request request;
    const struct api_model *model; /* a reference is held */
    struct control_set *controls;
    struct token_list tokens;
    struct chat_choice *choices; /* [request.n_choices] */
    uint32_t n_running, n_prompt, n_cached;
    bool is_streaming; /* the head of the stream is sent */
    bool is_held_back; /* the client is behind */
    bool is_working;   /* in the thread pool */
    uv_work_t work;
    struct buf body;
    struct openai_error parse_error;
    int work_result;
    struct error work_error;
    uint64_t created_s, last_write_ns;
    struct buf prefix; /* of each chunk, up to the choices */
    char id[48];
};

/* Makes the choices, their matchers and the prefix. Returns 0, or -1 with the error. */
int chat_output_prepare(struct chat_call *c, struct openai_error *ret_error);
/* Adds tokens to a choice; sets its finish when a stop string is complete. */
int chat_choice_push(struct chat_choice *choice, const int32_t *ids, uint32_t n);
/* The generation has ended well: what was held back is text now. */
void chat_choice_finish(struct chat_choice *choice, const struct api_done *done);
/* Sends what can be sent, and ends the response when all generations have ended. */
void chat_output_pump(struct chat_call *c);
void chat_output_progress(struct chat_call *c, uint32_t n_done, uint32_t n_prompt);
/* Writes a comment when the stream was silent for 10 s. */
void chat_output_keepalive(struct chat_call *c);
/* Ends the response with an error. */
void chat_output_fail(struct chat_call *c, const struct openai_error *e);

#endif
