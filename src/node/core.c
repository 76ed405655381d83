/* The shell around the cluster's step function (cluster/cluster.h): gives it time, messages and
 * figures, and does what it says. It also writes the state to the disk, in the thread pool, one
 * write at a time, the newest state each time. */
#include "base/clock.h"
#include "base/log.h"
#include "base/rng.h"
#include "node/internal.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { FIGURES_MS = 1000, STATE_BYTES_MAX = STORE_VALUE_BYTES_MAX };
static const char state_key[] = "cluster";

const char *core_node_name(const struct node *n, const struct node_id *id, char text[64])
{
    const struct member *m = cluster_find_member(n->cluster, id);
    if (node_id_equal(id, &n->id))
        snprintf(text, 64, "%s", n->config.name);
    else if (m != NULL && m->self.name[0] != '\0')
        snprintf(text, 64, "%s", m->self.name);
    else
        node_id_text(id, text);
    return text;
}

/* ---- what we say of ourselves ---- */

bool core_has_live_peer(const struct node *n)
{
    const struct member *m;
    for (uint32_t i = 0; (m = cluster_member_at(n->cluster, i)) != NULL; i++)
        if (m->status == MEMBER_UP && !m->self.is_stopping)
            return true;
    return false;
}

void core_describe_self(const struct node *n, struct cluster_self *self)
{
    *self = (struct cluster_self){
        .figures = {.memory_bytes_total = n->device.memory_bytes_total,
                    .memory_bytes_free = node_memory_bytes_free(n) + ranks_parked_bytes(n),
                    .n_cores = n->config.n_threads != 0 ? n->config.n_threads : n->device.n_cores,
                    .gflops = n->gflops,
                    .memory_gb_s = n->memory_gb_s,
                    .thermal = (enum thermal_state)n->telemetry.thermal,
                    .on_battery = n->telemetry.on_battery,
                    .battery_percent = n->telemetry.battery_percent},
        .is_stopping = n->is_leaving,
    };
    if (n->config.memory_bytes_max != 0) {
        struct node_figures *f = &self->figures;
        if (f->memory_bytes_total > n->config.memory_bytes_max)
            f->memory_bytes_total = n->config.memory_bytes_max;
        uint64_t used = ranks_bytes(n);
        uint64_t left = n->config.memory_bytes_max > used ? n->config.memory_bytes_max - used : 0;
        if (f->memory_bytes_free > left)
            f->memory_bytes_free = left;
    }
    snprintf(self->name, sizeof(self->name), "%s", n->config.name);
}

static void tell_self(struct node *n)
{
    struct cluster_self self;
    struct cluster_event e = {.type = CLUSTER_EVENT_SELF, .self = &self};
    n->figures_ms = uv_now(n->loop);
    core_describe_self(n, &self);
    core_step(n, &e, NULL);
}

/* ---- saving ---- */

static void do_save(uv_work_t *work)
{
    struct node *n = work->data;
    error_clear(&n->save_error);
    if (store_write(n->store, state_key, n->saving.data, n->saving.len, &n->save_error) == 0)
        measure_save(n, &n->save_error);
}

static void after_save(uv_work_t *work, int status)
{
    struct node *n = work->data;
    (void)status;
    n->n_loads--;
    n->is_saving = false;
    buf_done(&n->saving);
    if (n->save_error.code != 0)
        log_error("node", "the cluster's state could not be saved: %s", n->save_error.message);
    if (n->is_save_due)
        core_save(n);
    node_check_stop(n);
}

void core_save(struct node *n)
{
    if (n->store == NULL || n->cluster == NULL || n->phase == NODE_CLOSING)
        return;
    if (n->is_saving) {
        n->is_save_due = true;
        return;
    }
    n->is_save_due = false;
    buf_init(&n->saving, STATE_BYTES_MAX);
    n->save_work.data = n;
    if (cluster_save(n->cluster, &n->saving) != 0 ||
        uv_queue_work(n->loop, &n->save_work, do_save, after_save) != 0) {
        buf_done(&n->saving);
        log_error("node", "out of memory: the cluster's state was not saved");
        return;
    }
    n->is_saving = true;
    n->n_loads++;
}

/* ---- actions ---- */

static void do_action(struct node *n, const struct cluster_action *a)
{
    struct mesh_link *link;
    switch (a->type) {
    case CLUSTER_SEND:
        link = mesh_find(n->mesh, &a->node);
        if (link != NULL)
            mesh_send_cluster(link, a->data, a->len);
        break;
    case CLUSTER_DISCONNECT:
        mesh_revoke(n->mesh, &a->node, NULL);
        break;
    case CLUSTER_SAVE:
        core_save(n);
        break;
    case CLUSTER_START:
        instance_lead(n, a->instance);
        break;
    case CLUSTER_STOP:
        instance_stop(n, &a->instance_id, a->epoch);
        break;
    case CLUSTER_CHANGED:
        n->is_changed = true;
        break;
    case CLUSTER_ANSWER:
        control_on_answer(n, a->order_id, &a->error);
        break;
    case CLUSTER_TRACE:
        if (a->is_warning)
            log_warn("cluster", "%s", a->trace);
        else
            log_info("cluster", "%s", a->trace);
        break;
    }
}

