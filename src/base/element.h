/* Types of elements that users choose between, and their names as options and the API have them.
 * Thread: pure functions. */
#ifndef SHOAL_BASE_ELEMENT_H
#define SHOAL_BASE_ELEMENT_H

#include <stdbool.h>

/* How activations (hidden states, the addends of sums) travel between ranks. A rank's own addend is
 * rounded like everybody else's, so that all ranks hold the same sum. */
enum comm_wire {
    COMM_WIRE_F32,
    COMM_WIRE_F16, /* IEEE half; what does not fit saturates */
    COMM_WIRE_Q8,  /* blocks of 32 values: an f16 scale and 32 signed bytes, as ggml's Q8_0 */
    COMM_WIRE_COUNT,
};

/* Over what the ranks of an instance that are processes of their own talk. */
enum comm_transport {
    COMM_TCP, /* shared memory between ranks on one host */
    COMM_UCX,
    COMM_TRANSPORT_COUNT,
};

/* Elements of the KV cache. */
enum kv_type {
    KV_F16,
    KV_Q8_0, /* 8.5 bits; heads of a multiple of 32 */
    KV_TYPE_COUNT,
};

/* "f32", "f16", "q8". */
bool comm_wire_parse(const char *text, enum comm_wire *ret);
const char *comm_wire_name(enum comm_wire wire);
/* "tcp", "ucx". */
bool comm_transport_parse(const char *text, enum comm_transport *ret);
const char *comm_transport_name(enum comm_transport transport);
/* "f16", "q8". */
bool kv_type_parse(const char *text, enum kv_type *ret);
const char *kv_type_name(enum kv_type type);

#endif
