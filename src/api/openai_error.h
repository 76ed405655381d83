/* Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}. Thread: the loop's for
 * answers, any for filling. */
#ifndef SHOAL_API_OPENAI_ERROR_H
#define SHOAL_API_OPENAI_ERROR_H

#include "api/http_server.h"
#include "base/buf.h"
#include "base/error.h"

struct openai_error {
    int status;       /* HTTP; 0: no error */
    const char *code; /* constant text or NULL */
    char param[96];   /* the field that is wrong, "" when none */
    char message[ERROR_MESSAGE_BYTES];
};

/* Fills e (printf style) and returns -1. code and param may be NULL. */
int openai_error_set(struct openai_error *e, int status, const char *code, const char *param,
                     const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* From one of our codes: status, a fitting OpenAI code, the message. */
void openai_error_from(struct openai_error *e, const struct error *err);
/* Appends the JSON object. */
void openai_error_append(struct buf *out, const struct openai_error *e);
/* Answers with it, with Retry-After for 429 and 503. Ends the response. */
void openai_error_respond(struct http_response *r, const struct openai_error *e);

#endif
