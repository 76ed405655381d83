#include "api/anthropic.h"
#include "api/api_internal.h"
#include "api/chat_call.h"
#include "api/model_text.h"
#include "api/ollama.h"
#include "api/openai.h"
#include "base/log.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { TICK_MS = 1000 };

static void respond_health(struct api *a, struct http_response *r)
{
    struct buf members, body;
    buf_init(&members, 1u << 20);
    buf_init(&body, 2u << 20);
    bool can_serve = a->backend->health(a->backend->self, &members);
    buf_printf(&body, "{\"status\":\"%s\"", can_serve ? "ok" : "unavailable");
    if (members.len > 0 && members.error == 0) {
        buf_append_char(&body, ',');
        buf_append(&body, members.data, members.len);
    }
    buf_append_char(&body, '}');
    if (!can_serve)
        http_response_header(r, "retry-after", "2");
    http_respond(r, can_serve ? 200 : 503, "application/json", buf_str(&body), body.len);
    buf_done(&members);
    buf_done(&body);
}

static void respond_state(struct api *a, struct http_response *r)
{
    struct api_error e;
    struct buf body;
    buf_init(&body, 64u << 20);
    int rc = a->backend->state_json(a->backend->self, &body);
    if (rc == 0)
        rc = body.error;
    if (rc == 0) {
        http_respond(r, 200, "application/json", buf_str(&body), body.len);
    } else {
        api_error_set(&e, error_http_status(rc), NULL, NULL, "cannot give the state: %s",
                      error_text(rc));
        api_error_respond(r, &e);
    }
    buf_done(&body);
}

/* What is served. A path with "*" at its end stands for all that begin so. */
struct route {
    const char *path;
    const char *method; /* GET stands for HEAD, too */
    void (*handle)(struct api *a, const struct http_request *q, struct http_response *r);
    const struct chat_dialect *dialect; /* instead of handle: a call for text */
    unsigned scopes; /* of the API's key, where there are keys: one of these; 0: admin */
};

enum {
    LOOK = API_SCOPE_INFERENCE | API_SCOPE_READ, /* what clients for text ask, too */
    ANYTHING = LOOK | API_SCOPE_ADMIN,
    EVERYBODY = 1 << 8, /* also without a key */
};

static void handle_health(struct api *a, const struct http_request *q, struct http_response *r)
{
    (void)q;
    respond_health(a, r);
}

static void handle_state(struct api *a, const struct http_request *q, struct http_response *r)
{
    (void)q;
    respond_state(a, r);
}

static void handle_openapi(struct api *a, const struct http_request *q, struct http_response *r)
{
    (void)a, (void)q;
    http_respond(r, 200, "application/json", openapi_json, strlen(openapi_json));
}

