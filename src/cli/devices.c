/* `shoal devices`: what --device can name on this computer. */
#include "engine/devices.h"

#include "base/buf.h"
#include "base/json.h"
#include "cli/cli.h"
#include "device/device.h"

#include <getopt.h>
#include <stdio.h>
#include <string.h>

static const struct option options[] = {
    {"json", no_argument, NULL, 'j'},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

static void print(const struct engine_device *d, bool is_first, bool as_json)
{
    struct buf b;
    if (!as_json) {
        printf("%-12s %s, %.1f GiB of memory, %.1f free\n", d->name, d->description,
               (double)d->memory_bytes_total / (1 << 30), (double)d->memory_bytes_free / (1 << 30));
        return;
    }
    buf_init(&b, 4096);
    buf_append_str(&b, is_first ? "{\"name\":" : ",{\"name\":");
    json_append_string(&b, d->name, strlen(d->name));
    buf_append_str(&b, ",\"description\":");
    json_append_string(&b, d->description, strlen(d->description));
    buf_printf(&b, ",\"is_cpu\":%s,\"memory_bytes_total\":%llu,\"memory_bytes_free\":%llu}",
               d->is_cpu ? "true" : "false", (unsigned long long)d->memory_bytes_total,
               (unsigned long long)d->memory_bytes_free);
    fputs(buf_str(&b), stdout);
    buf_done(&b);
}

int cli_devices(int argc, char **argv)
{
    struct engine_device device[ENGINE_DEVICES_MAX];
    bool as_json = false;
    int key;
    optind = 1;
    while ((key = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (key == 'j') {
            as_json = true;
            continue;
        }
        fprintf(key == 'h' ? stdout : stderr,
                "usage: shoal devices [--json]\n\n"
                "Lists what can compute on this computer: its processors, and the GPUs that this "
                "build knows\nhow to use (docs/operating.md).\n");
        return key == 'h' ? 0 : error_exit_code(E_INVALID);
    }
    uint32_t n = engine_devices(device, ENGINE_DEVICES_MAX);
    device[0].memory_bytes_free = device_memory_bytes_free(); /* ggml does not look */
    if (as_json)
        printf("{\"devices\":[");
    for (uint32_t i = 0; i < n; i++)
        print(&device[i], i == 0, as_json);
    if (as_json)
        printf("]}\n");
    return 0;
}
