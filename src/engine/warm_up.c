/* The first steps of an engine, before anybody waits for them: pages of code and buffers come in,
 * work space gets its size, caches and clocks of the processor settle. */
#include "engine/internal.h"

#include "base/clock.h"
#include "engine/memory.h"

#include <stdlib.h>
#include <string.h>

enum {
    WARM_UP_MS = 300,         /* what the chunk may take, more or less */
    WARM_UP_TOKENS_MIN = 16,  /* from here on matrices are multiplied as for any prompt */
    WARM_UP_TOKENS_MAX = 512, /* more shows nothing new */
    PREFAULT_BYTES_MAX = 128 << 20,
};

/* The buffer is as large as the largest step needs, larger than what the steps here touch. It is
 * used from its beginning; the masks of a very long context are only touched when it is long. */
static void prefault_buffer(const struct engine *e)
{
    const struct ggml_tensor *any = e->graph.positions;
    if (any == NULL || any->buffer == NULL || e->kv.is_on_device)
        return;
    void *base = ggml_backend_buffer_get_base(any->buffer);
    size_t bytes = ggml_backend_buffer_get_size(any->buffer);
    memory_advise_huge(base, bytes);
    if (bytes > PREFAULT_BYTES_MAX)
        bytes = PREFAULT_BYTES_MAX;
    memory_prefault_writable(base, bytes);
}

static void clear_hidden_in(const struct engine *e)
{
    struct ggml_tensor *hidden = e->graph.hidden_in;
    if (hidden != NULL && hidden->data != NULL)
        memset(hidden->data, 0, ggml_nbytes(hidden));
}

/* Slot 0 goes on with n tokens (any will do) as in a real step, but alone. */
static int run_alone(struct engine *e, uint32_t n, uint64_t *ret_ns, struct error *err)
{
    int32_t *tokens = calloc(n, sizeof(*tokens));
    if (tokens == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    struct step step = {.n_parts = 1, .n_tokens = n, .tokens = tokens};
    step.part[0] = (struct step_part){.slot = 0, .n_tokens = n, .output = STEP_OUTPUT_LAST};
    uint64_t start = clock_now_ns();
    int rc = engine_prepare(e, &step, err);
    if (rc == 0) {
        kv_cache_append(&e->kv, 0, tokens, n);
        clear_hidden_in(e);
        prefault_buffer(e);
        rc = engine_compute(e, err);
    }
    struct range vocab = {0};
    const float *logits = rc == 0 ? engine_logits(e, 0, &vocab) : NULL;
    struct sampler_choice choice;
    if (logits != NULL && vocab.end > vocab.begin)
        rc = sampler_choose(e->sampler, &e->sampling[0], logits, vocab, NULL, tokens, n, NULL,
                            e->link.group, &choice, err);
    *ret_ns = clock_now_ns() - start;
    free(tokens);
    return rc;
}

static int run_both(struct engine *e, uint32_t n_max, struct error *err)
{
    uint64_t first_ns, one_ns, chunk_ns;
    int rc = run_alone(e, 1, &first_ns, err);
    if (rc == 0 && n_max > 1)
        rc = run_alone(e, 1, &one_ns, err);
    /* With weights kept from before, somebody waits for a repair, and the process is warm. */
    if (rc != 0 || n_max <= 2 || e->weights->bytes_kept > 0)
        return rc;
    /* A token of a chunk takes a quarter of one alone, on a machine that we know nothing about. */
    uint64_t n = WARM_UP_MS * UINT64_C(1000000) / (one_ns / 4 + 1);
    n = n < WARM_UP_TOKENS_MIN   ? WARM_UP_TOKENS_MIN
        : n > WARM_UP_TOKENS_MAX ? WARM_UP_TOKENS_MAX
                                 : n;
    return run_alone(e, n < n_max - 2 ? (uint32_t)n : n_max - 2, &chunk_ns, err);
}

int engine_warm_up(struct engine *e, struct error *err)
{
    const struct kv_shape *shape = &e->kv.shape;
    uint32_t n_blocks = (WARM_UP_TOKENS_MAX + 2) / shape->block_tokens + 1;
    uint32_t blocks[WARM_UP_TOKENS_MAX / KV_BLOCK_TOKENS_MIN + 2];
    if (n_blocks > shape->n_ctx / shape->block_tokens)
        n_blocks = shape->n_ctx / shape->block_tokens;
    if (n_blocks > shape->n_blocks)
        n_blocks = shape->n_blocks;
    if (n_blocks > shape->n_attached_max)
        n_blocks = shape->n_attached_max;
    for (uint32_t i = 0; i < n_blocks; i++)
        blocks[i] = i;
    uint32_t n_max = n_blocks * shape->block_tokens;
    if (n_max > e->options.n_batch)
        n_max = e->options.n_batch;

    int rc = kv_cache_attach(&e->kv, 0, blocks, n_blocks, 0, err);
    e->link.is_silent = true;
    if (rc == 0)
        rc = run_both(e, n_max, err);
    e->link.is_silent = false;
    int rc_detach = kv_cache_attach(&e->kv, 0, NULL, 0, 0, rc == 0 ? err : NULL);
    for (uint32_t i = 0; i < n_blocks; i++)
        e->kv.block[i].n_tokens = 0;
    e->timing = (struct engine_timing){0};
    return rc != 0 ? rc : rc_detach;
}
