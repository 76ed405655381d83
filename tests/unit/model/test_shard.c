#include "model/shard.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "model/gguf_builder.h"

/* Random numbers of one seeded test run. */
struct dice {
    uint64_t seed, position;
};

static uint32_t roll(struct dice *d, uint32_t min, uint32_t max)
{
    return min + (uint32_t)(rng_u64(d->seed, d->position++, 1) % (max - min + 1));
}

static uint32_t pick(struct dice *d, const uint32_t *values, uint32_t n)
{
    return values[roll(d, 0, n - 1)];
}

static struct model *open_shape(struct builder *b, const struct builder_shape *shape)
{
    struct gguf_file *f;
    struct model *m = NULL;
    struct error err = {0};
    builder_model(b, shape);
    if (gguf_file_parse(b->file.data, b->file.len, &f, &err) != 0 ||
        model_from_file(f, &m, &err) != 0)
        fail_msg("%s", err.message);
    return m;
}

static bool is_replicated(enum role role)
{
    switch (role) {
    case ROLE_TOKEN_EMBD:
    case ROLE_OUTPUT_NORM:
    case ROLE_ROPE_FACTORS:
    case ROLE_ATTN_NORM:
    case ROLE_ATTN_POST_NORM:
    case ROLE_FFN_NORM:
    case ROLE_FFN_POST_NORM:
    case ROLE_ATTN_Q_NORM:
    case ROLE_ATTN_K_NORM:
        return true;
    default:
        return false;
    }
}

/* Counts in seen each byte of the tensor that the slice takes, and checks that it is whole in
 * blocks. */
static uint64_t mark(const struct tensor_slice *s, uint8_t *seen)
{
    const struct gguf_tensor *t = s->tensor;
    uint32_t block = dtype_traits(t->type)->block_bytes;
    uint64_t first = s->file_offset - t->offset;
    assert_true(s->n_rows > 0 && s->n_cols > 0);
    assert_int_equal(s->row_bytes, dtype_row_bytes(t->type, s->n_cols));
    assert_int_equal(first % s->row_stride_bytes % block, 0);
    assert_true(s->row_bytes <= s->row_stride_bytes);
    for (uint64_t r = 0; r < s->n_rows; r++) {
        uint64_t begin = first + r * s->row_stride_bytes;
        assert_true(begin + s->row_bytes <= t->size_bytes);
        for (uint64_t i = 0; i < s->row_bytes; i++)
            seen[begin + i]++;
    }
    return s->n_rows * s->row_bytes;
}

/* One tensor over the shards of a stage: each byte once if split, n_ranks times if replicated. */
static uint64_t check_tensor(const struct model *m, const struct shard *shards, uint32_t n_ranks,
                             enum role role, uint32_t layer, const struct gguf_tensor *t)
{
    uint64_t bytes = 0;
    struct tensor_slice slice;
    uint8_t *seen = calloc(1, (size_t)t->size_bytes);
    assert_non_null(seen);
    for (uint32_t i = 0; i < n_ranks; i++) {
        if (shard_slice(&shards[i], m, role, layer, &slice)) {
            assert_ptr_equal(slice.tensor, t);
            bytes += mark(&slice, seen);
        } else {
            assert_int_equal(slice.n_rows, 0);
        }
    }
    for (uint64_t i = 0; i < t->size_bytes; i++)
        if (seen[i] != (is_replicated(role) ? n_ranks : 1))
            fail_msg("byte %llu of %s of layer %u taken %u times", (unsigned long long)i,
                     role_name(role), layer, seen[i]);
    free(seen);
    return bytes;
}

/* What one rank computes with must fit together. */
static void check_shapes(const struct model *m, const struct shard *s, uint32_t layer)
{
    struct tensor_slice q, k, out, gate, down;
    bool heads = shard_slice(s, m, ROLE_ATTN_Q, layer, &q);
    assert_int_equal(shard_slice(s, m, ROLE_ATTN_K, layer, &k), heads);
    assert_int_equal(shard_slice(s, m, ROLE_ATTN_OUT, layer, &out), heads);
    assert_int_equal(q.n_rows, k.n_rows * (m->config.n_head / m->config.n_head_kv));
    assert_int_equal(out.n_cols, q.n_rows);
    assert_int_equal(shard_slice(s, m, ROLE_FFN_GATE, layer, &gate),
                     shard_slice(s, m, ROLE_FFN_DOWN, layer, &down));
    assert_int_equal(down.n_cols, gate.n_rows);
}

