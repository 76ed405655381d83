/* The data plane's parsers: frame header, hello, verdict. What they accept must be within its
 * limits and must come out again as it went in. */
#include "base/limits.h"
#include "comm/wire.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = {0};
    uint8_t again[HELLO_BYTES];
    if (size >= FRAME_HEADER_BYTES) {
        struct frame_header h;
        if (frame_header_parse(data, &h, &err) == 0) {
            frame_header_write(&h, again);
            if (memcmp(again, data, FRAME_HEADER_BYTES) != 0 || h.length > LIMIT_COMM_FRAME_BYTES)
                abort();
        }
    }
    if (size >= HELLO_BYTES) {
        struct hello h;
        if (hello_parse(data, &h, &err) == 0) {
            hello_write(&h, again);
            if (memcmp(again, data, HELLO_BYTES) != 0 || h.rank >= h.n_ranks ||
                h.n_ranks > LIMIT_RANKS)
                abort();
        }
    }
    if (size >= VERDICT_BYTES) {
        enum verdict v;
        if (verdict_parse(data, &v, &err) == 0) {
            verdict_write(v, again);
            if (memcmp(again, data, VERDICT_BYTES) != 0 || verdict_text(v)[0] == '\0')
                abort();
        }
    }
    return 0;
}
