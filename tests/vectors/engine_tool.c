/*
 * Runs token ids through the engine, teacher-forced, for tests that compare numbers:
 *
 *   engine_tool MODEL IN OUT [--split TEXT] [--ranks N] [--batch N] [--threads N] [--no-repack]
 * [--rows] [--one-by-one N]
 *
 * IN: token ids, i32. OUT: logits of every token, f32 [n_tokens][n_vocab]; with --rows instead, for
 * every token, struct step_row (i32 argmax, f32 its logit, f32 the second best). Ranks are threads
 * over the local back end. --one-by-one N: the last N tokens go through one at a time, as in
 * decoding.
 */
#include "engine/engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct job {
    const struct model *model;
    struct split split;
    struct engine_options options;
    const int32_t *tokens;
    uint32_t n_tokens, n_single;
    bool rows_only;
    uint8_t *out; /* shared; each rank writes its own part */
};

struct rank {
    struct job *job;
    uint32_t index;
    struct comm *comm;
    pthread_t thread;
    int status;
    struct error err;
};

static void keep_rows(const struct job *job, struct engine *e, uint32_t first,
                      const struct step_result *result)
{
    uint32_t n_vocab = job->model->config.n_vocab;
    for (uint32_t i = 0; i < result->n_rows; i++) {
        if (job->rows_only) {
            memcpy(job->out + (first + i) * sizeof(struct step_row), &result->rows[i],
                   sizeof(struct step_row));
            continue;
        }
        struct range vocab;
        const float *logits = engine_logits(e, i, &vocab);
        if (logits != NULL)
            memcpy(job->out + ((size_t)(first + i) * n_vocab + vocab.begin) * sizeof(float), logits,
                   (vocab.end - vocab.begin) * sizeof(float));
    }
}

static int run(struct rank *r)
{
    struct job *job = r->job;
    struct engine *e = NULL;
    int rc = engine_open(job->model, &job->split, r->index, r->comm, &job->options, &e, &r->err);
    if (rc != 0)
        return rc;
    struct engine_info info;
    engine_get_info(e, &info);
    uint64_t number = 1;
    for (uint32_t done = 0; done < job->n_tokens && rc == 0;) {
        uint32_t n_left = job->n_tokens - done, n = 1;
        if (n_left > job->n_single)
            n = n_left - job->n_single < info.n_batch ? n_left - job->n_single : info.n_batch;
        struct step step = {.number = number++,
                            .n_parts = 1,
                            .part[0] = {.slot = 0, .n_tokens = n, .output = STEP_OUTPUT_ALL},
                            .n_tokens = n,
                            .tokens = job->tokens + done};
        struct step_result result;
        rc = engine_step(e, &step, &result, &r->err);
        if (rc == 0)
            keep_rows(job, e, done, &result);
        done += n;
    }
    struct engine_timing timing;
    engine_get_timing(e, &timing);
    fprintf(stderr,
            "rank %u: weights %.1f MB (mapped %.1f, repacked %.1f), %llu steps, %.1f ms, comm %.1f "
            "ms, sample %.1f ms\n",
            r->index, (double)info.weight_bytes / 1e6, (double)info.weight_bytes_mapped / 1e6,
            (double)info.weight_bytes_repacked / 1e6, (unsigned long long)timing.n_steps,
            (double)timing.step_ns / 1e6, (double)timing.comm_ns / 1e6,
            (double)timing.sample_ns / 1e6);
    engine_close(e);
    return rc;
}

static void *run_thread(void *arg)
{
    struct rank *r = arg;
    r->status = run(r);
    if (r->status != 0 && r->comm != NULL)
        comm_close(r->comm), r->comm = NULL;
    return NULL;
}

static void *read_file(const char *path, size_t *ret_size)
{
    FILE *f = fopen(path, "rb");
    if (f == NULL)
        return NULL;
    fseek(f, 0, SEEK_END);
    *ret_size = (size_t)ftell(f);
    rewind(f);
    void *data = malloc(*ret_size + 1);
    if (data != NULL && fread(data, 1, *ret_size, f) != *ret_size)
        *ret_size = 0;
    fclose(f);
    return data;
}

int main(int argc, char **argv)
{
    struct job job = {.options = {.n_threads = 1}};
    const char *split = "pipeline";
    uint32_t n_ranks = 1;
    if (argc < 4) {
        fprintf(stderr, "usage: engine_tool MODEL IN OUT [options]\n");
        return 64;
    }
    for (int i = 4; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : "0";
        if (strcmp(argv[i], "--rows") == 0)
            job.rows_only = true;
        else if (strcmp(argv[i], "--no-repack") == 0)
            job.options.no_repack = true;
        else if (strcmp(argv[i], "--split") == 0)
            split = value, i++;
        else if (strcmp(argv[i], "--ranks") == 0)
            n_ranks = (uint32_t)atoi(value), i++;
        else if (strcmp(argv[i], "--batch") == 0)
            job.options.n_batch = (uint32_t)atoi(value), i++;
        else if (strcmp(argv[i], "--threads") == 0)
            job.options.n_threads = (uint32_t)atoi(value), i++;
        else if (strcmp(argv[i], "--one-by-one") == 0)
            job.n_single = (uint32_t)atoi(value), i++;
    }
    struct error err = {0};
    struct model *model = NULL;
    size_t in_bytes = 0;
    int32_t *tokens = read_file(argv[2], &in_bytes);
    if (tokens == NULL || model_open(argv[1], &model, &err) != 0 ||
        split_parse(split, n_ranks, model->config.n_layer, NULL, &job.split, &err) != 0) {
        fprintf(stderr, "engine_tool: %s\n",
                tokens == NULL ? "cannot read the tokens" : err.message);
        return 66;
    }
    job.model = model;
    job.tokens = tokens;
    job.n_tokens = (uint32_t)(in_bytes / sizeof(int32_t));
    job.options.n_ctx = job.n_tokens;
    size_t row_bytes =
        job.rows_only ? sizeof(struct step_row) : model->config.n_vocab * sizeof(float);
    job.out = calloc(job.n_tokens, row_bytes);

    struct comm *comms[LIMIT_RANKS] = {0};
    struct comm_options comm_options = {.spin_us = 0, .timeout_ms = 120000};
    if (n_ranks > 1 && comm_local_new(n_ranks, &comm_options, comms, &err) != 0) {
        fprintf(stderr, "engine_tool: %s\n", err.message);
        return 70;
    }
    struct rank rank[LIMIT_RANKS];
    int status = 0;
    for (uint32_t i = 0; i < n_ranks; i++) {
        rank[i] = (struct rank){.job = &job, .index = i, .comm = comms[i]};
        pthread_create(&rank[i].thread, NULL, run_thread, &rank[i]);
    }
    for (uint32_t i = 0; i < n_ranks; i++) {
        pthread_join(rank[i].thread, NULL);
        if (rank[i].status != 0) {
            fprintf(stderr, "engine_tool: rank %u: %s\n", i, rank[i].err.message);
            status = 70;
        }
    }
    for (uint32_t i = 0; i < n_ranks; i++)
        comm_close(rank[i].comm);
    FILE *out = fopen(argv[3], "wb");
    if (out == NULL || fwrite(job.out, row_bytes, job.n_tokens, out) != job.n_tokens)
        status = 74;
    if (out != NULL)
        fclose(out);
    free(job.out);
    free(tokens);
    model_close(model);
    return status;
}