static uint64_t check_stage(const struct model *m, const struct shard *shards)
{
    const struct shard *first = &shards[0];
    uint32_t n = first->n_stage_ranks;
    uint64_t bytes = 0;
    for (int role = 0; role < ROLE_FIRST_OF_LAYER; role++) {
        const struct gguf_tensor *t = role == ROLE_OUTPUT ? model_output(m) : m->global[role];
        bool here = role == ROLE_TOKEN_EMBD ? first->is_first_stage
                                            : role == ROLE_ROPE_FACTORS || first->is_last_stage;
        struct tensor_slice slice;
        if (t != NULL && here)
            bytes += check_tensor(m, shards, n, (enum role)role, 0, t);
        else
            assert_false(shard_slice(first, m, (enum role)role, 0, &slice));
    }
    for (uint32_t l = first->layers.begin; l < first->layers.end; l++) {
        for (int role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT; role++)
            if (m->layer[l][role] != NULL)
                bytes += check_tensor(m, shards, n, (enum role)role, l, m->layer[l][role]);
        for (uint32_t i = 0; i < n; i++)
            check_shapes(m, &shards[i], l);
    }
    return bytes;
}

static void check_split(const struct model *m, const struct split *split)
{
    struct shard shards[LIMIT_RANKS];
    struct error err = {0};
    uint64_t bytes = 0, sum = 0, kv = 0;
    for (uint32_t r = 0; r < split->n_ranks; r++) {
        if (shard_init(&shards[r], m, split, r, &err) != 0)
            fail_msg("%s", err.message);
        assert_int_equal(shards[r].stage_rank_first + shards[r].stage_rank, r);
        sum += shard_weight_bytes(&shards[r], m);
        kv += shard_kv_token_bytes(&shards[r], m);
    }
    for (uint32_t i = 0; i < split->n_stages; i++)
        bytes += check_stage(m, &shards[split->stage[i].rank_first]);
    assert_int_equal(sum, bytes);
    assert_int_equal(kv, m->config.n_layer * model_kv_token_layer_bytes(m));
    for (uint32_t r = 0; r < split->n_ranks; r++)
        shard_done(&shards[r]);
}

static void roll_shape(struct dice *d, struct builder_shape *s)
{
    static const uint32_t types[] = {DTYPE_F32, DTYPE_F16, DTYPE_Q4_0, DTYPE_Q8_0};
    static const uint32_t cut_types[] = {DTYPE_F32, DTYPE_Q4_0, DTYPE_Q8_0, DTYPE_Q4_K, DTYPE_Q6_K};
    static const uint32_t head_dims[] = {8, 16, 32, 64};
    *s = builder_tiny;
    s->arch = roll(d, 0, 1) ? "llama" : "gemma3";
    s->n_layer = roll(d, 1, 5);
    s->n_embd = 32 * roll(d, 1, 3);
    s->n_head_kv = roll(d, 1, 6);
    s->n_head = s->n_head_kv * roll(d, 1, 4);
    s->head_dim = pick(d, head_dims, 4);
    s->n_ff = 8 * roll(d, 1, 100);
    s->n_vocab = roll(d, 1, 400);
    s->type = pick(d, types, 4);
    s->tied = roll(d, 0, 1);
    s->bias = strcmp(s->arch, "llama") == 0 && roll(d, 0, 1);
    s->out_type = pick(d, cut_types, 5);
    s->down_type = pick(d, cut_types, 5);
    if (dtype_row_bytes(s->out_type, (uint64_t)s->n_head * s->head_dim) == 0)
        s->out_type = DTYPE_F16;
    if (dtype_row_bytes(s->down_type, s->n_ff) == 0)
        s->down_type = DTYPE_F16;
}

static void roll_split(struct dice *d, uint32_t n_layer, struct split *split)
{
    char text[16];
    uint32_t weight[LIMIT_RANKS];
    struct error err = {0};
    uint32_t n_stages = roll(d, 1, n_layer), n_stage_ranks = roll(d, 1, 5);
    for (uint32_t r = 0; r < n_stages * n_stage_ranks; r++)
        weight[r] = roll(d, 0, 3) == 0 ? roll(d, 1, 1u << 31) : roll(d, 0, 4);
    for (uint32_t i = 0; i < n_stages; i++)
        weight[i * n_stage_ranks] |= 1;
    snprintf(text, sizeof(text), "%ux%u", n_stages, n_stage_ranks);
    if (split_parse(text, n_stages * n_stage_ranks, n_layer, weight, split, &err) != 0)
        fail_msg("%s", err.message);
    assert_int_equal(split_check(split, n_layer, &err), 0);
}

