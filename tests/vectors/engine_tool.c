/*
 * Runs token ids through the engine, teacher-forced, for tests that compare numbers:
 *
 *   engine_tool MODEL IN OUT [--split TEXT] [--ranks N] [--batch N] [--threads N] [--no-repack]
 *               [--kv f16|q8] [--device A,B] [--one-by-one N] [--rows] [--summary PICKS]
 *
 * IN: token ids, i32; -1 between sequences, each of which starts with an empty cache. OUT has one
 * record for every token, in order, separators left out:
 *   by default        its logits, f32 [n_vocab]
 *   --rows            struct step_row (i32 argmax, f32 its logit, f32 the second best)
 *   --summary PICKS   u64 hash of all logits, f64 logarithm of the sum of their exponentials,
 *                     struct step_row, f32 logits of the tokens that PICKS (i32 [n_tokens][n])
 *                     names for it; padding to 8 bytes
 * The hash is a sum over the vocabulary, so that it does not depend on how that is cut.
 * --one-by-one N: the last N tokens of each sequence go through one at a time, as in decoding.
 * Ranks are threads over the local back end.
 */
#include "engine/devices.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum format { FORMAT_LOGITS, FORMAT_ROWS, FORMAT_SUMMARY };

struct partial { /* what one rank's slice of the vocabulary adds to a summary */
    uint64_t hash;
    double peak, sum; /* sum of exp(logit - peak) */
};

struct job {
    const struct model *model;
    struct split split;
    struct engine_options options;
    const char *split_text, *devices; /* of the ranks */
    uint32_t n_ranks;
    const int32_t *in; /* with separators */
    uint32_t n_in, n_tokens, n_single;
    enum format format;
    const int32_t *picks; /* [n_tokens][n_picks] */
    uint32_t n_picks;
    size_t record_bytes;
    uint8_t *out;             /* shared; each rank writes its own part */
    struct partial *partials; /* [n_ranks][n_tokens] */
};

struct rank {
    struct job *job;
    uint32_t index;
    struct comm *comm;
    pthread_t thread;
    int status;
    struct error err;
};

/* ---- records ---- */

enum { SUMMARY_ROW = 16, SUMMARY_PICKS = SUMMARY_ROW + sizeof(struct step_row) };

static uint64_t mix(uint64_t x) /* the finalizer of MurmurHash3, public domain */
{
    x = (x ^ (x >> 33)) * UINT64_C(0xff51afd7ed558ccd);
    x = (x ^ (x >> 33)) * UINT64_C(0xc4ceb9fe1a85ec53);
    return x ^ (x >> 33);
}

static struct partial reduce_slice(const float *logits, struct range vocab)
{
    struct partial p = {.peak = -INFINITY};
    uint32_t n = vocab.end - vocab.begin;
    for (uint32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof(bits));
        p.hash += mix((uint64_t)(vocab.begin + i) << 32 | bits);
        if (logits[i] > p.peak)
            p.peak = logits[i];
    }
    for (uint32_t i = 0; i < n; i++)
        p.sum += (double)expf(logits[i] - (float)p.peak);
    return p;
}

static void keep_summary(const struct rank *r, uint32_t token, const float *logits,
                         struct range vocab, const struct step_row *row)
{
    const struct job *job = r->job;
    uint8_t *record = job->out + token * job->record_bytes;
    job->partials[(size_t)r->index * job->n_tokens + token] = reduce_slice(logits, vocab);
    if (vocab.begin == 0) /* all ranks of the stage have the same row */
        memcpy(record + SUMMARY_ROW, row, sizeof(*row));
    for (uint32_t i = 0; i < job->n_picks; i++) {
        uint32_t id = (uint32_t)job->picks[(size_t)token * job->n_picks + i];
        if (id >= vocab.begin && id < vocab.end)
            memcpy(record + SUMMARY_PICKS + i * sizeof(float), &logits[id - vocab.begin],
                   sizeof(float));
    }
}

