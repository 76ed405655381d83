/* Control frames: what is written is read back, and nothing that is cut or changed does harm. */
#include "base/rng.h"
#include "runner/protocol.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SEEDS = 60 };

static uint64_t seed, drawn;

static uint32_t draw(uint32_t below)
{
    return (uint32_t)(rng_u64(seed, drawn++, 1) % below);
}

static uint64_t draw_u64(void)
{
    return rng_u64(seed, drawn++, 2);
}

static float draw_float(void)
{
    return (float)((int32_t)draw(2000001) - 1000000) / 1024.0f;
}

static void draw_text(char *text, size_t size)
{
    size_t len = draw((uint32_t)size);
    for (size_t i = 0; i < len; i++)
        text[i] = (char)(1 + draw(255));
    text[len] = '\0';
}

static void draw_split(struct split *s)
{
    memset(s, 0, sizeof(*s));
    s->n_stages = 1 + draw(5);
    uint32_t layer = 0;
    for (uint32_t i = 0; i < s->n_stages; i++) {
        uint32_t n_layers = 1 + draw(9);
        s->stage[i].layers = (struct range){layer, layer + n_layers};
        s->stage[i].rank_first = s->n_ranks;
        s->stage[i].n_ranks = 1 + draw(4);
        s->n_ranks += s->stage[i].n_ranks;
        layer += n_layers;
    }
    for (uint32_t i = 0; i < s->n_ranks; i++)
        s->weight[i] = 1 + draw(1000);
}

static void draw_sampling(struct sampling *s)
{
    sampling_init(s);
    s->temperature = draw_float();
    s->top_k = draw(100);
    s->top_p = draw_float();
    s->min_p = draw_float();
    s->repetition_penalty = draw_float();
    s->frequency_penalty = draw_float();
    s->presence_penalty = draw_float();
    s->seed = draw_u64();
    s->n_prompt = draw(1000);
    s->n_bias = draw(4) == 0 ? LIMIT_LOGIT_BIAS : draw(8);
    for (uint32_t i = 0; i < s->n_bias; i++)
        s->bias[i] = (struct logit_bias){.token = (int32_t)draw(100000), .bias = draw_float()};
}

static void encode_submit(struct buf *b)
{
    static int32_t tokens[4096];
    struct message_submit m = {.request = draw_u64(), .n_max = 1 + draw(1000), .tokens = tokens};
    draw_sampling(&m.sampling);
    m.n_end = draw(33);
    for (uint32_t i = 0; i < m.n_end; i++)
        m.end[i] = (int32_t)draw(100000);
    m.n_tokens = draw(4096);
    for (uint32_t i = 0; i < m.n_tokens; i++)
        tokens[i] = (int32_t)draw(100000);
    static char text[500];
    draw_text(text, sizeof(text));
    m.n_logprobs = draw(2) * draw(2 + LIMIT_TOP_LOGPROBS);
    m.has_grammar = draw(2);
    if (m.has_grammar) {
        m.grammar_kind = (enum grammar_kind)draw(GRAMMAR_KIND_COUNT);
        m.grammar = text;
        m.n_grammar_bytes = (uint32_t)strlen(text);
    }
    message_encode_submit(b, &m);
}

static void encode_load(struct buf *b)
{
    static struct message_load m;
    memset(&m, 0, sizeof(m));
    draw_split(&m.split);
    m.rank = draw(m.split.n_ranks);
    for (size_t i = 0; i < sizeof(m.key); i++) {
        m.key[i] = (uint8_t)draw(256);
        m.model_hash[i] = (uint8_t)draw(256);
    }
    m.engine = (struct engine_options){.n_threads = draw(1025),
                                       .n_slots = draw(LIMIT_SLOTS + 1),
                                       .n_ctx = draw(100000),
                                       .n_batch = draw(LIMIT_BATCH_TOKENS + 1),
                                       .n_kv_tokens = (uint32_t)draw_u64(),
                                       .kv_type = (enum kv_type)draw(KV_TYPE_COUNT),
                                       .no_repack = draw(2) == 1};
    m.n_chunk = (uint32_t)draw_u64();
    m.n_draft = draw(LIMIT_DRAFT_TOKENS + 1);
    m.wire = (enum comm_wire)draw(COMM_WIRE_COUNT);
    m.transport = (enum comm_transport)draw(COMM_TRANSPORT_COUNT);
    m.spin_us = (uint32_t)draw_u64();
    m.timeout_ms = (uint32_t)draw_u64();
    m.cpu = (int32_t)draw(100) - 1;
    draw_text(m.engine.device, sizeof(m.engine.device));
    draw_text(m.host, sizeof(m.host));
    draw_text(m.model_path, sizeof(m.model_path));
    draw_text(m.draft_path, sizeof(m.draft_path));
    message_encode_load(b, &m);
}

