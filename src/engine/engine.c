#include "engine/internal.h"

#include "base/log.h"

#include <ggml-cpu.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CTX_DEFAULT = 4096, BATCH_DEFAULT = 512 };

/* ---- open and close ---- */

static enum ggml_type kv_ggml_type(const struct engine *e)
{
    return e->options.kv_type == KV_Q8_0 ? GGML_TYPE_Q8_0 : GGML_TYPE_F16;
}

static bool must_stop(void *arg)
{
    struct engine *e = arg;
    return engine_must_stop(e);
}

bool engine_must_stop(const struct engine *e)
{
    return e->link.status != 0 || atomic_load_explicit(&e->aborted, memory_order_relaxed);
}

/* Whether the device has ggml's fused attention for heads like the model's. */
static bool has_flash(const struct engine *e, ggml_backend_dev_t device)
{
    const struct model_config *c = &e->model->config;
    struct ggml_init_params params = {.mem_size = 8 * ggml_tensor_overhead(), .no_alloc = true};
    /* Mesa's software driver (22.3) writes beyond its memory there, which ends in a crash. */
    if (strstr(ggml_backend_dev_description(device), "llvmpipe") != NULL)
        return false;
    struct ggml_context *ctx = ggml_init(params);
    if (ctx == NULL)
        return false;
    struct ggml_tensor *q = ggml_new_tensor_3d(ctx, GGML_TYPE_F32, c->head_dim, 1, c->n_head);
    struct ggml_tensor *k =
        ggml_new_tensor_3d(ctx, kv_ggml_type(e), c->head_dim, KV_PAD, c->n_head_kv);
    struct ggml_tensor *mask = ggml_new_tensor_2d(ctx, GGML_TYPE_F16, KV_PAD, 1);
    bool has = ggml_backend_dev_supports_op(
        device, ggml_flash_attn_ext(ctx, q, k, k, mask, c->attn_scale, 0.0f, 0.0f));
    ggml_free(ctx);
    return has;
}

/* What is built depends on what computes it. */
static void choose_target(struct engine *e)
{
    const struct model_config *config = &e->model->config;
    ggml_backend_dev_t device = compute_device(&e->compute);
    e->attends_by_row = device == NULL && e->options.kv_type == KV_F16 &&
                        attention_can(GGML_TYPE_F16, config->head_dim, config->n_head);
    /* Attention of 8-bit rows that the device cannot do is left to the processors. */
    if (device != NULL)
        e->builder.target =
            e->options.kv_type != KV_F16 || has_flash(e, device) ? GRAPH_DEVICE : GRAPH_NO_FLASH;
}

static int open_backend(struct engine *e, struct error *err)
{
    ggml_backend_dev_t device;
    int rc = compute_find(e->options.device, &device, err);
    if (rc == 0)
        rc = compute_open(&e->compute, device, e->options.n_threads, err);
    if (rc != 0)
        return rc;
    ggml_backend_cpu_set_abort_callback(e->compute.cpu, must_stop, e);
    choose_target(e);
    return 0;
}

/* Which ranks of the stage add something to each sum: every rank can work that out, as shards are
 * functions of (model, split). */
static int plan_reduces(struct engine *e, const struct split *split, struct error *err)
{
    uint32_t n_layers = e->shard.layers.end - e->shard.layers.begin;
    if (e->shard.n_stage_ranks == 1)
        return 0;
    e->reduces = calloc(2 * (size_t)n_layers, sizeof(*e->reduces));
    if (e->reduces == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < 2 * n_layers; i++)
        e->reduces[i].link = &e->link;
    for (uint32_t r = 0; r < e->shard.n_stage_ranks; r++) {
        struct shard peer;
        int rc = shard_init(&peer, e->model, split, e->shard.stage_rank_first + r, err);
        if (rc != 0)
            return rc;
        for (uint32_t i = 0; i < n_layers; i++) {
            uint64_t bit = (uint64_t)1 << r;
            if (peer.layer[i].kv_heads.end > peer.layer[i].kv_heads.begin)
                e->reduces[i].mask |= bit;
            if (peer.layer[i].ff.end > peer.layer[i].ff.begin)
                e->reduces[n_layers + i].mask |= bit;
        }
        shard_done(&peer);
    }
    e->builder.reduce_attn = e->reduces;
    e->builder.reduce_ffn = e->reduces + n_layers;
    return 0;
}

static void find_neighbours(struct engine *e, const struct split *split)
{
    if (e->shard.stage > 0) {
        e->prev_rank_first = split->stage[e->shard.stage - 1].rank_first;
        e->n_prev_ranks = split->stage[e->shard.stage - 1].n_ranks;
    }
    if (e->shard.stage + 1 < split->n_stages) {
        e->next_rank_first = split->stage[e->shard.stage + 1].rank_first;
        e->n_next_ranks = split->stage[e->shard.stage + 1].n_ranks;
    }
}

static int reserve_for(struct engine *e, const struct graph_shape *shape, struct error *err)
{
    int rc = graph_build(&e->graph, &e->builder, shape, err);
    if (rc != 0)
        return rc;
    rc = compute_reserve(&e->compute, e->graph.cgraph,
                         graph_n_tensors_max(&e->builder, e->options.n_slots), err);
    graph_done(&e->graph);
    return rc;
}

