#include "base/clock.h"
#include "base/rng.h"
#include "cli/bench.h"

#include <stdlib.h>
#include <string.h>

/* What a rank has done so far. */
struct reading {
    struct rank_time time[LIMIT_RANKS];
    uint64_t bytes_sent;
};

struct stream {
    uint64_t first_ns, last_ns; /* 0: no token yet */
    uint32_t n_tokens, n_messages;
    bool is_done;
    struct message_done done;
};

/* One run of the workload. */
struct load {
    struct bench *b;
    uint32_t index;
    uint64_t submitted_ns;
    struct stream *stream; /* [n_streams] */
    double *gap_ms;        /* [n_gaps] */
    uint32_t n_gaps, n_started, n_done;
    /* the window in which all streams decode */
    uint64_t window_begin_ns, window_end_ns;
    uint64_t n_window_tokens;
    struct reading begin, end;
};

static int read_ranks(const struct load *l, struct reading *ret, struct error *err)
{
    memset(ret, 0, sizeof(*ret));
    for (uint32_t i = 0; i < local_set_n_ranks(l->b->ranks); i++) {
        struct message_pong pong;
        int rc = local_set_ping(l->b->ranks, i, &pong, err);
        if (rc != 0)
            return rc;
        ret->time[i] = (struct rank_time){.step_ns = pong.timing.step_ns,
                                          .comm_ns = pong.timing.comm_ns,
                                          .graph_ns = pong.timing.graph_ns,
                                          .fill_ns = pong.timing.fill_ns,
                                          .sample_ns = pong.timing.sample_ns,
                                          .wall_ns = clock_now_ns()};
        ret->bytes_sent += pong.comm.bytes_sent;
    }
    return 0;
}

int bench_read_memory(struct bench *b, struct error *err)
{
    for (uint32_t i = 0; i < local_set_n_ranks(b->ranks); i++) {
        struct message_pong pong;
        int rc = local_set_ping(b->ranks, i, &pong, err);
        if (rc != 0)
            return rc;
        b->memory_peak_bytes[i] = pong.memory_peak_bytes;
    }
    return 0;
}

static int32_t prompt_token(const struct load *l, uint32_t stream, uint32_t position)
{
    enum { PHRASE_TOKENS = 24 };
    switch (l->b->prompt) {
    case BENCH_PROMPT_REPEAT:
        position %= PHRASE_TOKENS;
        break;
    case BENCH_PROMPT_SAME:
        return (int32_t)(rng_u64(0, position, 0) % l->b->n_vocab);
    case BENCH_PROMPT_RANDOM:
        break;
    }
    uint64_t seed = (uint64_t)l->index * BENCH_STREAMS_MAX + stream + 1;
    return (int32_t)(rng_u64(seed, position, 0) % l->b->n_vocab);
}

static int submit(const struct load *l, uint32_t stream, struct error *err)
{
    const struct bench *b = l->b;
    struct message_submit m = {
        .request = stream + 1, .n_max = b->n_decode + 1, .n_tokens = b->n_prefill};
    int32_t *tokens = malloc((size_t)b->n_prefill * sizeof(*tokens));
    if (tokens == NULL)
        return error_set(err, E_NOMEM, "no memory for the prompt");
    for (uint32_t i = 0; i < b->n_prefill; i++)
        tokens[i] = prompt_token(l, stream, i);
    sampling_init(&m.sampling);
    m.sampling.temperature = b->temperature;
    m.sampling.seed = (uint64_t)l->index * BENCH_STREAMS_MAX + stream;
    m.sampling.n_prompt = b->n_prefill;
    m.tokens = tokens;
    int rc = local_set_submit(b->ranks, &m, err);
    free(tokens);
    return rc;
}

static int take_tokens(struct load *l, const struct message *m, struct error *err)
{
    struct message_tokens tokens;
    int rc = message_decode_tokens(m, &tokens, NULL, err);
    if (rc != 0)
        return rc;
    struct stream *s = &l->stream[tokens.request - 1];
    uint64_t now_ns = clock_now_ns();
    if (s->first_ns == 0) {
        s->first_ns = now_ns;
        l->n_started++;
    } else {
        l->gap_ms[l->n_gaps++] = (double)(now_ns - s->last_ns) / 1e6;
    }
    s->last_ns = now_ns;
    s->n_tokens += tokens.n_tokens;
    s->n_messages++;
    if (l->window_begin_ns != 0 && l->window_end_ns == 0)
        l->n_window_tokens += tokens.n_tokens;
    if (l->n_started == l->b->n_streams && l->window_begin_ns == 0 && l->n_done == 0) {
        rc = read_ranks(l, &l->begin, err);
        l->window_begin_ns = clock_now_ns();
    }
    return rc;
}

