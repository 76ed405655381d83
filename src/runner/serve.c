#include "runner/serve.h"

#include "base/clock.h"
#include "base/log.h"
#include "runner/grammars.h"
#include "runner/plan.h"
#include "runner/scheduler.h"

#include <stdlib.h>
#include <string.h>

enum {
    LOAD_TIMEOUT_MS = 30 * 60 * 1000, /* the slowest rank's disk decides */
    TICK_MS = 1000,                   /* an idle head says so this often */
    STEPS_PER_TIMEOUT = 4,            /* steps are cut to stay this far below the comm's timeout */
    STEP_NUMBER_BYTES = 8,            /* before the rows of a step */
    GRAMMAR_POLL_MS = 2,              /* while requests wait for their grammars, and nothing runs */
};

struct step_under_way { /* planned; its rows come from the last stage */
    uint64_t number;
    uint32_t n_rows;
    struct plan_logprobs logprobs;
};

struct slot_hash {
    uint64_t now;     /* of the tokens that the slot holds */
    uint64_t earlier; /* of the first n_earlier of them, before its last part: guesses in that may
                         turn out wrong */
    uint32_t n_earlier;
};

struct server {
    struct serve_options o;
    struct engine_info info;
    struct scheduler *scheduler; /* rank 0 */
    struct grammars *grammars;   /* likewise, once one was needed */
    struct plan *plan;
    uint64_t number; /* of the next step */
    struct slot_hash hash[LIMIT_SLOTS];
    struct step_under_way under_way[SCHEDULER_IN_FLIGHT_MAX]; /* a ring; rank 0 */
    uint32_t under_way_first, n_under_way;
    struct step_row *rows;     /* [LIMIT_BATCH_TOKENS] received ones */
    struct logprobs *logprobs; /* likewise, once some were asked for */
    struct buf wire;           /* a plan or rows on their way */
    struct buf frames;         /* to the node */
    uint8_t *received;         /* [received_bytes] */
    uint32_t received_bytes;
};

static struct comm_group all_ranks(const struct server *s)
{
    return (struct comm_group){.first = 0, .n = s->o.n_ranks};
}

/* ---- loading together ---- */

int serve_barrier(const struct serve_options *o, struct error *err)
{
    uint8_t ready = 1;
    size_t n;
    if (o->n_ranks == 1)
        return 0;
    if (o->rank != 0)
        return comm_send(o->comm, 0, &ready, 1, err);
    for (uint32_t rank = 1; rank < o->n_ranks; rank++) {
        int rc = comm_recv_any(o->comm, rank, &ready, 1, &n, LOAD_TIMEOUT_MS, err);
        if (rc != 0)
            return error_wrap(err, rc, "waiting for rank %u to load", rank);
        if (n != 1 || ready != 1)
            return error_set(err, E_PROTOCOL, "rank %u did not say that it is ready", rank);
    }
    return 0;
}

/* ---- a step, on every rank ---- */

static void publish_figures(struct server *s)
{
    struct message_pong figures = {0};
    engine_get_timing(s->o.engine, &figures.timing);
    if (s->o.comm != NULL)
        comm_get_stats(s->o.comm, &figures.comm);
    if (s->scheduler != NULL) {
        figures.n_running = scheduler_n_running(s->scheduler);
        figures.n_queued = scheduler_n_queued(s->scheduler) + grammars_n_waiting(s->grammars);
        scheduler_get_stats(s->scheduler, &figures.scheduler);
    }
    control_publish(s->o.control, &figures);
}

/* The blocks that a plan hands out, taken from its list one after another. The decoder has checked
 * that the counts add up. */
struct block_list {
    const uint32_t *next;
};

static const uint32_t *take_blocks(struct block_list *list, uint32_t n)
{
    const uint32_t *blocks = list->next;
    list->next += n;
    return blocks;
}

static int check_slot(const struct server *s, uint32_t slot, struct error *err)
{
    return slot < s->info.n_slots
               ? 0
               : error_set(err, E_PROTOCOL, "the plan names slot %u of %u", slot, s->info.n_slots);
}

