/* One message of each type, and the check that what is read is written again as it was: for the
 * tests of the messages and for the fuzzers. */
#ifndef TESTS_UNIT_CLUSTER_SAMPLES_H
#define TESTS_UNIT_CLUSTER_SAMPLES_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cluster/message.h"

enum { SAMPLE_INCARNATION = 77 };

static inline struct node_id sample_id(char name)
{
    struct node_id id = {{0}};
    id.bytes[0] = (uint8_t)name;
    id.bytes[15] = 1;
    return id;
}

static inline struct desired_model sample_model(const char *id)
{
    struct desired_model m = {
        .is_wanted = true,
        .stamp = {3, 4, sample_id('a')},
        .path = "/models/a file.gguf",
        .hash = {1, 2, 3},
        .shape = {24, 2048, 8192, 16, 8, 128, 32000, 4096, 40 << 20, 40 << 20, 40 << 20, 4096},
        .options = {.n_ctx = 8192,
                    .n_slots = 4,
                    .n_kv_tokens = 100000,
                    .n_chunk = 64,
                    .n_draft = INSTANCE_NO_DRAFT,
                    .draft_model = "/models/a small one.gguf",
                    .kv_type = KV_Q8_0,
                    .wire = COMM_WIRE_F16,
                    .transport = COMM_UCX},
        .draft_bytes = 300 << 20,
        .rule = PLACEMENT_MEMORY,
        .split = "2x1",
        .n_nodes_min = 2,
        .problem = "waits"};
    snprintf(m.id, sizeof(m.id), "%s", id);
    return m;
}

/* A state with two models, an order and an instance on a and b. The caller frees it. */
static inline struct cluster_state *sample_state(void)
{
    struct cluster_state *s = calloc(1, sizeof(*s));
    if (s == NULL)
        abort();
    s->claim = (struct claim){5, 9, sample_id('b')};
    s->model[s->n_models++] = sample_model("one");
    s->model[s->n_models++] = sample_model("two");
    s->model[1].is_wanted = false;
    s->order[s->n_orders++] =
        (struct node_order){sample_id('c'), true, false, {5, 2, sample_id('a')}};
    struct placed_instance *p = &s->instance[s->n_instances++];
    *p = (struct placed_instance){.id = sample_id('i'),
                                  .model_id = "one",
                                  .epoch = 5ull << 32 | 3,
                                  .decode_tok_s = 12.5F,
                                  .prefill_tok_s = 100,
                                  .n_repairs = 1,
                                  .incarnation_of_rank = {SAMPLE_INCARNATION, 78},
                                  .bytes_of_rank = {1000, 2000}};
    p->node_of_rank[0] = sample_id('a');
    p->node_of_rank[1] = sample_id('b');
    split_parse("pipeline", 2, 24, NULL, &p->split, NULL);
    return s;
}

static inline struct instance_report sample_report(void)
{
    struct instance_report r = {.instance = sample_id('i'),
                                .epoch = 5ull << 32 | 3,
                                .number = 4,
                                .status = INSTANCE_FAILED,
                                .error = "rank 1 has ended",
                                .bad_ranks = 2,
                                .is_node_unfit = true,
                                .n_ctx = 4096,
                                .n_slots = 2,
                                .created_s = 1700000000,
                                .n_ranks = 2};
    r.rank[0] = (struct rank_report){RANK_READY, 0,   {0, 12}, {0, 8},
                                     1000,       500, 4711,    .work = {1, 2, 3, 4, 5, 6, 7, 8}};
    r.rank[1] = (struct rank_report){RANK_ENDED, 1,   {12, 24}, {0, 8},
                                     2000,       500, 4712,     .work = {9, 8, 7, 6, 5, 4, 3, 2}};
    r.head = (struct head_work){1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11};
    return r;
}

static inline int sample_put_order(struct buf *b, enum order_type type)
{
    struct message_order m = {.origin = sample_id('a'),
                              .origin_incarnation = SAMPLE_INCARNATION,
                              .number = 3,
                              .hops = 1,
                              .order = {.type = type}};
    if (type == ORDER_LOAD)
        m.order.model = sample_model("three");
    else if (type == ORDER_UNLOAD)
        snprintf(m.order.model.id, sizeof(m.order.model.id), "one");
    else
        m.order.node = sample_id('c');
    return message_put_order(b, SAMPLE_INCARNATION, &m);
}

enum { SAMPLE_COUNT = 13 };