static void keep_rows(const struct rank *r, struct engine *e, uint32_t first,
                      const struct step_result *result)
{
    const struct job *job = r->job;
    for (uint32_t i = 0; i < result->n_rows; i++) {
        uint8_t *record = job->out + (first + i) * job->record_bytes;
        struct range vocab;
        const float *logits = engine_logits(e, i, &vocab);
        if (logits == NULL || vocab.begin == vocab.end)
            continue;
        if (job->format == FORMAT_SUMMARY)
            keep_summary(r, first + i, logits, vocab, &result->rows[i]);
        else if (job->format == FORMAT_LOGITS)
            memcpy(record + vocab.begin * sizeof(float), logits,
                   (vocab.end - vocab.begin) * sizeof(float));
        else if (vocab.begin == 0)
            memcpy(record, &result->rows[i], sizeof(struct step_row));
    }
}

/* Adds up what the ranks found. A rank without a part of the vocabulary left zeros. */
static void finish_summaries(struct job *job)
{
    for (uint32_t i = 0; i < job->n_tokens; i++) {
        uint64_t hash = 0;
        double peak = -INFINITY, sum = 0.0;
        for (uint32_t r = 0; r < job->n_ranks; r++) {
            const struct partial *p = &job->partials[(size_t)r * job->n_tokens + i];
            if (p->sum > 0.0 && p->peak > peak)
                peak = p->peak;
        }
        for (uint32_t r = 0; r < job->n_ranks; r++) {
            const struct partial *p = &job->partials[(size_t)r * job->n_tokens + i];
            hash += p->hash;
            sum += p->sum > 0.0 ? p->sum * exp(p->peak - peak) : 0.0;
        }
        double log_sum = peak + log(sum);
        memcpy(job->out + i * job->record_bytes, &hash, sizeof(hash));
        memcpy(job->out + i * job->record_bytes + sizeof(hash), &log_sum, sizeof(log_sum));
    }
}

/* ---- a rank ---- */

/* One sequence of n tokens whose first one is number `first` of the output. */
static int run_sequence(struct rank *r, struct engine *e, const int32_t *tokens, uint32_t n,
                        uint32_t first, uint64_t *number)
{
    const struct job *job = r->job;
    struct engine_info info;
    struct sampling sampling;
    sampling_init(&sampling);
    engine_get_info(e, &info);
    uint32_t n_blocks = (n + info.block_tokens - 1) / info.block_tokens;
    uint32_t *blocks = calloc(n_blocks + 1, sizeof(*blocks));
    if (blocks == NULL)
        return error_set(&r->err, E_NOMEM, "out of memory");
    for (uint32_t i = 0; i < n_blocks; i++)
        blocks[i] = i;
    int rc = engine_slot_attach(e, 0, blocks, n_blocks, 0, &sampling, &r->err);
    free(blocks);
    for (uint32_t done = 0, n_now; rc == 0 && done < n; done += n_now) {
        uint32_t n_left = n - done;
        n_now = 1;
        if (n_left > job->n_single)
            n_now = n_left - job->n_single < info.n_batch ? n_left - job->n_single : info.n_batch;
        struct step step = {.number = ++*number,
                            .n_parts = 1,
                            .part[0] = {.slot = 0, .n_tokens = n_now, .output = STEP_OUTPUT_ALL},
                            .n_tokens = n_now,
                            .tokens = tokens + done};
        struct step_result result;
        rc = engine_step(e, &step, &result, &r->err);
        if (rc == 0)
            keep_rows(r, e, first + done, &result);
    }
    return rc;
}

