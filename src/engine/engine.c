#include "engine/engine.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/graph.h"
#include "engine/kv_cache.h"
#include "engine/weights.h"

#include <assert.h>
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml-cpu.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { CTX_DEFAULT = 4096, BATCH_DEFAULT = 512 };

struct slot {
    int32_t *tokens; /* [n_ctx] */
    uint32_t n_tokens;
    struct sampling sampling;
};

struct engine {
    const struct model *model;
    struct comm *comm;
    struct shard shard;
    struct engine_options options;
    struct weights weights;
    struct kv_cache kv;
    struct slot *slots; /* [n_slots] */

    ggml_backend_t backend;
    struct ggml_threadpool *threadpool;
    ggml_gallocr_t allocator;
    struct graph_builder builder;
    struct graph_link link;
    struct graph graph;
    struct graph_reduce *reduces; /* [2 * shard layers]: attention, then feed-forward */

    struct sampler *sampler;
    struct step_row *rows; /* [n_batch] */
    uint32_t n_rows;
    uint32_t prev_rank_first, n_prev_ranks, next_rank_first,
        n_next_ranks; /* neighbouring stages; 0 ranks: none */

    uint64_t step_number; /* of the next step; 0 until the first */
    int status;           /* sticky failure */
    atomic_bool aborted;
    struct engine_timing timing;
};

/* ---- open and close ---- */

static bool must_stop(void *arg)
{
    struct engine *e = arg;
    return e->link.status != 0 || atomic_load_explicit(&e->aborted, memory_order_relaxed);
}

/* ggml's own messages go to our log; its "info" is our "debug". */
static void forward_log(enum ggml_log_level level, const char *text, void *arg)
{
    (void)arg;
    if (level == GGML_LOG_LEVEL_ERROR)
        log_error("ggml", "%s", text);
    else if (level == GGML_LOG_LEVEL_WARN)
        log_warn("ggml", "%s", text);
    else
        log_debug("ggml", "%s", text);
}

static void set_log(void)
{
    ggml_log_set(forward_log, NULL);
}

static int open_backend(struct engine *e, struct error *err)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT; /* ranks may be threads of one process */
    pthread_once(&once, set_log);
    e->backend = ggml_backend_cpu_init();
    if (e->backend == NULL)
        return error_set(err, E_NOMEM, "ggml's CPU back end does not start");
    int n_threads = (int)e->options.n_threads;
    if (n_threads > 1) {
        /* A pool of our own: without one ggml makes threads anew in every step. */
        struct ggml_threadpool_params params = ggml_threadpool_params_default(n_threads);
        e->threadpool = ggml_threadpool_new(&params);
        if (e->threadpool == NULL)
            return error_set(err, E_NOMEM, "cannot start %d compute threads", n_threads);
        ggml_backend_cpu_set_threadpool(e->backend, e->threadpool);
    }
    ggml_backend_cpu_set_n_threads(e->backend, n_threads);
    ggml_backend_cpu_set_abort_callback(e->backend, must_stop, e);
    e->allocator = ggml_gallocr_new(ggml_backend_get_default_buffer_type(e->backend));
    return e->allocator != NULL ? 0 : error_set(err, E_NOMEM, "out of memory");
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

/* Sizes the graph buffer for the largest step, so that no later one has to allocate. */
static int reserve_graph_memory(struct engine *e, struct error *err)
{
    uint32_t n_tokens = e->options.n_batch < e->kv.n_ctx ? e->options.n_batch : e->kv.n_ctx;
    /* Logits of a whole batch are rare (scoring) and large: the buffer grows if they are asked for.
     */
    struct graph_shape shape = {.n_tokens = n_tokens, .n_outputs = 1, .n_parts = 1};
    shape.part[0] = (struct graph_part){.n_tokens = n_tokens, .n_kv = e->kv.n_ctx};
    int rc = graph_build(&e->graph, &e->builder, &shape, err);
    if (rc != 0)
        return rc;
    if (!ggml_gallocr_reserve(e->allocator, e->graph.cgraph))
        return error_set(err, E_NOMEM, "no memory for graph buffers");
    graph_done(&e->graph);
    return 0;
}

