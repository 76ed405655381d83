#include "api/http_parser.h"

#include "base/limits.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

struct http_message {
    struct http_request request;
    struct http_header headers[LIMIT_HTTP_HEADERS];
    size_t name_at[LIMIT_HTTP_HEADERS], value_at[LIMIT_HTTP_HEADERS]; /* offsets in text */
    size_t n_fields;
    size_t path_at, query_at, host_at;
    struct buf text; /* NUL-terminated pieces: the target, then names and values */
    struct buf body;
    bool expects_continue;
};

static int refuse(struct http_parser *p, int status, const char *problem)
{
    if (p->problem == NULL) {
        p->status = status;
        p->problem = problem;
    }
    return HPE_USER;
}

static int on_url(llhttp_t *l, const char *at, size_t n)
{
    struct http_parser *p = l->data;
    return buf_append(&p->message->text, at, n) == 0 ? 0 : refuse(p, 503, "out of memory");
}

static int on_url_complete(llhttp_t *l)
{
    return on_url(l, "", 1);
}

static int on_header_field(llhttp_t *l, const char *at, size_t n)
{
    struct http_parser *p = l->data;
    struct http_message *m = p->message;
    if (p->in_body)
        return refuse(p, 400, "trailer fields are not supported");
    if (m->n_fields >= LIMIT_HTTP_HEADERS)
        return refuse(p, 431, "too many header fields");
    if (m->name_at[m->n_fields] == 0)
        m->name_at[m->n_fields] = m->text.len;
    size_t begin = m->text.len;
    if (on_url(l, at, n) != 0)
        return HPE_USER;
    for (size_t i = begin; i < m->text.len; i++)
        if (m->text.data[i] >= 'A' && m->text.data[i] <= 'Z')
            m->text.data[i] = (char)(m->text.data[i] + ('a' - 'A'));
    return 0;
}

static int on_header_field_complete(llhttp_t *l)
{
    struct http_parser *p = l->data;
    struct http_message *m = p->message;
    if (on_url(l, "", 1) != 0)
        return HPE_USER;
    if (m->n_fields < LIMIT_HTTP_HEADERS)
        m->value_at[m->n_fields] = m->text.len;
    return 0;
}

static int on_header_value(llhttp_t *l, const char *at, size_t n)
{
    return on_url(l, at, n);
}

static int on_header_value_complete(llhttp_t *l)
{
    struct http_parser *p = l->data;
    struct http_message *m = p->message;
    if (m->n_fields >= LIMIT_HTTP_HEADERS || m->name_at[m->n_fields] == 0)
        return refuse(p, 400, "a header field without a name");
    while (m->text.len > m->value_at[m->n_fields] &&
           (m->text.data[m->text.len - 1] == ' ' || m->text.data[m->text.len - 1] == '\t'))
        m->text.len--;
    m->n_fields++;
    return on_url(l, "", 1);
}

static int on_headers_complete(llhttp_t *l)
{
    struct http_parser *p = l->data;
    p->head_done = true;
    l->upgrade = 0; /* an Upgrade field may be ignored: RFC 9110, section 7.8 */
    return 0;
}

static int on_body(llhttp_t *l, const char *at, size_t n)
{
    struct http_parser *p = l->data;
    int rc = buf_append(&p->message->body, at, n);
    if (rc == 0)
        return 0;
    return p->message->body.len + n > LIMIT_HTTP_BODY_BYTES
               ? refuse(p, 413, "the request body is too large")
               : refuse(p, 503, "out of memory");
}

static int on_message_complete(llhttp_t *l)
{
    struct http_parser *p = l->data;
    p->is_complete = true;
    p->message->request.keep_alive = llhttp_should_keep_alive(l) != 0;
    return HPE_PAUSED;
}

static const llhttp_settings_t settings = {
    .on_url = on_url,
    .on_url_complete = on_url_complete,
    .on_header_field = on_header_field,
    .on_header_field_complete = on_header_field_complete,
    .on_header_value = on_header_value,
    .on_header_value_complete = on_header_value_complete,
    .on_headers_complete = on_headers_complete,
    .on_body = on_body,
    .on_message_complete = on_message_complete,
};

void http_parser_init(struct http_parser *p)
{
    *p = (struct http_parser){0};
    llhttp_init(&p->llhttp, HTTP_REQUEST, &settings);
    p->llhttp.data = p;
    http_guard_init(&p->guard);
}

