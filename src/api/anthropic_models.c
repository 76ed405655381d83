/* GET /v1/models and GET /v1/models/ID for clients that send an anthropic-version: the path is
 * OpenAI's, too. Source: Anthropic API reference ("Models"); RFC 3339 for dates. */
#include "api/anthropic.h"
#include "base/json.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PAGE_DEFAULT = 20, PAGE_MAX = 1000 };

struct page {
    uint32_t first, n; /* of the backend's list */
    bool has_more;
};

static void append_model(struct buf *out, const struct api_model *m)
{
    time_t created = (time_t)m->created_s;
    struct tm t;
    gmtime_r(&created, &t);
    buf_append_str(out, "{\"type\":\"model\",\"id\":");
    json_append_string(out, m->id, strlen(m->id));
    buf_append_str(out, ",\"display_name\":");
    json_append_string(out, m->id, strlen(m->id));
    buf_printf(out,
               ",\"created_at\":\"%04d-%02d-%02dT%02d:%02d:%02dZ\",\"lifecycle\":\"active\","
               "\"max_input_tokens\":%u,\"max_tokens\":%u}",
               t.tm_year + 1900, t.tm_mon + 1, t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec, m->n_ctx,
               m->n_ctx);
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

static int hex_value(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c = (char)(c | 0x20);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The decoded value of the query's first field of this name into ret[size], false when there is
 * none. Longer ones are cut: no id and no number is. */
static bool query_get(const char *query, const char *name, char *ret, size_t size)
{
    size_t name_len = strlen(name), n = 0;
    const char *at = query;
    while (strncmp(at, name, name_len) != 0 || at[name_len] != '=') {
        at += strcspn(at, "&");
        if (*at++ == '\0')
            return false;
    }
    for (at += name_len + 1; *at != '\0' && *at != '&' && n + 1 < size; at++) {
        int high = *at == '%' ? hex_value(at[1]) : -1;
        int low = high >= 0 ? hex_value(at[2]) : -1;
        ret[n++] = low >= 0 ? (char)(high * 16 + low) : *at == '+' ? ' ' : *at;
        at += low >= 0 ? 2 : 0;
    }
    ret[n] = '\0';
    return true;
}

static int find_cursor(const struct api *a, const char *name, const char *id, uint32_t *ret,
                       struct api_error *e)
{
    const struct api_backend *b = a->backend;
    uint32_t n = b->n_models(b->self);
    for (*ret = 0; *ret < n; ++*ret)
        if (strcmp(b->model_at(b->self, *ret)->id, id) == 0)
            return 0;
    return api_error_set(e, 400, "invalid_value", name, "%s: there is no model '%.256s'.", name,
                         id);
}

static int read_page(const struct api *a, const char *query, struct page *ret, struct api_error *e)
{
    char text[LIMIT_HTTP_URL_BYTES], *end;
    uint32_t n_all = a->backend->n_models(a->backend->self), at;
    unsigned long limit = PAGE_DEFAULT;
    if (query_get(query, "limit", text, sizeof(text))) {
        limit = strtoul(text, &end, 10);
        if (text[0] < '0' || text[0] > '9' || *end != '\0' || limit < 1 || limit > PAGE_MAX)
            return api_error_set(e, 400, "invalid_value", "limit",
                                 "limit: '%.32s' is not a number from 1 to %d.", text, PAGE_MAX);
    }
    if (query_get(query, "before_id", text, sizeof(text))) {
        if (find_cursor(a, "before_id", text, &at, e) != 0)
            return -1;
        ret->n = at < limit ? at : (uint32_t)limit;
        ret->first = at - ret->n;
        ret->has_more = ret->first > 0;
        return 0;
    }
    ret->first = 0;
    if (query_get(query, "after_id", text, sizeof(text))) {
        if (find_cursor(a, "after_id", text, &at, e) != 0)
            return -1;
        ret->first = at + 1;
    }
    ret->n = n_all - ret->first < limit ? n_all - ret->first : (uint32_t)limit;
    ret->has_more = ret->first + ret->n < n_all;
    return 0;
}

static void append_id(struct buf *out, const struct api *a, uint32_t index, bool is_there)
{
    const struct api_backend *b = a->backend;
    if (!is_there) {
        buf_append_str(out, "null");
        return;
    }
    const char *id = b->model_at(b->self, index)->id;
    json_append_string(out, id, strlen(id));
}

void anthropic_models_list(struct api *a, const struct http_request *q, struct http_response *r)
{
    const struct api_backend *b = a->backend;
    struct api_error e;
    struct page page = {0};
    struct buf body;
    if (read_page(a, q->query, &page, &e) != 0) {
        api_error_respond(r, &e);
        return;
    }
    buf_init(&body, 16u << 20);
    buf_append_str(&body, "{\"data\":[");
    for (uint32_t i = 0; i < page.n; i++) {
        if (i > 0)
            buf_append_char(&body, ',');
        append_model(&body, b->model_at(b->self, page.first + i));
    }
    buf_printf(&body, "],\"has_more\":%s,\"first_id\":", page.has_more ? "true" : "false");
    append_id(&body, a, page.first, page.n > 0);
    buf_append_str(&body, ",\"last_id\":");
    append_id(&body, a, page.first + page.n - 1, page.n > 0);
    buf_append_char(&body, '}');
    respond(r, &body);
}

void anthropic_models_get(struct api *a, const struct http_request *q, struct http_response *r)
{
    const char *id = q->path + strlen("/v1/models/");
    const struct api_model *m = a->backend->model_find(a->backend->self, id);
    struct api_error e;
    struct buf body;
    if (m == NULL) {
        api_error_set(&e, 404, "model_not_found", "model", "model: %.256s", id);
        api_error_respond(r, &e);
        return;
    }
    buf_init(&body, 1u << 20);
    append_model(&body, m);
    respond(r, &body);
}
