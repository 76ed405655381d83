/* How nodes come into a cluster and out of it: invites, requests that people approve, revocation.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "mesh/world.h"

static void invite(struct world *w, int by, uint32_t valid_s, char line[MESH_INVITE_LINE_BYTES])
{
    struct error err = {0};
    if (mesh_invite(w->side[by].mesh, valid_s, line, &err) != 0)
        fail_msg("%s", err.message);
}

static void join(struct world *w, int index, const char *line)
{
    struct error err = {0};
    if (mesh_join(w->side[index].mesh, line, &err) != 0)
        fail_msg("%s", err.message);
}

/* ---- invites ---- */

static void test_invite(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    char line[MESH_INVITE_LINE_BYTES];
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){0});
    assert_true(mesh_is_newcomer(w->side[1].mesh));
    invite(w, 0, 60, line);
    assert_int_equal(strncmp(line, "shoal://127.0.0.1:", 18), 0);
    assert_int_equal(mesh_join(w->side[0].mesh, line, &err), E_INVALID); /* its own */
    join(w, 1, line);
    assert_int_equal(mesh_join(w->side[1].mesh, line, &err), E_BUSY);
    RUN_UNTIL(w, are_linked(w, 0, 1) && w->side[1].n_results == 1);
    assert_int_equal(w->side[1].result.error.code, 0);
    assert_true(w->side[1].result.is_invite);
    assert_string_equal(w->side[1].result.name, "side-0");
    assert_false(mesh_is_newcomer(w->side[1].mesh));

    /* For ever: in the files, with name and address; both survive a restart without the invite. */
    RUN_UNTIL(w, strstr(trusted_text(w, 0), " side-1\n") != NULL);
    RUN_UNTIL(w, strstr(trusted_text(w, 1), " side-0\n") != NULL);
    close_side(w, 1);
    RUN_UNTIL(w, w->side[0].link == NULL);
    open_side(w, 1, (struct side_options){0});
    RUN_UNTIL(w, are_linked(w, 0, 1));
}

/* One invite into the whole cluster: the other members get to know the new one. */
static void test_invite_joins_the_cluster(void **state)
{
    struct world *w = *state;
    char line[MESH_INVITE_LINE_BYTES];
    for (int i = 0; i < 4; i++)
        open_side(w, i, (struct side_options){0});
    for (int i = 1; i < 4; i++) {
        invite(w, i - 1, 60, line); /* each by another member */
        join(w, i, line);
        RUN_UNTIL(w, are_linked(w, i - 1, i));
    }
    for (int a = 0; a < 4; a++)
        for (int b = 0; b < a; b++)
            RUN_UNTIL(w, are_linked(w, a, b));
    RUN_UNTIL(w, strstr(trusted_text(w, 3), " side-0\n") != NULL);
}

static void test_invite_works_once(void **state)
{
    struct world *w = *state;
    char line[MESH_INVITE_LINE_BYTES];
    for (int i = 0; i < 3; i++)
        open_side(w, i, (struct side_options){0});
    invite(w, 0, 60, line);
    join(w, 1, line);
    RUN_UNTIL(w, are_linked(w, 0, 1));
    join(w, 2, line);
    RUN_UNTIL(w, w->side[2].n_results == 1);
    assert_int_equal(w->side[2].result.error.code, E_UNAVAILABLE);
    assert_non_null(strstr(w->side[2].result.error.message, "invite_used"));
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_INVITE_USED), 1);
    assert_false(mesh_is_trusted(w->side[0].mesh, &w->side[2].identity->id));
    assert_true(mesh_is_newcomer(w->side[2].mesh));
}

static void test_invite_expires(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    char line[MESH_INVITE_LINE_BYTES];
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){0});
    assert_int_equal(mesh_invite(w->side[0].mesh, 0, line, &err), E_LIMIT);
    assert_int_equal(mesh_invite(w->side[0].mesh, UINT32_MAX, line, &err), E_LIMIT);
    invite(w, 0, 1, line);
    run_ms(w, 1100);
    join(w, 1, line);
    RUN_UNTIL(w, w->side[1].n_results == 1);
    assert_non_null(strstr(w->side[1].result.error.message, "invite_expired"));
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_INVITE_EXPIRED), 1);
    assert_false(mesh_is_trusted(w->side[0].mesh, &w->side[1].identity->id));
}