static void test_random_shapes_are_covered(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 60; seed++) {
        struct dice d = {.seed = seed};
        struct builder_shape shape;
        struct split split;
        struct builder b;
        roll_shape(&d, &shape);
        struct model *m = open_shape(&b, &shape);
        for (int i = 0; i < 3; i++) {
            roll_split(&d, shape.n_layer, &split);
            check_split(m, &split);
        }
        model_close(m);
        builder_done(&b);
    }
}

/* Shares of one dimension over all layers stay within one unit of what the weights ask for. */
static void check_shares(const struct model *m, uint32_t n_ranks, const uint32_t *weight)
{
    struct split split;
    struct error err = {0};
    double total_weight = 0, n_layer = m->config.n_layer;
    for (uint32_t r = 0; r < n_ranks; r++)
        total_weight += weight[r];
    assert_int_equal(split_parse("tensor", n_ranks, m->config.n_layer, weight, &split, &err), 0);
    for (uint32_t r = 0; r < n_ranks; r++) {
        struct shard s;
        double heads = 0, ff = 0, share = weight[r] / total_weight;
        assert_int_equal(shard_init(&s, m, &split, r, &err), 0);
        for (uint32_t l = 0; l < m->config.n_layer; l++) {
            double now = s.layer[l].kv_heads.end - s.layer[l].kv_heads.begin;
            heads += now;
            ff += s.layer[l].ff.end - s.layer[l].ff.begin;
            assert_true(now > share * m->config.n_head_kv - 1.001 &&
                        now < share * m->config.n_head_kv + 1.001);
        }
        if (heads < share * m->config.n_head_kv * n_layer - 1.001 ||
            heads > share * m->config.n_head_kv * n_layer + 1.001)
            fail_msg("rank %u of %u has %g KV heads over all layers", r, n_ranks, heads);
        assert_true(ff > share * m->config.n_ff * n_layer - 128.1 &&
                    ff < share * m->config.n_ff * n_layer + 128.1);
        shard_done(&s);
    }
}

static void test_remainders_rotate(void **state)
{
    (void)state;
    static const uint32_t equal[8] = {1, 1, 1, 1, 1, 1, 1, 1},
                          uneven[4] = {8000, 16000, 6000, 2000};
    struct builder_shape shape = builder_tiny;
    struct builder b;
    shape.n_layer = 30;
    shape.n_head = 9;
    shape.n_head_kv = 3;
    shape.head_dim = 32;
    shape.n_embd = 32;
    shape.n_ff = 1536;
    struct model *m = open_shape(&b, &shape);
    for (uint32_t n = 1; n <= 8; n++)
        check_shares(m, n, equal);
    for (uint32_t n = 2; n <= 4; n++)
        check_shares(m, n, uneven);

    /* The example of shard.h: 3 KV heads on 2 ranks are 2 + 1 in one half of the layers and 1 + 2
     * in the other. */
    struct split split;
    struct shard s;
    struct error err = {0};
    uint32_t n_of_two = 0;
    assert_int_equal(split_parse("tensor", 2, 30, NULL, &split, &err), 0);
    assert_int_equal(shard_init(&s, m, &split, 0, &err), 0);
    for (uint32_t l = 0; l < 30; l++) {
        uint32_t n = s.layer[l].kv_heads.end - s.layer[l].kv_heads.begin;
        assert_true(n == 1 || n == 2);
        n_of_two += n == 2;
    }
    assert_int_equal(n_of_two, 15);
    shard_done(&s);
    model_close(m);
    builder_done(&b);
}

/* A Q4_K output projection of heads of 64 is cut every four groups of one head, and the rest is not
 * lost. */
static void test_units_follow_blocks(void **state)
{
    (void)state;
    struct builder_shape shape = builder_tiny;
    struct builder b;
    struct split split;
    struct shard s;
    struct error err = {0};
    shape.n_head = shape.n_head_kv = 8;
    shape.head_dim = 64;
    shape.n_embd = 256;
    shape.n_ff = 768;
    shape.out_type = shape.down_type = DTYPE_Q4_K;
    struct model *m = open_shape(&b, &shape);
    static const uint32_t weight[] = {3, 2};
    assert_int_equal(split_parse("tensor", 2, 2, weight, &split, &err), 0);
    assert_int_equal(shard_init(&s, m, &split, 0, &err), 0);
    for (uint32_t l = 0; l < 2; l++) {
        assert_int_equal(s.layer[l].kv_heads.end % 4, 0);
        assert_int_equal(s.layer[l].ff.end % 256, 0);
    }
    shard_done(&s);
    check_split(m, &split);
    model_close(m);
    builder_done(&b);
}

