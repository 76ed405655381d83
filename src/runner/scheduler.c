#include "runner/scheduler_internal.h"

#include <stdlib.h>
#include <string.h>

static int check_options(const struct scheduler_options *o, struct error *err)
{
    if (o->n_slots == 0 || o->n_slots > LIMIT_SLOTS || o->n_ctx < 2 || o->n_batch == 0 ||
        o->n_batch > LIMIT_BATCH_TOKENS || o->n_vocab == 0)
        return error_set(err, E_INVALID, "scheduler: %u slots, context %u, batch %u, vocabulary %u",
                         o->n_slots, o->n_ctx, o->n_batch, o->n_vocab);
    if (o->block_tokens == 0 || o->n_blocks == 0 || o->n_attached_max == 0 ||
        (uint64_t)o->block_tokens * o->n_blocks < 2)
        return error_set(err, E_INVALID, "scheduler: %u KV blocks of %u tokens, %u in slots",
                         o->n_blocks, o->block_tokens, o->n_attached_max);
    if (o->n_in_flight > SCHEDULER_IN_FLIGHT_MAX || o->n_draft > LIMIT_DRAFT_TOKENS)
        return error_set(err, E_INVALID,
                         "scheduler: %u steps under way (at most %d), %u drafts (at most %d)",
                         o->n_in_flight, SCHEDULER_IN_FLIGHT_MAX, o->n_draft, LIMIT_DRAFT_TOKENS);
    return 0;
}

static uint32_t min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static int allocate(struct scheduler *s, struct error *err)
{
    const struct scheduler_options *o = &s->options;
    int rc = prefix_tree_new(o->n_blocks, o->block_tokens, &s->tree, err);
    if (rc != 0)
        return rc;
    size_t bytes = s->n_slot_blocks * sizeof(uint32_t);
    s->match = malloc(bytes);
    bool is_done = s->match != NULL;
    for (uint32_t i = 0; i < o->n_slots; i++) {
        s->slot[i].blocks = malloc(bytes);
        s->slot[i].there = malloc(bytes);
        is_done = is_done && s->slot[i].blocks != NULL && s->slot[i].there != NULL;
    }
    return is_done ? 0
                   : error_set(err, E_NOMEM, "no memory for the blocks of %u slots", o->n_slots);
}

int scheduler_new(const struct scheduler_options *o, const struct scheduler_output *output,
                  struct scheduler **ret_scheduler, struct error *err)
{
    int rc = check_options(o, err);
    if (rc != 0)
        return rc;
    struct scheduler *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "no memory for the scheduler");
    s->options = *o;
    if (s->options.n_in_flight == 0)
        s->options.n_in_flight = 1;
    if (s->options.n_chunk == 0)
        s->options.n_chunk = SCHEDULER_CHUNK;
    s->output = *output;
    s->queue_end = &s->queue;
    s->source[DRAFT_LOOKUP] = &draft_lookup;
    s->source[DRAFT_MODEL] = o->draft_model;
    uint64_t n_cache = (uint64_t)min(o->n_blocks, o->n_attached_max) * o->block_tokens;
    s->n_room = n_cache < o->n_ctx ? (uint32_t)n_cache : o->n_ctx;
    s->n_slot_blocks = scheduler_blocks(s, s->n_room);
    rc = allocate(s, err);
    if (rc != 0) {
        scheduler_free(s);
        return rc;
    }
    *ret_scheduler = s;
    return 0;
}

static void free_request(const struct scheduler *s, struct request *r)
{
    for (uint32_t i = 0; i < DRAFT_KINDS; i++)
        if (s->source[i] != NULL)
            s->source[i]->end(r->guesses[i]);
    scheduler_grammar_free(r);
    free(r->tokens);
    free(r);
}

void scheduler_free(struct scheduler *s)
{
    if (s == NULL)
        return;
    for (uint32_t i = 0; i < s->options.n_slots; i++) {
        free(s->slot[i].blocks);
        free(s->slot[i].there);
    }
    for (uint32_t i = 0; i < s->n_running; i++)
        free_request(s, s->running[i]);
    while (s->queue != NULL) {
        struct request *next = s->queue->next;
        free_request(s, s->queue);
        s->queue = next;
    }
    prefix_tree_free(s->tree);
    free(s->match);
    free(s);
}

/* ---- requests come and go ---- */

