/* Names, packets and the table of discovered nodes, with made-up time; then two real ones on
 * loopback. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka wants the four above first */
#include <cmocka.h>

#include "mesh/discovery_records.h"

#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

/* ---- a table whose events are written down: "+1 " found node 1, "-1 " lost it ---- */

static char told[4096];
static struct discovery_peer last;

static void on_found(void *self, const struct discovery_peer *p)
{
    (void)self;
    last = *p;
    snprintf(told + strlen(told), sizeof(told) - strlen(told), "+%d ", p->info.id.bytes[0]);
}

static void on_lost(void *self, const struct node_id *id)
{
    (void)self;
    snprintf(told + strlen(told), sizeof(told) - strlen(told), "-%d ", id->bytes[0]);
}

static const struct discovery_events events = {.found = on_found, .lost = on_lost};
static struct discovery_table *table;
static const struct node_id self = {{99}};

static int setup(void **state)
{
    (void)state;
    told[0] = '\0';
    return discovery_table_new(&self, &events, &table, NULL);
}

static int teardown(void **state)
{
    (void)state;
    discovery_table_free(table);
    return 0;
}

static void assert_told(const char *expected)
{
    assert_string_equal(told, expected);
    told[0] = '\0';
}

static struct sockaddr_storage v4(uint8_t last_byte)
{
    struct sockaddr_storage a;
    memset(&a, 0, sizeof(a));
    struct sockaddr_in *in = (struct sockaddr_in *)&a;
    in->sin_family = AF_INET;
    in->sin_addr.s_addr = htonl(0x0a000000u | last_byte);
    return a;
}

static struct sockaddr_storage v6_link_local(uint8_t last_byte)
{
    struct sockaddr_storage a;
    memset(&a, 0, sizeof(a));
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&a;
    in6->sin6_family = AF_INET6;
    in6->sin6_addr.s6_addr[0] = 0xfe;
    in6->sin6_addr.s6_addr[1] = 0x80;
    in6->sin6_addr.s6_addr[15] = last_byte;
    return a;
}

static struct discovery_options options_of(uint8_t id)
{
    struct discovery_options o = {.self = {.id = {{id}}, .memory_mib = 1024, .n_cores = 4},
                                  .port = (uint16_t)(7000 + id)};
    snprintf(o.self.name, sizeof(o.self.name), "node-%d", id);
    snprintf(o.self.device, sizeof(o.self.device), "cpu");
    snprintf(o.self.version, sizeof(o.self.version), "1.2.3");
    return o;
}

struct speech { /* what a node says */
    struct discovery_options options;
    struct sockaddr_storage address[2];
    uint32_t n_addresses, interface_index, boot;
    uint32_t ttl_s;
};

static struct speech speech_of(uint8_t id)
{
    struct speech s = {
        .options = options_of(id), .n_addresses = 1, .interface_index = 2, .ttl_s = 120};
    s.address[0] = v4(id);
    return s;
}

static void hear(const struct speech *s, uint64_t now_ms)
{
    struct discovery_records r;
    struct dns_writer w;
    struct packet_source from = {.interface_index = s->interface_index, .address = s->address[0]};
    discovery_records_init(&r, &s->options, s->boot);
    for (uint32_t i = 0; i < r.n_services; i++) {
        assert_true(discovery_records_write(&r, i, s->address, s->n_addresses, s->ttl_s, &w));
        assert_true(discovery_table_take(table, w.data, w.len, &from, now_ms));
    }
}

/* ---- names and packets ---- */

static void test_names(void **state)
{
    (void)state;
    struct dns_name a, b, parent;
    dns_name_make(&a, "A b.c", "_X._tcp.local");
    dns_name_make(&b, "a B.C", "_x._TCP.local");
    dns_name_make(&parent, NULL, "_x._tcp.local");
    assert_true(dns_name_equal(&a, &b));
    assert_true(dns_name_is_child(&a, &parent) && !dns_name_is_child(&parent, &parent));
    dns_name_make(&b, "a", "b._x._tcp.local");
    assert_false(dns_name_is_child(&b, &parent));
    assert_int_equal(a.len, 6 + 3 + 5 + 6 + 1);
}

