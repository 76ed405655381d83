/*
 * Splits what a model writes into answer, reasoning and tool calls while it is being written. Text
 * goes out as early as it is decided: only what may be the beginning of a marker waits. Calls that
 * turn out to be broken are text of the answer, exactly as written.
 *
 * With stream_arguments, a call begins as soon as its name is known and its arguments follow piece
 * by piece. If it breaks after that, it ends with complete = false and the rest is text; its
 * arguments are then not valid JSON, so that nobody executes half a call. Without, a call is
 * reported once it is whole.
 *
 * The text is UTF-8 (as the detokenizer makes it); pushes may cut it anywhere, the joined pieces
 * are the same. Thread: one parser, one thread.
 */
#ifndef SHOAL_TEXT_OUTPUT_PARSER_H
#define SHOAL_TEXT_OUTPUT_PARSER_H

#include "text/output_format.h"

/* Bounds on what one output may make the parser keep. Beyond them text stays text. */
enum {
    LIMIT_OUTPUT_CALL_BYTES = 1 << 20, /* held back for one undecided call */
    LIMIT_OUTPUT_CALLS = 128,          /* in one output */
    LIMIT_OUTPUT_NAME_BYTES = 256,     /* OpenAI allows 64, MCP's longest are about 128 */
    LIMIT_OUTPUT_SPACE_BYTES = 1024,   /* white space held back before a marker */
    LIMIT_OUTPUT_JSON_DEPTH = 256,
};

enum output_piece_kind {
    OUTPUT_CONTENT,        /* text of the answer */
    OUTPUT_REASONING,      /* text of the reasoning */
    OUTPUT_TOOL_BEGIN,     /* text is the tool's name */
    OUTPUT_TOOL_ARGUMENTS, /* text is a piece of one JSON object */
    OUTPUT_TOOL_END,
};

struct output_piece {
    enum output_piece_kind kind;
    unsigned index; /* of the call, from 0 */
    const char *text;
    size_t len;
    bool complete; /* OUTPUT_TOOL_END: the arguments are whole */
};

/* Anything but 0 ends the push, which returns it. Borrows: the text lives during the call only. */
typedef int (*output_sink_fn)(void *arg, const struct output_piece *piece);

struct output_parser_options {
    bool has_tools;           /* otherwise only reasoning is split off */
    bool begins_in_reasoning; /* see output_format_begins_in_reasoning */
    bool stream_arguments;
    /* OpenAI's tools array, for the types of XML parameters; may be NULL. Borrowed, only read. */
    const json_t *tools;
};

struct output_parser; /* opaque */

/* Owns: the caller. Borrows f and options->tools. Errors: E_NOMEM. */
int output_parser_new(const struct output_format *f, const struct output_parser_options *options,
                      struct output_parser **ret_parser, struct error *err);
void output_parser_free(struct output_parser *p);
/* Errors: E_NOMEM, those of the sink; after one, every later call gives it again. */
int output_parser_push(struct output_parser *p, const char *text, size_t len, output_sink_fn sink,
                       void *arg);
/* End of the output: what was held back goes out. */
int output_parser_finish(struct output_parser *p, output_sink_fn sink, void *arg);
/* Calls reported so far. */
unsigned output_parser_n_calls(const struct output_parser *p);

#endif
