/* Bytes from another node. What is accepted must be written as it was read. */
#include "mesh/message.h"

#include <assert.h>

#include "mesh/samples.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES + MESH_HEADER_BYTES);
    for (size_t at = 0; at < size;) {
        struct mesh_message m;
        struct error err;
        int64_t n = mesh_message_next(data + at, size - at, LIMIT_CONTROL_FRAME_BYTES, &m, &err);
        if (n <= 0)
            break;
        buf_reset(&b);
        if (sample_recode(&m, &b, &err) == 0) {
            /* The greeting of a later version may hold more than this one knows. */
            bool is_later = m.type == MESH_GREETING && b.len < (size_t)n;
            assert(is_later || (b.len == (size_t)n && memcmp(b.data, data + at, b.len) == 0));
        }
        at += (size_t)n;
    }
    buf_done(&b);
    return 0;
}