static void expect_layers(const char *text, uint32_t n_ranks, uint32_t n_layer,
                          const uint32_t *weight, const uint32_t *ends)
{
    struct split s;
    struct error err = {0};
    if (split_parse(text, n_ranks, n_layer, weight, &s, &err) != 0)
        fail_msg("%s", err.message);
    for (uint32_t i = 0; i < s.n_stages; i++)
        assert_int_equal(s.stage[i].layers.end, ends[i]);
    assert_int_equal(split_check(&s, n_layer, &err), 0);
}

static void test_layers_follow_weights(void **state)
{
    (void)state;
    expect_layers("pipeline", 3, 30, NULL, (const uint32_t[]){10, 20, 30});
    expect_layers("pipeline", 3, 30, (const uint32_t[]){1, 1, 4}, (const uint32_t[]){5, 10, 30});
    expect_layers("pipeline", 3, 3, (const uint32_t[]){1, 1000, 1}, (const uint32_t[]){1, 2, 3});
    expect_layers("pipeline", 3, 4, (const uint32_t[]){1000, 1, 1}, (const uint32_t[]){2, 3, 4});
    expect_layers("pipeline", 4, 30,
                  (const uint32_t[]){UINT32_MAX, UINT32_MAX, UINT32_MAX, UINT32_MAX},
                  (const uint32_t[]){8, 15, 23, 30});
    expect_layers("2x2", 4, 12, (const uint32_t[]){1, 1, 3, 1}, (const uint32_t[]){4, 12});
    expect_layers("tensor", 4, 1, NULL, (const uint32_t[]){1});
}

static void test_the_head_counts(void **state)
{
    (void)state;
    static const struct {
        double head_layers;
        uint32_t ends[2];
    } rows[] = {{0, {8, 16}}, {1.7, {9, 16}}, {4, {10, 16}}, {100, {15, 16}}};
    struct split s;
    struct error err = {0};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        assert_int_equal(split_parse("pipeline", 2, 16, NULL, &s, &err), 0);
        split_count_head(&s, 16, rows[i].head_layers);
        assert_int_equal(s.stage[0].layers.end, rows[i].ends[0]);
        assert_int_equal(s.stage[1].layers.end, rows[i].ends[1]);
        assert_int_equal(split_check(&s, 16, &err), 0);
    }
}

static void refuse(const char *text, uint32_t n_ranks, uint32_t n_layer, const uint32_t *weight,
                   const char *part)
{
    struct split s;
    struct error err = {0};
    assert_int_equal(split_parse(text, n_ranks, n_layer, weight, &s, &err), E_INVALID);
    if (strstr(err.message, part) == NULL)
        fail_msg("'%s' does not contain '%s'", err.message, part);
}

static void test_refuses_bad_splits(void **state)
{
    (void)state;
    static const char *const texts[] = {"",    "x",     "2",       "2x",  "x2",     "2x2x",
                                        "2x3", "-1x-4", "02000x1", "0x4", "tensors"};
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        refuse(texts[i], 4, 30, NULL, "use 'pipeline', 'tensor' or 'SxT'");
    refuse("pipeline", 4, 3, NULL, "4 stages for 3 layers");
    refuse("tensor", 0, 3, NULL, "0 ranks");
    refuse("tensor", LIMIT_RANKS + 1, 3, NULL, "65 ranks");
    refuse("tensor", 2, 3, (const uint32_t[]){0, 0}, "weight 0");
    refuse("2x1", 2, 3, (const uint32_t[]){1, 0}, "stage 1");
}

static void test_checks_texts(void **state)
{
    (void)state;
    static const char *const good[] = {"pipeline", "tensor", "1x1", "2x3", "8x8", "64x1"};
    static const char *const bad[] = {"",    "Pipeline", "tensor ", "2",    "x2",  "2x",     "0x2",
                                      "9x8", "2x2x2",    "-1x2",    "2 x2", "1e1", "999x999"};
    struct error err = {0};
    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++)
        assert_int_equal(split_check_text(good[i], &err), 0);
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_int_equal(split_check_text(bad[i], &err), E_INVALID);
}

