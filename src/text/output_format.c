#include "text/output_format.h"

#include <string.h>

#define WIDE            "\xEF\xBD\x9C" /* U+FF5C, in DeepSeek's tokens */
#define LOW             "\xE2\x96\x81" /* U+2581 */
#define DEEPSEEK(words) "<" WIDE words WIDE ">"
#define DSML(words)     "<" WIDE "DSML" WIDE words
#define DSML_END(words) "</" WIDE "DSML" WIDE words

#define THINK        {"<think>", "</think>"}
#define HERMES_CALLS {.syntax = OUTPUT_SYNTAX_JSON, .begin = "<tool_call>", .end = "</tool_call>"}
/* Parameters between tags, as Qwen3-Coder writes them, between different outer tags. */
#define FUNCTION_CALLS                                                                             \
    .syntax = OUTPUT_SYNTAX_XML, .name_begin = "<function=", .name_end = ">",                      \
    .key_begin = "<parameter=", .key_end = ">", .value_end = "</parameter>",                       \
    .call_end = "</function>"
#define MISTRAL_CALLS {.syntax = OUTPUT_SYNTAX_NAMED, .begin = "[TOOL_CALLS]", .name_end = "[ARGS]"}
#define DEEPSEEK_CALLS                                                                             \
    {.syntax = OUTPUT_SYNTAX_NAMED,                                                                \
     .begin = DEEPSEEK("tool" LOW "calls" LOW "begin"),                                            \
     .end = DEEPSEEK("tool" LOW "calls" LOW "end"),                                                \
     .call_begin = DEEPSEEK("tool" LOW "call" LOW "begin"),                                        \
     .call_end = DEEPSEEK("tool" LOW "call" LOW "end"),                                            \
     .name_end = DEEPSEEK("tool" LOW "sep"),                                                       \
     .has_fence = true}
#define DSML_CALLS(section)                                                                        \
    {.syntax = OUTPUT_SYNTAX_XML,                                                                  \
     .begin = DSML(section ">"),                                                                   \
     .end = DSML_END(section ">"),                                                                 \
     .name_begin = DSML("invoke name=\""),                                                         \
     .name_end = "\">",                                                                            \
     .key_begin = DSML("parameter name=\""),                                                       \
     .key_end = "\" string=\"",                                                                    \
     .has_type_flag = true,                                                                        \
     .value_end = DSML_END("parameter>"),                                                          \
     .call_end = DSML_END("invoke>")}
#define ARGUMENTS  .name_key = "name", .arguments_key = "arguments"
#define PARAMETERS .name_key = "name", .arguments_key = "parameters"

enum format_index {
    FORMAT_HERMES,
    FORMAT_HERMES_PROMPT,
    FORMAT_QWEN3_CODER,
    FORMAT_GLM,
    FORMAT_MINIMAX_M2,
    FORMAT_SEED,
    FORMAT_LLAMA3,
    FORMAT_MISTRAL_LIST,
    FORMAT_MISTRAL,
    FORMAT_HARMONY,
    FORMAT_DEEPSEEK_R1,
    FORMAT_DEEPSEEK_V31,
    FORMAT_DEEPSEEK_V32,
    FORMAT_DEEPSEEK_V4,
    FORMAT_DEEPSEEK_PROMPT,
    FORMAT_KIMI_K2,
    FORMAT_GRANITE,
    FORMAT_PHI4,
    FORMAT_FUNCTOOLS,
    FORMAT_COMMAND_R7B,
    FORMAT_NEMOTRON,
    FORMAT_TOOL_CALLS,
    FORMAT_FUNCTIONARY,
};

