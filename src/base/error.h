/*
 * Error codes and messages. A function that can fail returns 0 or a negative code, and fills a
 * `struct error` where a person will read the cause. libuv's codes pass through unchanged (they are
 * negated errno values, above -5000); ours start at -10000 so that the two never meet.
 *
 * A message says what was wrong, with the value, where, and what to do. Callers add context with
 * error_wrap(). Thread: an error belongs to its caller; nothing here is shared.
 */
#ifndef SHOAL_BASE_ERROR_H
#define SHOAL_BASE_ERROR_H

#include <stdarg.h>
#include <stddef.h>

/* name, code, HTTP status, exit code, text */
#define SHOAL_ERRORS(X)                                                                            \
    X(NOMEM, -10000, 503, 71, "out of memory")                                                     \
    X(INVALID, -10001, 400, 64, "invalid argument")                                                \
    X(FORMAT, -10002, 400, 65, "malformed data")                                                   \
    X(UNSUPPORTED, -10003, 400, 65, "not supported")                                               \
    X(NOTFOUND, -10004, 404, 66, "not found")                                                      \
    X(LIMIT, -10005, 413, 65, "limit exceeded")                                                    \
    X(BUSY, -10006, 429, 75, "busy")                                                               \
    X(UNAVAILABLE, -10007, 503, 69, "not available")                                               \
    X(TIMEOUT, -10008, 504, 75, "timed out")                                                       \
    X(PEERLOST, -10009, 503, 69, "peer lost")                                                      \
    X(PROTOCOL, -10010, 502, 76, "protocol violation")                                             \
    X(CANCELLED, -10011, 499, 130, "cancelled")                                                    \
    X(IO, -10012, 500, 74, "input/output error")                                                   \
    X(INTERNAL, -10013, 500, 70, "internal error")                                                 \
    X(AGAIN, -10014, 503, 75, "try again")

#define SHOAL_ERROR_ENUM(name, code, http, exit, text) E_##name = (code),
enum error_code { E_OK = 0, SHOAL_ERRORS(SHOAL_ERROR_ENUM) };
#undef SHOAL_ERROR_ENUM

enum { ERROR_MESSAGE_BYTES = 512 };

struct error {
    int code;                          /* 0 or a negative code */
    char message[ERROR_MESSAGE_BYTES]; /* NUL-terminated, cut with "..." when too long */
};

/* Sets code and message (printf style) and returns code. err may be NULL. */
int error_set(struct error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Puts "context: " before the message that is there and returns its code. err may be NULL. */
int error_wrap(struct error *err, int code, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

#ifdef __clang_analyzer__
/* Static analysis looks at one file at a time: it must be told that the code comes back. */
#define error_set(err, code, ...)  (error_set(err, code, __VA_ARGS__), (code))
#define error_wrap(err, code, ...) (error_wrap(err, code, __VA_ARGS__), (code))
#endif

/* Clears err. */
void error_clear(struct error *err);

/* Short text, symbolic name ("E_NOMEM"), HTTP status and process exit code of one of our codes.
 * Codes that are not ours (errno, libuv) give "system error", "E_SYSTEM", 500 and 70. */
const char *error_text(int code);
const char *error_name(int code);
int error_http_status(int code);
int error_exit_code(int code);

#endif
