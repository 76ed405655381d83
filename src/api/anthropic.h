/*
 * Anthropic's API: messages, counting of tokens, models, and the form of its errors. Source:
 * Anthropic API reference and the types of its Python client. Nobody outside src/api includes it.
 */
#ifndef SHOAL_API_ANTHROPIC_H
#define SHOAL_API_ANTHROPIC_H

#include "api/api_internal.h"
#include "api/chat_call.h"
#include "api/chat_request.h"

/* POST /v1/messages, POST /v1/messages/count_tokens. */
extern const struct chat_dialect anthropic_messages_dialect, anthropic_count_dialect;

/* ---- anthropic_request.c ---- */

int anthropic_messages_parse(struct chat_request *r, struct api_error *e);
/* The same body without max_tokens; an answer cannot be streamed. */
int anthropic_count_parse(struct chat_request *r, struct api_error *e);
/* Whether the answer shall have blocks of thinking without their text. */
bool anthropic_omits_thinking(const struct chat_request *r);

/* ---- anthropic_messages.c ---- */

/* "system" and "messages" of the body. Turns of one role that follow each other become one, since
 * templates want roles to alternate; results of tools become messages of the role "tool". */
int anthropic_read_messages(struct chat_request *r, struct api_error *e);

/* ---- anthropic_error.c ---- */

/* Whether the client that sent this speaks this API: by the path, or because it says so. */
bool anthropic_is_client(const struct http_request *q);
/* Where the API has a status of its own: 529 instead of 503. */
int anthropic_error_status(int status);
/* Appends {"type": "error", ...}. */
void anthropic_append_error(struct buf *out, const struct api_error *e, const char *request_id);

/* ---- anthropic_models.c: GET /v1/models and /v1/models/ID for clients of this API ---- */

void anthropic_models_list(struct api *a, const struct http_request *q, struct http_response *r);
void anthropic_models_get(struct api *a, const struct http_request *q, struct http_response *r);

#endif
