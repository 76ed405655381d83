/* Text that is drawn at random from what a grammar allows follows the grammar, whatever the
 * vocabulary; what is wrong with a grammar is said. */
#include "base/clock.h"
#include "base/limits.h"
#include "base/rng.h"
#include "text/grammar.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "text/json_schema.h"
#include "text/tiny_vocab.h"

enum {
    TRIALS = 6,       /* texts of each schema */
    FREE_TOKENS = 80, /* drawn evenly; from then on what closes is preferred */
    TOKENS_MAX = 2000,
    MASK_BYTES_MAX = LIMIT_VOCAB_TOKENS / 8,
};

static const char *const schemas[] = {
    "true",
    "{}",
    "{\"type\":\"object\"}",
    "{\"type\":\"string\"}",
    "{\"type\":\"integer\"}",
    "{\"type\":\"number\"}",
    "{\"type\":\"boolean\"}",
    "{\"type\":\"null\"}",
    "{\"type\":[\"string\",\"null\"]}",
    "{\"type\":[\"integer\",\"boolean\"]}",
    "{\"enum\":[\"red\",\"green\",3,null,true]}",
    "{\"enum\":[{\"a\":[1,2]},\"\\u00e4\\\"\\n\"]}",
    "{\"const\":\"only \\\\ this\"}",
    "{\"type\":\"string\",\"minLength\":3,\"maxLength\":5}",
    "{\"type\":\"string\",\"maxLength\":0}",
    "{\"type\":\"string\",\"pattern\":\"^[A-Z]{2}-[0-9]{3,4}$\"}",
    "{\"type\":\"string\",\"pattern\":\"^(yes|no)( maybe)*$\"}",
    "{\"type\":\"string\",\"pattern\":\"^[x-z]*ab+c\"}",
    "{\"type\":\"integer\",\"minimum\":0,\"maximum\":255}",
    "{\"type\":\"integer\",\"minimum\":-17,\"exclusiveMaximum\":4}",
    "{\"type\":\"integer\",\"exclusiveMinimum\":99}",
    "{\"type\":\"integer\",\"minimum\":10,\"maximum\":5000,\"multipleOf\":25}",
    "{\"type\":\"number\",\"minimum\":-1.5,\"maximum\":2.25}",
    "{\"type\":\"number\",\"exclusiveMinimum\":0,\"exclusiveMaximum\":1}",
    "{\"type\":\"array\"}",
    "{\"type\":\"array\",\"items\":{\"type\":\"integer\"}}",
    "{\"type\":\"array\",\"items\":{\"type\":\"string\",\"maxLength\":3},\"minItems\":2,"
    "\"maxItems\":4}",
    "{\"type\":\"array\",\"prefixItems\":[{\"type\":\"string\",\"maxLength\":4},{\"type\":"
    "\"boolean\"}],\"items\":{\"type\":\"null\"},\"minItems\":2,\"maxItems\":5}",
    "{\"type\":\"array\",\"prefixItems\":[{\"const\":1},{\"const\":2}],\"items\":false,"
    "\"minItems\":2}",
    "{\"type\":\"array\",\"items\":{\"type\":\"array\",\"items\":{\"type\":\"boolean\"},"
    "\"maxItems\":2},\"maxItems\":3}",
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":"
    "\"integer\"}},\"required\":[\"name\",\"age\"],\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"name\":{\"type\":\"string\"},\"age\":{\"type\":"
    "\"integer\"}},\"required\":[\"age\"]}",
    "{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"boolean\"},\"b\":{\"type\":"
    "\"boolean\"},\"c\":{\"type\":\"boolean\"}},\"additionalProperties\":false}",
    "{\"type\":\"object\",\"additionalProperties\":{\"type\":\"integer\"}}",
    "{\"type\":\"object\",\"properties\":{\"k\":{\"type\":\"string\"}},\"additionalProperties\":"
    "{\"type\":\"boolean\"},\"required\":[\"k\"]}",
    "{\"type\":\"object\",\"properties\":{},\"additionalProperties\":false}",
    "{\"type\":\"object\",\"properties\":{\"address\":{\"type\":\"object\",\"properties\":{"
    "\"street\":{\"type\":\"string\"},\"zip\":{\"type\":\"string\",\"pattern\":\"^[0-9]{5}$\"}},"
    "\"required\":[\"street\",\"zip\"],\"additionalProperties\":false}},\"required\":[\"address\"],"
    "\"additionalProperties\":false}",
    "{\"anyOf\":[{\"type\":\"integer\"},{\"type\":\"string\",\"maxLength\":2}]}",
    "{\"anyOf\":[{\"type\":\"object\",\"properties\":{\"kind\":{\"const\":\"a\"},\"x\":{\"type\":"
    "\"integer\"}},\"required\":[\"kind\",\"x\"],\"additionalProperties\":false},{\"type\":"
    "\"object\",\"properties\":{\"kind\":{\"const\":\"b\"},\"y\":{\"type\":\"array\",\"items\":{"
    "\"type\":\"null\"}}},\"required\":[\"kind\",\"y\"],\"additionalProperties\":false}]}",
    "{\"oneOf\":[{\"type\":\"boolean\"},{\"type\":\"null\"}]}",
    "{\"allOf\":[{\"type\":\"integer\",\"minimum\":3},{\"maximum\":30}]}",
    "{\"allOf\":[{\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}},\"required\":["
    "\"a\"]},{\"type\":\"object\",\"properties\":{\"b\":{\"type\":\"boolean\"}},\"required\":["
    "\"b\"]}]}",
    "{\"$defs\":{\"point\":{\"type\":\"array\",\"items\":{\"type\":\"integer\"},\"minItems\":2,"
    "\"maxItems\":2}},\"type\":\"object\",\"properties\":{\"from\":{\"$ref\":\"#/$defs/point\"},"
    "\"to\":{\"$ref\":\"#/$defs/point\"}},\"required\":[\"from\",\"to\"],"
    "\"additionalProperties\":false}",
    "{\"$defs\":{\"tree\":{\"type\":\"object\",\"properties\":{\"v\":{\"type\":\"integer\"},"
    "\"kids\":{\"type\":\"array\",\"items\":{\"$ref\":\"#/$defs/tree\"}}},\"required\":[\"v\","
    "\"kids\"],\"additionalProperties\":false}},\"$ref\":\"#/$defs/tree\"}",
    "{\"type\":\"object\",\"properties\":{\"next\":{\"anyOf\":[{\"type\":\"null\"},{\"$ref\":"
    "\"#\"}]}},\"required\":[\"next\"],\"additionalProperties\":false}",
    "{\"definitions\":{\"color\":{\"enum\":[\"red\",\"blue\"]}},\"type\":\"array\",\"items\":{"
    "\"$ref\":\"#/definitions/color\"},\"minItems\":1}",
    "{\"type\":\"object\",\"properties\":{\"\\u00fcber\":{\"type\":\"string\"},\"a b\\\"c\":{"
    "\"type\":\"null\"}},\"required\":[\"\\u00fcber\",\"a b\\\"c\"],\"additionalProperties\":"
    "false}",
    "{\"type\":\"object\",\"properties\":{\"steps\":{\"type\":\"array\",\"items\":{\"type\":"
    "\"object\",\"properties\":{\"explanation\":{\"type\":\"string\"},\"output\":{\"type\":"
    "\"string\"}},\"required\":[\"explanation\",\"output\"],\"additionalProperties\":false}},"
    "\"final_answer\":{\"type\":\"string\"}},\"required\":[\"steps\",\"final_answer\"],"
    "\"additionalProperties\":false}",
};