static void forget_hash(struct server *s, uint32_t slot)
{
    s->hash[slot] = (struct slot_hash){.now = PLAN_HASH_EMPTY, .earlier = PLAN_HASH_EMPTY};
}

/* The slot's first n tokens: all that it holds. What was hashed before its last part need not be
 * hashed again. */
static void hash_up_to(struct server *s, uint32_t slot, uint32_t n)
{
    struct slot_hash *h = &s->hash[slot];
    if (n < h->n_earlier)
        forget_hash(s, slot);
    h->now = plan_hash(h->earlier, engine_slot_tokens(s->o.engine, slot) + h->n_earlier,
                       n - h->n_earlier);
}

static int apply_attaches(struct server *s, const struct plan *p, struct block_list *blocks,
                          struct error *err)
{
    for (uint32_t i = 0; i < p->n_copies; i++) {
        const struct plan_copy *copy = &p->copy[i];
        int rc = engine_block_copy(s->o.engine, copy->from, copy->to, copy->n_tokens, err);
        if (rc != 0)
            return error_wrap(err, rc, "copying block %u", copy->from);
    }
    for (uint32_t i = 0; i < p->n_attaches; i++) {
        const struct plan_attach *a = &p->attach[i];
        int rc = check_slot(s, a->slot, err);
        if (rc == 0)
            rc = engine_slot_attach(s->o.engine, a->slot, take_blocks(blocks, a->n_blocks),
                                    a->n_blocks, a->n_keep, &a->sampling, err);
        if (rc != 0)
            return error_wrap(err, rc, "beginning a sequence in slot %u", a->slot);
        forget_hash(s, a->slot);
        hash_up_to(s, a->slot, a->n_keep);
    }
    return 0;
}

/* Brings the slot of a part to where the head sees it. */
static int apply_part(struct server *s, const struct plan_part *part, struct block_list *blocks,
                      struct error *err)
{
    struct engine *e = s->o.engine;
    int rc = check_slot(s, part->slot, err);
    if (rc != 0)
        return rc;
    if (part->n_past < engine_slot_n_tokens(e, part->slot)) {
        rc = engine_slot_truncate(e, part->slot, part->n_past, err);
        hash_up_to(s, part->slot, part->n_past);
    }
    if (rc == 0 && part->n_new_blocks > 0)
        rc = engine_slot_extend(e, part->slot, take_blocks(blocks, part->n_new_blocks),
                                part->n_new_blocks, err);
    if (rc != 0)
        return error_wrap(err, rc, "slot %u", part->slot);
    uint32_t n_tokens = engine_slot_n_tokens(e, part->slot);
    if (part->n_past != n_tokens || part->prefix_hash != s->hash[part->slot].now)
        return error_set(err, E_PROTOCOL,
                         "rank %u lost its place: slot %u holds %u tokens (%016llx), the head "
                         "counts %u (%016llx)",
                         s->o.rank, part->slot, n_tokens,
                         (unsigned long long)s->hash[part->slot].now, part->n_past,
                         (unsigned long long)part->prefix_hash);
    return 0;
}

