/* What models write, family by family, against the pieces that come out: the whole text at once,
 * byte by byte and cut at every place; calls streamed and whole. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "text/output_parser.h"

#include <string.h>

static const char tools_text[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"get_weather\",\"parameters\":{\"type\":"
    "\"object\",\"properties\":{\"city\":{\"type\":\"string\"},\"days\":{\"type\":\"integer\"},"
    "\"unit\":{\"anyOf\":[{\"type\":\"string\"},{\"type\":\"null\"}]},\"where\":{\"type\":"
    "\"object\"},\"hourly\":{\"type\":\"boolean\"}}}}},"
    "{\"type\":\"function\",\"name\":\"now\",\"parameters\":{\"type\":\"object\"}}]";

struct transcript {
    struct buf text;
    int last; /* kind of the last text piece, so that joined pieces read the same */
};

/* C(...) answer, R(...) reasoning, name(arguments) a call, with ! behind a broken one. */
static int note_piece(void *arg, const struct output_piece *piece)
{
    struct transcript *t = arg;
    bool is_text = piece->kind == OUTPUT_CONTENT || piece->kind == OUTPUT_REASONING;
    if (t->last >= 0 && (!is_text || (int)piece->kind != t->last)) {
        buf_append_str(&t->text, ")");
        t->last = -1;
    }
    if (is_text && t->last < 0) {
        buf_append_str(&t->text, piece->kind == OUTPUT_CONTENT ? "C(" : "R(");
        t->last = (int)piece->kind;
    }
    if (piece->kind == OUTPUT_TOOL_END)
        buf_append_str(&t->text, piece->complete ? ")" : ")!");
    else
        buf_append(&t->text, piece->text, piece->len);
    if (piece->kind == OUTPUT_TOOL_BEGIN)
        buf_append_str(&t->text, "(");
    return 0;
}

enum { WITH_TOOLS = 1, IN_REASONING = 2, STREAMED = 4 };

static void parse(const char *family, unsigned flags, const char *text, size_t cut, size_t step,
                  json_t *tools, struct transcript *t)
{
    struct output_parser_options o = {.has_tools = (flags & WITH_TOOLS) != 0,
                                      .begins_in_reasoning = (flags & IN_REASONING) != 0,
                                      .stream_arguments = (flags & STREAMED) != 0,
                                      .tools = tools};
    struct output_parser *p = NULL;
    size_t len = strlen(text);
    const struct output_format *f = output_format_by_name(family);
    assert_non_null(f);
    assert_int_equal(output_parser_new(f, &o, &p, NULL), 0);
    t->last = -1;
    for (size_t at = 0; at < len;) {
        size_t n = at == 0 && cut > 0 ? cut : step;
        n = n < len - at ? n : len - at;
        assert_int_equal(output_parser_push(p, text + at, n, note_piece, t), 0);
        at += n;
    }
    assert_int_equal(output_parser_finish(p, note_piece, t), 0);
    if (t->last >= 0)
        buf_append_str(&t->text, ")");
    output_parser_free(p);
}

static void check(const char *family, unsigned flags, const char *text, const char *expected)
{
    struct transcript t;
    json_t *tools = NULL;
    size_t len = strlen(text);
    assert_int_equal(json_parse(tools_text, strlen(tools_text), &tools, NULL), 0);
    buf_init(&t.text, 1u << 20);
    for (size_t cut = 0; cut <= len; cut++) {
        buf_reset(&t.text);
        parse(family, flags, text, cut, cut == 0 ? 1 : len, tools, &t);
        if (strcmp(buf_str(&t.text), expected) != 0)
            print_message("%s, cut at %zu of: %s\n", family, cut, text);
        assert_string_equal(buf_str(&t.text), expected);
    }
    buf_done(&t.text);
    json_decref(tools);
}

static void check_both(const char *family, const char *text, const char *expected)
{
    check(family, WITH_TOOLS, text, expected);
    check(family, WITH_TOOLS | STREAMED, text, expected);
}

