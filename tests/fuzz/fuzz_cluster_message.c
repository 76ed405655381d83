/* Bytes from other nodes to a cluster core: a series of messages, each with its length (u16) before
 * it. Each is first read and written again, which must give the same bytes, and then stepped into a
 * core that has two peers; time passes between them. */
#include "cluster/cluster.h"

#include <assert.h>

#include "cluster/samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void step(struct cluster *c, const struct cluster_event *e, uint64_t now_ms)
{
    struct cluster_actions actions;
    struct error err;
    int rc = cluster_step(c, e, now_ms, &actions, &err);
    assert(rc == 0 || rc == E_PROTOCOL);
    for (uint32_t i = 0; i < actions.n; i++) {
        if (actions.action[i].type != CLUSTER_SEND)
            continue;
        /* What it sends itself, others must be able to read. */
        struct buf b;
        buf_init(&b, CLUSTER_MESSAGE_BYTES_MAX);
        rc = sample_recode(actions.action[i].data, actions.action[i].len, &b, &err);
        assert(rc == 0);
        buf_done(&b);
    }
}

static void check_recode(const uint8_t *data, size_t n)
{
    struct buf b;
    struct error err;
    buf_init(&b, CLUSTER_MESSAGE_BYTES_MAX);
    if (sample_recode(data, n, &b, &err) == 0)
        assert(b.len == n && memcmp(b.data, data, n) == 0);
    buf_done(&b);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cluster *c;
    uint64_t now_ms = 1000;
    const struct cluster_options o = {
        .id = sample_id('b'),
        .incarnation = 79,
        .is_alone_expected = size % 2 == 0,
        .self = {.name = "b",
                 .figures = {16ull << 30, 12ull << 30, 8, 100, 20, THERMAL_NORMAL, false, 255}}};
    if (cluster_new(&o, now_ms, &c, NULL) != 0)
        return 0;
    step(c, &(struct cluster_event){.type = CLUSTER_EVENT_TICK}, now_ms);
    for (char name = 'a'; name <= 'c'; name += 2)
        step(c, &(struct cluster_event){.type = CLUSTER_EVENT_LINK_UP, .node = sample_id(name)},
             now_ms);
    for (size_t at = 0; at + 2 <= size;) {
        size_t n = data[at] | (size_t)data[at + 1] << 8;
        at += 2;
        n = n < size - at ? n : size - at;
        check_recode(data + at, n);
        const struct cluster_event e = {.type = CLUSTER_EVENT_MESSAGE,
                                        .node = sample_id(n % 2 == 0 ? 'a' : 'c'),
                                        .data = data + at,
                                        .len = n};
        step(c, &e, now_ms += 70);
        step(c, &(struct cluster_event){.type = CLUSTER_EVENT_TICK}, now_ms += 130);
        at += n;
    }
    cluster_free(c);
    return 0;
}
