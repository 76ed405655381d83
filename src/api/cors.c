/* Which web pages may use this API from a browser: those of this machine, those that the API itself
 * served, and the one that the owner named. Source: Fetch standard, "CORS protocol". */
#include "api/api_internal.h"

#include <arpa/inet.h>
#include <string.h>
#include <strings.h>

bool cors_is_loopback_name(const char *authority)
{
    char name[256];
    struct in_addr v4;
    if (strncmp(authority, "[::1]", 5) == 0)
        return authority[5] == '\0' || authority[5] == ':';
    size_t n = strcspn(authority, ":");
    if (n == 0 || n >= sizeof(name))
        return false;
    memcpy(name, authority, n);
    name[n] = '\0';
    if (strcasecmp(name, "localhost") == 0)
        return true;
    if (n > 10 && strcasecmp(name + n - 10, ".localhost") == 0)
        return true;
    return inet_pton(AF_INET, name, &v4) == 1 && (ntohl(v4.s_addr) >> 24) == 127;
}

/* An origin is printable text without spaces, such as http://localhost:3000. */
static bool is_well_formed(const char *origin)
{
    for (const char *c = origin; *c != '\0'; c++)
        if (*c <= ' ' || (unsigned char)*c >= 0x7f)
            return false;
    return origin[0] != '\0';
}

static bool is_allowed(const struct api *a, const struct http_request *q, const char *origin)
{
    if (!is_well_formed(origin))
        return false;
    if (a->cors_origin != NULL &&
        (strcmp(a->cors_origin, "*") == 0 || strcasecmp(a->cors_origin, origin) == 0))
        return true;
    const char *authority = strstr(origin, "://");
    if (authority == NULL)
        return false;
    authority += 3;
    return cors_is_loopback_name(authority) ||
           (q->host[0] != '\0' && strcasecmp(authority, q->host) == 0);
}

void cors_append_headers(const struct api *a, const struct http_request *q, struct buf *out)
{
    const char *origin = q != NULL ? http_request_header(q, "origin") : NULL;
    buf_append_str(out, "vary: origin\r\n");
    if (origin == NULL || !is_allowed(a, q, origin))
        return;
    buf_printf(out,
               "access-control-allow-origin: %s\r\n"
               "access-control-expose-headers: x-request-id, request-id, retry-after\r\n",
               origin);
}

bool cors_may_act(const struct api *a, const struct http_request *q)
{
    const char *origin = http_request_header(q, "origin");
    if (origin == NULL || is_allowed(a, q, origin))
        return true;
    /* Pages of the web, also sandboxed ones ("null"), are refused; local programs that name
     * themselves with a scheme of their own (app://, vscode-webview://) are not web pages. */
    return strncasecmp(origin, "http", 4) != 0 && strcmp(origin, "null") != 0;
}

void cors_respond_options(const struct api *a, const struct http_request *q,
                          struct http_response *r)
{
    const char *origin = http_request_header(q, "origin");
    const char *wanted = http_request_header(q, "access-control-request-headers");
    http_response_header(r, "allow", "GET, HEAD, POST, DELETE, OPTIONS");
    if (origin != NULL && is_allowed(a, q, origin)) {
        bool is_sane = wanted != NULL && strlen(wanted) < 2048 &&
                       strspn(wanted, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
                                      "0123456789-_, ") == strlen(wanted);
        http_response_header(r, "access-control-allow-methods", "GET, HEAD, POST, DELETE, OPTIONS");
        http_response_header(r, "access-control-allow-headers",
                             is_sane ? wanted : "authorization, content-type, x-api-key");
        http_response_header(r, "access-control-max-age", "600");
    }
    http_respond(r, 204, NULL, NULL, 0);
}