static void test_written_is_read(void **state)
{
    (void)state;
    struct dns_writer w;
    struct dns_reader r;
    struct dns_record record;
    struct dns_question question;
    struct dns_name type, instance, target;
    dns_name_make(&type, NULL, DISCOVERY_SERVICE);
    dns_name_make(&instance, "x", DISCOVERY_SERVICE);
    dns_write_begin(&w, 0);
    dns_write_question(&w, &type, DNS_TYPE_PTR);
    size_t at = dns_write_record(&w, DNS_ANSWER, &type, DNS_TYPE_PTR, false, 77);
    dns_write_name(&w, &instance);
    dns_write_end_record(&w, at);
    assert_int_equal(w.len, 12 + type.len + 4 + 2 + 10 + 4); /* compressed */
    assert_true(dns_open(&r, w.data, w.len));
    assert_int_equal(dns_next_question(&r, &question), 1);
    assert_true(dns_name_equal(&question.name, &type) && question.class == DNS_CLASS_IN);
    assert_int_equal(dns_next_question(&r, &question), 0);
    assert_int_equal(dns_next_record(&r, &record), 1);
    assert_true(record.ttl_s == 77 && !record.is_flush && !record.is_authority);
    assert_true(dns_record_name(&r, &record, 0, &target) && dns_name_equal(&target, &instance));
    assert_false(dns_record_name(&r, &record, 1, &target));
    assert_int_equal(dns_next_record(&r, &record), 0);
    for (size_t n = 0; n < w.len; n++) /* cut anywhere */
        assert_false(dns_check(w.data, n));
}

static void test_bad_names(void **state)
{
    (void)state;
    static const struct {
        const char *bytes;
        size_t n;
    } names[] = {
        {"\xc0\x0c", 2}, /* points to itself */
        {"\xc0\x0e", 2}, /* forward */
        {"\x01"
         "a\xc0\x0c",
         4},             /* to its own beginning */
        {"\xc0\x02", 2}, /* into the header */
        {"\x40", 1},     /* a kind of label that does not exist */
        {"\x05"
         "ab",
         3}, /* longer than the packet */
        {"\xc0", 1},
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        uint8_t packet[64] = {0, 0, 0, 0, 0, 1};
        memcpy(packet + 12, names[i].bytes, names[i].n);
        assert_false(dns_check(packet, 12 + names[i].n));
        assert_false(dns_check(packet, 12 + names[i].n + (names[i].n == 1 ? 0 : 4)) &&
                     names[i].n > 2);
    }
    uint8_t long_name[12 + 5 * 64 + 5] = {0, 0, 0, 0, 0, 1};
    for (int i = 0; i < 5; i++)
        long_name[12 + i * 64] = 63;
    assert_false(dns_check(long_name, sizeof(long_name))); /* 320 bytes */
}

static void test_writer_full(void **state)
{
    (void)state;
    struct dns_writer w;
    struct dns_name name;
    dns_write_begin(&w, 0);
    for (int i = 0; i < 200; i++) {
        char label[64];
        snprintf(label, sizeof(label), "%060d", i);
        dns_name_make(&name, label, "local");
        size_t at = dns_write_record(&w, DNS_ANSWER, &name, DNS_TYPE_PTR, false, 1);
        dns_write_end_record(&w, at);
    }
    assert_true(w.is_full && w.len <= sizeof(w.data));
}

/* ---- the table ---- */

static void test_found_and_lost(void **state)
{
    (void)state;
    struct speech one = speech_of(1);
    one.address[one.n_addresses++] = v6_link_local(1);
    hear(&one, 1000);
    assert_told("");
    assert_true(discovery_table_tick(table, 1000) > 1000);
    assert_told("+1 ");
    assert_string_equal(last.info.name, "node-1");
    assert_string_equal(last.info.version, "1.2.3");
    assert_true(last.port == 7001 && last.info.memory_mib == 1024 && last.info.n_cores == 4);
    assert_int_equal(last.n_addresses, 2);
    assert_int_equal(last.address[0].address.ss_family, AF_INET);
    const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&last.address[1].address;
    assert_true(in6->sin6_family == AF_INET6 && in6->sin6_scope_id == 2);
    assert_int_equal(ntohs(in6->sin6_port), 7001);
    assert_non_null(discovery_table_peer(table, 0));
    assert_null(discovery_table_peer(table, 1));
    hear(&one, 60000); /* the same again is no news */
    discovery_table_tick(table, 60000);
    discovery_table_tick(table, 179999);
    assert_told("");
    discovery_table_tick(table, 180000);
    assert_told("-1 ");
    assert_int_equal(discovery_table_tick(table, 180001), UINT64_MAX);
}

