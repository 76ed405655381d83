/* Requests to placement: what the coordinator (or `shoal plan`) knows, in placement's words. */
#include "cluster/internal.h"

#include <stdlib.h>
#include <string.h>

struct entry {               /* a node that may be in the request */
    const struct peer *peer; /* NULL: this node */
    const struct node_id *id;
    const char *name;
    uint32_t survivor; /* its first rank in the present instance, UINT32_MAX: none */
    bool is_home;      /* the order was taken there */
};

/* Survivors keep their order, so that what is loaded can stay; then where the order was taken (the
 * file is there), then by name and id: always the same. */
static int compare_entries(const void *a, const void *b)
{
    const struct entry *x = a, *y = b;
    if (x->survivor != y->survivor)
        return x->survivor < y->survivor ? -1 : 1;
    if (x->is_home != y->is_home)
        return x->is_home ? -1 : 1;
    int order = strcmp(x->name, y->name);
    return order != 0 ? order : node_id_compare(x->id, y->id);
}

static struct entry make_entry(const struct cluster *c, const struct peer *p,
                               const struct desired_model *m, const struct placed_instance *present)
{
    struct entry e = {.peer = p,
                      .id = p != NULL ? &p->member.id : &c->id,
                      .name = p != NULL ? p->member.self.name : c->self.name,
                      .survivor = UINT32_MAX};
    e.is_home = node_id_equal(e.id, &m->stamp.node);
    for (uint32_t r = present != NULL ? present->split.n_ranks : 0; r-- > 0;) {
        if (node_id_equal(&present->node_of_rank[r], e.id))
            e.survivor = r;
    }
    return e;
}

static uint32_t list_entries(const struct cluster *c, const struct desired_model *m,
                             const struct placed_instance *present, struct entry *entries)
{
    uint32_t n = 0;
    entries[n++] = make_entry(c, NULL, m, present);
    for (uint32_t i = 0; i < c->n_peers; i++) {
        if (peer_is_up(c->peer[i]) && c->peer[i]->member.incarnation != 0)
            entries[n++] = make_entry(c, c->peer[i], m, present);
    }
    qsort(entries, n, sizeof(*entries), compare_entries);
    return n;
}

static uint64_t bytes_on(const struct placed_instance *p, const struct node_id *node)
{
    uint64_t sum = 0;
    for (uint32_t r = 0; r < p->split.n_ranks; r++) {
        if (node_id_equal(&p->node_of_rank[r], node))
            sum += p->bytes_of_rank[r];
    }
    return sum;
}

/* Whether the figures of its nodes already lack what it takes. */
static bool is_in_memory(const struct cluster *c, const struct placed_instance *p)
{
    const struct instance_report *r = reports_find(c, &p->id, p->epoch);
    return r != NULL && (r->status == INSTANCE_LOADING || r->status == INSTANCE_SERVING);
}

/* A model's own ranks count as free, also when they have failed just now and the figures do not
 * show it; what others are about to load counts as taken. */
static uint64_t usable_bytes(const struct cluster *c, const struct entry *e, uint64_t free_bytes,
                             const struct placed_instance *present, const struct work *work)
{
    uint64_t taken = 0;
    bool is_just_freed = work != NULL && work->failed_ms != 0 && work->serving_ms != 0 &&
                         c->now_ms - work->failed_ms < FREED_MS;
    if (present != NULL && (is_in_memory(c, present) || is_just_freed))
        free_bytes += bytes_on(present, e->id);
    for (uint32_t i = 0; i < c->state->n_instances; i++) {
        const struct placed_instance *p = &c->state->instance[i];
        bool is_own = present != NULL && node_id_equal(&p->id, &present->id);
        if (!is_own && !is_in_memory(c, p))
            taken += bytes_on(p, e->id);
    }
    return free_bytes > taken ? free_bytes - taken : 0;
}

static bool is_unfit(const struct cluster *c, const struct work *work, const struct node_id *id,
                     bool is_lenient)
{
    for (uint32_t i = 0; work != NULL && i < UNFIT_MAX; i++) {
        const struct unfit *u = &work->unfit[i];
        if (u->until_ms > c->now_ms && (u->is_hard || !is_lenient) && node_id_equal(&u->node, id))
            return true;
    }
    return false;
}

static struct placement_node make_node(const struct cluster *c, const struct entry *e,
                                       const struct placed_instance *present,
                                       const struct work *work, bool is_lenient)
{
    const struct cluster_self *self = e->peer != NULL ? &e->peer->member.self : &c->self;
    struct placement_node n = {.figures = self->figures};
    memcpy(n.name, self->name, sizeof(n.name));
    if (n.name[0] == '\0')
        cluster_label(c, e->id, n.name);
    n.is_excluded = self->is_stopping || cluster_is_drained(c, e->id) ||
                    cluster_is_revoked(c, e->id) || self->figures.thermal == THERMAL_CRITICAL ||
                    is_unfit(c, work, e->id, is_lenient);
    if (self->figures.thermal == THERMAL_THROTTLING) {
        n.figures.gflops /= 2;
        n.figures.memory_gb_s /= 2;
    }
    n.figures.memory_bytes_free = usable_bytes(c, e, n.figures.memory_bytes_free, present, work);
    /* Figures older than what runs there count it as free twice. */
    if (n.figures.memory_bytes_total != 0 &&
        n.figures.memory_bytes_free > n.figures.memory_bytes_total)
        n.figures.memory_bytes_free = n.figures.memory_bytes_total;
    return n;
}

