#include "runner/plan.h"

#include "runner/wire.h"

#include <string.h>

int plan_encode(struct buf *b, const struct plan *p)
{
    buf_append_u8(b, (uint8_t)p->kind);
    buf_append_u64(b, p->number);
    if (p->kind != PLAN_STEP)
        return b->error;
    buf_append_u32(b, p->n_copies);
    for (uint32_t i = 0; i < p->n_copies; i++) {
        buf_append_u32(b, p->copy[i].from);
        buf_append_u32(b, p->copy[i].to);
        buf_append_u32(b, p->copy[i].n_tokens);
    }
    buf_append_u32(b, p->n_attaches);
    for (uint32_t i = 0; i < p->n_attaches; i++) {
        buf_append_u32(b, p->attach[i].slot);
        buf_append_u32(b, p->attach[i].n_keep);
        buf_append_u32(b, p->attach[i].n_blocks);
        wire_put_sampling(b, &p->attach[i].sampling);
    }
    buf_append_u32(b, p->n_parts);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        buf_append_u32(b, p->part[i].slot);
        buf_append_u32(b, p->part[i].n_tokens);
        buf_append_u8(b, (uint8_t)p->part[i].output);
        buf_append_u32(b, p->part[i].n_past);
        buf_append_u64(b, p->part[i].prefix_hash);
        buf_append_u32(b, p->part[i].n_new_blocks);
    }
    buf_append_u32(b, p->n_blocks);
    for (uint32_t i = 0; i < p->n_blocks; i++)
        buf_append_u32(b, p->blocks[i]);
    buf_append_u32(b, p->n_tokens);
    for (uint32_t i = 0; i < p->n_tokens; i++)
        buf_append_u32(b, (uint32_t)p->tokens[i]);
    return b->error;
}

/* A slot index that occurs once in its list. */
static int check_slot(uint32_t slot, uint64_t *seen, const char *what, struct error *err)
{
    if (slot >= LIMIT_SLOTS)
        return error_set(err, E_PROTOCOL, "plan.%s: slot %u, must be below %d", what, slot,
                         LIMIT_SLOTS);
    if (*seen >> slot & 1)
        return error_set(err, E_PROTOCOL, "plan.%s: slot %u twice", what, slot);
    *seen |= UINT64_C(1) << slot;
    return 0;
}

static int decode_copies(struct cursor *c, struct plan *p, struct error *err)
{
    p->n_copies = cursor_u32(c);
    if (p->n_copies > LIMIT_SLOTS)
        return error_set(err, E_PROTOCOL, "plan.n_copies: %u", p->n_copies);
    for (uint32_t i = 0; i < p->n_copies; i++) {
        struct plan_copy *copy = &p->copy[i];
        copy->from = cursor_u32(c);
        copy->to = cursor_u32(c);
        copy->n_tokens = cursor_u32(c);
        if (copy->from == copy->to || copy->n_tokens == 0)
            return error_set(err, E_PROTOCOL, "plan.copies: %u tokens from block %u to block %u",
                             copy->n_tokens, copy->from, copy->to);
    }
    return 0;
}

static int decode_attaches(struct cursor *c, struct plan *p, uint64_t *n_blocks, struct error *err)
{
    uint64_t seen = 0;
    p->n_attaches = cursor_u32(c);
    if (p->n_attaches > LIMIT_SLOTS)
        return error_set(err, E_PROTOCOL, "plan.n_attaches: %u", p->n_attaches);
    for (uint32_t i = 0; i < p->n_attaches; i++) {
        struct plan_attach *attach = &p->attach[i];
        attach->slot = cursor_u32(c);
        attach->n_keep = cursor_u32(c);
        attach->n_blocks = cursor_u32(c);
        int rc = check_slot(attach->slot, &seen, "attaches", err);
        if (rc == 0)
            rc = wire_get_sampling(c, &attach->sampling, err);
        if (rc != 0)
            return rc;
        if (attach->n_keep > 0 && attach->n_blocks == 0)
            return error_set(err, E_PROTOCOL, "plan.attaches: %u tokens in no block of slot %u",
                             attach->n_keep, attach->slot);
        *n_blocks += attach->n_blocks;
    }
    return 0;
}

static int decode_part(struct cursor *c, struct plan_part *part, uint64_t *seen, struct error *err)
{
    part->slot = cursor_u32(c);
    part->n_tokens = cursor_u32(c);
    uint8_t output = cursor_u8(c);
    part->n_past = cursor_u32(c);
    part->prefix_hash = cursor_u64(c);
    part->n_new_blocks = cursor_u32(c);
    int rc = check_slot(part->slot, seen, "parts", err);
    if (rc != 0)
        return rc;
    if (part->n_tokens == 0 || part->n_tokens > LIMIT_BATCH_TOKENS)
        return error_set(err, E_PROTOCOL, "plan.parts: %u tokens in slot %u", part->n_tokens,
                         part->slot);
    if (output > STEP_OUTPUT_ALL)
        return error_set(err, E_PROTOCOL, "plan.parts: output %u is unknown", output);
    part->output = (enum step_output)output;
    return 0;
}

