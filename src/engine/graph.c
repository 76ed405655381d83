#include "engine/graph.h"

#include "engine/kv_device.h"

#include <stdlib.h>
#include <string.h>

/* Rows of the step that go through a layer together: all, or those of a micro-batch. */
struct batch {
    uint32_t n_tokens, n_rows;             /* without padding and with it */
    struct ggml_tensor *positions, *cells; /* [n_rows], [n_tokens]: of the graph's inputs */
    uint32_t n_parts;
    struct batch_part { /* rows of a part of the step */
        uint32_t index; /* which part */
        uint32_t first; /* of the part's rows */
        uint32_t n;
    } part[LIMIT_SLOTS];
    struct ggml_tensor *residual; /* [n_rows][n_embd], or of fewer rows at the end */
};

/* A sum that travels. */
struct pending {
    struct ggml_tensor *started; /* NULL: none */
    struct graph_reduce *reduce;
    struct batch *batch; /* that waits for it */
    struct ggml_tensor *post_norm;
};

/* Everything one build needs at hand. Shapes in comments are [outer]..[inner], as C arrays would
 * have them. */
struct build {
    const struct graph_builder *b;
    const struct model_config *config;
    struct graph *g;
    struct ggml_context *ctx;
    struct ggml_tensor *rounded_from, *rounded; /* the last input of packed weights, for others */
    struct pending pending;
};

bool graph_shape_equal(const struct graph_shape *a, const struct graph_shape *b)
{
    return a->n_tokens == b->n_tokens && a->n_outputs == b->n_outputs && a->n_parts == b->n_parts &&
           a->n_early == b->n_early &&
           memcmp(a->part, b->part, a->n_parts * sizeof(a->part[0])) == 0;
}

static uint32_t pad_rows(const struct graph_padding *p, uint32_t n)
{
    uint32_t left = n % 16;
    if (p->sixteens && left >= 10)
        return n - left + 16;
    return p->fours && left % 4 >= 2 ? n - left % 4 + 4 : n;
}

/* ---- weights ---- */

static struct ggml_tensor *build_any_product(struct build *x, struct ggml_tensor *weight,
                                             struct ggml_tensor *cur)
{
    if (!multiply_is_packed(weight))
        return ggml_mul_mat(x->ctx, weight, cur);
    if (x->rounded_from != cur) {
        x->rounded_from = cur;
        x->rounded = multiply_quantize(x->ctx, cur);
    }
    return multiply_build(x->ctx, weight, x->rounded, &x->g->tickets[x->g->n_tickets++]);
}

/* cur [rows][columns] times weight [outputs][columns]: [rows][outputs]. Between these products,
 * which take most of the time, a sum that travels is looked after. */
static struct ggml_tensor *build_product(struct build *x, struct ggml_tensor *weight,
                                         struct ggml_tensor *cur)
{
    struct pending *p = &x->pending;
    struct ggml_tensor *product = build_any_product(x, weight, cur);
    if (p->started != NULL) {
        ggml_build_forward_expand(x->g->cgraph, product);
        p->started = graph_sum_advance(x->ctx, p->started, p->reduce);
        ggml_build_forward_expand(x->g->cgraph, p->started);
    }
    return product;
}

/* ---- blocks ---- */

static struct ggml_tensor *build_norm(struct build *x, struct ggml_tensor *cur,
                                      struct ggml_tensor *weight)
{
    return ggml_mul(x->ctx, ggml_rms_norm(x->ctx, cur, x->config->norm_eps), weight);
}

/* cur [n][n_embd] through a weight of whole heads, to [n][n_heads][head_dim]; norm may be NULL. */
static struct ggml_tensor *build_heads(struct build *x, struct ggml_tensor *cur,
                                       struct ggml_tensor *weight, struct ggml_tensor *bias,
                                       struct ggml_tensor *norm)
{
    cur = build_product(x, weight, cur);
    if (bias != NULL)
        cur = ggml_add(x->ctx, cur, bias);
    cur = ggml_reshape_3d(x->ctx, cur, x->config->head_dim, cur->ne[0] / x->config->head_dim,
                          cur->ne[1]);
    return norm != NULL ? build_norm(x, cur, norm) : cur;
}

