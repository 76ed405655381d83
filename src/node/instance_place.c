/* From the nodes that are there now to the shards of an instance. */
#include "base/log.h"
#include "node/internal.h"

#include <stdio.h>
#include <string.h>

/* This node first: the coordinator's own rank is the head. */
static uint32_t collect_nodes(struct instance *i, struct placement_node *nodes, struct node_id *ids)
{
    struct node *n = i->node;
    uint32_t count = 1;
    nodes[0] = (struct placement_node){.memory_bytes_free = device_memory_bytes_free(),
                                       .n_cores = n->n_cores};
    snprintf(nodes[0].name, sizeof(nodes[0].name), "%s", n->config.name);
    ids[0] = n->id;
    struct mesh_link *l;
    for (uint32_t k = 0; (l = mesh_link_at(n->mesh, k)) != NULL && count < LIMIT_RANKS; k++) {
        const struct mesh_hello *hello = mesh_link_hello(l);
        if (mesh_link_heartbeat(l)->is_stopping)
            continue;
        /* In the order of names, so that the same nodes give the same placement. */
        uint32_t at = count++;
        while (at > 1 && strcmp(nodes[at - 1].name, hello->name) > 0) {
            nodes[at] = nodes[at - 1];
            ids[at] = ids[at - 1];
            at--;
        }
        nodes[at] =
            (struct placement_node){.memory_bytes_free = mesh_link_heartbeat(l)->memory_bytes_free,
                                    .n_cores = hello->n_cores};
        snprintf(nodes[at].name, sizeof(nodes[at].name), "%s", hello->name);
        ids[at] = hello->id;
    }
    return count;
}

int instance_place(struct instance *i, struct error *err)
{
    struct placement_node nodes[LIMIT_RANKS];
    struct node_id ids[LIMIT_RANKS];
    const struct node_config *c = &i->node->config;
    struct placement_request request = {
        .model = i->file->model,
        .n_ctx = c->n_ctx,
        .n_slots = c->n_slots,
        .n_nodes = collect_nodes(i, nodes, ids),
        .nodes = nodes,
        .split = c->split[0] != '\0' ? c->split : NULL,
    };
    int rc = placement_solve(&request, &i->placement, err);
    if (rc != 0)
        return rc;
    const struct split *s = &i->placement.split;
    i->info.n_ranks = s->n_ranks;
    split_describe(s, i->info.split);
    for (uint32_t r = 0; r < s->n_ranks; r++) {
        i->node_of_rank[r] = ids[i->placement.node_of_rank[r]];
        i->info.rank[r] = (struct rank_info){.node = i->node_of_rank[r], .status = RANK_ENDED};
        struct shard shard;
        if (shard_init(&shard, i->file->model, s, r, NULL) == 0) {
            i->info.rank[r].stage = shard.stage;
            i->info.rank[r].layers = shard.layers;
            if (shard.layers.end > shard.layers.begin)
                i->info.rank[r].kv_heads = shard.layer[0].kv_heads;
            shard_done(&shard);
        }
        log_info("node", "instance=%s rank=%u node=%s layers=%u-%u bytes=%llu", i->info.model_id, r,
                 nodes[i->placement.node_of_rank[r]].name, i->info.rank[r].layers.begin,
                 i->info.rank[r].layers.end, (unsigned long long)i->placement.bytes_of_rank[r]);
    }
    return 0;
}
