/*
 * Many sequences in steps of all mixtures: a script that is random but a function of its seed,
 * ranks that carry it out, and a comparison with the plain loops of reference.h. Some sequences
 * share a beginning, some steps hold drafts that are rejected.
 */
#ifndef TEST_COMPANY_H
#define TEST_COMPANY_H

#include "engine/internal.h"
#include "shapes.h"

#include <pthread.h>

enum { N_SLOTS = 4, N_SEQUENCES = 6, LENGTH_MAX = 90, N_STEPS_MAX = 400, N_BATCH = 40 };

/* What the ranks do, worked out before they start: each one reads the same. */
enum action_kind { ACTION_ATTACH, ACTION_EXTEND, ACTION_COPY, ACTION_TRUNCATE, ACTION_STEP };

struct action {
    enum action_kind kind;
    uint32_t slot, n_blocks, n_keep, blocks[4]; /* copy: blocks 0 to 1, n_keep tokens */
    struct step step;
    int32_t tokens[N_BATCH];
    struct { /* where the logits of an output row belong; NULL: of a rejected draft */
        const struct sequence *sequence;
        uint32_t position;
    } row[N_BATCH];
};

struct sequence {
    int32_t tokens[LENGTH_MAX];
    uint32_t n_tokens, n_done, slot, n_blocks, blocks[4];
    bool is_running;
    float *logits; /* [n_tokens][n_vocab] */
};

struct script {
    struct sequence sequence[N_SEQUENCES];
    struct action action[N_STEPS_MAX];
    uint32_t n_actions;
    uint64_t seed, n_draws, number;
    uint32_t n_begun, next_block;
};

static uint32_t draw(struct script *s, uint32_t n)
{
    return (uint32_t)(rng_u64(s->seed, s->n_draws++, 1) % n);
}

static struct action *add(struct script *s, enum action_kind kind, uint32_t slot)
{
    assert_true(s->n_actions < N_STEPS_MAX);
    struct action *a = &s->action[s->n_actions++];
    *a = (struct action){.kind = kind, .slot = slot};
    return a;
}

/* Sequence 1 begins like sequence 0 and shares its blocks, if these are there already. */
static void begin_sequence(struct script *s, uint32_t slot, uint32_t block_tokens)
{
    struct sequence *q = &s->sequence[s->n_begun++], *first = &s->sequence[0];
    q->slot = slot;
    q->is_running = true;
    uint32_t n_common = q != first && first->n_done > 1 ? first->n_done : 0;
    if (n_common > q->n_tokens - 1)
        n_common = q->n_tokens - 1;
    if (q == &s->sequence[1] && n_common > 0) {
        memcpy(q->tokens, first->tokens, n_common * sizeof(int32_t));
        uint32_t n_full = n_common / block_tokens, n_rest = n_common % block_tokens;
        memcpy(q->blocks, first->blocks, n_full * sizeof(uint32_t));
        q->n_blocks = n_full + 1;
        q->blocks[n_full] = s->next_block++;
        q->n_done = n_common;
        if (n_rest > 0) {
            struct action *copy = add(s, ACTION_COPY, 0);
            copy->blocks[0] = first->blocks[n_full];
            copy->blocks[1] = q->blocks[n_full];
            copy->n_keep = n_rest;
        }
    } else {
        q->n_blocks = 1;
        q->blocks[0] = s->next_block++;
    }
    struct action *a = add(s, ACTION_ATTACH, slot);
    a->n_blocks = q->n_blocks;
    a->n_keep = q->n_done;
    memcpy(a->blocks, q->blocks, sizeof(a->blocks));
}

static void make_room(struct script *s, struct sequence *q, uint32_t n, uint32_t block_tokens)
{
    while (q->n_done + n > q->n_blocks * block_tokens) {
        struct action *a = add(s, ACTION_EXTEND, q->slot);
        a->n_blocks = 1;
        a->blocks[0] = q->blocks[q->n_blocks++] = s->next_block++;
    }
}