static void test_goodbye(void **state)
{
    (void)state;
    struct speech one = speech_of(1);
    hear(&one, 1000);
    discovery_table_tick(table, 1000);
    one.ttl_s = 0;
    hear(&one, 2000);
    discovery_table_tick(table, 2999);
    assert_told("+1 ");
    discovery_table_tick(table, 3000);
    assert_told("-1 ");
    hear(&one, 4000); /* of one that is not known */
    assert_int_equal(discovery_table_tick(table, 4000), UINT64_MAX);
    /* Its owner objects within a second. */
    one.ttl_s = 120;
    hear(&one, 5000);
    discovery_table_tick(table, 5000);
    one.ttl_s = 0;
    hear(&one, 6000);
    one.ttl_s = 120;
    hear(&one, 6500);
    discovery_table_tick(table, 8000);
    assert_told("+1 ");
}

static void test_self_is_not_found(void **state)
{
    (void)state;
    struct speech me = speech_of(99);
    hear(&me, 1000);
    discovery_table_tick(table, 1000);
    assert_told("");
}

static void test_changes(void **state)
{
    (void)state;
    struct speech one = speech_of(1);
    hear(&one, 1000);
    discovery_table_tick(table, 1000);
    one.options.self.memory_mib = 5;
    one.options.port = 8000;
    hear(&one, 1100);
    discovery_table_tick(table, 1100);
    assert_told("+1 "); /* not twice in a second */
    discovery_table_tick(table, 2000);
    assert_told("+1 ");
    assert_true(last.port == 8000 && last.info.memory_mib == 5);
    assert_int_equal(ntohs(((struct sockaddr_in *)&last.address[0].address)->sin_port), 8000);
    one.boot = 7; /* it has been started anew */
    hear(&one, 4000);
    discovery_table_tick(table, 4000);
    assert_told("+1 ");
    /* A new address replaces the old one, a second later. */
    one.address[0] = v4(200);
    hear(&one, 6000);
    discovery_table_tick(table, 6000);
    assert_int_equal(last.n_addresses, 2);
    discovery_table_tick(table, 7000);
    assert_int_equal(last.n_addresses, 1);
    assert_int_equal(ntohl(((struct sockaddr_in *)&last.address[0].address)->sin_addr.s_addr),
                     0x0a0000c8);
    assert_told("+1 +1 ");
}

static void test_two_interfaces(void **state)
{
    (void)state;
    struct speech one = speech_of(1);
    hear(&one, 1000);
    one.interface_index = 3;
    one.address[0] = v4(101);
    hear(&one, 1000);
    discovery_table_tick(table, 1000);
    assert_told("+1 ");
    assert_int_equal(last.n_addresses, 2);
    assert_true(last.address[0].interface_index != last.address[1].interface_index);
    discovery_table_forget(table, 2, 2000);
    discovery_table_tick(table, 2000);
    assert_told("+1 ");
    assert_true(last.n_addresses == 1 && last.address[0].interface_index == 3);
    discovery_table_forget(table, 3, 3000);
    discovery_table_tick(table, 3000);
    assert_told("-1 ");
}

/* Who has a new name is one node all the same. */
static void test_renamed(void **state)
{
    (void)state;
    struct speech one = speech_of(1);
    hear(&one, 1000);
    discovery_table_tick(table, 1000);
    snprintf(one.options.self.name, sizeof(one.options.self.name), "other");
    hear(&one, 3000);
    discovery_table_tick(table, 3000);
    assert_told("+1 +1 ");
    assert_string_equal(last.info.name, "other");
    hear(&one, 100000);
    discovery_table_tick(table, 130000); /* the old name has expired */
    assert_told("");
    assert_non_null(discovery_table_peer(table, 0));
    assert_null(discovery_table_peer(table, 1));
}

