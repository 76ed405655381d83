/* How this computer fares, every five seconds: sensors are files, which the thread pool reads. */
#include "base/clock.h"
#include "node/internal.h"

_Static_assert((int)DEVICE_THERMAL_CRITICAL == (int)THERMAL_CRITICAL, "the same states");

static void do_sample(uv_work_t *work)
{
    struct node *n = work->data;
    device_sample(&n->sampler, clock_now_ns(), &n->sample);
}

static void after_sample(uv_work_t *work, int status)
{
    struct node *n = work->data;
    n->n_loads--;
    n->is_sampling = false;
    if (status == 0) {
        if (n->telemetry.thermal != n->sample.thermal)
            n->figures_ms = 0; /* told to the core at once */
        n->telemetry = n->sample;
    }
    node_check_stop(n);
}

void telemetry_init(struct node *n)
{
    device_get_capabilities(&n->sampler.options, &n->capabilities);
    n->telemetry.battery_percent = 255;
}

void telemetry_tick(struct node *n)
{
    uint64_t now_ms = uv_now(n->loop);
    if (n->is_sampling || n->phase >= NODE_STOPPING_RANKS ||
        (n->sampled_ms != 0 && now_ms - n->sampled_ms < DEVICE_TELEMETRY_MS))
        return;
    n->sampled_ms = now_ms;
    n->sample_work.data = n;
    if (uv_queue_work(n->loop, &n->sample_work, do_sample, after_sample) != 0)
        return;
    n->is_sampling = true;
    n->n_loads++;
}

int telemetry_json(struct node *n, struct buf *b)
{
    struct device_measured measured = {.gflops = n->gflops, .memory_gb_s = n->memory_gb_s};
    struct device_peer_link peers[LIMIT_PEERS];
    const struct member *m;
    uint32_t n_peers = 0;
    char id[33];
    uint64_t time_ms = clock_wall_ns() / 1000000u;
    for (uint32_t i = 0; n_peers < LIMIT_PEERS && (m = cluster_member_at(n->cluster, i)) != NULL;
         i++)
        if (m->status == MEMBER_UP) {
            peers[n_peers] =
                (struct device_peer_link){.rtt_us = m->link.rtt_us, .mbit_s = m->link.mbit_s};
            node_id_text(&m->id, peers[n_peers++].id);
        }
    node_id_text(&n->id, id);
    buf_append_str(b, "\"capabilities\":");
    device_capabilities_json(b, id, time_ms, &n->capabilities, &measured);
    buf_append_str(b, ",\"telemetry\":");
    return device_telemetry_json(b, id, time_ms, &n->telemetry, n_peers, peers);
}
