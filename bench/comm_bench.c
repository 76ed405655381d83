/*
 * What an all-reduce costs beside the bare exchange of the same bytes over a socket. Ranks are
 * processes on this machine, each on its own core as far as there are cores. The ways are run in
 * turn, round after round, so that a slow spell of the machine hits all of them.
 *
 *   comm_bench [--ranks N] [--spin US] [--rounds N] [--max-bytes N] [--local]
 *
 * Writes CSV:
 * transport,ranks,bytes,all_reduce_us,socket_us,ratio,MB_per_s,all_reduce_min_us,socket_min_us.
 * Times are medians (and minima, for a machine that others use too) over rounds of one operation's
 * mean. socket: every rank sends the bytes to every other and receives as many, with non-blocking
 * calls and without framing or sums. The ratio is the median of the rounds' ratios.
 */
#include "base/clock.h"
#include "comm/comm.h"
#include "comm/tcp.h"
#include "comm/transport.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ROUNDS_MAX = 101, RANKS_MAX = 8 };

struct settings {
    uint32_t n_ranks, spin_us;
    int n_rounds;
    size_t bytes_max;
    bool local;
};

static struct settings settings = {
    .n_ranks = 2, .spin_us = UINT32_MAX, .n_rounds = 51, .bytes_max = 16 << 20};

static void die(const char *what, const struct error *err)
{
    fprintf(stderr, "comm_bench: %s: %s\n", what, err != NULL ? err->message : strerror(errno));
    exit(1);
}

static void pin(uint32_t rank)
{
    cpu_set_t all, one;
    if (sched_getaffinity(0, sizeof(all), &all) != 0)
        return;
    uint32_t n = (uint32_t)CPU_COUNT(&all), want = rank % n;
    CPU_ZERO(&one);
    for (size_t cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &all) && want-- == 0) {
            CPU_SET(cpu, &one);
            break;
        }
    sched_setaffinity(0, sizeof(one), &one);
}

/* ---- the bare socket ---- */

static void exchange(const int *fds, uint32_t rank, const uint8_t *out, uint8_t *in, size_t n)
{
    size_t sent[RANKS_MAX] = {0}, got[RANKS_MAX] = {0};
    uint32_t left = 2 * (settings.n_ranks - 1), left_before = left;
    bool crowded = settings.n_ranks > comm_cores();
    int n_idle = 0;
    while (left > 0) {
        for (uint32_t i = 0; i < settings.n_ranks; i++) {
            if (i == rank)
                continue;
            if (sent[i] < n) {
                ssize_t r = send(fds[i], out + sent[i], n - sent[i], MSG_DONTWAIT | MSG_NOSIGNAL);
                if (r < 0 && errno != EAGAIN)
                    die("send", NULL);
                sent[i] += r > 0 ? (size_t)r : 0;
                left -= sent[i] == n;
            }
            if (got[i] < n) {
                ssize_t r = recv(fds[i], in + got[i], n - got[i], MSG_DONTWAIT);
                if (r == 0 || (r < 0 && errno != EAGAIN))
                    die("recv", NULL);
                got[i] += r > 0 ? (size_t)r : 0;
                left -= got[i] == n;
            }
        }
        /* Like comm: a peer that has no core cannot answer. */
        n_idle = left == left_before ? n_idle + 1 : 0;
        left_before = left;
        if (left > 0 && n_idle > (crowded ? 0 : 50))
            sched_yield();
    }
}

/* ---- one rank ---- */

struct rank_args {
    uint32_t rank;
    struct comm *comm;
    int fds[RANKS_MAX]; /* bare sockets to the others */
};

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, int n)
{
    qsort(values, (size_t)n, sizeof(values[0]), compare);
    return values[n / 2];
}

static double time_reduce(struct rank_args *a, float *x, size_t n, int repeats)
{
    struct error e = {0};
    uint64_t start = clock_now_ns();
    for (int i = 0; i < repeats; i++)
        if (comm_all_reduce_f32(a->comm, (struct comm_group){0, settings.n_ranks},
                                (UINT64_C(1) << settings.n_ranks) - 1, x, n, &e) != 0)
            die("all-reduce", &e);
    return (double)(clock_now_ns() - start) / 1000.0 / repeats;
}

static double time_exchange(struct rank_args *a, const uint8_t *out, uint8_t *in, size_t bytes,
                            int repeats)
{
    uint64_t start = clock_now_ns();
    for (int i = 0; i < repeats; i++)
        exchange(a->fds, a->rank, out, in, bytes);
    return (double)(clock_now_ns() - start) / 1000.0 / repeats;
}

static void *run_rank(void *arg)
{
    struct rank_args *a = arg;
    static const size_t sizes[] = {64,     576,    2304,   8192,    16384,   32768,   65536,
                                   131072, 262144, 524288, 1 << 20, 2 << 20, 4 << 20, 16 << 20};
    pin(a->rank);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]) && sizes[s] <= settings.bytes_max;
         s++) {
        size_t bytes = sizes[s];
        float *x = calloc(bytes, 1);
        uint8_t *in = calloc(bytes, 1);
        if (x == NULL || in == NULL)
            die("memory", NULL);
        int repeats = (int)((512 << 10) / (bytes + 4096)) + 1;
        double reduce[ROUNDS_MAX], bare[ROUNDS_MAX], ratio[ROUNDS_MAX];
        for (int round = -1; round < settings.n_rounds; round++) { /* the first warms up */
            double r = time_reduce(a, x, bytes / sizeof(float), repeats);
            double b = time_exchange(a, (const uint8_t *)x, in, bytes, repeats);
            if (round < 0)
                continue;
            reduce[round] = r;
            bare[round] = b;
            ratio[round] = r / b;
        }
        if (a->rank == 0) {
            double us = median(reduce, settings.n_rounds),
                   bare_us = median(bare, settings.n_rounds);
            /* Sorted by now: the first is the least. */
            printf("%s,%u,%zu,%.2f,%.2f,%.3f,%.0f,%.2f,%.2f\n", settings.local ? "local" : "tcp",
                   settings.n_ranks, bytes, us, bare_us, median(ratio, settings.n_rounds),
                   (double)bytes / us, reduce[0], bare[0]);
            fflush(stdout);
        }
        free(x);
        free(in);
    }
    comm_close(a->comm);
    return NULL;
}