/* A token that was never given, and one that another node gave: the inviter's key is in the line.
 */
static void test_invite_that_is_not_right(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    char line[MESH_INVITE_LINE_BYTES];
    struct invite_line parsed;
    for (int i = 0; i < 3; i++)
        open_side(w, i, (struct side_options){0});
    invite(w, 0, 60, line);
    assert_int_equal(invite_line_parse(line, &parsed, &err), 0);
    parsed.token[3] ^= 1;
    assert_int_equal(invite_line_format(&parsed, line, sizeof(line)), 0);
    join(w, 1, line);
    RUN_UNTIL(w, w->side[1].n_results == 1);
    assert_non_null(strstr(w->side[1].result.error.message, "invite_unknown"));
    assert_int_equal(n_refused(w, 0, MESH_REFUSED_INVITE_UNKNOWN), 1);

    /* Somebody else answers at that address: he does not get to see the proof. */
    parsed.token[3] ^= 1;
    parsed.address[0] = w->side[2].address;
    assert_int_equal(invite_line_format(&parsed, line, sizeof(line)), 0);
    join(w, 1, line);
    RUN_UNTIL(w, w->side[1].n_results == 2);
    assert_non_null(strstr(w->side[1].result.error.message, "not the node"));
    assert_int_equal(n_refused(w, 1, MESH_REFUSED_OTHER_NODE), 1);

    /* Nobody answers there; another address of the line works. */
    parsed.address[1] = parsed.address[0];
    parsed.address[0] = w->side[0].address;
    parsed.address[2] = (struct mesh_address){.host = "127.0.0.1", .port = 1};
    parsed.n_addresses = 3;
    assert_int_equal(invite_line_format(&parsed, line, sizeof(line)), 0);
    join(w, 1, line);
    RUN_UNTIL(w, w->side[1].n_results == 3 && are_linked(w, 0, 1));
    assert_int_equal(w->side[1].result.error.code, 0);
    assert_int_equal(mesh_join(w->side[1].mesh, "shoal://nonsense", &err), E_INVALID);
}

/* ---- requests ---- */

static void test_approved_on_both_sides(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    struct mesh_join_request r;
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, w->side[0].n_requests == 1 && w->side[1].n_requests == 1);
    assert_string_equal(w->side[0].request.code, w->side[1].request.code);
    assert_int_equal(strspn(w->side[0].request.code, "0123456789"), 6);
    assert_string_equal(w->side[0].request.name, "side-1");
    assert_string_equal(w->side[0].request.address.host, "127.0.0.1");
    assert_true(mesh_request_at(w->side[0].mesh, 0, &r));
    assert_false(mesh_request_at(w->side[0].mesh, 1, &r));
    assert_int_equal(mesh_approve(w->side[0].mesh, "none", &err), E_NOTFOUND);

    assert_int_equal(mesh_approve(w->side[0].mesh, r.code, &err), 0);
    run_ms(w, 500);
    assert_int_equal(w->side[0].n_up + w->side[1].n_up, 0); /* one is not enough */
    assert_true(mesh_request_at(w->side[1].mesh, 0, &r));
    assert_true(r.is_approved_there && !r.is_approved_here);
    assert_false(mesh_is_trusted(w->side[0].mesh, &w->side[1].identity->id));

    assert_int_equal(mesh_approve(w->side[1].mesh, r.code, &err), 0);
    RUN_UNTIL(w, are_linked(w, 0, 1));
    assert_int_equal(w->side[0].n_results, 1);
    assert_int_equal(w->side[0].result.error.code, 0);
    assert_int_equal(w->side[1].n_results, 1);
    assert_false(mesh_request_at(w->side[0].mesh, 0, &r));
    RUN_UNTIL(w, strstr(trusted_text(w, 0), " side-1\n") != NULL);
}

