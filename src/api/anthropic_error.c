/* How Anthropic's API says what went wrong. Source: its API reference, "Errors". */
#include "api/anthropic.h"

#include "base/json.h"

#include <string.h>

enum { STATUS_OVERLOADED = 529 };

bool anthropic_is_client(const struct http_request *q)
{
    static const char path[] = "/v1/messages";
    size_t len = sizeof(path) - 1;
    if (strncmp(q->path, path, len) == 0 && (q->path[len] == '\0' || q->path[len] == '/'))
        return true;
    return http_request_header(q, "anthropic-version") != NULL;
}

int anthropic_error_status(int status)
{
    return status == 503 ? STATUS_OVERLOADED : status;
}

static const char *type_of(int status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 403:
        return "permission_error";
    case 404:
        return "not_found_error";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 503:
    case STATUS_OVERLOADED:
        return "overloaded_error";
    case 408:
    case 504:
        return "timeout_error";
    default:
        return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

void anthropic_append_error(struct buf *out, const struct api_error *e, const char *request_id)
{
    buf_printf(out,
               "{\"type\":\"error\",\"error\":{\"type\":\"%s\",\"message\":", type_of(e->status));
    json_append_string(out, e->message, strlen(e->message));
    buf_append_str(out, "},\"request_id\":");
    if (request_id != NULL)
        json_append_string(out, request_id, strlen(request_id));
    else
        buf_append_str(out, "null");
    buf_append_char(out, '}');
}