/* ---- putting the ranks together ---- */

/* A full mesh of bare TCP connections, made before the ranks part. */
static void make_sockets(int fds[RANKS_MAX][RANKS_MAX])
{
    struct error e = {0};
    struct sockaddr_storage a;
    socklen_t len;
    struct comm_tcp_listener *l;
    uint16_t port;
    if (comm_tcp_listen("127.0.0.1", 0, &l, &port, &e) != 0 ||
        tcp_address_parse("127.0.0.1", port, &a, &len, &e) != 0)
        die("listen", &e);
    for (uint32_t i = 0; i < settings.n_ranks; i++)
        for (uint32_t j = 0; j < i; j++) {
            fds[i][j] = socket(AF_INET, SOCK_STREAM, 0);
            if (connect(fds[i][j], (struct sockaddr *)&a, len) != 0)
                die("connect", NULL);
            struct pollfd p = {.fd = l->fd, .events = POLLIN};
            poll(&p, 1, 1000);
            fds[j][i] = accept(l->fd, NULL, NULL);
            if (fds[j][i] < 0)
                die("accept", NULL);
            tcp_tune(fds[i][j]);
            tcp_tune(fds[j][i]);
        }
    comm_tcp_listener_close(l);
}

static void run_tcp(struct rank_args *args, const struct comm_options *options)
{
    static const uint8_t key[32] = {1}, hash[32] = {2};
    struct error e = {0};
    struct comm_tcp_listener *listeners[RANKS_MAX];
    struct comm_tcp_peer peers[RANKS_MAX] = {0};
    for (uint32_t i = 0; i < settings.n_ranks; i++) {
        strcpy(peers[i].host, "127.0.0.1");
        if (comm_tcp_listen("127.0.0.1", 0, &listeners[i], &peers[i].port, &e) != 0)
            die("listen", &e);
    }
    for (uint32_t i = 0; i < settings.n_ranks; i++) {
        pid_t pid = fork();
        if (pid < 0)
            die("fork", NULL);
        if (pid > 0)
            continue;
        if (comm_tcp_connect(listeners[i], i, settings.n_ranks, peers, key, hash, options,
                             &args[i].comm, &e) != 0)
            die("connect", &e);
        run_rank(&args[i]);
        exit(0);
    }
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    if (failed)
        exit(1);
}

static void run_local(struct rank_args *args, const struct comm_options *options)
{
    struct error e = {0};
    struct comm *comms[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    if (comm_local_new(settings.n_ranks, options, comms, &e) != 0)
        die("local", &e);
    for (uint32_t i = 0; i < settings.n_ranks; i++) {
        args[i].comm = comms[i];
        if (pthread_create(&threads[i], NULL, run_rank, &args[i]) != 0)
            die("thread", NULL);
    }
    for (uint32_t i = 0; i < settings.n_ranks; i++)
        pthread_join(threads[i], NULL);
}

static unsigned long number(const char *option, const char *text, unsigned long min,
                            unsigned long max)
{
    char *end;
    unsigned long v = text != NULL ? strtoul(text, &end, 10) : 0;
    if (text == NULL || end == text || *end != '\0' || v < min || v > max) {
        fprintf(stderr, "comm_bench: %s wants a number from %lu to %lu\n", option, min, max);
        exit(64);
    }
    return v;
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *next = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--local") == 0) {
            settings.local = true;
        } else if (strcmp(argv[i], "--ranks") == 0) {
            settings.n_ranks = (uint32_t)number(argv[i++], next, 2, RANKS_MAX);
        } else if (strcmp(argv[i], "--spin") == 0) {
            settings.spin_us = (uint32_t)number(argv[i++], next, 0, 1000000);
        } else if (strcmp(argv[i], "--rounds") == 0) {
            settings.n_rounds = (int)number(argv[i++], next, 1, ROUNDS_MAX);
        } else if (strcmp(argv[i], "--max-bytes") == 0) {
            settings.bytes_max = number(argv[i++], next, 64, 1 << 30);
        } else {
            fprintf(stderr, "usage: comm_bench [--ranks N] [--spin US] [--rounds N] "
                            "[--max-bytes N] [--local]\n");
            return 64;
        }
    }
    struct rank_args args[RANKS_MAX];
    int fds[RANKS_MAX][RANKS_MAX];
    struct comm_options options = {.timeout_ms = 60000, .spin_us = settings.spin_us};
    make_sockets(fds);
    for (uint32_t i = 0; i < settings.n_ranks; i++) {
        args[i] = (struct rank_args){.rank = i};
        memcpy(args[i].fds, fds[i], sizeof(fds[i]));
    }
    printf("transport,ranks,bytes,all_reduce_us,socket_us,ratio,MB_per_s,all_reduce_min_us,"
           "socket_min_us\n");
    fflush(stdout);
    if (settings.local)
        run_local(args, &options);
    else
        run_tcp(args, &options);
    return 0;
}
