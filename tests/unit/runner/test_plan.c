/* Step plans on the wire. */
#include "base/rng.h"
#include "runner/plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t seed, drawn;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(rng_u64(seed, drawn++, 1) % below);
}

/* Any n of the slots, each once. */
static void draw_slots(uint32_t *slots, uint32_t n)
{
    uint32_t all[LIMIT_SLOTS];
    for (uint32_t i = 0; i < LIMIT_SLOTS; i++)
        all[i] = i;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t k = i + draw(LIMIT_SLOTS - i), slot = all[k];
        all[k] = all[i];
        all[i] = slots[i] = slot;
    }
}

static uint8_t masks[2000]; /* random */

static void draw_plan(struct plan *p)
{
    for (uint32_t i = 0; i < sizeof(masks) && masks[0] == 0; i++)
        masks[i] = (uint8_t)(1 + i * 37);
    uint32_t slots[LIMIT_SLOTS];
    p->kind = (enum plan_kind)(PLAN_STEP + draw(8) / 6);
    p->number = rng_u64(seed, drawn++, 2);
    p->n_copies = p->n_attaches = p->n_parts = p->n_blocks = p->n_tokens = 0;
    p->n_mask_bytes = 0;
    if (p->kind != PLAN_STEP)
        return;
    p->n_copies = draw(4);
    for (uint32_t i = 0; i < p->n_copies; i++)
        p->copy[i] = (struct plan_copy){
            .from = draw(1000), .to = 1000 + draw(1000), .n_tokens = 1 + draw(255)};
    p->n_attaches = draw(6);
    draw_slots(slots, p->n_attaches);
    for (uint32_t i = 0; i < p->n_attaches; i++) {
        struct plan_attach *attach = &p->attach[i];
        attach->slot = slots[i];
        attach->n_blocks = draw(40);
        attach->n_keep = attach->n_blocks > 0 ? draw(5000) : 0;
        sampling_init(&attach->sampling);
        attach->sampling.n_bias = draw(4);
        attach->sampling.seed = draw(UINT32_MAX);
        p->n_blocks += attach->n_blocks;
    }
    p->n_parts = 1 + draw(LIMIT_SLOTS);
    draw_slots(slots, p->n_parts);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        p->part[i] = (struct plan_part){.slot = slots[i],
                                        .n_tokens = 1 + draw(LIMIT_BATCH_TOKENS / LIMIT_SLOTS),
                                        .output = (enum step_output)draw(3),
                                        .n_past = draw(5000),
                                        .prefix_hash = rng_u64(seed, drawn++, 3),
                                        .n_new_blocks = draw(3)};
        p->part[i].n_logprobs = draw(3) == 0 ? draw(2 + LIMIT_TOP_LOGPROBS) : 0;
        if (p->part[i].output == STEP_OUTPUT_LAST && seed % 2 == 0 && draw(3) == 0)
            p->part[i].mask = masks + draw(1000);
        if (p->part[i].mask != NULL && p->n_mask_bytes == 0)
            p->n_mask_bytes = 1 + draw(1000);
        p->n_tokens += p->part[i].n_tokens;
        p->n_blocks += p->part[i].n_new_blocks;
    }
    for (uint32_t i = 0; i < p->n_blocks; i++)
        p->blocks[i] = draw(UINT32_MAX);
    for (uint32_t i = 0; i < p->n_tokens; i++)
        p->tokens[i] = (int32_t)draw(100000);
}

static struct plan *new_plan(void)
{
    struct plan *p = calloc(1, sizeof(*p));
    assert_non_null(p);
    return p;
}

static void round_trips(void **state)
{
    (void)state;
    struct plan *p = new_plan(), *q = new_plan();
    struct buf b, again;
    buf_init(&b, PLAN_BYTES_MAX);
    buf_init(&again, PLAN_BYTES_MAX);
    for (seed = 0; seed < 200; seed++) {
        struct error err = {0};
        drawn = 0;
        draw_plan(p);
        buf_reset(&b);
        buf_reset(&again);
        assert_int_equal(plan_encode(&b, p), 0);
        int rc = plan_decode(b.data, b.len, q, &err);
        if (rc != 0)
            fail_msg("seed %llu: %s", (unsigned long long)seed, err.message);
        assert_int_equal(plan_encode(&again, q), 0);
        assert_int_equal(again.len, b.len);
        assert_memory_equal(again.data, b.data, b.len);
        assert_int_equal(plan_n_rows(p), plan_n_rows(q));
        for (uint32_t i = 0; i < p->n_parts; i++) {
            assert_int_equal(p->part[i].n_logprobs, q->part[i].n_logprobs);
            assert_int_equal(p->part[i].mask != NULL, q->part[i].mask != NULL);
            if (p->part[i].mask != NULL)
                assert_memory_equal(p->part[i].mask, q->part[i].mask, p->n_mask_bytes);
        }
    }
    buf_done(&b);
    buf_done(&again);
    free(p);
    free(q);
}

