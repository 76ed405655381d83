#include "runner/draft_model.h"

#include "base/clock.h"
#include "base/log.h"
#include "engine/weights.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
    SLOTS_MAX = 4,   /* sequences that it guesses for at a time: with more, guesses do not pay */
    ROOM = 1024,     /* tokens of a sequence at most; one that grows beyond begins again */
    READ_MAX = 256,  /* with so many of its last tokens */
    READ_CHUNK = 64, /* in one step: other ranks wait meanwhile */
    IDLE_TURNS = 32, /* a sequence that was asked for nothing in so many turns gives its slot up */
    TRIALS = 8,      /* for the first measurement: steps with one token, */
    TRIAL_TOKENS = 32, /* and then one with so many */
};

struct sequence {
    struct draft_model *model;
    struct sampling sampling;
    uint32_t slot;    /* SLOTS_MAX: none */
    uint32_t first;   /* its token that is the slot's first */
    uint32_t n_sure;  /* tokens in the slot that are the sequence's: no guesses */
    uint64_t used_at; /* turn */
};

struct draft_model {
    struct model *model;
    struct engine *engine;
    struct draft_source source;
    struct sequence *owner[SLOTS_MAX];
    uint32_t n_slots, n_slot_blocks;
    uint32_t n_room, n_read_max; /* ROOM and READ_MAX, or what its context has room for */
    uint64_t n_steps, n_turns;
    double token_ns; /* a step with one token */
    double read_ns;  /* each further one */
    bool is_broken;
};

/* ---- the same vocabulary ---- */

static int check_kind(const struct model *model, const struct model *draft, struct error *err)
{
    struct gguf_string a = {0}, b = {0};
    gguf_file_get_string(model->file, "tokenizer.ggml.model", &a, NULL);
    gguf_file_get_string(draft->file, "tokenizer.ggml.model", &b, NULL);
    if (a.len == b.len && (a.len == 0 || memcmp(a.data, b.data, a.len) == 0))
        return 0;
    return error_set(
        err, E_INVALID, "%s cannot guess for %s: their tokenizers are of another kind (%.*s, %.*s)",
        draft->name, model->name, (int)(b.len < 32 ? b.len : 32), b.len > 0 ? b.data : "",
        (int)(a.len < 32 ? a.len : 32), a.len > 0 ? a.data : "");
}

/* The texts of the tokens; NULL: the file has none. */
static const struct gguf_value *find_texts(const struct model *m)
{
    const struct gguf_value *v = gguf_file_find(m->file, "tokenizer.ggml.tokens");
    return v != NULL && v->kind == GGUF_KIND_ARRAY && v->strings != NULL ? v : NULL;
}

int draft_model_check(const struct model *model, const struct model *draft, struct error *err)
{
    const struct gguf_value *a = find_texts(model), *b = find_texts(draft);
    if (model->config.n_vocab != draft->config.n_vocab)
        return error_set(err, E_INVALID,
                         "%s cannot guess for %s: it has %" PRIu32 " tokens, not %" PRIu32,
                         draft->name, model->name, draft->config.n_vocab, model->config.n_vocab);
    int rc = check_kind(model, draft, err);
    if (rc != 0)
        return rc;
    uint64_t n_a = a != NULL ? a->count : 0, n_b = b != NULL ? b->count : 0;
    if (n_a != n_b)
        return error_set(err, E_INVALID,
                         "%s cannot guess for %s: texts of %" PRIu64 " tokens, not of %" PRIu64,
                         draft->name, model->name, n_b, n_a);
    for (uint64_t i = 0; i < n_a; i++)
        if (a->strings[i].len != b->strings[i].len ||
            memcmp(a->strings[i].data, b->strings[i].data, a->strings[i].len) != 0)
            return error_set(err, E_INVALID,
                             "%s cannot guess for %s: token %" PRIu64 " is another one",
                             draft->name, model->name, i);
    return 0;
}

/* ---- shape ---- */

static struct split make_split(const struct model *m)
{
    return (struct split){.n_stages = 1,
                          .n_ranks = 1,
                          .stage = {{.layers = {0, m->config.n_layer}, .n_ranks = 1}},
                          .weight = {1}};
}

