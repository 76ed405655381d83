#include "store/response.h"

#include <string.h>
#include <strings.h>

enum { RETRY_AFTER_S_MAX = 3600 };

/* Digits at *text, which moves behind them. False: none, or too many. */
static bool take_number(const char **text, const char *end, uint64_t *ret)
{
    const char *p = *text;
    uint64_t v = 0;
    while (p < end && *p >= '0' && *p <= '9') {
        if (v > (UINT64_MAX >> 1) / 10)
            return false;
        v = v * 10 + (uint64_t)(*p++ - '0');
    }
    bool is_number = p > *text;
    *text = p;
    *ret = v;
    return is_number;
}

static void take_range(struct response *r, const char *p, const char *end)
{
    uint64_t first, last, total = PART_TOTAL_UNKNOWN;
    if (end - p < 6 || strncasecmp(p, "bytes ", 6) != 0)
        return;
    p += 6;
    if (!take_number(&p, end, &first) || p == end || *p++ != '-' || !take_number(&p, end, &last) ||
        p == end || *p++ != '/' || last < first)
        return;
    if (p < end && *p == '*')
        p++;
    else if (!take_number(&p, end, &total) || last >= total)
        return;
    if (p != end)
        return;
    r->has_range = true;
    r->range_begin = first;
    r->range_end = last + 1;
    r->range_total = total;
}

static void copy(char *ret, size_t size, const char *text, size_t n)
{
    if (n >= size)
        n = 0; /* too long to be compared: as if it were not there */
    memcpy(ret, text, n);
    ret[n] = '\0';
}

static bool is_named(const char *line, const char *colon, const char *name)
{
    return (size_t)(colon - line) == strlen(name) && strncasecmp(line, name, strlen(name)) == 0;
}

void response_take_line(struct response *r, const char *line, size_t len)
{
    const char *end = line + len, *colon = memchr(line, ':', len);
    if (len >= 5 && memcmp(line, "HTTP/", 5) == 0) {
        memset(r, 0, sizeof(*r));
        return;
    }
    if (colon == NULL)
        return;
    const char *value = colon + 1;
    while (value < end && (*value == ' ' || *value == '\t'))
        value++;
    while (end > value && (end[-1] == '\r' || end[-1] == '\n' || end[-1] == ' '))
        end--;
    size_t n = (size_t)(end - value);
    uint64_t number;
    /* Weak tags say that two files mean the same, not that they have the same bytes. */
    if (is_named(line, colon, "etag") && n > 0 && value[0] == '"') {
        copy(r->etag, sizeof(r->etag), value, n);
    } else if (is_named(line, colon, "last-modified")) {
        copy(r->modified, sizeof(r->modified), value, n);
    } else if (is_named(line, colon, "content-range")) {
        take_range(r, value, end);
    } else if (is_named(line, colon, "content-length") && take_number(&value, end, &number)) {
        r->has_length = value == end;
        r->length = number;
    } else if (is_named(line, colon, "retry-after") && take_number(&value, end, &number)) {
        r->retry_after_s = number < RETRY_AFTER_S_MAX ? (uint32_t)number : RETRY_AFTER_S_MAX;
    }
}

bool response_is_same(const struct response *r, uint64_t total, const char *url,
                      const struct part_source *found, bool has_sha256)
{
    bool is_same_url = strcmp(url, found->url) == 0;
    if (found->url[0] == '\0' || found->total != total)
        return false;
    if (is_same_url && r->etag[0] != '\0' && found->etag[0] != '\0')
        return strcmp(r->etag, found->etag) == 0;
    /* The hash at the end tells, whatever came from where. */
    if (has_sha256)
        return true;
    return is_same_url && r->etag[0] == found->etag[0] && r->modified[0] != '\0' &&
           strcmp(r->modified, found->modified) == 0;
}
