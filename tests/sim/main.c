/* Runs worlds: one with its trace, or thousands by several processes, and reports. */
#include "sim.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char help[] =
    "usage: sim [OPTIONS]\n"
    "  --seed N          one world (with --trace: all that happens in it)\n"
    "  --seeds N         so many, from --from (0) on, by --jobs processes\n"
    "  --from N          the first seed\n"
    "  --trace           print all that happens\n"
    "  --nodes N         so many nodes; otherwise the seed chooses\n"
    "  --time-ms N       faults for so long; otherwise the seed chooses\n"
    "  --campaign HOURS  a swarm's faults, but rare: a day of each seed, until so many hours\n"
    "                    have passed; calm time is skipped\n"
    "  --year DAYS       4 nodes with a stated rate of faults: availability\n"
    "  --canary NAME     with a bug: router, epoch, orphan\n"
    "  --canaries        each canary must be caught\n"
    "  --replay-check    some seeds, twice: both runs must be equal\n"
    "  --story FILE      a scripted run; --update writes what it gives\n"
    "  --jobs N          processes (number of cores)\n"
    "  --keep-going      do not end at the first failing seed\n";

struct run {
    struct sim_options o;
    uint64_t n_seeds;
    double hours; /* 0: by n_seeds */
    long n_jobs;
    bool is_keeping_going;
};

static const char *const canary_names[] = {"none", "router", "epoch", "orphan"};

static void print_failure(const struct sim_options *o, const struct world *w)
{
    char more[128] = "";
    if (o->n_nodes != 0)
        snprintf(more + strlen(more), sizeof(more) - strlen(more), " --nodes %u", o->n_nodes);
    if (o->is_year)
        snprintf(more + strlen(more), sizeof(more) - strlen(more), " --year 5");
    else if (o->is_campaign)
        snprintf(more + strlen(more), sizeof(more) - strlen(more), " --campaign 24");
    else if (o->time_us != 0)
        snprintf(more + strlen(more), sizeof(more) - strlen(more), " --time-ms %llu",
                 (unsigned long long)(o->time_us / 1000));
    if (o->canary != CANARY_NONE)
        snprintf(more + strlen(more), sizeof(more) - strlen(more), " --canary %s",
                 canary_names[o->canary]);
    printf("FAILED seed %llu (%u nodes): %s\n  replay: sim --seed %llu%s --trace\n",
           (unsigned long long)o->seed, w->n_nodes, w->failure, (unsigned long long)o->seed, more);
    fflush(stdout);
}

/* Returns whether all was well. */
static bool run_seed(const struct sim_options *o, struct sim_report *report, bool is_quiet)
{
    struct world *w = world_new(o, sim_choose_nodes(o), report);
    if (o->is_year || o->is_campaign) {
        if (o->is_year)
            year_choose(w);
        else
            swarm_choose(w);
        year_run(w);
    } else {
        swarm_choose(w);
        swarm_run(w);
    }
    bool is_ok = !w->is_failed;
    report->n_seeds++;
    report->n_failed += !is_ok;
    if (!is_ok && !is_quiet)
        print_failure(o, w);
    world_free(w);
    return is_ok;
}

/* ---- many ---- */

static void add_samples(struct samples *to, const struct samples *from)
{
    for (uint32_t i = 0; i < from->n; i++)
        samples_add(to, (double)from->v[i]);
}

static void add_report(struct sim_report *to, const struct sim_report *from)
{
    uint64_t *a = (uint64_t *)to;
    const uint64_t *b = (const uint64_t *)from;
    for (size_t i = 0; i < offsetof(struct sim_report, detect_kill_ms) / sizeof(uint64_t); i++)
        a[i] += b[i];
    add_samples(&to->detect_kill_ms, &from->detect_kill_ms);
    add_samples(&to->detect_silent_ms, &from->detect_silent_ms);
    add_samples(&to->repair_ms, &from->repair_ms);
    add_samples(&to->gap_ms, &from->gap_ms);
}

static void work(const struct run *r, long job, int fd)
{
    struct sim_report *report = calloc(1, sizeof(*report));
    struct sim_options o = r->o;
    if (report == NULL)
        _exit(71);
    for (uint64_t k = (uint64_t)job;; k += (uint64_t)r->n_jobs) {
        double us = (double)report->virtual_us + (double)report->skipped_us;
        if (r->hours > 0 ? us / 3.6e9 * (double)r->n_jobs >= r->hours : k >= r->n_seeds)
            break;
        o.seed = r->o.seed + k;
        if (!run_seed(&o, report, false) && !r->is_keeping_going)
            break;
    }
    const char *p = (const char *)report;
    for (size_t left = sizeof(*report); left > 0;) {
        ssize_t n = write(fd, p, left);
        if (n <= 0)
            _exit(74);
        p += n;
        left -= (size_t)n;
    }
    free(report);
    fflush(stdout);
    _exit(0);
}