static int take_done(struct load *l, const struct message *m, struct error *err)
{
    struct message_done done;
    int rc = message_decode_done(m, &done, err);
    if (rc == 0 && done.reason == FINISH_ERROR)
        rc = error_set(err, done.code, "%s", done.message);
    if (rc != 0)
        return rc;
    if (l->n_done++ == 0 && l->window_begin_ns != 0) {
        l->window_end_ns = clock_now_ns();
        rc = read_ranks(l, &l->end, err);
    }
    l->stream[done.request - 1].done = done;
    return rc;
}

static int run_load(struct load *l, struct error *err)
{
    enum { ANSWER_TIMEOUT_MS = 10 * 60 * 1000 };
    int rc = 0;
    l->submitted_ns = clock_now_ns();
    for (uint32_t i = 0; i < l->b->n_streams && rc == 0; i++)
        rc = submit(l, i, err);
    while (rc == 0 && l->n_done < l->b->n_streams) {
        struct message m;
        rc = local_set_next(l->b->ranks, ANSWER_TIMEOUT_MS, &m, err);
        if (rc == 0 && m.type == MESSAGE_TOKENS)
            rc = take_tokens(l, &m, err);
        else if (rc == 0 && m.type == MESSAGE_DONE)
            rc = take_done(l, &m, err);
    }
    return rc;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void add_times(struct load *l, struct repetition *ret)
{
    struct bench *b = l->b;
    uint64_t comm_ns_max = 0;
    for (uint32_t i = 0; i < local_set_n_ranks(b->ranks); i++) {
        const struct rank_time *x = &l->begin.time[i], *y = &l->end.time[i];
        struct rank_time *sum = &b->time[i];
        sum->step_ns += y->step_ns - x->step_ns;
        sum->comm_ns += y->comm_ns - x->comm_ns;
        sum->graph_ns += y->graph_ns - x->graph_ns;
        sum->fill_ns += y->fill_ns - x->fill_ns;
        sum->sample_ns += y->sample_ns - x->sample_ns;
        sum->wall_ns += y->wall_ns - x->wall_ns;
        if (y->comm_ns - x->comm_ns > comm_ns_max)
            comm_ns_max = y->comm_ns - x->comm_ns;
    }
    double n_tokens = (double)l->n_window_tokens;
    ret->total_tok_s = n_tokens * 1e9 / (double)(l->window_end_ns - l->window_begin_ns);
    ret->comm_us_per_token = (double)comm_ns_max / 1e3 / n_tokens;
    ret->bytes_sent_per_token = (double)(l->end.bytes_sent - l->begin.bytes_sent) / n_tokens;
}

static int evaluate(struct load *l, struct repetition *ret, struct error *err)
{
    const struct stream *s = &l->stream[0];
    const struct message_done *done = &s->done;
    uint32_t n_tokens = 0, n_messages = 0;
    for (uint32_t i = 0; i < l->b->n_streams; i++) {
        n_tokens += l->stream[i].n_tokens;
        n_messages += l->stream[i].n_messages;
        if (l->stream[i].n_tokens != l->b->n_decode + 1)
            return error_set(err, E_INTERNAL, "stream %u has %u tokens, not %u", i,
                             l->stream[i].n_tokens, l->b->n_decode + 1);
    }
    if (done->prefill_ns == 0 || done->decode_ns == 0 || l->n_gaps == 0)
        return error_set(err, E_INTERNAL, "the head measured no time");
    *ret = (struct repetition){
        .prefill_tok_s = (done->n_prompt - done->n_cached) * 1e9 / (double)done->prefill_ns,
        .decode_tok_s = l->b->n_decode * 1e9 / (double)done->decode_ns,
        .first_ms = (double)(s->first_ns - l->submitted_ns) / 1e6,
        .drafts_accepted = (double)n_tokens / n_messages - 1,
    };
    qsort(l->gap_ms, l->n_gaps, sizeof(double), compare_doubles);
    ret->gap_p50_ms = l->gap_ms[l->n_gaps / 2];
    ret->gap_p99_ms = l->gap_ms[(uint64_t)l->n_gaps * 99 / 100];
    /* Without a window (some stream was done before the last began) there is no steady state. */
    if (l->n_window_tokens > 0 && l->window_end_ns > l->window_begin_ns)
        add_times(l, ret);
    return 0;
}

int bench_measure(struct bench *b, uint32_t index, struct repetition *ret, struct error *err)
{
    struct load l = {.b = b, .index = index};
    l.stream = calloc(b->n_streams, sizeof(*l.stream));
    l.gap_ms = calloc((size_t)b->n_streams * (b->n_decode + 1), sizeof(*l.gap_ms));
    int rc = l.stream == NULL || l.gap_ms == NULL ? error_set(err, E_NOMEM, "out of memory") : 0;
    if (rc == 0)
        rc = run_load(&l, err);
    if (rc == 0)
        rc = evaluate(&l, ret, err);
    free(l.stream);
    free(l.gap_ms);
    return rc;
}