static void set_defaults(struct engine *e, const struct engine_options *options)
{
    struct engine_options o = *options;
    uint32_t n_ctx_train = e->model->config.n_ctx_train;
    if (o.n_threads == 0)
        o.n_threads = 1;
    if (o.n_slots == 0)
        o.n_slots = 1;
    if (o.n_ctx == 0)
        o.n_ctx = n_ctx_train < CTX_DEFAULT ? n_ctx_train : CTX_DEFAULT;
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
    if (o->n_ctx > 1u << 24)
        return error_set(err, E_INVALID, "a context of %u tokens asked for: at most %u", o->n_ctx,
                         1u << 24);
    return 0;
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
    e->builder = (struct graph_builder){
        .model = e->model, .shard = &e->shard, .weights = &e->weights, .kv = &e->kv};

    rc = open_backend(e, err);
    if (rc == 0)
        rc = plan_reduces(e, split, err);
    if (rc == 0)
        rc = weights_load(&e->weights, e->model, &e->shard, !e->options.no_repack, err);
    if (rc == 0)
        rc = kv_cache_init(&e->kv, e->model, &e->shard, e->options.n_ctx, e->options.n_slots, err);
    if (rc == 0 && e->shard.is_last_stage)
        rc = sampler_new(e->model->config.n_vocab, &e->sampler, err);
    if (rc != 0)
        return rc;

    e->rows = calloc(e->options.n_batch, sizeof(*e->rows));
    e->slots = calloc(e->options.n_slots, sizeof(*e->slots));
    if (e->rows == NULL || e->slots == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < e->options.n_slots; i++) {
        sampling_init(&e->slots[i].sampling);
        e->slots[i].tokens = calloc(e->kv.n_ctx, sizeof(int32_t));
        if (e->slots[i].tokens == NULL)
            return error_set(err, E_NOMEM, "out of memory");
    }
    return reserve_graph_memory(e, err);
}

int engine_open(const struct model *model, const struct split *split, uint32_t rank,
                struct comm *comm, const struct engine_options *options, struct engine **ret_engine,
                struct error *err)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (e == NULL)
        return error_set(err, E_NOMEM, "out of memory");
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
    if (e->allocator != NULL)
        ggml_gallocr_free(e->allocator);
    if (e->backend != NULL)
        ggml_backend_free(e->backend);
    if (e->threadpool != NULL)
        ggml_threadpool_free(e->threadpool);
    for (uint32_t i = 0; e->slots != NULL && i < e->options.n_slots; i++)
        free(e->slots[i].tokens);
    free(e->slots);
    free(e->rows);
    free(e->reduces);
    sampler_free(e->sampler);
    kv_cache_done(&e->kv);
    weights_done(&e->weights);
    shard_done(&e->shard);
    free(e);
}

/* ---- slots ---- */

int engine_slot_reset(struct engine *e, uint32_t slot, uint32_t n_keep,
                      const struct sampling *sampling, struct error *err)
{
    if (slot >= e->options.n_slots)
        return error_set(err, E_INVALID, "slot %u does not exist: there are %u", slot,
                         e->options.n_slots);
    if (n_keep > e->slots[slot].n_tokens)
        return error_set(err, E_INVALID, "slot %u holds %u tokens, cannot keep %u", slot,
                         e->slots[slot].n_tokens, n_keep);
    int rc = sampling_check(sampling, e->model->config.n_vocab, err);
    if (rc != 0)
        return rc;
    e->slots[slot].n_tokens = n_keep;
    e->slots[slot].sampling = *sampling;
    return 0;
}

uint32_t engine_slot_n_tokens(const struct engine *e, uint32_t slot)
{
    return e->slots[slot].n_tokens;
}

