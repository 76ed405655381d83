/* From the end of the TLS handshake to a link that is up: who is let in, and how. */
#include "base/log.h"
#include "mesh/internal.h"

#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>

/*
 * Two links to one node are known as such as soon as the key is, and it is known that neither is a
 * probe. Who dials knows best which of its own is alive, and one in the other direction that is up
 * will do. Of one in each direction the one that the lower id has dialled stays, if neither has
 * got any further; what else can happen is decided by choose().
 */
static bool is_superfluous(const struct mesh_link *l)
{
    bool we_are_lower = node_id_compare(&l->mesh->options.identity->id, &l->hello.id) < 0;
    for (const struct mesh_link *o = l->mesh->links; o != NULL; o = o->next) {
        bool is_greeting = (o->phase == LINK_GREETING && (o->is_dialled || o->has_greeting)) ||
                           o->phase == LINK_ASKING;
        if (o == l || o->is_probe || !node_id_equal(&o->hello.id, &l->hello.id))
            continue;
        if (o->phase == LINK_UP && l->is_dialled)
            return true;
        if (is_greeting &&
            (o->is_dialled == l->is_dialled ? l->is_dialled : l->is_dialled != we_are_lower))
            return true;
    }
    return false;
}

static void close_second(struct mesh_link *l)
{
    l->is_second = true;
    mesh_link_close(l, "second link to the same node");
}

/*
 * Which of several links between two members is the one: only the lower id decides, before it says
 * HELLO, and the other side has no link before it has heard that. So neither side ever takes a link
 * for up that is given up the moment after because both have dialled. The first to get here wins. A
 * newer one from the other node wins over an older one from there, since that node would not have
 * dialled if it did not know the older to be dead; and so does an invite, which asks for an answer.
 */
static bool choose(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    bool is_invite = l->is_dialled ? l->told.has_invite : l->greeting.has_invite;
    if (node_id_compare(&m->options.identity->id, &l->hello.id) > 0)
        return true;
    for (struct mesh_link *o = m->links; o != NULL; o = o->next) {
        bool is_rival = o != l && o->is_member && !o->is_probe &&
                        (o->phase == LINK_GREETING || o->phase == LINK_UP) &&
                        node_id_equal(&o->hello.id, &l->hello.id);
        if (!is_rival)
            continue;
        if (!is_invite && (o->is_dialled || l->is_dialled)) {
            close_second(l);
            return false;
        }
        if (o->phase != LINK_UP) /* else it ends when this one is up */
            mesh_link_close(o, "replaced by another link to the same node");
    }
    return true;
}

void greeting_start(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    if (channel_get_key(&l->channel, l->key) != 0) {
        mesh_link_close(l, "cannot read the peer's key: out of memory");
        return;
    }
    l->has_key = true;
    l->phase = LINK_GREETING;
    identity_id_of_key(l->key, &l->hello.id);
    if (node_id_equal(&l->hello.id, &m->options.identity->id)) {
        dial_note_key(m, l);
        mesh_link_close(l, "that is this node itself");
        return;
    }
    if (members_is_revoked(m, &l->hello.id)) {
        link_refuse(l, MESH_REFUSED_REVOKED, "this node's key is revoked");
        return;
    }
    if (l->is_probe && !node_id_equal(&l->hello.id, &m->probe.id)) {
        mesh_link_close(l, "another node is there");
        return;
    }
    if (l->is_joining) {
        if (!node_id_equal(&l->hello.id, &m->joining.line.id)) {
            link_refuse(l, MESH_REFUSED_OTHER_NODE, "not the node that the invite is from");
            return;
        }
        if (m->joining.link != NULL) {
            mesh_link_close(l, "the inviter was reached at another address");
            return;
        }
        m->joining.link = l;
    } else {
        dial_note_key(m, l);
    }
    if (l->is_dialled && !l->is_joining && !l->is_probe && is_superfluous(l)) {
        close_second(l);
        return;
    }
    l->told = (struct mesh_greeting){
        .version = MESH_PROTOCOL_VERSION,
        .version_min = MESH_PROTOCOL_VERSION_MIN,
        .is_trusting = members_trust_key(m, &l->hello.id),
        .has_secret = m->options.secret != NULL,
        .has_invite = l->is_joining,
        .is_newcomer = mesh_is_newcomer(m),
        .is_closed = m->options.is_closed,
        .is_probe = l->is_probe,
    };
    LINK_SEND(l, mesh_encode_greeting, &l->told);
}

