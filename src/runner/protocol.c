#include "runner/protocol.h"

#include "runner/wire.h"

#include <string.h>

enum { HEADER_BYTES = 8, SMALL_BYTES = 16384 };

/* The most bytes that a payload of this type can have; 0 for types that do not exist. Only prompts
 * are large, so that a stranger cannot make us hold 64 MiB for a PING. */
static uint32_t payload_bytes_max(uint32_t type)
{
    switch (type) {
    case MESSAGE_SUBMIT:
        return LIMIT_CONTROL_FRAME_BYTES;
    case MESSAGE_LOAD:
    case MESSAGE_CONNECT:
    case MESSAGE_CANCEL:
    case MESSAGE_PING:
    case MESSAGE_STOP:
    case MESSAGE_RELEASE:
    case MESSAGE_LISTENING:
    case MESSAGE_LOADING:
    case MESSAGE_READY:
    case MESSAGE_FAILED:
    case MESSAGE_PROGRESS:
    case MESSAGE_TOKENS:
    case MESSAGE_DONE:
    case MESSAGE_PONG:
    case MESSAGE_RELEASED:
        return SMALL_BYTES;
    default:
        return 0;
    }
}

int64_t message_next(const void *data, size_t n, struct message *ret_message, struct error *err)
{
    if (n < HEADER_BYTES)
        return 0;
    struct cursor c;
    cursor_init(&c, data, n);
    uint32_t len = cursor_u32(&c);
    uint16_t type = cursor_u16(&c);
    uint16_t zero = cursor_u16(&c);
    uint32_t len_max = payload_bytes_max(type);
    if (len_max == 0)
        return error_set(err, E_PROTOCOL, "control frame: unknown type %u", type);
    if (zero != 0)
        return error_set(err, E_PROTOCOL, "control frame: reserved field is %u, not 0", zero);
    if (len > len_max)
        return error_set(err, E_PROTOCOL,
                         "control frame: type %u with %u bytes, at most %u are allowed", type, len,
                         len_max);
    if (n - HEADER_BYTES < len)
        return 0;
    *ret_message = (struct message){.type = (enum message_type)type,
                                    .payload = (const uint8_t *)data + HEADER_BYTES,
                                    .len = len};
    return HEADER_BYTES + (int64_t)len;
}

/* Starts a frame and returns its offset; finish_frame() fills in the length. */
static size_t begin_frame(struct buf *b, enum message_type type)
{
    size_t start = b->len;
    buf_append_u32(b, 0);
    buf_append_u16(b, (uint16_t)type);
    buf_append_u16(b, 0);
    return start;
}

static int finish_frame(struct buf *b, size_t start, enum message_type type)
{
    if (b->error != 0)
        return b->error;
    size_t len = b->len - start - HEADER_BYTES;
    if (len > payload_bytes_max(type)) {
        b->len = start;
        b->data[start] = '\0';
        return b->error = E_LIMIT;
    }
    for (size_t i = 0; i < 4; i++)
        b->data[start + i] = (char)(uint8_t)(len >> (8 * i));
    return 0;
}

static void put_string(struct buf *b, const char *text, size_t size)
{
    size_t len = strnlen(text, size);
    buf_append_u32(b, (uint32_t)len);
    buf_append(b, text, len);
}

int message_encode_load(struct buf *b, const struct message_load *m)
{
    size_t start = begin_frame(b, MESSAGE_LOAD);
    buf_append_u32(b, m->rank);
    split_encode(&m->split, b);
    buf_append(b, m->key, sizeof(m->key));
    buf_append(b, m->model_hash, sizeof(m->model_hash));
    buf_append_u32(b, m->engine.n_threads);
    buf_append_u32(b, m->engine.n_slots);
    buf_append_u32(b, m->engine.n_ctx);
    buf_append_u32(b, m->engine.n_batch);
    buf_append_u32(b, m->engine.n_kv_tokens);
    buf_append_u8(b, (uint8_t)m->engine.kv_type);
    buf_append_u8(b, m->engine.no_repack);
    buf_append_u32(b, m->n_chunk);
    buf_append_u32(b, m->n_draft);
    buf_append_u8(b, (uint8_t)m->wire);
    buf_append_u8(b, (uint8_t)m->transport);
    buf_append_u32(b, m->spin_us);
    buf_append_u32(b, m->timeout_ms);
    buf_append_u32(b, (uint32_t)m->cpu);
    put_string(b, m->host, sizeof(m->host));
    put_string(b, m->engine.device, sizeof(m->engine.device));
    put_string(b, m->model_path, sizeof(m->model_path));
    put_string(b, m->draft_path, sizeof(m->draft_path));
    return finish_frame(b, start, MESSAGE_LOAD);
}