static struct ggml_tensor *build_rope(struct build *x, const struct batch *batch,
                                      struct ggml_tensor *heads, uint32_t layer)
{
    const struct model *m = x->b->model;
    return ggml_rope_ext(x->ctx, heads, batch->positions, x->b->weights->global[ROLE_ROPE_FACTORS],
                         (int)x->config->n_rot,
                         m->arch->rope == ARCH_ROPE_NEOX ? GGML_ROPE_TYPE_NEOX : 0,
                         (int)x->config->n_ctx_train, model_layer_rope_base(m, layer),
                         model_layer_rope_scale(m, layer), 0.0f, 1.0f, 32.0f, 1.0f);
}

/* The cells of a part in a layer's K or V, by head: [n_kv_heads][n_kv][head_dim], in place or put
 * together. */
static struct ggml_tensor *build_cells(struct build *x, struct ggml_tensor *cache, uint32_t index)
{
    const struct graph_part *part = &x->g->shape.part[index];
    int64_t head_dim = x->config->head_dim;
    size_t offset = part->cell_first * cache->nb[1];
    if (part->is_gathered)
        cache = kv_device_gather(x->ctx, x->b->kv, cache, x->g->blocks[index]);
    return ggml_view_3d(x->ctx, cache, head_dim, part->n_kv, cache->ne[0] / head_dim, cache->nb[1],
                        ggml_row_size(cache->type, head_dim), offset);
}

/* Attention from its parts, where a device lacks the fused one: q [n_heads][n][head_dim], k and v
 * [n_kv_heads][n_kv][head_dim]. Returns [n][n_heads][head_dim]. */
static struct ggml_tensor *build_plain_attention(struct build *x, struct ggml_tensor *q,
                                                 struct ggml_tensor *k, struct ggml_tensor *v,
                                                 struct ggml_tensor *mask)
{
    struct ggml_tensor *weights = ggml_mul_mat(x->ctx, k, q);
    ggml_mul_mat_set_prec(weights, GGML_PREC_F32);
    weights = ggml_soft_max_ext(x->ctx, weights, mask, x->config->attn_scale, 0.0f);
    v = ggml_cont(x->ctx, ggml_transpose(x->ctx, v));
    struct ggml_tensor *out = ggml_mul_mat(x->ctx, v, weights);
    return ggml_cont(x->ctx, ggml_permute(x->ctx, out, 0, 2, 1, 3));
}

/* Rows [first, first + n) of a part's mask. */
static struct ggml_tensor *build_mask(struct build *x, struct ggml_tensor *mask,
                                      const struct batch_part *part)
{
    if (mask->ne[1] == part->n)
        return mask;
    return ggml_view_2d(x->ctx, mask, mask->ne[0], part->n, mask->nb[1], part->first * mask->nb[1]);
}

/* Attention of one part's rows, which are [row, row + n) of q, against its slot's cells. Returns
 * [n][n_heads * head_dim]. */
static struct ggml_tensor *build_attention_part(struct build *x, struct ggml_tensor *q,
                                                const struct batch_part *part, uint32_t row,
                                                uint32_t local_layer, bool has_window)
{
    struct ggml_tensor *const *masks = has_window ? x->g->mask_window : x->g->mask;
    struct ggml_tensor *k = build_cells(x, x->b->kv->k[local_layer], part->index),
                       *v = build_cells(x, x->b->kv->v[local_layer], part->index),
                       *mask = build_mask(x, masks[part->index], part);
    struct ggml_tensor *q_part =
        ggml_view_3d(x->ctx, q, q->ne[0], q->ne[1], part->n, q->nb[1], q->nb[2], row * q->nb[2]);
    q_part = ggml_permute(x->ctx, q_part, 0, 2, 1, 3);
    struct ggml_tensor *out =
        x->b->target == GRAPH_NO_FLASH
            ? build_plain_attention(x, q_part, k, v, mask)
            : ggml_flash_attn_ext(x->ctx, q_part, k, v, mask, x->config->attn_scale, 0.0f, 0.0f);
    return ggml_reshape_2d(x->ctx, out, q->ne[0] * q->ne[1], part->n);
}

