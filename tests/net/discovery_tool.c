/*
 * Discovery without a node: announces itself, browses, and writes a line for each event:
 *   found MILLISECONDS ID NAME PORT MEMORY CORES ADDRESS[,ADDRESS...]
 *   lost MILLISECONDS ID
 * and, at SIGTERM after a goodbye, `end packets=N malformed=N dropped=N peers=N`. Exits 2 when it
 * cannot begin.
 *
 * usage: shoal-discovery-tool NAME PORT [loopback] [mlx] [silent]
 */
#include "base/rng.h"
#include "mesh/discovery.h"

#include <arpa/inet.h>
#include <inttypes.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct discovery *discovery;
static uv_signal_t terminate;
static uint64_t begin_ns;

static uint64_t since_begin_ms(void)
{
    return (uv_hrtime() - begin_ns) / 1000000;
}

static void found(void *self, const struct discovery_peer *p)
{
    char id[33];
    (void)self;
    printf("found %" PRIu64 " %s %s %d %" PRIu64 " %u ", since_begin_ms(),
           node_id_text(&p->info.id, id), p->info.name, p->port, p->info.memory_mib,
           p->info.n_cores);
    for (uint32_t i = 0; i < p->n_addresses; i++) {
        char host[NI_MAXHOST] = "?";
        getnameinfo((const struct sockaddr *)&p->address[i].address, sizeof(p->address[i].address),
                    host, sizeof(host), NULL, 0, NI_NUMERICHOST);
        printf("%s%s", i > 0 ? "," : "", host);
    }
    printf("\n");
    fflush(stdout);
}

static void lost(void *self, const struct node_id *id)
{
    char text[33];
    (void)self;
    printf("lost %" PRIu64 " %s\n", since_begin_ms(), node_id_text(id, text));
    fflush(stdout);
}

static void on_terminate(uv_signal_t *handle, int number)
{
    struct discovery_stats s;
    (void)number;
    discovery_get_stats(discovery, &s);
    printf("end packets=%" PRIu64 " malformed=%" PRIu64 " dropped=%" PRIu64 " peers=%u\n",
           s.n_packets, s.n_malformed, s.n_dropped, s.n_peers);
    discovery_close(discovery, NULL, NULL);
    uv_close((uv_handle_t *)handle, NULL);
}

int main(int argc, char **argv)
{
    struct discovery_options o = {.self = {.memory_mib = 4096, .n_cores = 2}};
    struct discovery_events events = {.found = found, .lost = lost};
    struct error err;
    if (argc < 3) {
        fprintf(stderr, "usage: shoal-discovery-tool NAME PORT [loopback] [mlx] [silent]\n");
        return 64;
    }
    begin_ns = uv_hrtime();
    if (rng_system(o.self.id.bytes, sizeof(o.self.id.bytes)) != 0)
        return 2;
    snprintf(o.self.name, sizeof(o.self.name), "%s", argv[1]);
    snprintf(o.self.device, sizeof(o.self.device), "cpu");
    snprintf(o.self.version, sizeof(o.self.version), "0.0.0");
    o.port = (uint16_t)strtoul(argv[2], NULL, 10);
    for (int i = 3; i < argc; i++) {
        o.is_on_loopback |= strcmp(argv[i], "loopback") == 0;
        o.is_mlx_too |= strcmp(argv[i], "mlx") == 0;
        o.is_silent |= strcmp(argv[i], "silent") == 0;
    }
    uv_loop_t *loop = uv_default_loop();
    if (discovery_open(loop, &o, &events, &discovery, &err) != 0) {
        fprintf(stderr, "%s\n", err.message);
        uv_run(loop, UV_RUN_DEFAULT);
        return 2;
    }
    uv_signal_init(loop, &terminate);
    uv_signal_start(&terminate, on_terminate, SIGTERM);
    char id[33];
    printf("begin %s\n", node_id_text(&o.self.id, id));
    fflush(stdout);
    uv_run(loop, UV_RUN_DEFAULT);
    uv_loop_close(loop);
    return 0;
}
