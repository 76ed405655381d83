/* Who is silent: suspects, what others say of them, and who is gone. */
#include "cluster/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

/* ---- status ---- */

void suspicion_clear(struct cluster *c, struct peer *p, const char *why)
{
    char name[64];
    enum member_status before = p->member.status;
    p->member.status = MEMBER_UP;
    p->is_asked = false;
    membership_changed(c);
    if (before == MEMBER_GONE) {
        p->heartbeat_ms = 0;
        p->gap_mean_ms = p->gap_dev_ms = 0;
        gain_on_join(c);
    }
    bool is_new = p->member.incarnation == 0;
    cluster_trace(c, false, "peer=%s %s was=%s -> up", cluster_label(c, &p->member.id, name), why,
                  is_new ? "new" : member_status_name(before));
}

void suspicion_confirm(struct cluster *c, struct peer *p, const char *why)
{
    char name[64];
    p->member.status = MEMBER_GONE;
    p->gone_ms = c->now_ms;
    p->is_asked = false;
    p->is_live = p->is_coordinator = false;
    free(p->links);
    p->links = NULL;
    p->n_links = p->links_number = 0;
    membership_changed(c);
    cluster_trace(c, true, "peer=%s silent_ms=%llu %s -> gone",
                  cluster_label(c, &p->member.id, name), (ull)(c->now_ms - p->member.heard_ms),
                  why);
    election_on_lost(c, p);
}

/* How long this peer may be silent: its heartbeats say how evenly they come. */
static uint32_t silent_limit_ms(const struct peer *p)
{
    float limit = p->gap_mean_ms + 8 * p->gap_dev_ms;
    if (limit < CLUSTER_SILENT_MS)
        return CLUSTER_SILENT_MS;
    return limit > CLUSTER_SILENT_MS_MAX ? CLUSTER_SILENT_MS_MAX : (uint32_t)limit;
}

static bool can_ask_anybody(const struct cluster *c, const struct peer *suspect)
{
    for (uint32_t i = 0; i < c->n_peers; i++) {
        if (c->peer[i] != suspect && peer_is_up(c->peer[i]))
            return true;
    }
    return false;
}

/* Others are asked at the next tick: where a process has ended they, too, see their links closed
 * within moments, and need not be asked twice. */
void suspicion_begin(struct cluster *c, struct peer *p, bool is_closed, const char *why)
{
    char name[64];
    p->member.status = MEMBER_SUSPECT;
    p->suspect_ms = c->now_ms;
    p->remote_ms = 0;
    p->is_asked = false;
    membership_changed(c);
    cluster_trace(c, true, "peer=%s %s -> suspect", cluster_label(c, &p->member.id, name), why);
    p->is_closed = is_closed;
    if (is_closed && !can_ask_anybody(c, p))
        suspicion_confirm(c, p, "nobody to ask");
}

static void ask_one(struct cluster *c, struct peer *suspect, struct peer *p)
{
    bit_set(suspect->asked, p->slot, true);
    suspect->is_asked = true;
    cluster_send(c, &p->member.id);
}

/* In a large cluster not everybody is asked; whom changes from question to question. */
static void ask_others(struct cluster *c, struct peer *suspect)
{
    const struct message_ask m = {++c->ask_number, suspect->member.id};
    uint32_t n = 0;
    suspect->ask_number = m.number;
    suspect->ask_ms = c->now_ms;
    suspect->is_asked = false;
    memset(suspect->asked, 0, sizeof(suspect->asked));
    message_put_ask(cluster_begin(c), c->incarnation, &m);
    for (uint32_t i = 0; i < c->n_peers && n < ASKED_MAX; i++) {
        struct peer *p = c->peer[(i + m.number) % c->n_peers];
        if (p == suspect || !peer_is_up(p))
            continue;
        ask_one(c, suspect, p);
        n++;
    }
}

/* Those that have gone meanwhile will not answer any more. */
static bool is_answer_due(const struct cluster *c, const struct peer *suspect)
{
    for (uint32_t i = 0; i < c->n_peers; i++) {
        if (bit_get(suspect->asked, c->peer[i]->slot) && peer_is_up(c->peer[i]))
            return true;
    }
    return false;
}

static void watch_suspect(struct cluster *c, struct peer *p)
{
    bool is_silent = c->now_ms - p->member.heard_ms >= silent_limit_ms(p);
    if (!p->is_asked)
        ask_others(c, p);
    if (!p->is_asked && !is_silent && !p->is_closed)
        return; /* our own link broke a moment ago: it may come back */
    if (!p->is_asked)
        suspicion_confirm(c, p, "nobody to ask");
    else if (!is_answer_due(c, p))
        suspicion_confirm(c, p, "heard by nobody");
    else if (c->now_ms - p->suspect_ms >= CLUSTER_CONFIRM_MS + CLUSTER_TICK_MS)
        suspicion_confirm(c, p, "no answer of others");
}