/* ---- vocabularies ---- */

struct place { /* what there is to draw from */
    struct tokenizer *tokenizer;
    struct grammar_vocab *vocab;
    uint32_t n_bytes;
};

/* Bytes, and tokens that span the parts of JSON text. */
static struct tokenizer *open_tiny(void)
{
    static const char *const pairs[][2] = {
        {"\"", ":"},  {"\"", ","},  {"{", "\""},   {"\"", "}"}, {"}", "}"}, {"}", ","},
        {"1", "2"},   {"12", "3"},  {"\",", "\""}, {"[", "["},  {"]", "]"}, {"t", "rue"},
        {"nul", "l"}, {"\\", "\""}, {"\\", "u"},   {"\"", "]"}, {"0", "."}, {"-", "1"}};
    struct tiny tiny;
    struct tokenizer *t = NULL;
    tiny_bpe(&tiny, "gpt-2");
    for (size_t i = 0; i < sizeof(pairs) / sizeof(pairs[0]); i++)
        tiny_rule(&tiny, pairs[i][0], pairs[i][1]);
    tiny_finish(&tiny);
    assert_int_equal(tiny_open(&tiny, &t, NULL), 0);
    tiny_done(&tiny);
    return t;
}

static struct tokenizer *open_model(const char *name)
{
    char path[4096];
    struct error err = {0};
    struct gguf_file *f = NULL;
    struct tokenizer *t = NULL;
    snprintf(path, sizeof(path), "%s/%s", getenv("SHOAL_TEST_MODELS"), name);
    if (gguf_file_open(path, &f, &err) != 0 || tokenizer_new(f, &t, &err) != 0)
        fail_msg("%s: %s", path, err.message);
    gguf_file_close(f);
    return t;
}

