/* The file of trusted keys, the line of an invite, addresses; and the identity's file. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mesh/world.h"

#define KEY "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
#define ID  "0123456789abcdef0123456789abcdef"

static int parse(const char *text, struct trust *t, struct error *err)
{
    memset(t, 0, sizeof(*t));
    return trust_parse(t, text, strlen(text), "trusted", err);
}

static void test_trusted(void **state)
{
    (void)state;
    static const char text[] = "# a comment\n"
                               "\n"
                               "trusted " KEY " 2026-01-31 [2001:db8::1]:8421 a laptop \xC3\xA9\n"
                               "revoked " ID " 2026-02-01 old one\n"
                               "trusted ff" KEY;
    struct error err = {0};
    struct trust *t = calloc(1, sizeof(*t));
    struct buf b;
    assert_non_null(t);
    assert_int_equal(parse(text, t, &err), E_FORMAT);
    assert_non_null(strstr(err.message, "trusted:5: "));
    memset(t, 0, sizeof(*t));
    assert_int_equal(trust_parse(t, text, (size_t)(strstr(text, "trusted ff") - text), "x", &err),
                     0);
    assert_int_equal(t->n, 2);
    assert_int_equal(t->n_trusted, 1);
    assert_string_equal(t->entry[0].name, "a laptop \xC3\xA9");
    assert_string_equal(t->entry[0].address.host, "2001:db8::1");
    assert_int_equal(t->entry[0].address.port, 8421);
    assert_true(t->entry[1].is_revoked);

    /* A revoked key stays revoked; a temporary one is not written. */
    struct node_id id = t->entry[0].id;
    uint8_t key[32], other[32] = {9};
    memcpy(key, t->entry[0].key, sizeof(key));
    assert_int_equal(trust_add(t, key, "again", "2026-03-01", false), 0);
    assert_int_equal(trust_revoke(t, &id, "2026-03-01"), 1);
    assert_int_equal(trust_revoke(t, &id, "2026-03-01"), 0);
    assert_int_equal(trust_add(t, key, "again", "2026-03-01", false), E_UNAVAILABLE);
    assert_int_equal(trust_add(t, other, "other", "2026-03-01", true), 1);
    assert_int_equal(t->n_trusted, 1);
    buf_init(&b, 4096);
    assert_int_equal(trust_format(t, &b), 0);
    assert_null(strstr(b.data, "trusted 09"));
    assert_int_equal(trust_add(t, other, "other", "2026-03-01", false), 1);
    buf_reset(&b);
    assert_int_equal(trust_format(t, &b), 0);
    assert_non_null(strstr(b.data, "trusted 0900000000"));
    assert_non_null(strstr(b.data, " 2026-03-01 - other\n"));
    struct trust *back = calloc(1, sizeof(*back));
    assert_non_null(back);
    assert_int_equal(trust_parse(back, b.data, b.len, "x", &err), 0);
    assert_int_equal(back->n, 3);
    buf_done(&b);
    free(back);
    free(t);
}

static void test_trusted_refused(void **state)
{
    (void)state;
    static const char *const lines[] = {
        "trusted",
        "trusted " KEY,
        "trusted " KEY " 2026-01-31",
        "trusted " KEY " 2026-1-31 - a",
        "trusted " KEY " 2026-01-31 localhost:1 a",
        "trusted " KEY " 2026-01-31 - a\x1b[2J",
        "trusted " KEY " 2026-01-31 - \xff",
        "trusted " KEY
        " 2026-01-31 - 1234567890123456789012345678901234567890123456789012345678901234",
        "trusted " ID " 2026-01-31 - a",
        "trusted  " KEY " 2026-01-31 - a",
        "Trusted " KEY " 2026-01-31 - a",
        "revoked " KEY " 2026-01-31 a",
        "revoked 0123456789ABCDEF0123456789abcdef 2026-01-31 a",
        "revoked " ID " 2026-01-31 a\nrevoked " ID " 2026-01-31 b",
        " # not at the beginning",
    };
    struct trust *t = calloc(1, sizeof(*t));
    assert_non_null(t);
    for (size_t i = 0; i < sizeof(lines) / sizeof(lines[0]); i++) {
        struct error err = {0};
        if (parse(lines[i], t, &err) != E_FORMAT)
            fail_msg("taken: %s", lines[i]);
        assert_non_null(strstr(err.message, i == 13 ? "trusted:2: " : "trusted:1: "));
    }
    free(t);
}