const int32_t *engine_slot_tokens(const struct engine *e, uint32_t slot)
{
    return e->slots[slot].tokens;
}

/* ---- a step ---- */

static int check_step(const struct engine *e, const struct step *step, struct error *err)
{
    if (e->status != 0)
        return error_set(err, e->status, "the engine is broken by an earlier failure");
    if (e->step_number != 0 && step->number != e->step_number)
        return error_set(err, E_PROTOCOL, "step %llu came where %llu was due",
                         (unsigned long long)step->number, (unsigned long long)e->step_number);
    if (step->n_tokens == 0 || step->n_tokens > e->options.n_batch ||
        step->n_parts > e->options.n_slots)
        return error_set(err, E_INVALID, "a step of %u tokens in %u parts: at most %u in %u",
                         step->n_tokens, step->n_parts, e->options.n_batch, e->options.n_slots);
    uint64_t seen = 0;
    uint32_t n = 0;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct step_part *part = &step->part[i];
        if (part->slot >= e->options.n_slots || (seen >> part->slot & 1) || part->n_tokens == 0 ||
            part->n_tokens > step->n_tokens - n)
            return error_set(err, E_INVALID, "part %u of the step is invalid (slot %u, %u tokens)",
                             i, part->slot, part->n_tokens);
        if (part->n_tokens > e->kv.n_ctx - e->slots[part->slot].n_tokens)
            return error_set(err, E_LIMIT, "slot %u is full: %u tokens and %u more, of %u",
                             part->slot, e->slots[part->slot].n_tokens, part->n_tokens,
                             e->kv.n_ctx);
        seen |= (uint64_t)1 << part->slot;
        n += part->n_tokens;
    }
    if (n != step->n_tokens)
        return error_set(err, E_INVALID, "the parts of the step have %u tokens, not %u", n,
                         step->n_tokens);
    for (uint32_t i = 0; i < step->n_tokens; i++)
        if (step->tokens[i] < 0 || (uint32_t)step->tokens[i] >= e->model->config.n_vocab)
            return error_set(err, E_INVALID, "token %d is not in the vocabulary of %u",
                             step->tokens[i], e->model->config.n_vocab);
    return 0;
}

static uint32_t part_n_outputs(const struct step_part *part)
{
    return part->output == STEP_OUTPUT_ALL    ? part->n_tokens
           : part->output == STEP_OUTPUT_LAST ? 1
                                              : 0;
}

static void make_shape(const struct engine *e, const struct step *step,
                       struct graph_shape *ret_shape)
{
    *ret_shape = (struct graph_shape){.n_tokens = step->n_tokens, .n_parts = step->n_parts};
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct step_part *part = &step->part[i];
        uint32_t n_after = e->slots[part->slot].n_tokens + part->n_tokens;
        ret_shape->n_outputs += part_n_outputs(part);
        ret_shape->part[i] = (struct graph_part){.slot = part->slot,
                                                 .n_tokens = part->n_tokens,
                                                 .n_kv = (n_after + KV_PAD - 1) / KV_PAD * KV_PAD};
    }
}

static int prepare_graph(struct engine *e, const struct step *step, struct error *err)
{
    struct graph_shape shape;
    make_shape(e, step, &shape);
    if (e->graph.cgraph != NULL && graph_shape_equal(&e->graph.shape, &shape))
        return 0;
    uint64_t start = clock_now_ns();
    int rc = graph_build(&e->graph, &e->builder, &shape, err);
    if (rc == 0 && !ggml_gallocr_alloc_graph(e->allocator, e->graph.cgraph)) {
        graph_done(&e->graph);
        rc = error_set(err, E_NOMEM, "no memory for the buffers of a step of %u tokens",
                       shape.n_tokens);
    }
    e->timing.graph_ns += clock_now_ns() - start;
    return rc;
}

/* An input that the shard's graph does not use has no memory. */
static void *input_data(struct ggml_tensor *t)
{
    return t != NULL ? t->data : NULL;
}

