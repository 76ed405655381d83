#include "model/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/gguf_builder.h"

static int open_built(struct builder *b, struct model **ret, struct error *err)
{
    struct gguf_file *f;
    error_clear(err);
    int rc = gguf_file_parse(b->file.data, b->file.len, &f, err);
    return rc != 0 ? rc : model_from_file(f, ret, err);
}

static void expect(struct builder *b, int code, const char *part)
{
    struct model *m;
    struct error err;
    assert_int_equal(open_built(b, &m, &err), code);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' does not contain '%s'", err.message, part);
    builder_done(b);
}

static void test_llama(void **state)
{
    (void)state;
    struct builder b;
    struct model *m;
    struct error err;
    builder_model(&b, &builder_tiny);
    assert_int_equal(open_built(&b, &m, &err), 0);
    const struct model_config *c = &m->config;
    assert_string_equal(m->arch->name, "llama");
    assert_int_equal(c->n_layer, 2);
    assert_int_equal(c->n_head_kv, 2);
    assert_int_equal(c->head_dim, 16);
    assert_int_equal(c->n_rot, 16);
    assert_int_equal(c->n_vocab, 96);
    assert_int_equal(c->window, 0);
    assert_true(c->rope_base == 10000.0f && c->rope_scale == 1.0f && c->embd_scale == 1.0f);
    assert_true(c->attn_scale == 0.25f);
    assert_ptr_equal(model_output(m), m->global[ROLE_OUTPUT]);
    assert_null(m->layer[0][ROLE_ATTN_Q_BIAS]);
    assert_false(model_layer_has_window(m, 0));
    assert_int_equal(model_kv_token_layer_bytes(m), 2 * 2 * 16 * 2);
    uint64_t bytes = 0;
    for (size_t i = 0; i < gguf_file_n_tensors(m->file); i++)
        if (strncmp(gguf_file_tensor(m->file, i)->name, "blk.1.", 6) == 0)
            bytes += gguf_file_tensor(m->file, i)->size_bytes;
    assert_int_equal(model_layer_bytes(m, 1), bytes);
    model_close(m);
    model_close(NULL);
    builder_done(&b);
}

static void test_gemma3(void **state)
{
    (void)state;
    struct builder_shape shape = builder_tiny;
    struct builder b;
    struct model *m;
    struct error err;
    shape.arch = "gemma3";
    shape.n_layer = 7;
    shape.tied = true;
    builder_init(&b);
    builder_config(&b, &shape);
    builder_u32(&b, "gemma3.attention.sliding_window", 32);
    builder_f32(&b, "gemma3.rope.freq_base", 1e6f);
    builder_f32(&b, "gemma3.rope.scaling.factor", 8.0f);
    builder_string(&b, "gemma3.rope.scaling.type", "linear");
    builder_weights(&b, &shape);
    builder_finish(&b);
    assert_int_equal(open_built(&b, &m, &err), 0);
    assert_ptr_equal(model_output(m), m->global[ROLE_TOKEN_EMBD]);
    assert_true(m->config.embd_scale == 8.0f);
    for (uint32_t l = 0; l < 7; l++) {
        assert_int_equal(model_layer_has_window(m, l), l != 5);
        assert_true(model_layer_rope_base(m, l) == (l != 5 ? 10000.0f : 1e6f));
        assert_true(model_layer_rope_scale(m, l) == (l != 5 ? 1.0f : 0.125f));
    }
    assert_non_null(m->layer[6][ROLE_FFN_POST_NORM]);
    model_close(m);
    builder_done(&b);
}

/* The 27B model has 62 layers and its own scale of q.k. */
static void test_gemma3_attention_scale(void **state)
{
    (void)state;
    struct builder_shape shape = builder_tiny;
    struct builder b;
    struct model *m;
    struct error err;
    shape.arch = "gemma3";
    shape.tied = true;
    shape.n_embd = 128;
    for (uint32_t n_layer = 61; n_layer <= 62; n_layer++) {
        shape.n_layer = n_layer;
        builder_model(&b, &shape);
        assert_int_equal(open_built(&b, &m, &err), 0);
        assert_true(fabsf(m->config.attn_scale - 1.0f / sqrtf(n_layer == 62 ? 32.0f : 16.0f)) <
                    1e-7f);
        model_close(m);
        builder_done(&b);
    }
}