static void answer_error(struct scheduler *s, uint64_t request, uint32_t n_prompt,
                         const struct error *e)
{
    struct message_done done = {
        .request = request, .reason = FINISH_ERROR, .code = e->code, .n_prompt = n_prompt};
    memcpy(done.message, e->message, sizeof(done.message));
    s->output.done(s->output.arg, &done);
}

static int check_submit(const struct scheduler *s, const struct message_submit *m,
                        struct error *err)
{
    if (m->n_tokens == 0)
        return error_set(err, E_INVALID, "the prompt is empty");
    if (m->n_tokens > s->options.n_ctx - 1)
        return error_set(err, E_LIMIT,
                         "the prompt has %u tokens; the context of %u leaves room for %u",
                         m->n_tokens, s->options.n_ctx, s->options.n_ctx - 1);
    if (m->n_tokens > s->n_room - 1)
        return error_set(err, E_LIMIT,
                         "the prompt has %u tokens; the KV cache of %u tokens leaves room for %u",
                         m->n_tokens, s->n_room, s->n_room - 1);
    if (m->n_max == 0)
        return error_set(err, E_INVALID, "no tokens are to be generated");
    for (uint32_t i = 0; i < m->n_tokens; i++)
        if (m->tokens[i] < 0 || (uint32_t)m->tokens[i] >= s->options.n_vocab)
            return error_set(err, E_INVALID,
                             "token %u of the prompt is %d, not in the vocabulary of %u", i,
                             m->tokens[i], s->options.n_vocab);
    if (s->n_queued >= LIMIT_REQUESTS_QUEUED)
        return error_set(err, E_BUSY, "%u requests are waiting already", s->n_queued);
    return 0;
}

static bool is_known(const struct scheduler *s, uint64_t request)
{
    for (const struct request *r = s->queue; r != NULL; r = r->next)
        if (r->submit.request == request)
            return true;
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->submit.request == request)
            return true;
    return false;
}

static struct request *copy_request(const struct scheduler *s, const struct message_submit *m,
                                    uint64_t now_ns)
{
    struct request *r = calloc(1, sizeof(*r));
    int32_t *tokens = malloc((size_t)m->n_tokens * sizeof(*tokens));
    if (r == NULL || tokens == NULL) {
        free(r);
        free(tokens);
        return NULL;
    }
    memcpy(tokens, m->tokens, (size_t)m->n_tokens * sizeof(*tokens));
    r->submit = *m;
    r->submit.grammar = NULL; /* its text is not needed any more */
    r->submit.tokens = r->tokens = tokens;
    r->n_tokens = m->n_tokens;
    r->slot = SCHEDULER_NONE;
    r->submitted_ns = now_ns;
    uint32_t room = s->n_room - m->n_tokens;
    r->n_max = m->n_max < room ? m->n_max : room;
    return r;
}

int scheduler_submit(struct scheduler *s, const struct message_submit *m, uint64_t now_ns,
                     struct error *err)
{
    return scheduler_submit_grammar(s, m, NULL, now_ns, err);
}

/* Returns whether the request can run; otherwise it has been answered, and is gone. */
static bool begin_grammar(struct scheduler *s, struct request *r, uint64_t now_ns)
{
    bool is_over = false;
    struct error e = {0};
    if (scheduler_grammar_begin(s, r, &is_over, &e) != 0)
        scheduler_end(s, r, FINISH_ERROR, &e, now_ns);
    else if (is_over)
        scheduler_end(s, r, FINISH_STOP, NULL, now_ns);
    else
        return true;
    return false;
}

int scheduler_submit_grammar(struct scheduler *s, const struct message_submit *m,
                             struct grammar *grammar, uint64_t now_ns, struct error *err)
{
    if (is_known(s, m->request)) {
        grammar_free(grammar);
        return error_set(err, E_PROTOCOL, "request %llu is running already",
                         (unsigned long long)m->request);
    }
    struct error e = {0};
    struct request *r = NULL;
    if (check_submit(s, m, &e) == 0) {
        r = copy_request(s, m, now_ns);
        if (r == NULL)
            error_set(&e, E_NOMEM, "no memory for a prompt of %u tokens", m->n_tokens);
    }
    if (r == NULL) {
        grammar_free(grammar);
        answer_error(s, m->request, m->n_tokens, &e);
        return 0;
    }
    r->grammar = grammar;
    if (grammar != NULL && !begin_grammar(s, r, now_ns))
        return 0;
    r->order = ++s->n_submitted;
    *s->queue_end = r;
    s->queue_end = &r->next;
    s->n_queued++;
    return 0;
}