static void test_hermes(void **state)
{
    (void)state;
    check_both("hermes", "Hello, world.\n", "C(Hello, world.\n)");
    check_both("hermes", "a < b and <tool> too", "C(a < b and <tool> too)");
    check_both("hermes",
               "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}\n"
               "</tool_call>",
               "get_weather({\"city\": \"Oslo\"})");
    check_both("hermes",
               "Let me see.\n\n<tool_call>\n{\"name\": \"a\", \"arguments\": {}}\n</tool_call>\n"
               "<tool_call>\n{\"arguments\": {\"x\": [1, 2.5e3, \"}\"]}, \"name\": \"b\"}\n"
               "</tool_call>\n",
               "C(Let me see.)a({})b({\"x\": [1, 2.5e3, \"}\"]})");
    check_both("hermes", "<think>\nhm\nso\n</think>\n\nYes.", "R(hm\nso)C(Yes.)");
    check_both("hermes", "<think>\n\n</think>\n\nYes.\n", "C(Yes.\n)");
    check_both("hermes",
               "<think>\nx\n</think>\n\n<tool_call>\n{\"name\": \"a\", \"arguments\": {}}\n"
               "</tool_call>",
               "R(x)a({})");
    check("hermes", WITH_TOOLS | IN_REASONING, "hm\n</think>\nYes.", "R(hm)C(Yes.)");
    check("hermes", WITH_TOOLS | IN_REASONING, "<think>hm</think>Yes.", "R(hm)C(Yes.)");
    check("hermes", WITH_TOOLS | IN_REASONING, "never ends ", "R(never ends)");
    check("hermes", 0, "<think>x</think><tool_call>\n{\"name\": \"a\", \"arguments\": {}}",
          "R(x)C(<tool_call>\n{\"name\": \"a\", \"arguments\": {}})");
}

static void test_hermes_sloppy(void **state)
{
    (void)state;
    check_both("hermes", "<tool_call>{\"name\":\"a\",\"arguments\":\"{\\\"x\\\": 1}\"}</tool_call>",
               "a({\"x\": 1})");
    check_both("hermes", "<tool_call>{\"name\":\"a\",\"arguments\":null}</tool_call>", "a({})");
    check_both("hermes", "<tool_call>{\"name\":\"a\"}</tool_call>ok", "a({})C(ok)");
    check_both("hermes", "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":1}</tool_call>",
               "a({\"x\":1})");
    check_both("hermes", "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":1}}", "a({\"x\":1})");
    check_both("hermes",
               "<tool_call>[{\"name\":\"a\",\"arguments\":{}}, {\"name\":\"b\"}]</tool_call>",
               "a({})b({})");
    check_both("hermes", "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":\"1\n2\"}}</tool_call>",
               "a({\"x\":\"1\\n2\"})");
    check_both("hermes",
               "<tool_call>{\"type\":\"function\",\"id\":7,\"function\":{\"name\":\"a\","
               "\"arguments\":{\"x\":1}}}</tool_call>",
               "a({\"x\":1})");
}