static void encode_connect(struct buf *b)
{
    struct message_connect m = {.n_peers = 1 + draw(LIMIT_RANKS)};
    for (uint32_t i = 0; i < m.n_peers; i++) {
        draw_text(m.peer[i].host, sizeof(m.peer[i].host));
        m.peer[i].port = (uint16_t)draw(65536);
    }
    message_encode_connect(b, &m);
}

static void encode_done(struct buf *b)
{
    struct message_done m = {.request = draw_u64(),
                             .reason = (enum finish_reason)draw(4),
                             .n_prompt = draw(1000),
                             .n_cached = draw(1000),
                             .n_generated = draw(1000),
                             .queue_ns = draw_u64(),
                             .prefill_ns = draw_u64(),
                             .decode_ns = draw_u64()};
    m.code = m.reason == FINISH_ERROR ? E_BUSY : 0;
    draw_text(m.message, sizeof(m.message));
    message_encode_done(b, &m);
}

static void encode_tokens(struct buf *b)
{
    struct message_tokens m = {
        .request = draw_u64(), .n_before = (uint32_t)draw_u64(), .n_tokens = draw(257)};
    static struct logprobs logprobs[MESSAGE_LOGPROBS_MAX];
    if (draw(2) == 0) {
        m.n_tokens = draw(MESSAGE_LOGPROBS_MAX + 1);
        m.logprobs = logprobs;
    }
    for (uint32_t i = 0; i < m.n_tokens; i++)
        m.tokens[i] = (int32_t)draw(100000);
    for (uint32_t i = 0; i < MESSAGE_LOGPROBS_MAX; i++) {
        logprobs[i] =
            (struct logprobs){.chosen = -(float)draw(99), .n_top = draw(LIMIT_TOP_LOGPROBS + 1)};
        for (uint32_t k = 0; k < logprobs[i].n_top; k++)
            logprobs[i].top[k] = (struct token_logprob){(int32_t)draw(100000), -(float)draw(9999)};
    }
    message_encode_tokens(b, &m);
}

static void encode_pong(struct buf *b)
{
    struct message_pong m = {.nonce = draw_u64(),
                             .timing = {.n_steps = draw_u64(), .sample_ns = draw_u64()},
                             .comm = {.bytes_sent = draw_u64(), .wait_ns = draw_u64()},
                             .n_running = draw(64),
                             .n_queued = draw(256),
                             .memory_peak_bytes = draw_u64()};
    message_encode_pong(b, &m);
}

static void encode_ready(struct buf *b)
{
    struct message_ready m = {.info = {.weight_bytes = draw_u64(),
                                       .weight_bytes_kept = draw_u64(),
                                       .weight_bytes_device = draw_u64(),
                                       .compute_bytes = draw_u64(),
                                       .n_ctx = draw(100000),
                                       .n_slots = 1 + draw(LIMIT_SLOTS),
                                       .n_batch = 1 + draw(LIMIT_BATCH_TOKENS),
                                       .n_threads = draw(100),
                                       .block_tokens = draw(1000),
                                       .n_blocks = draw(100000),
                                       .n_attached_max = (uint32_t)draw_u64()},
                              .pid = draw(100000)};
    draw_text(m.info.device, sizeof(m.info.device));
    message_encode_ready(b, &m);
}

static void encode_failed(struct buf *b)
{
    struct message_failed m = {.code = E_PEERLOST - (int32_t)draw(4)};
    draw_text(m.message, sizeof(m.message));
    message_encode_failed(b, &m);
}

static void encode_progress(struct buf *b)
{
    struct message_progress m = {.request = draw_u64(), .n_prompt = draw(10000)};
    m.n_done = draw(m.n_prompt + 1);
    message_encode_progress(b, &m);
}