/* A newcomer that may be adopted needs no person; it finds the whole cluster. */
static void test_adopted(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    trust_each_other(w, 0, 1);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    open_side(w, 2, (struct side_options){.is_adoptable = true});
    mesh_learn(w->side[2].mesh, &w->side[0].identity->id, &w->side[0].address);
    mesh_learn(w->side[2].mesh, NULL, &w->side[1].address);
    RUN_UNTIL(w, w->side[0].n_requests == 1 && w->side[1].n_requests == 1);
    assert_true(w->side[0].request.is_newcomer);
    assert_string_not_equal(w->side[0].request.code, w->side[1].request.code);
    assert_int_equal(mesh_approve(w->side[1].mesh, w->side[1].request.code, &err), 0);
    RUN_UNTIL(w, are_linked(w, 1, 2) && are_linked(w, 0, 2));
    struct mesh_join_request r;
    assert_false(mesh_request_at(w->side[2].mesh, 0, &r));
    assert_false(mesh_request_at(w->side[0].mesh, 0, &r));
}

/* With two clusters in sight nobody but a person at the newcomer can say which is meant. */
static void test_not_adopted_between_two_clusters(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    trust_each_other(w, 0, 1);
    trust_each_other(w, 2, 3);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 2, (struct side_options){0});
    open_side(w, 4, (struct side_options){.is_adoptable = true});
    mesh_learn(w->side[4].mesh, NULL, &w->side[0].address);
    mesh_learn(w->side[4].mesh, NULL, &w->side[2].address);
    RUN_UNTIL(w, w->side[0].n_requests == 1 && w->side[2].n_requests == 1);
    assert_int_equal(mesh_approve(w->side[2].mesh, w->side[2].request.code, &err), 0);
    run_ms(w, 600);
    assert_int_equal(w->side[4].n_up, 0);
    assert_int_equal(mesh_approve(w->side[4].mesh, w->side[2].request.code, &err), 0);
    RUN_UNTIL(w, are_linked(w, 2, 4));
    assert_false(mesh_is_trusted(w->side[4].mesh, &w->side[0].identity->id));
}

/* Two newcomers that find each other, one of them at several addresses: one request, one code. */
static void test_one_request_for_each_node(void **state)
{
    struct world *w = *state;
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    struct mesh_address other = {.host = "127.0.0.2", .port = w->side[0].address.port};
    struct mesh_address third = {.host = "127.0.0.3", .port = w->side[0].address.port};
    close_side(w, 0); /* again, on all addresses */
    struct mesh_options o = {.listen = {.host = "0.0.0.0", .port = other.port},
                             .identity = w->side[0].identity,
                             .data_dir = w->side[0].dir,
                             .self = {.name = "side-0"}};
    struct mesh_events events = {.self = &w->side[0],
                                 .link_up = on_up,
                                 .link_down = on_down,
                                 .message = on_message,
                                 .join_requested = on_requested};
    struct error err = {0};
    assert_int_equal(mesh_open(&w->loop, &o, &events, &w->side[0].mesh, &err), 0);
    mesh_learn(w->side[1].mesh, NULL, &other);
    mesh_learn(w->side[1].mesh, NULL, &third);
    mesh_learn(w->side[0].mesh, NULL, &w->side[1].address);
    run_ms(w, 2500);
    /* Both may have dialled at once: then the first code is replaced, but not again and again. */
    assert_in_range(w->side[0].n_requests, 1, 2);
    assert_in_range(w->side[1].n_requests, 1, 2);
    struct mesh_join_request a, b;
    assert_true(mesh_request_at(w->side[0].mesh, 0, &a));
    assert_true(mesh_request_at(w->side[1].mesh, 0, &b));
    assert_string_equal(a.code, b.code);
    assert_false(mesh_request_at(w->side[0].mesh, 1, &a));
    assert_false(mesh_request_at(w->side[1].mesh, 1, &b));
}

static void test_denied(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1, .is_adoptable = true});
    RUN_UNTIL(w, w->side[0].n_requests == 1 && w->side[1].n_requests == 1);
    assert_int_equal(mesh_deny(w->side[0].mesh, w->side[0].request.code, &err), 0);
    RUN_UNTIL(w, w->side[1].n_results == 1 && w->side[0].n_results == 1);
    assert_int_equal(w->side[0].result.error.code, E_CANCELLED);
    assert_non_null(strstr(w->side[1].result.error.message, "denied"));
    RUN_UNTIL(w, n_refused(w, 0, MESH_REFUSED_DENIED) >= 2); /* it asks again and is not shown */
    assert_int_equal(w->side[0].n_requests, 1);
}

