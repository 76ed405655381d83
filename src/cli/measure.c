/* `shoal measure`: the speed of this computer, for placement. A node runs it in a process of its
 * own when it starts for the first time. */
#include "engine/measure.h"

#include "base/clock.h"
#include "cli/cli.h"
#include "engine/devices.h"

#include <getopt.h>
#include <stdio.h>

static const struct option options[] = {
    {"threads", required_argument, NULL, 't'},
    {"device", required_argument, NULL, 'd'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

struct measuring {
    const char *device_name;
    uint32_t n_threads;
    bool as_json;
};

static int parse(int argc, char **argv, struct measuring *o, bool *ret_wants_help,
                 struct error *err)
{
    int key, rc = 0;
    optind = 1;
    while (rc == 0 && (key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == 't')
            rc = cli_parse_u32("--threads", optarg, 1, 512, &o->n_threads, err);
        else if (key == 'd')
            o->device_name = optarg;
        else if (key == 'j')
            o->as_json = true;
        else if (key == 'h')
            *ret_wants_help = true;
        else
            rc = error_set(err, E_INVALID, "see `shoal measure --help`");
    }
    return rc;
}

static void print(const struct measuring *o, const struct engine_device *device,
                  const struct measured *m, double seconds)
{
    if (!o->as_json) {
        printf("%s, %u threads: %.1f GFLOPS in 4-bit matrices, %.2f GB/s of weights (measured in "
               "%.1f s)\n",
               device->name, o->n_threads, m->gflops, m->memory_gb_s, seconds);
        return;
    }
    printf("{\"threads\":%u,\"device\":\"%s\",\"gflops\":%.2f,\"memory_gb_s\":%.3f,"
           "\"seconds\":%.2f}\n",
           o->n_threads, device->name, m->gflops, m->memory_gb_s, seconds);
}

int cli_measure(int argc, char **argv)
{
    struct measuring o = {.device_name = "", .n_threads = cli_default_threads(1)};
    struct measured m = {0};
    struct engine_device device;
    struct error err = {0};
    bool wants_help = false;
    int rc = parse(argc, argv, &o, &wants_help, &err);
    if (rc == 0 && wants_help) {
        printf("usage: shoal measure [--threads N] [--device NAME] [--json]\n\n"
               "Measures how fast this computer, or a device in it, multiplies weights of 4 bits: "
               "many rows at a\ntime, and one row with weights from memory. Takes about a "
               "second.\n");
        return 0;
    }
    uint64_t begin = clock_now_ns();
    if (rc == 0)
        rc = engine_device_find(o.device_name, &device, &err);
    if (rc == 0)
        rc = measure_speed(o.device_name, o.n_threads, &m, &err);
    if (rc != 0)
        return cli_fail(&err);
    print(&o, &device, &m, (double)(clock_now_ns() - begin) / 1e9);
    return 0;
}
