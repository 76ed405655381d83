/* Every accepted request ends exactly once, unless its own node dies; its tokens are those of the
 * undisturbed run, one by one; and it ends as that run does. */
#include "sim.h"

static const struct sim_node *node_of(const struct sim_request *q)
{
    return &q->w->node[q->node];
}

void check_tokens(struct sim_request *q, const int32_t *tokens, uint32_t n)
{
    if (q->is_ended)
        world_fail(q->w, "requests", "%s: request %u gets tokens after its end", node_of(q)->name,
                   q->number);
    for (uint32_t i = 0; i < n; i++) {
        int32_t expected = stream_next(q->stream);
        if (tokens[i] != expected) {
            world_fail(q->w, "requests", "%s: request %u: token %u is %d, undisturbed it is %d",
                       node_of(q)->name, q->number, q->n_got, tokens[i], expected);
            return;
        }
        q->stream = stream_mix(q->stream, tokens[i]);
        q->n_got++;
    }
    if (q->n_got > q->n_max)
        world_fail(q->w, "requests", "%s: request %u got %u tokens, at most %u were wanted",
                   node_of(q)->name, q->number, q->n_got, q->n_max);
}

static bool is_end_right(const struct sim_request *q, const struct router_done *done)
{
    switch (done->reason) {
    case ROUTER_STOP:
        return stream_next(q->stream) < 0;
    case ROUTER_LENGTH:
        return q->n_got == q->n_max;
    case ROUTER_CANCELLED:
        return q->is_cancelled;
    case ROUTER_ERROR:
        break;
    }
    return true;
}

static bool is_wanted(const struct sim_request *q)
{
    const struct cluster_state *s = cluster_get_state(node_of(q)->cluster);
    int k = cluster_state_find_model(s, q->w->model[q->model].id);
    return k >= 0 && s->model[k].is_wanted;
}

/* A person who has waited in vain must have had bad luck: in the time it waited, nothing served
 * because nothing could. */
static bool is_error_allowed(const struct sim_request *q, const struct router_done *done)
{
    struct world *w = q->w;
    if (done->error.code == E_BUSY) /* of a first attempt: the head was full */
        return done->n_generated == 0;
    if (done->error.code != E_UNAVAILABLE)
        return false;
    return !world_is_calm(w, 16000000) || !check_is_feasible(w, node_of(q), q->model) ||
           !is_wanted(q);
}

void check_done(struct sim_request *q, const struct router_done *done)
{
    struct world *w = q->w;
    const char *name = node_of(q)->name;
    if (q->is_ended)
        world_fail(w, "requests", "%s: request %u ends twice", name, q->number);
    if (done->n_generated != q->n_got || done->n_prompt != q->n_prompt)
        world_fail(w, "requests", "%s: request %u: usage says %u + %u tokens, it had %u + %u", name,
                   q->number, done->n_prompt, done->n_generated, q->n_prompt, q->n_got);
    if (!is_end_right(q, done))
        world_fail(w, "requests",
                   "%s: request %u ends with reason %d after %u of %u tokens; undisturbed it "
                   "would not",
                   name, q->number, done->reason, q->n_got, q->n_max);
    if (done->reason == ROUTER_ERROR && !is_error_allowed(q, done))
        world_fail(w, "requests", "%s: request %u fails: %s", name, q->number, done->error.message);
}

void check_requests_end(struct world *w)
{
    for (const struct sim_request *q = w->requests; q != NULL; q = q->next)
        if (!q->is_ended && !q->is_lost)
            world_fail(w, "requests", "%s: request %u of %.3f ms has not ended, after %u tokens",
                       node_of(q)->name, q->number, (double)q->submit_us / 1e3, q->n_got);
}
