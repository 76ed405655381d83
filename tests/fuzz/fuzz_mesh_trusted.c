/* The file of trusted keys. What is accepted comes back the same when it is written and read. */
#include "mesh/text.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct trust t, again;
    struct error err;
    struct buf b;
    t.n = t.n_trusted = again.n = again.n_trusted = 0;
    if (trust_parse(&t, (const char *)data, size, "trusted", &err) != 0)
        return 0;
    buf_init(&b, 1 << 20);
    assert(trust_format(&t, &b) == 0);
    assert(trust_parse(&again, b.data, b.len, "trusted", &err) == 0);
    assert(again.n == t.n && again.n_trusted == t.n_trusted);
    for (uint32_t i = 0; i < t.n; i++)
        assert(memcmp(&t.entry[i], &again.entry[i], sizeof(t.entry[i])) == 0);
    buf_done(&b);
    return 0;
}