static struct place make_place(struct tokenizer *t)
{
    struct place p = {.tokenizer = t, .n_bytes = (tokenizer_n_vocab(t) + 7) / 8};
    struct error err = {0};
    if (grammar_vocab_new(t, &p.vocab, &err) != 0)
        fail_msg("%s", err.message);
    return p;
}

static void done_place(struct place *p)
{
    grammar_vocab_free(p->vocab);
    tokenizer_free(p->tokenizer);
}

static struct grammar *compile(const struct place *p, enum grammar_kind kind, const char *text)
{
    struct grammar *g = NULL;
    struct error err = {0};
    if (grammar_compile(p->vocab, kind, text, strlen(text), &g, &err) != 0)
        fail_msg("%s: %s", text, err.message);
    return g;
}

/* ---- drawing ---- */

static bool is_closing(const struct tokenizer *t, token_id id)
{
    size_t len;
    const char *piece = tokenizer_piece(t, id, false, &len);
    for (size_t i = 0; i < len; i++)
        if (strchr("\"]}", piece[i]) == NULL)
            return false;
    return len > 0 || tokenizer_is_end(t, id);
}

/* One of the allowed tokens; -1: none. */
static token_id draw(const struct place *p, const uint8_t *mask, bool prefers_closing,
                     double uniform)
{
    static token_id all[LIMIT_VOCAB_TOKENS];
    uint32_t n = 0;
    for (int pass = prefers_closing ? 0 : 1; pass < 2 && n == 0; pass++)
        for (uint32_t w = 0; w < p->n_bytes; w++)
            for (unsigned bits = mask[w]; bits != 0; bits &= bits - 1) {
                token_id id = (token_id)(w * 8 + (uint32_t)__builtin_ctz(bits));
                if (pass == 1 || is_closing(p->tokenizer, id))
                    all[n++] = id;
            }
    return n > 0 ? all[(uint32_t)(uniform * n)] : -1;
}

struct figures {
    uint64_t mask_ns, mask_ns_max, n_tokens;
};

