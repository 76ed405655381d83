/* See discovery.h: sockets, interfaces and times around discovery_records and discovery_table. */
#include "mesh/discovery.h"

#include "base/log.h"
#include "base/rng.h"
#include "mesh/discovery_net.h"
#include "mesh/discovery_records.h"
#include "mesh/discovery_table.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    N_FAMILIES = 2,
    ANNOUNCEMENTS = 4, /* after 0, 1, 3 and 7 s */
    QUERY_MS_MIN = 1000,
    QUERY_MS_MAX = 60000,
    ANSWER_AGAIN_MS = 1000, /* RFC 6762 section 6: a record is multicast once a second at most */
    RESCAN_MS = 10000,      /* should the system not have told of a change */
    RESCAN_SOON_MS = 50,    /* changes come in groups */
    READS_PER_TURN = 64,
    PACKETS_PER_S = 500, /* looked at; 256 nodes that answer at once are well below */
    PACKETS_BURST = 1000,
};
#define NEVER UINT64_MAX

struct channel { /* one interface by one protocol */
    bool is_joined;
    uint32_t n_announced;
    uint64_t announce_ms, answer_ms, query_ms; /* when; NEVER */
    uint64_t query_interval_ms;
    uint64_t said_ms, asked_ms; /* last; 0: never */
};

struct link_state {
    struct net_link link;
    struct channel channel[N_FAMILIES];
};

struct discovery {
    uv_loop_t *loop;
    struct discovery_events events, inner; /* the owner's; the table's way to them */
    struct discovery_records records;
    struct discovery_table *table;
    bool is_on_loopback;
    uint32_t n_links;
    struct link_state links[DISCOVERY_LINKS_MAX];
    struct net_link scanned[DISCOVERY_LINKS_MAX];
    int fd[N_FAMILIES], watch_fd; /* -1: none */
    uv_poll_t poll[N_FAMILIES], watch;
    uv_timer_t timer;
    uint64_t rescan_ms;
    uint64_t purse, purse_ms; /* packets that may be looked at */
    uint64_t seed, n_random;
    struct discovery_stats stats;
    uint32_t n_handles; /* open */
    bool is_closing;
    void (*closed)(void *arg);
    void *closed_arg;
    uint8_t packet[DNS_PACKET_BYTES_MAX];
};

static const int FAMILY[N_FAMILIES] = {AF_INET, AF_INET6};

static uint64_t random_ms(struct discovery *d, uint64_t from, uint64_t to)
{
    return from + rng_u64(d->seed, d->n_random++, 0) % (to - from + 1);
}

/* Nothing is told any more once the owner has closed us, which it may do from inside these. */
static void tell_found(void *self, const struct discovery_peer *peer)
{
    struct discovery *d = self;
    if (!d->is_closing)
        d->events.found(d->events.self, peer);
}

static void tell_lost(void *self, const struct node_id *id)
{
    struct discovery *d = self;
    if (!d->is_closing)
        d->events.lost(d->events.self, id);
}

/* ---- saying ---- */

static void send_packet(struct discovery *d, const struct link_state *l, int f,
                        const struct dns_writer *w)
{
    int rc = net_send(d->fd[f], FAMILY[f], &l->link, w->data, w->len);
    if (rc != 0) /* it will be said again */
        log_debug("discovery", "interface=%s %zu bytes of mDNS not sent: %s", l->link.name, w->len,
                  strerror(-rc));
}

static void say(struct discovery *d, struct link_state *l, int f, uint32_t ttl_s)
{
    for (uint32_t i = 0; i < d->records.n_services; i++) {
        struct dns_writer w;
        if (discovery_records_write(&d->records, i, l->link.address, l->link.n_addresses, ttl_s,
                                    &w))
            send_packet(d, l, f, &w);
    }
    l->channel[f].said_ms = uv_now(d->loop);
    l->channel[f].answer_ms = NEVER;
}

static void ask(struct discovery *d, struct link_state *l, int f, uint64_t now)
{
    struct channel *c = &l->channel[f];
    uint32_t i = 0;
    bool is_more = true;
    while (is_more) {
        struct dns_writer w;
        is_more = discovery_query_write(d->table, l->link.index, now, &i, &w);
        send_packet(d, l, f, &w);
    }
    c->asked_ms = now;
    /* Some of it random, so that nodes that started together do not ask together for ever. */
    c->query_ms = now + c->query_interval_ms + random_ms(d, 0, c->query_interval_ms / 10);
    c->query_interval_ms *= 2;
    if (c->query_interval_ms > QUERY_MS_MAX)
        c->query_interval_ms = QUERY_MS_MAX;
}

