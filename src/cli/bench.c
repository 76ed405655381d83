/* `shoal bench`: how fast a model runs on so many local ranks. Speeds come from the head's own
 * clock, so that starting and loading do not count. */
#include "base/rng.h"
#include "cli/cli.h"
#include "runner/local_set.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: shoal bench MODEL [options]\n"
    "\n"
    "Measures prefill and decode speed: one warm-up, then the medians of some repetitions.\n"
    "\n"
    "  -p N               tokens of the prompt (512)\n"
    "  -n N               tokens decoded after the first (64)\n"
    "  -r N               repetitions (5)\n"
    "  --ranks N          share the model among N runners on this computer (1)\n"
    "  --split HOW        pipeline (default), tensor, or SxT: S stages of T ranks\n"
    "  --comm KIND        tcp (default): runners are processes; local: threads\n"
    "  --threads N        compute threads of each rank (processors / ranks)\n"
    "  --pin              keep each rank on one processor\n"
    "  --no-repack        keep weights as in the file\n"
    "  --json             the result as JSON\n";

enum { REPETITIONS_MAX = 1000 };

struct repetition {
    double prefill_tok_s, decode_tok_s;
    double comm_us_per_token;    /* decode: of the rank that spends the most */
    double bytes_sent_per_token; /* decode: of all ranks together */
};

struct bench {
    const char *model_name;
    struct local_set_options set;
    uint32_t n_prefill, n_decode, n_repetitions;
    bool prints_json;
    char model_path[4096];
    uint32_t n_vocab;
    struct local_set *ranks;
    struct repetition *repetition; /* [n_repetitions] */
};

/* ---- options ---- */