/* Attention of the single rows [row, row + n). When the batch has nothing else, there is a row for
 * each of q, padding included, so that the result can stand for all of them. */
static struct ggml_tensor *build_attention_rows(struct build *x, const struct batch *batch,
                                                struct ggml_tensor *q, uint32_t n, uint32_t row,
                                                uint32_t local_layer, bool has_window)
{
    const struct kv_cache *kv = x->b->kv;
    const struct attention_rows rows = {
        .first = row, .n = n, .n_out = batch->n_parts == 1 ? (uint32_t)q->ne[2] : n};
    return attention_build(x->ctx, q, kv->k[local_layer], kv->v[local_layer], batch->cells,
                           batch->positions, rows,
                           has_window ? &x->b->attention_window : &x->b->attention);
}

/* What the parts' attention gives, one after another, is put together pair by pair. */
static struct ggml_tensor *join(struct build *x, struct ggml_tensor **part, uint32_t n)
{
    for (uint32_t step = 1; step < n; step *= 2)
        for (uint32_t i = 0; i + step < n; i += 2 * step)
            part[i] = ggml_concat(x->ctx, part[i], part[i + step], 1);
    return part[0];
}

/* Attention of all rows of q. Returns [n][n_heads * head_dim]. */
static struct ggml_tensor *build_all_parts(struct build *x, const struct batch *batch,
                                           struct ggml_tensor *q, uint32_t local_layer,
                                           bool has_window)
{
    /* What a part's attention gives goes where its queries were, which nobody needs any more; but
     * not every device can do that. */
    struct ggml_tensor *out = ggml_reshape_2d(x->ctx, q, q->ne[0] * q->ne[1], q->ne[2]);
    struct ggml_tensor *parts[LIMIT_SLOTS];
    size_t row_bytes = out->nb[1];
    for (uint32_t i = 0, row = 0; i < batch->n_parts; row += batch->part[i++].n) {
        const struct batch_part *p = &batch->part[i];
        parts[i] = x->g->shape.part[p->index].n_kv == 0
                       ? build_attention_rows(x, batch, q, p->n, row, local_layer, has_window)
                       : build_attention_part(x, q, p, row, local_layer, has_window);
        if (x->b->target != GRAPH_CPU)
            continue;
        out = parts[i]->ne[1] == q->ne[2]
                  ? parts[i]
                  : ggml_set_2d_inplace(x->ctx, out, parts[i], row_bytes, row * row_bytes);
    }
    return x->b->target == GRAPH_CPU ? out : join(x, parts, batch->n_parts);
}

/* rows [rows][width], of which those of the batch's tokens go into the cache. Expanded here, so
 * that the cache is written before attention reads it. */
static void build_cache_write(struct build *x, const struct batch *batch, struct ggml_tensor *cache,
                              struct ggml_tensor *rows)
{
    if (rows->ne[1] > batch->n_tokens)
        rows = ggml_view_2d(x->ctx, rows, rows->ne[0], batch->n_tokens, rows->nb[1], 0);
    ggml_build_forward_expand(x->g->cgraph, ggml_set_rows(x->ctx, cache, rows, batch->cells));
}

/* Of the batch's residual. Writes K and V; returns this rank's part of the attention output,
 * [n][n_embd], or NULL when it holds no KV heads of this layer, or when no row's output is wanted.
 */