static void test_broken(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "x\n <tool_call> is the tag",
        "<tool_call>\n{\"name\": 7, \"arguments\": {}}\n</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"a\", \"arguments\": \"x\"}</tool_call>",
        "<tool_call>{\"nam",
        "<tool_call>\n",
        "<tool_ca",
        "<tool_call>{'name': 'a'}</tool_call>",
        "  <tool_call>{\"arguments\": {\"a\": 01}, \"name\": \"a\"}</tool_call>",
        "<tool_call>{\"name\": \"two words\", \"arguments\": {}}</tool_call>",
    };
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        char expected[256];
        snprintf(expected, sizeof(expected), "C(%s)", texts[i]);
        check_both("hermes", texts[i], expected);
    }
    /* Once its name went out a call cannot be taken back. */
    static const char broken[] = "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": 1 oops}}";
    check("hermes", WITH_TOOLS, broken,
          "C(<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": 1 oops}})");
    check("hermes", WITH_TOOLS | STREAMED, broken, "a({\"x\": 1 )!C(oops}})");
    check("hermes", WITH_TOOLS | STREAMED,
          "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"rm", "a({\"x\": \"rm)!");
    /* A call inside of a broken one is found. */
    check_both("hermes", "<tool_call>no <tool_call>{\"name\":\"a\"}</tool_call>",
               "C(<tool_call>no)a({})");
}

static void test_llama3(void **state)
{
    (void)state;
    check_both("llama3", "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Oslo\"}}",
               "get_weather({\"city\": \"Oslo\"})");
    check_both("llama3",
               "<|python_tag|>{\"name\": \"a\", \"parameters\": {}}; {\"type\": \"function\", "
               "\"name\": \"b\", \"parameters\": {\"x\": 1}}",
               "a({})b({\"x\": 1})");
    check_both("llama3", "{\"type\": \"function\", \"function\": \"a\", \"parameters\": {}}",
               "a({})");
    check_both("llama3", "{\"answer\": 42}", "C({\"answer\": 42})");
    check_both("llama3", "{\"name\": \"Bob\"} is JSON", "C({\"name\": \"Bob\"} is JSON)");
    check_both("llama3", "I call:\n{\"name\": \"now\", \"parameters\": {}}", "C(I call:)now({})");
    check_both("llama3", "As in:\n{\"name\": \"other\", \"parameters\": {}}",
               "C(As in:\n{\"name\": \"other\", \"parameters\": {}})");
    check_both("llama3", "<|python_tag|>print(1)", "C(<|python_tag|>print(1))");
}

static void test_mistral(void **state)
{
    (void)state;
    check_both("mistral-list",
               "[TOOL_CALLS][{\"name\": \"a\", \"arguments\": {\"x\": 1}, \"id\": \"abcdefghi\"}, "
               "{\"name\": \"b\", \"arguments\": {}}]",
               "a({\"x\": 1})b({})");
    check_both("mistral", "[TOOL_CALLS]a[ARGS]{\"x\": 1}[TOOL_CALLS]b[ARGS]{}",
               "a({\"x\": 1})b({})");
    check_both("mistral", "ok [TOOL_CALLS]a[CALL_ID]abcdefghi[ARGS]{}", "C(ok)a({})");
    check_both("mistral", "[TOOL_CALLS]a{\"x\": 1}", "a({\"x\": 1})");
    check_both("mistral", "[TOOL_CALLS]a b[ARGS]{}", "C([TOOL_CALLS]a b[ARGS]{})");
    check_both("mistral", "[THINK]hm[/THINK]Yes [1] it is", "R(hm)C(Yes [1] it is)");
    check_both("mistral", "[TOOL_CALLS]a[ARGS]12", "C([TOOL_CALLS]a[ARGS]12)");
}

static void test_harmony(void **state)
{
    (void)state;
    check_both("harmony",
               "<|channel|>analysis<|message|>User asks.<|end|><|start|>assistant<|channel|>final"
               "<|message|>Hello.<|return|>",
               "R(User asks.)C(Hello.)");
    check_both("harmony",
               "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>"
               "commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\":\"Oslo\"}"
               "<|call|>",
               "R(Need it.)get_weather({\"city\":\"Oslo\"})");
    check_both("harmony",
               " to=functions.now<|channel|>commentary json<|message|>{}<|call|><|start|>assistant"
               "<|channel|>commentary<|message|>Wait.",
               "now({})C(Wait.)");
    check_both("harmony", "plain <b>text</b>", "C(plain <b>text</b>)");
    check("harmony", 0, "<|channel|>commentary to=functions.now<|message|>{}", "C({})");
    check_both("harmony", "<|channel|>commentary to=python<|message|>print(1)<|call|>",
               "C(<|channel|>commentary to=python<|message|>print(1))");
}

static void test_xml(void **state)
{
    (void)state;
    check_both("qwen3-coder",
               "Sure.\n<tool_call>\n<function=get_weather>\n<parameter=city>\n007 \"x\"\\\n"
               "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=hourly>\nTrue\n"
               "</parameter>\n<parameter=unit>\nnull\n</parameter>\n<parameter=other>\n[1]\n"
               "</parameter>\n</function>\n</tool_call>",
               "C(Sure.)get_weather({\"city\": \"007 \\\"x\\\"\\\\\", \"days\": 3, \"hourly\": "
               "true, \"unit\": null, \"other\": [1]})");
    check_both("qwen3-coder",
               "<tool_call><function=now></function></tool_call>\n<tool_call><function=now>\n"
               "</tool_call>",
               "now({})now({})");
    check_both("qwen3-coder",
               "<function=get_weather>\n<parameter=city>\n\na\n\nb</p>\n\n</parameter>\n</function>"
               "\n</tool_call>",
               "get_weather({\"city\": \"\\na\\n\\nb</p>\\n\"})");
    check("qwen3-coder", WITH_TOOLS, "<tool_call><function=now> what",
          "C(<tool_call><function=now> what)");
    check_both("glm",
               "<think>hm</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Oslo"
               "</arg_value>\n<arg_key>days</arg_key><arg_value>2</arg_value>\n</tool_call>",
               "R(hm)get_weather({\"city\": \"Oslo\", \"days\": 2})");
    check_both("glm", "<tool_call>now</tool_call>", "now({})");
    check_both(
        "minimax-m2",
        "<minimax:tool_call>\n<invoke name=\"now\">\n</invoke>\n<invoke name=\"get_weather\">"
        "\n<parameter name=\"city\">5</parameter>\n</invoke>\n</minimax:tool_call>",
        "now({})get_weather({\"city\": \"5\"})");
    check_both("seed-oss",
               "<seed:think>x</seed:think><seed:tool_call>\n<function=get_weather>\n"
               "<parameter=days>7</parameter>\n</function>\n</seed:tool_call>",
               "R(x)get_weather({\"days\": 7})");
    check_both(
        "deepseek-v3.2",
        "<｜DSML｜function_calls>\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" "
        "string=\"true\">1</｜DSML｜parameter>\n<｜DSML｜parameter name=\"b\" "
        "string=\"false\">1</｜DSML｜parameter>\n</｜DSML｜invoke>\n</｜DSML｜function_calls>",
        "f({\"a\": \"1\", \"b\": 1})");
}

static void test_named(void **state)
{
    (void)state;
    check_both(
        "deepseek-r1",
        "<think>\nhm\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        "now\n```json\n{\"x\": "
        "1}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>"
        "b\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "R(hm)now({\"x\": 1})b({})");
    check("deepseek-v3.1", WITH_TOOLS | IN_REASONING,
          "hm<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>now<｜tool▁sep｜>{\"x\": "
          "1}<｜tool▁call▁end｜>"
          "<｜tool▁calls▁end｜>",
          "R(hm)now({\"x\": 1})");
    check_both("kimi-k2",
               "Ok.<|tool_calls_section_begin|><|tool_call_begin|>functions.now:0"
               "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_call_begin|>functions.b:1"
               "<|tool_call_argument_begin|>{\"x\":1}<|tool_call_end|><|tool_calls_section_end|>",
               "C(Ok.)now({})b({\"x\":1})");
    check_both("functionary-v3.1", "<function=now>{\"x\":1}</function> done",
               "now({\"x\":1})C(done)");
}

static void test_lists(void **state)
{
    (void)state;
    check_both("granite", "<|tool_call|>[{\"name\":\"a\",\"arguments\":{}}]", "a({})");
    check_both("granite", "<think>x</think>\n<response>Yes.</response>", "R(x)C(Yes.)");
    check_both("granite", "Here is my thought process: x\n\nHere is my response: Yes.",
               "R(x)C(Yes.)");
    check_both("phi4-mini", "<|tool_call|>[{\"name\":\"a\",\"arguments\":{}}]<|/tool_call|>",
               "a({})");
    check_both("phi4-mini", "functools[{\"name\":\"a\",\"arguments\":{\"x\":1}}]", "a({\"x\":1})");
    check_both("command-r7b",
               "<|START_THINKING|>I will.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": "
               "\"0\", \"tool_name\": \"a\", \"parameters\": {\"x\": 1}}\n]<|END_ACTION|>",
               "R(I will.)a({\"x\": 1})");
    check_both("command-r7b", "<|START_RESPONSE|>Hi.<|END_RESPONSE|>", "C(Hi.)");
    check_both("nemotron", "<TOOLCALL>[{\"name\": \"a\", \"arguments\": {}}]</TOOLCALL>", "a({})");
    check_both("tool-calls",
               "<tool_calls>\n{\"name\": \"a\", \"arguments\": {}}\n{\"name\": \"b\", "
               "\"arguments\": {}}\n</tool_calls>",
               "a({})b({})");
}

static int note_begin(void *arg, const struct output_piece *piece)
{
    unsigned *seen = arg;
    seen[piece->kind] += piece->kind == OUTPUT_TOOL_BEGIN ? 1 : (unsigned)piece->len;
    return 0;
}

static void test_streams_early(void **state)
{
    (void)state;
    struct output_parser_options o = {.has_tools = true, .stream_arguments = true};
    struct output_parser *p = NULL;
    unsigned seen[5] = {0};
    static const char text[] = "<tool_call>{\"name\": \"a\", \"arguments\": {\"x\": \"some";
    assert_int_equal(output_parser_new(output_format_by_name("hermes"), &o, &p, NULL), 0);
    assert_int_equal(output_parser_push(p, "Hello <", 7, note_begin, seen), 0);
    assert_int_equal(seen[OUTPUT_CONTENT], 5);
    assert_int_equal(output_parser_push(p, "b>", 2, note_begin, seen), 0);
    assert_int_equal(seen[OUTPUT_CONTENT], 9);
    assert_int_equal(output_parser_push(p, text, strlen(text), note_begin, seen), 0);
    assert_int_equal(seen[OUTPUT_TOOL_BEGIN], 1);
    assert_int_equal(seen[OUTPUT_TOOL_ARGUMENTS], strlen("{\"x\": \"some"));
    assert_int_equal(output_parser_n_calls(p), 1);
    output_parser_free(p);
    output_parser_free(NULL);
}

static void test_bounds(void **state)
{
    (void)state;
    struct transcript t;
    struct buf text, expected;
    buf_init(&t.text, 8u << 20);
    buf_init(&text, 8u << 20);
    buf_init(&expected, 8u << 20);
    /* The call after the last one allowed is text. */
    for (int i = 0; i < LIMIT_OUTPUT_CALLS + 1; i++)
        buf_append_str(&text, "<tool_call>{\"name\":\"a\"}</tool_call>");
    for (int i = 0; i < LIMIT_OUTPUT_CALLS; i++)
        buf_append_str(&expected, "a({})");
    buf_append_str(&expected, "C(<tool_call>{\"name\":\"a\"}</tool_call>)");
    parse("hermes", WITH_TOOLS, buf_str(&text), 0, 7, NULL, &t);
    assert_string_equal(buf_str(&t.text), buf_str(&expected));
    /* A call that never ends is text, all of it. */
    buf_reset(&text);
    buf_reset(&expected);
    buf_append_str(&text, "<tool_call>{\"name\":\"a\",\"arguments\":{\"x\":\"");
    for (int i = 0; i < LIMIT_OUTPUT_CALL_BYTES / 16 + 1000; i++)
        buf_append_str(&text, "<tool_call>{..}.");
    buf_printf(&expected, "C(%s)", buf_str(&text));
    for (size_t step = 1000; step <= 1000000; step *= 1000) {
        buf_reset(&t.text);
        parse("hermes", WITH_TOOLS, buf_str(&text), 0, step, NULL, &t);
        assert_true(t.text.len == expected.len &&
                    memcmp(t.text.data, expected.data, expected.len) == 0);
    }
    buf_done(&t.text);
    buf_done(&text);
    buf_done(&expected);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_hermes),  cmocka_unit_test(test_hermes_sloppy),
        cmocka_unit_test(test_broken),  cmocka_unit_test(test_llama3),
        cmocka_unit_test(test_mistral), cmocka_unit_test(test_harmony),
        cmocka_unit_test(test_xml),     cmocka_unit_test(test_named),
        cmocka_unit_test(test_lists),   cmocka_unit_test(test_streams_early),
        cmocka_unit_test(test_bounds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