static void truncations_and_bit_flips(void **state)
{
    (void)state;
    struct plan *p = new_plan(), *q = new_plan();
    struct buf b, again;
    buf_init(&b, PLAN_BYTES_MAX);
    buf_init(&again, PLAN_BYTES_MAX);
    seed = 3;
    drawn = 0;
    do
        draw_plan(p);
    while (p->kind != PLAN_STEP || p->n_parts > 4);
    assert_int_equal(plan_encode(&b, p), 0);
    for (size_t n = 0; n < b.len; n++) {
        uint8_t *copy = malloc(n + 1); /* so that a sanitizer sees a read beyond */
        assert_non_null(copy);
        memcpy(copy, b.data, n);
        assert_int_equal(plan_decode(copy, n, q, NULL), E_PROTOCOL);
        free(copy);
    }
    for (size_t bit = 0; bit < 8 * b.len; bit++) {
        b.data[bit / 8] ^= (char)(1 << bit % 8);
        buf_reset(&again);
        if (plan_decode(b.data, b.len, q, NULL) == 0) {
            assert_int_equal(plan_encode(&again, q), 0);
            assert_memory_equal(again.data, b.data, b.len);
        }
        b.data[bit / 8] ^= (char)(1 << bit % 8);
    }
    buf_done(&b);
    buf_done(&again);
    free(p);
    free(q);
}

static int decode_after(const struct plan *p, struct plan *q, struct error *err)
{
    struct buf b;
    buf_init(&b, PLAN_BYTES_MAX);
    assert_int_equal(plan_encode(&b, p), 0);
    int rc = plan_decode(b.data, b.len, q, err);
    buf_done(&b);
    return rc;
}

static void bad_plans_are_refused(void **state)
{
    (void)state;
    struct plan *p = new_plan(), *q = new_plan();
    struct error err = {0};
    p->kind = PLAN_STEP;
    p->n_parts = 2;
    p->part[0] = (struct plan_part){.slot = 0, .n_tokens = 1, .output = STEP_OUTPUT_LAST};
    p->part[1] = (struct plan_part){.slot = 1, .n_tokens = 2, .output = STEP_OUTPUT_ALL};
    p->n_tokens = 3;
    assert_int_equal(decode_after(p, q, &err), 0);
    assert_int_equal(plan_n_rows(q), 3);

    p->part[1].slot = 0;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, "twice"));
    p->part[1].slot = LIMIT_SLOTS;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->part[1].slot = 1;
    p->part[1].n_tokens = 1;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->part[1].n_tokens = 0;
    p->n_tokens = 1;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->part[1].n_tokens = 2;
    p->n_tokens = 3;
    p->tokens[2] = -1;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->tokens[2] = 0;
    p->n_parts = 0;
    p->n_tokens = 0;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    free(p);
    free(q);
}

static void bad_blocks_are_refused(void **state)
{
    (void)state;
    struct plan *p = new_plan(), *q = new_plan();
    struct error err = {0};
    p->kind = PLAN_STEP;
    p->n_copies = 1;
    p->copy[0] = (struct plan_copy){.from = 3, .to = 4, .n_tokens = 20};
    p->n_attaches = 2;
    p->attach[0] = (struct plan_attach){.slot = 1, .n_keep = 20, .n_blocks = 1};
    p->attach[1] = (struct plan_attach){.slot = 2};
    p->n_parts = 1;
    p->part[0] = (struct plan_part){.slot = 1, .n_tokens = 1, .n_past = 20, .n_new_blocks = 2};
    p->n_tokens = 1;
    p->n_blocks = 3;
    assert_int_equal(decode_after(p, q, &err), 0);
    assert_int_equal(q->copy[0].to, 4);
    assert_int_equal(q->part[0].n_new_blocks, 2);

    p->copy[0].to = 3;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->copy[0].to = 4;
    p->copy[0].n_tokens = 0;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->copy[0].n_tokens = 20;
    p->attach[1].slot = 1;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, "plan.attaches: slot 1 twice"));
    p->attach[1].slot = 2;
    p->attach[1].n_keep = 1; /* in no block */
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->attach[1].n_keep = 0;
    /* Block counts that do not add up, also when their sum passes 32 bits. */
    p->n_blocks = 4;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, "plan.n_blocks: 4, attaches and parts have 3"));
    p->n_blocks = 2;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->n_blocks = 0;
    p->attach[0].n_blocks = UINT32_MAX - 1;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    p->attach[0].n_blocks = PLAN_BLOCKS_MAX;
    assert_int_equal(decode_after(p, q, &err), E_PROTOCOL);
    free(p);
    free(q);
}