/* One step of some of the running sequences; now and then a draft that will be rejected. */
static void add_step(struct script *s, struct sequence *const running[N_SLOTS],
                     uint32_t block_tokens)
{
    struct sequence *chosen[N_SLOTS];
    uint32_t n_chosen = 0, n_each[N_SLOTS], n_left = N_BATCH;
    bool is_draft = draw(s, 6) == 0;
    for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
        struct sequence *q = running[(slot + s->number) % N_SLOTS];
        if (q == NULL || (n_chosen > 0 && draw(s, 4) == 0))
            continue;
        uint32_t most = q->n_tokens - q->n_done, n = draw(s, 2) ? 1 : draw(s, 20) + 1;
        n = n < most ? n : most;
        n = n < n_left ? n : n_left;
        if (n == 0)
            continue;
        make_room(s, q, n, block_tokens);
        chosen[n_chosen] = q;
        n_each[n_chosen++] = n;
        n_left -= n;
    }
    if (n_chosen == 0)
        return;
    struct action *a = add(s, ACTION_STEP, 0);
    a->step = (struct step){.number = ++s->number, .n_parts = n_chosen, .tokens = a->tokens};
    uint32_t n_rows = 0;
    for (uint32_t i = 0; i < n_chosen; i++) {
        struct sequence *q = chosen[i];
        enum step_output output = (enum step_output)draw(s, 3);
        a->step.part[i] =
            (struct step_part){.slot = q->slot, .n_tokens = n_each[i], .output = output};
        for (uint32_t t = 0; t < n_each[i]; t++) {
            a->tokens[a->step.n_tokens++] = is_draft ? 5 : q->tokens[q->n_done + t];
            if (output == STEP_OUTPUT_ALL || (output == STEP_OUTPUT_LAST && t + 1 == n_each[i])) {
                a->row[n_rows].sequence = is_draft ? NULL : q;
                a->row[n_rows++].position = q->n_done + t;
            }
        }
    }
    for (uint32_t i = 0; i < n_chosen; i++)
        if (is_draft)
            add(s, ACTION_TRUNCATE, chosen[i]->slot)->n_keep = chosen[i]->n_done;
        else
            chosen[i]->n_done += n_each[i];
}

static void make_script(struct script *s, uint64_t seed, uint32_t n_vocab, uint32_t block_tokens)
{
    memset(s, 0, sizeof(*s));
    s->seed = seed;
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        struct sequence *q = &s->sequence[i];
        q->n_tokens = 2 + draw(s, LENGTH_MAX - 2);
        make_tokens(seed * 100 + i, n_vocab, q->tokens, q->n_tokens);
        q->logits = calloc((size_t)q->n_tokens * n_vocab, sizeof(float));
    }
    struct sequence *running[N_SLOTS] = {0};
    for (;;) {
        bool is_over = s->n_begun == N_SEQUENCES;
        for (uint32_t slot = 0; slot < N_SLOTS; slot++) {
            if (running[slot] != NULL && running[slot]->n_done == running[slot]->n_tokens)
                running[slot] = NULL;
            if (running[slot] == NULL && s->n_begun < N_SEQUENCES && draw(s, 3) == 0) {
                running[slot] = &s->sequence[s->n_begun];
                begin_sequence(s, slot, block_tokens);
            }
            is_over = is_over && running[slot] == NULL;
        }
        if (is_over)
            return;
        add_step(s, running, block_tokens);
    }
}

/* ---- ranks ---- */

struct company { /* who carries a script out */
    const char *split;
    uint32_t n_ranks;
    const char *device[8]; /* of each rank; NULL: the processors */
    enum kv_type kv_type;
};

struct rank {
    const struct model *model;
    const struct split *split;
    const struct script *script;
    const struct company *company;
    uint32_t index;
    struct comm *comm;
    pthread_t thread;
    int rc;
    struct error err;
};

static int do_step(struct rank *r, struct engine *e, const struct action *a)
{
    struct step_result result;
    int rc = engine_step(e, &a->step, &result, &r->err);
    for (uint32_t i = 0; rc == 0 && i < result.n_rows; i++) {
        struct range vocab;
        const float *logits = engine_logits(e, i, &vocab);
        if (a->row[i].sequence != NULL && logits != NULL)
            memcpy(a->row[i].sequence->logits +
                       (size_t)a->row[i].position * r->model->config.n_vocab + vocab.begin,
                   logits, (vocab.end - vocab.begin) * sizeof(float));
    }
    return rc;
}

static int run_script(struct rank *r)
{
    struct engine_options options = {.n_slots = N_SLOTS,
                                     .n_ctx = 256,
                                     .n_batch = N_BATCH,
                                     .n_kv_tokens = 64 * 64,
                                     .kv_type = r->company->kv_type};
    const char *device = r->company->device[r->index];
    struct sampling sampling;
    struct engine *e = NULL;
    sampling_init(&sampling);
    if (device != NULL)
        snprintf(options.device, sizeof(options.device), "%s", device);
    int rc = engine_open(r->model, r->split, r->index, r->comm, &options, &e, &r->err);
    if (rc == 0 &&
        device ==
            NULL) /* as with repacked weights, which these models have not; ranks may differ */
        e->builder.padding = (struct graph_padding){.fours = (r->script->seed + r->index) % 2 == 0,
                                                    .sixteens = r->script->seed % 4 == 0};
    for (uint32_t i = 0; rc == 0 && i < r->script->n_actions; i++) {
        const struct action *a = &r->script->action[i];
        switch (a->kind) {
        case ACTION_ATTACH:
            rc = engine_slot_attach(e, a->slot, a->blocks, a->n_blocks, a->n_keep, &sampling,
                                    &r->err);
            break;
        case ACTION_EXTEND:
            rc = engine_slot_extend(e, a->slot, a->blocks, a->n_blocks, &r->err);
            break;
        case ACTION_COPY:
            rc = engine_block_copy(e, a->blocks[0], a->blocks[1], a->n_keep, &r->err);
            break;
        case ACTION_TRUNCATE:
            rc = engine_slot_truncate(e, a->slot, a->n_keep, &r->err);
            break;
        case ACTION_STEP:
            rc = do_step(r, e, a);
            break;
        }
    }
    engine_close(e);
    return rc;
}

