#include "engine/internal.h"

#include "base/clock.h"

#include <stdlib.h>
#include <string.h>

/* ---- a step ---- */

/* A mask that allows nothing must not be met when half of the step is done. */
static bool check_asked(const struct engine *e, const struct step_part *part)
{
    uint32_t n_vocab = e->model->config.n_vocab, id = 0;
    if (part->n_logprobs > 1 + LIMIT_TOP_LOGPROBS)
        return false;
    if (part->mask == NULL)
        return true;
    while (id < n_vocab && !sampler_mask_allows(part->mask, id))
        id += part->mask[id / 8] == 0 ? 8 : 1;
    return id < n_vocab && part->output == STEP_OUTPUT_LAST;
}

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
        int rc = kv_cache_check_append(&e->kv, part->slot, part->n_tokens, err);
        if (rc != 0)
            return rc;
        seen |= (uint64_t)1 << part->slot;
        n += part->n_tokens;
    }
    for (uint32_t i = 0; i < step->n_parts; i++)
        if (!check_asked(e, &step->part[i]))
            return error_set(
                err, E_INVALID,
                "part %u of the step asks for %u log-probabilities, or has a mask that "
                "allows nothing or is for more than one token",
                i, step->part[i].n_logprobs);
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

/* Whether its rows attend one by one. It must not depend on the part's company: the numbers of a
 * sequence would. */
static bool attends_by_row(const struct engine *e, const struct step_part *part)
{
    return e->attends_by_row && part->n_tokens <= ATTENTION_ROWS_MAX;
}

/* A part whose slot then holds n_after tokens. */
static struct graph_part make_part(const struct engine *e, uint32_t slot, uint32_t n_tokens,
                                   uint32_t n_after)
{
    struct graph_part part = {.n_tokens = n_tokens, .n_kv = kv_cache_round_cells(&e->kv, n_after)};
    if (kv_cache_is_contiguous(&e->kv, slot, n_after))
        part.cell_first = kv_cache_cell(&e->kv, slot, 0);
    else
        part.is_gathered = 1;
    return part;
}

/* Which of two rows is nearer to the middle of n; the first if both are. */
static uint32_t nearer_middle(uint32_t n, uint32_t a, uint32_t b)
{
    uint32_t from_a = 2 * a > n ? 2 * a - n : n - 2 * a, from_b = 2 * b > n ? 2 * b - n : n - 2 * b;
    return from_b < from_a ? b : a;
}

/* Between parts, or in a part where its attention comes out the same: ggml has another kernel for
 * fewer rows than make a tile of its own. All ranks come to the same row. */
uint32_t engine_divide(const struct engine *e, const struct step *step)
{
    enum { TILE = 64, ALIGN = 16 /* rows that products are made of at once */ };
    uint32_t n = step->n_tokens, middle = (n / 2 + ALIGN / 2) / ALIGN * ALIGN, best = 0, row = 0;
    if (e->overlap_rows_min == 0 || n < e->overlap_rows_min)
        return 0;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        uint32_t end = row + step->part[i].n_tokens;
        best = nearer_middle(n, best, end);
        if (end - row >= 2 * TILE)
            best = nearer_middle(n, best,
                                 middle < row + TILE   ? row + TILE
                                 : middle > end - TILE ? end - TILE
                                                       : middle);
        row = end;
    }
    return best >= n / 4 && n - best >= n / 4 ? best : 0;
}