void scheduler_end(struct scheduler *s, struct request *r, enum finish_reason reason,
                   const struct error *e, uint64_t now_ns)
{
    struct message_done done = {.request = r->submit.request,
                                .reason = reason,
                                .n_prompt = r->submit.n_tokens,
                                .n_cached = r->n_cached,
                                .n_generated = r->n_generated};
    uint64_t admitted_ns = r->admitted_ns != 0 ? r->admitted_ns : now_ns;
    uint64_t first_ns = r->first_token_ns != 0 ? r->first_token_ns : now_ns;
    done.queue_ns = admitted_ns - r->submitted_ns;
    done.prefill_ns = first_ns - admitted_ns;
    done.decode_ns = now_ns - first_ns;
    if (e != NULL) {
        done.code = e->code;
        memcpy(done.message, e->message, sizeof(done.message));
    }
    free_request(s, r);
    s->output.done(s->output.arg, &done);
}

void scheduler_stop(struct scheduler *s, struct request *r)
{
    uint32_t at = 0;
    while (s->running[at] != r)
        at++;
    s->n_running--;
    memmove(s->running + at, s->running + at + 1, (s->n_running - at) * sizeof(*s->running));
    if (s->waiter == r)
        s->waiter = NULL;
    scheduler_release(s, r);
}

/* What steps under way give for it is dropped. Its slot and its blocks are free all the same:
 * whoever gets them is in a later step, and every rank performs steps in their order. */
static void leave_flights(struct scheduler *s, const struct request *r)
{
    for (uint32_t i = 0; i < s->n_flights; i++) {
        struct flight *f = &s->flight[(s->flight_first + i) % SCHEDULER_IN_FLIGHT_MAX];
        for (uint32_t k = 0; k < f->n_parts; k++)
            if (f->part[k].request == r)
                f->part[k].request = NULL;
    }
}

static void end_running(struct scheduler *s, struct request *r, enum finish_reason reason,
                        const struct error *e, uint64_t now_ns)
{
    leave_flights(s, r);
    scheduler_stop(s, r);
    scheduler_end(s, r, reason, e, now_ns);
}

void scheduler_cancel(struct scheduler *s, uint64_t request, uint64_t now_ns)
{
    for (uint32_t i = 0; i < s->n_running; i++)
        if (s->running[i]->submit.request == request) {
            end_running(s, s->running[i], FINISH_CANCELLED, NULL, now_ns);
            return;
        }
    for (struct request **p = &s->queue; *p != NULL; p = &(*p)->next)
        if ((*p)->submit.request == request) {
            struct request *r = *p;
            *p = r->next;
            if (s->queue_end == &r->next)
                s->queue_end = p;
            s->n_queued--;
            scheduler_end(s, r, FINISH_CANCELLED, NULL, now_ns);
            return;
        }
}

/* ---- results ---- */

void scheduler_hash(struct request *r, uint32_t n)
{
    r->hash = plan_hash(r->hash, r->tokens + r->n_hashed, n - r->n_hashed);
    r->n_hashed = n;
}

/* Learns from the time of a step: that of a prompt token, from chunks long enough to tell, and that
 * of decoding steps by their rows. With several steps under way it is the time between results. */
static void measure(struct scheduler *s, const struct flight *f, uint64_t now_ns)
{
    enum { TOKENS_MIN = 16 };
    bool was_idle = f->planned_ns >= s->result_ns, after_prompt = s->result_had_prompt;
    uint64_t begin_ns = was_idle ? f->planned_ns : s->result_ns;
    s->result_ns = now_ns;
    s->result_had_prompt = f->has_prompt;
    if (now_ns <= begin_ns)
        return;
    if (!f->has_prompt) {
        /* Behind a prompt's chunk a step waits for that, or has it easy. */
        if (was_idle || !after_prompt)
            scheduler_draft_measure(s, f, now_ns - begin_ns);
    } else if (f->n_tokens >= TOKENS_MIN) {
        double token_ns = (double)(now_ns - begin_ns) / f->n_tokens;
        s->prefill_token_ns =
            s->prefill_token_ns == 0.0 ? token_ns : (s->prefill_token_ns + token_ns) / 2;
    }
}

/* Tokens of a part: the first is what the model chose; each further one counts as long as the draft
 * that it was chosen after was right. */
