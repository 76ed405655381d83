/* Messages between cores: what is written is read, and what is malformed is refused and changes
 * nothing. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "cluster/samples.h"

static void put(struct buf *b, uint32_t i)
{
    buf_init(b, CLUSTER_MESSAGE_BYTES_MAX);
    assert_int_equal(sample_put(b, i), 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        struct buf a, b;
        struct error err = {0};
        put(&a, i);
        buf_init(&b, CLUSTER_MESSAGE_BYTES_MAX);
        if (sample_recode(a.data, a.len, &b, &err) != 0)
            fail_msg("sample %u: %s", i, err.message);
        assert_int_equal(a.len, b.len);
        assert_memory_equal(a.data, b.data, a.len);
        buf_done(&a);
        buf_done(&b);
    }
}

static void test_cut_off_and_too_long(void **state)
{
    (void)state;
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        struct buf a, b;
        put(&a, i);
        buf_init(&b, CLUSTER_MESSAGE_BYTES_MAX);
        for (size_t len = 0; len < a.len; len++) {
            struct error err = {0};
            char *copy = malloc(len + 1); /* exact, so that ASan sees a read past the end */
            assert_non_null(copy);
            memcpy(copy, a.data, len);
            assert_int_equal(sample_recode(copy, len, &b, &err), E_PROTOCOL);
            assert_true(err.message[0] != '\0');
            free(copy);
        }
        buf_append_u8(&a, 0);
        assert_int_equal(sample_recode(a.data, a.len, &b, NULL), E_PROTOCOL);
        buf_done(&a);
        buf_done(&b);
    }
}

/* Each byte in turn becomes something else: refused, or read as what it says. */
static void test_changed_bytes(void **state)
{
    (void)state;
    static const uint8_t other[] = {0x00, 0x01, 0x7f, 0x80, 0xff};
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        struct buf a, b;
        put(&a, i);
        buf_init(&b, CLUSTER_MESSAGE_BYTES_MAX);
        for (size_t at = 0; at < a.len; at++) {
            char before = a.data[at];
            for (size_t k = 0; k < sizeof(other); k++) {
                a.data[at] = (char)other[k];
                buf_reset(&b);
                if (sample_recode(a.data, a.len, &b, NULL) != 0)
                    continue;
                assert_int_equal(a.len, b.len);
                assert_memory_equal(a.data, b.data, a.len);
            }
            a.data[at] = before;
        }
        buf_done(&a);
        buf_done(&b);
    }
}

static void test_heartbeat_is_small(void **state)
{
    (void)state;
    struct buf b;
    put(&b, 0);
    assert_true(b.len < 200);
    buf_done(&b);
}

static struct cluster *new_core(void)
{
    struct cluster *c;
    struct cluster_actions actions;
    const struct cluster_options o = {
        .id = sample_id('b'), .incarnation = 79, .self = {.name = "b"}};
    assert_int_equal(cluster_new(&o, 1000, &c, NULL), 0);
    const struct cluster_event up = {
        .type = CLUSTER_EVENT_LINK_UP, .node = sample_id('a'), .name = "a"};
    assert_int_equal(cluster_step(c, &up, 1000, &actions, NULL), 0);
    return c;
}

/* A malformed message is an error, and the core is as it was. */
static void test_step_refuses(void **state)
{
    (void)state;
    struct cluster *c = new_core();
    for (uint32_t i = 0; i < SAMPLE_COUNT; i++) {
        struct buf b;
        struct cluster_actions actions;
        struct error err = {0};
        put(&b, i);
        struct cluster_event e = {.type = CLUSTER_EVENT_MESSAGE,
                                  .node = sample_id('a'),
                                  .data = b.data,
                                  .len = b.len - 1};
        assert_int_equal(cluster_step(c, &e, 1001, &actions, &err), E_PROTOCOL);
        assert_int_equal(actions.n, 0);
        b.data[0]++; /* of another version */
        e.len = b.len;
        assert_int_equal(cluster_step(c, &e, 1001, &actions, &err), E_PROTOCOL);
        assert_non_null(strstr(err.message, "version"));
        buf_done(&b);
    }
    assert_int_equal(cluster_get_state(c)->claim.term, 0);
    assert_int_equal(cluster_find_member(c, &(struct node_id){{'a', [15] = 1}})->incarnation, 0);
    cluster_free(c);
}

/* Whole but strange messages, in any order, never harm. */
static void test_step_takes_samples(void **state)
{
    (void)state;
    struct cluster *c = new_core();
    for (uint32_t round = 0; round < 40; round++) {
        struct buf b;
        struct cluster_actions actions;
        put(&b, (round * 5) % SAMPLE_COUNT);
        const struct cluster_event e = {
            .type = CLUSTER_EVENT_MESSAGE, .node = sample_id('a'), .data = b.data, .len = b.len};
        assert_int_equal(cluster_step(c, &e, 1001 + 50 * round, &actions, NULL), 0);
        const struct cluster_event tick = {.type = CLUSTER_EVENT_TICK};
        assert_int_equal(cluster_step(c, &tick, 1001 + 50 * round, &actions, NULL), 0);
        buf_done(&b);
    }
    cluster_free(c);
}

/* A message of a node that has no link, or of a process that is no more, is nothing. */
static void test_step_ignores(void **state)
{
    (void)state;
    struct cluster *c = new_core();
    struct buf b;
    struct cluster_actions actions;
    put(&b, 4);
    struct cluster_event e = {
        .type = CLUSTER_EVENT_MESSAGE, .node = sample_id('z'), .data = b.data, .len = b.len};
    assert_int_equal(cluster_step(c, &e, 1001, &actions, NULL), 0);
    assert_int_equal(actions.n, 0);
    buf_done(&b);
    put(&b, 1);
    b.data[2]++; /* a later process */
    e.node = sample_id('a');
    e.data = b.data;
    e.len = b.len;
    assert_int_equal(cluster_step(c, &e, 1001, &actions, NULL), 0);
    b.data[2]--;
    b.data[10]++; /* a newer number, but of the process before */
    assert_int_equal(cluster_step(c, &e, 1002, &actions, NULL), 0);
    assert_int_equal(actions.n, 0);
    buf_done(&b);
    cluster_free(c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),    cmocka_unit_test(test_cut_off_and_too_long),
        cmocka_unit_test(test_changed_bytes), cmocka_unit_test(test_heartbeat_is_small),
        cmocka_unit_test(test_step_refuses),  cmocka_unit_test(test_step_takes_samples),
        cmocka_unit_test(test_step_ignores),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
