/* `shoal bench`: how fast a model runs on so many local ranks. Prefill and decode speed come from
 * the head's own clock, so that starting and loading do not count. */
#include "cli/bench.h"

#include "cli/cli.h"
#include "cli/rank_options.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char help[] =
    "usage: shoal bench MODEL [options]\n"
    "\n"
    "Measures prefill and decode speed: the first prompt after loading, then the medians of some\n"
    "repetitions.\n"
    "\n"
    "  -p N               tokens of a prompt (512)\n"
    "  -n N               tokens decoded after the first (64)\n"
    "  -r N               repetitions (5)\n"
    "  -s N               streams: requests at the same time (1)\n"
    "  --prompt KIND      random (default): nothing is cached or repeats; repeat: a phrase again\n"
    "                     and again; same: the same prompt for all requests\n"
    "  --temperature T    0 (default): always the likeliest token\n"
    "  --slots N          sequences in a step at most (as many as streams, at most 64)\n"
    "  --history FILE     compares with the last run of the same kind in FILE, says what became\n"
    "                     slower by a tenth or more (exit code 1), and adds this run to "
    "it\n" RANK_OPTIONS_HELP "  --json             the result as JSON\n"
    "\n"
    "Guessing ahead (--draft) is off here unless asked for.\n";

enum option_id {
    OPTION_PROMPT = 256,
    OPTION_TEMPERATURE,
    OPTION_SLOTS,
    OPTION_HISTORY,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option options[] = {
    {"prompt", required_argument, NULL, OPTION_PROMPT},
    {"temperature", required_argument, NULL, OPTION_TEMPERATURE},
    {"slots", required_argument, NULL, OPTION_SLOTS},
    {"history", required_argument, NULL, OPTION_HISTORY},
    RANK_OPTIONS,
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int parse_prompt(const char *text, enum bench_prompt *ret, struct error *err)
{
    if (strcmp(text, "random") == 0)
        *ret = BENCH_PROMPT_RANDOM;
    else if (strcmp(text, "repeat") == 0)
        *ret = BENCH_PROMPT_REPEAT;
    else if (strcmp(text, "same") == 0)
        *ret = BENCH_PROMPT_SAME;
    else
        return error_set(err, E_INVALID, "--prompt %s: random, repeat or same", text);
    return 0;
}

static int take_option(struct bench *b, int id, const char *value, struct error *err)
{
    switch (id) {
    case 'p':
        return cli_parse_u32("-p", value, 1, 1u << 20, &b->n_prefill, err);
    case 'n':
        return cli_parse_u32("-n", value, 1, 1u << 20, &b->n_decode, err);
    case 'r':
        return cli_parse_u32("-r", value, 1, BENCH_REPETITIONS_MAX, &b->n_repetitions, err);
    case 's':
        return cli_parse_u32("-s", value, 1, BENCH_STREAMS_MAX, &b->n_streams, err);
    case OPTION_PROMPT:
        return parse_prompt(value, &b->prompt, err);
    case OPTION_TEMPERATURE:
        return cli_parse_float("--temperature", value, 0.0f, 100.0f, &b->temperature, err);
    case OPTION_SLOTS:
        return cli_parse_u32("--slots", value, 1, LIMIT_SLOTS, &b->set.engine.n_slots, err);
    case OPTION_HISTORY:
        b->history_path = value;
        return 0;
    case OPTION_JSON:
        b->prints_json = true;
        return 0;
    default:
        if (id >= RANK_OPTION_FIRST)
            return rank_option_take(&b->set, (enum rank_option)id, value, err);
        return error_set(err, E_INVALID, "try `shoal bench --help`");
    }
}

/* Returns 1 when the help was wanted and printed. */
static int parse_options(struct bench *b, int argc, char **argv, struct error *err)
{
    int id;
    while ((id = getopt_long(argc, argv, "p:n:r:s:", options, NULL)) != -1) {
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
    struct engine_options *e = &b->set.engine;
    if (!b->set.has_comm) {
        b->set.comm = LOCAL_SET_TCP;
        b->set.has_comm = true;
    }
    if (e->n_slots == 0)
        e->n_slots = b->n_streams < LIMIT_SLOTS ? b->n_streams : LIMIT_SLOTS;
    e->n_ctx = b->n_prefill + b->n_decode + 1;
    return rank_options_finish(&b->set, err);
}

static int run(struct bench *b, uint32_t *ret_n_slower, struct error *err)
{
    struct model *model = NULL;
    int rc = cli_find_model(b->model_name, b->model_path, sizeof(b->model_path), err);
    if (rc == 0)
        rc = model_open(b->model_path, &model, err);
    if (rc == 0) {
        b->n_vocab = model->config.n_vocab;
        rank_options_fit(&b->set, model);
    }
    model_close(model);
    b->set.model_path = b->model_path;
    if (rc == 0)
        rc = local_set_start(&b->set, &b->ranks, err);
    b->repetition = calloc(b->n_repetitions, sizeof(*b->repetition));
    if (rc == 0 && b->repetition == NULL)
        rc = error_set(err, E_NOMEM, "no memory for %u repetitions", b->n_repetitions);
    if (rc == 0)
        rc = bench_measure(b, 0, &b->first, err);
    memset(b->time, 0, sizeof(b->time));
    for (uint32_t i = 0; i < b->n_repetitions && rc == 0; i++)
        rc = bench_measure(b, i + 1, &b->repetition[i], err);
    if (rc == 0)
        rc = bench_read_memory(b, err);
    if (rc != 0)
        return rc;
    bench_print(b);
    return b->history_path != NULL ? bench_remember(b, ret_n_slower, err) : 0;
}

int cli_bench(int argc, char **argv)
{
    struct bench b = {.n_prefill = 512, .n_decode = 64, .n_repetitions = 5, .n_streams = 1};
    struct error err = {0};
    uint32_t n_slower = 0;
    int rc = parse_options(&b, argc, argv, &err);
    if (rc == 0 && rank_options_follows(&b.set))
        rc = rank_options_follow(&b.set, b.model_name, &err);
    else if (rc == 0)
        rc = run(&b, &n_slower, &err);
    local_set_stop(b.ranks);
    free(b.repetition);
    return rc < 0 ? cli_fail(&err) : n_slower > 0 ? 1 : 0;
}
