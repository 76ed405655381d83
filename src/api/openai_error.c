#include "api/openai_error.h"

#include "base/json.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int openai_error_set(struct openai_error *e, int status, const char *code, const char *param,
                     const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    e->status = status;
    e->code = code;
    snprintf(e->param, sizeof(e->param), "%s", param != NULL ? param : "");
    vsnprintf(e->message, sizeof(e->message), fmt, args);
    va_end(args);
    return -1;
}

void openai_error_from(struct openai_error *e, const struct error *err)
{
    int status = error_http_status(err->code);
    const char *code = NULL;
    if (status == 499) /* nobody asked us to: the server itself gave up */
        status = 503;
    if (status == 429)
        code = "rate_limit_exceeded";
    else if (err->code == E_UNAVAILABLE)
        code = "model_not_ready";
    openai_error_set(e, status, code, NULL, "%s",
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

void openai_error_append(struct buf *out, const struct openai_error *e)
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

void openai_error_respond(struct http_response *r, const struct openai_error *e)
{
    struct buf body;
    buf_init(&body, 8192);
    openai_error_append(&body, e);
    if (e->status == 429)
        http_response_header(r, "retry-after", "1");
    else if (e->status == 503)
        http_response_header(r, "retry-after", "2");
    http_respond(r, e->status, "application/json", buf_str(&body), body.len);
    buf_done(&body);
}
