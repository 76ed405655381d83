/* What people say of models, and what hubs list. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "store/source.h"

#include <string.h>

static struct cards *cards;
static struct model_source s;
static struct error err;

static int load(void **state)
{
    (void)state;
    return cards_load(NULL, &cards, &err);
}

static int unload(void **state)
{
    (void)state;
    cards_free(cards);
    return 0;
}

static int parse(const char *text)
{
    error_clear(&err);
    return source_parse(cards, text, &s, &err);
}

static void test_texts(void **state)
{
    (void)state;
    assert_int_equal(parse("https://host:8/a/b/M-Q4_0.gguf?x=/y.gguf#z"), 0);
    assert_int_equal(s.kind, SOURCE_URL);
    assert_string_equal(s.name, "M-Q4_0.gguf");
    assert_string_equal(s.quantization, "Q4_0");
    assert_int_equal(parse("http://host/a/model"), 0);
    assert_string_equal(s.name, "model.gguf");
    assert_int_equal(parse("hf:o/r.x/sub/m-Q8_0.gguf"), 0);
    assert_string_equal(s.repo, "o/r.x");
    assert_string_equal(s.file, "sub/m-Q8_0.gguf");
    assert_int_equal(parse("o/r:q4_k_m"), 0);
    assert_string_equal(s.quantization, "q4_k_m");
    assert_int_equal(parse("qwen3:30b-a3b"), 0); /* an alias with a dash in it */
    assert_string_equal(s.card, "qwen3:30b");
    assert_int_equal(parse("Llama-3.2-3B-Instruct-Q8_0.gguf"), 0);
    assert_string_equal(s.card, "llama3.2:3b");
    assert_string_equal(s.quantization, "Q8_0");
    static const char *const wrong[] = {
        "",
        "http://",
        "http://host",
        "http://host/",
        "https:///x.gguf/",
        "a/b/c",
        "/",
        "o/",
        "o/r:",
        "hf:o",
        "hf:o/r/x.bin",
        "hf:../x/y.gguf",
        "o/../r",
        "o/r/x.gguf",
        "nosuch",
        "no-such.gguf",
        "hf:",
    };
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++) {
        assert_true(parse(wrong[i]) < 0);
        assert_true(err.message[0] != '\0');
    }
}

static void test_quantizations(void **state)
{
    static const char *const cases[][2] = {
        {"a-Q4_K_M.gguf", "Q4_K_M"},
        {"a.q8_0.gguf", "Q8_0"},
        {"x/a-f16.gguf", "F16"},
        {"a-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"},
        {"a-mxfp4.gguf", "MXFP4"},
        {"a-IQ2_XXS.gguf", "IQ2_XXS"},
        {"qwen.gguf", ""},
        {"a-Quick.gguf", ""},
        {"a-BF16.gguf", "BF16"},
        {"F.gguf", ""},
        {"", ""},
        {"llama-7b.gguf", ""},
    };
    char found[QUANTIZATION_BYTES];
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        source_quantization_of(cases[i][0], found);
        assert_string_equal(found, cases[i][1]);
    }
}

static int choose(const char *json)
{
    error_clear(&err);
    return source_choose(&s, "http://hub", json, strlen(json), &err);
}

static void test_lists(void **state)
{
    static const char list[] =
        "[{\"type\":\"file\",\"path\":\"m-UD-Q4_K_XL.gguf\",\"size\":1},"
        "{\"path\":\"m-Q4_K_XL.gguf\",\"size\":5,\"lfs\":{\"oid\":"
        "\"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff\",\"size\":7}},"
        "{\"path\":\"sub dir/m-Q8_0.gguf\",\"size\":9},{\"path\":\"mmproj-Q8_0.gguf\"},"
        "{\"path\":\"m-F16-00001-of-00002.gguf\"},{\"path\":3},7,null]";
    (void)state;
    assert_int_equal(parse("o/r:Q4_K_XL"), 0);
    assert_int_equal(choose(list), 0);
    assert_string_equal(s.url, "http://hub/o/r/resolve/main/m-Q4_K_XL.gguf");
    assert_true(s.size_bytes == 7 && s.has_sha256 && s.sha256[1] == 0x11);
    assert_int_equal(parse("o/r:UD-Q4_K_XL"), 0);
    assert_int_equal(choose(list), 0);
    assert_string_equal(s.name, "m-UD-Q4_K_XL.gguf");
    assert_false(s.has_sha256);
    assert_int_equal(parse("o/r"), 0);
    assert_int_equal(choose(list), 0);
    assert_string_equal(s.url, "http://hub/o/r/resolve/main/sub%20dir/m-Q8_0.gguf");
    assert_string_equal(s.name, "m-Q8_0.gguf");
    assert_int_equal(parse("o/r:F16"), 0);
    assert_int_equal(choose(list), E_UNSUPPORTED);
    assert_int_equal(parse("o/r:Q2_K"), 0);
    assert_int_equal(choose(list), E_NOTFOUND);
    static const char *const wrong[] = {"", "{}", "[", "3", "\"x\"", "[\"\\u0000\"]"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        assert_true(choose(wrong[i]) < 0);
}

/* Every card of the catalogue can be asked for by its name, its aliases and its files. */
static void test_catalogue(void **state)
{
    const struct card *k;
    struct card_file f;
    char quantization[QUANTIZATION_BYTES];
    (void)state;
    for (uint32_t i = 0; (k = cards_at(cards, i)) != NULL; i++) {
        assert_int_equal(parse(k->name), 0);
        assert_string_equal(s.card, k->name);
        const json_t *aliases = json_object_get(k->doc, "aliases"), *alias;
        size_t a;
        json_array_foreach(aliases, a, alias)
            assert_ptr_equal(cards_find(cards, json_string_value(alias), quantization), k);
        for (uint32_t q = 0; card_file_at(k, q, &f); q++) {
            assert_ptr_equal(cards_find_file(cards, f.file, quantization), k);
            assert_string_equal(quantization, f.quantization);
            source_quantization_of(f.file, quantization);
            assert_string_equal(quantization, f.quantization);
        }
        assert_true(card_n_files(k) > 0);
    }
    assert_true(cards_count(cards) >= 50);
    assert_string_equal(cards_suggest(cards, "gema3:4b"), "gemma3:4b");
    assert_null(cards_suggest(cards, "something else"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_quantizations),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_catalogue),
    };
    return cmocka_run_group_tests(tests, load, unload);
}
