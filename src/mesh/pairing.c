/*
 * Strangers, of whom one belongs to no cluster, that wait until people let them join. Both nodes
 * show the same 6 digits; who sees the same on both knows that nobody sits between them.
 *
 * Why that holds. A man in the middle has a connection to each side and his own key on both. He
 * needs the two codes to be equal. A code is a hash of both keys and of a random nonce from each
 * side. Each side first commits to its nonce (a hash of it and the keys) and reveals it only when
 * it has the other's commitment. So he must choose his nonce of each connection before he knows the
 * honest one, and cannot try nonces until the codes match: one attempt succeeds with probability
 * 10^-6, each attempt shows a person another code, and attempts are limited. Were there no
 * commitment, he could try a million nonces in a second. The committer's key stands first in the
 * hash, so that a commitment cannot be sent back to whom it came from.
 */
#include "base/log.h"
#include "base/rng.h"
#include "mesh/internal.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    CREDIT_MAX = 32, /* requests at once; one more each CREDIT_MS */
    CREDIT_MS = 10000,
    BROKEN_OFF_MAX = 10, /* in BROKEN_OFF_MS */
    BROKEN_OFF_MS = 3600000,
    DENIAL_MS = 600000,
};

static void hash_parts(const char *label, const uint8_t *parts[4], uint32_t n, uint8_t ret[32])
{
    uint8_t text[32 + 4 * 32] = {0}; /* the label fills its place with zeros */
    snprintf((char *)text, 32, "%s", label);
    for (uint32_t i = 0; i < n; i++)
        memcpy(text + 32 + (size_t)32 * i, parts[i], 32);
    SHA256(text, 32 + (size_t)32 * n, ret);
}

static void compute_commit(const uint8_t committer[32], const uint8_t other[32],
                           const uint8_t nonce[32], uint8_t ret[32])
{
    hash_parts("shoal join commit", (const uint8_t *[4]){committer, other, nonce}, 3, ret);
}

static void compute_code(const struct mesh_link *l, const uint8_t their_nonce[32], char ret[7])
{
    const uint8_t *own = l->mesh->options.identity->key, *nonce = l->pairing->nonce;
    uint8_t digest[32];
    uint64_t v = 0;
    hash_parts("shoal join code",
               l->is_dialled ? (const uint8_t *[4]){own, l->key, nonce, their_nonce}
                             : (const uint8_t *[4]){l->key, own, their_nonce, nonce},
               4, digest);
    for (int i = 0; i < 8; i++)
        v = v << 8 | digest[i];
    snprintf(ret, 7, "%06u", (unsigned)(v % 1000000));
}

/* ---- how many may wait ---- */

static bool take_credit(struct mesh *m)
{
    uint64_t n = (uv_now(m->loop) - m->request_credit_ms) / CREDIT_MS;
    if (m->request_credit + n >= CREDIT_MAX) {
        m->request_credit = CREDIT_MAX;
        m->request_credit_ms = uv_now(m->loop);
    } else {
        m->request_credit += (uint32_t)n;
        m->request_credit_ms += n * CREDIT_MS;
    }
    if (m->request_credit == 0)
        return false;
    m->request_credit--;
    return true;
}

static bool is_suspicious(struct mesh *m)
{
    uint64_t now_ms = uv_now(m->loop);
    if (m->n_broken_off > 0 && now_ms - m->broken_off_ms >= BROKEN_OFF_MS)
        m->n_broken_off = 0;
    return m->n_broken_off >= BROKEN_OFF_MAX;
}

/* The other side has seen our nonce and not shown its own. Of two links between the same nodes one
 * ends in that way without a fault. */
static void note_broken_off(struct mesh *m, const struct mesh_link *l)
{
    for (const struct mesh_link *o = m->links; o != NULL; o = o->next)
        if (o != l && o->has_key && o->phase != LINK_CLOSING &&
            node_id_equal(&o->hello.id, &l->hello.id))
            return;
    if (m->n_broken_off++ == 0)
        m->broken_off_ms = uv_now(m->loop);
    if (m->n_broken_off == BROKEN_OFF_MAX)
        log_warn("mesh",
                 "address=%s %d requests to join were broken off at the moment when that helps to "
                 "guess a code -> no requests for an hour; invites work",
                 l->remote_host, BROKEN_OFF_MAX);
}