static bool is_secret_way(const struct mesh_link *l)
{
    return l->told.has_secret && l->greeting.has_secret;
}

static bool is_invite_way(const struct mesh_link *l)
{
    return l->is_dialled ? l->told.has_invite : l->greeting.has_invite;
}

static int send_proof(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct mesh_proof proof;
    int rc = is_invite_way(l)
                 ? members_compute_proof(l, m->joining.line.token, 16, l->is_dialled, proof.mac)
                 : members_compute_proof(l, m->secret_key, 32, l->is_dialled, proof.mac);
    if (rc != 0)
        return rc;
    LINK_SEND(l, mesh_encode_proof, &proof);
    return 0;
}

static int take_greeting(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    int rc = mesh_decode_greeting(m, &l->greeting, err);
    if (rc != 0)
        return rc;
    l->has_greeting = true;
    const struct mesh_greeting *t = &l->greeting;
    l->hello.version = t->version < l->told.version ? t->version : l->told.version;
    if (l->hello.version < t->version_min || l->hello.version < l->told.version_min) {
        link_refuse(l, MESH_REFUSED_VERSION,
                    "it speaks versions %u to %u of the mesh protocol, this node %d to %d: update "
                    "the older one",
                    t->version_min, t->version, MESH_PROTOCOL_VERSION_MIN, MESH_PROTOCOL_VERSION);
        return 0;
    }
    if (!l->is_dialled && t->is_probe)
        l->is_probe = true;
    if (l->is_probe) {
        if (l->told.is_trusting && t->is_trusting && link_speaks(l, MESH_VERSION_PATHS))
            probe_greeted(l);
        else
            link_refuse(l, MESH_REFUSED_UNINVITED, "a probe between nodes that are not members");
        return 0;
    }
    if (!l->is_dialled && !t->has_invite && is_superfluous(l)) {
        close_second(l);
        return 0;
    }
    if (l->told.is_trusting && t->is_trusting) {
        greeting_become_member(l);
    } else if (is_invite_way(l) || is_secret_way(l)) {
        /* The one who dials proves first: whoever is dialled gives nothing away to strangers. */
        if (l->is_dialled && send_proof(l) != 0)
            return error_set(err, E_NOMEM, "cannot make a proof: out of memory");
    } else if ((t->is_newcomer || l->told.is_newcomer) && !t->is_closed && !l->told.is_closed) {
        pairing_start(l);
    } else {
        link_refuse(l, MESH_REFUSED_UNINVITED, "%s",
                    l->told.is_trusting ? "it does not trust this node's key: invite it anew"
                    : t->is_trusting    ? "it trusts this node, but is not trusted here"
                                        : "neither a member nor invited");
    }
    return 0;
}

/* The dialler's proof. Each way says no in its own words; a right proof is answered in kind. */
static int check_dialler(struct mesh_link *l, const struct mesh_proof *proof, struct error *err)
{
    struct mesh *m = l->mesh;
    struct mesh_proof expected;
    enum mesh_refusal kind = MESH_REFUSED_INVITE_UNKNOWN;
    if (is_invite_way(l)) {
        struct invite *invite = members_find_invite(l, proof->mac, &kind);
        if (invite == NULL) {
            link_refuse(l, kind,
                        kind == MESH_REFUSED_INVITE_USED      ? "the invite was used already"
                        : kind == MESH_REFUSED_INVITE_EXPIRED ? "the invite has expired"
                                                              : "this node gave no such invite");
            return 0;
        }
        if (members_compute_proof(l, invite->token, 16, false, expected.mac) != 0)
            return error_set(err, E_NOMEM, "cannot make a proof: out of memory");
        int rc = members_add(m, l->key, "", false);
        if (rc < 0)
            return error_set(err, rc, "cannot trust another key: %s", error_text(rc));
        invite->is_used = true;
        invite->used_by = l->hello.id;
        LINK_SEND(l, mesh_encode_proof, &expected);
        greeting_become_member(l);
        return 0;
    }
    if (members_compute_proof(l, m->secret_key, 32, true, expected.mac) != 0)
        return error_set(err, E_NOMEM, "cannot check a proof: out of memory");
    if (CRYPTO_memcmp(expected.mac, proof->mac, sizeof(proof->mac)) != 0) {
        link_refuse(l, MESH_REFUSED_WRONG_SECRET, "it does not know this cluster's secret");
        return 0;
    }
    if (send_proof(l) != 0)
        return error_set(err, E_NOMEM, "cannot make a proof: out of memory");
    if (members_add(m, l->key, "", true) < 0)
        return error_set(err, E_LIMIT, "too many nodes");
    greeting_become_member(l);
    return 0;
}