static void *run_thread(void *arg)
{
    struct rank *r = arg;
    r->rc = run_script(r);
    comm_close(r->comm);
    return NULL;
}

static void run_ranks(const struct model *m, const struct company *company,
                      const struct script *script)
{
    uint32_t n_ranks = company->n_ranks;
    struct split split;
    struct comm *comms[8] = {0};
    struct rank rank[8];
    struct comm_options options = {.spin_us = 0};
    assert_int_equal(split_parse(company->split, n_ranks, m->config.n_layer, NULL, &split, NULL),
                     0);
    if (n_ranks > 1)
        assert_int_equal(comm_local_new(n_ranks, &options, comms, NULL), 0);
    for (uint32_t i = 0; i < n_ranks; i++) {
        rank[i] = (struct rank){.model = m,
                                .split = &split,
                                .script = script,
                                .company = company,
                                .index = i,
                                .comm = comms[i]};
        pthread_create(&rank[i].thread, NULL, run_thread, &rank[i]);
    }
    for (uint32_t i = 0; i < n_ranks; i++)
        pthread_join(rank[i].thread, NULL);
    for (uint32_t i = 0; i < n_ranks; i++)
        if (rank[i].rc != 0)
            fail_msg("%s, seed %llu, rank %u: %s", company->split, (unsigned long long)script->seed,
                     i, rank[i].err.message);
}

/* ---- the property ---- */

/* Of rows that gave logits; the others are zeros. */
static double largest_difference(const struct sequence *q, const double *expected, uint32_t n_vocab)
{
    double most = 0;
    for (uint32_t t = 0; t < q->n_tokens; t++) {
        const float *row = q->logits + (size_t)t * n_vocab;
        bool is_empty = true;
        for (uint32_t i = 0; i < n_vocab; i++)
            is_empty = is_empty && row[i] == 0.0f;
        for (uint32_t i = 0; i < n_vocab && !is_empty; i++)
            most = fmax(most, fabs((double)row[i] - expected[(size_t)t * n_vocab + i]));
    }
    return most;
}

static void check_script(const struct tiny_model *tiny, const struct model *m, uint64_t seed,
                         const struct company *companies, size_t n_companies, double tolerance)
{
    static struct script script;
    uint32_t n_vocab = m->config.n_vocab;
    make_script(&script, seed, n_vocab, 64);
    double *expected[N_SEQUENCES];
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        const struct sequence *q = &script.sequence[i];
        expected[i] = calloc((size_t)q->n_tokens * n_vocab, sizeof(double));
        reference_logits(tiny, q->tokens, q->n_tokens, expected[i]);
    }
    for (size_t j = 0; j < n_companies; j++) {
        for (uint32_t i = 0; i < N_SEQUENCES; i++)
            memset(script.sequence[i].logits, 0,
                   (size_t)script.sequence[i].n_tokens * n_vocab * sizeof(float));
        run_ranks(m, &companies[j], &script);
        for (uint32_t i = 0; i < N_SEQUENCES; i++) {
            double d = largest_difference(&script.sequence[i], expected[i], n_vocab);
            if (!(d < tolerance))
                fail_msg(
                    "%s over %u ranks (company %zu), seed %llu, sequence %u: logits differ by %g",
                    companies[j].split, companies[j].n_ranks, j, (unsigned long long)seed, i, d);
        }
    }
    for (uint32_t i = 0; i < N_SEQUENCES; i++) {
        free(expected[i]);
        free(script.sequence[i].logits);
    }
}

/* n scripts on a model of this shape, each carried out by each of these companies. */
static void check_shape(const struct tiny_shape *shape, uint64_t seed, uint32_t n,
                        const struct company *companies, size_t n_companies, double tolerance)
{
    struct tiny_model tiny;
    struct model *m;
    tiny_model_init(&tiny, shape);
    assert_int_equal(model_open(tiny.path, &m, NULL), 0);
    for (uint32_t i = 0; i < n; i++)
        check_script(&tiny, m, seed + i, companies, n_companies, tolerance);
    model_close(m);
    tiny_model_done(&tiny);
}

#endif