static bool is_denied(struct mesh *m, const struct node_id *id)
{
    for (uint32_t i = 0; i < MESH_REQUESTS_MAX; i++)
        if (node_id_equal(&m->denials[i].id, id) && uv_now(m->loop) < m->denials[i].until_ms)
            return true;
    return false;
}

static void deny(struct mesh *m, const struct node_id *id)
{
    m->denials[m->n_denials++ % MESH_REQUESTS_MAX] =
        (struct denial){.id = *id, .until_ms = uv_now(m->loop) + DENIAL_MS};
}

/* Of two requests between the same pair both sides keep the one that the node with the lower id has
 * dialled; of two dialled by the same side the newer one, since the older may be dead. */
static bool prefers_new(const struct mesh *m, const struct mesh_link *old,
                        const struct mesh_link *new)
{
    if (old->is_dialled == new->is_dialled)
        return true;
    bool we_are_lower = node_id_compare(&m->options.identity->id, &new->hello.id) < 0;
    return new->is_dialled == we_are_lower;
}

/* One for each key. Returns false when the older one stays. */
static bool replace_same_key(struct mesh_link *l)
{
    for (struct mesh_link *o = l->mesh->links; o != NULL; o = o->next) {
        if (o == l || o->phase != LINK_ASKING || !node_id_equal(&o->hello.id, &l->hello.id))
            continue;
        if (!prefers_new(l->mesh, o, l)) {
            mesh_link_close(l, "second link to the same node");
            return false;
        }
        mesh_link_close(o, "replaced by another link to the same node");
    }
    return true;
}

/* The oldest of those who came makes room, first one from the same address: one machine cannot
 * displace everybody. Those whom we have dialled are kept, and no more are added. */
static bool make_room(struct mesh_link *l)
{
    struct mesh_link *oldest = NULL, *oldest_near = NULL;
    uint32_t n = 0, n_near = 0;
    for (struct mesh_link *o = l->mesh->links; o != NULL; o = o->next) {
        if (o == l || o->phase != LINK_ASKING)
            continue;
        n++;
        if (o->is_dialled)
            continue;
        bool is_near = strcmp(o->remote_host, l->remote_host) == 0;
        n_near += is_near;
        if (oldest == NULL || o->pairing->since_ms <= oldest->pairing->since_ms)
            oldest = o;
        if (is_near &&
            (oldest_near == NULL || o->pairing->since_ms <= oldest_near->pairing->since_ms))
            oldest_near = o;
    }
    if (l->is_dialled)
        return n < MESH_REQUESTS_MAX;
    if (n_near >= REQUESTS_ADDRESS_MAX)
        link_refuse(oldest_near, MESH_REFUSED_BUSY, "a later request from its address took over");
    else if (n >= MESH_REQUESTS_MAX && oldest != NULL)
        link_refuse(oldest, MESH_REFUSED_BUSY, "a later request took its place");
    return n < MESH_REQUESTS_MAX || oldest != NULL;
}

void pairing_start(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    if (is_denied(m, &l->hello.id)) {
        link_refuse(l, MESH_REFUSED_DENIED, "a person has denied it not long ago");
        return;
    }
    if (!replace_same_key(l))
        return;
    if (is_suspicious(m) || (!l->is_dialled && !take_credit(m))) {
        link_refuse(l, MESH_REFUSED_BUSY, "too many requests to join of late");
        return;
    }
    if (!make_room(l)) {
        mesh_link_close(l, "enough requests wait already");
        return;
    }
    struct mesh_join_commit commit = {0};
    struct pairing *p = calloc(1, sizeof(*p));
    if (p == NULL || rng_system(p->nonce, sizeof(p->nonce)) != 0) {
        free(p);
        mesh_link_close(l, "out of memory");
        return;
    }
    p->since_ms = uv_now(m->loop);
    l->pairing = p;
    l->phase = LINK_ASKING;
    snprintf(commit.name, sizeof(commit.name), "%s", m->options.self.name);
    members_get_tag(m, commit.cluster_tag);
    compute_commit(m->options.identity->key, l->key, p->nonce, commit.commit);
    measure_start(l);
    LINK_SEND(l, mesh_encode_join_commit, &commit);
}

/* ---- who decides ---- */

/* Whether a member's word is enough: this node belongs to no cluster, was told that it may be
 * adopted, and all clusters that it sees are one. That protects from mistakes among neighbours;
 * from an attacker in the same network only approval on both sides does. */
