/*
 * What the parser is made of: shared by output_parser.c (the stream, answer and reasoning) and the
 * files of the syntaxes (output_calls_*.c, output_harmony.c), by nobody else.
 *
 * All of them look at `input` from `at`. A step either moves on or asks for more text; at the end
 * of the output (`finishing`) there is no more, and it decides with what there is. While a call is
 * undecided `undo` remembers where it began, and the text from there on is kept: output_fail() goes
 * back, gives out the marker as text and lets the rest be read as text again.
 */
#ifndef SHOAL_TEXT_OUTPUT_PARSER_IMPL_H
#define SHOAL_TEXT_OUTPUT_PARSER_IMPL_H

#include "text/json_scan.h"
#include "text/output_parser.h"

enum output_state {
    STATE_CONTENT,
    STATE_REASONING,
    STATE_HARMONY_HEADER,
    STATE_HARMONY_BODY,
    STATE_HARMONY_CALL,
    /* JSON: a list or single objects, then one object from key to key */
    STATE_JSON_OPEN,
    STATE_JSON_ITEM,
    STATE_JSON_NEXT_ITEM,
    STATE_JSON_CLOSE,
    STATE_OBJECT_KEY,
    STATE_OBJECT_COLON,
    STATE_OBJECT_VALUE,
    STATE_OBJECT_NEXT,
    /* a name, then arguments */
    STATE_NAMED_OPEN,
    STATE_NAMED_NAME,
    STATE_NAMED_BODY,
    STATE_NAMED_CLOSE,
    STATE_NAMED_NEXT,
    /* parameters between tags */
    STATE_XML_OPEN,
    STATE_XML_NAME,
    STATE_XML_NEXT_KEY,
    STATE_XML_KEY,
    STATE_XML_VALUE_OPEN,
    STATE_XML_VALUE,
    /* one JSON value; `after_value` is what comes next */
    STATE_VALUE,
};

enum output_match { MATCH_NO, MATCH_YES, MATCH_MORE };

/* Where the value that is being read goes. */
enum output_value { VALUE_SKIPPED, VALUE_KEY, VALUE_NAME, VALUE_ARGUMENTS, VALUE_STREAMED };

struct output_parser {
    const struct output_format *format;
    struct output_parser_options options;
    enum output_state state;
    int rc;
    bool finishing;

    struct buf input;
    size_t at, undo, undo_literal; /* undo_literal: bytes of the marker at undo */
    bool has_undo;
    struct buf space, undo_space; /* white space that waits, and what was left out before undo */
    bool trim_leading;
    bool content_started; /* text was given out since the last reasoning or call */
    bool reasoning_started;
    bool line_started;                /* the last byte of the text was not a newline */
    uint8_t first[256];               /* bytes that may begin a marker of the answer */
    enum output_piece_kind body_kind; /* harmony */

    /* the call that is being read */
    const struct output_calls *calls;
    unsigned n_calls;
    bool call_open; /* TOOL_BEGIN went out */
    bool in_list, has_name, has_arguments, is_reported;
    bool must_be_known; /* a bare object inside of the text counts only with a tool's name */
    unsigned level;
    char name[LIMIT_OUTPUT_NAME_BYTES + 1];
    struct buf arguments;
    struct json_scan scan;
    enum output_value value_kind;
    size_t value_at;
    enum output_state after_value;

    /* XML */
    const json_t *tool; /* the function's description, may be NULL */
    struct buf key, value;
    bool is_string, is_streamed_string, holds_newline, value_started;
    unsigned n_keys;

    /* the piece that is being collected */
    struct buf out;
    enum output_piece_kind out_kind;
    output_sink_fn sink;
    void *sink_arg;
};

/* Each step returns true when it moved on, false when it needs more text. */
bool output_step_calls(struct output_parser *p);   /* STATE_JSON_*, STATE_OBJECT_*, STATE_VALUE */
bool output_step_named(struct output_parser *p);   /* STATE_NAMED_* */
bool output_step_xml(struct output_parser *p);     /* STATE_XML_* */
bool output_step_harmony(struct output_parser *p); /* STATE_HARMONY_* */

/* -- looking at the input -- */
enum output_match output_look(const struct output_parser *p, size_t at, const char *literal);
/* The first of n literals (NULLs are skipped) at or after `from`, at most max bytes away. */
enum output_match output_find(const struct output_parser *p, size_t from, size_t max,
                              const char *const *literals, size_t n, size_t *ret_at,
                              size_t *ret_which);
/* Passes white space. False: no text is left behind it (and there may be more). */
bool output_skip_space(struct output_parser *p);
/* Passes a literal if it is there. */
enum output_match output_skip(struct output_parser *p, const char *literal);
bool output_at_end(const struct output_parser *p);

/* -- deciding -- */
/* From here on the text may be a call; literal: bytes of it that are its marker. */
void output_try(struct output_parser *p, size_t literal);
/* It is none. Always true, for `return output_fail(p)`. */
bool output_fail(struct output_parser *p);
/* Needs more text, or fails where there is none. */
bool output_more_or_fail(struct output_parser *p);
/* After calls: the answer goes on. Always true. */
bool output_leave(struct output_parser *p);
bool output_go(struct output_parser *p, enum output_state state);

/* -- giving out -- */
void output_emit(struct output_parser *p, enum output_piece_kind kind, const char *text,
                 size_t len);
bool output_name_is_valid(const char *name, size_t len);
/* A new call: nothing is known of it yet. */
void output_call_reset(struct output_parser *p);
bool output_call_set_name(struct output_parser *p, const char *name, size_t len);
/* Reports the call's beginning. False: too many calls. */
bool output_call_begin(struct output_parser *p);
void output_call_end(struct output_parser *p, bool complete);
/* A whole call with p->arguments. False: too many calls. */
bool output_call_report(struct output_parser *p);
/* Begins to read the JSON value at `at`. */
bool output_value_start(struct output_parser *p, enum output_value kind, enum output_state after);

/* Appends an XML parameter's text as JSON, after the parameter's schema (may be NULL). */
void output_append_typed(struct buf *out, const char *text, size_t len, const json_t *schema);
/* Whether the schema allows strings only. */
bool output_schema_is_string(const json_t *schema);

#endif
