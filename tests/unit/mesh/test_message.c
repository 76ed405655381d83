/* The mesh protocol: every message comes back as it was sent, and nothing else is accepted. */
#include "mesh/message.h"

#include "base/rng.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "mesh/samples.h"

static struct buf encode_sample(enum mesh_type type)
{
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    assert_int_equal(sample_encode(&b, type), 0);
    return b;
}

static void test_round_trips(void **state)
{
    (void)state;
    for (int type = MESH_GREETING; type <= MESH_TYPE_LAST; type++) {
        struct error err = {0};
        struct buf b = encode_sample((enum mesh_type)type), again;
        struct mesh_message m;
        assert_int_equal(mesh_message_next(b.data, b.len, LIMIT_CONTROL_FRAME_BYTES, &m, &err),
                         b.len);
        assert_int_equal(m.type, type);
        buf_init(&again, LIMIT_CONTROL_FRAME_BYTES);
        if (sample_recode(&m, &again, &err) != 0)
            fail_msg("type %d: %s", type, err.message);
        assert_int_equal(again.len, b.len);
        assert_memory_equal(again.data, b.data, b.len);
        buf_done(&b);
        buf_done(&again);
    }
}

/* A payload that is cut anywhere, or has a byte more, is refused and names its message. */
static void test_truncation(void **state)
{
    (void)state;
    for (int type = MESH_GREETING; type <= MESH_TYPE_LAST; type++) {
        struct buf b = encode_sample((enum mesh_type)type), again;
        struct mesh_message m = {.type = (enum mesh_type)type,
                                 .payload = (uint8_t *)b.data + MESH_HEADER_BYTES};
        size_t len = b.len - MESH_HEADER_BYTES;
        /* A copy of exactly the size, so that a read past its end is seen. */
        for (size_t n = 0; n <= len + 1; n++) {
            struct error err = {0};
            uint8_t *copy = malloc(n > 0 ? n : 1);
            assert_non_null(copy);
            memcpy(copy, m.payload, n <= len ? n : len);
            if (n > len)
                copy[len] = 0;
            struct mesh_message cut = {.type = m.type, .payload = copy, .len = n};
            buf_init(&again, LIMIT_CONTROL_FRAME_BYTES);
            int rc = sample_recode(&cut, &again, &err);
            /* CLUSTER is opaque here: cluster_step checks it. */
            bool is_good = n == len || type == MESH_CLUSTER;
            assert_int_equal(rc, is_good ? 0 : E_PROTOCOL);
            assert_true(is_good || err.message[0] != '\0');
            buf_done(&again);
            free(copy);
        }
        buf_done(&b);
    }
}

/* Any changed bit gives an error or a message that is written as it was read. */
static void test_flips(void **state)
{
    (void)state;
    uint64_t position = 0;
    for (int type = MESH_GREETING; type <= MESH_TYPE_LAST; type++) {
        struct buf b = encode_sample((enum mesh_type)type), again;
        for (int i = 0; i < 3000; i++) {
            struct error err = {0};
            if (b.len == MESH_HEADER_BYTES)
                break; /* nothing to flip */
            size_t at = MESH_HEADER_BYTES + rng_u64(1, position++, 0) % (b.len - MESH_HEADER_BYTES);
            uint8_t bit = (uint8_t)(1u << (rng_u64(1, position++, 0) % 8));
            b.data[at] = (char)((uint8_t)b.data[at] ^ bit);
            struct mesh_message m = {.type = (enum mesh_type)type,
                                     .payload = (uint8_t *)b.data + MESH_HEADER_BYTES,
                                     .len = b.len - MESH_HEADER_BYTES};
            buf_init(&again, LIMIT_CONTROL_FRAME_BYTES);
            if (sample_recode(&m, &again, &err) == 0) {
                assert_int_equal(again.len, b.len);
                assert_memory_equal(again.data, b.data, b.len);
            } else {
                assert_int_equal(err.code, E_PROTOCOL);
            }
            buf_done(&again);
            b.data[at] = (char)((uint8_t)b.data[at] ^ bit);
        }
        buf_done(&b);
    }
}

static void test_frames(void **state)
{
    (void)state;
    struct error err = {0};
    struct mesh_message m;
    struct buf b = encode_sample(MESH_HELLO);
    for (size_t n = 0; n < b.len; n++)
        assert_int_equal(mesh_message_next(b.data, n, LIMIT_CONTROL_FRAME_BYTES, &m, &err), 0);
    /* Too long, unknown type, reserved field: refused from the header alone. */
    static const uint8_t headers[][8] = {
        {0xff, 0xff, 0xff, 0x7f, 128, 0, 0, 0},
        {0, 0, 0, 0, 127, 0, 0, 0},
        {0, 0, 0, 0, MESH_TYPE_LAST + 1, 0, 0, 0},
        {0, 0, 0, 0, 128, 1, 0, 0},
        {0, 0, 0, 0, 128, 0, 1, 0},
        {1, 16, 0, 0, 128, 0, 0, 0},
    };
    static const int codes[] = {E_LIMIT, E_PROTOCOL, E_PROTOCOL, E_PROTOCOL, E_PROTOCOL, E_LIMIT};
    for (size_t i = 0; i < sizeof(headers) / sizeof(headers[0]); i++)
        assert_int_equal(mesh_message_next(headers[i], 8, MESH_STRANGER_BYTES_MAX, &m, &err),
                         codes[i]);
    buf_done(&b);
}

static void test_refused_values(void **state)
{
    (void)state;
    struct error err = {0};
    struct mesh_hello hello = sample_hello(), ret;
    struct mesh_message m;
    struct buf b;
    buf_init(&b, LIMIT_CONTROL_FRAME_BYTES);
    strcpy(hello.name, "evil\x1b[2J"); /* control characters end on terminals */
    mesh_encode_hello(&b, &hello);
    assert_true(mesh_message_next(b.data, b.len, LIMIT_CONTROL_FRAME_BYTES, &m, &err) > 0);
    assert_int_equal(mesh_decode_hello(&m, &ret, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, "name"));

    /* A later version may say more in its greeting, this one may not. */
    struct mesh_greeting greeting = {.version = MESH_PROTOCOL_VERSION + 1, .version_min = 2}, back;
    for (int i = 0; i < 2; i++) {
        buf_reset(&b);
        mesh_encode_greeting(&b, &greeting);
        buf_append_u32(&b, 42);
        b.data[0] = (char)(b.data[0] + 4);
        assert_true(mesh_message_next(b.data, b.len, LIMIT_CONTROL_FRAME_BYTES, &m, &err) > 0);
        assert_int_equal(mesh_decode_greeting(&m, &back, &err), i == 0 ? 0 : E_PROTOCOL);
        greeting.version = MESH_PROTOCOL_VERSION;
    }
    assert_int_equal(back.version, MESH_PROTOCOL_VERSION + 1);

    buf_reset(&b);
    assert_int_equal(mesh_encode_cluster(&b, "", MESH_CLUSTER_BYTES_MAX + 1), E_LIMIT);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trips),    cmocka_unit_test(test_truncation),
        cmocka_unit_test(test_flips),          cmocka_unit_test(test_frames),
        cmocka_unit_test(test_refused_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