static uint64_t tick_channel(struct discovery *d, struct link_state *l, int f, uint64_t now)
{
    struct channel *c = &l->channel[f];
    if (c->announce_ms <= now) {
        say(d, l, f, DISCOVERY_TTL_S);
        uint64_t pause_ms = UINT64_C(1000) << c->n_announced;
        c->announce_ms = ++c->n_announced < ANNOUNCEMENTS ? now + pause_ms : NEVER;
    }
    if (c->answer_ms <= now) {
        /* Who asked may have missed what was said just before, so the answer waits its turn. */
        if (c->said_ms != 0 && now < c->said_ms + ANSWER_AGAIN_MS)
            c->answer_ms = c->said_ms + ANSWER_AGAIN_MS;
        else
            say(d, l, f, DISCOVERY_TTL_S);
    }
    if (c->query_ms <= now)
        ask(d, l, f, now);
    uint64_t next = c->announce_ms < c->answer_ms ? c->announce_ms : c->answer_ms;
    return c->query_ms < next ? c->query_ms : next;
}

/* ---- interfaces ---- */

static void start_channel(struct discovery *d, struct channel *c, uint64_t now)
{
    c->n_announced = 0;
    c->announce_ms = d->records.n_services > 0 ? now + random_ms(d, 0, 20) : NEVER;
    c->answer_ms = NEVER;
    c->query_ms = now + random_ms(d, 20, 120);
    c->query_interval_ms = QUERY_MS_MIN;
}

static void leave_channel(struct discovery *d, struct link_state *l, int f)
{
    struct channel *c = &l->channel[f];
    if (c->is_joined)
        net_leave(d->fd[f], FAMILY[f], &l->link);
    *c = (struct channel){.announce_ms = NEVER, .answer_ms = NEVER, .query_ms = NEVER};
}

static void join_channel(struct discovery *d, struct link_state *l, int f, uint64_t now)
{
    bool is_there = f == 0 ? l->link.has_v4 : l->link.has_v6;
    struct channel *c = &l->channel[f];
    if (d->fd[f] < 0 || !is_there) {
        leave_channel(d, l, f);
        return;
    }
    if (!c->is_joined) {
        int rc = net_join(d->fd[f], FAMILY[f], &l->link);
        if (rc != 0) { /* such as at the limit of groups; the next scan tries again */
            log_debug("discovery", "interface=%s cannot join the mDNS group: %s", l->link.name,
                      strerror(-rc));
            leave_channel(d, l, f);
            return;
        }
        c->is_joined = true;
    }
    start_channel(d, c, now);
}

static bool is_same_link(const struct net_link *a, const struct net_link *b)
{
    return a->index == b->index && a->n_addresses == b->n_addresses &&
           memcmp(a->address, b->address, a->n_addresses * sizeof(a->address[0])) == 0;
}

static void remove_link(struct discovery *d, uint32_t i, uint64_t now)
{
    struct link_state *l = &d->links[i];
    log_info("discovery", "interface=%s is gone", l->link.name);
    for (int f = 0; f < N_FAMILIES; f++)
        leave_channel(d, l, f);
    discovery_table_forget(d->table, l->link.index, now);
    d->links[i] = d->links[--d->n_links];
}

static struct link_state *find_link(struct discovery *d, uint32_t index)
{
    for (uint32_t i = 0; i < d->n_links; i++)
        if (d->links[i].link.index == index)
            return &d->links[i];
    return NULL;
}

static bool is_scanned(const struct discovery *d, uint32_t n, uint32_t index)
{
    for (uint32_t i = 0; i < n; i++)
        if (d->scanned[i].index == index)
            return true;
    return false;
}

static void add_link(struct discovery *d, const struct net_link *link, uint64_t now)
{
    struct link_state *l = find_link(d, link->index);
    bool is_new = l == NULL;
    if (is_new) {
        l = &d->links[d->n_links++];
        memset(l, 0, sizeof(*l));
        log_info("discovery", "interface=%s in use, %" PRIu32 " addresses", link->name,
                 link->n_addresses);
    }
    bool is_same = !is_new && is_same_link(&l->link, link);
    l->link = *link;
    for (int f = 0; f < N_FAMILIES; f++)
        if (!is_same || !l->channel[f].is_joined)
            join_channel(d, l, f, now);
}

