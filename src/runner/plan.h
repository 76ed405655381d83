/*
 * The plan of one step: what rank 0 broadcasts so that all ranks do the same. In this order: it
 * copies KV blocks, begins sequences in slots, gives slots more blocks, then lists the parts of the
 * step with their tokens. Each part says how many tokens its slot holds and their hash, so that a
 * rank that lost its place refuses instead of computing nonsense; a slot that holds more forgets
 * what follows (rejected drafts). A part whose sequence follows a grammar has a mask of the tokens
 * that it may sample.
 *
 * Wire form, little-endian: u8 kind, u64 step number, u32 n_copies, copies (u32 from, u32 to, u32
 * n_tokens), u32 n_attaches, attaches (u32 slot, u32 n_keep, u32 n_blocks, sampling), u32 n_parts,
 * parts (u32 slot, u32 n_tokens, u8 output, u32 n_past, u64 prefix hash, u32 n_new_blocks, u8
 * n_logprobs, u8 has_mask), u32 n_blocks, u32 blocks, u32 n_tokens, i32 tokens; if any part has a
 * mask: u32 n_mask_bytes, and the masks in the order of the parts. IDLE and STOP end after the
 * number. Thread: pure functions.
 */
#ifndef SHOAL_RUNNER_PLAN_H
#define SHOAL_RUNNER_PLAN_H

#include "base/buf.h"
#include "base/error.h"
#include "engine/engine.h"

#include <stdint.h>

enum plan_kind {
    PLAN_STEP = 1,
    PLAN_IDLE, /* nothing to do: says that the head lives */
    PLAN_STOP, /* the ranks end in order */
};

struct plan_copy { /* engine_block_copy */
    uint32_t from, to, n_tokens;
};

struct plan_attach { /* engine_slot_attach */
    uint32_t slot, n_keep;
    uint32_t n_blocks;
    struct sampling sampling;
};

struct plan_part {
    uint32_t slot, n_tokens;
    enum step_output output;
    uint32_t n_past;       /* tokens in the slot before this part; engine_slot_truncate to it */
    uint64_t prefix_hash;  /* of these */
    uint32_t n_new_blocks; /* engine_slot_extend, before the step */
    uint32_t n_logprobs;   /* as in struct step_part */
    const uint8_t *mask;   /* likewise, [n_mask_bytes] of the plan. Borrowed */
};

/* Blocks that one plan hands out at most: the whole of a context, for several sequences at once. */
enum { PLAN_BLOCKS_MAX = 16384 };

struct plan { /* large: on the heap */
    enum plan_kind kind;
    uint64_t number;
    uint32_t n_copies, n_attaches, n_parts, n_blocks, n_tokens;
    uint32_t n_mask_bytes; /* sampler_mask_bytes; 0 when no part has a mask */
    struct plan_copy copy[LIMIT_SLOTS];
    struct plan_attach attach[LIMIT_SLOTS];
    struct plan_part part[LIMIT_SLOTS];
    uint32_t blocks[PLAN_BLOCKS_MAX]; /* of the attaches, one after another, then of the parts */
    int32_t tokens[LIMIT_BATCH_TOKENS];
};

/* What a format of plans is called; ranks with different ones refuse each other. */
enum { PLAN_VERSION = 2 };

/* More than any plan takes, masks aside; and with a mask for each slot. */
#define PLAN_BYTES_MAX (1u << 20)
static inline uint32_t plan_bytes_max(uint32_t n_slots, uint32_t n_vocab)
{
    return PLAN_BYTES_MAX + n_slots * sampler_mask_bytes(n_vocab);
}

/* Errors: those of buf_append. */
int plan_encode(struct buf *b, const struct plan *p);
/* Checks every count, and that parts, blocks and tokens fit together; slots and blocks against the
 * engine's are the reader's to check, as is n_mask_bytes. Borrows: masks are in data. Errors:
 * E_PROTOCOL (names the field). */
int plan_decode(const void *data, size_t n, struct plan *ret, struct error *err);

/* Hash of a token sequence: PLAN_HASH_EMPTY extended by its tokens, piece by piece. */
#define PLAN_HASH_EMPTY UINT64_C(0x9e3779b97f4a7c15)
uint64_t plan_hash(uint64_t hash, const int32_t *tokens, size_t n);

/* The rows that the last stage's first rank sends to rank 0: u32 token, f32 logit, f32 second,
 * each. Errors: those of buf_append. */
enum { PLAN_ROW_BYTES = 12 };
int plan_encode_rows(struct buf *b, const struct step_row *rows, uint32_t n_rows);
/* data holds exactly n_rows rows. Errors: E_PROTOCOL when a token is not below n_vocab. */
int plan_decode_rows(const void *data, uint32_t n_rows, uint32_t n_vocab, struct step_row *ret_rows,
                     struct error *err);
/* Rows that the step of this plan gives. */
uint32_t plan_n_rows(const struct plan *p);

/* Behind these rows: what was asked for about them. For each of them in a part that asks: f32, and
 * as often as it asks for likely tokens u32 token, f32 (token 2^32 - 1: there are no more). */
struct plan_logprobs { /* which rows ask */
    uint32_t n_parts;
    struct {
        uint32_t n_rows, n_logprobs;
    } part[LIMIT_SLOTS];
};
void plan_get_logprobs(const struct plan *p, struct plan_logprobs *ret);
size_t plan_logprobs_bytes(const struct plan_logprobs *l);
/* Errors: those of buf_append. */
int plan_encode_logprobs(struct buf *b, const struct plan_logprobs *l,
                         const struct logprobs *logprobs);
/* data holds exactly plan_logprobs_bytes. ret_logprobs: [rows], those that do not ask are left as
 * they are. Errors: E_PROTOCOL. */
int plan_decode_logprobs(const void *data, const struct plan_logprobs *l, uint32_t n_vocab,
                         struct logprobs *ret_logprobs, struct error *err);

#endif