static void test_check_finds_gaps(void **state)
{
    (void)state;
    struct split good, s;
    struct error err = {0};
    assert_int_equal(split_parse("2x2", 4, 10, NULL, &good, &err), 0);
    uint32_t *const fields[] = {
        &s.stage[0].layers.begin,
        &s.stage[0].layers.end,
        &s.stage[1].layers.begin,
        &s.stage[1].layers.end,
        &s.stage[0].rank_first,
        &s.stage[0].n_ranks,
        &s.stage[1].rank_first,
        &s.stage[1].n_ranks,
        &s.n_ranks,
        &s.n_stages,
    };
    static const uint32_t values[] = {0, 1, 3, 4, 6, 9, 11, 64, 65, UINT32_MAX};
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
        for (size_t k = 0; k < sizeof(values) / sizeof(values[0]); k++) {
            s = good;
            if (*fields[i] == values[k])
                continue;
            *fields[i] = values[k];
            assert_int_equal(split_check(&s, 10, &err), E_INVALID);
        }
}

static void test_descriptions(void **state)
{
    (void)state;
    char text[32];
    struct split s;
    struct error err = {0};
    static const char *const rows[][2] = {
        {"pipeline", "pipeline"}, {"tensor", "tensor"}, {"2x3", "2x3"}, {"1x6", "tensor"}};
    for (size_t i = 0; i < 4; i++) {
        assert_int_equal(split_parse(rows[i][0], 6, 10, NULL, &s, &err), 0);
        assert_string_equal(split_describe(&s, text), rows[i][1]);
    }
    assert_int_equal(split_parse("tensor", 1, 10, NULL, &s, &err), 0);
    assert_string_equal(split_describe(&s, text), "1x1");
    assert_int_equal(split_parse("2x1", 2, 10, NULL, &s, &err), 0);
    s.n_ranks = 3;
    s.stage[0].n_ranks = 2;
    s.stage[1].rank_first = 2;
    s.weight[2] = 1;
    assert_int_equal(split_check(&s, 10, &err), 0);
    assert_string_equal(split_describe(&s, text), "2+1");
    s.n_stages = LIMIT_STAGES;
    for (uint32_t i = 0; i < LIMIT_STAGES; i++)
        s.stage[i].n_ranks = 60 + i % 2;
    assert_non_null(strstr(split_describe(&s, text), "..."));
}

static void test_wire_form(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed < 200; seed++) {
        struct dice d = {.seed = seed};
        struct split s, back;
        struct cursor c;
        struct buf b;
        struct error err = {0};
        roll_split(&d, roll(&d, 1, 12), &s);
        buf_init(&b, 4096);
        assert_int_equal(split_encode(&s, &b), 0);
        cursor_init(&c, b.data, b.len);
        assert_int_equal(split_decode(&c, &back, &err), 0);
        assert_int_equal(cursor_left(&c), 0);
        assert_memory_equal(&s, &back, sizeof(s));
        for (size_t n = 0; n < b.len; n += 1 + n / 8) {
            cursor_init(&c, b.data, n);
            assert_int_equal(split_decode(&c, &back, &err), E_PROTOCOL);
        }
        b.data[roll(&d, 0, 7)] = (char)roll(&d, 100, 255); /* a count */
        cursor_init(&c, b.data, b.len);
        assert_int_equal(split_decode(&c, &back, &err), E_PROTOCOL);
        buf_done(&b);
    }
}

static void test_refuses_bad_ranks(void **state)
{
    (void)state;
    struct builder b;
    struct split split;
    struct shard s;
    struct error err = {0};
    struct model *m = open_shape(&b, &builder_tiny);
    assert_int_equal(split_parse("tensor", 2, 2, NULL, &split, &err), 0);
    assert_int_equal(shard_init(&s, m, &split, 2, &err), E_INVALID);
    assert_int_equal(split_parse("tensor", 2, 3, NULL, &split, &err), 0);
    assert_int_equal(shard_init(&s, m, &split, 0, &err), E_INVALID); /* made for another model */
    shard_done(NULL);
    model_close(m);
    builder_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_shapes_are_covered),
        cmocka_unit_test(test_remainders_rotate),
        cmocka_unit_test(test_units_follow_blocks),
        cmocka_unit_test(test_layers_follow_weights),
        cmocka_unit_test(test_the_head_counts),
        cmocka_unit_test(test_refuses_bad_splits),
        cmocka_unit_test(test_checks_texts),
        cmocka_unit_test(test_check_finds_gaps),
        cmocka_unit_test(test_descriptions),
        cmocka_unit_test(test_wire_form),
        cmocka_unit_test(test_refuses_bad_ranks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
