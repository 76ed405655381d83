/*
 * POST /v1/cluster/<verb>: what people want of the cluster goes to the backend, its answer to the
 * client. Orders change what runs on people's machines: they need an API key for it or, where there
 * are no keys, come from this machine. Then the peer has a loopback address, and the name it asked
 * for means this machine, which keeps out web pages whose name was bent to point here.
 *
 * An order lives until the backend has answered, also when the client has left or the API closed.
 */
#include "api/api_internal.h"
#include "base/json.h"
#include "base/log.h"

#include <stdlib.h>
#include <string.h>

enum { BODY_BYTES_MAX = 65536, ORDERS_MAX = 64 };

struct cluster_order_call {
    struct api *api; /* NULL: closed */
    struct cluster_order_call *next, *prev;
    struct http_response *response; /* NULL: gone */
    char verb[16];
};

static void unlink_order(struct cluster_order_call *o)
{
    if (o->api == NULL)
        return;
    if (o->prev != NULL)
        o->prev->next = o->next;
    else
        o->api->orders = o->next;
    if (o->next != NULL)
        o->next->prev = o->prev;
    o->api->n_orders--;
    o->api = NULL;
}

static void on_gone(void *arg)
{
    struct cluster_order_call *o = arg;
    o->response = NULL;
}

static void on_answer(void *arg, int status, const char *json, size_t len)
{
    struct cluster_order_call *o = arg;
    struct http_response *r = o->response;
    if (r != NULL) {
        if (status == 429 || status == 503)
            http_response_header(r, "retry-after", "2");
        log_debug("api", "request=%s %s -> %d", http_response_id(r), o->verb, status);
        http_respond(r, status >= 200 && status < 600 ? status : 500, "application/json", json,
                     len);
    }
    unlink_order(o);
    free(o);
}

int cluster_orders_check_client(const struct http_request *q, const struct http_response *r,
                                struct api_error *e)
{
    if (access_may_order(q, r))
        return 0;
    return api_error_set(e, 403, "not_from_this_machine", NULL,
                         "Without API keys, orders to the cluster, and what changes its models, "
                         "are taken only from the node's own machine, at 127.0.0.1, [::1] or "
                         "localhost.");
}

static int check_body(const struct http_request *q, struct api_error *e)
{
    struct error err = {0};
    json_t *value = NULL;
    if (q->body_len > BODY_BYTES_MAX)
        return api_error_set(e, 413, NULL, NULL,
                             "The order has %zu bytes; at most %d are possible.", q->body_len,
                             (int)BODY_BYTES_MAX);
    if (q->body_len == 0)
        return 0;
    if (json_parse(q->body, q->body_len, &value, &err) != 0) {
        api_error_from(e, &err);
        return -1;
    }
    bool is_object = json_is_object(value);
    json_decref(value);
    return is_object ? 0 : api_error_set(e, 400, NULL, NULL, "The order must be a JSON object.");
}

static int start(struct api *a, const char *verb, const struct http_request *q,
                 struct http_response *r, struct api_error *e)
{
    static const struct http_response_events events = {.gone = on_gone};
    const struct api_backend *b = a->backend;
    struct error err = {0};
    if (b->cluster_call == NULL || a->is_closing)
        return api_error_set(e, 503, NULL, NULL, "this node takes no orders now");
    if (a->n_orders >= ORDERS_MAX)
        return api_error_set(e, 429, NULL, NULL, "%u orders are being carried out already.",
                             a->n_orders);
    struct cluster_order_call *o = calloc(1, sizeof(*o));
    if (o == NULL)
        return api_error_set(e, 503, NULL, NULL, "out of memory");
    memcpy(o->verb, verb, strlen(verb) + 1);
    o->response = r;
    bool is_empty = q->body_len == 0;
    int rc = b->cluster_call(b->self, verb, is_empty ? "{}" : q->body, is_empty ? 2 : q->body_len,
                             on_answer, o, &err);
    if (rc != 0) {
        free(o);
        err.code = rc;
        api_error_from(e, &err);
        return -1;
    }
    o->api = a;
    o->next = a->orders;
    if (o->next != NULL)
        o->next->prev = o;
    a->orders = o;
    a->n_orders++;
    http_response_watch(r, &events, o);
    return 0;
}

void cluster_orders_handle(struct api *a, const struct http_request *q, struct http_response *r)
{
    const char *verb = q->path + strlen(CLUSTER_ORDERS_PREFIX);
    struct api_error e = {0};
    int rc = cluster_orders_check_client(q, r, &e);
    if (rc == 0)
        rc = check_body(q, &e);
    if (rc == 0)
        rc = start(a, verb, q, r, &e);
    if (rc != 0)
        api_error_respond(r, &e);
}

void cluster_orders_stop_all(struct api *a)
{
    struct api_error e;
    api_error_set(&e, 503, NULL, NULL, "the server is shutting down");
    while (a->orders != NULL) {
        struct cluster_order_call *o = a->orders;
        if (o->response != NULL)
            api_error_respond(o->response, &e);
        o->response = NULL;
        unlink_order(o);
    }
}
