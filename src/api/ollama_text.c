/* Names, times and lines of Ollama's API. */
#include "api/ollama.h"

#include <string.h>
#include <time.h>

static const char latest[] = ":latest";
enum { LATEST_LEN = sizeof(latest) - 1 };

/* Length without ":latest". */
static size_t plain_length(const char *name)
{
    size_t len = strlen(name);
    return len > LATEST_LEN && strcmp(name + len - LATEST_LEN, latest) == 0 ? len - LATEST_LEN
                                                                            : len;
}

/* What follows the last '/' may have a tag; before it, ':' is of a host's port. */
static bool has_tag(const char *name)
{
    const char *slash = strrchr(name, '/');
    return strchr(slash != NULL ? slash : name, ':') != NULL;
}

int ollama_append_plain_name(struct buf *out, const char *name)
{
    return buf_append(out, name, plain_length(name));
}

const struct api_model *ollama_find_model(struct api *a, const char *name)
{
    const struct api_backend *b = a->backend;
    const struct api_model *m = b->model_find(b->self, name);
    size_t len = strlen(name), plain = plain_length(name);
    struct buf other;
    if (m != NULL || len > LIMIT_HTTP_URL_BYTES || (plain == len && has_tag(name)))
        return m;
    buf_init(&other, 2u * LIMIT_HTTP_URL_BYTES);
    buf_append(&other, name, plain);
    if (plain == len)
        buf_append_str(&other, latest);
    if (other.error == 0)
        m = b->model_find(b->self, buf_str(&other));
    buf_done(&other);
    return m;
}

void ollama_append_listed_name(struct buf *out, const struct api_model *m)
{
    json_append_string(out, m->id, strlen(m->id));
    if (has_tag(m->id) || out->error != 0)
        return;
    out->len--; /* the quotation mark */
    buf_append_str(out, ":latest\"");
}

static void put_digits(char *at, int n, unsigned long v)
{
    while (n-- > 0) {
        at[n] = (char)('0' + v % 10);
        v /= 10;
    }
}

void ollama_append_time(struct buf *out, uint64_t wall_ns)
{
    char text[] = "0000-00-00T00:00:00.000000000Z";
    time_t s = (time_t)(wall_ns / 1000000000u);
    struct tm t;
    gmtime_r(&s, &t);
    put_digits(text, 4, (unsigned long)t.tm_year + 1900); /* printf is slow, this is often */
    put_digits(text + 5, 2, (unsigned long)t.tm_mon + 1);
    put_digits(text + 8, 2, (unsigned long)t.tm_mday);
    put_digits(text + 11, 2, (unsigned long)t.tm_hour);
    put_digits(text + 14, 2, (unsigned long)t.tm_min);
    put_digits(text + 17, 2, (unsigned long)t.tm_sec);
    put_digits(text + 20, 9, (unsigned long)(wall_ns % 1000000000u));
    buf_append(out, text, sizeof(text) - 1);
}

/* Bytes at `at` that end a line for somebody: U+0085, U+2028, U+2029, and what JSON allows between
 * its tokens. *ret_escape is what stands for them. */
static size_t separator_length(const char *at, size_t left, const char **ret_escape)
{
    *ret_escape = " ";
    if (*at == '\n' || *at == '\r')
        return 1;
    *ret_escape = "\\u0085";
    if (left >= 2 && memcmp(at, "\xc2\x85", 2) == 0)
        return 2;
    *ret_escape = "\\u2028";
    if (left >= 3 && memcmp(at, "\xe2\x80\xa8", 3) == 0)
        return 3;
    *ret_escape = "\\u2029";
    return left >= 3 && memcmp(at, "\xe2\x80\xa9", 3) == 0 ? 3 : 0;
}

/* All of them can only be inside of strings or be white space, since the line is JSON. */
static void escape_separators(struct buf *out, size_t from)
{
    struct buf line;
    const char *escape;
    size_t done = from;
    buf_init(&line, out->max_len);
    for (size_t i = from; i < out->len;) {
        size_t n = separator_length(out->data + i, out->len - i, &escape);
        if (n > 0) {
            buf_append(&line, out->data + done, i - done);
            buf_append_str(&line, escape);
            done = i + n;
        }
        i += n > 0 ? n : 1;
    }
    buf_append(&line, out->data + done, out->len - done);
    out->len = from;
    if (line.error == 0)
        buf_append(out, line.data, line.len);
    else
        out->error = line.error;
    buf_done(&line);
}

void ollama_end_line(struct buf *out, size_t from)
{
    const char *escape;
    bool is_plain = out->error == 0;
    for (size_t i = from; is_plain && i < out->len; i++) {
        unsigned char c = (unsigned char)out->data[i];
        if (c < ' ' || c == 0xc2 || c == 0xe2)
            is_plain = separator_length(out->data + i, out->len - i, &escape) == 0;
    }
    if (!is_plain && out->error == 0)
        escape_separators(out, from);
    buf_append_char(out, '\n');
}