int message_encode_connect(struct buf *b, const struct message_connect *m)
{
    size_t start = begin_frame(b, MESSAGE_CONNECT);
    buf_append_u32(b, m->n_peers);
    for (uint32_t i = 0; i < m->n_peers && i < LIMIT_RANKS; i++) {
        put_string(b, m->peer[i].host, sizeof(m->peer[i].host));
        buf_append_u16(b, m->peer[i].port);
    }
    return finish_frame(b, start, MESSAGE_CONNECT);
}

int message_encode_submit(struct buf *b, const struct message_submit *m)
{
    size_t start = begin_frame(b, MESSAGE_SUBMIT);
    buf_append_u64(b, m->request);
    buf_append_u32(b, m->n_max);
    wire_put_sampling(b, &m->sampling);
    buf_append_u32(b, m->n_end);
    for (uint32_t i = 0; i < m->n_end && i < sizeof(m->end) / sizeof(m->end[0]); i++)
        buf_append_u32(b, (uint32_t)m->end[i]);
    buf_append_u32(b, m->n_tokens);
    buf_reserve(b, (size_t)m->n_tokens * 4);
    for (uint32_t i = 0; i < m->n_tokens && b->error == 0; i++)
        buf_append_u32(b, (uint32_t)m->tokens[i]);
    if (m->n_logprobs > 0 || m->has_grammar) {
        buf_append_u32(b, m->n_logprobs);
        buf_append_u8(b, m->has_grammar);
    }
    if (m->has_grammar) {
        buf_append_u8(b, (uint8_t)m->grammar_kind);
        buf_append_u32(b, m->n_grammar_bytes);
        buf_append(b, m->grammar, m->n_grammar_bytes);
    }
    return finish_frame(b, start, MESSAGE_SUBMIT);
}

static int encode_u64(struct buf *b, enum message_type type, uint64_t value)
{
    size_t start = begin_frame(b, type);
    buf_append_u64(b, value);
    return finish_frame(b, start, type);
}

int message_encode_cancel(struct buf *b, uint64_t request)
{
    return encode_u64(b, MESSAGE_CANCEL, request);
}

int message_encode_ping(struct buf *b, uint64_t nonce)
{
    return encode_u64(b, MESSAGE_PING, nonce);
}

int message_encode_stop(struct buf *b)
{
    return finish_frame(b, begin_frame(b, MESSAGE_STOP), MESSAGE_STOP);
}

int message_encode_release(struct buf *b)
{
    return finish_frame(b, begin_frame(b, MESSAGE_RELEASE), MESSAGE_RELEASE);
}

int message_encode_listening(struct buf *b, uint16_t port)
{
    size_t start = begin_frame(b, MESSAGE_LISTENING);
    buf_append_u16(b, port);
    return finish_frame(b, start, MESSAGE_LISTENING);
}

int message_encode_loading(struct buf *b, float fraction)
{
    size_t start = begin_frame(b, MESSAGE_LOADING);
    buf_append_f32(b, fraction);
    return finish_frame(b, start, MESSAGE_LOADING);
}

int message_encode_ready(struct buf *b, const struct message_ready *m)
{
    size_t start = begin_frame(b, MESSAGE_READY);
    buf_append_u64(b, m->info.weight_bytes);
    buf_append_u64(b, m->info.weight_bytes_mapped);
    buf_append_u64(b, m->info.weight_bytes_repacked);
    buf_append_u64(b, m->info.weight_bytes_kept);
    buf_append_u64(b, m->info.weight_bytes_device);
    buf_append_u64(b, m->info.kv_bytes);
    buf_append_u64(b, m->info.compute_bytes);
    buf_append_u32(b, m->info.n_ctx);
    buf_append_u32(b, m->info.n_slots);
    buf_append_u32(b, m->info.n_batch);
    buf_append_u32(b, m->info.n_threads);
    buf_append_u32(b, m->info.block_tokens);
    buf_append_u32(b, m->info.n_blocks);
    buf_append_u32(b, m->info.n_attached_max);
    put_string(b, m->info.device, sizeof(m->info.device));
    buf_append_u32(b, m->pid);
    return finish_frame(b, start, MESSAGE_READY);
}