static void test_limits(void **state)
{
    (void)state;
    struct discovery_stats stats;
    memset(&stats, 0, sizeof(stats));
    /* One source brings a bounded number; many fill the table. */
    for (int i = 0; i < 300; i++) {
        struct speech s = speech_of((uint8_t)(i % 90 + 1));
        s.options.self.id.bytes[1] = (uint8_t)(i / 90);
        s.options.self.id.bytes[2] = 1;
        s.address[0] = v4(i < 100 ? 7 : (uint8_t)(i % 200 + 20));
        hear(&s, 1000);
    }
    discovery_table_tick(table, 1000);
    discovery_table_get_stats(table, &stats);
    assert_int_equal(stats.n_peers, DISCOVERY_FOUND_PER_S); /* the others wait */
    assert_int_equal(stats.n_dropped, 100 - DISCOVERY_PER_SOURCE_MAX);
    for (int i = 0; i < 200; i++) {
        struct speech s = speech_of((uint8_t)(i % 90 + 1));
        s.options.self.id.bytes[1] = (uint8_t)(10 + i / 90);
        s.address[0] = v4((uint8_t)(i + 1));
        hear(&s, 1000);
    }
    for (uint64_t now = 1000; now < 7000; now += 100)
        discovery_table_tick(table, now);
    memset(&stats, 0, sizeof(stats));
    discovery_table_get_stats(table, &stats);
    assert_int_equal(stats.n_peers, DISCOVERY_PEERS_MAX);
}

/* ---- questions ---- */

static enum records_asked ask(const struct dns_writer *w, uint8_t id)
{
    struct discovery_records r;
    struct discovery_options o = options_of(id);
    enum records_asked asked;
    discovery_records_init(&r, &o, 0);
    assert_true(discovery_records_asked(&r, w->data, w->len, &asked));
    return asked;
}

static void test_questions(void **state)
{
    (void)state;
    struct dns_writer w;
    struct discovery_records r;
    struct discovery_options o = options_of(5);
    discovery_records_init(&r, &o, 0);
    dns_write_begin(&w, 0);
    dns_write_question(&w, &r.service[0], DNS_TYPE_PTR);
    assert_int_equal(ask(&w, 5), RECORDS_ASKED_SHARED);
    dns_write_question(&w, &r.instance[0], DNS_TYPE_SRV);
    assert_int_equal(ask(&w, 5), RECORDS_ASKED_ALONE);
    assert_int_equal(ask(&w, 6), RECORDS_ASKED_SHARED);
    dns_write_begin(&w, 0);
    dns_write_question(&w, &r.host, DNS_TYPE_ANY);
    assert_int_equal(ask(&w, 5), RECORDS_ASKED_ALONE);
    assert_int_equal(ask(&w, 6), RECORDS_NOT_ASKED);
    dns_write_begin(&w, 0);
    dns_write_question(&w, &r.service[1], DNS_TYPE_PTR); /* the other service is not announced */
    assert_int_equal(ask(&w, 5), RECORDS_NOT_ASKED);
    dns_write_begin(&w, DNS_FLAG_TRUNCATED);
    dns_write_question(&w, &r.service[0], DNS_TYPE_PTR);
    assert_int_equal(ask(&w, 5), RECORDS_ASKED_MORE);
}

static void test_known_answers(void **state)
{
    (void)state;
    struct dns_writer w;
    uint32_t i = 0, n_packets = 1;
    for (uint8_t id = 1; id <= 40; id++) {
        struct speech s = speech_of(id);
        hear(&s, 1000);
    }
    discovery_table_tick(table, 1000);
    while (discovery_query_write(table, 2, 2000, &i, &w)) {
        assert_int_equal(ask(&w, 77), n_packets == 1 ? RECORDS_ASKED_MORE : RECORDS_NOT_ASKED);
        n_packets++;
    }
    assert_true(n_packets > 1 && i == 40);
    i = 0;
    discovery_query_write(table, 2, 2000, &i, &w);
    uint32_t n_asked = 0;
    for (uint8_t id = 1; id <= 40; id++)
        n_asked += ask(&w, id) != RECORDS_NOT_ASKED;
    assert_true(n_asked > 0 && n_asked < 40); /* those of the first packet are silent */
    i = 0;
    assert_false(discovery_query_write(table, 3, 2000, &i, &w)); /* not known there */
    assert_int_equal(ask(&w, 1), RECORDS_ASKED_SHARED);
    i = 0;
    assert_false(discovery_query_write(table, 2, 70000, &i, &w)); /* known too long ago */
    assert_int_equal(ask(&w, 1), RECORDS_ASKED_SHARED);
}

