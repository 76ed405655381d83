/* A saved state: refused, or read and written again as it was; and a node starts with it. */
#include "cluster/cluster.h"

#include <assert.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct cluster_state state;
    struct cursor cursor;
    struct cluster *c = NULL;
    const struct cluster_options o = {
        .id = {{1}}, .incarnation = 1, .saved = data, .saved_len = size, .is_alone_expected = true};
    cursor_init(&cursor, data, size);
    int rc = cluster_state_decode(&cursor, &state, NULL);
    assert(rc == 0 || rc == E_PROTOCOL);
    if (rc == 0) {
        struct buf b;
        buf_init(&b, 1 << 20);
        assert(cluster_state_encode(&b, &state) == 0);
        assert(b.len == cursor.offset && memcmp(b.data, data, b.len) == 0);
        buf_done(&b);
    }
    if (cluster_new(&o, 1000, &c, NULL) != 0)
        return 0;
    for (uint64_t now_ms = 1050; now_ms < 1300; now_ms += 50) {
        struct cluster_actions actions;
        const struct cluster_event tick = {.type = CLUSTER_EVENT_TICK};
        assert(cluster_step(c, &tick, now_ms, &actions, NULL) == 0);
    }
    cluster_free(c);
    return 0;
}