static void message_free(struct http_message *m)
{
    if (m == NULL)
        return;
    buf_done(&m->text);
    buf_done(&m->body);
    free(m);
}

void http_parser_done(struct http_parser *p)
{
    message_free(p->message);
    p->message = NULL;
}

void http_parser_next(struct http_parser *p)
{
    http_parser_done(p);
    http_parser_init(p);
}

static int message_new(struct http_parser *p)
{
    struct http_message *m = calloc(1, sizeof(*m));
    if (m == NULL)
        return refuse(p, 503, "out of memory");
    /* Every byte of the head once, with terminators, and the target twice: split and decoded. */
    buf_init(&m->text, 2 * (LIMIT_HTTP_HEADER_BYTES + LIMIT_HTTP_URL_BYTES));
    buf_init(&m->body, LIMIT_HTTP_BODY_BYTES);
    p->message = m;
    return 0;
}

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Splits the target at offset 0 of the text into host, path and query, and decodes the path. */
static int read_target(struct http_parser *p)
{
    struct http_message *m = p->message;
    const char *target = m->text.data;
    size_t at = 0;
    if (strncasecmp(target, "http://", 7) == 0) { /* absolute form: RFC 9112, section 3.2.2 */
        size_t host_len = strcspn(target + 7, "/?");
        m->host_at = m->text.len;
        char *host = strndup(target + 7, host_len);
        int rc = host != NULL ? buf_append(&m->text, host, host_len + 1) : -1;
        free(host);
        if (rc != 0)
            return refuse(p, 503, "out of memory");
        at = 7 + host_len;
    } else if (target[0] != '/' && strcmp(target, "*") != 0) {
        return refuse(p, 400, "the request target does not begin with '/'");
    }
    size_t end = strlen(m->text.data);
    size_t path_end = at + strcspn(m->text.data + at, "?#");
    m->query_at = end; /* the terminator: an empty text */
    if (m->text.data[path_end] == '#')
        return refuse(p, 400, "the request target has a fragment");
    if (path_end < end)
        m->query_at = path_end + 1;
    m->path_at = m->text.len;
    if (path_end == at && buf_append_char(&m->text, '/') != 0)
        return refuse(p, 503, "out of memory");
    for (size_t i = at; i < path_end; i++) {
        char c = m->text.data[i];
        if (c == '%') {
            int high = path_end - i > 2 ? hex_value(m->text.data[i + 1]) : -1;
            int low = high >= 0 ? hex_value(m->text.data[i + 2]) : -1;
            if (low < 0)
                return refuse(p, 400, "the request target has a malformed percent-encoding");
            c = (char)(high * 16 + low);
            i += 2;
        }
        if ((unsigned char)c < 0x20 || c == 0x7f)
            return refuse(p, 400, "the request target has a control byte");
        if (buf_append_char(&m->text, c) != 0)
            return refuse(p, 503, "out of memory");
    }
    return buf_append_char(&m->text, '\0') == 0 ? 0 : refuse(p, 503, "out of memory");
}

/* The fields that decide where the body ends and which server is meant. */
static int check_fields(struct http_parser *p)
{
    struct http_message *m = p->message;
    struct http_request *r = &m->request;
    size_t n_host = 0, n_length = 0, n_coding = 0;
    for (size_t i = 0; i < r->n_headers; i++) {
        const char *name = r->headers[i].name, *value = r->headers[i].value;
        if (strcmp(name, "host") == 0) {
            n_host++;
            if (m->host_at == 0)
                r->host = value;
        } else if (strcmp(name, "content-length") == 0) {
            n_length++;
        } else if (strcmp(name, "transfer-encoding") == 0) {
            n_coding++;
            if (strcasecmp(value, "chunked") != 0)
                return refuse(p, 501, "the only transfer coding understood is 'chunked'");
        } else if (strcmp(name, "content-encoding") == 0) {
            if (strcasecmp(value, "identity") != 0)
                return refuse(p, 415, "compressed request bodies are not supported");
        } else if (strcmp(name, "expect") == 0) {
            if (strcasecmp(value, "100-continue") != 0)
                return refuse(p, 417, "the only expectation understood is '100-continue'");
            m->expects_continue = !r->is_http10;
        }
    }
    if (n_host > 1 || (n_host == 0 && !r->is_http10))
        return refuse(p, 400, "an HTTP/1.1 request needs exactly one Host field");
    if (n_length + n_coding > 1)
        return refuse(p, 400, "more than one Content-Length or Transfer-Encoding");
    if (n_coding > 0 && r->is_http10)
        return refuse(p, 400, "HTTP/1.0 has no transfer codings");
    return 0;
}

