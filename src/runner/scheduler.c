#include "runner/scheduler.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct request {
    struct request *next; /* in the queue */
    struct message_submit submit;
    int32_t *tokens; /* the prompt, owned */
    uint64_t submitted_ns, admitted_ns, first_token_ns;
    uint32_t n_max; /* cut at the end of the context */
    uint32_t n_cached, n_generated;
};

struct slot {
    struct request *request; /* NULL: free */
    int32_t *tokens;         /* [n_ctx]: what the KV cache holds */
    uint32_t n_tokens;
    uint64_t hash;        /* of these */
    uint64_t used_at;     /* counts admissions: the smallest is the least recently used */
    int32_t token_last;   /* sampled, not yet in the KV cache */
    bool reset_is_due;    /* the next plan must reset it to n_tokens */
    uint32_t part_tokens; /* of the step under way; 0: not part of it */
    enum step_output part_output;
};

struct scheduler {
    struct scheduler_options options;
    struct scheduler_output output;
    struct slot slot[LIMIT_SLOTS];
    struct request *queue, **queue_end;
    uint32_t n_queued, n_running;
    uint32_t decode_first; /* slot where the round of decoding sequences begins */
    uint64_t n_admitted;
    uint64_t planned_ns;             /* when the step under way was planned */
    uint32_t part_slot[LIMIT_SLOTS]; /* of the step under way, in the order of its parts */
    uint32_t n_parts;
    double prefill_token_ns; /* measured, of the latest chunks; 0: not known */
};

int scheduler_new(const struct scheduler_options *o, const struct scheduler_output *output,
                  struct scheduler **ret_scheduler, struct error *err)
{
    if (o->n_slots == 0 || o->n_slots > LIMIT_SLOTS || o->n_ctx < 2 || o->n_batch == 0 ||
        o->n_batch > LIMIT_BATCH_TOKENS || o->n_vocab == 0)
        return error_set(err, E_INVALID, "scheduler: %u slots, context %u, batch %u, vocabulary %u",
                         o->n_slots, o->n_ctx, o->n_batch, o->n_vocab);
    struct scheduler *s = calloc(1, sizeof(*s));
    if (s == NULL)
        return error_set(err, E_NOMEM, "no memory for the scheduler");
    s->options = *o;
    s->output = *output;
    s->queue_end = &s->queue;
    for (uint32_t i = 0; i < o->n_slots; i++) {
        s->slot[i].hash = PLAN_HASH_EMPTY;
        s->slot[i].tokens = malloc((size_t)o->n_ctx * sizeof(int32_t));
        if (s->slot[i].tokens == NULL) {
            scheduler_free(s);
            return error_set(err, E_NOMEM, "no memory for the tokens of %u slots", o->n_slots);
        }
    }
    *ret_scheduler = s;
    return 0;
}

static void free_request(struct request *r)
{
    if (r == NULL)
        return;
    free(r->tokens);
    free(r);
}

void scheduler_free(struct scheduler *s)
{
    if (s == NULL)
        return;
    for (uint32_t i = 0; i < s->options.n_slots; i++) {
        free_request(s->slot[i].request);
        free(s->slot[i].tokens);
    }
    while (s->queue != NULL) {
        struct request *next = s->queue->next;
        free_request(s->queue);
        s->queue = next;
    }
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
    for (uint32_t i = 0; i < s->options.n_slots; i++)
        if (s->slot[i].request != NULL && s->slot[i].request->submit.request == request)
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
    r->submit.tokens = r->tokens = tokens;
    r->submitted_ns = now_ns;
    uint32_t room = s->options.n_ctx - m->n_tokens;
    r->n_max = m->n_max < room ? m->n_max : room;
    return r;
}

int scheduler_submit(struct scheduler *s, const struct message_submit *m, uint64_t now_ns,
                     struct error *err)
{
    if (is_known(s, m->request))
        return error_set(err, E_PROTOCOL, "request %llu is running already",
                         (unsigned long long)m->request);
    struct error e = {0};
    struct request *r = NULL;
    if (check_submit(s, m, &e) == 0) {
        r = copy_request(s, m, now_ns);
        if (r == NULL)
            error_set(&e, E_NOMEM, "no memory for a prompt of %u tokens", m->n_tokens);
    }
    if (r == NULL) {
        answer_error(s, m->request, m->n_tokens, &e);
        return 0;
    }
    *s->queue_end = r;
    s->queue_end = &r->next;
    s->n_queued++;
    return 0;
}

/* Answers with DONE and forgets the request. */
static void end_request(struct scheduler *s, struct request *r, enum finish_reason reason,
                        uint64_t now_ns)
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
    s->output.done(s->output.arg, &done);
    free_request(r);
}

static void free_slot(struct scheduler *s, struct slot *slot, enum finish_reason reason,
                      uint64_t now_ns)
{
    struct request *r = slot->request;
    slot->request = NULL;
    slot->reset_is_due = false;
    s->n_running--;
    end_request(s, r, reason, now_ns);
}