/* Sizes the graph buffer for the largest step, so that no later one has to allocate: in one piece,
 * and in two, which the first step decides. */
static int reserve_graph_memory(struct engine *e, struct error *err)
{
    uint32_t n_tokens =
        e->options.n_batch < e->kv.shape.n_ctx ? e->options.n_batch : e->kv.shape.n_ctx;
    /* Logits of a whole batch are rare (scoring) and large: the buffer grows if they are asked for.
     */
    struct graph_shape shape = {.n_tokens = n_tokens, .n_outputs = 1, .n_parts = 1};
    shape.part[0] = (struct graph_part){
        .n_tokens = n_tokens, .n_kv = e->kv.shape.n_ctx, .is_gathered = e->kv.is_on_device};
    int rc = reserve_for(e, &shape, err);
    shape.n_early = n_tokens / 2;
    if (rc == 0 && e->shard.n_stage_ranks > 1 && n_tokens >= OVERLAP_ROWS_MIN)
        rc = reserve_for(e, &shape, err);
    return rc;
}

uint32_t engine_default_n_ctx(const struct model *model)
{
    uint32_t n_ctx_train = model->config.n_ctx_train;
    return n_ctx_train < CTX_DEFAULT ? n_ctx_train : CTX_DEFAULT;
}

static void set_defaults(struct engine *e, const struct engine_options *options)
{
    struct engine_options o = *options;
    if (o.n_threads == 0)
        o.n_threads = 1;
    if (o.n_slots == 0)
        o.n_slots = 1;
    if (o.n_ctx == 0)
        o.n_ctx = engine_default_n_ctx(e->model);
    if (o.n_batch == 0)
        o.n_batch = BATCH_DEFAULT;
    e->options = o;
}

static int check_options(const struct engine_options *o, struct error *err)
{
    if (o->n_slots > LIMIT_SLOTS)
        return error_set(err, E_INVALID, "%u slots asked for: at most %d", o->n_slots, LIMIT_SLOTS);
    if (o->n_batch > LIMIT_BATCH_TOKENS)
        return error_set(err, E_INVALID, "steps of %u tokens asked for: at most %d", o->n_batch,
                         LIMIT_BATCH_TOKENS);
    if (o->n_batch < o->n_slots)
        return error_set(err, E_INVALID,
                         "steps of %u tokens cannot serve %u slots: make them at least as large",
                         o->n_batch, o->n_slots);
    if (o->n_threads > 512)
        return error_set(err, E_INVALID, "%u threads asked for: at most 512", o->n_threads);
    if (o->kv_type != KV_F16 && o->kv_type != KV_Q8_0)
        return error_set(err, E_INVALID, "a KV cache of type %d asked for", (int)o->kv_type);
    if (o->n_ctx > 1u << 24)
        return error_set(err, E_INVALID, "a context of %u tokens asked for: at most %u", o->n_ctx,
                         1u << 24);
    return 0;
}

static int load_weights(struct engine *e, struct error *err)
{
    struct weights *kept = e->options.kept;
    e->options.kept = NULL;
    const struct weights_target target = {.device = compute_device(&e->compute),
                                          .repack = !e->options.no_repack};
    int rc = weights_load(e->model, &e->shard, &target, kept, &e->weights, err);
    if (rc != 0)
        return rc;
    const struct weights *w = e->builder.weights = e->weights;
    if (target.device != NULL) {
        if (w->n_matrices_beside == 0)
            compute_use_one_thread(&e->compute);
    } else if (w->bytes_repacked > w->bytes_mapped + w->bytes_packed + w->bytes_plain) {
        e->builder.padding =
            (struct graph_padding){.fours = true, .sixteens = ggml_cpu_has_avx512() != 0};
    }
    return 0;
}

static int open_kv_cache(struct engine *e, struct error *err)
{
    const struct engine_options *o = &e->options;
    struct kv_shape shape;
    kv_shape_plan(&shape, e->model->config.n_layer, o->n_slots, o->n_ctx, o->n_kv_tokens,
                  kv_ggml_type(e));
    return kv_cache_init(&e->kv, e->model, &e->shard, &shape, compute_device(&e->compute), err);
}

static int open_engine(struct engine *e, const struct split *split, uint32_t rank,
                       struct error *err)
{
    int rc = check_options(&e->options, err);
    if (rc == 0 && split->n_ranks > 1 && (e->comm == NULL || comm_size(e->comm) != split->n_ranks))
        rc = error_set(err, E_INVALID, "a split over %u ranks needs a connection among as many",
                       split->n_ranks);
    if (rc == 0)
        rc = shard_init(&e->shard, e->model, split, rank, err);
    if (rc != 0)
        return rc;
    find_neighbours(e, split);
    e->link.comm = e->comm;
    e->link.group =
        (struct comm_group){.first = e->shard.stage_rank_first, .n = e->shard.n_stage_ranks};
    const struct model_config *config = &e->model->config;
    e->builder = (struct graph_builder){
        .model = e->model,
        .shard = &e->shard,
        .kv = &e->kv,
        .attention = {.scale = config->attn_scale},
        .attention_window = {.scale = config->attn_scale, .window = config->window}};