static void rescan(struct discovery *d, uint64_t now)
{
    uint32_t n = net_scan(d->is_on_loopback, d->scanned);
    for (uint32_t i = d->n_links; i-- > 0;)
        if (!is_scanned(d, n, d->links[i].link.index))
            remove_link(d, i, now);
    for (uint32_t i = 0; i < n; i++)
        add_link(d, &d->scanned[i], now);
    d->stats.n_interfaces = d->n_links;
    d->rescan_ms = now + RESCAN_MS;
}

/* ---- hearing ---- */

static void hear_query(struct discovery *d, struct channel *c, size_t n, uint64_t now)
{
    enum records_asked asked;
    if (!discovery_records_asked(&d->records, d->packet, n, &asked)) {
        d->stats.n_malformed++;
        return;
    }
    uint64_t due = NEVER;
    if (asked == RECORDS_ASKED_ALONE)
        due = now;
    else if (asked == RECORDS_ASKED_SHARED)
        due = now + random_ms(d, 20, 120);
    else if (asked == RECORDS_ASKED_MORE)
        due = now + random_ms(d, 400, 500);
    else if (c->answer_ms != NEVER && discovery_records_is_known(&d->records, d->packet, n))
        due = c->answer_ms = NEVER; /* the rest of a long question */
    if (due < c->answer_ms)
        c->answer_ms = due;
}

static void hear(struct discovery *d, int f, size_t n, const struct packet_source *from)
{
    struct link_state *l = find_link(d, from->interface_index);
    uint64_t now = uv_now(d->loop);
    struct dns_reader r;
    if (l == NULL || !l->channel[f].is_joined)
        return;
    d->stats.n_packets++;
    if (d->purse == 0) {
        d->stats.n_dropped++;
        return;
    }
    d->purse--;
    if (!dns_open(&r, d->packet, n)) {
        d->stats.n_malformed++;
        return;
    }
    if ((r.flags & DNS_MASK_STRANGE) != 0)
        return;
    if ((r.flags & DNS_FLAG_RESPONSE) == 0)
        hear_query(d, &l->channel[f], n, now);
    else if (!discovery_table_take(d->table, d->packet, n, from, now))
        d->stats.n_malformed++;
}

static void fill_purse(struct discovery *d, uint64_t now)
{
    uint64_t earned = (now - d->purse_ms) * PACKETS_PER_S / 1000;
    if (earned == 0)
        return;
    d->purse = d->purse + earned > PACKETS_BURST ? PACKETS_BURST : d->purse + earned;
    d->purse_ms = now;
}

/* ---- the loop ---- */

static void on_timer(uv_timer_t *timer)
{
    struct discovery *d = timer->data;
    uint64_t now = uv_now(d->loop);
    if (d->rescan_ms <= now)
        rescan(d, now);
    uint64_t next = d->rescan_ms;
    for (uint32_t i = 0; i < d->n_links; i++)
        for (int f = 0; f < N_FAMILIES; f++)
            if (d->links[i].channel[f].is_joined) {
                uint64_t due = tick_channel(d, &d->links[i], f, now);
                next = due < next ? due : next;
            }
    uint64_t due = discovery_table_tick(d->table, now); /* owners may close us in there */
    if (d->is_closing)
        return;
    next = due < next ? due : next;
    uv_timer_start(&d->timer, on_timer, next > now ? next - now : 1, 0);
}

static void wake(struct discovery *d)
{
    uv_timer_start(&d->timer, on_timer, 0, 0);
}

static void on_packets(uv_poll_t *poll, int status, int events)
{
    struct discovery *d = poll->data;
    int f = poll == &d->poll[0] ? 0 : 1;
    (void)status; /* an error of the socket is read away like a packet */
    (void)events;
    fill_purse(d, uv_now(d->loop));
    for (int i = 0; i < READS_PER_TURN; i++) {
        struct packet_source from;
        int64_t n = net_receive(d->fd[f], FAMILY[f], d->packet, &from);
        if (n < 0)
            break;
        if (n > 0)
            hear(d, f, (size_t)n, &from);
    }
    wake(d);
}

static void on_change(uv_poll_t *poll, int status, int events)
{
    struct discovery *d = poll->data;
    (void)status;
    (void)events;
    net_watch_drain(d->watch_fd);
    uint64_t soon = uv_now(d->loop) + RESCAN_SOON_MS;
    if (soon < d->rescan_ms)
        d->rescan_ms = soon;
    wake(d);
}

static void on_closed(uv_handle_t *handle)
{
    struct discovery *d = handle->data;
    if (--d->n_handles > 0)
        return;
    for (int f = 0; f < N_FAMILIES; f++)
        if (d->fd[f] >= 0)
            close(d->fd[f]);
    if (d->watch_fd >= 0)
        close(d->watch_fd);
    discovery_table_free(d->table);
    if (d->closed != NULL)
        d->closed(d->closed_arg);
    free(d);
}

