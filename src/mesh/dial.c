/* Addresses to keep links to: configured, remembered, told by members, found by discovery. */
#include "base/log.h"
#include "mesh/internal.h"

#include <string.h>

enum { LEARNED_FAILURES_MAX = 5 };

static bool is_linked(const struct mesh *m, const struct dial *d)
{
    return d->is_self || (d->has_id && mesh_find(m, &d->id) != NULL);
}

/* A request to join that waits is as good as a link: another one would only change the code. */
static bool is_asking(const struct mesh *m, const struct dial *d)
{
    for (const struct mesh_link *l = m->links; l != NULL; l = l->next)
        if (l->phase == LINK_ASKING && d->has_id && node_id_equal(&l->hello.id, &d->id))
            return true;
    return false;
}

uint32_t mesh_n_missing(const struct mesh *m)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < m->n_dials; i++)
        n += m->dials[i].is_static && !is_linked(m, &m->dials[i]);
    return n;
}

struct dial *dial_find(struct mesh *m, const struct mesh_link *l)
{
    for (uint32_t i = 0; i < m->n_dials; i++)
        if (m->dials[i].link == l)
            return &m->dials[i];
    return NULL;
}

static struct dial *find_address(struct mesh *m, const struct mesh_address *a)
{
    for (uint32_t i = 0; i < m->n_dials; i++)
        if (m->dials[i].address.port == a->port && strcmp(m->dials[i].address.host, a->host) == 0)
            return &m->dials[i];
    return NULL;
}

/* An address that is worth dialling for ever: discovery's word for whose it is does not count. */
static bool is_lasting(struct mesh *m, const struct dial *d)
{
    return d->is_static || (d->is_known && members_trust_key(m, &d->id));
}

/* Hints come from anybody: the one that has failed most makes room. */
static struct dial *find_room(struct mesh *m)
{
    struct dial *worst = NULL;
    if (m->n_dials < sizeof(m->dials) / sizeof(m->dials[0]))
        return &m->dials[m->n_dials++];
    for (uint32_t i = 0; i < m->n_dials; i++) {
        struct dial *d = &m->dials[i];
        if (d->link == NULL && !is_lasting(m, d) && !is_linked(m, d) &&
            (worst == NULL || d->n_failed > worst->n_failed))
            worst = d;
    }
    return worst;
}

struct dial *dial_add(struct mesh *m, const struct mesh_address *address)
{
    struct dial *d = find_address(m, address);
    if (d != NULL)
        return d;
    d = find_room(m);
    if (d != NULL)
        *d = (struct dial){.address = *address, .backoff_ms = MESH_DIAL_MS_MIN};
    return d;
}

void dial_learn(struct mesh *m, const struct node_id *id, const struct mesh_address *address,
                bool is_known)
{
    bool has_id = id != NULL && !node_id_is_none(id);
    bool is_trusted = has_id && members_trust_key(m, id);
    struct dial *d = find_address(m, address);
    if (d != NULL && is_known && !d->is_known) {
        d->has_id = d->is_known = true;
        d->id = *id;
    }
    if (address->port == 0 || m->is_closing || d != NULL)
        return;
    if (has_id && (node_id_equal(id, &m->options.identity->id) || mesh_find(m, id) != NULL ||
                   members_is_revoked(m, id)))
        return;
    /* A stranger that wants to join dials itself; two without a cluster find each other. */
    if (!is_trusted && !mesh_is_newcomer(m) && m->options.secret == NULL)
        return;
    d = dial_add(m, address);
    if (d == NULL || !has_id)
        return;
    d->has_id = true;
    d->is_known = is_known;
    d->id = *id;
    /* Both sides hear of each other at about the same time: the lower id goes first. */
    bool we_are_lower = node_id_compare(&m->options.identity->id, id) < 0;
    d->next_ms = uv_now(m->loop) + (we_are_lower ? 0 : 4 * MESH_TICK_MS);
}

void mesh_learn(struct mesh *m, const struct node_id *id, const struct mesh_address *address)
{
    dial_learn(m, id, address, false);
}

void dial_hurry(struct mesh *m, const struct node_id *id)
{
    for (uint32_t i = 0; i < m->n_dials; i++) {
        struct dial *d = &m->dials[i];
        if (!d->has_id || !node_id_equal(&d->id, id))
            continue;
        d->n_failed = 0;
        d->backoff_ms = MESH_DIAL_MS_MIN;
        d->next_ms = uv_now(m->loop);
    }
}

void dial_note_key(struct mesh *m, const struct mesh_link *l)
{
    struct dial *d = dial_find(m, l);
    if (d == NULL)
        return;
    d->has_id = d->is_known = true;
    d->id = l->hello.id;
    d->is_self = node_id_equal(&d->id, &m->options.identity->id);
}

void dial_link_gone(struct mesh *m, struct mesh_link *l)
{
    struct dial *d = dial_find(m, l);
    if (d == NULL)
        return;
    d->link = NULL;
    if (l->is_announced)
        d->backoff_ms = MESH_DIAL_MS_MIN;
    if (l->is_announced || l->pairing != NULL)
        d->n_failed = 0;
    d->next_ms = uv_now(m->loop) + d->backoff_ms;
    d->backoff_ms = d->backoff_ms * 2 < MESH_DIAL_MS_MAX ? d->backoff_ms * 2 : MESH_DIAL_MS_MAX;
    if (!l->is_member && !l->is_second && l->pairing == NULL && d->n_failed++ == 0 &&
        !m->is_closing && !d->is_self)
        log_info("mesh", "address=%s port=%u no link: %s -> will try again", d->address.host,
                 d->address.port, l->reason);
}

static void dial_now(struct mesh *m, struct dial *d)
{
    struct mesh_link *l = link_new(m, true);
    if (l == NULL)
        return;
    d->link = l;
    link_dial(l, &d->address);
}

void dial_tick(struct mesh *m, uint64_t now_ms)
{
    for (uint32_t i = 0; i < m->n_dials;) {
        struct dial *d = &m->dials[i];
        bool is_worn = d->link == NULL && d->n_failed > LEARNED_FAILURES_MAX && !is_lasting(m, d);
        if (is_worn) {
            *d = m->dials[--m->n_dials];
            continue;
        }
        if (d->link == NULL && now_ms >= d->next_ms && !is_linked(m, d) && !is_asking(m, d) &&
            !(d->has_id && members_is_revoked(m, &d->id)))
            dial_now(m, d);
        i++;
    }
}
