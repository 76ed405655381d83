/* What went wrong with a request, and how OpenAI writes it: {"error": {"message", "type", "param",
 * "code"}}. The other dialects have writers of their own, and whoever has only a path asks
 * api_error_append_for. Thread: the loop's for answers, any for
 * filling. */
#ifndef SHOAL_API_API_ERROR_H
#define SHOAL_API_API_ERROR_H

#include "api/http_server.h"
#include "base/buf.h"
#include "base/error.h"

struct api_error {
    int status;       /* HTTP; 0: no error */
    uint32_t retry_s; /* when trying again makes sense; 0: soon */
    const char *code; /* constant text or NULL */
    char param[96];   /* the field that is wrong, "" when none */
    char message[ERROR_MESSAGE_BYTES];
};

/* Fills e (printf style) and returns -1. code and param may be NULL. */
int api_error_set(struct api_error *e, int status, const char *code, const char *param,
                  const char *fmt, ...) __attribute__((format(printf, 5, 6)));
/* From one of our codes: status, a fitting OpenAI code, the message. */
void api_error_from(struct api_error *e, const struct error *err);
/* Appends the JSON object. */
void api_error_append(struct buf *out, const struct api_error *e);
/* Sends a body that says it, with Retry-After where trying again makes sense, and the status that
 * the client's API has for it. Ends the response. */
void api_error_send(struct http_response *r, const struct api_error *e, const struct buf *body);
/* Appends it as the API writes errors to which this path belongs. path NULL: not known. */
void api_error_append_for(struct buf *out, const struct api_error *e, const char *path);
/* The same by path and header fields. q NULL: not known. */
void api_error_append_to(struct buf *out, const struct api_error *e, const struct http_request *q,
                         const char *request_id);
/* Both: answers with it in the form that fits the request. Ends the response. */
void api_error_respond(struct http_response *r, const struct api_error *e);

#endif
