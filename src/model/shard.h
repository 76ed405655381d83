/*
 * Who holds what. A split divides layers into stages and each stage among ranks; a shard is one
 * rank's part, and says for every tensor exactly which byte ranges of the file it needs.
 *
 * Slices follow roles (model/model.h). A slice is a whole number of units: a unit is the smallest
 * run that is whole in KV-head groups (or feed-forward rows, or vocabulary rows) and in
 * quantization blocks of the tensors that are cut across rows; the last unit is shorter when they
 * do not divide evenly. Slices may be uneven and empty. The remainder of an uneven split rotates
 * over the layers, so that rounding evens out. Everything is a function of (model, split): all
 * ranks compute the same. Thread: any.
 */
#ifndef SHOAL_MODEL_SHARD_H
#define SHOAL_MODEL_SHARD_H

#include "base/buf.h"
#include "base/error.h"
#include "base/limits.h"
#include "model/model.h"

#include <stdint.h>

struct range { /* [begin, end) */
    uint32_t begin, end;
};

struct split_stage {
    struct range layers;
    uint32_t rank_first; /* ranks of a stage are consecutive; rank 0 is in stage 0 */
    uint32_t n_ranks;
};

struct split {
    uint32_t n_stages, n_ranks;
    struct split_stage stage[LIMIT_STAGES];
    uint32_t weight[LIMIT_RANKS]; /* share of each rank within its stage, e.g. usable MiB; all
                                     equal: 1 */
};

/* Splits from a text: "pipeline" (n_ranks stages of one rank), "tensor" (one stage), or "SxT" such
 * as "2x2" (S stages of T ranks; S*T must be n_ranks). Layers are divided by the ranks' weights
 * (NULL: equal), proportional, the last stage takes the rest, none empty. Errors: E_INVALID (says
 * what would be valid). */
int split_parse(const char *text, uint32_t n_ranks, uint32_t n_layer, const uint32_t *weight,
                struct split *ret_split, struct error *err);
/* Divides the layers once more, with the last stage's output head counted as so many layers
 * (model_head_layers): a decoded token needs it whole, a prompt only once. */
void split_count_head(struct split *s, uint32_t n_layer, double head_layers);
/* Checks the form of such a text alone, before ranks and model are known. Errors: E_INVALID. */
int split_check_text(const char *text, struct error *err);
/* Checks that stages cover every layer once, in order, and ranks are consecutive. Errors:
 * E_INVALID. */
int split_check(const struct split *s, uint32_t n_layer, struct error *err);
/* "pipeline", "tensor" or "SxT", for people. Returns text. */
const char *split_describe(const struct split *s, char text[32]);
/* Wire form, little-endian; used in load messages. Errors: buf_append's / E_PROTOCOL. */
int split_encode(const struct split *s, struct buf *b);
int split_decode(struct cursor *c, struct split *ret_split, struct error *err);

struct shard_layer {
    struct range kv_heads; /* KV heads held; query heads are n_head / n_head_kv times these */
    struct range ff;       /* feed-forward columns held */
};

struct shard {
    uint32_t rank, stage, stage_rank, n_stage_ranks; /* stage_rank: place in the stage */
    uint32_t stage_rank_first;                       /* global rank of the stage's first rank */
    bool is_first_stage, is_last_stage;
    struct range layers;
    struct range vocab;        /* rows of the output head; empty unless last stage */
    struct shard_layer *layer; /* [layers.end - layers.begin], owned */
};

/* A tensor's part: rows [row_begin, row_end) of every 2-D tensor, and elements [col_begin, col_end)
 * of each row. 1-D tensors have one row. The bytes of row r are file_offset + r*row_stride_bytes,
 * row_bytes long, for r in 0 .. n_rows-1. */
struct tensor_slice {
    const struct gguf_tensor *tensor;
    uint64_t file_offset;                 /* of the first byte needed */
    uint64_t n_rows, n_cols;              /* elements */
    uint64_t row_bytes, row_stride_bytes; /* equal when the slice is contiguous in the file */
};

/* Computes rank's shard. Owns: the caller, shard_done. Errors: E_INVALID, E_NOMEM. */
int shard_init(struct shard *s, const struct model *m, const struct split *split, uint32_t rank,
               struct error *err);
void shard_done(struct shard *s);

/* The slice of one weight that this shard needs. layer is ignored for global roles. Returns false
 * (and an empty slice) when the model has no such tensor or this shard needs nothing of it. With a
 * tied output head, ROLE_OUTPUT gives rows of the token embedding. */
bool shard_slice(const struct shard *s, const struct model *m, enum role role, uint32_t layer,
                 struct tensor_slice *ret_slice);
/* Sum of all slices (rows of a tied output head count again beside the embedding), and bytes of its
 * KV cache per token (f16). */
uint64_t shard_weight_bytes(const struct shard *s, const struct model *m);
uint64_t shard_kv_token_bytes(const struct shard *s, const struct model *m);

#endif