static int finish_head(struct http_parser *p)
{
    struct http_message *m = p->message;
    struct http_request *r = &m->request;
    if (p->llhttp.http_major != 1 || p->llhttp.http_minor > 1)
        return refuse(p, 505, "only HTTP/1.0 and HTTP/1.1 are served here");
    if (p->llhttp.method == HTTP_CONNECT)
        return refuse(p, 501, "CONNECT is not supported");
    if (read_target(p) != 0)
        return HPE_USER;
    r->method = llhttp_method_name((llhttp_method_t)p->llhttp.method);
    r->is_http10 = p->llhttp.http_minor == 0;
    r->path = m->text.data + m->path_at;
    r->query = m->text.data + m->query_at;
    r->host = m->host_at != 0 ? m->text.data + m->host_at : "";
    r->body = "";
    for (size_t i = 0; i < m->n_fields; i++) {
        m->headers[i].name = m->text.data + m->name_at[i];
        m->headers[i].value = m->text.data + m->value_at[i];
    }
    r->headers = m->headers;
    r->n_headers = m->n_fields;
    if (check_fields(p) != 0)
        return HPE_USER;
    if ((p->llhttp.flags & F_CONTENT_LENGTH) != 0 &&
        p->llhttp.content_length > LIMIT_HTTP_BODY_BYTES)
        return refuse(p, 413, "the request body is too large");
    return 0;
}

/* Feeds llhttp; *ret_used is where it stopped. */
static int run_llhttp(struct http_parser *p, const char *data, size_t len, size_t *ret_used)
{
    llhttp_errno_t rc = llhttp_execute(&p->llhttp, data, len);
    *ret_used = len;
    if (p->problem != NULL)
        return HPE_USER;
    if (rc == HPE_PAUSED && p->is_complete) {
        *ret_used = (size_t)(llhttp_get_error_pos(&p->llhttp) - data);
        return 0;
    }
    if (rc != HPE_OK)
        return refuse(p, 400, "malformed HTTP request");
    return 0;
}

enum http_parse http_parser_feed(struct http_parser *p, const char *data, size_t len,
                                 size_t *ret_used)
{
    *ret_used = 0;
    if (p->problem != NULL)
        return HTTP_PARSE_FAILED;
    if (p->is_complete)
        return HTTP_PARSE_DONE;
    if (len == 0)
        return HTTP_PARSE_MORE;
    if (p->message == NULL && message_new(p) != 0)
        return HTTP_PARSE_FAILED;
    bool is_head_end = false;
    if (!p->in_body) {
        len = http_guard_scan(&p->guard, data, len, &is_head_end);
        if (p->guard.problem != NULL) {
            refuse(p, p->guard.status, p->guard.problem);
            return HTTP_PARSE_FAILED;
        }
    }
    if (run_llhttp(p, data, len, ret_used) != 0)
        return HTTP_PARSE_FAILED;
    if (!p->in_body) {
        if (p->head_done != is_head_end || *ret_used != len) {
            refuse(p, 400, "the end of the request head is ambiguous");
            return HTTP_PARSE_FAILED;
        }
        if (!is_head_end)
            return HTTP_PARSE_MORE;
        if (finish_head(p) != 0)
            return HTTP_PARSE_FAILED;
        p->in_body = true;
        if (!p->is_complete)
            return HTTP_PARSE_HEAD;
    }
    if (!p->is_complete)
        return HTTP_PARSE_MORE;
    p->message->request.body = buf_str(&p->message->body);
    p->message->request.body_len = p->message->body.len;
    return HTTP_PARSE_DONE;
}

const struct http_request *http_parser_request(const struct http_parser *p)
{
    return &p->message->request;
}

bool http_parser_is_busy(const struct http_parser *p)
{
    return p->message != NULL;
}

bool http_parser_expects_continue(const struct http_parser *p)
{
    return p->message->expects_continue;
}

void http_parser_take_body(struct http_parser *p, struct buf *ret_body)
{
    *ret_body = p->message->body;
    buf_init(&p->message->body, 0);
    p->message->request.body = "";
    p->message->request.body_len = 0;
}

const char *http_request_header(const struct http_request *r, const char *name)
{
    for (size_t i = 0; i < r->n_headers; i++)
        if (strcmp(r->headers[i].name, name) == 0)
            return r->headers[i].value;
    return NULL;
}
