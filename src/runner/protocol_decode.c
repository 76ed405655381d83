/* The reading half of runner/protocol.h: a payload is hostile until each field has been checked. */
#include "runner/protocol.h"
#include "runner/wire.h"

#include <stdlib.h>
#include <string.h>

enum { THREADS_MAX = 1024 };

/* The last check of every message: all bytes read, none missing. */
static int finish(const struct cursor *c, const char *name, struct error *err)
{
    if (c->failed)
        return error_set(err, E_PROTOCOL, "%s: cut off at byte %zu", name, c->offset);
    if (cursor_left(c) != 0)
        return error_set(err, E_PROTOCOL, "%s: %zu bytes too many", name, cursor_left(c));
    return 0;
}

static struct cursor begin(const struct message *m)
{
    struct cursor c;
    cursor_init(&c, m->payload, m->len);
    return c;
}

/* A string that fits into size bytes with its NUL and has no NUL inside. */
static int get_string(struct cursor *c, char *ret, size_t size, const char *field,
                      struct error *err)
{
    uint32_t len = cursor_u32(c);
    if (!c->failed && len >= size)
        return error_set(err, E_PROTOCOL, "%s: %u bytes, at most %zu are allowed", field, len,
                         size - 1);
    const char *text = cursor_bytes(c, len);
    if (text == NULL)
        return error_set(err, E_PROTOCOL, "%s: cut off", field);
    if (memchr(text, '\0', len) != NULL)
        return error_set(err, E_PROTOCOL, "%s: has a zero byte", field);
    memcpy(ret, text, len);
    ret[len] = '\0';
    return 0;
}

static int check_load(const struct message_load *m, uint8_t no_repack, struct error *err)
{
    const struct split *s = &m->split;
    if (s->n_stages == 0 || s->n_stages > LIMIT_STAGES || s->n_ranks > LIMIT_RANKS)
        return error_set(err, E_PROTOCOL, "load.split: %u stages, %u ranks", s->n_stages,
                         s->n_ranks);
    int rc = split_check(s, s->stage[s->n_stages - 1].layers.end, err);
    if (rc != 0) {
        error_wrap(err, rc, "load.split");
        if (err != NULL)
            err->code = E_PROTOCOL;
        return E_PROTOCOL;
    }
    if (m->rank >= s->n_ranks)
        return error_set(err, E_PROTOCOL, "load.rank: %u of %u ranks", m->rank, s->n_ranks);
    if (m->engine.n_threads > THREADS_MAX)
        return error_set(err, E_PROTOCOL, "load.n_threads: %u, at most %d are allowed",
                         m->engine.n_threads, THREADS_MAX);
    if (m->engine.n_slots > LIMIT_SLOTS)
        return error_set(err, E_PROTOCOL, "load.n_slots: %u, at most %d are allowed",
                         m->engine.n_slots, LIMIT_SLOTS);
    if (m->engine.n_batch > LIMIT_BATCH_TOKENS)
        return error_set(err, E_PROTOCOL, "load.n_batch: %u, at most %d are allowed",
                         m->engine.n_batch, LIMIT_BATCH_TOKENS);
    if (no_repack > 1)
        return error_set(err, E_PROTOCOL, "load.no_repack: %u, not 0 or 1", no_repack);
    if (m->engine.kv_type >= KV_TYPE_COUNT)
        return error_set(err, E_PROTOCOL, "load.kv_type: %u is unknown", m->engine.kv_type);
    if (m->wire >= COMM_WIRE_COUNT)
        return error_set(err, E_PROTOCOL, "load.wire: %u is unknown", m->wire);
    if (m->transport >= COMM_TRANSPORT_COUNT)
        return error_set(err, E_PROTOCOL, "load.transport: %u is unknown", m->transport);
    if (m->n_draft > LIMIT_DRAFT_TOKENS)
        return error_set(err, E_PROTOCOL, "load.n_draft: %u, at most %d are allowed", m->n_draft,
                         LIMIT_DRAFT_TOKENS);
    if (m->cpu < -1)
        return error_set(err, E_PROTOCOL, "load.cpu: %d", m->cpu);
    return 0;
}