static int run_step(struct server *s, const struct plan *p, struct step_result *ret_result,
                    struct error *err)
{
    if (p->n_tokens > s->info.n_batch)
        return error_set(err, E_PROTOCOL, "plan of %u tokens, at most %u fit into a step",
                         p->n_tokens, s->info.n_batch);
    if (p->n_mask_bytes != 0 && p->n_mask_bytes != sampler_mask_bytes(s->o.n_vocab))
        return error_set(err, E_PROTOCOL, "plan with masks of %u bytes for a vocabulary of %u",
                         p->n_mask_bytes, s->o.n_vocab);
    struct block_list blocks = {p->blocks};
    int rc = apply_attaches(s, p, &blocks, err);
    if (rc != 0)
        return rc;
    struct step step = {
        .number = p->number, .n_parts = p->n_parts, .n_tokens = p->n_tokens, .tokens = p->tokens};
    const int32_t *tokens = p->tokens;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        const struct plan_part *part = &p->part[i];
        rc = apply_part(s, part, &blocks, err);
        if (rc != 0)
            return rc;
        step.part[i] = (struct step_part){.slot = part->slot,
                                          .n_tokens = part->n_tokens,
                                          .output = part->output,
                                          .n_logprobs = part->n_logprobs,
                                          .mask = part->mask};
        struct slot_hash *h = &s->hash[part->slot];
        *h = (struct slot_hash){.now = plan_hash(h->now, tokens, part->n_tokens),
                                .earlier = h->now,
                                .n_earlier = part->n_past};
        tokens += part->n_tokens;
    }
    rc = engine_step(s->o.engine, &step, ret_result, err);
    s->number++;
    return rc != 0 ? error_wrap(err, rc, "step %llu", (unsigned long long)p->number) : 0;
}

/* ---- rank 0 ---- */

static void send_progress(void *arg, const struct message_progress *m)
{
    message_encode_progress(&((struct server *)arg)->frames, m);
}

static void send_tokens(void *arg, const struct message_tokens *m)
{
    message_encode_tokens(&((struct server *)arg)->frames, m);
}

static void send_done(void *arg, const struct message_done *m)
{
    message_encode_done(&((struct server *)arg)->frames, m);
}

/* What the callbacks wrote goes to the node. Figures first: whoever has seen an answer and asks for
 * them gets those that belong to it. */
static void send_frames(struct server *s)
{
    publish_figures(s);
    if (s->frames.len > 0 || s->frames.error != 0)
        control_send(s->o.control, &s->frames);
    buf_reset(&s->frames);
}

static void refuse(struct server *s, const struct message_submit *m, const struct error *cause)
{
    struct message_done done = {.request = m->request,
                                .reason = FINISH_ERROR,
                                .code = cause->code,
                                .n_prompt = m->n_tokens};
    memcpy(done.message, cause->message, sizeof(done.message));
    message_encode_done(&s->frames, &done);
}

/* Takes the tokens when it returns 0. */
static int compile(struct server *s, const struct message_submit *m, struct error *err)
{
    int rc = s->grammars == NULL ? grammars_new(s->o.model_path, &s->grammars, err) : 0;
    return rc == 0 ? grammars_submit(s->grammars, m, clock_now_ns(), err) : rc;
}

static int submit(struct server *s, const struct message *m, struct error *err)
{
    struct message_submit submit;
    int rc = message_decode_submit(m, &submit, err);
    if (rc != 0)
        return rc;
    struct error refused = {0};
    if (grammars_is_waiting(s->grammars, submit.request))
        rc = error_set(err, E_PROTOCOL, "request %llu is running already",
                       (unsigned long long)submit.request);
    else if (sampling_check(&submit.sampling, s->o.n_vocab, &refused) != 0)
        refuse(s, &submit, &refused);
    else if (!submit.has_grammar)
        rc = scheduler_submit(s->scheduler, &submit, clock_now_ns(), err);
    else if (compile(s, &submit, &refused) == 0)
        return 0; /* the tokens are taken */
    else
        refuse(s, &submit, &refused);
    free((void *)(uintptr_t)submit.tokens);
    return rc;
}

/* Requests whose grammars are compiled go to the scheduler. */
static int take_compiled(struct server *s, struct error *err)
{
    struct grammar_job *job;
    int rc = 0;
    while (rc == 0 && (job = grammars_take(s->grammars)) != NULL) {
        if (job->grammar == NULL)
            refuse(s, &job->submit, &job->error);
        else
            rc = scheduler_submit_grammar(s->scheduler, &job->submit, job->grammar,
                                          job->submitted_ns, err);
        job->grammar = NULL;
        grammar_job_free(job);
    }
    return rc;
}