static void take_rows(struct scheduler *s, struct request *r, struct flight_part *part,
                      const struct step_row *rows, const struct logprobs *logprobs, uint64_t now_ns)
{
    struct message_tokens m = {.request = r->submit.request, .n_before = r->n_generated};
    bool is_stopped = false;
    struct error e = {0};
    if (r->submit.n_logprobs > 0)
        m.logprobs = logprobs;
    uint32_t n_right = 0;
    if (r->first_token_ns == 0)
        r->first_token_ns = now_ns;
    for (uint32_t i = 0; i < part->n_rows; i++) {
        r->n_past = part->n_past + part->n_tokens - part->n_rows + i + 1;
        is_stopped = scheduler_is_end(r, rows[i].token);
        if (is_stopped)
            break;
        /* Drafts lie behind the known tokens. */
        bool is_right = i + 1 < part->n_rows && r->tokens[r->n_tokens] == rows[i].token;
        r->tokens[r->n_tokens++] = rows[i].token;
        r->n_generated++;
        m.tokens[m.n_tokens++] = rows[i].token;
        n_right += is_right;
        if (r->grammar != NULL && r->n_generated < r->n_max)
            scheduler_grammar_follow(s, r, rows[i].token, &is_stopped, &e);
        if (!is_right || r->n_generated == r->n_max)
            break;
    }
    if (part->n_rows > 1)
        scheduler_draft_result(s, r, part, n_right);
    s->stats.n_generated_tokens += m.n_tokens;
    if (m.n_tokens > 0)
        s->output.tokens(s->output.arg, &m);
    if (e.code != 0)
        end_running(s, r, FINISH_ERROR, &e, now_ns);
    else if (is_stopped || r->n_generated == r->n_max)
        end_running(s, r, is_stopped ? FINISH_STOP : FINISH_LENGTH, NULL, now_ns);
}

static void tell_progress(struct scheduler *s, struct request *r, const struct flight_part *part)
{
    uint32_t n_done = part->n_past + part->n_tokens;
    bool is_whole = part->n_past == r->n_begin && n_done == r->n_target;
    if (is_whole || r->n_generated > 0 || n_done <= r->n_progress)
        return;
    struct message_progress m = {
        .request = r->submit.request, .n_done = n_done, .n_prompt = r->submit.n_tokens};
    r->n_progress = n_done;
    s->output.progress(s->output.arg, &m);
}

void scheduler_result(struct scheduler *s, const struct step_row *rows,
                      const struct logprobs *logprobs, uint64_t now_ns)
{
    struct flight *f = &s->flight[s->flight_first];
    s->flight_first = (s->flight_first + 1) % SCHEDULER_IN_FLIGHT_MAX;
    s->n_flights--;
    for (uint32_t i = 0; i < f->n_parts; i++) {
        struct flight_part *part = &f->part[i];
        struct request *r = part->request;
        if (part->is_prompt)
            s->stats.n_prompt_tokens += part->n_tokens;
        if (r != NULL) {
            r->n_in_flight--;
            if (part->is_prompt)
                tell_progress(s, r, part);
            if (part->n_rows > 0)
                take_rows(s, r, part, rows, logprobs, now_ns);
        }
        rows += part->n_rows;
        if (logprobs != NULL)
            logprobs += part->n_rows;
    }
    measure(s, f, now_ns);
}

uint32_t scheduler_n_in_flight(const struct scheduler *s)
{
    return s->n_flights;
}

uint32_t scheduler_n_running(const struct scheduler *s)
{
    return s->n_running;
}

uint32_t scheduler_n_queued(const struct scheduler *s)
{
    return s->n_queued;
}

void scheduler_get_stats(const struct scheduler *s, struct scheduler_stats *ret_stats)
{
    uint32_t n_empty = 0; /* places in the last blocks of sequences, which are never shared */
    for (uint32_t i = 0; i < s->n_running; i++)
        if (scheduler_has_begun(s->running[i]))
            n_empty += s->slot[s->running[i]->slot].n_blocks * s->options.block_tokens -
                       s->running[i]->n_past;
    *ret_stats = s->stats;
    ret_stats->n_evicted = prefix_tree_n_evicted(s->tree);
    ret_stats->n_blocks_free = prefix_tree_n_free(s->tree);
    ret_stats->n_blocks_kept = prefix_tree_n_available(s->tree) - ret_stats->n_blocks_free;
    ret_stats->n_blocks_used = s->options.n_blocks - prefix_tree_n_available(s->tree);
    ret_stats->n_block_tokens_used = ret_stats->n_blocks_used * s->options.block_tokens - n_empty;
}
