/*
 * Stories: text files of commands, each followed by the lines ("> ...") that the world is expected
 * to tell while the command runs. docs/internals/simulator.md lists the commands.
 */
#include "sim.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 32, LINE_MAX_BYTES = 512, FILE_BYTES_MAX = 1 << 20, POLL_US = 10000 };

struct story {
    struct world *w;
    struct sim_options options;
    struct sim_report *report;
    struct buf trace;
    const char *path;
    uint32_t line;
    bool is_bad, is_quiet;
    char *word[WORDS_MAX];
    uint32_t n_words;
};

static void complain(struct story *s, const char *what, const char *word)
{
    if (!s->is_bad)
        fprintf(stderr, "%s:%u: %s: '%s'\n", s->path, s->line, what, word);
    s->is_bad = true;
}

/* ---- words ---- */

static const char *option(const struct story *s, const char *name, const char *otherwise)
{
    size_t n = strlen(name);
    for (uint32_t i = 1; i < s->n_words; i++)
        if (strncmp(s->word[i], name, n) == 0 && s->word[i][n] == '=')
            return s->word[i] + n + 1;
    return otherwise;
}

static double number(const struct story *s, const char *name, double otherwise)
{
    const char *text = option(s, name, NULL);
    return text != NULL ? strtod(text, NULL) : otherwise;
}

static const char *word(struct story *s, uint32_t i)
{
    if (i < s->n_words)
        return s->word[i];
    complain(s, "a word is missing after", s->word[0]);
    return "";
}

static struct sim_node *node_named(struct story *s, const char *name)
{
    for (uint32_t i = 0; s->w != NULL && i < s->w->n_nodes; i++)
        if (strcmp(s->w->node[i].name, name) == 0)
            return &s->w->node[i];
    complain(s, "no such node", name);
    return NULL;
}

static uint32_t model_named(struct story *s, const char *name)
{
    for (uint32_t i = 0; i < s->w->n_models; i++)
        if (strcmp(s->w->model[i].id, name) == 0)
            return i;
    complain(s, "no such model", name);
    return 0;
}

/* ---- what can be waited for ---- */

static bool is_served_everywhere(struct story *s, uint32_t model, uint32_t n_ranks)
{
    for (uint32_t i = 0; i < s->w->n_nodes; i++) {
        struct sim_node *n = &s->w->node[i];
        if (!n->is_alive || n->is_paused || n->is_stopping)
            continue;
        if (!check_is_served(n, model))
            return false;
        for (const struct led *l = n->led; l != NULL; l = l->next)
            if (l->model == model && n_ranks != 0 && !l->is_stopping &&
                l->report.n_ranks != n_ranks)
                return false;
    }
    return true;
}

static bool is_gone(struct story *s, const struct sim_node *victim)
{
    for (uint32_t i = 0; i < s->w->n_nodes; i++) {
        const struct sim_node *n = &s->w->node[i];
        if (!n->is_alive || n == victim)
            continue;
        const struct member *m = cluster_find_member(n->cluster, &victim->id);
        if (m != NULL && m->status != MEMBER_GONE)
            return false;
    }
    return true;
}

static bool is_agreed(struct story *s)
{
    const struct sim_node *first = NULL;
    uint32_t n_coordinators = 0;
    for (uint32_t i = 0; i < s->w->n_nodes; i++) {
        const struct sim_node *n = &s->w->node[i];
        if (!n->is_alive)
            continue;
        first = first == NULL ? n : first;
        n_coordinators += cluster_is_coordinator(n->cluster);
        if (!cluster_has_coordinator(n->cluster) ||
            claim_compare(&cluster_get_state(n->cluster)->claim,
                          &cluster_get_state(first->cluster)->claim) != 0)
            return false;
    }
    return n_coordinators == 1;
}

static bool are_ended(struct story *s)
{
    for (const struct sim_request *q = s->w->requests; q != NULL; q = q->next)
        if (!q->is_ended && !q->is_lost)
            return false;
    return true;
}