static const struct output_format formats[] = {
    [FORMAT_HERMES] = {.name = "hermes", .calls = {HERMES_CALLS}, .reasoning = {THINK}, ARGUMENTS},
    [FORMAT_HERMES_PROMPT] = {.name = "prompt",
                              .needs_tool_prompt = true,
                              .calls = {HERMES_CALLS},
                              .reasoning = {THINK, {"[THINK]", "[/THINK]"}},
                              ARGUMENTS},
    [FORMAT_QWEN3_CODER] = {.name = "qwen3-coder",
                            .calls = {{FUNCTION_CALLS, .begin = "<tool_call>",
                                       .end = "</tool_call>"},
                                      /* The outer tag is forgotten at times. */
                                      {.syntax = OUTPUT_SYNTAX_XML,
                                       .begin = "<function=",
                                       .end = "</tool_call>",
                                       .name_end = ">",
                                       .key_begin = "<parameter=",
                                       .key_end = ">",
                                       .value_end = "</parameter>",
                                       .call_end = "</function>"}},
                            .reasoning = {THINK}},
    [FORMAT_GLM] = {.name = "glm",
                    .calls = {{.syntax = OUTPUT_SYNTAX_XML,
                               .begin = "<tool_call>",
                               .end = "</tool_call>",
                               .key_begin = "<arg_key>",
                               .key_end = "</arg_key>",
                               .value_begin = "<arg_value>",
                               .value_end = "</arg_value>"}},
                    .reasoning = {THINK}},
    [FORMAT_MINIMAX_M2] = {.name = "minimax-m2",
                           .calls = {{.syntax = OUTPUT_SYNTAX_XML,
                                      .begin = "<minimax:tool_call>",
                                      .end = "</minimax:tool_call>",
                                      .name_begin = "<invoke name=\"",
                                      .name_end = "\">",
                                      .key_begin = "<parameter name=\"",
                                      .key_end = "\">",
                                      .value_end = "</parameter>",
                                      .call_end = "</invoke>"}},
                           .reasoning = {THINK}},
    [FORMAT_SEED] = {.name = "seed-oss",
                     .calls = {{FUNCTION_CALLS, .begin = "<seed:tool_call>",
                                .end = "</seed:tool_call>"}},
                     .reasoning = {{"<seed:think>", "</seed:think>"}}},
    [FORMAT_LLAMA3] = {.name = "llama3",
                       .calls = {{.syntax = OUTPUT_SYNTAX_JSON},
                                 {.syntax = OUTPUT_SYNTAX_JSON, .begin = "<|python_tag|>"}},
                       .reasoning = {THINK},
                       PARAMETERS},
    [FORMAT_MISTRAL_LIST] = {.name = "mistral-list",
                             .calls = {MISTRAL_CALLS},
                             .reasoning = {{"[THINK]", "[/THINK]"}, THINK},
                             ARGUMENTS,
                             .writes_list = true},
    [FORMAT_MISTRAL] = {.name = "mistral",
                        .calls = {MISTRAL_CALLS},
                        .reasoning = {{"[THINK]", "[/THINK]"}, THINK}},
    [FORMAT_HARMONY] = {.name = "harmony", .is_harmony = true},
    [FORMAT_DEEPSEEK_R1] = {.name = "deepseek-r1",
                            .calls = {DEEPSEEK_CALLS},
                            .reasoning = {THINK},
                            .calls_end_reasoning = true},
    [FORMAT_DEEPSEEK_V31] = {.name = "deepseek-v3.1",
                             .calls = {DEEPSEEK_CALLS},
                             .reasoning = {THINK},
                             .calls_end_reasoning = true},
    [FORMAT_DEEPSEEK_V32] = {.name = "deepseek-v3.2",
                             .calls = {DSML_CALLS("function_calls")},
                             .reasoning = {THINK},
                             .calls_end_reasoning = true},
    [FORMAT_DEEPSEEK_V4] = {.name = "deepseek-v4",
                            .calls = {DSML_CALLS("tool_calls")},
                            .reasoning = {THINK},
                            .calls_end_reasoning = true},
    /* R1's distilled models and V3.1: the template writes calls of the past, but no tools. */
    [FORMAT_DEEPSEEK_PROMPT] = {.name = "deepseek-prompt",
                                .needs_tool_prompt = true,
                                .calls = {HERMES_CALLS, DEEPSEEK_CALLS},
                                .reasoning = {THINK},
                                ARGUMENTS},
    [FORMAT_KIMI_K2] = {.name = "kimi-k2",
                        .calls = {{.syntax = OUTPUT_SYNTAX_NAMED,
                                   .begin = "<|tool_calls_section_begin|>",
                                   .end = "<|tool_calls_section_end|>",
                                   .call_begin = "<|tool_call_begin|>",
                                   .call_end = "<|tool_call_end|>",
                                   .name_end = "<|tool_call_argument_begin|>"}},
                        .reasoning = {THINK},
                        .calls_end_reasoning = true},
    [FORMAT_GRANITE] = {.name = "granite",
                        .calls = {{.syntax = OUTPUT_SYNTAX_JSON, .begin = "<|tool_call|>"},
                                  HERMES_CALLS},
                        .reasoning = {THINK,
                                      {"Here is my thought process:", "Here is my response:"}},
                        .dropped = {"<response>", "</response>"},
                        ARGUMENTS,
                        .writes_list = true},
    [FORMAT_PHI4] = {.name = "phi4-mini",
                     .calls = {{.syntax = OUTPUT_SYNTAX_JSON,
                                .begin = "<|tool_call|>",
                                .end = "<|/tool_call|>"},
                               {.syntax = OUTPUT_SYNTAX_JSON, .begin = "functools"}},
                     .reasoning = {THINK},
                     ARGUMENTS,
                     .writes_list = true},
    [FORMAT_FUNCTOOLS] = {.name = "functools",
                          .calls = {{.syntax = OUTPUT_SYNTAX_JSON, .begin = "functools"}},
                          .reasoning = {THINK},
                          ARGUMENTS,
                          .writes_list = true},
    [FORMAT_COMMAND_R7B] = {.name = "command-r7b",
                            .calls = {{.syntax = OUTPUT_SYNTAX_JSON,
                                       .begin = "<|START_ACTION|>",
                                       .end = "<|END_ACTION|>"}},
                            .reasoning = {{"<|START_THINKING|>", "<|END_THINKING|>"}},
                            .dropped = {"<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>",
                                        "<|END_TEXT|>"},
                            .name_key = "tool_name",
                            .arguments_key = "parameters",
                            .writes_list = true},
    [FORMAT_NEMOTRON] =
        {.name = "nemotron",
         .calls = {{.syntax = OUTPUT_SYNTAX_JSON, .begin = "<TOOLCALL>", .end = "</TOOLCALL>"}},
         .reasoning = {THINK},
         ARGUMENTS,
         .writes_list = true},
    [FORMAT_TOOL_CALLS] =
        {.name = "tool-calls",
         .calls = {{.syntax = OUTPUT_SYNTAX_JSON, .begin = "<tool_calls>", .end = "</tool_calls>"}},
         .reasoning = {THINK},
         ARGUMENTS,
         .writes_list = true},
    [FORMAT_FUNCTIONARY] = {.name = "functionary-v3.1",
                            .calls = {{.syntax = OUTPUT_SYNTAX_NAMED,
                                       .begin = "<function=",
                                       .name_end = ">",
                                       .call_end = "</function>"}},
                            .reasoning = {THINK}},
};