/* Members of two clusters have nothing to ask each other. */
static void test_two_clusters(void **state)
{
    struct world *w = *state;
    trust_each_other(w, 0, 2);
    trust_each_other(w, 1, 3);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, n_refused(w, 0, MESH_REFUSED_UNINVITED) >= 1);
    assert_int_equal(w->side[0].n_requests + w->side[0].n_up, 0);
}

/* A cluster that wants no requests. */
static void test_closed(void **state)
{
    struct world *w = *state;
    open_side(w, 0, (struct side_options){.is_closed = true});
    open_side(w, 1, (struct side_options){.peer = 1, .is_adoptable = true});
    RUN_UNTIL(
        w, n_refused(w, 0, MESH_REFUSED_UNINVITED) + n_refused(w, 1, MESH_REFUSED_UNINVITED) >= 1);
    assert_int_equal(w->side[0].n_requests + w->side[1].n_requests, 0);
}

/* ---- revocation ---- */

static void test_revoked(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    for (int a = 0; a < 3; a++)
        for (int b = 0; b < a; b++)
            trust_each_other(w, a, b);
    open_side(w, 0, (struct side_options){0});
    open_side(w, 1, (struct side_options){.peer = 1});
    open_side(w, 2, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1) && are_linked(w, 0, 2) && are_linked(w, 1, 2));
    const struct node_id *id = &w->side[2].identity->id;
    assert_int_equal(mesh_revoke(w->side[0].mesh, &w->side[0].identity->id, &err), E_INVALID);
    assert_int_equal(mesh_revoke(w->side[0].mesh, id, &err), 0);
    RUN_UNTIL(w, !has_link(w, 0, 2) && !has_link(w, 1, 2)); /* the other member has heard */
    RUN_UNTIL(w, n_refused(w, 0, MESH_REFUSED_REVOKED) + n_refused(w, 1, MESH_REFUSED_REVOKED) > 0);
    assert_true(are_linked(w, 0, 1));

    /* Not by an invite either, nor by hearsay, nor after a restart. */
    char line[MESH_INVITE_LINE_BYTES];
    invite(w, 0, 60, line);
    join(w, 2, line);
    RUN_UNTIL(w, w->side[2].n_results == 1);
    assert_non_null(strstr(w->side[2].result.error.message, "revoked"));
    RUN_UNTIL(w, strstr(trusted_text(w, 1), "revoked ") != NULL);
    close_side(w, 1);
    open_side(w, 1, (struct side_options){0});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    assert_false(mesh_is_trusted(w->side[1].mesh, id));
    run_ms(w, 700);
    assert_false(has_link(w, 1, 2) || has_link(w, 0, 2));
}

/* A member that was away and still trusts a revoked key is told, and tells nobody. */
static void test_revoked_while_away(void **state)
{
    struct world *w = *state;
    struct error err = {0};
    trust_each_other(w, 0, 1);
    trust_side(w, 1, 2);
    open_side(w, 0, (struct side_options){0});
    assert_int_equal(mesh_revoke(w->side[0].mesh, &w->side[2].identity->id, &err), 0);
    open_side(w, 1, (struct side_options){.peer = 1});
    RUN_UNTIL(w, are_linked(w, 0, 1));
    RUN_UNTIL(w, !mesh_is_trusted(w->side[1].mesh, &w->side[2].identity->id));
    run_ms(w, 300);
    assert_false(mesh_is_trusted(w->side[0].mesh, &w->side[2].identity->id));
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(test_invite),
        TEST(test_invite_joins_the_cluster),
        TEST(test_invite_works_once),
        TEST(test_invite_expires),
        TEST(test_invite_that_is_not_right),
        TEST(test_approved_on_both_sides),
        TEST(test_adopted),
        TEST(test_not_adopted_between_two_clusters),
        TEST(test_one_request_for_each_node),
        TEST(test_denied),
        TEST(test_two_clusters),
        TEST(test_closed),
        TEST(test_revoked),
        TEST(test_revoked_while_away),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
