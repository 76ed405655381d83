/* The two real models that the project tests with; skipped without SHOAL_TEST_MODELS. */
#include "model/shard.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_real_models(void **state)
{
    (void)state;
    const char *folder = getenv("SHOAL_TEST_MODELS");
    static const struct {
        const char *name;
        struct model_config config;
    } rows[] = {
        {"smollm2",
         {.n_layer = 30,
          .n_embd = 576,
          .n_ff = 1536,
          .n_head = 9,
          .n_head_kv = 3,
          .head_dim = 64,
          .n_vocab = 49152,
          .n_ctx_train = 8192,
          .n_rot = 64}},
        {"gemma3",
         {.n_layer = 18,
          .n_embd = 640,
          .n_ff = 2048,
          .n_head = 4,
          .n_head_kv = 1,
          .head_dim = 256,
          .n_vocab = 262144,
          .n_ctx_train = 32768,
          .n_rot = 256,
          .window = 512,
          .window_pattern = 6}},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        char path[4096];
        struct model *m;
        struct error err = {0};
        snprintf(path, sizeof(path), "%s/%s.gguf", folder, rows[i].name);
        if (model_open(path, &m, &err) != 0)
            fail_msg("%s", err.message);
        assert_memory_equal(&m->config, &rows[i].config, offsetof(struct model_config, norm_eps));
        assert_true(m->config.attn_scale == 1.0f / sqrtf((float)m->config.head_dim));
        model_close(m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_real_models)};
    if (getenv("SHOAL_TEST_MODELS") == NULL) {
        puts("skipped: SHOAL_TEST_MODELS is not set");
        return 77;
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