int message_decode_load(const struct message *m, struct message_load *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->rank = cursor_u32(&c);
    int rc = split_decode(&c, &ret->split, err);
    if (rc != 0)
        return rc;
    const void *key = cursor_bytes(&c, sizeof(ret->key));
    const void *hash = cursor_bytes(&c, sizeof(ret->model_hash));
    if (key == NULL || hash == NULL)
        return error_set(err, E_PROTOCOL, "load.key: cut off");
    memcpy(ret->key, key, sizeof(ret->key));
    memcpy(ret->model_hash, hash, sizeof(ret->model_hash));
    ret->engine.n_threads = cursor_u32(&c);
    ret->engine.n_slots = cursor_u32(&c);
    ret->engine.n_ctx = cursor_u32(&c);
    ret->engine.n_batch = cursor_u32(&c);
    ret->engine.n_kv_tokens = cursor_u32(&c);
    uint8_t kv_type = cursor_u8(&c);
    ret->engine.kv_type = (enum kv_type)kv_type;
    uint8_t no_repack = cursor_u8(&c);
    ret->engine.no_repack = no_repack != 0;
    ret->n_chunk = cursor_u32(&c);
    ret->n_draft = cursor_u32(&c);
    uint8_t wire = cursor_u8(&c);
    ret->wire = (enum comm_wire)wire;
    uint8_t transport = cursor_u8(&c);
    ret->transport = (enum comm_transport)transport;
    ret->spin_us = cursor_u32(&c);
    ret->timeout_ms = cursor_u32(&c);
    ret->cpu = (int32_t)cursor_u32(&c);
    rc = get_string(&c, ret->host, sizeof(ret->host), "load.host", err);
    if (rc == 0)
        rc = get_string(&c, ret->engine.device, sizeof(ret->engine.device), "load.device", err);
    if (rc == 0)
        rc = get_string(&c, ret->model_path, sizeof(ret->model_path), "load.model_path", err);
    if (rc == 0)
        rc = get_string(&c, ret->draft_path, sizeof(ret->draft_path), "load.draft_path", err);
    if (rc == 0)
        rc = check_load(ret, no_repack, err);
    return rc != 0 ? rc : finish(&c, "load", err);
}

int message_decode_connect(const struct message *m, struct message_connect *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->n_peers = cursor_u32(&c);
    if (ret->n_peers == 0 || ret->n_peers > LIMIT_RANKS)
        return error_set(err, E_PROTOCOL, "connect.n_peers: %u, must be 1 to %d", ret->n_peers,
                         LIMIT_RANKS);
    for (uint32_t i = 0; i < ret->n_peers; i++) {
        int rc = get_string(&c, ret->peer[i].host, sizeof(ret->peer[i].host), "connect.host", err);
        if (rc != 0)
            return rc;
        ret->peer[i].port = cursor_u16(&c);
    }
    return finish(&c, "connect", err);
}

/* What stands behind the tokens only when there is something to say. */
static int decode_wishes(struct cursor *c, struct message_submit *ret, const void **ret_grammar,
                         struct error *err)
{
    ret->n_logprobs = cursor_u32(c);
    uint8_t has_grammar = cursor_u8(c);
    if (ret->n_logprobs > 1 + LIMIT_TOP_LOGPROBS)
        return error_set(err, E_PROTOCOL, "submit.n_logprobs: %u, at most %d are allowed",
                         ret->n_logprobs, 1 + LIMIT_TOP_LOGPROBS);
    if (has_grammar > 1 || (has_grammar == 0 && ret->n_logprobs == 0))
        return error_set(err, E_PROTOCOL, "submit.has_grammar: %u", has_grammar);
    if (has_grammar == 0)
        return 0;
    ret->has_grammar = true;
    uint8_t kind = cursor_u8(c);
    ret->n_grammar_bytes = cursor_u32(c);
    *ret_grammar = cursor_bytes(c, ret->n_grammar_bytes);
    if (kind >= GRAMMAR_KIND_COUNT || ret->n_grammar_bytes > LIMIT_GRAMMAR_BYTES)
        return error_set(err, E_PROTOCOL, "submit.grammar: kind %u, %u bytes", kind,
                         ret->n_grammar_bytes);
    ret->grammar_kind = (enum grammar_kind)kind;
    return 0;
}