static void cancel(struct server *s, uint64_t request)
{
    if (grammars_cancel(s->grammars, request)) {
        struct message_done done = {.request = request, .reason = FINISH_CANCELLED};
        message_encode_done(&s->frames, &done);
    }
    scheduler_cancel(s->scheduler, request, clock_now_ns());
}

static int obey(struct server *s, const struct message *m, struct error *err)
{
    uint64_t request;
    if (s->scheduler != NULL && m->type == MESSAGE_SUBMIT)
        return submit(s, m, err);
    if (s->scheduler != NULL && m->type == MESSAGE_CANCEL) {
        int rc = message_decode_u64(m, &request, err);
        if (rc == 0)
            cancel(s, request);
        return rc;
    }
    return error_set(err, E_PROTOCOL, "control frame of type %d is out of place in rank %u",
                     (int)m->type, s->o.rank);
}

/* Obeys all commands that are there, waiting at most timeout_ms for the first. */
static int obey_commands(struct server *s, uint32_t timeout_ms, struct error *err)
{
    for (;;) {
        struct command *command;
        control_set_idle(s->o.control, timeout_ms > 0);
        int rc = control_take(s->o.control, timeout_ms, &command, err);
        control_set_idle(s->o.control, false);
        if (rc != 0 || command == NULL)
            return rc;
        rc = obey(s, &command->message, err);
        free(command);
        if (rc != 0)
            return rc;
        timeout_ms = 0;
    }
}

static int broadcast(struct server *s, const struct plan *p, struct error *err)
{
    if (s->o.n_ranks == 1)
        return 0;
    buf_reset(&s->wire);
    int rc = plan_encode(&s->wire, p);
    if (rc != 0)
        return error_set(err, rc, "cannot encode the plan of step %llu",
                         (unsigned long long)p->number);
    return comm_broadcast(s->o.comm, all_ranks(s), s->wire.data, s->wire.len, err);
}

static int say(struct server *s, enum plan_kind kind, struct error *err)
{
    s->plan->kind = kind;
    s->plan->number = s->number;
    return broadcast(s, s->plan, err);
}

/* The rows of a step under way, from the last stage. It says so for every step, also for one
 * without rows: the head counts on it when it decides how far to run ahead. */
static int receive_rows(struct server *s, const struct step_under_way *step, struct error *err)
{
    size_t rows_bytes = (size_t)step->n_rows * PLAN_ROW_BYTES,
           logprobs_bytes = plan_logprobs_bytes(&step->logprobs),
           n = STEP_NUMBER_BYTES + rows_bytes + logprobs_bytes;
    int rc = comm_recv(s->o.comm, s->o.rows_rank, s->received, n, err);
    if (rc != 0)
        return rc;
    struct cursor c;
    cursor_init(&c, s->received, n);
    uint64_t number = cursor_u64(&c);
    if (number != step->number)
        return error_set(err, E_PROTOCOL, "they are those of step %llu",
                         (unsigned long long)number);
    rc =
        plan_decode_rows(s->received + STEP_NUMBER_BYTES, step->n_rows, s->o.n_vocab, s->rows, err);
    if (rc != 0 || logprobs_bytes == 0)
        return rc;
    if (s->logprobs == NULL)
        s->logprobs = calloc(LIMIT_BATCH_TOKENS, sizeof(*s->logprobs));
    if (s->logprobs == NULL)
        return error_set(err, E_NOMEM, "no memory for log-probabilities");
    return plan_decode_logprobs(s->received + STEP_NUMBER_BYTES + rows_bytes, &step->logprobs,
                                s->o.n_vocab, s->logprobs, err);
}

