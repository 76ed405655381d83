#include "base/error.h"

#undef error_set /* see error.h: only under static analysis */
#undef error_wrap

#include <stdio.h>
#include <string.h>

static void format_bounded(char *out, size_t size, const char *fmt, va_list args)
{
    int n = vsnprintf(out, size, fmt, args);
    if (n < 0)
        out[0] = '\0';
    else if ((size_t)n >= size && size > 4)
        memcpy(out + size - 4, "...", 4);
}

int error_set(struct error *err, int code, const char *fmt, ...)
{
    if (err == NULL)
        return code;
    va_list args;
    va_start(args, fmt);
    err->code = code;
    format_bounded(err->message, sizeof(err->message), fmt, args);
    va_end(args);
    return code;
}

int error_wrap(struct error *err, int code, const char *fmt, ...)
{
    if (err == NULL)
        return code;
    char context[ERROR_MESSAGE_BYTES];
    va_list args;
    va_start(args, fmt);
    format_bounded(context, sizeof(context), fmt, args);
    va_end(args);

    char cause[ERROR_MESSAGE_BYTES];
    snprintf(cause, sizeof(cause), "%s", err->message[0] != '\0' ? err->message : error_text(code));
    return error_set(err, code, "%s: %s", context, cause);
}

void error_clear(struct error *err)
{
    if (err != NULL) {
        err->code = 0;
        err->message[0] = '\0';
    }
}

static const struct error_row {
    int code;
    int http_status;
    int exit_code;
    const char *name;
    const char *text;
} error_table[] = {
#define SHOAL_ERROR_ROW(name, code, http, exit, text) {code, http, exit, "E_" #name, text},
    SHOAL_ERRORS(SHOAL_ERROR_ROW)
#undef SHOAL_ERROR_ROW
};

static const struct error_row *find_row(int code)
{
    static const struct error_row ok = {0, 200, 0, "E_OK", "no error"};
    static const struct error_row system = {-1, 500, 70, "E_SYSTEM", "system error"};
    if (code == 0)
        return &ok;
    for (size_t i = 0; i < sizeof(error_table) / sizeof(error_table[0]); i++)
        if (error_table[i].code == code)
            return &error_table[i];
    return &system;
}

const char *error_text(int code)
{
    return find_row(code)->text;
}

const char *error_name(int code)
{
    return find_row(code)->name;
}

int error_http_status(int code)
{
    return find_row(code)->http_status;
}

int error_exit_code(int code)
{
    return find_row(code)->exit_code;
}