static struct ggml_tensor *build_attention(struct build *x, const struct batch *batch,
                                           uint32_t local_layer, bool want_output)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    uint32_t layer = x->b->shard->layers.begin + local_layer;
    if (x->b->kv->k[local_layer] == NULL)
        return NULL;

    struct ggml_tensor *cur = build_norm(x, batch->residual, w[ROLE_ATTN_NORM]);
    struct ggml_tensor *k =
        build_heads(x, cur, w[ROLE_ATTN_K], w[ROLE_ATTN_K_BIAS], w[ROLE_ATTN_K_NORM]);
    struct ggml_tensor *v = build_product(x, w[ROLE_ATTN_V], cur);
    if (w[ROLE_ATTN_V_BIAS] != NULL)
        v = ggml_add(x->ctx, v, w[ROLE_ATTN_V_BIAS]);
    k = build_rope(x, batch, k, layer);
    k = ggml_reshape_2d(x->ctx, k, k->ne[0] * k->ne[1], k->ne[2]);
    build_cache_write(x, batch, x->b->kv->k[local_layer], k);
    build_cache_write(x, batch, x->b->kv->v[local_layer], v);
    if (!want_output)
        return NULL;

    struct ggml_tensor *q =
        build_heads(x, cur, w[ROLE_ATTN_Q], w[ROLE_ATTN_Q_BIAS], w[ROLE_ATTN_Q_NORM]);
    q = build_rope(x, batch, q, layer);
    bool has_window = model_layer_has_window(x->b->model, layer);
    return build_product(x, w[ROLE_ATTN_OUT],
                         build_all_parts(x, batch, q, local_layer, has_window));
}

/* Of the batch's residual. Returns this rank's part, or NULL when it holds no columns of this
 * layer. */
static struct ggml_tensor *build_ffn(struct build *x, const struct batch *batch,
                                     uint32_t local_layer)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    if (w[ROLE_FFN_DOWN] == NULL)
        return NULL;
    struct ggml_tensor *cur = build_norm(x, batch->residual, w[ROLE_FFN_NORM]);
    struct ggml_tensor *gate = build_product(x, w[ROLE_FFN_GATE], cur);
    struct ggml_tensor *up = build_product(x, w[ROLE_FFN_UP], cur);
    struct ggml_tensor *hidden = x->b->model->arch->activation == ARCH_SILU
                                     ? ggml_swiglu_split(x->ctx, gate, up)
                                     : ggml_geglu_split(x->ctx, gate, up);
    return build_product(x, w[ROLE_FFN_DOWN], hidden);
}

/* The batch goes on with what a block has given. post_norm may be NULL. */
static void add_to_residual(struct build *x, struct batch *batch, struct ggml_tensor *cur,
                            struct ggml_tensor *post_norm)
{
    if (post_norm != NULL)
        cur = build_norm(x, cur, post_norm);
    batch->residual = ggml_add(x->ctx, cur, batch->residual);
}

static struct graph_reduce *reduce_of(struct graph_reduce *reduces, uint32_t local_layer)
{
    return reduces != NULL ? &reduces[local_layer] : NULL;
}

static struct graph_sum make_sum(const struct build *x, const struct batch *batch,
                                 struct ggml_tensor *partial, uint32_t n)
{
    return (struct graph_sum){.partial = partial,
                              .like = batch->residual,
                              .n_rows = n,
                              .in_place = x->b->target == GRAPH_CPU};
}

/* The first n rows of partial (NULL: this rank has no part), summed over the ranks. */
static struct ggml_tensor *build_sum(struct build *x, const struct batch *batch,
                                     struct ggml_tensor *partial, uint32_t n,
                                     struct graph_reduce *reduce)
{
    const struct graph_sum sum = make_sum(x, batch, partial, n);
    return reduce != NULL ? graph_sum_whole(x->ctx, &sum, reduce) : partial;
}