int message_decode_submit(const struct message *m, struct message_submit *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->request = cursor_u64(&c);
    ret->n_max = cursor_u32(&c);
    int rc = wire_get_sampling(&c, &ret->sampling, err);
    if (rc != 0)
        return error_wrap(err, rc, "submit");
    ret->n_end = cursor_u32(&c);
    if (ret->n_end > sizeof(ret->end) / sizeof(ret->end[0]))
        return error_set(err, E_PROTOCOL, "submit.n_end: %u, at most %zu are allowed", ret->n_end,
                         sizeof(ret->end) / sizeof(ret->end[0]));
    for (uint32_t i = 0; i < ret->n_end; i++)
        ret->end[i] = (int32_t)cursor_u32(&c);
    ret->n_tokens = cursor_u32(&c);
    if (ret->n_max == 0)
        return error_set(err, E_PROTOCOL, "submit.n_max: 0, must be at least 1");
    /* Checked against the bytes that are there before memory is taken; what is left over is told
     * by what follows the tokens. */
    size_t tokens_bytes = (size_t)ret->n_tokens * 4;
    const uint8_t *wire = cursor_bytes(&c, tokens_bytes);
    if (wire == NULL)
        return error_set(err, E_PROTOCOL, "submit.tokens: %zu bytes for %u tokens", cursor_left(&c),
                         ret->n_tokens);
    const void *grammar = NULL;
    rc = cursor_left(&c) > 0 ? decode_wishes(&c, ret, &grammar, err) : 0;
    if (rc == 0)
        rc = finish(&c, "submit", err);
    if (rc != 0)
        return rc;
    int32_t *tokens = malloc(tokens_bytes + ret->n_grammar_bytes + 1);
    if (tokens == NULL)
        return error_set(err, E_NOMEM, "submit: no memory for %u tokens", ret->n_tokens);
    struct cursor list;
    cursor_init(&list, wire, tokens_bytes);
    for (uint32_t i = 0; i < ret->n_tokens; i++)
        tokens[i] = (int32_t)cursor_u32(&list);
    char *text = (char *)(tokens + ret->n_tokens);
    if (ret->n_grammar_bytes > 0 && grammar != NULL)
        memcpy(text, grammar, ret->n_grammar_bytes);
    text[ret->n_grammar_bytes] = '\0';
    ret->tokens = tokens;
    ret->grammar = ret->has_grammar ? text : NULL;
    return 0;
}

int message_decode_u64(const struct message *m, uint64_t *ret, struct error *err)
{
    struct cursor c = begin(m);
    *ret = cursor_u64(&c);
    const char *name = m->type == MESSAGE_PING       ? "ping"
                       : m->type == MESSAGE_RELEASED ? "released"
                                                     : "cancel";
    return finish(&c, name, err);
}

int message_decode_listening(const struct message *m, uint16_t *ret, struct error *err)
{
    struct cursor c = begin(m);
    *ret = cursor_u16(&c);
    return finish(&c, "listening", err);
}

int message_decode_loading(const struct message *m, float *ret, struct error *err)
{
    struct cursor c = begin(m);
    *ret = cursor_f32(&c);
    int rc = finish(&c, "loading", err);
    if (rc == 0 && !(*ret >= 0.0f && *ret <= 1.0f))
        return error_set(err, E_PROTOCOL, "loading.fraction: not between 0 and 1");
    return rc;
}

int message_decode_ready(const struct message *m, struct message_ready *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->info.weight_bytes = cursor_u64(&c);
    ret->info.weight_bytes_mapped = cursor_u64(&c);
    ret->info.weight_bytes_repacked = cursor_u64(&c);
    ret->info.weight_bytes_kept = cursor_u64(&c);
    ret->info.weight_bytes_device = cursor_u64(&c);
    ret->info.kv_bytes = cursor_u64(&c);
    ret->info.compute_bytes = cursor_u64(&c);
    ret->info.n_ctx = cursor_u32(&c);
    ret->info.n_slots = cursor_u32(&c);
    ret->info.n_batch = cursor_u32(&c);
    ret->info.n_threads = cursor_u32(&c);
    ret->info.block_tokens = cursor_u32(&c);
    ret->info.n_blocks = cursor_u32(&c);
    ret->info.n_attached_max = cursor_u32(&c);
    int rc = get_string(&c, ret->info.device, sizeof(ret->info.device), "ready.device", err);
    ret->pid = cursor_u32(&c);
    if (rc == 0)
        rc = finish(&c, "ready", err);
    if (rc == 0 && (ret->info.n_slots > LIMIT_SLOTS || ret->info.n_batch > LIMIT_BATCH_TOKENS))
        return error_set(err, E_PROTOCOL, "ready: %u slots, %u tokens in a step", ret->info.n_slots,
                         ret->info.n_batch);
    return rc;
}

/* An error code: 0 or negative. */
static int get_code(struct cursor *c, int32_t *ret, const char *field, struct error *err)
{
    *ret = (int32_t)cursor_u32(c);
    return *ret > 0 ? error_set(err, E_PROTOCOL, "%s: %d is not an error code", field, *ret) : 0;
}

int message_decode_failed(const struct message *m, struct message_failed *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    int rc = get_code(&c, &ret->code, "failed.code", err);
    if (rc == 0 && !c.failed && ret->code == 0)
        rc = error_set(err, E_PROTOCOL, "failed.code: 0 is not an error");
    if (rc == 0)
        rc = get_string(&c, ret->message, sizeof(ret->message), "failed.message", err);
    return rc != 0 ? rc : finish(&c, "failed", err);
}