/* The message number i of SAMPLE_COUNT, from a. */
static inline int sample_put(struct buf *b, uint32_t i)
{
    const uint64_t inc = SAMPLE_INCARNATION;
    struct cluster_state *s = sample_state();
    const struct instance_report report = sample_report();
    const struct cluster_self self = {
        .name = "a", .figures = {16ull << 30, 8ull << 30, 8, 100, 20, THERMAL_WARNING, true, 80}};
    const struct message_heartbeat heartbeat = {
        1, s->claim, true, false, false, 120, s->claim, 1, 1, 0, 1 << 30, THERMAL_NORMAL};
    const struct message_link links[2] = {{sample_id('b'), {200, 940, 1}, {9000, 20, 2}},
                                          {sample_id('c'), {0, 0, 3}, {UINT32_MAX, 0, 4}}};
    const struct message_ask ask = {6, sample_id('c')};
    const struct message_tell tell = {6, sample_id('c'), 79, true, 250};
    const struct message_order_answer answer = {sample_id('b'), 79, 1, 0, E_NOTFOUND, "no such"};
    struct message_want want = {.what = WANT_ALL, .n_reports = 1};
    int rc = 0;
    want.report[0].instance = sample_id('i');
    want.report[0].epoch = 7;
    switch (i) {
    case 0:
        rc = message_put_heartbeat(b, inc, &heartbeat);
        break;
    case 1:
        rc = message_put_self(b, inc, 1, &self);
        break;
    case 2:
        rc = message_put_links(b, inc, 1, 2, links);
        break;
    case 3:
        rc = message_put_report(b, inc, &report);
        break;
    case 4:
        rc = message_put_state(b, inc, true, 20, s);
        break;
    case 5:
        rc = message_put_merge(b, inc, 1, s);
        break;
    case 6:
        rc = message_put_ask(b, inc, &ask);
        break;
    case 7:
        rc = message_put_tell(b, inc, &tell);
        break;
    case 8:
        rc = message_put_order_answer(b, inc, &answer);
        break;
    case 9:
        rc = message_put_want(b, inc, &want);
        break;
    case 10:
        rc = sample_put_order(b, ORDER_LOAD);
        break;
    case 11:
        rc = sample_put_order(b, ORDER_UNLOAD);
        break;
    default:
        rc = sample_put_order(b, ORDER_DRAIN);
        break;
    }
    free(s);
    return rc;
}

/* Reads a message and writes it again. Errors: those of reading. */
static inline int sample_recode(const void *data, size_t len, struct buf *b, struct error *err)
{
    static struct cluster_state state;
    static struct message_link links[LIMIT_PEERS];
    static struct instance_report report;
    static struct message_order order;
    struct message_heartbeat heartbeat;
    struct cluster_self self;
    struct message_ask ask;
    struct message_tell tell;
    struct message_order_answer answer;
    struct message_want want;
    struct message_head head;
    struct cursor c;
    uint32_t number, n;
    bool flag;
    cursor_init(&c, data, len);
    int rc = message_get_head(&c, &head, err);
    if (rc != 0)
        return rc;
    switch (head.type) {
    case CLUSTER_HEARTBEAT:
        rc = message_get_heartbeat(&c, &heartbeat, err);
        return rc != 0 ? rc : message_put_heartbeat(b, head.incarnation, &heartbeat);
    case CLUSTER_SELF:
        rc = message_get_self(&c, &number, &self, err);
        return rc != 0 ? rc : message_put_self(b, head.incarnation, number, &self);
    case CLUSTER_LINKS:
        rc = message_get_links(&c, &number, &n, links, err);
        return rc != 0 ? rc : message_put_links(b, head.incarnation, number, n, links);
    case CLUSTER_REPORT:
        rc = message_get_report(&c, &report, err);
        return rc != 0 ? rc : message_put_report(b, head.incarnation, &report);
    case CLUSTER_STATE:
        rc = message_get_state(&c, &flag, &number, &state, err);
        return rc != 0 ? rc : message_put_state(b, head.incarnation, flag, number, &state);
    case CLUSTER_MERGE:
        rc = message_get_merge(&c, &number, &state, err);
        return rc != 0 ? rc : message_put_merge(b, head.incarnation, number, &state);
    case CLUSTER_ASK:
        rc = message_get_ask(&c, &ask, err);
        return rc != 0 ? rc : message_put_ask(b, head.incarnation, &ask);
    case CLUSTER_TELL:
        rc = message_get_tell(&c, &tell, err);
        return rc != 0 ? rc : message_put_tell(b, head.incarnation, &tell);
    case CLUSTER_ORDER:
        rc = message_get_order(&c, &order, err);
        return rc != 0 ? rc : message_put_order(b, head.incarnation, &order);
    case CLUSTER_ORDER_ANSWER:
        rc = message_get_order_answer(&c, &answer, err);
        return rc != 0 ? rc : message_put_order_answer(b, head.incarnation, &answer);
    case CLUSTER_WANT:
        rc = message_get_want(&c, &want, err);
        return rc != 0 ? rc : message_put_want(b, head.incarnation, &want);
    case CLUSTER_MESSAGE_END:
        break;
    }
    return E_PROTOCOL;
}

#endif
