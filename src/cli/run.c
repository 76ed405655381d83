/* `shoal run`: one prompt, one answer, without a node. The text alone goes to standard
 * output, figures to standard error. */
#include "base/clock.h"
#include "base/rng.h"
#include "cli/cli.h"
#include "cli/prompt.h"
#include "cli/rank_options.h"
#include "runner/local_set.h"
#include "runner/scheduler.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "usage: shoal run MODEL PROMPT [options]\n"
    "\n"
    "Answers one prompt. MODEL is a GGUF file or the name of one in the folder of models; PROMPT\n"
    "- reads standard input.\n"
    "\n"
    "  --system TEXT      instructions before the prompt\n"
    "  --raw              the prompt as it is, without the model's chat template\n"
    "  --max-tokens N     generate at most so many tokens (512)\n"
    "  --ctx N            tokens of prompt and answer together (the model's, at most 4096)\n"
    "  --temperature T    0 (default): always the likeliest token\n"
    "  --top-k K --top-p P --min-p P\n"
    "                     what to choose from with a temperature\n"
    "  --seed S           same seed, same answer\n" RANK_OPTIONS_HELP
    "  --tokens           print token ids, one a line, instead of text\n"
    "  --json             figures as JSON\n";

struct run {
    /* what was asked for */
    const char *model_name, *prompt;
    struct prompt_options prompt_options;
    struct local_set_options set;
    struct sampling sampling;
    uint32_t n_max;
    bool has_seed, prints_tokens, prints_json;
    /* what there is */
    char model_path[4096];
    struct model *model;
    struct tokenizer *tokenizer;
    struct token_list tokens;
    struct buf input, text; /* standard input; text to be written */
    struct detokenizer detokenizer;
    struct local_set *ranks;
    uint64_t load_ns;
};

static volatile sig_atomic_t interrupts; /* Ctrl-C so far */

static void on_interrupt(int number)
{
    (void)number;
    interrupts++;
}

/* ---- options ---- */

enum option_id {
    OPTION_SYSTEM = 256,
    OPTION_RAW,
    OPTION_MAX_TOKENS,
    OPTION_CTX,
    OPTION_TEMPERATURE,
    OPTION_TOP_K,
    OPTION_TOP_P,
    OPTION_MIN_P,
    OPTION_SEED,
    OPTION_TOKENS,
    OPTION_JSON,
    OPTION_HELP,
};

static const struct option options[] = {
    {"system", required_argument, NULL, OPTION_SYSTEM},
    {"raw", no_argument, NULL, OPTION_RAW},
    {"max-tokens", required_argument, NULL, OPTION_MAX_TOKENS},
    {"ctx", required_argument, NULL, OPTION_CTX},
    {"temperature", required_argument, NULL, OPTION_TEMPERATURE},
    {"top-k", required_argument, NULL, OPTION_TOP_K},
    {"top-p", required_argument, NULL, OPTION_TOP_P},
    {"min-p", required_argument, NULL, OPTION_MIN_P},
    {"seed", required_argument, NULL, OPTION_SEED},
    RANK_OPTIONS,
    {"tokens", no_argument, NULL, OPTION_TOKENS},
    {"json", no_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, OPTION_HELP},
    {NULL, 0, NULL, 0},
};

