/* An engine of one rank on a tiny model, and short words for what tests do with it. */
#ifndef TEST_FIXTURE_H
#define TEST_FIXTURE_H

#include "shapes.h"

struct fixture {
    struct tiny_model tiny;
    struct model *model;
    struct engine *e;
    struct engine_info info;
    uint64_t number;
    uint32_t n_vocab;
};

static void fixture_init(struct fixture *f, const struct tiny_shape *shape,
                         const struct engine_options *options)
{
    struct error err = {0};
    struct split split;
    *f = (struct fixture){.n_vocab = shape->n_vocab};
    tiny_model_init(&f->tiny, shape);
    assert_int_equal(model_open(f->tiny.path, &f->model, &err), 0);
    assert_int_equal(split_parse("pipeline", 1, shape->n_layer, NULL, &split, &err), 0);
    if (engine_open(f->model, &split, 0, NULL, options, &f->e, &err) != 0)
        fail_msg("%s", err.message);
    engine_get_info(f->e, &f->info);
}

static void fixture_done(struct fixture *f)
{
    engine_close(f->e);
    model_close(f->model);
    tiny_model_done(&f->tiny);
}

static int attach(struct fixture *f, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                  uint32_t n_keep)
{
    struct sampling sampling;
    sampling_init(&sampling);
    return engine_slot_attach(f->e, slot, blocks, n_blocks, n_keep, &sampling, NULL);
}

/* Runs tokens[n] in a slot, in one step. logits, if not NULL: [n][n_vocab]. */
static int run(struct fixture *f, uint32_t slot, const int32_t *tokens, uint32_t n, float *logits)
{
    struct step_result result;
    struct step step = {.number = f->number + 1, .n_parts = 1, .n_tokens = n, .tokens = tokens};
    step.part[0] = (struct step_part){.slot = slot, .n_tokens = n, .output = STEP_OUTPUT_ALL};
    int rc = engine_step(f->e, &step, &result, NULL);
    if (rc != 0)
        return rc;
    f->number++;
    assert_int_equal(result.n_rows, n);
    for (uint32_t i = 0; logits != NULL && i < n; i++)
        memcpy(logits + (size_t)i * f->n_vocab, engine_logits(f->e, i, NULL),
               f->n_vocab * sizeof(float));
    return 0;
}

#endif
