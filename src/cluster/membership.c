/* Who is there: links, heartbeats, suspects, and what members say about themselves. */
#include "cluster/internal.h"

#include "cluster/wire.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long ull;

/* ---- the table ---- */

/* The place of id, or where it would be. */
static uint32_t find_place(const struct cluster *c, const struct node_id *id)
{
    uint32_t low = 0, high = c->n_peers;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (node_id_compare(&c->peer[middle]->member.id, id) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct peer *peer_find(const struct cluster *c, const struct node_id *id)
{
    uint32_t at = find_place(c, id);
    return at < c->n_peers && node_id_equal(&c->peer[at]->member.id, id) ? c->peer[at] : NULL;
}

bool peer_is_there(const struct peer *p)
{
    return p->member.status != MEMBER_GONE;
}

bool peer_is_up(const struct peer *p)
{
    return p->is_linked && p->member.status == MEMBER_UP;
}

static void remove_peer(struct cluster *c, uint32_t at)
{
    struct peer *p = c->peer[at];
    bit_set(c->slots, p->slot, false);
    for (uint32_t i = 0; i < c->n_peers; i++)
        bit_set(c->peer[i]->asked, p->slot, false);
    c->n_peers--;
    memmove(&c->peer[at], &c->peer[at + 1], (c->n_peers - at) * sizeof(c->peer[0]));
    free(p->links);
    free(p);
    c->is_changed = true;
}

void membership_free(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n_peers; i++) {
        free(c->peer[i]->links);
        free(c->peer[i]);
    }
    c->n_peers = 0;
}

/* Full: the one that has been gone for longest makes room. */
static void make_room(struct cluster *c)
{
    int oldest = -1;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct peer *p = c->peer[i];
        if (!peer_is_there(p) && !p->is_linked &&
            (oldest < 0 || p->gone_ms < c->peer[oldest]->gone_ms))
            oldest = (int)i;
    }
    if (oldest >= 0)
        remove_peer(c, (uint32_t)oldest);
}

static int add_peer(struct cluster *c, const struct node_id *id, struct peer **ret_peer,
                    struct error *err)
{
    if (c->n_peers == LIMIT_PEERS)
        make_room(c);
    if (c->n_peers == LIMIT_PEERS)
        return error_set(err, E_LIMIT, "%d members are known; no more are possible", LIMIT_PEERS);
    struct peer *p = calloc(1, sizeof(*p));
    if (p == NULL)
        return error_set(err, E_NOMEM, "no memory for a member of the cluster");
    while (bit_get(c->slots, p->slot))
        p->slot++;
    bit_set(c->slots, p->slot, true);
    p->member.id = *id;
    p->member.status = MEMBER_GONE;
    uint32_t at = find_place(c, id);
    memmove(&c->peer[at + 1], &c->peer[at], (c->n_peers - at) * sizeof(c->peer[0]));
    c->peer[at] = p;
    c->n_peers++;
    *ret_peer = p;
    return 0;
}

/* ---- sending ---- */

static void put_heartbeat(struct cluster *c)
{
    const struct message_heartbeat m = {
        .number = ++c->heartbeat_number,
        .claim = c->state->claim,
        .is_live = c->is_live,
        .is_coordinator = c->is_coordinator,
        .is_stopping = c->self.is_stopping,
        .coordinator_age_ms = election_age_ms(c),
        .claim_max = c->claim_max,
        .self_number = c->self_number,
        .links_number = c->links_number,
        .reports_digest = c->reports_digest,
        .memory_bytes_free = c->self.figures.memory_bytes_free,
        .thermal = c->self.figures.thermal,
    };
    message_put_heartbeat(cluster_begin(c), c->incarnation, &m);
}

static void put_self(struct cluster *c)
{
    message_put_self(cluster_begin(c), c->incarnation, c->self_number, &c->self);
}

static void put_links(struct cluster *c)
{
    struct message_link links[LIMIT_PEERS];
    uint32_t n = 0;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct peer *p = c->peer[i];
        if (peer_is_up(p))
            links[n++] = (struct message_link){p->member.id, p->member.link, p->member.taken};
    }
    message_put_links(cluster_begin(c), c->incarnation, c->links_number, n, links);
}

/* In a large cluster only the coordinator needs to know who hears whom. */
static bool needs_links(const struct cluster *c, const struct peer *p)
{
    return c->n_peers <= PUSH_LINKS_MAX ||
           node_id_equal(&p->member.id, &c->state->claim.coordinator);
}