/* What to look for in a template, most telling first: several families share tags, so an entry may
 * ask for a second text, or for one that must be absent. */
static const struct {
    const char *text, *also, *without;
    enum format_index format;
} signs[] = {
    {"<|channel|>", "<|message|>", NULL, FORMAT_HARMONY},
    {"DSML", "function_calls", NULL, FORMAT_DEEPSEEK_V32},
    {"DSML", "tool_calls>", NULL, FORMAT_DEEPSEEK_V4},
    {DEEPSEEK("tool" LOW "calls" LOW "begin"), "```json", NULL, FORMAT_DEEPSEEK_R1},
    {DEEPSEEK("tool" LOW "calls" LOW "begin"), NULL, NULL, FORMAT_DEEPSEEK_V31},
    {"[TOOL_CALLS]", "[ARGS]", NULL, FORMAT_MISTRAL},
    {"[TOOL_CALLS]", NULL, NULL, FORMAT_MISTRAL_LIST},
    {"<|tool_calls_section_begin|>", NULL, NULL, FORMAT_KIMI_K2},
    {"<minimax:tool_call>", NULL, NULL, FORMAT_MINIMAX_M2},
    {"<seed:tool_call>", NULL, NULL, FORMAT_SEED},
    {"<arg_key>", "<tool_call>", NULL, FORMAT_GLM},
    {"<function=", "<parameter=", "<seed:", FORMAT_QWEN3_CODER},
    {"<function=", "<|python_tag|>", NULL, FORMAT_FUNCTIONARY},
    {"<|START_ACTION|>", NULL, NULL, FORMAT_COMMAND_R7B},
    {"<TOOLCALL>", NULL, NULL, FORMAT_NEMOTRON},
    {"<tool_calls>[", NULL, NULL, FORMAT_TOOL_CALLS},
    {"<tool_calls>", NULL, "<tool_call>", FORMAT_TOOL_CALLS},
    {"<|/tool_call|>", NULL, NULL, FORMAT_PHI4},
    {"<|/tool|>", NULL, NULL, FORMAT_PHI4}, /* Phi-4-mini's template shows only this one */
    {"<|tool_call|>", NULL, NULL, FORMAT_GRANITE},
    {"functools", NULL, NULL, FORMAT_FUNCTOOLS},
    {"<tool_call>", NULL, "<invoke", FORMAT_HERMES},
    {"<tool_calls>", NULL, NULL, FORMAT_TOOL_CALLS},
    {"<|start_header_id|>", "ipython", NULL, FORMAT_LLAMA3},
    {"Here is my thought process:", NULL, NULL, FORMAT_GRANITE},
};