enum option_id {
    OPTION_RANKS = 256,
    OPTION_SPLIT,
    OPTION_COMM,
    OPTION_THREADS,
    OPTION_PIN,
    OPTION_NO_REPACK,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option options[] = {
    {"ranks", required_argument, NULL, OPTION_RANKS},
    {"split", required_argument, NULL, OPTION_SPLIT},
    {"comm", required_argument, NULL, OPTION_COMM},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"pin", no_argument, NULL, OPTION_PIN},
    {"no-repack", no_argument, NULL, OPTION_NO_REPACK},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int take_option(struct bench *b, int id, const char *value, struct error *err)
{
    switch (id) {
    case 'p':
        return cli_parse_u32("-p", value, 1, LIMIT_BATCH_TOKENS, &b->n_prefill, err);
    case 'n':
        return cli_parse_u32("-n", value, 1, 1u << 20, &b->n_decode, err);
    case 'r':
        return cli_parse_u32("-r", value, 1, REPETITIONS_MAX, &b->n_repetitions, err);
    case OPTION_RANKS:
        return cli_parse_u32("--ranks", value, 1, LIMIT_RANKS, &b->set.n_ranks, err);
    case OPTION_SPLIT:
        b->set.split = value;
        return 0;
    case OPTION_COMM:
        return cli_parse_comm(value, &b->set.processes, err);
    case OPTION_THREADS:
        return cli_parse_u32("--threads", value, 1, 1024, &b->set.engine.n_threads, err);
    case OPTION_PIN:
        b->set.pin = true;
        return 0;
    case OPTION_NO_REPACK:
        b->set.engine.no_repack = true;
        return 0;
    case OPTION_JSON:
        b->prints_json = true;
        return 0;
    default:
        return error_set(err, E_INVALID, "try `shoal bench --help`");
    }
}

/* Returns 1 when the help was wanted and printed. */
static int parse_options(struct bench *b, int argc, char **argv, struct error *err)
{
    int id;
    while ((id = getopt_long(argc, argv, "p:n:r:", options, NULL)) != -1) {
        if (id == OPTION_HELP) {
            fputs(help, stdout);
            return 1;
        }
        int rc = take_option(b, id, optarg, err);
        if (rc != 0)
            return rc;
    }
    if (argc - optind != 1)
        return error_set(err, E_INVALID, "bench needs one model, not %d: try `shoal bench --help`",
                         argc - optind);
    b->model_name = argv[optind];
    if (b->set.engine.n_threads == 0)
        b->set.engine.n_threads = cli_default_threads(b->set.n_ranks);
    b->set.engine.n_slots = 1;
    b->set.engine.n_ctx = b->n_prefill + b->n_decode + 1;
    b->set.engine.n_batch = b->n_prefill > 512 ? b->n_prefill : 512;
    return 0;
}

/* ---- measuring ---- */

/* The traffic of all ranks so far. */
struct traffic {
    uint64_t comm_ns[LIMIT_RANKS];
    uint64_t bytes_sent;
    uint64_t memory_peak_bytes[LIMIT_RANKS];
};

static int read_traffic(struct bench *b, struct traffic *ret, struct error *err)
{
    memset(ret, 0, sizeof(*ret));
    for (uint32_t i = 0; i < local_set_n_ranks(b->ranks); i++) {
        struct message_pong pong;
        int rc = local_set_ping(b->ranks, i, &pong, err);
        if (rc != 0)
            return rc;
        ret->comm_ns[i] = pong.timing.comm_ns;
        ret->bytes_sent += pong.comm.bytes_sent;
        ret->memory_peak_bytes[i] = pong.memory_peak_bytes;
    }
    return 0;
}

static int submit(struct bench *b, uint32_t index, struct error *err)
{
    struct message_submit m = {
        .request = index + 1, .n_max = b->n_decode + 1, .n_tokens = b->n_prefill};
    int32_t *tokens = malloc((size_t)b->n_prefill * sizeof(*tokens));
    if (tokens == NULL)
        return error_set(err, E_NOMEM, "no memory for the prompt");
    /* The repetition is the seed: no prompt begins like the one before, so none is cached. */
    for (uint32_t i = 0; i < b->n_prefill; i++)
        tokens[i] = (int32_t)(rng_u64(index, i, 0) % b->n_vocab);
    sampling_init(&m.sampling);
    m.sampling.n_prompt = b->n_prefill;
    m.tokens = tokens;
    int rc = local_set_submit(b->ranks, &m, err);
    free(tokens);
    return rc;
}

static int wait_done(struct bench *b, struct traffic *ret_first, struct message_done *ret_done,
                     struct error *err)
{
    enum { ANSWER_TIMEOUT_MS = 10 * 60 * 1000 };
    bool is_first = true;
    for (;;) {
        struct message m;
        int rc = local_set_next(b->ranks, ANSWER_TIMEOUT_MS, &m, err);
        if (rc == 0 && m.type == MESSAGE_DONE)
            return message_decode_done(&m, ret_done, err);
        if (rc == 0 && m.type == MESSAGE_TOKENS && is_first) {
            is_first = false;
            rc = read_traffic(b, ret_first, err);
        }
        if (rc != 0)
            return rc;
    }
}

static int measure(struct bench *b, uint32_t index, struct repetition *ret, struct error *err)
{
    struct traffic first = {0}, last = {0};
    struct message_done done;
    int rc = submit(b, index, err);
    if (rc == 0)
        rc = wait_done(b, &first, &done, err);
    if (rc == 0 && done.reason == FINISH_ERROR)
        return error_set(err, done.code, "%s", done.message);
    if (rc == 0)
        rc = read_traffic(b, &last, err);
    if (rc != 0)
        return rc;
    if (done.n_generated != b->n_decode + 1 || done.prefill_ns == 0 || done.decode_ns == 0)
        return error_set(err, E_INTERNAL, "%u tokens were generated, not %u", done.n_generated,
                         b->n_decode + 1);
    uint64_t comm_ns_max = 0;
    for (uint32_t i = 0; i < local_set_n_ranks(b->ranks); i++)
        if (last.comm_ns[i] - first.comm_ns[i] > comm_ns_max)
            comm_ns_max = last.comm_ns[i] - first.comm_ns[i];
    ret->prefill_tok_s = (done.n_prompt - done.n_cached) * 1e9 / (double)done.prefill_ns;
    ret->decode_tok_s = b->n_decode * 1e9 / (double)done.decode_ns;
    ret->comm_us_per_token = (double)comm_ns_max / 1e3 / b->n_decode;
    ret->bytes_sent_per_token = (double)(last.bytes_sent - first.bytes_sent) / b->n_decode;
    return 0;
}

/* ---- the result ---- */

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Median of one figure; offset is its place in struct repetition. */
static double median(const struct bench *b, size_t offset)
{
    double values[REPETITIONS_MAX];
    uint32_t n = b->n_repetitions;
    for (uint32_t i = 0; i < n; i++)
        memcpy(&values[i], (const char *)&b->repetition[i] + offset, sizeof(double));
    qsort(values, n, sizeof(double), compare_doubles);
    return n % 2 == 1 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}
#define MEDIAN(b, figure) median(b, offsetof(struct repetition, figure))

static void print_values(const struct bench *b, const char *name, size_t offset)
{
    printf("\"%s\":[", name);
    for (uint32_t i = 0; i < b->n_repetitions; i++) {
        double value;
        memcpy(&value, (const char *)&b->repetition[i] + offset, sizeof(value));
        printf("%s%.3f", i > 0 ? "," : "", value);
    }
    printf("],");
}

static void print_json(const struct bench *b, const struct traffic *t, const char *split)
{
    uint32_t n_ranks = local_set_n_ranks(b->ranks);
    printf("{\"ranks\":%u,\"split\":\"%s\",\"comm\":\"%s\",\"threads\":%u,\"pinned\":%s,"
           "\"n_prefill\":%u,\"n_decode\":%u,\"prefill_tok_s\":%.3f,\"decode_tok_s\":%.3f,",
           n_ranks, split, b->set.processes ? "tcp" : "local", b->set.engine.n_threads,
           b->set.pin ? "true" : "false", b->n_prefill, b->n_decode, MEDIAN(b, prefill_tok_s),
           MEDIAN(b, decode_tok_s));
    print_values(b, "prefill_tok_s_all", offsetof(struct repetition, prefill_tok_s));
    print_values(b, "decode_tok_s_all", offsetof(struct repetition, decode_tok_s));
    printf("\"comm_us_per_token\":%.2f,\"bytes_sent_per_token\":%.0f,\"per_rank\":[",
           MEDIAN(b, comm_us_per_token), MEDIAN(b, bytes_sent_per_token));
    for (uint32_t i = 0; i < n_ranks; i++) {
        const struct engine_info *info = &local_set_ready(b->ranks, i)->info;
        printf("%s{\"weight_bytes\":%llu,\"weight_bytes_mapped\":%llu,"
               "\"weight_bytes_repacked\":%llu,\"kv_bytes\":%llu,\"compute_bytes\":%llu,"
               "\"memory_peak_bytes\":%llu}",
               i > 0 ? "," : "", (unsigned long long)info->weight_bytes,
               (unsigned long long)info->weight_bytes_mapped,
               (unsigned long long)info->weight_bytes_repacked, (unsigned long long)info->kv_bytes,
               (unsigned long long)info->compute_bytes,
               (unsigned long long)t->memory_peak_bytes[i]);
    }
    printf("]}\n");
}

static void print_text(const struct bench *b, const struct traffic *t, const char *split)
{
    const double mib = 1048576.0;
    uint32_t n_ranks = local_set_n_ranks(b->ranks);
    printf("%u rank%s (%s, %s), %u thread%s each%s, median of %u\n", n_ranks,
           n_ranks > 1 ? "s" : "", split, b->set.processes ? "tcp" : "local",
           b->set.engine.n_threads, b->set.engine.n_threads > 1 ? "s" : "",
           b->set.pin ? ", pinned" : "", b->n_repetitions);
    printf("prefill %7.2f tok/s  (%u tokens)\n", MEDIAN(b, prefill_tok_s), b->n_prefill);
    printf("decode  %7.2f tok/s  (%u tokens)\n", MEDIAN(b, decode_tok_s), b->n_decode);
    printf("comm    %7.1f us and %.0f bytes sent a decoded token\n", MEDIAN(b, comm_us_per_token),
           MEDIAN(b, bytes_sent_per_token));
    for (uint32_t i = 0; i < n_ranks; i++) {
        const struct engine_info *info = &local_set_ready(b->ranks, i)->info;
        printf(
            "rank %u: weights %.1f MiB, KV cache %.1f MiB, graph %.1f MiB, process peak %.1f MiB\n",
            i, (double)info->weight_bytes / mib, (double)info->kv_bytes / mib,
            (double)info->compute_bytes / mib, (double)t->memory_peak_bytes[i] / mib);
    }
}

/* ---- all of it ---- */

static int run(struct bench *b, struct error *err)
{
    struct model *model = NULL;
    int rc = cli_find_model(b->model_name, b->model_path, sizeof(b->model_path), err);
    if (rc == 0)
        rc = model_open(b->model_path, &model, err);
    if (rc == 0)
        b->n_vocab = model->config.n_vocab;
    model_close(model);
    b->set.model_path = b->model_path;
    if (rc == 0)
        rc = local_set_start(&b->set, &b->ranks, err);
    b->repetition = calloc(b->n_repetitions, sizeof(*b->repetition));
    if (rc == 0 && b->repetition == NULL)
        rc = error_set(err, E_NOMEM, "no memory for %u repetitions", b->n_repetitions);
    struct repetition warm_up;
    if (rc == 0)
        rc = measure(b, 0, &warm_up, err);
    for (uint32_t i = 0; i < b->n_repetitions && rc == 0; i++)
        rc = measure(b, i + 1, &b->repetition[i], err);
    struct traffic traffic;
    if (rc == 0)
        rc = read_traffic(b, &traffic, err);
    if (rc != 0)
        return rc;
    char split[32];
    split_describe(local_set_split(b->ranks), split);
    if (b->prints_json)
        print_json(b, &traffic, split);
    else
        print_text(b, &traffic, split);
    return 0;
}

int cli_bench(int argc, char **argv)
{
    struct bench b = {.set = {.n_ranks = 1, .processes = true},
                      .n_prefill = 512,
                      .n_decode = 64,
                      .n_repetitions = 5};
    struct error err = {0};
    int rc = parse_options(&b, argc, argv, &err);
    if (rc == 0)
        rc = run(&b, &err);
    local_set_stop(b.ranks);
    free(b.repetition);
    return rc < 0 ? cli_fail(&err) : 0;
}
