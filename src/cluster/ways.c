/* The ways that tensors of an instance take. A connection stays where it is while it lives; each
 * node says of each other one which way a new one would take, and which one its runners took when
 * they connected last. Where the two differ the coordinator places the instance again where it is,
 * if that is worth it: its ranks keep their weights, connect anew, and streams go on. */
#include "cluster/internal.h"

#include <stdio.h>

static const double gain_least = 1 + CLUSTER_REBALANCE_PERCENT / 100.0;
static const double loss_most = 1.05; /* of prefill for decode, or the other way round */

bool ways_differ(const struct link_figures *now, const struct link_figures *taken)
{
    return taken->path != 0 && now->path != 0 && taken->path != now->path;
}

static bool is_dead(const struct link_figures *taken)
{
    return taken->rtt_us == UINT32_MAX;
}

struct way { /* from one node to another; NULL: they do not hear each other */
    const struct link_figures *now, *taken;
};

static struct way find_way(const struct cluster *c, const struct node_id *from,
                           const struct node_id *to)
{
    bool is_own = node_id_equal(from, &c->id);
    const struct peer *p = peer_find(c, is_own ? to : from);
    const struct message_link *said = p != NULL && !is_own ? peer_find_link(p, to) : NULL;
    if (said != NULL)
        return (struct way){&said->figures, &said->taken};
    if (p != NULL && is_own && peer_is_up(p))
        return (struct way){&p->member.link, &p->member.taken};
    return (struct way){NULL, NULL};
}

/* The next pair of ranks, from (*r, *k) on, that are connected over another way than they would be
 * now. The higher one has connected to the lower one: its node knows how. */
static bool next_difference(const struct cluster *c, const struct placed_instance *i, uint32_t *r,
                            uint32_t *k, struct way *ret)
{
    for (; *r < i->split.n_ranks; (*r)++, *k = 0) {
        for (; *k < *r; (*k)++) {
            const struct node_id *from = &i->node_of_rank[*r], *to = &i->node_of_rank[*k];
            if (node_id_equal(from, to))
                continue;
            *ret = find_way(c, from, to);
            if (ret->now != NULL && ways_differ(ret->now, ret->taken))
                return true;
        }
    }
    return false;
}

/* All have said what they took when they connected for this epoch. */
static bool is_settled(const struct cluster *c, const struct work *w)
{
    return w->serving_ms != 0 && c->now_ms - w->serving_ms >= LEARN_MS;
}

bool ways_have_died(const struct cluster *c, const struct placed_instance *i, const struct work *w,
                    char why[160])
{
    struct way way;
    char name[2][64];
    /* If that does not help it is for the ranks to find out, by their own deadlines. */
    if (!is_settled(c, w) ||
        (w->renewed_ms != 0 && c->now_ms - w->renewed_ms < CLUSTER_REBALANCE_MS))
        return false;
    for (uint32_t r = 0, k = 0; next_difference(c, i, &r, &k, &way); k++) {
        if (!is_dead(way.taken))
            continue;
        snprintf(why, 160, "node=%s has lost the way to node=%s that rank %u took, and has another",
                 cluster_label(c, &i->node_of_rank[r], name[0]),
                 cluster_label(c, &i->node_of_rank[k], name[1]), r);
        return true;
    }
    return false;
}

static void install(struct cluster *c, struct desired_model *m, struct work *w,
                    struct placed_instance *i, const struct place *p, struct placement *same,
                    const char *why)
{
    placement_price(&p->request, same);
    repair_install(c, m, w, i, p, same, false, why);
}

void ways_renew(struct cluster *c, struct desired_model *m, struct work *w,
                struct placed_instance *i, const char *why)
{
    struct place p = {0};
    struct placement same;
    w->renewed_ms = c->now_ms;
    if (place_init(&p, c, m, i, w, true, &(struct error){0}) == 0 && gain_describe(i, &p, &same))
        install(c, m, w, i, &p, &same, why);
    place_done(&p);
}

/* The request as it would be with the ways that the ranks took. Returns false when these cannot be
 * compared: one was never measured, or leads nowhere. */
static bool put_taken(const struct cluster *c, const struct placed_instance *i,
                      const struct placement *same, const struct place *p)
{
    struct way way;
    uint32_t n = p->request.n_nodes;
    bool is_any = false;
    for (uint32_t r = 0, k = 0; next_difference(c, i, &r, &k, &way); k++) {
        uint32_t a = same->node_of_rank[r], b = same->node_of_rank[k];
        if (way.taken->rtt_us == 0 || way.now->rtt_us == 0 || is_dead(way.taken))
            return false;
        p->links[a * n + b] = p->links[b * n + a] = *way.taken;
        is_any = true;
    }
    return is_any;
}

static bool is_better(const double now_s[2], const double other_s[2])
{
    return (now_s[0] >= gain_least * other_s[0] || now_s[1] >= gain_least * other_s[1]) &&
           other_s[0] <= loss_most * now_s[0] && other_s[1] <= loss_most * now_s[1];
}

void ways_improve(struct cluster *c, struct desired_model *m, struct work *w,
                  struct placed_instance *i)
{
    struct place now = {0}, taken = {0};
    struct placement same;
    struct way way;
    double now_s[2], taken_s[2];
    char why[160];
    uint32_t r = 0, k = 0;
    if (!is_settled(c, w) || (w->moved_ms != 0 && c->now_ms - w->moved_ms < gain_wait_ms(c, w)) ||
        !next_difference(c, i, &r, &k, &way))
        return;
    if (place_init(&now, c, m, i, w, true, &(struct error){0}) == 0 &&
        place_init(&taken, c, m, i, w, true, &(struct error){0}) == 0 &&
        gain_describe(i, &now, &same) && put_taken(c, i, &same, &taken) &&
        placement_seconds(&now.request, &same, &now_s[0], &now_s[1]) &&
        placement_seconds(&taken.request, &same, &taken_s[0], &taken_s[1]) &&
        is_better(taken_s, now_s)) {
        snprintf(why, sizeof(why),
                 "other ways are faster: decode_ms=%.1f then=%.1f prefill_ms=%.0f then=%.0f",
                 taken_s[0] * 1e3, now_s[0] * 1e3, taken_s[1] * 1e3, now_s[1] * 1e3);
        install(c, m, w, i, &now, &same, why);
        gain_note_move(c, w);
    }
    place_done(&now);
    place_done(&taken);
}