static bool has_text(const char *text, size_t len, const char *needle)
{
    size_t n = strlen(needle);
    const char *at = text;
    for (size_t left = len; left >= n; left = len - (size_t)(at - text)) {
        at = memchr(at, needle[0], left - n + 1);
        if (at == NULL)
            return false;
        if (memcmp(at, needle, n) == 0)
            return true;
        at++;
    }
    return false;
}

static const struct output_format *find_by_signs(const char *chat_template, size_t len)
{
    for (size_t i = 0; i < sizeof(signs) / sizeof(signs[0]); i++) {
        if (has_text(chat_template, len, signs[i].text) &&
            (signs[i].also == NULL || has_text(chat_template, len, signs[i].also)) &&
            (signs[i].without == NULL || !has_text(chat_template, len, signs[i].without)))
            return &formats[signs[i].format];
    }
    return &formats[FORMAT_HERMES_PROMPT];
}

const struct output_format *output_format_find(const char *chat_template, size_t len)
{
    if (chat_template == NULL)
        return &formats[FORMAT_HERMES_PROMPT];
    const struct output_format *f = find_by_signs(chat_template, len);
    if (f->is_harmony || has_text(chat_template, len, "tools"))
        return f;
    bool is_deepseek = f == &formats[FORMAT_DEEPSEEK_R1] || f == &formats[FORMAT_DEEPSEEK_V31];
    return &formats[is_deepseek ? FORMAT_DEEPSEEK_PROMPT : FORMAT_HERMES_PROMPT];
}

const struct output_format *output_format_at(size_t i)
{
    return i < sizeof(formats) / sizeof(formats[0]) ? &formats[i] : NULL;
}

