/*
 * What an all-reduce and a message cost beside the bare exchange of the same bytes over a socket.
 * Ranks are processes on this machine, each on its own core as far as there are cores. The ways are
 * run in turn, round after round, so that a slow spell of the machine hits all of them.
 *
 *   comm_bench [--ranks N] [--spin US] [--rounds N] [--max-bytes N] [--wire f32|f16|q8] [--local]
 *
 * Writes CSV: operation,transport,ranks,wire,bytes,us,us_min,socket_us,socket_us_min,ratio.
 *
 * hop: a message from rank 0 to rank 1, half of a round trip; the socket's: the same with send and
 * recv. all_reduce: of all ranks; the socket's: every rank sends the bytes to every other and
 * receives as many, without framing or sums. Bytes are those of the f32 values, whatever the wire
 * form. Transports: shm and tcp, or with --local threads of one process. Times are medians and
 * minima over rounds of one operation's mean; the ratio is the median of the rounds' ratios.
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

enum { ROUNDS_MAX = 101, RANKS_MAX = 8, TRANSPORTS_MAX = 2 };

struct settings {
    uint32_t n_ranks, spin_us;
    int n_rounds;
    size_t bytes_max;
    enum comm_wire wire;
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

static void send_all(int fd, const uint8_t *data, size_t n)
{
    for (size_t done = 0; done < n;) {
        ssize_t r = send(fd, data + done, n - done, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (r < 0 && errno != EAGAIN)
            die("send", NULL);
        done += r > 0 ? (size_t)r : 0;
    }
}

static void recv_all(int fd, uint8_t *data, size_t n)
{
    int n_idle = 0;
    for (size_t done = 0; done < n;) {
        ssize_t r = recv(fd, data + done, n - done, MSG_DONTWAIT);
        if (r == 0 || (r < 0 && errno != EAGAIN))
            die("recv", NULL);
        done += r > 0 ? (size_t)r : 0;
        if (r < 0 && ++n_idle > 50)
            sched_yield();
    }
}

/* ---- one rank ---- */

struct rank_args {
    uint32_t rank;
    struct comm *comms[TRANSPORTS_MAX];
    const char *names[TRANSPORTS_MAX];
    int n_comms;
    int fds[RANKS_MAX]; /* bare sockets to the others */
};

/* One size: what is sent, and where it arrives. */
struct work {
    float *x;
    uint8_t *in;
    size_t bytes;
    int repeats;
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

typedef void operation(struct rank_args *a, struct comm *c, const struct work *w);

static void reduce_comm(struct rank_args *a, struct comm *c, const struct work *w)
{
    struct error e = {0};
    (void)a;
    if (comm_all_reduce_f32(c, (struct comm_group){0, settings.n_ranks},
                            (UINT64_C(1) << settings.n_ranks) - 1, w->x, w->bytes / sizeof(float),
                            &e) != 0)
        die("all-reduce", &e);
}

static void reduce_bare(struct rank_args *a, struct comm *c, const struct work *w)
{
    (void)c;
    exchange(a->fds, a->rank, (const uint8_t *)w->x, w->in, w->bytes);
}

static void hop_comm(struct rank_args *a, struct comm *c, const struct work *w)
{
    struct error e = {0};
    size_t n = w->bytes / sizeof(float);
    float *in = (float *)(void *)w->in;
    if (a->rank > 1)
        return;
    if ((a->rank == 0 && comm_send_f32(c, 1, w->x, n, &e) != 0) ||
        comm_recv_f32(c, 1 - a->rank, in, n, &e) != 0 ||
        (a->rank == 1 && comm_send_f32(c, 0, w->x, n, &e) != 0))
        die("hop", &e);
}

static void hop_bare(struct rank_args *a, struct comm *c, const struct work *w)
{
    (void)c;
    if (a->rank > 1)
        return;
    if (a->rank == 0)
        send_all(a->fds[1], (const uint8_t *)w->x, w->bytes);
    recv_all(a->fds[1 - a->rank], w->in, w->bytes);
    if (a->rank == 1)
        send_all(a->fds[0], (const uint8_t *)w->x, w->bytes);
}

static double time_one(operation *op, struct rank_args *a, struct comm *c, const struct work *w)
{
    uint64_t start = clock_now_ns();
    for (int i = 0; i < w->repeats; i++)
        op(a, c, w);
    return (double)(clock_now_ns() - start) / 1000.0 / w->repeats;
}

/* trips: of one operation. */
static void run_operation(struct rank_args *a, const struct work *w, const char *name,
                          operation *with_comm, operation *bare, int trips)
{
    static double us[TRANSPORTS_MAX][RANKS_MAX][ROUNDS_MAX],
        ratio[TRANSPORTS_MAX][RANKS_MAX][ROUNDS_MAX];
    static double bare_us[RANKS_MAX][ROUNDS_MAX];
    uint32_t r = a->rank;
    for (int round = -1; round < settings.n_rounds; round++) { /* the first warms up */
        int at = round < 0 ? 0 : round;
        bare_us[r][at] = time_one(bare, a, NULL, w) / trips;
        for (int i = 0; i < a->n_comms; i++) {
            us[i][r][at] = time_one(with_comm, a, a->comms[i], w) / trips;
            ratio[i][r][at] = us[i][r][at] / bare_us[r][at];
        }
    }
    if (r != 0)
        return;
    double bare_median = median(bare_us[r], settings.n_rounds);
    for (int i = 0; i < a->n_comms; i++) {
        double m = median(us[i][r], settings.n_rounds);
        /* Sorted by now: the first is the least. */
        printf("%s,%s,%u,%s,%zu,%.2f,%.2f,%.2f,%.2f,%.3f\n", name, a->names[i], settings.n_ranks,
               comm_wire_name(settings.wire), w->bytes, m, us[i][r][0], bare_median, bare_us[r][0],
               median(ratio[i][r], settings.n_rounds));
    }
    fflush(stdout);
}

static void *run_rank(void *arg)
{
    struct rank_args *a = arg;
    static const size_t sizes[] = {64,     576,    2304,   8192,    16384,   32768,   65536,
                                   131072, 262144, 524288, 1 << 20, 2 << 20, 4 << 20, 16 << 20};
    pin(a->rank);
    for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]) && sizes[s] <= settings.bytes_max;
         s++) {
        struct work w = {.x = calloc(sizes[s], 1),
                         .in = calloc(sizes[s], 1),
                         .bytes = sizes[s],
                         .repeats = (int)((512 << 10) / (sizes[s] + 4096)) + 1};
        if (w.x == NULL || w.in == NULL)
            die("memory", NULL);
        run_operation(a, &w, "hop", hop_comm, hop_bare, 2);
        run_operation(a, &w, "all_reduce", reduce_comm, reduce_bare, 1);
        free(w.x);
        free(w.in);
    }
    for (int i = 0; i < a->n_comms; i++)
        comm_close(a->comms[i]);
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