static void send_links(struct cluster *c)
{
    c->is_links_dirty = false;
    c->links_number++;
    for (uint32_t i = 0; i < c->n_peers; i++) {
        const struct member *m = &c->peer[i]->member;
        c->links_said[c->peer[i]->slot] = (struct message_link){m->id, m->link, m->taken};
    }
    put_links(c);
    for (uint32_t i = 0; i < c->n_peers; i++) {
        if (c->peer[i]->is_linked && needs_links(c, c->peer[i]))
            cluster_send(c, &c->peer[i]->member.id);
    }
}

static void send_want(struct cluster *c, struct peer *p, uint32_t what)
{
    struct message_want m = {.what = what};
    if (c->now_ms - p->want_ms < WANT_MS)
        return;
    p->want_ms = c->now_ms;
    if ((what & WANT_REPORTS) != 0)
        reports_fill_want(c, &m);
    message_put_want(cluster_begin(c), c->incarnation, &m);
    cluster_send(c, &p->member.id);
}

/* ---- events ---- */

void membership_changed(struct cluster *c)
{
    c->is_changed = c->is_links_dirty = c->is_reconcile_due = true;
    c->inputs++;
}

static void greet(struct cluster *c, struct peer *p)
{
    put_heartbeat(c);
    cluster_send(c, &p->member.id);
    put_self(c);
    cluster_send(c, &p->member.id);
}

int membership_link_up(struct cluster *c, const struct cluster_event *e, struct error *err)
{
    struct peer *p = peer_find(c, &e->node);
    struct error full;
    if (node_id_equal(&e->node, &c->id) || node_id_is_none(&e->node) ||
        cluster_is_revoked(c, &e->node)) {
        cluster_act(c, CLUSTER_DISCONNECT)->node = e->node;
        return 0;
    }
    int rc = p == NULL ? add_peer(c, &e->node, &p, &full) : 0;
    if (rc == E_LIMIT) {
        cluster_trace(c, true, "%s -> disconnect", full.message);
        cluster_act(c, CLUSTER_DISCONNECT)->node = e->node;
        return 0;
    }
    if (rc != 0)
        return error_set(err, rc, "%s", full.message);
    if (wire_is_name(e->name, sizeof(e->name)) && e->name[0] != '\0' &&
        p->member.self.name[0] == '\0')
        memcpy(p->member.self.name, e->name, sizeof(e->name));
    p->is_linked = true;
    p->member.is_drained = cluster_is_drained(c, &e->node);
    p->member.heard_ms = c->now_ms;
    p->heartbeat_ms = 0;
    p->member.link = p->member.taken = (struct link_figures){0};
    if (p->member.status != MEMBER_UP)
        suspicion_clear(c, p, "linked");
    greet(c, p);
    return 0;
}

void membership_link_down(struct cluster *c, const struct cluster_event *e)
{
    struct peer *p = peer_find(c, &e->node);
    if (p == NULL || !p->is_linked)
        return;
    p->is_linked = false;
    if (p->member.status == MEMBER_UP)
        suspicion_begin(c, p, e->is_closed, e->is_closed ? "closed its link" : "lost its link");
    else
        membership_changed(c);
}

static bool differs(double a, double b, double share)
{
    return fabs(a - b) > share * (a > b ? a : b);
}

static struct link_figures clean_link(const struct link_figures *link)
{
    struct link_figures f = *link;
    if (!isfinite(f.mbit_s) || f.mbit_s < 0)
        f.mbit_s = 0;
    return f;
}

static bool is_link_news(const struct link_figures *f, const struct link_figures *said)
{
    return f->path != said->path ||
           (differs(f->rtt_us, said->rtt_us, 0.25) &&
            fabs((double)f->rtt_us - said->rtt_us) > 50) ||
           differs(f->mbit_s, said->mbit_s, 0.2);
}

void membership_link_figures(struct cluster *c, const struct cluster_event *e)
{
    struct peer *p = peer_find(c, &e->node);
    if (p == NULL || !p->is_linked)
        return;
    struct member *m = &p->member;
    m->link = clean_link(&e->link);
    m->taken = clean_link(&e->taken);
    const struct message_link *said = &c->links_said[p->slot];
    if (is_link_news(&m->link, &said->figures) || is_link_news(&m->taken, &said->taken)) {
        c->is_links_dirty = c->is_changed = c->is_reconcile_due = true;
        c->inputs++;
        gain_reconsider(c);
        if (ways_differ(&m->link, &m->taken))
            gain_on_way(c);
    }
}

static struct cluster_self clean_self(const struct cluster_self *self)
{
    struct cluster_self s = *self;
    if (!wire_is_name(s.name, sizeof(s.name)))
        s.name[0] = '\0';
    if (!isfinite(s.figures.gflops) || s.figures.gflops < 0)
        s.figures.gflops = 0;
    if (!isfinite(s.figures.memory_gb_s) || s.figures.memory_gb_s < 0)
        s.figures.memory_gb_s = 0;
    return s;
}

