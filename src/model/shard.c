#include "model/shard.h"

#include "base/gcd.h"
#include "model/dtype.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* SIMD kernels repack rows in groups of 8 to 32; wider units also keep cache lines whole. */
#define FF_UNIT_MIN       32
#define FF_UNIT_MAX       128
#define FF_UNITS_PER_RANK 8 /* a unit is widened only while shares stay this fine */
#define VOCAB_UNIT        64

/* Divides `total` elements among the ranks of a stage, layer by layer. A unit is cut nowhere but at
 * the end of the last one, which is short when total is not a multiple. owed says how much each
 * rank has had too little so far, times the weights' sum: whoever is owed most gets the units that
 * do not divide evenly. */
struct divider {
    uint32_t n_ranks;
    const uint32_t *weight;
    uint64_t weight_sum;
    int64_t owed[LIMIT_RANKS];
};

static void divider_init(struct divider *d, const struct split *split,
                         const struct split_stage *stage)
{
    *d = (struct divider){.n_ranks = stage->n_ranks, .weight = &split->weight[stage->rank_first]};
    for (uint32_t i = 0; i < d->n_ranks; i++)
        d->weight_sum += d->weight[i];
}

/* One more unit for the `left` ranks that are owed most; claim is what they are owed beyond their
 * whole units. */
static void give_leftover(const struct divider *d, uint64_t left, const int64_t *claim,
                          uint64_t *n_units)
{
    bool given[LIMIT_RANKS] = {false};
    for (; left > 0; left--) {
        uint32_t best = d->n_ranks;
        for (uint32_t i = 0; i < d->n_ranks; i++)
            if (!given[i] && d->weight[i] > 0 && (best == d->n_ranks || claim[i] > claim[best]))
                best = i;
        assert(best <
               d->n_ranks); /* what is left over is less than the number of ranks with a weight */
        given[best] = true;
        n_units[best]++;
    }
}

/* The part of rank `stage_rank`. total < 2^22 and weights < 2^32, so no product leaves 64 bits. */
static struct range divide(struct divider *d, uint32_t total, uint32_t unit, uint32_t stage_rank)
{
    uint64_t n_all = ((uint64_t)total + unit - 1) / unit, left = n_all, n_units[LIMIT_RANKS];
    int64_t claim[LIMIT_RANKS], sum = (int64_t)d->weight_sum;
    for (uint32_t i = 0; i < d->n_ranks; i++) {
        n_units[i] = n_all * d->weight[i] / d->weight_sum;
        left -= n_units[i];
        claim[i] = d->owed[i] + (int64_t)((uint64_t)total * d->weight[i]) -
                   (int64_t)(n_units[i] * unit) * sum;
    }
    give_leftover(d, left, claim, n_units);

    struct range range = {0, 0};
    uint64_t begin = 0;
    for (uint32_t i = 0; i < d->n_ranks; i++) {
        uint64_t end = begin + n_units[i] * unit < total ? begin + n_units[i] * unit : total;
        if (i == stage_rank)
            range = (struct range){(uint32_t)begin, (uint32_t)end};
        int64_t owed =
            d->owed[i] + (int64_t)((uint64_t)total * d->weight[i]) - (int64_t)(end - begin) * sum;
        /* A short last unit can make a debt that no layer pays back; it must not grow for ever. */
        int64_t most = (int64_t)total * sum;
        d->owed[i] = owed > most ? most : owed < -most ? -most : owed;
        begin = end;
    }
    assert(begin == total);
    return range;
}

/* KV heads whose columns of the output projection are a whole number of its blocks. */
static uint32_t kv_unit(const struct model *m, uint32_t layer)
{
    uint32_t block = dtype_traits(m->layer[layer][ROLE_ATTN_OUT]->type)->block_elems;
    uint32_t group = m->config.n_head / m->config.n_head_kv * m->config.head_dim;
    return block / gcd_u32(block, group);
}

