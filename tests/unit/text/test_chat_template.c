/* Chat templates: what they print is compared with Jinja2 in tests/vectors; here are errors, bounds
 * and hostile input. */
#include "base/limits.h"
#include "text/chat_template.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { NOW_S = 1753628645 }; /* 2025-07-27 15:04:05 UTC */

static int render(const char *source, const char *context, size_t max_len, struct buf *out,
                  struct error *err)
{
    struct chat_template *t = NULL;
    error_clear(err);
    buf_init(out, max_len);
    int rc = chat_template_new(source, strlen(source), &t, err);
    if (rc == 0)
        rc = chat_template_render(t, context, strlen(context), NOW_S, out, err);
    chat_template_free(t);
    return rc;
}

static void expect_text(const char *source, const char *context, const char *text)
{
    struct error err;
    struct buf out;
    if (render(source, context, 4096, &out, &err) != 0)
        fail_msg("%s: %s", source, err.message);
    assert_string_equal(buf_str(&out), text);
    buf_done(&out);
}

static void expect_error(const char *source, const char *context, int code, const char *part)
{
    struct error err;
    struct buf out;
    int rc = render(source, context, LIMIT_PROMPT_BYTES, &out, &err);
    if (rc != code || err.code != code || strstr(err.message, part) == NULL)
        fail_msg("%.200s: %d (%s) instead of %d (%s)", source, rc, err.message, code, part);
    assert_int_equal(out.len, 0);
    buf_done(&out);
}

static void test_renders(void **state)
{
    (void)state;
    const char *context =
        "{\"messages\":[{\"role\":\"user\",\"content\":\"H\\u00e9 \\ud83d\\ude00\"}],"
        "\"add_generation_prompt\":true,\"tools\":null,\"f\":1.0}";
    expect_text("{% for m in messages %}<{{ m.role }}>{{ m['content'] }}{% endfor %}\n"
                "{% if add_generation_prompt %}\n<assistant>{% endif %}",
                context, "<user>H\xc3\xa9 \xf0\x9f\x98\x80<assistant>");
    expect_text("{{ tools }} {{ f }} {{ true }} {{ messages }}", context,
                "None 1.0 True [{'role': 'user', 'content': 'H\xc3\xa9 \xf0\x9f\x98\x80'}]");
    expect_text("{{ strftime_now('%d %b %Y, %H:%M') }}", "{}", "27 Jul 2025, 15:04");
    expect_text("", "{}", "");
}

static void test_appends(void **state)
{
    (void)state;
    struct error err = {0};
    struct buf out;
    struct chat_template *t = NULL;
    buf_init(&out, 64);
    buf_append_str(&out, "before ");
    assert_int_equal(chat_template_new("{{ x }}", 7, &t, &err), 0);
    assert_int_equal(chat_template_render(t, "{\"x\":1}", 7, 0, &out, &err), 0);
    assert_int_equal(chat_template_render(t, "{\"x\":2}", 7, 0, &out, &err), 0);
    assert_string_equal(buf_str(&out), "before 12");
    chat_template_free(t);
    chat_template_free(NULL);
    buf_done(&out);
}

static void test_refuses(void **state)
{
    (void)state;
    struct error err;
    struct buf out;
    assert_int_equal(
        render("{{ raise_exception('Roles must alternate: ' ~ 5) }}", "{}", 64, &out, &err),
        E_INVALID);
    assert_string_equal(err.message, "Roles must alternate: 5"); /* nothing around it */
    buf_done(&out);
    expect_error("{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{% set x = m() %}",
                 "{}", E_INVALID, "deep");
}

static void test_bad_templates(void **state)
{
    (void)state;
    expect_error("a\nb {% if %}", "{}", E_FORMAT, "line 2");
    expect_error("{% for x in y %}", "{}", E_FORMAT, "line 1");
    expect_error("{{ 'open", "{}", E_FORMAT, "line 1");
    expect_error("\n\n{{ a.b.c }}", "{}", E_FORMAT, "line 3");
    expect_error("{{ x | nosuch }}", "{}", E_FORMAT, "nosuch");
    expect_error("{% include 'other' %}", "{}", E_FORMAT, "not supported");
    expect_error("{% extends 'other' %}", "{}", E_FORMAT, "not supported");
    expect_error("{{ 1 / 0 }}", "{}", E_FORMAT, "zero");
    expect_error("\xff\xfe", "{}", E_FORMAT, "UTF-8");
    expect_error("{{ m.append(1) }}", "{\"m\":[]}", E_FORMAT, "append");
}