static int take_option(struct run *r, int id, const char *value, struct error *err)
{
    switch (id) {
    case OPTION_SYSTEM:
        r->prompt_options.system = value;
        return 0;
    case OPTION_RAW:
        r->prompt_options.is_raw = true;
        return 0;
    case OPTION_MAX_TOKENS:
        return cli_parse_u32("--max-tokens", value, 1, UINT32_MAX, &r->n_max, err);
    case OPTION_CTX:
        return cli_parse_u32("--ctx", value, 2, 1u << 24, &r->set.engine.n_ctx, err);
    case OPTION_TEMPERATURE:
        return cli_parse_float("--temperature", value, 0.0f, 100.0f, &r->sampling.temperature, err);
    case OPTION_TOP_K:
        return cli_parse_u32("--top-k", value, 0, UINT32_MAX, &r->sampling.top_k, err);
    case OPTION_TOP_P:
        return cli_parse_float("--top-p", value, 0.0f, 1.0f, &r->sampling.top_p, err);
    case OPTION_MIN_P:
        return cli_parse_float("--min-p", value, 0.0f, 1.0f, &r->sampling.min_p, err);
    case OPTION_SEED:
        r->has_seed = true;
        return cli_parse_u64("--seed", value, &r->sampling.seed, err);
    case OPTION_TOKENS:
        r->prints_tokens = true;
        return 0;
    case OPTION_JSON:
        r->prints_json = true;
        return 0;
    default:
        if (id >= RANK_OPTION_FIRST)
            return rank_option_take(&r->set, (enum rank_option)id, value, err);
        return error_set(err, E_INVALID, "try `shoal run --help`");
    }
}

