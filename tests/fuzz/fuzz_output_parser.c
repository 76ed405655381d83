/* Input: a byte that chooses the format, a byte of flags, a byte that chooses how the text is cut,
 * then the text a model wrote. Pieces must come in order, whole calls must have one JSON object as
 * arguments, nothing may be lost where there are no calls to find, and the cut must not matter. */
#include "base/utf8.h"
#include "text/output_parser.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { TEXT_BYTES_MAX = 1 << 16 };

struct record {
    struct buf all, arguments; /* everything, with marks where the kind changes */
    int last;
    bool is_open, is_utf8;
    unsigned n_calls;
};

static void check(bool holds)
{
    if (!holds)
        abort();
}

static bool is_utf8(const char *text, size_t len)
{
    while (len > 0) {
        size_t n = utf8_sequence_length(text, len);
        if (n == 0)
            return false;
        text += n;
        len -= n;
    }
    return true;
}

static void check_arguments(const struct record *r)
{
    json_error_t e;
    json_t *value = json_loadb(buf_str(&r->arguments), r->arguments.len,
                               JSON_ALLOW_NUL | JSON_DECODE_INT_AS_REAL, &e);
    /* NUL in a key and numbers beyond double are JSON that jansson does not take. */
    check(json_is_object(value) || !r->is_utf8 ||
          json_error_code(&e) == json_error_numeric_overflow ||
          json_error_code(&e) == json_error_null_byte_in_key);
    json_decref(value);
}

static int note(void *arg, const struct output_piece *piece)
{
    struct record *r = arg;
    bool is_call = piece->kind >= OUTPUT_TOOL_BEGIN;
    check(r->is_open == (piece->kind == OUTPUT_TOOL_ARGUMENTS || piece->kind == OUTPUT_TOOL_END));
    check(!is_call || piece->index == r->n_calls);
    check(piece->len > 0 || piece->kind == OUTPUT_TOOL_END);
    if ((int)piece->kind != r->last || is_call)
        buf_append_char(&r->all,
                        (char)(piece->kind == OUTPUT_TOOL_ARGUMENTS ? 0 : piece->kind + 1));
    r->last = (int)piece->kind;
    if (piece->kind == OUTPUT_TOOL_ARGUMENTS) {
        buf_append(&r->arguments, piece->text, piece->len);
    } else if (piece->kind == OUTPUT_TOOL_END) {
        if (piece->complete)
            check_arguments(r);
        buf_append(&r->all, r->arguments.data, r->arguments.len);
        buf_append_char(&r->all, piece->complete ? '.' : '!');
        buf_reset(&r->arguments);
        r->n_calls++;
        r->is_open = false;
    } else {
        buf_append(&r->all, piece->text, piece->len);
        r->is_open = piece->kind == OUTPUT_TOOL_BEGIN;
    }
    return 0;
}

static void parse(const struct output_format *f, const struct output_parser_options *o,
                  const char *text, size_t len, size_t step, struct record *r)
{
    struct output_parser *p = NULL;
    r->last = -1;
    r->is_utf8 = is_utf8(text, len);
    buf_init(&r->all, 64u * TEXT_BYTES_MAX);
    buf_init(&r->arguments, 64u * TEXT_BYTES_MAX);
    if (output_parser_new(f, o, &p, NULL) != 0)
        return;
    for (size_t at = 0; at < len; at += step)
        check(output_parser_push(p, text + at, step < len - at ? step : len - at, note, r) == 0);
    check(output_parser_finish(p, note, r) == 0);
    check(!r->is_open && r->n_calls == output_parser_n_calls(p));
    output_parser_free(p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    size_t n_formats = 0;
    struct record whole = {0}, cut = {0};
    if (size < 3 || size > TEXT_BYTES_MAX)
        return 0;
    while (output_format_at(n_formats) != NULL)
        n_formats++;
    const struct output_format *f = output_format_at(data[0] % n_formats);
    struct output_parser_options o = {.has_tools = (data[1] & 1) != 0,
                                      .begins_in_reasoning = (data[1] & 2) != 0,
                                      .stream_arguments = (data[1] & 4) != 0};
    const char *text = (const char *)data + 3;
    parse(f, &o, text, size - 3, size, &whole);
    /* Argument pieces leave a mark each: marks of zero are not compared. */
    parse(f, &o, text, size - 3, 1 + data[2] % 32u, &cut);
    size_t n[2] = {0};
    struct record *records[2] = {&whole, &cut};
    for (int k = 0; k < 2; k++)
        for (size_t i = 0; i < records[k]->all.len; i++)
            if (records[k]->all.data[i] != 0)
                records[k]->all.data[n[k]++] = records[k]->all.data[i];
    check(n[0] == n[1] && (n[0] == 0 || memcmp(whole.all.data, cut.all.data, n[0]) == 0));
    buf_done(&whole.all);
    buf_done(&whole.arguments);
    buf_done(&cut.all);
    buf_done(&cut.arguments);
    return 0;
}