/* Free memory and heat also ride in heartbeats, so small changes of them are no news. */
static bool is_self_news(const struct cluster_self *a, const struct cluster_self *b)
{
    const struct node_figures *f = &a->figures, *g = &b->figures;
    return strcmp(a->name, b->name) != 0 || a->is_stopping != b->is_stopping ||
           f->memory_bytes_total != g->memory_bytes_total || f->n_cores != g->n_cores ||
           f->thermal != g->thermal || f->on_battery != g->on_battery ||
           f->battery_percent / 5 != g->battery_percent / 5 ||
           differs(f->gflops, g->gflops, 0.05) || differs(f->memory_gb_s, g->memory_gb_s, 0.05) ||
           differs((double)f->memory_bytes_free, (double)g->memory_bytes_free, 0.05);
}

void membership_self(struct cluster *c, const struct cluster_self *self)
{
    struct cluster_self s = clean_self(self);
    bool is_news = c->self_number == 0 || is_self_news(&c->self, &s);
    if (s.is_stopping && !c->self.is_stopping)
        cluster_trace(c, false, "stopping -> what runs here is moved");
    c->self = s;
    if (!is_news)
        return;
    c->self_number++;
    c->inputs++;
    gain_reconsider(c);
    c->is_changed = c->is_reconcile_due = true;
    put_self(c);
    cluster_send_all(c);
}

/* ---- messages ---- */

static void restarted(struct cluster *c, struct peer *p)
{
    char name[64];
    cluster_trace(c, true, "peer=%s has restarted -> what it said and held is void",
                  cluster_label(c, &p->member.id, name));
    p->heartbeat_number = p->self_number = p->links_number = 0;
    p->claim = (struct claim){0};
    p->is_live = p->is_coordinator = false;
    p->heartbeat_ms = 0;
    free(p->links);
    p->links = NULL;
    p->n_links = 0;
    membership_changed(c);
    gain_on_join(c);
    election_on_lost(c, p);
}

bool membership_heard(struct cluster *c, struct peer *p, uint64_t incarnation)
{
    if (incarnation < p->member.incarnation)
        return false;
    uint64_t before = p->member.incarnation;
    p->member.incarnation = incarnation;
    if (before != 0 && incarnation > before)
        restarted(c, p);
    else if (before == 0)
        membership_changed(c); /* from now on it can be given something */
    if (p->member.status != MEMBER_UP)
        suspicion_clear(c, p, "heard again");
    p->member.heard_ms = c->now_ms;
    return true;
}

static void measure_gap(struct cluster *c, struct peer *p)
{
    if (p->heartbeat_ms != 0) {
        float gap = (float)(c->now_ms - p->heartbeat_ms);
        if (gap > CLUSTER_SILENT_MS_MAX)
            gap = CLUSTER_SILENT_MS_MAX;
        if (p->gap_mean_ms == 0)
            p->gap_mean_ms = CLUSTER_HEARTBEAT_MS;
        p->gap_dev_ms += (fabsf(gap - p->gap_mean_ms) - p->gap_dev_ms) / 4;
        p->gap_mean_ms += (gap - p->gap_mean_ms) / 8;
    }
    p->heartbeat_ms = c->now_ms;
}

static void want_what_lacks(struct cluster *c, struct peer *p, const struct message_heartbeat *m)
{
    uint32_t what = 0;
    if (p->self_number != m->self_number)
        what |= WANT_SELF;
    if (p->links_number != m->links_number && (c->is_coordinator || c->n_peers <= PUSH_LINKS_MAX))
        what |= WANT_LINKS;
    if (m->is_live && claim_compare(&m->claim, &c->state->claim) > 0 &&
        c->now_ms - c->want_state_ms >= WANT_MS)
        what |= WANT_STATE;
    if (m->reports_digest != c->reports_digest && claim_compare(&m->claim, &c->state->claim) == 0 &&
        c->now_ms - c->want_reports_ms >= WANT_MS)
        what |= WANT_REPORTS;
    if (what == 0 || c->now_ms - p->want_ms < WANT_MS)
        return;
    if ((what & WANT_STATE) != 0)
        c->want_state_ms = c->now_ms;
    if ((what & WANT_REPORTS) != 0)
        c->want_reports_ms = c->now_ms;
    send_want(c, p, what);
}

