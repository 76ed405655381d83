#include "base/element.h"

#include <string.h>

static const char *const wire_names[COMM_WIRE_COUNT] = {"f32", "f16", "q8"};
static const char *const transport_names[COMM_TRANSPORT_COUNT] = {"tcp", "ucx"};
static const char *const kv_names[KV_TYPE_COUNT] = {"f16", "q8"};

/* The index of text in names, or n. */
static int find_name(const char *const *names, int n, const char *text)
{
    int i = 0;
    while (i < n && strcmp(names[i], text) != 0)
        i++;
    return i;
}

bool comm_wire_parse(const char *text, enum comm_wire *ret)
{
    int i = find_name(wire_names, COMM_WIRE_COUNT, text);
    if (i < COMM_WIRE_COUNT)
        *ret = (enum comm_wire)i;
    return i < COMM_WIRE_COUNT;
}

const char *comm_wire_name(enum comm_wire wire)
{
    return wire_names[wire];
}

bool comm_transport_parse(const char *text, enum comm_transport *ret)
{
    int i = find_name(transport_names, COMM_TRANSPORT_COUNT, text);
    if (i < COMM_TRANSPORT_COUNT)
        *ret = (enum comm_transport)i;
    return i < COMM_TRANSPORT_COUNT;
}

const char *comm_transport_name(enum comm_transport transport)
{
    return transport_names[transport];
}

bool kv_type_parse(const char *text, enum kv_type *ret)
{
    int i = find_name(kv_names, KV_TYPE_COUNT, text);
    if (i < KV_TYPE_COUNT)
        *ret = (enum kv_type)i;
    return i < KV_TYPE_COUNT;
}

const char *kv_type_name(enum kv_type type)
{
    return kv_names[type];
}
