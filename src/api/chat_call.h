/*
 * One request for text, from the body to the last byte, in whichever dialect:
 *
 *   body -> dialect's parser -> model -> prompts (thread pool) -> generations -> tokens -> text
 *        -> pieces (content, reasoning, tool calls) -> dialect's writer -> client
 *
 * A dialect is a table of functions; it reads one body, and writes pieces and whole answers. It
 * decides nothing about time: holding back while a client is behind, keeping silent streams alive,
 * cancelling, failing are done here, once.
 *
 * Thread: the loop's, but for parsers and building of prompts.
 */
#ifndef SHOAL_API_CHAT_CALL_H
#define SHOAL_API_CHAT_CALL_H

#include "api/api_internal.h"
#include "api/chat_request.h"
#include "text/output_parser.h"
#include "text/stop.h"
#include "text/tokenizer.h"

struct chat_call;
struct chat_choice;

enum chat_finish {
    CHAT_FINISH_NONE, /* it goes on */
    CHAT_FINISH_STOP, /* the model's own end */
    CHAT_FINISH_STOP_STRING,
    CHAT_FINISH_LENGTH,
    CHAT_FINISH_TOOLS, /* it ended with tool calls */
};

struct chat_dialect {
    const char *name;        /* for logs */
    const char *stream_type; /* content type of streams */
    const char *id_prefix;
    size_t state_bytes;              /* of chat_call.state, zeroed; 0: none */
    void (*state_done)(void *state); /* frees what the state holds, not itself; may be NULL */
    bool is_count;        /* whole() is called once the prompt is known; nothing is generated */
    bool has_whole_tools; /* streams, too, have tool calls as a whole: BEGIN, ARGUMENTS and END
                             come together, broken calls are content */
    /* The model that a name means; NULL here: exactly that id. NULL: there is none. */
    const struct api_model *(*find_model)(struct api *a, const char *name);
    /* r->body is a JSON object. Fills the rest; 0, or -1 with the error. Thread: any. */
    int (*parse)(struct chat_request *r, struct api_error *e);
    /* The first bytes of a stream. May be NULL. */
    void (*open)(struct chat_call *c, struct buf *out);
    /* A piece of an answer; a tool's name comes with OUTPUT_TOOL_BEGIN. */
    void (*piece)(struct chat_choice *choice, const struct output_piece *piece, struct buf *out);
    /* An answer has ended: choice->finish. */
    void (*finish)(struct chat_choice *choice, struct buf *out);
    /* All have: the last bytes. */
    void (*close)(struct chat_call *c, struct buf *out);
    /* Something that keeps a silent stream alive and no client takes for text; n_prompt 0: there is
     * no progress to tell. */
    void (*keepalive)(struct chat_call *c, uint32_t n_done, uint32_t n_prompt, struct buf *out);
    /* The whole answer, as JSON. */
    void (*whole)(struct chat_call *c, struct buf *out);
    /* c->is_streaming: within the stream, else a body. */
    void (*error)(const struct chat_call *c, const struct api_error *e, struct buf *out);
};

struct chat_piece { /* text up to end in chat_choice.text */
    enum output_piece_kind kind;
    uint32_t tool;
    bool complete; /* OUTPUT_TOOL_END */
    size_t end;
};

struct chat_logprobs {
    int32_t token;
    struct logprobs of;
};

struct chat_choice { /* one answer: one generation */
    struct chat_call *call;
    uint32_t index, prompt; /* of the prompts */
    uint64_t id;            /* the backend's; while is_running */
    bool is_running;
    bool is_finish_sent;
    bool is_enough; /* the one call that was allowed is complete: what follows is dropped */
    enum chat_finish finish;
    size_t stop_index; /* of the stop string */
    uint32_t n_generated, n_reasoning, n_tools;
    enum output_piece_kind last_kind; /* of the pieces so far */
    struct token_list tokens;         /* what was generated, if request.keeps_tokens */
    struct detokenizer detokenizer;
    struct stop_matcher *stop;
    struct output_parser *parser; /* NULL: all is content */
    /* Not sent yet; the whole answer when it is not streamed. */
    struct buf text;
    struct chat_piece *pieces;
    size_t n_pieces, cap_pieces;
    struct chat_logprobs *logprobs;
    size_t n_logprobs, cap_logprobs;
    uint32_t n_text; /* characters of content so far, for offsets (completions) */
};

