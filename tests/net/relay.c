/*
 * A wire of a given length: passes Ethernet frames between two tap devices, each way after a delay,
 * with jitter (which reorders), loss and doubling. For tests on kernels without netem. Numbers come
 * from a seed, so that the same frames fare the same again.
 *
 * Both devices are made by this program and live as long as it does. Its settings may be changed
 * while it runs: each line on stdin is `delay_us jitter_us loss_permille double_permille`; the end
 * of stdin ends the program. Writes "ready" once the devices are there.
 *
 * usage: shoal-net-relay TAP_A TAP_B SEED
 */
#include "base/rng.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    FRAME_BYTES_MAX = 65536 + 64, /* with offloads off, far less */
    BYTES_MAX = 64 << 20,         /* under way; more is dropped, as by a switch */
    HEAP_MAX = 65536,
};

struct frame {
    uint64_t due_ns, order; /* order: equal times leave as they came */
    int to;
    size_t n;
    uint8_t data[];
};

static struct frame *heap[HEAP_MAX];
static size_t n_heap, n_bytes;
static uint64_t seed, n_random, n_frames;
static unsigned long delay_us, jitter_us, loss_permille, double_permille;

static uint64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool is_before(const struct frame *a, const struct frame *b)
{
    return a->due_ns != b->due_ns ? a->due_ns < b->due_ns : a->order < b->order;
}

static void swap(size_t a, size_t b)
{
    struct frame *f = heap[a];
    heap[a] = heap[b];
    heap[b] = f;
}

static void push(struct frame *f)
{
    size_t i = n_heap++;
    heap[i] = f;
    n_bytes += f->n;
    for (; i > 0 && is_before(heap[i], heap[(i - 1) / 2]); i = (i - 1) / 2)
        swap(i, (i - 1) / 2);
}

static struct frame *pop(void)
{
    struct frame *f = heap[0];
    heap[0] = heap[--n_heap];
    n_bytes -= f->n;
    for (size_t i = 0;;) {
        size_t least = i;
        for (size_t child = 2 * i + 1; child <= 2 * i + 2 && child < n_heap; child++)
            if (is_before(heap[child], heap[least]))
                least = child;
        if (least == i)
            return f;
        swap(i, least);
        i = least;
    }
}

static void accept_frame(const uint8_t *data, size_t n, int to)
{
    if (n_heap == HEAP_MAX || n_bytes + n > BYTES_MAX)
        return;
    struct frame *f = malloc(sizeof(*f) + n);
    if (f == NULL)
        return;
    uint64_t wait_us = delay_us;
    if (jitter_us > 0)
        wait_us += rng_u64(seed, n_random++, 0) % (jitter_us + 1);
    f->due_ns = now_ns() + wait_us * 1000;
    f->order = n_frames++;
    f->to = to;
    f->n = n;
    memcpy(f->data, data, n);
    push(f);
}

static bool happens(unsigned long permille)
{
    return permille > 0 && rng_u64(seed, n_random++, 1) % 1000 < permille;
}

static void read_frames(int from, int to)
{
    static uint8_t data[FRAME_BYTES_MAX];
    ssize_t n;
    for (int i = 0; i < 64 && (n = read(from, data, sizeof(data))) > 0; i++) {
        if (happens(loss_permille))
            continue;
        accept_frame(data, (size_t)n, to);
        if (happens(double_permille))
            accept_frame(data, (size_t)n, to);
    }
}

static void deliver(void)
{
    uint64_t now = now_ns();
    while (n_heap > 0 && heap[0]->due_ns <= now) {
        struct frame *f = pop();
        if (write(f->to, f->data, f->n) < 0 && errno != EIO && errno != EAGAIN && errno != ENOBUFS)
            fprintf(stderr, "frame of %zu bytes lost: %s\n", f->n, strerror(errno));
        free(f);
    }
}

static int open_tap(const char *name)
{
    struct ifreq request;
    memset(&request, 0, sizeof(request));
    request.ifr_flags = IFF_TAP | IFF_NO_PI;
    snprintf(request.ifr_name, sizeof(request.ifr_name), "%s", name);
    int fd = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 || ioctl(fd, TUNSETIFF, &request) != 0) {
        fprintf(stderr, "cannot make the tap device %s: %s\n", name, strerror(errno));
        exit(1);
    }
    return fd;
}

/* Returns false at the end of stdin. */
static bool read_settings(void)
{
    char line[256];
    if (fgets(line, sizeof(line), stdin) == NULL)
        return false;
    unsigned long v[4];
    if (sscanf(line, "%lu %lu %lu %lu", &v[0], &v[1], &v[2], &v[3]) != 4) {
        fprintf(stderr, "not four numbers: %s", line);
        return false;
    }
    delay_us = v[0];
    jitter_us = v[1];
    loss_permille = v[2];
    double_permille = v[3];
    printf("ok\n");
    fflush(stdout);
    return true;
}

int main(int argc, char **argv)
{
    if (argc != 4) {
        fprintf(stderr, "usage: shoal-net-relay TAP_A TAP_B SEED\n");
        return 64;
    }
    int a = open_tap(argv[1]), b = open_tap(argv[2]);
    seed = strtoull(argv[3], NULL, 10);
    setvbuf(stdin, NULL, _IONBF, 0); /* poll must see every line */
    printf("ready\n");
    fflush(stdout);
    struct pollfd wait[3] = {{.fd = a, .events = POLLIN},
                             {.fd = b, .events = POLLIN},
                             {.fd = STDIN_FILENO, .events = POLLIN}};
    for (;;) {
        struct timespec pause = {.tv_sec = 1};
        if (n_heap > 0) {
            uint64_t now = now_ns(), due = heap[0]->due_ns;
            uint64_t left = due > now ? due - now : 0;
            pause = (struct timespec){.tv_sec = (time_t)(left / 1000000000u),
                                      .tv_nsec = (long)(left % 1000000000u)};
        }
        if (ppoll(wait, 3, &pause, NULL) < 0 && errno != EINTR)
            return 1;
        if ((wait[2].revents & (POLLIN | POLLHUP)) != 0 && !read_settings())
            return 0;
        if ((wait[0].revents & POLLIN) != 0)
            read_frames(a, b);
        if ((wait[1].revents & POLLIN) != 0)
            read_frames(b, a);
        deliver();
    }
}
