/* `shoal measure`: the speed of this computer, for placement. A node runs it in a process of its
 * own when it starts for the first time. */
#include "engine/measure.h"

#include "base/clock.h"
#include "cli/cli.h"

#include <getopt.h>
#include <stdio.h>

static const struct option options[] = {
    {"threads", required_argument, NULL, 't'},
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

int cli_measure(int argc, char **argv)
{
    uint32_t n_threads = cli_default_threads(1);
    struct measured m;
    struct error err = {0};
    bool as_json = false;
    int key;
    optind = 1;
    while ((key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == 't') {
            if (cli_parse_u32("--threads", optarg, 1, 512, &n_threads, &err) != 0)
                return cli_fail(&err);
        } else if (key == 'j') {
            as_json = true;
        } else {
            fprintf(key == 'h' ? stdout : stderr,
                    "usage: shoal measure [--threads N] [--json]\n\n"
                    "Measures how fast this computer multiplies weights of 4 bits: many rows at a "
                    "time,\nand one row with weights from memory. Takes about a second.\n");
            return key == 'h' ? 0 : error_exit_code(E_INVALID);
        }
    }
    uint64_t begin = clock_now_ns();
    if (measure_speed(n_threads, &m, &err) != 0)
        return cli_fail(&err);
    double seconds = (double)(clock_now_ns() - begin) / 1e9;
    if (as_json)
        printf("{\"threads\":%u,\"gflops\":%.2f,\"memory_gb_s\":%.3f,\"seconds\":%.2f}\n",
               n_threads, m.gflops, m.memory_gb_s, seconds);
    else
        printf("%u threads: %.1f GFLOPS in 4-bit matrices, %.2f GB/s of weights (measured in %.1f "
               "s)\n",
               n_threads, m.gflops, m.memory_gb_s, seconds);
    return 0;
}