/* Returns 1 when the help was wanted and printed. */
static int parse_options(struct run *r, int argc, char **argv, struct error *err)
{
    int id;
    while ((id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (id == OPTION_HELP) {
            fputs(help, stdout);
            return 1;
        }
        int rc = take_option(r, id, optarg, err);
        if (rc != 0)
            return rc;
    }
    if (argc - optind != 2)
        return error_set(err, E_INVALID,
                         "run needs a model and a prompt (in quotes), not %d words: "
                         "try `shoal run --help`",
                         argc - optind);
    r->model_name = argv[optind];
    r->prompt = argv[optind + 1];
    if (!r->has_seed && rng_system(&r->sampling.seed, sizeof(r->sampling.seed)) != 0)
        return error_set(err, E_IO, "the system gives no random numbers");
    return rank_options_finish(&r->set, err);
}

/* ---- before ---- */

static int read_input(struct buf *b, struct error *err)
{
    char bytes[65536];
    size_t n;
    while ((n = fread(bytes, 1, sizeof(bytes), stdin)) > 0)
        if (buf_append(b, bytes, n) != 0)
            return error_set(err, b->error, "standard input: more than %u bytes",
                             LIMIT_PROMPT_BYTES);
    return ferror(stdin) ? error_set(err, E_IO, "cannot read standard input") : 0;
}

static int prepare(struct run *r, struct error *err)
{
    int rc = cli_find_model(r->model_name, r->model_path, sizeof(r->model_path), err);
    if (rc == 0)
        rc = model_open(r->model_path, &r->model, err);
    if (rc == 0)
        rc = tokenizer_new(r->model->file, &r->tokenizer, err);
    if (rc == 0 && strcmp(r->prompt, "-") == 0) {
        rc = read_input(&r->input, err);
        r->prompt = buf_str(&r->input);
    }
    size_t len = r->input.len > 0 ? r->input.len : strlen(r->prompt);
    if (rc == 0)
        rc = prompt_tokens(r->model, r->tokenizer, r->prompt, len, &r->prompt_options, &r->tokens,
                           err);
    if (rc != 0)
        return rc;
    uint64_t start_ns = clock_now_ns();
    r->set.model_path = r->model_path;
    rank_options_fit(&r->set, r->model);
    rc = local_set_start(&r->set, &r->ranks, err);
    r->load_ns = clock_now_ns() - start_ns;
    return rc;
}

static int submit(struct run *r, struct error *err)
{
    struct message_submit m = {.request = 1,
                               .n_max = r->n_max,
                               .sampling = r->sampling,
                               .n_tokens = (uint32_t)r->tokens.n,
                               .tokens = r->tokens.ids};
    m.sampling.n_prompt = m.n_tokens;
    m.n_end = (uint32_t)tokenizer_end_ids(r->tokenizer, m.end, sizeof(m.end) / sizeof(m.end[0]));
    if (m.n_end > sizeof(m.end) / sizeof(m.end[0]))
        m.n_end = sizeof(m.end) / sizeof(m.end[0]);
    return local_set_submit(r->ranks, &m, err);
}

/* ---- the answer ---- */

static int write_text(struct run *r, struct error *err)
{
    if (r->text.error != 0)
        return error_set(err, r->text.error, "no memory for the answer");
    bool ok = fwrite(r->text.data, 1, r->text.len, stdout) == r->text.len && fflush(stdout) == 0;
    buf_reset(&r->text);
    return ok ? 0 : error_set(err, E_IO, "cannot write to standard output");
}

static int show_tokens(struct run *r, const struct message *m, struct error *err)
{
    struct message_tokens tokens;
    int rc = message_decode_tokens(m, &tokens, NULL, err);
    for (uint32_t i = 0; rc == 0 && i < tokens.n_tokens; i++) {
        if (r->prints_tokens)
            buf_printf(&r->text, "%d\n", tokens.tokens[i]);
        else
            detokenizer_push(&r->detokenizer, tokens.tokens[i], &r->text);
    }
    return rc != 0 || r->text.len == 0 ? rc : write_text(r, err);
}

static int finish_answer(struct run *r, const struct message *m, struct message_done *ret_done,
                         struct error *err)
{
    int rc = message_decode_done(m, ret_done, err);
    if (rc != 0)
        return rc;
    if (!r->prints_tokens) {
        detokenizer_finish(&r->detokenizer, &r->text);
        buf_append_char(&r->text, '\n');
        rc = write_text(r, err);
    }
    if (rc == 0 && ret_done->reason == FINISH_ERROR)
        rc = error_set(err, ret_done->code, "%s", ret_done->message);
    return rc;
}

/* Shows tokens until DONE. Ctrl-C cancels the request; a second one ends at once. */
static int show_answer(struct run *r, struct message_done *ret_done, struct error *err)
{
    bool is_cancelled = false;
    detokenizer_init(&r->detokenizer, r->tokenizer, false, r->prompt_options.is_raw);
    for (;;) {
        struct message m;
        int rc = local_set_next(r->ranks, 100, &m, err);
        if (interrupts > 1)
            return error_set(err, E_CANCELLED, "interrupted");
        if (interrupts > 0 && !is_cancelled) {
            is_cancelled = true;
            struct error ignored; /* if it cannot be sent, the next wait says why */
            local_set_cancel(r->ranks, 1, &ignored);
        }
        if (rc == E_TIMEOUT)
            continue;
        if (rc == 0 && m.type == MESSAGE_DONE)
            return finish_answer(r, &m, ret_done, err);
        if (rc == 0 && m.type == MESSAGE_TOKENS)
            rc = show_tokens(r, &m, err);
        if (rc != 0)
            return rc;
    }
}

/* ---- figures ---- */

static double per_second(uint32_t n, uint64_t ns)
{
    return ns > 0 ? (double)n * 1e9 / (double)ns : 0.0;
}

static double to_mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

static const struct split_stage *stage_of(const struct split *s, uint32_t rank)
{
    uint32_t i = 0;
    while (i + 1 < s->n_stages && rank >= s->stage[i].rank_first + s->stage[i].n_ranks)
        i++;
    return &s->stage[i];
}

static void print_rank(const struct run *r, uint32_t rank)
{
    const struct message_ready *ready = local_set_ready(r->ranks, rank);
    if (ready == NULL)
        return;
    const struct engine_info *info = &ready->info;
    const struct split_stage *stage = stage_of(local_set_split(r->ranks), rank);
    if (r->prints_json)
        fprintf(stderr,
                "%s{\"rank\":%u,\"device\":\"%s\",\"layer_first\":%u,\"n_layers\":%u,"
                "\"weight_bytes\":%llu,\"weight_bytes_device\":%llu,"
                "\"kv_bytes\":%llu,\"compute_bytes\":%llu}",
                rank > 0 ? "," : "", rank, info->device, stage->layers.begin,
                stage->layers.end - stage->layers.begin, (unsigned long long)info->weight_bytes,
                (unsigned long long)info->weight_bytes_device, (unsigned long long)info->kv_bytes,
                (unsigned long long)info->compute_bytes);
    else
        fprintf(stderr,
                "rank %u on %s: layers %u-%u%s, weights %.1f MiB, KV cache %.1f MiB, graph %.1f "
                "MiB\n",
                rank, info->device, stage->layers.begin, stage->layers.end - 1,
                stage->n_ranks > 1 ? " (a slice)" : "", to_mib(info->weight_bytes),
                to_mib(info->kv_bytes), to_mib(info->compute_bytes));
}

static void print_figures(const struct run *r, const struct message_done *done)
{
    static const char *const reasons[] = {"stop", "length", "cancelled", "error"};
    /* An end token takes a step as well, though it is not delivered. */
    uint32_t n_steps = done->n_generated + (done->reason == FINISH_STOP);
    uint32_t n_decoded = n_steps > 0 ? n_steps - 1 : 0;
    uint32_t n_prefilled = done->n_prompt - done->n_cached;
    double first_s = (double)(done->queue_ns + done->prefill_ns) / 1e9;
    double prefill_tok_s = per_second(n_prefilled, done->prefill_ns);
    double decode_tok_s = per_second(n_decoded, done->decode_ns);
    uint32_t n_ranks = local_set_n_ranks(r->ranks);
    char split[32];
    split_describe(local_set_split(r->ranks), split);
    if (r->prints_json) {
        fprintf(stderr,
                "{\"finish\":\"%s\",\"n_prompt\":%u,\"n_generated\":%u,\"prefill_tok_s\":%.2f,"
                "\"decode_tok_s\":%.2f,\"first_token_s\":%.4f,\"load_s\":%.3f,\"split\":\"%s\","
                "\"ranks\":[",
                reasons[done->reason], done->n_prompt, done->n_generated, prefill_tok_s,
                decode_tok_s, first_s, (double)r->load_ns / 1e9, split);
        for (uint32_t i = 0; i < n_ranks; i++)
            print_rank(r, i);
        fprintf(stderr, "]}\n");
        return;
    }
    fprintf(stderr,
            "\nprefill %u tokens, %.1f tok/s; decode %u tokens, %.1f tok/s; first token "
            "after %.2f s; ended by %s\n",
            n_prefilled, prefill_tok_s, n_decoded, decode_tok_s, first_s, reasons[done->reason]);
    fprintf(stderr, "loaded in %.2f s on %u rank%s%s%s\n", (double)r->load_ns / 1e9, n_ranks,
            n_ranks > 1 ? "s: " : "", n_ranks > 1 ? split : "",
            r->set.comm == LOCAL_SET_LOCAL ? "" : " (processes)");
    for (uint32_t i = 0; i < n_ranks; i++)
        print_rank(r, i);
}

/* ---- all of it ---- */

static int run(struct run *r, struct message_done *ret_done, struct error *err)
{
    int rc = prepare(r, err);
    if (rc != 0)
        return rc;
    struct sigaction action = {.sa_handler = on_interrupt};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); /* a reader that goes away is an error of write */
    rc = submit(r, err);
    return rc != 0 ? rc : show_answer(r, ret_done, err);
}

int cli_run(int argc, char **argv)
{
    struct run r = {.n_max = 512, .set = {.n_draft = SCHEDULER_DRAFT_DEFAULT}};
    struct message_done done = {0};
    struct error err = {0};
    sampling_init(&r.sampling);
    token_list_init(&r.tokens);
    buf_init(&r.input, LIMIT_PROMPT_BYTES);
    buf_init(&r.text, 1u << 20);
    int rc = parse_options(&r, argc, argv, &err);
    bool follows = rc == 0 && rank_options_follows(&r.set);
    if (follows)
        rc = rank_options_follow(&r.set, r.model_name, &err);
    else if (rc == 0)
        rc = run(&r, &done, &err);
    if (rc == 0 && !follows)
        print_figures(&r, &done);
    local_set_stop(r.ranks);
    buf_done(&r.text);
    buf_done(&r.input);
    token_list_done(&r.tokens);
    tokenizer_free(r.tokenizer);
    model_close(r.model);
    if (rc < 0)
        return cli_fail(&err);
    return done.reason == FINISH_CANCELLED ? error_exit_code(E_CANCELLED) : 0;
}
