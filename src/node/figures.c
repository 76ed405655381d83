/* What the ranks of an instance do. Their runners answer pings with sums, which their nodes pass on
 * to the leader; it tells the cluster every two seconds, when there is news. */
#include "node/internal.h"

enum { FIGURES_MS = 2000 };

static void take_head(struct instance *i, const struct message_pong *p)
{
    const struct scheduler_stats *s = &p->scheduler;
    i->report.head = (struct head_work){
        .read_ms = uv_now(i->node->loop),
        .n_prompt_tokens = s->n_prompt_tokens,
        .n_cached_tokens = s->n_cached_tokens,
        .n_generated_tokens = s->n_generated_tokens,
        .n_drafted = s->n_drafted,
        .n_accepted = s->n_accepted,
        .n_preempted = s->n_preempted,
        .n_running = p->n_running,
        .n_queued = p->n_queued,
        .n_blocks = s->n_blocks_used + s->n_blocks_kept + s->n_blocks_free,
        .n_blocks_free = s->n_blocks_free,
    };
}

bool figures_take(struct instance *i, uint32_t rank, const struct message_pong *p)
{
    const struct engine_timing *t = &p->timing;
    i->report.rank[rank].work = (struct rank_work){
        .n_steps = t->n_steps,
        .n_tokens = t->n_tokens,
        .step_ns = t->step_ns,
        .wait_ns = t->comm_ns,
        .prepare_ns = t->graph_ns + t->fill_ns,
        .sample_ns = t->sample_ns,
        .bytes_sent = p->comm.bytes_sent,
        .n_operations = p->comm.n_operations,
    };
    if (rank == 0)
        take_head(i, p);
    uint64_t n_steps = i->report.rank[0].work.n_steps, now_ms = uv_now(i->node->loop);
    if (n_steps == i->n_steps_told || now_ms - i->figures_ms < FIGURES_MS)
        return false;
    i->n_steps_told = n_steps;
    i->figures_ms = now_ms;
    return true;
}

void figures_put_head(struct buf *b, const struct head_work *h)
{
    buf_printf(b,
               ",\"work\":{\"read_ms\":%llu,\"prompt_tokens\":%llu,\"cached_tokens\":%llu,"
               "\"generated_tokens\":%llu,\"drafted\":%llu,\"accepted\":%llu,\"preempted\":%llu,"
               "\"running\":%u,\"queued\":%u,\"blocks\":%u,\"blocks_free\":%u}",
               (unsigned long long)h->read_ms, (unsigned long long)h->n_prompt_tokens,
               (unsigned long long)h->n_cached_tokens, (unsigned long long)h->n_generated_tokens,
               (unsigned long long)h->n_drafted, (unsigned long long)h->n_accepted,
               (unsigned long long)h->n_preempted, h->n_running, h->n_queued, h->n_blocks,
               h->n_blocks_free);
}

void figures_put_rank(struct buf *b, const struct rank_work *w)
{
    buf_printf(b,
               ",\"work\":{\"steps\":%llu,\"tokens\":%llu,\"step_ns\":%llu,\"wait_ns\":%llu,"
               "\"prepare_ns\":%llu,\"sample_ns\":%llu,\"bytes_sent\":%llu,\"operations\":%llu}",
               (unsigned long long)w->n_steps, (unsigned long long)w->n_tokens,
               (unsigned long long)w->step_ns, (unsigned long long)w->wait_ns,
               (unsigned long long)w->prepare_ns, (unsigned long long)w->sample_ns,
               (unsigned long long)w->bytes_sent, (unsigned long long)w->n_operations);
}
