#include "engine/graph_sum.h"

#include "base/clock.h"

#include <string.h>

/* ---- what the operations do ---- */

/* Whether there is anything to do. */
static bool is_live(const struct graph_link *link)
{
    return link->status == 0 && !link->is_silent;
}

/* How many rows are summed, and whether the operation only begins the sum, lie in the tensor's
 * `extra`: a CPU tensor has none. */
static void set_extra(struct ggml_tensor *t, uint32_t n_rows, bool only_start)
{
    t->extra = (void *)((uintptr_t)n_rows << 1 | (uintptr_t)only_start);
}

static void run_sum(struct ggml_tensor *dst, const struct graph_reduce *reduce)
{
    struct graph_link *link = reduce->link;
    if (!is_live(link))
        return;
    uint64_t start = clock_now_ns();
    uintptr_t extra = (uintptr_t)dst->extra;
    size_t n = (size_t)(extra >> 1) * (size_t)dst->ne[0];
    link->status = ((extra & 1) != 0 ? comm_all_reduce_f32_start : comm_all_reduce_f32)(
        link->comm, link->group, reduce->mask, dst->data, n, &link->error);
    link->comm_ns += clock_now_ns() - start;
}

/* ggml calls a custom operation on every thread, whatever its n_tasks. */
static void sum_in_place(struct ggml_tensor *dst, const struct ggml_tensor *partial, int ith,
                         int nth, void *arg)
{
    (void)partial, (void)nth;
    if (ith == 0)
        run_sum(dst, arg);
}

/* What comes from a device is a copy that the scheduler may give to others. */
static void sum_copied(struct ggml_tensor *dst, const struct ggml_tensor *partial, int ith, int nth,
                       void *arg)
{
    (void)nth;
    if (ith != 0)
        return;
    memcpy(dst->data, partial->data, ggml_nbytes(dst));
    run_sum(dst, arg);
}

static void sum_received(struct ggml_tensor *dst, int ith, int nth, void *arg)
{
    (void)nth;
    if (ith != 0)
        return;
    if (((const struct graph_reduce *)arg)->link->is_silent)
        memset(dst->data, 0, ggml_nbytes(dst)); /* nobody sends anything */
    run_sum(dst, arg);
}

static void go_on(struct graph_link *link, int (*step)(struct comm *c, struct error *err))
{
    if (!is_live(link))
        return;
    uint64_t start = clock_now_ns();
    link->status = step(link->comm, &link->error);
    link->comm_ns += clock_now_ns() - start;
}

static void advance(struct ggml_tensor *dst, const struct ggml_tensor *started, int ith, int nth,
                    void *arg)
{
    (void)dst, (void)started, (void)nth;
    if (ith == 0)
        go_on(((struct graph_reduce *)arg)->link, comm_all_reduce_f32_advance);
}

static void finish(struct ggml_tensor *dst, const struct ggml_tensor *started, int ith, int nth,
                   void *arg)
{
    (void)dst, (void)started, (void)nth;
    if (ith == 0)
        go_on(((struct graph_reduce *)arg)->link, comm_all_reduce_f32_finish);
}

/* ---- building them ---- */

static struct ggml_tensor *build(struct ggml_context *ctx, const struct graph_sum *sum,
                                 struct graph_reduce *reduce, bool only_start)
{
    struct ggml_tensor *like = sum->like, *result;
    if (sum->partial == NULL)
        result = ggml_custom_4d(ctx, GGML_TYPE_F32, like->ne[0], like->ne[1], 1, 1, &like, 1,
                                sum_received, 1, reduce);
    else if (sum->in_place)
        result = ggml_map_custom1_inplace(ctx, sum->partial, sum_in_place, 1, reduce);
    else
        result = ggml_map_custom1(ctx, sum->partial, sum_copied, 1, reduce);
    set_extra(result, sum->n_rows, only_start);
    return result;
}

struct ggml_tensor *graph_sum_whole(struct ggml_context *ctx, const struct graph_sum *sum,
                                    struct graph_reduce *reduce)
{
    return build(ctx, sum, reduce, false);
}

struct ggml_tensor *graph_sum_start(struct ggml_context *ctx, const struct graph_sum *sum,
                                    struct graph_reduce *reduce)
{
    return build(ctx, sum, reduce, true);
}

struct ggml_tensor *graph_sum_advance(struct ggml_context *ctx, struct ggml_tensor *started,
                                      struct graph_reduce *reduce)
{
    return ggml_map_custom1_inplace(ctx, started, advance, 1, reduce);
}

struct ggml_tensor *graph_sum_finish(struct ggml_context *ctx, struct ggml_tensor *started,
                                     struct graph_reduce *reduce)
{
    return ggml_map_custom1_inplace(ctx, started, finish, 1, reduce);
}
