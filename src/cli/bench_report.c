#include "base/buf.h"
#include "base/json.h"
#include "cli/bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const prompt_names[] = {"random", "repeat", "same"};

/* The figures of a repetition, by the names that JSON and the history use. */
static const struct figure {
    const char *name;
    size_t offset;
    int direction; /* 1: more is better; -1: less is; 0: neither */
} figures[] = {
    {"prefill_tok_s", offsetof(struct repetition, prefill_tok_s), 1},
    {"decode_tok_s", offsetof(struct repetition, decode_tok_s), 1},
    {"total_tok_s", offsetof(struct repetition, total_tok_s), 1},
    {"first_ms", offsetof(struct repetition, first_ms), -1},
    {"gap_p50_ms", offsetof(struct repetition, gap_p50_ms), -1},
    {"gap_p99_ms", offsetof(struct repetition, gap_p99_ms), 0}, /* too uneven to compare runs by */
    {"comm_us_per_token", offsetof(struct repetition, comm_us_per_token), 0},
    {"bytes_sent_per_token", offsetof(struct repetition, bytes_sent_per_token), 0},
    {"drafts_accepted", offsetof(struct repetition, drafts_accepted), 0},
};
enum { N_FIGURES = sizeof(figures) / sizeof(figures[0]) };

static double figure_of(const struct repetition *r, size_t offset)
{
    double value;
    memcpy(&value, (const char *)r + offset, sizeof(value));
    return value;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(const struct bench *b, size_t offset)
{
    double values[BENCH_REPETITIONS_MAX];
    uint32_t n = b->n_repetitions;
    for (uint32_t i = 0; i < n; i++)
        values[i] = figure_of(&b->repetition[i], offset);
    qsort(values, n, sizeof(double), compare_doubles);
    return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* ---- JSON ---- */

/* What was run: two runs with the same workload can be compared. */
static void print_workload(struct buf *out, const struct bench *b)
{
    char split[32];
    split_describe(local_set_split(b->ranks), split);
    const char *slash = strrchr(b->model_path, '/');
    buf_append_str(out, "\"model\":");
    const char *name = slash != NULL ? slash + 1 : b->model_path;
    json_append_string(out, name, strlen(name));
    buf_printf(out,
               ",\"ranks\":%u,\"split\":\"%s\",\"comm\":\"%s\",\"wire\":\"%s\",\"kv\":\"%s\","
               "\"threads\":%u,\"pinned\":%s,\"streams\":%u,\"n_prefill\":%u,\"n_decode\":%u,"
               "\"prompt\":\"%s\",\"temperature\":%g,\"draft\":%u",
               local_set_n_ranks(b->ranks), split, local_set_comm_name(b->set.comm),
               comm_wire_name(b->set.wire), kv_type_name(b->set.engine.kv_type),
               b->set.engine.n_threads, b->set.pin ? "true" : "false", b->n_streams, b->n_prefill,
               b->n_decode, prompt_names[b->prompt], (double)b->temperature, b->set.n_draft);
}

static void print_rank_json(struct buf *out, const struct bench *b, uint32_t rank)
{
    const struct message_ready *ready = local_set_ready(b->ranks, rank);
    const struct rank_time *t = &b->time[rank];
    if (ready == NULL)
        return;
    const struct engine_info *info = &ready->info;
    if (rank > 0)
        buf_append_char(out, ',');
    buf_printf(
        out,
        "{\"weight_bytes\":%llu,\"weight_bytes_mapped\":%llu,"
        "\"weight_bytes_repacked\":%llu,\"kv_bytes\":%llu,\"compute_bytes\":%llu,"
        "\"memory_peak_bytes\":%llu,\"wall_ns\":%llu,\"step_ns\":%llu,\"comm_ns\":%llu,"
        "\"graph_ns\":%llu,\"fill_ns\":%llu,\"sample_ns\":%llu}",
        (unsigned long long)info->weight_bytes, (unsigned long long)info->weight_bytes_mapped,
        (unsigned long long)info->weight_bytes_repacked, (unsigned long long)info->kv_bytes,
        (unsigned long long)info->compute_bytes, (unsigned long long)b->memory_peak_bytes[rank],
        (unsigned long long)t->wall_ns, (unsigned long long)t->step_ns,
        (unsigned long long)t->comm_ns, (unsigned long long)t->graph_ns,
        (unsigned long long)t->fill_ns, (unsigned long long)t->sample_ns);
}

static void append_json(struct buf *out, const struct bench *b)
{
    buf_append_char(out, '{');
    print_workload(out, b);
    for (size_t f = 0; f < N_FIGURES; f++)
        buf_printf(out, ",\"%s\":%.4f", figures[f].name, bench_median(b, figures[f].offset));
    for (size_t f = 0; f < N_FIGURES; f++) {
        buf_printf(out, ",\"%s_all\":[", figures[f].name);
        for (uint32_t i = 0; i < b->n_repetitions; i++)
            buf_printf(out, "%s%.4f", i > 0 ? "," : "",
                       figure_of(&b->repetition[i], figures[f].offset));
        buf_append_char(out, ']');
    }
    buf_printf(out,
               ",\"first_prompt\":{\"prefill_tok_s\":%.4f,\"decode_tok_s\":%.4f,"
               "\"first_ms\":%.4f},\"per_rank\":[",
               b->first.prefill_tok_s, b->first.decode_tok_s, b->first.first_ms);
    for (uint32_t i = 0; i < local_set_n_ranks(b->ranks); i++)
        print_rank_json(out, b, i);
    buf_append_str(out, "]}\n");
}

/* ---- text ---- */

static double percent(uint64_t part, uint64_t whole)
{
    return whole > 0 ? 100.0 * (double)part / (double)whole : 0.0;
}

static void print_rank(const struct bench *b, uint32_t rank)
{
    const double mib = 1048576.0;
    const struct message_ready *ready = local_set_ready(b->ranks, rank);
    const struct rank_time *t = &b->time[rank];
    if (ready == NULL)
        return;
    const struct engine_info *info = &ready->info;
    uint64_t other_ns = t->comm_ns + t->graph_ns + t->fill_ns + t->sample_ns;
    uint64_t compute_ns = t->step_ns > other_ns ? t->step_ns - other_ns : 0;
    printf("rank %u: weights %.1f MiB, KV cache %.1f MiB, graph %.1f MiB, process peak %.1f MiB\n",
           rank, (double)info->weight_bytes / mib, (double)info->kv_bytes / mib,
           (double)info->compute_bytes / mib, (double)b->memory_peak_bytes[rank] / mib);
    printf(
        "        decoding: compute %.1f %%, comm and waiting %.1f %%, graphs and inputs %.1f %%, "
        "sampling %.1f %%, between steps %.1f %%\n",
        percent(compute_ns, t->wall_ns), percent(t->comm_ns, t->wall_ns),
        percent(t->graph_ns + t->fill_ns, t->wall_ns), percent(t->sample_ns, t->wall_ns),
        percent(t->wall_ns > t->step_ns ? t->wall_ns - t->step_ns : 0, t->wall_ns));
}

static void print_text(const struct bench *b)
{
    uint32_t n_ranks = local_set_n_ranks(b->ranks);
    char split[32];
    split_describe(local_set_split(b->ranks), split);
    printf("%u rank%s (%s, %s), %u thread%s each%s, median of %u\n", n_ranks,
           n_ranks > 1 ? "s" : "", split, local_set_comm_name(b->set.comm), b->set.engine.n_threads,
           b->set.engine.n_threads > 1 ? "s" : "", b->set.pin ? ", pinned" : "", b->n_repetitions);
    printf("prefill %8.2f tok/s  (%u tokens; first prompt after loading: %.2f of that)\n",
           BENCH_MEDIAN(b, prefill_tok_s), b->n_prefill,
           b->first.prefill_tok_s / BENCH_MEDIAN(b, prefill_tok_s));
    printf("decode  %8.2f tok/s  (%u tokens)\n", BENCH_MEDIAN(b, decode_tok_s), b->n_decode);
    if (b->n_streams > 1)
        printf("total   %8.2f tok/s  (%u streams)\n", BENCH_MEDIAN(b, total_tok_s), b->n_streams);
    printf("gaps    %8.2f ms median, %.2f ms p99; first token after %.1f ms\n",
           BENCH_MEDIAN(b, gap_p50_ms), BENCH_MEDIAN(b, gap_p99_ms), BENCH_MEDIAN(b, first_ms));
    if (b->set.n_draft > 0)
        printf("drafts  %8.2f accepted a step\n", BENCH_MEDIAN(b, drafts_accepted));
    printf("comm    %8.1f us and %.0f bytes sent a decoded token\n",
           BENCH_MEDIAN(b, comm_us_per_token), BENCH_MEDIAN(b, bytes_sent_per_token));
    for (uint32_t i = 0; i < n_ranks; i++)
        print_rank(b, i);
}

void bench_print(const struct bench *b)
{
    if (!b->prints_json) {
        print_text(b);
        return;
    }
    struct buf out;
    buf_init(&out, 16u << 20);
    append_json(&out, b);
    fwrite(out.data, 1, out.len, stdout);
    buf_done(&out);
}

/* ---- history: a line of JSON a run ---- */

/* The last line that begins with this workload. */
static int find_last(const char *path, const struct buf *workload, struct buf *ret_line,
                     struct error *err)
{
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return errno == ENOENT
                   ? 0
                   : error_set(err, E_IO, "cannot read '%s': %s", path, strerror(errno));
    char *line = NULL;
    size_t size = 0;
    ssize_t n;
    while ((n = getline(&line, &size, file)) > 0)
        if ((size_t)n > workload->len && memcmp(line, workload->data, workload->len) == 0) {
            buf_reset(ret_line);
            buf_append(ret_line, line, (size_t)n);
        }
    free(line);
    bool failed = ferror(file) != 0;
    fclose(file);
    return failed ? error_set(err, E_IO, "cannot read '%s'", path) : 0;
}

static uint32_t compare(const struct bench *b, const char *line)
{
    uint32_t n_slower = 0;
    for (size_t f = 0; f < N_FIGURES; f++) {
        char key[64];
        snprintf(key, sizeof(key), ",\"%s\":", figures[f].name);
        const char *found = strstr(line, key);
        double before = found != NULL ? strtod(found + strlen(key), NULL) : 0.0;
        double now = bench_median(b, figures[f].offset);
        if (figures[f].direction == 0 || before <= 0.0 || now <= 0.0)
            continue;
        double speed = figures[f].direction > 0 ? now / before : before / now;
        if (speed <= 0.9) {
            fprintf(stderr, "slower: %s was %.3f, is %.3f (%.2f of the speed)\n", figures[f].name,
                    before, now, speed);
            n_slower++;
        }
    }
    return n_slower;
}

int bench_remember(const struct bench *b, uint32_t *ret_n_slower, struct error *err)
{
    struct buf workload, line, last;
    buf_init(&workload, 65536);
    buf_init(&line, 16u << 20);
    buf_init(&last, 16u << 20);
    buf_append_char(&workload, '{');
    print_workload(&workload, b);
    append_json(&line, b);
    int rc = find_last(b->history_path, &workload, &last, err);
    if (rc == 0 && last.len > 0)
        *ret_n_slower = compare(b, buf_str(&last));
    FILE *file = rc == 0 ? fopen(b->history_path, "ae") : NULL;
    if (rc == 0 && (file == NULL || fwrite(line.data, 1, line.len, file) != line.len))
        rc = error_set(err, E_IO, "cannot write '%s': %s", b->history_path, strerror(errno));
    if (file != NULL && fclose(file) != 0 && rc == 0)
        rc = error_set(err, E_IO, "cannot write '%s': %s", b->history_path, strerror(errno));
    buf_done(&workload);
    buf_done(&line);
    buf_done(&last);
    return rc;
}
