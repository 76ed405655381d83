/*
 * One rank's part of a loaded model: weights, KV cache, graph, sampler. Usable without any network:
 * with comm NULL and a split of one rank it is a whole engine in one process. All ranks of an
 * instance perform the same steps in the same order (SPMD); the head decides what a step is, so
 * that nothing here depends on one machine's own state.
 *
 * A slot is one sequence's place: its tokens so far, its sampling settings, and a view of its KV
 * cache. The memory of the cache is a pool of blocks, each for block_tokens consecutive tokens of
 * one sequence in all layers. The head alone decides which block is where, and says it with every
 * step; a block may be in several slots at once, which share what it holds. Every rank keeps the
 * same slots and the same blocks. Thread: one thread at a time; compute threads are inside.
 * engine_abort may come from any thread.
 */
#ifndef SHOAL_ENGINE_ENGINE_H
#define SHOAL_ENGINE_ENGINE_H

#include "base/element.h"
#include "base/error.h"
#include "base/limits.h"
#include "comm/comm.h"
#include "engine/logprobs.h"
#include "engine/sampler.h"
#include "model/model.h"
#include "model/shard.h"

#include <stdbool.h>
#include <stdint.h>

enum { ENGINE_DEVICE_BYTES = 64 };

struct engine;  /* opaque */
struct weights; /* engine/weights.h */

struct engine_options {
    uint32_t n_threads; /* 0: 1 */
    uint32_t n_slots;   /* 0: 1; at most LIMIT_SLOTS */
    uint32_t n_ctx;     /* tokens a slot can hold; 0: the model's training context, at most 4096 */
    uint32_t n_batch;   /* tokens in one step at most; 0: 512; at most LIMIT_BATCH_TOKENS */
    uint32_t n_kv_tokens; /* tokens that the pool holds, rounded up to blocks; 0: n_slots * n_ctx */
    enum kv_type kv_type;
    bool no_repack; /* keep weights as in the file: mapped where that is possible, so that
                       they may be larger than memory, and slower */
    char device[ENGINE_DEVICE_BYTES]; /* what computes: "" or "cpu": the processors; "auto": the
                                         first GPU, else the processors; else a name that
                                         engine/devices.h lists. Ranks need not agree. */
    struct weights *kept; /* of an earlier engine for the same model (engine_close_keeping): what
                             fits the new shard is used where it lies. Taken, also on failure; NULL:
                             none */
};

/* Loads the shard that `split` gives to `rank`, and runs a step of every kind once, so that the
 * first prompt finds everything in place. Borrows model (must outlive the engine) and comm (NULL
 * when split->n_ranks is 1; not used here). Errors: E_INVALID, E_UNSUPPORTED, E_IO, E_NOMEM. Owns:
 * the caller, engine_close. */
int engine_open(const struct model *model, const struct split *split, uint32_t rank,
                struct comm *comm, const struct engine_options *options, struct engine **ret_engine,
                struct error *err);
/* The context that options.n_ctx 0 means. */
uint32_t engine_default_n_ctx(const struct model *model);
void engine_close(struct engine *e); /* NULL is fine */
/* Closes all but the weights. Owns: the caller, who hands them to another engine_open or to
 * weights_free. NULL for NULL. */
struct weights *engine_close_keeping(struct engine *e);

/* ---- slots and blocks; every rank must do the same in the same order ---- */

/* Begins a sequence in a slot: blocks[n_blocks] are its memory from its first position on, n_keep
 * tokens of it are there already, since another sequence with the same beginning computed them
 * (n_keep is at most what these blocks hold). sampling says how it samples. What the slot had
 * before is given up. Nobody writes into a shared block: a sequence writes at n_keep and behind, so
 * the caller gives it a copy of the block in which that lies. Another slot that still has a block
 * behind n_keep is over: it becomes empty. Errors: E_INVALID; E_LIMIT beyond n_ctx or
 * n_attached_max; E_NOMEM (the slot is empty then). */
int engine_slot_attach(struct engine *e, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                       uint32_t n_keep, const struct sampling *sampling, struct error *err);
/* More memory at the end of what the slot has; likewise. Errors: as engine_slot_attach, but the
 * slot stays as it was. */
int engine_slot_extend(struct engine *e, uint32_t slot, const uint32_t *blocks, uint32_t n_blocks,
                       struct error *err);