/* A random frame of each type in turn. */
static void encode_any(struct buf *b, enum message_type type)
{
    switch (type) {
    case MESSAGE_LOAD:
        encode_load(b);
        break;
    case MESSAGE_CONNECT:
        encode_connect(b);
        break;
    case MESSAGE_SUBMIT:
        encode_submit(b);
        break;
    case MESSAGE_CANCEL:
        message_encode_cancel(b, draw_u64());
        break;
    case MESSAGE_PING:
        message_encode_ping(b, draw_u64());
        break;
    case MESSAGE_STOP:
        message_encode_stop(b);
        break;
    case MESSAGE_RELEASE:
        message_encode_release(b);
        break;
    case MESSAGE_LISTENING:
        message_encode_listening(b, (uint16_t)draw(65536));
        break;
    case MESSAGE_LOADING:
        message_encode_loading(b, (float)draw(1001) / 1000.0f);
        break;
    case MESSAGE_READY:
        encode_ready(b);
        break;
    case MESSAGE_FAILED:
        encode_failed(b);
        break;
    case MESSAGE_PROGRESS:
        encode_progress(b);
        break;
    case MESSAGE_TOKENS:
        encode_tokens(b);
        break;
    case MESSAGE_DONE:
        encode_done(b);
        break;
    case MESSAGE_PONG:
        encode_pong(b);
        break;
    case MESSAGE_RELEASED:
        message_encode_released(b, draw_u64());
        break;
    }
}

static const enum message_type types[] = {
    MESSAGE_LOAD,  MESSAGE_CONNECT, MESSAGE_SUBMIT,    MESSAGE_CANCEL,
    MESSAGE_PING,  MESSAGE_STOP,    MESSAGE_LISTENING, MESSAGE_LOADING,
    MESSAGE_READY, MESSAGE_FAILED,  MESSAGE_PROGRESS,  MESSAGE_TOKENS,
    MESSAGE_DONE,  MESSAGE_PONG,    MESSAGE_RELEASE,   MESSAGE_RELEASED};
enum { N_TYPES = sizeof(types) / sizeof(types[0]) };

/* Reads a payload and, when that succeeds, writes it again. Returns the decoder's code. */
static int recode(const struct message *m, struct buf *out, struct error *err)
{
    static struct message_load load;
    static struct message_submit submit;
    struct message_connect connect;
    struct message_ready ready;
    struct message_failed failed;
    struct message_progress progress;
    struct message_tokens tokens;
    struct logprobs logprobs[MESSAGE_LOGPROBS_MAX];
    struct message_done done;
    struct message_pong pong;
    uint64_t number;
    uint16_t port;
    float fraction;
    int rc;
    switch (m->type) {
    case MESSAGE_LOAD:
        rc = message_decode_load(m, &load, err);
        return rc != 0 ? rc : message_encode_load(out, &load);
    case MESSAGE_CONNECT:
        rc = message_decode_connect(m, &connect, err);
        return rc != 0 ? rc : message_encode_connect(out, &connect);
    case MESSAGE_SUBMIT:
        rc = message_decode_submit(m, &submit, err);
        if (rc == 0) {
            rc = message_encode_submit(out, &submit);
            free((void *)(uintptr_t)submit.tokens);
        }
        return rc;
    case MESSAGE_CANCEL:
    case MESSAGE_PING:
    case MESSAGE_RELEASED:
        rc = message_decode_u64(m, &number, err);
        if (rc != 0)
            return rc;
        return m->type == MESSAGE_PING     ? message_encode_ping(out, number)
               : m->type == MESSAGE_CANCEL ? message_encode_cancel(out, number)
                                           : message_encode_released(out, number);
    case MESSAGE_STOP:
        return m->len == 0 ? message_encode_stop(out) : E_PROTOCOL;
    case MESSAGE_RELEASE:
        return m->len == 0 ? message_encode_release(out) : E_PROTOCOL;
    case MESSAGE_LISTENING:
        rc = message_decode_listening(m, &port, err);
        return rc != 0 ? rc : message_encode_listening(out, port);
    case MESSAGE_LOADING:
        rc = message_decode_loading(m, &fraction, err);
        return rc != 0 ? rc : message_encode_loading(out, fraction);
    case MESSAGE_READY:
        rc = message_decode_ready(m, &ready, err);
        return rc != 0 ? rc : message_encode_ready(out, &ready);
    case MESSAGE_FAILED:
        rc = message_decode_failed(m, &failed, err);
        return rc != 0 ? rc : message_encode_failed(out, &failed);
    case MESSAGE_PROGRESS:
        rc = message_decode_progress(m, &progress, err);
        return rc != 0 ? rc : message_encode_progress(out, &progress);
    case MESSAGE_TOKENS:
        rc = message_decode_tokens(m, &tokens, logprobs, err);
        return rc != 0 ? rc : message_encode_tokens(out, &tokens);
    case MESSAGE_DONE:
        rc = message_decode_done(m, &done, err);
        return rc != 0 ? rc : message_encode_done(out, &done);
    case MESSAGE_PONG:
        rc = message_decode_pong(m, &pong, err);
        return rc != 0 ? rc : message_encode_pong(out, &pong);
    }
    return E_PROTOCOL;
}