/* Takes the rows of the oldest step under way to the scheduler; own: they were sampled here. */
static int finish_step(struct server *s, const struct step_result *own, struct error *err)
{
    struct step_under_way step = s->under_way[s->under_way_first];
    if (own == NULL) {
        int rc = receive_rows(s, &step, err);
        if (rc != 0)
            return error_wrap(err, rc, "sampled tokens of step %llu",
                              (unsigned long long)step.number);
    } else if (own->n_rows != step.n_rows) {
        return error_set(err, E_INTERNAL, "step %llu gave %u rows, not %u",
                         (unsigned long long)step.number, own->n_rows, step.n_rows);
    }
    s->under_way_first = (s->under_way_first + 1) % SCHEDULER_IN_FLIGHT_MAX;
    s->n_under_way--;
    scheduler_result(s->scheduler, own != NULL ? own->rows : s->rows,
                     own != NULL ? own->logprobs : s->logprobs, clock_now_ns());
    return 0;
}

/* Finishes what can be finished without waiting. */
static int finish_steps(struct server *s, struct error *err)
{
    while (s->n_under_way > 0) {
        bool is_ready = false;
        int rc = comm_poll(s->o.comm, s->o.rows_rank, &is_ready, err);
        if (rc == 0 && !is_ready)
            return 0;
        if (rc == 0)
            rc = finish_step(s, NULL, err);
        if (rc != 0)
            return rc;
    }
    return 0;
}

/* Runs the step that s->plan holds. */
static int lead_step(struct server *s, struct error *err)
{
    struct step_result result;
    s->plan->number = s->number;
    struct step_under_way *step =
        &s->under_way[(s->under_way_first + s->n_under_way++) % SCHEDULER_IN_FLIGHT_MAX];
    step->number = s->number;
    step->n_rows = plan_n_rows(s->plan);
    plan_get_logprobs(s->plan, &step->logprobs);
    int rc = broadcast(s, s->plan, err);
    if (rc == 0)
        rc = run_step(s, s->plan, &result, err);
    if (rc == 0 && s->o.rows_rank == 0)
        rc = finish_step(s, &result, err);
    return rc;
}

/* A step, or a result, or a sign of life: what is due. */
static int lead_on(struct server *s, uint64_t *tick_ns, struct error *err)
{
    int rc = s->o.rows_rank != 0 ? finish_steps(s, err) : 0;
    if (rc != 0)
        return rc;
    if (scheduler_plan(s->scheduler, clock_now_ns(), s->plan))
        rc = lead_step(s, err);
    else if (s->n_under_way > 0)
        rc = finish_step(s, NULL, err);
    else if (clock_now_ns() >= *tick_ns)
        rc = say(s, PLAN_IDLE, err);
    else
        return 0;
    send_frames(s);
    *tick_ns = clock_now_ns() + TICK_MS * UINT64_C(1000000);
    return rc;
}

static int lead(struct server *s, struct error *err)
{
    uint64_t tick_ns = 0; /* when the next idle tick is due; the first says that all are ready */
    for (;;) {
        bool is_idle =
            scheduler_n_running(s->scheduler) == 0 && scheduler_n_queued(s->scheduler) == 0;
        uint64_t now_ns = clock_now_ns();
        uint32_t wait_ms = 0;
        if (is_idle && s->n_under_way == 0 && now_ns < tick_ns)
            wait_ms = (uint32_t)((tick_ns - now_ns) / 1000000) + 1;
        if (wait_ms > GRAMMAR_POLL_MS && grammars_n_waiting(s->grammars) > 0)
            wait_ms = GRAMMAR_POLL_MS;
        int rc = obey_commands(s, wait_ms, err);
        if (rc == 0)
            rc = take_compiled(s, err);
        send_frames(s);
        if (rc == E_CANCELLED) {
            struct error ignored; /* the others learn it from their nodes anyway */
            say(s, PLAN_STOP, &ignored);
        }
        if (rc == 0)
            rc = lead_on(s, &tick_ns, err);
        if (rc != 0)
            return rc;
    }
}

/* ---- the other ranks ---- */