/* One transformer block. output_rows: the rows to go on with after attention, or NULL for all. */
static void build_layer(struct build *x, struct batch *batch, uint32_t local_layer,
                        struct ggml_tensor *output_rows)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    struct ggml_tensor *cur = build_attention(x, batch, local_layer, true);
    if (output_rows != NULL) {
        if (cur != NULL)
            cur = ggml_get_rows(x->ctx, cur, output_rows);
        batch->residual = ggml_get_rows(x->ctx, batch->residual, output_rows);
    }
    uint32_t n = output_rows != NULL ? x->g->shape.n_outputs : batch->n_tokens;
    cur = build_sum(x, batch, cur, n, reduce_of(x->b->reduce_attn, local_layer));
    add_to_residual(x, batch, cur, w[ROLE_ATTN_POST_NORM]);
    cur = build_ffn(x, batch, local_layer);
    cur = build_sum(x, batch, cur, n, reduce_of(x->b->reduce_ffn, local_layer));
    add_to_residual(x, batch, cur, w[ROLE_FFN_POST_NORM]);
}

/* ---- two micro-batches ---- */

static void finish_pending(struct build *x)
{
    struct pending *p = &x->pending;
    if (p->started == NULL)
        return;
    struct ggml_tensor *sum = graph_sum_finish(x->ctx, p->started, p->reduce);
    ggml_build_forward_expand(x->g->cgraph, sum);
    add_to_residual(x, p->batch, sum, p->post_norm);
    p->started = NULL;
}

/* What a block has given for one micro-batch begins to travel, when it is computed and that of the
 * other has arrived. */
static void hand_over(struct build *x, struct batch *batch, struct ggml_tensor *partial,
                      struct graph_reduce *reduce, struct ggml_tensor *post_norm)
{
    const struct graph_sum sum = make_sum(x, batch, partial, batch->n_tokens);
    ggml_build_forward_expand(x->g->cgraph, partial != NULL ? partial : batch->residual);
    finish_pending(x);
    x->pending = (struct pending){.started = graph_sum_start(x->ctx, &sum, reduce),
                                  .reduce = reduce,
                                  .batch = batch,
                                  .post_norm = post_norm};
    ggml_build_forward_expand(x->g->cgraph, x->pending.started);
}

/* One transformer block; the sums of the second micro-batch are pending afterwards. Its rows may
 * look at those of the first, whose keys and values are in the cache by then. */
static void build_layer_of_two(struct build *x, struct batch batch[2], uint32_t local_layer)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    for (int i = 0; i < 2; i++)
        hand_over(x, &batch[i], build_attention(x, &batch[i], local_layer, true),
                  &x->b->reduce_attn[local_layer], w[ROLE_ATTN_POST_NORM]);
    for (int i = 0; i < 2; i++)
        hand_over(x, &batch[i], build_ffn(x, &batch[i], local_layer),
                  &x->b->reduce_ffn[local_layer], w[ROLE_FFN_POST_NORM]);
}

/* Rows [first, first + n) of the step, and of residual, which has all. */
static struct batch make_batch(struct build *x, struct ggml_tensor *residual, uint32_t first,
                               uint32_t n_tokens, uint32_t n_rows)
{
    struct graph *g = x->g;
    struct batch batch = {.n_tokens = n_tokens,
                          .n_rows = n_rows,
                          .positions = g->positions,
                          .cells = g->cells,
                          .residual = residual};
    if (n_rows < g->n_rows) {
        batch.positions = ggml_view_1d(x->ctx, g->positions, n_rows, first * g->positions->nb[0]);
        batch.cells = ggml_view_1d(x->ctx, g->cells, n_tokens, first * g->cells->nb[0]);
        batch.residual = ggml_view_2d(x->ctx, residual, residual->ne[0], n_rows, residual->nb[1],
                                      first * residual->nb[1]);
    }
    uint32_t end = first + n_tokens, row = 0;
    for (uint32_t i = 0; i < g->shape.n_parts; row += g->shape.part[i++].n_tokens) {
        uint32_t part_end = row + g->shape.part[i].n_tokens, from = row > first ? row : first,
                 to = part_end < end ? part_end : end;
        if (from < to)
            batch.part[batch.n_parts++] =
                (struct batch_part){.index = i, .first = from - row, .n = to - from};
    }
    return batch;
}