/* Row i (position p) sees the cells of positions 0 .. p, or, with a window, the last `window` of
 * them. */
static void fill_mask(struct ggml_tensor *mask, uint32_t position_first, uint32_t window)
{
    enum { F16_ZERO = 0, F16_MINUS_INFINITY = 0xFC00 };
    uint16_t *cell = input_data(mask);
    if (cell == NULL)
        return;
    for (uint32_t i = 0; i < mask->ne[1]; i++) {
        uint32_t end = position_first + i + 1,
                 begin = window != 0 && end > window ? end - window : 0;
        for (uint32_t c = 0; c < mask->ne[0]; c++)
            *cell++ = c >= begin && c < end ? F16_ZERO : F16_MINUS_INFINITY;
    }
}

static void fill_inputs(struct engine *e, const struct step *step)
{
    struct graph *g = &e->graph;
    int32_t *positions = input_data(g->positions), *output_rows = input_data(g->output_rows);
    int64_t *cells = input_data(g->cells);
    if (input_data(g->tokens) != NULL)
        memcpy(g->tokens->data, step->tokens, step->n_tokens * sizeof(int32_t));

    uint32_t row = 0, output = 0;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct step_part *part = &step->part[i];
        uint32_t n_past = e->slots[part->slot].n_tokens;
        for (uint32_t t = 0; t < part->n_tokens; t++) {
            if (positions != NULL)
                positions[row + t] = (int32_t)(n_past + t);
            if (cells != NULL)
                cells[row + t] = (int64_t)part->slot * e->kv.n_ctx + n_past + t;
        }
        fill_mask(g->mask[i], n_past, 0);
        fill_mask(g->mask_window[i], n_past, e->model->config.window);
        row += part->n_tokens;
        for (uint32_t n = part_n_outputs(part); n > 0 && output_rows != NULL; n--)
            output_rows[output++] = (int32_t)(row - n);
    }
}

/* Hidden states between stages: rank j of the next stage gets them from rank j mod n of this one.
 */
static int receive_hidden(struct engine *e, struct error *err)
{
    if (e->n_prev_ranks == 0)
        return 0;
    uint64_t start = clock_now_ns();
    int rc = comm_recv(e->comm, e->prev_rank_first + e->shard.stage_rank % e->n_prev_ranks,
                       e->graph.hidden_in->data, ggml_nbytes(e->graph.hidden_in), err);
    e->timing.comm_ns += clock_now_ns() - start;
    return rc;
}

static int send_hidden(struct engine *e, struct error *err)
{
    uint64_t start = clock_now_ns();
    int rc = 0;
    uint32_t n_stage_ranks = e->shard.n_stage_ranks;
    for (uint32_t j = e->shard.stage_rank; j < e->n_next_ranks && rc == 0; j += n_stage_ranks)
        rc = comm_send(e->comm, e->next_rank_first + j, e->graph.hidden_out->data,
                       ggml_nbytes(e->graph.hidden_out), err);
    e->timing.comm_ns += clock_now_ns() - start;
    return rc;
}

static int compute(struct engine *e, struct error *err)
{
    e->link.status = 0;
    e->link.comm_ns = 0;
    if (e->graph.cgraph == NULL || ggml_graph_n_nodes(e->graph.cgraph) == 0)
        return 0;
    enum ggml_status status = ggml_backend_graph_compute(e->backend, e->graph.cgraph);
    e->timing.comm_ns += e->link.comm_ns;
    if (e->link.status != 0)
        return error_set(err, e->link.status, "%s", e->link.error.message);
    if (status == GGML_STATUS_ABORTED)
        return error_set(err, E_CANCELLED, "the step was aborted");
    if (status != GGML_STATUS_SUCCESS)
        return error_set(err, E_INTERNAL, "ggml failed to compute: %s",
                         ggml_status_to_string(status));
    return 0;
}

