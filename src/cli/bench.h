/* `shoal bench`: the workload and its figures. Private to this folder. Thread: the main one. */
#ifndef SHOAL_CLI_BENCH_H
#define SHOAL_CLI_BENCH_H

#include "base/error.h"
#include "runner/local_set.h"

#include <stdbool.h>
#include <stdint.h>

enum { BENCH_REPETITIONS_MAX = 1000, BENCH_STREAMS_MAX = LIMIT_REQUESTS_QUEUED };

enum bench_prompt {
    BENCH_PROMPT_RANDOM, /* other tokens for every request: nothing is cached, nothing repeats */
    BENCH_PROMPT_REPEAT, /* a phrase again and again: for speculation */
    BENCH_PROMPT_SAME,   /* the same for all requests: for the reuse of prefixes */
};

struct repetition {
    double prefill_tok_s;          /* of the first request, by the head's clock */
    double decode_tok_s;           /* likewise */
    double first_ms;               /* from submission to the first token, of the first request */
    double total_tok_s;            /* of all streams together, while all of them decode */
    double gap_p50_ms, gap_p99_ms; /* between tokens of a stream; those of one message count as
                                      one gap */
    double comm_us_per_token;      /* of the rank that spends the most, while streams decode */
    double bytes_sent_per_token;   /* of all ranks together; with MPI of rank 0, the same above */
    double drafts_accepted;        /* tokens a step gave each sequence, above one */
};

/* What a rank did while streams decoded, in nanoseconds. */
struct rank_time {
    uint64_t step_ns, comm_ns, graph_ns, fill_ns, sample_ns;
    uint64_t wall_ns;
};

struct bench {
    const char *model_name;
    struct local_set_options set;
    uint32_t n_prefill, n_decode, n_repetitions, n_streams;
    enum bench_prompt prompt;
    float temperature;
    bool prints_json;
    const char *history_path; /* NULL: no history */
    char model_path[4096];
    uint32_t n_vocab;
    struct local_set *ranks;
    struct repetition first;            /* the first prompt after loading */
    struct repetition *repetition;      /* [n_repetitions] */
    struct rank_time time[LIMIT_RANKS]; /* summed over the repetitions */
    uint64_t memory_peak_bytes[LIMIT_RANKS];
};

/* Runs the workload once; index makes its prompts differ from those before. Errors: what the ranks
 * report. */
int bench_measure(struct bench *b, uint32_t index, struct repetition *ret, struct error *err);
/* Reads the peak memory of all ranks. */
int bench_read_memory(struct bench *b, struct error *err);

/* ---- bench_report.c ---- */

/* Median of one figure over the repetitions; offset is its place in struct repetition. */
double bench_median(const struct bench *b, size_t offset);
#define BENCH_MEDIAN(b, figure) bench_median(b, offsetof(struct repetition, figure))
void bench_print(const struct bench *b);
/* Compares the medians with the last run of the same workload in the history file, prints what has
 * become slower by a tenth or more, and adds this run. Errors: E_IO. */
int bench_remember(const struct bench *b, uint32_t *ret_n_slower, struct error *err);

#endif