static void test_names_of_people(void **state)
{
    (void)state;
    struct discovery_records r;
    struct discovery_options o = options_of(5);
    static const char *const names[] = {"", "a\nb", "\xff", "a.b c",
                                        "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
                                        "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
                                        "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"
                                        "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9"};
    static const char *const shown[] = {"node", "node", "node", "a.b c"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        snprintf(o.self.name, sizeof(o.self.name), "%s", names[i]);
        discovery_records_init(&r, &o, 0);
        assert_string_equal(r.info.name, i < 4 ? shown[i] : names[i]);
        assert_true(r.instance[0].bytes[0] <= DNS_LABEL_BYTES_MAX);
        assert_true(
            discovery_text_is_clean((char *)r.instance[0].bytes + 1, r.instance[0].bytes[0]));
    }
}

/* ---- two on loopback ---- */

static struct discovery *pair[2];
static uint32_t n_found, n_closed;
static uv_timer_t limit;

static void pair_closed(void *arg)
{
    (void)arg;
    n_closed++;
}

static void pair_found(void *arg, const struct discovery_peer *p)
{
    const uint8_t *other = arg;
    if (p->info.id.bytes[0] != *other || p->info.id.bytes[1] != 0x55)
        return; /* someone else's, on this network */
    if (++n_found != 2)
        return;
    uv_close((uv_handle_t *)&limit, NULL);
    for (int i = 0; i < 2; i++) /* from inside a callback of one of them */
        discovery_close(pair[i], pair_closed, NULL);
}

static void pair_lost(void *arg, const struct node_id *id)
{
    (void)arg;
    (void)id;
}

static void on_limit(uv_timer_t *timer)
{
    uv_close((uv_handle_t *)timer, NULL);
    for (int i = 0; i < 2; i++)
        discovery_close(pair[i], pair_closed, NULL);
}

static void test_two_on_loopback(void **state)
{
    (void)state;
    static uint8_t others[2] = {2, 1};
    struct error err;
    uv_loop_t loop;
    uv_loop_init(&loop);
    for (int i = 0; i < 2; i++) {
        struct discovery_options o = options_of((uint8_t)(i + 1));
        struct discovery_events e = {.self = &others[i], .found = pair_found, .lost = pair_lost};
        o.self.id.bytes[1] = 0x55;
        o.is_on_loopback = true;
        if (discovery_open(&loop, &o, &e, &pair[i], &err) != 0) {
            print_message("port 5353 cannot be had here: %s\n", err.message);
            if (i == 1)
                discovery_close(pair[0], NULL, NULL);
            uv_run(&loop, UV_RUN_DEFAULT);
            assert_int_equal(uv_loop_close(&loop), 0);
            skip();
        }
    }
    n_found = n_closed = 0;
    uv_timer_init(&loop, &limit);
    uv_timer_start(&limit, on_limit, 10000, 0);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    assert_int_equal(n_closed, 2);
    assert_int_equal(n_found, 2);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_written_is_read),
        cmocka_unit_test(test_bad_names),
        cmocka_unit_test(test_writer_full),
        TEST(test_found_and_lost),
        TEST(test_goodbye),
        TEST(test_self_is_not_found),
        TEST(test_changes),
        TEST(test_two_interfaces),
        TEST(test_renamed),
        TEST(test_limits),
        cmocka_unit_test(test_questions),
        TEST(test_known_answers),
        cmocka_unit_test(test_names_of_people),
        cmocka_unit_test(test_two_on_loopback),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