static void test_trusted_limit(void **state)
{
    (void)state;
    struct trust *t = calloc(1, sizeof(*t));
    struct buf b;
    struct error err = {0};
    uint8_t key[32] = {0};
    assert_non_null(t);
    for (int i = 0; i <= TRUST_TRUSTED_MAX; i++) {
        key[0] = (uint8_t)i, key[1] = (uint8_t)(i >> 8);
        assert_int_equal(trust_add(t, key, "", "2026-01-31", false),
                         i < TRUST_TRUSTED_MAX ? 1 : E_LIMIT);
    }
    /* There is room for the revoked beside. */
    struct node_id id = {{1}};
    for (int i = 0; i < TRUST_MAX - TRUST_TRUSTED_MAX; i++) {
        id.bytes[1] = (uint8_t)i, id.bytes[2] = (uint8_t)(i >> 8);
        assert_int_equal(trust_revoke(t, &id, "2026-01-31"), 1);
    }
    id.bytes[3] = 1;
    assert_int_equal(trust_revoke(t, &id, "2026-01-31"), E_LIMIT);
    buf_init(&b, 1 << 20);
    assert_int_equal(trust_format(t, &b), 0);
    memset(t, 0, sizeof(*t));
    assert_int_equal(trust_parse(t, b.data, b.len, "x", &err), 0);
    buf_append_str(&b, "trusted " KEY " 2026-01-31 - a");
    memset(t, 0, sizeof(*t));
    assert_int_equal(trust_parse(t, b.data, b.len, "x", &err), E_LIMIT);
    buf_done(&b);
    free(t);
}

static void test_invite_line(void **state)
{
    (void)state;
    struct error err = {0};
    struct invite_line i = {.id = {{1, 2}}, .token = {3}}, back;
    char text[MESH_INVITE_LINE_BYTES], padded[MESH_INVITE_LINE_BYTES + 8];
    for (int k = 0; k < INVITE_ADDRESSES_MAX; k++) {
        struct mesh_address *a = &i.address[i.n_addresses++];
        snprintf(a->host, sizeof(a->host), k % 2 == 0 ? "192.0.2.255" : "2001:db8:1:2:3:4:5:%d", k);
        a->port = (uint16_t)(65528 + k);
        assert_int_equal(invite_line_format(&i, text, sizeof(text)), 0);
        snprintf(padded, sizeof(padded), "  %s\r\n", text);
        assert_int_equal(invite_line_parse(padded, &back, &err), 0);
        assert_memory_equal(&i, &back, sizeof(i));
    }
    assert_int_equal(invite_line_format(&i, text, 200), E_LIMIT);
    /* Cut anywhere it is no invite. */
    for (size_t n = 0; n < strlen(text); n++) {
        char cut[MESH_INVITE_LINE_BYTES + 1];
        memcpy(cut, text, n);
        cut[n] = '\0';
        assert_int_equal(invite_line_parse(cut, &back, &err), E_INVALID);
    }
    static const char *const refused[] = {
        "https://192.0.2.1:1/" ID "/" ID,
        "shoal:///" ID "/" ID,
        "shoal://192.0.2.1:1,/" ID "/" ID,
        "shoal://192.0.2.1/" ID "/" ID,
        "shoal://192.0.2.1:0/" ID "/" ID,
        "shoal://192.0.2.1:65536/" ID "/" ID,
        "shoal://example.com:1/" ID "/" ID,
        "shoal://192.0.2.1:1/" ID "/" ID "0",
        "shoal://192.0.2.1:1/" ID "/" ID " more",
        "shoal://1.1.1.1:1,1.1.1.1:1,1.1.1.1:1,1.1.1.1:1,1.1.1.1:1,1.1.1.1:1,1.1.1.1:1,1.1.1.1:1,"
        "1.1.1.1:1/" ID "/" ID,
    };
    for (size_t k = 0; k < sizeof(refused) / sizeof(refused[0]); k++)
        if (invite_line_parse(refused[k], &back, &err) != E_INVALID)
            fail_msg("taken: %s", refused[k]);
}

/* ---- the identity's file ---- */

static void test_identity(void **state)
{
    struct world *w = *state;
    struct side *s = &w->side[0];
    struct mesh_identity *again = NULL;
    struct error err = {0};
    struct stat st;
    char path[128];
    side_path(s, "identity.pem", path);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(mesh_identity_load(s->dir, &again, &err), 0);
    assert_true(node_id_equal(mesh_identity_id(again), mesh_identity_id(s->identity)));
    assert_false(node_id_equal(mesh_identity_id(again), mesh_identity_id(w->side[1].identity)));
    mesh_identity_free(again);

    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(mesh_identity_load(s->dir, &again, &err), E_IO);
    assert_non_null(strstr(err.message, "chmod 600"));
    assert_int_equal(chmod(path, 0600), 0);

    FILE *f = fopen(path, "w");
    assert_non_null(f);
    fputs("-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA==\n-----END PRIVATE KEY-----\n", f);
    fclose(f);
    assert_int_equal(mesh_identity_load(s->dir, &again, &err), E_FORMAT);
    assert_non_null(strstr(err.message, path));
    assert_int_equal(mesh_identity_load("/nonexistent", &again, &err), E_IO);
    assert_non_null(strstr(err.message, "/nonexistent"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trusted),
        cmocka_unit_test(test_trusted_refused),
        cmocka_unit_test(test_trusted_limit),
        cmocka_unit_test(test_invite_line),
        cmocka_unit_test_setup_teardown(test_identity, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