static void print_figures(const struct rank *r, struct engine *e)
{
    struct engine_info info;
    struct engine_timing timing;
    engine_get_info(e, &info);
    engine_get_timing(e, &timing);
    fprintf(stderr,
            "rank %u: weights %.1f MB (mapped %.1f, repacked %.1f), %llu steps, %.1f ms, comm %.1f "
            "ms, sample %.1f ms\n",
            r->index, (double)info.weight_bytes / 1e6, (double)info.weight_bytes_mapped / 1e6,
            (double)info.weight_bytes_repacked / 1e6, (unsigned long long)timing.n_steps,
            (double)timing.step_ns / 1e6, (double)timing.comm_ns / 1e6,
            (double)timing.sample_ns / 1e6);
}

static int run(struct rank *r)
{
    struct job *job = r->job;
    struct engine_options options = job->options;
    struct engine *e = NULL;
    int rc = engine_device_nth(job->devices, r->index, options.device, &r->err);
    if (rc == 0)
        rc = engine_open(job->model, &job->split, r->index, r->comm, &options, &e, &r->err);
    uint64_t number = 0;
    for (uint32_t i = 0, first = 0; rc == 0 && i < job->n_in;) {
        uint32_t n = 0;
        while (i + n < job->n_in && job->in[i + n] >= 0)
            n++;
        rc = run_sequence(r, e, job->in + i, n, first, &number);
        first += n;
        i += n + 1;
    }
    if (rc == 0)
        print_figures(r, e);
    engine_close(e);
    return rc;
}

static void *run_thread(void *arg)
{
    struct rank *r = arg;
    r->status = run(r);
    if (r->status != 0 && r->comm != NULL) {
        comm_close(r->comm); /* the others must not wait for this rank */
        r->comm = NULL;
    }
    return NULL;
}

static int run_ranks(struct job *job)
{
    struct error err = {0};
    struct comm *comms[LIMIT_RANKS] = {0};
    struct comm_options comm_options = {.spin_us = 0, .timeout_ms = 120000};
    if (job->n_ranks > 1 && comm_local_new(job->n_ranks, &comm_options, comms, &err) != 0) {
        fprintf(stderr, "engine_tool: %s\n", err.message);
        return 70;
    }
    static struct rank rank[LIMIT_RANKS];
    int status = 0;
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        rank[i] = (struct rank){.job = job, .index = i, .comm = comms[i]};
        if (pthread_create(&rank[i].thread, NULL, run_thread, &rank[i]) != 0)
            abort(); /* the ranks that run already would wait for it */
    }
    for (uint32_t i = 0; i < job->n_ranks; i++) {
        pthread_join(rank[i].thread, NULL);
        if (rank[i].status != 0) {
            fprintf(stderr, "engine_tool: rank %u: %s\n", i, rank[i].err.message);
            status = 70;
        }
    }
    for (uint32_t i = 0; i < job->n_ranks; i++)
        comm_close(rank[i].comm);
    return status;
}

/* ---- files and options ---- */

static int32_t *read_ids(const char *path, uint32_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    long size = -1;
    if (f != NULL && fseek(f, 0, SEEK_END) == 0)
        size = ftell(f);
    int32_t *ids = size > 0 ? malloc((size_t)size) : NULL;
    if (ids != NULL) {
        rewind(f);
        *ret_n = (uint32_t)((size_t)size / sizeof(*ids));
        if (fread(ids, sizeof(*ids), *ret_n, f) != *ret_n) {
            free(ids);
            ids = NULL;
        }
    }
    if (f != NULL)
        fclose(f);
    if (ids == NULL)
        fprintf(stderr, "engine_tool: %s: no token ids\n", path);
    return ids;
}

