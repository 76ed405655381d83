#include "engine/graph.h"

#include "base/clock.h"
#include "engine/kv_device.h"

#include <stdlib.h>
#include <string.h>

/* Everything one build needs at hand. Shapes in comments are [outer]..[inner], as C arrays would
 * have them. */
struct build {
    const struct graph_builder *b;
    const struct model_config *config;
    struct graph *g;
    struct ggml_context *ctx;
    struct ggml_tensor *rounded_from, *rounded; /* the last input of packed weights, for others */
};

bool graph_shape_equal(const struct graph_shape *a, const struct graph_shape *b)
{
    return a->n_tokens == b->n_tokens && a->n_outputs == b->n_outputs && a->n_parts == b->n_parts &&
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

/* cur [rows][columns] times weight [outputs][columns]: [rows][outputs]. */
static struct ggml_tensor *build_product(struct build *x, struct ggml_tensor *weight,
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

/* ---- sums over the ranks ---- */

static void run_reduce(struct ggml_tensor *dst, const struct graph_reduce *reduce)
{
    struct graph_link *link = reduce->link;
    if (link->status != 0 || link->is_silent)
        return;
    uint64_t start = clock_now_ns();
    uint32_t n_rows = (uint32_t)(uintptr_t)dst->extra;
    link->status = comm_all_reduce_f32(link->comm, link->group, reduce->mask, dst->data,
                                       n_rows * (size_t)dst->ne[0], &link->error);
    link->comm_ns += clock_now_ns() - start;
}

/* ggml calls a custom operation on every thread, whatever its n_tasks. */
static void reduce_in_place(struct ggml_tensor *dst, const struct ggml_tensor *partial, int ith,
                            int nth, void *arg)
{
    (void)partial, (void)nth;
    if (ith == 0)
        run_reduce(dst, arg);
}

/* What comes from a device is a copy that the scheduler may give to others. */
static void reduce_copied(struct ggml_tensor *dst, const struct ggml_tensor *partial, int ith,
                          int nth, void *arg)
{
    (void)nth;
    if (ith != 0)
        return;
    memcpy(dst->data, partial->data, ggml_nbytes(dst));
    run_reduce(dst, arg);
}

static void reduce_receive_only(struct ggml_tensor *dst, int ith, int nth, void *arg)
{
    (void)nth;
    if (ith != 0)
        return;
    if (((const struct graph_reduce *)arg)->link->is_silent)
        memset(dst->data, 0, ggml_nbytes(dst)); /* nobody sends anything */
    run_reduce(dst, arg);
}

/* partial: [rows][n_embd], or NULL when this rank has an empty slice of the layer; of its rows the
 * first n are to be summed. Returns the sum, [rows][n_embd]. */
static struct ggml_tensor *build_reduce(struct build *x, struct ggml_tensor *partial,
                                        struct ggml_tensor *order_after, uint32_t n,
                                        struct graph_reduce *reduce)
{
    if (reduce == NULL)
        return partial;
    struct ggml_tensor *sum;
    if (partial == NULL)
        sum = ggml_custom_4d(x->ctx, GGML_TYPE_F32, order_after->ne[0], order_after->ne[1], 1, 1,
                             &order_after, 1, reduce_receive_only, 1, reduce);
    else if (x->b->target == GRAPH_CPU)
        sum = ggml_map_custom1_inplace(x->ctx, partial, reduce_in_place, 1, reduce);
    else
        sum = ggml_map_custom1(x->ctx, partial, reduce_copied, 1, reduce);
    sum->extra = (void *)(uintptr_t)n; /* ours to use: a CPU tensor has none */
    return sum;
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

static struct ggml_tensor *build_rope(struct build *x, struct ggml_tensor *heads, uint32_t layer)
{
    const struct model *m = x->b->model;
    return ggml_rope_ext(x->ctx, heads, x->g->positions, x->b->weights->global[ROLE_ROPE_FACTORS],
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

/* Attention of one part: rows [row, row + n) of q against its slot's cells. Returns [n][n_heads *
 * head_dim]. */
static struct ggml_tensor *build_attention_part(struct build *x, struct ggml_tensor *q,
                                                uint32_t index, uint32_t row, uint32_t local_layer,
                                                bool has_window)
{
    uint32_t n = x->g->shape.part[index].n_tokens;
    struct ggml_tensor *k = build_cells(x, x->b->kv->k[local_layer], index),
                       *v = build_cells(x, x->b->kv->v[local_layer], index),
                       *mask = has_window ? x->g->mask_window[index] : x->g->mask[index];
    struct ggml_tensor *q_part =
        ggml_view_3d(x->ctx, q, q->ne[0], q->ne[1], n, q->nb[1], q->nb[2], row * q->nb[2]);
    q_part = ggml_permute(x->ctx, q_part, 0, 2, 1, 3);
    struct ggml_tensor *out =
        x->b->target == GRAPH_NO_FLASH
            ? build_plain_attention(x, q_part, k, v, mask)
            : ggml_flash_attn_ext(x->ctx, q_part, k, v, mask, x->config->attn_scale, 0.0f, 0.0f);
    return ggml_reshape_2d(x->ctx, out, q->ne[0] * q->ne[1], n);
}

/* Attention of the single rows [row, row + n). When the step has nothing else, there is a row for
 * each of q, padding included, so that the result can stand for all of them. */
static struct ggml_tensor *build_attention_rows(struct build *x, struct ggml_tensor *q, uint32_t n,
                                                uint32_t row, uint32_t local_layer, bool has_window)
{
    const struct kv_cache *kv = x->b->kv;
    const struct attention_rows rows = {
        .first = row, .n = n, .n_out = x->g->shape.n_parts == 1 ? (uint32_t)q->ne[2] : n};
    return attention_build(x->ctx, q, kv->k[local_layer], kv->v[local_layer], x->g->cells,
                           x->g->positions, rows,
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
static struct ggml_tensor *build_all_parts(struct build *x, struct ggml_tensor *q,
                                           uint32_t local_layer, bool has_window)
{
    /* What a part's attention gives goes where its queries were, which nobody needs any more; but
     * not every device can do that. */
    struct ggml_tensor *out = ggml_reshape_2d(x->ctx, q, q->ne[0] * q->ne[1], q->ne[2]);
    struct ggml_tensor *parts[LIMIT_SLOTS];
    size_t row_bytes = out->nb[1];
    uint32_t n_parts = x->g->shape.n_parts;
    for (uint32_t i = 0, row = 0; i < n_parts; row += x->g->shape.part[i++].n_tokens) {
        const struct graph_part *p = &x->g->shape.part[i];
        parts[i] = p->n_kv == 0
                       ? build_attention_rows(x, q, p->n_tokens, row, local_layer, has_window)
                       : build_attention_part(x, q, i, row, local_layer, has_window);
        if (x->b->target != GRAPH_CPU)
            continue;
        out = parts[i]->ne[1] == q->ne[2]
                  ? parts[i]
                  : ggml_set_2d_inplace(x->ctx, out, parts[i], row_bytes, row * row_bytes);
    }
    return x->b->target == GRAPH_CPU ? out : join(x, parts, n_parts);
}

/* rows [rows][width], of which those of the step's tokens go into the cache. Expanded here, so that
 * the cache is written before attention reads it. */
static void build_cache_write(struct build *x, struct ggml_tensor *cache, struct ggml_tensor *rows)
{
    if (rows->ne[1] > x->g->shape.n_tokens)
        rows = ggml_view_2d(x->ctx, rows, rows->ne[0], x->g->shape.n_tokens, rows->nb[1], 0);
    ggml_build_forward_expand(x->g->cgraph, ggml_set_rows(x->ctx, cache, rows, x->g->cells));
}

/* cur [n][n_embd], already normed. Writes K and V; returns this rank's part of the attention
 * output, [n][n_embd], or NULL when it holds no KV heads of this layer, or when no row's output is
 * wanted. */
static struct ggml_tensor *build_attention(struct build *x, struct ggml_tensor *cur,
                                           uint32_t local_layer, bool want_output)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    uint32_t layer = x->b->shard->layers.begin + local_layer;
    if (x->b->kv->k[local_layer] == NULL)
        return NULL;

    struct ggml_tensor *k =
        build_heads(x, cur, w[ROLE_ATTN_K], w[ROLE_ATTN_K_BIAS], w[ROLE_ATTN_K_NORM]);
    struct ggml_tensor *v = build_product(x, w[ROLE_ATTN_V], cur);
    if (w[ROLE_ATTN_V_BIAS] != NULL)
        v = ggml_add(x->ctx, v, w[ROLE_ATTN_V_BIAS]);
    k = build_rope(x, k, layer);
    k = ggml_reshape_2d(x->ctx, k, k->ne[0] * k->ne[1], k->ne[2]);
    build_cache_write(x, x->b->kv->k[local_layer], k);
    build_cache_write(x, x->b->kv->v[local_layer], v);
    if (!want_output)
        return NULL;

    struct ggml_tensor *q =
        build_heads(x, cur, w[ROLE_ATTN_Q], w[ROLE_ATTN_Q_BIAS], w[ROLE_ATTN_Q_NORM]);
    q = build_rope(x, q, layer);
    bool has_window = model_layer_has_window(x->b->model, layer);
    return build_product(x, w[ROLE_ATTN_OUT], build_all_parts(x, q, local_layer, has_window));
}

/* cur [n][n_embd], already normed. Returns this rank's part, or NULL when it holds no columns of
 * this layer. */
static struct ggml_tensor *build_ffn(struct build *x, struct ggml_tensor *cur, uint32_t local_layer)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    if (w[ROLE_FFN_DOWN] == NULL)
        return NULL;
    struct ggml_tensor *gate = build_product(x, w[ROLE_FFN_GATE], cur);
    struct ggml_tensor *up = build_product(x, w[ROLE_FFN_UP], cur);
    struct ggml_tensor *hidden = x->b->model->arch->activation == ARCH_SILU
                                     ? ggml_swiglu_split(x->ctx, gate, up)
                                     : ggml_geglu_split(x->ctx, gate, up);
    return build_product(x, w[ROLE_FFN_DOWN], hidden);
}

/* One transformer block. output_rows: the rows to go on with after attention, or NULL for all. */
static struct ggml_tensor *build_layer(struct build *x, struct ggml_tensor *residual,
                                       uint32_t local_layer, struct ggml_tensor *output_rows)
{
    struct ggml_tensor **w = x->b->weights->layer[local_layer];
    struct graph_reduce *reduce_attn =
        x->b->reduce_attn != NULL ? &x->b->reduce_attn[local_layer] : NULL;
    struct graph_reduce *reduce_ffn =
        x->b->reduce_ffn != NULL ? &x->b->reduce_ffn[local_layer] : NULL;

    struct ggml_tensor *cur =
        build_attention(x, build_norm(x, residual, w[ROLE_ATTN_NORM]), local_layer, true);
    if (output_rows != NULL) {
        if (cur != NULL)
            cur = ggml_get_rows(x->ctx, cur, output_rows);
        residual = ggml_get_rows(x->ctx, residual, output_rows);
    }
    uint32_t n = output_rows != NULL ? x->g->shape.n_outputs : x->g->shape.n_tokens;
    cur = build_reduce(x, cur, residual, n, reduce_attn);
    if (w[ROLE_ATTN_POST_NORM] != NULL)
        cur = build_norm(x, cur, w[ROLE_ATTN_POST_NORM]);
    residual = ggml_add(x->ctx, cur, residual);

    cur = build_ffn(x, build_norm(x, residual, w[ROLE_FFN_NORM]), local_layer);
    cur = build_reduce(x, cur, residual, n, reduce_ffn);
    if (w[ROLE_FFN_POST_NORM] != NULL)
        cur = build_norm(x, cur, w[ROLE_FFN_POST_NORM]);
    return ggml_add(x->ctx, cur, residual);
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

static void build_forward(struct build *x)
{
    struct graph *g = x->g;
    const struct shard *s = x->b->shard;
    const struct weights *w = x->b->weights;
    uint32_t n_layers = s->layers.end - s->layers.begin;

    struct ggml_tensor *cur = g->hidden_in;
    if (s->is_first_stage) {
        cur = ggml_get_rows(x->ctx, w->global[ROLE_TOKEN_EMBD], g->tokens);
        if (x->config->embd_scale != 1.0f)
            cur = ggml_scale(x->ctx, cur, x->config->embd_scale);
    }
    for (uint32_t i = 0; i < n_layers; i++) {
        bool is_end = s->is_last_stage && i + 1 == n_layers;
        if (is_end && g->shape.n_outputs == 0) {
            /* Nobody wants this chunk's logits: the last block only has to fill its cache. A rank
             * without KV heads there still takes part in the sums before it. */
            ggml_build_forward_expand(g->cgraph, cur);
            build_attention(x, build_norm(x, cur, w->layer[i][ROLE_ATTN_NORM]), i, false);
            return;
        }
        bool is_cut = is_end && g->shape.n_outputs < g->shape.n_tokens;
        cur = build_layer(x, cur, i, is_cut ? g->output_rows : NULL);
    }
    if (!s->is_last_stage) {
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

/* Results of operations, views included. */
static size_t count_nodes_max(const struct graph_builder *b, uint32_t n_parts)
{
    static const size_t n_of_part[] = {[GRAPH_CPU] = 8, [GRAPH_DEVICE] = 14, [GRAPH_NO_FLASH] = 20};
    size_t n_layers = b->shard->layers.end - b->shard->layers.begin;
    return n_layers * (44 + n_of_part[b->target] * n_parts) + 3 * n_parts + 32;
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
    g->tickets = calloc(n_layers * ROLE_COUNT + 1, sizeof(*g->tickets));
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