/* Forgets all but the first n_keep tokens; the blocks stay. Errors: E_INVALID. */
int engine_slot_truncate(struct engine *e, uint32_t slot, uint32_t n_keep, struct error *err);
/* Copies the first n_tokens tokens of a block to another one, which nobody uses: a slot that still
 * has it becomes empty. Errors: E_INVALID. */
int engine_block_copy(struct engine *e, uint32_t from, uint32_t to, uint32_t n_tokens,
                      struct error *err);
uint32_t engine_slot_n_tokens(const struct engine *e, uint32_t slot);
/* Tokens of a slot, [engine_slot_n_tokens]. Borrows. */
const int32_t *engine_slot_tokens(const struct engine *e, uint32_t slot);

enum step_output {                   /* which rows of a part give a token */
                   STEP_OUTPUT_NONE, /* prefill chunk that is not the last */
                   STEP_OUTPUT_LAST,
                   STEP_OUTPUT_ALL, /* every row: scoring, speculation */
};

struct step_part { /* consecutive new tokens of one slot */
    uint32_t slot;
    uint32_t n_tokens;
    enum step_output output;
    uint32_t n_logprobs; /* of each row that gives a token: 0: none; else 1 + how many of the
                            likeliest tokens, at most LIMIT_TOP_LOGPROBS */
    const uint8_t *mask; /* with STEP_OUTPUT_LAST: bits over the vocabulary of what may be chosen
                            (sampler_choose); NULL: all */
};

struct step {
    uint64_t number;  /* rises by one per step on all ranks; checked */
    uint32_t n_parts; /* each slot at most once */
    struct step_part part[LIMIT_SLOTS];
    uint32_t n_tokens;     /* sum over parts, at most n_batch */
    const int32_t *tokens; /* [n_tokens], parts one after another */
};

struct step_row {       /* one output row */
    int32_t token;      /* sampled, or the argmax */
    float logit;        /* of that token, after penalties and bias, before temperature */
    float logit_second; /* best logit of any other token; -INFINITY when the vocabulary has one
                           token */
};

struct step_result { /* valid until the next step; on ranks outside the last stage n_rows is 0 */
    uint32_t n_rows;
    const struct step_row *rows; /* in the order of the parts, and of the tokens within a part */
    const struct logprobs *logprobs; /* [n_rows], meaningful for the rows of parts that ask; NULL
                                        when none does */
};

/* Runs one step. After an error other than E_INVALID (which changes nothing) the engine is broken:
 * close it. Errors: E_INVALID (bad step), E_LIMIT (slot full), those of comm, E_CANCELLED. */
int engine_step(struct engine *e, const struct step *step, struct step_result *ret_result,
                struct error *err);

/* Logits of output row `row` of the last step: this rank's vocabulary slice [range.begin,
 * range.end). Last stage only, else NULL. Borrows: until the next step. */
const float *engine_logits(const struct engine *e, uint32_t row, struct range *ret_vocab);

struct engine_info {
    uint64_t weight_bytes;        /* memory that holds weights, mapped and copied */
    uint64_t weight_bytes_mapped; /* of these: pages of the file */
    uint64_t weight_bytes_repacked;
    uint64_t weight_bytes_kept;   /* of these: what options.kept had */
    uint64_t weight_bytes_device; /* of these: in the device's memory */
    uint64_t kv_bytes;            /* of the pool, when all blocks are in use */
    uint64_t compute_bytes;       /* graph buffers */
    uint32_t n_ctx, n_slots, n_batch, n_threads;
    uint32_t block_tokens, n_blocks; /* the same on all ranks of an instance */
    uint32_t n_attached_max; /* blocks in all slots together, a shared one counted in each, until
                                the slot is attached again; likewise the same on all ranks */
    char device[ENGINE_DEVICE_BYTES]; /* its name; "cpu": the processors */
};
void engine_get_info(const struct engine *e, struct engine_info *ret_info);

struct engine_timing { /* sums since the engine was opened */
    uint64_t n_steps, n_tokens;
    uint64_t step_ns;  /* whole steps */
    uint64_t comm_ns;  /* in communication, waiting for other ranks included */
    uint64_t graph_ns; /* building and allocating graphs */
    uint64_t sample_ns;
    uint64_t fill_ns; /* inputs: tokens, positions, masks */
};
void engine_get_timing(const struct engine *e, struct engine_timing *ret_timing);

/* Makes a running step return E_CANCELLED soon; the engine is then broken. Any thread. */
void engine_abort(struct engine *e);

#endif