static bool has_come(struct story *s)
{
    const char *what = word(s, 1);
    if (strcmp(what, "serving") == 0)
        return is_served_everywhere(s, model_named(s, word(s, 2)), (uint32_t)number(s, "ranks", 0));
    if (strcmp(what, "gone") == 0) {
        const struct sim_node *n = node_named(s, word(s, 2));
        return n != NULL && is_gone(s, n);
    }
    if (strcmp(what, "left") == 0) {
        const struct sim_node *n = node_named(s, word(s, 2));
        return n != NULL && !n->is_alive;
    }
    if (strcmp(what, "empty") == 0) {
        const struct sim_node *n = node_named(s, word(s, 2));
        return n != NULL && n->hosted == NULL;
    }
    if (strcmp(what, "ended") == 0)
        return are_ended(s);
    if (strcmp(what, "answered") == 0)
        return s->w->orders == NULL || s->w->orders->n_answers > 0;
    if (strcmp(what, "agreed") == 0)
        return is_agreed(s);
    complain(s, "cannot wait for", what);
    return true;
}

static void until(struct story *s)
{
    uint64_t end_us = s->w->now_us + (uint64_t)(number(s, "within", 1000) * 1000);
    while (!has_come(s) && !s->w->is_failed && !s->is_bad) {
        if (s->w->now_us >= end_us) {
            world_fail(s->w, "story", "line %u: not within %s ms", s->line,
                       option(s, "within", "1000"));
            return;
        }
        world_run(s->w, s->w->now_us + POLL_US);
    }
}

/* ---- commands ---- */

static void make_world(struct story *s)
{
    uint32_t n_nodes = (uint32_t)number(s, "nodes", 3);
    if (s->w != NULL || n_nodes == 0 || n_nodes > SIM_NODES_MAX) {
        complain(s, "one world, of 1 to 256 nodes", s->word[0]);
        return;
    }
    s->options.seed = (uint64_t)number(s, "seed", 1);
    s->options.n_nodes = n_nodes;
    s->w = world_new(&s->options, n_nodes, s->report);
    struct world *w = s->w;
    w->trace = &s->trace;
    w->wants_story = true;
    w->delay_us = (uint32_t)number(s, "delay-us", 300);
    w->jitter_us = (uint32_t)number(s, "jitter-us", 100);
    w->loss = number(s, "loss", 0);
    w->is_lossy = number(s, "packets", 0) > 0;
    w->load_ms = (uint32_t)number(s, "load-ms", 400);
    w->start_ms = 30;
    w->end_ms = 20;
    w->token_us = (uint32_t)number(s, "token-us", 20000);
    w->save_us = 5000;
    w->n_slots = 4;
    for (uint32_t i = 0; i < n_nodes; i++)
        sim_add_node(w, i, number(s, "memory", 8), 1);
}

static void order(struct story *s, enum order_type type)
{
    struct sim_node *at = node_named(s, option(s, "at", ""));
    bool is_of_model = type == ORDER_LOAD || type == ORDER_UNLOAD;
    const struct sim_node *about = is_of_model ? NULL : node_named(s, word(s, 1));
    uint32_t model = is_of_model ? model_named(s, word(s, 1)) : 0;
    if (at == NULL || s->is_bad || !at->is_alive)
        complain(s, "give orders at a node that runs, with at=NODE", s->word[0]);
    else
        client_order(s->w, at, type, model, about != NULL ? &about->id : NULL);
}

static void partition(struct story *s, bool is_cut)
{
    bool side[SIM_NODES_MAX] = {false};
    for (uint32_t i = 1; i < s->n_words; i++) {
        const struct sim_node *n = node_named(s, s->word[i]);
        if (n != NULL)
            side[n->index] = true;
    }
    for (uint32_t i = 0; i < s->w->n_nodes; i++)
        for (uint32_t k = 0; k < s->w->n_nodes; k++)
            if (side[i] != side[k])
                net_cut(s->w, i, k, is_cut);
    world_disturb(s->w, is_cut ? 1 : -1);
}