static const struct route routes[] = {
    {"/health", "GET", handle_health, NULL, EVERYBODY},
    {"/openapi.json", "GET", handle_openapi, NULL, LOOK},
    {"/v1/cluster/state", "GET", handle_state, NULL, API_SCOPE_READ},
    {"/v1/models", "GET", openai_models_list, NULL, LOOK},
    {"/v1/models/*", "GET", openai_models_get, NULL, LOOK},
    {"/v1/messages", "POST", NULL, &anthropic_messages_dialect, API_SCOPE_INFERENCE},
    {"/v1/messages/count_tokens", "POST", NULL, &anthropic_count_dialect, API_SCOPE_INFERENCE},
    {"/v1/chat/completions", "POST", NULL, &openai_chat_dialect, API_SCOPE_INFERENCE},
    {"/v1/completions", "POST", NULL, &openai_completions_dialect, API_SCOPE_INFERENCE},
    {"/v1/responses", "POST", NULL, &openai_responses_dialect, API_SCOPE_INFERENCE},
    {"/", "GET", ollama_root, NULL, LOOK},
    {"/api/chat", "POST", NULL, &ollama_chat_dialect, API_SCOPE_INFERENCE},
    {"/api/generate", "POST", NULL, &ollama_generate_dialect, API_SCOPE_INFERENCE},
    {"/api/tags", "GET", ollama_tags, NULL, LOOK},
    {"/api/ps", "GET", ollama_ps, NULL, LOOK},
    {"/api/version", "GET", ollama_version, NULL, LOOK},
    {"/api/show", "POST", ollama_show, NULL, LOOK},
    {"/api/pull", "POST", ollama_pull, NULL, API_SCOPE_ADMIN},
    {"/api/copy", "POST", ollama_copy, NULL, API_SCOPE_ADMIN},
    {"/api/delete", "DELETE", ollama_delete, NULL, API_SCOPE_ADMIN},
    {"/api/embed", "POST", ollama_refuse, NULL, LOOK},
    {"/api/embeddings", "POST", ollama_refuse, NULL, LOOK},
    {"/api/create", "POST", ollama_refuse, NULL, API_SCOPE_ADMIN},
    {"/api/push", "POST", ollama_refuse, NULL, API_SCOPE_ADMIN},
    {"/api/blobs/*", "POST", ollama_refuse, NULL, API_SCOPE_ADMIN},
    {"/api/blobs/*", "GET", ollama_refuse, NULL, LOOK},
    {CLUSTER_ORDERS_PREFIX "plan", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "load", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "unload", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "drain", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "undrain", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "invite", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "join", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "requests", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "approve", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "deny", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "revoke", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "pulls", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "pull", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "remove", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "show", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
    {CLUSTER_ORDERS_PREFIX "models", "POST", cluster_orders_handle, NULL, API_SCOPE_ADMIN},
};

enum { N_ROUTES = sizeof(routes) / sizeof(routes[0]) };

static bool has_path(const struct route *route, const char *path)
{
    size_t len = strlen(route->path);
    if (route->path[len - 1] != '*')
        return strcmp(route->path, path) == 0;
    return strncmp(route->path, path, len - 1) == 0 && path[len - 1] != '\0';
}

static bool has_method(const struct route *route, const char *method)
{
    return strcmp(route->method, method) == 0 ||
           (strcmp(route->method, "GET") == 0 && strcmp(method, "HEAD") == 0);
}

/* NULL with the error: no such path, or not with this method. */
static const struct route *find_route(const struct http_request *q, struct http_response *r,
                                      struct api_error *e)
{
    char allowed[64] = "";
    int n = 0; /* of its characters */
    for (size_t i = 0; i < N_ROUTES; i++) {
        if (!has_path(&routes[i], q->path))
            continue;
        if (has_method(&routes[i], q->method))
            return &routes[i];
        if (strstr(allowed, routes[i].method) == NULL)
            n += snprintf(allowed + n, sizeof(allowed) - (size_t)n, "%s, %s", routes[i].method,
                          strcmp(routes[i].method, "GET") == 0 ? "HEAD, " : "");
    }
    if (n == 0) {
        api_error_set(e, 404, "unknown_url", NULL, "Unknown request URL: %s %.256s", q->method,
                      q->path);
        return NULL;
    }
    snprintf(allowed + n, sizeof(allowed) - (size_t)n, "OPTIONS");
    api_error_set(e, 405, "method_not_allowed", NULL, "Invalid method for URL (%s %.256s): use %s.",
                  q->method, q->path, allowed);
    http_response_header(r, "allow", allowed);
    return NULL;
}

static void handle(void *arg, const struct http_request *q, struct http_response *r)
{
    struct api *a = arg;
    struct api_error e, refusal;
    if (strcmp(q->method, "OPTIONS") == 0) {
        cors_respond_options(a, q, r);
        return;
    }
    const struct route *route = find_route(q, r, &e);
    unsigned scopes = route != NULL ? route->scopes : ANYTHING;
    bool is_inference = route != NULL && route->dialect != NULL;
    /* Who has no key does not even learn what there is. */
    if (scopes != EVERYBODY && access_check(a, q, r, scopes, is_inference, &refusal) != 0) {
        e = refusal;
        route = NULL;
    }
    if (route != NULL && strcmp(route->method, "GET") != 0 && !cors_may_act(a, q)) {
        api_error_set(&e, 403, "origin_not_allowed", NULL,
                      "Web pages of origin '%.128s' may not use this server; its owner can allow "
                      "one origin in the configuration.",
                      http_request_header(q, "origin"));
        route = NULL;
    }
    if (route == NULL)
        api_error_respond(r, &e);
    else if (route->dialect != NULL)
        chat_call_handle(a, route->dialect, r);
    else
        route->handle(a, q, r);
}

static void append_error_body(void *arg, const struct http_request *q, const char *id, int status,
                              const char *message, struct buf *out)
{
    struct api_error e;
    (void)arg;
    api_error_set(&e, status, NULL, NULL, "%s", message);
    api_error_append_to(out, &e, q, id);
}

static void append_headers(void *arg, const struct http_request *q, struct buf *out)
{
    cors_append_headers(arg, q, out);
}

static void on_tick(uv_timer_t *timer)
{
    struct api *a = timer->data;
    if (a->calls == NULL && a->ollama_jobs == NULL)
        uv_timer_stop(timer);
    chat_call_tick(a);
    ollama_jobs_tick(a);
}

void api_start_tick(struct api *a)
{
    if (!a->is_closing && !uv_is_active((uv_handle_t *)&a->tick))
        uv_timer_start(&a->tick, on_tick, TICK_MS, TICK_MS);
}

static void api_free(struct api *a)
{
    for (size_t i = 0; i < LIMIT_INSTANCES; i++) {
        model_text_unref(a->texts[i].text);
        free(a->texts[i].model_id);
    }
    free(a->cors_origin);
    api_keys_free(a->keys);
    free(a);
}

int api_open(uv_loop_t *loop, const struct api_options *o, const struct api_backend *backend,
             struct api **ret_api, struct error *err)
{
    struct api *a = calloc(1, sizeof(*a));
    if (a == NULL)
        return error_set(err, E_NOMEM, "out of memory for the API");
    a->loop = loop;
    a->backend = backend;
    if (o->cors_origin != NULL && (a->cors_origin = strdup(o->cors_origin)) == NULL) {
        api_free(a);
        return error_set(err, E_NOMEM, "out of memory for the API");
    }
    int rc = o->keys_file != NULL ? api_keys_load(o->keys_file, &a->keys, err) : 0;
    if (rc != 0) {
        api_free(a);
        return rc;
    }
    struct http_server_options server = {
        .host = o->host,
        .port = o->port,
        .hooks = {.handle = handle, .error_body = append_error_body, .headers = append_headers},
        .arg = a,
    };
    rc = http_server_open(loop, &server, &a->server, err);
    if (rc != 0) {
        api_free(a);
        return rc;
    }
    uv_timer_init(loop, &a->tick);
    a->tick.data = a;
    a->port = http_server_port(a->server);
    *ret_api = a;
    return 0;
}

uint16_t api_port(const struct api *a)
{
    return a->port;
}

void api_check_closed(struct api *a)
{
    if (!a->is_closing || !a->is_server_closed || !a->is_tick_closed || a->calls != NULL)
        return;
    void (*closed)(void *) = a->closed;
    void *arg = a->closed_arg;
    api_free(a);
    closed(arg);
}

static void on_server_closed(void *arg)
{
    struct api *a = arg;
    a->is_server_closed = true;
    api_check_closed(a);
}

static void on_tick_closed(uv_handle_t *handle)
{
    struct api *a = handle->data;
    a->is_tick_closed = true;
    api_check_closed(a);
}

void api_close(struct api *a, void (*closed)(void *arg), void *arg)
{
    assert(!a->is_closing);
    a->is_closing = true;
    a->closed = closed;
    a->closed_arg = arg;
    chat_call_stop_all(a);
    cluster_orders_stop_all(a);
    ollama_jobs_stop_all(a);
    http_server_close(a->server, on_server_closed, a);
    uv_close((uv_handle_t *)&a->tick, on_tick_closed);
}
