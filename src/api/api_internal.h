/* What the files of the API share: the server, the backend, the running chat calls. Nobody outside
 * src/api includes it. Thread: the loop's. */
#ifndef SHOAL_API_API_INTERNAL_H
#define SHOAL_API_API_INTERNAL_H

#include "api/api.h"
#include "api/control_set.h"
#include "api/http_server.h"
#include "api/openai_error.h"
#include "base/limits.h"

struct chat_call;
struct cluster_order_call;

struct known_controls { /* control tokens of a model, kept between requests */
    char *model_id;
    uint64_t created_s;
    const struct tokenizer *tokenizer; /* compared, never followed */
    uint32_t n_vocab;
    struct control_set *set;
};

struct api {
    uv_loop_t *loop;
    struct http_server *server;
    const struct api_backend *backend;
    char *cors_origin; /* NULL: loopback origins only */
    uv_timer_t tick;   /* once a second while calls run */
    struct chat_call *calls;
    struct cluster_order_call *orders; /* that the backend has not answered */
    uint32_t n_orders;
    struct known_controls controls[LIMIT_INSTANCES];
    size_t controls_next; /* the place to be reused */
    uint16_t port;
    bool is_closing, is_server_closed, is_tick_closed;
    void (*closed)(void *arg);
    void *closed_arg;
};

/* api.c */
/* Frees a closing api once nothing of it is left. */
void api_check_closed(struct api *a);
void api_start_tick(struct api *a);

/* cors.c: header lines for every answer; whether a request that changes something may come from
 * this page; the answer to OPTIONS. */
void cors_append_headers(const struct api *a, const struct http_request *q, struct buf *out);
bool cors_may_act(const struct api *a, const struct http_request *q);
/* Whether the name of a Host field or an origin (with or without port) always means this machine.
 */
bool cors_is_loopback_name(const char *authority);
void cors_respond_options(const struct api *a, const struct http_request *q,
                          struct http_response *r);

/* cluster_orders.c */
/* The verb of an order's path, NULL when it is none. */
const char *cluster_orders_verb(const char *path);
void cluster_orders_handle(struct api *a, const char *verb, const struct http_request *q,
                           struct http_response *r);
/* Tells every client that the server stops; answers that come later go nowhere. */
void cluster_orders_stop_all(struct api *a);

/* openai_models.c */
void openai_models_list(struct api *a, struct http_response *r);
void openai_models_get(struct api *a, const char *id, struct http_response *r);

/* openai_chat.c */
void openai_chat_handle(struct api *a, const struct http_request *q, struct http_response *r);
/* A second has passed: comments keep silent streams alive. */
void openai_chat_tick(struct api *a);
/* Tells every client that the server stops, and cancels. */
void openai_chat_stop_all(struct api *a);

#endif
