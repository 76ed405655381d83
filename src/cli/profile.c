/*
 * `shoal profile`: where the time of a running model goes. Two readings of the cluster's state,
 * some seconds apart, give what each rank did between them; from that follows which rank, stage or
 * link the others wait for, and what would help.
 */
#include "base/buf.h"
#include "base/clock.h"
#include "base/json.h"
#include "cli/cli.h"
#include "cli/http_client.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { RANKS_MAX = 64, SECONDS_MAX = 3600, REPORT_S = 3 };

static const struct option options[] = {
    {"api", required_argument, NULL, 'a'},
    {"seconds", required_argument, NULL, 's'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static void print_help(const char *api)
{
    printf("usage: shoal profile [options]\n\n"
           "Watches the models of a cluster while they answer, and says what each rank spends its\n"
           "time on, which one the others wait for, and what would help.\n\n"
           "  --seconds N   how long to watch (10)\n"
           "  --api URL     a node of the cluster (%s)\n"
           "  --json        the figures as JSON\n",
           api);
}

/* ---- one instance between two readings ---- */

struct rank_profile {
    char node[64];
    int stage;
    double steps, tokens;
    double wall_s, step_s; /* in steps, of which: */
    double wait_s, prepare_s, sample_s, compute_s;
    double bytes_sent;
};

struct profile {
    char model[128], split[64];
    double wall_s;
    double generated, prompt, cached, drafted, accepted, preempted;
    int running, queued, slots, blocks, blocks_free;
    int n_ranks, n_stages;
    struct rank_profile rank[RANKS_MAX];
};

static double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

static double difference(const json_t *before, const json_t *after, const char *key)
{
    double d = number(after, key) - number(before, key);
    return d > 0 ? d : 0;
}

static void copy_text(char *ret, size_t size, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    snprintf(ret, size, "%s", text != NULL ? text : "-");
}

static void read_rank(struct rank_profile *p, const json_t *before, const json_t *after,
                      double wall_s)
{
    const json_t *x = json_object_get(before, "work"), *y = json_object_get(after, "work");
    copy_text(p->node, sizeof(p->node), after, "node");
    p->stage = (int)number(after, "stage");
    p->steps = difference(x, y, "steps");
    p->tokens = difference(x, y, "tokens");
    p->wall_s = wall_s;
    p->step_s = difference(x, y, "step_ns") / 1e9;
    p->wait_s = difference(x, y, "wait_ns") / 1e9;
    p->prepare_s = difference(x, y, "prepare_ns") / 1e9;
    p->sample_s = difference(x, y, "sample_ns") / 1e9;
    p->bytes_sent = difference(x, y, "bytes_sent");
    p->compute_s = p->step_s - p->wait_s - p->prepare_s - p->sample_s;
    if (p->compute_s < 0)
        p->compute_s = 0;
}

/* The same instance in the first reading: one that was placed anew in between has other sums. */
static const json_t *find_before(const json_t *state, const json_t *after)
{
    const json_t *instance;
    size_t i;
    json_array_foreach(json_object_get(state, "instances"), i, instance)
    {
        if (json_equal(json_object_get(instance, "id"), json_object_get(after, "id")) &&
            json_equal(json_object_get(instance, "epoch"), json_object_get(after, "epoch")))
            return instance;
    }
    return NULL;
}

/* Returns false when nothing can be said. */
static bool read_profile(struct profile *p, const json_t *before, const json_t *after,
                         double elapsed_s)
{
    const json_t *x = json_object_get(before, "work"), *y = json_object_get(after, "work");
    const json_t *ranks = json_object_get(after, "ranks");
    memset(p, 0, sizeof(*p));
    copy_text(p->model, sizeof(p->model), after, "model");
    copy_text(p->split, sizeof(p->split), after, "split");
    /* By the leader's clock; one that had done nothing before has not told its time. */
    p->wall_s = difference(x, y, "read_ms") / 1e3;
    if (number(x, "read_ms") <= 0)
        p->wall_s = elapsed_s;
    p->generated = difference(x, y, "generated_tokens");
    p->prompt = difference(x, y, "prompt_tokens");
    p->cached = difference(x, y, "cached_tokens");
    p->drafted = difference(x, y, "drafted");
    p->accepted = difference(x, y, "accepted");
    p->preempted = difference(x, y, "preempted");
    p->running = (int)number(y, "running");
    p->queued = (int)number(y, "queued");
    p->slots = (int)number(after, "n_slots");
    p->blocks = (int)number(y, "blocks");
    p->blocks_free = (int)number(y, "blocks_free");
    p->n_ranks = (int)json_array_size(ranks);
    if (p->n_ranks > RANKS_MAX)
        p->n_ranks = RANKS_MAX;
    for (int i = 0; i < p->n_ranks; i++) {
        read_rank(&p->rank[i], json_array_get(json_object_get(before, "ranks"), (size_t)i),
                  json_array_get(ranks, (size_t)i), p->wall_s);
        if (p->rank[i].stage >= p->n_stages)
            p->n_stages = p->rank[i].stage + 1;
    }
    return p->wall_s > 0 && p->n_ranks > 0 && p->rank[0].steps > 0;
}

/* ---- what follows from it ---- */

static int busiest_rank(const struct profile *p)
{
    int busiest = 0;
    for (int i = 1; i < p->n_ranks; i++)
        if (p->rank[i].compute_s > p->rank[busiest].compute_s)
            busiest = i;
    return busiest;
}

static double mean_compute_s(const struct profile *p)
{
    double sum = 0;
    for (int i = 0; i < p->n_ranks; i++)
        sum += p->rank[i].compute_s;
    return sum / p->n_ranks;
}

/* Whether the ranks of some stage share its layers, and so wait for each other in every layer. */
static bool has_tensor_split(const struct profile *p)
{
    return p->n_ranks > p->n_stages;
}

/* Appends the sentences: first what limits, then what would help. */
static void explain(const struct profile *p, struct buf *b)
{
    const struct rank_profile *busiest = &p->rank[busiest_rank(p)], *head = &p->rank[0];
    double wall_s = p->wall_s, mean_s = mean_compute_s(p);
    double head_busy = head->step_s / wall_s, compute = busiest->compute_s / wall_s;
    if (p->queued > 0 && p->running >= p->slots)
        buf_printf(b,
                   "All %d slots are taken and %d requests wait: load the model with more slots "
                   "(--slots), or a second time.\n",
                   p->slots, p->queued);
    if (p->preempted > 0)
        buf_printf(b,
                   "The KV cache was full: %.0f sequences had to wait and be read again: load "
                   "the model with --kv q8 or more --kv-tokens.\n",
                   p->preempted);
    if (head_busy < 0.5 && p->n_stages == 1 && p->queued == 0) {
        buf_printf(b, "The ranks wait for requests %.0f %% of the time: nothing limits.\n",
                   100 * (1 - head_busy));
        return;
    }
    if (compute >= 0.8) {
        buf_printf(b, "Computing on %s (rank %d) is the limit: %.0f %% of the time.", busiest->node,
                   busiest_rank(p), 100 * compute);
        if (p->n_ranks > 1 && busiest->compute_s > 1.2 * mean_s)
            buf_printf(b,
                       " It computes %.1f times as long as the ranks do on average: a placement "
                       "by speed (--placement speed) would give it less.",
                       busiest->compute_s / mean_s);
        else if (p->running <= p->n_stages)
            buf_append_str(b, " More requests at a time would use each reading of the weights "
                              "better; more nodes would make each faster.");
        buf_append_char(b, '\n');
        return;
    }
    if (p->n_ranks == 1) {
        buf_printf(b,
                   "The rank computes %.0f %% of the time and prepares or waits for the rest: "
                   "its steps are short.\n",
                   100 * compute);
    } else if (has_tensor_split(p) && busiest->wait_s > 0.25 * busiest->step_s) {
        double us = 1e6 * busiest->wait_s / busiest->steps;
        buf_printf(b,
                   "Waiting for other ranks is the limit: the busiest one, rank %d on %s, waits "
                   "%.0f %% of its steps, %.0f us in each, and sends %.0f bytes.",
                   busiest_rank(p), busiest->node, 100 * busiest->wait_s / busiest->step_s, us,
                   busiest->bytes_sent / busiest->steps);
        if (busiest->compute_s > 1.2 * mean_s)
            buf_printf(b,
                       " %s is slower than the others: a placement by speed would give it "
                       "less.\n",
                       busiest->node);
        else
            buf_append_str(b, " A faster link, --wire f16 or q8, or a pipeline (--split pipeline) "
                              "would help.\n");
    } else if (p->n_stages > 1) {
        buf_printf(b,
                   "The busiest stage, on %s, computes %.0f %% of the time: the pipeline is not "
                   "full.",
                   busiest->node, 100 * compute);
        if (p->running < p->n_stages)
            buf_printf(b,
                       " With %d or more requests at a time all stages would have work; one "
                       "alone is faster with --split tensor.",
                       p->n_stages);
        buf_append_char(b, '\n');
    } else {
        buf_printf(b, "The busiest rank computes %.0f %% of the time.\n", 100 * compute);
    }
}

/* ---- output ---- */

static void print_profile(const struct profile *p)
{
    struct buf text;
    printf(
        "%s (%s), %.1f s: %.1f tok/s generated, %.1f tok/s of prompts read, %.0f tokens found in "
        "the cache\n",
        p->model, p->split, p->wall_s, p->generated / p->wall_s, p->prompt / p->wall_s, p->cached);
    printf("  %d running, %d queued, %d slots; KV cache %.0f %% in use or kept", p->running,
           p->queued, p->slots,
           p->blocks > 0 ? 100.0 * (p->blocks - p->blocks_free) / p->blocks : 0.0);
    if (p->drafted > 0)
        printf("; %.0f of %.0f guessed tokens were right", p->accepted, p->drafted);
    printf("\n  %4s %-16s %5s %8s %9s %8s %8s %8s %8s %10s\n", "RANK", "NODE", "STAGE", "STEPS/s",
           "COMPUTE %", "WAIT %", "PREP %", "SAMPLE %", "IDLE %", "SENT KB/s");
    for (int i = 0; i < p->n_ranks; i++) {
        const struct rank_profile *r = &p->rank[i];
        double idle_s = r->wall_s > r->step_s ? r->wall_s - r->step_s : 0;
        printf("  %4d %-16s %5d %8.1f %9.1f %8.1f %8.1f %8.1f %8.1f %10.1f\n", i, r->node, r->stage,
               r->steps / r->wall_s, 100 * r->compute_s / r->wall_s, 100 * r->wait_s / r->wall_s,
               100 * r->prepare_s / r->wall_s, 100 * r->sample_s / r->wall_s,
               100 * idle_s / r->wall_s, r->bytes_sent / r->wall_s / 1024);
    }
    buf_init(&text, 65536);
    explain(p, &text);
    printf("  %s", buf_str(&text));
    buf_done(&text);
}

static json_t *to_json(const struct profile *p)
{
    struct buf text;
    json_t *ranks = json_array();
    for (int i = 0; i < p->n_ranks; i++) {
        const struct rank_profile *r = &p->rank[i];
        json_array_append_new(
            ranks, json_pack("{s:i,s:s,s:i,s:f,s:f,s:f,s:f,s:f,s:f,s:f}", "rank", i, "node",
                             r->node, "stage", r->stage, "steps", r->steps, "step_s", r->step_s,
                             "compute_s", r->compute_s, "wait_s", r->wait_s, "prepare_s",
                             r->prepare_s, "sample_s", r->sample_s, "bytes_sent", r->bytes_sent));
    }
    buf_init(&text, 65536);
    explain(p, &text);
    json_t *value =
        json_pack("{s:s,s:s,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:i,s:i,s:s,s:o}", "model", p->model,
                  "split", p->split, "seconds", p->wall_s, "generated_tokens", p->generated,
                  "prompt_tokens", p->prompt, "cached_tokens", p->cached, "drafted", p->drafted,
                  "accepted", p->accepted, "preempted", p->preempted, "running", p->running,
                  "queued", p->queued, "advice", buf_str(&text), "ranks", ranks);
    buf_done(&text);
    return value;
}

/* ---- all of it ---- */

static void show(const json_t *before, const json_t *after, double elapsed_s, bool as_json)
{
    const json_t *instance;
    size_t i;
    json_t *all = json_array();
    struct profile *p = malloc(sizeof(*p));
    int n_shown = 0;
    json_array_foreach(json_object_get(after, "instances"), i, instance)
    {
        const json_t *earlier = find_before(before, instance);
        if (p == NULL || earlier == NULL || !read_profile(p, earlier, instance, elapsed_s))
            continue;
        n_shown++;
        if (as_json)
            json_array_append_new(all, to_json(p));
        else
            print_profile(p);
    }
    if (as_json)
        json_dumpf(all, stdout, JSON_INDENT(1));
    else if (n_shown == 0)
        printf("no model has run a step in this time: ask it something meanwhile");
    printf(as_json || n_shown == 0 ? "\n" : "");
    json_decref(all);
    free(p);
}

int cli_profile(int argc, char **argv)
{
    const char *api = CLI_DEFAULT_API;
    bool as_json = false;
    uint32_t seconds = 10;
    struct error err = {0};
    json_t *before = NULL, *after = NULL;
    uint64_t start_ns = 0;
    int id, rc = 0;
    while (rc == 0 && (id = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (id == 'h') {
            print_help(api);
            return 0;
        }
        if (id == 'a')
            api = optarg;
        else if (id == 's')
            rc = cli_parse_u32("--seconds", optarg, 1, SECONDS_MAX, &seconds, &err);
        else if (id == 'j')
            as_json = true;
        else
            rc = error_set(&err, E_INVALID, "try `shoal profile --help`");
    }
    if (rc == 0)
        rc = http_client_get_json(api, "/v1/cluster/state", &before, &err);
    if (rc == 0) {
        start_ns = clock_now_ns();
        /* Leaders tell every two seconds what their ranks do. */
        sleep(seconds > REPORT_S ? seconds : REPORT_S);
        rc = http_client_get_json(api, "/v1/cluster/state", &after, &err);
    }
    if (rc == 0)
        show(before, after, (double)(clock_now_ns() - start_ns) / 1e9, as_json);
    json_decref(before);
    json_decref(after);
    return rc == 0 ? 0 : cli_fail(&err);
}
