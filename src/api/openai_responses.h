/* POST /v1/responses: what its parser and its writer share. Nobody outside src/api includes it. */
#ifndef SHOAL_API_OPENAI_RESPONSES_H
#define SHOAL_API_OPENAI_RESPONSES_H

#include "api/openai.h"

/* openai_responses_request.c */
int openai_responses_parse(struct chat_request *r, struct api_error *e);
/* Whether a tool of the request is one that the model gets. */
bool openai_responses_is_function(const json_t *tool);

enum response_status {
    RESPONSE_IN_PROGRESS,
    RESPONSE_COMPLETED,
    RESPONSE_INCOMPLETE,
    RESPONSE_FAILED,
};

/* "in_progress" ... */
const char *openai_response_status_text(enum response_status status);
/* openai_response_object.c: the object "response". output: its items, separated by commas; failure
 * NULL: none. */
void openai_response_append(struct buf *b, const struct chat_call *c, enum response_status status,
                            const struct buf *output, const struct api_error *failure);

#endif
