/* Bytes from a control link, and step plans: the first byte chooses. What is accepted must be
 * written as it was read. */
#include "runner/plan.h"
#include "runner/protocol.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void expect_same(const struct buf *b, const void *data, size_t size)
{
    assert(b->error == 0 && b->len == size && memcmp(b->data, data, size) == 0);
}

static void decode_plan(const uint8_t *data, size_t size)
{
    struct plan *p = malloc(sizeof(*p));
    struct buf b;
    buf_init(&b, PLAN_BYTES_MAX + size);
    if (p != NULL && plan_decode(data, size, p, NULL) == 0) {
        plan_encode(&b, p);
        expect_same(&b, data, size);
        plan_n_rows(p);
    }
    buf_done(&b);
    free(p);
}

/* Returns whether the payload was accepted; it is then in b again. */
static bool decode_frame(const struct message *m, struct buf *b)
{
    static struct message_load load;
    static struct message_submit submit;
    static struct logprobs logprobs[MESSAGE_LOGPROBS_MAX];
    union {
        struct message_connect connect;
        struct message_ready ready;
        struct message_failed failed;
        struct message_progress progress;
        struct message_tokens tokens;
        struct message_done done;
        struct message_pong pong;
        uint64_t number;
        uint16_t port;
        float fraction;
    } u;
    struct error err;
    switch (m->type) {
    case MESSAGE_LOAD:
        return message_decode_load(m, &load, &err) == 0 && message_encode_load(b, &load) == 0;
    case MESSAGE_CONNECT:
        return message_decode_connect(m, &u.connect, &err) == 0 &&
               message_encode_connect(b, &u.connect) == 0;
    case MESSAGE_SUBMIT:
        if (message_decode_submit(m, &submit, &err) != 0)
            return false;
        message_encode_submit(b, &submit);
        free((void *)(uintptr_t)submit.tokens);
        return true;
    case MESSAGE_CANCEL:
        return message_decode_u64(m, &u.number, &err) == 0 &&
               message_encode_cancel(b, u.number) == 0;
    case MESSAGE_PING:
        return message_decode_u64(m, &u.number, &err) == 0 && message_encode_ping(b, u.number) == 0;
    case MESSAGE_LISTENING:
        return message_decode_listening(m, &u.port, &err) == 0 &&
               message_encode_listening(b, u.port) == 0;
    case MESSAGE_LOADING: /* -0 and 0 are both 0: accepted, though not the same bytes */
        message_decode_loading(m, &u.fraction, &err);
        return false;
    case MESSAGE_READY:
        return message_decode_ready(m, &u.ready, &err) == 0 &&
               message_encode_ready(b, &u.ready) == 0;
    case MESSAGE_FAILED:
        return message_decode_failed(m, &u.failed, &err) == 0 &&
               message_encode_failed(b, &u.failed) == 0;
    case MESSAGE_PROGRESS:
        return message_decode_progress(m, &u.progress, &err) == 0 &&
               message_encode_progress(b, &u.progress) == 0;
    case MESSAGE_TOKENS:
        return message_decode_tokens(m, &u.tokens, logprobs, &err) == 0 &&
               message_encode_tokens(b, &u.tokens) == 0;
    case MESSAGE_DONE:
        return message_decode_done(m, &u.done, &err) == 0 && message_encode_done(b, &u.done) == 0;
    case MESSAGE_PONG:
        return message_decode_pong(m, &u.pong, &err) == 0 && message_encode_pong(b, &u.pong) == 0;
    case MESSAGE_RELEASED:
        return message_decode_u64(m, &u.number, &err) == 0 &&
               message_encode_released(b, u.number) == 0;
    case MESSAGE_STOP:
    case MESSAGE_RELEASE:
        break;
    }
    return false;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size == 0)
        return 0;
    if (data[0] & 1) {
        decode_plan(data + 1, size - 1);
        return 0;
    }
    struct buf b;
    buf_init(&b, 2u * LIMIT_CONTROL_FRAME_BYTES);
    for (size_t at = 1; at < size;) {
        struct message m;
        int64_t n = message_next(data + at, size - at, &m, NULL);
        if (n <= 0)
            break;
        buf_reset(&b);
        if (decode_frame(&m, &b))
            expect_same(&b, data + at, (size_t)n);
        at += (size_t)n;
    }
    buf_done(&b);
    return 0;
}