static const struct link_figures *half_link(const struct entry *from, const struct entry *to)
{
    if (from->peer != NULL) {
        const struct message_link *l = peer_find_link(from->peer, to->id);
        return l != NULL ? &l->figures : NULL;
    }
    return peer_is_up(to->peer) ? &to->peer->member.link : NULL;
}

/* Both must hear each other. Of two measurements the slower one counts, of one the one. */
static struct link_figures make_link(const struct entry *a, const struct entry *b)
{
    const struct link_figures *x = half_link(a, b), *y = half_link(b, a);
    if (x == NULL || y == NULL)
        return (struct link_figures){.rtt_us = UINT32_MAX};
    struct link_figures f = *x;
    if (y->rtt_us > f.rtt_us && y->rtt_us != UINT32_MAX)
        f.rtt_us = y->rtt_us;
    if (f.mbit_s == 0 || (y->mbit_s != 0 && y->mbit_s < f.mbit_s))
        f.mbit_s = y->mbit_s;
    return f;
}

/* A model that fits nowhere: other nodes may still come, so that is the answer only after a while.
 * For people who ask (no work) it is one at once. */
static bool may_page(const struct cluster *c, const struct placed_instance *present,
                     const struct work *work)
{
    if (c->no_paging || present != NULL)
        return false;
    return work == NULL || (work->wanted_ms != 0 && c->now_ms - work->wanted_ms >= CLUSTER_WAIT_MS);
}

void place_done(struct place *p)
{
    free(p->nodes);
    free(p->links);
    p->nodes = NULL;
    p->links = NULL;
}

int place_init(struct place *p, const struct cluster *c, const struct desired_model *m,
               const struct placed_instance *present, const struct work *work, bool is_lenient,
               struct error *err)
{
    struct entry entries[LIMIT_PEERS + 1];
    uint32_t n = list_entries(c, m, present, entries);
    *p = (struct place){0};
    p->nodes = calloc(n, sizeof(*p->nodes));
    p->links = calloc((size_t)n * n, sizeof(*p->links));
    if (p->nodes == NULL || p->links == NULL) {
        place_done(p);
        return error_set(err, E_NOMEM, "no memory to place model '%s'", m->id);
    }
    for (uint32_t i = 0; i < n; i++) {
        p->nodes[i] = make_node(c, &entries[i], present, work, is_lenient);
        p->id[i] = *entries[i].id;
        p->incarnation[i] =
            entries[i].peer != NULL ? entries[i].peer->member.incarnation : c->incarnation;
        for (uint32_t k = 0; k < i; k++)
            p->links[i * n + k] = p->links[k * n + i] = make_link(&entries[i], &entries[k]);
    }
    p->request = (struct placement_request){.shape = &m->shape,
                                            .model_name = m->id,
                                            .n_ctx = m->options.n_ctx,
                                            .n_slots = m->options.n_slots,
                                            .n_kv_tokens = m->options.n_kv_tokens,
                                            .kv_type = m->options.kv_type,
                                            .wire = m->options.wire,
                                            .draft_bytes = m->draft_bytes,
                                            .n_nodes = n,
                                            .nodes = p->nodes,
                                            .links = p->links,
                                            .rule = m->rule,
                                            .may_page = may_page(c, present, work),
                                            .split = m->split[0] != '\0' ? m->split : NULL};
    return 0;
}

uint32_t place_n_eligible(const struct place *p)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->request.n_nodes; i++)
        n += !p->nodes[i].is_excluded;
    return n;
}

bool place_is_meshed(const struct place *p)
{
    uint32_t n = p->request.n_nodes;
    for (uint32_t i = 0; i < n; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (!p->nodes[i].is_excluded && !p->nodes[k].is_excluded &&
                p->links[i * n + k].rtt_us == UINT32_MAX)
                return false;
        }
    }
    return true;
}

int cluster_plan_request(const struct cluster *c, const struct desired_model *m,
                         struct placement_request *ret_request,
                         struct node_id node_ids[LIMIT_PEERS + 1], struct error *err)
{
    struct place p;
    int at = cluster_state_find_instance_of(c->state, m->id);
    int rc = place_init(&p, c, m, at >= 0 ? &c->state->instance[at] : NULL, NULL, false, err);
    if (rc != 0)
        return rc;
    memcpy(node_ids, p.id, sizeof(p.id));
    *ret_request = p.request;
    return 0;
}