static int start_poll(struct discovery *d, uv_poll_t *poll, int fd, uv_poll_cb cb)
{
    poll->data = d;
    int rc = uv_poll_init(d->loop, poll, fd);
    if (rc != 0)
        return rc;
    d->n_handles++;
    return uv_poll_start(poll, UV_READABLE, cb);
}

static void close_handles(struct discovery *d)
{
    d->is_closing = true;
    for (int f = 0; f < N_FAMILIES; f++)
        if (d->poll[f].type == UV_POLL)
            uv_close((uv_handle_t *)&d->poll[f], on_closed);
    if (d->watch.type == UV_POLL)
        uv_close((uv_handle_t *)&d->watch, on_closed);
    uv_close((uv_handle_t *)&d->timer, on_closed); /* always there, so on_closed is called */
}

static int start(struct discovery *d, struct error *err)
{
    int rc = 0;
    for (int f = 0; f < N_FAMILIES; f++) { /* one of the two will do */
        struct error why;
        if (net_open(FAMILY[f], &d->fd[f], &why) != 0) {
            rc = error_set(err, why.code, "%s", why.message);
            continue;
        }
        rc = start_poll(d, &d->poll[f], d->fd[f], on_packets);
        if (rc != 0)
            return error_set(err, rc, "mDNS: cannot watch a socket: %s", uv_strerror(rc));
    }
    if (d->fd[0] < 0 && d->fd[1] < 0)
        return rc;
    d->watch_fd = net_watch_open();
    if (d->watch_fd >= 0)
        start_poll(d, &d->watch, d->watch_fd, on_change); /* else there is the rescan */
    uv_timer_start(&d->timer, on_timer, 0, 0);
    return 0;
}

int discovery_open(uv_loop_t *loop, const struct discovery_options *o,
                   const struct discovery_events *events, struct discovery **ret_discovery,
                   struct error *err)
{
    uint64_t random[2];
    struct discovery *d = calloc(1, sizeof(*d));
    if (d == NULL)
        return error_set(err, E_NOMEM, "out of memory for discovery");
    d->loop = loop;
    d->events = *events;
    d->inner = (struct discovery_events){.self = d, .found = tell_found, .lost = tell_lost};
    d->is_on_loopback = o->is_on_loopback;
    d->fd[0] = d->fd[1] = d->watch_fd = -1;
    int rc = rng_system(random, sizeof(random));
    if (rc != 0)
        error_set(err, rc, "discovery: no random numbers: %s", strerror(-rc));
    else
        rc = discovery_table_new(&o->self.id, &d->inner, &d->table, err);
    if (rc != 0) {
        free(d);
        return rc;
    }
    d->seed = random[0];
    discovery_records_init(&d->records, o, (uint32_t)random[1]);
    uv_timer_init(loop, &d->timer);
    d->timer.data = d;
    d->n_handles = 1;
    d->purse = PACKETS_BURST;
    d->purse_ms = uv_now(loop);
    rc = start(d, err);
    if (rc != 0) {
        close_handles(d);
        return rc;
    }
    *ret_discovery = d;
    return 0;
}

void discovery_refresh(struct discovery *d)
{
    uint64_t now = uv_now(d->loop);
    for (uint32_t i = 0; i < d->n_links; i++)
        for (int f = 0; f < N_FAMILIES; f++) {
            struct channel *c = &d->links[i].channel[f];
            if (!c->is_joined)
                continue;
            c->query_interval_ms = QUERY_MS_MIN;
            uint64_t due = c->asked_ms == 0 ? now : c->asked_ms + QUERY_MS_MIN;
            if (due < c->query_ms)
                c->query_ms = due;
        }
    wake(d);
}

const struct discovery_peer *discovery_peer_at(const struct discovery *d, uint32_t index)
{
    return discovery_table_peer(d->table, index);
}

void discovery_get_stats(const struct discovery *d, struct discovery_stats *ret_stats)
{
    *ret_stats = d->stats;
    discovery_table_get_stats(d->table, ret_stats);
}

void discovery_close(struct discovery *d, void (*closed)(void *arg), void *arg)
{
    d->closed = closed;
    d->closed_arg = arg;
    for (uint32_t i = 0; i < d->n_links; i++)
        for (int f = 0; f < N_FAMILIES; f++)
            if (d->links[i].channel[f].is_joined) {
                say(d, &d->links[i], f, 0);
                say(d, &d->links[i], f, 0); /* twice: one may get lost */
            }
    close_handles(d);
}
