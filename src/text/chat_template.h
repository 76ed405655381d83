/*
 * A model's own Jinja chat template, rendered as Hugging Face's transformers does (trim_blocks,
 * lstrip_blocks, loop controls, Python string and dict methods, tojson with Python's spacing,
 * raise_exception, strftime_now). The engine is minijinja in a small Rust library (src/text/rust).
 * Templates and messages are hostile: steps, recursion and output size are bounded. Thread:
 * immutable once made; any thread may render.
 */
#ifndef SHOAL_TEXT_CHAT_TEMPLATE_H
#define SHOAL_TEXT_CHAT_TEMPLATE_H

#include "base/buf.h"
#include "base/error.h"

#include <stddef.h>
#include <stdint.h>

struct chat_template; /* opaque */

/* Compiles a template. Errors: E_FORMAT (with line), E_LIMIT, E_NOMEM. */
int chat_template_new(const char *source, size_t len, struct chat_template **ret_template,
                      struct error *err);
void chat_template_free(struct chat_template *t);
/* Its source, as it was given. Borrows. */
const char *chat_template_source(const struct chat_template *t, size_t *ret_len);
/* Appends the prompt. context is a JSON object's text: {"messages": [...], "add_generation_prompt":
 * true, "bos_token": "...", "eos_token": "...", "tools": null, ...}; keys keep their order. now_s
 * (Unix time) is what strftime_now sees. Errors: E_INVALID (the template refused: its message),
 * E_LIMIT, E_FORMAT. */
int chat_template_render(const struct chat_template *t, const char *context, size_t len,
                         uint64_t now_s, struct buf *out, struct error *err);

#endif
