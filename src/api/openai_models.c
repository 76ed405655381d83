#include "api/anthropic.h"
#include "api/api_internal.h"
#include "base/json.h"

#include <string.h>

static void append_model(struct buf *out, const struct api_model *m)
{
    buf_append_str(out, "{\"id\":");
    json_append_string(out, m->id, strlen(m->id));
    buf_printf(out,
               ",\"object\":\"model\",\"created\":%llu,\"owned_by\":\"shoal\","
               "\"max_model_len\":%u,\"ready\":%s}",
               (unsigned long long)m->created_s, m->n_ctx, m->is_ready ? "true" : "false");
}

static void respond(struct http_response *r, struct buf *body)
{
    struct api_error e;
    if (body->error == 0) {
        http_respond(r, 200, "application/json", buf_str(body), body->len);
    } else {
        api_error_set(&e, 503, NULL, NULL, "%s", error_text(body->error));
        api_error_respond(r, &e);
    }
    buf_done(body);
}

void openai_models_list(struct api *a, const struct http_request *q, struct http_response *r)
{
    if (http_request_header(q, "anthropic-version") != NULL) {
        anthropic_models_list(a, q, r);
        return;
    }
    const struct api_backend *b = a->backend;
    struct buf body;
    uint32_t n = b->n_models(b->self);
    buf_init(&body, 16u << 20);
    buf_append_str(&body, "{\"object\":\"list\",\"data\":[");
    for (uint32_t i = 0; i < n; i++) {
        if (i > 0)
            buf_append_char(&body, ',');
        append_model(&body, b->model_at(b->self, i));
    }
    buf_append_str(&body, "]}");
    respond(r, &body);
}

void openai_models_get(struct api *a, const struct http_request *q, struct http_response *r)
{
    if (http_request_header(q, "anthropic-version") != NULL) {
        anthropic_models_get(a, q, r);
        return;
    }
    const char *id = q->path + strlen("/v1/models/");
    const struct api_model *m = a->backend->model_find(a->backend->self, id);
    struct api_error e;
    struct buf body;
    if (m == NULL) {
        api_error_set(&e, 404, "model_not_found", "model", "The model '%.256s' does not exist.",
                      id);
        api_error_respond(r, &e);
        return;
    }
    buf_init(&body, 1u << 20);
    append_model(&body, m);
    respond(r, &body);
}