/* Tells of each placement once, when it serves. */
static void announce(struct node *n)
{
    const struct cluster_state *s = cluster_get_state(n->cluster);
    for (uint32_t k = 0; k < s->n_instances; k++) {
        const struct placed_instance *p = &s->instance[k];
        const struct instance_report *r = cluster_find_report(n->cluster, &p->id);
        char split[32];
        uint32_t at = 0;
        while (at < n->n_announced && !node_id_equal(&n->announced[at].id, &p->id))
            at++;
        if (r == NULL || r->status != INSTANCE_SERVING ||
            (at < n->n_announced && n->announced[at].epoch == p->epoch))
            continue;
        if (at == n->n_announced) {
            if (n->n_announced == LIMIT_INSTANCES)
                at = 0; /* forgetting one only means that it may be told twice */
            else
                n->n_announced++;
        }
        n->announced[at].id = p->id;
        n->announced[at].epoch = p->epoch;
        if (n->events.serving != NULL)
            n->events.serving(n->events.arg, p->model_id, split_describe(&p->split, split),
                              p->split.n_ranks);
    }
}

/* What follows from actions may change instances, whose reports the core must hear of, which may
 * lead to more actions: until nothing is left to say. */
static void settle(struct node *n)
{
    do {
        if (!n->is_changed)
            continue;
        n->is_changed = false;
        backend_refresh(n);
        requests_on_places(n);
        announce(n);
    } while (instance_send_reports(n) || n->is_changed);
}

int core_step(struct node *n, const struct cluster_event *e, struct error *err)
{
    struct cluster_actions actions = {0};
    struct error own = {0};
    bool is_outermost = !n->is_stepping;
    if (n->cluster == NULL || n->phase == NODE_CLOSING)
        return 0;
    n->is_stepping = true;
    int rc = cluster_step(n->cluster, e, uv_now(n->loop), &actions, &own);
    if (rc == E_NOMEM)
        log_error("node", "out of memory for an event of the cluster");
    for (uint32_t i = 0; i < actions.n; i++)
        do_action(n, &actions.action[i]);
    if (is_outermost) {
        settle(n);
        n->is_stepping = false;
    }
    if (rc == E_PROTOCOL && err != NULL)
        *err = own;
    return rc == E_PROTOCOL ? rc : 0;
}

void core_touch(struct node *n)
{
    n->is_changed = true;
    if (n->is_stepping || n->cluster == NULL)
        return;
    n->is_stepping = true;
    settle(n);
    n->is_stepping = false;
}

void core_tick(struct node *n)
{
    struct cluster_event e = {.type = CLUSTER_EVENT_TICK};
    bool is_stop_news = n->phase != NODE_RUNNING && !n->is_told_of_stop;
    if (is_stop_news) {
        /* A node that is alone has nobody to hand its instances to: they serve to the end. */
        n->is_leaving = core_has_live_peer(n);
        n->is_told_of_stop = true;
    }
    if (is_stop_news || uv_now(n->loop) - n->figures_ms >= FIGURES_MS)
        tell_self(n);
    core_step(n, &e, NULL);
    ranks_tick(n);
    telemetry_tick(n);
    router_tick(n->router, uv_now(n->loop));
    node_check_stop(n);
}

/* ---- life ---- */

static int read_saved(struct node *n, struct buf *saved, struct error *err)
{
    char path[4096], damaged[4096];
    int len = snprintf(path, sizeof(path), "%s/state.db", n->config.data_dir);
    if (len < 0 || (size_t)len >= sizeof(path))
        return error_set(err, E_INVALID, "data folder's path is too long");
    int rc = store_open(path, &n->store, damaged, err);
    if (rc != 0)
        return rc;
    if (damaged[0] != '\0')
        log_error("node", "%s was damaged and is now %s -> begins anew", path, damaged);
    rc = store_read(n->store, state_key, saved, err);
    return rc == E_NOTFOUND ? 0 : rc;
}

int core_init(struct node *n, struct error *err)
{
    struct cluster_options o = {
        .id = n->id,
        .incarnation = clock_wall_ns() / 1000000u,
        .is_alone_expected =
            n->config.n_peers == 0 && !n->config.discovers && n->config.n_secret == 0,
    };
    struct buf saved;
    buf_init(&saved, STATE_BYTES_MAX);
    int rc = read_saved(n, &saved, err);
    if (rc == 0)
        rc = rng_system(&o.seed, sizeof(o.seed));
    if (rc == 0) {
        core_describe_self(n, &o.self);
        o.saved = saved.len > 0 ? saved.data : NULL;
        o.saved_len = saved.len;
        rc = cluster_new(&o, uv_now(n->loop), &n->cluster, err);
        if (rc == E_PROTOCOL) {
            /* From another version, or damaged within: nothing in it can be used. */
            log_error("node", "the saved state of the cluster cannot be read: %s -> begins anew",
                      err->message);
            o.saved = NULL;
            rc = cluster_new(&o, uv_now(n->loop), &n->cluster, err);
        }
    }
    buf_done(&saved);
    n->figures_ms = uv_now(n->loop);
    return rc;
}

void core_done(struct node *n)
{
    cluster_free(n->cluster);
    store_close(n->store);
    n->cluster = NULL;
    n->store = NULL;
}
