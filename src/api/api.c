#include "api/api_internal.h"
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
    struct openai_error e;
    struct buf body;
    buf_init(&body, 64u << 20);
    int rc = a->backend->state_json(a->backend->self, &body);
    if (rc == 0)
        rc = body.error;
    if (rc == 0) {
        http_respond(r, 200, "application/json", buf_str(&body), body.len);
    } else {
        openai_error_set(&e, error_http_status(rc), NULL, NULL, "cannot give the state: %s",
                         error_text(rc));
        openai_error_respond(r, &e);
    }
    buf_done(&body);
}

enum route {
    ROUTE_NONE,
    ROUTE_HEALTH,
    ROUTE_STATE,
    ROUTE_MODELS,
    ROUTE_MODEL,
    ROUTE_CHAT,
    ROUTE_ORDER,
};

static const char models_prefix[] = "/v1/models/";

static enum route find_route(const char *path)
{
    static const struct {
        const char *path;
        enum route route;
    } table[] = {
        {"/health", ROUTE_HEALTH},
        {"/v1/cluster/state", ROUTE_STATE},
        {"/v1/models", ROUTE_MODELS},
        {"/v1/chat/completions", ROUTE_CHAT},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++)
        if (strcmp(path, table[i].path) == 0)
            return table[i].route;
    if (strncmp(path, models_prefix, sizeof(models_prefix) - 1) == 0 &&
        path[sizeof(models_prefix) - 1] != '\0')
        return ROUTE_MODEL;
    return cluster_orders_verb(path) != NULL ? ROUTE_ORDER : ROUTE_NONE;
}

static void refuse_method(const struct http_request *q, const char *allowed,
                          struct http_response *r)
{
    struct openai_error e;
    openai_error_set(&e, 405, "method_not_allowed", NULL,
                     "Invalid method for URL (%s %.256s): use %s.", q->method, q->path, allowed);
    http_response_header(r, "allow", allowed);
    openai_error_respond(r, &e);
}

static void handle(void *arg, const struct http_request *q, struct http_response *r)
{
    struct api *a = arg;
    struct openai_error e;
    enum route route = find_route(q->path);
    bool wants_post = route == ROUTE_CHAT || route == ROUTE_ORDER;
    bool is_get = strcmp(q->method, "GET") == 0 || strcmp(q->method, "HEAD") == 0;
    bool is_post = strcmp(q->method, "POST") == 0;
    if (strcmp(q->method, "OPTIONS") == 0) {
        cors_respond_options(a, q, r);
    } else if (route == ROUTE_NONE) {
        openai_error_set(&e, 404, "unknown_url", NULL, "Unknown request URL: %s %.256s", q->method,
                         q->path);
        openai_error_respond(r, &e);
    } else if (wants_post && !is_post) {
        refuse_method(q, "POST, OPTIONS", r);
    } else if (!wants_post && !is_get) {
        refuse_method(q, "GET, HEAD, OPTIONS", r);
    } else if (is_post && !cors_may_act(a, q)) {
        openai_error_set(&e, 403, "origin_not_allowed", NULL,
                         "Web pages of origin '%.128s' may not use this server; its owner can "
                         "allow one origin in the configuration.",
                         http_request_header(q, "origin"));
        openai_error_respond(r, &e);
    } else if (route == ROUTE_CHAT) {
        openai_chat_handle(a, q, r);
    } else if (route == ROUTE_ORDER) {
        cluster_orders_handle(a, cluster_orders_verb(q->path), q, r);
    } else if (route == ROUTE_MODELS) {
        openai_models_list(a, r);
    } else if (route == ROUTE_MODEL) {
        openai_models_get(a, q->path + sizeof(models_prefix) - 1, r);
    } else if (route == ROUTE_HEALTH) {
        respond_health(a, r);
    } else {
        respond_state(a, r);
    }
}

static void append_error_body(void *arg, int status, const char *message, struct buf *out)
{
    struct openai_error e;
    (void)arg;
    openai_error_set(&e, status, NULL, NULL, "%s", message);
    openai_error_append(out, &e);
}

static void append_headers(void *arg, const struct http_request *q, struct buf *out)
{
    cors_append_headers(arg, q, out);
}

static void on_tick(uv_timer_t *timer)
{
    struct api *a = timer->data;
    if (a->calls == NULL)
        uv_timer_stop(timer);
    else
        openai_chat_tick(a);
}

void api_start_tick(struct api *a)
{
    if (!a->is_closing && !uv_is_active((uv_handle_t *)&a->tick))
        uv_timer_start(&a->tick, on_tick, TICK_MS, TICK_MS);
}

static void api_free(struct api *a)
{
    for (size_t i = 0; i < LIMIT_INSTANCES; i++) {
        control_set_unref(a->controls[i].set);
        free(a->controls[i].model_id);
    }
    free(a->cors_origin);
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
    struct http_server_options server = {
        .host = o->host,
        .port = o->port,
        .hooks = {.handle = handle, .error_body = append_error_body, .headers = append_headers},
        .arg = a,
    };
    int rc = http_server_open(loop, &server, &a->server, err);
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
    openai_chat_stop_all(a);
    cluster_orders_stop_all(a);
    http_server_close(a->server, on_server_closed, a);
    uv_close((uv_handle_t *)&a->tick, on_tick_closed);
}