/* Draws a text until its end. */
static void generate(const struct place *p, struct grammar *g, uint64_t seed, struct buf *text,
                     struct figures *figures)
{
    static uint8_t mask[MASK_BYTES_MAX];
    struct error err = {0};
    for (uint32_t n = 0; n < TOKENS_MAX; n++) {
        bool is_over = false, could_end = grammar_may_end(g);
        uint64_t start = clock_now_ns();
        if (grammar_mask(g, mask, p->n_bytes, &is_over, &err) != 0)
            fail_msg("%s", err.message);
        uint64_t ns = clock_now_ns() - start;
        figures->mask_ns += ns;
        figures->mask_ns_max = ns > figures->mask_ns_max ? ns : figures->mask_ns_max;
        figures->n_tokens++;
        token_id id = draw(p, mask, n > FREE_TOKENS, rng_uniform(seed, n, 7));
        assert_int_equal(is_over, id < 0);
        token_id end = tokenizer_eos(p->tokenizer);
        if (id >= 0)
            assert_int_equal(could_end, mask[end / 8] >> end % 8 & 1);
        if (id < 0 || tokenizer_is_end(p->tokenizer, id)) {
            assert_true(could_end);
            return;
        }
        size_t len;
        const char *piece = tokenizer_piece(p->tokenizer, id, false, &len);
        assert_true(len > 0);
        buf_append(text, piece, len);
        if (grammar_accept(g, id, &err) != 0)
            fail_msg("%s: %s", buf_str(text), err.message);
    }
    fail_msg("no end after %d tokens: %s", TOKENS_MAX, buf_str(text));
}

static void check_json(const char *schema_text, const struct buf *text)
{
    json_error_t e;
    json_t *schema = json_loads(schema_text, JSON_DECODE_ANY, NULL);
    json_t *value = json_loadb(buf_str(text), text->len, JSON_DECODE_ANY | JSON_ALLOW_NUL, &e);
    /* What JSON may say and jansson does not take: numbers beyond its types, halves of pairs. */
    if (value == NULL && strstr(e.text, "real number overflow") == NULL &&
        strstr(e.text, "too big") == NULL && strstr(e.text, "invalid Unicode") == NULL &&
        strstr(e.text, "surrogate") == NULL)
        fail_msg("%s\ngave %s\n%s", schema_text, buf_str(text), e.text);
    if (value != NULL && !schema_accepts(schema, schema, value))
        fail_msg("%s\naccepts %s", schema_text, buf_str(text));
    json_decref(value);
    json_decref(schema);
}

static void check_schemas(struct place *p, const char *name)
{
    struct figures figures = {0};
    uint64_t compile_ns = 0;
    size_t n = sizeof(schemas) / sizeof(schemas[0]);
    for (size_t i = 0; i < n; i++)
        for (uint64_t trial = 0; trial < TRIALS; trial++) {
            struct buf text;
            buf_init(&text, 1 << 20);
            uint64_t start = clock_now_ns();
            struct grammar *g = compile(p, GRAMMAR_JSON_SCHEMA, schemas[i]);
            compile_ns += clock_now_ns() - start;
            generate(p, g, i * TRIALS + trial, &text, &figures);
            check_json(schemas[i], &text);
            grammar_free(g);
            buf_done(&text);
        }
    print_message("%s: %zu schemas; compiling %.0f us, a mask %.1f us (at most %.0f)\n", name, n,
                  (double)compile_ns / (double)(n * TRIALS) / 1e3,
                  (double)figures.mask_ns / (double)figures.n_tokens / 1e3,
                  (double)figures.mask_ns_max / 1e3);
}

static void random_text_follows_its_schema(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    check_schemas(&p, "bytes");
    done_place(&p);
}

static void real_vocabularies(void **state)
{
    static const char *const names[] = {"smollm2.gguf", "gemma3.gguf"};
    (void)state;
    if (getenv("SHOAL_TEST_MODELS") == NULL)
        skip();
    for (size_t i = 0; i < 2; i++) {
        struct tokenizer *t = open_model(names[i]);
        uint64_t start = clock_now_ns();
        struct place p = make_place(t);
        print_message("%s: %u tokens prepared in %.0f ms\n", names[i], tokenizer_n_vocab(t),
                      (double)(clock_now_ns() - start) / 1e6);
        check_schemas(&p, names[i]);
        done_place(&p);
    }
}

