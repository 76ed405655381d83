/*
 * Many short lives of a few nodes with random misfortunes: links cut and mended, nodes killed with
 * and without notice, restarted with and without disk, paused, orders given anywhere. While it goes
 * on no state may go back; once it is over all must agree, and each wanted model run exactly once.
 *
 * SWARM_SEED=n repeats one life, NET_TRACE=1 shows it; SWARM_SEEDS=n lives more of them. The
 * simulator (tests/sim) does much more of this; here a bug shows in a second.
 */
#include "cluster/net.h"

enum { SEEDS_DEFAULT = 150, N_MODELS = 3 };

static uint64_t draw_seed, draw_count;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(rng_u64(draw_seed, draw_count++, 5) % below);
}

struct life {
    struct net *n;
    struct claim claim[NET_NODES_MAX]; /* last seen */
    uint32_t claim_life[NET_NODES_MAX];
    uint64_t next_order;
};

static void check_forward(struct life *l)
{
    for (uint32_t i = 0; i < l->n->n_nodes; i++) {
        if (!net_is_alive(l->n, i))
            continue;
        const struct claim *now = &cluster_get_state(l->n->node[i].core)->claim;
        if (l->claim_life[i] == l->n->node[i].life && claim_compare(now, &l->claim[i]) < 0)
            fail_msg("seed %llu: the state of %c has gone back", (unsigned long long)draw_seed,
                     'a' + (int)i);
        l->claim[i] = *now;
        l->claim_life[i] = l->n->node[i].life;
    }
}

static void run(struct life *l, uint64_t ms)
{
    for (uint64_t i = 0; i < ms; i += 10) {
        net_run(l->n, 10);
        check_forward(l);
    }
}

static void link_all(struct net *n)
{
    for (uint32_t i = 0; i < n->n_nodes; i++) {
        for (uint32_t k = 0; k < i; k++) {
            if (net_is_alive(n, i) && net_is_alive(n, k) && !n->is_linked[i][k] &&
                !n->is_cut[i][k] && !n->node[i].is_paused && !n->node[k].is_paused)
                net_link(n, k, i);
        }
    }
}

/* A killed process's system closes its links sooner or later, at the latest when it is back. */
static void boot(struct net *n, uint32_t i, bool with_disk)
{
    for (uint32_t k = 0; k < n->n_nodes; k++)
        net_unlink(n, i, k, true);
    net_boot(n, i, with_disk, false);
}

static void order(struct life *l)
{
    uint32_t at = draw(l->n->n_nodes), what = draw(8);
    char id[8];
    if (!net_is_alive(l->n, at) || l->n->node[at].is_paused)
        return;
    snprintf(id, sizeof(id), "m%u", draw(N_MODELS));
    if (what < 5) {
        net_load(l->n, at, ++l->next_order, id);
    } else if (what == 5) {
        struct cluster_order o = {.type = ORDER_UNLOAD};
        snprintf(o.model.id, sizeof(o.model.id), "%s", id);
        net_order(l->n, at, ++l->next_order, &o);
    } else {
        net_node_order(l->n, at, ++l->next_order, what == 6 ? ORDER_DRAIN : ORDER_UNDRAIN,
                       draw(l->n->n_nodes));
    }
}

static void misfortune(struct life *l)
{
    struct net *n = l->n;
    uint32_t a = draw(n->n_nodes), b = draw(n->n_nodes);
    switch (draw(8)) {
    case 0:
        if (net_is_alive(n, a))
            net_kill(n, a, draw(2) == 0);
        break;
    case 1:
        if (!net_is_alive(n, a))
            boot(n, a, draw(2) == 0);
        break;
    case 2:
        if (a != b)
            net_cut(n, a, b, draw(2) == 0);
        break;
    case 3:
        n->is_cut[a][b] = a != b && draw(2) == 0; /* one way */
        break;
    case 4:
        n->node[a].is_paused = !n->node[a].is_paused && net_is_alive(n, a);
        break;
    case 5:
        net_unlink(n, a, b, draw(2) == 0);
        break;
    default:
        order(l);
        break;
    }
    link_all(n);
}

static void heal(struct net *n)
{
    memset(n->is_cut, 0, sizeof(n->is_cut));
    n->loss_percent = n->twice_percent = n->jitter_ms = 0;
    for (uint32_t i = 0; i < n->n_nodes; i++) {
        n->node[i].is_paused = false;
        if (!net_is_alive(n, i))
            boot(n, i, true);
    }
    link_all(n);
}

static void check_end(struct life *l)
{
    struct net *n = l->n;
    unsigned long long seed = draw_seed;
    int coordinator = net_coordinator(n);
    if (coordinator < 0)
        fail_msg("seed %llu: not one coordinator in the end", seed);
    const struct cluster_state *s = cluster_get_state(n->node[coordinator].core);
    uint32_t n_drained = 0;
    for (uint32_t i = 0; i < s->n_orders; i++)
        n_drained += s->order[i].is_drained;
    for (uint32_t k = 0; k < s->n_models; k++) {
        const struct desired_model *m = &s->model[k];
        bool is_possible = m->is_wanted && n_drained < n->n_nodes;
        uint32_t n_running = net_n_running(n, m->id);
        if (n_running > 1 || (is_possible && n_running != 1) || (!m->is_wanted && n_running != 0))
            fail_msg("seed %llu: %u instances of %s run in the end", seed, n_running, m->id);
        for (uint32_t i = 0; is_possible && i < n->n_nodes; i++) {
            if (!net_is_serving(n, i, m->id))
                fail_msg("seed %llu: %c does not see %s serving in the end", seed, 'a' + (int)i,
                         m->id);
        }
    }
    for (uint32_t i = 0; i < n->n_nodes; i++) {
        if (claim_compare(&cluster_get_state(n->node[i].core)->claim, &s->claim) != 0)
            fail_msg("seed %llu: %c has another state in the end", seed, 'a' + (int)i);
    }
}

static void live(uint64_t seed)
{
    struct life l = {0};
    draw_seed = seed;
    draw_count = 0;
    l.n = net_new(2 + draw(4), false);
    l.n->delay_ms = 1 + draw(2) * draw(100);
    l.n->jitter_ms = draw(2) * draw(300);
    l.n->loss_percent = draw(2) * draw(10);
    l.n->twice_percent = draw(2) * draw(10);
    link_all(l.n);
    for (uint32_t i = 0; i < 25; i++) {
        run(&l, 10 + draw(3) * draw(1500));
        misfortune(&l);
    }
    heal(l.n);
    run(&l, 25000);
    check_end(&l);
    net_free(l.n);
}

static void test_swarm(void **state)
{
    (void)state;
    const char *one = getenv("SWARM_SEED"), *many = getenv("SWARM_SEEDS");
    uint64_t first = one != NULL ? strtoull(one, NULL, 10) : 1;
    uint64_t n = one != NULL ? 1 : many != NULL ? strtoull(many, NULL, 10) : SEEDS_DEFAULT;
    for (uint64_t i = 0; i < n; i++)
        live(first + i);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_swarm),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