static void watch_remote(struct cluster *c, struct peer *p)
{
    if (p->is_asked && !is_answer_due(c, p))
        suspicion_confirm(c, p, "heard by nobody");
    else if (c->now_ms - p->remote_ms > CLUSTER_SILENT_MS + 2 * ASK_MS)
        suspicion_confirm(c, p, "heard by nobody");
    else if (c->now_ms - p->ask_ms >= 2 * ASK_MS)
        ask_others(c, p);
}

void suspicion_hearsay(struct cluster *c, struct peer *p, uint64_t heard_ms)
{
    char name[64];
    if (p->member.status == MEMBER_UP)
        return;
    if (p->member.status == MEMBER_GONE && heard_ms <= p->gone_ms + HEARSAY_SLACK_MS)
        return;
    if (heard_ms > p->remote_ms)
        p->remote_ms = heard_ms;
    memset(p->asked, 0, sizeof(p->asked));
    p->is_asked = false;
    if (p->member.status == MEMBER_REMOTE)
        return;
    cluster_trace(c, true, "peer=%s was=%s heard by others -> remote, the link is bad",
                  cluster_label(c, &p->member.id, name), member_status_name(p->member.status));
    p->member.status = MEMBER_REMOTE;
    p->ask_ms = c->now_ms;
    membership_changed(c);
}

/* ---- messages, time ---- */

void suspicion_on_ask(struct cluster *c, struct peer *p, const struct message_ask *m)
{
    const struct peer *suspect = peer_find(c, &m->suspect);
    struct message_tell tell = {.number = m->number, .suspect = m->suspect};
    if (suspect != NULL) {
        uint64_t silent_ms = c->now_ms - suspect->member.heard_ms;
        tell.incarnation = suspect->member.incarnation;
        tell.is_heard = peer_is_up(suspect);
        tell.silent_ms = silent_ms > UINT32_MAX ? UINT32_MAX : (uint32_t)silent_ms;
    }
    message_put_tell(cluster_begin(c), c->incarnation, &tell);
    cluster_send(c, &p->member.id);
}

void suspicion_on_tell(struct cluster *c, struct peer *p, const struct message_tell *m)
{
    struct peer *suspect = peer_find(c, &m->suspect);
    if (suspect == NULL || suspect->ask_number != m->number || !bit_get(suspect->asked, p->slot) ||
        suspect->member.status == MEMBER_UP)
        return;
    bit_set(suspect->asked, p->slot, false);
    uint64_t heard_ms = m->silent_ms < c->now_ms ? c->now_ms - m->silent_ms : 0;
    /* What another heard just before we ceased to hear it is no news. */
    bool is_news =
        m->silent_ms <= FRESH_MS || heard_ms > suspect->member.heard_ms + CLUSTER_HEARTBEAT_MS;
    if (m->is_heard && m->incarnation >= suspect->member.incarnation && is_news)
        suspicion_hearsay(c, suspect, heard_ms);
    else if (suspect->member.status == MEMBER_SUSPECT)
        watch_suspect(c, suspect);
    else if (suspect->member.status == MEMBER_REMOTE)
        watch_remote(c, suspect);
}

void suspicion_forgive(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n_peers; i++) {
        struct peer *p = c->peer[i];
        p->heartbeat_ms = 0;
        if (p->member.status == MEMBER_GONE)
            continue;
        p->member.heard_ms = p->suspect_ms = p->remote_ms = c->now_ms;
        p->is_asked = false;
        if (p->member.status == MEMBER_SUSPECT && p->is_linked)
            p->member.status = MEMBER_UP;
    }
    c->coordinator_ms = c->no_coordinator_ms = c->now_ms;
    membership_changed(c);
}

void suspicion_watch(struct cluster *c, struct peer *p)
{
    char why[64];
    uint64_t silent_ms = c->now_ms - p->member.heard_ms;
    uint32_t limit_ms = silent_limit_ms(p);
    if (p->member.status == MEMBER_UP && silent_ms >= limit_ms) {
        snprintf(why, sizeof(why), "silent_ms=%llu limit_ms=%u", (ull)silent_ms, limit_ms);
        suspicion_begin(c, p, false, why);
    }
    if (p->member.status == MEMBER_SUSPECT)
        watch_suspect(c, p);
    else if (p->member.status == MEMBER_REMOTE)
        watch_remote(c, p);
}