static int compare_floats(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

static void print_samples(const char *name, struct samples *s)
{
    qsort(s->v, s->n, sizeof(s->v[0]), compare_floats);
    if (s->n > 0)
        printf("%-26s p50 %.0f  p90 %.0f  p99 %.0f  max %.0f ms  (%u)\n", name,
               (double)s->v[s->n / 2], (double)s->v[s->n * 9 / 10], (double)s->v[s->n * 99 / 100],
               (double)s->v[s->n - 1], s->n_seen);
}

static void print_report(struct sim_report *r, double real_s)
{
    typedef unsigned long long ull;
    printf(
        "seeds %llu, failed %llu; %.1f virtual hours in %.1f s (%.0f times as fast), %llu events\n",
        (ull)r->n_seeds, (ull)r->n_failed, (double)r->virtual_us / 3.6e9, real_s,
        (double)r->virtual_us / 1e6 / real_s, (ull)r->n_events);
    printf("faults:");
    for (int k = 0; k < FAULT_KIND_COUNT; k++)
        if (r->n_faults[k] > 0)
            printf(" %s %llu", fault_name((enum fault_kind)k), (ull)r->n_faults[k]);
    printf("\nrequests %llu: refused %llu, busy %llu, completed %llu, cancelled %llu, failed %llu, "
           "lost with their node %llu; repaired %llu; tokens %llu\n",
           (ull)r->n_requests, (ull)r->n_refused, (ull)r->n_busy, (ull)r->n_completed,
           (ull)r->n_cancelled, (ull)r->n_errors, (ull)r->n_lost, (ull)r->n_repaired,
           (ull)r->n_tokens);
    printf("orders %llu, terms %llu, placements %llu\n", (ull)r->n_orders, (ull)r->n_terms,
           (ull)r->n_epochs);
    print_samples("loss noticed, killed", &r->detect_kill_ms);
    print_samples("loss noticed, silent", &r->detect_silent_ms);
    print_samples("served again (with load)", &r->repair_ms);
    print_samples("between tokens", &r->gap_ms);
    if (r->skipped_us > 0)
        printf("%.1f days, of which %.2f %% were looked at and the rest was calm\n",
               (double)r->skipped_us / 8.64e10 + (double)r->virtual_us / 8.64e10,
               100.0 * (double)r->virtual_us / (double)(r->skipped_us + r->virtual_us));
    if (r->n_asked > 0)
        printf("availability %.5f %% of %llu samples (%.5f %% where a placement was possible)\n",
               100 * (double)r->n_served / (double)r->n_asked, (ull)r->n_asked,
               100 * (double)r->n_served_feasible / (double)r->n_asked_feasible);
}

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static int run_many(const struct run *r)
{
    struct sim_report *sum = calloc(1, sizeof(*sum)), *one = calloc(1, sizeof(*one));
    int fd[2];
    double begin_s = now_s();
    bool is_ok = sum != NULL && one != NULL;
    for (long job = 0; job < r->n_jobs && is_ok; job++) {
        if (pipe(fd) != 0)
            return 71;
        pid_t pid = fork();
        if (pid == 0) {
            close(fd[0]);
            work(r, job, fd[1]);
        }
        close(fd[1]);
        if (pid < 0)
            return 71;
        /* Reports are small, but larger than a pipe: they are read when all run. */
        dup2(fd[0], 100 + (int)job);
        close(fd[0]);
    }
    for (long job = 0; job < r->n_jobs && is_ok; job++) {
        size_t got = 0;
        ssize_t n;
        while (got < sizeof(*one) &&
               (n = read(100 + (int)job, (char *)one + got, sizeof(*one) - got)) > 0)
            got += (size_t)n;
        if (got == sizeof(*one))
            add_report(sum, one);
        else
            is_ok = false;
        close(100 + (int)job);
    }
    int status;
    while (wait(&status) > 0)
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
            printf("a process of the simulator ended with status %d\n", status);
            is_ok = false;
        }
    if (is_ok)
        print_report(sum, now_s() - begin_s);
    is_ok = is_ok && sum->n_failed == 0;
    free(sum);
    free(one);
    return is_ok ? 0 : 1;
}

/* ---- one, canaries, replay ---- */

static int run_one(const struct sim_options *o)
{
    struct sim_report *report = calloc(1, sizeof(*report));
    if (report == NULL)
        return 71;
    bool is_ok = run_seed(o, report, false);
    print_report(report, 1);
    free(report);
    return is_ok ? 0 : 1;
}

/* A checker that has never found anything may be unable to. */
static int run_canaries(const struct run *r)
{
    int rc = 0;
    struct sim_report *report = calloc(1, sizeof(*report));
    if (report == NULL)
        return 71;
    for (int canary = 1; canary < CANARY_COUNT; canary++) {
        struct sim_options o = r->o;
        uint64_t n = r->n_seeds > 1 ? r->n_seeds : 300, k = 0;
        o.canary = (enum canary)canary;
        for (; k < n; k++) {
            o.seed = r->o.seed + k;
            if (!run_seed(&o, report, true))
                break;
        }
        if (k < n) {
            printf("canary %s: caught by seed %llu\n", canary_names[canary],
                   (unsigned long long)o.seed);
        } else {
            printf("canary %s: NOT caught by %llu seeds\n", canary_names[canary],
                   (unsigned long long)n);
            rc = 1;
        }
    }
    free(report);
    return rc;
}