static int send_rows(struct server *s, const struct step_result *result, struct error *err)
{
    if (s->o.rank != s->o.rows_rank)
        return 0;
    buf_reset(&s->wire);
    buf_append_u64(&s->wire, s->plan->number);
    int rc = plan_encode_rows(&s->wire, result->rows, result->n_rows);
    if (rc == 0 && result->logprobs != NULL) {
        struct plan_logprobs asked;
        plan_get_logprobs(s->plan, &asked);
        rc = plan_encode_logprobs(&s->wire, &asked, result->logprobs);
    }
    if (rc != 0)
        return error_set(err, rc, "cannot encode the sampled tokens");
    return comm_send(s->o.comm, 0, s->wire.data, s->wire.len, err);
}

static int follow(struct server *s, struct error *err)
{
    uint32_t timeout_ms = LOAD_TIMEOUT_MS; /* for the first plan; then the comm's */
    for (;;) {
        size_t n;
        int rc = comm_recv_any(s->o.comm, 0, s->received, s->received_bytes, &n, timeout_ms, err);
        if (rc != 0)
            return error_wrap(err, rc, "waiting for the plan of step %llu",
                              (unsigned long long)s->number);
        timeout_ms = 0;
        rc = plan_decode(s->received, n, s->plan, err);
        if (rc != 0)
            return rc;
        if (s->plan->kind == PLAN_STOP)
            return 0;
        if (s->plan->number != s->number)
            return error_set(err, E_PROTOCOL,
                             "rank %u lost its place: plan of step %llu, expected %llu", s->o.rank,
                             (unsigned long long)s->plan->number, (unsigned long long)s->number);
        if (s->plan->kind == PLAN_STEP) {
            struct step_result result;
            rc = run_step(s, s->plan, &result, err);
            if (rc == 0)
                rc = send_rows(s, &result, err);
            publish_figures(s);
        }
        if (rc == 0)
            rc = obey_commands(s, 0, err);
        if (rc != 0)
            return rc;
    }
}

static int start(struct server *s, struct error *err)
{
    engine_get_info(s->o.engine, &s->info);
    s->received_bytes = plan_bytes_max(s->info.n_slots, s->o.n_vocab);
    buf_init(&s->wire, s->received_bytes);
    buf_init(&s->frames, LIMIT_CONTROL_FRAME_BYTES);
    s->plan = malloc(sizeof(*s->plan));
    s->rows = malloc(LIMIT_BATCH_TOKENS * sizeof(*s->rows));
    s->received = malloc(s->received_bytes);
    if (s->plan == NULL || s->rows == NULL || s->received == NULL)
        return error_set(err, E_NOMEM, "no memory for step plans");
    for (uint32_t i = 0; i < LIMIT_SLOTS; i++)
        forget_hash(s, i);
    s->number = 1;
    if (s->o.rank != 0)
        return 0;
    struct scheduler_options options = {
        .n_slots = s->info.n_slots,
        .n_ctx = s->o.n_ctx,
        .n_batch = s->info.n_batch,
        .n_vocab = s->o.n_vocab,
        .block_tokens = s->info.block_tokens,
        .n_blocks = s->info.n_blocks,
        .n_attached_max = s->info.n_attached_max,
        .n_in_flight = s->o.n_stages,
        .n_chunk = s->o.n_chunk,
        .n_draft = s->o.n_draft,
        .draft_model = s->o.draft_model,
        .step_ns_max = s->o.timeout_ms * UINT64_C(1000000) / STEPS_PER_TIMEOUT / s->o.n_stages,
    };
    struct scheduler_output output = {
        .progress = send_progress, .tokens = send_tokens, .done = send_done, .arg = s};
    return scheduler_new(&options, &output, &s->scheduler, err);
}

int serve(const struct serve_options *o, struct error *err)
{
    struct server *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "no memory for the step loop");
    s->o = *o;
    int rc = start(s, err);
    if (rc == 0) {
        publish_figures(s);
        rc = o->rank == 0 ? lead(s, err) : follow(s, err);
    }
    scheduler_free(s->scheduler);
    grammars_free(s->grammars);
    buf_done(&s->wire);
    buf_done(&s->frames);
    free(s->plan);
    free(s->rows);
    free(s->logprobs);
    free(s->received);
    free(s);
    return rc;
}