static void test_bad_contexts(void **state)
{
    (void)state;
    expect_error("x", "", E_FORMAT, "context");
    expect_error("x", "[]", E_FORMAT, "context");
    expect_error("x", "{\"a\":1} x", E_FORMAT, "context");
    expect_error("x", "{\"a\":\"\\ud800\"}", E_FORMAT, "context");
    expect_error("x", "{\"a\":\"\xc3\"}", E_FORMAT, "UTF-8");
    expect_error("x", "{\"a\":nan}", E_FORMAT, "context");
    static char deep[200001];
    memset(deep, '[', sizeof(deep) - 1);
    memcpy(deep, "{\"a\":", 5);
    expect_error("{{ a }}", deep, E_FORMAT, "recursion");
    expect_text("{{ messages | tojson }}", "{\"messages\":{\"__class__\":\"x\",\"self\":{}}}",
                "{\"__class__\": \"x\", \"self\": {}}");
}

/* Templates that never end, or want more memory than there is. */
static void test_explosions(void **state)
{
    (void)state;
    static const char *const sources[] = {
        "{% for i in range(10**9) %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}0123456789{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% macro a() %}{{ b() }}{% endmacro %}{% macro b() %}{{ a() }}{{ a() }}{% endmacro %}{{ "
        "a() }}",
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) "
        "}}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor "
        "%}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor "
        "%}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor "
        "%}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor "
        "%}{{ n.s }}",
        "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] %}{% endfor "
        "%}{{ n.s == n.s }}",
        "{% set n = namespace(s={}) %}{% for i in range(99) %}{% set n.s = {1: n.s, 2: n.s} %}{% "
        "endfor %}{{ n.s | tojson }}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = n.s.replace('b', n.s) "
        "%}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set n.s = [n.s, n.s] | join "
        "%}{% endfor %}",
        "{% set n = namespace(s='ab') %}{% for i in range(99) %}{% set x %}{{ n.s }}{{ n.s }}{% "
        "endset %}{% set n.s = x %}{% endfor %}",
        "{{ 'x' * 10**12 }}",
        "{{ ('x' * 10**8) ~ ('x' * 10**8) ~ ('x' * 10**8) ~ ('x' * 10**8) ~ ('x' * 10**8) ~ ('x' * "
        "10**8) }}",
        "{{ [1] * 10**12 }}",
        "{{ 'x'.center(10**12) }}",
        "{{ 'x' | indent(10**12, true) }}",
        "{{ [1] | tojson(indent=10**12) }}",
        "{{ [1] | batch(10**12, 0) | list }}",
        "{{ '%999999999d' % 1 }}",
        "{{ '{:>999999999}'.format(1) }}",
        "{{ '%.99999999999999999999f' | format(1.0) }}",
        "{% for a in range(99999) %}{% set x = ('y' * 999999).upper() %}{% endfor %}",
        "{% set x = 'y' * 999999 %}{% for a in range(99999) %}{% if 'z' in x %}{% endif %}{% "
        "endfor %}",
        "{% set x = 'y' * 999999 %}{% for a in range(99999) %}{% if x | length %}{% endif %}{% "
        "endfor %}",
        "{% set x = range(99999) | list %}{% for a in range(99999) %}{{ (x | sort)[0] }}{% endfor "
        "%}",
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    };
    for (size_t i = 0; i < sizeof(sources) / sizeof(sources[0]); i++)
        expect_error(sources[i], "{}", E_LIMIT, "");
}

static void test_output_limit(void **state)
{
    (void)state;
    struct error err;
    struct buf out;
    assert_int_equal(render("0123456789", "{}", 10, &out, &err), 0);
    buf_done(&out);
    assert_int_equal(render("0123456789{{ 1 }}", "{}", 10, &out, &err), E_LIMIT);
    assert_int_equal(out.len, 0);
    buf_done(&out);
}

/* head, then n times middle, then n times end: source text nested as deep as the size limit allows.
 */
static void expect_deep(const char *head, const char *middle, const char *end, int code)
{
    size_t n = ((size_t)256 * 1024 - strlen(head) - 16) / (strlen(middle) + strlen(end));
    struct error err;
    struct buf source, out;
    buf_init(&source, (size_t)1 << 20);
    buf_append_str(&source, head);
    for (size_t i = 0; i < n; i++)
        buf_append_str(&source, middle);
    for (size_t i = 0; i < n; i++)
        buf_append_str(&source, end);
    buf_append_str(&source, strncmp(head, "{{", 2) == 0 ? "}}" : "");
    int rc = render(buf_str(&source), "{\"a\":{}}", 4096, &out, &err);
    if (code != 1 ? rc != code : rc == E_INTERNAL)
        fail_msg("%s%s: %d (%s)", head, middle, rc, err.message);
    buf_done(&out);
    buf_done(&source);
}