static int check_replay(const struct run *r)
{
    for (uint64_t k = 0; k < 20; k++) {
        struct sim_options o = r->o;
        struct sim_report *report = calloc(2, sizeof(*report));
        if (report == NULL)
            return 71;
        o.seed = r->o.seed + k;
        run_seed(&o, &report[0], true);
        run_seed(&o, &report[1], true);
        int diff = memcmp(&report[0], &report[1], sizeof(*report));
        free(report);
        if (diff != 0) {
            printf("seed %llu: two runs differ\n", (unsigned long long)o.seed);
            return 1;
        }
    }
    printf("20 seeds: both runs are equal\n");
    return 0;
}

int main(int argc, char **argv)
{
    enum {
        SEED = 256,
        SEEDS,
        FROM,
        TRACE,
        NODES,
        TIME,
        CAMPAIGN,
        YEAR,
        CANARY,
        CANARIES,
        REPLAY,
        STORY,
        UPDATE,
        JOBS,
        KEEP,
        HELP
    };
    static const struct option options[] = {{"seed", required_argument, NULL, SEED},
                                            {"seeds", required_argument, NULL, SEEDS},
                                            {"from", required_argument, NULL, FROM},
                                            {"trace", no_argument, NULL, TRACE},
                                            {"nodes", required_argument, NULL, NODES},
                                            {"time-ms", required_argument, NULL, TIME},
                                            {"campaign", required_argument, NULL, CAMPAIGN},
                                            {"year", required_argument, NULL, YEAR},
                                            {"canary", required_argument, NULL, CANARY},
                                            {"canaries", no_argument, NULL, CANARIES},
                                            {"replay-check", no_argument, NULL, REPLAY},
                                            {"story", required_argument, NULL, STORY},
                                            {"update", no_argument, NULL, UPDATE},
                                            {"jobs", required_argument, NULL, JOBS},
                                            {"keep-going", no_argument, NULL, KEEP},
                                            {"help", no_argument, NULL, HELP},
                                            {NULL, 0, NULL, 0}};
    struct run r = {.n_jobs = sysconf(_SC_NPROCESSORS_ONLN)};
    const char *story = NULL;
    bool is_updated = false, are_canaries = false, is_replay = false, is_one = false;
    int c;
    while ((c = getopt_long(argc, argv, "", options, NULL)) != -1)
        switch (c) {
        case SEED:
            is_one = true;
            r.o.seed = strtoull(optarg, NULL, 10);
            break;
        case FROM:
            r.o.seed = strtoull(optarg, NULL, 10);
            break;
        case SEEDS:
            r.n_seeds = strtoull(optarg, NULL, 10);
            break;
        case TRACE:
            r.o.is_traced = true;
            break;
        case NODES:
            r.o.n_nodes = (uint32_t)strtoul(optarg, NULL, 10);
            break;
        case TIME:
            r.o.time_us = strtoull(optarg, NULL, 10) * 1000;
            break;
        case CAMPAIGN:
            r.hours = strtod(optarg, NULL);
            r.o.is_campaign = true;
            r.o.time_us = 86400ull * 1000000;
            break;
        case YEAR: /* in pieces of five days */
            r.o.is_year = true;
            r.o.n_nodes = r.o.n_nodes != 0 ? r.o.n_nodes : 4;
            r.o.time_us = 5 * 86400ull * 1000000;
            r.n_seeds = ((uint64_t)strtod(optarg, NULL) + 4) / 5;
            break;
        case CANARY:
            for (int k = 1; k < CANARY_COUNT; k++)
                if (strcmp(canary_names[k], optarg) == 0)
                    r.o.canary = (enum canary)k;
            break;
        case CANARIES:
            are_canaries = true;
            break;
        case REPLAY:
            is_replay = true;
            break;
        case STORY:
            story = optarg;
            break;
        case UPDATE:
            is_updated = true;
            break;
        case JOBS:
            r.n_jobs = strtol(optarg, NULL, 10);
            break;
        case KEEP:
            r.is_keeping_going = true;
            break;
        default:
            fputs(help, c == HELP ? stdout : stderr);
            return c == HELP ? 0 : 64;
        }
    if (r.n_jobs < 1)
        r.n_jobs = 1;
    if (r.n_jobs > 64)
        r.n_jobs = 64;
    if (r.o.n_nodes > SIM_NODES_MAX) {
        fprintf(stderr, "sim: at most %d nodes\n", SIM_NODES_MAX);
        return 64;
    }
    if (story != NULL)
        return story_run(story, is_updated, r.o.is_traced);
    if (are_canaries)
        return run_canaries(&r);
    if (is_replay)
        return check_replay(&r);
    if ((r.n_seeds > 0 || r.hours > 0) && !is_one)
        return run_many(&r);
    return run_one(&r.o);
}
