/* Which family a template belongs to, the text for templates without tools, and grammars: what they
 * accept is what the parser reads as a call. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "text/grammar.h"
#include "text/output_parser.h"
#include "text/tiny_vocab.h"

#include <string.h>

/* Snippets in the way of the families' templates. */
static void test_find(void **state)
{
    (void)state;
    static const struct {
        const char *text, *format;
    } cases[] = {
        {"{% for message in messages %}{{ message.content }}{% endfor %}", "prompt"},
        {"{%- if tools %}<tools></tools> <tool_call>\n{\"name\": <function-name>}\n</tool_call>",
         "hermes"},
        {"{% if tools %}<tool_call>\n<function=x>\n<parameter=p>\nv\n</parameter>", "qwen3-coder"},
        {"{% if tools %}<tool_call>{name}<arg_key>{k}</arg_key>", "glm"},
        {"<|start_header_id|>ipython<|end_header_id|> {{ tools }} <|python_tag|>", "llama3"},
        {"<|start_header_id|>user<|end_header_id|>", "prompt"},
        {"[AVAILABLE_TOOLS]{{ tools }}[TOOL_CALLS][", "mistral-list"},
        {"{{ tools }}[TOOL_CALLS]{{ name }}[ARGS]", "mistral"},
        {"<|start|>assistant<|channel|>final<|message|>", "harmony"},
        {"{{ tools }}<｜tool▁calls▁begin｜>function<｜tool▁sep｜>\n```json\n", "deepseek-r1"},
        {"{{ tools }}<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek-v3.1"},
        {"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "deepseek-prompt"},
        {"{{ tools }}<|tool_calls_section_begin|>", "kimi-k2"},
        {"{{ tools }}respond only with <|tool_call|> followed by a JSON list", "granite"},
        {"<|tool|>{{ tools }}<|/tool|>", "phi4-mini"},
        {"{{ tools }}<|START_ACTION|>", "command-r7b"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
        assert_string_equal(output_format_find(cases[i].text, strlen(cases[i].text))->name,
                            cases[i].format);
    assert_true(output_format_find(NULL, 0)->needs_tool_prompt);
    assert_true(output_format_find("", 0)->needs_tool_prompt);
    assert_null(output_format_by_name("none"));
}

static bool has_marker(const char *format, const char *marker)
{
    const char *m;
    for (size_t i = 0; (m = output_format_marker(output_format_by_name(format), i)) != NULL; i++)
        if (strcmp(m, marker) == 0)
            return true;
    return false;
}

static void test_markers(void **state)
{
    (void)state;
    assert_true(has_marker("mistral", "[TOOL_CALLS]"));
    assert_true(has_marker("mistral", "[ARGS]"));
    assert_true(has_marker("mistral", "[CALL_ID]"));
    assert_true(has_marker("mistral", "[/THINK]"));
    assert_true(has_marker("llama3", "<|python_tag|>"));
    assert_true(has_marker("harmony", "<|constrain|>"));
    assert_true(has_marker("deepseek-v3.1", "<｜tool▁sep｜>"));
    assert_false(has_marker("hermes", "<|im_end|>"));
}

static bool begins(const char *format, const char *prompt)
{
    return output_format_begins_in_reasoning(output_format_by_name(format), prompt, strlen(prompt));
}

static void test_begins_in_reasoning(void **state)
{
    (void)state;
    assert_true(begins("hermes", "<|im_start|>assistant\n<think>\n"));
    assert_false(begins("hermes", "<|im_start|>assistant\n<think>\n\n</think>\n\n"));
    assert_false(begins("hermes", "<|im_start|>assistant\n"));
    assert_true(begins("mistral", "[INST]x[/INST][THINK]"));
    assert_false(begins("harmony", ""));
}

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":"
    "\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"}},"
    "\"required\":[\"city\"],\"additionalProperties\":false}}},{\"type\":\"web_search\"},"
    "{\"type\":\"function\",\"name\":\"now\"}]";

static json_t *make_tools(void)
{
    json_t *tools = NULL;
    assert_int_equal(json_parse(tools_text, strlen(tools_text), &tools, NULL), 0);
    return tools;
}

static void test_tool_prompt(void **state)
{
    (void)state;
    json_t *tools = make_tools();
    struct buf out;
    buf_init(&out, 1u << 16);
    assert_int_equal(output_format_tool_prompt(tools, &out), 0);
    assert_non_null(strstr(buf_str(&out), "\"name\":\"get_weather\""));
    assert_non_null(strstr(buf_str(&out), "\"name\":\"now\""));
    assert_null(strstr(buf_str(&out), "web_search"));
    assert_non_null(strstr(buf_str(&out), "<tool_call>\n{\"name\":"));
    buf_done(&out);
    json_decref(tools);
}

static void test_grammar_text(void **state)
{
    (void)state;
    json_t *tools = make_tools();
    struct error err;
    struct buf out;
    struct output_grammar_options o = {.choice = OUTPUT_CHOICE_REQUIRED, .allow_parallel = true};
    buf_init(&out, 1u << 20);
    const struct output_format *f;
    for (size_t i = 0; (f = output_format_at(i)) != NULL; i++) {
        buf_reset(&out);
        assert_int_equal(output_format_grammar(f, tools, &o, &out, &err), 0);
        assert_non_null(strstr(buf_str(&out), "start:"));
        assert_non_null(strstr(buf_str(&out), "call: call_0 | call_1\n"));
        assert_null(strstr(buf_str(&out), "web_search"));
    }
    buf_reset(&out);
    o.choice = OUTPUT_CHOICE_NAMED;
    o.name = "now";
    f = output_format_by_name("hermes");
    assert_int_equal(output_format_grammar(f, tools, &o, &out, &err), 0);
    assert_null(strstr(buf_str(&out), "get_weather"));
    assert_non_null(strstr(buf_str(&out), "%json {\"type\":\"object\"}"));
    o.name = "none";
    assert_int_equal(output_format_grammar(f, tools, &o, &out, &err), E_NOTFOUND);
    o.choice = OUTPUT_CHOICE_REQUIRED;
    assert_int_equal(output_format_grammar(f, NULL, &o, &out, &err), E_INVALID);
    buf_done(&out);
    json_decref(tools);
}

static bool grammar_takes(const struct grammar_vocab *vocab, const struct tokenizer *t,
                          const struct buf *grammar, const char *text)
{
    struct grammar *g = NULL;
    struct error err = {0};
    struct token_list tokens;
    token_list_init(&tokens);
    if (grammar_compile(vocab, GRAMMAR_LARK, buf_str(grammar), grammar->len, &g, &err) != 0)
        fail_msg("%s: %s", buf_str(grammar), err.message);
    assert_int_equal(tokenizer_encode(t, text, strlen(text), 0, &tokens, &err), 0);
    bool good = true;
    for (size_t i = 0; i < tokens.n && good; i++)
        good = grammar_accept(g, tokens.ids[i], &err) == 0;
    good = good && grammar_may_end(g);
    token_list_done(&tokens);
    grammar_free(g);
    return good;
}

static int count_calls(void *arg, const struct output_piece *piece)
{
    *(int *)arg += piece->kind == OUTPUT_TOOL_END && piece->complete ? 1 : 0;
    return 0;
}

static int calls_in(const struct output_format *f, const char *text)
{
    struct output_parser_options o = {.has_tools = true};
    struct output_parser *p = NULL;
    int n = 0;
    assert_int_equal(output_parser_new(f, &o, &p, NULL), 0);
    assert_int_equal(output_parser_push(p, text, strlen(text), count_calls, &n), 0);
    assert_int_equal(output_parser_finish(p, count_calls, &n), 0);
    output_parser_free(p);
    return n;
}

/* Good calls, as the families write them; in each "Oslo" is an argument's value. */
static const struct {
    const char *format, *text;
} calls[] = {
    {"hermes", "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n"
               "</tool_call>"},
    {"hermes", "<think>hm</think>\n\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": "
               "{\"city\": \"Oslo\"}}\n</tool_call>"},
    {"llama3", "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}"},
    {"mistral-list",
     "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}]"},
    {"mistral", "[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Oslo\"}"},
    {"harmony", "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary "
                "to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}"},
    {"qwen3-coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
                    "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>"},
    {"glm", "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo</arg_value>\n"
            "</tool_call>"},
    {"minimax-m2", "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">"
                   "\nOslo\n</parameter>\n</invoke>\n</minimax:tool_call>"},
    {"deepseek-r1", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
                    "```json\n{\"city\": \"Oslo\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
    {"deepseek-v3.1",
     "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": "
     "\"Oslo\"}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"},
    {"kimi-k2", "<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
                "<|tool_call_argument_begin|>{\"city\": \"Oslo\"}<|tool_call_end|>"
                "<|tool_calls_section_end|>"},
    {"granite", "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}]"},
};

static void test_grammar_accepts_calls(void **state)
{
    (void)state;
    struct tiny tiny;
    struct tokenizer *t = NULL;
    struct grammar_vocab *vocab = NULL;
    struct error err = {0};
    struct buf out;
    struct output_grammar_options o = {.choice = OUTPUT_CHOICE_REQUIRED, .allow_parallel = true};
    json_t *tools = make_tools();
    tiny_bpe(&tiny, "gpt-2");
    tiny_finish(&tiny);
    assert_int_equal(tiny_open(&tiny, &t, &err), 0);
    tiny_done(&tiny);
    assert_int_equal(grammar_vocab_new(t, &vocab, &err), 0);
    buf_init(&out, 1u << 20);
    o.tokenizer = t;
    for (size_t i = 0; i < sizeof(calls) / sizeof(calls[0]); i++) {
        const struct output_format *f = output_format_by_name(calls[i].format);
        buf_reset(&out);
        assert_int_equal(output_format_grammar(f, tools, &o, &out, &err), 0);
        if (!grammar_takes(vocab, t, &out, calls[i].text))
            fail_msg("%s refuses %s", buf_str(&out), calls[i].text);
        assert_int_equal(calls_in(f, calls[i].text), 1);
        /* No call, half of one, and a tool that is not there. */
        char half[1024], other[1024];
        size_t len = strlen(calls[i].text);
        snprintf(half, sizeof(half), "%.*s", (int)len - 1, calls[i].text);
        assert_false(grammar_takes(vocab, t, &out, half));
        assert_false(grammar_takes(vocab, t, &out, "It is sunny."));
        snprintf(other, sizeof(other), "%s", calls[i].text);
        memcpy(strstr(other, "get_weather"), "set", 3);
        assert_false(grammar_takes(vocab, t, &out, other));
    }
    buf_done(&out);
    json_decref(tools);
    grammar_vocab_free(vocab);
    tokenizer_free(t);
}

/* Markers that are control tokens stand in the grammar by their number. */
static void test_control_markers(void **state)
{
    (void)state;
    struct tiny tiny;
    struct tokenizer *t = NULL;
    struct error err = {0};
    struct buf out;
    char by_number[32];
    json_t *tools = make_tools();
    tiny_bpe(&tiny, "gpt-2");
    token_id marker = tiny_token(&tiny, "[TOOL_CALLS]", TINY_CONTROL, 0);
    tiny_finish(&tiny);
    assert_int_equal(tiny_open(&tiny, &t, &err), 0);
    tiny_done(&tiny);
    struct output_grammar_options o = {.choice = OUTPUT_CHOICE_REQUIRED, .tokenizer = t};
    buf_init(&out, 1u << 20);
    assert_int_equal(output_format_grammar(output_format_by_name("mistral"), tools, &o, &out, &err),
                     0);
    snprintf(by_number, sizeof(by_number), " <[%d]>", (int)marker);
    assert_non_null(strstr(buf_str(&out), by_number));
    assert_null(strstr(buf_str(&out), "[TOOL_CALLS]"));
    assert_non_null(strstr(buf_str(&out), "[ARGS]"));
    struct grammar_vocab *vocab = NULL;
    struct grammar *g = NULL;
    struct token_list tokens;
    static const char rest[] = "now[ARGS]{}";
    token_list_init(&tokens);
    assert_int_equal(grammar_vocab_new(t, &vocab, &err), 0);
    if (grammar_compile(vocab, GRAMMAR_LARK, buf_str(&out), out.len, &g, &err) != 0)
        fail_msg("%s: %s", buf_str(&out), err.message);
    assert_int_equal(token_list_append(&tokens, marker), 0);
    assert_int_equal(tokenizer_encode(t, rest, strlen(rest), 0, &tokens, &err), 0);
    for (size_t i = 0; i < tokens.n; i++)
        if (grammar_accept(g, tokens.ids[i], &err) != 0)
            fail_msg("token %zu of the call: %s", i, err.message);
    assert_true(grammar_may_end(g));
    token_list_done(&tokens);
    grammar_free(g);
    grammar_vocab_free(vocab);
    buf_done(&out);
    json_decref(tools);
    tokenizer_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_markers),
        cmocka_unit_test(test_begins_in_reasoning),
        cmocka_unit_test(test_tool_prompt),
        cmocka_unit_test(test_grammar_text),
        cmocka_unit_test(test_grammar_accepts_calls),
        cmocka_unit_test(test_control_markers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
