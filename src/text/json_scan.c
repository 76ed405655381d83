#include "text/json_scan.h"

#include <string.h>

enum scan_state {
    SCAN_VALUE,
    SCAN_FIRST_ITEM, /* a value or ] */
    SCAN_FIRST_KEY,  /* a key or } */
    SCAN_KEY,
    SCAN_COLON,
    SCAN_NEXT, /* a comma or the end of what encloses this */
    SCAN_STRING,
    SCAN_ESCAPE,
    SCAN_HEX,
    SCAN_WORD,
    SCAN_MINUS,
    SCAN_ZERO,
    SCAN_INTEGER,
    SCAN_POINT,
    SCAN_FRACTION,
    SCAN_E,
    SCAN_E_SIGN,
    SCAN_EXPONENT,
};

void json_scan_init(struct json_scan *s)
{
    *s = (struct json_scan){.state = SCAN_VALUE};
}

bool json_scan_in_string(const struct json_scan *s)
{
    return s->state == SCAN_STRING;
}

static bool is_space(char c)
{
    return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static enum json_scan_result end_value(struct json_scan *s)
{
    s->state = SCAN_NEXT;
    return s->depth == 0 ? JSON_SCAN_DONE : JSON_SCAN_MORE;
}

static enum json_scan_result open_container(struct json_scan *s, bool is_object)
{
    if (s->depth == JSON_SCAN_DEPTH_MAX)
        return JSON_SCAN_BAD;
    uint8_t bit = (uint8_t)(1u << s->depth % 8);
    uint8_t *byte = &s->is_object[s->depth / 8];
    *byte = is_object ? (uint8_t)(*byte | bit) : (uint8_t)(*byte & ~bit);
    s->depth++;
    s->state = is_object ? SCAN_FIRST_KEY : SCAN_FIRST_ITEM;
    return JSON_SCAN_MORE;
}

static bool inside_object(const struct json_scan *s)
{
    return (s->is_object[(s->depth - 1) / 8] & (1u << (s->depth - 1) % 8)) != 0;
}

static enum json_scan_result close_container(struct json_scan *s, char c)
{
    if (s->depth == 0 || inside_object(s) != (c == '}'))
        return JSON_SCAN_BAD;
    s->depth--;
    return end_value(s);
}

static enum json_scan_result open_string(struct json_scan *s, bool is_key)
{
    s->is_key = is_key;
    s->wants_low = false;
    s->state = SCAN_STRING;
    return JSON_SCAN_MORE;
}

static enum json_scan_result scan_value(struct json_scan *s, char c)
{
    if (c == '{' || c == '[')
        return open_container(s, c == '{');
    if (c == '"')
        return open_string(s, false);
    if (c == '-' || is_digit(c)) {
        s->state = c == '-' ? SCAN_MINUS : c == '0' ? SCAN_ZERO : SCAN_INTEGER;
        return JSON_SCAN_MORE;
    }
    s->rest = c == 't' ? "rue" : c == 'f' ? "alse" : c == 'n' ? "ull" : NULL;
    s->state = SCAN_WORD;
    return s->rest != NULL ? JSON_SCAN_MORE : JSON_SCAN_BAD;
}

static enum json_scan_result scan_string(struct json_scan *s, char c)
{
    if (s->wants_low && c != '\\')
        return JSON_SCAN_BAD;
    if (c == '\\') {
        s->state = SCAN_ESCAPE;
        return JSON_SCAN_MORE;
    }
    if (c != '"')
        return JSON_SCAN_MORE;
    if (!s->is_key)
        return end_value(s);
    s->state = SCAN_COLON;
    return JSON_SCAN_MORE;
}

static enum json_scan_result scan_escape(struct json_scan *s, char c)
{
    if (c == 'u') {
        s->unit = 0;
        s->n_hex = 4;
        s->state = SCAN_HEX;
        return JSON_SCAN_MORE;
    }
    s->state = SCAN_STRING;
    return !s->wants_low && c != '\0' && strchr("\"\\/bfnrt", c) != NULL ? JSON_SCAN_MORE
                                                                         : JSON_SCAN_BAD;
}

/* Halves of surrogate pairs alone are refused: no UTF-8 text could carry them. */
static enum json_scan_result scan_hex(struct json_scan *s, char c)
{
    int digit = is_digit(c)            ? c - '0'
                : c >= 'a' && c <= 'f' ? c - 'a' + 10
                : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                       : -1;
    if (digit < 0)
        return JSON_SCAN_BAD;
    s->unit = (uint16_t)(s->unit << 4 | digit);
    if (--s->n_hex > 0)
        return JSON_SCAN_MORE;
    bool is_low = s->unit >= 0xDC00 && s->unit <= 0xDFFF;
    if (is_low != s->wants_low)
        return JSON_SCAN_BAD;
    s->wants_low = s->unit >= 0xD800 && s->unit <= 0xDBFF;
    s->state = SCAN_STRING;
    return JSON_SCAN_MORE;
}

static enum json_scan_result scan_next(struct json_scan *s, char c)
{
    if (c == '}' || c == ']')
        return close_container(s, c);
    if (c != ',' || s->depth == 0)
        return JSON_SCAN_BAD;
    s->state = inside_object(s) ? SCAN_KEY : SCAN_VALUE;
    return JSON_SCAN_MORE;
}

/* A number ends where something else begins. */
static enum json_scan_result end_number(struct json_scan *s, char c)
{
    s->state = SCAN_NEXT;
    if (s->depth == 0)
        return JSON_SCAN_DONE_BEFORE;
    return is_space(c) ? JSON_SCAN_MORE : scan_next(s, c);
}

static enum json_scan_result scan_number(struct json_scan *s, char c)
{
    bool may_end = true;
    switch (s->state) {
    case SCAN_MINUS:
        s->state = c == '0' ? SCAN_ZERO : SCAN_INTEGER;
        return is_digit(c) ? JSON_SCAN_MORE : JSON_SCAN_BAD;
    case SCAN_INTEGER:
        if (is_digit(c))
            return JSON_SCAN_MORE;
        break;
    case SCAN_POINT:
        s->state = SCAN_FRACTION;
        return is_digit(c) ? JSON_SCAN_MORE : JSON_SCAN_BAD;
    case SCAN_FRACTION:
        if (is_digit(c))
            return JSON_SCAN_MORE;
        break;
    case SCAN_E:
    case SCAN_E_SIGN:
        may_end = s->state == SCAN_E && (c == '+' || c == '-');
        s->state = may_end ? SCAN_E_SIGN : SCAN_EXPONENT;
        return may_end || is_digit(c) ? JSON_SCAN_MORE : JSON_SCAN_BAD;
    case SCAN_EXPONENT:
        return is_digit(c) ? JSON_SCAN_MORE : end_number(s, c);
    default:
        break;
    }
    if (c == '.' && s->state != SCAN_FRACTION) {
        s->state = SCAN_POINT;
        return JSON_SCAN_MORE;
    }
    if (c == 'e' || c == 'E') {
        s->state = SCAN_E;
        return JSON_SCAN_MORE;
    }
    return end_number(s, c);
}

static enum json_scan_result scan_word(struct json_scan *s, char c)
{
    if (c != *s->rest)
        return JSON_SCAN_BAD;
    s->rest++;
    return *s->rest == '\0' ? end_value(s) : JSON_SCAN_MORE;
}

enum json_scan_result json_scan_byte(struct json_scan *s, char c)
{
    if (s->state <= SCAN_NEXT && is_space(c))
        return JSON_SCAN_MORE;
    switch ((enum scan_state)s->state) {
    case SCAN_VALUE:
        return scan_value(s, c);
    case SCAN_FIRST_ITEM:
        return c == ']' ? close_container(s, c) : scan_value(s, c);
    case SCAN_FIRST_KEY:
        return c == '}' ? close_container(s, c) : c == '"' ? open_string(s, true) : JSON_SCAN_BAD;
    case SCAN_KEY:
        return c == '"' ? open_string(s, true) : JSON_SCAN_BAD;
    case SCAN_COLON:
        s->state = SCAN_VALUE;
        return c == ':' ? JSON_SCAN_MORE : JSON_SCAN_BAD;
    case SCAN_NEXT:
        return scan_next(s, c);
    case SCAN_STRING:
        return scan_string(s, c);
    case SCAN_ESCAPE:
        return scan_escape(s, c);
    case SCAN_HEX:
        return scan_hex(s, c);
    case SCAN_WORD:
        return scan_word(s, c);
    default:
        return scan_number(s, c);
    }
}

bool json_scan_is_value(const char *text, size_t len)
{
    struct json_scan s;
    enum json_scan_result r = JSON_SCAN_MORE;
    size_t i = 0;
    json_scan_init(&s);
    for (; i < len && r == JSON_SCAN_MORE; i++) {
        if (json_scan_in_string(&s) && (unsigned char)text[i] < 0x20)
            return false;
        r = json_scan_byte(&s, text[i]);
    }
    if (r == JSON_SCAN_DONE_BEFORE)
        i--;
    else if (r == JSON_SCAN_MORE) /* perhaps a number at the text's end */
        r = json_scan_byte(&s, ' ');
    for (; i < len; i++)
        if (!is_space(text[i]))
            return false;
    return r == JSON_SCAN_DONE || r == JSON_SCAN_DONE_BEFORE;
}