static void the_largest_plan_fits(void **state)
{
    (void)state;
    struct plan *p = new_plan(), *q = new_plan();
    struct buf b;
    p->kind = PLAN_STEP;
    p->n_copies = p->n_attaches = p->n_parts = LIMIT_SLOTS;
    for (uint32_t i = 0; i < LIMIT_SLOTS; i++) {
        p->copy[i] = (struct plan_copy){.from = 0, .to = 1, .n_tokens = 1};
        p->attach[i].slot = p->part[i].slot = i;
        sampling_init(&p->attach[i].sampling);
        p->attach[i].sampling.n_bias = LIMIT_LOGIT_BIAS;
        p->part[i].n_tokens = LIMIT_BATCH_TOKENS / LIMIT_SLOTS;
        p->part[i].n_new_blocks = PLAN_BLOCKS_MAX / LIMIT_SLOTS;
    }
    p->n_tokens = LIMIT_BATCH_TOKENS;
    p->n_blocks = PLAN_BLOCKS_MAX;
    buf_init(&b, PLAN_BYTES_MAX);
    assert_int_equal(plan_encode(&b, p), 0);
    assert_int_equal(plan_decode(b.data, b.len, q, NULL), 0);
    buf_done(&b);
    free(p);
    free(q);
}

static void hashes_extend(void **state)
{
    (void)state;
    const int32_t tokens[] = {5, 6, 7, 8}, swapped[] = {5, 7, 6, 8}, zeros[] = {0, 0};
    uint64_t whole = plan_hash(PLAN_HASH_EMPTY, tokens, 4);
    assert_true(whole == plan_hash(plan_hash(PLAN_HASH_EMPTY, tokens, 1), tokens + 1, 3));
    assert_true(whole != plan_hash(PLAN_HASH_EMPTY, swapped, 4));
    assert_true(plan_hash(PLAN_HASH_EMPTY, zeros, 1) != plan_hash(PLAN_HASH_EMPTY, zeros, 2));
}

static void rows_travel(void **state)
{
    (void)state;
    const struct step_row rows[2] = {{.token = 3, .logit = 1.5f, .logit_second = -2.0f},
                                     {.token = 99, .logit = 0.0f, .logit_second = -0.5f}};
    struct step_row again[2];
    struct buf b;
    buf_init(&b, 1024);
    assert_int_equal(plan_encode_rows(&b, rows, 2), 0);
    assert_int_equal(b.len, 2 * PLAN_ROW_BYTES);
    assert_int_equal(plan_decode_rows(b.data, 2, 100, again, NULL), 0);
    assert_memory_equal(again, rows, sizeof(rows));
    assert_int_equal(plan_decode_rows(b.data, 2, 99, again, NULL), E_PROTOCOL);
    buf_done(&b);
}

static void logprobs_round_trip(void **state)
{
    (void)state;
    static struct logprobs rows[8], again[8];
    struct plan_logprobs asked = {.n_parts = 4,
                                  .part = {{1, 0}, {3, 1}, {0, 5}, {2, 1 + LIMIT_TOP_LOGPROBS}}};
    struct buf b;
    for (uint32_t i = 0; i < 6; i++) {
        rows[i] = (struct logprobs){.chosen = -(float)i};
        for (uint32_t k = 0; i >= 4 && k < 7 * (i - 3); k++) /* fewer than were asked for */
            if (k < LIMIT_TOP_LOGPROBS)
                rows[i].top[rows[i].n_top++] = (struct token_logprob){(int32_t)(i + k), -(float)k};
    }
    buf_init(&b, 4096);
    assert_int_equal(plan_encode_logprobs(&b, &asked, rows), 0);
    assert_int_equal(b.len, plan_logprobs_bytes(&asked));
    assert_int_equal(plan_decode_logprobs(b.data, &asked, 100, again, NULL), 0);
    for (uint32_t i = 1; i < 6; i++)
        assert_memory_equal(&again[i], &rows[i], sizeof(rows[i]));
    assert_int_equal(plan_decode_logprobs(b.data, &asked, 5, again, NULL), E_PROTOCOL);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),           cmocka_unit_test(truncations_and_bit_flips),
        cmocka_unit_test(bad_plans_are_refused), cmocka_unit_test(bad_blocks_are_refused),
        cmocka_unit_test(the_largest_plan_fits), cmocka_unit_test(hashes_extend),
        cmocka_unit_test(rows_travel),           cmocka_unit_test(logprobs_round_trip),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