static void for_node(struct story *s, const char *verb)
{
    struct sim_node *n = node_named(s, word(s, 1));
    struct sim_node *other =
        s->n_words > 2 && strchr(s->word[2], '=') == NULL ? node_named(s, s->word[2]) : n;
    uint64_t us = (uint64_t)(number(s, "ms", 0) * 1000);
    static const struct {
        const char *verb;
        enum fault_kind kind;
    } faults[] = {{"kill", FAULT_KILL},       {"power", FAULT_POWER},     {"pause", FAULT_PAUSE},
                  {"cut", FAULT_CUT},         {"one-way", FAULT_ONE_WAY}, {"close", FAULT_CLOSE},
                  {"delay", FAULT_DELAY},     {"loss", FAULT_LOSS},       {"leave", FAULT_LEAVE},
                  {"crash-rank", FAULT_RANK}, {"slow", FAULT_SLOW},       {"hot", FAULT_HOT}};
    if (n == NULL || other == NULL)
        return;
    for (size_t i = 0; i < sizeof(faults) / sizeof(faults[0]); i++)
        if (strcmp(verb, faults[i].verb) == 0) {
            fault_begin(s->w, faults[i].kind, n->index, other->index, us);
            return;
        }
    complain(s, "unknown command", verb);
}

static void start(struct story *s)
{
    for (uint32_t i = 1; i < s->n_words; i++) {
        if (strcmp(s->word[i], "all") == 0) {
            for (uint32_t k = 0; k < s->w->n_nodes; k++)
                if (!s->w->node[k].is_alive)
                    node_start(&s->w->node[k], true);
        } else if (strcmp(s->word[i], "empty") != 0) {
            struct sim_node *n = node_named(s, s->word[i]);
            if (n != NULL && !n->is_alive)
                node_start(n, strcmp(s->word[s->n_words - 1], "empty") != 0);
        }
    }
    world_disturb(s->w, 0);
}

static void request(struct story *s)
{
    struct sim_node *n = node_named(s, option(s, "at", ""));
    uint32_t model = model_named(s, word(s, 1));
    if (n == NULL || !n->is_alive)
        complain(s, "ask at a node that runs, with at=NODE", s->word[0]);
    else if (client_submit(s->w, n, model, (uint32_t)number(s, "tokens", 40)) == NULL)
        world_trace(s->w, n, true, "request refused");
}

static void cancel(struct story *s)
{
    for (struct sim_request *q = s->w->requests; q != NULL; q = q->next)
        if (q->number == (uint32_t)strtoul(word(s, 1), NULL, 10))
            client_cancel(q);
}

static void command(struct story *s)
{
    const char *verb = s->word[0];
    if (strcmp(verb, "world") == 0) {
        make_world(s);
    } else if (s->w == NULL) {
        complain(s, "the first command must be 'world', not", verb);
    } else if (strcmp(verb, "model") == 0) {
        if (s->w->n_models == SIM_MODELS_MAX)
            complain(s, "too many models", verb);
        else
            sim_add_model(s->w, (uint32_t)strtoul(word(s, 1), NULL, 10));
    } else if (strcmp(verb, "memory") == 0) {
        struct sim_node *n = node_named(s, word(s, 1));
        if (n != NULL)
            n->memory_bytes = (uint64_t)(strtod(word(s, 2), NULL) * 1e9);
    } else if (strcmp(verb, "start") == 0) {
        start(s);
    } else if (strcmp(verb, "run") == 0) {
        world_run(s->w, s->w->now_us + strtoull(word(s, 1), NULL, 10) * 1000);
    } else if (strcmp(verb, "until") == 0) {
        until(s);
    } else if (strcmp(verb, "load") == 0) {
        order(s, ORDER_LOAD);
    } else if (strcmp(verb, "unload") == 0) {
        order(s, ORDER_UNLOAD);
    } else if (strcmp(verb, "drain") == 0) {
        order(s, ORDER_DRAIN);
    } else if (strcmp(verb, "undrain") == 0) {
        order(s, ORDER_UNDRAIN);
    } else if (strcmp(verb, "revoke") == 0) {
        order(s, ORDER_REVOKE);
    } else if (strcmp(verb, "request") == 0) {
        request(s);
    } else if (strcmp(verb, "cancel") == 0) {
        cancel(s);
    } else if (strcmp(verb, "partition") == 0) {
        partition(s, true);
    } else if (strcmp(verb, "heal") == 0) {
        partition(s, false);
    } else if (strcmp(verb, "quiet") == 0) {
        s->is_quiet = true;
    } else if (strcmp(verb, "loud") == 0) {
        s->is_quiet = false;
    } else if (strcmp(verb, "check") == 0) {
        check_coordinator_end(s->w);
        check_placement_end(s->w);
        check_requests_end(s->w);
        check_state_end(s->w);
    } else {
        for_node(s, verb);
    }
}