static void round_trips(void **state)
{
    (void)state;
    struct buf frame, again;
    buf_init(&frame, 1u << 20);
    buf_init(&again, 1u << 20);
    for (seed = 0; seed < SEEDS; seed++)
        for (size_t i = 0; i < N_TYPES; i++) {
            drawn = i << 32;
            buf_reset(&frame);
            buf_reset(&again);
            encode_any(&frame, types[i]);
            assert_int_equal(frame.error, 0);
            struct message m;
            struct error err = {0};
            assert_int_equal(message_next(frame.data, frame.len, &m, &err), frame.len);
            assert_int_equal(m.type, types[i]);
            int rc = recode(&m, &again, &err);
            if (rc != 0)
                fail_msg("seed %llu, type %d: %s", (unsigned long long)seed, (int)types[i],
                         err.message);
            assert_int_equal(again.len, frame.len);
            assert_memory_equal(again.data, frame.data, frame.len);
        }
    buf_done(&frame);
    buf_done(&again);
}

/* A frame that is not whole yet asks for more; a payload that ends early is refused at every byte.
 * The copy has exactly the bytes that count, so that a sanitizer sees any read beyond. */
static void every_truncation_is_seen(void **state)
{
    (void)state;
    struct buf frame, again;
    buf_init(&frame, 1u << 20);
    buf_init(&again, 1u << 20);
    seed = 7;
    for (size_t i = 0; i < N_TYPES; i++) {
        drawn = 0;
        buf_reset(&frame);
        encode_any(&frame, types[i]);
        size_t stride = frame.len > 4000 ? 13 : 1;
        for (size_t n = 0; n < frame.len; n += stride) {
            struct message m;
            uint8_t *copy = malloc(n + 1);
            assert_non_null(copy);
            memcpy(copy, frame.data, n);
            assert_int_equal(message_next(copy, n, &m, NULL), 0);
            if (n >= 8) {
                struct error err = {0};
                uint8_t *payload = malloc(n - 8 + 1);
                assert_non_null(payload);
                memcpy(payload, copy + 8, n - 8);
                m = (struct message){.type = types[i], .payload = payload, .len = n - 8};
                buf_reset(&again);
                assert_int_equal(recode(&m, &again, &err), E_PROTOCOL);
                free(payload);
            }
            free(copy);
        }
    }
    buf_done(&frame);
    buf_done(&again);
}

/* A changed bit is refused or gives another message that is written as it was read. */
static void every_bit_flip_is_harmless(void **state)
{
    (void)state;
    struct buf frame, again;
    buf_init(&frame, 1u << 20);
    buf_init(&again, 1u << 20);
    seed = 11;
    for (size_t i = 0; i < N_TYPES; i++) {
        drawn = 0;
        buf_reset(&frame);
        encode_any(&frame, types[i]);
        size_t stride = frame.len > 2000 ? 101 : 1;
        for (size_t bit = 0; bit < 8 * frame.len; bit += stride) {
            frame.data[bit / 8] ^= (char)(1 << bit % 8);
            struct message m;
            struct error err = {0};
            int64_t n = message_next(frame.data, frame.len, &m, &err);
            buf_reset(&again);
            if (n > 0 && recode(&m, &again, &err) == 0) {
                assert_int_equal(again.len, n);
                /* The one byte that may differ is a flag: any non-zero value would do, and is
                 * refused. */
                assert_memory_equal(again.data, frame.data, again.len);
            } else if (n < 0) {
                assert_int_equal(n, E_PROTOCOL);
            }
            frame.data[bit / 8] ^= (char)(1 << bit % 8);
        }
    }
    buf_done(&frame);
    buf_done(&again);
}

static int64_t next_of(uint32_t len, uint16_t type, uint16_t zero)
{
    struct buf b;
    struct message m;
    buf_init(&b, 64);
    buf_append_u32(&b, len);
    buf_append_u16(&b, type);
    buf_append_u16(&b, zero);
    int64_t n = message_next(b.data, b.len, &m, NULL);
    buf_done(&b);
    return n;
}