void scheduler_cancel(struct scheduler *s, uint64_t request, uint64_t now_ns)
{
    assert(s->n_parts == 0);
    for (uint32_t i = 0; i < s->options.n_slots; i++)
        if (s->slot[i].request != NULL && s->slot[i].request->submit.request == request) {
            free_slot(s, &s->slot[i], FINISH_CANCELLED, now_ns);
            return;
        }
    for (struct request **p = &s->queue; *p != NULL; p = &(*p)->next)
        if ((*p)->submit.request == request) {
            struct request *r = *p;
            *p = r->next;
            if (s->queue_end == &r->next)
                s->queue_end = p;
            s->n_queued--;
            end_request(s, r, FINISH_CANCELLED, now_ns);
            return;
        }
}

/* ---- slots ---- */

static uint32_t common_prefix(const struct slot *slot, const struct request *r)
{
    uint32_t n_max = slot->n_tokens < r->submit.n_tokens ? slot->n_tokens : r->submit.n_tokens;
    uint32_t n = 0;
    while (n < n_max && slot->tokens[n] == r->tokens[n])
        n++;
    return n;
}

/* The free slot whose cached tokens help most; of equals the least recently used. */
static struct slot *choose_slot(struct scheduler *s, const struct request *r)
{
    struct slot *best = NULL;
    uint32_t best_prefix = 0;
    for (uint32_t i = 0; i < s->options.n_slots; i++) {
        struct slot *slot = &s->slot[i];
        if (slot->request != NULL)
            continue;
        uint32_t prefix = common_prefix(slot, r);
        if (prefix < SCHEDULER_PREFIX_MIN)
            prefix = 0;
        if (best == NULL || prefix > best_prefix ||
            (prefix == best_prefix && slot->used_at < best->used_at)) {
            best = slot;
            best_prefix = prefix;
        }
    }
    return best;
}

static void admit(struct scheduler *s, uint64_t now_ns)
{
    while (s->queue != NULL) {
        struct request *r = s->queue;
        struct slot *slot = choose_slot(s, r);
        if (slot == NULL)
            return;
        s->queue = r->next;
        if (s->queue == NULL)
            s->queue_end = &s->queue;
        r->next = NULL;
        s->n_queued--;
        s->n_running++;
        /* The last token of the prompt always runs again: its logits choose the first new token. */
        uint32_t prefix = common_prefix(slot, r);
        slot->n_tokens = prefix < r->submit.n_tokens ? prefix : r->submit.n_tokens - 1;
        slot->hash = plan_hash(PLAN_HASH_EMPTY, slot->tokens, slot->n_tokens);
        slot->reset_is_due = true;
        slot->used_at = ++s->n_admitted;
        slot->request = r;
        r->n_cached = slot->n_tokens;
        r->admitted_ns = now_ns;
    }
}

/* ---- steps ---- */

static bool is_decoding(const struct slot *slot)
{
    return slot->request != NULL && slot->request->n_generated > 0;
}

/* The admitted sequence whose prompt is to be run next: the one that waits longest. */
static struct slot *find_prefill(struct scheduler *s)
{
    struct slot *first = NULL;
    for (uint32_t i = 0; i < s->options.n_slots; i++) {
        struct slot *slot = &s->slot[i];
        if (slot->request != NULL && !is_decoding(slot) &&
            (first == NULL || slot->used_at < first->used_at))
            first = slot;
    }
    return first;
}

static void add_part(struct scheduler *s, struct plan *p, struct slot *slot, const int32_t *tokens,
                     uint32_t n_tokens, enum step_output output)
{
    uint32_t index = (uint32_t)(slot - s->slot);
    if (slot->reset_is_due) {
        struct plan_reset *reset = &p->reset[p->n_resets++];
        reset->slot = index;
        reset->n_keep = slot->n_tokens;
        reset->sampling = slot->request->submit.sampling;
        slot->reset_is_due = false;
    }
    p->part[p->n_parts] = (struct plan_part){.slot = index,
                                             .n_tokens = n_tokens,
                                             .output = output,
                                             .n_past = slot->n_tokens,
                                             .prefix_hash = slot->hash};
    memcpy(p->tokens + p->n_tokens, tokens, (size_t)n_tokens * sizeof(*tokens));
    s->part_slot[p->n_parts] = index;
    p->n_parts++;
    p->n_tokens += n_tokens;
    slot->part_tokens = n_tokens;
    slot->part_output = output;
}

/* One token of each decoding sequence, as far as n_max reaches. In the order of the slots, so that
 * steps keep their shape; only when not all fit, the round goes on where it was cut the last time,
 * so that none starves. */
static void plan_decodes(struct scheduler *s, struct plan *p, uint32_t n_max)
{
    uint32_t n_slots = s->options.n_slots, n_decoding = 0;
    for (uint32_t i = 0; i < n_slots; i++)
        n_decoding += is_decoding(&s->slot[i]);
    uint32_t first = n_decoding <= n_max ? 0 : s->decode_first;
    for (uint32_t k = 0; k < n_slots && p->n_tokens < n_max; k++) {
        uint32_t i = (first + k) % n_slots;
        if (!is_decoding(&s->slot[i]))
            continue;
        add_part(s, p, &s->slot[i], &s->slot[i].token_last, 1, STEP_OUTPUT_LAST);
        s->decode_first = (i + 1) % n_slots;
    }
}