/* ---- the file ---- */

static void split_words(struct story *s, char *line)
{
    char *at = NULL;
    s->n_words = 0;
    for (char *t = strtok_r(line, " \t\n", &at); t != NULL && s->n_words < WORDS_MAX;
         t = strtok_r(NULL, " \t\n", &at))
        s->word[s->n_words++] = t;
}

/* What was told, each line behind its mark. */
static void take_trace(struct story *s, struct buf *out)
{
    const char *p = buf_str(&s->trace);
    while (*p != '\0' && !s->is_quiet) {
        const char *end = strchr(p, '\n');
        int n = end != NULL ? (int)(end - p) : (int)strlen(p);
        buf_printf(out, "> %.*s\n", n, p);
        p += n + (end != NULL);
    }
    buf_reset(&s->trace);
}

static int read_file(const char *path, struct buf *b)
{
    char piece[4096];
    size_t n;
    FILE *f = fopen(path, "r");
    if (f == NULL)
        return -1;
    while ((n = fread(piece, 1, sizeof(piece), f)) > 0)
        buf_append(b, piece, n);
    fclose(f);
    return b->error;
}

static void play(struct story *s, const char *text, struct buf *out)
{
    while (*text != '\0' && !s->is_bad && (s->w == NULL || !s->w->is_failed)) {
        char line[LINE_MAX_BYTES];
        const char *end = strchr(text, '\n');
        size_t n = end != NULL ? (size_t)(end - text) : strlen(text);
        s->line++;
        snprintf(line, sizeof(line), "%.*s", (int)n, text);
        text += n + (end != NULL);
        if (line[0] == '>')
            continue;
        buf_printf(out, "%s\n", line);
        if (line[0] == '#')
            continue;
        split_words(s, line);
        if (s->n_words > 0)
            command(s);
        take_trace(s, out);
    }
}

static void show_difference(const struct story *s, const char *expected, const char *got)
{
    uint32_t line = 1;
    while (*expected != '\0' && *expected == *got) {
        line += *expected == '\n';
        expected++;
        got++;
    }
    while (line > 1 && expected[-1] != '\n') {
        expected--;
        got--;
    }
    printf("%s:%u: expected: %.*s\n%s:%u: but:      %.*s\n", s->path, line,
           (int)strcspn(expected, "\n"), expected, s->path, line, (int)strcspn(got, "\n"), got);
    printf("  see it with: sim --story %s --trace; accept it with: --update\n", s->path);
}

int story_run(const char *path, bool is_updated, bool is_traced)
{
    struct story s = {.path = path, .options = {.is_traced = is_traced}};
    struct buf text, out;
    int rc = 0;
    buf_init(&text, FILE_BYTES_MAX);
    buf_init(&out, FILE_BYTES_MAX);
    buf_init(&s.trace, FILE_BYTES_MAX);
    s.report = calloc(1, sizeof(*s.report));
    if (s.report == NULL || read_file(path, &text) != 0) {
        fprintf(stderr, "%s: cannot be read\n", path);
        rc = 2;
        goto out;
    }
    play(&s, buf_str(&text), &out);
    if (s.is_bad || s.w == NULL) {
        rc = 2;
    } else if (s.w->is_failed) {
        take_trace(&s, &out);
        printf("%s:%u: FAILED %s\n%s", path, s.line, s.w->failure, is_traced ? "" : buf_str(&out));
        rc = 1;
    } else if (strcmp(buf_str(&text), buf_str(&out)) != 0) {
        FILE *f = is_updated ? fopen(path, "w") : NULL;
        if (f != NULL) {
            fwrite(out.data, 1, out.len, f);
            fclose(f);
        } else {
            show_difference(&s, buf_str(&text), buf_str(&out));
            rc = 1;
        }
    }
out:
    if (s.w != NULL)
        world_free(s.w);
    free(s.report);
    buf_done(&text);
    buf_done(&out);
    buf_done(&s.trace);
    return rc;
}