static void headers_are_bounded(void **state)
{
    (void)state;
    assert_int_equal(next_of(0, MESSAGE_STOP, 0), 8);
    assert_int_equal(next_of(8, MESSAGE_PING, 0), 0);
    assert_int_equal(next_of(LIMIT_CONTROL_FRAME_BYTES, MESSAGE_SUBMIT, 0), 0);
    assert_int_equal(next_of(LIMIT_CONTROL_FRAME_BYTES + 1u, MESSAGE_SUBMIT, 0), E_PROTOCOL);
    assert_int_equal(next_of(1u << 20, MESSAGE_PING, 0), E_PROTOCOL);
    assert_int_equal(next_of(8, MESSAGE_PING, 1), E_PROTOCOL);
    assert_int_equal(next_of(8, 0, 0), E_PROTOCOL);
    assert_int_equal(next_of(8, MESSAGE_RELEASE + 1, 0), E_PROTOCOL);
    assert_int_equal(next_of(8, MESSAGE_RELEASED + 1, 0), E_PROTOCOL);
}

static int decode_submit_frame(const struct buf *b, struct error *err)
{
    struct message m;
    struct message_submit submit;
    assert_true(message_next(b->data, b->len, &m, err) > 0);
    int rc = message_decode_submit(&m, &submit, err);
    if (rc == 0)
        free((void *)(uintptr_t)submit.tokens);
    return rc;
}

static void check_bad_load(const struct message_load *load, const char *field)
{
    static struct message_load decoded;
    struct buf b;
    struct message m;
    struct error err = {0};
    buf_init(&b, 1u << 20);
    assert_int_equal(message_encode_load(&b, load), 0);
    assert_true(message_next(b.data, b.len, &m, NULL) > 0);
    assert_int_equal(message_decode_load(&m, &decoded, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, field));
    buf_done(&b);
}

static void types_are_bounded(void **state)
{
    (void)state;
    static struct message_load load = {
        .cpu = -1,
        .split = {.n_stages = 1,
                  .n_ranks = 1,
                  .stage = {{.layers = {0, 4}, .n_ranks = 1}},
                  .weight = {1}},
    };
    load.engine.kv_type = KV_TYPE_COUNT;
    check_bad_load(&load, "load.kv_type");
    load.engine.kv_type = KV_F16;
    load.wire = COMM_WIRE_COUNT;
    check_bad_load(&load, "load.wire");
    load.wire = COMM_WIRE_F32;
    load.transport = COMM_TRANSPORT_COUNT;
    check_bad_load(&load, "load.transport");
    load.transport = COMM_TCP;
    load.n_draft = LIMIT_DRAFT_TOKENS + 1;
    check_bad_load(&load, "load.n_draft");
}

static void nonsense_is_refused(void **state)
{
    (void)state;
    struct buf b;
    struct error err = {0};
    static struct message_submit submit;
    int32_t token = 5;
    buf_init(&b, 1u << 20);
    submit.n_max = 1;
    submit.n_tokens = 1;
    submit.tokens = &token;
    sampling_init(&submit.sampling);
    message_encode_submit(&b, &submit);
    assert_int_equal(decode_submit_frame(&b, &err), 0);

    submit.sampling.top_p = NAN;
    buf_reset(&b);
    message_encode_submit(&b, &submit);
    assert_int_equal(decode_submit_frame(&b, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, "finite"));
    submit.sampling.top_p = 1.0f;

    submit.n_max = 0;
    buf_reset(&b);
    message_encode_submit(&b, &submit);
    assert_int_equal(decode_submit_frame(&b, &err), E_PROTOCOL);
    assert_non_null(strstr(err.message, "n_max"));

    /* A prompt that does not fit into a frame is not sent. */
    submit.n_max = 1;
    submit.n_tokens = LIMIT_CONTROL_FRAME_BYTES / 4;
    submit.tokens = calloc(submit.n_tokens, 4);
    assert_non_null(submit.tokens);
    struct buf large;
    buf_init(&large, 2u * LIMIT_CONTROL_FRAME_BYTES);
    assert_int_equal(message_encode_submit(&large, &submit), E_LIMIT);
    assert_int_equal(large.len, 0);
    free((void *)(uintptr_t)submit.tokens);
    buf_done(&large);
    buf_done(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trips),
        cmocka_unit_test(every_truncation_is_seen),
        cmocka_unit_test(every_bit_flip_is_harmless),
        cmocka_unit_test(headers_are_bounded),
        cmocka_unit_test(types_are_bounded),
        cmocka_unit_test(nonsense_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
