/*
 * From messages to tokens: the chat template's context, its rendering, and tokenizing so that what
 * users wrote can never become a control token (<|im_end|> in a message stays those ten
 * characters).
 *
 * How: where a string of the request contains the text of a control token, a private character that
 * occurs nowhere in the request is put behind its first character before rendering. In the rendered
 * text these marks show which matches are the user's; they are taken out again, and the text is cut
 * at the template's own control tokens only. The tokenizer treats the pieces between control tokens
 * independently, so ordinary text gives the same tokens as without any of this, and requests
 * without such text take the direct way.
 *
 * Thread: any; everything passed in must stay as it is meanwhile.
 */
#ifndef SHOAL_API_PROMPT_H
#define SHOAL_API_PROMPT_H

#include "api/chat_request.h"
#include "api/control_set.h"
#include "base/error.h"
#include "text/chat_template.h"
#include "text/output_format.h"
#include "text/tokenizer.h"

struct prompt_model {
    const struct tokenizer *tokenizer;
    const struct chat_template *chat_template;
    const struct control_set *controls;
    const struct output_format *format;
    const char *bos_text, *eos_text;
};

/* Appends the tokens of the request's messages and tools. Changes r's messages: a template that
 * knows no tools gets them in a system message. *ret_begins_in_reasoning: the prompt ends with the
 * mark that opens reasoning. Errors: those of chat_template_render and tokenizer_encode. */
int prompt_build(const struct prompt_model *m, const struct chat_request *r, uint64_t now_s,
                 struct token_list *out, bool *ret_begins_in_reasoning, struct error *err);
/* Appends a prompt that needs no template. Errors: E_LIMIT (over n_max tokens), E_INVALID (no token
 * of this model), those of tokenizer_encode. */
int prompt_encode(const struct prompt_model *m, const struct chat_prompt *p, uint32_t n_max,
                  struct token_list *out, struct error *err);

/* Tokenizes a text in which `mark` (UTF-8, NULL: none) follows the first character of each match
 * that must stay text. The marks are not part of the prompt. For tests beside prompt_build. */
int prompt_encode_marked(const struct prompt_model *m, char *text, size_t len, const char *mark,
                         struct token_list *out, struct error *err);

#endif