static void put_pattern(struct builder *b, const char *bits)
{
    builder_key(b, "gemma3.attention.sliding_window_pattern", GGUF_KIND_ARRAY);
    buf_append_u32(&b->values, GGUF_KIND_BOOL);
    buf_append_u64(&b->values, strlen(bits));
    for (; *bits != '\0'; bits++)
        buf_append_u8(&b->values, *bits == '1');
}

static void test_window_pattern_lists(void **state)
{
    (void)state;
    static const struct {
        const char *bits;
        int rc;
        uint32_t pattern;
    } rows[] = {
        {"110110", 0, 3},    {"101010", 0, 2},   {"000000", 0, 1},
        {"111111", 0, 7},    {"11011011", 0, 3}, {"110101", E_UNSUPPORTED, 0},
        {"11", E_FORMAT, 0},
    };
    struct builder_shape shape = builder_tiny;
    shape.arch = "gemma3";
    shape.tied = true;
    shape.n_layer = 6;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        struct builder b;
        struct model *m;
        struct error err;
        builder_init(&b);
        builder_config(&b, &shape);
        builder_u32(&b, "gemma3.attention.sliding_window", 32);
        put_pattern(&b, rows[i].bits);
        builder_weights(&b, &shape);
        builder_finish(&b);
        assert_int_equal(open_built(&b, &m, &err), rows[i].rc);
        for (uint32_t l = 0; rows[i].rc == 0 && l < 6; l++)
            assert_int_equal(model_layer_has_window(m, l), rows[i].bits[l] == '1');
        if (rows[i].rc == 0) {
            assert_int_equal(m->config.window_pattern, rows[i].pattern);
            model_close(m);
        }
        builder_done(&b);
    }
}

static void test_every_tensor_is_needed(void **state)
{
    (void)state;
    static const char *const archs[] = {"llama", "gemma3"};
    for (int a = 0; a < 2; a++) {
        struct builder whole;
        struct gguf_file *f;
        struct error err;
        struct builder_shape shape = builder_tiny;
        shape.arch = archs[a];
        shape.tied = true;
        builder_model(&whole, &shape);
        assert_int_equal(gguf_file_parse(whole.file.data, whole.file.len, &f, &err), 0);
        for (size_t i = 0; i < gguf_file_n_tensors(f); i++) {
            struct builder b;
            char part[96];
            shape.skip = gguf_file_tensor(f, i)->name;
            snprintf(part, sizeof(part), "'%s' is missing", shape.skip);
            builder_model(&b, &shape);
            expect(&b, E_FORMAT, part);
        }
        gguf_file_close(f);
        builder_done(&whole);
    }
}

/* A model with one thing changed: a value put before the usual ones, or a tensor after the usual
 * ones. */
static void begin_variant(struct builder *b)
{
    builder_init(b);
    builder_config(b, &builder_tiny);
}

static void finish_variant(struct builder *b)
{
    builder_weights(b, &builder_tiny);
    builder_finish(b);
}

static void test_refuses_variants(void **state)
{
    (void)state;
    struct builder b;
    struct builder_shape shape = builder_tiny;
    shape.arch = "mamba";
    builder_model(&b, &shape);
    expect(&b, E_UNSUPPORTED, "'mamba' is not supported; supported are llama, gemma3");

    begin_variant(&b);
    builder_u32(&b, "llama.expert_count", 8);
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "expert_count");

    begin_variant(&b);
    builder_f32(&b, "llama.final_logit_softcapping", 30.0f);
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "softcapping");

    begin_variant(&b);
    builder_string(&b, "llama.rope.scaling.type", "yarn");
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "'yarn'");

    begin_variant(&b);
    builder_u32(&b, "llama.vocab_size", 95);
    finish_variant(&b);
    expect(&b, E_FORMAT, "vocabulary has 95");

    begin_variant(&b);
    builder_u32(&b, "split.count", 3);
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "one of 3 files");

    begin_variant(&b);
    builder_f32(&b, "llama.rope.freq_base", NAN);
    finish_variant(&b);
    expect(&b, E_FORMAT, "freq_base");

    begin_variant(&b);
    builder_tensor(&b, "blk.0.attn_output.bias", DTYPE_F32, 64, 0);
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "'blk.0.attn_output.bias' has no place");

    begin_variant(&b);
    builder_tensor(&b, "blk.2.attn_norm.weight", DTYPE_F32, 64, 0);
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "with 2 layers");

    begin_variant(&b);
    builder_tensor(&b, "rope_freqs.weight", DTYPE_F16, 8, 0);
    finish_variant(&b);
    expect(&b, E_UNSUPPORTED, "vectors must be F32");

    begin_variant(&b);
    builder_tensor(&b, "rope_freqs.weight", DTYPE_F32, 9, 0);
    finish_variant(&b);
    expect(&b, E_FORMAT, "asks for 8");
}

