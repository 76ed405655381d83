#include "api/api_error.h"

#include "api/anthropic.h"
#include "base/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int api_error_set(struct api_error *e, int status, const char *code, const char *param,
                  const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    e->status = status;
    e->retry_s = 0;
    e->code = code;
    snprintf(e->param, sizeof(e->param), "%s", param != NULL ? param : "");
    vsnprintf(e->message, sizeof(e->message), fmt, args);
    va_end(args);
    return -1;
}

void api_error_from(struct api_error *e, const struct error *err)
{
    int status = error_http_status(err->code);
    const char *code = NULL;
    if (status == 499) /* nobody asked us to: the server itself gave up */
        status = 503;
    if (status == 429)
        code = "rate_limit_exceeded";
    else if (err->code == E_UNAVAILABLE)
        code = "model_not_ready";
    api_error_set(e, status, code, NULL, "%s",
                  err->message[0] != '\0' ? err->message : error_text(err->code));
}

static const char *type_of(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 429:
        return "rate_limit_error";
    default:
        return status >= 500 ? "server_error" : "invalid_request_error";
    }
}

void api_error_append(struct buf *out, const struct api_error *e)
{
    buf_append_str(out, "{\"error\":{\"message\":");
    json_append_string(out, e->message, strlen(e->message));
    buf_printf(out, ",\"type\":\"%s\",\"param\":", type_of(e->status));
    if (e->param[0] != '\0')
        json_append_string(out, e->param, strlen(e->param));
    else
        buf_append_str(out, "null");
    if (e->code != NULL)
        buf_printf(out, ",\"code\":\"%s\"}}", e->code);
    else
        buf_append_str(out, ",\"code\":null}}");
}

void api_error_append_for(struct buf *out, const struct api_error *e, const char *path)
{
    if (path != NULL && strncmp(path, "/api/", 5) == 0) { /* Ollama's */
        buf_append_str(out, "{\"error\":");
        json_append_string(out, e->message, strlen(e->message));
        buf_append_char(out, '}');
        return;
    }
    api_error_append(out, e);
}

void api_error_append_to(struct buf *out, const struct api_error *e, const struct http_request *q,
                         const char *request_id)
{
    if (q != NULL && anthropic_is_client(q))
        anthropic_append_error(out, e, request_id);
    else
        api_error_append_for(out, e, q != NULL ? q->path : NULL);
}

void api_error_send(struct http_response *r, const struct api_error *e, const struct buf *body)
{
    int status = e->status;
    if (e->retry_s > 0) {
        char seconds[16];
        snprintf(seconds, sizeof(seconds), "%u", e->retry_s);
        http_response_header(r, "retry-after", seconds);
    } else if (status == 429)
        http_response_header(r, "retry-after", "1");
    else if (status == 503)
        http_response_header(r, "retry-after", "2");
    if (anthropic_is_client(http_response_request(r)))
        status = anthropic_error_status(status);
    http_respond(r, status, "application/json", buf_str(body), body->len);
}

void api_error_respond(struct http_response *r, const struct api_error *e)
{
    struct buf body;
    buf_init(&body, 8192);
    api_error_append_to(&body, e, http_response_request(r), http_response_id(r));
    api_error_send(r, e, &body);
    buf_done(&body);
}