static uint32_t min(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static struct engine_options make_options(const struct model *m, const struct engine_options *main)
{
    uint32_t n_slots = main->n_slots != 0 ? main->n_slots : 1;
    uint32_t n_ctx = main->n_ctx != 0 ? min(main->n_ctx, ROOM) : ROOM;
    /* One thread, as the main engine's other threads stay awake between two of its steps: a second
     * set of threads would fight with them for processors. */
    return (struct engine_options){.n_threads = 1,
                                   .n_slots = min(n_slots, SLOTS_MAX),
                                   .n_ctx = min(n_ctx, m->config.n_ctx_train),
                                   .n_batch = READ_CHUNK,
                                   .no_repack = main->no_repack};
}

int draft_model_check_file(const struct model *model, const char *path, uint64_t *ret_bytes,
                           struct error *err)
{
    struct model *draft;
    struct shard shard;
    int rc = model_open(path, &draft, err);
    if (rc != 0)
        return error_wrap(err, rc, "draft model");
    rc = draft_model_check(model, draft, err);
    struct split split = make_split(draft);
    if (rc == 0)
        rc = shard_init(&shard, draft, &split, 0, err);
    if (rc == 0) {
        const struct model_config *c = &draft->config;
        uint64_t n_row = 4ull * c->n_embd + 3ull * c->n_ff + 3ull * c->n_head * c->head_dim + ROOM;
        *ret_bytes = shard_weight_bytes(&shard, draft) +
                     (uint64_t)SLOTS_MAX * ROOM * shard_kv_token_bytes(&shard, draft) +
                     4 * (READ_CHUNK * n_row + c->n_vocab);
        shard_done(&shard);
    }
    model_close(draft);
    return rc;
}

/* ---- sequences ---- */

static void *begin(void *arg, uint32_t n_tokens_max, const struct sampling *sampling)
{
    (void)n_tokens_max;
    struct sequence *q = calloc(1, sizeof(*q));
    if (q == NULL)
        return NULL;
    q->model = arg;
    q->sampling = *sampling;
    q->slot = SLOTS_MAX;
    return q;
}

static void end(void *sequence)
{
    struct sequence *q = sequence;
    if (q != NULL && q->slot < SLOTS_MAX)
        q->model->owner[q->slot] = NULL;
    free(q);
}

/* A slot that a sequence without one may have: free, or of the one that was asked for nothing for
 * the longest time. SLOTS_MAX: none. */
static uint32_t find_slot(const struct draft_model *m)
{
    uint32_t at = SLOTS_MAX;
    for (uint32_t i = 0; i < m->n_slots; i++) {
        const struct sequence *q = m->owner[i];
        if (q == NULL)
            return i;
        if (q->used_at + IDLE_TURNS < m->n_turns &&
            (at == SLOTS_MAX || q->used_at < m->owner[at]->used_at))
            at = i;
    }
    return at;
}

struct text { /* a sequence and guesses behind it */
    const int32_t *tokens;
    uint32_t n_tokens;
    const struct draft *draft; /* NULL: none */
};

static uint32_t length(const struct text *t)
{
    return t->n_tokens + (t->draft != NULL ? t->draft->n_tokens : 0);
}

static int32_t token_at(const struct text *t, uint32_t i)
{
    bool is_guess = i >= t->n_tokens && t->draft != NULL;
    return is_guess ? t->draft->tokens[i - t->n_tokens] : t->tokens[i];
}

/* What a slot must hold for the next guess: tokens of the text from `first` on, of which it has the
 * first n_there. All others have to run; the last one in any case. */
struct view {
    uint32_t first, n_there, n_missing;
    bool is_new;
};

static struct view look(const struct sequence *q, const struct text *t)
{
    const struct draft_model *m = q->model;
    uint32_t n = length(t), n_ahead = t->draft != NULL ? 0 : LIMIT_DRAFT_TOKENS;
    struct view v = {.first = q->first};
    v.is_new = q->slot == SLOTS_MAX || n - q->first + n_ahead > m->n_room;
    if (v.is_new) {
        v.first = n > m->n_read_max ? n - m->n_read_max : 0;
    } else {
        const int32_t *there = engine_slot_tokens(m->engine, q->slot);
        uint32_t n_there = min(engine_slot_n_tokens(m->engine, q->slot), n - q->first - 1);
        v.n_there = min(q->n_sure, n_there);
        while (v.n_there < n_there && there[v.n_there] == token_at(t, q->first + v.n_there))
            v.n_there++;
    }
    v.n_missing = n - v.first - v.n_there;
    return v;
}

/* ---- time ---- */

static void learn(double *ns, double now)
{
    const double outlier = 3, weight = 0.125;
    if (*ns == 0) {
        *ns = now;
        return;
    }
    *ns += weight * (fmin(now, outlier * *ns) - *ns);
}

static void learn_time(struct draft_model *m, uint32_t n_tokens, uint64_t ns)
{
    double least = m->token_ns / READ_CHUNK; /* one more token takes some time */
    if (n_tokens == 1)
        learn(&m->token_ns, (double)ns);
    else
        learn(&m->read_ns, fmax(((double)ns - m->token_ns) / (n_tokens - 1), least));
}

/* ---- steps ---- */

static int run(struct draft_model *m, uint32_t slot, const int32_t *tokens, uint32_t n_tokens,
               bool has_output, struct step_row *ret_row, struct error *err)
{
    struct step step = {.number = m->n_steps + 1, .n_parts = 1, .n_tokens = n_tokens};
    struct step_result result;
    uint64_t start_ns = clock_now_ns();
    step.tokens = tokens;
    step.part[0] = (struct step_part){.slot = slot,
                                      .n_tokens = n_tokens,
                                      .output = has_output ? STEP_OUTPUT_LAST : STEP_OUTPUT_NONE};
    int rc = engine_step(m->engine, &step, &result, err);
    if (rc != 0)
        return rc;
    m->n_steps++;
    if (has_output)
        *ret_row = result.rows[0];
    learn_time(m, n_tokens, clock_now_ns() - start_ns);
    return 0;
}

static int attach(struct draft_model *m, uint32_t slot, const struct sampling *sampling,
                  struct error *err)
{
    uint32_t blocks[ROOM];
    for (uint32_t i = 0; i < m->n_slot_blocks; i++)
        blocks[i] = slot * m->n_slot_blocks + i;
    return engine_slot_attach(m->engine, slot, blocks, m->n_slot_blocks, 0, sampling, err);
}

/* The sequence begins in a slot of its own. Random numbers belong to positions, so where the slot
 * begins in the middle of the text the likeliest token is the best guess. */
static int settle(struct sequence *q, const struct view *v, struct error *err)
{
    struct draft_model *m = q->model;
    if (q->slot == SLOTS_MAX) {
        uint32_t slot = find_slot(m);
        if (m->owner[slot] != NULL)
            m->owner[slot]->slot = SLOTS_MAX;
        m->owner[slot] = q;
        q->slot = slot;
    }
    struct sampling sampling = q->sampling;
    if (v->first > 0)
        sampling.temperature = 0;
    sampling.n_prompt = sampling.n_prompt > v->first ? sampling.n_prompt - v->first : 0;
    q->first = v->first;
    q->n_sure = 0;
    return attach(m, q->slot, &sampling, err);
}

/* Runs what the slot lacks, a chunk of it at most; *ret_is_done: the row says what follows. */
static int catch_up(struct sequence *q, const struct text *t, bool *ret_is_done,
                    struct step_row *ret_row, struct error *err)
{
    struct draft_model *m = q->model;
    struct view v = look(q, t);
    int32_t tokens[READ_CHUNK];
    uint32_t n = min(v.n_missing, READ_CHUNK);
    int rc = v.is_new ? settle(q, &v, err) : 0;
    if (rc == 0 && v.n_there < engine_slot_n_tokens(m->engine, q->slot))
        rc = engine_slot_truncate(m->engine, q->slot, v.n_there, err);
    for (uint32_t i = 0; i < n; i++)
        tokens[i] = token_at(t, v.first + v.n_there + i);
    *ret_is_done = n == v.n_missing;
    if (rc == 0)
        rc = run(m, q->slot, tokens, n, *ret_is_done, ret_row, err);
    q->n_sure = min(v.n_there + n, t->n_tokens - v.first);
    return rc;
}

/* How far the token is ahead of the next best one. */
static uint8_t grade_of(const struct step_row *row)
{
    static const float least[DRAFT_MODEL_GRADES] = {-INFINITY, 0.5F, 1, 2, 3.5F, 6};
    uint8_t grade = DRAFT_MODEL_GRADES - 1;
    while (grade > 0 && !(row->logit - row->logit_second >= least[grade]))
        grade--;
    return DRAFT_MODEL_FIRST + grade;
}

static void break_down(struct draft_model *m, const struct error *err)
{
    m->is_broken = true;
    log_warn("runner", "the draft model %s is not asked any more: %s", m->model->name,
             err->message);
}

static void propose(void *sequence, const int32_t *tokens, uint32_t n_tokens, uint32_t n_max,
                    struct draft *draft)
{
    struct sequence *q = sequence;
    struct draft_model *m = q->model;
    struct error err = {0};
    uint64_t start_ns = clock_now_ns();
    n_max = min(n_max, LIMIT_DRAFT_TOKENS - draft->n_tokens);
    q->used_at = ++m->n_turns;
    if (q->slot == SLOTS_MAX && find_slot(m) == SLOTS_MAX)
        return;
    for (bool is_done = true; is_done && n_max > 0 && !m->is_broken; n_max--) {
        struct text text = {tokens, n_tokens, draft->n_tokens > 0 ? draft : NULL};
        struct step_row row;
        if (catch_up(q, &text, &is_done, &row, &err) != 0) {
            break_down(m, &err);
        } else if (is_done) {
            draft->tokens[draft->n_tokens] = row.token;
            draft->grade[draft->n_tokens++] = grade_of(&row);
        }
    }
    draft->ns += clock_now_ns() - start_ns;
}

static bool cost(void *sequence, const int32_t *tokens, uint32_t n_tokens,
                 struct draft_cost *ret_cost)
{
    const struct sequence *q = sequence;
    const struct draft_model *m = q->model;
    if (m->is_broken || (q->slot == SLOTS_MAX && find_slot(m) == SLOTS_MAX))
        return false;
    struct text text = {tokens, n_tokens, NULL};
    *ret_cost = (struct draft_cost){
        .n_unread = look(q, &text).n_missing - 1, .read_ns = m->read_ns, .token_ns = m->token_ns};
    return true;
}

/* ---- life ---- */

static void plan_slots(struct draft_model *m)
{
    struct engine_info info;
    engine_get_info(m->engine, &info);
    uint32_t n_blocks = min(info.n_blocks, info.n_attached_max);
    m->n_slot_blocks = min(n_blocks / info.n_slots, info.n_ctx / info.block_tokens);
    m->n_slot_blocks = min(m->n_slot_blocks, ROOM);
    m->n_slots = info.n_slots;
    m->n_room = min(m->n_slot_blocks * info.block_tokens, m->model->config.n_ctx_train);
    m->n_read_max = min(READ_MAX, m->n_room / 2);
}

/* What a token costs is known before the first one counts. The shortest of a few steps: whoever
 * seems too expensive is never asked, and could not show that it is not. */
static int measure(struct draft_model *m, struct error *err)
{
    static const int32_t tokens[TRIAL_TOKENS];
    struct sampling sampling;
    struct step_row row;
    double least_ns = INFINITY;
    sampling_init(&sampling);
    int rc = attach(m, 0, &sampling, err);
    for (uint32_t i = 0; i < TRIALS && rc == 0; i++) {
        m->token_ns = 0;
        rc = run(m, 0, tokens, 1, true, &row, err);
        least_ns = fmin(least_ns, m->token_ns);
    }
    m->token_ns = least_ns;
    return rc == 0 ? run(m, 0, tokens, TRIAL_TOKENS, true, &row, err) : rc;
}

static int open_model(struct draft_model *m, const struct model *model, const char *path,
                      const struct engine_options *main, struct weights *kept, struct error *err)
{
    int rc = model_open(path, &m->model, err);
    if (rc == 0)
        rc = draft_model_check(model, m->model, err);
    if (rc != 0) {
        weights_free(kept);
        return rc;
    }
    struct engine_options options = make_options(m->model, main);
    struct split split = make_split(m->model);
    options.kept = kept;
    rc = engine_open(m->model, &split, 0, NULL, &options, &m->engine, err);
    if (rc != 0)
        return rc;
    plan_slots(m);
    if (m->n_room < 2 * LIMIT_DRAFT_TOKENS)
        return error_set(err, E_INVALID, "%s cannot guess: its context has %" PRIu32 " tokens",
                         m->model->name, m->n_room);
    return measure(m, err);
}

int draft_model_open(const struct model *model, const char *path,
                     const struct engine_options *options, struct weights *kept,
                     struct draft_model **ret_model, struct error *err)
{
    struct draft_model *m = calloc(1, sizeof(*m));
    if (m == NULL) {
        weights_free(kept);
        return error_set(err, E_NOMEM, "no memory for a draft model");
    }
    m->source = (struct draft_source){
        .begin = begin, .propose = propose, .cost = cost, .end = end, .arg = m};
    int rc = open_model(m, model, path, options, kept, err);
    if (rc != 0) {
        draft_model_close(m);
        return rc;
    }
    *ret_model = m;
    return 0;
}

struct weights *draft_model_close_keeping(struct draft_model *m)
{
    if (m == NULL)
        return NULL;
    struct weights *kept = engine_close_keeping(m->engine);
    model_close(m->model);
    free(m);
    return kept;
}

void draft_model_close(struct draft_model *m)
{
    weights_free(draft_model_close_keeping(m));
}

const struct draft_source *draft_model_source(const struct draft_model *m)
{
    return &m->source;
}

void draft_model_get_info(const struct draft_model *m, struct engine_info *ret_info)
{
    engine_get_info(m->engine, ret_info);
}