/* The layers [0, n_layers) in two micro-batches. Returns the residual of all rows. */
static struct ggml_tensor *build_in_two(struct build *x, struct ggml_tensor *residual,
                                        uint32_t n_layers)
{
    uint32_t n_early = x->g->shape.n_early, n_late = x->g->shape.n_tokens - n_early;
    struct batch batch[2] = {
        make_batch(x, residual, 0, n_early, n_early),
        make_batch(x, residual, n_early, n_late, x->g->n_rows - n_early),
    };
    for (uint32_t i = 0; i < n_layers; i++)
        build_layer_of_two(x, batch, i);
    finish_pending(x);
    return ggml_concat(x->ctx, batch[0].residual, batch[1].residual, 1);
}

/* ---- inputs and the whole ---- */

static struct ggml_tensor *new_input(struct build *x, enum ggml_type type, int64_t ne0, int64_t ne1)
{
    struct ggml_tensor *t = ggml_new_tensor_2d(x->ctx, type, ne0, ne1);
    ggml_set_input(t);
    return t;
}

static void build_inputs(struct build *x)
{
    struct graph *g = x->g;
    const struct shard *s = x->b->shard;
    uint32_t n = g->n_rows;
    if (s->is_first_stage)
        g->tokens = new_input(x, GGML_TYPE_I32, n, 1);
    else
        g->hidden_in = new_input(x, GGML_TYPE_F32, x->config->n_embd, n);
    g->positions = new_input(x, GGML_TYPE_I32, n, 1);
    g->cells = new_input(x, GGML_TYPE_I64, g->shape.n_tokens, 1);
    if (s->is_last_stage && g->shape.n_outputs > 0)
        g->output_rows = new_input(x, GGML_TYPE_I32, g->n_output_rows, 1);
    for (uint32_t i = 0; i < g->shape.n_parts; i++) {
        const struct graph_part *part = &g->shape.part[i];
        if (part->n_kv == 0)
            continue;
        if (part->is_gathered)
            g->blocks[i] =
                new_input(x, GGML_TYPE_I32, part->n_kv / x->b->kv->shape.block_tokens, 1);
        g->mask[i] = new_input(x, GGML_TYPE_F16, part->n_kv, part->n_tokens);
        if (x->config->window != 0)
            g->mask_window[i] = new_input(x, GGML_TYPE_F16, part->n_kv, part->n_tokens);
    }
}

/* What goes into the first layer, [n_rows][n_embd]. */
static struct ggml_tensor *build_hidden_in(struct build *x)
{
    struct graph *g = x->g;
    if (!x->b->shard->is_first_stage)
        return g->hidden_in;
    struct ggml_tensor *cur =
        ggml_get_rows(x->ctx, x->b->weights->global[ROLE_TOKEN_EMBD], g->tokens);
    return x->config->embd_scale != 1.0f ? ggml_scale(x->ctx, cur, x->config->embd_scale) : cur;
}

/* cur: the result of the last layer, of the rows that are wanted. */
static void build_results(struct build *x, struct ggml_tensor *cur)
{
    struct graph *g = x->g;
    const struct weights *w = x->b->weights;
    if (!x->b->shard->is_last_stage) {
        g->hidden_out = cur;
    } else {
        cur = build_norm(x, cur, w->global[ROLE_OUTPUT_NORM]);
        if (w->global[ROLE_OUTPUT] == NULL) {
            ggml_build_forward_expand(g->cgraph, cur); /* the sums inside still have to run */
            return;
        }
        cur = g->logits = build_product(x, w->global[ROLE_OUTPUT], cur);
    }
    ggml_set_output(cur);
    ggml_build_forward_expand(g->cgraph, cur);
}