    rc = open_backend(e, err);
    if (rc == 0)
        rc = plan_reduces(e, split, err);
    if (rc == 0)
        rc = load_weights(e, err);
    if (rc == 0)
        rc = open_kv_cache(e, err);
    if (rc == 0 && e->shard.is_last_stage)
        rc = sampler_new(e->model->config.n_vocab, &e->sampler, err);
    if (rc != 0)
        return rc;

    e->rows = calloc(e->options.n_batch, sizeof(*e->rows));
    e->sampling = calloc(e->options.n_slots, sizeof(*e->sampling));
    if (e->rows == NULL || e->sampling == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < e->options.n_slots; i++)
        sampling_init(&e->sampling[i]);
    rc = reserve_graph_memory(e, err);
    return rc == 0 ? engine_warm_up(e, err) : rc;
}

int engine_open(const struct model *model, const struct split *split, uint32_t rank,
                struct comm *comm, const struct engine_options *options, struct engine **ret_engine,
                struct error *err)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (e == NULL) {
        weights_free(options->kept);
        return error_set(err, E_NOMEM, "out of memory");
    }
    e->model = model;
    e->comm = comm;
    set_defaults(e, options);
    int rc = open_engine(e, split, rank, err);
    if (rc != 0) {
        engine_close(e);
        return rc;
    }
    *ret_engine = e;
    return 0;
}

void engine_close(struct engine *e)
{
    if (e == NULL)
        return;
    graph_done(&e->graph);
    compute_close(&e->compute);
    free(e->logits.copy);
    free(e->hidden_out.copy);
    free(e->sampling);
    free(e->rows);
    free(e->logprobs);
    free(e->reduces);
    sampler_free(e->sampler);
    kv_cache_done(&e->kv);
    weights_free(e->weights);
    weights_free(e->options.kept);
    shard_done(&e->shard);
    free(e);
}

struct weights *engine_close_keeping(struct engine *e)
{
    if (e == NULL)
        return NULL;
    struct weights *kept = e->weights;
    e->weights = NULL;
    engine_close(e);
    return kept;
}

/* ---- slots and blocks ---- */

int engine_slot_attach(struct engine *e, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                       uint32_t n_keep, const struct sampling *sampling, struct error *err)
{
    int rc = sampling_check(sampling, e->model->config.n_vocab, err);
    if (rc == 0)
        rc = kv_cache_attach(&e->kv, slot, blocks, n_blocks, n_keep, err);
    if (rc == 0)
        e->sampling[slot] = *sampling;
    return rc;
}

int engine_slot_extend(struct engine *e, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                       struct error *err)
{
    return kv_cache_extend(&e->kv, slot, blocks, n_blocks, err);
}

int engine_slot_truncate(struct engine *e, uint32_t slot, uint32_t n_keep, struct error *err)
{
    return kv_cache_truncate(&e->kv, slot, n_keep, err);
}

int engine_block_copy(struct engine *e, uint32_t from, uint32_t to, uint32_t n_tokens,
                      struct error *err)
{
    return kv_cache_copy(&e->kv, from, to, n_tokens, err);
}

uint32_t engine_slot_n_tokens(const struct engine *e, uint32_t slot)
{
    return e->kv.slot[slot].n_tokens;
}

const int32_t *engine_slot_tokens(const struct engine *e, uint32_t slot)
{
    return e->kv.slot[slot].tokens;
}

/* ---- figures ---- */

void engine_get_info(const struct engine *e, struct engine_info *ret_info)
{
    const struct weights *w = e->weights;
    ggml_backend_dev_t device = compute_device(&e->compute);
    *ret_info = (struct engine_info){
        .weight_bytes = weights_bytes(w),
        .weight_bytes_mapped = w->bytes_mapped,
        .weight_bytes_repacked = w->bytes_packed + w->bytes_repacked,
        .weight_bytes_kept = w->bytes_kept,
        .weight_bytes_device = w->bytes_device,
        .kv_bytes = kv_cache_bytes(&e->kv),
        .compute_bytes = compute_graph_bytes(&e->compute),
        .n_ctx = e->kv.shape.n_ctx,
        .n_slots = e->options.n_slots,
        .n_batch = e->options.n_batch,
        .n_threads = e->options.n_threads,
        .block_tokens = e->kv.shape.block_tokens,
        .n_blocks = e->kv.shape.n_blocks,
        .n_attached_max = e->kv.shape.n_attached_max,
    };
    snprintf(ret_info->device, sizeof(ret_info->device), "%s",
             device != NULL ? ggml_backend_dev_name(device) : "cpu");
}

void engine_get_timing(const struct engine *e, struct engine_timing *ret_timing)
{
    *ret_timing = e->timing;
}

void engine_abort(struct engine *e)
{
    atomic_store_explicit(&e->aborted, true, memory_order_relaxed);
}