static int parse_options(struct job *job, int argc, char **argv, const char **ret_picks_path)
{
    for (int i = 4; i < argc; i++) {
        const char *name = argv[i];
        if (strcmp(name, "--rows") == 0) {
            job->format = FORMAT_ROWS;
            continue;
        }
        if (strcmp(name, "--no-repack") == 0) {
            job->options.no_repack = true;
            continue;
        }
        const char *value = ++i < argc ? argv[i] : "";
        uint32_t number = (uint32_t)strtoul(value, NULL, 10);
        if (strcmp(name, "--split") == 0)
            job->split_text = value;
        else if (strcmp(name, "--ranks") == 0 && number >= 1 && number <= LIMIT_RANKS)
            job->n_ranks = number;
        else if (strcmp(name, "--batch") == 0)
            job->options.n_batch = number;
        else if (strcmp(name, "--threads") == 0)
            job->options.n_threads = number;
        else if (strcmp(name, "--kv") == 0 &&
                 (strcmp(value, "f16") == 0 || strcmp(value, "q8") == 0))
            job->options.kv_type = value[0] == 'q' ? KV_Q8_0 : KV_F16;
        else if (strcmp(name, "--device") == 0)
            job->devices = value;
        else if (strcmp(name, "--one-by-one") == 0)
            job->n_single = number;
        else if (strcmp(name, "--summary") == 0)
            job->format = FORMAT_SUMMARY, *ret_picks_path = value;
        else
            return -1;
    }
    return argc < 4 ? -1 : 0;
}

/* Counts tokens and finds the longest sequence: that much context is needed. */
static void measure(struct job *job)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < job->n_in; i++) {
        n = job->in[i] < 0 ? 0 : n + 1;
        job->n_tokens += job->in[i] >= 0;
        if (n > job->options.n_ctx)
            job->options.n_ctx = n;
    }
}

static int prepare(struct job *job, const char *picks_path)
{
    measure(job);
    job->record_bytes = job->model->config.n_vocab * sizeof(float);
    if (job->format == FORMAT_ROWS)
        job->record_bytes = sizeof(struct step_row);
    if (job->format == FORMAT_SUMMARY) {
        uint32_t n = 0;
        job->picks = read_ids(picks_path, &n);
        if (job->picks == NULL || job->n_tokens == 0 || n % job->n_tokens != 0)
            return 66;
        job->n_picks = n / job->n_tokens;
        job->record_bytes = (SUMMARY_PICKS + job->n_picks * sizeof(float) + 7) / 8 * 8;
    }
    job->out = calloc((size_t)job->n_tokens + 1, job->record_bytes);
    job->partials = calloc((size_t)job->n_tokens * job->n_ranks + 1, sizeof(*job->partials));
    return job->out == NULL || job->partials == NULL ? 71 : 0;
}

static int write_out(const struct job *job, const char *path)
{
    FILE *f = fopen(path, "wb");
    int status = 0;
    if (f == NULL || fwrite(job->out, job->record_bytes, job->n_tokens, f) != job->n_tokens)
        status = 74;
    if (f != NULL && fclose(f) != 0)
        status = 74;
    if (status != 0)
        fprintf(stderr, "engine_tool: cannot write %s\n", path);
    return status;
}

int main(int argc, char **argv)
{
    struct job job = {
        .options = {.n_threads = 1}, .split_text = "pipeline", .devices = "", .n_ranks = 1};
    const char *picks_path = NULL;
    if (parse_options(&job, argc, argv, &picks_path) != 0) {
        fprintf(stderr, "usage: engine_tool MODEL IN OUT [options]; see the head of the source\n");
        return 64;
    }
    struct error err = {0};
    struct model *model = NULL;
    int32_t *in = read_ids(argv[2], &job.n_in);
    if (in == NULL)
        return 66;
    if (model_open(argv[1], &model, &err) != 0 ||
        split_parse(job.split_text, job.n_ranks, model->config.n_layer, NULL, &job.split, &err) !=
            0) {
        fprintf(stderr, "engine_tool: %s\n", err.message);
        return 66;
    }
    job.model = model;
    job.in = in;
    int status = prepare(&job, picks_path);
    if (status == 0)
        status = run_ranks(&job);
    if (status == 0 && job.format == FORMAT_SUMMARY)
        finish_summaries(&job);
    if (status == 0)
        status = write_out(&job, argv[3]);
    free(job.partials);
    free(job.out);
    free((void *)job.picks);
    free(in);
    model_close(model);
    return status;
}