static void build_forward(struct build *x)
{
    struct graph *g = x->g;
    const struct shard *s = x->b->shard;
    uint32_t n_layers = s->layers.end - s->layers.begin, layer = 0;
    bool is_cut = s->is_last_stage && g->shape.n_outputs < g->shape.n_tokens;
    struct ggml_tensor *cur = build_hidden_in(x);
    if (g->shape.n_early > 0) {
        /* A last layer that goes on with a few rows has little to send. */
        layer = is_cut ? n_layers - 1 : n_layers;
        cur = build_in_two(x, cur, layer);
    }
    struct batch batch = make_batch(x, cur, 0, g->shape.n_tokens, g->n_rows);
    for (; layer < n_layers; layer++) {
        bool is_end = is_cut && layer + 1 == n_layers;
        if (is_end && g->shape.n_outputs == 0) {
            /* Nobody wants this chunk's logits: the last block only has to fill its cache. A rank
             * without KV heads there still takes part in the sums before it. */
            ggml_build_forward_expand(g->cgraph, batch.residual);
            build_attention(x, &batch, layer, false);
            return;
        }
        build_layer(x, &batch, layer, is_end ? g->output_rows : NULL);
    }
    build_results(x, batch.residual);
}

/* Results of operations, views included. */
static size_t count_nodes_max(const struct graph_builder *b, uint32_t n_parts)
{
    static const size_t n_of_part[] = {[GRAPH_CPU] = 8, [GRAPH_DEVICE] = 14, [GRAPH_NO_FLASH] = 20};
    size_t n_layers = b->shard->layers.end - b->shard->layers.begin;
    size_t n = n_layers * (44 + n_of_part[b->target] * n_parts) + 3 * n_parts + 32;
    /* Two micro-batches, each with a part that is in both, and what looks after sums. */
    return b->reduce_attn == NULL ? n : 2 * (n + n_layers * (n_of_part[b->target] + 12));
}

size_t graph_n_tensors_max(const struct graph_builder *b, uint32_t n_parts)
{
    size_t n_layers = b->shard->layers.end - b->shard->layers.begin;
    return count_nodes_max(b, n_parts) + n_layers * (ROLE_COUNT + 2) + ROLE_FIRST_OF_LAYER +
           3 * n_parts;
}

int graph_build(struct graph *g, const struct graph_builder *b, const struct graph_shape *shape,
                struct error *err)
{
    graph_done(g);
    size_t n_nodes = count_nodes_max(b, shape->n_parts);
    size_t n_layers = b->shard->layers.end - b->shard->layers.begin;
    struct ggml_init_params params = {.mem_size = n_nodes * ggml_tensor_overhead() +
                                                  ggml_graph_overhead_custom(n_nodes, false),
                                      .no_alloc = true};
    g->shape = *shape;
    g->n_rows = pad_rows(&b->padding, shape->n_tokens);
    g->n_output_rows =
        shape->n_outputs == shape->n_tokens ? g->n_rows : pad_rows(&b->padding, shape->n_outputs);
    g->context = ggml_init(params);
    g->tickets = calloc(2 * n_layers * ROLE_COUNT + 1, sizeof(*g->tickets));
    if (g->context == NULL || g->tickets == NULL)
        return error_set(err, E_NOMEM, "out of memory");
    g->cgraph = ggml_new_graph_custom(g->context, n_nodes, false);
    struct build x = {.b = b, .config = &b->model->config, .g = g, .ctx = g->context};
    build_inputs(&x);
    build_forward(&x);
    return 0;
}

void graph_done(struct graph *g)
{
    if (g->context != NULL)
        ggml_free(g->context);
    free(g->tickets);
    *g = (struct graph){0};
}