int message_decode_progress(const struct message *m, struct message_progress *ret,
                            struct error *err)
{
    struct cursor c = begin(m);
    ret->request = cursor_u64(&c);
    ret->n_done = cursor_u32(&c);
    ret->n_prompt = cursor_u32(&c);
    int rc = finish(&c, "progress", err);
    if (rc == 0 && ret->n_done > ret->n_prompt)
        return error_set(err, E_PROTOCOL, "progress: %u of %u tokens", ret->n_done, ret->n_prompt);
    return rc;
}

int message_decode_tokens(const struct message *m, struct message_tokens *ret,
                          struct logprobs *ret_logprobs, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->request = cursor_u64(&c);
    ret->n_before = cursor_u32(&c);
    ret->n_tokens = cursor_u32(&c);
    if (ret->n_tokens > MESSAGE_TOKENS_MAX)
        return error_set(err, E_PROTOCOL, "tokens.n_tokens: %u, at most %d are allowed",
                         ret->n_tokens, MESSAGE_TOKENS_MAX);
    for (uint32_t i = 0; i < ret->n_tokens; i++)
        ret->tokens[i] = (int32_t)cursor_u32(&c);
    bool has_logprobs = cursor_left(&c) > 0 && ret->n_tokens <= MESSAGE_LOGPROBS_MAX;
    for (uint32_t i = 0; i < ret->n_tokens && has_logprobs; i++) {
        struct logprobs unwanted;
        int rc = wire_get_logprobs(&c, ret_logprobs != NULL ? &ret_logprobs[i] : &unwanted, err);
        if (rc != 0)
            return error_wrap(err, rc, "tokens");
    }
    ret->logprobs = has_logprobs ? ret_logprobs : NULL;
    return finish(&c, "tokens", err);
}

int message_decode_done(const struct message *m, struct message_done *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->request = cursor_u64(&c);
    uint8_t reason = cursor_u8(&c);
    if (reason > FINISH_ERROR)
        return error_set(err, E_PROTOCOL, "done.reason: %u is unknown", reason);
    ret->reason = (enum finish_reason)reason;
    int rc = get_code(&c, &ret->code, "done.code", err);
    if (rc != 0)
        return rc;
    ret->n_prompt = cursor_u32(&c);
    ret->n_cached = cursor_u32(&c);
    ret->n_generated = cursor_u32(&c);
    ret->queue_ns = cursor_u64(&c);
    ret->prefill_ns = cursor_u64(&c);
    ret->decode_ns = cursor_u64(&c);
    rc = get_string(&c, ret->message, sizeof(ret->message), "done.message", err);
    if (rc == 0)
        rc = finish(&c, "done", err);
    if (rc == 0 && (ret->reason == FINISH_ERROR) != (ret->code != 0))
        return error_set(err, E_PROTOCOL, "done.code: %d with reason %u", ret->code, reason);
    return rc;
}

static void get_stats(struct cursor *c, struct scheduler_stats *ret)
{
    ret->n_steps = cursor_u64(c);
    ret->n_prompt_tokens = cursor_u64(c);
    ret->n_cached_tokens = cursor_u64(c);
    ret->n_generated_tokens = cursor_u64(c);
    ret->n_drafted = cursor_u64(c);
    ret->n_accepted = cursor_u64(c);
    ret->n_preempted = cursor_u64(c);
    ret->n_evicted = cursor_u64(c);
    ret->n_blocks_used = cursor_u32(c);
    ret->n_blocks_kept = cursor_u32(c);
    ret->n_blocks_free = cursor_u32(c);
    ret->n_block_tokens_used = cursor_u32(c);
}

int message_decode_pong(const struct message *m, struct message_pong *ret, struct error *err)
{
    struct cursor c = begin(m);
    memset(ret, 0, sizeof(*ret));
    ret->nonce = cursor_u64(&c);
    ret->timing.n_steps = cursor_u64(&c);
    ret->timing.n_tokens = cursor_u64(&c);
    ret->timing.step_ns = cursor_u64(&c);
    ret->timing.comm_ns = cursor_u64(&c);
    ret->timing.graph_ns = cursor_u64(&c);
    ret->timing.sample_ns = cursor_u64(&c);
    ret->timing.fill_ns = cursor_u64(&c);
    ret->comm.bytes_sent = cursor_u64(&c);
    ret->comm.bytes_received = cursor_u64(&c);
    ret->comm.n_operations = cursor_u64(&c);
    ret->comm.wait_ns = cursor_u64(&c);
    ret->n_running = cursor_u32(&c);
    ret->n_queued = cursor_u32(&c);
    get_stats(&c, &ret->scheduler);
    ret->memory_peak_bytes = cursor_u64(&c);
    return finish(&c, "pong", err);
}
