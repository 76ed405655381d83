/* The chat templates of the two real models that the project tests with; skipped without
 * SHOAL_TEST_MODELS. */
#include "base/limits.h"
#include "model/gguf.h"
#include "text/chat_template.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct chat_template *load(const char *name)
{
    char path[4096];
    struct error err = {0};
    struct gguf_file *f = NULL;
    struct gguf_string source;
    struct chat_template *t = NULL;
    snprintf(path, sizeof(path), "%s/%s", getenv("SHOAL_TEST_MODELS"), name);
    if (gguf_file_open(path, &f, &err) != 0 ||
        gguf_file_get_string(f, "tokenizer.chat_template", &source, &err) != 0 ||
        chat_template_new(source.data, source.len, &t, &err) != 0)
        fail_msg("%s: %s", path, err.message);
    gguf_file_close(f);
    return t;
}

static int render(const struct chat_template *t, const char *messages, struct buf *out,
                  struct error *err)
{
    char context[2048];
    int n = snprintf(context, sizeof(context),
                     "{\"messages\":[%s],\"add_generation_prompt\":true,\"bos_token\":\"<bos>\","
                     "\"eos_token\":\"<eos>\"}",
                     messages);
    buf_init(out, LIMIT_PROMPT_BYTES);
    error_clear(err);
    return chat_template_render(t, context, (size_t)n, 0, out, err);
}

static void expect(const struct chat_template *t, const char *messages, const char *text)
{
    struct error err;
    struct buf out;
    if (render(t, messages, &out, &err) != 0)
        fail_msg("%s: %s", messages, err.message);
    assert_string_equal(buf_str(&out), text);
    buf_done(&out);
}

#define USER      "{\"role\":\"user\",\"content\":\" Hi \"}"
#define ASSISTANT "{\"role\":\"assistant\",\"content\":\"Hello\"}"
#define SYSTEM    "{\"role\":\"system\",\"content\":\"Be brief.\"}"

static void test_smollm2(void **state)
{
    (void)state;
    struct chat_template *t = load("smollm2.gguf");
    expect(t, USER,
           "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
           "Face<|im_end|>\n"
           "<|im_start|>user\n Hi <|im_end|>\n<|im_start|>assistant\n");
    expect(t, SYSTEM "," USER "," ASSISTANT "," USER,
           "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <|im_end|>\n"
           "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\n Hi "
           "<|im_end|>\n<|im_start|>assistant\n");
    chat_template_free(t);
}

int main(void)
{
    if (getenv("SHOAL_TEST_MODELS") == NULL) {
        puts("skipped: SHOAL_TEST_MODELS is not set");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smollm2),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