static void other_kinds(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    struct figures figures = {0};
    for (uint64_t seed = 0; seed < 20; seed++) {
        struct buf text;
        buf_init(&text, 1 << 20);
        struct grammar *g = compile(&p, GRAMMAR_REGEX, "(ab|c/d){2,3}\\.[0-9]+");
        generate(&p, g, seed, &text, &figures);
        json_t *s = json_stringn(buf_str(&text), text.len);
        assert_true(schema_matches("^(ab|c/d){2,3}\\.[0-9]+$", s));
        json_decref(s);
        grammar_free(g);
        buf_reset(&text);

        g = compile(&p, GRAMMAR_LARK, "start: \"<\" word (\" \" word)* \">\"\nword: /[a-c]{1,3}/");
        generate(&p, g, seed, &text, &figures);
        s = json_stringn(buf_str(&text), text.len);
        assert_true(schema_matches("^<[a-c]{1,3}( [a-c]{1,3})*>$", s));
        json_decref(s);
        grammar_free(g);
        buf_reset(&text);

        g = compile(&p, GRAMMAR_JSON_OBJECT, "");
        generate(&p, g, seed, &text, &figures);
        check_json("{\"type\":\"object\"}", &text);
        grammar_free(g);
        buf_done(&text);
    }
    done_place(&p);
}

/* ---- ends and errors ---- */

static bool allows(struct grammar *g, const struct place *p, token_id id)
{
    uint8_t mask[64] = {0};
    bool is_over;
    assert_true(p->n_bytes <= 64);
    assert_int_equal(grammar_mask(g, mask, p->n_bytes, &is_over, NULL), 0);
    return mask[id / 8] >> id % 8 & 1;
}

static void end_exactly_where_the_text_is_complete(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    struct grammar *g = compile(&p, GRAMMAR_REGEX, "a(bc)?");
    uint8_t mask[64];
    bool is_over = true;
    assert_false(grammar_may_end(g));
    assert_false(allows(g, &p, TINY_IM_END));
    assert_true(allows(g, &p, 'a'));
    assert_false(allows(g, &p, 'b'));
    assert_int_equal(grammar_accept(g, 'a', NULL), 0);
    assert_true(grammar_may_end(g));
    assert_true(allows(g, &p, TINY_IM_END));
    assert_false(allows(g, &p, TINY_IM_START));
    assert_true(allows(g, &p, 'b'));
    assert_int_equal(grammar_accept(g, 'b', NULL), 0);
    assert_false(allows(g, &p, TINY_IM_END));
    assert_int_equal(grammar_accept(g, 'c', NULL), 0);
    assert_true(grammar_may_end(g));
    assert_int_equal(grammar_mask(g, mask, p.n_bytes, &is_over, NULL), 0);
    assert_true(is_over);
    for (uint32_t i = 0; i < p.n_bytes; i++)
        assert_int_equal(mask[i], 0);
    grammar_free(g);

    struct error err = {0};
    g = compile(&p, GRAMMAR_REGEX, "abc");
    assert_int_equal(grammar_accept(g, 'x', &err), E_INVALID);
    assert_true(strlen(err.message) > 0);
    grammar_free(g);
    grammar_free(NULL);
    grammar_vocab_free(NULL);
    done_place(&p);
}

static void white_space_ends(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    struct grammar *g = compile(&p, GRAMMAR_JSON_OBJECT, "");
    uint32_t n = 0;
    assert_int_equal(grammar_accept(g, '{', NULL), 0);
    assert_true(allows(g, &p, ' '));
    assert_int_equal(grammar_accept(g, '\n', NULL), 0);
    assert_false(allows(g, &p, '\n'));
    while (n < 100 && allows(g, &p, ' ')) {
        assert_int_equal(grammar_accept(g, ' ', NULL), 0);
        n++;
    }
    assert_int_equal(n, 32);
    grammar_free(g);
    done_place(&p);
}