static bool is_free(const struct mesh_link *l)
{
    const struct mesh *m = l->mesh;
    if (!m->options.is_adoptable || !mesh_is_newcomer(m))
        return false;
    for (const struct mesh_link *o = m->links; o != NULL; o = o->next)
        if (o->phase == LINK_ASKING && o->pairing->has_commit && !o->greeting.is_newcomer &&
            memcmp(o->pairing->theirs.cluster_tag, l->pairing->theirs.cluster_tag, 8) != 0)
            return false;
    return true;
}

static void decide(struct mesh_link *l)
{
    struct pairing *p = l->pairing;
    const struct mesh_join_request *r = &p->request;
    bool is_theirs = r->is_approved_there || p->accepted_there;
    if (!p->accepted_here && p->has_code && is_theirs && (r->is_approved_here || is_free(l))) {
        int rc = members_add(l->mesh, l->key, p->theirs.name, false);
        if (rc < 0) {
            mesh_link_close(l, error_text(rc));
            return;
        }
        p->accepted_here = true;
        LINK_SEND(l, mesh_encode_join_accept);
    }
    if (!p->accepted_here || !p->accepted_there || l->phase != LINK_ASKING)
        return;
    struct mesh_join_result result = {.id = l->hello.id};
    p->is_over = true;
    snprintf(result.name, sizeof(result.name), "%s", p->theirs.name);
    greeting_become_member(l);
    if (l->mesh->events.join_result != NULL)
        l->mesh->events.join_result(l->mesh->events.self, &result);
}

static void announce(struct mesh_link *l)
{
    struct mesh *m = l->mesh;
    struct pairing *p = l->pairing;
    struct mesh_join_request *r = &p->request;
    char address[TEXT_ADDRESS_BYTES];
    p->is_announced = true;
    r->id = l->hello.id;
    memcpy(r->name, p->theirs.name, sizeof(r->name));
    memcpy(r->address.host, l->remote_host, sizeof(r->address.host));
    r->address.port = l->remote_port;
    r->is_newcomer = l->greeting.is_newcomer;
    address_text(&r->address, address);
    if (l->told.is_newcomer)
        log_info("mesh",
                 "peer=%s address=%s found, not in one cluster with this node yet. If it shows the "
                 "code %s, too: shoal approve %s, there%s",
                 r->name, address, r->code, r->code, m->options.is_adoptable ? "" : " and here");
    else
        log_info("mesh",
                 "peer=%s address=%s asks to join. If it shows the code %s, too: shoal approve %s",
                 r->name, address, r->code, r->code);
    if (m->events.join_requested != NULL)
        m->events.join_requested(m->events.self, r);
}

static int take_reveal(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct pairing *p = l->pairing;
    struct mesh_join_reveal reveal;
    uint8_t expected[32];
    int rc = mesh_decode_join_reveal(m, &reveal, err);
    if (rc != 0)
        return rc;
    compute_commit(l->key, l->mesh->options.identity->key, reveal.nonce, expected);
    if (CRYPTO_memcmp(expected, p->theirs.commit, sizeof(expected)) != 0)
        return error_set(err, E_PROTOCOL, "the nonce is not the one that it has committed to");
    compute_code(l, reveal.nonce, p->request.code);
    p->has_code = true;
    announce(l);
    return 0;
}

int pairing_take(struct mesh_link *l, const struct mesh_message *m, struct error *err)
{
    struct pairing *p = l->pairing;
    int rc;
    if (m->type == MESH_JOIN_COMMIT && !p->has_commit) {
        rc = mesh_decode_join_commit(m, &p->theirs, err);
        if (rc != 0)
            return rc;
        struct mesh_join_reveal reveal;
        memcpy(reveal.nonce, p->nonce, sizeof(reveal.nonce));
        p->has_commit = true;
        LINK_SEND(l, mesh_encode_join_reveal, &reveal);
        return 0;
    }
    if (m->type == MESH_JOIN_REVEAL && p->has_commit && !p->has_code)
        return take_reveal(l, m, err);
    if ((m->type != MESH_JOIN_APPROVE && m->type != MESH_JOIN_ACCEPT) || !p->has_code)
        return error_set(err, E_PROTOCOL, "request to join: message of type %d out of place",
                         m->type);
    rc = mesh_decode_empty(m, err);
    if (rc != 0)
        return rc;
    if (m->type == MESH_JOIN_APPROVE) {
        bool is_news = !p->request.is_approved_there;
        p->request.is_approved_there = true;
        if (is_news && !p->request.is_approved_here && !is_free(l))
            log_info("mesh",
                     "peer=%s was told there that code %s is right; this node waits for: shoal "
                     "approve %s",
                     p->theirs.name, p->request.code, p->request.code);
    } else if (!p->request.is_approved_here && !p->request.is_approved_there) {
        return error_set(err, E_PROTOCOL, "accepts what nobody has offered");
    } else {
        p->accepted_there = true;
    }
    decide(l);
    return 0;
}