static uint32_t ff_unit(const struct model *m, uint32_t layer, uint32_t n_ranks)
{
    uint32_t block = dtype_traits(m->layer[layer][ROLE_FFN_DOWN]->type)->block_elems;
    uint32_t width = FF_UNIT_MAX;
    while (width > FF_UNIT_MIN && (uint64_t)width * FF_UNITS_PER_RANK * n_ranks > m->config.n_ff)
        width /= 2;
    return block / gcd_u32(block, width) * width;
}

int shard_init(struct shard *s, const struct model *m, const struct split *split, uint32_t rank,
               struct error *err)
{
    int rc = split_check(split, m->config.n_layer, err);
    if (rc != 0)
        return rc;
    if (rank >= split->n_ranks)
        return error_set(err, E_INVALID, "rank %" PRIu32 " of %" PRIu32, rank, split->n_ranks);
    uint32_t index = 0;
    while (rank >= split->stage[index].rank_first + split->stage[index].n_ranks)
        index++;
    const struct split_stage *stage = &split->stage[index];

    struct shard shard = {
        .rank = rank,
        .stage = index,
        .stage_rank = rank - stage->rank_first,
        .n_stage_ranks = stage->n_ranks,
        .stage_rank_first = stage->rank_first,
        .is_first_stage = index == 0,
        .is_last_stage = index == split->n_stages - 1,
        .layers = stage->layers,
    };
    uint32_t n_layers = stage->layers.end - stage->layers.begin;
    shard.layer = calloc(n_layers, sizeof(shard.layer[0]));
    if (shard.layer == NULL)
        return error_set(err, E_NOMEM, "no memory for %" PRIu32 " layers", n_layers);

    struct divider heads, ff, vocab;
    divider_init(&heads, split, stage);
    divider_init(&ff, split, stage);
    divider_init(&vocab, split, stage);
    for (uint32_t i = 0; i < n_layers; i++) {
        uint32_t l = stage->layers.begin + i;
        shard.layer[i].kv_heads =
            divide(&heads, m->config.n_head_kv, kv_unit(m, l), shard.stage_rank);
        shard.layer[i].ff =
            divide(&ff, m->config.n_ff, ff_unit(m, l, stage->n_ranks), shard.stage_rank);
    }
    if (shard.is_last_stage)
        shard.vocab = divide(&vocab, m->config.n_vocab, VOCAB_UNIT, shard.stage_rank);
    *s = shard;
    return 0;
}

void shard_done(struct shard *s)
{
    if (s == NULL)
        return;
    free(s->layer);
    *s = (struct shard){0};
}

/* Rows or, of vectors, elements [begin, end). */
static void slice_rows(const struct gguf_tensor *t, uint64_t begin, uint64_t end,
                       struct tensor_slice *ret)
{
    bool is_vector = t->n_dims == 1;
    uint64_t stride = dtype_row_bytes(t->type, is_vector ? 1 : t->dim[0]);
    ret->file_offset = t->offset + begin * stride;
    ret->n_rows = is_vector ? 1 : end - begin;
    ret->n_cols = is_vector ? end - begin : t->dim[0];
    ret->row_bytes = ret->row_stride_bytes = is_vector ? stride * (end - begin) : stride;
}

/* Elements [begin, end) of every row: whole blocks, because units are. */
static void slice_cols(const struct gguf_tensor *t, uint64_t begin, uint64_t end,
                       struct tensor_slice *ret)
{
    ret->file_offset = t->offset + dtype_row_bytes(t->type, begin);
    ret->n_rows = t->dim[1];
    ret->n_cols = end - begin;
    ret->row_bytes = dtype_row_bytes(t->type, end - begin);
    ret->row_stride_bytes = dtype_row_bytes(t->type, t->dim[0]);
}

