/*
 * The control link between a node and a runner (and, relayed, between nodes): frames over a stream
 * socket.
 *
 * Frame: u32 length of the payload, u16 type, u16 zero, payload; all integers little-endian.
 * Payloads are the structs below, field by field in this order; strings are u32 length + bytes;
 * lists are u32 count + items. A frame that is too long, of an unknown type, or has bytes missing
 * or left over is a protocol error: the link is closed. What a grammar or log-probabilities add to
 * SUBMIT and TOKENS stands at the end, and only where it was asked for. The conversation:
 *
 *   node: LOAD       runner: LISTENING (data-plane port), or FAILED
 *   node: CONNECT    runner: LOADING (progress) ..., READY, or FAILED
 *   node: SUBMIT     head:   PROGRESS (prefill) ..., TOKENS ..., DONE       (rank 0 only)
 *   node: CANCEL     head:   DONE (cancelled)
 *   node: PING       runner: PONG, at any time, also during a step
 *   node: RELEASE    runner: RELEASED, once it has ended what it did; then LOAD again, or STOP
 *   node: STOP       runner: closes the link and exits with 0
 *
 * Thread: pure functions.
 */
#ifndef SHOAL_RUNNER_PROTOCOL_H
#define SHOAL_RUNNER_PROTOCOL_H

#include "base/buf.h"
#include "base/error.h"
#include "engine/engine.h"
#include "text/grammar.h"

#include <stdbool.h>
#include <stdint.h>

enum message_type {
    MESSAGE_LOAD = 1,
    MESSAGE_CONNECT,
    MESSAGE_SUBMIT,
    MESSAGE_CANCEL,
    MESSAGE_PING,
    MESSAGE_STOP,
    MESSAGE_RELEASE,
    MESSAGE_LISTENING = 32,
    MESSAGE_LOADING,
    MESSAGE_READY,
    MESSAGE_FAILED,
    MESSAGE_PROGRESS,
    MESSAGE_TOKENS,
    MESSAGE_DONE,
    MESSAGE_PONG,
    MESSAGE_RELEASED,
};

struct message_load {
    uint32_t rank;
    struct split split;
    uint8_t key[32];              /* of the instance: proves membership on the data plane */
    uint8_t model_hash[32];       /* all zero: not checked */
    struct engine_options engine; /* but kept, which does not travel */
    uint32_t n_chunk, n_draft;    /* of the scheduler; only the head uses them */
    enum comm_wire wire;
    enum comm_transport transport;
    uint32_t spin_us, timeout_ms; /* of comm; UINT32_MAX and 0: defaults */
    int32_t cpu;                  /* pin to this processor; -1: none */
    char host[64];                /* numeric address to listen on for the data plane */
    char model_path[4096];
    char draft_path[4096]; /* of a small model that guesses ahead, for the head; "": none */
};

struct message_connect {
    uint32_t n_peers; /* = split.n_ranks */
    struct comm_tcp_peer peer[LIMIT_RANKS];
};

struct message_submit {
    uint64_t request; /* chosen by the sender, unique among its running requests */
    uint32_t n_max;   /* tokens to generate at most; >= 1 */
    struct sampling sampling;
    uint32_t n_end; /* tokens that end the generation (not delivered) */
    int32_t end[32];
    uint32_t n_tokens;
    const int32_t *tokens; /* prompt; with sampling.n_prompt below n_tokens the rest of it was
                              generated before */
    uint32_t n_logprobs;   /* as in struct step_part */
    bool has_grammar;      /* what is generated follows it */
    enum grammar_kind grammar_kind;
    uint32_t n_grammar_bytes; /* at most LIMIT_GRAMMAR_BYTES */
    const char *grammar;
};

enum finish_reason { FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR };

struct message_done {
    uint64_t request;
    enum finish_reason reason;
    int32_t code; /* error code when reason is FINISH_ERROR */
    uint32_t n_prompt, n_cached, n_generated;
    uint64_t queue_ns, prefill_ns, decode_ns;
    char message[ERROR_MESSAGE_BYTES];
};

enum { MESSAGE_TOKENS_MAX = 256, MESSAGE_LOGPROBS_MAX = LIMIT_DRAFT_TOKENS + 1 };