static int check_acceptor(struct mesh_link *l, const struct mesh_proof *proof, struct error *err)
{
    struct mesh *m = l->mesh;
    struct mesh_proof expected;
    bool is_invite = is_invite_way(l);
    int rc = is_invite ? members_compute_proof(l, m->joining.line.token, 16, false, expected.mac)
                       : members_compute_proof(l, m->secret_key, 32, false, expected.mac);
    if (rc != 0)
        return error_set(err, E_NOMEM, "cannot check a proof: out of memory");
    if (CRYPTO_memcmp(expected.mac, proof->mac, sizeof(proof->mac)) != 0) {
        link_refuse(l, is_invite ? MESH_REFUSED_OTHER_NODE : MESH_REFUSED_WRONG_SECRET,
                    is_invite ? "it does not know the invite" : "it does not know the secret");
        return 0;
    }
    rc = members_add(m, l->key, "", !is_invite);
    if (rc < 0)
        return error_set(err, rc, "cannot trust another key: %s", error_text(rc));
    greeting_become_member(l);
    return 0;
}

static int take_proof(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct mesh_proof proof;
    int rc = mesh_decode_proof(m, &proof, err);
    if (rc != 0)
        return rc;
    l->has_proof = true;
    return l->is_dialled ? check_acceptor(l, &proof, err) : check_dialler(l, &proof, err);
}

static int take_refused(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    char text[128];
    uint8_t kind;
    int rc = mesh_decode_refused(m, &kind, err);
    if (rc != 0)
        return rc;
    snprintf(text, sizeof(text), "the other node refuses: %s",
             kind < MESH_REFUSAL_COUNT ? mesh_refusal_name((enum mesh_refusal)kind) : "unknown");
    mesh_link_close(l, text);
    return 0;
}

void greeting_become_member(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct mesh_hello hello = m->options.self;
    if (!choose(l))
        return;
    l->is_member = true;
    l->phase = LINK_GREETING;
    l->opened_ms = uv_now(m->loop); /* HELLO is due soon, however long people took */
    LINK_SEND(l, mesh_encode_hello, &hello);
}

static int take_hello(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct mesh_hello hello;
    int rc = mesh_decode_hello(m, &hello, err);
    if (rc != 0)
        return rc;
    hello.id = l->hello.id;
    hello.version = l->hello.version;
    /* A node that listens on all addresses is reached where it came from. */
    struct mesh_address *addresses[] = {&hello.api, &hello.mesh};
    for (int i = 0; i < 2; i++)
        if (strcmp(addresses[i]->host, "0.0.0.0") == 0 || strcmp(addresses[i]->host, "::") == 0)
            memcpy(addresses[i]->host, l->remote_host, sizeof(l->remote_host));
    l->hello = hello;
    if (l->is_joining)
        members_end_joining(l->mesh, l, 0, "");
    mesh_link_ready(l->mesh, l);
    l->phase = LINK_UP;
    l->is_announced = true;
    members_link_up(l);
    measure_start(l);
    paths_link_up(l);
    if (l->phase == LINK_UP)
        l->mesh->events.link_up(l->mesh->events.self, l);
    else
        l->is_announced = false;
    return 0;
}

int greeting_take(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    if (m->type == MESH_REFUSED)
        return take_refused(l, m, err);
    if (l->phase == LINK_GREETING) {
        if (m->type == MESH_GREETING && !l->has_greeting)
            return take_greeting(l, m, err);
        if (m->type == MESH_PROOF && l->has_greeting && !l->has_proof && !l->is_member &&
            (is_invite_way(l) || is_secret_way(l)))
            return take_proof(l, m, err);
        if (m->type == MESH_HELLO && l->is_member)
            return take_hello(l, m, err);
    }
    /* People may decide while a ping is under way. */
    if (m->type == MESH_PING || m->type == MESH_PONG) {
        if (l->pairing != NULL)
            return measure_take(l, m, err);
    } else if (l->phase == LINK_ASKING && m->type >= MESH_JOIN_COMMIT &&
               m->type <= MESH_JOIN_ACCEPT) {
        return pairing_take(l, m, err);
    }
    return error_set(err, E_PROTOCOL, "message of type %d before the greeting is over", m->type);
}