static bool slice_global(const struct shard *s, const struct model *m, enum role role,
                         struct tensor_slice *ret)
{
    const struct gguf_tensor *t = role == ROLE_OUTPUT ? model_output(m) : m->global[role];
    bool held = role == ROLE_TOKEN_EMBD     ? s->is_first_stage
                : role == ROLE_ROPE_FACTORS ? true
                                            : s->is_last_stage;
    if (t == NULL || !held)
        return false;
    ret->tensor = t;
    if (role == ROLE_OUTPUT)
        slice_rows(t, s->vocab.begin, s->vocab.end, ret);
    else
        slice_rows(t, 0, t->n_dims == 1 ? t->dim[0] : t->dim[1], ret);
    return role != ROLE_OUTPUT || s->vocab.end > s->vocab.begin;
}

static bool slice_of_layer(const struct shard *s, const struct model *m, enum role role,
                           uint32_t layer, struct tensor_slice *ret)
{
    if (layer < s->layers.begin || layer >= s->layers.end || m->layer[layer][role] == NULL)
        return false;
    const struct gguf_tensor *t = ret->tensor = m->layer[layer][role];
    const struct shard_layer *part = &s->layer[layer - s->layers.begin];
    uint64_t kv_dim = m->config.head_dim, q_dim = kv_dim * (m->config.n_head / m->config.n_head_kv);
    const struct range heads = part->kv_heads, ff = part->ff;
    switch (role) {
    case ROLE_ATTN_Q:
    case ROLE_ATTN_Q_BIAS:
        slice_rows(t, heads.begin * q_dim, heads.end * q_dim, ret);
        return heads.end > heads.begin;
    case ROLE_ATTN_K:
    case ROLE_ATTN_V:
    case ROLE_ATTN_K_BIAS:
    case ROLE_ATTN_V_BIAS:
        slice_rows(t, heads.begin * kv_dim, heads.end * kv_dim, ret);
        return heads.end > heads.begin;
    case ROLE_ATTN_OUT:
        slice_cols(t, heads.begin * q_dim, heads.end * q_dim, ret);
        return heads.end > heads.begin;
    case ROLE_FFN_GATE:
    case ROLE_FFN_UP:
        slice_rows(t, ff.begin, ff.end, ret);
        return ff.end > ff.begin;
    case ROLE_FFN_DOWN:
        slice_cols(t, ff.begin, ff.end, ret);
        return ff.end > ff.begin;
    default: /* norms: replicated */
        slice_rows(t, 0, t->dim[0], ret);
        return true;
    }
}

bool shard_slice(const struct shard *s, const struct model *m, enum role role, uint32_t layer,
                 struct tensor_slice *ret_slice)
{
    struct tensor_slice slice = {0};
    bool some = role < ROLE_FIRST_OF_LAYER ? slice_global(s, m, role, &slice)
                                           : slice_of_layer(s, m, role, layer, &slice);
    *ret_slice = some ? slice : (struct tensor_slice){0};
    return some;
}

uint64_t shard_weight_bytes(const struct shard *s, const struct model *m)
{
    struct tensor_slice slice;
    uint64_t bytes = 0;
    for (int role = 0; role < ROLE_FIRST_OF_LAYER; role++)
        if (shard_slice(s, m, (enum role)role, 0, &slice))
            bytes += slice.n_rows * slice.row_bytes;
    for (uint32_t l = s->layers.begin; l < s->layers.end; l++)
        for (int role = ROLE_FIRST_OF_LAYER; role < ROLE_COUNT; role++)
            if (shard_slice(s, m, (enum role)role, l, &slice))
                bytes += slice.n_rows * slice.row_bytes;
    return bytes;
}

uint64_t shard_kv_token_bytes(const struct shard *s, const struct model *m)
{
    uint64_t n_heads = 0;
    for (uint32_t i = 0; i < s->layers.end - s->layers.begin; i++)
        n_heads += s->layer[i].kv_heads.end - s->layer[i].kv_heads.begin;
    return n_heads * m->config.head_dim * 2 * 2; /* K and V, two bytes each */
}