static int sample(struct engine *e, const struct step *step, struct error *err)
{
    uint64_t start = clock_now_ns();
    struct comm *comm = e->shard.n_stage_ranks > 1 ? e->comm : NULL;
    int rc = 0;
    for (uint32_t i = 0; i < step->n_parts && rc == 0; i++) {
        const struct slot *slot = &e->slots[step->part[i].slot];
        uint32_t n_outputs = part_n_outputs(&step->part[i]);
        for (uint32_t n = n_outputs; n > 0 && rc == 0; n--) {
            struct sampler_choice choice;
            rc = sampler_choose(e->sampler, &slot->sampling, engine_logits(e, e->n_rows, NULL),
                                e->shard.vocab, slot->tokens, slot->n_tokens - (n - 1), comm,
                                e->link.group, &choice, err);
            e->rows[e->n_rows++] =
                (struct step_row){choice.token, choice.logit, choice.logit_second};
        }
    }
    e->timing.sample_ns += clock_now_ns() - start;
    return rc;
}

static int run_step(struct engine *e, const struct step *step, struct error *err)
{
    int rc = prepare_graph(e, step, err);
    if (rc != 0)
        return rc;
    fill_inputs(e, step);
    const int32_t *tokens = step->tokens;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        struct slot *slot = &e->slots[step->part[i].slot];
        memcpy(slot->tokens + slot->n_tokens, tokens, step->part[i].n_tokens * sizeof(int32_t));
        slot->n_tokens += step->part[i].n_tokens;
        tokens += step->part[i].n_tokens;
    }
    rc = receive_hidden(e, err);
    if (rc == 0)
        rc = compute(e, err);
    if (rc == 0 && e->n_next_ranks > 0)
        rc = send_hidden(e, err);
    if (rc == 0 && e->shard.is_last_stage)
        rc = sample(e, step, err);
    return rc;
}

int engine_step(struct engine *e, const struct step *step, struct step_result *ret_result,
                struct error *err)
{
    int rc = check_step(e, step, err);
    if (rc != 0)
        return rc;
    uint64_t start = clock_now_ns();
    e->n_rows = 0;
    rc = run_step(e, step, err);
    if (rc != 0) {
        e->status = rc;
        return rc;
    }
    e->step_number = step->number + 1;
    e->timing.n_steps++;
    e->timing.n_tokens += step->n_tokens;
    e->timing.step_ns += clock_now_ns() - start;
    *ret_result = (struct step_result){.n_rows = e->n_rows, .rows = e->rows};
    return 0;
}

const float *engine_logits(const struct engine *e, uint32_t row, struct range *ret_vocab)
{
    if (ret_vocab != NULL)
        *ret_vocab = e->shard.vocab;
    if (e->graph.logits == NULL || row >= e->graph.logits->ne[1])
        return NULL;
    return (const float *)e->graph.logits->data + (size_t)row * (size_t)e->graph.logits->ne[0];
}

/* ---- figures ---- */

void engine_get_info(const struct engine *e, struct engine_info *ret_info)
{
    *ret_info = (struct engine_info){
        .weight_bytes =
            e->weights.bytes_mapped + e->weights.bytes_repacked + e->weights.bytes_plain,
        .weight_bytes_mapped = e->weights.bytes_mapped,
        .weight_bytes_repacked = e->weights.bytes_repacked,
        .kv_bytes = e->kv.bytes,
        .compute_bytes = ggml_gallocr_get_buffer_size(e->allocator, 0),
        .n_ctx = e->kv.n_ctx,
        .n_slots = e->options.n_slots,
        .n_batch = e->options.n_batch,
        .n_threads = e->options.n_threads,
    };
}

void engine_get_timing(const struct engine *e, struct engine_timing *ret_timing)
{
    *ret_timing = e->timing;
}

void engine_abort(struct engine *e)
{
    atomic_store_explicit(&e->aborted, true, memory_order_relaxed);
}