void pairing_tick(struct mesh_link *l, uint64_t now_ms)
{
    struct pairing *p = l->pairing;
    if (now_ms - p->since_ms > MESH_REQUEST_MS)
        link_refuse(l, MESH_REFUSED_DENIED, "nobody approved it in %d s", MESH_REQUEST_MS / 1000);
    else if (!p->has_code && now_ms - p->since_ms > MESH_GREETING_MS)
        link_refuse(l, MESH_REFUSED_SLOW, "no nonce in %d ms", MESH_GREETING_MS);
    else
        decide(l); /* another cluster that was in sight may be gone */
}

void pairing_end(struct mesh_link *l)
{
    struct pairing *p = l->pairing;
    struct mesh *m = l->mesh;
    if (p == NULL)
        return;
    if (p->has_commit && !p->has_code && (l->is_closed || l->is_refused) && !m->is_closing)
        note_broken_off(m, l);
    if (p->is_announced && !p->is_over && !m->is_closing && m->events.join_result != NULL) {
        struct mesh_join_result result = {.id = l->hello.id};
        snprintf(result.name, sizeof(result.name), "%s", p->theirs.name);
        error_set(&result.error, l->is_refused ? E_CANCELLED : E_UNAVAILABLE, "%s", l->reason);
        m->events.join_result(m->events.self, &result);
    }
    free(p);
    l->pairing = NULL;
}

/* ---- for people ---- */

static bool is_open(const struct mesh_link *l)
{
    return l->phase == LINK_ASKING && l->pairing->has_code && !l->pairing->accepted_here;
}

bool mesh_request_at(const struct mesh *m, uint32_t index, struct mesh_join_request *ret)
{
    /* New links come first in the list. */
    uint32_t n = 0;
    for (const struct mesh_link *l = m->links; l != NULL; l = l->next)
        n += is_open(l);
    if (index >= n)
        return false;
    index = n - 1 - index;
    for (const struct mesh_link *l = m->links; l != NULL; l = l->next) {
        if (!is_open(l) || index-- > 0)
            continue;
        *ret = l->pairing->request;
        ret->age_ms = uv_now(m->loop) - l->pairing->since_ms;
        return true;
    }
    return false;
}

static struct mesh_link *find_by_code(struct mesh *m, const char *code, uint32_t *ret_n)
{
    struct mesh_link *found = NULL;
    *ret_n = 0;
    for (struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (is_open(l) && strcmp(l->pairing->request.code, code) == 0) {
            found = l;
            ++*ret_n;
        }
    return found;
}

int mesh_approve(struct mesh *m, const char *code, struct error *err)
{
    uint32_t n;
    struct mesh_link *l = find_by_code(m, code, &n);
    if (n == 0)
        return error_set(err, E_NOTFOUND,
                         "no request to join with code %.16s waits here: look at `shoal requests`",
                         code);
    if (n > 1)
        return error_set(err, E_BUSY,
                         "%u requests have the code %s, which chance does not explain: deny them, "
                         "and let the new node join by an invite",
                         n, code);
    struct pairing *p = l->pairing;
    if (p->request.is_approved_here)
        return 0;
    p->request.is_approved_here = true;
    log_info("mesh", "peer=%s code=%s approved here", p->theirs.name, code);
    LINK_SEND(l, mesh_encode_join_approve);
    if (l->phase == LINK_ASKING)
        decide(l);
    return 0;
}

int mesh_deny(struct mesh *m, const char *code, struct error *err)
{
    uint32_t n;
    struct mesh_link *l = find_by_code(m, code, &n);
    if (n == 0)
        return error_set(err, E_NOTFOUND, "no request to join with code %.16s waits here", code);
    for (; l != NULL; l = find_by_code(m, code, &n)) {
        deny(m, &l->hello.id);
        link_refuse(l, MESH_REFUSED_DENIED, "a person denied it");
    }
    return 0;
}