static void run_processes(struct rank_args *args, const struct comm_options *options)
{
    static const uint8_t key[32] = {1}, hash[32] = {2};
    static const char *const names[] = {"shm", "tcp"};
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
        struct comm_options o = *options;
        for (args[i].n_comms = 0; args[i].n_comms < TRANSPORTS_MAX; args[i].n_comms++) {
            o.no_shm = args[i].n_comms > 0;
            args[i].names[args[i].n_comms] = names[args[i].n_comms];
            if (comm_tcp_connect(listeners[i], i, settings.n_ranks, peers, key, hash, &o,
                                 &args[i].comms[args[i].n_comms], &e) != 0)
                die("connect", &e);
        }
        run_rank(&args[i]);
        exit(0);
    }
    int status, failed = 0;
    while (wait(&status) > 0)
        failed |= status;
    if (failed)
        exit(1);
}

static void run_threads(struct rank_args *args, const struct comm_options *options)
{
    struct error e = {0};
    struct comm *comms[RANKS_MAX];
    pthread_t threads[RANKS_MAX];
    if (comm_local_new(settings.n_ranks, options, comms, &e) != 0)
        die("local", &e);
    for (uint32_t i = 0; i < settings.n_ranks; i++) {
        args[i].comms[0] = comms[i];
        args[i].names[0] = "local";
        args[i].n_comms = 1;
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
        } else if (strcmp(argv[i], "--wire") == 0 && next != NULL &&
                   comm_wire_parse(next, &settings.wire)) {
            i++;
        } else {
            fprintf(stderr, "usage: comm_bench [--ranks N] [--spin US] [--rounds N] "
                            "[--max-bytes N] [--wire f32|f16|q8] [--local]\n");
            return 64;
        }
    }
    struct rank_args args[RANKS_MAX];
    int fds[RANKS_MAX][RANKS_MAX];
    struct comm_options options = {
        .wire = settings.wire, .timeout_ms = 60000, .spin_us = settings.spin_us};
    make_sockets(fds);
    for (uint32_t i = 0; i < settings.n_ranks; i++) {
        args[i] = (struct rank_args){.rank = i};
        memcpy(args[i].fds, fds[i], sizeof(fds[i]));
    }
    printf("operation,transport,ranks,wire,bytes,us,us_min,socket_us,socket_us_min,ratio\n");
    fflush(stdout);
    if (settings.local)
        run_threads(args, &options);
    else
        run_processes(args, &options);
    return 0;
}
