/* How layers and ranks are divided; what each rank then holds is shard.c. */
#include "model/shard.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A number of one to three digits. */
static bool parse_number(const char **text, uint32_t *ret)
{
    uint32_t v = 0;
    int n_digits = 0;
    for (; **text >= '0' && **text <= '9' && n_digits < 3; (*text)++, n_digits++)
        v = v * 10 + (uint32_t)(**text - '0');
    *ret = v;
    return n_digits > 0 && v > 0;
}

static bool parse_shape(const char *text, uint32_t n_ranks, uint32_t *ret_n_stages)
{
    uint32_t n_stage_ranks;
    if (strcmp(text, "pipeline") == 0) {
        *ret_n_stages = n_ranks;
        return true;
    }
    if (strcmp(text, "tensor") == 0) {
        *ret_n_stages = 1;
        return true;
    }
    if (!parse_number(&text, ret_n_stages) || *text++ != 'x' ||
        !parse_number(&text, &n_stage_ranks) || *text != '\0')
        return false;
    return *ret_n_stages * n_stage_ranks == n_ranks;
}

static uint64_t stage_weight(const struct split *s, uint32_t stage)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < s->stage[stage].n_ranks; i++)
        sum += s->weight[s->stage[stage].rank_first + i];
    return sum;
}

/* Ends of stages are the rounded ends of their exact shares, moved where a stage would be empty. */
static void divide_layers(struct split *s, uint32_t n_layer, double head_layers)
{
    double sum = 0, total = 0, whole = (double)n_layer + head_layers;
    uint32_t begin = 0;
    for (uint32_t i = 0; i < s->n_stages; i++)
        total += (double)stage_weight(s, i);
    for (uint32_t i = 0; i < s->n_stages; i++) {
        sum += (double)stage_weight(s, i);
        uint32_t end = (uint32_t)(sum * whole / total + 0.5);
        uint32_t stages_after = s->n_stages - 1 - i;
        if (end < begin + 1)
            end = begin + 1;
        if (end > n_layer - stages_after)
            end = n_layer - stages_after;
        s->stage[i].layers = (struct range){begin, end};
        begin = end;
    }
}

int split_check_text(const char *text, struct error *err)
{
    unsigned stages = 0, ranks = 0;
    char end = 0;
    if (strcmp(text, "pipeline") == 0 || strcmp(text, "tensor") == 0)
        return 0;
    if (strspn(text, "0123456789x") != strlen(text) ||
        sscanf(text, "%3ux%3u%c", &stages, &ranks, &end) != 2 || stages * ranks == 0 ||
        stages * ranks > LIMIT_RANKS)
        return error_set(err, E_INVALID,
                         "'%.32s' is not pipeline, tensor or SxT, S stages of T ranks, at most %d "
                         "ranks",
                         text, LIMIT_RANKS);
    return 0;
}

int split_parse(const char *text, uint32_t n_ranks, uint32_t n_layer, const uint32_t *weight,
                struct split *ret_split, struct error *err)
{
    struct split s = {.n_ranks = n_ranks};
    if (n_ranks < 1 || n_ranks > LIMIT_RANKS)
        return error_set(err, E_INVALID, "%" PRIu32 " ranks; from 1 to %d are possible", n_ranks,
                         LIMIT_RANKS);
    if (!parse_shape(text, n_ranks, &s.n_stages))
        return error_set(err, E_INVALID,
                         "split '%.32s' does not fit %" PRIu32
                         " ranks; use 'pipeline', 'tensor' or 'SxT' (stages x "
                         "ranks of a stage, such as '1x%" PRIu32 "') with S*T = %" PRIu32,
                         text, n_ranks, n_ranks, n_ranks);
    if (s.n_stages > n_layer)
        return error_set(err, E_INVALID,
                         "%" PRIu32 " stages for %" PRIu32
                         " layers; every stage needs one layer at least",
                         s.n_stages, n_layer);
    uint32_t n_stage_ranks = n_ranks / s.n_stages;
    for (uint32_t r = 0; r < n_ranks; r++)
        s.weight[r] = weight != NULL ? weight[r] : 1;
    for (uint32_t i = 0; i < s.n_stages; i++) {
        s.stage[i].rank_first = i * n_stage_ranks;
        s.stage[i].n_ranks = n_stage_ranks;
        if (stage_weight(&s, i) == 0)
            return error_set(err, E_INVALID, "the ranks of stage %" PRIu32 " all have weight 0", i);
    }
    divide_layers(&s, n_layer, 0);
    *ret_split = s;
    return 0;
}

void split_count_head(struct split *s, uint32_t n_layer, double head_layers)
{
    divide_layers(s, n_layer, head_layers);
}

