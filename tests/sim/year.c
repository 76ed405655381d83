/*
 * Long times. A year: faults at the rate of machines that people own, each of four nodes by itself:
 * one crash of the node's process a day (it is started again after 5 s), one restart of the machine
 * a week (90 s; half of them in order, half by loss of power), one problem of its network a day (1
 * to 30 s; half of them the link to one other node, half all links). When all is well again and
 * nothing is due, time jumps to the next fault; what is skipped counts as served, since it was when
 * the jump began. A campaign does the same with a swarm's worlds and all its kinds of faults.
 */
#include "sim.h"

#include <math.h>

enum {
    CALM_US =
        32000000, /* all well for so long before time jumps: longer than SERVED_MS of the core */
    GIVE_UP_US = 120000000,
    SAMPLE_US = 100000,
    CRASH_DOWN_US = 5000000,
    REBOOT_DOWN_US = 90000000,
};
static const double day_us = 86400e6;

void year_choose(struct world *w)
{
    w->delay_us = 300;
    w->jitter_us = 300;
    w->load_ms = 3000;
    w->start_ms = 50;
    w->end_ms = 50;
    w->token_us = 30000;
    w->save_us = 5000;
    w->n_slots = 4;
    w->request_gap_us = 2000000;
    sim_add_model(w, 10); /* more than one node holds */
    for (uint32_t i = 0; i < w->n_nodes; i++)
        sim_add_node(w, i, 8, 1);
}

static uint64_t gap_us(struct world *w)
{
    double per_day = (double)w->n_nodes * (1 + 1 / 7.0 + 1);
    if (w->options.is_campaign)
        per_day = 12; /* and one in three is followed by another within seconds */
    if (w->options.is_campaign && chance_is(w, 0.3))
        return chance_below(w, 5000000);
    return (uint64_t)(-log(1 - chance_unit(w)) * day_us / per_day);
}

struct outage { /* a node that is down until it starts again */
    bool is_down;
    uint64_t until_us;
};

static void crash(struct world *w, struct outage *down, uint32_t a, double u)
{
    struct sim_node *n = &w->node[a];
    bool is_reboot = u >= 1;
    if (!n->is_alive || down[a].is_down)
        return;
    down[a].is_down = true;
    down[a].until_us = w->now_us + (is_reboot ? REBOOT_DOWN_US : CRASH_DOWN_US);
    enum fault_kind kind = !is_reboot ? FAULT_KILL : chance_is(w, 0.5) ? FAULT_LEAVE : FAULT_POWER;
    fault_begin(w, kind, a, a, 0);
}

static void one_fault(struct world *w, struct outage *down)
{
    if (w->options.is_campaign) {
        swarm_fault(w, w->mixture);
        return;
    }
    uint32_t a = chance_below(w, w->n_nodes);
    double u = chance_unit(w) * (2 + 1 / 7.0);
    uint64_t us = 1000000 + chance_below(w, 29000000);
    if (u < 1 + 1 / 7.0)
        crash(w, down, a, u);
    else if (chance_is(w, 0.5))
        fault_begin(w, FAULT_CUT, a, (a + 1 + chance_below(w, w->n_nodes - 1)) % w->n_nodes, us);
    else
        fault_begin(w, FAULT_PARTITION, a, UINT32_MAX, us);
}

/* Returns whether some node is still down. */
static bool bring_back(struct world *w, struct outage *down)
{
    bool is_any = false;
    for (uint32_t i = 0; i < w->n_nodes; i++) {
        if (w->options.is_campaign && !w->node[i].is_alive && !down[i].is_down) {
            down[i].is_down = true;
            down[i].until_us = w->now_us + 1000000 + chance_below(w, 60000000);
        }
        if (down[i].is_down && w->now_us >= down[i].until_us) {
            if (w->node[i].is_alive) /* it leaves slowly: the system waits no longer */
                node_die(&w->node[i], false);
            fault_begin(w, FAULT_RESTART, i, i, 0);
            down[i].is_down = false;
        }
        is_any |= down[i].is_down;
    }
    return is_any;
}

static void skip(struct world *w, uint64_t us)
{
    uint64_t n = us / SAMPLE_US * w->n_nodes * w->n_models;
    w->report->skipped_us += us;
    w->report->n_asked += n;
    w->report->n_served += n;
    w->report->n_asked_feasible += n;
    w->report->n_served_feasible += n;
}

/* Runs until all is well or the next fault is due. Returns the time that is left until then. */
static uint64_t run_episode(struct world *w, struct outage *down, uint64_t next_us)
{
    uint64_t well_us = 0;
    for (uint64_t passed_us = 0; passed_us < next_us; passed_us += SAMPLE_US) {
        world_run(w, w->now_us + SAMPLE_US);
        bool is_any_down = bring_back(w, down);
        if (w->is_failed)
            return 0;
        well_us = is_any_down || w->n_disturbed > 0 || !swarm_is_well(w) ? 0 : well_us + SAMPLE_US;
        if (well_us >= CALM_US) {
            check_coordinator_end(w);
            check_placement_end(w);
            return next_us - passed_us;
        }
        if (well_us == 0 && world_is_calm(w, GIVE_UP_US) && !is_any_down)
            world_fail(w, "year", "not well %d s after the last fault", GIVE_UP_US / 1000000);
    }
    return 0;
}

void year_run(struct world *w)
{
    struct outage down[SIM_NODES_MAX] = {0};
    uint64_t left_us = w->options.time_us;
    for (uint32_t i = 0; i < w->n_nodes; i++)
        node_start(&w->node[i], false);
    if (w->options.is_campaign)
        w->mixture = swarm_mixture(w);
    world_run(w, w->now_us + 3000000);
    swarm_load_models(w);
    world_run(w, w->now_us + 8000000);
    clients_begin(w);
    uint64_t begin_us = w->now_us;
    while (!w->is_failed && left_us > 0) {
        uint64_t next_us = gap_us(w);
        if (next_us > left_us)
            next_us = left_us;
        left_us -= next_us;
        skip(w, run_episode(w, down, next_us));
        if (left_us > 0 && !w->is_failed)
            one_fault(w, down);
    }
    w->report->virtual_us += w->now_us - begin_us;
}
