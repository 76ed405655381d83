/* Invites, on both sides, and the proofs that they and the cluster's secret are used for. */
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "mesh/internal.h"

#include <openssl/crypto.h>
#include <openssl/hmac.h>
#include <stdio.h>
#include <string.h>

enum { VALID_S_MAX = 7 * 24 * 3600 };

static uint64_t wall_ms(void)
{
    return clock_wall_ns() / 1000000;
}

int members_compute_proof(const struct mesh_link *l, const void *token, size_t len, bool is_dialler,
                          uint8_t ret_mac[32])
{
    /* Bound to this connection, to the role, and to both keys: good for nothing elsewhere. */
    uint8_t text[24 + 32 + 32 + 32] = "shoal mesh proof";
    const uint8_t *own = l->mesh->options.identity->key;
    bool is_own = is_dialler == l->is_dialled;
    unsigned mac_len = 32;
    text[23] = is_dialler ? 1 : 2;
    int rc = channel_export(&l->channel, text + 24);
    memcpy(text + 56, is_own ? own : l->key, 32);
    memcpy(text + 88, is_own ? l->key : own, 32);
    if (rc == 0 &&
        HMAC(EVP_sha256(), token, (int)len, text, sizeof(text), ret_mac, &mac_len) == NULL)
        rc = E_NOMEM;
    OPENSSL_cleanse(text, sizeof(text));
    return rc;
}

/* ---- given here ---- */

static void add_address(struct invite_line *line, const char *host, uint16_t port)
{
    struct mesh_address *a = &line->address[line->n_addresses];
    if (line->n_addresses == INVITE_ADDRESSES_MAX)
        return;
    snprintf(a->host, sizeof(a->host), "%s", host);
    a->port = port;
    line->n_addresses++;
}

/* Where this node listens; all its interfaces when it listens on all of them. Link-local addresses
 * are left out: they say nothing without the reader's interface. */
static void list_addresses(const struct mesh *m, struct invite_line *line)
{
    const char *host = m->options.listen.host;
    bool is_any_v6 = strcmp(host, "::") == 0, is_any = is_any_v6 || strcmp(host, "0.0.0.0") == 0;
    uv_interface_address_t *interfaces = NULL;
    int n = 0;
    if (!is_any) {
        add_address(line, host, m->port);
        return;
    }
    if (uv_interface_addresses(&interfaces, &n) != 0)
        n = 0;
    for (int i = 0; i < n; i++) {
        char text[64];
        const uv_interface_address_t *a = &interfaces[i];
        bool is_v6 = a->address.address4.sin_family == AF_INET6;
        if (a->is_internal || (is_v6 && !is_any_v6))
            continue;
        if (is_v6)
            uv_ip6_name(&a->address.address6, text, sizeof(text));
        else
            uv_ip4_name(&a->address.address4, text, sizeof(text));
        if (strncmp(text, "fe80:", 5) != 0 && strncmp(text, "169.254.", 8) != 0)
            add_address(line, text, m->port);
    }
    uv_free_interface_addresses(interfaces, n);
    if (line->n_addresses == 0)
        add_address(line, is_any_v6 ? "::1" : "127.0.0.1", m->port);
}

int mesh_invite(struct mesh *m, uint32_t valid_s, char ret_line[MESH_INVITE_LINE_BYTES],
                struct error *err)
{
    struct invite_line line = {.id = m->options.identity->id};
    struct invite invite = {.is_given = true};
    if (valid_s == 0 || valid_s > VALID_S_MAX)
        return error_set(err, E_LIMIT, "an invite is valid for 1 to %d seconds, not %u",
                         VALID_S_MAX, valid_s);
    int rc = rng_system(line.token, sizeof(line.token));
    if (rc != 0)
        return error_set(err, rc, "the system gives no random numbers for an invite");
    list_addresses(m, &line);
    rc = invite_line_format(&line, ret_line, MESH_INVITE_LINE_BYTES);
    if (rc != 0)
        return error_set(err, rc, "too many addresses for an invite");
    memcpy(invite.token, line.token, sizeof(invite.token));
    invite.until_ms = uv_now(m->loop) + (uint64_t)valid_s * 1000;
    invite.until_wall_ms = wall_ms() + (uint64_t)valid_s * 1000;
    m->invites[m->n_invites++ % MESH_INVITES_MAX] = invite;
    return 0;
}

struct invite *members_find_invite(struct mesh_link *l, const uint8_t proof[32],
                                   enum mesh_refusal *ret_refusal)
{
    struct mesh *m = l->mesh;
    uint64_t now_ms = uv_now(m->loop), now_wall_ms = wall_ms();
    *ret_refusal = MESH_REFUSED_INVITE_UNKNOWN;
    for (uint32_t k = 0; k < MESH_INVITES_MAX; k++) {
        struct invite *i = &m->invites[k];
        uint8_t expected[32];
        if (!i->is_given || members_compute_proof(l, i->token, 16, true, expected) != 0 ||
            CRYPTO_memcmp(expected, proof, sizeof(expected)) != 0)
            continue;
        if (now_ms >= i->until_ms || now_wall_ms >= i->until_wall_ms)
            *ret_refusal = MESH_REFUSED_INVITE_EXPIRED;
        /* The same node may come again: the answer may have been lost. */
        else if (i->is_used && !node_id_equal(&i->used_by, &l->hello.id))
            *ret_refusal = MESH_REFUSED_INVITE_USED;
        else
            return i;
        return NULL;
    }
    return NULL;
}

/* ---- used here ---- */

void members_end_joining(struct mesh *m, const struct mesh_link *l, int code, const char *reason)
{
    struct joining *j = &m->joining;
    struct mesh_join_result result = {.is_invite = true, .id = j->line.id};
    if (!j->is_active)
        return;
    j->is_active = false;
    j->link = NULL;
    j->n_links = 0;
    for (struct mesh_link *o = m->links; o != NULL; o = o->next) {
        if (!o->is_joining)
            continue;
        o->is_joining = false;
        if (o != l)
            mesh_link_close(o, "the invite is not used any more");
    }
    OPENSSL_cleanse(j->line.token, sizeof(j->line.token));
    if (l != NULL)
        memcpy(result.name, l->hello.name, sizeof(result.name));
    if (code != 0) {
        error_set(&result.error, code, "%s", reason);
        log_warn("mesh", "the invite could not be used: %s", reason);
    }
    if (m->events.join_result != NULL)
        m->events.join_result(m->events.self, &result);
}

int mesh_join(struct mesh *m, const char *line, struct error *err)
{
    struct joining *j = &m->joining;
    struct invite_line parsed;
    if (j->is_active)
        return error_set(err, E_BUSY, "another invite is being used: try again in %d s",
                         2 * MESH_GREETING_MS / 1000);
    int rc = invite_line_parse(line, &parsed, err);
    if (rc != 0)
        return rc;
    if (node_id_equal(&parsed.id, &m->options.identity->id))
        return error_set(err, E_INVALID,
                         "the invite is from this node itself: use it on the new one");
    *j = (struct joining){.is_active = true, .line = parsed};
    for (uint32_t i = 0; i < parsed.n_addresses; i++) {
        struct mesh_link *l = link_new(m, true);
        if (l == NULL)
            break;
        l->is_joining = true;
        j->n_links++;
        link_dial(l, &parsed.address[i]);
    }
    if (j->n_links == 0) {
        j->is_active = false;
        return error_set(err, E_NOMEM, "out of memory for a link to the inviter");
    }
    return 0;
}