struct chat_call {
    const struct chat_dialect *dialect;
    void *state; /* the dialect's */
    struct api *api;
    struct chat_call *next, *prev;
    struct http_response *response; /* NULL once ended or gone */
    struct api_key *key;            /* that pays; NULL: there are no keys */
    struct chat_request request;
    const struct api_model *model; /* a reference is held */
    struct model_text *text;
    struct token_list *prompts; /* [request.n_prompts] */
    bool begins_in_reasoning;
    struct chat_choice *choices; /* [n_choices] */
    uint32_t n_choices, n_running, n_prompt, n_cached;
    uint64_t queue_ns, prefill_ns, decode_ns, begin_ns; /* of the slowest; begin: monotonic */
    uint64_t arrival_ns;                                /* monotonic: the request was complete */
    bool is_streaming;                                  /* the head of the stream is sent */
    bool is_held_back;                                  /* the client is behind */
    bool is_working;                                    /* in the thread pool */
    uv_work_t work;
    struct buf body;
    struct api_error parse_error;
    int work_result;
    struct error work_error;
    uint64_t created_s, last_write_ns;
    struct buf prefix; /* what a dialect repeats in each event */
    char id[48];
};

void chat_call_handle(struct api *a, const struct chat_dialect *dialect, struct http_response *r);
/* A second has passed: something keeps silent streams alive. */
void chat_call_tick(struct api *a);
/* Tells every client that the server stops, and cancels. */
void chat_call_stop_all(struct api *a);

/* Says in the request's line of the log what was done for it. */
void chat_call_note(const struct chat_call *c);
/* Tokens of all answers. */
uint32_t chat_call_n_generated(const struct chat_call *c);
uint32_t chat_call_n_reasoning(const struct chat_call *c);
/* The id of a tool call: "call_" and what is unique in this call. */
void chat_choice_tool_id(const struct chat_choice *choice, uint32_t tool, char ret_id[32]);
/* Appends the text of all pieces of this kind; of tools, of that one. */
void chat_choice_join(const struct chat_choice *choice, enum output_piece_kind kind, uint32_t tool,
                      struct buf *out);
/* Takes note of log-probabilities that were written, so that they are not again. */
void chat_choice_drop_logprobs(struct chat_choice *choice);

/* ---- chat_choice.c ---- */

/* Makes the choices. Returns 0, or -1 with the error. */
int chat_choices_new(struct chat_call *c, struct api_error *e);
void chat_choices_free(struct chat_call *c);
/* The prompt is known: whether the answer begins within reasoning. */
int chat_choices_begin(struct chat_call *c, struct api_error *e);
int chat_choice_push(struct chat_choice *choice, const int32_t *ids, uint32_t n);
int chat_choice_add_logprobs(struct chat_choice *choice, const int32_t *ids,
                             const struct logprobs *of, uint32_t n);
/* The generation has ended well: what was held back is text now. */
int chat_choice_end(struct chat_choice *choice, const struct api_done *done);
/* Text that goes before what is generated. */
int chat_choice_echo(struct chat_choice *choice, const char *text, size_t len);

/* ---- chat_output.c ---- */

/* Sends what can be sent, and ends the response when all generations have ended. */
void chat_output_pump(struct chat_call *c);
void chat_output_progress(struct chat_call *c, uint32_t n_done, uint32_t n_prompt);
/* Writes something when the stream was silent for 10 s. */
void chat_output_keepalive(struct chat_call *c);
/* Ends the response with an error. */
void chat_output_fail(struct chat_call *c, const struct api_error *e);

#endif
