#include "cli/http_client.h"

#include <curl/curl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_BYTES_MAX = 1 << 20, CONNECT_TIMEOUT_MS = 5000 };

struct transfer {
    CURL *curl;
    bool (*on_line)(void *arg, const char *line, size_t len);
    void *arg;
    struct buf line; /* that has not ended yet */
    struct buf *answer;
    bool is_broken_off;
};

static bool give_lines(struct transfer *t)
{
    char *end;
    size_t offset = 0;
    while ((end = memchr(t->line.data + offset, '\n', t->line.len - offset)) != NULL) {
        const char *line = t->line.data + offset;
        size_t len = (size_t)(end - line);
        offset += len + 1;
        if (len > 0 && line[len - 1] == '\r')
            len--;
        if (!t->on_line(t->arg, line, len))
            return false;
    }
    buf_consume(&t->line, offset);
    return true;
}

static size_t on_data(char *data, size_t size, size_t n, void *arg)
{
    struct transfer *t = arg;
    long status = 0;
    size_t len = size * n;
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, &status);
    if (t->on_line == NULL || status != 200)
        return buf_append(t->answer, data, len) == 0 ? len : 0;
    if (buf_append(&t->line, data, len) != 0)
        return 0;
    if (len > 0 && !give_lines(t)) {
        t->is_broken_off = true;
        return 0;
    }
    return len;
}

/* A node with keys answers only those who have one. */
static int add_key(struct curl_slist **headers, struct error *err)
{
    char line[512];
    const char *key = getenv("SHOAL_API_KEY");
    if (key == NULL || key[0] == '\0')
        return 0;
    if (strpbrk(key, "\r\n") != NULL || strlen(key) > 256)
        return error_set(err, E_INVALID,
                         "SHOAL_API_KEY is no key: it has over 256 characters, or a line's end");
    snprintf(line, sizeof(line), "Authorization: Bearer %s", key);
    *headers = curl_slist_append(*headers, line);
    return *headers != NULL ? 0 : error_set(err, E_NOMEM, "out of memory for a request");
}

static int perform(struct transfer *t, const char *url, const char *body, long timeout_ms,
                   long *ret_status, struct error *err)
{
    char cause[CURL_ERROR_SIZE] = "";
    struct curl_slist *headers = NULL;
    t->curl = curl_easy_init();
    if (t->curl == NULL)
        return error_set(err, E_NOMEM, "out of memory for a request to %s", url);
    curl_easy_setopt(t->curl, CURLOPT_URL, url);
    curl_easy_setopt(t->curl, CURLOPT_PROTOCOLS_STR, "http,https");
    curl_easy_setopt(t->curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(t->curl, CURLOPT_PROXY, ""); /* nodes are near; proxies are for the far */
    curl_easy_setopt(t->curl, CURLOPT_ERRORBUFFER, cause);
    curl_easy_setopt(t->curl, CURLOPT_CONNECTTIMEOUT_MS, (long)CONNECT_TIMEOUT_MS);
    curl_easy_setopt(t->curl, CURLOPT_TIMEOUT_MS, timeout_ms);
    curl_easy_setopt(t->curl, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(t->curl, CURLOPT_WRITEDATA, t);
    int rc_key = add_key(&headers, err);
    if (rc_key != 0) {
        curl_easy_cleanup(t->curl);
        return rc_key;
    }
    if (body != NULL) {
        headers = curl_slist_append(headers, "Content-Type: application/json");
        curl_easy_setopt(t->curl, CURLOPT_POSTFIELDS, body);
        curl_easy_setopt(t->curl, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(body));
    }
    curl_easy_setopt(t->curl, CURLOPT_HTTPHEADER, headers);
    CURLcode rc = curl_easy_perform(t->curl);
    curl_easy_getinfo(t->curl, CURLINFO_RESPONSE_CODE, ret_status);
    curl_slist_free_all(headers);
    curl_easy_cleanup(t->curl);
    if (rc == CURLE_OK || t->is_broken_off)
        return 0;
    if (t->answer->error != 0 || t->line.error != 0)
        return error_set(err, E_LIMIT, "the answer of %s is too long", url);
    return error_set(err, E_UNAVAILABLE, "%s: %s", url,
                     cause[0] != '\0' ? cause : curl_easy_strerror(rc));
}

int http_client_get(const char *url, const char *body, long timeout_ms, struct buf *ret_answer,
                    long *ret_status, struct error *err)
{
    struct transfer t = {.answer = ret_answer};
    return perform(&t, url, body, timeout_ms, ret_status, err);
}

int http_client_stream(const char *url, const char *body,
                       bool (*on_line)(void *arg, const char *line, size_t len), void *arg,
                       struct buf *ret_answer, long *ret_status, struct error *err)
{
    struct transfer t = {.on_line = on_line, .arg = arg, .answer = ret_answer};
    buf_init(&t.line, LINE_BYTES_MAX);
    int rc = perform(&t, url, body, 0, ret_status, err);
    buf_done(&t.line);
    return rc;
}

int http_client_get_json(const char *api, const char *path, json_t **ret_value, struct error *err)
{
    enum { ANSWER_BYTES_MAX = 16 << 20, TIMEOUT_MS = 10000 };
    char url[512];
    struct buf answer;
    long status = 0;
    int n = snprintf(url, sizeof(url), "%s%s", api, path);
    if (n < 0 || (size_t)n >= sizeof(url))
        return error_set(err, E_INVALID, "the address %s is too long", api);
    buf_init(&answer, ANSWER_BYTES_MAX);
    int rc = http_client_get(url, NULL, TIMEOUT_MS, &answer, &status, err);
    if (rc == 0 && status != 200)
        rc = error_set(err, E_UNAVAILABLE, "%s answered with status %ld", url, status);
    if (rc == 0)
        rc = json_parse(buf_str(&answer), answer.len, ret_value, err);
    buf_done(&answer);
    return rc;
}

static int code_of_status(long status)
{
    switch (status) {
    case 404:
        return E_NOTFOUND;
    case 429:
        return E_BUSY;
    case 504:
        return E_TIMEOUT;
    default:
        return status >= 400 && status < 500 ? E_INVALID : E_UNAVAILABLE;
    }
}

int http_client_refuse(const char *url, long status, const struct buf *answer, struct error *err)
{
    json_t *value = NULL;
    struct error ignored = {0};
    if (json_parse(buf_str(answer), answer->len, &value, &ignored) != 0)
        value = NULL;
    const char *message =
        json_string_value(json_object_get(json_object_get(value, "error"), "message"));
    int rc = message != NULL ? error_set(err, code_of_status(status), "%s", message)
                             : error_set(err, code_of_status(status), "%s answered with status %ld",
                                         url, status);
    json_decref(value);
    return rc;
}