int message_encode_failed(struct buf *b, const struct message_failed *m)
{
    size_t start = begin_frame(b, MESSAGE_FAILED);
    buf_append_u32(b, (uint32_t)m->code);
    put_string(b, m->message, sizeof(m->message));
    return finish_frame(b, start, MESSAGE_FAILED);
}

int message_encode_progress(struct buf *b, const struct message_progress *m)
{
    size_t start = begin_frame(b, MESSAGE_PROGRESS);
    buf_append_u64(b, m->request);
    buf_append_u32(b, m->n_done);
    buf_append_u32(b, m->n_prompt);
    return finish_frame(b, start, MESSAGE_PROGRESS);
}

int message_encode_tokens(struct buf *b, const struct message_tokens *m)
{
    size_t start = begin_frame(b, MESSAGE_TOKENS);
    buf_append_u64(b, m->request);
    buf_append_u32(b, m->n_before);
    buf_append_u32(b, m->n_tokens);
    for (uint32_t i = 0; i < m->n_tokens && i < MESSAGE_TOKENS_MAX; i++)
        buf_append_u32(b, (uint32_t)m->tokens[i]);
    for (uint32_t i = 0; m->logprobs != NULL && i < m->n_tokens && i < MESSAGE_LOGPROBS_MAX; i++)
        wire_put_logprobs(b, &m->logprobs[i]);
    return finish_frame(b, start, MESSAGE_TOKENS);
}

int message_encode_done(struct buf *b, const struct message_done *m)
{
    size_t start = begin_frame(b, MESSAGE_DONE);
    buf_append_u64(b, m->request);
    buf_append_u8(b, (uint8_t)m->reason);
    buf_append_u32(b, (uint32_t)m->code);
    buf_append_u32(b, m->n_prompt);
    buf_append_u32(b, m->n_cached);
    buf_append_u32(b, m->n_generated);
    buf_append_u64(b, m->queue_ns);
    buf_append_u64(b, m->prefill_ns);
    buf_append_u64(b, m->decode_ns);
    put_string(b, m->message, sizeof(m->message));
    return finish_frame(b, start, MESSAGE_DONE);
}

static void put_stats(struct buf *b, const struct scheduler_stats *s)
{
    buf_append_u64(b, s->n_steps);
    buf_append_u64(b, s->n_prompt_tokens);
    buf_append_u64(b, s->n_cached_tokens);
    buf_append_u64(b, s->n_generated_tokens);
    buf_append_u64(b, s->n_drafted);
    buf_append_u64(b, s->n_accepted);
    buf_append_u64(b, s->n_preempted);
    buf_append_u64(b, s->n_evicted);
    buf_append_u32(b, s->n_blocks_used);
    buf_append_u32(b, s->n_blocks_kept);
    buf_append_u32(b, s->n_blocks_free);
    buf_append_u32(b, s->n_block_tokens_used);
}

int message_encode_pong(struct buf *b, const struct message_pong *m)
{
    size_t start = begin_frame(b, MESSAGE_PONG);
    buf_append_u64(b, m->nonce);
    buf_append_u64(b, m->timing.n_steps);
    buf_append_u64(b, m->timing.n_tokens);
    buf_append_u64(b, m->timing.step_ns);
    buf_append_u64(b, m->timing.comm_ns);
    buf_append_u64(b, m->timing.graph_ns);
    buf_append_u64(b, m->timing.sample_ns);
    buf_append_u64(b, m->timing.fill_ns);
    buf_append_u64(b, m->comm.bytes_sent);
    buf_append_u64(b, m->comm.bytes_received);
    buf_append_u64(b, m->comm.n_operations);
    buf_append_u64(b, m->comm.wait_ns);
    buf_append_u32(b, m->n_running);
    buf_append_u32(b, m->n_queued);
    put_stats(b, &m->scheduler);
    buf_append_u64(b, m->memory_peak_bytes);
    return finish_frame(b, start, MESSAGE_PONG);
}

int message_encode_released(struct buf *b, uint64_t weight_bytes)
{
    return encode_u64(b, MESSAGE_RELEASED, weight_bytes);
}