static int decode_parts(struct cursor *c, struct plan *p, uint64_t *n_blocks, uint64_t *n_tokens,
                        struct error *err)
{
    uint64_t seen = 0;
    p->n_parts = cursor_u32(c);
    if (p->n_parts == 0 || p->n_parts > LIMIT_SLOTS)
        return error_set(err, E_PROTOCOL, "plan.n_parts: %u", p->n_parts);
    for (uint32_t i = 0; i < p->n_parts; i++) {
        int rc = decode_part(c, &p->part[i], &seen, err);
        if (rc != 0)
            return rc;
        *n_blocks += p->part[i].n_new_blocks;
        *n_tokens += p->part[i].n_tokens;
    }
    return 0;
}

static int decode_lists(struct cursor *c, struct plan *p, uint64_t n_blocks, uint64_t n_tokens,
                        struct error *err)
{
    p->n_blocks = cursor_u32(c);
    if (p->n_blocks != n_blocks || n_blocks > PLAN_BLOCKS_MAX)
        return error_set(err, E_PROTOCOL, "plan.n_blocks: %u, attaches and parts have %llu",
                         p->n_blocks, (unsigned long long)n_blocks);
    for (uint32_t i = 0; i < p->n_blocks; i++)
        p->blocks[i] = cursor_u32(c);
    p->n_tokens = cursor_u32(c);
    if (p->n_tokens != n_tokens || n_tokens > LIMIT_BATCH_TOKENS)
        return error_set(err, E_PROTOCOL, "plan.n_tokens: %u, the parts have %llu", p->n_tokens,
                         (unsigned long long)n_tokens);
    for (uint32_t i = 0; i < p->n_tokens; i++) {
        p->tokens[i] = (int32_t)cursor_u32(c);
        if (p->tokens[i] < 0)
            return error_set(err, E_PROTOCOL, "plan.tokens: %d is not a token", p->tokens[i]);
    }
    return 0;
}

static int decode_step(struct cursor *c, struct plan *p, struct error *err)
{
    uint64_t n_blocks = 0, n_tokens = 0;
    int rc = decode_copies(c, p, err);
    if (rc == 0)
        rc = decode_attaches(c, p, &n_blocks, err);
    if (rc == 0)
        rc = decode_parts(c, p, &n_blocks, &n_tokens, err);
    return rc != 0 ? rc : decode_lists(c, p, n_blocks, n_tokens, err);
}

int plan_decode(const void *data, size_t n, struct plan *ret, struct error *err)
{
    struct cursor c;
    cursor_init(&c, data, n);
    uint8_t kind = cursor_u8(&c);
    if (kind < PLAN_STEP || kind > PLAN_STOP)
        return error_set(err, E_PROTOCOL, "plan.kind: %u is unknown", kind);
    ret->kind = (enum plan_kind)kind;
    ret->number = cursor_u64(&c);
    ret->n_copies = ret->n_attaches = ret->n_parts = ret->n_blocks = ret->n_tokens = 0;
    if (ret->kind == PLAN_STEP) {
        int rc = decode_step(&c, ret, err);
        if (rc != 0)
            return rc;
    }
    if (c.failed)
        return error_set(err, E_PROTOCOL, "plan: cut off at byte %zu", c.offset);
    if (cursor_left(&c) != 0)
        return error_set(err, E_PROTOCOL, "plan: %zu bytes too many", cursor_left(&c));
    return 0;
}

uint64_t plan_hash(uint64_t hash, const int32_t *tokens, size_t n)
{
    /* splitmix64's mixing of each token into the state: detects slips, does not resist an enemy
     * (who would hold the instance's key anyway). */
    for (size_t i = 0; i < n; i++) {
        uint64_t x = (hash ^ (uint32_t)tokens[i]) + UINT64_C(0x9e3779b97f4a7c15);
        x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
        x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
        hash = x ^ x >> 31;
    }
    return hash;
}

int plan_encode_rows(struct buf *b, const struct step_row *rows, uint32_t n_rows)
{
    for (uint32_t i = 0; i < n_rows; i++) {
        buf_append_u32(b, (uint32_t)rows[i].token);
        buf_append_f32(b, rows[i].logit);
        buf_append_f32(b, rows[i].logit_second);
    }
    return b->error;
}

int plan_decode_rows(const void *data, uint32_t n_rows, uint32_t n_vocab, struct step_row *ret_rows,
                     struct error *err)
{
    struct cursor c;
    cursor_init(&c, data, (size_t)n_rows * PLAN_ROW_BYTES);
    for (uint32_t i = 0; i < n_rows; i++) {
        uint32_t token = cursor_u32(&c);
        if (token >= n_vocab)
            return error_set(err, E_PROTOCOL, "sampled token %u is not below %u", token, n_vocab);
        ret_rows[i].token = (int32_t)token;
        ret_rows[i].logit = cursor_f32(&c);
        ret_rows[i].logit_second = cursor_f32(&c);
    }
    return 0;
}

uint32_t plan_n_rows(const struct plan *p)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        if (p->part[i].output == STEP_OUTPUT_LAST)
            n++;
        else if (p->part[i].output == STEP_OUTPUT_ALL)
            n += p->part[i].n_tokens;
    }
    return n;
}