void membership_on_heartbeat(struct cluster *c, struct peer *p, const struct message_heartbeat *m)
{
    if (m->number <= p->heartbeat_number)
        return;
    p->heartbeat_number = m->number;
    measure_gap(c, p);
    p->claim = m->claim;
    p->is_live = m->is_live;
    p->is_coordinator = m->is_coordinator;
    p->coordinator_age_ms = m->coordinator_age_ms;
    p->member.self.figures.memory_bytes_free = m->memory_bytes_free;
    if (p->member.self.figures.thermal != m->thermal ||
        p->member.self.is_stopping != m->is_stopping) {
        p->member.self.figures.thermal = m->thermal;
        p->member.self.is_stopping = m->is_stopping;
        c->inputs++;
        gain_reconsider(c);
        c->is_changed = c->is_reconcile_due = true;
    }
    election_on_heartbeat(c, p, m);
    want_what_lacks(c, p, m);
}

void membership_on_self(struct cluster *c, struct peer *p, uint32_t number,
                        const struct cluster_self *self)
{
    if (number <= p->self_number)
        return;
    p->self_number = number;
    p->member.self = *self;
    c->inputs++;
    gain_reconsider(c);
    c->is_changed = c->is_reconcile_due = true;
}

int membership_on_links(struct cluster *c, struct peer *p, uint32_t number, uint32_t n,
                        const struct message_link *links, struct error *err)
{
    if (number <= p->links_number)
        return 0;
    struct message_link *copy = NULL;
    if (n > 0) {
        copy = realloc(p->links, n * sizeof(*copy));
        if (copy == NULL)
            return error_set(err, E_NOMEM, "no memory for the links of a member");
        memcpy(copy, links, n * sizeof(*copy));
    } else {
        free(p->links);
    }
    p->links = copy;
    p->n_links = n;
    p->links_number = number;
    c->inputs++;
    c->is_reconcile_due = true;
    gain_reconsider(c);
    for (uint32_t i = 0; i < n; i++) {
        if (ways_differ(&copy[i].figures, &copy[i].taken))
            gain_on_way(c);
    }
    return 0;
}

const struct message_link *peer_find_link(const struct peer *p, const struct node_id *to)
{
    uint32_t low = 0, high = p->n_links;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        int order = node_id_compare(&p->links[middle].node, to);
        if (order == 0)
            return &p->links[middle];
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return NULL;
}

void membership_on_want(struct cluster *c, struct peer *p, const struct message_want *m)
{
    if ((m->what & WANT_SELF) != 0) {
        put_self(c);
        cluster_send(c, &p->member.id);
    }
    if ((m->what & WANT_LINKS) != 0) {
        put_links(c);
        cluster_send(c, &p->member.id);
    }
    if ((m->what & WANT_STATE) != 0) {
        message_put_state(cluster_begin(c), c->incarnation, c->is_live, election_age_ms(c),
                          c->state);
        cluster_send(c, &p->member.id);
    }
    if ((m->what & WANT_REPORTS) != 0)
        reports_answer_want(c, p, m);
}

/* ---- time ---- */

void membership_revoke(struct cluster *c)
{
    char name[64];
    uint32_t n = 0;
    for (uint32_t i = c->n_peers; i-- > 0 && n < DISCONNECTS_MAX;) {
        struct peer *p = c->peer[i];
        p->member.is_drained = cluster_is_drained(c, &p->member.id);
        if (!cluster_is_revoked(c, &p->member.id))
            continue;
        cluster_trace(c, true, "peer=%s is revoked -> disconnect",
                      cluster_label(c, &p->member.id, name));
        cluster_act(c, CLUSTER_DISCONNECT)->node = p->member.id;
        suspicion_confirm(c, p, "revoked");
        remove_peer(c, i);
        n++;
    }
}

void membership_tick(struct cluster *c)
{
    for (uint32_t i = 0; i < c->n_peers; i++)
        suspicion_watch(c, c->peer[i]);
    for (uint32_t i = c->n_peers; i-- > 0;) {
        const struct peer *p = c->peer[i];
        if (!peer_is_there(p) && !p->is_linked && c->now_ms - p->gone_ms > GONE_FORGET_MS)
            remove_peer(c, i);
    }
    if (c->is_links_dirty)
        send_links(c);
    if (c->now_ms - c->beat_ms >= CLUSTER_HEARTBEAT_MS) {
        bool is_late = c->now_ms - c->beat_ms >= 2 * CLUSTER_HEARTBEAT_MS;
        c->beat_ms = is_late ? c->now_ms : c->beat_ms + CLUSTER_HEARTBEAT_MS;
        if (c->state->n_orders > 0)
            membership_revoke(c);
        put_heartbeat(c);
        cluster_send_all(c);
    }
}