static uint32_t chunk_tokens_max(const struct scheduler *s, const struct plan *p)
{
    uint32_t n = s->options.n_batch - p->n_tokens;
    if (p->n_parts > 0 && n > SCHEDULER_CHUNK_SHARED)
        n = SCHEDULER_CHUNK_SHARED;
    if (s->options.step_ns_max == 0)
        return n;
    if (s->prefill_token_ns == 0.0)
        return n < SCHEDULER_CHUNK_FIRST ? n : SCHEDULER_CHUNK_FIRST;
    /* Halved rather than cut exactly, so that a little jitter does not change the shapes of steps
     * (and with them the rounding of results). */
    while (n > 1 && (double)n * s->prefill_token_ns > (double)s->options.step_ns_max)
        n /= 2;
    return n;
}

bool scheduler_plan(struct scheduler *s, uint64_t now_ns, struct plan *ret_plan)
{
    assert(s->n_parts == 0);
    admit(s, now_ns);
    struct plan *p = ret_plan;
    p->kind = PLAN_STEP;
    p->n_resets = p->n_parts = p->n_tokens = 0;

    struct slot *prefill = find_prefill(s);
    plan_decodes(s, p, s->options.n_batch - (prefill != NULL ? 1 : 0));
    if (prefill != NULL) {
        const struct request *r = prefill->request;
        uint32_t n_left = r->submit.n_tokens - prefill->n_tokens;
        uint32_t n_max = chunk_tokens_max(s, p);
        uint32_t n = n_left < n_max ? n_left : n_max;
        add_part(s, p, prefill, r->tokens + prefill->n_tokens, n,
                 n == n_left ? STEP_OUTPUT_LAST : STEP_OUTPUT_NONE);
    }
    s->n_parts = p->n_parts;
    s->planned_ns = now_ns;
    return p->n_parts > 0;
}

/* Learns the time of a prompt token from chunks long enough to tell. */
static void measure(struct scheduler *s, uint32_t n_tokens, uint64_t now_ns)
{
    enum { TOKENS_MIN = 16 };
    if (n_tokens < TOKENS_MIN || now_ns <= s->planned_ns)
        return;
    double token_ns = (double)(now_ns - s->planned_ns) / n_tokens;
    s->prefill_token_ns =
        s->prefill_token_ns == 0.0 ? token_ns : (s->prefill_token_ns + token_ns) / 2;
}

static bool is_end(const struct request *r, int32_t token)
{
    for (uint32_t i = 0; i < r->submit.n_end; i++)
        if (r->submit.end[i] == token)
            return true;
    return false;
}

static void take_token(struct scheduler *s, struct slot *slot, int32_t token, uint64_t now_ns)
{
    struct request *r = slot->request;
    if (r->first_token_ns == 0)
        r->first_token_ns = now_ns;
    if (is_end(r, token)) {
        free_slot(s, slot, FINISH_STOP, now_ns);
        return;
    }
    struct message_tokens m = {
        .request = r->submit.request, .n_before = r->n_generated, .n_tokens = 1};
    r->n_generated++;
    slot->token_last = token;
    m.tokens[0] = token;
    s->output.tokens(s->output.arg, &m);
    if (r->n_generated == r->n_max)
        free_slot(s, slot, FINISH_LENGTH, now_ns);
}

void scheduler_result(struct scheduler *s, const struct step_row *rows, uint64_t now_ns)
{
    uint32_t row = 0, n_tokens = 0, n_parts = s->n_parts;
    s->n_parts = 0;
    for (uint32_t k = 0; k < n_parts; k++) {
        struct slot *slot = &s->slot[s->part_slot[k]];
        struct request *r = slot->request;
        const int32_t *tokens = is_decoding(slot) ? &slot->token_last : r->tokens + slot->n_tokens;
        memcpy(slot->tokens + slot->n_tokens, tokens, (size_t)slot->part_tokens * sizeof(*tokens));
        slot->hash = plan_hash(slot->hash, tokens, slot->part_tokens);
        slot->n_tokens += slot->part_tokens;
        n_tokens += slot->part_tokens;

        if (!is_decoding(slot) && (slot->part_output == STEP_OUTPUT_NONE ||
                                   slot->part_tokens + r->n_cached < r->submit.n_tokens)) {
            struct message_progress m = {.request = r->submit.request,
                                         .n_done = slot->n_tokens,
                                         .n_prompt = r->submit.n_tokens};
            s->output.progress(s->output.arg, &m);
        }
        if (slot->part_output == STEP_OUTPUT_LAST)
            take_token(s, slot, rows[row++].token, now_ns);
    }
    measure(s, n_tokens, now_ns);
}

uint32_t scheduler_n_running(const struct scheduler *s)
{
    return s->n_running;
}

uint32_t scheduler_n_queued(const struct scheduler *s)
{
    return s->n_queued;
}
