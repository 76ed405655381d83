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
        buf_append_u8(b, (uint8_t)p->part[i].n_logprobs);
        buf_append_u8(b, p->part[i].mask != NULL);
    }
    buf_append_u32(b, p->n_blocks);
    for (uint32_t i = 0; i < p->n_blocks; i++)
        buf_append_u32(b, p->blocks[i]);
    buf_append_u32(b, p->n_tokens);
    for (uint32_t i = 0; i < p->n_tokens; i++)
        buf_append_u32(b, (uint32_t)p->tokens[i]);
    if (p->n_mask_bytes > 0)
        buf_append_u32(b, p->n_mask_bytes);
    for (uint32_t i = 0; i < p->n_parts; i++)
        if (p->part[i].mask != NULL)
            buf_append(b, p->part[i].mask, p->n_mask_bytes);
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

/* Stands for a mask until the masks themselves are read. */
static const uint8_t mask_follows;

static int decode_part(struct cursor *c, struct plan_part *part, uint64_t *seen, struct error *err)
{
    part->slot = cursor_u32(c);
    part->n_tokens = cursor_u32(c);
    uint8_t output = cursor_u8(c);
    part->n_past = cursor_u32(c);
    part->prefix_hash = cursor_u64(c);
    part->n_new_blocks = cursor_u32(c);
    part->n_logprobs = cursor_u8(c);
    uint8_t has_mask = cursor_u8(c);
    int rc = check_slot(part->slot, seen, "parts", err);
    if (rc != 0)
        return rc;
    if (part->n_tokens == 0 || part->n_tokens > LIMIT_BATCH_TOKENS)
        return error_set(err, E_PROTOCOL, "plan.parts: %u tokens in slot %u", part->n_tokens,
                         part->slot);
    if (output > STEP_OUTPUT_ALL)
        return error_set(err, E_PROTOCOL, "plan.parts: output %u is unknown", output);
    if (part->n_logprobs > 1 + LIMIT_TOP_LOGPROBS)
        return error_set(err, E_PROTOCOL, "plan.parts: %u log-probabilities", part->n_logprobs);
    if (has_mask > 1 || (has_mask == 1 && output != STEP_OUTPUT_LAST))
        return error_set(err, E_PROTOCOL, "plan.parts: mask %u with output %u", has_mask, output);
    part->output = (enum step_output)output;
    part->mask = has_mask ? &mask_follows : NULL;
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

static int decode_masks(struct cursor *c, struct plan *p, struct error *err)
{
    uint32_t n_masks = 0;
    for (uint32_t i = 0; i < p->n_parts; i++)
        n_masks += p->part[i].mask != NULL;
    if (n_masks == 0)
        return 0;
    p->n_mask_bytes = cursor_u32(c);
    if (p->n_mask_bytes == 0 || p->n_mask_bytes > sampler_mask_bytes(LIMIT_VOCAB_TOKENS))
        return error_set(err, E_PROTOCOL, "plan.n_mask_bytes: %u", p->n_mask_bytes);
    for (uint32_t i = 0; i < p->n_parts; i++)
        if (p->part[i].mask != NULL)
            p->part[i].mask = cursor_bytes(c, p->n_mask_bytes); /* NULL: c has failed */
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
    if (rc == 0)
        rc = decode_lists(c, p, n_blocks, n_tokens, err);
    return rc != 0 ? rc : decode_masks(c, p, err);
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
    ret->n_mask_bytes = 0;
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

static uint32_t part_n_rows(const struct plan_part *part)
{
    return part->output == STEP_OUTPUT_LAST  ? 1
           : part->output == STEP_OUTPUT_ALL ? part->n_tokens
                                             : 0;
}

uint32_t plan_n_rows(const struct plan *p)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < p->n_parts; i++)
        n += part_n_rows(&p->part[i]);
    return n;
}

/* ---- log-probabilities ---- */

#define NO_TOKEN UINT32_MAX

void plan_get_logprobs(const struct plan *p, struct plan_logprobs *ret)
{
    ret->n_parts = p->n_parts;
    for (uint32_t i = 0; i < p->n_parts; i++) {
        ret->part[i].n_rows = part_n_rows(&p->part[i]);
        ret->part[i].n_logprobs = p->part[i].n_logprobs;
    }
}

size_t plan_logprobs_bytes(const struct plan_logprobs *l)
{
    size_t n = 0;
    for (uint32_t i = 0; i < l->n_parts; i++)
        if (l->part[i].n_logprobs > 0)
            n += l->part[i].n_rows * ((size_t)8 * l->part[i].n_logprobs - 4);
    return n;
}

static void encode_row(struct buf *b, const struct logprobs *row, uint32_t n_logprobs)
{
    buf_append_f32(b, row->chosen);
    for (uint32_t k = 0; k + 1 < n_logprobs; k++) {
        buf_append_u32(b, k < row->n_top ? (uint32_t)row->top[k].token : NO_TOKEN);
        buf_append_f32(b, k < row->n_top ? row->top[k].logprob : 0);
    }
}

int plan_encode_logprobs(struct buf *b, const struct plan_logprobs *l,
                         const struct logprobs *logprobs)
{
    for (uint32_t i = 0; i < l->n_parts; logprobs += l->part[i++].n_rows)
        for (uint32_t k = 0; k < l->part[i].n_rows && l->part[i].n_logprobs > 0; k++)
            encode_row(b, &logprobs[k], l->part[i].n_logprobs);
    return b->error;
}

static int decode_row(struct cursor *c, uint32_t n_logprobs, uint32_t n_vocab,
                      struct logprobs *ret_row, struct error *err)
{
    bool is_fine = true;
    *ret_row = (struct logprobs){.chosen = cursor_f32(c)};
    for (uint32_t k = 0; k + 1 < n_logprobs; k++) {
        uint32_t token = cursor_u32(c);
        float logprob = cursor_f32(c);
        if (token == NO_TOKEN)
            continue;
        is_fine &= token < n_vocab && ret_row->n_top == k && k < LIMIT_TOP_LOGPROBS;
        if (is_fine)
            ret_row->top[ret_row->n_top++] = (struct token_logprob){(int32_t)token, logprob};
    }
    return is_fine ? 0 : error_set(err, E_PROTOCOL, "likely tokens that are none");
}

int plan_decode_logprobs(const void *data, const struct plan_logprobs *l, uint32_t n_vocab,
                         struct logprobs *ret_logprobs, struct error *err)
{
    struct cursor c;
    int rc = 0;
    cursor_init(&c, data, plan_logprobs_bytes(l));
    for (uint32_t i = 0; i < l->n_parts; ret_logprobs += l->part[i++].n_rows)
        for (uint32_t k = 0; k < l->part[i].n_rows && l->part[i].n_logprobs > 0 && rc == 0; k++)
            rc = decode_row(&c, l->part[i].n_logprobs, n_vocab, &ret_logprobs[k], err);
    return rc;
}