static void expect_error(const struct place *p, enum grammar_kind kind, const char *text,
                         size_t len, int code, const char *part)
{
    struct grammar *g = NULL;
    struct error err = {0};
    int rc = grammar_compile(p->vocab, kind, text, len, &g, &err);
    if (rc != code || strstr(err.message, part) == NULL)
        fail_msg("%.200s: gave %d \"%s\", not %d \"%s\"", text, rc, err.message, code, part);
    assert_null(g);
}

static void what_is_wrong_is_said(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    static const struct {
        enum grammar_kind kind;
        const char *text;
        int code;
        const char *part;
    } bad[] = {
        {GRAMMAR_JSON_SCHEMA, "", E_INVALID, "not JSON"},
        {GRAMMAR_JSON_SCHEMA, "{\"type\":", E_INVALID, "line 1 column 8"},
        {GRAMMAR_JSON_SCHEMA, "[]", E_INVALID, "must be an object"},
        {GRAMMAR_JSON_SCHEMA, "false", E_INVALID, "allows nothing"},
        {GRAMMAR_JSON_SCHEMA, "{\"type\":\"text\"}", E_INVALID, "text"},
        {GRAMMAR_JSON_SCHEMA, "{\"type\":5}", E_INVALID, ""},
        {GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#/nowhere\"}", E_INVALID, "nowhere"},
        {GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"http://example.org/a\"}", E_INVALID, "example.org"},
        {GRAMMAR_JSON_SCHEMA, "{\"type\":\"string\",\"pattern\":\"(\"}", E_INVALID, ""},
        {GRAMMAR_JSON_SCHEMA, "{\"type\":\"integer\",\"minimum\":5,\"maximum\":4}", E_INVALID,
         "nsatisfiable"},
        {GRAMMAR_JSON_SCHEMA, "{\"type\":\"object\",\"properties\":[]}", E_INVALID, ""},
        {GRAMMAR_JSON_SCHEMA, "{\"x-guidance\":{\"whitespace_pattern\":\"x*\"},\"not\":{}}",
         E_INVALID, ""},
        {GRAMMAR_JSON_SCHEMA, "{\"$ref\":\"#\"}", E_INVALID, "no text follows"},
        {GRAMMAR_LARK, "start: nothing", E_INVALID, "nothing"},
        {GRAMMAR_LARK, "", E_INVALID, ""},
        {GRAMMAR_REGEX, "(", E_INVALID, ""},
        {(enum grammar_kind)9, "", E_INVALID, "kind 9"},
        {GRAMMAR_JSON_SCHEMA, "\xff", E_INVALID, "UTF-8"},
    };
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        expect_error(&p, bad[i].kind, bad[i].text, strlen(bad[i].text), bad[i].code, bad[i].part);
    done_place(&p);
}

/* A text of n bytes that repeats one character. */
static char *repeat(char c, size_t n)
{
    char *text = malloc(n + 1);
    assert_non_null(text);
    memset(text, c, n);
    text[n] = '\0';
    return text;
}

/* Demands on one text multiply. */
static void many_patterns_are_not_combined(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    struct buf schema, lark;
    buf_init(&schema, 65536);
    buf_init(&lark, 65536);
    buf_append_str(&schema, "{\"allOf\":[true");
    buf_append_str(&lark, "start: T\nT: /a/");
    for (int i = 0; i < 30; i++) {
        buf_printf(&schema, ",{\"type\":\"string\",\"pattern\":\"^.*a.{%d}$\"}", i);
        buf_printf(&lark, " & /.*a.{%d}/", i);
    }
    buf_append_str(&schema, "]}");
    expect_error(&p, GRAMMAR_JSON_SCHEMA, buf_str(&schema), schema.len, E_LIMIT, "30 patterns");
    expect_error(&p, GRAMMAR_LARK, buf_str(&lark), lark.len, E_LIMIT, "more than 8");
    buf_done(&schema);
    buf_done(&lark);
    done_place(&p);
}

static void work_is_bounded(void **state)
{
    (void)state;
    struct place p = make_place(open_tiny());
    static const char brackets[] = "([{";
    char *text = repeat(' ', LIMIT_GRAMMAR_BYTES + 1);
    expect_error(&p, GRAMMAR_JSON_SCHEMA, text, LIMIT_GRAMMAR_BYTES + 1, E_LIMIT, "262144");
    free(text);
    for (size_t i = 0; i < 3; i++) {
        text = repeat(brackets[i], LIMIT_GRAMMAR_BYTES);
        expect_error(&p, GRAMMAR_LARK, text, 16384, E_LIMIT, "brackets");
        expect_error(&p, GRAMMAR_REGEX, text, 16384, E_LIMIT, "brackets");
        expect_error(&p, GRAMMAR_REGEX, text, 16385, E_LIMIT, "16384");
        expect_error(&p, GRAMMAR_JSON_SCHEMA, text, LIMIT_GRAMMAR_BYTES, E_INVALID, "");
        free(text);
    }
    static const char *const costly[] = {
        "{\"type\":\"string\",\"pattern\":\"^(a{1,1000}){1,1000}$\"}",
        "{\"type\":\"string\",\"pattern\":\"^((((a?){50}){50}){50}){50}$\"}",
        "{\"type\":\"string\",\"minLength\":100000,\"maxLength\":2000000000}",
        "{\"type\":\"array\",\"minItems\":1000000000,\"items\":{\"type\":\"array\",\"minItems\":"
        "1000000000}}",
        "{\"type\":\"array\",\"maxItems\":4000000000000}",
        "{\"type\":\"object\",\"minProperties\":1000000}",
        "{\"$ref\":\"#\"}",
        "{\"allOf\":[{\"$ref\":\"#\"}]}",
        "{\"anyOf\":[{\"$ref\":\"#\"},{\"$ref\":\"#\"}]}",
        "{\"$defs\":{\"a\":{\"$ref\":\"#/$defs/b\"},\"b\":{\"$ref\":\"#/$defs/a\"}},\"$ref\":"
        "\"#/$defs/a\"}",
        "{\"$defs\":{\"a\":{\"allOf\":[{\"$ref\":\"#/$defs/b\"},{\"$ref\":\"#/$defs/b\"}]},\"b\":{"
        "\"allOf\":[{\"$ref\":\"#/$defs/a\"},{\"$ref\":\"#/$defs/a\"}]}},\"$ref\":\"#/$defs/a\"}",
        "{\"type\":\"integer\",\"multipleOf\":1e-300}",
        "{\"type\":\"integer\",\"multipleOf\":999999999,\"minimum\":-1e300,\"maximum\":1e300}",
    };
    for (size_t i = 0; i < sizeof(costly) / sizeof(costly[0]); i++) {
        struct grammar *g = NULL;
        uint8_t mask[64];
        bool is_over;
        uint64_t start = clock_now_ns();
        struct error err = {0};
        int rc =
            grammar_compile(p.vocab, GRAMMAR_JSON_SCHEMA, costly[i], strlen(costly[i]), &g, &err);
        if (rc == 0)
            rc = grammar_mask(g, mask, p.n_bytes, &is_over, &err);
        if (rc != 0 && rc != E_LIMIT && rc != E_INVALID)
            fail_msg("%s: %d %s", costly[i], rc, err.message);
        print_message("%5.0f ms %s: %.100s\n", (double)(clock_now_ns() - start) / 1e6,
                      rc != 0 ? err.message : "fine", costly[i]);
        grammar_free(g);
    }
    done_place(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(end_exactly_where_the_text_is_complete),
        cmocka_unit_test(what_is_wrong_is_said),
        cmocka_unit_test(white_space_ends),
        cmocka_unit_test(other_kinds),
        cmocka_unit_test(random_text_follows_its_schema),
        cmocka_unit_test(real_vocabularies),
        cmocka_unit_test(many_patterns_are_not_combined),
        cmocka_unit_test(work_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
