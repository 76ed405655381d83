#include "api/http_guard.h"

#include "base/limits.h"

#include <string.h>

enum { START, START_CR, REQUEST_LINE, LINE_CR, LINE_START, NAME, VALUE, END_CR };

void http_guard_init(struct http_guard *g)
{
    *g = (struct http_guard){.state = START};
}

static void refuse(struct http_guard *g, int status, const char *problem)
{
    g->status = status;
    g->problem = problem;
}

/* RFC 9110, section 5.6.2: the characters of a token. */
static bool is_token_char(unsigned char c)
{
    if ((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'))
        return true;
    return c != '\0' && strchr("!#$%&'*+-.^_`|~", c) != NULL;
}

static void step_request_line(struct http_guard *g, unsigned char c)
{
    if (c == '\r') {
        if (g->n_spaces != 2 || g->n_target_bytes == 0)
            refuse(g, 400, "the request line is not 'METHOD target HTTP/1.1'");
        g->state = LINE_CR;
    } else if (c == ' ') {
        if (++g->n_spaces > 2)
            refuse(g, 400, "the request line has more than two spaces");
    } else if (c < 0x21 || c >= 0x7f) {
        refuse(g, 400, "the request line has a byte that must be percent-encoded");
    } else if (g->n_spaces == 1 && ++g->n_target_bytes > LIMIT_HTTP_URL_BYTES) {
        refuse(g, 414, "the request target is too long");
    }
}

static void step_line_start(struct http_guard *g, unsigned char c)
{
    if (c == '\r') {
        g->state = END_CR;
    } else if (c == ' ' || c == '\t') {
        refuse(g, 400, "folded header lines are obsolete and refused");
    } else if (!is_token_char(c)) {
        refuse(g, 400, "a header line does not begin with a field name");
    } else if (++g->n_fields > LIMIT_HTTP_HEADERS) {
        refuse(g, 431, "too many header fields");
    } else {
        g->state = NAME;
    }
}

static void step(struct http_guard *g, unsigned char c)
{
    switch (g->state) {
    case START: /* empty lines before a request are allowed */
        if (c == '\r') {
            g->state = START_CR;
            break;
        }
        g->state = REQUEST_LINE;
        step_request_line(g, c);
        break;
    case START_CR:
    case LINE_CR:
        if (c != '\n')
            refuse(g, 400, "a carriage return without a line feed");
        g->state = g->state == START_CR ? START : LINE_START;
        break;
    case REQUEST_LINE:
        step_request_line(g, c);
        break;
    case LINE_START:
        step_line_start(g, c);
        break;
    case NAME:
        if (c == ':')
            g->state = VALUE;
        else if (!is_token_char(c))
            refuse(g, 400, "a header field name has a space or a byte that is not allowed");
        break;
    case VALUE:
        if (c == '\r')
            g->state = LINE_CR;
        else if ((c < 0x20 && c != '\t') || c == 0x7f)
            refuse(g, 400, "a header field value has a control byte");
        break;
    default: /* END_CR; a line feed there ends the head and is seen by the caller */
        refuse(g, 400, "a carriage return without a line feed");
        break;
    }
}

size_t http_guard_scan(struct http_guard *g, const char *data, size_t len, bool *ret_done)
{
    *ret_done = false;
    for (size_t i = 0; i < len; i++) {
        unsigned char c = (unsigned char)data[i];
        if (++g->n_bytes > LIMIT_HTTP_HEADER_BYTES) {
            refuse(g, 431, "the request head is too large");
        } else if (g->state == END_CR && c == '\n') {
            *ret_done = true;
            return i + 1;
        } else {
            step(g, c);
        }
        if (g->problem != NULL)
            return i;
    }
    return len;
}
