/* What the files of the API share: the server, the backend, the running chat calls. Nobody outside
 * src/api includes it. Thread: the loop's. */
#ifndef SHOAL_API_API_INTERNAL_H
#define SHOAL_API_API_INTERNAL_H

#include "api/api.h"
#include "api/api_error.h"
#include "api/http_server.h"
#include "api/keys.h"
#include "base/limits.h"

struct chat_call;
struct cluster_order_call;
struct ollama_job;

struct model_text;

struct known_text { /* of a model, kept between requests */
    char *model_id;
    uint64_t created_s;
    const struct tokenizer *tokenizer; /* compared, never followed */
    uint32_t n_vocab;
    struct model_text *text;
};

struct api {
    uv_loop_t *loop;
    struct http_server *server;
    const struct api_backend *backend;
    char *cors_origin;     /* NULL: loopback origins only */
    struct api_keys *keys; /* NULL: nobody needs one */
    uv_timer_t tick;       /* once a second while calls run */
    struct chat_call *calls;
    struct cluster_order_call *orders; /* that the backend has not answered */
    uint32_t n_orders;
    struct ollama_job *ollama_jobs; /* that are under way */
    uint32_t n_ollama_jobs;
    struct known_text texts[LIMIT_INSTANCES];
    size_t texts_next; /* the place to be reused */
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

/* access.c */
/* Who asks, and whether they may: with keys, finds the request's key, which the response carries
 * from then on. scopes: one of them is needed; 0: admin. Returns 0, or -1 with the error. */
int access_check(struct api *a, const struct http_request *q, struct http_response *r,
                 unsigned scopes, bool is_inference, struct api_error *e);
/* Whether the request has a key that may give orders or, without keys, comes from this machine and
 * to a name that always means it. */
bool access_may_order(const struct http_request *q, const struct http_response *r);

/* openapi.json, built in: all routes as an OpenAPI document. */
extern const char openapi_json[];

/* cluster_orders.c */
#define CLUSTER_ORDERS_PREFIX "/v1/cluster/" /* the verb follows */
void cluster_orders_handle(struct api *a, const struct http_request *q, struct http_response *r);
/* Whether this client may change what the node does or has. */
int cluster_orders_check_client(const struct http_request *q, const struct http_response *r,
                                struct api_error *e);
/* Tells every client that the server stops; answers that come later go nowhere. */
void cluster_orders_stop_all(struct api *a);

/* openai_models.c */
void openai_models_list(struct api *a, const struct http_request *q, struct http_response *r);
void openai_models_get(struct api *a, const struct http_request *q, struct http_response *r);

#endif