int split_check(const struct split *s, uint32_t n_layer, struct error *err)
{
    if (s->n_ranks < 1 || s->n_ranks > LIMIT_RANKS || s->n_stages < 1 ||
        s->n_stages > LIMIT_STAGES || s->n_stages > s->n_ranks)
        return error_set(err, E_INVALID,
                         "%" PRIu32 " stages of %" PRIu32 " ranks; from 1 to %d ranks are possible",
                         s->n_stages, s->n_ranks, LIMIT_RANKS);
    uint32_t layer = 0, rank = 0;
    for (uint32_t i = 0; i < s->n_stages; i++) {
        const struct split_stage *stage = &s->stage[i];
        if (stage->layers.begin != layer || stage->layers.end <= layer ||
            stage->layers.end > n_layer)
            return error_set(err, E_INVALID,
                             "stage %" PRIu32 " has layers %" PRIu32 " to %" PRIu32
                             "; it must begin at %" PRIu32
                             ", not be empty, and end at or before %" PRIu32,
                             i, stage->layers.begin, stage->layers.end, layer, n_layer);
        if (stage->rank_first != rank || stage->n_ranks < 1 || stage->n_ranks > s->n_ranks - rank)
            return error_set(err, E_INVALID,
                             "stage %" PRIu32 " has %" PRIu32 " ranks from %" PRIu32 "; %" PRIu32
                             " are left from %" PRIu32,
                             i, stage->n_ranks, stage->rank_first, s->n_ranks - rank, rank);
        if (stage_weight(s, i) == 0)
            return error_set(err, E_INVALID, "the ranks of stage %" PRIu32 " all have weight 0", i);
        layer = stage->layers.end;
        rank += stage->n_ranks;
    }
    if (layer != n_layer || rank != s->n_ranks)
        return error_set(err, E_INVALID,
                         "the stages cover %" PRIu32 " of %" PRIu32 " layers and %" PRIu32
                         " of %" PRIu32 " ranks",
                         layer, n_layer, rank, s->n_ranks);
    return 0;
}

const char *split_describe(const struct split *s, char text[32])
{
    bool even = true;
    for (uint32_t i = 1; i < s->n_stages; i++)
        even = even && s->stage[i].n_ranks == s->stage[0].n_ranks;
    if (even && s->n_stages == 1 && s->n_ranks > 1) {
        snprintf(text, 32, "tensor");
    } else if (even && s->n_stages == s->n_ranks && s->n_ranks > 1) {
        snprintf(text, 32, "pipeline");
    } else if (even) {
        snprintf(text, 32, "%" PRIu32 "x%" PRIu32, s->n_stages, s->stage[0].n_ranks);
    } else { /* ranks of each stage, such as "2+1" */
        int used = 0;
        for (uint32_t i = 0; i < s->n_stages && used < 24; i++)
            used += snprintf(text + used, 32 - (size_t)used, "%s%" PRIu32, i > 0 ? "+" : "",
                             s->stage[i].n_ranks);
        if (used >= 24)
            snprintf(text + 24, 8, "...");
    }
    return text;
}

int split_encode(const struct split *s, struct buf *b)
{
    assert(s->n_stages <= LIMIT_STAGES && s->n_ranks <= LIMIT_RANKS);
    buf_append_u32(b, s->n_stages);
    buf_append_u32(b, s->n_ranks);
    for (uint32_t i = 0; i < s->n_stages; i++) {
        buf_append_u32(b, s->stage[i].layers.begin);
        buf_append_u32(b, s->stage[i].layers.end);
        buf_append_u32(b, s->stage[i].rank_first);
        buf_append_u32(b, s->stage[i].n_ranks);
    }
    for (uint32_t r = 0; r < s->n_ranks; r++)
        buf_append_u32(b, s->weight[r]);
    return b->error;
}

int split_decode(struct cursor *c, struct split *ret_split, struct error *err)
{
    struct split s = {0};
    s.n_stages = cursor_u32(c);
    s.n_ranks = cursor_u32(c);
    if (c->failed || s.n_stages < 1 || s.n_stages > LIMIT_STAGES || s.n_ranks < 1 ||
        s.n_ranks > LIMIT_RANKS)
        return error_set(err, E_PROTOCOL, "split of %" PRIu32 " stages and %" PRIu32 " ranks",
                         s.n_stages, s.n_ranks);
    for (uint32_t i = 0; i < s.n_stages; i++) {
        s.stage[i].layers.begin = cursor_u32(c);
        s.stage[i].layers.end = cursor_u32(c);
        s.stage[i].rank_first = cursor_u32(c);
        s.stage[i].n_ranks = cursor_u32(c);
    }
    for (uint32_t r = 0; r < s.n_ranks; r++)
        s.weight[r] = cursor_u32(c);
    if (c->failed)
        return error_set(err, E_PROTOCOL, "split is cut off at byte %zu", c->offset);
    if (split_check(&s, s.stage[s.n_stages - 1].layers.end, err) != 0)
        return error_wrap(err, E_PROTOCOL, "split");
    *ret_split = s;
    return 0;
}