static void test_refuses_bad_shapes(void **state)
{
    (void)state;
    struct builder b;
    struct builder_shape shape = builder_tiny;
    shape.n_head = 3;
    shape.type = shape.out_type = DTYPE_F32;
    builder_model(&b, &shape);
    expect(&b, E_FORMAT, "3 heads cannot share 2");

    shape = builder_tiny;
    shape.head_dim = 15;
    shape.type = shape.out_type = DTYPE_F32;
    builder_model(&b, &shape);
    expect(&b, E_FORMAT, "not even");

    shape = builder_tiny;
    shape.n_layer = 0;
    builder_model(&b, &shape);
    expect(&b, E_FORMAT, "block_count");

    shape = builder_tiny;
    shape.type = DTYPE_I8;
    builder_model(&b, &shape);
    expect(&b, E_UNSUPPORTED, "weights cannot have");

    builder_init(&b);
    builder_string(&b, "general.architecture", "llama");
    builder_weights(&b, &builder_tiny);
    builder_finish(&b);
    expect(&b, E_FORMAT, "llama.block_count");

    builder_init(&b);
    builder_config(&b, &builder_tiny);
    builder_finish(&b);
    expect(&b, E_FORMAT, "token_embd.weight");
}

static void test_names_and_hashes(void **state)
{
    (void)state;
    struct builder a, b;
    struct model *ma, *mb;
    struct error err;
    builder_init(&a);
    builder_config(&a, &builder_tiny);
    builder_string(&a, "general.name", "tiny\nmodel \xc3\xa9");
    finish_variant(&a);
    builder_init(&b);
    builder_config(&b, &builder_tiny);
    builder_string(&b, "general.name", "tiny\nmodel \xc3\xaa");
    finish_variant(&b);
    assert_int_equal(open_built(&a, &ma, &err), 0);
    assert_int_equal(open_built(&b, &mb, &err), 0);
    assert_string_equal(ma->name, "tiny?model ??");
    assert_memory_not_equal(ma->hash, mb->hash, 32);
    model_close(mb);
    assert_int_equal(open_built(&a, &mb, &err), 0);
    assert_memory_equal(ma->hash, mb->hash, 32);
    model_close(ma);
    model_close(mb);
    builder_done(&a);
    builder_done(&b);
}

static void test_biases(void **state)
{
    (void)state;
    struct builder b;
    struct model *m;
    struct error err;
    struct builder_shape shape = builder_tiny;
    shape.bias = true;
    builder_model(&b, &shape);
    assert_int_equal(open_built(&b, &m, &err), 0);
    assert_non_null(m->layer[1][ROLE_ATTN_V_BIAS]);
    model_close(m);
    builder_done(&b);
    shape.arch = "gemma3";
    builder_model(&b, &shape);
    expect(&b, E_UNSUPPORTED, "bias");
}

static void test_roles_have_names(void **state)
{
    (void)state;
    for (int role = 0; role < ROLE_COUNT; role++)
        for (int other = 0; other < role; other++)
            assert_string_not_equal(role_name((enum role)role), role_name((enum role)other));
    assert_string_equal(role_name(ROLE_COUNT), "unknown");
    assert_null(arch_at(1000));
    assert_null(arch_find("llama2", 6));
    assert_ptr_equal(arch_find("gemma3 and more", 6), arch_find("gemma3", 6));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_llama),
        cmocka_unit_test(test_gemma3),
        cmocka_unit_test(test_gemma3_attention_scale),
        cmocka_unit_test(test_window_pattern_lists),
        cmocka_unit_test(test_every_tensor_is_needed),
        cmocka_unit_test(test_refuses_variants),
        cmocka_unit_test(test_refuses_bad_shapes),
        cmocka_unit_test(test_names_and_hashes),
        cmocka_unit_test(test_biases),
        cmocka_unit_test(test_roles_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