struct message_tokens {
    uint64_t request;
    uint32_t n_before; /* tokens of this request that were sent before these */
    uint32_t n_tokens;
    int32_t tokens[MESSAGE_TOKENS_MAX];
    const struct logprobs *logprobs; /* [n_tokens], which is at most MESSAGE_LOGPROBS_MAX then;
                                        NULL: not asked for */
};

struct message_progress {
    uint64_t request;
    uint32_t n_done, n_prompt;
};

struct message_ready {
    struct engine_info info;
    uint32_t pid;
};

struct scheduler_stats { /* since the start */
    uint64_t n_steps, n_prompt_tokens, n_cached_tokens, n_generated_tokens;
    uint64_t n_drafted, n_accepted; /* tokens guessed, and of these the right ones */
    uint64_t n_preempted;           /* sequences put back into the queue for want of blocks */
    uint64_t n_evicted;             /* blocks of kept prefixes given up */
    uint32_t n_blocks_used, n_blocks_kept,
        n_blocks_free;            /* now: in slots, in the tree only, free */
    uint32_t n_block_tokens_used; /* now: tokens in the blocks of slots; the rest of these blocks is
                                     fragmentation */
};

struct message_pong {
    uint64_t nonce;
    struct engine_timing timing;
    struct comm_stats comm;
    uint32_t n_running, n_queued;
    struct scheduler_stats scheduler; /* of the head */
    uint64_t memory_peak_bytes;       /* resident, of the process; 0 when unknown */
};

struct message_failed {
    int32_t code;
    char message[ERROR_MESSAGE_BYTES];
};

/* Each appends one whole frame. Errors: those of buf_append. */
int message_encode_load(struct buf *b, const struct message_load *m);
int message_encode_connect(struct buf *b, const struct message_connect *m);
int message_encode_submit(struct buf *b, const struct message_submit *m);
int message_encode_cancel(struct buf *b, uint64_t request);
int message_encode_ping(struct buf *b, uint64_t nonce);
int message_encode_stop(struct buf *b);
int message_encode_release(struct buf *b);
int message_encode_listening(struct buf *b, uint16_t port);
int message_encode_loading(struct buf *b, float fraction);
int message_encode_ready(struct buf *b, const struct message_ready *m);
int message_encode_failed(struct buf *b, const struct message_failed *m);
int message_encode_progress(struct buf *b, const struct message_progress *m);
int message_encode_tokens(struct buf *b, const struct message_tokens *m);
int message_encode_done(struct buf *b, const struct message_done *m);
int message_encode_pong(struct buf *b, const struct message_pong *m);
/* Memory that the weights take which it still has, pages of files not counted. */
int message_encode_released(struct buf *b, uint64_t weight_bytes);

struct message { /* one frame; payload borrows the input */
    enum message_type type;
    const uint8_t *payload;
    size_t len;
};

/* Looks for a whole frame at the front of data. Returns its total bytes, 0 when more bytes are
 * needed, or E_PROTOCOL. */
int64_t message_next(const void *data, size_t n, struct message *ret_message, struct error *err);

/* Each reads the payload of a frame of its type. Errors: E_PROTOCOL (names the field). */
int message_decode_load(const struct message *m, struct message_load *ret, struct error *err);
int message_decode_connect(const struct message *m, struct message_connect *ret, struct error *err);
/* ret->tokens is a copy that the caller frees with free(); the grammar lies in the same piece of
 * memory. */
int message_decode_submit(const struct message *m, struct message_submit *ret, struct error *err);
int message_decode_u64(const struct message *m, uint64_t *ret,
                       struct error *err); /* CANCEL, PING, RELEASED */
int message_decode_listening(const struct message *m, uint16_t *ret, struct error *err);
int message_decode_loading(const struct message *m, float *ret, struct error *err);
int message_decode_ready(const struct message *m, struct message_ready *ret, struct error *err);
int message_decode_failed(const struct message *m, struct message_failed *ret, struct error *err);
int message_decode_progress(const struct message *m, struct message_progress *ret,
                            struct error *err);
/* ret_logprobs: [MESSAGE_LOGPROBS_MAX] room for what ret->logprobs points to; NULL: of no interest,
 * and ret->logprobs is NULL. */
int message_decode_tokens(const struct message *m, struct message_tokens *ret,
                          struct logprobs *ret_logprobs, struct error *err);
int message_decode_done(const struct message *m, struct message_done *ret, struct error *err);
int message_decode_pong(const struct message *m, struct message_pong *ret, struct error *err);

#endif