const struct output_format *output_format_by_name(const char *name)
{
    for (size_t i = 0; i < sizeof(formats) / sizeof(formats[0]); i++)
        if (strcmp(formats[i].name, name) == 0)
            return &formats[i];
    return NULL;
}

static const char *const harmony_markers[] = {"<|channel|>", "<|message|>", "<|constrain|>",
                                              "<|start|>",   "<|end|>",     "<|call|>",
                                              "<|return|>"};

const char *output_format_marker(const struct output_format *f, size_t i)
{
    if (f->is_harmony)
        return i < sizeof(harmony_markers) / sizeof(harmony_markers[0]) ? harmony_markers[i] : NULL;
    const char *all[OUTPUT_CALLS_MAX * 10 + OUTPUT_TAGS_MAX * 2 + OUTPUT_DROPPED_MAX + 1];
    size_t n = 0;
    for (size_t k = 0; k < OUTPUT_TAGS_MAX; k++) {
        all[n++] = f->reasoning[k].begin;
        all[n++] = f->reasoning[k].end;
    }
    for (size_t k = 0; k < OUTPUT_DROPPED_MAX; k++)
        all[n++] = f->dropped[k];
    for (size_t k = 0; k < OUTPUT_CALLS_MAX; k++) {
        const struct output_calls *c = &f->calls[k];
        const char *texts[] = {c->begin,       c->end,      c->call_begin, c->call_end,
                               c->name_begin,  c->name_end, c->key_begin,  c->key_end,
                               c->value_begin, c->value_end};
        memcpy(all + n, texts, sizeof(texts));
        n += sizeof(texts) / sizeof(texts[0]);
        if (c->syntax == OUTPUT_SYNTAX_NAMED && c->call_begin == NULL)
            all[n++] = "[CALL_ID]";
    }
    for (size_t k = 0; k < n; k++)
        if (all[k] != NULL && i-- == 0)
            return all[k];
    return NULL;
}

bool output_format_begins_in_reasoning(const struct output_format *f, const char *prompt,
                                       size_t len)
{
    while (len > 0 && strchr(" \t\r\n", prompt[len - 1]) != NULL && prompt[len - 1] != '\0')
        len--;
    for (size_t i = 0; i < OUTPUT_TAGS_MAX && f->reasoning[i].begin != NULL; i++) {
        size_t n = strlen(f->reasoning[i].begin);
        if (len >= n && memcmp(prompt + len - n, f->reasoning[i].begin, n) == 0)
            return true;
    }
    return false;
}

const json_t *output_tool_function(const json_t *tool)
{
    const json_t *function = json_object_get(tool, "function");
    if (function == NULL)
        function = tool;
    return json_is_string(json_object_get(function, "name")) ? function : NULL;
}

const json_t *output_tool_find(const json_t *tools, const char *name)
{
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = output_tool_function(json_array_get(tools, i));
        if (function != NULL &&
            strcmp(json_string_value(json_object_get(function, "name")), name) == 0)
            return function;
    }
    return NULL;
}

int output_format_tool_prompt(const json_t *tools, struct buf *out)
{
    buf_append_str(out, "You may call functions to help with the user's request. They are "
                        "described inside <tools></tools>, one JSON object each:\n<tools>\n");
    for (size_t i = 0; i < json_array_size(tools); i++) {
        const json_t *function = output_tool_function(json_array_get(tools, i));
        if (function == NULL)
            continue;
        buf_append_str(out, "{\"type\": \"function\", \"function\": ");
        json_append_value(out, function);
        buf_append_str(out, "}\n");
    }
    return buf_append_str(
        out, "</tools>\n\nTo call a function, answer with a JSON object with its name and its "
             "arguments inside <tool_call></tool_call>:\n<tool_call>\n{\"name\": \"the name\", "
             "\"arguments\": {\"an argument\": \"its value\"}}\n</tool_call>\nCall only functions "
             "described above. If none is needed, answer without a call.");
}