static void test_deep_sources(void **state)
{
    (void)state;
    enum { ANY = 1 }; /* an answer of whatever kind: the stack must hold */
    expect_deep("{{ ", "(", ")", E_FORMAT);
    expect_deep("{{ ", "[", "]", E_FORMAT);
    expect_deep("{{ 1", "~1", "", ANY);
    expect_deep("{{ 1", "+1", "", ANY);
    expect_deep("{{ 1", "<1", "", ANY);
    expect_deep("{{ a", " or a", "", ANY);
    expect_deep("{{ a", "|e", "", ANY);
    expect_deep("{{ a", ".a", "", ANY);
    expect_deep("{{ a", "[0]", "", ANY);
    expect_deep("{{ a", "()", "", ANY);
    expect_deep("{{ ", "not ", "", ANY);
    expect_deep("{{ ", "-", "", ANY);
    expect_deep("{{ 1", " if 1 else 1", "", ANY);
    expect_deep("{% if 1 %}", "{% elif 1 %}", "", ANY);
    expect_deep("", "{% if 1 %}", "{% endif %}", ANY);
    expect_deep("", "{% filter e %}", "{% endfilter %}", ANY);
    expect_deep("{{ a(", "1,", "", ANY);
}

/* Values inside each other as deep as the steps allow: freeing them must not overflow a stack. */
static void test_deep_values(void **state)
{
    (void)state;
    static const char *const builders[] = {"[n.s]", "{1: n.s}", "n.s | batch(1) | list",
                                           "[n.s, 1] | map('default') | list"};
    for (size_t i = 0; i < sizeof(builders) / sizeof(builders[0]); i++) {
        char source[512];
        /* a plain variable in one scope: a namespace refuses the depth long before */
        snprintf(source, sizeof(source),
                 "{%% set n = namespace(s=[1]) %%}{%% for i in range(99999) %%}{%% set n.s = %s "
                 "%%}{%% endfor %%}",
                 builders[i]);
        expect_error(source, "{}", E_LIMIT, "");
    }
    struct error err;
    struct buf source, out;
    buf_init(&source, (size_t)1 << 20);
    buf_append_str(&source, "{% set a = [1] %}");
    while (source.len < (size_t)256 * 1024 - 64)
        buf_append_str(&source, "{%set a=[a]%}");
    assert_int_equal(render(buf_str(&source), "{}", 64, &out, &err), 0);
    buf_done(&out);
    buf_append_str(&source, "{{ a }}");
    assert_int_equal(render(buf_str(&source), "{}", 64, &out, &err), E_LIMIT);
    buf_done(&out);
    buf_done(&source);
    /* a macro that calls itself makes them deeper than the source is long */
    expect_error("{% macro m(a, k) %}{% if k %}{{ m([a], k - 1) }}{% endif %}{% endmacro %}{{ "
                 "m([], 9999) }}",
                 "{}", E_LIMIT, "recursion");
}

static void test_cycles(void **state)
{
    (void)state;
    expect_error("{% set n = namespace() %}{% set n.n = n %}", "{}", E_FORMAT, "namespace");
    expect_error("{% set n = namespace() %}{% set n.n = [{'a': n}] %}", "{}", E_FORMAT,
                 "namespace");
    expect_error("{% set n = namespace() %}{% macro m() %}{{ n }}{% endmacro %}{% set n.m = m %}",
                 "{}", E_FORMAT, "macro");
}

static void test_source_limit(void **state)
{
    (void)state;
    static char source[256 * 1024 + 2];
    memset(source, 'x', sizeof(source) - 1);
    expect_error(source, "{}", E_LIMIT, "262144");
    source[sizeof(source) - 2] = '\0';
    struct error err;
    struct buf out;
    assert_int_equal(render(source, "{}", sizeof(source), &out, &err), 0);
    assert_int_equal(out.len, 256 * 1024);
    buf_done(&out);
}

static void *render_many(void *arg)
{
    const struct chat_template *t = arg;
    for (int i = 0; i < 20; i++) {
        struct error err = {0};
        struct buf out;
        char context[32], want[32];
        int n = snprintf(context, sizeof(context), "{\"x\":%d}", i);
        snprintf(want, sizeof(want), "<%d>", i);
        buf_init(&out, 64);
        if (chat_template_render(t, context, (size_t)n, NOW_S, &out, &err) != 0 ||
            strcmp(buf_str(&out), want) != 0)
            arg = NULL;
        buf_done(&out);
    }
    return arg;
}

static void test_threads(void **state)
{
    (void)state;
    enum { N_THREADS = 4 };
    struct error err = {0};
    struct chat_template *t = NULL;
    pthread_t threads[N_THREADS];
    assert_int_equal(chat_template_new("<{{ x }}>", 9, &t, &err), 0);
    for (int i = 0; i < N_THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, render_many, t), 0);
    for (int i = 0; i < N_THREADS; i++) {
        void *result = NULL;
        pthread_join(threads[i], &result);
        assert_ptr_equal(result, t);
    }
    chat_template_free(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_renders),      cmocka_unit_test(test_appends),
        cmocka_unit_test(test_refuses),      cmocka_unit_test(test_bad_templates),
        cmocka_unit_test(test_bad_contexts), cmocka_unit_test(test_explosions),
        cmocka_unit_test(test_output_limit), cmocka_unit_test(test_deep_sources),
        cmocka_unit_test(test_deep_values),  cmocka_unit_test(test_cycles),
        cmocka_unit_test(test_source_limit), cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
