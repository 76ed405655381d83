/*
 * How the families of models write reasoning and tool calls. A format is found from a model's chat
 * template and describes, as data, what output_parser reads and output_format_grammar forces.
 *
 * Source: the families' published chat templates; docs/internals/tool-calls.md names them.
 * Thread: any; formats are constant.
 */
#ifndef SHOAL_TEXT_OUTPUT_FORMAT_H
#define SHOAL_TEXT_OUTPUT_FORMAT_H

#include "base/buf.h"
#include "base/error.h"
#include "base/json.h"
#include "text/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

enum output_syntax {
    OUTPUT_SYNTAX_NONE,
    OUTPUT_SYNTAX_JSON,  /* objects with name and arguments, one by one or in a list */
    OUTPUT_SYNTAX_NAMED, /* a name, then the arguments as a JSON object */
    OUTPUT_SYNTAX_XML,   /* a name, then each parameter between tags */
};

/* One way to write calls. Texts that a syntax does not have are NULL. */
struct output_calls {
    enum output_syntax syntax;
    const char *begin; /* before the first call; NULL: calls are bare, at the message's start */
    const char *end;   /* after the last one */
    const char *call_begin, *call_end; /* around each call inside of begin and end */
    const char *name_begin, *name_end;
    const char *key_begin, *key_end; /* of an XML parameter */
    const char *value_begin, *value_end;
    bool has_fence;     /* NAMED: the arguments may stand in a Markdown fence, below the name */
    bool has_type_flag; /* XML: key_end is followed by true"> or false">: whether it is a string */
};

struct output_tags {
    const char *begin, *end;
};

enum { OUTPUT_CALLS_MAX = 3, OUTPUT_TAGS_MAX = 2, OUTPUT_DROPPED_MAX = 4 };

struct output_format {
    const char *name;
    bool is_harmony;        /* messages with channels: everything else below is empty */
    bool needs_tool_prompt; /* the template does not know tools: see output_format_tool_prompt */
    bool calls_end_reasoning;
    struct output_calls calls[OUTPUT_CALLS_MAX]; /* the first is what the model is taught */
    struct output_tags reasoning[OUTPUT_TAGS_MAX];
    const char *dropped[OUTPUT_DROPPED_MAX]; /* tags around the answer that mean nothing */
    const char *name_key, *arguments_key;    /* JSON: as the family writes them */
    bool writes_list;                        /* JSON: calls stand in a list */
};

/* The family of a chat template. Never NULL: templates that say nothing about tools, and NULL, give
 * Hermes with needs_tool_prompt. Borrows nothing. */
const struct output_format *output_format_find(const char *chat_template, size_t len);
/* The format by its name ("hermes", "llama3", ...), NULL when there is none. */
const struct output_format *output_format_by_name(const char *name);
/* All formats: i from 0, NULL past the last one. */
const struct output_format *output_format_at(size_t i);

/* The texts the parser must see, i from 0, NULL past the last one. Where one of them is a control
 * token, the detokenizer would drop it: the caller turns exactly these token ids back into text. */
const char *output_format_marker(const struct output_format *f, size_t i);

/* Whether a prompt leaves the model inside of reasoning: it ends with an opened tag. */
bool output_format_begins_in_reasoning(const struct output_format *f, const char *prompt,
                                       size_t len);

/* Appends text for the system message of models whose template does not know tools. tools: the
 * array of OpenAI's requests. Errors: those of buf_append. */
int output_format_tool_prompt(const json_t *tools, struct buf *out);

/* The function of one entry of OpenAI's tools array, also where it is flat; NULL: not a function.
 */
const json_t *output_tool_function(const json_t *tool);
/* The function with this name, NULL when there is none. tools may be NULL. */
const json_t *output_tool_find(const json_t *tools, const char *name);

enum output_choice {
    OUTPUT_CHOICE_REQUIRED, /* at least one call of any tool */
    OUTPUT_CHOICE_NAMED,    /* a call of the tool `name` */
};

struct output_grammar_options {
    enum output_choice choice;
    const char *name;    /* OUTPUT_CHOICE_NAMED */
    bool allow_parallel; /* more than one call */
    /* The prompt left the model inside of reasoning: free text may come first, up to the end tag.
     */
    bool begins_in_reasoning;
    const struct tokenizer *tokenizer; /* NULL: every marker is ordinary text */
};

/* Appends a Lark grammar (llguidance's dialect) of outputs that call tools in the family's own
 * syntax, arguments after each tool's schema. Errors: E_NOTFOUND (no such tool), E_INVALID (no
 * tools), those of buf_append. */
int output_format_grammar(const struct output_format *f, const json_t *tools,
                          const struct output_grammar_options *options, struct buf *out,
                          struct error *err);

#endif