/* Neighbouring parts of single rows are one part of the graph. */
static void make_shape(const struct engine *e, const struct step *step,
                       struct graph_shape *ret_shape)
{
    struct graph_part *rows = NULL; /* the graph's last part, if it has single rows */
    *ret_shape =
        (struct graph_shape){.n_tokens = step->n_tokens, .n_early = engine_divide(e, step)};
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct step_part *part = &step->part[i];
        uint32_t n_after = e->kv.slot[part->slot].n_tokens + part->n_tokens;
        ret_shape->n_outputs += part_n_outputs(part);
        if (!attends_by_row(e, part)) {
            rows = NULL;
            ret_shape->part[ret_shape->n_parts++] =
                make_part(e, part->slot, part->n_tokens, n_after);
            continue;
        }
        if (rows == NULL)
            rows = &ret_shape->part[ret_shape->n_parts++];
        rows->n_tokens += part->n_tokens;
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
    if (rc == 0 && !compute_allocate(&e->compute, e->graph.cgraph)) {
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

/* Zeros behind the first n_bytes. */
static void clear_padding(struct ggml_tensor *t, size_t n_bytes)
{
    if (input_data(t) != NULL)
        memset((char *)t->data + n_bytes, 0, ggml_nbytes(t) - n_bytes);
}

static void set_cells(uint16_t *cell, uint32_t n, uint16_t value)
{
    for (uint32_t i = 0; i < n; i++)
        cell[i] = value;
}

/* Row i (position p) sees the cells of positions 0 .. p, or, with a window, the last `window` of
 * them. */
static void fill_mask(struct ggml_tensor *mask, uint32_t position_first, uint32_t window)
{
    enum { F16_ZERO = 0, F16_MINUS_INFINITY = 0xFC00 };
    uint16_t *row = input_data(mask);
    if (row == NULL)
        return;
    uint32_t n = (uint32_t)mask->ne[0];
    for (uint32_t i = 0; i < mask->ne[1]; i++, row += n) {
        uint32_t end = position_first + i + 1,
                 begin = window != 0 && end > window ? end - window : 0;
        set_cells(row, begin, F16_MINUS_INFINITY);
        set_cells(row + begin, end - begin, F16_ZERO);
        set_cells(row + end, n - end, F16_MINUS_INFINITY);
    }
}

/* The blocks of a slot's first n tokens; behind them any will do, since nobody looks there. */
static void fill_blocks(struct ggml_tensor *list, const struct kv_cache *kv, uint32_t slot,
                        uint32_t n)
{
    int32_t *block = input_data(list);
    uint32_t last = (n - 1) / kv->shape.block_tokens;
    for (uint32_t i = 0; block != NULL && i < list->ne[0]; i++)
        block[i] = (int32_t)kv->slot[slot].blocks[i < last ? i : last];
}

static void fill_inputs(struct engine *e, const struct step *step)
{
    struct graph *g = &e->graph;
    int32_t *positions = input_data(g->positions), *output_rows = input_data(g->output_rows);
    int64_t *cells = input_data(g->cells);
    clear_padding(g->tokens, step->n_tokens * sizeof(int32_t));
    clear_padding(g->positions, step->n_tokens * sizeof(int32_t));
    clear_padding(g->output_rows, g->shape.n_outputs * sizeof(int32_t));
    if (g->hidden_in != NULL)
        clear_padding(g->hidden_in, step->n_tokens * g->hidden_in->nb[1]);
    if (input_data(g->tokens) != NULL)
        memcpy(g->tokens->data, step->tokens, step->n_tokens * sizeof(int32_t));

    uint32_t row = 0, row_end = 0, output = 0, in_graph = 0; /* row_end: of the graph's part */
    for (uint32_t i = 0; i < step->n_parts; i++) {
        const struct step_part *part = &step->part[i];
        uint32_t n_past = e->kv.slot[part->slot].n_tokens;
        for (uint32_t t = 0; t < part->n_tokens; t++) {
            if (positions != NULL)
                positions[row + t] = (int32_t)(n_past + t);
            if (cells != NULL)
                cells[row + t] = kv_cache_cell(&e->kv, part->slot, n_past + t);
        }
        if (row == row_end)
            row_end += g->shape.part[in_graph++].n_tokens;
        if (!attends_by_row(e, part)) {
            fill_blocks(g->blocks[in_graph - 1], &e->kv, part->slot, n_past + part->n_tokens);
            fill_mask(g->mask[in_graph - 1], n_past, 0);
            fill_mask(g->mask_window[in_graph - 1], n_past, e->model->config.window);
        }
        row += part->n_tokens;
        for (uint32_t n = part_n_outputs(part); n > 0 && output_rows != NULL; n--)
            output_rows[output++] = (int32_t)(row - n);
    }
}

int engine_prepare(struct engine *e, const struct step *step, struct error *err)
{
    int rc = prepare_graph(e, step, err);
    uint64_t start = clock_now_ns();
    if (rc == 0)
        fill_inputs(e, step);
    e->timing.fill_ns += clock_now_ns() - start;
    return rc;
}

static size_t hidden_count(const struct engine *e, const struct ggml_tensor *hidden)
{
    return e->graph.shape.n_tokens * (size_t)hidden->ne[0];
}

/* Hidden states between stages: rank j of the next stage gets them from rank j mod n of this one.
 */
static int receive_hidden(struct engine *e, struct error *err)
{
    if (e->n_prev_ranks == 0)
        return 0;
    uint64_t start = clock_now_ns();
    struct ggml_tensor *hidden = e->graph.hidden_in;
    int rc = comm_recv_f32(e->comm, e->prev_rank_first + e->shard.stage_rank % e->n_prev_ranks,
                           hidden->data, hidden_count(e, hidden), err);
    e->timing.comm_ns += clock_now_ns() - start;
    return rc;
}

static int send_hidden(struct engine *e, struct error *err)
{
    uint64_t start = clock_now_ns();
    int rc = 0;
    uint32_t n_stage_ranks = e->shard.n_stage_ranks;
    for (uint32_t j = e->shard.stage_rank; j < e->n_next_ranks && rc == 0; j += n_stage_ranks)
        rc = comm_send_f32(e->comm, e->next_rank_first + j, e->hidden_out.rows,
                           hidden_count(e, e->graph.hidden_out), err);
    e->timing.comm_ns += clock_now_ns() - start;
    return rc;
}

int engine_compute(struct engine *e, struct error *err)
{
    e->link.status = 0;
    e->link.comm_ns = 0;
    if (e->graph.cgraph == NULL || ggml_graph_n_nodes(e->graph.cgraph) == 0)
        return 0;
    /* A device is not interrupted: its steps are short, and the sums between are the processors'.
     */
    enum ggml_status status =
        engine_must_stop(e) ? GGML_STATUS_ABORTED : compute_run(&e->compute, e->graph.cgraph);
    e->timing.comm_ns += e->link.comm_ns;
    if (e->link.status != 0)
        return error_set(err, e->link.status, "%s", e->link.error.message);
    if (status == GGML_STATUS_ABORTED)
        return error_set(err, E_CANCELLED, "the step was aborted");
    if (status != GGML_STATUS_SUCCESS)
        return error_set(err, E_INTERNAL, "ggml failed to compute: %s",
                         ggml_status_to_string(status));
    return engine_fetch_outputs(e, err);
}

static int sample(struct engine *e, const struct step *step, struct error *err)
{
    uint64_t start = clock_now_ns();
    struct comm *comm = e->shard.n_stage_ranks > 1 ? e->comm : NULL;
    int rc = 0;
    for (uint32_t i = 0; i < step->n_parts && rc == 0; i++) {
        const struct kv_slot *slot = &e->kv.slot[step->part[i].slot];
        const struct sampling *sampling = &e->sampling[step->part[i].slot];
        uint32_t n_outputs = part_n_outputs(&step->part[i]);
        for (uint32_t n = n_outputs; n > 0 && rc == 0; n--) {
            const float *logits = engine_logits(e, e->n_rows, NULL);
            uint32_t n_logprobs = step->part[i].n_logprobs;
            struct sampler_choice choice;
            rc = sampler_choose(e->sampler, sampling, logits, e->shard.vocab, step->part[i].mask,
                                slot->tokens, slot->n_tokens - (n - 1), comm, e->link.group,
                                &choice, err);
            if (rc == 0 && n_logprobs > 0)
                rc = logprobs_compute(logits, e->shard.vocab, choice.token, n_logprobs - 1, comm,
                                      e->link.group, &e->logprobs[e->n_rows], err);
            e->rows[e->n_rows++] =
                (struct step_row){choice.token, choice.logit, choice.logit_second};
        }
    }
    e->timing.sample_ns += clock_now_ns() - start;
    return rc;
}

/* In the first step, where the ranks of the stage come together anyway. */
static int agree_on_overlap(struct engine *e, struct error *err)
{
    bool overlaps = false;
    int rc = 0;
    if (e->step_number == 0 && e->overlap_rows_min == 0 && e->shard.n_stage_ranks > 1)
        rc = comm_group_overlaps(e->comm, e->link.group, &overlaps, err);
    if (overlaps)
        e->overlap_rows_min = OVERLAP_ROWS_MIN;
    return rc;
}

static int run_step(struct engine *e, const struct step *step, struct error *err)
{
    int rc = agree_on_overlap(e, err);
    if (rc == 0)
        rc = engine_prepare(e, step, err);
    if (rc != 0)
        return rc;
    const int32_t *tokens = step->tokens;
    for (uint32_t i = 0; i < step->n_parts; i++) {
        kv_cache_append(&e->kv, step->part[i].slot, tokens, step->part[i].n_tokens);
        tokens += step->part[i].n_tokens;
    }
    rc = receive_hidden(e, err);
    if (rc == 0)
        rc = engine_compute(e, err);
    if (rc == 0 && e->n_next_ranks > 0)
        rc = send_hidden(e, err);
    if (rc == 0 && e->shard.is_last_stage)
        rc = sample(e, step, err);
    return rc;
}

/* Whether the step asks for log-probabilities; then there is room for them. */
static int prepare_logprobs(struct engine *e, const struct step *step, bool *ret_asked,
                            struct error *err)
{
    *ret_asked = false;
    for (uint32_t i = 0; i < step->n_parts; i++)
        *ret_asked |= step->part[i].n_logprobs > 0;
    if (!*ret_asked || e->logprobs != NULL)
        return 0;
    e->logprobs = calloc(e->options.n_batch, sizeof(*e->logprobs));
    return e->logprobs != NULL
               ? 0
               : error_set(err, E_NOMEM, "no memory for log-probabilities of %u tokens",
                           e->options.n_batch);
}

int engine_step(struct engine *e, const struct step *step, struct step_result *ret_result,
                struct error *err)
{
    bool has_logprobs = false;
    int rc = check_step(e, step, err);
    if (rc == 0)
        rc = prepare_logprobs(e, step, &has_logprobs, err);
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
    *ret_result = (struct step_result){
        .n_rows = e->n_rows, .rows = e->rows, .logprobs = has_logprobs ? e->logprobs : NULL};
    return 0;
}
