/*
 * What the API needs from the node that it runs in: models, requests, state. The API never sees
 * engines, runners or peers. The node implements this interface; tests of the API implement it with
 * a scripted one. Thread: everything on the node's loop; calls return at once, results come through
 * callbacks, never from inside the call itself.
 */
#ifndef SHOAL_API_BACKEND_H
#define SHOAL_API_BACKEND_H

#include "base/buf.h"
#include "base/error.h"
#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "text/chat_template.h"
#include "text/grammar.h"
#include "text/tokenizer.h"

#include <stdbool.h>
#include <stdint.h>

struct api_model {      /* borrowed from the backend; valid while a reference is held */
    const char *id;     /* as clients name it */
    uint64_t created_s; /* Unix time */
    uint32_t n_ctx;     /* prompt + generated tokens */
    bool is_ready;      /* false: known, loading or failed */
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL when the model has none */
    const char *bos_text, *eos_text;           /* for templates; "" when none */
    /* For lists and descriptions; "" and 0 where it is not known. */
    const char *architecture, *quantization; /* as GGUF says: "llama", "Q4_K_M" */
    uint64_t n_parameters, file_bytes;
    uint64_t gpu_bytes; /* of file_bytes, in memory of GPUs; 0 when none or not known */
    char digest[65];    /* SHA-256 of the file or its head, hexadecimal; "" */
};

struct api_grammar { /* what the answer must follow */
    enum grammar_kind kind;
    const char *text; /* [len]; NULL with len 0 where the kind has none */
    size_t len;       /* at most LIMIT_GRAMMAR_BYTES */
};

struct api_generation { /* what a request asks for */
    const struct api_model *model;
    const int32_t *tokens; /* copied */
    uint32_t n_tokens;
    uint32_t n_max;
    struct sampling sampling;
    const struct api_grammar *grammar; /* NULL: none; copied. One that is wrong: done with E_INVALID
                                          or E_LIMIT */
    bool wants_logprobs;
    uint32_t n_top_logprobs; /* with wants_logprobs: at most LIMIT_TOP_LOGPROBS */
};

enum api_finish { API_FINISH_STOP, API_FINISH_LENGTH, API_FINISH_CANCELLED, API_FINISH_ERROR };

struct api_done {
    enum api_finish reason;
    struct error error; /* when reason is API_FINISH_ERROR; its code gives the HTTP status */
    uint32_t n_prompt, n_cached, n_generated;
    uint64_t queue_ns, prefill_ns, decode_ns;
};

struct api_generation_events {
    /* Just before tokens(), for the same ones, when they are wanted. May be NULL. */
    void (*logprobs)(void *arg, const int32_t *ids, const struct logprobs *of, uint32_t n);
    void (*tokens)(void *arg, const int32_t *ids, uint32_t n);
    void (*progress)(void *arg, uint32_t n_done, uint32_t n_prompt); /* prefill */
    void (*done)(void *arg, const struct api_done *done);            /* exactly once, last */
};

enum api_pull_phase {
    API_PULL_LOOKING,  /* what the name means, and which file that is */
    API_PULL_WAITING,  /* another process fetches it */
    API_PULL_FETCHING, /* file, n_total and n_done are known, as far as anybody knows them */
    API_PULL_CHECKING, /* its hash */
    API_PULL_KEEPING,  /* it gets its name */
};

struct api_pull_status {
    enum api_pull_phase phase;
    const char *file;         /* "" when not known */
    char digest[65];          /* SHA-256 that it is to have, hexadecimal; "" when not known */
    uint64_t n_total, n_done; /* bytes; total 0: not known */
};

struct api_pull_events {
    void (*status)(void *arg, const struct api_pull_status *s);
    void (*done)(void *arg, const struct error *err); /* exactly once, last; code 0: it is there */
};

struct api_backend {
    void *self;
    uint32_t (*n_models)(void *self);
    const struct api_model *(*model_at)(void *self, uint32_t index);
    /* NULL when unknown. Names match exactly; the API has already trimmed nothing. */
    const struct api_model *(*model_find)(void *self, const char *id);
    /* Keeps a model from being freed while a request uses its tokenizer in the thread pool. Both
     * may be NULL when models stay as long as the backend. */
    void (*model_ref)(void *self, const struct api_model *model);
    void (*model_unref)(void *self, const struct api_model *model);
    /* Starts a generation. Returns 0 and an id (never 0), or an error (E_BUSY when queues are full,
     * E_UNAVAILABLE when the model is not ready): then no event follows. */
    int (*submit)(void *self, const struct api_generation *g,
                  const struct api_generation_events *events, void *arg, uint64_t *ret_id,
                  struct error *err);
    /* The client is gone or has enough: done(CANCELLED) follows unless done already came. Unknown
     * ids are ignored. */
    void (*cancel)(void *self, uint64_t id);
    /* Carries out an order to the cluster, as JSON (docs/internals/http.md). The answer comes
     * later, once, never from inside the call. Errors: then there is no answer. NULL: takes no
     * orders. */
    int (*cluster_call)(void *self, const char *verb, const char *body, size_t len,
                        void (*answer)(void *arg, int http_status, const char *json, size_t len),
                        void *arg, struct error *err);
    /* The model files of this computer. Any may be NULL: then the API says that it cannot. Names
     * are as people write them. Errors: then done does not follow; else it does, once, never from
     * inside the call. */
    int (*models_pull)(void *self, const char *name, const struct api_pull_events *events,
                       void *arg, uint64_t *ret_id, struct error *err);
    /* Nobody waits for it any more: done(E_CANCELLED) follows unless done already came. Unknown ids
     * are ignored. Not NULL when models_pull is not. */
    void (*models_pull_cancel)(void *self, uint64_t id);
    /* Errors of done: E_NOTFOUND, E_BUSY (it is in use), those of the disk. */
    int (*models_remove)(void *self, const char *name,
                         void (*done)(void *arg, const struct error *err), void *arg,
                         struct error *err);
    /* A second name for the same model. Errors of done: E_NOTFOUND, E_INVALID. */
    int (*models_copy)(void *self, const char *source, const char *destination,
                       void (*done)(void *arg, const struct error *err), void *arg,
                       struct error *err);
    /* Appends the cluster's state as one JSON object (nodes, instances, shards). */
    int (*state_json)(void *self, struct buf *out);
    /* Appends the node's health as JSON members without braces; returns true when it can serve. */
    bool (*health)(void *self, struct buf *out);
};

#endif
